//! Failovers by Sentinels under load, of the source with three targets linked and of a target: links find the new
//! master and go on from their position, no op is lost or applied twice, and a master that comes back rejoins.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use crate::dr::OnDrop;
use crate::harness::wait::{deadline, eventually, until};
use crate::harness::{version, wait_equal, Builder, Sentinels, Server, Status, Version};
use crate::replicas::{assert_same_log, wait_logs};
use crate::workload::Conn;

/// How a master is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// SENTINEL FAILOVER: nothing is wrong with it.
    Ordered,
    /// SIGKILL, and started again after the failover.
    Killed,
    /// SIGSTOP, and SIGCONT after the failover: as when it is cut off from the others.
    Frozen,
}

use Loss::{Frozen, Killed, Ordered};

/// A master with two replicas, watched by three Sentinels.
struct Shard {
    nodes: Vec<Server>,
    sentinels: Sentinels,
    master: AtomicU16,
}

impl Shard {
    fn start(version: Version, builder: impl Fn(usize) -> Builder, ready: impl Fn(&Server)) -> Shard {
        let nodes: Vec<Server> = (0..3).map(|n| builder(n).start()).collect();
        ready(&nodes[0]);
        nodes[1..].iter().for_each(|replica| replica.replicate(&nodes[0]));
        let sentinels = Sentinels::start(version, "shard", &nodes[0]);
        for node in &sentinels.nodes {
            // Within twice this time there is no second failover.
            cmd!(node.client(), "SENTINEL", "SET", "shard", "failover-timeout", 3000).ok();
        }
        let master = AtomicU16::new(nodes[0].port());
        let shard = Shard { nodes, sentinels, master };
        shard.wait_healthy();
        shard
    }

    fn master(&self) -> &Server {
        let port = self.master.load(Ordering::Relaxed);
        self.nodes.iter().find(|n| n.port() == port).expect("a master")
    }

    fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(Server::endpoint).collect()
    }

    /// Nothing but clients writes from here on: logs can be compared op by op.
    fn quiet(&self) {
        self.sentinels.nodes.iter().for_each(Server::kill9);
        for node in &self.nodes {
            cmd!(node.client(), "CONFIG", "SET", "repl-ping-slave-period", 3600).ok();
        }
    }

    /// Waits until all Sentinels know two replicas that follow.
    fn wait_healthy(&self) {
        let healthy = |sentinel: &Server| {
            let replicas = sentinel.client().call(&["SENTINEL", "SLAVES", "shard"]).good().array();
            let good = replicas.into_iter().filter(|replica| {
                let fields = replica.clone().array();
                let is = |name: &str, value: &str| {
                    fields.chunks(2).any(|p| p[0].text() == name && p[1].text() == value)
                };
                is("flags", "slave") && is("master-link-status", "ok")
            });
            good.count() == 2
        };
        eventually("the Sentinels see two replicas", deadline() * 2, || {
            self.sentinels.nodes.iter().all(healthy).then_some(())
        });
    }

    /// Loses the master, waits for the next one, and brings the old one back.
    fn fail_over(&self, loss: Loss) {
        self.wait_healthy();
        let old = self.master();
        match loss {
            Ordered => eventually("the Sentinels fail over", deadline(), || {
                // Refused while they are still busy with the one before.
                let reply = self.sentinels.nodes[0].client().call(&["SENTINEL", "FAILOVER", "shard"]);
                reply.error().is_none().then_some(())
            }),
            Killed => old.kill9(),
            Frozen => old.stop(),
        }
        let port = self.sentinels.wait_failover(old.port());
        self.master.store(port, Ordering::Relaxed);
        match loss {
            Ordered => {}
            Killed => old.start_again(),
            Frozen => old.cont(),
        }
        old.wait_status("a replica again", |s| s.role() == "replica");
        let rejoined = |s: &Status| s.role() == "replica" && ["capturing", "streaming"].contains(&s.state());
        for replica in self.nodes.iter().filter(|n| n.port() != port) {
            eventually("the replicas follow the new master", deadline() * 2, || {
                let info = replica.info("replication");
                let is = |name: &str, value: String| info.get(name) == Some(&value);
                (is("master_port", port.to_string()) && is("master_link_status", "up".into())).then_some(())
            });
            replica.wait_status("a replica that follows", rejoined);
        }
    }
}

