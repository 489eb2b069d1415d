//! The module gets into its own server whatever the passwords are, and nobody else gets to what is the module's.

use crate::attach::{count_up, tap_id};
use crate::harness::client::{Place, Target as Login};
use crate::harness::{deadline, eventually, version, wait_equal, Client, Reply, Server, Version};
use std::sync::atomic::{AtomicBool, Ordering};

fn log_in(server: &Server, user: &str, password: &str) -> Client {
    let mut client = Client::open(&Login { place: Place::Tcp(server.addr()), password: None }).unwrap();
    cmd!(client, "AUTH", user, password).ok();
    client
}

fn status(client: &mut Client) -> serde_json::Value {
    serde_json::from_slice(cmd!(client, "DR.STATUS", "JSON").good().bytes()).unwrap()
}

for_each_server!(a_password_is_no_obstacle);

fn a_password_is_no_obstacle(version: Version) {
    let source = Server::builder(version).password("a secret of the server").start();
    let target = Server::builder(version).password("another").arg("service-id", 1).source(&source).start();
    target.wait_state("streaming");
    cmd!(source.client(), "SET", "key", "value").ok();
    wait_equal(&source, &target);
    // Without the password there is no way to a command of the operator.
    let mut stranger = Client::tcp(&source.addr()).unwrap();
    for command in [&["DR.STATUS"][..], &["DR.CUTLINK"], &["DR.HELP"], &["DR._TTL", "TTL", "key"]] {
        let reply = stranger.call(command);
        assert!(reply.is_error("NOAUTH"), "{command:?}: {reply:?}");
    }
}

/// A server with `default` off and an administrator from an aclfile.
fn with_aclfile(version: Version, service_id: u8, source: Option<&Server>) -> Server {
    let dir = tempfile::Builder::new().prefix("redisdr-acl-").tempdir().unwrap().keep();
    let channels = if version.has(6, 2) { "&*" } else { "" };
    // 6.0 lets nobody without rights run a command, also one that is marked for clients that have not logged in.
    let rights = if version.has(6, 2) { "-@all" } else { "-@all +dr._auth" };
    let text = format!("user default off {rights}\nuser admin on >secret ~* {channels} +@all\n");
    std::fs::write(dir.join("users.acl"), text).unwrap();
    let mut builder = Server::builder(version)
        .dir(&dir)
        .config("aclfile", format!("{}/users.acl", dir.display()))
        .arg("service-id", service_id)
        .no_wait();
    if let Some(source) = source {
        builder = builder.source(source);
    }
    let server = builder.start();
    eventually("the server answers", deadline(), || {
        let login = Login { place: Place::Tcp(server.addr()), password: None };
        let mut client = Client::open(&login).ok()?;
        client.try_call(&["AUTH", "admin", "secret"]).ok().filter(|r| r.error().is_none())
    });
    server
}

fn wait_op(server: &Server, op: u64) {
    eventually("the target has it", deadline(), || {
        let status = status(&mut log_in(server, "admin", "secret"));
        (status["applied_op_id"].as_u64()? >= op).then_some(())
    });
}

fn op_of(server: &Server) -> u64 {
    status(&mut log_in(server, "admin", "secret"))["op_id"].as_u64().unwrap()
}

fn wait_state(server: &Server, state: &str) {
    eventually(state, deadline(), || {
        let status = status(&mut log_in(server, "admin", "secret"));
        (status["state"] == state).then_some(())
    });
}

for_each_server!(a_default_user_that_is_off_is_no_obstacle);

/// With ACL LOAD, which drops the module's connections on some servers.
fn a_default_user_that_is_off_is_no_obstacle(version: Version) {
    let source = with_aclfile(version, 0, None);
    wait_state(&source, "capturing");
    let target = with_aclfile(version, 1, Some(&source));
    wait_state(&target, "streaming");
    let (mut at_source, mut at_target) =
        (log_in(&source, "admin", "secret"), log_in(&target, "admin", "secret"));
    for round in 0..3 {
        cmd!(at_source, "SET", "key", round).ok();
        cmd!(at_source, "ACL", "LOAD").ok();
        cmd!(at_target, "ACL", "LOAD").ok();
        // Some versions drop clients of other users than `default`, too.
        (at_source, at_target) = (log_in(&source, "admin", "secret"), log_in(&target, "admin", "secret"));
        for n in 0..200 {
            cmd!(at_source, "RPUSH", "list", n).good();
        }
        wait_op(&target, op_of(&source));
        assert_eq!(cmd!(at_target, "GET", "key").int(), round);
        assert_eq!(cmd!(at_target, "LLEN", "list").int(), (round + 1) * 200);
    }
    let (s, t) = (status(&mut at_source), status(&mut at_target));
    assert_eq!(s["gaps"], 0, "{version}: {s:#}");
    assert_eq!(t["full_syncs"], 1, "{version}: {t:#}");
    assert_eq!(t["state"], "streaming", "{version}: {t:#}");
    let digest = |client: &mut Client| cmd!(client, "DEBUG", "DIGEST").good().text();
    assert_eq!(digest(&mut at_source), digest(&mut at_target));
    for server in [source, target] {
        let dir = server.dir().to_owned();
        drop(server);
        let _ = std::fs::remove_dir_all(dir);
    }
}

