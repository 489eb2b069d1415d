//! Bytes and entries of the redisdr oplog.
//!
//! This crate turns bytes into entries and back and nothing else: no server, no threads, no clock, no file
//! system. All integers are little-endian and of fixed width. The byte tables are in `docs/format.md`.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

mod bytes;
pub mod codec;
pub mod entry;
pub mod error;
pub mod index;
pub mod op;
pub mod packed;
pub mod position;
pub mod segment;

pub use entry::{
    decode_entry, encode_entry, split_after, Decoded, EntryHeader, EntryMeta, EntryRef, ENTRY_HEADER_LEN,
};
pub use error::FormatError;
pub use index::{Footer, IndexPoint, FOOTER_LEN};
pub use op::{parse_op, Arg, OpScan, OpWalk};
pub use packed::{decode_stored, Codec, Packer, Stored, StoredHeader, StoredRef, Unpacker};
pub use position::{History, Lineage, LineageItem, OpId};
pub use segment::{SegmentHeader, SEGMENT_HEADER_LEN};