/// Writes that show a second execution, at whoever is the master.
struct Writer<'a> {
    shard: &'a Shard,
    stop: &'a AtomicBool,
    acked: &'a AtomicU64,
}

impl Writer<'_> {
    /// Returns the numbers of the rounds that were acknowledged as a whole.
    fn run(&self) -> Vec<u64> {
        let mut acked = Vec::new();
        let mut n = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let port = self.shard.master.load(Ordering::Relaxed);
            let addr = SocketAddr::from(([127, 0, 0, 1], port));
            let Ok(mut conn) = Conn::open_for(addr, Duration::from_secs(1)) else {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            };
            while !self.stop.load(Ordering::Relaxed) && port == self.shard.master.load(Ordering::Relaxed) {
                n += 1;
                // A round whose fate is unknown is not repeated: it counts as not acknowledged.
                match conn.pipeline(&round(n)) {
                    Ok(replies) if replies.iter().all(|r| r.error().is_none()) => acked.push(n),
                    Ok(_) => std::thread::sleep(Duration::from_millis(20)),
                    Err(_) => break,
                }
                self.acked.store(acked.len() as u64, Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(500));
            }
        }
        acked
    }
}

fn round(n: u64) -> Vec<Vec<String>> {
    let (k, n) = (n % 500, n.to_string());
    let lines = [
        format!("SADD rounds {n}"),
        "INCR counter".to_owned(),
        format!("RPUSH list {n}"),
        format!("SET key:{k} {n} EX 1000"),
        "SELECT 3".to_owned(),
        "MULTI".to_owned(),
        "HINCRBY hash field 3".to_owned(),
        format!("RPUSH list {n}"),
        "EXEC".to_owned(),
        "SELECT 0".to_owned(),
        format!("SET passing:{k} {n} PX 300"),
        format!("XADD stream MAXLEN 1000 * n {n}"),
    ];
    lines.iter().map(|l| l.split(' ').map(str::to_owned).collect()).collect()
}

/// The rounds of `acked` that a server does not have.
fn missing(server: &Server, acked: &[u64]) -> Vec<u64> {
    let reply = cmd!(server.client(), "SMEMBERS", "rounds").good().array();
    let there: std::collections::HashSet<u64> = reply.iter().filter_map(|r| r.text().parse().ok()).collect();
    acked.iter().copied().filter(|n| !there.contains(n)).collect()
}

/// Runs `body` while clients write to the shard; returns the rounds that were acknowledged.
fn under_load(shard: &Shard, body: impl FnOnce(&AtomicU64)) -> Vec<u64> {
    let (stop, acked) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let writer = Writer { shard, stop: &stop, acked: &acked };
        let writer = scope.spawn(move || writer.run());
        // However this ends, the writer does.
        let stop_it = OnDrop(|| stop.store(true, Ordering::Relaxed));
        body(&acked);
        drop(stop_it);
        writer.join().expect("the writer")
    })
}

/// Waits for so many more rounds.
fn wait_rounds(acked: &AtomicU64, more: u64) {
    let from = acked.load(Ordering::Relaxed);
    until("clients write", || acked.load(Ordering::Relaxed) >= from + more);
}

/// Waits until a target follows the one that is the source now.
fn wait_follows(target: &Server, source: &Server) {
    let op = source.status().op_id();
    let what = format!("following {} past op {op}", source.endpoint());
    target.wait_status(&what, |s| {
        s.state() == "streaming" && s.text("link/source") == source.endpoint() && s.applied_op_id() >= op
    });
}

