//! Native replicas of source and target, with the module: same data, same log.

use crate::aux::dump;
use crate::harness::wait::until;
use crate::harness::{digest, wait_equal, Builder, Pipe, Server, Status, Version};

fn load(server: &Server, seed: u64) {
    let mut pipe = Pipe::new();
    for n in 0..300 {
        let name = format!("{seed}:{n}");
        pipe.add(&["SET", &format!("key:{name}"), &name, "EX", "5000"]);
        pipe.add(&["RPUSH", "list", &name]).add(&["INCR", "counter"]);
        pipe.add(&["MULTI"]).add(&["HSET", "hash", &name, "1"]).add(&["SPOP", "set"]).add(&["EXEC"]);
        pipe.add(&["SADD", "set", &name, "x", "y"]).add(&["XADD", "stream", "*", "n", &name]);
        pipe.add(&["SELECT", if n % 2 == 0 { "3" } else { "0" }]);
        pipe.add(&["EVAL", "redis.call('SET', KEYS[1], 1) return redis.call('INCR', KEYS[1])", "1", &name]);
    }
    pipe.add(&["SELECT", "0"]);
    server.client().run_good(&pipe);
}

/// Also after a restart.
fn follow_for_good(replica: &Server, master: &Server) {
    replica.set_config("replicaof", &format!("127.0.0.1 {}", master.port()));
}

/// Ops of two logs that both hold, from the first that both have.
pub fn assert_same_log(a: &Server, b: &Server, what: &str) {
    let ops = |server: &Server| dump(&server.dir().join("dr"));
    let (ours, theirs) = (ops(a), ops(b));
    let first = |ops: &[serde_json::Value]| ops.first().and_then(|o| o["op"].as_u64()).unwrap_or(u64::MAX);
    let from = first(&ours).max(first(&theirs));
    let of_both = |ops: Vec<serde_json::Value>| -> Vec<serde_json::Value> {
        let kept = ops.into_iter().filter(|o| o["op"].as_u64() >= Some(from));
        // Each node stamps its own entries with the time at which it read them.
        let bare = kept.map(|mut o| {
            let o_map = o.as_object_mut().unwrap();
            o_map.remove("time");
            o_map.remove("time_ms");
            o
        });
        bare.collect()
    };
    let (ours, theirs) = (of_both(ours), of_both(theirs));
    assert!(ours.len() > 500, "{what}: only {} ops in common", ours.len());
    for (x, y) in ours.iter().zip(&theirs) {
        assert_eq!(x, y, "{what}");
    }
    assert_eq!(ours.len(), theirs.len(), "{what}");
}

/// Waits until the logs of both end at the same op.
pub fn wait_logs(a: &Server, b: &Server) {
    until("both logs end at the same op", || {
        let (x, y) = (a.status(), b.status());
        x.op_id() == y.op_id() && x.durable_op_id() == x.op_id() && y.durable_op_id() == y.op_id()
    });
}

for_each_server!(a_replica_of_a_source_has_its_log);

fn a_replica_of_a_source_has_its_log(version: Version) {
    let source = Server::builder(version).config("repl-ping-replica-period", 3600).start();
    source.wait_state("capturing");
    load(&source, 1);
    let replica = Server::start(version);
    replica.replicate(&source);
    // Its capture begins a moment after the copy; what is written before that is not in its log.
    wait_logs(&source, &replica);
    follow_for_good(&replica, &source);
    let follows = |s: &Status| s.role() == "replica" && s.state() == "capturing";
    replica.wait_status("a replica that captures", follows);
    load(&source, 2);
    source.settle();
    replica.wait_in_step(&source);
    assert_eq!(digest(&source), digest(&replica), "{version}");
    wait_logs(&source, &replica);
    assert_same_log(&source, &replica, &format!("{version}, source and its replica"));
    assert_eq!(source.status().text("history"), replica.status().text("history"));

    replica.restart();
    replica.wait_in_step(&source);
    replica.wait_status("a replica that captures", follows);
    wait_logs(&source, &replica);
    load(&source, 3);
    source.settle();
    replica.wait_in_step(&source);
    wait_logs(&source, &replica);
    assert_same_log(&source, &replica, &format!("{version}, after a restart of the replica"));
}

fn with_aof(builder: Builder, on: bool) -> Builder {
    match on {
        true => builder.config("appendonly", "yes").config("appendfsync", "everysec"),
        false => builder,
    }
}

