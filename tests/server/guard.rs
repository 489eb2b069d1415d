//! What a target does when its source comes back as something else than it was: it never gives its data up by itself.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::harness::wait::until;
use crate::harness::{digest, version, wait_applied, wait_equal, Pipe, Server, Status, Version};

fn write(server: &Server, prefix: &str, count: usize) {
    let mut pipe = Pipe::new();
    for n in 0..count {
        let name = format!("{prefix}:{n}");
        pipe.add(&["SET", &name, &name, "EX", "5000"]);
        pipe.add(&["RPUSH", "list", &name]).add(&["INCR", "counter"]);
        pipe.add(&["MULTI"]).add(&["HSET", "hash", &name, "1"]).add(&["SADD", "set", &name]).add(&["EXEC"]);
    }
    server.client().run_good(&pipe);
}

/// A source and its target in step; tails of more than a second are too long.
fn pair(version: Version) -> (Server, Server) {
    let source = Server::start(version);
    source.wait_state("capturing");
    let target =
        Server::builder(version).arg("service-id", 1).arg("fork-tolerance", 1).source(&source).start();
    target.wait_state("streaming");
    write(&source, "first", 100);
    wait_equal(&source, &target);
    (source, target)
}

/// More than the tolerance of [`pair`] lies between the first and the last of these.
fn write_for_a_while(source: &Server, target: &Server) {
    write(source, "early", 50);
    // The span of the tail is what is tested.
    std::thread::sleep(Duration::from_millis(1300));
    write(source, "late", 50);
    wait_applied(target, source.settle());
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_dir(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// What a server's directory keeps of its data.
fn take_data(server: &Server, to: &Path) {
    copy_dir(&server.dir().join("dr"), &to.join("dr"));
    fs::copy(server.dir().join("dump.rdb"), to.join("dump.rdb")).unwrap();
}

fn wipe(server: &Server) {
    let _ = fs::remove_dir_all(server.dir().join("dr"));
    let _ = fs::remove_file(server.dir().join("dump.rdb"));
}

fn oplogctl(args: &[&str]) -> String {
    let out = Command::new(env!("CARGO_BIN_EXE_oplogctl")).args(args).output().unwrap();
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// The target keeps its data, says why, serves reads and no writes.
fn assert_held(source: &Server, target: &Server, before: &str, what: &str) -> Status {
    let status = target.wait_state("held");
    // Also when the source has by now written more than it had lost.
    write(source, "after", 300);
    source.settle();
    // Longer than the wait between two attempts would take too long: a new connection asks again at once.
    target.restart();
    let again = target.wait_state("held");
    assert_eq!(digest(target), before, "{what}: the target's data have changed");
    for status in [&status, &again] {
        let reason = status.text("state_reason");
        assert!(reason.contains("DR.RESYNC"), "{what}: the way out is not named: {reason}");
        let warned = status.list("warnings").iter().any(|w| w.as_str().unwrap_or_default().contains("held"));
        assert!(warned, "{what}: {:#}", status.0);
        assert_eq!(status.full_syncs(), 1, "{what}");
    }
    let log = target.log();
    let line = log.lines().find(|l| l.contains("this target is held") && l.contains("DR.RESYNC"));
    assert!(line.is_some_and(|l| l.contains(" # ")), "{what}: no warning in the log: {line:?}");
    let mut client = target.client();
    assert_eq!(cmd!(client, "GET", "first:1").text(), "first:1", "{what}");
    assert!(cmd!(client, "SET", "x", "1").is_error("READONLY"), "{what}");
    status
}

/// The operator gives the target's data up: they are replaced, and what the source lacks is kept.
fn accept(source: &Server, target: &Server, orphans: usize, what: &str) -> Status {
    cmd!(target.client(), "DR.RESYNC").ok();
    target.wait_status("streaming after a copy", |s| s.state() == "streaming" && s.full_syncs() == 2);
    wait_equal(source, target);
    let status = target.status();
    assert_eq!(status.list("orphans").len(), orphans, "{what}: {:#}", status.0);
    assert!(status.list("warnings").is_empty(), "{what}: {:#}", status.0);
    status
}

/// Ops of an orphan as DR.STATUS and `oplogctl` tell them; also after a restart.
fn assert_orphan(target: &Server, at: usize, key: &str, what: &str) {
    let read = |when: &str| {
        let status = target.status();
        let (id, dir) = (status.text(&format!("orphans/{at}/id")).to_owned(), target.dir().join("dr"));
        let ops = status.number(&format!("orphans/{at}/ops"));
        let (first, last) = (
            status.number(&format!("orphans/{at}/first_time_ms")),
            status.number(&format!("orphans/{at}/last_time_ms")),
        );
        assert!(ops > 0 && first > 0 && last >= first, "{what} {when}: {:#}", status.0);
        let keys = status.list(&format!("orphans/{at}/keys"));
        assert!(keys.iter().any(|k| k == key), "{what} {when}: {keys:?}");
        let listed = oplogctl(&["orphans", &dir.display().to_string()]);
        let line = listed.lines().find(|l| l.starts_with(&id)).unwrap_or_default().to_owned();
        assert!(line.contains(&format!("({ops} ops")) && line.contains(key), "{what} {when}: {listed}");
        let shown = oplogctl(&["orphans", &dir.display().to_string(), "--show", &id]);
        assert_eq!(shown.lines().count() as u64, ops, "{what} {when}");
        assert!(shown.contains(key), "{what} {when}");
        line
    };
    let line = read("at once");
    target.restart();
    target.wait_state("streaming");
    assert_eq!(read("after a restart"), line, "{what}");
}

for_some_servers!(a_source_that_returns_empty_takes_nothing_away);

fn a_source_that_returns_empty_takes_nothing_away(version: Version) {
    let (source, target) = pair(version);
    let before = digest(&target);
    source.kill9();
    wipe(&source);
    source.start_again();
    source.wait_state("capturing");
    let what = format!("{version}, empty");
    assert_held(&source, &target, &before, &what);
    accept(&source, &target, 1, &what);
    assert_orphan(&target, 0, "first:0", &what);
}

for_some_servers!(a_source_with_an_old_rdb_and_no_log_takes_nothing_away);

fn a_source_with_an_old_rdb_and_no_log_takes_nothing_away(version: Version) {
    let (source, target) = pair(version);
    assert!(cmd!(source.client(), "DR.SNAPSHOT").error().is_none());
    let old = fs::read(source.dir().join("dump.rdb")).unwrap();
    write_for_a_while(&source, &target);
    let before = digest(&target);
    source.kill9();
    wipe(&source);
    fs::write(source.dir().join("dump.rdb"), old).unwrap();
    source.start_again();
    source.wait_state("capturing");
    assert_eq!(cmd!(source.client(), "EXISTS", "late:1").int(), 0);
    let what = format!("{version}, old RDB");
    assert_held(&source, &target, &before, &what);
    accept(&source, &target, 1, &what);
    assert_orphan(&target, 0, "early:0", &what);
}

for_some_servers!(a_source_with_the_data_of_another_takes_nothing_away);

fn a_source_with_the_data_of_another_takes_nothing_away(version: Version) {
    let (source, target) = pair(version);
    let before = digest(&target);
    let other = Server::start(version);
    other.wait_state("capturing");
    write(&other, "other", 200);
    assert!(cmd!(other.client(), "DR.SNAPSHOT").error().is_none());
    other.settle();
    other.kill9();
    source.kill9();
    wipe(&source);
    take_data(&other, source.dir());
    source.start_again();
    source.wait_state("capturing");
    assert_eq!(cmd!(source.client(), "EXISTS", "other:1").int(), 1);
    let what = format!("{version}, another's data");
    assert_held(&source, &target, &before, &what);
    accept(&source, &target, 1, &what);
    assert_orphan(&target, 0, "first:0", &what);
}

/// Puts the source back to where it was before `between`, with its log.
fn set_back(source: &Server, between: impl FnOnce()) {
    let kept = tempfile::tempdir().unwrap();
    assert!(cmd!(source.client(), "DR.SNAPSHOT").error().is_none());
    source.settle();
    source.terminate();
    take_data(source, kept.path());
    source.start_again();
    source.wait_state("capturing");
    between();
    source.kill9();
    wipe(source);
    copy_dir(kept.path(), source.dir());
    source.start_again();
    source.wait_state("capturing");
}

#[test]
fn a_target_with_more_than_is_tolerated_holds() {
    let (source, target) = pair(version("redis-7.0"));
    let mut before = String::new();
    set_back(&source, || {
        target.wait_state("streaming");
        write_for_a_while(&source, &target);
        before = digest(&target);
    });
    let what = "forked by more than fork-tolerance";
    let status = assert_held(&source, &target, &before, what);
    assert!(status.text("state_reason").contains("fork-tolerance"), "{:#}", status.0);
    accept(&source, &target, 1, what);
    assert_orphan(&target, 0, "early:0", what);
}

for_some_servers!(a_target_with_a_little_more_rebuilds_itself);

fn a_target_with_a_little_more_rebuilds_itself(version: Version) {
    let (source, target) = pair(version);
    until("the target has saved", || cmd!(target.client(), "SAVE").error().is_none());
    set_back(&source, || {
        target.wait_state("streaming");
        write(&source, "lost", 20);
        wait_applied(&target, source.settle());
    });
    write(&source, "after", 20);
    target.wait_status("rebuilt", |s| s.number("rebuilds") == 1 && s.state() == "streaming");
    wait_equal(&source, &target);
    let status = target.status();
    let what = format!("{version}, forked within fork-tolerance");
    assert_eq!((status.full_syncs(), status.list("orphans").len()), (1, 1), "{what}: {:#}", status.0);
    assert_eq!(cmd!(target.client(), "EXISTS", "lost:1").int(), 0, "{what}");
    assert_orphan(&target, 0, "lost:0", &what);
    wait_equal(&source, &target);
}

#[test]
fn a_target_that_was_away_too_long_takes_a_copy() {
    let source = Server::builder(version("redis-7.0"))
        .arg("segment-size", "1mb")
        .arg("retain-max-bytes", "2mb")
        .start();
    source.wait_state("capturing");
    let target = Server::builder(version("redis-7.0")).arg("service-id", 1).source(&source).start();
    target.wait_state("streaming");
    write(&source, "first", 10);
    wait_equal(&source, &target);
    let at = target.status().op_id();
    target.terminate();
    (0..10).for_each(|n| write(&source, &format!("more {n}"), 1000));
    source.settle();
    assert!(cmd!(source.client(), "DR.SNAPSHOT").error().is_none());
    until("the source's log is trimmed", || source.status().number("oldest_op_id") > at + 1);
    target.start_again();
    target.wait_status("streaming after a copy", |s| s.state() == "streaming" && s.full_syncs() == 2);
    wait_equal(&source, &target);
    assert!(target.status().list("orphans").is_empty(), "{:#}", target.status().0);
    assert!(target.log().contains("above the target's position"));
}
