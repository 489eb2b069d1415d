//! A node that is a replica of its shard's master.
//!
//! A replica of a source taps its own stream, which is the master's byte by byte, so that its log has the same op
//! ids. A replica of a target receives DR.APPLY and appends the entries to its own log.

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::boot::lineage_of;
use super::gate::GateMode;
use super::node::{Node, NotServing};
use super::shared::{Mode, ReplicaEvent, FLAG_POSITIONED};
use super::source::StartAt;
use crate::snapshot::aux::Mode as SavedMode;

/// How often the controller is looked at.
const LOOK: Duration = Duration::from_millis(5);

impl Node {
    /// Becomes a replica, or takes in that its master has sent a new copy.
    pub fn become_replica(self: &Arc<Self>) {
        if let Some(client) = self.client.lock().take() {
            client.stop();
        }
        self.stop_feed();
        self.stop_capture();
        self.set_serving(Some(NotServing {
            reason: "this server is a replica".into(),
            elsewhere: Vec::new(),
        }));
        self.shared.linked.store(false, Ordering::Release);
        let aux = self.shared.loaded.load_full();
        match aux {
            Some(aux) if aux.mode == SavedMode::Target => {
                self.shared.hold.store(true, Ordering::Release);
                self.set_ident(|i| {
                    i.mode = Mode::TargetReplica;
                    i.held = true;
                    i.positioned = false;
                });
                self.shared.gate.set(GateMode::TrueTtls, "");
                // The log is aligned in step with the entries that follow the copy, see `ReplicaEvent::Align`.
                self.set_doing("streaming", "replica of a target");
            }
            Some(aux) if aux.flags & FLAG_POSITIONED != 0 => {
                let base = i64::try_from(aux.op_id).unwrap_or(i64::MAX) - aux.repl_offset;
                self.shared.applied_known.store(false, Ordering::Release);
                self.set_ident(|i| {
                    i.mode = Mode::Replica;
                    i.held = false;
                });
                self.open_to_master();
                self.align_log(aux.op_id, &lineage_of(&aux));
                self.start_capture(StartAt::Base(base));
            }
            _ => {
                self.set_ident(|i| {
                    i.mode = Mode::Replica;
                    i.positioned = false;
                });
                self.open_to_master();
                self.set_doing("starting", "replica: its master's copy says no position yet");
            }
        }
    }

    /// Nothing is refused on a replica. A copy of a target's may have come meanwhile.
    fn open_to_master(&self) {
        let of_target = self.shared.loaded.load().as_ref().is_some_and(|a| a.mode == SavedMode::Target);
        self.shared.gate.set(if of_target { GateMode::TrueTtls } else { GateMode::Open }, "");
    }

    /// Makes the own log one that the loaded copy continues: what it has beyond is kept aside.
    fn align_log(self: &Arc<Self>, op_id: u64, lineage: &oplog_format::Lineage) {
        let written = self.log.written();
        let ours = self.log.lineage();
        let follows = !ours.is_empty()
            && ours.history_of(op_id.max(1)) == lineage.history_of(op_id.max(1))
            && op_id + 1 >= self.log.oldest()
            && op_id <= written;
        if follows {
            return;
        }
        let kept = self.keep_as_orphans(lineage, op_id, "the master's copy replaced this node's data");
        if let Err(e) =
            kept.and_then(|()| self.log.reset(lineage.clone(), op_id + 1).map_err(|e| e.to_string()))
        {
            self.warn("replica-log", format!("this replica's log could not be started anew: {e}"));
        }
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
                    self.align_log(op_id, &lineage);
                    Ok(())
                }
                ReplicaEvent::History { history, first_op } => {
                    self.log.begin_history(history, first_op).map_err(|e| e.to_string())
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
        let next = self.log.written() + 1;
        if header.first_op() > next && self.log.poisoned().is_none() {
            // What came while the log did not work is not sent again.
            let current = self.log.lineage().current().map(|c| c.history);
            let history = current.ok_or("the log has no history yet")?;
            log::warn!("this replica's log has a gap: ops {next} to {} are missing", header.first_op() - 1);
            self.log.begin_history(history, header.first_op()).map_err(|e| e.to_string())?;
        }
        self.log.append(frame).map(|_| ()).map_err(|e| e.to_string())
    }
}
