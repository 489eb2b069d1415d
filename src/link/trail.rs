//! When the ops that a target still lacks were written, to tell its lag in time without comparing two clocks:
//! entry times and `now` are both the source's.

use std::collections::VecDeque;

use oplog_format::OpId;

/// Most runs that are remembered; above it neighbours are joined.
const MAX_RUNS: usize = 1024;

#[derive(Debug, Clone, Copy)]
struct Run {
    last: OpId,
    time_ms: u64,
}

/// Runs of ops that were sent to a target, with the time of the first op of each.
#[derive(Debug, Default)]
pub struct Trail {
    runs: VecDeque<Run>,
    /// Runs with less than this between their times are joined.
    grain_ms: u64,
    /// The position that was found behind without a run that covers the next op.
    behind: Option<Behind>,
}

#[derive(Debug, Clone, Copy)]
struct Behind {
    at: OpId,
    since_ms: u64,
    /// Read from the log; otherwise since it was noticed.
    read: bool,
}

impl Trail {
    /// Ops up to `last` are about to be sent; the first of them was written at `time_ms`.
    pub fn sent(&mut self, last: OpId, time_ms: u64) {
        self.push(Run { last, time_ms });
        while self.runs.len() > MAX_RUNS {
            // Coarser everywhere alike, so that old runs do not grow beyond measure.
            self.grain_ms = self.grain_ms.saturating_mul(2).max(1);
            std::mem::take(&mut self.runs).into_iter().for_each(|run| self.push(run));
        }
    }

    /// Appends a run, or joins it to the one before where less than a grain lies between their times.
    fn push(&mut self, run: Run) {
        match self.runs.back_mut() {
            Some(before) if run.time_ms < before.time_ms.saturating_add(self.grain_ms) => {
                before.last = run.last
            }
            _ => self.runs.push_back(run),
        }
    }

    /// A new session starts: what was sent before says nothing any more.
    pub fn restart(&mut self) {
        self.runs.clear();
        self.grain_ms = 0;
    }

    /// Whether a time for the op above `applied` is known.
    #[must_use]
    pub fn knows(&self, applied: OpId) -> bool {
        self.runs.back().is_some_and(|r| r.last > applied)
            || self.behind.is_some_and(|b| b.at == applied && b.read)
    }

    /// The op above `applied` was written at `time_ms`.
    pub fn learn(&mut self, applied: OpId, time_ms: u64) {
        self.behind = Some(Behind { at: applied, since_ms: time_ms, read: true });
    }

    /// How long the op above `applied` has waited, in milliseconds; 0 where the target has everything.
    pub fn lag_ms(&mut self, applied: OpId, written: OpId, now_ms: u64) -> u64 {
        while self.runs.front().is_some_and(|r| r.last <= applied) {
            self.runs.pop_front();
        }
        if applied >= written {
            self.behind = None;
            self.grain_ms = 0;
            return 0;
        }
        if let Some(run) = self.runs.front() {
            return now_ms.saturating_sub(run.time_ms);
        }
        match self.behind {
            Some(b) if b.at == applied => now_ms.saturating_sub(b.since_ms),
            _ => {
                self.behind = Some(Behind { at: applied, since_ms: now_ms, read: false });
                0
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_the_age_of_the_first_op_that_is_missing() {
        let mut t = Trail::default();
        t.sent(100, 1000);
        t.sent(200, 2000);
        assert_eq!(t.lag_ms(0, 200, 5000), 4000);
        assert_eq!(t.lag_ms(100, 200, 5000), 3000);
        assert_eq!(t.lag_ms(200, 200, 5000), 0);
        // Written long after the last run, not sent yet: counts from when it was seen.
        assert_eq!(t.lag_ms(200, 300, 900_000), 0);
        assert_eq!(t.lag_ms(200, 300, 900_500), 500);
        // Until the log says when it was.
        assert!(!t.knows(200));
        t.learn(200, 800_000);
        assert!(t.knows(200));
        assert_eq!(t.lag_ms(200, 300, 900_500), 100_500);
    }

    #[test]
    fn many_runs_are_joined_and_stay_bounded() {
        let mut t = Trail::default();
        (1..100_000u64).for_each(|n| t.sent(n, n));
        assert!(t.runs.len() <= MAX_RUNS);
        let lag = t.lag_ms(50_000, 100_000, 100_000);
        assert!((49_000..=51_000).contains(&lag), "{lag}");
    }
}
