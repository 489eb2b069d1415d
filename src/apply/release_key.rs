//! Releases the expiries of one key, ahead of the scan.

use super::rebase::Keyspace;
use super::ttl::{released, released_field};

/// Fields asked for together.
const FIELDS: usize = 32;
/// Steps over the fields of one hash. Beyond that it is left to the scan: a client's command must not wait for millions.
const STEPS: usize = 200;

/// Takes HOLD off the key, and off the fields of a hash that is not very large.
///
/// # Errors
/// The server's words.
pub fn release_key(db: &mut dyn Keyspace, key: &[u8]) -> Result<(), String> {
    if let Some(ms) = db.expiry(key).and_then(released) {
        db.set_expiry(key, ms)?;
    }
    if !db.has_timed_fields(key) {
        return Ok(());
    }
    let mut cursor = b"0".to_vec();
    for _ in 0..STEPS {
        let (next, fields) = db.scan_fields(key, &cursor)?;
        let names: Vec<&[u8]> = fields.iter().map(Vec::as_slice).collect();
        for some in names.chunks(FIELDS) {
            let expiries = db.field_expiries(key, some)?;
            for (ms, field) in expiries.iter().zip(some) {
                if let Some(ms) = released_field(*ms) {
                    db.set_field_expiry(key, ms, &[field])?;
                }
            }
        }
        cursor = next;
        if cursor == b"0" {
            break;
        }
    }
    Ok(())
}
