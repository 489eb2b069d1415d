//! `SET key value` by the key API, also with an expiry, and RESTORE of a plain string: most of many streams and datasets,
//! and calling the command costs about half of its run. The value may have been made ready by the thread that sends it.
//!
//! Taken only where the result is provably that of the command:
//! - the value does not look like an integer, so that the command would store the same string in the same encoding;
//! - an expiry, if there is one, is held, so that it cannot be over;
//! - nobody is told of new keys (`notify-keyspace-events` without `n` or anything newer): the key API removes the old
//!   value first, so that an overwritten key would be told as a new one;
//! - no other module is loaded, which could listen to that by itself;
//! - from Redis 7.0 on: on 6.0, native replicas of a target were seen to differ from it in consumer groups;
//! - not on Valkey 8, which chooses between its string encodings by who else holds the value at that moment;
//! - not in cluster mode, where calling the command also checks the slot.
//!
//! What differs by design: INFO commandstats, `total_commands_processed`, the slow log and MONITOR do not show these
//! SETs, an entry counts once in `rdb_changes_since_last_save`, and a key that is overwritten starts with a new LFU counter
//! (which nobody reads: eviction is off while linked).

use std::ffi::{c_int, c_void, CStr};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use redis_module::raw;

use super::api::{api, Ctx, OwnedString, RedisModuleCtx, RedisModuleString, OK};
use super::{call, guarded, shared};
use crate::apply::handoff::{self, Prepared};
use crate::apply::ttl::released;
use crate::apply::wire::LoadKey;
use crate::apply::{like_integer, ServerCaps};
use crate::snapshot::plain_string;

/// Whether other modules could notice.
static ALONE: AtomicBool = AtomicBool::new(false);
/// Events that the command and the key API cause alike: up to those of modules.
const KNOWN_EVENTS: c_int = (1 << 14) - 1;

/// Looks which modules are there, now and whenever that changes.
pub fn register(ctx: Ctx) {
    look(ctx);
    handoff::register(handoff::Server { make, free, takes, takes_values });
    let event = raw::RedisModuleEvent { id: raw::REDISMODULE_EVENT_MODULE_CHANGE, dataver: 1 };
    if api!(RedisModule_SubscribeToServerEvent(ctx.0, event, Some(on_module)) else 1) != OK {
        ALONE.store(false, Ordering::Relaxed);
    }
}

extern "C" fn on_module(ctx: *mut RedisModuleCtx, _: raw::RedisModuleEvent, _: u64, _: *mut c_void) {
    guarded((), || look(Ctx(ctx)));
}

fn look(ctx: Ctx) {
    let alone = call::call(ctx, &[b"MODULE", b"LIST"], "").is_some_and(|list| {
        !list.is_error()
            && (0..list.len()).all(|i| {
                let name = list.element(i).and_then(|m| m.element(1).map(|n| n.bytes().to_vec()));
                // What servers bring themselves as modules: the vector set of Redis 8, the script engine of Valkey 9.
                matches!(name.as_deref(), Some(b"redisdr" | b"vectorset" | b"lua"))
            })
    });
    ALONE.store(alone, Ordering::Relaxed);
}

/// A string without a context: nothing but the allocator is touched, and that may be used by any thread.
fn make(bytes: &[u8]) -> *mut c_void {
    api!(RedisModule_CreateString(ptr::null_mut(), bytes.as_ptr().cast(), bytes.len()) else ptr::null_mut())
        .cast()
}

fn free(string: *mut c_void) {
    api!(RedisModule_FreeString(ptr::null_mut(), string.cast()) else ());
}

/// Before 7.0 what is replicated otherwise than verbatim comes as a transaction, in which the server's commands do not do
/// quite the same.
fn takes() -> bool {
    shared().is_some_and(|s| s.caps().since(0x07_00_00))
}

fn takes_values() -> bool {
    shared().is_some_and(|s| known(s.caps())) && ALONE.load(Ordering::Relaxed)
}

