//! `oplogctl` as a program, over logs that the store wrote: whole, damaged, torn, cut, and while they are written to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::Arc;
use std::time::Duration;

use oplog_format::index::encode_index;
use oplog_format::{encode_entry, EntryMeta, Footer, History, IndexPoint, FOOTER_LEN, SEGMENT_HEADER_LEN};
use redisdr::snapshot::aux::{AuxContent, Mode, FORMAT, TYPE_NAME};
use redisdr::snapshot::crc64::Crc64;
use redisdr::snapshot::module_value::type_id;
use redisdr::store::{FsyncPolicy, Log, LogOptions, RealFs};

const T0: u64 = 1_700_000_000_000;

fn oplogctl(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_oplogctl")).args(args).output().unwrap()
}

/// Runs it and returns exit code, output and errors.
fn run(args: &[&str]) -> (i32, String, String) {
    let out = oplogctl(args);
    let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
    (out.status.code().unwrap(), text(&out.stdout), text(&out.stderr))
}

fn resp(args: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", args.len()).into_bytes();
    for a in args {
        out.extend_from_slice(format!("${}\r\n", a.len()).as_bytes());
        out.extend_from_slice(a);
        out.extend_from_slice(b"\r\n");
    }
    out
}

fn history(c: u8) -> History {
    History::from_bytes(&[c; 40]).unwrap()
}

struct TestLog {
    dir: tempfile::TempDir,
    log: Arc<Log>,
    appended: u64,
}

impl TestLog {
    fn new(segment_size: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let opts = LogOptions { segment_size, fsync: FsyncPolicy::No, service_id: 3, compression: None };
        let (log, _) = Log::open(dir.path(), opts, Arc::new(RealFs)).unwrap();
        log.begin_history(history(b'a'), 1).unwrap();
        Self { dir, log, appended: 0 }
    }

    fn path(&self) -> &str {
        self.dir.path().to_str().unwrap()
    }

    /// One entry of some ops, a second after the one before.
    fn append(&mut self, ops: &[&[&[u8]]]) {
        let payload: Vec<u8> = ops.iter().flat_map(|o| resp(o)).collect();
        self.appended += 1;
        let meta = EntryMeta {
            last_op: self.log.written() + payload.len() as u64,
            time_ms: T0 + self.appended * 1000,
            db: 2,
            op_count: ops.len() as u32,
            service_id: 3,
            flags: 0,
        };
        let mut frame = Vec::new();
        encode_entry(&meta, &payload, &mut frame).unwrap();
        self.log.append(&frame).unwrap();
    }

    /// `n` entries of two ops.
    fn fill(&mut self, n: usize) {
        for i in 0..n {
            let key = format!("key{i}").into_bytes();
            self.append(&[&[b"SET", &key, &[b'v'; 100]], &[b"INCR", b"n"]]);
        }
    }

    fn segments(&self) -> Vec<PathBuf> {
        segments(self.dir.path())
    }
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "oplog"))
        .collect();
    found.sort();
    found
}

fn flip(file: &Path, offset: u64) {
    let mut bytes = fs::read(file).unwrap();
    bytes[offset as usize] ^= 0x10;
    fs::write(file, bytes).unwrap();
}

fn footer_of(file: &Path) -> Footer {
    let bytes = fs::read(file).unwrap();
    Footer::decode(&bytes[bytes.len() - FOOTER_LEN..]).unwrap().0
}

#[test]
fn a_whole_log_is_verified_and_described() {
    let mut t = TestLog::new(4096);
    t.fill(100);
    assert!(t.segments().len() > 3);
    let (code, out, err) = run(&["verify", t.path()]);
    assert_eq!((code, err.as_str()), (0, ""));
    let expected =
        format!("ok: ops 1 to {}, {} segments, 100 entries, 200 ops", t.log.written(), t.segments().len());
    assert!(out.starts_with(&expected), "{out}");
    let (code, out, _) = run(&["stat", t.path()]);
    assert_eq!(code, 0);
    assert!(out.contains(&format!("last op   {}\n", t.log.written())), "{out}");
    assert!(out.contains("oldest op 1\n"), "{out}");
    assert!(out.contains(&format!("lineage   1 histories\n  {} from op 1\n", "a".repeat(40))), "{out}");
    assert_eq!(out.matches(" sealed ").count(), t.segments().len() - 1, "{out}");
}

