//! What must hold for any bytes: no panic, and nothing decoded that is not in them. Shared by the fuzz targets and
//! by a plain test.
#![allow(dead_code)]

use oplog_format::index::POINT_LEN;
use oplog_format::{
    codec as control, decode_entry as decode, decode_stored as stored, encode_entry, parse_op as parse,
    split_after, Codec, Decoded, EntryHeader, Footer, Lineage, OpScan, Packer, SegmentHeader, Stored,
    StoredHeader, Unpacker, ENTRY_HEADER_LEN, FOOTER_LEN, SEGMENT_HEADER_LEN,
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

/// An entry comes out of its compressed form as it went in, and nothing else does.
pub fn packed(data: &[u8]) {
    let _ = StoredHeader::decode(data);
    let mut unpacker = Unpacker::default();
    match stored(data) {
        Ok(Stored::Entry(e)) => {
            assert_eq!(e.frame.len() as u64, e.header.frame_len());
            let mut plain = Vec::new();
            if unpacker.unpack(&e, &mut plain).is_ok() {
                assert!(matches!(decode(&plain), Ok(Decoded::Entry(p)) if p.frame.len() == plain.len()));
                let mut again = Vec::new();
                Packer::new(Codec::Zstd).and_then(|mut p| p.pack(&plain, &mut again)).expect("is an entry");
                let Ok(Stored::Entry(again)) = stored(&again) else { panic!("was packed") };
                let mut back = Vec::new();
                unpacker.unpack(&again, &mut back).expect("was packed");
                assert_eq!(back, plain);
            } else {
                assert!(plain.is_empty() && e.header.codec.is_some());
            }
        }
        Ok(Stored::Incomplete { needed }) => assert!(needed > data.len() as u64),
        Err(_) => {}
    }
    // Past the checksum of what is stored, which random bytes do not get by.
    if let (Some(head), Some(body)) = (data.get(..48), data.get(48..)) {
        let mut frame = head.to_vec();
        frame[..4].copy_from_slice(b"DRe1");
        frame[8..16].copy_from_slice(&u64::from(u32::MAX).to_le_bytes());
        frame[36..40].copy_from_slice(&[1, 1, 0, 0]);
        frame[40..44].copy_from_slice(&u32::try_from(body.len()).unwrap_or(1).to_le_bytes());
        let crc = crc32fast::hash(&[&frame[..44], body].concat());
        frame[44..48].copy_from_slice(&crc.to_le_bytes());
        frame.extend_from_slice(body);
        if let Ok(Stored::Entry(e)) = stored(&frame) {
            let mut plain = Vec::new();
            let _ = unpacker.unpack(&e, &mut plain);
            assert!(plain.capacity() <= 4 * (plain.len() + (1 << 20)));
        }
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
    while let Ok(Stored::Entry(s)) = stored(&data[at..end]) {
        at += s.frame.len();
        let Some(e) = s.plain() else { continue };
        assert!(!e.payload.is_empty());
        let mut ops = e.payload;
        let mut args = Vec::new();
        while let Ok(OpScan::Complete { len }) = parse(ops, &mut args) {
            ops = &ops[len..];
        }
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
