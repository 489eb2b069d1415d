//! The cases: what is done to a key before, in and after the moment of the race.

use crate::harness::{Client, Version};

/// Redis and Valkey version that have a command; `(0, 0)` for always.
type Since = ((u32, u32), (u32, u32));

const ALWAYS: Since = ((0, 0), (0, 0));
const R62: Since = ((6, 2), (0, 0));
const R70: Since = ((7, 0), (0, 0));
/// Expiries of hash fields.
const FIELDS: Since = ((7, 4), (9, 0));
/// HSETEX and its like.
const FIELDS_EX: Since = ((8, 0), (9, 0));
const VALKEY9: Since = ((99, 0), (9, 0));
/// SET IFEQ.
const IFEQ: Since = ((99, 0), (8, 1));

/// Three parts, divided by `|`: `setup | in the race | when the short times are over`; commands divided by `;`.
/// `?` is the key, `?x` another of its own, `#s` and `#l` a short and a long time in ms, `@s` and `@l` the same from now
/// on since 1970, `@p` a time that is past, `@L` a long one in seconds since 1970; `*t`, `*l`, `*h` payloads of a string, a list, and a hash with field `f`
/// expiring soon, `g` late and `h` never.
const CASES: &[(Since, &str)] = &[
    // Set.
    (ALWAYS, "| SET ? v PX #s |"),
    (ALWAYS, "| SET ? v PX #l |"),
    (ALWAYS, "| SET ? v EX 100 |"),
    (ALWAYS, "| SETEX ? 100 v |"),
    (ALWAYS, "| PSETEX ? #s v |"),
    (ALWAYS, "| PSETEX ? #l v |"),
    (ALWAYS, "SET ? v PX #s | SET ? w PX #l |"),
    (ALWAYS, "SET ? v PX #l | SET ? w PX #s |"),
    (ALWAYS, "SET ? v PX #s | SET ? w |"),
    (ALWAYS, "SET ? v PX #s | GETSET ? w |"),
    (ALWAYS, "SET ? v PX #s | MSET ? w ?x w |"),
    (ALWAYS, "SET ? v PX #s | SET ? w XX PX #l |"),
    (ALWAYS, "SET ? v PX #s | SET ? w NX PX #l |"),
    (ALWAYS, "SET ? v PX #s | | SET ? w NX PX #l"),
    (ALWAYS, "SET ? v PX #s | | SET ? w XX PX #l"),
    (ALWAYS, "SET ? v PX #s | | SETNX ? w"),
    (ALWAYS, "SET ? v PX #s | SET ? w KEEPTTL |"),
    (ALWAYS, "SET ? v PX #l | SET ? w KEEPTTL |"),
    (ALWAYS, "SET ? v PX #s | SET ? w KEEPTTL | SET ? x"),
    (R62, "SET ? v PX #s | SET ? w PXAT @l |"),
    (R62, "SET ? v PX #s | SET ? w EXAT @L |"),
    (R62, "SET ? v | SET ? w PXAT @s |"),
    (R62, "SET ? v PX #s | SET ? w GET PX #l |"),
    (R62, "SET ? v PX #s | SET ? w XX GET KEEPTTL |"),
    (IFEQ, "SET ? v PX #s | SET ? w IFEQ v PX #l |"),
    (IFEQ, "SET ? v PX #s | SET ? w IFEQ v KEEPTTL |"),
    (IFEQ, "SET ? v PX #s | | SET ? w IFEQ v PX #l"),
    // Refresh.
    (ALWAYS, "SET ? v PX #s | EXPIRE ? 100 |"),
    (ALWAYS, "SET ? v PX #s | PEXPIRE ? #l |"),
    (ALWAYS, "SET ? v PX #s | PEXPIREAT ? @l |"),
    (ALWAYS, "SET ? v PX #s | EXPIREAT ? @L |"),
    (ALWAYS, "SET ? v PX #l | PEXPIRE ? #s |"),
    (ALWAYS, "SET ? v PX #s | PEXPIRE ? #l ; PEXPIRE ? #s |"),
    (ALWAYS, "SET ? v PX #s | PEXPIRE ? #s ; PEXPIRE ? #l | PEXPIRE ? #l"),
    (ALWAYS, "SET ? v PX #s | | PEXPIRE ? #l"),
    (ALWAYS, "RPUSH ? a b ; PEXPIRE ? #s | PEXPIRE ? #l |"),
    (ALWAYS, "SADD ? a b ; PEXPIRE ? #s | PEXPIRE ? #l |"),
    (ALWAYS, "ZADD ? 1 a 2 b ; PEXPIRE ? #s | PEXPIRE ? #l |"),
    (ALWAYS, "XADD ? 1-1 a b ; PEXPIRE ? #s | PEXPIRE ? #l |"),
    (ALWAYS, "HSET ? a b ; PEXPIRE ? #s | PEXPIRE ? #l |"),
    (ALWAYS, "SET ? v PX #s | MULTI ; GET ? ; PEXPIRE ? #l ; EXEC |"),
    (ALWAYS, "SET ? v PX #s | EVAL redis.call('pexpire',KEYS[1],'77777') 1 ? |"),
    (ALWAYS, "SET ? v PX #s | EVAL redis.call('set',KEYS[1],'w','px','77777') 1 ? |"),
    (R62, "SET ? v PX #s | GETEX ? EX 100 |"),
    (R62, "SET ? v PX #s | GETEX ? PX #l |"),
    (R62, "SET ? v PX #s | GETEX ? EXAT @L |"),
    (R62, "SET ? v PX #s | GETEX ? PXAT @l |"),
    (R62, "SET ? v PX #s | | GETEX ? PX #l"),
    (R70, "SET ? v | PEXPIRE ? #l NX |"),
    (R70, "SET ? v PX #s | PEXPIRE ? #l NX |"),
    (R70, "SET ? v PX #s | PEXPIRE ? #l XX |"),
    (R70, "SET ? v PX #s | PEXPIRE ? #l GT |"),
    (R70, "SET ? v PX #s | PEXPIRE ? #l LT |"),
    (R70, "SET ? v PX #l | PEXPIREAT ? @s LT |"),
    (R70, "SET ? v PX #l | PEXPIREAT ? @s GT |"),
    // Increment, and other changes that keep the expiry.
    (ALWAYS, "SET ? 5 PX #s | INCR ? |"),
    (ALWAYS, "SET ? 5 PX #l | INCRBY ? 7 |"),
    (ALWAYS, "SET ? 5 PX #s | INCR ? ; PEXPIRE ? #l |"),
    (ALWAYS, "SET ? 5 PX #s | | INCR ?"),
    (ALWAYS, "SET ? 5 PX #s | INCR ? | INCR ? ; PEXPIRE ? #l"),
    (ALWAYS, "SET ? 5 PX #s | INCRBYFLOAT ? 1.5 |"),
    (ALWAYS, "SET ? 5 PX #l | INCRBYFLOAT ? 1.5 |"),
    (ALWAYS, "SET ? ab PX #s | APPEND ? cd | APPEND ? ef"),
    (ALWAYS, "SET ? ab PX #s | SETRANGE ? 1 xyz | SETRANGE ? 1 xyz"),
    (ALWAYS, "SET ? ab PX #s | SETBIT ? 3 1 | SETBIT ? 3 1"),
    (ALWAYS, "RPUSH ? a ; PEXPIRE ? #s | RPUSH ? b | RPUSH ? c"),
    (ALWAYS, "RPUSH ? a b ; PEXPIRE ? #l | LPOP ? | LPOP ? ; RPUSH ? c"),
    (ALWAYS, "SADD ? a ; PEXPIRE ? #s | SADD ? b | SADD ? c"),
    (ALWAYS, "ZADD ? 1 a ; PEXPIRE ? #s | ZINCRBY ? 2 a | ZINCRBY ? 2 a"),
    (ALWAYS, "XADD ? 1-1 a b ; PEXPIRE ? #s | XADD ? 2-1 a b | XADD ? 3-1 a b"),
    (ALWAYS, "HSET ? a 1 ; PEXPIRE ? #s | HINCRBY ? a 1 | HINCRBY ? a 1"),
    (ALWAYS, "PFADD ? a ; PEXPIRE ? #s | PFADD ? b | PFADD ? c"),
    // Persist.
    (ALWAYS, "SET ? v PX #s | PERSIST ? |"),
    (ALWAYS, "SET ? v PX #s | | PERSIST ?"),
    (ALWAYS, "SET ? v PX #s | PERSIST ? ; PEXPIRE ? #s | PERSIST ?"),
    (ALWAYS, "HSET ? a b ; PEXPIRE ? #s | PERSIST ? |"),
    (R62, "SET ? v PX #s | GETEX ? PERSIST |"),
    // Expire, by the source's clock alone.
    (ALWAYS, "SET ? v PX #s | |"),
    (ALWAYS, "RPUSH ? a b ; PEXPIRE ? #s | |"),
    (ALWAYS, "HSET ? a b ; PEXPIRE ? #s | |"),
    (ALWAYS, "SET ? v PX #s | | SET ? w"),
    (ALWAYS, "SET ? v PX #s | | SET ? w PX #l"),
    (ALWAYS, "SET ? v PX #s | | RPUSH ? a"),
    // Delete.
    (ALWAYS, "SET ? v PX #s | DEL ? |"),
    (ALWAYS, "SET ? v PX #l | UNLINK ? |"),
    (ALWAYS, "SET ? v PX #s | DEL ? ; SET ? w PX #l |"),
    (ALWAYS, "SET ? v PX #s | DEL ? ; RPUSH ? a | RPUSH ? b"),
    (R62, "SET ? v PX #s | GETDEL ? | SET ? w"),
    // An expiry that is past already.
    (ALWAYS, "SET ? v PX #l | PEXPIREAT ? @p |"),
    (ALWAYS, "SET ? v PX #s | EXPIRE ? -1 |"),
    (ALWAYS, "SET ? v | EXPIRE ? 0 | SET ? w PX #l"),
    (ALWAYS, "SET ? v | RESTORE ? @p *t ABSTTL REPLACE |"),
    (R62, "SET ? v | GETEX ? PXAT @p |"),
    (R70, "SET ? v | SET ? w PXAT @p |"),
    (R70, "SET ? v | SET ? w PXAT @p | SET ? x PX #l"),
    // Rename, copy, move.
    (ALWAYS, "SET ?x v PX #s | RENAME ?x ? |"),
    (ALWAYS, "SET ?x v PX #s | RENAME ?x ? ; PEXPIRE ? #l |"),
    (ALWAYS, "SET ?x v PX #l | RENAME ?x ? |"),
    (ALWAYS, "SET ? v PX #s ; SET ?x w PX #l | RENAME ?x ? |"),
    (ALWAYS, "SET ? v PX #l ; SET ?x w PX #s | RENAME ?x ? |"),
    (ALWAYS, "SET ? v PX #s ; SET ?x w PX #l | | RENAMENX ?x ?"),
    (ALWAYS, "SET ? v PX #s | MOVE ? 1 |"),
    (ALWAYS, "SET ? v PX #l | MOVE ? 1 |"),
    (ALWAYS, "SET ? v PX #s | PEXPIRE ? #l ; MOVE ? 1 | SET ? w"),
    (R62, "SET ?x v PX #s | COPY ?x ? |"),
    (R62, "SET ?x v PX #l | COPY ?x ? | PERSIST ?x"),
    (R62, "SET ? v PX #l ; SET ?x v PX #s | COPY ?x ? REPLACE |"),
    (R62, "SET ? v PX #s | COPY ? ?x ; PEXPIRE ?x #l |"),
    (R62, "SET ? v PX #s | COPY ? ? DB 1 ; PERSIST ? |"),
    // Stores, which drop the expiry.
    (ALWAYS, "SADD ?x b a ; SADD ? z ; PEXPIRE ? #s | SUNIONSTORE ? ?x ?x |"),
    (ALWAYS, "RPUSH ?x 2 1 ; RPUSH ? z ; PEXPIRE ? #s | SORT ?x STORE ? |"),
    (ALWAYS, "ZADD ?x 2 a ; ZADD ? 1 z ; PEXPIRE ? #s | ZUNIONSTORE ? 1 ?x |"),
    (ALWAYS, "GEOADD ?x 13 38 a ; ZADD ? 1 z ; PEXPIRE ? #s | GEORADIUS ?x 13 38 9 km STORE ? |"),
    (R62, "GEOADD ?x 13 38 a ; ZADD ? 1 z ; PEXPIRE ? #s | GEOSEARCHSTORE ? ?x FROMMEMBER a BYRADIUS 9 km |"),
    (R62, "ZADD ?x 2 a ; ZADD ? 1 z ; PEXPIRE ? #s | ZRANGESTORE ? ?x 0 -1 |"),
    (ALWAYS, "SET ?x abc ; SET ? z PX #s | BITOP NOT ? ?x |"),
    (ALWAYS, "PFADD ?x a ; PFADD ? z ; PEXPIRE ? #s | PFMERGE ? ?x |"),
    // Restore.
    (ALWAYS, "| RESTORE ? #s *t |"),
    (ALWAYS, "| RESTORE ? #l *l |"),
    (ALWAYS, "SET ? v PX #s | RESTORE ? #l *t REPLACE |"),
    (ALWAYS, "SET ? v PX #s | RESTORE ? 0 *l REPLACE |"),
    (ALWAYS, "SET ? v PX #s | RESTORE ? @l *t REPLACE ABSTTL |"),
    (ALWAYS, "SET ? v PX #l | RESTORE ? @s *l REPLACE ABSTTL IDLETIME 5 |"),
    (ALWAYS, "SET ? v PX #s | | RESTORE ? #l *t"),
    // Fields of hashes.
    (FIELDS, "HSET ? f 1 g 2 ; HPEXPIRE ? #s FIELDS 1 f | |"),
    (FIELDS, "HSET ? f 1 g 2 ; HPEXPIRE ? #s FIELDS 2 f g | |"),
    (FIELDS, "HSET ? f 1 g 2 ; HPEXPIRE ? #s FIELDS 1 f | HPEXPIRE ? #l FIELDS 1 f |"),
    (FIELDS, "HSET ? f 1 g 2 ; HPEXPIRE ? #s FIELDS 2 f g | HEXPIRE ? 100 FIELDS 2 f g |"),
    (FIELDS, "HSET ? f 1 g 2 ; HPEXPIRE ? #s FIELDS 1 f | HPEXPIREAT ? @l GT FIELDS 2 f g |"),
    (FIELDS, "HSET ? f 1 g 2 ; HPEXPIRE ? #l FIELDS 1 f | HPEXPIREAT ? @s LT FIELDS 2 f g |"),
    (FIELDS, "HSET ? f 1 g 2 ; HPEXPIRE ? #s FIELDS 1 f | HPEXPIRE ? #l NX FIELDS 2 f g |"),
    (FIELDS, "HSET ? f 1 g 2 ; HPEXPIRE ? #s FIELDS 1 f | HPEXPIRE ? #l XX FIELDS 2 f g |"),
    (FIELDS, "HSET ? f 1 g 2 ; HPEXPIRE ? #s FIELDS 1 f | HEXPIREAT ? @L FIELDS 1 f |"),
    (FIELDS, "HSET ? f 1 g 2 ; HPEXPIRE ? #s FIELDS 2 f g | HPERSIST ? FIELDS 1 f |"),
    (FIELDS, "HSET ? f 1 g 2 ; HPEXPIRE ? #s FIELDS 2 f g | HDEL ? f |"),
    (FIELDS, "HSET ? f 1 g 2 ; HPEXPIRE ? #s FIELDS 2 f g | HSET ? f 3 |"),
    (FIELDS, "HSET ? f 1 g 2 ; HPEXPIRE ? #s FIELDS 2 f g | HINCRBY ? f 3 | HINCRBY ? f 4"),
    (FIELDS, "HSET ? f 1 g 2 ; HPEXPIRE ? #l FIELDS 2 f g | HINCRBY ? f 3 |"),
    // Redis tells its replicas HSET for it, without the field's expiry: a native replica then has none, nor has a target.
    (VALKEY9, "HSET ? f 1 g 2 ; HPEXPIRE ? #l FIELDS 2 f g | HINCRBYFLOAT ? g 0.5 |"),
    (FIELDS, "HSET ? f 1 g 2 ; HPEXPIRE ? #l FIELDS 2 f g | HPEXPIREAT ? @p FIELDS 1 f |"),
    (FIELDS, "HSET ? f 1 g 2 ; HPEXPIRE ? #s FIELDS 1 f | HPEXPIRE ? 0 FIELDS 2 f g | HSET ? f 3"),
    (FIELDS, "HSET ? f 1 g 2 ; HPEXPIRE ? #s FIELDS 1 f ; PEXPIRE ? #l | PEXPIRE ? #s |"),
    (FIELDS, "HSET ? f 1 g 2 ; HPEXPIRE ? #l FIELDS 1 f ; PEXPIRE ? #s | PERSIST ? |"),
    (FIELDS, "HSET ?x f 1 g 2 ; HPEXPIRE ?x #s FIELDS 1 f | RENAME ?x ? |"),
    (FIELDS, "HSET ?x f 1 g 2 ; HPEXPIRE ?x #s FIELDS 1 f | COPY ?x ? ; HPEXPIRE ? #l FIELDS 1 f |"),
    (FIELDS, "HSET ?x f 1 g 2 ; HPEXPIRE ?x #l FIELDS 1 f | COPY ?x ? ; PEXPIRE ? #l |"),
    (FIELDS, "HSET ? f 1 g 2 ; HPEXPIRE ? #s FIELDS 1 f | MOVE ? 1 |"),
    (FIELDS, "| RESTORE ? 0 *h |"),
    (FIELDS, "HSET ? f 1 ; HPEXPIRE ? #s FIELDS 1 f | RESTORE ? #l *h REPLACE |"),
    (FIELDS, "SET ? v PX #s | RESTORE ? @l *h REPLACE ABSTTL | HPEXPIRE ? #l FIELDS 1 h"),
    (FIELDS, "| EVAL redis.call('hset',KEYS[1],'f','v');redis.call('hpexpire',KEYS[1],'77777','fields','1','f') 1 ? |"),
    (FIELDS_EX, "| HSETEX ? PX #s FIELDS 2 f 1 g 2 | HSET ? h 3"),
    (FIELDS_EX, "HSETEX ? PX #s FIELDS 2 f 1 g 2 | HSETEX ? PX #l FIELDS 1 f 3 |"),
    (FIELDS_EX, "HSETEX ? PX #s FIELDS 2 f 1 g 2 | HSETEX ? PXAT @l FIELDS 1 f 3 |"),
    (FIELDS_EX, "HSETEX ? PX #s FIELDS 2 f 1 g 2 | HSETEX ? KEEPTTL FIELDS 1 f 3 |"),
    (FIELDS_EX, "HSETEX ? PX #s FIELDS 2 f 1 g 2 | HSETEX ? FIELDS 1 f 3 |"),
    (FIELDS_EX, "HSETEX ? PX #s FIELDS 1 f 1 | HSETEX ? FXX EX 100 FIELDS 1 f 3 |"),
    (FIELDS_EX, "HSETEX ? PX #s FIELDS 1 f 1 | | HSETEX ? FNX PX #l FIELDS 1 f 3"),
    (FIELDS_EX, "HSETEX ? PX #s FIELDS 2 f 1 g 2 | HGETEX ? PX #l FIELDS 1 f |"),
    (FIELDS_EX, "HSETEX ? PX #s FIELDS 2 f 1 g 2 | HGETEX ? EXAT @L FIELDS 2 f g |"),
    (FIELDS_EX, "HSETEX ? PX #s FIELDS 2 f 1 g 2 | HGETEX ? PERSIST FIELDS 1 f |"),
    (FIELDS_EX, "HSETEX ? PX #l FIELDS 2 f 1 g 2 | HSETEX ? PXAT @p FIELDS 1 f 3 |"),
    (FIELDS_EX, "HSETEX ? PX #l FIELDS 2 f 1 g 2 | HGETEX ? PXAT @p FIELDS 1 f |"),
];

