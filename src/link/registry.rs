//! The targets of a source: who may be one, how far each is, and which part of the log they still need.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use oplog_format::OpId;
use serde::{Deserialize, Serialize};

use super::identity::{NodeId, NodeIdentity};
use super::message::{Consent, Positions, Refusal, RefusalCode};
use super::stream::Stream;
use super::trail::Trail;

/// Highest service_id.
pub const MAX_SERVICE_ID: u8 = 15;

/// What is kept of a target over restarts of the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// Its service_id.
    pub service_id: u8,
    /// The node that was it last.
    pub node: NodeId,
    /// From where it came last.
    pub addr: String,
    /// The log is kept above this op for it; `None` where it needs a snapshot anyway.
    pub durable: Option<OpId>,
    /// When it was heard last, Unix time in milliseconds.
    pub last_seen_ms: u64,
    /// Cut by an operator: refused until its own operator links it by hand.
    pub cut: bool,
}

/// What a target does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetState {
    /// Not connected.
    Disconnected,
    /// Connected, has not said what it wants.
    Connecting,
    /// Takes a snapshot.
    Snapshot,
    /// Has the snapshot and loads it.
    Loading,
    /// Follows.
    Streaming,
    /// Keeps its data and waits for its operator.
    Held,
    /// Rebuilds itself from its own disk.
    Rebuilding,
    /// Was cut here by an operator.
    Cut,
}

/// One target as DR.STATUS shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TargetStatus {
    /// Its service_id.
    pub service_id: u8,
    /// From where it came last.
    pub addr: String,
    /// What it does.
    pub state: TargetState,
    /// Why, where that is not plain.
    pub reason: String,
    /// Last op sent.
    pub sent_op_id: OpId,
    /// Last op that its dataset holds.
    pub applied_op_id: OpId,
    /// Last op that is safe on its disk.
    pub durable_op_id: OpId,
    /// Bytes of log between its applied position and the end.
    pub lag_bytes: u64,
    /// How long its next op has waited.
    pub lag_ms: u64,
    /// The log is kept above this op for it.
    pub pin: Option<OpId>,
    /// Since when it is connected, Unix time in milliseconds.
    pub connected_since_ms: Option<u64>,
    /// When it was heard last, Unix time in milliseconds.
    pub last_seen_ms: u64,
    /// What it runs.
    pub identity: Option<NodeIdentity>,
}

/// The live end of a connection.
#[derive(Debug)]
pub(crate) struct Wire {
    pub stream: Stream,
    /// Set once the session is to end; also tells a snapshot in the making.
    pub gone: Arc<AtomicBool>,
}

impl Wire {
    pub(crate) fn hang_up(&self) {
        self.gone.store(true, Ordering::Release);
        self.stream.shutdown();
    }
}

#[derive(Debug)]
struct Session {
    id: u64,
    since_ms: u64,
    /// When anything came from it last: a node that hangs holds a connection and says nothing.
    heard_ms: u64,
    wire: Wire,
}

#[derive(Debug)]
struct Slot {
    reg: Registered,
    session: Option<Session>,
    state: TargetState,
    reason: String,
    sent: OpId,
    positions: Positions,
    trail: Trail,
    identity: Option<NodeIdentity>,
}

impl Slot {
    fn new(reg: Registered) -> Self {
        let durable = reg.durable.unwrap_or_default();
        let state = if reg.cut { TargetState::Cut } else { TargetState::Disconnected };
        Self {
            positions: Positions { received: durable, durable, applied: durable },
            sent: durable,
            reg,
            session: None,
            state,
            reason: String::new(),
            trail: Trail::default(),
            identity: None,
        }
    }
}

/// Who asks to be a target.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub node: NodeId,
    pub identity: NodeIdentity,
    pub addr: String,
    pub consent: Consent,
    pub wire: Wire,
}

#[derive(Debug)]
pub(crate) struct Registry {
    slots: BTreeMap<u8, Slot>,
    max_targets: usize,
    /// A session that has said nothing for longer gives way to another node with its service_id.
    silent_ms: u64,
    sessions: u64,
}

impl Registry {
    pub(crate) fn new(registered: &[Registered], max_targets: usize, silent: Duration) -> Self {
        let silent_ms = u64::try_from(silent.as_millis()).unwrap_or(u64::MAX);
        let slots = registered.iter().map(|r| (r.service_id, Slot::new(r.clone()))).collect();
        Self { slots, max_targets, silent_ms, sessions: 0 }
    }

    fn holder(slot: &Slot) -> String {
        let reg = &slot.reg;
        match &slot.session {
            Some(s) => {
                format!("service_id {} at {}, connected since {}", reg.service_id, reg.addr, utc(s.since_ms))
            }
            None => {
                format!("service_id {} at {}, last seen {}", reg.service_id, reg.addr, utc(reg.last_seen_ms))
            }
        }
    }

