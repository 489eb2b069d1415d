//! Strings of an RDB: plain, small integers, LZF.

use std::borrow::Cow;

use super::error::SnapshotError;
use super::input::{Input, Length, Slice, StringEncoding, Take};

/// The most bytes that one LZF control sequence of `n` bytes can stand for: three bytes repeat 264.
const LZF_RATIO: u64 = 88;

/// Reads a string and decodes it.
pub(super) fn read_string<'a>(input: &mut Slice<'a>) -> Result<Cow<'a, [u8]>, SnapshotError> {
    let number = match input.length_or_encoding()? {
        Length::Plain(n) => return input.take(n).map(Cow::Borrowed),
        Length::Encoded(StringEncoding::Int8) => i32::from(i8::from_le_bytes(input.array()?)),
        Length::Encoded(StringEncoding::Int16) => i32::from(i16::from_le_bytes(input.array()?)),
        Length::Encoded(StringEncoding::Int32) => i32::from_le_bytes(input.array()?),
        Length::Encoded(StringEncoding::Lzf) => {
            let compressed = input.length()?;
            let len = input.length()?;
            let offset = input.offset();
            let bytes = input.take(compressed)?;
            return lzf_decode(bytes, len, offset).map(Cow::Owned);
        }
    };
    Ok(Cow::Owned(number.to_string().into_bytes()))
}

/// As [`read_string`], from any input.
pub(super) fn read_string_vec(input: &mut impl Take) -> Result<Vec<u8>, SnapshotError> {
    let number = match input.length_or_encoding()? {
        Length::Plain(n) => return input.take_vec(n),
        Length::Encoded(StringEncoding::Int8) => i32::from(i8::from_le_bytes(input.array()?)),
        Length::Encoded(StringEncoding::Int16) => i32::from(i16::from_le_bytes(input.array()?)),
        Length::Encoded(StringEncoding::Int32) => i32::from_le_bytes(input.array()?),
        Length::Encoded(StringEncoding::Lzf) => {
            let compressed = input.length()?;
            let len = input.length()?;
            let offset = input.offset();
            let bytes = input.take_vec(compressed)?;
            return lzf_decode(&bytes, len, offset);
        }
    };
    Ok(number.to_string().into_bytes())
}

/// Decodes LZF. `len` is what the file says the result must measure, `offset` where `bytes` start.
fn lzf_decode(bytes: &[u8], len: u64, offset: u64) -> Result<Vec<u8>, SnapshotError> {
    let bad = || SnapshotError::Corrupt { what: "bad LZF string", offset };
    Lzf::new(bytes.len() as u64, len, offset)?;
    let len = usize::try_from(len).map_err(|_| bad())?;
    let mut out = Vec::with_capacity(len.min(FIRST_BUFFER));
    let mut rest = bytes;
    while let Some((&control, behind)) = rest.split_first() {
        rest = behind;
        let control = usize::from(control);
        if control < 32 {
            let (literal, behind) = rest.split_at_checked(control + 1).ok_or_else(bad)?;
            out.extend_from_slice(literal);
            rest = behind;
        } else {
            let mut count = control >> 5;
            if count == 7 {
                let (&more, behind) = rest.split_first().ok_or_else(bad)?;
                count += usize::from(more);
                rest = behind;
            }
            let (&low, behind) = rest.split_first().ok_or_else(bad)?;
            rest = behind;
            let back = ((control & 0x1f) << 8) + usize::from(low) + 1;
            copy_back(&mut out, back, count + 2).ok_or_else(bad)?;
        }
        if out.len() > len {
            return Err(bad());
        }
    }
    if out.len() == len {
        Ok(out)
    } else {
        Err(bad())
    }
}

/// What is allocated ahead for a string that says it is long.
const FIRST_BUFFER: usize = 1024 * 1024;

/// How far back a reference of LZF reaches.
const LZF_WINDOW: usize = 8192;

/// Decodes LZF step by step.
pub(super) struct Lzf {
    /// Compressed bytes that are not read yet.
    left: u64,
    out: Vec<u8>,
    /// Bytes of `out` that were handed out.
    given: usize,
    /// Bytes that are still to be handed out.
    due: u64,
    offset: u64,
}

impl Lzf {
    /// `offset` is where the compressed bytes start.
    pub(super) fn new(compressed: u64, len: u64, offset: u64) -> Result<Self, SnapshotError> {
        if len > compressed.saturating_mul(LZF_RATIO) {
            return Err(SnapshotError::BadNumber { what: "length of an LZF string", number: len, offset });
        }
        Ok(Self { left: compressed, out: Vec::new(), given: 0, due: len, offset })
    }

