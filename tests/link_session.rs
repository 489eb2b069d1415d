//! Proves that a target comes to equal its source from wherever it stands, and never loses what the guard
//! protects.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod link_support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use link_support::{history, now_ms, set_op, wait_for, Source, Target, PING};
use redisdr::link::{Consent, LinkState, TargetState};
use redisdr::store::FsyncPolicy;

#[test]
fn a_fresh_target_takes_a_snapshot_and_follows() {
    let source = Source::new();
    source.write(50);
    let endpoint = source.start();
    let target = Target::new(1);
    let link = target.link_to(&endpoint);
    target.wait_equal(&source);
    assert_eq!(target.full_syncs(), 1);
    for _ in 0..20 {
        source.write(10);
        target.wait_equal(&source);
    }
    wait_for("acks", || endpoint.durable_on(source.log.written()) == 1);
    wait_for("applied", || endpoint.targets()[0].applied_op_id == source.log.written());
    let status = &endpoint.targets()[0];
    assert_eq!((status.service_id, &status.state), (1, &TargetState::Streaming));
    assert_eq!((status.lag_bytes, status.lag_ms), (0, 0));
    assert_eq!(endpoint.min_durable(), Some(source.log.written()));
    wait_for("the source's position", || link.status().source_op_id == source.log.written());
    assert_eq!(link.status().state, LinkState::Streaming);
    assert_eq!(link.status().lag_bytes, 0);
    assert_eq!(target.full_syncs(), 1);
}

#[test]
fn a_target_resumes_where_it_was() {
    let source = Source::new();
    let mut config = Source::config();
    let endpoint = source.serve(config.clone());
    config.listen = endpoint.local_addr().to_string();
    let target = Target::new(1);
    let link = target.link_to(&endpoint);
    target.wait_equal(&source);
    source.write(100);
    target.wait_equal(&source);
    wait_for("durable", || endpoint.min_durable() == Some(source.log.written()));
    let held = source.log.written();

    link.stop();
    source.write(2000);
    wait_for("away", || endpoint.targets()[0].state == TargetState::Disconnected);
    assert_eq!(endpoint.min_durable(), Some(held), "the log is kept for a target that is away");
    assert!(endpoint.targets()[0].lag_bytes > 0);
    let link = target.link_to(&endpoint);
    target.wait_equal(&source);

    // The source goes and comes back with what it saved of its targets.
    endpoint.stop();
    config.registered = source.registered.lock().clone();
    source.write(100);
    let endpoint = source.serve(config);
    assert!(endpoint.min_durable().is_some());
    target.wait_equal(&source);
    assert_eq!(target.full_syncs(), 1);
    drop(link);
}

#[test]
fn histories_arrive_at_their_op() {
    let source = Source::new();
    source.write(10);
    let endpoint = source.start();
    let target = Target::new(1);
    let link = target.link_to(&endpoint);
    target.wait_equal(&source);
    // While it follows.
    source.log.begin_history(history('b'), source.log.written() + 1).unwrap();
    source.write(10);
    target.wait_equal(&source);
    link.stop();
    // And two within what it gets at once.
    source.write(10);
    source.log.begin_history(history('c'), source.log.written() + 1).unwrap();
    source.write(10);
    source.log.begin_history(history('d'), source.log.written() + 1).unwrap();
    source.write(10);
    let _link = target.link_to(&endpoint);
    target.wait_equal(&source);
    assert_eq!(target.log.lineage().items().len(), 4);
    assert_eq!(target.full_syncs(), 1);
}

/// Two nodes of a shard frame the same ops otherwise: a target that followed one goes on at the other.
#[test]
fn a_position_within_an_entry_goes_on_there() {
    let source = Source::new();
    let endpoint = source.start();
    let target = Target::new(1);
    target.fresh.store(false, Ordering::SeqCst);
    target.log.begin_history(history('a'), 1).unwrap();
    let ops: Vec<_> = (0..5).map(|i| set_op(i, 30)).collect();
    target.own_write(now_ms(), &ops[..2]);
    source.write_entry(now_ms(), &ops);
    source.write(3);
    let _link = target.link_to(&endpoint);
    target.wait_equal(&source);
    assert_eq!(target.full_syncs(), 0);
}

