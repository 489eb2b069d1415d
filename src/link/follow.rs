//! One session of a target: handshake, decision, snapshot, entries.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use oplog_format::{codec, FormatError, Lineage, OpId, Unpacker};
use parking_lot::Mutex;

use super::auth::{random, Side};
use super::client::{Inner, LinkState, Staging, TargetHello};
use super::error::LinkError;
use super::frame::{Expect, FrameKind, FrameReader, FrameWriter};
use super::guard::{self, Decision, Facts};
use super::identity::{can_load, NodeIdentity};
use super::logs;
use super::message::{
    checked, receive, send, Ack, Answer, Greeting, Heartbeat, Hello, NewHistory, Positions, RefusalCode,
    Relation, SnapshotEnd, SnapshotMeta, Want, PROTOCOL,
};
use super::stream::Stream;
use super::thread::{self, panic_text};

const TICK: Duration = Duration::from_millis(250);
/// A buffer above this is given back.
const KEEP_PLAIN: usize = 4 << 20;
/// While a position is behind another, acks look this often.
const CATCHING_UP: Duration = Duration::from_millis(20);

const GREETING: Expect =
    Expect { during: "the greeting", kinds: &[FrameKind::SourceGreeting, FrameKind::Refused] };
const PROOF: Expect = Expect { during: "the proof", kinds: &[FrameKind::Proof, FrameKind::Refused] };
const ANSWER: Expect = Expect { during: "the answer", kinds: &[FrameKind::Answer, FrameKind::Refused] };
const SNAPSHOT: Expect = Expect {
    during: "the snapshot",
    kinds: &[
        FrameKind::Heartbeat,
        FrameKind::SnapshotMeta,
        FrameKind::SnapshotChunk,
        FrameKind::SnapshotEnd,
        FrameKind::Refused,
    ],
};
const IDLE: Expect =
    Expect { during: "the loading of a snapshot", kinds: &[FrameKind::Heartbeat, FrameKind::Refused] };
const STREAM: Expect = Expect {
    during: "the stream",
    kinds: &[FrameKind::Heartbeat, FrameKind::Entries, FrameKind::History, FrameKind::Refused],
};

/// Runs one session; returns why it ended.
pub(crate) fn session(
    inner: &Arc<Inner>,
    stream: &Stream,
    cannot_rebuild: &mut Option<OpId>,
) -> Result<(), LinkError> {
    let mut reader = FrameReader::new(stream.try_clone()?, GREETING);
    let mut writer = FrameWriter::new(stream.try_clone()?, inner.config.timeout)?;
    let hello = inner.host.hello();
    let outcome = handshake(inner, &mut reader, &mut writer, &hello);
    let (source, answer) = match outcome {
        Ok(done) => done,
        Err(e) => {
            stream.shutdown();
            return Err(e);
        }
    };
    inner.source_is(&source, Some(answer.written));
    let acks = Acks::start(inner, stream, writer)?;
    let outcome =
        Session { inner, reader, acks: &acks, source, heard_note: String::new(), check: Check::default() }
            .go_on(&hello, &answer, cannot_rebuild);
    acks.stop(stream);
    let rebuild = match outcome {
        Err(LinkError::Rebuild(to)) => to,
        other => return other,
    };
    // Without a connection: it takes what it takes, and the source keeps its log for this target meanwhile.
    inner.set_state(LinkState::Rebuilding { to: rebuild });
    let rebuilt = inner.host.rebuild_to(rebuild).map_err(LinkError::Host)?;
    *cannot_rebuild = (!rebuilt).then_some(rebuild);
    Err(LinkError::Rebuild(rebuild))
}

