//! Batches that a thread of the module hands to the server's main thread in memory.
//!
//! What the main thread is to work on is made ready by the thread that sends it, and left in a slot; through the
//! connection goes only a command with the slot's token. Order, gating and the check of the caller are so those of any
//! command. A batch is taken out of its slot by whoever runs it, and so runs once; a command that the server refuses
//! before it reaches the module leaves it there.
//!
//! Strings of the server's belong to one thread at a time: the thread that makes them gives them up with the batch, and
//! their reference counts are touched by the main thread only, from then on. A batch that nobody has taken is freed by
//! the thread that made it: nobody else has seen its strings, and the server's allocator may be used by any thread.

use std::ffi::c_void;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::OnceLock;

/// Batches that may wait, of all senders together. One that finds no slot sends its data itself.
pub const SLOTS: usize = 16;

/// What the server's side provides.
#[derive(Clone, Copy)]
pub struct Server {
    /// Makes a string of the server's; null where it cannot.
    pub make: fn(&[u8]) -> *mut c_void,
    /// Frees one.
    pub free: fn(*mut c_void),
    /// Whether batches may be handed over at all.
    pub takes: fn() -> bool,
    /// Whether values that are stored as they are should be made ready.
    pub takes_values: fn() -> bool,
}

static SERVER: OnceLock<Server> = OnceLock::new();

/// Tells how strings are made; once, when the module is loaded.
pub fn register(server: Server) {
    let _ = SERVER.set(server);
}

/// Whether the process is a server that takes batches.
#[must_use]
pub fn is_possible() -> bool {
    SERVER.get().is_some_and(|s| (s.takes)())
}

/// Whether values should be made ready, too.
#[must_use]
pub fn takes_values() -> bool {
    SERVER.get().is_some_and(|s| (s.takes)() && (s.takes_values)())
}

/// A string of the server's with one reference, this one. Freed when dropped.
#[derive(Debug)]
pub struct Prepared(AtomicPtr<c_void>);

impl Prepared {
    /// A copy of `bytes`; `None` in a process that is no server.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let p = (SERVER.get()?.make)(bytes);
        (!p.is_null()).then(|| Self(AtomicPtr::new(p)))
    }

    /// The server's pointer, valid while `self` lives.
    #[must_use]
    pub fn ptr(&self) -> *mut c_void {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if let Some(server) = SERVER.get() {
            (server.free)(self.ptr());
        }
    }
}

/// Keys of a snapshot.
#[derive(Debug)]
pub struct Keys {
    /// Their database.
    pub db: u32,
    /// The keys, see [`super::wire::push_key`]: what replicas and the AOF get.
    pub packed: Prepared,
    /// For each key, in order, its value, where that is a string that SET would store as it is.
    pub values: Vec<Option<Prepared>>,
}

/// An entry of the log.
#[derive(Debug)]
pub struct Entry {
    /// Its frame: what replicas and the AOF get.
    pub frame: Prepared,
    /// Values that SETs in it store as they are, each with its place in the payload, in order.
    pub values: Vec<(usize, Prepared)>,
}

/// What is handed over.
#[derive(Debug)]
pub enum Batch {
    /// Keys of a snapshot.
    Keys(Keys),
    /// An entry of the log.
    Entry(Entry),
}

/// A place for a batch. Nobody waits for it: whoever changes `token` to [`CLAIMED`] has the slot, from a batch's to take
/// that, from [`FREE`] to leave one.
struct Slot {
    token: AtomicU64,
    batch: AtomicPtr<Batch>,
}

/// Token of an empty slot.
const FREE: u64 = 0;
/// Token of one that is being filled.
const CLAIMED: u64 = u64::MAX;

static TABLE: [Slot; SLOTS] =
    [const { Slot { token: AtomicU64::new(FREE), batch: AtomicPtr::new(std::ptr::null_mut()) } }; SLOTS];
/// Number of the next batch: tokens are never used again.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The sender's hold on a batch in its slot; the batch is dropped with it, where nobody has taken it.
#[derive(Debug)]
pub struct Ticket(u64);

impl Ticket {
    /// What the command names.
    #[must_use]
    pub const fn token(&self) -> u64 {
        self.0
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        drop(take(self.0));
    }
}

fn slot(token: u64) -> Option<&'static Slot> {
    TABLE.get(usize::try_from(token % SLOTS as u64).unwrap_or(SLOTS))
}

