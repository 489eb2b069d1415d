//! Sorted sets and geo sets.

use super::collections::PATIENCE;
use super::mix::{argv, Argv, Kind, Mix};
use super::step::Step;

pub fn zadd(m: &mut Mix) -> Argv {
    let mut out = argv!["ZADD", m.key(Kind::Sorted)];
    match m.rng.below(12) {
        0 => out.extend(argv!["NX"]),
        1 => out.extend(argv!["XX", "CH"]),
        2 if m.caps.from(6, 2) => out.extend(argv!["GT"]),
        3 if m.caps.from(6, 2) => out.extend(argv!["LT", "CH"]),
        4 => {
            out.extend(argv!["INCR", m.score(), m.member()]);
            return out;
        }
        _ => {}
    }
    for _ in 0..m.rng.range(1, 5) {
        out.extend(argv![m.score(), m.member()]);
    }
    out
}

pub fn zincrby(m: &mut Mix) -> Argv {
    argv!["ZINCRBY", m.key(Kind::Sorted), m.score(), m.member()]
}

pub fn zrem(m: &mut Mix) -> Argv {
    let mut out = argv!["ZREM", m.key(Kind::Sorted)];
    out.extend(m.members(1, 3));
    out
}

fn zpop(m: &mut Mix, name: &str) -> Argv {
    let mut out = argv![name, m.key(Kind::Sorted)];
    if m.rng.one_in(2) {
        out.extend(argv![m.rng.range(1, 3)]);
    }
    out
}

pub fn zpopmin(m: &mut Mix) -> Argv {
    zpop(m, "ZPOPMIN")
}
pub fn zpopmax(m: &mut Mix) -> Argv {
    zpop(m, "ZPOPMAX")
}

pub fn zmpop(m: &mut Mix) -> Argv {
    let side = *m.rng.pick(&["MIN", "MAX"]);
    argv!["ZMPOP", 2usize, m.key_of(Kind::Sorted), m.key_of(Kind::Sorted), side, "COUNT", m.rng.range(1, 3)]
}

pub fn zremrangebyrank(m: &mut Mix) -> Argv {
    argv!["ZREMRANGEBYRANK", m.key(Kind::Sorted), m.rng.range(0, 4), m.rng.range(0, 6)]
}

pub fn zremrangebyscore(m: &mut Mix) -> Argv {
    let from = m.rng.range(-12, 20);
    argv!["ZREMRANGEBYSCORE", m.key(Kind::Sorted), format!("({from}"), from + m.rng.range(1, 3)]
}

/// A sorted set whose members all have one score, and that only the commands on its order by name touch: with several
/// scores what these find depends on the random levels of each server's own skip list.
fn lexicon(m: &mut Mix) -> Vec<u8> {
    format!("lexicon {}", m.rng.below(2)).into_bytes()
}

pub fn zadd_lexicon(m: &mut Mix) -> Argv {
    argv!["ZADD", lexicon(m), 0usize, m.member(), 0usize, m.member()]
}

fn lex_range(m: &mut Mix) -> (&'static str, &'static str) {
    *m.rng.pick(&[("-", "[1"), ("[m1", "(m3"), ("[m14", "+"), ("(m4", "[m7")])
}

pub fn zremrangebylex(m: &mut Mix) -> Argv {
    let (from, to) = lex_range(m);
    argv!["ZREMRANGEBYLEX", lexicon(m), from, to]
}

pub fn zrangestore(m: &mut Mix) -> Argv {
    let to = m.key_of(Kind::Sorted);
    if m.rng.one_in(3) {
        let (min, max) = lex_range(m);
        return argv!["ZRANGESTORE", to, lexicon(m), min, max, "BYLEX"];
    }
    let mut out = argv!["ZRANGESTORE", to, m.key(Kind::Sorted)];
    match m.rng.below(2) {
        0 => out.extend(argv!["-5", "(15", "BYSCORE", "LIMIT", 0usize, m.rng.range(1, 30)]),
        _ => out.extend(argv![m.rng.below(3), "-1"]),
    }
    out
}

