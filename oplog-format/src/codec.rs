//! The one place that names the serializer of control messages and manifests, so that it can be replaced.
//!
//! Never used for entries.

use serde::de::DeserializeOwned;
use serde::Serialize;

use crate::error::FormatError;

/// Longest control message or manifest, in bytes.
pub const MAX_CONTROL_LEN: usize = 1024 * 1024;

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<MAX_CONTROL_LEN>()
}

/// Encodes a control message.
///
/// # Errors
/// [`FormatError::Codec`] with the serializer's words.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, FormatError> {
    bincode::serde::encode_to_vec(value, config()).map_err(|e| FormatError::Codec { reason: e.to_string() })
}

/// Decodes a control message; bytes behind it are an error.
///
/// # Errors
/// [`FormatError::Codec`] where the bytes are none, are too long, or something follows.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FormatError> {
    let (value, used) = bincode::serde::decode_from_slice(bytes, config())
        .map_err(|e| FormatError::Codec { reason: e.to_string() })?;
    if used != bytes.len() {
        return Err(FormatError::Codec {
            reason: format!("{} bytes behind the message", bytes.len() - used),
        });
    }
    Ok(value)
}
