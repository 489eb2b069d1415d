//! The CRC64 of RDB files and DUMP payloads: Jones polynomial, reflected, start value 0, nothing xored at the end.

use crc_fast::{CrcAlgorithm, Digest};

/// A CRC64 being computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crc64(u64);

impl Crc64 {
    /// Of no bytes yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(0)
    }

    /// Takes in more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0 = update(self.0, bytes);
    }

    /// The CRC64 of all bytes so far.
    #[must_use]
    pub const fn value(self) -> u64 {
        self.0
    }
}

/// The CRC64 of `bytes`.
#[must_use]
pub fn crc64(bytes: &[u8]) -> u64 {
    update(0, bytes)
}

/// As the start value is 0 and nothing is xored, a value is also the state to go on from.
fn update(crc: u64, bytes: &[u8]) -> u64 {
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc64Redis, crc);
    digest.update(bytes);
    digest.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_published_check_value() {
        assert_eq!(crc64(b"123456789"), 0xe9c6_d914_c4b8_d9ca);
        assert_eq!(crc64(b""), 0);
    }

    /// Bit by bit, as the polynomial says.
    fn plain(bytes: &[u8]) -> u64 {
        bytes.iter().fold(0, |crc, byte| {
            (0..8).fold(crc ^ u64::from(*byte), |crc, _| match crc & 1 {
                1 => (crc >> 1) ^ 0x95ac_9329_ac4b_c9b5,
                _ => crc >> 1,
            })
        })
    }

    #[test]
    fn is_what_the_polynomial_says_at_any_length_and_place() {
        let bytes: Vec<u8> = (0..3000u32).map(|n| (n * 7 + n / 13) as u8).collect();
        for len in (0..400).chain([511, 512, 513, 1024, 2047, 2900]) {
            for start in [0, 1, 5, 8, 33] {
                let part = &bytes[start..start + len];
                assert_eq!(crc64(part), plain(part), "{len} bytes at {start}");
            }
        }
    }

    #[test]
    fn is_the_same_in_any_pieces() {
        let bytes: Vec<u8> = (0..1000u32).map(|n| (n * 7 + n / 13) as u8).collect();
        let one_by_one = bytes.iter().fold(Crc64::new(), |mut crc, b| {
            crc.update(&[*b]);
            crc
        });
        for cut in [0, 1, 7, 8, 15, 16, 17, 31, 127, 128, 129, 256, 500, 999, 1000] {
            let mut crc = Crc64::new();
            crc.update(&bytes[..cut]);
            crc.update(&bytes[cut..]);
            assert_eq!(crc, one_by_one, "cut at {cut}");
        }
    }
}
