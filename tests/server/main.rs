//! Tests on real servers. Each file says what it proves; the harness starts, breaks and compares the servers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[macro_use]
mod harness;

mod aof;
mod attach;
mod auth;
mod aux;
mod commands;
mod conf;
mod dr;
mod expiries;
mod failback;
mod faults;
mod fence;
mod fork;
mod guard;
mod harness_self;
mod kills;
mod modules;
mod operator;
mod outage;
mod races;
mod recovery;
mod replicas;
mod sentinel;
mod site;
mod starts;
mod targets;
mod values;
mod workload;
