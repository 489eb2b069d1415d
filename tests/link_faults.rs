//! Proves that whatever happens to a connection, the target ends equal to its source and never appends a
//! damaged entry, and that nothing that the other side does keeps a node from stopping.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod link_support;

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use link_support::proxy::{Fault, Kind, Proxy, Way};
use link_support::{now_ms, set_op, wait_for, Source, Target};
use redisdr::link::{ClientHandle, EndpointHandle, LinkState, Secret, TargetState};

const KINDS: [Kind; 6] = [Kind::Flip, Kind::Cut, Kind::Skip, Kind::Double, Kind::Stall, Kind::Delay];

struct Rig {
    source: Arc<Source>,
    endpoint: EndpointHandle,
    proxy: Proxy,
}

impl Rig {
    fn new() -> Self {
        let source = Source::new();
        source.filling.store(600_000, Ordering::SeqCst);
        source.write(50);
        let mut config = Source::config();
        config.secret = Secret::new(b"secret");
        config.timeout = Duration::from_millis(1000);
        config.handshake_timeout = Duration::from_millis(500);
        let endpoint = source.serve(config);
        let proxy = Proxy::to(endpoint.local_addr());
        Self { source, endpoint, proxy }
    }

    fn link(&self, target: &Arc<Target>) -> ClientHandle {
        let mut config = Target::config(&[self.proxy.addr.to_string()]);
        config.secret = Secret::new(b"secret");
        config.timeout = Duration::from_millis(1000);
        config.connect_timeout = Duration::from_millis(500);
        config.backoff_max = Duration::from_millis(50);
        target.link(config)
    }

    /// From nothing to equal through a snapshot and entries, with one fault on the way.
    fn bootstrap(&self, fault: Option<Fault>) {
        let target = Target::new(1);
        if let Some(fault) = fault {
            self.proxy.break_next(fault);
        }
        let link = self.link(&target);
        self.source.write(20);
        target.wait_equal(&self.source);
        self.source.write(20);
        target.wait_equal(&self.source);
        assert!(target.full_syncs() >= 1, "{fault:?}");
        assert_eq!(target.counts.failed_loads.load(Ordering::SeqCst), 0, "{fault:?}: damage was handed on");
        link.stop();
    }
}

/// How many bytes an undisturbed bootstrap passes each way, roughly.
fn lengths(rig: &Rig) -> [u64; 2] {
    rig.bootstrap(None);
    [rig.proxy.passed(Way::ToSource), rig.proxy.passed(Way::ToTarget)]
}

/// Dense over the handshake, sparse over the rest.
fn positions(len: u64, dense: u64, step: usize) -> impl Iterator<Item = u64> {
    let rest = (dense..len).step_by(usize::try_from((len - dense.min(len)) / 12).unwrap().max(1));
    (0..dense.min(len)).step_by(step).chain(rest)
}

fn sweep(way: Way, dense: u64, step: usize) {
    let rig = Rig::new();
    let len = lengths(&rig)[way as usize];
    let mut kinds = KINDS.iter().cycle();
    for at in positions(len, dense, step) {
        // One kind at each place, in turn; those that do not have to wait for a timeout, all of them now and
        // then.
        let kind = *kinds.next().unwrap();
        rig.bootstrap(Some(Fault { way, at, kind }));
    }
}

#[test]
fn any_fault_on_the_way_to_the_source_is_survived() {
    sweep(Way::ToSource, 400, 7);
}

#[test]
fn any_fault_on_the_way_to_the_target_is_survived() {
    sweep(Way::ToTarget, 700, 11);
}

/// Bits of the snapshot and of entries, each one of a few: none may get through.
#[test]
fn no_flipped_bit_gets_through() {
    let rig = Rig::new();
    let len = lengths(&rig)[Way::ToTarget as usize];
    for i in 0..24 {
        let at = 500 + i * (len - 1500) / 24;
        rig.bootstrap(Some(Fault { way: Way::ToTarget, at, kind: Kind::Flip }));
    }
    // Each was seen, and answered by a second connection.
    assert!(rig.proxy.connections() > 2 * 24, "{}", rig.proxy.connections());
}

