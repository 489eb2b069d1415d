//! Apply: from entries in the own log to the dataset, exactly once.

pub mod claims;
pub mod execute;
pub mod expiry;
mod expiry_hash;
mod expiry_keys;
pub mod feed;
pub mod handoff;
pub mod load;
pub mod prepare;
pub mod rebase;
pub mod release_key;
mod stream_trim;
pub mod ttl;
pub mod wire;

/// Which server applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerCaps {
    /// Valkey, not Redis.
    pub valkey: bool,
    /// 0x00MMmmpp
    pub version: u32,
}

impl ServerCaps {
    /// Whether SET takes an absolute expiry (`PXAT`).
    #[must_use]
    pub fn set_pxat(self) -> bool {
        self.valkey || self.version >= 0x06_02_00
    }

    /// Whether it is that version, as 0x00MMmmpp, or a later one. Those of Valkey follow on Redis 7.2.
    #[must_use]
    pub fn since(self, version: u32) -> bool {
        self.version >= version
    }

    /// Whether fields of hashes may expire.
    #[must_use]
    pub fn has_timed_fields(self) -> bool {
        self.version >= if self.valkey { 0x09_00_00 } else { 0x07_04_00 }
    }
}

/// The longest text of a 64-bit integer.
const INTEGER_LEN: usize = 20;

/// Whether SET might store this text as an integer.
#[must_use]
pub fn like_integer(value: &[u8]) -> bool {
    value.len() <= INTEGER_LEN && value.first().is_some_and(|b| b.is_ascii_digit() || *b == b'-')
}

#[cfg(test)]
mod tests {
    use super::like_integer;

    #[test]
    fn what_could_be_an_integer_goes_the_long_way() {
        for text in
            ["0", "123", "-1", "9223372036854775807", "-9223372036854775808", "18446744073709551615", "1x"]
        {
            assert!(like_integer(text.as_bytes()), "{text}");
        }
        for text in ["", "abc", "+1", " 1", "184467440737095516150"] {
            assert!(!like_integer(text.as_bytes()), "{text}");
        }
    }
}
