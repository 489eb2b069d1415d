//! The source's side: keeps the tap attached and serves targets.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, RecvTimeoutError, Sender};
use oplog_format::{decode_entry, Decoded, History, OpId};
use parking_lot::Mutex;

use super::gate::GateMode;
use super::node::{Node, NotServing};
use super::shared::Mode;
use crate::capture::settings::Dial;
use crate::capture::{
    attach, AttachError, AttachRequest, Attached, Resume, SettingsJournal, Stop, Tap, TapEndReason, TapSink,
    TapStopper,
};
use crate::config::OnLogFailure;
use crate::link::{NodeIdentity, Registered, Serving, Snapshot, SourceHost};
use crate::store::Log;

/// How long clients wait for the first attach.
const FIRST_ATTACH: Duration = Duration::from_secs(5);
/// Wait between attempts to attach.
const AGAIN: Duration = Duration::from_millis(20);

/// Where the log goes on at the first attach of a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartAt {
    /// Directly above its last op.
    Next,
    /// At this op, which leaves a gap.
    Op(OpId),
    /// Where the server's offset says: op id = base + offset.
    Base(i64),
    /// The same, and from this op on, which the dataset had when the server started: the log may hold more.
    Dataset(i64, OpId),
}

/// The running capture.
#[derive(Default)]
pub struct CaptureControl {
    stop: Arc<AtomicBool>,
    stopper: Arc<Mutex<Option<TapStopper>>>,
    thread: Option<JoinHandle<()>>,
}

/// Remembers settings that an attach changes for a moment.
pub struct Journal(pub Arc<Node>);

impl SettingsJournal for Journal {
    fn remember(&self, settings: &[(String, String)]) {
        self.0.remember(|s| s.attach_settings = settings.to_vec());
    }

    fn forget(&self) {
        self.0.remember(|s| s.attach_settings.clear());
    }

    fn remembered(&self) -> Vec<(String, String)> {
        self.0.state.get().attach_settings
    }
}

impl Node {
    /// The own server, for the tap.
    ///
    /// # Errors
    /// Why it cannot be reached.
    pub fn dial(&self) -> Result<Dial, String> {
        Ok(Dial { addr: self.server.address.clone()?, secret: self.shared.secret.clone() })
    }

    /// Captures from here on and lets clients write: at once where the attach works, after some seconds in any
    /// case.
    pub fn become_source(self: &Arc<Self>) {
        self.shared.applied_known.store(false, Ordering::Release);
        self.shared.hold.store(false, Ordering::Release);
        let own = self.own_endpoint();
        self.set_ident(|i| {
            i.mode = Mode::Source;
            i.positioned = false;
            i.endpoints = own;
        });
        self.shared.replicas_wait.store(true, Ordering::Release);
        self.start_capture(StartAt::Next);
    }

    /// Starts the tap's thread and waits for the first attach, not for long.
    pub fn start_capture(self: &Arc<Self>, start: StartAt) {
        self.stop_capture();
        let (tx, rx) = bounded(1);
        let waits = !self.is_replica();
        let stop = Arc::new(AtomicBool::new(false));
        let stopper = Arc::new(Mutex::new(None));
        let capture = Capture {
            node: Arc::clone(self),
            stop: Arc::clone(&stop),
            stopper: Arc::clone(&stopper),
            first: Some(tx),
            base: None,
            loads: self.shared.loads.load(Ordering::Acquire),
            overlaps: false,
        };
        let spawned = std::thread::Builder::new().name("dr-tap".into()).spawn(move || {
            let node = Arc::clone(&capture.node);
            let run = std::panic::AssertUnwindSafe(move || capture.run(start));
            if std::panic::catch_unwind(run).is_err() {
                node.set_doing("failed", "the tap panicked, writes are not captured");
                node.warn(
                    "capture",
                    "the tap has panicked: writes are not captured until the server restarts",
                );
            }
        });
        let thread = match spawned {
            Ok(thread) => thread,
            Err(e) => {
                self.set_doing("failed", format!("no thread for the tap: {e}"));
                return self.let_clients_in();
            }
        };
        *self.capture.lock() = CaptureControl { stop, stopper, thread: Some(thread) };
        if !waits {
            // No client writes here; and without a link to its master a replica cannot be attached to.
            return;
        }
        match rx.recv_timeout(FIRST_ATTACH) {
            Ok(Ok(())) => {}
            Ok(Err(e)) => {
                self.set_doing("failed", format!("writes are not captured: {e}"));
                self.warn("capture", format!("writes are NOT captured, there is no disaster recovery: {e}"));
                self.capture_failed();
            }
            Err(RecvTimeoutError::Timeout) => {
                self.set_doing("failed", "the log could not be attached in time; trying on");
                self.warn("capture", "clients write and nothing is captured yet: the attach takes too long");
                self.capture_failed();
            }
            Err(RecvTimeoutError::Disconnected) => self.capture_failed(),
        }
    }

