//! The node: everything that the machine's threads share.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::shared::{Ident, Mode, Shared};
use super::state::StateFile;
use super::writer::{self, WriterHandle};
use super::{ServerFacts, Start};
use crate::apply::feed::Feed;
use crate::config::Fsync;
use crate::link::{ClientHandle, Consent, EndpointHandle, NodeIdentity, Secret as LinkSecret, ServerKind};
use crate::local::{Conn, LocalError};
use crate::store::{Fs, FsyncPolicy, Log, LogOptions, RealFs};

/// How long a refusal is shown.
const REFUSAL_SHOWN: Duration = Duration::from_secs(30);
/// Most refusals that are shown.
const MAX_REFUSALS: usize = 32;
/// How long the server may refuse the module's connection before the operator is told.
const FIRST_CONNECT: Duration = Duration::from_secs(5);

/// What the node does, for DR.STATUS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Doing {
    /// starting, recovering, capturing, connecting, snapshot, loading, streaming, held, rebasing, failed.
    pub state: &'static str,
    /// In words.
    pub reason: String,
}

/// The node.
pub struct Node {
    /// Shared with the main thread.
    pub shared: Arc<Shared>,
    /// The server.
    pub server: ServerFacts,
    /// The directory of log and state.
    pub dir: PathBuf,
    /// The file system.
    pub fs: Arc<dyn Fs>,
    /// The log.
    pub log: Arc<Log>,
    /// The way into it for captured entries.
    pub writer: WriterHandle,
    /// What is remembered.
    pub state: StateFile,
    /// Secret of the links.
    pub link_secret: Option<LinkSecret>,
    /// State for the operator.
    pub doing: ArcSwap<Doing>,
    /// Things that the operator should know, by topic.
    pub warnings: Mutex<Vec<(&'static str, String)>>,
    /// What the last clean stop left; `None` after a crash.
    pub clean_stop: Option<super::state::CleanStop>,
    /// Targets that were refused: when, and why.
    pub refusals: Mutex<Vec<(Instant, String)>>,
    /// Targets that were told to be lost.
    pub lost_told: Mutex<Vec<String>>,
    /// Until when a slow disk is shown.
    pub slow_until: Mutex<Option<Instant>>,
    /// The endpoint.
    pub endpoint: Mutex<Option<Arc<EndpointHandle>>>,
    /// The link.
    pub client: Mutex<Option<Arc<ClientHandle>>>,
    /// The feed.
    pub feed: Mutex<Option<Arc<Feed>>>,
    /// What the operator has said for the next handshake.
    pub consent: Mutex<Consent>,
    /// Whether the endpoint may serve.
    pub serving: AtomicBool,
    /// Why it may not, or where else to go.
    pub not_serving: ArcSwap<NotServing>,
    /// Op id of the newest snapshot that the log still reaches; 0: none.
    pub snapshot_op: AtomicU64,
    /// Op id of the RDB kept for a rebuild; 0: none.
    pub base_op: AtomicU64,
    /// Seconds until the disk is full; -1: not in sight.
    pub disk_full_in: AtomicI64,
    /// Progress of a long work, in percent.
    pub progress: AtomicU64,
    /// Bytes and keys of a snapshot that is being loaded.
    pub load_bytes: AtomicU64,
    /// As `load_bytes`.
    pub load_total: AtomicU64,
    /// As `load_bytes`.
    pub load_keys: AtomicU64,
    /// Copies loaded by the server that the controller has taken in.
    pub loads_seen: AtomicU64,
    /// The replicas are to be told what this node is.
    pub announce_due: AtomicBool,
    /// Whether a tap is attached, or about to be again.
    pub attached: AtomicBool,
    /// One BGSAVE at a time.
    pub saving: Mutex<()>,
    /// The RDB that is being saved and sent at once.
    pub making: Mutex<Option<super::snapshots::Making>>,
    /// Until when the tap's stream can be taken from: set while a capture runs.
    pub capture: Mutex<super::source::CaptureControl>,
}

/// Why the endpoint does not serve.
#[derive(Debug, Clone, Default)]
pub struct NotServing {
    /// In words.
    pub reason: String,
    /// Endpoints of the node that does.
    pub elsewhere: Vec<String>,
}

impl Node {
    /// Opens directory, state and log.
    ///
    /// # Errors
    /// In words, naming the file.
    pub fn open(start: &Start) -> Result<Arc<Self>, String> {
        let shared = Arc::clone(&start.shared);
        let config = &shared.config;
        let dir = start.server.dir.join(&config.dir);
        let fs: Arc<dyn Fs> = Arc::new(RealFs);
        let policy = match config.fsync {
            Fsync::Always => FsyncPolicy::Always,
            Fsync::EverySec => FsyncPolicy::EverySec,
            Fsync::No => FsyncPolicy::No,
        };
        let options = LogOptions {
            segment_size: config.segment_size,
            fsync: policy,
            service_id: config.service_id,
            compression: config.compression,
        };
        let (log, report) = Log::open(&dir, options, Arc::clone(&fs)).map_err(|e| e.to_string())?;
        if let Some(torn) = &report.torn {
            log::warn!(
                "{}: {} bytes from offset {} on are no whole entry ({}); kept in {}, cut off",
                torn.file.display(),
                torn.bytes,
                torn.offset,
                torn.reason,
                torn.kept_in.display()
            );
        }
        log::info!(
            "log in {}: ops {} to {} in {} segments",
            dir.display(),
            log.oldest(),
            log.written(),
            report.segments
        );
        let clean_stop = super::state::CleanStop::take(&dir);
        shared.clean_stop_path.store(Some(Arc::new(dir.join(super::state::CLEAN_STOP))));
        let state = StateFile::open(Arc::clone(&fs), &dir).map_err(|e| e.to_string())?;
        let writer =
            writer::start(Arc::clone(&log), Arc::clone(&shared), policy).map_err(|e| e.to_string())?;
        shared.written.store(log.written(), Ordering::Release);
        shared.durable.store(log.durable(), Ordering::Release);
        let link_secret = start.link_secret.as_deref().and_then(LinkSecret::new);
        Ok(Arc::new(Self {
            server: start.server.clone(),
            dir,
            fs,
            log,
            writer,
            state,
            link_secret,
            doing: ArcSwap::from_pointee(Doing { state: "starting", reason: String::new() }),
            warnings: Mutex::default(),
            clean_stop,
            refusals: Mutex::default(),
            lost_told: Mutex::default(),
            slow_until: Mutex::default(),
            endpoint: Mutex::default(),
            client: Mutex::default(),
            feed: Mutex::default(),
            consent: Mutex::new(Consent::None),
            serving: AtomicBool::new(false),
            not_serving: ArcSwap::from_pointee(NotServing {
                reason: "starting".into(),
                elsewhere: Vec::new(),
            }),
            snapshot_op: AtomicU64::new(0),
            base_op: AtomicU64::new(0),
            disk_full_in: AtomicI64::new(-1),
            progress: AtomicU64::new(100),
            load_bytes: AtomicU64::new(0),
            load_total: AtomicU64::new(0),
            load_keys: AtomicU64::new(0),
            loads_seen: AtomicU64::new(0),
            announce_due: AtomicBool::new(false),
            attached: AtomicBool::new(false),
            saving: Mutex::new(()),
            making: Mutex::new(None),
            capture: Mutex::default(),
            shared,
        }))
    }

