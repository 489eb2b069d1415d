//! Rewrites every command that sets an expiry: relative times become absolute ones by the time at which the
//! source ran the command, and HOLD is added while linked.
//!
//! 6.0 and 6.2 propagate relative times, 7.0 and later absolute ones; both forms are handled whatever the source.

use std::borrow::Cow;

use super::ttl::{hold, hold_field};
use super::ServerCaps;

/// Arguments of a command.
pub type Argv<'a> = Vec<Cow<'a, [u8]>>;

/// What is to be run instead of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rewrite<'a> {
    /// The command as it is.
    Same,
    /// This one.
    One(Argv<'a>),
    /// These, in order.
    Many(Vec<Argv<'a>>),
}

/// How times become absolute.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// When the source ran the command, Unix milliseconds.
    pub time_ms: i64,
    /// Whether HOLD is added.
    pub hold: bool,
    /// Which server runs it.
    pub caps: ServerCaps,
}

#[derive(Clone, Copy)]
enum Unit {
    Seconds,
    Millis,
}

impl Clock {
    fn absolute(&self, value: &[u8], unit: Unit, relative: bool) -> Option<i64> {
        let n: i64 = std::str::from_utf8(value).ok()?.trim().parse().ok()?;
        let ms = match unit {
            Unit::Seconds => n.checked_mul(1000)?,
            Unit::Millis => n,
        };
        if relative {
            ms.checked_add(self.time_ms)
        } else {
            Some(ms)
        }
    }

    fn key(&self, value: &[u8], unit: Unit, relative: bool) -> Option<Vec<u8>> {
        let ms = self.absolute(value, unit, relative)?;
        let ms = if self.hold { hold(ms) } else { ms };
        Some(ms.to_string().into_bytes())
    }

    fn field(&self, value: &[u8], unit: Unit, relative: bool) -> Option<Vec<u8>> {
        let ms = self.absolute(value, unit, relative)?;
        let ms = if self.hold { hold_field(ms) } else { ms };
        Some(ms.to_string().into_bytes())
    }
}

/// `EX`, `PX`, `EXAT` or `PXAT`: unit, and whether relative.
fn option(arg: &[u8]) -> Option<(Unit, bool)> {
    let is = |n: &[u8]| arg.eq_ignore_ascii_case(n);
    if is(b"EX") {
        Some((Unit::Seconds, true))
    } else if is(b"PX") {
        Some((Unit::Millis, true))
    } else if is(b"EXAT") {
        Some((Unit::Seconds, false))
    } else if is(b"PXAT") {
        Some((Unit::Millis, false))
    } else {
        None
    }
}

fn borrowed<'a>(argv: &[&'a [u8]]) -> Argv<'a> {
    argv.iter().map(|a| Cow::Borrowed(*a)).collect()
}

fn text(s: &'static [u8]) -> Cow<'static, [u8]> {
    Cow::Borrowed(s)
}

/// What is to be run for `argv`. Payloads of RESTORE with field expiries are not looked into here.
#[must_use]
pub fn rewrite<'a>(argv: &[&'a [u8]], clock: &Clock) -> Rewrite<'a> {
    let Some(name) = argv.first().filter(|n| n.len() <= 16) else { return Rewrite::Same };
    let mut lower = [0u8; 16];
    let Some(slot) = lower.get_mut(..name.len()) else { return Rewrite::Same };
    slot.copy_from_slice(name);
    slot.make_ascii_lowercase();
    let rewritten = match &*slot {
        b"set" => set(argv, clock),
        b"setex" => setex(argv, clock, Unit::Seconds),
        b"psetex" => setex(argv, clock, Unit::Millis),
        b"getex" => getex(argv, clock),
        b"expire" => expire(argv, clock, Unit::Seconds, true),
        b"pexpire" => expire(argv, clock, Unit::Millis, true),
        b"expireat" => expire(argv, clock, Unit::Seconds, false),
        b"pexpireat" => expire(argv, clock, Unit::Millis, false),
        b"restore" | b"restore-asking" => restore(argv, clock),
        b"hexpire" => hexpire(argv, clock, Unit::Seconds, true),
        b"hpexpire" => hexpire(argv, clock, Unit::Millis, true),
        b"hexpireat" => hexpire(argv, clock, Unit::Seconds, false),
        b"hpexpireat" => hexpire(argv, clock, Unit::Millis, false),
        b"hsetex" | b"hgetex" => field_options(argv, clock),
        b"msetex" => msetex(argv, clock),
        _ => None,
    };
    rewritten.unwrap_or(Rewrite::Same)
}

