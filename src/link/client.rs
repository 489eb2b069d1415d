//! The target's side: keeps one link to the source, over whatever breaks it.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use oplog_format::{Codec, History, Lineage, OpId};
use parking_lot::{Condvar, Mutex};
use serde::Serialize;

use super::auth::{random, Secret};
use super::error::LinkError;
use super::follow;
use super::guard::Tail;
use super::identity::{NodeId, NodeIdentity};
use super::logs;
use super::message::{Consent, Heartbeat, RefusalCode, SnapshotMeta};
use super::stream::Stream;
use super::thread;
use crate::store::Log;

/// Most redirects that are followed one after the other.
const MAX_HOPS: usize = 4;

/// Where a target stands when it asks.
#[derive(Debug, Clone)]
pub struct TargetHello {
    /// Who it is.
    pub identity: NodeIdentity,
    /// The node.
    pub node: NodeId,
    /// Lineage of its log.
    pub lineage: Lineage,
    /// Last op in its log.
    pub last_op: OpId,
    /// It holds no keys and no history but that of its own start.
    pub fresh: bool,
    /// What its operator has said.
    pub consent: Consent,
}

/// What a link does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "state")]
pub enum LinkState {
    /// Looks for the source.
    Connecting,
    /// The source does not serve this target.
    Refused {
        /// Why.
        reason: String,
    },
    /// Keeps its data and waits for its operator.
    Held {
        /// Why.
        reason: String,
    },
    /// Takes a snapshot.
    Snapshot {
        /// What the source does while nothing comes.
        note: String,
        /// Bytes that are here.
        received: u64,
        /// Bytes in all; 0 until known.
        total: u64,
    },
    /// Loads the snapshot.
    Loading,
    /// Rebuilds itself from its own disk.
    Rebuilding {
        /// To this op.
        to: OpId,
    },
    /// Follows.
    Streaming,
    /// Ended by [`ClientHandle::stop`].
    Stopped,
    /// Ended by a failure of its own.
    Failed {
        /// Which.
        reason: String,
    },
}

/// Where a snapshot that is being received goes. Dropped where it does not come to its end.
pub trait Staging: Send {
    /// Takes the bytes that follow.
    ///
    /// # Errors
    /// Why it cannot, or what is wrong with the bytes so far.
    fn write(&mut self, bytes: &[u8]) -> Result<(), String>;
    /// All bytes are there, as many and the same as the source has sent: verify the rest of them, load them, and
    /// reset the log to the op of the snapshot. Blocks until that is done; the link stays up meanwhile. Afterwards
    /// the log ends at that op.
    ///
    /// # Errors
    /// Why it cannot be.
    fn finish(self: Box<Self>) -> Result<(), String>;
}

/// What the client needs of the node. Called from the client's threads, never with a lock held. None of these
/// may block for longer than its work takes; [`Staging::finish`] and `rebuild_to` may take minutes and have to
/// give up by themselves when the node stops.
pub trait TargetHost: Send + Sync + 'static {
    /// Where the target stands; asked before each attempt.
    fn hello(&self) -> TargetHello;
    /// Its log.
    fn log(&self) -> Arc<Log>;
    /// A new place to receive a snapshot in.
    ///
    /// # Errors
    /// Why it cannot be.
    fn begin_snapshot(&self, meta: &SnapshotMeta) -> Result<Box<dyn Staging>, String>;
    /// What was begun does not come to its end: the file may go.
    fn drop_snapshot(&self) {}
    /// How far it is; `total` is 0 until the source knows it.
    fn snapshot_progress(&self, _received: u64, _total: u64) {}
    /// The next entry begins a new history.
    ///
    /// # Errors
    /// Why it cannot be.
    fn begin_history(&self, history: History, first_op: OpId) -> Result<(), String>;
    /// Takes whole, checked entries that follow what was appended before: own log first, then the dataset.
    ///
    /// # Errors
    /// Why it cannot be.
    fn append(&self, frames: &[u8], first: OpId, last: OpId) -> Result<(), String>;
    /// What the own log holds above `common`, the last op that the source has too; `None` where that cannot be
    /// told.
    fn tail(&self, common: OpId) -> Option<Tail> {
        logs::tail_above(&self.log(), common)
    }
    /// Sets what lies above `op` aside as orphans and rebuilds the dataset to `op` from the own disk. False
    /// where the own disk cannot give that point.
    ///
    /// # Errors
    /// Why it has failed.
    fn rebuild_to(&self, op: OpId) -> Result<bool, String>;
    /// Last op that the dataset holds.
    fn applied(&self) -> OpId;
    /// Last op that is safe on disk.
    fn durable(&self) -> OpId;
    /// The link has changed its state.
    fn state(&self, _state: &LinkState) {}
    /// A thread of the link has panicked; the link has ended.
    fn panicked(&self, _thread: &str, _what: &str) {}
}

