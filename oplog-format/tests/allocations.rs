//! Lengths that bytes claim are not believed: what decoding takes from the allocator is bounded by what is there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use oplog_format::codec::{self, MAX_CONTROL_LEN};
use oplog_format::{decode_entry, parse_op, Footer, Lineage, FOOTER_LEN};

/// Notes the largest block that was asked for.
struct Noting;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands every call to the system allocator unchanged.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static NOTING: Noting = Noting;

fn largest(run: impl FnOnce()) -> usize {
    LARGEST.store(0, Ordering::Relaxed);
    run();
    LARGEST.load(Ordering::Relaxed)
}

// One test: the figure is the process's.
#[test]
fn claimed_lengths_take_no_memory() {
    for claim in [1u64 << 20, 1 << 30, 1 << 40, u64::MAX] {
        let mut bytes = claim.to_le_bytes().to_vec();
        bytes.extend_from_slice(&claim.to_le_bytes());
        let took = largest(|| {
            assert!(codec::decode::<Vec<u8>>(&bytes).is_err());
            assert!(codec::decode::<String>(&bytes).is_err());
            assert!(codec::decode::<Vec<(u64, String)>>(&bytes).is_err());
            assert!(codec::decode::<Vec<Vec<u8>>>(&bytes).is_err());
            assert!(codec::decode::<Lineage>(&bytes).is_err());
        });
        assert!(took <= 2 * MAX_CONTROL_LEN, "{took} bytes for a claim of {claim}");
    }

    let mut entry = b"DRe1\0\0\0\0".to_vec();
    entry.extend_from_slice(&u64::MAX.to_le_bytes());
    entry.extend_from_slice(&[0; 8]);
    entry.extend_from_slice(&u32::MAX.to_le_bytes());
    entry.extend_from_slice(&[0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    let footer = Footer {
        index_offset: 0,
        last_op: 0,
        last_time_ms: 0,
        entries: u64::MAX,
        ops: u64::MAX,
        points: u32::MAX,
    };
    let mut sealed = Vec::new();
    oplog_format::index::encode_index(&[], &footer, &mut sealed).unwrap();
    sealed.resize(FOOTER_LEN, 0);
    let took = largest(|| {
        assert!(decode_entry(&entry).is_ok());
        assert!(footer.decode_points(0, &sealed).is_err());
        let _ = parse_op(b"*16777216\r\n$4294967295\r\nx", &mut Vec::new());
    });
    assert!(took <= 4096, "{took} bytes");
}
