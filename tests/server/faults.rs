//! The link over a bad line: cut, lossy, flipping, slow and silent at every state of the protocol.
//!
//! Whatever the line does, the target ends equal or refuses; a damaged entry is never applied.

use std::time::Duration;

use crate::dr::{self, Site};
use crate::harness::proxy::{Action, Direction};
use crate::harness::Proxy;
use crate::workload::compare::Detail;
use crate::workload::{Conn, Rng};

const VERSION: &str = "redis-7.0";

struct Line {
    source: Site,
    target: Site,
    proxy: Proxy,
    conn: Conn,
    rng: Rng,
    written: u64,
}

impl Line {
    /// Short timeouts: a silent line has to be noticed within the test's time.
    fn new(seed: u64) -> Line {
        let source = Site::with_timeout(VERSION, 0, 2);
        let target = Site::with_timeout(VERSION, 1, 2);
        let proxy = Proxy::start(source.endpoint());
        let conn = source.conn();
        let mut line = Line { source, target, proxy, conn, rng: Rng::new(seed), written: 0 };
        line.write(200);
        line
    }

    /// Links, and checks that all is well before the first fault.
    fn link(&mut self) {
        self.target.link_to(&[self.proxy.addr()]);
        self.check("before any fault");
    }

    /// A new connection that meets the fault at byte `at`, while something is written.
    fn meet(&mut self, direction: Direction, at: u64, action: Action, rounds: u64) {
        self.proxy.fault(direction, at, action);
        self.proxy.cut();
        self.write(rounds);
        self.check(&format!("{action:?} {direction:?} at byte {at}"));
        // A byte that never came must not strike a later connection.
        self.proxy.heal();
    }

    fn action(&mut self) -> Action {
        match self.rng.below(4) {
            0 => Action::Cut,
            1 => Action::Truncate,
            2 => Action::Drop(1 + self.rng.below(20)),
            _ => Action::Flip(self.rng.below(8) as u8),
        }
    }

    /// Writes that show loss, change and repetition.
    fn write(&mut self, rounds: u64) {
        for _ in 0..rounds {
            self.written += 1;
            let n = self.written.to_string().into_bytes();
            let len = self.rng.below(200) as usize;
            let value = self.rng.bytes(len);
            let key = format!("key {}", self.rng.below(50)).into_bytes();
            let commands: Vec<Vec<&[u8]>> = vec![
                vec![b"INCR", b"counter"],
                vec![b"RPUSH", b"list", &n],
                vec![b"SET", &key, &value],
                vec![b"SETRANGE", b"digest", b"7", &value],
            ];
            for reply in self.conn.pipeline(&commands).expect("replies") {
                assert!(reply.error().is_none(), "{reply:?}");
            }
        }
    }

    /// The state after a fault: everything arrived, once.
    fn check(&mut self, what: &str) {
        dr::wait_in_step(&self.source, &self.target);
        dr::wait_same_digest(&[&self.source, &self.target], what);
        let length = self.target.conn().call(&["LLEN", "list"]).int() as u64;
        assert_eq!(length, self.written, "{what}");
    }
}

/// A connection is closed and made again; the fault sits in its first bytes, both ways.
#[test]
fn faults_in_the_handshake() {
    let mut line = Line::new(1);
    line.link();
    let full_syncs = line.target.full_syncs();
    let mut at = 0;
    while at < 400 {
        for direction in [Direction::Up, Direction::Down] {
            let action = line.action();
            line.meet(direction, at, action, 2);
        }
        at += 7 + line.rng.below(8);
    }
    assert!(line.proxy.fired() > 40, "only {} faults struck", line.proxy.fired());
    assert_eq!(line.target.full_syncs(), full_syncs, "a fault cost a full sync");
}

/// Entries travel while the fault strikes; then acks and heartbeats.
#[test]
fn faults_in_the_stream() {
    let mut line = Line::new(2);
    line.link();
    let full_syncs = line.target.full_syncs();
    for n in 0..60 {
        let direction = if n % 5 == 4 { Direction::Up } else { Direction::Down };
        let at = 300 + line.rng.below(if direction == Direction::Up { 100 } else { 12_000 });
        let action = line.action();
        line.meet(direction, at, action, 40);
    }
    assert!(line.proxy.fired() > 40, "only {} faults struck", line.proxy.fired());
    assert_eq!(line.target.full_syncs(), full_syncs, "a fault cost a full sync");
}

/// A line that passes nothing and says nothing is given up after the timeout, at both ends; a slow one is not.
#[test]
fn a_silent_line_is_given_up_and_a_slow_one_is_not() {
    let mut line = Line::new(3);
    line.link();
    for direction in [Direction::Down, Direction::Up] {
        for at in [10, 250, 600] {
            line.meet(direction, at, Action::Stall, 20);
        }
    }
    assert!(line.proxy.fired() >= 4, "only {} faults struck", line.proxy.fired());
    line.proxy.delay(Duration::from_millis(150));
    let connections = line.proxy.connections();
    for _ in 0..5 {
        line.write(50);
        line.check("a slow line");
    }
    assert_eq!(line.proxy.connections(), connections, "a slow line was given up");
}

/// The snapshot crosses with a fault in it. The target has no data of its own, so it begins again by itself.
#[test]
fn faults_in_the_snapshot() {
    for seed in 10..18 {
        let mut line = Line::new(seed);
        line.write(300);
        let (action, at) = (line.action(), 400 + line.rng.below(8000));
        line.proxy.fault(Direction::Down, at, action);
        line.target.link_to(&[line.proxy.addr()]);
        line.write(20);
        let what = format!("{action:?} at byte {at} of the snapshot");
        line.check(&what);
        assert_eq!(line.proxy.fired(), 1, "{what} did not strike");
        let caps = line.source.table().caps;
        dr::assert_same(&line.source, &line.target, &caps, Detail::MasterAndReplica, &what);
    }
}

#[test]
#[ignore = "soak: every byte of the handshake, each kind and way"]
fn soak_faults_at_every_byte_of_the_handshake() {
    let mut line = Line::new(4);
    line.link();
    for at in 0..600 {
        for action in [Action::Cut, Action::Truncate, Action::Drop(3), Action::Flip((at % 8) as u8)] {
            for direction in [Direction::Up, Direction::Down] {
                line.meet(direction, at, action, 1);
            }
        }
    }
}
