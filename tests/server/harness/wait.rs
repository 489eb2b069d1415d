//! Waiting without timing: poll until it is so, with deadlines that a loaded machine can meet.

use std::time::{Duration, Instant};

/// Factor on every deadline: `REDISDR_TEST_SLOW`, 1 when unset.
fn slow() -> f64 {
    std::env::var("REDISDR_TEST_SLOW").ok().and_then(|text| text.parse().ok()).unwrap_or(1.0)
}

/// So many seconds, times `REDISDR_TEST_SLOW`.
pub fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds).mul_f64(slow())
}

/// The usual deadline: a minute.
pub fn deadline() -> Duration {
    secs(60)
}

/// Polls `check` until it gives a value; `None` when the deadline passes first. It is asked at least twice.
pub fn poll<T>(within: Duration, mut check: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + within;
    let mut nap = Duration::from_millis(1);
    loop {
        let last = Instant::now() >= end;
        if let Some(value) = check() {
            return Some(value);
        }
        if last {
            return None;
        }
        std::thread::sleep(nap);
        nap = (nap * 2).min(Duration::from_millis(50));
    }
}

/// Polls `check` until it gives a value, or panics with `what` at the deadline.
#[track_caller]
pub fn eventually<T>(what: &str, within: Duration, check: impl FnMut() -> Option<T>) -> T {
    match poll(within, check) {
        Some(value) => value,
        None => panic!("not within {:.0} s: {what}", within.as_secs_f64()),
    }
}

/// Polls until `check` holds, or panics with `what` at the usual deadline.
#[track_caller]
pub fn until(what: &str, mut check: impl FnMut() -> bool) {
    eventually(what, deadline(), || check().then_some(()));
}
