//! Proves on real servers that the tap attaches without a fork, reads what a native replica reads, stays invisible,
//! and comes back without a gap.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod capture_support;

use std::io::Read;
use std::time::{Duration, Instant};

use capture_support::{attach_to, call, servers, until, Load, Running, Server, Sink};
use oplog_format::{History, OpWalk};
use redisdr::capture::settings::Dial;
use redisdr::capture::{own_address, Resume, Role, TapEndReason};
use redisdr::local::{Reply, Secret, Stream};

/// A plain reader of the stream: (socket, first bytes).
fn native(server: &Server, history: History, offset: i64) -> (Stream, Vec<u8>) {
    let mut conn = server.conn();
    call(&mut conn, &["REPLCONF", "capa", "eof", "capa", "psync2"]);
    conn.push(&[b"PSYNC", history.as_bytes(), (offset + 1).to_string().as_bytes()]);
    conn.flush().unwrap();
    let Reply::Simple(answer) = conn.read_reply().unwrap() else { panic!("no answer to PSYNC") };
    assert!(answer.starts_with("CONTINUE"), "{answer}");
    conn.into_stream()
}

fn read_to(stream: &mut Stream, bytes: &mut Vec<u8>, len: usize) {
    let mut buf = vec![0; 64 * 1024];
    while bytes.len() < len {
        let n = stream.read(&mut buf).unwrap();
        assert!(n > 0, "the native replica was dropped");
        bytes.extend_from_slice(&buf[..n]);
    }
}

fn offset(server: &Server) -> i64 {
    server.info("replication", "master_repl_offset").unwrap().parse().unwrap()
}

fn resume(end: &redisdr::capture::TapEnd) -> Option<Resume> {
    Some(Resume { history: end.history, offset: end.offset, db: end.db })
}

#[test]
fn attaching_forks_nothing_and_leaves_the_settings_alone() {
    for binary in servers() {
        for diskless in ["yes", "no"] {
            let server = Server::start(&binary, &["--repl-diskless-sync", diskless]);
            call(&mut server.conn(), &["SET", "a", "b"]);
            let (forks, settings) = (server.forks(), server.settings());
            for round in 0..3 {
                let start = Instant::now();
                let attached = attach_to(&server.dial, None).unwrap();
                println!("{} attach {round}: {:?}", binary.display(), start.elapsed());
                assert_eq!((attached.continued, attached.gap, attached.role), (false, false, Role::Master));
                assert_eq!(server.settings(), settings);
                drop(attached);
            }
            // A waiting replica would start a fork within the next second or two.
            std::thread::sleep(Duration::from_millis(2500));
            assert_eq!(server.forks(), forks);
        }
    }
}

#[test]
fn captured_bytes_are_those_of_a_native_replica() {
    for binary in servers() {
        let server = Server::start(&binary, &["--repl-backlog-size", "64mb"]);
        let warm = Load::start(&server, 3, 100);
        let attached = attach_to(&server.dial, None).unwrap();
        let (history, from, db) = (attached.history, attached.offset, attached.db);
        let (mut stream, mut bytes) = native(&server, history, from);
        let sink = Sink::default();
        let tap = Running::start(attached, 1000, &sink);
        warm.stop();
        let load = Load::start(&server, 4, 5000);
        std::thread::sleep(Duration::from_millis(300));
        call(&mut server.conn(), &["SET", "large", &"x".repeat(3 << 20)]);
        assert!(load.stop() > 0);
        until("the tap reads all", || offset(&server) - from == tap.stopper.received() as i64 - 1000);
        let end = tap.stop();
        assert!(matches!(end.reason, TapEndReason::Stopped), "{:?}", end.reason);
        let payload = sink.payload(1000);
        assert_eq!(end.offset - from, payload.len() as i64);
        read_to(&mut stream, &mut bytes, payload.len());
        assert!(bytes[..payload.len()] == payload[..], "the streams differ");
        // An attach between MULTI and EXEC would show as an EXEC without its MULTI.
        let mut walk = OpWalk::new(&payload, db);
        let mut inside = false;
        while let Some(argv) = walk.step().unwrap() {
            assert!(inside || argv[0] != b"EXEC", "a lone EXEC before byte {}", walk.position());
            inside = walk.in_transaction();
        }
    }
}

