//! A node that is a replica of its shard's master.
//!
//! A replica of a source taps its own stream, which is the master's byte by byte, so that its log has the same op
//! ids. A replica of a target receives DR.APPLY and appends the entries to its own log; it knows the link, and
//! resumes it when it is promoted.

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;
use oplog_format::Lineage;

use super::boot::lineage_of;
use super::gate::GateMode;
use super::node::Node;
use super::shared::{Mode, ReplicaEvent, FLAG_HELD, FLAG_INCOMPLETE, FLAG_POSITIONED};
use super::source::StartAt;
use crate::snapshot::aux::{AuxContent, Mode as SavedMode};
use crate::store::StoreError;

/// How often the controller is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// Longest wait for entries that a replica has applied to be in its log.
const DRAIN: Duration = Duration::from_secs(60);

impl Node {
    /// Has been a master, and follows another now; whether that one goes on with this node's dataset or sends a copy
    /// is not known yet.
    pub fn demoted(self: &Arc<Self>) {
        self.leave_link();
        let ident = self.shared.ident.load_full();
        match ident.mode {
            Mode::Target => {
                self.set_ident(|i| {
                    i.mode = Mode::TargetReplica;
                    i.positioned = false;
                });
                self.open_to_master();
                self.set_doing("streaming", "replica of a target");
            }
            Mode::Source if ident.positioned => {
                // The tap goes on: offsets and op ids stay what they are unless a copy comes.
                self.set_ident(|i| i.mode = Mode::Replica);
                self.open_to_master();
                self.set_doing("capturing", "replica: the log is kept for a promotion");
            }
            _ => self.without_position(),
        }
        self.update_serving();
    }

    /// A copy has been loaded, or the master has said what it is: the dataset is where that says. `own` where it is
    /// the node's own RDB, as at a start.
    pub fn follow_master(self: &Arc<Self>, own: bool) {
        self.leave_link();
        match self.shared.loaded.load_full() {
            Some(aux) if aux.mode == SavedMode::Target => self.replica_of_target(&aux),
            Some(aux) if aux.flags & FLAG_POSITIONED != 0 => self.replica_of_source(&aux, own),
            _ => self.without_position(),
        }
        self.update_serving();
    }

    /// Ends what only a master does.
    fn leave_link(&self) {
        if let Some(client) = self.client.lock().take() {
            client.stop();
        }
        self.stop_feed();
        self.shared.linked.store(false, Ordering::Release);
    }

    fn without_position(&self) {
        self.stop_capture();
        self.set_ident(|i| {
            i.mode = Mode::Replica;
            i.positioned = false;
        });
        self.open_to_master();
        self.set_doing("starting", "replica: its master has told no position yet");
    }

    fn replica_of_target(self: &Arc<Self>, aux: &AuxContent) {
        let captured = self.shared.ident.load().positioned;
        self.stop_capture();
        if captured {
            // The master has been linked: what its stream has brought since is none of the source's ops.
            let why = "the master has become a target at this op";
            if let Err(e) = self.log.cut_after(aux.op_id, why) {
                self.warn("replica-log", format!("this replica's log could not be cut: {e}"));
            }
        }
        self.shared.hold.store(true, Ordering::Release);
        let linked = Some(aux.endpoints.clone()).filter(|e| !e.is_empty());
        self.set_ident(|i| {
            i.mode = Mode::TargetReplica;
            i.held = aux.flags & FLAG_HELD != 0;
            i.positioned = false;
            i.endpoints.clone_from(&aux.endpoints);
        });
        self.remember(|s| {
            s.loading = aux.flags & FLAG_INCOMPLETE != 0;
            s.rebasing = linked.is_none();
            if linked.is_some() {
                s.linked = linked;
                s.cut = false;
            }
        });
        self.open_to_master();
        if let Ok(mut conn) = self.connect() {
            // A promotion must not evict before the controller has looked.
            let off = self.switch_eviction_off(&mut conn);
            if let Err(e) = off {
                self.warn("settings", format!("eviction could not be switched off: {e}"));
            }
        }
        // The log is aligned in step with the entries that follow the copy, see `ReplicaEvent::Align`.
        self.set_doing("streaming", "replica of a target");
    }

    fn replica_of_source(self: &Arc<Self>, aux: &AuxContent, own: bool) {
        self.stop_capture();
        let base = i64::try_from(aux.op_id).unwrap_or(i64::MAX) - aux.repl_offset;
        let held = aux.flags & FLAG_HELD != 0;
        self.shared.applied_known.store(false, Ordering::Release);
        self.set_ident(|i| {
            i.mode = Mode::Replica;
            i.held = held;
            i.positioned = false;
        });
        let state = self.state.get();
        if !own && (state.linked.is_some() || !self.shared.config.source.is_empty()) {
            // The master has cut the link, or has never had one.
            self.remember(|s| {
                s.linked = None;
                s.cut = true;
                s.loading = false;
            });
            if let Ok(mut conn) = self.connect() {
                self.restore_settings(&mut conn);
            }
        }
        self.remember(|s| s.rebasing = held);
        self.open_to_master();
        let lineage = lineage_of(aux);
        self.align_log(aux.op_id, &lineage, own);
        self.start_capture(if own { StartAt::Dataset(base, aux.op_id) } else { StartAt::Base(base) });
    }