#[test]
fn a_trimmed_log_means_a_snapshot() {
    let source = Source::new();
    let endpoint = source.start();
    let target = Target::new(1);
    let link = target.link_to(&endpoint);
    source.write(10);
    target.wait_equal(&source);
    link.stop();
    source.write(100);
    source.log.clean(source.log.written(), Duration::ZERO, now_ms()).unwrap();
    assert!(source.log.oldest() > target.log.written() + 1);
    let _link = target.link_to(&endpoint);
    target.wait_equal(&source);
    assert_eq!(target.full_syncs(), 2);
}

/// A gap opens in the source's log while a target follows: it finds out by itself.
#[test]
fn a_gap_means_a_snapshot() {
    let source = Source::new();
    let endpoint = source.start();
    let target = Target::new(1);
    let _link = target.link_to(&endpoint);
    source.write(10);
    target.wait_equal(&source);
    {
        let mut data = source.data.lock();
        let above = source.log.written() + 1000;
        source.log.begin_history(history('b'), above + 1).unwrap();
        data.applied = above;
    }
    source.write(10);
    target.wait_equal(&source);
    assert_eq!(target.full_syncs(), 2);
}

/// Both wrote in history `a` up to a common op, then parted.
fn forked(target_ops: &[(u64, Vec<u8>)]) -> (std::sync::Arc<Source>, std::sync::Arc<Target>) {
    let source = Source::new();
    let target = Target::new(1);
    target.log.begin_history(history('a'), 1).unwrap();
    for n in 0..10 {
        let op = set_op(n, 10);
        source.write_entry(now_ms(), std::slice::from_ref(&op));
        target.own_write(now_ms(), &[op]);
    }
    source.log.begin_history(history('b'), source.log.written() + 1).unwrap();
    source.write(5);
    for (time, op) in target_ops {
        target.own_write(*time, std::slice::from_ref(op));
    }
    (source, target)
}

#[test]
fn a_short_fork_is_set_aside_and_rebuilt() {
    let (source, target) = forked(&[(1_000_000, set_op(1, 1)), (1_009_000, set_op(2, 2))]);
    let endpoint = source.start();
    let end = target.log.written();
    let _link = target.link_to(&endpoint);
    target.wait_equal(&source);
    assert_eq!(target.counts.rebuilds.load(Ordering::SeqCst), 1);
    assert_eq!(target.full_syncs(), 0);
    assert_eq!(target.orphans.lock()[0].1, end);
}

#[test]
fn a_short_fork_that_cannot_be_rebuilt_is_copied() {
    let (source, target) = forked(&[(1_000_000, set_op(1, 1))]);
    target.can_rebuild.store(false, Ordering::SeqCst);
    let endpoint = source.start();
    let _link = target.link_to(&endpoint);
    target.wait_equal(&source);
    assert_eq!((target.counts.rebuilds.load(Ordering::SeqCst), target.full_syncs()), (0, 1));
}

#[test]
fn pings_of_any_length_are_no_fork_to_mind() {
    let (source, target) = forked(&[(1_000_000, PING.to_vec()), (9_000_000, PING.to_vec())]);
    let endpoint = source.start();
    let _link = target.link_to(&endpoint);
    target.wait_equal(&source);
    assert_eq!(target.full_syncs(), 0);
}

#[test]
fn a_long_fork_holds_until_the_operator_speaks() {
    for consent in [Consent::Link, Consent::Resync] {
        let (source, target) = forked(&[(1_000_000, set_op(1, 1)), (1_011_000, set_op(2, 2))]);
        let before = *target.data.lock();
        let endpoint = source.start();
        let link = target.link_to(&endpoint);
        target.wait_state("held", |s| matches!(s, LinkState::Held { .. }));
        wait_for("held at the source", || endpoint.targets()[0].state == TargetState::Held);
        source.write(5);
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(*target.data.lock(), before, "a held target keeps its data");
        assert!(matches!(link.status().state, LinkState::Held { .. }));
        // The log is kept from the fork point on, for a rebuild.
        assert_eq!(endpoint.min_durable(), Some(source.log.lineage().items()[1].first_op - 1));
        *target.consent.lock() = consent;
        link.reconnect();
        target.wait_equal(&source);
        let expected = if consent == Consent::Link { (1, 0) } else { (0, 1) };
        assert_eq!((target.counts.rebuilds.load(Ordering::SeqCst), target.full_syncs()), expected);
    }
}

