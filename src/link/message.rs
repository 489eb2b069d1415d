//! Control messages. The tables are in `docs/protocol.md`.

use oplog_format::{codec, History, Lineage, OpId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::auth::NONCE_LEN;
use super::error::LinkError;
use super::frame::{FrameKind, FrameReader, FrameWriter};
use super::identity::{NodeId, NodeIdentity};

/// Version of the protocol. Both sides must speak the same.
pub const PROTOCOL: u16 = 2;
/// Longest text in a message; longer ones are cut.
pub const MAX_TEXT: usize = 1024;
/// Most endpoints in a redirect.
pub const MAX_REDIRECTS: usize = 16;

/// First message of either side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// [`PROTOCOL`] of the sender.
    pub protocol: u16,
    /// Whether the sender has a secret and asks for a proof.
    pub keyed: bool,
    /// Random, new for each connection.
    pub nonce: [u8; NONCE_LEN],
    /// The node.
    pub node: NodeId,
    /// What runs there.
    pub identity: NodeIdentity,
}

/// What an operator has said to a target, not to be taken from a stored setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Consent {
    /// Nothing: the link was configured or resumed.
    None,
    /// DR.LINK, typed by hand just now.
    Link,
    /// DR.RESYNC: the source's data is to replace the target's.
    Resync,
}

/// Where a target stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Its lineage.
    pub lineage: Lineage,
    /// Last op id in its log.
    pub last_op: OpId,
    /// Last op id that is safe on its disk.
    pub durable: OpId,
    /// It holds no keys and no history but that of its own start.
    pub fresh: bool,
    /// What its operator has said.
    pub consent: Consent,
    /// What it can decompress, as bits of [`oplog_format::Codec::bit`].
    pub codecs: u32,
}

/// How a target stands to a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Relation {
    /// The target's last op is in the source's lineage, and the log reaches back.
    Continue {
        /// The op that comes next.
        from: OpId,
    },
    /// It is, but the log begins above it.
    Trimmed {
        /// First op that the log still has.
        oldest: OpId,
    },
    /// The target holds ops that the source has not.
    Forked {
        /// Last op that both hold.
        common: OpId,
        /// Bytes of the target's log above it.
        target_bytes: u64,
    },
    /// They share no history.
    Unrelated,
}

/// Where the source stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Its lineage.
    pub lineage: Lineage,
    /// First op id that its log has.
    pub oldest: OpId,
    /// Last op id in its log.
    pub written: OpId,
    /// How it sees the target.
    pub relation: Relation,
}

/// What the target wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Want {
    /// Entries from this op on.
    Stream {
        /// The first.
        from: OpId,
    },
    /// A snapshot, and the entries above it.
    Snapshot,
    /// Nothing for now: the target keeps its data and waits for its operator.
    Held {
        /// Why.
        reason: String,
    },
    /// Nothing for now: the target rebuilds itself to this op and comes back.
    Rebuild {
        /// Where to.
        to: OpId,
    },
}

/// Sign of life of the source, each second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Last op id in its log.
    pub written: OpId,
    /// Its clock, Unix time in milliseconds.
    pub clock_ms: u64,
    /// How long the target's next op has waited to be applied, in milliseconds.
    pub lag_ms: u64,
    /// What it does while nothing else comes (making a snapshot); empty otherwise.
    pub note: String,
}

/// Sign of life of the target, each second and after appends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Positions of a target that streams; `None` while it loads a snapshot.
    pub positions: Option<Positions>,
}

/// How far a target is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Positions {
    /// Last op in its log.
    pub received: OpId,
    /// Last op that is safe on its disk.
    pub durable: OpId,
    /// Last op that its dataset holds.
    pub applied: OpId,
}

/// A new history begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewHistory {
    /// The history.
    pub history: History,
    /// Its first op id; the next entry begins there.
    pub first_op: OpId,
}

/// What a snapshot is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotMeta {
    /// Last op that it holds.
    pub op_id: OpId,
    /// Length of the RDB in bytes; `None` where the source is still saving it.
    pub len: Option<u64>,
    /// Lineage up to that op.
    pub lineage: Lineage,
    /// Version of the RDB.
    pub rdb_version: u16,
    /// Where it was made.
    pub source: NodeIdentity,
}

/// Behind the last chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotEnd {
    /// Bytes sent: all of the RDB.
    pub len: u64,
    /// CRC32 of all of them.
    pub crc: u32,
}

