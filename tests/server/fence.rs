//! A linked target takes no write but its source's, by no way; reads see the truth.

use std::time::Duration;

use crate::harness::{deadline, eventually, version, wait_equal, Client, Pipe, Reply, Server, Version};

fn pair(version: Version) -> (Server, Server) {
    let source = Server::start(version);
    let target = Server::builder(version).arg("service-id", 1).source(&source).start();
    target.wait_state("streaming");
    (source, target)
}

#[track_caller]
fn refused(reply: &Reply, source: &Server, what: &str) {
    let text = reply.error().unwrap_or_else(|| panic!("{what} was accepted: {reply:?}"));
    assert!(text.contains("READONLY"), "{what}: {text}");
    assert!(text.contains(&source.endpoint()), "{what} does not name the source: {text}");
}

for_each_server!(writes_are_refused);

fn writes_are_refused(version: Version) {
    let (source, target) = pair(version);
    let mut at_source = source.client();
    cmd!(at_source, "SET", "key", "value").ok();
    cmd!(at_source, "RPUSH", "list", "a", "b").good();
    if version.has(7, 0) {
        let lib = "#!lua name=lib\nredis.register_function('w', function(k, a) return redis.call('SET', k[1], a[1]) end)\nredis.register_function{function_name='r', callback=function(k, a) return redis.call('GET', k[1]) end, flags={'no-writes'}}";
        cmd!(at_source, "FUNCTION", "LOAD", lib).good();
    }
    wait_equal(&source, &target);

    let mut client = target.client();
    for line in [
        "SET key x",
        "DEL key",
        "UNLINK key",
        "EXPIRE key 100",
        "PERSIST key",
        "RENAME key other",
        "LPUSH list x",
        "FLUSHALL",
        "FLUSHDB",
        "SWAPDB 0 1",
        "INCR counter",
        "GETSET key x",
        "BLPOP list 1",
        "BRPOPLPUSH list l 1",
        "XADD s * a b",
        "MOVE key 1",
        "SETRANGE key 0 x",
        "PFADD p x",
        "sEt key x",
        "RESTORE k 0 x",
        "SORT list ALPHA STORE x",
        "GEORADIUS geo 0 0 1 m STORE x",
        "BITFIELD key SET u8 0 1",
    ] {
        let reply = client.line(line);
        // What the server itself finds wrong first is refused, too.
        assert!(reply.error().is_some(), "{version}: {line} was accepted: {reply:?}");
        if !line.starts_with("GEORADIUS") && !line.starts_with("RESTORE") {
            refused(&reply, &source, line);
        }
    }
    if version.has(7, 0) {
        refused(&client.line("FUNCTION FLUSH"), &source, "FUNCTION FLUSH");
        refused(&client.line("function delete lib"), &source, "FUNCTION DELETE");
        refused(&cmd!(client, "FCALL", "w", 1, "key", "x"), &source, "a write in FCALL");
        assert_eq!(cmd!(client, "FCALL_RO", "r", 1, "key").text(), "value");
    }
    let script = "return redis.call('SET', KEYS[1], 'x')";
    refused(&cmd!(client, "EVAL", script, 1, "key"), &source, "a write in EVAL");
    let caught = "local r = redis.pcall('SET', KEYS[1], 'x') return redis.call('GET', KEYS[1])";
    assert_eq!(cmd!(client, "EVAL", caught, 1, "key").text(), "value", "pcall does not get through either");
    assert_eq!(cmd!(client, "EVAL", "return redis.call('GET', KEYS[1])", 1, "key").text(), "value");

    // In a transaction.
    cmd!(client, "MULTI").ok();
    let queued = cmd!(client, "SET", "key", "x");
    let exec = cmd!(client, "EXEC");
    match (&queued, exec) {
        (Reply::Error(_), exec) => assert!(exec.is_error("EXECABORT"), "{exec:?}"),
        (_, Reply::Array(items)) => refused(&items[0], &source, "a write in MULTI"),
        (_, exec) => refused(&exec, &source, "EXEC"),
    }
    assert_eq!(cmd!(client, "GET", "key").text(), "value");
    assert_eq!(cmd!(client, "LLEN", "list").int(), 2);
    assert_eq!(cmd!(client, "DBSIZE").int(), 2);
    wait_equal(&source, &target);
}

