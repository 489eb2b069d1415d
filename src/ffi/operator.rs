//! Commands of the operator.

use std::ffi::{c_int, c_void};
use std::sync::atomic::Ordering;

use redis_module::raw;
use serde_json::Value;

use super::api::{api, Ctx, RedisModuleCtx, RedisModuleString, ERR, OK};
use super::{acl, guarded, internal, shared};
use crate::config::host_port;
use crate::runtime::shared::{Answer, Mode, Request, Respond};
use crate::status::Status;

/// The status with what only the main thread knows at this moment.
pub fn current(ctx: Ctx) -> Option<Status> {
    let shared = shared()?;
    let mut status = Status::clone(&shared.status.load());
    let ident = shared.ident.load();
    status.durable_op_id = shared.durable.load(Ordering::Acquire);
    match ident.mode {
        Mode::Source | Mode::Replica if ident.positioned => {
            let offset = ctx.server_info("replication").and_then(|i| i.signed("master_repl_offset"));
            let op = offset.and_then(|o| u64::try_from(ident.base + o).ok()).unwrap_or(0);
            status.op_id = op;
            status.applied_op_id = op;
        }
        Mode::Source | Mode::Replica => {}
        Mode::Target | Mode::TargetReplica => {
            status.op_id = shared.written.load(Ordering::Acquire);
            if shared.applied_known.load(Ordering::Acquire) {
                status.applied_op_id = shared.applied.load(Ordering::Acquire);
            }
        }
    }
    if let Some(link) = &mut status.link {
        link.applied_op_id = status.applied_op_id;
        link.source_op_id = link.source_op_id.max(status.op_id);
        link.lag_bytes = link.source_op_id.saturating_sub(link.applied_op_id);
    }
    Some(status)
}

/// The status for INFO, which has no context of its own: positions are those last published, since asking the
/// server for INFO from within INFO would nest.
pub fn current_for_info() -> Option<Status> {
    let shared = shared()?;
    let mut status = Status::clone(&shared.status.load());
    status.durable_op_id = shared.durable.load(Ordering::Acquire);
    Some(status)
}

/// DR.STATUS [JSON]
pub fn status(ctx: Ctx, args: &[&[u8]]) -> c_int {
    let json = match args {
        [_] => false,
        [_, form] if form.eq_ignore_ascii_case(b"json") => true,
        _ => return ctx.reply_error("ERR usage: DR.STATUS [JSON]"),
    };
    let Some(status) = current(ctx) else {
        return ctx.reply_error("ERR redisdr is not loaded completely");
    };
    let value = serde_json::to_value(&status).unwrap_or(Value::Null);
    if json {
        return ctx.reply_bytes(value.to_string().as_bytes());
    }
    reply_value(ctx, &value)
}

fn reply_value(ctx: Ctx, value: &Value) -> c_int {
    match value {
        Value::Null => ctx.reply_null(),
        Value::Bool(b) => ctx.reply_int(i64::from(*b)),
        Value::Number(n) => match n.as_i64() {
            Some(i) => ctx.reply_int(i),
            None => ctx.reply_bytes(n.to_string().as_bytes()),
        },
        Value::String(s) => ctx.reply_bytes(s.as_bytes()),
        Value::Array(items) => {
            ctx.reply_array(items.len());
            items.iter().fold(OK, |_, v| reply_value(ctx, v))
        }
        Value::Object(fields) => {
            ctx.reply_map(fields.len());
            fields.iter().fold(OK, |_, (k, v)| {
                ctx.reply_bytes(k.as_bytes());
                reply_value(ctx, v)
            })
        }
    }
}

const HELP: &[&str] = &[
    "DR.STATUS [JSON]",
    "    Role, state, positions, targets and link of this node.",
    "DR.LINK host:port [host:port ...]",
    "    Become a target of the source with these DR endpoints. Clients may only read from then on.",
    "DR.CUTLINK",
    "    On a target: cut the link for good and become a source. Replies with the last applied op id.",
    "DR.CUTLINK service_id",
    "    On a source: drop that target and stop keeping log for it.",
    "DR.RESYNC",
    "    On a held target: accept the source's data; this node's own newer ops are kept as orphans.",
    "DR.SNAPSHOT",
    "    On a source: make a snapshot (BGSAVE) now.",
    "DR.WAIT targets milliseconds",
    "    Wait until this client's writes are durable on that many targets; 0 targets: in the local log.",
    "    0 milliseconds: for ever. Replies with the number of targets, or 1 or 0 for the local log.",
    "DR.HELP",
    "    This text. Module arguments and the meaning of each state are in the README.",
];

/// DR.HELP
pub fn help(ctx: Ctx, args: &[&[u8]]) -> c_int {
    if args.len() != 1 {
        return ctx.reply_error("ERR usage: DR.HELP");
    }
    ctx.reply_array(HELP.len());
    HELP.iter().fold(OK, |_, line| ctx.reply_simple(line))
}

const NOPERM: &str = "NOPERM this user has no permission to run the commands of redisdr's operator";

