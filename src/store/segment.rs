//! One segment file, open or sealed.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

use oplog_format::index::{encode_index, POINT_LEN};
use oplog_format::{
    decode_entry, Decoded, Footer, FormatError, IndexPoint, OpId, SegmentHeader, FOOTER_LEN,
    SEGMENT_HEADER_LEN,
};
use parking_lot::Mutex;

use super::error::StoreError;
use super::fs::{Fs, FsFile};

/// A reader may start at most this many bytes before its entry.
const POINT_EVERY: u64 = 64 * 1024;
/// Room is reserved in steps of this many bytes.
const RESERVE_STEP: u64 = 32 << 20;
/// Bytes read at once when a segment is scanned.
const SCAN_STEP: usize = 4 << 20;

/// Name of the segment of an epoch that begins at an op. An epoch ends when the log starts anew.
#[must_use]
pub fn file_name(epoch: u32, first_op: OpId) -> String {
    format!("seg-{epoch:08x}-{first_op:020}.oplog")
}

/// Epoch and first op in a segment's name.
#[must_use]
pub fn parse_name(name: &str) -> Option<(u32, OpId)> {
    let (epoch, first) = name.strip_prefix("seg-")?.strip_suffix(".oplog")?.split_once('-')?;
    if epoch.len() != 8 || first.len() != 20 {
        return None;
    }
    Some((u32::from_str_radix(epoch, 16).ok()?, first.parse().ok()?))
}

/// A segment. Appended to by one thread, read by many.
pub struct Segment {
    /// Its file.
    pub path: PathBuf,
    /// Its header.
    pub header: SegmentHeader,
    /// The open file.
    pub file: Arc<dyn FsFile>,
    /// Whether index and footer are written.
    pub sealed: AtomicBool,
    /// Offset behind the last entry.
    pub end: AtomicU64,
    /// Last op in it; one below the header's first where there is none.
    pub last_op: AtomicU64,
    /// Time of the last entry, Unix milliseconds.
    pub last_time_ms: AtomicU64,
    entries: AtomicU64,
    ops: AtomicU64,
    reserved: AtomicU64,
    points: Mutex<Points>,
}

enum Points {
    /// All of them.
    Known(Vec<IndexPoint>),
    /// Behind the entries of a sealed segment, not read yet.
    OnDisk(Footer, u32),
}

/// Where a scan ended before the end of the file.
#[derive(Debug)]
pub struct Torn {
    /// Offset of the first byte that is no whole entry.
    pub offset: u64,
    /// Bytes from there to the end of the file.
    pub bytes: u64,
    /// What is wrong there; `None` where the file just ends.
    pub error: Option<FormatError>,
}

impl Segment {
    /// Makes a new segment: header written and synced, name synced.
    ///
    /// # Errors
    /// The file system's.
    pub fn create(fs: &dyn Fs, dir: &Path, epoch: u32, header: SegmentHeader) -> Result<Self, StoreError> {
        let path = dir.join(file_name(epoch, header.first_op));
        let file = fs.open(&path, true).map_err(|e| StoreError::io("creating", &path, e))?;
        file.set_len(0).map_err(|e| StoreError::io("emptying", &path, e))?;
        file.write_at(&header.encode(), 0).map_err(|e| StoreError::io("writing", &path, e))?;
        file.sync_data().map_err(|e| StoreError::io("syncing", &path, e))?;
        fs.sync_dir(dir).map_err(|e| StoreError::io("syncing", dir, e))?;
        Ok(Self::with(path, header, file))
    }

    fn with(path: PathBuf, header: SegmentHeader, file: Arc<dyn FsFile>) -> Self {
        Self {
            path,
            file,
            sealed: AtomicBool::new(false),
            end: AtomicU64::new(SEGMENT_HEADER_LEN as u64),
            last_op: AtomicU64::new(header.first_op.saturating_sub(1)),
            last_time_ms: AtomicU64::new(header.created_ms),
            entries: AtomicU64::new(0),
            ops: AtomicU64::new(0),
            reserved: AtomicU64::new(0),
            points: Mutex::new(Points::Known(Vec::new())),
            header,
        }
    }

