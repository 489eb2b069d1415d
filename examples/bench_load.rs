//! Load generator of scripts/bench: SETs over many connections from one thread, cheap enough that on two cores the
//! server's main thread is what limits.
//!
//! `bench_load PORT REQUESTS CLIENTS PIPELINE SIZE KEYS [RATE [VALUES]]` prints one line of JSON: requests per second, and
//! the median and 99th percentile of the time from a pipeline's send to its last reply, in milliseconds. With a RATE above
//! 0, requests come at that many a second, evenly, whatever the server does: one that finds no free connection waits, and
//! its time counts from when it was due. VALUES is a file of values, one behind the other with an empty line between, which
//! are taken in turn instead of those of SIZE bytes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::{Duration, Instant};

const USAGE: &str = "usage: bench_load PORT REQUESTS CLIENTS PIPELINE SIZE KEYS [RATE [VALUES]]";

/// What the server says to each SET.
const REPLY: &[u8] = b"+OK\r\n";
const DIGITS: usize = 12;
const SILENT_MS: i32 = 60_000;

struct Load {
    keys: u64,
    random: u64,
    /// Where not empty: values, and which comes next.
    values: Vec<Vec<u8>>,
    turn: usize,
}

impl Load {
    /// xorshift64: good enough to spread keys.
    fn next_key(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % self.keys
    }

    /// The next of the given values.
    fn next_value(&mut self) -> &[u8] {
        self.turn = (self.turn + 1) % self.values.len().max(1);
        self.values.get(self.turn).map(Vec::as_slice).unwrap_or_default()
    }
}

struct Client {
    stream: TcpStream,
    /// One pipeline, in which only the digits of the keys change.
    out: Vec<u8>,
    /// Where the digits begin.
    slots: Vec<usize>,
    due: usize,
    sent: Instant,
}

impl Client {
    fn connect(port: u16, pipeline: u64, size: usize) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        let (mut out, mut slots) = (Vec::new(), Vec::new());
        for _ in 0..pipeline {
            write!(out, "*3\r\n$3\r\nSET\r\n${}\r\nkey:", DIGITS + 4)?;
            slots.push(out.len());
            out.extend_from_slice(&[b'0'; DIGITS]);
            write!(out, "\r\n${size}\r\n")?;
            out.extend((0..size).map(|i| b'a' + u8::try_from(i % 26).unwrap_or(0)));
            out.extend_from_slice(b"\r\n");
        }
        Ok(Self { stream, out, slots, due: 0, sent: Instant::now() })
    }

    /// Sends the next pipeline, which was due at `due`. Blocking: the server has answered everything before.
    fn send(&mut self, load: &mut Load, due: Instant) -> io::Result<()> {
        if !load.values.is_empty() {
            self.out.clear();
            for slot in &mut self.slots {
                write!(self.out, "*3\r\n$3\r\nSET\r\n${}\r\nkey:", DIGITS + 4)?;
                *slot = self.out.len();
                self.out.extend_from_slice(&[b'0'; DIGITS]);
                let value = load.next_value();
                write!(self.out, "\r\n${}\r\n", value.len())?;
                self.out.extend_from_slice(value);
                self.out.extend_from_slice(b"\r\n");
            }
        }
        for at in &self.slots {
            let mut key = load.next_key();
            for digit in self.out.iter_mut().skip(*at).take(DIGITS).rev() {
                *digit = b'0' + u8::try_from(key % 10).unwrap_or(0);
                key /= 10;
            }
        }
        self.due = self.slots.len() * REPLY.len();
        self.sent = due;
        self.stream.write_all(&self.out)
    }

    /// Reads what is there; whether the pipeline is answered.
    fn hear(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        let n = self.stream.read(buf)?;
        let heard = buf.get(..n).unwrap_or_default();
        if n == 0 || n > self.due || heard.contains(&b'-') {
            let text = String::from_utf8_lossy(heard).into_owned();
            return Err(io::Error::other(format!("unexpected reply: {text:?}")));
        }
        self.due -= n;
        Ok(self.due == 0)
    }
}

