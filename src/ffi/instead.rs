//! DR._TTL and DR._FIRST: run a client's command where the server by itself would show what is held.

use std::ffi::c_int;

use redis_module::raw;

use super::api::{api, CallReply, Ctx, OK};
use super::held::{nobody, told_keys, Command};
use super::internal::{is_own, refuse};
use super::{acl, call, rebase, shared};
use crate::apply::release_key::release_key;
use crate::apply::{ttl, ServerCaps};
use crate::runtime::gate::{self, GateMode};
use crate::runtime::now_ms;

/// DR._TTL command args...: a command that reads. Expiries in its reply are shown without HOLD, and keys whose time is
/// over are not there for it.
pub fn true_ttl(ctx: Ctx, args: &[&[u8]]) -> c_int {
    if told_keys(ctx, args) {
        return OK;
    }
    let argv = args.get(1..).unwrap_or_default();
    let (Some(shared), Some(name)) = (shared(), argv.first().copied()) else { return refuse(ctx) };
    let caps = shared.caps();
    let shows_ttl = gate::shows_ttl(name);
    // Whoever calls this by hand must not get another command past fence and ACL.
    if !shows_ttl && (!shared.table.load().class_of(argv).read || is_ours(name)) {
        return refuse(ctx);
    }
    let command = Command::new(ctx, argv);
    let gone = command.gone(ctx, caps);
    if !shows_ttl {
        if command.keys().is_empty() {
            return refuse(ctx);
        }
        if gone.len() < command.keys().len() && !may_run(ctx, &command, name) {
            return no_permission(ctx, name);
        }
    }
    let others: Vec<Vec<u8>> = gone.iter().filter_map(|at| argv.get(*at)).map(|key| nobody(key)).collect();
    let mut argv = argv.to_vec();
    for (at, other) in gone.iter().zip(&others) {
        if let Some(slot) = argv.get_mut(*at) {
            *slot = other;
        }
    }
    match run(ctx, &argv, "", caps) {
        Ok(reply) if shows_ttl => correct(ctx, name, &reply, now_ms()),
        Ok(reply) => ctx.reply_call(&reply),
        Err(e) => ctx.reply_error(&e),
    }
}

/// DR._FIRST command args...: releases the command's keys, then runs it.
pub fn first(ctx: Ctx, args: &[&[u8]]) -> c_int {
    if told_keys(ctx, args) {
        return OK;
    }
    let argv = args.get(1..).unwrap_or_default();
    let (Some(shared), Some(name)) = (shared(), argv.first().copied()) else { return refuse(ctx) };
    let class = shared.table.load().class_of(argv);
    let open = matches!(shared.gate.mode(), GateMode::Releasing | GateMode::Open);
    // One that was queued before the fence, or is called by hand.
    let caps = shared.caps();
    let command = Command::new(ctx, argv);
    if !open || !(class.read || class.write) || is_ours(name) || command.keys().is_empty() {
        return refuse(ctx);
    }
    if !may_run(ctx, &command, name) {
        return no_permission(ctx, name);
    }
    let mut keyspace = rebase::keyspace(ctx, caps);
    for key in command.keys().iter().filter_map(|at| argv.get(*at)) {
        if let Err(e) = release_key(&mut keyspace, key) {
            return ctx.reply_error(&format!("ERR {e}"));
        }
    }
    match run(ctx, argv, "!", caps) {
        Ok(reply) => ctx.reply_call(&reply),
        Err(e) => ctx.reply_error(&e),
    }
}

fn run(ctx: Ctx, argv: &[&[u8]], flags: &str, caps: ServerCaps) -> Result<CallReply, String> {
    // In the client's version of the protocol, where the server can.
    let flags = if caps.since(0x07_00_00) { format!("{flags}0") } else { flags.to_owned() };
    call::call(ctx, argv, &flags).ok_or_else(|| {
        let name = String::from_utf8_lossy(argv.first().copied().unwrap_or_default()).to_lowercase();
        format!("ERR wrong number of arguments for '{name}' command")
    })
}

/// A command of the module's.
fn is_ours(name: &[u8]) -> bool {
    name.get(..3).is_some_and(|start| start.eq_ignore_ascii_case(b"DR."))
}

/// Whether the caller may run it.
fn may_run(ctx: Ctx, command: &Command, name: &[u8]) -> bool {
    match caller(ctx) {
        Caller::Server => true,
        Caller::User => {
            command.is_allowed(ctx).unwrap_or_else(|| acl::may_all(ctx, &String::from_utf8_lossy(name)))
        }
        // Before 7.0 the server does not say whose script it is; it has checked that one's rights to the keys.
        Caller::Script => command.is_allowed(ctx).unwrap_or(true),
    }
}

/// Who runs a command.
enum Caller {
    /// The server, for itself or for another module.
    Server,
    /// A client.
    User,
    /// A client's script.
    Script,
}

fn caller(ctx: Ctx) -> Caller {
    if ctx.flags() & raw::REDISMODULE_CTX_FLAGS_LUA != 0 {
        return Caller::Script;
    }
    if is_own(ctx) {
        return Caller::Server;
    }
    // SAFETY: the table is filled in OnLoad and never written again.
    if unsafe { raw::RedisModule_GetClientUserNameById }.is_none() {
        return Caller::User;
    }
    // Null where no client has this id, or none that is a user's.
    let name = api!(RedisModule_GetClientUserNameById(ctx.0, ctx.client_id()) else std::ptr::null_mut());
    if name.is_null() {
        return Caller::Server;
    }
    api!(RedisModule_FreeString(ctx.0, name) else ());
    Caller::User
}

fn no_permission(ctx: Ctx, name: &[u8]) -> c_int {
    let name = String::from_utf8_lossy(name).to_lowercase();
    ctx.reply_error(&format!("NOPERM this user has no permissions to run the '{name}' command"))
}

fn correct(ctx: Ctx, name: &[u8], reply: &CallReply, now: i64) -> c_int {
    let kind = reply.kind();
    if kind == raw::REDISMODULE_REPLY_INTEGER as c_int {
        return ctx.reply_int(ttl::correct(name, reply.int(), now));
    }
    if kind != raw::REDISMODULE_REPLY_ARRAY as c_int {
        return ctx.reply_call(reply);
    }
    let n = reply.len();
    ctx.reply_array(n);
    for i in 0..n {
        match reply.element(i) {
            Some(e) if e.kind() == raw::REDISMODULE_REPLY_INTEGER as c_int => {
                ctx.reply_int(ttl::correct(name, e.int(), now))
            }
            Some(e) => ctx.reply_call(&e),
            None => ctx.reply_null(),
        };
    }
    OK
}
