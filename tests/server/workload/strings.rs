//! Strings, counters, bits and HyperLogLogs.

use super::mix::{argv, Argv, Kind, Mix};

pub fn set(m: &mut Mix) -> Argv {
    let key = m.key(Kind::Text);
    let value = m.value();
    let mut out = argv!["SET", key.clone(), value.clone()];
    match m.rng.below(10) {
        0 => out.extend(argv!["NX"]),
        1 => out.extend(argv!["XX"]),
        2 => out.extend(argv!["KEEPTTL"]),
        3 if m.caps.from(6, 2) => out.extend(argv!["GET"]),
        4..=6 => {
            let absolute = m.caps.from(6, 2);
            out.extend(m.expiry_option(absolute));
        }
        7 if m.caps.valkey_from(8, 1) => {
            if let Some((_, key, old)) = known_text(m) {
                return argv!["SET", key, value, "IFEQ", old];
            }
        }
        _ => remember_text(m, key, value),
    }
    out
}

fn remember_text(m: &mut Mix, key: Vec<u8>, value: Vec<u8>) {
    if value.len() > 100 {
        return;
    }
    if m.texts.len() >= 4 {
        m.texts.pop_front();
    }
    m.texts.push_back((m.db, key, value));
}

fn known_text(m: &Mix) -> Option<(u64, Vec<u8>, Vec<u8>)> {
    m.texts.iter().rev().find(|t| t.0 == m.db).cloned()
}

pub fn setnx(m: &mut Mix) -> Argv {
    argv!["SETNX", m.key(Kind::Text), m.value()]
}

pub fn setex(m: &mut Mix) -> Argv {
    argv!["SETEX", m.key(Kind::Text), m.ttl_s(false), m.value()]
}

pub fn psetex(m: &mut Mix) -> Argv {
    argv!["PSETEX", m.key(Kind::Text), m.ttl_ms(), m.value()]
}

pub fn getset(m: &mut Mix) -> Argv {
    argv!["GETSET", m.key(Kind::Text), m.value()]
}

pub fn getdel(m: &mut Mix) -> Argv {
    argv!["GETDEL", m.key(Kind::Text)]
}

pub fn getex(m: &mut Mix) -> Argv {
    let mut out = argv!["GETEX", m.key(Kind::Text)];
    match m.rng.below(6) {
        0 => {}
        1 => out.extend(argv!["PERSIST"]),
        _ => out.extend(m.expiry_option(true)),
    }
    out
}

/// DELIFEQ: deletes when the value is the given one, so the last plain SET is the best guess.
pub fn delifeq(m: &mut Mix) -> Argv {
    match known_text(m) {
        Some((_, key, value)) => argv!["DELIFEQ", key, value],
        None => argv!["DELIFEQ", m.key(Kind::Text), "text 1"],
    }
}

/// DELEX (Redis 8.4): with a condition or without.
pub fn delex(m: &mut Mix) -> Argv {
    match known_text(m) {
        Some((_, key, value)) => argv!["DELEX", key, "IFEQ", value],
        None => argv!["DELEX", m.key(Kind::Text)],
    }
}

pub fn append(m: &mut Mix) -> Argv {
    let tail = format!("+{}", m.rng.below(1000));
    argv!["APPEND", m.key(Kind::Text), tail]
}

pub fn setrange(m: &mut Mix) -> Argv {
    argv!["SETRANGE", m.key(Kind::Text), m.rng.below(300), m.value()]
}

pub fn mset(m: &mut Mix) -> Argv {
    let mut out = argv!["MSET"];
    for _ in 0..m.rng.range(1, 4) {
        out.extend(argv![m.key_of(Kind::Text), m.value()]);
    }
    out
}

/// MSETNX sets only when no key exists; names of its own, so that it does succeed.
pub fn msetnx(m: &mut Mix) -> Argv {
    let mut out = argv!["MSETNX"];
    for _ in 0..m.rng.range(1, 3) {
        let key = if m.rng.one_in(3) { m.key_of(Kind::Text) } else { fresh(m, "nx") };
        out.extend(argv![key, m.value()]);
    }
    out
}