    /// Takes a target in, and returns the number of its session. A session of the same node that is still
    /// open belongs to a dead connection: it is ended.
    ///
    /// A session of another node with the same service_id is kept, unless it has been silent: then a replica of that
    /// target has been promoted in its place.
    pub(crate) fn admit(&mut self, who: Candidate, own: (u8, &str), now_ms: u64) -> Result<u64, Refusal> {
        self.may_enter(&who, own, now_ms)?;
        let id = who.identity.service_id;
        self.sessions += 1;
        let session = Session { id: self.sessions, since_ms: now_ms, heard_ms: now_ms, wire: who.wire };
        let slot = self.slots.entry(id).or_insert_with(|| {
            Slot::new(Registered {
                service_id: id,
                node: who.node,
                addr: String::new(),
                durable: None,
                last_seen_ms: now_ms,
                cut: false,
            })
        });
        slot.reg.node = who.node;
        slot.reg.addr = who.addr;
        slot.reg.last_seen_ms = now_ms;
        slot.reg.cut = false;
        slot.identity = Some(who.identity);
        slot.state = TargetState::Connecting;
        slot.reason.clear();
        if let Some(old) = slot.session.replace(session) {
            old.wire.hang_up();
        }
        Ok(self.sessions)
    }

    fn may_enter(&self, who: &Candidate, (own_id, own_addr): (u8, &str), now_ms: u64) -> Result<(), Refusal> {
        let id = who.identity.service_id;
        let no = |code, reason: String| Err(Refusal::new(code, reason));
        if id == own_id {
            return no(
                RefusalCode::OwnId,
                format!("service_id {id} is the source's own, held by the source at {own_addr}"),
            );
        }
        let slot = self.slots.get(&id);
        if slot.is_some_and(|s| s.reg.cut && s.reg.node == who.node) && who.consent == Consent::None {
            let reason = format!("service_id {id} was cut at the source; DR.LINK by hand links it again");
            return no(RefusalCode::Cut, reason);
        }
        let silent = |s: &Session| now_ms.saturating_sub(s.heard_ms) > self.silent_ms;
        let other = slot.filter(|s| s.session.as_ref().is_some_and(|s| !silent(s)) && s.reg.node != who.node);
        if let Some(other) = other {
            return no(RefusalCode::Duplicate, format!("{} is another node", Self::holder(other)));
        }
        let active = self.slots.values().filter(|s| !s.reg.cut);
        let is_new = slot.is_none_or(|s| s.reg.cut);
        if id > MAX_SERVICE_ID || (is_new && active.clone().count() >= self.max_targets) {
            let holders: Vec<String> = active.map(Self::holder).collect();
            let max = self.max_targets;
            let reason = format!(
                "service_id {id}: a source has at most {max} targets (service_id 0 to {MAX_SERVICE_ID}); held: {}",
                holders.join("; ")
            );
            return no(RefusalCode::Full, reason);
        }
        Ok(())
    }

