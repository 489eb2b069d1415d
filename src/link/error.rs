//! What can go wrong on a link.

use std::fmt;
use std::io;

use oplog_format::{FormatError, OpId};

use super::message::{Refusal, RefusalCode};

/// Why a connection, an endpoint or a session ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum LinkError {
    /// The socket failed.
    Io(io::Error),
    /// The other side closed the connection.
    Closed,
    /// Nothing was heard, or nothing could be written, for this many milliseconds.
    Silent {
        /// The time without a sign of life.
        ms: u64,
    },
    /// The bytes are no frame, or a frame is damaged.
    Damaged(FormatError),
    /// A frame is longer than its type may be.
    TooLong {
        /// Type byte of the frame.
        kind: u8,
        /// Its length.
        len: u64,
        /// The longest that is accepted.
        max: u64,
    },
    /// A frame that has no place at this point of the protocol.
    Unexpected {
        /// Type byte of the frame.
        kind: u8,
        /// What the protocol stands at.
        during: &'static str,
    },
    /// An entry does not follow the one before it.
    NotContiguous {
        /// The op id that had to come.
        expected: OpId,
        /// The first op id that came.
        got: OpId,
    },
    /// Entries or snapshot bytes do not add up.
    Transfer {
        /// What.
        what: &'static str,
        /// The value that had to come.
        expected: u64,
        /// The value that came.
        got: u64,
    },
    /// One side refused the other.
    Refused(Refusal),
    /// The host (own log, disk, dataset) could not go on.
    Host(String),
    /// The target keeps its data and waits for its operator.
    Held(String),
    /// The target has to rebuild itself to this op first.
    Rebuild(OpId),
    /// Asked to stop.
    Stopped,
}

impl LinkError {
    /// The refusal in it, where it is one.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    pub(crate) fn refused(code: RefusalCode, reason: impl Into<String>) -> Self {
        Self::Refused(Refusal::new(code, reason))
    }
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(e) => write!(f, "{e}"),
            Self::Closed => f.write_str("connection closed by the other side"),
            Self::Silent { ms } => write!(f, "no sign of life for {ms} ms"),
            Self::Damaged(e) => write!(f, "damaged in transit: {e}"),
            Self::TooLong { kind, len, max } => {
                write!(f, "frame of type {kind} with {len} bytes, at most {max} are accepted")
            }
            Self::Unexpected { kind, during } => write!(f, "frame of type {kind} during {during}"),
            Self::NotContiguous { expected, got } => {
                write!(f, "entry begins at op {got}, {expected} had to come")
            }
            Self::Transfer { what, expected, got } => write!(f, "{what}: {expected} expected, {got} came"),
            Self::Refused(r) => write!(f, "refused: {}", r.reason),
            Self::Host(reason) => f.write_str(reason),
            Self::Held(reason) => write!(f, "held: {reason}"),
            Self::Rebuild(op) => write!(f, "asking again after rebuilding to op {op}"),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

impl std::error::Error for LinkError {}

impl From<io::Error> for LinkError {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

impl From<FormatError> for LinkError {
    fn from(e: FormatError) -> Self {
        Self::Damaged(e)
    }
}
