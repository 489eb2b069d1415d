//! `verify`: reads every byte of a log and reports all damage.

use std::io::{self, Write};
use std::path::Path;

use oplog_format::{EntryHeader, IndexPoint, OpId, SEGMENT_HEADER_LEN};

use super::damage::Damage;
use super::dir::{LogDir, SegmentFile};
use super::ops::{self, OpsEnd};
use super::scan::{Scan, Seal, Step};
use super::{text, CtlError, Progress};

/// What a check has seen.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// Segments that were read.
    pub segments: u64,
    /// Good entries.
    pub entries: u64,
    /// Those of them that are compressed.
    pub compressed: u64,
    /// Ops in them.
    pub ops: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// First position and last op.
    pub range: Option<(OpId, OpId)>,
    /// All that is damaged.
    pub damage: Vec<Damage>,
    /// An incomplete entry at the very end: a write that is under way, or that a crash cut short.
    pub torn: Option<Damage>,
}

/// Checks the log in `dir`.
///
/// # Errors
/// Those of the file system; damage is in the report.
pub fn check(dir: &Path, progress: &mut Progress) -> Result<Report, CtlError> {
    let log = LogDir::open(dir)?;
    let mut report = Report::default();
    report.damage.extend(log.manifest()?.err());
    report.damage.extend(log.orphans()?.into_iter().filter_map(|o| o.info.err()));
    let segments = log.segments()?;
    let total = segments.iter().map(|s| s.len).sum();
    let mut expected: Option<OpId> = None;
    for (i, segment) in segments.iter().enumerate() {
        let last = i + 1 == segments.len();
        let scan = match Scan::open(&segment.path) {
            Ok(scan) => scan,
            // The server's cleaner took it since the listing; it takes the oldest first.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(CtlError::io(&segment.path, e)),
        };
        let mut walk = Walk { scan, report: &mut report, progress, total, passed: 0, astray: Vec::new() };
        expected = walk.segment(segment, expected, last).map_err(|e| CtlError::io(&segment.path, e))?;
        report.segments += 1;
    }
    Ok(report)
}

/// One segment being checked.
struct Walk<'a> {
    scan: Scan,
    report: &'a mut Report,
    progress: &'a mut Progress,
    total: u64,
    /// How many index points have been passed.
    passed: usize,
    /// Those that name no entry.
    astray: Vec<IndexPoint>,
}

