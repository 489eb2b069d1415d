//! Arguments of DR.APPLY and DR._LOAD, encoded by the feed and decoded by the handler.

use oplog_format::{codec, decode_entry, Decoded, EntryRef, History, Lineage, OpId};

/// One key of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadKey<'a> {
    /// Its name.
    pub key: &'a [u8],
    /// Absolute expiry, Unix milliseconds, as it is to be set; negative: none.
    pub expire_ms: i64,
    /// RESTORE payload.
    pub payload: &'a [u8],
}

/// A step of loading a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadCommand<'a> {
    /// Asks whether the server can restore such a value; changes nothing.
    Try {
        /// RESTORE payload.
        payload: &'a [u8],
    },
    /// Empties the dataset.
    Begin,
    /// Empties it of what has been loaded; nothing is being loaded any more.
    Drop,
    /// Restores keys.
    Keys {
        /// Database.
        db: u32,
        /// The keys.
        keys: Vec<LoadKey<'a>>,
    },
    /// As [`LoadCommand::Keys`], of a batch in memory.
    Ref {
        /// Its token, see [`super::handoff`].
        token: u64,
    },
    /// Runs one command.
    Command {
        /// Database.
        db: u32,
        /// The command.
        argv: Vec<&'a [u8]>,
    },
    /// Runs commands, one after the other.
    Commands {
        /// Database.
        db: u32,
        /// The commands.
        all: Vec<Vec<&'a [u8]>>,
    },
    /// A piece of a string that is being put together.
    Part {
        /// Bytes of the whole string.
        total: u64,
        /// Where the piece belongs; 0 begins a string.
        at: u64,
        /// The piece.
        bytes: &'a [u8],
    },
    /// Asks whether the string is complete.
    Ready,
    /// Makes a key of the string.
    Text {
        /// Database.
        db: u32,
        /// The key's name.
        key: &'a [u8],
        /// Bytes of the string.
        total: u64,
    },
    /// The dataset is whole and stands at this op.
    End {
        /// Last op in it.
        op_id: OpId,
        /// Histories up to there.
        lineage: Lineage,
    },
    /// A new history begins: replicas note it in their logs.
    History {
        /// The history.
        history: History,
        /// Its first op.
        first_op: OpId,
    },
}

fn number<T: std::str::FromStr>(b: &[u8], what: &str) -> Result<T, String> {
    let text = std::str::from_utf8(b).ok().and_then(|t| t.parse().ok());
    text.ok_or_else(|| format!("{what} is not a number"))
}