for_each_server!(the_fence_has_no_holes_at_link_time);

/// What clients have prepared before the fence does not get through after it.
fn the_fence_has_no_holes_at_link_time(version: Version) {
    let source = Server::start(version);
    let target = Server::builder(version).arg("service-id", 1).start();
    source.wait_state("capturing");
    cmd!(source.client(), "SET", "key", "of the source").ok();
    target.wait_state("capturing");

    let mut queued = target.client();
    cmd!(queued, "MULTI").ok();
    cmd!(queued, "SET", "hole", "by MULTI").good();
    let mut watching = target.client();
    cmd!(watching, "WATCH", "x").ok();
    cmd!(watching, "MULTI").ok();
    cmd!(watching, "RPUSH", "queue", "by WATCH").good();
    let mut popping = target.client();
    popping.send(&["BLPOP", "queue", "0"]).unwrap();
    let mut moving = target.client();
    moving.send(&["BRPOPLPUSH", "queue", "moved", "0"]).unwrap();
    eventually("two clients are blocked", deadline(), || {
        (target.info_field("clients", "blocked_clients") == "2").then_some(())
    });

    let mut admin = target.client();
    let endpoint = source.endpoint();
    cmd!(admin, "DR.LINK", endpoint).ok();
    let closed = |result: std::io::Result<Reply>, what: &str| match result {
        Err(_) => {}
        Ok(reply) => assert!(reply.error().is_some(), "{version}: {what}: {reply:?}"),
    };
    closed(queued.try_call(&["EXEC"]), "MULTI from before the fence");
    closed(watching.try_call(&["EXEC"]), "WATCH from before the fence");
    target.wait_state("streaming");
    cmd!(source.client(), "RPUSH", "queue", "one", "two", "three").good();
    wait_equal(&source, &target);
    closed(popping.read(), "BLPOP from before the fence");
    closed(moving.read(), "BRPOPLPUSH from before the fence");
    assert_eq!(cmd!(target.client(), "LLEN", "queue").int(), 3);
    assert_eq!(cmd!(target.client(), "EXISTS", "hole", "moved").int(), 0);
    // The operator's own connection was kept, and is fenced.
    refused(&cmd!(admin, "SET", "hole", 1), &source, "the operator's own write");
}

for_each_server!(writes_are_refused_while_the_snapshot_is_loaded);

fn writes_are_refused_while_the_snapshot_is_loaded(version: Version) {
    let source = Server::start(version);
    source.wait_state("capturing");
    let mut pipe = Pipe::new();
    for n in 0..30_000 {
        pipe.add(&["SET", &format!("key:{n}"), &"v".repeat(50)]);
    }
    source.client().run_good(&pipe);
    let target = Server::builder(version).arg("service-id", 1).start();
    target.wait_state("capturing");
    let endpoint = source.endpoint();
    cmd!(target.client(), "DR.LINK", endpoint).ok();
    // Whatever the moment, before, during and after the load: no write is accepted.
    let mut tries = 0;
    let mut other = target.client();
    eventually("the target streams", deadline(), || {
        for _ in 0..20 {
            let reply = cmd!(other, "SET", "hole", tries);
            assert!(reply.error().is_some(), "{version}: accepted while loading: {reply:?}");
            tries += 1;
        }
        (target.status().state() == "streaming").then_some(())
    });
    wait_equal(&source, &target);
    assert_eq!(cmd!(other, "EXISTS", "hole").int(), 0);
    assert_eq!(cmd!(other, "DBSIZE").int(), 30_000);
    println!("{version}: {tries} writes refused");
}

for_each_server!(expiries_read_true);

