//! A copy that is sent while the source still saves it: whole and at an exact op, or not at all, whatever happens to the
//! save, to the link or to either server meanwhile.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::disk::{lines, wait_syncs};
use crate::dr::OnDrop;
use crate::harness::proxy::{Action, Direction};
use crate::harness::spawn::signal;
use crate::harness::wait::{secs, until};
use crate::harness::{wait_equal, Pipe, Proxy, Server, SmallDisk, Version};

/// Keys at the source; each holds the save up for a moment.
const KEYS: usize = 3000;

/// Bytes that do not compress.
fn noise(seed: usize, len: usize) -> Vec<u8> {
    let mut x = 0x9e37_79b9_7f4a_7c15_u64 ^ (seed as u64).wrapping_mul(0x2545_f491_4f6c_dd1d);
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        })
        .collect()
}

/// A source whose saves take some seconds.
fn slow_source(v: Version, bytes: usize) -> Server {
    let source = Server::builder(v).arg("service-id", 0).start();
    fill(&source, bytes);
    set_delay(&source, 1500);
    source
}

/// So many bytes in each key.
fn fill(source: &Server, bytes: usize) {
    source.wait_state("capturing");
    let mut pipe = Pipe::new();
    for n in 0..KEYS {
        pipe.add(&[b"SET".as_slice(), format!("key {n}").as_bytes(), &noise(n, bytes)]);
    }
    source.client().run_good(&pipe);
}

fn set_delay(source: &Server, micros: u32) {
    cmd!(source.client(), "CONFIG", "SET", "rdb-key-save-delay", micros).ok();
}

fn saves(source: &Server) -> usize {
    lines(source, "Background saving started")
}

/// Until bytes of the copy are at the target and the source still saves.
fn wait_halfway(source: &Server, target: &Server) {
    target.wait_status("one with bytes of the copy", |s| {
        s.state() == "snapshot" && s.number("link/snapshot_bytes") > 16_000
    });
    assert_eq!(source.info_field("persistence", "rdb_bgsave_in_progress"), "1", "the save is over already");
}

/// A server with data of its own, which wait for what DR.RESYNC brings.
fn with_own_data(v: Version, source: &str) -> Server {
    let target = Server::builder(v).arg("service-id", 1).start();
    target.wait_state("capturing");
    cmd!(target.client(), "SET", "own", "data").ok();
    cmd!(target.client(), "DR.LINK", source).ok();
    target.wait_state("held");
    target
}

/// Its data are there as they were, and nobody else's.
#[track_caller]
fn assert_untouched(target: &Server) {
    assert_eq!(cmd!(target.client(), "GET", "own").text(), "data");
    assert_eq!(cmd!(target.client(), "DBSIZE").int(), 1);
    assert!(!target.dir().join("dr/staging.rdb").exists(), "what was received is still there");
    assert_eq!(target.status().full_syncs(), 0);
}

/// The child that saves.
#[track_caller]
fn child_of(server: &Server) -> u32 {
    let pid = server.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.split_whitespace().next().expect("a child").parse().unwrap()
}

/// Two that come at the same time, while a client writes: one save is enough for both, and each ends at the source's op.
fn two_targets_follow_one_save(v: Version) {
    let source = slow_source(v, 200);
    let targets = [1, 2].map(|id| Server::builder(v).arg("service-id", id).source(&source).start());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Also when the test fails here.
        let _stop = OnDrop(|| stop.store(true, Ordering::Relaxed));
        scope.spawn(|| {
            let mut client = source.client();
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                let mut pipe = Pipe::new();
                for _ in 0..50 {
                    n += 1;
                    let key = format!("key {}", n % (2 * KEYS));
                    pipe.add(&["APPEND", &key, "written meanwhile"]);
                    pipe.add(&["INCR", "counter"]);
                    pipe.add(&["LPUSH", "list", &key]);
                }
                client.run_good(&pipe);
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        });
        for target in &targets {
            wait_halfway(&source, target);
        }
        assert_eq!(lines(&source, "gets a snapshot while the server saves it"), 2);
        for target in &targets {
            target.wait_state("streaming");
        }
    });
    for target in &targets {
        wait_equal(&source, target);
        wait_syncs(target, 1);
    }
    assert_eq!(saves(&source), 1, "{}", source.log_tail(40));
    // What was saved on the way counts as the source's own snapshot.
    source.wait_status("one with a snapshot", |s| s.number("snapshot_op_id") > 0);
    assert!(source.dir().join("dr/base.rdb").exists());
}
for_each_server!(two_targets_follow_one_save);

