//! Arguments for RESTORE, made of slices of an RDB file.
//!
//! A payload is: type byte, value, RDB version (two bytes, little-endian), CRC64 of all that.
//!
//! The version to write is that of the RDB file which the value comes from. A server takes versions up to its
//! own; Valkey since 8.1 besides refuses 12 to 79 unless `rdb-version-check` is `relaxed`, because its own
//! numbering goes from 11 to 80 and types mean other things in between. So an older server refuses what a newer
//! one saved, although many values would be the same. [`lowest_version`] tells which ones.

use super::crc64::Crc64;
use super::reader::Flavor;
use super::value::types;

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
