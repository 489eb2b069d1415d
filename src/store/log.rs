//! The log: appended to by one writer, read by many.
//!
//! Order of durability: a segment is sealed and synced before the next is made; a new segment's header and name
//! are synced before an entry goes into it; the manifest says that segments are gone before they are unlinked.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use oplog_format::{EntryHeader, History, Lineage, LineageItem, OpId, SegmentHeader};
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};

use super::durable;
use super::error::{ReadError, StoreError};
use super::fs::{DirLock, Fs, FsFile};
use super::orphans::OrphanInfo;
use super::reader::LogReader;
use super::segment::Segment;

/// When an append counts as durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FsyncPolicy {
    /// Each append syncs.
    Always,
    /// Whoever calls [`Log::sync`] does.
    EverySec,
    /// The operating system.
    No,
}

/// Settings of a log.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// Size in bytes at which a segment is cut.
    pub segment_size: u64,
    /// When an append counts as durable.
    pub fsync: FsyncPolicy,
    /// Written into segment headers, 0..15.
    pub service_id: u8,
}

/// What the log knows besides its segments. Format version 1.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this record.
    pub version: u32,
    /// Which segments are meant: the log has started anew this many times.
    pub epoch: u32,
    /// Segments whose ops all lie below are gone.
    pub oldest: OpId,
    /// All histories, those of segments that are gone included.
    pub lineage: Lineage,
    /// A cut that may not have been carried out: nothing above this op is part of the log.
    pub cut: Option<OpId>,
    /// How often the log had to skip ops.
    pub gaps: u64,
}

/// Name of the manifest in the log's directory.
pub const MANIFEST: &str = "manifest";

/// What opening a log found.
#[derive(Debug, Default)]
pub struct OpenReport {
    /// A tail of the last segment that was no whole entry.
    pub torn: Option<TornTail>,
    /// Number of segments.
    pub segments: usize,
}

/// Bytes that were cut off the last segment and kept.
#[derive(Debug)]
pub struct TornTail {
    /// The segment.
    pub file: PathBuf,
    /// Where they began.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
    /// Where they are now.
    pub kept_in: PathBuf,
    /// What was wrong at the first of them.
    pub reason: String,
}

/// Figures for the status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Number of segments.
    pub segments: u64,
    /// Their bytes on disk.
    pub bytes: u64,
    /// Bytes that the disk can still take.
    pub free_bytes: u64,
    /// Interruptions so far.
    pub gaps: u64,
}

/// What a cleaning removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CleanReport {
    /// Segments.
    pub segments: u64,
    /// Bytes.
    pub bytes: u64,
}

pub(super) struct Writer {
    pub(super) manifest: Manifest,
    pub(super) current: Option<Arc<Segment>>,
}

/// A log in a directory.
pub struct Log {
    pub(super) fs: Arc<dyn Fs>,
    pub(super) dir: PathBuf,
    pub(super) opts: LogOptions,
    pub(super) writer: Mutex<Writer>,
    /// Live segments, oldest first.
    pub(super) segments: ArcSwap<Vec<Arc<Segment>>>,
    pub(super) lineage: ArcSwap<Lineage>,
    pub(super) written: AtomicU64,
    pub(super) durable: AtomicU64,
    pub(super) oldest: AtomicU64,
    gaps: AtomicU64,
    changed: Mutex<()>,
    signal: Condvar,
    poison: ArcSwapOption<String>,
    _lock: Option<DirLock>,
}

impl Log {
    pub(super) fn assemble(
        fs: Arc<dyn Fs>,
        dir: &Path,
        opts: LogOptions,
        writer: Writer,
        segments: Vec<Arc<Segment>>,
        lock: Option<DirLock>,
    ) -> Arc<Self> {
        let written = segments
            .last()
            .map_or(writer.manifest.oldest.saturating_sub(1), |s| s.last_op.load(Ordering::Acquire));
        let oldest = segments.first().map_or(written + 1, |s| s.header.first_op);
        Arc::new(Self {
            fs,
            dir: dir.to_owned(),
            opts,
            lineage: ArcSwap::from_pointee(writer.manifest.lineage.clone()),
            gaps: AtomicU64::new(writer.manifest.gaps),
            writer: Mutex::new(writer),
            segments: ArcSwap::from_pointee(segments),
            written: AtomicU64::new(written),
            durable: AtomicU64::new(written),
            oldest: AtomicU64::new(oldest),
            changed: Mutex::new(()),
            signal: Condvar::new(),
            poison: ArcSwapOption::empty(),
            _lock: lock,
        })
    }