#[test]
fn wait_does_not_count_the_tap() {
    for binary in servers() {
        let server = Server::start(&binary, &[]);
        let tap = Running::start(attach_to(&server.dial, None).unwrap(), 0, &Sink::default());
        let mut conn = server.conn();
        for _ in 0..3 {
            call(&mut conn, &["SET", "a", "b"]);
            assert_eq!(call(&mut conn, &["WAIT", "1", "700"]), Reply::Int(0));
        }
        tap.stop();
    }
}

#[test]
fn shutdown_does_not_wait_for_the_tap() {
    for binary in servers() {
        let mut server = Server::start(&binary, &[]);
        let tap = Running::start(attach_to(&server.dial, None).unwrap(), 0, &Sink::default());
        call(&mut server.conn(), &["SET", "a", "b"]);
        let start = Instant::now();
        server.conn().call_raw(&[b"SHUTDOWN", b"NOSAVE"]).ok();
        until("the server exits", || server.exited());
        let took = start.elapsed();
        println!("{} shutdown: {took:?}", binary.display());
        assert!(took < Duration::from_secs(4), "shutdown took {took:?}");
        assert!(matches!(tap.thread.join().unwrap().reason, TapEndReason::Closed(_)));
    }
}

#[test]
fn a_killed_tap_comes_back_without_a_gap() {
    for binary in servers() {
        let server = Server::start(&binary, &["--repl-backlog-size", "64mb"]);
        let (sink, forks) = (Sink::default(), server.forks());
        let attached = attach_to(&server.dial, None).unwrap();
        let (base, from) = (77, attached.offset);
        let mut tap = Running::start(attached, base, &sink);
        let load = Load::start(&server, 3, 200);
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(50));
            call(&mut server.conn(), &["CLIENT", "KILL", "TYPE", "slave"]);
            let end = tap.thread.join().unwrap();
            assert!(matches!(end.reason, TapEndReason::Closed(_)), "{:?}", end.reason);
            let attached = attach_to(&server.dial, resume(&end)).unwrap();
            assert_eq!((attached.continued, attached.gap), (true, false));
            assert_eq!((attached.offset, attached.db), (end.offset, end.db));
            tap = Running::start(attached, base + (end.offset - from) as u64, &sink);
        }
        load.stop();
        until("the tap reads all", || offset(&server) - from == (tap.stopper.received() - base) as i64);
        tap.stop();
        assert_eq!(sink.payload(base).len() as i64, offset(&server) - from);
        assert_eq!(server.forks(), forks);
    }
}

#[test]
fn an_overrun_backlog_is_told_as_a_gap() {
    for binary in servers() {
        let server = Server::start(&binary, &["--repl-diskless-sync", "no", "--repl-backlog-size", "64kb"]);
        let (sink, forks) = (Sink::default(), server.forks());
        let tap = Running::start(attach_to(&server.dial, None).unwrap(), 0, &sink);
        let end = tap.stop();
        let mut conn = server.conn();
        for _ in 0..20 {
            call(&mut conn, &["SET", "a", &"x".repeat(100_000)]);
        }
        let attached = attach_to(&server.dial, resume(&end)).unwrap();
        assert_eq!((attached.continued, attached.gap), (false, true));
        assert!(attached.offset > end.offset);
        let other =
            Resume { history: History::from_bytes(&[b'f'; 40]).unwrap(), offset: offset(&server), db: 0 };
        let attached = attach_to(&server.dial, Some(other)).unwrap();
        assert_eq!((attached.continued, attached.gap), (false, true));
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!(server.forks(), forks, "no full resync was started");
    }
}

