//! What can be wrong with a snapshot.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::aux::AuxError;

/// A snapshot that cannot be used, and where.
///
/// `offset` is the byte position in the file (or in the value, for errors of
/// [`pieces`](super::split::pieces)) at which the trouble was met.
#[derive(Debug)]
pub enum SnapshotError {
    /// Reading or writing failed.
    Io {
        /// Bytes handled before the failure.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The bytes end in the middle of something.
    Truncated {
        /// Where they end.
        offset: u64,
    },
    /// The first nine bytes are not those of an RDB file.
    NotAnRdb {
        /// The bytes found there.
        found: [u8; 9],
    },
    /// The file is of a version that this code does not know.
    UnsupportedVersion {
        /// The number in the header.
        version: u16,
    },
    /// A value type that this code cannot measure.
    UnknownType {
        /// The type byte.
        number: u8,
        /// Where it is.
        offset: u64,
    },
    /// An opcode that this code does not know.
    UnknownOpcode {
        /// The opcode.
        number: u8,
        /// Where it is.
        offset: u64,
    },
    /// A length or number that cannot be right here.
    BadNumber {
        /// Which number.
        what: &'static str,
        /// Its value.
        number: u64,
        /// Where it was read.
        offset: u64,
    },
    /// Bytes that contradict their own format.
    Corrupt {
        /// What is wrong.
        what: &'static str,
        /// Where.
        offset: u64,
    },
    /// The CRC64 at the end does not match the bytes before it.
    Checksum {
        /// Where the CRC64 is.
        offset: u64,
        /// The CRC64 in the file.
        stored: u64,
        /// The CRC64 of the bytes read.
        computed: u64,
    },
    /// Bytes follow the end of the snapshot.
    TrailingBytes {
        /// Where the snapshot ends.
        offset: u64,
    },
    /// Our own aux field is there, but cannot be read.
    Aux {
        /// Where the field starts.
        offset: u64,
        /// What is wrong with it.
        error: AuxError,
    },
    /// One of the above, in a named file.
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: Box<SnapshotError>,
    },
}

impl SnapshotError {
    /// Names the file that the error is about.
    #[must_use]
    pub fn in_file(self, path: &Path) -> Self {
        match self {
            Self::InFile { .. } => self,
            error => Self::InFile { path: path.to_path_buf(), error: Box::new(error) },
        }
    }

    /// The error without the name of its file.
    #[must_use]
    pub fn root(&self) -> &Self {
        match self {
            Self::InFile { error, .. } => error.root(),
            other => other,
        }
    }
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { offset, source } => write!(f, "I/O error at byte {offset}: {source}"),
            Self::Truncated { offset } => write!(f, "ends early, at byte {offset}"),
            Self::NotAnRdb { found } => write!(f, "not an RDB file: starts with {:?}", found.escape_ascii()),
            Self::UnsupportedVersion { version } => write!(f, "RDB version {version} is not supported"),
            Self::UnknownType { number, offset } => write!(f, "unknown value type {number} at byte {offset}"),
            Self::UnknownOpcode { number, offset } => write!(f, "unknown opcode {number} at byte {offset}"),
            Self::BadNumber { what, number, offset } => write!(f, "{what} is {number} at byte {offset}"),
            Self::Corrupt { what, offset } => write!(f, "{what} at byte {offset}"),
            Self::Checksum { offset, stored, computed } => {
                write!(f, "CRC64 at byte {offset} is {stored:016x}, the bytes give {computed:016x}")
            }
            Self::TrailingBytes { offset } => write!(f, "bytes follow the end at byte {offset}"),
            Self::Aux { offset, error } => write!(f, "redisdr field at byte {offset}: {error}"),
            Self::InFile { path, error } => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl std::error::Error for SnapshotError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Aux { error, .. } => Some(error),
            Self::InFile { error, .. } => Some(error),
            _ => None,
        }
    }
}
