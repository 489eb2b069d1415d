//! Large strings, put together by a thread of the module's own and made a key without being copied again.
//!
//! The memory of a string of 512 MB that is written for the first time costs some hundred milliseconds of page
//! faults, whatever command does it. So the pieces that arrive on the main thread go to the thread `dr-stage`,
//! which has the server allocate the string and fills it; the main thread only hands the finished string to SET.

use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::OnceLock;

use crossbeam_channel::{unbounded, Sender};
use parking_lot::{Condvar, Mutex};
use redis_module::raw;

use super::api::{api, CallReply, Ctx, RedisModuleString, OK};
use super::guarded;
use crate::runtime::shared::Shared;

/// A finished string of the server's; freed when dropped.
pub struct Text(*mut RedisModuleString);

// SAFETY: the string has one reference, which whoever holds the value has; the server's allocator may be used from
// any thread.
unsafe impl Send for Text {}

impl Drop for Text {
    fn drop(&mut self) {
        if !self.0.is_null() {
            api!(RedisModule_FreeString(std::ptr::null_mut(), self.0) else ());
        }
    }
}

/// A piece, and whether it is the first one of a string of so many bytes.
struct Part {
    begins: Option<usize>,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct State {
    /// Length of the string that is being put together, and how much of it has arrived.
    total: u64,
    arrived: u64,
    /// How much of it is in its place.
    placed: u64,
    /// Number of the string, so that pieces of a former one are told apart.
    number: u64,
    text: Option<Text>,
}

struct Stage {
    parts: Sender<(u64, Part)>,
    state: Mutex<State>,
    change: Condvar,
}

static STAGE: OnceLock<Stage> = OnceLock::new();

/// Takes a piece.
///
/// # Errors
/// In words; the string has then to be begun again.
pub fn part(total: u64, at: u64, bytes: &[u8]) -> Result<(), String> {
    let len = usize::try_from(total).map_err(|_| "the string is too long".to_owned())?;
    let stage = stage()?;
    let mut state = stage.state.lock();
    if at == 0 {
        *state = State { total, number: state.number + 1, ..State::default() };
    }
    if state.arrived != at || state.total != total {
        return Err(format!("piece at {at} of {total} follows {} of {}", state.arrived, state.total));
    }
    state.arrived += bytes.len() as u64;
    let part = Part { begins: (at == 0).then_some(len), bytes: bytes.to_vec() };
    stage.parts.send((state.number, part)).map_err(|_| "the thread dr-stage has ended".to_owned())
}

/// Whether all that has arrived is in its place.
pub fn is_ready() -> bool {
    STAGE.get().is_none_or(|stage| {
        let state = stage.state.lock();
        state.placed == state.arrived
    })
}

/// The string, which must have arrived; waits where its last pieces are not in their place yet.
///
/// # Errors
/// In words.
pub fn take(total: u64) -> Result<Text, String> {
    let stage = STAGE.get().ok_or("no piece has arrived")?;
    let mut state = stage.state.lock();
    if state.total != total || state.arrived != total {
        return Err(format!("{} of {} bytes have arrived, not {total}", state.arrived, state.total));
    }
    // Where pieces come from a master or an AOF nobody has asked whether they are in their place.
    while state.placed < total {
        stage.change.wait(&mut state);
    }
    let text = state.text.take();
    *state = State { number: state.number, ..State::default() };
    text.ok_or_else(|| "the string could not be put together".to_owned())
}

/// Drops what has arrived.
pub fn clear() {
    if let Some(stage) = STAGE.get() {
        let mut state = stage.state.lock();
        *state = State { number: state.number + 1, ..State::default() };
    }
}

fn stage() -> Result<&'static Stage, String> {
    if let Some(stage) = STAGE.get() {
        return Ok(stage);
    }
    let (parts, arriving) = unbounded();
    // Only the main thread comes here.
    let stage = STAGE.get_or_init(|| Stage { parts, state: Mutex::default(), change: Condvar::new() });
    let run = move || {
        let mut place = Place::default();
        for (number, part) in arriving {
            let len = part.bytes.len() as u64;
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| place.put(part))).is_err() {
                place = Place::default();
            }
            let mut state = stage.state.lock();
            if state.number != number {
                continue;
            }
            state.placed += len;
            if state.placed == state.total {
                state.text = place.finish();
                stage.change.notify_all();
            }
        }
    };
    std::thread::Builder::new().name("dr-stage".into()).spawn(run).map_err(|e| e.to_string())?;
    Ok(stage)
}

