//! Snapshots of the own dataset: which RDB on disk is of use, and how a new one is made.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use oplog_format::{Lineage, OpId};

use super::boot::lineage_of;
use super::growing::{Before, GrowingFile, ReadAt};
use super::linked::BASE_RDB;
use super::node::Node;
use super::shared::{Mode, FLAG_INCOMPLETE, FLAG_POSITIONED};
use crate::link::{Extent, Growth, Snapshot};
use crate::local::{Conn, LocalError, Reply};
use crate::snapshot::aux::read_head;
use crate::snapshot::RdbHead;

/// How often the server is asked, where it has to be.
const POLL: Duration = Duration::from_millis(20);
/// How often the file of a save is looked at.
const WATCH: Duration = Duration::from_millis(2);
/// How often the server is asked beside that.
const ASK: Duration = Duration::from_millis(250);
/// How long the file of a save is looked for.
const FIND: Duration = Duration::from_secs(2);
/// Longest wait for the tap to reach what an RDB holds.
const CATCH_UP: Duration = Duration::from_secs(30);

/// Where an RDB of this node stands.
#[derive(Debug, Clone)]
pub struct Position {
    /// Last op that it holds.
    pub op_id: OpId,
    /// Lineage up to there.
    pub lineage: Lineage,
    /// Its version.
    pub rdb_version: u16,
}

/// What is wrong with an RDB of a source that does not capture.
const NO_POSITION: &str = "the RDB just saved has no position in the log; is the log attached?";

/// An RDB on disk.
pub struct Rdb {
    /// The open file: a later save replaces the name and not the bytes.
    pub file: File,
    /// Its name.
    pub path: PathBuf,
    /// Where it stands.
    pub position: Position,
    /// Its length.
    pub len: u64,
}

impl Rdb {
    fn into_snapshot(self) -> Snapshot {
        self.position.snapshot(self.file, Extent::Whole(self.len))
    }
}

impl Position {
    fn snapshot(self, file: File, extent: Extent) -> Snapshot {
        let Self { op_id, lineage, rdb_version } = self;
        Snapshot { file, extent, op_id, lineage, rdb_version }
    }
}

/// An RDB that the server is saving, and that targets follow.
#[derive(Debug, Clone)]
pub struct Making {
    file: Arc<GrowingFile>,
    position: Position,
}

impl Making {
    fn snapshot(&self) -> Result<Snapshot, String> {
        let file = self.file.file().map_err(|e| e.to_string())?;
        let growth: Arc<dyn Growth> = Arc::clone(&self.file) as _;
        Ok(self.position.clone().snapshot(file, Extent::Growing(growth)))
    }
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
    pub fn read_rdb(&self, path: &Path) -> Option<Rdb> {
        let file = File::open(path).ok()?;
        let len = file.metadata().ok()?.len();
        let position = self.position_in(read_head(ReadAt::start(&file)).ok()?)?;
        Some(Rdb { file, path: path.to_owned(), position, len })
    }

    /// Where an RDB stands, if this node's log has or had that.
    fn position_in(&self, head: RdbHead) -> Option<Position> {
        let aux = head.ours?;
        if aux.flags & FLAG_POSITIONED == 0 || aux.flags & FLAG_INCOMPLETE != 0 {
            return None;
        }
        let lineage = lineage_of(&aux);
        if lineage.history_of(aux.op_id) != self.log.lineage().history_of(aux.op_id) {
            return None;
        }
        Some(Position { op_id: aux.op_id, lineage, rdb_version: head.rdb_version })
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
        let op = rdb.position.op_id;
        let reaches = self.log_reaches(op);
        // A log that has failed will go on above it: nothing below is needed for a start.
        let failed = self.shared.disk.failed.load().is_some();
        let covers = reaches || (failed && op > self.log.written());
        self.snapshot_op.store(if covers { op } else { 0 }, Ordering::Release);
        self.keep_base(Some(&rdb).filter(|_| reaches));
        Ok(reaches.then_some(rdb))
    }

    /// Whether the log has `op`, or goes on directly above it; waits a while for the tap.
    fn log_reaches(&self, op: OpId) -> bool {
        let until = Instant::now() + CATCH_UP;
        let failed = || self.shared.disk.failed.load().is_some();
        while self.log.written() < op && Instant::now() < until && !self.stopping() && !failed() {
            self.log.wait_written(op - 1, POLL);
        }
        op + 1 >= self.log.oldest() && op <= self.log.written()
    }

