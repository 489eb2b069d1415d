//! Every RDB says exactly which ops it holds, however it was made, under load.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use redisdr::snapshot::aux;

use crate::harness::wait::until;
use crate::harness::{Pipe, Server, Version};

/// What the log holds: the end of each op, with the counter's value behind it.
pub struct LoggedOps {
    /// Op id, value of `counter`, length of `list`, and whether a transaction is open behind it.
    ops: Vec<(u64, i64, i64, bool)>,
}

/// All ops of a log by `oplogctl`, as JSON.
pub fn dump(log: &Path) -> Vec<serde_json::Value> {
    let out =
        Command::new(env!("CARGO_BIN_EXE_oplogctl")).arg("dump").arg("--json").arg(log).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    out.stdout
        .split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

impl LoggedOps {
    fn read(log: &Path) -> LoggedOps {
        let (mut counter, mut list, mut open) = (0, 0, false);
        let ops = dump(log).into_iter().map(|op| {
            let args = op["args"].as_array().unwrap();
            let arg = |at: usize| args.get(at).and_then(|a| a.as_str()).unwrap_or_default();
            match (arg(0).to_ascii_uppercase().as_str(), arg(1)) {
                ("INCR", "counter") => counter += 1,
                ("RPUSH", "list") => list += args.len() as i64 - 2,
                ("MULTI", _) => open = true,
                ("EXEC", _) => open = false,
                _ => {}
            }
            (op["op"].as_u64().unwrap(), counter, list, open)
        });
        LoggedOps { ops: ops.collect() }
    }

    /// Counter and list up to that op, which must be the end of one and not lie in a transaction.
    fn at(&self, op: u64, what: &str) -> (i64, i64) {
        let found = self.ops.binary_search_by_key(&op, |o| o.0);
        let at = found.unwrap_or_else(|n| {
            let near = &self.ops[n.saturating_sub(2)..(n + 2).min(self.ops.len())];
            panic!("{what}: op {op} is not the end of an op in the log; near it: {near:?}")
        });
        assert!(!self.ops[at].3, "{what}: op {op} lies within a transaction");
        (self.ops[at].1, self.ops[at].2)
    }
}

/// Singles, transactions and scripts, until told to stop.
fn load(server: &Server, stop: &AtomicBool, rounds: &AtomicU64) {
    let mut client = server.client();
    let script = "redis.call('INCR', KEYS[1]) return redis.call('RPUSH', KEYS[2], 1, 2)";
    while !stop.load(Ordering::Relaxed) {
        let mut pipe = Pipe::new();
        for n in 0..5 {
            pipe.add(&["INCR", "counter"]);
            pipe.add(&["MULTI"]).add(&["INCR", "counter"]).add(&["RPUSH", "list", "x"]).add(&["EXEC"]);
            pipe.add(&["EVAL", script, "2", "counter", "list"]);
            pipe.add(&["SET", &format!("filler:{n}"), "value", "EX", "1000"]);
        }
        client.run_good(&pipe);
        rounds.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a server finds in that RDB.
fn loaded(version: Version, rdb: &Path) -> (i64, i64) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(rdb, dir.path().join("dump.rdb")).unwrap();
    let server = Server::builder(version).dir(dir.path()).start();
    let mut client = server.client();
    until("the dataset is served", || cmd!(client, "GET", "counter").error().is_none());
    let counter = cmd!(client, "GET", "counter");
    (if counter.is_nil() { 0 } else { counter.int() }, cmd!(client, "LLEN", "list").int())
}

for_each_server!(the_op_id_of_an_rdb_is_exact);

fn the_op_id_of_an_rdb_is_exact(version: Version) {
    let server = Server::start(version);
    server.wait_state("capturing");
    let dir = tempfile::tempdir().unwrap();
    let keep = |name: &str, from: PathBuf| {
        let to = dir.path().join(name);
        std::fs::copy(from, &to).unwrap();
        to
    };
    let rdb = || server.dir().join("dump.rdb");
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut made: Vec<(String, PathBuf)> = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| load(&server, &stop, &rounds));
        // However this ends, the writer does.
        let _stop = crate::dr::OnDrop(|| stop.store(true, Ordering::Relaxed));
        let mut client = server.client();
        for n in 0..3 {
            let seen = rounds.load(Ordering::Relaxed);
            until("it is under load", || rounds.load(Ordering::Relaxed) > seen + 2);
            cmd!(client, "SAVE").ok();
            made.push((format!("SAVE {n}"), keep(&format!("save-{n}"), rdb())));
            let before = server.info_field("persistence", "rdb_last_save_time");
            std::fs::remove_file(rdb()).unwrap();
            cmd!(client, "BGSAVE").good();
            until("BGSAVE has ended", || {
                rdb().exists() && server.info_field("persistence", "rdb_bgsave_in_progress") == "0"
            });
            assert!(!before.is_empty());
            made.push((format!("BGSAVE {n}"), keep(&format!("bgsave-{n}"), rdb())));
        }
        // A disk-less and a disk-based copy for a native replica: it keeps what it received.
        for diskless in ["yes", "no"] {
            cmd!(client, "CONFIG", "SET", "repl-diskless-sync", diskless).ok();
            let replica = Server::start(version);
            cmd!(replica.client(), "REPLICAOF", "127.0.0.1", server.port()).ok();
            until("the replica is up", || {
                replica.info_field("replication", "master_link_status") == "up"
                    && replica.info_field("replication", "slave_repl_offset") != "0"
            });
            let name = format!("sync-{diskless}");
            made.push((
                format!("replica sync, disk-less {diskless}"),
                keep(&name, replica.dir().join("dump.rdb")),
            ));
        }
    });
    server.settle();
    let log = LoggedOps::read(&server.dir().join("dr"));
    let mut before = 0;
    for (what, path) in made {
        let what = format!("{version}, {what}");
        let head = aux::find(&path).unwrap();
        let ours = head.ours.unwrap_or_else(|| panic!("{what}: the RDB has no field of ours"));
        assert_eq!((ours.mode, ours.service_id), (aux::Mode::Source, 0), "{what}");
        let wanted = log.at(ours.op_id, &what);
        assert_eq!(loaded(version, &path), wanted, "{what}: the dataset is not that of op {}", ours.op_id);
        assert!(ours.op_id >= before, "{what}: the position went back");
        assert!(wanted.0 > 0 && !ours.lineage.is_empty(), "{what}");
        // The server's own fields, where it writes them.
        if let (Some(offset), Some(id)) = (head.repl_offset, head.repl_id) {
            assert_eq!(ours.repl_offset, offset, "{what}");
            assert_eq!(ours.lineage.last().unwrap().0, id, "{what}");
        }
        before = ours.op_id;
    }
}
