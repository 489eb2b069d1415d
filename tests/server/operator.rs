//! What an operator types and sees: every command, every argument, every figure.

use std::io::Write;

use crate::harness::wait::until;
use crate::harness::{deadline, eventually, version, wait_equal, Port, Reply, Server, Version};

/// Fields of DR.STATUS that scripts and dashboards depend on.
const FIELDS: [&str; 19] = [
    "version",
    "role",
    "state",
    "state_reason",
    "service_id",
    "history",
    "lineage",
    "op_id",
    "durable_op_id",
    "applied_op_id",
    "oldest_op_id",
    "snapshot_op_id",
    "segments",
    "oplog_bytes",
    "full_syncs",
    "rebuilds",
    "warnings",
    "orphans",
    "targets",
];
const TARGET_FIELDS: [&str; 9] = [
    "service_id",
    "addr",
    "state",
    "sent_op_id",
    "applied_op_id",
    "durable_op_id",
    "lag_bytes",
    "lag_ms",
    "pinned_bytes",
];
const LINK_FIELDS: [&str; 6] = ["source", "state", "source_op_id", "applied_op_id", "lag_bytes", "lag_ms"];

fn pair(version: Version) -> (Server, Server) {
    let source = Server::start(version);
    let target = Server::builder(version).arg("service-id", 1).source(&source).start();
    target.wait_state("streaming");
    (source, target)
}

/// Value of a field in the reply of DR.STATUS without JSON.
fn field(reply: &Reply, name: &str) -> Reply {
    let pairs = match reply {
        Reply::Map(pairs) => pairs.clone(),
        Reply::Array(items) => items.chunks(2).map(|p| (p[0].clone(), p[1].clone())).collect(),
        other => panic!("{other:?}"),
    };
    let found = pairs.into_iter().find(|(key, _)| key.text() == name);
    found.unwrap_or_else(|| panic!("no field {name} in {reply:?}")).1
}

for_each_server!(status_has_every_field);

fn status_has_every_field(version: Version) {
    let (source, target) = pair(version);
    cmd!(source.client(), "SET", "key", "value").ok();
    wait_equal(&source, &target);
    let op = source.settle();
    until("the source has heard of it", || {
        source.status().target(1).is_some_and(|t| t.number("durable_op_id") >= op)
    });

    for (node, role, state) in [(&source, "source", "capturing"), (&target, "target", "streaming")] {
        let json = node.status();
        for name in FIELDS {
            json.field(name);
        }
        assert_eq!((json.role(), json.state()), (role, state), "{version}");
        assert_eq!(json.text("history").len(), 40);
        assert_eq!(json.applied_op_id(), json.op_id());
        assert!(json.number("segments") >= 1 && json.number("oplog_bytes") > 0, "{:#}", json.0);
        assert!(json.list("orphans").is_empty() && json.list("warnings").is_empty(), "{:#}", json.0);

        // RESP2 gives pairs in one array, RESP3 a map; both hold what the JSON holds.
        let two = cmd!(node.client(), "DR.STATUS").good();
        let mut client = node.client();
        client.resp3();
        let three = cmd!(client, "DR.STATUS").good();
        assert!(matches!(two, Reply::Array(_)));
        if version.has(7, 0) {
            assert!(matches!(three, Reply::Map(_)), "{version}: {three:?}");
        }
        for reply in [&two, &three] {
            for name in FIELDS {
                field(reply, name);
            }
            assert_eq!(field(reply, "role").text(), role);
            assert_eq!(field(reply, "state").text(), state);
            assert_eq!(field(reply, "service_id").int() as u64, json.number("service_id"));
            assert!(field(reply, "op_id").int() > 0);
        }
        assert_eq!(field(&two, "link").is_nil(), role == "source");
        // The word is not case sensitive, and nothing else is taken.
        assert!(cmd!(node.client(), "dr.status", "json").error().is_none());
        for line in ["DR.STATUS XML", "DR.STATUS JSON JSON", "DR.STATUS JSON x"] {
            assert!(node.client().line(line).is_error("ERR usage: DR.STATUS"), "{line}");
        }
    }
    let seen = source.status().target(1).unwrap();
    for name in TARGET_FIELDS {
        seen.field(name);
    }
    assert_eq!(seen.text("state"), "streaming");
    assert_eq!(seen.number("applied_op_id"), op);
    assert_eq!(source.status().list("targets").len(), 1);
    assert!(source.status().field("link").is_null());
    let link = target.status();
    for name in LINK_FIELDS {
        link.field(&format!("link/{name}"));
    }
    assert_eq!(link.text("link/source"), source.endpoint());
    assert_eq!(link.text("link/state"), "streaming");
    assert_eq!(link.number("link/applied_op_id"), op);
    assert_eq!(link.number("link/lag_bytes"), 0);
    assert_eq!(source.status().text("version"), env!("CARGO_PKG_VERSION"));
}