    /// First position that can be read; one above [`Self::written`] where there is none.
    pub fn oldest(&self) -> OpId {
        self.oldest.load(Ordering::Acquire)
    }

    /// Last op appended.
    pub fn written(&self) -> OpId {
        self.written.load(Ordering::Acquire)
    }

    /// Last op known to be on the disk.
    pub fn durable(&self) -> OpId {
        self.durable.load(Ordering::Acquire)
    }

    /// All histories, oldest first.
    pub fn lineage(&self) -> Lineage {
        Lineage::clone(&self.lineage.load())
    }

    /// Why the log does not write any more.
    pub fn poisoned(&self) -> Option<String> {
        self.poison.load().as_deref().cloned()
    }

    fn poison<T>(&self, error: StoreError) -> Result<T, StoreError> {
        if self.poison.load().is_none() {
            self.poison.store(Some(Arc::new(error.to_string())));
        }
        self.notify();
        Err(error)
    }

    fn check(&self) -> Result<(), StoreError> {
        match self.poisoned() {
            Some(why) => Err(StoreError::Poisoned(why)),
            None => Ok(()),
        }
    }

    pub(super) fn notify(&self) {
        // Taking the lock orders the change before a waiter's look at it.
        drop(self.changed.lock());
        self.signal.notify_all();
    }

    pub(super) fn save_manifest(&self, manifest: &Manifest) -> Result<(), StoreError> {
        durable::save(self.fs.as_ref(), &self.dir.join(MANIFEST), manifest)
    }

    /// Opens a history at `first_op`. Directly above [`Self::written`] the log goes on; above that there is a
    /// gap, and what lies below it can no longer be read.
    ///
    /// # Errors
    /// [`StoreError::NotNext`] below; otherwise the file system's, after which the log is poisoned.
    pub fn begin_history(&self, history: History, first_op: OpId) -> Result<(), StoreError> {
        self.check()?;
        let mut writer = self.writer.lock();
        let next = self.written() + 1;
        if first_op < next {
            return Err(StoreError::NotNext { expected: next, got: first_op });
        }
        let same = self.lineage.load().current().is_some_and(|c| c.history == history);
        if same && first_op == next && writer.current.is_some() {
            return Ok(());
        }
        match self.begin(&mut writer, history, first_op) {
            Ok(()) => Ok(()),
            Err(e) => self.poison(e),
        }
    }

    fn begin(&self, writer: &mut Writer, history: History, first_op: OpId) -> Result<(), StoreError> {
        let next = self.written() + 1;
        let gap = first_op > next;
        let had_ops = self.oldest() <= self.written();
        let mut manifest = writer.manifest.clone();
        manifest.lineage.open(history, first_op);
        if gap {
            manifest.oldest = first_op;
            if had_ops {
                manifest.gaps += 1;
            }
        }
        if let Some(current) = writer.current.take() {
            if current.is_empty() {
                // Never had an entry: the new one takes its place, perhaps under the same name.
                self.replace_segments(|s| s.retain(|x| !Arc::ptr_eq(x, &current)));
                if current.header.first_op != first_op {
                    self.fs
                        .unlink(&current.path)
                        .map_err(|e| StoreError::io("removing", &current.path, e))?;
                }
            } else {
                current.seal()?;
                self.advance_durable(current.last_op.load(Ordering::Acquire));
            }
        }
        let segment = self.new_segment(manifest.epoch, history, first_op)?;
        self.save_manifest(&manifest)?;
        let gone: Vec<Arc<Segment>> =
            if gap { self.segments.load().iter().cloned().collect() } else { Vec::new() };
        self.replace_segments(|s| {
            if gap {
                s.clear();
            }
            s.push(Arc::clone(&segment));
        });
        self.gaps.store(manifest.gaps, Ordering::Relaxed);
        self.lineage.store(Arc::new(manifest.lineage.clone()));
        writer.manifest = manifest;
        writer.current = Some(segment);
        if gap {
            self.written.store(first_op - 1, Ordering::Release);
            self.durable.store(first_op - 1, Ordering::Release);
        }
        self.update_oldest();
        for segment in gone {
            let _ = self.fs.unlink(&segment.path);
        }
        self.notify();
        Ok(())
    }

