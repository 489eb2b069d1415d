//! Tests on real servers. Each file says what it proves; the harness starts, breaks and compares the servers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[macro_use]
mod harness;

mod aof;
mod attach;
mod auth;
mod aux;
mod by_reference;
mod cleaner;
mod commands;
mod compression;
mod conf;
mod copies;
mod disk;
mod disk_faults;
mod dr;
mod expiries;
mod failback;
mod failover;
mod faults;
mod fence;
mod fork;
mod guard;
mod harness_self;
mod kills;
mod large;
mod modules;
mod operator;
mod outage;
mod plain_sets;
mod promotion;
mod races;
mod readers;
mod rebase;
mod recovery;
mod replicas;
mod sentinel;
mod sessions;
mod site;
mod starts;
mod targets;
mod values;
mod workload;
