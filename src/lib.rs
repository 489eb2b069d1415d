//! redisdr: log-based disaster recovery for Redis and Valkey, as a module.
//!
//! Direction of imports: `oplog_format` <- [`store`] <- {[`capture`], [`snapshot`], [`link`], [`apply`]} <-
//! [`runtime`] <- [`ffi`].
//!
//! Threads. Each catches panics; none takes the server's global lock.
//!
//! | thread | does | may block on | ends when |
//! |---|---|---|---|
//! | server main | commands, filter, events, aux field | nothing | |
//! | dr-control | boots, follows the role, answers operators, publishes the status | own server, disk | the process ends |
//! | dr-tap | reads the stream, finds where ops end | its socket, a full queue (64 MB) | another role, or the server's end |
//! | dr-writer | appends to the log, cuts and seals segments | the disk | the process ends |
//! | dr-sync | fdatasync each second | the disk | the process ends |
//! | dr-feed | reads the log, sends DR.APPLY, counts replies | its socket, new entries | another role, or a divergence |
//! | dr-link, dr-link-ack, dr-link-check, dr-link-load, dr-connect | pull from the source, see [`link`] | sockets, the disk | DR.CUTLINK, another role |
//! | dr-endpoint, dr-handshake, dr-target-N, dr-acks-N | serve targets, see [`link`] | sockets, new entries | the process ends, the target goes |
//! | dr-cleaner | removes segments, watches the disk | the disk | the process ends |
//! | dr-waits | answers DR.WAIT | the disk, for one sync that serves all | the process ends |
//! | dr-replica | logs what a target's replica receives | the disk | the process ends |
//! | dr-rebase | releases held expiries in slices | own server | all are released |
//! | dr-stage | puts large strings of a snapshot together | new pieces | the process ends |
//! | dr-save, dr-snapshot, dr-saved | wait for a save of the server | own server | it is done |
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

pub mod apply;
pub mod capture;
pub mod config;
pub mod ctl;
pub mod ffi;
pub mod link;
pub mod local;
pub mod runtime;
pub mod snapshot;
pub mod status;
pub mod store;
