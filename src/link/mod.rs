//! The link: the connection from a target to a source's DR endpoint.
//!
//! A target opens it, both sides prove who they are, the target says where it stands and decides by the
//! [`guard`] what to do about what the source answers. Entries travel as they are stored, so that their
//! checksums hold from end to end; a damaged one ends the connection and is never handed on. The byte tables are
//! in `docs/protocol.md`.
//!
//! | thread | does | may block on |
//! |---|---|---|
//! | dr-endpoint | accepts | its listening socket |
//! | dr-handshake | one handshake, 5 s at most | its socket |
//! | dr-target-N | sends snapshot and entries to target N | its socket, new entries, the host's snapshot |
//! | dr-acks-N | hears target N | its socket |
//! | dr-link | pulls from the source | its socket, the host's append |
//! | dr-link-ack | sends acks | its socket |
//! | dr-link-load | lets the host load a snapshot | the host |
//! | dr-connect | looks a name up and connects | the network |

mod admit;
pub mod auth;
pub mod client;
pub mod endpoint;
pub mod error;
mod follow;
pub mod frame;
pub mod guard;
pub mod identity;
mod logs;
pub mod message;
mod pace;
pub mod registry;
mod serve;
pub mod stream;
mod thread;
mod trail;

pub use auth::Secret;
pub use client::{
    is_endpoint, Client, ClientConfig, ClientHandle, LinkState, LinkStatus, Staging, TargetHello, TargetHost,
};
pub use endpoint::{
    Endpoint, EndpointConfig, EndpointHandle, Extent, Grown, Growth, Serving, Snapshot, SourceHost,
};
pub use error::LinkError;
pub use identity::{NodeId, NodeIdentity, ServerKind};
pub use logs::{db_behind, entry_from, holds_same, holds_start, tail_above};
pub use message::{Consent, Refusal, RefusalCode, SnapshotMeta};
pub use registry::{Registered, TargetState, TargetStatus};