/// The connection is cut again and again under load: equal at the end, each op once, no second full sync.
#[test]
fn a_link_that_breaks_all_the_time_gets_there() {
    let rig = Rig::new();
    let target = Target::new(1);
    let link = rig.link(&target);
    target.wait_equal(&rig.source);
    for round in 0..40u64 {
        rig.source.write(100);
        if round % 2 == 0 {
            rig.proxy.break_next(Fault {
                way: Way::ToTarget,
                at: 600 + round * 37,
                kind: KINDS[round as usize % 4],
            });
        }
        rig.proxy.cut_all();
        std::thread::sleep(Duration::from_millis(10));
    }
    target.wait_equal(&rig.source);
    assert_eq!(target.full_syncs(), 1);
    drop(link);
}

fn resident_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A target that takes nothing costs the source one buffer; it is given up after the timeout, keeps its place
/// and its part of the log, and catches up. The others notice nothing.
#[test]
fn a_stopped_target_costs_nothing_and_catches_up() {
    let rig = Rig::new();
    let (stopped, other) = (Target::new(1), Target::new(2));
    let link = rig.link(&stopped);
    let _other = {
        let mut config = Target::config(&[rig.endpoint.local_addr().to_string()]);
        config.secret = Secret::new(b"secret");
        other.link(config)
    };
    stopped.wait_equal(&rig.source);
    other.wait_equal(&rig.source);
    wait_for("durable", || rig.endpoint.durable_on(rig.source.log.written()) == 2);
    let held = rig.source.log.written();
    rig.proxy.stall(true);
    let before = resident_kb();
    let mut written = 0u64;
    for _ in 0..200 {
        let op = set_op(1, 100_000);
        written += op.len() as u64;
        rig.source.write_entry(now_ms(), &[op]);
    }
    other.wait_equal(&rig.source);
    wait_for("given up", || rig.endpoint.targets()[0].state == TargetState::Disconnected);
    // The log itself, and what sockets and the proxy hold, are all that may have grown.
    let grown = resident_kb().saturating_sub(before) * 1024;
    eprintln!("{written} bytes written, resident memory grew by {grown}");
    assert_eq!(rig.endpoint.targets()[0].pin, Some(held));
    assert_eq!(rig.endpoint.min_durable(), Some(held));
    rig.proxy.stall(false);
    rig.proxy.cut_all();
    stopped.wait_equal(&rig.source);
    assert_eq!(stopped.full_syncs(), 1);
    drop(link);
}

/// Heartbeats go on while the source makes a snapshot and while the target loads one, for longer than the
/// timeout.
#[test]
fn long_saves_and_loads_do_not_end_the_session() {
    let rig = Rig::new();
    rig.source.stuck.store(true, Ordering::SeqCst);
    let target = Target::new(1);
    target.set_stuck(true);
    let link = rig.link(&target);
    let note = |s: &LinkState| matches!(s, LinkState::Snapshot { note, .. } if note == "saving 42 %");
    target.wait_state("the source's progress", note);
    std::thread::sleep(Duration::from_millis(2500));
    rig.source.stuck.store(false, Ordering::SeqCst);
    target.wait_state("loading", |s| *s == LinkState::Loading);
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(rig.endpoint.targets()[0].state, TargetState::Loading);
    rig.source.write(10);
    target.set_stuck(false);
    target.wait_equal(&rig.source);
    assert_eq!(rig.proxy.connections(), 1);
    assert_eq!(rig.source.snapshots.load(Ordering::SeqCst), 1);
    drop(link);
}

