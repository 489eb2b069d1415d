//! Scanner, entries and checksums on one core.
//!
//! `scan`: the stream is cut into entries' worth of ops; `feed`: the same with entries made of them; `encode`, `decode`:
//! whole entries; `pack`, `unpack`, `stored`: the same compressed, and a look at the checksum of what is stored alone;
//! `ops`: what an apply does to find the arguments; `crc32`, `crc64`: checksums of log and RDB.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::hint::black_box;

use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion, Throughput};
use oplog_format::{
    decode_entry, decode_stored, encode_entry, parse_op, Codec, Decoded, EntryMeta, OpScan, Packer, Stored,
    Unpacker,
};
use redisdr::capture::scanner::OpCursor;
use redisdr::capture::EntryBuilder;
use redisdr::local::push_command;
use redisdr::snapshot::crc64::{crc64, Crc64};

/// About `bytes` of SETs with values of `size` bytes.
fn sets(bytes: usize, size: usize) -> Vec<u8> {
    let (mut out, mut n, value) = (Vec::new(), 0u64, vec![b'v'; size]);
    while out.len() < bytes {
        n += 1;
        push_command(&mut out, &[b"SET", format!("key:{n:012}").as_bytes(), &value]);
    }
    out
}

fn meta(len: usize) -> EntryMeta {
    EntryMeta { last_op: len as u64, time_ms: 1, db: 0, op_count: 1, service_id: 0, flags: 0 }
}

fn scan(stream: &[u8]) -> usize {
    let (mut at, mut ops) = (0, 0);
    while at < stream.len() {
        let mut cursor = OpCursor::default();
        let len = cursor.advance(&stream[at..]).unwrap().unwrap();
        black_box(cursor.kind(&stream[at..]).unwrap());
        at += len;
        ops += 1;
    }
    ops
}

fn streams(c: &mut Criterion) {
    for (name, size) in [("set-16", 16), ("set-100", 100), ("set-1000", 1000), ("set-64k", 65536)] {
        let stream = sets(256 * 1024, size);
        let mut group = c.benchmark_group("scan");
        group.throughput(Throughput::Bytes(stream.len() as u64));
        group.bench_function(name, |b| b.iter(|| scan(black_box(&stream))));
        group.finish();
        let mut group = c.benchmark_group("feed");
        group.throughput(Throughput::Bytes(stream.len() as u64));
        let mut out = Vec::new();
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut builder = EntryBuilder::new(0, 0, 0);
                out.clear();
                builder.feed(black_box(&stream), 1, &mut out).unwrap()
            });
        });
        group.finish();
        let mut group = c.benchmark_group("ops");
        group.throughput(Throughput::Bytes(stream.len() as u64));
        let mut args = Vec::new();
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut at = 0;
                while at < stream.len() {
                    let Ok(OpScan::Complete { len }) = parse_op(&stream[at..], &mut args) else { panic!() };
                    at += len;
                }
                black_box(at)
            });
        });
        group.finish();
    }
}

fn entries(c: &mut Criterion) {
    for (name, len) in [("140", 140), ("16k", 16 * 1024), ("36k", 36 * 1024), ("1m", 1 << 20)] {
        let payload = vec![b'x'; len];
        let mut frame = Vec::new();
        encode_entry(&meta(len), &payload, &mut frame).unwrap();
        let mut group = c.benchmark_group("encode");
        group.throughput(Throughput::Bytes(len as u64));
        let mut out = Vec::with_capacity(frame.len());
        group.bench_with_input(BenchmarkId::from_parameter(name), &payload, |b, payload| {
            b.iter(|| {
                out.clear();
                encode_entry(&meta(len), black_box(payload), &mut out).unwrap();
            });
        });
        group.finish();
        let mut group = c.benchmark_group("decode");
        group.throughput(Throughput::Bytes(frame.len() as u64));
        group.bench_with_input(BenchmarkId::from_parameter(name), &frame, |b, frame| {
            b.iter(|| {
                let Ok(Decoded::Entry(entry)) = decode_entry(black_box(frame)) else { panic!() };
                entry.header.crc
            });
        });
        group.finish();
    }
}

/// SETs of the lines of a document, up to about so many bytes.
fn text(bytes: usize) -> Vec<u8> {
    let (mut out, mut n) = (Vec::new(), 0u64);
    let mut lines = include_str!("../docs/design.md").lines().filter(|l| !l.is_empty()).cycle();
    while out.len() < bytes {
        n += 1;
        let value = lines.next().unwrap();
        push_command(&mut out, &[b"SET", format!("key:{n:012}").as_bytes(), value.as_bytes()]);
    }
    out
}

fn compressed(c: &mut Criterion) {
    for (name, len) in [("500", 500), ("3k", 3 * 1024), ("36k", 36 * 1024)] {
        let payload = text(len);
        let mut frame = Vec::new();
        encode_entry(&meta(payload.len()), &payload, &mut frame).unwrap();
        let (mut packer, mut packed) = (Packer::new(Codec::Zstd).unwrap(), Vec::new());
        packer.pack(&frame, &mut packed).unwrap();
        assert!(packed.len() < frame.len());
        let mut out = Vec::new();
        for what in ["pack", "unpack", "stored"] {
            let mut group = c.benchmark_group(what);
            group.throughput(Throughput::Bytes(payload.len() as u64));
            let mut unpacker = Unpacker::default();
            group.bench_function(name, |b| {
                b.iter(|| {
                    out.clear();
                    if what == "pack" {
                        packer.pack(black_box(&frame), &mut out).unwrap();
                        return out.len();
                    }
                    let Ok(Stored::Entry(stored)) = decode_stored(black_box(&packed)) else { panic!() };
                    if what == "unpack" {
                        unpacker.unpack(&stored, &mut out).unwrap();
                    }
                    out.len()
                });
            });
            group.finish();
        }
    }
}

fn checksums(c: &mut Criterion) {
    let bytes = vec![0x5a; 1 << 20];
    let mut group = c.benchmark_group("crc");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("crc32", |b| b.iter(|| crc32fast::hash(black_box(&bytes))));
    group.bench_function("crc64", |b| {
        b.iter(|| {
            let mut crc = Crc64::new();
            crc.update(black_box(&bytes));
            crc.value()
        });
    });
    group.finish();
    // What a short value of a copy is given: the cost of a call counts.
    c.bench_function("crc64-120", |b| b.iter(|| crc64(black_box(bytes.get(..120).unwrap_or_default()))));
}

criterion_group!(benches, streams, entries, compressed, checksums);
criterion_main!(benches);
