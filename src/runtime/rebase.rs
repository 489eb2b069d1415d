//! After a promotion or a recovery: takes HOLD off the expiries, in slices.

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use super::gate::GateMode;
use super::node::Node;
use super::shared::Mode;
use crate::local::{Conn, LocalError, Reply};

/// Time of one slice on the server's main thread, in microseconds.
const SLICE_US: &[u8] = b"400";
/// Wait between two slices, so that clients get more than that.
const BETWEEN: Duration = Duration::from_micros(500);

impl Node {
    /// Starts releasing, where expiries are held.
    pub fn start_rebase(self: &Arc<Self>) {
        let node = Arc::clone(self);
        let spawned = super::spawn("dr-rebase", move || node.rebase());
        if let Err(e) = spawned {
            self.warn("rebase", format!("no thread to release expiries: {e}"));
        }
    }

    /// Captures, with expiries that are still to be released.
    pub fn set_rebasing(&self) {
        if self.doing.load().state != "rebasing" {
            self.progress.store(0, Ordering::Relaxed);
            self.shared.released.store(0, Ordering::Relaxed);
        }
        self.set_doing("rebasing", "expiries are being released");
    }

    fn rebase(self: &Arc<Self>) {
        let mut released = 0;
        while !self.stopping() && self.mode() == Mode::Source {
            let Some(mut conn) = self.connect_again() else { return };
            let before = released;
            match self.rebase_all(&mut conn, &mut released) {
                // A client may have moved a held key to where the pass had been: on until one finds nothing.
                Ok(true) if released > before => {}
                Ok(true) => {
                    self.set_ident(|i| i.held = false);
                    if self.shared.gate.mode() == GateMode::Releasing {
                        self.shared.gate.set(GateMode::Open, "");
                    }
                    self.remember(|s| s.rebasing = false);
                    self.progress.store(100, Ordering::Relaxed);
                    self.warn("rebase", "");
                    log::info!("{released} expiries released");
                    if self.doing.load().state == "rebasing" {
                        self.set_doing("capturing", "");
                    }
                    return;
                }
                Ok(false) => return,
                Err(e) => {
                    self.warn("rebase", format!("releasing expiries: {e}; trying on"));
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    /// Goes through all databases; false where the node has ceased to be a source.
    fn rebase_all(self: &Arc<Self>, conn: &mut Conn, released: &mut i64) -> Result<bool, LocalError> {
        let keyspace = conn.info("keyspace")?;
        let mut dbs: Vec<(u32, i64)> = keyspace
            .iter()
            .filter_map(|(k, v)| {
                let keys = v.split(',').next()?.strip_prefix("keys=")?.parse().ok()?;
                Some((k.strip_prefix("db")?.parse().ok()?, keys))
            })
            .collect();
        dbs.sort_unstable();
        let total: i64 = dbs.iter().map(|d| d.1).sum::<i64>().max(1);
        let mut scanned = 0i64;
        for (db, _) in dbs {
            let db = db.to_string();
            let mut cursor = b"0".to_vec();
            loop {
                if self.stopping() || self.mode() != Mode::Source {
                    return Ok(false);
                }
                let reply = conn.call(&[b"DR._REBASE", db.as_bytes(), &cursor, SLICE_US])?;
                let Reply::Array(items) = reply else { return Err(LocalError::Protocol("DR._REBASE")) };
                let [next, n, seen] = items.as_slice() else {
                    return Err(LocalError::Protocol("DR._REBASE"));
                };
                *released += super::boot::int(n).unwrap_or(0);
                scanned += super::boot::int(seen).unwrap_or(0);
                let percent = u64::try_from((scanned * 100 / total).clamp(0, 99)).unwrap_or(0);
                self.progress.store(percent, Ordering::Relaxed);
                self.shared.released.store(*released, Ordering::Relaxed);
                if self.doing.load().state == "capturing" {
                    self.set_rebasing();
                }
                cursor = next.bytes().unwrap_or(b"0").to_vec();
                if cursor == b"0" {
                    break;
                }
                std::thread::sleep(BETWEEN);
            }
        }
        Ok(true)
    }
}