fn ready(fd: &libc::c_int, events: &mut [libc::epoll_event]) -> io::Result<usize> {
    let room = libc::c_int::try_from(events.len()).unwrap_or(libc::c_int::MAX);
    // SAFETY: `events` has room for as many events as are asked for.
    let n = unsafe { libc::epoll_wait(*fd, events.as_mut_ptr(), room, SILENT_MS) };
    match usize::try_from(n) {
        Ok(0) => Err(io::Error::other("no reply for a minute")),
        Ok(n) => Ok(n),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// A timer that is ready to read each `interval`.
fn timer(interval: Duration) -> io::Result<File> {
    // SAFETY: takes no pointer.
    let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let timer = unsafe { File::from_raw_fd(fd) };
    let nanos = i64::try_from(interval.as_nanos()).map_err(io::Error::other)?.max(1);
    let time = libc::timespec { tv_sec: nanos / 1_000_000_000, tv_nsec: nanos % 1_000_000_000 };
    let every = libc::itimerspec { it_interval: time, it_value: time };
    // SAFETY: `every` is read before the call returns, and no former value is asked for.
    match unsafe { libc::timerfd_settime(fd, 0, &raw const every, std::ptr::null_mut()) } {
        0 => Ok(timer),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Adds a descriptor to what is waited for.
fn watch(epoll: libc::c_int, socket: libc::c_int, id: u64) -> io::Result<()> {
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: id };
    // SAFETY: both descriptors are open, and the event is read before the call returns.
    match unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, socket, &raw mut event) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// When requests are due.
struct Schedule {
    timer: Option<File>,
    interval: Duration,
    /// When the next one is.
    next: Instant,
    left: u64,
}

impl Schedule {
    fn new(requests: u64, rate: u64) -> io::Result<Self> {
        let interval = Duration::from_nanos(1_000_000_000u64.checked_div(rate).unwrap_or(0));
        let timer = if rate > 0 { Some(timer(interval)?) } else { None };
        Ok(Self { timer, interval, next: Instant::now(), left: requests })
    }

    /// The next request, if one is due.
    fn take(&mut self) -> Option<Instant> {
        let now = Instant::now();
        if self.left == 0 || (self.timer.is_some() && self.next > now) {
            return None;
        }
        self.left -= 1;
        if self.timer.is_none() {
            return Some(now);
        }
        let due = self.next;
        self.next += self.interval;
        Some(due)
    }

    fn heard(&mut self) {
        if let Some(timer) = &mut self.timer {
            // How often it was due is known by the clock.
            let _ = timer.read(&mut [0; 8]);
        }
    }
}

fn run(args: &[u64], values: Vec<Vec<u8>>) -> io::Result<String> {
    let (&[port, requests, clients, pipeline, size, keys], rate) = match args {
        [first @ .., rate] if args.len() == 7 => (first.try_into().map_err(io::Error::other)?, *rate),
        _ => (args.try_into().map_err(|_| io::Error::other(USAGE))?, 0),
    };
    let port = u16::try_from(port).map_err(io::Error::other)?;
    let size = usize::try_from(size).map_err(io::Error::other)?;
    let mut load = Load { keys, random: 0x9e37_79b9_7f4a_7c15, values, turn: 0 };
    // SAFETY: takes no pointer.
    let fd = unsafe { libc::epoll_create1(0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut all = Vec::new();
    for id in 0..clients {
        let client = Client::connect(port, pipeline, size)?;
        watch(fd, client.stream.as_raw_fd(), id)?;
        all.push(client);
    }
    let requests = requests / pipeline.max(1);
    let mut times = Vec::with_capacity(usize::try_from(requests).unwrap_or(0) + 1);
    let began = Instant::now();
    let mut schedule = Schedule::new(requests, rate / pipeline.max(1))?;
    if let Some(timer) = &schedule.timer {
        watch(fd, timer.as_raw_fd(), clients)?;
    }
    let mut idle: Vec<usize> = (0..all.len()).rev().collect();
    let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; all.len() + 1];
    let mut buf = vec![0u8; 64 * 1024];
    loop {
        while let Some(id) = idle.pop() {
            let Some(due) = schedule.take() else {
                idle.push(id);
                break;
            };
            if let Some(client) = all.get_mut(id) {
                client.send(&mut load, due)?;
            }
        }
        if schedule.left == 0 && idle.len() == all.len() {
            break;
        }
        let n = ready(&fd, &mut events)?;
        for event in events.iter().take(n) {
            let id = usize::try_from(event.u64).unwrap_or(usize::MAX);
            let Some(client) = all.get_mut(id) else {
                schedule.heard();
                continue;
            };
            if client.hear(&mut buf)? {
                times.push(client.sent.elapsed());
                // What is due goes out before other replies are read.
                match schedule.take() {
                    Some(due) => client.send(&mut load, due)?,
                    None => idle.push(id),
                }
            }
        }
    }
    let took = began.elapsed().as_secs_f64();
    times.sort_unstable();
    let at =
        |percent: usize| times.get(times.len() * percent / 100).map_or(0.0, |t| t.as_secs_f64() * 1000.0);
    let rps = (times.len() as u64 * pipeline) as f64 / took;
    Ok(format!("{{\"rps\": {rps:.1}, \"p50\": {:.4}, \"p99\": {:.4}}}", at(50), at(99)))
}

/// The values in a file, without empty ones.
fn values(path: &str) -> io::Result<Vec<Vec<u8>>> {
    let text = std::fs::read_to_string(path)?;
    Ok(text.split("\n\n").filter(|v| !v.is_empty()).map(|v| v.as_bytes().to_vec()).collect())
}

fn main() {
    let mut given: Vec<String> = std::env::args().skip(1).collect();
    let file = given.split_off(given.len().min(7)).pop();
    let args: Vec<u64> = given.iter().map(|a| a.parse().unwrap_or(0)).collect();
    let values = file.map_or(Ok(Vec::new()), |path| values(&path));
    match values.and_then(|values| run(&args, values)) {
        Ok(line) => println!("{line}"),
        Err(e) => {
            eprintln!("bench_load: {e}");
            std::process::exit(1);
        }
    }
}
