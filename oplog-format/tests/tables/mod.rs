//! The tables of `docs/format.md`, read by tests so that they cannot drift from the bytes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The document, from either crate of the workspace.
fn format_md() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let top = if here.ends_with("oplog-format") { here.parent().unwrap() } else { here };
    top.join("docs/format.md")
}

/// A table: length of the structure, rows of (offset, length, field).
type Table = (usize, Vec<(usize, usize, String)>);

/// The tables of the document by name of the structure.
fn tables() -> BTreeMap<String, Table> {
    let path = format_md();
    let text = std::fs::read_to_string(&path).unwrap();
    let mut tables = BTreeMap::new();
    let mut current: Option<String> = None;
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("### ") {
            // "### Segment header (128 bytes)"
            current = title.strip_suffix(" bytes)").and_then(|t| t.rsplit_once(" (")).map(|(name, len)| {
                tables.insert(name.to_string(), (len.parse().unwrap(), Vec::new()));
                name.to_string()
            });
        }
        let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
        let (Some(name), [offset, len, field, ..]) = (&current, &cells[..]) else { continue };
        if let (Ok(offset), Ok(len)) = (offset.parse(), len.parse()) {
            tables.get_mut(name).unwrap().1.push((offset, len, (*field).to_string()));
        }
    }
    tables
}

/// Compares a table with golden bytes, of which the value of each field is known.
pub fn check(name: &str, bytes: &[u8], fields: &[(&str, Vec<u8>)]) {
    let tables = tables();
    let (len, rows) = tables.get(name).unwrap_or_else(|| panic!("docs/format.md has no table {name}"));
    assert_eq!(*len, bytes.len(), "{name}: length");
    assert_eq!(rows.len(), fields.len(), "{name}: rows");
    let mut at = 0;
    for ((offset, len, field), (expected, value)) in rows.iter().zip(fields) {
        assert_eq!(field, expected, "{name}");
        assert_eq!(*offset, at, "{name}: offset of {field}");
        assert_eq!(*len, value.len(), "{name}: length of {field}");
        assert_eq!(&bytes[at..at + len], &value[..], "{name}: bytes of {field}");
        at += len;
    }
    assert_eq!(at, bytes.len(), "{name}: the rows end early");
}
