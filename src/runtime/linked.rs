//! Becoming a target, and ceasing to be one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::boot::has_keys;
use super::gate::GateMode;
use super::node::{Node, NotServing};
use super::shared::Mode;
use super::target::Target;
use crate::link::{Client, ClientConfig, Consent};
use crate::local::{Conn, LocalError};

/// Hard link of an RDB that all targets have reached, for rebuilding to a point below the newest RDB.
pub const BASE_RDB: &str = "base.rdb";
/// The setting that is changed while linked.
const POLICY: &str = "maxmemory-policy";
/// Longest wait for what is in the own log to be applied at a cut.
const APPLY_REST: Duration = Duration::from_secs(600);

impl Node {
    /// Follows a source from here on.
    ///
    /// # Errors
    /// In words; nothing has then changed.
    pub fn become_target(
        self: &Arc<Self>,
        endpoints: Vec<String>,
        caller: u64,
        consent: Consent,
    ) -> Result<(), String> {
        if self.mode() == Mode::Replica || self.mode() == Mode::TargetReplica {
            return Err("this server is a replica: link its master".into());
        }
        if let Some(client) = self.client.lock().take() {
            client.stop();
        }
        let change = |s: &mut super::state::NodeState| {
            s.linked = Some(endpoints.clone());
            s.cut = false;
        };
        self.state.change(change).map_err(|e| format!("the link cannot be remembered: {e}"))?;
        *self.consent.lock() = consent;
        self.set_serving(Some(NotServing {
            reason: "this node is a target, chains are not supported".into(),
            elsewhere: Vec::new(),
        }));
        self.raise_fence();
        self.shared.linked.store(true, Ordering::Release);
        let mut conn = self.connect().map_err(|e| e.to_string())?;
        self.disconnect_clients(&mut conn, caller).map_err(|e| e.to_string())?;
        self.switch_eviction_off(&mut conn).map_err(|e| e.to_string())?;
        if self.mode() == Mode::Source {
            self.leave_source(&mut conn)?;
        }
        self.set_ident(|i| i.endpoints.clone_from(&endpoints));
        // Before anything is loaded: the replicas' own capture has to end.
        self.announce();
        self.start_client(endpoints)
    }

    /// Starts the link of a node whose fence is up.
    ///
    /// # Errors
    /// In words.
    pub fn start_client(self: &Arc<Self>, endpoints: Vec<String>) -> Result<(), String> {
        let config = ClientConfig {
            secret: self.link_secret.clone(),
            timeout: self.shared.config.timeout,
            fork_tolerance: self.shared.config.fork_tolerance,
            ..ClientConfig::new(endpoints)
        };
        let client = Client::start(config, Arc::new(Target(Arc::clone(self)))).map_err(|e| e.to_string())?;
        *self.client.lock() = Some(Arc::new(client));
        self.set_doing("connecting", "");
        Ok(())
    }

    /// Ends the capture with everything in the log that the dataset holds.
    fn leave_source(self: &Arc<Self>, conn: &mut Conn) -> Result<(), String> {
        let keys = has_keys(conn).map_err(|e| e.to_string())?;
        let ident = self.shared.ident.load_full();
        if ident.positioned {
            if keys {
                // Expiries will have to be held, which takes a rebuild, and that an RDB.
                let usable = self.usable_rdb(conn).map_err(|e| e.to_string())?;
                if usable.is_none() {
                    if let Err(e) = self.save(&AtomicBool::new(false), &mut |_| {}) {
                        log::warn!("no RDB of this node for a later rebuild: {e}");
                    }
                }
            }
            let until = Instant::now() + Duration::from_secs(10);
            loop {
                let info = conn.info("replication").map_err(|e| e.to_string())?;
                let offset: i64 = info.get("master_repl_offset").and_then(|o| o.parse().ok()).unwrap_or(0);
                let end = u64::try_from(ident.base + offset).unwrap_or(0);
                if self.log.written() >= end {
                    break;
                }
                if Instant::now() > until {
                    log::warn!("the log ends at op {}, the dataset at {end}", self.log.written());
                    break;
                }
                self.log.wait_written(self.log.written(), Duration::from_millis(20));
            }
        }
        self.stop_capture();
        let _ = self.writer.flush(Duration::from_secs(10));
        let position = self.log.written();
        self.shared.applied.store(position, Ordering::Release);
        self.shared.applied_known.store(ident.positioned, Ordering::Release);
        self.shared.hold.store(true, Ordering::Release);
        self.set_ident(|i| {
            i.mode = Mode::Target;
            i.held = !keys;
            i.lineage = self.log.lineage();
        });
        Ok(())
    }

