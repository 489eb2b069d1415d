//! Rewrites commands that carry an expiry.
//!
//! The log keeps what the source propagated. Redis 6.0 and 6.2 propagate relative expiries, later servers
//! absolute ones. Here every form becomes absolute and in milliseconds, and where `hold` is set, held (see
//! [`super::ttl`]). A relative expiry counts from the time at which the entry was captured.
//!
//! | form | becomes |
//! |---|---|
//! | `SET k v EX/PX/EXAT/PXAT n`, other options kept | `SET k v PXAT ms`; `SET`, `PEXPIREAT` before 6.2 |
//! | `SETEX k n v`, `PSETEX k n v` | the same |
//! | `GETEX k EX/PX/EXAT/PXAT n` | `PEXPIREAT k ms` |
//! | `MSETEX n k v .. EX/PX/EXAT/PXAT n` | `MSETEX n k v .. PXAT ms` |
//! | `[P]EXPIRE[AT] k n` with any condition | `PEXPIREAT k ms` |
//! | `H[P]EXPIRE[AT] k n`, conditions kept | `HPEXPIREAT k ms` |
//! | `HSETEX`, `HGETEX` with `EX/PX/EXAT/PXAT n` | with `PXAT ms` |
//! | `RESTORE k n payload`, options kept | `RESTORE k ms payload ABSTTL` |
//! | the same of a hash with field expiries | `DEL`, `HSET`, `HPEXPIREAT` .., `PEXPIREAT` |
//!
//! Two more commands are rewritten, so that what they free is freed by another thread: `DEL` becomes `UNLINK`,
//! `FLUSHALL` and `FLUSHDB` get `ASYNC`. The dataset and the events are the same.
//!
//! Commands that carry an expiry along without naming
//! it (COPY, RENAME, MOVE, SWAPDB, `SET KEEPTTL`, PERSIST, HPERSIST) need nothing: what they carry is held already.
//!
//! Valkey 9 propagates HPEXPIREAT with all fields that the client named, so its conditions count here, too. Redis
//! 7.4 and 8.0 propagate HINCRBYFLOAT of a field that expires as a plain HSET: as on a native replica, the field
//! then has no expiry here and goes with the source's HDEL.
//!
//! An expiry that is past is held like any other: the key or field is set, and the source's own DEL or HDEL
//! follows in the log.

use std::borrow::Cow;

use super::ttl::Scope;
use super::{expiry_hash, expiry_keys, ServerCaps};

/// Arguments of a command.
pub type Argv<'a> = Vec<Cow<'a, [u8]>>;

