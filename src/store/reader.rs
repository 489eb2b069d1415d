//! Reads entries in order, across segments, while they are appended and removed.

use std::sync::atomic::Ordering;
use std::sync::Arc;

use oplog_format::{decode_entry, Decoded, FormatError, OpId};

use super::error::{ReadError, StoreError};
use super::log::Log;
use super::segment::Segment;

/// Bytes read at least while an entry is looked for.
const SEEK_STEP: usize = 128 * 1024;

/// A position in the log that moves forward. Holds its segment's file open, so that a cleaner that removes the
/// name takes nothing from it.
pub struct LogReader {
    log: Arc<Log>,
    segment: Option<Arc<Segment>>,
    offset: u64,
    next_op: OpId,
}

impl LogReader {
    pub(super) fn open(log: Arc<Log>, from: OpId) -> Result<Self, ReadError> {
        let (oldest, written) = (log.oldest(), log.written());
        if from < oldest {
            return Err(ReadError::Trimmed { oldest });
        }
        if from > written + 1 {
            return Err(ReadError::Ahead { written });
        }
        let mut reader = Self { log, segment: None, offset: 0, next_op: from };
        if from <= written {
            reader.seek()?;
        }
        Ok(reader)
    }

    /// First op of the entry that comes next.
    #[must_use]
    pub fn position(&self) -> OpId {
        self.next_op
    }

    /// Finds the segment and the offset of the entry that begins at `next_op`.
    fn seek(&mut self) -> Result<(), ReadError> {
        let segments = self.log.segments.load();
        let i = segments.partition_point(|s| s.header.first_op <= self.next_op);
        let segment = i.checked_sub(1).and_then(|i| segments.get(i)).cloned();
        let Some(segment) = segment else {
            return Err(ReadError::Trimmed { oldest: self.log.oldest() });
        };
        if segment.last_op.load(Ordering::Acquire) < self.next_op {
            return Err(ReadError::Ahead { written: self.log.written() });
        }
        let mut offset = segment.offset_before(self.next_op)?;
        let end = segment.end.load(Ordering::Acquire);
        let mut buf = Vec::new();
        while offset < end {
            let n = read_some(&segment, offset, end, SEEK_STEP, &mut buf)?;
            let mut used = 0;
            while let Decoded::Entry(e) = decode(&segment, offset, &buf, used, n)? {
                let (first, last) = (e.header.first_op(), e.header.meta.last_op);
                if first == self.next_op {
                    self.offset = offset + used as u64;
                    self.segment = Some(segment);
                    return Ok(());
                }
                if last >= self.next_op {
                    let op = self.next_op;
                    return Err(ReadError::NotABoundary { op, entry_first: first, entry_last: last });
                }
                used += e.frame.len();
            }
            offset += used as u64;
        }
        Err(ReadError::Ahead { written: self.log.written() })
    }

    /// Appends whole entries to `out`, up to about `max_bytes` and at least one, with checked checksums; returns
    /// the first and last op id, or `None` at the end of the log.
    ///
    /// # Errors
    /// [`ReadError::Trimmed`] where the cleaner has been faster, or damage.
    pub fn next(&mut self, max_bytes: usize, out: &mut Vec<u8>) -> Result<Option<(OpId, OpId)>, ReadError> {
        let written = self.log.written();
        if self.next_op > written {
            return Ok(None);
        }
        let segment = match &self.segment {
            Some(s) if self.next_op <= s.last_op.load(Ordering::Acquire) => Arc::clone(s),
            _ => {
                if self.next_op < self.log.oldest() {
                    return Err(ReadError::Trimmed { oldest: self.log.oldest() });
                }
                self.seek()?;
                match &self.segment {
                    Some(s) => Arc::clone(s),
                    None => return Ok(None),
                }
            }
        };
        let end = segment.end.load(Ordering::Acquire);
        let start = out.len();
        let mut buf = std::mem::take(out);
        let result = self.fill(&segment, end, max_bytes, start, &mut buf);
        *out = buf;
        match result {
            Ok(range) => Ok(range),
            Err(e) => {
                out.truncate(start);
                Err(e)
            }
        }
    }

