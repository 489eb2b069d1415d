//! What an operator does by hand where there is no Sentinel: replicas promoted by REPLICAOF NO ONE, links cut above
//! them, targets that know only a replica.

use crate::harness::{wait_equal, Server, Version};

fn pair(v: Version, service_id: u8) -> (Server, Server) {
    let start = || Server::builder(v).arg("service-id", service_id).start();
    let (master, replica) = (start(), start());
    master.wait_state("capturing");
    replica.replicate(&master);
    (master, replica)
}

fn linked(v: Version) -> (Server, Server, Server) {
    let source = Server::builder(v).start();
    source.wait_state("capturing");
    let (target, replica) = pair(v, 1);
    cmd!(source.client(), "SET", "before", "the link").ok();
    cmd!(target.client(), "DR.LINK", source.endpoint()).ok();
    wait_equal(&source, &target);
    replica.wait_status("one that knows the link", |s| s.role() == "replica");
    (source, target, replica)
}

/// The target lists the replica's endpoint only, and follows the master.
fn a_replica_sends_targets_to_its_master(v: Version) {
    let (master, replica) = pair(v, 0);
    cmd!(master.client(), "SET", "written at", "the master").ok();
    let target = Server::builder(v).arg("service-id", 1).arg("source", replica.endpoint()).start();
    wait_equal(&master, &target);
    target.wait_status("following the master", |s| {
        s.text("link/source") == master.endpoint() && s.text("link/state") == "streaming"
    });
    master.wait_status("serving the target", |s| s.target(1).is_some());
}
for_some_servers!(a_replica_sends_targets_to_its_master);

/// The target is lost, and its replica is promoted by hand: fenced from the first moment, it goes on where it was.
fn a_replica_of_a_target_resumes_the_link(v: Version) {
    let (source, target, replica) = linked(v);
    cmd!(source.client(), "INCR", "counter").good();
    wait_equal(&source, &target);
    replica.wait_in_step(&target);
    target.kill9();
    cmd!(source.client(), "INCR", "counter").good();
    cmd!(replica.client(), "REPLICAOF", "NO", "ONE").ok();
    let refused = cmd!(replica.client(), "SET", "mine", "1");
    assert!(refused.is_error("READONLY"), "{refused:?}");
    cmd!(source.client(), "INCR", "counter").good();
    wait_equal(&source, &replica);
    let status = replica.wait_state("streaming");
    assert_eq!((status.role(), status.full_syncs()), ("target", 0), "{:#}", status.0);
    assert_eq!(cmd!(replica.client(), "GET", "counter").text(), "3");
}
for_some_servers!(a_replica_of_a_target_resumes_the_link);

/// A cut at the target is one for its replicas: promoted later they are sources, and nothing of the former source's
/// reaches them.
fn a_cut_reaches_replicas(v: Version) {
    let (source, target, replica) = linked(v);
    cmd!(target.client(), "DR.CUTLINK").good();
    target.wait_state("capturing");
    cmd!(target.client(), "SET", "after", "the cut").ok();
    cmd!(source.client(), "SET", "after", "other data").ok();
    replica.wait_in_step(&target);
    target.kill9();
    cmd!(replica.client(), "REPLICAOF", "NO", "ONE").ok();
    let status = replica.wait_status("a source", |s| s.role() == "source" && s.state() == "capturing");
    assert!(status.field("link").is_null(), "{:#}", status.0);
    cmd!(replica.client(), "SET", "mine", "1").ok();
    assert_eq!(cmd!(replica.client(), "GET", "after").text(), "the cut");
    // Over a restart, too.
    cmd!(replica.client(), "SAVE").ok();
    replica.kill9();
    replica.start_again();
    assert_eq!(replica.wait_state("capturing").role(), "source");
    assert_eq!(cmd!(replica.client(), "GET", "mine").text(), "1");
}
for_some_servers!(a_cut_reaches_replicas);
