//! A target takes over, and the old source comes back as its target with what its own disk has.

use std::process::Command;
use std::time::Duration;

use crate::harness::wait::until;
use crate::harness::{diff, wait_applied, wait_equal, Pipe, Proxy, Server, Version};
use crate::recovery::{count_of, wait_open};

fn write(server: &Server, prefix: &str, count: usize) {
    let mut pipe = Pipe::new();
    for n in 0..count {
        let name = format!("{prefix}:{n}");
        pipe.add(&["SET", &name, &name, "PX", &(5_000_000 + n).to_string()]);
        pipe.add(&["RPUSH", "list", &name]).add(&["HSET", "hash", &name, "1"]).add(&["INCR", "counter"]);
    }
    server.client().run_good(&pipe);
}

/// A target of the other, once it streams.
fn link(node: &Server, to: &Server) {
    cmd!(node.client(), "DR.LINK", to.endpoint()).ok();
    node.wait_state("streaming");
}

fn cut(node: &Server) {
    let reply = cmd!(node.client(), "DR.CUTLINK");
    assert!(reply.error().is_none(), "{reply:?}");
    node.wait_status("a source", |s| s.role() == "source" && s.state() == "capturing");
}

fn pair(version: Version) -> (Server, Server, Proxy) {
    let (a, b) = (Server::start(version), Server::builder(version).arg("service-id", 1).start());
    a.wait_state("capturing");
    b.wait_state("capturing");
    write(&a, "first", 200);
    let proxy = Proxy::start(a.endpoint());
    cmd!(b.client(), "DR.LINK", proxy.addr()).ok();
    b.wait_state("streaming");
    wait_equal(&a, &b);
    (a, b, proxy)
}

/// Key by key, with the times at which they expire.
fn assert_equal(source: &Server, target: &Server, what: &str) {
    wait_equal(source, target);
    let differences = diff(source, target, 10);
    assert!(differences.is_empty(), "{what}: {}", differences.join("\n"));
}

fn assert_counts(node: &Server, full_syncs: u64, rebuilds: u64, orphans: usize, what: &str) {
    let s = node.status();
    let seen = (s.full_syncs(), s.number("rebuilds"), s.list("orphans").len());
    assert_eq!(seen, (full_syncs, rebuilds, orphans), "{what}: {:#}", s.0);
}

for_some_servers!(an_old_source_comes_back);

fn an_old_source_comes_back(version: Version) {
    let what = |how: &str| format!("{version}, {how}");
    let (a, b, _proxy) = pair(version);
    cmd!(a.client(), "SET", "fleeting", "1", "PX", 1500).ok();
    wait_applied(&b, a.settle());
    a.terminate();
    cut(&b);
    write(&b, "at b", 50);
    // As a target from its start: nothing of its own is in its way. Its expiries are held by a rebuild.
    a.set_arg("source", Some(&b.endpoint()));
    a.start_again();
    a.wait_state("streaming");
    assert_equal(&b, &a, &what("clean stop"));
    let rebuilds = a.status().number("rebuilds");
    assert!(rebuilds <= 1, "{version}");
    assert_counts(&a, 0, rebuilds, 0, &what("clean stop"));
    a.set_arg("source", None);

    // Back, and back again: now the other one comes up as a source for a while, and expires keys.
    cmd!(b.client(), "SET", "fleeting too", "1", "PX", 1200).ok();
    wait_applied(&a, b.settle());
    b.kill9();
    cut(&a);
    write(&a, "at a", 50);
    b.start_again();
    wait_open(&b);
    write(&b, "astray", 20);
    until("it has expired keys of its own", || cmd!(b.client(), "EXISTS", "fleeting too").int() == 0);
    b.settle();
    link(&b, &a);
    assert_equal(&a, &b, &what("came back as a source"));
    let s = b.status();
    assert_eq!((s.full_syncs(), s.list("orphans").len()), (1, 1), "{version}: {:#}", s.0);
    assert!(s.number("rebuilds") >= 1, "{version}: {:#}", s.0);

    // With its RDBs gone its disk cannot give the fork point.
    wait_applied(&b, a.settle());
    a.kill9();
    cut(&b);
    write(&b, "at b again", 50);
    for gone in ["dump.rdb", "dr/base.rdb"] {
        let _ = std::fs::remove_file(a.dir().join(gone));
    }
    a.start_again();
    wait_open(&a);
    let before = a.status();
    link(&a, &b);
    assert_equal(&b, &a, &what("without its RDB"));
    let s = a.status();
    if before.number("oldest_op_id") > 1 {
        assert!(s.full_syncs() > before.full_syncs(), "{version}: {:#}", s.0);
    }
}

for_some_servers!(ops_that_were_never_sent_become_orphans);

