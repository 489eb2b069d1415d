//! The source's side: listens, lets targets in, and serves each from its own threads.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use oplog_format::{Lineage, OpId};
use parking_lot::Mutex;

use super::auth::Secret;
use super::error::LinkError;
use super::identity::{NodeId, NodeIdentity};
use super::pace::Pace;
use super::registry::{Registered, Registry, TargetStatus};
use super::stream::Stream;
use super::{admit, logs, serve, thread};
use crate::store::now_ms;
use crate::store::Log;

/// How often waits look whether they are to stop.
pub(crate) const TICK: Duration = Duration::from_millis(250);

/// Heartbeats without a word, after which a target gives way to another node with its service_id.
const SILENT_BEATS: u32 = 3;

/// Whether a source can serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Serving {
    /// It can.
    Ready,
    /// Not now: the target is told why and asks again.
    NotReady(String),
    /// Another node of the shard does: its endpoints.
    Redirect(Vec<String>),
}

/// A snapshot that the link may send: an open file, so that a later save replaces the name and not the bytes.
pub struct Snapshot {
    /// The RDB.
    pub file: File,
    /// How much of it there is.
    pub extent: Extent,
    /// Last op that it holds.
    pub op_id: OpId,
    /// Lineage up to that op.
    pub lineage: Lineage,
    /// Version of the RDB.
    pub rdb_version: u16,
}

/// How much of a snapshot's file there is.
pub enum Extent {
    /// All of it: so many bytes.
    Whole(u64),
    /// The server still writes it. What is there does not change any more.
    Growing(Arc<dyn Growth>),
}

/// Watches a file that is being written. Asked every few milliseconds: it must not cost the server's main thread
/// anything.
pub trait Growth: Send + Sync + 'static {
    /// How far the file is.
    ///
    /// # Errors
    /// Why it will never be whole.
    fn look(&self) -> Result<Grown, String>;
}

/// How far a file that is being written is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grown {
    /// Bytes that are there.
    pub len: u64,
    /// There will be no more, and nothing is missing.
    pub whole: bool,
}

impl Extent {
    /// How far the file is.
    ///
    /// # Errors
    /// Why it will never be whole.
    pub fn look(&self) -> Result<Grown, String> {
        match self {
            Self::Whole(len) => Ok(Grown { len: *len, whole: true }),
            Self::Growing(growth) => growth.look(),
        }
    }

    /// The length, where it is known.
    #[must_use]
    pub fn total(&self) -> Option<u64> {
        match self {
            Self::Whole(len) => Some(*len),
            Self::Growing(_) => None,
        }
    }
}

/// What the endpoint needs of the node. Called from the endpoint's own threads, never with a lock held.
pub trait SourceHost: Send + Sync + 'static {
    /// Who the node is.
    fn identity(&self) -> NodeIdentity;
    /// Its log; `None` while it starts or recovers.
    fn log(&self) -> Option<Arc<Log>>;
    /// Whether it serves.
    fn serving(&self) -> Serving;
    /// The newest snapshot whose op is still in the log, or a new one where that is below `at_least`; a new one may
    /// still be in the making. May take minutes; gives up when `cancelled` becomes true. What `progress` is told
    /// shows at both ends.
    ///
    /// # Errors
    /// Why there is none.
    fn snapshot(
        &self,
        at_least: OpId,
        cancelled: &AtomicBool,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Snapshot, String>;
    /// The set of targets, or what the log is kept for, has changed beyond an ack: worth saving at once.
    fn registry_changed(&self, _registered: &[Registered]) {}
    /// A target was refused for a reason that lasts.
    fn refused(&self, _peer: &str, _reason: &str) {}
    /// What is wrong here and concerns targets: they show it.
    fn trouble(&self) -> Option<String> {
        None
    }
    /// An ack came in: DR.WAIT may be satisfied.
    fn acked(&self) {}
    /// A thread of the endpoint has panicked.
    fn panicked(&self, _thread: &str, _what: &str) {}
}

/// Settings of an endpoint.
#[derive(Debug, Clone)]
pub struct EndpointConfig {
    /// Where to listen: `address:port`.
    pub listen: String,
    /// Secret that targets have to know; must be set where the address is not a loopback one.
    pub secret: Option<Secret>,
    /// This node.
    pub node: NodeId,
    /// Targets that are known from before.
    pub registered: Vec<Registered>,
    /// A target is dead after this long without a sign of life.
    pub timeout: Duration,
    /// Most targets.
    pub max_targets: usize,
    /// Time for a handshake.
    pub handshake_timeout: Duration,
    /// Most connections that are still in their handshake.
    pub max_pending: usize,
    /// Limit of bytes per second over all targets; `None` for none.
    pub max_bytes_per_sec: Option<u64>,
    /// Limit of bytes per second for snapshots alone, over all targets; `None` for none.
    pub snapshot_max_bytes_per_sec: Option<u64>,
}

