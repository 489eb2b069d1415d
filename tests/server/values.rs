//! Values of unusual content and size, by snapshot and by stream.

use std::collections::BTreeMap;

use crate::dr::{self, Site};
use crate::workload::compare::{self, Detail};
use crate::workload::{Conn, Rng};

/// The full sizes of the soak; the default run takes an eighth of the counts.
struct Size {
    tiny_keys: usize,
    transaction: usize,
    list: usize,
    large_value: usize,
}

const FULL: Size =
    Size { tiny_keys: 1_000_000, transaction: 100_000, list: 1_000_000, large_value: 64 * 1024 * 1024 };
const EIGHTH: Size =
    Size { tiny_keys: 125_000, transaction: 12_500, list: 125_000, large_value: 64 * 1024 * 1024 };

/// Sends commands in runs, since a pipeline without end would fill both socket buffers.
fn send_all(conn: &mut Conn, commands: impl Iterator<Item = Vec<Vec<u8>>>) {
    let mut batch = Vec::new();
    let flush = |conn: &mut Conn, batch: &mut Vec<Vec<Vec<u8>>>| {
        for reply in conn.pipeline(batch).expect("replies") {
            assert!(reply.error().is_none(), "{reply:?}");
        }
        batch.clear();
    };
    for command in commands {
        batch.push(command);
        if batch.len() == 500 {
            flush(conn, &mut batch);
        }
    }
    flush(conn, &mut batch);
}

fn command(words: &[&[u8]]) -> Vec<Vec<u8>> {
    words.iter().map(|w| w.to_vec()).collect()
}

/// Names and values with every byte, empty ones, and text that looks like the protocol.
fn odd_bytes() -> Vec<Vec<u8>> {
    let every_byte: Vec<u8> = (0..=255).collect();
    let mut out = vec![Vec::new(), vec![0], b"\r\n".to_vec(), b"*3\r\n$3\r\nSET\r\n".to_vec(), every_byte];
    out.extend([b"%s%n%d".to_vec(), "\u{9375} \u{1f511}".into(), vec![0xff; 300], b"-1".to_vec()]);
    out.extend([b"9223372036854775807".to_vec(), b"12345".to_vec(), b"007".to_vec(), b"1e5".to_vec()]);
    out
}

fn put_odd(conn: &mut Conn) {
    let odd = odd_bytes();
    let mut commands = Vec::new();
    for (n, a) in odd.iter().enumerate() {
        let b = &odd[(n + 5) % odd.len()];
        let name = |kind: &[u8]| [kind, a].concat();
        commands.push(command(&[b"SET", a, b]));
        commands.push(command(&[b"HSET", &name(b"hash"), a, b, b, a]));
        commands.push(command(&[b"RPUSH", &name(b"list"), a, b, a]));
        commands.push(command(&[b"SADD", &name(b"set"), a, b]));
        commands.push(command(&[b"ZADD", &name(b"zset"), b"1.5", a, b"-inf", b]));
        commands.push(command(&[b"XADD", &name(b"stream"), b"*", a, b, b, a]));
        commands.push(command(&[b"PFADD", &name(b"loglog"), a, b]));
        commands.push(command(&[b"PUBLISH", a, b]));
    }
    send_all(conn, commands.into_iter());
}

fn put_large(conn: &mut Conn, size: &Size) {
    let mut rng = Rng::new(64);
    let value = rng.bytes(size.large_value);
    send_all(conn, [command(&[b"SET", b"large", &value]), command(&[b"APPEND", b"large", b"!"])].into_iter());
    send_all(conn, (0..size.tiny_keys).map(|n| command(&[b"SET", n.to_string().as_bytes(), b"1"])));
    let push = |n: usize| {
        let mut out = command(&[b"RPUSH", b"long list"]);
        out.extend((n * 100..(n + 1) * 100).map(|i| format!("element {i}").into_bytes()));
        out
    };
    send_all(conn, (0..size.list / 100).map(push));
}

/// One transaction, sent in pieces; half of it adds up, so that a second execution would show.
fn run_transaction(conn: &mut Conn, size: &Size) {
    let write = |n: usize| match n % 2 {
        0 => command(&[b"INCR", b"transaction counter"]),
        _ => command(&[b"HSET", b"transaction hash", n.to_string().as_bytes(), b"v"]),
    };
    let all = std::iter::once(command(&[b"MULTI"])).chain((0..size.transaction).map(write));
    send_all(conn, all);
    let reply = conn.call(&["EXEC"]);
    assert_eq!(reply.items().len(), size.transaction);
}

