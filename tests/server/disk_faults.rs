//! A disk that fails or is slow, under a real server: errors of write and fdatasync, syncs that take seconds, writes
//! that hang.

use std::time::Instant;

use crate::disk::{lines, ready, verify, wait_syncs, write};
use crate::harness::{deadline, eventually, secs, version, wait_equal, FaultyDisk, Server};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// Source and target in step, the source's log on a disk that can fail.
fn pair(args: &[(&str, &str)], config: &[(&str, &str)]) -> (FaultyDisk, Server, Server) {
    let v = version("redis-7.0");
    let disk = FaultyDisk::new();
    let mut builder = disk.under(Server::builder(v).arg("segment-size", "1mb"));
    for (name, value) in args {
        builder = builder.arg(name, value);
    }
    for (name, value) in config {
        builder = builder.config(name, value);
    }
    let source = ready(builder.start());
    let target = Server::builder(v).arg("service-id", 1).source(&source).start();
    write(&mut source.client(), 1, "before");
    wait_equal(&source, &target);
    (disk, source, target)
}

fn warns(server: &Server, what: &str) {
    server.wait_status(what, |s| s.list("warnings").iter().any(|w| w.as_str().unwrap().contains(what)));
}

#[test]
fn errors_of_write_and_sync_cost_nothing_once_they_end() {
    let (disk, source, target) = pair(&[], &[]);
    let mut client = source.client();
    for (n, faults) in [format!("write_errno={EIO}"), format!("sync_errno={EIO}")].iter().enumerate() {
        disk.set(faults);
        write(&mut client, 3, "while it fails");
        let status = source.wait_status("failed", |s| s.state() == "failed");
        assert!(status.text("state_reason").contains("Input/output error"), "{:#}", status.0);
        write(&mut client, 1, "while it fails");
        // The retries are not told one by one.
        std::thread::sleep(secs(2));
        assert_eq!(lines(&source, "the log has failed"), n + 1, "{}", source.log());
        disk.set("");
        source.wait_state("capturing");
        wait_equal(&source, &target);
        let status = source.wait_status("durable", |s| s.durable_op_id() == s.op_id());
        assert_eq!(status.number("gaps"), 0);
    }
    wait_syncs(&target, 1);
    source.kill9();
    verify(&source.dir().join("dr"));
    source.start_again();
    source.wait_state("capturing");
    wait_equal(&source, &target);
    wait_syncs(&target, 1);
}

#[test]
fn a_slow_sync_is_told_and_stalls_nobody() {
    let (disk, source, target) = pair(&[], &[]);
    let mut client = source.client();
    disk.set("sync_ms=60000");
    let begun = Instant::now();
    while begun.elapsed() < secs(4) {
        let one = Instant::now();
        assert!(cmd!(client, "INCR", "counter").error().is_none());
        assert!(one.elapsed() < secs(1), "a write took {:?}", one.elapsed());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    warns(&source, "the log's disk is slow");
    assert_eq!(lines(&source, "the disk is slow"), 1, "{}", source.log());
    // What is not synced is not called durable.
    let status = source.status();
    assert_eq!(status.state(), "capturing");
    assert!(status.durable_op_id() < status.op_id());
    assert_eq!(cmd!(client, "DR.WAIT", 0, 200).int(), 0);
    // Targets get what is written.
    wait_equal(&source, &target);
    disk.set("");
    source.wait_status("durable", |s| s.durable_op_id() == s.op_id());
    assert_eq!(cmd!(client, "DR.WAIT", 0, 10_000).int(), 1);
    assert_eq!(source.status().number("gaps"), 0);
}

/// The queue fills, the tap waits, the server closes it: a gap, told, and mended by a copy.
#[test]
fn a_disk_that_hangs_ends_in_a_gap_and_not_in_a_stall() {
    let limits = [("client-output-buffer-limit", "replica 8mb 0 0"), ("repl-backlog-size", "1mb")];
    let (disk, source, target) = pair(&[], &limits);
    let mut client = source.client();
    disk.set("write_ms=600000");
    let longest = write(&mut client, 100, "while it hangs");
    assert!(longest < secs(5), "a batch took {longest:?}");
    let status = source.status();
    let (queued, max) = (status.number("queue_bytes"), status.number("queue_max_bytes"));
    assert_eq!(max, 64 << 20);
    assert!(queued > max * 9 / 10 && queued < max + (2 << 20), "{queued} bytes are queued");
    warns(&source, "the log's disk is slow");
    disk.set("");
    source.wait_status("above a gap", |s| s.number("gaps") == 1 && s.number("queue_bytes") == 0);
    write(&mut client, 1, "after");
    wait_equal(&source, &target);
    wait_syncs(&target, 2);
    source.kill9();
    verify(&source.dir().join("dr"));
}

#[test]
fn writes_are_denied_while_the_log_fails_where_that_is_wanted() {
    let (disk, source, target) = pair(&[("on-log-failure", "deny-writes")], &[]);
    let replica = Server::builder(source.version).module(false).start();
    let _ = replica;
    let mut client = source.client();
    disk.set(&format!("write_errno={ENOSPC}"));
    let refused = eventually("writes are denied", deadline(), || {
        let reply = cmd!(client, "INCR", "counter");
        reply.error().map(str::to_owned)
    });
    for part in ["MISCONF", "No space left on device", "deny-writes", "DR.STATUS", "serve"] {
        assert!(refused.contains(part), "{part} is not in: {refused}");
    }
    assert!(cmd!(client, "GET", "counter").error().is_none());
    let script = cmd!(client, "EVAL", "return redis.call('set', 'a', 'b')", 0);
    assert!(script.error().is_some_and(|e| e.contains("MISCONF")), "{script:?}");
    assert_eq!(source.status().state(), "failed");
    // Denied for as long as it fails, and the target's link stays.
    std::thread::sleep(secs(2));
    assert!(cmd!(client, "SET", "a", "b").error().is_some());
    assert_eq!(target.status().text("link/state"), "streaming");
    assert_eq!(lines(&source, "writes of clients are denied"), 1);

    disk.set("");
    eventually("writes are taken again", deadline(), || {
        cmd!(client, "INCR", "counter").error().is_none().then_some(())
    });
    source.wait_state("capturing");
    wait_equal(&source, &target);
    assert_eq!(source.status().number("gaps"), 0);
    wait_syncs(&target, 1);
}
