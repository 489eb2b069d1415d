//! Data of other modules: their commands travel in the stream and their values in the snapshot. What a module keeps
//! outside of keys does not, and that is said; a target without the module is left as it is.

use std::path::PathBuf;

use crate::harness::wait::{deadline, poll};
use crate::harness::{version, wait_equal, Server};

/// The only one of the seven that comes with modules.
const SERVER: &str = "redis-7.4";

fn module(name: &str) -> PathBuf {
    let path = version(SERVER).path().with_file_name("modules").join(name);
    assert!(path.exists(), "{} is missing: scripts/servers", path.display());
    path
}

fn start(service_id: u8, modules: &[&str]) -> Server {
    let builder = Server::builder(version(SERVER)).arg("service-id", service_id);
    let server =
        modules.iter().fold(builder, |b, name| b.config("loadmodule", module(name).display())).start();
    server.wait_state("capturing");
    server
}

fn run(server: &Server, commands: &[&str]) {
    let mut client = server.client();
    for line in commands {
        client.line(line).good();
    }
}

/// One of each family; `{}` is the part of the name that differs between the two rounds.
const WRITES: [&str; 25] = [
    r#"JSON.SET doc{} $ {"a":1,"b":[1,2,3],"n":{"k":null}}"#,
    "JSON.NUMINCRBY doc{} $.a 5",
    "JSON.ARRAPPEND doc{} $.b 4 5",
    "JSON.DEL doc{} $.n",
    r#"JSON.MERGE doc{} $ {"z":9}"#,
    "JSON.MSET one{} $ 1 two{} $ []",
    "EXPIRE doc{} 1000",
    "BF.RESERVE bloom{} 0.01 1000",
    "BF.MADD bloom{} a b c",
    "BF.INSERT other-bloom{} ITEMS q",
    "CF.RESERVE cuckoo{} 1000",
    "CF.ADD cuckoo{} x",
    "CF.DEL cuckoo{} x",
    "CF.ADDNX cuckoo{} y",
    "CMS.INITBYDIM sketch{} 100 5",
    "CMS.INCRBY sketch{} a 7",
    "TDIGEST.CREATE digest{}",
    "TDIGEST.ADD digest{} 1 2 3.5",
    "TS.CREATE series{} RETENTION 600000 LABELS k v",
    "TS.CREATE means{}",
    "TS.CREATERULE series{} means{} AGGREGATION avg 1000",
    "TS.ADD series{} 1000 1.5",
    "TS.ADD series{} 2500 2.5",
    "TS.ADD series{} * 3",
    // Without a time of its own it would be executed with each server's clock, at a native replica, too.
    "TS.INCRBY counter{} 2 TIMESTAMP 1000",
];

fn write(server: &Server, round: &str) {
    let commands: Vec<String> = WRITES.iter().map(|w| w.replace("{}", round)).collect();
    run(server, &commands.iter().map(String::as_str).collect::<Vec<_>>());
}

/// DEBUG DIGEST takes module values into account only where the module helps, so values are held against each other by
/// DUMP.
fn assert_same_values(source: &Server, target: &Server) {
    wait_equal(source, target);
    let (mut a, mut b) = (source.client(), target.client());
    let mut keys = a.call(&["KEYS", "*"]).strings();
    keys.sort();
    assert!(keys.len() >= 13, "{keys:?}");
    for key in keys {
        for command in [&b"DUMP"[..], b"PEXPIRETIME", b"OBJECT"] {
            let argv: Vec<&[u8]> = match command {
                b"OBJECT" => vec![command, b"ENCODING", &key],
                _ => vec![command, &key],
            };
            let (x, y) = (a.call(&argv), b.call(&argv));
            assert_eq!(x, y, "{} {}", String::from_utf8_lossy(command), String::from_utf8_lossy(&key));
        }
    }
}

#[test]
fn values_of_other_modules_arrive_on_redis_7_4() {
    let modules = ["rejson.so", "redisbloom.so", "redistimeseries.so"];
    let source = start(0, &modules);
    let target = start(1, &modules);
    write(&source, "-in-the-snapshot");
    target.client().call(&["DR.LINK", &source.endpoint()]).good();
    wait_equal(&source, &target);
    write(&source, "-in-the-stream");
    assert_same_values(&source, &target);
    assert!(target.status().list("warnings").is_empty(), "{:?}", target.status());
    let refused = target.client().line("JSON.SET mine $ 1");
    assert!(refused.is_error("READONLY"), "{refused:?}");

    target.kill9();
    target.start_again();
    write(&source, "-after-a-crash");
    assert_same_values(&source, &target);
}

#[test]
fn a_target_without_the_module_is_left_as_it_is_on_redis_7_4() {
    let source = start(0, &["rejson.so"]);
    let target = start(1, &[]);
    run(&source, &["JSON.SET doc $ [1,2]", "SET plain v"]);
    run(&target, &["SET mine untouched"]);
    target.client().call(&["DR.LINK", &source.endpoint()]).good();
    target.client().call(&["DR.RESYNC"]).good();
    let said = poll(deadline(), || {
        let text = format!("{:?}", target.status());
        (text.contains("ReJSON-RL") && text.contains("load the module")).then_some(())
    });
    assert!(said.is_some(), "{:?}\n{}", target.status(), target.log_tail(20));
    assert_eq!(target.client().line("GET mine").text(), "untouched");
    assert_eq!(target.client().line("DBSIZE").int(), 1, "nothing of the source's, no trial value left");
}

#[test]
fn what_a_module_keeps_outside_of_keys_is_named_on_redis_7_4() {
    let source = start(0, &["redisearch.so"]);
    let target = start(1, &["redisearch.so"]);
    run(&source, &["FT.CREATE early ON HASH PREFIX 1 h: SCHEMA t TEXT", "HSET h:1 t hello"]);
    target.client().call(&["DR.LINK", &source.endpoint()]).good();
    wait_equal(&source, &target);
    target.wait_status("warned of the index", |status| {
        status.list("warnings").iter().any(|w| w.as_str().is_some_and(|t| t.contains("ft_index0")))
    });
    // What comes later comes in the stream.
    run(&source, &["FT.CREATE late ON HASH PREFIX 1 h: SCHEMA t TEXT", "HSET h:2 t hello"]);
    wait_equal(&source, &target);
    let found = poll(deadline(), || {
        let hits = target.client().line("FT.SEARCH late hello NOCONTENT").array().first().map(|n| n.int());
        (hits == Some(2)).then_some(())
    });
    assert!(found.is_some(), "{}", target.log_tail(20));
}
