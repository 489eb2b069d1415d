//! Compressed entries: how an entry may stand in a log and on a link, and nowhere else.
//!
//! The frame of a compressed entry is the header of the plain one with a codec in its flags, the length and the
//! checksum of what is stored, and the compressed payload. The checksum of the plain entry stays in the header, so
//! that what comes out is the very frame that went in, and is checked by the checksum that was made where the
//! entry was captured. The checksum of the stored bytes tells damage without decompressing, and covers all lengths
//! before anything relies on them.

use std::borrow::Cow;

use zstd_safe::{zstd_sys::ZSTD_EndDirective, CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer};
use zstd_safe::{ErrorCode, ResetDirective};

use crate::bytes::u32_at;
use crate::entry::{decode_entry, may_begin_entry, Decoded, EntryHeader, EntryRef, ENTRY_HEADER_LEN, FLAGS};
use crate::error::FormatError;
use crate::position::OpId;

/// Length of the header of a compressed entry.
pub const PACKED_HEADER_LEN: usize = ENTRY_HEADER_LEN + 8;
const STORED_LEN: usize = ENTRY_HEADER_LEN;
const STORED_CRC: usize = ENTRY_HEADER_LEN + 4;

/// Shorter payloads do not gain: 8 bytes of header and about 10 of the codec's go before anything is saved.
const MIN_PAYLOAD: usize = 256;
/// Payloads up to this length are compressed and decompressed at once, longer ones in steps of it.
const STEP: usize = 1 << 20;
/// Of a longer payload this much is tried first.
const PROBE: usize = 128 << 10;
/// After this many entries in a row that did not gain, all but one of as many are left plain untried.
const MAX_SKIP: u32 = 32;
/// Fastest level that still has entropy coding at full strength; see `docs/design.md` for what was measured.
const LEVEL: i32 = 1;
/// Log of the longest window that a decoder makes room for. Level 1 takes up to 19.
const MAX_WINDOW_LOG: u32 = 23;
/// A buffer above this is given back.
const KEEP: usize = 4 << 20;

/// What a payload is compressed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// Zstandard (RFC 8878): one frame, without content size and checksum, without a dictionary.
    Zstd,
}

impl Codec {
    /// All codecs that this build reads, as [`Self::bit`]s.
    pub const READABLE: u32 = Self::Zstd.bit();

    /// Its name in settings and statuses.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
        }
    }

    /// Its value in the flags of an entry.
    #[must_use]
    pub const fn flags(self) -> u8 {
        match self {
            Self::Zstd => 1,
        }
    }

    /// Its bit in a set of codecs.
    #[must_use]
    pub const fn bit(self) -> u32 {
        1 << (self.flags() - 1)
    }

    fn of_flags(flags: u8) -> Result<Option<Self>, FormatError> {
        match flags {
            0 => Ok(None),
            1 => Ok(Some(Self::Zstd)),
            other => Err(FormatError::Value { field: "entry flags", got: u64::from(other) }),
        }
    }
}

/// The header of an entry, plain or compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredHeader {
    /// Header of the plain entry.
    pub header: EntryHeader,
    /// What the payload is compressed by; `None` where it is plain.
    pub codec: Option<Codec>,
    stored_len: u32,
    stored_crc: u32,
}

impl StoredHeader {
    /// Reads a header without looking at what follows.
    ///
    /// # Errors
    /// [`FormatError`] where the bytes are no header; [`FormatError::Short`] where they are too few.
    pub fn decode(buf: &[u8]) -> Result<Self, FormatError> {
        let mut header = EntryHeader::decode_any(buf)?;
        let Some(codec) = Codec::of_flags(std::mem::take(&mut header.meta.flags))? else {
            return Ok(Self { header, codec: None, stored_len: header.payload_len, stored_crc: 0 });
        };
        let (Some(stored_len), Some(stored_crc)) = (u32_at(buf, STORED_LEN), u32_at(buf, STORED_CRC)) else {
            let (needed, got) = (PACKED_HEADER_LEN as u64, buf.len() as u64);
            return Err(FormatError::Short { what: "compressed entry header", needed, got });
        };
        if stored_len == 0 || stored_len >= header.payload_len {
            return Err(FormatError::Value { field: "entry stored length", got: u64::from(stored_len) });
        }
        Ok(Self { header, codec: Some(codec), stored_len, stored_crc })
    }

