//! A model of a log as simple as can be, and a driver that does the same to it and to a log.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use oplog_format::packed::plain_entry;
use oplog_format::{
    decode_entry, encode_entry, Codec, Decoded, EntryMeta, History, Lineage, OpId, SegmentHeader,
    StoredHeader, SEGMENT_HEADER_LEN,
};
use redisdr::store::{durable, Fs, FsyncPolicy, Log, LogOptions, ReadError, StoreError};

use super::Rng;

/// One entry: first and last op, frame, and the last op id of each op in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub first: OpId,
    pub last: OpId,
    pub frame: Vec<u8>,
    pub ends: Vec<OpId>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Model {
    pub oldest: OpId,
    pub written: OpId,
    /// At least this much is durable.
    pub durable: OpId,
    pub entries: Vec<Item>,
    pub lineage: Lineage,
    /// Where the last cut was, and the bytes of the stream that it took.
    pub cut: Option<(OpId, Vec<u8>)>,
}

#[derive(Debug, Clone)]
pub enum Step {
    /// Entries, each with the lengths of its values.
    Append(Vec<Vec<usize>>),
    Sync,
    /// A new history, this many ops above the end.
    Begin(u64),
    /// Cuts at this part (of 1000) of the ops that are there.
    Cut(u64),
    Clean(u64),
    CleanBytes(u64),
    /// Starts anew, this many ops above the end.
    Reset(u64),
    Reopen,
}

pub const DIR: &str = "/data/dr";

pub fn options(segment_size: u64) -> LogOptions {
    LogOptions { segment_size, fsync: FsyncPolicy::EverySec, service_id: 3, compression: None }
}

/// As [`options`], with entries compressed.
pub fn packed(segment_size: u64) -> LogOptions {
    LogOptions { compression: Some(Codec::Zstd), ..options(segment_size) }
}

pub fn history(n: u64) -> History {
    History::from_bytes(format!("{n:040x}").as_bytes()).unwrap()
}

/// A log and its model.
pub struct Run {
    pub fs: Arc<dyn Fs>,
    pub dir: PathBuf,
    pub options: LogOptions,
    /// Each opening switches the compression on or off.
    pub switching: bool,
    pub log: Option<Arc<Log>>,
    pub model: Model,
    histories: u64,
    rng: Rng,
}

impl Run {
    pub fn new(fs: Arc<dyn Fs>, dir: &Path, segment_size: u64) -> Self {
        Self {
            fs,
            dir: dir.to_owned(),
            options: options(segment_size),
            switching: false,
            log: None,
            model: Model { oldest: 1, ..Model::default() },
            histories: 0,
            rng: Rng::new(7),
        }
    }

    pub fn open(&mut self) -> Result<(), StoreError> {
        if self.switching {
            self.options.compression = self.options.compression.xor(Some(Codec::Zstd));
        }
        let (log, report) = Log::open(&self.dir, self.options.clone(), Arc::clone(&self.fs))?;
        assert!(report.torn.is_none(), "{report:?}");
        self.log = Some(log);
        self.model.durable = self.model.written;
        Ok(())
    }

    pub fn log(&self) -> Arc<Log> {
        Arc::clone(self.log.as_ref().expect("open"))
    }

    /// Frames that continue the model.
    pub fn entries(&mut self, sizes: &[Vec<usize>]) -> Vec<Item> {
        entries(self.model.written, sizes, &mut self.rng)
    }

    /// What a step makes of the model; `None` where it does nothing.
    fn after(&mut self, step: &Step) -> (Model, Option<OpId>) {
        let mut m = self.model.clone();
        m.cut = None;
        match step {
            Step::Append(sizes) if m.lineage.current().is_some() => {
                m.entries.extend(self.entries(sizes));
                m.written = m.entries.last().map_or(m.written, |e| e.last);
                (m, None)
            }
            Step::Begin(above) => {
                self.histories += 1;
                let first = m.written + 1 + above;
                m.lineage.open(history(self.histories), first);
                if *above > 0 {
                    m.entries.clear();
                    (m.oldest, m.written, m.durable) = (first, first - 1, first - 1);
                }
                (m, Some(first))
            }
            Step::Cut(part) => {
                let ends: Vec<OpId> = std::iter::once(m.oldest - 1)
                    .chain(m.entries.iter().flat_map(|e| e.ends.iter().copied()))
                    .collect();
                let op = ends[(ends.len() as u64 * part / 1000).min(ends.len() as u64 - 1) as usize];
                if op < m.written {
                    cut_model(&mut m, op);
                }
                (m, Some(op))
            }
            Step::Reset(above) => {
                self.histories += 1;
                let next = m.written + 1 + above;
                m.lineage.open(history(self.histories), next.saturating_sub(5).max(1));
                m.entries.clear();
                (m.oldest, m.written, m.durable) = (next, next - 1, next - 1);
                (m, Some(next))
            }
            Step::Clean(part) => {
                let keep = m.oldest + (m.written + 1 - m.oldest) * part / 1000;
                (m, Some(keep))
            }
            _ => (m, None),
        }
    }

