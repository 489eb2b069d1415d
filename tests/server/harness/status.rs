//! What DR.STATUS says, and waiting for it.

use serde_json::Value;

use super::digest::{diff, digest};
use super::server::Server;
use super::wait::{deadline, eventually, poll, secs};

/// `DR.STATUS JSON`. A field that is absent or of another type panics with the whole document.
#[derive(Debug, Clone)]
pub struct Status(pub Value);

impl Status {
    /// A field; `/` goes deeper: `link/state`, `targets/0/lag_bytes`.
    #[track_caller]
    pub fn field(&self, path: &str) -> &Value {
        match self.0.pointer(&format!("/{path}")) {
            Some(value) => value,
            None => panic!("DR.STATUS has no {path}: {:#}", self.0),
        }
    }

    /// A text field.
    #[track_caller]
    pub fn text(&self, path: &str) -> &str {
        self.field(path).as_str().unwrap_or_else(|| panic!("{path} of DR.STATUS is no text: {:#}", self.0))
    }

    /// A number field.
    #[track_caller]
    pub fn number(&self, path: &str) -> u64 {
        self.field(path).as_u64().unwrap_or_else(|| panic!("{path} of DR.STATUS is no number: {:#}", self.0))
    }

    /// An array field.
    #[track_caller]
    pub fn list(&self, path: &str) -> &[Value] {
        self.field(path).as_array().unwrap_or_else(|| panic!("{path} of DR.STATUS is no list: {:#}", self.0))
    }

    /// source, target or replica.
    #[track_caller]
    pub fn role(&self) -> &str {
        self.text("role")
    }

    /// starting, recovering, capturing, connecting, snapshot, loading, streaming, held, rebasing or failed.
    #[track_caller]
    pub fn state(&self) -> &str {
        self.text("state")
    }

    /// Last op in the log.
    #[track_caller]
    pub fn op_id(&self) -> u64 {
        self.number("op_id")
    }

    /// Last op known to be on disk.
    #[track_caller]
    pub fn durable_op_id(&self) -> u64 {
        self.number("durable_op_id")
    }

    /// Last op in the dataset.
    #[track_caller]
    pub fn applied_op_id(&self) -> u64 {
        self.number("applied_op_id")
    }

    /// Full syncs since the node's log began.
    #[track_caller]
    pub fn full_syncs(&self) -> u64 {
        self.number("full_syncs")
    }

    /// What a source says of the target with that service_id.
    #[track_caller]
    pub fn target(&self, service_id: u64) -> Option<Status> {
        let found =
            self.list("targets").iter().find(|target| target["service_id"].as_u64() == Some(service_id));
        found.map(|target| Status(target.clone()))
    }
}

impl Server {
    /// DR.STATUS now; `None` when the server cannot answer it now (down, loading).
    pub fn try_status(&self) -> Option<Status> {
        let reply = self.is_alive().then(|| self.try_client()?.try_call(&["DR.STATUS", "JSON"]))?.ok()?;
        if reply.error().is_some() {
            return None;
        }
        match serde_json::from_slice(reply.bytes()) {
            Ok(value) => Some(Status(value)),
            Err(error) => panic!("DR.STATUS JSON is no JSON: {error}\n{}", reply.text()),
        }
    }

    /// DR.STATUS now.
    #[track_caller]
    pub fn status(&self) -> Status {
        let reply = self.client().call(&["DR.STATUS", "JSON"]).good();
        match serde_json::from_slice(reply.bytes()) {
            Ok(value) => Status(value),
            Err(error) => panic!("DR.STATUS JSON is no JSON: {error}\n{}", reply.text()),
        }
    }

    /// Waits until DR.STATUS satisfies `check`, and gives it.
    #[track_caller]
    pub fn wait_status(&self, what: &str, mut check: impl FnMut(&Status) -> bool) -> Status {
        let mut last = None;
        let found = poll(deadline(), || {
            last = self.try_status().or(last.take());
            last.clone().filter(&mut check)
        });
        match found {
            Some(status) => status,
            None => panic!(
                "{} does not become {what}: {}\n{}",
                self.version,
                last.map_or("no status".to_owned(), |status| format!("{:#}", status.0)),
                self.log_tail(40)
            ),
        }
    }

    /// Waits for that `state`.
    #[track_caller]
    pub fn wait_state(&self, state: &str) -> Status {
        self.wait_status(state, |status| status.state() == state)
    }

    /// Waits until the log has everything that was written up to now, and gives its last op id. On a source only.
    #[track_caller]
    pub fn settle(&self) -> u64 {
        // A write of our own goes through the whole capture; it is gone again and leaves no key.
        let before = self.status().op_id();
        let mark = format!("redisdr-test-settle-{before}");
        cmd!(self.client(), "SET", mark, "").ok();
        cmd!(self.client(), "DEL", mark).good();
        // The status is published now and then: two equal looks at it alone would not show a tap that lags.
        let _ = cmd!(self.client(), "DR.WAIT", 0, 60_000);
        let offset = || self.info_field("replication", "master_repl_offset");
        eventually("the log has the last write", deadline(), || {
            let end = offset();
            let status = self.status();
            // Equal before and after: nothing moved while we looked.
            (status.op_id() > before && end == offset() && status.op_id() == self.status().op_id())
                .then(|| status.op_id())
        })
    }
}

/// Waits until `node` has applied `op_id`.
#[track_caller]
pub fn wait_applied(node: &Server, op_id: u64) -> Status {
    node.wait_status(&format!("applied to {op_id}"), |status| status.applied_op_id() >= op_id)
}

/// Waits until `target` has all that `source` has, and that both have the same data: DEBUG DIGEST equal. The source must
/// be quiet. Data that stay different for 10 s are shown key by key.
#[track_caller]
pub fn wait_equal(source: &Server, target: &Server) {
    let mut since: Option<(std::time::Instant, String, String)> = None;
    let equal = poll(deadline(), || {
        wait_applied(target, source.settle());
        let (ours, theirs) = (digest(source), digest(target));
        if ours == theirs {
            return Some(true);
        }
        // An expired key that the source has not deleted yet may differ for a moment; what stays is a fault.
        match &since {
            Some((_, a, b)) if *a != ours || *b != theirs => since = None,
            Some((began, ..)) if began.elapsed() > secs(10) => return Some(false),
            _ => {}
        }
        since.get_or_insert((std::time::Instant::now(), ours, theirs));
        None
    });
    if equal != Some(true) {
        panic!("{} and {} differ:\n{}", source.version, target.version, diff(source, target, 10).join("\n"));
    }
}