/// Short times in these cases; everything that is to expire soon does so after this.
pub const SHORT_MS: i64 = 500;
/// Long ones: no test takes this long.
const LONG_MS: i64 = 200_000;

/// Values for RESTORE.
#[derive(Debug, Clone)]
pub struct Payloads {
    text: Vec<u8>,
    list: Vec<u8>,
    hash: Vec<u8>,
}

impl Payloads {
    /// Has `server` make them; the hash's first field expires a short time from now.
    pub fn make(version: Version, client: &mut Client) -> Payloads {
        cmd!(client, "SET", "seed:t", "payload").ok();
        cmd!(client, "RPUSH", "seed:l", "a", "b", 3).good();
        cmd!(client, "HSET", "seed:h", "f", 1, "g", 2, "h", 3).good();
        if has(version, FIELDS) {
            cmd!(client, "HPEXPIRE", "seed:h", 2 * SHORT_MS, "FIELDS", 1, "f").good();
            cmd!(client, "HPEXPIRE", "seed:h", LONG_MS, "FIELDS", 1, "g").good();
        }
        let mut dump = |key: &str| cmd!(client, "DUMP", key).good().bytes().to_vec();
        let made = Payloads { text: dump("seed:t"), list: dump("seed:l"), hash: dump("seed:h") };
        cmd!(client, "DEL", "seed:t", "seed:l", "seed:h").good();
        made
    }
}

