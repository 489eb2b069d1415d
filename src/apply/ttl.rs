//! Expiries while linked: what is added to them, and how readers see them without it.
//!
//! A server expires by its own clock. While linked nothing but the source's own DEL may remove a key, so each
//! expiry is set HOLD later than it is. A key is held where its expiry is at least HOLD.

/// Added to the expiry of keys, in milliseconds: about 63,000 years, so that no true expiry reaches it.
pub const HOLD_MS: i64 = 2_000_000_000_000_000;
/// Added to the expiry of hash fields, in milliseconds: about 1,100 years; servers take less than 2^46 ms.
pub const HOLD_FIELD_MS: i64 = 35_000_000_000_000;
/// Latest expiry that servers take for a hash field.
pub const MAX_FIELD_MS: i64 = (1 << 46) - 2;

/// An absolute expiry with HOLD added; unchanged where that would overflow.
#[must_use]
pub fn hold(ms: i64) -> i64 {
    ms.max(0).checked_add(HOLD_MS).unwrap_or(ms)
}

/// An absolute field expiry with HOLD added, at most what servers take.
#[must_use]
pub fn hold_field(ms: i64) -> i64 {
    ms.max(0).saturating_add(HOLD_FIELD_MS).min(MAX_FIELD_MS)
}

/// The true expiry of a key, where it is held.
#[must_use]
pub fn released(ms: i64) -> Option<i64> {
    (ms >= HOLD_MS).then(|| ms - HOLD_MS)
}

/// The true expiry of a field, where it is held.
#[must_use]
pub fn released_field(ms: i64) -> Option<i64> {
    (ms >= HOLD_FIELD_MS).then(|| ms - HOLD_FIELD_MS)
}

/// Corrects the integer that a TTL command replied. A key or field whose true expiry is past is shown as gone
/// (-2), as a native replica shows it.
#[must_use]
pub fn correct(name: &[u8], reply: i64, now_ms: i64) -> i64 {
    if reply < 0 {
        return reply;
    }
    let is = |n: &[u8]| name.eq_ignore_ascii_case(n);
    let field = name.first().is_some_and(|b| b.eq_ignore_ascii_case(&b'h'));
    let hold = if field { HOLD_FIELD_MS } else { HOLD_MS };
    let absolute = is(b"expiretime") || is(b"pexpiretime") || is(b"hexpiretime") || is(b"hpexpiretime");
    let millis = is(b"pttl") || is(b"pexpiretime") || is(b"hpttl") || is(b"hpexpiretime");
    let unit = if millis { 1 } else { 1000 };
    let now = if absolute { now_ms / unit } else { 0 };
    // A remaining time of more than half of HOLD can only be a held one.
    let shown_hold = hold / unit;
    let held = if absolute { reply >= shown_hold } else { reply >= shown_hold / 2 };
    if !held {
        return reply;
    }
    let true_value = reply - shown_hold;
    if true_value < now {
        -2
    } else {
        true_value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_show_the_true_expiry() {
        let now = 1_700_000_000_000;
        let expiry = now + 5_000;
        assert_eq!(correct(b"PTTL", hold(expiry) - now, now), 5_000);
        assert_eq!(correct(b"TTL", (hold(expiry) - now) / 1000, now), 5);
        assert_eq!(correct(b"pexpiretime", hold(expiry), now), expiry);
        assert_eq!(correct(b"EXPIRETIME", hold(expiry) / 1000, now), expiry / 1000);
        assert_eq!(correct(b"HPTTL", hold_field(expiry) - now, now), 5_000);
        assert_eq!(correct(b"HPEXPIRETIME", hold_field(expiry), now), expiry);
        assert_eq!(correct(b"PTTL", hold(now - 1) - now, now), -2);
        assert_eq!(correct(b"PEXPIRETIME", hold(now - 1), now), -2);
        for gone in [-1, -2] {
            assert_eq!(correct(b"TTL", gone, now), gone);
        }
        assert_eq!(correct(b"TTL", 5, now), 5);
    }

    #[test]
    fn a_held_expiry_is_known_and_released_once() {
        let t = 1_900_000_000_000;
        assert_eq!(released(hold(t)), Some(t));
        assert_eq!(released(t), None);
        assert_eq!(released_field(hold_field(t)), Some(t));
        assert_eq!(released_field(t), None);
        assert_eq!(hold(i64::MAX), i64::MAX);
        assert_eq!(hold_field(MAX_FIELD_MS), MAX_FIELD_MS);
    }
}