    /// Length of the header and what follows.
    #[must_use]
    pub fn frame_len(&self) -> u64 {
        let header = if self.codec.is_some() { PACKED_HEADER_LEN } else { ENTRY_HEADER_LEN };
        header as u64 + u64::from(self.stored_len)
    }

    /// Id of the first position in the entry.
    #[must_use]
    pub fn first_op(&self) -> OpId {
        self.header.first_op()
    }

    /// Id of the last op.
    #[must_use]
    pub fn last_op(&self) -> OpId {
        self.header.meta.last_op
    }
}

/// A whole entry within a buffer, as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredRef<'a> {
    /// Its header.
    pub header: StoredHeader,
    /// All of it.
    pub frame: &'a [u8],
}

impl<'a> StoredRef<'a> {
    /// The entry, where it is a plain one.
    #[must_use]
    pub fn plain(&self) -> Option<EntryRef<'a>> {
        let payload = self.frame.get(ENTRY_HEADER_LEN..)?;
        let (header, frame) = (self.header.header, self.frame);
        self.header.codec.is_none().then_some(EntryRef { header, payload, frame })
    }
}

/// What stands at the start of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored<'a> {
    /// A whole entry whose stored bytes have a good checksum.
    Entry(StoredRef<'a>),
    /// The start of one; this many bytes are needed at least.
    Incomplete {
        /// Bytes from the start of the buffer.
        needed: u64,
    },
}

/// Decodes the entry at the start of `buf`, plain or compressed, and checks the checksum of what is stored.
///
/// # Errors
/// [`FormatError`] where the bytes cannot be an entry.
#[inline]
pub fn decode_stored(buf: &[u8]) -> Result<Stored<'_>, FormatError> {
    if buf.get(FLAGS).is_none_or(|flags| *flags == 0) {
        return Ok(match decode_entry(buf)? {
            Decoded::Incomplete { needed } => Stored::Incomplete { needed },
            Decoded::Entry(EntryRef { header, frame, .. }) => {
                let header =
                    StoredHeader { header, codec: None, stored_len: header.payload_len, stored_crc: 0 };
                Stored::Entry(StoredRef { header, frame })
            }
        });
    }
    decode_packed(buf)
}

fn decode_packed(buf: &[u8]) -> Result<Stored<'_>, FormatError> {
    if buf.len() < ENTRY_HEADER_LEN {
        return may_begin_entry(buf).map(|()| Stored::Incomplete { needed: ENTRY_HEADER_LEN as u64 });
    }
    let header = match StoredHeader::decode(buf) {
        Err(FormatError::Short { needed, .. }) => return Ok(Stored::Incomplete { needed }),
        other => other?,
    };
    let needed = header.frame_len();
    let Some(frame) = usize::try_from(needed).ok().and_then(|n| buf.get(..n)) else {
        return Ok(Stored::Incomplete { needed });
    };
    let computed = stored_crc(frame);
    if computed != header.stored_crc {
        return Err(FormatError::Crc { what: "compressed entry", stored: header.stored_crc, computed });
    }
    Ok(Stored::Entry(StoredRef { header, frame }))
}

/// Checksum of everything but itself.
fn stored_crc(frame: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(frame.get(..STORED_CRC).unwrap_or_default());
    crc.update(frame.get(PACKED_HEADER_LEN..).unwrap_or_default());
    crc.finalize()
}

fn codec_failed(code: ErrorCode) -> FormatError {
    FormatError::Compressed { reason: zstd_safe::get_error_name(code) }
}

