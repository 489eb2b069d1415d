//! Two servers read key by key. Stricter than DEBUG DIGEST, which leaves out consumer groups and tells nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::mix::{argv, Argv, LONG_TTL_MS};
use super::reply::{Conn, Reply};
use super::table::Caps;

/// Databases of a server with the default configuration.
const ALL_DATABASES: u64 = 16;

/// What a key holds, in an order of its own where the server has none.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    pub kind: String,
    pub value: Reply,
    /// Remaining time to live in ms.
    pub ttl_ms: Option<i64>,
}

/// Everything that a server holds.
#[derive(Debug)]
pub struct Contents {
    pub keys: BTreeMap<(u64, Vec<u8>), Item>,
    pub functions: Reply,
}

/// How far two readings of one remaining time may be apart: the readings are not simultaneous, and 6.x passes
/// relative times on.
const TTL_TOLERANCE_MS: i64 = 20_000;

/// How much of a stream's consumer groups is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Detail {
    /// For two servers that were fed by the same stream of commands: everything that such a stream decides.
    Replicas,
    /// For a master and what follows it. A master keeps some facts to itself: `entries-read`, consumers with nothing
    /// pending, and that a consumer has read its own pending entries again (which moves their time and count).
    MasterAndReplica,
    /// For two versions: also without the fields that one of them does not have.
    AcrossVersions,
}

pub fn read(conn: &mut Conn, caps: &Caps, detail: Detail) -> Contents {
    let mut keys = BTreeMap::new();
    for db in 0..ALL_DATABASES {
        expect_ok(conn.call(&argv!["SELECT", db]));
        let names: Vec<Vec<u8>> =
            conn.call(&argv!["KEYS", "*"]).items().iter().map(|k| k.bytes().to_vec()).collect();
        for chunk in names.chunks(200) {
            for (name, item) in read_keys(conn, caps, chunk, detail) {
                keys.insert((db, name), item);
            }
        }
    }
    expect_ok(conn.call(&argv!["SELECT", "0"]));
    let functions = if caps.from(7, 0) {
        sorted(conn.call(&argv!["FUNCTION", "LIST", "WITHCODE"]).items().iter().map(function).collect())
    } else {
        Reply::Nil
    };
    Contents { keys, functions }
}

fn expect_ok(reply: Reply) {
    assert_eq!(reply, Reply::Simple("OK".into()));
}

fn pipeline(conn: &mut Conn, commands: &[Argv]) -> Vec<Reply> {
    conn.pipeline(commands).expect("replies")
}

fn read_keys(conn: &mut Conn, caps: &Caps, names: &[Vec<u8>], detail: Detail) -> Vec<(Vec<u8>, Item)> {
    let about: Vec<Argv> =
        names.iter().flat_map(|k| [argv!["TYPE", k.as_slice()], argv!["PTTL", k.as_slice()]]).collect();
    let about = pipeline(conn, &about);
    let kinds: Vec<String> = about.chunks(2).map(|c| c[0].text()).collect();
    let reads: Vec<Argv> = names.iter().zip(&kinds).map(|(k, kind)| read_command(k, kind)).collect();
    let values = pipeline(conn, &reads);
    let mut out = Vec::new();
    for (n, (value, kind)) in values.into_iter().zip(kinds).enumerate() {
        // Expired between the listing and now.
        if kind == "none" || value == Reply::Nil {
            continue;
        }
        let value = match kind.as_str() {
            "hash" => hash(conn, caps, &names[n], &value),
            "stream" => stream(conn, &names[n], value, detail),
            "vectorset" => vectors(conn, &names[n], &value),
            "set" => sorted(value.items().to_vec()),
            "zset" => sorted_set(&value),
            _ => value,
        };
        // All its fields have expired and nobody has deleted it yet: a replica says that there is no such key.
        if kind == "hash" && value.items().is_empty() {
            continue;
        }
        let ttl = about[2 * n + 1].int();
        out.push((names[n].clone(), Item { kind, value, ttl_ms: (ttl >= 0).then_some(ttl) }));
    }
    out
}

fn read_command(key: &[u8], kind: &str) -> Argv {
    match kind {
        "string" => argv!["GET", key],
        "list" => argv!["LRANGE", key, "0", "-1"],
        "set" => argv!["SMEMBERS", key],
        "zset" => argv!["ZRANGE", key, "0", "-1", "WITHSCORES"],
        "hash" => argv!["HGETALL", key],
        "stream" => argv!["XRANGE", key, "-", "+"],
        "vectorset" => argv!["VRANDMEMBER", key, "1000000"],
        _ => argv!["DUMP", key],
    }
}

fn sorted(mut items: Vec<Reply>) -> Reply {
    items.sort_by_key(|r| format!("{r:?}"));
    Reply::Array(items)
}