    /// Disconnects ordinary clients: a transaction queued or a pop that blocks from before the fence would
    /// otherwise get through.
    fn disconnect_clients(&self, conn: &mut Conn, caller: u64) -> Result<(), LocalError> {
        let list = conn.call(&[b"CLIENT", b"LIST", b"TYPE", b"normal"])?;
        let text = list.text().unwrap_or_default();
        let id_of = |line: &str| line.strip_prefix("id=")?.split(' ').next()?.parse::<u64>().ok();
        let ids: Vec<u64> = text
            .lines()
            .filter_map(id_of)
            .filter(|id| *id != caller && !self.shared.is_own_client(*id))
            .collect();
        for chunk in ids.chunks(64) {
            for id in chunk {
                conn.push(&[b"CLIENT", b"KILL", b"ID", id.to_string().as_bytes()]);
            }
            conn.flush()?;
            for _ in chunk {
                conn.read_reply()?;
            }
        }
        Ok(())
    }

    /// Eviction would remove what the source still has.
    pub fn switch_eviction_off(&self, conn: &mut Conn) -> Result<(), LocalError> {
        let policy = conn.config_get(POLICY)?.unwrap_or_default();
        let remembered =
            || self.state.get().linked_settings.iter().find(|s| s.0 == POLICY).map(|s| s.1.clone());
        if policy != "noeviction" {
            let first = |s: &mut super::state::NodeState| {
                if s.linked_settings.is_empty() {
                    s.linked_settings = vec![(POLICY.to_owned(), policy.clone())];
                }
            };
            if !self.remember(first) {
                return Ok(());
            }
            conn.config_set(POLICY, "noeviction")?;
            log::info!("{POLICY} is noeviction while linked (was {policy})");
        }
        self.shared.policy.store(remembered().map(Arc::new));
        Ok(())
    }

    /// Puts settings back that were changed for the link.
    pub fn restore_settings(&self, conn: &mut Conn) {
        self.shared.policy.store(None);
        for (name, value) in self.state.get().linked_settings {
            match conn.config_set(&name, &value) {
                Ok(()) => log::info!("{name} is {value} again"),
                Err(e) => self.warn("settings", format!("{name} could not be set back to {value}: {e}")),
            }
        }
        self.remember(|s| s.linked_settings.clear());
    }

    /// Cuts the link for good; returns the last applied op.
    ///
    /// # Errors
    /// In words.
    pub fn cut(self: &Arc<Self>) -> Result<u64, String> {
        if matches!(self.mode(), Mode::Replica | Mode::TargetReplica) {
            return Err("this server is a replica: cut at its master".into());
        }
        if !self.shared.linked.load(Ordering::Acquire) {
            return Err("this node is not linked to a source".into());
        }
        if self.state.get().loading && !self.shared.applied_known.load(Ordering::Acquire) {
            return Err("a snapshot is being loaded: the dataset is not whole and cannot be promoted".into());
        }
        if let Some(client) = self.client.lock().take() {
            client.stop();
        }
        let state = |s: &mut super::state::NodeState| {
            s.linked = None;
            s.cut = true;
            s.rebasing = true;
        };
        self.state.change(state).map_err(|e| format!("the cut cannot be remembered: {e}"))?;
        self.warn("held", "");
        self.apply_rest();
        self.stop_feed();
        let applied = self.shared.applied.load(Ordering::Acquire);
        self.shared.linked.store(false, Ordering::Release);
        let source = "LOADING redisdr: the link is cut, the log is being attached";
        self.shared.gate.set(GateMode::Cutting, source);
        self.become_source();
        if let Ok(mut conn) = self.connect() {
            self.restore_settings(&mut conn);
        }
        log::warn!("link cut by the operator at op {applied}: this node is a source now");
        Ok(applied)
    }

    /// Applies what the own log has; what it cannot is kept in it and told.
    fn apply_rest(self: &Arc<Self>) {
        let end = self.log.written();
        let until = Instant::now() + APPLY_REST;
        self.start_feed();
        while self.shared.applied.load(Ordering::Acquire) < end && Instant::now() < until {
            if self.shared.diverged.load().is_some() || !self.shared.applied_known.load(Ordering::Acquire) {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let applied = self.shared.applied.load(Ordering::Acquire);
        if applied >= end {
            return;
        }
        self.stop_feed();
        match self.log.cut_after(applied, "received and not applied before the link was cut") {
            Ok(kept) => log::warn!("ops above {applied} could not be applied: {kept:?}"),
            Err(e) => log::error!("ops above {applied} could not be applied nor kept aside: {e}"),
        }
    }

    /// Accepts the source's data on a held target.
    ///
    /// # Errors
    /// In words.
    pub fn resync(self: &Arc<Self>) -> Result<(), String> {
        if matches!(self.mode(), Mode::Replica | Mode::TargetReplica) {
            return Err("this server is a replica: say it to its master".into());
        }
        let Some(endpoints) = self.state.get().linked else {
            return Err("this node is not linked to a source".into());
        };
        *self.consent.lock() = Consent::Resync;
        self.shared.diverged.store(None);
        self.warn("apply", "");
        self.warn("held", "");
        if let Some(client) = self.client.lock().take() {
            client.stop();
        }
        self.start_client(endpoints)
    }
}