    /// Opens a segment by its header and, where it is sealed, its footer: no entry is read.
    ///
    /// # Errors
    /// The file system's, or damage of header or footer.
    pub fn open(fs: &dyn Fs, path: &Path) -> Result<Self, StoreError> {
        let file = fs.open(path, false).map_err(|e| StoreError::io("opening", path, e))?;
        let read = |e| StoreError::io("reading", path, e);
        let mut head = vec![0u8; SEGMENT_HEADER_LEN];
        let n = file.read_at(&mut head, 0).map_err(read)?;
        head.truncate(n);
        let damaged = |offset, error| StoreError::Damaged { path: path.to_owned(), offset, error };
        let header = SegmentHeader::decode(&head).map_err(|e| damaged(0, e))?;
        let segment = Self::with(path.to_owned(), header, Arc::clone(&file));
        let len = file.size().map_err(read)?;
        let at = len.saturating_sub(FOOTER_LEN as u64);
        if at < SEGMENT_HEADER_LEN as u64 {
            return Ok(segment);
        }
        let mut tail = vec![0u8; FOOTER_LEN];
        let n = file.read_at(&mut tail, at).map_err(read)?;
        tail.truncate(n);
        match Footer::decode(&tail) {
            Ok((footer, crc)) => {
                let index = u64::from(footer.points) * POINT_LEN as u64;
                if footer.index_offset.checked_add(index) != Some(at) {
                    let error = FormatError::Value { field: "index offset", got: footer.index_offset };
                    return Err(damaged(at, error));
                }
                segment.end.store(footer.index_offset, Ordering::Release);
                segment.last_op.store(footer.last_op, Ordering::Release);
                segment.last_time_ms.store(footer.last_time_ms, Ordering::Relaxed);
                segment.entries.store(footer.entries, Ordering::Relaxed);
                segment.ops.store(footer.ops, Ordering::Relaxed);
                segment.sealed.store(true, Ordering::Release);
                *segment.points.lock() = Points::OnDisk(footer, crc);
                Ok(segment)
            }
            Err(FormatError::Magic { .. }) => Ok(segment),
            Err(e) => Err(damaged(at, e)),
        }
    }

    /// Reads all entries of a segment that is not sealed and takes them in; returns where they end before the
    /// file does.
    ///
    /// # Errors
    /// The file system's.
    pub fn scan(&self) -> Result<Option<Torn>, StoreError> {
        let read = |e| StoreError::io("reading", &self.path, e);
        let len = self.file.size().map_err(read)?;
        let mut offset = SEGMENT_HEADER_LEN as u64;
        let mut buf = Vec::new();
        while offset < len {
            buf.resize(SCAN_STEP, 0);
            let mut n = self.file.read_at(&mut buf, offset).map_err(read)?;
            let mut used = 0usize;
            loop {
                let rest = buf.get(used..n).unwrap_or_default();
                if rest.is_empty() {
                    break;
                }
                let error = match decode_entry(rest) {
                    Ok(Decoded::Entry(e)) if e.header.first_op() == self.next_op() => {
                        let frame_len = e.frame.len();
                        self.take(&e.header, offset + used as u64);
                        used += frame_len;
                        continue;
                    }
                    Ok(Decoded::Entry(e)) => {
                        Some(FormatError::Value { field: "op id out of order", got: e.header.first_op() })
                    }
                    Ok(Decoded::Incomplete { needed }) => {
                        let at = offset + used as u64;
                        if at + needed <= len && used == 0 && needed > n as u64 {
                            // A large entry: read as much as it needs, which the file has.
                            buf.resize(usize::try_from(needed).unwrap_or(n), 0);
                            n = self.file.read_at(&mut buf, offset).map_err(read)?;
                            continue;
                        }
                        if at + needed <= len && used > 0 {
                            break;
                        }
                        None
                    }
                    Err(e) => Some(e),
                };
                let at = offset + used as u64;
                self.end.store(at, Ordering::Release);
                return Ok(Some(Torn { offset: at, bytes: len - at, error }));
            }
            offset += used as u64;
        }
        self.end.store(offset, Ordering::Release);
        Ok(None)
    }

    /// Op id that comes next.
    pub fn next_op(&self) -> OpId {
        self.last_op.load(Ordering::Acquire) + 1
    }

    /// Whether no entry is in it.
    pub fn is_empty(&self) -> bool {
        self.entries.load(Ordering::Acquire) == 0
    }

