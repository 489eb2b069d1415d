//! DR._REBASE: one slice of releasing held expiries.

use std::ffi::c_int;
use std::time::{Duration, Instant};

use super::api::{CallReply, Ctx};
use super::internal::{comes_too_late, is_own, refuse, TOO_LATE};
use super::{call, shared};
use crate::apply::rebase::{slice, Cursor, Keyspace, Work};
use crate::apply::ServerCaps;
use crate::runtime::now_ms;

/// DR._REBASE db cursor budget_us: scans and releases until the budget is spent; replies with the next cursor (`0` at
/// the end), the number of expiries released and of keys seen. Reading and setting an expiry are one command, so
/// that no client comes between.
pub fn rebase(ctx: Ctx, args: &[&[u8]]) -> c_int {
    if !is_own(ctx) {
        return refuse(ctx);
    }
    if comes_too_late(ctx) {
        return ctx.reply_error(TOO_LATE);
    }
    let [_, db, cursor, budget] = args else {
        return ctx.reply_error("ERR usage: DR._REBASE db cursor budget_us");
    };
    let number = |b: &[u8]| std::str::from_utf8(b).ok().and_then(|t| t.parse::<u64>().ok());
    let (Some(db), Some(budget)) = (number(db).and_then(|d| u32::try_from(d).ok()), number(budget)) else {
        return ctx.reply_error("ERR DR._REBASE takes numbers");
    };
    let (Some(mut cursor), Some(shared)) = (Cursor::decode(cursor), shared()) else {
        return ctx.reply_error("ERR not a cursor of DR._REBASE");
    };
    let before = ctx.selected();
    let done = if ctx.select(db) {
        let until = Instant::now() + Duration::from_micros(budget);
        slice(&mut Calls { ctx, caps: shared.caps(), until }, &mut cursor)
    } else {
        Err(format!("database {db} does not exist"))
    };
    ctx.select(before);
    match done {
        Ok(Work { released, scanned }) => {
            let int = |n| i64::try_from(n).unwrap_or(i64::MAX);
            ctx.reply_array(3);
            ctx.reply_bytes(&cursor.encode());
            ctx.reply_int(int(released));
            ctx.reply_int(int(scanned))
        }
        Err(e) => ctx.reply_error(&format!("ERR {e}")),
    }
}

/// The database that is selected, for the release of single keys.
pub fn keyspace(ctx: Ctx, caps: ServerCaps) -> impl Keyspace {
    Calls { ctx, caps, until: Instant::now() }
}

/// The selected database, by the server's commands.
struct Calls {
    ctx: Ctx,
    caps: ServerCaps,
    until: Instant,
}

impl Calls {
    fn call(&self, argv: &[&[u8]], flags: &str) -> Result<CallReply, String> {
        let name = || String::from_utf8_lossy(argv.first().copied().unwrap_or_default()).into_owned();
        match call::call(self.ctx, argv, flags) {
            None => Err(format!("{} is not available", name())),
            Some(reply) if reply.is_error() => {
                Err(format!("{}: {}", name(), String::from_utf8_lossy(reply.bytes())))
            }
            Some(reply) => Ok(reply),
        }
    }

    /// A step of SCAN or HSCAN.
    fn scan_call(&self, argv: &[&[u8]]) -> Result<(Vec<u8>, Vec<Vec<u8>>), String> {
        let reply = self.call(argv, "")?;
        let (Some(next), Some(all)) = (reply.element(0), reply.element(1)) else {
            return Err("SCAN replied with something else".into());
        };
        let items = (0..all.len()).filter_map(|i| all.element(i)).map(|e| e.bytes().to_vec()).collect();
        Ok((next.bytes().to_vec(), items))
    }
}

impl Keyspace for Calls {
    fn scan(&mut self, cursor: &[u8]) -> Result<(Vec<u8>, Vec<Vec<u8>>), String> {
        self.scan_call(&[b"SCAN", cursor, b"COUNT", b"20"])
    }

    fn expiry(&mut self, key: &[u8]) -> Option<i64> {
        if self.caps.valkey || self.caps.version >= 0x07_00_00 {
            let reply = call::call(self.ctx, &[b"PEXPIRETIME", key], "")?;
            return Some(reply.int()).filter(|ms| *ms >= 0);
        }
        // By the remaining time and the clock: may be a millisecond late, never early.
        let left = call::call(self.ctx, &[b"PTTL", key], "")?.int();
        (left >= 0).then(|| left.saturating_add(now_ms()))
    }

    fn set_expiry(&mut self, key: &[u8], ms: i64) -> Result<(), String> {
        if ms <= now_ms() {
            // PEXPIREAT would free the value within this slice.
            return self.call(&[b"UNLINK", key], "!").map(|_| ());
        }
        self.call(&[b"PEXPIREAT", key, ms.to_string().as_bytes()], "!").map(|_| ())
    }

    fn has_timed_fields(&mut self, key: &[u8]) -> bool {
        let since = if self.caps.valkey { 0x09_00_00 } else { 0x07_04_00 };
        if self.caps.version < since {
            return false;
        }
        let hash = call::call(self.ctx, &[b"TYPE", key], "").is_some_and(|r| r.bytes() == b"hash");
        // Both servers store a hash with timed fields in another way.
        hash && call::call(self.ctx, &[b"OBJECT", b"ENCODING", key], "")
            .is_some_and(|r| r.bytes() != b"listpack")
    }

    fn scan_fields(&mut self, key: &[u8], cursor: &[u8]) -> Result<(Vec<u8>, Vec<Vec<u8>>), String> {
        match self.scan_call(&[b"HSCAN", key, cursor, b"COUNT", b"20", b"NOVALUES"]) {
            Err(e) if e.contains("WRONGTYPE") => Ok((b"0".to_vec(), Vec::new())),
            other => other,
        }
    }

    fn field_expiries(&mut self, key: &[u8], fields: &[&[u8]]) -> Result<Vec<i64>, String> {
        let count = fields.len().to_string();
        let head: [&[u8]; 4] = [b"HPEXPIRETIME", key, b"FIELDS", count.as_bytes()];
        let reply = self.call(&[&head, fields].concat(), "")?;
        Ok((0..reply.len()).map(|i| reply.element(i).map_or(-1, |e| e.int())).collect())
    }

    fn set_field_expiry(&mut self, key: &[u8], ms: i64, fields: &[&[u8]]) -> Result<(), String> {
        let (when, count) = (ms.to_string(), fields.len().to_string());
        let head: [&[u8]; 5] = [b"HPEXPIREAT", key, when.as_bytes(), b"FIELDS", count.as_bytes()];
        self.call(&[&head, fields].concat(), "!").map(|_| ())
    }

    fn spent(&mut self) -> bool {
        Instant::now() >= self.until
    }
}
