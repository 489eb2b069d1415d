//! DR.WAIT: answers when writes are durable here or on targets.

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, Receiver, RecvTimeoutError};

use super::node::Node;
use super::shared::{Answer, Respond};

/// How often targets' acks are looked at while somebody waits.
const LOOK: Duration = Duration::from_millis(2);

/// One client that waits.
pub struct Wait {
    /// Its last write.
    pub op: u64,
    /// On how many targets; 0: in the local log.
    pub targets: u32,
    /// When it gives up.
    pub until: Option<Instant>,
    /// Takes the answer.
    pub respond: Respond,
}

/// Body of the thread `dr-waits`.
pub fn run(node: &Arc<Node>, rx: &Receiver<Wait>) {
    let (ask, asked) = bounded(1);
    let own = Arc::clone(node);
    if let Err(e) = super::spawn("dr-wait-sync", move || sync_when_asked(&own, &asked)) {
        log::warn!("DR.WAIT 0 waits for the next sync of each second: no thread for one of its own: {e}");
    }
    let mut waits: Vec<Wait> = Vec::new();
    while !node.stopping() {
        let pause = if waits.is_empty() { Duration::from_millis(200) } else { LOOK };
        match rx.recv_timeout(pause) {
            Ok(wait) => waits.push(wait),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        waits.extend(rx.try_iter());
        // One sync serves all that wait for the local log.
        let needs = waits.iter().filter(|w| w.targets == 0 && w.op > node.log.durable()).map(|w| w.op).min();
        if needs.is_some_and(|op| op <= node.log.written()) {
            // Full: one is asked for already.
            let _ = ask.try_send(());
        }
        answer(node, &mut waits);
    }
}

/// Body of the thread `dr-wait-sync`: a disk that hangs must not keep anyone beyond the time that he gave.
fn sync_when_asked(node: &Arc<Node>, asked: &Receiver<()>) {
    for () in asked {
        let disk = &node.shared.disk;
        disk.wait_sync_since.store(disk.now_ms(), Ordering::Relaxed);
        // A failure shows as a log that has failed.
        let _ = node.log.sync();
        disk.wait_sync_since.store(0, Ordering::Relaxed);
        node.shared.durable.store(node.log.durable(), Ordering::Release);
    }
}

fn answer(node: &Arc<Node>, waits: &mut Vec<Wait>) {
    if waits.is_empty() {
        return;
    }
    let endpoint = node.endpoint.lock().clone();
    let durable = node.log.durable();
    let now = Instant::now();
    let reached = |w: &Wait| -> i64 {
        if w.targets == 0 {
            return i64::from(durable >= w.op);
        }
        endpoint.as_ref().map_or(0, |e| i64::try_from(e.durable_on(w.op)).unwrap_or(0))
    };
    let mut rest = Vec::new();
    for wait in waits.drain(..) {
        let n = reached(&wait);
        if n >= i64::from(wait.targets.max(1)) || wait.until.is_some_and(|u| now >= u) {
            (wait.respond)(Ok(Answer::Int(n)));
        } else {
            rest.push(wait);
        }
    }
    *waits = rest;
}
