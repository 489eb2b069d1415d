//! The tap comes and goes without being noticed: no fork, no setting left changed, no replica counted, no gap.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::{deadline, eventually, version, wait_equal, Client, Pipe, Port, Server, Version};

/// All settings of the server.
fn settings(server: &Server) -> Vec<(String, String)> {
    let all = cmd!(server.client(), "CONFIG", "GET", "*").good().strings();
    let text = |b: &Vec<u8>| String::from_utf8_lossy(b).into_owned();
    all.chunks(2).map(|pair| (text(&pair[0]), text(&pair[1]))).collect()
}

/// Id of the tap's connection.
pub fn tap_id(server: &Server) -> Option<i64> {
    // 6.0 knows the type by both names.
    let list = cmd!(server.client(), "CLIENT", "LIST", "TYPE", "replica").good().text();
    let id = |line: &str| line.strip_prefix("id=")?.split(' ').next()?.parse().ok();
    list.lines().find_map(id)
}

/// Kills the tap's connection and waits until there is another.
pub fn kill_tap(server: &Server) {
    let old = eventually("the tap is attached", deadline(), || tap_id(server));
    cmd!(server.client(), "CLIENT", "KILL", "ID", old).good();
    eventually("the tap is attached again", deadline(), || tap_id(server).filter(|id| *id != old));
}

for_each_server!(attach_is_not_noticed);

fn attach_is_not_noticed(version: Version) {
    let plain = Server::builder(version)
        .module(false)
        .config("repl-diskless-sync", "no")
        .config("repl-diskless-sync-delay", "3")
        .start();
    let server = Server::builder(version)
        .config("repl-diskless-sync", "no")
        .config("repl-diskless-sync-delay", "3")
        .start();
    server.wait_state("capturing");
    cmd!(server.client(), "SET", "key", "value").ok();
    let op = server.settle();
    assert!(op > 0);

    // Nothing was forked or saved.
    assert_eq!(server.info_field("stats", "total_forks"), if version.has(6, 2) { "0" } else { "" });
    assert_eq!(server.info_field("stats", "latest_fork_usec"), "0", "{version}: something was forked");
    assert_eq!(server.info_field("persistence", "rdb_bgsave_in_progress"), "0");
    assert!(!server.dir().join("dump.rdb").exists());
    for words in ["Starting BGSAVE", "Background saving started", "Background RDB transfer started"] {
        assert!(!server.log().contains(words), "{}", server.log());
    }

    // Every setting is what it is without the module.
    let (before, after) = (settings(&plain), settings(&server));
    let own = |name: &str| {
        ["port", "dir", "logfile", "unixsocket", "pidfile", "loadmodule"].contains(&name)
            || name.starts_with("latency-tracking")
    };
    for (name, value) in &before {
        let now = after.iter().find(|(n, _)| n == name).map(|(_, v)| v);
        assert!(own(name) || now == Some(value), "{version}: {name} was {value}, is {now:?}");
    }
    for name in ["repl-diskless-sync", "repl-diskless-sync-delay"] {
        assert!(after.iter().any(|(n, _)| n == name), "{name} was compared");
    }

    // WAIT counts real replicas only.
    let mut client = server.client();
    cmd!(client, "SET", "key", "other").ok();
    assert_eq!(cmd!(client, "WAIT", 1, 300).int(), 0, "{version}: WAIT counts the tap");
    let replica = Server::start(version);
    replica.replicate(&server);
    cmd!(client, "SET", "key", "third").ok();
    assert_eq!(cmd!(client, "WAIT", 2, 1500).int(), 1, "{version}: WAIT counts the tap");
    drop(replica);

    // A stop waits for nobody.
    let took = server.terminate();
    println!("{version}: SHUTDOWN took {} ms", took.as_millis());
    assert!(took < Duration::from_secs(5), "{version}: SHUTDOWN took {took:?}");
}

/// Writes until told to stop; returns how many rounds were acknowledged.
pub fn count_up(server: &Server, stop: &AtomicBool) -> i64 {
    let mut client = server.client();
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut pipe = Pipe::new();
        let n = rounds.to_string();
        for _ in 0..10 {
            pipe.add(&["INCR", "counter"]).add(&["RPUSH", "list", &n]);
        }
        client.run_good(&pipe);
        rounds += 1;
    }
    rounds
}

for_each_server!(a_killed_tap_attaches_again);

/// The backlog bridges what the tap missed.
fn a_killed_tap_attaches_again(version: Version) {
    let source = Server::builder(version).config("repl-backlog-size", "64mb").start();
    let target = Server::builder(version).arg("service-id", 1).source(&source).start();
    target.wait_state("streaming");
    let gaps = source.status().number("gaps");
    let stop = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let writer = scope.spawn(|| count_up(&source, &stop));
        for _ in 0..5 {
            kill_tap(&source);
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    });
    wait_equal(&source, &target);
    assert_eq!(cmd!(target.client(), "GET", "counter").int(), rounds * 10);
    assert_eq!(cmd!(target.client(), "LLEN", "list").int(), rounds * 10);
    let status = source.status();
    assert_eq!(status.number("gaps"), gaps, "{version}: {:#}", status.0);
    assert_eq!(target.status().full_syncs(), 1, "{version}");
}

