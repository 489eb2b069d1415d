//! A compressed log is the same log: at the source, over the link, at targets and replicas, through starts with and
//! without compression, kills, a fork and a failback.

use std::process::Command;

use oplog_format::packed::plain_entry;
use oplog_format::{decode_stored, Stored, SEGMENT_HEADER_LEN};

use crate::harness::{diff, wait_applied, wait_equal, Pipe, Proxy, Server, Version};
use crate::recovery::wait_open;

/// Text as values have it.
const TEXT: &str = include_str!("../../docs/design.md");

/// Values of all lengths, many of them alike, some that do not compress, one of several megabytes.
fn write(server: &Server, prefix: &str, rounds: usize) {
    let lines: Vec<&str> = TEXT.lines().filter(|l| !l.is_empty()).collect();
    let mut seed = 1u64;
    let mut noise = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 56) as u8
    };
    for round in 0..rounds {
        let mut pipe = Pipe::new();
        for (n, line) in lines.iter().enumerate() {
            let key = format!("{prefix}:{round}:{n}");
            pipe.add(&["SET", &key, line]).add(&[
                "HSET",
                &format!("{key}:h"),
                "text",
                line,
                "n",
                &n.to_string(),
            ]);
            pipe.add(&["INCR", "counter"]);
            if n % 20 == 0 {
                let random: Vec<u8> = (0..500).map(|_| noise()).collect();
                pipe.add(&[b"SET".as_slice(), format!("{key}:r").as_bytes(), &random]);
                pipe.add(&["MULTI"]).add(&["RPUSH", "list", line]).add(&["LPOP", "list"]).add(&["EXEC"]);
            }
        }
        pipe.add(&["SET", &format!("{prefix}:{round}:all"), &TEXT.repeat(if round == 0 { 100 } else { 1 })]);
        server.client().run_good(&pipe);
        // One by one, so that there are small entries as well.
        for line in lines.iter().take(30) {
            cmd!(server.client(), "SET", format!("{prefix}:last"), line).ok();
        }
    }
}

/// All plain frames of a log in order, with the first op of each; and how many of them are compressed.
fn frames(server: &Server) -> (Vec<(u64, Vec<u8>)>, usize) {
    let names = std::fs::read_dir(server.dir().join("dr")).unwrap().map(|e| e.unwrap().path());
    let mut segments: Vec<_> = names.filter(|p| p.extension().is_some_and(|e| e == "oplog")).collect();
    segments.sort();
    let (mut out, mut packed) = (Vec::new(), 0);
    for segment in segments {
        let bytes = std::fs::read(segment).unwrap();
        let mut at = SEGMENT_HEADER_LEN;
        while let Some(Ok(Stored::Entry(e))) = bytes.get(at..).map(decode_stored) {
            packed += usize::from(e.header.codec.is_some());
            out.push((e.header.first_op(), plain_entry(&bytes[at..]).unwrap().into_owned()));
            at += e.frame.len();
        }
    }
    (out, packed)
}

/// The target's log is the source's, from the op on where it begins.
fn assert_same_log(source: &Server, target: &Server, what: &str) {
    let (theirs, _) = frames(source);
    let (ours, _) = frames(target);
    let first = ours.first().unwrap_or_else(|| panic!("{what}: nothing in the target's log")).0;
    let theirs: Vec<_> = theirs.into_iter().filter(|(op, _)| *op >= first).collect();
    assert!(ours.len() > 20, "{what}: {} entries", ours.len());
    assert!(ours == theirs, "{what}: the logs differ");
}

fn assert_equal(source: &Server, target: &Server, what: &str) {
    wait_equal(source, target);
    let differences = diff(source, target, 10);
    assert!(differences.is_empty(), "{what}: {}", differences.join("\n"));
}

fn oplogctl(server: &Server, args: &[&str]) -> String {
    let dir = server.dir().join("dr");
    let out =
        Command::new(env!("CARGO_BIN_EXE_oplogctl")).arg(args[0]).arg(dir).args(&args[1..]).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&out.stderr));
    text
}

fn restart_with(server: &Server, compression: &str) {
    server.set_arg("compression", Some(compression));
    server.kill9();
    server.start_again();
    wait_open(server);
    server.wait_status("open to writes", |s| ["capturing", "rebasing"].contains(&s.state()));
    assert_eq!(server.status().text("compression"), compression);
}

for_each_server!(a_compressed_log_is_the_same_stream);