fn expiries_read_true(version: Version) {
    let (source, target) = pair(version);
    let replica = Server::builder(version).arg("service-id", 1).start();
    replica.replicate(&target);
    let mut at_source = source.client();
    cmd!(at_source, "SET", "a", 1, "EX", 1000).ok();
    cmd!(at_source, "SET", "b", 1, "PX", 2_000_000).ok();
    cmd!(at_source, "SET", "none", 1).ok();
    cmd!(at_source, "RPUSH", "list", 1).good();
    cmd!(at_source, "EXPIREAT", "list", 4_000_000_000_i64).good();
    if version.has(7, 4) && !version.valkey {
        cmd!(at_source, "HSET", "hash", "f", 1, "g", 2).good();
        cmd!(at_source, "HEXPIRE", "hash", 3000, "FIELDS", 1, "f").good();
    }
    wait_equal(&source, &target);
    replica.wait_in_step(&target);
    for (what, node) in [("target", &target), ("its replica", &replica)] {
        let mut client = node.client();
        let mut both = |line: &str| (at_source.line(line), client.line(line));
        let near = |(a, b): (Reply, Reply), scale: i64, line: &str| {
            let (a, b) = (a.int(), b.int());
            // Replicas of 6.x and 7.0 add up how late a relative expiry arrives; seconds, not years.
            assert!((a - b).abs() <= 30 * scale, "{version} {what}: {line}: {a} at the source, {b}");
        };
        for key in ["a", "b", "list"] {
            near(both(&format!("TTL {key}")), 1, "TTL");
            near(both(&format!("pttl {key}")), 1000, "PTTL");
            if version.has(7, 0) {
                near(both(&format!("EXPIRETIME {key}")), 1, "EXPIRETIME");
                near(both(&format!("PEXPIRETIME {key}")), 1000, "PEXPIRETIME");
            }
        }
        for (line, wanted) in [("TTL none", -1), ("TTL absent", -2), ("PTTL none", -1), ("PTTL absent", -2)] {
            assert_eq!(client.line(line).int(), wanted, "{version} {what}: {line}");
        }
        if version.has(7, 4) && !version.valkey {
            let field = client.line("HTTL hash FIELDS 2 f g").array();
            assert!((2900..=3000).contains(&field[0].int()), "{version} {what}: {field:?}");
            assert_eq!(field[1].int(), -1);
        }
        // The same from a script and a transaction.
        let ttl = cmd!(client, "EVAL", "return redis.call('TTL', KEYS[1])", 1, "a").int();
        assert!((900..=1000).contains(&ttl), "{version} {what}: TTL in EVAL: {ttl}");
        cmd!(client, "MULTI").ok();
        cmd!(client, "TTL", "a").good();
        let ttl = cmd!(client, "EXEC").array()[0].int();
        assert!((900..=1000).contains(&ttl), "{version} {what}: TTL in MULTI: {ttl}");
    }
}

for_each_server!(cutting_the_link_is_for_good);

fn cutting_the_link_is_for_good(version: Version) {
    let (source, target) = pair(version);
    let mut at_source = source.client();
    cmd!(at_source, "SET", "key", "value", "EX", 5000).ok();
    wait_equal(&source, &target);
    let op = source.status().op_id();
    let mut client = target.client();
    let last = cmd!(client, "DR.CUTLINK").int();
    assert!(last as u64 >= op, "{last} below {op}");
    cmd!(client, "SET", "mine", 1).ok();
    cmd!(client, "EVAL", "return redis.call('SET', KEYS[1], 1)", 1, "also mine").good();
    target.wait_state("capturing");
    let status = target.status();
    assert_eq!(status.role(), "source");
    assert!(status.field("link").is_null(), "{:#}", status.0);
    eventually("the expiry is the true one", deadline(), || {
        let text = cmd!(target.client(), "DEBUG", "OBJECT", "key").good().text();
        let ttl = cmd!(client, "TTL", "key").int();
        ((4800..=5000).contains(&ttl) && !text.is_empty()).then_some(())
    });
    assert!(cmd!(client, "DR.CUTLINK").is_error("ERR"), "there is no link to cut");

    // Not even a `source` in its arguments links it again, by itself.
    cmd!(client, "SAVE").ok();
    target.kill9();
    target.start_again();
    target.wait_state("capturing");
    cmd!(target.client(), "SET", "after", 1).ok();
    cmd!(at_source, "SET", "not for you", 1).ok();
    source.settle();
    assert_eq!(cmd!(target.client(), "EXISTS", "not for you").int(), 0);
    assert_eq!(cmd!(target.client(), "GET", "mine").int(), 1);
    assert_eq!(target.status().role(), "source");
}

