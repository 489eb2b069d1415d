//! Nodes that have gone another way than their source.

use crate::dr::{self, Site};
use crate::harness::Proxy;
use crate::workload::Conn;

fn count(conn: &mut Conn, times: usize) {
    for _ in 0..times {
        assert!(conn.call(&["INCR", "never sent"]).error().is_none());
    }
}

/// A source saved while its line was down, and was lost. Coming back it had only RDBs above the fork point and
/// took a full copy; and once it could rebuild, its next start began from the RDB of the wrong branch.
#[test]
fn a_source_that_saved_above_the_fork_point_needs_no_copy() {
    let source = Site::start("redis-7.0", 0);
    let target = Site::start("redis-7.0", 1);
    let proxy = Proxy::start(source.endpoint());
    let mut conn = source.conn();
    conn.call(&["SET", "expires", "1", "EX", "5000"]);
    target.link_to(&[proxy.addr()]);
    dr::wait_in_step(&source, &target);
    proxy.down();
    for _ in 0..2 {
        count(&mut conn, 50);
        let op = conn.call(&["DR.SNAPSHOT"]);
        assert!(op.error().is_none(), "{op:?}");
    }
    source.kill();
    let cut = target.conn().call(&["DR.CUTLINK"]);
    assert!(cut.error().is_none(), "{cut:?}");
    target.conn().call(&["SET", "at the target", "1"]);

    source.start_again();
    source.link(&[&target]);
    dr::wait_in_step(&target, &source);
    dr::wait_same_digest(&[&target, &source], "after the rebuild");
    let status = source.status();
    assert_eq!(status["full_syncs"], 0, "{status}");
    assert_eq!(status["rebuilds"], 1, "{status}");
    assert_eq!(status["orphans"].as_array().map(Vec::len), Some(1), "{status}");

    source.kill();
    target.conn().call(&["SET", "at the target", "2"]);
    source.start_again();
    dr::wait_in_step(&target, &source);
    dr::wait_same_digest(&[&target, &source], "after another start");
    assert_eq!(source.full_syncs(), 0);
}

/// After DR.RESYNC a target that had stopped at an op said that it streams, and applied nothing.
#[test]
fn a_stopped_target_takes_a_copy_at_dr_resync() {
    let source = Site::start("redis-8.0", 0);
    let target = Site::start("redis-7.4", 1);
    let mut conn = source.conn();
    conn.call(&["SET", "before", "1"]);
    target.link(&[&source]);
    dr::wait_in_step(&source, &target);
    // 7.4 does not know the command.
    assert!(conn.call(&["HSETEX", "hash", "FIELDS", "1", "field", "value"]).error().is_none());
    dr::eventually("the target stops", || {
        let status = target.status();
        let reason = status["state_reason"].as_str().unwrap_or_default().to_owned();
        (status["state"] == "failed" && reason.contains("HSETEX")).then_some(()).ok_or(status.to_string())
    });
    assert!(conn.call(&["DR.SNAPSHOT"]).error().is_none());
    assert!(target.conn().call(&["DR.RESYNC"]).error().is_none());
    conn.call(&["SET", "after", "1"]);
    dr::wait_in_step(&source, &target);
    dr::wait_same_digest(&[&source, &target], "after DR.RESYNC");
    assert_eq!(target.full_syncs(), 2);
}
