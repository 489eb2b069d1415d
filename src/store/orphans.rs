//! Ops that were cut off the log because the source does not have them: kept until the operator removes them.
//!
//! Order: copy the tail into a folder with a record, sync both, rename the folder to its final name; note the cut
//! in the manifest; only then take the ops out of the log. A crash before the note leaves the log whole, one
//! after it makes the next opening finish the cut.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::Arc;

use oplog_format::{
    decode_entry, encode_entry, split_after, Decoded, EntryHeader, EntryMeta, FormatError, OpId,
    SegmentHeader,
};
use serde::{Deserialize, Serialize};

use super::durable;
use super::error::{ReadError, StoreError};
use super::fs::Fs;
use super::log::{now_ms, Log};
use super::segment::Segment;

/// Directory of the orphans.
pub const ORPHANS: &str = "orphans";
const RECORD: &str = "orphan";
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
    for name in names.iter().filter(|n| !n.ends_with(".part")) {
        if let Some(info) = durable::load(fs, &folder.join(name).join(RECORD))? {
            found.push(info);
        }
    }
    Ok(found)
}

impl Log {
    /// Takes everything above `op` out of the log and keeps it aside. `None` where there is nothing.
    ///
    /// # Errors
    /// The file system's, or damage. The log is then whole, or the cut is finished at the next opening.
    pub fn cut_after(self: &Arc<Self>, op: OpId, reason: &str) -> Result<Option<OrphanInfo>, StoreError> {
        if op >= self.written() {
            return Ok(None);
        }
        let kept = self.keep_aside(op, reason)?;
        {
            let mut writer = self.writer.lock();
            let mut manifest = writer.manifest.clone();
            manifest.cut = Some(op);
            manifest.lineage.cut_after(op);
            self.save_manifest(&manifest)?;
            writer.manifest = manifest;
        }
        self.finish_cut(op)?;
        Ok(Some(kept))
    }

    fn keep_aside(self: &Arc<Self>, op: OpId, reason: &str) -> Result<OrphanInfo, StoreError> {
        let folder = self.dir.join(ORPHANS);
        let id = format!("{:020}-{}", op + 1, now_ms());
        let part = folder.join(format!("{id}.part"));
        self.fs.create_dir(&part).map_err(|e| StoreError::io("making", &part, e))?;
        let mut info = OrphanInfo {
            id: id.clone(),
            first_op: op + 1,
            reason: reason.to_owned(),
            cut_ms: now_ms(),
            ..OrphanInfo::default()
        };
        let lineage = self.lineage();
        let (mut frames, mut reader) = self.tail_reader(op)?;
        let mut target: Option<Arc<Segment>> = None;
        loop {
            if frames.is_empty() && reader.next(STEP, &mut frames).map_err(unread)?.is_none() {
                break;
            }
            let mut rest = frames.as_slice();
            while let Ok(Decoded::Entry(e)) = decode_entry(rest) {
                let first = e.header.first_op();
                let history = lineage.history_of(first).or(lineage.current().map(|c| c.history));
                let history = history.ok_or(StoreError::NoHistory)?;
                let segment = match &target {
                    Some(s) if s.header.history == history => Arc::clone(s),
                    _ => {
                        if let Some(done) = target.take() {
                            done.seal()?;
                        }
                        let header = SegmentHeader {
                            history,
                            first_op: first,
                            created_ms: now_ms(),
                            service_id: self.opts.service_id,
                        };
                        Arc::new(Segment::create(self.fs.as_ref(), &part, 0, header)?)
                    }
                };
                segment.append(e.frame, &[(e.header, 0)])?;
                target = Some(segment);
                count(&mut info, &e.header);
                rest = rest.get(e.frame.len()..).unwrap_or_default();
            }
            frames.clear();
        }
        if let Some(done) = target {
            done.seal()?;
        }
        durable::save(self.fs.as_ref(), &part.join(RECORD), &info)?;
        let done = folder.join(&id);
        self.fs.rename(&part, &done).map_err(|e| StoreError::io("renaming", &part, e))?;
        self.fs.sync_dir(&folder).map_err(|e| StoreError::io("syncing", &folder, e))?;
        Ok(info)
    }

    /// The entries above `op`: the rest of the one that it lies in, and a reader for what follows.
    fn tail_reader(self: &Arc<Self>, op: OpId) -> Result<(Vec<u8>, super::LogReader), StoreError> {
        match self.reader(op + 1) {
            Ok(reader) => Ok((Vec::new(), reader)),
            Err(ReadError::NotABoundary { entry_first, .. }) => {
                let mut reader = self.reader(entry_first).map_err(unread)?;
                let mut frames = Vec::new();
                reader.next(1, &mut frames).map_err(unread)?;
                let entry_len = frame_len(&frames);
                let tail = split(frames.get(..entry_len).unwrap_or_default(), op)?;
                let mut out = tail;
                out.extend_from_slice(frames.get(entry_len..).unwrap_or_default());
                Ok((out, reader))
            }
            Err(e) => Err(unread(e)),
        }
    }

