//! Ops that were cut off the log because the source does not have them: kept until the operator removes them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use oplog_format::{
    decode_entry, encode_entry, parse_op, split_after, Decoded, EntryHeader, EntryMeta, FormatError, OpId,
    OpScan, SegmentHeader, StoredHeader,
};
use serde::{Deserialize, Serialize};

use super::durable;
use super::error::{ReadError, StoreError};
use super::fs::Fs;
use super::log::{now_ms, Log};
use super::segment::{file_name, Placed, Segment};

/// Directory of the orphans.
pub const ORPHANS: &str = "orphans";
/// Name of the record in an orphan's folder.
pub const RECORD: &str = "orphan";
/// A folder that is being filled; removed at the next opening.
const PART: &str = ".part";
/// Key names in a record.
const MAX_KEYS: usize = 16;
/// Bytes of a name that are shown.
const MAX_NAME: usize = 80;
/// Bytes read at once.
const STEP: usize = 1 << 20;

/// One tail that was cut off.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrphanInfo {
    /// Name of its folder.
    pub id: String,
    /// First op.
    pub first_op: OpId,
    /// Last op.
    pub last_op: OpId,
    /// Bytes of the stream.
    pub bytes: u64,
    /// Number of ops.
    pub ops: u64,
    /// Time of the first entry, Unix milliseconds.
    pub first_time_ms: u64,
    /// Time of the last entry, Unix milliseconds.
    pub last_time_ms: u64,
    /// When it was cut off, Unix milliseconds.
    pub cut_ms: u64,
    /// Why.
    pub reason: String,
    /// Names of some of the keys that are written, each once.
    pub keys: Vec<String>,
}

/// All orphans in a log's directory, oldest first.
///
/// # Errors
/// The file system's, or damage of a record.
pub fn list(fs: &dyn Fs, dir: &Path) -> Result<Vec<OrphanInfo>, StoreError> {
    let folder = dir.join(ORPHANS);
    let names = match fs.list(&folder) {
        Ok(names) => names,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(StoreError::io("listing", &folder, e)),
    };
    let mut found = Vec::new();
    for name in names.iter().filter(|n| !n.ends_with(PART)) {
        if let Some(info) = durable::load(fs, &folder.join(name).join(RECORD))? {
            found.push(info);
        }
    }
    Ok(found)
}

/// Removes what copies that were not finished have left.
pub(super) fn remove_parts(fs: &dyn Fs, dir: &Path) {
    let folder = dir.join(ORPHANS);
    for name in fs.list(&folder).unwrap_or_default().iter().filter(|n| n.ends_with(PART)) {
        remove_folder(fs, &folder.join(name));
    }
}

fn remove_folder(fs: &dyn Fs, folder: &Path) {
    for name in fs.list(folder).unwrap_or_default() {
        let _ = fs.unlink(&folder.join(name));
    }
    if let Err(e) = fs.remove_dir(folder) {
        log::warn!("{} cannot be removed: {e}", folder.display());
    }
}

/// Where a cut goes through.
pub(super) struct Seam {
    /// The ops up to the cut of the entry that it goes through, as an entry.
    pub(super) head: Option<Vec<u8>>,
    /// Its ops above the cut.
    tail: Vec<u8>,
    /// First op of the next entry.
    next: OpId,
}

impl Log {
    /// Finds where a cut behind `op` goes through.
    pub(super) fn seam(self: &Arc<Self>, op: OpId) -> Result<Seam, StoreError> {
        let (entry_first, entry_last) = match self.reader(op + 1) {
            Ok(_) => return Ok(Seam { head: None, tail: Vec::new(), next: op + 1 }),
            Err(ReadError::NotABoundary { entry_first, entry_last, .. }) => (entry_first, entry_last),
            Err(e) => return Err(unread(e)),
        };
        let mut frames = Vec::new();
        self.reader(entry_first).and_then(|mut r| r.next(1, &mut frames)).map_err(unread)?;
        let wrong = |error| StoreError::Damaged { path: PathBuf::from("(entry to split)"), offset: 0, error };
        let (head, tail) = split(&frames, op).map_err(wrong)?;
        Ok(Seam { head: Some(head), tail, next: entry_last + 1 })
    }

