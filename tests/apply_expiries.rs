//! What servers really propagate for each command that sets an expiry, rewritten and run on a second server:
//! the expiry there must be that of the source, held. Finds forms that the rewriting does not know.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[allow(dead_code)]
#[path = "rdb/server.rs"]
mod server;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use oplog_format::{decode_entry, encode_entry, parse_op, Decoded, EntryMeta, OpScan};
use redisdr::apply::execute::{apply_entry, ApplyContext, Executor};
use redisdr::apply::expiry::{rewrite, Clock, Rewrite};
use redisdr::apply::ttl::{HOLD_FIELD_MS, HOLD_MS};
use redisdr::apply::ServerCaps;
use server::{Program, Reply, Server};

/// First version that has a form.
#[derive(Clone, Copy)]
enum Since {
    Always,
    R62,
    R70,
    /// SET with a comparison: Valkey 8.1.
    IfEq,
    /// Expiries of hash fields: Redis 7.4, Valkey 9.0.
    Fields,
    /// HSETEX and its like: Redis 8.0, Valkey 9.0.
    FieldsEx,
}

impl Since {
    fn holds(self, program: &Program) -> bool {
        match self {
            Self::Always => true,
            Self::R62 => program.since((6, 2), (0, 0)),
            Self::R70 => program.since((7, 0), (0, 0)),
            Self::IfEq => program.since((99, 0), (8, 1)),
            Self::Fields => program.since((7, 4), (9, 0)),
            Self::FieldsEx => program.since((8, 0), (9, 0)),
        }
    }
}

