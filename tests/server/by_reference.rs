//! What the module's threads hand to the main thread in memory: the same data at the target, in its AOF and at its
//! replica as when it came by the connection, and nothing for anybody else to take or to send.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::wait::{eventually, secs, until};
use crate::harness::{digest, wait_equal, Pipe, Reply, Server, Version};

/// Keys of each kind.
const MANY: usize = 700;
/// Bytes of values, about: none of them compresses.
const BYTES: u64 = 40_000_000;

/// Strings of every length and look, with and without expiry, and small collections, in two databases.
fn fill(server: &Server) {
    let mut noise = 1u64;
    let mut text = |len: usize| -> Vec<u8> {
        let letters = std::iter::repeat_with(|| {
            noise = noise.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            b'a' + u8::try_from((noise >> 40) % 26).unwrap()
        });
        letters.take(len).collect()
    };
    for db in ["0", "3"] {
        let mut pipe = Pipe::new();
        pipe.add(&["SELECT", db]);
        for n in 0..MANY {
            let name = |kind: &str| format!("{kind}:{n}").into_bytes();
            pipe.add(&[b"SET".to_vec(), name("text"), text(n)]);
            pipe.add(&[b"SET".to_vec(), name("long"), text(20_000 + n)]);
            pipe.add(&[b"SET".to_vec(), name("same"), vec![b'x'; n]]);
            pipe.add(&[b"SET".to_vec(), name("number"), n.to_string().into_bytes()]);
            pipe.add(&[b"SET".to_vec(), name("like a number"), format!("00{n}").into_bytes()]);
            pipe.add(&[b"SET".to_vec(), name("ends"), text(n), b"EX".to_vec(), b"5000".to_vec()]);
            pipe.add(&[
                b"SET".to_vec(),
                name("number ends"),
                b"77".to_vec(),
                b"EX".to_vec(),
                b"5000".to_vec(),
            ]);
            pipe.add(&[b"HSET".to_vec(), name("hash"), text(8), text(n), text(9), b"12".to_vec()]);
            pipe.add(&[b"RPUSH".to_vec(), name("list"), text(8), b"12".to_vec()]);
        }
        // A key without a name, one that is long, and one that is no text.
        pipe.add(&[b"SET".to_vec(), Vec::new(), b"empty name".to_vec()]);
        pipe.add(&[b"SET".to_vec(), text(70_000), b"long name".to_vec()]);
        pipe.add(&[b"SET".to_vec(), b"\0\r\n%s\xff".to_vec(), b"\0\r\n%s\xff".to_vec()]);
        server.client().run_good(&pipe);
    }
}

/// What a client can see of each string: value, encoding, references, memory, and whether it ends.
fn look(server: &Server, memory: bool) -> BTreeMap<String, Vec<Reply>> {
    let mut client = server.client();
    let names: Vec<Vec<u8>> = cmd!(client, "KEYS", "*").strings();
    let mut seen = BTreeMap::new();
    for name in names {
        let mut replies = vec![
            cmd!(client, "OBJECT", "ENCODING", &name),
            cmd!(client, "OBJECT", "REFCOUNT", &name),
            Reply::Int((1..=5000).contains(&cmd!(client, "TTL", &name).int()).into()),
        ];
        if memory {
            replies.push(cmd!(client, "MEMORY", "USAGE", &name));
        }
        seen.insert(String::from_utf8_lossy(&name).into_owned(), replies);
    }
    seen
}

fn in_step(source: &Server, target: &Server) {
    let check = || {
        let op = source.status().op_id();
        target.try_status().filter(|s| s.state() == "streaming" && s.applied_op_id() == op).map(drop)
    };
    eventually("the target is in step", secs(300), check);
}

fn received(server: &Server) -> u64 {
    server.info_field("stats", "total_net_input_bytes").parse().unwrap()
}

for_each_server!(a_copy_is_the_same_with_and_without_listeners);

fn a_copy_is_the_same_with_and_without_listeners(version: Version) {
    let source = Server::start(version);
    source.wait_state("capturing");
    fill(&source);
    source.settle();
    let memory = !version.valkey;
    let seen = look(&source, memory);
    assert_eq!(seen.len(), MANY * 9 + 3);

    // Nobody listens: this one has never been a source.
    let alone = Server::builder(version).arg("service-id", 1).source(&source).start();
    in_step(&source, &alone);
    assert_eq!(digest(&source), digest(&alone), "{version}, alone");
    assert_eq!(seen, look(&alone, memory), "{version}, alone");
    if version.has(7, 0) {
        let bytes = received(&alone);
        assert!(bytes < BYTES / 10, "{version}: {bytes} bytes came by a connection");
    }

    let target = Server::builder(version).arg("service-id", 2).config("appendonly", "yes").start();
    let replica = Server::builder(version).arg("service-id", 2).config("appendonly", "yes").start();
    replica.replicate(&target);
    replica.set_config("replicaof", &format!("127.0.0.1 {}", target.port()));
    let before = received(&target);
    cmd!(target.client(), "DR.LINK", source.endpoint()).ok();
    in_step(&source, &target);
    if version.has(7, 0) {
        let bytes = received(&target) - before;
        assert!(bytes < BYTES / 10, "{version}: {bytes} bytes came by a connection");
    }
    replica.wait_in_step(&target);
    let same = |what: &str| {
        assert_eq!(digest(&source), digest(&target), "{version}, {what}: target");
        assert_eq!(digest(&source), digest(&replica), "{version}, {what}: replica");
        assert_eq!(seen, look(&target, memory), "{version}, {what}: target");
        assert_eq!(seen, look(&replica, memory), "{version}, {what}: replica");
    };
    same("at first");
    until("the AOF has it all", || target.info_field("persistence", "aof_rewrite_in_progress") == "0");
    target.restart();
    target.wait_status("the target goes on", |s| s.state() == "streaming");
    replica.wait_in_step(&target);
    same("after a restart of the target");
    replica.restart();
    replica.wait_in_step(&target);
    same("after a restart of the replica");
    assert_eq!(target.status().full_syncs(), 1, "{version}");
}

