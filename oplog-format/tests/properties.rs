//! Properties of the format that hold for any input: round trips, no panic on garbage, no damage unseen, and
//! `Lineage::common` against a model that knows every op of every node.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use oplog_format::index::{encode_index, POINT_LEN};
use oplog_format::position::Common;
use oplog_format::{
    codec, decode_entry, decode_stored, encode_entry, parse_op, split_after, Arg, Codec, Decoded,
    EntryHeader, EntryMeta, Footer, History, IndexPoint, Lineage, LineageItem, OpId, OpScan, Packer,
    SegmentHeader, Stored, Unpacker, FOOTER_LEN,
};
use proptest::prelude::*;

fn history(n: u32) -> History {
    History::from_bytes(format!("{n:040x}").as_bytes()).unwrap()
}

prop_compose! {
    fn entry()(
        payload in prop::collection::vec(any::<u8>(), 1..300),
        above in 0u64..u64::MAX / 2,
        time_ms in any::<u64>(),
        db in any::<u32>(),
        op_count in 1u32..,
        service_id in 0u8..16,
    ) -> (EntryMeta, Vec<u8>) {
        let last_op = above + payload.len() as u64;
        (EntryMeta { last_op, time_ms, db, op_count, service_id, flags: 0 }, payload)
    }
}

/// An op as a client would send it.
fn resp(args: &[Vec<u8>]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", args.len()).into_bytes();
    for a in args {
        out.extend_from_slice(format!("${}\r\n", a.len()).as_bytes());
        out.extend_from_slice(a);
        out.extend_from_slice(b"\r\n");
    }
    out
}

fn op_args() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..8)
}

/// Bytes that look like RESP often enough to get past the first check.
fn almost_resp() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(
        prop_oneof![
            Just(b'*'),
            Just(b'$'),
            Just(b'\r'),
            Just(b'\n'),
            Just(b'0'),
            Just(b'1'),
            Just(b'2'),
            Just(b'9'),
            Just(b'-'),
            any::<u8>()
        ],
        0..80,
    )
}

