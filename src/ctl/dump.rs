//! `dump` and `tail`: ops as text or JSON.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use oplog_format::{EntryHeader, IndexPoint, OpId};

use super::dir::LogDir;
use super::entries::{Entries, Event};
use super::ops::{self, Op, OpsEnd};
use super::scan::{Scan, Step};
use super::CtlError;

/// Which ops are shown, and how.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Ops from this id on.
    pub from: Option<OpId>,
    /// Ops up to this id.
    pub to: Option<OpId>,
    /// Ops captured at or after this time, Unix milliseconds.
    pub since: Option<u64>,
    /// Ops captured at or before this time, Unix milliseconds.
    pub until: Option<u64>,
    /// Ops born on this instance.
    pub service_id: Option<u8>,
    /// At most so many.
    pub limit: Option<u64>,
    /// As JSON, one object a line.
    pub json: bool,
    /// Long arguments as a whole, in text too.
    pub full: bool,
}

/// Bytes that are shown of a longer argument.
const SHOWN: usize = 1024;

impl Filter {
    fn wants_entry(&self, h: &EntryHeader) -> bool {
        let m = &h.meta;
        self.from.is_none_or(|from| m.last_op >= from)
            && self.since.is_none_or(|t| m.time_ms >= t)
            && self.until.is_none_or(|t| m.time_ms <= t)
            && self.service_id.is_none_or(|s| m.service_id == s)
    }

    fn wants_op(&self, op: &Op<'_>) -> bool {
        self.from.is_none_or(|from| op.id >= from) && self.to.is_none_or(|to| op.id <= to)
    }
}

/// Prints the ops of a log that a filter lets through.
struct Printer<'a, O, E> {
    filter: &'a Filter,
    out: O,
    err: E,
    left: u64,
}

impl<O: Write, E: Write> Printer<'_, O, E> {
    /// Prints one entry; the walk may end early with `Err(None)`.
    fn entry(&mut self, entries: &Entries, header: &EntryHeader) -> Result<(), Option<CtlError>> {
        let Some(scan) = entries.scan().filter(|_| self.filter.wants_entry(header)) else { return Ok(()) };
        let walked = ops::for_each(scan.path(), scan.payload_at(), &header.meta, entries.payload(), |op| {
            if self.left == 0 || !self.filter.wants_op(op) {
                return Ok(());
            }
            self.left -= 1;
            if self.filter.json {
                op.print_json(&mut self.out)
            } else {
                op.print(if self.filter.full { usize::MAX } else { SHOWN }, &mut self.out)
            }
        });
        match walked {
            Ok(()) => Ok(()),
            Err(OpsEnd::Io(e)) => Err(Some(CtlError::Output(e))),
            Err(OpsEnd::Damaged(d)) => {
                writeln!(self.err, "DAMAGE {d}").map_err(|e| Some(CtlError::Output(e)))?;
                Err(None)
            }
        }
    }

    /// Prints up to the end of the log. Returns whether it was reached without damage.
    fn run(&mut self, entries: &mut Entries, wait: Option<Duration>) -> Result<bool, CtlError> {
        while self.left > 0 {
            match entries.event()? {
                Event::Entry { header, .. } if self.filter.to.is_some_and(|to| header.first_op() > to) => {
                    break
                }
                Event::Entry { header, .. } => match self.entry(entries, &header) {
                    // What lies behind was not asked for, damaged or not.
                    Ok(()) if self.filter.to.is_some_and(|to| header.meta.last_op >= to) => break,
                    Ok(()) => {}
                    Err(None) => return Ok(false),
                    Err(Some(e)) => return Err(e),
                },
                Event::Gap { expected, got } => {
                    writeln!(self.err, "gap: op {expected} should follow, op {got} does")?;
                }
                Event::Damaged(d) => {
                    writeln!(self.err, "DAMAGE {d}; not read any further")?;
                    return Ok(false);
                }
                Event::Cut if wait.is_some() => {
                    writeln!(self.err, "the log was cut back below what is shown above; see `orphans`")?;
                    return Ok(true);
                }
                event @ (Event::End | Event::Torn(_) | Event::Cut) => {
                    self.out.flush()?;
                    let Some(wait) = wait else {
                        if let Event::Torn(d) = event {
                            writeln!(self.err, "incomplete at the end: {d}")?;
                        }
                        break;
                    };
                    std::thread::sleep(wait);
                }
            }
        }
        Ok(true)
    }
}

/// `oplogctl dump`. Returns whether the range was read without damage.
///
/// # Errors
/// Those of the file system, and of `out` and `err`.
pub fn run(dir: &Path, filter: &Filter, out: impl Write, err: impl Write) -> Result<bool, CtlError> {
    let mut entries = Entries::open(LogDir::open(dir)?, filter.from.unwrap_or(0))?;
    let mut printer = Printer { filter, out, err, left: filter.limit.unwrap_or(u64::MAX) };
    printer.run(&mut entries, None)
}

/// `oplogctl tail`: the last `count` ops, and with `follow` those that come. Of `how` only the form counts.
///
/// # Errors
/// Those of the file system, and of `out` and `err`.
pub fn tail(
    dir: &Path,
    count: u64,
    follow: Option<Duration>,
    how: &Filter,
    out: impl Write,
    err: impl Write,
) -> Result<bool, CtlError> {
    let log = LogDir::open(dir)?;
    let from = start_of_tail(&log, count)?;
    let mut entries = Entries::open(log, from.unwrap_or(0))?;
    let filter = Filter { from, ..how.clone() };
    Printer { filter: &filter, out, err, left: u64::MAX }.run(&mut entries, follow)
}

/// Id of the first of the last `count` ops; `None` where there are fewer.
fn start_of_tail(log: &LogDir, count: u64) -> Result<Option<OpId>, CtlError> {
    let mut above: u64 = 0;
    let mut end = None;
    for segment in log.segments()?.iter().rev() {
        let mut scan = match Scan::open(&segment.path) {
            Ok(scan) => scan,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(CtlError::io(&segment.path, e)),
        };
        let failed = |e| CtlError::io(&segment.path, e);
        // The last entries that hold `count` ops between them, and those of the segments above.
        let (mut kept, mut held) = (VecDeque::new(), above);
        while let Step::Entry { offset, header } = scan.step().map_err(failed)? {
            let ops = u64::from(header.meta.op_count);
            held += ops;
            kept.push_back((IndexPoint { first_op: header.first_op(), offset }, ops));
            while let Some((_, first)) = kept.front().copied().filter(|(_, ops)| held - ops >= count) {
                held -= first;
                kept.pop_front();
            }
            end = end.max(Some(header.meta.last_op + 1));
        }
        if held < count {
            above = held;
            continue;
        }
        let Some((point, _)) = kept.front().copied() else { return Ok(end) };
        return op_of(&mut scan, point, held - count).map_err(failed);
    }
    Ok(None)
}

/// Id of the op that stands `skip` ops into the entry at `point`.
fn op_of(scan: &mut Scan, point: IndexPoint, skip: u64) -> io::Result<Option<OpId>> {
    scan.seek(point);
    let Step::Entry { offset, header } = scan.step()? else { return Ok(Some(point.first_op)) };
    let (mut seen, mut found) = (0, None);
    let walked = ops::for_each(scan.path(), offset, &header.meta, scan.payload(), |op| {
        if seen == skip {
            found = Some(op.id);
        }
        seen += 1;
        Ok(())
    });
    match walked {
        Err(OpsEnd::Io(e)) => Err(e),
        _ => Ok(found.or(Some(point.first_op))),
    }
}