    pub(super) fn new_segment(
        &self,
        epoch: u32,
        history: History,
        first_op: OpId,
    ) -> Result<Arc<Segment>, StoreError> {
        let created_ms = now_ms();
        let header = SegmentHeader { history, first_op, created_ms, service_id: self.opts.service_id };
        Segment::create(self.fs.as_ref(), &self.dir, epoch, header).map(Arc::new)
    }

    pub(super) fn replace_segments(&self, change: impl FnOnce(&mut Vec<Arc<Segment>>)) {
        let mut segments = Vec::clone(&self.segments.load());
        change(&mut segments);
        self.segments.store(Arc::new(segments));
    }

    pub(super) fn update_oldest(&self) {
        let first = self.segments.load().first().map(|s| s.header.first_op);
        self.oldest.store(first.unwrap_or(self.written() + 1), Ordering::Release);
    }

    fn advance_durable(&self, op: OpId) {
        self.durable.fetch_max(op, Ordering::AcqRel);
    }

    /// Appends one or more whole entries that continue the log; returns the last op.
    ///
    /// # Errors
    /// [`StoreError::NotNext`] and damage of `frames` change nothing; a failed write poisons the log.
    pub fn append(&self, frames: &[u8]) -> Result<OpId, StoreError> {
        self.check()?;
        let mut writer = self.writer.lock();
        let headers = self.headers(frames)?;
        match self.append_runs(&mut writer, frames, &headers) {
            Ok(()) => {}
            Err(e @ StoreError::NoHistory) => return Err(e),
            Err(e) => return self.poison(e),
        }
        drop(writer);
        if self.opts.fsync == FsyncPolicy::Always {
            self.sync()?;
        }
        self.notify();
        Ok(self.written())
    }

    fn headers(&self, frames: &[u8]) -> Result<Vec<(EntryHeader, usize)>, StoreError> {
        let damaged = |offset: usize, error| StoreError::Damaged {
            path: PathBuf::from("(entries to append)"),
            offset: offset as u64,
            error,
        };
        let mut headers = Vec::with_capacity(4);
        let (mut at, mut next) = (0usize, self.written() + 1);
        while let Some(rest) = frames.get(at..).filter(|r| !r.is_empty()) {
            let header = EntryHeader::decode(rest).map_err(|e| damaged(at, e))?;
            let got = header.first_op();
            if got != next {
                return Err(StoreError::NotNext { expected: next, got });
            }
            let len = usize::try_from(header.frame_len()).ok().filter(|l| *l <= rest.len());
            let Some(len) = len else {
                let error = oplog_format::FormatError::Short {
                    what: "entry",
                    needed: header.frame_len(),
                    got: rest.len() as u64,
                };
                return Err(damaged(at, error));
            };
            headers.push((header, at));
            next = header.meta.last_op + 1;
            at += len;
        }
        Ok(headers)
    }

    /// Writes the entries in as few runs as the segment size allows.
    fn append_runs(
        &self,
        writer: &mut Writer,
        frames: &[u8],
        headers: &[(EntryHeader, usize)],
    ) -> Result<(), StoreError> {
        let mut i = 0;
        while i < headers.len() {
            let current = writer.current.clone().ok_or(StoreError::NoHistory)?;
            let room = self.opts.segment_size.saturating_sub(current.end.load(Ordering::Acquire));
            let start = headers.get(i).map_or(0, |h| h.1);
            let mut j = i;
            let mut end = start;
            while let Some((header, at)) = headers.get(j) {
                let stop = at + usize::try_from(header.frame_len()).unwrap_or(0);
                // An entry larger than a segment gets one of its own.
                if (stop - start) as u64 > room && !(j == i && current.is_empty()) {
                    break;
                }
                end = stop;
                j += 1;
            }
            if j == i {
                self.cut_segment(writer, &current)?;
                continue;
            }
            let run = frames.get(start..end).unwrap_or_default();
            let shifted: Vec<(EntryHeader, usize)> =
                headers.get(i..j).unwrap_or_default().iter().map(|(h, at)| (*h, at - start)).collect();
            current.append(run, &shifted)?;
            self.written.store(current.last_op.load(Ordering::Acquire), Ordering::Release);
            i = j;
        }
        Ok(())
    }

    fn cut_segment(&self, writer: &mut Writer, current: &Arc<Segment>) -> Result<(), StoreError> {
        current.seal()?;
        self.advance_durable(current.last_op.load(Ordering::Acquire));
        let segment = self.new_segment(writer.manifest.epoch, current.header.history, current.next_op())?;
        self.replace_segments(|s| s.push(Arc::clone(&segment)));
        writer.current = Some(segment);
        Ok(())
    }

