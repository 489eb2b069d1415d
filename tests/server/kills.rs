//! Random kill -9 of source, target or both under load: what was acknowledged is there, but for the last moment.

use std::time::{Duration, Instant};

use crate::harness::{version, wait_equal, Server};
use crate::recovery::{count_of, under_load, wait_open};
use crate::workload::Rng;

const WRITERS: usize = 3;

fn kill_at_random(name: &str, kills: usize, seed: u64, compression: &str) {
    let version = version(name);
    let source = Server::builder(version).arg("compression", compression).start();
    source.wait_state("capturing");
    let target = Server::builder(version).arg("service-id", 1).source(&source).start();
    target.wait_state("streaming");
    let mut rng = Rng::new(seed);
    let (mut lost, mut of_target, mut acknowledged) = (Vec::new(), 0, 0);
    for round in 0..kills {
        let victims = rng.below(3);
        let writers = under_load(&source, WRITERS, || {
            // Not a wait for anything: the moment of the kill is the experiment.
            std::thread::sleep(Duration::from_millis(50 + rng.below(400)));
            if victims > 0 {
                target.kill9();
                of_target += 1;
            }
            if victims == 1 {
                target.start_again();
                std::thread::sleep(Duration::from_millis(rng.below(200)));
            }
            source.kill9();
        });
        let killed = Instant::now();
        source.start_again();
        wait_open(&source);
        source.wait_status("open to writes", |s| ["capturing", "rebasing"].contains(&s.state()));
        if victims == 2 {
            target.start_again();
        }
        if rng.one_in(4) {
            assert!(cmd!(source.client(), "DR.SNAPSHOT").error().is_none());
        }
        for writer in &writers {
            let has = count_of(&source, &writer.key);
            let old = writer.acked.iter().rev().find(|a| killed.duration_since(a.1) > Duration::from_secs(1));
            let what = format!("{version}, seed {seed}, kill {round}, {}", writer.key);
            assert!(has >= old.map_or(0, |a| a.0), "{what}: {has} is left of {}", writer.last());
            acknowledged += writer.acked.len() * 16;
            lost.push((writer.last() - has).max(0));
        }
    }
    cmd!(source.client(), "SET", "expires", "1", "EX", 5000).ok();
    wait_equal(&source, &target);
    // A target gets from the log's file only what a source finds there again.
    let status = target.status();
    assert_eq!((status.full_syncs(), status.number("rebuilds")), (1, 0), "{version}: {:#}", status.0);
    assert!(status.list("orphans").is_empty(), "{version}: {:#}", status.0);
    assert!(acknowledged > kills * 1000, "{version}: hardly any load");
    lost.sort_unstable();
    let at = |percent: usize| lost[(lost.len() - 1) * percent / 100];
    eprintln!(
        "NOTE {version}: {kills} kills of the source, {of_target} of the target, {acknowledged} writes; acknowledged writes lost for each of \
         {WRITERS} writers at a kill: none in {} of {}, median {}, p90 {}, p99 {}, most {}",
        lost.iter().filter(|n| **n == 0).count(),
        lost.len(),
        at(50),
        at(90),
        at(99),
        at(100)
    );
}

#[test]
fn kills_cost_the_last_moment_only_on_redis_6_0() {
    kill_at_random("redis-6.0", 6, 1, "no");
}

#[test]
fn kills_cost_the_last_moment_only_on_redis_7_0() {
    kill_at_random("redis-7.0", 6, 2, "no");
}

#[test]
fn kills_cost_the_last_moment_only_with_a_compressed_log() {
    kill_at_random("redis-7.0", 4, 5, "zstd");
    kill_at_random("valkey-9.1", 4, 6, "zstd");
}

#[test]
#[ignore = "soak: 100 kills"]
fn soak_kills_cost_the_last_moment_only_on_redis_6_0() {
    kill_at_random("redis-6.0", 100, 3, "no");
}

#[test]
#[ignore = "soak: 100 kills"]
fn soak_kills_cost_the_last_moment_only_on_redis_7_0() {
    kill_at_random("redis-7.0", 100, 4, "zstd");
}

/// The log is cut to what was known to be on the disk when the power went: what DR.WAIT 0 has promised is there.
fn power_loss(name: &str, fsync: &str) {
    let version = version(name);
    let source = Server::builder(version).arg("fsync", fsync).start();
    source.wait_state("capturing");
    let mut client = source.client();
    let mut promised = 0;
    for n in 1..=200i64 {
        cmd!(client, "INCR", "counter").good();
        if n % 20 == 0 {
            assert_eq!(cmd!(client, "DR.WAIT", 0, 5000).int(), 1, "{version}, fsync {fsync}");
            promised = n;
        }
    }
    // In a transaction it answers at once, as WAIT does.
    cmd!(client, "MULTI").ok();
    cmd!(client, "DR.WAIT", 0, 0).good();
    let replies = cmd!(client, "EXEC").array();
    assert!(matches!(replies[0].int(), 0 | 1), "{replies:?}");
    // What nobody was promised. The disk's position is read before it, so that it is a lower bound.
    let durable = source.status().durable_op_id();
    (0..500).for_each(|_| drop(cmd!(client, "INCR", "counter").good()));
    source.settle();
    source.kill9();
    cut_log(&source, durable);
    source.start_again();
    source.wait_state("capturing");
    wait_open(&source);
    let has = count_of(&source, "counter");
    assert!(has >= promised, "{version}, fsync {fsync}: {has} of {promised} that were promised");
    assert!(has < 700, "{version}, fsync {fsync}: nothing was cut off");
}

/// Ends the last segment behind the entry that ends at or below `durable` last, as `oplogctl` finds it.
pub fn cut_log(server: &Server, durable: u64) {
    let dir = server.dir().join("dr");
    let names = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path());
    let mut segments: Vec<_> =
        names.filter(|p| p.extension().is_some_and(|e| e == "oplog" || e == "seg")).collect();
    segments.sort();
    let last = segments.last().unwrap_or_else(|| panic!("no segment in {}", dir.display()));
    let bytes = std::fs::read(last).unwrap();
    let mut at = oplog_format::SEGMENT_HEADER_LEN;
    while let Ok(oplog_format::Stored::Entry(entry)) = oplog_format::decode_stored(&bytes[at..]) {
        if entry.header.last_op() > durable {
            break;
        }
        at += entry.frame.len();
    }
    assert!(at < bytes.len(), "nothing to cut");
    let file = std::fs::File::options().write(true).open(last).unwrap();
    file.set_len(at as u64).unwrap();
}

#[test]
fn what_dr_wait_promised_survives_a_power_loss() {
    power_loss("redis-7.0", "everysec");
    power_loss("redis-6.0", "no");
    power_loss("redis-7.0", "always");
}
