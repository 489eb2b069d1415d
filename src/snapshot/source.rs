//! The file side of the reader: own buffer, CRC64 of everything read, and the raw bytes of the event that is
//! being read.

use std::io::Read;

use super::crc64::Crc64;
use super::error::SnapshotError;
use super::input::{Input, Take};

const BUFFER: usize = 128 * 1024;

/// A raw buffer larger than this is given back once a small event follows.
const KEEP_RAW: usize = 8 * 1024 * 1024;

pub(super) struct Source<R> {
    inner: R,
    buffer: Vec<u8>,
    pos: usize,
    end: usize,
    /// Offset in the file of `buffer[0]`.
    base: u64,
    crc: Crc64,
    /// Bytes of the buffer that the CRC64 has.
    summed: usize,
    raw: Vec<u8>,
    /// Bytes of the buffer that `raw` has, or that precede it.
    recorded: usize,
    /// Most bytes of one event that are kept.
    keep: usize,
    /// The event has more than that: `raw` is its beginning.
    beyond: bool,
}

impl<R: Read> Source<R> {
    pub(super) fn new(inner: R) -> Self {
        Self {
            inner,
            buffer: vec![0; BUFFER],
            pos: 0,
            end: 0,
            base: 0,
            crc: Crc64::new(),
            summed: 0,
            raw: Vec::new(),
            recorded: 0,
            keep: usize::MAX,
            beyond: false,
        }
    }

    /// Keeps at most so many bytes of an event, and at least what it had when it began.
    pub(super) fn keep_at_most(&mut self, bytes: usize) {
        self.keep = bytes;
    }

    /// Reads what follows as part of something that starts at `offset`.
    pub(super) fn at(inner: R, offset: u64) -> Self {
        Self { base: offset, keep: 0, ..Self::new(inner) }
    }

    /// What it reads from; bytes that were read already are lost.
    pub(super) fn into_inner(self) -> R {
        self.inner
    }

    /// Starts to keep the bytes read.
    pub(super) fn begin(&mut self) {
        if self.raw.capacity() > KEEP_RAW {
            self.raw = Vec::new();
        }
        self.raw.clear();
        self.recorded = self.pos;
        self.beyond = false;
    }

    /// The kept bytes are complete.
    pub(super) fn finish(&mut self) {
        let more = self.buffer.get(self.recorded..self.pos).unwrap_or_default();
        self.recorded = self.pos;
        self.beyond |= self.raw.len().saturating_add(more.len()) > self.keep;
        if !self.beyond {
            self.raw.extend_from_slice(more);
        }
    }

    /// The bytes kept between the last [`begin`](Self::begin) and [`finish`](Self::finish).
    pub(super) fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// CRC64 of every byte read so far.
    pub(super) fn crc(&mut self) -> u64 {
        self.crc.update(self.buffer.get(self.summed..self.pos).unwrap_or_default());
        self.summed = self.pos;
        self.crc.value()
    }

    /// Whether no byte is left.
    pub(super) fn at_end(&mut self) -> Result<bool, SnapshotError> {
        Ok(self.pos == self.end && !self.fill()?)
    }

    /// Reads on once the buffer is used up; false at the end of the file.
    fn fill(&mut self) -> Result<bool, SnapshotError> {
        self.crc();
        self.finish();
        self.base = self.offset();
        (self.pos, self.end, self.summed, self.recorded) = (0, 0, 0, 0);
        loop {
            match self.inner.read(&mut self.buffer) {
                Ok(n) => {
                    self.end = n.min(self.buffer.len());
                    return Ok(n > 0);
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => return Err(SnapshotError::Io { offset: self.base, source }),
            }
        }
    }
}

impl<R> std::fmt::Debug for Source<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a file at {}", self.base.saturating_add(self.pos as u64))
    }
}

impl<R: Read> Input for Source<R> {
    fn offset(&self) -> u64 {
        self.base.saturating_add(self.pos as u64)
    }

    fn byte(&mut self) -> Result<u8, SnapshotError> {
        if self.pos == self.end && !self.fill()? {
            return Err(SnapshotError::Truncated { offset: self.offset() });
        }
        let byte = self.buffer.get(self.pos).copied().unwrap_or_default();
        self.pos += 1;
        Ok(byte)
    }

    fn skip(&mut self, mut n: u64) -> Result<(), SnapshotError> {
        loop {
            let here = (self.end - self.pos) as u64;
            if n <= here {
                // At most `here`, so it fits.
                self.pos += n as usize;
                return Ok(());
            }
            n -= here;
            self.pos = self.end;
            if !self.fill()? {
                return Err(SnapshotError::Truncated { offset: self.offset() });
            }
        }
    }
}

impl<R: Read> Take for Source<R> {
    fn take_vec(&mut self, n: u64) -> Result<Vec<u8>, SnapshotError> {
        let mut left = usize::try_from(n).unwrap_or(usize::MAX);
        let mut out = Vec::with_capacity(left.min(BUFFER));
        while left > 0 {
            if self.pos == self.end && !self.fill()? {
                return Err(SnapshotError::Truncated { offset: self.offset() });
            }
            let here = left.min(self.end - self.pos);
            out.extend_from_slice(self.buffer.get(self.pos..self.pos + here).unwrap_or_default());
            self.pos += here;
            left -= here;
        }
        Ok(out)
    }

    fn is_at_end(&mut self) -> Result<bool, SnapshotError> {
        self.at_end()
    }
}
