//! The cleaner on real servers: what holds the log, what lets it go, and what a lost target is told.

use crate::disk::{ready, verify, wait_syncs, write};
use crate::harness::{deadline, digest, eventually, secs, version, wait_equal, Server};

const MB: u64 = 1 << 20;

fn source(args: &[(&str, &str)]) -> Server {
    let mut builder = Server::builder(version("redis-7.0")).arg("segment-size", "1mb");
    for (name, value) in args {
        builder = builder.arg(name, value);
    }
    ready(builder.start())
}

fn target_of(source: &Server, id: u64) -> Server {
    Server::builder(version("redis-7.0")).arg("service-id", id).source(source).start()
}

#[test]
fn the_log_waits_for_snapshot_and_targets_and_is_released_by_a_cut() {
    let source = source(&[]);
    let (here, away) = (target_of(&source, 1), target_of(&source, 2));
    let mut client = source.client();
    write(&mut client, 1, "before");
    wait_equal(&source, &here);
    wait_equal(&source, &away);
    away.terminate();
    write(&mut client, 8, "while one is away");
    wait_equal(&source, &here);
    // A snapshot alone releases nothing.
    assert!(cmd!(client, "DR.SNAPSHOT").error().is_none());
    std::thread::sleep(secs(3));
    let status = source.status();
    assert!(status.number("segments") >= 8, "{:#}", status.0);
    let pinned = |id| status.target(id).unwrap().number("pinned_bytes");
    assert!(pinned(2) > 7 * MB && pinned(1) < MB, "{} and {}", pinned(1), pinned(2));

    assert!(cmd!(client, "DR.CUTLINK", 2).error().is_none());
    let status = source.wait_status("cleaned", |s| s.number("segments") <= 2);
    assert!(status.number("oldest_op_id") > 5 * MB);
    assert_eq!(status.target(2).map(|t| t.text("state").to_owned()).unwrap_or_default(), "cut");
    // The other does not notice.
    write(&mut client, 2, "after");
    wait_equal(&source, &here);
    wait_syncs(&here, 1);
    verify(&source.dir().join("dr"));
    // Linked by hand again it takes a copy.
    away.start_again();
    assert!(cmd!(away.client(), "DR.LINK", source.endpoint()).error().is_none());
    wait_equal(&source, &away);
    wait_syncs(&away, 2);
}

#[test]
fn segments_are_kept_for_the_least_time() {
    let source = source(&[("retain-min-seconds", "6")]);
    let mut client = source.client();
    write(&mut client, 5, "a");
    assert!(cmd!(client, "DR.SNAPSHOT").error().is_none());
    std::thread::sleep(secs(2));
    assert!(source.status().number("segments") >= 5);
    source.wait_status("cleaned when they are old", |s| s.number("segments") <= 2);
}

/// The hard cap costs a target its log, and the source never the way back to its own data.
#[test]
fn the_hard_cap_loses_the_laggard_loudly() {
    let source = source(&[("retain-max-bytes", "3mb")]);
    let target = target_of(&source, 1);
    let mut client = source.client();
    write(&mut client, 1, "before");
    wait_equal(&source, &target);
    target.terminate();
    for _ in 0..4 {
        write(&mut client, 3, "while it is away");
        std::thread::sleep(secs(1));
    }
    let status = source.wait_status("below the cap, the target lost", |s| {
        s.number("oplog_bytes") <= 4 * MB && s.target(1).is_some_and(|t| t.text("state") == "lost")
    });
    assert!(status.number("snapshot_op_id") + 1 >= status.number("oldest_op_id"), "{:#}", status.0);
    assert!(status.list("warnings").iter().any(|w| w.as_str().unwrap().contains("target 1 at")));
    assert!(source.log().contains("will take a full copy"));

    let before = digest(&source);
    source.kill9();
    verify(&source.dir().join("dr"));
    source.start_again();
    source.wait_state("capturing");
    assert!(digest(&source) == before, "another dataset after the crash");

    target.start_again();
    wait_equal(&source, &target);
    wait_syncs(&target, 2);
    assert!(target.log().contains("full sync from"), "{}", target.log_tail(30));
    source.wait_status("well again", |s| s.list("warnings").is_empty());
}

/// A target that reads slowly meets the cap in the middle of a segment.
#[test]
fn a_reader_whose_segments_go_takes_a_copy() {
    let source = source(&[("retain-max-bytes", "2mb"), ("link-max-bytes-per-sec", "1mb")]);
    let target = target_of(&source, 1);
    let mut client = source.client();
    write(&mut client, 1, "before");
    wait_equal(&source, &target);
    write(&mut client, 14, "faster than it reads");
    wait_equal(&source, &target);
    target.wait_status("copied again: the cap was met", |s| s.full_syncs() >= 2);
    assert!(!target.log().contains("damaged"), "{}", target.log());
    assert!(!source.log().contains("damaged"), "{}", source.log());
}

/// Nobody saves (`save ""`): the module does, so that the log does not grow for ever.
#[test]
fn a_log_without_snapshots_does_not_grow_for_ever() {
    let source = source(&[("snapshot-log-size", "3mb")]);
    let target = Server::builder(version("redis-7.0"))
        .arg("service-id", 1)
        .arg("segment-size", "1mb")
        .arg("snapshot-log-size", "3mb")
        .source(&source)
        .start();
    let mut client = source.client();
    for _ in 0..8 {
        write(&mut client, 2, "a");
        std::thread::sleep(secs(1));
    }
    for node in [&source, &target] {
        node.wait_status("short", |s| s.number("oplog_bytes") < 6 * MB && s.number("oldest_op_id") > 8 * MB);
        assert!(node.log().contains("snapshot-log-size"), "{}", node.log_tail(30));
    }
    wait_equal(&source, &target);
    let before = digest(&source);
    source.kill9();
    target.kill9();
    source.start_again();
    source.wait_state("capturing");
    target.start_again();
    wait_equal(&source, &target);
    assert!(digest(&source) == before);
    wait_syncs(&target, 1);
}

/// The rate of a steady load, and the room that is left, make a forecast.
#[test]
fn the_forecast_names_the_time_that_is_left() {
    let disk = crate::harness::SmallDisk::new(64);
    let source = source(&[("dir", disk.path().join("dr").to_str().unwrap())]);
    let mut client = source.client();
    let status = eventually("there is a forecast", deadline(), || {
        write(&mut client, 1, "steady");
        std::thread::sleep(secs(1));
        let status = source.status();
        status.field("disk_full_in_seconds").as_i64().filter(|s| *s >= 0).map(|_| status)
    });
    let seconds = status.number("disk_full_in_seconds");
    // A megabyte or so a second, some 50 MB left.
    assert!((10..600).contains(&seconds), "{seconds}");
    source.wait_status("warning", |s| {
        s.list("warnings").iter().any(|w| w.as_str().unwrap().contains("disk is full in"))
    });
}
