//! Proves the harness itself, on servers without the module: what it starts is what it says, what it breaks is broken,
//! what it calls equal is equal, and it notices what is not.

use crate::harness::{
    diff, digest, secs, snapshot, wait::until, Action, Client, Direction, Pipe, Proxy, Reply, Sentinels,
    Server, Version,
};

for_each_server!(harness_starts);

/// Starts, is the version it claims, survives restart and kill -9 with the data it should have, and stops.
fn harness_starts(version: Version) {
    let server = Server::builder(version).module(false).config("save", "3600 1").start();
    let field = if version.has_valkey(9, 0) || version.valkey { "valkey_version" } else { "redis_version" };
    let number = server.info_field("server", field);
    assert!(number.starts_with(&format!("{}.{}.", version.number.0, version.number.1)), "{number}");
    assert_eq!(server.info_field("server", "process_id"), server.pid().to_string(), "the wrapper execs");

    let mut client = server.client();
    cmd!(client, "SET", "bin\0\r\nkey", [0u8, 255, b'%']).ok();
    assert_eq!(cmd!(client, "GET", "bin\0\r\nkey").bytes(), [0, 255, b'%']);
    assert!(cmd!(client, "NOSUCH").is_error("ERR"));
    assert!(cmd!(client, "GET", "absent").is_nil());
    let before = digest(&server);

    assert!(client.try_call(&["DEBUG", "SLEEP", "0"]).is_ok());
    server.restart();
    assert_eq!(digest(&server), before, "saved by SIGTERM");
    assert!(client.try_call(&["PING"]).is_err());
    client.reconnect().unwrap();
    cmd!(client, "SET", "lost", 1).ok();
    server.kill9();
    assert!(!server.is_alive());
    server.start_again();
    assert_eq!(digest(&server), before, "killed before the save");

    server.stop();
    let mut stopped = server.client();
    stopped.set_timeout(std::time::Duration::from_millis(200));
    assert!(stopped.try_call(&["PING"]).is_err(), "a stopped server does not answer");
    server.cont();
    assert_eq!(cmd!(server.client(), "PING"), Reply::Simple("PONG".into()));
    assert!(server.rss_kb() > 1000 && server.peak_rss_kb() >= server.rss_kb());
    // Two clocks of the kernel, each in ticks of 10 ms.
    assert!(server.cpu() + std::time::Duration::from_millis(100) >= server.cpu_main());
}

for_each_server!(harness_compares);

/// A native replica is equal in digest and in detail; each kind of difference is found.
fn harness_compares(version: Version) {
    let (master, other) = (Server::plain(version), Server::plain(version));
    let mut client = master.client();
    let mut pipe = Pipe::new();
    for n in 0..3000 {
        pipe.add(&["SET", &format!("key:{n}"), &format!("value {n}")]);
    }
    client.run_good(&pipe);
    for line in [
        "RPUSH list a b c a",
        "SADD set 1 2 3",
        "ZADD zset 1 a 2.5 b 1 c",
        "HSET hash f v g w",
        "XADD stream 1-1 f v",
        "XGROUP CREATE stream group 0",
        "XREADGROUP GROUP group reader COUNT 1 STREAMS stream >",
        "PEXPIREAT key:1 33000000000000",
        "SELECT 3",
        "SET key:1 other",
    ] {
        client.line(line).good();
    }
    if version.has(7, 4) && !version.valkey || version.has_valkey(9, 0) {
        cmd!(client, "HSET", "hf", "f", 1).good();
        cmd!(client, "HPEXPIREAT", "hf", "33000000000000", "FIELDS", 1, "f").good();
    }
    other.replicate(&master);
    assert_eq!(digest(&master), digest(&other));
    assert_eq!(diff(&master, &other, 10), Vec::<String>::new());
    assert!(snapshot(&master).len() > 3005);

    cmd!(other.client(), "REPLICAOF", "NO", "ONE").ok();
    let mut client = other.client();
    for (harm, want) in [
        ("SET key:2 x", "\"key:2\""),
        ("PEXPIREAT key:1 33000000009000", "expires"),
        ("LSET list 3 z", "list element 3"),
        ("SREM set 2", "set of"),
        ("ZINCRBY zset 1 a", "zset element"),
        ("HSET hash g x", "hash element 1"),
        ("XACK stream group 1-1", "stream element 1"),
        ("DEL key:7", "only in the first"),
        ("SET extra 1", "only in the second"),
    ] {
        client.line(harm).good();
        let lines = diff(&master, &other, 20);
        assert!(lines.iter().any(|line| line.contains(want)), "{harm}: {lines:#?}");
    }
    assert_eq!(diff(&master, &other, 20).len(), 9);
    assert_ne!(digest(&master), digest(&other));
}