/// Compresses entries where that is worth it.
pub struct Packer {
    codec: Codec,
    ctx: CCtx<'static>,
    body: Vec<u8>,
    /// Entries to leave untried, and how many it was the last time.
    skip: u32,
    penalty: u32,
}

impl Packer {
    /// A packer, with the memory that its codec needs.
    ///
    /// # Errors
    /// [`FormatError::Compressed`] where there is none.
    pub fn new(codec: Codec) -> Result<Self, FormatError> {
        let mut ctx = CCtx::try_create().ok_or(FormatError::Compressed { reason: "out of memory" })?;
        for parameter in [CParameter::CompressionLevel(LEVEL), CParameter::ContentSizeFlag(false)] {
            ctx.set_parameter(parameter).map_err(codec_failed)?;
        }
        Ok(Self { codec, ctx, body: Vec::new(), skip: 0, penalty: 0 })
    }

    /// Appends whole entries to `out`: compressed, where they are plain and at least a tenth shorter that way,
    /// otherwise as they are. Checksums are not looked at.
    ///
    /// # Errors
    /// [`FormatError`] where `frames` are no whole entries; `out` is then unchanged.
    pub fn pack(&mut self, frames: &[u8], out: &mut Vec<u8>) -> Result<(), FormatError> {
        let start = out.len();
        let done = self.pack_each(frames, out);
        if done.is_err() {
            out.truncate(start);
        }
        if self.body.capacity() > KEEP {
            self.body = Vec::new();
        }
        done
    }

    fn pack_each(&mut self, mut frames: &[u8], out: &mut Vec<u8>) -> Result<(), FormatError> {
        while !frames.is_empty() {
            let header = StoredHeader::decode(frames)?;
            let (needed, got) = (header.frame_len(), frames.len() as u64);
            let whole = usize::try_from(needed).ok().and_then(|n| frames.split_at_checked(n));
            let (frame, rest) = whole.ok_or(FormatError::Short { what: "entry", needed, got })?;
            if header.codec.is_some() || !self.pack_one(frame, out) {
                out.extend_from_slice(frame);
            }
            frames = rest;
        }
        Ok(())
    }

    /// Appends a plain entry in its compressed form; `false` where it does not gain by that.
    fn pack_one(&mut self, frame: &[u8], out: &mut Vec<u8>) -> bool {
        let payload = frame.get(ENTRY_HEADER_LEN..).unwrap_or_default();
        if payload.len() < MIN_PAYLOAD {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        let most = frame.len() - frame.len() / 10 - PACKED_HEADER_LEN;
        let gains = self.compress(payload, most).unwrap_or(false);
        if !gains {
            self.penalty = (self.penalty * 2 + 1).min(MAX_SKIP);
            self.skip = self.penalty;
            return false;
        }
        self.penalty = 0;
        let Ok(stored_len) = u32::try_from(self.body.len()) else { return false };
        let start = out.len();
        out.reserve(PACKED_HEADER_LEN + self.body.len());
        out.extend_from_slice(frame.get(..ENTRY_HEADER_LEN).unwrap_or_default());
        if let Some(flags) = out.get_mut(start + FLAGS) {
            *flags = self.codec.flags();
        }
        out.extend_from_slice(&stored_len.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.body);
        let crc = stored_crc(out.get(start..).unwrap_or_default());
        if let Some(slot) = out.get_mut(start + STORED_CRC..start + PACKED_HEADER_LEN) {
            slot.copy_from_slice(&crc.to_le_bytes());
        }
        true
    }

    /// Compresses a payload into `body`; `false` where that takes more than `most` bytes.
    fn compress(&mut self, payload: &[u8], most: usize) -> Result<bool, ErrorCode> {
        if payload.len() <= STEP {
            return self.compress_at_once(payload, most);
        }
        let probe = payload.get(..PROBE).unwrap_or_default();
        if !self.compress_at_once(probe, PROBE - PROBE / 10)? {
            return Ok(false);
        }
        let done = self.compress_in_steps(payload, most);
        if !matches!(done, Ok(true)) {
            self.ctx.reset(ResetDirective::SessionOnly)?;
        }
        done
    }

    fn compress_at_once(&mut self, payload: &[u8], most: usize) -> Result<bool, ErrorCode> {
        self.body.clear();
        self.body.reserve(zstd_safe::compress_bound(payload.len()));
        self.ctx.compress2(&mut self.body, payload)?;
        Ok(self.body.len() <= most)
    }

    /// What comes out is never known before: room is made as it comes.
    fn compress_in_steps(&mut self, payload: &[u8], most: usize) -> Result<bool, ErrorCode> {
        self.body.clear();
        let mut input = InBuffer::around(payload);
        loop {
            self.body.reserve(STEP);
            let at = self.body.len();
            let mut output = OutBuffer::around_pos(&mut self.body, at);
            let left = self.ctx.compress_stream2(&mut output, &mut input, ZSTD_EndDirective::ZSTD_e_end)?;
            if self.body.len() > most {
                return Ok(false);
            }
            if left == 0 {
                return Ok(true);
            }
        }
    }
}

/// Makes plain entries of compressed ones.
#[derive(Default)]
pub struct Unpacker {
    /// Made when the first compressed entry comes.
    zstd: Option<DCtx<'static>>,
}

impl std::fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unpacker")
    }
}

