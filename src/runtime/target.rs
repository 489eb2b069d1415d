//! The target's side of the link: takes snapshots and entries.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use oplog_format::position::Common;
use oplog_format::{History, Lineage, OpId};

use super::boot::has_keys;
use super::node::Node;
use super::shared::Mode;
use super::staging::Staged;
use crate::apply::feed::{Feed, FeedConfig, FeedEnd};
use crate::apply::load::{load, load_from, LoadPlan, LoadProgress};
use crate::link::{LinkState, SnapshotMeta, Staging, TargetHello, TargetHost};
use crate::local::LocalError;
use crate::runtime::gate::GateMode;
use crate::snapshot::module_value::{encoding_version, type_name};
use crate::snapshot::ModuleData;
use crate::store::Log;

/// An RDB of a loaded copy that could not be saved is tried again after this long.
const SAVE_AGAIN: Duration = Duration::from_secs(10);

/// A loaded copy is saved once the node follows, or after this long.
const FOLLOWING: Duration = Duration::from_secs(1);

/// What goes on while a copy replaces the dataset.
const COPYING: &str = "a snapshot of the source is being loaded";

/// What a linked server answers to writes.
pub const FENCED: &str = "READONLY this server is linked to";

/// The node as the link's client sees it.
pub struct Target(pub Arc<Node>);

/// How often the progress of a replay is published.
const PROGRESS: Duration = Duration::from_millis(50);
/// How often it is logged.
const TELL: Duration = Duration::from_secs(5);

impl Node {
    /// Closes the gate for a dataset that is being replaced.
    pub fn close_for_loading(&self, what: &str) {
        self.shared.gate.set(GateMode::Recovering, &format!("LOADING redisdr: {what}"));
    }

    /// Raises the fence.
    pub fn raise_fence(&self) {
        let source = self.state.get().linked.unwrap_or_default().join(",");
        self.shared.gate.set(GateMode::Fenced, &format!("{FENCED} {source}"));
    }

    /// Starts applying what the log has above the dataset, where that is known and nothing applies yet.
    pub fn start_feed(self: &Arc<Self>) {
        let mut feed = self.feed.lock();
        if feed.is_some() || !self.shared.applied_known.load(Ordering::Acquire) {
            return;
        }
        let Ok(addr) = self.server.address.clone() else { return };
        let config = FeedConfig {
            addr,
            secret: self.shared.secret.clone(),
            log: Arc::clone(&self.log),
            until: None,
            caps: self.shared.caps(),
        };
        let node = Arc::clone(self);
        let started = Feed::start(config, move |end| match end {
            FeedEnd::Stopped | FeedEnd::Reached => {}
            FeedEnd::Diverged(why) | FeedEnd::Failed(why) => {
                // Until DR.RESYNC or a restart: the link may go on, and must not say that all is well.
                node.shared.diverged.store(Some(Arc::new(why.clone())));
                node.set_doing("failed", format!("not applying: {why}"));
                node.warn("apply", format!("ops are received and not applied: {why}"));
            }
        });
        match started {
            Ok(started) => *feed = Some(Arc::new(started)),
            Err(e) => self.set_doing("failed", format!("no thread for the feed: {e}")),
        }
    }

    /// Stops applying.
    pub fn stop_feed(&self) {
        let feed = self.feed.lock().take();
        if let Some(feed) = feed {
            feed.stop();
        }
    }

    /// Replaces the dataset by a source's RDB.
    ///
    /// # Errors
    /// In words; the dataset is then not whole, and that is remembered: the next start takes another copy.
    pub fn load_copy(
        self: &Arc<Self>,
        path: &std::path::Path,
        op_id: OpId,
        lineage: &Lineage,
    ) -> Result<u64, String> {
        self.state.change(|s| s.loading = true).map_err(|e| e.to_string())?;
        self.load_rdb(path, op_id, lineage, COPYING)
    }

