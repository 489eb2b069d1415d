//! Writer, syncer, readers, cleaner and cutter at once, on the machine's own file system; and the lock.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod store_support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use oplog_format::{decode_entry, Decoded};
use redisdr::store::{Log, LogOptions, LogReader, ReadError, RealFs, StoreError};
use store_support::drive::{entries, history, options, packed};
use store_support::Rng;

const END: u64 = 6_000_000;

/// Reads to the end, checking that op ids follow; `None` where it was cut off.
fn follow(log: &Arc<Log>, done: &AtomicBool, seed: u64) -> Option<u64> {
    let mut rng = Rng::new(seed);
    let mut out = Vec::new();
    let start = |log: &Arc<Log>| -> LogReader {
        loop {
            match log.reader(log.oldest()) {
                Ok(reader) => return reader,
                Err(ReadError::Trimmed { .. } | ReadError::Ahead { .. }) => {}
                Err(e) => panic!("{e}"),
            }
        }
    };
    let mut reader = start(log);
    let mut next = reader.position();
    let mut trimmed = 0;
    loop {
        out.clear();
        match reader.next(rng.below(100_000) as usize, &mut out) {
            Ok(Some((first, last))) => {
                assert_eq!(first, next);
                let mut rest = out.as_slice();
                while let Ok(Decoded::Entry(e)) = decode_entry(rest) {
                    assert_eq!(e.header.first_op(), next);
                    next = e.header.meta.last_op + 1;
                    rest = &rest[e.frame.len()..];
                }
                assert!(rest.is_empty());
                assert_eq!(last + 1, next);
                if rng.below(50) == 0 {
                    std::thread::sleep(Duration::from_millis(rng.below(20)));
                }
            }
            Ok(None) if done.load(Ordering::Acquire) && next > log.written() => return Some(trimmed),
            Ok(None) => drop(log.wait_written(next - 1, Duration::from_millis(50))),
            Err(ReadError::Trimmed { .. }) => {
                trimmed += 1;
                reader = start(log);
                next = reader.position();
            }
            Err(e) => panic!("at {next}: {e}"),
        }
    }
}

#[test]
fn writer_readers_syncer_and_cleaner_do_not_disturb_one_another() {
    all_at_once(options(64 * 1024));
}

#[test]
fn nor_do_they_in_a_compressed_log() {
    all_at_once(packed(64 * 1024));
}

