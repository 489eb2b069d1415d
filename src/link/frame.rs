//! Frames: the unit on the wire. The byte table is in `docs/protocol.md`.
//!
//! The header has a checksum of its own, so that a damaged length is seen before anything is allocated for it,
//! and bodies grow with the bytes that arrive, so that a lying length costs its sender the bytes.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use oplog_format::FormatError;

use super::error::LinkError;
use super::stream::Stream;

/// First four bytes of a frame.
pub const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"DRl1");
/// Length of the header before the body.
pub const FRAME_HEADER_LEN: usize = 20;

const MAGIC: usize = 0;
const KIND: usize = 4;
const FLAGS: usize = 5;
const RESERVED: usize = 6;
const BODY_LEN: usize = 8;
const BODY_CRC: usize = 12;
const HEADER_CRC: usize = 16;

/// Longest body before the other side is authenticated.
pub const MAX_GREETING: u32 = 4 * 1024;
/// Longest control message afterwards; a full lineage takes about 58 KB.
pub const MAX_CONTROL: u32 = 128 * 1024;
/// Longest chunk of a snapshot.
pub const MAX_CHUNK: u32 = 1024 * 1024;
/// Longest run of entries: one entry may be as long as its format allows.
pub const MAX_ENTRIES: u32 = u32::MAX;

/// A body buffer above this is given back once a shorter frame follows.
const KEEP_BODY: usize = 4 * 1024 * 1024;
/// Bytes of small frames read from the socket at once.
const SMALL: usize = 64 * 1024;
/// Bytes of a long body read from the socket at once, and the step in which its buffer grows.
const READ_STEP: usize = 256 * 1024;

/// How often a wait looks whether it is to stop.
const WAIT_STEP: Duration = Duration::from_millis(100);

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// The target's first message.
    TargetGreeting = 1,
    /// The source's answer to it.
    SourceGreeting = 2,
    /// Proof that the sender knows the secret.
    Proof = 3,
    /// Where the target stands.
    Hello = 4,
    /// Where the source stands, and what it can offer.
    Answer = 5,
    /// What the target wants.
    Want = 6,
    /// Sign of life of the source.
    Heartbeat = 7,
    /// Sign of life of the target, with its positions.
    Ack = 8,
    /// Whole entries, as stored.
    Entries = 9,
    /// A new history begins with the next entry.
    History = 10,
    /// A snapshot follows.
    SnapshotMeta = 11,
    /// Bytes of the snapshot.
    SnapshotChunk = 12,
    /// The snapshot is complete.
    SnapshotEnd = 13,
    /// The sender refuses to go on, with its reason.
    Refused = 14,
}

impl FrameKind {
    /// The kind of a type byte.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::TargetGreeting,
            2 => Self::SourceGreeting,
            3 => Self::Proof,
            4 => Self::Hello,
            5 => Self::Answer,
            6 => Self::Want,
            7 => Self::Heartbeat,
            8 => Self::Ack,
            9 => Self::Entries,
            10 => Self::History,
            11 => Self::SnapshotMeta,
            12 => Self::SnapshotChunk,
            13 => Self::SnapshotEnd,
            14 => Self::Refused,
            _ => return None,
        })
    }

    /// Longest body of this kind.
    #[must_use]
    pub fn max_len(self) -> u32 {
        match self {
            Self::TargetGreeting | Self::SourceGreeting | Self::Proof | Self::Refused => MAX_GREETING,
            Self::Heartbeat | Self::Ack | Self::History | Self::SnapshotEnd => MAX_GREETING,
            Self::Hello | Self::Answer | Self::Want | Self::SnapshotMeta => MAX_CONTROL,
            Self::SnapshotChunk => MAX_CHUNK,
            Self::Entries => MAX_ENTRIES,
        }
    }
}

/// A decoded frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// What follows.
    pub kind: FrameKind,
    /// Its length in bytes.
    pub body_len: u32,
    /// Its checksum.
    pub body_crc: u32,
}

