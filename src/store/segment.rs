//! One segment file, open or sealed.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use oplog_format::index::{encode_index, POINT_LEN};
use oplog_format::{
    Footer, FormatError, IndexPoint, OpId, SegmentHeader, StoredHeader, FOOTER_LEN, SEGMENT_HEADER_LEN,
};
use parking_lot::Mutex;

use super::error::StoreError;
use super::fs::{Fs, FsFile};
use super::walk::{walk, Walk};

/// A reader may start at most this many bytes before its entry.
const POINT_EVERY: u64 = 64 * 1024;
/// Room is reserved in steps of this many bytes.
const RESERVE_STEP: u64 = 32 << 20;

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

/// The header of an entry, and where that stands in some buffer.
pub type Placed = (StoredHeader, usize);

/// A segment. Appended to by one thread, read by many.
pub struct Segment {
    /// Its file's name.
    pub path: PathBuf,
    /// Its header.
    pub header: SegmentHeader,
    fs: Arc<dyn Fs>,
    file: Mutex<Handle>,
    sealed: AtomicBool,
    /// Offset behind the last entry.
    end: AtomicU64,
    last_op: AtomicU64,
    last_time_ms: AtomicU64,
    entries: AtomicU64,
    ops: AtomicU64,
    reserved: AtomicU64,
    index: Mutex<Index>,
}

enum Handle {
    /// Written to.
    Kept(Arc<dyn FsFile>),
    /// Sealed: open only while someone reads it, since a log may have thousands of them.
    Lent(Weak<dyn FsFile>),
}

enum Index {
    /// Of a segment that is written to.
    Growing(Vec<IndexPoint>),
    /// Behind the entries of a sealed segment: footer and checksum. Not kept in memory: it is asked for once
    /// by a reader that starts in the middle.
    OnDisk(Footer, u32),
}

impl Segment {
    /// Makes a new segment, or an empty one anew: header written and synced, name synced.
    ///
    /// # Errors
    /// The file system's; a file without a whole header may then be left.
    pub fn create(
        fs: &Arc<dyn Fs>,
        dir: &Path,
        epoch: u32,
        header: SegmentHeader,
    ) -> Result<Self, StoreError> {
        let path = dir.join(file_name(epoch, header.first_op));
        let file = fs.open(&path, true).map_err(|e| StoreError::io("creating", &path, e))?;
        file.set_len(0).map_err(|e| StoreError::io("emptying", &path, e))?;
        file.write_at(&header.encode(), 0).map_err(|e| StoreError::io("writing", &path, e))?;
        file.sync_data().map_err(|e| StoreError::io("syncing", &path, e))?;
        fs.sync_dir(dir).map_err(|e| StoreError::io("syncing", dir, e))?;
        Ok(Self::with(fs, path, header, file))
    }

    fn with(fs: &Arc<dyn Fs>, path: PathBuf, header: SegmentHeader, file: Arc<dyn FsFile>) -> Self {
        Self {
            path,
            fs: Arc::clone(fs),
            file: Mutex::new(Handle::Kept(file)),
            sealed: AtomicBool::new(false),
            end: AtomicU64::new(SEGMENT_HEADER_LEN as u64),
            last_op: AtomicU64::new(header.first_op.saturating_sub(1)),
            last_time_ms: AtomicU64::new(header.created_ms),
            entries: AtomicU64::new(0),
            ops: AtomicU64::new(0),
            reserved: AtomicU64::new(0),
            index: Mutex::new(Index::Growing(Vec::new())),
            header,
        }
    }

    /// Opens a segment by its header and, where it is sealed, its footer: no entry is read.
    ///
    /// # Errors
    /// The file system's, or damage of header or footer.
    pub fn open(fs: &Arc<dyn Fs>, path: &Path) -> Result<Self, StoreError> {
        let (segment, file) = Self::open_unsealed(fs, path)?;
        let len = file.size().map_err(|e| StoreError::io("reading", path, e))?;
        if let Some((footer, crc)) = segment.footer(file.as_ref(), len)? {
            segment.adopt(&footer, crc, &file);
        }
        Ok(segment)
    }

