//! SETs that a target stores by the key API are what the command would have stored: value, encoding, memory, events,
//! invalidations; what cannot be proved equal goes by the command.

use std::collections::BTreeMap;

use crate::dr::{wait_in_step, wait_streaming};
use crate::harness::{version, Version};
use crate::site::Site;
use crate::workload::{Conn, Reply};

/// Values by name: every length around the borders of the encodings, what looks like an integer, odd bytes.
fn values() -> Vec<(String, Vec<u8>)> {
    let long = (0..70usize).chain([100, 1000, 31_000, 33_000, 70_000]);
    let mut all: Vec<_> = long.map(|n| (format!("length {n}"), vec![b'v'; n])).collect();
    let odd: [&[u8]; 14] = [
        b"0",
        b"7",
        b"-5",
        b"9999",
        b"10000",
        b"9223372036854775807",
        b"-9223372036854775808",
        b"9223372036854775808",
        b"007",
        b"-",
        b"1.5",
        b"1e5",
        b"\r\n\0%s",
        b" 12",
    ];
    all.extend(odd.iter().enumerate().map(|(n, v)| (format!("odd {n}"), v.to_vec())));
    all
}

fn set_all(conn: &mut Conn, prefix: &str) {
    for (name, value) in values() {
        let reply = conn.call(&[&b"SET"[..], format!("{prefix} {name}").as_bytes(), &value]);
        assert!(reply.error().is_none(), "{reply:?}");
    }
}

fn run(conn: &mut Conn, lines: &[&str]) {
    for line in lines {
        let reply = conn.call(&line.split(' ').collect::<Vec<_>>());
        assert!(reply.error().is_none(), "{line}: {reply:?}");
    }
}

/// How often the server has run SET as a command.
fn sets_called(conn: &mut Conn) -> u64 {
    let text = conn.call(&["INFO", "commandstats"]).text();
    let calls = |l: &str| l.strip_prefix("cmdstat_set:calls=")?.split(',').next()?.parse().ok();
    text.lines().find_map(calls).unwrap_or(0)
}

/// Everything that a client can ask of a key.
///
/// Valkey puts key and value into one allocation, whose size depends on who else holds the value at that moment: that
/// is not compared.
fn look(conn: &mut Conn, valkey: bool) -> BTreeMap<Vec<u8>, Vec<Reply>> {
    let keys = conn.call(&["KEYS", "*"]);
    let mut seen = BTreeMap::new();
    for key in keys.items() {
        let key = key.bytes();
        let ask: [&[&[u8]]; 5] = [
            &[b"GET", key],
            &[b"PTTL", key],
            &[b"OBJECT", b"ENCODING", key],
            &[b"OBJECT", b"REFCOUNT", key],
            &[b"MEMORY", b"USAGE", key],
        ];
        let ask = ask.iter().take(if valkey { 4 } else { 5 });
        seen.insert(key.to_vec(), ask.map(|argv| conn.call(argv)).collect());
    }
    seen
}

fn subscriber(site: &Site, channels: &[&str]) -> Conn {
    let mut conn = site.conn();
    for channel in channels {
        conn.call(&["SUBSCRIBE", channel]);
    }
    conn
}

/// Messages up to the one for `last`.
fn messages(conn: &mut Conn, last: &str) -> Vec<(String, String)> {
    let mut seen = Vec::new();
    loop {
        let message = conn.read().expect("a message");
        let (channel, key) = (message.items()[1].text(), message.items()[2].text());
        if key == last {
            return seen;
        }
        seen.push((channel, key));
    }
}

fn two(server: &str) -> (Site, Site) {
    let (source, target) = (Site::start(server, 0), Site::start(server, 1));
    target.link(&[&source]);
    wait_streaming(&target);
    (source, target)
}

fn same_as_the_command(server: Version) {
    let (source, target) = two(server.name);
    let valkey = server.valkey;
    let (mut a, mut b) = (source.conn(), target.conn());
    run(&mut b, &["CONFIG SET notify-keyspace-events KEA"]);
    let channels = ["__keyevent@0__:set", "__keyevent@0__:del", "__keyevent@0__:new"];
    let mut events = subscriber(&target, &channels);
    let mut told = site_tracking(&target);

    set_all(&mut a, "new");
    // Over values of every kind, and over expiries, which end with them.
    for (i, (name, _)) in values().iter().enumerate() {
        let key = format!("over {name}");
        let argv: &[&str] = match i % 5 {
            0 => &["SET", &key, "before"],
            1 => &["SET", &key, "12"],
            2 => &["RPUSH", &key, "a", "b"],
            3 => &["SET", &key, "before", "EX", "1000"],
            _ => &["HSET", &key, "f", "v"],
        };
        assert!(a.call(argv).error().is_none());
    }
    set_all(&mut a, "over");
    run(&mut a, &["SELECT 3", "SET elsewhere value", "SELECT 0", "MULTI"]);
    a.call(&["SET", "in a transaction", "value"]);
    run(&mut a, &["EXEC", "SET end end"]);
    wait_in_step(&source, &target);

    let (left, right) = (look(&mut a, valkey), look(&mut b, valkey));
    assert_eq!(left.len(), 2 * values().len() + 2);
    for (key, replies) in &left {
        assert_eq!(Some(replies), right.get(key), "{}", String::from_utf8_lossy(key));
    }
    run(&mut b, &["SELECT 3"]);
    assert_eq!(b.call(&["GET", "elsewhere"]).text(), "value");

    let seen = messages(&mut events, "end");
    let on = |channel: &str| seen.iter().filter(|(c, _)| c.ends_with(channel)).count();
    // Every SET of database 0 but the last: two rounds, three in five of what they went over, the transaction's.
    let before = (0..values().len()).filter(|i| matches!(i % 5, 0 | 1 | 3)).count();
    assert_eq!((on(":set"), on(":del")), (2 * values().len() + before + 1, 0));
    assert_eq!(told.read().expect("an invalidation").items()[2].items()[0].text(), "over odd 0");

    // By the command: integers and what looks like one, and SETs with options.
    let looks = values().iter().filter(|(n, _)| n.starts_with("odd")).count() - 2;
    let (called, options) = (sets_called(&mut b), before as u64);
    if (valkey && !server.has_valkey(9, 0)) || !server.has(7, 0) {
        // It takes the command for all.
        // Those and the last, and the one in the other database.
        assert_eq!(called as usize, on(":set") + 2, "SETs that were called");
        return;
    }
    assert!(called >= 2 * looks as u64 && called <= 2 * looks as u64 + options, "{called} SETs were called");
}

