//! Proves that a snapshot that is sent while it is saved arrives whole or not at all, whatever happens to the save,
//! the link or the target's disk meanwhile.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod link_support;

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use link_support::proxy::{Fault, Kind, Proxy, Way};
use link_support::{wait_for, Saving, Source, Target};
use redisdr::link::{EndpointHandle, LinkState, TargetState};

const FILLING: u64 = 2_000_000;
const SEEN: u64 = 700_001;

/// A source whose save stands at [`SEEN`] bytes.
fn saving() -> (Arc<Source>, Arc<Saving>, EndpointHandle) {
    let source = Source::new();
    source.filling.store(FILLING, Ordering::SeqCst);
    source.write(50);
    let saving = Arc::new(Saving::default());
    saving.visible.store(SEEN, Ordering::SeqCst);
    *source.saving.lock() = Some(Arc::clone(&saving));
    let mut config = Source::config();
    config.timeout = Duration::from_secs(1);
    let endpoint = source.serve(config);
    (source, saving, endpoint)
}

fn wait_received(target: &Target, bytes: u64) {
    target.wait_state(
        "so many bytes are here",
        |s| matches!(s, LinkState::Snapshot { received, total: 0, .. } if *received == bytes),
    );
}

#[test]
fn what_is_there_is_sent_while_the_rest_is_saved() {
    let (source, saving, endpoint) = saving();
    let target = Target::new(1);
    let _link = target.link_to(&endpoint);
    wait_received(&target, SEEN);
    saving.visible.store(SEEN + 1, Ordering::SeqCst);
    wait_received(&target, SEEN + 1);
    let status = &endpoint.targets()[0];
    assert_eq!((&status.state, status.pin), (&TargetState::Snapshot, Some(source.log.written())));
    // What is written meanwhile is above the snapshot, and the log is kept for it.
    source.write(100);
    assert_eq!(target.data.lock().applied, 0);
    saving.finish();
    target.wait_equal(&source);
    assert_eq!((target.full_syncs(), *target.announced.lock()), (1, None));
}

/// Longer than either side waits for a sign of life.
#[test]
fn a_save_that_stands_still_does_not_end_the_link() {
    let (source, saving, endpoint) = saving();
    let proxy = Proxy::to(endpoint.local_addr());
    let target = Target::new(1);
    let mut config = Target::config(&[proxy.addr.to_string()]);
    config.timeout = Duration::from_secs(1);
    let _link = target.link(config);
    wait_received(&target, SEEN);
    std::thread::sleep(Duration::from_millis(2500));
    saving.finish();
    target.wait_equal(&source);
    assert_eq!(proxy.connections(), 1);
}

#[test]
fn a_save_that_fails_leaves_the_target_as_it_was() {
    for shrinks in [false, true] {
        let (source, saving, endpoint) = saving();
        let target = Target::new(1);
        let link = target.link_to(&endpoint);
        wait_received(&target, SEEN);
        if shrinks {
            saving.visible.store(10, Ordering::SeqCst);
        } else {
            saving.failed.store(true, Ordering::SeqCst);
        }
        let reason = target.wait_refused();
        assert!(reason.contains(if shrinks { "shrunk" } else { "BGSAVE has failed" }), "{reason}");
        assert_eq!((target.data.lock().applied, target.full_syncs()), (0, 0));
        assert!(target.counts.dropped.load(Ordering::SeqCst) > 0);
        *source.saving.lock() = None;
        link.reconnect();
        target.wait_equal(&source);
        assert!(target.announced.lock().is_some());
    }
}

#[test]
fn a_link_that_is_cut_meanwhile_takes_it_from_the_beginning() {
    let (source, saving, endpoint) = saving();
    let proxy = Proxy::to(endpoint.local_addr());
    let target = Target::new(1);
    let _link = target.link(Target::config(&[proxy.addr.to_string()]));
    wait_received(&target, SEEN);
    proxy.cut_all();
    wait_for("another connection", || proxy.connections() == 2);
    target.states.lock().clear();
    wait_received(&target, SEEN);
    source.write(20);
    saving.finish();
    target.wait_equal(&source);
    assert_eq!((target.full_syncs(), target.counts.failed_loads.load(Ordering::SeqCst)), (1, 0));
}

#[test]
fn a_full_disk_at_the_target_changes_nothing_there() {
    let (source, saving, endpoint) = saving();
    let target = Target::new(1);
    *target.full_at.lock() = Some(SEEN / 2);
    let link = target.link_to(&endpoint);
    wait_for("the reason", || link.status().last_error.contains("no space left"));
    assert_eq!((target.data.lock().applied, target.full_syncs()), (0, 0));
    assert!(target.counts.dropped.load(Ordering::SeqCst) > 0);
    *target.full_at.lock() = None;
    saving.finish();
    link.reconnect();
    target.wait_equal(&source);
}

#[test]
fn damage_on_the_way_is_seen() {
    let (source, saving, endpoint) = saving();
    saving.finish();
    let proxy = Proxy::to(endpoint.local_addr());
    for round in 0..8u64 {
        let target = Target::new(1);
        let kind = [Kind::Flip, Kind::Skip, Kind::Double, Kind::Cut][round as usize % 4];
        let at = 600 + round * FILLING / 8;
        proxy.break_next(Fault { way: Way::ToTarget, at, kind });
        let link = target.link(Target::config(&[proxy.addr.to_string()]));
        target.wait_equal(&source);
        assert_eq!(target.counts.failed_loads.load(Ordering::SeqCst), 0, "{kind:?} at {at} was handed on");
        link.stop();
    }
    assert!(proxy.connections() >= 16, "{}", proxy.connections());
}

/// The limit is for snapshots of all targets together, and for nothing else.
#[test]
fn snapshots_have_a_limit_of_their_own() {
    let source = Source::new();
    source.filling.store(FILLING, Ordering::SeqCst);
    source.write(50);
    let mut config = Source::config();
    config.snapshot_max_bytes_per_sec = Some(1_500_000);
    let endpoint = source.serve(config);
    let targets = [Target::new(1), Target::new(2)];
    let begun = Instant::now();
    let _links = targets.each_ref().map(|t| t.link_to(&endpoint));
    for target in &targets {
        target.wait_equal(&source);
    }
    // Twice the filling, of which one second's worth is there at the beginning.
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(1500), "{took:?}");
    let begun = Instant::now();
    for n in 0..20 {
        source.write_entry(link_support::now_ms(), &[link_support::set_op(n, 500_000)]);
    }
    for target in &targets {
        target.wait_equal(&source);
    }
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(6), "20 MB of ops took {took:?}");
}
