//! The tap: reads an attached stream and hands entries on.
//!
//! The way from the socket to the sink is kept short, because what has not gone it is lost when the server is
//! killed: no waiting for a full buffer. Only where small reads follow one another at once are those of [`PACE`]
//! made one: each read that finds nothing is a thread that the server's main thread has to wake, before it answers its
//! clients. The tap stays alive with one ACK a second.
//!
//! What it ACKs depends on the role:
//! - On a master always offset 0, so that WAIT never counts the tap. Only while the server is shutting down (7.0
//!   on, told by INFO) the exact offset: it waits for its replicas then, for 10 s.
//! - On a replica the exact offset, whenever the stream rests: nobody WAITs there, no GETACK is sent, and a
//!   shutdown waits as on a master. While the stream does not rest, INFO is asked once a second instead.
//!
//! Before an exact offset is told, the sink is asked to settle: the server may be gone a moment later.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use oplog_format::{FormatError, History, OpId};

use super::attach::Attached;
use super::builder::EntryBuilder;
use super::settings::Dial;
use super::Role;
use crate::local::{push_command, Conn, Stream};
use crate::store::now_ms;

/// Size of the read buffer.
const READ_BYTES: usize = 256 * 1024;
/// Capacity that the frame buffer keeps between reads.
const KEEP_FRAMES: usize = 4 * 1024 * 1024;
/// Small reads do not follow one another faster than this. The first after a rest is not held back.
const PACE: Duration = Duration::from_micros(200);
/// A read of more than this is not small: the server makes few of it, and waiting would only fill the socket.
const SMALL_READ: usize = 16 * 1024;
const ACK_EVERY: Duration = Duration::from_secs(1);
/// After how long a rest of the stream a replica's tap tells its exact offset.
const REST: Duration = Duration::from_millis(50);
/// How often the server is asked whether it shuts down, at most: a client that WAITs makes a GETACK each time.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// How long exact ACKs go on after the server said that it shuts down; it may call that off.
const SHUTDOWN_FOR: Duration = Duration::from_millis(500);

/// Why a sink wants no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// In words, for the log.
    pub reason: String,
}

/// Takes what the tap reads.
pub trait TapSink {
    /// Whole entries, contiguous with those before; `last_op` is the id of the last op in them. May block
    /// while a queue is full; the tap then reads nothing, and the server's buffers grow.
    ///
    /// # Errors
    /// [`Stop`] ends the tap; the entries count as not handed over.
    fn entries(&mut self, frames: &[u8], last_op: OpId) -> Result<(), Stop>;

    /// The entries from op id `first_op` on belong to `history`. Called only where a resumed stream goes over
    /// from one history to the next.
    ///
    /// # Errors
    /// [`Stop`] ends the tap.
    fn history_changed(&mut self, history: History, first_op: OpId) -> Result<(), Stop>;

    /// The server may exit as soon as this returns: waits (for a bounded time) until what was handed over is in
    /// the log.
    fn settle(&mut self) {}
}

/// Why a tap ended.
#[derive(Debug)]
pub enum TapEndReason {
    /// [`TapStopper::stop`].
    Stopped,
    /// The server closed the connection, or it broke.
    Closed(Option<io::Error>),
    /// The stream holds something that is no op, or a unit that is too large.
    Stream(FormatError),
    /// The sink wants no more.
    Sink(Stop),
}

/// Where a tap ended. The fields are what [`super::Resume`] takes.
#[derive(Debug)]
pub struct TapEnd {
    /// Why.
    pub reason: TapEndReason,
    /// History of the last byte handed over.
    pub history: History,
    /// Offset of the last byte handed over.
    pub offset: i64,
    /// Database in which the next op runs.
    pub db: u32,
}

/// Ends a tap from another thread.
#[derive(Debug)]
pub struct TapStopper {
    stream: Stream,
    stopped: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
}

impl TapStopper {
    /// Makes [`Tap::run`] return.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        // A socket that is closed already is as good.
        let _ = self.stream.shutdown();
    }

    /// Op id of the last byte that the tap read.
    #[must_use]
    pub fn received(&self) -> OpId {
        self.received.load(Ordering::Acquire)
    }
}

/// Reads one attached stream.
#[derive(Debug)]
pub struct Tap {
    stream: Stream,
    leftover: Vec<u8>,
    builder: EntryBuilder,
    frames: Vec<u8>,
    history: History,
    /// The history that the stream goes over to, and the op id of the former's last byte.
    next_history: Option<(History, OpId)>,
    /// Offset minus op id.
    shift: i64,
    acks: Acks,
    stopped: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
}

