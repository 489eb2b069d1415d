//! Streams with consumer groups.

use super::mix::{argv, Argv, Delivery, Kind, Mix};
use super::step::Step;

/// As the patience of the other blocking commands, in ms.
const PATIENCE_MS: &str = "200";

fn group(m: &mut Mix) -> Vec<u8> {
    format!("group{}", m.rng.below(2)).into_bytes()
}

fn consumer(m: &mut Mix) -> Vec<u8> {
    format!("consumer{}", m.rng.below(3)).into_bytes()
}

/// MAXLEN or MINID, exact or approximate.
fn trim_rule(m: &mut Mix, key: &[u8]) -> Argv {
    // Short, so that it does trim.
    let by_id = m.caps.from(6, 2) && m.rng.one_in(3);
    let approximate = m.rng.one_in(2);
    let mark = if approximate { "~" } else { "=" };
    let mut out = if by_id {
        argv!["MINID", mark, m.stream_id(key)]
    } else {
        argv!["MAXLEN", mark, m.rng.range(1, 40)]
    };
    if approximate && m.caps.from(6, 2) && m.rng.one_in(3) {
        out.extend(argv!["LIMIT", m.rng.range(1, 200)]);
    }
    out
}

pub fn xadd(m: &mut Mix) -> Argv {
    let key = m.key(Kind::Stream);
    let mut out = argv!["XADD", key.clone()];
    if m.caps.from(6, 2) && m.rng.one_in(20) {
        out.extend(argv!["NOMKSTREAM"]);
    }
    if m.rng.one_in(4) {
        out.extend(trim_rule(m, &key));
    }
    match m.rng.below(12) {
        0 => out.extend(argv![format!("{}-{}", m.now_ms() + 1, m.rng.below(5))]),
        1 if m.caps.from(7, 0) => out.extend(argv![format!("{}-*", m.now_ms())]),
        _ => out.extend(argv!["*"]),
    }
    for n in 0..m.rng.range(1, 4) {
        out.extend(argv![format!("field{n}"), m.value()]);
    }
    out
}

pub fn xdel(m: &mut Mix) -> Argv {
    let key = m.key(Kind::Stream);
    argv!["XDEL", key.clone(), m.stream_id(&key), m.stream_id(&key)]
}

pub fn xdelex(m: &mut Mix) -> Argv {
    let key = m.key(Kind::Stream);
    let how = *m.rng.pick(&["KEEPREF", "DELREF", "ACKED"]);
    argv!["XDELEX", key.clone(), how, "IDS", 1usize, m.stream_id(&key)]
}

pub fn xackdel(m: &mut Mix) -> Argv {
    let key = m.key(Kind::Stream);
    argv!["XACKDEL", key.clone(), group(m), "KEEPREF", "IDS", 1usize, m.stream_id(&key)]
}

pub fn xtrim(m: &mut Mix) -> Argv {
    let key = m.key(Kind::Stream);
    let mut out = argv!["XTRIM", key.clone()];
    out.extend(trim_rule(m, &key));
    out
}

/// The last id may only grow.
pub fn xsetid(m: &mut Mix) -> Argv {
    let key = m.key(Kind::Stream);
    let id = format!("{}-{}", m.now_ms() + m.rng.range(0, 3), m.rng.below(1000));
    let mut out = argv!["XSETID", key, id];
    if m.caps.from(7, 0) && m.rng.one_in(3) {
        out.extend(argv!["ENTRIESADDED", 1_000_000 + m.rng.range(0, 1000), "MAXDELETEDID", "1-1"]);
    }
    out
}

pub fn xgroup_create(m: &mut Mix) -> Argv {
    let key = m.key(Kind::Stream);
    let from = match m.rng.below(3) {
        0 => b"$".to_vec(),
        1 => b"0".to_vec(),
        _ => m.stream_id(&key),
    };
    let mut out = argv!["XGROUP", "CREATE", key, group(m), from, "MKSTREAM"];
    if m.caps.from(7, 0) && m.rng.one_in(4) {
        out.extend(argv!["ENTRIESREAD", m.rng.below(20)]);
    }
    out
}