fn the_source_fails_over(version: Version, losses: &[Loss]) {
    let builder = |_| Server::builder(version).config("repl-ping-replica-period", 2);
    let shard = Shard::start(version, builder, |master| drop(master.wait_state("capturing")));
    let list = shard.endpoints();
    let targets: Vec<Server> = (1..=3u16)
        .map(|id| {
            // One knows only its first endpoint: a replica has to send it on.
            let known = if id == 3 { &list[..1] } else { &list[..] };
            Server::builder(version).arg("service-id", id).arg("source", known.join(",")).start()
        })
        .collect();
    targets.iter().for_each(|t| drop(t.wait_state("streaming")));
    let acked = under_load(&shard, |acked| {
        wait_rounds(acked, 100);
        for (n, loss) in losses.iter().enumerate() {
            shard.fail_over(*loss);
            wait_rounds(acked, 100);
            targets.iter().for_each(|t| wait_follows(t, shard.master()));
            eprintln!("{version}: failover {} of the source ({loss:?}) done", n + 1);
        }
    });
    shard.quiet();
    let source = shard.master();
    for target in &targets {
        wait_equal(source, target);
        let status = target.status();
        assert_eq!(status.full_syncs(), 1, "{version}: {:#}", status.0);
    }
    let lost = missing(source, &acked);
    eprintln!("{version}: {} of {} acknowledged rounds were lost by the failovers", lost.len(), acked.len());
    let kept = missing(&targets[0], &acked);
    assert_eq!(lost, kept, "{version}");
    for node in shard.nodes.iter().filter(|n| n.port() != source.port()) {
        node.wait_in_step(source);
        wait_logs(source, node);
        let what = format!("{version}, {} and its replica {}", source.addr(), node.addr());
        assert_same_log(source, node, &what);
        let histories = |s: &Server| s.status().field("lineage").clone();
        assert_eq!(histories(source), histories(node), "{what}");
    }
    assert_same_log(source, &targets[0], &format!("{version}, source and target"));
    let registered: Vec<u64> =
        source.status().list("targets").iter().filter_map(|t| t["service_id"].as_u64()).collect();
    assert_eq!(registered, [1, 2, 3], "{version}");
    assert_eq!(source.info_field("replication", "connected_slaves"), "3", "{version}: two and the tap");
}