    /// Counts an entry that stands at `offset`.
    fn take(&self, header: &oplog_format::EntryHeader, offset: u64) {
        if let Points::Known(points) = &mut *self.points.lock() {
            if points.last().is_none_or(|p| offset >= p.offset + POINT_EVERY) {
                points.push(IndexPoint { first_op: header.first_op(), offset });
            }
        }
        self.entries.fetch_add(1, Ordering::AcqRel);
        self.ops.fetch_add(u64::from(header.meta.op_count), Ordering::Relaxed);
        self.last_time_ms.store(header.meta.time_ms, Ordering::Relaxed);
        self.last_op.store(header.meta.last_op, Ordering::Release);
    }

    /// Appends whole entries whose headers are given with their offsets within `frames`.
    ///
    /// # Errors
    /// The file system's; nothing is then visible to readers.
    pub fn append(
        &self,
        frames: &[u8],
        headers: &[(oplog_format::EntryHeader, usize)],
    ) -> Result<(), StoreError> {
        let at = self.end.load(Ordering::Acquire);
        let end = at + frames.len() as u64;
        if end > self.reserved.load(Ordering::Relaxed) {
            let to = end + RESERVE_STEP;
            self.file.reserve(at, to);
            self.reserved.store(to, Ordering::Relaxed);
        }
        self.file.write_at(frames, at).map_err(|e| StoreError::io("writing", &self.path, e))?;
        for (header, offset) in headers {
            self.take(header, at + *offset as u64);
        }
        self.end.store(end, Ordering::Release);
        Ok(())
    }

    /// Writes index and footer and syncs. Entries are durable afterwards.
    ///
    /// # Errors
    /// The file system's.
    pub fn seal(&self) -> Result<(), StoreError> {
        let end = self.end.load(Ordering::Acquire);
        let mut out = Vec::new();
        if let Points::Known(points) = &*self.points.lock() {
            let footer = Footer {
                index_offset: end,
                last_op: self.last_op.load(Ordering::Acquire),
                last_time_ms: self.last_time_ms.load(Ordering::Relaxed),
                entries: self.entries.load(Ordering::Relaxed),
                ops: self.ops.load(Ordering::Relaxed),
                points: 0,
            };
            encode_index(points, &footer, &mut out).map_err(|error| StoreError::Damaged {
                path: self.path.clone(),
                offset: end,
                error,
            })?;
        }
        self.file.write_at(&out, end).map_err(|e| StoreError::io("writing", &self.path, e))?;
        // Reserved room beyond the footer would otherwise stay allocated.
        self.file.set_len(end + out.len() as u64).map_err(|e| StoreError::io("trimming", &self.path, e))?;
        self.file.sync_data().map_err(|e| StoreError::io("syncing", &self.path, e))?;
        self.sealed.store(true, Ordering::Release);
        Ok(())
    }

    /// Offset of an entry at or before the one that holds `op`.
    ///
    /// # Errors
    /// The file system's, or damage of the index.
    pub fn offset_before(&self, op: OpId) -> Result<u64, StoreError> {
        let mut points = self.points.lock();
        if let Points::OnDisk(footer, crc) = &*points {
            let len = u64::from(footer.points) * POINT_LEN as u64;
            let mut bytes = vec![0u8; usize::try_from(len).unwrap_or(0)];
            let n = self
                .file
                .read_at(&mut bytes, footer.index_offset)
                .map_err(|e| StoreError::io("reading", &self.path, e))?;
            bytes.truncate(n);
            let known = footer.decode_points(*crc, &bytes).map_err(|error| StoreError::Damaged {
                path: self.path.clone(),
                offset: footer.index_offset,
                error,
            })?;
            *points = Points::Known(known);
        }
        let Points::Known(points) = &*points else { return Ok(SEGMENT_HEADER_LEN as u64) };
        let i = points.partition_point(|p| p.first_op <= op);
        Ok(i.checked_sub(1).and_then(|i| points.get(i)).map_or(SEGMENT_HEADER_LEN as u64, |p| p.offset))
    }

    /// Bytes on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.file.size().unwrap_or_else(|_| self.end.load(Ordering::Acquire))
    }

    /// Number of ops.
    pub fn ops(&self) -> u64 {
        self.ops.load(Ordering::Relaxed)
    }
}
