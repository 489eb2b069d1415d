//! A server with the module as the tests see it: start, link, status, kill, and waits with deadlines.

use crate::harness::wait::{deadline, poll, secs};
pub use crate::site::Site;
use crate::workload::compare::{self, Detail};
use crate::workload::table::Caps;

/// All servers that the module supports, by the name that `scripts/servers` has for them.
pub const VERSIONS: [&str; 7] =
    ["redis-6.0", "redis-6.2", "redis-7.0", "redis-7.4", "redis-8.0", "valkey-8.1", "valkey-9.1"];

/// What a node keeps of its dataset besides the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    Rdb,
    Aof,
}

/// Calls a closure at the end of a scope, also when a test fails in it.
pub struct OnDrop<F: Fn()>(pub F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Polls until `check` is content; at the deadline the test ends with what it said last.
pub fn eventually(what: &str, mut check: impl FnMut() -> Result<(), String>) {
    let mut last = String::new();
    let done = poll(deadline(), || match check() {
        Ok(()) => Some(()),
        Err(why) => {
            last = why;
            None
        }
    });
    assert!(done.is_some(), "not in time: {what}: {last}");
}

pub fn wait_streaming(target: &Site) {
    eventually("the link streams", || {
        let status = target.status();
        match status["link"]["state"] == "streaming" {
            true => Ok(()),
            false => Err(status.to_string()),
        }
    });
}

/// Waits until the target has applied every op that the source has; nobody may write meanwhile.
pub fn wait_in_step(source: &Site, target: &Site) {
    eventually("the target is in step", || {
        let (at_source, at_target) = (source.status(), target.status());
        let (op, applied) = (at_source["op_id"].as_u64(), at_target["applied_op_id"].as_u64());
        match op.is_some() && op == applied && at_target["state"] == "streaming" {
            true => Ok(()),
            false => Err(format!("source: {at_source}\ntarget: {at_target}")),
        }
    });
}

/// Waits until a native replica has all of its master's stream; nobody may write meanwhile.
pub fn wait_replica(master: &Site, replica: &Site) {
    replica.wait_follows(master);
}

/// Waits until all have the digest of the first.
pub fn wait_same_digest(sites: &[&Site], what: &str) {
    eventually(what, || {
        let digests: Vec<String> = sites.iter().map(|s| s.conn().call(&["DEBUG", "DIGEST"]).text()).collect();
        match digests.iter().all(|d| *d == digests[0]) {
            true => Ok(()),
            false => Err(format!("{digests:?}; {}", describe_first_difference(sites))),
        }
    });
}

/// The digests say that something differs; this says what, for the message of a failed test.
fn describe_first_difference(sites: &[&Site]) -> String {
    let caps = sites[0].table().caps;
    let read = |s: &Site| compare::read(&mut s.conn(), &caps, Detail::MasterAndReplica);
    let first = read(sites[0]);
    if first.keys.len() > 10_000 {
        return String::new();
    }
    let differing = sites[1..].iter().map(|s| compare::differences(&first, &read(s)));
    differing.flatten().take(12).collect::<Vec<_>>().join("\n")
}

/// Key by key. What differs has ten seconds to become equal: a master hides a key that has expired before it deletes it,
/// and a target or replica still shows it until then.
pub fn assert_same(a: &Site, b: &Site, caps: &Caps, detail: Detail, what: &str) {
    let mut differences = Vec::new();
    let same = poll(secs(10), || {
        let (x, y) = (compare::read(&mut a.conn(), caps, detail), compare::read(&mut b.conn(), caps, detail));
        differences = compare::differences(&x, &y);
        differences.is_empty().then_some(())
    });
    assert!(same.is_some(), "{what} ({detail:?}):\n{}", differences.join("\n"));
}
