//! The log store: segments in a directory, appended to by one writer and read by many.
//!
//! `docs/store.md` tells the files, the order of durability and what a crash leaves.

mod change;
mod cut;
pub mod durable;
mod error;
pub mod fs;
mod lock;
mod log;
mod open;
pub mod orphans;
mod press;
mod reader;
pub mod segment;
mod walk;

pub use error::{ReadError, StoreError};
pub use fs::{Fs, FsFile, RealFs};
pub use lock::DirLock;
pub use log::now_ms;
pub use log::{
    CleanReport, FsyncPolicy, Log, LogOptions, LogStats, Manifest, OpenReport, TornTail, MANIFEST,
};
pub use open::TORN;
pub use orphans::OrphanInfo;
pub use reader::LogReader;
pub use walk::MOST_PER_BYTE;

#[cfg(test)]
mod tests {
    use super::*;
    use oplog_format::{encode_entry, EntryHeader, EntryMeta, History};
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    fn opts() -> LogOptions {
        LogOptions { segment_size: 64 * 1024, fsync: FsyncPolicy::EverySec, service_id: 1, compression: None }
    }

    fn history(c: u8) -> History {
        History::from_bytes(&[c; 40]).unwrap()
    }

    fn frames(log: &Log, n: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut last = log.written();
        for i in 0..n {
            let key = format!("{:06}", i);
            let payload = format!("*3\r\n$3\r\nSET\r\n$6\r\n{key}\r\n$1000\r\n{}\r\n", "x".repeat(1000));
            let payload = [payload.as_bytes(), payload.as_bytes()].concat();
            last += payload.len() as u64;
            let meta = EntryMeta { last_op: last, time_ms: 5, db: 0, op_count: 2, service_id: 1, flags: 0 };
            encode_entry(&meta, &payload, &mut out).unwrap();
        }
        out
    }

    fn open(dir: &Path) -> (Arc<Log>, OpenReport) {
        Log::open(dir, opts(), Arc::new(RealFs)).unwrap()
    }

    fn read_all(log: &Arc<Log>, from: u64) -> Vec<u8> {
        let mut reader = log.reader(from).unwrap();
        let mut out = Vec::new();
        while reader.next(10_000, &mut out).unwrap().is_some() {}
        out
    }

    #[test]
    fn what_was_appended_is_read_also_after_opening_again() {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = open(dir.path());
        assert_eq!((log.oldest(), log.written()), (1, 0));
        log.begin_history(history(b'a'), 1).unwrap();
        let bytes = frames(&log, 200);
        log.append(&bytes).unwrap();
        assert!(log.stats().segments > 5);
        assert_eq!(read_all(&log, 1), bytes);
        let written = log.written();
        drop(log);
        let (log, report) = open(dir.path());
        assert!(report.torn.is_none());
        assert_eq!((log.written(), log.oldest()), (written, 1));
        assert_eq!(read_all(&log, 1), bytes);
        let more = frames(&log, 3);
        log.append(&more).unwrap();
        assert_eq!(read_all(&log, written + 1), more);
        assert_eq!(log.lineage().items().len(), 1);
    }

    #[test]
    fn a_torn_tail_is_kept_aside_and_cut() {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = open(dir.path());
        log.begin_history(history(b'a'), 1).unwrap();
        let bytes = frames(&log, 5);
        log.append(&bytes).unwrap();
        let path = log.segments.load().last().unwrap().path.clone();
        drop(log);
        let len = std::fs::metadata(&path).unwrap().len();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(len - 100).unwrap();
        let (log, report) = open(dir.path());
        let torn = report.torn.unwrap();
        let frame = bytes.len() / 5;
        assert_eq!(torn.bytes, frame as u64 - 100);
        assert_eq!(std::fs::metadata(torn.kept_in).unwrap().len(), torn.bytes);
        assert_eq!(read_all(&log, 1), bytes[..frame * 4]);
    }