/// A source that came back without its last ops, within the tolerance and beyond.
#[test]
fn a_source_that_lost_its_end_is_a_fork() {
    for (span, held) in [(5_000, false), (60_000, true)] {
        let source = Source::new();
        let target = Target::new(1);
        target.log.begin_history(history('a'), 1).unwrap();
        source.write_entry(1, &[set_op(0, 10)]);
        target.own_write(1, &[set_op(0, 10)]);
        target.own_write(1_000_000, &[set_op(1, 10)]);
        target.own_write(1_000_000 + span, &[set_op(2, 10)]);
        let endpoint = source.start();
        let _link = target.link_to(&endpoint);
        if held {
            target.wait_state("held", |s| matches!(s, LinkState::Held { .. }));
            assert_eq!(target.full_syncs() + target.counts.rebuilds.load(Ordering::SeqCst), 0);
        } else {
            target.wait_equal(&source);
        }
    }
}

#[test]
fn an_unrelated_or_empty_source_holds_even_after_dr_link() {
    for (first, ops) in [('e', 0), ('f', 20)] {
        let source = Source::new();
        source.log.reset(oplog_format::Lineage::default(), 1).unwrap();
        source.log.begin_history(history(first), 1).unwrap();
        source.write(ops);
        let target = Target::new(1);
        target.log.begin_history(history('a'), 1).unwrap();
        target.own_write(now_ms(), &[set_op(1, 10)]);
        *target.consent.lock() = Consent::Link;
        let before = *target.data.lock();
        let endpoint = source.start();
        let link = target.link_to(&endpoint);
        target.wait_state("held", |s| matches!(s, LinkState::Held { .. }));
        assert_eq!(*target.data.lock(), before);
        assert_eq!(endpoint.min_durable(), None, "an unrelated target keeps no log");
        *target.consent.lock() = Consent::Resync;
        link.reconnect();
        target.wait_equal(&source);
    }
}

#[test]
fn a_large_entry_and_an_empty_source_pass() {
    let source = Source::new();
    let endpoint = source.start();
    let target = Target::new(1);
    let _link = target.link_to(&endpoint);
    target.wait_equal(&source);
    source.write_entry(now_ms(), &[set_op(1, 5_000_000)]);
    source.write(3);
    target.wait_equal(&source);
}

#[test]
fn lag_in_time_is_the_age_of_the_next_op() {
    let source = Source::new();
    let endpoint = source.start();
    let target = Target::new(1);
    let link = target.link_to(&endpoint);
    target.wait_equal(&source);
    // The feed stands still; the log goes on.
    *target.applied_at.lock() = Some(target.log.written());
    source.write_entry(now_ms() - 500_000, &[set_op(1, 10)]);
    wait_for("lag at the source", || endpoint.targets()[0].lag_ms >= 500_000);
    wait_for("lag at the target", || link.status().lag_ms >= 500_000);
    assert!(endpoint.targets()[0].lag_ms < 600_000);
    *target.applied_at.lock() = None;
    wait_for("no lag", || endpoint.targets()[0].lag_ms == 0 && link.status().lag_ms == 0);
    link.stop();
    // Away, and nothing known of what was written since: read from the log.
    source.write_entry(now_ms() - 900_000, &[set_op(1, 10)]);
    wait_for("lag while away", || endpoint.targets()[0].lag_ms >= 900_000);
}

/// Neither a write nor its ack waits for a timer: half of them are through in a small part of the shortest
/// interval that the link knows.
#[test]
fn a_write_and_its_ack_wait_for_no_timer() {
    let source = Source::new();
    let endpoint = source.start();
    let target = Target::with_fsync(1, link_support::node(1), FsyncPolicy::Always);
    let _link = target.link_to(&endpoint);
    target.wait_equal(&source);
    wait_for("streaming", || endpoint.targets()[0].state == TargetState::Streaming);
    let mut times: Vec<Duration> = (0..200u64)
        .map(|n| {
            let begun = std::time::Instant::now();
            let op = source.write_entry(now_ms(), &[set_op(n, 10)]);
            while endpoint.durable_on(op) == 0 {
                assert!(begun.elapsed() < link_support::PATIENCE);
                std::thread::yield_now();
            }
            begun.elapsed()
        })
        .collect();
    times.sort();
    eprintln!("write to durable ack: median {:?}, 99 % {:?}", times[100], times[198]);
    assert!(times[100] < Duration::from_millis(20), "{:?}", times[100]);
}
