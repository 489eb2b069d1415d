//! Thin safe-to-call wrappers of the module API; the only place that reads its function table.
//!
//! A function that the running server does not have is an error, never a crash: the table's entry is empty.

use std::ffi::{c_char, c_int, c_longlong, CString};
use std::ptr;

use redis_module::raw;

pub use raw::{RedisModuleCallReply, RedisModuleCtx, RedisModuleString};

/// `REDISMODULE_OK`
pub const OK: c_int = raw::REDISMODULE_OK as c_int;
/// `REDISMODULE_ERR`
pub const ERR: c_int = raw::REDISMODULE_ERR as c_int;

/// A context that the server handed to a callback; valid within that call only.
#[derive(Clone, Copy)]
pub struct Ctx(pub *mut RedisModuleCtx);

/// Calls a function of the table with arguments, or yields the value behind `else` where the server lacks it.
macro_rules! api {
    ($name:ident ( $($arg:expr),* $(,)? ) else $missing:expr) => {{
        // SAFETY: the table is filled once in OnLoad, before any other code of the module runs, and never
        // written again; the arguments fulfil the function's contract at each call site.
        match unsafe { redis_module::raw::$name } {
            // SAFETY: as above.
            Some(f) => unsafe { f($($arg),*) },
            None => $missing,
        }
    }};
}
pub(crate) use api;

/// Text for a C string argument; NUL bytes become `?`.
pub fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "?")).unwrap_or_default()
}

/// The bytes of a module string; empty for a null pointer.
pub fn bytes<'a>(s: *mut RedisModuleString) -> &'a [u8] {
    if s.is_null() {
        return &[];
    }
    let mut len = 0usize;
    let p = api!(RedisModule_StringPtrLen(s, &raw mut len) else ptr::null());
    if p.is_null() {
        return &[];
    }
    // SAFETY: the server keeps the bytes for as long as the argument lives, which is the handler's run; callers
    // do not keep the slice beyond it.
    unsafe { std::slice::from_raw_parts(p.cast::<u8>(), len) }
}

/// The arguments of a command as slices.
pub fn args<'a>(argv: *mut *mut RedisModuleString, argc: c_int) -> Vec<&'a [u8]> {
    let n = usize::try_from(argc).unwrap_or(0);
    // SAFETY: the server hands `argc` valid pointers.
    (0..n).map(|i| bytes(unsafe { *argv.add(i) })).collect()
}

impl Ctx {
    /// No context: for logging from threads.
    pub const NONE: Self = Self(ptr::null_mut());

    /// Replies with a status line.
    pub fn reply_simple(self, text: &str) -> c_int {
        let text = c_text(text);
        api!(RedisModule_ReplyWithSimpleString(self.0, text.as_ptr()) else ERR)
    }

    /// Replies with an error; `text` begins with its code word.
    pub fn reply_error(self, text: &str) -> c_int {
        let text = c_text(&text.replace(['\r', '\n'], " "));
        api!(RedisModule_ReplyWithError(self.0, text.as_ptr()) else ERR)
    }

    /// Replies with an integer.
    pub fn reply_int(self, n: i64) -> c_int {
        api!(RedisModule_ReplyWithLongLong(self.0, n) else ERR)
    }

    /// Replies with a bulk string.
    pub fn reply_bytes(self, b: &[u8]) -> c_int {
        api!(RedisModule_ReplyWithStringBuffer(self.0, b.as_ptr().cast::<c_char>(), b.len()) else ERR)
    }

    /// Replies with null.
    pub fn reply_null(self) -> c_int {
        api!(RedisModule_ReplyWithNull(self.0) else ERR)
    }

    /// Begins an array of `n` replies.
    pub fn reply_array(self, n: usize) -> c_int {
        api!(RedisModule_ReplyWithArray(self.0, n as _) else ERR)
    }

    /// Begins a map of `n` pairs: a map in RESP3 where the server knows it, else a flat array.
    pub fn reply_map(self, n: usize) -> c_int {
        api!(RedisModule_ReplyWithMap(self.0, n as _) else self.reply_array(n * 2))
    }

    /// Passes a reply of the server on.
    pub fn reply_call(self, reply: &CallReply) -> c_int {
        api!(RedisModule_ReplyWithCallReply(self.0, reply.0) else ERR)
    }

    /// Selects a database for this context.
    pub fn select(self, db: u32) -> bool {
        let db = c_int::try_from(db).unwrap_or(c_int::MAX);
        api!(RedisModule_SelectDb(self.0, db) else ERR) == OK
    }

    /// The database that this context has selected.
    pub fn selected(self) -> u32 {
        u32::try_from(api!(RedisModule_GetSelectedDb(self.0) else 0)).unwrap_or(0)
    }

    /// Id of the client that runs the command; 0 where there is none.
    pub fn client_id(self) -> u64 {
        api!(RedisModule_GetClientId(self.0) else 0)
    }

    /// `REDISMODULE_CTX_FLAGS_*`
    pub fn flags(self) -> u32 {
        u32::try_from(api!(RedisModule_GetContextFlags(self.0) else 0)).unwrap_or(0)
    }

    /// Propagates the running command as it came.
    pub fn replicate_verbatim(self) -> c_int {
        api!(RedisModule_ReplicateVerbatim(self.0) else ERR)
    }

