//! A session store: keys that live for some seconds and are refreshed at random, at a source whose link is down for a
//! while. The target has in the end each session that the source has, and none that it has not.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::dr::OnDrop;
use crate::harness::digest::{Entry, Expiry, Key};
use crate::harness::{eventually, secs, snapshot, version, wait_applied, Pipe, Proxy, Server};
use crate::workload::Rng;

struct Store {
    sessions: usize,
    ttl: Duration,
    /// How long the load runs, and when within it the link is down.
    runs: Duration,
    down: (Duration, Duration),
}

impl Store {
    /// Refreshes sessions at random, each about three times within its time, so that some expire; those begin again.
    fn load(&self, source: &Server, stop: &AtomicBool) -> u64 {
        let mut client = source.client();
        let mut rng = Rng::new(7);
        let ttl = self.ttl.as_millis().to_string();
        let per_step = 500;
        let step = self.ttl.mul_f64(per_step as f64 / (3 * self.sessions) as f64);
        let (begun, mut steps) = (Instant::now(), 0u32);
        while !stop.load(Ordering::SeqCst) {
            let mut pipe = Pipe::new();
            for _ in 0..per_step {
                let key = format!("session:{}", rng.below(self.sessions as u64));
                match rng.below(10) {
                    0..5 => pipe.add(&["PEXPIRE", &key, &ttl]),
                    5..7 => pipe.add(&["SET", &key, "a session", "PX", &ttl]),
                    7 => pipe.add(&["PSETEX", &key, &ttl, "a session of another"]),
                    8 => pipe.add(&["APPEND", &key, "."]).add(&["PEXPIRE", &key, &ttl]),
                    _ => pipe.add(&["DEL", &key]),
                };
            }
            client.run_good(&pipe);
            steps += 1;
            std::thread::sleep((step * steps).saturating_sub(begun.elapsed()));
        }
        u64::from(steps) * per_step
    }
}

/// The target has each session of the source and no other, with its content and its time. Returns how many.
fn same_sessions(source: &Server, target: &Server, exact: bool) -> usize {
    wait_applied(target, source.settle());
    let (ours, theirs) = (snapshot(source), snapshot(target));
    let only = |a: &BTreeMap<Key, Entry>, b: &BTreeMap<Key, Entry>| {
        let keys = a.keys().filter(|key| !b.contains_key(*key));
        keys.map(|key| String::from_utf8_lossy(&key.1).into_owned()).collect::<Vec<_>>()
    };
    let (lost, left) = (only(&ours, &theirs), only(&theirs, &ours));
    assert!(lost.is_empty() && left.is_empty(), "lost: {lost:?}, left over: {left:?}");
    for (key, entry) in &ours {
        let other = &theirs[key];
        assert_eq!(entry.content, other.content, "{key:?}");
        match (&entry.expiry, &other.expiry) {
            (Expiry::At(a), Expiry::At(b)) => assert_eq!(a, b, "{key:?}"),
            (Expiry::Near(a), Expiry::Near(b)) => {
                assert!(!exact && (a - b).abs() < 5_000, "{key:?}: {a} {b}")
            }
            (a, b) => panic!("{key:?}: {a:?} and {b:?}"),
        }
    }
    ours.len()
}

fn no_session_is_lost_or_left(name: &str, store: &Store) {
    let version = version(name);
    let source = Server::builder(version).config("repl-backlog-size", "1mb").start();
    source.wait_state("capturing");
    let proxy = Proxy::start(source.endpoint());
    let target = Server::builder(version).arg("service-id", 1).arg("source", proxy.addr()).start();
    target.wait_state("streaming");
    let ttl = store.ttl.as_millis().to_string();
    let mut pipe = Pipe::new();
    for n in 0..store.sessions {
        pipe.add(&["SET", &format!("session:{n}"), "a session", "PX", &ttl]);
    }
    source.client().run_good(&pipe);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // A check that fails must not leave the load at work.
        let _stop = OnDrop(|| stop.store(true, Ordering::SeqCst));
        let load = scope.spawn(|| store.load(&source, &stop));
        std::thread::sleep(store.down.0);
        proxy.down();
        let begun = Instant::now();
        let op = target.status().applied_op_id();
        let expired = |server: &Server| server.info_field("stats", "expired_keys").parse::<u64>().unwrap();
        let before = expired(&source);
        std::thread::sleep((store.down.1 - store.down.0).saturating_sub(begun.elapsed()));
        assert!(target.status().applied_op_id() <= op + (1 << 20), "{name}: the link was not down");
        assert!(expired(&source) > before + 10, "{name}: too few sessions have expired meanwhile");
        assert_eq!(expired(&target), 0, "{name}: the target expires by its own clock");
        proxy.heal();
        std::thread::sleep(store.runs - store.down.1);
        stop.store(true, Ordering::SeqCst);
        let ops = load.join().unwrap();
        println!("{name}: {ops} commands, {} sessions expired", expired(&source));
    });
    // Those that are left stay for long enough to look at them.
    let give = |ms: &str| {
        let mut pipe = Pipe::new();
        for n in 0..store.sessions {
            pipe.add(&["PEXPIRE", &format!("session:{n}"), ms]);
        }
        source.client().run_good(&pipe);
    };
    give("200000");
    let count = same_sessions(&source, &target, version.has(7, 0));
    println!("{name}: {count} sessions are left");
    assert!(count > store.sessions / 10, "{name}: only {count} sessions are left");
    assert_eq!(target.status().full_syncs(), 1, "{name}");
    // And in the end all expire.
    give("100");
    let empty = |server: &Server| cmd!(server.client(), "DBSIZE").int() == 0;
    eventually("all sessions have expired", secs(60), || empty(&source).then_some(()));
    wait_applied(&target, source.settle());
    assert!(empty(&target), "{name}: {} sessions are left over", cmd!(target.client(), "DBSIZE").int());
}

const SHORT: Store = Store {
    sessions: 10_000,
    ttl: Duration::from_secs(3),
    runs: Duration::from_secs(15),
    down: (Duration::from_secs(4), Duration::from_secs(10)),
};

#[test]
fn no_session_is_lost_or_left_on_redis_7_0() {
    no_session_is_lost_or_left("redis-7.0", &SHORT);
}

#[test]
fn no_session_is_lost_or_left_on_redis_6_0() {
    no_session_is_lost_or_left("redis-6.0", &SHORT);
}

const LONG: Store = Store {
    sessions: 100_000,
    ttl: Duration::from_secs(30),
    runs: Duration::from_secs(300),
    down: (Duration::from_secs(90), Duration::from_secs(210)),
};

#[test]
#[ignore = "soak: five minutes"]
fn soak_no_session_is_lost_or_left_on_redis_7_0() {
    no_session_is_lost_or_left("redis-7.0", &LONG);
}

#[test]
#[ignore = "soak: five minutes"]
fn soak_no_session_is_lost_or_left_on_redis_6_2() {
    no_session_is_lost_or_left("redis-6.2", &LONG);
}
