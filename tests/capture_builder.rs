//! Proves that the entry builder loses, adds and splits nothing, however the stream is cut into reads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use oplog_format::{decode_entry, Decoded, EntryRef, FormatError, OpWalk};
use proptest::prelude::*;
use redisdr::capture::builder::{EntryBuilder, MAX_ENTRY_BYTES, MAX_ENTRY_OPS};

fn op(args: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", args.len()).into_bytes();
    for a in args {
        out.extend_from_slice(format!("${}\r\n", a.len()).as_bytes());
        out.extend_from_slice(a);
        out.extend_from_slice(b"\r\n");
    }
    out
}

fn plain() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..5).prop_map(|a| {
            let mut args: Vec<&[u8]> = vec![b"RPUSH"];
            args.extend(a.iter().map(Vec::as_slice));
            op(&args)
        }),
        2 => (0u32..16).prop_map(|db| op(&[b"select", db.to_string().as_bytes()])),
        1 => Just(op(&[b"PING"])),
        1 => Just(op(&[b"REPLCONF", b"GETACK", b"*"])),
        1 => (0usize..40_000).prop_map(|n| op(&[b"SET", b"*1\r\n$4\r\nEXEC\r\n", &vec![b'\n'; n]])),
    ]
}

/// One unit: an op, or a transaction.
fn unit() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        5 => plain(),
        1 => Just(op(&[b"EXEC"])),
        2 => proptest::collection::vec(plain(), 0..20)
            .prop_map(|ops| [op(&[b"MULTI"]), ops.concat(), op(&[b"EXEC"])].concat()),
    ]
}

fn decode(mut frames: &[u8]) -> Vec<EntryRef<'_>> {
    let mut all = Vec::new();
    while !frames.is_empty() {
        let Decoded::Entry(e) = decode_entry(frames).unwrap() else { panic!("a frame is cut off") };
        frames = &frames[e.frame.len()..];
        all.push(e);
    }
    all
}

/// Entries against the units that were fed: contiguous, verbatim, cut between units only, sizes as stated.
fn check(frames: &[u8], units: &[Vec<u8>], base: u64, first_db: u32) {
    let entries = decode(frames);
    let mut ends = std::collections::BTreeMap::new();
    let (mut at, mut db) = (base, first_db);
    ends.insert(at, db);
    for u in units {
        let mut walk = OpWalk::new(u, db);
        while walk.step().unwrap().is_some() {}
        db = walk.db();
        at += u.len() as u64;
        ends.insert(at, db);
    }
    let mut last = base;
    for e in &entries {
        assert_eq!(e.header.first_op(), last + 1);
        assert_eq!(ends.get(&last), Some(&e.header.meta.db), "db at {last}");
        last = e.header.meta.last_op;
        assert!(ends.contains_key(&last), "an entry ends within a unit");
        let mut walk = OpWalk::new(e.payload, e.header.meta.db);
        while walk.step().unwrap().is_some() {}
        assert_eq!(walk.count(), e.header.meta.op_count);
        let inner = ends.range(e.header.first_op()..last).count();
        assert!(
            inner == 0 || (e.payload.len() <= MAX_ENTRY_BYTES && e.header.meta.op_count <= MAX_ENTRY_OPS)
        );
    }
    assert_eq!(last, at);
    let payloads: Vec<u8> = entries.iter().flat_map(|e| e.payload).copied().collect();
    assert_eq!(payloads, units.concat());
}

