//! The CRC64 of RDB files and DUMP payloads: Jones polynomial, reflected, start value 0, nothing xored at
//! the end. Sixteen bytes a step.

/// The Jones polynomial `ad93d23594c935a9`, bits reversed.
const POLY: u64 = 0x95ac_9329_ac4b_c9b5;

const STEP: usize = 16;

static TABLES: [[u64; 256]; STEP] = tables();

// The loops bound every index by the array's size, at compile time.
#[allow(clippy::indexing_slicing)]
const fn tables() -> [[u64; 256]; STEP] {
    let mut t = [[0u64; 256]; STEP];
    let mut n = 0;
    while n < 256 {
        let mut crc = n as u64;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLY } else { crc >> 1 };
            bit += 1;
        }
        t[0][n] = crc;
        n += 1;
    }
    let mut k = 1;
    while k < STEP {
        let mut n = 0;
        while n < 256 {
            let before = t[k - 1][n];
            t[k][n] = (before >> 8) ^ t[0][(before & 0xff) as usize];
            n += 1;
        }
        k += 1;
    }
    t
}

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

// Table indexes are single bytes and constants, so they are always in range.
#[allow(clippy::indexing_slicing)]
fn update(mut crc: u64, bytes: &[u8]) -> u64 {
    let mut chunks = bytes.chunks_exact(STEP);
    for chunk in &mut chunks {
        let mut head = [0u8; 8];
        let mut tail = [0u8; 8];
        head.copy_from_slice(&chunk[..8]);
        tail.copy_from_slice(&chunk[8..]);
        let a = (crc ^ u64::from_le_bytes(head)).to_le_bytes();
        let b = tail;
        crc = TABLES[15][a[0] as usize]
            ^ TABLES[14][a[1] as usize]
            ^ TABLES[13][a[2] as usize]
            ^ TABLES[12][a[3] as usize]
            ^ TABLES[11][a[4] as usize]
            ^ TABLES[10][a[5] as usize]
            ^ TABLES[9][a[6] as usize]
            ^ TABLES[8][a[7] as usize]
            ^ TABLES[7][b[0] as usize]
            ^ TABLES[6][b[1] as usize]
            ^ TABLES[5][b[2] as usize]
            ^ TABLES[4][b[3] as usize]
            ^ TABLES[3][b[4] as usize]
            ^ TABLES[2][b[5] as usize]
            ^ TABLES[1][b[6] as usize]
            ^ TABLES[0][b[7] as usize];
    }
    for byte in chunks.remainder() {
        crc = (crc >> 8) ^ TABLES[0][((crc ^ u64::from(*byte)) & 0xff) as usize];
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_published_check_value() {
        assert_eq!(crc64(b"123456789"), 0xe9c6_d914_c4b8_d9ca);
        assert_eq!(crc64(b""), 0);
    }

    #[test]
    fn is_the_same_in_any_pieces() {
        let bytes: Vec<u8> = (0..1000u32).map(|n| (n * 7 + n / 13) as u8).collect();
        let one_by_one = bytes.iter().fold(Crc64::new(), |mut crc, b| {
            crc.update(&[*b]);
            crc
        });
        for cut in [0, 1, 7, 8, 15, 16, 17, 31, 500, 999, 1000] {
            let mut crc = Crc64::new();
            crc.update(&bytes[..cut]);
            crc.update(&bytes[cut..]);
            assert_eq!(crc, one_by_one, "cut at {cut}");
        }
    }
}
