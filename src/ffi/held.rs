//! Keys whose time is over and that are still there, since their expiries are held.
//!
//! A native replica hides such a key from readers. Here the filter looks at the keys of each command that a client sends
//! to a linked target, and has DR._TTL answer for those that would meet one. While a release runs at a promoted node the
//! same goes for reads, and DR._FIRST releases the keys of a write before it runs.

use std::ffi::c_int;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis_module::raw;

use super::api::{api, Ctx, OwnedString, RedisModuleCtx, RedisModuleString, OK};
use crate::apply::{ttl, ServerCaps};
use crate::runtime::gate::{self, Class, GateMode};
use crate::runtime::now_ms;

/// For looking at keys where the server gives no context: within the filter.
static CTX: AtomicPtr<RedisModuleCtx> = AtomicPtr::new(ptr::null_mut());
/// Databases with keys, and until when that is taken for true. Used by the main thread alone.
static DATABASES: Mutex<Option<(Instant, Vec<u32>)>> = Mutex::new(None);
/// How long it is. A key in a database that had none is shown so much longer than its time.
const FRESH: Duration = Duration::from_millis(10);

/// What hides keys; once, at the load.
pub fn register(ctx: Ctx) {
    let detached = api!(RedisModule_GetDetachedThreadSafeContext(ctx.0) else ptr::null_mut());
    CTX.store(detached, Ordering::Release);
}

/// Whether a key's expiry is held, and its time over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// There is no such key, or its expiry is the true one.
    Plain,
    /// Held.
    Held,
    /// Held, and a server that does not hold it would show no such key.
    Gone,
}

/// What a look at a key says.
struct Look {
    state: State,
    hash: bool,
}

fn flags(caps: ServerCaps) -> c_int {
    let all = if caps.since(0x07_02_00) {
        raw::REDISMODULE_OPEN_KEY_NOTOUCH
            | raw::REDISMODULE_OPEN_KEY_NONOTIFY
            | raw::REDISMODULE_OPEN_KEY_NOSTATS
            | raw::REDISMODULE_OPEN_KEY_NOEXPIRE
    } else {
        raw::REDISMODULE_OPEN_KEY_NOTOUCH
    };
    (all | raw::REDISMODULE_READ) as c_int
}

/// Looks at a key of the selected database.
fn look(ctx: Ctx, name: *mut RedisModuleString, caps: ServerCaps) -> Look {
    let key = api!(RedisModule_OpenKey(ctx.0, name, flags(caps)) else ptr::null_mut());
    if key.is_null() {
        return Look { state: State::Plain, hash: false };
    }
    let left = api!(RedisModule_GetExpire(key) else -1);
    let hash = api!(RedisModule_KeyType(key) else 0) == raw::REDISMODULE_KEYTYPE_HASH as c_int;
    api!(RedisModule_CloseKey(key) else ());
    let now = now_ms();
    // No expiry is -1, and a time that is over would be 0.
    let state = match (left > 0).then(|| ttl::released(now.saturating_add(left))).flatten() {
        None => State::Plain,
        Some(expiry) if expiry <= now => State::Gone,
        Some(_) => State::Held,
    };
    Look { state, hash }
}

/// Where the keys of a command stand in it. None for commands without keys, and for what is no command.
fn positions(ctx: Ctx, argv: &mut [*mut RedisModuleString]) -> Vec<usize> {
    let (Ok(argc), mut count) = (c_int::try_from(argv.len()), 0) else { return Vec::new() };
    let found = api!(RedisModule_GetCommandKeys(ctx.0, argv.as_mut_ptr(), argc, &raw mut count)
        else ptr::null_mut());
    if found.is_null() {
        return Vec::new();
    }
    let count = usize::try_from(count).unwrap_or(0);
    // SAFETY: the server returns so many numbers, which are ours until they are freed below.
    let all = unsafe { std::slice::from_raw_parts(found, count) };
    let all = all.iter().filter_map(|at| usize::try_from(*at).ok()).filter(|at| *at < argv.len()).collect();
    api!(RedisModule_Free(found.cast()) else ());
    all
}

/// Runs `each` in every database that has keys, until it says that it has found what it looks for.
fn in_databases(ctx: Ctx, mut each: impl FnMut() -> bool) -> bool {
    let mut cached = DATABASES.lock();
    let now = Instant::now();
    if cached.as_ref().is_none_or(|(until, _)| now >= *until) {
        let mut with_keys = Vec::new();
        let mut db = 0;
        while ctx.select(db) {
            if api!(RedisModule_DbSize(ctx.0) else 1) > 0 {
                with_keys.push(db);
            }
            db += 1;
        }
        // Somebody may have configured very many.
        *cached = Some((now + FRESH * (1 + db / 64), with_keys));
    }
    let all = cached.as_ref().map(|(_, all)| all.as_slice()).unwrap_or_default();
    all.iter().any(|db| ctx.select(*db) && each())
}

/// Commands that wait: where nobody can tell whether one of their keys is gone they run as they are.
fn waits(name: &[u8]) -> bool {
    let names: [&[u8]; 10] = [
        b"blpop",
        b"brpop",
        b"brpoplpush",
        b"blmove",
        b"blmpop",
        b"bzpopmin",
        b"bzpopmax",
        b"bzmpop",
        b"xread",
        b"xreadgroup",
    ];
    names.iter().any(|n| n.eq_ignore_ascii_case(name))
}

/// Runs scripts, whose commands come through the filter by themselves.
fn is_script(name: &[u8]) -> bool {
    let names: [&[u8]; 3] = [b"eval_ro", b"evalsha_ro", b"fcall_ro"];
    names.iter().any(|n| n.eq_ignore_ascii_case(name))
}

