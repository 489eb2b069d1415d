//! Releases held expiries after a promotion, in slices.
//!
//! A slice goes on from a [`Cursor`] until its time is spent. It may be interrupted, forgotten and begun again
//! at any point: what is released is no longer held. A client that renames or copies a held key during the
//! scan may move it to where the scan has been, so whoever drives the slices goes through a database until a
//! pass releases nothing.

use super::ttl::{released, released_field};

/// Fields whose expiries are asked for and released together.
const FIELDS: usize = 32;

/// One database of the server. No other command runs within a slice.
pub trait Keyspace {
    /// One step of a scan over the keys: the next cursor, `0` at the end, and keys.
    ///
    /// # Errors
    /// The server's words.
    fn scan(&mut self, cursor: &[u8]) -> Result<(Vec<u8>, Vec<Vec<u8>>), String>;

    /// Absolute expiry of a key in milliseconds, if it has one.
    fn expiry(&mut self, key: &[u8]) -> Option<i64>;

    /// Sets it. A time that is past deletes the key.
    ///
    /// # Errors
    /// The server's words.
    fn set_expiry(&mut self, key: &[u8], ms: i64) -> Result<(), String>;

    /// Whether the key is a hash whose fields may expire.
    fn has_timed_fields(&mut self, key: &[u8]) -> bool;

    /// One step of a scan over a hash: the next cursor, `0` at the end, and fields.
    ///
    /// # Errors
    /// The server's words. A key that is gone or no hash has no fields.
    fn scan_fields(&mut self, key: &[u8], cursor: &[u8]) -> Result<(Vec<u8>, Vec<Vec<u8>>), String>;

    /// Absolute expiries of fields in milliseconds, negative for none, in the order of `fields`.
    ///
    /// # Errors
    /// The server's words.
    fn field_expiries(&mut self, key: &[u8], fields: &[&[u8]]) -> Result<Vec<i64>, String>;

    /// Sets the expiry of fields. A time that is past deletes them.
    ///
    /// # Errors
    /// The server's words.
    fn set_field_expiry(&mut self, key: &[u8], ms: i64, fields: &[&[u8]]) -> Result<(), String>;

    /// Whether the time of this slice is spent.
    fn spent(&mut self) -> bool;
}

/// How far a pass is. As bytes: `0` at the start and the end; else the server's cursor and, for each hash of the
/// last step that is not done, a space, its own cursor, a colon, how many fields of its last step are done, a
/// colon, the length of its name, a colon and its name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The server's cursor for the next step.
    keys: Vec<u8>,
    /// Whether the next step is not the first one.
    begun: bool,
    hashes: Vec<HashCursor>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct HashCursor {
    key: Vec<u8>,
    cursor: Vec<u8>,
    done: usize,
}

impl Cursor {
    /// Reads what [`Self::encode`] wrote; `None` where it is no cursor.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let digits = bytes.iter().take_while(|b| b.is_ascii_digit()).count();
        let (keys, mut rest) = bytes.split_at_checked(digits)?;
        if keys.is_empty() {
            return None;
        }
        let mut hashes = Vec::new();
        let begun = bytes != b"0";
        while let Some(hash) = rest.strip_prefix(b" ") {
            let (cursor, hash) = until_colon(hash)?;
            let (done, hash) = until_colon(hash)?;
            let (len, hash) = until_colon(hash)?;
            let number = |b: &[u8]| std::str::from_utf8(b).ok()?.parse::<usize>().ok();
            let (key, left) = hash.split_at_checked(number(len)?)?;
            hashes.push(HashCursor { key: key.to_vec(), cursor: cursor.to_vec(), done: number(done)? });
            rest = left;
        }
        rest.is_empty().then(|| Self { keys: keys.to_vec(), begun, hashes })
    }

    /// The cursor as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.keys.clone();
        for h in &self.hashes {
            out.push(b' ');
            out.extend_from_slice(&h.cursor);
            out.extend_from_slice(format!(":{}:{}:", h.done, h.key.len()).as_bytes());
            out.extend_from_slice(&h.key);
        }
        out
    }

    /// Whether the pass is at its end.
    fn ended(&self) -> bool {
        self.begun && self.keys == b"0" && self.hashes.is_empty()
    }
}