    /// Keeps a second name for the newest RDB that every registered target has reached. The fork point of a source
    /// that is lost and comes back lies where its targets were: the RDB that the server saved last may be above it.
    fn keep_base(&self, newest: Option<&Rdb>) {
        let path = self.dir.join(BASE_RDB);
        let in_log = |op: &OpId| op + 1 >= self.log.oldest() && *op <= self.log.written();
        let kept = self.read_rdb(&path).map(|r| r.position.op_id).filter(in_log);
        let floor = self.kept_for_targets().unwrap_or(OpId::MAX);
        let better = newest.filter(|n| {
            let op = n.position.op_id;
            kept.is_none_or(|k| op > k && op <= floor)
        });
        let linked = better.filter(|n| self.link_base(&n.path, &path));
        let op = linked.map(|n| n.position.op_id).or(kept);
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
    pub fn link_base(&self, from: &Path, to: &Path) -> bool {
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
        let path = self.rdb_path(&mut conn).map_err(|e| e.to_string())?;
        let begun = self.begin_save(&mut conn, &path, stop, progress)?;
        self.wait_saved(&mut conn, begun.as_ref(), stop, progress)
    }

    fn stopped(&self, stop: &AtomicBool) -> Result<(), String> {
        match stop.load(Ordering::Acquire) || self.stopping() {
            true => Err("stopped".into()),
            false => Ok(()),
        }
    }

    /// Lets the server save to `path`. Returns the file that it writes; `None` where that was over before it was seen,
    /// and where it cannot be found.
    fn begin_save(
        &self,
        conn: &mut Conn,
        path: &Path,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Option<GrowingFile>, String> {
        let before = loop {
            self.stopped(stop)?;
            let seen = Before::look(path);
            match conn.call_raw(&[b"BGSAVE"]).map_err(|e| e.to_string())? {
                Reply::Error(e) if e.contains("in progress") || e.contains("child process") => {
                    // Another child: what it saves may be too old, so another save follows it.
                    progress("waiting for another child of the server to end");
                    std::thread::sleep(POLL);
                }
                Reply::Error(e) => return Err(format!("BGSAVE: {e}")),
                _ => break seen,
            }
        };
        let begun = Instant::now();
        let mut ask_at = begun + ASK;
        while begun.elapsed() < FIND {
            self.stopped(stop)?;
            if let Some(found) = before.find() {
                return Ok(Some(found));
            }
            if before.is_replaced() {
                return Ok(None);
            }
            if Instant::now() >= ask_at {
                ask_at = Instant::now() + ASK;
                if !is(&conn.info("persistence").map_err(|e| e.to_string())?, "rdb_bgsave_in_progress", "1") {
                    return Ok(None);
                }
            }
            std::thread::sleep(WATCH);
        }
        Ok(None)
    }

    /// Waits until the server says that it has saved.
    fn wait_saved(
        &self,
        conn: &mut Conn,
        file: Option<&GrowingFile>,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(&str),
    ) -> Result<(), String> {
        let mut ask_at = Instant::now();
        loop {
            self.stopped(stop)?;
            // The server sees the end of its child when it looks for it, ten times a second.
            let growing = file.is_some_and(|f| f.look().is_ok_and(|g| !g.whole));
            if !growing || Instant::now() >= ask_at {
                let info = conn.info("persistence").map_err(|e| e.to_string())?;
                if !is(&info, "rdb_bgsave_in_progress", "1") {
                    return match is(&info, "rdb_last_bgsave_status", "ok") {
                        true => Ok(()),
                        false => Err("the server's BGSAVE has failed, see its log".into()),
                    };
                }
                let keys = info.get("current_save_keys_processed").cloned().unwrap_or_default();
                progress(&format!("the source saves a snapshot {keys}"));
                ask_at = Instant::now() + ASK;
            }
            std::thread::sleep(if growing { WATCH } else { POLL });
        }
    }

    /// The newest snapshot that the log reaches, or a new one where that is below `at_least`. A new one is returned
    /// when its position is known, while the server still saves it.
    ///
    /// # Errors
    /// In words.
    pub fn snapshot_for_target(
        self: &Arc<Self>,
        at_least: OpId,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Snapshot, String> {
        let _one_at_a_time = loop {
            self.stopped(stop)?;
            match self.saving.try_lock_for(POLL) {
                Some(lock) => break lock,
                None => progress("waiting for another snapshot of the source"),
            }
        };
        if let Some(snapshot) = self.snapshot_in_the_making(at_least)? {
            return Ok(snapshot);
        }
        let in_words = |e: LocalError| e.to_string();
        let mut conn = self.connect().map_err(in_words)?;
        let new_enough = |rdb: &Rdb| rdb.position.op_id >= at_least;
        if let Some(rdb) = self.usable_rdb(&mut conn).map_err(in_words)?.filter(new_enough) {
            return Ok(rdb.into_snapshot());
        }
        let path = self.rdb_path(&mut conn).map_err(in_words)?;
        let before = Before::look(&path);
        match self.begin_save(&mut conn, &path, stop, progress)? {
            Some(file) => {
                if let Some(snapshot) = self.follow_save(file, stop, progress)? {
                    return Ok(snapshot);
                }
            }
            // A small one was renamed at once, and is whole. It may also be what a child before it has saved.
            None if before.is_replaced() => {
                if let Some(rdb) = self.usable_rdb(&mut conn).map_err(in_words)?.filter(new_enough) {
                    return Ok(rdb.into_snapshot());
                }
            }
            None => {}
        }
        self.wait_saved(&mut conn, None, stop, progress)?;
        let saved = self.usable_rdb(&mut conn).map_err(in_words)?;
        saved.map(Rdb::into_snapshot).ok_or_else(|| NO_POSITION.to_owned())
    }

    /// The snapshot that the server is saving for another target, where it serves.
    fn snapshot_in_the_making(&self, at_least: OpId) -> Result<Option<Snapshot>, String> {
        let Some(making) = self.making.lock().clone() else { return Ok(None) };
        let (op, own) = (making.position.op_id, self.log.lineage());
        // The node may have been another's target since.
        let known = making.position.lineage.history_of(op) == own.history_of(op) && op <= self.log.written();
        let fits = known && op >= at_least && op + 1 >= self.log.oldest();
        match making.file.look() {
            Ok(grown) if fits && !grown.whole => making.snapshot().map(Some),
            _ => Ok(None),
        }
    }

    /// Waits for the position in a file that is being saved. `None` where it was saved before that was seen.
    fn follow_save(
        self: &Arc<Self>,
        file: GrowingFile,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Option<Snapshot>, String> {
        progress("the source begins a snapshot");
        let head = loop {
            self.stopped(stop)?;
            let grown = file.look()?;
            match read_head(file.reader()) {
                Ok(head) => break head,
                Err(_) if grown.whole => return Ok(None),
                // As far as it is written, it is cut off in its head.
                Err(_) => std::thread::sleep(WATCH),
            }
        };
        let position = self.position_in(head).filter(|p| self.log_reaches(p.op_id)).ok_or(NO_POSITION)?;
        let making = Making { file: Arc::new(file), position };
        *self.making.lock() = Some(making.clone());
        let (node, file) = (Arc::clone(self), Arc::clone(&making.file));
        let spawned = super::spawn("dr-saved", move || node.take_note_of(&file));
        if let Err(e) = spawned {
            log::error!("no thread for following a save: {e}");
            *self.making.lock() = None;
        }
        making.snapshot().map(Some)
    }

    /// Waits for a save whose file is being sent, and looks at what it has made.
    fn take_note_of(self: &Arc<Self>, file: &Arc<GrowingFile>) {
        let outcome = loop {
            match file.look() {
                Ok(grown) if !grown.whole && !self.stopping() => std::thread::sleep(POLL),
                outcome => break outcome,
            }
        };
        // An open file that has lost its name takes room on the disk.
        self.making.lock().take_if(|m| Arc::ptr_eq(&m.file, file));
        match outcome {
            Err(e) => log::warn!("{e}"),
            Ok(_) if self.stopping() => {}
            Ok(_) => {
                if let Ok(mut conn) = self.connect() {
                    let _ = self.usable_rdb(&mut conn);
                }
            }
        }
    }
}

fn is(info: &HashMap<String, String>, name: &str, value: &str) -> bool {
    info.get(name).is_some_and(|v| v == value)
}