for_each_server!(harness_options);

/// Passwords, unix socket only, RESP3, configuration, a start that fails.
fn harness_options(version: Version) {
    let server = Server::builder(version).module(false).password("a b");
    let failure = server.clone().config("no-such-directive", 1).try_start().unwrap_err();
    assert!(failure.contains("no-such-directive"), "{failure}");
    let server = server.unix_only().config("databases", 5).start();
    let mut client = server.client();
    assert_eq!(cmd!(client, "CONFIG", "GET", "databases").array()[1].int(), 5);
    client.resp3();
    assert!(matches!(cmd!(client, "CONFIG", "GET", "databases"), Reply::Map(_)));
    let mut anonymous = Client::unix(&server.socket()).unwrap();
    assert!(cmd!(anonymous, "PING").is_error("NOAUTH"));
    server.set_config("databases", "7");
    server.restart();
    assert_eq!(cmd!(server.client(), "CONFIG", "GET", "databases").array()[1].int(), 7);
}

/// A server that a helper thread started lives on when that thread has ended.
#[test]
fn harness_server_outlives_its_thread_redis_7_0() {
    let start = || Server::plain(crate::harness::version("redis-7.0"));
    let server = std::thread::spawn(start).join().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(cmd!(server.client(), "PING"), Reply::Simple("PONG".into()));
}

/// The proxy forwards exactly, and each fault does what it says and is met once.
#[test]
fn harness_proxy_redis_7_0() {
    let server = Server::plain(crate::harness::version("redis-7.0"));
    let proxy = Proxy::start(server.addr());
    let connect = || {
        let mut client = Client::tcp(&proxy.addr()).unwrap();
        client.set_timeout(secs(2));
        client
    };
    let big = vec![7u8; 5 << 20];
    let mut client = connect();
    cmd!(client, "SET", "big", big).ok();
    assert_eq!(cmd!(client, "GET", "big").bytes(), big);
    // The proxy counts what it has passed on, a moment later.
    until("both ways are counted", || {
        proxy.bytes(Direction::Up) > 5 << 20 && proxy.bytes(Direction::Down) > 5 << 20
    });

    proxy.cut();
    assert!(client.try_call(&["PING"]).is_err());
    proxy.refuse(true);
    assert!(connect().try_call(&["PING"]).is_err());
    proxy.heal();

    // "+PONG\r\n" is 7 bytes; *1 $4 PING is 14.
    proxy.fault(Direction::Down, 1, Action::Flip(1));
    assert_eq!(cmd!(connect(), "PING"), Reply::Simple("RONG".into()));
    proxy.fault(Direction::Down, 2, Action::Drop(2));
    assert_eq!(cmd!(connect(), "PING"), Reply::Simple("PG".into()));
    proxy.fault(Direction::Down, 10, Action::Truncate);
    let mut client = connect();
    cmd!(client, "PING");
    assert!(client.try_call(&["PING"]).is_err());
    proxy.fault(Direction::Up, 20, Action::Cut);
    let mut client = connect();
    cmd!(client, "PING");
    assert!(client.try_call(&["PING"]).is_err());
    proxy.fault(Direction::Up, 3, Action::Stall);
    assert!(connect().try_call(&["PING"]).is_err());
    assert_eq!(proxy.fired(), 5);

    proxy.freeze(true);
    let mut client = connect();
    assert!(client.try_call(&["PING"]).is_err());
    proxy.heal();
    assert_eq!(client.read().unwrap(), Reply::Simple("PONG".into()), "what was frozen comes");
    proxy.throttle(1 << 20);
    let began = std::time::Instant::now();
    client.set_timeout(secs(60));
    cmd!(client, "SETRANGE", "x", 0, &big[..2 << 20]).good();
    assert!(began.elapsed() > std::time::Duration::from_millis(1500));
    assert_eq!(proxy.connections(), 8);
}

for_some_servers!(harness_sentinels);

/// Three Sentinels notice a killed master and promote its replica.
fn harness_sentinels(version: Version) {
    let (master, replica) = (Server::plain(version), Server::plain(version));
    replica.replicate(&master);
    let sentinels = Sentinels::start(version, "main", &master);
    assert_eq!(sentinels.master_port(), master.port());
    until("the replica is known", || sentinels.replica_ports() == [replica.port()]);
    master.kill9();
    assert_eq!(sentinels.wait_failover(master.port()), replica.port());
    assert_eq!(replica.info_field("replication", "role"), "master");
}