/// `EXPIRE key time condition` and its like compare with the present expiry.
fn compares(name: &[u8], args: usize) -> bool {
    let names: [&[u8]; 4] = [b"expire", b"pexpire", b"expireat", b"pexpireat"];
    args > 3 && names.iter().any(|n| n.eq_ignore_ascii_case(name))
}

/// The command that is to run a client's command instead of the server, where that would show or use what is gone.
///
/// The filter does not learn which database the client has selected: all are looked at, and the command that runs
/// instead knows it.
pub fn instead(
    mode: GateMode,
    class: Class,
    argv: &mut [*mut RedisModuleString],
    name: &[u8],
    caps: ServerCaps,
    replica: bool,
) -> Option<&'static [u8]> {
    let releasing = mode == GateMode::Releasing;
    let concerns = class.read || (class.write && releasing);
    let ctx = Ctx(CTX.load(Ordering::Acquire));
    let ours = name.get(..3).is_some_and(|start| start.eq_ignore_ascii_case(b"DR."));
    if !concerns || ctx.0.is_null() || is_script(name) || ours {
        return None;
    }
    let keys = positions(ctx, argv);
    if keys.is_empty() {
        return None;
    }
    let wrapper: &'static [u8] = if class.write { b"DR._FIRST" } else { b"DR._TTL" };
    // Nothing can expire by itself while all expiries are held, nor at a replica.
    let still = matches!(mode, GateMode::Fenced | GateMode::Cutting) || replica;
    if !still && caps.since(0x07_00_00) && !caps.since(0x07_02_00) {
        // A look would delete what has expired, and 7.0 ends when that happens here.
        return (!waits(name)).then_some(wrapper);
    }
    let conditional = class.write && compares(name, argv.len());
    let fields = releasing && caps.has_timed_fields();
    let mut timed_hash = false;
    let meets = in_databases(ctx, || {
        keys.iter().filter_map(|at| argv.get(*at)).any(|key| {
            let seen = look(ctx, *key, caps);
            timed_hash |= fields && seen.hash;
            seen.state == State::Gone || (conditional && seen.state == State::Held) || timed_hash
        })
    });
    match (meets, timed_hash) {
        (false, _) => None,
        // Fields cannot be hidden one by one: they are released, whatever the command does.
        (true, true) => Some(b"DR._FIRST"),
        (true, false) => Some(wrapper),
    }
}

/// A command as the server's strings.
pub struct Command {
    strings: Vec<OwnedString>,
    keys: Vec<usize>,
}

impl Command {
    /// Of these arguments.
    pub fn new(ctx: Ctx, argv: &[&[u8]]) -> Self {
        let strings: Vec<OwnedString> = argv.iter().map(|arg| OwnedString::new(ctx, arg)).collect();
        let mut pointers: Vec<_> = strings.iter().map(OwnedString::ptr).collect();
        let keys = positions(ctx, &mut pointers);
        Self { strings, keys }
    }

    /// Where its keys stand.
    pub fn keys(&self) -> &[usize] {
        &self.keys
    }

    /// Those of its keys that are gone, in the selected database.
    pub fn gone(&self, ctx: Ctx, caps: ServerCaps) -> Vec<usize> {
        let is_gone = |at: &&usize| {
            self.strings.get(**at).is_some_and(|key| look(ctx, key.ptr(), caps).state == State::Gone)
        };
        self.keys.iter().filter(is_gone).copied().collect()
    }

    /// Whether the server lets the caller run it, keys included. Before 7.0 there is no way to ask.
    pub fn is_allowed(&self, ctx: Ctx) -> Option<bool> {
        let mut pointers: Vec<_> = self.strings.iter().map(OwnedString::ptr).collect();
        let name = api!(RedisModule_GetCurrentUserName(ctx.0) else ptr::null_mut());
        if name.is_null() {
            return None;
        }
        let user = api!(RedisModule_GetModuleUserFromUserName(name) else ptr::null_mut());
        api!(RedisModule_FreeString(ctx.0, name) else ());
        if user.is_null() {
            return None;
        }
        let argc = c_int::try_from(pointers.len()).unwrap_or(0);
        let done = api!(RedisModule_ACLCheckCommandPermissions(user, pointers.as_mut_ptr(), argc) else 1);
        api!(RedisModule_FreeModuleUser(user) else ());
        Some(done == OK)
    }
}

/// Tells the server where the keys are in a command that stands behind one of ours, if that is what it asks; then
/// nothing is to be run.
pub fn told_keys(ctx: Ctx, args: &[&[u8]]) -> bool {
    if api!(RedisModule_IsKeysPositionRequest(ctx.0) else 0) == 0 {
        return false;
    }
    let argv = args.get(1..).unwrap_or_default();
    if argv.is_empty() {
        return true;
    }
    let reads = args.first().is_some_and(|name| name.eq_ignore_ascii_case(b"DR._TTL"));
    let read = (raw::REDISMODULE_CMD_KEY_RO | raw::REDISMODULE_CMD_KEY_ACCESS) as c_int;
    for at in Command::new(ctx, argv).keys() {
        let at = c_int::try_from(at + 1).unwrap_or(1);
        if reads {
            // Servers before 7.0 do not tell reading from writing.
            api!(RedisModule_KeyAtPosWithFlags(ctx.0, at, read) else
                api!(RedisModule_KeyAtPos(ctx.0, at) else ()));
        } else {
            api!(RedisModule_KeyAtPos(ctx.0, at) else ());
        }
    }
    true
}

/// A name that no key has, in the slot of `key`.
pub fn nobody(key: &[u8]) -> Vec<u8> {
    [b"{", gate::hash_tag(key), b"}\0redisdr: its time is over\0"].concat()
}
