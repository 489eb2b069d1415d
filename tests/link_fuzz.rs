//! Proves that no bytes from outside make a node panic, allocate without measure, or lose what it holds.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod link_support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use link_support::{history, identity, node, now_ms, set_op, wait_for, Source, Target};
use oplog_format::codec;
use oplog_format::position::LineageItem;
use oplog_format::Lineage;
use proptest::prelude::*;
use redisdr::link::frame::{Expect, FrameHeader, FrameKind, FrameReader};
use redisdr::link::message::{Ack, Answer, Greeting, Heartbeat, Hello, Positions, Relation, Want, PROTOCOL};
use redisdr::link::stream::Stream;
use redisdr::link::{Consent, SnapshotMeta};

const ALL: Expect = Expect {
    during: "a test",
    kinds: &[
        FrameKind::TargetGreeting,
        FrameKind::SourceGreeting,
        FrameKind::Proof,
        FrameKind::Hello,
        FrameKind::Answer,
        FrameKind::Want,
        FrameKind::Heartbeat,
        FrameKind::Ack,
        FrameKind::Entries,
        FrameKind::History,
        FrameKind::SnapshotMeta,
        FrameKind::SnapshotChunk,
        FrameKind::SnapshotEnd,
        FrameKind::Refused,
    ],
};

fn frame(kind: FrameKind, body: &[u8]) -> Vec<u8> {
    [&FrameHeader::of(kind, &[body]).unwrap().encode()[..], body].concat()
}

fn greeting(service_id: u8) -> Vec<u8> {
    let greeting = Greeting {
        protocol: PROTOCOL,
        keyed: false,
        nonce: [7; 32],
        node: node(service_id),
        identity: identity(service_id),
    };
    codec::encode(&greeting).unwrap()
}

fn lineage() -> Lineage {
    Lineage::from_items(vec![LineageItem { history: history('a'), first_op: 1 }]).unwrap()
}

fn hello() -> Vec<u8> {
    let hello =
        Hello { lineage: lineage(), last_op: 0, durable: 0, fresh: true, consent: Consent::None, codecs: 0 };
    codec::encode(&hello).unwrap()
}

/// A body that fits its kind, or nearly.
fn body(kind: FrameKind) -> BoxedStrategy<Vec<u8>> {
    let valid = match kind {
        FrameKind::TargetGreeting | FrameKind::SourceGreeting => greeting(1),
        FrameKind::Hello => hello(),
        FrameKind::Answer => codec::encode(&Answer {
            lineage: lineage(),
            oldest: 1,
            written: 1000,
            relation: Relation::Continue { from: 1 },
        })
        .unwrap(),
        FrameKind::Want => codec::encode(&Want::Stream { from: 1 }).unwrap(),
        FrameKind::Ack => {
            codec::encode(&Ack { positions: Some(Positions { received: 5, durable: 5, applied: 5 }) })
                .unwrap()
        }
        FrameKind::Heartbeat => {
            codec::encode(&Heartbeat { written: 5, clock_ms: 5, lag_ms: 5, note: "x".to_owned() }).unwrap()
        }
        FrameKind::Entries => link_support::entry_of(1, now_ms(), &[set_op(1, 10)]),
        FrameKind::SnapshotMeta => codec::encode(&SnapshotMeta {
            op_id: 10,
            len: Some(20),
            lineage: lineage(),
            rdb_version: 10,
            source: identity(0),
        })
        .unwrap(),
        FrameKind::SnapshotChunk => [0u64.to_le_bytes().to_vec(), vec![1; 20]].concat(),
        _ => vec![0; 12],
    };
    let bent = (Just(valid.clone()), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(mut v, at, b)| {
        let i = at.index(v.len());
        v[i] = b;
        v
    });
    let random = prop::collection::vec(any::<u8>(), 0..200);
    prop_oneof![4 => Just(valid), 4 => bent, 1 => random].boxed()
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(ALL.kinds).prop_flat_map(|kind| body(kind).prop_map(move |b| frame(kind, &b)))
}

/// Frames that are mostly whole, and now and then other bytes.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let garbage = prop::collection::vec(any::<u8>(), 0..100);
    prop::collection::vec(prop_oneof![8 => any_frame(), 1 => garbage], 0..12).prop_map(|v| v.concat())
}

