//! The guard: what a target does about what its source says. Nothing a source says may empty a target that
//! holds newer data without its operator's word.

use oplog_format::position::Common;
use oplog_format::{Lineage, OpId};

use super::message::{Consent, Relation};

/// How far a target, whose log ends at `last_op`, agrees with a source, whose log holds `oldest..=written`.
#[must_use]
pub fn relation(source: &Lineage, oldest: OpId, written: OpId, target: &Lineage, last_op: OpId) -> Relation {
    match source.common(written, target, last_op) {
        Common::Unrelated => Relation::Unrelated,
        Common::UpTo(common) if common < last_op => {
            Relation::Forked { common, target_bytes: last_op.saturating_sub(common) }
        }
        Common::UpTo(_) if oldest > last_op.saturating_add(1) => Relation::Trimmed { oldest },
        Common::UpTo(_) => Relation::Continue { from: last_op.saturating_add(1) },
    }
}

/// What a target's own log holds above a fork point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// Whether any op in it may have changed data.
    pub effective: bool,
    /// Time between the first and the last of those, in milliseconds.
    pub span_ms: u64,
}

/// What the guard knows of the target.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// No keys and no history but that of its own start.
    pub fresh: bool,
    /// What its operator has said.
    pub consent: Consent,
    /// Its own ops above a fork point, where they can be read.
    pub tail: Option<Tail>,
    /// First op that the source's log has.
    pub oldest: OpId,
    /// Whether rebuilding from its own disk has been tried and cannot be done.
    pub cannot_rebuild: bool,
    /// Longest tail that is set aside without a word from the operator.
    pub fork_tolerance_ms: u64,
}

/// What the target does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Goes on with the source's entries.
    Stream {
        /// The first.
        from: OpId,
    },
    /// Sets its tail aside, rebuilds itself from its own disk and goes on from there.
    Rebuild {
        /// Last op that both hold.
        to: OpId,
    },
    /// Takes the source's data.
    Snapshot {
        /// For the log.
        why: String,
    },
    /// Keeps its data, serves reads, and waits for DR.RESYNC.
    Hold {
        /// For the operator.
        reason: String,
    },
}

/// The table of the guard.
#[must_use]
pub fn decide(relation: Relation, facts: &Facts) -> Decision {
    match relation {
        _ if facts.fresh => snapshot("the target is empty"),
        // Also where it could go on: an op that fails here would fail again.
        _ if facts.consent == Consent::Resync => snapshot("DR.RESYNC"),
        Relation::Continue { from } => Decision::Stream { from },
        Relation::Trimmed { oldest } => {
            snapshot(&format!("the source's log begins at op {oldest}, above the target's position"))
        }
        Relation::Forked { common, target_bytes } => forked(common, target_bytes, facts),
        Relation::Unrelated => Decision::Hold {
            reason:
                "the source shares no history with this target; DR.RESYNC replaces this target's data by \
                     the source's"
                    .to_owned(),
        },
    }
}

fn snapshot(why: &str) -> Decision {
    Decision::Snapshot { why: why.to_owned() }
}

