//! Commands that only the module itself uses.

use std::ffi::c_int;
use std::sync::atomic::Ordering;

use redis_module::raw;

use super::api::{api, Ctx, OK};
use super::shared;

/// Whether the running command may act as the module: one of its own connections, the server's master link, or
/// the AOF being loaded.
pub fn is_own(ctx: Ctx) -> bool {
    let Some(shared) = shared() else { return false };
    shared.is_own_client(ctx.client_id()) || is_replayed(ctx)
}

/// Whether the running command comes from the master link.
pub fn is_from_master(ctx: Ctx) -> bool {
    let flags = ctx.flags();
    flags & raw::REDISMODULE_CTX_FLAGS_LOADING == 0 && flags & raw::REDISMODULE_CTX_FLAGS_REPLICATED != 0
}

/// Whether the running command comes from the master link or the AOF.
pub fn is_replayed(ctx: Ctx) -> bool {
    ctx.flags() & (raw::REDISMODULE_CTX_FLAGS_REPLICATED | raw::REDISMODULE_CTX_FLAGS_LOADING) != 0
}

/// Whether the module itself runs a command that changes data on what has become a replica meanwhile: only the
/// master's stream may.
pub fn comes_too_late(ctx: Ctx) -> bool {
    !is_replayed(ctx) && shared().is_some_and(|s| s.is_replica.load(Ordering::Acquire))
}

/// What such a command answers; its sender waits until it is stopped.
pub const TOO_LATE: &str = "TRYAGAIN this server has become a replica";

/// DR._AUTH secret: makes the connection one of the module's own.
pub fn auth(ctx: Ctx, args: &[&[u8]]) -> c_int {
    let Some(shared) = shared() else { return ctx.reply_error("ERR the module is not loaded") };
    let given = args.get(1).copied().unwrap_or_default();
    let wanted = shared.secret.0.as_deref().unwrap_or_default().as_bytes();
    // Constant time: the server is reachable by whoever reaches its port.
    let mut differs = u8::from(given.len() != wanted.len() || wanted.is_empty());
    differs |= given.iter().zip(wanted).fold(0, |d, (a, b)| d | (a ^ b));
    if differs != 0 || args.len() != 2 {
        return ctx.reply_error("ERR DR._AUTH is for the module's own connections");
    }
    let user = api!(RedisModule_CreateModuleUser(c"redisdr".as_ptr()) else std::ptr::null_mut());
    if user.is_null() {
        return ctx.reply_error("ERR no user could be made for the module's connection");
    }
    for rule in [c"on", c"allcommands", c"allkeys", c"allchannels"] {
        // 6.0 does not know channels; the other rules exist everywhere.
        let _ = api!(RedisModule_SetModuleUserACL(user, rule.as_ptr()) else 1);
    }
    let done = api!(RedisModule_AuthenticateClientWithUser(
        ctx.0, user, None, std::ptr::null_mut(), std::ptr::null_mut()) else 1);
    if done != OK {
        api!(RedisModule_FreeModuleUser(user) else ());
        return ctx.reply_error("ERR the server refused the module's user");
    }
    // The user lives as long as connections that use it: freeing it would drop them.
    shared.add_own_client(ctx.client_id());
    ctx.reply_int(i64::try_from(ctx.client_id()).unwrap_or(0))
}

/// DR._SELECT: propagates a PING in database 1 and one in 0, so that the stream says where it is.
pub fn force_select(ctx: Ctx, _args: &[&[u8]]) -> c_int {
    if !is_own(ctx) {
        return refuse(ctx);
    }
    let before = ctx.selected();
    for db in [1, 0] {
        if ctx.select(db) {
            ctx.replicate("PING", &[]);
        }
    }
    ctx.select(before);
    ctx.reply_simple("OK")
}

/// What a command that is the module's own says to others.
pub fn refuse(ctx: Ctx) -> c_int {
    ctx.reply_error("ERR this command is used by redisdr itself, see DR.HELP")
}

/// Stands in for a command that the gate refuses.
pub fn refused(ctx: Ctx, _args: &[&[u8]]) -> c_int {
    let text = shared().map(|s| s.gate.error());
    match text {
        Some(text) if !text.is_empty() => ctx.reply_error(&text),
        _ => ctx.reply_error("TRYAGAIN redisdr has just changed its state, send the command again"),
    }
}

/// DR._POSITION: last op in the dataset, or null.
pub fn position(ctx: Ctx, _args: &[&[u8]]) -> c_int {
    match shared() {
        Some(s) if is_own(ctx) && s.applied_known.load(Ordering::Acquire) => {
            ctx.reply_int(i64::try_from(s.applied.load(Ordering::Acquire)).unwrap_or(i64::MAX))
        }
        Some(_) if is_own(ctx) => ctx.reply_null(),
        _ => refuse(ctx),
    }
}
