//! Races between expiries and a target that is away: for each way to set, refresh, keep, drop or pass an expiry, what a
//! linked target ends with is what a native replica of the same source ends with, whatever stopped the target before,
//! during or after the command.
//!
//! All cases run at once, each with keys of its own, so the table takes as long as its slowest key.

mod cases;
mod gone;

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::harness::digest::{Entry, Expiry, Key};
use crate::harness::{secs, snapshot, wait_applied, Client, Pipe, Proxy, Server, Version};
use cases::{Part, Payloads, SHORT_MS};

/// On 6.x the source's stream has relative expiries: the target counts them from the moment of capture, and the two
/// readings of PTTL that are compared are not simultaneous either.
const CAPTURE_DELAY_MS: u64 = 500;

fn now_ms() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// A source, its native replica and its target behind a proxy.
struct Stage {
    version: Version,
    source: Server,
    replica: Server,
    proxy: Proxy,
    target: Server,
}

impl Stage {
    fn set(version: Version) -> Stage {
        let source = Server::start(version);
        let replica = Server::start(version);
        replica.replicate(&source);
        source.wait_state("capturing");
        let proxy = Proxy::start(source.endpoint());
        let target = Server::builder(version).arg("service-id", 1).arg("source", proxy.addr()).start();
        target.wait_state("streaming");
        Stage { version, source, replica, proxy, target }
    }

    /// One part of the table, in one go.
    fn run(&self, client: &mut Client, prefix: &str, part: Part, payloads: &Payloads) {
        let mut pipe = Pipe::new();
        for command in cases::commands(self.version, prefix, part, payloads, now_ms()) {
            pipe.add(&command);
        }
        // Some fail, as their case wants it (a key that is there or not, by then).
        client.run(&pipe);
    }

    fn in_step(&self) {
        wait_applied(&self.target, self.source.settle());
        self.replica.wait_in_step(&self.source);
    }

    /// All keys go, and new payloads for RESTORE come.
    fn clear(&self) -> Payloads {
        let mut client = self.source.client();
        cmd!(client, "FLUSHALL").ok();
        let payloads = Payloads::make(self.version, &mut client);
        self.in_step();
        payloads
    }

    /// The table in three groups around an outage: commands in the race before, within, and setup within as well. Gives
    /// what the source ends with.
    fn around(&self, name: &str, outage: Outage<'_>) -> Data {
        let payloads = self.clear();
        let mut client = self.source.client();
        let begun = Instant::now();
        self.run(&mut client, "after", Part::Setup, &payloads);
        self.run(&mut client, "during", Part::Setup, &payloads);
        (outage.between)(self);
        self.run(&mut client, "after", Part::Race, &payloads);
        let raced = begun.elapsed();
        (outage.out)(self);
        let mut client = self.source.client();
        self.run(&mut client, "during", Part::Race, &payloads);
        self.run(&mut client, "before", Part::Setup, &payloads);
        self.run(&mut client, "before", Part::Race, &payloads);
        self.over();
        self.run(&mut client, "before", Part::Late, &payloads);
        self.run(&mut client, "during", Part::Late, &payloads);
        (outage.back)(self);
        self.run(&mut client, "after", Part::Late, &payloads);
        self.over();
        self.in_step();
        let data = self.same(name, cases::count(self.version));
        println!("{}, {name}: raced in {raced:?}, all in {:?}", self.version, begun.elapsed());
        assert!(raced.as_millis() < SHORT_MS as u128, "{name}: this machine is too slow for the short times");
        data
    }

    /// Waits until the short times are over.
    fn over(&self) {
        std::thread::sleep(Duration::from_millis(SHORT_MS as u64 + 50));
    }

