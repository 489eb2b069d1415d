//! XCLAIM on Redis 6.x propagates itself, at once and past the command that called it: replicas and AOF get it before
//! the DR.APPLY that it was a part of. Where it is an entry by itself the two say the same one after the other. Behind
//! other ops of its entry it would come before them: after `RENAME a b`, `RENAME c a`, an XCLAIM on `a` met what is `b`
//! by now, and left that group's last-delivered id too high at the replica.

use oplog_format::{encode_entry, EntryMeta, EntryRef, FormatError, OpWalk};

/// Parts an entry so that each XCLAIM, or the transaction that holds it, is one by itself. `None`: there is nothing to
/// part.
///
/// # Errors
/// [`FormatError`] where the payload is no run of ops.
pub fn apart(entry: &EntryRef<'_>) -> Result<Option<Vec<Vec<u8>>>, FormatError> {
    let payload = entry.payload;
    if !payload.windows(NAME.len()).any(|w| w.eq_ignore_ascii_case(NAME)) {
        return Ok(None);
    }
    let meta = entry.header.meta;
    let mut walk = OpWalk::new(payload, meta.db);
    let here = |walk: &OpWalk<'_>| Cut { at: walk.position(), db: walk.db(), count: walk.count() };
    let (mut cuts, mut unit, mut claims) = (vec![here(&walk)], here(&walk), false);
    while let Some(argv) = walk.step()? {
        claims |= argv.first().is_some_and(|name| name.eq_ignore_ascii_case(NAME));
        if walk.in_transaction() {
            continue;
        }
        let end = here(&walk);
        if std::mem::take(&mut claims) {
            cuts.extend([unit, end]);
        }
        unit = end;
    }
    cuts.push(here(&walk));
    cuts.dedup_by_key(|cut| cut.at);
    if cuts.len() <= 2 {
        return Ok(None);
    }
    let first = entry.header.first_op();
    let mut out = Vec::with_capacity(cuts.len());
    for (from, to) in cuts.iter().zip(cuts.iter().skip(1)) {
        let part = payload.get(from.at..to.at).unwrap_or_default();
        let last_op = first + to.at as u64 - 1;
        let mut frame = Vec::new();
        encode_entry(
            &EntryMeta { last_op, db: from.db, op_count: to.count - from.count, ..meta },
            part,
            &mut frame,
        )?;
        out.push(frame);
    }
    Ok(Some(out))
}

const NAME: &[u8] = b"XCLAIM";

#[derive(Clone, Copy)]
struct Cut {
    at: usize,
    db: u32,
    count: u32,
}

#[cfg(test)]
mod tests {
    use oplog_format::{decode_entry, Decoded};

    use super::*;

    fn op(words: &[&str]) -> Vec<u8> {
        let mut out = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            out.extend(format!("${}\r\n{word}\r\n", word.len()).into_bytes());
        }
        out
    }

    /// First and last op, database, count and payload.
    type Part = (u64, u64, u32, u32, Vec<u8>);

    fn parts(ops: &[&[&str]]) -> Option<Vec<Part>> {
        let payload: Vec<u8> = ops.iter().flat_map(|o| op(o)).collect();
        let mut frame = Vec::new();
        let last_op = 1000 + payload.len() as u64;
        let meta =
            EntryMeta { last_op, time_ms: 7, service_id: 3, db: 2, op_count: ops.len() as u32, flags: 0 };
        encode_entry(&meta, &payload, &mut frame).unwrap();
        let Decoded::Entry(entry) = decode_entry(&frame).unwrap() else { panic!("incomplete") };
        let read = |frame: &Vec<u8>| {
            let Decoded::Entry(e) = decode_entry(frame).unwrap() else { panic!("incomplete") };
            let m = e.header.meta;
            assert_eq!((m.time_ms, m.service_id), (7, 3));
            (e.header.first_op(), m.last_op, m.db, m.op_count, e.payload.to_vec())
        };
        apart(&entry).unwrap().map(|all| all.iter().map(read).collect())
    }

    #[test]
    fn a_claim_is_an_entry_by_itself() {
        assert_eq!(parts(&[&["SET", "a", "b"], &["DEL", "xclaim"]]), None);
        assert_eq!(parts(&[&["xclaim", "s", "g"]]), None);
        let set = ["SET", "a", "b"];
        let select = ["SELECT", "5"];
        let claim = ["XCLAIM", "s", "g"];
        let all = parts(&[&select, &set, &claim, &set, &["MULTI"], &claim, &["EXEC"]]).unwrap();
        assert_eq!(all.first().unwrap().0, 1001);
        assert!(all.windows(2).all(|w| w[0].1 + 1 == w[1].0));
        assert_eq!(all.iter().map(|p| (p.2, p.3)).collect::<Vec<_>>(), [(2, 2), (5, 1), (5, 1), (5, 3)]);
        assert_eq!(all[1].4, op(&claim));
        assert_eq!(all[3].4, [op(&["MULTI"]), op(&claim), op(&["EXEC"])].concat());
    }
}