/// The save dies in the middle: the target keeps what it had, says why, and takes the next one.
fn a_save_that_is_killed_changes_nothing(v: Version) {
    let source = slow_source(v, 200);
    let target = with_own_data(v, &source.endpoint());
    cmd!(target.client(), "DR.RESYNC").ok();
    wait_halfway(&source, &target);
    signal(child_of(&source), libc::SIGKILL);
    target.wait_status("told", |s| s.text("link/last_error").contains("BGSAVE has failed"));
    assert_untouched(&target);
    set_delay(&source, 0);
    wait_equal(&source, &target);
    wait_syncs(&target, 1);
}
for_each_server!(a_save_that_is_killed_changes_nothing);

/// The length is not known beforehand, so it may turn out not to fit.
fn a_copy_that_does_not_fit_changes_nothing(v: Version) {
    let source = slow_source(v, 4000);
    set_delay(&source, 300);
    let disk = SmallDisk::new(8);
    let target = Server::builder(v)
        .arg("service-id", 1)
        .arg("dir", disk.path().join("dr").display())
        .arg("segment-size", "1mb")
        .start();
    target.wait_state("capturing");
    cmd!(target.client(), "SET", "own", "data").ok();
    cmd!(target.client(), "DR.LINK", source.endpoint()).ok();
    target.wait_state("held");
    let free = disk.free();
    cmd!(target.client(), "DR.RESYNC").ok();
    target.wait_status("told", |s| s.text("link/last_error").contains("No space left on device"));
    assert_untouched(&target);
    until("the room is back", || disk.free() + (1 << 20) > free);
    let mut pipe = Pipe::new();
    for n in 0..KEYS - 100 {
        pipe.add(&["DEL", &format!("key {n}")]);
    }
    source.client().run_good(&pipe);
    cmd!(source.client(), "DR.SNAPSHOT").good();
    wait_equal(&source, &target);
    wait_syncs(&target, 1);
}
for_some_servers!(a_copy_that_does_not_fit_changes_nothing);

/// The save fails for lack of room at the source, after a part of it was sent.
fn a_save_that_does_not_fit_changes_nothing(v: Version) {
    let disk = SmallDisk::new(48);
    let source = Server::builder(v).arg("service-id", 0).dir(disk.path()).start();
    fill(&source, 4000);
    set_delay(&source, 300);
    disk.fill(5 << 20);
    let target = with_own_data(v, &source.endpoint());
    cmd!(target.client(), "DR.RESYNC").ok();
    wait_halfway(&source, &target);
    target.wait_status("told", |s| s.text("link/last_error").contains("BGSAVE has failed"));
    assert_untouched(&target);
    disk.empty();
    set_delay(&source, 0);
    wait_equal(&source, &target);
    wait_syncs(&target, 1);
}
for_some_servers!(a_save_that_does_not_fit_changes_nothing);

fn a_target_that_is_killed_meanwhile_begins_again(v: Version) {
    let source = slow_source(v, 200);
    let target = Server::builder(v).arg("service-id", 1).source(&source).start();
    wait_halfway(&source, &target);
    target.kill9();
    cmd!(source.client(), "SET", "written", "meanwhile").ok();
    target.start_again();
    wait_equal(&source, &target);
    wait_syncs(&target, 1);
}
for_some_servers!(a_target_that_is_killed_meanwhile_begins_again);

/// It takes the same file from its beginning: the source saves no other.
fn a_link_that_is_cut_meanwhile_begins_again(v: Version) {
    let source = slow_source(v, 200);
    let proxy = Proxy::start(source.endpoint());
    let target = Server::builder(v).arg("service-id", 1).start();
    target.wait_state("capturing");
    cmd!(target.client(), "DR.LINK", proxy.addr()).ok();
    for _ in 0..2 {
        wait_halfway(&source, &target);
        proxy.cut();
        target.wait_status("one without bytes", |s| {
            s.state() != "snapshot" || s.number("link/snapshot_bytes") < 16_000
        });
        cmd!(source.client(), "INCR", "counter").good();
    }
    wait_equal(&source, &target);
    wait_syncs(&target, 1);
    assert_eq!(saves(&source), 1);
}
for_some_servers!(a_link_that_is_cut_meanwhile_begins_again);

/// Bits that flip and bytes that get lost on the way: never loaded, taken again.
fn damage_meanwhile_is_seen(v: Version) {
    let source = slow_source(v, 200);
    set_delay(&source, 100);
    for (n, action) in [Action::Flip(3), Action::Drop(5), Action::Truncate].into_iter().enumerate() {
        let proxy = Proxy::start(source.endpoint());
        let target = with_own_data(v, &proxy.addr());
        cmd!(source.client(), "INCR", "counter").good();
        proxy.fault(Direction::Down, 30_000 + 100_000 * n as u64, action);
        proxy.cut();
        cmd!(target.client(), "DR.RESYNC").ok();
        wait_equal(&source, &target);
        wait_syncs(&target, 1);
        assert_eq!(proxy.fired(), 1, "{action:?}");
        cmd!(source.client(), "DR.CUTLINK", 1).good();
    }
}
for_some_servers!(damage_meanwhile_is_seen);

