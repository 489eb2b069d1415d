//! Lists and sets.

use super::mix::{argv, Argv, Kind, Mix};
use super::step::Step;

fn push(m: &mut Mix, name: &str) -> Argv {
    let mut out = argv![name, m.key(Kind::List)];
    for _ in 0..m.rng.range(1, 6) {
        out.push(if m.rng.one_in(3) { m.value() } else { m.member() });
    }
    out
}

pub fn lpush(m: &mut Mix) -> Argv {
    push(m, "LPUSH")
}
pub fn rpush(m: &mut Mix) -> Argv {
    push(m, "RPUSH")
}
pub fn lpushx(m: &mut Mix) -> Argv {
    push(m, "LPUSHX")
}
pub fn rpushx(m: &mut Mix) -> Argv {
    push(m, "RPUSHX")
}

fn pop(m: &mut Mix, name: &str, kind: Kind) -> Argv {
    let mut out = argv![name, m.key(kind)];
    let counted = m.caps.from(6, 2) || kind != Kind::List;
    if counted && m.rng.one_in(3) {
        out.extend(argv![m.rng.range(1, 4)]);
    }
    out
}

pub fn lpop(m: &mut Mix) -> Argv {
    pop(m, "LPOP", Kind::List)
}
pub fn rpop(m: &mut Mix) -> Argv {
    pop(m, "RPOP", Kind::List)
}

pub fn linsert(m: &mut Mix) -> Argv {
    let side = *m.rng.pick(&["BEFORE", "AFTER"]);
    argv!["LINSERT", m.key(Kind::List), side, m.member(), m.value()]
}

pub fn lset(m: &mut Mix) -> Argv {
    argv!["LSET", m.key(Kind::List), m.rng.range(-2, 2), m.value()]
}

pub fn lrem(m: &mut Mix) -> Argv {
    argv!["LREM", m.key(Kind::List), m.rng.range(-2, 2), m.member()]
}

pub fn ltrim(m: &mut Mix) -> Argv {
    argv!["LTRIM", m.key(Kind::List), m.rng.range(0, 3), m.rng.range(5, 60)]
}

pub fn rpoplpush(m: &mut Mix) -> Argv {
    argv!["RPOPLPUSH", m.key(Kind::List), m.key_of(Kind::List)]
}

fn sides(m: &mut Mix) -> Argv {
    let side = |m: &mut Mix| *m.rng.pick(&["LEFT", "RIGHT"]);
    argv![side(m), side(m)]
}

pub fn lmove(m: &mut Mix) -> Argv {
    let mut out = argv!["LMOVE", m.key(Kind::List), m.key_of(Kind::List)];
    out.extend(sides(m));
    out
}

pub fn lmpop(m: &mut Mix) -> Argv {
    let side = *m.rng.pick(&["LEFT", "RIGHT"]);
    argv!["LMPOP", 2usize, m.key_of(Kind::List), m.key_of(Kind::List), side, "COUNT", m.rng.range(1, 3)]
}

/// Seconds that a blocked command waits at most: another thread may take what it waits for.
pub const PATIENCE: &str = "0.2";

/// A waiter on an empty key and the pushes that wake it.
fn blocked_on_list(m: &mut Mix, waiter: impl FnOnce(&mut Mix, Vec<u8>) -> Argv) -> Step {
    let key = m.key_of(Kind::List);
    let waiter = waiter(m, key.clone());
    let mut push = argv!["RPUSH", key.clone()];
    push.extend(m.members(1, 3));
    let push = if m.rng.one_in(3) {
        Step::Transaction { watch: None, commands: vec![push, argv!["INCR", "n:1"]], discard: false }
    } else {
        Step::One(push)
    };
    Step::Blocking { clear: argv!["DEL", key], waiter, wake: Box::new(push) }
}

pub fn blpop(m: &mut Mix) -> Step {
    blocked_on_list(m, |m, key| argv!["BLPOP", key, m.key_of(Kind::List), PATIENCE])
}
pub fn brpop(m: &mut Mix) -> Step {
    blocked_on_list(m, |_, key| argv!["BRPOP", key, PATIENCE])
}
pub fn brpoplpush(m: &mut Mix) -> Step {
    blocked_on_list(m, |m, key| argv!["BRPOPLPUSH", key, m.key_of(Kind::List), PATIENCE])
}
pub fn blmove(m: &mut Mix) -> Step {
    blocked_on_list(m, |m, key| {
        let mut out = argv!["BLMOVE", key, m.key_of(Kind::List)];
        out.extend(sides(m));
        out.extend(argv![PATIENCE]);
        out
    })
}
pub fn blmpop(m: &mut Mix) -> Step {
    blocked_on_list(m, |m, key| {
        argv!["BLMPOP", PATIENCE, 2usize, key, m.key_of(Kind::List), "LEFT", "COUNT", m.rng.range(1, 3)]
    })
}

pub fn sadd(m: &mut Mix) -> Argv {
    let mut out = argv!["SADD", m.key(Kind::Set)];
    if m.rng.one_in(3) {
        // Integers only keep the set an intset for a while.
        out.extend((0..3).map(|_| m.rng.below(30).to_string().into_bytes()).collect::<Vec<_>>());
    } else {
        out.extend(m.members(1, 6));
    }
    out
}

pub fn srem(m: &mut Mix) -> Argv {
    let mut out = argv!["SREM", m.key(Kind::Set)];
    out.extend(m.members(1, 4));
    out
}

/// The server chooses what goes; the choice must travel, not the command.
pub fn spop(m: &mut Mix) -> Argv {
    pop(m, "SPOP", Kind::Set)
}

pub fn smove(m: &mut Mix) -> Argv {
    argv!["SMOVE", m.key(Kind::Set), m.key_of(Kind::Set), m.member()]
}

fn store(m: &mut Mix, name: &str) -> Argv {
    argv![name, m.key_of(Kind::Set), m.key(Kind::Set), m.key_of(Kind::Set)]
}

pub fn sdiffstore(m: &mut Mix) -> Argv {
    store(m, "SDIFFSTORE")
}
pub fn sinterstore(m: &mut Mix) -> Argv {
    store(m, "SINTERSTORE")
}
pub fn sunionstore(m: &mut Mix) -> Argv {
    store(m, "SUNIONSTORE")
}

/// SORT with STORE. BY only on lists: equal weights leave the order of a set's members undefined.
pub fn sort(m: &mut Mix) -> Argv {
    let on_list = m.rng.one_in(2);
    let key = m.key(if on_list { Kind::List } else { Kind::Set });
    let mut out = argv!["SORT", key];
    if on_list && m.rng.one_in(3) {
        out.extend(argv!["BY", "nosort"]);
    }
    if m.rng.one_in(3) {
        out.extend(argv!["LIMIT", m.rng.below(3), m.rng.range(1, 20)]);
    }
    if m.rng.one_in(2) {
        out.extend(argv!["DESC"]);
    }
    out.extend(argv!["ALPHA", "STORE", m.key_of(Kind::List)]);
    out
}
