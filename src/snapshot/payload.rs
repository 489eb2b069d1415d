//! Arguments for RESTORE, made of slices of an RDB file.
//!
//! A payload is: type byte, value, RDB version (two bytes, little-endian), CRC64 of all that.
//!
//! The version to write is that of the RDB file which the value comes from. A server takes versions up to its
//! own; Valkey since 8.1 besides refuses 12 to 79 unless `rdb-version-check` is `relaxed`, because its own
//! numbering goes from 11 to 80 and types mean other things in between. So an older server refuses what a newer
//! one saved, although many values would be the same. [`lowest_version`] tells which ones.

use std::borrow::Cow;

use super::crc64::Crc64;
use super::input::{Input, Slice, Take};
use super::reader::Flavor;
use super::strings::read_string;
use super::value::types;

/// First byte of a compressed string.
const LZF: u8 = 0xc3;

/// Bytes of a payload that are not the value.
pub const PAYLOAD_OVERHEAD: usize = 1 + 2 + 8;

/// Appends the RESTORE payload of a value to `out`. Its length is that of `raw` plus [`PAYLOAD_OVERHEAD`].
pub fn restore_payload(type_byte: u8, raw: &[u8], rdb_version: u16, out: &mut Vec<u8>) {
    out.reserve(raw.len() + PAYLOAD_OVERHEAD);
    let version = rdb_version.to_le_bytes();
    let mut crc = Crc64::new();
    crc.update(&[type_byte]);
    crc.update(raw);
    crc.update(&version);
    out.push(type_byte);
    out.extend_from_slice(raw);
    out.extend_from_slice(&version);
    out.extend_from_slice(&crc.value().to_le_bytes());
}

/// The string in a RESTORE payload, where it is one that is stored as it is: neither as an integer nor compressed.
/// The checksum is not computed.
#[must_use]
pub fn plain_string(payload: &[u8]) -> Option<&[u8]> {
    let (kind, rest) = payload.split_first()?;
    let value = rest.get(..rest.len().checked_sub(PAYLOAD_OVERHEAD - 1)?)?;
    let (head, len) = match *value.first()? {
        _ if *kind != types::STRING => return None,
        b @ 0..=0x3f => (1, u64::from(b)),
        b @ 0x40..=0x7f => (2, u64::from(b & 0x3f) << 8 | u64::from(*value.get(1)?)),
        0x80 => (5, u64::from(u32::from_be_bytes(value.get(1..5)?.try_into().ok()?))),
        _ => return None,
    };
    value.get(head..).filter(|text| text.len() as u64 == len)
}

/// The text of a string value as it is in a file, where RESTORE would store that text: not where it is a number. It may
/// be compressed. What is damaged is left to the server.
#[must_use]
pub fn plain_text(type_byte: u8, raw: &[u8]) -> Option<Cow<'_, [u8]>> {
    let encoded_number = |b: &u8| matches!(b, 0xc0..=0xc2);
    if type_byte != types::STRING || raw.first().is_none_or(encoded_number) {
        return None;
    }
    let mut input = Slice::new(raw);
    let text = read_string(&mut input).ok()?;
    input.is_at_end().ok()?.then_some(text)
}

/// A small collection with its strings as they are, where the file has them compressed: the server then decodes nothing.
/// `None`: it is not compressed, not of that kind, or damaged, which is left to the server.
#[must_use]
pub fn uncompressed(type_byte: u8, raw: &[u8]) -> Option<Vec<u8>> {
    use types::*;
    let mut input = Slice::new(raw);
    let mut out = Vec::new();
    let mut found = false;
    match type_byte {
        HASH_ZIPMAP..=HASH_ZIPLIST | HASH_LISTPACK | ZSET_LISTPACK | SET_LISTPACK => {
            write_out(&mut input, &mut out, &mut found)?;
        }
        LIST_QUICKLIST | LIST_QUICKLIST_2 => {
            let nodes = input.length().ok()?;
            push_length(&mut out, nodes);
            for _ in 0..nodes {
                if type_byte == LIST_QUICKLIST_2 {
                    push_length(&mut out, input.length().ok()?);
                }
                write_out(&mut input, &mut out, &mut found)?;
            }
        }
        _ => return None,
    }
    (found && input.is_empty()).then_some(out)
}

/// Appends the next string of `input`; `found` is set where it is compressed.
fn write_out(input: &mut Slice<'_>, out: &mut Vec<u8>, found: &mut bool) -> Option<()> {
    *found |= input.peek() == Some(LZF);
    let text = read_string(input).ok()?;
    push_length(out, text.len() as u64);
    out.extend_from_slice(&text);
    Some(())
}

/// Appends a length, as files have it.
fn push_length(out: &mut Vec<u8>, len: u64) {
    match (u16::try_from(len), u32::try_from(len)) {
        (Ok(n), _) if n < 1 << 6 => out.extend_from_slice(n.to_be_bytes().get(1..).unwrap_or_default()),
        (Ok(n), _) if n < 1 << 14 => out.extend_from_slice(&(n | 0x4000).to_be_bytes()),
        (_, Ok(n)) => {
            out.push(0x80);
            out.extend_from_slice(&n.to_be_bytes());
        }
        _ => {
            out.push(0x81);
            out.extend_from_slice(&len.to_be_bytes());
        }
    }
}