for_each_server!(nothing_is_evicted_while_linked);

fn nothing_is_evicted_while_linked(version: Version) {
    let source = Server::start(version);
    let target = Server::builder(version)
        .config("maxmemory", "100mb")
        .config("maxmemory-policy", "allkeys-lru")
        .arg("service-id", 1)
        .source(&source)
        .start();
    target.wait_state("streaming");
    let policy = || {
        String::from_utf8(cmd!(target.client(), "CONFIG", "GET", "maxmemory-policy").strings()[1].clone())
            .unwrap()
    };
    assert_eq!(policy(), "noeviction");
    // Less than what is used already: with eviction keys would go.
    let mut pipe = Pipe::new();
    for n in 0..2000 {
        pipe.add(&["SET", &format!("key:{n}"), &"v".repeat(500)]);
    }
    source.client().run_good(&pipe);
    wait_equal(&source, &target);
    cmd!(target.client(), "CONFIG", "SET", "maxmemory", "1mb").ok();
    source.client().run_good(&pipe);
    cmd!(source.client(), "SET", "last", 1).ok();
    wait_equal(&source, &target);
    assert_eq!(cmd!(target.client(), "DBSIZE").int(), 2001);
    cmd!(target.client(), "CONFIG", "SET", "maxmemory", "100mb").ok();
    // Also over a restart the first value is the one that comes back.
    target.restart();
    target.wait_state("streaming");
    assert_eq!(policy(), "noeviction");
    cmd!(target.client(), "DR.CUTLINK").good();
    assert_eq!(policy(), "allkeys-lru");
}

for_each_server!(messages_arrive_but_not_those_of_sentinels);

fn messages_arrive_but_not_those_of_sentinels(version: Version) {
    let (source, target) = pair(version);
    let mut listener = target.client();
    for channel in ["news", "__sentinel__:hello"] {
        cmd!(listener, "SUBSCRIBE", channel).good();
    }
    let mut at_source = source.client();
    for n in 0..20 {
        cmd!(at_source, "PUBLISH", "__sentinel__:hello", "127.0.0.1,26379,0,mymaster").good();
        cmd!(at_source, "PUBLISH", "news", n).good();
    }
    for n in 0..20 {
        let message = listener.read().unwrap().strings();
        let wanted = [b"message".to_vec(), b"news".to_vec(), n.to_string().into_bytes()];
        assert_eq!(message, wanted, "{version}");
    }
    listener.set_timeout(Duration::from_millis(200));
    assert!(listener.read().is_err(), "nothing more came");
}

/// With no source reachable the fence stays up: also right after a start, before anything is known.
fn the_fence_is_up_from_the_start(aof: &str) {
    for name in ["redis-6.0", "redis-7.0", "valkey-9.1"] {
        let source = Server::start(version(name));
        let target = Server::builder(version(name))
            .config("appendonly", aof)
            .config("appendfsync", "always")
            .arg("service-id", 1)
            .source(&source)
            .start();
        target.wait_state("streaming");
        cmd!(source.client(), "SET", "key", 1).ok();
        wait_equal(&source, &target);
        source.kill9();
        for hard in [false, true] {
            if hard {
                target.kill9();
            } else {
                target.terminate();
            }
            target.launch();
            let mut tries = 0;
            eventually("a read is served", deadline(), || {
                let mut client = Client::tcp(&target.addr()).ok()?;
                loop {
                    let write = client.try_call(&["SET", "hole", "1"]).ok()?;
                    assert!(write.error().is_some(), "{name}: a write was accepted: {write:?}");
                    tries += 1;
                    if client.try_call(&["GET", "key"]).ok()?.error().is_none() {
                        return Some(());
                    }
                }
            });
            assert_eq!(cmd!(target.client(), "GET", "key").int(), 1, "{name}");
            refused(&cmd!(target.client(), "SET", "hole", 1), &source, "a write");
        }
    }
}

#[test]
fn the_fence_is_up_from_the_start_with_the_log() {
    the_fence_is_up_from_the_start("no");
}

#[test]
fn the_fence_is_up_from_the_start_with_aof() {
    the_fence_is_up_from_the_start("yes");
}
