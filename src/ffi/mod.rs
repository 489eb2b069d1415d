//! The edge to the server: the only place that names `redis_module` and holds `unsafe`.
//!
//! Each callback catches panics, converts, calls, converts back and replies.

mod acl;
mod api;
mod apply;
mod aux;
mod call;
mod commands;
mod describe;
mod events;
mod eviction;
mod filter;
mod held;
mod info;
mod instead;
mod internal;
mod load;
mod log;
mod operator;
mod plain_set;
mod rebase;
mod shard;
mod stage;
mod wait;

use std::ffi::c_int;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, OnceLock};

use self::api::{Ctx, RedisModuleCtx, RedisModuleString, ERR, OK};
use crate::runtime::shared::Shared;

static SHARED: OnceLock<Arc<Shared>> = OnceLock::new();
static LOGGER: log::ServerLog = log::ServerLog;

/// The process's shared state; `None` before the module has loaded.
fn shared() -> Option<&'static Arc<Shared>> {
    SHARED.get()
}

/// Runs a callback; a panic in it is logged and yields `otherwise`, and never reaches the server.
fn guarded<T>(otherwise: T, run: impl FnOnce() -> T) -> T {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(v) => v,
        Err(panic) => {
            let text = panic
                .downcast_ref::<&str>()
                .map(|s| (*s).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "unknown panic".to_owned());
            log::write(c"warning", &format!("a callback of the module panicked: {text}"));
            otherwise
        }
    }
}

/// Called by the server when it loads the module.
///
/// # Safety
/// Called by the server only, once, on its main thread, with valid arguments.
#[no_mangle]
#[allow(non_snake_case)]
pub unsafe extern "C" fn RedisModule_OnLoad(
    ctx: *mut RedisModuleCtx,
    argv: *mut *mut RedisModuleString,
    argc: c_int,
) -> c_int {
    // SAFETY: the server's context, a NUL-terminated name.
    let ok = unsafe {
        redis_module::raw::Export_RedisModule_Init(
            ctx,
            c"redisdr".as_ptr(),
            1,
            redis_module::raw::REDISMODULE_APIVER_1 as c_int,
        )
    };
    if ok == ERR {
        return ERR;
    }
    guarded(ERR, || load::load(Ctx(ctx), &api::args(argv, argc)))
}

/// Called by the server on MODULE UNLOAD: refused, since the module's threads and its data type live on.
///
/// # Safety
/// Called by the server only.
#[no_mangle]
#[allow(non_snake_case)]
pub unsafe extern "C" fn RedisModule_OnUnload(_ctx: *mut RedisModuleCtx) -> c_int {
    log::write(c"warning", "redisdr cannot be unloaded: a write while it is away would escape the log");
    let _ = OK;
    ERR
}