/// A client that has read a key and is to be told of its change.
fn site_tracking(site: &Site) -> Conn {
    let mut ear = site.conn();
    let id = ear.call(&["CLIENT", "ID"]).int();
    ear.call(&["SUBSCRIBE", "__redis__:invalidate"]);
    let mut reader = site.conn();
    run(&mut reader, &[&format!("CLIENT TRACKING ON REDIRECT {id}")]);
    reader.call(&["GET", "over odd 0"]);
    // It has to stay connected for as long as it is to be told.
    std::mem::forget(reader);
    ear
}

for_each_server!(same_as_the_command);

for_each_server!(same_with_an_expiry);

/// SET with an expiry: over values of other kinds, over an expiry, and the events in their order.
fn same_with_an_expiry(server: Version) {
    let (source, target) = two(server.name);
    let (mut a, mut b) = (source.conn(), target.conn());
    run(&mut b, &["CONFIG SET notify-keyspace-events KEA"]);
    let mut events =
        subscriber(&target, &["__keyevent@0__:set", "__keyevent@0__:expire", "__keyevent@0__:del"]);
    for (i, (name, value)) in values().iter().enumerate() {
        let key = format!("key {name}");
        match i % 3 {
            0 => a.call(&["RPUSH", &key, "a", "b"]),
            1 => a.call(&["SET", &key, "before", "EX", "7"]),
            _ => a.call(&["SET", &key, "12"]),
        };
        let reply = a.call(&[&b"SET"[..], key.as_bytes(), value, b"PX", b"5000000"]);
        assert!(reply.error().is_none(), "{reply:?}");
    }
    run(&mut a, &["SET end end"]);
    wait_in_step(&source, &target);
    let without_time = |conn: &mut Conn| {
        let mut seen = look(conn, server.valkey);
        for replies in seen.values_mut() {
            let ms = replies.remove(1).int();
            assert!(ms == -1 || (4_000_000..=5_000_000).contains(&ms), "{ms}");
        }
        seen
    };
    let (left, right) = (without_time(&mut a), without_time(&mut b));
    assert_eq!(left.len(), values().len() + 1);
    for (key, replies) in &left {
        assert_eq!(Some(replies), right.get(key), "{}", String::from_utf8_lossy(key));
    }
    let seen = messages(&mut events, "end");
    for (i, (name, _)) in values().iter().enumerate() {
        let key = format!("key {name}");
        let told = seen.iter().filter(|(_, k)| *k == key).map(|(c, _)| c.rsplit(':').next().unwrap());
        let mut expected = match i % 3 {
            0 => vec![],
            1 => vec!["set", "expire"],
            _ => vec!["set"],
        };
        expected.extend(["set", "expire"]);
        assert_eq!(told.collect::<Vec<_>>(), expected, "{key}");
    }
    let by_key_api = server.has(7, 0) && (!server.valkey || server.has_valkey(9, 0));
    let called = sets_called(&mut b);
    let looks = values().iter().filter(|(n, _)| n.starts_with("odd")).count() as u64;
    assert!(!by_key_api || called <= looks + values().len() as u64 / 3 + 1, "{called} SETs were called");
}

/// Whoever asks for new keys gets those that are new, and not those that were there.
#[test]
fn new_keys_are_told_as_the_command_tells_them() {
    assert!(version("redis-7.0").has(7, 0));
    let (source, target) = two("redis-7.0");
    run(&mut source.conn(), &["SET old value"]);
    wait_in_step(&source, &target);
    run(&mut target.conn(), &["CONFIG SET notify-keyspace-events KEAn"]);
    let mut events = subscriber(&target, &["__keyevent@0__:new", "__keyevent@0__:set"]);
    run(&mut source.conn(), &["SET old again", "SET fresh value", "SET end end"]);
    let pair = |channel: &str, key: &str| (format!("__keyevent@0__:{channel}"), key.to_owned());
    assert_eq!(
        messages(&mut events, "end"),
        [pair("set", "old"), pair("new", "fresh"), pair("set", "fresh")]
    );
}