#[test]
fn attaching_under_heavy_load_to_a_small_backlog_forks_nothing() {
    for binary in servers() {
        let server = Server::start(&binary, &["--repl-diskless-sync", "no", "--repl-backlog-size", "16kb"]);
        let (forks, settings) = (server.forks(), server.settings());
        let load = Load::start(&server, 3, 20_000);
        let mut attached = 0;
        for _ in 0..5 {
            match attach_to(&server.dial, None) {
                Ok(_) => attached += 1,
                Err(e) => assert!(e.is_temporary(), "{e}"),
            }
            assert_eq!(server.settings(), settings);
        }
        std::thread::sleep(Duration::from_millis(1500));
        load.stop();
        println!("{} attached {attached} of 5", binary.display());
        assert_eq!(server.forks(), forks);
    }
}

#[test]
fn a_replicas_tap_survives_its_promotion() {
    for binary in servers() {
        let master = Server::start(&binary, &["--repl-diskless-sync-delay", "0"]);
        let port = master.port.to_string();
        let replica = Server::start(&binary, &["--replicaof", "127.0.0.1", &port]);
        until("the replica follows", || {
            replica.info("replication", "master_link_status").as_deref() == Some("up")
        });
        let mut conn = master.conn();
        call(&mut conn, &["SELECT", "5"]);
        call(&mut conn, &["SET", "before", "1"]);
        until("the replica has it", || offset(&master) == offset(&replica));
        let forks = replica.forks();
        let attached = attach_to(&replica.dial, None).unwrap();
        assert_eq!((attached.role, attached.db), (Role::Replica, 5));
        let (history, from) = (attached.history, attached.offset);
        let (mut stream, mut bytes) = native(&master, history, from);
        let sink = Sink::default();
        let tap = Running::start(attached, 10, &sink);
        let load = Load::start(&master, 3, 300);
        std::thread::sleep(Duration::from_millis(200));
        load.stop();
        until("the tap reads all", || offset(&master) - from == tap.stopper.received() as i64 - 10);
        replica.call(&["REPLICAOF", "NO", "ONE"]);
        let end = tap.thread.join().unwrap();
        let payload = sink.payload(10);
        read_to(&mut stream, &mut bytes, payload.len());
        assert!(bytes[..payload.len()] == payload[..], "master and replica differ");
        assert_eq!(end.history, history);

        let attached = attach_to(&replica.dial, resume(&end)).unwrap();
        assert_eq!((attached.continued, attached.gap, attached.role), (true, false, Role::Master));
        assert_eq!(attached.history, history);
        let (new, last) = attached.next_history.expect("a new history");
        assert_eq!(Some(new.to_string()), replica.info("replication", "master_replid"));
        let tap = Running::start(attached, 10 + payload.len() as u64, &sink);
        replica.call(&["SET", "after", "1"]);
        until("the tap reads all", || offset(&replica) - from == tap.stopper.received() as i64 - 10);
        let end = tap.stop();
        assert_eq!(end.history, new);
        assert_eq!(sink.0.lock().unwrap().changes, [(new, 10 + (last - from) as u64 + 1)]);
        assert!(sink.payload(10).windows(5).any(|w| w == b"after"));
        assert_eq!(replica.forks(), forks);
    }
}

#[test]
fn a_replica_with_a_tap_shuts_down_at_once() {
    for binary in servers() {
        let master = Server::start(&binary, &["--repl-diskless-sync-delay", "0"]);
        let port = master.port.to_string();
        let mut replica = Server::start(&binary, &["--replicaof", "127.0.0.1", &port]);
        until("the replica follows", || {
            replica.info("replication", "master_link_status").as_deref() == Some("up")
        });
        let tap = Running::start(attach_to(&replica.dial, None).unwrap(), 0, &Sink::default());
        master.call(&["SET", "a", "b"]);
        let start = Instant::now();
        replica.conn().call_raw(&[b"SHUTDOWN", b"NOSAVE"]).ok();
        until("the replica exits", || replica.exited());
        assert!(start.elapsed() < Duration::from_secs(4), "shutdown took {:?}", start.elapsed());
        tap.thread.join().unwrap();
    }
}

