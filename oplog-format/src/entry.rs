//! Entries: the framed unit of the log. One entry holds one or more whole ops.

use crate::bytes::{u16_at, u32_at, u64_at};
use crate::error::FormatError;
use crate::op::OpWalk;
use crate::position::OpId;

/// First four bytes of an entry.
pub const ENTRY_MAGIC: u32 = u32::from_le_bytes(*b"DRe1");
/// Length of the header before the payload.
pub const ENTRY_HEADER_LEN: usize = 40;
/// Longest payload, bounded so that a damaged length cannot ask for more.
pub const MAX_PAYLOAD: u64 = u32::MAX as u64;

const MAGIC: usize = 0;
const CRC: usize = 4;
const LAST_OP: usize = 8;
const TIME_MS: usize = 16;
const PAYLOAD_LEN: usize = 24;
const DB: usize = 28;
const OP_COUNT: usize = 32;
const SERVICE_ID: usize = 36;
/// Where the flags stand in a header.
pub const FLAGS: usize = 37;
const RESERVED: usize = 38;

/// What is known of an entry besides its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryMeta {
    /// Id of the last op in it.
    pub last_op: OpId,
    /// Unix time in milliseconds at which the entry was captured.
    pub time_ms: u64,
    /// Database in which its first op runs.
    pub db: u32,
    /// How many ops it holds; a transaction counts as its commands, MULTI and EXEC included.
    pub op_count: u32,
    /// Instance on which its ops were born, 0..15.
    pub service_id: u8,
    /// 0: other values tell in a log what an entry is compressed by, see [`crate::packed`].
    pub flags: u8,
}

/// A decoded header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryHeader {
    /// What the entry says of itself.
    pub meta: EntryMeta,
    /// Length of the payload in bytes.
    pub payload_len: u32,
    /// Checksum of everything behind the checksum field.
    pub crc: u32,
}

impl EntryHeader {
    /// Reads a header without looking at the payload.
    ///
    /// # Errors
    /// [`FormatError`] where the bytes are no header; [`FormatError::Short`] below [`ENTRY_HEADER_LEN`] bytes.
    pub fn decode(buf: &[u8]) -> Result<Self, FormatError> {
        let header = Self::decode_any(buf)?;
        match header.meta.flags {
            0 => Ok(header),
            flags => Err(FormatError::Value { field: "entry flags", got: u64::from(flags) }),
        }
    }

    /// As [`Self::decode`], whatever the flags are.
    pub(crate) fn decode_any(buf: &[u8]) -> Result<Self, FormatError> {
        Self::fields(buf).ok_or(FormatError::Short {
            what: "entry header",
            needed: ENTRY_HEADER_LEN as u64,
            got: buf.len() as u64,
        })?
    }

    fn fields(buf: &[u8]) -> Option<Result<Self, FormatError>> {
        let header = buf.get(..ENTRY_HEADER_LEN)?;
        let magic = u32_at(header, MAGIC)?;
        if magic != ENTRY_MAGIC {
            return Some(Err(FormatError::Magic { what: "entry", got: u64::from(magic) }));
        }
        let decoded = Self {
            meta: EntryMeta {
                last_op: u64_at(header, LAST_OP)?,
                time_ms: u64_at(header, TIME_MS)?,
                db: u32_at(header, DB)?,
                op_count: u32_at(header, OP_COUNT)?,
                service_id: *header.get(SERVICE_ID)?,
                flags: *header.get(FLAGS)?,
            },
            payload_len: u32_at(header, PAYLOAD_LEN)?,
            crc: u32_at(header, CRC)?,
        };
        let reserved = u16_at(header, RESERVED)?;
        Some(decoded.checked(reserved))
    }

    fn checked(self, reserved: u16) -> Result<Self, FormatError> {
        let bad = |field, got| Err(FormatError::Value { field, got });
        if self.payload_len == 0 {
            return bad("entry payload length", 0);
        }
        if u64::from(self.payload_len) > self.meta.last_op {
            return bad("entry payload length beyond its op id", u64::from(self.payload_len));
        }
        if self.meta.service_id > 15 {
            return bad("entry service id", u64::from(self.meta.service_id));
        }
        if reserved != 0 {
            return bad("entry reserved bytes", u64::from(reserved));
        }
        if self.meta.op_count == 0 {
            return bad("entry op count", 0);
        }
        Ok(self)
    }

