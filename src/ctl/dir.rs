//! The files of a log's directory, without opening one for writing.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use oplog_format::{codec, FormatError, OpId};
use serde::de::DeserializeOwned;

use super::damage::Damage;
use super::CtlError;
use crate::store::orphans::{ORPHANS, RECORD};
use crate::store::segment::parse_name;
use crate::store::{durable, Manifest, OrphanInfo, MANIFEST, TORN};

/// One segment file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentFile {
    /// Where it is.
    pub path: PathBuf,
    /// First op, as its name says.
    pub first_op: OpId,
    /// Its length when it was listed.
    pub len: u64,
}

/// A tail that was cut off and kept.
#[derive(Debug, Clone)]
pub struct Orphan {
    /// Its folder, which is read like a log.
    pub path: PathBuf,
    /// What its record says, or what is wrong with that.
    pub info: Result<OrphanInfo, Damage>,
}

/// A directory that holds a log, or an orphan's folder.
#[derive(Debug, Clone)]
pub struct LogDir {
    dir: PathBuf,
}

impl LogDir {
    /// Takes a directory.
    ///
    /// # Errors
    /// [`CtlError::Io`] where it cannot be read, [`CtlError::NoLog`] where it holds neither segment nor manifest.
    pub fn open(dir: &Path) -> Result<Self, CtlError> {
        let log = Self { dir: dir.to_path_buf() };
        if log.names()?.iter().any(|n| n == MANIFEST || parse_name(n).is_some()) {
            return Ok(log);
        }
        Err(CtlError::NoLog(dir.to_path_buf()))
    }

    fn names(&self) -> Result<Vec<String>, CtlError> {
        let failed = |e| CtlError::io(&self.dir, e);
        let items = fs::read_dir(&self.dir).map_err(failed)?;
        items.map(|i| Ok(i.map_err(failed)?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// A folder in it, and what it holds, in order; nothing where there is no such folder.
    fn names_in(&self, name: &str) -> Result<(PathBuf, Vec<String>), CtlError> {
        let folder = Self { dir: self.dir.join(name) };
        let mut names = match folder.names() {
            Ok(names) => names,
            Err(CtlError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e),
        };
        names.sort();
        Ok((folder.dir, names))
    }

    /// The manifest: `None` where there is none, or what is wrong with it.
    ///
    /// # Errors
    /// [`CtlError::Io`].
    pub fn manifest(&self) -> Result<Result<Option<Manifest>, Damage>, CtlError> {
        small_file(&self.dir.join(MANIFEST))
    }

    /// The segments that belong to the log, by first op. Files that the server would remove at its next start are
    /// left out: those of an earlier epoch, those below the oldest op, those above a cut that is not finished.
    ///
    /// # Errors
    /// [`CtlError::Io`].
    pub fn segments(&self) -> Result<Vec<SegmentFile>, CtlError> {
        let manifest = self.manifest()?;
        let mut named: Vec<(u32, OpId, PathBuf)> = Vec::new();
        for name in self.names()? {
            if let Some((epoch, first)) = parse_name(&name) {
                named.push((epoch, first, self.dir.join(name)));
            }
        }
        named.sort();
        // Without a manifest the newest epoch is the log.
        let newest = named.last().map_or(0, |n| n.0);
        let (epoch, oldest, cut) = match manifest {
            Ok(Some(m)) => (m.epoch, m.oldest, m.cut),
            Ok(None) | Err(_) => (newest, 0, None),
        };
        named.retain(|n| n.0 == epoch && cut.is_none_or(|c| n.1 <= c));
        let keep_from = named.iter().rposition(|n| n.1 <= oldest).unwrap_or(0);
        let mut found = Vec::new();
        for (_, first_op, path) in named.into_iter().skip(keep_from) {
            match fs::metadata(&path) {
                Ok(m) => found.push(SegmentFile { path, first_op, len: m.len() }),
                // Cleaned since the listing.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(CtlError::io(&path, e)),
            }
        }
        Ok(found)
    }

    /// The tails that were cut off the log, oldest first.
    ///
    /// # Errors
    /// [`CtlError::Io`].
    pub fn orphans(&self) -> Result<Vec<Orphan>, CtlError> {
        let (folder, names) = self.names_in(ORPHANS)?;
        let mut found = Vec::new();
        // A folder that is still being filled has another name.
        for name in names.iter().filter(|n| !n.ends_with(".part")) {
            let path = folder.join(name);
            let info = match small_file(&path.join(RECORD))? {
                Ok(Some(info)) => Ok(info),
                Ok(None) => Err(Damage::new(&path, 0, "the record of an orphan", "no such file")),
                Err(damage) => Err(damage),
            };
            found.push(Orphan { path, info });
        }
        Ok(found)
    }

    /// Torn tails that were kept when the log was opened: file and length.
    ///
    /// # Errors
    /// [`CtlError::Io`].
    pub fn torn(&self) -> Result<Vec<(PathBuf, u64)>, CtlError> {
        let (folder, names) = self.names_in(TORN)?;
        let paths = names.into_iter().map(|n| folder.join(n));
        Ok(paths.filter_map(|p| fs::metadata(&p).ok().map(|m| (p, m.len()))).collect())
    }
}

/// Reads a manifest or record.
fn small_file<T: DeserializeOwned>(path: &Path) -> Result<Result<Option<T>, Damage>, CtlError> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Ok(None)),
        Err(e) => return Err(CtlError::io(path, e)),
    };
    let max = (codec::MAX_CONTROL_LEN + durable::HEAD) as u64;
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(|e| CtlError::io(path, e))?;
    if bytes.len() as u64 > max {
        let error = FormatError::Value { field: "file length", got: bytes.len() as u64 };
        return Ok(Err(Damage::format(path, 0, &error)));
    }
    Ok(durable::decode(&bytes).map(Some).map_err(|e| Damage::format(path, 0, &e)))
}