/// Says `bytes`, then listens until the other side ends it or nothing comes.
fn say(addr: std::net::SocketAddr, bytes: &[u8]) {
    let mut socket = TcpStream::connect(addr).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let _ = socket.write_all(bytes);
    let mut buf = [0; 4096];
    while matches!(socket.read(&mut buf), Ok(n) if n > 0) {}
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn a_header_of_any_bytes_is_one_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = FrameHeader::decode(&bytes);
    }

    #[test]
    fn messages_of_any_bytes_are_ones_or_errors(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = codec::decode::<Greeting>(&bytes);
        let _ = codec::decode::<Hello>(&bytes);
        let _ = codec::decode::<Answer>(&bytes);
        let _ = codec::decode::<Want>(&bytes);
        let _ = codec::decode::<SnapshotMeta>(&bytes);
    }

    /// Whatever is written in whichever pieces: the frames that come out are those that went in, up to the
    /// first that is none.
    #[test]
    fn a_reader_returns_the_frames_that_were_written(
        frames in prop::collection::vec(any_frame(), 0..8),
        garbage in prop::collection::vec(any::<u8>(), 0..40),
        step in 1usize..200,
    ) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut writer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        let bytes = [frames.concat(), garbage].concat();
        let writing = std::thread::spawn(move || bytes.chunks(step).for_each(|c| drop(writer.write_all(c))));
        let stream = Stream::tcp(socket).unwrap();
        stream.set_read_timeout(Duration::from_secs(10)).unwrap();
        let mut reader = FrameReader::new(stream, ALL);
        for expected in &frames {
            let kind = reader.poll().unwrap().unwrap();
            prop_assert_eq!(&frame(kind, reader.body()), expected);
        }
        prop_assert!(reader.poll().is_err());
        writing.join().unwrap();
    }
}

/// Strangers and half-correct targets say what they like; the source goes on serving its real one.
#[test]
fn an_endpoint_survives_whatever_it_is_told() {
    let source = Source::new();
    source.filling.store(1000, Ordering::SeqCst);
    source.write(3);
    let endpoint = source.start();
    let real = Target::new(9);
    let _link = real.link_to(&endpoint);
    real.wait_equal(&source);
    let config = ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(bytes in any_bytes(), introduced in any::<bool>())| {
        let first = if introduced {
            [frame(FrameKind::TargetGreeting, &greeting(1)), frame(FrameKind::Hello, &hello())].concat()
        } else {
            Vec::new()
        };
        say(endpoint.local_addr(), &[first, bytes].concat());
    });
    assert_eq!(*source.panics.lock(), Vec::<String>::new());
    source.write(10);
    real.wait_equal(&source);
    assert_eq!(real.full_syncs(), 1);
}

/// A source that says what it likes: the target never panics and takes nothing that is not sound.
#[test]
fn a_target_survives_whatever_it_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = Target::new(1);
    let mut config = Target::config(&[listener.local_addr().unwrap().to_string()]);
    config.backoff_max = Duration::from_millis(5);
    let link = target.link(config);
    let held = Arc::new(parking_lot::Mutex::new((listener, 0u64)));
    let cases = ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(cases, |(bytes in any_bytes(), introduced in any::<bool>())| {
        let mut held = held.lock();
        let (mut socket, _) = held.0.accept().unwrap();
        held.1 += 1;
        if introduced {
            let answer = Answer { lineage: lineage(), oldest: 1, written: 1000, relation: Relation::Unrelated };
            let _ = socket.write_all(&frame(FrameKind::SourceGreeting, &greeting(0)));
            let _ = socket.write_all(&frame(FrameKind::Answer, &codec::encode(&answer).unwrap()));
        }
        let _ = socket.write_all(&bytes);
        let _ = socket.shutdown(std::net::Shutdown::Write);
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let until = Instant::now() + Duration::from_secs(1);
        let mut buf = [0; 4096];
        while Instant::now() < until && matches!(socket.read(&mut buf), Ok(n) if n > 0) {}
    });
    assert_eq!(*target.panics.lock(), Vec::<String>::new());
    wait_for("still alive", || link.status().attempts > 0);
    link.stop();
    // Nothing but what can be equal to something sound was taken: the data is empty still.
    assert_eq!(target.full_syncs(), 0);
}
