//! XADD and XTRIM with LIMIT.
//!
//! A master that trims approximately propagates what came of it as an exact trim, and leaves LIMIT where it was.
//! Only a server's link to its master may send that (`t_stream.c`, the check of LIMIT); everybody else is refused.
//! The exact length is already the outcome, so LIMIT is dropped.

use std::borrow::Cow;

use super::expiry::Rewrite;

fn is(arg: &[u8], word: &[u8]) -> bool {
    arg.eq_ignore_ascii_case(word)
}

/// What is to be run for an XADD or XTRIM.
pub(super) fn without_limit<'a>(argv: &[&'a [u8]]) -> Rewrite<'a> {
    let mut at = 2;
    let mut approximate = false;
    let mut limit = None;
    while let Some(arg) = argv.get(at) {
        if is(arg, b"MAXLEN") || is(arg, b"MINID") {
            at += 1;
            match argv.get(at) {
                Some(&b"~") => {
                    approximate = true;
                    at += 1;
                }
                Some(&b"=") => at += 1,
                _ => {}
            }
        } else if is(arg, b"LIMIT") {
            limit = Some(at);
            at += 1;
        } else if !["NOMKSTREAM", "KEEPREF", "DELREF", "ACKED"].iter().any(|w| is(arg, w.as_bytes())) {
            // The id of XADD: fields and values follow.
            break;
        }
        at += 1;
    }
    match limit {
        Some(limit) if !approximate => {
            let kept = argv.iter().enumerate().filter(|(i, _)| *i != limit && *i != limit + 1);
            Rewrite::One(kept.map(|(_, a)| Cow::Borrowed(*a)).collect())
        }
        _ => Rewrite::Same,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> String {
        let argv: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        match without_limit(&argv) {
            Rewrite::One(a) => {
                a.iter().map(|x| String::from_utf8_lossy(x).into_owned()).collect::<Vec<_>>().join(" ")
            }
            _ => line.to_owned(),
        }
    }

    #[test]
    fn limit_goes_from_exact_trims_only() {
        assert_eq!(run("XADD s MAXLEN = 5 LIMIT 100 1-1 LIMIT v"), "XADD s MAXLEN = 5 1-1 LIMIT v");
        assert_eq!(run("XADD s NOMKSTREAM minid 5 limit 0 1-1 a b"), "XADD s NOMKSTREAM minid 5 1-1 a b");
        assert_eq!(run("XTRIM s MAXLEN = 5 LIMIT 100"), "XTRIM s MAXLEN = 5");
        for same in
            ["XTRIM s MAXLEN ~ 5 LIMIT 100", "XADD s 1-1 LIMIT 3", "XADD s MAXLEN = 5 1-1 a b", "XADD s"]
        {
            assert_eq!(run(same), same);
        }
    }
}
