//! Opening a log: which segments are meant, whether they fit together, what a crash left of the last.
//!
//! Everything is read and judged before anything is changed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use oplog_format::FormatError;

use super::change::history_at;
use super::cut::CUT_HEAD;
use super::durable;
use super::error::StoreError;
use super::fs::Fs;
use super::log::{Log, LogOptions, Manifest, OpenReport, TornTail, MANIFEST};
use super::orphans;
use super::segment::{parse_name, Segment};
use super::walk::{is_torn, Walk};

/// Directory of tails that were cut off; never emptied by us.
pub const TORN: &str = "torn";

/// What a directory holds.
#[derive(Default)]
struct Found {
    /// Segments that belong to the log, oldest first.
    segments: Vec<Arc<Segment>>,
    /// How the reading of the last one ended.
    tail: Option<Walk>,
    /// Files that no longer do, or never had an entry.
    stale: Vec<PathBuf>,
}

impl Log {
    /// Opens the log in `dir`, made where there is none. Reads the last segment, of the others header and footer.
    ///
    /// # Errors
    /// [`StoreError::InUse`], damage with file and offset, or the file system's. Nothing has then been changed,
    /// unless the file system failed on the way.
    pub fn open(
        dir: &Path,
        opts: LogOptions,
        fs: Arc<dyn Fs>,
    ) -> Result<(Arc<Self>, OpenReport), StoreError> {
        fs.create_dir(dir).map_err(|e| StoreError::io("making", dir, e))?;
        let lock = fs.lock(dir)?;
        let names = fs.list(dir).map_err(|e| StoreError::io("listing", dir, e))?;
        let mut manifest = read_manifest(fs.as_ref(), dir, &names)?;
        let mut found = find(&fs, dir, &manifest, &names)?;
        let mut report = OpenReport::default();
        let torn = judge_tail(&found, manifest.cut.is_some())?;
        // Names that a process killed before its sync has left are made to stay before anything builds on them.
        fs.sync_dir(dir).map_err(|e| StoreError::io("syncing", dir, e))?;
        sync_parent(fs.as_ref(), dir)?;
        for path in std::mem::take(&mut found.stale) {
            fs.unlink(&path).map_err(|e| StoreError::io("removing", &path, e))?;
        }
        orphans::remove_parts(fs.as_ref(), dir);
        if let (Some(last), Some(tail)) = (found.segments.last(), found.tail.as_ref().filter(|_| torn)) {
            report.torn = Some(cut_torn(fs.as_ref(), dir, last, tail)?);
        }
        complete_lineage(&mut manifest, &found.segments);
        let log = Self::assemble(fs, dir, opts, manifest, found.segments, lock);
        log.finish_open()?;
        report.segments = log.segments.load().len();
        Ok((log, report))
    }

    /// Brings the log to where appending can go on: finishes a cut, syncs, makes the next segment.
    fn finish_open(&self) -> Result<(), StoreError> {
        let mut shelf = self.shelf.lock();
        let mut writer = self.writer.lock();
        match shelf.manifest.cut {
            Some(op) => self.finish_cut(&mut shelf, &mut writer, op)?,
            // Not in use without a cut.
            None => drop(self.fs.unlink(&self.dir.join(CUT_HEAD))),
        }
        if let Some(last) = self.segments.load().last().filter(|s| !s.is_empty()) {
            // What a killed process has written may still be on its way to the disk, and counts as durable now.
            last.sync()?;
        }
        let next = self.written() + 1;
        let Some(history) = history_at(&shelf.manifest.lineage, next) else { return Ok(()) };
        let fits = writer.current.as_ref().is_some_and(|c| !c.is_empty() || c.header.history == history);
        if !fits {
            // A crash came between sealing a segment, or noting a history, and making the next.
            self.replace_segments(|s| s.retain(|x| !x.is_empty()));
            self.start_segment(&mut writer, history, next)?;
        }
        Ok(())
    }
}

/// The directory may be new.
fn sync_parent(fs: &dyn Fs, dir: &Path) -> Result<(), StoreError> {
    let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match fs.sync_dir(parent) {
        // Then someone else has made ours.
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        other => other.map_err(|e| StoreError::io("syncing", parent, e)),
    }
}

fn read_manifest(fs: &dyn Fs, dir: &Path, names: &[String]) -> Result<Manifest, StoreError> {
    let path = dir.join(MANIFEST);
    let damaged = |error| StoreError::Damaged { path: path.clone(), offset: 0, error };
    match durable::load::<Manifest>(fs, &path)? {
        Some(m) if m.version == Manifest::VERSION => Ok(m),
        Some(m) => {
            Err(damaged(FormatError::Version { what: "manifest", got: m.version, newest: Manifest::VERSION }))
        }
        // It is on the disk before the first segment is made, so it was lost, and with it which segments count.
        None if names.iter().any(|n| parse_name(n).is_some()) => {
            Err(damaged(FormatError::Short { what: "manifest", needed: durable::HEAD as u64, got: 0 }))
        }
        None => Ok(Manifest { version: Manifest::VERSION, oldest: 1, ..Manifest::default() }),
    }
}