/// What to run instead of a command.
#[derive(Debug, PartialEq, Eq)]
pub enum Rewrite<'a> {
    /// The command itself.
    Same,
    /// This command.
    One(Argv<'a>),
    /// These commands, one after the other, with nothing in between.
    Many(Vec<Argv<'a>>),
    /// Nothing: no server can have executed this.
    Refused(&'static str),
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

/// How a number tells an expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Seconds,
    Millis,
    UnixSeconds,
    UnixMillis,
}

impl Unit {
    /// The unit that an option of SET and the like names.
    pub fn of_option(option: &[u8]) -> Option<Self> {
        let is = |word: &[u8]| option.eq_ignore_ascii_case(word);
        match option.len() {
            2 if is(b"EX") => Some(Self::Seconds),
            2 if is(b"PX") => Some(Self::Millis),
            4 if is(b"EXAT") => Some(Self::UnixSeconds),
            4 if is(b"PXAT") => Some(Self::UnixMillis),
            _ => None,
        }
    }
}

impl Clock {
    /// What to store for the expiry `text`, in milliseconds since 1970.
    pub(super) fn expiry(&self, text: &[u8], unit: Unit, scope: Scope) -> Option<i64> {
        // Wraps as Redis 6.0 does; later servers refuse what would overflow.
        let n = parse_integer(text)?;
        let at = match unit {
            Unit::Seconds => n.wrapping_mul(1000).wrapping_add(self.time_ms),
            Unit::Millis => n.wrapping_add(self.time_ms),
            Unit::UnixSeconds => n.wrapping_mul(1000),
            Unit::UnixMillis => n,
        };
        Some(if self.hold { scope.held(at) } else { at })
    }

    /// Whether a form with an absolute time in milliseconds stays as it is.
    pub(super) fn keeps(&self, unit: Unit) -> bool {
        !self.hold && unit == Unit::UnixMillis
    }
}

/// Not a number where an expiry stands.
pub(super) const NO_NUMBER: Rewrite<'static> = Rewrite::Refused("the expiry is not a number");

/// What is to be run for `argv`.
#[must_use]
pub fn rewrite<'a>(argv: &[&'a [u8]], clock: &Clock) -> Rewrite<'a> {
    let Some(name) = argv.first() else { return Rewrite::Same };
    let mut upper = [0u8; LONGEST];
    let Some(word) = upper.get_mut(..name.len()) else { return Rewrite::Same };
    word.copy_from_slice(name);
    word.make_ascii_uppercase();
    use Unit::{Millis, Seconds, UnixMillis, UnixSeconds};
    match &*word {
        b"SET" => expiry_keys::set(argv, clock),
        b"SETEX" => expiry_keys::setex(argv, Seconds, clock),
        b"PSETEX" => expiry_keys::setex(argv, Millis, clock),
        b"EXPIRE" => expiry_keys::expire(argv, Seconds, clock),
        b"PEXPIRE" => expiry_keys::expire(argv, Millis, clock),
        b"EXPIREAT" => expiry_keys::expire(argv, UnixSeconds, clock),
        b"PEXPIREAT" => expiry_keys::expire(argv, UnixMillis, clock),
        b"GETEX" => expiry_keys::getex(argv, clock),
        b"MSETEX" => expiry_keys::msetex(argv, clock),
        b"HEXPIRE" => expiry_hash::hexpire(argv, Seconds, clock),
        b"HPEXPIRE" => expiry_hash::hexpire(argv, Millis, clock),
        b"HEXPIREAT" => expiry_hash::hexpire(argv, UnixSeconds, clock),
        b"HPEXPIREAT" => expiry_hash::hexpire(argv, UnixMillis, clock),
        b"HSETEX" => expiry_hash::with_fields(argv, 2, clock),
        b"HGETEX" => expiry_hash::with_fields(argv, 1, clock),
        b"RESTORE" | b"RESTORE-ASKING" => expiry_keys::restore(argv, clock),
        b"XADD" | b"XTRIM" => super::stream_trim::without_limit(argv),
        b"DEL" if argv.len() > 1 => {
            let keys = argv.iter().skip(1).map(|key| Cow::Borrowed(*key));
            Rewrite::One(std::iter::once(Cow::Borrowed(&b"UNLINK"[..])).chain(keys).collect())
        }
        b"FLUSHALL" | b"FLUSHDB" => Rewrite::One(vec![Cow::Borrowed(*name), Cow::Borrowed(b"ASYNC")]),
        _ => Rewrite::Same,
    }
}

/// Longest name that is rewritten.
const LONGEST: usize = b"RESTORE-ASKING".len();

/// A decimal as servers read it: no plus sign, no spaces.
pub(super) fn parse_integer(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok().filter(|t| !t.starts_with('+'))?.parse().ok()
}

/// The text of a number, as an argument.
pub(super) fn number<'a>(n: i64) -> Cow<'a, [u8]> {
    Cow::Owned(n.to_string().into_bytes())
}

