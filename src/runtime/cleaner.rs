//! The cleaner: removes segments that nobody needs, and watches the disk.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::node::Node;
use super::shared::Mode;

const EVERY: Duration = Duration::from_secs(1);
/// The forecast looks back this far.
const WINDOW: Duration = Duration::from_secs(300);
/// Below this much the operator is warned.
const WARN_SECONDS: i64 = 3600;

/// What a rewrite without the RDB's field costs.
const AOF_LOSES: &str =
    "aof-use-rdb-preamble is no: an AOF that is rewritten now does not say which ops it holds, \
     and the module refuses to load at the next start; set it to yes";

/// Body of the thread `dr-cleaner`.
pub fn run(node: &Arc<Node>) {
    let mut seen: VecDeque<(Instant, u64)> = VecDeque::new();
    let mut looked = Instant::now();
    while !node.stopping() {
        std::thread::sleep(EVERY);
        if looked.elapsed() > Duration::from_secs(5) {
            looked = Instant::now();
            look_at_rdb(node);
        }
        clean(node);
        forecast(node, &mut seen);
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

fn clean(node: &Arc<Node>) {
    let config = &node.shared.config;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let snapshot = node.snapshot_op.load(Ordering::Acquire);
    if snapshot > 0 {
        let targets = node.endpoint.lock().as_ref().and_then(|e| e.min_durable());
        let targets = targets.filter(|_| node.mode() == Mode::Source).unwrap_or(u64::MAX);
        // 0: no RDB is kept for a rebuild.
        let base = Some(node.base_op.load(Ordering::Acquire)).filter(|b| *b > 0).unwrap_or(u64::MAX);
        let keep_from = snapshot.min(targets).min(base).saturating_add(1);
        report(node, "removed", node.log.clean(keep_from, config.retain_min, now_ms));
    }
    if config.retain_max_bytes > 0 {
        let done = node.log.clean_to_bytes(config.retain_max_bytes);
        if done.as_ref().is_ok_and(|r| r.segments > 0) {
            lost_targets(node);
        }
        report(node, "removed to stay below retain-max-bytes:", done);
    }
}

fn report(node: &Arc<Node>, what: &str, done: Result<crate::store::CleanReport, crate::store::StoreError>) {
    match done {
        Ok(r) if r.segments > 0 => {
            log::info!("cleaner: {what} {} segments, {} bytes", r.segments, r.bytes);
            node.warn("cleaner", "");
        }
        Ok(_) => {}
        Err(e) => node.warn("cleaner", format!("segments could not be removed: {e}")),
    }
}

/// Says which targets the hard cap has cost their log.
fn lost_targets(node: &Arc<Node>) {
    let oldest = node.log.oldest();
    let Some(endpoint) = node.endpoint.lock().clone() else { return };
    for t in endpoint.targets().iter().filter(|t| t.durable_op_id + 1 < oldest) {
        node.warn(
            "lost",
            format!(
                "target {} is lost: retain-max-bytes has removed the log that it needs (it is at op {}, the log \
                 begins at {oldest}); it will take a full copy",
                t.service_id, t.durable_op_id
            ),
        );
    }
}

fn forecast(node: &Arc<Node>, seen: &mut VecDeque<(Instant, u64)>) {
    let stats = node.log.stats();
    let now = Instant::now();
    seen.push_back((now, stats.bytes));
    while seen.front().is_some_and(|(t, _)| now.duration_since(*t) > WINDOW) {
        seen.pop_front();
    }
    let seconds = seen.front().and_then(|(then, bytes)| {
        let grown = stats.bytes.checked_sub(*bytes).filter(|g| *g > 0)?;
        let millis = u64::try_from(now.duration_since(*then).as_millis()).ok().filter(|m| *m >= 5000)?;
        i64::try_from(u128::from(stats.free_bytes) * u128::from(millis) / u128::from(grown) / 1000).ok()
    });
    node.disk_full_in.store(seconds.unwrap_or(-1), Ordering::Relaxed);
    match seconds {
        Some(s) if s < WARN_SECONDS => node.warn(
            "disk",
            format!("the log's disk is full in about {} minutes at the present rate", (s / 60).max(1)),
        ),
        _ => node.warn("disk", ""),
    }
}
