//! Real servers without the module, a proxy that disturbs connections, and a sink that keeps what a tap reads.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use oplog_format::{decode_entry, Decoded, History, OpId};
use redisdr::capture::settings::Dial;
use redisdr::capture::{
    attach, AttachError, AttachRequest, Attached, Resume, SettingsJournal, Stop, Tap, TapEnd, TapSink,
    TapStopper,
};
use redisdr::local::{Address, Conn, Reply, Secret};

/// Binaries to test with: `REDISDR_TEST_SERVERS` (separated by colons), else all that `scripts/servers` lists.
pub fn servers() -> Vec<PathBuf> {
    if let Ok(list) = std::env::var("REDISDR_TEST_SERVERS") {
        return list.split(':').filter(|p| !p.is_empty()).map(PathBuf::from).collect();
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/servers");
    let out =
        Command::new(script).arg("--list").stderr(Stdio::inherit()).output().expect("scripts/servers runs");
    assert!(out.status.success(), "scripts/servers --list failed");
    let list = String::from_utf8(out.stdout).unwrap();
    let all: Vec<PathBuf> =
        list.lines().filter_map(|l| l.split_whitespace().nth(1)).map(PathBuf::from).collect();
    assert!(!all.is_empty(), "scripts/servers lists nothing");
    all
}

/// Waits with a generous deadline.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub struct Server {
    child: Child,
    pub port: u16,
    pub dir: tempfile::TempDir,
    pub dial: Dial,
}

impl Server {
    pub fn start(binary: &PathBuf, args: &[&str]) -> Self {
        Self::launch(binary, &[], &[&["--save", ""], args].concat())
    }

    /// Starts it with arguments before and behind those that every server gets.
    pub fn launch(binary: &PathBuf, before: &[&str], args: &[&str]) -> Self {
        // Between finding a free port and the server's bind another test may have taken it.
        (0..10).find_map(|_| Self::try_launch(binary, before, args)).expect("a server that starts")
    }

    fn try_launch(binary: &PathBuf, before: &[&str], args: &[&str]) -> Option<Self> {
        let dir = tempfile::Builder::new().prefix("capture-").tempdir().unwrap();
        let port = free_port();
        let log = dir.path().join("log");
        let child = Command::new(binary)
            .args(before)
            .args(["--port", &port.to_string(), "--dir", dir.path().to_str().unwrap()])
            .args(["--logfile", log.to_str().unwrap()])
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a redis-server is needed");
        let dial = Dial { addr: Address::Tcp("127.0.0.1".to_owned(), port), secret: Secret(None) };
        let mut server = Self { child, port, dir, dial };
        let mut ended = false;
        until("the server starts", || {
            ended = server.child.try_wait().unwrap().is_some();
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            ended || ["eady to accept connections", "Sentinel ID is"].iter().any(|line| text.contains(line))
        });
        (!ended).then_some(server)
    }

    pub fn conn(&self) -> Conn {
        Conn::open(&self.dial.addr, &self.dial.secret).unwrap()
    }

