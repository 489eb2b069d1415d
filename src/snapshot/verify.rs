//! Whole-file check of a snapshot.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::aux::RdbHead;
use super::error::SnapshotError;
use super::reader::{Crc, Event, RdbReader};

/// Bytes between two calls of the progress function.
const PROGRESS_STEP: u64 = 4 * 1024 * 1024;

/// What a whole snapshot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RdbSummary {
    /// What precedes the keys.
    pub head: RdbHead,
    /// Number of keys.
    pub keys: u64,
    /// Number of keys that expire.
    pub expires: u64,
    /// Number of function libraries.
    pub functions: u64,
    /// Number of aux fields of other modules. A server without these modules does not load the file.
    pub foreign_module_fields: u64,
    /// Bytes of the largest key with its value.
    pub largest_key: u64,
    /// Length of the file.
    pub bytes: u64,
    /// State of the CRC64.
    pub crc: Crc,
}

/// Reads a whole RDB file and checks all of it. `progress` is told of the bytes and keys read so far, now and
/// then and at the end.
///
/// # Errors
/// [`SnapshotError`], with the file's name.
pub fn verify_file(path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<RdbSummary, SnapshotError> {
    File::open(path)
        .map_err(|source| SnapshotError::Io { offset: 0, source })
        .and_then(|file| verify(file, progress))
        .map_err(|e| e.in_file(path))
}

/// Reads a whole RDB and checks all of it, like [`verify_file`].
///
/// # Errors
/// [`SnapshotError`].
pub fn verify(input: impl Read, progress: &mut dyn FnMut(u64, u64)) -> Result<RdbSummary, SnapshotError> {
    let mut reader = RdbReader::new(input);
    let mut summary = match reader.next_event()? {
        Some(Event::Header { version, flavor }) => RdbSummary {
            head: RdbHead::new(version, flavor),
            keys: 0,
            expires: 0,
            functions: 0,
            foreign_module_fields: 0,
            largest_key: 0,
            bytes: 0,
            crc: Crc::Absent,
        },
        _ => return Err(SnapshotError::Truncated { offset: reader.offset() }),
    };
    let mut next_report = PROGRESS_STEP;
    loop {
        let offset = reader.offset();
        let Some(event) = reader.next_event()? else { break };
        match event {
            Event::Key(key) => {
                summary.keys += 1;
                summary.expires += u64::from(key.expire_ms.is_some());
                let size = (key.key.len() + key.value.len()) as u64;
                summary.largest_key = summary.largest_key.max(size);
            }
            Event::Function { .. } => summary.functions += 1,
            Event::Eof { crc } => summary.crc = crc,
            other => {
                let foreign = matches!(other, Event::ModuleAux { .. }) && !super::aux::is_ours(&other);
                summary.foreign_module_fields += u64::from(foreign);
                summary.head.take(&other, offset)?;
            }
        }
        summary.bytes = reader.offset();
        if summary.bytes >= next_report {
            next_report = summary.bytes + PROGRESS_STEP;
            progress(summary.bytes, summary.keys);
        }
    }
    reader.expect_end()?;
    progress(summary.bytes, summary.keys);
    Ok(summary)
}