#[test]
fn ops_are_shown_as_redis_cli_would() {
    let mut t = TestLog::new(1 << 20);
    t.append(&[&[b"SELECT", b"5"], &[b"SET", b"k\x00\"", b"\xff\r\n"], &[b"PING"]]);
    let (code, out, err) = run(&["dump", t.path()]);
    assert_eq!((code, err.as_str()), (0, ""));
    let id = t.log.written();
    let expected = format!(
        "23 2023-11-14T22:13:21.000Z db=2 sid=3 \"SELECT\" \"5\"\n\
         {} 2023-11-14T22:13:21.000Z db=5 sid=3 \"SET\" \"k\\x00\\\"\" \"\\xff\\r\\n\"\n\
         {id} 2023-11-14T22:13:21.000Z db=5 sid=3 \"PING\"\n",
        id - 14,
    );
    assert_eq!(out, expected);
    let (_, out, _) = run(&["dump", t.path(), "--json", "--from", "24", "--limit", "1"]);
    let line: serde_json::Value = serde_json::from_str(out.trim_end()).unwrap();
    let expected = serde_json::json!({
        "op": id - 14, "time": "2023-11-14T22:13:21.000Z", "time_ms": T0 + 1000, "db": 5, "service_id": 3,
        "args": ["SET", "k\u{0}\"", {"hex": "ff0d0a"}],
    });
    assert_eq!(line, expected);
}

#[test]
fn long_arguments_are_cut_unless_asked_for() {
    let mut t = TestLog::new(16 << 20);
    let value = vec![b'v'; 5 << 20];
    t.append(&[&[b"SET", b"k", &value]]);
    let shown = format!("\"SET\" \"k\" \"{}\"...({} bytes)\n", "v".repeat(1024), value.len());
    for args in [vec!["dump", t.path()], vec!["tail", t.path(), "-n", "1"]] {
        let (code, out, _) = run(&args);
        assert!(code == 0 && out.ends_with(&shown), "{}", &out[out.len().saturating_sub(100)..]);
        let (_, out, _) = run(&[args.as_slice(), &["--full"]].concat());
        assert!(out.len() > value.len() && out.ends_with("v\"\n"));
    }
    let (_, out, _) = run(&["dump", t.path(), "--json"]);
    let line: serde_json::Value = serde_json::from_str(out.trim_end()).unwrap();
    assert_eq!(line["args"][2].as_str().unwrap().len(), value.len());
}

#[test]
fn ops_are_chosen_by_id_time_origin_and_number() {
    let mut t = TestLog::new(4096);
    t.fill(100);
    let ids = |args: &[&str]| -> Vec<u64> {
        let all = [&["dump", t.path()], args].concat();
        let (code, out, err) = run(&all);
        assert_eq!((code, err.as_str()), (0, ""), "{args:?}");
        out.lines().map(|l| l.split(' ').next().unwrap().parse().unwrap()).collect()
    };
    let all = ids(&[]);
    assert_eq!((all.len(), *all.last().unwrap()), (200, t.log.written()));
    let from = all[77].to_string();
    let to = all[150].to_string();
    assert_eq!(ids(&["--from", &from, "--to", &to]), all[77..=150]);
    assert_eq!(ids(&["--since", "2023-11-14T22:13:30Z", "--until", "2023-11-14T22:13:35Z"]), all[18..30]);
    assert_eq!(ids(&["--since", &(T0 + 100_000).to_string()]), all[198..]);
    assert_eq!(ids(&["--limit", "7"]), all[..7]);
    assert_eq!(ids(&["--service-id", "3"]), all);
    assert_eq!(ids(&["--service-id", "4"]), [0u64; 0]);
    assert_eq!(run(&["dump", t.path(), "--service-id", "16"]).0, 2);
    assert_eq!(run(&["dump", t.path(), "--since", "yesterday"]).0, 2);
}

#[test]
fn all_damage_is_reported_with_its_place() {
    let mut t = TestLog::new(4096);
    t.fill(100);
    let files = t.segments();
    flip(&files[0], SEGMENT_HEADER_LEN as u64 + 50);
    flip(&files[0], footer_of(&files[0]).index_offset + 3);
    flip(&files[1], 20);
    let len = fs::metadata(&files[2]).unwrap().len();
    flip(&files[2], len - 20);
    let (code, out, _) = run(&["verify", t.path()]);
    assert_eq!(code, 1, "{out}");
    let damage: Vec<&str> = out.lines().filter(|l| l.starts_with("DAMAGE ")).collect();
    let has = |file: &Path, offset: u64| {
        let start = format!("DAMAGE {}: byte {offset}: expected ", file.display());
        assert!(damage.iter().any(|d| d.starts_with(&start) && d.contains(", got ")), "{start}: {out}");
    };
    has(&files[0], SEGMENT_HEADER_LEN as u64);
    has(&files[0], footer_of(&files[0]).index_offset);
    has(&files[1], 0);
    has(&files[2], len - FOOTER_LEN as u64);
    assert!(out.contains("the next good entry is at byte"), "{out}");
    // What is good is counted all the same: one entry of 100 is lost.
    assert!(out.contains(" 99 entries, 198 ops"), "{out}");
}