    /// Keeps everything above `op` aside, durably: whole sealed segments by a second name, the rest as copies.
    pub(super) fn keep_aside(
        self: &Arc<Self>,
        op: OpId,
        seam: &Seam,
        reason: &str,
    ) -> Result<OrphanInfo, StoreError> {
        let folder = self.dir.join(ORPHANS);
        let cut_ms = now_ms();
        let taken = self.fs.list(&folder).unwrap_or_default();
        let id = (cut_ms..)
            .map(|ms| format!("{:020}-{ms}", op + 1))
            .find(|id| !taken.iter().any(|t| t.trim_end_matches(PART) == id))
            .unwrap_or_default();
        let part = folder.join(format!("{id}{PART}"));
        let info = OrphanInfo {
            id: id.clone(),
            first_op: op + 1,
            reason: reason.to_owned(),
            cut_ms,
            ..OrphanInfo::default()
        };
        let filled = self.fill_folder(&part, op, seam, info).and_then(|info| {
            let done = folder.join(&id);
            self.fs.rename(&part, &done).map_err(|e| StoreError::io("renaming", &part, e))?;
            self.fs.sync_dir(&folder).map_err(|e| StoreError::io("syncing", &folder, e))?;
            // The folder of all orphans may be new, too.
            self.fs.sync_dir(&self.dir).map_err(|e| StoreError::io("syncing", &self.dir, e))?;
            Ok(info)
        });
        if filled.is_err() {
            remove_folder(self.fs.as_ref(), &part);
        }
        filled
    }

    fn fill_folder(
        self: &Arc<Self>,
        part: &Path,
        op: OpId,
        seam: &Seam,
        mut info: OrphanInfo,
    ) -> Result<OrphanInfo, StoreError> {
        self.fs.create_dir(part).map_err(|e| StoreError::io("making", part, e))?;
        for segment in self.segments.load_full().iter().filter(|s| s.last_op() > op) {
            let first = segment.header.first_op;
            let whole = first > op && segment.is_sealed();
            if whole && self.fs.hard_link(&segment.path, &part.join(file_name(0, first))).is_ok() {
                if info.ops == 0 {
                    info.first_time_ms = self.time_of(first)?;
                }
                info.ops += segment.ops();
                info.last_time_ms = segment.last_time_ms();
                info.last_op = segment.last_op();
            } else {
                self.copy_segment(part, segment, op, seam, &mut info)?;
            }
        }
        info.bytes = (info.last_op + 1).saturating_sub(info.first_op);
        info.keys = self.some_keys(seam)?;
        // Syncs the folder as well.
        durable::save(self.fs.as_ref(), &part.join(RECORD), &info)?;
        Ok(info)
    }

    /// Names of keys that the first ops behind the seam write; what is far behind is not read for this.
    fn some_keys(self: &Arc<Self>, seam: &Seam) -> Result<Vec<String>, StoreError> {
        let mut frames = seam.tail.clone();
        if seam.next <= self.written() {
            let mut reader = self.reader(seam.next).map_err(unread)?;
            while frames.len() < STEP && reader.position() <= self.written() {
                reader.next(STEP, &mut frames).map_err(unread)?;
            }
        }
        let mut keys = Vec::new();
        let mut rest = frames.as_slice();
        while let Ok(Decoded::Entry(entry)) = decode_entry(rest) {
            rest = rest.get(entry.frame.len()..).unwrap_or_default();
            let mut args = Vec::new();
            let mut ops = entry.payload;
            while let Ok(OpScan::Complete { len }) = parse_op(ops, &mut args) {
                let argv: Vec<&[u8]> = args.iter().take(3).map(|a| a.of(ops)).collect();
                let name = key_of(&argv).map(shown);
                keys.extend(name.filter(|n| keys.len() < MAX_KEYS && !keys.contains(n)));
                ops = ops.get(len..).unwrap_or_default();
            }
            if keys.len() == MAX_KEYS {
                break;
            }
        }
        Ok(keys)
    }

    fn time_of(self: &Arc<Self>, first: OpId) -> Result<u64, StoreError> {
        let mut frames = Vec::new();
        self.reader(first).and_then(|mut r| r.next(1, &mut frames)).map_err(unread)?;
        Ok(EntryHeader::decode(&frames).map_or(0, |h| h.meta.time_ms))
    }