#[test]
fn a_sink_that_wants_no_more_ends_the_tap_at_what_it_took() {
    for binary in servers() {
        let server = Server::start(&binary, &[]);
        let sink = Sink::default();
        let attached = attach_to(&server.dial, None).unwrap();
        let from = attached.offset;
        let tap = Running::start(attached, 0, &sink);
        server.call(&["SET", "taken", "1"]);
        until("an entry arrives", || sink.payload(0).windows(5).any(|w| w == b"taken"));
        sink.0.lock().unwrap().refuse = true;
        server.call(&["SET", "refused", "1"]);
        let end = tap.thread.join().unwrap();
        assert!(matches!(&end.reason, TapEndReason::Sink(s) if s.reason == "full"), "{:?}", end.reason);
        assert_eq!(end.offset - from, sink.payload(0).len() as i64);
        sink.0.lock().unwrap().refuse = false;
        let attached = attach_to(&server.dial, resume(&end)).unwrap();
        assert!(attached.continued);
        let tap = Running::start(attached, (end.offset - from) as u64, &sink);
        until("the refused one comes again", || sink.payload(0).windows(7).any(|w| w == b"refused"));
        tap.stop();
    }
}

#[test]
fn a_unix_socket_will_do() {
    for binary in servers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let server = Server::start(
            &binary,
            &[
                "--unixsocket",
                path.to_str().unwrap(),
                "--repl-diskless-sync",
                "no",
                "--repl-backlog-size",
                "16kb",
            ],
        );
        let (forks, settings) = (server.forks(), server.settings());
        let dial = Dial { addr: own_address(path.to_str().unwrap(), 0, "").unwrap(), secret: Secret(None) };
        let sink = Sink::default();
        let tap = Running::start(attach_to(&dial, None).unwrap(), 0, &sink);
        server.call(&["SET", "seen", "1"]);
        until("the tap reads", || sink.payload(0).windows(4).any(|w| w == b"seen"));
        let end = tap.stop();
        server.call(&["SET", "k", &"x".repeat(1 << 20)]);
        let attached = attach_to(&dial, resume(&end)).unwrap();
        assert_eq!((attached.continued, attached.gap), (false, true));
        assert_eq!(server.settings(), settings);
        drop(attached);
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!(server.forks(), forks);
    }
}

/// A Sentinel lists each replica that INFO shows with a port. It sees the native one, so it has read INFO.
#[test]
fn a_sentinel_does_not_list_the_tap() {
    for binary in servers() {
        let master = Server::start(&binary, &["--repl-diskless-sync-delay", "0"]);
        let tap = Running::start(attach_to(&master.dial, None).unwrap(), 0, &Sink::default());
        let port = master.port.to_string();
        let replica = Server::start(&binary, &["--replicaof", "127.0.0.1", &port]);
        until("the replica follows", || {
            master.info("replication", "connected_slaves").as_deref() == Some("2")
        });
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("sentinel.conf");
        std::fs::write(&config, format!("sentinel monitor m 127.0.0.1 {port} 1\n")).unwrap();
        let sentinel = Server::launch(&binary, &[config.to_str().unwrap(), "--sentinel"], &[]);
        until("the sentinel lists the replica", || {
            sentinel.info("sentinel", "master0").is_some_and(|m| !m.contains("slaves=0"))
        });
        let Reply::Array(listed) = sentinel.call(&["SENTINEL", "replicas", "m"]) else { panic!("no array") };
        assert_eq!(listed.len(), 1, "{listed:?}");
        assert!(format!("{:?}", master.info("replication", "slave0")).contains("99999"));
        assert!(!sentinel.log().contains("99999"), "{}", sentinel.log());
        drop(replica);
        tap.stop();
    }
}

/// Redis 6.0 propagates an empty MULTI and EXEC for a transaction that only asks.
#[test]
fn attaching_adds_nothing_to_the_stream_but_the_select() {
    for binary in servers() {
        let server = Server::start(&binary, &[]);
        let attached = attach_to(&server.dial, None).unwrap();
        assert!(
            attached.leftover.starts_with(b"*2\r\n$6\r\nSELECT\r\n"),
            "{:?}",
            attached.leftover.escape_ascii()
        );
        let before = offset(&server);
        let resume = Resume { history: attached.history, offset: before, db: 0 };
        drop(attached);
        assert!(attach_to(&server.dial, Some(resume)).unwrap().continued);
        assert_eq!(offset(&server), before);
    }
}
