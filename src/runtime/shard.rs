//! What the nodes of a shard know of one another: the master says what it is in its own stream and in each copy, a
//! replica sends targets to it and takes its lineage over.

use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::boot::lineage_of;
use super::node::{Node, NotServing};
use super::shared::Mode;
use crate::local::Reply;
use crate::snapshot::aux::{AuxContent, Mode as SavedMode};

impl Node {
    /// Tells the replicas what this node is; done by the controller as soon as the server lets it.
    pub fn announce_soon(&self) {
        self.announce_due.store(true, Ordering::Release);
    }

    /// Tells the replicas now, or at the next opportunity.
    pub fn announce(&self) {
        self.announce_due.store(false, Ordering::Release);
        let told = self.connect().and_then(|mut conn| conn.call_raw(&[b"DR._SHARD"]));
        match told {
            Ok(Reply::Error(e)) if e.starts_with("READONLY") => {}
            Ok(Reply::Error(e)) => {
                log::warn!("telling the replicas: {e}; trying again");
                self.announce_soon();
            }
            Ok(_) => {}
            Err(_) => self.announce_soon(),
        }
    }

    /// As [`Self::announce`], where it is due.
    pub fn announce_where_due(&self) {
        if self.announce_due.load(Ordering::Acquire) {
            self.announce();
        }
    }

    /// Where targets reach this node: `:port` where its address is any of the machine's.
    pub fn own_endpoint(&self) -> Vec<String> {
        if let Some(told) = &self.shared.config.announce_endpoint {
            return vec![told.clone()];
        }
        let Some(addr) = self.endpoint.lock().as_ref().map(|e| e.local_addr()) else { return Vec::new() };
        let configured = self.shared.config.endpoint.as_deref().and_then(|e| e.rsplit_once(':'));
        vec![match configured {
            _ if addr.ip().is_unspecified() => format!(":{}", addr.port()),
            // A name may mean something else elsewhere, and is what the operator has chosen.
            Some((host, _)) => format!("{host}:{}", addr.port()),
            None => addr.to_string(),
        }]
    }

    /// Says to targets that ask why this node does not serve them, and who does.
    pub fn update_serving(&self) {
        let mode = self.mode();
        if !matches!(mode, Mode::Replica | Mode::TargetReplica) {
            return;
        }
        let info = self.connect().and_then(|mut c| c.info("replication")).unwrap_or_default();
        let host = info.get("master_host").cloned().unwrap_or_default();
        let port = info.get("master_port").cloned().unwrap_or_default();
        let word = self.shared.master_word.load_full().filter(|a| a.mode == SavedMode::Source);
        let elsewhere: Vec<String> =
            word.iter().flat_map(|a| &a.endpoints).filter_map(|e| reachable(e, &host)).collect();
        let reason = if mode == Mode::TargetReplica {
            format!("this server is a replica of the target {host}:{port}, chains are not supported")
        } else {
            format!("this server is a replica of {host}:{port}, which has not said where its endpoint is")
        };
        let before = self.not_serving.load_full();
        let same = before.reason == reason && before.elsewhere == elsewhere;
        if self.serving.load(Ordering::Acquire) || !same {
            self.set_serving(Some(NotServing { reason, elsewhere }));
        }
    }

    /// The master's word on where histories begin: a replica only sees where it went over from one to the next itself.
    pub fn take_lineage(self: &Arc<Self>) {
        if self.mode() != Mode::Replica {
            return;
        }
        let Some(word) = self.shared.master_word.load_full() else { return };
        let theirs = lineage_of(&word);
        let ours = self.log.lineage();
        let same_history = theirs.current().map(|c| c.history) == ours.current().map(|c| c.history);
        if word.mode != SavedMode::Source || !same_history || theirs == ours {
            return;
        }
        match self.log.adopt_lineage(theirs) {
            Ok(()) => self.set_ident(|i| i.lineage = self.log.lineage()),
            Err(e) => self.warn("replica-log", format!("the master's lineage could not be noted: {e}")),
        }
    }

    /// Whether what the master has said last is one thing and `seen` another; `seen` is then brought up to date.
    pub fn master_spoke(&self, seen: &mut Option<Arc<AuxContent>>) -> bool {
        let now = self.shared.master_word.load_full();
        let same = match (&now, &*seen) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        *seen = now;
        !same
    }
}

/// `endpoint` as targets can use it, given the host under which the replicas know the master.
fn reachable(endpoint: &str, host: &str) -> Option<String> {
    match endpoint.strip_prefix(':') {
        None => Some(endpoint.to_owned()),
        Some(_) if host.is_empty() => None,
        Some(port) if host.contains(':') => Some(format!("[{host}]:{port}")),
        Some(port) => Some(format!("{host}:{port}")),
    }
}

#[cfg(test)]
mod tests {
    use super::reachable;

    #[test]
    fn an_endpoint_on_any_address_is_at_the_masters_host() {
        assert_eq!(reachable("10.0.0.1:7000", "h").as_deref(), Some("10.0.0.1:7000"));
        assert_eq!(reachable(":7000", "10.0.0.2").as_deref(), Some("10.0.0.2:7000"));
        assert_eq!(reachable(":7000", "fd00::1").as_deref(), Some("[fd00::1]:7000"));
        assert_eq!(reachable(":7000", ""), None);
    }
}
