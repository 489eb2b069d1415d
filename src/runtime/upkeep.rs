//! Keeps the log fit to be cleaned: makes a snapshot where the lack of one holds it, and keeps a little room in
//! reserve for the small files without which nothing can be removed.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::node::Node;
use super::shared::Mode;
use super::writer::{room_needed, RESERVE_BYTES};

/// Name of the file that is removed when the disk is full: manifest and state are written anew to be changed.
const RESERVE: &str = "reserve";
/// A snapshot that failed is tried again after this long.
const AGAIN: Duration = Duration::from_secs(30);
/// A failed log waits this long for room before the node makes some.
const WAIT: Duration = Duration::from_secs(3);
/// For this long targets may still fetch what a log has that is to make room for what comes.
const FETCH: Duration = Duration::from_secs(10);
/// Above this much log without a snapshot the operator is told, where the node must not make one.
const MUCH_LOG: u64 = 4 << 30;

/// How the last snapshot of this kind went.
#[derive(Default)]
struct Saving {
    running: AtomicBool,
    /// Snapshots made, or -1 where the last one has failed.
    outcome: AtomicI64,
}

/// The state of the upkeep.
pub struct Upkeep {
    saving: Arc<Saving>,
    tried: Option<Instant>,
    gaps: u64,
    reserve: PathBuf,
    reserve_tried: Option<Instant>,
}

impl Upkeep {
    /// Of a node that has just started.
    pub fn new(node: &Node) -> Self {
        let mut upkeep = Self {
            saving: Arc::default(),
            tried: None,
            gaps: node.log.stats().gaps,
            reserve: node.dir.join(RESERVE),
            reserve_tried: None,
        };
        upkeep.keep_reserve(node);
        upkeep
    }

    /// Does what is due.
    pub fn look(&mut self, node: &Arc<Node>) {
        self.keep_reserve(node);
        self.told_gaps(node);
        if let Some(reason) = self.snapshot_wanted(node) {
            self.save(node, reason);
        }
    }

    /// Whether the log has failed for lack of room.
    pub fn no_room(&self, node: &Node) -> bool {
        let disk = &node.shared.disk;
        let need = disk.need.load(Ordering::Acquire);
        disk.failed.load().is_some() && node.log.free_bytes().is_some_and(|free| free < need)
    }

    /// For how long the log has failed.
    fn failed_for(node: &Node) -> Duration {
        let disk = &node.shared.disk;
        if disk.failed.load().is_none() {
            return Duration::ZERO;
        }
        let since = disk.failed_since.load(Ordering::Acquire);
        Duration::from_millis(disk.now_ms().saturating_sub(since))
    }

    fn over_cap(node: &Node) -> bool {
        let cap = node.shared.config.retain_max_bytes;
        cap > 0 && node.log.bytes() > cap
    }

    /// Whether the oldest segment is needed for a start: no snapshot lies above it.
    fn needed_for_start(node: &Node) -> bool {
        let snapshot = node.snapshot_op.load(Ordering::Acquire);
        node.log.oldest_sealed().is_some_and(|last| last > snapshot)
    }

    /// Whether the hard cap has to wait for a snapshot that is being made, and may.
    pub fn saves_for_cap(&self, node: &Node) -> bool {
        Self::over_cap(node)
            && Self::needed_for_start(node)
            && node.log.bytes() < node.shared.config.retain_max_bytes.saturating_mul(2)
            && self.saving.outcome.load(Ordering::Acquire) >= 0
            && Self::can_save(node)
    }

    /// Whether an RDB made now would say where it stands.
    fn can_save(node: &Node) -> bool {
        if node.shared.loading_data.load(Ordering::Acquire)
            || node.state.get().loading
            || node.state.get().copied.is_some()
        {
            return false;
        }
        match node.mode() {
            Mode::Source | Mode::Replica => node.shared.ident.load().positioned,
            Mode::Target | Mode::TargetReplica => node.shared.applied_known.load(Ordering::Acquire),
        }
    }

