//! Calls commands of the server with arguments straight from a buffer.
//!
//! The `b` format makes the server create each argument with a single reference, so that a command stores it as
//! it would store a client's (`SET k 123` as an integer); strings that the module holds would be stored as
//! they are. `b` needs one pair of C arguments per command argument, so the call sites below pass a fixed number
//! of pairs, of which the format uses the first ones.

use std::ffi::{c_char, CString};

use redis_module::raw;

use super::api::{c_text, CallReply, Ctx};

/// Longest command that is called by `b`.
const MAX_B: usize = 64;

/// Calls `argv` in the context's database. `None`: the server did not run it (unknown command, wrong number of
/// arguments); the reason is in `errno`.
pub fn call(ctx: Ctx, argv: &[&[u8]], flags: &str) -> Option<CallReply> {
    let (name, args) = argv.split_first()?;
    let name = CString::new(*name).ok()?;
    let reply = if args.len() <= 4 {
        call_b4(ctx, &name, args, flags)
    } else if args.len() <= 16 {
        call_b16(ctx, &name, args, flags)
    } else if args.len() <= MAX_B {
        call_b64(ctx, &name, args, flags)
    } else {
        call_v(ctx, &name, args, flags)
    };
    (!reply.is_null()).then_some(CallReply(reply))
}

type Fmt = [u8; MAX_B + 8];

fn format(flags: &str, n: usize) -> Fmt {
    let mut fmt = [0u8; MAX_B + 8];
    let letters = flags.bytes().chain(std::iter::repeat_n(b'b', n));
    fmt.iter_mut().take(MAX_B + 7).zip(letters).for_each(|(f, l)| *f = l);
    fmt
}

fn pair(args: &[&[u8]], at: usize) -> (*const c_char, usize) {
    args.get(at).map_or((std::ptr::null(), 0), |a| (a.as_ptr().cast(), a.len()))
}

macro_rules! call_with_pairs {
    ($ctx:expr, $name:expr, $args:expr, $flags:expr, [$($i:literal)*]) => {{
        let fmt = format($flags, $args.len());
        // SAFETY: the table is filled in OnLoad. The format names as many pairs as there are arguments, each a
        // pointer and a length that live through the call; surplus C arguments are never read.
        match unsafe { raw::RedisModule_Call } {
            None => std::ptr::null_mut(),
            // SAFETY: as above.
            Some(f) => unsafe {
                f($ctx.0, $name.as_ptr(), fmt.as_ptr().cast::<c_char>()
                    $(, pair($args, $i).0, pair($args, $i).1)*)
            },
        }
    }};
}

fn call_b4(ctx: Ctx, name: &CString, args: &[&[u8]], flags: &str) -> *mut raw::RedisModuleCallReply {
    call_with_pairs!(ctx, name, args, flags, [0 1 2 3])
}

fn call_b16(ctx: Ctx, name: &CString, args: &[&[u8]], flags: &str) -> *mut raw::RedisModuleCallReply {
    call_with_pairs!(ctx, name, args, flags, [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15])
}

fn call_b64(ctx: Ctx, name: &CString, args: &[&[u8]], flags: &str) -> *mut raw::RedisModuleCallReply {
    call_with_pairs!(ctx, name, args, flags, [
        0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31
        32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63
    ])
}

fn call_v(ctx: Ctx, name: &CString, args: &[&[u8]], flags: &str) -> *mut raw::RedisModuleCallReply {
    let fmt = c_text(&format!("{flags}v"));
    let strings: Vec<super::api::OwnedString> =
        args.iter().map(|a| super::api::OwnedString::new(ctx, a)).collect();
    let mut pointers: Vec<_> = strings.iter().map(super::api::OwnedString::ptr).collect();
    // SAFETY: the table is filled in OnLoad; "v" takes an array of strings and its length, both alive here.
    match unsafe { raw::RedisModule_Call } {
        None => std::ptr::null_mut(),
        // SAFETY: as above.
        Some(f) => unsafe { f(ctx.0, name.as_ptr(), fmt.as_ptr(), pointers.as_mut_ptr(), pointers.len()) },
    }
}
