//! The source's side: keeps the tap attached and serves targets.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, RecvTimeoutError, Sender};
use oplog_format::{History, OpId};
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
        self.set_ident(|i| {
            i.mode = Mode::Source;
            i.positioned = false;
        });
        self.start_capture(StartAt::Next);
    }

    /// Starts the tap's thread and waits for the first attach, not for long.
    pub fn start_capture(self: &Arc<Self>, start: StartAt) {
        self.stop_capture();
        let (tx, rx) = bounded(1);
        let stop = Arc::new(AtomicBool::new(false));
        let stopper = Arc::new(Mutex::new(None));
        let capture = Capture {
            node: Arc::clone(self),
            stop: Arc::clone(&stop),
            stopper: Arc::clone(&stopper),
            first: Some(tx),
            base: None,
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
        if self.shared.config.on_log_failure == OnLogFailure::DenyWrites {
            let text = "MISCONF redisdr cannot log writes and on-log-failure is deny-writes, see DR.STATUS";
            self.shared.gate.set(GateMode::LogFailed, text);
        } else {
            self.let_clients_in();
        }
    }

    /// Opens the gate.
    pub fn let_clients_in(&self) {
        let mode = if self.shared.ident.load().held { GateMode::Releasing } else { GateMode::Open };
        self.shared.gate.set(mode, "");
    }

    /// Ends the tap and waits for its thread.
    pub fn stop_capture(&self) {
        let control = std::mem::take(&mut *self.capture.lock());
        control.stop.store(true, Ordering::Release);
        if let Some(stopper) = control.stopper.lock().take() {
            stopper.stop();
        }
        if let Some(thread) = control.thread {
            let _ = thread.join();
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
}

impl Capture {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire) || self.node.stopping()
    }

    fn run(mut self, start: StartAt) {
        let dial = match self.node.dial() {
            Ok(dial) => dial,
            Err(e) => return self.tell(Err(e)),
        };
        let mut resume: Option<Resume> = None;
        while !self.stopped() {
            let Some(attached) = self.attach(&dial, resume) else { return };
            let last = resume.map(|r| r.history);
            let op = self.place(&attached, start, last);
            if attached.gap || resume.is_none() || !attached.continued {
                self.open_history(attached.history, op);
            }
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
            let mut sink = Sink { node: Arc::clone(&self.node) };
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
        }
    }

    fn tell(&mut self, outcome: Result<(), String>) {
        match (self.first.take(), outcome) {
            (Some(first), outcome) => drop(first.send(outcome)),
            (None, Err(e)) => {
                self.node.set_doing("failed", format!("writes are not captured: {e}"));
                self.node.warn("capture", format!("writes are NOT captured: {e}"));
                self.node.capture_failed();
            }
            (None, Ok(())) => {}
        }
    }

    /// Attaches, again until it works or is of no use.
    fn attach(&mut self, dial: &Dial, resume: Option<Resume>) -> Option<Attached> {
        let journal = Journal(Arc::clone(&self.node));
        let since = Instant::now();
        let mut told = false;
        loop {
            let cancelled = || self.stop.load(Ordering::Acquire) || self.node.stopping();
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
            (None, StartAt::Base(base)) => at(base),
        };
        self.base = Some(i64::try_from(op).unwrap_or(i64::MAX) - offset);
        op
    }

    fn open_history(&self, history: History, last_op: OpId) {
        let node = &self.node;
        // What the former tap handed over is in the queue before it.
        let _ = node.writer.flush(Duration::from_secs(60));
        let written = node.log.written();
        if last_op < written {
            // A replica whose log ran ahead of its master's.
            if let Err(e) = node.log.cut_after(last_op, "the master does not have these ops") {
                log::error!("the log's tail could not be kept aside: {e}");
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
        self.node.after_attach();
        if node.mode() == Mode::Source {
            if node.shared.ident.load().held {
                node.set_rebasing();
            } else {
                node.set_doing("capturing", "");
            }
            node.set_serving(None);
            node.let_clients_in();
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
}

impl TapSink for Sink {
    fn entries(&mut self, frames: &[u8], _last_op: OpId) -> Result<(), Stop> {
        if self.node.writer.entries(frames.to_vec()) {
            Ok(())
        } else {
            Err(Stop { reason: "the writer has ended".into() })
        }
    }

    fn history_changed(&mut self, history: History, first_op: OpId) -> Result<(), Stop> {
        let node = &self.node;
        if !node.writer.history(history, first_op) || !node.writer.flush(Duration::from_secs(60)) {
            return Err(Stop { reason: "the writer has ended".into() });
        }
        node.set_ident(|i| i.lineage = node.log.lineage());
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

    fn snapshot(&self, cancelled: &AtomicBool, progress: &mut dyn FnMut(&str)) -> Result<Snapshot, String> {
        self.0.snapshot_for_target(cancelled, progress)
    }

    fn registry_changed(&self, registered: &[Registered]) {
        self.0.remember(|s| s.targets = registered.to_vec());
    }

    fn refused(&self, peer: &str, reason: &str) {
        self.0.note_refusal(peer, reason);
    }

    fn panicked(&self, thread: &str, what: &str) {
        self.0.warn("endpoint", format!("thread {thread} of the endpoint panicked: {what}"));
    }
}