proptest! {
    #[test]
    fn concatenated_entries_come_back_in_order(entries in prop::collection::vec(entry(), 0..6)) {
        let mut buf = Vec::new();
        for (meta, payload) in &entries {
            encode_entry(meta, payload, &mut buf).unwrap();
        }
        let mut rest = &buf[..];
        for (meta, payload) in &entries {
            let Decoded::Entry(e) = decode_entry(rest).unwrap() else { panic!("incomplete") };
            prop_assert_eq!(&e.header.meta, meta);
            prop_assert_eq!(e.payload, &payload[..]);
            prop_assert_eq!(e.header.first_op() + payload.len() as u64, meta.last_op + 1);
            prop_assert_eq!(e.frame.len() as u64, e.header.frame_len());
            rest = &rest[e.frame.len()..];
        }
        prop_assert!(rest.is_empty());
        prop_assert_eq!(decode_entry(rest).unwrap(), Decoded::Incomplete { needed: 40 });
    }

    #[test]
    fn a_cut_entry_asks_for_more_and_never_for_too_much((meta, payload) in entry(), at in any::<prop::sample::Index>()) {
        let mut buf = Vec::new();
        encode_entry(&meta, &payload, &mut buf).unwrap();
        let cut = at.index(buf.len());
        let Decoded::Incomplete { needed } = decode_entry(&buf[..cut]).unwrap() else { panic!("whole") };
        prop_assert!(needed > cut as u64 && needed <= buf.len() as u64);
    }

    #[test]
    fn no_flipped_bit_of_an_entry_goes_unseen((meta, payload) in entry(), bit in any::<prop::sample::Index>()) {
        let mut buf = Vec::new();
        encode_entry(&meta, &payload, &mut buf).unwrap();
        let bit = bit.index(buf.len() * 8);
        buf[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(!matches!(decode_entry(&buf), Ok(Decoded::Entry(_))));
    }

    #[test]
    fn entries_come_out_of_a_packer_as_they_went_in(
        entries in prop::collection::vec((entry(), 0u8..60, 1usize..30), 1..8),
        bit in any::<prop::sample::Index>(),
    ) {
        // Few letters, many times: some of it gains and some does not.
        let mut all = Vec::new();
        for ((meta, payload), letters, times) in &entries {
            let payload: Vec<u8> = payload.iter().map(|b| b % (letters + 1)).collect::<Vec<u8>>().repeat(*times);
            let last_op = meta.last_op.saturating_add(payload.len() as u64);
            encode_entry(&EntryMeta { last_op, ..*meta }, &payload, &mut all).unwrap();
        }
        let mut packed = Vec::new();
        Packer::new(Codec::Zstd).unwrap().pack(&all, &mut packed).unwrap();
        prop_assert!(packed.len() <= all.len());
        let read = |bytes: &[u8]| {
            let (mut at, mut out, mut unpacker) = (0, Vec::new(), Unpacker::default());
            while let Ok(Stored::Entry(e)) = decode_stored(&bytes[at..]) {
                unpacker.unpack(&e, &mut out).unwrap();
                at += e.frame.len();
            }
            out
        };
        prop_assert_eq!(read(&packed), &all[..]);
        let bit = bit.index(packed.len() * 8);
        packed[bit / 8] ^= 1 << (bit % 8);
        let rest = read(&packed);
        prop_assert!(rest.len() < all.len() && all.starts_with(&rest));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode_entry(&bytes);
        let _ = EntryHeader::decode(&bytes);
        let _ = decode_stored(&bytes);
        let _ = SegmentHeader::decode(&bytes);
        if let Ok((footer, crc)) = Footer::decode(&bytes) {
            let _ = footer.decode_points(crc, &bytes);
        }
        let _ = parse_op(&bytes, &mut Vec::new());
        let _ = codec::decode::<Lineage>(&bytes);
        let _ = codec::decode::<Vec<(String, Vec<u8>)>>(&bytes);
    }

    #[test]
    fn a_header_with_any_fields_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 40..80)) {
        bytes[..4].copy_from_slice(b"DRe1");
        bytes[36..40].copy_from_slice(&[3, 0, 0, 0]);
        if let Ok(h) = EntryHeader::decode(&bytes) {
            prop_assert!(h.first_op() >= 1 && h.first_op() <= h.meta.last_op);
            let _ = h.frame_len();
        }
        prop_assert!(!matches!(decode_entry(&bytes), Ok(Decoded::Entry(_))));
    }

    #[test]
    fn segment_headers_come_back(n in any::<u32>(), first_op in any::<u64>(), created_ms in any::<u64>(), service_id in 0u8..16) {
        let h = SegmentHeader { history: history(n), first_op, created_ms, service_id };
        prop_assert_eq!(SegmentHeader::decode(&h.encode()).unwrap(), h);
    }

    #[test]
    fn an_index_comes_back(
        points in prop::collection::vec((any::<u64>(), any::<u64>()), 0..20),
        (index_offset, last_op, last_time_ms, entries, ops) in any::<(u64, u64, u64, u64, u64)>(),
        bit in any::<prop::sample::Index>(),
    ) {
        let points: Vec<_> = points.into_iter().map(|(first_op, offset)| IndexPoint { first_op, offset }).collect();
        let footer = Footer { index_offset, last_op, last_time_ms, entries, ops, points: points.len() as u32 };
        let mut out = Vec::new();
        encode_index(&points, &footer, &mut out).unwrap();
        prop_assert_eq!(out.len(), points.len() * POINT_LEN + FOOTER_LEN);
        let split = out.len() - FOOTER_LEN;
        let (got, crc) = Footer::decode(&out[split..]).unwrap();
        prop_assert_eq!(got, footer);
        prop_assert_eq!(got.decode_points(crc, &out[..split]).unwrap(), points);
        let bit = bit.index(out.len() * 8);
        out[bit / 8] ^= 1 << (bit % 8);
        let unseen = Footer::decode(&out[split..]).is_ok_and(|(f, crc)| f.decode_points(crc, &out[..split]).is_ok());
        prop_assert!(!unseen);
    }

    #[test]
    fn an_op_is_found_whatever_follows(args in op_args(), behind in prop::collection::vec(any::<u8>(), 0..30)) {
        let mut buf = resp(&args);
        let len = buf.len();
        buf.extend_from_slice(&behind);
        let mut got = Vec::new();
        prop_assert_eq!(parse_op(&buf, &mut got).unwrap(), OpScan::Complete { len });
        let got: Vec<&[u8]> = got.iter().map(|a| a.of(&buf)).collect();
        prop_assert_eq!(got, args.iter().map(Vec::as_slice).collect::<Vec<_>>());
    }

    #[test]
    fn an_op_cut_anywhere_is_incomplete_and_the_hint_never_exceeds_it(args in op_args()) {
        let buf = resp(&args);
        for cut in 0..buf.len() {
            match parse_op(&buf[..cut], &mut Vec::new()) {
                Ok(OpScan::Incomplete { needed }) => {
                    prop_assert!(needed > cut as u64, "no progress at {}", cut);
                    prop_assert!(needed <= buf.len() as u64, "would wait for the next op at {}", cut);
                }
                other => prop_assert!(false, "{:?} at {}", other, cut),
            }
        }
    }

    #[test]
    fn garbage_is_judged_once_for_all(bytes in almost_resp()) {
        // A verdict on a prefix never changes when more arrives.
        let mut args: Vec<Arg> = Vec::new();
        let whole = parse_op(&bytes, &mut args);
        prop_assert!(args.len() * 5 <= bytes.len());
        for a in &args {
            prop_assert!(a.start <= a.end && a.end <= bytes.len());
        }
        for cut in 0..bytes.len() {
            match parse_op(&bytes[..cut], &mut args) {
                Ok(OpScan::Incomplete { needed }) => prop_assert!(needed > cut as u64),
                verdict => prop_assert_eq!(&verdict, &whole),
            }
        }
    }

    #[test]
    fn an_entry_splits_into_what_it_was(
        ops in prop::collection::vec(prop_oneof![
            4 => op_args(),
            1 => (0u32..16).prop_map(|d| vec![b"SELECT".to_vec(), d.to_string().into_bytes()]),
        ], 1..8),
        db in 0u32..16, above in 0u64..1000,
    ) {
        let parts: Vec<Vec<u8>> = ops.iter().map(|o| resp(o)).collect();
        let special = |o: &Vec<Vec<u8>>, names: &[&[u8]]| names.iter().any(|n| o[0].eq_ignore_ascii_case(n));
        prop_assume!(!ops.iter().any(|o| special(o, &[b"MULTI", b"EXEC"]) || (special(o, &[b"SELECT"]) && o.len() != 2)));
        let payload = parts.concat();
        let last_op = above + payload.len() as u64;
        let meta = EntryMeta { last_op, time_ms: 7, db, op_count: ops.len() as u32, service_id: 1, flags: 0 };
        let mut frame = Vec::new();
        encode_entry(&meta, &payload, &mut frame).unwrap();
        let Decoded::Entry(entry) = decode_entry(&frame).unwrap() else { panic!("incomplete") };
        let mut boundary = above;
        let mut current = db;
        let mut tails = std::collections::BTreeMap::from([(above, (0usize, db))]);
        for (i, part) in parts.iter().enumerate() {
            boundary += part.len() as u64;
            if special(&ops[i], &[b"SELECT"]) {
                current = std::str::from_utf8(&ops[i][1]).unwrap().parse().unwrap();
            }
            tails.insert(boundary, (i + 1, current));
        }
        for op in above..=last_op {
            let tail = split_after(&entry, op).unwrap();
            let Some((skipped, in_db)) = tails.get(&op).filter(|_| op < last_op) else {
                prop_assert!(tail.is_none(), "split within an op at {}", op);
                continue;
            };
            let tail = tail.unwrap();
            let Decoded::Entry(t) = decode_entry(&tail).unwrap() else { panic!("incomplete") };
            prop_assert_eq!((t.header.first_op(), t.header.meta.last_op), (op + 1, last_op));
            prop_assert_eq!(t.payload, &parts[*skipped..].concat()[..]);
            prop_assert_eq!((t.header.meta.db, t.header.meta.op_count as usize), (*in_db, parts.len() - skipped));
        }
    }

    #[test]
    fn control_messages_come_back_and_nothing_may_follow(
        items in prop::collection::vec((any::<u32>(), any::<Option<u64>>(), ".{0,20}"), 0..20), extra in any::<u8>(),
    ) {
        let mut bytes = codec::encode(&items).unwrap();
        prop_assert_eq!(codec::decode::<Vec<(u32, Option<u64>, String)>>(&bytes).unwrap(), items);
        for cut in 0..bytes.len() {
            prop_assert!(codec::decode::<Vec<(u32, Option<u64>, String)>>(&bytes[..cut]).is_err());
        }
        bytes.push(extra);
        prop_assert!(codec::decode::<Vec<(u32, Option<u64>, String)>>(&bytes).is_err());
    }

    #[test]
    fn a_decoded_lineage_keeps_its_rules(items in prop::collection::vec((0u32..4, 0u64..50), 0..8)) {
        // Through the codec comes what may come from the network: the rules must hold there too.
        let items: Vec<_> = items.into_iter().map(|(h, first_op)| LineageItem { history: history(h), first_op }).collect();
        let bytes = codec::encode(&items).unwrap();
        match (codec::decode::<Lineage>(&bytes), Lineage::from_items(items)) {
            (Ok(a), Ok(b)) => prop_assert_eq!(a, b),
            (Err(_), Err(_)) => {}
            (a, b) => prop_assert!(false, "decoded {:?}, built {:?}", a, b),
        }
    }
}