fn a_compressed_log_is_the_same_stream(version: Version) {
    let what = |how: &str| format!("{version}, {how}");
    let source = Server::builder(version).arg("compression", "zstd").arg("segment-size", "1mb").start();
    source.wait_state("capturing");
    let target = Server::builder(version).arg("service-id", 1).source(&source).start();
    target.wait_state("streaming");
    write(&source, "first", 6);
    assert_equal(&source, &target, &what("at first"));
    assert_same_log(&source, &target, &what("at first"));
    let status = source.status();
    assert_eq!(status.text("compression"), "zstd", "{version}");
    let percent = status.number("stream_disk_percent");
    assert!((1..60).contains(&percent), "{version}: {percent} % of {} bytes", status.number("stream_bytes"));
    // What it does not compress itself it keeps as it came.
    assert_eq!(target.status().text("compression"), "no", "{version}");
    assert!(target.status().number("stream_disk_percent") < 70, "{version}: {:#}", target.status().0);
    assert!(frames(&target).1 > 10, "{version}");

    // Without a snapshot all of it comes back from the log.
    source.kill9();
    source.start_again();
    wait_open(&source);
    source.wait_status("open to writes", |s| ["capturing", "rebasing"].contains(&s.state()));
    assert_equal(&source, &target, &what("after a kill"));

    // Compression is switched off and on between starts of either.
    for (n, compression) in ["no", "zstd"].into_iter().enumerate() {
        restart_with(&source, compression);
        write(&source, &format!("then {n}"), 1);
        target.kill9();
        target.start_again();
        target.wait_state("streaming");
        assert_equal(&source, &target, &what(compression));
        assert_same_log(&source, &target, &what(compression));
    }
    assert_eq!((target.status().full_syncs(), target.status().number("rebuilds")), (1, 0), "{version}");

    for node in [&source, &target] {
        assert!(oplogctl(node, &["verify"]).contains("compressed"), "{version}");
        assert!(oplogctl(node, &["stat"]).contains("% of the stream"), "{version}");
        let last = oplogctl(node, &["dump", "--json"]);
        assert!(last.contains("then 1:last"), "{version}");
    }
    let (all, packed) = frames(&source);
    assert!(packed > 10 && packed < all.len(), "{version}: {packed} of {}", all.len());
}

for_some_servers!(a_fork_of_a_compressed_log_is_set_aside);

/// A source that is lost with ops that nobody has, its return as a target, and the way back.
fn a_fork_of_a_compressed_log_is_set_aside(version: Version) {
    let a = Server::builder(version).arg("compression", "zstd").start();
    let b = Server::builder(version).arg("service-id", 1).arg("compression", "zstd").start();
    a.wait_state("capturing");
    b.wait_state("capturing");
    write(&a, "first", 2);
    let proxy = Proxy::start(a.endpoint());
    cmd!(b.client(), "DR.LINK", proxy.addr()).ok();
    b.wait_state("streaming");
    wait_equal(&a, &b);
    proxy.down();
    write(&a, "unsent", 2);
    a.settle();
    a.kill9();
    let cut = |node: &Server| {
        assert!(cmd!(node.client(), "DR.CUTLINK").error().is_none());
        node.wait_status("a source", |s| s.role() == "source" && s.state() == "capturing");
    };
    cut(&b);
    write(&b, "at b", 2);
    a.start_again();
    wait_open(&a);
    cmd!(a.client(), "DR.LINK", b.endpoint()).ok();
    a.wait_state("streaming");
    assert_equal(&b, &a, &format!("{version}, unsent ops"));
    let s = a.status();
    assert_eq!((s.full_syncs(), s.number("rebuilds")), (0, 1), "{version}: {:#}", s.0);
    let id = s.list("orphans")[0]["id"].as_str().unwrap().to_owned();
    let shown = oplogctl(&a, &["orphans", "--show", &id]);
    for key in ["unsent:0:all", "unsent:1:7", "unsent:last"] {
        assert!(shown.contains(key), "{version}: {key} is not in the orphans");
    }
    assert!(!shown.contains("first:0:1"), "{version}");

    // And back.
    wait_applied(&a, b.settle());
    cut(&a);
    write(&a, "back", 1);
    cmd!(b.client(), "DR.LINK", a.endpoint()).ok();
    b.wait_state("streaming");
    assert_equal(&a, &b, &format!("{version}, failback"));
    assert_eq!(b.status().full_syncs(), 1, "{version}");
}

for_some_servers!(a_replica_compresses_by_its_own_argument);

/// A target's replica gets plain entries by DR.APPLY, and goes on as a target from the log that it has made of them.
fn a_replica_compresses_by_its_own_argument(version: Version) {
    let source = Server::start(version);
    source.wait_state("capturing");
    let target = Server::builder(version).arg("service-id", 1).source(&source).start();
    target.wait_state("streaming");
    let replica = Server::builder(version).arg("service-id", 1).arg("compression", "zstd").start();
    replica.wait_state("capturing");
    replica.replicate(&target);
    replica.wait_in_step(&target);
    write(&source, "first", 2);
    wait_applied(&target, source.settle());
    replica.wait_in_step(&target);
    let op = source.status().op_id();
    replica.wait_status("its own log", |s| s.op_id() == op);
    assert!(frames(&replica).1 > 5, "{version}");
    assert_eq!(frames(&target).1, 0, "{version}: its source's log is plain");
    target.kill9();
    cmd!(replica.client(), "REPLICAOF", "NO", "ONE").ok();
    replica.wait_state("streaming");
    write(&source, "then", 1);
    assert_equal(&source, &replica, &version.to_string());
    assert!(oplogctl(&replica, &["verify"]).contains("compressed"), "{version}");
}
