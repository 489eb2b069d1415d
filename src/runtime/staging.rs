//! A copy of the source's data on its way in: written to a file, and checked from there while it grows.
//!
//! The check reads what the file gives back, behind the writer and as fast as it can: it holds nothing up, and what
//! waits for it waits on disk. Nothing of this node changes before all of it has passed, unless there is nothing to
//! lose: an empty node loads the copy while it comes, is not said to be whole before the check has passed, and is empty
//! again if it does not.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::boot::lineage_of;
use super::node::Node;
use super::shared::{Mode, FLAG_INCOMPLETE, FLAG_POSITIONED};
use crate::link::{SnapshotMeta, Staging};
use crate::snapshot::{verify, RdbSummary};

/// Name of the file.
const STAGING: &str = "staging.rdb";

impl Node {
    /// Where a copy is put while it comes.
    pub fn staging_path(&self) -> PathBuf {
        self.dir.join(STAGING)
    }
}

/// How far the file is.
#[derive(Debug, Default)]
struct Progress {
    written: u64,
    /// There will be no more.
    whole: bool,
    /// Nobody wants to know any more.
    given_up: bool,
    /// How the check has ended.
    outcome: Option<Result<RdbSummary, String>>,
    /// All has passed: what is loaded while it came may be the dataset.
    passed: bool,
    /// How the loading while it came has ended; its keys.
    loaded: Option<Result<u64, String>>,
}

/// What writer and checker share.
#[derive(Debug, Default)]
struct Shared {
    progress: Mutex<Progress>,
    changed: Condvar,
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.lock());
        self.changed.notify_all();
    }
}

/// Runs a thread's work; a panic is an error of the transfer.
fn guarded<T>(thread: &str, work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|_| {
        log::error!("thread {thread} panicked");
        Err(format!("thread {thread} panicked"))
    })
}

/// Reads a file behind the one who writes it, and waits for more where there is none yet.
struct Behind {
    file: File,
    at: u64,
    shared: Arc<Shared>,
}

impl Read for Behind {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let there = {
            let mut progress = self.shared.progress.lock();
            while progress.written <= self.at && !progress.whole && !progress.given_up {
                self.shared.changed.wait(&mut progress);
            }
            if progress.given_up {
                return Err(io::Error::other("the transfer has ended"));
            }
            progress.written.saturating_sub(self.at)
        };
        let want = usize::try_from(there).unwrap_or(usize::MAX).min(buf.len());
        let n = self.file.read_at(buf.get_mut(..want).unwrap_or_default(), self.at)?;
        if n == 0 && want > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += n as u64;
        Ok(n)
    }
}

/// A copy on its way in.
pub struct Staged {
    node: Arc<Node>,
    meta: SnapshotMeta,
    file: File,
    shared: Arc<Shared>,
    check: Option<JoinHandle<()>>,
    /// Loads while the rest is still coming.
    early: Option<JoinHandle<()>>,
}

impl Staged {
    /// Makes the file and starts its check.
    ///
    /// # Errors
    /// In words: no room, no file, no thread.
    pub fn begin(node: &Arc<Node>, meta: &SnapshotMeta) -> Result<Self, String> {
        let path = node.staging_path();
        let _ = std::fs::remove_file(&path);
        let free = node.fs.free_bytes(&node.dir).unwrap_or(u64::MAX);
        if let Some(len) = meta.len.filter(|len| free < *len) {
            let dir = node.dir.display();
            return Err(format!("the snapshot has {len} bytes, {dir} has only {free} free"));
        }
        let in_words = |e: io::Error| format!("{}: {e}", path.display());
        let open = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = open.map_err(in_words)?;
        let shared = Arc::new(Shared::default());
        let behind = || -> Result<Behind, String> {
            Ok(Behind { file: file.try_clone().map_err(in_words)?, at: 0, shared: Arc::clone(&shared) })
        };
        let (own, input) = (Arc::clone(&shared), behind()?);
        let check = std::thread::Builder::new().name("dr-link-check".to_owned()).spawn(move || {
            let outcome = guarded("dr-link-check", || {
                verify(input, &mut |_, _| {}).map_err(|e| format!("the snapshot: {e}"))
            });
            own.change(|p| p.outcome = Some(outcome));
        });
        let check = check.map_err(|e| format!("no thread for checking the snapshot: {e}"))?;
        let early_input = if node.is_fresh() { Some(behind()?) } else { None };
        let mut staged = Self {
            node: Arc::clone(node),
            meta: meta.clone(),
            file,
            shared,
            check: Some(check),
            early: None,
        };
        if let Some(input) = early_input {
            staged.load_early(input)?;
        }
        Ok(staged)
    }

