//! Large values in a snapshot: each arrives in pieces that are bounded, whole and the same, at the target, at its
//! replica and in its AOF.

use std::collections::BTreeMap;

use crate::harness::wait::{eventually, secs, until};
use crate::harness::{digest, Pipe, Reply, Server, Version};

/// How large the values are.
struct Size {
    elements: usize,
    text: usize,
}

const SMALL: Size = Size { elements: 80_000, text: 24 << 20 };
const FULL: Size = Size { elements: 10_000_000, text: 512 << 20 };

/// Bytes that do not compress.
fn noise(len: usize) -> Vec<u8> {
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    let words = (0..len.div_ceil(8)).flat_map(|_| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    });
    words.take(len).collect()
}

const KINDS: [(&str, &str); 5] = [
    ("list", "redis.call('RPUSH', KEYS[1], 'element:' .. i)"),
    ("set", "redis.call('SADD', KEYS[1], 'element:' .. i)"),
    ("zset", "redis.call('ZADD', KEYS[1], i / 7, 'element:' .. i)"),
    ("hash", "redis.call('HSET', KEYS[1], 'field:' .. i, 'value:' .. i)"),
    ("stream", "redis.call('XADD', KEYS[1], i .. '-1', 'field', 'value:' .. i)"),
];

fn fill(server: &Server, key: &str, body: &str, elements: usize) {
    let mut client = server.client();
    client.set_timeout(secs(600));
    let script = format!("for i = tonumber(ARGV[1]), tonumber(ARGV[2]) do {body} end");
    for first in (1..=elements).step_by(20_000) {
        let last = (first + 19_999).min(elements);
        cmd!(client, "EVAL", &script, 1, key, first, last).good();
    }
}

fn put_text(server: &Server, len: usize) {
    let mut client = server.client();
    client.set_timeout(secs(600));
    cmd!(client, "SET", "text", noise(len), "EX", 5000).good();
    // Compressed it is small in the file, and no smaller in memory.
    cmd!(client, "SETRANGE", "sparse", len - 1, "x").good();
    cmd!(client, "SETRANGE", "sparse", 77, "between zeros").good();
}

/// Groups with pending entries, of which some are deleted, consumers without any, and gaps in the stream.
fn put_groups(server: &Server) {
    let mut pipe = Pipe::new();
    for n in 0..20 {
        let group = format!("group:{n}");
        pipe.add(&["XGROUP", "CREATE", "stream", &group, "0"]);
        for consumer in ["a", "b"] {
            pipe.add(&["XREADGROUP", "GROUP", &group, consumer, "COUNT", "50", "STREAMS", "stream", ">"]);
        }
    }
    pipe.add(&["XGROUP", "CREATE", "stream", "none", "$"]);
    for n in 30..200 {
        pipe.add(&["XDEL", "stream", &format!("{n}-1")]);
    }
    pipe.add(&["XADD", "stream", "99999999-5", "other", "1", "fields", "2"]);
    pipe.add(&["XADD", "stream", "99999999-6", "last", ""]);
    pipe.add(&["XDEL", "stream", "99999999-6"]);
    server.client().run_good(&pipe);
}

/// All of a stream but how its entries are spread over nodes.
fn stream(server: &Server) -> Reply {
    let mut reply = cmd!(server.client(), "XINFO", "STREAM", "stream", "FULL", "COUNT", 2000).good();
    if let Reply::Array(items) = &mut reply {
        let inner = |name: &Reply| matches!(name, Reply::Bulk(b) if b.starts_with(b"radix-tree"));
        let at: Vec<usize> = (0..items.len()).filter(|at| inner(&items[*at])).map(|at| at + 1).collect();
        at.into_iter().for_each(|at| items[at] = Reply::Nil);
    }
    reply
}

fn calls(server: &Server) -> BTreeMap<String, u64> {
    let number = |text: &str| text.strip_prefix("calls=")?.split(',').next()?.parse().ok();
    let stats = server.info("commandstats").into_iter();
    stats.filter_map(|(name, text)| Some((name.to_lowercase(), number(&text)?))).collect()
}

fn compare(source: &Server, other: &Server, what: &str) {
    assert_eq!(digest(source), digest(other), "{what}");
    let of = |server: &Server| {
        let mut client = server.client();
        let encoding = |key: &str| cmd!(client, "OBJECT", "ENCODING", key).text();
        (["text", "sparse", "list", "set", "hash", "zset"].map(encoding), stream(server))
    };
    let (a, b) = (of(source), of(other));
    assert_eq!(a.0, b.0, "{what}: encodings");
    assert_eq!(a.1, b.1, "{what}: the stream");
    // Held it lies far ahead, shown it does not.
    let ttl = cmd!(other.client(), "TTL", "text").int();
    assert!((1..=5000).contains(&ttl), "{what}: {ttl}");
}

