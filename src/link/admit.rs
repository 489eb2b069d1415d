//! The handshake at the source, up to its answer.

use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;
use std::time::{Duration, Instant};

use oplog_format::codec;

use super::auth::{random, Side};
use super::endpoint::{Serving, Shared};
use super::error::LinkError;
use super::frame::{Expect, FrameKind, FrameReader, FrameWriter};
use super::guard;
use super::identity::{can_load, NodeIdentity};
use super::message::{
    checked, receive, send, Answer, Greeting, Hello, Refusal, RefusalCode, Relation, PROTOCOL,
};
use super::registry::{Candidate, Wire};
use super::stream::Stream;
use crate::store::now_ms;
use crate::store::Log;

/// A target that was let in.
pub(crate) struct Admitted {
    pub stream: Stream,
    pub reader: FrameReader,
    pub writer: FrameWriter,
    pub gone: Arc<AtomicBool>,
    pub service_id: u8,
    pub session: u64,
    pub identity: NodeIdentity,
    pub codecs: u32,
    pub peer: SocketAddr,
    pub log: Arc<Log>,
    pub relation: Relation,
}

const GREETING: Expect = Expect { during: "the greeting", kinds: &[FrameKind::TargetGreeting] };
const PROOF: Expect = Expect { during: "the proof", kinds: &[FrameKind::Proof, FrameKind::Refused] };
const HELLO: Expect = Expect { during: "the hello", kinds: &[FrameKind::Hello, FrameKind::Refused] };

/// Runs the handshake; what goes wrong is told to the other side and logged here.
pub(crate) fn handshake(shared: &Arc<Shared>, stream: Stream, peer: SocketAddr) -> Option<Admitted> {
    let deadline = Instant::now() + shared.config.handshake_timeout;
    let parts = stream.try_clone().map_err(LinkError::from).and_then(|s| {
        Ok((FrameReader::new(s, GREETING), FrameWriter::new(stream.try_clone()?, left(deadline))?))
    });
    let (mut reader, mut writer) = match parts {
        Ok(parts) => parts,
        Err(e) => {
            log::error!("connection from {peer}: {e}");
            return None;
        }
    };
    match run(shared, &stream, &mut reader, &mut writer, peer, deadline) {
        Ok(facts) => Some(Admitted {
            stream,
            reader,
            writer,
            gone: facts.gone,
            service_id: facts.identity.service_id,
            session: facts.session,
            identity: facts.identity,
            codecs: facts.codecs,
            peer,
            log: facts.log,
            relation: facts.relation,
        }),
        Err(LinkError::Refused(refusal)) => {
            tell(&refusal, peer);
            if refusal.code.is_lasting() {
                shared.host.refused(&peer.to_string(), &refusal.reason);
            }
            // Told on a best-effort basis: the target may have gone.
            drop(send(&mut writer, &refusal));
            linger(&stream, &mut reader, &shared.stop);
            None
        }
        Err(e) => {
            if !shared.stopping() {
                log::warn!("handshake with {peer} failed: {e}");
            }
            stream.shutdown();
            None
        }
    }
}

