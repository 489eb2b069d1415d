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
mod faults;
mod fence;
mod fork;
mod harness_self;
mod modules;
mod operator;
mod outage;
mod plain_sets;
mod replicas;
mod sentinel;
mod site;
mod targets;
mod values;
mod workload;
