//! The field of ours in each RDB: written before the keys, in the forked child that saves.
//!
//! The child is a copy of one thread of a process with many: it may touch atomics and swap cells, never a lock
//! that another thread may have held at the fork.

use std::ffi::{c_int, c_void};
use std::sync::atomic::Ordering;
use std::sync::Arc;

use redis_module::raw;

use super::api::{api, Ctx, ERR, OK};
use super::{guarded, shared};
use crate::runtime::gate::GateMode;
use crate::runtime::shared::{
    Mode, ReplicaEvent, Request, Shared, FLAG_HELD, FLAG_INCOMPLETE, FLAG_POSITIONED,
};
use crate::snapshot::aux::{self as field, AuxContent};

/// Name of the data type whose auxiliary field it is; nine characters, part of the RDB format.
const TYPE_NAME: &std::ffi::CStr = c"redisdrx1";
const ENCODING_VERSION: c_int = 1;

/// Registers the data type.
pub fn register(ctx: Ctx) -> bool {
    // SAFETY: all function pointers are optional and null is allowed for those not used.
    let mut methods: raw::RedisModuleTypeMethods = unsafe { std::mem::zeroed() };
    methods.version = 2;
    methods.rdb_load = Some(no_load);
    methods.rdb_save = Some(no_save);
    methods.aux_load = Some(aux_load);
    methods.aux_save = Some(aux_save);
    methods.aux_save_triggers = raw::REDISMODULE_AUX_BEFORE_RDB as c_int;
    let t = api!(RedisModule_CreateDataType(ctx.0, TYPE_NAME.as_ptr(), ENCODING_VERSION, &raw mut methods)
        else std::ptr::null_mut());
    !t.is_null()
}

extern "C" fn no_load(_: *mut raw::RedisModuleIO, _: c_int) -> *mut c_void {
    std::ptr::null_mut()
}

extern "C" fn no_save(_: *mut raw::RedisModuleIO, _: *mut c_void) {}

extern "C" fn aux_save(io: *mut raw::RedisModuleIO, _when: c_int) {
    let bytes = guarded(Vec::new(), content);
    // An empty field still says that the module was there; a load then knows no position.
    api!(RedisModule_SaveStringBuffer(io, bytes.as_ptr().cast(), bytes.len()) else ());
}

/// What an RDB saved at this moment says.
pub fn content() -> Vec<u8> {
    let Some(shared) = shared() else { return Vec::new() };
    let ident = shared.ident.load();
    let offset =
        Ctx::NONE.server_info("replication").and_then(|i| i.signed("master_repl_offset")).unwrap_or(0);
    let applied_known = shared.applied_known.load(Ordering::Acquire);
    // A source that still applies its own log does so by DR.APPLY: replicas have to follow it as they do a target.
    let replays = ident.mode == Mode::Source && !ident.positioned && applied_known;
    let mode = if replays { Mode::Target } else { ident.mode };
    let (op_id, known) = match mode {
        Mode::Source | Mode::Replica => (u64::try_from(ident.base + offset).unwrap_or(0), ident.positioned),
        Mode::Target | Mode::TargetReplica => (shared.applied.load(Ordering::Acquire), applied_known),
    };
    let mut flags = 0;
    if known {
        flags |= FLAG_POSITIONED;
    }
    if ident.held || replays {
        flags |= FLAG_HELD;
    }
    if shared.loading_data.load(Ordering::Acquire) {
        flags |= FLAG_INCOMPLETE;
    }
    let aux = AuxContent {
        format: field::FORMAT,
        mode: match mode {
            Mode::Source => field::Mode::Source,
            Mode::Target | Mode::TargetReplica => field::Mode::Target,
            Mode::Replica => field::Mode::Replica,
        },
        service_id: shared.config.service_id,
        flags,
        op_id,
        repl_offset: offset,
        lineage: ident.lineage.items().iter().map(|i| (*i.history.as_bytes(), i.first_op)).collect(),
        endpoints: ident.endpoints.clone(),
    };
    aux.encode()
}

extern "C" fn aux_load(io: *mut raw::RedisModuleIO, encver: c_int, _when: c_int) -> c_int {
    guarded(ERR, || {
        if encver != ENCODING_VERSION {
            log::error!(
                "the RDB's field of redisdr has encoding {encver}, this build reads {ENCODING_VERSION}"
            );
            return ERR;
        }
        let mut len = 0usize;
        let p = api!(RedisModule_LoadStringBuffer(io, &raw mut len) else std::ptr::null_mut());
        if p.is_null() {
            return ERR;
        }
        // SAFETY: the server returns `len` bytes that are ours until freed below.
        let bytes = unsafe { std::slice::from_raw_parts(p.cast::<u8>(), len) }.to_vec();
        api!(RedisModule_Free(p.cast()) else ());
        let Some(shared) = shared() else { return OK };
        match AuxContent::decode(&bytes) {
            Ok(aux) => {
                take_in(shared, aux);
                let _ = shared.requests.try_send(Request::Wake("an RDB was loaded"));
                OK
            }
            Err(_) if bytes.is_empty() => OK,
            Err(e) => {
                log::error!("the RDB's field of redisdr cannot be read: {e}");
                ERR
            }
        }
    })
}

/// Takes in what an RDB, or the master's stream, says of the dataset at this moment.
pub fn take_in(shared: &Arc<Shared>, aux: AuxContent) {
    let aux = Arc::new(aux);
    follow(shared, &aux);
    shared.loaded.store(Some(Arc::clone(&aux)));
    let replica = shared.is_replica.load(Ordering::Acquire);
    if replica {
        remember_master(shared, &aux);
    }
    let loads = shared.loads.fetch_add(1, Ordering::AcqRel) + 1;
    if replica && is_whole_target(&aux) {
        // Ahead of the entries that will follow.
        let (op_id, lineage) = (aux.op_id, crate::runtime::lineage_of(&aux));
        if shared.replica_events.try_send(ReplicaEvent::Align { loads, op_id, lineage }).is_err() {
            shared.replica_events_lost.store(true, Ordering::Release);
        }
    }
}

/// A promotion has to know at once whether there is a link to resume.
pub fn remember_master(shared: &Shared, aux: &Arc<AuxContent>) {
    let linked = aux.mode == field::Mode::Target && !aux.endpoints.is_empty();
    shared.link_dormant.store(linked, Ordering::Release);
    shared.master_word.store(Some(Arc::clone(aux)));
}

fn is_whole_target(aux: &AuxContent) -> bool {
    let whole = aux.flags & FLAG_POSITIONED != 0 && aux.flags & FLAG_INCOMPLETE == 0;
    whole && aux.mode == field::Mode::Target
}

/// DR.APPLY commands behind this RDB, in an AOF or from a master, continue where it stands.
fn follow(shared: &Shared, aux: &AuxContent) {
    let known = aux.flags & FLAG_POSITIONED != 0 && aux.flags & FLAG_INCOMPLETE == 0;
    let target = aux.mode == field::Mode::Target;
    shared.applied.store(aux.op_id, Ordering::Release);
    shared.applied_known.store(known && target, Ordering::Release);
    if target {
        shared.hold.store(true, Ordering::Release);
        if shared.is_replica.load(Ordering::Acquire) {
            // The controller will say so, too; readers may be faster.
            shared.gate.set(GateMode::TrueTtls, "");
        }
        shared.set_ident(|i| {
            i.lineage = crate::runtime::lineage_of(aux);
            i.held = aux.flags & FLAG_HELD != 0;
        });
    } else if shared.is_replica.load(Ordering::Acquire) {
        shared.hold.store(false, Ordering::Release);
    }
}