fn feed(stream: &[u8], cuts: &[usize], base: u64, db: u32) -> (Vec<u8>, EntryBuilder, u32) {
    let mut b = EntryBuilder::new(base, db, 3);
    let (mut out, mut at, mut getacks) = (Vec::new(), 0, 0);
    for cut in cuts.iter().copied().chain([stream.len()]) {
        getacks += u32::from(b.feed(&stream[at..cut], 42, &mut out).unwrap().getack);
        at = cut;
        assert_eq!(b.fed(), base + cut as u64);
    }
    (out, b, getacks)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_cuts_give_the_same_ops(
        units in proptest::collection::vec(unit(), 0..40),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..60),
        base in 0u64..1 << 50,
        db in 0u32..16,
    ) {
        let stream = units.concat();
        let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(stream.len() + 1)).collect();
        cuts.sort_unstable();
        for cuts in [&cuts[..], &[]] {
            let (out, b, getacks) = feed(&stream, cuts, base, db);
            check(&out, &units, base, db);
            prop_assert_eq!(b.carried(), 0);
            prop_assert_eq!(b.last_op(), base + stream.len() as u64);
            let asks = stream.windows(6).any(|w| w == b"GETACK");
            prop_assert_eq!(getacks > 0, asks);
        }
    }

    #[test]
    fn byte_by_byte_gives_the_same_ops(units in proptest::collection::vec(unit(), 0..6)) {
        let stream = units.concat();
        let cuts: Vec<usize> = (0..stream.len()).collect();
        check(&feed(&stream, &cuts, 7, 2).0, &units, 7, 2);
    }

    #[test]
    fn a_unit_without_its_end_is_held_back(
        units in proptest::collection::vec(unit(), 1..10), cut in any::<prop::sample::Index>(),
    ) {
        let stream = units.concat();
        let cut = cut.index(stream.len());
        let (mut whole, mut end) = (0, 0);
        while end + units[whole].len() <= cut {
            end += units[whole].len();
            whole += 1;
        }
        let (out, b, _) = feed(&stream[..cut], &[cut / 2], 0, 0);
        check(&out, &units[..whole], 0, 0);
        prop_assert_eq!(b.carried(), cut - end);
    }

    #[test]
    fn garbage_is_an_error_and_never_a_panic(
        units in proptest::collection::vec(unit(), 0..10),
        garbage in proptest::collection::vec(any::<u8>(), 1..200),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..10),
    ) {
        prop_assume!(garbage[0] != b'*');
        let good = units.concat();
        let stream = [&good[..], &garbage].concat();
        let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(stream.len() + 1)).collect();
        cuts.sort_unstable();
        let mut b = EntryBuilder::new(0, 0, 0);
        let (mut out, mut at, mut failed) = (Vec::new(), 0, None);
        for cut in cuts.into_iter().chain([stream.len()]) {
            match b.feed(&stream[at..cut], 1, &mut out) {
                Ok(_) => prop_assert!(failed.is_none()),
                Err(e) => { failed.get_or_insert(e); }
            }
            at = cut;
        }
        check(&out, &units, 0, 0);
        let Some(FormatError::Op { offset, .. }) = failed else { panic!("{failed:?}") };
        prop_assert_eq!(offset, 0);
    }

    #[test]
    fn flipped_bytes_never_panic(
        units in proptest::collection::vec(unit(), 1..10),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut stream = units.concat();
        for (i, b) in flips {
            let i = i.index(stream.len());
            stream[i] = b;
        }
        let cut = cut.index(stream.len());
        let mut b = EntryBuilder::new(0, 0, 0);
        let mut out = Vec::new();
        let _ = b.feed(&stream[..cut], 1, &mut out).and_then(|_| b.feed(&stream[cut..], 1, &mut out));
        decode(&out);
    }
}

#[test]
fn a_large_op_is_an_entry_by_itself_and_its_memory_is_given_back() {
    let (small, large) = (op(&[b"DEL", b"k"]), op(&[b"SET", b"k", &vec![0; 64 << 20]]));
    let units = [small.clone(), large, small];
    let stream = units.concat();
    let cuts: Vec<usize> = (0..stream.len()).step_by(1 << 16).collect();
    let (out, b, _) = feed(&stream, &cuts, 0, 0);
    check(&out, &units, 0, 0);
    assert!(b.memory() <= 1 << 20, "{} bytes kept", b.memory());
}

#[test]
fn a_transaction_of_a_hundred_thousand_ops_is_one_entry() {
    let ops: Vec<Vec<u8>> = (0..100_000).map(|i: u32| op(&[b"INCR", i.to_string().as_bytes()])).collect();
    let unit = [op(&[b"MULTI"]), ops.concat(), op(&[b"EXEC"])].concat();
    let cuts: Vec<usize> = (0..unit.len()).step_by(20_000).collect();
    let (out, ..) = feed(&unit, &cuts, 0, 0);
    assert_eq!(decode(&out).len(), 1);
    assert_eq!(decode(&out)[0].header.meta.op_count, 100_002);
    check(&out, &[unit], 0, 0);
}

/// `cargo test --release --test capture_builder -- --ignored --nocapture speed`
#[test]
#[ignore = "a measurement; run it with --release"]
fn speed() {
    let mut stream = Vec::new();
    for i in 0..200_000u32 {
        stream.extend_from_slice(&op(&[b"SET", format!("key:{i:012}").as_bytes(), &[b'x'; 100]]));
    }
    for read in [16 * 1024, 64 * 1024, 256 * 1024] {
        let mut best = f64::MAX;
        let mut out = Vec::with_capacity(1 << 20);
        for _ in 0..20 {
            let start = std::time::Instant::now();
            let mut b = EntryBuilder::new(0, 0, 0);
            for part in stream.chunks(read) {
                out.clear();
                b.feed(part, 1, &mut out).unwrap();
            }
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!("reads of {read:>7} bytes: {:.2} GB/s", stream.len() as f64 / best / 1e9);
    }
}
