//! A source and a target around real logs and real sockets, with a dataset that is nothing but the ops that
//! made it: two are equal when both executed the same ops, each once, in the same order.
#![allow(
    dead_code,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

pub mod proxy;

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use oplog_format::packed::plain_entry;
use oplog_format::{
    decode_entry, encode_entry, Codec, Decoded, EntryMeta, History, Lineage, OpId, StoredHeader,
};
use parking_lot::{Condvar, Mutex};
use redisdr::link::{
    Client, ClientConfig, ClientHandle, Consent, Endpoint, EndpointConfig, EndpointHandle, Extent, Grown,
    Growth, LinkState, NodeId, NodeIdentity, Registered, ServerKind, Serving, Snapshot, SnapshotMeta,
    SourceHost, Staging, TargetHello, TargetHost,
};
use redisdr::store::{FsyncPolicy, Log, LogOptions, RealFs};

pub const PATIENCE: Duration = Duration::from_secs(60);

/// Polls until `check` holds.
pub fn wait_for(what: &str, mut check: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < until, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn history(c: char) -> History {
    History::from_bytes(c.to_string().repeat(40).as_bytes()).unwrap()
}

pub fn node(n: u8) -> NodeId {
    NodeId([n; 16])
}

pub fn identity(service_id: u8) -> NodeIdentity {
    NodeIdentity {
        service_id,
        server: ServerKind::Redis,
        server_version: 0x07_00_0f,
        rdb_version: 10,
        module_version: "0.1.0".to_owned(),
    }
}

pub fn now_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64
}

/// Small segments, so that there are many of them.
pub fn new_log(dir: &std::path::Path, fsync: FsyncPolicy, compression: Option<Codec>) -> Arc<Log> {
    let opts = LogOptions { segment_size: 8 * 1024, fsync, service_id: 0, compression };
    Log::open(dir, opts, Arc::new(RealFs)).unwrap().0
}

/// What a run of ops makes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Data {
    pub applied: OpId,
    pub ops: u64,
    pub sum: u64,
}

impl Data {
    pub fn apply(&mut self, frames: &[u8]) {
        let mut rest = frames;
        while !rest.is_empty() {
            let stored = StoredHeader::decode(rest).expect("a damaged entry was appended");
            let plain = plain_entry(rest).expect("a damaged entry was appended");
            let Ok(Decoded::Entry(e)) = decode_entry(&plain) else { panic!("a damaged entry was appended") };
            assert_eq!(e.header.first_op(), self.applied + 1, "an entry was applied twice or left out");
            self.applied = e.header.meta.last_op;
            self.ops += u64::from(e.header.meta.op_count);
            for b in e.payload {
                self.sum = self.sum.wrapping_mul(0x0100_0000_01b3) ^ u64::from(*b);
            }
            rest = &rest[stored.frame_len() as usize..];
        }
    }

    fn to_bytes(self) -> Vec<u8> {
        [self.applied, self.ops, self.sum].iter().flat_map(|n| n.to_le_bytes()).collect()
    }

    fn from_bytes(b: &[u8]) -> Self {
        let at = |i: usize| u64::from_le_bytes(b[i * 8..i * 8 + 8].try_into().unwrap());
        Self { applied: at(0), ops: at(1), sum: at(2) }
    }
}

pub fn set_op(key: u64, len: usize) -> Vec<u8> {
    let (key, value) = (format!("key:{key}"), "v".repeat(len));
    format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${len}\r\n{value}\r\n", key.len()).into_bytes()
}

pub const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";

/// An entry of the given ops that begins at `first`.
pub fn entry_of(first: OpId, time_ms: u64, ops: &[Vec<u8>]) -> Vec<u8> {
    let payload = ops.concat();
    let meta = EntryMeta {
        last_op: first + payload.len() as u64 - 1,
        time_ms,
        db: 0,
        op_count: ops.len() as u32,
        service_id: 0,
        flags: 0,
    };
    let mut out = Vec::new();
    encode_entry(&meta, &payload, &mut out).unwrap();
    out
}

