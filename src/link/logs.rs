//! What the link asks of a log: entries from any op on, and what stands in a stretch of it.

use std::borrow::Cow;
use std::sync::Arc;

use oplog_format::packed::plain_entry;
use oplog_format::{
    decode_entry, decode_stored, encode_entry, parse_op, split_after, Decoded, EntryHeader, EntryMeta,
    EntryRef, FormatError, OpId, OpScan, OpWalk, Stored, StoredHeader, StoredRef,
};

use super::guard::Tail;
use crate::store::{Log, LogReader, ReadError};

/// Bytes read at once where a stretch is looked through.
const STEP: usize = 256 * 1024;

/// Calls `each` for each entry in `frames`, plain or compressed, which must be whole ones.
///
/// # Errors
/// [`FormatError`] where they are not, or what `each` returns.
pub(crate) fn each_stored<'a>(
    frames: &'a [u8],
    mut each: impl FnMut(StoredRef<'a>) -> Result<(), FormatError>,
) -> Result<(), FormatError> {
    let mut rest = frames;
    while !rest.is_empty() {
        match decode_stored(rest)? {
            Stored::Entry(entry) => {
                rest = rest.get(entry.frame.len()..).unwrap_or_default();
                each(entry)?;
            }
            Stored::Incomplete { needed } => {
                return Err(FormatError::Short { what: "entry", needed, got: rest.len() as u64 });
            }
        }
    }
    Ok(())
}

/// As [`each_stored`], for plain entries.
///
/// # Errors
/// As there.
pub(crate) fn each_entry<'a>(
    frames: &'a [u8],
    mut each: impl FnMut(EntryRef<'a>) -> Result<(), FormatError>,
) -> Result<(), FormatError> {
    each_stored(frames, |stored| {
        each(stored.plain().ok_or(FormatError::Compressed { reason: "has no place here" })?)
    })
}

/// Length of the frame at the start of `frames`, which came checked from the log.
fn frame_len(frames: &[u8]) -> Result<(StoredHeader, usize), FormatError> {
    let header = StoredHeader::decode(frames)?;
    let len = usize::try_from(header.frame_len()).unwrap_or(usize::MAX);
    if len > frames.len() {
        return Err(FormatError::Short {
            what: "entry",
            needed: header.frame_len(),
            got: frames.len() as u64,
        });
    }
    Ok((header, len))
}

/// Last op id in `frames`, which came checked from the log.
pub(crate) fn last_op(frames: &[u8]) -> Result<OpId, FormatError> {
    let mut rest = frames;
    let mut last = 0;
    while !rest.is_empty() {
        let (header, len) = frame_len(rest)?;
        last = header.last_op();
        rest = rest.get(len..).unwrap_or_default();
    }
    Ok(last)
}

/// Parts `frames` before `op`. An entry that holds ops of both sides becomes two: a replica frames what its master
/// had written before a promotion and after it as it reads them.
#[allow(clippy::type_complexity)]
pub(crate) fn split_at(frames: &[u8], op: OpId) -> Result<(Cow<'_, [u8]>, Cow<'_, [u8]>), FormatError> {
    let mut at = 0;
    while let Some(rest) = frames.get(at..).filter(|r| !r.is_empty()) {
        let (header, len) = frame_len(rest)?;
        if header.first_op() >= op {
            break;
        }
        if header.last_op() >= op {
            let entry = plain_entry(rest)?;
            let Some(tail) = entry_from(&entry, op) else {
                return Err(FormatError::Value { field: "history within an op", got: op });
            };
            let before = up_to(&entry, op, EntryHeader::decode(&tail)?.meta.op_count)?;
            let behind = [tail.as_slice(), rest.get(len..).unwrap_or_default()].concat();
            return Ok((
                Cow::Owned([frames.get(..at).unwrap_or_default(), &before].concat()),
                Cow::Owned(behind),
            ));
        }
        at += len;
    }
    let (before, behind) = frames.split_at(at);
    Ok((Cow::Borrowed(before), Cow::Borrowed(behind)))
}

/// The entry at the start of `frames` without its ops from `op` on, which are `less`.
fn up_to(frames: &[u8], op: OpId, less: u32) -> Result<Vec<u8>, FormatError> {
    let Decoded::Entry(entry) = decode_entry(frames)? else {
        return Err(FormatError::Short { what: "entry", needed: 1, got: 0 });
    };
    let keep = usize::try_from(op.saturating_sub(entry.header.first_op())).unwrap_or(0);
    let op_count = entry.header.meta.op_count.saturating_sub(less).max(1);
    let meta = EntryMeta { last_op: op.saturating_sub(1), op_count, ..entry.header.meta };
    let mut out = Vec::new();
    encode_entry(&meta, entry.payload.get(..keep).unwrap_or_default(), &mut out)?;
    Ok(out)
}

