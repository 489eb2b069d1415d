//! What a source's start finds: the rows of the table in `docs/design.md` that need a doctored directory.

use std::fs;
use std::path::PathBuf;

use crate::harness::wait::until;
use crate::harness::{digest, version, wait_equal, Pipe, Server, Version};
use crate::kills::cut_log;

fn write(server: &Server, prefix: &str, count: usize) {
    let mut pipe = Pipe::new();
    let value = "v".repeat(200);
    for n in 0..count {
        pipe.add(&["SET", &format!("{prefix}:{n}"), &value]).add(&["INCR", "counter"]);
    }
    server.client().run_good(&pipe);
}

fn rdb(server: &Server) -> PathBuf {
    server.dir().join("dump.rdb")
}

fn snapshot(server: &Server) -> Vec<u8> {
    let reply = cmd!(server.client(), "DR.SNAPSHOT");
    assert!(reply.error().is_none(), "{reply:?}");
    fs::read(rdb(server)).unwrap()
}

/// A source in small segments and its target.
fn pair(version: Version) -> (Server, Server) {
    let source = Server::builder(version).arg("segment-size", "1mb").start();
    source.wait_state("capturing");
    let target = Server::builder(version).arg("service-id", 1).source(&source).start();
    target.wait_state("streaming");
    write(&source, "first", 100);
    wait_equal(&source, &target);
    (source, target)
}

/// Writes until the log no longer reaches back to its first op.
fn trim(source: &Server, target: &Server) {
    (0..3).for_each(|n| write(source, &format!("more {n}"), 2000));
    wait_equal(source, target);
    snapshot(source);
    until("the log is trimmed", || {
        let status = source.status();
        status.number("oldest_op_id") > 1000 && status.number("snapshot_op_id") > 1000
    });
}

/// Starts the source on another RDB than its own (or on none). The target keeps what it has.
fn starts_anew(what: &str, make_rdb: impl FnOnce(&Server, &Server) -> Option<Vec<u8>>) {
    let (source, target) = pair(version("redis-7.0"));
    let rdb_bytes = make_rdb(&source, &target);
    let before = digest(&target);
    let op = source.settle();
    target.wait_status("in step", |s| s.applied_op_id() >= op);
    source.kill9();
    let _ = fs::remove_file(rdb(&source));
    if let Some(bytes) = rdb_bytes {
        fs::write(rdb(&source), bytes).unwrap();
    }
    source.start_again();
    let status = source.wait_state("capturing");
    let warned = status.list("warnings").iter().any(|w| w.as_str().unwrap_or_default().contains("set aside"));
    assert!(warned, "{what}: {:#}", status.0);
    assert!(!status.list("orphans").is_empty(), "{what}: the log is gone: {:#}", status.0);
    write(&source, "anew", 50);
    target.wait_state("held");
    assert_eq!(digest(&target), before, "{what}: the target's data have changed");
    cmd!(target.client(), "DR.RESYNC").ok();
    target.wait_state("streaming");
    wait_equal(&source, &target);
}

#[test]
fn without_a_dataset_and_with_a_log_that_begins_later() {
    starts_anew("no RDB", |source, target| {
        trim(source, target);
        None
    });
}

#[test]
fn with_an_rdb_that_the_log_does_not_reach() {
    starts_anew("old RDB", |source, target| {
        let old = snapshot(source);
        trim(source, target);
        Some(old)
    });
}

#[test]
fn with_the_rdb_of_another_source() {
    starts_anew("another's RDB", |source, _| {
        let other = Server::start(source.version);
        other.wait_state("capturing");
        write(&other, "other", 10);
        Some(snapshot(&other))
    });
}

#[test]
fn with_the_rdb_of_a_server_without_the_module() {
    starts_anew("plain RDB", |source, _| {
        let plain = Server::plain(source.version);
        write(&plain, "plain", 10);
        cmd!(plain.client(), "SAVE").ok();
        Some(fs::read(rdb(&plain)).unwrap())
    });
}

/// The log has lost its end and the RDB has not: it goes on above, and nobody is given less than the dataset holds.
#[test]
fn with_an_rdb_ahead_of_the_log() {
    let (source, target) = pair(version("redis-7.0"));
    let durable = source.settle();
    write(&source, "later", 50);
    wait_equal(&source, &target);
    snapshot(&source);
    source.kill9();
    cut_log(&source, durable);
    source.start_again();
    let status = source.wait_state("capturing");
    assert!(status.number("gaps") > 0 || status.number("oldest_op_id") > durable + 1, "{:#}", status.0);
    assert_eq!(cmd!(source.client(), "EXISTS", "later:49").int(), 1);
    write(&source, "after", 50);
    target.wait_state("streaming");
    wait_equal(&source, &target);
}

/// The server drops the tap, and a backlog without replicas for a second is freed: the log misses nothing.
fn a_dropped_tap_attaches_again(name: &str) {
    let version = version(name);
    let source = Server::builder(version).config("repl-backlog-ttl", 1).start();
    source.wait_state("capturing");
    let target = Server::builder(version).arg("service-id", 1).source(&source).start();
    target.wait_state("streaming");
    let history = source.status().text("history").to_owned();
    for n in 0..5 {
        write(&source, &format!("round {n}"), 200);
        cmd!(source.client(), "CLIENT", "KILL", "TYPE", "replica").good();
        write(&source, &format!("behind {n}"), 200);
    }
    wait_equal(&source, &target);
    let status = source.status();
    assert_eq!(
        (status.text("history"), status.number("gaps")),
        (history.as_str(), 0),
        "{name}: {:#}",
        status.0
    );
    assert_eq!(target.status().full_syncs(), 1, "{name}");
}

#[test]
fn a_dropped_tap_attaches_again_on_redis_6_0() {
    a_dropped_tap_attaches_again("redis-6.0");
}

#[test]
fn a_dropped_tap_attaches_again_on_redis_7_0() {
    a_dropped_tap_attaches_again("redis-7.0");
}

#[test]
fn a_dropped_tap_attaches_again_on_valkey_9_1() {
    a_dropped_tap_attaches_again("valkey-9.1");
}
