//! What the command families share: the random source, key and value choice, clock, and what was learned from replies.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use super::rng::Rng;
use super::table::Caps;

pub type Argv = Vec<Vec<u8>>;

/// Databases that the workload writes to: `0..DATABASES`.
pub const DATABASES: u64 = 5;
/// Keys of each kind in each database. Few, so that most commands meet a key that exists.
const KEYS_PER_KIND: u64 = 6;

/// What a key holds, so that commands meet the type they work on (and now and then another one).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Text,
    Number,
    Bits,
    Loglog,
    List,
    Set,
    Sorted,
    Geo,
    Hash,
    Stream,
    Vector,
}

const KINDS: [Kind; 11] = [
    Kind::Text,
    Kind::Number,
    Kind::Bits,
    Kind::Loglog,
    Kind::List,
    Kind::Set,
    Kind::Sorted,
    Kind::Geo,
    Kind::Hash,
    Kind::Stream,
    Kind::Vector,
];

/// Anything that can stand in a command.
pub trait Arg {
    fn arg(self) -> Vec<u8>;
}
impl Arg for &str {
    fn arg(self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }
}
impl Arg for String {
    fn arg(self) -> Vec<u8> {
        self.into_bytes()
    }
}
impl Arg for Vec<u8> {
    fn arg(self) -> Vec<u8> {
        self
    }
}
impl Arg for &[u8] {
    fn arg(self) -> Vec<u8> {
        self.to_vec()
    }
}
impl Arg for i64 {
    fn arg(self) -> Vec<u8> {
        self.to_string().into_bytes()
    }
}
impl Arg for u64 {
    fn arg(self) -> Vec<u8> {
        self.to_string().into_bytes()
    }
}
impl Arg for usize {
    fn arg(self) -> Vec<u8> {
        self.to_string().into_bytes()
    }
}

/// `argv!["SET", key, 5]`: each element by [`Arg`].
macro_rules! argv {
    ($($a:expr),* $(,)?) => { Vec::from([$($crate::workload::mix::Arg::arg($a)),*]) };
}
pub(crate) use argv;

/// A value that DUMP returned, to be restored later.
pub struct Dumped {
    pub kind: Kind,
    pub payload: Vec<u8>,
}

/// An entry that a group delivered and that may still be pending.
#[derive(Clone)]
pub struct Delivery {
    pub db: u64,
    pub key: Vec<u8>,
    pub group: Vec<u8>,
    pub id: Vec<u8>,
}

/// State that the command families draw from.
pub struct Mix {
    pub rng: Rng,
    pub caps: Caps,
    pub db: u64,
    /// Stream entry ids seen in replies, newest last, with the key they belong to.
    pub ids: VecDeque<(Vec<u8>, Vec<u8>)>,
    /// Deliveries to consumer groups: database, key, group, entry id.
    pub pending: VecDeque<Delivery>,
    /// Vector set keys and elements added lately.
    pub vectors: VecDeque<(Vec<u8>, Vec<u8>)>,
    pub dumps: VecDeque<Dumped>,
    pub function_dump: Option<Vec<u8>>,
    pub script_sha: Option<Vec<u8>>,
    /// Values of string keys that a plain SET wrote last; lets compare-and-set commands match.
    pub texts: VecDeque<(u64, Vec<u8>, Vec<u8>)>,
    /// Catalogue entries that make single commands, repeated by weight; transactions draw from them.
    pub single: Vec<usize>,
}

impl Mix {
    pub fn new(seed: u64, caps: Caps) -> Self {
        Mix {
            rng: Rng::new(seed),
            caps,
            db: 0,
            ids: VecDeque::new(),
            pending: VecDeque::new(),
            vectors: VecDeque::new(),
            dumps: VecDeque::new(),
            function_dump: None,
            script_sha: None,
            texts: VecDeque::new(),
            single: Vec::new(),
        }
    }

    /// A key of this kind; once in 60 times a key of any kind, so that type errors happen as well.
    pub fn key(&mut self, kind: Kind) -> Vec<u8> {
        let kind = if self.rng.one_in(60) { *self.rng.pick(&KINDS) } else { kind };
        self.key_of(kind)
    }

    /// A key of exactly this kind. Streams are fewer: their groups and deliveries take many commands to build up.
    pub fn key_of(&mut self, kind: Kind) -> Vec<u8> {
        let n = match kind {
            Kind::Stream | Kind::Vector => 3 + self.rng.below(KEYS_PER_KIND - 3),
            _ => self.rng.below(KEYS_PER_KIND),
        };
        key_name(kind, n)
    }

    pub fn any_kind(&mut self) -> Kind {
        // A stream is worth keeping.
        if self.rng.one_in(3) {
            return *self.rng.pick(&KINDS[..9]);
        }
        let n = if self.caps.has_vectors { KINDS.len() } else { KINDS.len() - 1 };
        *self.rng.pick(&KINDS[..n])
    }

    pub fn any_key(&mut self) -> Vec<u8> {
        let kind = self.any_kind();
        self.key_of(kind)
    }

