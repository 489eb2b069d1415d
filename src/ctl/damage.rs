//! What is wrong with a log, and where.

use std::fmt;
use std::path::{Path, PathBuf};

use oplog_format::FormatError;

/// One damaged place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// File that it is in.
    pub file: PathBuf,
    /// Offset in it.
    pub offset: u64,
    /// What should be there.
    pub expected: String,
    /// What is.
    pub got: String,
}

impl Damage {
    /// A damaged place in `file`.
    pub fn new(file: &Path, offset: u64, expected: impl Into<String>, got: impl Into<String>) -> Self {
        Self { file: file.to_path_buf(), offset, expected: expected.into(), got: got.into() }
    }

    /// What the decoder said about the bytes at `offset`.
    #[must_use]
    pub fn format(file: &Path, offset: u64, error: &FormatError) -> Self {
        let at = |plus: u64, expected: String, got: String| Self::new(file, offset + plus, expected, got);
        match error {
            FormatError::Magic { what, got } => {
                at(0, format!("the magic number of a {what}"), format!("{got:#x}"))
            }
            FormatError::Version { what, got, newest } => {
                at(0, format!("{what} format version up to {newest}"), format!("version {got}"))
            }
            FormatError::Crc { what, stored, computed } => {
                at(0, format!("{what} with checksum {stored:#010x}"), format!("checksum {computed:#010x}"))
            }
            FormatError::Short { what, needed, got } => {
                at(0, format!("{needed} bytes of {what}"), format!("{got} bytes"))
            }
            FormatError::Value { field, got } => at(0, format!("a valid {field}"), got.to_string()),
            FormatError::Op { offset, reason } => at(*offset, "an op".to_owned(), (*reason).to_owned()),
            other => at(0, "control data".to_owned(), other.to_string()),
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, offset, expected, got } = self;
        write!(f, "{}: byte {offset}: expected {expected}, got {got}", file.display())
    }
}
