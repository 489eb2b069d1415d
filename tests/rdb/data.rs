//! Data of every type and encoding that a server saves.

use super::server::{Program, Reply, Server};

/// A far expiry, so that no key goes while a test runs.
const FAR_MS: u64 = 4_000_000_000_123;

type Command = Vec<Vec<u8>>;

fn cmd(parts: &[&str]) -> Command {
    parts.iter().map(|p| p.as_bytes().to_vec()).collect()
}

/// A command with many arguments after its first ones.
fn many(head: &[&str], rest: impl Iterator<Item = Vec<u8>>) -> Command {
    let mut command = cmd(head);
    command.extend(rest);
    command
}

/// Text that LZF does not shrink much.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}

pub fn fill(server: &mut Server, program: &Program) {
    let mut commands = strings();
    commands.extend(lists());
    commands.extend(sets());
    commands.extend(zsets());
    commands.extend(hashes());
    commands.extend(streams());
    server.pipeline(&commands);
    plain_list_nodes(server);
    field_ttls(server, program);
    if program.since((7, 0), (7, 0)) {
        let code = "#!lua name=testlib\nredis.register_function('one', function() return 1 end)\n";
        server.ok(&["FUNCTION", "LOAD", code]);
        let long = format!(
            "#!lua name=biglib\nredis.register_function('two', function() return 2 end)\n--{}\n",
            "x".repeat(5000)
        );
        server.ok(&["FUNCTION", "LOAD", &long]);
    }
    let mut elsewhere = vec![cmd(&["SELECT", "3"]), cmd(&["SET", "in-db-3", "x"])];
    elsewhere.push(cmd(&["SADD", "set-in-db-3", "a", "b", "7"]));
    elsewhere.push(cmd(&["PEXPIREAT", "set-in-db-3", &FAR_MS.to_string()]));
    elsewhere.push(cmd(&["SELECT", "0"]));
    server.pipeline(&elsewhere);
    let far = FAR_MS.to_string();
    for key in ["str-int8", "list-large", "hash-large", "zset-small", "stream-groups"] {
        assert_eq!(server.ok(&["PEXPIREAT", key, &far]), Reply::Int(1), "{key}");
    }
}

fn strings() -> Vec<Command> {
    let mut out = Vec::new();
    let numbers =
        [("str-int8", "5"), ("str-int8-neg", "-128"), ("str-int16", "-32768"), ("str-int32", "2147483647")];
    for (key, value) in numbers {
        out.push(cmd(&["SET", key, value]));
    }
    out.push(cmd(&["SET", "str-int64", "9223372036854775807"]));
    out.push(cmd(&["SET", "str-empty", ""]));
    out.push(cmd(&["SET", "", "empty name"]));
    out.push(cmd(&["SET", "12345", "number as a name"]));
    out.push(cmd(&["SET", "-7", "number as a name"]));
    out.push(cmd(&["SET", "str-lzf", &"abc".repeat(400)]));
    out.push(cmd(&["SET", "str-lzf-runs", &"a".repeat(100_000)]));
    out.push(cmd(&["SET", &"long name ".repeat(50), "compressed name"]));
    out.push(vec![b"SET".to_vec(), b"bin\0\xff\r\n%s".to_vec(), b"\0\x01\xfe".to_vec()]);
    out.push(vec![b"SET".to_vec(), b"str-noise".to_vec(), noise(1, 20_000)]);
    out.push(vec![b"SET".to_vec(), b"str-big".to_vec(), noise(2, 300_000)]);
    out.push(many(&["PFADD", "hll"], (0..2000u32).map(|n| n.to_string().into_bytes())));
    out.push(cmd(&["SETBIT", "bits", "100000", "1"]));
    for n in 0..300 {
        out.push(cmd(&["SET", &format!("fill:{n}"), &format!("value {n}")]));
    }
    out
}

fn lists() -> Vec<Command> {
    let texts = |n: u32| (0..n).map(|i| format!("element {i} {}", "-".repeat(i as usize % 90)).into_bytes());
    vec![
        cmd(&[
            "RPUSH",
            "list-small",
            "a",
            "1",
            "-5",
            "300",
            "70000",
            "-9000000000",
            "",
            "8191",
            "-4096",
            "4096",
        ]),
        many(&["RPUSH", "list-large"], texts(3000)),
        many(
            &["RPUSH", "list-numbers"],
            (0..5000i64).map(|n| (n * n * n - 999_999).to_string().into_bytes()),
        ),
        many(&["RPUSH", "list-noise"], (0..40).map(|n| noise(n, 3000))),
        many(&["RPUSH", "list-long-elements"], (0..5).map(|n| noise(n, 70_000))),
        many(&["RPUSH", "list-middle-elements"], (0..50u64).map(|n| noise(n, n as usize * 10 + 40))),
    ]
}

/// List nodes that hold one element each, as for elements over 1 GiB.
fn plain_list_nodes(server: &mut Server) {
    // Servers before 7.0 have no such nodes, and refuse the first command.
    let _ = server.call(&["DEBUG", "QUICKLIST-PACKED-THRESHOLD", "200b"]);
    server.pipeline(&[
        many(&["RPUSH", "list-plain"], (0..20).map(|n| noise(n, if n % 3 == 0 { 5 } else { 500 }))),
        many(&["RPUSH", "list-plain-lzf"], (0..5).map(|n| vec![b'a' + n; 1000])),
    ]);
    let _ = server.call(&["DEBUG", "QUICKLIST-PACKED-THRESHOLD", "0"]);
}