/// The first RDB version that has a type, or nothing for a type that this code does not know.
///
/// A value of that type may be restored with any version from this one on, whatever the version of the file
/// it comes from: the encoding of a type never changes.
#[must_use]
pub fn lowest_version(type_byte: u8, flavor: Flavor) -> Option<u16> {
    use types::*;
    Some(match (type_byte, flavor) {
        (STRING..=HASH, _) => 1,
        (HASH_ZIPMAP | LIST_ZIPLIST | SET_INTSET | ZSET_ZIPLIST, _) => 2,
        (HASH_ZIPLIST, _) => 4,
        (LIST_QUICKLIST, _) => 7,
        (ZSET_2 | MODULE_2, _) => 8,
        (STREAM_LISTPACKS, _) => 9,
        (HASH_LISTPACK..=STREAM_LISTPACKS_2, _) => 10,
        (SET_LISTPACK | STREAM_LISTPACKS_3, _) => 11,
        (VALKEY_HASH_2, Flavor::Valkey) => 80,
        (HASH_METADATA_PRE_GA..=HASH_LISTPACK_EX, Flavor::Redis) => 12,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_strings_are_found_at_every_length() {
        let payload = |head: &[u8], text: &[u8]| {
            let mut out = Vec::new();
            restore_payload(types::STRING, &[head, text].concat(), 10, &mut out);
            out
        };
        let text = vec![b'x'; 70_001];
        for (head, len) in [
            (&[0u8][..], 0),
            (&[63], 63),
            (&[0x40, 64], 64),
            (&[0x7f, 0xff], 16383),
            (&[0x80, 0, 1, 0x11, 0x70], 70_000),
        ] {
            assert_eq!(plain_string(&payload(head, &text[..len])), Some(&text[..len]), "{len}");
            // A length that does not fit is left to the server.
            assert_eq!(plain_string(&payload(head, &text[..len + 1])), None, "{len}");
        }
        for other in [&[0xc0, 10][..], &[0xc3, 2, 3, b'a', b'b'], &[0x81, 0, 0, 0, 0, 0, 0, 0, 0], &[]] {
            assert_eq!(plain_string(&payload(other, b"")), None, "{other:?}");
        }
        let mut list = Vec::new();
        restore_payload(types::LIST, &[0], 10, &mut list);
        assert_eq!(plain_string(&list), None);
        assert_eq!(plain_string(b"\0"), None);
    }

    #[test]
    fn compressed_collections_are_written_out() {
        // Ten times `a`.
        const TENFOLD: &[u8] = b"\xc3\x05\x0a\x00a\xe0\x00\x00";
        let plain = b"\x0aaaaaaaaaaa";
        for of in [types::HASH_LISTPACK, types::SET_INTSET, types::ZSET_ZIPLIST] {
            assert_eq!(uncompressed(of, TENFOLD).as_deref(), Some(&plain[..]));
            assert_eq!(uncompressed(of, plain), None);
            assert_eq!(uncompressed(of, &[TENFOLD, b"x"].concat()), None);
            assert_eq!(uncompressed(of, &TENFOLD[..7]), None);
        }
        let nodes = [b"\x02\x02", TENFOLD, b"\x01\x02hi"].concat();
        let written = [b"\x02\x02", &plain[..], b"\x01\x02hi"].concat();
        assert_eq!(uncompressed(types::LIST_QUICKLIST_2, &nodes), Some(written));
        for other in [types::STRING, types::HASH, types::STREAM_LISTPACKS_3, types::MODULE_2] {
            assert_eq!(uncompressed(other, TENFOLD), None);
        }
        for len in [0u64, 63, 64, 16383, 16384, 70_000, 1 << 32] {
            let mut out = Vec::new();
            push_length(&mut out, len);
            let mut input = Slice::new(&out);
            assert_eq!((input.length().unwrap(), input.is_empty()), (len, true));
        }
    }

    #[test]
    fn makes_what_dump_makes() {
        // DUMP of `SET k 10` on Redis 7.0 (RDB version 10).
        let mut out = Vec::new();
        restore_payload(0, b"\xc0\x0a", 10, &mut out);
        let (body, crc) = out.split_at(out.len() - 8);
        assert_eq!(body, b"\x00\xc0\x0a\x0a\x00");
        assert_eq!(crc, super::super::crc64::crc64(body).to_le_bytes());
        assert_eq!(out.len(), 2 + PAYLOAD_OVERHEAD);
    }

    #[test]
    fn number_22_differs_between_the_servers() {
        assert_eq!(lowest_version(22, Flavor::Redis), Some(12));
        assert_eq!(lowest_version(22, Flavor::Valkey), Some(80));
        assert_eq!(lowest_version(24, Flavor::Valkey), None);
        assert_eq!(lowest_version(4, Flavor::Valkey), Some(1));
        assert_eq!(lowest_version(6, Flavor::Redis), None);
    }
}