fn a_replica_of_a_target(version: Version, aof: bool) {
    let source = Server::builder(version).config("repl-ping-replica-period", 3600).start();
    source.wait_state("capturing");
    load(&source, 1);
    let target = with_aof(Server::builder(version).arg("service-id", 1), aof).source(&source).start();
    target.wait_state("streaming");
    let replica = with_aof(Server::builder(version).arg("service-id", 1), aof).start();
    replica.replicate(&target);
    wait_logs(&target, &replica);
    follow_for_good(&replica, &target);
    load(&source, 2);
    let what = |when: &str| format!("{version}, AOF {aof}, {when}");
    let in_step = |when: &str| {
        wait_equal(&source, &target);
        replica.wait_in_step(&target);
        until("the replica has the target's data", || digest(&target) == digest(&replica));
        wait_logs(&target, &replica);
        assert_same_log(&target, &replica, &what(when));
        assert_same_log(&source, &target, &what(when));
    };
    in_step("at first");
    assert_eq!(replica.status().role(), "replica");
    let replica_write = replica.client().line("SET hole 1");
    assert!(replica_write.error().is_some(), "{replica_write:?}");

    replica.restart();
    replica.wait_in_step(&target);
    load(&source, 3);
    in_step("after a restart of the replica");

    replica.kill9();
    load(&source, 4);
    replica.start_again();
    replica.wait_in_step(&target);
    load(&source, 5);
    in_step("after the replica was killed");

    // The replica takes a copy: a new process is a new replication id. Its log goes on where it ended.
    target.restart();
    target.wait_state("streaming");
    replica.wait_in_step(&target);
    load(&source, 6);
    in_step("after a restart of the target");
    assert_eq!(target.status().full_syncs(), 1, "{}", what("at the end"));
    assert_eq!(cmd!(replica.client(), "GET", "counter").int(), cmd!(source.client(), "GET", "counter").int());
}

for_each_server!(a_replica_of_a_target_has_its_log);

fn a_replica_of_a_target_has_its_log(version: Version) {
    a_replica_of_a_target(version, false);
}

for_each_server!(a_replica_of_a_target_has_its_log_with_aof);

fn a_replica_of_a_target_has_its_log_with_aof(version: Version) {
    a_replica_of_a_target(version, true);
}

/// Redis 6.x propagates an XCLAIM at once, past the DR.APPLY that it is part of: behind a RENAME in the same entry the
/// target's replica claimed in what was `a` before, and kept a last-delivered id that nobody else had.
fn a_claim_stays_behind_what_was_before_it(v: Version) {
    let source = Server::builder(v).start();
    source.wait_state("capturing");
    let target = Server::builder(v).arg("service-id", 1).start();
    target.wait_state("capturing");
    let replica = Server::builder(v).arg("service-id", 1).start();
    replica.replicate(&target);
    cmd!(target.client(), "DR.LINK", source.endpoint()).ok();
    wait_equal(&source, &target);
    let mut client = source.client();
    for (stream, id) in [("a", "1-1"), ("c", "5-5")] {
        cmd!(client, "XADD", stream, id, "f", "v").good();
        cmd!(client, "XGROUP", "CREATE", stream, "g", "0").ok();
    }
    // In one go, so that it is one entry.
    let mut pipe = Pipe::new();
    pipe.add(&["RENAME", "a", "b"]).add(&["RENAME", "c", "a"]);
    pipe.add(&["XREADGROUP", "GROUP", "g", "me", "STREAMS", "a", ">"]);
    client.run_good(&pipe);
    wait_equal(&source, &target);
    replica.wait_in_step(&target);
    for stream in ["a", "b"] {
        // Name, consumers, pending, last-delivered id; what 7.0 adds it does not tell its own replicas either.
        let groups = |s: &Server| {
            let all = cmd!(s.client(), "XINFO", "GROUPS", stream).array();
            all.into_iter().map(|g| g.array().into_iter().take(8).collect::<Vec<_>>()).collect::<Vec<_>>()
        };
        assert_eq!(groups(&source), groups(&target), "{stream} at the target");
        assert_eq!(groups(&source), groups(&replica), "{stream} at its replica");
    }
}
for_each_server!(a_claim_stays_behind_what_was_before_it);