/// The ops from `op` on of the entry at the start of `frames`, as an entry; `None` where it has no op that begins
/// there.
#[must_use]
pub fn entry_from(frames: &[u8], op: OpId) -> Option<Vec<u8>> {
    let Ok(Decoded::Entry(entry)) = decode_entry(frames) else { return None };
    if entry.header.first_op() == op {
        return Some(entry.frame.to_vec());
    }
    split_after(&entry, op.checked_sub(1)?).ok().flatten()
}

/// Database in which the op behind `op` runs, where `op` is the last byte of one in the log.
#[must_use]
pub fn db_behind(log: &Arc<Log>, op: OpId) -> Option<u32> {
    let mut frames = Vec::new();
    read_entry(log, op, &mut frames).ok()?;
    let Ok(Decoded::Entry(entry)) = decode_entry(&frames) else { return None };
    let until = usize::try_from(op.checked_sub(entry.header.first_op())?).ok()? + 1;
    let mut walk = OpWalk::new(entry.payload, entry.header.meta.db);
    while walk.position() < until {
        walk.step().ok()??;
    }
    (walk.position() == until && !walk.in_transaction()).then(|| walk.db())
}

/// Reads the entry that holds `op`.
fn read_entry(log: &Arc<Log>, op: OpId, frames: &mut Vec<u8>) -> Result<(), ReadError> {
    let first = match log.reader(op) {
        Err(ReadError::NotABoundary { entry_first, .. }) => entry_first,
        other => other.map(|_| op)?,
    };
    log.reader(first)?.next(1, frames).map(drop)
}

/// Whether the log has the same bytes as `entry` at the same ops; it must reach that far.
#[must_use]
pub fn holds_same(log: &Arc<Log>, entry: &EntryRef<'_>) -> bool {
    holds_start(log, entry, entry.payload.len())
}

/// As [`holds_same`], for the first `len` bytes of the entry's ops.
#[must_use]
pub fn holds_start(log: &Arc<Log>, entry: &EntryRef<'_>, len: usize) -> bool {
    let (mut next, mut rest) = (entry.header.first_op(), entry.payload.get(..len).unwrap_or_default());
    let mut frames = Vec::new();
    while !rest.is_empty() {
        frames.clear();
        if read_entry(log, next, &mut frames).is_err() {
            return false;
        }
        let Ok(Decoded::Entry(own)) = decode_entry(&frames) else { return false };
        let skip = usize::try_from(next - own.header.first_op()).unwrap_or(usize::MAX);
        let mine = own.payload.get(skip..).unwrap_or_default();
        let n = mine.len().min(rest.len());
        if n == 0 || mine.get(..n) != rest.get(..n) {
            return false;
        }
        next += n as u64;
        rest = rest.get(n..).unwrap_or_default();
    }
    true
}

/// A reader, and what comes before it: entries with the last op id.
pub(crate) type Opened = (LogReader, Option<(Vec<u8>, OpId)>);

/// A reader that goes on at `from`. Where that stands within an entry (another node of the shard framed the
/// same ops otherwise), the rest of that entry comes as a frame of its own, maybe with others behind it.
pub(crate) fn open_at(log: &Arc<Log>, from: OpId) -> Result<Opened, ReadError> {
    match log.reader(from) {
        Err(ReadError::NotABoundary { entry_first, entry_last, .. }) => {
            let mut reader = log.reader(entry_first)?;
            // Others may come with it.
            let mut frames = Vec::new();
            reader.next(1, &mut frames)?;
            // Ops are whole in either framing; a position within one belongs to no log of this shard.
            let rest = rest_of(&frames, from);
            let rest = rest.ok_or(ReadError::NotABoundary { op: from, entry_first, entry_last })?;
            let last = reader.position().saturating_sub(1);
            Ok((reader, Some((rest, last))))
        }
        other => other.map(|reader| (reader, None)),
    }
}

/// `frames` with the first entry cut to its ops from `from` on.
fn rest_of(frames: &[u8], from: OpId) -> Option<Vec<u8>> {
    let Ok(Decoded::Entry(entry)) = decode_entry(frames) else { return None };
    let mut out = split_after(&entry, from.checked_sub(1)?).ok()??;
    out.extend_from_slice(frames.get(entry.frame.len()..)?);
    Some(out)
}

/// When the op at `op` was written; `None` where it is not in the log.
pub(crate) fn time_of(log: &Arc<Log>, op: OpId) -> Option<u64> {
    let (mut reader, first) = open_at(log, op).ok()?;
    let frame = match first {
        Some((frame, _)) => frame,
        None => {
            let mut frame = Vec::new();
            reader.next(1, &mut frame).ok()??;
            frame
        }
    };
    Some(EntryHeader::decode(&frame).ok()?.meta.time_ms)
}