    /// Id of the first position in the entry.
    #[must_use]
    pub fn first_op(&self) -> OpId {
        self.meta.last_op - u64::from(self.payload_len) + 1
    }

    /// Length of header and payload.
    #[must_use]
    pub fn frame_len(&self) -> u64 {
        ENTRY_HEADER_LEN as u64 + u64::from(self.payload_len)
    }
}

/// A whole entry within a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryRef<'a> {
    /// Its header.
    pub header: EntryHeader,
    /// The bytes of its ops, as the server propagated them.
    pub payload: &'a [u8],
    /// Header and payload.
    pub frame: &'a [u8],
}

/// What stands at the start of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// A whole entry with a good checksum.
    Entry(EntryRef<'a>),
    /// The start of one; this many bytes are needed at least.
    Incomplete {
        /// Bytes from the start of the buffer.
        needed: u64,
    },
}

/// Appends one entry to `out`.
///
/// # Errors
/// [`FormatError::Value`] where a field is out of range (payload empty or beyond [`MAX_PAYLOAD`], service id
/// above 15, an op id lower than the payload is long); `out` is then unchanged.
pub fn encode_entry(meta: &EntryMeta, payload: &[u8], out: &mut Vec<u8>) -> Result<(), FormatError> {
    let payload_len = u32::try_from(payload.len())
        .map_err(|_| FormatError::Value { field: "entry payload length", got: payload.len() as u64 })?;
    EntryHeader { meta: *meta, payload_len, crc: 0 }.checked(0)?;
    if meta.flags != 0 {
        return Err(FormatError::Value { field: "entry flags", got: u64::from(meta.flags) });
    }
    let mut header = [0u8; ENTRY_HEADER_LEN];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(slot) = header.get_mut(at..at + bytes.len()) {
            slot.copy_from_slice(bytes);
        }
    };
    put(MAGIC, &ENTRY_MAGIC.to_le_bytes());
    put(LAST_OP, &meta.last_op.to_le_bytes());
    put(TIME_MS, &meta.time_ms.to_le_bytes());
    put(PAYLOAD_LEN, &payload_len.to_le_bytes());
    put(DB, &meta.db.to_le_bytes());
    put(OP_COUNT, &meta.op_count.to_le_bytes());
    put(SERVICE_ID, &[meta.service_id, meta.flags]);
    let crc = crc_of(header.get(LAST_OP..).unwrap_or_default(), payload);
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(slot) = header.get_mut(at..at + bytes.len()) {
            slot.copy_from_slice(bytes);
        }
    };
    put(CRC, &crc.to_le_bytes());
    out.reserve(ENTRY_HEADER_LEN + payload.len());
    out.extend_from_slice(&header);
    out.extend_from_slice(payload);
    Ok(())
}

fn crc_of(header_tail: &[u8], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(header_tail);
    crc.update(payload);
    crc.finalize()
}

/// Decodes the plain entry at the start of `buf` and checks its checksum.
///
/// # Errors
/// [`FormatError`] where the bytes cannot be an entry.
pub fn decode_entry(buf: &[u8]) -> Result<Decoded<'_>, FormatError> {
    if buf.len() < ENTRY_HEADER_LEN {
        return may_begin_entry(buf).map(|()| Decoded::Incomplete { needed: ENTRY_HEADER_LEN as u64 });
    }
    let header = EntryHeader::decode(buf)?;
    let needed = header.frame_len();
    let frame = usize::try_from(needed).ok().and_then(|n| buf.get(..n));
    let Some(frame) = frame else {
        return Ok(Decoded::Incomplete { needed });
    };
    let payload = frame.get(ENTRY_HEADER_LEN..).unwrap_or_default();
    let computed = crc_of(frame.get(LAST_OP..ENTRY_HEADER_LEN).unwrap_or_default(), payload);
    if computed != header.crc {
        return Err(FormatError::Crc { what: "entry", stored: header.crc, computed });
    }
    Ok(Decoded::Entry(EntryRef { header, payload, frame }))
}

/// Whether fewer bytes than a header may be the start of one.
pub(crate) fn may_begin_entry(buf: &[u8]) -> Result<(), FormatError> {
    let magic = ENTRY_MAGIC.to_le_bytes();
    let seen = buf.len().min(magic.len());
    if buf.get(..seen) == magic.get(..seen) {
        return Ok(());
    }
    let mut got = [0u8; 8];
    got.iter_mut().zip(buf).for_each(|(g, b)| *g = *b);
    Err(FormatError::Magic { what: "entry", got: u64::from_le_bytes(got) })
}