/// Settings of a client.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Endpoints of the source's shard, `name:port`, `ip:port` or `[ipv6]:port`, tried in turn.
    pub endpoints: Vec<String>,
    /// Secret that the source has to know.
    pub secret: Option<Secret>,
    /// The source is dead after this long without a sign of life.
    pub timeout: Duration,
    /// Time to open a connection, and for the handshake.
    pub connect_timeout: Duration,
    /// Longest tail of own ops that is set aside without a word from the operator.
    pub fork_tolerance: Duration,
    /// What this target says that it can decompress, as bits of [`Codec::bit`].
    pub codecs: u32,
    /// Wait before the second attempt; doubled with each further one.
    pub backoff_min: Duration,
    /// Longest wait between attempts, and the wait after a refusal.
    pub backoff_max: Duration,
}

impl ClientConfig {
    /// Settings with the defaults of the module.
    #[must_use]
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            secret: None,
            timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            fork_tolerance: Duration::from_secs(10),
            codecs: Codec::READABLE,
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
        }
    }

    pub(crate) fn heartbeat(&self) -> Duration {
        Duration::from_secs(1).min(self.timeout / 5)
    }
}

/// The link as DR.STATUS shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LinkStatus {
    /// The endpoint that is used or tried.
    pub source: String,
    /// What runs there, once known.
    pub identity: Option<NodeIdentity>,
    /// What the link does.
    pub state: LinkState,
    /// Last op of the source that is known of.
    pub source_op_id: OpId,
    /// Last op that the own dataset holds.
    pub applied_op_id: OpId,
    /// Bytes between the two.
    pub lag_bytes: u64,
    /// How long the next op has waited, told by the source; grows while nothing is heard from it.
    pub lag_ms: u64,
    /// What the source said of itself last.
    pub source_note: String,
    /// Why the connection before this one ended.
    pub last_error: String,
    /// When the source was heard last, in milliseconds ago; `None` before the first time.
    pub heard_ms_ago: Option<u64>,
    /// Attempts since the last time that entries came.
    pub attempts: u32,
}

/// What is known of the source.
#[derive(Debug)]
struct View {
    source: String,
    identity: Option<NodeIdentity>,
    state: LinkState,
    written: OpId,
    lag_ms: u64,
    heard: Option<Instant>,
    note: String,
    last_error: String,
    attempts: u32,
}

/// What all threads of a client share.
pub(crate) struct Inner {
    pub config: ClientConfig,
    pub host: Arc<dyn TargetHost>,
    pub stop: AtomicBool,
    view: Mutex<View>,
    stream: Mutex<Option<Stream>>,
    sleep: Mutex<bool>,
    wake: Condvar,
}

impl Inner {
    pub(crate) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    pub(crate) fn set_state(&self, state: LinkState) {
        {
            let mut view = self.view.lock();
            if view.state == state {
                return;
            }
            view.state = state.clone();
        }
        self.host.state(&state);
    }

    pub(crate) fn heard(&self, beat: &Heartbeat) {
        let mut view = self.view.lock();
        view.heard = Some(Instant::now());
        view.written = view.written.max(beat.written);
        view.lag_ms = beat.lag_ms;
        view.note.clone_from(&beat.note);
    }

    pub(crate) fn source_is(&self, identity: &NodeIdentity, written: Option<OpId>) {
        let mut view = self.view.lock();
        view.heard = Some(Instant::now());
        view.identity = Some(identity.clone());
        if let Some(written) = written {
            view.written = written;
        }
    }

    pub(crate) fn received(&self, last: OpId) {
        let mut view = self.view.lock();
        view.heard = Some(Instant::now());
        view.written = view.written.max(last);
        view.attempts = 0;
    }

    fn failed(&self, error: &LinkError) {
        let text = error.to_string();
        let changed = {
            let mut view = self.view.lock();
            let changed = view.last_error != text;
            view.last_error = text;
            changed
        };
        // A refusal that is repeated at each attempt is told once.
        if changed && !matches!(error, LinkError::Stopped) {
            let source = self.view.lock().source.clone();
            log::warn!("link to {source}: {error}");
        }
    }

    /// Waits, unless woken.
    fn pause(&self, time: Duration) {
        let mut woken = self.sleep.lock();
        let until = Instant::now() + time;
        while !*woken && !self.stopping() {
            if self.wake.wait_until(&mut woken, until).timed_out() {
                break;
            }
        }
        *woken = false;
    }

