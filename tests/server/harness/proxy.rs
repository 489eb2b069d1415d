//! A TCP proxy that stands between a target and a source and does harm on request.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::ports::Port;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the one that connected (a target) to the upstream (a source).
    Up,
    /// From the upstream to the one that connected.
    Down,
}

/// What happens to a connection's byte stream at a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Both sides' connections are closed.
    Cut,
    /// Nothing more goes that way; that way's end sees a clean end of stream, the other way goes on.
    Truncate,
    /// So many bytes vanish, what follows goes on.
    Drop(u64),
    /// That bit (0..8) of the byte is turned.
    Flip(u8),
    /// From there on nothing more is forwarded that way, and both connections stay open.
    Stall,
}

#[derive(Debug, Clone, Copy)]
struct Fault {
    direction: Direction,
    at: u64,
    action: Action,
}

#[derive(Debug, Default)]
struct Shared {
    upstream: Mutex<String>,
    closing: AtomicBool,
    refuse: AtomicBool,
    frozen: AtomicBool,
    delay_us: AtomicU64,
    bytes_per_second: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
    accepted: AtomicU64,
    fired: AtomicU64,
    faults: Mutex<Vec<Fault>>,
    open: Mutex<Vec<(TcpStream, TcpStream)>>,
}

/// The proxy; it ends with its connections when this is dropped.
#[derive(Debug)]
pub struct Proxy {
    port: Port,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Listens on a free port and forwards to `upstream` (`host:port`).
    pub fn start(upstream: impl ToString) -> Proxy {
        let port = Port::pick();
        let shared = Arc::new(Shared { upstream: Mutex::new(upstream.to_string()), ..Shared::default() });
        let listener = TcpListener::bind(port.addr()).unwrap();
        let served = Arc::clone(&shared);
        std::thread::spawn(move || serve(&listener, &served));
        Proxy { port, shared }
    }

    /// Where it listens, `127.0.0.1:<port>`.
    pub fn addr(&self) -> String {
        self.port.addr()
    }

    /// From the next connection on, forwards to another place.
    pub fn redirect(&self, upstream: impl ToString) {
        *self.shared.upstream.lock().unwrap() = upstream.to_string();
    }

    /// Closes all connections now.
    pub fn cut(&self) {
        for (a, b) in self.shared.open.lock().unwrap().drain(..) {
            let _ = (a.shutdown(Shutdown::Both), b.shutdown(Shutdown::Both));
        }
    }

    /// While true, each new connection is closed at once; open ones go on.
    pub fn refuse(&self, refuse: bool) {
        self.shared.refuse.store(refuse, Ordering::SeqCst);
    }

    /// Refuses and cuts: the link is down until [`Proxy::heal`].
    pub fn down(&self) {
        self.refuse(true);
        self.cut();
    }

    /// While true nothing is forwarded either way, and connections stay open: a network that swallows packets.
    pub fn freeze(&self, frozen: bool) {
        self.shared.frozen.store(frozen, Ordering::SeqCst);
    }

    /// Each piece that is read waits so long before it goes on.
    pub fn delay(&self, delay: Duration) {
        self.shared.delay_us.store(delay.as_micros() as u64, Ordering::SeqCst);
    }

    /// Forwards at most so much per second and way; 0 is no limit.
    pub fn throttle(&self, bytes_per_second: u64) {
        self.shared.bytes_per_second.store(bytes_per_second, Ordering::SeqCst);
    }

    /// Arms a fault, for one time: the first connection whose stream in that direction gets to byte `at` (counted from
    /// its begin, from 0) meets it. A connection that is already beyond does not.
    pub fn fault(&self, direction: Direction, at: u64, action: Action) {
        self.shared.faults.lock().unwrap().push(Fault { direction, at, action });
    }

    /// No more harm: disarms all faults, forwards as fast as it can.
    pub fn heal(&self) {
        self.shared.faults.lock().unwrap().clear();
        self.refuse(false);
        self.freeze(false);
        self.delay(Duration::ZERO);
        self.throttle(0);
    }

    /// Bytes that were forwarded that way, over all connections.
    pub fn bytes(&self, direction: Direction) -> u64 {
        self.shared.counter(direction).load(Ordering::SeqCst)
    }

    /// Connections that were accepted, refused ones too.
    pub fn connections(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Faults that were met.
    pub fn fired(&self) -> u64 {
        self.shared.fired.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        self.cut();
        let _ = TcpStream::connect(self.addr()); // wakes the thread that accepts
    }
}

impl Shared {
    fn counter(&self, direction: Direction) -> &AtomicU64 {
        match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        }
    }