/// Why one side does not serve the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalCode {
    /// Other protocol version.
    Protocol,
    /// Only one side has a secret, or they differ.
    Secret,
    /// The target cannot load what the source saves.
    Version,
    /// The target's service_id is the source's own.
    OwnId,
    /// Another node holds the target's service_id.
    Duplicate,
    /// As many targets as can be.
    Full,
    /// An operator has cut this target at the source.
    Cut,
    /// The source cannot serve yet.
    NotReady,
    /// Ask there instead.
    Redirect,
    /// The stream cannot go on; a new handshake finds out how.
    Restart,
    /// The sender stops.
    Stopping,
    /// Something failed at the sender.
    Failed,
}

impl RefusalCode {
    /// Whether only a change at one of the sites can help, so that asking again soon is of no use.
    #[must_use]
    pub fn is_lasting(self) -> bool {
        match self {
            Self::Protocol | Self::Secret | Self::Version | Self::OwnId => true,
            Self::Duplicate | Self::Full | Self::Cut | Self::Failed => true,
            Self::NotReady | Self::Redirect | Self::Restart | Self::Stopping => false,
        }
    }
}

/// A refusal with its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What kind.
    pub code: RefusalCode,
    /// For people.
    pub reason: String,
    /// Endpoints to ask instead, with [`RefusalCode::Redirect`].
    pub endpoints: Vec<String>,
}

impl Refusal {
    /// A refusal; a long reason is cut.
    #[must_use]
    pub fn new(code: RefusalCode, reason: impl Into<String>) -> Self {
        Self { code, reason: cut(reason.into()), endpoints: Vec::new() }
    }

    /// Sends the target elsewhere.
    #[must_use]
    pub fn redirect(endpoints: &[String]) -> Self {
        let endpoints: Vec<String> =
            endpoints.iter().take(MAX_REDIRECTS).filter(|e| e.len() <= 128).cloned().collect();
        let reason = format!("this node is not the master of its shard, ask {}", endpoints.join(", "));
        Self { endpoints, ..Self::new(RefusalCode::Redirect, reason) }
    }
}

/// Cuts a text to [`MAX_TEXT`] bytes.
pub(crate) fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let mut end = MAX_TEXT;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}

/// A message and the frame that it travels in.
pub trait Message: Serialize + DeserializeOwned {
    /// The frame.
    const KIND: FrameKind;
}

macro_rules! messages {
    ($($message:ty => $kind:ident),* $(,)?) => {
        $(impl Message for $message {
            const KIND: FrameKind = FrameKind::$kind;
        })*
    };
}

messages! {
    Hello => Hello,
    Answer => Answer,
    Want => Want,
    Heartbeat => Heartbeat,
    Ack => Ack,
    NewHistory => History,
    SnapshotMeta => SnapshotMeta,
    SnapshotEnd => SnapshotEnd,
    Refusal => Refused,
}

/// Writes a message.
///
/// # Errors
/// What the writer says.
pub fn send<M: Message>(writer: &mut FrameWriter, message: &M) -> Result<(), LinkError> {
    let body = codec::encode(message)?;
    writer.write(M::KIND, &[&body])
}

/// Decodes the body that `reader` returned as a message of this kind. A lineage in it is checked like one that
/// is built here.
///
/// # Errors
/// [`LinkError::Damaged`].
pub fn receive<M: Message>(reader: &FrameReader) -> Result<M, LinkError> {
    Ok(codec::decode(reader.body())?)
}

/// Checks a lineage that came from outside.
///
/// # Errors
/// [`LinkError::Damaged`] where its items fall or are too many.
pub fn checked(lineage: Lineage) -> Result<Lineage, LinkError> {
    Ok(Lineage::from_items(lineage.items().to_vec())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::frame::MAX_CONTROL;
    use oplog_format::position::LineageItem;

    #[test]
    fn a_full_lineage_fits_into_a_hello() {
        let item = |n: u64| LineageItem {
            history: History::from_bytes(format!("{n:040x}").as_bytes()).unwrap(),
            first_op: n,
        };
        let lineage = Lineage::from_items((0..Lineage::MAX_ITEMS as u64).map(item).collect()).unwrap();
        let hello =
            Hello { lineage, last_op: 1, durable: 1, fresh: false, consent: Consent::None, codecs: 1 };
        let body = codec::encode(&hello).unwrap();
        assert!(body.len() < MAX_CONTROL as usize, "{}", body.len());
        assert_eq!(codec::decode::<Hello>(&body).unwrap(), hello);
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let refusal = Refusal::new(RefusalCode::Failed, "\u{e4}".repeat(MAX_TEXT));
        assert!(refusal.reason.len() <= MAX_TEXT);
        assert!(refusal.reason.chars().all(|c| c == '\u{e4}'));
    }
}