fn combine(m: &mut Mix, name: &str) -> Argv {
    let mut out = argv![name, m.key_of(Kind::Sorted), 2usize, m.key(Kind::Sorted)];
    let second = if m.rng.one_in(3) { m.key_of(Kind::Set) } else { m.key_of(Kind::Sorted) };
    out.push(second);
    if name != "ZDIFFSTORE" {
        if m.rng.one_in(2) {
            out.extend(argv!["WEIGHTS", m.rng.range(-2, 3), "0.5"]);
        }
        let aggregate = *m.rng.pick(&["SUM", "MIN", "MAX"]);
        out.extend(argv!["AGGREGATE", aggregate]);
    }
    out
}

pub fn zunionstore(m: &mut Mix) -> Argv {
    combine(m, "ZUNIONSTORE")
}
pub fn zinterstore(m: &mut Mix) -> Argv {
    combine(m, "ZINTERSTORE")
}
pub fn zdiffstore(m: &mut Mix) -> Argv {
    combine(m, "ZDIFFSTORE")
}

fn blocked_on_sorted(m: &mut Mix, waiter: impl FnOnce(&mut Mix, Vec<u8>) -> Argv) -> Step {
    let key = m.key_of(Kind::Sorted);
    let waiter = waiter(m, key.clone());
    let wake = argv!["ZADD", key.clone(), m.score(), m.member(), m.score(), m.member()];
    Step::Blocking { clear: argv!["UNLINK", key], waiter, wake: Box::new(Step::One(wake)) }
}

pub fn bzpopmin(m: &mut Mix) -> Step {
    blocked_on_sorted(m, |m, key| argv!["BZPOPMIN", key, m.key_of(Kind::Sorted), PATIENCE])
}
pub fn bzpopmax(m: &mut Mix) -> Step {
    blocked_on_sorted(m, |_, key| argv!["BZPOPMAX", key, PATIENCE])
}
pub fn bzmpop(m: &mut Mix) -> Step {
    blocked_on_sorted(m, |m, key| argv!["BZMPOP", PATIENCE, 1usize, key, "MAX", "COUNT", m.rng.range(1, 3)])
}

fn place(m: &mut Mix) -> Argv {
    let degrees =
        |m: &mut Mix, limit: i64| format!("{}.{}", m.rng.range(-limit, limit), m.rng.below(100_000));
    argv![degrees(m, 30), degrees(m, 30)]
}

pub fn geoadd(m: &mut Mix) -> Argv {
    let mut out = argv!["GEOADD", m.key(Kind::Geo)];
    if m.caps.from(6, 2) && m.rng.one_in(4) {
        let option = *m.rng.pick(&["NX", "XX", "CH"]);
        out.extend(argv![option]);
    }
    for _ in 0..m.rng.range(1, 4) {
        out.extend(place(m));
        out.push(town(m));
    }
    out
}

/// Members of geo sets: few, since GEORADIUSBYMEMBER needs one that is there.
fn town(m: &mut Mix) -> Vec<u8> {
    format!("town{}", m.rng.below(6)).into_bytes()
}

fn store_option(m: &mut Mix) -> Argv {
    let form = *m.rng.pick(&["STORE", "STOREDIST"]);
    argv![form, m.key_of(Kind::Geo)]
}

pub fn georadius(m: &mut Mix) -> Argv {
    let mut out = argv!["GEORADIUS", m.key(Kind::Geo)];
    out.extend(place(m));
    out.extend(argv![m.rng.range(1000, 6000), "km"]);
    if m.rng.one_in(2) {
        out.extend(argv!["COUNT", m.rng.range(1, 5), "ASC"]);
    }
    out.extend(store_option(m));
    out
}

/// By a member: one that the key has, or the reply is an error.
pub fn georadiusbymember(m: &mut Mix) -> Argv {
    let mut out = argv!["GEORADIUSBYMEMBER", m.key(Kind::Geo), town(m)];
    out.extend(argv![m.rng.range(1000, 6000), "km"]);
    out.extend(store_option(m));
    out
}

pub fn geosearchstore(m: &mut Mix) -> Argv {
    let mut out = argv!["GEOSEARCHSTORE", m.key_of(Kind::Geo), m.key(Kind::Geo), "FROMLONLAT"];
    out.extend(place(m));
    out.extend(argv!["BYBOX", m.rng.range(2000, 8000), m.rng.range(2000, 8000), "km", "ASC"]);
    if m.rng.one_in(3) {
        out.extend(argv!["STOREDIST"]);
    }
    out
}