    /// Lets clients write although nothing is captured, unless the operator prefers no writes.
    pub fn capture_failed(&self) {
        if self.is_replica() {
            self.open_to_master();
        } else if self.shared.config.on_log_failure == OnLogFailure::DenyWrites {
            self.deny_writes(&self.doing.load().reason);
        } else {
            self.let_clients_in();
        }
    }

    fn deny_writes(&self, why: &str) {
        // Part of a line of the protocol.
        let why: String = why.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let text = format!(
            "MISCONF redisdr denies writes (on-log-failure deny-writes): {why}. They are taken again once the log \
             works: see DR.STATUS, make room on the disk of {} or mend it; to write without a log, restart with \
             on-log-failure serve",
            self.dir.display()
        );
        self.shared.replicas_wait.store(false, Ordering::Release);
        self.shared.gate.set(GateMode::LogFailed, &text);
    }

    /// With `on-log-failure deny-writes`: closes the gate of a source for writes while its log has failed, and opens
    /// it again.
    pub fn gate_follows_log(&self) {
        if self.shared.config.on_log_failure != OnLogFailure::DenyWrites || self.mode() != Mode::Source {
            return;
        }
        let closed = self.shared.gate.mode() == GateMode::LogFailed;
        match self.shared.disk.failed.load_full() {
            Some(why) if matches!(self.shared.gate.mode(), GateMode::Open | GateMode::Releasing) => {
                log::warn!("writes of clients are denied until the log works again");
                self.deny_writes(&format!("the log has failed: {why}"));
            }
            // Not attached is another reason for the same gate; the attach opens it.
            None if closed && self.attached.load(Ordering::Acquire) => {
                log::warn!("writes of clients are taken again");
                self.let_clients_in();
            }
            _ => {}
        }
    }

    /// Opens the gate.
    pub fn let_clients_in(&self) {
        if self.is_replica() {
            return self.open_to_master();
        }
        self.shared.replicas_wait.store(false, Ordering::Release);
        let mode = if self.shared.ident.load().held { GateMode::Releasing } else { GateMode::Open };
        self.shared.gate.set(mode, "");
    }

    /// Whether the server is one at this moment, whatever the controller has taken in.
    pub fn is_replica(&self) -> bool {
        self.shared.is_replica.load(Ordering::Acquire)
    }

    /// Whether a capture runs, attached or on its way.
    pub fn is_capturing(&self) -> bool {
        self.capture.lock().thread.as_ref().is_some_and(|t| !t.is_finished())
    }

    /// Ends the tap and waits for its thread, and for the log to have what it handed over.
    pub fn stop_capture(&self) {
        let control = std::mem::take(&mut *self.capture.lock());
        control.stop.store(true, Ordering::Release);
        if let Some(stopper) = control.stopper.lock().take() {
            stopper.stop();
        }
        if let Some(thread) = control.thread {
            let _ = thread.join();
            let _ = self.writer.flush(Duration::from_secs(60));
        }
    }
}

struct Capture {
    node: Arc<Node>,
    stop: Arc<AtomicBool>,
    stopper: Arc<Mutex<Option<TapStopper>>>,
    first: Option<Sender<Result<(), String>>>,
    /// op id = base + offset, once known.
    base: Option<i64>,
    /// Copies that the server had loaded when this capture began.
    loads: u64,
    /// The first stream begins below the log's end.
    overlaps: bool,
}

