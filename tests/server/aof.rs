//! Starts from an AOF: what the module knows of the dataset's position then.

use crate::dr::{self, Persistence, Site};

const VERSIONS: [&str; 3] = ["redis-6.0", "redis-7.0", "valkey-9.1"];

fn count(site: &Site, times: usize) {
    let mut conn = site.conn();
    for _ in 0..times {
        assert!(conn.call(&["INCR", "counter"]).error().is_none());
    }
}

fn counter(site: &Site) -> String {
    site.conn().call(&["GET", "counter"]).text()
}

/// A clean stop leaves its position: the targets go on without a copy. A crash leaves none: they take one.
fn a_source_with_an_aof_starts_again(version: &str) {
    let source = Site::start_with(version, 0, Persistence::Aof, &[]);
    let target = Site::start(version, 1);
    count(&source, 50);
    target.link(&[&source]);
    count(&source, 50);
    dr::wait_in_step(&source, &target);

    source.shut_down();
    source.start_again();
    count(&source, 50);
    dr::wait_in_step(&source, &target);
    assert_eq!((counter(&source), counter(&target)), ("150".into(), "150".into()), "{version}: clean stop");
    assert_eq!(
        (target.full_syncs(), source.status()["gaps"].as_i64()),
        (1, Some(0)),
        "{version}: clean stop"
    );

    dr::eventually("the AOF has everything", || {
        let info = source.conn().call(&["INFO", "persistence"]).text();
        match info.contains("aof_pending_bio_fsync:0") {
            true => Ok(()),
            false => Err(info),
        }
    });
    source.kill();
    source.start_again();
    count(&source, 50);
    dr::wait_in_step(&source, &target);
    dr::wait_same_digest(&[&source, &target], &format!("{version}: crash"));
    assert_eq!(target.full_syncs(), 2, "{version}: nobody knew where the dataset stood");
}

#[test]
fn a_source_with_an_aof_starts_again_on_redis_6_0() {
    a_source_with_an_aof_starts_again(VERSIONS[0]);
}

#[test]
fn a_source_with_an_aof_starts_again_on_redis_7_0() {
    a_source_with_an_aof_starts_again(VERSIONS[1]);
}

#[test]
fn a_source_with_an_aof_starts_again_on_valkey_9_1() {
    a_source_with_an_aof_starts_again(VERSIONS[2]);
}

/// A promoted target's AOF begins with DR.APPLY and goes on with its own writes, which are in its log, too: a start
/// must not apply those a second time.
fn a_promoted_target_with_an_aof_starts_again(version: &str) {
    let source = Site::start(version, 0);
    let target = Site::start_with(version, 1, Persistence::Aof, &[]);
    target.link(&[&source]);
    count(&source, 50);
    dr::wait_in_step(&source, &target);
    assert!(target.conn().call(&["DR.CUTLINK"]).error().is_none());
    count(&target, 50);
    target.kill();
    target.start_again();
    assert_eq!(counter(&target), "100", "{version}");
    count(&target, 1);
    target.shut_down();
    target.start_again();
    assert_eq!(counter(&target), "101", "{version}");
}

#[test]
fn a_promoted_target_with_an_aof_starts_again_on_redis_6_0() {
    a_promoted_target_with_an_aof_starts_again(VERSIONS[0]);
}

#[test]
fn a_promoted_target_with_an_aof_starts_again_on_redis_7_0() {
    a_promoted_target_with_an_aof_starts_again(VERSIONS[1]);
}
