//! Equality of two servers' data, and what differs when they are not equal.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use super::client::{Client, Pipe};
use super::resp::Reply;
use super::server::Server;
use super::wait::secs;

/// DEBUG DIGEST: all keys, values and whether a key expires; not when, nor consumer groups, functions or field expiries.
#[track_caller]
pub fn digest(server: &Server) -> String {
    server.client().call(&["DEBUG", "DIGEST"]).good().text()
}

/// When a key expires.
#[derive(Debug, Clone)]
pub enum Expiry {
    /// Never.
    Never,
    /// Exactly then, unix ms (7.0 and later can tell).
    At(i64),
    /// About then, unix ms: computed from PTTL.
    Near(i64),
}

impl Expiry {
    /// Equal; two that are not both exact may be some seconds apart.
    fn same(&self, other: &Expiry) -> bool {
        match (self, other) {
            (Expiry::Never, Expiry::Never) => true,
            (Expiry::At(a), Expiry::At(b)) => a == b,
            (Expiry::At(a) | Expiry::Near(a), Expiry::At(b) | Expiry::Near(b)) => {
                u128::from(a.abs_diff(*b)) < secs(5).as_millis()
            }
            _ => false,
        }
    }
}

/// Everything that a client can see of one key.
#[derive(Debug, Clone)]
pub struct Entry {
    /// As TYPE says.
    pub kind: String,
    /// Elements in a canonical order, each as text.
    pub content: Vec<String>,
    /// When it expires.
    pub expiry: Expiry,
}

/// Database and key.
pub type Key = (u32, Vec<u8>);

/// Reads all keys of all databases.
#[track_caller]
pub fn snapshot(server: &Server) -> BTreeMap<Key, Entry> {
    let mut client = server.client();
    let mut all = BTreeMap::new();
    for db in databases(server) {
        cmd!(client, "SELECT", db).ok();
        let keys: Vec<Vec<u8>> = scan(&mut client).into_iter().collect();
        for chunk in keys.chunks(500) {
            let found = read_keys(server, &mut client, chunk);
            all.extend(found.into_iter().map(|(key, entry)| ((db, key), entry)));
        }
    }
    all
}

/// What differs between two servers, one line a key, at most `most`; empty when a client cannot tell them apart.
#[track_caller]
pub fn diff(a: &Server, b: &Server, most: usize) -> Vec<String> {
    let (left, right) = (snapshot(a), snapshot(b));
    let keys: BTreeSet<&Key> = left.keys().chain(right.keys()).collect();
    let mut lines = Vec::new();
    let mut count = 0;
    for key in keys {
        let what = match (left.get(key), right.get(key)) {
            (Some(x), Some(y)) => difference(x, y),
            (Some(x), None) => Some(format!("only in the first: {}", shown(x))),
            (None, Some(y)) => Some(format!("only in the second: {}", shown(y))),
            (None, None) => None,
        };
        if let Some(what) = what {
            count += 1;
            if lines.len() < most {
                lines.push(format!("  db{} {}: {what}", key.0, text_of(&key.1)));
            }
        }
    }
    if count > lines.len() {
        lines.push(format!("  .. {count} keys differ, of {} and {}", left.len(), right.len()));
    }
    if a.version.has(7, 0) && b.version.has(7, 0) {
        let (x, y) = (functions(a), functions(b));
        if x != y {
            lines.push(format!("  functions: {x:?} and {y:?}"));
        }
    }
    lines
}

/// Libraries with their code, sorted.
fn functions(server: &Server) -> Vec<String> {
    let libraries = server.client().call(&["FUNCTION", "LIST", "WITHCODE"]).good().array();
    let mut all: Vec<String> = libraries.iter().map(canonical_sorted).collect();
    all.sort();
    all
}