impl Capture {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire) || self.node.stopping() || self.outdated()
    }

    /// Whether a replica has loaded another copy: its offsets may mean other ops, and the controller begins anew.
    fn outdated(&self) -> bool {
        self.node.is_replica() && self.node.shared.loads.load(Ordering::Acquire) != self.loads
    }

    /// Where a replica's start goes on: at the op that its dataset had, which its log says the database of.
    fn resume(&self, start: StartAt) -> Option<Resume> {
        let StartAt::Dataset(base, op) = start else { return None };
        let db = crate::link::db_behind(&self.node.log, op)?;
        let info = self.node.connect().and_then(|mut c| c.info("replication")).ok()?;
        // The server continues its present history at any offset that its backlog holds.
        let history = History::from_bytes(info.get("master_replid")?.as_bytes()).ok()?;
        Some(Resume { history, offset: i64::try_from(op).ok()? - base, db })
    }

    fn run(mut self, start: StartAt) {
        let dial = match self.node.dial() {
            Ok(dial) => dial,
            Err(e) => return self.tell(Err(e)),
        };
        let mut resume: Option<Resume> = None;
        while !self.stopped() {
            let first = self.base.is_none();
            let Some(attached) = self.attach(&dial, resume, start) else { return };
            if self.stopped() {
                return;
            }
            let last = resume.map(|r| r.history);
            let op = self.place(&attached, start, last);
            if attached.gap || first || !attached.continued {
                self.open_history(attached.history, op);
            }
            let attached_history = attached.history;
            let tap = match Tap::new(attached, op, self.node.shared.config.service_id) {
                Ok(tap) => tap,
                Err(e) => return self.tell(Err(e.to_string())),
            };
            if let Ok(stopper) = tap.stopper() {
                *self.stopper.lock() = Some(stopper);
            }
            if self.stopped() {
                return;
            }
            self.attached();
            let history = attached_history;
            let overlap = std::mem::take(&mut self.overlaps).then_some(history);
            let mut sink = Sink { node: Arc::clone(&self.node), overlap };
            let end = tap.run(&mut sink);
            match &end.reason {
                TapEndReason::Stopped => return,
                TapEndReason::Closed(_) => log::warn!("the tap was closed by the server; attaching again"),
                TapEndReason::Sink(stop) => log::warn!("the tap ends: {}", stop.reason),
                TapEndReason::Stream(e) => {
                    self.node.warn("stream", format!("the server's stream is not understood: {e}"));
                    std::thread::sleep(Duration::from_secs(1));
                }
            }
            resume = Some(Resume { history: end.history, offset: end.offset, db: end.db });
            self.overlaps = sink.overlap.is_some();
        }
    }

    fn tell(&mut self, outcome: Result<(), String>) {
        match (self.first.take(), outcome) {
            (Some(first), outcome) => drop(first.send(outcome)),
            (None, Err(e)) => {
                self.node.attached.store(false, Ordering::Release);
                self.node.set_doing("failed", format!("writes are not captured: {e}"));
                self.node.warn("capture", format!("writes are NOT captured: {e}"));
                self.node.capture_failed();
            }
            (None, Ok(())) => {}
        }
    }

    /// Attaches, again until it works or is of no use.
    fn attach(&mut self, dial: &Dial, resume: Option<Resume>, start: StartAt) -> Option<Attached> {
        let journal = Journal(Arc::clone(&self.node));
        let since = Instant::now();
        let mut told = false;
        loop {
            let cancelled = || self.stopped();
            // Until the first attach it changes with the server's history.
            let resume = if self.base.is_none() { self.resume(start) } else { resume };
            let request = AttachRequest {
                resume,
                journal: &journal,
                cancelled: &cancelled,
                ..AttachRequest::new(dial)
            };
            match attach(&request) {
                Ok(attached) => return Some(attached),
                Err(AttachError::Cancelled) => return None,
                Err(e) if !e.is_temporary() && !starts_with_loading(&e) => {
                    self.tell(Err(e.to_string()));
                    // A setting may be mended at any time.
                    std::thread::sleep(Duration::from_secs(1));
                }
                Err(e) => {
                    if since.elapsed() > FIRST_ATTACH && !std::mem::replace(&mut told, true) {
                        log::warn!("attaching: {e}; trying on");
                    }
                    std::thread::sleep(AGAIN);
                }
            }
            if self.stopped() {
                return None;
            }
        }
    }

    /// Op id of the last byte before the attached stream; sets the base.
    fn place(&mut self, attached: &Attached, start: StartAt, last: Option<History>) -> OpId {
        let offset = attached.offset;
        let written = || self.node.log.written();
        let at = |base: i64| u64::try_from(base + offset).unwrap_or(0);
        let op = match (self.base, start) {
            (Some(base), _) if attached.continued => return at(base),
            (Some(base), _) if last == Some(attached.history) => return at(base).max(written()),
            // Another history that does not continue: nobody knows what was lost, so at least one op.
            (Some(base), _) => at(base).max(written()) + 1,
            (None, StartAt::Next) => written(),
            (None, StartAt::Op(first)) => first.saturating_sub(1),
            (None, StartAt::Base(base) | StartAt::Dataset(base, _)) => at(base),
        };
        self.base = Some(i64::try_from(op).unwrap_or(i64::MAX) - offset);
        op
    }

    fn open_history(&mut self, history: History, last_op: OpId) {
        let node = &self.node;
        // What the former tap handed over is in the queue before it.
        let _ = node.writer.flush(Duration::from_secs(60));
        let written = node.log.written();
        if last_op < written && last_op + 1 >= node.log.oldest() {
            // A replica started from an RDB older than its log: the stream says whether both are the same.
            self.overlaps = true;
            return;
        }
        if last_op < written {
            let lineage = node.log.lineage();
            let why = "the log begins above what the master's stream goes on from";
            let kept = node.keep_as_orphans(&oplog_format::Lineage::default(), 0, why);
            let done = kept.and_then(|()| node.log.reset(lineage, last_op + 1).map_err(|e| e.to_string()));
            if let Err(e) = done {
                log::error!("the log could not be begun anew at op {}: {e}", last_op + 1);
            }
        } else if last_op > written && written >= node.log.oldest() {
            let lost = last_op - written;
            node.warn(
                "gap",
                format!(
                    "the log has a gap: {lost} bytes of ops above op {written} were not captured; targets below \
                     op {last_op} need a full sync"
                ),
            );
        }
        let _ = node.writer.history(history, last_op + 1);
        let _ = node.writer.flush(Duration::from_secs(60));
    }

    /// The stream is being read: clients may write.
    fn attached(&mut self) {
        let node = Arc::clone(&self.node);
        let base = self.base.unwrap_or(0);
        node.set_ident(|i| {
            i.base = base;
            i.positioned = true;
            i.lineage = node.log.lineage();
        });
        node.warn("capture", "");
        node.take_lineage();
        node.attached.store(true, Ordering::Release);
        self.node.after_attach();
        if node.mode() == Mode::Source {
            if node.shared.ident.load().held {
                node.set_rebasing();
            } else {
                node.set_doing("capturing", "");
            }
            node.set_serving(None);
            node.let_clients_in();
            node.announce_soon();
        } else {
            node.set_doing("capturing", "replica: the log is kept for a promotion");
        }
        self.tell(Ok(()));
    }
}

