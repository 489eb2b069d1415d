//! Op ids, histories and lineages: where an op stands in the operation stream of a shard.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::FormatError;

/// Position of an op's last byte in the shard's operation stream, like a WAL's LSN: dense, monotonic, the same
/// on every node of a shard. 0 stands before the first op.
pub type OpId = u64;

/// The 40-hex-digit replication id under which a run of ops was produced.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct History([u8; 40]);

impl History {
    /// Takes 40 lower-case hex digits.
    ///
    /// # Errors
    /// [`FormatError::Value`] with the length or the first byte that is no such digit.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        let array: [u8; 40] = bytes
            .try_into()
            .map_err(|_| FormatError::Value { field: "history length", got: bytes.len() as u64 })?;
        match array.iter().find(|b| !matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            Some(b) => Err(FormatError::Value { field: "history digit", got: u64::from(*b) }),
            None => Ok(Self(array)),
        }
    }

    /// The 40 digits.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 40] {
        &self.0
    }

    /// The 40 digits as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Hex digits only, by construction.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for History {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for History {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::from_bytes(text.as_bytes()).map_err(serde::de::Error::custom)
    }
}

/// One run of ops in a lineage: `history` produced the ops from `first_op` on, up to where the next begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineageItem {
    /// The history.
    pub history: History,
    /// Id of the first position that belongs to it.
    pub first_op: OpId,
}

/// The histories that a log went through, oldest first, `first_op` never falling.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<LineageItem>")]
pub struct Lineage(Vec<LineageItem>);

/// Where two lineages part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Common {
    /// They share no history.
    Unrelated,
    /// They agree up to and including this op id.
    UpTo(OpId),
}

impl Lineage {
    /// At most this many items are kept or accepted; the oldest are forgotten first.
    pub const MAX_ITEMS: usize = 1024;

    /// A lineage from its items.
    ///
    /// # Errors
    /// [`FormatError::Value`] where `first_op` falls or there are more than [`Self::MAX_ITEMS`].
    pub fn from_items(items: Vec<LineageItem>) -> Result<Self, FormatError> {
        if items.len() > Self::MAX_ITEMS {
            return Err(FormatError::Value { field: "lineage items", got: items.len() as u64 });
        }
        let falls = items.iter().zip(items.iter().skip(1)).find(|(a, b)| a.first_op > b.first_op);
        match falls {
            Some((_, b)) => Err(FormatError::Value { field: "lineage first op", got: b.first_op }),
            None => Ok(Self(items)),
        }
    }

    /// The items, oldest first.
    #[must_use]
    pub fn items(&self) -> &[LineageItem] {
        &self.0
    }

    /// Whether it has no history at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The newest history.
    #[must_use]
    pub fn current(&self) -> Option<LineageItem> {
        self.0.last().copied()
    }

    /// Opens a new history at `first_op`. Histories that would begin at or after it never had an op and are
    /// forgotten; opening the current history again changes nothing.
    pub fn open(&mut self, history: History, first_op: OpId) {
        if self.current().is_some_and(|c| c.history == history && c.first_op <= first_op) {
            return;
        }
        self.0.retain(|i| i.first_op < first_op);
        self.0.push(LineageItem { history, first_op });
        let excess = self.0.len().saturating_sub(Self::MAX_ITEMS);
        self.0.drain(..excess);
    }

    /// Forgets what lies above `op`: afterwards the newest history is the one that produced `op`.
    pub fn cut_after(&mut self, op: OpId) {
        self.0.retain(|i| i.first_op <= op);
    }

    /// The history that produced the op at `op`.
    #[must_use]
    pub fn history_of(&self, op: OpId) -> Option<History> {
        self.0.iter().rev().find(|i| i.first_op <= op).map(|i| i.history)
    }

    /// How far this lineage, written up to `own_end`, agrees with `other`, written up to `other_end`: the
    /// highest op id after which both are in the same state of the same history.
    #[must_use]
    pub fn common(&self, own_end: OpId, other: &Self, other_end: OpId) -> Common {
        // Histories are random ids, each opened at one place: where both are in one at the same op id, they
        // hold the same data. The op before a history's first is a state of it, too: a history in which one side
        // has not written yet counts up to there.
        let mut best: Option<OpId> = None;
        for (i, mine) in self.0.iter().enumerate().rev() {
            let my_end = self.end_of(i, own_end);
            if best.is_some_and(|b| b >= my_end) {
                break;
            }
            for (j, _) in other.0.iter().enumerate().filter(|(_, t)| t.history == mine.history) {
                let end = my_end.min(other.end_of(j, other_end));
                if end >= self.start_of(i).max(other.start_of(j)) {
                    best = best.max(Some(end));
                }
            }
        }
        best.map_or(Common::Unrelated, Common::UpTo)
    }

    /// The op whose state the item at `i` began from.
    fn start_of(&self, i: usize) -> OpId {
        self.0.get(i).map_or(0, |item| item.first_op.saturating_sub(1))
    }

    /// The last op of the item at `i` in a log that ends with `end`.
    fn end_of(&self, i: usize, end: OpId) -> OpId {
        self.0.get(i + 1).map_or(end, |next| next.first_op.saturating_sub(1).min(end))
    }
}

impl TryFrom<Vec<LineageItem>> for Lineage {
    type Error = FormatError;

    fn try_from(items: Vec<LineageItem>) -> Result<Self, FormatError> {
        Self::from_items(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn h(c: u8) -> History {
        History::from_bytes(&[c; 40]).unwrap()
    }

    fn lineage(items: &[(u8, OpId)]) -> Lineage {
        let items = items.iter().map(|(c, o)| LineageItem { history: h(*c), first_op: *o }).collect();
        Lineage::from_items(items).unwrap()
    }

    #[test]
    fn a_history_is_forty_hex_digits() {
        assert!(History::from_bytes(b"0123").is_err());
        assert!(History::from_bytes(&[b'G'; 40]).is_err());
        assert_eq!(h(b'a').as_str(), "a".repeat(40));
    }

    #[test]
    fn common_is_where_the_first_leaves_a_shared_history() {
        let source = lineage(&[(b'a', 1), (b'b', 101)]);
        assert_eq!(source.common(200, &lineage(&[(b'a', 1)]), 50), Common::UpTo(50));
        assert_eq!(source.common(200, &lineage(&[(b'a', 1)]), 120), Common::UpTo(100));
        assert_eq!(source.common(200, &lineage(&[(b'a', 1), (b'c', 81)]), 90), Common::UpTo(80));
        assert_eq!(source.common(200, &lineage(&[(b'a', 1), (b'b', 101)]), 150), Common::UpTo(150));
        assert_eq!(source.common(200, &lineage(&[(b'd', 1)]), 150), Common::Unrelated);
        assert_eq!(source.common(200, &Lineage::default(), 0), Common::Unrelated);
    }

    #[test]
    fn opening_forgets_histories_without_ops() {
        let mut l = lineage(&[(b'a', 1), (b'b', 101)]);
        l.open(h(b'c'), 101);
        assert_eq!(l, lineage(&[(b'a', 1), (b'c', 101)]));
        l.open(h(b'c'), 150);
        assert_eq!(l, lineage(&[(b'a', 1), (b'c', 101)]));
        l.cut_after(100);
        assert_eq!(l, lineage(&[(b'a', 1)]));
    }
}
