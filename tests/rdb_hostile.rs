//! Hostile bytes: no panic, and no more memory than the bytes are worth.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use proptest::prelude::*;
use redisdr::snapshot::{aux, pieces, strip_rdb, AuxContent, Event, Flavor, PieceOptions, RdbReader};

thread_local! {
    static LIVE: Cell<i64> = const { Cell::new(0) };
    static PEAK: Cell<i64> = const { Cell::new(0) };
}

/// Counts the bytes that a thread holds.
struct Counting;

fn count(bytes: i64) {
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: `ptr` comes from `alloc` above with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The reader's own buffer with some room.
const FIXED: i64 = 600 * 1024;
/// LZF can stand for 88 times its bytes; decoded entries of a packed list are a `Vec` each.
const PER_BYTE: i64 = 400;

fn bounded(input: usize, run: impl FnOnce()) {
    let before = LIVE.with(Cell::get);
    PEAK.with(|peak| peak.set(before));
    run();
    let used = PEAK.with(Cell::get) - before;
    let allowed = FIXED + PER_BYTE * input as i64;
    assert!(used <= allowed, "{used} bytes for {input} bytes of input");
}

fn read_all(bytes: &[u8]) {
    bounded(bytes.len(), || {
        let mut reader = RdbReader::new(bytes);
        let mut flavor = Flavor::Redis;
        while let Ok(Some(event)) = reader.next_event() {
            match event {
                Event::Header { flavor: f, .. } => flavor = f,
                Event::Key(key) => split(flavor, key.type_byte, key.value),
                _ => {}
            }
        }
    });
    bounded(bytes.len(), || drop(aux::read_head(bytes)));
    bounded(bytes.len(), || drop(strip_rdb(bytes, std::io::sink())));
}

fn split(flavor: Flavor, type_byte: u8, value: &[u8]) {
    let options = PieceOptions {
        min_bytes: 0,
        min_elements: 0,
        max_elements: 3,
        max_bytes: 50,
        field_hold_ms: Some(i64::MAX / 2),
    };
    if let Some(pieces) = pieces(flavor, type_byte, value, b"k", options) {
        // An error ends them.
        let count = pieces.count();
        assert!(count <= 2 * value.len() * 88 + 10, "{count} commands of {} bytes", value.len());
    }
}

fn header() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![Just(b"REDIS0011".to_vec()), Just(b"REDIS0012".to_vec()), Just(b"VALKEY080".to_vec())]
}

/// Type numbers and opcodes more often than chance has them.
fn likely() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        (0u8..26).prop_map(|n| vec![n]),
        (242u8..=255).prop_map(|n| vec![n]),
        (0usize..5).prop_map(|n| [vec![n as u8], vec![b'x'; n]].concat()),
        Just(vec![0x80, 0xff, 0xff, 0xff, 0xff]),
        Just(vec![0x81, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff]),
        Just(vec![0xc3, 0x05, 0x41, 0xb0, 0, b'a', 0xe0, 0xff, 0]),
        prop::collection::vec(any::<u8>(), 0..20),
    ];
    prop::collection::vec(part, 0..40).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        read_all(&bytes);
        bounded(bytes.len(), || drop(AuxContent::decode(&bytes)));
    }

    #[test]
    fn arbitrary_bytes_after_a_header(head in header(), rest in likely()) {
        read_all(&[head, rest].concat());
    }

    #[test]
    fn arbitrary_values(valkey: bool, type_byte in 0u8..26, value in likely()) {
        let flavor = if valkey { Flavor::Valkey } else { Flavor::Redis };
        bounded(value.len(), || split(flavor, type_byte, &value));
    }
}
