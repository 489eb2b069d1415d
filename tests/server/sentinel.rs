//! Sentinels that watch a source see its replicas and not the tap.

use crate::harness::wait::until;
use crate::harness::{version, wait_equal, Sentinels, Server};

fn the_tap_is_no_replica(name: &str) {
    let version = version(name);
    let source = Server::start(version);
    let replica = Server::start(version);
    replica.replicate(&source);
    source.wait_state("capturing");
    let sentinels = Sentinels::start(version, "shard", &source);
    until("the Sentinels list the replica", || sentinels.replica_ports().contains(&replica.port()));
    for node in &sentinels.nodes {
        assert_eq!(sentinels.field(node, "num-slaves"), "1", "{name}");
    }
    assert_eq!(sentinels.replica_ports(), [replica.port()], "{name}");

    // A target's own subscribers do not hear the Sentinels of the source, and it works beside them.
    let target = Server::builder(version).arg("service-id", 1).source(&source).start();
    target.wait_state("streaming");
    cmd!(source.client(), "SET", "key", "value").ok();
    wait_equal(&source, &target);
    assert_eq!(sentinels.replica_ports(), [replica.port()], "{name}");
    for node in &sentinels.nodes {
        assert!(!node.log().contains("99999"), "{name}: {}", node.log_tail(20));
    }
}

#[test]
fn sentinels_do_not_list_the_tap_redis_6_0() {
    the_tap_is_no_replica("redis-6.0");
}

#[test]
fn sentinels_do_not_list_the_tap_redis_7_0() {
    the_tap_is_no_replica("redis-7.0");
}

#[test]
fn sentinels_do_not_list_the_tap_valkey_9_1() {
    the_tap_is_no_replica("valkey-9.1");
}
