//! Drives real servers: starts them, talks to them, breaks them, compares them.
//!
//! Nothing here knows how the module works; it sees what an operator and a client see.

// A harness offers more than each build of the tests uses.
#![allow(dead_code)]

pub mod builder;
#[macro_use]
pub mod client;
pub mod digest;
pub mod disk;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod resp;
pub mod sentinel;
pub mod server;
pub mod spawn;
pub mod status;
#[macro_use]
pub mod versions;
pub mod wait;

#[allow(unused_imports)]
pub use {
    builder::Builder,
    client::{Client, Pipe},
    digest::{diff, digest, snapshot},
    disk::{FaultyDisk, SmallDisk},
    ports::Port,
    proxy::{Action, Direction, Proxy},
    resp::Reply,
    sentinel::Sentinels,
    server::Server,
    status::{wait_applied, wait_equal, Status},
    versions::{version, versions, Version},
    wait::{deadline, eventually, secs},
};
