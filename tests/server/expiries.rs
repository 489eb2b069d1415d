//! Expiries on a linked target: held, shown as they are, never acted upon by the target's own clock, and
//! released after a cut.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::dr::{self, Site, VERSIONS};
use crate::workload::{Conn, Reply};

const KEYS: usize = 3000;
const FIELDS: usize = 2000;

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_millis() as i64
}

fn line(conn: &mut Conn, line: &str) -> Reply {
    let words: Vec<&str> = line.split(' ').collect();
    let reply = conn.call(&words);
    assert!(reply.error().is_none(), "{line}: {reply:?}");
    reply
}

fn since(version: &str, redis: &str, valkey: &str) -> bool {
    match version.split_once('-') {
        Some(("redis", v)) => v >= redis,
        Some((_, v)) => v >= valkey,
        None => false,
    }
}

/// Keys with and without an expiry, small and large hashes with timed fields.
fn fill(conn: &mut Conn, version: &str, prefix: &str) {
    let base = now_ms() + 3_600_000;
    let commands: Vec<Vec<Vec<u8>>> = (0..KEYS)
        .flat_map(|n| {
            let key = format!("{prefix}:{n}").into_bytes();
            let set = vec![b"SET".to_vec(), key.clone(), b"v".to_vec()];
            let expire = vec![b"PEXPIREAT".to_vec(), key, (base + n as i64).to_string().into_bytes()];
            std::iter::once(set).chain((n % 3 != 0).then_some(expire))
        })
        .collect();
    for reply in conn.pipeline(&commands).expect("replies") {
        assert!(reply.error().is_none(), "{reply:?}");
    }
    if !since(version, "7.4", "9.0") {
        return;
    }
    for (hash, fields) in [("small", 300), ("large", FIELDS)] {
        let key = format!("{prefix}:{hash}");
        for n in 0..fields {
            line(conn, &format!("HSET {key} f{n} v"));
            if n % 3 != 0 {
                line(conn, &format!("HPEXPIREAT {key} {} FIELDS 1 f{n}", base + (n % 50) as i64));
            }
        }
    }
}

/// All expiries: by the absolute commands where there are any.
fn expiries(site: &Site, version: &str, prefix: &str) -> Vec<i64> {
    let mut conn = site.conn();
    let absolute = since(version, "7.0", "0");
    let name = if absolute { "PEXPIRETIME" } else { "PTTL" };
    let keys = (0..KEYS).map(|n| vec![name.to_owned().into_bytes(), format!("{prefix}:{n}").into_bytes()]);
    let mut out: Vec<i64> = Vec::new();
    for reply in conn.pipeline(&keys.collect::<Vec<_>>()).expect("replies") {
        let ms = reply.int();
        // Before 7.0 there is only the remaining time: to some seconds.
        out.push(if absolute || ms < 0 { ms } else { (ms + now_ms()) / 10_000 });
    }
    if since(version, "7.4", "9.0") {
        for (hash, fields) in [("small", 300), ("large", FIELDS)] {
            let names: Vec<String> = (0..fields).map(|n| format!("f{n}")).collect();
            let text = format!("HPEXPIRETIME {prefix}:{hash} FIELDS {fields} {}", names.join(" "));
            match line(&mut conn, &text) {
                Reply::Array(all) => out.extend(all.iter().map(Reply::int)),
                other => panic!("{other:?}"),
            }
        }
    }
    out
}

fn assert_close(a: &[i64], b: &[i64], version: &str, what: &str) {
    assert_eq!(a.len(), b.len());
    let slack = if since(version, "7.0", "0") { 0 } else { 1 };
    for (n, (x, y)) in a.iter().zip(b).enumerate() {
        assert!((x - y).abs() <= slack, "{version}, {what}: number {n} is {x} and {y}");
    }
}

fn shown_true_and_released(version: &str) {
    let source = Site::start(version, 0);
    let target = Site::start(version, 1);
    let replica = Site::replica_of(&target);
    let mut conn = source.conn();
    fill(&mut conn, version, "snapshot");
    target.link(&[&source]);
    dr::wait_streaming(&target);
    fill(&mut conn, version, "stream");
    dr::wait_in_step(&source, &target);
    replica.wait_follows(&target);
    let wanted: Vec<Vec<i64>> =
        ["snapshot", "stream"].iter().map(|prefix| expiries(&source, version, prefix)).collect();
    let compare = |site: &Site, what: &str| {
        for (prefix, wanted) in ["snapshot", "stream"].iter().zip(&wanted) {
            assert_close(wanted, &expiries(site, version, prefix), version, &format!("{what}, {prefix}"));
        }
    };
    compare(&target, "linked target");
    compare(&replica, "its replica");

    line(&mut target.conn(), "DR.CUTLINK");
    dr::eventually("the expiries are released", || {
        let text = target.status().to_string();
        let log = target.log();
        match log.contains("expiries released") {
            true => Ok(()),
            false => Err(text),
        }
    });
    compare(&target, "after the cut");
    replica.wait_follows(&target);
    compare(&replica, "its replica after the cut");
    let text = line(&mut target.conn(), "INFO commandstats").text();
    let stats = text.lines().find(|l| l.to_ascii_lowercase().starts_with("cmdstat_dr._rebase"));
    let usec = stats.and_then(|l| l.split("usec_per_call=").nth(1)).and_then(|l| l.split(',').next());
    let usec: f64 = usec.expect("DR._REBASE ran").parse().expect("a number");
    // Half a millisecond is asked for; the rest is for a busy machine. All at once would take some ten.
    assert!(usec < 5000.0, "{version}: a slice took {usec} microseconds on average");
}

/// A session store: keys that the source refreshes while the target cannot see it.
fn refreshed_while_away(version: &str) {
    let source = Site::start(version, 0);
    let target = Site::start(version, 1);
    let mut conn = source.conn();
    target.link(&[&source]);
    dr::wait_streaming(&target);
    for n in 0..200 {
        line(&mut conn, &format!("SET s:{n} v PX 1500"));
    }
    dr::wait_in_step(&source, &target);
    target.stop_process();
    let until = now_ms() + 3000;
    while now_ms() < until {
        // One in four is left to expire.
        for n in (0..200).filter(|n| n % 4 != 0) {
            line(&mut conn, &format!("PEXPIRE s:{n} 60000"));
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    target.continue_process();
    for n in (0..200).step_by(4) {
        assert_eq!(line(&mut conn, &format!("EXISTS s:{n}")).int(), 0);
    }
    dr::wait_in_step(&source, &target);
    dr::wait_same_digest(&[&source, &target], version);
    assert_eq!(line(&mut target.conn(), "DBSIZE").int(), 150, "{version}");
    line(&mut conn, "PEXPIRE s:1 1");
    dr::eventually("an expiry of the source arrives", || {
        match line(&mut target.conn(), "EXISTS s:1").int() {
            0 => Ok(()),
            n => Err(n.to_string()),
        }
    });
}

#[test]
fn expiries_are_shown_true_and_released() {
    VERSIONS.iter().for_each(|v| shown_true_and_released(v));
}

#[test]
fn keys_refreshed_while_the_target_is_away_stay() {
    VERSIONS.iter().for_each(|v| refreshed_while_away(v));
}