for_each_server!(info_shows_the_same);

fn info_shows_the_same(version: Version) {
    let (source, target) = pair(version);
    cmd!(source.client(), "SET", "key", "value").ok();
    wait_equal(&source, &target);
    let op = source.settle();
    for node in [&source, &target] {
        eventually("INFO is up to date", deadline(), || {
            let info = node.info("redisdr");
            let get = |name: &str| info.get(&format!("redisdr_{name}")).cloned();
            let status = node.status();
            assert_eq!(get("role").as_deref(), Some(status.role()), "{info:?}");
            for name in [
                "op_id",
                "durable_op_id",
                "applied_op_id",
                "oldest_op_id",
                "segments",
                "oplog_bytes",
                "full_syncs",
                "rebuilds",
                "service_id",
                "gaps",
                "warnings_count",
                "orphans_count",
                "targets_count",
            ] {
                let value = get(name).unwrap_or_else(|| panic!("{version}: no {name} in {info:?}"));
                value.parse::<u64>().unwrap_or_else(|_| panic!("{name} is {value}"));
            }
            (get("applied_op_id")?.parse::<u64>().ok()? >= op && get("state")? == status.state())
                .then_some(())
        });
    }
    let info = source.info("redisdr");
    let row = &info["redisdr_target1"];
    for name in TARGET_FIELDS {
        assert!(row.contains(&format!("{name}=")), "{name} is not in {row}");
    }
    let info = target.info("redisdr");
    for name in LINK_FIELDS {
        assert!(info.contains_key(&format!("redisdr_link_{name}")), "{name} is not in {info:?}");
    }
    // It is in the full INFO of modules as well, and shown once.
    let text = cmd!(source.client(), "INFO", "modules").good().text()
        + &cmd!(source.client(), "INFO", "everything").text();
    assert!(text.contains("redisdr_role:source"), "{text}");
}

for_each_server!(usage_errors_name_what_is_wrong);

fn usage_errors_name_what_is_wrong(version: Version) {
    let server = Server::start(version);
    server.wait_state("capturing");
    let mut client = server.client();
    for (line, words) in [
        ("DR.LINK", "usage: DR.LINK host:port"),
        ("DR.LINK nonsense", "'nonsense'"),
        ("DR.LINK 127.0.0.1:0", "'127.0.0.1:0'"),
        ("DR.LINK 127.0.0.1:70000", "'127.0.0.1:70000'"),
        ("DR.LINK 127.0.0.1:7000 other", "'other'"),
        ("DR.LINK :7000", "':7000'"),
        ("DR.CUTLINK 16", "'16'"),
        ("DR.CUTLINK -1", "'-1'"),
        ("DR.CUTLINK x", "'x'"),
        ("DR.CUTLINK 1 2", "usage: DR.CUTLINK"),
        ("DR.CUTLINK 7", "7"),
        ("DR.CUTLINK", "not linked"),
        ("DR.RESYNC", "not linked"),
        ("DR.RESYNC now", "usage: DR.RESYNC"),
        ("DR.SNAPSHOT now", "usage: DR.SNAPSHOT"),
        ("DR.WAIT", "usage: DR.WAIT"),
        ("DR.WAIT 1", "usage: DR.WAIT"),
        ("DR.WAIT 1 2 3", "usage: DR.WAIT"),
        ("DR.WAIT x 1", "numbers"),
        ("DR.WAIT 1 -1", "numbers"),
        ("DR.WAIT 16 1", "16"),
        ("DR.HELP me", "usage: DR.HELP"),
    ] {
        let reply = client.line(line);
        let text = reply.error().unwrap_or_else(|| panic!("{version}: {line}: {reply:?}"));
        assert!(text.starts_with("ERR ") && text.contains(words), "{version}: {line}: {text}");
    }
    let many: Vec<String> = (1..=33).map(|n| format!("127.0.0.1:{n}")).collect();
    assert!(client.line(&format!("DR.LINK {}", many.join(" "))).is_error("ERR 33"));
    // Nothing of all that has changed anything.
    assert_eq!((server.status().role(), server.status().state()), ("source", "capturing"));
    cmd!(client, "SET", "key", 1).ok();
    // Not from where their work cannot be waited for.
    for line in ["DR.CUTLINK", "DR.SNAPSHOT", "DR.LINK 127.0.0.1:1"] {
        cmd!(client, "MULTI").ok();
        client.line(line);
        match cmd!(client, "EXEC") {
            Reply::Array(items) => assert!(items[0].error().is_some(), "{line}: {items:?}"),
            other => assert!(other.error().is_some(), "{line}: {other:?}"),
        }
        let script = format!("return redis.call('{}')", line.replace(' ', "','"));
        assert!(cmd!(client, "EVAL", script, 0).error().is_some(), "{line} in a script");
    }
    assert_eq!(server.status().role(), "source");
}

