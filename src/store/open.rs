//! Opening a log: which segments are meant, whether they fit together, what a crash left of the last.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::durable;
use super::error::StoreError;
use super::fs::{DirLock, Fs};
use super::log::{Log, LogOptions, Manifest, OpenReport, TornTail, Writer, MANIFEST};
use super::segment::{parse_name, Segment, Torn};

/// Directory of tails that were cut off; never emptied by us.
pub const TORN: &str = "torn";

impl Log {
    /// Opens the log in `dir`, made where there is none. Reads the last segment, of the others header and footer.
    ///
    /// # Errors
    /// [`StoreError::InUse`], damage with file and offset, or the file system's. Nothing has then been changed.
    pub fn open(
        dir: &Path,
        opts: LogOptions,
        fs: Arc<dyn Fs>,
    ) -> Result<(Arc<Self>, OpenReport), StoreError> {
        fs.create_dir(dir).map_err(|e| StoreError::io("making", dir, e))?;
        let lock = DirLock::take(dir)?;
        Self::open_locked(dir, opts, fs, Some(lock))
    }

    /// As [`Self::open`] on a file system of a test, which has no locks.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_unlocked(
        dir: &Path,
        opts: LogOptions,
        fs: Arc<dyn Fs>,
    ) -> Result<(Arc<Self>, OpenReport), StoreError> {
        fs.create_dir(dir).map_err(|e| StoreError::io("making", dir, e))?;
        Self::open_locked(dir, opts, fs, None)
    }

    fn open_locked(
        dir: &Path,
        opts: LogOptions,
        fs: Arc<dyn Fs>,
        lock: Option<DirLock>,
    ) -> Result<(Arc<Self>, OpenReport), StoreError> {
        let mut manifest: Manifest = durable::load(fs.as_ref(), &dir.join(MANIFEST))?.unwrap_or(Manifest {
            version: 1,
            oldest: 1,
            ..Manifest::default()
        });
        let mut report = OpenReport::default();
        let (mut segments, stale) = live_segments(fs.as_ref(), dir, &manifest)?;
        let cut = manifest.cut;
        if let Some(last) = segments.last() {
            if !last.sealed.load(Ordering::Acquire) {
                if let Some(torn) = last.scan()? {
                    report.torn = Some(cut_torn(fs.as_ref(), dir, last, &torn)?);
                }
            }
        }
        check_continuity(&segments)?;
        for path in stale {
            fs.unlink(&path).map_err(|e| StoreError::io("removing", &path, e))?;
        }
        Self::complete_lineage(&mut manifest.lineage, &segments);
        let current = segments.last().filter(|s| !s.sealed.load(Ordering::Acquire)).cloned();
        if current.is_none() && !segments.is_empty() {
            // Sealed and the next not made yet.
            segments.shrink_to_fit();
        }
        report.segments = segments.len();
        let log = Self::assemble(fs, dir, opts, Writer { manifest, current }, segments, lock);
        if let Some(op) = cut {
            log.finish_cut(op)?;
        }
        log.reopen_last()?;
        Ok((log, report))
    }

    /// Makes the next segment where a crash came between sealing one and making the next.
    fn reopen_last(&self) -> Result<(), StoreError> {
        let mut writer = self.writer.lock();
        if writer.current.is_some() {
            return Ok(());
        }
        let last = self.segments.load().last().cloned();
        let history = match &last {
            Some(s) => Some(s.header.history),
            None => writer.manifest.lineage.current().map(|c| c.history),
        };
        if let Some(history) = history {
            let segment = self.new_segment(writer.manifest.epoch, history, self.written() + 1)?;
            self.replace_segments(|s| s.push(Arc::clone(&segment)));
            writer.current = Some(segment);
            self.update_oldest();
        }
        Ok(())
    }
}

type Live = (Vec<Arc<Segment>>, Vec<std::path::PathBuf>);

