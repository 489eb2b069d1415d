//! Reads entries in order, across segments, while they are appended and removed.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use oplog_format::{decode_stored, FormatError, OpId, Stored, Unpacker, SEGMENT_HEADER_LEN};

use super::error::{ReadError, StoreError};
use super::fs::FsFile;
use super::log::Log;
use super::segment::Segment;
use super::walk::walk;

/// Bytes read at least, where there are as many.
const LEAST: usize = 16 * 1024;
/// Of compressed entries this part of what is asked for is read, as more comes out.
const PACKED_PART: usize = 4;
/// A buffer above this is given back.
const KEEP: usize = 4 << 20;

/// A position in the log that moves forward. Holds its segment's file open, so that a cleaner that removes the
/// name takes nothing from it.
pub struct LogReader {
    log: Arc<Log>,
    place: Option<Place>,
    next_op: OpId,
    /// Backward moves of the log that this reader has seen.
    rewinds: u64,
    unpack: Unpack,
}

/// What a reader that is asked for plain entries needs for compressed ones.
#[derive(Default)]
struct Unpack {
    unpacker: Unpacker,
    /// Compressed entries as they were read.
    stored: Vec<u8>,
    /// Such a one came last.
    seen: bool,
}

/// Where the entry that begins with the reader's next op stands.
struct Place {
    segment: Arc<Segment>,
    file: Arc<dyn FsFile>,
    offset: u64,
}

impl LogReader {
    pub(super) fn open(log: Arc<Log>, from: OpId) -> Result<Self, ReadError> {
        let rewinds = log.rewind_count();
        let mut reader = Self { log, place: None, next_op: from, rewinds, unpack: Unpack::default() };
        loop {
            let found = reader.start();
            if reader.log.rewind_count() == reader.rewinds {
                return match found {
                    Ok(()) => Ok(reader),
                    Err(e) => Err(reader.explain(e)),
                };
            }
            // Moved back meanwhile: looked at the old log, perhaps at both.
            reader.rewinds = reader.log.rewind_count();
            reader.place = None;
        }
    }

    fn start(&mut self) -> Result<(), ReadError> {
        let (oldest, written) = (self.log.oldest(), self.log.written());
        if self.next_op < oldest {
            return Err(ReadError::Trimmed { oldest });
        }
        if self.next_op > written + 1 {
            return Err(ReadError::Ahead { written });
        }
        if self.next_op <= written {
            self.place = Some(self.seek()?);
        }
        Ok(())
    }

    /// First op of the entry that comes next.
    #[must_use]
    pub fn position(&self) -> OpId {
        self.next_op
    }

    /// Finds the segment and the offset of the entry that begins at `next_op`, which is not above the log's end.
    fn seek(&self) -> Result<Place, ReadError> {
        let op = self.next_op;
        let trimmed = || ReadError::Trimmed { oldest: self.log.oldest() };
        let segments = self.log.segments.load();
        let i = segments.partition_point(|s| s.header.first_op <= op);
        let segment = i.checked_sub(1).and_then(|i| segments.get(i)).cloned().ok_or_else(trimmed)?;
        if segment.last_op() < op {
            return Err(ReadError::Ahead { written: self.log.written() });
        }
        let file = match segment.file() {
            Ok(file) => file,
            // The cleaner was faster; it moves the oldest position first.
            Err(_) if op < self.log.oldest() => return Err(trimmed()),
            Err(e) => return Err(e.into()),
        };
        if segment.header.first_op == op {
            return Ok(Place { segment, file, offset: SEGMENT_HEADER_LEN as u64 });
        }
        let (from, first) = segment.point_before(op)?;
        let mut hit = None;
        let seen = walk(file.as_ref(), &segment.path, from..segment.end(), first, |header, offset| {
            if header.last_op() < op {
                return true;
            }
            hit = Some((header.first_op(), header.last_op(), offset));
            false
        })?;
        match (hit, seen.error) {
            (Some((first, _, offset)), _) if first == op => Ok(Place { segment, file, offset }),
            (Some((entry_first, entry_last, _)), _) => {
                Err(ReadError::NotABoundary { op, entry_first, entry_last })
            }
            (None, Some(error)) => Err(segment.damaged(seen.end, error).into()),
            (None, None) => Err(ReadError::Ahead { written: self.log.written() }),
        }
    }