fn find(fs: &Arc<dyn Fs>, dir: &Path, manifest: &Manifest, names: &[String]) -> Result<Found, StoreError> {
    let mut found = Found::default();
    let mut live = Vec::new();
    for name in names {
        match parse_name(name) {
            Some((epoch, first)) if epoch == manifest.epoch && manifest.cut.is_none_or(|op| first <= op) => {
                live.push((first, dir.join(name)));
            }
            Some(_) => found.stale.push(dir.join(name)),
            None => {}
        }
    }
    live.sort();
    // What lies below the oldest is not even looked at: its removal may have been cut short anywhere.
    let skip = live.iter().skip(1).take_while(|(first, _)| *first <= manifest.oldest).count();
    found.stale.extend(live.drain(..skip).map(|(_, path)| path));
    if let Some((first, path)) = live.last().filter(|(_, path)| is_headless(fs.as_ref(), path)) {
        log::info!("{} never got its header (op {first})", path.display());
        found.stale.push(path.clone());
        live.pop();
    }
    let count = live.len();
    for (i, (first, path)) in live.into_iter().enumerate() {
        let (segment, tail) = if i + 1 == count {
            let (segment, tail) = Segment::open_last(fs, &path, manifest.cut)?;
            (segment, Some(tail))
        } else {
            (Segment::open(fs, &path)?, None)
        };
        if segment.header.first_op != first {
            return Err(StoreError::Discontinuous { path, expected: first, got: segment.header.first_op });
        }
        if tail.is_none() && !segment.is_sealed() {
            let error = FormatError::Magic { what: "footer", got: 0 };
            return Err(segment.damaged(segment.end(), error));
        }
        if first < manifest.oldest && segment.last_op() < manifest.oldest {
            // The last one below a gap, or the last whose removal was cut short.
            found.stale.push(path);
            continue;
        }
        if let Some(before) = found.segments.last().filter(|b| b.next_op() != first) {
            return Err(StoreError::Discontinuous { path, expected: before.next_op(), got: first });
        }
        found.tail = tail;
        found.segments.push(Arc::new(segment));
    }
    check_start(manifest, &found)?;
    Ok(found)
}

/// The log begins where the manifest says that it does.
fn check_start(manifest: &Manifest, found: &Found) -> Result<(), StoreError> {
    match found.segments.first() {
        Some(s) if s.header.first_op > manifest.oldest => Err(StoreError::Discontinuous {
            path: s.path.clone(),
            expected: manifest.oldest,
            got: s.header.first_op,
        }),
        _ => Ok(()),
    }
}

/// Whether a crash came before the header of a new segment was written.
fn is_headless(fs: &dyn Fs, path: &Path) -> bool {
    let header = oplog_format::SEGMENT_HEADER_LEN;
    let mut head = vec![0u8; header + 1];
    let read = fs.open(path, false).and_then(|file| file.read_at(&mut head, 0));
    read.is_ok_and(|n| {
        n <= header && oplog_format::SegmentHeader::decode(head.get(..n).unwrap_or_default()).is_err()
    })
}

/// Whether the last segment ends in bytes that are to be cut off.
fn judge_tail(found: &Found, cut_pending: bool) -> Result<bool, StoreError> {
    let (Some(last), Some(tail)) = (found.segments.last(), &found.tail) else { return Ok(false) };
    // A pending cut takes the tail in any case; it has been kept aside.
    if cut_pending || tail.end >= tail.len {
        return Ok(false);
    }
    if is_torn(last.file()?.as_ref(), &last.path, tail, last.next_op())? {
        return Ok(true);
    }
    let error = tail.error.clone().unwrap_or(FormatError::Short { what: "entry", needed: 1, got: 0 });
    Err(last.damaged(tail.end, error))
}

/// Adds a history that a segment names and the manifest does not. Ours notes them first; this is for a directory
/// whose manifest was put back from an older copy.
fn complete_lineage(manifest: &mut Manifest, segments: &[Arc<Segment>]) {
    for s in segments {
        let newest = manifest.lineage.current();
        if newest.is_none_or(|c| c.history != s.header.history && c.first_op < s.header.first_op) {
            manifest.lineage.open(s.header.history, s.header.first_op);
        }
    }
}

/// Copies the tail aside, syncs the copy, then cuts.
fn cut_torn(fs: &dyn Fs, dir: &Path, segment: &Segment, tail: &Walk) -> Result<TornTail, StoreError> {
    let folder = dir.join(TORN);
    fs.create_dir(&folder).map_err(|e| StoreError::io("making", &folder, e))?;
    let name = segment.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let kept_in = folder.join(format!("{name}.{}.{}", tail.end, super::log::now_ms()));
    let file = segment.file()?;
    let copy = fs.open(&kept_in, true).map_err(|e| StoreError::io("creating", &kept_in, e))?;
    let mut buf = vec![0u8; 1 << 20];
    let mut at = tail.end;
    while at < tail.len {
        let want = usize::try_from(tail.len - at).unwrap_or(usize::MAX).min(buf.len());
        let piece = buf.get_mut(..want).unwrap_or_default();
        let n = file.read_at(piece, at).map_err(|e| StoreError::io("reading", &segment.path, e))?;
        if n == 0 {
            break;
        }
        copy.write_at(piece.get(..n).unwrap_or_default(), at - tail.end)
            .map_err(|e| StoreError::io("writing", &kept_in, e))?;
        at += n as u64;
    }
    copy.sync_data().map_err(|e| StoreError::io("syncing", &kept_in, e))?;
    fs.sync_dir(&folder).map_err(|e| StoreError::io("syncing", &folder, e))?;
    fs.sync_dir(dir).map_err(|e| StoreError::io("syncing", dir, e))?;
    file.set_len(tail.end).map_err(|e| StoreError::io("cutting", &segment.path, e))?;
    file.sync_data().map_err(|e| StoreError::io("syncing", &segment.path, e))?;
    Ok(TornTail {
        file: segment.path.clone(),
        offset: tail.end,
        bytes: tail.len - tail.end,
        kept_in,
        reason: tail.error.as_ref().map_or_else(|| "cut off".to_owned(), ToString::to_string),
    })
}