    /// Says what the node does; logged where it changes.
    pub fn set_doing(&self, state: &'static str, reason: impl Into<String>) {
        let new = Doing { state, reason: reason.into() };
        let old = self.doing.swap(Arc::new(new.clone()));
        if *old != new {
            if new.reason.is_empty() {
                log::info!("state: {state}");
            } else {
                log::info!("state: {state} ({})", new.reason);
            }
        }
    }

    /// Tells the operator something; empty text takes it back.
    pub fn warn(&self, topic: &'static str, text: impl Into<String>) {
        let text = text.into();
        let mut warnings = self.warnings.lock();
        let before = warnings.iter().find(|w| w.0 == topic).map(|w| w.1.clone());
        if before.as_deref().unwrap_or_default() == text {
            return;
        }
        warnings.retain(|w| w.0 != topic);
        if !text.is_empty() {
            log::warn!("{text}");
            warnings.push((topic, text));
        }
    }

    /// Shows a refused target for as long as it keeps asking.
    pub fn note_refusal(&self, peer: &str, reason: &str) {
        let host = peer.rsplit_once(':').map_or(peer, |(host, _)| host);
        let text = format!("target at {host} refused: {reason}");
        let mut refusals = self.refusals.lock();
        refusals.retain(|r| r.0.elapsed() < REFUSAL_SHOWN && r.1 != text);
        // A peer that asks with ever new names must not fill the status.
        if refusals.len() >= MAX_REFUSALS {
            refusals.remove(0);
        }
        refusals.push((Instant::now(), text));
    }