for_each_server!(commands_describe_themselves);

fn commands_describe_themselves(version: Version) {
    let server = Server::start(version);
    let mut client = server.client();
    let help: Vec<String> = cmd!(client, "DR.HELP").array().iter().map(Reply::text).collect();
    let operator = ["DR.STATUS", "DR.LINK", "DR.CUTLINK", "DR.RESYNC", "DR.SNAPSHOT", "DR.WAIT", "DR.HELP"];
    for name in operator {
        assert!(help.iter().any(|line| line.starts_with(name)), "{name} is not in {help:?}");
        let info = cmd!(client, "COMMAND", "INFO", name).array()[0].clone().array();
        assert_eq!(info[0].text().to_ascii_uppercase(), name, "{version}");
        let flags: Vec<String> = info[2].clone().array().iter().map(Reply::text).collect();
        let admin = ["DR.LINK", "DR.CUTLINK", "DR.RESYNC", "DR.SNAPSHOT"].contains(&name);
        assert_eq!(flags.iter().any(|f| f == "admin"), admin, "{version}: {name}: {flags:?}");
        assert!(!flags.iter().any(|f| f == "write"), "{version}: {name}: {flags:?}");
        if version.has(7, 2) {
            let categories: Vec<String> = info[6].clone().array().iter().map(Reply::text).collect();
            for category in ["@admin", "@dangerous"] {
                assert_eq!(
                    categories.iter().any(|c| c == category),
                    admin,
                    "{version}: {name}: {categories:?}"
                );
            }
        }
        if version.has(7, 0) {
            let docs = cmd!(client, "COMMAND", "DOCS", name).array();
            let docs = &docs[1];
            let summary = field(docs, "summary").text();
            assert!(summary.len() > 10 && summary.ends_with('.'), "{version}: {name}: {summary}");
            assert_eq!(field(docs, "since").text(), "1.0.0");
        }
    }
}

for_each_server!(a_snapshot_is_made_on_demand);

fn a_snapshot_is_made_on_demand(version: Version) {
    let (source, target) = pair(version);
    cmd!(source.client(), "SET", "key", "value").ok();
    let before = source.settle();
    let op = cmd!(source.client(), "DR.SNAPSHOT").int() as u64;
    assert!(op >= before, "{version}: {op} below {before}");
    source.wait_status("showing the snapshot", |s| s.number("snapshot_op_id") == op);
    let head = redisdr::snapshot::aux::find(&source.dir().join("dump.rdb")).unwrap();
    assert_eq!(head.ours.unwrap().op_id, op);
    wait_equal(&source, &target);
}

for_each_server!(waiting_for_durability);

