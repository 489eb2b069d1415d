//! What readers and writers see of a key whose time is over, before the source's deletion arrives or a release gets to it.

use std::time::Duration;

use crate::harness::{
    deadline, eventually, wait_applied, wait_equal, Client, Pipe, Proxy, Reply, Server, Version,
};

const TIME_MS: u64 = 1500;
const SHORT_MS: u64 = 400;

fn has_field_times(version: Version) -> bool {
    version.has(7, 4) && !version.valkey || version.has_valkey(9, 0)
}

/// Keys of every type that expire soon, and one that does not.
fn fill(client: &mut Client, version: Version) {
    for line in [
        "SET gone:text v",
        "SET gone:number 5",
        "SET gone:again v",
        "RPUSH gone:list a b",
        "SADD gone:set a b",
        "ZADD gone:zset 1 a",
        "HSET gone:hash f 1 g 2",
        "XADD gone:stream 1-1 a b",
        "SET stays v",
    ] {
        client.line(line).good();
    }
    for name in ["text", "number", "again", "list", "set", "zset", "hash", "stream"] {
        cmd!(client, "PEXPIRE", format!("gone:{name}"), TIME_MS).good();
    }
    if has_field_times(version) {
        cmd!(client, "HSET", "fields", "f", 1, "g", 2).good();
        cmd!(client, "HPEXPIRE", "fields", TIME_MS, "FIELDS", 1, "f").good();
        cmd!(client, "HSET", "all-fields", "f", 1).good();
        cmd!(client, "HPEXPIRE", "all-fields", TIME_MS, "FIELDS", 1, "f").good();
    }
}

fn reads_nothing(client: &mut Client, what: &str) {
    let empty = Reply::Array(Vec::new());
    for (line, wanted) in [
        ("GET gone:text", Reply::Nil),
        ("get gone:number", Reply::Nil),
        ("STRLEN gone:text", Reply::Int(0)),
        ("EXISTS gone:text gone:list stays", Reply::Int(1)),
        ("TYPE gone:list", Reply::Simple("none".into())),
        ("LRANGE gone:list 0 -1", empty.clone()),
        ("SMEMBERS gone:set", empty.clone()),
        ("SISMEMBER gone:set a", Reply::Int(0)),
        ("SUNION gone:set gone:set", empty.clone()),
        ("ZSCORE gone:zset a", Reply::Nil),
        ("HGETALL gone:hash", empty.clone()),
        ("XLEN gone:stream", Reply::Int(0)),
        ("DUMP gone:text", Reply::Nil),
        ("MGET gone:text stays gone:number", Reply::Array(vec![Reply::Nil, bulk("v"), Reply::Nil])),
        ("TTL gone:text", Reply::Int(-2)),
        ("PTTL gone:list", Reply::Int(-2)),
        ("GET stays", bulk("v")),
        ("TTL stays", Reply::Int(-1)),
    ] {
        assert_eq!(client.line(line), wanted, "{what}: {line}");
    }
    let script =
        "return {redis.call('GET', KEYS[1]), redis.call('EXISTS', KEYS[2]), redis.call('TTL', KEYS[1])}";
    let reply = cmd!(client, "EVAL", script, 2, "gone:text", "gone:list");
    assert_eq!(reply, Reply::Array(vec![Reply::Nil, Reply::Int(0), Reply::Int(-2)]), "{what}: in a script");
    cmd!(client, "MULTI").ok();
    cmd!(client, "GET", "gone:text").good();
    cmd!(client, "GET", "stays").good();
    assert_eq!(cmd!(client, "EXEC"), Reply::Array(vec![Reply::Nil, bulk("v")]), "{what}: in a transaction");
}

fn bulk(text: &str) -> Reply {
    Reply::Bulk(text.as_bytes().to_vec())
}

fn over() {
    std::thread::sleep(Duration::from_millis(TIME_MS + 50));
}

for_each_server!(a_linked_target_hides_what_is_gone);