    /// Why a snapshot is to be made now.
    fn snapshot_wanted(&self, node: &Node) -> Option<&'static str> {
        let (oldest, written) = (node.log.oldest(), node.log.written());
        if written < oldest || !Self::can_save(node) {
            node.warn("snapshot", "");
            return None;
        }
        let snapshot = node.snapshot_op.load(Ordering::Acquire);
        let above = written.saturating_sub(snapshot.max(oldest - 1));
        let size = node.shared.config.snapshot_log_size;
        let much = size == 0 && above > MUCH_LOG;
        let text = if much {
            "the log has grown by more than 4 GB above its newest snapshot and is kept for a start: DR.SNAPSHOT, or \
             save points, or the argument snapshot-log-size"
        } else {
            ""
        };
        node.warn("snapshot", text);
        if Self::over_cap(node) && Self::needed_for_start(node) {
            return Some("retain-max-bytes is reached, and what is to go is needed for a start");
        }
        if self.no_room(node) && Self::failed_for(node) > WAIT {
            if Self::needed_for_start(node) {
                return Some("the log's disk is full, and what could go is needed for a start");
            }
            if self.must_give_up(node) {
                return Some("the log's disk is full of what others need, and is to go on above a gap");
            }
        }
        if snapshot + 1 < oldest && node.log.stats().gaps > self.gaps && node.mode() == Mode::Source {
            return Some("the log has a gap, and nothing else could bring a start above it");
        }
        (size > 0 && above > size).then_some("the log has grown by snapshot-log-size above the last one")
    }

    /// Whether the log fills its own disk, ops are being lost, and who is there has fetched what it has.
    fn must_give_up(&self, node: &Node) -> bool {
        let disk = &node.shared.disk;
        let lost = disk.lost.load(Ordering::Acquire) && disk.give_up.load(Ordering::Acquire) == 0;
        // A small log would be full again at once, each time at the price of a copy.
        let worth_it = node.log.bytes() >= 4 * room_needed(&node.log);
        if !lost || !worth_it || Self::failed_for(node) < FETCH {
            return false;
        }
        let targets = node.endpoint.lock().as_ref().map(|e| e.targets()).unwrap_or_default();
        let written = node.log.written();
        // Not for ever: what is lost meanwhile is newer than what it still fetches.
        let fetching = targets.iter().any(|t| t.connected_since_ms.is_some() && t.durable_op_id < written);
        !fetching || Self::failed_for(node) > FETCH * 6
    }

    fn save(&mut self, node: &Arc<Node>, reason: &'static str) {
        let failed = self.saving.outcome.load(Ordering::Acquire) < 0;
        let early = self.tried.is_some_and(|t| t.elapsed() < AGAIN);
        if self.saving.running.load(Ordering::Acquire) || (failed && early) {
            return;
        }
        self.tried = Some(Instant::now());
        self.saving.running.store(true, Ordering::Release);
        let give_up = self.must_give_up(node);
        let before = node.snapshot_op.load(Ordering::Acquire);
        let (saving, own) = (Arc::clone(&self.saving), Arc::clone(node));
        let spawned = super::spawn("dr-snapshot", move || {
            let done = save(&own, reason, before);
            match &done {
                Ok(()) => own.warn("base", ""),
                Err(e) => {
                    own.warn("base", format!("a snapshot is needed ({reason}) and could not be made: {e}"))
                }
            }
            if give_up && done.is_ok() {
                log::warn!(
                    "the log's disk is full of the log itself: it goes, so that what comes now is captured"
                );
                own.shared.disk.give_up.store(own.snapshot_op.load(Ordering::Acquire), Ordering::Release);
            }
            saving.outcome.store(if done.is_ok() { 1 } else { -1 }, Ordering::Release);
            saving.running.store(false, Ordering::Release);
        });
        if let Err(e) = spawned {
            self.saving.running.store(false, Ordering::Release);
            log::error!("no thread for a snapshot: {e}");
        }
    }

    /// Says that there is a gap for as long as anyone is below it.
    fn told_gaps(&self, node: &Node) {
        if node.log.stats().gaps <= self.gaps || node.mode() != Mode::Source {
            return;
        }
        let oldest = node.log.oldest();
        let targets = node.endpoint.lock().as_ref().map(|e| e.targets()).unwrap_or_default();
        let below = targets.iter().any(|t| t.pin.is_some_and(|p| p + 1 < oldest));
        let no_base = node.snapshot_op.load(Ordering::Acquire) + 1 < oldest;
        if below || no_base {
            let text = format!(
                "the log has a gap below op {oldest}: targets below it need a full sync, and a start needs a \
                 snapshot above it"
            );
            node.warn("gap", text);
        } else {
            node.warn("gap", "");
        }
    }

    /// Makes or removes the file that holds a little room.
    fn keep_reserve(&mut self, node: &Node) {
        let Some(free) = node.log.free_bytes() else { return };
        let (disk, bytes) = (&node.shared.disk, RESERVE_BYTES as u64);
        let there = self.reserve.exists();
        if there && free < bytes / 2 {
            if std::fs::remove_file(&self.reserve).is_ok() {
                disk.reserved.store(false, Ordering::Release);
                log::warn!("the log's disk is full: its reserve of {bytes} bytes is used");
            }
            return;
        }
        disk.reserved.store(there, Ordering::Release);
        let early = self.reserve_tried.is_some_and(|t| t.elapsed() < AGAIN);
        if there || early || free < 3 * bytes || disk.failed.load().is_some() {
            return;
        }
        match std::fs::write(&self.reserve, vec![0x55; RESERVE_BYTES]) {
            Ok(()) => disk.reserved.store(true, Ordering::Release),
            Err(e) => {
                self.reserve_tried = Some(Instant::now());
                log::warn!("{}: {e}", self.reserve.display());
                let _ = std::fs::remove_file(&self.reserve);
            }
        }
    }
}

fn save(node: &Node, reason: &str, before: u64) -> Result<(), String> {
    let _one_at_a_time = node.saving.lock();
    if node.snapshot_op.load(Ordering::Acquire) > before {
        // Somebody else was faster.
        return Ok(());
    }
    log::info!("making a snapshot: {reason}");
    node.save(&node.shared.stopping, &mut |_| {})?;
    let mut conn = node.connect().map_err(|e| e.to_string())?;
    node.usable_rdb(&mut conn).map_err(|e| e.to_string())?;
    match node.snapshot_op.load(Ordering::Acquire) {
        0 => Err("the RDB has no position in the log".into()),
        op => {
            log::info!("snapshot made at op {op}");
            Ok(())
        }
    }
}