fn u32_at(buf: &[u8], at: usize) -> u32 {
    buf.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

impl FrameHeader {
    /// The header of a frame with the body `parts`, one behind the other.
    ///
    /// # Errors
    /// [`LinkError::TooLong`] where the body is longer than its kind may be.
    pub fn of(kind: FrameKind, parts: &[&[u8]]) -> Result<Self, LinkError> {
        let len: usize = parts.iter().map(|p| p.len()).sum();
        let max = kind.max_len();
        let body_len = u32::try_from(len).ok().filter(|n| *n <= max).ok_or(LinkError::TooLong {
            kind: kind as u8,
            len: len as u64,
            max: u64::from(max),
        })?;
        let mut crc = crc32fast::Hasher::new();
        parts.iter().for_each(|p| crc.update(p));
        Ok(Self { kind, body_len, body_crc: crc.finalize() })
    }

    /// The bytes of the header.
    #[must_use]
    pub fn encode(&self) -> [u8; FRAME_HEADER_LEN] {
        let mut out = [0u8; FRAME_HEADER_LEN];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(slot) = out.get_mut(at..at + bytes.len()) {
                slot.copy_from_slice(bytes);
            }
        };
        put(MAGIC, &FRAME_MAGIC.to_le_bytes());
        put(KIND, &[self.kind as u8]);
        put(BODY_LEN, &self.body_len.to_le_bytes());
        put(BODY_CRC, &self.body_crc.to_le_bytes());
        let crc = crc32fast::hash(out.get(..HEADER_CRC).unwrap_or_default());
        if let Some(slot) = out.get_mut(HEADER_CRC..) {
            slot.copy_from_slice(&crc.to_le_bytes());
        }
        out
    }

    /// Reads a header; `None` below [`FRAME_HEADER_LEN`] bytes.
    ///
    /// # Errors
    /// [`LinkError::Damaged`] where the bytes are no header.
    pub fn decode(buf: &[u8]) -> Result<Option<Self>, LinkError> {
        let magic = FRAME_MAGIC.to_le_bytes();
        let seen = buf.len().min(magic.len());
        if buf.get(..seen) != magic.get(..seen) {
            let mut got = [0u8; 4];
            got.iter_mut().zip(buf).for_each(|(g, b)| *g = *b);
            let got = u64::from(u32::from_le_bytes(got));
            return Err(FormatError::Magic { what: "link frame", got }.into());
        }
        let Some(header) = buf.get(..FRAME_HEADER_LEN) else { return Ok(None) };
        let stored = u32_at(header, HEADER_CRC);
        let computed = crc32fast::hash(header.get(..HEADER_CRC).unwrap_or_default());
        if stored != computed {
            return Err(FormatError::Crc { what: "link frame header", stored, computed }.into());
        }
        let byte = header.get(KIND).copied().unwrap_or_default();
        let value = |field, got| LinkError::from(FormatError::Value { field, got });
        let kind = FrameKind::from_byte(byte).ok_or(value("link frame type", u64::from(byte)))?;
        let rest = header.get(FLAGS..BODY_LEN).unwrap_or_default();
        debug_assert_eq!(FLAGS + 1, RESERVED);
        if let Some(odd) = rest.iter().find(|b| **b != 0) {
            return Err(value("link frame flags", u64::from(*odd)));
        }
        let body_len = u32_at(header, BODY_LEN);
        let max = kind.max_len();
        if body_len > max {
            return Err(LinkError::TooLong { kind: byte, len: u64::from(body_len), max: u64::from(max) });
        }
        Ok(Some(Self { kind, body_len, body_crc: u32_at(header, BODY_CRC) }))
    }
}

/// What may come at a point of the protocol; anything else is refused before its body is read.
#[derive(Debug, Clone, Copy)]
pub struct Expect {
    /// Name of the point, for messages.
    pub during: &'static str,
    /// The kinds that have a place there.
    pub kinds: &'static [FrameKind],
}

/// Reads frames from a stream, also in pieces.
#[derive(Debug)]
pub struct FrameReader {
    stream: Stream,
    expect: Expect,
    /// Bytes that are not looked at yet stand in `start..end`.
    buf: Vec<u8>,
    start: usize,
    end: usize,
    header: Option<FrameHeader>,
    /// The body stands in `..filled`; what is behind is room for more.
    body: Vec<u8>,
    filled: usize,
    heard: Instant,
}

