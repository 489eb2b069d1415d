//! Forms that carry the expiry of a key.

use std::borrow::Cow;

use super::expiry::{number, parse_integer, with_pxat, Argv, Clock, Rewrite, Unit, NO_NUMBER};
use super::ttl::{Scope, MAX_FIELD_MS};
use crate::snapshot::reader::MIN_VALKEY_VERSION;
use crate::snapshot::split::{pieces, Command, PieceOptions};
use crate::snapshot::{Flavor, SnapshotError};

/// `SET key value [options]`.
pub(super) fn set<'a>(argv: &[&'a [u8]], clock: &Clock) -> Rewrite<'a> {
    // Nearly every SET has no option.
    if argv.len() <= 3 {
        return Rewrite::Same;
    }
    let Some((at, unit, value)) = find_expiry(argv, 3) else { return Rewrite::Same };
    let Some(ms) = clock.expiry(value, unit, Scope::Key) else { return NO_NUMBER };
    if clock.caps.set_pxat() {
        return if clock.keeps(unit) { Rewrite::Same } else { Rewrite::One(with_pxat(argv, at, ms)) };
    }
    let rest = argv.iter().enumerate().filter(|(i, _)| *i != at && *i != at + 1);
    set_then_expire(rest.map(|(_, a)| Cow::Borrowed(*a)).collect(), ms)
}

/// `SETEX key seconds value` and `PSETEX key milliseconds value`.
pub(super) fn setex<'a>(argv: &[&'a [u8]], unit: Unit, clock: &Clock) -> Rewrite<'a> {
    let [_, key, time, value] = argv else { return Rewrite::Same };
    let Some(ms) = clock.expiry(time, unit, Scope::Key) else { return NO_NUMBER };
    let mut out: Argv<'a> = vec![Cow::Borrowed(b"SET"), Cow::Borrowed(key), Cow::Borrowed(value)];
    if !clock.caps.set_pxat() {
        return set_then_expire(out, ms);
    }
    out.extend([Cow::Borrowed(&b"PXAT"[..]), number(ms)]);
    Rewrite::One(out)
}

fn set_then_expire(set: Argv<'_>, ms: i64) -> Rewrite<'_> {
    let key = set.get(1).cloned().unwrap_or_default();
    Rewrite::Many(vec![set, vec![Cow::Borrowed(b"PEXPIREAT"), key, number(ms)]])
}

/// `EXPIRE key seconds [NX | XX | GT | LT]` and its like. The condition is dropped: it was met at the source, and
/// here the present expiry may be one that is not held, during a recovery.
pub(super) fn expire<'a>(argv: &[&'a [u8]], unit: Unit, clock: &Clock) -> Rewrite<'a> {
    let [_, key, time, ..] = argv else { return Rewrite::Same };
    let Some(ms) = clock.expiry(time, unit, Scope::Key) else { return NO_NUMBER };
    if clock.keeps(unit) {
        return Rewrite::Same;
    }
    Rewrite::One(vec![Cow::Borrowed(b"PEXPIREAT"), Cow::Borrowed(key), number(ms)])
}

/// `GETEX key [options]`. Servers propagate its effect; this is for completeness.
pub(super) fn getex<'a>(argv: &[&'a [u8]], clock: &Clock) -> Rewrite<'a> {
    let (Some((_, unit, value)), Some(key)) = (find_expiry(argv, 2), argv.get(1)) else {
        return Rewrite::Same;
    };
    let Some(ms) = clock.expiry(value, unit, Scope::Key) else { return NO_NUMBER };
    Rewrite::One(vec![Cow::Borrowed(b"PEXPIREAT"), Cow::Borrowed(key), number(ms)])
}

/// `MSETEX count key value [key value ..] [options]` of Redis 8.4.
pub(super) fn msetex<'a>(argv: &[&'a [u8]], clock: &Clock) -> Rewrite<'a> {
    let count = argv.get(1).and_then(|n| parse_integer(n)).and_then(|n| usize::try_from(n).ok());
    let options = count.and_then(|n| n.checked_mul(2)).and_then(|n| n.checked_add(2));
    let Some(options) = options else { return Rewrite::Refused("the number of keys is not a number") };
    let Some((at, unit, value)) = find_expiry(argv, options) else { return Rewrite::Same };
    match clock.expiry(value, unit, Scope::Key) {
        None => NO_NUMBER,
        Some(_) if clock.keeps(unit) => Rewrite::Same,
        Some(ms) => Rewrite::One(with_pxat(argv, at, ms)),
    }
}