/// The part of an entry above `op`, as an entry of its own: for a reader whose position lies within it, as that
/// of a snapshot may. `None` where `op` is not the end of an op outside of a transaction.
///
/// # Errors
/// [`FormatError::Op`] where the payload is no run of ops.
pub fn split_after(entry: &EntryRef<'_>, op: OpId) -> Result<Option<Vec<u8>>, FormatError> {
    let next = op.checked_add(1).and_then(|n| n.checked_sub(entry.header.first_op()));
    let Some(skip) = next.and_then(|s| usize::try_from(s).ok()) else {
        return Ok(None);
    };
    let mut walk = OpWalk::new(entry.payload, entry.header.meta.db);
    while walk.position() < skip {
        if walk.step()?.is_none() {
            return Ok(None);
        }
    }
    let rest = entry.payload.get(skip..).unwrap_or_default();
    if walk.position() != skip || walk.in_transaction() || rest.is_empty() {
        return Ok(None);
    }
    let op_count = entry.header.meta.op_count.saturating_sub(walk.count()).max(1);
    let meta = EntryMeta { db: walk.db(), op_count, ..entry.header.meta };
    let mut out = Vec::new();
    encode_entry(&meta, rest, &mut out)?;
    Ok(Some(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_splits_between_ops_and_not_within() {
        let select = b"*2\r\n$6\r\nSELECT\r\n$1\r\n5\r\n";
        let del = b"*2\r\n$3\r\nDEL\r\n$1\r\na\r\n";
        let payload = [&select[..], del, del].concat();
        let len = payload.len() as u64;
        let mut buf = Vec::new();
        encode_entry(&EntryMeta { last_op: 1000, op_count: 3, ..meta() }, &payload, &mut buf).unwrap();
        let Decoded::Entry(e) = decode_entry(&buf).unwrap() else { panic!("incomplete") };
        let first = 1001 - len;
        let at = first + (select.len() + del.len()) as u64 - 1;
        let tail = split_after(&e, at).unwrap().unwrap();
        let Decoded::Entry(t) = decode_entry(&tail).unwrap() else { panic!("incomplete") };
        assert_eq!((t.header.first_op(), t.header.meta.last_op), (at + 1, 1000));
        assert_eq!((t.header.meta.db, t.header.meta.op_count, t.payload), (5, 1, &del[..]));
        assert_eq!(split_after(&e, at + 1), Ok(None));
        assert_eq!(split_after(&e, 1000), Ok(None));
        assert_eq!(split_after(&e, first - 1).unwrap().unwrap(), buf);
    }

    fn meta() -> EntryMeta {
        EntryMeta { last_op: 100, time_ms: 1_700_000_000_123, db: 3, op_count: 2, service_id: 7, flags: 0 }
    }

    #[test]
    fn an_entry_comes_back_as_it_went() {
        let mut buf = Vec::new();
        encode_entry(&meta(), b"payload", &mut buf).unwrap();
        let Decoded::Entry(e) = decode_entry(&buf).unwrap() else { panic!("incomplete") };
        assert_eq!(e.header.meta, meta());
        assert_eq!(e.header.first_op(), 94);
        assert_eq!(e.payload, b"payload");
        assert_eq!(e.frame, &buf[..]);
    }

    #[test]
    fn every_prefix_is_incomplete_and_every_flip_is_seen() {
        let mut buf = Vec::new();
        encode_entry(&meta(), b"payload", &mut buf).unwrap();
        for n in 0..buf.len() {
            assert!(matches!(decode_entry(&buf[..n]), Ok(Decoded::Incomplete { .. })), "prefix {n}");
        }
        for bit in 0..buf.len() * 8 {
            let mut bad = buf.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(decode_entry(&bad), Ok(Decoded::Entry(_))), "bit {bit}");
        }
    }

    #[test]
    fn fields_out_of_range_are_refused_and_leave_the_output_alone() {
        let mut out = vec![1];
        assert!(encode_entry(&meta(), b"", &mut out).is_err());
        assert!(encode_entry(&EntryMeta { service_id: 16, ..meta() }, b"x", &mut out).is_err());
        assert!(encode_entry(&EntryMeta { last_op: 0, ..meta() }, b"x", &mut out).is_err());
        assert_eq!(out, [1]);
    }
}