impl FrameReader {
    /// A reader that accepts `expect` first.
    #[must_use]
    pub fn new(stream: Stream, expect: Expect) -> Self {
        Self {
            stream,
            expect,
            buf: vec![0; SMALL],
            start: 0,
            end: 0,
            header: None,
            body: Vec::new(),
            filled: 0,
            heard: Instant::now(),
        }
    }

    /// From now on `expect` has a place.
    pub fn expect(&mut self, expect: Expect) {
        self.expect = expect;
    }

    /// The body of the frame that [`Self::poll`] returned last.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        self.body.get(..self.filled).unwrap_or_default()
    }

    /// When bytes came last.
    #[must_use]
    pub fn heard(&self) -> Instant {
        self.heard
    }

    /// Whether bytes of a further frame are here already.
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.start < self.end || self.header.is_some()
    }

    /// Reads until a frame is whole (`Some`) or the stream's read timeout passes (`None`); a frame that is
    /// here in part goes on with the next call.
    ///
    /// # Errors
    /// [`LinkError::Closed`], [`LinkError::Io`], or a variant that says what is wrong with the frame.
    pub fn poll(&mut self) -> Result<Option<FrameKind>, LinkError> {
        loop {
            let Some(header) = self.header else {
                match FrameHeader::decode(self.pending())? {
                    Some(header) => self.begin(header)?,
                    None if !self.fill()? => return Ok(None),
                    None => {}
                }
                continue;
            };
            let missing = (header.body_len as usize).saturating_sub(self.filled);
            if missing == 0 {
                return self.finish(header).map(Some);
            }
            let take = (self.end - self.start).min(missing);
            if take > 0 {
                self.make_room(missing);
                let take = take.min(self.body.len() - self.filled);
                let from = self.buf.get(self.start..self.start + take);
                let to = self.body.get_mut(self.filled..self.filled + take);
                if let (Some(from), Some(to)) = (from, to) {
                    to.copy_from_slice(from);
                }
                self.start += take;
                self.filled += take;
            } else if !self.read_body(missing)? {
                return Ok(None);
            }
        }
    }

    fn pending(&self) -> &[u8] {
        self.buf.get(self.start..self.end).unwrap_or_default()
    }

    /// Room in the body for some of what is missing: never much more than what has arrived.
    fn make_room(&mut self, missing: usize) {
        if self.filled == self.body.len() {
            self.body.resize(self.filled + missing.min(READ_STEP), 0);
        }
    }

    fn begin(&mut self, header: FrameHeader) -> Result<(), LinkError> {
        if !self.expect.kinds.contains(&header.kind) {
            return Err(LinkError::Unexpected { kind: header.kind as u8, during: self.expect.during });
        }
        self.start += FRAME_HEADER_LEN;
        self.filled = 0;
        if self.body.len() > KEEP_BODY && (header.body_len as usize) < KEEP_BODY {
            self.body = Vec::new();
        }
        self.header = Some(header);
        Ok(())
    }

    fn finish(&mut self, header: FrameHeader) -> Result<FrameKind, LinkError> {
        self.header = None;
        let computed = crc32fast::hash(self.body());
        if computed != header.body_crc {
            let stored = header.body_crc;
            return Err(FormatError::Crc { what: "link frame", stored, computed }.into());
        }
        Ok(header.kind)
    }

    /// Reads into the small buffer; false on a timeout.
    fn fill(&mut self) -> Result<bool, LinkError> {
        self.buf.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let room = self.buf.get_mut(self.end..).unwrap_or_default();
        let read = read_some(&mut self.stream, room, &mut self.heard)?;
        self.end += read.unwrap_or_default();
        Ok(read.is_some())
    }

    /// Reads straight into the body; false on a timeout.
    fn read_body(&mut self, missing: usize) -> Result<bool, LinkError> {
        if missing < SMALL {
            return self.fill();
        }
        self.make_room(missing);
        let end = self.body.len().min(self.filled + missing);
        let room = self.body.get_mut(self.filled..end).unwrap_or_default();
        let read = read_some(&mut self.stream, room, &mut self.heard)?;
        self.filled += read.unwrap_or_default();
        Ok(read.is_some())
    }

    /// Waits for a frame until `deadline`, or until `stop` becomes true.
    ///
    /// # Errors
    /// [`LinkError::Silent`] at the deadline, [`LinkError::Stopped`], and what [`Self::poll`] returns.
    pub fn wait(&mut self, deadline: Instant, stop: &AtomicBool) -> Result<FrameKind, LinkError> {
        let begun = Instant::now();
        loop {
            if stop.load(Ordering::Acquire) {
                return Err(LinkError::Stopped);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                return Err(LinkError::Silent { ms });
            }
            self.stream.set_read_timeout(left.min(WAIT_STEP))?;
            if let Some(kind) = self.poll()? {
                return Ok(kind);
            }
        }
    }

    /// Sets how long [`Self::poll`] waits.
    ///
    /// # Errors
    /// What the socket said.
    pub fn set_tick(&self, tick: Duration) -> Result<(), LinkError> {
        Ok(self.stream.set_read_timeout(tick)?)
    }
}

