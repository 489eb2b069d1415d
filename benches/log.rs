//! The log on disk: appending, finding an op, reading, and opening a log of 1,000 sealed segments.
//!
//! In memory where there is a memory file system: the code is measured here and not a disk.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use criterion::{criterion_group, criterion_main, BatchSize, Criterion, Throughput};
use oplog_format::{encode_entry, EntryMeta, History, OpId};
use redisdr::store::{FsyncPolicy, Log, LogOptions, RealFs};
use tempfile::TempDir;

fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        return tempfile::tempdir_in(memory).unwrap();
    }
    tempfile::tempdir().unwrap()
}

fn open(dir: &Path, segment_size: u64) -> Arc<Log> {
    let options = LogOptions { segment_size, fsync: FsyncPolicy::No, service_id: 0, compression: None };
    Log::open(dir, options, Arc::new(RealFs)).unwrap().0
}

/// A frame that ends at `last`, of `len` bytes of payload.
fn frame(last: OpId, len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let meta = EntryMeta { last_op: last, time_ms: 1, db: 0, op_count: 100, service_id: 0, flags: 0 };
    encode_entry(&meta, &vec![b'x'; len], &mut out).unwrap();
    out
}

/// A log with this many sealed segments and one that is written to.
fn filled(dir: &Path, segments: usize) -> OpId {
    const SIZE: u64 = 64 * 1024;
    const LEN: usize = 8000;
    let log = open(dir, SIZE);
    log.begin_history(History::from_bytes(&[b'a'; 40]).unwrap(), 1).unwrap();
    let mut op = 0;
    while log.stats().segments <= segments as u64 {
        op += LEN as u64;
        log.append(&frame(op, LEN)).unwrap();
    }
    op
}

fn append(c: &mut Criterion) {
    let mut group = c.benchmark_group("append");
    for (name, len) in [("140", 140usize), ("16k", 16 * 1024), ("256k", 256 * 1024)] {
        let dir = folder();
        let log = open(dir.path(), 256 << 20);
        log.begin_history(History::from_bytes(&[b'a'; 40]).unwrap(), 1).unwrap();
        let mut op = 0;
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(name, |b| {
            b.iter_batched(
                || {
                    op += len as u64;
                    frame(op, len)
                },
                |frame| log.append(&frame).unwrap(),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn thousand(c: &mut Criterion) {
    let dir = folder();
    let end = filled(dir.path(), 1000);
    let mut group = c.benchmark_group("open");
    group.sample_size(20);
    group.bench_function("1000-sealed", |b| b.iter(|| black_box(open(dir.path(), 64 * 1024)).written()));
    group.finish();

    let log = open(dir.path(), 64 * 1024);
    let mut op = 0;
    c.bench_function("index/seek", |b| {
        b.iter(|| {
            // Entries begin every 8,000 ops, see `filled`.
            op = (op + 7919 * 8000) % (end - 8000);
            log.reader(op / 8000 * 8000 + 1).unwrap().position()
        });
    });
    let mut group = c.benchmark_group("read");
    let mut out = Vec::new();
    group.throughput(Throughput::Bytes(end));
    group.sample_size(10);
    group.bench_function("all", |b| {
        b.iter(|| {
            let mut reader = log.reader(1).unwrap();
            loop {
                out.clear();
                if reader.next(256 * 1024, &mut out).unwrap().is_none() {
                    return reader.position();
                }
            }
        });
    });
    group.finish();
}

criterion_group!(benches, append, thousand);
criterion_main!(benches);