    fn wake(&self) {
        *self.sleep.lock() = true;
        self.wake.notify_all();
    }

    fn hang_up(&self) {
        if let Some(stream) = self.stream.lock().as_ref() {
            stream.shutdown();
        }
    }

    /// Makes `stream` the one that [`ClientHandle::stop`] ends.
    fn hold(&self, stream: &Stream) -> Result<(), LinkError> {
        *self.stream.lock() = Some(stream.try_clone()?);
        if self.stopping() {
            return Err(LinkError::Stopped);
        }
        Ok(())
    }
}

/// Entry to the client.
#[derive(Debug)]
pub struct Client;

impl Client {
    /// Links until [`ClientHandle::stop`].
    ///
    /// # Errors
    /// [`LinkError::Host`] without an endpoint or with one that has no port, [`LinkError::Io`] where the
    /// thread cannot be made.
    pub fn start(config: ClientConfig, host: Arc<dyn TargetHost>) -> Result<ClientHandle, LinkError> {
        let Some(first) = config.endpoints.first().cloned() else {
            return Err(LinkError::Host("no endpoint to link to".to_owned()));
        };
        if let Some(bad) = config.endpoints.iter().find(|e| !is_endpoint(e)) {
            return Err(LinkError::Host(format!(
                "{bad} is not host:port (an IPv6 address goes into brackets)"
            )));
        }
        let inner = Arc::new(Inner {
            config,
            host: Arc::clone(&host),
            stop: AtomicBool::new(false),
            view: Mutex::new(View {
                source: first,
                identity: None,
                state: LinkState::Connecting,
                written: 0,
                lag_ms: 0,
                heard: None,
                note: String::new(),
                last_error: String::new(),
                attempts: 0,
            }),
            stream: Mutex::new(None),
            sleep: Mutex::new(false),
            wake: Condvar::new(),
        });
        let (own, told) = (Arc::clone(&inner), Arc::clone(&inner));
        let thread = thread::spawn(
            "dr-link",
            move || run(&own),
            move |what| {
                told.set_state(LinkState::Failed { reason: format!("dr-link panicked: {what}") });
                told.host.panicked("dr-link", what);
            },
        )?;
        Ok(ClientHandle { inner, thread: Mutex::new(Some(thread)) })
    }
}

/// Whether a text is `host:port`.
#[must_use]
pub fn is_endpoint(text: &str) -> bool {
    if text.len() > 262 {
        return false;
    }
    if text.parse::<SocketAddr>().is_ok_and(|a| a.port() != 0) {
        return true;
    }
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let named = !host.is_empty() && !host.contains([':', '[', ']']) && !host.contains(char::is_whitespace);
    named && port.parse::<u16>().is_ok_and(|p| p != 0)
}

fn run(inner: &Arc<Inner>) {
    let mut plan = Plan::default();
    while !inner.stopping() {
        let endpoint = plan.endpoint(&inner.config.endpoints);
        inner.view.lock().source.clone_from(&endpoint);
        let outcome = connect(inner, &endpoint).and_then(|stream| {
            inner.hold(&stream)?;
            follow::session(inner, &stream, &mut plan.cannot_rebuild)
        });
        *inner.stream.lock() = None;
        if inner.stopping() {
            break;
        }
        let error = match outcome {
            Ok(()) => LinkError::Closed,
            Err(e) => e,
        };
        inner.failed(&error);
        let attempts = {
            let mut view = inner.view.lock();
            view.attempts = view.attempts.saturating_add(1);
            view.attempts
        };
        match after(&error) {
            After::State(state) => inner.set_state(state),
            After::Connecting => inner.set_state(LinkState::Connecting),
        }
        if !plan.redirected(&error) {
            inner.pause(plan.pause(&inner.config, &error, attempts));
        }
    }
    inner.set_state(LinkState::Stopped);
}

enum After {
    State(LinkState),
    Connecting,
}

fn after(error: &LinkError) -> After {
    match error {
        LinkError::Refused(r) if r.code.is_lasting() => {
            After::State(LinkState::Refused { reason: r.reason.clone() })
        }
        LinkError::Held(reason) => After::State(LinkState::Held { reason: reason.clone() }),
        _ => After::Connecting,
    }
}

/// Whether asking again soon is of no use. Another node with the same service_id may be a former master of this
/// shard that has not been told yet.
fn is_slow(error: &LinkError) -> bool {
    match error {
        LinkError::Refused(r) => r.code.is_lasting() && r.code != RefusalCode::Duplicate,
        LinkError::Held(_) | LinkError::Host(_) => true,
        _ => false,
    }
}

