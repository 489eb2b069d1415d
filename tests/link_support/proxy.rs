//! A TCP proxy between a target and a source that damages what goes through it.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Turns one bit.
    Flip,
    /// Ends the connection before this byte.
    Cut,
    /// Leaves this byte out.
    Skip,
    /// Sends this byte twice.
    Double,
    /// Passes nothing any more from this byte on, and keeps the connection.
    Stall,
    /// Waits a moment before this byte.
    Delay,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    ToSource,
    ToTarget,
}

#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub way: Way,
    pub at: u64,
    pub kind: Kind,
}

pub struct Proxy {
    pub addr: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    source: Mutex<SocketAddr>,
    /// For the next connection only.
    fault: Mutex<Option<Fault>>,
    /// While set nothing is passed on, in either direction.
    stall: AtomicBool,
    stop: AtomicBool,
    connections: AtomicU64,
    passed: [AtomicU64; 2],
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    pub fn to(source: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            source: Mutex::new(source),
            fault: Mutex::new(None),
            stall: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            passed: [AtomicU64::new(0), AtomicU64::new(0)],
            open: Mutex::default(),
        });
        let own = Arc::clone(&shared);
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let Ok(target) = socket else { continue };
                if own.stop.load(Ordering::SeqCst) {
                    return;
                }
                let to = *own.source.lock();
                let Ok(source) = TcpStream::connect(to) else { continue };
                own.connections.fetch_add(1, Ordering::SeqCst);
                own.passed.iter().for_each(|p| p.store(0, Ordering::SeqCst));
                let fault = own.fault.lock().take();
                source.set_nodelay(true).unwrap();
                target.set_nodelay(true).unwrap();
                let pair = [target.try_clone().unwrap(), source.try_clone().unwrap()];
                own.open.lock().extend(pair);
                let ways = [
                    (Way::ToSource, target.try_clone().unwrap(), source.try_clone().unwrap()),
                    (Way::ToTarget, source, target),
                ];
                for (way, from, to) in ways {
                    let own = Arc::clone(&own);
                    let fault = fault.filter(|f| f.way == way);
                    std::thread::spawn(move || pump(&own, way, from, to, fault));
                }
            }
        });
        Self { addr, shared }
    }

    pub fn break_next(&self, fault: Fault) {
        *self.shared.fault.lock() = Some(fault);
    }

    pub fn stall(&self, stall: bool) {
        self.shared.stall.store(stall, Ordering::SeqCst);
    }

    pub fn cut_all(&self) {
        for s in self.shared.open.lock().drain(..) {
            let _ = s.shutdown(Shutdown::Both);
        }
    }

    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Bytes that the newest connection has passed.
    pub fn passed(&self, way: Way) -> u64 {
        self.shared.passed[way as usize].load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.stall(false);
        let _ = TcpStream::connect(self.addr);
        self.cut_all();
    }
}

fn pump(shared: &Shared, way: Way, mut from: TcpStream, mut to: TcpStream, fault: Option<Fault>) {
    let mut buf = vec![0u8; 64 * 1024];
    let mut seen = 0u64;
    while let Ok(n) = from.read(&mut buf) {
        if n == 0 {
            break;
        }
        while shared.stall.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut bytes = buf[..n].to_vec();
        let here = fault.filter(|f| f.at >= seen && f.at < seen + n as u64);
        if let Some(f) = here {
            let i = (f.at - seen) as usize;
            match f.kind {
                Kind::Flip => bytes[i] ^= 1 << (f.at % 8),
                Kind::Cut => {
                    let _ = to.write_all(&bytes[..i]);
                    break;
                }
                Kind::Skip => drop(bytes.remove(i)),
                Kind::Double => bytes.insert(i, bytes[i]),
                Kind::Stall => {
                    let _ = to.write_all(&bytes[..i]);
                    while matches!(from.read(&mut buf), Ok(n) if n > 0) {}
                    break;
                }
                Kind::Delay => {
                    let _ = to.write_all(&bytes[..i]);
                    std::thread::sleep(Duration::from_millis(100));
                    drop(bytes.drain(..i));
                }
            }
        }
        seen += n as u64;
        shared.passed[way as usize].fetch_add(n as u64, Ordering::SeqCst);
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
