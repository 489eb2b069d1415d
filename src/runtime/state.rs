//! What a node remembers over restarts, besides its log.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::link::{NodeId, Registered};
use crate::store::durable;
use crate::store::{Fs, StoreError};

/// Position at a clean stop: what a start from an AOF continues from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CleanStop {
    /// The server's replication id.
    pub replid: String,
    /// Its offset.
    pub offset: i64,
    /// Op id of that offset.
    pub op_id: u64,
}

/// Name of the file that a clean stop leaves: replication id, offset and op id in one line of text. The server's
/// main thread writes it when it stops, the next start takes it away.
pub const CLEAN_STOP: &str = "clean-stop";

impl CleanStop {
    /// Takes the file away and returns what it said; `None` after a crash.
    #[must_use]
    pub fn take(dir: &Path) -> Option<Self> {
        let path = dir.join(CLEAN_STOP);
        let text = std::fs::read_to_string(&path).ok()?;
        // It holds for one start only: after a crash of that one the dataset stands elsewhere.
        if let Err(e) = std::fs::remove_file(&path) {
            log::warn!("{}: {e}: not used", path.display());
            return None;
        }
        let mut fields = text.strip_suffix('\n')?.split(' ');
        let stop = Self {
            replid: fields.next()?.to_owned(),
            offset: fields.next()?.parse().ok()?,
            op_id: fields.next()?.parse().ok()?,
        };
        fields.next().is_none().then_some(stop)
    }
}

/// The record. Format version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    /// Version of this record.
    pub version: u32,
    /// Random name of this node.
    pub node: [u8; 16],
    /// Endpoints of the source while linked.
    pub linked: Option<Vec<String>>,
    /// The operator has cut the link: the module argument `source` is not taken up again.
    pub cut: bool,
    /// A snapshot is being loaded: until this is false the dataset is not whole.
    pub loading: bool,
    /// A snapshot was loaded up to this op, and no RDB holds it yet.
    pub copied: Option<u64>,
    /// Keys may carry held expiries that are to be released.
    pub rebasing: bool,
    /// Copies taken over a link.
    pub full_syncs: u64,
    /// Datasets rebuilt from the own disk.
    pub rebuilds: u64,
    /// Settings changed while linked, with their values from before.
    pub linked_settings: Vec<(String, String)>,
    /// Settings changed for an attach, with their values from before: put back at the next start after a crash.
    pub attach_settings: Vec<(String, String)>,
    /// Targets and what they need.
    pub targets: Vec<Registered>,
}

/// The record and its file.
pub struct StateFile {
    fs: Arc<dyn Fs>,
    path: PathBuf,
    state: Mutex<NodeState>,
}

impl StateFile {
    /// Reads the record in `dir`, or makes a new one.
    ///
    /// # Errors
    /// The file system's, or damage.
    pub fn open(fs: Arc<dyn Fs>, dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join("state");
        let state = match durable::load::<NodeState>(fs.as_ref(), &path)? {
            Some(state) => state,
            None => {
                let state = NodeState {
                    version: 1,
                    node: random_id(),
                    linked: None,
                    cut: false,
                    loading: false,
                    copied: None,
                    rebasing: false,
                    full_syncs: 0,
                    rebuilds: 0,
                    linked_settings: Vec::new(),
                    attach_settings: Vec::new(),
                    targets: Vec::new(),
                };
                durable::save(fs.as_ref(), &path, &state)?;
                state
            }
        };
        Ok(Self { fs, path, state: Mutex::new(state) })
    }

    /// A copy.
    #[must_use]
    pub fn get(&self) -> NodeState {
        self.state.lock().clone()
    }

    /// Name of this node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        NodeId(self.state.lock().node)
    }

    /// Changes the record on disk, then here.
    ///
    /// # Errors
    /// The file system's; nothing has then changed.
    pub fn change(&self, change: impl FnOnce(&mut NodeState)) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        let mut new = state.clone();
        change(&mut new);
        if new != *state {
            durable::save(self.fs.as_ref(), &self.path, &new)?;
            *state = new;
        }
        Ok(())
    }
}

fn random_id() -> [u8; 16] {
    use std::io::Read;
    let mut id = [0u8; 16];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut id));
    if read.is_err() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        id = (now.as_nanos() ^ u128::from(std::process::id())).to_le_bytes();
    }
    id
}