/// The option that gives an expiry: where it stands, its unit, its value. Looks from `from` on.
fn find_expiry<'a>(argv: &[&'a [u8]], from: usize) -> Option<(usize, Unit, &'a [u8])> {
    let mut at = from;
    while let Some(option) = argv.get(at) {
        if let Some(unit) = Unit::of_option(option) {
            return argv.get(at + 1).map(|value| (at, unit, *value));
        }
        at += if takes_value(option) { 2 } else { 1 };
    }
    None
}

/// Options of SET besides the expiry that are followed by a value, which may look like anything: the
/// comparisons of Valkey 8.1 and Redis 8.4.
fn takes_value(option: &[u8]) -> bool {
    [&b"IFEQ"[..], b"IFNE", b"IFDEQ", b"IFDNE"].iter().any(|o| option.eq_ignore_ascii_case(o))
}

/// `RESTORE key ttl payload [REPLACE] [ABSTTL] [IDLETIME n | FREQ n]`.
pub(super) fn restore<'a>(argv: &[&'a [u8]], clock: &Clock) -> Rewrite<'a> {
    let [_, key, ttl, payload, options @ ..] = argv else { return Rewrite::Same };
    let absolute = options.iter().any(|o| o.eq_ignore_ascii_case(b"ABSTTL"));
    let unit = if absolute { Unit::UnixMillis } else { Unit::Millis };
    // 0 stands for no expiry.
    let expiry = match parse_integer(ttl) {
        None => return NO_NUMBER,
        Some(0) => None,
        Some(_) => clock.expiry(ttl, unit, Scope::Key),
    };
    if clock.hold {
        if let Some(fields) = timed_fields(key, payload, clock) {
            return by_field(key, fields, expiry);
        }
    }
    let (Some(ms), false) = (expiry, clock.keeps(unit)) else { return Rewrite::Same };
    let mut out: Argv<'a> = argv.iter().map(|a| Cow::Borrowed(*a)).collect();
    if let Some(slot) = out.get_mut(2) {
        *slot = number(ms);
    }
    if !absolute {
        out.push(Cow::Borrowed(b"ABSTTL"));
    }
    Rewrite::One(out)
}

/// Bytes behind the value in a payload: RDB version and CRC64.
const PAYLOAD_TAIL: usize = 2 + 8;

/// The commands that make up the hash in a payload, with its field expiries held; `None` where it has none.
fn timed_fields<'k>(
    key: &'k [u8],
    payload: &'k [u8],
    clock: &Clock,
) -> Option<impl Iterator<Item = Result<Command, SnapshotError>> + 'k> {
    let (type_byte, rest) = payload.split_first()?;
    let value_len = rest.len().checked_sub(PAYLOAD_TAIL)?;
    let (value, tail) = rest.split_at_checked(value_len)?;
    let version = u16::from_le_bytes(*tail.first_chunk()?);
    let flavor = if version < MIN_VALKEY_VERSION { Flavor::Redis } else { Flavor::Valkey };
    held_fields(flavor, *type_byte, value, key, !clock.caps.valkey)
}

fn by_field<'a>(
    key: &'a [u8],
    fields: impl Iterator<Item = Result<Command, SnapshotError>>,
    expiry: Option<i64>,
) -> Rewrite<'a> {
    let mut all: Vec<Argv<'a>> = vec![vec![Cow::Borrowed(b"DEL"), Cow::Borrowed(key)]];
    for command in fields {
        match command {
            Ok(command) => all.push(command.into_iter().map(Cow::Owned).collect()),
            Err(_) => return Rewrite::Refused("the payload is no hash"),
        }
    }
    if let Some(ms) = expiry {
        all.push(vec![Cow::Borrowed(b"PEXPIREAT"), Cow::Borrowed(key), number(ms)]);
    }
    Rewrite::Many(all)
}

/// The commands that make up a hash with field expiries, these held; `None` for every other value. Where the
/// server is Redis, `limited`, an expiry beyond what its HPEXPIREAT takes is cut to that.
pub(super) fn held_fields<'k>(
    flavor: Flavor,
    type_byte: u8,
    value: &'k [u8],
    key: &'k [u8],
    limited: bool,
) -> Option<impl Iterator<Item = Result<Command, SnapshotError>> + 'k> {
    let timed_only = PieceOptions {
        min_bytes: usize::MAX,
        min_elements: u64::MAX,
        // Nothing is below 0: expiries come as they are, whatever the size.
        field_hold_ms: Some(0),
        ..PieceOptions::default()
    };
    let commands = pieces(flavor, type_byte, value, key, timed_only)?;
    Some(commands.map(move |command| {
        let mut command = command?;
        if let [name, _, at, ..] = command.as_mut_slice() {
            if name == b"HPEXPIREAT" {
                let ms = Scope::Field.held(parse_integer(at).unwrap_or(0));
                *at = number(if limited { ms.min(MAX_FIELD_MS) } else { ms }).into_owned();
            }
        }
        Ok(command)
    }))
}
