//! Loads a verified RDB file into the own server: DR._LOAD BEGIN, functions, keys in batches, END.
//!
//! Large collections and hashes with field expiries are loaded by their own commands, large strings by
//! DR._LOAD PART and TEXT, the rest by RESTORE. What cannot be cut and so holds the server up for as long as it is
//! large: module values, and the pending entries of a stream's groups.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use oplog_format::{codec, Lineage, OpId};

use super::handoff::{self, Batch, Prepared, Ticket};
use super::like_integer;
use super::ttl::{hold, released, HOLD_FIELD_MS};
use super::wire::{push_key, LoadKey};
use crate::local::{Conn, LocalError, Reply};
use crate::snapshot::reader::Key;
use crate::snapshot::split::Command;
use crate::snapshot::{
    pieces, pieces_of_file, plain_text, restore_payload, uncompressed, Event, Flavor, PieceOptions,
    RdbReader, SnapshotError, TextPieces,
};

/// Type of strings in a file.
const STRING: u8 = 0;
/// Keys of one command.
const BATCH_KEYS: usize = 128;
/// Bytes of one command, above which a key comes alone.
const BATCH_BYTES: usize = 128 * 1024;
/// Values of more than so many bytes are read from the file piece by piece, and not kept in memory.
const KEEP_BYTES: usize = 1024 * 1024;
/// Strings of so many bytes are cut.
const TEXT_BYTES: u64 = 1024 * 1024;
/// Bytes of a piece of a string.
const PART_BYTES: usize = 256 * 1024;
/// Bytes of a string that may wait to be put in their place.
const AHEAD_BYTES: u64 = 8 * 1024 * 1024;
/// Commands of the server in one command of ours.
const BATCH_COMMANDS: usize = 256;
/// Their arguments, above which a command comes alone: each costs about as much as an element.
const BATCH_ARGS: usize = 512;
/// How often it is asked whether a string is complete.
const ASK: std::time::Duration = std::time::Duration::from_millis(2);
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

/// Keys that go together.
#[derive(Default)]
struct Waiting {
    db: u32,
    packed: Vec<u8>,
    values: Vec<Option<Prepared>>,
    bytes: usize,
}

struct Loader<'a> {
    conn: &'a mut Conn,
    path: &'a Path,
    stop: &'a AtomicBool,
    tell: &'a mut dyn FnMut(LoadProgress),
    /// Commands whose reply is due, and what they have in memory.
    due: VecDeque<Option<Ticket>>,
    keys: Waiting,
    /// Whether values are made ready here.
    values: bool,
    progress: LoadProgress,
}

/// Commands that go together, with their number of bytes and arguments.
#[derive(Default)]
struct Run {
    commands: Vec<Command>,
    bytes: usize,
    args: usize,
}

/// Loads the file. The server's dataset is then what the file holds, at `plan.op_id`.
///
/// # Errors
/// [`LoadError`]; the dataset is then not whole.
pub fn load(
    plan: &LoadPlan<'_>,
    conn: &mut Conn,
    stop: &AtomicBool,
    tell: &mut dyn FnMut(LoadProgress),
) -> Result<LoadProgress, LoadError> {
    let file =
        File::open(plan.path).map_err(|e| SnapshotError::Io { offset: 0, source: e }.in_file(plan.path))?;
    load_from(plan, file, &mut || Ok(()), conn, stop, tell)
}

