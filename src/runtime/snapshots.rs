//! Snapshots of the own dataset: which RDB on disk is of use, and how a new one is made.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use oplog_format::OpId;

use super::boot::lineage_of;
use super::linked::BASE_RDB;
use super::node::Node;
use super::shared::{Mode, FLAG_INCOMPLETE, FLAG_POSITIONED};
use crate::link::Snapshot;
use crate::local::{Conn, LocalError, Reply};
use crate::snapshot::aux::read_head;

/// How often a save is looked at.
const POLL: Duration = Duration::from_millis(20);
/// Longest wait for the tap to reach what an RDB holds.
const CATCH_UP: Duration = Duration::from_secs(30);

/// An RDB on disk.
pub struct Rdb {
    /// The open file: a later save replaces the name and not the bytes.
    pub file: File,
    /// Its name.
    pub path: PathBuf,
    /// What goes over the link.
    pub op_id: OpId,
    /// Lineage up to there.
    pub lineage: oplog_format::Lineage,
    /// Its version.
    pub rdb_version: u16,
    /// Its length.
    pub len: u64,
}

impl Node {
    /// The file that the server saves to.
    ///
    /// # Errors
    /// The connection's.
    pub fn rdb_path(&self, conn: &mut Conn) -> Result<PathBuf, LocalError> {
        let dir = conn.config_get("dir")?.unwrap_or_default();
        let name = conn.config_get("dbfilename")?.unwrap_or_default();
        Ok(PathBuf::from(dir).join(name))
    }

    /// An RDB of this node whose position is known and of the log's histories, whether the log reaches it or not.
    pub fn read_rdb(&self, path: &std::path::Path) -> Option<Rdb> {
        let file = File::open(path).ok()?;
        let len = file.metadata().ok()?.len();
        let head = read_head(file.try_clone().ok()?).ok()?;
        let aux = head.ours?;
        if aux.flags & FLAG_POSITIONED == 0 || aux.flags & FLAG_INCOMPLETE != 0 {
            return None;
        }
        let lineage = lineage_of(&aux);
        if lineage.history_of(aux.op_id) != self.log.lineage().history_of(aux.op_id) {
            return None;
        }
        // The head was read through a copy of the descriptor, which shares its position.
        use std::io::Seek;
        let mut file = file;
        file.rewind().ok()?;
        Some(Rdb {
            file,
            path: path.to_owned(),
            op_id: aux.op_id,
            lineage,
            rdb_version: head.rdb_version,
            len,
        })
    }

    /// The RDB on disk, where the log still reaches it.
    ///
    /// # Errors
    /// The connection's.
    pub fn usable_rdb(&self, conn: &mut Conn) -> Result<Option<Rdb>, LocalError> {
        let path = self.rdb_path(conn)?;
        let Some(rdb) = self.read_rdb(&path) else {
            self.snapshot_op.store(0, Ordering::Release);
            self.keep_base(None);
            return Ok(None);
        };
        let until = Instant::now() + CATCH_UP;
        let failed = || self.shared.disk.failed.load().is_some();
        while self.log.written() < rdb.op_id && Instant::now() < until && !self.stopping() && !failed() {
            self.log.wait_written(rdb.op_id - 1, POLL);
        }
        let reaches = rdb.op_id + 1 >= self.log.oldest() && rdb.op_id <= self.log.written();
        // A log that has failed will go on above it: nothing below is needed for a start.
        let covers = reaches || (failed() && rdb.op_id > self.log.written());
        self.snapshot_op.store(if covers { rdb.op_id } else { 0 }, Ordering::Release);
        self.keep_base(Some(&rdb).filter(|_| reaches));
        Ok(reaches.then_some(rdb))
    }

