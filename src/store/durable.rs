//! Small files that are replaced as a whole: manifest and state.
//!
//! Order: write the new file beside the old, sync it, rename, sync the directory. A crash leaves the old file or
//! the new one. Frame: magic (8), length (u32), CRC32 of the rest (u32), body.

use std::path::Path;

use oplog_format::{codec, FormatError};
use serde::de::DeserializeOwned;
use serde::Serialize;

use super::error::StoreError;
use super::fs::Fs;

/// First eight bytes of a small file.
pub const SMALL_MAGIC: [u8; 8] = *b"RDRSTAT1";
/// Length of the head before the body.
pub const HEAD: usize = 16;

/// Replaces `path` by `value`.
///
/// # Errors
/// The file system's, or that the value is too large.
pub fn save<T: Serialize>(fs: &dyn Fs, path: &Path, value: &T) -> Result<(), StoreError> {
    let damaged = |error| StoreError::Damaged { path: path.to_owned(), offset: 0, error };
    let body = codec::encode(value).map_err(damaged)?;
    let len = u32::try_from(body.len())
        .map_err(|_| damaged(FormatError::Value { field: "length", got: body.len() as u64 }))?;
    let mut bytes = SMALL_MAGIC.to_vec();
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
    replace_file(fs, path, &bytes)
}

/// Replaces a file by bytes, durably.
///
/// # Errors
/// The file system's; the old file is then still there.
pub fn replace_file(fs: &dyn Fs, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let tmp = path.with_extension("tmp");
    let dir = path.parent().unwrap_or(Path::new("."));
    let file = fs.open(&tmp, true).map_err(|e| StoreError::io("creating", &tmp, e))?;
    file.set_len(0).map_err(|e| StoreError::io("emptying", &tmp, e))?;
    file.write_at(bytes, 0).map_err(|e| StoreError::io("writing", &tmp, e))?;
    file.sync_data().map_err(|e| StoreError::io("syncing", &tmp, e))?;
    fs.rename(&tmp, path).map_err(|e| StoreError::io("renaming", &tmp, e))?;
    fs.sync_dir(dir).map_err(|e| StoreError::io("syncing", dir, e))
}

/// Reads what [`save`] wrote; `None` where there is no file.
///
/// # Errors
/// The file system's, or damage with its kind.
pub fn load<T: DeserializeOwned>(fs: &dyn Fs, path: &Path) -> Result<Option<T>, StoreError> {
    let damaged = |error| StoreError::Damaged { path: path.to_owned(), offset: 0, error };
    match read_file(fs, path, (HEAD + codec::MAX_CONTROL_LEN) as u64)? {
        Some(bytes) => decode(&bytes).map(Some).map_err(damaged),
        None => Ok(None),
    }
}

/// Reads a whole file of at most `max` bytes; `None` where there is none.
///
/// # Errors
/// The file system's, or that the file is longer.
pub fn read_file(fs: &dyn Fs, path: &Path, max: u64) -> Result<Option<Vec<u8>>, StoreError> {
    let file = match fs.open(path, false) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(StoreError::io("opening", path, e)),
    };
    let read = |e| StoreError::io("reading", path, e);
    let len = file.size().map_err(read)?;
    if len > max {
        let error = FormatError::Value { field: "file length", got: len };
        return Err(StoreError::Damaged { path: path.to_owned(), offset: 0, error });
    }
    let mut bytes = vec![0u8; usize::try_from(len).unwrap_or(0)];
    let n = file.read_at(&mut bytes, 0).map_err(read)?;
    bytes.truncate(n);
    Ok(Some(bytes))
}

/// Decodes the bytes of a small file.
///
/// # Errors
/// [`FormatError`]
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FormatError> {
    let short = || FormatError::Short { what: "small file", needed: HEAD as u64, got: bytes.len() as u64 };
    let magic: [u8; 8] = bytes.get(..8).and_then(|b| b.try_into().ok()).ok_or_else(short)?;
    if magic != SMALL_MAGIC {
        return Err(FormatError::Magic { what: "small file", got: u64::from_le_bytes(magic) });
    }
    let int = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let (len, stored) = int(8).zip(int(12)).ok_or_else(short)?;
    let body = bytes.get(HEAD..).unwrap_or_default();
    if body.len() as u64 != u64::from(len) {
        return Err(FormatError::Short {
            what: "small file",
            needed: u64::from(len),
            got: body.len() as u64,
        });
    }
    let computed = crc32fast::hash(body);
    if computed != stored {
        return Err(FormatError::Crc { what: "small file", stored, computed });
    }
    codec::decode(body)
}
