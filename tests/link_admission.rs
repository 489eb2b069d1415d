//! Proves who is let in, and that everyone else is told why, at both ends.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod link_support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use link_support::{identity, node, wait_for, Source, Target};
use redisdr::link::{
    Consent, Endpoint, EndpointConfig, LinkError, LinkState, Secret, ServerKind, Serving, SourceHost,
    TargetState,
};

#[test]
fn fifteen_targets_follow_and_a_sixteenth_is_refused() {
    let source = Source::new();
    source.filling.store(10_000, Ordering::SeqCst);
    source.write(10);
    let endpoint = source.start();
    let targets: Vec<_> = (1..=15).map(Target::new).collect();
    let links: Vec<_> = targets.iter().map(|t| t.link_to(&endpoint)).collect();
    targets.iter().for_each(|t| t.wait_equal(&source));
    source.write(200);
    targets.iter().for_each(|t| t.wait_equal(&source));
    wait_for("acks of all", || endpoint.durable_on(source.log.written()) == 15);

    // There is no sixteenth id; whoever claims one is told of the limit and of the holders.
    let late = Target::new(16);
    let link = late.link_to(&endpoint);
    let reason = late.wait_refused();
    assert!(
        reason.contains("at most 15 targets") && reason.contains("service_id 7 at 127.0.0.1:"),
        "{reason}"
    );
    assert!(late.fresh.load(Ordering::SeqCst));
    assert_eq!(endpoint.targets().len(), 15);
    // It goes on asking, slowly.
    wait_for("another attempt", || link.status().attempts >= 3);

    // Another node with the id of one that follows.
    let double = Target::with_node(7, node(77));
    let _link = double.link_to(&endpoint);
    let reason = double.wait_refused();
    assert!(reason.contains("service_id 7 at 127.0.0.1:") && reason.contains("since 20"), "{reason}");
    drop(links);
    // Its holder has gone: now it may.
    double.wait_equal(&source);
    assert_eq!(endpoint.targets().len(), 15);
}

#[test]
fn a_limit_below_fifteen_counts_those_that_are_away_too() {
    let source = Source::new();
    let mut config = Source::config();
    config.max_targets = 1;
    let endpoint = source.serve(config);
    let first = Target::new(1);
    let link = first.link_to(&endpoint);
    first.wait_equal(&source);
    link.stop();
    let second = Target::new(2);
    let _link = second.link_to(&endpoint);
    let reason = second.wait_refused();
    assert!(reason.contains("at most 1 targets") && reason.contains("service_id 1"), "{reason}");
    assert!(endpoint.drop_target(1));
    second.wait_equal(&source);
}

#[test]
fn the_sources_own_id_and_the_source_itself_are_refused() {
    let source = Source::new();
    let endpoint = source.start();
    let target = Target::new(0);
    let _link = target.link_to(&endpoint);
    let reason = target.wait_refused();
    let addr = endpoint.local_addr().to_string();
    assert!(reason.contains("service_id 0 is the source's own") && reason.contains(&addr), "{reason}");
    let itself = Target::with_node(3, node(100));
    let _link = itself.link_to(&endpoint);
    assert!(itself.wait_refused().contains("own endpoint"));
    assert!(endpoint.targets().is_empty());
}

/// A connection whose other end died without a word still holds the id: the same node takes it over at once.
#[test]
fn the_same_node_takes_over_from_its_dead_connection() {
    let source = Source::new();
    let mut config = Source::config();
    config.timeout = Duration::from_secs(300);
    let endpoint = source.serve(config);
    let proxy = link_support::proxy::Proxy::to(endpoint.local_addr());
    let target = Target::new(1);
    let link = target.link(Target::config(&[proxy.addr.to_string()]));
    target.wait_equal(&source);
    wait_for("streaming", || endpoint.targets()[0].state == TargetState::Streaming);
    proxy.stall(true);
    link.stop();
    assert_eq!(endpoint.targets()[0].state, TargetState::Streaming);
    let begun = Instant::now();
    let _link = target.link_to(&endpoint);
    source.write(10);
    target.wait_equal(&source);
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert_eq!(endpoint.targets().len(), 1);
}