impl Walk<'_> {
    fn damaged(&mut self, offset: u64, expected: impl Into<String>, got: impl Into<String>) {
        self.report.damage.push(Damage::new(self.scan.path(), offset, expected, got));
    }

    /// Returns the op id that the next segment must begin with.
    fn segment(
        &mut self,
        file: &SegmentFile,
        expected: Option<OpId>,
        last: bool,
    ) -> io::Result<Option<OpId>> {
        if last && self.scan.header.is_none() && self.scan.len() < SEGMENT_HEADER_LEN as u64 {
            // Just made, or a crash came before its header was written.
            self.report.torn = self.scan.problems.first().cloned();
            return Ok(expected);
        }
        let problems = std::mem::take(&mut self.scan.problems);
        self.report.damage.extend(problems);
        let begins = self.scan.header.map(|h| h.first_op);
        if let Some(got) = begins.filter(|b| *b != file.first_op) {
            self.damaged(0, format!("first op {} as the file is named", file.first_op), format!("op {got}"));
        }
        if let (Some(expected), Some(got)) = (expected, begins.filter(|b| expected.is_some_and(|e| e != *b)))
        {
            self.damaged(0, format!("op {expected} behind the segment before"), format!("op {got}"));
        }
        let (mut entries, mut op_count, mut last_time) = (0u64, 0u64, 0u64);
        loop {
            match self.scan.step()? {
                Step::Entry { offset, header } => {
                    self.entry(offset, &header)?;
                    (entries, op_count) = (entries + 1, op_count + u64::from(header.meta.op_count));
                    last_time = header.meta.time_ms;
                }
                Step::End => {
                    if self.scan.refresh()? {
                        self.pass(self.scan.position());
                        continue;
                    }
                    break;
                }
                Step::Torn(what) | Step::Damaged(what) => {
                    if self.scan.settle()? {
                        self.pass(self.scan.position());
                        continue;
                    }
                    if !self.beyond(what, last)? {
                        break;
                    }
                }
            }
        }
        match self.scan.seal.clone() {
            Some(seal) => self.seal(&seal, entries, op_count, last_time),
            None if !last => {
                let end = self.scan.len();
                self.damaged(end, "a footer, as another segment follows", "the end of the file");
            }
            None => {}
        }
        Ok(self.scan.next_op())
    }

    /// Records a place that is no entry and looks for the next one. `false`: there is none.
    fn beyond(&mut self, what: Damage, last: bool) -> io::Result<bool> {
        let from = self.scan.position();
        if last && self.scan.seal.is_none() && self.scan.only_zeros_follow()? {
            return Ok(false);
        }
        if self.scan.skip_damage()? {
            let (to, op) = (self.scan.position(), self.scan.next_op().unwrap_or_default());
            let got = format!("{}; the next good entry is at byte {to} (op {op})", what.got);
            self.report.damage.push(Damage { got, ..what });
            self.pass(to);
            return Ok(true);
        }
        let torn = last && self.scan.seal.is_none() && !self.scan.has_footer_magic()?;
        let got = format!("{}; no good entry in the {} behind", what.got, text::size(self.scan.len() - from));
        let what = Damage { got, ..what };
        if torn {
            self.report.torn = Some(what);
        } else {
            self.report.damage.push(what);
        }
        self.pass(u64::MAX);
        Ok(false)
    }

    fn entry(&mut self, offset: u64, header: &EntryHeader) -> io::Result<()> {
        let (first, last) = (header.first_op(), header.meta.last_op);
        self.compare(IndexPoint { first_op: first, offset });
        let report = &mut *self.report;
        report.entries += 1;
        report.bytes += self.scan.position() - offset;
        report.compressed += u64::from(self.scan.is_packed());
        report.range = Some((report.range.map_or(first, |r| r.0), last));
        let mut ops = 0u64;
        let walked = ops::for_each(
            self.scan.path(),
            self.scan.payload_at(),
            &header.meta,
            self.scan.payload(),
            |_| {
                ops += 1;
                Ok(())
            },
        );
        report.ops += ops;
        match walked {
            Ok(()) if ops == u64::from(header.meta.op_count) => {}
            Ok(()) => self.damaged(offset, format!("{} ops", header.meta.op_count), format!("{ops} ops")),
            Err(OpsEnd::Damaged(d)) => self.report.damage.push(d),
            Err(OpsEnd::Io(e)) => return Err(e),
        }
        self.progress.at(self.report.bytes, self.total);
        Ok(())
    }

    /// Compares the index points up to an entry with it.
    fn compare(&mut self, entry: IndexPoint) {
        let points = self.scan.seal.as_ref().map(|s| s.points.as_slice()).unwrap_or_default();
        while let Some(point) = points.get(self.passed).filter(|p| p.offset <= entry.offset) {
            if *point != entry {
                self.astray.push(*point);
            }
            self.passed += 1;
        }
    }

    /// Passes the index points of entries that were not seen: lost to damage, or read before the seal was written.
    fn pass(&mut self, to: u64) {
        let points = self.scan.seal.as_ref().map(|s| s.points.as_slice()).unwrap_or_default();
        self.passed = self.passed.max(points.partition_point(|p| p.offset < to));
    }

    /// Compares footer and index with what the walk saw.
    fn seal(&mut self, seal: &Seal, entries: u64, ops: u64, last_time: u64) {
        let at = seal.footer.index_offset + u64::from(seal.footer.points) * 16;
        let last_op = self.scan.next_op().map_or(0, |n| n.saturating_sub(1));
        let f = &seal.footer;
        for (field, expected, got) in [
            ("last op", last_op, f.last_op),
            ("entries", entries, f.entries),
            ("ops", ops, f.ops),
            ("last time", last_time, f.last_time_ms),
        ] {
            if expected != got {
                self.damaged(at, format!("a footer with {field} {expected}"), got.to_string());
            }
        }
        let wrong =
            std::mem::take(&mut self.astray).into_iter().chain(seal.points.iter().skip(self.passed).copied());
        for p in wrong.collect::<Vec<_>>() {
            let got = format!("an index point (op {}, byte {})", p.first_op, p.offset);
            self.damaged(f.index_offset, "index points that name entries", got);
        }
    }
}

/// `oplogctl verify`. Returns whether the log is free of damage.
///
/// # Errors
/// Those of the file system and of `out`.
pub fn run(dir: &Path, out: &mut impl Write, progress: &mut Progress) -> Result<bool, CtlError> {
    let report = check(dir, progress)?;
    for d in &report.damage {
        writeln!(out, "DAMAGE {d}")?;
    }
    if let Some(torn) = &report.torn {
        writeln!(out, "incomplete at the end (a write under way, or cut short by a crash): {torn}")?;
    }
    let range = report.range.map_or("no ops".to_owned(), |(a, b)| format!("ops {a} to {b}"));
    writeln!(
        out,
        "{}: {range}, {} segments, {} entries{}, {} ops, {}",
        if report.damage.is_empty() {
            "ok".to_owned()
        } else {
            format!("{} damaged places", report.damage.len())
        },
        report.segments,
        report.entries,
        match report.compressed {
            0 => String::new(),
            n => format!(" ({n} compressed)"),
        },
        report.ops,
        text::size(report.bytes),
    )?;
    Ok(report.damage.is_empty())
}
