//! One target's session at the source: a thread that sends and one that hears, so that a target that takes
//! nothing costs one buffer and no other target anything.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError};
use oplog_format::{Codec, OpId, StoredHeader};
use parking_lot::Mutex;

use super::admit::Admitted;
use super::endpoint::{Serving, Shared, Snapshot, TICK};
use super::error::LinkError;
use super::frame::{Expect, FrameKind, FrameReader, FrameWriter};
use super::identity::{can_load, NodeIdentity};
use super::logs;
use super::message::{
    cut, receive, send, Ack, Heartbeat, NewHistory, Refusal, RefusalCode, Relation, SnapshotEnd,
    SnapshotMeta, Want,
};
use super::pace::Pace;
use super::registry::TargetState;
use super::stream::Stream;
use super::thread;
use crate::store::now_ms;
use crate::store::{Log, ReadError};

/// Most bytes of entries in one frame, unless a single one is longer.
pub const BATCH: usize = 256 * 1024;
/// Time that a small batch stands alone, for each target beyond the first: 1.4 ms with all of them.
const REST_PER_TARGET: Duration = Duration::from_micros(100);
/// Bytes of a snapshot in one frame.
pub const CHUNK: usize = 256 * 1024;
/// How often it is looked whether a snapshot that is being saved has grown.
const GROWTH: Duration = Duration::from_millis(2);
/// How often a snapshot is chosen again because the log was trimmed under it.
const SNAPSHOT_TRIES: usize = 3;

const SESSION: Expect =
    Expect { during: "the session", kinds: &[FrameKind::Ack, FrameKind::Want, FrameKind::Refused] };

/// What the two threads of a session share.
struct Session {
    shared: Arc<Shared>,
    stream: Stream,
    writer: Mutex<FrameWriter>,
    heartbeat: Mutex<Instant>,
    note: Mutex<String>,
    gone: Arc<AtomicBool>,
    ended: Mutex<Option<LinkError>>,
    service_id: u8,
    session: u64,
    identity: NodeIdentity,
    /// What the target can decompress.
    codecs: u32,
    peer: SocketAddr,
    log: Arc<Log>,
}

/// Starts the threads of a session.
pub(crate) fn start(shared: &Arc<Shared>, admitted: Admitted) {
    let Admitted { stream, reader, writer, gone, service_id, session, identity, codecs, peer, log, relation } =
        admitted;
    log::info!("target {service_id} at {peer} ({identity}) connected");
    let session = Arc::new(Session {
        shared: Arc::clone(shared),
        stream,
        writer: Mutex::new(writer),
        heartbeat: Mutex::new(Instant::now()),
        note: Mutex::new(String::new()),
        gone,
        ended: Mutex::new(None),
        service_id,
        session,
        identity,
        codecs,
        peer,
        log,
    });
    let own = Arc::clone(&session);
    let spawned = shared.spawn(&format!("dr-target-{service_id}"), move || {
        // Also when the thread panics.
        let _leave = Leave(&own);
        serve(&own, reader, relation);
    });
    if let Err(e) = spawned {
        log::error!("target {service_id} at {peer} dropped: {e}");
        drop(Leave(&session));
    }
}

/// Ends the session when dropped.
struct Leave<'a>(&'a Session);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let s = self.0;
        s.hang_up();
        let why = s.ended.lock().take().map_or_else(|| "ended".to_owned(), |e| e.to_string());
        s.shared.registry.lock().leave(s.service_id, s.session, &why, now_ms());
        s.shared.registry_changed();
        log::info!("target {} at {} disconnected: {why}", s.service_id, s.peer);
    }
}

