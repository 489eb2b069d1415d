//! A random workload over every write command that a server has.
//!
//! [`Workload`] makes the steps, [`Driver`] runs them on a connection and counts what had effect, [`Fleet`] runs several
//! drivers at once with points at which all stand still, and [`compare`] reads two servers key by key.

// Each test uses a part of this.
#![allow(dead_code, unused_imports)]

pub mod catalogue;
mod collections;
pub mod compare;
pub mod coverage;
pub mod driver;
pub mod fleet;
mod generic;
mod hashes;
pub mod mix;
pub mod reply;
mod rng;
mod scripts;
mod sorted;
mod sound;
pub mod step;
mod streams;
mod strings;
pub mod table;

use std::sync::Arc;

pub use coverage::Coverage;
pub use driver::Driver;
pub use fleet::Fleet;
pub use reply::{Conn, Reply};
pub use rng::Rng;
pub use table::CommandTable;

use catalogue::{usable, Make, CATALOGUE};
use mix::{kind_of, Delivery, Dumped, Mix};
use step::Step;

/// An endless sequence of steps, the same for the same seed and replies.
pub struct Workload {
    mix: Mix,
    /// Catalogue entries, repeated by weight.
    choices: Vec<usize>,
}

impl Workload {
    pub fn new(seed: u64, table: Arc<CommandTable>) -> Workload {
        let mut mix = Mix::new(seed, table.caps);
        let mut choices = Vec::new();
        for (n, entry) in CATALOGUE.iter().enumerate().filter(|(_, e)| usable(e, &table)) {
            choices.extend(std::iter::repeat_n(n, entry.weight as usize));
            // SELECT has its own place in transactions, so that the database after EXEC is known.
            if matches!(entry.make, Make::Command(_)) && entry.name != "select" {
                mix.single.extend(std::iter::repeat_n(n, entry.weight as usize));
            }
        }
        Workload { mix, choices }
    }

    /// The database that the connection has selected.
    pub fn db(&self) -> u64 {
        self.mix.db
    }

    pub fn rng(&mut self) -> &mut Rng {
        &mut self.mix.rng
    }

    pub fn next(&mut self) -> Step {
        let entry = &CATALOGUE[*self.mix.rng.pick(&self.choices)];
        match entry.make {
            Make::Step(make) => make(&mut self.mix),
            Make::Command(make) => {
                let argv = make(&mut self.mix);
                if entry.name == "select" {
                    self.mix.db = String::from_utf8_lossy(&argv[1]).parse().unwrap();
                }
                Step::One(argv)
            }
        }
    }

    /// Takes from a reply, to a command that ran in `db`, what later commands need: entry ids, payloads, digests.
    pub fn learn(&mut self, db: u64, argv: &[Vec<u8>], reply: &Reply) {
        match (CommandTable::name_of(argv).as_str(), reply) {
            ("xadd", Reply::Bulk(id)) => self.mix.learn_id(&argv[1], id),
            ("xreadgroup", Reply::Array(streams)) => {
                for stream in streams {
                    let key = stream.items()[0].bytes();
                    for entry in stream.items()[1].items() {
                        let id = entry.items()[0].bytes().to_vec();
                        self.mix.learn_id(key, &id);
                        let (key, group) = (key.to_vec(), argv[2].clone());
                        self.mix.learn_delivery(Delivery { db, key, group, id });
                    }
                }
            }
            ("dump", Reply::Bulk(payload)) if payload.len() < 100_000 => {
                if let Some(kind) = kind_of(&argv[1]) {
                    if self.mix.dumps.len() >= 8 {
                        self.mix.dumps.pop_front();
                    }
                    self.mix.dumps.push_back(Dumped { kind, payload: payload.clone() });
                }
            }
            ("function|dump", Reply::Bulk(payload)) => self.mix.function_dump = Some(payload.clone()),
            ("script|load", Reply::Bulk(sha)) => self.mix.script_sha = Some(sha.clone()),
            ("evalsha", Reply::Error(e)) if e.starts_with("NOSCRIPT") => self.mix.script_sha = None,
            _ => {}
        }
    }
}
