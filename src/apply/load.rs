//! Loads a verified RDB file into the own server: DR._LOAD BEGIN, functions, keys in batches, END.
//!
//! Large collections and hashes with field expiries are loaded by their own commands, the rest by RESTORE. What
//! cannot be cut and so holds the server up for as long as it is large: strings, streams and module values.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use oplog_format::{codec, Lineage, OpId};

use super::ttl::{hold, released, HOLD_FIELD_MS};
use crate::local::{Conn, LocalError, Reply};
use crate::snapshot::reader::Key;
use crate::snapshot::{pieces, restore_payload, Event, Flavor, PieceOptions, RdbReader, SnapshotError};

/// Keys of one command.
const BATCH_KEYS: usize = 64;
/// Bytes of one command, above which a key comes alone.
const BATCH_BYTES: usize = 128 * 1024;
/// Commands in flight.
const IN_FLIGHT: usize = 4;

/// What is loaded, and what it will then be.
#[derive(Debug)]
pub struct LoadPlan<'a> {
    /// The RDB.
    pub path: &'a Path,
    /// Last op in it.
    pub op_id: OpId,
    /// Histories up to there.
    pub lineage: &'a Lineage,
    /// `None`: the dataset is replaced by the whole file. Otherwise only keys that expire before this time (Unix
    /// milliseconds) are restored into the dataset, as a server may have dropped them while it loaded the file,
    /// and all hashes with field expiries, of which it may have dropped fields.
    pub only_before: Option<i64>,
}

impl LoadPlan<'_> {
    fn takes(&self, key: &Key<'_>, flavor: Flavor) -> bool {
        match self.only_before {
            None => true,
            Some(before) => key.expire_ms.is_some_and(|ms| ms < before) || has_timed_fields(key, flavor),
        }
    }
}

fn has_timed_fields(key: &Key<'_>, flavor: Flavor) -> bool {
    match flavor {
        Flavor::Redis => (22..=25).contains(&key.type_byte),
        Flavor::Valkey => key.type_byte == 22,
    }
}

/// What a key is loaded with: an RDB of a linked target, or of one that is being promoted, has held expiries.
fn expiry_to_set(key: &Key<'_>) -> Option<i64> {
    key.expire_ms.map(|ms| if released(ms).is_some() { ms } else { hold(ms) })
}

/// How far a load is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes of the file.
    pub bytes: u64,
    /// Keys restored.
    pub keys: u64,
}

/// Why a load failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum LoadError {
    /// The file.
    Snapshot(SnapshotError),
    /// The connection.
    Local(LocalError),
    /// The server refuses something in it.
    Refused(String),
    /// Was told to stop.
    Stopped,
}

impl std::fmt::Display for LoadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Snapshot(e) => e.fmt(f),
            Self::Local(e) => e.fmt(f),
            Self::Refused(e) => f.write_str(e),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

impl std::error::Error for LoadError {}

impl From<SnapshotError> for LoadError {
    fn from(e: SnapshotError) -> Self {
        Self::Snapshot(e)
    }
}

impl From<LocalError> for LoadError {
    fn from(e: LocalError) -> Self {
        Self::Local(e)
    }
}

struct Batch {
    db: u32,
    /// Name, expiry as text, payload.
    keys: Vec<(Vec<u8>, String, Vec<u8>)>,
    bytes: usize,
}

struct Loader<'a> {
    conn: &'a mut Conn,
    due: usize,
    batch: Batch,
    progress: LoadProgress,
}

