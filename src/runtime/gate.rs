//! What the command filter does with the commands of clients, and which commands are of which kind.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::Arc;

use arc_swap::ArcSwap;

/// What clients may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum GateMode {
    /// Everything.
    Open = 0,
    /// No writes yet: the tap is not attached, a write would escape the log.
    Starting = 1,
    /// Neither reads nor writes: the dataset is not whole.
    Recovering = 2,
    /// Linked to a source: no writes, and TTLs are shown without what is added while linked.
    Fenced = 3,
    /// Replica of a linked target: TTLs are shown as with [`Self::Fenced`].
    TrueTtls = 4,
    /// The log has failed and the operator prefers no writes to writes without a log.
    LogFailed = 5,
    /// Promoted, with expiries that are still to be released: TTLs as with [`Self::Fenced`], writes allowed.
    Releasing = 6,
    /// The link is cut and the tap is not attached yet: no writes, TTLs as with [`Self::Fenced`].
    Cutting = 7,
}

impl GateMode {
    fn from_u8(n: u8) -> Self {
        match n {
            1 => Self::Starting,
            2 => Self::Recovering,
            3 => Self::Fenced,
            4 => Self::TrueTtls,
            5 => Self::LogFailed,
            6 => Self::Releasing,
            7 => Self::Cutting,
            _ => Self::Open,
        }
    }

    /// Whether readers are served and must not see that expiries are held.
    #[must_use]
    pub fn hides_hold(self) -> bool {
        matches!(self, Self::Fenced | Self::TrueTtls | Self::Releasing | Self::Cutting | Self::LogFailed)
    }
}

/// What the filter makes of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Runs as it is.
    Pass,
    /// Is answered with the gate's error instead.
    Refuse,
    /// Is answered by the module, which corrects the reply.
    TrueTtl,
}

/// The gate: read by the filter for each command, so the common case is one atomic load.
pub struct Gate {
    mode: AtomicU8,
    error: ArcSwap<String>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { mode: AtomicU8::new(GateMode::Open as u8), error: ArcSwap::from_pointee(String::new()) }
    }
}

impl Gate {
    /// The current mode.
    #[must_use]
    pub fn mode(&self) -> GateMode {
        GateMode::from_u8(self.mode.load(Ordering::Acquire))
    }

    /// Changes the mode; `error` is what refused commands are answered with, its code word first. A mode that refuses
    /// nothing leaves the text: a command refused a moment ago may still have to be answered.
    pub fn set(&self, mode: GateMode, error: &str) {
        if !error.is_empty() {
            self.error.store(Arc::new(error.to_owned()));
        }
        self.mode.store(mode as u8, Ordering::Release);
    }

    /// What refused commands are answered with.
    #[must_use]
    pub fn error(&self) -> Arc<String> {
        self.error.load_full()
    }
}

/// What a command does to the dataset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Class {
    /// Flagged `write`.
    pub write: bool,
    /// Flagged `readonly`.
    pub read: bool,
}

/// Commands whose replies show expiries.
const TTL_READERS: [&[u8]; 8] =
    [b"ttl", b"pttl", b"expiretime", b"pexpiretime", b"httl", b"hpttl", b"hexpiretime", b"hpexpiretime"];

/// Whether a command's reply shows expiries.
#[must_use]
pub fn shows_ttl(name: &[u8]) -> bool {
    TTL_READERS.iter().any(|t| t.eq_ignore_ascii_case(name))
}

/// The server's commands by lower-case name; a subcommand is `container|sub`.
#[derive(Debug, Default)]
pub struct CommandTable {
    classes: HashMap<Vec<u8>, Class>,
    /// Containers with at least one subcommand of their own flags.
    containers: HashMap<Vec<u8>, ()>,
}

const MAX_NAME: usize = 64;

impl CommandTable {
    /// Adds a command.
    pub fn add(&mut self, name: &[u8], class: Class) {
        let name = name.to_ascii_lowercase();
        if let Some(bar) = name.iter().position(|b| *b == b'|') {
            self.containers.insert(name.get(..bar).unwrap_or_default().to_vec(), ());
        }
        self.classes.insert(name, class);
    }

    /// Number of commands.
    #[must_use]
    pub fn len(&self) -> usize {
        self.classes.len()
    }

    /// Whether no command is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    /// The class of a command with its arguments.
    #[must_use]
    pub fn class_of(&self, argv: &[&[u8]]) -> Class {
        argv.first().map_or_else(Class::default, |name| self.class(name, argv.get(1).copied()))
    }

    /// The class of a command, given its name and first argument.
    #[must_use]
    pub fn class(&self, name: &[u8], sub: Option<&[u8]>) -> Class {
        let mut buf = [0u8; MAX_NAME];
        let Some(lower) = lower(name, &mut buf, 0) else {
            return Class::default();
        };
        let own = self.classes.get(lower).copied().unwrap_or_default();
        let Some(sub) = sub.filter(|_| self.containers.contains_key(lower)) else {
            return own;
        };
        let n = name.len();
        if let Some(slot) = buf.get_mut(n) {
            *slot = b'|';
        }
        match lower_at(sub, &mut buf, n + 1).and_then(|full| self.classes.get(full)) {
            Some(c) => *c,
            None => own,
        }
    }