/// Commands, divided by `;`, that leave key `k` with an expiry, or its field `f`. `@s` is a time in 100 s in
/// seconds since 1970, `@m` in milliseconds, `@d` the payload of a string, `@h` that of a hash with a timed field.
const CASES: &[(Since, &str)] = &[
    (Since::Always, "SET k v EX 100"),
    (Since::Always, "SET k v PX 100123"),
    (Since::Always, "SET k v PX 100123 NX"),
    (Since::Always, "SET k v; SET k w XX EX 100"),
    (Since::Always, "SETEX k 100 v"),
    (Since::Always, "PSETEX k 100123 v"),
    (Since::Always, "SET k v; EXPIRE k 100"),
    (Since::Always, "SET k v; PEXPIRE k 100123"),
    (Since::Always, "RPUSH k v; EXPIREAT k @s"),
    (Since::Always, "SET k v; PEXPIREAT k @m"),
    (Since::Always, "SET k v; PEXPIREAT k 1"),
    (Since::Always, "SETEX k 100 v; PERSIST k"),
    (Since::Always, "SETEX k 100 v; SET k w"),
    (Since::Always, "SETEX k 100 v; SET k w KEEPTTL"),
    (Since::Always, "SETEX k 100 v; GETSET k w"),
    (Since::Always, "SETEX k 100 7; INCRBYFLOAT k 1.5"),
    (Since::Always, "SETEX k 100 7; INCR k; APPEND k 0; SETRANGE k 0 9"),
    (Since::Always, "SETEX a 100 v; RENAME a k"),
    (Since::Always, "SETEX k 100 v; MOVE k 1; SELECT 1; MOVE k 0; SELECT 0"),
    (Since::Always, "SETEX k 100 v; SWAPDB 0 1; SWAPDB 0 1"),
    (Since::Always, "RPUSH a 2 1; SETEX k 100 v; SORT a STORE k"),
    (Since::Always, "MULTI; SETEX k 100 v; EXPIRE k 50; EXEC"),
    (Since::Always, "EVAL redis.call('setex',KEYS[1],100,'v');redis.call('pexpire',KEYS[1],70123) 1 k"),
    (Since::Always, "RESTORE k 0 @d"),
    (Since::Always, "RESTORE k 100123 @d"),
    (Since::Always, "RESTORE k 100123 @d REPLACE"),
    (Since::Always, "RESTORE k @m @d ABSTTL"),
    (Since::Always, "RESTORE k @m @d ABSTTL REPLACE IDLETIME 7"),
    (Since::Always, "RESTORE k 100123 @d FREQ 7"),
    (Since::Always, "SET k v PX 100123; SET k w XX PX 70123"),
    (Since::Always, "SETEX k 100 v; EXPIRE k -1"),
    (Since::Always, "SETEX k 100 v; EXPIREAT k 1; SETEX k 50 w"),
    (Since::Always, "SET k v; RESTORE k 1 @d ABSTTL REPLACE; EXISTS k"),
    (Since::Always, "SADD a b; SADD k z; EXPIRE k 100; SUNIONSTORE k a"),
    (Since::Always, "SET a b; SETEX k 100 z; BITOP NOT k a"),
    (Since::Always, "PFADD a b; PFADD k z; EXPIRE k 100; PFMERGE k a"),
    (Since::Always, "ZADD a 1 b; ZADD k 1 z; EXPIRE k 100; ZUNIONSTORE k 1 a"),
    (Since::Always, "GEOADD a 13 38 b; ZADD k 1 z; EXPIRE k 100; GEORADIUS a 13 38 9 km STORE k"),
    (Since::Always, "SETEX a 100 v; SETEX k 50 w; RENAME a k"),
    (Since::Always, "SETEX a 100 v; RENAMENX a k"),
    (Since::Always, "SETEX k 100 v; MSET k w a b"),
    (Since::Always, "SETEX k 100 v; DEL k; SET k w"),
    (Since::R62, "SET k v; GETEX k PXAT 1"),
    (Since::R62, "SETEX k 100 v; GETDEL k; SET k w"),
    (Since::R62, "GEOADD a 13 38 b; ZADD k 1 z; EXPIRE k 100; GEOSEARCHSTORE k a FROMMEMBER b BYRADIUS 9 km"),
    (Since::R62, "ZADD a 1 b; ZADD k 1 z; EXPIRE k 100; ZRANGESTORE k a 0 -1"),
    (Since::R62, "SETEX k 50 v; SETEX a 100 w; COPY a k REPLACE"),
    (Since::R70, "SET k v; SET k w PXAT 1; EXISTS k"),
    (Since::IfEq, "SET k v; SET k w IFEQ v EX 100"),
    (Since::IfEq, "SETEX k 100 v; SET k w IFEQ v KEEPTTL"),
    (Since::IfEq, "SETEX k 100 PX; SET k w IFEQ PX PX 70123"),
    (Since::R62, "SET k v EXAT @s"),
    (Since::R62, "SET k v PXAT @m"),
    (Since::R62, "SET k v; SET k w GET PX 100123"),
    (Since::R62, "SETEX k 100 v; SET k w GET KEEPTTL"),
    (Since::R62, "SET k v; GETEX k EX 100"),
    (Since::R62, "SET k v; GETEX k PX 100123"),
    (Since::R62, "SET k v; GETEX k EXAT @s"),
    (Since::R62, "SET k v; GETEX k PXAT @m"),
    (Since::R62, "SETEX k 100 v; GETEX k PERSIST"),
    (Since::R62, "SETEX a 100 v; COPY a k"),
    (Since::R62, "SETEX k 100 v; COPY k a DB 1 REPLACE"),
    (Since::R70, "SET k v; EXPIRE k 100 NX"),
    (Since::R70, "SETEX k 50 v; EXPIRE k 100 XX"),
    (Since::R70, "SETEX k 50 v; PEXPIRE k 100123 GT"),
    (Since::R70, "SETEX k 50 v; EXPIREAT k @s LT"),
    (Since::R70, "SETEX k 500 v; PEXPIREAT k @m LT"),
    (Since::R70, "SET k v EX 100 NX GET"),
    (Since::Fields, "HSET k f 1 g 2; HEXPIRE k 100 FIELDS 2 f x"),
    (Since::Fields, "HSET k f 1 g 2; HPEXPIRE k 100123 NX FIELDS 1 f"),
    (Since::Fields, "HSET k f 1 g 2; HEXPIREAT k @s FIELDS 1 f"),
    (Since::Fields, "HSET k f 1 g 2; HPEXPIREAT k @m FIELDS 2 f g"),
    (Since::Fields, "HSET k f 1 g 2; HEXPIRE k 50 FIELDS 1 f; HEXPIRE k 100 XX FIELDS 1 f"),
    (Since::Fields, "HSET k f 1 g 2; HEXPIRE k 50 FIELDS 1 f; HPEXPIREAT k @m GT FIELDS 2 f g"),
    (Since::Fields, "HSET k f 1 g 2; HEXPIRE k 500 FIELDS 1 f; HEXPIRE k 100 LT FIELDS 2 f g"),
    (Since::Fields, "HSET k f 1 g 2; HEXPIREAT k 1 FIELDS 1 g"),
    (Since::Fields, "HSET k f 1 g 2; HEXPIRE k 100 FIELDS 2 f g; HPERSIST k FIELDS 1 g"),
    (Since::Fields, "HSET k f 1; HEXPIRE k 100 FIELDS 1 f; HINCRBY k f 2"),
    (Since::Fields, "HSET a f 1; HEXPIRE a 100 FIELDS 1 f; RENAME a k"),
    (Since::Fields, "HSET a f 1; HEXPIRE a 100 FIELDS 1 f; COPY a k"),
    (Since::Fields, "HSET k f 1; HEXPIRE k 100 FIELDS 1 f; EXPIRE k 200"),
    (Since::Fields, "RESTORE k 0 @h"),
    (Since::Fields, "RESTORE k 100123 @h"),
    (Since::Fields, "SET k v; RESTORE k @m @h REPLACE ABSTTL"),
    (
        Since::Fields,
        "EVAL redis.call('hset',KEYS[1],'f','v');redis.call('hexpire',KEYS[1],100,'fields',1,'f') 1 k",
    ),
    (Since::FieldsEx, "HSETEX k EX 100 FIELDS 2 f 1 g 2"),
    (Since::FieldsEx, "HSETEX k PX 100123 FIELDS 1 f 1"),
    (Since::FieldsEx, "HSETEX k EXAT @s FIELDS 1 f 1"),
    (Since::FieldsEx, "HSETEX k PXAT @m FIELDS 1 f EX"),
    (Since::FieldsEx, "HSETEX k FNX EX 100 FIELDS 1 f 1"),
    (Since::FieldsEx, "HSET k f 1; HSETEX k FXX PX 100123 FIELDS 1 f 2"),
    (Since::FieldsEx, "HSETEX k EX 100 FIELDS 1 f 1; HSETEX k KEEPTTL FIELDS 1 f 2"),
    (Since::FieldsEx, "HSETEX k EX 100 FIELDS 1 f 1; HSETEX k FIELDS 1 f 2"),
    (Since::FieldsEx, "HSET k f 1 g 2; HGETEX k EX 100 FIELDS 2 f x"),
    (Since::FieldsEx, "HSET k f 1 g 2; HGETEX k PX 100123 FIELDS 1 f"),
    (Since::FieldsEx, "HSET k f 1 g 2; HGETEX k EXAT @s FIELDS 1 f"),
    (Since::FieldsEx, "HSET k f 1 g 2; HGETEX k PXAT @m FIELDS 2 f g"),
    (Since::FieldsEx, "HSETEX k EX 100 FIELDS 2 f 1 g 2; HGETEX k PERSIST FIELDS 1 g"),
    (Since::FieldsEx, "HSETEX k EX 100 FIELDS 2 f 1 g 2; HGETDEL k FIELDS 1 g"),
    (Since::FieldsEx, "HSETEX k EX 100 FIELDS 2 f 1 g 2; HSETEX k PXAT 1 FIELDS 1 f 3"),
    (Since::FieldsEx, "HSETEX k EX 100 FIELDS 2 f 1 g 2; HGETEX k PXAT 1 FIELDS 1 f"),
    (Since::Fields, "HSET k f 1 g 2; HPEXPIRE k 0 FIELDS 2 f g; HSET k f 3"),
];

