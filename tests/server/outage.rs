//! Targets that are away, die, or have a bad line.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::dr::{self, Persistence, Site};
use crate::harness::{version, wait_equal, Proxy, Server};
use crate::workload::compare::Detail;
use crate::workload::{Conn, Rng};

/// Much smaller than what is written while the target is away: resuming must come from the log.
const SMALL_BACKLOG: [&str; 2] = ["repl-backlog-size", "1mb"];

fn write_megabytes(conn: &mut Conn, megabytes: usize, seed: u64) {
    let mut rng = Rng::new(seed);
    let value = rng.bytes(1 << 16);
    for n in 0..megabytes {
        let commands: Vec<Vec<Vec<u8>>> = (0..16u64)
            .map(|i| {
                let key = format!("big {}", rng.below(300)).into_bytes();
                vec![b"SET".to_vec(), key, [value.as_slice(), &[n as u8, i as u8]].concat()]
            })
            .chain([vec![b"INCR".to_vec(), b"counter".to_vec()], rpush(n)])
            .collect();
        for reply in conn.pipeline(&commands).expect("replies") {
            assert!(reply.error().is_none(), "{reply:?}");
        }
    }
}

fn rpush(n: usize) -> Vec<Vec<u8>> {
    vec![b"RPUSH".to_vec(), b"list".to_vec(), n.to_string().into_bytes()]
}

fn resumed(source: &Site, target: &Site, full_syncs: i64, what: &str) {
    dr::wait_in_step(source, target);
    dr::wait_same_digest(&[source, target], what);
    assert_eq!(target.full_syncs(), full_syncs, "{what}: it took a full sync to resume");
}

fn a_target_that_was_away_resumes(version: &str, megabytes: usize) {
    let source = Site::start_with(version, 0, Persistence::Rdb, &SMALL_BACKLOG);
    let target = Site::start(version, 1);
    let mut conn = source.conn();
    write_megabytes(&mut conn, 2, 1);
    target.link(&[&source]);
    dr::wait_in_step(&source, &target);
    let full_syncs = target.full_syncs();
    assert_eq!(full_syncs, 1);

    target.shut_down();
    write_megabytes(&mut conn, megabytes, 2);
    target.start_again();
    resumed(&source, &target, full_syncs, &format!("{version}: the process was away"));

    target.kill();
    write_megabytes(&mut conn, megabytes, 3);
    target.start_again();
    resumed(&source, &target, full_syncs, &format!("{version}: the process was killed"));
    let length = conn.call(&["LLEN", "list"]).int();
    assert_eq!(target.conn().call(&["LLEN", "list"]).int(), length);
}

#[test]
fn a_target_that_was_away_resumes_on_redis_6_0() {
    a_target_that_was_away_resumes("redis-6.0", 60);
}

#[test]
fn a_target_that_was_away_resumes_on_redis_7_0() {
    a_target_that_was_away_resumes("redis-7.0", 120);
}

#[test]
fn a_target_that_was_away_resumes_on_valkey_9_1() {
    a_target_that_was_away_resumes("valkey-9.1", 60);
}

#[test]
#[ignore = "soak: hundreds of MB on every server"]
fn soak_a_target_that_was_away_resumes() {
    for version in dr::VERSIONS {
        a_target_that_was_away_resumes(version, 400);
    }
}

/// Once the copy is loaded the target saves it, and then notes that it has. Killed between the two it followed the link
/// and let no client in for good. What it had noted before the save is put back here, as that kill leaves it.
#[test]
fn a_target_killed_between_the_save_of_its_copy_and_the_note_serves_again() {
    let v = version("redis-7.0");
    let source = Server::start(v);
    source.wait_state("capturing");
    write_megabytes(&mut Conn::open(source.addr().parse().unwrap()).unwrap(), 2, 1);
    // Slow enough to be looked at: microseconds a key.
    let target = Server::builder(v).arg("service-id", 1).config("rdb-key-save-delay", 50_000).start();
    target.wait_state("capturing");
    cmd!(target.client(), "DR.LINK", source.endpoint()).ok();
    target.wait_status("one with the copy", |s| s.full_syncs() == 1);
    let (state, kept) = (target.dir().join("dr/state"), target.dir().join("kept"));
    std::fs::copy(&state, &kept).unwrap();
    assert_eq!(target.status().number("snapshot_op_id"), 0, "the save was over before anybody could look");
    cmd!(target.client(), "CONFIG", "SET", "rdb-key-save-delay", 0).ok();
    target.wait_status("one that has saved it", |s| s.number("snapshot_op_id") > 0);
    target.kill9();
    std::fs::copy(&kept, &state).unwrap();
    target.start_again();
    wait_equal(&source, &target);
    assert_eq!(target.wait_state("streaming").full_syncs(), 1, "the copy is there, and is not taken again");
    cmd!(target.client(), "DBSIZE").good();
}

