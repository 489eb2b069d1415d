//! Appending takes nothing from the allocator for each entry, and each append is one write.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod store_support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Instant;

use redisdr::store::{Log, RealFs};
use store_support::drive::{entries, history, options};
use store_support::Rng;

struct Counting;

static CALLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands every call to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn appending_does_not_allocate() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(dir.path(), options(1 << 30), Arc::new(RealFs)).unwrap();
    log.begin_history(history(1), 1).unwrap();
    let frames: Vec<Vec<u8>> = entries(0, &vec![vec![16 * 1024 - 40]; 2000], &mut Rng::new(1))
        .into_iter()
        .map(|e| e.frame)
        .collect();
    log.append(&frames[0]).unwrap();
    let (before, begun) = (CALLS.load(Ordering::Relaxed), Instant::now());
    for frame in &frames[1..] {
        log.append(frame).unwrap();
    }
    let (calls, took) = (CALLS.load(Ordering::Relaxed) - before, begun.elapsed());
    let mb = frames.iter().map(Vec::len).sum::<usize>() / 1_000_000;
    println!("{calls} allocations for 1,999 appends, {mb} MB in {took:?}");
    // The index grows now and then, a point for 64 KiB.
    assert!(calls < 40, "{calls} allocations");
}