/// The string that is being filled, on the thread.
#[derive(Default)]
struct Place {
    text: Option<Text>,
    len: usize,
    filled: usize,
}

impl Place {
    fn put(&mut self, part: Part) {
        if let Some(len) = part.begins {
            *self = Self::default();
            // Without bytes to copy the server fills it with zeros.
            let p = api!(RedisModule_CreateString(std::ptr::null_mut(), std::ptr::null(), len)
                else std::ptr::null_mut());
            *self = Self { text: (!p.is_null()).then_some(Text(p)), len, filled: 0 };
        }
        let fits = self.filled.checked_add(part.bytes.len()).filter(|end| *end <= self.len);
        let (Some(text), Some(end)) = (&self.text, fits) else { return };
        let mut len = 0usize;
        let p = api!(RedisModule_StringPtrLen(text.0, &raw mut len) else std::ptr::null());
        if p.is_null() || len != self.len {
            self.text = None;
            return;
        }
        // SAFETY: `p` is the buffer of `len` bytes of a string that only this thread knows, and the piece ends within
        // it; the server declares it const for strings that others may hold, too.
        unsafe {
            let to = p.cast_mut().cast::<u8>().add(self.filled);
            std::ptr::copy_nonoverlapping(part.bytes.as_ptr(), to, part.bytes.len());
        }
        self.filled = end;
    }

    fn finish(&mut self) -> Option<Text> {
        let whole = self.filled == self.len;
        std::mem::take(self).text.filter(|_| whole)
    }
}

/// What [`on_command`] is to give up.
static GIVE_UP: AtomicPtr<RedisModuleString> = AtomicPtr::new(std::ptr::null_mut());

/// Runs SET with the string itself. Nothing is propagated.
///
/// # Errors
/// The server's words.
pub fn set(ctx: Ctx, shared: &Shared, key: &[u8], mut text: Text) -> Result<(), String> {
    let name = super::api::OwnedString::new(ctx, key);
    let mut argv = [name.ptr(), text.0];
    let caps = shared.caps();
    // Since 8.1 Valkey copies a value that somebody else holds, too. So what is held here is given up when the
    // command has its own reference, and has not run yet.
    let filter = if caps.valkey && caps.version >= 0x08_01_00 {
        let filter = api!(RedisModule_RegisterCommandFilter(ctx.0, Some(on_command), 0)
            else std::ptr::null_mut());
        if !filter.is_null() {
            GIVE_UP.store(std::mem::replace(&mut text.0, std::ptr::null_mut()), Ordering::Release);
        }
        filter
    } else {
        std::ptr::null_mut()
    };
    // SAFETY: the table is filled in OnLoad; "v" takes an array of strings and its length, both alive here. The server
    // takes a reference of its own to each of them before it calls the filter.
    let reply = match unsafe { raw::RedisModule_Call } {
        None => std::ptr::null_mut(),
        // SAFETY: as above.
        Some(f) => unsafe { f(ctx.0, c"SET".as_ptr(), c"v".as_ptr(), argv.as_mut_ptr(), argv.len()) },
    };
    if !filter.is_null() {
        api!(RedisModule_UnregisterCommandFilter(ctx.0, filter) else OK);
        drop(Text(GIVE_UP.swap(std::ptr::null_mut(), Ordering::AcqRel)));
    }
    if reply.is_null() {
        return Err("SET is not available".to_owned());
    }
    let reply = CallReply(reply);
    if reply.is_error() {
        return Err(String::from_utf8_lossy(reply.bytes()).into_owned());
    }
    Ok(())
}

extern "C" fn on_command(_: *mut raw::RedisModuleCommandFilterCtx) {
    guarded((), || drop(Text(GIVE_UP.swap(std::ptr::null_mut(), Ordering::AcqRel))));
}
