//! The cleaner: removes segments that nobody needs, makes snapshots where one is missing for that, and watches the
//! disk.

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::forecast::Forecast;
use super::node::Node;
use super::shared::Mode;
use super::upkeep::Upkeep;

const EVERY: Duration = Duration::from_secs(1);
/// How often the server's own RDB is looked at.
const LOOK_AT_RDB: Duration = Duration::from_secs(5);

/// What a rewrite without the RDB's field costs.
const AOF_LOSES: &str =
    "aof-use-rdb-preamble is no: an AOF that is rewritten now does not say which ops it holds, \
     and the module refuses to load at the next start; set it to yes";

/// Body of the thread `dr-cleaner`.
pub fn run(node: &Arc<Node>) {
    let mut forecast = Forecast::default();
    let mut upkeep = Upkeep::new(node);
    let mut looked = Instant::now();
    while !node.stopping() {
        std::thread::sleep(EVERY);
        if looked.elapsed() > LOOK_AT_RDB {
            looked = Instant::now();
            look_at_rdb(node);
        }
        upkeep.look(node);
        clean(node, &upkeep);
        lost_targets(node);
        forecast.look(node);
    }
}

/// The server saves by itself too: what it has saved last decides what the log is needed for.
fn look_at_rdb(node: &Arc<Node>) {
    if let Ok(mut conn) = node.connect() {
        let _ = node.usable_rdb(&mut conn);
        let mut is = |name: &str, value: &str| matches!(conn.config_get(name), Ok(Some(v)) if v == value);
        let lost = is("appendonly", "yes") && is("aof-use-rdb-preamble", "no");
        node.warn("aof", if lost { AOF_LOSES } else { "" });
    }
}

fn clean(node: &Arc<Node>, upkeep: &Upkeep) {
    let config = &node.shared.config;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let snapshot = node.snapshot_op.load(Ordering::Acquire);
    if snapshot > 0 {
        let targets = node.kept_for_targets().unwrap_or(u64::MAX);
        // 0: no RDB is kept for a rebuild. On a full disk that comes after what is captured now.
        let base = node.base_op.load(Ordering::Acquire);
        let base = Some(base).filter(|b| *b > 0 && !upkeep.no_room(node)).unwrap_or(u64::MAX);
        let keep_from = snapshot.min(targets).min(base).saturating_add(1);
        report(node, "removed", node.log.clean(keep_from, config.retain_min, now_ms));
    }
    // First a snapshot above what goes: a start needs one or the other.
    if config.retain_max_bytes > 0 && !upkeep.saves_for_cap(node) {
        let done = node.log.clean_to_bytes(config.retain_max_bytes);
        report(node, "removed to stay below retain-max-bytes:", done);
    }
}

fn report(node: &Arc<Node>, what: &str, done: Result<crate::store::CleanReport, crate::store::StoreError>) {
    match done {
        Ok(r) => {
            if r.segments > 0 {
                log::info!("cleaner: {what} {} segments, {} bytes", r.segments, r.bytes);
            }
            node.warn("cleaner", "");
        }
        Err(e) => node.warn("cleaner", format!("segments could not be removed: {e}")),
    }
}

/// Says which targets the log does not reach any more.
fn lost_targets(node: &Arc<Node>) {
    let oldest = node.log.oldest();
    let endpoint = node.endpoint.lock().clone().filter(|_| node.mode() == Mode::Source);
    let targets = endpoint.map(|e| e.targets()).unwrap_or_default();
    let lost: Vec<String> = targets
        .iter()
        .filter_map(|t| t.pin.filter(|p| p + 1 < oldest).map(|p| (t, p)))
        .map(|(t, p)| format!("target {} at {} is at op {p}", t.service_id, t.addr))
        .collect();
    let text = if lost.is_empty() {
        String::new()
    } else {
        format!(
            "lost: the log begins at op {oldest} (a gap, or retain-max-bytes), and {}; it will take a full copy",
            lost.join(", ")
        )
    };
    // Once for each set of targets: where the log begins moves on.
    let mut told = node.lost_told.lock();
    if *told != lost {
        node.warn("lost", text);
        *told = lost;
    }
}
