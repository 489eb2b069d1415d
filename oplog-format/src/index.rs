//! Sparse index and footer that close a sealed segment.
//!
//! Layout behind the last entry: the points (16 bytes each), then the footer, which ends the file.

use crate::bytes::{array, u32_at, u64_at};
use crate::error::FormatError;
use crate::position::OpId;

/// First eight bytes of a footer.
pub const FOOTER_MAGIC: [u8; 8] = *b"RDRSEALD";
/// Length of the footer.
pub const FOOTER_LEN: usize = 64;
/// Length of one index point.
pub const POINT_LEN: usize = 16;

const INDEX_OFFSET: usize = 8;
const LAST_OP: usize = 16;
const LAST_TIME: usize = 24;
const ENTRIES: usize = 32;
const OPS: usize = 40;
const POINTS: usize = 48;
const INDEX_CRC: usize = 52;
const CRC: usize = FOOTER_LEN - 4;

/// An entry that a reader may start at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexPoint {
    /// Id of the entry's first position.
    pub first_op: OpId,
    /// Offset of the entry in the file.
    pub offset: u64,
}

/// What closes a sealed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    /// Offset of the first index point: the end of the entries.
    pub index_offset: u64,
    /// Id of the last op.
    pub last_op: OpId,
    /// Time of the last entry, Unix milliseconds.
    pub last_time_ms: u64,
    /// Number of entries.
    pub entries: u64,
    /// Number of ops.
    pub ops: u64,
    /// Number of index points.
    pub points: u32,
}

/// Appends index and footer to `out`. `footer.points` is taken from `points`.
///
/// # Errors
/// [`FormatError::Value`] with more than `u32::MAX` points.
pub fn encode_index(points: &[IndexPoint], footer: &Footer, out: &mut Vec<u8>) -> Result<(), FormatError> {
    let count = u32::try_from(points.len())
        .map_err(|_| FormatError::Value { field: "index points", got: points.len() as u64 })?;
    let start = out.len();
    for p in points {
        out.extend_from_slice(&p.first_op.to_le_bytes());
        out.extend_from_slice(&p.offset.to_le_bytes());
    }
    let index_crc = crc32fast::hash(out.get(start..).unwrap_or_default());
    let start = out.len();
    out.extend_from_slice(&FOOTER_MAGIC);
    for v in [footer.index_offset, footer.last_op, footer.last_time_ms, footer.entries, footer.ops] {
        out.extend_from_slice(&v.to_le_bytes());
    }
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(&index_crc.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    let crc = crc32fast::hash(out.get(start..).unwrap_or_default());
    out.extend_from_slice(&crc.to_le_bytes());
    Ok(())
}

impl Footer {
    /// Reads the footer that `tail`, the last [`FOOTER_LEN`] bytes of a file, holds. Returns it with the
    /// checksum of the index.
    ///
    /// # Errors
    /// [`FormatError::Magic`] where the segment is not sealed; others where the footer is damaged.
    pub fn decode(tail: &[u8]) -> Result<(Self, u32), FormatError> {
        let short =
            || FormatError::Short { what: "footer", needed: FOOTER_LEN as u64, got: tail.len() as u64 };
        let tail = tail.get(..FOOTER_LEN).ok_or_else(short)?;
        let magic: [u8; 8] = array(tail, 0).ok_or_else(short)?;
        if magic != FOOTER_MAGIC {
            return Err(FormatError::Magic { what: "footer", got: u64::from_le_bytes(magic) });
        }
        let stored = u32_at(tail, CRC).ok_or_else(short)?;
        let computed = crc32fast::hash(tail.get(..CRC).unwrap_or_default());
        if stored != computed {
            return Err(FormatError::Crc { what: "footer", stored, computed });
        }
        let footer = Self {
            index_offset: u64_at(tail, INDEX_OFFSET).ok_or_else(short)?,
            last_op: u64_at(tail, LAST_OP).ok_or_else(short)?,
            last_time_ms: u64_at(tail, LAST_TIME).ok_or_else(short)?,
            entries: u64_at(tail, ENTRIES).ok_or_else(short)?,
            ops: u64_at(tail, OPS).ok_or_else(short)?,
            points: u32_at(tail, POINTS).ok_or_else(short)?,
        };
        Ok((footer, u32_at(tail, INDEX_CRC).ok_or_else(short)?))
    }

    /// Reads the points from `bytes`, which stand between the entries and the footer.
    ///
    /// # Errors
    /// [`FormatError`] where length or checksum do not fit.
    pub fn decode_points(&self, index_crc: u32, bytes: &[u8]) -> Result<Vec<IndexPoint>, FormatError> {
        let needed = u64::from(self.points) * POINT_LEN as u64;
        if bytes.len() as u64 != needed {
            return Err(FormatError::Short { what: "index", needed, got: bytes.len() as u64 });
        }
        let computed = crc32fast::hash(bytes);
        if computed != index_crc {
            return Err(FormatError::Crc { what: "index", stored: index_crc, computed });
        }
        Ok(bytes
            .chunks_exact(POINT_LEN)
            .filter_map(|c| Some(IndexPoint { first_op: u64_at(c, 0)?, offset: u64_at(c, 8)? }))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_and_footer_come_back_and_every_flip_is_seen() {
        let points = [IndexPoint { first_op: 1, offset: 128 }, IndexPoint { first_op: 900, offset: 1300 }];
        let footer =
            Footer { index_offset: 2000, last_op: 1500, last_time_ms: 9, entries: 12, ops: 40, points: 2 };
        let mut out = Vec::new();
        encode_index(&points, &footer, &mut out).unwrap();
        let split = out.len() - FOOTER_LEN;
        let (got, crc) = Footer::decode(&out[split..]).unwrap();
        assert_eq!(got, footer);
        assert_eq!(got.decode_points(crc, &out[..split]).unwrap(), points);
        for bit in 0..out.len() * 8 {
            let mut bad = out.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let seen = match Footer::decode(&bad[split..]) {
                Err(_) => true,
                Ok((f, crc)) => f.decode_points(crc, &bad[..split]).is_err(),
            };
            assert!(seen, "bit {bit}");
        }
    }
}