/// A name out of 40: mostly absent, since other commands delete what starts with `nx`.
fn fresh(m: &mut Mix, prefix: &str) -> Vec<u8> {
    format!("{prefix}:{}", m.rng.below(40)).into_bytes()
}

pub fn msetex(m: &mut Mix) -> Argv {
    let pairs = m.rng.range(1, 3);
    let mut out = argv!["MSETEX", pairs];
    for _ in 0..pairs {
        out.extend(argv![m.key_of(Kind::Text), m.value()]);
    }
    match m.rng.below(4) {
        0 => out.extend(argv!["NX"]),
        1 => out.extend(argv!["XX"]),
        _ => {}
    }
    out.extend(m.expiry_option(true));
    out
}

pub fn incr(m: &mut Mix) -> Argv {
    argv!["INCR", m.key(Kind::Number)]
}

pub fn decr(m: &mut Mix) -> Argv {
    argv!["DECR", m.key(Kind::Number)]
}

pub fn incrby(m: &mut Mix) -> Argv {
    argv!["INCRBY", m.key(Kind::Number), m.rng.range(-1000, 1_000_000)]
}

pub fn decrby(m: &mut Mix) -> Argv {
    argv!["DECRBY", m.key(Kind::Number), m.rng.range(-1000, 1_000_000)]
}

pub fn incrbyfloat(m: &mut Mix) -> Argv {
    let by = format!("{}.{}", m.rng.range(-50, 50), m.rng.below(10_000));
    // Fractions make a key useless for INCR, so most go to a key of their own.
    let key = if m.rng.one_in(30) { m.key(Kind::Number) } else { b"f:1".to_vec() };
    argv!["INCRBYFLOAT", key, by]
}

/// Puts a number back where INCRBYFLOAT left a fraction.
pub fn set_number(m: &mut Mix) -> Argv {
    argv!["SET", m.key_of(Kind::Number), m.rng.range(-5, 5)]
}

pub fn setbit(m: &mut Mix) -> Argv {
    argv!["SETBIT", m.key(Kind::Bits), m.rng.below(2000), m.rng.below(2)]
}

pub fn bitop(m: &mut Mix) -> Argv {
    let from = m.key_of(Kind::Bits);
    let to = m.key_of(Kind::Bits);
    if m.rng.one_in(4) {
        return argv!["BITOP", "NOT", to, from];
    }
    let op = *m.rng.pick(&["AND", "OR", "XOR"]);
    argv!["BITOP", op, to, from, m.key_of(Kind::Bits)]
}

pub fn bitfield(m: &mut Mix) -> Argv {
    let mut out = argv!["BITFIELD", m.key(Kind::Bits)];
    for _ in 0..m.rng.range(1, 3) {
        match m.rng.below(4) {
            0 => out.extend(argv!["GET", "u8", m.rng.below(100)]),
            1 => out.extend(argv!["SET", "i16", format!("#{}", m.rng.below(50)), m.rng.range(-100, 100)]),
            2 => out.extend(argv!["OVERFLOW", "SAT", "INCRBY", "u4", m.rng.below(500), m.rng.range(-9, 9)]),
            // Whole bytes: one that fails across the end of the string makes it longer at the master only.
            _ => out.extend(argv!["OVERFLOW", "FAIL", "INCRBY", "i8", byte(m), m.rng.range(-90, 90)]),
        }
    }
    out
}

fn byte(m: &mut Mix) -> String {
    format!("#{}", m.rng.below(60))
}

pub fn pfadd(m: &mut Mix) -> Argv {
    let mut out = argv!["PFADD", m.key(Kind::Loglog)];
    for _ in 0..m.rng.range(0, 5) {
        out.extend(argv![format!("visitor {}", m.rng.below(100_000))]);
    }
    out
}

pub fn pfmerge(m: &mut Mix) -> Argv {
    argv!["PFMERGE", m.key_of(Kind::Loglog), m.key_of(Kind::Loglog), m.key(Kind::Loglog)]
}

/// A read to its caller, but it stores the cached cardinality and so travels.
pub fn pfcount(m: &mut Mix) -> Argv {
    argv!["PFCOUNT", m.key(Kind::Loglog)]
}

pub fn pfdebug(m: &mut Mix) -> Argv {
    argv!["PFDEBUG", "TODENSE", m.key_of(Kind::Loglog)]
}
