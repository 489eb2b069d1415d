//! Makes entries of a replication stream.
//!
//! An entry's payload is the verbatim run of the stream's bytes, so the entries of a stream are contiguous. A
//! *unit* is one op, or one transaction from MULTI to EXEC: units are never split. An entry holds as many
//! units as fit [`MAX_ENTRY_BYTES`] and [`MAX_ENTRY_OPS`], or a single one that is larger.

use oplog_format::entry::MAX_PAYLOAD;
use oplog_format::{encode_entry, EntryMeta, FormatError, OpId};

use super::scanner::{OpCursor, OpKind};

/// Payload bytes up to which units share an entry.
pub const MAX_ENTRY_BYTES: usize = 36 * 1024;
/// Ops up to which units share an entry.
pub const MAX_ENTRY_OPS: u32 = 256;
/// Capacity that the carry buffer keeps; what a large unit needed beyond is given back.
const KEEP_CAPACITY: usize = 1024 * 1024;
/// Bytes that are taken over at a time to finish an op that began in an earlier read.
const CARRY_STEP: usize = 4096;

/// What one feed brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FeedOutcome {
    /// Entries appended.
    pub entries: u32,
    /// Ops in them.
    pub ops: u64,
    /// Whether a `REPLCONF GETACK` was among the bytes.
    pub getack: bool,
}

/// Takes the bytes of a stream in pieces of any size and appends whole entries.
#[derive(Debug)]
pub struct EntryBuilder {
    service_id: u8,
    /// Op id of the last byte that was put into an entry.
    last_op: OpId,
    /// Start of the open unit, kept from earlier feeds.
    carry: Vec<u8>,
    /// Where within `carry` the op begins that is not whole; its length where all are.
    op_start: usize,
    /// How far that op was scanned.
    cursor: OpCursor,
    db: u32,
    in_transaction: bool,
    /// Ops of the open unit, and the database in which its first runs.
    unit_ops: u32,
    unit_db: u32,
    broken: Option<FormatError>,
}

/// The entry that is being filled within one feed.
struct Open {
    start: usize,
    end: usize,
    ops: u32,
    db: u32,
}

impl EntryBuilder {
    /// Begins behind the op id `base`, in database `db`, for ops born on instance `service_id`.
    #[must_use]
    pub fn new(base: OpId, db: u32, service_id: u8) -> Self {
        Self {
            service_id,
            last_op: base,
            carry: Vec::new(),
            op_start: 0,
            cursor: OpCursor::default(),
            db,
            in_transaction: false,
            unit_ops: 0,
            unit_db: db,
            broken: None,
        }
    }

    /// Op id of the last byte that is in an entry.
    #[must_use]
    pub fn last_op(&self) -> OpId {
        self.last_op
    }

    /// Op id of the last byte fed.
    #[must_use]
    pub fn fed(&self) -> OpId {
        self.last_op + self.carry.len() as u64
    }

    /// Database in which the op behind [`Self::last_op`] runs.
    #[must_use]
    pub fn next_db(&self) -> u32 {
        self.unit_db
    }

    /// Bytes that wait for the rest of their unit.
    #[must_use]
    pub fn carried(&self) -> usize {
        self.carry.len()
    }

