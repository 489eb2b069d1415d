//! Runs the ops of one entry.

use std::borrow::Cow;

use oplog_format::{parse_op, Arg, EntryRef, OpId, OpScan};

use super::expiry::{rewrite, Argv, Clock, Rewrite};
use super::ServerCaps;

/// Runs commands on the server.
pub trait Executor {
    /// Selects a database.
    ///
    /// # Errors
    /// In words.
    fn select(&mut self, db: u32) -> Result<(), String>;
    /// Runs a command.
    ///
    /// # Errors
    /// The server's words.
    fn call(&mut self, argv: &[&[u8]]) -> Result<(), String>;
    /// Runs `SET key value`, as [`Self::call`] would.
    ///
    /// # Errors
    /// The server's words.
    fn set(&mut self, name: &[u8], key: &[u8], value: &[u8]) -> Result<(), String> {
        self.call(&[name, key, value])
    }
    /// Runs `SET key value PXAT ms`, as [`Self::call`] would.
    ///
    /// # Errors
    /// The server's words.
    fn set_until(&mut self, argv: &[&[u8]; 5]) -> Result<(), String> {
        self.call(argv)
    }
}

/// How an entry is applied.
#[derive(Debug, Clone, Copy)]
pub struct ApplyContext {
    /// Which server applies.
    pub caps: ServerCaps,
    /// Whether HOLD is added to expiries.
    pub hold: bool,
}

/// An op that fails here and did not at the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Divergence {
    /// The op.
    pub op_id: OpId,
    /// Name of its command.
    pub command: String,
    /// The server's words.
    pub error: String,
    /// Bytes of the payload whose ops are applied; ends before the transaction that the op belongs to.
    pub prefix_len: usize,
    /// Whether commands behind the prefix have run: the dataset then stands at no op.
    pub beyond: bool,
}

/// Applies an entry; returns the number of commands run.
///
/// # Errors
/// [`Divergence`] at the first op that fails; nothing behind it has run.
pub fn apply_entry(
    entry: &EntryRef<'_>,
    exec: &mut dyn Executor,
    context: &ApplyContext,
) -> Result<u64, Box<Divergence>> {
    let time_ms = i64::try_from(entry.header.meta.time_ms).unwrap_or(i64::MAX);
    let clock = Clock { time_ms, hold: context.hold, caps: context.caps };
    let payload = entry.payload;
    let mut args: Vec<Arg> = Vec::with_capacity(8);
    let mut argv: Vec<&[u8]> = Vec::with_capacity(8);
    let (mut at, mut ran, mut in_transaction) = (0usize, 0u64, false);
    // Length of what is applied and stands for itself, and the commands in it.
    let mut whole = (0usize, 0u64);
    let diverged = |at: usize, len: usize, argv: &[&[u8]], error: String, whole: (usize, u64), ran: u64| {
        let name = argv.first().copied().unwrap_or_default();
        Box::new(Divergence {
            op_id: entry.header.first_op() + (at + len) as u64 - 1,
            command: String::from_utf8_lossy(name).to_uppercase(),
            error,
            prefix_len: whole.0,
            beyond: ran > whole.1,
        })
    };
    exec.select(entry.header.meta.db).map_err(|e| diverged(0, 1, &[b"SELECT"], e, whole, 0))?;
    while let Some(rest) = payload.get(at..).filter(|r| !r.is_empty()) {
        argv.clear();
        let len = match parse_op(rest, &mut args) {
            Ok(OpScan::Complete { len }) => len,
            Ok(OpScan::Incomplete { .. }) => {
                return Err(diverged(at, 1, &argv, "the op is cut off".into(), whole, ran));
            }
            Err(e) => return Err(diverged(at, 1, &argv, e.to_string(), whole, ran)),
        };
        argv.extend(args.iter().map(|a| a.of(rest)));
        match kind(&argv) {
            Kind::Skip => {}
            Kind::Select => {
                let db = argv.get(1).and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| d.parse().ok());
                let done = db.ok_or_else(|| "not a database".to_owned()).and_then(|db| exec.select(db));
                done.map_err(|e| diverged(at, len, &argv, e, whole, ran))?;
            }
            Kind::Multi => in_transaction = true,
            Kind::Exec => in_transaction = false,
            Kind::Script => {
                let error =
                    "a script itself is in the stream, not its effects: the source must not switch script \
                             effects replication off (lua-replicate-commands, redis.replicate_commands)";
                return Err(diverged(at, len, &argv, error.into(), whole, ran));
            }
            Kind::Run => {
                run(exec, &argv, &clock, &mut ran).map_err(|e| diverged(at, len, &argv, e, whole, ran))?;
            }
        }
        at += len;
        if !in_transaction {
            whole = (at, ran);
        }
    }
    Ok(ran)
}