fn canonical_sorted(reply: &Reply) -> String {
    match reply {
        Reply::Array(items) => {
            let mut texts: Vec<String> = items.iter().map(canonical_sorted).collect();
            texts.sort();
            texts.join(" ")
        }
        other => canonical(other),
    }
}

fn difference(x: &Entry, y: &Entry) -> Option<String> {
    if x.kind != y.kind || x.content.len() != y.content.len() {
        return Some(format!("{} and {}", shown(x), shown(y)));
    }
    let pairs = x.content.iter().zip(&y.content).enumerate();
    if let Some((at, (p, q))) = pairs.into_iter().find(|(_, (p, q))| p != q) {
        return Some(format!("{} element {at}: {} and {}", x.kind, short(p), short(q)));
    }
    let same = x.expiry.same(&y.expiry);
    (!same).then(|| format!("{}, expires {:?} and {:?}", x.kind, x.expiry, y.expiry))
}

fn shown(entry: &Entry) -> String {
    let first = entry.content.first().map_or("", String::as_str);
    format!("{} of {} ({}), expires {:?}", entry.kind, entry.content.len(), short(first), entry.expiry)
}

fn short(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((at, _)) => format!("{}.. ({} bytes)", &text[..at], text.len()),
        None => text.to_owned(),
    }
}

fn text_of(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}

/// A reply as one line of text.
fn canonical(reply: &Reply) -> String {
    match reply {
        Reply::Bulk(bytes) => text_of(bytes),
        Reply::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(" ")),
        other => format!("{other:?}"),
    }
}

fn databases(server: &Server) -> Vec<u32> {
    let info = server.info("keyspace");
    info.keys().filter_map(|name| name.strip_prefix("db")?.parse().ok()).collect()
}

fn scan(client: &mut Client) -> BTreeSet<Vec<u8>> {
    let mut keys = BTreeSet::new();
    let mut cursor = "0".to_owned();
    loop {
        let mut reply = cmd!(client, "SCAN", cursor, "COUNT", 1000).good().array();
        keys.extend(reply.pop().map(Reply::strings).unwrap_or_default());
        cursor = reply[0].text();
        if cursor == "0" {
            return keys;
        }
    }
}