fn waiting_for_durability(version: Version) {
    let source = Server::start(version);
    source.wait_state("capturing");
    let mut client = source.client();
    // In the local log.
    cmd!(client, "SET", "key", 1).ok();
    assert_eq!(cmd!(client, "DR.WAIT", 0, 0).int(), 1);
    let end = source.settle();
    assert_eq!(cmd!(client, "DR.WAIT", 0, 0).int(), 1);
    assert!(source.status().durable_op_id() >= end);
    // With no target: gives up after its time, not before.
    let began = std::time::Instant::now();
    assert_eq!(cmd!(client, "DR.WAIT", 1, 300).int(), 0);
    let took = began.elapsed();
    assert!(took >= std::time::Duration::from_millis(299), "{took:?}");

    let target = Server::builder(version).arg("service-id", 1).source(&source).start();
    target.wait_state("streaming");
    for n in 0..5 {
        cmd!(client, "SET", "key", n).ok();
        assert_eq!(cmd!(client, "DR.WAIT", 1, 30_000).int(), 1, "{version}");
    }
    assert_eq!(cmd!(client, "DR.WAIT", 2, 200).int(), 1, "one of two");
    // For ever means until it is so.
    cmd!(client, "SET", "key", "last").ok();
    assert_eq!(cmd!(client, "DR.WAIT", 1, 0).int(), 1);
    // What was waited for survives the end of both processes.
    source.kill9();
    target.kill9();
    target.start_again();
    until("the target serves", || cmd!(target.client(), "GET", "key") == Reply::Bulk(b"last".to_vec()));
    assert!(cmd!(target.client(), "DR.WAIT", 0, 10).is_error("ERR"), "a target does not wait");
    source.start_again();
    source.wait_state("capturing");

    // In a transaction and in a script it answers at once with what is so.
    let mut client = source.client();
    cmd!(client, "MULTI").ok();
    cmd!(client, "SET", "key", "again").good();
    cmd!(client, "DR.WAIT", 0, 0).good();
    cmd!(client, "DR.WAIT", 15, 0).good();
    let replies = cmd!(client, "EXEC").array();
    assert!(replies[1].int() <= 1 && replies[2].int() <= 1, "{version}: {replies:?}");
    let now = cmd!(client, "EVAL", "return redis.call('DR.WAIT', '3', '0')", 0);
    assert!(matches!(now, Reply::Int(_)), "{version}: {now:?}");
    // A client that goes away while it waits leaves nothing behind.
    let mut gone = source.client();
    gone.send(&["DR.WAIT", "9", "0"]).unwrap();
    until("it waits", || source.info_field("clients", "blocked_clients") != "0");
    drop(gone);
    until("it is gone", || source.info_field("clients", "blocked_clients") == "0");
    cmd!(client, "SET", "key", "end").ok();
    assert_eq!(cmd!(client, "DR.WAIT", 0, 0).int(), 1);
}

for_each_server!(bad_arguments_stop_the_load);

fn bad_arguments_stop_the_load(version: Version) {
    for (name, value, words) in [
        ("colour", "red", "unknown module argument 'colour'"),
        ("service-id", "16", "'service-id': '16'"),
        ("service-id", "x", "'service-id': 'x'"),
        ("endpoint", "nowhere", "'endpoint': 'nowhere'"),
        ("endpoint", "127.0.0.1:0", "'endpoint': '127.0.0.1:0'"),
        ("source", "a:1,,b", "'source': 'a:1,,b'"),
        ("secret-file", "/no/such/file", "/no/such/file"),
        ("segment-size", "1kb", "'segment-size': '1kb'"),
        ("segment-size", "huge", "'segment-size': 'huge'"),
        ("fsync", "sometimes", "'fsync': 'sometimes'"),
        ("retain-min-seconds", "-1", "'retain-min-seconds': '-1'"),
        ("retain-max-bytes", "many", "'retain-max-bytes': 'many'"),
        ("fork-tolerance", "1.5", "'fork-tolerance': '1.5'"),
        ("timeout", "1", "'timeout': '1'"),
        ("on-log-failure", "panic", "'on-log-failure': 'panic'"),
        ("link-max-bytes-per-sec", "fast", "'link-max-bytes-per-sec': 'fast'"),
        ("snapshot-max-bytes-per-sec", "fast", "'snapshot-max-bytes-per-sec': 'fast'"),
        ("dir", "", "'dir'"),
        // Reachable by others, and no secret.
        ("endpoint", "0.0.0.0:7777", "secret-file"),
    ] {
        let Err(text) = Server::builder(version).arg(name, value).try_start() else {
            panic!("{version}: it started with {name} {value}");
        };
        assert!(text.contains(words), "{version}: {name} {value}: {text}");
        assert!(text.contains("ended while starting"), "{version}: {name} {value}: {text}");
    }
}

