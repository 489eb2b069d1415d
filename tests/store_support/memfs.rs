//! A file system in memory. It knows what of each file and directory has been synced, keeps its state before each
//! change, and makes of any of these states an image that a power cut could leave.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::path::{Component, Path};
use std::sync::{Arc, Mutex, Weak};

use redisdr::store::{DirLock, Fs, FsFile, StoreError};

use super::Rng;

/// What a disk writes as a whole.
const SECTOR: usize = 512;

#[derive(Clone, Default)]
struct Content {
    now: Vec<u8>,
    disk: Vec<u8>,
    /// Sectors of `now` that are not in `disk`.
    dirty: BTreeSet<usize>,
}

impl Content {
    fn touch(&mut self, from: usize, to: usize) {
        if from < to {
            self.dirty.extend(from / SECTOR..=(to - 1) / SECTOR);
        }
    }

    fn write(&mut self, bytes: &[u8], at: usize) {
        let end = at + bytes.len();
        if self.now.len() < end {
            self.touch(self.now.len(), at);
            self.now.resize(end, 0);
        }
        self.now[at..end].copy_from_slice(bytes);
        self.touch(at, end);
    }

    fn set_len(&mut self, len: usize) {
        let old = self.now.len();
        self.touch(old.min(len), old.max(len));
        self.now.resize(len, 0);
    }

    /// The disk with some of what is not synced: a new length, and of each sector the new or the old bytes.
    fn with(&self, len: usize, mut newer: impl FnMut(usize) -> bool) -> Vec<u8> {
        let mut out = self.disk.clone();
        out.resize(len, 0);
        for sector in &self.dirty {
            let from = sector * SECTOR;
            let to = (from + SECTOR).min(len).min(self.now.len());
            if from < to && newer(*sector) {
                out[from..to].copy_from_slice(&self.now[from..to]);
            }
        }
        out
    }

    fn sync(&mut self) {
        self.disk = self.with(self.now.len(), |_| true);
        self.dirty.clear();
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    File(usize),
    Dir(usize),
}

#[derive(Clone, Default)]
struct Names {
    now: BTreeMap<String, Entry>,
    disk: BTreeMap<String, Entry>,
}

/// All files and directories; directory 0 is the root.
#[derive(Clone)]
pub struct State {
    files: Vec<Content>,
    dirs: Vec<Names>,
}

/// What survives a power cut of what was not synced.
#[derive(Debug, Clone, Copy)]
pub enum Cut {
    /// Nothing.
    Drop,
    /// All: as if only the process had died.
    Keep,
    /// All names, and of each file the first part.
    Torn(u64),
    /// Any names and any sectors.
    Any(u64),
}

impl State {
    fn empty() -> Self {
        Self { files: Vec::new(), dirs: vec![Names::default()] }
    }

    /// What is on the disk after a power cut.
    pub fn image(&self, cut: Cut) -> Self {
        let seed = match cut {
            Cut::Torn(seed) | Cut::Any(seed) => seed,
            _ => 0,
        };
        let mut rng = Rng::new(seed + 1);
        let mut out = self.clone();
        for content in &mut out.files {
            let (old, new) = (content.disk.len(), content.now.len());
            let bytes = match cut {
                Cut::Drop => content.disk.clone(),
                Cut::Keep => content.now.clone(),
                Cut::Torn(_) => {
                    let (low, high) = (old.min(new), old.max(new));
                    let len = low + rng.below((high - low) as u64 + 1) as usize;
                    let upto = rng.below(len as u64 + 1) as usize / SECTOR;
                    let upto = if rng.coin() { usize::MAX } else { upto };
                    content.with(len, |s| s < upto)
                }
                Cut::Any(_) => {
                    let len = if rng.coin() { old } else { new };
                    content.with(len, |_| rng.coin())
                }
            };
            *content = Content { now: bytes.clone(), disk: bytes, dirty: BTreeSet::new() };
        }
        for names in &mut out.dirs {
            let all: BTreeSet<String> = names.now.keys().chain(names.disk.keys()).cloned().collect();
            let mut kept = BTreeMap::new();
            for name in all {
                let newer = match cut {
                    Cut::Drop => false,
                    Cut::Keep | Cut::Torn(_) => true,
                    Cut::Any(_) => rng.coin(),
                };
                let from = if newer { &names.now } else { &names.disk };
                if let Some(entry) = from.get(&name) {
                    kept.insert(name, *entry);
                }
            }
            *names = Names { now: kept.clone(), disk: kept };
        }
        out
    }