#[test]
fn no_flipped_bit_of_a_sealed_segment_goes_unseen() {
    let mut t = TestLog::new(1500);
    t.fill(20);
    let file = t.segments()[1].clone();
    let whole = fs::read(&file).unwrap();
    for offset in (0..whole.len()).step_by(29) {
        flip(&file, offset as u64);
        let (code, out, _) = run(&["verify", t.path()]);
        assert_eq!(code, 1, "byte {offset}: {out}");
        assert!(out.contains(&format!("DAMAGE {}: byte ", file.display())), "byte {offset}: {out}");
        fs::write(&file, &whole).unwrap();
    }
    assert_eq!(run(&["verify", t.path()]).0, 0);
}

#[test]
fn an_index_that_names_no_entry_is_damage() {
    let mut t = TestLog::new(4096);
    t.fill(100);
    let file = &t.segments()[1];
    let bytes = fs::read(file).unwrap();
    let footer = footer_of(file);
    let at = footer.index_offset as usize;
    let (_, crc) = Footer::decode(&bytes[bytes.len() - FOOTER_LEN..]).unwrap();
    let mut points = footer.decode_points(crc, &bytes[at..bytes.len() - FOOTER_LEN]).unwrap();
    let broken = |points: &[IndexPoint], footer: &Footer| {
        let mut out = bytes[..at].to_vec();
        encode_index(points, footer, &mut out).unwrap();
        fs::write(file, out).unwrap();
        run(&["verify", t.path()])
    };
    assert_eq!(broken(&points, &footer).0, 0);
    let (code, out, _) = broken(&points, &Footer { entries: footer.entries + 1, ..footer });
    assert!(code == 1 && out.contains("expected a footer with entries"), "{out}");
    points.push(IndexPoint { first_op: footer.last_op, offset: footer.index_offset - 1 });
    let (code, out, _) = broken(&points, &footer);
    assert!(
        code == 1 && out.contains(&format!("byte {}: expected index points", footer.index_offset)),
        "{out}"
    );
    points.pop();
    points[0].first_op += 1;
    let (code, out, _) = broken(&points, &footer);
    assert!(code == 1 && out.contains("got an index point (op "), "{out}");
}

#[test]
fn a_missing_segment_is_damage() {
    let mut t = TestLog::new(4096);
    t.fill(100);
    fs::remove_file(&t.segments()[2]).unwrap();
    let (code, out, _) = run(&["verify", t.path()]);
    assert_eq!(code, 1);
    let expected = format!("DAMAGE {}: byte 0: expected op ", t.segments()[2].display());
    assert!(out.contains(&expected), "{out}");
    let (_, _, err) = run(&["dump", t.path()]);
    assert!(err.starts_with("gap: op "), "{err}");
}

#[test]
fn a_torn_tail_is_told_from_damage() {
    let mut t = TestLog::new(1 << 20);
    t.fill(10);
    let file = t.segments()[0].clone();
    let whole = fs::read(&file).unwrap();
    let frame = (whole.len() - SEGMENT_HEADER_LEN) / 10;

    fs::write(&file, &whole[..whole.len() - 10]).unwrap();
    let (code, out, _) = run(&["verify", t.path()]);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("incomplete at the end") && out.contains(" 9 entries, 18 ops"), "{out}");
    let (code, out, err) = run(&["dump", t.path()]);
    assert_eq!((code, out.lines().count()), (0, 18));
    assert!(err.starts_with("incomplete at the end"), "{err}");

    // A length that was flipped to more than the file has looks the same, but good entries follow.
    let mut bytes = whole.clone();
    bytes[SEGMENT_HEADER_LEN + 3 * frame + 26] = 1;
    fs::write(&file, &bytes).unwrap();
    let (code, out, _) = run(&["verify", t.path()]);
    assert_eq!(code, 1, "{out}");
    assert!(out.contains(" 9 entries, 18 ops"), "{out}");
}