#[test]
fn a_cut_link_resumes() {
    let source = Site::start_with("redis-7.0", 0, Persistence::Rdb, &SMALL_BACKLOG);
    let target = Site::start("redis-7.0", 1);
    let proxy = Proxy::start(source.endpoint());
    let mut conn = source.conn();
    write_megabytes(&mut conn, 2, 1);
    target.link_to(&[proxy.addr()]);
    dr::wait_in_step(&source, &target);
    proxy.down();
    write_megabytes(&mut conn, 120, 2);
    let before = target.status()["applied_op_id"].clone();
    assert_ne!(before, source.status()["op_id"], "the link was cut, and yet it is in step");
    proxy.heal();
    resumed(&source, &target, 1, "the link was cut");
}

/// Writes that show a second execution: counters, list pushes, stream entries. Returns how many of each were
/// acknowledged.
fn count_up(source: &Site, stop: &AtomicBool) -> u64 {
    let mut conn = source.conn();
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        let n = rounds.to_string();
        let commands: Vec<Vec<&str>> = vec![
            vec!["INCR", "counter"],
            vec!["RPUSH", "list", &n],
            vec!["HINCRBY", "hash", "field", "3"],
            vec!["XADD", "stream", "*", "n", &n],
            vec!["MULTI"],
            vec!["INCR", "in transaction"],
            vec!["RPUSH", "list in transaction", &n],
            vec!["EXEC"],
            vec!["EVAL", "redis.call('INCR', KEYS[1]) return redis.call('INCR', KEYS[2])", "2", "s1", "s2"],
            vec!["SET", "expiring", &n, "PX", "20"],
        ];
        for reply in conn.pipeline(&commands).expect("replies") {
            assert!(reply.error().is_none(), "{reply:?}");
        }
        rounds += 1;
    }
    rounds
}

/// Kills the target at moments that depend on nothing.
fn a_killed_target_is_exact(version: &str, persistence: Persistence, kills: u64, seed: u64) {
    let source = Site::start(version, 0);
    let target = Site::start_with(version, 1, persistence, &[]);
    target.link(&[&source]);
    dr::wait_in_step(&source, &target);
    let mut rng = Rng::new(seed);
    let stop = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let writer = scope.spawn(|| count_up(&source, &stop));
        // However this ends, the writer does.
        let _stop = dr::OnDrop(|| stop.store(true, Ordering::Relaxed));
        for _ in 0..kills {
            // Not a wait for anything: the moment of the kill is the experiment.
            std::thread::sleep(Duration::from_millis(rng.below(400)));
            target.kill();
            target.start_again();
        }
        dr::wait_streaming(&target);
        stop.store(true, Ordering::Relaxed);
        writer.join().expect("the writer")
    }) as i64;
    let what = format!("{version}, {persistence:?}, {kills} kills, seed {seed}");
    dr::wait_in_step(&source, &target);
    let mut conn = target.conn();
    let mut number = |command: &[&str]| {
        let reply = conn.call(command);
        let number = reply.text().parse::<i64>();
        number.unwrap_or_else(|_| panic!("{what}: {command:?}: {reply:?}, {}", target.status()))
    };
    assert_eq!(number(&["GET", "counter"]), rounds, "{what}");
    assert_eq!(number(&["LLEN", "list"]), rounds, "{what}");
    assert_eq!(number(&["HGET", "hash", "field"]), rounds * 3, "{what}");
    assert_eq!(number(&["XLEN", "stream"]), rounds, "{what}");
    assert_eq!(number(&["GET", "in transaction"]), rounds, "{what}");
    assert_eq!(number(&["LLEN", "list in transaction"]), rounds, "{what}");
    assert_eq!(number(&["GET", "s1"]), rounds, "{what}");
    let caps = source.table().caps;
    crate::workload::compare::settle(&mut source.conn(), &caps);
    dr::wait_in_step(&source, &target);
    dr::wait_same_digest(&[&source, &target], &what);
    dr::assert_same(&source, &target, &caps, Detail::MasterAndReplica, &what);
}

#[test]
fn a_killed_target_is_exact_with_rdb_only() {
    a_killed_target_is_exact("redis-7.0", Persistence::Rdb, 8, 1);
}

#[test]
fn a_killed_target_is_exact_with_aof() {
    a_killed_target_is_exact("redis-7.0", Persistence::Aof, 8, 2);
}

#[test]
fn a_killed_target_is_exact_on_redis_6_0() {
    a_killed_target_is_exact("redis-6.0", Persistence::Rdb, 5, 3);
    a_killed_target_is_exact("redis-6.0", Persistence::Aof, 3, 4);
}

#[test]
fn a_killed_target_is_exact_on_valkey_9_1() {
    a_killed_target_is_exact("valkey-9.1", Persistence::Rdb, 5, 5);
    a_killed_target_is_exact("valkey-9.1", Persistence::Aof, 3, 6);
}

#[test]
#[ignore = "soak: 50 kills with each persistence on every server"]
fn soak_a_killed_target_is_exact() {
    for (n, version) in dr::VERSIONS.iter().enumerate() {
        a_killed_target_is_exact(version, Persistence::Rdb, 50, 100 + n as u64);
        a_killed_target_is_exact(version, Persistence::Aof, 50, 200 + n as u64);
    }
}
