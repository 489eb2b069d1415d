//! When the log's disk will be full.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::node::Node;

/// The forecast looks back this far.
const WINDOW: Duration = Duration::from_secs(300);
/// With less to look back on there is no forecast.
const LEAST: Duration = Duration::from_secs(5);
/// Below this much the operator is warned.
const WARN_SECONDS: i64 = 3600;

/// What the disk was like in the last minutes.
#[derive(Default)]
pub struct Forecast {
    seen: VecDeque<(Instant, u64, u64)>,
}

impl Forecast {
    /// Looks at the disk and publishes when it will be full.
    pub fn look(&mut self, node: &Node) {
        let stats = node.log.stats();
        let cap = Some(node.shared.config.retain_max_bytes).filter(|c| *c > 0);
        let seconds = self.seconds(Instant::now(), stats.bytes, stats.free_bytes, cap);
        node.disk_full_in.store(seconds.unwrap_or(-1), Ordering::Relaxed);
        let text = match seconds {
            Some(s) if s < WARN_SECONDS => {
                "the log's disk is full in less than an hour at the present rate, see \
                                            disk_full_in_seconds"
            }
            _ => "",
        };
        node.warn("disk", text);
    }

    /// Seconds until the disk is full at the rate of the last minutes, at which either the log grows or, faster, the
    /// room gets less by what others write.
    fn seconds(&mut self, now: Instant, bytes: u64, free: u64, cap: Option<u64>) -> Option<i64> {
        self.seen.push_back((now, bytes, free));
        while self.seen.front().is_some_and(|(t, ..)| now.duration_since(*t) > WINDOW) {
            self.seen.pop_front();
        }
        let (then, old_bytes, old_free) = *self.seen.front()?;
        let grown = bytes.saturating_sub(old_bytes).max(old_free.saturating_sub(free));
        let over = now.duration_since(then);
        // A cap that is reached before ends it.
        let capped = cap.is_some_and(|c| c.saturating_sub(bytes) < free);
        if grown == 0 || over < LEAST || capped {
            return None;
        }
        i64::try_from(u128::from(free) * over.as_millis() / u128::from(grown) / 1000).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    #[test]
    fn the_faster_of_the_log_and_the_disk_counts() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut f = Forecast::default();
        assert_eq!(f.seconds(at(0), 0, 1000 * MB, None), None);
        assert_eq!(f.seconds(at(2), 2 * MB, 998 * MB, None), None, "too early");
        assert_eq!(f.seconds(at(10), 10 * MB, 990 * MB, None), Some(990));
        // Somebody else writes, too.
        assert_eq!(f.seconds(at(20), 20 * MB, 800 * MB, None), Some(80));
        // A cap of 100 MB is met first.
        assert_eq!(f.seconds(at(30), 30 * MB, 700 * MB, Some(100 * MB)), None);
        // Minutes later nothing grows any more.
        assert_eq!(f.seconds(at(400), 30 * MB, 700 * MB, None), None);
        assert_eq!(f.seconds(at(500), 30 * MB, 700 * MB, None), None);
    }
}