/// A source that is stopped meanwhile does not wait for its save, and the target gets its copy from the next one.
fn a_source_that_is_stopped_meanwhile_ends(v: Version) {
    let source = slow_source(v, 200);
    let target = with_own_data(v, &source.endpoint());
    cmd!(target.client(), "DR.RESYNC").ok();
    wait_halfway(&source, &target);
    let begun = Instant::now();
    source.terminate();
    assert!(begun.elapsed() < secs(20), "{:?}", begun.elapsed());
    target.wait_status("disconnected", |s| s.state() != "snapshot");
    assert_untouched(&target);
}
for_some_servers!(a_source_that_is_stopped_meanwhile_ends);

/// An empty target loads what comes; clients wait. If the rest does not come it is empty again, and its operator's own.
fn an_empty_target_is_empty_again(v: Version) {
    let source = slow_source(v, 200);
    let target = Server::builder(v).arg("service-id", 1).source(&source).start();
    target.wait_status("loading what comes", |s| {
        s.state() == "snapshot" && s.number("link/snapshot_keys") > 100
    });
    let reply = target.client().line("GET any");
    assert!(reply.error().is_some_and(|e| e.starts_with("LOADING")), "{reply:?}");
    source.kill9();
    target.wait_status("without its source", |s| s.state() != "snapshot");
    until("the target is empty", || {
        let size = target.client().line("DBSIZE");
        size.error().is_none() && size.int() == 0
    });
    assert!(cmd!(target.client(), "GET", "key 0").is_nil());
    assert!(!target.dir().join("dr/staging.rdb").exists(), "what was received is still there");
    cmd!(target.client(), "DR.CUTLINK").good();
    target.wait_state("capturing");
    cmd!(target.client(), "SET", "own", "data").ok();
}
for_some_servers!(an_empty_target_is_empty_again);

/// What an empty target has loaded of a damaged copy is never its dataset.
fn damage_of_what_an_empty_target_loads_is_seen(v: Version) {
    let source = slow_source(v, 200);
    set_delay(&source, 200);
    for (n, action) in [Action::Flip(3), Action::Drop(5)].into_iter().enumerate() {
        let proxy = Proxy::start(source.endpoint());
        let target = Server::builder(v).arg("service-id", 1).start();
        target.wait_state("capturing");
        cmd!(source.client(), "INCR", "counter").good();
        proxy.fault(Direction::Down, 200_000 + 100_000 * n as u64, action);
        cmd!(target.client(), "DR.LINK", proxy.addr()).ok();
        wait_equal(&source, &target);
        wait_syncs(&target, 1);
        assert_eq!(proxy.fired(), 1, "{action:?}");
        cmd!(source.client(), "DR.CUTLINK", 1).good();
    }
}
for_some_servers!(damage_of_what_an_empty_target_loads_is_seen);

/// Bytes behind the end of the RDB: all keys load, the link brings what the source has, and only the check of the whole
/// says that it is no copy.
fn what_fails_the_check_only_is_not_a_dataset(v: Version) {
    let source = Server::builder(v).arg("service-id", 0).start();
    fill(&source, 200);
    cmd!(source.client(), "DR.SNAPSHOT").good();
    let rdb = source.dir().join("dump.rdb");
    until("the snapshot is there", || source.status().number("snapshot_op_id") > 0);
    let op = source.status().number("snapshot_op_id");
    let whole = fs::read(&rdb).unwrap();
    fs::write(&rdb, [whole.as_slice(), b"more"].concat()).unwrap();
    let target = Server::builder(v).arg("service-id", 1).start();
    target.wait_state("capturing");
    cmd!(target.client(), "DR.LINK", source.endpoint()).ok();
    target.wait_status("told", |s| s.text("link/last_error").contains("the snapshot: "));
    assert_eq!(target.status().full_syncs(), 0);
    assert!(target.status().number("applied_op_id") < op, "what was loaded has a position");
    cmd!(source.client(), "INCR", "counter").good();
    cmd!(source.client(), "DR.SNAPSHOT").good();
    wait_equal(&source, &target);
    wait_syncs(&target, 1);
}
for_some_servers!(what_fails_the_check_only_is_not_a_dataset);