pub fn xgroup_setid(m: &mut Mix) -> Argv {
    let key = m.key(Kind::Stream);
    let from = if m.rng.one_in(2) { b"0".to_vec() } else { m.stream_id(&key) };
    argv!["XGROUP", "SETID", key, group(m), from]
}

pub fn xgroup_destroy(m: &mut Mix) -> Argv {
    argv!["XGROUP", "DESTROY", m.key(Kind::Stream), group(m)]
}

pub fn xgroup_createconsumer(m: &mut Mix) -> Argv {
    argv!["XGROUP", "CREATECONSUMER", m.key(Kind::Stream), group(m), consumer(m)]
}

pub fn xgroup_delconsumer(m: &mut Mix) -> Argv {
    argv!["XGROUP", "DELCONSUMER", m.key(Kind::Stream), group(m), consumer(m)]
}

fn read_group(m: &mut Mix, key: Vec<u8>, block: Option<&str>) -> Argv {
    let mut out = argv!["XREADGROUP", "GROUP", group(m), consumer(m), "COUNT", m.rng.range(1, 6)];
    if let Some(ms) = block {
        out.extend(argv!["BLOCK", ms]);
    }
    if m.rng.one_in(10) {
        out.extend(argv!["NOACK"]);
    }
    let from = if m.rng.one_in(8) { "0" } else { ">" };
    out.extend(argv!["STREAMS", key, from]);
    out
}

pub fn xreadgroup(m: &mut Mix) -> Step {
    let key = m.key(Kind::Stream);
    if !m.rng.one_in(12) {
        return Step::One(read_group(m, key, None));
    }
    // Blocks when the group has read everything; the entry that is added wakes it.
    let clear = xgroup_create_at_end(&key, group(m));
    let waiter = read_group(m, key.clone(), Some(PATIENCE_MS));
    let wake = argv!["XADD", key, "*", "woke", m.value()];
    Step::Blocking { clear, waiter, wake: Box::new(Step::One(wake)) }
}

fn xgroup_create_at_end(key: &[u8], group: Vec<u8>) -> Argv {
    argv!["XGROUP", "CREATE", key, group, "$", "MKSTREAM"]
}

fn delivery(m: &mut Mix) -> Delivery {
    m.delivery(|m| {
        let key = m.key(Kind::Stream);
        Delivery { db: m.db, group: group(m), id: m.stream_id(&key), key }
    })
}

pub fn xack(m: &mut Mix) -> Argv {
    let d = delivery(m);
    argv!["XACK", d.key.clone(), d.group, d.id, m.stream_id(&d.key)]
}

pub fn xclaim(m: &mut Mix) -> Argv {
    let d = delivery(m);
    let mut out = argv!["XCLAIM", d.key.clone(), d.group, consumer(m), 0usize, d.id, m.stream_id(&d.key)];
    match m.rng.below(6) {
        0 => out.extend(argv!["IDLE", m.rng.below(1000)]),
        1 => out.extend(argv!["RETRYCOUNT", m.rng.below(9)]),
        2 => out.extend(argv!["FORCE"]),
        3 => out.extend(argv!["JUSTID"]),
        4 => out.extend(argv!["TIME", m.now_ms() - 1000]),
        _ => {}
    }
    out
}

pub fn xautoclaim(m: &mut Mix) -> Argv {
    let mut out = argv!["XAUTOCLAIM", m.key(Kind::Stream), group(m), consumer(m), 0usize, "0"];
    out.extend(argv!["COUNT", m.rng.range(1, 8)]);
    if m.rng.one_in(3) {
        out.extend(argv!["JUSTID"]);
    }
    out
}
