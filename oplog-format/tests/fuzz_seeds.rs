//! The fuzz targets over a corpus with a fixed seed: the golden files and ops, whole, cut, flipped and mixed. Runs
//! on any toolchain; `fuzz/` explores further.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[path = "../../fuzz/checks.rs"]
mod checks;

/// xorshift64*: the same inputs in every run, on every machine.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(high).unwrap() % n.max(1)
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let sealed = include_bytes!("golden/segment-v1-sealed.bin");
    vec![
        sealed.to_vec(),
        sealed[128..].to_vec(),
        include_bytes!("golden/segment-v1-open.bin").to_vec(),
        include_bytes!("golden/segment-v1-packed.bin").to_vec(),
        include_bytes!("golden/segment-v1-packed.bin")[128..].to_vec(),
        include_bytes!("golden/lineage-v1.bin").to_vec(),
        b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n*1\r\n$4\r\nPING\r\n".to_vec(),
        b"*2\r\n$4294967295\r\n".to_vec(),
        b"*16777216\r\n$1\r\nx\r\n".to_vec(),
        vec![0; 200],
        vec![0xff; 200],
    ]
}

fn mutate(dice: &mut Dice, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut data = seeds[dice.below(seeds.len())].clone();
    for _ in 0..dice.below(6) {
        let at = dice.below(data.len());
        match dice.below(6) {
            0 => data.truncate(at),
            1 => drop(data.drain(..at)),
            2 => {
                let other = &seeds[dice.below(seeds.len())];
                data.extend_from_slice(&other[dice.below(other.len())..]);
            }
            3 if !data.is_empty() => data[at] = b"*$\r\n0129\x00\xff"[dice.below(10)],
            4 if !data.is_empty() => data[at] ^= 1 << dice.below(8),
            _ => data.insert(at, u8::try_from(dice.below(256)).unwrap()),
        }
    }
    data
}

#[test]
fn the_targets_hold_over_the_corpus() {
    let seeds = seeds();
    let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
    let mutated = (0..40_000).map(|_| mutate(&mut dice, &seeds)).collect::<Vec<_>>();
    for (n, data) in seeds.iter().chain(&mutated).enumerate() {
        checks::decode_entry(data);
        // Compresses and decompresses, which is slower than the rest by far.
        if n < seeds.len() || n % 20 == 0 {
            checks::packed(data);
        }
        checks::segment(data);
        checks::parse_op(data);
        checks::codec(data);
    }
}