    /// Appends whole plain entries to `out`, up to about `max_bytes` and at least one, with checked checksums; returns
    /// the first and last op id, or `None` at the end of the log.
    ///
    /// # Errors
    /// [`ReadError::Trimmed`] where the cleaner has been faster or the log has started anew,
    /// [`ReadError::Ahead`] where what was read last has been cut off, or damage. `out` and the position are then
    /// unchanged.
    pub fn next(&mut self, max_bytes: usize, out: &mut Vec<u8>) -> Result<Option<(OpId, OpId)>, ReadError> {
        self.next_as(true, max_bytes, out)
    }

    /// As [`Self::next`], but compressed entries come as they are stored, with the checksum of that looked at.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn next_stored(
        &mut self,
        max_bytes: usize,
        out: &mut Vec<u8>,
    ) -> Result<Option<(OpId, OpId)>, ReadError> {
        self.next_as(false, max_bytes, out)
    }

    fn next_as(
        &mut self,
        plain: bool,
        max_bytes: usize,
        out: &mut Vec<u8>,
    ) -> Result<Option<(OpId, OpId)>, ReadError> {
        let start = out.len();
        loop {
            self.follow_rewinds()?;
            let from = self.next_op;
            let read = self.read(plain, max_bytes, start, out);
            if self.log.rewind_count() == self.rewinds {
                return read.map_err(|e| {
                    out.truncate(start);
                    self.explain(e)
                });
            }
            // The log was moved back under the read, which may have seen the old bytes, the new or both.
            out.truncate(start);
            self.next_op = from;
        }
    }

    /// Bytes that a cut has taken while it could not be finished are no damage.
    fn explain(&self, e: ReadError) -> ReadError {
        match e {
            ReadError::Store(StoreError::Damaged { .. }) if self.log.cutting.load(Ordering::SeqCst) => {
                StoreError::Poisoned("a cut is not finished".to_owned()).into()
            }
            e => e,
        }
    }

    /// Goes on after backward moves of the log, where what was read so far is still part of it.
    fn follow_rewinds(&mut self) -> Result<(), ReadError> {
        let count = self.log.rewind_count();
        if count == self.rewinds {
            return Ok(());
        }
        match self.log.rewound_since(self.rewinds) {
            Some(0) => Err(ReadError::Trimmed { oldest: self.log.oldest() }),
            Some(floor) if self.next_op > floor + 1 => Err(ReadError::Ahead { written: floor }),
            _ => {
                self.rewinds = count;
                self.place = None;
                Ok(())
            }
        }
    }

    fn read(
        &mut self,
        plain: bool,
        max_bytes: usize,
        start: usize,
        out: &mut Vec<u8>,
    ) -> Result<Option<(OpId, OpId)>, ReadError> {
        let written = self.log.written();
        if self.next_op > written {
            return Ok(None);
        }
        let here = self.place.take().filter(|p| self.next_op <= p.segment.last_op());
        let mut place = match here {
            Some(place) => place,
            None if self.next_op < self.log.oldest() => {
                return Err(ReadError::Trimmed { oldest: self.log.oldest() });
            }
            None => self.seek()?,
        };
        let first = self.next_op;
        let unpack = plain.then_some(&mut self.unpack);
        let filled = place.fill(unpack, max_bytes, start, out, first..written + 1);
        self.place = Some(place);
        let next = filled?;
        self.next_op = next;
        Ok((next > first).then(|| (first, next - 1)))
    }
}

