//! A full or failing disk at every change: the workload is run with the n-th change failing, for each n. Whatever
//! call is hit, nothing half done may be visible, the log must say that it has failed, and be revived once the
//! disk works again: with everything that it says is durable really on the disk. A sync that fails loses what it
//! should have written, as on Linux.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod store_support;

use std::path::Path;
use std::sync::Arc;

use redisdr::store::{Fs, Log, LogOptions, StoreError};
use store_support::drive::{
    differs, entries, history, options, packed, read_all, read_some, workload, Model, Run, Step, DIR,
};
use store_support::memfs::{Cut, Fault, MemFs, State};
use store_support::Rng;

const SEGMENT: u64 = 4096;

#[allow(clippy::large_enum_variant)]
enum Outcome {
    /// The workload ended before the fault came.
    Whole,
    /// A step failed; the run with the states before and after it.
    Failed(Box<(Run, Step, StoreError, Model)>),
    /// Opening failed.
    NotOpen,
}

fn run_into(fs: &Arc<MemFs>, options: &LogOptions) -> Outcome {
    let mut run = Run::new(Arc::clone(fs) as Arc<dyn Fs>, Path::new(DIR), SEGMENT);
    run.options = options.clone();
    if run.open().is_err() {
        return Outcome::NotOpen;
    }
    for step in workload() {
        let (result, after) = run.step(&step);
        match result {
            Ok(()) => {}
            Err(_) if matches!(step, Step::Reopen) => return Outcome::NotOpen,
            Err(e) => return Outcome::Failed(Box::new((run, step, e, after))),
        }
    }
    Outcome::Whole
}

/// Revives the log with or without a gap, appends, and looks at what a power cut leaves.
fn heal(fs: &Arc<MemFs>, log: &Arc<Log>, gap: bool, before: &Model, after: &Model, what: &str) {
    let next = log.written() + if gap { 1000 } else { 1 };
    let current = log.lineage().current().or(after.lineage.current()).unwrap().history;
    fs.record();
    let revived = if !gap && next.is_multiple_of(2) && log.poisoned().is_some() && !log.lineage().is_empty() {
        log.resume()
    } else {
        log.revive(if gap { history(77) } else { current }, next)
    };
    revived.unwrap_or_else(|e| panic!("{what}: not revived: {e}"));
    cut_off_while_revived(&fs.take_past(), gap.then_some(next), before, after, what);
    assert!(log.poisoned().is_none(), "{what}");
    assert_eq!(log.written(), next - 1, "{what}");
    let kept = read_all(log);
    if let Some(wrong) = (!gap).then(|| in_memory(log, before, after)).flatten() {
        panic!("{what}: after the revival: {wrong}");
    }
    let more = entries(log.written(), &[vec![300, 20], vec![5000], vec![10]], &mut Rng::new(5));
    let frames: Vec<u8> = more.iter().flat_map(|e| e.frame.iter().copied()).collect();
    log.append(&frames).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(log.sync().unwrap(), log.written(), "{what}");
    let all = read_all(log);
    let wanted = [kept, frames].concat();
    assert!(all == wanted, "{what}: other bytes after the revival");
    let image = MemFs::from_state(fs.state().image(Cut::Drop)) as Arc<dyn Fs>;
    let (again, report) =
        Log::open(Path::new(DIR), options(SEGMENT), image).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(report.torn.is_none(), "{what}: {report:?}");
    assert!(read_all(&again) == all, "{what}: not the same after a power cut");
    assert_eq!(again.lineage(), log.lineage(), "{what}");
}

/// The power fails while the log is revived: what is there is the log from before, or it begins above the gap.
fn cut_off_while_revived(past: &[State], gap: Option<u64>, before: &Model, after: &Model, what: &str) {
    for (i, state) in past.iter().enumerate() {
        for cut in [Cut::Keep, Cut::Any(i as u64)] {
            let what = format!("{what}, cut off at {i} of the revival, {cut:?}");
            let image = MemFs::from_state(state.image(cut));
            let dyn_image = Arc::clone(&image) as Arc<dyn Fs>;
            let (log, _) = Log::open(Path::new(DIR), options(SEGMENT), dyn_image)
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            let begins = (log.oldest(), log.written() + 1);
            if gap.is_some_and(|next| begins == (next, next)) {
                continue;
            }
            let (mut before, mut after) = (before.clone(), after.clone());
            for model in [&mut before, &mut after] {
                // The manifest of a cleaning may have reached the disk, though its save failed.
                if log.oldest() > model.oldest && model.entries.iter().any(|e| e.first == log.oldest()) {
                    model.oldest = log.oldest();
                    model.entries.retain(|e| e.first >= log.oldest());
                }
            }
            if let Some(wrong) = differs(&log, &before, &after, image.as_ref(), Path::new(DIR)) {
                panic!("{what}: {wrong}");
            }
        }
    }
}