    fn copy_segment(
        self: &Arc<Self>,
        part: &Path,
        from: &Segment,
        op: OpId,
        seam: &Seam,
        info: &mut OrphanInfo,
    ) -> Result<(), StoreError> {
        let first_op = from.header.first_op.max(op + 1);
        let to = Segment::create(&self.fs, part, 0, SegmentHeader { first_op, ..from.header })?;
        let mut add = |frames: &[u8]| {
            let headers = headers_of(frames);
            for (header, _) in &headers {
                count(info, &header.header);
            }
            to.append(frames, &headers, u64::MAX)
        };
        if !seam.tail.is_empty() && from.header.first_op <= op {
            add(&seam.tail)?;
        }
        let start = first_op.max(seam.next);
        if start <= from.last_op() {
            let mut reader = self.reader(start).map_err(unread)?;
            let mut frames = Vec::new();
            while reader.position() <= from.last_op() {
                frames.clear();
                reader.next_stored(STEP, &mut frames).map_err(unread)?;
                add(&frames)?;
            }
        }
        to.seal()
    }
}

/// Headers of whole frames that came checked from the log, with their offsets.
fn headers_of(frames: &[u8]) -> Vec<Placed> {
    let mut headers = Vec::new();
    let mut at = 0;
    while let Some(Ok(header)) = frames.get(at..).filter(|r| !r.is_empty()).map(StoredHeader::decode) {
        headers.push((header, at));
        at = at.saturating_add(usize::try_from(header.frame_len()).unwrap_or(usize::MAX));
    }
    headers
}

fn count(info: &mut OrphanInfo, header: &EntryHeader) {
    if info.ops == 0 {
        info.first_time_ms = header.meta.time_ms;
    }
    info.last_time_ms = header.meta.time_ms;
    info.last_op = header.meta.last_op;
    info.ops += u64::from(header.meta.op_count);
}

/// Where most commands have their key; `None` for those without one.
fn key_of<'a>(argv: &[&'a [u8]]) -> Option<&'a [u8]> {
    const NONE: [&[u8]; 13] = [
        b"SELECT",
        b"MULTI",
        b"EXEC",
        b"PING",
        b"REPLCONF",
        b"PUBLISH",
        b"SPUBLISH",
        b"FLUSHALL",
        b"FLUSHDB",
        b"SCRIPT",
        b"FUNCTION",
        b"SWAPDB",
        b"CLUSTER",
    ];
    let name = argv.first()?;
    if NONE.iter().any(|n| n.eq_ignore_ascii_case(name)) {
        return None;
    }
    let second = [b"XGROUP".as_slice(), b"BITOP"].iter().any(|n| n.eq_ignore_ascii_case(name));
    argv.get(if second { 2 } else { 1 }).copied()
}

/// A name as text, cut where it is long.
fn shown(name: &[u8]) -> String {
    match name.get(..MAX_NAME) {
        Some(head) if name.len() > MAX_NAME => format!("{}..", head.escape_ascii()),
        _ => name.escape_ascii().to_string(),
    }
}

fn unread(e: ReadError) -> StoreError {
    match e {
        ReadError::Store(e) => e,
        ReadError::Trimmed { oldest } => StoreError::NotNext { expected: oldest, got: 0 },
        ReadError::Ahead { written } => StoreError::NotNext { expected: written, got: 0 },
        ReadError::NotABoundary { op, entry_first, .. } => {
            StoreError::NotNext { expected: entry_first, got: op }
        }
    }
}

/// Parts the entry at the start of `frames` behind `op`, which must be the end of an op outside a transaction.
fn split(frames: &[u8], op: OpId) -> Result<(Vec<u8>, Vec<u8>), FormatError> {
    let Decoded::Entry(entry) = decode_entry(frames)? else {
        return Err(FormatError::Short { what: "entry", needed: 1, got: 0 });
    };
    let tail = split_after(&entry, op)?
        .ok_or(FormatError::Value { field: "op id within an op or transaction", got: op })?;
    let tail_ops = EntryHeader::decode(&tail)?.meta.op_count;
    let keep = usize::try_from(op + 1 - entry.header.first_op()).unwrap_or(0);
    let op_count = entry.header.meta.op_count.saturating_sub(tail_ops).max(1);
    let meta = EntryMeta { last_op: op, op_count, ..entry.header.meta };
    let mut head = Vec::new();
    encode_entry(&meta, entry.payload.get(..keep).unwrap_or_default(), &mut head)?;
    Ok((head, tail))
}
