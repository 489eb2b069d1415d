//! The writer: appends captured entries to the log, and the sync thread.
//!
//! The tap and the writer meet in a queue that is bounded in bytes. When it is full the tap waits, and the server
//! keeps the stream in its replication buffer.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, Receiver, RecvTimeoutError, Sender};
use oplog_format::{EntryHeader, History, OpId};
use parking_lot::{Condvar, Mutex};

use super::shared::Shared;
use crate::store::{FsyncPolicy, Log, StoreError};

/// Bytes that may wait for the disk.
pub const QUEUE_BYTES: u64 = 64 << 20;
const QUEUE_MESSAGES: usize = 64 * 1024;
/// Waiting pieces are joined up to this many bytes for one write.
const JOIN_BYTES: usize = 1 << 20;
/// How often a failed log is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// A sync that takes longer is logged.
const SLOW_SYNC: Duration = Duration::from_secs(2);

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
    super::spawn("dr-writer", move || Writer { log, shared, room, rx, history: None, lost: false }.run())?;
    if fsync == FsyncPolicy::EverySec {
        super::spawn("dr-sync", move || sync_loop(&sync_log, &sync_shared))?;
    }
    Ok(handle)
}

struct Writer {
    log: Arc<Log>,
    shared: Arc<Shared>,
    room: Arc<Room>,
    rx: Receiver<Message>,
    history: Option<History>,
    /// The log has failed and entries are being dropped.
    lost: bool,
}

impl Writer {
    fn run(mut self) {
        let mut next = None;
        let mut retry_at = Instant::now();
        loop {
            let message = match next.take() {
                Some(m) => m,
                None => match self.rx.recv_timeout(RETRY) {
                    Ok(m) => m,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return,
                },
            };
            match message {
                Message::Frames(mut frames) => {
                    let mut freed = frames.len() as u64;
                    while frames.len() < JOIN_BYTES {
                        match self.rx.try_recv() {
                            Ok(Message::Frames(more)) => {
                                freed += more.len() as u64;
                                frames.extend_from_slice(&more);
                            }
                            Ok(other) => {
                                next = Some(other);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    self.write(&frames, &mut retry_at);
                    self.room.used.fetch_sub(freed, Ordering::AcqRel);
                    self.room.freed.notify_all();
                }
                Message::History(history, first_op) => {
                    self.history = Some(history);
                    if let Err(e) = self.log.begin_history(history, first_op) {
                        self.failed(&e);
                    }
                }
                Message::Flush(done) => drop(done.send(())),
            }
            self.publish();
        }
    }

    fn publish(&self) {
        self.shared.written.store(self.log.written(), Ordering::Release);
        self.shared.durable.store(self.log.durable(), Ordering::Release);
    }

    fn write(&mut self, frames: &[u8], retry_at: &mut Instant) {
        let failed = self.log.poisoned().is_some();
        if failed && (Instant::now() < *retry_at || !self.revive(frames)) {
            return;
        }
        if let Err(e) = self.log.append(frames) {
            self.failed(&e);
            *retry_at = Instant::now() + RETRY;
        }
    }

    fn failed(&mut self, e: &StoreError) {
        if !std::mem::replace(&mut self.lost, true) {
            log::error!("the log has failed, writes are not captured from here on: {e}");
        }
    }

    /// Goes on above what was lost meanwhile.
    fn revive(&mut self, frames: &[u8]) -> bool {
        let (Some(history), Ok(header)) = (self.history, EntryHeader::decode(frames)) else { return false };
        let from = self.log.written();
        match self.log.revive(history, header.first_op()) {
            Ok(()) => {
                self.lost = false;
                let lost = header.first_op().saturating_sub(from + 1);
                log::warn!("the log works again at op {}; {lost} bytes of ops were lost", header.first_op());
                true
            }
            Err(_) => false,
        }
    }
}

fn sync_loop(log: &Arc<Log>, shared: &Shared) {
    let slow = AtomicBool::new(false);
    while !shared.stopping.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_secs(1));
        let begun = Instant::now();
        // A failure poisons the log; the writer tells of it and tries again.
        let _ = log.sync();
        shared.durable.store(log.durable(), Ordering::Release);
        let took = begun.elapsed();
        if took > SLOW_SYNC {
            if !slow.swap(true, Ordering::Relaxed) {
                log::warn!("syncing the log took {} ms: the disk is slow", took.as_millis());
            }
        } else {
            slow.store(false, Ordering::Relaxed);
        }
    }
}
