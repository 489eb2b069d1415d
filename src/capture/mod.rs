//! Capture: the replication stream of the own server, cut into entries of the oplog.
//!
//! [`attach()`] makes the module a replication client of its own server without a fork, [`Tap::run`] reads the
//! stream and hands entries on. [`scanner`] finds where ops end, [`builder`] makes entries of them; neither
//! knows a socket.
//!
//! | thread | does | ends when |
//! |---|---|---|
//! | tap (whoever calls [`Tap::run`]) | reads the stream, hands entries to the [`TapSink`], ACKs | the server closes the stream, [`TapStopper::stop`], the sink says so |

pub mod attach;
pub mod builder;
mod error;
mod repl_info;
pub mod scanner;
pub mod settings;
pub mod tap;

pub use attach::{attach, AttachRequest, Attached, Resume};
pub use builder::{EntryBuilder, FeedOutcome};
pub use error::AttachError;
pub use repl_info::Role;
pub use settings::{own_address, repair_settings, NoJournal, SettingsJournal};
pub use tap::{Stop, Tap, TapEnd, TapEndReason, TapSink, TapStopper};