    /// Propagates a command of arbitrary arguments.
    pub fn replicate(self, command: &str, args: &[&[u8]]) -> c_int {
        let command = c_text(command);
        let strings: Vec<OwnedString> = args.iter().map(|a| OwnedString::new(self, a)).collect();
        let mut pointers: Vec<*mut RedisModuleString> = strings.iter().map(|s| s.ptr).collect();
        self.replicate_strings(&command, &mut pointers)
    }

    /// Propagates a command whose last argument is a string of the server's, which is not copied.
    pub fn replicate_before(self, command: &str, args: &[&[u8]], last: *mut RedisModuleString) -> c_int {
        let command = c_text(command);
        let strings: Vec<OwnedString> = args.iter().map(|a| OwnedString::new(Self::NONE, a)).collect();
        let mut pointers: Vec<_> = strings.iter().map(|s| s.ptr).chain([last]).collect();
        self.replicate_strings(&command, &mut pointers)
    }

    fn replicate_strings(self, command: &CString, pointers: &mut [*mut RedisModuleString]) -> c_int {
        // SAFETY: the table is filled in OnLoad; "v" takes an array of strings and its length, both alive here.
        match unsafe { raw::RedisModule_Replicate } {
            // SAFETY: as above.
            Some(f) => unsafe {
                f(self.0, command.as_ptr(), c"v".as_ptr(), pointers.as_mut_ptr(), pointers.len())
            },
            None => ERR,
        }
    }

    /// A section of INFO as the server has it now. Safe in a forked child.
    pub fn server_info(self, section: &str) -> Option<ServerInfo> {
        let section = c_text(section);
        let info = api!(RedisModule_GetServerInfo(self.0, section.as_ptr()) else ptr::null_mut());
        (!info.is_null()).then_some(ServerInfo { ctx: self, info })
    }
}

/// A string that is freed when dropped.
pub struct OwnedString {
    ctx: Ctx,
    ptr: *mut RedisModuleString,
}

impl OwnedString {
    /// The pointer, valid while `self` lives.
    pub fn ptr(&self) -> *mut RedisModuleString {
        self.ptr
    }

    /// A copy of `b`.
    pub fn new(ctx: Ctx, b: &[u8]) -> Self {
        let ptr = api!(RedisModule_CreateString(ctx.0, b.as_ptr().cast::<c_char>(), b.len())
            else ptr::null_mut());
        Self { ctx, ptr }
    }
}

impl Drop for OwnedString {
    fn drop(&mut self) {
        if !self.ptr.is_null() {
            api!(RedisModule_FreeString(self.ctx.0, self.ptr) else ());
        }
    }
}

/// A section of INFO.
pub struct ServerInfo {
    ctx: Ctx,
    info: *mut raw::RedisModuleServerInfoData,
}

impl ServerInfo {
    /// A field as an integer.
    pub fn signed(&self, field: &str) -> Option<i64> {
        let field = c_text(field);
        let mut err: c_int = 0;
        let v: c_longlong = api!(RedisModule_ServerInfoGetFieldSigned(self.info, field.as_ptr(), &raw mut err)
            else { err = 1; 0 });
        (err == 0).then_some(v)
    }

    /// A field as text.
    pub fn text(&self, field: &str) -> Option<String> {
        let field = c_text(field);
        let p = api!(RedisModule_ServerInfoGetFieldC(self.info, field.as_ptr()) else ptr::null());
        if p.is_null() {
            return None;
        }
        // SAFETY: the server returns a NUL-terminated string that lives as long as `info`.
        let text = unsafe { std::ffi::CStr::from_ptr(p) };
        Some(text.to_string_lossy().trim().to_owned())
    }
}

impl Drop for ServerInfo {
    fn drop(&mut self) {
        api!(RedisModule_FreeServerInfo(self.ctx.0, self.info) else ());
    }
}

/// The reply of a called command; freed when dropped.
pub struct CallReply(pub *mut RedisModuleCallReply);

impl CallReply {
    /// `REDISMODULE_REPLY_*`
    pub fn kind(&self) -> c_int {
        api!(RedisModule_CallReplyType(self.0) else -1)
    }

    /// Whether it is an error.
    pub fn is_error(&self) -> bool {
        self.kind() == raw::REDISMODULE_REPLY_ERROR as c_int
    }

    /// The bytes of a string, status or error reply.
    pub fn bytes(&self) -> &[u8] {
        let mut len = 0usize;
        let p = api!(RedisModule_CallReplyStringPtr(self.0, &raw mut len) else ptr::null());
        if p.is_null() {
            return &[];
        }
        // SAFETY: the bytes live as long as the reply, which `self` borrows.
        unsafe { std::slice::from_raw_parts(p.cast::<u8>(), len) }
    }

    /// The value of an integer reply.
    pub fn int(&self) -> i64 {
        api!(RedisModule_CallReplyInteger(self.0) else 0)
    }

    /// Number of elements of an array reply.
    pub fn len(&self) -> usize {
        api!(RedisModule_CallReplyLength(self.0) else 0)
    }

    /// One element of an array reply; it belongs to this reply and must not outlive it.
    pub fn element(&self, at: usize) -> Option<std::mem::ManuallyDrop<CallReply>> {
        let p = api!(RedisModule_CallReplyArrayElement(self.0, at) else ptr::null_mut());
        (!p.is_null()).then(|| std::mem::ManuallyDrop::new(CallReply(p)))
    }
}

impl Drop for CallReply {
    fn drop(&mut self) {
        if !self.0.is_null() {
            api!(RedisModule_FreeCallReply(self.0) else ());
        }
    }
}