    /// Opens a segment by its header; a footer is not looked for.
    fn open_unsealed(fs: &Arc<dyn Fs>, path: &Path) -> Result<(Self, Arc<dyn FsFile>), StoreError> {
        let file = fs.open(path, false).map_err(|e| StoreError::io("opening", path, e))?;
        let mut head = [0u8; SEGMENT_HEADER_LEN];
        let n = file.read_at(&mut head, 0).map_err(|e| StoreError::io("reading", path, e))?;
        let header = SegmentHeader::decode(head.get(..n).unwrap_or_default())
            .map_err(|error| StoreError::Damaged { path: path.to_owned(), offset: 0, error })?;
        Ok((Self::with(fs, path.to_owned(), header, Arc::clone(&file)), file))
    }

    /// Opens the last segment of a log: every entry is read, up to the first that is none. It counts as sealed
    /// only where index and footer fit to that.
    ///
    /// With `until`, also ends before the first entry that reaches above this op, and never counts as sealed.
    ///
    /// # Errors
    /// The file system's, or damage of the header.
    pub fn open_last(fs: &Arc<dyn Fs>, path: &Path, until: Option<OpId>) -> Result<(Self, Walk), StoreError> {
        let (segment, file) = Self::open_unsealed(fs, path)?;
        let len = file.size().map_err(|e| StoreError::io("reading", path, e))?;
        let start = SEGMENT_HEADER_LEN as u64;
        let seen = walk(file.as_ref(), path, start..len, segment.next_op(), |header, offset| {
            if until.is_some_and(|op| header.last_op() > op) {
                return false;
            }
            segment.take(&[(*header, 0)], offset);
            true
        })?;
        segment.end.store(seen.end, Ordering::Release);
        if until.is_none() && seen.end < len {
            // The end of a payload may look like a footer, and one whose sync was cut short be all that is there.
            let footer = segment.footer(file.as_ref(), len).ok().flatten();
            if let Some((footer, crc)) = footer.filter(|(f, _)| f.index_offset == seen.end) {
                if read_points(file.as_ref(), path, &footer, crc).is_ok() {
                    segment.adopt(&footer, crc, &file);
                    return Ok((segment, Walk { end: len, error: None, len }));
                }
            }
        }
        Ok((segment, seen))
    }

    fn footer(&self, file: &dyn FsFile, len: u64) -> Result<Option<(Footer, u32)>, StoreError> {
        let at = len.saturating_sub(FOOTER_LEN as u64);
        if at < SEGMENT_HEADER_LEN as u64 {
            return Ok(None);
        }
        let mut tail = [0u8; FOOTER_LEN];
        let n = file.read_at(&mut tail, at).map_err(|e| StoreError::io("reading", &self.path, e))?;
        match Footer::decode(tail.get(..n).unwrap_or_default()) {
            Ok((footer, crc)) => {
                let index = u64::from(footer.points) * POINT_LEN as u64;
                let fits = footer.index_offset.checked_add(index) == Some(at)
                    && footer.index_offset >= SEGMENT_HEADER_LEN as u64
                    && footer.last_op + 1 >= self.header.first_op;
                if fits {
                    return Ok(Some((footer, crc)));
                }
                Err(self.damaged(at, FormatError::Value { field: "index offset", got: footer.index_offset }))
            }
            Err(FormatError::Magic { .. }) => Ok(None),
            Err(e) => Err(self.damaged(at, e)),
        }
    }

    /// Takes over what a footer says.
    fn adopt(&self, footer: &Footer, crc: u32, file: &Arc<dyn FsFile>) {
        self.end.store(footer.index_offset, Ordering::Release);
        self.last_op.store(footer.last_op, Ordering::Release);
        self.last_time_ms.store(footer.last_time_ms, Ordering::Relaxed);
        self.entries.store(footer.entries, Ordering::Relaxed);
        self.ops.store(footer.ops, Ordering::Relaxed);
        *self.index.lock() = Index::OnDisk(*footer, crc);
        *self.file.lock() = Handle::Lent(Arc::downgrade(file));
        self.sealed.store(true, Ordering::Release);
    }