fn handshake(
    inner: &Inner,
    reader: &mut FrameReader,
    writer: &mut FrameWriter,
    hello: &TargetHello,
) -> Result<(NodeIdentity, Answer), LinkError> {
    let deadline = Instant::now() + inner.config.connect_timeout;
    let secret = inner.config.secret.as_ref();
    let own = Greeting {
        protocol: PROTOCOL,
        keyed: secret.is_some(),
        nonce: random()?,
        node: hello.node,
        identity: hello.identity.clone(),
    };
    let own_bytes = codec::encode(&own)?;
    writer.write(FrameKind::TargetGreeting, &[&own_bytes])?;
    expect(inner, reader, deadline)?;
    let their_bytes = reader.body().to_vec();
    let theirs: Greeting = codec::decode(&their_bytes)?;
    inner.source_is(&theirs.identity, None);
    if theirs.protocol != PROTOCOL {
        let reason = format!("the source speaks link protocol {}, the target {PROTOCOL}", theirs.protocol);
        return Err(LinkError::refused(RefusalCode::Protocol, reason));
    }
    if theirs.keyed != secret.is_some() {
        let reason = "only one side has a secret";
        return Err(LinkError::refused(RefusalCode::Secret, reason));
    }
    if let Some(secret) = secret {
        reader.expect(PROOF);
        writer.write(FrameKind::Proof, &[&secret.prove(Side::Target, &own_bytes, &their_bytes)])?;
        expect(inner, reader, deadline)?;
        if !secret.verify(Side::Source, &own_bytes, &their_bytes, reader.body()) {
            let reason = "the source's secret is not the target's";
            return Err(LinkError::refused(RefusalCode::Secret, reason));
        }
    }
    reader.expect(ANSWER);
    let message = Hello {
        lineage: hello.lineage.clone(),
        last_op: hello.last_op,
        durable: inner.host.durable().min(hello.last_op),
        fresh: hello.fresh,
        consent: hello.consent,
        codecs: inner.config.codecs,
    };
    send(writer, &message)?;
    expect(inner, reader, deadline)?;
    let answer: Answer = receive(reader)?;
    // The source looks at this first; here it counts.
    can_load(&theirs.identity, &hello.identity)
        .map_err(|reason| LinkError::refused(RefusalCode::Version, reason))?;
    let answer = Answer { lineage: checked(answer.lineage)?, ..answer };
    Ok((theirs.identity, answer))
}

/// Waits for the next frame of the handshake.
fn expect(inner: &Inner, reader: &mut FrameReader, deadline: Instant) -> Result<(), LinkError> {
    match reader.wait(deadline, &inner.stop)? {
        FrameKind::Refused => Err(LinkError::Refused(receive(reader)?)),
        _ => Ok(()),
    }
}

/// Sends acks from a thread of its own, so that whatever the session waits for, the source hears of it.
struct Acks {
    writer: Arc<Mutex<FrameWriter>>,
    streaming: Arc<AtomicBool>,
    poke: Sender<()>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    over: Arc<AtomicBool>,
}

impl Acks {
    fn start(inner: &Arc<Inner>, stream: &Stream, writer: FrameWriter) -> Result<Self, LinkError> {
        let (poke, poked) = crossbeam_channel::bounded(1);
        let acks = Self {
            writer: Arc::new(Mutex::new(writer)),
            streaming: Arc::new(AtomicBool::new(false)),
            poke,
            thread: Mutex::new(None),
            over: Arc::new(AtomicBool::new(false)),
        };
        let beat = AckLoop {
            inner: Arc::clone(inner),
            writer: Arc::clone(&acks.writer),
            streaming: Arc::clone(&acks.streaming),
            over: Arc::clone(&acks.over),
        };
        let (ends, host) = (stream.try_clone()?, Arc::clone(&inner.host));
        let handle = thread::spawn(
            "dr-link-ack",
            move || {
                // Whatever ended it: the session sees the connection end.
                if let Err(e) = beat.run(&poked) {
                    log::debug!("acks ended: {e}");
                }
                ends.shutdown();
            },
            move |what| host.panicked("dr-link-ack", what),
        )?;
        *acks.thread.lock() = Some(handle);
        Ok(acks)
    }

    fn poke(&self) {
        // Full: it is about to look anyway.
        let _ = self.poke.try_send(());
    }

    fn stop(&self, stream: &Stream) {
        self.over.store(true, Ordering::Release);
        self.poke();
        // What was said last still arrives: nothing follows it.
        stream.finish_writing();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            thread::join(thread);
        }
        stream.shutdown();
    }
}