fn until_colon(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|b| *b == b':')?;
    Some((bytes.get(..at)?, bytes.get(at + 1..)?))
}

/// What a slice did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Expiries released, of keys and of fields.
    pub released: u64,
    /// Keys seen.
    pub scanned: u64,
}

/// Goes on from `cursor`, which afterwards is where the next slice goes on, `0` at the end of the pass.
///
/// # Errors
/// The server's words; the cursor may be used again.
pub fn slice(db: &mut dyn Keyspace, cursor: &mut Cursor) -> Result<Work, String> {
    let mut work = Work::default();
    loop {
        while let Some(hash) = cursor.hashes.last_mut() {
            if hash_step(db, hash, &mut work)? {
                cursor.hashes.pop();
            }
            if db.spent() {
                return Ok(work);
            }
        }
        if cursor.ended() {
            return Ok(work);
        }
        let (next, keys) = db.scan(&cursor.keys)?;
        for key in keys {
            work.scanned += 1;
            if let Some(ms) = db.expiry(&key).and_then(released) {
                db.set_expiry(&key, ms)?;
                work.released += 1;
            }
            if db.has_timed_fields(&key) {
                cursor.hashes.push(HashCursor { key, cursor: b"0".to_vec(), done: 0 });
            }
        }
        (cursor.keys, cursor.begun) = (next, true);
        if db.spent() {
            return Ok(work);
        }
    }
}

/// Releases some fields of a hash; true where it is done.
fn hash_step(db: &mut dyn Keyspace, hash: &mut HashCursor, work: &mut Work) -> Result<bool, String> {
    let (next, fields) = db.scan_fields(&hash.key, &hash.cursor)?;
    let names: Vec<&[u8]> = fields.iter().map(Vec::as_slice).collect();
    while let Some(some) = names.get(hash.done..).filter(|rest| !rest.is_empty()) {
        let some = some.get(..FIELDS).unwrap_or(some);
        let expiries = db.field_expiries(&hash.key, some)?;
        let mut held: Vec<(i64, &[u8])> = Vec::new();
        held.extend(expiries.iter().zip(some).filter_map(|(ms, f)| Some((released_field(*ms)?, *f))));
        held.sort_unstable();
        for same in held.chunk_by(|a, b| a.0 == b.0) {
            let names: Vec<&[u8]> = same.iter().map(|h| h.1).collect();
            if let Some((ms, _)) = same.first() {
                db.set_field_expiry(&hash.key, *ms, &names)?;
            }
            work.released += names.len() as u64;
        }
        hash.done += some.len();
        if hash.done < names.len() && db.spent() {
            return Ok(false);
        }
    }
    hash.done = 0;
    hash.cursor = next;
    Ok(hash.cursor == b"0")
}

#[cfg(test)]
mod tests {
    use super::super::ttl::{hold, hold_field, HOLD_MS};
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    type Fields = Vec<(Vec<u8>, i64)>;

    /// Keys in order with their expiry and fields; a scan hands out three keys or five fields a step.
    #[derive(Default)]
    struct Model {
        keys: BTreeMap<Vec<u8>, (i64, Fields)>,
        budget: usize,
        used: usize,
    }

    fn step<T: Clone>(all: &[T], cursor: &[u8], n: usize) -> (Vec<u8>, Vec<T>) {
        let at: usize = std::str::from_utf8(cursor).unwrap().parse().unwrap();
        let end = (at + n).min(all.len());
        let next = if end == all.len() { 0 } else { end };
        (next.to_string().into_bytes(), all.get(at..end).unwrap_or_default().to_vec())
    }

    impl Keyspace for Model {
        fn scan(&mut self, cursor: &[u8]) -> Result<(Vec<u8>, Vec<Vec<u8>>), String> {
            let all: Vec<_> = self.keys.keys().cloned().collect();
            Ok(step(&all, cursor, 3))
        }