#[test]
fn a_dump_ends_at_a_damaged_place_and_says_so() {
    let mut t = TestLog::new(4096);
    t.fill(100);
    flip(&t.segments()[1], SEGMENT_HEADER_LEN as u64 + 60);
    let (code, out, err) = run(&["dump", t.path()]);
    let first = footer_of(&t.segments()[0]);
    assert_eq!((code, out.lines().count() as u64), (1, first.ops));
    assert!(
        err.starts_with(&format!("DAMAGE {}: byte {SEGMENT_HEADER_LEN}:", t.segments()[1].display())),
        "{err}"
    );
    // Below and above it all is well.
    assert_eq!(run(&["dump", t.path(), "--to", &first.last_op.to_string()]).0, 0);
    let above = footer_of(&t.segments()[1]).last_op + 1;
    assert_eq!(run(&["dump", t.path(), "--from", &above.to_string()]).0, 0);
}

#[test]
fn a_damaged_manifest_is_reported() {
    let mut t = TestLog::new(4096);
    t.fill(10);
    flip(&t.dir.path().join("manifest"), 20);
    let (code, out, _) = run(&["verify", t.path()]);
    assert_eq!(code, 1);
    assert!(out.contains("/manifest: byte 0: expected small file with checksum"), "{out}");
    // The segments can be read without it.
    assert_eq!(run(&["dump", t.path()]).1.lines().count(), 20);
}

#[test]
fn what_is_no_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    for command in ["stat", "verify", "dump", "tail", "orphans"] {
        let (code, out, err) = run(&[command, path]);
        assert_eq!((code, out.as_str()), (2, ""), "{command}");
        assert!(err.contains("holds no oplog"), "{command}: {err}");
        assert_eq!(run(&[command, &format!("{path}/missing")]).0, 2, "{command}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn an_empty_log_is_fine() {
    let t = TestLog::new(4096);
    for command in ["stat", "verify", "dump", "tail", "orphans"] {
        assert_eq!(run(&[command, t.path()]).0, 0, "{command}");
    }
}

#[test]
fn nothing_is_changed_also_in_the_directory_of_a_dead_server() {
    let mut t = TestLog::new(4096);
    t.fill(50);
    let last = t.segments().pop().unwrap();
    let bytes = fs::read(&last).unwrap();
    fs::write(&last, &bytes[..bytes.len() - 5]).unwrap();
    let state = |dir: &Path| -> Vec<(PathBuf, Vec<u8>)> {
        let mut all: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        all.sort();
        all.into_iter().map(|p| (p.clone(), fs::read(p).unwrap())).collect()
    };
    let before = state(t.dir.path());
    for args in [&["verify"][..], &["stat"], &["dump"], &["tail"], &["orphans"]] {
        assert_eq!(run(&[args[0], t.path()]).0, 0);
    }
    assert_eq!(state(t.dir.path()), before);
}

#[test]
fn a_log_that_is_written_to_and_cleaned_is_read_without_false_alarm() {
    let mut t = TestLog::new(8192);
    t.fill(20);
    let stop = Arc::new(AtomicBool::new(false));
    let path = t.path().to_owned();
    let writer = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            while !stop.load(Ordering::Relaxed) {
                t.fill(20);
                let keep = t.log.written().saturating_sub(200_000);
                t.log.clean(keep, Duration::ZERO, u64::MAX).unwrap();
            }
            t
        }
    });
    for _ in 0..15 {
        let (code, out, _) = run(&["verify", &path]);
        assert_eq!(code, 0, "{out}");
        let (code, _, err) = run(&["dump", &path, "--limit", "500"]);
        assert_eq!(code, 0, "{err}");
        assert_eq!(run(&["stat", &path]).0, 0);
    }
    stop.store(true, Ordering::Relaxed);
    let t = writer.join().unwrap();
    assert_eq!(run(&["verify", t.path()]).0, 0);
}

#[test]
fn the_last_ops_are_shown() {
    let mut t = TestLog::new(1500);
    t.fill(50);
    let all: Vec<String> = run(&["dump", t.path()]).1.lines().map(str::to_owned).collect();
    for n in [0usize, 1, 2, 3, 10, 33, 99, 100, 500] {
        let (code, out, _) = run(&["tail", t.path(), "-n", &n.to_string()]);
        let got: Vec<&str> = out.lines().collect();
        assert_eq!(
            (code, got),
            (0, all[all.len().saturating_sub(n)..].iter().map(String::as_str).collect()),
            "{n}"
        );
    }
}

