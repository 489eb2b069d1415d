//! Every write command of every server arrives: source and target hold the same after a random workload.

use std::sync::Arc;

use serde_json::Value;

use crate::dr::{self, Site};
use crate::workload::compare::{self, Detail};
use crate::workload::{CommandTable, Conn, Fleet};

/// Steps between two pauses. The steps are pipelined: this is a second or two.
const STEPS: u64 = 5000;
const LANES: u64 = 3;
const ROUNDS: usize = 3;

/// Source with a replica, target with a replica, one version. The target is held against the source, and more
/// strictly against the source's replica, which was fed by the same stream.
fn every_write_command_arrives(version: &str, seed: u64) {
    let source = Site::start(version, 0);
    let source_replica = Site::replica_of(&source);
    let target = Site::start(version, 1);
    let target_replica = Site::replica_of(&target);
    target.link(&[&source]);
    dr::wait_streaming(&target);

    let table = Arc::new(source.table());
    let compare = |what: &str| {
        compare::settle(&mut source.conn(), &table.caps);
        dr::wait_in_step(&source, &target);
        let what = format!("{version}, seed {seed}, {what}");
        dr::wait_same_digest(&[&source, &source_replica, &target, &target_replica], &what);
        let between = |pair: &str| format!("{what}, {pair}");
        let (caps, strict) = (&table.caps, Detail::Replicas);
        dr::assert_same(&source, &target, caps, Detail::MasterAndReplica, &between("source and target"));
        dr::assert_same(&source_replica, &target, caps, strict, &between("source's replica and target"));
        dr::assert_same(&target, &target_replica, caps, strict, &between("target and its replica"));
    };
    let fleet = Fleet::start(source.addr(), &table, seed, LANES);
    let coverage = fleet.run_rounds(ROUNDS, STEPS, compare);
    assert_eq!(coverage.gaps(&table), Vec::<String>::new(), "{version}");
    assert_eq!(target.full_syncs(), 1, "one snapshot brought the target up");
}

macro_rules! per_version {
    ($($name:ident: $version:expr, $seed:expr;)*) => {
        $(#[test] fn $name() { every_write_command_arrives($version, $seed); })*
    };
}
per_version! {
    every_write_command_arrives_on_redis_6_0: "redis-6.0", 60;
    every_write_command_arrives_on_redis_6_2: "redis-6.2", 62;
    every_write_command_arrives_on_redis_7_0: "redis-7.0", 70;
    every_write_command_arrives_on_redis_7_4: "redis-7.4", 74;
    every_write_command_arrives_on_redis_8_0: "redis-8.0", 80;
    every_write_command_arrives_on_valkey_8_1: "valkey-8.1", 181;
    every_write_command_arrives_on_valkey_9_1: "valkey-9.1", 191;
}

/// Commands whose result depends on the version: the same places are found by other box tests, and stored; entries that
/// are gone are claimed before 7.0 and dropped from the pending ones since.
pub const DIFFERS_ACROSS_VERSIONS: &[&str] =
    &["georadius", "georadiusbymember", "geosearchstore", "xclaim", "xautoclaim"];

/// DEBUG DIGEST prints scores as each version does, so only the key-by-key comparison counts here.
fn arrives_across_versions(from: &str, to: &str, seed: u64) {
    let source = Site::start(from, 0);
    let target = Site::start(to, 1);
    target.link(&[&source]);
    dr::wait_streaming(&target);
    let table = CommandTable::common(&source.table(), &target.table()).without(DIFFERS_ACROSS_VERSIONS);
    let table = Arc::new(table);
    let fleet = Fleet::start(source.addr(), &table, seed, LANES);
    let compare = |what: &str| {
        compare::settle(&mut source.conn(), &table.caps);
        dr::wait_in_step(&source, &target);
        let what = format!("{from} to {to}, seed {seed}, {what}");
        dr::assert_same(&source, &target, &table.caps, Detail::AcrossVersions, &what);
    };
    let coverage = fleet.run_rounds(ROUNDS, STEPS, compare);
    assert_eq!(coverage.gaps(&table), Vec::<String>::new(), "{from} to {to}");
}

#[test]
fn commands_arrive_from_redis_6_0_at_7_0() {
    arrives_across_versions("redis-6.0", "redis-7.0", 6070);
}

#[test]
fn commands_arrive_from_redis_7_0_at_8_0() {
    arrives_across_versions("redis-7.0", "redis-8.0", 7080);
}

#[test]
fn commands_arrive_from_redis_6_0_at_valkey_9_1() {
    arrives_across_versions("redis-6.0", "valkey-9.1", 6091);
}

/// A target that cannot load the source's RDB is told so before anything of its own is touched.
fn refused(from: &str, to: &str) {
    let source = Site::start(from, 0);
    let target = Site::start(to, 1);
    source.conn().call(&["SET", "made at", "the source"]);
    let mut conn: Conn = target.conn();
    conn.call(&["SET", "made at", "the target"]);
    conn.call(&["RPUSH", "list", "a", "b"]);
    let before = compare::read(&mut conn, &target.table().caps, Detail::Replicas);
    target.link(&[&source]);

    let says_why = |status: &Value| {
        let text = status.to_string().to_lowercase();
        text.contains("refused") && (text.contains("rdb") || text.contains("version"))
    };
    dr::eventually("both ends say why", || {
        let (at_target, at_source) = (target.status(), source.status());
        match says_why(&at_target) && says_why(&at_source) {
            true => Ok(()),
            false => Err(format!("target: {at_target}\nsource: {at_source}")),
        }
    });
    let after = compare::read(&mut target.conn(), &target.table().caps, Detail::Replicas);
    assert_eq!(
        compare::differences(&before, &after),
        Vec::<String>::new(),
        "{from} to {to} touched the target"
    );
    assert_eq!(target.full_syncs(), 0);
}

#[test]
fn a_target_too_old_for_the_source_is_refused() {
    refused("redis-8.0", "redis-7.0");
    refused("redis-7.0", "redis-6.2");
    refused("valkey-9.1", "valkey-8.1");
    refused("redis-8.0", "valkey-9.1");
}

/// Messages are in the stream too. Those of Sentinels stay at their own site.
#[test]
fn published_messages_arrive_once_and_in_order() {
    let source = Site::start("redis-7.0", 0);
    let target = Site::start("redis-7.0", 1);
    target.link(&[&source]);
    dr::wait_in_step(&source, &target);
    let mut subscriber = target.conn();
    let hello = "__sentinel__:hello";
    for channel in ["news", hello] {
        assert_eq!(subscriber.call(&["SUBSCRIBE", channel]).items()[0].text(), "subscribe");
    }
    let mut conn = source.conn();
    for n in 0..50 {
        conn.call(&["PUBLISH", hello, "127.0.0.1,26379,0,mymaster"]);
        conn.call(&["PUBLISH", "news", &n.to_string()]);
    }
    for n in 0..50 {
        let message: Vec<String> =
            subscriber.read().expect("a message").items().iter().map(|i| i.text()).collect();
        assert_eq!(message, ["message", "news", &n.to_string()]);
    }
}
