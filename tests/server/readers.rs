//! What a linked target's server does besides: no eviction by any policy, and its readers hear of what arrives.

use std::time::Duration;

use crate::harness::{wait_applied, wait_equal, Client, Pipe, Reply, Server, Version};

const KEYS: usize = 3000;

fn policy(server: &Server) -> String {
    cmd!(server.client(), "CONFIG", "GET", "maxmemory-policy").array()[1].text()
}

for_each_server!(no_policy_evicts_while_linked);

fn no_policy_evicts_while_linked(version: Version) {
    let source = Server::start(version);
    source.wait_state("capturing");
    let mut client = source.client();
    for wanted in ["allkeys-lru", "allkeys-lfu", "volatile-ttl"] {
        let target = Server::builder(version)
            .config("maxmemory", "1mb")
            .config("maxmemory-policy", wanted)
            .arg("service-id", 1)
            .source(&source)
            .start();
        target.wait_state("streaming");
        let mut pipe = Pipe::new();
        for n in 0..KEYS {
            pipe.add(&["SET", &format!("key:{n}"), &"v".repeat(500), "EX", "1000"]);
        }
        client.run_good(&pipe);
        wait_equal(&source, &target);
        // The data alone are above the limit.
        assert!(target.info_field("memory", "used_memory").parse::<u64>().unwrap() > 2 << 20);
        assert_eq!(cmd!(target.client(), "DBSIZE").int(), KEYS as i64, "{version} {wanted}");
        assert_eq!(target.info_field("stats", "evicted_keys"), "0", "{version} {wanted}");
        assert_eq!(policy(&target), "noeviction");

        // An operator's hand on it is told, and does nothing.
        let mut admin = target.client();
        for line in ["CONFIG SET maxmemory-policy allkeys-random", "config set MAXMEMORY-POLICY volatile-lru"]
        {
            let reply = admin.line(line);
            let text = reply.error().unwrap_or_else(|| panic!("{version}: {line}: {reply:?}"));
            assert!(text.contains(wanted) && text.contains("DR.CUTLINK"), "{version}: {text}");
        }
        cmd!(admin, "CONFIG", "SET", "maxmemory", "2mb").ok();
        // What is written to the file is the server's own policy.
        cmd!(admin, "CONFIG", "REWRITE").ok();
        let file = std::fs::read_to_string(target.dir().join("redis.conf")).unwrap();
        assert!(file.contains(&format!("maxmemory-policy {wanted}")), "{version}:\n{file}");
        assert_eq!(target.info_field("stats", "evicted_keys"), "0", "{version} {wanted}");

        cmd!(admin, "CONFIG", "SET", "maxmemory", "100mb").ok();
        // As Sentinel does it.
        cmd!(admin, "MULTI").ok();
        cmd!(admin, "CONFIG", "REWRITE").good();
        assert_eq!(admin.line("EXEC").array()[0], Reply::Simple("OK".into()));
        assert_eq!(policy(&target), "noeviction");
        cmd!(admin, "DR.CUTLINK").good();
        assert_eq!(policy(&target), wanted, "{version}");
        cmd!(admin, "CONFIG", "SET", "maxmemory-policy", "allkeys-random").ok();
        cmd!(admin, "CONFIG", "REWRITE").ok();
        let file = std::fs::read_to_string(target.dir().join("redis.conf")).unwrap();
        assert!(file.contains("maxmemory-policy allkeys-random"), "{version}:\n{file}");
        cmd!(client, "DR.CUTLINK", 1).ok();
    }
}

/// The next message that is none of a subscription's own.
fn event(client: &mut Client) -> (String, String) {
    let parts = client.read().expect("an event").strings();
    let text = |at: usize| String::from_utf8_lossy(&parts[at]).into_owned();
    (text(parts.len() - 2).rsplit(':').next().unwrap().to_owned(), text(parts.len() - 1))
}

for_each_server!(readers_hear_of_changes);

