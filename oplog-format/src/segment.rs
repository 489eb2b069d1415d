//! The header at the start of each segment file.

use crate::bytes::{array, u32_at, u64_at};
use crate::error::FormatError;
use crate::position::{History, OpId};

/// First eight bytes of a segment.
pub const SEGMENT_MAGIC: [u8; 8] = *b"RDROPLOG";
/// Version of the segment and entry format.
pub const FORMAT_VERSION: u32 = 1;
/// Length of the header; entries follow it.
pub const SEGMENT_HEADER_LEN: usize = 128;

const VERSION: usize = 8;
const SERVICE_ID: usize = 12;
const FIRST_OP: usize = 16;
const CREATED_MS: usize = 24;
const HISTORY: usize = 32;
const CRC: usize = SEGMENT_HEADER_LEN - 4;

/// What a segment says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// History that produced every op in the segment.
    pub history: History,
    /// Id of the first position in it.
    pub first_op: OpId,
    /// Unix time in milliseconds at which it was made.
    pub created_ms: u64,
    /// Instance that wrote it, 0..15.
    pub service_id: u8,
}

impl SegmentHeader {
    /// The bytes of the header.
    #[must_use]
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_LEN] {
        let mut out = [0u8; SEGMENT_HEADER_LEN];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(slot) = out.get_mut(at..at + bytes.len()) {
                slot.copy_from_slice(bytes);
            }
        };
        put(0, &SEGMENT_MAGIC);
        put(VERSION, &FORMAT_VERSION.to_le_bytes());
        put(SERVICE_ID, &[self.service_id]);
        put(FIRST_OP, &self.first_op.to_le_bytes());
        put(CREATED_MS, &self.created_ms.to_le_bytes());
        put(HISTORY, self.history.as_bytes());
        let crc = crc32fast::hash(out.get(..CRC).unwrap_or_default());
        if let Some(slot) = out.get_mut(CRC..) {
            slot.copy_from_slice(&crc.to_le_bytes());
        }
        out
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`FormatError`] naming what is wrong: too short, other magic, newer version, checksum, field.
    pub fn decode(buf: &[u8]) -> Result<Self, FormatError> {
        let short = || FormatError::Short {
            what: "segment header",
            needed: SEGMENT_HEADER_LEN as u64,
            got: buf.len() as u64,
        };
        let buf = buf.get(..SEGMENT_HEADER_LEN).ok_or_else(short)?;
        let magic: [u8; 8] = array(buf, 0).ok_or_else(short)?;
        if magic != SEGMENT_MAGIC {
            return Err(FormatError::Magic { what: "segment", got: u64::from_le_bytes(magic) });
        }
        let stored = u32_at(buf, CRC).ok_or_else(short)?;
        let computed = crc32fast::hash(buf.get(..CRC).unwrap_or_default());
        if stored != computed {
            return Err(FormatError::Crc { what: "segment header", stored, computed });
        }
        let version = u32_at(buf, VERSION).ok_or_else(short)?;
        if version != FORMAT_VERSION {
            return Err(FormatError::Version { what: "segment", got: version, newest: FORMAT_VERSION });
        }
        let service_id = *buf.get(SERVICE_ID).ok_or_else(short)?;
        if service_id > 15 {
            return Err(FormatError::Value { field: "segment service id", got: u64::from(service_id) });
        }
        Ok(Self {
            history: History::from_bytes(buf.get(HISTORY..HISTORY + 40).ok_or_else(short)?)?,
            first_op: u64_at(buf, FIRST_OP).ok_or_else(short)?,
            created_ms: u64_at(buf, CREATED_MS).ok_or_else(short)?,
            service_id,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_back_and_every_flip_is_seen() {
        let header = SegmentHeader {
            history: History::from_bytes(&[b'c'; 40]).unwrap(),
            first_op: 1_000_001,
            created_ms: 1_700_000_000_000,
            service_id: 3,
        };
        let bytes = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&bad).is_err(), "bit {bit}");
        }
    }
}