fn sorted_set(reply: &Reply) -> Reply {
    let pair = |c: &[Reply]| {
        let score: f64 = c[1].text().parse().expect("a score");
        // Adding zero makes -0 and 0 one: versions differ in which of them they print.
        Reply::Array(vec![c[0].clone(), Reply::Simple(format!("{:?}", score + 0.0))])
    };
    sorted(reply.items().chunks(2).map(pair).collect())
}

/// Field, value, and whether the field expires.
fn hash(conn: &mut Conn, caps: &Caps, key: &[u8], reply: &Reply) -> Reply {
    let pairs: Vec<&[Reply]> = reply.items().chunks(2).collect();
    let ttls = if has_field_ttl(caps) && !pairs.is_empty() {
        let mut ask = argv!["HPTTL", key, "FIELDS", pairs.len()];
        ask.extend(pairs.iter().map(|p| p[0].bytes().to_vec()));
        conn.call(&ask).items().iter().map(|t| t.int() >= 0).collect()
    } else {
        vec![false; pairs.len()]
    };
    let all = pairs.iter().zip(ttls.iter().chain(std::iter::repeat(&false)));
    sorted(
        all.map(|(p, expires)| {
            let mark = if *expires { "expires" } else { "stays" };
            Reply::Array(vec![p[0].clone(), p[1].clone(), Reply::Simple(mark.into())])
        })
        .collect(),
    )
}

pub fn has_field_ttl(caps: &Caps) -> bool {
    match caps.valkey {
        Some(v) => v >= (9, 0, 0),
        None => caps.from(7, 4),
    }
}

fn vectors(conn: &mut Conn, key: &[u8], members: &Reply) -> Reply {
    let of = |m: &Reply, conn: &mut Conn| {
        let vector = conn.call(&argv!["VEMB", key, m.bytes()]);
        let attribute = conn.call(&argv!["VGETATTR", key, m.bytes()]);
        Reply::Array(vec![m.clone(), vector, attribute])
    };
    sorted(members.items().iter().map(|m| of(m, conn)).collect())
}

/// All entries, and XINFO STREAM FULL without what depends on when and how a replica was told.
fn stream(conn: &mut Conn, key: &[u8], entries: Reply, detail: Detail) -> Reply {
    let info = conn.call(&argv!["XINFO", "STREAM", key, "FULL", "COUNT", "0"]);
    let mut about = fields(&info);
    about.retain(|(name, _)| !LOCAL_FIELDS.contains(&name.as_str()) && name != "groups");
    if detail == Detail::AcrossVersions {
        about.retain(|(name, _)| COMMON_FIELDS.contains(&name.as_str()));
    }
    let groups = field(&info, "groups").items().iter().map(|g| group(g, detail)).collect();
    Reply::Array(vec![entries, Reply::Simple(format!("{about:?}")), sorted(groups)])
}

/// Fields of XINFO that depend on the clock, on the node or on other fields. Entries are read by XRANGE.
const LOCAL_FIELDS: [&str; 6] =
    ["radix-tree-keys", "radix-tree-nodes", "seen-time", "active-time", "entries", "lag"];

/// What every version says of a stream.
const COMMON_FIELDS: [&str; 2] = ["length", "last-generated-id"];

fn group(group: &Reply, detail: Detail) -> Reply {
    let strict = detail == Detail::Replicas;
    let mut about = fields(group);
    about.retain(|(name, _)| !LOCAL_FIELDS.contains(&name.as_str()) && name != "consumers");
    about.retain(|(name, _)| strict || name != "entries-read");
    blur_pending(&mut about, 2, strict);
    let mut consumers = Vec::new();
    for consumer in field(group, "consumers").items() {
        let mut about = fields(consumer);
        about.retain(|(name, _)| !LOCAL_FIELDS.contains(&name.as_str()));
        blur_pending(&mut about, 1, strict);
        if strict || !field(consumer, "pending").items().is_empty() {
            consumers.push(Reply::Simple(format!("{about:?}")));
        }
    }
    Reply::Array(vec![Reply::Simple(format!("{about:?}")), sorted(consumers)])
}

/// Leaves of each pending entry its first fields: id and, in a group's list, consumer.
fn blur_pending(about: &mut [(String, Reply)], keep: usize, strict: bool) {
    for (_, list) in about.iter_mut().filter(|(name, _)| !strict && name == "pending") {
        let cut = |entry: &Reply| Reply::Array(entry.items().iter().take(keep).cloned().collect());
        *list = Reply::Array(list.items().iter().map(cut).collect());
    }
}

/// A flattened map.
fn fields(map: &Reply) -> Vec<(String, Reply)> {
    map.items().chunks(2).map(|c| (c[0].text(), c[1].clone())).collect()
}

fn field(map: &Reply, name: &str) -> Reply {
    fields(map).into_iter().find(|(n, _)| n == name).map_or(Reply::Nil, |(_, v)| v)
}