impl Unpacker {
    /// Appends the plain entry to `out` and checks the checksum that it was made with.
    ///
    /// # Errors
    /// [`FormatError`] where the stored bytes are not the compressed form of that entry; `out` is then unchanged.
    pub fn unpack(&mut self, stored: &StoredRef<'_>, out: &mut Vec<u8>) -> Result<(), FormatError> {
        let start = out.len();
        if stored.header.codec.is_none() {
            out.extend_from_slice(stored.frame);
            return Ok(());
        }
        out.extend_from_slice(stored.frame.get(..ENTRY_HEADER_LEN).unwrap_or_default());
        if let Some(flags) = out.get_mut(start + FLAGS) {
            *flags = 0;
        }
        let done = self.payload(stored, out).and_then(|()| is_whole(out.get(start..).unwrap_or_default()));
        if done.is_err() {
            out.truncate(start);
        }
        done
    }

    fn payload(&mut self, stored: &StoredRef<'_>, out: &mut Vec<u8>) -> Result<(), FormatError> {
        let body = stored.frame.get(PACKED_HEADER_LEN..).unwrap_or_default();
        let len = usize::try_from(stored.header.header.payload_len).unwrap_or(usize::MAX);
        let ctx = match &mut self.zstd {
            Some(ctx) => ctx,
            none => none.insert(decoder()?),
        };
        if len <= STEP {
            return at_once(ctx, body, len, out);
        }
        let done = in_steps(ctx, body, len, out);
        if done.is_err() {
            self.zstd = None;
        }
        done
    }
}

fn decoder() -> Result<DCtx<'static>, FormatError> {
    let mut ctx = DCtx::try_create().ok_or(FormatError::Compressed { reason: "out of memory" })?;
    ctx.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG)).map_err(codec_failed)?;
    Ok(ctx)
}

fn at_once(ctx: &mut DCtx<'_>, body: &[u8], len: usize, out: &mut Vec<u8>) -> Result<(), FormatError> {
    let start = out.len();
    out.resize(start + len, 0);
    let n = ctx.decompress(out.get_mut(start..).unwrap_or_default(), body).map_err(codec_failed)?;
    out.truncate(start + n);
    Ok(())
}

/// The length is the header's word: memory is taken as the bytes come.
fn in_steps(ctx: &mut DCtx<'_>, body: &[u8], len: usize, out: &mut Vec<u8>) -> Result<(), FormatError> {
    let wrong = |reason| Err(FormatError::Compressed { reason });
    let end = out.len().saturating_add(len);
    let mut input = InBuffer::around(body);
    loop {
        let at = out.len();
        // One byte more than there should be shows that there are more.
        let room = (end + 1).saturating_sub(at).min(STEP);
        if room == 0 {
            return wrong("longer than it says");
        }
        out.resize(at + room, 0);
        let mut output = OutBuffer::around(out.get_mut(at..).unwrap_or_default());
        let more = ctx.decompress_stream(&mut output, &mut input).map_err(codec_failed)?;
        let n = output.pos();
        out.truncate(at + n);
        if more == 0 {
            return if input.pos() == body.len() { Ok(()) } else { wrong("bytes behind it") };
        }
        if n == 0 && input.pos() == body.len() {
            return wrong("cut off");
        }
    }
}

