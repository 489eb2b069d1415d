//! What the feed makes ready of a long entry before the main thread gets it.

use oplog_format::{parse_op, Arg, OpScan, ENTRY_HEADER_LEN};

use super::expiry::Unit;
use super::handoff::{self, Batch, Entry, Prepared};
use super::like_integer;

/// Values of so many bytes are made ready. Shorter ones the main thread makes faster itself, of memory that it has just
/// freed.
const VALUE_BYTES: usize = 16 * 1024;

/// The entry for a slot; `None` where entries go by the connection.
#[must_use]
pub fn entry(frame: &[u8]) -> Option<Batch> {
    if !handoff::is_possible() {
        return None;
    }
    let payload = frame.get(ENTRY_HEADER_LEN..)?;
    let values =
        if handoff::takes_values() { values(payload, VALUE_BYTES, Prepared::new) } else { Vec::new() };
    Some(Batch::Entry(Entry { frame: Prepared::new(frame)?, values }))
}

/// The values of `least` bytes and more that SETs store as they are, with their places. What is no op ends it: whoever
/// applies the entry finds it and tells.
fn values<T>(payload: &[u8], least: usize, make: impl Fn(&[u8]) -> Option<T>) -> Vec<(usize, T)> {
    let mut found = Vec::new();
    let mut args: Vec<Arg> = Vec::with_capacity(8);
    let mut at = 0usize;
    while let Some(rest) = payload.get(at..).filter(|r| !r.is_empty()) {
        let Ok(OpScan::Complete { len }) = parse_op(rest, &mut args) else { break };
        if let Some(value) = stored_value(&args, rest) {
            let text = value.of(rest);
            if let Some(made) = Some(text).filter(|t| t.len() >= least && !like_integer(t)).and_then(&make) {
                found.push((at + value.start, made));
            }
        }
        at += len;
    }
    found
}

/// The value of a SET without options or with an expiry only.
fn stored_value(args: &[Arg], op: &[u8]) -> Option<Arg> {
    let is = |arg: &Arg, word: &[u8]| arg.of(op).eq_ignore_ascii_case(word);
    match args {
        [name, _, value] if is(name, b"SET") => Some(*value),
        [name, _, value, option, _] if is(name, b"SET") && Unit::of_option(option.of(op)).is_some() => {
            Some(*value)
        }
        [name, _, _, value] if is(name, b"SETEX") || is(name, b"PSETEX") => Some(*value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_with_their_places() {
        let lines = [
            "SET a one",
            "SET b 12",
            "set c two PXAT 5",
            "SET d three NX",
            "SET e four NX EX 5",
            "SETEX f 5 five",
            "RPUSH g six",
            "SET h EX EX 7",
        ];
        let mut payload = Vec::new();
        for line in lines {
            let argv: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            crate::local::push_command(&mut payload, &argv);
        }
        payload.extend_from_slice(b"*3\r\n$3\r\nSET");
        let found = values(&payload, 3, |text| Some(text.to_vec()));
        let texts: Vec<&[u8]> = found.iter().map(|(_, text)| text.as_slice()).collect();
        assert_eq!(texts, [&b"one"[..], b"two", b"five"]);
        for (at, text) in &found {
            assert_eq!(&payload[*at..*at + text.len()], text.as_slice());
        }
    }
}