    /// Replaces the dataset by what an RDB holds, with expiries held.
    ///
    /// # Errors
    /// In words; the dataset is then not whole.
    pub fn load_rdb(
        self: &Arc<Self>,
        path: &std::path::Path,
        op_id: OpId,
        lineage: &Lineage,
        what: &str,
    ) -> Result<u64, String> {
        let total = std::fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?.len();
        self.load_bytes.store(0, Ordering::Relaxed);
        self.load_total.store(total, Ordering::Relaxed);
        self.begin_load(what);
        let mut conn = self.connect().map_err(|e| e.to_string())?;
        let plan = LoadPlan { path, op_id, lineage, only_before: None };
        let done = load(&plan, &mut conn, &self.shared.stopping, &mut |p| {
            self.load_bytes.store(p.bytes, Ordering::Relaxed);
            self.load_keys.store(p.keys, Ordering::Relaxed);
        })
        .map_err(|e| format!("loading {}: {e}", path.display()))?;
        Ok(done.keys)
    }

    fn begin_load(&self, what: &str) {
        self.load_keys.store(0, Ordering::Relaxed);
        self.stop_feed();
        self.shared.diverged.store(None);
        self.warn("apply", "");
        self.shared.hold.store(true, Ordering::Release);
        self.close_for_loading(what);
    }

    /// Loads a copy of the source's data while it comes; `input` reads the staged file behind its writer, and
    /// `checked` waits for the check of the whole.
    ///
    /// # Errors
    /// As [`load_copy`](Self::load_copy).
    pub fn load_coming_copy(
        &self,
        input: impl std::io::Read,
        meta: &SnapshotMeta,
        checked: &mut dyn FnMut() -> Result<(), String>,
    ) -> Result<u64, String> {
        self.state.change(|s| s.loading = true).map_err(|e| e.to_string())?;
        self.begin_load(COPYING);
        let mut conn = self.connect().map_err(|e| e.to_string())?;
        let path = self.staging_path();
        let plan = LoadPlan { path: &path, op_id: meta.op_id, lineage: &meta.lineage, only_before: None };
        // How many bytes there are is told by the link.
        let mut tell = |p: LoadProgress| self.load_keys.store(p.keys, Ordering::Relaxed);
        let done = load_from(&plan, input, checked, &mut conn, &self.shared.stopping, &mut tell);
        done.map(|p| p.keys).map_err(|e| format!("loading {}: {e}", path.display()))
    }

    /// A copy that was being loaded while it came does not come to its end: the node is empty, as it was before.
    pub fn drop_coming_copy(&self) {
        if self.stopping() {
            // Remembered as not whole.
            return;
        }
        let dropped = self.connect().and_then(|mut conn| conn.call(&[b"DR._LOAD", b"DROP"]).map(drop));
        if let Err(e) = dropped {
            return log::warn!(
                "what was loaded of a snapshot could not be dropped, the next one replaces it: {e}"
            );
        }
        self.remember(|s| s.loading = false);
        self.raise_fence();
    }

    /// Whether the dataset is nothing that could be lost: no keys and no history but that of its own start, or the
    /// part of a copy.
    pub fn is_fresh(&self) -> bool {
        let incomplete = self.state.get().loading && !self.shared.applied_known.load(Ordering::Acquire);
        let no_keys = self.connect().and_then(|mut c| has_keys(&mut c)).map(|k| !k).unwrap_or(false);
        // A dataset whose position nobody knows cannot follow; without keys there is nothing to lose.
        let unknown = !self.shared.applied_known.load(Ordering::Acquire);
        incomplete || (no_keys && (unknown || self.only_started()))
    }

    /// Before anything is touched: has this server the modules whose values the snapshot holds?
    pub fn check_modules(&self, modules: &BTreeMap<u64, ModuleData>) -> Result<(), String> {
        let mut beside_keys = Vec::new();
        for (&id, data) in modules {
            let name = String::from_utf8_lossy(&type_name(id)).into_owned();
            if data.aux_bytes > 0 {
                beside_keys.push(format!("{name} ({} bytes)", data.aux_bytes));
            }
            let Some(sample) = &data.sample else { continue };
            let mut conn = self.connect().map_err(|e| e.to_string())?;
            match conn.call(&[b"DR._LOAD", b"TRY", sample]) {
                Ok(_) => {}
                Err(LocalError::Reply { error, .. }) => {
                    let version = encoding_version(id);
                    return Err(format!(
                        "{} keys of the snapshot are of type {name} (encoding {version}), which this server \
                         cannot restore: load the module that the source has, in the same version ({error})",
                        data.keys
                    ));
                }
                Err(e) => return Err(e.to_string()),
            }
        }
        let text = match beside_keys.as_slice() {
            [] => String::new(),
            all => format!(
                "the snapshot has data of other modules outside of keys, which only their own commands can \
                 bring: {}; make it at this server anew before it is needed",
                all.join(", ")
            ),
        };
        self.warn("modules", text);
        Ok(())
    }