fn starts_with_loading(e: &AttachError) -> bool {
    matches!(e, AttachError::Local(crate::local::LocalError::Auth(text)) if text.starts_with("LOADING"))
}

struct Sink {
    node: Arc<Node>,
    /// While the stream repeats what the log holds: the stream's history.
    overlap: Option<History>,
}

impl Sink {
    /// Leaves out of `frames` what the log has already; where the two differ the log's is kept aside.
    fn beyond_log(&mut self, frames: &[u8]) -> Result<Vec<u8>, String> {
        let Some(history) = self.overlap else { return Ok(frames.to_vec()) };
        let log = &self.node.log;
        let mut rest = frames;
        while !rest.is_empty() {
            let Ok(Decoded::Entry(entry)) = decode_entry(rest) else {
                return Err("an entry is cut off".into());
            };
            let (first, last, written) = (entry.header.first_op(), entry.header.meta.last_op, log.written());
            let behind = rest.get(entry.frame.len()..).unwrap_or_default();
            if last <= written && crate::link::holds_same(log, &entry) {
                rest = behind;
                continue;
            }
            let mut out = Vec::new();
            let tail = if first <= written && last > written {
                crate::link::entry_from(entry.frame, written + 1)
            } else {
                None
            };
            let head_len = tail.as_ref().and_then(|_| usize::try_from(written + 1 - first).ok());
            let same_head = head_len.is_some_and(|n| crate::link::holds_start(log, &entry, n));
            match tail.filter(|_| same_head) {
                Some(tail) => out.extend_from_slice(&tail),
                None => {
                    log.cut_after(first - 1, "the master does not have these ops")
                        .map_err(|e| e.to_string())?;
                    out.extend_from_slice(entry.frame);
                }
            }
            out.extend_from_slice(behind);
            self.overlap = None;
            if !self.node.writer.history(history, log.written() + 1) {
                return Err("the writer has ended".into());
            }
            let _ = self.node.writer.flush(Duration::from_secs(60));
            self.node.take_lineage();
            return Ok(out);
        }
        Ok(Vec::new())
    }
}

