//! What changes the log as a whole: a new history, a new start, revival, cleaning.
//!
//! Order of durability, the same everywhere: what stays is synced, then the manifest says how the log is from now
//! on, then files are made and removed to match. A crash before the manifest leaves the old log, one after it makes
//! the next opening do the rest.

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use oplog_format::{History, Lineage, OpId};

use super::error::StoreError;
use super::log::{CleanReport, Log, Manifest, Shelf, Writer};
use super::segment::Segment;

impl Log {
    /// Opens a history at `first_op`. Directly above [`Self::written`] the log goes on; above that there is a
    /// gap, and what lies below it is removed.
    ///
    /// # Errors
    /// [`StoreError::NotNext`] below; otherwise the file system's, after which the log is poisoned.
    pub fn begin_history(&self, history: History, first_op: OpId) -> Result<(), StoreError> {
        let mut shelf = self.shelf.lock();
        let mut writer = self.writer.lock();
        self.check()?;
        let next = self.written() + 1;
        if first_op < next {
            return Err(StoreError::NotNext { expected: next, got: first_op });
        }
        if first_op == next && self.goes_on(&writer, history) {
            return Ok(());
        }
        let begun = self.begin(&mut shelf, &mut writer, history, first_op);
        drop((writer, shelf));
        self.notify();
        begun.or_else(|e| self.poison(e))
    }

    /// Notes where histories really begin: what this log holds was written under `lineage`, by the node that this
    /// one has copied it from.
    ///
    /// # Errors
    /// The file system's, after which the log is poisoned.
    pub fn adopt_lineage(&self, lineage: Lineage) -> Result<(), StoreError> {
        let mut shelf = self.shelf.lock();
        self.check()?;
        if shelf.manifest.lineage == lineage {
            return Ok(());
        }
        let manifest = Manifest { lineage, ..shelf.manifest.clone() };
        if let Err(e) = self.save_manifest(&manifest) {
            drop(shelf);
            return self.poison(e);
        }
        self.lineage.store(Arc::new(manifest.lineage.clone()));
        shelf.manifest = manifest;
        Ok(())
    }

    /// Whether the current segment takes entries of `history`.
    fn goes_on(&self, writer: &Writer, history: History) -> bool {
        let newest = self.lineage.load().current().is_some_and(|c| c.history == history);
        newest && writer.current.as_ref().is_some_and(|c| c.header.history == history && !c.is_sealed())
    }

    fn begin(
        &self,
        shelf: &mut Shelf,
        writer: &mut Writer,
        history: History,
        first_op: OpId,
    ) -> Result<(), StoreError> {
        let gap = first_op > self.written() + 1;
        let mut manifest = shelf.manifest.clone();
        manifest.lineage.open(history, first_op);
        if gap {
            manifest.oldest = first_op;
            if self.oldest() <= self.written() {
                manifest.gaps += 1;
            }
        } else if let Some(current) = writer.current.as_ref().filter(|c| !c.is_empty()) {
            self.seal(current)?;
        }
        self.save_manifest(&manifest)?;
        self.gaps.store(manifest.gaps, Ordering::Relaxed);
        self.lineage.store(Arc::new(manifest.lineage.clone()));
        shelf.manifest = manifest;
        if gap {
            // Removed first: on a full disk this is where room comes from.
            self.drop_all(writer);
            self.written.store(first_op - 1, Ordering::Release);
            self.advance_durable(self.rewind_count(), first_op - 1);
            self.update_oldest();
        } else if writer.current.as_ref().is_some_and(|c| c.is_empty()) {
            // Never had an entry: the new one takes its name.
            writer.current = None;
            self.replace_segments(|s| s.retain(|x| !x.is_empty()));
        }
        self.start_segment(writer, history, first_op)
    }

    /// Makes the segment that entries go into from now on.
    pub(super) fn start_segment(
        &self,
        writer: &mut Writer,
        history: History,
        first_op: OpId,
    ) -> Result<(), StoreError> {
        let segment = self.new_segment(writer.epoch, history, first_op)?;
        self.replace_segments(|s| s.push(Arc::clone(&segment)));
        writer.current = Some(segment);
        self.update_oldest();
        Ok(())
    }

    /// Removes all segments, which the manifest no longer counts.
    fn drop_all(&self, writer: &mut Writer) {
        writer.current = None;
        let gone = self.segments.swap(Arc::default());
        for segment in gone.iter() {
            self.remove(segment);
        }
    }

    /// Removes a segment that the manifest no longer counts. Readers keep its bytes.
    fn remove(&self, segment: &Segment) {
        if let Err(e) = self.fs.unlink(&segment.path) {
            // The next opening removes it.
            log::warn!("{} is no longer needed and cannot be removed: {e}", segment.path.display());
        }
    }

    /// Starts anew above a copied dataset: all segments go, the next op is `next_op`. Heals a poisoned log.
    ///
    /// # Errors
    /// The file system's, after which the log is poisoned.
    pub fn reset(&self, lineage: Lineage, next_op: OpId) -> Result<(), StoreError> {
        let mut shelf = self.shelf.lock();
        let mut writer = self.writer.lock();
        shelf.last_epoch += 1;
        let manifest = Manifest {
            version: Manifest::VERSION,
            epoch: shelf.last_epoch,
            oldest: next_op,
            lineage,
            cut: None,
            gaps: shelf.manifest.gaps,
        };
        let done = self.restart(&mut shelf, &mut writer, manifest);
        if done.is_ok() {
            self.poison.store(None);
        }
        drop((writer, shelf));
        self.notify();
        done.or_else(|e| self.poison(e))
    }

