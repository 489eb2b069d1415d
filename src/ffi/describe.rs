//! What COMMAND INFO and COMMAND DOCS say of the module's commands, and their ACL categories.

use std::mem::size_of;
use std::ptr;

use redis_module::raw;

use super::api::{api, c_text, Ctx, OK};

/// Layout of the structures below, as the server asks for it.
static LAYOUT: raw::RedisModuleCommandInfoVersion = raw::RedisModuleCommandInfoVersion {
    version: 1,
    sizeof_historyentry: size_of::<raw::RedisModuleCommandHistoryEntry>(),
    sizeof_keyspec: size_of::<raw::RedisModuleCommandKeySpec>(),
    sizeof_arg: size_of::<raw::RedisModuleCommandArg>(),
};

/// One command.
struct Description {
    name: &'static str,
    /// With the name; negative: at least.
    arity: i32,
    categories: &'static str,
    summary: &'static str,
}

const fn d(name: &'static str, arity: i32, categories: &'static str, summary: &'static str) -> Description {
    Description { name, arity, categories, summary }
}

/// Arity is checked by the server before the handler runs, so it is left open where the handler's own message says
/// more.
const COMMANDS: &[Description] = &[
    d("DR.STATUS", -1, "slow", "Role, state, positions, targets and link of this node."),
    d("DR.HELP", -1, "fast", "The commands of redisdr."),
    d(
        "DR.LINK",
        -1,
        "admin dangerous slow",
        "Becomes a target of a source; clients may only read from then on.",
    ),
    d(
        "DR.CUTLINK",
        -1,
        "admin dangerous slow",
        "On a target: becomes a source. On a source: drops a target.",
    ),
    d(
        "DR.RESYNC",
        -1,
        "admin dangerous slow",
        "On a held target: accepts the source's data in place of its own.",
    ),
    d("DR.SNAPSHOT", -1, "admin dangerous slow", "Makes a snapshot now."),
    d(
        "DR.WAIT",
        -1,
        "slow blocking",
        "Waits until the client's writes are durable on targets or in the log.",
    ),
    d("DR._AUTH", -1, "fast connection", "Used by redisdr itself."),
    d("DR._SELECT", -1, "admin dangerous fast", "Used by redisdr itself."),
    d("DR._SHARD", -1, "admin dangerous fast", "Used by redisdr itself."),
    d("DR._REFUSED", -1, "write fast", "Answers in place of a command that is refused now."),
    d("DR._TTL", -1, "keyspace read fast", "Answers in place of a command that would show a held expiry."),
    d("DR._FIRST", -1, "write slow", "Releases the keys of a command and runs it."),
    d(
        "DR._CONFIG",
        -1,
        "admin dangerous slow",
        "Answers in place of CONFIG while a link keeps eviction off.",
    ),
    d("DR._POSITION", -1, "admin dangerous fast", "Used by redisdr itself."),
    d("DR.APPLY", -1, "admin dangerous slow", "Used by redisdr itself."),
    d("DR._LOAD", -1, "admin dangerous slow", "Used by redisdr itself."),
    d("DR._REBASE", -1, "admin dangerous slow", "Used by redisdr itself."),
];

/// Describes all commands that are registered; servers before 7.0 have no place for it.
pub fn describe(ctx: Ctx) {
    for command in COMMANDS {
        let name = c_text(command.name);
        let handle = api!(RedisModule_GetCommand(ctx.0, name.as_ptr()) else ptr::null_mut());
        if handle.is_null() {
            continue;
        }
        let (summary, since) = (c_text(command.summary), c_text("1.0.0"));
        let info = raw::RedisModuleCommandInfo {
            version: &raw const LAYOUT,
            summary: summary.as_ptr(),
            complexity: ptr::null(),
            since: since.as_ptr(),
            history: ptr::null_mut(),
            tips: ptr::null(),
            arity: command.arity,
            key_specs: ptr::null_mut(),
            args: ptr::null_mut(),
        };
        // The server copies all of it.
        if api!(RedisModule_SetCommandInfo(handle, &raw const info) else OK) != OK {
            log::warn!("{} could not be described to the server", command.name);
        }
        let categories = c_text(command.categories);
        if api!(RedisModule_SetCommandACLCategories(handle, categories.as_ptr()) else OK) != OK {
            log::warn!("{} could not be put into ACL categories", command.name);
        }
    }
}

/// Whether the server sorts the commands of modules into ACL categories.
pub fn has_categories() -> bool {
    // SAFETY: the table is filled once in OnLoad and never written again.
    unsafe { raw::RedisModule_SetCommandACLCategories }.is_some()
}
