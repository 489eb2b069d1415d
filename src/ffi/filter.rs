//! The command filter: replaces what a client may not do by a module command that answers it.

use std::ffi::c_int;
use std::sync::atomic::Ordering;

use redis_module::raw;

use super::api::{api, bytes, Ctx};
use super::{guarded, held, shared};
use crate::capture::attach::TAP_PSYNC;
use crate::runtime::gate::{GateMode, Verdict};
use crate::runtime::shared::Shared;

/// Registers the filter. The module's own calls bypass it.
pub fn register(ctx: Ctx) -> bool {
    let flags = raw::REDISMODULE_CMDFILTER_NOSELF as c_int;
    let filter = api!(RedisModule_RegisterCommandFilter(ctx.0, Some(on_command), flags)
        else std::ptr::null_mut());
    !filter.is_null()
}

extern "C" fn on_command(fctx: *mut raw::RedisModuleCommandFilterCtx) {
    guarded((), || {
        let Some(shared) = shared() else { return };
        let mode = shared.gate.mode();
        if mode == GateMode::Open {
            return;
        }
        let arg = |at: c_int| -> &[u8] {
            bytes(api!(RedisModule_CommandFilterArgGet(fctx, at) else std::ptr::null_mut()))
        };
        let argc = api!(RedisModule_CommandFilterArgsCount(fctx) else 0);
        let name = arg(0);
        let sub = (argc > 1).then(|| arg(1));
        let table = shared.table.load();
        let waits = shared.replicas_wait.load(Ordering::Acquire) && is_replicas(name);
        let verdict = match waits {
            true => Verdict::Refuse,
            false => table.verdict(mode, name, sub),
        };
        let instead: &[u8] = match verdict {
            Verdict::Pass if eviction_is_kept_off(shared, name, sub, argc, arg) => b"DR._CONFIG",
            Verdict::Pass if argc > 1 && mode.hides_hold() && shared.ident.load().held => {
                let class = table.class(name, sub);
                let mut argv: Vec<*mut raw::RedisModuleString> = (0..argc)
                    .map(|at| api!(RedisModule_CommandFilterArgGet(fctx, at) else std::ptr::null_mut()))
                    .collect();
                let replica = shared.is_replica.load(Ordering::Acquire);
                match held::instead(mode, class, &mut argv, name, shared.caps(), replica) {
                    Some(wrapper) => wrapper,
                    None => return,
                }
            }
            Verdict::Pass => return,
            Verdict::Refuse => b"DR._REFUSED",
            Verdict::TrueTtl => b"DR._TTL",
        };
        // The server takes the string over.
        let text = api!(RedisModule_CreateString(std::ptr::null_mut(), instead.as_ptr().cast(), instead.len())
            else std::ptr::null_mut());
        if !text.is_null() {
            api!(RedisModule_CommandFilterArgInsert(fctx, 0, text) else ERR_UNUSED);
        }
    });
}

/// While linked the server's policy is not its own: what changes it, or writes it to the file, is the module's matter.
fn eviction_is_kept_off<'a>(
    shared: &Shared,
    name: &[u8],
    sub: Option<&[u8]>,
    argc: c_int,
    arg: impl Fn(c_int) -> &'a [u8],
) -> bool {
    let Some(sub) = sub.filter(|_| name.eq_ignore_ascii_case(b"config")) else { return false };
    let rewrites = sub.eq_ignore_ascii_case(b"rewrite");
    let sets = || {
        sub.eq_ignore_ascii_case(b"set")
            && (2..argc).step_by(2).any(|at| arg(at).eq_ignore_ascii_case(b"maxmemory-policy"))
    };
    shared.policy.load().is_some() && (rewrites || sets())
}

/// Whether a replica asks for the stream; the tap does it in a spelling of its own. Replicas ask again after LOADING.
fn is_replicas(name: &[u8]) -> bool {
    name != TAP_PSYNC && (name.eq_ignore_ascii_case(b"psync") || name.eq_ignore_ascii_case(b"sync"))
}

const ERR_UNUSED: c_int = 1;
