//! Server events that the controller has to know of at once.

use std::ffi::c_void;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redis_module::raw;

use super::api::{api, Ctx, RedisModuleCtx};
use super::{guarded, shared};
use crate::runtime::gate::GateMode;
use crate::runtime::shared::{Mode, Request};

/// Subscribes to what the server offers; older servers lack some of it.
pub fn register(ctx: Ctx) {
    let events: [(u64, raw::RedisModuleEventCallback); 3] = [
        (raw::REDISMODULE_EVENT_REPLICATION_ROLE_CHANGED, Some(on_role)),
        (raw::REDISMODULE_EVENT_LOADING, Some(on_loading)),
        (raw::REDISMODULE_EVENT_SHUTDOWN, Some(on_shutdown)),
    ];
    for (id, callback) in events {
        let event = raw::RedisModuleEvent { id, dataver: 1 };
        if api!(RedisModule_SubscribeToServerEvent(ctx.0, event, callback) else 1) != 0 {
            ::log::warn!("server event {id} is not available on this server");
        }
    }
    // SAFETY: the handler is a plain function in a library that is never unloaded.
    unsafe { libc::atexit(at_exit) };
}

fn wake(why: &'static str) {
    if let Some(shared) = shared() {
        let _ = shared.requests.try_send(Request::Wake(why));
    }
}

extern "C" fn on_role(_: *mut RedisModuleCtx, _: raw::RedisModuleEvent, sub: u64, _: *mut c_void) {
    guarded((), || {
        let Some(shared) = shared() else { return };
        let replica = sub == raw::REDISMODULE_EVENT_REPLROLECHANGED_NOW_REPLICA;
        let was = shared.is_replica.swap(replica, Ordering::AcqRel);
        if replica {
            shared.replicas_wait.store(false, Ordering::Release);
            // Some servers say so again when a replica goes over to another master.
            if !was {
                let linked = shared.linked.swap(false, Ordering::AcqRel);
                shared.link_dormant.store(linked, Ordering::Release);
            }
            shared.master_word.store(None);
            // The filter would swallow the master's stream. The controller closes the gate again where needed.
            let held = shared.ident.load().held;
            shared.gate.set(if held { GateMode::TrueTtls } else { GateMode::Open }, "");
        } else if shared.link_dormant.swap(false, Ordering::AcqRel) {
            // Before any client's write gets in; the controller resumes the link.
            shared.linked.store(true, Ordering::Release);
            shared.gate.set(GateMode::Fenced, "READONLY this server is a target of redisdr, see DR.STATUS");
        } else if !captures(shared) {
            shared.gate.set(GateMode::Starting, "LOADING redisdr: promoted, the log is being attached");
        }
        wake("the role changed");
    });
}

/// Whether a replica's own log has everything up to its promotion, and goes on.
fn captures(shared: &crate::runtime::shared::Shared) -> bool {
    let ident = shared.ident.load();
    ident.mode == Mode::Replica && ident.positioned
}

extern "C" fn on_loading(_: *mut RedisModuleCtx, _: raw::RedisModuleEvent, sub: u64, _: *mut c_void) {
    guarded((), || {
        if let Some(shared) = shared().filter(|_| sub == raw::REDISMODULE_SUBEVENT_LOADING_FAILED) {
            // A copy that broke off: the server has emptied itself, and stands where nobody knows.
            shared.applied_known.store(false, Ordering::Release);
            shared.loaded.store(None);
            shared.loads.fetch_add(1, Ordering::AcqRel);
        }
        wake("a dataset was loaded");
    });
}

extern "C" fn on_shutdown(_: *mut RedisModuleCtx, _: raw::RedisModuleEvent, _sub: u64, _: *mut c_void) {
    guarded((), || {
        if let Some(shared) = shared() {
            on_clean_stop(shared);
        }
    });
}

/// Longest wait of a process that ends for the log.
const LAST_OPS: Duration = Duration::from_secs(2);

/// 6.x sends its replicas what is left for them and ends at once: what the tap has not read by then, the log would
/// lack. Runs when the server has done all of its own; the module's threads still run.
extern "C" fn at_exit() {
    guarded((), || {
        let Some(shared) = shared() else { return };
        let (end, begun) = (shared.stop_at.load(Ordering::Acquire), Instant::now());
        while shared.written.load(Ordering::Acquire) < end && begun.elapsed() < LAST_OPS {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

/// Notes the position for a start from an AOF, which says nothing of it. At a stop a small write is no stall.
fn on_clean_stop(shared: &crate::runtime::shared::Shared) {
    let ident = shared.ident.load();
    let path = shared.clean_stop_path.load_full();
    let info = Ctx::NONE.server_info("replication");
    let (Some(path), Some(info), true) = (path, info, ident.positioned) else { return };
    if !matches!(ident.mode, Mode::Source) {
        return;
    }
    let (Some(offset), Some(replid)) = (info.signed("master_repl_offset"), info.text("master_replid")) else {
        return;
    };
    let op_id = u64::try_from(ident.base + offset).unwrap_or(0);
    if shared.version.load(Ordering::Relaxed) < 0x07_00_00 {
        shared.stop_at.store(op_id, Ordering::Release);
    }
    let _ = std::fs::write(path.as_path(), format!("{replid} {offset} {op_id}\n"));
}