#[test]
fn secrets_have_to_agree() {
    let secret = |s: &str| Secret::new(s.as_bytes());
    let cases = [
        (secret("one"), secret("one"), None),
        (secret("one"), secret("two"), Some("secret is not the source's")),
        (secret("one"), None, Some("the source has a secret and the target has none")),
        (None, secret("one"), Some("the target has a secret and the source has none")),
    ];
    for (ours, theirs, refused) in cases {
        let source = Source::new();
        source.write(3);
        let mut config = Source::config();
        config.secret = ours;
        let endpoint = source.serve(config);
        let target = Target::new(1);
        let mut config = Target::config(&[endpoint.local_addr().to_string()]);
        config.secret = theirs;
        let _link = target.link(config);
        match refused {
            None => target.wait_equal(&source),
            Some(words) => {
                let reason = target.wait_refused();
                assert!(reason.contains(words), "{reason}");
                assert!(target.fresh.load(Ordering::SeqCst) && endpoint.targets().is_empty());
            }
        }
    }
}

#[test]
fn an_open_endpoint_needs_a_secret() {
    let config = EndpointConfig::new("0.0.0.0:0", node(100));
    let host = Source::new() as Arc<dyn SourceHost>;
    let refused = Endpoint::start(config.clone(), Arc::clone(&host));
    assert!(matches!(refused, Err(LinkError::Host(reason)) if reason.contains("secret-file")));
    let config = EndpointConfig { secret: Secret::new(b"s"), ..config };
    drop(Endpoint::start(config, host).unwrap());
}

#[test]
fn a_target_that_cannot_load_the_snapshot_is_refused_untouched() {
    let cases = [
        ((ServerKind::Redis, 0x07_04_01, 12), (ServerKind::Redis, 0x07_00_0f, 10)),
        ((ServerKind::Redis, 0x07_04_01, 12), (ServerKind::Valkey, 0x09_01_02, 80)),
        ((ServerKind::Valkey, 0x09_01_02, 80), (ServerKind::Redis, 0x08_00_02, 12)),
    ];
    for (theirs, ours) in cases {
        let source = Source::new();
        source.write(3);
        let target = Target::new(1);
        for (who, (server, server_version, rdb_version)) in
            [(&source.identity, theirs), (&target.identity, ours)]
        {
            let mut id = who.lock();
            (id.server, id.server_version, id.rdb_version) = (server, server_version, rdb_version);
        }
        let endpoint = source.start();
        let _link = target.link_to(&endpoint);
        let reason = target.wait_refused();
        assert!(reason.contains("nothing was touched"), "{reason}");
        for rdb in [theirs.2, ours.2] {
            assert!(reason.contains(&format!("RDB version {rdb}")), "{reason}");
        }
        assert!(endpoint.targets().is_empty() && target.fresh.load(Ordering::SeqCst));
    }
}

#[test]
fn a_cut_target_stays_out_until_it_is_linked_by_hand() {
    let source = Source::new();
    let mut config = Source::config();
    let endpoint = source.serve(config.clone());
    let target = Target::new(1);
    let link = target.link_to(&endpoint);
    target.wait_equal(&source);
    wait_for("a pin", || endpoint.min_durable().is_some());
    assert!(!endpoint.drop_target(2));
    assert!(endpoint.drop_target(1));
    assert_eq!(endpoint.min_durable(), None);
    assert!(target.wait_refused().contains("was cut at the source"));
    assert_eq!(endpoint.targets()[0].state, TargetState::Cut);
    // Also after a restart of the source.
    config.listen = endpoint.local_addr().to_string();
    config.registered = endpoint.registered();
    endpoint.stop();
    let endpoint = source.serve(config);
    let attempts = link.status().attempts;
    wait_for("more attempts", || link.status().attempts >= attempts + 3);
    assert!(matches!(link.status().state, LinkState::Connecting | LinkState::Refused { .. }));
    assert_eq!(endpoint.targets()[0].state, TargetState::Cut);
    *target.consent.lock() = Consent::Link;
    link.reconnect();
    source.write(10);
    target.wait_equal(&source);
    assert_eq!(endpoint.targets()[0].state, TargetState::Streaming);
}

