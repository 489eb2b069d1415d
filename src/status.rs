//! What DR.STATUS, `INFO redisdr` and exporters see.

use oplog_format::{Lineage, OpId};
use serde::Serialize;

/// One registered target, as the source sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TargetView {
    /// Its name within the star.
    pub service_id: u8,
    /// Address of its connection, or of the last one.
    pub addr: String,
    /// connecting, snapshot, loading, streaming, away, lost, cut.
    pub state: String,
    /// Last op sent.
    pub sent_op_id: OpId,
    /// Last op that it has applied.
    pub applied_op_id: OpId,
    /// Last op that it has on its disk.
    pub durable_op_id: OpId,
    /// Bytes of the stream that it has not applied.
    pub lag_bytes: u64,
    /// For how many milliseconds the oldest op that it has not applied has been written.
    pub lag_ms: u64,
    /// Bytes of the log that are kept for it alone.
    pub pinned_bytes: u64,
}

/// The link to the source, as the target sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LinkView {
    /// Endpoint in use.
    pub source: String,
    /// connecting, snapshot, loading, streaming, held, refused.
    pub state: String,
    /// Last op that the source has written.
    pub source_op_id: OpId,
    /// Last op applied here.
    pub applied_op_id: OpId,
    /// Bytes of the stream that are not applied here.
    pub lag_bytes: u64,
    /// Age in milliseconds of the newest op applied here while behind; 0 when level.
    pub lag_ms: u64,
    /// The last thing that went wrong.
    pub last_error: String,
    /// What the source says of itself, where something is wrong there.
    pub source_note: String,
    /// Bytes of the snapshot received or loaded.
    pub snapshot_bytes: u64,
    /// Bytes of the snapshot.
    pub snapshot_total: u64,
    /// Keys loaded from the snapshot.
    pub snapshot_keys: u64,
    /// Percent of the current stage of the snapshot.
    pub snapshot_percent: u64,
}

/// Ops that this node held and its source does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OrphanView {
    /// Name of its folder.
    pub id: String,
    /// First op id.
    pub first_op_id: OpId,
    /// Last op id.
    pub last_op_id: OpId,
    /// Bytes of the stream.
    pub bytes: u64,
    /// Number of ops.
    pub ops: u64,
    /// Time of the first entry, Unix milliseconds.
    pub first_time_ms: u64,
    /// Time of the last entry, Unix milliseconds.
    pub last_time_ms: u64,
    /// Why they were cut off.
    pub reason: String,
    /// Names of some of the keys that they write.
    pub keys: Vec<String>,
    /// Where they are.
    pub path: String,
}

/// Everything that DR.STATUS shows. The names are the interface; new ones may be added.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Version of the module.
    pub version: String,
    /// source, target, replica.
    pub role: String,
    /// starting, recovering, capturing, connecting, snapshot, loading, streaming, held, rebasing, failed.
    pub state: String,
    /// Why, in words; empty where the state says all.
    pub state_reason: String,
    /// This instance's name.
    pub service_id: u8,
    /// History in which new ops are written; empty where none is.
    pub history: String,
    /// All histories, oldest first.
    pub lineage: Lineage,
    /// Source: last op executed. Target: last op in the own log.
    pub op_id: OpId,
    /// Last op on the own disk.
    pub durable_op_id: OpId,
    /// Last op in the dataset.
    pub applied_op_id: OpId,
    /// Oldest op in the own log.
    pub oldest_op_id: OpId,
    /// Op of the newest snapshot that the log still reaches; 0: none.
    pub snapshot_op_id: OpId,
    /// Number of segments.
    pub segments: u64,
    /// Bytes of the log on disk.
    pub oplog_bytes: u64,
    /// What entries are compressed by, or no.
    pub compression: String,
    /// Bytes of the stream that came into the log since the start.
    pub stream_bytes: u64,
    /// Bytes that they took on disk, in percent.
    pub stream_disk_percent: u64,
    /// Copies of the dataset taken over a link since the state was made.
    pub full_syncs: u64,
    /// Datasets rebuilt from the own disk since the state was made.
    pub rebuilds: u64,
    /// Interruptions of the log: each makes a full sync of targets below it necessary.
    pub gaps: u64,
    /// Bytes of ops that wait in memory for the log's disk.
    pub queue_bytes: u64,
    /// Most that may wait there; then the tap waits, and the server's own buffer fills.
    pub queue_max_bytes: u64,
    /// Free bytes on the log's disk.
    pub disk_free_bytes: u64,
    /// Seconds until the disk is full at the rate of the last minutes; -1: not in sight.
    pub disk_full_in_seconds: i64,
    /// Progress of a recovery, rebuild or rebase in percent; 100 when there is none.
    pub progress_percent: u64,
    /// What the operator should know.
    pub warnings: Vec<String>,
    /// Registered targets.
    pub targets: Vec<TargetView>,
    /// The link, on a target.
    pub link: Option<LinkView>,
    /// Ops kept aside.
    pub orphans: Vec<OrphanView>,
    /// Where the DR endpoint listens; empty where it does not.
    pub endpoint: String,
}
