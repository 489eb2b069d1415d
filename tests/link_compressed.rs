//! Proves that compressed entries cross a link only where the target has said that it reads them, that they are the
//! same ops either way, and that what cannot be decompressed is not appended.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod link_support;

use std::sync::atomic::Ordering;
use std::sync::Arc;

use link_support::proxy::{Fault, Kind, Proxy, Way};
use link_support::{history, now_ms, set_op, wait_for, Source, Target};
use oplog_format::{decode_stored, Codec, Stored};
use redisdr::link::{ClientHandle, EndpointHandle};
use redisdr::store::Log;

const ZSTD: Option<Codec> = Some(Codec::Zstd);

/// Entries in a log, and how many of them are compressed.
fn entries(log: &Arc<Log>) -> (usize, usize) {
    let mut reader = log.reader(log.oldest()).unwrap();
    let (mut all, mut packed, mut buf) = (0, 0, Vec::new());
    while reader.next_stored(10_000, &mut buf).unwrap().is_some() {
        let mut rest = &buf[..];
        while let Ok(Stored::Entry(e)) = decode_stored(rest) {
            all += 1;
            packed += usize::from(e.header.codec.is_some());
            rest = &rest[e.frame.len()..];
        }
        assert!(rest.is_empty());
        buf.clear();
    }
    (all, packed)
}

fn plain_bytes(log: &Arc<Log>) -> Vec<u8> {
    let mut out = Vec::new();
    let mut reader = log.reader(1).unwrap();
    while reader.next(10_000, &mut out).unwrap().is_some() {}
    out
}

/// A target that is at the start of the source's history.
fn target(service_id: u8) -> Arc<Target> {
    let target = Target::new(service_id);
    target.fresh.store(false, Ordering::SeqCst);
    target.log.begin_history(history('a'), 1).unwrap();
    target
}

fn link(target: &Arc<Target>, endpoint: &EndpointHandle, codecs: u32) -> ClientHandle {
    let mut config = Target::config(&[endpoint.local_addr().to_string()]);
    config.codecs = codecs;
    target.link(config)
}

fn write(source: &Source, count: u64) {
    for n in 0..count {
        // Small ones stay plain, so that the log has both.
        let len = if n % 4 == 0 { 20 } else { 600 };
        source.write_entry(now_ms(), &[set_op(n, len), set_op(n + 1, len)]);
    }
}

#[test]
fn a_target_gets_what_it_can_read() {
    let source = Source::with_compression(ZSTD);
    let endpoint = source.start();
    write(&source, 200);
    let targets = [target(1), target(2), target(3)];
    // The third knows a codec that this source does not, and not the one that it uses.
    let _links: Vec<_> = [Codec::READABLE, 0, !Codec::READABLE]
        .into_iter()
        .zip(&targets)
        .map(|(codecs, t)| link(t, &endpoint, codecs))
        .collect();
    for t in &targets {
        t.wait_equal(&source);
    }
    write(&source, 200);
    for t in &targets {
        t.wait_equal(&source);
        assert_eq!(t.full_syncs(), 0);
        assert!(plain_bytes(&t.log) == plain_bytes(&source.log), "other frames");
    }
    assert_eq!(entries(&source.log), (400, 300));
    assert_eq!(entries(&targets[0].log), (400, 300));
    assert_eq!(entries(&targets[1].log), (400, 0));
    assert_eq!(entries(&targets[2].log), (400, 0));
}

#[test]
fn a_plain_log_stays_plain_on_the_link() {
    let source = Source::new();
    let endpoint = source.start();
    let target = target(1);
    let _link = link(&target, &endpoint, Codec::READABLE);
    write(&source, 100);
    target.wait_equal(&source);
    assert_eq!(entries(&target.log), (100, 0));
}

#[test]
fn a_position_and_a_history_within_a_compressed_entry() {
    let source = Source::with_compression(ZSTD);
    let endpoint = source.start();
    let target = target(1);
    let ops: Vec<_> = (0..5).map(|i| set_op(i, 400)).collect();
    target.own_write(now_ms(), &ops[..2]);
    source.write_entry(now_ms(), &ops);
    write(&source, 9);
    assert!(entries(&source.log).1 > 1);
    let first = link(&target, &endpoint, Codec::READABLE);
    target.wait_equal(&source);
    first.stop();
    // A replica learns of a history later: the entry that it begins in is there already.
    let begins = source.log.written() + 1 + (ops[0].len() + ops[1].len()) as u64;
    source.write_entry(now_ms(), &ops);
    let mut lineage = source.log.lineage();
    lineage.open(history('b'), begins);
    source.log.adopt_lineage(lineage).unwrap();
    let _link = link(&target, &endpoint, Codec::READABLE);
    target.wait_equal(&source);
    assert_eq!(target.full_syncs(), 0);
    assert_eq!(target.log.lineage().history_of(begins), Some(history('b')));
}

/// Flips and cuts over everything that comes from the source: the target comes to equal it all the same.
#[test]
fn no_fault_on_the_way_gets_through() {
    let source = Source::with_compression(ZSTD);
    let endpoint = source.start();
    let proxy = Proxy::to(endpoint.local_addr());
    write(&source, 200);
    let follow = || {
        let target = target(1);
        let client = target.link(Target::config(&[proxy.addr.to_string()]));
        target.wait_equal(&source);
        assert_eq!(entries(&target.log), (200, 150));
        client.stop();
    };
    follow();
    let len = proxy.passed(Way::ToTarget);
    let before = proxy.connections();
    for i in 0..24 {
        let kind = if i % 4 == 3 { Kind::Cut } else { Kind::Flip };
        proxy.break_next(Fault { way: Way::ToTarget, at: 400 + i * (len - 500) / 24, kind });
        follow();
    }
    assert!(proxy.connections() >= before + 2 * 24, "not each was noticed: {}", proxy.connections() - before);
}

#[test]
fn an_entry_that_does_not_decompress_to_itself_is_not_appended() {
    let source = Source::with_compression(ZSTD);
    let endpoint = source.start();
    let target = target(1);
    write(&source, 8);
    let good = source.log.written();
    // As memory that went bad before the entry was compressed would leave it: all stored bytes fit.
    let mut frame = link_support::entry_of(good + 1, now_ms(), &[set_op(1, 900)]);
    frame[40 + 500] ^= 1;
    source.log.append(&frame).unwrap();
    assert_eq!(entries(&source.log), (9, 7));
    let client = link(&target, &endpoint, Codec::READABLE);
    wait_for("the damage is told", || client.status().last_error.contains("checksum"));
    // What came in the same frame is not there either.
    assert!(target.log.written() <= good);
}
