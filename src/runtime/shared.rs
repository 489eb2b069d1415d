//! What the server's main thread and the module's threads share: atomics and snapshots, no lock that is held
//! over I/O.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use arc_swap::{ArcSwap, ArcSwapOption};
use crossbeam_channel::Sender;
use oplog_format::{History, Lineage, OpId};

use super::gate::{CommandTable, Gate};
use crate::config::Config;
use crate::local::Secret;
use crate::snapshot::aux::AuxContent;
use crate::status::Status;

/// Flag of the RDB's field: its op id says something.
pub const FLAG_POSITIONED: u32 = 1;
/// Flag of the RDB's field: keys may carry held expiries.
pub const FLAG_HELD: u32 = 2;
/// Flag of the RDB's field: saved while a snapshot was being loaded.
pub const FLAG_INCOMPLETE: u32 = 4;

/// What this node is, as an RDB needs it. Replaced as a whole, so that a forked child reads a consistent one
/// without a lock.
#[derive(Debug, Clone, Default)]
pub struct Ident {
    /// source, target or replica.
    pub mode: Mode,
    /// Whether positions are known at all.
    pub positioned: bool,
    /// Source and replica of a source: op id = base + replication offset.
    pub base: i64,
    /// Histories up to now.
    pub lineage: Lineage,
    /// Source: where its DR endpoint is, `:port` where only its replicas know the host. Target: the endpoints of
    /// its link.
    pub endpoints: Vec<String>,
    /// Whether keys may carry expiries that are held.
    pub held: bool,
}

/// Role of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// Writes are born here.
    #[default]
    Source,
    /// Follows a source.
    Target,
    /// Replica of a source.
    Replica,
    /// Replica of a target.
    TargetReplica,
}

/// An answer to an operator's command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Status line.
    Simple(String),
    /// Number.
    Int(i64),
    /// Text.
    Text(String),
}

/// Takes the answer to a request; called once, from any thread.
pub type Respond = Box<dyn FnOnce(Result<Answer, String>) + Send>;

