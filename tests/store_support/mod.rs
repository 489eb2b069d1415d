//! For the tests of the log store: a file system in memory that can fail and crash, a simple model of a log, and a
//! driver that does the same to both.
#![allow(dead_code)]

pub mod drive;
pub mod memfs;

/// A small generator (xorshift64*): the same numbers in every run.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n.max(1)
    }

    pub fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}