fn serve(s: &Arc<Session>, reader: FrameReader, relation: Relation) {
    let (wants, wanted) = crossbeam_channel::bounded(4);
    let own = Arc::clone(s);
    let host = Arc::clone(&s.shared.host);
    let name = format!("dr-acks-{}", s.service_id);
    let told = name.clone();
    let hearing = thread::spawn(
        &name,
        move || {
            let outcome = own.hear(reader, &wants);
            own.end(outcome);
            own.hang_up();
        },
        move |what| host.panicked(&told, what),
    );
    let hearing = match hearing {
        Ok(handle) => handle,
        Err(e) => return s.end(Err(e.into())),
    };
    let outcome = s.obey(&wanted, relation);
    if let Err(e) = &outcome {
        s.say_farewell(e);
    }
    s.end(outcome);
    s.hang_up();
    thread::join(hearing);
}

impl Session {
    /// Keeps the first reason.
    fn end(&self, outcome: Result<(), LinkError>) {
        if let Err(e) = outcome {
            self.ended.lock().get_or_insert(e);
        }
    }

    fn hang_up(&self) {
        self.gone.store(true, Ordering::Release);
        self.stream.shutdown();
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire) || self.shared.stopping()
    }

    fn set_state(&self, state: TargetState, reason: &str) {
        self.shared.registry.lock().set_state(self.service_id, self.session, state, reason);
    }

    /// Tells the target why this side ends the session, and waits a moment for it to hear that.
    fn say_farewell(&self, error: &LinkError) {
        let refusal = match error {
            LinkError::Refused(refusal) => refusal.clone(),
            LinkError::Host(reason) => Refusal::new(RefusalCode::Failed, reason.clone()),
            _ => return,
        };
        log::warn!("session with target {} ended: {}", self.service_id, refusal.reason);
        if send(&mut self.writer.lock(), &refusal).is_ok() {
            self.stream.finish_writing();
            let deadline = Instant::now() + Duration::from_secs(1);
            while !self.is_gone() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    // ---- hearing

    fn hear(&self, mut reader: FrameReader, wants: &Sender<Want>) -> Result<(), LinkError> {
        reader.expect(SESSION);
        reader.set_tick(TICK.min(self.shared.config.heartbeat() / 2))?;
        let timeout = self.shared.config.timeout;
        while !self.is_gone() {
            let frame = reader.poll()?;
            if frame.is_some() {
                self.shared.registry.lock().heard(self.service_id, self.session, now_ms());
            }
            match frame {
                Some(FrameKind::Want) => match wants.try_send(receive(&reader)?) {
                    Ok(()) => {}
                    Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                        return Err(LinkError::Unexpected {
                            kind: FrameKind::Want as u8,
                            during: "the session",
                        });
                    }
                },
                Some(FrameKind::Ack) => self.take_ack(&receive(&reader)?)?,
                Some(_) => return Err(LinkError::Refused(receive(&reader)?)),
                None if reader.heard().elapsed() > timeout => {
                    let ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
                    return Err(LinkError::Silent { ms });
                }
                None => {}
            }
            // A writer that is busy is a sign of life by itself, or stuck, and then a heartbeat would be too.
            if let Some(mut writer) = self.writer.try_lock() {
                self.beat(&mut writer)?;
            }
        }
        Err(LinkError::Stopped)
    }

    fn take_ack(&self, ack: &Ack) -> Result<(), LinkError> {
        let Some(positions) = ack.positions else { return Ok(()) };
        let taken = self.shared.registry.lock().acked(self.service_id, self.session, positions, now_ms());
        if !taken {
            return Err(LinkError::Transfer {
                what: "ack beyond what was sent",
                expected: 0,
                got: positions.received,
            });
        }
        self.shared.host.acked();
        Ok(())
    }

    /// Sends a heartbeat where one is due.
    fn beat(&self, writer: &mut FrameWriter) -> Result<(), LinkError> {
        {
            let mut last = self.heartbeat.lock();
            if last.elapsed() < self.shared.config.heartbeat() {
                return Ok(());
            }
            *last = Instant::now();
        }
        let (written, clock_ms) = (self.log.written(), now_ms());
        let lag_ms = self.shared.registry.lock().lag_ms(self.service_id, written, clock_ms);
        let own = self.note.lock().clone();
        let note = match self.shared.host.trouble() {
            Some(trouble) if own.is_empty() => cut(trouble),
            _ => own,
        };
        send(writer, &Heartbeat { written, clock_ms, lag_ms, note })
    }

    // ---- sending

    fn obey(&self, wanted: &Receiver<Want>, relation: Relation) -> Result<(), LinkError> {
        let mut may_stream = match relation {
            Relation::Continue { from } => Some(from),
            _ => None,
        };
        // A target that could go on and wants a copy has met an op that fails there: a copy below would meet it again.
        // Of one that has forked, a copy below the fork point would make ops orphans that the source has.
        let at_least = match relation {
            Relation::Continue { from } => from.saturating_sub(1),
            Relation::Forked { common, .. } => common,
            _ => 0,
        };
        loop {
            self.check()?;
            let want = match wanted.recv_timeout(TICK) {
                Ok(want) => want,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return Err(LinkError::Closed),
            };
            match want {
                Want::Stream { from } if may_stream == Some(from) => return self.stream_from(from),
                Want::Stream { from } => {
                    let reason = format!("op {from} is not where this target can go on");
                    return Err(LinkError::refused(RefusalCode::Restart, reason));
                }
                Want::Snapshot => may_stream = Some(self.send_snapshot(at_least)? + 1),
                Want::Held { reason } => {
                    let reason = cut(reason);
                    log::warn!("target {} at {} holds: {reason}", self.service_id, self.peer);
                    self.set_state(TargetState::Held, &reason);
                }
                Want::Rebuild { to } => {
                    let reason = format!("to op {to}");
                    log::info!("target {} at {} rebuilds {reason}", self.service_id, self.peer);
                    self.set_state(TargetState::Rebuilding, &reason);
                }
            }
        }
    }

    /// Whether the session may go on.
    fn check(&self) -> Result<(), LinkError> {
        if self.is_gone() {
            return Err(LinkError::Stopped);
        }
        match self.shared.host.serving() {
            Serving::Ready => Ok(()),
            Serving::NotReady(reason) => Err(LinkError::refused(RefusalCode::NotReady, reason)),
            Serving::Redirect(endpoints) => Err(LinkError::Refused(Refusal::redirect(&endpoints))),
        }
    }

    fn wait_for(&self, pace: &Pace, bytes: usize) -> Result<(), LinkError> {
        let until = Instant::now() + pace.take(bytes, Instant::now()).min(Duration::from_secs(3600));
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            if self.is_gone() {
                return Err(LinkError::Stopped);
            }
            std::thread::sleep(left.min(TICK));
        }
    }

    fn stream_from(&self, from: OpId) -> Result<(), LinkError> {
        let log = &self.log;
        let (mut reader, first) = logs::open_at(log, from).map_err(read_error)?;
        self.shared.registry.lock().begin_stream(self.service_id, self.session, from.saturating_sub(1));
        log::info!("target {} at {} follows from op {from}", self.service_id, self.peer);
        let mut sent = from.saturating_sub(1);
        let mut buf = Vec::with_capacity(BATCH);
        if let Some((frame, last)) = first {
            sent = self.send_entries(&frame, sent, last)?;
        }
        let mut checked = Instant::now();
        let mut rest = self.rest();
        loop {
            if self.is_gone() || checked.elapsed() >= TICK {
                self.check()?;
                checked = Instant::now();
                rest = self.rest();
            }
            let began = Instant::now();
            buf.clear();
            if buf.capacity() > 16 * BATCH {
                buf.shrink_to(BATCH);
            }
            let read = match self.codecs & Codec::READABLE {
                // It reads all that can be in this log.
                Codec::READABLE => reader.next_stored(BATCH, &mut buf),
                _ => reader.next(BATCH, &mut buf),
            };
            match read.map_err(read_error)? {
                Some((_, last)) => sent = self.send_entries(&buf, sent, last)?,
                // A reader that stands elsewhere would wait for what has passed.
                None if reader.position() != sent.saturating_add(1) => {
                    let reason = format!("the source read up to {}, sent up to {sent}", reader.position());
                    return Err(LinkError::Host(reason));
                }
                None => {
                    log.wait_written(sent, TICK);
                    continue;
                }
            }
            if buf.len() < BATCH / 2 {
                std::thread::sleep(rest.saturating_sub(began.elapsed()));
            }
        }
    }

    /// How long a small batch stands alone. Each target's thread wakes for each write to the log, and so does each
    /// target: with many of them that is most of what they cost.
    fn rest(&self) -> Duration {
        let others = self.shared.registry.lock().streaming().saturating_sub(1);
        REST_PER_TARGET.saturating_mul(u32::try_from(others).unwrap_or(u32::MAX))
    }

    /// Sends whole entries that end at `last`, and before each history its name. Returns `last`.
    fn send_entries(&self, frames: &[u8], sent: OpId, last: OpId) -> Result<OpId, LinkError> {
        // Asked for behind the read: a history is opened before its first entry is written.
        let lineage = self.log.lineage();
        let opened: Vec<NewHistory> = lineage
            .items()
            .iter()
            .filter(|i| i.first_op > sent && i.first_op <= last)
            .map(|i| NewHistory { history: i.history, first_op: i.first_op })
            .collect();
        let mut rest = Cow::Borrowed(frames);
        let mut sent = sent;
        for history in &opened {
            let (before, behind) = match rest {
                Cow::Borrowed(frames) => logs::split_at(frames, history.first_op)?,
                Cow::Owned(frames) => {
                    let (before, behind) = logs::split_at(&frames, history.first_op)?;
                    (Cow::Owned(before.into_owned()), Cow::Owned(behind.into_owned()))
                }
            };
            if !before.is_empty() {
                sent = self.send_run(&before, sent)?;
            }
            self.send_frame(|w| send(w, history))?;
            rest = behind;
        }
        if !rest.is_empty() {
            sent = self.send_run(&rest, sent)?;
        }
        debug_assert_eq!(sent, last);
        Ok(sent)
    }

    fn send_run(&self, frames: &[u8], sent: OpId) -> Result<OpId, LinkError> {
        let first = StoredHeader::decode(frames)?;
        if first.first_op() != sent + 1 {
            let reason = format!("the source's log has a gap: op {} follows op {sent}", first.first_op());
            return Err(LinkError::refused(RefusalCode::Restart, reason));
        }
        let last = logs::last_op(frames)?;
        self.wait_for(&self.shared.pace, frames.len())?;
        // Before the bytes leave, so that an ack finds it.
        self.shared.registry.lock().sent(self.service_id, self.session, last, first.header.meta.time_ms);
        self.send_frame(|w| w.write(FrameKind::Entries, &[frames]))?;
        Ok(last)
    }

    fn send_frame(
        &self,
        write: impl FnOnce(&mut FrameWriter) -> Result<(), LinkError>,
    ) -> Result<(), LinkError> {
        let mut writer = self.writer.lock();
        write(&mut writer)?;
        self.beat(&mut writer)
    }

    // ---- snapshot

    fn send_snapshot(&self, at_least: OpId) -> Result<OpId, LinkError> {
        self.set_state(TargetState::Snapshot, "");
        let snapshot = self.choose_snapshot(at_least)?;
        let saved = NodeIdentity { rdb_version: snapshot.rdb_version, ..self.shared.host.identity() };
        can_load(&saved, &self.identity).map_err(|r| LinkError::refused(RefusalCode::Version, r))?;
        let meta = SnapshotMeta {
            op_id: snapshot.op_id,
            len: snapshot.extent.total(),
            lineage: snapshot.lineage.clone(),
            rdb_version: snapshot.rdb_version,
            source: saved,
        };
        let size = match meta.len {
            Some(len) => format!("of {len} bytes"),
            None => "while the server saves it".to_owned(),
        };
        log::info!("target {} gets a snapshot {size} at op {}", self.service_id, snapshot.op_id);
        self.send_frame(|w| send(w, &meta))?;
        self.send_chunks(&snapshot)?;
        self.set_state(TargetState::Loading, "");
        Ok(snapshot.op_id)
    }

    fn choose_snapshot(&self, at_least: OpId) -> Result<Snapshot, LinkError> {
        for _ in 0..SNAPSHOT_TRIES {
            // Until it is known which one, everything that is there stays there.
            let all = self.log.oldest().saturating_sub(1);
            self.shared.registry.lock().pin(self.service_id, self.session, Some(all));
            self.note("the source prepares a snapshot");
            let made = self.shared.host.snapshot(at_least, &self.gone, &mut |text| self.note(text));
            self.note("");
            self.check()?;
            let snapshot = made.map_err(|e| LinkError::Host(format!("the source has no snapshot: {e}")))?;
            let op = snapshot.op_id;
            self.shared.registry.lock().pin(self.service_id, self.session, Some(op));
            if self.log.oldest() <= op.saturating_add(1) {
                self.shared.registry_changed();
                return Ok(snapshot);
            }
        }
        Err(LinkError::Host("the source's log was trimmed above each snapshot".to_owned()))
    }

    fn note(&self, text: &str) {
        *self.note.lock() = cut(text.to_owned());
    }

    fn send_chunks(&self, snapshot: &Snapshot) -> Result<(), LinkError> {
        let failed = |e| LinkError::Host(format!("the source has no snapshot: {e}"));
        let mut buf = vec![0u8; CHUNK];
        let mut crc = crc32fast::Hasher::new();
        let mut offset = 0u64;
        let mut checked = Instant::now();
        let mut grown = snapshot.extent.look().map_err(failed)?;
        loop {
            if self.is_gone() || checked.elapsed() >= TICK {
                self.check()?;
                checked = Instant::now();
                let text = match snapshot.extent.total() {
                    Some(len) => format!("{} % of {len} bytes", offset.saturating_mul(100) / len.max(1)),
                    None => format!("{offset} bytes, while the server saves"),
                };
                self.set_state(TargetState::Snapshot, &text);
            }
            if offset > grown.len {
                return Err(failed(format!("its file has shrunk to {} bytes", grown.len)));
            }
            if offset == grown.len {
                if grown.whole {
                    break;
                }
                // The server writes 4 KiB at a time: a while, so that they add up.
                std::thread::sleep(GROWTH);
                grown = snapshot.extent.look().map_err(failed)?;
                continue;
            }
            let want = usize::try_from(grown.len - offset).unwrap_or(CHUNK).min(CHUNK);
            let chunk = buf.get_mut(..want).unwrap_or_default();
            // Before the read: it is the source's disk that is spared.
            self.wait_for(&self.shared.snapshot_pace, want)?;
            snapshot.file.read_exact_at(chunk, offset).map_err(|e| {
                LinkError::Host(format!("the source cannot read its snapshot at {offset}: {e}"))
            })?;
            crc.update(chunk);
            self.wait_for(&self.shared.pace, want)?;
            self.send_frame(|w| w.write(FrameKind::SnapshotChunk, &[&offset.to_le_bytes(), chunk]))?;
            offset += want as u64;
        }
        self.send_frame(|w| send(w, &SnapshotEnd { len: offset, crc: crc.finalize() }))
    }
}

fn read_error(e: ReadError) -> LinkError {
    match e {
        ReadError::Trimmed { .. } | ReadError::Ahead { .. } | ReadError::NotABoundary { .. } => {
            LinkError::refused(RefusalCode::Restart, format!("the source's log: {e}"))
        }
        e => LinkError::Host(format!("the source's log: {e}")),
    }
}
