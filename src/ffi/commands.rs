//! The table of commands.

use std::ffi::c_int;

use super::api::{api, c_text, Ctx, RedisModuleCtx, RedisModuleString, ERR};
use super::{apply, describe, eviction, guarded, instead, internal, operator, rebase, shard, wait};

type Handler = extern "C" fn(*mut RedisModuleCtx, *mut *mut RedisModuleString, c_int) -> c_int;

macro_rules! handler {
    ($name:ident, $run:path) => {
        extern "C" fn $name(
            ctx: *mut RedisModuleCtx,
            argv: *mut *mut RedisModuleString,
            argc: c_int,
        ) -> c_int {
            guarded(ERR, || $run(Ctx(ctx), &super::api::args(argv, argc)))
        }
    };
}

handler!(status, operator::status);
handler!(help, operator::help);
handler!(link, operator::link);
handler!(cutlink, operator::cutlink);
handler!(resync, operator::resync);
handler!(snapshot, operator::snapshot);
handler!(wait_durable, wait::wait);
handler!(auth, internal::auth);
handler!(force_select, internal::force_select);
handler!(tell_shard, shard::tell);
handler!(refused, internal::refused);
handler!(true_ttl, instead::true_ttl);
handler!(first, instead::first);
handler!(config, eviction::config);
handler!(position, internal::position);
handler!(apply_entry, apply::apply);
handler!(load_snapshot, apply::load);
handler!(rebase_slice, rebase::rebase);

/// Registers every command.
///
/// DR.APPLY and DR._LOAD carry `may-replicate` where the server knows it and no flag on 6.0: `write` would be
/// refused by NOREPLICAS and MISCONF, and without any flag 6.2 and later crash under CLIENT PAUSE WRITE.
pub fn register(ctx: Ctx, version: u64) -> Result<(), String> {
    let replicating = if version >= 0x06_02_00 { "may-replicate" } else { "" };
    let hidden = "no-auth fast no-slowlog no-monitor allow-stale";
    let table: [(&str, Handler, &str); 18] = [
        ("DR.STATUS", status, "allow-loading allow-stale"),
        ("DR.HELP", help, "allow-loading allow-stale fast"),
        ("DR.LINK", link, "admin deny-script"),
        ("DR.CUTLINK", cutlink, "admin deny-script"),
        ("DR.RESYNC", resync, "admin deny-script"),
        ("DR.SNAPSHOT", snapshot, "admin deny-script"),
        ("DR.WAIT", wait_durable, ""),
        ("DR._AUTH", auth, hidden),
        ("DR._SELECT", force_select, "admin fast no-slowlog no-monitor deny-script"),
        ("DR._SHARD", tell_shard, "admin fast no-slowlog no-monitor deny-script"),
        ("DR._REFUSED", refused, "fast allow-loading allow-stale"),
        ("DR._TTL", true_ttl, "readonly fast getkeys-api"),
        ("DR._CONFIG", config, "admin no-slowlog deny-script"),
        ("DR._FIRST", first, "write deny-oom getkeys-api"),
        ("DR._POSITION", position, "admin fast no-slowlog no-monitor deny-script"),
        ("DR.APPLY", apply_entry, "admin no-slowlog no-monitor deny-script"),
        ("DR._LOAD", load_snapshot, "admin no-slowlog no-monitor deny-script"),
        ("DR._REBASE", rebase_slice, "admin no-slowlog no-monitor deny-script"),
    ];
    for (name, handler, flags) in table {
        let own = match name {
            "DR.APPLY" | "DR._LOAD" | "DR._REBASE" | "DR._SELECT" | "DR._SHARD" => {
                format!("{flags} {replicating}")
            }
            _ => flags.to_owned(),
        };
        let (c_name, c_flags) = (c_text(name), c_text(own.trim()));
        // These stand before another command, whose keys they tell when asked: the user's rules for keys and the
        // cluster's slots apply to them.
        let (key, step) = if matches!(name, "DR._TTL" | "DR._FIRST") { (2, 1) } else { (0, 0) };
        let done = api!(RedisModule_CreateCommand(
            ctx.0, c_name.as_ptr(), Some(handler), c_flags.as_ptr(), key, key, step) else ERR);
        if done == ERR {
            return Err(format!("command {name} could not be registered with flags '{own}'"));
        }
    }
    describe::describe(ctx);
    Ok(())
}