    /// Nothing is refused on a replica: the filter would swallow the master's stream. What is held is not shown.
    pub fn open_to_master(&self) {
        let of_target = self.shared.loaded.load().as_ref().is_some_and(|a| a.mode == SavedMode::Target);
        let held = of_target || self.shared.ident.load().held;
        self.shared.gate.set(if held { GateMode::TrueTtls } else { GateMode::Open }, "");
    }

    /// Makes the own log one that the loaded copy continues: what it has beyond is kept aside. At a start, `own`, the
    /// log may well be ahead of the RDB.
    fn align_log(self: &Arc<Self>, op_id: u64, lineage: &Lineage, own: bool) {
        let written = self.log.written();
        let ours = self.log.lineage();
        let follows = !ours.is_empty()
            && ours.history_of(op_id.max(1)) == lineage.history_of(op_id.max(1))
            && op_id + 1 >= self.log.oldest()
            && op_id <= written;
        let why = "the master's copy replaced this node's data";
        let done = if follows && (own || op_id == written) {
            Ok(())
        } else if follows && self.mode() == Mode::TargetReplica {
            // The source's own bytes: they come again, or a new history says where they end.
            Ok(())
        } else if follows {
            self.log.cut_after(op_id, why).map(drop).map_err(|e| e.to_string())
        } else {
            let kept = self.keep_as_orphans(lineage, op_id, why);
            kept.and_then(|()| self.log.reset(lineage.clone(), op_id + 1).map_err(|e| e.to_string()))
        };
        if let Err(e) = done {
            self.warn("replica-log", format!("this replica's log could not be started anew: {e}"));
        }
    }

    /// Waits until what was applied by replication is in the log; false where that takes too long.
    pub fn drain_replicated(&self) -> bool {
        let (tx, rx) = crossbeam_channel::bounded(1);
        self.shared.replica_events.send_timeout(ReplicaEvent::Barrier(tx), DRAIN).is_ok()
            && rx.recv_timeout(DRAIN).is_ok()
    }

    /// Body of the thread `dr-replica`: logs what arrives by replication.
    pub fn log_replicated(self: &Arc<Self>, events: &Receiver<ReplicaEvent>) {
        for event in events {
            let done = match event {
                ReplicaEvent::Frame(frame) => self.append_replicated(&frame),
                ReplicaEvent::Reset { op_id, lineage } => {
                    self.log.reset(lineage, op_id + 1).map_err(|e| e.to_string())
                }
                ReplicaEvent::Align { loads, op_id, lineage } => {
                    // Only then has the node's own capture ended.
                    while self.loads_seen.load(Ordering::Acquire) < loads && !self.stopping() {
                        std::thread::sleep(LOOK);
                    }
                    self.align_log(op_id, &lineage, false);
                    Ok(())
                }
                ReplicaEvent::History { history, first_op } => {
                    // What lies above was received by this node's former self from a source that is no more.
                    let why = "the master's log goes on with another history";
                    self.log
                        .cut_after(first_op - 1, why)
                        .and_then(|_| self.log.begin_history(history, first_op))
                        .map_err(|e| e.to_string())
                }
                ReplicaEvent::Barrier(done) => {
                    let _ = done.send(());
                    continue;
                }
            };
            self.shared.written.store(self.log.written(), Ordering::Release);
            match done {
                Ok(()) => self.warn("replica-log", ""),
                Err(e) => self.warn("replica-log", format!("this replica's own log does not follow: {e}")),
            }
            if self.stopping() {
                return;
            }
        }
    }

    fn append_replicated(self: &Arc<Self>, frame: &[u8]) -> Result<(), String> {
        let header = oplog_format::EntryHeader::decode(frame).map_err(|e| e.to_string())?;
        if header.meta.last_op <= self.log.written() {
            return Ok(());
        }
        match self.log.append(frame) {
            Ok(_) => Ok(()),
            Err(StoreError::NotNext { expected, got }) if got > expected => {
                // The queue has overflowed, or the log was lost: on above a gap.
                log::warn!("this replica's log lacks ops {expected} to {}", got - 1);
                let lineage = self.shared.ident.load().lineage.clone();
                self.log.reset(lineage, got).and_then(|()| self.log.append(frame)).map(drop)
            }
            Err(StoreError::NotNext { expected, .. }) => {
                // Framed otherwise: the log ends within this entry.
                let rest = crate::link::entry_from(frame, expected).ok_or("an entry overlaps the log")?;
                self.log.append(&rest).map(drop)
            }
            Err(e) => Err(e),
        }
        .map_err(|e| e.to_string())
    }
}
