//! Mutual proof of a shared secret, without ever sending it.
//!
//! Each side sends a random nonce in its greeting. A proof is HMAC-SHA256, under the secret, of a label that
//! names the side, and of the bytes of both greetings: so it binds both nonces, both identities and the
//! protocol version, cannot be replayed, and cannot be sent back to the one it came from. The target proves
//! first: whoever only knocks at an endpoint gets nothing to test guesses on.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Length of a nonce in bytes.
pub const NONCE_LEN: usize = 32;
/// Length of a proof in bytes.
pub const PROOF_LEN: usize = 32;

/// A secret that both sites know.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Takes the bytes of the secret; `None` where there are none.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (!bytes.is_empty()).then(|| Self(bytes.to_vec()))
    }

    fn mac(&self, side: Side, target_greeting: &[u8], source_greeting: &[u8]) -> Hmac<Sha256> {
        // HMAC takes keys of any length; an empty one stands for the error that cannot be.
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0)
            .unwrap_or_else(|_| Hmac::<Sha256>::new(&hmac::digest::Key::<Hmac<Sha256>>::default()));
        mac.update(side.label());
        for part in [target_greeting, source_greeting] {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac
    }

    /// The proof of one side.
    #[must_use]
    pub fn prove(&self, side: Side, target_greeting: &[u8], source_greeting: &[u8]) -> Vec<u8> {
        self.mac(side, target_greeting, source_greeting).finalize().into_bytes().to_vec()
    }

    /// Whether `proof` is the proof of that side; takes the same time wherever they differ.
    #[must_use]
    pub fn verify(&self, side: Side, target_greeting: &[u8], source_greeting: &[u8], proof: &[u8]) -> bool {
        self.mac(side, target_greeting, source_greeting).verify_slice(proof).is_ok()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Whose proof it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The target's.
    Target,
    /// The source's.
    Source,
}

impl Side {
    fn label(self) -> &'static [u8] {
        match self {
            Self::Target => b"redisdr link 1 target",
            Self::Source => b"redisdr link 1 source",
        }
    }
}

/// Random bytes from the system.
///
/// # Errors
/// What the system said.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0u8; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_binds_side_secret_and_both_greetings() {
        let secret = Secret::new(b"s3cret").unwrap();
        let proof = secret.prove(Side::Target, b"t", b"s");
        assert_eq!(proof.len(), PROOF_LEN);
        assert!(secret.verify(Side::Target, b"t", b"s", &proof));
        assert!(!secret.verify(Side::Source, b"t", b"s", &proof));
        assert!(!secret.verify(Side::Target, b"ts", b"", &proof));
        assert!(!secret.verify(Side::Target, b"t", b"x", &proof));
        assert!(!Secret::new(b"other").unwrap().verify(Side::Target, b"t", b"s", &proof));
        for bit in 0..proof.len() * 8 {
            let mut bad = proof.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!secret.verify(Side::Target, b"t", b"s", &bad));
        }
        assert!(!secret.verify(Side::Target, b"t", b"s", &[]));
    }

    /// RFC 4231, test case 2, through the same construction would need its message format; what can be pinned
    /// is that the proof is plain HMAC-SHA256 of the documented bytes.
    #[test]
    fn the_proof_is_hmac_of_the_documented_bytes() {
        let mut mac = Hmac::<Sha256>::new_from_slice(b"k").unwrap();
        mac.update(b"redisdr link 1 source\x01\0\0\0\0\0\0\0t\x02\0\0\0\0\0\0\0ss");
        let expected = mac.finalize().into_bytes().to_vec();
        assert_eq!(Secret::new(b"k").unwrap().prove(Side::Source, b"t", b"ss"), expected);
    }

    #[test]
    fn an_empty_secret_is_none() {
        assert!(Secret::new(b"").is_none());
    }
}
