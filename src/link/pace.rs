//! A limit of bytes per second over all targets, off by default.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A token bucket that holds one second's worth.
#[derive(Debug)]
pub struct Pace {
    bytes_per_sec: Option<u64>,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    /// May be negative: a frame is never split, it is paid for afterwards.
    tokens: f64,
    filled: Instant,
}

impl Pace {
    /// No limit with `None` or 0.
    #[must_use]
    pub fn new(bytes_per_sec: Option<u64>) -> Self {
        let bytes_per_sec = bytes_per_sec.filter(|n| *n > 0);
        let tokens = bytes_per_sec.unwrap_or_default() as f64;
        Self { bytes_per_sec, bucket: Mutex::new(Bucket { tokens, filled: Instant::now() }) }
    }

    /// Takes `bytes` out of the bucket and returns how long to wait before sending them.
    pub fn take(&self, bytes: usize, now: Instant) -> Duration {
        let Some(rate) = self.bytes_per_sec else { return Duration::ZERO };
        let rate = rate as f64;
        let mut bucket = self.bucket.lock();
        let gained = now.saturating_duration_since(bucket.filled).as_secs_f64() * rate;
        bucket.filled = bucket.filled.max(now);
        bucket.tokens = (bucket.tokens + gained).min(rate) - bytes as f64;
        if bucket.tokens >= 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(-bucket.tokens / rate).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_never_waits() {
        assert_eq!(Pace::new(None).take(usize::MAX, Instant::now()), Duration::ZERO);
        assert_eq!(Pace::new(Some(0)).take(usize::MAX, Instant::now()), Duration::ZERO);
    }

    #[test]
    fn what_exceeds_the_bucket_waits_and_time_fills_it() {
        let pace = Pace::new(Some(1000));
        let now = Instant::now();
        assert_eq!(pace.take(1000, now), Duration::ZERO);
        assert_eq!(pace.take(500, now).as_millis(), 500);
        assert_eq!(pace.take(0, now + Duration::from_millis(500)), Duration::ZERO);
        assert_eq!(pace.take(1000, now + Duration::from_secs(60)), Duration::ZERO);
    }
}