    /// Decides on one command in a mode.
    #[must_use]
    pub fn verdict(&self, mode: GateMode, name: &[u8], sub: Option<&[u8]>) -> Verdict {
        let refuse = match mode {
            GateMode::Open => return Verdict::Pass,
            GateMode::TrueTtls | GateMode::Releasing => false,
            GateMode::Starting | GateMode::LogFailed | GateMode::Fenced | GateMode::Cutting => {
                self.class(name, sub).write
            }
            GateMode::Recovering => {
                let class = self.class(name, sub);
                class.write || class.read
            }
        };
        if refuse {
            return Verdict::Refuse;
        }
        if mode.hides_hold() && shows_ttl(name) {
            Verdict::TrueTtl
        } else {
            Verdict::Pass
        }
    }
}

/// The part of a key that decides its slot in a cluster.
#[must_use]
pub fn hash_tag(key: &[u8]) -> &[u8] {
    let open = key.iter().position(|b| *b == b'{');
    let behind = open.and_then(|at| key.get(at + 1..)).unwrap_or_default();
    match behind.iter().position(|b| *b == b'}') {
        Some(len) if len > 0 => behind.get(..len).unwrap_or(key),
        _ => key,
    }
}

fn lower<'a>(name: &[u8], buf: &'a mut [u8; MAX_NAME], at: usize) -> Option<&'a [u8]> {
    lower_at(name, buf, at)
}

/// Lower-cases `name` into `buf` at `at` and returns everything up to its end.
fn lower_at<'a>(name: &[u8], buf: &'a mut [u8; MAX_NAME], at: usize) -> Option<&'a [u8]> {
    let end = at.checked_add(name.len())?;
    let slot = buf.get_mut(at..end)?;
    slot.copy_from_slice(name);
    slot.make_ascii_lowercase();
    buf.get(..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> CommandTable {
        let mut t = CommandTable::default();
        t.add(b"set", Class { write: true, read: false });
        t.add(b"get", Class { write: false, read: true });
        t.add(b"ttl", Class { write: false, read: true });
        t.add(b"ping", Class::default());
        t.add(b"function", Class::default());
        t.add(b"function|load", Class { write: true, read: false });
        t.add(b"function|list", Class::default());
        t
    }

    #[test]
    fn a_fence_refuses_writes_and_corrects_ttls() {
        let t = table();
        let v = |name: &[u8], sub: Option<&[u8]>| t.verdict(GateMode::Fenced, name, sub);
        assert_eq!(v(b"SeT", Some(b"k")), Verdict::Refuse);
        assert_eq!(v(b"get", Some(b"k")), Verdict::Pass);
        assert_eq!(v(b"TTL", Some(b"k")), Verdict::TrueTtl);
        assert_eq!(v(b"FUNCTION", Some(b"LOAD")), Verdict::Refuse);
        assert_eq!(v(b"function", Some(b"LIST")), Verdict::Pass);
        assert_eq!(v(b"function", None), Verdict::Pass);
        assert_eq!(v(&[b'x'; 500], Some(&[b'y'; 500])), Verdict::Pass);
        assert_eq!(v(b"function", Some(&[b'y'; 500])), Verdict::Pass);
    }

    #[test]
    fn recovery_refuses_reads_too_and_an_open_gate_nothing() {
        let t = table();
        assert_eq!(t.verdict(GateMode::Recovering, b"get", None), Verdict::Refuse);
        assert_eq!(t.verdict(GateMode::Recovering, b"ping", None), Verdict::Pass);
        assert_eq!(t.verdict(GateMode::Starting, b"get", None), Verdict::Pass);
        assert_eq!(t.verdict(GateMode::Starting, b"set", None), Verdict::Refuse);
        assert_eq!(t.verdict(GateMode::Open, b"set", None), Verdict::Pass);
        assert_eq!(t.verdict(GateMode::Releasing, b"set", None), Verdict::Pass);
        assert_eq!(t.verdict(GateMode::Cutting, b"set", None), Verdict::Refuse);
        assert_eq!(t.verdict(GateMode::Cutting, b"ttl", None), Verdict::TrueTtl);
    }

    #[test]
    fn a_hash_tag_is_what_a_cluster_takes() {
        for (key, tag) in
            [("a{b}c", "b"), ("a", "a"), ("a{}b", "a{}b"), ("a{b", "a{b"), ("a}{b}{c}", "b"), ("", "")]
        {
            assert_eq!(hash_tag(key.as_bytes()), tag.as_bytes(), "{key}");
        }
    }
}