    /// Flips a bit in the file at `index` of those that are not empty.
    pub fn flip(&mut self, path: &Path, byte: usize, bit: u8) {
        let Ok(Entry::File(id)) = self.find(path) else { panic!("no file {}", path.display()) };
        self.files[id].now[byte] ^= 1 << bit;
        self.files[id].disk = self.files[id].now.clone();
    }

    pub fn len_of(&self, path: &Path) -> usize {
        let Ok(Entry::File(id)) = self.find(path) else { panic!("no file {}", path.display()) };
        self.files[id].now.len()
    }

    fn find(&self, path: &Path) -> io::Result<Entry> {
        let mut at = Entry::Dir(0);
        for name in parts(path) {
            let Entry::Dir(dir) = at else { return Err(io::ErrorKind::NotADirectory.into()) };
            at = *self.dirs[dir].now.get(&name).ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(at)
    }

    fn parent(&self, path: &Path) -> io::Result<(usize, String)> {
        let name = path.file_name().and_then(OsStr::to_str).ok_or(io::ErrorKind::InvalidInput)?;
        match self.find(path.parent().ok_or(io::ErrorKind::InvalidInput)?)? {
            Entry::Dir(dir) => Ok((dir, name.to_owned())),
            Entry::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }
}

fn parts(path: &Path) -> impl Iterator<Item = String> + '_ {
    path.components().filter_map(|c| match c {
        Component::Normal(name) => Some(name.to_str().expect("utf-8").to_owned()),
        _ => None,
    })
}

/// An error to come.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// After this many changes that succeed.
    pub at: usize,
    /// The error.
    pub errno: i32,
    /// How many changes fail.
    pub times: usize,
}

struct Inner {
    state: State,
    /// The state before each change.
    past: Vec<State>,
    record: bool,
    changes: usize,
    fault: Option<Fault>,
    hit: Option<&'static str>,
}

impl Inner {
    /// Counts a change that is about to be made; whether it fails.
    fn change(&mut self, what: &'static str) -> io::Result<()> {
        if self.record {
            self.past.push(self.state.clone());
        }
        let n = self.changes;
        self.changes += 1;
        match &self.fault {
            Some(f) if n >= f.at && n < f.at + f.times => {
                self.hit = Some(what);
                Err(io::Error::from_raw_os_error(f.errno))
            }
            _ => Ok(()),
        }
    }
}

pub struct MemFs {
    inner: Mutex<Inner>,
    this: Weak<MemFs>,
}

impl MemFs {
    pub fn new() -> Arc<Self> {
        Self::from_state(State::empty())
    }

    pub fn from_state(state: State) -> Arc<Self> {
        let inner = Inner { state, past: Vec::new(), record: false, changes: 0, fault: None, hit: None };
        Arc::new_cyclic(|this| Self { inner: Mutex::new(inner), this: this.clone() })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Keeps the state before each change from now on.
    pub fn record(&self) {
        self.lock().record = true;
    }

    /// Number of states kept.
    pub fn recorded(&self) -> usize {
        self.lock().past.len()
    }

    /// The states kept, and the one now.
    pub fn take_past(&self) -> Vec<State> {
        let mut inner = self.lock();
        let mut past = std::mem::take(&mut inner.past);
        past.push(inner.state.clone());
        past
    }

    pub fn state(&self) -> State {
        self.lock().state.clone()
    }

    pub fn set_fault(&self, fault: Option<Fault>) {
        self.lock().fault = fault;
    }

    /// What the fault has struck.
    pub fn hit(&self) -> Option<&'static str> {
        self.lock().hit
    }

