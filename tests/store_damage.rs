//! Damage: a bit that has changed anywhere is noticed, by opening or by reading, with file and offset; nothing
//! wrong is ever handed out, and nothing right is cut off for it but the tail that a power cut may have torn.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod store_support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use oplog_format::entry::FLAGS;
use oplog_format::{StoredHeader, SEGMENT_HEADER_LEN};
use redisdr::store::{durable, Fs, Log, LogOptions, ReadError, StoreError};
use store_support::drive::{entries, history, options, packed, Item, DIR};
use store_support::memfs::{MemFs, State};
use store_support::Rng;

const SEGMENT: u64 = 8192;

/// A log of several segments, and its entries.
fn some_log(options: LogOptions) -> (State, Vec<Item>) {
    let fs = MemFs::new();
    let dyn_fs = Arc::clone(&fs) as Arc<dyn Fs>;
    let (log, _) = Log::open(Path::new(DIR), options, dyn_fs).unwrap();
    log.begin_history(history(1), 1).unwrap();
    let items = entries(0, &vec![vec![900, 40]; 40], &mut Rng::new(3));
    for item in &items {
        log.append(&item.frame).unwrap();
    }
    log.sync().unwrap();
    (fs.state(), items)
}

fn segments(state: &State) -> Vec<PathBuf> {
    let fs = MemFs::from_state(state.clone());
    let names = fs.list(Path::new(DIR)).unwrap();
    names.iter().filter(|n| n.ends_with(".oplog")).map(|n| Path::new(DIR).join(n)).collect()
}

fn open(state: State) -> Result<Arc<Log>, StoreError> {
    let fs = MemFs::from_state(state) as Arc<dyn Fs>;
    Log::open(Path::new(DIR), options(SEGMENT), fs).map(|(log, _)| log)
}

/// Reads as far as it goes; the frames and the error at their end.
fn read(log: &Arc<Log>) -> (Vec<u8>, Option<ReadError>) {
    let mut out = Vec::new();
    let mut reader = match log.reader(1) {
        Ok(reader) => reader,
        Err(e) => return (out, Some(e)),
    };
    loop {
        match reader.next(1, &mut out) {
            Ok(Some(_)) => {}
            Ok(None) => return (out, None),
            Err(e) => return (out, Some(e)),
        }
    }
}

#[test]
fn a_flipped_bit_is_never_handed_out() {
    flip_bits(options(SEGMENT));
}

#[test]
fn a_flipped_bit_of_a_compressed_log_is_never_handed_out() {
    flip_bits(packed(SEGMENT));
}

fn flip_bits(options: LogOptions) {
    let (state, items) = some_log(options);
    let all: Vec<u8> = items.iter().flat_map(|e| e.frame.iter().copied()).collect();
    let files = segments(&state);
    let mut rng = Rng::new(11);
    let (mut refused, mut told, mut harmless) = (0, 0, 0);
    for round in 0..600 {
        let file = &files[rng.below(files.len() as u64) as usize];
        let byte = rng.below(state.len_of(file) as u64) as usize;
        let mut bad = state.clone();
        bad.flip(file, byte, rng.below(8) as u8);
        let what = format!("round {round}: {} byte {byte}", file.display());
        let log = match open(bad) {
            Ok(log) => log,
            Err(StoreError::Damaged { path, .. } | StoreError::Discontinuous { path, .. }) => {
                assert_eq!(&path, file, "{what}");
                refused += 1;
                continue;
            }
            Err(e) => panic!("{what}: {e}"),
        };
        let (got, error) = read(&log);
        assert!(all.starts_with(&got), "{what}: other bytes");
        match error {
            Some(ReadError::Store(StoreError::Damaged { path, offset, .. })) => {
                assert_eq!(&path, file, "{what}");
                assert!(offset <= byte as u64, "{what}: told at {offset}");
                told += 1;
            }
            Some(e) => panic!("{what}: {e}"),
            None => {
                // In the last entry it cannot be told from a torn write; else only an index was hit.
                let last = all.len() - items.last().unwrap().frame.len();
                assert!(
                    got.len() == all.len() || got.len() == last,
                    "{what}: {} of {}",
                    got.len(),
                    all.len()
                );
                harmless += 1;
            }
        }
    }
    println!("{refused} refused, {told} told by the reader, {harmless} without effect or in the last entry");
    assert!(refused > 0 && told > 0);
}

#[test]
fn damage_in_the_open_segment_is_not_taken_for_a_torn_tail() {
    for options in [options(SEGMENT), packed(SEGMENT)] {
        let (state, items) = some_log(options);
        let file = segments(&state).pop().unwrap();
        let frame = items[0].frame.len();
        let in_last = (state.len_of(&file) - 128) / frame;
        assert!(in_last >= 2, "too few entries in the last segment");
        let mut bad = state.clone();
        bad.flip(&file, 128 + 300, 2);
        match open(bad) {
            Err(StoreError::Damaged { path, offset, .. }) => assert_eq!((path, offset), (file, 128)),
            Err(e) => panic!("{e}"),
            Ok(_) => panic!("opened"),
        }
    }
}

#[test]
fn an_unknown_codec_is_not_taken_for_a_torn_tail() {
    for options in [options(SEGMENT), packed(SEGMENT)] {
        let (state, _) = some_log(options);
        let file = segments(&state).pop().unwrap();
        let bytes =
            durable::read_file(MemFs::from_state(state.clone()).as_ref(), &file, u64::MAX).unwrap().unwrap();
        let (mut at, mut last) = (SEGMENT_HEADER_LEN, 0);
        while let Ok(header) = StoredHeader::decode(&bytes[at..]) {
            last = at;
            at += header.frame_len() as usize;
        }
        // No entry that is known follows it.
        let mut bad = state.clone();
        bad.flip(&file, last + FLAGS, 6);
        let refused = open(bad);
        assert!(
            matches!(refused, Err(StoreError::Damaged { path, offset, .. }) if (&path, offset) == (&file, last as u64))
        );
    }
}

#[test]
fn a_log_whose_manifest_is_gone_is_refused_and_nothing_removed() {
    let (state, _) = some_log(options(SEGMENT));
    let fs = MemFs::from_state(state);
    fs.unlink(&Path::new(DIR).join("manifest")).unwrap();
    let before = segments(&fs.state());
    assert!(matches!(open(fs.state()), Err(StoreError::Damaged { .. })));
    assert_eq!(segments(&fs.state()), before);
}

#[test]
fn a_missing_segment_is_named() {
    let (state, _) = some_log(options(SEGMENT));
    for (i, file) in segments(&state).iter().enumerate() {
        let last = i + 1 == segments(&state).len();
        let fs = MemFs::from_state(state.clone());
        fs.unlink(file).unwrap();
        match open(fs.state()) {
            Err(StoreError::Discontinuous { .. }) => assert!(!last),
            // The end of a log leaves no trace but in what others know.
            Ok(_) => assert!(last),
            Err(e) => panic!("{e}"),
        }
    }
}
