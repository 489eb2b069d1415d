//! Expiries while linked: what is added to them, and how readers see them without it.
//!
//! A server expires by its own clock. While linked nothing but the source's own DEL or HDEL may remove a key or
//! a field, so each expiry is set HOLD later than it is. After promotion HOLD is taken off again.
//!
//! | true expiry | stored | after release |
//! |---|---|---|
//! | 0 up to HOLD | expiry + HOLD | expiry |
//! | HOLD up to 2 HOLD | 2 HOLD | 2 HOLD |
//! | 2 HOLD and above | as it is | as it is |
//! | below 0 | 2 HOLD | 2 HOLD |
//!
//! An expiry is held iff it is at least HOLD and below 2 HOLD. So a release that was interrupted and begins
//! again never releases twice, and no sum exceeds what servers take. The price: a key that is to expire between
//! the years 65,000 and 128,000, or a field between 3079 and 4188, expires at the end of that range instead. The
//! order of expiries is kept, so GT and LT decide as they did at the source. Only Redis 6.0 stores expiries
//! below 0, after an overflow, and such a key never expires there.
//!
//! What a linked target shows besides: a field whose true expiry is past stays readable until the source's own
//! HDEL arrives, where a native replica hides it. DUMP of a hash shows its field expiries held, INFO keyspace a
//! held `avg_ttl`.

/// Added to the expiry of keys, in milliseconds: about 63,000 years. A multiple of 1000.
pub const HOLD_MS: i64 = 2_000_000_000_000_000;
/// Added to the expiry of hash fields, in milliseconds: about 1,100 years. A multiple of 1000.
pub const HOLD_FIELD_MS: i64 = 35_000_000_000_000;
/// Latest expiry that Redis takes for a hash field. Valkey has no such limit.
pub const MAX_FIELD_MS: i64 = (1 << 46) - 1;

/// Whether an expiry is that of a key or that of a hash field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Of a key.
    Key,
    /// Of a hash field.
    Field,
}

impl Scope {
    /// What is added.
    #[must_use]
    pub const fn hold_ms(self) -> i64 {
        match self {
            Self::Key => HOLD_MS,
            Self::Field => HOLD_FIELD_MS,
        }
    }

    /// What is stored for a true expiry.
    #[must_use]
    pub const fn held(self, expiry_ms: i64) -> i64 {
        let hold = self.hold_ms();
        match expiry_ms {
            t if t < 0 => 2 * hold,
            t if t < hold => t + hold,
            t if t < 2 * hold => 2 * hold,
            t => t,
        }
    }

    /// The true expiry of a stored one; `None` where it is not held and so is the true one itself.
    #[must_use]
    pub const fn released(self, stored_ms: i64) -> Option<i64> {
        let hold = self.hold_ms();
        if stored_ms >= hold && stored_ms < 2 * hold {
            Some(stored_ms - hold)
        } else {
            None
        }
    }
}

/// An absolute expiry of a key with HOLD added.
#[must_use]
pub const fn hold(ms: i64) -> i64 {
    Scope::Key.held(ms)
}

/// An absolute expiry of a field with HOLD added.
#[must_use]
pub const fn hold_field(ms: i64) -> i64 {
    Scope::Field.held(ms)
}

/// The true expiry of a key, where it is held.
#[must_use]
pub const fn released(ms: i64) -> Option<i64> {
    Scope::Key.released(ms)
}

/// The true expiry of a field, where it is held.
#[must_use]
pub const fn released_field(ms: i64) -> Option<i64> {
    Scope::Field.released(ms)
}

/// Corrects the integer that a TTL command replied. A key or field whose true expiry is past is shown as gone
/// (-2), as a native replica shows it; in seconds that is known to the second only.
#[must_use]
pub fn correct(name: &[u8], reply: i64, now_ms: i64) -> i64 {
    if reply < 0 {
        return reply;
    }
    let mut lower = [0u8; 12];
    let Some(word) = lower.get_mut(..name.len()) else { return reply };
    word.copy_from_slice(name);
    word.make_ascii_lowercase();
    let scope = if word.starts_with(b"h") { Scope::Field } else { Scope::Key };
    let word = word.strip_prefix(b"h").unwrap_or(word);
    let unit = if word.starts_with(b"p") { 1 } else { 1000 };
    let absolute = word.ends_with(b"expiretime");
    let stored = reply.saturating_mul(unit).saturating_add(if absolute { 0 } else { now_ms });
    // A reply in seconds is rounded.
    if scope.released(stored.saturating_add(unit - 1)).is_none() {
        return reply;
    }
    let shown = reply - scope.hold_ms() / unit;
    let gone = match (absolute, scope) {
        (true, _) => shown < now_ms / unit,
        (false, Scope::Key) => shown < 0,
        // Rounded up, so that a field with any time left shows 1.
        (false, Scope::Field) => shown <= 0,
    };
    if gone {
        -2
    } else {
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
    }

    #[test]
    fn limits_of_the_servers_are_kept() {
        for scope in [Scope::Key, Scope::Field] {
            assert_eq!(scope.hold_ms() % 1000, 0);
            assert_eq!(scope.released(scope.held(0)), Some(0));
            assert_eq!(scope.held(-5), 2 * scope.hold_ms());
            assert_eq!(scope.released(scope.held(scope.hold_ms())), None);
        }
        assert_eq!(hold(i64::MAX), i64::MAX);
        assert!(hold_field(HOLD_FIELD_MS) < MAX_FIELD_MS);
        assert_eq!(hold_field(MAX_FIELD_MS), MAX_FIELD_MS);
    }

    #[test]
    fn far_expiries_are_shown_as_they_are() {
        let now = 1_700_000_000_000;
        for far in [hold(HOLD_MS), hold(i64::MAX)] {
            assert_eq!(correct(b"PEXPIRETIME", far, now), far);
            assert_eq!(correct(b"PTTL", far - now, now), far - now);
            assert_eq!(correct(b"TTL", (far - now) / 1000, now), (far - now) / 1000);
        }
        assert_eq!(correct(b"HPTTL", MAX_FIELD_MS - now, now), MAX_FIELD_MS - now);
        assert_eq!(correct(b"HTTL", (hold_field(now + 1) - now + 999) / 1000, now), 1);
        assert_eq!(correct(b"HTTL", (hold_field(now - 1) - now + 999) / 1000, now), -2);
    }

    proptest! {
        #[test]
        fn order_is_kept_and_release_is_exact(a in 0..5_000_000_000_000_000i64, b in 0..i64::MAX) {
            for scope in [Scope::Key, Scope::Field] {
                let (x, y) = (scope.held(a), scope.held(b));
                let in_order = if a <= b { x <= y } else { x >= y };
                prop_assert!(in_order);
                let expected = (a < scope.hold_ms()).then_some(a);
                prop_assert_eq!(scope.released(x), expected);
            }
        }
    }
}
