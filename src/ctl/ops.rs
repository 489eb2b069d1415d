//! Single ops out of entries, and how they are printed.

use std::io::{self, Write};
use std::path::Path;

use oplog_format::{EntryMeta, OpId, OpWalk};
use serde_json::json;

use super::damage::Damage;
use super::{text, time};

/// One op of an entry.
pub struct Op<'a> {
    /// Its id: the position of its last byte.
    pub id: OpId,
    /// Database that it runs in.
    pub db: u32,
    /// Its arguments.
    pub args: &'a [&'a [u8]],
    /// Time and origin, from the entry.
    pub meta: &'a EntryMeta,
}

impl Op<'_> {
    /// Writes it as one line of text; of a longer argument than `most` bytes its start.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn print(&self, most: usize, out: &mut impl Write) -> io::Result<()> {
        let meta = self.meta;
        write!(out, "{} {} db={} sid={}", self.id, time::format(meta.time_ms), self.db, meta.service_id)?;
        for arg in self.args {
            out.write_all(b" ")?;
            text::quote_up_to(arg, most, out)?;
        }
        out.write_all(b"\n")
    }

    /// Writes it as one line of JSON.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn print_json(&self, out: &mut impl Write) -> io::Result<()> {
        let args: Vec<_> = self.args.iter().map(|a| text::json(a)).collect();
        let line = json!({
            "op": self.id,
            "time": time::format(self.meta.time_ms),
            "time_ms": self.meta.time_ms,
            "db": self.db,
            "service_id": self.meta.service_id,
            "args": args,
        });
        writeln!(out, "{line}")
    }
}

/// Why a walk over ops ended early.
#[derive(Debug)]
pub enum OpsEnd {
    /// The payload is not whole ops.
    Damaged(Damage),
    /// The receiver failed.
    Io(io::Error),
}

/// Hands each op of an entry to `each`. `offset` is where the payload stands in `file`.
///
/// # Errors
/// [`OpsEnd`]: where the payload is not made of whole ops and transactions, or `each` fails.
pub fn for_each(
    file: &Path,
    offset: u64,
    meta: &EntryMeta,
    payload: &[u8],
    mut each: impl FnMut(&Op<'_>) -> io::Result<()>,
) -> Result<(), OpsEnd> {
    let mut walk = OpWalk::new(payload, meta.db);
    let before = meta.last_op.saturating_sub(payload.len() as u64);
    loop {
        let db = walk.db();
        let step = walk.step().map_err(|e| OpsEnd::Damaged(Damage::format(file, offset, &e)))?;
        let Some(args) = step else { break };
        let op = Op { id: before + walk.position() as u64, db, args: &args, meta };
        each(&op).map_err(OpsEnd::Io)?;
    }
    if walk.in_transaction() {
        let end = offset + payload.len() as u64;
        return Err(OpsEnd::Damaged(Damage::new(file, end, "EXEC", "the end of the entry")));
    }
    Ok(())
}
