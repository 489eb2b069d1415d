//! What value walkers read from: a stream or a slice, with the number encodings common to both.

use super::error::SnapshotError;

type Result<T> = std::result::Result<T, SnapshotError>;

/// A number of the "length" encoding, or the mark that a specially encoded string follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    Plain(u64),
    Encoded(StringEncoding),
}

/// How a string is stored when it is not stored as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StringEncoding {
    Int8,
    Int16,
    Int32,
    Lzf,
}

pub(super) trait Input {
    /// Position of the next byte.
    fn offset(&self) -> u64;

    /// Reads one byte.
    fn byte(&mut self) -> Result<u8>;

    /// Passes over `n` bytes.
    fn skip(&mut self, n: u64) -> Result<()>;

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0u8; N];
        for slot in &mut out {
            *slot = self.byte()?;
        }
        Ok(out)
    }

    fn length_or_encoding(&mut self) -> Result<Length> {
        let offset = self.offset();
        let first = self.byte()?;
        let low = u64::from(first & 0x3f);
        match first >> 6 {
            0 => Ok(Length::Plain(low)),
            1 => Ok(Length::Plain((low << 8) | u64::from(self.byte()?))),
            2 => match first {
                0x80 => Ok(Length::Plain(u64::from(u32::from_be_bytes(self.array()?)))),
                0x81 => Ok(Length::Plain(u64::from_be_bytes(self.array()?))),
                _ => Err(SnapshotError::BadNumber { what: "length form", number: first.into(), offset }),
            },
            _ => match low {
                0 => Ok(Length::Encoded(StringEncoding::Int8)),
                1 => Ok(Length::Encoded(StringEncoding::Int16)),
                2 => Ok(Length::Encoded(StringEncoding::Int32)),
                3 => Ok(Length::Encoded(StringEncoding::Lzf)),
                _ => Err(SnapshotError::BadNumber { what: "string encoding", number: low, offset }),
            },
        }
    }

    fn length(&mut self) -> Result<u64> {
        let offset = self.offset();
        match self.length_or_encoding()? {
            Length::Plain(n) => Ok(n),
            Length::Encoded(_) => {
                Err(SnapshotError::Corrupt { what: "a string where a number must be", offset })
            }
        }
    }

    fn skip_string(&mut self) -> Result<()> {
        match self.length_or_encoding()? {
            Length::Plain(n) => self.skip(n),
            Length::Encoded(StringEncoding::Int8) => self.skip(1),
            Length::Encoded(StringEncoding::Int16) => self.skip(2),
            Length::Encoded(StringEncoding::Int32) => self.skip(4),
            Length::Encoded(StringEncoding::Lzf) => {
                let compressed = self.length()?;
                self.length()?;
                self.skip(compressed)
            }
        }
    }
}

/// An input whose bytes can be had.
pub(super) trait Take: Input {
    /// The next `n` bytes; memory grows only with bytes that are really there.
    fn take_vec(&mut self, n: u64) -> Result<Vec<u8>>;

    /// Whether no byte is left.
    fn is_at_end(&mut self) -> Result<bool>;
}

impl Take for Slice<'_> {
    fn take_vec(&mut self, n: u64) -> Result<Vec<u8>> {
        self.take(n).map(<[u8]>::to_vec)
    }

    fn is_at_end(&mut self) -> Result<bool> {
        Ok(self.is_empty())
    }
}

/// Bytes in memory.
#[derive(Clone, Debug)]
pub(super) struct Slice<'a> {
    rest: &'a [u8],
    offset: u64,
}

impl<'a> Slice<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self::at(bytes, 0)
    }

    /// Bytes that start at `offset` of something larger.
    pub(super) const fn at(bytes: &'a [u8], offset: u64) -> Self {
        Self { rest: bytes, offset }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    pub(super) fn take(&mut self, n: u64) -> Result<&'a [u8]> {
        let end = self.offset.saturating_add(self.rest.len() as u64);
        let split = usize::try_from(n).ok().and_then(|n| self.rest.split_at_checked(n));
        let (head, rest) = split.ok_or(SnapshotError::Truncated { offset: end })?;
        self.rest = rest;
        self.offset = self.offset.saturating_add(n);
        Ok(head)
    }
}

impl Input for Slice<'_> {
    fn offset(&self) -> u64 {
        self.offset
    }

    fn byte(&mut self) -> Result<u8> {
        let (first, rest) =
            self.rest.split_first().ok_or(SnapshotError::Truncated { offset: self.offset })?;
        self.rest = rest;
        self.offset = self.offset.saturating_add(1);
        Ok(*first)
    }

    fn skip(&mut self, n: u64) -> Result<()> {
        self.take(n).map(|_| ())
    }
}
