//! The servers that tests run on.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// One of the seven servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// As `scripts/servers` calls it.
    pub name: &'static str,
    /// Major and minor version of the product.
    pub number: (u32, u32),
    /// Valkey, else Redis.
    pub valkey: bool,
}

/// All seven, oldest first.
pub const ALL: [Version; 7] = [
    Version { name: "redis-6.0", number: (6, 0), valkey: false },
    Version { name: "redis-6.2", number: (6, 2), valkey: false },
    Version { name: "redis-7.0", number: (7, 0), valkey: false },
    Version { name: "redis-7.4", number: (7, 4), valkey: false },
    Version { name: "redis-8.0", number: (8, 0), valkey: false },
    Version { name: "valkey-8.1", number: (8, 1), valkey: true },
    Version { name: "valkey-9.1", number: (9, 1), valkey: true },
];

impl fmt::Display for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name)
    }
}

impl Version {
    /// Whether it has what Redis got in that version. Valkey forked from 7.2 and counts as that for anything later.
    pub fn has(self, major: u32, minor: u32) -> bool {
        let number = if self.valkey { (7, 2) } else { self.number };
        number >= (major, minor)
    }

    /// Whether it is Valkey of that version or later.
    pub fn has_valkey(self, major: u32, minor: u32) -> bool {
        self.valkey && self.number >= (major, minor)
    }

    /// Path of its executable; it is fetched when it is missing.
    #[track_caller]
    pub fn path(self) -> PathBuf {
        static PATHS: Mutex<BTreeMap<&str, PathBuf>> = Mutex::new(BTreeMap::new());
        let mut paths = PATHS.lock().unwrap_or_else(|broken| broken.into_inner());
        if let Some(path) = paths.get(self.name) {
            return path.clone();
        }
        let done = Command::new(repository().join("scripts/servers")).args(["--path", self.name]).output();
        let done = done.unwrap_or_else(|error| panic!("scripts/servers: {error}"));
        if !done.status.success() {
            let why = String::from_utf8_lossy(&done.stderr);
            panic!(
                "{} is not there; `scripts/servers --path {}` fetches it. It said:\n{why}",
                self.name, self.name
            );
        }
        let path = PathBuf::from(String::from_utf8_lossy(&done.stdout).trim());
        paths.insert(self.name, path.clone());
        path
    }
}

/// The repository's top folder.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The server of that name.
#[track_caller]
pub fn version(name: &str) -> Version {
    match ALL.iter().find(|version| version.name == name) {
        Some(version) => *version,
        None => panic!("no server is called {name}; there are {:?}", ALL.map(|version| version.name)),
    }
}

/// For tests that loop by themselves: `REDISDR_SERVERS_LIST` (names, comma between), else all seven.
pub fn versions() -> Vec<Version> {
    match std::env::var("REDISDR_SERVERS_LIST") {
        Ok(names) if !names.trim().is_empty() => names.split(',').map(|name| version(name.trim())).collect(),
        _ => ALL.to_vec(),
    }
}

/// Makes one test per server of `fn name(version: Version)`: `name::redis_7_0` and so on. `scripts/test --servers`
/// leaves servers out by these names, so a test that names its servers another way must hold the same words.
#[macro_export]
macro_rules! for_each_server {
    ($(#[$attr:meta])* $name:ident) => {
        mod $name {
            for_each_server!(@one $name, redis_6_0, "redis-6.0", $(#[$attr])*);
            for_each_server!(@one $name, redis_6_2, "redis-6.2", $(#[$attr])*);
            for_each_server!(@one $name, redis_7_0, "redis-7.0", $(#[$attr])*);
            for_each_server!(@one $name, redis_7_4, "redis-7.4", $(#[$attr])*);
            for_each_server!(@one $name, redis_8_0, "redis-8.0", $(#[$attr])*);
            for_each_server!(@one $name, valkey_8_1, "valkey-8.1", $(#[$attr])*);
            for_each_server!(@one $name, valkey_9_1, "valkey-9.1", $(#[$attr])*);
        }
    };
    (@one $name:ident, $test:ident, $server:literal, $(#[$attr:meta])*) => {
        #[test]
        $(#[$attr])*
        fn $test() {
            super::$name($crate::harness::version($server));
        }
    };
}

/// As [`for_each_server!`], but by default only on the oldest, 7.0 and the newest; the others come with
/// `scripts/test --matrix`. For tests that take long and whose subject hardly depends on the server.
#[macro_export]
macro_rules! for_some_servers {
    ($(#[$attr:meta])* $name:ident) => {
        mod $name {
            for_each_server!(@one $name, redis_6_0, "redis-6.0", $(#[$attr])*);
            for_each_server!(@one $name, redis_6_2, "redis-6.2", #[ignore = "matrix"] $(#[$attr])*);
            for_each_server!(@one $name, redis_7_0, "redis-7.0", $(#[$attr])*);
            for_each_server!(@one $name, redis_7_4, "redis-7.4", #[ignore = "matrix"] $(#[$attr])*);
            for_each_server!(@one $name, redis_8_0, "redis-8.0", #[ignore = "matrix"] $(#[$attr])*);
            for_each_server!(@one $name, valkey_8_1, "valkey-8.1", #[ignore = "matrix"] $(#[$attr])*);
            for_each_server!(@one $name, valkey_9_1, "valkey-9.1", $(#[$attr])*);
        }
    };
}