fn now_ms() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// A plain replica's connection that reads what is propagated.
struct Stream {
    socket: UnixStream,
    buf: Vec<u8>,
}

impl Stream {
    fn attach(server: &Server) -> Self {
        let socket = UnixStream::connect(server.rdb_path().with_file_name("s")).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut stream = Self { socket, buf: Vec::new() };
        stream.socket.write_all(b"PSYNC ? -1\r\n").unwrap();
        assert!(stream.line().starts_with(b"+FULLRESYNC"));
        let head = loop {
            let line = stream.line();
            if !line.is_empty() {
                break line;
            }
        };
        let len: usize = std::str::from_utf8(&head[1..]).unwrap().parse().unwrap();
        while stream.buf.len() < len {
            stream.fill();
        }
        stream.buf.drain(..len);
        stream
    }

    fn fill(&mut self) {
        let mut chunk = [0u8; 4096];
        let n = self.socket.read(&mut chunk).unwrap();
        assert!(n > 0, "the replication stream ended");
        self.buf.extend_from_slice(&chunk[..n]);
    }

    fn line(&mut self) -> Vec<u8> {
        loop {
            if let Some(end) = self.buf.iter().position(|b| *b == b'\n') {
                let mut line: Vec<u8> = self.buf.drain(..=end).collect();
                while line.last().is_some_and(|b| b"\r\n".contains(b)) {
                    line.pop();
                }
                return line;
            }
            self.fill();
        }
    }

