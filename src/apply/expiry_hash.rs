//! Forms that carry the expiry of hash fields.

use std::borrow::Cow;

use super::expiry::{number, parse_integer, with_pxat, Argv, Clock, Rewrite, Unit, NO_NUMBER};
use super::ttl::Scope;

/// `HEXPIRE key seconds [NX | XX | GT | LT] FIELDS count field ..` and its like.
pub(super) fn hexpire<'a>(argv: &[&'a [u8]], unit: Unit, clock: &Clock) -> Rewrite<'a> {
    let [_, key, time, rest @ ..] = argv else { return Rewrite::Same };
    let Some(ms) = clock.expiry(time, unit, Scope::Field) else { return NO_NUMBER };
    if clock.keeps(unit) {
        return Rewrite::Same;
    }
    let mut out: Argv<'a> = Vec::with_capacity(argv.len());
    out.extend([Cow::Borrowed(&b"HPEXPIREAT"[..]), Cow::Borrowed(*key), number(ms)]);
    out.extend(rest.iter().map(|a| Cow::Borrowed(*a)));
    Rewrite::One(out)
}

/// `HSETEX key [FNX | FXX] [expiry] FIELDS count field value ..` with `per_field` 2, and
/// `HGETEX key [expiry] FIELDS count field ..` with 1. Servers take the parts in any order.
pub(super) fn with_fields<'a>(argv: &[&'a [u8]], per_field: usize, clock: &Clock) -> Rewrite<'a> {
    let mut at = 2;
    while let Some(option) = argv.get(at) {
        if option.eq_ignore_ascii_case(b"FIELDS") {
            let count = argv.get(at + 1).and_then(|n| parse_integer(n)).and_then(|n| usize::try_from(n).ok());
            let len = count.and_then(|n| n.checked_mul(per_field)).and_then(|n| n.checked_add(at + 2));
            let Some(next) = len else { return Rewrite::Refused("the number of fields is not a number") };
            at = next;
            continue;
        }
        let Some(unit) = Unit::of_option(option) else {
            at += 1;
            continue;
        };
        let Some(value) = argv.get(at + 1) else { return NO_NUMBER };
        return match clock.expiry(value, unit, Scope::Field) {
            None => NO_NUMBER,
            Some(_) if clock.keeps(unit) => Rewrite::Same,
            Some(ms) => Rewrite::One(with_pxat(argv, at, ms)),
        };
    }
    Rewrite::Same
}
