//! Why the own server's stream cannot be read.

use std::fmt;

use crate::local::LocalError;

/// Why an attach failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum AttachError {
    /// The server listens nowhere that the module could connect to.
    NoListener,
    /// A command that the tap needs is renamed or disabled.
    Disabled {
        /// The command.
        command: &'static str,
    },
    /// The server refuses for now: it loads, fails over, or has no link to its master.
    NotNow {
        /// The server's words.
        reason: String,
    },
    /// The server refused for a reason that waiting does not change.
    Refused {
        /// What was asked.
        command: &'static str,
        /// The server's words.
        error: String,
    },
    /// The server would only give a full resync, at each of several tries.
    NoPartialResync {
        /// How often it was tried.
        tries: u32,
        /// Size of its backlog in bytes.
        backlog_size: i64,
    },
    /// A setting is not as the server itself reports it, or could not be put back.
    Setting {
        /// Its name.
        name: String,
        /// What went wrong.
        error: String,
    },
    /// INFO lacks a field, or has one that makes no sense.
    Info {
        /// The field.
        field: &'static str,
    },
    /// Something did not happen in time.
    Timeout {
        /// What was waited for.
        what: &'static str,
    },
    /// The attach was cancelled.
    Cancelled,
    /// The connection to the server failed.
    Local(LocalError),
}

impl AttachError {
    /// Whether it is worth trying again without a change of the configuration.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::NoListener | Self::Disabled { .. } | Self::Refused { .. } | Self::Info { .. } => false,
            Self::Local(LocalError::Auth(_)) => false,
            Self::NotNow { .. }
            | Self::NoPartialResync { .. }
            | Self::Setting { .. }
            | Self::Timeout { .. }
            | Self::Cancelled
            | Self::Local(_) => true,
        }
    }

    /// Sorts the error reply of `command`.
    pub(crate) fn of_reply(command: &'static str, error: String) -> Self {
        let lower = error.to_ascii_lowercase();
        let code = error.trim_start_matches('-').split(' ').next().unwrap_or_default();
        if lower.contains("unknown command") {
            Self::Disabled { command }
        } else if matches!(code, "LOADING" | "NOMASTERLINK" | "MASTERDOWN" | "BUSY" | "MISCONF") {
            Self::NotNow { reason: error }
        } else {
            Self::Refused { command, error }
        }
    }
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoListener => f.write_str(
                "the server listens nowhere that the module can reach (port 0 and no unixsocket): \
                 set unixsocket to a path, or port to a number",
            ),
            Self::Disabled { command } => write!(
                f,
                "the server does not know {command}: it is renamed or disabled; remove the line \
                 rename-command {command} from the configuration (ACL rules keep users from it as well)"
            ),
            Self::NotNow { reason } => write!(f, "the server gives no replication stream now: {reason}"),
            Self::Refused { command, error } => write!(f, "the server refused {command}: {error}"),
            Self::NoPartialResync { tries, backlog_size } => write!(
                f,
                "the write load overran the replication backlog of {backlog_size} bytes at each of {tries} \
                 tries: raise repl-backlog-size"
            ),
            Self::Setting { name, error } => write!(f, "setting {name}: {error}"),
            Self::Info { field } => write!(f, "INFO has no usable field {field}"),
            Self::Timeout { what } => write!(f, "timed out: {what}"),
            Self::Cancelled => f.write_str("cancelled"),
            Self::Local(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for AttachError {}

impl From<LocalError> for AttachError {
    fn from(e: LocalError) -> Self {
        Self::Local(e)
    }
}
