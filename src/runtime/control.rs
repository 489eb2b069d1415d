//! The controller: boots the node, answers the operator, follows the server's role.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, Receiver, RecvTimeoutError, Sender};
use oplog_format::Lineage;

use super::boot::{lineage_of, plan, Dataset, Plan};
use super::node::{Node, NotServing};
use super::shared::{Answer, Mode, ReplicaEvent, Request, Respond, FLAG_INCOMPLETE};
use super::source::{Journal, Source, StartAt};
use super::waits::{self, Wait};
use crate::apply::load::{load, LoadPlan};
use crate::link::{Consent, Endpoint, EndpointConfig};
use crate::local::Conn;
use crate::snapshot::aux::AuxContent;

/// How often the status is published and the role looked at.
const TICK: Duration = Duration::from_millis(50);
/// Keys that expire within this time after a start are restored from the RDB: the server may drop them before the
/// log has been applied.
const NEAR_MS: i64 = 60_000;
/// Bytes of ops a millisecond that a replay applies at the least; where it turns out slower, it is done again.
const SLOWEST_REPLAY: u64 = 1000;
/// How often a replica looks where its master is.
const LOOK_AT_MASTER: Duration = Duration::from_secs(2);

/// Body of the thread `dr-control`.
pub fn run(node: &Arc<Node>, requests: &Receiver<Request>, events: &Receiver<ReplicaEvent>) {
    let (waits_tx, waits_rx) = bounded(1024);
    let threads = [
        super::spawn("dr-waits", {
            let node = Arc::clone(node);
            move || waits::run(&node, &waits_rx)
        }),
        super::spawn("dr-cleaner", {
            let node = Arc::clone(node);
            move || super::cleaner::run(&node)
        }),
        super::spawn("dr-replica", {
            let (node, events) = (Arc::clone(node), events.clone());
            move || node.log_replicated(&events)
        }),
    ];
    for e in threads.into_iter().filter_map(Result::err) {
        node.warn("threads", format!("a thread could not be made: {e}"));
    }
    node.publish();
    let now = Instant::now();
    let mut control = Control {
        node: Arc::clone(node),
        waits: waits_tx,
        endpoint_at: now,
        loads: 0,
        word: None,
        master_at: now,
    };
    if let Err(why) = &node.server.address {
        node.set_doing("failed", why.clone());
        node.warn("capture", format!("writes are NOT captured, there is no disaster recovery: {why}"));
        node.let_clients_in();
    } else {
        control.start_endpoint();
        control.boot();
    }
    while !node.stopping() {
        match requests.recv_timeout(TICK) {
            Ok(request) => control.handle(request),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        control.tick();
    }
}

struct Control {
    node: Arc<Node>,
    waits: Sender<Wait>,
    endpoint_at: Instant,
    loads: u64,
    /// What the master said of itself when it was looked at last.
    word: Option<Arc<AuxContent>>,
    /// When a replica looks at its master's address again.
    master_at: Instant,
}

impl Control {
    fn start_endpoint(&mut self) {
        let node = &self.node;
        if node.endpoint.lock().is_some() || Instant::now() < self.endpoint_at {
            return;
        }
        self.endpoint_at = Instant::now() + Duration::from_secs(2);
        let listen = match (&node.shared.config.endpoint, node.server.port.checked_add(1000)) {
            (Some(listen), _) => listen.clone(),
            (None, Some(port)) => format!("127.0.0.1:{port}"),
            (None, None) => {
                let port = node.server.port;
                node.warn("endpoint", format!("port {port} + 1000 is no port: set the argument 'endpoint'"));
                return;
            }
        };
        let limit = |bytes: u64| (bytes > 0).then_some(bytes);
        let config = EndpointConfig {
            secret: node.link_secret.clone(),
            registered: node.state.get().targets,
            timeout: node.shared.config.timeout,
            max_bytes_per_sec: limit(node.shared.config.link_max_bytes_per_sec),
            snapshot_max_bytes_per_sec: limit(node.shared.config.snapshot_max_bytes_per_sec),
            ..EndpointConfig::new(listen.clone(), node.state.node())
        };
        match Endpoint::start(config, Arc::new(Source(Arc::clone(node)))) {
            Ok(endpoint) => {
                *node.endpoint.lock() = Some(Arc::new(endpoint));
                node.warn("endpoint", "");
                if node.mode() == Mode::Source {
                    let own = node.own_endpoint();
                    node.set_ident(|i| i.endpoints = own);
                    node.announce_soon();
                }
            }
            Err(e) => node.warn("endpoint", format!("the endpoint {listen} cannot be opened: {e}")),
        }
    }

    /// Finds out what this node is and makes it that.
    fn boot(&mut self) {
        let node = Arc::clone(&self.node);
        let Some(mut conn) = node.connect_again() else { return };
        self.loads = node.shared.loads.load(Ordering::Acquire);
        if let Ok(dial) = node.dial() {
            if let Err(e) = crate::capture::repair_settings(&dial, &Journal(Arc::clone(&node))) {
                log::warn!("settings of an earlier attach could not be put back: {e}");
            }
        }
        match self.try_boot(&mut conn) {
            Ok(()) => {}
            Err(e) => {
                node.set_doing("failed", e.clone());
                node.warn("boot", format!("redisdr could not start: {e}"));
                node.let_clients_in();
            }
        }
        node.publish();
    }

    fn try_boot(&mut self, conn: &mut Conn) -> Result<(), String> {
        let node = Arc::clone(&self.node);
        let replication = conn.info("replication").map_err(|e| e.to_string())?;
        if replication.get("role").is_some_and(|r| r == "slave") {
            node.follow_master(true);
            node.loads_seen.store(self.loads, Ordering::Release);
            return Ok(());
        }
        let dataset = node.dataset(conn).map_err(|e| e.to_string())?;
        let state = node.state.get();
        let configured = Some(node.shared.config.source.clone()).filter(|s| !s.is_empty() && !state.cut);
        let booted = match state.linked.or(configured) {
            Some(endpoints) => self.boot_target(conn, &dataset, endpoints),
            None => self.boot_source(conn, &dataset),
        };
        match booted {
            // A Sentinel was faster: the master's copy replaces what could not be finished.
            Err(e) if node.is_replica() => {
                log::warn!("{e}");
                node.demoted();
                Ok(())
            }
            other => other,
        }
    }

    fn boot_target(
        &mut self,
        conn: &mut Conn,
        dataset: &Dataset,
        endpoints: Vec<String>,
    ) -> Result<(), String> {
        let node = Arc::clone(&self.node);
        let remembered = node.remember(|s| s.linked = Some(endpoints.clone()));
        if !remembered {
            log::warn!("the link is not remembered");
        }
        node.shared.linked.store(true, Ordering::Release);
        node.shared.hold.store(true, Ordering::Release);
        node.set_serving(Some(NotServing {
            reason: "this node is a target, chains are not supported".into(),
            elsewhere: Vec::new(),
        }));
        node.switch_eviction_off(conn).map_err(|e| e.to_string())?;
        let held = !matches!(dataset, Dataset::At { held: false, .. });
        node.set_ident(|i| {
            i.mode = Mode::Target;
            i.held = held;
            i.positioned = false;
            i.endpoints.clone_from(&endpoints);
        });
        let at = |op: u64| {
            node.shared.applied.store(op, Ordering::Release);
            node.shared.applied_known.store(true, Ordering::Release);
        };
        let saved_incomplete =
            node.shared.loaded.load().as_ref().is_some_and(|a| a.flags & FLAG_INCOMPLETE != 0);
        if saved_incomplete && matches!(dataset, Dataset::Unknown { .. }) {
            // As where the copy itself was interrupted: nothing of this may be kept or served.
            node.remember(|s| s.loading = true);
        }
        match plan(dataset, &node.log.lineage(), node.log.oldest(), node.log.written()) {
            Plan::InStep if matches!(dataset, Dataset::Unknown { .. }) => {
                self.anew(&Lineage::default(), 1, "nobody knows which ops this dataset holds")?;
            }
            Plan::InStep => {
                if let Dataset::At { op_id, .. } = dataset {
                    at(*op_id);
                }
            }
            Plan::Replay(op) => {
                at(op);
                let end = node.log.written();
                node.shared.replicas_wait.store(false, Ordering::Release);
                if held || !node.rebuild_to(end)? {
                    self.replay(end, None)?;
                }
            }
            Plan::Gap(first) => {
                // The log has lost its end and the dataset has not: it goes on above the dataset.
                let lineage = match dataset {
                    Dataset::At { lineage, .. } => lineage.clone(),
                    _ => node.log.lineage(),
                };
                node.log.reset(lineage, first).map_err(|e| e.to_string())?;
                at(first - 1);
            }
            Plan::GapUnknown(why) => {
                if node.state.get().loading {
                    log::warn!("{why}: a new snapshot is taken");
                } else {
                    self.anew(&Lineage::default(), 1, &why)?;
                }
            }
            Plan::Anew(lineage, next, why) => {
                if node.state.get().loading {
                    log::warn!("{why}: a new snapshot is taken");
                } else {
                    self.anew(&lineage, next, &why)?;
                    if let Dataset::At { op_id, .. } = dataset {
                        at(*op_id);
                    }
                }
            }
        }
        node.set_ident(|i| i.lineage = node.log.lineage());
        node.shared.replicas_wait.store(false, Ordering::Release);
        if node.state.get().loading {
            // Whatever the server has loaded, what comes next is the copy.
            node.shared.applied_known.store(false, Ordering::Release);
            node.close_for_loading("a snapshot was not loaded completely and will be taken anew");
        } else {
            node.raise_fence();
        }
        node.start_feed();
        node.announce();
        node.start_client(endpoints)
    }

    /// Brings a source's dataset from op `from`, where its RDB stands, to the end of its log.
    fn recover(&mut self, conn: &mut Conn, from: u64, end: u64) -> Result<(), String> {
        let node = Arc::clone(&self.node);
        node.shared.applied.store(from, Ordering::Release);
        node.shared.applied_known.store(true, Ordering::Release);
        node.set_doing("recovering", "reading the RDB for keys that expire while the log is applied");
        node.publish();
        let aux = node.shared.loaded.load_full();
        let window = NEAR_MS + i64::try_from((end - from) / SLOWEST_REPLAY).unwrap_or(i64::MAX / 2);
        let until = crate::runtime::now_ms().saturating_add(window);
        self.restore_before(conn, until)?;
        // Without an RDB every key comes from the log, held.
        let Some(aux) = aux else { return self.replay(end, None).map(|_| ()) };
        if self.replay(end, Some(until))? {
            return Ok(());
        }
        log::warn!(
            "applying the log took so long that keys of the RDB may have expired: again, with all held"
        );
        let path = node.rdb_path(conn).map_err(|e| e.to_string())?;
        node.load_rdb(&path, from, &lineage_of(&aux), "the own RDB is being loaded again")?;
        self.replay(end, None).map(|_| ())
    }

    /// Applies what the log has above the dataset, with clients waiting. False where that took longer than until
    /// `deadline_ms`.
    fn replay(&mut self, end: u64, deadline_ms: Option<i64>) -> Result<bool, String> {
        let node = &self.node;
        let from = node.shared.applied.load(Ordering::Acquire);
        node.set_doing("recovering", format!("applying the own log from op {from} to {end}"));
        node.close_for_loading("the own log is being applied");
        node.progress.store(0, Ordering::Relaxed);
        node.shared.hold.store(true, Ordering::Release);
        node.publish();
        node.apply_until(end, deadline_ms)
    }

    fn boot_source(&mut self, conn: &mut Conn, dataset: &Dataset) -> Result<(), String> {
        let node = Arc::clone(&self.node);
        let mut start = StartAt::Next;
        let mut released = !node.state.get().rebasing && !matches!(dataset, Dataset::At { held: true, .. });
        match plan(dataset, &node.log.lineage(), node.log.oldest(), node.log.written()) {
            Plan::InStep => {
                if node.log.written() > 0 && self.restore_near(conn)? > 0 {
                    released = false;
                }
            }
            Plan::Replay(op) => {
                released = false;
                let end = node.log.written();
                // Evicting now, the source would lose keys without a word in its log.
                node.switch_eviction_off(conn).map_err(|e| e.to_string())?;
                if let Err(e) = self.recover(conn, op, end) {
                    if node.is_replica() {
                        node.restore_settings(conn);
                        return Err(e);
                    }
                    let at = node.shared.applied.load(Ordering::Acquire);
                    node.warn(
                        "recovery",
                        format!("the log could be applied up to op {at} of {end} only: {e}"),
                    );
                    node.log.cut_after(at, "could not be applied at the start").map_err(|e| e.to_string())?;
                }
            }
            Plan::Gap(first) => {
                node.warn("gap", format!("the dataset is ahead of the log, which goes on at op {first}"));
                // The RDB is the copy that targets get: what the server has dropped of it must be deleted for them.
                released &= self.restore_near(conn)? == 0;
                start = StartAt::Op(first);
            }
            Plan::GapUnknown(why) => {
                let first = node.log.written() + 2;
                node.warn("gap", format!("{why}: the log goes on at op {first}, targets take a new copy"));
                start = StartAt::Op(first);
            }
            Plan::Anew(lineage, next, why) => {
                let had = node.log.written() > 0;
                self.anew(&lineage, next, &why)?;
                if matches!(dataset, Dataset::At { .. }) {
                    released &= self.restore_near(conn)? == 0;
                }
                if had {
                    node.warn(
                        "anew",
                        format!("{why}: the log was set aside, targets keep their data and are held"),
                    );
                }
            }
        }
        if !released {
            node.remember(|s| s.rebasing = true);
        }
        let own = node.own_endpoint();
        node.set_ident(|i| {
            i.mode = Mode::Source;
            i.held = !released;
            i.endpoints = own;
        });
        node.shared.applied_known.store(false, Ordering::Release);
        node.shared.hold.store(false, Ordering::Release);
        node.start_capture(start);
        node.restore_settings(conn);
        if !released {
            node.start_rebase();
        }
        let _ = node.usable_rdb(conn);
        Ok(())
    }

    /// Sets the whole log aside and begins another.
    fn anew(&mut self, lineage: &Lineage, next: u64, why: &str) -> Result<(), String> {
        let node = &self.node;
        node.keep_as_orphans(lineage, next.saturating_sub(1), why)?;
        node.log.reset(lineage.clone(), next).map_err(|e| e.to_string())
    }

    /// As [`Self::restore_before`], for a start that has little to do until the log is attached.
    fn restore_near(&mut self, conn: &mut Conn) -> Result<u64, String> {
        self.restore_before(conn, crate::runtime::now_ms().saturating_add(NEAR_MS))
    }

    /// Restores, held, the keys of the RDB that expire before `until_ms`: a later op in the log, or at a target, may
    /// say otherwise. Returns how many.
    fn restore_before(&mut self, conn: &mut Conn, until_ms: i64) -> Result<u64, String> {
        let node = &self.node;
        // An AOF is loaded with what has expired, and the RDB beside it is another dataset.
        let aof = conn.config_get("appendonly").map_err(|e| e.to_string())?.as_deref() == Some("yes");
        if aof || node.shared.loaded.load().is_none() {
            return Ok(0);
        }
        let path = node.rdb_path(conn).map_err(|e| e.to_string())?;
        let lineage = Lineage::default();
        let plan = LoadPlan { path: &path, op_id: 0, lineage: &lineage, only_before: Some(until_ms) };
        let done = load(&plan, conn, &node.shared.stopping, &mut |_| {})
            .map_err(|e| format!("restoring keys that expire from {}: {e}", path.display()))?;
        Ok(done.keys)
    }

    fn handle(&mut self, request: Request) {
        let node = Arc::clone(&self.node);
        let done = |r: Respond, outcome: Result<Answer, String>| {
            r(outcome.map_err(|e| format!("ERR {e}")));
        };
        match request {
            Request::Link(endpoints, caller, respond) => {
                let outcome = node.become_target(endpoints, caller, Consent::Link);
                node.publish();
                done(respond, outcome.map(|()| Answer::Simple("OK".into())));
            }
            Request::Cut(respond) => {
                let outcome = node.cut();
                if outcome.is_ok() {
                    node.start_rebase();
                }
                node.publish();
                done(respond, outcome.map(|op| Answer::Int(i64::try_from(op).unwrap_or(i64::MAX))));
            }
            Request::CutTarget(id, respond) => {
                let endpoint = node.endpoint.lock().clone();
                let cut = endpoint.is_some_and(|e| e.drop_target(id));
                node.publish();
                let unknown = || format!("no target has service id {id}");
                done(respond, cut.then(|| Answer::Simple("OK".into())).ok_or_else(unknown));
            }
            Request::Resync(respond) => {
                let outcome = node.resync();
                node.publish();
                done(respond, outcome.map(|()| Answer::Simple("OK".into())));
            }
            Request::Snapshot(respond) => {
                // A save takes its time; the controller goes on.
                let spawned = super::spawn("dr-snapshot", move || {
                    let _one_at_a_time = node.saving.lock();
                    let saved = node.save(&AtomicBool::new(false), &mut |_| {}).and_then(|()| {
                        let mut conn = node.connect().map_err(|e| e.to_string())?;
                        let rdb = node.usable_rdb(&mut conn).map_err(|e| e.to_string())?;
                        rdb.map(|r| r.position.op_id).ok_or("the RDB has no position in the log".to_owned())
                    });
                    node.publish();
                    let op = saved.map(|op| Answer::Int(i64::try_from(op).unwrap_or(i64::MAX)));
                    respond(op.map_err(|e| format!("ERR {e}")));
                });
                if let Err(e) = spawned {
                    log::error!("no thread for a snapshot: {e}");
                }
            }
            Request::Wait(op, targets, ms, respond) => {
                let until = (ms > 0).then(|| Instant::now() + Duration::from_millis(ms));
                if let Err(e) = self.waits.try_send(Wait { op, targets, until, respond }) {
                    let wait = e.into_inner();
                    (wait.respond)(Err("BUSY too many clients are in DR.WAIT".into()));
                }
            }
            Request::Wake(_) => {}
        }
    }

    fn tick(&mut self) {
        let node = Arc::clone(&self.node);
        self.follow_role();
        // A target that is still refused has tried again since.
        if node.server.address.is_ok() {
            self.start_endpoint();
            node.announce_where_due();
        }
        node.gate_follows_log();
        node.publish();
    }

    /// Takes in that the server has become a replica or a master, has loaded another copy, or has heard of its
    /// master what changes what it is itself.
    fn follow_role(&mut self) {
        let node = Arc::clone(&self.node);
        let replica = node.shared.is_replica.load(Ordering::Acquire);
        let was = matches!(node.mode(), Mode::Replica | Mode::TargetReplica);
        let loads = node.shared.loads.load(Ordering::Acquire);
        if replica && loads != self.loads {
            self.loads = loads;
            node.follow_master(false);
            node.loads_seen.store(loads, Ordering::Release);
        } else if replica && !was {
            node.demoted();
        } else if !replica && was {
            self.loads = loads;
            self.promote();
        }
        if replica {
            self.listen_to_master();
        }
    }

    /// Takes the master's lineage and endpoint over.
    fn listen_to_master(&mut self) {
        let node = &self.node;
        if node.master_spoke(&mut self.word) {
            node.take_lineage();
        } else if Instant::now() < self.master_at {
            return;
        }
        self.master_at = Instant::now() + LOOK_AT_MASTER;
        node.update_serving();
    }

    /// The replica has become a master: a source goes on with its log, a target with its link.
    fn promote(&mut self) {
        let node = Arc::clone(&self.node);
        log::info!("promoted by the server");
        self.word = None;
        if node.mode() == Mode::TargetReplica {
            return self.promote_target();
        }
        let known = node.shared.ident.load().positioned || node.is_capturing();
        let own = node.own_endpoint();
        node.set_ident(|i| {
            i.mode = Mode::Source;
            i.endpoints = own;
        });
        if !known {
            // The data are the master's at a moment that nobody knows: another history.
            let why = "promoted without having heard a position of the master";
            if let Err(e) = self.anew(&Lineage::default(), 1, why) {
                node.warn("anew", format!("{why}: {e}"));
            }
            node.become_source();
        } else if node.shared.ident.load().positioned {
            // The tap is dropped by the server and attaches again where it was.
            node.set_serving(None);
            node.let_clients_in();
            node.set_doing("capturing", "promoted");
        }
        if node.shared.ident.load().held {
            node.remember(|s| s.rebasing = true);
            node.start_rebase();
        }
        node.announce();
    }

    fn promote_target(&mut self) {
        let node = Arc::clone(&self.node);
        // What was applied goes into the log first: the link goes on from its end.
        if !node.drain_replicated() {
            node.warn("replica-log", "what was applied before the promotion is not in the log");
        }
        let applied = node.shared.applied.load(Ordering::Acquire);
        let known = node.shared.applied_known.load(Ordering::Acquire)
            && !node.shared.loading_data.load(Ordering::Acquire);
        let ident = node.shared.ident.load_full();
        if known && node.log.written() < applied {
            let done = node.log.reset(ident.lineage.clone(), applied + 1);
            if let Err(e) = done {
                node.warn("replica-log", format!("the log could not be begun at op {applied}: {e}"));
            }
        }
        let configured = Some(node.shared.config.source.clone()).filter(|s| !s.is_empty());
        let state = node.state.get();
        let Some(endpoints) = state.linked.or(configured.filter(|_| !state.cut)) else {
            node.remember(|s| s.rebasing = true);
            node.become_source();
            node.start_rebase();
            return;
        };
        node.remember(|s| {
            s.linked = Some(endpoints.clone());
            s.loading = !known;
        });
        node.set_ident(|i| {
            i.mode = Mode::Target;
            i.endpoints.clone_from(&endpoints);
        });
        node.shared.linked.store(true, Ordering::Release);
        node.set_serving(Some(NotServing {
            reason: "this node is a target, chains are not supported".into(),
            elsewhere: Vec::new(),
        }));
        if known {
            node.raise_fence();
        } else {
            node.close_for_loading("promoted with a dataset that is not whole; a snapshot is taken");
        }
        if let Ok(mut conn) = node.connect() {
            let _ = node.switch_eviction_off(&mut conn);
        }
        node.start_feed();
        node.announce();
        log::info!("resuming the link at op {}", node.log.written());
        if let Err(e) = node.start_client(endpoints) {
            node.set_doing("failed", e);
        }
    }
}
