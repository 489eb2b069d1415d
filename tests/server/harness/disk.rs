//! Disks that are small, that fail, and that are slow.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::builder::Builder;

/// A file system of its own of a few megabytes. Unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    /// Mounts it. Needs the right to mount; without it the test fails and says how to get it, since a test that is not
    /// run proves nothing.
    #[track_caller]
    pub fn new(megabytes: u64) -> SmallDisk {
        let dir = tempfile::Builder::new().prefix("redisdr-small-disk-").tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "redisdr-test"]).arg(dir.path());
        let out = mount.output().expect("mount");
        let why = String::from_utf8_lossy(&out.stderr);
        assert!(
            out.status.success(),
            "a small file system cannot be mounted here: run as root, or with 'unshare -rm': {why}"
        );
        SmallDisk { dir }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Bytes that can still be written.
    pub fn free(&self) -> u64 {
        let path = std::ffi::CString::new(self.path().to_str().unwrap()).unwrap();
        // SAFETY: zeroed is a valid statvfs; the call fills it or fails.
        let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: a NUL-terminated path and a valid buffer.
        assert_eq!(unsafe { libc::statvfs(path.as_ptr(), &raw mut stat) }, 0);
        stat.f_bavail * stat.f_frsize
    }

    /// Takes room away, up to so many bytes from the end.
    pub fn fill(&self, leave: u64) {
        let bytes = self.free().saturating_sub(leave);
        fs::write(self.path().join("filler"), vec![1u8; bytes as usize]).unwrap();
    }

    /// Gives that room back.
    pub fn empty(&self) {
        fs::remove_file(self.path().join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a server that a failing test leaves may still have files open.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

/// Makes writes and syncs of a server's log fail or take long, by a library that is loaded before the C library.
#[derive(Debug)]
pub struct FaultyDisk {
    dir: tempfile::TempDir,
}

impl FaultyDisk {
    /// Works as it should, until told otherwise.
    #[track_caller]
    pub fn new() -> FaultyDisk {
        let disk = FaultyDisk { dir: tempfile::Builder::new().prefix("redisdr-faulty-").tempdir().unwrap() };
        disk.set("");
        disk
    }

    /// Has a server use it.
    pub fn under(&self, builder: Builder) -> Builder {
        let library = library();
        builder.env("LD_PRELOAD", library.display()).env("REDISDR_TEST_FAULTS", self.control().display())
    }

    fn control(&self) -> PathBuf {
        self.dir.path().join("faults")
    }

    /// What happens from now on: `write_errno=N sync_errno=N write_ms=N sync_ms=N`, each or none.
    pub fn set(&self, faults: &str) {
        let new = self.dir.path().join("new");
        fs::write(&new, faults).unwrap();
        fs::rename(new, self.control()).unwrap();
    }
}

/// The library, compiled once a run.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/server/harness/faulty_disk.c");
        let made = folder.join(format!("faulty_disk-{}.so", std::process::id()));
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]).arg(&made).arg(source);
        cc.args(["-ldl", "-lpthread"]);
        let out = cc.output().expect("cc, which building redis needs as well");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        made
    })
}