    fn load_early(&mut self, input: Behind) -> Result<(), String> {
        let (node, meta, shared) = (Arc::clone(&self.node), self.meta.clone(), Arc::clone(&self.shared));
        let early = std::thread::Builder::new().name("dr-link-load".to_owned()).spawn(move || {
            let mut passed = || {
                let mut progress = shared.progress.lock();
                while !progress.passed && !progress.given_up {
                    shared.changed.wait(&mut progress);
                }
                if progress.passed {
                    Ok(())
                } else {
                    Err("the transfer has ended".to_owned())
                }
            };
            let loaded = guarded("dr-link-load", || node.load_coming_copy(input, &meta, &mut passed));
            shared.change(|p| p.loaded = Some(loaded));
        });
        self.early = Some(early.map_err(|e| format!("no thread for loading the snapshot: {e}"))?);
        Ok(())
    }

    /// Loads what has been checked, or lets what is loaded already be the dataset.
    fn loaded(&mut self) -> Result<u64, String> {
        if self.early.is_none() {
            return self.node.load_copy(&self.node.staging_path(), self.meta.op_id, &self.meta.lineage);
        }
        self.shared.change(|p| p.passed = true);
        if let Some(early) = self.early.take() {
            drop(early.join());
        }
        let loaded = self.shared.progress.lock().loaded.take();
        let loaded = loaded.unwrap_or_else(|| Err("the loading of the snapshot has gone".to_owned()));
        loaded.inspect_err(|_| self.node.drop_coming_copy())
    }

    /// Waits for the check, which has all bytes.
    fn checked(&mut self) -> Result<RdbSummary, String> {
        self.shared.change(|p| p.whole = true);
        self.join();
        let outcome = self.shared.progress.lock().outcome.take();
        outcome.unwrap_or_else(|| Err("the check of the snapshot has gone".to_owned()))
    }

    fn join(&mut self) {
        if let Some(check) = self.check.take() {
            drop(check.join());
        }
    }

    /// Whether the snapshot is what was announced.
    fn compare(&self, summary: &RdbSummary) -> Result<(), String> {
        let meta = &self.meta;
        let aux = summary.head.ours.as_ref().ok_or("the snapshot has no position of redisdr")?;
        let lineage = lineage_of(aux);
        if aux.flags & FLAG_POSITIONED == 0 || aux.flags & FLAG_INCOMPLETE != 0 || aux.op_id != meta.op_id {
            return Err(format!("the snapshot stands at op {}, op {} was announced", aux.op_id, meta.op_id));
        }
        if lineage.history_of(aux.op_id) != meta.lineage.history_of(meta.op_id) {
            return Err("the snapshot is of another history than was announced".into());
        }
        Ok(())
    }
}

impl Staging for Staged {
    fn write(&mut self, bytes: &[u8]) -> Result<(), String> {
        // Neither it nor the rest is of use.
        if let Some(Err(e)) = &self.shared.progress.lock().outcome {
            return Err(e.clone());
        }
        self.file.write_all(bytes).map_err(|e| format!("staging the snapshot: {e}"))?;
        self.shared.change(|p| p.written = p.written.saturating_add(bytes.len() as u64));
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), String> {
        // Not synced: what is verified and loaded is what the system gives back now, and a start after a crash takes the
        // copy anew.
        let summary = self.checked()?;
        self.compare(&summary)?;
        self.node.check_modules(&summary.modules)?;
        let (node, meta) = (Arc::clone(&self.node), self.meta.clone());
        // Its log is about to be cut under it.
        node.stop_feed();
        node.keep_as_orphans(&meta.lineage, meta.op_id, "the source's data replaced this node's")?;
        let keys = self.loaded()?;
        node.log.reset(meta.lineage.clone(), meta.op_id + 1).map_err(|e| e.to_string())?;
        node.set_ident(|i| {
            i.mode = Mode::Target;
            i.lineage = meta.lineage.clone();
            i.held = true;
        });
        node.remember(|s| {
            s.full_syncs += 1;
            s.loading = false;
            s.copied = Some(meta.op_id);
        });
        *node.consent.lock() = crate::link::Consent::None;
        log::info!("snapshot loaded: {keys} keys, op {}", meta.op_id);
        node.raise_fence();
        node.start_feed();
        node.save_after_load();
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        self.shared.change(|p| p.given_up = true);
        self.join();
        if let Some(early) = self.early.take() {
            drop(early.join());
            self.node.drop_coming_copy();
        }
    }
}