    fn of_session(&mut self, service_id: u8, session: u64) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(&service_id)?;
        (slot.session.as_ref()?.id == session).then_some(slot)
    }

    /// The session is over; the registration, and with it the part of the log that it needs, stays.
    pub(crate) fn leave(&mut self, service_id: u8, session: u64, reason: &str, now_ms: u64) {
        if let Some(slot) = self.of_session(service_id, session) {
            slot.session = None;
            slot.reg.last_seen_ms = now_ms;
            if !matches!(slot.state, TargetState::Held | TargetState::Rebuilding) {
                slot.state = TargetState::Disconnected;
                reason.clone_into(&mut slot.reason);
            }
        }
    }

    /// Something has come from a session.
    pub(crate) fn heard(&mut self, service_id: u8, session: u64, now_ms: u64) {
        if let Some(session) = self.of_session(service_id, session).and_then(|s| s.session.as_mut()) {
            session.heard_ms = now_ms;
        }
    }

    pub(crate) fn set_state(&mut self, service_id: u8, session: u64, state: TargetState, reason: &str) {
        if let Some(slot) = self.of_session(service_id, session) {
            slot.state = state;
            reason.clone_into(&mut slot.reason);
        }
    }

    /// Number of targets that follow.
    pub(crate) fn streaming(&self) -> usize {
        let follows = |s: &&Slot| s.session.is_some() && s.state == TargetState::Streaming;
        self.slots.values().filter(follows).count()
    }

    /// From now on the log is kept above `op` for this target.
    pub(crate) fn pin(&mut self, service_id: u8, session: u64, op: Option<OpId>) {
        if let Some(slot) = self.of_session(service_id, session) {
            slot.reg.durable = op;
        }
    }

    /// A session begins to stream above `op`.
    pub(crate) fn begin_stream(&mut self, service_id: u8, session: u64, op: OpId) {
        if let Some(slot) = self.of_session(service_id, session) {
            let durable = slot.reg.durable.unwrap_or(op).min(op);
            slot.positions = Positions { received: op, durable, applied: op };
            slot.sent = op;
            slot.trail.restart();
            slot.state = TargetState::Streaming;
            slot.reason.clear();
        }
    }

    pub(crate) fn sent(&mut self, service_id: u8, session: u64, last: OpId, time_ms: u64) {
        if let Some(slot) = self.of_session(service_id, session) {
            slot.sent = last;
            slot.trail.sent(last, time_ms);
        }
    }

    /// Takes an ack in; false where it claims ops that were never sent.
    pub(crate) fn acked(&mut self, service_id: u8, session: u64, got: Positions, now_ms: u64) -> bool {
        let Some(slot) = self.of_session(service_id, session) else { return true };
        if slot.state != TargetState::Streaming {
            return true;
        }
        if got.received > slot.sent || got.durable > got.received || got.applied > got.received {
            return false;
        }
        slot.reg.last_seen_ms = now_ms;
        slot.positions = got;
        slot.reg.durable = Some(slot.reg.durable.map_or(got.durable, |d| d.max(got.durable)));
        true
    }

    pub(crate) fn lag_ms(&mut self, service_id: u8, written: OpId, now_ms: u64) -> u64 {
        let slot = self.slots.get_mut(&service_id);
        slot.map_or(0, |s| s.trail.lag_ms(s.positions.applied, written, now_ms))
    }

    /// Applied positions of disconnected targets for whose lag nothing is known, as after a restart.
    pub(crate) fn lag_unknown(&self, written: OpId) -> Vec<(u8, OpId)> {
        let away = self.slots.values().filter(|s| s.session.is_none() && s.positions.applied < written);
        let unknown = away.filter(|s| s.reg.durable.is_some() && !s.trail.knows(s.positions.applied));
        unknown.map(|s| (s.reg.service_id, s.positions.applied)).collect()
    }

    pub(crate) fn learn_lag(&mut self, service_id: u8, applied: OpId, time_ms: u64) {
        if let Some(slot) = self.slots.get_mut(&service_id) {
            slot.trail.learn(applied, time_ms);
        }
    }

    /// Ends what an operator has cut. True where there was such a target.
    pub(crate) fn cut(&mut self, service_id: u8) -> bool {
        let Some(slot) = self.slots.get_mut(&service_id) else { return false };
        let was = !slot.reg.cut;
        slot.reg.cut = true;
        slot.reg.durable = None;
        slot.state = TargetState::Cut;
        if let Some(session) = slot.session.take() {
            session.wire.hang_up();
        }
        was
    }

    /// Ends all sessions.
    pub(crate) fn hang_up(&mut self) {
        self.slots.values().filter_map(|s| s.session.as_ref()).for_each(|s| s.wire.hang_up());
    }

    pub(crate) fn min_durable(&self) -> Option<OpId> {
        self.slots.values().filter_map(|s| s.reg.durable).min()
    }

    /// How many targets hold `op` safely on their disks.
    pub(crate) fn durable_on(&self, op: OpId) -> usize {
        self.slots.values().filter(|s| s.session.is_some() && s.positions.durable >= op).count()
    }

    pub(crate) fn registered(&self) -> Vec<Registered> {
        self.slots.values().map(|s| s.reg.clone()).collect()
    }

    pub(crate) fn status(&mut self, written: OpId, now_ms: u64) -> Vec<TargetStatus> {
        let one = |slot: &mut Slot| {
            let applied = slot.positions.applied;
            let follows = slot.reg.durable.is_some();
            TargetStatus {
                service_id: slot.reg.service_id,
                addr: slot.reg.addr.clone(),
                state: slot.state.clone(),
                reason: slot.reason.clone(),
                sent_op_id: slot.sent,
                applied_op_id: applied,
                durable_op_id: slot.positions.durable,
                lag_bytes: if follows { written.saturating_sub(applied) } else { 0 },
                lag_ms: if follows { slot.trail.lag_ms(applied, written, now_ms) } else { 0 },
                pin: slot.reg.durable,
                connected_since_ms: slot.session.as_ref().map(|s| s.since_ms),
                last_seen_ms: slot.reg.last_seen_ms,
                identity: slot.identity.clone(),
            }
        };
        self.slots.values_mut().map(one).collect()
    }
}

/// A Unix time in milliseconds as `2026-01-31 23:59:59 UTC`.
pub(crate) fn utc(ms: u64) -> String {
    let secs = ms / 1000;
    let (days, rest) = (secs / 86_400, secs % 86_400);
    // Days since 0000-03-01 of the proleptic Gregorian calendar: the leap day is the last of a year then.
    let days = days + 719_468;
    let (era, in_era) = (days / 146_097, days % 146_097);
    let year_of_era = (in_era - in_era / 1460 + in_era / 36_524 - in_era / 146_096) / 365;
    let in_year = in_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * in_year + 2) / 153;
    let day = in_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_readable() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_782_400_000), "2000-02-29 00:00:00 UTC");
        assert_eq!(utc(1_700_000_000_123), "2023-11-14 22:13:20 UTC");
        assert_eq!(utc(4_107_542_399_000), "2100-02-28 23:59:59 UTC");
    }
}