/// Loads the file. The server's dataset is then what the file holds, at `plan.op_id`.
///
/// # Errors
/// [`LoadError`]; the dataset is then not whole.
pub fn load(
    plan: &LoadPlan<'_>,
    conn: &mut Conn,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<LoadProgress, LoadError> {
    let file =
        File::open(plan.path).map_err(|e| SnapshotError::Io { offset: 0, source: e }.in_file(plan.path))?;
    let mut reader = RdbReader::new(BufReader::with_capacity(1 << 20, file));
    let batch = Batch { db: 0, keys: Vec::new(), bytes: 0 };
    let mut loader = Loader { conn, due: 0, batch, progress: LoadProgress::default() };
    let whole = plan.only_before.is_none();
    if whole {
        loader.call(&[b"DR._LOAD", b"BEGIN"])?;
    }
    let (mut rdb_version, mut flavor) = (0u16, Flavor::Redis);
    loop {
        if stop.load(Ordering::Acquire) {
            return Err(LoadError::Stopped);
        }
        loader.progress.bytes = reader.offset();
        match reader.next_event()? {
            None => break,
            Some(Event::Header { version, flavor: of }) => (rdb_version, flavor) = (version, of),
            Some(Event::Function { code, .. }) if whole => {
                let argv: [&[u8]; 7] = [b"DR._LOAD", b"CMD", b"0", b"FUNCTION", b"LOAD", b"REPLACE", &code];
                loader.call(&argv)?;
            }
            // Servers before 7.0 save their script cache.
            Some(Event::Aux { key, value }) if whole && *key == *b"lua" => {
                loader.call(&[b"DR._LOAD", b"CMD", b"0", b"SCRIPT", b"LOAD", &value])?;
            }
            Some(Event::Key(key)) => {
                if plan.takes(&key, flavor) {
                    loader.key(&key, flavor, rdb_version, whole)?;
                }
                progress(loader.progress);
            }
            Some(_) => {}
        }
    }
    loader.flush()?;
    loader.settle(0)?;
    if !whole {
        return Ok(loader.progress);
    }
    let lineage = codec::encode(plan.lineage).map_err(|e| LoadError::Refused(e.to_string()))?;
    loader.call(&[b"DR._LOAD", b"END", plan.op_id.to_string().as_bytes(), &lineage])?;
    progress(loader.progress);
    Ok(loader.progress)
}

impl Loader<'_> {
    /// Sends one command and waits for it.
    fn call(&mut self, argv: &[&[u8]]) -> Result<(), LoadError> {
        self.flush()?;
        self.send(argv, 0)?;
        self.settle(0)
    }

    fn key(&mut self, key: &Key<'_>, flavor: Flavor, rdb_version: u16, fresh: bool) -> Result<(), LoadError> {
        let options = PieceOptions { field_hold_ms: Some(HOLD_FIELD_MS), ..PieceOptions::default() };
        let expiry = expiry_to_set(key);
        let Some(commands) = pieces(flavor, key.type_byte, key.value, key.key, options) else {
            let mut payload = Vec::new();
            restore_payload(key.type_byte, key.value, rdb_version, &mut payload);
            return self.add(key.db, key.key.to_vec(), expiry.unwrap_or(-1), payload);
        };
        self.flush()?;
        let db = key.db.to_string();
        if !fresh {
            self.command(&db, &[b"UNLINK", key.key])?;
        }
        for command in commands {
            let command = command?;
            let argv: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
            self.command(&db, &argv)?;
        }
        if let Some(ms) = expiry {
            self.command(&db, &[b"PEXPIREAT", key.key, ms.to_string().as_bytes()])?;
        }
        self.progress.keys += 1;
        Ok(())
    }

    /// Sends one command of the server, without waiting for its reply.
    fn command(&mut self, db: &str, argv: &[&[u8]]) -> Result<(), LoadError> {
        let head: [&[u8]; 3] = [b"DR._LOAD", b"CMD", db.as_bytes()];
        self.send(&[&head, argv].concat(), IN_FLIGHT - 1)
    }

    /// Sends a command when at most `due` replies are due.
    fn send(&mut self, argv: &[&[u8]], due: usize) -> Result<(), LoadError> {
        self.settle(due)?;
        self.conn.push(argv);
        self.conn.flush()?;
        self.due += 1;
        Ok(())
    }

    fn add(&mut self, db: u32, key: Vec<u8>, expire: i64, payload: Vec<u8>) -> Result<(), LoadError> {
        let bytes = key.len() + payload.len();
        let full = self.batch.keys.len() >= BATCH_KEYS || self.batch.bytes + bytes > BATCH_BYTES;
        if db != self.batch.db || full {
            self.flush()?;
        }
        self.batch.db = db;
        self.batch.bytes += bytes;
        self.batch.keys.push((key, expire.to_string(), payload));
        self.progress.keys += 1;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), LoadError> {
        if self.batch.keys.is_empty() {
            return Ok(());
        }
        let keys = std::mem::take(&mut self.batch.keys);
        let large = std::mem::take(&mut self.batch.bytes) > BATCH_BYTES;
        let db = self.batch.db.to_string();
        let mut argv: Vec<&[u8]> = vec![b"DR._LOAD", b"KEYS", db.as_bytes()];
        for (key, expire, payload) in &keys {
            argv.extend([key.as_slice(), expire.as_bytes(), payload.as_slice()]);
        }
        self.send(&argv, if large { 0 } else { IN_FLIGHT - 1 })
    }

    /// Reads replies until at most `keep` are due.
    fn settle(&mut self, keep: usize) -> Result<(), LoadError> {
        while self.due > keep {
            match self.conn.read_reply()? {
                Reply::Error(e) => return Err(LoadError::Refused(e)),
                _ => self.due -= 1,
            }
        }
        Ok(())
    }
}