impl Tap {
    /// Reads `attached`, whose first byte follows the op id `base`, the last of [`Attached::history`]. Ops are born
    /// on instance `service_id`.
    ///
    /// # Errors
    /// The operating system's.
    pub fn new(attached: Attached, base: OpId, service_id: u8) -> io::Result<Self> {
        let shift = attached.offset.wrapping_sub_unsigned(base);
        let next_history =
            attached.next_history.map(|(h, end)| (h, end.wrapping_sub(shift).try_into().unwrap_or(base)));
        attached.stream.set_read_timeout(Some(ACK_EVERY))?;
        Ok(Self {
            acks: Acks::new(&attached),
            stream: attached.stream,
            leftover: attached.leftover,
            builder: EntryBuilder::new(base, attached.db, service_id),
            frames: Vec::new(),
            history: attached.history,
            next_history,
            shift,
            stopped: Arc::default(),
            received: Arc::new(AtomicU64::new(base)),
        })
    }

    /// What ends it from another thread.
    ///
    /// # Errors
    /// The operating system's.
    pub fn stopper(&self) -> io::Result<TapStopper> {
        Ok(TapStopper {
            stream: self.stream.try_clone()?,
            stopped: Arc::clone(&self.stopped),
            received: Arc::clone(&self.received),
        })
    }

    /// Reads until something ends it. Blocks the calling thread.
    pub fn run(mut self, sink: &mut dyn TapSink) -> TapEnd {
        let mut handed = (self.builder.last_op(), self.builder.next_db());
        let reason = match self.read_all(sink, &mut handed) {
            _ if self.stopped.load(Ordering::Acquire) => TapEndReason::Stopped,
            Err(reason) => reason,
            Ok(()) => TapEndReason::Closed(None),
        };
        let (last_op, db) = handed;
        TapEnd { reason, history: self.history, offset: self.shift.wrapping_add_unsigned(last_op), db }
    }

    fn read_all(&mut self, sink: &mut dyn TapSink, handed: &mut (OpId, u32)) -> Result<(), TapEndReason> {
        self.go_over(sink)?;
        let leftover = std::mem::take(&mut self.leftover);
        self.take(&leftover, sink, handed)?;
        drop(leftover);
        let mut buf = vec![0u8; READ_BYTES];
        let mut pace = Pace::default();
        loop {
            pace.wait();
            let rests = match self.stream.read(&mut buf) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    pace.read(n);
                    self.take(buf.get(..n).unwrap_or_default(), sink, handed)?;
                    false
                }
                Err(e) if is_timeout(&e) => true,
                Err(e) => return Err(TapEndReason::Closed(Some(e))),
            };
            let offset = self.shift.wrapping_add_unsigned(self.builder.fed());
            let sent = self.acks.tick(&mut self.stream, offset, rests, sink);
            sent.map_err(|e| TapEndReason::Closed(Some(e)))?;
        }
    }

    /// Feeds bytes of the stream, cut where it goes over to the next history.
    fn take(
        &mut self,
        mut bytes: &[u8],
        sink: &mut dyn TapSink,
        handed: &mut (OpId, u32),
    ) -> Result<(), TapEndReason> {
        while !bytes.is_empty() {
            let room = self.next_history.map_or(u64::MAX, |(_, end)| end.saturating_sub(self.builder.fed()));
            let (now, later) =
                bytes.split_at(usize::try_from(room).map_or(bytes.len(), |r| r.min(bytes.len())));
            bytes = later;
            self.feed(now, sink, handed)?;
            self.go_over(sink)?;
        }
        Ok(())
    }

    fn feed(
        &mut self,
        bytes: &[u8],
        sink: &mut dyn TapSink,
        handed: &mut (OpId, u32),
    ) -> Result<(), TapEndReason> {
        self.frames.clear();
        let fed = self.builder.feed(bytes, now_ms(), &mut self.frames);
        self.received.store(self.builder.fed(), Ordering::Release);
        if !self.frames.is_empty() {
            sink.entries(&self.frames, self.builder.last_op()).map_err(TapEndReason::Sink)?;
            *handed = (self.builder.last_op(), self.builder.next_db());
        }
        if self.frames.capacity() > KEEP_FRAMES {
            self.frames = Vec::new();
        }
        self.acks.asked |= fed.map_err(TapEndReason::Stream)?.getack;
        Ok(())
    }

    /// Goes over to the next history when the former is read to its end.
    fn go_over(&mut self, sink: &mut dyn TapSink) -> Result<(), TapEndReason> {
        if let Some((history, end)) = self.next_history.filter(|(_, end)| self.builder.fed() >= *end) {
            self.next_history = None;
            self.history = history;
            sink.history_changed(history, end + 1).map_err(TapEndReason::Sink)?;
        }
        Ok(())
    }
}