/// Tries to write to every node until told to stop; returns what was let in.
fn intrude(shard: &Shard, stop: &AtomicBool) -> Vec<String> {
    let mut let_in = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        for node in &shard.nodes {
            let addr = SocketAddr::from(([127, 0, 0, 1], node.port()));
            let Ok(mut conn) = Conn::open_for(addr, Duration::from_millis(200)) else { continue };
            if let Ok(replies) = conn.pipeline(&[vec!["SET", "hole", "1"]]) {
                if replies[0].error().is_none() {
                    let_in.push(format!("{}", node.port()));
                }
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let_in
}

fn a_target_fails_over(version: Version, losses: &[Loss]) {
    let source = &Server::builder(version).config("repl-ping-replica-period", 3600).start();
    source.wait_state("capturing");
    let shard = Shard::start(
        version,
        |n| {
            let builder = Server::builder(version).arg("service-id", 1);
            // The others learn of the link by replication.
            if n == 0 {
                builder.source(source)
            } else {
                builder
            }
        },
        |master| drop(master.wait_state("streaming")),
    );
    let full_syncs = || shard.nodes.iter().map(|n| n.status().full_syncs()).sum::<u64>();
    assert_eq!(full_syncs(), 1, "{version}");
    let (stop, acked) = (AtomicBool::new(false), AtomicU64::new(0));
    let written_to = Writing { port: source.port(), stop: &stop, acked: &acked };
    let rounds = std::thread::scope(|scope| {
        let writer = scope.spawn(|| written_to.run());
        let intruder = scope.spawn(|| intrude(&shard, &stop));
        let stop_it = OnDrop(|| stop.store(true, Ordering::Relaxed));
        wait_rounds(&acked, 100);
        for (n, loss) in losses.iter().enumerate() {
            shard.fail_over(*loss);
            wait_rounds(&acked, 100);
            wait_follows(shard.master(), source);
            eprintln!("{version}: failover {} of the target ({loss:?}) done", n + 1);
        }
        drop(stop_it);
        assert_eq!(
            intruder.join().expect("the intruder"),
            Vec::<String>::new(),
            "{version}: the fence was down"
        );
        writer.join().expect("the writer")
    });
    shard.quiet();
    let target = shard.master();
    wait_equal(source, target);
    assert_eq!(cmd!(target.client(), "GET", "counter").text(), rounds.to_string(), "{version}");
    assert_eq!(cmd!(target.client(), "LLEN", "list").int() as u64, rounds, "{version}");
    assert_eq!(full_syncs(), 1, "{version}: a failover of the target took a copy over the link");
    for node in shard.nodes.iter().filter(|n| n.port() != target.port()) {
        node.wait_in_step(target);
        wait_equal_replica(target, node);
        wait_logs(target, node);
        assert_same_log(target, node, &format!("{version}, target and its replica"));
    }
    assert_same_log(source, target, &format!("{version}, source and target"));
    let status = source.status();
    assert_eq!(status.list("targets").len(), 1, "{version}: {:#}", status.0);
}

fn wait_equal_replica(master: &Server, replica: &Server) {
    until("the replica has its master's data", || {
        crate::harness::digest(master) == crate::harness::digest(replica)
    });
}

/// As [`Writer`], at one server that stays.
struct Writing<'a> {
    port: u16,
    stop: &'a AtomicBool,
    acked: &'a AtomicU64,
}

impl Writing<'_> {
    fn run(&self) -> u64 {
        let mut conn = Conn::open(SocketAddr::from(([127, 0, 0, 1], self.port))).expect("the source");
        let mut n = 0;
        while !self.stop.load(Ordering::Relaxed) {
            n += 1;
            for reply in conn.pipeline(&round(n)).expect("replies") {
                assert!(reply.error().is_none(), "{reply:?}");
            }
            self.acked.store(n, Ordering::Relaxed);
            std::thread::sleep(Duration::from_micros(500));
        }
        n
    }
}

/// Each kind of loss once, over the versions; a failover takes half a minute and more, most of it Sentinel's.
macro_rules! fails_over {
    ($(#[$attr:meta])* $name:ident, $what:ident, $server:literal, $losses:expr) => {
        #[test]
        $(#[$attr])*
        fn $name() {
            $what(version($server), &$losses);
        }
    };
}
fails_over!(the_source_fails_over_redis_7_0, the_source_fails_over, "redis-7.0", [Killed, Frozen]);
fails_over!(the_source_fails_over_redis_6_0, the_source_fails_over, "redis-6.0", [Killed]);
fails_over!(the_source_fails_over_valkey_9_1, the_source_fails_over, "valkey-9.1", [Ordered]);
fails_over!(a_target_fails_over_redis_7_0, a_target_fails_over, "redis-7.0", [Killed, Frozen]);
fails_over!(
    #[ignore = "matrix"]
    a_target_fails_over_redis_6_0,
    a_target_fails_over,
    "redis-6.0",
    [Killed]
);
fails_over!(a_target_fails_over_valkey_9_1, a_target_fails_over, "valkey-9.1", [Ordered]);

/// Ten of each kind in turn.
fn ten() -> Vec<Loss> {
    [Killed, Ordered, Frozen].into_iter().cycle().take(10).collect()
}

for_each_server!(
    #[ignore = "soak: ten failovers of the source"]
    soak_the_source_fails_over
);

fn soak_the_source_fails_over(version: Version) {
    the_source_fails_over(version, &ten());
}

for_each_server!(
    #[ignore = "soak: ten failovers of a target"]
    soak_a_target_fails_over
);

fn soak_a_target_fails_over(version: Version) {
    a_target_fails_over(version, &ten());
}
