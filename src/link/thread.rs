//! Named threads whose panics are caught and told.

use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::thread::{Builder, JoinHandle};

/// Runs `body` in a thread called `name`. A panic ends only this thread: it is logged and given to
/// `on_panic`.
///
/// # Errors
/// What the system said where it could not make the thread.
pub fn spawn<F, P>(name: &str, body: F, on_panic: P) -> io::Result<JoinHandle<()>>
where
    F: FnOnce() + Send + 'static,
    P: FnOnce(&str) + Send + 'static,
{
    let own = name.to_owned();
    Builder::new().name(name.to_owned()).spawn(move || {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(body)) {
            let what = panic_text(payload.as_ref());
            log::error!("thread {own} panicked: {what}");
            drop(catch_unwind(AssertUnwindSafe(|| on_panic(&what))));
        }
    })
}

/// The words of a panic.
#[must_use]
pub fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

/// Waits for a thread; its panic was caught and told inside.
pub fn join(handle: JoinHandle<()>) {
    drop(handle.join());
}