    /// Refusals of the last half minute; a refused target asks again every few seconds.
    pub fn refusals(&self) -> Vec<String> {
        let refusals = self.refusals.lock();
        refusals.iter().filter(|r| r.0.elapsed() < REFUSAL_SHOWN).map(|r| r.1.clone()).collect()
    }

    /// A new connection to the own server.
    ///
    /// # Errors
    /// [`LocalError`]
    pub fn connect(&self) -> Result<Conn, LocalError> {
        match &self.server.address {
            Ok(address) => Conn::open(address, &self.shared.secret),
            Err(why) => Err(LocalError::Auth(why.clone())),
        }
    }

    /// As [`Self::connect`], again until it works; `None` when the module stops.
    pub fn connect_again(&self) -> Option<Conn> {
        let begun = Instant::now();
        let mut told = begun;
        while !self.stopping() {
            match self.connect() {
                Ok(conn) => return Some(conn),
                Err(LocalError::Auth(e)) if e.starts_with("LOADING") => {}
                Err(LocalError::Auth(e)) if begun.elapsed() > FIRST_CONNECT => self.shut_out(&e),
                Err(e) if told.elapsed() > Duration::from_secs(5) => {
                    log::warn!("{e}; trying again");
                    told = Instant::now();
                }
                Err(_) => {}
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    /// The server does not let the module in, and not for a moment only.
    fn shut_out(&self, why: &str) {
        if self.doing.load().state == "failed" {
            return;
        }
        let way_out = if why.contains("NOPERM") {
            "; this server lets the user 'default' run nothing before AUTH without a right: ACL SETUSER default \
             +dr._auth (it may stay off)"
        } else {
            ""
        };
        let text = format!("the server refuses the module's connection: {why}{way_out}");
        self.set_doing("failed", text.clone());
        self.warn("capture", format!("writes are NOT captured, there is no disaster recovery: {text}"));
        let linked = self.state.get().linked.is_some() || !self.shared.config.source.is_empty();
        if !linked {
            self.capture_failed();
        }
        self.publish();
    }

    /// Whether the module is to stop.
    pub fn stopping(&self) -> bool {
        self.shared.stopping.load(Ordering::Acquire)
    }

    /// Who this node is, for the link.
    pub fn identity(&self) -> NodeIdentity {
        let valkey = self.shared.valkey.load(Ordering::Relaxed);
        NodeIdentity {
            service_id: self.shared.config.service_id,
            server: if valkey { ServerKind::Valkey } else { ServerKind::Redis },
            server_version: u32::try_from(self.shared.version.load(Ordering::Relaxed)).unwrap_or(0),
            rdb_version: self.server.rdb_version,
            module_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Changes what RDBs say of this node.
    pub fn set_ident(&self, change: impl FnOnce(&mut Ident)) {
        self.shared.set_ident(change);
    }

    /// What this node is.
    pub fn mode(&self) -> Mode {
        self.shared.ident.load().mode
    }

    /// Lets targets in, or says why not.
    pub fn set_serving(&self, why_not: Option<NotServing>) {
        match why_not {
            None => self.serving.store(true, Ordering::Release),
            Some(why) => {
                self.serving.store(false, Ordering::Release);
                self.not_serving.store(Arc::new(why));
                if let Some(endpoint) = self.endpoint.lock().as_ref() {
                    endpoint.disconnect_all();
                }
            }
        }
    }

    /// Changes what is remembered; a failure is told and the node goes on.
    pub fn remember(&self, change: impl FnOnce(&mut super::state::NodeState)) -> bool {
        match self.state.change(change) {
            Ok(()) => {
                self.warn("state", "");
                true
            }
            Err(e) => {
                self.warn("state", format!("the node's state cannot be saved: {e}"));
                false
            }
        }
    }
}
