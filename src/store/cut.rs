//! Takes the tail of the log out of it.
//!
//! Order:
//! 1. what stays is synced, and the tail is kept aside: its folder is filled and synced, gets its name, the name is synced;
//! 2. where the cut goes through an entry, the ops of it that stay are put into a small file;
//! 3. the manifest notes the cut. Before this point a crash leaves the log whole (and perhaps a copy of its
//!    tail among the orphans), from here on the next opening does the rest;
//! 4. later segments are removed, the one that the cut goes through is shortened, what stays of the entry written
//!    behind it, all synced;
//! 5. the manifest forgets the cut.
//!
//! Step 4 may be done any number of times, from any state that a crash of it can leave.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use oplog_format::{decode_stored, FormatError, OpId, Stored};

use super::change::history_at;
use super::durable;
use super::error::StoreError;
use super::log::{Log, Manifest, Shelf, Writer};
use super::orphans::OrphanInfo;
use super::segment::{parse_name, Segment};

/// What stays of the entry that a cut goes through.
pub(super) const CUT_HEAD: &str = "cut-head";

impl Log {
    /// Takes everything above `op` out of the log and keeps it aside. `None` where there is nothing.
    ///
    /// # Errors
    /// [`StoreError::NotNext`] where the log begins above, damage where `op` is not the end of an op: nothing has
    /// changed. The file system's: the log is whole, or it is poisoned, and the cut is finished when it is revived
    /// or opened again.
    pub fn cut_after(self: &Arc<Self>, op: OpId, reason: &str) -> Result<Option<OrphanInfo>, StoreError> {
        let mut shelf = self.shelf.lock();
        let mut writer = self.writer.lock();
        self.check()?;
        if op >= self.written() {
            return Ok(None);
        }
        if op + 1 < self.oldest() {
            return Err(StoreError::NotNext { expected: self.oldest(), got: op });
        }
        if let Some(current) = writer.current.as_ref().filter(|c| !c.is_sealed()) {
            let synced = current.sync().map(|()| self.advance_durable(self.rewind_count(), self.written()));
            synced.or_else(|e| self.poison(e))?;
        }
        let seam = self.seam(op)?;
        let kept = self.keep_aside(op, &seam, reason)?;
        self.put_head(seam.head.as_deref())?;
        let done = self.cut_noted(&mut shelf, &mut writer, op);
        drop((writer, shelf));
        self.notify();
        done.or_else(|e| self.poison(e))?;
        Ok(Some(kept))
    }

    /// Leaves the file with what stays of an entry, or none: that of an earlier cut must not be taken for it.
    fn put_head(&self, head: Option<&[u8]>) -> Result<(), StoreError> {
        let path = self.dir.join(CUT_HEAD);
        match head {
            Some(head) => durable::replace_file(self.fs.as_ref(), &path, head),
            None => match self.fs.unlink(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
                Err(e) => Err(StoreError::io("removing", &path, e)),
                Ok(()) => self.fs.sync_dir(&self.dir).map_err(|e| StoreError::io("syncing", &self.dir, e)),
            },
        }
    }

    fn cut_noted(&self, shelf: &mut Shelf, writer: &mut Writer, op: OpId) -> Result<(), StoreError> {
        let mut manifest = Manifest { cut: Some(op), ..shelf.manifest.clone() };
        manifest.lineage.cut_after(op);
        if op < self.oldest() {
            manifest.oldest = op + 1;
        }
        self.save_manifest(&manifest)?;
        self.lineage.store(Arc::new(manifest.lineage.clone()));
        shelf.manifest = manifest;
        self.finish_cut(shelf, writer, op)
    }

    /// Carries out a cut that the manifest names.
    pub(super) fn finish_cut(
        &self,
        shelf: &mut Shelf,
        writer: &mut Writer,
        op: OpId,
    ) -> Result<(), StoreError> {
        // Readers are told before the bytes go.
        self.cutting.store(true, Ordering::SeqCst);
        self.rewind(op, self.durable().min(op), op);
        writer.current = None;
        self.replace_segments(|s| s.retain(|x| x.header.first_op <= op));
        self.update_oldest();
        let names = self.fs.list(&self.dir).map_err(|e| StoreError::io("listing", &self.dir, e))?;
        for name in names {
            if parse_name(&name).is_some_and(|(epoch, first)| epoch == writer.epoch && first > op) {
                let path = self.dir.join(name);
                self.fs.unlink(&path).map_err(|e| StoreError::io("removing", &path, e))?;
            }
        }
        self.fs.sync_dir(&self.dir).map_err(|e| StoreError::io("syncing", &self.dir, e))?;
        let last = self.segments.load().last().map(|s| s.path.clone());
        if let Some(path) = last {
            let shortened = Arc::new(self.shorten(&path, op)?);
            self.replace_segments(|s| {
                s.pop();
                s.push(Arc::clone(&shortened));
            });
            writer.current = Some(shortened);
        }
        let manifest = Manifest { cut: None, ..shelf.manifest.clone() };
        self.save_manifest(&manifest)?;
        shelf.manifest = manifest;
        self.cutting.store(false, Ordering::SeqCst);
        self.advance_durable(self.rewind_count(), op);
        if writer.current.is_none() {
            if let Some(history) = history_at(&shelf.manifest.lineage, op + 1) {
                self.start_segment(writer, history, op + 1)?;
            }
        }
        // Only looked at where an entry is missing: leaving it would harm nothing.
        let _ = self.fs.unlink(&self.dir.join(CUT_HEAD));
        Ok(())
    }

    /// Shortens the segment that the cut goes through. What stays of an entry is written in any case, also where
    /// it is there already: an earlier attempt may have written it and failed to sync it.
    fn shorten(&self, path: &Path, op: OpId) -> Result<Segment, StoreError> {
        let bytes =
            durable::read_file(self.fs.as_ref(), &self.dir.join(CUT_HEAD), u64::MAX)?.unwrap_or_default();
        let head = match decode_stored(&bytes) {
            Ok(Stored::Entry(e)) if e.header.last_op() == op => Some(e),
            _ => None,
        };
        let until = head.map_or(op, |e| e.header.first_op() - 1);
        let (segment, seen) = Segment::open_last(&self.fs, path, Some(until))?;
        if segment.last_op() != until {
            let (needed, got) = (until, segment.last_op());
            let error = seen.error.unwrap_or(FormatError::Short { what: "segment", needed, got });
            return Err(segment.damaged(segment.end(), error));
        }
        let file = segment.file()?;
        file.set_len(segment.end()).map_err(|e| StoreError::io("cutting", path, e))?;
        if let Some(head) = head {
            segment.append(head.frame, &[(head.header, 0)], 0)?;
        }
        segment.sync()?;
        Ok(segment)
    }
}
