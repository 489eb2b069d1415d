//! Many targets, who is refused, and a target that stands still.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::dr::{self, Site};
use crate::workload::{Conn, Fleet, Rng};

const VERSION: &str = "redis-7.0";

#[test]
fn fifteen_targets_in_step_and_no_more() {
    let source = Site::start(VERSION, 0);
    let mut conn = source.conn();
    for n in 0..500 {
        conn.call(&["SET", &format!("key {n}"), "from before the link"]);
    }
    let targets: Vec<Site> = (1..=15).map(|id| Site::start(VERSION, id)).collect();
    for target in &targets {
        target.link(&[&source]);
    }
    let table = Arc::new(source.table());
    let fleet = Fleet::start(source.addr(), &table, 15, 2);
    for target in &targets {
        dr::wait_streaming(target);
    }
    fleet.run_steps(3000);
    fleet.stop();
    for target in &targets {
        dr::wait_in_step(&source, target);
    }
    let all: Vec<&Site> = std::iter::once(&source).chain(&targets).collect();
    dr::wait_same_digest(&all, "fifteen targets");
    assert_eq!(source.status()["targets"].as_array().map(Vec::len), Some(15));

    // All ids are taken: whoever comes next has the id of another, or the source's own.
    let sixteenth = Site::start(VERSION, 7);
    assert_refused(&source, &sixteenth, 7, &targets[6]);
    let own_id = Site::start(VERSION, 0);
    assert_refused(&source, &own_id, 0, &source);

    // Nobody in the star noticed.
    conn.call(&["SET", "after", "the refusals"]);
    for target in &targets {
        dr::wait_in_step(&source, target);
        assert_eq!(target.full_syncs(), 1);
    }
    dr::wait_same_digest(&all, "after the refusals");
}

#[test]
fn a_service_id_in_use_is_refused() {
    let source = Site::start(VERSION, 3);
    let first = Site::start(VERSION, 5);
    first.link(&[&source]);
    dr::wait_streaming(&first);
    let second = Site::start(VERSION, 5);
    second.conn().call(&["SET", "own", "data"]);
    assert_refused(&source, &second, 5, &first);
    assert_eq!(second.conn().call(&["GET", "own"]).text(), "data");
    let same_as_source = Site::start(VERSION, 3);
    assert_refused(&source, &same_as_source, 3, &source);
    dr::wait_in_step(&source, &first);
}

/// Both ends show the refusal, with the id and where its holder is.
fn assert_refused(source: &Site, late: &Site, id: u8, holder: &Site) {
    late.link(&[source]);
    let own = holder.addr() == source.addr();
    // As the source shows it: the address of the holder's link.
    let held_at = source.status()["targets"]
        .as_array()
        .and_then(|all| all.iter().find(|t| t["service_id"] == id))
        .and_then(|t| t["addr"].as_str().map(str::to_owned))
        .unwrap_or_default();
    dr::eventually("the refusal at both ends", || {
        let (here, there) = (late.status().to_string(), source.status().to_string());
        let tells = |text: &str| text.contains("refused") && text.contains(&format!("service_id {id}"));
        // The target must learn who the holder is: its address, or that it is the source itself.
        let names_holder =
            if own { here.contains("own") } else { !held_at.is_empty() && here.contains(&held_at) };
        match tells(&here) && tells(&there) && names_holder {
            true => Ok(()),
            false => Err(format!("target: {here}\nsource: {there}")),
        }
    });
    assert_eq!(late.full_syncs(), 0);
}

/// A stopped process keeps its sockets open and reads nothing: what is sent to it fills the kernel's buffers and must
/// then stay on disk, not in the source's memory.
fn a_stopped_target_costs_no_memory(stop_for: Duration, at_least_bytes: u64) {
    let source = Site::start(VERSION, 0);
    let target = Site::start(VERSION, 1);
    let other = Site::start(VERSION, 2);
    let mut conn = source.conn();
    let mut rng = Rng::new(9);
    // The same keys are written over and over, so that the dataset does not grow either.
    let values: Vec<Vec<u8>> = (0..64).map(|_| rng.bytes(20_000)).collect();
    write_round(&mut conn, &values, 0);
    target.link(&[&source]);
    other.link(&[&source]);
    dr::wait_in_step(&source, &target);
    dr::wait_in_step(&source, &other);
    for round in 0..20 {
        write_round(&mut conn, &values, round);
    }
    dr::wait_in_step(&source, &target);

    let before = source.rss();
    target.stop_process();
    let (stop, written, peak) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                peak.fetch_max(source.rss(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let start = Instant::now();
        let mut round = 0;
        while start.elapsed() < stop_for || written.load(Ordering::Relaxed) < at_least_bytes {
            write_round(&mut conn, &values, round);
            written.fetch_add(64 * 20_000, Ordering::Relaxed);
            round += 1;
            assert!(start.elapsed() < stop_for * 20, "the source got too slow");
            // Slower than any disk: what waits for the log's disk is the queue's memory, not a target's.
            std::thread::sleep(Duration::from_millis(40));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let grown = peak.load(Ordering::Relaxed).saturating_sub(before);
    let written = written.load(Ordering::Relaxed);
    assert!(
        grown < MEMORY_BOUND,
        "source grew by {} MB while {} MB were written",
        grown >> 20,
        written >> 20
    );
    // The other target was not held up.
    dr::wait_in_step(&source, &other);
    target.continue_process();
    dr::wait_in_step(&source, &target);
    dr::wait_same_digest(&[&source, &target, &other], "after the stop");
    assert_eq!(target.full_syncs(), 1);
}

/// The bounded queue between tap and disk (64 MB) may fill on a busy machine; nothing else may grow.
const MEMORY_BOUND: u64 = 96 << 20;

fn write_round(conn: &mut Conn, values: &[Vec<u8>], round: usize) {
    let commands: Vec<Vec<&[u8]>> = (0..values.len())
        .map(|n| vec![&b"SETRANGE"[..], NAMES[n % NAMES.len()], b"0", &values[(n + round) % values.len()]])
        .collect();
    for reply in conn.pipeline(&commands).expect("replies") {
        assert!(reply.error().is_none(), "{reply:?}");
    }
}

const NAMES: [&[u8]; 8] = [b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"h"];

#[test]
fn a_stopped_target_costs_the_source_no_memory() {
    a_stopped_target_costs_no_memory(Duration::from_secs(15), 300 << 20);
}

#[test]
#[ignore = "soak: a minute"]
fn soak_a_target_stopped_for_a_minute() {
    a_stopped_target_costs_no_memory(Duration::from_secs(60), 1 << 30);
}