    /// A value: empty, a number, text, binary, and now and then a large one.
    pub fn value(&mut self) -> Vec<u8> {
        match self.rng.below(2000) {
            0..=99 => Vec::new(),
            100..=399 => self.rng.range(-1000, 100_000).arg(),
            400..=449 => format!("{}.{}", self.rng.range(-99, 99), self.rng.below(1000)).arg(),
            450..=1199 => format!("text {}", self.rng.below(100_000)).arg(),
            1200..=1989 => {
                let len = self.rng.below(60) as usize;
                self.rng.bytes(len)
            }
            1990..=1998 => {
                let len = 2000 + self.rng.below(60_000) as usize;
                self.rng.bytes(len)
            }
            _ => {
                let len = 200_000 + self.rng.below(300_000) as usize;
                self.rng.bytes(len)
            }
        }
    }

    /// A member or field from a small domain (so that removals hit), seldom an arbitrary value.
    pub fn member(&mut self) -> Vec<u8> {
        match self.rng.below(40) {
            0 => self.value(),
            1..=14 => self.rng.below(16).arg(),
            15..=18 => format!("m\0\r\n\u{e9}%s{}", self.rng.below(4)).arg(),
            _ => format!("m{}", self.rng.below(16)).arg(),
        }
    }

    /// `n` in `lo..=hi` members.
    pub fn members(&mut self, lo: i64, hi: i64) -> Vec<Vec<u8>> {
        (0..self.rng.range(lo, hi)).map(|_| self.member()).collect()
    }

    pub fn score(&mut self) -> Vec<u8> {
        match self.rng.below(30) {
            0 => b"inf".to_vec(),
            1 => b"-inf".to_vec(),
            2 => b"1e-300".to_vec(),
            3 => b"-0".to_vec(),
            4..=12 => format!("{}.{}", self.rng.range(-9, 9), self.rng.below(1_000_000)).arg(),
            _ => self.rng.range(-10, 20).arg(),
        }
    }

    /// A time to live in ms: short ones travel as DEL soon after, long ones outlive every test.
    /// Nothing lies between, so that a comparison can wait for the short ones to be gone.
    pub fn ttl_ms(&mut self) -> i64 {
        if self.rng.one_in(6) {
            self.rng.range(5, 50)
        } else {
            LONG_TTL_MS + self.rng.range(0, 1_000_000)
        }
    }

    /// A time to live in seconds, long; or not positive once in 15 times where the command takes that.
    pub fn ttl_s(&mut self, allow_past: bool) -> i64 {
        if allow_past && self.rng.one_in(15) {
            return self.rng.range(-5, 0);
        }
        LONG_TTL_MS / 1000 + self.rng.range(0, 1000)
    }

    pub fn now_ms(&self) -> i64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
    }

    /// One of the four ways to say an expiry as an option (`EX 5`), by what the server understands.
    pub fn expiry_option(&mut self, absolute: bool) -> Argv {
        match self.rng.below(if absolute { 4 } else { 2 }) {
            0 => argv!["EX", self.ttl_s(false)],
            1 => argv!["PX", self.ttl_ms()],
            2 => argv!["EXAT", self.now_ms() / 1000 + self.ttl_s(false)],
            _ => argv!["PXAT", self.now_ms() + self.ttl_ms()],
        }
    }

    /// A stream id seen in a reply: of this key when there is one.
    pub fn stream_id(&mut self, key: &[u8]) -> Vec<u8> {
        let of_key: Vec<_> = self.ids.iter().filter(|(k, _)| k == key).collect();
        if !of_key.is_empty() && !self.rng.one_in(10) {
            return self.rng.pick(&of_key).1.clone();
        }
        format!("{}-{}", self.now_ms() - self.rng.range(0, 5000), self.rng.below(3)).arg()
    }

    /// A delivery in the current database, or a guess at one.
    pub fn delivery(&mut self, guess: impl FnOnce(&mut Mix) -> Delivery) -> Delivery {
        let here: Vec<_> = self.pending.iter().filter(|d| d.db == self.db).cloned().collect();
        if here.is_empty() || self.rng.one_in(10) {
            return guess(self);
        }
        self.rng.pick(&here).clone()
    }

    pub fn learn_delivery(&mut self, delivery: Delivery) {
        if self.pending.len() >= 200 {
            self.pending.pop_front();
        }
        self.pending.push_back(delivery);
    }

    pub fn learn_id(&mut self, key: &[u8], id: &[u8]) {
        if self.ids.len() >= 200 {
            self.ids.pop_front();
        }
        self.ids.push_back((key.to_vec(), id.to_vec()));
    }
}

/// Above every time that a test takes.
pub const LONG_TTL_MS: i64 = 100_000_000;

/// The name of the n-th key of a kind. Some are binary, one is empty.
pub fn key_name(kind: Kind, n: u64) -> Vec<u8> {
    let letter = match kind {
        Kind::Text => "t",
        Kind::Number => "n",
        Kind::Bits => "b",
        Kind::Loglog => "p",
        Kind::List => "l",
        Kind::Set => "s",
        Kind::Sorted => "z",
        Kind::Geo => "g",
        Kind::Hash => "h",
        Kind::Stream => "x",
        Kind::Vector => "v",
    };
    match n {
        3 if kind == Kind::Text => Vec::new(),
        4 => [letter.as_bytes(), b"\0\xff\r\n$%n\x80"].concat(),
        5 => format!("{letter}:\u{9375}\u{2603} spaced").into_bytes(),
        _ => format!("{letter}:{n}").into_bytes(),
    }
}

/// The kind that [`key_name`] gave this key.
pub fn kind_of(key: &[u8]) -> Option<Kind> {
    KINDS.into_iter().find(|k| (0..KEYS_PER_KIND).any(|n| key_name(*k, n) == key))
}