    /// After a load: an RDB of its own, so that a restart needs neither the staged file nor the link.
    pub fn save_after_load(self: &Arc<Self>) {
        let node = Arc::clone(self);
        let loads = node.state.get().full_syncs;
        let spawned = super::spawn("dr-save", move || {
            // A fork takes the main thread's time: after what is to be on its way first.
            let until = Instant::now() + FOLLOWING;
            while node.doing.load().state != "streaming" && Instant::now() < until && !node.stopping() {
                std::thread::sleep(Duration::from_millis(5));
            }
            while let Err(e) = node.save(&node.shared.stopping, &mut |_| {}) {
                node.warn(
                    "save",
                    format!("the loaded snapshot could not be saved here, a restart would load it anew: {e}"),
                );
                let until = Instant::now() + SAVE_AGAIN;
                while Instant::now() < until && !node.stopping() {
                    std::thread::sleep(Duration::from_millis(100));
                }
                // Another copy has come since, or the link was cut.
                if node.stopping() || node.state.get().full_syncs != loads || node.mode() != Mode::Target {
                    return;
                }
            }
            node.warn("save", "");
            node.remember(|s| s.copied = None);
            let _ = std::fs::remove_file(node.staging_path());
            if let Some(mut conn) = node.connect_again() {
                let _ = node.usable_rdb(&mut conn);
            }
        });
        if let Err(e) = spawned {
            log::warn!("no thread for saving the loaded snapshot: {e}");
        }
    }
}

impl TargetHost for Target {
    fn hello(&self) -> TargetHello {
        let node = &self.0;
        TargetHello {
            identity: node.identity(),
            node: node.state.node(),
            lineage: node.log.lineage(),
            last_op: node.log.written(),
            fresh: node.is_fresh(),
            consent: *node.consent.lock(),
        }
    }

    fn log(&self) -> Arc<Log> {
        Arc::clone(&self.0.log)
    }

    fn begin_snapshot(&self, meta: &SnapshotMeta) -> Result<Box<dyn Staging>, String> {
        Ok(Box::new(Staged::begin(&self.0, meta)?))
    }

    fn drop_snapshot(&self) {
        // On a full disk this is where room comes from.
        let _ = std::fs::remove_file(self.0.staging_path());
    }

    fn snapshot_progress(&self, received: u64, total: u64) {
        self.0.load_bytes.store(received, Ordering::Relaxed);
        self.0.load_total.store(total, Ordering::Relaxed);
    }

    fn begin_history(&self, history: History, first_op: OpId) -> Result<(), String> {
        let node = &self.0;
        node.log.begin_history(history, first_op).map_err(|e| e.to_string())?;
        node.set_ident(|i| i.lineage.open(history, first_op));
        // Replicas learn it by the feed's connection; a failure only costs them their own log.
        if let Ok(mut conn) = node.connect() {
            let op = first_op.to_string();
            let _ = conn.call(&[b"DR._LOAD", b"HISTORY", history.as_bytes(), op.as_bytes()]);
        }
        Ok(())
    }

    fn append(&self, frames: &[u8], _first: OpId, _last: OpId) -> Result<(), String> {
        let node = &self.0;
        if !node.shared.ident.load().held {
            // This node was a source: its keys would expire by its own clock.
            let at = node.log.written();
            if !node.rebuild_to(at)? {
                return Err(format!(
                    "the own disk cannot give op {at} with expiries held; DR.RESYNC takes a copy"
                ));
            }
            node.start_feed();
            node.set_doing("streaming", "");
        }
        let written = node.log.append(frames).map_err(|e| e.to_string())?;
        node.shared.written.store(written, Ordering::Release);
        Ok(())
    }