fn forked(common: OpId, bytes: u64, facts: &Facts) -> Decision {
    let tolerated = match facts.tail {
        Some(tail) => !tail.effective || tail.span_ms <= facts.fork_tolerance_ms,
        None => false,
    };
    if !tolerated && facts.consent != Consent::Link {
        let span =
            facts.tail.map_or("an unknown time".to_owned(), |t| format!("{} s", t.span_ms.div_ceil(1000)));
        return Decision::Hold {
            reason: format!(
                "this target holds {bytes} bytes of ops over {span} above op {common} that the source has not, \
                 more than fork-tolerance ({} s) allows; DR.LINK by hand or DR.RESYNC accepts the source",
                facts.fork_tolerance_ms / 1000
            ),
        };
    }
    if facts.cannot_rebuild {
        return snapshot(&format!("forked at op {common}, and this target's disk cannot give that point"));
    }
    if facts.oldest > common.saturating_add(1) {
        return snapshot(&format!("forked at op {common}, the source's log begins at {}", facts.oldest));
    }
    Decision::Rebuild { to: common }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oplog_format::position::LineageItem;
    use oplog_format::History;

    fn lineage(items: &[(u8, OpId)]) -> Lineage {
        let item = |(c, first_op): &(u8, OpId)| LineageItem {
            history: History::from_bytes(&[*c; 40]).unwrap(),
            first_op: *first_op,
        };
        Lineage::from_items(items.iter().map(item).collect()).unwrap()
    }

    #[test]
    fn relations() {
        let source = lineage(&[(b'a', 1), (b'b', 101)]);
        let of = |items: &[(u8, OpId)], last| relation(&source, 50, 200, &lineage(items), last);
        assert_eq!(of(&[(b'a', 1)], 60), Relation::Continue { from: 61 });
        assert_eq!(of(&[(b'a', 1)], 49), Relation::Continue { from: 50 });
        assert_eq!(of(&[(b'a', 1)], 48), Relation::Trimmed { oldest: 50 });
        assert_eq!(of(&[(b'a', 1), (b'b', 101)], 200), Relation::Continue { from: 201 });
        assert_eq!(of(&[(b'a', 1)], 110), Relation::Forked { common: 100, target_bytes: 10 });
        // The source came back without its last ops, still in the same history.
        assert_eq!(of(&[(b'a', 1), (b'b', 101)], 250), Relation::Forked { common: 200, target_bytes: 50 });
        assert_eq!(of(&[(b'c', 1)], 60), Relation::Unrelated);
        // An empty source: nothing but a history of its own.
        let empty = lineage(&[(b'e', 1)]);
        assert_eq!(relation(&empty, 1, 0, &lineage(&[(b'a', 1)]), 60), Relation::Unrelated);
        assert_eq!(relation(&Lineage::default(), 1, 0, &lineage(&[(b'a', 1)]), 60), Relation::Unrelated);
    }

    #[test]
    fn the_table() {
        let base = Facts {
            fresh: false,
            consent: Consent::None,
            tail: None,
            oldest: 50,
            cannot_rebuild: false,
            fork_tolerance_ms: 10_000,
        };
        let forked = Relation::Forked { common: 100, target_bytes: 10 };
        let short = Some(Tail { effective: true, span_ms: 10_000 });
        let long = Some(Tail { effective: true, span_ms: 10_001 });
        let idle = Some(Tail { effective: false, span_ms: 0 });
        let name = |d: Decision| match d {
            Decision::Stream { .. } => "stream",
            Decision::Rebuild { to } => {
                assert_eq!(to, 100);
                "rebuild"
            }
            Decision::Snapshot { .. } => "snapshot",
            Decision::Hold { .. } => "hold",
        };
        let cases = [
            (Relation::Unrelated, Facts { fresh: true, ..base }, "snapshot"),
            (Relation::Continue { from: 1 }, Facts { fresh: true, ..base }, "snapshot"),
            (Relation::Continue { from: 61 }, base, "stream"),
            (Relation::Continue { from: 61 }, Facts { consent: Consent::Resync, ..base }, "snapshot"),
            (Relation::Trimmed { oldest: 50 }, base, "snapshot"),
            (forked, base, "hold"),
            (forked, Facts { tail: short, ..base }, "rebuild"),
            (forked, Facts { tail: idle, ..base }, "rebuild"),
            (forked, Facts { tail: long, ..base }, "hold"),
            (forked, Facts { tail: long, consent: Consent::Link, ..base }, "rebuild"),
            (forked, Facts { tail: long, consent: Consent::Resync, ..base }, "snapshot"),
            (forked, Facts { tail: short, cannot_rebuild: true, ..base }, "snapshot"),
            (forked, Facts { tail: long, cannot_rebuild: true, ..base }, "hold"),
            (forked, Facts { tail: short, oldest: 102, ..base }, "snapshot"),
            (forked, Facts { tail: short, oldest: 101, ..base }, "rebuild"),
            (Relation::Unrelated, base, "hold"),
            (Relation::Unrelated, Facts { consent: Consent::Link, ..base }, "hold"),
            (Relation::Unrelated, Facts { consent: Consent::Resync, ..base }, "snapshot"),
        ];
        for (relation, facts, expected) in cases {
            assert_eq!(name(decide(relation, &facts)), expected, "{relation:?} {facts:?}");
        }
    }
}
