//! The log: positions, appending, syncing, waiting.
//!
//! Order of durability: a segment is sealed and synced before the next is made; a new segment's header and name
//! are synced before an entry goes into it. What changes the log as a whole is in `change.rs` and `orphans.rs`.
//!
//! Locks, in the order in which they may be taken: press, manifest, writer, rewinds. The first is held while entries
//! are compressed, all but the last over I/O.
//! Positions, lineage and the list of segments are read without a lock.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use oplog_format::{Codec, FormatError, History, Lineage, OpId, SegmentHeader, StoredHeader};
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};

use super::durable;
use super::error::{ReadError, StoreError};
use super::fs::Fs;
use super::lock::DirLock;
use super::orphans::OrphanInfo;
use super::press::Press;
use super::reader::LogReader;
use super::segment::{Placed, Segment};

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
    /// What entries are compressed by where that is worth it. Whatever it is, all that can be in a log is read.
    pub compression: Option<Codec>,
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

impl Manifest {
    /// The version that this code writes and reads.
    pub const VERSION: u32 = 1;
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
    /// Bytes of the stream that were appended since the log was opened.
    pub appended_stream: u64,
    /// Bytes that they took on disk.
    pub appended_disk: u64,
}

/// What a cleaning removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CleanReport {
    /// Segments.
    pub segments: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The manifest as it is on the disk, but for a save that has failed.
pub(super) struct Shelf {
    pub(super) manifest: Manifest,
    /// Last epoch that was tried: one whose start has failed may have left a file.
    pub(super) last_epoch: u32,
}

pub(super) struct Writer {
    pub(super) epoch: u32,
    /// Where entries go; sealed only where making the next one has failed.
    pub(super) current: Option<Arc<Segment>>,
    /// Headers of the frames being appended, with their offsets; kept for its memory.
    headers: Vec<Placed>,
}

/// Backward moves of [`Log::written`], for readers and a sync that began before one.
#[derive(Default)]
struct Rewinds {
    /// Number of the move, and the op above which nothing stayed.
    moves: Vec<(u64, OpId)>,
}

/// A log in a directory.
pub struct Log {
    pub(super) fs: Arc<dyn Fs>,
    pub(super) dir: PathBuf,
    pub(super) opts: LogOptions,
    press: Mutex<Press>,
    pub(super) shelf: Mutex<Shelf>,
    pub(super) writer: Mutex<Writer>,
    /// Live segments, oldest first.
    pub(super) segments: ArcSwap<Vec<Arc<Segment>>>,
    pub(super) lineage: ArcSwap<Lineage>,
    pub(super) written: AtomicU64,
    durable: AtomicU64,
    oldest: AtomicU64,
    pub(super) gaps: AtomicU64,
    rewinds: Mutex<Rewinds>,
    rewind_count: AtomicU64,
    appended_stream: AtomicU64,
    appended_disk: AtomicU64,
    /// A cut has begun and not ended: the last segment may be shorter than it is said to be.
    pub(super) cutting: AtomicBool,
    changed: Mutex<()>,
    signal: Condvar,
    pub(super) poison: ArcSwapOption<String>,
    _lock: DirLock,
}

