//! What can go wrong with the log.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use oplog_format::{FormatError, OpId};

/// An error of the log.
#[derive(Debug)]
#[non_exhaustive]
pub enum StoreError {
    /// The file system said no.
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Its words.
        error: io::Error,
    },
    /// A file does not hold what it must.
    Damaged {
        /// The file.
        path: PathBuf,
        /// Offset in it.
        offset: u64,
        /// What is wrong.
        error: FormatError,
    },
    /// Two segments do not follow one another.
    Discontinuous {
        /// The later one.
        path: PathBuf,
        /// Op id that it should begin with.
        expected: OpId,
        /// Op id that it begins with.
        got: OpId,
    },
    /// Another process holds the directory.
    InUse {
        /// The directory.
        dir: PathBuf,
        /// Its holder, where known.
        pid: Option<i32>,
    },
    /// An entry or history that does not continue the log.
    NotNext {
        /// Op id that would.
        expected: OpId,
        /// Op id that came.
        got: OpId,
    },
    /// The log has no history yet, so that nothing can be appended.
    NoHistory,
    /// A write or sync has failed before: nothing is written until the log is revived.
    Poisoned(String),
}

impl StoreError {
    /// Wraps an error of the file system.
    pub fn io(what: &'static str, path: &Path, error: io::Error) -> Self {
        Self::Io { what, path: path.to_owned(), error }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { what, path, error } => write!(f, "{what} {}: {error}", path.display()),
            Self::Damaged { path, offset, error } => {
                write!(f, "{} is damaged at offset {offset}: {error}", path.display())
            }
            Self::Discontinuous { path, expected, got } => {
                write!(f, "{} begins with op {got}, op {expected} was expected", path.display())
            }
            Self::InUse { dir, pid: Some(pid) } => {
                write!(
                    f,
                    "{} is in use by process {pid}; each server needs a 'dir' of its own",
                    dir.display()
                )
            }
            Self::InUse { dir, pid: None } => {
                write!(f, "{} is in use by another process", dir.display())
            }
            Self::NotNext { expected, got } => write!(f, "op {got} does not follow: {expected} is next"),
            Self::NoHistory => f.write_str("the log has no history yet"),
            Self::Poisoned(why) => write!(f, "the log has failed: {why}"),
        }
    }
}

impl std::error::Error for StoreError {}

/// Why a reader does not go on.
#[derive(Debug)]
#[non_exhaustive]
pub enum ReadError {
    /// The log begins above the position.
    Trimmed {
        /// First op id that it has.
        oldest: OpId,
    },
    /// The log does not reach the position.
    Ahead {
        /// Last op id that it has.
        written: OpId,
    },
    /// The position lies within an entry.
    NotABoundary {
        /// The position.
        op: OpId,
        /// First op id of the entry.
        entry_first: OpId,
        /// Last op id of the entry.
        entry_last: OpId,
    },
    /// A segment is damaged or cannot be read.
    Store(StoreError),
}

impl From<StoreError> for ReadError {
    fn from(e: StoreError) -> Self {
        Self::Store(e)
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trimmed { oldest } => write!(f, "the log begins at op {oldest}"),
            Self::Ahead { written } => write!(f, "the log ends at op {written}"),
            Self::NotABoundary { op, entry_first, entry_last } => {
                write!(f, "op {op} lies within the entry {entry_first} to {entry_last}")
            }
            Self::Store(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for ReadError {}