    /// Does a step to both. On an error the model is unchanged; second is what it would have become.
    pub fn step(&mut self, step: &Step) -> (Result<(), StoreError>, Model) {
        let (mut next, at) = self.after(step);
        let log = self.log();
        let at = at.unwrap_or(0);
        let old_len = self.model.entries.len();
        let result = match step {
            Step::Append(_) => {
                let frames: Vec<u8> =
                    next.entries[old_len..].iter().flat_map(|e| e.frame.iter().copied()).collect();
                match frames.is_empty() {
                    true => Ok(()),
                    false => log.append(&frames).map(|op| assert_eq!(op, next.written)),
                }
            }
            Step::Sync => log.sync().map(|op| assert_eq!(op, next.written)),
            Step::Begin(_) => log.begin_history(next.lineage.current().unwrap().history, at),
            Step::Cut(_) => log.cut_after(at, "a test").map(|info| {
                assert_eq!(info.is_some(), at < self.model.written);
            }),
            Step::Clean(_) => log.clean(at, Duration::ZERO, u64::MAX).map(drop),
            Step::CleanBytes(max) => log.clean_to_bytes(*max).map(drop),
            Step::Reset(_) => log.reset(next.lineage.clone(), at),
            Step::Reopen => {
                self.log = None;
                drop(log);
                let opened = self.open();
                return (opened, self.model.clone());
            }
        };
        if result.is_ok() {
            if matches!(step, Step::Clean(_) | Step::CleanBytes(_)) {
                let oldest = log.oldest();
                assert!(oldest >= next.oldest && oldest <= next.written + 1);
                assert!(matches!(step, Step::CleanBytes(_)) || oldest <= at.max(next.oldest));
                next.oldest = oldest;
                next.entries.retain(|e| e.last >= oldest);
            }
            assert!(log.durable() >= next.durable, "{step:?}: {} < {}", log.durable(), next.durable);
            next.durable = log.durable();
            self.model = next.clone();
        }
        (result, next)
    }

    /// Compares the log with the model.
    pub fn check(&self) {
        let log = self.log();
        let m = &self.model;
        assert_eq!((log.oldest(), log.written()), (m.oldest, m.written));
        assert_eq!(log.lineage(), m.lineage);
        let wanted: Vec<u8> = m.entries.iter().flat_map(|e| e.frame.iter().copied()).collect();
        assert!(read_all(&log) == wanted, "other bytes");
    }
}

