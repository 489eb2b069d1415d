//! Crash recovery by the log: what a killed source or target has again when it comes back.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::harness::wait::until;
use crate::harness::{wait_equal, Client, Pipe, Server, Version};

/// TTL that the RDB holds.
const SHORT_MS: u64 = 2000;
/// TTL that only the log holds.
const LONG_MS: i64 = 600_000;

pub fn has_field_ttls(version: Version) -> bool {
    version.has(7, 4) && !version.valkey || version.has_valkey(9, 0)
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

/// Keys of several types, cut or not when they are loaded, all with a short TTL.
fn write_short_lived(client: &mut Client, fields: bool) {
    let short = SHORT_MS.to_string();
    let mut pipe = Pipe::new();
    for key in ["refreshed", "at", "persisted", "set anew", "kept", "untouched", "renamed"] {
        pipe.add(&["SET", key, "v", "PX", &short]);
    }
    for n in 0..3000 {
        pipe.add(&["RPUSH", "list", &n.to_string()]);
        pipe.add(&["HSET", "big hash", &n.to_string(), "v"]);
    }
    pipe.add(&["PEXPIRE", "list", &short]).add(&["PEXPIRE", "big hash", &short]);
    if fields {
        pipe.add(&["HSET", "fields", "refreshed", "1", "persisted", "2", "untouched", "3", "plain", "4"]);
        for field in ["refreshed", "persisted", "untouched"] {
            pipe.add(&["HPEXPIRE", "fields", &short, "FIELDS", "1", field]);
        }
    }
    client.run_good(&pipe);
}

/// What is in the log only.
fn refresh(client: &mut Client, fields: bool) {
    let long = LONG_MS.to_string();
    let mut pipe = Pipe::new();
    pipe.add(&["PEXPIRE", "refreshed", &long]);
    pipe.add(&["EXPIREAT", "at", &(now_ms() / 1000 + 600).to_string()]);
    pipe.add(&["PERSIST", "persisted"]);
    pipe.add(&["SET", "set anew", "w"]);
    pipe.add(&["PEXPIRE", "kept", &long]).add(&["SET", "kept", "w", "KEEPTTL"]);
    pipe.add(&["RENAME", "renamed", "other name"]).add(&["PEXPIRE", "other name", &long]);
    pipe.add(&["PEXPIRE", "list", &long]).add(&["RPUSH", "list", "last"]);
    pipe.add(&["PERSIST", "big hash"]).add(&["HSET", "big hash", "last", "v"]);
    if fields {
        pipe.add(&["HPEXPIRE", "fields", &long, "FIELDS", "1", "refreshed"]);
        pipe.add(&["HPERSIST", "fields", "FIELDS", "1", "persisted"]);
    }
    client.run_good(&pipe);
}

/// Waits until reads are answered.
pub fn wait_open(server: &Server) {
    until("clients are let in", || !cmd!(server.client(), "GET", "any").is_error("LOADING"));
}

fn assert_refreshed(server: &Server, fields: bool, what: &str) {
    wait_open(server);
    let mut client = server.client();
    for key in ["refreshed", "at", "kept", "other name", "list"] {
        let ttl = cmd!(client, "PTTL", key).int();
        assert!((LONG_MS - 60_000..=LONG_MS + 1000).contains(&ttl), "{what}: {key} has a TTL of {ttl} ms");
    }
    for key in ["persisted", "set anew", "big hash"] {
        assert_eq!(cmd!(client, "PTTL", key).int(), -1, "{what}: {key}");
    }
    assert_eq!(cmd!(client, "GET", "kept").text(), "w", "{what}");
    assert_eq!(cmd!(client, "LLEN", "list").int(), 3001, "{what}");
    assert_eq!(cmd!(client, "HLEN", "big hash").int(), 3001, "{what}");
    assert_eq!(cmd!(client, "PTTL", "untouched").int(), -2, "{what}");
    if fields {
        let reply =
            cmd!(client, "HPTTL", "fields", "FIELDS", 4, "refreshed", "persisted", "untouched", "plain");
        let ttls: Vec<i64> = reply.array().iter().map(|r| r.int()).collect();
        assert!((LONG_MS - 60_000..=LONG_MS).contains(&ttls[0]), "{what}: {ttls:?}");
        assert_eq!(ttls[1..], [-1, -2, -1], "{what}");
    }
}

for_each_server!(a_ttl_refreshed_in_the_log_only_survives_a_crash);

/// A master that loads an RDB drops what has expired since, and the log may have refreshed it.
fn a_ttl_refreshed_in_the_log_only_survives_a_crash(version: Version) {
    let fields = has_field_ttls(version);
    let source = Server::start(version);
    source.wait_state("capturing");
    let target = Server::builder(version).arg("service-id", 1).source(&source).start();
    target.wait_state("streaming");
    let mut client = source.client();
    let begun = Instant::now();
    write_short_lived(&mut client, fields);
    source.settle();
    crate::harness::wait_applied(&target, source.status().op_id());
    // Both have them in their RDBs before they expire.
    until("the target has saved", || cmd!(target.client(), "SAVE").error().is_none());
    assert!(cmd!(client, "DR.SNAPSHOT").error().is_none());
    assert!(begun.elapsed() < Duration::from_millis(SHORT_MS), "too slow to show anything");
    refresh(&mut client, fields);
    let op = source.settle();
    crate::harness::wait_applied(&target, op);
    source.kill9();
    target.kill9();
    // Not a wait for anything: the keys must have expired.
    std::thread::sleep(Duration::from_millis(SHORT_MS + 1000).saturating_sub(begun.elapsed()));

    target.start_again();
    crate::harness::wait_applied(&target, op);
    assert_refreshed(&target, fields, &format!("{version}: target"));
    source.start_again();
    source.wait_status("open to clients", |s| s.state() == "capturing");
    assert_refreshed(&source, fields, &format!("{version}: source"));
    until("the untouched key is deleted, not only hidden", || {
        cmd!(source.client(), "DBSIZE").int() == if fields { 9 } else { 8 }
    });
    wait_equal(&source, &target);
    assert_refreshed(&target, fields, &format!("{version}: target of the recovered source"));
    assert_eq!(target.status().full_syncs(), 1, "{version}");
}

/// Counts up a key of its own, 16 at a time, until the server is gone.
pub struct Writer {
    pub key: String,
    /// Value and time of the last acknowledged write of each batch.
    pub acked: Vec<(i64, Instant)>,
}

impl Writer {
    fn run(mut client: Client, key: &str) -> Writer {
        let mut pipe = Pipe::new();
        (0..16).for_each(|_| {
            pipe.add(&["INCR", key]);
        });
        let mut acked = Vec::new();
        loop {
            let (replies, outcome) = client.try_run(&pipe);
            let last = replies.iter().rfind(|r| r.error().is_none()).map(|r| r.int());
            acked.extend(last.map(|n| (n, Instant::now())));
            if outcome.is_err() || replies.iter().any(|r| r.error().is_some()) {
                return Writer { key: key.to_owned(), acked };
            }
        }
    }

    /// Last acknowledged value.
    pub fn last(&self) -> i64 {
        self.acked.last().map_or(0, |a| a.0)
    }
}

/// Writes with `writers` connections until `stop`, which ends the server, has returned.
pub fn under_load(server: &Server, writers: usize, stop: impl FnOnce()) -> Vec<Writer> {
    // Connected before the server may be gone.
    let clients: Vec<Client> = (0..writers).map(|_| server.client()).collect();
    std::thread::scope(|scope| {
        let start = |(n, client)| scope.spawn(move || Writer::run(client, &format!("writer {n}")));
        let running: Vec<_> = clients.into_iter().enumerate().map(start).collect();
        stop();
        running.into_iter().map(|w| w.join().unwrap()).collect()
    })
}

pub fn count_of(server: &Server, key: &str) -> i64 {
    let reply = cmd!(server.client(), "GET", key);
    if reply.is_nil() {
        return 0;
    }
    reply.text().parse().unwrap()
}

/// Something to recover for a while.
fn fill_log(server: &Server, rounds: usize) {
    let mut client = server.client();
    for round in 0..rounds {
        let mut pipe = Pipe::new();
        for n in 0..10_000 {
            pipe.add(&["HSET", &format!("hash {}", n % 500), &format!("field {n}"), &round.to_string()]);
        }
        client.run_good(&pipe);
    }
}

for_some_servers!(a_killed_source_comes_back_with_its_log);

fn a_killed_source_comes_back_with_its_log(version: Version) {
    let source = Server::start(version);
    source.wait_state("capturing");
    let target = Server::builder(version).arg("service-id", 1).source(&source).start();
    target.wait_state("streaming");
    cmd!(source.client(), "SET", "expires", "v", "EX", 5000).ok();
    assert!(cmd!(source.client(), "DR.SNAPSHOT").error().is_none());
    fill_log(&source, 25);
    let writers = under_load(&source, 3, || {
        std::thread::sleep(Duration::from_millis(700));
        source.kill9();
    });
    let killed = Instant::now();

    source.launch();
    let (mut loading, mut recovering) = (0, Vec::new());
    until("the source has recovered", || {
        let Some(status) = source.try_status() else { return false };
        if status.state() == "recovering" {
            recovering.push((status.number("progress_percent"), status.text("state_reason").to_owned()));
        }
        if cmd!(source.client(), "GET", "writer 0").is_error("LOADING") {
            loading += 1;
            assert!(cmd!(source.client(), "SET", "early", "1").is_error("LOADING"), "{version}");
            return false;
        }
        true
    });
    assert!(loading > 0, "{version}: nobody was answered LOADING");
    let with_numbers =
        recovering.iter().any(|(percent, why)| *percent < 100 && why.contains("own log from op"));
    assert!(with_numbers, "{version}: no progress was shown: {recovering:?}");
    let log = source.log();
    assert!(log.contains("bytes of ops applied from the own log"), "{version}: {log}");

    source.wait_state("capturing");
    for writer in &writers {
        let old = writer.acked.iter().rev().find(|a| killed.duration_since(a.1) > Duration::from_secs(1));
        let must = old.map_or(0, |a| a.0);
        let has = count_of(&source, &writer.key);
        eprintln!("{version}: {} acknowledged {}, recovered {has}", writer.key, writer.last());
        assert!(has >= must, "{version}: {} has {has}, {must} was a second old", writer.key);
        assert!(has <= writer.last() + 16, "{version}: {} has {has} of {}", writer.key, writer.last());
        assert!(writer.last() - has < 5000, "{version}: {has} of {} is left", writer.last());
    }
    assert_eq!(cmd!(source.client(), "EXISTS", "early").int(), 0, "{version}");
    wait_equal(&source, &target);
    let status = target.status();
    assert_eq!((status.full_syncs(), status.number("rebuilds")), (1, 0), "{version}: {:#}", status.0);
}

for_each_server!(a_clean_stop_under_load_loses_nothing);

/// On 6.x a server does not wait for its replicas when it stops: the log lacked the last ops, began anew above a gap
/// after the restart, and every target took a copy.
fn a_clean_stop_under_load_loses_nothing(version: Version) {
    for save in ["", "3600 1000000000"] {
        let source = Server::builder(version).config("save", save).start();
        source.wait_state("capturing");
        let target = Server::builder(version).arg("service-id", 1).source(&source).start();
        target.wait_state("streaming");
        for round in 0..2 {
            let before: Vec<i64> = (0..3).map(|n| count_of(&source, &format!("writer {n}"))).collect();
            let writers = under_load(&source, 3, || {
                std::thread::sleep(Duration::from_millis(200));
                source.terminate();
            });
            source.start_again();
            source.wait_status("open to clients", |s| ["capturing", "rebasing"].contains(&s.state()));
            for (writer, before) in writers.iter().zip(before) {
                let has = count_of(&source, &writer.key);
                let what = format!("{version}, save '{save}', round {round}, {}", writer.key);
                assert!(writer.last() > before, "{what}: no load");
                assert!(has >= writer.last(), "{what}: {has} of {}", writer.last());
            }
        }
        wait_equal(&source, &target);
        let (s, t) = (source.status(), target.status());
        assert_eq!((s.number("gaps"), t.full_syncs()), (0, 1), "{version}, save '{save}': {:#}", s.0);
    }
}

for_some_servers!(a_replica_waits_until_its_master_has_recovered);

/// A replica that attached while its master applied its log was sent what it cannot apply, and never had a position.
fn a_replica_waits_until_its_master_has_recovered(version: Version) {
    let source = Server::start(version);
    source.wait_state("capturing");
    let replica = Server::start(version);
    replica.replicate(&source);
    assert!(cmd!(source.client(), "DR.SNAPSHOT").error().is_none());
    fill_log(&source, 25);
    for _ in 0..2 {
        source.kill9();
        source.start_again();
        source.wait_state("capturing");
        wait_open(&source);
        cmd!(source.client(), "INCR", "counter").good();
        replica.wait_in_step(&source);
        until("the replica has its master's data", || {
            crate::harness::digest(&source) == crate::harness::digest(&replica)
        });
        replica.wait_status("a replica that captures", |s| s.role() == "replica" && s.state() == "capturing");
        let end = source.settle();
        replica.wait_status("in step", |s| s.op_id() == end);
    }
    source.kill9();
    cmd!(replica.client(), "REPLICAOF", "NO", "ONE").ok();
    replica.wait_status("a source", |s| s.role() == "source" && s.state() == "capturing");
    let before = replica.status().op_id();
    cmd!(replica.client(), "INCR", "counter").good();
    replica.wait_status("captured", |s| s.op_id() > before);
}

#[test]
fn an_aof_without_preamble_is_refused() {
    for name in ["redis-6.0", "redis-7.0", "valkey-9.1"] {
        let version = crate::harness::version(name);
        let builder = || Server::builder(version).config("aof-use-rdb-preamble", "no");
        let refused = builder().config("appendonly", "yes").try_start().expect_err("it was loaded");
        assert!(refused.contains("aof-use-rdb-preamble is no"), "{name}: {refused}");
        let server = builder().start();
        cmd!(server.client(), "CONFIG", "SET", "appendonly", "yes").ok();
        server.wait_status("warned", |s| {
            s.list("warnings").iter().any(|w| w.as_str().unwrap_or_default().contains("aof-use-rdb-preamble"))
        });
    }
}

/// A replay that takes longer than was thought: keys of the RDB expire while it runs, and the log refreshes them later.
#[test]
#[ignore = "soak: a server stands still for more than a minute"]
fn a_key_that_expires_while_the_log_is_applied_is_kept() {
    let version = crate::harness::version("redis-7.0");
    let source = Server::start(version);
    source.wait_state("capturing");
    let begun = Instant::now();
    cmd!(source.client(), "SET", "refreshed", "v", "PX", 90_000).ok();
    assert!(cmd!(source.client(), "DR.SNAPSHOT").error().is_none());
    fill_log(&source, 20);
    cmd!(source.client(), "PEXPIRE", "refreshed", LONG_MS).good();
    source.settle();
    source.kill9();
    source.launch();
    source.wait_status("half recovered", |s| s.state() == "recovering" && s.number("progress_percent") < 60);
    source.stop();
    std::thread::sleep(Duration::from_secs(95).saturating_sub(begun.elapsed()));
    source.cont();
    source.wait_state("capturing");
    let ttl = cmd!(source.client(), "PTTL", "refreshed").int();
    assert!(ttl > LONG_MS - 200_000, "{ttl}\n{}", source.log_tail(30));
    assert_eq!(cmd!(source.client(), "HLEN", "hash 0").int(), 20);
    assert!(source.log().contains("again, with all held"));
}