fn every_change_fails_once(errno: i32, times: usize, options: &LogOptions) {
    let mut hits = std::collections::BTreeMap::new();
    for at in 0.. {
        let fs = MemFs::new();
        fs.create_dir(Path::new("/data")).unwrap();
        fs.sync_dir(Path::new("/")).unwrap();
        fs.set_fault(Some(Fault { at: at + 2, errno, times }));
        let what = format!("error {errno} at change {at}");
        let outcome = run_into(&fs, options);
        fs.set_fault(None);
        if let Some(hit) = fs.hit() {
            *hits.entry(hit).or_insert(0) += 1;
        }
        match outcome {
            Outcome::Whole if fs.hit().is_none() => break,
            // Cleaning up is tried again at the next opening.
            Outcome::Whole => {}
            Outcome::NotOpen => {
                let image = Arc::clone(&fs) as Arc<dyn Fs>;
                Log::open(Path::new(DIR), options.clone(), image).unwrap_or_else(|e| panic!("{what}: {e}"));
            }
            Outcome::Failed(failed) => {
                let (run, step, error, after) = *failed;
                let log = run.log();
                let what = format!("{what} in {step:?} ({error})");
                let in_a_cut = matches!(step, Step::Cut(_)) && log.poisoned().is_some();
                if let Some(wrong) = (!in_a_cut).then(|| in_memory(&log, &run.model, &after)).flatten() {
                    panic!("{what}: {wrong}");
                }
                // A cut that is not finished may show less, and never what is not there.
                let seen = read_some(&log).0;
                let prefix = |m: &Model| {
                    let all: Vec<u8> = m.entries.iter().flat_map(|e| e.frame.iter().copied()).collect();
                    all.starts_with(&seen)
                };
                assert!(!in_a_cut || prefix(&run.model) || prefix(&after), "{what}: not a prefix");
                // What is on the disk opens as well, as if the process had been killed and the power cut.
                for cut in [Cut::Keep, Cut::Drop, Cut::Any(at as u64)] {
                    let image = MemFs::from_state(fs.state().image(cut));
                    let dyn_image = Arc::clone(&image) as Arc<dyn Fs>;
                    let (again, _) = Log::open(Path::new(DIR), options.clone(), dyn_image)
                        .unwrap_or_else(|e| panic!("{what}, {cut:?}: {e}"));
                    let mut after = after.clone();
                    if matches!(step, Step::Clean(_) | Step::CleanBytes(_)) {
                        // The manifest may have reached the disk, though its save failed.
                        after.oldest = again.oldest();
                        after.entries.retain(|e| e.first >= after.oldest);
                    }
                    if let Some(wrong) = differs(&again, &run.model, &after, image.as_ref(), Path::new(DIR)) {
                        panic!("{what}, {cut:?}: {wrong}");
                    }
                }
                let harmless = matches!(step, Step::Clean(_) | Step::CleanBytes(_) | Step::Cut(_));
                assert!(log.poisoned().is_some() || harmless, "{what}: not poisoned");
                if log.poisoned().is_some() {
                    let refused = log.append(&[]).err();
                    assert!(matches!(refused, Some(StoreError::Poisoned(_))), "{what}: {refused:?}");
                }
                heal(&fs, &log, at % 2 == 1, &run.model, &after, &what);
            }
        }
    }
    println!("{hits:?}");
    for kind in ["write", "sync", "set_len", "create", "rename", "sync_dir", "unlink"] {
        assert!(hits.contains_key(kind), "no {kind} was hit");
    }
}

/// What readers of the failed log see is a state before, after or between.
fn in_memory(log: &Arc<Log>, before: &Model, after: &Model) -> Option<String> {
    // Nothing was lost yet, so durability is not what is asked; and there are no files here to find orphans in.
    let before = Model { durable: 0, ..before.clone() };
    let after = Model { durable: 0, cut: None, ..after.clone() };
    let fs = MemFs::new();
    differs(log, &before, &after, fs.as_ref(), Path::new(DIR))
}

#[test]
fn a_full_disk_at_any_change_is_survived() {
    every_change_fails_once(libc::ENOSPC, 1, &options(SEGMENT));
}

#[test]
fn a_full_disk_under_a_compressed_log_is_survived() {
    every_change_fails_once(libc::ENOSPC, 1, &packed(SEGMENT));
}

#[test]
fn a_failing_disk_at_any_change_is_survived() {
    every_change_fails_once(libc::EIO, 3, &options(SEGMENT));
}
