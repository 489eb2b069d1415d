//! DR._REBASE: one slice of releasing held expiries.

use std::ffi::c_int;
use std::time::{Duration, Instant};

use super::api::Ctx;
use super::call;
use super::internal::{is_own, now_ms, refuse};
use crate::apply::ttl;

/// DR._REBASE db cursor budget_us: scans and releases until the budget is spent; replies with the next cursor, the
/// number of expiries released and of keys seen. Reading and setting an expiry are one command, so that no client
/// comes between.
pub fn rebase(ctx: Ctx, args: &[&[u8]]) -> c_int {
    if !is_own(ctx) {
        return refuse(ctx);
    }
    let [_, db, cursor, budget] = args else {
        return ctx.reply_error("ERR usage: DR._REBASE db cursor budget_us");
    };
    let number = |b: &[u8]| std::str::from_utf8(b).ok().and_then(|t| t.parse::<u64>().ok());
    let (Some(db), Some(budget)) = (number(db).and_then(|d| u32::try_from(d).ok()), number(budget)) else {
        return ctx.reply_error("ERR DR._REBASE takes numbers");
    };
    let before = ctx.selected();
    let done = slice(ctx, db, cursor, Duration::from_micros(budget));
    ctx.select(before);
    match done {
        Ok((next, released, seen)) => {
            ctx.reply_array(3);
            ctx.reply_bytes(&next);
            ctx.reply_int(released);
            ctx.reply_int(seen)
        }
        Err(e) => ctx.reply_error(&format!("ERR {e}")),
    }
}

type Slice = (Vec<u8>, i64, i64);

fn slice(ctx: Ctx, db: u32, cursor: &[u8], budget: Duration) -> Result<Slice, String> {
    if !ctx.select(db) {
        return Err(format!("database {db} does not exist"));
    }
    let until = Instant::now() + budget;
    let mut cursor = cursor.to_vec();
    let (mut released, mut seen) = (0, 0);
    loop {
        let reply = call::call(ctx, &[b"SCAN", &cursor, b"COUNT", b"20"], "").ok_or("SCAN is not available")?;
        let (Some(next), Some(keys)) = (reply.element(0), reply.element(1)) else {
            return Err(format!("SCAN: {}", String::from_utf8_lossy(reply.bytes())));
        };
        cursor = next.bytes().to_vec();
        for i in 0..keys.len() {
            if let Some(key) = keys.element(i) {
                released += i64::from(release(ctx, key.bytes())?);
                seen += 1;
            }
        }
        if cursor == b"0" || Instant::now() >= until {
            return Ok((cursor, released, seen));
        }
    }
}

/// Releases one key, where it is held.
fn release(ctx: Ctx, key: &[u8]) -> Result<bool, String> {
    let Some(expiry) = expiry_of(ctx, key) else { return Ok(false) };
    let Some(true_expiry) = ttl::released(expiry) else { return Ok(false) };
    let when = true_expiry.to_string();
    // A time that is past makes the server delete the key and propagate that.
    match call::call(ctx, &[b"PEXPIREAT", key, when.as_bytes()], "!") {
        Some(reply) if !reply.is_error() => Ok(true),
        Some(reply) => Err(format!("PEXPIREAT: {}", String::from_utf8_lossy(reply.bytes()))),
        None => Err("PEXPIREAT is not available".into()),
    }
}

/// Absolute expiry in milliseconds; before 7.0 by the remaining time and the clock.
fn expiry_of(ctx: Ctx, key: &[u8]) -> Option<i64> {
    if let Some(reply) = call::call(ctx, &[b"PEXPIRETIME", key], "") {
        if !reply.is_error() {
            return Some(reply.int()).filter(|t| *t >= 0);
        }
    }
    let reply = call::call(ctx, &[b"PTTL", key], "")?;
    let left = reply.int();
    (left >= 0).then(|| left + now_ms())
}
