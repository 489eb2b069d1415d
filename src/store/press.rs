//! Compresses what is about to be appended.

use oplog_format::{Codec, Packer};

/// A buffer above this is given back.
const KEEP: usize = 4 << 20;

/// The packer of a log, and what it has packed last.
pub(super) struct Press {
    packer: Option<Packer>,
    out: Vec<u8>,
}

impl Press {
    /// One that compresses by a codec, or by none.
    pub(super) fn new(codec: Option<Codec>) -> Self {
        let packer = codec.and_then(|codec| {
            let made = Packer::new(codec);
            // There is no memory for it: a log without compression is better than none.
            made.inspect_err(|e| log::warn!("entries are not compressed: {e}")).ok()
        });
        Self { packer, out: Vec::new() }
    }

    /// Entries as they are to be stored. What is none comes back as it is, for whoever checks it.
    pub(super) fn press<'a>(&'a mut self, frames: &'a [u8]) -> &'a [u8] {
        let Some(packer) = &mut self.packer else { return frames };
        if self.out.capacity() > KEEP {
            self.out = Vec::new();
        }
        self.out.clear();
        match packer.pack(frames, &mut self.out) {
            Ok(()) => &self.out,
            Err(_) => frames,
        }
    }
}