fn read_keys(server: &Server, client: &mut Client, keys: &[Vec<u8>]) -> Vec<(Vec<u8>, Entry)> {
    let exact = server.version.has(7, 0);
    let mut heads = Pipe::new();
    for key in keys {
        heads.add(&[b"TYPE".as_slice(), key]);
        heads.add(&[if exact { b"PEXPIRETIME".as_slice() } else { b"PTTL" }, key]);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    let heads = client.run_good(&heads);
    let mut bodies = Pipe::new();
    for (key, head) in keys.iter().zip(heads.chunks(2)) {
        for command in reads_of(&head[0].text()) {
            let args: Vec<&[u8]> =
                command.iter().map(|word| if *word == b"?" { key.as_slice() } else { word }).collect();
            bodies.add(&args);
        }
    }
    let mut bodies = client.run_good(&bodies).into_iter();
    let mut found = Vec::new();
    for (key, head) in keys.iter().zip(heads.chunks(2)) {
        let kind = head[0].text();
        let replies: Vec<Reply> = bodies.by_ref().take(reads_of(&kind).len()).collect();
        let expiry = match head[1].int() {
            -1 => Expiry::Never,
            at if exact => Expiry::At(at),
            ttl => Expiry::Near(now + ttl),
        };
        if kind == "none" || head[1].int() == -2 {
            continue; // expired in between
        }
        let mut content = content_of(&kind, replies);
        if kind == "hash"
            && (server.version.has(7, 4) && !server.version.valkey || server.version.has_valkey(9, 0))
        {
            content.extend(field_expiries(client, key));
        }
        found.push((key.clone(), Entry { kind, content, expiry }));
    }
    found
}

/// The commands that read a key of that type; `?` stands for the key.
fn reads_of(kind: &str) -> &'static [&'static [&'static [u8]]] {
    match kind {
        "none" => &[],
        "string" => &[&[b"GET", b"?"]],
        "list" => &[&[b"LRANGE", b"?", b"0", b"-1"]],
        "set" => &[&[b"SMEMBERS", b"?"]],
        "zset" => &[&[b"ZRANGE", b"?", b"0", b"-1", b"WITHSCORES"]],
        "hash" => &[&[b"HGETALL", b"?"]],
        "stream" => &[&[b"XRANGE", b"?", b"-", b"+"], &[b"XINFO", b"STREAM", b"?", b"FULL", b"COUNT", b"0"]],
        _ => &[&[b"DUMP", b"?"]],
    }
}

fn content_of(kind: &str, replies: Vec<Reply>) -> Vec<String> {
    let mut replies = replies.into_iter();
    let Some(first) = replies.next() else { return Vec::new() };
    match kind {
        "hash" | "zset" => {
            let mut pairs: Vec<String> = first
                .array()
                .chunks(2)
                .map(|pair| format!("{}={}", canonical(&pair[0]), canonical(&pair[1])))
                .collect();
            pairs.sort(); // also a sorted set: elements of equal score are in one order anyway
            pairs
        }
        "set" => {
            let mut members: Vec<String> = first.array().iter().map(canonical).collect();
            members.sort();
            members
        }
        "list" => first.array().iter().map(canonical).collect(),
        "stream" => {
            let mut content: Vec<String> = first.array().iter().map(canonical).collect();
            content.extend(replies.next().map(|info| stream_text(&info)));
            content
        }
        _ => vec![canonical(&first)],
    }
}

/// XINFO STREAM FULL without what is each server's own: tree sizes, times of a consumer's last look, and consumers that
/// hold nothing (creating one is not replicated everywhere).
fn stream_text(info: &Reply) -> String {
    const OWN: [&str; 6] =
        ["radix-tree-keys", "radix-tree-nodes", "seen-time", "active-time", "entries", "idle"];
    let Reply::Array(items) = info else { return canonical(info) };
    let named = items.len() % 2 == 0
        && !items.is_empty()
        && items.iter().step_by(2).all(|i| matches!(i, Reply::Bulk(_)));
    if !named {
        let texts = items.iter().filter(|item| !holds_nothing(item)).map(stream_text);
        return format!("[{}]", texts.collect::<Vec<_>>().join(" "));
    }
    let pairs = items.chunks(2).filter(|pair| !OWN.contains(&pair[0].text().as_str()));
    let texts = pairs.map(|pair| format!("{}={}", pair[0].text(), stream_text(&pair[1])));
    format!("{{{}}}", texts.collect::<Vec<_>>().join(" "))
}

/// Whether `item` is a consumer without pending entries.
fn holds_nothing(item: &Reply) -> bool {
    let Reply::Array(fields) = item else { return false };
    let value = |name: &str| {
        fields
            .chunks(2)
            .find(|pair| pair[0] == Reply::Bulk(name.as_bytes().to_vec()))
            .and_then(|pair| pair.get(1))
    };
    value("seen-time").is_some() && value("pel-count") == Some(&Reply::Int(0))
}

fn field_expiries(client: &mut Client, key: &[u8]) -> Vec<String> {
    let fields = cmd!(client, "HKEYS", key).good().strings();
    if fields.is_empty() {
        return Vec::new();
    }
    let count = fields.len().to_string();
    let mut args: Vec<&[u8]> = vec![b"HPEXPIRETIME", key, b"FIELDS", count.as_bytes()];
    args.extend(fields.iter().map(Vec::as_slice));
    let times = client.call(&args).good().array();
    let pairs = fields.iter().zip(times).filter(|(_, at)| at.int() >= 0);
    let mut all: Vec<String> =
        pairs.map(|(field, at)| format!("{} expires {}", text_of(field), at.int())).collect();
    all.sort();
    all
}
