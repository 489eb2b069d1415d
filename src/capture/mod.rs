//! Capture: the replication stream of the own server, cut into entries of the oplog.
//!
//! [`scanner`] finds where ops end, [`builder`] makes entries of them. Neither knows a socket.

pub mod builder;
pub mod scanner;

pub use builder::{EntryBuilder, FeedOutcome};