fn live_segments(fs: &dyn Fs, dir: &Path, manifest: &Manifest) -> Result<Live, StoreError> {
    let names = fs.list(dir).map_err(|e| StoreError::io("listing", dir, e))?;
    let mut named: Vec<(u64, String)> = Vec::new();
    let mut stale = Vec::new();
    for name in names {
        match parse_name(&name) {
            Some((epoch, first)) if epoch == manifest.epoch => named.push((first, name)),
            Some(_) => stale.push(dir.join(name)),
            None => {}
        }
    }
    named.sort();
    let mut segments: Vec<Arc<Segment>> = Vec::with_capacity(named.len());
    let count = named.len();
    for (i, (first, name)) in named.into_iter().enumerate() {
        let path = dir.join(name);
        // A header that a crash kept from being written: the segment never had an entry.
        let segment = match Segment::open(fs, &path) {
            Err(StoreError::Damaged { offset: 0, .. }) if i + 1 == count && is_headless(fs, &path)? => {
                stale.push(path);
                continue;
            }
            other => other?,
        };
        if segment.header.first_op != first {
            return Err(StoreError::Discontinuous { path, expected: first, got: segment.header.first_op });
        }
        let last = i + 1 == count;
        if !last && !segment.sealed.load(Ordering::Acquire) {
            return unsealed_within(fs, dir, segment);
        }
        if segment.sealed.load(Ordering::Acquire) && segment.last_op.load(Ordering::Acquire) < manifest.oldest
        {
            stale.push(path);
            continue;
        }
        segments.push(Arc::new(segment));
    }
    Ok((segments, stale))
}

/// Only the last segment may lack its footer.
fn unsealed_within(fs: &dyn Fs, dir: &Path, segment: Segment) -> Result<Live, StoreError> {
    let _ = (fs, dir);
    let offset = segment.disk_bytes();
    let error = oplog_format::FormatError::Magic { what: "footer", got: 0 };
    Err(StoreError::Damaged { path: segment.path, offset, error })
}

fn is_headless(fs: &dyn Fs, path: &Path) -> Result<bool, StoreError> {
    let file = fs.open(path, false).map_err(|e| StoreError::io("opening", path, e))?;
    let len = file.size().map_err(|e| StoreError::io("reading", path, e))?;
    Ok(len <= oplog_format::SEGMENT_HEADER_LEN as u64)
}

fn check_continuity(segments: &[Arc<Segment>]) -> Result<(), StoreError> {
    for (a, b) in segments.iter().zip(segments.iter().skip(1)) {
        let (expected, got) = (a.next_op(), b.header.first_op);
        if expected != got {
            return Err(StoreError::Discontinuous { path: b.path.clone(), expected, got });
        }
    }
    Ok(())
}

/// Copies the tail aside, syncs the copy, then cuts.
fn cut_torn(fs: &dyn Fs, dir: &Path, segment: &Segment, torn: &Torn) -> Result<TornTail, StoreError> {
    let folder = dir.join(TORN);
    fs.create_dir(&folder).map_err(|e| StoreError::io("making", &folder, e))?;
    let name = segment.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let kept_in = folder.join(format!("{name}.{}.{}", torn.offset, super::log::now_ms()));
    let copy = fs.open(&kept_in, true).map_err(|e| StoreError::io("creating", &kept_in, e))?;
    let mut buf = vec![0u8; 1 << 20];
    let mut at = 0;
    while at < torn.bytes {
        let n = segment
            .file
            .read_at(&mut buf, torn.offset + at)
            .map_err(|e| StoreError::io("reading", &segment.path, e))?;
        if n == 0 {
            break;
        }
        copy.write_at(buf.get(..n).unwrap_or_default(), at)
            .map_err(|e| StoreError::io("writing", &kept_in, e))?;
        at += n as u64;
    }
    copy.sync_data().map_err(|e| StoreError::io("syncing", &kept_in, e))?;
    fs.sync_dir(&folder).map_err(|e| StoreError::io("syncing", &folder, e))?;
    fs.sync_dir(dir).map_err(|e| StoreError::io("syncing", dir, e))?;
    segment.file.set_len(torn.offset).map_err(|e| StoreError::io("cutting", &segment.path, e))?;
    segment.file.sync_data().map_err(|e| StoreError::io("syncing", &segment.path, e))?;
    Ok(TornTail {
        file: segment.path.clone(),
        offset: torn.offset,
        bytes: torn.bytes,
        kept_in,
        reason: torn.error.as_ref().map_or_else(|| "cut off".to_owned(), ToString::to_string),
    })
}
