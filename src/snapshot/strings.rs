//! Strings of an RDB: plain, small integers, LZF.

use std::borrow::Cow;

use super::error::SnapshotError;
use super::input::{Input, Length, Slice, StringEncoding};

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

/// Decodes LZF. `len` is what the file says the result must measure, `offset` where `bytes` start.
fn lzf_decode(bytes: &[u8], len: u64, offset: u64) -> Result<Vec<u8>, SnapshotError> {
    let bad = || SnapshotError::Corrupt { what: "bad LZF string", offset };
    if len > (bytes.len() as u64).saturating_mul(LZF_RATIO) {
        return Err(SnapshotError::BadNumber { what: "length of an LZF string", number: len, offset });
    }
    let len = usize::try_from(len).map_err(|_| bad())?;
    let mut out = Vec::with_capacity(len);
    let mut input = Slice::at(bytes, offset);
    while !input.is_empty() {
        let control = usize::from(input.byte()?);
        if control < 32 {
            out.extend_from_slice(input.take(control as u64 + 1)?);
        } else {
            let mut count = control >> 5;
            if count == 7 {
                count += usize::from(input.byte()?);
            }
            let back = ((control & 0x1f) << 8) + usize::from(input.byte()?) + 1;
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
        read_string(&mut Slice::new(bytes)).map(Cow::into_owned)
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
