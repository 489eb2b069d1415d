//! `stat`: what a log holds, from its headers and footers.

use std::io::{self, Write};
use std::path::Path;

use oplog_format::SEGMENT_HEADER_LEN;

use super::dir::LogDir;
use super::scan::{Scan, Step};
use super::{text, time, CtlError};

/// `oplogctl stat`.
///
/// # Errors
/// Those of the file system and of `out`.
pub fn run(dir: &Path, out: &mut impl Write) -> Result<(), CtlError> {
    let log = LogDir::open(dir)?;
    let segments = log.segments()?;
    let bytes = segments.iter().map(|s| s.len).sum();
    let mut lines = Vec::new();
    let (mut first, mut last) = (None, None);
    let (mut stream, mut stored) = (0u64, 0u64);
    for (i, segment) in segments.iter().enumerate() {
        let mut scan = match Scan::open(&segment.path) {
            Ok(scan) => scan,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(CtlError::io(&segment.path, e)),
        };
        let seen =
            contents(&mut scan, i + 1 == segments.len()).map_err(|e| CtlError::io(&segment.path, e))?;
        first = first.or(scan.header.map(|h| h.first_op));
        last = seen.last_op.or(last);
        // Op ids count the bytes of the stream, so no entry has to be decompressed for this.
        let plain =
            scan.header.zip(seen.last_op).map_or(0, |(h, last)| (last + 1).saturating_sub(h.first_op));
        stream += plain;
        stored += seen.stored;
        let name = segment.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let history = scan.header.map_or("(header damaged)".to_owned(), |h| h.history.to_string());
        let last_op = seen.last_op.map_or("-".to_owned(), |l| l.to_string());
        let when = seen.last_time.map_or("-".to_owned(), time::format);
        lines.push(format!(
            "{name} {} of {} last op {last_op} entries {} ops {} until {when} {} {history}",
            text::size(segment.len),
            text::size(plain),
            seen.entries,
            seen.ops,
            seen.state,
        ));
    }
    let shown = |op: Option<u64>| op.map_or("-".to_owned(), |o| o.to_string());
    writeln!(out, "directory {}", dir.display())?;
    writeln!(out, "oldest op {}", shown(first))?;
    writeln!(out, "last op   {}", shown(last))?;
    writeln!(out, "segments  {} ({})", segments.len(), text::size(bytes))?;
    let percent =
        (stored * 100).checked_div(stream).map_or(String::new(), |p| format!(", {p} % of the stream"));
    writeln!(out, "stream    {} in entries of {}{percent}", text::size(stream), text::size(stored))?;
    for line in lines {
        writeln!(out, "  {line}")?;
    }
    besides(&log, out)
}

/// Manifest, orphans and torn tails.
fn besides(log: &LogDir, out: &mut impl Write) -> Result<(), CtlError> {
    match log.manifest()? {
        Ok(None) => writeln!(out, "manifest  none")?,
        Err(damage) => writeln!(out, "manifest  DAMAGE {damage}")?,
        Ok(Some(m)) => {
            writeln!(out, "gaps      {}", m.gaps)?;
            if let Some(op) = m.cut {
                writeln!(out, "unfinished cut above op {op}")?;
            }
            writeln!(out, "lineage   {} histories", m.lineage.items().len())?;
            for item in m.lineage.items() {
                writeln!(out, "  {} from op {}", item.history, item.first_op)?;
            }
        }
    }
    writeln!(out, "orphans   {}", log.orphans()?.len())?;
    let torn = log.torn()?;
    writeln!(out, "torn tails kept {}", torn.len())?;
    for (path, len) in torn {
        writeln!(out, "  {} {}", path.display(), text::size(len))?;
    }
    Ok(())
}

/// What one segment holds.
#[derive(Debug, Default)]
struct Contents {
    last_op: Option<u64>,
    last_time: Option<u64>,
    entries: u64,
    ops: u64,
    /// Bytes of entries in the file.
    stored: u64,
    state: &'static str,
}

/// A sealed segment says it in its footer, another must be read.
fn contents(scan: &mut Scan, last: bool) -> io::Result<Contents> {
    if let Some(seal) = &scan.seal {
        let f = &seal.footer;
        return Ok(Contents {
            last_op: Some(f.last_op),
            last_time: Some(f.last_time_ms),
            entries: f.entries,
            ops: f.ops,
            stored: f.index_offset.saturating_sub(SEGMENT_HEADER_LEN as u64),
            state: if scan.problems.is_empty() { "sealed" } else { "damaged" },
        });
    }
    let mut seen = Contents { state: "open", ..Contents::default() };
    loop {
        match scan.step()? {
            Step::Entry { header, .. } => {
                seen.last_op = Some(header.meta.last_op);
                seen.last_time = Some(header.meta.time_ms);
                seen.entries += 1;
                seen.ops += u64::from(header.meta.op_count);
                seen.stored = scan.position().saturating_sub(SEGMENT_HEADER_LEN as u64);
            }
            Step::End => break,
            Step::Damaged(_) if last && scan.only_zeros_follow()? => break,
            Step::Torn(_) if last => {
                seen.state = "open, incomplete at the end";
                break;
            }
            Step::Torn(_) | Step::Damaged(_) => {
                seen.state = "damaged";
                break;
            }
        }
    }
    if !scan.problems.is_empty() || !last {
        seen.state = "damaged";
    }
    Ok(seen)
}