    pub fn changes(&self) -> usize {
        self.lock().changes
    }
}

struct MemFile {
    fs: Arc<MemFs>,
    id: usize,
}

impl FsFile for MemFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut inner = self.fs.lock();
        let allowed = inner.change("write");
        // A write that fails has written a part.
        let done = if allowed.is_ok() { bytes } else { &bytes[..bytes.len() / 2] };
        inner.state.files[self.id].write(done, offset as usize);
        allowed
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let inner = self.fs.lock();
        let rest = inner.state.files[self.id].now.get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inner = self.fs.lock();
        let allowed = inner.change("sync");
        match allowed {
            Ok(()) => inner.state.files[self.id].sync(),
            // As Linux does: what could not be written counts as clean afterwards.
            Err(_) => inner.state.files[self.id].dirty.clear(),
        }
        allowed
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.fs.lock();
        inner.change("set_len")?;
        inner.state.files[self.id].set_len(len as usize);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.fs.lock().state.files[self.id].now.len() as u64)
    }
}

impl Fs for MemFs {
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn FsFile>> {
        let mut inner = self.lock();
        let id = match inner.state.find(path) {
            Ok(Entry::File(id)) => id,
            Ok(Entry::Dir(_)) => return Err(io::ErrorKind::IsADirectory.into()),
            Err(e) if e.kind() == io::ErrorKind::NotFound && create => {
                inner.change("create")?;
                let (dir, name) = inner.state.parent(path)?;
                inner.state.files.push(Content::default());
                let id = inner.state.files.len() - 1;
                inner.state.dirs[dir].now.insert(name, Entry::File(id));
                id
            }
            Err(e) => return Err(e),
        };
        Ok(Arc::new(MemFile { fs: self.this.upgrade().unwrap(), id }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        inner.change("rename")?;
        let entry = inner.state.find(from)?;
        let (dir, name) = inner.state.parent(from)?;
        inner.state.dirs[dir].now.remove(&name);
        let (dir, name) = inner.state.parent(to)?;
        inner.state.dirs[dir].now.insert(name, entry);
        Ok(())
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        inner.state.find(path)?;
        inner.change("unlink")?;
        let (dir, name) = inner.state.parent(path)?;
        inner.state.dirs[dir].now.remove(&name);
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        match inner.state.find(path)? {
            Entry::Dir(id) if inner.state.dirs[id].now.is_empty() => {}
            _ => return Err(io::ErrorKind::DirectoryNotEmpty.into()),
        }
        inner.change("remove_dir")?;
        let (dir, name) = inner.state.parent(path)?;
        inner.state.dirs[dir].now.remove(&name);
        Ok(())
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        inner.change("hard_link")?;
        let entry = inner.state.find(from)?;
        let (dir, name) = inner.state.parent(to)?;
        match inner.state.dirs[dir].now.contains_key(&name) {
            true => Err(io::ErrorKind::AlreadyExists.into()),
            false => {
                inner.state.dirs[dir].now.insert(name, entry);
                Ok(())
            }
        }
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        if inner.state.find(path).is_ok() {
            return Ok(());
        }
        inner.change("create_dir")?;
        let mut dir = 0;
        for name in parts(path) {
            dir = match inner.state.dirs[dir].now.get(&name) {
                Some(Entry::Dir(id)) => *id,
                Some(Entry::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                None => {
                    inner.state.dirs.push(Names::default());
                    let id = inner.state.dirs.len() - 1;
                    inner.state.dirs[dir].now.insert(name, Entry::Dir(id));
                    id
                }
            };
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let inner = self.lock();
        match inner.state.find(path)? {
            Entry::Dir(dir) => Ok(inner.state.dirs[dir].now.keys().cloned().collect()),
            Entry::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        inner.change("sync_dir")?;
        match inner.state.find(path)? {
            Entry::Dir(dir) => {
                inner.state.dirs[dir].disk = inner.state.dirs[dir].now.clone();
                Ok(())
            }
            Entry::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        Ok(1 << 40)
    }

    fn lock(&self, _dir: &Path) -> Result<DirLock, StoreError> {
        Ok(DirLock::none())
    }
}