    #[test]
    fn damage_in_a_sealed_segment_is_refused_by_the_reader() {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = open(dir.path());
        log.begin_history(history(b'a'), 1).unwrap();
        log.append(&frames(&log, 100)).unwrap();
        let path = log.segments.load().first().unwrap().path.clone();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"?", 5000).unwrap();
        let mut reader = log.reader(1).unwrap();
        let mut out = Vec::new();
        let error = loop {
            match reader.next(1000, &mut out) {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the damage was not seen"),
                Err(e) => break e,
            }
        };
        assert!(matches!(error, ReadError::Store(StoreError::Damaged { .. })), "{error}");
    }

    #[test]
    fn the_directory_is_locked_and_bad_entries_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = open(dir.path());
        assert!(matches!(log.append(&frames(&log, 1)), Err(StoreError::NoHistory)));
        log.begin_history(history(b'a'), 1).unwrap();
        let bytes = frames(&log, 2);
        log.append(&bytes).unwrap();
        assert!(matches!(log.append(&bytes), Err(StoreError::NotNext { .. })));
        assert_eq!(read_all(&log, 1), bytes);
        assert!(log.poisoned().is_none());
    }

    #[test]
    fn a_gap_drops_what_is_below_and_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = open(dir.path());
        log.begin_history(history(b'a'), 1).unwrap();
        log.append(&frames(&log, 2)).unwrap();
        let at = log.written() + 1000;
        log.begin_history(history(b'a'), at).unwrap();
        assert_eq!((log.oldest(), log.written(), log.stats().gaps), (at, at - 1, 1));
        log.append(&frames(&log, 1)).unwrap();
        let end = log.written();
        drop(log);
        let (log, _) = open(dir.path());
        assert_eq!((log.oldest(), log.written(), log.stats().gaps), (at, end, 1));
        assert!(matches!(log.reader(1), Err(ReadError::Trimmed { .. })));
    }

    #[test]
    fn a_cut_keeps_the_tail_as_orphans_and_the_log_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = open(dir.path());
        log.begin_history(history(b'a'), 1).unwrap();
        let bytes = frames(&log, 100);
        log.append(&bytes).unwrap();
        let header = EntryHeader::decode(&bytes).unwrap();
        let payload = u64::from(header.payload_len);
        // Within the 41st entry, behind its first op.
        let op = payload * 40 + payload / 2;
        let end = log.written();
        let info = log.cut_after(op, "test").unwrap().unwrap();
        assert_eq!((info.first_op, info.last_op, info.ops), (op + 1, end, 119));
        assert_eq!(log.written(), op);
        assert_eq!(log.orphans().unwrap(), [info]);
        log.begin_history(history(b'b'), op + 1).unwrap();
        log.append(&frames(&log, 4)).unwrap();
        let all = read_all(&log, 1);
        drop(log);
        let (log, _) = open(dir.path());
        assert_eq!(read_all(&log, 1), all);
        assert_eq!(log.lineage().items().len(), 2);
        assert_eq!(log.lineage().history_of(op), Some(history(b'a')));
    }

    #[test]
    fn cleaning_removes_whole_segments_and_reset_all() {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = open(dir.path());
        log.begin_history(history(b'a'), 1).unwrap();
        log.append(&frames(&log, 100)).unwrap();
        let mut old = log.reader(1).unwrap();
        let mut out = Vec::new();
        old.next(1, &mut out).unwrap();
        let keep = log.written() / 2;
        let report = log.clean(keep, Duration::ZERO, u64::MAX).unwrap();
        assert!(report.segments > 0 && log.oldest() <= keep && log.oldest() > 1);
        assert!(matches!(log.reader(1), Err(ReadError::Trimmed { .. })));
        old.next(1, &mut out).unwrap();
        log.reset(log.lineage(), 5_000_000).unwrap();
        assert_eq!((log.oldest(), log.written()), (5_000_000, 4_999_999));
        log.append(&frames(&log, 2)).unwrap();
        let end = log.written();
        assert!(matches!(old.next(1, &mut out), Err(ReadError::Trimmed { .. })));
        drop((log, old));
        let (log, _) = open(dir.path());
        assert_eq!((log.oldest(), log.written()), (5_000_000, end));
    }
}