for_each_server!(writes_wait_for_the_first_attach);

/// No acknowledged write of a start escapes the log: it is either refused with LOADING or in it.
fn writes_wait_for_the_first_attach(version: Version) {
    let server = Server::builder(version).config("save", "3600 1").start();
    let mut client = server.client();
    server.wait_state("capturing");
    cmd!(client, "SET", "before", 1).ok();
    let (mut refused, mut accepted) = (0, 1);
    // Not every start is slow enough to be met by a write.
    let mut starts = 0;
    while starts < 3 || (refused == 0 && starts < 30) {
        starts += 1;
        server.terminate();
        server.launch();
        eventually("a write is accepted", deadline(), || {
            let mut client = Client::tcp(&server.addr()).ok()?;
            loop {
                match client.try_call(&["INCR", "counter"]).ok()? {
                    reply if reply.is_error("LOADING") => refused += 1,
                    reply => {
                        reply.good();
                        accepted += 1;
                        return Some(());
                    }
                }
            }
        });
    }
    println!("{version}: {refused} writes were refused with LOADING, {accepted} accepted");
    let target = Server::builder(version).arg("service-id", 1).source(&server).start();
    target.wait_state("streaming");
    wait_equal(&server, &target);
    assert_eq!(server.status().number("gaps"), 0);
    assert_eq!(cmd!(server.client(), "GET", "counter").int(), starts);
    assert!(refused > 0, "{version}: no write met the start of the module, so nothing was shown");
}

for_each_server!(a_unix_socket_is_enough);

fn a_unix_socket_is_enough(version: Version) {
    let source = Server::builder(version).unix_only().start();
    source.wait_state("capturing");
    let target = Server::builder(version).unix_only().arg("service-id", 1).source(&source).start();
    cmd!(source.client(), "SET", "key", "value").ok();
    target.wait_state("streaming");
    wait_equal(&source, &target);
    assert_eq!(cmd!(target.client(), "GET", "key").text(), "value");
}

for_each_server!(tcp_is_enough);

fn tcp_is_enough(version: Version) {
    let source = Server::builder(version).tcp_only().start();
    source.wait_state("capturing");
    let target = Server::builder(version).tcp_only().arg("service-id", 1).source(&source).start();
    cmd!(source.client(), "SET", "key", "value").ok();
    target.wait_state("streaming");
    wait_equal(&source, &target);
}

/// The server serves, and both its log and DR.STATUS say that nothing is captured and why.
fn fails_loudly(server: &Server, mut client: Client, words: &[&str]) {
    let status = eventually("the state is failed", deadline(), || {
        let reply = client.try_call(&["DR.STATUS", "JSON"]).ok()?;
        let status: serde_json::Value = serde_json::from_slice(reply.bytes()).ok()?;
        (status["state"] == "failed").then_some(status)
    });
    let reason = status["state_reason"].as_str().unwrap().to_owned();
    let warnings = status["warnings"].to_string();
    for word in words {
        assert!(reason.contains(word), "{word} is not in the reason: {reason}");
        assert!(warnings.contains(word), "{word} is not in the warnings: {warnings}");
        assert!(server.log().contains(word), "{word} is not in the log: {}", server.log_tail(20));
    }
    eventually("the server serves", deadline(), || {
        client.try_call(&["SET", "key", "value"]).ok().filter(|r| r.error().is_none())
    });
    assert_eq!(cmd!(client, "GET", "key").text(), "value");
}

/// Only TLS: the module has no way in. The test has none either, so the log must tell.
#[test]
fn no_way_in_is_loud_redis_7_0() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"])
        .args(["-keyout", &file("key.pem"), "-out", &file("cert.pem")])
        .output()
        .expect("openssl runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let tls = Port::pick();
    let server = Server::builder(version("redis-7.0"))
        .tcp_only()
        .config("port", 0)
        .config("tls-port", tls.number())
        .config("tls-cert-file", file("cert.pem"))
        .config("tls-key-file", file("key.pem"))
        .config("tls-ca-cert-file", file("cert.pem"))
        .no_wait()
        .start();
    eventually("the log says why", deadline(), || {
        let log = server.log();
        (log.contains("NOT captured") && log.contains("unixsocket")).then_some(())
    });
    assert!(server.is_alive(), "{}", server.log_tail(20));
    assert!(server.log().contains("Ready to accept connections"), "{}", server.log_tail(20));
    let took = server.terminate();
    assert!(took < Duration::from_secs(5), "{took:?}");
}

for_each_server!(a_renamed_command_is_loud);

fn a_renamed_command_is_loud(version: Version) {
    for name in ["PSYNC", "REPLCONF"] {
        let server = Server::builder(version).config("rename-command", format!("{name} \"\"")).start();
        fails_loudly(&server, server.client(), &[name]);
    }
}
