//! What a start finds: which ops the dataset holds, and what the log can add.

use std::sync::atomic::Ordering;

use oplog_format::{History, Lineage, LineageItem, OpId};

use super::node::Node;
use super::shared::{FLAG_HELD, FLAG_INCOMPLETE, FLAG_POSITIONED};
use crate::local::{Conn, LocalError, Reply};
use crate::snapshot::aux::AuxContent;

/// Where the dataset stands that the server has loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dataset {
    /// No key, and nothing loaded.
    Empty,
    /// At this op.
    At {
        /// Last op in it.
        op_id: OpId,
        /// Histories up to there; empty where only the position is known.
        lineage: Lineage,
        /// Whether expiries in it are held.
        held: bool,
    },
    /// Keys, and no word of which ops they are.
    Unknown {
        /// Why.
        why: String,
        /// Whether they are all but the newest ops of the log, as after a crash with an AOF.
        recent: bool,
    },
}

impl Dataset {
    fn unknown(why: &str) -> Self {
        Self::Unknown { why: why.to_owned(), recent: false }
    }
}

/// Lineage of an RDB's field.
pub fn lineage_of(aux: &AuxContent) -> Lineage {
    let item = |(history, first_op): &([u8; 40], u64)| {
        Some(LineageItem { history: History::from_bytes(history).ok()?, first_op: *first_op })
    };
    let items: Option<Vec<LineageItem>> = aux.lineage.iter().map(item).collect();
    items.and_then(|i| Lineage::from_items(i).ok()).unwrap_or_default()
}

/// Whether any database holds a key.
///
/// # Errors
/// The connection's.
pub fn has_keys(conn: &mut Conn) -> Result<bool, LocalError> {
    Ok(conn.info("keyspace")?.keys().any(|k| k.starts_with("db")))
}

impl Node {
    /// Whether what the server has loaded is the copy that was loaded up to `op`, or later than that. It may have been
    /// killed just before or behind the end of the save.
    fn holds_copy_of(&self, op: OpId) -> bool {
        let at = self.shared.applied.load(Ordering::Acquire);
        let known = self.shared.applied_known.load(Ordering::Acquire);
        let whole = !self.shared.loading_data.load(Ordering::Acquire);
        let same = self.shared.ident.load().lineage.history_of(at) == self.log.lineage().history_of(at);
        known && whole && at >= op && same
    }

    /// Finds out where the dataset stands, once the server has loaded it.
    ///
    /// # Errors
    /// The connection's.
    pub fn dataset(&self, conn: &mut Conn) -> Result<Dataset, LocalError> {
        let mut state = self.state.get();
        if let Some(op) = state.copied {
            let whole = self.holds_copy_of(op);
            self.remember(|s| {
                s.copied = None;
                s.loading = !whole;
            });
            state.loading = !whole;
        }
        if state.loading {
            return Ok(Dataset::unknown("a snapshot was being loaded when the server stopped"));
        }
        let keys = has_keys(conn)?;
        let aux = self.shared.loaded.load_full();
        let aof = conn.config_get("appendonly")?.as_deref() == Some("yes");
        // A target's AOF has DR.APPLY as its only writes: the position is exact whatever the stop was like. That of a
        // promoted one goes on with writes of its own, which move no position.
        let follows = state.linked.is_some() || (!state.cut && !self.shared.config.source.is_empty());
        if (follows || !aof) && self.shared.applied_known.load(Ordering::Acquire) {
            return Ok(Dataset::At {
                op_id: self.shared.applied.load(Ordering::Acquire),
                lineage: self.shared.ident.load().lineage.clone(),
                held: true,
            });
        }
        if aof {
            return Ok(match (&self.clean_stop, keys) {
                (Some(stop), _) => {
                    Dataset::At { op_id: stop.op_id, lineage: self.log.lineage(), held: state.rebasing }
                }
                (None, false) => Dataset::Empty,
                (None, true) => Dataset::Unknown {
                    why: "the server has loaded an AOF after a crash, which does not say which ops it holds"
                        .into(),
                    recent: true,
                },
            });
        }
        Ok(match aux {
            Some(aux) if aux.flags & FLAG_INCOMPLETE != 0 => {
                Dataset::unknown("the RDB was saved while a snapshot was being loaded")
            }
            Some(aux) if aux.flags & FLAG_POSITIONED != 0 => {
                Dataset::At { op_id: aux.op_id, lineage: lineage_of(&aux), held: aux.flags & FLAG_HELD != 0 }
            }
            Some(_) if keys => Dataset::unknown("the RDB was saved before the log was attached"),
            None if keys => Dataset::unknown("the RDB has no position of redisdr"),
            _ => Dataset::Empty,
        })
    }
}

