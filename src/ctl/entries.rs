//! Entries over all segments, in order, on a log that a server may be writing to, cleaning or cutting.

use std::io;

use oplog_format::{EntryHeader, OpId};

use super::damage::Damage;
use super::dir::{LogDir, SegmentFile};
use super::scan::{Scan, Step};
use super::CtlError;

/// What comes next in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An entry; its payload is [`Entries::payload`].
    Entry {
        /// Where it stands in [`Entries::file`].
        offset: u64,
        /// Its header.
        header: EntryHeader,
    },
    /// The log goes on, but not with the op that was expected.
    Gap {
        /// The op that should come.
        expected: OpId,
        /// The op that comes.
        got: OpId,
    },
    /// The log was cut back below what was read already.
    Cut,
    /// Nothing more so far.
    End,
    /// The file ends within an entry, and nothing follows it so far.
    Torn(Damage),
    /// A damaged place; nothing behind it is read.
    Damaged(Damage),
}

/// Reads a log from some op on.
pub struct Entries {
    log: LogDir,
    scan: Option<Scan>,
    expected: Option<OpId>,
}

impl Entries {
    /// Begins with the segment that holds `from`, or the first one above; its first entries may be below `from`.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(log: LogDir, from: OpId) -> Result<Self, CtlError> {
        let segments = log.segments()?;
        let start = segments.iter().rposition(|s| s.first_op <= from).unwrap_or(0);
        let mut entries = Self { log, scan: None, expected: None };
        for segment in segments.iter().skip(start) {
            if entries.enter(segment)? {
                break;
            }
        }
        if let Some(scan) = &mut entries.scan {
            scan.seek_op(from);
        }
        Ok(entries)
    }

    /// The segment file that the last event is about.
    #[must_use]
    pub fn scan(&self) -> Option<&Scan> {
        self.scan.as_ref()
    }

    /// Payload of the last entry.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        self.scan.as_ref().map_or(&[], |s| s.payload())
    }

    /// Opens a segment; `false` where it vanished since it was listed.
    fn enter(&mut self, segment: &SegmentFile) -> Result<bool, CtlError> {
        match Scan::open(&segment.path) {
            Ok(scan) => {
                self.scan = Some(scan);
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(CtlError::io(&segment.path, e)),
        }
    }

    /// The next event. After [`Event::End`], [`Event::Torn`] and [`Event::Cut`] it may be called again later.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn event(&mut self) -> Result<Event, CtlError> {
        loop {
            let Some(scan) = &mut self.scan else {
                if !self.advance(None)? {
                    return Ok(Event::End);
                }
                continue;
            };
            // A header that is not whole yet is a segment that is just being made.
            if let Some(problem) = scan.problems.first().cloned() {
                let first = scan.header.map(|h| h.first_op);
                let more = self.advance(first)?;
                return Ok(if more || first.is_some() {
                    Event::Damaged(problem)
                } else {
                    Event::Torn(problem)
                });
            }
            if let (Some(expected), Some(got)) = (self.expected.take(), scan.next_op()) {
                if expected != got {
                    return Ok(Event::Gap { expected, got });
                }
            }
            let step = match scan.step() {
                Ok(step) => step,
                Err(e) => return Err(CtlError::io(scan.path(), e)),
            };
            if let Step::Entry { offset, header } = step {
                return Ok(Event::Entry { offset, header });
            }
            if let Some(event) = self.at_the_end(step)? {
                return Ok(event);
            }
        }
    }

    /// No entry is here: the file may have grown, been sealed, cut or followed by another.
    fn at_the_end(&mut self, step: Step) -> Result<Option<Event>, CtlError> {
        let Some(scan) = &mut self.scan else { return Ok(None) };
        let (first, position) = (scan.header.map(|h| h.first_op), scan.position());
        // Listed before the file is looked at: were it done the other way round, what came between would be missed.
        let follower = self.log.segments()?.into_iter().find(|s| Some(s.first_op) > first);
        let changed = if step == Step::End { scan.refresh() } else { scan.settle() };
        match changed {
            Ok(true) => return Ok((scan.len() < position).then_some(Event::Cut)),
            Ok(false) => {}
            Err(e) => return Err(CtlError::io(scan.path(), e)),
        }
        match (step, follower) {
            (Step::Damaged(d), _) => Ok(Some(self.damaged(d)?)),
            (Step::Torn(d), Some(_)) => Ok(Some(Event::Damaged(d))),
            (Step::Torn(d), None) => Ok(Some(Event::Torn(d))),
            (_, Some(next)) => {
                self.expected = scan.next_op();
                self.enter(&next)?;
                Ok(None)
            }
            (_, None) if !scan.path().exists() => Ok(Some(Event::Cut)),
            (_, None) => Ok(Some(Event::End)),
        }
    }

    /// Room that was allocated and not yet written to is no damage.
    fn damaged(&self, damage: Damage) -> Result<Event, CtlError> {
        let Some(scan) = self.scan.as_ref().filter(|s| s.seal.is_none()) else {
            return Ok(Event::Damaged(damage));
        };
        let room = scan.only_zeros_follow().map_err(|e| CtlError::io(scan.path(), e))?;
        Ok(if room { Event::End } else { Event::Damaged(damage) })
    }

    /// Enters the first segment above `first`.
    fn advance(&mut self, first: Option<OpId>) -> Result<bool, CtlError> {
        for segment in self.log.segments()? {
            if first.is_none_or(|f| segment.first_op > f) && self.enter(&segment)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
