//! Which commands ran, and which of them did something.

use std::collections::BTreeMap;

use super::catalogue::{usable, ALSO_WANTED, CATALOGUE, NOT_EXERCISED};
use super::reply::Reply;
use super::table::CommandTable;

/// Commands that have effect whatever number they answer: the old bit, the number of subscribers here.
const ALWAYS_EFFECTIVE: [&str; 3] = ["setbit", "publish", "spublish"];

#[derive(Clone, Debug, Default)]
pub struct Count {
    pub ran: u64,
    /// Replies that show that something happened.
    pub effects: u64,
    pub errors: u64,
    pub last_error: String,
}

/// Counts by command name.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    pub counts: BTreeMap<String, Count>,
}

impl Coverage {
    pub fn note(&mut self, argv: &[Vec<u8>], reply: &Reply) {
        self.note_name(&CommandTable::name_of(argv), reply);
    }

    pub fn note_name(&mut self, name: &str, reply: &Reply) {
        let count = self.counts.entry(name.to_owned()).or_default();
        count.ran += 1;
        let always = ALWAYS_EFFECTIVE.contains(&name) && reply.error().is_none();
        count.effects += u64::from(always || reply.shows_effect());
        if let Some(error) = reply.error() {
            count.errors += 1;
            count.last_error = error.to_owned();
        }
    }

    pub fn merge(&mut self, other: &Coverage) {
        for (name, c) in &other.counts {
            let into = self.counts.entry(name.clone()).or_default();
            into.ran += c.ran;
            into.effects += c.effects;
            into.errors += c.errors;
            if !c.last_error.is_empty() {
                into.last_error.clone_from(&c.last_error);
            }
        }
    }

    pub fn total(&self) -> u64 {
        self.counts.values().map(|c| c.ran).sum()
    }

    /// What is wrong with the workload for this server: a write command never had effect and is not on the list with a
    /// reason, or is on the list and had, or fails most of the time.
    pub fn gaps(&self, table: &CommandTable) -> Vec<String> {
        let mut out = Vec::new();
        // Commands of the module itself replicate, too, and are not the workload's.
        for name in wanted(table).into_iter().filter(|n| !n.starts_with("dr.")) {
            let count = self.counts.get(&name).cloned().unwrap_or_default();
            let excused = NOT_EXERCISED.iter().any(|(n, _)| *n == name);
            if excused && count.effects > 0 {
                out.push(format!("{name} is on the list of commands not exercised, but was"));
            } else if !excused && count.effects == 0 {
                out.push(format!(
                    "{name} had no effect in {} runs ({} errors, the last: {})",
                    count.ran, count.errors, count.last_error
                ));
            }
        }
        let (ran, errors) = self.counts.values().fold((0, 0), |(r, e), c| (r + c.ran, e + c.errors));
        if errors * 4 > ran {
            out.push(format!("{errors} of {ran} commands failed: the workload misses its keys"));
        }
        out
    }
}

/// The write commands of the server, containers by subcommand, and the wanted ones that no flag names.
fn wanted(table: &CommandTable) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for name in table.writing() {
        let prefix = format!("{name}|");
        let subs: Vec<_> =
            CATALOGUE.iter().filter(|e| e.name.starts_with(&prefix) && usable(e, table)).collect();
        // A subcommand that only one of two servers has.
        let beyond = CATALOGUE.iter().any(|e| e.name == name && !usable(e, table));
        if subs.is_empty() && !beyond {
            out.push(name.to_owned());
        }
        out.extend(subs.iter().map(|e| e.name.to_owned()));
    }
    out.extend(ALSO_WANTED.iter().filter(|n| table.has(n)).map(|n| (*n).to_owned()));
    out.sort();
    out.dedup();
    out
}
