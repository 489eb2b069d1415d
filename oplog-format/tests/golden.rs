//! Golden files: bytes that were once written stay readable, today's code writes the same ones, and the tables
//! of `docs/format.md` say where each field stands in them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod tables;

use std::path::PathBuf;

use tables::check;

use oplog_format::index::{encode_index, POINT_LEN};
use oplog_format::packed::PACKED_HEADER_LEN;
use oplog_format::{
    codec, decode_entry, decode_stored, encode_entry, Codec, Decoded, EntryMeta, Footer, History, IndexPoint,
    Lineage, LineageItem, Packer, SegmentHeader, Stored, Unpacker, ENTRY_HEADER_LEN, FOOTER_LEN,
    SEGMENT_HEADER_LEN,
};

const HISTORY: &[u8; 40] = b"0123456789abcdef0123456789abcdef01234567";
const PAYLOADS: [&[u8]; 2] = [
    b"*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\n\x00\xff\r\n\r\n",
    b"*1\r\n$4\r\nPING\r\n",
];

fn golden(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn header() -> SegmentHeader {
    SegmentHeader {
        history: History::from_bytes(HISTORY).unwrap(),
        first_op: 0x1122_3344_5566_7788,
        created_ms: 1_700_000_000_001,
        service_id: 7,
    }
}

fn metas() -> [EntryMeta; 2] {
    let first = header().first_op + PAYLOADS[0].len() as u64 - 1;
    let meta = EntryMeta {
        last_op: first,
        time_ms: 1_700_000_000_123,
        db: 0x0203_0405,
        op_count: 2,
        service_id: 7,
        flags: 0,
    };
    let second = EntryMeta {
        last_op: first + PAYLOADS[1].len() as u64,
        time_ms: 1_700_000_000_456,
        db: 3,
        op_count: 1,
        ..meta
    };
    [meta, second]
}

fn sealed_parts() -> (Vec<IndexPoint>, Footer) {
    let second = (SEGMENT_HEADER_LEN + ENTRY_HEADER_LEN + PAYLOADS[0].len()) as u64;
    let points = vec![
        IndexPoint { first_op: header().first_op, offset: SEGMENT_HEADER_LEN as u64 },
        IndexPoint { first_op: metas()[0].last_op + 1, offset: second },
    ];
    let footer = Footer {
        index_offset: second + (ENTRY_HEADER_LEN + PAYLOADS[1].len()) as u64,
        last_op: metas()[1].last_op,
        last_time_ms: metas()[1].time_ms,
        entries: 2,
        ops: 3,
        points: 2,
    };
    (points, footer)
}

fn open_segment() -> Vec<u8> {
    let mut out = header().encode().to_vec();
    for (meta, payload) in metas().iter().zip(PAYLOADS) {
        encode_entry(meta, payload, &mut out).unwrap();
    }
    out
}

fn sealed_segment() -> Vec<u8> {
    let mut out = open_segment();
    let (points, footer) = sealed_parts();
    encode_index(&points, &footer, &mut out).unwrap();
    out
}

/// A payload that is worth compressing.
fn long_payload() -> Vec<u8> {
    let mut out = Vec::new();
    for n in 0..40 {
        let (key, value) = (format!("key:{n}"), format!("{{\"id\":{n},\"name\":\"user {}\"}}", n * 7919));
        let (k, v) = (key.len(), value.len());
        out.extend_from_slice(format!("*3\r\n$3\r\nSET\r\n${k}\r\n{key}\r\n${v}\r\n{value}\r\n").as_bytes());
    }
    out
}

/// A segment with a compressed entry between two plain ones.
fn packed_segment() -> Vec<u8> {
    let mut out = header().encode().to_vec();
    let [first, second] = metas();
    encode_entry(&first, PAYLOADS[0], &mut out).unwrap();
    let mut long = Vec::new();
    encode_entry(&long_meta(), &long_payload(), &mut long).unwrap();
    Packer::new(Codec::Zstd).unwrap().pack(&long, &mut out).unwrap();
    let last_op = long_meta().last_op + PAYLOADS[1].len() as u64;
    encode_entry(&EntryMeta { last_op, ..second }, PAYLOADS[1], &mut out).unwrap();
    out
}

fn long_meta() -> EntryMeta {
    let first = metas()[0];
    EntryMeta { last_op: first.last_op + long_payload().len() as u64, op_count: 40, db: 3, ..first }
}

fn lineage() -> Lineage {
    let item = |c: u8, first_op| LineageItem { history: History::from_bytes(&[c; 40]).unwrap(), first_op };
    Lineage::from_items(vec![item(b'a', 1), item(b'b', 0x0102_0304_0506)]).unwrap()
}

#[test]
fn todays_code_writes_the_golden_bytes() {
    assert_eq!(open_segment(), golden("segment-v1-open.bin"));
    assert_eq!(sealed_segment(), golden("segment-v1-sealed.bin"));
    assert_eq!(codec::encode(&lineage()).unwrap(), golden("lineage-v1.bin"));
}

#[test]
fn the_golden_bytes_are_read_back() {
    let bytes = golden("segment-v1-sealed.bin");
    assert_eq!(SegmentHeader::decode(&bytes).unwrap(), header());
    let mut at = SEGMENT_HEADER_LEN;
    for (meta, payload) in metas().iter().zip(PAYLOADS) {
        let Decoded::Entry(e) = decode_entry(&bytes[at..]).unwrap() else { panic!("incomplete") };
        assert_eq!((&e.header.meta, e.payload), (meta, payload));
        at += e.frame.len();
    }
    let (points, footer) = sealed_parts();
    let split = bytes.len() - FOOTER_LEN;
    let (got, crc) = Footer::decode(&bytes[split..]).unwrap();
    assert_eq!(got, footer);
    assert_eq!(footer.index_offset, at as u64);
    assert_eq!(footer.decode_points(crc, &bytes[at..split]).unwrap(), points);
    assert_eq!(codec::decode::<Lineage>(&golden("lineage-v1.bin")).unwrap(), lineage());
}

/// What a codec writes may change with its version; what it has written is read for ever.
#[test]
fn the_golden_compressed_entry_is_read_back() {
    let bytes = golden("segment-v1-packed.bin");
    let at = SEGMENT_HEADER_LEN + ENTRY_HEADER_LEN + PAYLOADS[0].len();
    let Stored::Entry(stored) = decode_stored(&bytes[at..]).unwrap() else { panic!("incomplete") };
    assert_eq!((stored.header.codec, stored.header.header.meta), (Some(Codec::Zstd), long_meta()));
    let mut plain = Vec::new();
    Unpacker::default().unpack(&stored, &mut plain).unwrap();
    let mut expected = Vec::new();
    encode_entry(&long_meta(), &long_payload(), &mut expected).unwrap();
    assert_eq!(plain, expected);
    let Stored::Entry(last) = decode_stored(&bytes[at + stored.frame.len()..]).unwrap() else {
        panic!("none")
    };
    assert_eq!(last.plain().unwrap().payload, PAYLOADS[1]);
    let m = long_meta();
    check(
        "Compressed entry header",
        &stored.frame[..PACKED_HEADER_LEN],
        &[
            ("magic", b"DRe1".to_vec()),
            ("crc", plain[4..8].to_vec()),
            ("last_op", m.last_op.to_le_bytes().to_vec()),
            ("time_ms", m.time_ms.to_le_bytes().to_vec()),
            ("payload_len", (long_payload().len() as u32).to_le_bytes().to_vec()),
            ("db", m.db.to_le_bytes().to_vec()),
            ("op_count", m.op_count.to_le_bytes().to_vec()),
            ("service_id", vec![m.service_id]),
            ("flags", vec![1]),
            ("reserved", vec![0; 2]),
            ("stored_len", ((stored.frame.len() - PACKED_HEADER_LEN) as u32).to_le_bytes().to_vec()),
            ("stored_crc", crc(&[&stored.frame[..44], &stored.frame[PACKED_HEADER_LEN..]])),
        ],
    );
}

fn crc(parts: &[&[u8]]) -> Vec<u8> {
    crc32fast::hash(&parts.concat()).to_le_bytes().to_vec()
}

#[test]
fn the_document_has_the_segment_header() {
    let bytes = &golden("segment-v1-sealed.bin")[..SEGMENT_HEADER_LEN];
    let h = header();
    check(
        "Segment header",
        bytes,
        &[
            ("magic", b"RDROPLOG".to_vec()),
            ("version", 1u32.to_le_bytes().to_vec()),
            ("service_id", vec![h.service_id]),
            ("reserved", vec![0; 3]),
            ("first_op", h.first_op.to_le_bytes().to_vec()),
            ("created_ms", h.created_ms.to_le_bytes().to_vec()),
            ("history", HISTORY.to_vec()),
            ("reserved", vec![0; 52]),
            ("crc", crc(&[&bytes[..124]])),
        ],
    );
}

#[test]
fn the_document_has_the_entry() {
    let bytes = &golden("segment-v1-sealed.bin")[SEGMENT_HEADER_LEN..][..ENTRY_HEADER_LEN];
    let m = metas()[0];
    check(
        "Entry header",
        bytes,
        &[
            ("magic", b"DRe1".to_vec()),
            ("crc", crc(&[&bytes[8..], PAYLOADS[0]])),
            ("last_op", m.last_op.to_le_bytes().to_vec()),
            ("time_ms", m.time_ms.to_le_bytes().to_vec()),
            ("payload_len", (PAYLOADS[0].len() as u32).to_le_bytes().to_vec()),
            ("db", m.db.to_le_bytes().to_vec()),
            ("op_count", m.op_count.to_le_bytes().to_vec()),
            ("service_id", vec![m.service_id]),
            ("flags", vec![0]),
            ("reserved", vec![0; 2]),
        ],
    );
}

#[test]
fn the_document_has_index_and_footer() {
    let bytes = golden("segment-v1-sealed.bin");
    let (points, f) = sealed_parts();
    let at = f.index_offset as usize;
    let index = &bytes[at..at + 2 * POINT_LEN];
    check(
        "Index point",
        &index[POINT_LEN..],
        &[
            ("first_op", points[1].first_op.to_le_bytes().to_vec()),
            ("offset", points[1].offset.to_le_bytes().to_vec()),
        ],
    );
    let footer = &bytes[bytes.len() - FOOTER_LEN..];
    check(
        "Footer",
        footer,
        &[
            ("magic", b"RDRSEALD".to_vec()),
            ("index_offset", f.index_offset.to_le_bytes().to_vec()),
            ("last_op", f.last_op.to_le_bytes().to_vec()),
            ("last_time_ms", f.last_time_ms.to_le_bytes().to_vec()),
            ("entries", f.entries.to_le_bytes().to_vec()),
            ("ops", f.ops.to_le_bytes().to_vec()),
            ("points", f.points.to_le_bytes().to_vec()),
            ("index_crc", crc(&[index])),
            ("reserved", vec![0; 4]),
            ("crc", crc(&[&footer[..60]])),
        ],
    );
}

/// Writes the files anew. Only for a new format version: under a new name, the old ones stay.
#[test]
#[ignore = "writes the golden files"]
fn write_golden_files() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    std::fs::write(dir.join("segment-v1-open.bin"), open_segment()).unwrap();
    std::fs::write(dir.join("segment-v1-sealed.bin"), sealed_segment()).unwrap();
    std::fs::write(dir.join("segment-v1-packed.bin"), packed_segment()).unwrap();
    std::fs::write(dir.join("lineage-v1.bin"), codec::encode(&lineage()).unwrap()).unwrap();
}