/// As [`load`], of a file that is still being written: `input` reads behind its writer. What it has given is in the
/// file. `checked` is asked when all of it is loaded, before the dataset is said to be whole.
///
/// # Errors
/// [`LoadError`]; the dataset is then not whole.
pub fn load_from(
    plan: &LoadPlan<'_>,
    input: impl Read,
    checked: &mut dyn FnMut() -> Result<(), String>,
    conn: &mut Conn,
    stop: &AtomicBool,
    tell: &mut dyn FnMut(LoadProgress),
) -> Result<LoadProgress, LoadError> {
    let mut reader = RdbReader::new(BufReader::with_capacity(1 << 20, input)).keep_at_most(KEEP_BYTES);
    let (keys, values) = (Waiting::default(), handoff::takes_values());
    let progress = LoadProgress::default();
    let mut loader =
        Loader { conn, path: plan.path, stop, tell, due: VecDeque::new(), keys, values, progress };
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
                (loader.tell)(loader.progress);
            }
            Some(_) => {}
        }
    }
    loader.flush()?;
    loader.settle(0)?;
    if !whole {
        return Ok(loader.progress);
    }
    checked().map_err(LoadError::Refused)?;
    let lineage = codec::encode(plan.lineage).map_err(|e| LoadError::Refused(e.to_string()))?;
    loader.call(&[b"DR._LOAD", b"END", plan.op_id.to_string().as_bytes(), &lineage])?;
    (loader.tell)(loader.progress);
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
        let in_memory = key.value.len() as u64 == key.value_len;
        let span = (key.value_at, key.value_len);
        // Looking into a value costs a buffer, which most strings are far too short for: compression of the RDB's kind
        // makes a text at most 88 times shorter.
        let may_be_long = key.value_len.saturating_mul(100) >= TEXT_BYTES;
        if key.type_byte == STRING && may_be_long {
            let text = match in_memory {
                true => TextPieces::of(key.value)?,
                false => TextPieces::of_file(self.path, span)?,
            };
            if let Some(text) = text.filter(|t| t.len() >= TEXT_BYTES) {
                return self.text(key, text, fresh, if in_memory { key.value_at } else { 0 });
            }
        }
        let commands = match in_memory {
            true => pieces(flavor, key.type_byte, key.value, key.key, options),
            false => pieces_of_file((flavor, key.type_byte), self.path, span, key.key, options)?,
        };
        let Some(mut commands) = commands else { return self.whole(key, rdb_version, in_memory) };
        self.replace(key, fresh)?;
        let db = key.db.to_string();
        let mut run = Run::default();
        while let Some(command) = commands.next() {
            let command = command?;
            let bytes = command.iter().map(Vec::len).sum::<usize>();
            let full = run.args + command.len() > BATCH_ARGS || run.bytes + bytes > BATCH_BYTES;
            if full || run.commands.len() >= BATCH_COMMANDS {
                self.run(&db, &mut run)?;
                self.at(commands.offset() + if in_memory { key.value_at } else { 0 })?;
            }
            run.bytes += bytes;
            run.args += command.len();
            run.commands.push(command);
        }
        self.run(&db, &mut run)?;
        self.loaded(key)
    }

    /// Bytes of the file that are done with.
    fn at(&mut self, bytes: u64) -> Result<(), LoadError> {
        self.progress.bytes = bytes;
        (self.tell)(self.progress);
        if self.stop.load(Ordering::Acquire) {
            return Err(LoadError::Stopped);
        }
        Ok(())
    }

    /// Before the first piece: nothing to add to.
    fn replace(&mut self, key: &Key<'_>, fresh: bool) -> Result<(), LoadError> {
        self.flush()?;
        if !fresh {
            self.command(&key.db.to_string(), &[b"UNLINK", key.key])?;
        }
        Ok(())
    }

    /// After the last piece.
    fn loaded(&mut self, key: &Key<'_>) -> Result<(), LoadError> {
        if let Some(ms) = expiry_to_set(key) {
            let ms = ms.to_string();
            self.command(&key.db.to_string(), &[b"PEXPIREAT", key.key, ms.as_bytes()])?;
        }
        self.progress.keys += 1;
        Ok(())
    }

    /// A value by RESTORE.
    fn whole(&mut self, key: &Key<'_>, rdb_version: u16, in_memory: bool) -> Result<(), LoadError> {
        let mut payload = Vec::new();
        let mut text = None;
        if in_memory {
            let written_out = uncompressed(key.type_byte, key.value);
            let value = written_out.as_deref().unwrap_or(key.value);
            restore_payload(key.type_byte, value, rdb_version, &mut payload);
            text = self.values.then(|| plain_text(key.type_byte, key.value)).flatten();
        } else {
            let io = |source| SnapshotError::Io { offset: key.value_at, source }.in_file(self.path);
            let mut value = Vec::new();
            let mut file = File::open(self.path).map_err(io)?;
            file.seek(SeekFrom::Start(key.value_at)).map_err(io)?;
            file.take(key.value_len).read_to_end(&mut value).map_err(io)?;
            restore_payload(key.type_byte, &value, rdb_version, &mut payload);
        }
        let expire_ms = expiry_to_set(key).unwrap_or(-1);
        self.add(key.db, &LoadKey { key: key.key, expire_ms, payload: &payload }, text.as_deref())
    }

    /// A string piece by piece; `base` is added to where they are.
    fn text(
        &mut self,
        key: &Key<'_>,
        mut text: TextPieces<'_>,
        fresh: bool,
        base: u64,
    ) -> Result<(), LoadError> {
        self.replace(key, fresh)?;
        let total = text.len().to_string();
        let mut at = 0u64;
        while at < text.len() {
            let piece = text.next(PART_BYTES)?;
            let place = at.to_string();
            at += piece.len() as u64;
            let argv: [&[u8]; 5] = [b"DR._LOAD", b"PART", total.as_bytes(), place.as_bytes(), &piece];
            self.send(&argv, IN_FLIGHT - 1)?;
            self.at(base + text.offset())?;
            // The server's main thread must find the string complete, and what waits must not add up.
            if at == text.len() || at % AHEAD_BYTES < PART_BYTES as u64 {
                self.settle(0)?;
                while self.conn.call(&[b"DR._LOAD", b"READY"])? != Reply::Int(1) {
                    std::thread::sleep(ASK);
                }
            }
        }
        let db = key.db.to_string();
        self.send(&[b"DR._LOAD", b"TEXT", db.as_bytes(), key.key, total.as_bytes()], 0)?;
        self.loaded(key)
    }

    /// Sends the commands and empties the run.
    fn run(&mut self, db: &str, run: &mut Run) -> Result<(), LoadError> {
        let commands = std::mem::take(run).commands;
        if commands.is_empty() {
            return Ok(());
        }
        let counts: Vec<String> = commands.iter().map(|c| c.len().to_string()).collect();
        let mut argv: Vec<&[u8]> = vec![b"DR._LOAD", b"CMDS", db.as_bytes()];
        for (command, count) in commands.iter().zip(&counts) {
            argv.push(count.as_bytes());
            argv.extend(command.iter().map(Vec::as_slice));
        }
        // The server runs all that has arrived in one turn, and a run is long already.
        self.send(&argv, 1)
    }

    /// Sends one command of the server, without waiting for its reply.
    fn command(&mut self, db: &str, argv: &[&[u8]]) -> Result<(), LoadError> {
        let head: [&[u8]; 3] = [b"DR._LOAD", b"CMD", db.as_bytes()];
        self.send(&[&head, argv].concat(), IN_FLIGHT - 1)
    }

    /// Sends a command when at most `due` replies are due.
    fn send(&mut self, argv: &[&[u8]], due: usize) -> Result<(), LoadError> {
        self.settle(due)?;
        self.push(argv, None)
    }

    fn push(&mut self, argv: &[&[u8]], ticket: Option<Ticket>) -> Result<(), LoadError> {
        self.conn.push(argv);
        self.conn.flush()?;
        self.due.push_back(ticket);
        Ok(())
    }

    fn add(&mut self, db: u32, key: &LoadKey<'_>, text: Option<&[u8]>) -> Result<(), LoadError> {
        let bytes = key.key.len() + key.payload.len() + text.map_or(0, <[u8]>::len);
        let full = self.keys.values.len() >= BATCH_KEYS || self.keys.bytes + bytes > BATCH_BYTES;
        if db != self.keys.db || full {
            self.flush()?;
        }
        self.keys.db = db;
        self.keys.bytes += bytes;
        push_key(&mut self.keys.packed, key).map_err(LoadError::Refused)?;
        self.keys.values.push(text.filter(|t| !like_integer(t)).and_then(Prepared::new));
        self.progress.keys += 1;
        Ok(())
    }

    /// Hands the keys over: in memory where that is possible, and else all of them by the connection.
    fn flush(&mut self) -> Result<(), LoadError> {
        if self.keys.values.is_empty() {
            return Ok(());
        }
        let keys = std::mem::take(&mut self.keys);
        self.settle(if keys.bytes > BATCH_BYTES { 0 } else { IN_FLIGHT - 1 })?;
        let prepared = if handoff::is_possible() { Prepared::new(&keys.packed) } else { None };
        if let Some(packed) = prepared {
            let batch = Batch::Keys(handoff::Keys { db: keys.db, packed, values: keys.values });
            if let Ok(ticket) = handoff::put(batch) {
                let token = ticket.token().to_string();
                return self.push(&[b"DR._LOAD", b"REF", token.as_bytes()], Some(ticket));
            }
        }
        self.push(&[b"DR._LOAD", b"PACK", keys.db.to_string().as_bytes(), &keys.packed], None)
    }

    /// Reads replies until at most `keep` are due.
    fn settle(&mut self, keep: usize) -> Result<(), LoadError> {
        while self.due.len() > keep {
            match self.conn.read_reply()? {
                Reply::Error(e) => return Err(LoadError::Refused(e)),
                _ => drop(self.due.pop_front()),
            }
        }
        Ok(())
    }
}