/// DR.LINK host:port [host:port ...]
pub fn link(ctx: Ctx, args: &[&[u8]]) -> c_int {
    if !acl::may(ctx, "DR.LINK") {
        return ctx.reply_error(NOPERM);
    }
    let mut endpoints = Vec::new();
    for arg in args.iter().skip(1) {
        let text = String::from_utf8_lossy(arg);
        match host_port(&text) {
            Some(e) => endpoints.push(e),
            None => return ctx.reply_error(&format!("ERR '{text}' is not host:port")),
        }
    }
    match endpoints.len() {
        0 => return ctx.reply_error("ERR usage: DR.LINK host:port [host:port ...]"),
        1..=32 => {}
        n => return ctx.reply_error(&format!("ERR {n} endpoints, at most 32")),
    }
    let caller = ctx.client_id();
    ask(ctx, |respond| Request::Link(endpoints, caller, respond))
}

/// DR.CUTLINK [service_id]
pub fn cutlink(ctx: Ctx, args: &[&[u8]]) -> c_int {
    if !acl::may(ctx, "DR.CUTLINK") {
        return ctx.reply_error(NOPERM);
    }
    match args {
        [_] => ask(ctx, Request::Cut),
        [_, id] => {
            let text = String::from_utf8_lossy(id);
            match text.parse::<u8>().ok().filter(|n| *n <= 15) {
                Some(n) => ask(ctx, |respond| Request::CutTarget(n, respond)),
                None => ctx.reply_error(&format!("ERR service id '{text}' is not a number from 0 to 15")),
            }
        }
        _ => ctx.reply_error("ERR usage: DR.CUTLINK [service_id]"),
    }
}

/// DR.RESYNC
pub fn resync(ctx: Ctx, args: &[&[u8]]) -> c_int {
    if !acl::may(ctx, "DR.RESYNC") {
        return ctx.reply_error(NOPERM);
    }
    match args {
        [_] => ask(ctx, Request::Resync),
        _ => ctx.reply_error("ERR usage: DR.RESYNC"),
    }
}

/// DR.SNAPSHOT
pub fn snapshot(ctx: Ctx, args: &[&[u8]]) -> c_int {
    if !acl::may(ctx, "DR.SNAPSHOT") {
        return ctx.reply_error(NOPERM);
    }
    match args {
        [_] => ask(ctx, Request::Snapshot),
        _ => ctx.reply_error("ERR usage: DR.SNAPSHOT"),
    }
}

/// Whether the running command may not block: in a transaction, a script, or replayed.
pub fn cannot_block(ctx: Ctx) -> bool {
    let never = raw::REDISMODULE_CTX_FLAGS_MULTI
        | raw::REDISMODULE_CTX_FLAGS_LUA
        | raw::REDISMODULE_CTX_FLAGS_DENY_BLOCKING;
    ctx.flags() & never != 0 || internal::is_replayed(ctx)
}

/// Blocks the client and hands the request to the controller, which answers from its own thread.
pub fn ask(ctx: Ctx, request: impl FnOnce(Respond) -> Request) -> c_int {
    let Some(shared) = shared() else {
        return ctx.reply_error("ERR redisdr is not loaded completely");
    };
    if cannot_block(ctx) {
        return ctx.reply_error("ERR this command cannot run in a transaction or script");
    }
    let client = api!(RedisModule_BlockClient(ctx.0, Some(on_answer), None, Some(free_answer), 0)
        else std::ptr::null_mut());
    if client.is_null() {
        return ctx.reply_error("ERR the client could not be blocked");
    }
    let client = Blocked(client);
    let respond: Respond = Box::new(move |answer| client.answer(answer));
    if let Err(e) = shared.requests.try_send(request(respond)) {
        let why = if e.is_full() {
            "BUSY too many requests to redisdr are waiting"
        } else {
            "ERR redisdr has stopped"
        };
        match e.into_inner() {
            Request::Link(_, _, r)
            | Request::Cut(r)
            | Request::CutTarget(_, r)
            | Request::Resync(r)
            | Request::Snapshot(r)
            | Request::Wait(_, _, _, r) => r(Err(why.to_owned())),
            Request::Wake(_) => {}
        }
    }
    OK
}

/// A client that waits for its answer.
struct Blocked(*mut raw::RedisModuleBlockedClient);

// SAFETY: the server allows RedisModule_UnblockClient from any thread, and the pointer is used for nothing else.
unsafe impl Send for Blocked {}

impl Blocked {
    fn answer(self, answer: Result<Answer, String>) {
        let data = Box::into_raw(Box::new(answer)).cast::<c_void>();
        api!(RedisModule_UnblockClient(self.0, data) else ERR);
    }
}

extern "C" fn on_answer(ctx: *mut RedisModuleCtx, _: *mut *mut RedisModuleString, _: c_int) -> c_int {
    guarded(ERR, || {
        let ctx = Ctx(ctx);
        let data = api!(RedisModule_GetBlockedClientPrivateData(ctx.0) else std::ptr::null_mut());
        if data.is_null() {
            return ctx.reply_error("ERR no answer");
        }
        // SAFETY: `data` is the box of `Blocked::answer`, freed in `free_answer` after this callback.
        match unsafe { &*data.cast::<Result<Answer, String>>() } {
            Ok(Answer::Simple(s)) => ctx.reply_simple(s),
            Ok(Answer::Int(n)) => ctx.reply_int(*n),
            Ok(Answer::Text(t)) => ctx.reply_bytes(t.as_bytes()),
            Err(e) => ctx.reply_error(e),
        }
    })
}

extern "C" fn free_answer(_: *mut RedisModuleCtx, data: *mut c_void) {
    guarded((), || {
        if !data.is_null() {
            // SAFETY: the box of `Blocked::answer`; the server calls this once.
            drop(unsafe { Box::from_raw(data.cast::<Result<Answer, String>>()) });
        }
    });
}