impl Drop for Source {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(*self.panics.lock(), Vec::<String>::new());
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(*self.panics.lock(), Vec::<String>::new());
        }
    }
}

// ---- source

pub struct Source {
    pub dir: tempfile::TempDir,
    pub log: Arc<Log>,
    pub data: Mutex<Data>,
    pub identity: Mutex<NodeIdentity>,
    pub serving: Mutex<Serving>,
    pub starting: AtomicBool,
    /// Bytes of filling in each snapshot.
    pub filling: AtomicU64,
    pub snapshots: AtomicU64,
    /// Snapshots take until this is false.
    pub stuck: AtomicBool,
    /// Snapshots are sent while they are saved, and this says how far that is.
    pub saving: Mutex<Option<Arc<Saving>>>,
    pub registered: Mutex<Vec<Registered>>,
    pub panics: Mutex<Vec<String>>,
}

impl Source {
    pub fn new() -> Arc<Self> {
        Self::with_compression(None)
    }

    pub fn with_compression(codec: Option<Codec>) -> Arc<Self> {
        let dir = tempfile::tempdir().unwrap();
        let log = new_log(&dir.path().join("log"), FsyncPolicy::No, codec);
        log.begin_history(history('a'), 1).unwrap();
        Arc::new(Self {
            log,
            dir,
            data: Mutex::default(),
            identity: Mutex::new(identity(0)),
            serving: Mutex::new(Serving::Ready),
            starting: AtomicBool::new(false),
            filling: AtomicU64::new(1_000_000),
            snapshots: AtomicU64::new(0),
            stuck: AtomicBool::new(false),
            saving: Mutex::default(),
            registered: Mutex::default(),
            panics: Mutex::default(),
        })
    }

    pub fn config() -> EndpointConfig {
        let mut config = EndpointConfig::new("127.0.0.1:0", node(100));
        config.timeout = Duration::from_secs(3);
        config
    }

    pub fn serve(self: &Arc<Self>, config: EndpointConfig) -> EndpointHandle {
        Endpoint::start(config, Arc::clone(self) as Arc<dyn SourceHost>).unwrap()
    }

    pub fn start(self: &Arc<Self>) -> EndpointHandle {
        self.serve(Self::config())
    }

    pub fn write_entry(&self, time_ms: u64, ops: &[Vec<u8>]) -> OpId {
        let mut data = self.data.lock();
        let frame = entry_of(self.log.written() + 1, time_ms, ops);
        self.log.append(&frame).unwrap();
        data.apply(&frame);
        data.applied
    }

    /// Writes `count` entries of three ops each.
    pub fn write(&self, count: u64) -> OpId {
        for n in 0..count {
            let ops: Vec<_> = (0..3).map(|i| set_op(n * 3 + i, 20)).collect();
            self.write_entry(now_ms(), &ops);
        }
        self.log.written()
    }
}