    /// All bytes up to the op that contains `mark`, which is dropped.
    fn until(&mut self, mark: &[u8]) -> Vec<u8> {
        let (mut at, mut args) = (0, Vec::new());
        loop {
            match parse_op(&self.buf[at..], &mut args).unwrap() {
                OpScan::Incomplete { .. } => self.fill(),
                OpScan::Complete { len } => {
                    if args.iter().any(|a| a.of(&self.buf[at..]) == mark) {
                        let out = self.buf[..at].to_vec();
                        self.buf.drain(..at + len);
                        return out;
                    }
                    at += len;
                }
            }
        }
    }
}

struct Runs<'a>(&'a mut Server);

impl Executor for Runs<'_> {
    fn select(&mut self, db: u32) -> Result<(), String> {
        self.0.ok(&["SELECT".to_owned(), db.to_string()]);
        Ok(())
    }

    fn call(&mut self, argv: &[&[u8]]) -> Result<(), String> {
        match self.0.call(argv) {
            Reply::Error(e) => Err(e),
            _ => Ok(()),
        }
    }
}

fn caps(program: &Program) -> ServerCaps {
    let (major, minor, patch) = program.version;
    ServerCaps { valkey: program.valkey, version: major << 16 | minor << 8 | patch }
}

fn int(reply: &Reply) -> i64 {
    match reply {
        Reply::Int(n) => *n,
        other => panic!("{other:?} is no integer"),
    }
}

/// Absolute expiry as a range, since before 7.0 it can only be computed.
fn expiry(server: &mut Server, program: &Program) -> Option<(i64, i64)> {
    if program.since((7, 0), (0, 0)) {
        let at = int(&server.ok(&["PEXPIRETIME", "k"]));
        return (at >= 0).then_some((at, at));
    }
    let before = now_ms();
    let left = int(&server.ok(&["PTTL", "k"]));
    (left >= 0).then(|| (before + left, now_ms() + left))
}

fn field_expiries(server: &mut Server) -> Vec<i64> {
    match server.call(&["HPEXPIRETIME", "k", "FIELDS", "2", "f", "g"]) {
        Reply::Array(all) => all.iter().map(int).collect(),
        // Not a hash.
        _ => Vec::new(),
    }
}

fn payloads(server: &mut Server, fields: bool) -> (Vec<u8>, Vec<u8>) {
    server.ok(&["SET", "p", "value"]);
    let string = server.dump(b"p");
    let mut hash = Vec::new();
    if fields {
        server.ok(&["HSET", "q", "f", "1", "g", "2"]);
        let at = (now_ms() + 300_000).to_string();
        server.ok(&["HPEXPIREAT", "q", &at, "FIELDS", "1", "f"]);
        hash = server.dump(b"q");
    }
    server.ok(&["FLUSHALL"]);
    (string, hash)
}