    fn rebuild_to(&self, op: OpId) -> Result<bool, String> {
        self.0.rebuild_to(op)
    }

    fn applied(&self) -> OpId {
        self.0.shared.applied.load(Ordering::Acquire)
    }

    fn durable(&self) -> OpId {
        self.0.log.durable()
    }

    fn state(&self, state: &LinkState) {
        let node = &self.0;
        if node.shared.diverged.load().is_some() {
            return;
        }
        let held = match state {
            LinkState::Held { reason } => {
                format!("this target is held and takes nothing from its source: {reason}")
            }
            _ => String::new(),
        };
        node.warn("held", held);
        match state {
            LinkState::Connecting => node.set_doing("connecting", ""),
            LinkState::Refused { reason } => node.set_doing("connecting", format!("refused: {reason}")),
            LinkState::Held { reason } => node.set_doing("held", reason.clone()),
            LinkState::Snapshot { note, .. } => node.set_doing("snapshot", note.clone()),
            LinkState::Loading => node.set_doing("loading", ""),
            LinkState::Rebuilding { to } => node.set_doing("recovering", format!("rebuilding to op {to}")),
            LinkState::Streaming => {
                *node.consent.lock() = crate::link::Consent::None;
                node.start_feed();
                node.set_doing("streaming", "");
            }
            LinkState::Stopped => {}
            LinkState::Failed { reason } => node.set_doing("failed", reason.clone()),
        }
    }

    fn panicked(&self, thread: &str, what: &str) {
        self.0.set_doing("failed", format!("thread {thread} panicked: {what}"));
    }
}

impl Node {
    /// Whether the log holds nothing but what every start writes: no op that has ever had an effect.
    fn only_started(&self) -> bool {
        // The log of a node that has only ever idled stays far below this.
        const IDLE_LOG: u64 = 64 << 20;
        let (oldest, written) = (self.log.oldest(), self.log.written());
        if written == 0 {
            return true;
        }
        oldest == 1
            && written < IDLE_LOG
            && crate::link::tail_above(&self.log, 0).is_some_and(|t| !t.effective)
    }