/// Decodes DR.APPLY first_op frame.
///
/// # Errors
/// What is wrong, in words.
pub fn decode_apply<'a>(args: &[&'a [u8]]) -> Result<EntryRef<'a>, String> {
    let [_, first, frame] = args else {
        return Err("DR.APPLY takes an op id and an entry".to_owned());
    };
    let first: OpId = number(first, "op id")?;
    match decode_entry(frame) {
        Ok(Decoded::Entry(entry)) if entry.frame.len() != frame.len() => {
            Err("bytes behind the entry".to_owned())
        }
        Ok(Decoded::Entry(entry)) if entry.header.first_op() != first => {
            Err(format!("entry begins at op {}, not {first}", entry.header.first_op()))
        }
        Ok(Decoded::Entry(entry)) => Ok(entry),
        Ok(Decoded::Incomplete { .. }) => Err("entry is cut off".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}

/// Decodes a DR._LOAD command.
///
/// # Errors
/// What is wrong, in words.
pub fn decode_load<'a>(args: &[&'a [u8]]) -> Result<LoadCommand<'a>, String> {
    let step = args.get(1).copied().unwrap_or_default();
    let rest = args.get(2..).unwrap_or_default();
    match (step, rest) {
        (b"TRY", [payload]) => Ok(LoadCommand::Try { payload }),
        (b"BEGIN", []) => Ok(LoadCommand::Begin),
        (b"DROP", []) => Ok(LoadCommand::Drop),
        (b"KEYS", [db, keys @ ..]) if keys.len() % 3 == 0 && !keys.is_empty() => {
            let parse = |k: &[&'a [u8]]| match k {
                [key, expire, payload] => Ok(LoadKey { key, expire_ms: number(expire, "expiry")?, payload }),
                _ => Err("three arguments a key".to_owned()),
            };
            let keys: Result<Vec<LoadKey<'a>>, String> = keys.chunks(3).map(parse).collect();
            Ok(LoadCommand::Keys { db: number(db, "database")?, keys: keys? })
        }
        (b"PACK", [db, packed]) => {
            Ok(LoadCommand::Keys { db: number(db, "database")?, keys: unpack_keys(packed)? })
        }
        (b"REF", [token]) => Ok(LoadCommand::Ref { token: number(token, "token")? }),
        (b"CMD", [db, argv @ ..]) if !argv.is_empty() => {
            Ok(LoadCommand::Command { db: number(db, "database")?, argv: argv.to_vec() })
        }
        (b"CMDS", [db, rest @ ..]) if !rest.is_empty() => {
            Ok(LoadCommand::Commands { db: number(db, "database")?, all: commands(rest)? })
        }
        (b"PART", [total, at, bytes]) => {
            let (total, at) = (number(total, "length")?, number(at, "place")?);
            let end = (bytes.len() as u64).checked_add(at);
            match !bytes.is_empty() && end.is_some_and(|end| end <= total) {
                true => Ok(LoadCommand::Part { total, at, bytes }),
                false => Err("a piece beyond its string".to_owned()),
            }
        }
        (b"READY", []) => Ok(LoadCommand::Ready),
        (b"TEXT", [db, key, total]) => {
            Ok(LoadCommand::Text { db: number(db, "database")?, key, total: number(total, "length")? })
        }
        (b"END", [op, lineage]) => Ok(LoadCommand::End {
            op_id: number(op, "op id")?,
            lineage: codec::decode(lineage).map_err(|e| e.to_string())?,
        }),
        (b"HISTORY", [history, op]) => Ok(LoadCommand::History {
            history: History::from_bytes(history).map_err(|e| e.to_string())?,
            first_op: number(op, "op id")?,
        }),
        _ => {
            Err("DR._LOAD TRY | BEGIN | KEYS | PACK | REF | CMD | CMDS | PART | READY | TEXT | END | DROP | HISTORY"
                .to_owned())
        }
    }
}

/// Bytes of a packed key before its name: length of the name, length of the payload, expiry.
const PACKED_HEAD: usize = 4 + 8 + 8;

/// Appends a key: u32 length of the name, u64 length of the payload, i64 expiry, name, payload.
///
/// # Errors
/// The name is longer than any server takes.
pub fn push_key(packed: &mut Vec<u8>, key: &LoadKey<'_>) -> Result<(), String> {
    let name = u32::try_from(key.key.len()).map_err(|_| "a key's name is too long".to_owned())?;
    packed.reserve(PACKED_HEAD + key.key.len() + key.payload.len());
    packed.extend_from_slice(&name.to_le_bytes());
    packed.extend_from_slice(&(key.payload.len() as u64).to_le_bytes());
    packed.extend_from_slice(&key.expire_ms.to_le_bytes());
    packed.extend_from_slice(key.key);
    packed.extend_from_slice(key.payload);
    Ok(())
}

/// The keys of what [`push_key`] has made.
///
/// # Errors
/// What is wrong, in words.
pub fn unpack_keys(mut packed: &[u8]) -> Result<Vec<LoadKey<'_>>, String> {
    let mut keys = Vec::new();
    while !packed.is_empty() {
        let (key, rest) = unpack_key(packed).ok_or("keys are cut off")?;
        keys.push(key);
        packed = rest;
    }
    if keys.is_empty() {
        return Err("no keys".to_owned());
    }
    Ok(keys)
}

fn unpack_key(packed: &[u8]) -> Option<(LoadKey<'_>, &[u8])> {
    let (name, rest) = packed.split_first_chunk::<4>()?;
    let (payload, rest) = rest.split_first_chunk::<8>()?;
    let (expire_ms, rest) = rest.split_first_chunk::<8>()?;
    let (key, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*name)).ok()?)?;
    let (payload, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*payload)).ok()?)?;
    Some((LoadKey { key, expire_ms: i64::from_le_bytes(*expire_ms), payload }, rest))
}