/// As a native replica does, and without deleting: what the source has refreshed meanwhile is back with the link.
fn a_linked_target_hides_what_is_gone(version: Version) {
    let source = Server::start(version);
    source.wait_state("capturing");
    let proxy = Proxy::start(source.endpoint());
    let target = Server::builder(version).arg("service-id", 1).arg("source", proxy.addr()).start();
    target.wait_state("streaming");
    let replica = Server::builder(version).arg("service-id", 1).start();
    replica.replicate(&target);
    let mut client = source.client();
    // The same names in another database: with more time, and with none.
    cmd!(client, "SELECT", 1).ok();
    cmd!(client, "SET", "gone:text", "of database 1", "EX", 1000).ok();
    cmd!(client, "RPUSH", "gone:list", "of database 1").good();
    cmd!(client, "SELECT", 0).ok();
    fill(&mut client, version);
    wait_applied(&target, source.settle());
    replica.wait_in_step(&target);
    assert_eq!(cmd!(target.client(), "GET", "gone:text"), bulk("v"), "{version}");
    proxy.freeze(true);
    cmd!(client, "PEXPIRE", "gone:again", 100_000).good();
    over();
    for (what, node) in [("target", &target), ("its replica", &replica)] {
        let what = format!("{version}, {what}");
        let mut client = node.client();
        reads_nothing(&mut client, &what);
        assert_eq!(cmd!(client, "GET", "gone:again"), Reply::Nil, "{what}");
        cmd!(client, "SELECT", 1).ok();
        assert_eq!(cmd!(client, "GET", "gone:text"), bulk("of database 1"), "{what}");
        assert_eq!(cmd!(client, "LLEN", "gone:list"), Reply::Int(1), "{what}");
        assert_eq!(cmd!(client, "GET", "stays"), Reply::Nil, "{what}");
    }
    proxy.freeze(false);
    wait_equal(&source, &target);
    replica.wait_in_step(&target);
    for node in [&target, &replica] {
        assert_eq!(cmd!(node.client(), "GET", "gone:again"), bulk("v"), "{version}");
        let ttl = cmd!(node.client(), "PTTL", "gone:again").int();
        assert!((50_000..=100_000).contains(&ttl), "{version}: {ttl}");
    }
}

for_each_server!(a_reader_with_few_rights_sees_nothing_more);

/// The command that answers instead of the server's must not be a way around a user's rules.
fn a_reader_with_few_rights_sees_nothing_more(version: Version) {
    let source = Server::start(version);
    let target = Server::builder(version).arg("service-id", 1).source(&source).start();
    target.wait_state("streaming");
    let mut client = source.client();
    cmd!(client, "SET", "mine:gone", "v", "PX", TIME_MS).ok();
    cmd!(client, "SET", "mine:secret", "v").ok();
    cmd!(client, "SET", "other:secret", "v", "PX", TIME_MS).ok();
    wait_applied(&target, source.settle());
    source.stop();
    let mut admin = target.client();
    cmd!(admin, "ACL", "SETUSER", "few", "on", ">pass", "~mine:*", "+dr._ttl", "+ttl", "+exists").ok();
    let mut client = target.client();
    cmd!(client, "AUTH", "few", "pass").ok();
    over();
    assert_eq!(cmd!(client, "EXISTS", "mine:gone"), Reply::Int(0), "{version}");
    for line in [
        "DR._TTL GET mine:secret",
        "DR._TTL MGET mine:gone mine:secret",
        "DR._TTL EXISTS other:secret",
        "DR._TTL SET mine:secret x",
        "DR._TTL DEL mine:secret",
        "DR._FIRST DEL mine:secret",
        "DR._FIRST GET mine:secret",
        "EXISTS other:secret",
        "TTL other:secret",
    ] {
        let reply = client.line(line);
        assert!(reply.error().is_some(), "{version}: {line}: {reply:?}");
    }
    // Nor is it a way around the fence.
    for line in ["DR._FIRST DEL mine:secret", "DR._TTL DEL mine:secret"] {
        let reply = admin.line(line);
        assert!(reply.error().is_some(), "{version}: {line}: {reply:?}");
    }
    assert_eq!(cmd!(admin, "GET", "mine:secret"), bulk("v"), "{version}");
    source.cont();
}

