//! The writer: appends captured entries to the log, and the sync thread.
//!
//! The tap and the writer meet in a queue that is bounded in bytes. When it is full the tap waits, and the server
//! keeps the stream in its replication buffer.
//!
//! While the log has failed, entries wait here for it, up to half of the queue: a disk that is full or fails for a
//! moment only costs nothing. Beyond that they are given up, and the log goes on above a gap.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, Receiver, RecvTimeoutError, Sender};
use oplog_format::{EntryHeader, History, OpId};
use parking_lot::{Condvar, Mutex};

use super::shared::{Mode, Shared};
use crate::store::{FsyncPolicy, Log, StoreError};

/// Bytes that may wait for the disk.
pub const QUEUE_BYTES: u64 = 64 << 20;
const QUEUE_MESSAGES: usize = 64 * 1024;
/// Waiting pieces are joined up to this many bytes for one write.
const JOIN_BYTES: usize = 1 << 20;
/// The same where they are compressed first: targets see nothing of it until all of it is written.
const JOIN_PACKED_BYTES: usize = 256 << 10;
/// Bytes that are kept for a log that has failed. The other half of the queue is the tap's.
const HELD_BYTES: u64 = QUEUE_BYTES / 2;
/// How often a failed log is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// A wait for entries is no longer than this.
const LOOK: Duration = Duration::from_millis(200);
/// Room on the disk that makes going on worth it; a segment where that is smaller. With less the log would fail
/// again at once, and each time could cost a gap.
const ROOM: u64 = 16 << 20;

enum Message {
    Frames(Vec<u8>),
    History(History, OpId),
    Flush(Sender<()>),
}

/// The way into the log.
#[derive(Clone)]
pub struct WriterHandle {
    queue: Sender<Message>,
    room: Arc<Room>,
}

#[derive(Default)]
struct Room {
    used: AtomicU64,
    lock: Mutex<()>,
    freed: Condvar,
}

impl WriterHandle {
    /// Queues entries; waits while the queue is full. False when the writer has ended.
    #[must_use]
    pub fn entries(&self, frames: Vec<u8>) -> bool {
        let len = frames.len() as u64;
        let mut guard = self.room.lock.lock();
        while self.room.used.load(Ordering::Acquire) > QUEUE_BYTES {
            self.room.freed.wait_for(&mut guard, Duration::from_millis(200));
        }
        self.room.used.fetch_add(len, Ordering::AcqRel);
        drop(guard);
        self.queue.send(Message::Frames(frames)).is_ok()
    }

    /// Bytes that wait for the disk.
    #[must_use]
    pub fn queued(&self) -> u64 {
        self.room.used.load(Ordering::Relaxed)
    }

    /// Queues the opening of a history.
    #[must_use]
    pub fn history(&self, history: History, first_op: OpId) -> bool {
        self.queue.send(Message::History(history, first_op)).is_ok()
    }

    /// Waits until everything queued before is written or the time is over.
    #[must_use]
    pub fn flush(&self, timeout: Duration) -> bool {
        let (tx, rx) = bounded(1);
        self.queue.send(Message::Flush(tx)).is_ok() && rx.recv_timeout(timeout).is_ok()
    }
}

/// Starts writer and sync thread for a log.
///
/// # Errors
/// The operating system's, where it has no thread left.
pub fn start(log: Arc<Log>, shared: Arc<Shared>, fsync: FsyncPolicy) -> std::io::Result<WriterHandle> {
    let (tx, rx) = bounded(QUEUE_MESSAGES);
    let room = Arc::new(Room::default());
    let handle = WriterHandle { queue: tx, room: Arc::clone(&room) };
    let (sync_log, sync_shared) = (Arc::clone(&log), Arc::clone(&shared));
    let writer = Writer {
        log,
        shared,
        room,
        rx,
        history: None,
        end: 0,
        failing: false,
        held: Vec::new(),
        held_room: 0,
        given_up: 0,
        lost: 0,
        retry_at: Instant::now(),
    };
    super::spawn("dr-writer", move || writer.run())?;
    if fsync == FsyncPolicy::EverySec {
        super::spawn("dr-sync", move || sync_loop(&sync_log, &sync_shared))?;
    }
    Ok(handle)
}

/// Room that is left for the files that the log is cleaned by.
pub const RESERVE_BYTES: usize = 256 << 10;

/// Bytes that the disk should have free before a failed log of this kind goes on.
#[must_use]
pub fn room_needed(log: &Log) -> u64 {
    ROOM.min(log.segment_size())
}