/// A node of a shard, as it is in truth: every op with the history that produced it and a number that no other
/// op has; next to it what the node keeps of that.
#[derive(Clone, Default)]
struct Node {
    ops: Vec<(u32, u64)>,
    lineage: Lineage,
}

impl Node {
    fn end(&self) -> OpId {
        self.ops.len() as u64
    }

    /// Ops that both hold, from the first on.
    fn shared(&self, other: &Self) -> u64 {
        self.ops.iter().zip(&other.ops).take_while(|(a, b)| a == b).count() as u64
    }

    fn common(&self, other: &Self) -> Common {
        self.lineage.common(self.end(), &other.lineage, other.end())
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// A node becomes a master of its own: new history.
    Open(usize),
    /// It executes writes in its current history.
    Write(usize, u8),
    /// It follows the other, as far as the other has got, at most this many ops.
    Follow(usize, usize, u8),
    /// It takes a snapshot of the other.
    Reset(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let node = 0usize..4;
    prop_oneof![
        node.clone().prop_map(Step::Open),
        (node.clone(), 0u8..6).prop_map(|(n, c)| Step::Write(n, c)),
        (node.clone(), node.clone(), 0u8..12).prop_map(|(a, b, c)| Step::Follow(a, b, c)),
        (node.clone(), node).prop_map(|(a, b)| Step::Reset(a, b)),
    ]
}

/// Plays `steps` on four nodes; `owner` maps each history to the node that may write in it, so that no history
/// is produced in two places.
fn play(steps: &[Step]) -> Result<Vec<Node>, TestCaseError> {
    let mut nodes = vec![Node::default(); 4];
    let mut owner: Vec<usize> = Vec::new();
    let mut unique = 0;
    for step in steps {
        match *step {
            Step::Open(n) => {
                let end = nodes[n].end();
                nodes[n].lineage.open(history(owner.len() as u32), end + 1);
                owner.push(n);
            }
            Step::Write(n, count) => {
                let current = nodes[n].lineage.current().map(|c| c.history);
                let Some(h) = (0..owner.len()).find(|h| current == Some(history(*h as u32))) else {
                    continue;
                };
                if owner[h] != n {
                    continue;
                }
                for _ in 0..count {
                    unique += 1;
                    nodes[n].ops.push((h as u32, unique));
                }
            }
            Step::Follow(a, b, count) => {
                let Common::UpTo(p) = nodes[a].common(&nodes[b]) else { continue };
                if p < nodes[a].end() {
                    nodes[a].ops.truncate(p as usize);
                    nodes[a].lineage.cut_after(p);
                    // What it wrote there is gone: it may not go on in that history.
                    owner.iter_mut().filter(|o| **o == a).for_each(|o| *o = usize::MAX);
                }
                let source = nodes[b].clone();
                for op in (p + 1..=source.end()).take(usize::from(count)) {
                    nodes[a].lineage.open(source.lineage.history_of(op).unwrap(), op);
                    nodes[a].ops.push(source.ops[op as usize - 1]);
                }
            }
            Step::Reset(a, b) => {
                if a != b {
                    nodes[a] = nodes[b].clone();
                    owner.iter_mut().filter(|o| **o == a).for_each(|o| *o = usize::MAX);
                }
            }
        }
        for n in &nodes {
            let items = n.lineage.items().to_vec();
            prop_assert!(Lineage::from_items(items).is_ok());
            for op in 1..=n.end() {
                prop_assert_eq!(n.lineage.history_of(op), Some(history(n.ops[op as usize - 1].0)));
            }
        }
    }
    Ok(nodes)
}

/// What `common` means, by looking at the state after each op in turn. A state has the name of the history that
/// produced its last op, and of those that began from it.
fn brute_common(a: &Lineage, a_end: OpId, b: &Lineage, b_end: OpId) -> Option<OpId> {
    let names = |l: &Lineage, op: OpId| -> Vec<History> {
        let began = l.items().iter().filter(|i| i.first_op == op + 1).map(|i| i.history);
        began.chain(l.history_of(op)).collect()
    };
    (0..=a_end.min(b_end)).rev().find(|op| {
        let theirs = names(b, *op);
        names(a, *op).iter().any(|n| theirs.contains(n))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn common_is_the_last_op_that_both_nodes_hold(steps in prop::collection::vec(step(), 0..40)) {
        let nodes = play(&steps)?;
        for a in &nodes {
            for b in &nodes {
                let shared = a.shared(b);
                match a.common(b) {
                    Common::UpTo(p) => prop_assert_eq!(p, shared),
                    Common::Unrelated => prop_assert_eq!(shared, 0),
                }
                prop_assert_eq!(a.common(b), b.common(a));
            }
        }
    }

    #[test]
    fn common_agrees_with_looking_at_each_op(
        a in prop::collection::vec((0u32..5, 1u64..30), 0..5), b in prop::collection::vec((0u32..5, 1u64..30), 0..5),
        a_end in 0u64..40, b_end in 0u64..40,
    ) {
        // Not from any real run: whatever a peer may claim.
        let build = |mut items: Vec<(u32, u64)>| {
            items.sort_by_key(|i| i.1);
            Lineage::from_items(items.into_iter().map(|(h, first_op)| LineageItem { history: history(h), first_op }).collect()).unwrap()
        };
        let (a, b) = (build(a), build(b));
        let got = a.common(a_end, &b, b_end);
        prop_assert_eq!(got, b.common(b_end, &a, a_end));
        prop_assert_eq!(got, brute_common(&a, a_end, &b, b_end).map_or(Common::Unrelated, Common::UpTo));
    }
}

#[test]
fn a_claimed_length_is_not_allocated() {
    // A vector of 2^40 bytes, of which none follow.
    let bytes = (1u64 << 40).to_le_bytes();
    assert!(codec::decode::<Vec<u8>>(&bytes).is_err());
    assert!(codec::decode::<String>(&bytes).is_err());
    assert!(codec::decode::<Vec<(u64, String)>>(&bytes).is_err());
    assert!(codec::decode::<Lineage>(&bytes).is_err());
    // Elements without bytes of their own cost nothing on the wire, so the count alone must not be believed.
    assert!(
        codec::encode(&vec![0u8; codec::MAX_CONTROL_LEN + 1]).is_err()
            || codec::decode::<Vec<u8>>(&codec::encode(&vec![0u8; codec::MAX_CONTROL_LEN + 1]).unwrap())
                .is_err()
    );
}

#[test]
fn the_highest_op_ids_do_not_overflow() {
    let mut a = Lineage::default();
    a.open(history(1), 1);
    assert_eq!(a.common(u64::MAX, &a, u64::MAX), Common::UpTo(u64::MAX));
    let meta = EntryMeta { last_op: u64::MAX, time_ms: 0, db: 0, op_count: 1, service_id: 0, flags: 0 };
    let mut out = Vec::new();
    encode_entry(&meta, b"x", &mut out).unwrap();
    let Decoded::Entry(e) = decode_entry(&out).unwrap() else { panic!("incomplete") };
    assert_eq!(e.header.first_op(), u64::MAX);
}