    /// An error at an offset of this segment.
    pub fn damaged(&self, offset: u64, error: FormatError) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), offset, error }
    }

    /// The open file; whoever holds it is not bothered by the removal of the name.
    ///
    /// # Errors
    /// The file system's; not found where the cleaner has been here.
    pub fn file(&self) -> Result<Arc<dyn FsFile>, StoreError> {
        let mut handle = self.file.lock();
        let lent = match &*handle {
            Handle::Kept(file) => return Ok(Arc::clone(file)),
            Handle::Lent(weak) => weak.upgrade(),
        };
        if let Some(file) = lent {
            return Ok(file);
        }
        let file = self.fs.open(&self.path, false).map_err(|e| StoreError::io("opening", &self.path, e))?;
        *handle = Handle::Lent(Arc::downgrade(&file));
        Ok(file)
    }

    /// Brings what is written to the disk.
    ///
    /// # Errors
    /// The file system's.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.file()?.sync_data().map_err(|e| StoreError::io("syncing", &self.path, e))
    }

    /// Whether index and footer are written.
    pub fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    /// Offset behind the last entry.
    pub fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// Last op in it; one below the header's first where there is none.
    pub fn last_op(&self) -> OpId {
        self.last_op.load(Ordering::Acquire)
    }

    /// Op id that comes next.
    pub fn next_op(&self) -> OpId {
        self.last_op() + 1
    }

    /// Time of the last entry, Unix milliseconds.
    pub fn last_time_ms(&self) -> u64 {
        self.last_time_ms.load(Ordering::Relaxed)
    }

    /// Number of ops.
    pub fn ops(&self) -> u64 {
        self.ops.load(Ordering::Relaxed)
    }

    /// Whether no entry is in it.
    pub fn is_empty(&self) -> bool {
        self.last_op() < self.header.first_op
    }

    /// Length of the file.
    pub fn disk_bytes(&self) -> u64 {
        match &*self.index.lock() {
            Index::Growing(_) => self.end(),
            Index::OnDisk(f, _) => {
                f.index_offset + u64::from(f.points) * POINT_LEN as u64 + FOOTER_LEN as u64
            }
        }
    }

    /// Counts entries, of which the first stands at `base`; their own offsets are those in some buffer.
    fn take(&self, headers: &[Placed], base: u64) {
        let (Some((_, start)), Some((last, _))) = (headers.first(), headers.last()) else { return };
        let mut ops = 0;
        if let Index::Growing(points) = &mut *self.index.lock() {
            for (header, at) in headers {
                let offset = base + at.saturating_sub(*start) as u64;
                if points.last().is_none_or(|p| offset >= p.offset + POINT_EVERY) {
                    points.push(IndexPoint { first_op: header.first_op(), offset });
                }
                ops += u64::from(header.header.meta.op_count);
            }
        }
        self.entries.fetch_add(headers.len() as u64, Ordering::Relaxed);
        self.ops.fetch_add(ops, Ordering::Relaxed);
        self.last_time_ms.store(last.header.meta.time_ms, Ordering::Relaxed);
        self.last_op.store(last.last_op(), Ordering::Release);
    }

    /// Appends whole entries whose headers are given with their offsets, the first being that of `frames`.
    /// Room is reserved ahead, not beyond `limit`.
    ///
    /// # Errors
    /// The file system's; nothing is then visible to readers, and the file holds anything behind [`Self::end`].
    pub fn append(&self, frames: &[u8], headers: &[Placed], limit: u64) -> Result<(), StoreError> {
        let file = self.file()?;
        let at = self.end();
        let end = at + frames.len() as u64;
        if end > self.reserved.load(Ordering::Relaxed) {
            let to = (end + RESERVE_STEP).min(limit);
            if to > end {
                file.reserve(at, to);
            }
            self.reserved.store(to.max(end), Ordering::Relaxed);
        }
        file.write_at(frames, at).map_err(|e| StoreError::io("writing", &self.path, e))?;
        self.take(headers, at);
        self.end.store(end, Ordering::Release);
        Ok(())
    }

    /// Cuts off what a failed write may have left behind the last entry, and room reserved there.
    ///
    /// # Errors
    /// The file system's.
    pub fn trim(&self) -> Result<(), StoreError> {
        self.file()?.set_len(self.end()).map_err(|e| StoreError::io("trimming", &self.path, e))
    }

    /// Cuts off what a failed write may have left behind the last entry, writes what is not known to be on the
    /// disk once more, and syncs. After a failed sync the system counts pages as clean that never reached the
    /// disk, so that another sync alone would prove nothing.
    ///
    /// # Errors
    /// The file system's, or damage where it has given up the bytes.
    pub fn rewrite_from(&self, durable: OpId) -> Result<(), StoreError> {
        let file = self.file()?;
        let (end, io) = (self.end(), |what| move |e| (what, e));
        let wrap = |(what, e)| StoreError::io(what, &self.path, e);
        file.set_len(end).map_err(io("trimming")).map_err(wrap)?;
        let (mut at, first) = self.point_before(durable + 1)?;
        let seen = walk(file.as_ref(), &self.path, at..end, first, |_, _| true)?;
        if let Some(error) = seen.error {
            return Err(self.damaged(seen.end, error));
        }
        if first == self.header.first_op {
            at = 0;
        }
        let mut buf = vec![0u8; 1 << 20];
        while at < end {
            let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(buf.len());
            let step = buf.get_mut(..want).unwrap_or_default();
            let n = file.read_at(step, at).map_err(io("reading")).map_err(wrap)?;
            if n == 0 {
                return Err(self.damaged(at, FormatError::Short { what: "segment", needed: end, got: at }));
            }
            file.write_at(step.get(..n).unwrap_or_default(), at).map_err(io("writing")).map_err(wrap)?;
            at += n as u64;
        }
        file.sync_data().map_err(io("syncing")).map_err(wrap)
    }

    /// Writes index and footer and syncs. Entries are durable afterwards.
    ///
    /// # Errors
    /// The file system's; the segment then counts as not sealed.
    pub fn seal(&self) -> Result<(), StoreError> {
        let file = self.file()?;
        let end = self.end();
        let mut footer = Footer {
            index_offset: end,
            last_op: self.last_op(),
            last_time_ms: self.last_time_ms(),
            entries: self.entries.load(Ordering::Relaxed),
            ops: self.ops(),
            points: 0,
        };
        let mut out = Vec::new();
        if let Index::Growing(points) = &*self.index.lock() {
            footer.points = u32::try_from(points.len()).unwrap_or(u32::MAX);
            encode_index(points, &footer, &mut out).map_err(|error| self.damaged(end, error))?;
        }
        file.write_at(&out, end).map_err(|e| StoreError::io("writing", &self.path, e))?;
        // Reserved room beyond the footer would otherwise stay allocated.
        file.set_len(end + out.len() as u64).map_err(|e| StoreError::io("trimming", &self.path, e))?;
        file.sync_data().map_err(|e| StoreError::io("syncing", &self.path, e))?;
        let at = out.len().saturating_sub(FOOTER_LEN);
        let (footer, crc) =
            Footer::decode(out.get(at..).unwrap_or_default()).map_err(|error| self.damaged(end, error))?;
        self.adopt(&footer, crc, &file);
        Ok(())
    }

    /// Offset and first op of an entry at or before the one that holds `op`.
    ///
    /// # Errors
    /// The file system's, or damage of the index.
    pub fn point_before(&self, op: OpId) -> Result<(u64, OpId), StoreError> {
        let start = (SEGMENT_HEADER_LEN as u64, self.header.first_op);
        let find = |points: &[IndexPoint]| {
            let i = points.partition_point(|p| p.first_op <= op);
            i.checked_sub(1).and_then(|i| points.get(i)).map_or(start, |p| (p.offset, p.first_op))
        };
        let (footer, crc) = match &*self.index.lock() {
            _ if op <= self.header.first_op => return Ok(start),
            Index::Growing(points) => return Ok(find(points)),
            Index::OnDisk(footer, crc) => (*footer, *crc),
        };
        Ok(find(&read_points(self.file()?.as_ref(), &self.path, &footer, crc)?))
    }
}

fn read_points(
    file: &dyn FsFile,
    path: &Path,
    footer: &Footer,
    crc: u32,
) -> Result<Vec<IndexPoint>, StoreError> {
    // The file was seen to be long enough when the footer was read.
    let len = u64::from(footer.points) * POINT_LEN as u64;
    let mut bytes = vec![0u8; usize::try_from(len).unwrap_or(0)];
    let n = file.read_at(&mut bytes, footer.index_offset).map_err(|e| StoreError::io("reading", path, e))?;
    bytes.truncate(n);
    footer.decode_points(crc, &bytes).map_err(|error| StoreError::Damaged {
        path: path.to_owned(),
        offset: footer.index_offset,
        error,
    })
}