impl TapSink for Sink {
    fn entries(&mut self, frames: &[u8], _last_op: OpId) -> Result<(), Stop> {
        let new = self.beyond_log(frames).map_err(|reason| Stop { reason })?;
        if new.is_empty() || self.node.writer.entries(new) {
            Ok(())
        } else {
            Err(Stop { reason: "the writer has ended".into() })
        }
    }

    fn history_changed(&mut self, history: History, first_op: OpId) -> Result<(), Stop> {
        let node = &self.node;
        if let Some(overlap) = &mut self.overlap {
            *overlap = history;
            return Ok(());
        }
        if !node.writer.history(history, first_op) || !node.writer.flush(Duration::from_secs(60)) {
            return Err(Stop { reason: "the writer has ended".into() });
        }
        node.set_ident(|i| i.lineage = node.log.lineage());
        node.take_lineage();
        Ok(())
    }

    fn settle(&mut self) {
        let _ = self.node.writer.flush(Duration::from_secs(2));
        let _ = self.node.log.sync();
    }
}

impl Node {
    /// Looks at settings that have to do with the tap.
    fn after_attach(&self) {
        let Ok(mut conn) = self.connect() else { return };
        let n = conn.config_get("min-replicas-to-write").ok().flatten().and_then(|v| v.parse::<u32>().ok());
        match n {
            Some(n) if n > 0 => self.warn(
                "min-replicas",
                format!(
                    "min-replicas-to-write is {n}: the server counts the tap of redisdr as a replica, so that \
                     {} real ones satisfy it; set it one higher than you mean",
                    n.saturating_sub(1)
                ),
            ),
            _ => self.warn("min-replicas", ""),
        }
    }
}

/// The node as the endpoint sees it.
pub struct Source(pub Arc<Node>);

impl SourceHost for Source {
    fn identity(&self) -> NodeIdentity {
        self.0.identity()
    }

    fn log(&self) -> Option<Arc<Log>> {
        Some(Arc::clone(&self.0.log))
    }

    fn serving(&self) -> Serving {
        if self.0.serving.load(Ordering::Acquire) {
            return Serving::Ready;
        }
        let why: Arc<NotServing> = self.0.not_serving.load_full();
        if why.elsewhere.is_empty() {
            Serving::NotReady(why.reason.clone())
        } else {
            Serving::Redirect(why.elsewhere.clone())
        }
    }

    fn snapshot(
        &self,
        at_least: OpId,
        cancelled: &AtomicBool,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Snapshot, String> {
        self.0.snapshot_for_target(at_least, cancelled, progress)
    }

    fn registry_changed(&self, registered: &[Registered]) {
        self.0.remember(|s| s.targets = registered.to_vec());
    }

    fn refused(&self, peer: &str, reason: &str) {
        self.0.note_refusal(peer, reason);
    }

    fn trouble(&self) -> Option<String> {
        self.0.log_trouble()
    }

    fn panicked(&self, thread: &str, what: &str) {
        self.0.warn("endpoint", format!("thread {thread} of the endpoint panicked: {what}"));
    }
}
