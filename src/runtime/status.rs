//! Publishes what DR.STATUS shows.

use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::node::Node;
use super::shared::Mode;
use crate::link::LinkState;
use crate::status::{LinkView, OrphanView, Status, TargetView};

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
        let mut warnings: Vec<String> = self.warnings.lock().iter().map(|w| w.1.clone()).collect();
        warnings.extend(self.refusals());
        let poison = self.log.poisoned();
        if let Some(why) = &poison {
            warnings.push(format!("the log has failed, writes are not captured: {why}"));
        }
        let failed = poison.is_some() && matches!(doing.state, "capturing" | "streaming" | "rebasing");
        let lineage = self.log.lineage();
        let applied = self.shared.applied.load(Ordering::Acquire);
        let link = self.link_view(applied);
        let mut reason = if failed { poison.unwrap_or_default() } else { doing.reason.clone() };
        if let (true, "connecting", Some(link)) = (reason.is_empty(), doing.state, &link) {
            reason = link.last_error.clone();
        }
        let status = Status {
            version: env!("CARGO_PKG_VERSION").into(),
            role: match mode {
                Mode::Replica | Mode::TargetReplica => "replica",
                _ if linked => "target",
                _ => "source",
            }
            .into(),
            state: if failed { "failed".into() } else { doing.state.into() },
            state_reason: reason,
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
            full_syncs: state.full_syncs,
            rebuilds: state.rebuilds,
            gaps: stats.gaps,
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
