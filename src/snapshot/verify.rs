//! Whole-file check of a snapshot.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::aux::RdbHead;
use super::error::SnapshotError;
use super::module_value::{value_type, Item, Items};
use super::payload::{restore_payload, PAYLOAD_OVERHEAD};
use super::reader::{Crc, Event, RdbReader};
use super::value::types;

/// Bytes of a value that are kept: those behind them are checked and dropped.
const KEEP_BYTES: usize = 1024 * 1024;
/// Bytes between two calls of the progress function.
const PROGRESS_STEP: u64 = 4 * 1024 * 1024;

/// The largest value that is kept as a sample of its type.
const SAMPLE_LIMIT: usize = 64 * 1024;

/// What the data type of another module has in a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModuleData {
    /// Number of keys with a value of that type.
    pub keys: u64,
    /// RESTORE payload of the smallest such value, if it has at most [`SAMPLE_LIMIT`] bytes.
    pub sample: Option<Vec<u8>>,
    /// Bytes of aux fields with content. They belong to no key, and RESTORE cannot bring them.
    pub aux_bytes: u64,
}

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
    /// What other modules have in it, by type.
    pub modules: BTreeMap<u64, ModuleData>,
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
    let mut reader = RdbReader::new(input).keep_at_most(KEEP_BYTES);
    let mut summary = match reader.next_event()? {
        Some(Event::Header { version, flavor }) => RdbSummary {
            head: RdbHead::new(version, flavor),
            keys: 0,
            expires: 0,
            functions: 0,
            modules: BTreeMap::new(),
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
                let size = (key.key.len() as u64).saturating_add(key.value_len);
                summary.largest_key = summary.largest_key.max(size);
                if key.type_byte == types::MODULE_2 {
                    summary.take_module(key.value, key.value.len() as u64 == key.value_len);
                }
            }
            Event::Function { .. } => summary.functions += 1,
            Event::Eof { crc } => summary.crc = crc,
            other => {
                if let Event::ModuleAux { module_id, body, .. } = &other {
                    if !super::aux::is_ours(&other) && has_content(body) {
                        summary.modules.entry(*module_id).or_default().aux_bytes += body.len() as u64;
                    }
                }
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

impl RdbSummary {
    /// Notes a value of another module, of which a large one may not be here as a whole.
    fn take_module(&mut self, value: &[u8], whole: bool) {
        let Some(id) = value_type(value) else { return };
        let data = self.modules.entry(id).or_default();
        data.keys += 1;
        let smallest = data.sample.as_ref().map_or(SAMPLE_LIMIT, |s| s.len() - PAYLOAD_OVERHEAD);
        if whole && value.len() < smallest {
            let mut payload = Vec::new();
            restore_payload(types::MODULE_2, value, self.head.rdb_version, &mut payload);
            data.sample = Some(payload);
        }
    }
}

/// Modules write numbers, such as a count of zero, also when they have nothing to say; names come as strings.
fn has_content(body: &[u8]) -> bool {
    Items::new(body).any(|item| match item {
        Ok(Item::String(text)) => !text.is_empty(),
        Ok(_) => false,
        Err(_) => true,
    })
}