    fn bad(&self) -> SnapshotError {
        SnapshotError::Corrupt { what: "bad LZF string", offset: self.offset }
    }

    fn ahead(&self) -> usize {
        self.out.len() - self.given
    }

    /// The next `n` bytes of the result.
    pub(super) fn next(&mut self, input: &mut impl Take, n: u64) -> Result<Vec<u8>, SnapshotError> {
        let n = usize::try_from(n).map_err(|_| self.bad())?;
        while self.left > 0 && (self.ahead() < n || self.due == n as u64) {
            self.step(input)?;
            if self.ahead() as u64 > self.due {
                return Err(self.bad());
            }
        }
        let piece =
            self.out.get(self.given..self.given.saturating_add(n)).ok_or_else(|| self.bad())?.to_vec();
        self.given += n;
        self.due = self.due.saturating_sub(n as u64);
        // In large steps, so that little is moved.
        if self.given > 16 * LZF_WINDOW {
            self.out.drain(..self.given - LZF_WINDOW);
            self.given = LZF_WINDOW;
        }
        Ok(piece)
    }

    /// One control sequence.
    fn step(&mut self, input: &mut impl Take) -> Result<(), SnapshotError> {
        let control = usize::from(self.byte(input)?);
        if control < 32 {
            let literal = control as u64 + 1;
            self.left = self.left.checked_sub(literal).ok_or_else(|| self.bad())?;
            self.out.extend(input.take_vec(literal)?);
            return Ok(());
        }
        let mut count = control >> 5;
        if count == 7 {
            count += usize::from(self.byte(input)?);
        }
        let back = ((control & 0x1f) << 8) + usize::from(self.byte(input)?) + 1;
        copy_back(&mut self.out, back, count + 2).ok_or_else(|| self.bad())
    }

    fn byte(&mut self, input: &mut impl Take) -> Result<u8, SnapshotError> {
        self.left = self.left.checked_sub(1).ok_or_else(|| self.bad())?;
        input.byte()
    }
}

/// Repeats `count` bytes from `back` bytes before the end; they may overlap what is being written.
fn copy_back(out: &mut Vec<u8>, back: usize, count: usize) -> Option<()> {
    let from = out.len().checked_sub(back)?;
    if count <= back {
        out.extend_from_within(from..from + count);
    } else {
        for at in from..from + count {
            let byte = *out.get(at)?;
            out.push(byte);
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Result<Vec<u8>, SnapshotError> {
        let borrowed = read_string(&mut Slice::new(bytes)).map(Cow::into_owned);
        let owned = read_string_vec(&mut Slice::new(bytes));
        assert_eq!(format!("{borrowed:?}"), format!("{owned:?}"));
        borrowed
    }

    #[test]
    fn decodes_every_form() {
        assert_eq!(decode(b"\x03abc").unwrap(), b"abc");
        assert_eq!(decode(b"\xc0\xfe").unwrap(), b"-2");
        assert_eq!(decode(b"\xc1\x00\x80").unwrap(), b"-32768");
        assert_eq!(decode(b"\xc2\x00\x00\x00\x80").unwrap(), b"-2147483648");
        // One literal 'a', then nine bytes from one back: control 7<<5, 0 more, distance 0.
        assert_eq!(decode(b"\xc3\x05\x0a\x00a\xe0\x00\x00").unwrap(), b"aaaaaaaaaa");
    }

    #[test]
    fn refuses_lies_about_lengths() {
        let huge = b"\xc3\x05\x81\x00\x00\x00\xff\x00\x00\x00\x00\x00a\xe0\x00\x00";
        assert!(matches!(decode(huge), Err(SnapshotError::BadNumber { .. })));
        assert!(matches!(decode(b"\x80\xff\xff\xff\xffabc"), Err(SnapshotError::Truncated { offset: 8 })));
        assert!(matches!(decode(b"\xc3\x05\x09\x00a\xe0\x00\x00"), Err(SnapshotError::Corrupt { .. })));
        assert!(matches!(decode(b"\xc3\x05\x0a\x00a\xe0\x00\x09"), Err(SnapshotError::Corrupt { .. })));
        assert!(matches!(decode(b"\xc4"), Err(SnapshotError::BadNumber { number: 4, .. })));
        assert!(matches!(decode(b"\x90"), Err(SnapshotError::BadNumber { number: 0x90, .. })));
    }
}