/// When a part of a case runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Setup = 0,
    Race = 1,
    Late = 2,
}

fn has(version: Version, since: Since) -> bool {
    let (redis, valkey) = since;
    if version.valkey {
        version.number >= valkey
    } else {
        version.number >= redis
    }
}

/// Number of cases on that server.
pub fn count(version: Version) -> usize {
    CASES.iter().filter(|(since, _)| has(version, *since)).count()
}

/// The text of a case, for messages: key `<prefix>:<number>`.
pub fn text(version: Version, key: &[u8]) -> &'static str {
    let key = String::from_utf8_lossy(key);
    let number = key.rsplit(':').next().and_then(|n| n.trim_end_matches('x').parse::<usize>().ok());
    let mut all = CASES.iter().filter(|(since, _)| has(version, *since));
    number.and_then(|n| all.nth(n)).map_or("", |case| case.1)
}

/// The commands of one part of all cases, with keys `<prefix>:<number>`.
pub fn commands(
    version: Version,
    prefix: &str,
    part: Part,
    payloads: &Payloads,
    now_ms: i64,
) -> Vec<Vec<Vec<u8>>> {
    let cases = CASES.iter().filter(|(since, _)| has(version, *since)).enumerate();
    let of_case = |(n, (_, text)): (usize, &(Since, &str))| {
        let key = format!("{prefix}:{n}");
        let parts: Vec<&str> = text.split('|').collect();
        assert_eq!(parts.len(), 3, "{text}");
        let lines = parts[part as usize].split(';').map(str::trim).filter(|line| !line.is_empty());
        // Lua has semicolons of its own.
        let mut joined: Vec<String> = Vec::new();
        for line in lines {
            match joined.last_mut() {
                Some(last) if line.starts_with("redis.call") => *last = format!("{last};{line}"),
                _ => joined.push(line.to_owned()),
            }
        }
        let word = |word: &str| match word {
            "?" => key.clone().into_bytes(),
            "?x" => format!("{key}x").into_bytes(),
            "#s" => SHORT_MS.to_string().into_bytes(),
            "#l" => LONG_MS.to_string().into_bytes(),
            "@s" => (now_ms + SHORT_MS).to_string().into_bytes(),
            "@l" => (now_ms + LONG_MS).to_string().into_bytes(),
            "@L" => ((now_ms + LONG_MS) / 1000).to_string().into_bytes(),
            "@p" => (now_ms - 10_000).to_string().into_bytes(),
            "*t" => payloads.text.clone(),
            "*l" => payloads.list.clone(),
            "*h" => payloads.hash.clone(),
            other => other.as_bytes().to_vec(),
        };
        let command = |line: &String| line.split_whitespace().map(word).collect::<Vec<_>>();
        joined.iter().map(command).collect::<Vec<_>>()
    };
    cases.flat_map(of_case).collect()
}
