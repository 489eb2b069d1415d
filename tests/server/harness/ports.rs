//! Ports that no other test of this machine takes, also in another process, and that stay ours over a restart.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// Below the kernel's range for outgoing connections: one of those could otherwise take the port of a server that is
/// down for a moment.
const FIRST: u16 = 10_000;
const COUNT: u16 = 20_000;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A TCP port on the loopback interface, reserved while this lives.
#[derive(Debug)]
pub struct Port {
    number: u16,
    /// The reservation: a name that only one socket of the machine can hold, and that the kernel frees when we die.
    _hold: UnixListener,
}

impl Port {
    /// Reserves a port that nobody listens on now.
    pub fn pick() -> Port {
        let start = std::process::id().wrapping_mul(131);
        for _ in 0..COUNT {
            let step = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
            let number = FIRST + (step % u32::from(COUNT)) as u16;
            let name = SocketAddr::from_abstract_name(format!("redisdr-test-port-{number}")).unwrap();
            let Ok(hold) = UnixListener::bind_addr(&name) else { continue };
            // All interfaces: a server may be told to bind more than the loopback.
            if TcpListener::bind(("0.0.0.0", number)).is_ok() {
                return Port { number, _hold: hold };
            }
        }
        panic!("no free port from {FIRST} on");
    }

    /// The port's number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// `127.0.0.1:<port>`.
    pub fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.number)
    }
}
