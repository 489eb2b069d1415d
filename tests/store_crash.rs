//! Power cut at every change: a workload is run once on a file system that keeps its state before each write,
//! sync, cut, rename and removal. Of each state images are made as a power cut may leave them: what was not synced
//! is dropped, kept, torn, or there in part and in any order. Each image must open to the log as it was before
//! or after the call that was under way, never shorter than what was durable, and work on from there. Opening
//! itself is crashed as well.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod store_support;

use std::path::Path;
use std::sync::Arc;

use redisdr::store::{Fs, Log, LogOptions};
use store_support::drive::{differs, entries, options, packed, read_all, workload, Model, Run, DIR};
use store_support::memfs::{Cut, MemFs, State};
use store_support::Rng;

const SEGMENT: u64 = 4096;

/// States of the file system with the model before and after the call in which they occurred.
fn crash_points(options: &LogOptions) -> Vec<(State, Model, Model, String)> {
    let fs = MemFs::new();
    fs.create_dir(Path::new("/data")).unwrap();
    fs.sync_dir(Path::new("/")).unwrap();
    fs.record();
    let mut run = Run::new(Arc::clone(&fs) as Arc<dyn Fs>, Path::new(DIR), SEGMENT);
    run.options = options.clone();
    let mut points = Vec::new();
    let mut before = run.model.clone();
    run.open().unwrap();
    let mut note = |fs: &MemFs, before: &Model, after: &Model, what: String| {
        for state in fs.take_past() {
            points.push((state, before.clone(), after.clone(), what.clone()));
        }
    };
    note(&fs, &before, &run.model, "open".to_owned());
    for step in workload() {
        before = run.model.clone();
        let (result, after) = run.step(&step);
        result.unwrap_or_else(|e| panic!("{step:?}: {e}"));
        run.check();
        note(&fs, &before, &after, format!("{step:?}"));
    }
    points
}

/// Opens an image; returns the states that opening went through.
fn open(
    image: State,
    options: &LogOptions,
    before: &Model,
    after: &Model,
    what: &str,
) -> (Arc<MemFs>, Arc<Log>, Vec<State>) {
    let fs = MemFs::from_state(image);
    fs.record();
    let dyn_fs: Arc<dyn Fs> = Arc::clone(&fs) as Arc<dyn Fs>;
    let (log, _) =
        Log::open(Path::new(DIR), options.clone(), dyn_fs).unwrap_or_else(|e| panic!("{what}: {e}"));
    if let Some(wrong) = differs(&log, before, after, fs.as_ref(), Path::new(DIR)) {
        panic!("{what}: {wrong}");
    }
    let past = fs.take_past();
    (fs, log, past)
}

/// The log works on, and what it then has on the disk is whole.
fn work_on(fs: &Arc<MemFs>, log: Arc<Log>, options: &LogOptions, what: &str) {
    if log.lineage().is_empty() {
        return;
    }
    let more = entries(log.written(), &vec![vec![700]; 9], &mut Rng::new(99));
    let frames: Vec<u8> = more.iter().flat_map(|e| e.frame.iter().copied()).collect();
    log.append(&frames).unwrap_or_else(|e| panic!("{what}: {e}"));
    log.sync().unwrap();
    let (all, lineage) = (read_all(&log), log.lineage());
    assert!(all.ends_with(&frames), "{what}");
    let again = MemFs::from_state(fs.state().image(Cut::Drop)) as Arc<dyn Fs>;
    let (log, report) =
        Log::open(Path::new(DIR), options.clone(), again).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(report.torn.is_none(), "{what}: {report:?}");
    assert!(read_all(&log) == all && log.lineage() == lineage, "{what}: not the same when opened again");
}

#[test]
fn a_power_cut_at_any_change_leaves_a_log() {
    cut_everywhere(&options(SEGMENT));
}

#[test]
fn a_power_cut_at_any_change_leaves_a_compressed_log() {
    cut_everywhere(&packed(SEGMENT));
}

fn cut_everywhere(options: &LogOptions) {
    let points = crash_points(options);
    assert!(points.len() > 200, "only {} crash points", points.len());
    let mut opened = 0;
    for (i, (state, before, after, step)) in points.iter().enumerate() {
        let seed = i as u64 * 10;
        let cuts = [
            Cut::Drop,
            Cut::Keep,
            Cut::Torn(seed),
            Cut::Torn(seed + 1),
            Cut::Any(seed + 2),
            Cut::Any(seed + 3),
        ];
        for cut in cuts {
            let what = format!("point {i} in {step}, {cut:?}");
            let (fs, log, past) = open(state.image(cut), options, before, after, &what);
            work_on(&fs, log, options, &what);
            opened += 1;
            // Opening changes little where there is nothing to repair.
            if past.len() < 4 || !matches!(cut, Cut::Keep | Cut::Any(_)) {
                continue;
            }
            for (j, state) in past.iter().enumerate() {
                for cut in [Cut::Drop, Cut::Any(seed + 100 + j as u64)] {
                    let what = format!("{what}, again at {j} of opening, {cut:?}");
                    open(state.image(cut), options, before, after, &what);
                    opened += 1;
                }
            }
        }
    }
    println!("{} crash points, {opened} images opened", points.len());
}