#[test]
fn a_short_secret_stops_the_load() {
    for name in ["redis-6.0", "redis-7.0", "valkey-9.1"] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"short\n").unwrap();
        let path = file.path().display().to_string();
        let text = Server::builder(version(name)).arg("secret-file", &path).try_start().unwrap_err();
        assert!(text.contains(&path) && text.contains("at least 16"), "{text}");
    }
}

for_each_server!(one_directory_serves_one_server);

fn one_directory_serves_one_server(version: Version) {
    let dir = tempfile::tempdir().unwrap();
    let first = Server::builder(version).arg("dir", dir.path().display()).start();
    first.wait_state("capturing");
    let text = Server::builder(version).arg("dir", dir.path().display()).try_start().unwrap_err();
    assert!(text.contains(&dir.path().display().to_string()), "{text}");
    assert!(text.contains(&first.pid().to_string()), "{version}: it does not name the holder: {text}");
    cmd!(first.client(), "SET", "key", 1).ok();
    assert_eq!(cmd!(first.client(), "DR.WAIT", 0, 0).int(), 1);
    // A save child of a server that died must not hold the directory.
    first.kill9();
    let second = Server::builder(version).arg("dir", dir.path().display()).start();
    second.wait_status("up", |s| s.state() != "starting" && s.state() != "recovering");
}

fn secret(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "{text}").unwrap();
    file
}

for_each_server!(secrets_must_match);

fn secrets_must_match(version: Version) {
    let (one, other) = (secret("the secret of this star"), secret("another secret, of nobody"));
    let path = |file: &tempfile::NamedTempFile| file.path().display().to_string();
    // Of an address that others reach, too.
    let port = Port::pick();
    let source = Server::builder(version)
        .arg("secret-file", path(&one))
        .arg("endpoint", format!("0.0.0.0:{}", port.number()))
        .start();
    source.wait_state("capturing");
    cmd!(source.client(), "SET", "key", "value").ok();
    for file in [Some(path(&other)), None] {
        let mut builder = Server::builder(version).arg("service-id", 1).arg("source", port.addr());
        if let Some(file) = &file {
            builder = builder.arg("secret-file", file);
        }
        let target = builder.start();
        // Both ends say so.
        target.wait_status("refused for its secret", |s| s.0["link"].to_string().contains("secret"));
        source.wait_status("naming the secret", |s| s.0["warnings"].to_string().contains("secret"));
        assert_eq!(cmd!(target.client(), "EXISTS", "key").int(), 0);
    }
    let target = Server::builder(version)
        .arg("service-id", 1)
        .arg("source", port.addr())
        .arg("secret-file", path(&one))
        .start();
    target.wait_state("streaming");
    wait_equal(&source, &target);
}

for_each_server!(a_source_drops_a_target);

/// DR.CUTLINK with a service id, and a link by hand brings it back.
fn a_source_drops_a_target(version: Version) {
    let (source, target) = pair(version);
    cmd!(source.client(), "SET", "key", "value").ok();
    wait_equal(&source, &target);
    cmd!(source.client(), "DR.CUTLINK", 1).ok();
    target.wait_status("told that it was cut", |s| s.0["link"]["state"] != "streaming");
    let state = source.status().target(1).map(|t| t.text("state").to_owned());
    assert!(state.is_none() || state.as_deref() == Some("cut"), "{version}: {state:?}");
    cmd!(source.client(), "SET", "key", "not for it").ok();
    source.settle();
    assert_eq!(cmd!(target.client(), "GET", "key").text(), "value");
    assert!(cmd!(target.client(), "SET", "key", "x").is_error("READONLY"), "it is still a target");
    let endpoint = source.endpoint();
    cmd!(target.client(), "DR.LINK", endpoint).ok();
    target.wait_state("streaming");
    wait_equal(&source, &target);
}
