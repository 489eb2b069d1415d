//! Who a node is, and whose snapshots it can load.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Which server the module runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerKind {
    /// Redis.
    Redis,
    /// Valkey.
    Valkey,
}

/// What a node says of itself in its greeting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeIdentity {
    /// Names the instance in its star, 0..15.
    pub service_id: u8,
    /// The server.
    pub server: ServerKind,
    /// Its version: one byte each for major, minor and patch, `0x07000f` is 7.0.15.
    pub server_version: u32,
    /// The RDB version that it writes, which is the newest that it reads.
    pub rdb_version: u16,
    /// Version of the module.
    pub module_version: String,
}

impl fmt::Display for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v = self.server_version;
        let (major, minor, patch) = (v >> 16, (v >> 8) & 0xff, v & 0xff);
        write!(f, "{:?} {major}.{minor}.{patch} (RDB version {})", self.server, self.rdb_version)
    }
}

/// Random bytes that name one node over its restarts: two nodes with one service_id are told apart by them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NodeId(pub [u8; 16]);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The last RDB version that both servers write with the same meaning. Redis numbers go on with 12 in 7.4;
/// Valkey stays at 11 up to 8.1 and goes on with 80 in 9.0, and refuses what lies between as foreign.
const LAST_SHARED_RDB: u16 = 11;

/// Whether a target can load what a source saves.
///
/// # Errors
/// The reason, with both versions.
pub fn can_load(source: &NodeIdentity, target: &NodeIdentity) -> Result<(), String> {
    if source.rdb_version > target.rdb_version {
        return Err(format!(
            "the target runs {target} and cannot load what the source, {source}, saves; nothing was touched"
        ));
    }
    if source.server != target.server && source.rdb_version > LAST_SHARED_RDB {
        return Err(format!(
            "{:?} and {:?} share RDB versions up to {LAST_SHARED_RDB} only: the target runs {target}, the \
             source {source}; nothing was touched",
            source.server, target.server
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_loads_whose_snapshot() {
        let node = |server, version, rdb| NodeIdentity {
            service_id: 0,
            server,
            server_version: version,
            rdb_version: rdb,
            module_version: String::new(),
        };
        let redis60 = node(ServerKind::Redis, 0x06_00_10, 9);
        let redis70 = node(ServerKind::Redis, 0x07_00_0f, 10);
        let redis72 = node(ServerKind::Redis, 0x07_02_00, 11);
        let redis74 = node(ServerKind::Redis, 0x07_04_01, 12);
        let valkey8 = node(ServerKind::Valkey, 0x08_01_08, 11);
        let valkey9 = node(ServerKind::Valkey, 0x09_01_02, 80);
        let all = [&redis60, &redis70, &redis72, &redis74, &valkey8, &valkey9];
        // Rows are sources, columns are targets, both in the order above.
        let table = [
            [true, true, true, true, true, true],
            [false, true, true, true, true, true],
            [false, false, true, true, true, true],
            [false, false, false, true, false, false],
            [false, false, true, true, true, true],
            [false, false, false, false, false, true],
        ];
        for (source, row) in all.iter().zip(table) {
            for (target, ok) in all.iter().zip(row) {
                let got = can_load(source, target);
                assert_eq!(got.is_ok(), ok, "{source} -> {target}: {got:?}");
                if let Err(reason) = got {
                    assert!(reason.contains(&source.to_string()) && reason.contains(&target.to_string()));
                    assert!(reason.contains("nothing was touched"));
                }
            }
        }
    }
}
