//! Goes over the entries of a file, and judges what stands where they end.

use std::ops::Range;
use std::path::Path;

use oplog_format::packed::PACKED_HEADER_LEN;
use oplog_format::{decode_stored, FormatError, OpId, Stored, StoredHeader, ENTRY_HEADER_LEN};

use super::error::StoreError;
use super::fs::FsFile;

/// Bytes read at once.
const STEP: usize = 4 << 20;
/// A disk writes at least this much at once, at a multiple of it.
const SECTOR: u64 = 512;
/// Bytes checksummed at most in the search for an entry behind a torn one.
const SEARCH_BUDGET: u64 = 1 << 30;
/// A byte on disk stands for so many of the stream at most: the best that compression does is 128 KiB in 4 bytes.
pub const MOST_PER_BYTE: u64 = 1 << 16;

/// Where the entries of a file end.
#[derive(Debug)]
pub struct Walk {
    /// Offset behind the last whole entry.
    pub end: u64,
    /// What is wrong there; `None` where the range ends, or the caller wanted no more.
    pub error: Option<FormatError>,
    /// End of the range.
    pub len: u64,
}

/// Reads the entries in a range of a file, of which the first begins with `next`, and shows header and offset of
/// each to `each` until that says no or there is none. Compressed ones are not decompressed: the checksum of what is
/// stored is looked at.
///
/// # Errors
/// The file system's.
pub fn walk(
    file: &dyn FsFile,
    path: &Path,
    range: Range<u64>,
    mut next: OpId,
    mut each: impl FnMut(&StoredHeader, u64) -> bool,
) -> Result<Walk, StoreError> {
    let (mut at, len) = (range.start, range.end);
    let done = |end, error| Ok(Walk { end, error, len });
    let mut want = STEP;
    let mut buf = Vec::new();
    while at < len {
        // Lengths are bounded by what the file has before memory is taken for them.
        buf.resize(usize::try_from(len - at).unwrap_or(usize::MAX).min(want), 0);
        let n = file.read_at(&mut buf, at).map_err(|e| StoreError::io("reading", path, e))?;
        let mut used = 0usize;
        while let Some(rest) = buf.get(used..n).filter(|r| !r.is_empty()) {
            let here = at + used as u64;
            match decode_stored(rest) {
                Ok(Stored::Entry(e)) if e.header.first_op() == next => {
                    if !each(&e.header, here) {
                        return done(here, None);
                    }
                    next = e.header.last_op() + 1;
                    used += e.frame.len();
                }
                Ok(Stored::Entry(e)) => {
                    let got = e.header.first_op();
                    return done(here, Some(FormatError::Value { field: "op id out of order", got }));
                }
                Ok(Stored::Incomplete { needed }) if here + needed > len => {
                    return done(here, Some(FormatError::Short { what: "entry", needed, got: len - here }));
                }
                Ok(Stored::Incomplete { needed }) => {
                    want = STEP;
                    if used == 0 {
                        want = usize::try_from(needed).unwrap_or(usize::MAX);
                    }
                    break;
                }
                Err(e) => return done(here, Some(e)),
            }
        }
        if used == 0 && n < buf.len() {
            return done(at, Some(FormatError::Short { what: "file", needed: len, got: at + n as u64 }));
        }
        at += used as u64;
    }
    done(at, None)
}

/// Whether what stands behind the last whole entry may be what a crash left of writes that were not synced, so
/// that it may be cut off. It is damage where a whole entry follows that continues the log, unless the bytes up to
/// there lack a sector: then the disk wrote the later ones first.
///
/// # Errors
/// The file system's.
pub fn is_torn(file: &dyn FsFile, path: &Path, seen: &Walk, next: OpId) -> Result<bool, StoreError> {
    match &seen.error {
        None => Ok(true),
        // An entry with a good checksum that does not belong here was never written here.
        Some(FormatError::Value { field: "op id out of order", .. }) => Ok(false),
        // Nor does a crash make a whole header with a codec that is not known: a newer build may have.
        Some(FormatError::Value { field: "entry flags", .. }) => Ok(false),
        Some(_) => match following_entry(file, path, seen, next)? {
            None => Ok(true),
            Some(offset) => has_hole(file, path, seen.end..offset),
        },
    }
}

/// Offset of the first whole entry behind `seen.end` whose op ids fit to a log that goes on there with `next`.
fn following_entry(
    file: &dyn FsFile,
    path: &Path,
    seen: &Walk,
    next: OpId,
) -> Result<Option<u64>, StoreError> {
    let magic = oplog_format::entry::ENTRY_MAGIC.to_le_bytes();
    let read = |buf: &mut [u8], at| file.read_at(buf, at).map_err(|e| StoreError::io("reading", path, e));
    let mut budget = SEARCH_BUDGET;
    let mut at = seen.end + 1;
    let mut buf = vec![0u8; 1 << 20];
    let mut frame = Vec::new();
    while at + ENTRY_HEADER_LEN as u64 <= seen.len {
        let n = read(&mut buf, at)?;
        let Some(places) = n.checked_sub(ENTRY_HEADER_LEN - 1).filter(|p| *p > 0) else { break };
        let found =
            buf.windows(ENTRY_HEADER_LEN).take(places).enumerate().filter(|(_, w)| w.starts_with(&magic));
        for (i, window) in found {
            let offset = at + i as u64;
            let mut head = [0u8; PACKED_HEADER_LEN];
            if window.get(oplog_format::entry::FLAGS).is_some_and(|flags| *flags == 0) {
                head.iter_mut().zip(window).for_each(|(h, b)| *h = *b);
            } else {
                read(&mut head, offset)?;
            }
            let Ok(header) = StoredHeader::decode(&head) else { continue };
            let (len, first) = (header.frame_len(), header.first_op());
            let passed = (offset - seen.end).saturating_mul(MOST_PER_BYTE);
            let fits = first > next && first - next < passed && offset + len <= seen.len;
            if !fits || len > budget {
                continue;
            }
            budget -= len;
            frame.resize(usize::try_from(len).unwrap_or(0), 0);
            let n = read(&mut frame, offset)?;
            if matches!(decode_stored(frame.get(..n).unwrap_or_default()), Ok(Stored::Entry(_))) {
                return Ok(Some(offset));
            }
        }
        at += places as u64;
    }
    Ok(None)
}

/// Whether a sector, as far as it lies in the range, is all zeros.
fn has_hole(file: &dyn FsFile, path: &Path, range: Range<u64>) -> Result<bool, StoreError> {
    let mut at = range.start;
    let mut buf = [0u8; SECTOR as usize];
    while at < range.end {
        let end = ((at / SECTOR + 1) * SECTOR).min(range.end);
        let want = usize::try_from(end - at).unwrap_or(0);
        let piece = buf.get_mut(..want).unwrap_or_default();
        let n = file.read_at(piece, at).map_err(|e| StoreError::io("reading", path, e))?;
        if piece.iter().take(n).all(|b| *b == 0) {
            return Ok(true);
        }
        at = end;
    }
    Ok(false)
}
