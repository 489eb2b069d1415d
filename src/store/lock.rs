//! The lock on a log's directory.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::error::StoreError;

/// Name of the locked file. Its text is the holder's process id, for people.
pub const LOCK: &str = "lock";

/// Directories that this process holds. The operating system never refuses a second record lock within one
/// process, and drops the first as soon as *any* descriptor of the file is closed; so a second opening must be
/// told apart before the file is touched.
static HELD: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// A lock on a directory, held while it lives.
///
/// A POSIX record lock, not `flock`: the children that a server forks to save would inherit that, and with it keep
/// the directory locked after the server has died.
#[derive(Debug, Default)]
pub struct DirLock {
    _held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    file: Option<File>,
    dir: PathBuf,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = HELD.lock();
        self.file = None;
        held.remove(&self.dir);
    }
}

impl DirLock {
    /// Locks nothing: for file systems that only one process sees.
    #[must_use]
    pub fn none() -> Self {
        Self { _held: None }
    }

    /// Takes the lock.
    ///
    /// # Errors
    /// [`StoreError::InUse`] with the holder, or the file system's.
    pub fn take(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(LOCK);
        let wrap = |what, e| StoreError::io(what, &path, e);
        let dir = dir.canonicalize().map_err(|e| wrap("resolving", e))?;
        let mut held = HELD.lock();
        if held.contains(&dir) {
            return Err(StoreError::InUse { dir, pid: i32::try_from(std::process::id()).ok() });
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| wrap("opening", e))?;
        // SAFETY: zeroed is a valid flock.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = libc::F_WRLCK as libc::c_short;
        lock.l_whence = libc::SEEK_SET as libc::c_short;
        // SAFETY: an open descriptor and a valid flock.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &raw mut lock) } != 0 {
            let refusal = std::io::Error::last_os_error();
            return match refusal.raw_os_error() {
                Some(libc::EACCES | libc::EAGAIN) => Err(StoreError::InUse { dir, pid: holder(file) }),
                _ => Err(wrap("locking", refusal)),
            };
        }
        let pid = std::process::id().to_string();
        file.set_len(0).map_err(|e| wrap("emptying", e))?;
        // On a full disk the text is missing, and nothing depends on it.
        let _ = file.write_all_at(pid.as_bytes(), 0);
        held.insert(dir.clone());
        Ok(Self { _held: Some(Held { file: Some(file), dir }) })
    }
}

/// Who holds the lock: as the system says, or, from within another process namespace, as the file says.
fn holder(mut file: File) -> Option<i32> {
    // SAFETY: zeroed is a valid flock.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: an open descriptor and a valid flock.
    let asked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &raw mut lock) } == 0;
    if asked && lock.l_type != libc::F_UNLCK as libc::c_short && lock.l_pid > 0 {
        return Some(lock.l_pid);
    }
    let mut text = String::new();
    Read::by_ref(&mut file).take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