    /// Bytes of memory that the builder holds.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.carry.capacity()
    }

    /// Takes the next bytes of the stream and appends the frame of every entry that they complete to `out`.
    /// Nothing is held back but the start of a unit whose end is not there.
    ///
    /// # Errors
    /// [`FormatError`] where the bytes are no ops (an offset counts from the op id behind the last entry), or
    /// a unit grows beyond the longest payload. `out` then holds whole entries only, and every later feed
    /// returns the same error.
    pub fn feed(
        &mut self,
        bytes: &[u8],
        time_ms: u64,
        out: &mut Vec<u8>,
    ) -> Result<FeedOutcome, FormatError> {
        if let Some(e) = &self.broken {
            return Err(e.clone());
        }
        let mut outcome = FeedOutcome::default();
        self.feed_inner(bytes, time_ms, out, &mut outcome).inspect_err(|e| self.broken = Some(e.clone()))?;
        Ok(outcome)
    }

    fn feed_inner(
        &mut self,
        bytes: &[u8],
        time_ms: u64,
        out: &mut Vec<u8>,
        outcome: &mut FeedOutcome,
    ) -> Result<(), FormatError> {
        let Some(mut pos) = self.finish_carried_op(bytes, outcome)? else {
            return Ok(());
        };
        if !self.carry.is_empty() && !self.in_transaction {
            self.emit_carry(time_ms, out, outcome)?;
        }
        // From here on `pos` is an op boundary. `unit` is where the open unit begins in `bytes`, or its part
        // that is not in `carry`.
        let mut unit = pos;
        let mut open = Open { start: pos, end: pos, ops: 0, db: self.unit_db };
        loop {
            let rest = bytes.get(pos..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            let mut cursor = OpCursor::default();
            let step =
                cursor.advance(rest).and_then(|len| len.map(|l| Ok((l, cursor.kind(rest)?))).transpose());
            let (len, kind) = match step {
                Ok(Some(step)) => step,
                Ok(None) => {
                    self.cursor = cursor;
                    break;
                }
                Err(e) => {
                    self.emit(&mut open, bytes, time_ms, out, outcome)?;
                    return Err(at(e, self.carry.len() + (pos - unit)));
                }
            };
            pos += len;
            self.pass(kind, outcome);
            if self.in_transaction {
                continue;
            }
            if self.carry.is_empty() {
                self.close_unit(&mut open, unit, pos, bytes, time_ms, out, outcome)?;
            } else {
                self.carry_over(bytes.get(unit..pos).unwrap_or_default())?;
                self.emit_carry(time_ms, out, outcome)?;
                open = Open { start: pos, end: pos, ops: 0, db: self.unit_db };
            }
            unit = pos;
        }
        self.emit(&mut open, bytes, time_ms, out, outcome)?;
        self.carry_over(bytes.get(unit..).unwrap_or_default())?;
        self.op_start = self.carry.len() - (bytes.len() - pos);
        Ok(())
    }

    /// Takes as many of `bytes` as the op needs that began in an earlier feed. Returns how many, or `None`
    /// where they do not complete it.
    fn finish_carried_op(
        &mut self,
        bytes: &[u8],
        outcome: &mut FeedOutcome,
    ) -> Result<Option<usize>, FormatError> {
        if self.op_start == self.carry.len() {
            return Ok(Some(0));
        }
        let mut taken = 0;
        loop {
            let have = self.carry.len() - self.op_start;
            let want = self.cursor.needed().saturating_sub(have).max(CARRY_STEP);
            let rest = bytes.get(taken..).unwrap_or_default();
            let part = rest.get(..want).unwrap_or(rest);
            if part.is_empty() {
                return Ok(None);
            }
            self.carry_over(part)?;
            taken += part.len();
            let op = self.carry.get(self.op_start..).unwrap_or_default();
            let Some(len) = self.cursor.advance(op).map_err(|e| at(e, self.op_start))? else {
                continue;
            };
            let kind = self.cursor.kind(op).map_err(|e| at(e, self.op_start))?;
            // What was taken beyond the op's end goes back.
            let excess = op.len() - len;
            self.carry.truncate(self.carry.len() - excess);
            self.op_start = self.carry.len();
            self.cursor = OpCursor::default();
            self.pass(kind, outcome);
            return Ok(Some(taken - excess));
        }
    }

    /// Accounts for one whole op.
    #[inline]
    fn pass(&mut self, kind: OpKind, outcome: &mut FeedOutcome) {
        self.unit_ops = self.unit_ops.saturating_add(1);
        match kind {
            OpKind::Other => {}
            OpKind::Select(db) => self.db = db,
            // A replica ignores a MULTI within a transaction and an EXEC without one.
            OpKind::Multi => self.in_transaction = true,
            OpKind::Exec => self.in_transaction = false,
            OpKind::GetAck => outcome.getack = true,
        }
    }

    /// Adds the unit `bytes[unit..pos]` to the open entry, or emits that first where both do not fit one.
    #[allow(clippy::too_many_arguments)] // The state of one feed; a struct around it would only be named once.
    #[inline]
    fn close_unit(
        &mut self,
        open: &mut Open,
        unit: usize,
        pos: usize,
        bytes: &[u8],
        time_ms: u64,
        out: &mut Vec<u8>,
        outcome: &mut FeedOutcome,
    ) -> Result<(), FormatError> {
        let ops = open.ops.saturating_add(self.unit_ops);
        if open.ops > 0 && (pos - open.start > MAX_ENTRY_BYTES || ops > MAX_ENTRY_OPS) {
            self.emit(open, bytes, time_ms, out, outcome)?;
            *open = Open { start: unit, end: pos, ops: self.unit_ops, db: self.unit_db };
        } else {
            open.end = pos;
            open.ops = ops;
        }
        self.unit_ops = 0;
        self.unit_db = self.db;
        Ok(())
    }

    fn emit(
        &mut self,
        open: &mut Open,
        bytes: &[u8],
        time_ms: u64,
        out: &mut Vec<u8>,
        outcome: &mut FeedOutcome,
    ) -> Result<(), FormatError> {
        if open.ops == 0 {
            return Ok(());
        }
        let payload = bytes.get(open.start..open.end).unwrap_or_default();
        self.encode(payload.len(), open.ops, open.db, time_ms, outcome, |meta| {
            encode_entry(meta, payload, out)
        })?;
        open.start = open.end;
        open.ops = 0;
        Ok(())
    }

    fn emit_carry(
        &mut self,
        time_ms: u64,
        out: &mut Vec<u8>,
        outcome: &mut FeedOutcome,
    ) -> Result<(), FormatError> {
        let carry = std::mem::take(&mut self.carry);
        let (ops, db) = (self.unit_ops, self.unit_db);
        self.encode(carry.len(), ops, db, time_ms, outcome, |meta| encode_entry(meta, &carry, out))?;
        self.unit_ops = 0;
        self.unit_db = self.db;
        self.op_start = 0;
        if carry.capacity() <= KEEP_CAPACITY {
            self.carry = carry;
            self.carry.clear();
        }
        Ok(())
    }

    fn encode(
        &mut self,
        len: usize,
        ops: u32,
        db: u32,
        time_ms: u64,
        outcome: &mut FeedOutcome,
        encode: impl FnOnce(&EntryMeta) -> Result<(), FormatError>,
    ) -> Result<(), FormatError> {
        let last_op = self.last_op + len as u64;
        encode(&EntryMeta { last_op, time_ms, db, op_count: ops, service_id: self.service_id, flags: 0 })?;
        self.last_op = last_op;
        outcome.entries += 1;
        outcome.ops += u64::from(ops);
        Ok(())
    }

    fn carry_over(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let len = self.carry.len() as u64 + bytes.len() as u64;
        if len > MAX_PAYLOAD {
            return Err(FormatError::Value { field: "length of an op or transaction", got: len });
        }
        self.carry.extend_from_slice(bytes);
        Ok(())
    }
}

/// Moves the offset of an error to where the op stands.
fn at(e: FormatError, start: usize) -> FormatError {
    match e {
        FormatError::Op { offset, reason } => FormatError::Op { offset: offset + start as u64, reason },
        e => e,
    }
}
