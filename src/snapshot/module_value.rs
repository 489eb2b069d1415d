//! What modules write into an RDB: the id of a data type, and tagged numbers and strings.
//!
//! The id holds the nine characters of the type's name, six bits each, and ten bits of encoding version.

use std::borrow::Cow;

use super::error::SnapshotError;
use super::input::{Input, Slice};
use super::strings::read_string;

const CHARSET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The id of a data type, or nothing if the name has a character outside `A-Za-z0-9-_` or the encoding version
/// is over 1023.
#[must_use]
pub fn type_id(name: &[u8; 9], encoding_version: u16) -> Option<u64> {
    let mut id = 0u64;
    for c in name {
        let index = CHARSET.iter().position(|known| known == c)?;
        id = (id << 6) | index as u64;
    }
    (encoding_version < 1024).then_some((id << 10) | u64::from(encoding_version))
}

/// The name of the data type in an id.
#[must_use]
pub fn type_name(id: u64) -> [u8; 9] {
    let mut rest = id >> 10;
    let mut name = [0u8; 9];
    for slot in name.iter_mut().rev() {
        *slot = CHARSET.get((rest & 63) as usize).copied().unwrap_or(b'?');
        rest >>= 6;
    }
    name
}

/// The encoding version in an id.
#[must_use]
pub const fn encoding_version(id: u64) -> u16 {
    (id & 1023) as u16
}

/// The id that the value of a key of a module's type begins with.
#[must_use]
pub fn value_type(value: &[u8]) -> Option<u64> {
    Slice::new(value).length().ok()
}

/// One thing that a module wrote.
#[derive(Clone, Debug, PartialEq)]
pub enum Item<'a> {
    /// `RM_SaveSigned`.
    Signed(i64),
    /// `RM_SaveUnsigned`.
    Unsigned(u64),
    /// `RM_SaveFloat`.
    Float(f32),
    /// `RM_SaveDouble`.
    Double(f64),
    /// `RM_SaveString`, `RM_SaveStringBuffer`.
    String(Cow<'a, [u8]>),
}

/// The things that a module wrote, up to its end mark.
#[derive(Clone, Debug)]
pub struct Items<'a> {
    input: Slice<'a>,
    done: bool,
}

impl<'a> Items<'a> {
    /// Of the body of an aux field or, past the type id, of a value.
    #[must_use]
    pub const fn new(body: &'a [u8]) -> Self {
        Self { input: Slice::new(body), done: false }
    }

    fn read(&mut self) -> Result<Option<Item<'a>>, SnapshotError> {
        let input = &mut self.input;
        let offset = input.offset();
        Ok(Some(match input.length()? {
            0 => return Ok(None),
            1 => Item::Signed(input.length()? as i64),
            2 => Item::Unsigned(input.length()?),
            3 => Item::Float(f32::from_le_bytes(input.array()?)),
            4 => Item::Double(f64::from_le_bytes(input.array()?)),
            5 => Item::String(read_string(input)?),
            number => return Err(SnapshotError::BadNumber { what: "module opcode", number, offset }),
        }))
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Result<Item<'a>, SnapshotError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let item = self.read().transpose();
        self.done = !matches!(item, Some(Ok(_)));
        item
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_hold_name_and_version() {
        let id = type_id(b"redisdrx1", 7).unwrap();
        assert_eq!(type_name(id), *b"redisdrx1");
        assert_eq!(encoding_version(id), 7);
        // 'A' counts as zero and '_' as 63.
        assert_eq!(type_id(b"AAAAAAAAA", 0), Some(0));
        assert_eq!(type_id(b"_________", 1023), Some(u64::MAX));
        assert_eq!(type_id(b"redis drx", 0), None);
        assert_eq!(type_id(b"redisdrx1", 1024), None);
    }

    #[test]
    fn items_are_read_up_to_the_end_mark() {
        let mut body = vec![1, 0x81];
        body.extend((-5i64).to_be_bytes());
        body.extend([2, 7, 4]);
        body.extend(1.5f64.to_le_bytes());
        body.extend(b"\x05\x02hi\x00");
        let items: Vec<_> = Items::new(&body).collect::<Result<_, _>>().unwrap();
        let string = Item::String(Cow::Borrowed(&b"hi"[..]));
        assert_eq!(items, [Item::Signed(-5), Item::Unsigned(7), Item::Double(1.5), string]);
        let cut = body.len() - 2;
        assert!(matches!(Items::new(&body[..cut]).last(), Some(Err(SnapshotError::Truncated { .. }))));
    }
}
