//! The few calls that the log makes on a file system, as a trait, so that tests can count, fail and crash them.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An open file. Writes go to given offsets; nothing is buffered.
pub trait FsFile: Send + Sync {
    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// The file system's; the file may then hold any part of the bytes.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Reads up to `buf.len()` bytes at `offset`; fewer only at the end of the file.
    ///
    /// # Errors
    /// The file system's.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Brings everything written to the disk.
    ///
    /// # Errors
    /// The file system's; what was written before is then in doubt.
    fn sync_data(&self) -> io::Result<()>;
    /// Cuts the file.
    ///
    /// # Errors
    /// The file system's.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Length in bytes.
    ///
    /// # Errors
    /// The file system's.
    fn size(&self) -> io::Result<u64>;
    /// Reserves room up to `end` without changing the length. A file system that cannot is no error.
    fn reserve(&self, _from: u64, _end: u64) {}
}

/// A file system.
pub trait Fs: Send + Sync {
    /// Opens a file for reading and writing, made empty where it is not there.
    ///
    /// # Errors
    /// The file system's.
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn FsFile>>;
    /// Renames, replacing what has the new name.
    ///
    /// # Errors
    /// The file system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// The file system's.
    fn unlink(&self, path: &Path) -> io::Result<()>;
    /// Makes a directory and those above it.
    ///
    /// # Errors
    /// The file system's.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Names within a directory.
    ///
    /// # Errors
    /// The file system's.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// Brings names made, renamed and removed in a directory to the disk.
    ///
    /// # Errors
    /// The file system's.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Bytes that can still be written.
    ///
    /// # Errors
    /// The file system's.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
}

/// The machine's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealFs;

struct RealFile(File);

impl FsFile for RealFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|r| !r.is_empty()) {
            match self.0.read_at(rest, offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn size(&self) -> io::Result<u64> {
        self.0.metadata().map(|m| m.len())
    }

    fn reserve(&self, from: u64, end: u64) {
        let (Ok(from), Ok(len)) = (i64::try_from(from), i64::try_from(end.saturating_sub(from))) else {
            return;
        };
        // SAFETY: a plain system call on an open descriptor; its failure only costs speed.
        unsafe {
            libc::fallocate(self.0.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, from, len);
        }
    }
}

impl Fs for RealFs {
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn FsFile>> {
        let file = OpenOptions::new().read(true).write(true).create(create).truncate(false).open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        use std::os::unix::ffi::OsStrExt;
        let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: zeroed is a valid statvfs; the call fills it or fails.
        let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: a NUL-terminated path and a valid buffer.
        if unsafe { libc::statvfs(path.as_ptr(), &raw mut stat) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// A lock on a directory, held while it lives.
///
/// A POSIX record lock, not `flock`: the children that a server forks to save would inherit that, and with it keep
/// the directory locked after the server has died.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

impl DirLock {
    /// Takes the lock.
    ///
    /// # Errors
    /// [`super::StoreError::InUse`] with the holder, or the file system's.
    pub fn take(dir: &Path) -> Result<Self, super::StoreError> {
        let path: PathBuf = dir.join("lock");
        let wrap = |what, e| super::StoreError::io(what, &path, e);
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
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &raw mut lock) } == 0 {
            return Ok(Self { _file: file });
        }
        // SAFETY: as above; asks who holds it.
        let asked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &raw mut lock) } == 0;
        let pid = (asked && lock.l_type != libc::F_UNLCK as libc::c_short).then_some(lock.l_pid);
        Err(super::StoreError::InUse { dir: dir.to_owned(), pid })
    }
}