/// `argv` with the two arguments at `at` replaced by `PXAT` and the time.
pub(super) fn with_pxat<'a>(argv: &[&'a [u8]], at: usize, ms: i64) -> Argv<'a> {
    let mut out: Argv<'a> = argv.iter().map(|a| Cow::Borrowed(*a)).collect();
    if let Some([option, value]) = out.get_mut(at..at + 2) {
        *option = Cow::Borrowed(b"PXAT");
        *value = number(ms);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::ttl::{HOLD_FIELD_MS as FIELD_HOLD, HOLD_MS as KEY_HOLD};
    use super::*;

    const NOW: i64 = 1_700_000_000_123;
    const V60: ServerCaps = ServerCaps { valkey: false, version: 0x06_00_10 };
    const V74: ServerCaps = ServerCaps { valkey: false, version: 0x07_04_01 };

    fn run(line: &str, caps: ServerCaps, hold: bool) -> String {
        let argv: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let join = |args: &Argv<'_>| {
            let words: Vec<_> = args.iter().map(|a| String::from_utf8_lossy(a).into_owned()).collect();
            words.join(" ")
        };
        match rewrite(&argv, &Clock { time_ms: NOW, hold, caps }) {
            Rewrite::Same => "same".into(),
            Rewrite::One(args) => join(&args),
            Rewrite::Many(all) => all.iter().map(join).collect::<Vec<_>>().join("; "),
            Rewrite::Refused(why) => format!("refused: {why}"),
        }
    }

    /// `@k` stands for NOW + 5000 held as a key's expiry, `@f` as a field's, `@n` not held.
    fn check(cases: &[(&str, &str)], caps: ServerCaps, hold: bool) {
        let at = NOW + 5000;
        for (line, expected) in cases {
            let fill = |s: &str| {
                s.replace("@k", &(at + KEY_HOLD).to_string())
                    .replace("@f", &(at + FIELD_HOLD).to_string())
                    .replace("@n", &at.to_string())
            };
            assert_eq!(run(&fill(line), caps, hold), fill(expected), "{line}");
        }
    }

    #[test]
    fn every_form_of_a_key_is_held() {
        check(
            &[
                ("SET k v", "same"),
                ("SET k v NX", "same"),
                ("SET k v KEEPTTL", "same"),
                ("SET k EX XX KEEPTTL", "same"),
                ("SET k v EX 5", "SET k v PXAT @k"),
                ("set k v px 5000", "set k v PXAT @k"),
                ("SET k v PXAT @n", "SET k v PXAT @k"),
                ("SET k v NX PX 5000 GET", "SET k v NX PXAT @k GET"),
                ("SET k v IFEQ PX PX 5000", "SET k v IFEQ PX PXAT @k"),
                ("SETEX k 5 v", "SET k v PXAT @k"),
                ("PSETEX k 5000 v", "SET k v PXAT @k"),
                ("EXPIRE k 5", "PEXPIREAT k @k"),
                ("PEXPIRE k 5000 NX", "PEXPIREAT k @k"),
                ("PEXPIREAT k @n GT", "PEXPIREAT k @k"),
                ("GETEX k PX 5000", "PEXPIREAT k @k"),
                ("GETEX k PERSIST", "same"),
                ("MSETEX 2 PX 1 EX 2 NX PX 5000", "MSETEX 2 PX 1 EX 2 NX PXAT @k"),
                ("MSETEX 1 k v KEEPTTL", "same"),
                ("RESTORE k 0 payload-of-some-length", "same"),
                (
                    "RESTORE k 5000 payload-of-some-length REPLACE",
                    "RESTORE k @k payload-of-some-length REPLACE ABSTTL",
                ),
                (
                    "RESTORE k @n payload-of-some-length ABSTTL FREQ 3",
                    "RESTORE k @k payload-of-some-length ABSTTL FREQ 3",
                ),
                (
                    "RESTORE-ASKING k @n payload-of-some-length absttl",
                    "RESTORE-ASKING k @k payload-of-some-length absttl",
                ),
                ("PERSIST k", "same"),
                ("COPY k EX", "same"),
                ("RENAME a b", "same"),
                ("MOVE a 1", "same"),
            ],
            V74,
            true,
        );
    }

    #[test]
    fn seconds_become_milliseconds() {
        let at = 1_700_000_005_000 + KEY_HOLD;
        assert_eq!(run("EXPIREAT k 1700000005", V74, true), format!("PEXPIREAT k {at}"));
        assert_eq!(run("SET k v EXAT 1700000005", V74, true), format!("SET k v PXAT {at}"));
        let at = 1_700_000_005_000 + FIELD_HOLD;
        assert_eq!(
            run("HEXPIREAT k 1700000005 FIELDS 1 f", V74, true),
            format!("HPEXPIREAT k {at} FIELDS 1 f")
        );
    }

    #[test]
    fn every_form_of_a_field_is_held() {
        check(
            &[
                ("HEXPIRE k 5 NX FIELDS 2 a b", "HPEXPIREAT k @f NX FIELDS 2 a b"),
                ("HPEXPIRE k 5000 FIELDS 1 a", "HPEXPIREAT k @f FIELDS 1 a"),
                ("HPEXPIREAT k @n LT FIELDS 1 a", "HPEXPIREAT k @f LT FIELDS 1 a"),
                ("HSETEX k FNX EX 5 FIELDS 1 EX EX", "HSETEX k FNX PXAT @f FIELDS 1 EX EX"),
                ("HSETEX k FIELDS 2 EX 1 PX 2 PX 5000 FXX", "HSETEX k FIELDS 2 EX 1 PX 2 PXAT @f FXX"),
                ("HSETEX k KEEPTTL FIELDS 1 EX 5", "same"),
                ("HGETEX k PXAT @n FIELDS 1 PX", "HGETEX k PXAT @f FIELDS 1 PX"),
                ("HGETEX k PERSIST FIELDS 1 PX", "same"),
                ("HPERSIST k FIELDS 1 PX", "same"),
            ],
            V74,
            true,
        );
    }

    #[test]
    fn servers_before_6_2_get_two_commands() {
        check(
            &[
                ("SET k v EX 5 NX", "SET k v NX; PEXPIREAT k @k"),
                ("SET k v PXAT @n", "SET k v; PEXPIREAT k @k"),
                ("SETEX k 5 v", "SET k v; PEXPIREAT k @k"),
                ("EXPIRE k 5", "PEXPIREAT k @k"),
            ],
            V60,
            true,
        );
    }

    #[test]
    fn without_hold_only_relative_forms_change() {
        check(
            &[
                ("SET k v PX 5000", "SET k v PXAT @n"),
                ("SET k v PXAT @n", "same"),
                ("PEXPIREAT k @n", "same"),
                ("PEXPIRE k 5000", "PEXPIREAT k @n"),
                ("HPEXPIREAT k @n FIELDS 1 a", "same"),
                ("RESTORE k @n payload-of-some-length ABSTTL", "same"),
                ("RESTORE k 5000 payload-of-some-length", "RESTORE k @n payload-of-some-length ABSTTL"),
            ],
            V74,
            false,
        );
    }

    #[test]
    fn field_expiries_within_a_payload_are_held() {
        // Type 24: first expiry, then one up expiry, field and value of each.
        let mut raw = NOW.to_le_bytes().to_vec();
        raw.extend(b"\x03\x01\x01a\x011\x00\x01b\x012\x06\x01c\x013");
        let mut payload = Vec::new();
        crate::snapshot::restore_payload(24, &raw, 12, &mut payload);
        let argv: [&[u8]; 6] = [b"RESTORE", b"k", b"7", &payload, b"ABSTTL", b"REPLACE"];
        let clock = Clock { time_ms: NOW, hold: true, caps: V74 };
        let Rewrite::Many(all) = rewrite(&argv, &clock) else { panic!("not taken apart") };
        let lines: Vec<_> =
            all.iter().map(|a| String::from_utf8_lossy(&a.join(&b' ')).into_owned()).collect();
        let expected = [
            "DEL k".to_owned(),
            "HSET k a 1 b 2 c 3".to_owned(),
            format!("HPEXPIREAT k {} FIELDS 1 a", NOW + FIELD_HOLD),
            format!("HPEXPIREAT k {} FIELDS 1 c", NOW + 5 + FIELD_HOLD),
            format!("PEXPIREAT k {}", 7 + KEY_HOLD),
        ];
        assert_eq!(lines, expected);
        assert_eq!(rewrite(&argv, &Clock { hold: false, ..clock }), Rewrite::Same);
    }

    #[test]
    fn what_cannot_have_succeeded_is_refused() {
        for line in
            ["SET k v EX x", "EXPIRE k +5", "HPEXPIREAT k 1.5 FIELDS 1 a", "MSETEX x k v", "SETEX k  v"]
        {
            assert!(run(line, V74, true).starts_with("refused"), "{line}");
        }
    }
}