/// Commands, each behind the number of its arguments.
fn commands<'a>(mut rest: &[&'a [u8]]) -> Result<Vec<Vec<&'a [u8]>>, String> {
    let mut all = Vec::new();
    while let Some((count, args)) = rest.split_first() {
        let count: usize = number(count, "number of arguments")?;
        let (argv, others) = args.split_at_checked(count).ok_or("arguments are missing")?;
        if argv.is_empty() {
            return Err("a command without a name".to_owned());
        }
        all.push(argv.to_vec());
        rest = others;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_decoded_and_bad_ones_named() {
        let keys: [&[u8]; 6] = [b"DR._LOAD", b"KEYS", b"3", b"k", b"-1", b"payload"];
        assert_eq!(
            decode_load(&keys),
            Ok(LoadCommand::Keys {
                db: 3,
                keys: vec![LoadKey { key: b"k", expire_ms: -1, payload: b"payload" }]
            })
        );
        let mut packed = Vec::new();
        let two = [
            LoadKey { key: b"k", expire_ms: -1, payload: b"payload" },
            LoadKey { key: b"", expire_ms: i64::MAX, payload: b"" },
        ];
        two.iter().for_each(|k| push_key(&mut packed, k).unwrap());
        let pack: [&[u8]; 4] = [b"DR._LOAD", b"PACK", b"3", &packed];
        assert_eq!(decode_load(&pack), Ok(LoadCommand::Keys { db: 3, keys: two.to_vec() }));
        for len in (0..packed.len()).filter(|len| *len != PACKED_HEAD + 8) {
            assert!(unpack_keys(&packed[..len]).is_err(), "{len}");
        }
        for at in 0..12 {
            let mut huge = packed.clone();
            huge[at] = 0xff;
            assert!(unpack_keys(&huge).is_err(), "{at}");
        }
        let reference: [&[u8]; 3] = [b"DR._LOAD", b"REF", b"17"];
        assert_eq!(decode_load(&reference), Ok(LoadCommand::Ref { token: 17 }));
        let lineage = codec::encode(&Lineage::default()).unwrap();
        let end: [&[u8]; 4] = [b"DR._LOAD", b"END", b"77", &lineage];
        assert_eq!(decode_load(&end), Ok(LoadCommand::End { op_id: 77, lineage: Lineage::default() }));
        let two: [&[u8]; 9] = [b"DR._LOAD", b"CMDS", b"1", b"2", b"DEL", b"k", b"1", b"PING", b"0"];
        let all = vec![vec![&b"DEL"[..], b"k"], vec![&b"PING"[..]]];
        assert_eq!(decode_load(&two[..8]), Ok(LoadCommand::Commands { db: 1, all }));
        let part: [&[u8]; 5] = [b"DR._LOAD", b"PART", b"5", b"3", b"de"];
        assert_eq!(decode_load(&part), Ok(LoadCommand::Part { total: 5, at: 3, bytes: b"de" }));
        for bad in [
            &two[..],
            &two[..6].iter().chain(&[&b"5"[..]]).copied().collect::<Vec<_>>(),
            &[b"DR._LOAD", b"PART", b"5", b"4", b"de"],
            &[b"DR._LOAD", b"PART", b"5", b"4", b""],
            &[b"DR._LOAD", b"PART", b"5", b"18446744073709551615", b"x"],
            &[&b"DR._LOAD"[..], b"KEYS", b"3", b"k", b"-1"][..],
            &[b"DR._LOAD", b"KEYS", b"x", b"k", b"-1", b"p"],
            &[b"DR._LOAD", b"KEYS", b"0"],
            &[b"DR._LOAD", b"END", b"77", b"??"],
            &[b"DR._LOAD", b"CMD", b"0"],
            &[b"DR._LOAD", b"REF", b"-1"],
            &[b"DR._LOAD", b"PACK", b"3", b""],
            &[b"DR._LOAD", b"DANCE"],
            &[b"DR._LOAD"],
        ] {
            assert!(decode_load(bad).is_err());
        }
    }
}