fn readers_hear_of_changes(version: Version) {
    let source = Server::start(version);
    let target = Server::builder(version)
        .config("notify-keyspace-events", "KEA")
        .arg("service-id", 1)
        .source(&source)
        .start();
    target.wait_state("streaming");
    let mut listener = target.client();
    cmd!(listener, "PSUBSCRIBE", "__keyevent@0__:*").good();
    let mut client = source.client();
    for line in ["SET key v", "EXPIRE key 100", "INCR n", "RPUSH list a", "DEL key", "SET short v PX 100"] {
        client.line(line).good();
    }
    let mut seen = Vec::new();
    loop {
        let (name, key) = event(&mut listener);
        let last = name == "del" && key == "short";
        seen.push(format!("{name} {key}"));
        if last {
            break;
        }
        // The source deletes it when it looks.
        cmd!(client, "EXISTS", "short").good();
    }
    let wanted = ["set key", "expire key", "incrby n", "rpush list", "del key", "set short", "del short"];
    let mut rest = seen.iter();
    for one in wanted {
        assert!(rest.any(|event| event == one), "{version}: no {one} in {seen:?}");
    }
    assert!(
        !seen.iter().any(|event| event.starts_with("expired") || event.starts_with("evicted")),
        "{seen:?}"
    );

    // Client-side caching.
    for key in ["a", "b", "gone"] {
        cmd!(client, "SET", key, 1, "PX", if key == "gone" { 300 } else { 100_000 }).ok();
    }
    wait_equal(&source, &target);
    let mut caching = target.client();
    caching.resp3();
    cmd!(caching, "CLIENT", "TRACKING", "ON").ok();
    assert_eq!(cmd!(caching, "GET", "a").int(), 1);
    assert!(cmd!(caching, "TTL", "b").int() > 0);
    cmd!(client, "SET", "a", 2).ok();
    assert_eq!(invalidated(&mut caching), ["a"], "{version}");
    assert_eq!(cmd!(caching, "GET", "a").int(), 2);
    cmd!(client, "PEXPIRE", "b", 200_000).good();
    assert_eq!(invalidated(&mut caching), ["b"], "{version}: a time that was read and changes");
    cmd!(client, "DEL", "a").good();
    assert_eq!(invalidated(&mut caching), ["a"], "{version}");
    // A key that is hidden is tracked by its name.
    source.settle();
    source.stop();
    std::thread::sleep(Duration::from_millis(350));
    assert_eq!(cmd!(caching, "GET", "gone"), Reply::Nil, "{version}");
    source.cont();
    cmd!(client, "SET", "gone", 3).ok();
    assert_eq!(invalidated(&mut caching), ["gone"], "{version}");
    wait_applied(&target, source.settle());
    assert_eq!(cmd!(target.client(), "GET", "gone").int(), 3);
    // All changes under a prefix.
    let mut broadcast = target.client();
    broadcast.resp3();
    cmd!(broadcast, "CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "user:").ok();
    cmd!(client, "SET", "user:1", 1).ok();
    assert_eq!(invalidated(&mut broadcast), ["user:1"], "{version}");
}

fn invalidated(client: &mut Client) -> Vec<String> {
    match client.read().expect("an invalidation") {
        Reply::Push(parts) => {
            assert_eq!(parts[0].text(), "invalidate");
            parts[1].clone().strings().iter().map(|key| String::from_utf8_lossy(key).into_owned()).collect()
        }
        other => panic!("{other:?}"),
    }
}

for_some_servers!(too_few_replicas_do_not_stop_a_target);

/// The server takes the module's own connection for a replica; that is told. A target applies whatever is asked.
fn too_few_replicas_do_not_stop_a_target(version: Version) {
    let source = Server::builder(version).config("min-replicas-to-write", 1).start();
    source.wait_state("capturing");
    let warned =
        source.status().list("warnings").iter().any(|text| text.to_string().contains("min-replicas"));
    assert!(warned, "{version}: {:#}", source.status().0);
    assert!(source.log().contains("min-replicas-to-write is 1"), "{version}");
    let target = Server::builder(version)
        .config("min-replicas-to-write", 2)
        .arg("service-id", 1)
        .source(&source)
        .start();
    target.wait_state("streaming");
    crate::harness::wait::until("the tap counts", || {
        cmd!(source.client(), "SET", "key", "v") == Reply::Simple("OK".into())
    });
    wait_equal(&source, &target);
}