    fn fill(
        &mut self,
        segment: &Arc<Segment>,
        end: u64,
        max_bytes: usize,
        start: usize,
        out: &mut Vec<u8>,
    ) -> Result<Option<(OpId, OpId)>, ReadError> {
        let mut want = max_bytes.max(SEEK_STEP / 8);
        loop {
            let room = usize::try_from(end.saturating_sub(self.offset)).unwrap_or(usize::MAX).min(want);
            out.resize(start + room, 0);
            let n = segment
                .file
                .read_at(out.get_mut(start..).unwrap_or_default(), self.offset)
                .map_err(|e| StoreError::io("reading", &segment.path, e))?;
            let first = self.next_op;
            let mut used = 0;
            loop {
                let rest = out.get(start + used..start + n).unwrap_or_default();
                if rest.is_empty() {
                    break;
                }
                match decode_entry(rest).map_err(|e| damaged(segment, self.offset + used as u64, e))? {
                    Decoded::Entry(e) => {
                        let got = e.header.first_op();
                        if got != self.next_op {
                            let error = FormatError::Value { field: "op id out of order", got };
                            return Err(damaged(segment, self.offset + used as u64, error).into());
                        }
                        self.next_op = e.header.meta.last_op + 1;
                        used += e.frame.len();
                    }
                    Decoded::Incomplete { needed } => {
                        let at = self.offset + used as u64;
                        if at + needed > end {
                            let error = FormatError::Short { what: "entry", needed, got: end - at };
                            return Err(damaged(segment, at, error).into());
                        }
                        if used == 0 {
                            want = usize::try_from(needed).unwrap_or(usize::MAX);
                        }
                        break;
                    }
                }
            }
            if used > 0 {
                out.truncate(start + used);
                self.offset += used as u64;
                return Ok(Some((first, self.next_op - 1)));
            }
            if n < room || room == 0 {
                let error = FormatError::Short { what: "segment", needed: end, got: self.offset + n as u64 };
                return Err(damaged(segment, self.offset, error).into());
            }
        }
    }
}

fn damaged(segment: &Segment, offset: u64, error: FormatError) -> StoreError {
    StoreError::Damaged { path: segment.path.clone(), offset, error }
}

/// Reads at least one whole entry, or what is left.
fn read_some(
    segment: &Segment,
    offset: u64,
    end: u64,
    step: usize,
    buf: &mut Vec<u8>,
) -> Result<usize, StoreError> {
    let mut want = step;
    loop {
        let room = usize::try_from(end - offset).unwrap_or(usize::MAX).min(want);
        buf.resize(room, 0);
        let n = segment.file.read_at(buf, offset).map_err(|e| StoreError::io("reading", &segment.path, e))?;
        match decode_entry(buf.get(..n).unwrap_or_default()).map_err(|e| damaged(segment, offset, e))? {
            Decoded::Entry(_) => return Ok(n),
            Decoded::Incomplete { needed } if offset + needed <= end && n == room => {
                want = usize::try_from(needed).unwrap_or(usize::MAX);
            }
            Decoded::Incomplete { needed } => {
                let error = FormatError::Short { what: "entry", needed, got: end - offset };
                return Err(damaged(segment, offset, error));
            }
        }
    }
}

fn decode<'a>(
    segment: &Segment,
    offset: u64,
    buf: &'a [u8],
    used: usize,
    n: usize,
) -> Result<Decoded<'a>, StoreError> {
    match buf.get(used..n).filter(|r| !r.is_empty()) {
        Some(rest) => decode_entry(rest).map_err(|e| damaged(segment, offset + used as u64, e)),
        None => Ok(Decoded::Incomplete { needed: 0 }),
    }
}