    pub fn call(&self, args: &[&str]) -> Reply {
        call(&mut self.conn(), args)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    pub fn info(&self, section: &str, field: &str) -> Option<String> {
        self.conn().info(section).unwrap().get(field).cloned()
    }

    /// What tells whether the server forked; the log is the only witness on 6.0.
    pub fn forks(&self) -> (Option<String>, Option<String>, usize) {
        let lines = self.log();
        let forked = ["Background saving started", "Background RDB transfer started"];
        let count = lines.lines().filter(|l| forked.iter().any(|f| l.contains(f))).count();
        (self.info("stats", "total_forks"), self.info("stats", "latest_fork_usec"), count)
    }

    pub fn settings(&self) -> Vec<Option<String>> {
        let mut conn = self.conn();
        ["repl-diskless-sync", "repl-diskless-sync-delay", "repl-diskless-sync-max-replicas"]
            .iter()
            .map(|n| conn.config_get(n).unwrap())
            .collect()
    }

    pub fn exited(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn call(conn: &mut Conn, args: &[&str]) -> Reply {
    let args: Vec<&[u8]> = args.iter().map(|a| a.as_bytes()).collect();
    conn.call(&args).unwrap()
}

/// What a server without the module does instead of DR._SELECT.
pub const SELECT: &[&[&[u8]]] =
    &[&[b"SELECT", b"1"], &[b"PUBLISH", b"capture", b""], &[b"SELECT", b"0"], &[b"PUBLISH", b"capture", b""]];

pub fn attach_to(dial: &Dial, resume: Option<Resume>) -> Result<Attached, AttachError> {
    attach(&AttachRequest { resume, force_select: SELECT, ..AttachRequest::new(dial) })
}

#[derive(Default)]
pub struct Kept {
    pub frames: Vec<u8>,
    pub changes: Vec<(History, OpId)>,
    pub refuse: bool,
}

#[derive(Clone, Default)]
pub struct Sink(pub Arc<Mutex<Kept>>);

impl TapSink for Sink {
    fn entries(&mut self, frames: &[u8], _last_op: OpId) -> Result<(), Stop> {
        let mut kept = self.0.lock().unwrap();
        if kept.refuse {
            return Err(Stop { reason: "full".to_owned() });
        }
        kept.frames.extend_from_slice(frames);
        Ok(())
    }

    fn history_changed(&mut self, history: History, first_op: OpId) -> Result<(), Stop> {
        self.0.lock().unwrap().changes.push((history, first_op));
        Ok(())
    }
}

impl Sink {
    /// The bytes of the stream that were kept, checked to be contiguous behind `base`.
    pub fn payload(&self, base: OpId) -> Vec<u8> {
        let kept = self.0.lock().unwrap();
        let (mut rest, mut last, mut out) = (&kept.frames[..], base, Vec::new());
        while !rest.is_empty() {
            let Decoded::Entry(e) = decode_entry(rest).unwrap() else { panic!("a frame is cut off") };
            assert_eq!(e.header.first_op(), last + 1, "entries are contiguous");
            last = e.header.meta.last_op;
            out.extend_from_slice(e.payload);
            rest = &rest[e.frame.len()..];
        }
        out
    }
}

pub struct Running {
    pub stopper: TapStopper,
    pub thread: JoinHandle<TapEnd>,
}

impl Running {
    pub fn start(attached: Attached, base: OpId, sink: &Sink) -> Self {
        let tap = Tap::new(attached, base, 1).unwrap();
        let stopper = tap.stopper().unwrap();
        let mut sink = sink.clone();
        Self { stopper, thread: std::thread::spawn(move || tap.run(&mut sink)) }
    }

    pub fn stop(self) -> TapEnd {
        self.stopper.stop();
        self.thread.join().unwrap()
    }
}

/// Writers that write until they are told to stop; each op counts in the key `n` of its db.
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u64>>,
}

impl Load {
    pub fn start(server: &Server, writers: usize, value: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..writers)
            .map(|w| {
                let (mut conn, stop) = (server.conn(), Arc::clone(&stop));
                std::thread::spawn(move || {
                    let value = vec![b'v'; value];
                    let mut done = 0;
                    call(&mut conn, &["SELECT", &(w % 4).to_string()]);
                    while !stop.load(Ordering::Relaxed) {
                        conn.push(&[b"SET", format!("k{done}").as_bytes(), &value]);
                        conn.push(&[b"MULTI"]);
                        conn.push(&[b"INCR", b"n"]);
                        conn.push(&[b"RPUSH", b"l", b"\r\n$4\r\n"]);
                        conn.push(&[b"LPOP", b"l"]);
                        conn.push(&[b"EXEC"]);
                        conn.flush().unwrap();
                        for _ in 0..6 {
                            conn.read_reply().unwrap();
                        }
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        Self { stop, threads }
    }

    pub fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|t| t.join().unwrap()).sum()
    }
}

#[derive(Default)]
pub struct Journal(pub Mutex<Vec<(String, String)>>);

impl SettingsJournal for Journal {
    fn remember(&self, settings: &[(String, String)]) {
        *self.0.lock().unwrap() = settings.to_vec();
    }
    fn forget(&self) {
        self.0.lock().unwrap().clear();
    }
    fn remembered(&self) -> Vec<(String, String)> {
        self.0.lock().unwrap().clone()
    }
}

/// What a proxy does with a piece that a client sent: forward it, or cut the connection before.
pub type Rule = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// Forwards connections to a server as long as its rule says so.
pub struct Proxy {
    pub dial: Dial,
    pub open: Arc<AtomicBool>,
}

impl Proxy {
    pub fn start(server: &Server, rule: Rule) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (to, open) = (server.port, Arc::new(AtomicBool::new(true)));
        let accept = Arc::clone(&open);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                if !accept.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", to)) else { return };
                let (mut c2, mut s2) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || pass(&mut s2, &mut c2, &|_| true));
                let (mut client, mut server, rule) = (client, server, Arc::clone(&rule));
                std::thread::spawn(move || pass(&mut client, &mut server, &*rule));
            }
        });
        let dial = Dial { addr: Address::Tcp("127.0.0.1".to_owned(), port), secret: Secret(None) };
        Self { dial, open }
    }
}

fn pass(from: &mut TcpStream, to: &mut TcpStream, rule: &dyn Fn(&[u8]) -> bool) {
    let mut buf = vec![0; 64 * 1024];
    while let Ok(n) = from.read(&mut buf) {
        if n == 0 || !rule(&buf[..n]) || to.write_all(&buf[..n]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