/// The connection goes while the target loads: what is here is not fetched again.
#[test]
fn a_loaded_snapshot_survives_its_connection() {
    let rig = Rig::new();
    let target = Target::new(1);
    target.set_stuck(true);
    let link = rig.link(&target);
    target.wait_state("loading", |s| *s == LinkState::Loading);
    wait_for("the pin", || rig.endpoint.min_durable().is_some());
    let op = rig.endpoint.min_durable();
    rig.proxy.cut_all();
    wait_for("the source noticed", || rig.endpoint.targets()[0].state == TargetState::Disconnected);
    assert_eq!(rig.endpoint.min_durable(), op, "the log above the snapshot is kept");
    rig.source.write(10);
    target.set_stuck(false);
    target.wait_equal(&rig.source);
    assert_eq!(target.full_syncs(), 1);
    drop(link);
}

fn is_prompt(what: &str, stop: impl FnOnce()) {
    let begun = Instant::now();
    stop();
    assert!(begun.elapsed() < Duration::from_secs(2), "{what} took {:?}", begun.elapsed());
}

#[test]
fn both_sides_stop_promptly_in_every_state() {
    // Connecting: to nobody, and to one who never answers.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for addr in ["10.255.255.1:9".to_owned(), mute.local_addr().unwrap().to_string()] {
        let target = Target::new(1);
        let link = target.link(redisdr::link::ClientConfig::new(vec![addr.clone()]));
        std::thread::sleep(Duration::from_millis(100));
        is_prompt(&format!("connecting to {addr}"), || link.stop());
        assert_eq!(link.status().state, LinkState::Stopped);
    }
    // The endpoint with a stranger in the handshake.
    let rig = Rig::new();
    let _stranger = std::net::TcpStream::connect(rig.endpoint.local_addr()).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    is_prompt("endpoint in a handshake", || rig.endpoint.stop());
    // While the source prepares a snapshot.
    let rig = Rig::new();
    rig.source.stuck.store(true, Ordering::SeqCst);
    let target = Target::new(1);
    let link = rig.link(&target);
    target.wait_state("snapshot", |s| matches!(s, LinkState::Snapshot { .. }));
    is_prompt("target awaiting a snapshot", || link.stop());
    let link = rig.link(&target);
    wait_for("snapshot", || rig.endpoint.targets()[0].state == TargetState::Snapshot);
    is_prompt("source preparing a snapshot", || rig.endpoint.stop());
    drop(link);
    // Loading: the host is told by its own means.
    let rig = Rig::new();
    let target = Target::new(1);
    target.set_stuck(true);
    let link = rig.link(&target);
    target.wait_state("loading", |s| *s == LinkState::Loading);
    target.quit.store(true, Ordering::SeqCst);
    is_prompt("target loading", || link.stop());
    // Streaming, and streaming to one who takes nothing.
    let rig = Rig::new();
    let target = Target::new(1);
    let link = rig.link(&target);
    target.wait_equal(&rig.source);
    is_prompt("target streaming", || link.stop());
    let link = rig.link(&target);
    rig.source.write(10);
    target.wait_equal(&rig.source);
    rig.proxy.stall(true);
    for _ in 0..100 {
        rig.source.write_entry(now_ms(), &[set_op(1, 100_000)]);
    }
    std::thread::sleep(Duration::from_millis(100));
    is_prompt("source streaming into nothing", || rig.endpoint.stop());
    is_prompt("target hearing nothing", || link.stop());
}

/// Everything moves, slowly: the limit holds and heartbeats go on.
#[test]
fn a_limited_link_is_slow_and_alive() {
    let source = Source::new();
    source.filling.store(600_000, Ordering::SeqCst);
    let mut config = Source::config();
    config.timeout = Duration::from_millis(1000);
    config.max_bytes_per_sec = Some(300_000);
    let endpoint = source.serve(config);
    let proxy = Proxy::to(endpoint.local_addr());
    let target = Target::new(1);
    let mut config = Target::config(&[proxy.addr.to_string()]);
    config.timeout = Duration::from_millis(1000);
    let begun = Instant::now();
    let _link = target.link(config);
    target.wait_equal(&source);
    // 600 KB less one second's worth that the bucket held.
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    assert_eq!(proxy.connections(), 1);
}