    /// Takes the first fault that lies in bytes `from..to` of that direction.
    fn take(&self, direction: Direction, from: u64, to: u64) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let hit = |fault: &&Fault| fault.direction == direction && (from..to).contains(&fault.at);
        let first = faults.iter().filter(hit).map(|fault| fault.at).min()?;
        let at = faults.iter().position(|fault| fault.direction == direction && fault.at == first)?;
        self.fired.fetch_add(1, Ordering::SeqCst);
        Some(faults.remove(at))
    }

    fn pause(&self, len: usize) {
        let mut nap = Duration::from_micros(self.delay_us.load(Ordering::SeqCst));
        let rate = self.bytes_per_second.load(Ordering::SeqCst);
        if rate > 0 {
            nap += Duration::from_secs_f64(len as f64 / rate as f64);
        }
        std::thread::sleep(nap);
        while self.frozen.load(Ordering::SeqCst) && !self.closing.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn serve(listener: &TcpListener, shared: &Arc<Shared>) {
    for incoming in listener.incoming() {
        if shared.closing.load(Ordering::SeqCst) {
            return;
        }
        let Ok(near) = incoming else { continue };
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        if !shared.refuse.load(Ordering::SeqCst) {
            let _ = connect(near, shared); // an upstream that is down closes the connection
        }
    }
}

fn connect(near: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    let upstream = shared.upstream.lock().unwrap().clone();
    let far = TcpStream::connect(upstream)?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let mut open = shared.open.lock().unwrap();
    open.push((near.try_clone()?, far.try_clone()?));
    // A cut that came between accept and now would have missed this pair.
    if shared.refuse.load(Ordering::SeqCst) {
        let _ = (near.shutdown(Shutdown::Both), far.shutdown(Shutdown::Both));
    }
    drop(open);
    for (direction, from, to) in
        [(Direction::Up, near.try_clone()?, far.try_clone()?), (Direction::Down, far, near)]
    {
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            let mut pump = Pump { shared: &shared, direction, from, to, at: 0, skip: 0 };
            if pump.run().is_err() {
                pump.close();
            }
        });
    }
    Ok(())
}

/// One direction of one connection.
struct Pump<'a> {
    shared: &'a Shared,
    direction: Direction,
    from: TcpStream,
    to: TcpStream,
    at: u64,
    skip: u64,
}

impl Pump<'_> {
    fn run(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; 16 << 10];
        loop {
            // Small reads when throttled, so that a limit is kept within fractions of a second.
            let rate = self.shared.bytes_per_second.load(Ordering::SeqCst) as usize;
            let most = if rate > 0 { (rate / 20).clamp(1, buffer.len()) } else { buffer.len() };
            let len = self.from.read(&mut buffer[..most])?;
            if len == 0 {
                return self.to.shutdown(Shutdown::Write);
            }
            self.shared.pause(len);
            if !self.pass(&mut buffer[..len])? {
                // Truncated or stalled: whatever still comes is read and thrown away.
                while self.from.read(&mut buffer)? > 0 {}
                return Ok(());
            }
        }
    }

    /// Forwards `bytes` with the faults that lie in them; false: nothing more goes this way.
    fn pass(&mut self, mut bytes: &mut [u8]) -> io::Result<bool> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let gone = self.skip.min(bytes.len() as u64);
                self.skip -= gone;
                self.at += gone;
                bytes = &mut bytes[gone as usize..];
                continue;
            }
            let Some(fault) = self.shared.take(self.direction, self.at, self.at + bytes.len() as u64) else {
                self.forward(bytes)?;
                return Ok(true);
            };
            let (head, tail) = bytes.split_at_mut((fault.at - self.at) as usize);
            self.forward(head)?;
            match fault.action {
                Action::Cut => {
                    self.close();
                    return Ok(false);
                }
                Action::Truncate => {
                    self.to.shutdown(Shutdown::Write)?;
                    return Ok(false);
                }
                Action::Stall => return Ok(false),
                Action::Drop(count) => self.skip = count,
                Action::Flip(bit) => {
                    tail[0] ^= 1 << (bit % 8);
                }
            }
            bytes = tail;
        }
        Ok(true)
    }

    fn forward(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes)?;
        self.at += bytes.len() as u64;
        self.shared.counter(self.direction).fetch_add(bytes.len() as u64, Ordering::SeqCst);
        Ok(())
    }

    fn close(&self) {
        let _ = (self.from.shutdown(Shutdown::Both), self.to.shutdown(Shutdown::Both));
    }
}
