//! Runs steps on a connection, a second one standing by for commands that block.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use super::coverage::Coverage;
use super::mix::{argv, Argv};
use super::reply::{Conn, Reply};
use super::step::Step;
use super::table::CommandTable;
use super::Workload;

pub struct Driver {
    workload: Workload,
    conn: Conn,
    waiter: Conn,
    waiter_db: u64,
    coverage: Coverage,
}

impl Driver {
    pub fn open(addr: SocketAddr, seed: u64, table: Arc<CommandTable>) -> io::Result<Driver> {
        Ok(Driver {
            workload: Workload::new(seed, table),
            conn: Conn::open(addr)?,
            waiter: Conn::open(addr)?,
            waiter_db: 0,
            coverage: Coverage::default(),
        })
    }

    pub fn coverage(&self) -> &Coverage {
        &self.coverage
    }

    /// A few steps: single commands are pipelined, up to 16 at once. Returns the number of steps.
    pub fn run_some(&mut self) -> io::Result<u64> {
        let depth = 1 + self.workload.rng().below(16) as usize;
        let mut batch: Vec<Argv> = Vec::new();
        let mut dbs = Vec::new();
        let mut special = None;
        while batch.len() < depth && special.is_none() {
            match self.workload.next() {
                Step::One(argv) => {
                    batch.push(argv);
                    dbs.push(self.workload.db());
                }
                step => special = Some(step),
            }
        }
        let steps = batch.len() as u64 + u64::from(special.is_some());
        let replies = self.conn.pipeline(&batch)?;
        for ((argv, reply), db) in batch.iter().zip(&replies).zip(dbs) {
            self.workload.learn(db, argv, reply);
            self.coverage.note(argv, reply);
        }
        if let Some(step) = special {
            self.run(step)?;
        }
        Ok(steps)
    }

    pub fn run(&mut self, step: Step) -> io::Result<()> {
        match step {
            Step::One(argv) => {
                let reply = self.conn.try_call(&argv)?;
                self.note(&argv, &reply);
            }
            Step::Transaction { watch, commands, discard } => self.transaction(watch, commands, discard)?,
            Step::Blocking { clear, waiter, wake } => {
                let reply = self.conn.try_call(&clear)?;
                self.note(&clear, &reply);
                let db = self.workload.db();
                if self.waiter_db != db {
                    self.waiter.try_call(&argv!["SELECT", db])?;
                    self.waiter_db = db;
                }
                self.waiter.push(&waiter);
                self.waiter.flush()?;
                // A round trip gives the server time to block the other connection.
                self.conn.try_call(&argv!["PING"])?;
                self.run(*wake)?;
                let reply = self.waiter.read()?;
                self.note(&waiter, &reply);
            }
        }
        Ok(())
    }

    fn transaction(&mut self, watch: Option<Vec<u8>>, commands: Vec<Argv>, discard: bool) -> io::Result<()> {
        let mut batch: Vec<Argv> = watch.into_iter().map(|key| argv!["WATCH", key]).collect();
        let before = batch.len() + 1;
        batch.push(argv!["MULTI"]);
        batch.extend(commands.iter().cloned());
        batch.push(if discard { argv!["DISCARD"] } else { argv!["EXEC"] });
        let replies = self.conn.pipeline(&batch)?;
        self.coverage.note_name("multi", &replies[before - 1]);
        let end = replies.last().cloned().unwrap_or(Reply::Nil);
        self.coverage.note(&batch[batch.len() - 1], &end);
        let queued = replies[before..].iter().filter(|r| r.error().is_none());
        if end.items().len() == commands.len() && queued.count() == commands.len() + 1 {
            for (argv, reply) in commands.iter().zip(end.items()) {
                self.note(argv, reply);
            }
        }
        Ok(())
    }

    fn note(&mut self, argv: &Argv, reply: &Reply) {
        self.workload.learn(self.workload.db(), argv, reply);
        self.coverage.note(argv, reply);
    }
}
