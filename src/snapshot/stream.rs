//! Streams in pieces: what is not entries by RESTORE, the entries by XADD, the counters by XSETID.
//!
//! The groups come first, with a stream that is still empty: no command makes a consumer, its times and its
//! pending entries exactly as they were, and nothing adds entries below those that are there. The nodes that the
//! entries are in are made anew; how they are cut is no part of the value.

use super::error::SnapshotError;
use super::input::Take;
use super::payload::{lowest_version, restore_payload};
use super::reader::Flavor;
use super::split::Command;
use super::value::{skip_stream_groups, types};

type Result<T> = std::result::Result<T, SnapshotError>;

/// A form of streams in files: what they have besides the entries differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Form {
    type_byte: u8,
}

impl Form {
    pub(super) fn of(type_byte: u8) -> Option<Self> {
        matches!(type_byte, types::STREAM_LISTPACKS | types::STREAM_LISTPACKS_2 | types::STREAM_LISTPACKS_3)
            .then_some(Self { type_byte })
    }

    /// 1 to 3, oldest first.
    const fn number(self) -> u8 {
        match self.type_byte {
            types::STREAM_LISTPACKS => 1,
            types::STREAM_LISTPACKS_2 => 2,
            _ => 3,
        }
    }
}

/// What is not entries.
#[derive(Debug)]
pub(super) struct Rest {
    last_id: (u64, u64),
    /// Highest deleted id and entries ever added.
    counters: Option<((u64, u64), u64)>,
    /// The groups, as they are in the file.
    groups: Option<Vec<u8>>,
}

/// Passes over the entries and reads what follows them.
pub(super) fn rest(input: &mut impl Take, form: Form) -> Result<Rest> {
    for _ in 0..input.length()? {
        input.skip_string()?;
        input.skip_string()?;
    }
    input.length()?;
    let last_id = (input.length()?, input.length()?);
    let mut counters = None;
    if form.number() >= 2 {
        // The first id, which follows from the entries.
        input.length()?;
        input.length()?;
        let deleted = (input.length()?, input.length()?);
        counters = Some((deleted, input.length()?));
    }
    let mut groups = Vec::new();
    while !input.is_at_end()? {
        groups.push(input.byte()?);
    }
    let mut check = super::input::Slice::new(&groups);
    skip_stream_groups(&mut check, form.number())?;
    if !check.is_at_end()? {
        return Err(SnapshotError::TrailingBytes { offset: input.offset() });
    }
    Ok(Rest { last_id, counters, groups: Some(groups) })
}

impl Rest {
    /// RESTORE of a stream with these groups and no entries; once.
    pub(super) fn take_skeleton(&mut self, form: Form, key: &[u8]) -> Option<Command> {
        let groups = self.groups.take()?;
        // No nodes, length 0, last id 0-0; then first id, highest deleted id and entries added, all 0.
        let mut raw = vec![0; if form.number() >= 2 { 9 } else { 4 }];
        raw.extend(groups);
        let version = lowest_version(form.type_byte, Flavor::Redis)?;
        let mut payload = Vec::new();
        restore_payload(form.type_byte, &raw, version, &mut payload);
        Some(vec![b"RESTORE".to_vec(), key.to_vec(), b"0".to_vec(), payload])
    }

    /// XSETID, after the last entry.
    pub(super) fn set_id(&self, key: &[u8]) -> Command {
        let mut out = vec![b"XSETID".to_vec(), key.to_vec(), id_text(self.last_id)];
        if let Some((deleted, added)) = self.counters {
            let added = added.to_string().into_bytes();
            out.extend([b"ENTRIESADDED".to_vec(), added, b"MAXDELETEDID".to_vec(), id_text(deleted)]);
        }
        out
    }
}

fn id_text((ms, seq): (u64, u64)) -> Vec<u8> {
    format!("{ms}-{seq}").into_bytes()
}

const DELETED: u64 = 1;
const SAME_FIELDS: u64 = 2;

/// The entries of one node.
#[derive(Debug)]
pub(super) struct Node {
    base: (u64, u64),
    items: std::vec::IntoIter<Vec<u8>>,
    fields: Vec<Vec<u8>>,
    offset: u64,
}

impl Node {
    /// `id` is the one that those of the entries count from; `offset` is where the node is.
    pub(super) fn open(id: &[u8], items: Vec<Vec<u8>>, offset: u64) -> Result<Self> {
        let half = |at: usize| Some(u64::from_be_bytes(id.get(at..at + 8)?.try_into().ok()?));
        let base = match (id.len(), half(0), half(8)) {
            (16, Some(ms), Some(seq)) => (ms, seq),
            _ => return Err(SnapshotError::Corrupt { what: "id of a stream's node", offset }),
        };
        let mut node = Self { base, items: items.into_iter(), fields: Vec::new(), offset };
        // How many entries there are and how many are marked as deleted: both follow from the entries.
        node.number()?;
        node.number()?;
        let count = node.number()?;
        for _ in 0..count {
            let field = node.item()?;
            node.fields.push(field);
        }
        node.number()?;
        Ok(node)
    }

    fn bad(&self) -> SnapshotError {
        SnapshotError::Corrupt { what: "incomplete entry of a stream", offset: self.offset }
    }

    fn item(&mut self) -> Result<Vec<u8>> {
        self.items.next().ok_or_else(|| self.bad())
    }

    /// Differences may wrap, as the server's own arithmetic does.
    fn number(&mut self) -> Result<u64> {
        let text = self.item()?;
        let number = std::str::from_utf8(&text).ok().and_then(|t| t.parse::<i64>().ok());
        number.map(i64::cast_unsigned).ok_or_else(|| self.bad())
    }

    /// XADD of the next entry that is not deleted.
    pub(super) fn next_add(&mut self, key: &[u8]) -> Result<Option<Command>> {
        while self.items.len() > 0 {
            let flags = self.number()?;
            let (ms, seq) = (self.number()?, self.number()?);
            let id = (self.base.0.wrapping_add(ms), self.base.1.wrapping_add(seq));
            let mut command = vec![b"XADD".to_vec(), key.to_vec(), id_text(id)];
            if flags & SAME_FIELDS == 0 {
                for _ in 0..self.number()? {
                    command.extend([self.item()?, self.item()?]);
                }
            } else {
                for at in 0..self.fields.len() {
                    command.extend(self.fields.get(at).cloned());
                    command.push(self.item()?);
                }
            }
            // How many items the entry has, for reading backwards.
            self.number()?;
            if flags & DELETED == 0 {
                return Ok(Some(command));
            }
        }
        Ok(None)
    }
}