impl Place {
    /// Reads entries within `ops`, the first of which begins where it does; returns the op id that follows. Damage
    /// behind whole entries is left for the next call. With `unpack` what is compressed comes out plain.
    fn fill(
        &mut self,
        mut unpack: Option<&mut Unpack>,
        max_bytes: usize,
        start: usize,
        out: &mut Vec<u8>,
        ops: Range<OpId>,
    ) -> Result<OpId, StoreError> {
        let mut next = ops.start;
        let end = self.segment.end();
        let packed = unpack.as_deref_mut().is_some_and(|u| std::mem::take(&mut u.seen));
        let mut want = (max_bytes / if packed { PACKED_PART } else { 1 }).max(LEAST);
        loop {
            let room = usize::try_from(end.saturating_sub(self.offset)).unwrap_or(usize::MAX).min(want);
            out.resize(start + room, 0);
            let n = self
                .file
                .read_at(out.get_mut(start..).unwrap_or_default(), self.offset)
                .map_err(|e| StoreError::io("reading", &self.segment.path, e))?;
            let (mut used, mut longer) = (0, false);
            let error = loop {
                match decode_stored(out.get(start + used..start + n).unwrap_or_default()) {
                    // More than the log counts as written: a cut that could not be finished.
                    Ok(Stored::Entry(e)) if e.header.last_op() >= ops.end => {
                        out.truncate(start + used);
                        self.offset += used as u64;
                        return Ok(next);
                    }
                    Ok(Stored::Entry(e)) if e.header.first_op() != next => {
                        let got = e.header.first_op();
                        break FormatError::Value { field: "op id out of order", got };
                    }
                    Ok(Stored::Entry(e)) => {
                        if let Some(unpack) = unpack.as_deref_mut().filter(|_| e.header.codec.is_some()) {
                            unpack.seen = true;
                            if used == 0 {
                                unpack.stored.clear();
                                unpack
                                    .stored
                                    .extend_from_slice(out.get(start..start + n).unwrap_or_default());
                                out.truncate(start);
                                return self.unpack(unpack, max_bytes, out, ops);
                            }
                            // Plain ones stand before it.
                            out.truncate(start + used);
                            self.offset += used as u64;
                            return Ok(next);
                        }
                        next = e.header.last_op() + 1;
                        used += e.frame.len();
                    }
                    Ok(Stored::Incomplete { needed }) => {
                        if used == 0 && n == room && self.offset + needed <= end {
                            // Longer than was asked for: whole, then.
                            want = usize::try_from(needed).unwrap_or(usize::MAX);
                            longer = true;
                        }
                        let got = (n - used) as u64;
                        break FormatError::Short { what: "entry", needed, got };
                    }
                    Err(e) => break e,
                }
            };
            if used > 0 {
                out.truncate(start + used);
                self.offset += used as u64;
                return Ok(next);
            }
            if !longer {
                return Err(self.segment.damaged(self.offset, error));
            }
        }
    }

    /// As [`Self::fill`], of entries that were read already and of which the first is known to be whole.
    fn unpack(
        &mut self,
        unpack: &mut Unpack,
        max_bytes: usize,
        out: &mut Vec<u8>,
        ops: Range<OpId>,
    ) -> Result<OpId, StoreError> {
        let Unpack { unpacker, stored, .. } = unpack;
        let (start, mut next, mut used) = (out.len(), ops.start, 0);
        while let Ok(Stored::Entry(e)) = decode_stored(stored.get(used..).unwrap_or_default()) {
            let fits = e.header.first_op() == next && e.header.last_op() < ops.end;
            if !fits || (used > 0 && out.len() - start >= max_bytes) {
                break;
            }
            match unpacker.unpack(&e, out) {
                Ok(()) => {}
                Err(_) if used > 0 => break,
                Err(error) => return Err(self.segment.damaged(self.offset, error)),
            }
            next = e.header.last_op() + 1;
            used += e.frame.len();
        }
        self.offset += used as u64;
        if stored.capacity() > KEEP {
            *stored = Vec::new();
        }
        Ok(next)
    }
}
