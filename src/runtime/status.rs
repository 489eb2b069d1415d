//! Publishes what DR.STATUS shows.

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use oplog_format::Codec;

use super::node::Node;
use super::shared::Mode;
use super::writer::QUEUE_BYTES;
use crate::link::LinkState;
use crate::status::{LinkView, OrphanView, Status, TargetView};

/// An append or sync that takes longer is told.
const SLOW: Duration = Duration::from_secs(2);
/// For how long after its end.
const SLOW_SHOWN: Duration = Duration::from_secs(30);

impl Node {
    /// Gathers and publishes the status.
    pub fn publish(&self) {
        let state = self.state.get();
        let doing = self.doing.load_full();
        let stats = self.log.stats();
        let mode = self.mode();
        let written = self.log.written();
        self.shared.written.store(written, Ordering::Release);
        self.shared.durable.store(self.log.durable(), Ordering::Release);
        let linked = self.shared.linked.load(Ordering::Acquire);
        let applied = self.shared.applied.load(Ordering::Acquire);
        let mut warnings: Vec<String> = self.warnings.lock().iter().map(|w| w.1.clone()).collect();
        warnings.extend(self.refusals());
        let log_failed = self.log_trouble();
        warnings.extend(log_failed.clone());
        warnings.extend(self.disk_slow());
        let link = self.link_view(applied);
        let note = link.as_ref().filter(|l| !l.source_note.is_empty() && l.state == "streaming");
        warnings.extend(note.map(|l| format!("the source says: {}", l.source_note)));
        // Between two attempts the last one says why.
        let waits_for = link.as_ref().filter(|_| doing.state == "connecting" && doing.reason.is_empty());
        let waits_for = waits_for.map(|l| l.last_error.clone());
        let stuck = self.feed.lock().as_ref().and_then(|f| f.trouble());
        warnings.extend(stuck.clone());
        let working = matches!(doing.state, "capturing" | "streaming" | "rebasing" | "connecting");
        let trouble = log_failed.or(stuck).filter(|_| working);
        let lineage = self.log.lineage();
        let status = Status {
            version: env!("CARGO_PKG_VERSION").into(),
            role: match mode {
                Mode::Replica | Mode::TargetReplica => "replica",
                _ if linked => "target",
                _ => "source",
            }
            .into(),
            state: if trouble.is_some() { "failed".into() } else { doing.state.into() },
            state_reason: trouble.or(waits_for).unwrap_or_else(|| doing.reason.clone()),
            service_id: self.shared.config.service_id,
            history: lineage.current().map(|c| c.history.as_str().to_owned()).unwrap_or_default(),
            lineage,
            op_id: written,
            durable_op_id: self.log.durable(),
            applied_op_id: if mode == Mode::Source { written } else { applied },
            oldest_op_id: self.log.oldest(),
            snapshot_op_id: self.snapshot_op.load(Ordering::Acquire),
            segments: stats.segments,
            oplog_bytes: stats.bytes,
            compression: self.log.compression().map_or("no", Codec::name).to_owned(),
            stream_bytes: stats.appended_stream,
            stream_disk_percent: percent(stats.appended_disk, stats.appended_stream),
            full_syncs: state.full_syncs,
            rebuilds: state.rebuilds,
            gaps: stats.gaps,
            queue_bytes: self.writer.queued(),
            queue_max_bytes: QUEUE_BYTES,
            disk_free_bytes: stats.free_bytes,
            disk_full_in_seconds: self.disk_full_in.load(Ordering::Relaxed),
            progress_percent: self.progress.load(Ordering::Relaxed),
            warnings,
            targets: self.target_views(written),
            link,
            orphans: self.orphan_views(),
            endpoint: self.endpoint.lock().as_ref().map(|e| e.local_addr().to_string()).unwrap_or_default(),
        };
        self.shared.status.store(Arc::new(status));
    }

    /// What a log that does not work means, in words.
    pub fn log_trouble(&self) -> Option<String> {
        let disk = &self.shared.disk;
        let why = disk.failed.load_full().map(|w| w.to_string()).or_else(|| self.log.poisoned())?;
        let means = match self.mode() {
            Mode::Target | Mode::TargetReplica => {
                "nothing is taken from the source until its disk works again"
            }
            _ if disk.lost.load(Ordering::Acquire) => {
                "writes are not captured; the log goes on above a gap once its disk works again"
            }
            _ => "writes wait in memory until its disk works again",
        };
        Some(format!("the log has failed, {means}: {why}"))
    }

