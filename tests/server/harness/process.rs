//! What the kernel says of a server's process.

use std::fs;
use std::time::Duration;

use super::server::Server;

impl Server {
    fn proc_field(&self, field: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .expect("a field of /proc/pid/status")
    }

    /// Resident memory, KiB.
    pub fn rss_kb(&self) -> u64 {
        self.proc_field("VmRSS")
    }

    /// Highest resident memory so far, KiB.
    pub fn peak_rss_kb(&self) -> u64 {
        self.proc_field("VmHWM")
    }

    /// CPU time of the main thread, user and system.
    pub fn cpu_main(&self) -> Duration {
        cpu_of(&format!("/proc/{0}/task/{0}/stat", self.pid()))
    }

    /// CPU time of all threads.
    pub fn cpu(&self) -> Duration {
        cpu_of(&format!("/proc/{}/stat", self.pid()))
    }
}

fn cpu_of(path: &str) -> Duration {
    let text = fs::read_to_string(path).unwrap_or_default();
    // The name in brackets may hold anything; user and system time are fields 14 and 15, 12 and 13 after it.
    let fields: Vec<&str> = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().map(|at| fields[*at].parse::<u64>().expect("ticks")).sum();
    // SAFETY: sysconf takes no pointers.
    let rate = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as u64;
    Duration::from_millis(ticks * 1000 / rate)
}