/// Whether a frame is one plain entry with a good checksum.
fn is_whole(frame: &[u8]) -> Result<(), FormatError> {
    match decode_entry(frame)? {
        Decoded::Entry(entry) if entry.frame.len() == frame.len() => Ok(()),
        Decoded::Entry(_) => Err(FormatError::Compressed { reason: "longer than it says" }),
        Decoded::Incomplete { .. } => Err(FormatError::Compressed { reason: "shorter than it says" }),
    }
}

/// The entry at the start of `frames` in its plain form; others may follow it.
///
/// # Errors
/// [`FormatError`] where no whole entry stands there.
pub fn plain_entry(frames: &[u8]) -> Result<Cow<'_, [u8]>, FormatError> {
    let stored = match decode_stored(frames)? {
        Stored::Entry(stored) => stored,
        Stored::Incomplete { needed } => {
            return Err(FormatError::Short { what: "entry", needed, got: frames.len() as u64 });
        }
    };
    if stored.header.codec.is_none() {
        return Ok(Cow::Borrowed(stored.frame));
    }
    let mut out = Vec::new();
    Unpacker::default().unpack(&stored, &mut out)?;
    Ok(Cow::Owned(out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{encode_entry, EntryMeta};

    /// Text that compresses about as well as text does.
    fn text(len: usize) -> Vec<u8> {
        let words: [&[u8]; 6] =
            [b"Package: ", b"Version: 1.", b"installed\n", b"Depends: lib", b"amd64", b", "];
        let mut state = 1u32;
        let mut out = Vec::new();
        while out.len() < len {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            out.extend_from_slice(words[(state >> 16) as usize % words.len()]);
            out.extend_from_slice((state >> 20).to_string().as_bytes());
        }
        out.truncate(len);
        out
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    fn entry(payload: &[u8]) -> Vec<u8> {
        let last_op = payload.len() as u64 + 99;
        let meta = EntryMeta { last_op, time_ms: 5, db: 3, op_count: 2, service_id: 7, flags: 0 };
        let mut out = Vec::new();
        encode_entry(&meta, payload, &mut out).unwrap();
        out
    }

    fn pack(frame: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        Packer::new(Codec::Zstd).unwrap().pack(frame, &mut out).unwrap();
        out
    }

    fn stored(buf: &[u8]) -> StoredRef<'_> {
        let Stored::Entry(stored) = decode_stored(buf).unwrap() else { panic!("incomplete") };
        stored
    }

    #[test]
    fn what_comes_out_is_what_went_in() {
        for len in [256, 1000, 36 << 10, STEP, STEP + 1, 5 * STEP + 77] {
            let frame = entry(&text(len));
            let packed = pack(&frame);
            let s = stored(&packed);
            assert_eq!((s.header.codec, s.frame.len()), (Some(Codec::Zstd), packed.len()), "{len}");
            assert_eq!(s.header.header, EntryHeader::decode(&frame).unwrap());
            assert!(packed.len() <= frame.len() * 9 / 10 && s.plain().is_none());
            let mut out = vec![1];
            Unpacker::default().unpack(&s, &mut out).unwrap();
            assert_eq!(&out[1..], frame, "{len}");
            assert_eq!(plain_entry(&packed).unwrap(), frame);
            // What is compressed already stays as it is.
            assert_eq!(pack(&packed), packed);
        }
    }

    #[test]
    fn what_does_not_gain_stays_plain() {
        for payload in [text(200), noise(1000), noise(3 * STEP)] {
            let frame = entry(&payload);
            assert_eq!(pack(&frame), frame);
            let s = stored(&frame);
            assert_eq!((s.header.codec, s.plain().unwrap().payload), (None, &payload[..]));
        }
        assert!(Packer::new(Codec::Zstd).unwrap().pack(&entry(&text(500))[..300], &mut Vec::new()).is_err());
    }

    #[test]
    fn a_stream_that_does_not_gain_is_tried_seldom_and_not_never() {
        let mut packer = Packer::new(Codec::Zstd).unwrap();
        let (bad, good) = (entry(&noise(1000)), entry(&text(1000)));
        let mut out = Vec::new();
        for _ in 0..1000 {
            packer.pack(&bad, &mut out).unwrap();
        }
        assert_eq!(packer.penalty, MAX_SKIP);
        let mut tried = 0;
        for _ in 0..=MAX_SKIP {
            out.clear();
            packer.pack(&good, &mut out).unwrap();
            tried += u32::from(out.len() < good.len());
        }
        assert!(tried >= 1);
        out.clear();
        packer.pack(&good, &mut out).unwrap();
        assert!(out.len() < good.len(), "tried each time again");
    }

    #[test]
    fn every_prefix_is_incomplete_and_every_flip_is_seen() {
        let packed = pack(&entry(&text(300)));
        for n in 0..packed.len() {
            assert!(
                matches!(decode_stored(&packed[..n]), Ok(Stored::Incomplete { needed }) if needed > n as u64)
            );
        }
        for bit in 0..packed.len() * 8 {
            let mut bad = packed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(decode_stored(&bad), Ok(Stored::Entry(_))), "bit {bit}");
            assert!(!matches!(decode_entry(&bad), Ok(Decoded::Entry(_))), "bit {bit}");
        }
        assert!(matches!(decode_entry(&packed), Err(FormatError::Value { field: "entry flags", got: 1 })));
    }

    /// A frame with good checksums, but for what it decompresses to.
    fn lying(payload_len: u32, body: &[u8]) -> Vec<u8> {
        let mut frame = pack(&entry(&text(300)))[..PACKED_HEADER_LEN].to_vec();
        frame[8..16].copy_from_slice(&u64::from(u32::MAX).to_le_bytes());
        frame[24..28].copy_from_slice(&payload_len.to_le_bytes());
        frame[STORED_LEN..STORED_CRC].copy_from_slice(&(body.len() as u32).to_le_bytes());
        frame.extend_from_slice(body);
        let crc = stored_crc(&frame);
        frame[STORED_CRC..PACKED_HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
        frame
    }

    #[test]
    fn what_is_not_the_entry_that_it_says_is_refused_and_takes_no_memory() {
        let mut unpacker = Unpacker::default();
        let body = |frame: &[u8]| frame[PACKED_HEADER_LEN..].to_vec();
        let small = body(&pack(&entry(&text(1000))));
        let large = body(&pack(&entry(&text(3 * STEP))));
        let cut = large[..large.len() - 9].to_vec();
        let more = [&large[..], b"x"].concat();
        let longest = u32::MAX;
        for (len, body) in [
            (1001, &small),
            (999, &small),
            (1000, &small),
            (longest, &small),
            (3 * STEP as u32 + 1, &large),
            (3 * STEP as u32 - 1, &large),
            (longest, &large),
            (longest, &cut),
            (3 * STEP as u32, &more),
            (longest, &noise(500)),
        ] {
            let frame = lying(len, body);
            let mut out = vec![9];
            let refused = unpacker.unpack(&stored(&frame), &mut out);
            assert!(refused.is_err(), "{len} {}", body.len());
            assert_eq!(out, [9]);
            assert!(out.capacity() < 16 * STEP, "{} bytes for a claim of {len}", out.capacity());
        }
        // It still works.
        let frame = entry(&text(2 * STEP));
        unpacker.unpack(&stored(&pack(&frame)), &mut Vec::new()).unwrap();
    }
}