/// What the main thread asks of the controller.
pub enum Request {
    /// DR.LINK: endpoints, and the client that asks, which is not disconnected.
    Link(Vec<String>, u64, Respond),
    /// DR.CUTLINK
    Cut(Respond),
    /// DR.CUTLINK service_id
    CutTarget(u8, Respond),
    /// DR.RESYNC
    Resync(Respond),
    /// DR.SNAPSHOT
    Snapshot(Respond),
    /// DR.WAIT: op id, targets, milliseconds (0: for ever).
    Wait(OpId, u32, u64, Respond),
    /// Something changed on the server: look again.
    Wake(&'static str),
}

/// What a replica of a target learns by replication, for its own log.
#[derive(Debug, Clone)]
pub enum ReplicaEvent {
    /// An entry that was applied.
    Frame(Vec<u8>),
    /// A copy was loaded: the log starts anew above this op.
    Reset {
        /// Last op in the copy.
        op_id: OpId,
        /// Histories up to there.
        lineage: Lineage,
    },
    /// The master has sent a copy: the log is made one that the copy continues.
    Align {
        /// How many copies have been loaded, with this one.
        loads: u64,
        /// Last op in the copy.
        op_id: OpId,
        /// Histories up to there.
        lineage: Lineage,
    },
    /// A new history begins.
    History {
        /// The history.
        history: History,
        /// Its first op.
        first_op: OpId,
    },
    /// Everything queued before is in the log once this is taken out.
    Barrier(Sender<()>),
}

/// Shared by everything in the process.
pub struct Shared {
    /// The module's arguments.
    pub config: Config,
    /// Proof that a connection is the module's own.
    pub secret: Secret,
    /// What clients may do.
    pub gate: Gate,
    /// The server's commands.
    pub table: ArcSwap<CommandTable>,
    /// What an RDB needs to know.
    pub ident: ArcSwap<Ident>,
    /// Target: last op in the dataset. Changed on the main thread only.
    pub applied: AtomicU64,
    /// Whether `applied` says something.
    pub applied_known: AtomicBool,
    /// While a dataset is being replaced: an RDB made now is of no use.
    pub loading_data: AtomicBool,
    /// Our field of the RDB that the server loaded last.
    pub loaded: ArcSwapOption<AuxContent>,
    /// How many RDBs with or without our field the server has loaded.
    pub loads: AtomicU64,
    /// Client id of the feed.
    pub feed_client: AtomicU64,
    /// Client ids of own connections, the newest 16.
    pub own_clients: [AtomicU64; 16],
    own_next: AtomicU64,
    /// Requests to the controller.
    pub requests: Sender<Request>,
    /// What arrives by replication on a replica of a target.
    pub replica_events: Sender<ReplicaEvent>,
    /// Something could not be queued; the replica's log then has a gap.
    pub replica_events_lost: AtomicBool,
    /// While linked, and while a log is replayed: HOLD is added to expiries.
    pub hold: AtomicBool,
    /// Whether this node is linked to a source.
    pub linked: AtomicBool,
    /// While linked: the `maxmemory-policy` that the server has by its own configuration, where that is not `noeviction`.
    pub policy: ArcSwapOption<String>,
    /// Replicas may not attach yet: a copy made now would not say where it stands, and the ops that are being
    /// applied from the log are none that a replica of a source may get.
    pub replicas_wait: AtomicBool,
    /// Whether the server is a replica, as its last event said.
    pub is_replica: AtomicBool,
    /// Replica: its master is linked to a source, so that a promotion has to put the fence up at once.
    pub link_dormant: AtomicBool,
    /// Replica: what its master has said of itself last.
    pub master_word: ArcSwapOption<AuxContent>,
    /// Written at a clean stop by the main thread; the controller has prepared where.
    pub clean_stop_path: ArcSwapOption<std::path::PathBuf>,
    /// Where the apply stopped and why.
    pub diverged: ArcSwapOption<String>,
    /// The published status.
    pub status: ArcSwap<Status>,
    /// Durable and written positions of the log, for the main thread.
    pub written: AtomicU64,
    /// As `written`.
    pub durable: AtomicU64,
    /// Expiries that the rebase has released so far; for the status.
    pub released: AtomicI64,
    /// Server version as 0x00MMmmpp.
    pub version: AtomicU64,
    /// Whether the server is Valkey.
    pub valkey: AtomicBool,
    /// Where a server that stops, and does not wait for its replicas by itself, ends its stream; 0: it does not stop.
    pub stop_at: AtomicU64,
    /// Set when the module is to stop its threads.
    pub stopping: AtomicBool,
    /// How the log's disk does.
    pub disk: Disk,
}

/// How the log's disk does: written by the threads that use it, read by those that tell of it.
#[derive(Default)]
pub struct Disk {
    /// Why nothing reaches the log now; `None` while it works.
    pub failed: ArcSwapOption<String>,
    /// Since when, in milliseconds of [`Self::now_ms`].
    pub failed_since: AtomicU64,
    /// While failed: ops did not find room in memory any more and are lost to the log.
    pub lost: AtomicBool,
    /// While failed: bytes that the disk should have free before the log goes on.
    pub need: AtomicU64,
    /// While failed for lack of room: the log itself may go, so that there is some. A snapshot holds what is up to
    /// this op; 0: it may not.
    pub give_up: AtomicU64,
    /// A file holds a little room for manifest and state. Without it the log leaves as much.
    pub reserved: AtomicBool,
    /// An append is under way since then; 0: none is.
    pub append_since: AtomicU64,
    /// As `append_since`, a sync.
    pub sync_since: AtomicU64,
    /// As `sync_since`, one for DR.WAIT.
    pub wait_sync_since: AtomicU64,
    clock: OnceLock<Instant>,
}

impl Disk {
    /// A clock that is never set back and never 0.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        let begun = self.clock.get_or_init(Instant::now);
        u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// For how many milliseconds the longest append or sync has been under way.
    #[must_use]
    pub fn busy_ms(&self) -> u64 {
        let now = self.now_ms();
        let since = |at: &AtomicU64| match at.load(Ordering::Relaxed) {
            0 => 0,
            at => now.saturating_sub(at),
        };
        since(&self.append_since).max(since(&self.sync_since)).max(since(&self.wait_sync_since))
    }
}

impl Shared {
    /// The state of a process that has just loaded the module.
    #[must_use]
    pub fn new(
        config: Config,
        secret: Secret,
        requests: Sender<Request>,
        events: Sender<ReplicaEvent>,
    ) -> Arc<Self> {
        let status = Status {
            version: env!("CARGO_PKG_VERSION").into(),
            role: "source".into(),
            state: "starting".into(),
            service_id: config.service_id,
            progress_percent: 100,
            disk_full_in_seconds: -1,
            ..Status::default()
        };
        Arc::new(Self {
            config,
            secret,
            gate: Gate::default(),
            table: ArcSwap::default(),
            ident: ArcSwap::default(),
            applied: AtomicU64::new(0),
            applied_known: AtomicBool::new(false),
            loading_data: AtomicBool::new(false),
            loaded: ArcSwapOption::empty(),
            loads: AtomicU64::new(0),
            feed_client: AtomicU64::new(0),
            own_clients: std::array::from_fn(|_| AtomicU64::new(0)),
            own_next: AtomicU64::new(0),
            requests,
            replica_events: events,
            replica_events_lost: AtomicBool::new(false),
            hold: AtomicBool::new(false),
            linked: AtomicBool::new(false),
            policy: ArcSwapOption::empty(),
            replicas_wait: AtomicBool::new(false),
            is_replica: AtomicBool::new(false),
            link_dormant: AtomicBool::new(false),
            master_word: ArcSwapOption::empty(),
            clean_stop_path: ArcSwapOption::empty(),
            diverged: ArcSwapOption::empty(),
            status: ArcSwap::from_pointee(status),
            written: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            released: AtomicI64::new(0),
            version: AtomicU64::new(0),
            valkey: AtomicBool::new(false),
            stop_at: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            disk: Disk::default(),
        })
    }

    /// Which server this is.
    #[must_use]
    pub fn caps(&self) -> crate::apply::ServerCaps {
        crate::apply::ServerCaps {
            valkey: self.valkey.load(Ordering::Relaxed),
            version: u32::try_from(self.version.load(Ordering::Relaxed)).unwrap_or(0),
        }
    }

    /// Remembers that a client is one of the module's own.
    pub fn add_own_client(&self, id: u64) {
        let n = self.own_next.fetch_add(1, Ordering::Relaxed) as usize % self.own_clients.len();
        if let Some(slot) = self.own_clients.get(n) {
            slot.store(id, Ordering::Release);
        }
    }

    /// Whether a client is one of the module's own.
    #[must_use]
    pub fn is_own_client(&self, id: u64) -> bool {
        id != 0 && self.own_clients.iter().any(|c| c.load(Ordering::Acquire) == id)
    }

    /// Replaces the identity.
    pub fn set_ident(&self, change: impl FnOnce(&mut Ident)) {
        let mut ident = Ident::clone(&self.ident.load());
        change(&mut ident);
        self.ident.store(Arc::new(ident));
    }
}
