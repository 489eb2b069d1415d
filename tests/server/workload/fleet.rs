//! Several drivers at once, each with its own connections and seed.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::coverage::Coverage;
use super::driver::Driver;
use super::table::CommandTable;

#[derive(Default)]
struct Gate {
    paused: bool,
    stopping: bool,
    /// Drivers inside a batch.
    busy: usize,
    /// Drivers that ended early, with their reason.
    failed: Vec<String>,
}

#[derive(Default)]
struct Shared {
    gate: Mutex<Gate>,
    changed: Condvar,
    steps: AtomicU64,
}

pub struct Fleet {
    addr: SocketAddr,
    table: Arc<CommandTable>,
    seed: u64,
    shared: Arc<Shared>,
    drivers: Vec<JoinHandle<Coverage>>,
}

impl Fleet {
    /// Starts `n` drivers with seeds `seed`, `seed + 1`...
    pub fn start(addr: SocketAddr, table: &Arc<CommandTable>, seed: u64, n: u64) -> Fleet {
        let shared = Arc::new(Shared::default());
        let drivers = (0..n)
            .map(|lane| {
                let (shared, table) = (shared.clone(), table.clone());
                std::thread::spawn(move || drive(&shared, addr, seed + lane, table))
            })
            .collect();
        Fleet { addr, table: table.clone(), seed, shared, drivers }
    }

    /// Steps run so far.
    pub fn steps(&self) -> u64 {
        self.shared.steps.load(Ordering::Relaxed)
    }

    /// Waits until so many more steps have run.
    pub fn run_steps(&self, more: u64) {
        let target = self.steps() + more;
        let deadline = Instant::now() + Duration::from_secs(180);
        let mut gate = self.shared.gate.lock().unwrap();
        while self.steps() < target {
            assert!(gate.failed.is_empty(), "the workload stopped: {}", gate.failed.join("; "));
            assert!(Instant::now() < deadline, "the workload ran {} of {target} steps", self.steps());
            gate = self.shared.changed.wait_timeout(gate, Duration::from_millis(50)).unwrap().0;
        }
    }

    /// Returns when every driver stands still with no command under way.
    pub fn pause(&self) {
        let mut gate = self.shared.gate.lock().unwrap();
        gate.paused = true;
        while gate.busy > 0 {
            gate = self.shared.changed.wait(gate).unwrap();
        }
        assert!(gate.failed.is_empty(), "the workload stopped: {}", gate.failed.join("; "));
    }

    pub fn resume(&self) {
        self.shared.gate.lock().unwrap().paused = false;
        self.shared.changed.notify_all();
    }

    /// Ends all drivers and returns what they covered together.
    pub fn stop(mut self) -> Coverage {
        self.end();
        let mut all = Coverage::default();
        for driver in self.drivers.drain(..) {
            all.merge(&driver.join().expect("a driver panicked"));
        }
        let gate = self.shared.gate.lock().unwrap();
        assert!(gate.failed.is_empty(), "the workload stopped: {}", gate.failed.join("; "));
        all
    }

    /// As [`Fleet::stop`], after more steps for as long as some command has not had effect: which ones do in a short
    /// run is a matter of luck. At most ten times; what is still missing then is a gap.
    pub fn stop_when_covered(self) -> Coverage {
        let (addr, table, seed, n) = (self.addr, self.table.clone(), self.seed, self.drivers.len() as u64);
        let mut all = self.stop();
        for more in 1..=10 {
            if all.gaps(&table).is_empty() {
                break;
            }
            let fleet = Fleet::start(addr, &table, seed + 100_000 * more, n);
            fleet.run_steps(3000);
            all.merge(&fleet.stop());
        }
        all
    }

    /// Rounds of so many steps with a comparison in the pause behind each, and one more when all is covered; `compare`
    /// is told when.
    pub fn run_rounds(self, rounds: usize, steps: u64, compare: impl Fn(&str)) -> Coverage {
        for _ in 0..rounds {
            self.run_steps(steps);
            self.pause();
            compare(&format!("after {} steps", self.steps()));
            self.resume();
        }
        let coverage = self.stop_when_covered();
        compare("at the end");
        coverage
    }

    fn end(&self) {
        self.shared.gate.lock().unwrap().stopping = true;
        self.shared.changed.notify_all();
    }
}

impl Drop for Fleet {
    /// A failed test leaves no driver behind.
    fn drop(&mut self) {
        if let Ok(mut gate) = self.shared.gate.lock() {
            gate.stopping = true;
        }
        self.shared.changed.notify_all();
        for driver in self.drivers.drain(..) {
            let _ = driver.join();
        }
    }
}

fn drive(shared: &Shared, addr: SocketAddr, seed: u64, table: Arc<CommandTable>) -> Coverage {
    let fail = |e: std::io::Error| {
        shared.gate.lock().unwrap().failed.push(format!("seed {seed}: {e}"));
        shared.changed.notify_all();
    };
    let mut driver = match Driver::open(addr, seed, table) {
        Ok(driver) => driver,
        Err(e) => {
            fail(e);
            return Coverage::default();
        }
    };
    loop {
        let mut gate = shared.gate.lock().unwrap();
        while gate.paused && !gate.stopping {
            gate = shared.changed.wait(gate).unwrap();
        }
        if gate.stopping {
            break;
        }
        gate.busy += 1;
        drop(gate);
        let result = driver.run_some();
        shared.gate.lock().unwrap().busy -= 1;
        shared.steps.fetch_add(*result.as_ref().unwrap_or(&0), Ordering::Relaxed);
        shared.changed.notify_all();
        if let Err(e) = result {
            fail(e);
            break;
        }
    }
    driver.coverage().clone()
}
