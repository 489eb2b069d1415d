//! Commands on keys of any type, on databases, and channels.

use super::mix::{argv, Argv, Kind, Mix, DATABASES};

pub fn del(m: &mut Mix) -> Argv {
    removal(m, "DEL")
}
pub fn unlink(m: &mut Mix) -> Argv {
    removal(m, "UNLINK")
}

fn removal(m: &mut Mix, name: &str) -> Argv {
    let mut out = argv![name, m.any_key()];
    for _ in 0..m.rng.range(0, 2) {
        out.push(m.any_key());
    }
    if m.rng.one_in(3) {
        out.extend(argv![format!("nx:{}", m.rng.below(40)), format!("nx:{}", m.rng.below(40))]);
    }
    out
}

fn condition(m: &mut Mix, out: &mut Argv) {
    if m.caps.from(7, 0) && m.rng.one_in(3) {
        let option = *m.rng.pick(&["NX", "XX", "GT", "LT"]);
        out.extend(argv![option]);
    }
}

pub fn expire(m: &mut Mix) -> Argv {
    let mut out = argv!["EXPIRE", m.any_key(), m.ttl_s(true)];
    condition(m, &mut out);
    out
}
pub fn pexpire(m: &mut Mix) -> Argv {
    let mut out = argv!["PEXPIRE", m.any_key(), m.ttl_ms()];
    condition(m, &mut out);
    out
}
pub fn expireat(m: &mut Mix) -> Argv {
    let mut out = argv!["EXPIREAT", m.any_key(), m.now_ms() / 1000 + m.ttl_s(true)];
    condition(m, &mut out);
    out
}
pub fn pexpireat(m: &mut Mix) -> Argv {
    let mut out = argv!["PEXPIREAT", m.any_key(), m.now_ms() + m.ttl_ms()];
    condition(m, &mut out);
    out
}

pub fn persist(m: &mut Mix) -> Argv {
    argv!["PERSIST", m.any_key()]
}

/// Both names of one kind, so that types stay where commands expect them.
fn two_of_a_kind(m: &mut Mix) -> (Vec<u8>, Vec<u8>) {
    let kind = m.any_kind();
    (m.key_of(kind), m.key_of(kind))
}

pub fn rename(m: &mut Mix) -> Argv {
    let (from, to) = two_of_a_kind(m);
    argv!["RENAME", from, to]
}
pub fn renamenx(m: &mut Mix) -> Argv {
    let (from, to) = two_of_a_kind(m);
    argv!["RENAMENX", from, to]
}

pub fn mv(m: &mut Mix) -> Argv {
    argv!["MOVE", m.any_key(), m.rng.below(DATABASES)]
}

pub fn copy(m: &mut Mix) -> Argv {
    let (from, to) = two_of_a_kind(m);
    let mut out = argv!["COPY", from, to];
    if m.rng.one_in(2) {
        out.extend(argv!["DB", m.rng.below(DATABASES)]);
    }
    if m.rng.one_in(2) {
        out.extend(argv!["REPLACE"]);
    }
    out
}

/// A read, needed for its reply: RESTORE puts it elsewhere.
pub fn dump(m: &mut Mix) -> Argv {
    argv!["DUMP", m.any_key()]
}

fn restoring(m: &mut Mix, name: &str) -> Argv {
    let n = m.dumps.len();
    if n == 0 {
        return dump(m);
    }
    let dumped = &m.dumps[m.rng.below(n as u64) as usize];
    let (kind, payload) = (dumped.kind, dumped.payload.clone());
    let key = m.key_of(kind);
    let mut out = match m.rng.below(3) {
        0 => argv![name, key, 0usize, payload],
        1 => argv![name, key, m.ttl_ms(), payload],
        _ => argv![name, key, m.now_ms() + m.ttl_ms(), payload, "ABSTTL"],
    };
    if !m.rng.one_in(4) {
        out.extend(argv!["REPLACE"]);
    }
    if m.rng.one_in(6) {
        out.extend(argv!["IDLETIME", m.rng.below(1000)]);
    }
    out
}

pub fn restore(m: &mut Mix) -> Argv {
    restoring(m, "RESTORE")
}
pub fn restore_asking(m: &mut Mix) -> Argv {
    restoring(m, "RESTORE-ASKING")
}

fn flush(m: &mut Mix, name: &str) -> Argv {
    let mut out = argv![name];
    match m.rng.below(3) {
        0 => out.extend(argv!["ASYNC"]),
        1 if m.caps.from(6, 2) => out.extend(argv!["SYNC"]),
        _ => {}
    }
    out
}

pub fn flushdb(m: &mut Mix) -> Argv {
    flush(m, "FLUSHDB")
}
pub fn flushall(m: &mut Mix) -> Argv {
    flush(m, "FLUSHALL")
}

pub fn swapdb(m: &mut Mix) -> Argv {
    argv!["SWAPDB", m.rng.below(DATABASES), m.rng.below(DATABASES)]
}

pub fn select(m: &mut Mix) -> Argv {
    argv!["SELECT", m.rng.below(DATABASES)]
}

pub fn publish(m: &mut Mix) -> Argv {
    argv!["PUBLISH", "news\0", m.value()]
}
pub fn spublish(m: &mut Mix) -> Argv {
    argv!["SPUBLISH", "shard news", m.value()]
}

/// Vector sets (Redis 8). Each element is new: 8.0 changes the vector of a known one without telling its replicas.
pub fn vadd(m: &mut Mix) -> Argv {
    let (key, element) = (m.key_of(Kind::Vector), format!("element\0{:x}", m.rng.next()).into_bytes());
    if m.vectors.len() >= 8 {
        m.vectors.pop_front();
    }
    m.vectors.push_back((key.clone(), element.clone()));
    let mut out = argv!["VADD", key, "VALUES", 3usize];
    out.extend((0..3).map(|_| format!("{}.5", m.rng.range(-9, 9)).into_bytes()).collect::<Vec<_>>());
    out.push(element);
    if m.rng.one_in(3) {
        out.extend(argv!["SETATTR", r#"{"year":1999}"#]);
    }
    out
}

/// One added lately.
fn vector(m: &mut Mix) -> (Vec<u8>, Vec<u8>) {
    match m.vectors.len() {
        0 => (m.key_of(Kind::Vector), b"none".to_vec()),
        n => m.vectors[m.rng.below(n as u64) as usize].clone(),
    }
}

pub fn vrem(m: &mut Mix) -> Argv {
    let (key, element) = vector(m);
    argv!["VREM", key, element]
}

pub fn vsetattr(m: &mut Mix) -> Argv {
    let (key, element) = vector(m);
    argv!["VSETATTR", key, element, format!(r#"{{"n":{}}}"#, m.rng.below(99))]
}
