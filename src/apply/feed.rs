//! The feed: reads the own log and sends each entry to the server as DR.APPLY, a few in flight.
//!
//! The server takes an entry only where it continues the dataset, so that sending again is always safe: after
//! LOADING, BUSY or a lost connection the feed asks for the position and goes on from there. A long entry is handed over in
//! memory, see [`super::handoff`], and the command only names it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use oplog_format::{decode_entry, split_after, Decoded, EntryHeader, OpId};
use parking_lot::Mutex;

use super::handoff::{self, Ticket};
use super::{claims, prepare, ServerCaps};
use crate::local::{Address, Conn, LocalError, Reply, Secret, Stream};
use crate::store::{Log, LogReader, ReadError, StoreError};

/// Entries in flight. More would only lengthen the server's turns: each is up to 256 ops.
const IN_FLIGHT: usize = 4;
/// Entries of so many bytes, which are single ops or transactions, are handed over in memory.
const IN_MEMORY_BYTES: usize = 128 * 1024;
/// Bytes in flight, beyond which one entry at a time is sent.
const IN_FLIGHT_BYTES: usize = 1 << 20;
/// Bytes read from the log at once.
const READ_BYTES: usize = 256 * 1024;
/// Wait before something refused is sent again.
const AGAIN: Duration = Duration::from_millis(20);
/// Longest wait before something is sent again to a server that refuses it.
const AGAIN_MAX: Duration = Duration::from_secs(2);
/// Something that keeps the feed from applying is shown once it has lasted this long.
const TROUBLE_SHOWN: Duration = Duration::from_secs(2);
/// How often a wait looks whether it is to stop.
const TICK: Duration = Duration::from_millis(200);

/// Settings of a feed.
#[derive(Clone)]
pub struct FeedConfig {
    /// The own server.
    pub addr: Address,
    /// Proof to it.
    pub secret: Secret,
    /// The own log.
    pub log: Arc<Log>,
    /// Stops by itself once this op is applied; `None`: never.
    pub until: Option<OpId>,
    /// What the own server is.
    pub caps: ServerCaps,
}

/// How a feed ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeedEnd {
    /// Was told to.
    Stopped,
    /// Has applied the op that it was to go to.
    Reached,
    /// An op fails here.
    Diverged(String),
    /// The log cannot be read, or the dataset has no position in it.
    Failed(String),
}

/// What all sides of a feed share.
#[derive(Default)]
struct Inner {
    stop: AtomicBool,
    applied: AtomicU64,
    entries: AtomicU64,
    /// Since when the server answers with an error, and which.
    trouble: Mutex<Option<(Instant, String)>>,
    in_trouble: AtomicBool,
    stream: Mutex<Option<Stream>>,
}

impl Inner {
    fn well(&self) {
        if self.in_trouble.swap(false, Ordering::Relaxed) {
            *self.trouble.lock() = None;
        }
    }
}

/// A running feed. Stops when dropped.
pub struct Feed {
    inner: Arc<Inner>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Feed {
    /// Starts the thread `dr-feed`; `ended` is called once, from it.
    ///
    /// # Errors
    /// The operating system's.
    pub fn start(config: FeedConfig, ended: impl FnOnce(FeedEnd) + Send + 'static) -> std::io::Result<Self> {
        let inner = Arc::new(Inner::default());
        let own = Arc::clone(&inner);
        let thread = std::thread::Builder::new().name("dr-feed".into()).spawn(move || {
            let run = std::panic::AssertUnwindSafe(|| run(&config, &own));
            let end = std::panic::catch_unwind(run)
                .unwrap_or_else(|_| FeedEnd::Failed("the feed panicked, see the log".into()));
            ended(end);
        })?;
        Ok(Self { inner, thread: Mutex::new(Some(thread)) })
    }

    /// Last op known to be applied.
    #[must_use]
    pub fn applied(&self) -> OpId {
        self.inner.applied.load(Ordering::Acquire)
    }

    /// Entries applied since the start.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.inner.entries.load(Ordering::Relaxed)
    }