    /// Source, native replica and target are the same, key by key. The source deletes what has expired by and by.
    #[track_caller]
    fn same(&self, name: &str, least: usize) -> Data {
        let end = Instant::now() + secs(20);
        loop {
            self.in_step();
            let source = snapshot(&self.source);
            let replica = snapshot(&self.replica);
            let target = snapshot(&self.target);
            // On 6.x a native replica counts relative expiries from when they arrive.
            let lag = if self.version.has(7, 0) { 1 } else { 10_000 };
            let mut lines = differences(self.version, &replica, &target, lag, "native replica", "target");
            let own = if self.version.has(7, 0) { 1 } else { CAPTURE_DELAY_MS };
            lines.extend(differences(self.version, &source, &target, own, "source", "target"));
            if lines.is_empty() {
                assert!(source.len() > least, "{name}: only {} keys are left", source.len());
                return source;
            }
            assert!(Instant::now() < end, "{}, {name}:\n{}", self.version, lines.join("\n"));
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

type Data = BTreeMap<Key, Entry>;

fn differences(version: Version, a: &Data, b: &Data, slack: u64, one: &str, other: &str) -> Vec<String> {
    let mut lines = Vec::new();
    // A hash whose fields have all expired, and that nobody has deleted yet.
    let is_there = |(_, entry): &(&Key, &Entry)| entry.kind != "hash" || !entry.content.is_empty();
    let mut tell = |key: &Key, what: String| {
        let name = String::from_utf8_lossy(&key.1).into_owned();
        lines.push(format!("  db{} {name} [{}]: {what}", key.0, cases::text(version, &key.1)));
    };
    for (key, x) in a.iter().filter(is_there) {
        match b.get(key) {
            None => tell(key, format!("{one} has {x:?}, {other} nothing")),
            Some(y) => {
                let same_time = match (&x.expiry, &y.expiry) {
                    (Expiry::Never, Expiry::Never) => true,
                    (Expiry::At(p), Expiry::At(q)) | (Expiry::Near(p), Expiry::Near(q)) => {
                        p.abs_diff(*q) <= slack
                    }
                    _ => false,
                };
                if x.kind != y.kind || x.content != y.content || !same_time {
                    tell(key, format!("{one} has {x:?}, {other} {y:?}"));
                }
            }
        }
    }
    for (key, y) in b.iter().filter(is_there).filter(|(key, _)| !a.contains_key(*key)) {
        tell(key, format!("{one} has nothing, {other} {y:?}"));
    }
    lines.truncate(20);
    lines
}

/// What happens to the target, or the source, around the commands.
struct Outage<'a> {
    /// After the setup.
    between: &'a dyn Fn(&Stage),
    /// It begins.
    out: &'a dyn Fn(&Stage),
    /// It ends.
    back: &'a dyn Fn(&Stage),
}

const NOTHING: &dyn Fn(&Stage) = &|_| {};

/// The keys, their values, and whether they expire, not when.
fn outcome(data: &Data) -> Data {
    let mut all = data.clone();
    for entry in all.values_mut() {
        if !matches!(entry.expiry, Expiry::Never) {
            entry.expiry = Expiry::At(0);
        }
        for element in &mut entry.content {
            if let Some((field, _)) = element.split_once(" expires ") {
                *element = format!("{field} expires");
            }
        }
    }
    all
}

for_each_server!(a_target_ends_with_what_a_native_replica_has);

fn a_target_ends_with_what_a_native_replica_has(version: Version) {
    let stage = Stage::set(version);
    let simple = |out, back| Outage { between: NOTHING, out, back };
    let usual = stage.around("target's process stopped", simple(&|s| s.target.stop(), &|s| s.target.cont()));
    stage.around("link frozen", simple(&|s| s.proxy.freeze(true), &|s| s.proxy.freeze(false)));
    stage.around("link down", simple(&|s| s.proxy.down(), &|s| s.proxy.heal()));
    let start = |s: &Stage| {
        s.target.start_again();
        s.target.wait_state("streaming");
    };
    stage.around("target killed", simple(&|s| s.target.kill9(), &start));
    let load = |s: &Stage| {
        // Slow enough that the commands come while it is on its way.
        s.proxy.throttle(2_000);
        cmd!(s.target.client(), "DR.RESYNC").ok();
        s.target.wait_state("snapshot");
        s.proxy.freeze(true);
    };
    let loaded = |s: &Stage| {
        assert_eq!(s.target.status().state(), "snapshot", "{version}: the copy came too early for this test");
        s.proxy.throttle(0);
        s.proxy.freeze(false);
        s.target.wait_state("streaming");
    };
    stage.around("snapshot loaded", simple(&load, &loaded));
    let crash = |s: &Stage| {
        // What is not in the log is lost, which is another matter.
        assert_eq!(cmd!(s.source.client(), "DR.WAIT", 0, 10_000).int(), 1);
        s.source.kill9();
        // It is down while the short times pass: what the log says must decide, not the clock at the start.
        s.over();
        s.source.start_again();
        s.source.wait_status("up", |status| ["capturing", "rebasing"].contains(&status.state()));
    };
    let save = |s: &Stage| cmd!(s.source.client(), "SAVE").ok();
    for (name, between) in [("source killed, log only", NOTHING), ("source killed, RDB and log", &save)] {
        let ends = stage.around(name, Outage { between, out: &crash, back: NOTHING });
        let of = |data: &Data| {
            let mut all = outcome(data);
            all.retain(|key, _| key.1.starts_with(b"after:"));
            all
        };
        let lines = differences(version, &of(&usual), &of(&ends), 0, "undisturbed source", "source");
        assert!(lines.is_empty(), "{version}, {name}:\n{}", lines.join("\n"));
    }
    let crash_without_tail = |s: &Stage| {
        save(s);
        s.source.kill9();
        cut_log(&s.source);
        s.over();
        s.source.start_again();
        s.source.wait_status("up", |status| ["capturing", "rebasing"].contains(&status.state()));
        assert_eq!(s.source.status().number("gaps"), 1);
    };
    stage.around(
        "source killed, RDB above the log",
        Outage { between: NOTHING, out: &crash_without_tail, back: NOTHING },
    );
    cut_and_failback(&stage);
}

/// Takes the end off the newest segment of a server that is down.
fn cut_log(server: &Server) {
    let segments = std::fs::read_dir(server.dir().join("dr")).unwrap();
    let paths = segments.map(|entry| entry.unwrap().path());
    let newest =
        paths.filter(|path| path.extension().is_some_and(|e| e == "oplog")).max().expect("a segment");
    // There may be room behind the last entry.
    let bytes = std::fs::read(&newest).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    std::fs::write(&newest, &bytes[..end - 100]).unwrap();
}

/// Only whether there is a time, not which.
const ANY: u64 = u64::MAX;

/// DR.CUTLINK against REPLICAOF NO ONE of the native replica, with a source that is gone.
fn cut_and_failback(stage: &Stage) {
    for passed in [false, true] {
        let name = if passed { "cut when times are over" } else { "cut before times are over" };
        let payloads = stage.clear();
        let mut client = stage.source.client();
        stage.run(&mut client, "after", Part::Setup, &payloads);
        stage.run(&mut client, "after", Part::Race, &payloads);
        stage.in_step();
        stage.source.stop();
        if passed {
            stage.over();
        }
        cmd!(stage.target.client(), "DR.CUTLINK").good();
        cmd!(stage.replica.client(), "REPLICAOF", "NO", "ONE").ok();
        if !passed {
            stage.over();
        }
        let same = |slack: u64, what: &str| {
            let form = |data: Data| if slack == ANY { outcome(&data) } else { data };
            let replica = form(snapshot(&stage.replica));
            let target = form(snapshot(&stage.target));
            let later = form(snapshot(&stage.replica));
            let slack = if stage.version.has(7, 0) { slack } else { 10_000 };
            let mut lines = differences(stage.version, &replica, &target, slack, "native replica", "target");
            // What changes meanwhile may be seen either way.
            let then = differences(stage.version, &later, &target, slack, "native replica", "target");
            lines.retain(|line| then.contains(line));
            assert!(lines.is_empty(), "{}, {name}, {what}:\n{}", stage.version, lines.join("\n"));
            assert!(target.len() > cases::count(stage.version) / 4, "only {} keys are left", target.len());
        };
        same(1, "cut");
        stage.target.wait_state("capturing");
        same(1, "released");
        // Both take writes; each sets times by its own clock.
        for node in [&stage.target, &stage.replica] {
            stage.run(&mut node.client(), "after", Part::Late, &payloads);
        }
        same(ANY, "written to");
        stage.source.cont();
        stage.replica.replicate(&stage.source);
        let addr = stage.proxy.addr();
        cmd!(stage.target.client(), "DR.LINK", addr).ok();
        stage.target.wait_state("streaming");
        stage.in_step();
        stage.over();
        stage.same(name, cases::count(stage.version) / 4);
    }
}