/// When the last read ended, if it was small.
#[derive(Debug, Default)]
struct Pace {
    small: Option<Instant>,
}

impl Pace {
    fn read(&mut self, bytes: usize) {
        self.small = (bytes < SMALL_READ).then(Instant::now);
    }

    fn wait(&self) {
        let left = self.small.map_or(Duration::ZERO, |at| PACE.saturating_sub(at.elapsed()));
        if !left.is_zero() {
            std::thread::sleep(left);
        }
    }
}

/// Keeps the server content.
#[derive(Debug)]
struct Acks {
    dial: Dial,
    control: Option<Conn>,
    role: Role,
    shutdown_waits: bool,
    /// A GETACK came that is not answered.
    asked: bool,
    last_ack: Instant,
    last_offset: i64,
    last_ask: Option<Instant>,
    exact_until: Option<Instant>,
    timeout: Duration,
}

impl Acks {
    fn new(attached: &Attached) -> Self {
        Self {
            dial: attached.dial.clone(),
            control: None,
            role: attached.role,
            shutdown_waits: attached.shutdown_waits,
            asked: false,
            last_ack: Instant::now(),
            last_offset: 0,
            last_ask: None,
            exact_until: None,
            timeout: ACK_EVERY,
        }
    }

    /// Sends the ACK that is due, and sets the longest time that the next read may block. `rests`: the last read
    /// brought nothing within that time.
    fn tick(
        &mut self,
        stream: &mut Stream,
        offset: i64,
        rests: bool,
        sink: &mut dyn TapSink,
    ) -> io::Result<()> {
        let now = Instant::now();
        let exact = self.in_shutdown(now, offset) || (rests && self.role == Role::Replica);
        if exact && offset != self.last_offset {
            sink.settle();
            self.send(stream, offset)?;
            (self.last_ack, self.last_offset) = (now, offset);
        } else if now.duration_since(self.last_ack) >= ACK_EVERY {
            let known = if self.role == Role::Replica { self.last_offset } else { 0 };
            self.send(stream, known)?;
            self.last_ack = now;
        }
        let next = if self.asked {
            ASK_EVERY
        } else if self.role == Role::Replica && offset != self.last_offset {
            REST
        } else {
            ACK_EVERY
        };
        if next != self.timeout {
            stream.set_read_timeout(Some(next))?;
            self.timeout = next;
        }
        Ok(())
    }

    /// Whether the server is shutting down; asks it where there is reason to.
    fn in_shutdown(&mut self, now: Instant, offset: i64) -> bool {
        if !self.shutdown_waits {
            self.asked = false;
            return false;
        }
        let since = self.last_ask.map_or(ACK_EVERY, |at| now.duration_since(at));
        if self.exact_until.is_some_and(|until| now >= until) {
            self.exact_until = None;
            self.asked = true;
        }
        self.asked |= self.role == Role::Replica && offset != self.last_offset && since >= ACK_EVERY;
        if self.asked && since >= ASK_EVERY {
            self.asked = false;
            self.last_ask = Some(now);
            if self.is_shutting_down() {
                self.exact_until = Some(now + SHUTDOWN_FOR);
            }
        }
        self.exact_until.is_some()
    }

    fn send(&self, stream: &mut Stream, offset: i64) -> io::Result<()> {
        let mut out = Vec::with_capacity(64);
        push_command(&mut out, &[b"REPLCONF", b"ACK", offset.to_string().as_bytes()]);
        stream.write_all(&out)
    }

    fn is_shutting_down(&mut self) -> bool {
        // A connection that idled away is opened anew, once.
        for _ in 0..2 {
            if self.control.is_none() {
                self.control = self.dial.open().ok();
            }
            match self.control.as_mut().map(|c| c.info("server")) {
                Some(Ok(info)) => return info.contains_key("shutdown_in_milliseconds"),
                _ => self.control = None,
            }
        }
        false
    }
}

fn is_timeout(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}