for_each_server!(acl_load_under_load_leaves_no_gap);

fn acl_load_under_load_leaves_no_gap(version: Version) {
    let dir = tempfile::Builder::new().prefix("redisdr-acl-").tempdir().unwrap();
    let channels = if version.has(6, 2) { "&*" } else { "" };
    std::fs::write(dir.path().join("users.acl"), format!("user default on nopass ~* {channels} +@all\n"))
        .unwrap();
    let file = dir.path().join("users.acl").display().to_string();
    let source =
        Server::builder(version).config("aclfile", &file).config("repl-backlog-size", "64mb").start();
    let target =
        Server::builder(version).config("aclfile", &file).arg("service-id", 1).source(&source).start();
    target.wait_state("streaming");
    let stop = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let writer = scope.spawn(|| count_up(&source, &stop));
        for _ in 0..5 {
            cmd!(source.client(), "ACL", "LOAD").ok();
            cmd!(target.client(), "ACL", "LOAD").ok();
            eventually("the tap is attached", deadline(), || tap_id(&source));
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    });
    wait_equal(&source, &target);
    assert_eq!(cmd!(target.client(), "LLEN", "list").int(), rounds * 10);
    assert_eq!(source.status().number("gaps"), 0, "{version}");
    assert_eq!(target.status().full_syncs(), 1, "{version}");
}

for_each_server!(an_ordinary_user_is_no_operator);

fn an_ordinary_user_is_no_operator(version: Version) {
    let server = Server::start(version);
    server.wait_state("capturing");
    let mut admin = server.client();
    let users = [
        ("ordinary", "~* +@all -@admin -@dangerous"),
        ("reader", "~* -@all +@read +@connection"),
        ("granted", "~* +@all -@admin -@dangerous +dr.snapshot"),
    ];
    for (name, rules) in users {
        let line = format!("ACL SETUSER {name} on >pw {rules}");
        admin.line(&line).ok();
    }
    for name in ["ordinary", "reader"] {
        let mut client = log_in(&server, name, "pw");
        for line in ["DR.LINK 127.0.0.1:1", "DR.CUTLINK", "DR.CUTLINK 3", "DR.RESYNC", "DR.SNAPSHOT"] {
            let reply = client.line(line);
            assert!(reply.is_error("NOPERM"), "{version}: {name} may {line}: {reply:?}");
        }
    }
    let mut ordinary = log_in(&server, "ordinary", "pw");
    cmd!(ordinary, "DR.STATUS").good();
    cmd!(ordinary, "DR.HELP").good();
    cmd!(ordinary, "SET", "key", 1).ok();
    assert_eq!(cmd!(ordinary, "DR.WAIT", 0, 10_000).int(), 1);
    // What is granted by name works, where the server has the commands of modules in categories: before, it forgets a
    // grant that changes nothing for it.
    let mut granted = log_in(&server, "granted", "pw");
    if version.has(7, 2) {
        assert!(cmd!(granted, "DR.SNAPSHOT").int() > 0);
    }
    assert!(cmd!(granted, "DR.CUTLINK").is_error("NOPERM"));
    assert_eq!(server.status().role(), "source");
    assert_eq!(server.status().state(), "capturing");
}

for_each_server!(what_is_the_modules_is_nobody_elses);

