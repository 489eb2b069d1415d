//! The one way into the server's log.

use super::api::{c_text, Ctx};

/// Longest piece that the server's logger takes.
const MAX_LINE: usize = 900;

/// Writes to the server's log. Control characters are escaped and the text is an argument of `%s`, never the
/// format, so that binary keys can neither break lines nor the server.
pub fn write(level: &'static std::ffi::CStr, text: &str) {
    let clean: String = text
        .chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect();
    let mut rest = clean.as_str();
    while !rest.is_empty() {
        let mut end = rest.len().min(MAX_LINE);
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let (line, tail) = rest.split_at(end);
        let line = c_text(line);
        // SAFETY: the table is filled in OnLoad; "%s" takes one NUL-terminated string. A null context is allowed
        // from threads.
        if let Some(f) = unsafe { redis_module::raw::RedisModule_Log } {
            // SAFETY: as above.
            unsafe { f(Ctx::NONE.0, level.as_ptr(), c"redisdr: %s".as_ptr(), line.as_ptr()) };
        }
        rest = tail;
    }
}

/// Routes the `log` facade into the server's log.
pub struct ServerLog;

impl log::Log for ServerLog {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Info
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = match record.level() {
            log::Level::Error | log::Level::Warn => c"warning",
            log::Level::Info => c"notice",
            log::Level::Debug | log::Level::Trace => c"verbose",
        };
        write(level, &record.args().to_string());
    }

    fn flush(&self) {}
}