struct AckLoop {
    inner: Arc<Inner>,
    writer: Arc<Mutex<FrameWriter>>,
    streaming: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
}

impl AckLoop {
    fn run(&self, poked: &Receiver<()>) -> Result<(), LinkError> {
        let heartbeat = self.inner.config.heartbeat();
        let mut told = None;
        let mut at = Instant::now();
        loop {
            let now = self.positions();
            if now != told || at.elapsed() >= heartbeat {
                send(&mut self.writer.lock(), &Ack { positions: now })?;
                told = now;
                at = Instant::now();
            }
            let wait = match now {
                Some(p) if p.durable < p.received || p.applied < p.received => CATCHING_UP.min(heartbeat),
                _ => heartbeat.saturating_sub(at.elapsed()),
            };
            match poked.recv_timeout(wait) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            if self.over.load(Ordering::Acquire) {
                return Ok(());
            }
        }
    }

    fn positions(&self) -> Option<Positions> {
        if !self.streaming.load(Ordering::Acquire) {
            return None;
        }
        let received = self.inner.host.log().written();
        // Read behind it, and never ahead of it.
        let durable = self.inner.host.durable().min(received);
        let applied = self.inner.host.applied().min(received);
        Some(Positions { received, durable, applied })
    }
}

struct Session<'a> {
    inner: &'a Arc<Inner>,
    reader: FrameReader,
    acks: &'a Acks,
    source: NodeIdentity,
    heard_note: String,
    check: Check,
}