    /// What keeps it from applying, where that has lasted; it goes on trying.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let trouble = self.inner.trouble.lock();
        let (_, error) = trouble.as_ref().filter(|t| t.0.elapsed() > TROUBLE_SHOWN)?;
        Some(format!("ops are received and not applied, trying on: {error}"))
    }

    /// Ends the feed and waits for its thread. Entries in flight may still be applied.
    pub fn stop(&self) {
        self.inner.stop.store(true, Ordering::Release);
        if let Some(stream) = self.inner.stream.lock().as_ref() {
            let _ = stream.shutdown();
        }
        if let Some(thread) = self.thread.lock().take() {
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(config: &FeedConfig, inner: &Inner) -> FeedEnd {
    let stopped = || inner.stop.load(Ordering::Acquire);
    let mut told = String::new();
    let mut wait = AGAIN;
    while !stopped() {
        let entries = inner.entries.load(Ordering::Relaxed);
        let tried = Conn::open(&config.addr, &config.secret).and_then(|mut conn| {
            *inner.stream.lock() = conn.stream().try_clone().ok();
            session(config, inner, &mut conn)
        });
        let e = match tried {
            Ok(end) => return end,
            Err(_) if stopped() => return FeedEnd::Stopped,
            Err(e) => e.to_string(),
        };
        if inner.entries.load(Ordering::Relaxed) != entries {
            wait = AGAIN;
        }
        // What is repeated at each attempt is told once.
        if told != e {
            log::warn!("feed: {e}; trying again");
            told.clone_from(&e);
        }
        let mut trouble = inner.trouble.lock();
        let since = trouble.as_ref().map_or_else(Instant::now, |t| t.0);
        *trouble = Some((since, e));
        drop(trouble);
        inner.in_trouble.store(true, Ordering::Relaxed);
        pause(inner, wait);
        wait = (wait * 2).min(AGAIN_MAX);
    }
    FeedEnd::Stopped
}

/// Waits, unless the feed is stopped.
fn pause(inner: &Inner, wait: Duration) {
    let until = Instant::now() + wait;
    while Instant::now() < until && !inner.stop.load(Ordering::Acquire) {
        std::thread::sleep(AGAIN);
    }
}

/// Asks the server for its position until it has one to tell.
fn position(inner: &Inner, conn: &mut Conn) -> Result<Option<OpId>, LocalError> {
    loop {
        match conn.call_raw(&[b"DR._POSITION"])? {
            Reply::Int(n) => return Ok(u64::try_from(n).ok()),
            Reply::Nil => return Ok(None),
            Reply::Error(_) if inner.stop.load(Ordering::Acquire) => return Err(LocalError::Closed),
            Reply::Error(e) if passes(&e) => std::thread::sleep(AGAIN),
            Reply::Error(error) => return Err(LocalError::Reply { command: "DR._POSITION".into(), error }),
            _ => return Err(LocalError::Protocol("position")),
        }
    }
}

/// Whether an error says that the server is busy with something that ends.
fn passes(error: &str) -> bool {
    ["LOADING", "BUSY", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN"].iter().any(|w| error.starts_with(w))
}

/// A reader that stands at `next`, and what is left of the entry that `next` lies in.
fn reader_at(log: &Arc<Log>, next: OpId) -> Result<(LogReader, Vec<u8>), ReadError> {
    match log.reader(next) {
        Ok(reader) => Ok((reader, Vec::new())),
        Err(ReadError::NotABoundary { op, entry_first, entry_last }) => {
            let mut reader = log.reader(entry_first)?;
            let mut frames = Vec::new();
            reader.next(1, &mut frames)?;
            let Ok(Decoded::Entry(entry)) = decode_entry(&frames) else {
                return Err(ReadError::NotABoundary { op, entry_first, entry_last });
            };
            let len = entry.frame.len();
            let Ok(Some(mut tail)) = split_after(&entry, next - 1) else {
                return Err(ReadError::NotABoundary { op, entry_first, entry_last });
            };
            tail.extend_from_slice(frames.get(len..).unwrap_or_default());
            Ok((reader, tail))
        }
        Err(e) => Err(e),
    }
}

struct Session<'a> {
    inner: &'a Inner,
    conn: &'a mut Conn,
    /// Entries whose reply is due.
    due: VecDeque<Due>,
    due_bytes: usize,
}

/// An entry whose reply is due.
struct Due {
    last: OpId,
    bytes: usize,
    /// Its place in memory, where it was not sent.
    _ticket: Option<Ticket>,
}

fn session(config: &FeedConfig, inner: &Inner, conn: &mut Conn) -> Result<FeedEnd, LocalError> {
    let failed = |e: ReadError| match e {
        // A disk may work again, a cut be finished.
        ReadError::Store(StoreError::Io { .. } | StoreError::Poisoned(_)) => {
            Err(LocalError::Source(format!("own log: {e}")))
        }
        e => Ok(FeedEnd::Failed(format!("own log: {e}"))),
    };
    let mut s = Session { inner, conn, due: VecDeque::new(), due_bytes: 0 };
    'position: loop {
        let Some(at) = position(inner, s.conn)? else {
            return Ok(FeedEnd::Failed("the dataset's position is not known".into()));
        };
        inner.applied.store(at, Ordering::Release);
        let (mut reader, mut frames) = match reader_at(&config.log, at + 1) {
            Ok(r) => r,
            Err(e) => return failed(e),
        };
        loop {
            if inner.stop.load(Ordering::Acquire) {
                s.drain()?;
                return Ok(FeedEnd::Stopped);
            }
            if config.until.is_some_and(|u| inner.applied.load(Ordering::Acquire) >= u) {
                return Ok(FeedEnd::Reached);
            }
            if frames.is_empty() {
                if let Err(e) = reader.next(READ_BYTES, &mut frames) {
                    return failed(e);
                }
            }
            if frames.is_empty() {
                if s.due.is_empty() {
                    inner.well();
                    config.log.wait_written(reader.position() - 1, TICK);
                    continue;
                }
                s.conn.flush()?;
                match s.reply()? {
                    Next::Go => continue,
                    Next::Position => continue 'position,
                    Next::End(end) => return Ok(end),
                }
            }
            match s.send(&frames, config)? {
                Next::Go => frames.clear(),
                Next::Position => continue 'position,
                Next::End(end) => return Ok(end),
            }
        }
    }
}

enum Next {
    Go,
    Position,
    End(FeedEnd),
}

impl Session<'_> {
    /// Sends all entries of `frames`, reading replies where too many are due.
    fn send(&mut self, frames: &[u8], config: &FeedConfig) -> Result<Next, LocalError> {
        let part = !config.caps.valkey && config.caps.version < 0x07_00_00;
        let mut rest = frames;
        while !rest.is_empty() {
            let Ok(Decoded::Entry(whole)) = decode_entry(rest) else {
                return Ok(Next::End(FeedEnd::Failed("own log: an entry is cut off".into())));
            };
            rest = rest.get(whole.frame.len()..).unwrap_or_default();
            if config.until.is_some_and(|u| whole.header.first_op() > u) {
                break;
            }
            let parts = if part { claims::apart(&whole) } else { Ok(None) };
            let next = match parts {
                Ok(None) => self.send_entry(whole.frame)?,
                Ok(Some(parts)) => self.send_parts(&parts)?,
                Err(e) => return Ok(Next::End(FeedEnd::Failed(format!("own log: {e}")))),
            };
            if !matches!(next, Next::Go) {
                return Ok(next);
            }
        }
        self.conn.flush()?;
        Ok(Next::Go)
    }

    fn send_parts(&mut self, parts: &[Vec<u8>]) -> Result<Next, LocalError> {
        for frame in parts {
            match self.send_entry(frame)? {
                Next::Go => {}
                other => return Ok(other),
            }
        }
        Ok(Next::Go)
    }

    /// Sends one entry, which has been checked.
    fn send_entry(&mut self, frame: &[u8]) -> Result<Next, LocalError> {
        let Ok(header) = EntryHeader::decode(frame) else {
            return Ok(Next::End(FeedEnd::Failed("own log: an entry has no header".into())));
        };
        // Before it is waited: the main thread works on the ones before meanwhile.
        let batch = if frame.len() >= IN_MEMORY_BYTES { prepare::entry(frame) } else { None };
        while self.due.len() >= IN_FLIGHT || self.due_bytes > IN_FLIGHT_BYTES {
            self.conn.flush()?;
            match self.reply()? {
                Next::Go => {}
                other => return Ok(other),
            }
        }
        let ticket = batch.and_then(|batch| handoff::put(batch).ok());
        let first = header.first_op().to_string();
        match &ticket {
            Some(ticket) => {
                let token = ticket.token().to_string();
                self.conn.push(&[b"DR.APPLY", first.as_bytes(), b"REF", token.as_bytes()]);
            }
            None => self.conn.push(&[b"DR.APPLY", first.as_bytes(), frame]),
        }
        self.due.push_back(Due { last: header.meta.last_op, bytes: frame.len(), _ticket: ticket });
        self.due_bytes += frame.len();
        if frame.len() > IN_FLIGHT_BYTES {
            self.conn.flush()?;
        }
        Ok(Next::Go)
    }

    fn take_due(&mut self) -> Option<OpId> {
        let due = self.due.pop_front()?;
        self.due_bytes -= due.bytes;
        Some(due.last)
    }

    /// Reads one reply.
    fn reply(&mut self) -> Result<Next, LocalError> {
        let reply = self.conn.read_reply()?;
        let last = self.take_due();
        match reply {
            Reply::Error(e) if e.starts_with("DIVERGED") => {
                self.drain()?;
                Ok(Next::End(FeedEnd::Diverged(e.trim_start_matches("DIVERGED ").to_owned())))
            }
            Reply::Error(e) if e.starts_with("DRPOSITION") || passes(&e) => {
                // Whatever is in flight behind it has met the same: all of it is sent again.
                self.drain()?;
                if !e.starts_with("DRPOSITION") {
                    std::thread::sleep(AGAIN);
                }
                Ok(Next::Position)
            }
            Reply::Error(error) => Err(LocalError::Reply { command: "DR.APPLY".into(), error }),
            _ => {
                if let Some(last) = last {
                    self.inner.applied.store(last, Ordering::Release);
                    self.inner.entries.fetch_add(1, Ordering::Relaxed);
                    self.inner.well();
                }
                Ok(Next::Go)
            }
        }
    }

    /// Reads the replies that are still due.
    fn drain(&mut self) -> Result<(), LocalError> {
        self.conn.flush()?;
        while !self.due.is_empty() {
            let reply = self.conn.read_reply()?;
            if let (Some(last), false) = (self.take_due(), matches!(reply, Reply::Error(_))) {
                self.inner.applied.store(last, Ordering::Release);
            }
        }
        Ok(())
    }
}
