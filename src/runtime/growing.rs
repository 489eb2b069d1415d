//! The file that a BGSAVE of the server writes, watched from outside: without a word to the server's main thread.
//!
//! The child writes `temp-<pid>.rdb` in the server's directory from its beginning to its end, syncs it, and renames it
//! to the RDB's name (`rdbSave` in `rdb.c` of Redis 6.0 to 8.0 and Valkey 8 and 9). What is written does not change. After
//! a failure the file is unlinked: by the child, or by the server where the child was killed.

use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::link::{Grown, Growth};

/// A child that has gone and left its file is waited for this long: the server removes the file.
const LEFT_BEHIND: Duration = Duration::from_secs(2);
/// Not whole yet.
const NOT_WHOLE: u64 = u64::MAX;
/// What a failed save is called.
const FAILED: &str = "the server's BGSAVE has failed, see its log";

/// Which file a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId {
    dev: u64,
    ino: u64,
}

impl FileId {
    fn of(meta: &Metadata) -> Self {
        Self { dev: meta.dev(), ino: meta.ino() }
    }

    /// The file at `path`, where there is one.
    pub fn at(path: &Path) -> Option<Self> {
        std::fs::symlink_metadata(path).ok().map(|m| Self::of(&m))
    }
}

/// Files in `dir` that are named like those of a child, by its pid.
fn temp_files(dir: Option<&Path>) -> Vec<(u32, PathBuf)> {
    let Some(entries) = dir.and_then(|d| std::fs::read_dir(d).ok()) else { return Vec::new() };
    let named = |entry: io::Result<std::fs::DirEntry>| {
        let path = entry.ok()?.path();
        let pid = path.file_name()?.to_str()?.strip_prefix("temp-")?.strip_suffix(".rdb")?.parse().ok()?;
        Some((pid, path))
    };
    entries.filter_map(named).collect()
}

/// Whether `pid` is a child of this process that still runs.
fn is_own_child(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The name, in brackets, may hold anything.
    let Some((_, rest)) = stat.rsplit_once(')') else { return false };
    let mut fields = rest.split_whitespace();
    let (state, parent) = (fields.next(), fields.next().and_then(|p| p.parse::<u32>().ok()));
    parent == Some(std::process::id()) && !matches!(state, Some("Z" | "X") | None)
}

/// What was there before a BGSAVE.
#[derive(Debug)]
pub struct Before {
    rdb: PathBuf,
    old: Option<FileId>,
    stale: HashSet<FileId>,
}

impl Before {
    /// Looks at what the server saves to, and at what is beside it.
    pub fn look(rdb: &Path) -> Self {
        let stale = temp_files(rdb.parent()).iter().filter_map(|(_, path)| FileId::at(path)).collect();
        Self { rdb: rdb.to_owned(), old: FileId::at(rdb), stale }
    }

    /// Whether there is another RDB since then.
    pub fn is_replaced(&self) -> bool {
        FileId::at(&self.rdb).is_some_and(|new| Some(new) != self.old)
    }

    /// The file of a child that began since then. A file that was there before is none, also where a new child has
    /// its number and writes to it.
    pub fn find(&self) -> Option<GrowingFile> {
        let mut files = temp_files(self.rdb.parent()).into_iter().filter(|(pid, _)| is_own_child(*pid));
        files.find_map(|(pid, path)| {
            GrowingFile::open(pid, path, &self.rdb).filter(|f| !self.stale.contains(&f.id))
        })
    }
}

/// The open file of a child.
#[derive(Debug)]
pub struct GrowingFile {
    file: File,
    path: PathBuf,
    /// What it will be called.
    rdb: PathBuf,
    pid: u32,
    id: FileId,
    /// Its length, once it is whole: the name may then be another file's.
    whole: AtomicU64,
    /// Since when the child is gone and the file still there.
    left: Mutex<Option<Instant>>,
}

impl GrowingFile {
    /// `None` also on a file system that numbers an open file otherwise than its name.
    fn open(pid: u32, path: PathBuf, rdb: &Path) -> Option<Self> {
        let file = File::open(&path).ok()?;
        let id = FileId::of(&file.metadata().ok()?);
        let named = FileId::at(&path) == Some(id);
        let (whole, left) = (AtomicU64::new(NOT_WHOLE), Mutex::new(None));
        named.then(|| Self { file, path, rdb: rdb.to_owned(), pid, id, whole, left })
    }

    /// Another handle of the file.
    ///
    /// # Errors
    /// The system's.
    pub fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Reads what is there from the beginning.
    pub fn reader(&self) -> ReadAt<'_> {
        ReadAt { file: &self.file, at: 0 }
    }

    /// Whether the child has left its file behind, and the server does not remove it.
    fn is_abandoned(&self) -> bool {
        let mut left = self.left.lock();
        if is_own_child(self.pid) {
            *left = None;
            return false;
        }
        left.get_or_insert_with(Instant::now).elapsed() > LEFT_BEHIND
    }
}

