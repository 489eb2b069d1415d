//! What can be wrong with bytes that claim to be part of an oplog.

use std::fmt;

/// A violation of the format. Offsets are relative to the slice that was decoded; whoever knows the file adds
/// its name and position.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FormatError {
    /// The magic number of the structure is not there.
    Magic {
        /// Which structure was expected.
        what: &'static str,
        /// The number that was found.
        got: u64,
    },
    /// Written by a newer format than this code knows.
    Version {
        /// Which structure.
        what: &'static str,
        /// Its version.
        got: u32,
        /// The newest version that this code reads.
        newest: u32,
    },
    /// The checksum does not match the bytes.
    Crc {
        /// Which structure.
        what: &'static str,
        /// The checksum that is stored.
        stored: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// Fewer bytes than the structure needs.
    Short {
        /// Which structure.
        what: &'static str,
        /// Bytes needed.
        needed: u64,
        /// Bytes there.
        got: u64,
    },
    /// A field has a value that the format does not allow.
    Value {
        /// The field.
        field: &'static str,
        /// Its value.
        got: u64,
    },
    /// The bytes of an op are not a RESP array of bulk strings.
    Op {
        /// Offset of the op within the slice.
        offset: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A compressed entry cannot be decompressed to the entry that it says it is.
    Compressed {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A control message or manifest could not be decoded.
    Codec {
        /// What the decoder said.
        reason: String,
    },
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic { what, got } => write!(f, "{what}: wrong magic number {got:#x}"),
            Self::Version { what, got, newest } => {
                write!(f, "{what}: format version {got}, this build reads up to {newest}")
            }
            Self::Crc { what, stored, computed } => {
                write!(f, "{what}: checksum {stored:#010x} stored, {computed:#010x} computed")
            }
            Self::Short { what, needed, got } => write!(f, "{what}: needs {needed} bytes, {got} there"),
            Self::Value { field, got } => write!(f, "field {field} has the invalid value {got}"),
            Self::Op { offset, reason } => write!(f, "op at byte {offset}: {reason}"),
            Self::Compressed { reason } => write!(f, "compressed entry: {reason}"),
            Self::Codec { reason } => write!(f, "control data: {reason}"),
        }
    }
}

impl std::error::Error for FormatError {}