fn words(line: &str, string: &[u8], hash: &[u8]) -> Vec<Vec<u8>> {
    let at = now_ms() + 100_000;
    let word = |w: &str| match w {
        "@s" => (at / 1000).to_string().into_bytes(),
        "@m" => at.to_string().into_bytes(),
        "@d" => string.to_vec(),
        "@h" => hash.to_vec(),
        w => w.as_bytes().to_vec(),
    };
    line.trim().split(' ').map(word).collect()
}

fn check(program: &Program, packed: bool) {
    let mut source = Server::start(program, None);
    let mut target = Server::start(program, None);
    let fields = Since::Fields.holds(program);
    source.ok(&["CONFIG", "SET", "repl-diskless-sync", "no"]);
    if !packed {
        // Hashes as tables: another form of the payload.
        source.ok(&["CONFIG", "SET", "hash-max-ziplist-value", "0"]);
    }
    let (string, hash) = payloads(&mut source, fields);
    let mut stream = Stream::attach(&source);
    let context = ApplyContext { caps: caps(program), hold: true };
    let mut ran = 0;
    for (since, case) in CASES {
        if !since.holds(program) {
            continue;
        }
        ran += 1;
        let started = now_ms();
        for line in case.split("; ") {
            source.ok(&words(line, &string, &hash));
        }
        source.ok(&["PUBLISH", "mark", "end-of-case"]);
        let payload = stream.until(b"end-of-case");
        let captured = now_ms();
        assert!(!payload.is_empty(), "{case}: nothing was propagated");
        let mut frame = Vec::new();
        let time_ms = u64::try_from(captured).unwrap();
        let meta =
            EntryMeta { last_op: payload.len() as u64, time_ms, db: 0, op_count: 1, service_id: 0, flags: 0 };
        encode_entry(&meta, &payload, &mut frame).unwrap();
        let Decoded::Entry(entry) = decode_entry(&frame).unwrap() else { panic!("incomplete") };
        apply_entry(&entry, &mut Runs(&mut target), &context).unwrap_or_else(|d| panic!("{case}: {d:?}"));
        target.ok(&["SELECT", "0"]);

        let shown = String::from_utf8_lossy(&payload).replace("\r\n", " ");
        let what = format!("{} {:?}, {case}: {shown}", program.path.display(), program.version);
        match (expiry(&mut source, program), expiry(&mut target, program)) {
            (None, None) => {}
            (Some(s), Some(t)) => {
                let (low, high) = (t.0 - HOLD_MS - s.1, t.1 - HOLD_MS - s.0);
                // Relative forms, before 7.0, count from the capture.
                let late = if program.since((7, 0), (0, 0)) { 0 } else { captured - started + 2 };
                assert!(high >= 0 && low <= late, "{what}: {low}..{high} ms, at most {late} allowed");
            }
            (s, t) => panic!("{what}: expiry {s:?} at the source, {t:?} at the target"),
        }
        if fields {
            let held = |ms: &i64| if *ms < 0 { *ms } else { ms + HOLD_FIELD_MS };
            let expected: Vec<i64> = field_expiries(&mut source).iter().map(held).collect();
            assert_eq!(field_expiries(&mut target), expected, "{what}");
        }
        assert_eq!(source.digest(), target.digest(), "{what}");
        source.ok(&["FLUSHALL"]);
        target.ok(&["FLUSHALL"]);
        source.ok(&["PUBLISH", "mark", "clean"]);
        stream.until(b"clean");
    }
    assert!(ran >= 29, "only {ran} cases ran");
    println!("{} {:?}: {ran} cases", program.path.display(), program.version);
}

#[test]
fn expiries_arrive_held() {
    for program in Program::all() {
        check(&program, true);
        if Since::Fields.holds(&program) {
            check(&program, false);
        }
    }
}

