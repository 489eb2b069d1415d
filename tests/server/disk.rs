//! A full disk, at a source and at a target: the server serves on, the state says what is wrong, and all goes on by
//! itself when there is room again. Nothing half written stays.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::{
    deadline, digest, eventually, secs, version, wait_equal, Client, Pipe, Server, SmallDisk, Status, Version,
};

/// Less than a segment: nothing that a cleaner may remove fits in.
pub const ALMOST_FULL: u64 = 700 << 10;
const VALUE: usize = 16 << 10;

/// A server whose log is on a disk of its own.
fn on_disk(v: Version, id: u64, disk: &SmallDisk) -> Server {
    let dir = disk.path().join("dr");
    Server::builder(v).arg("service-id", id).arg("dir", dir.display()).arg("segment-size", "1mb").start()
}

/// Until the log is attached writes are answered with LOADING.
pub fn ready(server: Server) -> Server {
    server.wait_state("capturing");
    server
}

/// Writes so many megabytes into a few keys; returns the longest that a batch of 16 took.
pub fn write(client: &mut Client, megabytes: usize, seed: &str) -> Duration {
    let mut longest = Duration::ZERO;
    for batch in 0..megabytes * 4 {
        let mut pipe = Pipe::new();
        for n in 0..16 {
            let key = format!("key {}", (batch * 16 + n) % 100);
            let mut value = format!("{seed} {batch} {n} ").into_bytes();
            value.resize(VALUE, b'.');
            pipe.add(&[b"SET".as_slice(), key.as_bytes(), &value]);
        }
        pipe.add(&["INCR", "counter"]);
        let begun = Instant::now();
        client.run_good(&pipe);
        longest = longest.max(begun.elapsed());
    }
    longest
}