struct Writer {
    log: Arc<Log>,
    shared: Arc<Shared>,
    room: Arc<Room>,
    rx: Receiver<Message>,
    history: Option<History>,
    /// Last op that has come out of the queue, or that a history begins behind; 0: none has.
    end: OpId,
    /// The log does not take what comes.
    failing: bool,
    /// While failing: entries that wait, and their share of the queue.
    held: Vec<u8>,
    held_room: u64,
    /// While failing: bytes of entries that found no room here.
    given_up: u64,
    /// Bytes of ops that the gaps since the failure have cost.
    lost: u64,
    retry_at: Instant,
}

impl Writer {
    fn run(mut self) {
        let mut next = None;
        loop {
            let message = match next.take() {
                Some(m) => Some(m),
                None => match self.rx.recv_timeout(LOOK) {
                    Ok(m) => Some(m),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return,
                },
            };
            // A sync has failed, or the link's append.
            if let Some(why) = self.log.poisoned().filter(|_| !self.failing) {
                self.failed(&why);
            }
            match message {
                Some(Message::Frames(frames)) => next = self.take(frames),
                Some(Message::History(history, first_op)) => self.begin_history(history, first_op),
                Some(Message::Flush(done)) => drop(done.send(())),
                None => {}
            }
            if self.failing && Instant::now() >= self.retry_at {
                self.retry();
            }
            self.shared.written.store(self.log.written(), Ordering::Release);
            self.shared.durable.store(self.log.durable(), Ordering::Release);
        }
    }