    /// Carries out a cut that the manifest names; again after a crash.
    pub(super) fn finish_cut(&self, op: OpId) -> Result<(), StoreError> {
        let mut writer = self.writer.lock();
        let segments = Vec::clone(&self.segments.load());
        let (keep, gone): (Vec<_>, Vec<_>) = segments.into_iter().partition(|s| s.header.first_op <= op);
        for segment in &gone {
            self.fs.unlink(&segment.path).map_err(|e| StoreError::io("removing", &segment.path, e))?;
        }
        self.fs.sync_dir(&self.dir).map_err(|e| StoreError::io("syncing", &self.dir, e))?;
        let mut keep = keep;
        let mut current = None;
        if let Some(last) = keep.pop() {
            let cut = self.cut_segment_at(&last, op)?;
            current = Some(Arc::clone(&cut));
            keep.push(cut);
        }
        let mut manifest = writer.manifest.clone();
        manifest.lineage.cut_after(op);
        if let Some(history) = manifest.lineage.current().map(|c| c.history).filter(|_| current.is_none()) {
            let segment = self.new_segment(manifest.epoch, history, op + 1)?;
            keep.push(Arc::clone(&segment));
            current = Some(segment);
        }
        manifest.cut = None;
        self.save_manifest(&manifest)?;
        self.lineage.store(Arc::new(manifest.lineage.clone()));
        writer.manifest = manifest;
        writer.current = current;
        self.segments.store(Arc::new(keep));
        self.written.store(op, Ordering::Release);
        self.durable.fetch_min(op, Ordering::AcqRel);
        self.update_oldest();
        drop(writer);
        self.notify();
        Ok(())
    }

    /// Cuts a segment behind `op` and opens it again.
    fn cut_segment_at(&self, segment: &Arc<Segment>, op: OpId) -> Result<Arc<Segment>, StoreError> {
        let path = &segment.path;
        let mut at = segment.offset_before(op)?;
        let end = segment.end.load(Ordering::Acquire);
        let mut head = None;
        while at < end {
            let frame = read_frame(segment, at, end)?;
            let damaged = |error| StoreError::Damaged { path: path.clone(), offset: at, error };
            let header = EntryHeader::decode(&frame).map_err(damaged)?;
            if header.first_op() > op {
                break;
            }
            if header.meta.last_op > op {
                head = Some(head_of(&frame, op).map_err(damaged)?);
                break;
            }
            at += frame.len() as u64;
        }
        segment.file.set_len(at).map_err(|e| StoreError::io("cutting", path, e))?;
        if let Some(head) = head {
            segment.file.write_at(&head, at).map_err(|e| StoreError::io("writing", path, e))?;
        }
        segment.file.sync_data().map_err(|e| StoreError::io("syncing", path, e))?;
        let again = Segment::open(self.fs.as_ref(), path)?;
        if let Some(torn) = again.scan()? {
            let error = torn.error.unwrap_or(FormatError::Short { what: "entry", needed: 1, got: 0 });
            return Err(StoreError::Damaged { path: path.clone(), offset: torn.offset, error });
        }
        Ok(Arc::new(again))
    }
}

fn count(info: &mut OrphanInfo, header: &EntryHeader) {
    if info.ops == 0 {
        info.first_time_ms = header.meta.time_ms;
    }
    info.last_time_ms = header.meta.time_ms;
    info.last_op = header.meta.last_op;
    info.bytes += u64::from(header.payload_len);
    info.ops += u64::from(header.meta.op_count);
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

fn frame_len(frames: &[u8]) -> usize {
    EntryHeader::decode(frames).ok().and_then(|h| usize::try_from(h.frame_len()).ok()).unwrap_or(0)
}

fn split(frame: &[u8], op: OpId) -> Result<Vec<u8>, StoreError> {
    let wrong = |error| StoreError::Damaged { path: PathBuf::from("(entry to split)"), offset: 0, error };
    let Decoded::Entry(entry) = decode_entry(frame).map_err(wrong)? else { return Ok(Vec::new()) };
    let tail = split_after(&entry, op).map_err(wrong)?;
    tail.ok_or_else(|| wrong(FormatError::Value { field: "op id within an op or transaction", got: op }))
}

/// The part of an entry up to `op`, as an entry.
fn head_of(frame: &[u8], op: OpId) -> Result<Vec<u8>, FormatError> {
    let Decoded::Entry(entry) = decode_entry(frame)? else {
        return Err(FormatError::Short { what: "entry", needed: 1, got: 0 });
    };
    let tail = split_after(&entry, op)?
        .ok_or(FormatError::Value { field: "op id within an op or transaction", got: op })?;
    let tail_ops = EntryHeader::decode(&tail)?.meta.op_count;
    let keep = usize::try_from(op + 1 - entry.header.first_op()).unwrap_or(0);
    let op_count = entry.header.meta.op_count.saturating_sub(tail_ops).max(1);
    let meta = EntryMeta { last_op: op, op_count, ..entry.header.meta };
    let mut out = Vec::new();
    encode_entry(&meta, entry.payload.get(..keep).unwrap_or_default(), &mut out)?;
    Ok(out)
}

fn read_frame(segment: &Segment, at: u64, end: u64) -> Result<Vec<u8>, StoreError> {
    let io = |e| StoreError::io("reading", &segment.path, e);
    let mut buf = vec![0u8; oplog_format::ENTRY_HEADER_LEN];
    let n = segment.file.read_at(&mut buf, at).map_err(io)?;
    buf.truncate(n);
    let damaged = |error| StoreError::Damaged { path: segment.path.clone(), offset: at, error };
    let header = EntryHeader::decode(&buf).map_err(damaged)?;
    let len = header.frame_len();
    if at + len > end {
        return Err(damaged(FormatError::Short { what: "entry", needed: len, got: end - at }));
    }
    buf.resize(usize::try_from(len).unwrap_or(0), 0);
    let n = segment.file.read_at(&mut buf, at).map_err(io)?;
    buf.truncate(n);
    Ok(buf)
}