fn tell(refusal: &Refusal, peer: SocketAddr) {
    if refusal.code.is_lasting() {
        log::warn!("target at {peer} refused: {}", refusal.reason);
    } else {
        log::info!("target at {peer} sent away: {}", refusal.reason);
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// Closes so that what was written last arrives: data unread at a close would make the system throw it away.
pub(crate) fn linger(stream: &Stream, reader: &mut FrameReader, stop: &AtomicBool) {
    const ANYTHING_LEFT: Expect = Expect { during: "closing", kinds: &[] };
    stream.finish_writing();
    reader.expect(ANYTHING_LEFT);
    drop(reader.wait(Instant::now() + Duration::from_secs(1), stop));
    stream.shutdown();
}

struct Facts {
    gone: Arc<AtomicBool>,
    identity: NodeIdentity,
    codecs: u32,
    session: u64,
    log: Arc<Log>,
    relation: Relation,
}

fn run(
    shared: &Arc<Shared>,
    stream: &Stream,
    reader: &mut FrameReader,
    writer: &mut FrameWriter,
    peer: SocketAddr,
    deadline: Instant,
) -> Result<Facts, LinkError> {
    let theirs = greet(shared, reader, writer, deadline)?;
    reader.expect(HELLO);
    if reader.wait(deadline, &shared.stop)? == FrameKind::Refused {
        return Err(LinkError::Closed);
    }
    let hello: Hello = receive(reader)?;
    let lineage = checked(hello.lineage.clone())?;
    let log = ready(shared)?;
    let own = shared.host.identity();
    if theirs.node == shared.config.node {
        let reason = format!("this is the target's own endpoint, service_id {}", own.service_id);
        return Err(LinkError::refused(RefusalCode::OwnId, reason));
    }
    let gone = Arc::new(AtomicBool::new(false));
    let who = Candidate {
        node: theirs.node,
        identity: theirs.identity.clone(),
        addr: peer.to_string(),
        consent: hello.consent,
        wire: Wire { stream: stream.try_clone()?, gone: Arc::clone(&gone) },
    };
    let service_id = theirs.identity.service_id;
    let addr = shared.addr.to_string();
    let session =
        shared.registry.lock().admit(who, (own.service_id, &addr), now_ms()).map_err(LinkError::Refused)?;
    // Everything that is there stays there until it is known what the target can use.
    let keep = |op| shared.registry.lock().pin(service_id, session, op);
    keep(Some(log.oldest().saturating_sub(1)));
    let (own_lineage, oldest, written) = (log.lineage(), log.oldest(), log.written());
    let relation = guard::relation(&own_lineage, oldest, written, &lineage, hello.last_op);
    let durable = hello.durable.min(hello.last_op);
    keep(match relation {
        _ if hello.fresh => None,
        Relation::Continue { .. } => Some(durable),
        Relation::Forked { common, .. } => Some(durable.min(common)),
        Relation::Trimmed { .. } | Relation::Unrelated => None,
    });
    shared.registry_changed();
    let answer = Answer { lineage: own_lineage, oldest, written, relation };
    if let Err(e) = send(writer, &answer) {
        shared.registry.lock().leave(service_id, session, &e.to_string(), now_ms());
        return Err(e);
    }
    writer.set_timeout(shared.config.timeout)?;
    Ok(Facts { gone, identity: theirs.identity, codecs: hello.codecs, session, log, relation })
}

fn ready(shared: &Shared) -> Result<Arc<Log>, LinkError> {
    match shared.host.serving() {
        Serving::Ready => shared
            .host
            .log()
            .ok_or_else(|| LinkError::refused(RefusalCode::NotReady, "the source's log is not open yet")),
        Serving::NotReady(reason) => {
            Err(LinkError::refused(RefusalCode::NotReady, format!("the source is not ready: {reason}")))
        }
        Serving::Redirect(endpoints) => Err(LinkError::Refused(Refusal::redirect(&endpoints))),
    }
}

/// Greetings and proofs. Afterwards the other side is who it says, as far as a secret can tell.
fn greet(
    shared: &Shared,
    reader: &mut FrameReader,
    writer: &mut FrameWriter,
    deadline: Instant,
) -> Result<Greeting, LinkError> {
    reader.wait(deadline, &shared.stop)?;
    let their_bytes = reader.body().to_vec();
    // The version stands first in every version of the message.
    let version = their_bytes.get(..2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes);
    if version != PROTOCOL {
        let reason = format!("the target speaks link protocol {version}, the source {PROTOCOL}");
        return Err(LinkError::refused(RefusalCode::Protocol, reason));
    }
    let theirs: Greeting = codec::decode(&their_bytes)?;
    let secret = shared.config.secret.as_ref();
    if theirs.keyed != secret.is_some() {
        let (with, without) = if theirs.keyed { ("target", "source") } else { ("source", "target") };
        let reason = format!("the {with} has a secret and the {without} has none");
        return Err(LinkError::refused(RefusalCode::Secret, reason));
    }
    let own = Greeting {
        protocol: PROTOCOL,
        keyed: secret.is_some(),
        nonce: random()?,
        node: shared.config.node,
        identity: shared.host.identity(),
    };
    let own_bytes = codec::encode(&own)?;
    writer.write(FrameKind::SourceGreeting, &[&own_bytes])?;
    if let Some(secret) = secret {
        reader.expect(PROOF);
        if reader.wait(deadline, &shared.stop)? == FrameKind::Refused {
            return Err(LinkError::Closed);
        }
        if !secret.verify(Side::Target, &their_bytes, &own_bytes, reader.body()) {
            return Err(LinkError::refused(RefusalCode::Secret, "the target's secret is not the source's"));
        }
        let proof = secret.prove(Side::Source, &their_bytes, &own_bytes);
        writer.write(FrameKind::Proof, &[&proof])?;
    }
    can_load(&own.identity, &theirs.identity).map_err(|r| LinkError::refused(RefusalCode::Version, r))?;
    Ok(theirs)
}
