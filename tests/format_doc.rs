//! The tables of `docs/format.md` for what is outside `oplog-format`: small files and the field in the RDB.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[path = "../oplog-format/tests/tables/mod.rs"]
mod tables;

use oplog_format::{codec, History, Lineage, LineageItem};
use redisdr::snapshot::aux::{AuxContent, Mode};
use redisdr::store::{durable, Manifest, RealFs};
use tables::check;

fn lineage() -> Lineage {
    let history = History::from_bytes(&[b'b'; 40]).unwrap();
    Lineage::from_items(vec![LineageItem { history, first_op: 0x0102_0304_0506_0708 }]).unwrap()
}

#[test]
fn the_document_has_the_small_file_and_the_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("manifest");
    let manifest = Manifest { version: 1, epoch: 7, oldest: 99, lineage: lineage(), cut: Some(5), gaps: 3 };
    durable::save(&RealFs, &path, &manifest).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let (head, body) = bytes.split_at(durable::HEAD);
    check(
        "Small file",
        head,
        &[
            ("magic", b"RDRSTAT1".to_vec()),
            ("body_len", (body.len() as u32).to_le_bytes().to_vec()),
            ("body_crc", crc32fast::hash(body).to_le_bytes().to_vec()),
        ],
    );
    let mut expected = [1u32.to_le_bytes(), 7u32.to_le_bytes()].concat();
    expected.extend_from_slice(&99u64.to_le_bytes());
    expected.extend_from_slice(&codec::encode(&lineage()).unwrap());
    expected.push(1);
    expected.extend_from_slice(&5u64.to_le_bytes());
    expected.extend_from_slice(&3u64.to_le_bytes());
    assert_eq!(body, expected);
}

#[test]
fn the_document_has_the_field_in_the_rdb() {
    let content = AuxContent {
        format: 1,
        mode: Mode::Target,
        service_id: 9,
        flags: 0x0102_0304,
        op_id: 0x1122_3344_5566_7788,
        repl_offset: -2,
        lineage: vec![([b'c'; 40], 77)],
        endpoints: vec!["host:1".to_owned()],
    };
    let bytes = content.encode();
    let (head, rest) = bytes.split_at(30);
    check(
        "RDB field",
        head,
        &[
            ("magic", b"rdrx".to_vec()),
            ("format", 1u16.to_le_bytes().to_vec()),
            ("mode", vec![1]),
            ("service_id", vec![9]),
            ("flags", content.flags.to_le_bytes().to_vec()),
            ("op_id", content.op_id.to_le_bytes().to_vec()),
            ("repl_offset", content.repl_offset.to_le_bytes().to_vec()),
            ("histories", 1u16.to_le_bytes().to_vec()),
        ],
    );
    let mut expected = vec![b'c'; 40];
    expected.extend_from_slice(&77u64.to_le_bytes());
    expected.extend_from_slice(b"\x01\x00\x06\x00host:1");
    expected.extend_from_slice(&crc32fast::hash(&bytes[..bytes.len() - 4]).to_le_bytes());
    assert_eq!(rest, expected);
}
