//! Stands in for the log store until that is there: the same calls, in memory.
#![allow(missing_docs, clippy::missing_errors_doc, clippy::must_use_candidate)]

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use oplog_format::{decode_entry, Decoded, History, Lineage, OpId};
use parking_lot::{Condvar, Mutex};

#[derive(Debug)]
pub enum ReadError {
    Trimmed { oldest: OpId },
    Ahead { written: OpId },
    NotABoundary { op: OpId, entry_first: OpId, entry_last: OpId },
    Damaged,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

#[derive(Debug, Default)]
struct State {
    entries: Vec<(OpId, OpId, Vec<u8>)>,
    written: OpId,
    lineage: Lineage,
}

#[derive(Debug, Default)]
pub struct Log {
    state: Mutex<State>,
    grown: Condvar,
}

#[derive(Debug)]
pub struct LogReader {
    log: Arc<Log>,
    position: OpId,
}

impl Log {
    pub fn memory() -> Arc<Self> {
        Arc::default()
    }
    pub fn oldest(&self) -> OpId {
        let s = self.state.lock();
        s.entries.first().map_or(s.written + 1, |e| e.0)
    }
    pub fn written(&self) -> OpId {
        self.state.lock().written
    }
    pub fn durable(&self) -> OpId {
        self.written()
    }
    pub fn lineage(&self) -> Lineage {
        self.state.lock().lineage.clone()
    }
    pub fn begin_history(&self, history: History, first_op: OpId) -> Result<(), String> {
        let mut s = self.state.lock();
        if first_op > s.written + 1 {
            s.entries.clear();
            s.written = first_op - 1;
        }
        s.lineage.open(history, first_op);
        Ok(())
    }
    pub fn append(&self, frames: &[u8]) -> Result<OpId, String> {
        let mut s = self.state.lock();
        let mut rest = frames;
        while !rest.is_empty() {
            let Ok(Decoded::Entry(e)) = decode_entry(rest) else { return Err("damaged".to_owned()) };
            if e.header.first_op() != s.written + 1 {
                return Err(format!("{} after {}", e.header.first_op(), s.written));
            }
            s.written = e.header.meta.last_op;
            s.entries.push((e.header.first_op(), e.header.meta.last_op, e.frame.to_vec()));
            rest = rest.get(e.frame.len()..).unwrap_or_default();
        }
        self.grown.notify_all();
        Ok(s.written)
    }
    pub fn reset(&self, lineage: Lineage, next_op: OpId) -> Result<(), String> {
        *self.state.lock() = State { entries: Vec::new(), written: next_op - 1, lineage };
        Ok(())
    }
    pub fn cut_after(&self, op: OpId) -> Result<(), String> {
        let mut s = self.state.lock();
        s.entries.retain(|e| e.1 <= op);
        s.written = op;
        s.lineage.cut_after(op);
        Ok(())
    }
    pub fn trim(&self, keep_from: OpId) {
        self.state.lock().entries.retain(|e| e.1 >= keep_from);
    }
    pub fn reader(self: &Arc<Self>, from: OpId) -> Result<LogReader, ReadError> {
        let s = self.state.lock();
        let oldest = s.entries.first().map_or(s.written + 1, |e| e.0);
        if from < oldest {
            return Err(ReadError::Trimmed { oldest });
        }
        if from > s.written + 1 {
            return Err(ReadError::Ahead { written: s.written });
        }
        if let Some(e) = s.entries.iter().find(|e| e.0 < from && from <= e.1) {
            return Err(ReadError::NotABoundary { op: from, entry_first: e.0, entry_last: e.1 });
        }
        Ok(LogReader { log: Arc::clone(self), position: from })
    }
    pub fn wait_written(&self, above: OpId, timeout: Duration) -> OpId {
        let until = Instant::now() + timeout;
        let mut s = self.state.lock();
        while s.written <= above {
            if self.grown.wait_until(&mut s, until).timed_out() {
                break;
            }
        }
        s.written
    }
}

impl LogReader {
    pub fn next(&mut self, max: usize, out: &mut Vec<u8>) -> Result<Option<(OpId, OpId)>, ReadError> {
        let s = self.log.state.lock();
        if self.position > s.written {
            return Ok(None);
        }
        let first = self.position;
        let oldest = s.entries.first().map_or(s.written + 1, |e| e.0);
        if first < oldest {
            return Err(ReadError::Trimmed { oldest });
        }
        let begun = out.len();
        let at = s.entries.partition_point(|e| e.0 < first);
        for e in s.entries.iter().skip(at) {
            if out.len() > begun && out.len() - begun + e.2.len() > max {
                break;
            }
            out.extend_from_slice(&e.2);
            self.position = e.1 + 1;
        }
        Ok(Some((first, self.position - 1)))
    }
}