impl Session<'_> {
    fn go_on(
        mut self,
        hello: &TargetHello,
        answer: &Answer,
        cannot_rebuild: &mut Option<OpId>,
    ) -> Result<(), LinkError> {
        let relation =
            guard::relation(&answer.lineage, answer.oldest, answer.written, &hello.lineage, hello.last_op);
        let (tail, forked_at) = match relation {
            Relation::Forked { common, .. } if !hello.fresh => (self.inner.host.tail(common), Some(common)),
            _ => (None, None),
        };
        let facts = Facts {
            fresh: hello.fresh,
            consent: hello.consent,
            tail,
            oldest: answer.oldest,
            cannot_rebuild: forked_at.is_some() && forked_at == *cannot_rebuild,
            fork_tolerance_ms: u64::try_from(self.inner.config.fork_tolerance.as_millis())
                .unwrap_or(u64::MAX),
        };
        match guard::decide(relation, &facts) {
            Decision::Stream { from } => self.stream(from),
            Decision::Snapshot { why } => {
                log::info!("full sync from {}: {why}", self.source);
                let op = self.fetch()?;
                *cannot_rebuild = None;
                self.stream(op.saturating_add(1))
            }
            Decision::Rebuild { to } => {
                log::warn!("own ops above op {to} are not in the source: set aside, rebuilding to that op");
                self.want(&Want::Rebuild { to })?;
                Err(LinkError::Rebuild(to))
            }
            Decision::Hold { reason } => {
                self.want(&Want::Held { reason: super::message::cut(reason.clone()) })?;
                Err(LinkError::Held(reason))
            }
        }
    }

    fn want(&self, want: &Want) -> Result<(), LinkError> {
        send(&mut self.acks.writer.lock(), want)
    }

    /// The next frame that is not a heartbeat.
    fn next(&mut self) -> Result<FrameKind, LinkError> {
        loop {
            match self.poll()? {
                Some(FrameKind::Heartbeat) | None => {}
                Some(kind) => return Ok(kind),
            }
        }
    }

    fn poll(&mut self) -> Result<Option<FrameKind>, LinkError> {
        if self.inner.stopping() {
            return Err(LinkError::Stopped);
        }
        match self.reader.poll()? {
            Some(FrameKind::Refused) => Err(LinkError::Refused(receive(&self.reader)?)),
            Some(FrameKind::Heartbeat) => {
                let beat: Heartbeat = receive(&self.reader)?;
                self.inner.heard(&beat);
                self.heard_note = beat.note;
                Ok(Some(FrameKind::Heartbeat))
            }
            Some(kind) => Ok(Some(kind)),
            None if self.reader.heard().elapsed() > self.inner.config.timeout => {
                let ms = u64::try_from(self.inner.config.timeout.as_millis()).unwrap_or(u64::MAX);
                Err(LinkError::Silent { ms })
            }
            None => Ok(None),
        }
    }

    // ---- entries

    fn stream(&mut self, from: OpId) -> Result<(), LinkError> {
        self.reader.expect(STREAM);
        self.reader.set_tick(TICK.min(self.inner.config.heartbeat()))?;
        self.want(&Want::Stream { from })?;
        self.acks.streaming.store(true, Ordering::Release);
        self.acks.poke();
        self.inner.set_state(LinkState::Streaming);
        log::info!("following {} from op {from}", self.source);
        let mut expected = from;
        loop {
            match self.next()? {
                FrameKind::Entries => {
                    let (first, last) = self.check.entries(self.reader.body(), expected)?;
                    self.inner.host.append(self.reader.body(), first, last).map_err(LinkError::Host)?;
                    expected = last.saturating_add(1);
                    self.inner.received(last);
                    // More is here: one ack will do for all of it.
                    if !self.reader.has_more() {
                        self.acks.poke();
                    }
                }
                FrameKind::History => {
                    let new: NewHistory = receive(&self.reader)?;
                    if new.first_op != expected {
                        return Err(LinkError::NotContiguous { expected, got: new.first_op });
                    }
                    self.inner.host.begin_history(new.history, new.first_op).map_err(LinkError::Host)?;
                }
                kind => return Err(LinkError::Unexpected { kind: kind as u8, during: STREAM.during }),
            }
        }
    }

    // ---- snapshot

    fn fetch(&mut self) -> Result<OpId, LinkError> {
        self.reader.expect(SNAPSHOT);
        self.reader.set_tick(TICK.min(self.inner.config.heartbeat()))?;
        self.want(&Want::Snapshot)?;
        self.inner.host.snapshot_progress(0, 0);
        self.show(0, 0);
        let meta = self.meta()?;
        let mut staging = self.inner.host.begin_snapshot(&meta).map_err(LinkError::Host)?;
        let done = match self.chunks(&meta, staging.as_mut()) {
            Ok(()) => self.load(staging),
            Err(e) => {
                drop(staging);
                Err(e)
            }
        };
        if let Err(e) = done {
            self.inner.host.drop_snapshot();
            return Err(e);
        }
        Ok(meta.op_id)
    }

    fn show(&self, received: u64, total: u64) {
        self.inner.set_state(LinkState::Snapshot { note: self.heard_note.clone(), received, total });
    }

    fn meta(&mut self) -> Result<SnapshotMeta, LinkError> {
        loop {
            match self.poll()? {
                Some(FrameKind::SnapshotMeta) => break,
                Some(FrameKind::Heartbeat) => self.show(0, 0),
                Some(kind) => {
                    return Err(LinkError::Unexpected { kind: kind as u8, during: SNAPSHOT.during });
                }
                None => {}
            }
        }
        let meta: SnapshotMeta = receive(&self.reader)?;
        let lineage: Lineage = checked(meta.lineage)?;
        let meta = SnapshotMeta { lineage, ..meta };
        let saved = NodeIdentity { rdb_version: meta.rdb_version, ..self.source.clone() };
        can_load(&saved, &self.inner.host.hello().identity)
            .map_err(|reason| LinkError::refused(RefusalCode::Version, reason))?;
        Ok(meta)
    }

    fn chunks(&mut self, meta: &SnapshotMeta, staging: &mut dyn Staging) -> Result<(), LinkError> {
        let mut crc = crc32fast::Hasher::new();
        let mut received = 0u64;
        let (longest, total) = (meta.len.unwrap_or(u64::MAX), meta.len.unwrap_or(0));
        let wrong = |what, expected, got| Err(LinkError::Transfer { what, expected, got });
        loop {
            match self.next()? {
                FrameKind::SnapshotChunk => {
                    let body = self.reader.body();
                    let short =
                        FormatError::Short { what: "snapshot chunk", needed: 8, got: body.len() as u64 };
                    let (offset, bytes) = body.split_first_chunk::<8>().ok_or(short)?;
                    let offset = u64::from_le_bytes(*offset);
                    if offset != received {
                        return wrong("snapshot chunk offset", received, offset);
                    }
                    let bytes_then = received.saturating_add(bytes.len() as u64);
                    if bytes_then > longest {
                        return wrong("snapshot length", longest, bytes_then);
                    }
                    crc.update(bytes);
                    staging.write(bytes).map_err(LinkError::Host)?;
                    received = bytes_then;
                    self.inner.host.snapshot_progress(received, total);
                    self.heard_note.clear();
                    self.show(received, total);
                }
                FrameKind::SnapshotEnd => {
                    let end: SnapshotEnd = receive(&self.reader)?;
                    if end.len != received || meta.len.is_some_and(|len| len != received) {
                        return wrong("snapshot length", meta.len.unwrap_or(end.len), received);
                    }
                    let computed = crc.finalize();
                    if computed != end.crc {
                        return wrong("snapshot checksum", u64::from(end.crc), u64::from(computed));
                    }
                    return Ok(());
                }
                kind => {
                    return Err(LinkError::Unexpected { kind: kind as u8, during: SNAPSHOT.during });
                }
            }
        }
    }

    /// Lets the host load the snapshot, and keeps reading heartbeats meanwhile. A connection that ends does
    /// not end the loading: everything it needs is here.
    fn load(&mut self, staging: Box<dyn Staging>) -> Result<(), LinkError> {
        self.inner.set_state(LinkState::Loading);
        self.reader.expect(IDLE);
        // It is the end of the load that is waited for; the link is only looked at.
        self.reader.set_tick(Duration::from_millis(1))?;
        let host = &self.inner.host;
        let (done, outcome) = crossbeam_channel::bounded::<Result<(), String>>(1);
        let mut broken = None;
        let loaded = std::thread::scope(|scope| {
            let body = move || {
                let load = || staging.finish();
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(load));
                let result = result.unwrap_or_else(|payload| {
                    let what = panic_text(payload.as_ref());
                    log::error!("thread dr-link-load panicked: {what}");
                    host.panicked("dr-link-load", &what);
                    Err(format!("loading panicked: {what}"))
                });
                drop(done.send(result));
            };
            std::thread::Builder::new().name("dr-link-load".to_owned()).spawn_scoped(scope, body)?;
            loop {
                match outcome.recv_timeout(CATCHING_UP) {
                    Ok(result) => return result.map_err(LinkError::Host),
                    Err(RecvTimeoutError::Disconnected) => {
                        return Err(LinkError::Host("the loading thread has gone".to_owned()));
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                }
                // The host is told to stop by its own means: this waits for it.
                if broken.is_none() {
                    broken = self.poll().err();
                }
            }
        });
        loaded?;
        match broken {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }
}

/// Looks at entries before they are appended.
#[derive(Default)]
struct Check {
    unpacker: Unpacker,
    plain: Vec<u8>,
}

impl Check {
    /// Whether `frames` are whole entries that begin at `expected` and follow one another; compressed ones are
    /// decompressed for it, so that what is appended can be applied. Returns the first and the last op id.
    fn entries(&mut self, frames: &[u8], expected: OpId) -> Result<(OpId, OpId), LinkError> {
        let mut next = expected;
        let mut broken = None;
        logs::each_stored(frames, |entry| {
            let first = entry.header.first_op();
            if first != next && broken.is_none() {
                broken = Some(LinkError::NotContiguous { expected: next, got: first });
            }
            next = entry.header.last_op().saturating_add(1);
            if entry.header.codec.is_some() {
                self.plain.clear();
                self.unpacker.unpack(&entry, &mut self.plain)?;
            }
            Ok(())
        })?;
        if self.plain.capacity() > KEEP_PLAIN {
            self.plain = Vec::new();
        }
        match broken {
            Some(e) => Err(e),
            None if next == expected => {
                Err(LinkError::Transfer { what: "entries in a frame", expected: 1, got: 0 })
            }
            None => Ok((expected, next.saturating_sub(1))),
        }
    }
}