impl Growth for GrowingFile {
    fn look(&self) -> Result<Grown, String> {
        let whole = self.whole.load(Ordering::Acquire);
        if whole != NOT_WHOLE {
            return Ok(Grown { len: whole, whole: true });
        }
        // In this order: what has lost the one name has the other, and what has been renamed its full length.
        let has = |path: &Path| FileId::at(path) == Some(self.id);
        let (growing, renamed) = (has(&self.path), has(&self.rdb));
        let meta = self.file.metadata().map_err(|e| format!("{}: {e}", self.path.display()))?;
        let len = meta.len();
        if renamed {
            self.whole.store(len, Ordering::Release);
            return Ok(Grown { len, whole: true });
        }
        // Removed, or renamed and replaced by a later save before that was seen.
        if !growing || self.is_abandoned() {
            return Err(FAILED.to_owned());
        }
        Ok(Grown { len, whole: false })
    }
}

/// Reads a file from its beginning without moving the position that all its handles share.
#[derive(Debug)]
pub struct ReadAt<'a> {
    file: &'a File,
    at: u64,
}

impl<'a> ReadAt<'a> {
    /// From the beginning.
    pub fn start(file: &'a File) -> Self {
        Self { file, at: 0 }
    }
}

impl Read for ReadAt<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buf, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn started(dir: &Path, pid: u32) -> (PathBuf, File) {
        let path = dir.join(format!("temp-{pid}.rdb"));
        let file = File::create(&path).unwrap();
        (path, file)
    }

    /// A process that is a child of this one.
    struct Child(std::process::Child);

    impl Child {
        fn new() -> Self {
            Self(std::process::Command::new("sleep").arg("60").spawn().unwrap())
        }
    }

    impl Drop for Child {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_childs_file_is_found_and_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let child = Child::new();
        let stale = Child::new();
        let _stale = started(dir.path(), stale.0.id());
        let before = Before::look(&dir.path().join("dump.rdb"));
        // Of no child, of no number, of another kind.
        let _other = started(dir.path(), 1);
        File::create(dir.path().join("temp-x.rdb")).unwrap();
        File::create(dir.path().join(format!("temp-rewriteaof-{}.aof", child.0.id()))).unwrap();
        assert!(before.find().is_none());
        // The number of a stale file is used again.
        let _again = started(dir.path(), stale.0.id());
        assert!(before.find().is_none());
        let (path, _) = started(dir.path(), child.0.id());
        assert_eq!(before.find().unwrap().path, path);
    }

    #[test]
    fn it_is_whole_when_it_is_renamed_and_stays_so() {
        let dir = tempfile::tempdir().unwrap();
        let child = Child::new();
        let before = Before::look(&dir.path().join("dump.rdb"));
        let (path, mut file) = started(dir.path(), child.0.id());
        let found = before.find().unwrap();
        assert_eq!(found.look(), Ok(Grown { len: 0, whole: false }));
        file.write_all(b"abc").unwrap();
        assert_eq!(found.look(), Ok(Grown { len: 3, whole: false }));
        let rdb = dir.path().join("dump.rdb");
        std::fs::rename(&path, &rdb).unwrap();
        // Another file of this name is another child's.
        std::fs::write(&path, b"abcdef").unwrap();
        assert_eq!(found.look(), Ok(Grown { len: 3, whole: true }));
        std::fs::remove_file(&rdb).unwrap();
        assert_eq!(found.look(), Ok(Grown { len: 3, whole: true }));
    }

    #[test]
    fn a_removed_file_is_a_failed_save() {
        let dir = tempfile::tempdir().unwrap();
        let child = Child::new();
        let before = Before::look(&dir.path().join("dump.rdb"));
        let (path, mut file) = started(dir.path(), child.0.id());
        let found = before.find().unwrap();
        file.write_all(b"abc").unwrap();
        // Where a name is kept for an open file.
        let kept = dir.path().join(".nfs0001");
        std::fs::rename(path, &kept).unwrap();
        assert_eq!(found.look(), Err(FAILED.to_owned()));
        std::fs::remove_file(kept).unwrap();
        assert_eq!(found.look(), Err(FAILED.to_owned()));
    }

    #[test]
    fn a_file_that_is_left_behind_is_a_failed_save_after_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let child = Child::new();
        let before = Before::look(&dir.path().join("dump.rdb"));
        let _left = started(dir.path(), child.0.id());
        let found = before.find().unwrap();
        drop(child);
        assert_eq!(found.look(), Ok(Grown { len: 0, whole: false }));
        *found.left.lock() = Instant::now().checked_sub(LEFT_BEHIND);
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(found.look(), Err(FAILED.to_owned()));
    }
}