fn set<'a>(argv: &[&'a [u8]], clock: &Clock) -> Option<Rewrite<'a>> {
    let at = argv.iter().skip(3).position(|a| option(a).is_some())? + 3;
    let (unit, relative) = option(argv.get(at)?)?;
    let when = clock.key(argv.get(at + 1)?, unit, relative)?;
    if clock.caps.set_pxat() {
        let mut out = borrowed(argv);
        *out.get_mut(at)? = text(b"PXAT");
        *out.get_mut(at + 1)? = Cow::Owned(when);
        return Some(Rewrite::One(out));
    }
    let mut plain = borrowed(argv);
    plain.drain(at..at + 2);
    let key = Cow::Borrowed(*argv.get(1)?);
    Some(Rewrite::Many(vec![plain, vec![text(b"PEXPIREAT"), key, Cow::Owned(when)]]))
}

fn setex<'a>(argv: &[&'a [u8]], clock: &Clock, unit: Unit) -> Option<Rewrite<'a>> {
    let [_, key, time, value] = *argv else { return None };
    let when = Cow::Owned(clock.key(time, unit, true)?);
    let (key, value) = (Cow::Borrowed(key), Cow::Borrowed(value));
    if clock.caps.set_pxat() {
        return Some(Rewrite::One(vec![text(b"SET"), key, value, text(b"PXAT"), when]));
    }
    let set = vec![text(b"SET"), key.clone(), value];
    Some(Rewrite::Many(vec![set, vec![text(b"PEXPIREAT"), key, when]]))
}

fn getex<'a>(argv: &[&'a [u8]], clock: &Clock) -> Option<Rewrite<'a>> {
    let (unit, relative) = option(argv.get(2)?)?;
    let when = clock.key(argv.get(3)?, unit, relative)?;
    Some(Rewrite::One(vec![text(b"PEXPIREAT"), Cow::Borrowed(*argv.get(1)?), Cow::Owned(when)]))
}

/// Conditions (NX, XX, GT, LT) are dropped: the source has decided.
fn expire<'a>(argv: &[&'a [u8]], clock: &Clock, unit: Unit, relative: bool) -> Option<Rewrite<'a>> {
    let when = clock.key(argv.get(2)?, unit, relative)?;
    Some(Rewrite::One(vec![text(b"PEXPIREAT"), Cow::Borrowed(*argv.get(1)?), Cow::Owned(when)]))
}

fn restore<'a>(argv: &[&'a [u8]], clock: &Clock) -> Option<Rewrite<'a>> {
    let absttl = argv.iter().skip(4).any(|a| a.eq_ignore_ascii_case(b"ABSTTL"));
    let time = argv.get(2)?;
    if *time == b"0" {
        return None;
    }
    let when = clock.key(time, Unit::Millis, !absttl)?;
    let mut out = borrowed(argv);
    *out.get_mut(2)? = Cow::Owned(when);
    if !absttl {
        out.push(text(b"ABSTTL"));
    }
    Some(Rewrite::One(out))
}

fn hexpire<'a>(argv: &[&'a [u8]], clock: &Clock, unit: Unit, relative: bool) -> Option<Rewrite<'a>> {
    let when = clock.field(argv.get(2)?, unit, relative)?;
    let mut out = borrowed(argv);
    *out.get_mut(0)? = text(b"HPEXPIREAT");
    *out.get_mut(2)? = Cow::Owned(when);
    Some(Rewrite::One(out))
}

/// HSETEX and HGETEX: options stand before FIELDS.
fn field_options<'a>(argv: &[&'a [u8]], clock: &Clock) -> Option<Rewrite<'a>> {
    let fields = argv.iter().skip(2).position(|a| a.eq_ignore_ascii_case(b"FIELDS"))? + 2;
    let at = argv.get(2..fields)?.iter().position(|a| option(a).is_some())? + 2;
    let (unit, relative) = option(argv.get(at)?)?;
    let when = clock.field(argv.get(at + 1)?, unit, relative)?;
    let mut out = borrowed(argv);
    *out.get_mut(at)? = text(b"PXAT");
    *out.get_mut(at + 1)? = Cow::Owned(when);
    Some(Rewrite::One(out))
}

/// MSETEX numkeys key value [key value ...] [options]
fn msetex<'a>(argv: &[&'a [u8]], clock: &Clock) -> Option<Rewrite<'a>> {
    let keys: usize = std::str::from_utf8(argv.get(1)?).ok()?.parse().ok()?;
    let from = keys.checked_mul(2)?.checked_add(2)?;
    let at = argv.get(from..)?.iter().position(|a| option(a).is_some())? + from;
    let (unit, relative) = option(argv.get(at)?)?;
    let when = clock.key(argv.get(at + 1)?, unit, relative)?;
    let mut out = borrowed(argv);
    *out.get_mut(at)? = text(b"PXAT");
    *out.get_mut(at + 1)? = Cow::Owned(when);
    Some(Rewrite::One(out))
}

