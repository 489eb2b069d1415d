//! What the workload asks of a connection.

use super::mix::Argv;

/// One unit of work.
#[derive(Clone, Debug)]
pub enum Step {
    One(Argv),
    /// MULTI, the commands, EXEC or DISCARD; with a WATCH before.
    Transaction {
        watch: Option<Vec<u8>>,
        commands: Vec<Argv>,
        discard: bool,
    },
    /// A second connection sends `waiter`, which blocks because `clear` emptied its key, until `wake` arrives.
    Blocking {
        clear: Argv,
        waiter: Argv,
        wake: Box<Step>,
    },
}
