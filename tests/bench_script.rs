//! scripts/bench starts, and what docs/performance.md says to run exists. How fast anything is, is no test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

fn python(script: &str, args: &[&str]) -> (bool, String) {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let done = Command::new("python3").arg("-B").arg(top.join("scripts").join(script)).args(args).output();
    let done = done.expect("python3");
    let text = [done.stdout, done.stderr].concat();
    (done.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn groups() -> BTreeSet<String> {
    let (good, text) = python("bench_main.py", &["--list"]);
    assert!(good, "{text}");
    text.lines().filter_map(|l| l.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn its_groups_are_listed_and_others_refused() {
    let groups = groups();
    assert!(groups.len() > 10 && groups.contains("catch-up"), "{groups:?}");
    let (good, text) = python("bench_main.py", &["--only", "no-such-group"]);
    assert!(!good && text.contains("no-such-group"), "{text}");
}

#[test]
fn what_the_document_names_exists() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/performance.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, help) = python("bench_main.py", &["--help"]);
    let groups = groups();
    let mut named = 0;
    for command in text.split("scripts/bench ").skip(1) {
        let line = command.split(['`', '\n']).next().unwrap_or_default();
        let mut only = false;
        for word in line.split_whitespace() {
            if word.starts_with("--") {
                assert!(help.contains(word), "{word} of `{line}` is no option");
                named += 1;
                only = word == "--only";
            } else if only {
                assert!(groups.contains(word), "{word} of `{line}` is no group");
            }
        }
    }
    assert!(named >= 5, "options named: {named}");
}