for_each_server!(long_ops_arrive_in_memory);

/// Long values, alone, with an expiry and in a transaction, at a target whose replica and AOF get them, too.
fn long_ops_arrive_in_memory(version: Version) {
    let source = Server::start(version);
    source.wait_state("capturing");
    let target = Server::builder(version).arg("service-id", 1).config("appendonly", "yes").start();
    let replica = Server::builder(version).arg("service-id", 1).start();
    replica.replicate(&target);
    replica.set_config("replicaof", &format!("127.0.0.1 {}", target.port()));
    cmd!(target.client(), "DR.LINK", source.endpoint()).ok();
    in_step(&source, &target);
    let before = received(&target);
    let mut pipe = Pipe::new();
    for (n, len) in [100_000usize, 127_000, 132_000, 1_000_000, 5_000_000].into_iter().enumerate() {
        let value = vec![b'a' + u8::try_from(n).unwrap(); len];
        let name = |kind: &str| format!("{kind}:{len}").into_bytes();
        pipe.add(&[b"SET".to_vec(), name("text"), value.clone()]);
        pipe.add(&[b"SET".to_vec(), name("ends"), value.clone(), b"EX".to_vec(), b"5000".to_vec()]);
        pipe.add(&[b"SETEX".to_vec(), name("over"), b"5000".to_vec(), value.clone()]);
        pipe.add(&[b"SET".to_vec(), name("over"), value.clone()]);
        pipe.add(&[b"RPUSH".to_vec(), name("list"), value.clone(), value.clone()]);
        pipe.add(&["MULTI"]).add(&["INCR", "counter"]);
        pipe.add(&[b"SET".to_vec(), name("queued"), value.clone()]);
        pipe.add(&[b"SET".to_vec(), name("queued"), vec![b'7'; len]]);
        pipe.add(&["INCR", "counter"]).add(&["EXEC"]);
        pipe.add(&[b"APPEND".to_vec(), name("text"), b"more".to_vec()]);
    }
    source.client().run_good(&pipe);
    in_step(&source, &target);
    if version.has(7, 0) {
        // The two shorter lengths, but for lists and transactions of them, go by the connection.
        let bytes = received(&target) - before;
        assert!(bytes < 2_000_000, "{version}: {bytes} bytes came by a connection");
    }
    replica.wait_in_step(&target);
    // How much APPEND has reserved ends with the process.
    let same = |what: &str| {
        assert_eq!(digest(&source), digest(&target), "{version}, {what}: target");
        assert_eq!(digest(&source), digest(&replica), "{version}, {what}: replica");
        let seen = look(&target, false);
        assert_eq!(seen, look(&replica, false), "{version}, {what}");
        assert_eq!(
            seen.values().filter(|replies| replies[2] == Reply::Int(1)).count(),
            5,
            "{version}, {what}"
        );
    };
    same("at first");
    target.restart();
    target.wait_status("the target goes on", |s| s.state() == "streaming");
    replica.wait_in_step(&target);
    same("after a restart of the target");
    assert_eq!(cmd!(target.client(), "GET", "counter").int(), 10, "{version}");
}

for_some_servers!(nobody_else_takes_a_batch);

/// A client tries all tokens while a copy is loaded and ops are applied.
fn nobody_else_takes_a_batch(version: Version) {
    let source = Server::start(version);
    source.wait_state("capturing");
    fill(&source);
    let target = Server::builder(version).arg("service-id", 1).start();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = target.client();
            let mut asked = 0u64;
            while !done.load(Ordering::Relaxed) {
                // An ordinary client is disconnected once, when the link is made.
                let forged = [
                    format!("DR._LOAD REF {}", asked % 3000),
                    "DR._LOAD PACK 0 x".to_owned(),
                    format!("DR.APPLY 1 REF {}", asked % 3000),
                ];
                for line in forged {
                    let words: Vec<&str> = line.split(' ').collect();
                    match client.try_call(&words) {
                        Ok(reply) => assert!(reply.error().is_some(), "{version}: {line}: {reply:?}"),
                        Err(_) => client = target.client(),
                    }
                }
                asked += 1;
            }
            assert!(asked > 10, "{asked}");
        });
        cmd!(target.client(), "DR.LINK", source.endpoint()).ok();
        in_step(&source, &target);
        for round in 0..20 {
            let mut pipe = Pipe::new();
            for n in 0..1000 {
                pipe.add(&["SET", &format!("key:{n}"), &format!("value {round}")]).add(&["INCR", "counter"]);
            }
            source.client().run_good(&pipe);
        }
        in_step(&source, &target);
        done.store(true, Ordering::Relaxed);
    });
    wait_equal(&source, &target);
    assert_eq!(target.status().full_syncs(), 1, "{version}");
    assert_eq!(cmd!(target.client(), "GET", "counter").int(), 20_000);
}
