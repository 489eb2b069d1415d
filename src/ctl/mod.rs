//! What `oplogctl` does: reads a log without changing it, whether its server is alive or dead.
//!
//! Nothing here takes the writer's lock. A segment may grow, be sealed, be cut or vanish while it is read.

pub mod damage;
pub mod dir;
pub mod dump;
pub mod entries;
pub mod ops;
pub mod orphans;
pub mod scan;
pub mod stat;
pub mod strip;
pub mod text;
pub mod time;
pub mod verify;

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Why a command of `oplogctl` could not go on.
#[derive(Debug)]
pub enum CtlError {
    /// A file could not be read.
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The output could not be written.
    Output(io::Error),
    /// The directory is no log.
    NoLog(PathBuf),
    /// Something else, in words.
    Other(String),
}

impl CtlError {
    pub(crate) fn io(path: &Path, error: io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), error }
    }
}

impl From<io::Error> for CtlError {
    /// Only writing to the output gives errors without a path.
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl fmt::Display for CtlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { path, error } => write!(f, "{}: {error}", path.display()),
            Self::Output(error) => write!(f, "output: {error}"),
            Self::NoLog(path) => write!(f, "{}: holds no oplog", path.display()),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for CtlError {}

/// Tells a person at a terminal how far a long run has come.
pub struct Progress {
    shown: bool,
    percent: Option<u64>,
}

impl Progress {
    /// Shown on the standard error stream, or not at all.
    #[must_use]
    pub fn new(shown: bool) -> Self {
        Self { shown, percent: None }
    }

    /// `done` of `total` bytes are done.
    pub fn at(&mut self, done: u64, total: u64) {
        let percent = done.saturating_mul(100).checked_div(total).unwrap_or(100).min(100);
        if self.shown && self.percent != Some(percent) {
            self.percent = Some(percent);
            // A terminal that went away is no reason to stop.
            let _ = write!(io::stderr(), "\r{percent:3}%");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.percent.is_some() {
            let _ = write!(io::stderr(), "\r     \r");
        }
    }
}