/// Enough that their release takes a while.
const OTHERS: usize = 150_000;
const EACH: usize = 300;

for_some_servers!(a_release_that_has_not_come_by_is_not_seen);

/// After a cut: what is gone is not there for any client, whether the release has been there or not.
fn a_release_that_has_not_come_by_is_not_seen(version: Version) {
    let source = Server::start(version);
    let target = Server::builder(version).arg("service-id", 1).source(&source).start();
    target.wait_state("streaming");
    let replica = Server::builder(version).arg("service-id", 1).start();
    let mut client = source.client();
    let mut pipe = Pipe::new();
    for n in 0..OTHERS {
        pipe.add(&["SET", &format!("other:{n}"), "v", "EX", "5000"]);
    }
    client.run_good(&pipe);
    let fields = has_field_times(version);
    let mut pipe = Pipe::new();
    let ms = (5 * SHORT_MS).to_string();
    for n in 0..EACH {
        for kind in ["get", "incr", "nx", "push"] {
            pipe.add(&["SET", &format!("{kind}:{n}"), "5", "PX", &ms]);
        }
        pipe.add(&["RPUSH", &format!("list:{n}"), "a", "b"]);
        pipe.add(&["PEXPIRE", &format!("list:{n}"), &ms]);
        pipe.add(&["SET", &format!("later:{n}"), "5", "EX", "1000"]);
        if fields {
            let key = format!("hash:{n}");
            pipe.add(&["HSET", &key, "f", "1", "g", "2"]);
            pipe.add(&["HPEXPIRE", &key, &ms, "FIELDS", "1", "f"]);
        }
    }
    client.run_good(&pipe);
    wait_applied(&target, source.settle());
    replica.replicate(&target);
    source.stop();
    std::thread::sleep(Duration::from_millis(6 * SHORT_MS));
    cmd!(target.client(), "DR.CUTLINK").good();
    let mut client = target.client();
    let mut unreleased = 0;
    for n in 0..EACH {
        let state = target.status().state().to_owned();
        unreleased += usize::from(state == "rebasing");
        let mut check = |line: String, wanted: Reply| {
            assert_eq!(client.line(&line), wanted, "{version}, {state}: {line}");
        };
        check(format!("GET get:{n}"), Reply::Nil);
        check(format!("EXISTS get:{n} list:{n} later:{n}"), Reply::Int(1));
        check(format!("INCR incr:{n}"), Reply::Int(1));
        check(format!("SET nx:{n} mine NX"), Reply::Simple("OK".into()));
        check(format!("RPUSH push:{n} a"), Reply::Int(1));
        check(format!("LPOP list:{n}"), Reply::Nil);
        check(format!("INCR later:{n}"), Reply::Int(6));
        check(format!("EVAL return(redis.call('INCR',KEYS[1])) 1 incr:{n}"), Reply::Int(2));
        if version.has(7, 0) {
            check(format!("EXPIRE later:{n} 2000 GT"), Reply::Int(1));
        }
        if fields {
            check(format!("HGET hash:{n} f"), Reply::Nil);
            check(format!("HGETALL hash:{n}"), Reply::Array(vec![bulk("g"), bulk("2")]));
        }
    }
    println!("{version}: {unreleased} of {EACH} rounds before the end of the release");
    assert!(unreleased > EACH / 20, "{version}: the release was too fast for this test: {unreleased}");
    eventually("the release has ended", deadline(), || {
        (target.status().state() == "capturing").then_some(())
    });
    replica.wait_in_step(&target);
    let digest = |node: &Server| cmd!(node.client(), "DEBUG", "DIGEST").text();
    assert_eq!(digest(&target), digest(&replica), "{version}");
    let ttl = cmd!(client, "TTL", format!("later:{}", 7)).int();
    assert!((900..=2000).contains(&ttl), "{version}: {ttl}");
    source.cont();
}