fn all_at_once(options: LogOptions) {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(dir.path(), options, Arc::new(RealFs)).unwrap();
    log.begin_history(history(1), 1).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let durable = AtomicU64::new(0);
    std::thread::scope(|s| {
        for seed in 0..3 {
            let (log, done) = (&log, &done);
            s.spawn(move || follow(log, done, seed));
        }
        s.spawn(|| {
            while !done.load(Ordering::Acquire) {
                let before = log.written();
                let got = log.sync().unwrap();
                assert!(got >= before, "{got} < {before}");
                durable.fetch_max(got, Ordering::AcqRel);
            }
        });
        s.spawn(|| {
            while !done.load(Ordering::Acquire) {
                log.clean(log.written().saturating_sub(500_000), Duration::ZERO, u64::MAX).unwrap();
                log.clean_to_bytes(2_000_000).unwrap();
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        let mut rng = Rng::new(42);
        while log.written() < END {
            let n = 1 + rng.below(5) as usize;
            let sizes: Vec<Vec<usize>> = (0..n).map(|_| vec![rng.below(8000) as usize, 7]).collect();
            let frames: Vec<u8> =
                entries(log.written(), &sizes, &mut rng).into_iter().flat_map(|e| e.frame).collect();
            log.append(&frames).unwrap();
        }
        done.store(true, Ordering::Release);
    });
    assert!(log.oldest() > 1);
    assert!(durable.load(Ordering::Acquire) <= log.durable());
    assert_eq!(log.sync().unwrap(), log.written());
}

#[test]
fn a_reader_is_told_when_what_it_has_read_is_cut_off() {
    cut_under_readers(options(16 * 1024));
    cut_under_readers(packed(8 * 1024));
}

fn cut_under_readers(options: LogOptions) {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(dir.path(), options, Arc::new(RealFs)).unwrap();
    log.begin_history(history(1), 1).unwrap();
    let items = entries(0, &vec![vec![1000]; 60], &mut Rng::new(1));
    let frames: Vec<u8> = items.iter().flat_map(|e| e.frame.iter().copied()).collect();
    log.append(&frames).unwrap();
    let mut out = Vec::new();
    let mut near = log.reader(1).unwrap();
    near.next(1, &mut out).unwrap();
    let mut far = log.reader(items[50].first).unwrap();
    far.next(1, &mut out).unwrap();
    log.cut_after(items[40].last, "test").unwrap().unwrap();
    // The log grows past the far reader again, with other ops.
    log.begin_history(history(2), items[40].last + 1).unwrap();
    let more = entries(log.written(), &vec![vec![999]; 60], &mut Rng::new(2));
    log.append(&more.iter().flat_map(|e| e.frame.iter().copied()).collect::<Vec<u8>>()).unwrap();
    assert!(matches!(far.next(1, &mut out), Err(ReadError::Ahead { written }) if written == items[40].last));
    assert!(matches!(far.next(1, &mut out), Err(ReadError::Ahead { .. })));
    out.clear();
    let from = near.position();
    while near.next(10_000, &mut out).unwrap().is_some() {}
    let wanted: Vec<u8> = items[..41]
        .iter()
        .chain(&more)
        .filter(|e| e.first >= from)
        .flat_map(|e| e.frame.iter().copied())
        .collect();
    assert!(out == wanted);
}

#[test]
fn waiting_ends_with_the_write_or_the_time() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(dir.path(), options(16 * 1024), Arc::new(RealFs)).unwrap();
    log.begin_history(history(1), 1).unwrap();
    assert_eq!(log.wait_written(0, Duration::from_millis(10)), 0);
    let frame = entries(0, &[vec![10]], &mut Rng::new(1)).remove(0).frame;
    std::thread::scope(|s| {
        let waiting = s.spawn(|| log.wait_written(0, Duration::from_secs(60)));
        let durable = s.spawn(|| log.wait_durable(1, Duration::from_secs(60)));
        std::thread::sleep(Duration::from_millis(20));
        log.append(&frame).unwrap();
        log.sync().unwrap();
        assert_eq!(waiting.join().unwrap(), log.written());
        assert_eq!(durable.join().unwrap(), log.written());
    });
}

#[test]
fn a_directory_is_opened_once() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Log::open(dir.path(), options(16 * 1024), Arc::new(RealFs));
    let (log, _) = open().unwrap();
    for _ in 0..2 {
        match open() {
            Err(StoreError::InUse { pid, .. }) => assert_eq!(pid, Some(std::process::id() as i32)),
            Err(e) => panic!("{e}"),
            Ok(_) => panic!("opened twice"),
        }
    }
    // From another process: python3 or perl may be missing, /proc/locks is not.
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    let pid = std::process::id().to_string();
    assert!(locks.lines().any(|l| l.contains("POSIX") && l.split_whitespace().any(|w| w == pid)), "{locks}");
    assert_eq!(std::fs::read_to_string(dir.path().join("lock")).unwrap(), pid);
    drop(log);
    open().unwrap();
}

#[test]
fn a_thousand_sealed_segments_open_quickly_and_hold_no_file_open() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(dir.path(), options(1100), Arc::new(RealFs)).unwrap();
    log.begin_history(history(1), 1).unwrap();
    let mut rng = Rng::new(9);
    for _ in 0..1001 {
        let frame = entries(log.written(), &[vec![900]], &mut rng).remove(0).frame;
        log.append(&frame).unwrap();
    }
    let end = log.written();
    drop(log);
    let files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = files();
    let begun = Instant::now();
    let (log, report) = Log::open(dir.path(), options(1100), Arc::new(RealFs)).unwrap();
    let took = begun.elapsed();
    assert_eq!((report.segments, log.written()), (1001, end));
    // Other tests of this file open some, too.
    assert!(files() < before + 50, "{} files open, {before} before", files());
    println!("opened 1,001 segments in {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(store_support::drive::read_all(&log).len() as u64, end + 1001 * 40);
}