/// Doubles from the shortest to the longest wait; the last half of each is random, so that targets that lost
/// one source at one moment do not come back at one moment.
fn backoff(config: &ClientConfig, attempts: u32, slow: bool) -> Duration {
    let doubled = config.backoff_min.saturating_mul(1 << attempts.saturating_sub(1).min(16));
    let full = if slow { config.backoff_max } else { doubled.min(config.backoff_max) };
    let random = u16::from_le_bytes(random().unwrap_or([0x80; 2]));
    full / 2 + full.mul_f64(f64::from(random) / f64::from(u16::MAX) / 2.0)
}

/// Which endpoint comes next.
#[derive(Default)]
struct Plan {
    next: usize,
    redirect: Vec<String>,
    hops: usize,
    /// A node of the source's shard has answered in this round: a master is about to be found.
    alive: bool,
    cannot_rebuild: Option<OpId>,
}

/// Longest wait while nodes of the source's shard answer and none is the master.
const FAILOVER_WAIT: Duration = Duration::from_secs(1);

impl Plan {
    fn endpoint(&mut self, list: &[String]) -> String {
        if let Some(redirect) = self.redirect.pop() {
            return redirect;
        }
        self.hops = 0;
        let endpoint = list.get(self.next % list.len().max(1)).cloned().unwrap_or_default();
        self.next = self.next.wrapping_add(1);
        endpoint
    }

    /// How long to wait before the next endpoint. The list is gone through without a rest; what follows a whole round
    /// grows from round to round.
    fn pause(&mut self, config: &ClientConfig, error: &LinkError, attempts: u32) -> Duration {
        let codes = [RefusalCode::NotReady, RefusalCode::Redirect, RefusalCode::Stopping];
        self.alive |= error.refusal().is_some_and(|r| codes.contains(&r.code));
        let count = u32::try_from(config.endpoints.len()).unwrap_or(1).max(1);
        let wait = backoff(config, attempts.div_ceil(count), is_slow(error));
        if is_slow(error) {
            return wait;
        }
        if !self.next.is_multiple_of(config.endpoints.len().max(1)) {
            return config.backoff_min / 2;
        }
        let longest = if std::mem::take(&mut self.alive) { FAILOVER_WAIT } else { config.backoff_max };
        wait.min(longest)
    }

    /// Whether the error sends to another endpoint, to be tried at once.
    fn redirected(&mut self, error: &LinkError) -> bool {
        let Some(refusal) = error.refusal().filter(|r| r.code == RefusalCode::Redirect) else {
            if matches!(error, LinkError::Io(_)) {
                // The next one that it named may be the master.
                return !self.redirect.is_empty();
            }
            self.redirect.clear();
            return false;
        };
        self.hops += 1;
        if self.hops > MAX_HOPS {
            log::warn!("more than {MAX_HOPS} redirects, starting over");
            self.redirect.clear();
            return false;
        }
        self.redirect = refusal.endpoints.iter().filter(|e| is_endpoint(e)).rev().cloned().collect();
        !self.redirect.is_empty()
    }
}

/// Opens a connection. Names are looked up and addresses tried in a thread of its own, which is left alone
/// when the client stops: neither can be interrupted, and both end by themselves.
fn connect(inner: &Arc<Inner>, endpoint: &str) -> Result<Stream, LinkError> {
    let (done, outcome) = crossbeam_channel::bounded(1);
    let (name, timeout) = (endpoint.to_owned(), inner.config.connect_timeout);
    let handle = thread::spawn("dr-connect", move || drop(done.send(open(&name, timeout))), |_| {})?;
    loop {
        match outcome.recv_timeout(Duration::from_millis(20)) {
            Ok(stream) => {
                thread::join(handle);
                return stream.map_err(LinkError::Io);
            }
            Err(crossbeam_channel::RecvTimeoutError::Disconnected) => return Err(LinkError::Closed),
            Err(crossbeam_channel::RecvTimeoutError::Timeout) if inner.stopping() => {
                return Err(LinkError::Stopped);
            }
            Err(crossbeam_channel::RecvTimeoutError::Timeout) => {}
        }
    }
}

