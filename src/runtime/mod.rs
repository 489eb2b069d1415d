//! Wires capture, store, link and apply together: the state machine of a node.
//!
//! One thread, `dr-control`, owns the machine: it decides what the node is (source, target, replica), starts and
//! stops the other threads, answers the operator, and publishes the status. The server's main thread only sends it
//! requests and reads what it has published.

mod boot;
mod cleaner;
mod control;
mod forecast;
pub mod gate;
mod growing;
mod linked;
mod node;
mod rebase;
mod replica;
mod shard;
pub mod shared;
mod snapshots;
mod source;
mod staging;
mod state;
mod status;
mod target;
mod upkeep;
mod waits;
mod writer;

pub use boot::lineage_of;

use std::path::PathBuf;
use std::sync::Arc;

use crossbeam_channel::Receiver;

use crate::local::Address;
use shared::{ReplicaEvent, Request, Shared};

/// What the server said of itself when the module was loaded.
#[derive(Debug, Clone)]
pub struct ServerFacts {
    /// Where it listens, or why the module cannot connect to it.
    pub address: Result<Address, String>,
    /// Its port, for the default endpoint.
    pub port: u16,
    /// Its working directory.
    pub dir: PathBuf,
    /// RDB version that it writes.
    pub rdb_version: u16,
}

/// What the machine starts with.
pub struct Start {
    /// Shared with the main thread.
    pub shared: Arc<Shared>,
    /// Secret of the links.
    pub link_secret: Option<Vec<u8>>,
    /// From the main thread.
    pub requests: Receiver<Request>,
    /// From DR.APPLY and DR._LOAD on a replica.
    pub replica_events: Receiver<ReplicaEvent>,
    /// The server.
    pub server: ServerFacts,
}

/// Starts the machine.
///
/// # Errors
/// Where the directory or the log cannot be used, or a thread not be made.
pub fn start(start: Start) -> Result<(), String> {
    let node = node::Node::open(&start)?;
    let (requests, events) = (start.requests, start.replica_events);
    spawn("dr-control", move || control::run(&node, &requests, &events)).map_err(|e| e.to_string())
}

/// Starts a named thread whose panic is logged and ends only itself.
fn spawn(name: &'static str, body: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(move || {
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_err() {
            log::error!(
                "thread {name} panicked and has ended; redisdr does not work until the server restarts"
            );
        }
    })?;
    Ok(())
}

/// Wall clock, Unix milliseconds.
pub fn now_ms() -> i64 {
    i64::try_from(crate::store::now_ms()).unwrap_or(i64::MAX)
}