/// What is to be done with the log, given the dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// The log ends where the dataset stands.
    InStep,
    /// The log has more: apply what is above this op.
    Replay(OpId),
    /// The dataset is ahead of the log, which goes on above it after a gap.
    Gap(OpId),
    /// Same shard, but nobody knows where the dataset stands: a gap, so that targets take a copy.
    GapUnknown(String),
    /// Nothing in the log belongs to this dataset: it is set aside, and the log starts anew.
    Anew(Lineage, OpId, String),
}

/// Decides, for a node that writes its own log.
pub fn plan(dataset: &Dataset, log_lineage: &Lineage, oldest: OpId, written: OpId) -> Plan {
    let has_ops = written > 0;
    match dataset {
        Dataset::Empty if !has_ops => Plan::InStep,
        // The log reaches back to the very first op: it is the dataset.
        Dataset::Empty if oldest == 1 => Plan::Replay(0),
        Dataset::Empty => Plan::Anew(
            Lineage::default(),
            1,
            "the server has started without a dataset, and the log does not reach back to its beginning"
                .into(),
        ),
        Dataset::Unknown { .. } if !has_ops => Plan::InStep,
        Dataset::Unknown { why, recent: true } => Plan::GapUnknown(why.clone()),
        Dataset::Unknown { why, recent: false } => Plan::Anew(Lineage::default(), 1, why.clone()),
        Dataset::At { op_id, lineage, .. } => {
            let ours = log_lineage.history_of(*op_id);
            let theirs = if lineage.is_empty() { ours } else { lineage.history_of(*op_id) };
            if !has_ops && log_lineage.is_empty() {
                return Plan::Anew(lineage.clone(), op_id + 1, "there is no log with this dataset".into());
            }
            if *op_id > 0 && ours != theirs {
                let why = "the RDB is of another history than the log";
                return Plan::Anew(lineage.clone(), op_id + 1, why.into());
            }
            match op_id {
                op if *op == written => Plan::InStep,
                op if *op > written => Plan::Gap(op + 1),
                op if op + 1 >= oldest => Plan::Replay(*op),
                // Targets hold what is missing here: they must not take this for the newest.
                _ => Plan::Anew(Lineage::default(), 1, "the RDB is older than the log reaches back".into()),
            }
        }
    }
}

/// Asks for a number that a reply must be.
pub fn int(reply: &Reply) -> Option<i64> {
    match reply {
        Reply::Int(n) => Some(*n),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lineage(items: &[(u8, OpId)]) -> Lineage {
        let item = |(c, first_op): &(u8, OpId)| LineageItem {
            history: History::from_bytes(&[*c; 40]).unwrap(),
            first_op: *first_op,
        };
        Lineage::from_items(items.iter().map(item).collect()).unwrap()
    }

    fn at(op_id: OpId, items: &[(u8, OpId)]) -> Dataset {
        Dataset::At { op_id, lineage: lineage(items), held: false }
    }

    #[test]
    fn the_table() {
        let log = lineage(&[(b'a', 1), (b'b', 101)]);
        let p = |d: &Dataset, oldest, written| plan(d, &log, oldest, written);
        assert_eq!(p(&at(200, &[(b'a', 1), (b'b', 101)]), 1, 200), Plan::InStep);
        assert_eq!(p(&at(150, &[(b'a', 1), (b'b', 101)]), 1, 200), Plan::Replay(150));
        assert_eq!(p(&at(100, &[(b'a', 1)]), 101, 200), Plan::Replay(100));
        assert_eq!(p(&at(250, &[(b'a', 1), (b'b', 101)]), 1, 200), Plan::Gap(251));
        assert!(matches!(p(&at(50, &[(b'a', 1)]), 101, 200), Plan::Anew(_, 1, _)));
        assert!(matches!(p(&at(150, &[(b'c', 1)]), 1, 200), Plan::Anew(_, 151, _)));
        assert_eq!(p(&Dataset::Empty, 1, 200), Plan::Replay(0));
        assert!(matches!(p(&Dataset::Empty, 50, 200), Plan::Anew(_, 1, _)));
        assert!(matches!(p(&Dataset::unknown("x"), 1, 200), Plan::Anew(_, 1, _)));
        let crashed = Dataset::Unknown { why: "x".into(), recent: true };
        assert!(matches!(p(&crashed, 1, 200), Plan::GapUnknown(_)));
        let none = Lineage::default();
        assert_eq!(plan(&Dataset::Empty, &none, 1, 0), Plan::InStep);
        assert_eq!(plan(&Dataset::unknown("x"), &none, 1, 0), Plan::InStep);
        assert!(matches!(plan(&at(77, &[(b'a', 1)]), &none, 1, 0), Plan::Anew(_, 78, _)));
    }
}