/// `oplogctl verify` finds nothing wrong.
#[track_caller]
pub fn verify(dir: &Path) {
    let out = Command::new(env!("CARGO_BIN_EXE_oplogctl")).arg("verify").arg(dir).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert_eq!(out.status.code(), Some(0), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
}

#[track_caller]
pub fn lines(server: &Server, what: &str) -> usize {
    server.log().lines().filter(|l| l.contains(what)).count()
}

/// So many copies, no more: the count follows the data.
#[track_caller]
pub fn wait_syncs(target: &Server, count: u64) {
    let status = target.wait_status(&format!("one with {count} copies"), |s| s.full_syncs() >= count);
    assert_eq!(status.full_syncs(), count);
}

fn wait_failed(server: &Server) {
    server.wait_status("failed", |s| s.state() == "failed");
}

/// A source with its log on a disk of so many megabytes, and a target that has what it has.
fn linked(v: Version, megabytes: u64) -> (SmallDisk, Server, Server) {
    let disk = SmallDisk::new(megabytes);
    let source = ready(on_disk(v, 0, &disk));
    let target = Server::builder(v).arg("service-id", 1).source(&source).start();
    write(&mut source.client(), 1, "before");
    wait_equal(&source, &target);
    (disk, source, target)
}

/// Longer than memory can bridge: a gap, a new base, a copy for the target.
fn a_source_outlasts_its_full_disk(v: Version) {
    let (disk, source, target) = linked(v, 24);
    let mut client = source.client();
    wait_syncs(&target, 1);

    disk.fill(ALMOST_FULL);
    let longest = write(&mut client, 45, "while it is full");
    assert!(longest < secs(5), "a batch took {longest:?}");
    let status = source
        .wait_status("failed", |s| s.state() == "failed" && s.text("state_reason").contains("above a gap"));
    assert!(status.text("state_reason").contains("No space left on device"), "{:#}", status.0);
    assert!(status.list("warnings").iter().any(|w| w.as_str().unwrap().contains("No space left")));
    assert!(status.number("disk_free_bytes") < 8 << 20);
    assert_eq!(source.info_field("redisdr", "redisdr_state"), "failed");
    target.wait_status("told by its source", |s| s.text("link/source_note").contains("No space left"));
    assert_eq!(lines(&source, "the log has failed"), 1, "{}", source.log());

    disk.empty();
    source.wait_state("capturing");
    let status =
        source.wait_status("based anew", |s| s.number("snapshot_op_id") + 1 >= s.number("oldest_op_id"));
    assert_eq!(status.number("gaps"), 1);
    assert_eq!(lines(&source, "the log works again at op"), 1);
    write(&mut client, 1, "after");
    wait_equal(&source, &target);
    wait_syncs(&target, 2);
    source.wait_status("well again", |s| s.list("warnings").is_empty());

    // The new base and the log above it are all that a start needs.
    let before = digest(&source);
    source.kill9();
    verify(&disk.path().join("dr"));
    source.start_again();
    source.wait_state("capturing");
    assert!(digest(&source) == before, "another dataset after the crash");
    wait_equal(&source, &target);
    wait_syncs(&target, 2);
}
for_some_servers!(a_source_outlasts_its_full_disk);

/// Ops wait in memory for as long as they fit there: nothing is lost, no target needs a copy.
#[test]
fn a_disk_that_is_full_for_a_moment_costs_nothing() {
    let v = version("redis-7.0");
    let (disk, source, target) = linked(v, 24);
    let mut client = source.client();
    for round in 0..2 {
        disk.fill(ALMOST_FULL);
        write(&mut client, 3, "while it is full");
        wait_failed(&source);
        let queued = |s: &Status| (256 << 10..8 << 20).contains(&s.number("queue_bytes"));
        source.wait_status("keeping what comes in memory", queued);
        write(&mut client, 1, "still");
        disk.empty();
        wait_equal(&source, &target);
        assert_eq!(source.wait_state("capturing").number("gaps"), 0, "round {round}");
        wait_syncs(&target, 1);
        // Room for the next round.
        assert!(cmd!(client, "DR.SNAPSHOT").error().is_none());
        let cleaned = source.wait_status("cleaned", |s| s.number("segments") < 4);
        assert_eq!(cleaned.number("queue_bytes"), 0);
    }
    assert_eq!(lines(&source, "nothing was lost"), 2);
    source.kill9();
    verify(&disk.path().join("dr"));
}

/// Nobody makes room: the log itself fills its disk, held by a target that is away. Capture must not end for ever.
#[test]
fn a_log_that_fills_its_disk_makes_room_for_what_comes() {
    let v = version("redis-7.0");
    let (disk, source, target) = linked(v, 12);
    let mut client = source.client();
    target.terminate();

    write(&mut client, 60, "while the target is away");
    wait_failed(&source);
    let status = source.wait_status("going on above a gap", |s| s.state() == "capturing");
    assert!(status.number("gaps") >= 1);
    assert!(source.log().contains("the log's disk is full of the log itself"), "{}", source.log_tail(30));
    source.wait_status("telling of the lost target", |s| {
        s.target(1).is_some_and(|t| t.text("state") == "lost")
            && s.list("warnings").iter().any(|w| w.as_str().unwrap().contains("target 1"))
    });
    write(&mut client, 1, "after");
    target.start_again();
    wait_equal(&source, &target);
    wait_syncs(&target, 2);
    source.wait_status("well again", |s| s.list("warnings").is_empty());
    source.kill9();
    verify(&disk.path().join("dr"));
}

/// The target's own log cannot take what comes: it waits, and goes on from where it was, without a copy.
#[test]
fn a_target_goes_on_by_itself_when_its_disk_has_room_again() {
    let v = version("redis-7.0");
    let disk = SmallDisk::new(24);
    let source = ready(Server::builder(v).arg("segment-size", "1mb").start());
    let target = on_disk(v, 1, &disk);
    assert!(cmd!(target.client(), "DR.LINK", source.endpoint()).error().is_none());
    let mut client = source.client();
    write(&mut client, 1, "before");
    wait_equal(&source, &target);

    disk.fill(ALMOST_FULL);
    write(&mut client, 8, "while it is full");
    let status = target.wait_status("failed", |s| s.state() == "failed");
    let reason = status.text("state_reason");
    assert!(reason.contains("No space left") && reason.contains("nothing is taken"), "{reason}");
    assert_eq!(source.status().state(), "capturing");
    // What it has can be read.
    assert!(cmd!(target.client(), "GET", "counter").error().is_none());
    std::thread::sleep(secs(3));
    assert_eq!(lines(&target, "nothing is written to it until"), 1, "{}", target.log());

    disk.empty();
    wait_equal(&source, &target);
    let status = target.wait_state("streaming");
    assert_eq!((status.full_syncs(), status.number("gaps")), (1, 0));
    // Well, and a restart finds it whole.
    target.kill9();
    verify(&disk.path().join("dr"));
    write(&mut client, 1, "after");
    target.start_again();
    wait_equal(&source, &target);
    wait_syncs(&target, 1);
}

/// There is no room for the copy: nothing is touched, the reason says how much is missing, and it is tried again.
#[test]
fn a_copy_that_does_not_fit_touches_nothing() {
    let v = version("redis-7.0");
    let disk = SmallDisk::new(24);
    let source = ready(Server::start(v));
    let target = ready(on_disk(v, 1, &disk));
    let mut own = target.client();
    assert!(cmd!(own, "SET", "own", "data").error().is_none());
    // Random: an RDB packs what repeats.
    let mut client = source.client();
    let mut x = 1u64;
    for n in 0..48 {
        let value: Vec<u8> = std::iter::repeat_with(|| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 56) as u8
        })
        .take(128 << 10)
        .collect();
        assert!(cmd!(client, "SET", format!("k{n}"), value).error().is_none());
    }
    disk.fill(3 << 20);
    assert!(cmd!(target.client(), "DR.LINK", source.endpoint()).error().is_none());
    target.wait_state("held");
    assert!(cmd!(target.client(), "DR.RESYNC").error().is_none());
    let says = |s: &Status| {
        let why = s.text("link/last_error").to_owned();
        (why.contains("bytes") && why.contains("free")).then_some(why)
    };
    let status = target.wait_status("short of room", |s| says(s).is_some());
    let why = says(&status).unwrap();
    let numbers: Vec<u64> = why
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|n| n.parse().ok())
        .filter(|n| *n > 100_000)
        .collect();
    assert!(numbers.len() >= 2 && numbers[0] > 6 << 20 && numbers[1] < 4 << 20, "{why}");
    assert_eq!(cmd!(target.client(), "GET", "own").text(), "data");
    assert_eq!(cmd!(target.client(), "DBSIZE").int(), 1);
    let shown = eventually("the reason shows", deadline(), || {
        let s = target.status();
        s.text("state_reason").contains("free").then_some(s)
    });
    assert_eq!(shown.full_syncs(), 0);

    disk.empty();
    wait_equal(&source, &target);
    wait_syncs(&target, 1);
    let left = disk.path().join("dr/staging.rdb");
    eventually("the staged file is removed", deadline(), || (!left.exists()).then_some(()));
}
