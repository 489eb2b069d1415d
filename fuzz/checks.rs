//! What must hold for any bytes: no panic, and nothing decoded that is not in them. Shared by the fuzz targets and
//! by a plain test.
#![allow(dead_code)]

use oplog_format::index::POINT_LEN;
use oplog_format::{
    codec as control, decode_entry as decode, encode_entry, parse_op as parse, split_after, Decoded,
    EntryHeader, Footer, Lineage, OpScan, SegmentHeader, ENTRY_HEADER_LEN, FOOTER_LEN, SEGMENT_HEADER_LEN,
};

/// An entry that is accepted is written again as the same bytes; one that is incomplete asks for more.
pub fn decode_entry(data: &[u8]) {
    let _ = EntryHeader::decode(data);
    match decode(data) {
        Ok(Decoded::Entry(e)) => {
            assert_eq!(e.frame.len(), ENTRY_HEADER_LEN + e.payload.len());
            assert!(e.header.first_op() >= 1 && e.header.first_op() <= e.header.meta.last_op);
            let mut again = Vec::new();
            encode_entry(&e.header.meta, e.payload, &mut again).expect("was accepted");
            assert_eq!(again, e.frame);
            let middle = e.header.first_op() + (e.payload.len() / 2) as u64;
            for op in [0, e.header.first_op() - 1, middle, e.header.meta.last_op, u64::MAX] {
                if let Ok(Some(tail)) = split_after(&e, op) {
                    assert!(matches!(decode(&tail), Ok(Decoded::Entry(t)) if e.payload.ends_with(t.payload)));
                }
            }
        }
        Ok(Decoded::Incomplete { needed }) => assert!(needed > data.len() as u64),
        Err(_) => {}
    }
}

/// Walks a file as a reader would: footer, index, header, entries.
pub fn segment(data: &[u8]) {
    let mut end = data.len();
    if let Some(split) = data.len().checked_sub(FOOTER_LEN) {
        if let Ok((footer, crc)) = Footer::decode(&data[split..]) {
            let index = usize::try_from(footer.index_offset).ok().and_then(|at| data.get(at..split));
            if let Some(Ok(points)) = index.map(|i| footer.decode_points(crc, i)) {
                assert_eq!(points.len() * POINT_LEN, split - footer.index_offset as usize);
                end = footer.index_offset as usize;
            }
        }
    }
    if let Ok(h) = SegmentHeader::decode(data) {
        assert_eq!(SegmentHeader::decode(&h.encode()), Ok(h));
    }
    let mut at = SEGMENT_HEADER_LEN.min(end);
    while let Ok(Decoded::Entry(e)) = decode(&data[at..end]) {
        assert!(!e.payload.is_empty());
        let mut ops = e.payload;
        let mut args = Vec::new();
        while let Ok(OpScan::Complete { len }) = parse(ops, &mut args) {
            ops = &ops[len..];
        }
        at += e.frame.len();
    }
}

/// Arguments lie within the op in order, and a verdict does not change when more bytes come.
pub fn parse_op(data: &[u8]) {
    let mut args = Vec::new();
    let whole = parse(data, &mut args);
    match whole {
        Ok(OpScan::Complete { len }) => {
            assert!(len <= data.len() && !args.is_empty());
            let mut behind = 0;
            for a in &args {
                assert!(a.start >= behind + 4 && a.start <= a.end && a.end + 2 <= len);
                behind = a.end + 2;
            }
            assert_eq!(behind, len);
            assert_eq!(parse(&data[..len], &mut Vec::new()), whole);
            assert!(matches!(parse(&data[..len - 1], &mut Vec::new()), Ok(OpScan::Incomplete { .. })));
        }
        Ok(OpScan::Incomplete { needed }) => assert!(needed > data.len() as u64),
        Err(_) => {}
    }
    assert!(args.len() * 5 <= data.len());
}

/// Control data that is accepted is written again as the same bytes.
pub fn codec(data: &[u8]) {
    if let Ok(l) = control::decode::<Lineage>(data) {
        assert!(Lineage::from_items(l.items().to_vec()).is_ok());
        assert_eq!(control::encode(&l).as_deref(), Ok(data));
    }
    if let Ok(v) = control::decode::<Vec<(u64, Option<String>, Vec<u8>)>>(data) {
        assert_eq!(control::encode(&v).as_deref(), Ok(data));
    }
}