impl Log {
    pub(super) fn assemble(
        fs: Arc<dyn Fs>,
        dir: &Path,
        opts: LogOptions,
        manifest: Manifest,
        segments: Vec<Arc<Segment>>,
        lock: DirLock,
    ) -> Arc<Self> {
        let written = segments.last().map_or(manifest.oldest.saturating_sub(1), |s| s.last_op());
        let oldest = segments.first().map_or(written + 1, |s| s.header.first_op);
        let current = segments.last().filter(|s| !s.is_sealed()).cloned();
        let epoch = manifest.epoch;
        Arc::new(Self {
            fs,
            dir: dir.to_owned(),
            press: Mutex::new(Press::new(opts.compression)),
            opts,
            lineage: ArcSwap::from_pointee(manifest.lineage.clone()),
            gaps: AtomicU64::new(manifest.gaps),
            shelf: Mutex::new(Shelf { manifest, last_epoch: epoch }),
            writer: Mutex::new(Writer { epoch, current, headers: Vec::new() }),
            segments: ArcSwap::from_pointee(segments),
            written: AtomicU64::new(written),
            durable: AtomicU64::new(written),
            oldest: AtomicU64::new(oldest),
            rewinds: Mutex::default(),
            rewind_count: AtomicU64::new(0),
            appended_stream: AtomicU64::new(0),
            appended_disk: AtomicU64::new(0),
            cutting: AtomicBool::new(false),
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

    pub(super) fn poison<T>(&self, error: StoreError) -> Result<T, StoreError> {
        if self.poison.load().is_none() {
            self.poison.store(Some(Arc::new(error.to_string())));
        }
        self.notify();
        Err(error)
    }

    pub(super) fn check(&self) -> Result<(), StoreError> {
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

    pub(super) fn new_segment(
        &self,
        epoch: u32,
        history: History,
        first_op: OpId,
    ) -> Result<Arc<Segment>, StoreError> {
        let created_ms = now_ms();
        let header = SegmentHeader { history, first_op, created_ms, service_id: self.opts.service_id };
        Segment::create(&self.fs, &self.dir, epoch, header).map(Arc::new)
    }

    /// Changes the list of segments, also while another thread does.
    pub(super) fn replace_segments(&self, change: impl Fn(&mut Vec<Arc<Segment>>)) {
        self.segments.rcu(|old| {
            let mut new = Vec::clone(old);
            change(&mut new);
            new
        });
    }

    pub(super) fn update_oldest(&self) {
        let first = self.segments.load().first().map(|s| s.header.first_op);
        self.oldest.store(first.unwrap_or(self.written() + 1), Ordering::Release);
    }

    /// Number of the backward moves so far.
    pub(super) fn rewind_count(&self) -> u64 {
        self.rewind_count.load(Ordering::SeqCst)
    }

    /// The lowest op that anything was moved back to since `count` moves; `None` since none.
    pub(super) fn rewound_since(&self, count: u64) -> Option<OpId> {
        self.rewinds.lock().moves.iter().filter(|(n, _)| *n > count).map(|(_, op)| *op).min()
    }

    /// Sets all positions anew. `floor` is the op up to which what was read before still holds.
    pub(super) fn rewind(&self, written: OpId, durable: OpId, floor: OpId) {
        let mut rewinds = self.rewinds.lock();
        let count = self.rewind_count() + 1;
        // Older moves to a higher op say nothing that this one does not.
        rewinds.moves.retain(|(_, op)| *op < floor);
        rewinds.moves.push((count, floor));
        self.written.store(written, Ordering::Release);
        self.durable.store(durable, Ordering::Release);
        self.rewind_count.store(count, Ordering::SeqCst);
    }

    /// `op` is on the disk, unless the log was moved back after `count` moves.
    pub(super) fn advance_durable(&self, count: u64, op: OpId) {
        let _rewinds = self.rewinds.lock();
        if self.rewind_count() == count {
            self.durable.fetch_max(op, Ordering::AcqRel);
        }
    }

    /// Appends one or more whole entries that continue the log, plain or compressed; returns the last op. Plain ones
    /// are compressed where the options say so. The checksums are not computed again.
    ///
    /// # Errors
    /// [`StoreError::NotNext`] and damage of `frames` change nothing. A failed write or sync poisons the log;
    /// whole entries up to [`Self::written`] may then have been appended.
    pub fn append(&self, frames: &[u8]) -> Result<OpId, StoreError> {
        self.check()?;
        let mut press = self.press.lock();
        let frames = press.press(frames);
        let mut writer = self.writer.lock();
        self.check()?;
        let mut headers = std::mem::take(&mut writer.headers);
        headers.clear();
        let result = match self.headers(frames, &mut headers) {
            Ok(()) if writer.current.is_none() => Err(StoreError::NoHistory),
            Ok(()) => self.append_runs(&mut writer, frames, &headers).or_else(|e| self.poison(e)),
            Err(e) => Err(e),
        };
        writer.headers = headers;
        drop((writer, press));
        result?;
        if self.opts.fsync == FsyncPolicy::Always {
            self.sync()?;
        }
        self.notify();
        Ok(self.written())
    }

    fn headers(&self, frames: &[u8], headers: &mut Vec<Placed>) -> Result<(), StoreError> {
        let damaged = |offset: usize, error| StoreError::Damaged {
            path: PathBuf::from("(entries to append)"),
            offset: offset as u64,
            error,
        };
        let (mut at, mut next) = (0usize, self.written() + 1);
        while let Some(rest) = frames.get(at..).filter(|r| !r.is_empty()) {
            let header = StoredHeader::decode(rest).map_err(|e| damaged(at, e))?;
            let got = header.first_op();
            if got != next {
                return Err(StoreError::NotNext { expected: next, got });
            }
            let len = usize::try_from(header.frame_len()).ok().filter(|l| *l <= rest.len());
            let Some(len) = len else {
                let (needed, got) = (header.frame_len(), rest.len() as u64);
                return Err(damaged(at, FormatError::Short { what: "entry", needed, got }));
            };
            headers.push((header, at));
            next = header.last_op() + 1;
            at += len;
        }
        Ok(())
    }

    /// Writes the entries in as few runs as the segment size allows.
    fn append_runs(&self, writer: &mut Writer, frames: &[u8], headers: &[Placed]) -> Result<(), StoreError> {
        let mut i = 0;
        while i < headers.len() {
            let current = writer.current.clone().ok_or(StoreError::NoHistory)?;
            let room = self.opts.segment_size.saturating_sub(current.end());
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
            current.append(run, headers.get(i..j).unwrap_or_default(), self.opts.segment_size)?;
            let before = self.written.swap(current.last_op(), Ordering::AcqRel);
            self.appended_stream.fetch_add(current.last_op() - before, Ordering::Relaxed);
            self.appended_disk.fetch_add(run.len() as u64, Ordering::Relaxed);
            i = j;
        }
        Ok(())
    }

    fn cut_segment(&self, writer: &mut Writer, current: &Arc<Segment>) -> Result<(), StoreError> {
        self.seal(current)?;
        let segment = self.new_segment(writer.epoch, current.header.history, current.next_op())?;
        self.replace_segments(|s| s.push(Arc::clone(&segment)));
        writer.current = Some(segment);
        Ok(())
    }

    /// Seals the current segment, whose lock the caller holds.
    pub(super) fn seal(&self, current: &Segment) -> Result<(), StoreError> {
        if !current.is_sealed() {
            current.seal()?;
            self.advance_durable(self.rewind_count(), current.last_op());
        }
        Ok(())
    }

    /// Brings everything appended so far to the disk; returns the last durable op. Appends go on meanwhile.
    ///
    /// # Errors
    /// The file system's, after which the log is poisoned.
    pub fn sync(&self) -> Result<OpId, StoreError> {
        self.check()?;
        let (current, written, count) = {
            let writer = self.writer.lock();
            let Some(current) = &writer.current else { return Ok(self.durable()) };
            (Arc::clone(current), self.written(), self.rewind_count())
        };
        // Sealed segments were synced when they were sealed, so the current file is all there is to do.
        if written > self.durable() {
            if let Err(e) = current.sync() {
                return self.poison(e);
            }
            self.advance_durable(count, written);
            self.notify();
        }
        Ok(self.durable())
    }

    /// A reader whose first entry begins at `from`.
    ///
    /// # Errors
    /// [`ReadError`] where there is no such entry.
    pub fn reader(self: &Arc<Self>, from: OpId) -> Result<LogReader, ReadError> {
        LogReader::open(Arc::clone(self), from)
    }

    /// Waits until something above `above` is written, the log is moved back below it or fails, or the time is
    /// over; returns the last op.
    pub fn wait_written(&self, above: OpId, timeout: Duration) -> OpId {
        self.wait(timeout, || self.written() != above);
        self.written()
    }

    /// Waits until `at_least` is durable, the log fails, or the time is over; returns the last durable op.
    pub fn wait_durable(&self, at_least: OpId, timeout: Duration) -> OpId {
        self.wait(timeout, || self.durable() >= at_least);
        self.durable()
    }

    fn wait(&self, timeout: Duration, done: impl Fn() -> bool) {
        let until = Instant::now().checked_add(timeout);
        let mut guard = self.changed.lock();
        while !done() && self.poison.load().is_none() {
            match until {
                None => self.signal.wait(&mut guard),
                Some(until) if self.signal.wait_until(&mut guard, until).timed_out() => return,
                Some(_) => {}
            }
        }
        if self.poison.load().is_some() && !done() {
            // A poisoned log never signals again until it is revived: do not let callers spin.
            self.signal.wait_for(&mut guard, timeout.min(Duration::from_millis(100)));
        }
    }

    pub(super) fn stats_bytes(&self) -> u64 {
        self.segments.load().iter().map(|s| s.disk_bytes()).sum()
    }

    /// Bytes that the disk can still take; `None` where the file system does not say.
    pub fn free_bytes(&self) -> Option<u64> {
        self.fs.free_bytes(&self.dir).ok()
    }

    /// What entries are compressed by.
    pub fn compression(&self) -> Option<Codec> {
        self.opts.compression
    }

    /// Size at which a segment is cut.
    pub fn segment_size(&self) -> u64 {
        self.opts.segment_size
    }

    /// Last op of the oldest segment, where that is sealed.
    pub fn oldest_sealed(&self) -> Option<OpId> {
        self.segments.load().first().filter(|s| s.is_sealed()).map(|s| s.last_op())
    }

    /// Bytes of the segments on disk.
    pub fn bytes(&self) -> u64 {
        self.stats_bytes()
    }

    /// Figures for the status; asks the file system for the free bytes.
    pub fn stats(&self) -> LogStats {
        LogStats {
            segments: self.segments.load().len() as u64,
            bytes: self.stats_bytes(),
            free_bytes: self.fs.free_bytes(&self.dir).unwrap_or(0),
            gaps: self.gaps.load(Ordering::Relaxed),
            appended_stream: self.appended_stream.load(Ordering::Relaxed),
            appended_disk: self.appended_disk.load(Ordering::Relaxed),
        }
    }

    /// Ops that were cut off and kept. Reads the disk.
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
}

/// Wall clock, Unix milliseconds.
#[must_use]
pub fn now_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