fn what_is_the_modules_is_nobody_elses(version: Version) {
    let source = Server::start(version);
    let target = Server::builder(version).arg("service-id", 1).source(&source).start();
    target.wait_state("streaming");
    cmd!(source.client(), "SET", "key", "value", "EX", 1000).ok();
    wait_equal(&source, &target);
    for server in [&source, &target] {
        let mut client = server.client();
        for line in [
            "DR.APPLY 1 x",
            "DR.APPLY",
            "DR.APPLY 1 REF 1",
            "DR._LOAD x",
            "DR._LOAD REF 1",
            "DR._LOAD PACK 0 x",
            "DR._LOAD",
            "DR._SELECT",
            "DR._REBASE 0",
            "DR._REBASE",
            "DR._POSITION",
            "DR._AUTH",
            "DR._AUTH wrong",
            "DR._AUTH x y z",
            "DR._TTL",
            "DR._TTL SET key hole",
            "DR._TTL FLUSHALL",
            "DR._TTL DEL key",
            "DR._TTL DR._TTL TTL key",
            "DR._TTL KEYS *",
            "DR._FIRST",
            "DR._FIRST FLUSHALL",
            "DR._FIRST DR._TTL TTL key",
        ] {
            let reply = client.line(line);
            assert!(matches!(reply, Reply::Error(_)), "{version}: {line}: {reply:?}");
        }
        let long = "0".repeat(64);
        assert!(cmd!(client, "DR._AUTH", long).error().is_some());
        assert!(cmd!(client, "DR._AUTH", "").error().is_some());
        cmd!(client, "MULTI").ok();
        client.line("DR.APPLY 1 x");
        let exec = cmd!(client, "EXEC");
        match exec {
            Reply::Array(items) => assert!(items[0].error().is_some(), "{items:?}"),
            other => assert!(other.error().is_some(), "{other:?}"),
        }
        let eval = cmd!(client, "EVAL", "return redis.call('DR.APPLY', '1', 'x')", 0);
        assert!(eval.error().is_some(), "{version}: {eval:?}");
        assert_eq!(cmd!(client, "GET", "key").text(), "value");
        assert!(cmd!(client, "DR._REFUSED").error().is_some());
    }
    wait_equal(&source, &target);
}

for_each_server!(keys_that_a_user_may_not_see_stay_hidden);

/// At a target TTL is answered by the module; the user's rules for keys hold for that, too.
fn keys_that_a_user_may_not_see_stay_hidden(version: Version) {
    let source = Server::start(version);
    let target = Server::builder(version).arg("service-id", 1).source(&source).start();
    target.wait_state("streaming");
    for key in ["own:key", "other:key"] {
        cmd!(source.client(), "SET", key, 1, "EX", 1000).ok();
    }
    wait_equal(&source, &target);
    target.client().line("ACL SETUSER someone on >pw ~own:* +@all -@dangerous -@admin").ok();
    let mut client = log_in(&target, "someone", "pw");
    let ttl = cmd!(client, "TTL", "own:key").int();
    assert!((900..=1000).contains(&ttl), "{ttl}");
    for line in ["TTL other:key", "PTTL other:key", "DR._TTL TTL other:key"] {
        let reply = client.line(line);
        assert!(reply.is_error("NOPERM"), "{version}: {line}: {reply:?}");
    }
    assert!(client.line("TTL").is_error("ERR"), "wrong number of arguments");
    assert!(client.line("TTL a b c").is_error("ERR") || client.line("TTL a b c").is_error("NOPERM"));
}

/// 6.0 lets nobody run a command before AUTH when the default user has no rights: said aloud, with the way out.
#[test]
fn a_default_user_without_rights_is_loud_redis_6_0() {
    let server = with_aclfile(version("redis-6.0"), 0, None);
    wait_state(&server, "capturing");
    let mut admin = log_in(&server, "admin", "secret");
    admin.line("ACL SETUSER default off -@all").ok();
    cmd!(admin, "ACL", "SAVE").ok();
    server.terminate();
    server.launch();
    let status = eventually("the state is failed", deadline(), || {
        let mut client = Client::tcp(&server.addr()).ok()?;
        client.try_call(&["AUTH", "admin", "secret"]).ok().filter(|r| r.error().is_none())?;
        Some(status(&mut client)).filter(|s| s["state"] == "failed")
    });
    assert!(status["state_reason"].to_string().contains("+dr._auth"), "{status:#}");
    assert!(server.log().contains("+dr._auth"), "{}", server.log_tail(10));
    let mut admin = log_in(&server, "admin", "secret");
    cmd!(admin, "SET", "key", 1).ok();
    admin.line("ACL SETUSER default +dr._auth").ok();
    wait_state(&server, "capturing");
    cmd!(admin, "SET", "key", 2).ok();
}