impl SourceHost for Source {
    fn identity(&self) -> NodeIdentity {
        self.identity.lock().clone()
    }
    fn log(&self) -> Option<Arc<Log>> {
        (!self.starting.load(Ordering::SeqCst)).then(|| Arc::clone(&self.log))
    }
    fn serving(&self) -> Serving {
        self.serving.lock().clone()
    }
    fn snapshot(
        &self,
        _at_least: OpId,
        cancelled: &AtomicBool,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Snapshot, String> {
        while self.stuck.load(Ordering::SeqCst) {
            progress("saving 42 %");
            if cancelled.load(Ordering::SeqCst) {
                return Err("cancelled".to_owned());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.snapshots.fetch_add(1, Ordering::SeqCst);
        let data = self.data.lock();
        let path = self.dir.path().join("dump");
        let mut file =
            OpenOptions::new().create(true).truncate(true).read(true).write(true).open(path).unwrap();
        file.write_all(&data.to_bytes()).unwrap();
        file.write_all(&filling(self.filling.load(Ordering::SeqCst) as usize)).unwrap();
        let len = file.metadata().unwrap().len();
        let saving = self.saving.lock().clone();
        if let Some(saving) = &saving {
            saving.total.store(len, Ordering::SeqCst);
        }
        Ok(Snapshot {
            extent: saving.map_or(Extent::Whole(len), |s| Extent::Growing(s)),
            file,
            op_id: data.applied,
            lineage: self.log.lineage(),
            rdb_version: self.identity.lock().rdb_version,
        })
    }
    fn registry_changed(&self, registered: &[Registered]) {
        *self.registered.lock() = registered.to_vec();
    }
    fn panicked(&self, thread: &str, what: &str) {
        self.panics.lock().push(format!("{thread}: {what}"));
    }
}

/// A save of which the link sees as much as the test lets it.
#[derive(Default)]
pub struct Saving {
    pub visible: AtomicU64,
    pub total: AtomicU64,
    pub whole: AtomicBool,
    pub failed: AtomicBool,
}

impl Saving {
    /// All is there.
    pub fn finish(&self) {
        self.visible.store(u64::MAX, Ordering::SeqCst);
        self.whole.store(true, Ordering::SeqCst);
    }
}

impl Growth for Saving {
    fn look(&self) -> Result<Grown, String> {
        if self.failed.load(Ordering::SeqCst) {
            return Err("the server's BGSAVE has failed".to_owned());
        }
        let whole = self.whole.load(Ordering::SeqCst);
        let len = self.visible.load(Ordering::SeqCst).min(self.total.load(Ordering::SeqCst));
        Ok(Grown { len, whole })
    }
}

fn filling(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

// ---- target

#[derive(Default)]
pub struct Counts {
    pub full_syncs: AtomicU64,
    pub rebuilds: AtomicU64,
    pub appends: AtomicU64,
    pub failed_loads: AtomicU64,
    pub dropped: AtomicU64,
}

pub struct Target {
    pub dir: tempfile::TempDir,
    pub log: Arc<Log>,
    pub data: Mutex<Data>,
    /// Dataset at each entry's end, for rebuilds.
    pub past: Mutex<Vec<Data>>,
    pub identity: Mutex<NodeIdentity>,
    pub node: NodeId,
    pub consent: Mutex<Consent>,
    pub fresh: AtomicBool,
    pub counts: Counts,
    pub states: Mutex<Vec<LinkState>>,
    pub orphans: Mutex<Vec<(OpId, OpId)>>,
    pub can_rebuild: AtomicBool,
    /// Loads and appends take until this is false.
    pub stuck: Mutex<bool>,
    pub unstuck: Condvar,
    pub quit: AtomicBool,
    pub staging: PathBuf,
    /// Staging fails from so many bytes on.
    pub full_at: Mutex<Option<u64>>,
    /// Length that the last snapshot was announced with.
    pub announced: Mutex<Option<u64>>,
    own: Weak<Self>,
    /// Told as applied, instead of what is.
    pub applied_at: Mutex<Option<OpId>>,
    pub panics: Mutex<Vec<String>>,
}

impl Target {
    pub fn new(service_id: u8) -> Arc<Self> {
        Self::with_node(service_id, node(service_id))
    }

    pub fn with_node(service_id: u8, node: NodeId) -> Arc<Self> {
        let target = Self::with_fsync(service_id, node, FsyncPolicy::EverySec);
        let weak = Arc::downgrade(&target);
        // More often than a server would, in the same way.
        std::thread::spawn(move || {
            while let Some(target) = weak.upgrade() {
                target.log.sync().unwrap();
                drop(target);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        target
    }

    pub fn with_fsync(service_id: u8, node: NodeId, fsync: FsyncPolicy) -> Arc<Self> {
        let dir = tempfile::tempdir().unwrap();
        let log = new_log(&dir.path().join("log"), fsync, None);
        Arc::new_cyclic(|own| Self {
            log,
            staging: dir.path().join("staging"),
            full_at: Mutex::default(),
            announced: Mutex::default(),
            own: own.clone(),
            dir,
            data: Mutex::default(),
            past: Mutex::new(vec![Data::default()]),
            identity: Mutex::new(identity(service_id)),
            node,
            consent: Mutex::new(Consent::None),
            fresh: AtomicBool::new(true),
            counts: Counts::default(),
            states: Mutex::default(),
            orphans: Mutex::default(),
            can_rebuild: AtomicBool::new(true),
            stuck: Mutex::new(false),
            unstuck: Condvar::new(),
            quit: AtomicBool::new(false),
            applied_at: Mutex::default(),
            panics: Mutex::default(),
        })
    }

    pub fn config(endpoints: &[String]) -> ClientConfig {
        let mut config = ClientConfig::new(endpoints.to_vec());
        config.timeout = Duration::from_secs(3);
        config.connect_timeout = Duration::from_secs(3);
        config.backoff_min = Duration::from_millis(5);
        config.backoff_max = Duration::from_millis(200);
        config
    }

    pub fn link(self: &Arc<Self>, config: ClientConfig) -> ClientHandle {
        Client::start(config, Arc::clone(self) as Arc<dyn TargetHost>).unwrap()
    }

    pub fn link_to(self: &Arc<Self>, endpoint: &EndpointHandle) -> ClientHandle {
        self.link(Self::config(&[endpoint.local_addr().to_string()]))
    }

    pub fn own_write(&self, time_ms: u64, ops: &[Vec<u8>]) {
        let frame = entry_of(self.log.written() + 1, time_ms, ops);
        self.take(&frame);
        self.fresh.store(false, Ordering::SeqCst);
    }

    fn take(&self, frames: &[u8]) {
        let mut data = self.data.lock();
        let mut next = *data;
        next.apply(frames);
        self.log.append(frames).unwrap();
        *data = next;
        self.past.lock().push(next);
    }

    pub fn equals(&self, source: &Source) -> bool {
        let theirs = *source.data.lock();
        *self.data.lock() == theirs
            && self.log.written() == theirs.applied
            && self.log.lineage() == source.log.lineage()
            && !self.fresh.load(Ordering::SeqCst)
    }

    pub fn wait_equal(&self, source: &Source) {
        wait_for("the target equals the source", || self.equals(source));
    }

    pub fn full_syncs(&self) -> u64 {
        self.counts.full_syncs.load(Ordering::SeqCst)
    }

    pub fn set_stuck(&self, stuck: bool) {
        *self.stuck.lock() = stuck;
        self.unstuck.notify_all();
    }

    fn wait_unstuck(&self) {
        // Bounded, so that a test that fails meanwhile ends.
        let until = Instant::now() + 2 * PATIENCE;
        let mut stuck = self.stuck.lock();
        while *stuck && Instant::now() < until && !self.quit.load(Ordering::SeqCst) {
            self.unstuck.wait_for(&mut stuck, Duration::from_millis(20));
        }
    }

    pub fn wait_state(&self, what: &str, check: impl Fn(&LinkState) -> bool) -> LinkState {
        let mut found = None;
        wait_for(what, || {
            found = self.states.lock().iter().rev().find(|s| check(s)).cloned();
            found.is_some()
        });
        found.unwrap()
    }

    pub fn wait_refused(&self) -> String {
        match self.wait_state("refused", |s| matches!(s, LinkState::Refused { .. })) {
            LinkState::Refused { reason } => reason,
            _ => unreachable!(),
        }
    }
}

/// A snapshot that a target receives.
struct Staged {
    target: Arc<Target>,
    meta: SnapshotMeta,
    file: File,
}

impl Staging for Staged {
    fn write(&mut self, bytes: &[u8]) -> Result<(), String> {
        match *self.target.full_at.lock() {
            Some(at) if self.file.metadata().unwrap().len() >= at => {
                Err("no space left on device".to_owned())
            }
            _ => self.file.write_all(bytes).map_err(|e| e.to_string()),
        }
    }
    fn finish(mut self: Box<Self>) -> Result<(), String> {
        let (target, meta) = (&self.target, &self.meta);
        target.wait_unstuck();
        if target.quit.load(Ordering::SeqCst) {
            return Err("stopping".to_owned());
        }
        let mut bytes = Vec::new();
        self.file.seek(SeekFrom::Start(0)).unwrap();
        self.file.read_to_end(&mut bytes).unwrap();
        let other_len = meta.len.is_some_and(|len| len != bytes.len() as u64);
        if other_len || bytes[24..] != filling(bytes.len() - 24) {
            target.counts.failed_loads.fetch_add(1, Ordering::SeqCst);
            return Err("snapshot damaged".to_owned());
        }
        let data = Data::from_bytes(&bytes);
        assert_eq!(data.applied, meta.op_id);
        let lineage: Lineage = meta.lineage.clone();
        target.log.reset(lineage, meta.op_id + 1).unwrap();
        *target.data.lock() = data;
        *target.past.lock() = vec![data];
        target.fresh.store(false, Ordering::SeqCst);
        *target.consent.lock() = Consent::None;
        target.counts.full_syncs.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

impl TargetHost for Target {
    fn hello(&self) -> TargetHello {
        TargetHello {
            identity: self.identity.lock().clone(),
            node: self.node,
            lineage: self.log.lineage(),
            last_op: self.log.written(),
            fresh: self.fresh.load(Ordering::SeqCst),
            consent: *self.consent.lock(),
        }
    }
    fn log(&self) -> Arc<Log> {
        Arc::clone(&self.log)
    }
    fn begin_snapshot(&self, meta: &SnapshotMeta) -> Result<Box<dyn Staging>, String> {
        let mut options = OpenOptions::new();
        let file = options
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&self.staging)
            .map_err(|e| e.to_string())?;
        let target = self.own.upgrade().ok_or("the target is gone")?;
        *self.announced.lock() = meta.len;
        Ok(Box::new(Staged { target, meta: meta.clone(), file }))
    }
    fn drop_snapshot(&self) {
        self.counts.dropped.fetch_add(1, Ordering::SeqCst);
    }
    fn begin_history(&self, history: History, first_op: OpId) -> Result<(), String> {
        self.log.begin_history(history, first_op).map_err(|e| e.to_string())
    }
    fn append(&self, frames: &[u8], first: OpId, last: OpId) -> Result<(), String> {
        self.wait_unstuck();
        assert_eq!(first, self.log.written() + 1);
        self.take(frames);
        assert_eq!(last, self.log.written());
        self.counts.appends.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn rebuild_to(&self, op: OpId) -> Result<bool, String> {
        if !self.can_rebuild.load(Ordering::SeqCst) {
            return Ok(false);
        }
        let past = self.past.lock().iter().rev().find(|d| d.applied == op).copied();
        let Some(past) = past else { return Ok(false) };
        self.orphans.lock().push((op + 1, self.log.written()));
        self.log.cut_after(op, "forked").map_err(|e| e.to_string())?;
        *self.data.lock() = past;
        self.past.lock().retain(|d| d.applied <= op);
        *self.consent.lock() = Consent::None;
        self.counts.rebuilds.fetch_add(1, Ordering::SeqCst);
        Ok(true)
    }
    fn applied(&self) -> OpId {
        let told = *self.applied_at.lock();
        told.unwrap_or(self.data.lock().applied)
    }
    fn durable(&self) -> OpId {
        self.log.durable()
    }
    fn state(&self, state: &LinkState) {
        self.states.lock().push(state.clone());
    }
    fn panicked(&self, thread: &str, what: &str) {
        self.panics.lock().push(format!("{thread}: {what}"));
    }
}