fn run(exec: &mut dyn Executor, argv: &[&[u8]], clock: &Clock, ran: &mut u64) -> Result<(), String> {
    if let [name, key, value] = *argv {
        // No option, so no expiry to convert.
        if name.eq_ignore_ascii_case(b"SET") {
            exec.set(name, key, value)?;
            *ran += 1;
            return Ok(());
        }
    }
    let mut call = |argv: &[&[u8]]| {
        match argv.first_chunk::<5>().filter(|_| argv.len() == 5) {
            Some(argv @ [name, .., option, _])
                if name.eq_ignore_ascii_case(b"SET") && option.eq_ignore_ascii_case(b"PXAT") =>
            {
                exec.set_until(argv)?;
            }
            _ => exec.call(argv)?,
        }
        *ran += 1;
        Ok(())
    };
    let mut owned = |argv: &Argv<'_>| call(&argv.iter().map(Cow::as_ref).collect::<Vec<_>>());
    match rewrite(argv, clock) {
        Rewrite::Same => call(argv),
        Rewrite::One(a) => owned(&a),
        Rewrite::Many(all) => all.iter().try_for_each(owned),
        Rewrite::Refused(why) => Err(why.to_owned()),
    }
}

enum Kind {
    Run,
    Skip,
    Select,
    Multi,
    Exec,
    Script,
}

fn kind(argv: &[&[u8]]) -> Kind {
    let name = argv.first().copied().unwrap_or_default();
    let is = |n: &[u8]| name.eq_ignore_ascii_case(n);
    match name.len() {
        4 if is(b"PING") => Kind::Skip,
        4 if is(b"EXEC") => Kind::Exec,
        4 if is(b"EVAL") => Kind::Script,
        5 if is(b"MULTI") => Kind::Multi,
        5 if is(b"FCALL") => Kind::Script,
        6 if is(b"SELECT") => Kind::Select,
        7 if is(b"EVALSHA") => Kind::Script,
        7 if is(b"PUBLISH") => {
            // Sentinels of this side would take those of the other for theirs.
            let hello = argv.get(1).is_some_and(|c| c.eq_ignore_ascii_case(b"__sentinel__:hello"));
            if hello {
                Kind::Skip
            } else {
                Kind::Run
            }
        }
        // CLUSTER SETSLOT, which Valkey propagates, is about the nodes of the source's cluster.
        7 if is(b"CLUSTER") => Kind::Skip,
        8 if is(b"REPLCONF") => Kind::Skip,
        // What a master says of itself is for its own replicas.
        9 if is(b"DR._SHARD") => Kind::Skip,
        _ => Kind::Run,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oplog_format::{decode_entry, encode_entry, Decoded, EntryMeta};

    #[derive(Default)]
    struct Record {
        lines: Vec<String>,
        fail: Option<&'static str>,
    }

    impl Executor for Record {
        fn select(&mut self, db: u32) -> Result<(), String> {
            self.lines.push(format!("@{db}"));
            Ok(())
        }

        fn call(&mut self, argv: &[&[u8]]) -> Result<(), String> {
            let line =
                argv.iter().map(|a| String::from_utf8_lossy(a).into_owned()).collect::<Vec<_>>().join(" ");
            if self.fail.is_some_and(|f| line.starts_with(f)) {
                return Err("WRONGTYPE".into());
            }
            self.lines.push(line);
            Ok(())
        }
    }

    fn payload(lines: &[&str]) -> Vec<u8> {
        let mut out = Vec::new();
        for line in lines {
            let argv: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            crate::local::push_command(&mut out, &argv);
        }
        out
    }

    fn apply(lines: &[&str], exec: &mut Record) -> Result<u64, Box<Divergence>> {
        let payload = payload(lines);
        let mut frame = Vec::new();
        let last_op = 1000 + payload.len() as u64;
        let meta = EntryMeta { last_op, time_ms: 5, db: 2, op_count: 1, service_id: 0, flags: 0 };
        encode_entry(&meta, &payload, &mut frame).unwrap();
        let Decoded::Entry(e) = decode_entry(&frame).unwrap() else { panic!("incomplete") };
        let context = ApplyContext { caps: ServerCaps { valkey: false, version: 0x07_00_00 }, hold: false };
        apply_entry(&e, exec, &context)
    }

    #[test]
    fn ops_run_in_their_database_and_the_rest_is_dropped() {
        let mut r = Record::default();
        let lines = [
            "PING",
            "SET a 1",
            "SELECT 3",
            "MULTI",
            "INCR a",
            "EXEC",
            "REPLCONF GETACK *",
            "PUBLISH __sentinel__:hello x",
            "PUBLISH news x",
            "CLUSTER SETSLOT 1 NODE x",
            "DR._SHARD x",
        ];
        assert_eq!(apply(&lines, &mut r).unwrap(), 3);
        assert_eq!(r.lines, ["@2", "SET a 1", "@3", "INCR a", "PUBLISH news x"]);
    }

    #[test]
    fn the_first_failure_stops_and_says_what_is_whole() {
        let mut r = Record { fail: Some("LPUSH"), ..Record::default() };
        let d = apply(&["SET a 1", "LPUSH a x", "SET b 1"], &mut r).unwrap_err();
        let first = payload(&["SET a 1"]).len();
        assert_eq!((d.command.as_str(), d.error.as_str(), d.prefix_len), ("LPUSH", "WRONGTYPE", first));
        assert!(!d.beyond);
        assert_eq!(d.op_id, 1000 + payload(&["SET a 1", "LPUSH a x"]).len() as u64);
        let mut r = Record { fail: Some("LPUSH"), ..Record::default() };
        let d = apply(&["MULTI", "SET a 1", "LPUSH a x", "EXEC"], &mut r).unwrap_err();
        assert_eq!((d.prefix_len, d.beyond), (0, true));
        let d = apply(&["EVAL return 0"], &mut r).unwrap_err();
        assert!(d.error.contains("script effects"), "{}", d.error);
    }
}