fn sets() -> Vec<Command> {
    vec![
        cmd(&["SADD", "set-int16", "1", "2", "-3"]),
        cmd(&["SADD", "set-int32", "1", "70000"]),
        cmd(&["SADD", "set-int64", "1", "-9000000000"]),
        cmd(&["SADD", "set-small", "a", "b", "12", ""]),
        many(&["SADD", "set-large"], (0..3000).map(|n| format!("member {n}").into_bytes())),
        many(&["SADD", "set-large-ints"], (0..2000i64).map(|n| (n * 1_000_003 - 5).to_string().into_bytes())),
        many(&["SADD", "set-long"], (0..10).map(|n| noise(n, 4000))),
    ]
}

fn zsets() -> Vec<Command> {
    let odd = [
        "inf",
        "-inf",
        "0.1",
        "1e300",
        "-0.0",
        "5e-324",
        "3",
        "-1.7976931348623157e308",
        "0.30000000000000004",
    ];
    let pairs = |n: u32| {
        (0..n).flat_map(move |i| {
            let score =
                odd.get(i as usize).map_or_else(|| format!("{}", f64::from(i) / 7.0), |s| (*s).to_string());
            [score.into_bytes(), format!("member {i}").into_bytes()]
        })
    };
    vec![
        many(&["ZADD", "zset-small"], pairs(20)),
        many(&["ZADD", "zset-large"], pairs(2500)),
        many(
            &["ZADD", "zset-long"],
            [b"1.5".to_vec(), noise(3, 500), b"-2".to_vec(), b"77".to_vec()].into_iter(),
        ),
        cmd(&["GEOADD", "geo", "13.361389", "38.115556", "Palermo", "15.087269", "37.502669", "Catania"]),
    ]
}

fn hashes() -> Vec<Command> {
    let pairs = |n: u32| {
        (0..n).flat_map(|i| [format!("field {i}").into_bytes(), format!("{}", i * 1000).into_bytes()])
    };
    vec![
        many(&["HSET", "hash-small"], pairs(10)),
        many(&["HSET", "hash-large"], pairs(2000)),
        many(
            &["HSET", "hash-long"],
            [b"f".to_vec(), noise(9, 3000), noise(10, 300), b"".to_vec()].into_iter(),
        ),
        cmd(&["HSET", "hash-lzf", "f", &"z".repeat(3000)]),
    ]
}

fn streams() -> Vec<Command> {
    let mut out = Vec::new();
    for n in 0..1500 {
        let (id, value) = (format!("{}-{}", 1_000_000 + n / 3, n % 3 + 1), format!("value {n}"));
        let fields: &[&str] = if n % 5 == 0 { &["x", &value] } else { &["a", &value, "b", "2"] };
        let mut command = cmd(&["XADD", "stream-groups", &id]);
        command.extend(cmd(fields));
        out.push(command);
    }
    for n in (0..1500).step_by(11) {
        out.push(cmd(&["XDEL", "stream-groups", &format!("{}-{}", 1_000_000 + n / 3, n % 3 + 1)]));
    }
    out.push(cmd(&["XGROUP", "CREATE", "stream-groups", "g1", "0"]));
    out.push(cmd(&["XGROUP", "CREATE", "stream-groups", "g2", "$"]));
    out.push(cmd(&["XGROUP", "CREATE", "stream-groups", &"long group ".repeat(10), "5-5"]));
    out.push(cmd(&["XREADGROUP", "GROUP", "g1", "alice", "COUNT", "70", "STREAMS", "stream-groups", ">"]));
    out.push(cmd(&["XREADGROUP", "GROUP", "g1", "bob", "COUNT", "30", "STREAMS", "stream-groups", ">"]));
    out.push(cmd(&["XACK", "stream-groups", "g1", "1000001-1", "1000001-2"]));
    // A consumer without entries; before 6.2 it has no command of its own.
    out.push(cmd(&["XREADGROUP", "GROUP", "g2", "idle", "STREAMS", "stream-groups", ">"]));
    out.push(cmd(&["XADD", "stream-empty", "7-7", "a", "b"]));
    out.push(cmd(&["XDEL", "stream-empty", "7-7"]));
    out.push(cmd(&["XADD", "stream-small", "1-1", "field", &"y".repeat(300)]));
    out
}

fn field_ttls(server: &mut Server, program: &Program) {
    if !program.since((7, 4), (9, 0)) {
        return;
    }
    let pairs = |n: u32| (0..n).flat_map(|i| [format!("f{i}").into_bytes(), format!("v{i}").into_bytes()]);
    let mut commands =
        vec![many(&["HSET", "hash-ttl-small"], pairs(10)), many(&["HSET", "hash-ttl-large"], pairs(1500))];
    for (key, fields) in [("hash-ttl-small", 4u64), ("hash-ttl-large", 700)] {
        for n in 0..fields {
            let at = (FAR_MS + n % 5 * 1000).to_string();
            commands.push(cmd(&["HPEXPIREAT", key, &at, "FIELDS", "1", &format!("f{n}")]));
        }
    }
    server.pipeline(&commands);
}