/// Leaves a batch in a slot.
///
/// # Errors
/// The batch, where all slots are taken.
pub fn put(batch: Batch) -> Result<Ticket, Batch> {
    for _ in 0..SLOTS {
        let token = NEXT.fetch_add(1, Ordering::Relaxed);
        let Some(slot) = slot(token) else { break };
        if slot.token.compare_exchange(FREE, CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            slot.batch.store(Box::into_raw(Box::new(batch)), Ordering::Relaxed);
            slot.token.store(token, Ordering::Release);
            return Ok(Ticket(token));
        }
    }
    Err(batch)
}

/// Takes a batch out of its slot; `None`: there is none of that token. Never waits.
#[must_use]
pub fn take(token: u64) -> Option<Batch> {
    if token == FREE || token == CLAIMED {
        return None;
    }
    let slot = slot(token)?;
    // Claimed until the pointer is out of it.
    slot.token.compare_exchange(token, CLAIMED, Ordering::Acquire, Ordering::Relaxed).ok()?;
    let batch = slot.batch.swap(std::ptr::null_mut(), Ordering::Relaxed);
    slot.token.store(FREE, Ordering::Release);
    if batch.is_null() {
        return None;
    }
    // SAFETY: made by `Box::into_raw` in `put`, and only the one who changed the token, which is here, gets it.
    Some(*unsafe { Box::from_raw(batch) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicI64;

    /// Strings alive.
    static ALIVE: AtomicI64 = AtomicI64::new(0);

    fn make(bytes: &[u8]) -> *mut c_void {
        ALIVE.fetch_add(1, Ordering::Relaxed);
        Box::into_raw(Box::new(bytes.len())).cast()
    }

    fn free(_: *mut c_void) {
        ALIVE.fetch_sub(1, Ordering::Relaxed);
    }

    fn batch(db: u32) -> Batch {
        Batch::Keys(Keys {
            db,
            packed: Prepared::new(b"keys").unwrap(),
            values: vec![Prepared::new(b"v"), None],
        })
    }

    fn db_of(batch: Option<Batch>) -> Option<u32> {
        batch.map(|batch| match batch {
            Batch::Keys(keys) => keys.db,
            Batch::Entry(_) => panic!("no entry was put"),
        })
    }

    #[test]
    fn a_batch_runs_once_and_slots_are_bounded() {
        register(Server { make, free, takes: || true, takes_values: || true });
        let ticket = put(batch(7)).unwrap();
        assert_eq!(db_of(take(ticket.token() + SLOTS as u64)), None);
        assert_eq!(db_of(take(ticket.token() + 1)), None);
        assert_eq!(db_of(take(ticket.token())), Some(7));
        assert_eq!(db_of(take(ticket.token())), None);
        drop(ticket);
        assert_eq!(ALIVE.load(Ordering::Relaxed), 0);

        let all: Vec<Ticket> = (0..SLOTS).map(|n| put(batch(u32::try_from(n).unwrap())).unwrap()).collect();
        let one_more = put(batch(99)).unwrap_err();
        assert_eq!(db_of(Some(one_more)), Some(99));
        // What nobody has taken goes with its ticket; what was put there since stays.
        let token = all[3].token();
        assert_eq!(db_of(take(token)), Some(3));
        let next = put(batch(50)).unwrap();
        assert_eq!(next.token() % SLOTS as u64, token % SLOTS as u64);
        drop(all);
        assert_eq!(db_of(take(next.token())), Some(50));
        assert_eq!(ALIVE.load(Ordering::Relaxed), 0);
        for no_token in [FREE, CLAIMED] {
            assert_eq!(db_of(take(no_token)), None);
        }
        each_batch_goes_to_one_of_many();
    }

    /// Senders and takers at once: each batch is had once, and none is left.
    fn each_batch_goes_to_one_of_many() {
        const EACH: u32 = 20_000;
        let had = AtomicI64::new(0);
        let (tokens, ask) = crossbeam_channel::bounded::<u64>(SLOTS);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let tokens = tokens.clone();
                scope.spawn(move || {
                    let mut tickets = std::collections::VecDeque::new();
                    for n in 0..EACH {
                        if let Ok(ticket) = put(batch(n)) {
                            let _ = tokens.send(ticket.token());
                            tickets.push_back(ticket);
                        }
                        if tickets.len() > 4 {
                            drop(tickets.pop_front());
                        }
                    }
                });
                let (ask, had) = (ask.clone(), &had);
                scope.spawn(move || {
                    while let Ok(token) = ask.recv() {
                        if let Some(taken) = take(token) {
                            had.fetch_add(1, Ordering::Relaxed);
                            drop(taken);
                        }
                        assert_eq!(db_of(take(token)), None);
                    }
                });
            }
            drop(tokens);
        });
        assert!(had.load(Ordering::Relaxed) > 0);
        assert_eq!(ALIVE.load(Ordering::Relaxed), 0);
    }
}
