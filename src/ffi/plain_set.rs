//! `SET key value` by the key API, and RESTORE of a plain string: most of many streams and datasets, and calling the
//! command costs about half of its run.
//!
//! Taken only where the result is provably that of the command:
//! - the value does not look like an integer, so that the command would store the same string in the same encoding;
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

use super::api::{api, Ctx, OwnedString, RedisModuleCtx, OK};
use super::{call, guarded};
use crate::apply::ServerCaps;

/// Whether other modules could notice.
static ALONE: AtomicBool = AtomicBool::new(false);
/// Events that the command and the key API cause alike: up to those of modules.
const KNOWN_EVENTS: c_int = (1 << 14) - 1;
/// The longest text of a 64-bit integer.
const INTEGER_LEN: usize = 20;

/// Looks which modules are there, now and whenever that changes.
pub fn register(ctx: Ctx) {
    look(ctx);
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

/// Whether plain SETs of this entry may go this way.
pub fn allowed(ctx: Ctx, caps: ServerCaps) -> bool {
    let known = if caps.valkey { caps.version >= 0x09_00_00 } else { caps.version >= 0x07_00_00 };
    known
        && ALONE.load(Ordering::Relaxed)
        && ctx.flags() & raw::REDISMODULE_CTX_FLAGS_CLUSTER == 0
        && api!(RedisModule_GetNotifyKeyspaceEvents() else c_int::MAX) & !KNOWN_EVENTS == 0
}

/// Whether the command might store this as an integer.
fn like_integer(value: &[u8]) -> bool {
    value.len() <= INTEGER_LEN && value.first().is_some_and(|b| b.is_ascii_digit() || *b == b'-')
}

/// Sets the key as SET does. False: nothing was done, the command has to be called.
pub fn set(ctx: Ctx, key: &[u8], value: &[u8]) -> bool {
    store(ctx, key, value, (raw::REDISMODULE_NOTIFY_STRING, c"set"))
}

/// Sets the key as RESTORE of a plain string without expiry does. False: nothing was done.
pub fn restore(ctx: Ctx, key: &[u8], value: &[u8]) -> bool {
    store(ctx, key, value, (raw::REDISMODULE_NOTIFY_GENERIC, c"restore"))
}

fn store(ctx: Ctx, key: &[u8], value: &[u8], (class, event): (c_int, &CStr)) -> bool {
    if like_integer(value) {
        return false;
    }
    // Without a context, so that no list of what is to be freed grows.
    let (name, text) = (OwnedString::new(Ctx::NONE, key), OwnedString::new(Ctx::NONE, value));
    if name.ptr().is_null() || text.ptr().is_null() {
        return false;
    }
    let handle = api!(RedisModule_OpenKey(ctx.0, name.ptr(), raw::REDISMODULE_WRITE as c_int)
        else ptr::null_mut());
    let handle = handle.cast::<raw::RedisModuleKey>();
    if handle.is_null() {
        return false;
    }
    let done = api!(RedisModule_StringSet(handle, text.ptr()) else 1) == OK;
    // Tells watchers and tracking clients, as the command does before the event.
    api!(RedisModule_CloseKey(handle) else ());
    if done {
        api!(RedisModule_NotifyKeyspaceEvent(ctx.0, class, event.as_ptr(), name.ptr()) else 0);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::like_integer;

    #[test]
    fn what_could_be_an_integer_goes_the_long_way() {
        for text in
            ["0", "123", "-1", "9223372036854775807", "-9223372036854775808", "18446744073709551615", "1x"]
        {
            assert!(like_integer(text.as_bytes()), "{text}");
        }
        for text in ["", "abc", "+1", " 1", "184467440737095516150"] {
            assert!(!like_integer(text.as_bytes()), "{text}");
        }
    }
}