    /// Brings everything appended so far to the disk; returns the last durable op. Appends go on meanwhile.
    ///
    /// # Errors
    /// The file system's, after which the log is poisoned.
    pub fn sync(&self) -> Result<OpId, StoreError> {
        self.check()?;
        let (file, path, written): (Arc<dyn FsFile>, PathBuf, OpId) = {
            let writer = self.writer.lock();
            let Some(current) = &writer.current else { return Ok(self.durable()) };
            (Arc::clone(&current.file), current.path.clone(), self.written())
        };
        // Sealed segments were synced when they were sealed, so the current file is all there is to do.
        if written > self.durable() {
            if let Err(e) = file.sync_data() {
                return self.poison(StoreError::io("syncing", &path, e));
            }
            // A cut or reset meanwhile has set its own mark.
            if written <= self.written() {
                self.advance_durable(written);
            }
            self.notify();
        }
        Ok(self.durable())
    }

    /// Starts anew above a copied dataset: all segments go, the next op is `next_op`.
    ///
    /// # Errors
    /// The file system's, after which the log is poisoned.
    pub fn reset(&self, lineage: Lineage, next_op: OpId) -> Result<(), StoreError> {
        let mut writer = self.writer.lock();
        let manifest = Manifest {
            version: 1,
            epoch: writer.manifest.epoch + 1,
            oldest: next_op,
            lineage,
            cut: None,
            gaps: writer.manifest.gaps,
        };
        let result = self.restart(&mut writer, manifest);
        match result {
            Ok(()) => {
                self.poison.store(None);
                self.notify();
                Ok(())
            }
            Err(e) => self.poison(e),
        }
    }

    fn restart(&self, writer: &mut Writer, manifest: Manifest) -> Result<(), StoreError> {
        let next_op = manifest.oldest;
        let current = manifest.lineage.history_of(next_op).or(manifest.lineage.current().map(|c| c.history));
        self.save_manifest(&manifest)?;
        let gone = Vec::clone(&self.segments.load());
        let segment = match current {
            Some(history) => Some(self.new_segment(manifest.epoch, history, next_op)?),
            None => None,
        };
        self.segments.store(Arc::new(segment.iter().cloned().collect()));
        self.written.store(next_op.saturating_sub(1), Ordering::Release);
        self.durable.store(next_op.saturating_sub(1), Ordering::Release);
        self.lineage.store(Arc::new(manifest.lineage.clone()));
        writer.manifest = manifest;
        writer.current = segment;
        self.update_oldest();
        for segment in gone {
            self.fs.unlink(&segment.path).map_err(|e| StoreError::io("removing", &segment.path, e))?;
        }
        self.fs.sync_dir(&self.dir).map_err(|e| StoreError::io("syncing", &self.dir, e))
    }

    /// After a failed write: goes on in a new segment at `first_op`, which leaves a gap unless that is next.
    /// What the failed write left behind is cut off first.
    ///
    /// # Errors
    /// The file system's; the log then stays poisoned.
    pub fn revive(&self, history: History, first_op: OpId) -> Result<(), StoreError> {
        let mut writer = self.writer.lock();
        if let Some(current) = &writer.current {
            let end = current.end.load(Ordering::Acquire);
            current.file.set_len(end).map_err(|e| StoreError::io("trimming", &current.path, e))?;
            current.file.sync_data().map_err(|e| StoreError::io("syncing", &current.path, e))?;
        }
        let next = self.written() + 1;
        if first_op < next {
            return Err(StoreError::NotNext { expected: next, got: first_op });
        }
        let goes_on = first_op == next
            && writer
                .current
                .as_ref()
                .is_some_and(|c| c.header.history == history && !c.sealed.load(Ordering::Acquire));
        if !goes_on {
            self.begin(&mut writer, history, first_op)?;
        }
        self.poison.store(None);
        drop(writer);
        self.notify();
        Ok(())
    }

    /// A reader whose first entry begins at `from`.
    ///
    /// # Errors
    /// [`ReadError`] where there is no such entry.
    pub fn reader(self: &Arc<Self>, from: OpId) -> Result<LogReader, ReadError> {
        LogReader::open(Arc::clone(self), from)
    }

    /// Waits until something above `above` is written, the log fails, or the time is over; returns the last op.
    pub fn wait_written(&self, above: OpId, timeout: Duration) -> OpId {
        self.wait(timeout, || self.written() > above || self.written() < above);
        self.written()
    }