fn known(caps: ServerCaps) -> bool {
    caps.since(if caps.valkey { 0x09_00_00 } else { 0x07_00_00 })
}

/// Whether plain SETs of this entry may go this way.
pub fn allowed(ctx: Ctx, caps: ServerCaps) -> bool {
    known(caps)
        && ALONE.load(Ordering::Relaxed)
        && ctx.flags() & raw::REDISMODULE_CTX_FLAGS_CLUSTER == 0
        && api!(RedisModule_GetNotifyKeyspaceEvents() else c_int::MAX) & !KNOWN_EVENTS == 0
}

/// Sets the key as SET does, with an expiry where there is one, which must be held; `ready` is the value, where that was
/// made ready. False: nothing was done, or the command has to do it again.
pub fn set(ctx: Ctx, key: &[u8], value: &[u8], ready: Option<Prepared>, expire: Option<i64>) -> bool {
    let event = (raw::REDISMODULE_NOTIFY_STRING, c"set");
    match ready {
        Some(ready) => store(ctx, key, ready.ptr().cast(), expire, event),
        None => store_bytes(ctx, key, value, expire, event),
    }
}

/// Sets the key as RESTORE of a plain string does; `ready` is its value, where that was made ready. False: nothing was
/// done, or the command has to do it again.
pub fn restore(ctx: Ctx, key: &LoadKey<'_>, ready: Option<Prepared>) -> bool {
    let event = (raw::REDISMODULE_NOTIFY_GENERIC, c"restore");
    // An expiry that is not held may be over, and RESTORE then stores nothing.
    if key.expire_ms >= 0 && released(key.expire_ms).is_none() {
        return false;
    }
    let expire = (key.expire_ms >= 0).then_some(key.expire_ms);
    if let Some(ready) = ready {
        return store(ctx, key.key, ready.ptr().cast(), expire, event);
    }
    plain_string(key.payload).is_some_and(|value| store_bytes(ctx, key.key, value, expire, event))
}

fn store_bytes(ctx: Ctx, key: &[u8], value: &[u8], expire: Option<i64>, event: (c_int, &CStr)) -> bool {
    // Without a context, so that no list of what is to be freed grows.
    let text = OwnedString::new(Ctx::NONE, value);
    !like_integer(value) && !text.ptr().is_null() && store(ctx, key, text.ptr(), expire, event)
}

/// Makes a key of the string, which it shares with the caller until that frees its own reference.
fn store(
    ctx: Ctx,
    key: &[u8],
    text: *mut RedisModuleString,
    expire: Option<i64>,
    (class, event): (c_int, &CStr),
) -> bool {
    let name = OwnedString::new(Ctx::NONE, key);
    if name.ptr().is_null() {
        return false;
    }
    let handle = api!(RedisModule_OpenKey(ctx.0, name.ptr(), raw::REDISMODULE_WRITE as c_int)
        else ptr::null_mut());
    let handle = handle.cast::<raw::RedisModuleKey>();
    if handle.is_null() {
        return false;
    }
    let mut done = api!(RedisModule_StringSet(handle, text) else 1) == OK;
    if let Some(ms) = expire {
        done = done && api!(RedisModule_SetAbsExpire(handle, ms) else 1) == OK;
    }
    // Tells watchers and tracking clients, as the command does before the event.
    api!(RedisModule_CloseKey(handle) else ());
    if done {
        api!(RedisModule_NotifyKeyspaceEvent(ctx.0, class, event.as_ptr(), name.ptr()) else 0);
        if expire.is_some() && class == raw::REDISMODULE_NOTIFY_STRING {
            let class = raw::REDISMODULE_NOTIFY_GENERIC;
            api!(RedisModule_NotifyKeyspaceEvent(ctx.0, class, c"expire".as_ptr(), name.ptr()) else 0);
        }
    }
    done
}