fn all_kinds_arrive(version: Version, size: &Size) {
    let source = Server::start(version);
    source.wait_state("capturing");
    put_text(&source, size.text);
    KINDS.iter().for_each(|(key, body)| fill(&source, key, body, size.elements));
    put_groups(&source);
    source.settle();

    let target = Server::builder(version).arg("service-id", 1).config("appendonly", "yes").start();
    let replica = Server::builder(version).arg("service-id", 1).start();
    replica.replicate(&target);
    cmd!(target.client(), "CONFIG", "RESETSTAT").ok();
    cmd!(target.client(), "DR.LINK", source.endpoint()).ok();
    let in_step = || {
        let op = source.status().op_id();
        target.try_status().filter(|s| s.state() == "streaming" && s.applied_op_id() == op).map(drop)
    };
    eventually("the target is in step", secs(600), in_step);
    compare(&source, &target, &format!("{version}, target"));

    // One RESTORE for the groups of the stream; no large value by another.
    let calls = calls(&target);
    let count = |name: &str| calls.get(&format!("cmdstat_{name}")).copied().unwrap_or_default();
    assert_eq!(count("restore"), 1, "{calls:?}");
    assert_eq!(count("set"), 2, "{calls:?}");
    assert_eq!(count("append") + count("setrange"), 0, "{calls:?}");
    assert_eq!(count("xadd") as usize, size.elements + 1 - 170, "{calls:?}");
    let (pieces, elements) = (size.elements as u64 / 1000, size.text as u64 / (256 << 10) * 2);
    assert!(count("dr._load") > pieces * 4 + elements, "{calls:?}");

    replica.wait_in_step(&target);
    compare(&source, &replica, &format!("{version}, replica"));
    // As the AOF says, which has the pieces, too.
    until("the AOF has it all", || target.info_field("persistence", "aof_rewrite_in_progress") == "0");
    target.restart();
    target.wait_status("the target goes on", |s| s.state() == "streaming");
    compare(&source, &target, &format!("{version}, target from its AOF"));
    assert_eq!(target.status().full_syncs(), 1, "{version}");
}

/// A key is replaced and removed by the stream whatever its size, and what it held is freed by another thread.
fn deletions_are_lazy(version: Version) {
    let source = Server::start(version);
    let target = Server::builder(version).arg("service-id", 1).source(&source).start();
    target.wait_status("the link streams", |s| s.state() == "streaming");
    let mut client = source.client();
    for (key, body) in &KINDS[..2] {
        fill(&source, key, body, 2000);
    }
    cmd!(client, "SELECT", 3).ok();
    cmd!(client, "SET", "stays", 1).ok();
    cmd!(client, "SELECT", 0).ok();
    cmd!(client, "DEL", "list", "no such key").good();
    cmd!(client, "DEL", "set").good();
    cmd!(client, "SET", "a", 1).ok();
    cmd!(client, "FLUSHDB").ok();
    source.settle();
    let op = source.status().op_id();
    target.wait_status("the target is in step", |s| s.applied_op_id() == op);
    assert_eq!(digest(&source), digest(&target), "{version}");
    let calls = calls(&target);
    // The third is the mark of `settle`.
    assert_eq!(calls.get("cmdstat_unlink"), Some(&3), "{calls:?}");
    assert_eq!(calls.get("cmdstat_del"), None, "{calls:?}");
    cmd!(client, "FLUSHALL").ok();
    source.settle();
    let op = source.status().op_id();
    target.wait_status("the target is in step", |s| s.applied_op_id() == op);
    assert_eq!(cmd!(target.client(), "INFO", "keyspace").text().matches("db").count(), 0, "{version}");
}

#[test]
fn large_values_arrive_in_pieces_on_redis_6_0() {
    all_kinds_arrive(crate::harness::version("redis-6.0"), &SMALL);
}

#[test]
fn large_values_arrive_in_pieces_on_redis_7_0() {
    all_kinds_arrive(crate::harness::version("redis-7.0"), &SMALL);
}

#[test]
fn large_values_arrive_in_pieces_on_valkey_9_1() {
    all_kinds_arrive(crate::harness::version("valkey-9.1"), &SMALL);
}

#[test]
#[ignore = "matrix: the oldest, 7.0 and the newest run by default"]
fn large_values_arrive_in_pieces_on_the_others() {
    for name in ["redis-6.2", "redis-7.4", "redis-8.0", "valkey-8.1"] {
        all_kinds_arrive(crate::harness::version(name), &SMALL);
    }
}

#[test]
#[ignore = "soak: 10 million elements of each kind and 512 MB, about 8 GB of memory a node"]
fn the_largest_values_arrive_in_pieces_on_redis_7_0() {
    all_kinds_arrive(crate::harness::version("redis-7.0"), &FULL);
}

for_some_servers!(deletions_are_lazy);
