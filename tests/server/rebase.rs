//! The release of held expiries after a cut: it goes on after a crash half way, releases everything once, and reaches
//! the node's replica and the targets of the new source.

use crate::harness::wait::{eventually, secs};
use crate::harness::{Pipe, Server, Version};

const KEYS: usize = 40_000;
const FIELDS: usize = 30_000;

fn has_timed_fields(version: Version) -> bool {
    version.has_valkey(9, 0) || (!version.valkey && version.has(7, 4))
}

fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(since.unwrap().as_millis()).unwrap()
}

/// Every key and field with an expiry of its own, some without, one that is due while the release runs.
fn fill(server: &Server, version: Version) {
    let base = now_ms() + 3_600_000;
    let mut pipe = Pipe::new();
    for n in 0..KEYS {
        let key = format!("key:{n}");
        pipe.add(&["SET", &key, "v"]);
        if n % 5 > 0 {
            pipe.add(&["PEXPIREAT", &key, &(base + n as i64).to_string()]);
        }
    }
    server.client().run_good(&pipe);
    if !has_timed_fields(version) {
        return;
    }
    let mut pipe = Pipe::new();
    for n in 0..FIELDS {
        let (field, ms) = (format!("field:{n}"), (base + n as i64).to_string());
        pipe.add(&["HSET", "hash", &field, "v"]);
        if n % 5 > 0 {
            pipe.add(&["HPEXPIREAT", "hash", &ms, "FIELDS", "1", &field]);
        }
    }
    server.client().run_good(&pipe);
}

/// All expiries as the server shows them; before 7.0 there is only the time left, here to ten seconds.
fn expiries(server: &Server, version: Version) -> Vec<i64> {
    let absolute = version.has(7, 0);
    let mut pipe = Pipe::new();
    for n in 0..KEYS {
        pipe.add(&[if absolute { "PEXPIRETIME" } else { "PTTL" }, &format!("key:{n}")]);
    }
    let mut client = server.client();
    let replies = client.run_good(&pipe);
    let ms = replies.iter().map(|r| r.int());
    let mut out: Vec<i64> = match absolute {
        true => ms.collect(),
        false => ms.map(|ms| if ms < 0 { ms } else { (ms + now_ms()) / 10_000 }).collect(),
    };
    if has_timed_fields(version) {
        let names: Vec<String> = (0..FIELDS).map(|n| format!("field:{n}")).collect();
        for some in names.chunks(500) {
            let count = some.len().to_string();
            let mut argv = vec!["HPEXPIRETIME", "hash", "FIELDS", &count];
            argv.extend(some.iter().map(String::as_str));
            out.extend(client.call(&argv).good().array().iter().map(|r| r.int()));
        }
    }
    out
}

fn assert_same(wanted: &[i64], found: &[i64], version: Version, what: &str) {
    let slack = i64::from(!version.has(7, 0));
    assert_eq!(wanted.len(), found.len());
    for (at, (a, b)) in wanted.iter().zip(found).enumerate() {
        let close = if *a < 0 || *b < 0 { a == b } else { (a - b).abs() <= slack };
        assert!(close, "{version}, {what}: number {at} is {b} and not {a}");
    }
}

/// In the state of the release, neither at its begin nor at its end.
fn wait_half_way(server: &Server) -> u64 {
    eventually("the release is half way", secs(60), || {
        let status = server.try_status()?;
        let percent = status.number("progress_percent");
        assert_ne!((status.state(), percent), ("capturing", 100), "the release was not seen");
        (status.state() == "rebasing" && (10..95).contains(&percent)).then_some(percent)
    })
}

fn wait_released(server: &Server) {
    eventually("all is released", secs(60), || {
        let status = server.try_status()?;
        (status.state() == "capturing" && status.number("progress_percent") == 100).then_some(())
    });
}

fn killed_half_way(version: Version, aof: bool) {
    let source = Server::start(version);
    source.wait_state("capturing");
    fill(&source, version);
    let wanted = expiries(&source, version);
    let mut builder = Server::builder(version).arg("service-id", 1);
    if aof {
        builder = builder.config("appendonly", "yes").config("appendfsync", "always");
    }
    let target = builder.source(&source).start();
    let copied = |s: &crate::harness::Status| s.state() == "streaming" && s.number("snapshot_op_id") > 0;
    target.wait_status("the copy is loaded and saved", copied);
    assert_same(&wanted, &expiries(&target, version), version, "while linked");

    target.set_arg("source", None);
    cmd!(target.client(), "DR.CUTLINK").good();
    let percent = wait_half_way(&target);
    target.kill9();
    target.start_again();
    target.wait_status("clients are let in", |s| ["rebasing", "capturing"].contains(&s.state()));
    // Reads are right while the release goes on.
    assert_same(&wanted, &expiries(&target, version), version, "after the crash");
    wait_released(&target);
    println!("{version}: killed at {percent} percent");
    assert_same(&wanted, &expiries(&target, version), version, "released");

    // What carries on from here: a replica and a target of the new source.
    let replica = Server::builder(version).arg("service-id", 1).start();
    replica.replicate(&target);
    let second = Server::builder(version).arg("service-id", 2).source(&target).start();
    second.wait_status("the second target streams", |s| s.state() == "streaming");
    assert_same(&wanted, &expiries(&replica, version), version, "replica");
    assert_same(&wanted, &expiries(&second, version), version, "second target");
}

/// Replicas and targets that are there before follow the release itself.
fn followed_by_others(version: Version) {
    let source = Server::start(version);
    source.wait_state("capturing");
    fill(&source, version);
    let wanted = expiries(&source, version);
    let target = Server::builder(version).arg("service-id", 1).start();
    let replica = Server::builder(version).arg("service-id", 1).start();
    replica.replicate(&target);
    let second = Server::builder(version).arg("service-id", 2).source(&source).start();
    cmd!(target.client(), "DR.LINK", source.endpoint()).ok();
    for node in [&target, &second] {
        node.wait_status("the link streams", |s| s.state() == "streaming");
    }
    cmd!(source.client(), "SET", "key:0", "due", "PX", 1).ok();
    cmd!(target.client(), "DR.CUTLINK").good();
    cmd!(second.client(), "DR.LINK", target.endpoint()).ok();
    assert_same(&wanted[1..], &expiries(&target, version)[1..], version, "at once");
    wait_released(&target);
    second.wait_status("the second target streams", |s| s.state() == "streaming");
    let op = target.settle();
    second.wait_status("the second target is in step", |s| s.applied_op_id() == op);
    replica.wait_in_step(&target);
    for (node, what) in [(&target, "released"), (&replica, "replica"), (&second, "second target")] {
        assert_same(&wanted[1..], &expiries(node, version)[1..], version, what);
    }
    assert_eq!(second.status().full_syncs(), 1, "{version}: no copy for the release");
}

for_some_servers!(a_release_goes_on_after_a_crash);

fn a_release_goes_on_after_a_crash(version: Version) {
    killed_half_way(version, false);
}

#[test]
fn a_release_goes_on_after_a_crash_on_redis_8_0() {
    killed_half_way(crate::harness::version("redis-8.0"), false);
}

#[test]
fn a_release_goes_on_after_a_crash_from_an_aof_on_redis_7_0() {
    killed_half_way(crate::harness::version("redis-7.0"), true);
}

for_some_servers!(a_release_reaches_replicas_and_targets);

fn a_release_reaches_replicas_and_targets(version: Version) {
    followed_by_others(version);
}