/// What `log` holds above `common`: whether it can matter, and over which time. `None` where it cannot be
/// read.
#[must_use]
pub fn tail_above(log: &Arc<Log>, common: OpId) -> Option<Tail> {
    let (mut reader, first) = open_at(log, common.saturating_add(1)).ok()?;
    let mut seen = Effects::default();
    if let Some((frame, _)) = first {
        seen.look(&frame).ok()?;
    }
    let mut frames = Vec::new();
    loop {
        frames.clear();
        if reader.next(STEP, &mut frames).ok()?.is_none() {
            break;
        }
        seen.look(&frames).ok()?;
    }
    Some(seen.tail())
}

#[derive(Default)]
struct Effects {
    first_ms: Option<u64>,
    last_ms: u64,
}

impl Effects {
    fn look(&mut self, frames: &[u8]) -> Result<(), FormatError> {
        each_entry(frames, |entry| {
            if has_effect(entry.payload) {
                let at = entry.header.meta.time_ms;
                self.first_ms.get_or_insert(at);
                self.last_ms = at;
            }
            Ok(())
        })
    }

    fn tail(&self) -> Tail {
        let span_ms = self.first_ms.map_or(0, |first| self.last_ms.saturating_sub(first));
        Tail { effective: self.first_ms.is_some(), span_ms }
    }
}

/// Whether any op in a payload may change data: everything but what a server says to keep a link alive, what a
/// master says of itself, and messages: Sentinels publish theirs at a master for as long as they see it, also at one
/// that has been replaced.
fn has_effect(payload: &[u8]) -> bool {
    let mut args = Vec::new();
    let mut rest = payload;
    while !rest.is_empty() {
        let Ok(OpScan::Complete { len }) = parse_op(rest, &mut args) else { return true };
        let name = args.first().map(|a| a.of(rest)).unwrap_or_default();
        let idle: [&[u8]; 8] =
            [b"ping", b"select", b"replconf", b"multi", b"exec", b"publish", b"spublish", b"dr._shard"];
        if !idle.iter().any(|i| name.eq_ignore_ascii_case(i)) {
            return true;
        }
        rest = rest.get(len..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";
    const SELECT: &[u8] = b"*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n";
    const SET: &[u8] = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n";

    fn entry(last_op: OpId, ops: &[&[u8]]) -> Vec<u8> {
        let payload = ops.concat();
        let op_count = ops.len() as u32;
        let meta = EntryMeta { last_op, time_ms: 5, db: 0, op_count, service_id: 1, flags: 0 };
        let mut out = Vec::new();
        encode_entry(&meta, &payload, &mut out).unwrap();
        out
    }

    #[test]
    fn the_rest_of_an_entry_is_an_entry_with_the_right_db() {
        let frame = entry(1000, &[PING, SELECT, SET, SET]);
        let first = 1000 - (PING.len() + SELECT.len() + 2 * SET.len()) as u64 + 1;
        let from = first + (PING.len() + SELECT.len() + SET.len()) as u64;
        let rest = rest_of(&frame, from).unwrap();
        let Ok(Decoded::Entry(e)) = decode_entry(&rest) else { panic!() };
        assert_eq!(e.payload, SET);
        assert_eq!((e.header.meta.db, e.header.meta.op_count, e.header.meta.last_op), (3, 1, 1000));
        assert_eq!(e.header.first_op(), from);
        assert_eq!(rest_of(&frame, from + 1), None);
        assert_eq!(rest_of(&frame, 1001), None);
    }

    #[test]
    fn keep_alives_and_messages_have_no_effect() {
        assert!(!has_effect(&[PING, SELECT, b"*1\r\n$4\r\nping\r\n"].concat()));
        assert!(!has_effect(b"*3\r\n$7\r\nPUBLISH\r\n$1\r\nc\r\n$1\r\nm\r\n"));
        assert!(has_effect(&[PING, SET].concat()));
        assert!(has_effect(b"garbage"));
    }

    #[test]
    fn frames_are_parted_at_a_history() {
        let (a, b) = (entry(100, &[SET]), entry(100 + SET.len() as u64, &[SET]));
        let both = [a.clone(), b.clone()].concat();
        let is = |op, before: &[u8], behind: &[u8]| {
            let (x, y) = split_at(&both, op).unwrap();
            assert_eq!((&*x, &*y), (before, behind), "{op}");
        };
        is(101, &a, &b);
        is(1, &[], &both);
        is(1000, &both, &[]);
        // A history may begin between two ops of one entry.
        let mixed = entry(1000, &[SET, PING]);
        let at = 1001 - PING.len() as u64;
        let (x, y) = split_at(&mixed, at).unwrap();
        assert_eq!((x.into_owned(), y.into_owned()), (entry(at - 1, &[SET]), entry(1000, &[PING])));
        assert!(split_at(&mixed, at + 1).is_err());
        assert_eq!(last_op(&both).unwrap(), 100 + SET.len() as u64);
    }
}
