//! DR._CONFIG: what clients may do with `maxmemory-policy` while a link keeps it at `noeviction`.

use std::ffi::c_int;

use super::api::Ctx;
use super::internal::refuse;
use super::{call, shared};

const POLICY: &[u8] = b"maxmemory-policy";

/// DR._CONFIG CONFIG REWRITE | DR._CONFIG CONFIG SET ..: stands before these commands of a client.
pub fn config(ctx: Ctx, args: &[&[u8]]) -> c_int {
    let (Some(shared), Some(sub)) = (shared(), args.get(2)) else { return refuse(ctx) };
    let policy = shared.policy.load_full();
    if !sub.eq_ignore_ascii_case(b"rewrite") {
        let own = policy.as_deref().map_or("noeviction", String::as_str);
        return ctx.reply_error(&format!(
            "ERR maxmemory-policy is noeviction while this server is linked to a source, and {own} again after \
             DR.CUTLINK: change it then"
        ));
    }
    // The file is to have the server's own policy: the one of now is for the link. Nobody evicts in between.
    let set = |policy: &[u8]| call::call(ctx, &[b"CONFIG", b"SET", POLICY, policy], "");
    if let Some(policy) = &policy {
        let _ = set(policy.as_bytes());
    }
    let reply = call::call(ctx, &[b"CONFIG", b"REWRITE"], "");
    if policy.is_some() {
        let _ = set(b"noeviction");
    }
    match reply {
        Some(reply) => ctx.reply_call(&reply),
        None => ctx.reply_error("ERR the server did not run CONFIG REWRITE"),
    }
}
