//! Sentinels that watch a source see its replicas and not the tap; those of two sites never learn of each other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::dr::OnDrop;
use crate::harness::wait::until;
use crate::harness::{version, wait_applied, wait_equal, Sentinels, Server};

fn the_tap_is_no_replica(name: &str) {
    let version = version(name);
    let source = Server::start(version);
    let replica = Server::start(version);
    replica.replicate(&source);
    source.wait_state("capturing");
    let sentinels = Sentinels::start(version, "shard", &source);
    until("the Sentinels list the replica", || sentinels.replica_ports().contains(&replica.port()));
    for node in &sentinels.nodes {
        assert_eq!(sentinels.field(node, "num-slaves"), "1", "{name}");
    }
    assert_eq!(sentinels.replica_ports(), [replica.port()], "{name}");

    // A target's own subscribers do not hear the Sentinels of the source, and it works beside them.
    let target = Server::builder(version).arg("service-id", 1).source(&source).start();
    target.wait_state("streaming");
    cmd!(source.client(), "SET", "key", "value").ok();
    wait_equal(&source, &target);
    assert_eq!(sentinels.replica_ports(), [replica.port()], "{name}");
    for node in &sentinels.nodes {
        assert!(!node.log().contains("99999"), "{name}: {}", node.log_tail(20));
    }
}

#[test]
fn sentinels_do_not_list_the_tap_redis_6_0() {
    the_tap_is_no_replica("redis-6.0");
}

#[test]
fn sentinels_do_not_list_the_tap_redis_7_0() {
    the_tap_is_no_replica("redis-7.0");
}

#[test]
fn sentinels_do_not_list_the_tap_valkey_9_1() {
    the_tap_is_no_replica("valkey-9.1");
}

/// One site: a master, its replica, three Sentinels.
struct Site {
    master: Server,
    replica: Server,
    sentinels: Sentinels,
}

impl Site {
    fn start(name: &str, service_id: u8) -> Site {
        let version = version(name);
        let start = || Server::builder(version).arg("service-id", service_id).start();
        let (master, replica) = (start(), start());
        replica.replicate(&master);
        let sentinels = Sentinels::start(version, "mymaster", &master);
        until("the Sentinels list the replica", || {
            sentinels.nodes.iter().all(|node| sentinels.field(node, "num-slaves") == "1")
        });
        Site { master, replica, sentinels }
    }

    /// Everything that each of its Sentinels knows is of this site.
    fn knows_only_itself(&self, what: &str) {
        let ports = |server: &Server, command: &str| {
            let mut words = vec!["SENTINEL", command];
            if command != "MASTERS" {
                words.push("mymaster");
            }
            let all = server.client().call(&words).good().array();
            let port = |one: crate::harness::Reply| {
                let fields = one.array();
                fields.chunks(2).find(|pair| pair[0].text() == "port").map_or(0, |pair| pair[1].int() as u16)
            };
            let mut ports: Vec<u16> = all.into_iter().map(port).collect();
            ports.sort_unstable();
            ports
        };
        for node in &self.sentinels.nodes {
            let mut others: Vec<u16> = self.sentinels.nodes.iter().map(Server::port).collect();
            others.retain(|port| *port != node.port());
            others.sort_unstable();
            assert_eq!(ports(node, "MASTERS"), [self.master.port()], "{what}");
            assert_eq!(ports(node, "SLAVES"), [self.replica.port()], "{what}");
            assert_eq!(ports(node, "SENTINELS"), others, "{what}");
        }
    }
}

fn sentinels_of_two_sites_do_not_meet(name: &str, runs: Duration) {
    let source = Site::start(name, 0);
    let target = Site::start(name, 1);
    let endpoint = source.master.endpoint();
    cmd!(target.master.client(), "DR.LINK", endpoint).ok();
    target.master.wait_state("streaming");
    let mut news = target.master.client();
    cmd!(news, "SUBSCRIBE", "news").good();
    let mut hello = target.master.client();
    cmd!(hello, "SUBSCRIBE", "__sentinel__:hello").good();
    let own: Vec<String> = target.sentinels.nodes.iter().map(|node| node.port().to_string()).collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // A check that fails must not leave the others at work.
        let _stop = OnDrop(|| stop.store(true, Ordering::SeqCst));
        let load = scope.spawn(|| {
            let mut client = source.master.client();
            let mut sent = 0u64;
            while !stop.load(Ordering::SeqCst) {
                for _ in 0..50 {
                    cmd!(client, "PUBLISH", "news", sent).good();
                    cmd!(client, "SET", format!("key:{}", sent % 1000), sent, "EX", 100).ok();
                    sent += 1;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            cmd!(client, "PUBLISH", "news", "end").good();
            sent
        });
        let heard = scope.spawn(|| {
            let mut count = 0u64;
            loop {
                let text = news.read().expect("a message").strings().pop().unwrap();
                if text == b"end" {
                    return count;
                }
                assert_eq!(text, count.to_string().into_bytes(), "{name}: a message is missing");
                count += 1;
            }
        });
        let hellos = scope.spawn(|| {
            let mut count = 0;
            hello.set_timeout(Duration::from_secs(5));
            while !stop.load(Ordering::SeqCst) {
                let Ok(message) = hello.read() else { continue };
                let text = String::from_utf8_lossy(&message.strings()[2]).into_owned();
                let port = text.split(',').nth(1).unwrap_or_default().to_owned();
                assert!(
                    own.contains(&port),
                    "{name}: a Sentinel of the source is heard at the target: {text}"
                );
                count += 1;
            }
            count
        });
        let begun = Instant::now();
        let mut looks = 0;
        while begun.elapsed() < runs {
            source.knows_only_itself(&format!("{name}, source"));
            target.knows_only_itself(&format!("{name}, target"));
            looks += 1;
            std::thread::sleep(Duration::from_millis(200));
        }
        stop.store(true, Ordering::SeqCst);
        let (sent, heard, hellos) = (load.join().unwrap(), heard.join().unwrap(), hellos.join().unwrap());
        println!("{name}: {looks} looks, {sent} messages sent, {heard} heard, {hellos} hellos of its own");
        assert_eq!(sent, heard, "{name}");
        assert!(hellos > 0, "{name}: the target's Sentinels say nothing");
    });
    wait_applied(&target.master, source.master.settle());
    for site in [&source, &target] {
        for node in &site.sentinels.nodes {
            let log = node.log();
            let other = if std::ptr::eq(site, &source) { &target } else { &source };
            for port in [other.master.port(), other.replica.port()] {
                assert!(!log.contains(&format!("127.0.0.1 {port} ")), "{name}: {log}");
            }
        }
    }
}

#[test]
fn sentinels_of_two_sites_do_not_meet_redis_7_0() {
    sentinels_of_two_sites_do_not_meet("redis-7.0", Duration::from_secs(20));
}

#[test]
fn sentinels_of_two_sites_do_not_meet_redis_6_0() {
    sentinels_of_two_sites_do_not_meet("redis-6.0", Duration::from_secs(15));
}

#[test]
#[ignore = "soak: five minutes"]
fn soak_sentinels_of_two_sites_do_not_meet_redis_7_0() {
    sentinels_of_two_sites_do_not_meet("redis-7.0", Duration::from_secs(300));
}

#[test]
#[ignore = "soak: five minutes"]
fn soak_sentinels_of_two_sites_do_not_meet_redis_6_2() {
    sentinels_of_two_sites_do_not_meet("redis-6.2", Duration::from_secs(300));
}
