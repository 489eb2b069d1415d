//! Listpacks and ziplists: arrays of strings and integers in one run of bytes.

use super::error::SnapshotError;
use super::input::{Input, Slice};

type Result<T> = std::result::Result<T, SnapshotError>;

const END: u8 = 0xff;

/// Which of the two a run of bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Listpack,
    Ziplist,
}

/// Decodes all entries, in order. Integers become their text.
pub(super) fn entries(bytes: &[u8], packing: Packing) -> Result<Vec<Vec<u8>>> {
    let mut input = Slice::new(bytes);
    let total = u32::from_le_bytes(input.array()?);
    if total as usize != bytes.len() {
        return Err(SnapshotError::BadNumber {
            what: "size of a packed list",
            number: total.into(),
            offset: 0,
        });
    }
    // A count of entries, which saturates, and for ziplists the place of the last one: both are redundant.
    input.skip(if packing == Packing::Listpack { 2 } else { 6 })?;
    let mut out = Vec::new();
    loop {
        let offset = input.offset();
        if input.peek() == Some(END) {
            input.byte()?;
            return match input.is_empty() {
                true => Ok(out),
                false => Err(SnapshotError::Corrupt { what: "end inside a packed list", offset }),
            };
        }
        out.push(match packing {
            Packing::Listpack => listpack_entry(&mut input)?,
            Packing::Ziplist => ziplist_entry(&mut input)?,
        });
    }
}

fn text(number: i64) -> Vec<u8> {
    number.to_string().into_bytes()
}

/// A three byte integer, sign extended.
fn int24([a, b, c]: [u8; 3]) -> i64 {
    i64::from(i32::from_le_bytes([0, a, b, c]) >> 8)
}

fn listpack_entry(input: &mut Slice<'_>) -> Result<Vec<u8>> {
    let start = input.offset();
    let first = input.byte()?;
    let low = |mask: u8| u64::from(first & mask);
    let value = match first {
        0x00..=0x7f => text(first.into()),
        0x80..=0xbf => input.take(low(0x3f))?.to_vec(),
        0xc0..=0xdf => {
            let raw = (i64::from(first & 0x1f) << 8) | i64::from(input.byte()?);
            text(if raw >= 1 << 12 { raw - (1 << 13) } else { raw })
        }
        0xe0..=0xef => {
            let len = (low(0x0f) << 8) | u64::from(input.byte()?);
            input.take(len)?.to_vec()
        }
        0xf0 => {
            let len = u32::from_le_bytes(input.array()?);
            input.take(len.into())?.to_vec()
        }
        0xf1 => text(i16::from_le_bytes(input.array()?).into()),
        0xf2 => text(int24(input.array()?)),
        0xf3 => text(i32::from_le_bytes(input.array()?).into()),
        0xf4 => text(i64::from_le_bytes(input.array()?)),
        _ => {
            return Err(SnapshotError::BadNumber {
                what: "listpack encoding",
                number: first.into(),
                offset: start,
            })
        }
    };
    // The entry's size again, seven bits a byte, for walking backwards.
    let size = input.offset() - start;
    input.skip(match size {
        0..=127 => 1,
        128..=16_383 => 2,
        16_384..=2_097_151 => 3,
        2_097_152..=268_435_455 => 4,
        _ => 5,
    })?;
    Ok(value)
}