    fn restart(&self, shelf: &mut Shelf, writer: &mut Writer, manifest: Manifest) -> Result<(), StoreError> {
        let next_op = manifest.oldest;
        self.save_manifest(&manifest)?;
        let last = next_op.saturating_sub(1);
        self.rewind(last, last, 0);
        self.drop_all(writer);
        self.cutting.store(false, Ordering::SeqCst);
        self.lineage.store(Arc::new(manifest.lineage.clone()));
        writer.epoch = manifest.epoch;
        let history = history_at(&manifest.lineage, next_op);
        shelf.manifest = manifest;
        self.update_oldest();
        match history {
            Some(history) => self.start_segment(writer, history, next_op),
            None => Ok(()),
        }
    }

    /// After a failed write: goes on at `first_op`, which leaves a gap unless that is next. Without a gap, what
    /// is not known to be durable is written once more.
    ///
    /// # Errors
    /// [`StoreError::NotNext`], the file system's, or damage where it has lost bytes; the log then stays poisoned.
    pub fn revive(&self, history: History, first_op: OpId) -> Result<(), StoreError> {
        let mut shelf = self.shelf.lock();
        let mut writer = self.writer.lock();
        self.revive_locked(&mut shelf, &mut writer, history, first_op)?;
        drop((writer, shelf));
        self.notify();
        Ok(())
    }

    /// After a failed write: goes on directly above what is there, where the missing ops will come again. Does
    /// nothing to a log that has not failed.
    ///
    /// # Errors
    /// As [`Self::revive`].
    pub fn resume(&self) -> Result<(), StoreError> {
        let mut shelf = self.shelf.lock();
        let mut writer = self.writer.lock();
        if self.poison.load().is_none() {
            return Ok(());
        }
        let next = self.written() + 1;
        match self.lineage.load().current().map(|c| c.history) {
            Some(history) => self.revive_locked(&mut shelf, &mut writer, history, next)?,
            None => {
                self.save_manifest(&shelf.manifest)?;
                self.poison.store(None);
            }
        }
        drop((writer, shelf));
        self.notify();
        Ok(())
    }

    fn revive_locked(
        &self,
        shelf: &mut Shelf,
        writer: &mut Writer,
        history: History,
        first_op: OpId,
    ) -> Result<(), StoreError> {
        if let Some(op) = shelf.manifest.cut {
            // The manifest that forgets the cut may have reached the disk, though its save failed: what follows
            // shortens a segment before it writes the rest anew, so the cut has to be known again first.
            self.save_manifest(&shelf.manifest)?;
            self.finish_cut(shelf, writer, op)?;
        }
        let next = self.written() + 1;
        if first_op < next {
            return Err(StoreError::NotNext { expected: next, got: first_op });
        }
        let current = writer.current.as_ref().filter(|c| !c.is_sealed());
        match current {
            Some(current) if first_op == next => {
                current.rewrite_from(self.durable().min(self.written()))?;
                self.advance_durable(self.rewind_count(), self.written());
            }
            // What a failed write has left, and what was reserved: on a full disk the manifest needs the room.
            Some(current) => current.trim()?,
            None => {}
        }
        if first_op == next && self.goes_on(writer, history) {
            // A save that failed may have reached the disk all the same.
            self.save_manifest(&shelf.manifest)?;
        } else {
            self.begin(shelf, writer, history, first_op)?;
        }
        self.poison.store(None);
        Ok(())
    }

    /// Removes sealed segments that lie wholly below `keep_from` and are at least `min_age` old.
    ///
    /// # Errors
    /// The file system's; nothing is then removed before the log is opened again.
    pub fn clean(&self, keep_from: OpId, min_age: Duration, now_ms: u64) -> Result<CleanReport, StoreError> {
        let age = u64::try_from(min_age.as_millis()).unwrap_or(u64::MAX);
        self.remove_oldest(|s, _| s.last_op() < keep_from && s.last_time_ms().saturating_add(age) <= now_ms)
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

    /// Appends go on meanwhile: only the manifest's lock is held.
    fn remove_oldest(
        &self,
        mut remove: impl FnMut(&Segment, u64) -> bool,
    ) -> Result<CleanReport, StoreError> {
        let mut shelf = self.shelf.lock();
        let mut report = CleanReport::default();
        if shelf.manifest.cut.is_some() {
            return Ok(report);
        }
        let segments = self.segments.load_full();
        let mut gone: Vec<&Arc<Segment>> = Vec::new();
        for segment in segments.iter().take(segments.len().saturating_sub(1)) {
            let bytes = segment.disk_bytes();
            if !segment.is_sealed() || !remove(segment, bytes) {
                break;
            }
            report.segments += 1;
            report.bytes += bytes;
            gone.push(segment);
        }
        let Some(last) = gone.last() else { return Ok(report) };
        let oldest = last.next_op();
        let manifest = Manifest { oldest, ..shelf.manifest.clone() };
        self.save_manifest(&manifest)?;
        shelf.manifest = manifest;
        self.replace_segments(|s| s.retain(|x| x.header.first_op >= oldest));
        self.update_oldest();
        for segment in gone {
            self.remove(segment);
        }
        Ok(report)
    }
}

/// The history that a segment beginning with `op` belongs to.
pub(super) fn history_at(lineage: &Lineage, op: OpId) -> Option<History> {
    lineage.history_of(op).or(lineage.current().map(|c| c.history))
}