struct Follower(Child);

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn tail_follows_over_new_segments() {
    let mut t = TestLog::new(1500);
    t.fill(1);
    let mut child = Follower(
        Command::new(env!("CARGO_BIN_EXE_oplogctl"))
            .args(["tail", t.path(), "-n", "1", "-f"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let stdout = child.0.stdout.take().unwrap();
    let (send, lines) = mpsc::channel();
    std::thread::spawn(move || BufReader::new(stdout).lines().try_for_each(|l| send.send(l.unwrap())));
    let wait = Duration::from_secs(60);
    let id = |line: String| -> u64 { line.split(' ').next().unwrap().parse().unwrap() };
    assert_eq!(id(lines.recv_timeout(wait).unwrap()), t.log.written());
    let mut shown = 0;
    for _ in 0..5 {
        let before = t.segments().len();
        t.fill(15);
        assert!(t.segments().len() > before);
        while id(lines.recv_timeout(wait).unwrap()) != t.log.written() {
            shown += 1;
        }
        shown += 1;
    }
    assert_eq!(shown, 5 * 15 * 2);
    assert!(child.0.try_wait().unwrap().is_none());
}

#[test]
fn orphans_are_listed_and_shown() {
    let mut t = TestLog::new(1500);
    t.fill(20);
    let all: Vec<String> = run(&["dump", t.path()]).1.lines().map(str::to_owned).collect();
    assert_eq!(run(&["orphans", t.path()]), (0, String::new(), String::new()));
    let at: u64 = all[24].split(' ').next().unwrap().parse().unwrap();
    let info = t.log.cut_after(at, "not at the source").unwrap().unwrap();
    let (code, out, _) = run(&["orphans", t.path()]);
    assert_eq!((code, out.lines().count()), (0, 1));
    let expected = format!("{} ops {} to {} (15 ops, ", info.id, at + 1, info.last_op);
    assert!(out.starts_with(&expected) && out.contains(": not at the source; keys: "), "{out}");
    let (code, out, err) = run(&["orphans", t.path(), "--show", &info.id]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(out.lines().collect::<Vec<_>>(), all[25..]);
    assert_eq!(run(&["dump", t.path()]).1.lines().collect::<Vec<_>>(), all[..25]);
    assert_eq!(run(&["verify", t.path()]).0, 0);
    let (code, _, err) = run(&["orphans", t.path(), "--show", "other"]);
    assert_eq!(code, 2);
    assert!(err.contains("no orphan other"), "{err}");
    flip(&t.dir.path().join("orphans").join(&info.id).join("orphan"), 30);
    assert_eq!(run(&["orphans", t.path()]).0, 1);
    assert_eq!(run(&["verify", t.path()]).0, 1);
}

/// An RDB with one key, with or without the module's field, and a checksum.
fn rdb(field: bool) -> Vec<u8> {
    let mut out = b"REDIS0009\xfa\x09redis-ver\x057.0.0".to_vec();
    if field {
        let aux = AuxContent {
            format: FORMAT,
            mode: Mode::Source,
            service_id: 1,
            flags: 0,
            op_id: 42,
            repl_offset: 42,
            lineage: vec![(*history(b'a').as_bytes(), 1)],
            endpoints: Vec::new(),
        };
        let body = aux.encode();
        out.extend_from_slice(&[0xf7, 0x81]);
        out.extend_from_slice(&type_id(TYPE_NAME, 1).unwrap().to_be_bytes());
        // When it was saved: before the keys. Then one string, and the end mark.
        out.extend_from_slice(&[2, 1, 5, 0x40 | (body.len() >> 8) as u8, body.len() as u8]);
        out.extend_from_slice(&body);
        out.push(0);
    }
    out.extend_from_slice(b"\xfe\x00\xfb\x01\x00\x00\x01k\x01v\xff");
    let mut crc = Crc64::new();
    crc.update(&out);
    out.extend_from_slice(&crc.value().to_le_bytes());
    out
}

#[test]
fn an_rdb_is_freed_of_the_modules_field() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let strip = |from: &str, to: &str| run(&["strip-rdb", &path(from), &path(to)]);
    fs::write(path("in"), rdb(true)).unwrap();
    let (code, out, err) = strip("in", "out");
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("1 keys") && out.contains("1 fields taken out"), "{out}");
    assert_eq!(fs::read(path("out")).unwrap(), rdb(false));
    let (code, out, _) = strip("out", "again");
    assert_eq!((code, fs::read(path("again")).unwrap()), (0, rdb(false)));
    assert!(out.contains("held no field"), "{out}");

    // Nothing is replaced, and nothing is left of a run that fails.
    assert_eq!(strip("in", "again").0, 2);
    assert_eq!(fs::read(path("again")).unwrap(), rdb(false));
    let mut bytes = rdb(true);
    let len = bytes.len();
    bytes[len - 12] ^= 1;
    fs::write(path("bad"), bytes).unwrap();
    assert_eq!(strip("bad", "no").0, 2);
    assert_eq!(strip("missing", "no").0, 2);
    let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["again", "bad", "in", "out"]);
}