impl EndpointConfig {
    /// Settings with the defaults of the module.
    #[must_use]
    pub fn new(listen: impl Into<String>, node: NodeId) -> Self {
        Self {
            listen: listen.into(),
            secret: None,
            node,
            registered: Vec::new(),
            timeout: Duration::from_secs(10),
            max_targets: 15,
            handshake_timeout: Duration::from_secs(5),
            max_pending: 64,
            max_bytes_per_sec: None,
            snapshot_max_bytes_per_sec: None,
        }
    }

    pub(crate) fn heartbeat(&self) -> Duration {
        Duration::from_secs(1).min(self.timeout / 5)
    }
}

/// What all threads of an endpoint share.
pub(crate) struct Shared {
    pub config: EndpointConfig,
    pub host: Arc<dyn SourceHost>,
    pub addr: SocketAddr,
    pub registry: Mutex<Registry>,
    pub stop: AtomicBool,
    pub pace: Pace,
    /// Beside `pace`, for snapshots.
    pub snapshot_pace: Pace,
    pending: AtomicUsize,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Shared {
    pub(crate) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Runs a thread that is joined when the endpoint stops.
    pub(crate) fn spawn(
        self: &Arc<Self>,
        name: &str,
        body: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let host = Arc::clone(&self.host);
        let own = name.to_owned();
        let handle = thread::spawn(name, body, move |what| host.panicked(&own, what))?;
        let mut threads = self.threads.lock();
        threads.retain(|t| !t.is_finished());
        threads.push(handle);
        Ok(())
    }

    /// Tells the host that the registry is worth saving.
    pub(crate) fn registry_changed(&self) {
        let registered = self.registry.lock().registered();
        self.host.registry_changed(&registered);
    }

    pub(crate) fn written(&self) -> OpId {
        self.host.log().map_or(0, |l| l.written())
    }
}

/// Entry to the endpoint.
#[derive(Debug)]
pub struct Endpoint;

impl Endpoint {
    /// Listens and serves until [`EndpointHandle::stop`].
    ///
    /// # Errors
    /// [`LinkError::Io`] where the address cannot be bound, [`LinkError::Host`] where it is not a loopback
    /// address and there is no secret.
    pub fn start(config: EndpointConfig, host: Arc<dyn SourceHost>) -> Result<EndpointHandle, LinkError> {
        let addrs: Vec<SocketAddr> = config.listen.to_socket_addrs()?.collect();
        if config.secret.is_none() && addrs.iter().any(|a| !a.ip().is_loopback()) {
            let listen = &config.listen;
            return Err(LinkError::Host(format!(
                "endpoint {listen} can be reached from other machines and has no secret: set secret-file"
            )));
        }
        let listener = TcpListener::bind(addrs.as_slice())?;
        let addr = listener.local_addr()?;
        // A second handle as a plain socket: gives accept a timeout, and wakes it at stop.
        let control = TcpStream::from(OwnedFd::from(listener.try_clone()?));
        control.set_read_timeout(Some(TICK))?;
        let registry = Mutex::new(Registry::new(
            &config.registered,
            config.max_targets,
            config.heartbeat() * SILENT_BEATS,
        ));
        let pace = Pace::new(config.max_bytes_per_sec);
        let snapshot_pace = Pace::new(config.snapshot_max_bytes_per_sec);
        let shared = Arc::new(Shared {
            config,
            host,
            addr,
            registry,
            stop: AtomicBool::new(false),
            pace,
            snapshot_pace,
            pending: AtomicUsize::new(0),
            threads: Mutex::new(Vec::new()),
        });
        let own = Arc::clone(&shared);
        let told = Arc::clone(&shared.host);
        let accept = thread::spawn(
            "dr-endpoint",
            move || accept_loop(&own, &listener),
            move |what| told.panicked("dr-endpoint", what),
        )?;
        log::info!("endpoint listens on {addr}");
        Ok(EndpointHandle { shared, accept: Mutex::new(Some(accept)), control })
    }
}

fn accept_loop(shared: &Arc<Shared>, listener: &TcpListener) {
    let mut failing = false;
    let mut kept_house = Instant::now();
    while !shared.stopping() {
        if kept_house.elapsed() >= Duration::from_secs(1) {
            kept_house = Instant::now();
            learn_lags(shared);
        }
        match listener.accept() {
            Ok((socket, peer)) => {
                if std::mem::take(&mut failing) {
                    log::info!("endpoint accepts connections again");
                }
                take_in(shared, socket, peer);
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(_) if shared.stopping() => {}
            Err(e) => {
                // Out of descriptors or memory: it passes, and trying at once would only burn the processor.
                if !std::mem::replace(&mut failing, true) {
                    log::error!("endpoint cannot accept: {e}; trying again");
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

/// Reads from the log since when targets that are away lack something, where that is not known: it must not
/// be read when a status is asked for.
fn learn_lags(shared: &Shared) {
    let Some(log) = shared.host.log() else { return };
    let unknown = shared.registry.lock().lag_unknown(log.written());
    for (service_id, applied) in unknown {
        if let Some(time_ms) = logs::time_of(&log, applied + 1) {
            shared.registry.lock().learn_lag(service_id, applied, time_ms);
        }
    }
}

/// Counts a connection whose handshake is not over.
struct Pending(Arc<Shared>);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::AcqRel);
    }
}

fn take_in(shared: &Arc<Shared>, socket: TcpStream, peer: SocketAddr) {
    let pending = shared.pending.fetch_add(1, Ordering::AcqRel);
    let guard = Pending(Arc::clone(shared));
    if pending >= shared.config.max_pending {
        log::warn!("connection from {peer} dropped: {pending} others are in their handshake");
        return;
    }
    let own = Arc::clone(shared);
    let spawned = Stream::tcp(socket).and_then(|stream| {
        shared.spawn("dr-handshake", move || {
            let outcome = admit::handshake(&own, stream, peer);
            drop(guard);
            if let Some(session) = outcome {
                serve::start(&own, session);
            }
        })
    });
    if let Err(e) = spawned {
        log::error!("connection from {peer} dropped: {e}");
    }
}

/// A running endpoint. Stops when dropped.
pub struct EndpointHandle {
    shared: Arc<Shared>,
    accept: Mutex<Option<JoinHandle<()>>>,
    control: TcpStream,
}

impl EndpointHandle {
    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.addr
    }

    /// All targets, also those that are away.
    #[must_use]
    pub fn targets(&self) -> Vec<TargetStatus> {
        let written = self.shared.written();
        self.shared.registry.lock().status(written, now_ms())
    }

    /// What is to be kept over a restart; goes into [`EndpointConfig::registered`].
    #[must_use]
    pub fn registered(&self) -> Vec<Registered> {
        self.shared.registry.lock().registered()
    }

    /// The log must be kept above this op; `None` where no target needs it.
    #[must_use]
    pub fn min_durable(&self) -> Option<OpId> {
        self.shared.registry.lock().min_durable()
    }

    /// On how many connected targets `op` is durable.
    #[must_use]
    pub fn durable_on(&self, op: OpId) -> usize {
        self.shared.registry.lock().durable_on(op)
    }

    /// Cuts a target: its connection ends, the log is no longer kept for it, and it is refused until its own
    /// operator links it by hand. False where there is no such target.
    pub fn drop_target(&self, service_id: u8) -> bool {
        let was = self.shared.registry.lock().cut(service_id);
        if was {
            log::warn!("target {service_id} was cut by the operator; the log is no longer kept for it");
            self.shared.registry_changed();
        }
        was
    }

    /// Ends all sessions, as after a change of role; targets ask again and are told what is new.
    pub fn disconnect_all(&self) {
        self.shared.registry.lock().hang_up();
    }

    /// Ends everything and waits for the threads. A host that makes a snapshot is told by its flag.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        Stream::Tcp(match self.control.try_clone() {
            Ok(socket) => socket,
            // Accept then wakes by its timeout.
            Err(_) => return self.join(),
        })
        .shutdown();
        self.join();
    }

    fn join(&self) {
        self.shared.registry.lock().hang_up();
        let accept = self.accept.lock().take();
        if let Some(accept) = accept {
            thread::join(accept);
        }
        loop {
            self.shared.registry.lock().hang_up();
            // Handshakes may still have begun sessions: until there are none.
            let Some(handle) = self.shared.threads.lock().pop() else { return };
            thread::join(handle);
        }
    }
}

impl Drop for EndpointHandle {
    fn drop(&mut self) {
        self.stop();
    }
}