pub fn entries(written: OpId, sizes: &[Vec<usize>], rng: &mut Rng) -> Vec<Item> {
    let mut last = written;
    let mut out = Vec::new();
    for values in sizes {
        let (first, mut payload, mut ends) = (last + 1, Vec::new(), Vec::new());
        for len in values {
            let value: Vec<u8> = (0..*len).map(|_| b'a' + rng.below(26) as u8).collect();
            payload.extend_from_slice(format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${len}\r\n").as_bytes());
            payload.extend_from_slice(&value);
            payload.extend_from_slice(b"\r\n");
            ends.push(first + payload.len() as u64 - 1);
        }
        last += payload.len() as u64;
        let mut frame = Vec::new();
        let meta = meta(last, values.len());
        encode_entry(&meta, &payload, &mut frame).unwrap();
        out.push(Item { first, last, frame, ends });
    }
    out
}

fn meta(last_op: OpId, ops: usize) -> EntryMeta {
    EntryMeta { last_op, time_ms: 5, db: 0, op_count: ops as u32, service_id: 3, flags: 0 }
}

fn payload(frame: &[u8]) -> &[u8] {
    let Ok(Decoded::Entry(e)) = decode_entry(frame) else { panic!("no entry") };
    e.payload
}

fn cut_model(m: &mut Model, op: OpId) {
    let mut taken = Vec::new();
    let mut kept = Vec::new();
    for e in m.entries.drain(..) {
        if e.last <= op {
            kept.push(e);
        } else if e.first > op {
            taken.extend_from_slice(payload(&e.frame));
        } else {
            let (stay, go) = payload(&e.frame).split_at((op + 1 - e.first) as usize);
            let ends: Vec<OpId> = e.ends.iter().copied().filter(|end| *end <= op).collect();
            let mut frame = Vec::new();
            encode_entry(&meta(op, ends.len()), stay, &mut frame).unwrap();
            kept.push(Item { first: e.first, last: op, frame, ends });
            taken.extend_from_slice(go);
        }
    }
    m.entries = kept;
    m.lineage.cut_after(op);
    m.oldest = m.oldest.min(op + 1);
    (m.written, m.durable) = (op, op);
    m.cut = Some((op, taken));
}

/// All frames of a log.
pub fn read_all(log: &Arc<Log>) -> Vec<u8> {
    let (out, position) = read_some(log);
    assert_eq!(position, log.written() + 1);
    out
}

/// All frames that can be read of a log, perhaps of one that has failed; and the position behind them.
pub fn read_some(log: &Arc<Log>) -> (Vec<u8>, OpId) {
    let mut reader = log.reader(log.oldest()).unwrap();
    let mut out = Vec::new();
    loop {
        match reader.next(3000, &mut out) {
            Ok(Some(_)) => {}
            Ok(None) | Err(ReadError::Store(StoreError::Poisoned(_))) => return (out, reader.position()),
            Err(e) => panic!("{e}"),
        }
    }
}

/// What is wrong with a log that was opened after a crash between two states; `None` where it is one of them, or
/// lies between.
pub fn differs(log: &Arc<Log>, before: &Model, after: &Model, fs: &dyn Fs, dir: &Path) -> Option<String> {
    let (got, position) = read_some(log);
    if position != log.written() + 1 {
        return Some(format!("read to {position}, written {}", log.written()));
    }
    let (oldest, written, lineage) = (log.oldest(), log.written(), log.lineage());
    let fits = |m: &Model, floor: OpId| {
        let wanted: Vec<u8> =
            m.entries.iter().filter(|e| e.last <= written).flat_map(|e| e.frame.iter().copied()).collect();
        let ends = written + 1 == m.oldest || m.entries.iter().any(|e| e.last == written);
        oldest == m.oldest && written >= floor && ends && wanted == got && lineage == m.lineage
    };
    if fits(before, before.durable) {
        return None;
    }
    // Cuts, gaps and new starts, once they show, are durable themselves.
    let replaced = after.cut.is_some() || after.lineage != before.lineage;
    let floor = if replaced { after.durable } else { before.durable };
    if !fits(after, floor) {
        return Some(format!(
            "opened {oldest}..={written} {lineage:?}\nbefore {}..={} durable {} {:?}\nafter {}..={} {:?}",
            before.oldest,
            before.written,
            before.durable,
            before.lineage,
            after.oldest,
            after.written,
            after.lineage
        ));
    }
    let Some((op, taken)) = &after.cut else { return None };
    let kept = log.orphans().unwrap();
    match kept.iter().find(|o| o.first_op == op + 1 && o.bytes == taken.len() as u64) {
        None => Some(format!("no orphans above {op}: {kept:?}")),
        Some(o) => {
            let bytes = orphan_bytes(fs, &dir.join("orphans").join(&o.id));
            (&bytes != taken).then(|| format!("the orphans above {op} are not whole"))
        }
    }
}

/// The bytes of the stream that an orphan's segments hold.
pub fn orphan_bytes(fs: &dyn Fs, folder: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    for name in fs.list(folder).unwrap().iter().filter(|n| n.ends_with(".oplog")) {
        let bytes = durable::read_file(fs, &folder.join(name), u64::MAX).unwrap().unwrap();
        SegmentHeader::decode(&bytes).unwrap();
        let mut at = SEGMENT_HEADER_LEN;
        while let Ok(header) = StoredHeader::decode(&bytes[at..]) {
            let end = at + header.frame_len() as usize;
            out.extend_from_slice(payload(&plain_entry(&bytes[at..end]).unwrap()));
            at = end;
        }
    }
    out
}

/// Steps that bring everything that a log does, each in more than one place.
pub fn workload() -> Vec<Step> {
    let a = |n: usize, len: usize| Step::Append(vec![vec![len, len / 2, 30]; n]);
    vec![
        Step::Begin(0),
        a(2, 100),
        Step::Sync,
        a(6, 900),
        a(1, 50),
        Step::Begin(0),
        a(5, 700),
        Step::Sync,
        a(3, 300),
        // Through an entry, two segments back.
        Step::Cut(600),
        a(1, 400),
        Step::Begin(0),
        a(4, 1200),
        Step::Append(vec![vec![9000]]),
        a(3, 200),
        Step::Clean(500),
        a(2, 800),
        Step::Sync,
        Step::Reopen,
        a(5, 600),
        // Within the last segment.
        Step::Cut(950),
        a(1, 100),
        // A gap.
        Step::Begin(5000),
        a(6, 1000),
        Step::Sync,
        a(2, 60),
        // Everything.
        Step::Cut(0),
        Step::Begin(0),
        a(3, 500),
        Step::Reset(100_000),
        a(6, 900),
        Step::Sync,
        Step::CleanBytes(6000),
        a(1, 20),
        Step::Reset(0),
        a(2, 10),
        Step::Sync,
    ]
}