/// Commands with an expiry that the rewriting knows.
const REWRITTEN: &[(&str, &str)] = &[
    ("expire", "EXPIRE k 5"),
    ("expireat", "EXPIREAT k 5"),
    ("pexpire", "PEXPIRE k 5"),
    ("pexpireat", "PEXPIREAT k 5"),
    ("set", "SET k v EX 5"),
    ("setex", "SETEX k 5 v"),
    ("psetex", "PSETEX k 5 v"),
    ("getex", "GETEX k EX 5"),
    ("msetex", "MSETEX 1 k v EX 5"),
    ("restore", "RESTORE k 5 a-payload-long-enough"),
    ("restore-asking", "RESTORE-ASKING k 5 a-payload-long-enough"),
    ("hexpire", "HEXPIRE k 5 FIELDS 1 f"),
    ("hexpireat", "HEXPIREAT k 5 FIELDS 1 f"),
    ("hpexpire", "HPEXPIRE k 5 FIELDS 1 f"),
    ("hpexpireat", "HPEXPIREAT k 5 FIELDS 1 f"),
    ("hsetex", "HSETEX k EX 5 FIELDS 1 f v"),
    ("hgetex", "HGETEX k EX 5 FIELDS 1 f"),
];

/// Write commands with a time that is no expiry, and why.
const NO_EXPIRY: &[(&str, &str)] = &[
    ("xclaim", "when a message was delivered"),
    ("xautoclaim", "how long a message is idle; propagates XCLAIM"),
    ("migrate", "a timeout; propagates DEL"),
    ("xreadgroup", "how long to wait, how long a message is idle"),
    ("blmpop", "how long to wait"),
    ("bzmpop", "how long to wait"),
];

fn text(reply: &Reply) -> String {
    match reply {
        Reply::Text(t) => t.clone(),
        Reply::Bulk(Some(b)) => String::from_utf8_lossy(b).into_owned(),
        _ => String::new(),
    }
}

/// Whether an argument, or one within it, is a time.
fn has_time(argument: &Reply) -> bool {
    let Reply::Array(parts) = argument else { return false };
    let times = ["EX", "PX", "EXAT", "PXAT"];
    let names = ["seconds", "milliseconds", "ttl", "unix-time", "ms", "expire"];
    parts.chunks(2).any(|pair| match text(&pair[0]).as_str() {
        "token" => times.contains(&text(&pair[1]).as_str()),
        "type" => text(&pair[1]) == "unix-time",
        "name" => names.iter().any(|n| text(&pair[1]).contains(n)),
        "arguments" => matches!(&pair[1], Reply::Array(all) if all.iter().any(has_time)),
        _ => false,
    })
}

#[test]
fn every_write_command_with_an_expiry_is_known() {
    let mut seen = 0;
    for program in Program::all() {
        if !program.since((7, 0), (0, 0)) {
            continue;
        }
        let mut server = Server::start(&program, None);
        let Reply::Array(infos) = server.ok(&["COMMAND"]) else { panic!("COMMAND is no array") };
        let writes: Vec<String> = infos
            .iter()
            .filter_map(|info| {
                let Reply::Array(parts) = info else { return None };
                let Reply::Array(flags) = &parts[2] else { return None };
                flags.iter().any(|f| text(f) == "write").then(|| text(&parts[0]))
            })
            .collect();
        for name in writes {
            let Reply::Array(docs) = server.ok(&["COMMAND", "DOCS", &name]) else { panic!("no docs") };
            let Some(Reply::Array(doc)) = docs.get(1) else { continue };
            let arguments = doc.chunks(2).find(|pair| text(&pair[0]) == "arguments");
            let timed = arguments
                .is_some_and(|pair| matches!(&pair[1], Reply::Array(all) if all.iter().any(has_time)));
            if !timed || NO_EXPIRY.iter().any(|(n, _)| *n == name) {
                continue;
            }
            seen += 1;
            let known = REWRITTEN.iter().find(|(n, _)| *n == name);
            let (_, line) = known.unwrap_or_else(|| panic!("{:?}: {name} has a time", program.version));
            let argv: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            let clock = Clock { time_ms: 1, hold: true, caps: caps(&program) };
            assert!(matches!(rewrite(&argv, &clock), Rewrite::One(_)), "{line} is not rewritten");
        }
    }
    assert!(seen >= 8, "only {seen} commands with an expiry seen");
}