/// Reads what is there; `None` on a timeout.
fn read_some(stream: &mut Stream, to: &mut [u8], heard: &mut Instant) -> Result<Option<usize>, LinkError> {
    loop {
        match stream.read(to) {
            Ok(0) => return Err(LinkError::Closed),
            Ok(n) => {
                *heard = Instant::now();
                return Ok(Some(n));
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Ok(None)
            }
            Err(e) => return Err(e.into()),
        }
    }
}

/// What is left of `parts` behind their first `done` bytes.
fn behind<'a>(parts: &[&'a [u8]], mut done: usize) -> Vec<io::IoSlice<'a>> {
    let mut left = Vec::with_capacity(parts.len());
    for part in parts {
        let skip = done.min(part.len());
        done -= skip;
        left.push(io::IoSlice::new(part.get(skip..).unwrap_or_default()));
    }
    left.retain(|s| !s.is_empty());
    left
}

/// Writes frames to a stream.
#[derive(Debug)]
pub struct FrameWriter {
    stream: Stream,
    timeout: Duration,
}

impl FrameWriter {
    /// A writer that gives up when the other side takes nothing for `timeout`.
    ///
    /// # Errors
    /// What the socket said.
    pub fn new(stream: Stream, timeout: Duration) -> Result<Self, LinkError> {
        stream.set_write_timeout(timeout)?;
        Ok(Self { stream, timeout })
    }

    /// From now on gives up after `timeout`.
    ///
    /// # Errors
    /// What the socket said.
    pub fn set_timeout(&mut self, timeout: Duration) -> Result<(), LinkError> {
        self.timeout = timeout;
        Ok(self.stream.set_write_timeout(timeout)?)
    }

    /// Writes one frame whose body is `parts`, one behind the other.
    ///
    /// # Errors
    /// [`LinkError::Silent`] where the other side takes nothing any more, [`LinkError::Io`], or
    /// [`LinkError::TooLong`] with nothing written.
    pub fn write(&mut self, kind: FrameKind, parts: &[&[u8]]) -> Result<(), LinkError> {
        let header = FrameHeader::of(kind, parts)?.encode();
        let mut all: Vec<&[u8]> = Vec::with_capacity(parts.len() + 1);
        all.push(&header);
        all.extend_from_slice(parts);
        let total: usize = all.iter().map(|p| p.len()).sum();
        let mut done = 0;
        while done < total {
            match self.stream.write_vectored(&behind(&all, done)) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    let ms = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
                    return Err(LinkError::Silent { ms });
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_back_and_every_flip_is_seen() {
        let header = FrameHeader::of(FrameKind::Hello, &[b"ab", b"c"]).unwrap();
        let bytes = header.encode();
        assert_eq!(FrameHeader::decode(&bytes).unwrap(), Some(header));
        for n in 0..bytes.len() {
            assert_eq!(FrameHeader::decode(&bytes[..n]).unwrap(), None, "prefix {n}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(FrameHeader::decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn kinds_and_bytes_agree() {
        for byte in 0..=255u8 {
            if let Some(kind) = FrameKind::from_byte(byte) {
                assert_eq!(kind as u8, byte);
            }
        }
    }

    #[test]
    fn a_body_beyond_its_kind_is_not_written() {
        let body = vec![0u8; MAX_GREETING as usize + 1];
        assert!(matches!(FrameHeader::of(FrameKind::Proof, &[&body]), Err(LinkError::TooLong { .. })));
    }
}