    /// Waits until `at_least` is durable or the time is over; returns the last durable op.
    pub fn wait_durable(&self, at_least: OpId, timeout: Duration) -> OpId {
        self.wait(timeout, || self.durable() >= at_least);
        self.durable()
    }

    fn wait(&self, timeout: Duration, done: impl Fn() -> bool) {
        let until = Instant::now() + timeout;
        let mut guard = self.changed.lock();
        while !done() && self.poison.load().is_none() {
            if self.signal.wait_until(&mut guard, until).timed_out() {
                return;
            }
        }
        if self.poison.load().is_some() && !done() {
            // A poisoned log never signals again until it is revived: do not let callers spin.
            self.signal.wait_for(&mut guard, timeout.min(Duration::from_millis(100)));
        }
    }

    /// Removes sealed segments that lie wholly below `keep_from` and are at least `min_age` old.
    ///
    /// # Errors
    /// The file system's; segments are then removed at the next opening.
    pub fn clean(&self, keep_from: OpId, min_age: Duration, now_ms: u64) -> Result<CleanReport, StoreError> {
        let age = u64::try_from(min_age.as_millis()).unwrap_or(u64::MAX);
        self.remove_oldest(|s, _| {
            s.last_op.load(Ordering::Acquire) < keep_from
                && s.last_time_ms.load(Ordering::Relaxed).saturating_add(age) <= now_ms
        })
    }

    /// Removes the oldest sealed segments until the log has at most `max` bytes.
    ///
    /// # Errors
    /// As [`Self::clean`].
    pub fn clean_to_bytes(&self, max: u64) -> Result<CleanReport, StoreError> {
        let mut total = self.stats_bytes();
        self.remove_oldest(move |_, bytes| {
            let over = total > max;
            total = total.saturating_sub(bytes);
            over
        })
    }

    fn remove_oldest(
        &self,
        mut remove: impl FnMut(&Segment, u64) -> bool,
    ) -> Result<CleanReport, StoreError> {
        let mut writer = self.writer.lock();
        let segments = Vec::clone(&self.segments.load());
        let mut gone = Vec::new();
        let mut report = CleanReport::default();
        for segment in segments.iter().take(segments.len().saturating_sub(1)) {
            let bytes = segment.disk_bytes();
            if !segment.sealed.load(Ordering::Acquire) || !remove(segment, bytes) {
                break;
            }
            report.segments += 1;
            report.bytes += bytes;
            gone.push(Arc::clone(segment));
        }
        let Some(last) = gone.last() else { return Ok(report) };
        let mut manifest = writer.manifest.clone();
        manifest.oldest = last.last_op.load(Ordering::Acquire) + 1;
        self.save_manifest(&manifest)?;
        writer.manifest = manifest;
        self.replace_segments(|s| {
            s.drain(..gone.len());
        });
        self.update_oldest();
        drop(writer);
        for segment in &gone {
            // An open reader keeps the bytes; a crash here leaves files that the next opening removes.
            self.fs.unlink(&segment.path).map_err(|e| StoreError::io("removing", &segment.path, e))?;
        }
        Ok(report)
    }

    fn stats_bytes(&self) -> u64 {
        self.segments.load().iter().map(|s| s.disk_bytes()).sum()
    }

    /// Figures for the status; asks the file system.
    pub fn stats(&self) -> LogStats {
        LogStats {
            segments: self.segments.load().len() as u64,
            bytes: self.stats_bytes(),
            free_bytes: self.fs.free_bytes(&self.dir).unwrap_or(0),
            gaps: self.gaps.load(Ordering::Relaxed),
        }
    }

    /// Ops that were cut off and kept.
    ///
    /// # Errors
    /// The file system's, or damage of an orphan's record.
    pub fn orphans(&self) -> Result<Vec<OrphanInfo>, StoreError> {
        super::orphans::list(self.fs.as_ref(), &self.dir)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Histories that segments name and the lineage does not, added to it.
    pub(super) fn complete_lineage(lineage: &mut Lineage, segments: &[Arc<Segment>]) {
        for s in segments {
            let item = LineageItem { history: s.header.history, first_op: s.header.first_op };
            if !lineage.items().iter().any(|i| i.history == item.history) {
                lineage.open(item.history, item.first_op);
            }
        }
    }
}

/// Wall clock, Unix milliseconds.
pub(super) fn now_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