#[test]
fn a_replica_sends_targets_to_its_master_and_a_starting_source_lets_them_wait() {
    let (master, replica) = (Source::new(), Source::new());
    master.write(10);
    let (at_master, at_replica) = (master.start(), replica.start());
    *replica.serving.lock() = Serving::Redirect(vec![at_master.local_addr().to_string()]);
    master.starting.store(true, Ordering::SeqCst);
    let target = Target::new(1);
    let link = target.link_to(&at_replica);
    wait_for("not ready", || link.status().last_error.contains("not open yet"));
    master.starting.store(false, Ordering::SeqCst);
    *master.serving.lock() = Serving::NotReady("recovering, 12 %".to_owned());
    wait_for("recovering", || link.status().last_error.contains("recovering, 12 %"));
    *master.serving.lock() = Serving::Ready;
    target.wait_equal(&master);
    assert_eq!(link.status().source, at_master.local_addr().to_string());
    // The roles change while it follows.
    *replica.serving.lock() = Serving::Ready;
    replica.log.reset(master.log.lineage(), master.log.written() + 1).unwrap();
    *replica.data.lock() = *master.data.lock();
    *master.serving.lock() = Serving::Redirect(vec![at_replica.local_addr().to_string()]);
    wait_for("the new master", || link.status().source == at_replica.local_addr().to_string());
    replica.write(10);
    target.wait_equal(&replica);
    assert_eq!(target.full_syncs(), 1);
}

#[test]
fn redirects_in_a_circle_end() {
    let (a, b) = (Source::new(), Source::new());
    let (at_a, at_b) = (a.start(), b.start());
    *a.serving.lock() = Serving::Redirect(vec![at_b.local_addr().to_string()]);
    *b.serving.lock() = Serving::Redirect(vec![at_a.local_addr().to_string()]);
    let target = Target::new(1);
    let link = target.link_to(&at_a);
    wait_for("attempts", || link.status().attempts > 20);
    link.stop();
}

#[test]
fn endpoints_are_tried_in_turn() {
    let source = Source::new();
    source.write(1);
    let endpoint = source.start();
    // Nobody listens at the first, and the second has no address.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let target = Target::new(1);
    let list = [gone.to_string(), "no-such-name.invalid:1".to_owned(), endpoint.local_addr().to_string()];
    let _link = target.link(Target::config(&list));
    target.wait_equal(&source);
}

#[test]
fn a_name_and_an_ipv6_address_will_do() {
    let source = Source::new();
    source.write(1);
    let mut config = Source::config();
    config.listen = "localhost:0".to_owned();
    let by_name = source.serve(config.clone());
    let target = Target::new(1);
    let _link = target.link(Target::config(&[format!("localhost:{}", by_name.local_addr().port())]));
    target.wait_equal(&source);
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        eprintln!("this machine has no IPv6 loopback: only the parsing of such addresses is tested");
        return;
    }
    config.listen = "[::1]:0".to_owned();
    let v6 = source.serve(config);
    let target = Target::new(2);
    let _link = target.link_to(&v6);
    target.wait_equal(&source);
}

/// Whoever knocks without a greeting is let go after the handshake's time, holds at most his share of places,
/// and keeps nobody out afterwards.
#[test]
fn silent_strangers_are_let_go() {
    let source = Source::new();
    source.write(1);
    let mut config = Source::config();
    config.handshake_timeout = Duration::from_millis(500);
    config.max_pending = 8;
    let endpoint = source.serve(config);
    let mut strangers: Vec<_> = (0..40).map(|_| TcpStream::connect(endpoint.local_addr()).unwrap()).collect();
    for (i, s) in strangers.iter_mut().enumerate() {
        if i % 2 == 0 {
            let _ = s.write_all(b"GET / HTTP/1.1\r\n\r\n");
        }
        s.set_read_timeout(Some(link_support::PATIENCE)).unwrap();
        // Ended by the other side, sooner or later.
        assert!(matches!(s.read(&mut [0; 64]), Ok(0) | Err(_)));
    }
    let target = Target::new(1);
    let _link = target.link_to(&endpoint);
    target.wait_equal(&source);
}

#[test]
fn identities_show_at_both_ends() {
    let source = Source::new();
    let endpoint = source.start();
    let target = Target::new(1);
    let link = target.link_to(&endpoint);
    target.wait_equal(&source);
    assert_eq!(endpoint.targets()[0].identity, Some(identity(1)));
    assert_eq!(link.status().identity, Some(identity(0)));
    assert!(endpoint.targets()[0].connected_since_ms.is_some());
}