/// A library with its functions in an order of their own.
fn function(library: &Reply) -> Reply {
    Reply::Array(
        library
            .items()
            .iter()
            .map(|f| if f.items().len() > 1 { sorted(f.items().to_vec()) } else { f.clone() })
            .collect(),
    )
}

/// What differs, at most a dozen lines; empty when nothing does.
pub fn differences(a: &Contents, b: &Contents) -> Vec<String> {
    let mut out = Vec::new();
    let name = |k: &(u64, Vec<u8>)| format!("db {} {:?}", k.0, String::from_utf8_lossy(&k.1));
    for (key, x) in &a.keys {
        match b.keys.get(key) {
            None => out.push(format!("{}: only at the first ({}, ttl {:?})", name(key), x.kind, x.ttl_ms)),
            Some(y) => out.extend(item_differs(x, y).map(|d| format!("{}: {d}", name(key)))),
        }
    }
    for (key, y) in b.keys.iter().filter(|(k, _)| !a.keys.contains_key(*k)) {
        out.push(format!("{}: only at the second ({}, ttl {:?})", name(key), y.kind, y.ttl_ms));
    }
    if a.functions != b.functions {
        out.push(format!("functions: {} and {}", brief(&a.functions), brief(&b.functions)));
    }
    out.truncate(12);
    out
}

fn item_differs(x: &Item, y: &Item) -> Option<String> {
    if x.kind != y.kind {
        return Some(format!("type {} and {}", x.kind, y.kind));
    }
    if x.value != y.value {
        return Some(format!("{} differs: {}", x.kind, first_difference(&x.value, &y.value)));
    }
    match (x.ttl_ms, y.ttl_ms) {
        (None, None) => None,
        (Some(a), Some(b)) if (a - b).abs() <= TTL_TOLERANCE_MS => None,
        (a, b) => Some(format!("expires in {a:?} and {b:?} ms")),
    }
}

fn first_difference(x: &Reply, y: &Reply) -> String {
    if let (Reply::Bulk(a), Reply::Bulk(b)) = (x, y) {
        let at = a.iter().zip(b).position(|(p, q)| p != q).unwrap_or(a.len().min(b.len()));
        let part = |v: &[u8]| v[at..v.len().min(at + 40)].escape_ascii().to_string();
        return format!("{} and {} bytes, from byte {at}: {} and {}", a.len(), b.len(), part(a), part(b));
    }
    let (a, b) = (x.items(), y.items());
    if a.is_empty() || b.is_empty() || a.len() != b.len() {
        return format!("{} and {}", brief(x), brief(y));
    }
    let n = a.iter().zip(b).position(|(p, q)| p != q).unwrap_or(0);
    format!("[{n}] {}", first_difference(&a[n], &b[n]))
}

fn brief(reply: &Reply) -> String {
    let text = match reply {
        Reply::Bulk(b) => format!("{:?}", String::from_utf8_lossy(b)),
        Reply::Array(items) => format!("{} items {items:?}", items.len()),
        other => format!("{other:?}"),
    };
    text.chars().take(400).collect()
}

/// Waits until the short times to live are over at this master, so that nothing changes by itself any more.
/// Reading the keys makes the master expire them.
pub fn settle(conn: &mut Conn, caps: &Caps) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Some(what) = about_to_expire(conn, caps) {
        assert!(Instant::now() < deadline, "still about to expire: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn about_to_expire(conn: &mut Conn, caps: &Caps) -> Option<String> {
    let mut found = None;
    for db in 0..ALL_DATABASES {
        expect_ok(conn.call(&argv!["SELECT", db]));
        let names: Vec<Vec<u8>> =
            conn.call(&argv!["KEYS", "*"]).items().iter().map(|k| k.bytes().to_vec()).collect();
        let asks: Vec<Argv> =
            names.iter().flat_map(|k| [argv!["PTTL", k.as_slice()], argv!["TYPE", k.as_slice()]]).collect();
        for (key, about) in names.iter().zip(pipeline(conn, &asks).chunks(2)) {
            let short = |ttl: i64| (0..LONG_TTL_MS / 2).contains(&ttl);
            let in_hash =
                has_field_ttl(caps) && about[1].text() == "hash" && field_about_to_expire(conn, key, short);
            if short(about[0].int()) || in_hash {
                found = Some(format!("db {db} {:?}", String::from_utf8_lossy(key)));
            }
        }
    }
    expect_ok(conn.call(&argv!["SELECT", "0"]));
    found
}

fn field_about_to_expire(conn: &mut Conn, key: &[u8], short: impl Fn(i64) -> bool) -> bool {
    let fields = conn.call(&argv!["HKEYS", key]);
    if fields.items().is_empty() {
        return false;
    }
    let mut ask = argv!["HPTTL", key, "FIELDS", fields.items().len()];
    ask.extend(fields.items().iter().map(|f| f.bytes().to_vec()));
    conn.call(&ask).items().iter().any(|t| short(t.int()))
}
