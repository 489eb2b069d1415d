//! How far a value reaches. Only the lengths inside the encodings matter here: the bytes stay as they are.

use super::error::SnapshotError;
use super::input::Input;
use super::reader::Flavor;

type Result<T> = std::result::Result<T, SnapshotError>;

/// Numbers of the value types, as in the file.
pub(super) mod types {
    pub const STRING: u8 = 0;
    pub const LIST: u8 = 1;
    pub const SET: u8 = 2;
    pub const ZSET: u8 = 3;
    pub const HASH: u8 = 4;
    pub const ZSET_2: u8 = 5;
    pub const MODULE_2: u8 = 7;
    pub const HASH_ZIPMAP: u8 = 9;
    pub const LIST_ZIPLIST: u8 = 10;
    pub const SET_INTSET: u8 = 11;
    pub const ZSET_ZIPLIST: u8 = 12;
    pub const HASH_ZIPLIST: u8 = 13;
    pub const LIST_QUICKLIST: u8 = 14;
    pub const STREAM_LISTPACKS: u8 = 15;
    pub const HASH_LISTPACK: u8 = 16;
    pub const ZSET_LISTPACK: u8 = 17;
    pub const LIST_QUICKLIST_2: u8 = 18;
    pub const STREAM_LISTPACKS_2: u8 = 19;
    pub const SET_LISTPACK: u8 = 20;
    pub const STREAM_LISTPACKS_3: u8 = 21;
    /// Redis only; Valkey gives the number another meaning.
    pub const HASH_METADATA_PRE_GA: u8 = 22;
    /// Redis only.
    pub const HASH_LISTPACK_EX_PRE_GA: u8 = 23;
    /// Redis only.
    pub const HASH_METADATA: u8 = 24;
    /// Redis only.
    pub const HASH_LISTPACK_EX: u8 = 25;
    /// Valkey only.
    pub const VALKEY_HASH_2: u8 = 22;
}

/// The highest number that is a type and not an opcode, in any server up to now.
pub(super) const LAST_TYPE: u8 = 127;

/// Passes over one value.
pub(super) fn skip_value(input: &mut impl Input, type_byte: u8, flavor: Flavor, type_at: u64) -> Result<()> {
    use types::*;
    match (type_byte, flavor) {
        (STRING | HASH_ZIPMAP..=HASH_ZIPLIST | HASH_LISTPACK | ZSET_LISTPACK | SET_LISTPACK, _) => {
            input.skip_string()
        }
        (LIST | SET | LIST_QUICKLIST, _) => repeat(input, |i| i.skip_string()),
        (ZSET, _) => repeat(input, |i| {
            i.skip_string()?;
            skip_text_double(i)
        }),
        (HASH, _) => repeat(input, skip_pair),
        (ZSET_2, _) => repeat(input, |i| {
            i.skip_string()?;
            i.skip(8)
        }),
        (MODULE_2, _) => {
            input.length()?;
            skip_module(input)
        }
        (LIST_QUICKLIST_2, _) => repeat(input, |i| {
            i.length()?;
            i.skip_string()
        }),
        (STREAM_LISTPACKS, _) => skip_stream(input, 1),
        (STREAM_LISTPACKS_2, _) => skip_stream(input, 2),
        (STREAM_LISTPACKS_3, _) => skip_stream(input, 3),
        (HASH_METADATA_PRE_GA, Flavor::Redis) => repeat(input, skip_timed_pair),
        (HASH_LISTPACK_EX_PRE_GA, Flavor::Redis) => input.skip_string(),
        (HASH_METADATA, Flavor::Redis) => {
            input.skip(8)?;
            repeat(input, skip_timed_pair)
        }
        (HASH_LISTPACK_EX, Flavor::Redis) => {
            input.skip(8)?;
            input.skip_string()
        }
        (VALKEY_HASH_2, Flavor::Valkey) => repeat(input, |i| {
            skip_pair(i)?;
            i.skip(8)
        }),
        _ => Err(SnapshotError::UnknownType { number: type_byte, offset: type_at }),
    }
}

/// Passes over the numbers and strings that a module wrote, up to and with its end mark.
pub(super) fn skip_module(input: &mut impl Input) -> Result<()> {
    loop {
        let offset = input.offset();
        match input.length()? {
            0 => return Ok(()),
            1 | 2 => {
                input.length()?;
            }
            3 => input.skip(4)?,
            4 => input.skip(8)?,
            5 => input.skip_string()?,
            number => return Err(SnapshotError::BadNumber { what: "module opcode", number, offset }),
        }
    }
}

fn repeat<I: Input>(input: &mut I, mut each: impl FnMut(&mut I) -> Result<()>) -> Result<()> {
    let count = input.length()?;
    for _ in 0..count {
        each(input)?;
    }
    Ok(())
}

fn skip_pair<I: Input>(input: &mut I) -> Result<()> {
    input.skip_string()?;
    input.skip_string()
}

fn skip_timed_pair<I: Input>(input: &mut I) -> Result<()> {
    input.length()?;
    skip_pair(input)
}

/// The old form of a score: its text with a length byte, or one of three marks for what has no text.
fn skip_text_double(input: &mut impl Input) -> Result<()> {
    match input.byte()? {
        253..=255 => Ok(()),
        n => input.skip(n.into()),
    }
}

fn skip_stream<I: Input>(input: &mut I, form: u8) -> Result<()> {
    repeat(input, skip_pair)?;
    // Length and last id; then first id, highest deleted id and the count of entries ever added.
    skip_lengths(input, if form >= 2 { 8 } else { 3 })?;
    skip_stream_groups(input, form)
}

/// Passes over the groups of a stream.
pub(super) fn skip_stream_groups<I: Input>(input: &mut I, form: u8) -> Result<()> {
    repeat(input, |i| skip_group(i, form))
}

fn skip_group<I: Input>(input: &mut I, form: u8) -> Result<()> {
    input.skip_string()?;
    skip_lengths(input, if form >= 2 { 3 } else { 2 })?;
    // Pending entries: id, time of delivery, count of deliveries.
    repeat(input, |i| {
        i.skip(16 + 8)?;
        i.length().map(|_| ())
    })?;
    // Consumers: name, time seen, since form 3 time active, ids of their pending entries.
    repeat(input, |i| {
        i.skip_string()?;
        i.skip(if form >= 3 { 16 } else { 8 })?;
        repeat(i, |i| i.skip(16))
    })
}

fn skip_lengths(input: &mut impl Input, count: u32) -> Result<()> {
    for _ in 0..count {
        input.length()?;
    }
    Ok(())
}