fn ops_that_were_never_sent_become_orphans(version: Version) {
    let (a, b, proxy) = pair(version);
    proxy.down();
    write(&a, "unsent", 300);
    a.settle();
    a.kill9();
    cut(&b);
    write(&b, "at b", 50);
    a.start_again();
    wait_open(&a);
    assert_eq!(cmd!(a.client(), "EXISTS", "unsent:299").int(), 1, "{version}");
    link(&a, &b);
    assert_equal(&b, &a, &format!("{version}, unsent ops"));
    let s = a.status();
    assert_eq!((s.full_syncs(), s.number("rebuilds")), (0, 1), "{version}: {:#}", s.0);
    let dir = a.dir().join("dr").display().to_string();
    let mut shown = String::new();
    for orphan in s.list("orphans") {
        let id = orphan["id"].as_str().unwrap();
        let out = Command::new(env!("CARGO_BIN_EXE_oplogctl")).args(["orphans", &dir, "--show", id]).output();
        shown += &String::from_utf8_lossy(&out.unwrap().stdout);
    }
    for n in 0..300 {
        assert!(
            shown.contains(&format!("\"HSET\" \"hash\" \"unsent:{n}\" \"1\"")),
            "{version}: unsent:{n} is not in an orphan"
        );
    }
    assert_eq!(shown.matches("\"INCR\" \"counter\"").count(), 300, "{version}");
}

for_some_servers!(no_write_escapes_a_cut);

/// Clients hammer a target with writes through its cut, three times forth and back: what was acknowledged is in the new
/// source's log, since a further node that takes only that has it.
fn no_write_escapes_a_cut(version: Version) {
    let (a, b, _proxy) = pair(version);
    let mut nodes = [&a, &b];
    for round in 0..3 {
        let [old, new] = nodes;
        old.settle();
        wait_applied(new, old.status().op_id());
        let key = format!("hammered {round}");
        let stop = std::sync::atomic::AtomicBool::new(false);
        let acknowledged = std::thread::scope(|scope| {
            let hammer = scope.spawn(|| {
                let (mut client, mut last) = (new.client(), 0);
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    match client.try_call(&["INCR", &key]) {
                        Ok(reply) if reply.error().is_none() => last = reply.int(),
                        Ok(_) => {}
                        Err(_) => client.reconnect().unwrap(),
                    }
                }
                last
            });
            let _stop = crate::dr::OnDrop(|| stop.store(true, std::sync::atomic::Ordering::Relaxed));
            std::thread::sleep(Duration::from_millis(50));
            cut(new);
            std::thread::sleep(Duration::from_millis(100));
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            hammer.join().unwrap()
        });
        assert!(acknowledged > 0, "{version}: the fence was not lifted");
        new.settle();
        assert_eq!(count_of(new, &key), acknowledged, "{version}");
        link(old, new);
        assert_equal(new, old, &format!("{version}, round {round}"));
        assert_eq!(count_of(old, &key), acknowledged, "{version}, round {round}: writes escaped the log");
        assert_eq!(old.full_syncs_now(), u64::from(std::ptr::eq(old, &b)), "{version}, round {round}");
        nodes = [new, old];
    }
}

impl Server {
    fn full_syncs_now(&self) -> u64 {
        self.status().full_syncs()
    }
}

for_some_servers!(a_node_killed_in_a_cut_is_a_target_or_a_source);

fn a_node_killed_in_a_cut_is_a_target_or_a_source(version: Version) {
    let (a, b, _proxy) = pair(version);
    wait_applied(&b, a.settle());
    let keys = cmd!(a.client(), "DBSIZE").int();
    let (mut sources, mut targets) = (0, 0);
    for n in 0..8u64 {
        let mut client = b.client();
        client.send(&["DR.CUTLINK"]).unwrap();
        // Not a wait for anything: the moment of the kill is the experiment.
        std::thread::sleep(Duration::from_millis(n * 3));
        b.kill9();
        b.start_again();
        wait_open(&b);
        let status = b.wait_status("one or the other", |s| ["streaming", "capturing"].contains(&s.state()));
        let written = cmd!(b.client(), "SET", "written", "1");
        match status.role() {
            "source" => assert!(written.error().is_none(), "{version}: {written:?}"),
            "target" => assert!(written.is_error("READONLY"), "{version}: {written:?}"),
            other => panic!("{version}: {other}"),
        }
        if status.role() == "source" {
            sources += 1;
            assert_eq!(cmd!(b.client(), "DBSIZE").int(), keys + 1, "{version}");
            link(&b, &a);
        } else {
            targets += 1;
        }
        assert_equal(&a, &b, &format!("{version}, kill {n}"));
    }
    eprintln!("NOTE {version}: {sources} sources, {targets} targets");
}