    /// A disk that takes long, in words.
    fn disk_slow(&self) -> Option<String> {
        let slow = self.shared.disk.busy_ms() > SLOW.as_millis().try_into().unwrap_or(u64::MAX);
        let mut seen = self.slow_until.lock();
        if slow {
            if seen.is_none() {
                log::warn!(
                    "writing or syncing the log takes longer than {} s: the disk is slow",
                    SLOW.as_secs()
                );
            }
            *seen = Some(Instant::now() + SLOW_SHOWN);
        }
        *seen = seen.filter(|until| *until > Instant::now());
        seen.map(|_| {
            format!("the log's disk is slow: an append or sync has taken longer than {} s", SLOW.as_secs())
        })
    }

    fn target_views(&self, written: u64) -> Vec<TargetView> {
        let Some(endpoint) = self.endpoint.lock().clone() else { return Vec::new() };
        let oldest = self.log.oldest();
        let view = |t: crate::link::TargetStatus| TargetView {
            service_id: t.service_id,
            addr: t.addr,
            state: if t.durable_op_id + 1 < oldest && t.connected_since_ms.is_none() && t.pin.is_some() {
                "lost".to_owned()
            } else {
                format!("{:?}", t.state).to_ascii_lowercase()
            },
            sent_op_id: t.sent_op_id,
            applied_op_id: t.applied_op_id,
            durable_op_id: t.durable_op_id,
            lag_bytes: t.lag_bytes,
            lag_ms: t.lag_ms,
            pinned_bytes: t.pin.map_or(0, |p| written.saturating_sub(p)),
        };
        endpoint.targets().into_iter().map(view).collect()
    }

    fn link_view(&self, applied: u64) -> Option<LinkView> {
        let client = self.client.lock().clone()?;
        let s = client.status();
        let bytes = self.load_bytes.load(Ordering::Relaxed);
        let total = self.load_total.load(Ordering::Relaxed);
        let state = match &s.state {
            LinkState::Connecting => "connecting",
            LinkState::Refused { .. } => "refused",
            LinkState::Held { .. } => "held",
            LinkState::Snapshot { .. } => "snapshot",
            LinkState::Loading => "loading",
            LinkState::Rebuilding { .. } => "rebuilding",
            LinkState::Streaming => "streaming",
            LinkState::Stopped => "stopped",
            LinkState::Failed { .. } => "failed",
        };
        let lag_bytes = s.source_op_id.saturating_sub(applied);
        Some(LinkView {
            source: s.source,
            state: state.into(),
            source_op_id: s.source_op_id,
            applied_op_id: applied,
            lag_bytes,
            lag_ms: if lag_bytes == 0 { 0 } else { s.lag_ms },
            last_error: s.last_error,
            source_note: s.source_note,
            snapshot_bytes: bytes,
            snapshot_total: total,
            snapshot_keys: self.load_keys.load(Ordering::Relaxed),
            snapshot_percent: (bytes * 100).checked_div(total).unwrap_or(0).min(100),
        })
    }

    fn orphan_views(&self) -> Vec<OrphanView> {
        let folder = self.dir.join(crate::store::orphans::ORPHANS);
        let view = |o: crate::store::OrphanInfo| OrphanView {
            path: folder.join(&o.id).display().to_string(),
            id: o.id,
            first_op_id: o.first_op,
            last_op_id: o.last_op,
            bytes: o.bytes,
            ops: o.ops,
            first_time_ms: o.first_time_ms,
            last_time_ms: o.last_time_ms,
            reason: o.reason,
            keys: o.keys,
        };
        self.log.orphans().unwrap_or_default().into_iter().map(view).collect()
    }
}

/// A part of a whole, rounded.
fn percent(part: u64, whole: u64) -> u64 {
    let percent = (u128::from(part) * 200 + u128::from(whole)).checked_div(u128::from(whole) * 2);
    percent.and_then(|p| u64::try_from(p).ok()).unwrap_or(0)
}