fn ziplist_entry(input: &mut Slice<'_>) -> Result<Vec<u8>> {
    if input.byte()? == 0xfe {
        input.skip(4)?;
    }
    let start = input.offset();
    let first = input.byte()?;
    let len = match first {
        0x00..=0x3f => u64::from(first),
        0x40..=0x7f => (u64::from(first & 0x3f) << 8) | u64::from(input.byte()?),
        0x80 => u32::from_be_bytes(input.array()?).into(),
        0xc0 => return Ok(text(i16::from_le_bytes(input.array()?).into())),
        0xd0 => return Ok(text(i32::from_le_bytes(input.array()?).into())),
        0xe0 => return Ok(text(i64::from_le_bytes(input.array()?))),
        0xf0 => return Ok(text(int24(input.array()?))),
        0xfe => return Ok(text(i8::from_le_bytes(input.array()?).into())),
        0xf1..=0xfd => return Ok(text(i64::from(first & 0x0f) - 1)),
        _ => {
            return Err(SnapshotError::BadNumber {
                what: "ziplist encoding",
                number: first.into(),
                offset: start,
            })
        }
    };
    input.take(len).map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrap(head: usize, entries: &[&[u8]]) -> Vec<u8> {
        let mut body = entries.concat();
        body.push(END);
        let mut out = ((4 + head + body.len()) as u32).to_le_bytes().to_vec();
        out.extend(vec![0; head]);
        out.extend(body);
        out
    }

    fn strings(bytes: &[u8], packing: Packing) -> Vec<String> {
        entries(bytes, packing).unwrap().into_iter().map(|e| String::from_utf8(e).unwrap()).collect()
    }

    #[test]
    fn listpack_encodings() {
        let long = vec![b'x'; 200];
        let long_entry = [&[0xe0, 200][..], &long, &[1, 0x4a]].concat();
        let bytes = wrap(
            2,
            &[
                &[0x7f, 1],
                &[0x82, b'h', b'i', 3],
                &[0xdf, 0xff, 2],
                &[0xd0, 0x00, 2],
                &[0xcf, 0xff, 2],
                &long_entry,
                &[0xf0, 1, 0, 0, 0, b'y', 6],
                &[0xf1, 0x00, 0x80, 3],
                &[0xf2, 0xff, 0xff, 0x7f, 4],
                &[0xf2, 0x00, 0x00, 0x80, 4],
                &[0xf3, 0xfe, 0xff, 0xff, 0xff, 5],
                &[0xf4, 0, 0, 0, 0, 0, 0, 0, 0x80, 9],
            ],
        );
        let long = String::from_utf8(long).unwrap();
        let min = i64::MIN.to_string();
        assert_eq!(
            strings(&bytes, Packing::Listpack),
            ["127", "hi", "-1", "-4096", "4095", &long, "y", "-32768", "8388607", "-8388608", "-2", &min]
        );
    }

    #[test]
    fn ziplist_encodings() {
        let long = vec![b'x'; 300];
        let long_entry = [&[2, 0x41, 0x2c][..], &long].concat();
        let bytes = wrap(
            6,
            &[
                &[0, 0x02, b'h', b'i'],
                &long_entry,
                &[0xfe, 0x2f, 1, 0, 0, 0x80, 0, 0, 0, 1, b'y'],
                &[5, 0xc0, 0x00, 0x80],
                &[5, 0xd0, 0xfe, 0xff, 0xff, 0xff],
                &[5, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0x80],
                &[5, 0xf0, 0x00, 0x00, 0x80],
                &[5, 0xfe, 0x80],
                &[5, 0xf1],
                &[5, 0xfd],
            ],
        );
        let long = String::from_utf8(long).unwrap();
        let min = i64::MIN.to_string();
        assert_eq!(
            strings(&bytes, Packing::Ziplist),
            ["hi", &long, "y", "-32768", "-2", &min, "-8388608", "-128", "0", "12"]
        );
    }

    #[test]
    fn damage_is_an_error() {
        let good = wrap(2, &[&[0x82, b'h', b'i', 3]]);
        for len in 0..good.len() {
            assert!(entries(&good[..len], Packing::Listpack).is_err(), "{len}");
        }
        let mut early_end = good.clone();
        early_end[6] = END;
        assert!(matches!(
            entries(&early_end, Packing::Listpack),
            Err(SnapshotError::Corrupt { offset: 6, .. })
        ));
        assert!(entries(&wrap(2, &[&[0xf5, 1]]), Packing::Listpack).is_err());
        assert!(entries(&wrap(2, &[&[0xf0, 255, 255, 255, 255, 1]]), Packing::Listpack).is_err());
    }
}