    /// Takes entries and those that wait behind them; returns what else came out of the queue.
    fn take(&mut self, mut frames: Vec<u8>) -> Option<Message> {
        let mut room = frames.len() as u64;
        let mut next = None;
        let join = if self.log.compression().is_some() { JOIN_PACKED_BYTES } else { JOIN_BYTES };
        while frames.len() < join {
            match self.rx.try_recv() {
                Ok(Message::Frames(more)) => {
                    room += more.len() as u64;
                    frames.extend_from_slice(&more);
                }
                Ok(other) => {
                    next = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        self.end = last_op(&frames).unwrap_or(self.end);
        if self.failing {
            self.hold(&frames, room);
        } else if let Err(e) = self.append(&frames) {
            self.failed(&e.to_string());
            self.hold(&frames, room);
        } else {
            self.free(room);
        }
        next
    }

    fn append(&self, frames: &[u8]) -> Result<(), StoreError> {
        let disk = &self.shared.disk;
        let least = (RESERVE_BYTES + frames.len()) as u64;
        if !disk.reserved.load(Ordering::Acquire) && self.log.free_bytes().is_some_and(|free| free < least) {
            let full = std::io::Error::from_raw_os_error(libc::ENOSPC);
            return Err(StoreError::io("writing to", self.log.dir(), full));
        }
        disk.append_since.store(disk.now_ms(), Ordering::Relaxed);
        let done = self.log.append(frames).map(drop);
        disk.append_since.store(0, Ordering::Relaxed);
        done
    }

    fn free(&self, bytes: u64) {
        self.room.used.fetch_sub(bytes, Ordering::AcqRel);
        self.room.freed.notify_all();
    }

    /// Keeps entries until the log works again, where there is room.
    fn hold(&mut self, frames: &[u8], room: u64) {
        self.held.extend_from_slice(frames);
        self.held_room += room;
        if self.held_room > HELD_BYTES {
            let bytes = self.held_room;
            self.give_up();
            if self.given_up == bytes {
                log::error!(
                    "{bytes} bytes of ops cannot be kept in memory any longer and are lost to the log, which will \
                     go on above a gap"
                );
            }
        }
    }

    fn give_up(&mut self) {
        if self.held.is_empty() {
            return;
        }
        self.held = Vec::new();
        self.given_up += self.held_room;
        let room = std::mem::take(&mut self.held_room);
        self.free(room);
        self.shared.disk.lost.store(true, Ordering::Release);
    }

    fn begin_history(&mut self, history: History, first_op: OpId) {
        self.history = Some(history);
        self.end = first_op.saturating_sub(1);
        // Of the history before; its place in the log is taken by the new one.
        self.give_up();
        if let Err(e) = self.log.begin_history(history, first_op) {
            self.failed(&e.to_string());
        }
    }

    fn failed(&mut self, why: &str) {
        self.retry_at = Instant::now() + RETRY;
        if std::mem::replace(&mut self.failing, true) {
            return;
        }
        let disk = &self.shared.disk;
        disk.failed_since.store(disk.now_ms(), Ordering::Release);
        disk.need.store(room_needed(&self.log), Ordering::Release);
        disk.failed.store(Some(Arc::new(why.to_owned())));
        log::error!("the log has failed, nothing is written to it until its disk works again: {why}");
    }

    /// Goes on where the log works again.
    fn retry(&mut self) {
        self.retry_at = Instant::now() + RETRY;
        let mode = self.shared.ident.load().mode;
        let free = self.log.free_bytes().unwrap_or(u64::MAX);
        let need = room_needed(&self.log) + self.held.len() as u64;
        self.shared.disk.need.store(need, Ordering::Release);
        let room = free >= need;
        if matches!(mode, Mode::Target | Mode::TargetReplica) || self.end == 0 {
            // What is missing comes again over the link.
            self.give_up();
            if room && self.log.resume().is_ok() {
                self.works("");
            }
            return;
        }
        let written = self.log.written();
        let based = self.shared.disk.give_up.load(Ordering::Acquire);
        self.forget_held(written.max(based));
        let first = match EntryHeader::decode(&self.held) {
            Ok(header) => header.first_op(),
            Err(_) => (self.end + 1).max(written + 1),
        };
        let gap = first > written + 1;
        let give_up = gap && based > 0;
        let Some(history) = self.history.filter(|_| room || give_up) else { return };
        if self.log.poisoned().is_some() || gap {
            if let Err(e) = self.log.revive(history, first) {
                // As it was, and told before.
                return log::debug!("the log is not revived: {e}");
            }
        }
        self.lost += first - written - 1;
        while !self.held.is_empty() {
            let len = whole_entries(&self.held, JOIN_BYTES);
            if self.append(self.held.get(..len).unwrap_or_default()).is_err() {
                return;
            }
            self.held.drain(..len);
        }
        let room = std::mem::take(&mut self.held_room);
        self.free(room);
        match std::mem::take(&mut self.lost) {
            0 => self.works(", nothing was lost"),
            lost => self.works(&format!(", above a gap: {lost} bytes of ops were not captured")),
        }
    }

    /// Drops what is held and in the log.
    fn forget_held(&mut self, written: OpId) {
        let mut rest = self.held.as_slice();
        while let Ok(header) = EntryHeader::decode(rest) {
            if header.meta.last_op > written {
                break;
            }
            rest = usize::try_from(header.frame_len()).ok().and_then(|n| rest.get(n..)).unwrap_or_default();
        }
        let done = self.held.len() - rest.len();
        self.held.drain(..done);
    }

    fn works(&mut self, how: &str) {
        let disk = &self.shared.disk;
        self.failing = false;
        self.given_up = 0;
        disk.give_up.store(0, Ordering::Release);
        disk.lost.store(false, Ordering::Release);
        disk.failed.store(None);
        log::warn!("the log works again at op {}{how}", self.log.written());
    }
}

/// Length of the first entries, up to about so many bytes and at least one.
fn whole_entries(frames: &[u8], most: usize) -> usize {
    let mut len = 0;
    while let Some(header) = frames.get(len..).and_then(|rest| EntryHeader::decode(rest).ok()) {
        let next = len.saturating_add(usize::try_from(header.frame_len()).unwrap_or(usize::MAX));
        if next > frames.len() || (len > 0 && next > most) {
            break;
        }
        len = next;
    }
    if len == 0 {
        frames.len()
    } else {
        len
    }
}

/// Last op of whole entries.
fn last_op(frames: &[u8]) -> Option<OpId> {
    let (mut rest, mut last) = (frames, None);
    while let Ok(header) = EntryHeader::decode(rest) {
        last = Some(header.meta.last_op);
        rest = usize::try_from(header.frame_len()).ok().and_then(|n| rest.get(n..)).unwrap_or_default();
    }
    last
}

fn sync_loop(log: &Arc<Log>, shared: &Shared) {
    let disk = &shared.disk;
    while !shared.stopping.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_secs(1));
        disk.sync_since.store(disk.now_ms(), Ordering::Relaxed);
        // A failure poisons the log; the writer tells of it and tries again.
        let _ = log.sync();
        disk.sync_since.store(0, Ordering::Relaxed);
        shared.durable.store(log.durable(), Ordering::Release);
    }
}
