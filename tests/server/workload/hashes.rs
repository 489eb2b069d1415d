//! Hashes, also with fields that expire (Redis 7.4 and later, Valkey 9).

use super::mix::{argv, Argv, Kind, Mix};

fn field(m: &mut Mix) -> Vec<u8> {
    if m.rng.one_in(25) {
        return m.value();
    }
    format!("f{}", m.rng.below(12)).into_bytes()
}

/// A field for counters, so that HINCRBY meets numbers.
fn counter(m: &mut Mix) -> Vec<u8> {
    format!("n{}", m.rng.below(4)).into_bytes()
}

fn pairs(m: &mut Mix, name: &str) -> Argv {
    let mut out = argv![name, m.key(Kind::Hash)];
    for _ in 0..m.rng.range(1, 6) {
        out.extend(argv![field(m), m.value()]);
    }
    out
}

pub fn hset(m: &mut Mix) -> Argv {
    pairs(m, "HSET")
}
pub fn hmset(m: &mut Mix) -> Argv {
    pairs(m, "HMSET")
}
pub fn hsetnx(m: &mut Mix) -> Argv {
    argv!["HSETNX", m.key(Kind::Hash), field(m), m.value()]
}

pub fn hdel(m: &mut Mix) -> Argv {
    argv!["HDEL", m.key(Kind::Hash), field(m), field(m), counter(m)]
}

pub fn hincrby(m: &mut Mix) -> Argv {
    argv!["HINCRBY", m.key(Kind::Hash), counter(m), m.rng.range(-100, 100)]
}

pub fn hincrbyfloat(m: &mut Mix) -> Argv {
    let by = format!("{}.{}", m.rng.range(-5, 5), m.rng.below(1000));
    argv!["HINCRBYFLOAT", m.key(Kind::Hash), "fraction", by]
}

/// A time to live for fields that other commands use as well: none of them expires. A native replica of Redis 7.4, 8.0
/// and Valkey 9 takes a field for gone by its own clock, so that an HPERSIST or HSETNX which the master's clock let
/// through ends differently there. [`fleeting`] makes the fields that do expire.
fn ttl_ms(m: &mut Mix) -> i64 {
    m.ttl_s(false) * 1000
}

/// Fields of their own that nothing else touches, in a hash that is not moved, expire soon after. Not on Redis 7.4.1: it
/// forgets under which name a hash is known once databases were swapped, and deletes expired fields under a wrong key.
pub fn fleeting(m: &mut Mix) -> Argv {
    let key = format!("fleeting {}", m.rng.below(2));
    let field = format!("{:x}", m.rng.next());
    let stays = m.rng.one_in(3) || (m.caps.valkey.is_none() && m.caps.redis < (7, 4, 2));
    let has_hsetex = m.caps.valkey.is_some() || m.caps.from(8, 0);
    match m.rng.below(2) {
        _ if stays => argv!["HSET", key, m.member(), "stays"],
        0 if has_hsetex => {
            argv!["HSETEX", key, "PX", m.rng.range(5, 50), "FIELDS", 1usize, field, "gone soon"]
        }
        _ => argv!["EVAL", SET_AND_EXPIRE, 1usize, key, field, m.rng.range(5, 50)],
    }
}

const SET_AND_EXPIRE: &str = "
redis.call('HSET', KEYS[1], ARGV[1], 'gone soon')
return redis.call('HPEXPIRE', KEYS[1], ARGV[2], 'FIELDS', 1, ARGV[1])";

/// `FIELDS n f...`
fn fields(m: &mut Mix) -> Argv {
    let n = m.rng.range(1, 3);
    let mut out = argv!["FIELDS", n];
    out.extend((0..n).map(|_| field(m)).collect::<Vec<_>>());
    out
}

fn expire(m: &mut Mix, name: &str, when: i64) -> Argv {
    let mut out = argv![name, m.key(Kind::Hash), when];
    if m.rng.one_in(3) {
        let option = *m.rng.pick(&["NX", "XX", "GT", "LT"]);
        out.extend(argv![option]);
    }
    out.extend(fields(m));
    out
}

pub fn hexpire(m: &mut Mix) -> Argv {
    // 0 deletes the field at once.
    let when = if m.rng.one_in(10) { 0 } else { m.ttl_s(false) };
    expire(m, "HEXPIRE", when)
}
pub fn hpexpire(m: &mut Mix) -> Argv {
    let when = ttl_ms(m);
    expire(m, "HPEXPIRE", when)
}
pub fn hexpireat(m: &mut Mix) -> Argv {
    let when = m.now_ms() / 1000 + m.ttl_s(false);
    expire(m, "HEXPIREAT", when)
}
pub fn hpexpireat(m: &mut Mix) -> Argv {
    let past = m.rng.one_in(10);
    let when = if past { m.now_ms() - 1000 } else { m.now_ms() + ttl_ms(m) };
    expire(m, "HPEXPIREAT", when)
}

pub fn hpersist(m: &mut Mix) -> Argv {
    let mut out = argv!["HPERSIST", m.key(Kind::Hash)];
    out.extend(fields(m));
    out
}

pub fn hgetdel(m: &mut Mix) -> Argv {
    let mut out = argv!["HGETDEL", m.key(Kind::Hash)];
    out.extend(fields(m));
    out
}

/// As [`Mix::expiry_option`], with [`ttl_ms`].
fn expiry_option(m: &mut Mix) -> Argv {
    match m.rng.below(4) {
        0 => argv!["EX", m.ttl_s(false)],
        1 => argv!["PX", ttl_ms(m)],
        2 => argv!["EXAT", m.now_ms() / 1000 + m.ttl_s(false)],
        _ => argv!["PXAT", m.now_ms() + ttl_ms(m)],
    }
}

pub fn hgetex(m: &mut Mix) -> Argv {
    let mut out = argv!["HGETEX", m.key(Kind::Hash)];
    if m.rng.one_in(4) {
        out.extend(argv!["PERSIST"]);
    } else {
        out.extend(expiry_option(m));
    }
    out.extend(fields(m));
    out
}

pub fn hsetex(m: &mut Mix) -> Argv {
    let mut out = argv!["HSETEX", m.key(Kind::Hash)];
    match m.rng.below(4) {
        0 => out.extend(argv!["FNX"]),
        1 => out.extend(argv!["FXX"]),
        _ => {}
    }
    if m.rng.one_in(5) {
        out.extend(argv!["KEEPTTL"]);
    } else {
        out.extend(expiry_option(m));
    }
    let n = m.rng.range(1, 3);
    out.extend(argv!["FIELDS", n]);
    for _ in 0..n {
        out.extend(argv![field(m), m.value()]);
    }
    out
}