#[cfg(test)]
mod tests {
    use super::super::ttl::{HOLD_FIELD_MS, HOLD_MS};
    use super::*;

    const T: i64 = 1_700_000_000_000;

    fn clock(version: u32) -> Clock {
        Clock { time_ms: T, hold: true, caps: ServerCaps { valkey: false, version } }
    }

    fn run(line: &str, version: u32) -> Vec<String> {
        let argv: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let join = |a: &Argv<'_>| {
            a.iter().map(|x| String::from_utf8_lossy(x).into_owned()).collect::<Vec<_>>().join(" ")
        };
        match rewrite(&argv, &clock(version)) {
            Rewrite::Same => vec![line.to_owned()],
            Rewrite::One(a) => vec![join(&a)],
            Rewrite::Many(all) => all.iter().map(join).collect(),
        }
    }

    #[test]
    fn every_form_becomes_absolute_and_held() {
        let k = |ms: i64| ms + HOLD_MS;
        let f = |ms: i64| ms + HOLD_FIELD_MS;
        let cases = [
            ("SET k v EX 5", format!("SET k v PXAT {}", k(T + 5000))),
            ("set k v NX px 5 GET", format!("set k v NX PXAT {} GET", k(T + 5))),
            ("SET k EX PXAT 1700000009000", format!("SET k EX PXAT {}", k(1_700_000_009_000))),
            ("SET k v EXAT 1700000009", format!("SET k v PXAT {}", k(1_700_000_009_000))),
            ("SET k v KEEPTTL", "SET k v KEEPTTL".into()),
            ("SET k v", "SET k v".into()),
            ("SETEX k 7 v", format!("SET k v PXAT {}", k(T + 7000))),
            ("PSETEX k 7 v", format!("SET k v PXAT {}", k(T + 7))),
            ("GETEX k EX 7", format!("PEXPIREAT k {}", k(T + 7000))),
            ("GETEX k PERSIST", "GETEX k PERSIST".into()),
            ("EXPIRE k 7 GT", format!("PEXPIREAT k {}", k(T + 7000))),
            ("PEXPIRE k 7", format!("PEXPIREAT k {}", k(T + 7))),
            ("EXPIREAT k 1700000001", format!("PEXPIREAT k {}", k(1_700_000_001_000))),
            ("PEXPIREAT k 1700000001000 LT", format!("PEXPIREAT k {}", k(1_700_000_001_000))),
            ("RESTORE k 0 p REPLACE", "RESTORE k 0 p REPLACE".into()),
            ("RESTORE k 50 p REPLACE", format!("RESTORE k {} p REPLACE ABSTTL", k(T + 50))),
            (
                "RESTORE k 1700000001000 p ABSTTL FREQ 3",
                format!("RESTORE k {} p ABSTTL FREQ 3", k(1_700_000_001_000)),
            ),
            ("HEXPIRE h 5 NX FIELDS 1 a", format!("HPEXPIREAT h {} NX FIELDS 1 a", f(T + 5000))),
            (
                "HPEXPIREAT h 1700000001000 FIELDS 2 a b",
                format!("HPEXPIREAT h {} FIELDS 2 a b", f(1_700_000_001_000)),
            ),
            ("HSETEX h FNX EX 5 FIELDS 1 EX v", format!("HSETEX h FNX PXAT {} FIELDS 1 EX v", f(T + 5000))),
            ("HSETEX h KEEPTTL FIELDS 1 PX v", "HSETEX h KEEPTTL FIELDS 1 PX v".into()),
            ("HGETEX h PX 5 FIELDS 1 a", format!("HGETEX h PXAT {} FIELDS 1 a", f(T + 5))),
            ("MSETEX 2 EX 1 b 2 PX 9", format!("MSETEX 2 EX 1 b 2 PXAT {}", k(T + 9))),
            ("PERSIST k", "PERSIST k".into()),
            ("DEL k", "DEL k".into()),
        ];
        for (line, expected) in cases {
            assert_eq!(run(line, 0x07_00_0f), [expected], "{line}");
        }
    }

    #[test]
    fn before_6_2_the_expiry_follows_the_set() {
        let at = T + 5000 + HOLD_MS;
        assert_eq!(
            run("SET k v XX EX 5", 0x06_00_10),
            ["SET k v XX".to_owned(), format!("PEXPIREAT k {at}")]
        );
        assert_eq!(run("SETEX k 5 v", 0x06_00_10), ["SET k v".to_owned(), format!("PEXPIREAT k {at}")]);
    }
}
