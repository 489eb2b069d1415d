//! Strings in pieces, without the whole of them in memory.

use std::io::Read;
use std::path::Path;

use super::error::SnapshotError;
use super::input::{Input, Length, StringEncoding, Take};
use super::source::Source;
use super::split::open_value;
use super::strings::Lzf;

type Result<T> = std::result::Result<T, SnapshotError>;

/// A string value that is read piece by piece.
pub struct TextPieces<'a> {
    input: Source<Box<dyn Read + 'a>>,
    len: u64,
    left: u64,
    lzf: Option<Lzf>,
}

impl std::fmt::Debug for TextPieces<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} bytes are left", self.left, self.len)
    }
}

impl<'a> TextPieces<'a> {
    /// A value that is in memory, as it is in the file.
    ///
    /// # Errors
    /// [`SnapshotError`]
    pub fn of(raw: &'a [u8]) -> Result<Option<Self>> {
        Self::open(Source::at(Box::new(raw), 0))
    }

    /// A value of `len` bytes at `at` of a file.
    ///
    /// # Errors
    /// [`SnapshotError`]
    pub fn of_file(file: &Path, (at, len): (u64, u64)) -> Result<Option<TextPieces<'static>>> {
        TextPieces::open(Source::at(Box::new(open_value(file, at, len)?.into_inner()), at))
    }

    /// Nothing where the string is a number.
    fn open(mut input: Source<Box<dyn Read + 'a>>) -> Result<Option<Self>> {
        let (len, lzf) = match input.length_or_encoding()? {
            Length::Plain(len) => (len, None),
            Length::Encoded(StringEncoding::Lzf) => {
                let compressed = input.length()?;
                let len = input.length()?;
                (len, Some(Lzf::new(compressed, len, input.offset())?))
            }
            Length::Encoded(_) => return Ok(None),
        };
        Ok(Some(Self { input, len, left: len, lzf }))
    }

    /// Bytes of the string.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether the string is empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where in the value, or in its file, the next piece begins.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.input.offset()
    }

    /// The next bytes, at most `max`; none at the end.
    ///
    /// # Errors
    /// [`SnapshotError`]
    pub fn next(&mut self, max: usize) -> Result<Vec<u8>> {
        let n = self.left.min(max as u64);
        let piece = match &mut self.lzf {
            None => self.input.take_vec(n)?,
            Some(lzf) => lzf.next(&mut self.input, n)?,
        };
        self.left -= n;
        if self.left == 0 && !self.input.is_at_end()? {
            return Err(SnapshotError::TrailingBytes { offset: self.input.offset() });
        }
        Ok(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(raw: &[u8], max: usize) -> Result<Vec<u8>> {
        let mut text = TextPieces::of(raw)?.expect("a text");
        let mut out = Vec::new();
        loop {
            let piece = text.next(max)?;
            if piece.is_empty() {
                assert_eq!(out.len() as u64, text.len());
                return Ok(out);
            }
            assert!(piece.len() <= max);
            out.extend(piece);
        }
    }

    #[test]
    fn pieces_make_up_the_string() {
        for max in [1, 3, 100] {
            assert_eq!(all(b"\x07abcdefg", max).unwrap(), b"abcdefg");
            assert_eq!(all(b"\xc3\x05\x0a\x00a\xe0\x00\x00", max).unwrap(), b"aaaaaaaaaa");
        }
        assert!(TextPieces::of(b"\xc0\x05").unwrap().is_none());
        // 40,000 times the same byte: references reach over the ends of pieces.
        let mut raw = vec![0x00, b'z'];
        for _ in 0..151 {
            raw.extend([0xe0, 0xff, 0x00]);
        }
        raw.extend([0xe0, 0x7f, 0x00]);
        let len = 1 + 151 * 264 + 136;
        let mut value = vec![0xc3, 0x40 | (raw.len() >> 8) as u8, raw.len() as u8, 0x80];
        value.extend((len as u32).to_be_bytes());
        value.extend(raw);
        assert_eq!(all(&value, 10_000).unwrap(), vec![b'z'; len]);
    }

    #[test]
    fn lies_are_refused() {
        assert!(matches!(all(b"\x05abc", 2), Err(SnapshotError::Truncated { .. })));
        assert!(matches!(all(b"\x02abc", 2), Err(SnapshotError::TrailingBytes { .. })));
        let bad: [&[u8]; 4] = [
            b"\xc3\x05\x81\x00\x00\x00\xff\x00\x00\x00\x00\x00a\xe0\x00\x00",
            b"\xc3\x05\x09\x00a\xe0\x00\x00",
            b"\xc3\x05\x0b\x00a\xe0\x00\x00",
            b"\xc3\x05\x0a\x00a\xe0\x00\x09",
        ];
        for raw in bad {
            assert!(all(raw, 3).is_err(), "{raw:?}");
        }
    }
}
