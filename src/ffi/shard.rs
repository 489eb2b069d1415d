//! DR._SHARD: what a master says of itself to its replicas, in its stream.
//!
//! An RDB says the same, but only a replica that takes a copy reads one. A replica that goes on partially after a
//! failover, or that was there before the link was made or cut, learns it here, at an exact place of the stream.

use std::ffi::c_int;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::api::Ctx;
use super::internal::{is_from_master, is_own, is_replayed, refuse};
use super::{aux, shared};
use crate::runtime::shared::{Mode, Request, Shared, FLAG_POSITIONED};
use crate::snapshot::aux::{AuxContent, Mode as SavedMode};

/// DR._SHARD: from the module, tells the replicas; from the master, takes in what it says.
pub fn tell(ctx: Ctx, args: &[&[u8]]) -> c_int {
    let Some(shared) = shared() else { return refuse(ctx) };
    if is_from_master(ctx) {
        let Some(Ok(aux)) = args.get(1).map(|bytes| AuxContent::decode(bytes)) else {
            log::error!("what the master says of itself cannot be read; is its module a newer one?");
            return ctx.reply_error("ERR unreadable");
        };
        take_in(shared, aux);
        return ctx.reply_simple("OK");
    }
    if is_replayed(ctx) {
        // An AOF: it was this node's own word then.
        return ctx.reply_simple("OK");
    }
    if !is_own(ctx) {
        return refuse(ctx);
    }
    if shared.is_replica.load(Ordering::Acquire) {
        return ctx.reply_error("READONLY a replica says nothing of itself");
    }
    ctx.replicate("DR._SHARD", &[&aux::content()]);
    ctx.reply_simple("OK")
}

fn take_in(shared: &Arc<Shared>, aux: AuxContent) {
    let mode = shared.ident.load().mode;
    let known = match aux.mode {
        SavedMode::Target => mode == Mode::TargetReplica && shared.applied_known.load(Ordering::Acquire),
        SavedMode::Source | SavedMode::Replica => {
            mode == Mode::Replica
                && (shared.ident.load().positioned || aux.flags & FLAG_POSITIONED == 0)
                && !shared.link_dormant.load(Ordering::Acquire)
        }
    };
    if known {
        aux::remember_master(shared, &Arc::new(aux));
    } else {
        // As good as a copy: this node's dataset is the master's at this very op.
        aux::take_in(shared, aux);
    }
    let _ = shared.requests.try_send(Request::Wake("the master has said what it is"));
}
