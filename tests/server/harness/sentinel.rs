//! Three Sentinels that watch a master.

use super::server::Server;
use super::versions::Version;
use super::wait::{deadline, eventually, until};

/// The Sentinels; they end when this is dropped.
#[derive(Debug)]
pub struct Sentinels {
    /// Name of the master that they watch.
    pub name: String,
    /// Each one, a server of its own.
    pub nodes: Vec<Server>,
}

impl Sentinels {
    /// Starts three that watch `master` under `name` with quorum 2, and waits until they know each other.
    #[track_caller]
    pub fn start(version: Version, name: &str, master: &Server) -> Sentinels {
        let one = |_| {
            Server::builder(version)
                .sentinel()
                .tcp_only()
                .config("sentinel", format!("monitor {name} 127.0.0.1 {} 2", master.port()))
                .config("sentinel", format!("down-after-milliseconds {name} 1000"))
                .config("sentinel", format!("failover-timeout {name} 10000"))
                .start()
        };
        let sentinels = Sentinels { name: name.to_owned(), nodes: (0..3).map(one).collect() };
        until("the Sentinels know each other", || {
            sentinels.nodes.iter().all(|node| sentinels.field(node, "num-other-sentinels") == "2")
        });
        sentinels
    }

    /// A field of SENTINEL MASTER as `node` answers it; an absent one is empty.
    #[track_caller]
    pub fn field(&self, node: &Server, field: &str) -> String {
        let reply = node.client().call(&["SENTINEL", "MASTER", &self.name]).good().array();
        let pair = reply.chunks(2).find(|pair| pair[0].text() == field);
        pair.map_or(String::new(), |pair| pair[1].text())
    }

    /// Port of the master as the first Sentinel sees it.
    #[track_caller]
    pub fn master_port(&self) -> u16 {
        let reply = self.nodes[0].client().call(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", &self.name]).good();
        reply.array()[1].int() as u16
    }

    /// Ports of the replicas that the first Sentinel knows.
    #[track_caller]
    pub fn replica_ports(&self) -> Vec<u16> {
        // Sentinels of 6.0 know only the old word.
        let replicas = self.nodes[0].client().call(&["SENTINEL", "SLAVES", &self.name]).good().array();
        let port = |replica: super::resp::Reply| {
            let fields = replica.array();
            fields.chunks(2).find(|pair| pair[0].text() == "port").map_or(0, |pair| pair[1].int() as u16)
        };
        replicas.into_iter().map(port).collect()
    }

    /// Waits until all three name another master than the one at `old`, and gives its port.
    #[track_caller]
    pub fn wait_failover(&self, old: u16) -> u16 {
        eventually("the Sentinels agree on a new master", deadline() * 2, || {
            let port = self.master_port();
            let agree = self.nodes.iter().all(|node| self.field(node, "port") == port.to_string());
            (port != old && agree).then_some(port)
        })
    }
}