    /// Keeps a second name for the newest RDB that every registered target has reached. The fork point of a source
    /// that is lost and comes back lies where its targets were: the RDB that the server saved last may be above it.
    fn keep_base(&self, newest: Option<&Rdb>) {
        let path = self.dir.join(BASE_RDB);
        let in_log = |r: &Rdb| r.op_id + 1 >= self.log.oldest() && r.op_id <= self.log.written();
        let kept = self.read_rdb(&path).filter(in_log).map(|r| r.op_id);
        let floor = self.kept_for_targets().unwrap_or(OpId::MAX);
        let better = newest.filter(|n| kept.is_none_or(|k| n.op_id > k && n.op_id <= floor));
        let linked = better.filter(|n| self.link_base(&n.path, &path));
        let op = linked.map(|n| n.op_id).or(kept);
        if op.is_none() {
            let _ = std::fs::remove_file(&path);
        }
        self.base_op.store(op.unwrap_or(0), Ordering::Release);
    }

    /// The log is kept above this op for targets. One that needs a copy anyway, since the log does not reach back to
    /// where it is, keeps nothing.
    pub fn kept_for_targets(&self) -> Option<OpId> {
        let endpoint = self.endpoint.lock().clone().filter(|_| self.mode() == Mode::Source)?;
        let oldest = self.log.oldest();
        endpoint.targets().iter().filter_map(|t| t.pin).filter(|p| p + 1 >= oldest).min()
    }

    /// Another name for the same bytes. On a file system that has no such thing a rebuild has the newest RDB only.
    pub fn link_base(&self, from: &std::path::Path, to: &std::path::Path) -> bool {
        let made = to.with_extension("new");
        let _ = std::fs::remove_file(&made);
        let done = std::fs::hard_link(from, &made).and_then(|()| std::fs::rename(&made, to));
        // A rename between two names of the same file does nothing.
        let _ = std::fs::remove_file(&made);
        done.and_then(|()| self.fs.sync_dir(to.parent().unwrap_or(&self.dir))).is_ok()
    }

    /// Lets the server save and waits for it.
    ///
    /// # Errors
    /// In words.
    pub fn save(&self, stop: &AtomicBool, progress: &mut dyn FnMut(&str)) -> Result<(), String> {
        let mut conn = self.connect().map_err(|e| e.to_string())?;
        let stopped = || stop.load(Ordering::Acquire) || self.stopping();
        loop {
            if stopped() {
                return Err("stopped".into());
            }
            match conn.call_raw(&[b"BGSAVE"]).map_err(|e| e.to_string())? {
                Reply::Error(e) if e.contains("in progress") || e.contains("child process") => {
                    // Another child: what it saves may be too old, so another save follows it.
                    progress("waiting for another child of the server to end");
                    std::thread::sleep(POLL);
                }
                Reply::Error(e) => return Err(format!("BGSAVE: {e}")),
                _ => break,
            }
        }
        loop {
            let info = conn.info("persistence").map_err(|e| e.to_string())?;
            let is = |k: &str, v: &str| info.get(k).is_some_and(|x| x == v);
            if !is("rdb_bgsave_in_progress", "1") {
                return if is("rdb_last_bgsave_status", "ok") {
                    Ok(())
                } else {
                    Err("the server's BGSAVE has failed, see its log".into())
                };
            }
            let keys = info.get("current_save_keys_processed").cloned().unwrap_or_default();
            progress(&format!("the source saves a snapshot {keys}"));
            if stopped() {
                return Err("stopped".into());
            }
            std::thread::sleep(POLL);
        }
    }

    /// The newest snapshot that the log reaches, or a new one where that is below `at_least`.
    ///
    /// # Errors
    /// In words.
    pub fn snapshot_for_target(
        &self,
        at_least: OpId,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Snapshot, String> {
        let _one_at_a_time = self.saving.lock();
        let mut conn = self.connect().map_err(|e| e.to_string())?;
        let found = self.usable_rdb(&mut conn).map_err(|e| e.to_string())?;
        let rdb = match found.filter(|r| r.op_id >= at_least) {
            Some(rdb) => rdb,
            None => {
                self.save(stop, progress)?;
                self.usable_rdb(&mut conn)
                    .map_err(|e| e.to_string())?
                    .ok_or("the RDB just saved has no position in the log; is the log attached?")?
            }
        };
        Ok(Snapshot {
            file: rdb.file,
            len: rdb.len,
            op_id: rdb.op_id,
            lineage: rdb.lineage,
            rdb_version: rdb.rdb_version,
        })
    }
}