fn open(endpoint: &str, timeout: Duration) -> std::io::Result<Stream> {
    let mut last = None;
    for addr in endpoint.to_socket_addrs()? {
        match TcpStream::connect_timeout(&addr, timeout.max(Duration::from_millis(1))) {
            Ok(socket) => return Stream::tcp(socket),
            Err(e) => last = Some(e),
        }
    }
    Err(last.unwrap_or_else(|| std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address")))
}

/// A running client. Stops when dropped.
pub struct ClientHandle {
    inner: Arc<Inner>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl ClientHandle {
    /// How the link is.
    #[must_use]
    pub fn status(&self) -> LinkStatus {
        let applied = self.inner.host.applied();
        let view = self.inner.view.lock();
        let streaming = view.state == LinkState::Streaming;
        let ago = view.heard.map(|h| u64::try_from(h.elapsed().as_millis()).unwrap_or(u64::MAX));
        // Below three heartbeats of silence the source's own word is good.
        let quiet = ago.unwrap_or_default();
        let fresh = streaming && Duration::from_millis(quiet) < self.inner.config.heartbeat() * 3;
        let lag_ms = match (fresh, applied >= view.written) {
            (true, true) => 0,
            (true, false) => view.lag_ms,
            (false, _) => view.lag_ms.saturating_add(quiet),
        };
        LinkStatus {
            source: view.source.clone(),
            identity: view.identity.clone(),
            state: view.state.clone(),
            source_op_id: view.written,
            applied_op_id: applied,
            lag_bytes: view.written.saturating_sub(applied),
            lag_ms,
            source_note: view.note.clone(),
            last_error: view.last_error.clone(),
            heard_ms_ago: ago,
            attempts: view.attempts,
        }
    }

    /// Drops the connection and asks again at once, as after the operator has said something.
    pub fn reconnect(&self) {
        self.inner.hang_up();
        self.inner.wake();
    }

    /// Ends the link and waits for its thread.
    pub fn stop(&self) {
        self.inner.stop.store(true, Ordering::Release);
        self.inner.hang_up();
        self.inner.wake();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            thread::join(thread);
        }
    }
}

impl Drop for ClientHandle {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::message::Refusal;

    #[test]
    fn endpoints_are_names_and_addresses_with_a_port() {
        for good in ["a:1", "10.0.0.1:7379", "[::1]:7379", "db.example.com:65535"] {
            assert!(is_endpoint(good), "{good}");
        }
        for bad in ["", "a", "a:", ":1", "a:0", "a:65536", "::1:7379", "[::1]", "[::1]:0", "a b:1", "[x]:1"] {
            assert!(!is_endpoint(bad), "{bad}");
        }
    }

    #[test]
    fn backoff_is_capped_and_random() {
        let config = ClientConfig::new(vec!["a:1".to_owned()]);
        for attempts in 1..100 {
            let wait = backoff(&config, attempts, false);
            let full = config.backoff_min.saturating_mul(1 << (attempts - 1).min(16)).min(config.backoff_max);
            assert!(wait >= full / 2 && wait <= full, "{attempts}: {wait:?}");
        }
        assert!(backoff(&config, 1, true) >= config.backoff_max / 2);
    }

    #[test]
    fn a_list_is_gone_through_without_a_rest() {
        let list: Vec<String> = (1..=3).map(|n| format!("a:{n}")).collect();
        let config = ClientConfig::new(list.clone());
        let refused = |code| LinkError::Refused(Refusal::new(code, ""));
        let (gone, not_ready) = (LinkError::Closed, refused(RefusalCode::NotReady));
        let mut plan = Plan::default();
        for round in 0..12u32 {
            for n in 1..=3u32 {
                plan.endpoint(&list);
                // One that answers is enough: its shard is in the middle of a failover.
                let error = if n == 2 && round % 2 == 1 { &not_ready } else { &gone };
                let wait = plan.pause(&config, error, round * 3 + n);
                if n < 3 {
                    assert!(wait <= config.backoff_min, "{wait:?}");
                } else if round % 2 == 1 {
                    assert!(wait <= FAILOVER_WAIT, "{wait:?}");
                } else if round > 8 {
                    assert!(wait >= config.backoff_max / 2, "{wait:?}");
                }
            }
        }
        assert!(!is_slow(&refused(RefusalCode::Duplicate)));
        assert!(is_slow(&refused(RefusalCode::Cut)));
    }

    #[test]
    fn redirects_are_followed_a_few_times_only() {
        let mut plan = Plan::default();
        let list = ["a:1".to_owned(), "b:1".to_owned()];
        assert_eq!(plan.endpoint(&list), "a:1");
        let refusal = Refusal::redirect(&["c:1".to_owned(), "bad".to_owned(), "d:1".to_owned()]);
        let sent_away = LinkError::Refused(refusal);
        for _ in 0..MAX_HOPS {
            assert!(plan.redirected(&sent_away));
            assert_eq!(plan.endpoint(&list), "c:1");
        }
        assert!(!plan.redirected(&sent_away));
        assert_eq!(plan.endpoint(&list), "b:1");
    }
}