    /// Keeps what the log holds and another lineage, written up to `end`, has not: before the log starts anew.
    ///
    /// # Errors
    /// In words.
    pub fn keep_as_orphans(self: &Arc<Self>, other: &Lineage, end: OpId, reason: &str) -> Result<(), String> {
        let (oldest, written) = (self.log.oldest(), self.log.written());
        let common = match other.common(end, &self.log.lineage(), written) {
            Common::UpTo(op) => op.max(oldest - 1),
            Common::Unrelated => oldest - 1,
        };
        let effective = || crate::link::tail_above(&self.log, common).is_none_or(|t| t.effective);
        if written <= common || !effective() {
            return Ok(());
        }
        match self.log.cut_after(common, reason) {
            Ok(Some(kept)) => {
                log::warn!(
                    "{} ops ({} to {}) kept as orphan {}",
                    kept.ops,
                    kept.first_op,
                    kept.last_op,
                    kept.id
                );
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(e) => Err(format!("the own log could not be kept aside: {e}")),
        }
    }

    /// Sets what the log holds above `op` aside and brings the dataset to `op` from the own disk. False where
    /// the disk cannot give that point.
    ///
    /// # Errors
    /// In words.
    pub fn rebuild_to(self: &Arc<Self>, op: OpId) -> Result<bool, String> {
        let applied = self.shared.applied.load(Ordering::Acquire);
        let known = self.shared.applied_known.load(Ordering::Acquire);
        let held = self.shared.ident.load().held;
        self.stop_feed();
        if known && held && applied <= op {
            self.cut_log(op)?;
            return Ok(true);
        }
        let mut conn = self.connect().map_err(|e| e.to_string())?;
        let own = self.rdb_path(&mut conn).map_err(|e| e.to_string())?;
        let at = |r: &super::snapshots::Rdb| r.position.op_id;
        let fits = |r: &super::snapshots::Rdb| at(r) <= op && at(r) + 1 >= self.log.oldest();
        let candidates = [own.clone(), self.dir.join(super::linked::BASE_RDB)];
        let found = candidates.iter().filter_map(|p| self.read_rdb(p)).filter(fits).max_by_key(at);
        let Some(rdb) = found else { return Ok(false) };
        log::info!("rebuilding to op {op} from {} (op {}) and the log", rdb.path.display(), at(&rdb));
        // The RDB above the fork point must go: a start from it would be on the wrong branch.
        if rdb.path != own && !self.link_base(&rdb.path, &own) {
            return Ok(false);
        }
        self.cut_log(op)?;
        if conn.config_get("appendonly").map_err(|e| e.to_string())?.as_deref() == Some("yes") {
            // Killed in between, the AOF holds half of it. The RDB does not: a start from it does the same again.
            self.state.change(|s| s.loading = true).map_err(|e| e.to_string())?;
        }
        let (base, lineage) = (at(&rdb), &rdb.position.lineage);
        self.load_rdb(&rdb.path, base, lineage, "the own RDB is being loaded for a rebuild")?;
        self.set_ident(|i| {
            i.mode = Mode::Target;
            i.lineage = self.log.lineage();
            i.held = true;
        });
        self.apply_until(op, None)?;
        self.remember(|s| {
            s.rebuilds += 1;
            s.loading = false;
        });
        self.raise_fence();
        Ok(true)
    }

    fn cut_log(self: &Arc<Self>, op: OpId) -> Result<(), String> {
        let kept = self.log.cut_after(op, "the source does not have these ops").map_err(|e| e.to_string())?;
        if let Some(kept) = kept {
            log::warn!("{} ops ({} to {}) kept as orphan {}", kept.ops, kept.first_op, kept.last_op, kept.id);
        }
        self.shared.written.store(self.log.written(), Ordering::Release);
        Ok(())
    }

    /// Applies what the log has up to `op`, and waits for it. False where that takes longer than until `deadline_ms`
    /// (wall clock: it is about expiries).
    ///
    /// # Errors
    /// In words.
    pub fn apply_until(self: &Arc<Self>, op: OpId, deadline_ms: Option<i64>) -> Result<bool, String> {
        let addr = self.server.address.clone()?;
        let from = self.shared.applied.load(Ordering::Acquire);
        let config = FeedConfig {
            addr,
            secret: self.shared.secret.clone(),
            log: Arc::clone(&self.log),
            until: Some(op),
            caps: self.shared.caps(),
        };
        let (tx, rx) = crossbeam_channel::bounded(1);
        let feed = Feed::start(config, move |end| drop(tx.send(end))).map_err(|e| e.to_string())?;
        let late = || deadline_ms.is_some_and(|d| super::now_ms() >= d);
        let (begun, mut told) = (Instant::now(), Instant::now());
        loop {
            match rx.recv_timeout(PROGRESS) {
                Ok(FeedEnd::Reached) => {
                    self.progress.store(100, Ordering::Relaxed);
                    log::info!(
                        "{} bytes of ops applied from the own log in {} ms",
                        op.saturating_sub(from),
                        begun.elapsed().as_millis()
                    );
                    return Ok(!late());
                }
                Ok(FeedEnd::Stopped) => return Err("stopped".into()),
                Ok(FeedEnd::Diverged(why) | FeedEnd::Failed(why)) => return Err(why),
                Err(crossbeam_channel::RecvTimeoutError::Timeout) => {
                    let at = feed.applied();
                    let percent = at.saturating_sub(from) * 100 / op.saturating_sub(from).max(1);
                    self.progress.store(percent.min(99), Ordering::Relaxed);
                    // At a start the controller, which publishes otherwise, waits here.
                    self.publish();
                    if told.elapsed() > TELL {
                        told = Instant::now();
                        log::info!("applying the own log: op {at} of {op}, {percent} %");
                    }
                    if late() {
                        return Ok(false);
                    }
                    if self.stopping() {
                        return Err("stopped".into());
                    }
                    if self.is_replica() {
                        return Err("the server has become a replica".into());
                    }
                }
                Err(crossbeam_channel::RecvTimeoutError::Disconnected) => {
                    return Err("the feed has ended".into())
                }
            }
        }
    }
}