        fn expiry(&mut self, key: &[u8]) -> Option<i64> {
            self.used += 1;
            Some(self.keys[key].0).filter(|ms| *ms >= 0)
        }

        fn set_expiry(&mut self, key: &[u8], ms: i64) -> Result<(), String> {
            self.keys.get_mut(key).unwrap().0 = ms;
            Ok(())
        }

        fn has_timed_fields(&mut self, key: &[u8]) -> bool {
            !self.keys[key].1.is_empty()
        }

        fn scan_fields(&mut self, key: &[u8], cursor: &[u8]) -> Result<(Vec<u8>, Vec<Vec<u8>>), String> {
            let all: Vec<_> = self.keys[key].1.iter().map(|f| f.0.clone()).collect();
            Ok(step(&all, cursor, 70))
        }

        fn field_expiries(&mut self, key: &[u8], fields: &[&[u8]]) -> Result<Vec<i64>, String> {
            self.used += fields.len();
            let all = &self.keys[key].1;
            Ok(fields.iter().map(|n| all.iter().find(|f| f.0 == *n).unwrap().1).collect())
        }

        fn set_field_expiry(&mut self, key: &[u8], ms: i64, fields: &[&[u8]]) -> Result<(), String> {
            let all = &mut self.keys.get_mut(key).unwrap().1;
            all.iter_mut().filter(|f| fields.contains(&f.0.as_slice())).for_each(|f| f.1 = ms);
            Ok(())
        }

        fn spent(&mut self) -> bool {
            self.used >= self.budget
        }
    }

    proptest! {
        #[test]
        fn everything_is_released_once(
            keys in prop::collection::vec((0..4u8, prop::collection::vec(0..4u8, 0..200)), 0..20),
            budget in 1..300usize,
            restart_at in prop::option::of(0..50usize),
        ) {
            // What a key or field has: nothing, a held expiry, a true one, a far one.
            let of = |kind: u8, n: usize, hold: fn(i64) -> i64| match kind {
                0 => -1,
                1 => hold(1_700_000_000_000 + n as i64 % 7),
                2 => 1_800_000_000_000,
                _ => i64::MAX - 1,
            };
            let mut model = Model { budget, ..Model::default() };
            let mut truth = model.keys.clone();
            let mut held = 0;
            for (n, (kind, fields)) in keys.iter().enumerate() {
                let name = format!("a key: {n}").into_bytes();
                let make = |hold_key: fn(i64) -> i64, hold_field: fn(i64) -> i64| {
                    let fields = fields.iter().enumerate();
                    let fields = fields.map(|(i, k)| (format!("{i}").into_bytes(), of(*k, i, hold_field)));
                    (of(*kind, n, hold_key), fields.collect::<Fields>())
                };
                held += u64::from(*kind == 1) + fields.iter().filter(|k| **k == 1).count() as u64;
                model.keys.insert(name.clone(), make(hold, hold_field));
                truth.insert(name, make(|ms| ms, |ms| ms));
            }
            let mut cursor = Cursor::decode(b"0").unwrap();
            let (mut released, mut slices) = (0, 0);
            loop {
                model.used = 0;
                let work = slice(&mut model, &mut cursor).unwrap();
                released += work.released;
                prop_assert!(model.used <= budget + 3 * FIELDS, "{} for {budget}", model.used);
                let bytes = cursor.encode();
                if bytes == b"0" {
                    break;
                }
                cursor = Cursor::decode(&bytes).unwrap();
                slices += 1;
                if restart_at == Some(slices) {
                    cursor = Cursor::decode(b"0").unwrap();
                }
                prop_assert!(slices < 20_000);
            }
            prop_assert_eq!(released, held);
            prop_assert_eq!(model.keys, truth);
        }
    }

    #[test]
    fn what_is_no_cursor_is_refused() {
        for bad in [&b""[..], b"x", b"5 ", b"5 0:0:4:abc", b"5 0:0:x:abc", b"5 0:0:3:abcd", b"5x"] {
            assert_eq!(Cursor::decode(bad), None);
        }
        assert_eq!(released(HOLD_MS), Some(0));
    }
}
