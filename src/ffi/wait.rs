//! DR.WAIT: blocks until a client's writes are durable.

use std::ffi::c_int;
use std::sync::atomic::Ordering;

use super::api::Ctx;
use super::{operator, shared};
use crate::runtime::shared::{Mode, Request, Shared};

/// DR.WAIT targets milliseconds
pub fn wait(ctx: Ctx, args: &[&[u8]]) -> c_int {
    let parsed = match args {
        [_, targets, ms] => number(targets).zip(number(ms)),
        _ => return ctx.reply_error("ERR usage: DR.WAIT targets milliseconds"),
    };
    let Some((targets, ms)) = parsed else {
        return ctx.reply_error("ERR DR.WAIT takes two numbers: targets (0 to 15) and milliseconds");
    };
    let Some(targets) = u32::try_from(targets).ok().filter(|t| *t <= 15) else {
        return ctx.reply_error(&format!("ERR {targets} targets, at most 15"));
    };
    let Some(shared) = shared() else {
        return ctx.reply_error("ERR redisdr is not loaded completely");
    };
    let ident = shared.ident.load();
    if ident.mode != Mode::Source || !ident.positioned {
        return ctx.reply_error("ERR DR.WAIT is for a source whose log is attached, see DR.STATUS");
    }
    let offset = ctx.server_info("replication").and_then(|i| i.signed("master_repl_offset")).unwrap_or(0);
    let op = u64::try_from(ident.base + offset).unwrap_or(0);
    let reached = count(shared, op);
    if targets == 0 && reached.0 || targets > 0 && reached.1 >= targets || operator::cannot_block(ctx) {
        return ctx.reply_int(if targets == 0 { i64::from(reached.0) } else { i64::from(reached.1) });
    }
    operator::ask(ctx, |respond| Request::Wait(op, targets, ms, respond))
}

/// Whether `op` is durable here, and on how many targets.
fn count(shared: &Shared, op: u64) -> (bool, u32) {
    let status = shared.status.load();
    let n = status.targets.iter().filter(|t| t.durable_op_id >= op).count();
    (shared.durable.load(Ordering::Acquire) >= op, u32::try_from(n).unwrap_or(u32::MAX))
}

fn number(b: &[u8]) -> Option<u64> {
    std::str::from_utf8(b).ok()?.parse().ok()
}
