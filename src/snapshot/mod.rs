//! RDB snapshots: a streaming reader, RESTORE payloads, our own aux field, whole-file checks.
//!
//! Nothing here knows the module API, the clock or threads: bytes in, events and bytes out.
//! Format source: `rdb.c` and `rdb.h` of Redis 6.0 to 8.0 and Valkey 8.0 to 9.x.

pub mod aux;
pub mod crc64;
mod error;
mod input;
pub mod module_value;
mod packed;
pub mod payload;
pub mod reader;
mod source;
pub mod split;
mod stream;
mod strings;
pub mod strip;
pub mod text;
mod value;
pub mod verify;

pub use aux::{AuxContent, AuxError, Mode, RdbHead};
pub use error::SnapshotError;
pub use payload::{plain_string, plain_text, restore_payload, uncompressed};
pub use reader::{Crc, Event, Flavor, RdbReader};
pub use split::{pieces, pieces_of_file, PieceOptions};
pub use strip::{strip_rdb, StripReport};
pub use text::TextPieces;
pub use verify::{verify, verify_file, ModuleData, RdbSummary};