fn check(source: &Site, target: &Site, what: &str) {
    dr::wait_in_step(source, target);
    dr::wait_same_digest(&[source, target], what);
    let sizes = |site: &Site| -> BTreeMap<&str, i64> {
        let mut conn = site.conn();
        let mut out = BTreeMap::new();
        out.insert("keys", conn.call(&["DBSIZE"]).int());
        out.insert("large", conn.call(&["STRLEN", "large"]).int());
        out.insert("list", conn.call(&["LLEN", "long list"]).int());
        out.insert("hash", conn.call(&["HLEN", "transaction hash"]).int());
        out
    };
    assert_eq!(sizes(source), sizes(target), "{what}");
}

/// Small odd values are compared key by key, the many and large ones by digest and size.
fn values_arrive(version: &str, size: &Size) {
    let source = Site::start(version, 0);
    let target = Site::start(version, 1);
    let caps = source.table().caps;
    let mut conn = source.conn();

    put_odd(&mut conn);
    target.link(&[&source]);
    dr::wait_in_step(&source, &target);
    dr::assert_same(
        &source,
        &target,
        &caps,
        Detail::MasterAndReplica,
        &format!("{version}, odd, by snapshot"),
    );
    conn.call(&["FLUSHALL"]);
    put_odd(&mut conn);
    dr::wait_in_step(&source, &target);
    dr::assert_same(&source, &target, &caps, Detail::MasterAndReplica, &format!("{version}, odd, by stream"));

    put_large(&mut conn, size);
    run_transaction(&mut conn, size);
    check(&source, &target, &format!("{version}, large, by stream"));
    assert_eq!(target.full_syncs(), 1);

    let second = Site::start(version, 2);
    second.link(&[&source]);
    check(&source, &second, &format!("{version}, large, by snapshot"));
}

#[test]
fn odd_and_large_values_arrive_on_redis_6_0() {
    values_arrive("redis-6.0", &EIGHTH);
}

#[test]
fn odd_and_large_values_arrive_on_redis_7_0() {
    values_arrive("redis-7.0", &EIGHTH);
}

#[test]
fn odd_and_large_values_arrive_on_valkey_9_1() {
    values_arrive("valkey-9.1", &EIGHTH);
}

#[test]
#[ignore = "soak: full sizes on every server"]
fn soak_odd_and_large_values_arrive_at_full_size() {
    for version in dr::VERSIONS {
        values_arrive(version, &FULL);
    }
}

/// Keeps the comparison honest: it must see each kind of difference.
#[test]
fn the_comparison_sees_what_differs() {
    let (a, b) = (Site::plain("redis-7.0"), Site::plain("redis-7.0"));
    let caps = a.table().caps;
    let (mut ca, mut cb) = (a.conn(), b.conn());
    let cases: [(&[&str], &[&str]); 8] = [
        (&["SET", "k", "1"], &["SET", "k", "2"]),
        (&["SET", "k", "1"], &["SET", "other", "1"]),
        (&["SET", "k", "1"], &["SET", "k", "1", "EX", "1000"]),
        (&["SET", "k", "1", "EX", "5000"], &["SET", "k", "1", "EX", "1000"]),
        (&["RPUSH", "k", "a", "b"], &["RPUSH", "k", "b", "a"]),
        (&["ZADD", "k", "1", "a"], &["ZADD", "k", "1.0000000001", "a"]),
        (&["XADD", "k", "1-1", "f", "v"], &["XADD", "k", "1-1", "f", "w"]),
        (&["XGROUP", "CREATE", "k", "g", "$", "MKSTREAM"], &["XGROUP", "CREATE", "k", "h", "$", "MKSTREAM"]),
    ];
    for (x, y) in cases {
        ca.call(&["FLUSHALL"]);
        cb.call(&["FLUSHALL"]);
        ca.call(x);
        cb.call(y);
        let read = |c: &mut Conn| compare::read(c, &caps, Detail::MasterAndReplica);
        assert!(!compare::differences(&read(&mut ca), &read(&mut cb)).is_empty(), "{x:?} and {y:?}");
        cb.call(&["FLUSHALL"]);
        cb.call(x);
        assert_eq!(compare::differences(&read(&mut ca), &read(&mut cb)), Vec::<String>::new(), "{x:?}");
    }
}
