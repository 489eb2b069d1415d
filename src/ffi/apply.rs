//! DR.APPLY, DR._LOAD and DR._REBASE: what changes the dataset in the module's name.

use std::ffi::c_int;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use oplog_format::{encode_entry, EntryMeta, EntryRef};

use super::api::{bytes, Ctx, RedisModuleString};
use super::internal::{comes_too_late, is_from_master, is_own, is_replayed, refuse, TOO_LATE};
use super::{call, plain_set, shared, stage};
use crate::apply::execute::{apply_entry, ApplyContext, Divergence, Executor};
use crate::apply::handoff::{self, Batch, Prepared};
use crate::apply::ttl::released;
use crate::apply::wire::{self, LoadCommand, LoadKey};
use crate::apply::ServerCaps;
use crate::runtime::gate::GateMode;
use crate::runtime::shared::{Mode, ReplicaEvent, Shared};

/// Runs ops by calling the server's commands.
struct Calls {
    ctx: Ctx,
    flags: &'static str,
    /// Plain SETs go by the key API.
    plain_sets: bool,
    /// Values that were made ready.
    ready: Ready,
}

impl Calls {
    fn new(ctx: Ctx, caps: ServerCaps, flags: &'static str) -> Self {
        Self { ctx, flags, plain_sets: plain_set::allowed(ctx, caps), ready: Ready::of(&[], Vec::new()) }
    }
}

/// Values of an entry that its sender has made ready, found by where they stand.
struct Ready {
    payload: usize,
    values: std::iter::Peekable<std::vec::IntoIter<(usize, Prepared)>>,
}

impl Ready {
    fn of(payload: &[u8], values: Vec<(usize, Prepared)>) -> Self {
        Self { payload: payload.as_ptr().addr(), values: values.into_iter().peekable() }
    }

    /// The one that is a copy of `value`, a part of the payload. They are asked for in order.
    fn take(&mut self, value: &[u8]) -> Option<Prepared> {
        let at = value.as_ptr().addr().checked_sub(self.payload)?;
        while self.values.next_if(|(of, _)| *of < at).is_some() {}
        self.values.next_if(|(of, _)| *of == at).map(|(_, ready)| ready)
    }
}

impl Executor for Calls {
    fn select(&mut self, db: u32) -> Result<(), String> {
        if self.ctx.select(db) {
            return Ok(());
        }
        Err(format!("database {db} does not exist: this server's 'databases' is lower than the source's"))
    }

    fn call(&mut self, argv: &[&[u8]]) -> Result<(), String> {
        let Some(reply) = call::call(self.ctx, argv, self.flags) else {
            return Err(match std::io::Error::last_os_error().raw_os_error() {
                Some(libc::ENOENT) => "unknown command".to_owned(),
                Some(libc::EINVAL) => "wrong number of arguments".to_owned(),
                Some(libc::EPERM) => "key is in another slot or node".to_owned(),
                _ => "the server did not run it".to_owned(),
            });
        };
        if reply.is_error() {
            return Err(String::from_utf8_lossy(reply.bytes()).into_owned());
        }
        Ok(())
    }

    fn set(&mut self, name: &[u8], key: &[u8], value: &[u8]) -> Result<(), String> {
        if self.plain_sets && plain_set::set(self.ctx, key, value, self.ready.take(value), None) {
            return Ok(());
        }
        self.call(&[name, key, value])
    }

    fn set_until(&mut self, argv: &[&[u8]; 5]) -> Result<(), String> {
        let [_, key, value, _, ms] = argv;
        // One that is not held may be over, which the command looks at.
        let held =
            std::str::from_utf8(ms).ok().and_then(|ms| ms.parse().ok()).filter(|ms| released(*ms).is_some());
        if self.plain_sets
            && held.is_some()
            && plain_set::set(self.ctx, key, value, self.ready.take(value), held)
        {
            return Ok(());
        }
        self.call(argv)
    }
}

/// Restores the caller's database when dropped.
struct Caller {
    ctx: Ctx,
    db: u32,
}

impl Caller {
    fn of(ctx: Ctx) -> Self {
        Self { ctx, db: ctx.selected() }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.ctx.select(self.db);
    }
}

/// DR.APPLY first_op frame: one entry, exactly once, atomic with the position.
pub fn apply(ctx: Ctx, args: &[&[u8]]) -> c_int {
    if !is_own(ctx) {
        return refuse(ctx);
    }
    let Some(shared) = shared() else { return refuse(ctx) };
    if comes_too_late(ctx) {
        return ctx.reply_error(TOO_LATE);
    }
    match *args {
        [name, first, b"REF", token] => apply_in_memory(ctx, shared, [name, first, token]),
        _ => apply_entry_of(ctx, shared, args, None),
    }
}

/// DR.APPLY first_op REF token: an entry that the feed has left in memory.
fn apply_in_memory(ctx: Ctx, shared: &Arc<Shared>, [name, first, token]: [&[u8]; 3]) -> c_int {
    let number = |text: &[u8]| std::str::from_utf8(text).ok().and_then(|t| t.parse::<u64>().ok());
    let (Some(first_op), Some(token)) = (number(first), number(token)) else {
        return ctx.reply_error("ERR DR.APPLY first_op REF token");
    };
    // What a master or an AOF has sent names nothing in this process.
    if is_replayed(ctx) {
        return refuse(ctx);
    }
    // It stays where it is unless it is to run.
    let applied = shared.applied.load(Ordering::Acquire);
    if !shared.applied_known.load(Ordering::Acquire) || first_op != applied + 1 {
        return refuse_position(ctx, shared);
    }
    let Some(Batch::Entry(batch)) = handoff::take(token) else {
        return ctx.reply_error(&format!("ERR there is no entry {token} in memory"));
    };
    let frame = batch.frame.ptr().cast();
    apply_entry_of(ctx, shared, &[name, first, bytes(frame)], Some(InMemory { values: batch.values, frame }))
}

/// An entry in memory, besides its bytes.
struct InMemory {
    values: Vec<(usize, Prepared)>,
    frame: *mut RedisModuleString,
}

fn refuse_position(ctx: Ctx, shared: &Shared) -> c_int {
    let known = shared.applied_known.load(Ordering::Acquire);
    let applied = shared.applied.load(Ordering::Acquire);
    let at = if known { applied.to_string() } else { "unknown".to_owned() };
    ctx.reply_error(&format!("DRPOSITION {at}"))
}

fn apply_entry_of(ctx: Ctx, shared: &Arc<Shared>, args: &[&[u8]], in_memory: Option<InMemory>) -> c_int {
    let entry = match wire::decode_apply(args) {
        Ok(entry) => entry,
        Err(e) => return ctx.reply_error(&format!("ERR {e}")),
    };
    let applied = shared.applied.load(Ordering::Acquire);
    let known = shared.applied_known.load(Ordering::Acquire);
    if !known || entry.header.first_op() != applied + 1 {
        if is_replayed(ctx) {
            lost_step(shared, &entry, known.then_some(applied));
        }
        return refuse_position(ctx, shared);
    }
    let _caller = Caller::of(ctx);
    let context = ApplyContext { caps: shared.caps(), hold: shared.hold.load(Ordering::Acquire) };
    let mut exec = Calls::new(ctx, context.caps, "");
    let (values, frame) = in_memory.map(|m| (m.values, m.frame)).unzip();
    exec.ready = Ready::of(entry.payload, values.unwrap_or_default());
    match apply_entry(&entry, &mut exec, &context) {
        Ok(_) => {
            shared.applied.store(entry.header.meta.last_op, Ordering::Release);
            match frame {
                Some(frame) => {
                    let first = entry.header.first_op().to_string();
                    ctx.replicate_before("DR.APPLY", &[first.as_bytes()], frame)
                }
                None => ctx.replicate_verbatim(),
            };
            hand_to_log(ctx, shared, || ReplicaEvent::Frame(entry.frame.to_vec()));
            ctx.reply_simple("OK")
        }
        Err(divergence) => diverged(ctx, shared, &entry, &divergence),
    }
}

/// A replica or an AOF that does not continue where the position is: the node's own log cannot follow.
fn lost_step(shared: &Shared, entry: &EntryRef<'_>, applied: Option<u64>) {
    let first = entry.header.first_op();
    if applied.is_some_and(|a| entry.header.meta.last_op <= a) {
        return;
    }
    log::error!(
        "op {first} arrived by replication, the dataset is at {applied:?}: this node needs a new copy"
    );
    shared.applied_known.store(false, Ordering::Release);
}

/// On a replica nobody else writes the entry to the node's own log. An AOF that is loaded has nothing to add to it: it
/// was in the log first, and a copy that it holds would end what the log has beyond.
fn hand_to_log(ctx: Ctx, shared: &Shared, event: impl FnOnce() -> ReplicaEvent) {
    if !is_from_master(ctx) {
        return;
    }
    if shared.replica_events.try_send(event()).is_err() {
        shared.replica_events_lost.store(true, Ordering::Release);
    }
}

/// Stops at an op that cannot be applied: what came before it in the entry stays, with a position that says so.
fn diverged(ctx: Ctx, shared: &Arc<Shared>, entry: &EntryRef<'_>, d: &Divergence) -> c_int {
    let text = format!("op {} ({}) failed here and not at the source: {}", d.op_id, d.command, d.error);
    log::error!("stopped applying: {text}");
    shared.diverged.store(Some(Arc::new(text.clone())));
    let prefix = entry.payload.get(..d.prefix_len).unwrap_or_default();
    if !prefix.is_empty() {
        let first = entry.header.first_op();
        let last_op = first + prefix.len() as u64 - 1;
        let mut frame = Vec::new();
        if encode_entry(&EntryMeta { last_op, ..entry.header.meta }, prefix, &mut frame).is_ok() {
            ctx.replicate("DR.APPLY", &[first.to_string().as_bytes(), &frame]);
        }
        shared.applied.store(last_op, Ordering::Release);
    }
    if d.beyond {
        // Part of a transaction has run. Going on from the position would run it again.
        shared.applied_known.store(false, Ordering::Release);
    }
    ctx.reply_error(&format!("DIVERGED {text}"))
}

/// DR._LOAD: a step of the loading of a snapshot.
pub fn load(ctx: Ctx, args: &[&[u8]]) -> c_int {
    if !is_own(ctx) {
        return refuse(ctx);
    }
    let Some(shared) = shared() else { return refuse(ctx) };
    if comes_too_late(ctx) {
        return ctx.reply_error(TOO_LATE);
    }
    let command = match wire::decode_load(args) {
        Ok(command) => command,
        Err(e) => return ctx.reply_error(&format!("ERR {e}")),
    };
    if command == LoadCommand::Ready {
        return ctx.reply_int(stage::is_ready().into());
    }
    let _caller = Caller::of(ctx);
    let mut exec = Calls::new(ctx, shared.caps(), "!");
    match run_load(ctx, shared, &mut exec, command) {
        Ok(()) => ctx.reply_simple("OK"),
        Err(e) => ctx.reply_error(&format!("ERR loading the snapshot: {e}")),
    }
}

/// Restores a value and deletes it in the same step. Nothing is replicated.
fn try_restore(ctx: Ctx, payload: &[u8]) -> Result<(), String> {
    const KEY: &[u8] = b"redisdr:can this value be restored?";
    // No reply at all (a node of a cluster that does not serve the slot) says nothing about the value.
    let Some(reply) = call::call(ctx, &[b"RESTORE", KEY, b"0", payload], "") else { return Ok(()) };
    if reply.is_error() {
        return Err(String::from_utf8_lossy(reply.bytes()).into_owned());
    }
    call::call(ctx, &[b"DEL", KEY], "");
    Ok(())
}

/// Restores keys; for each, in order, its value may have been made ready. Nothing is replicated.
fn load_keys(
    exec: &mut Calls,
    db: u32,
    keys: &[LoadKey<'_>],
    values: Vec<Option<Prepared>>,
) -> Result<(), String> {
    exec.select(db)?;
    // As one command, as entries are, and not each key by itself.
    exec.flags = "";
    let mut values = values.into_iter();
    keys.iter().try_for_each(|k| {
        let ready = values.next().flatten();
        if exec.plain_sets && plain_set::restore(exec.ctx, k, ready) {
            return Ok(());
        }
        let ttl = k.expire_ms.max(0).to_string();
        let restore: [&[u8]; 5] = [b"RESTORE", k.key, ttl.as_bytes(), k.payload, b"REPLACE"];
        let with_ttl: [&[u8]; 6] = [b"RESTORE", k.key, ttl.as_bytes(), k.payload, b"REPLACE", b"ABSTTL"];
        let done = if k.expire_ms < 0 { exec.call(&restore) } else { exec.call(&with_ttl) };
        done.map_err(|e| format!("key {}: {e}", String::from_utf8_lossy(k.key)))
    })
}

fn run_load(
    ctx: Ctx,
    shared: &Arc<Shared>,
    exec: &mut Calls,
    command: LoadCommand<'_>,
) -> Result<(), String> {
    match command {
        LoadCommand::Try { payload } => try_restore(ctx, payload),
        LoadCommand::Begin => {
            shared.loading_data.store(true, Ordering::Release);
            shared.applied_known.store(false, Ordering::Release);
            stage::clear();
            ctx.replicate_verbatim();
            if is_replayed(ctx) {
                return Ok(());
            }
            exec.call(&[b"FLUSHALL", b"ASYNC"])
        }
        LoadCommand::Drop => {
            stage::clear();
            shared.loading_data.store(false, Ordering::Release);
            ctx.replicate_verbatim();
            if is_replayed(ctx) {
                return Ok(());
            }
            exec.call(&[b"FLUSHALL", b"ASYNC"])
        }
        LoadCommand::Keys { db, keys } => {
            load_keys(exec, db, &keys, Vec::new())?;
            ctx.replicate_verbatim();
            Ok(())
        }
        LoadCommand::Ref { token } => {
            // What a master or an AOF has sent names nothing in this process.
            let batch = if is_replayed(ctx) { None } else { handoff::take(token) };
            let Some(Batch::Keys(batch)) = batch else { return Err(format!("there is no batch {token}")) };
            let packed = batch.packed.ptr().cast();
            load_keys(exec, batch.db, &wire::unpack_keys(bytes(packed))?, batch.values)?;
            ctx.replicate_before("DR._LOAD", &[b"PACK", batch.db.to_string().as_bytes()], packed);
            Ok(())
        }
        LoadCommand::Command { db, argv } => {
            exec.select(db)?;
            exec.call(&argv)
        }
        LoadCommand::Commands { db, all } => {
            exec.select(db)?;
            all.iter().try_for_each(|argv| exec.call(argv))
        }
        LoadCommand::Part { total, at, bytes } => {
            stage::part(total, at, bytes)?;
            ctx.replicate_verbatim();
            Ok(())
        }
        LoadCommand::Ready => Ok(()),
        LoadCommand::Text { db, key, total } => {
            exec.select(db)?;
            stage::set(ctx, shared, key, stage::take(total)?)?;
            ctx.replicate_verbatim();
            Ok(())
        }
        LoadCommand::End { op_id, lineage } => {
            shared.applied.store(op_id, Ordering::Release);
            shared.applied_known.store(true, Ordering::Release);
            shared.loading_data.store(false, Ordering::Release);
            shared.set_ident(|i| {
                i.lineage = lineage.clone();
                i.held = true;
                i.mode = if is_from_master(ctx) { Mode::TargetReplica } else { Mode::Target };
            });
            // Replicas that were there before the link learn of it here.
            shared.hold.store(true, Ordering::Release);
            if is_from_master(ctx) {
                shared.gate.set(GateMode::TrueTtls, "");
            }
            hand_to_log(ctx, shared, || ReplicaEvent::Reset { op_id, lineage });
            ctx.replicate_verbatim();
            Ok(())
        }
        LoadCommand::History { history, first_op } => {
            shared.set_ident(|i| i.lineage.open(history, first_op));
            hand_to_log(ctx, shared, || ReplicaEvent::History { history, first_op });
            ctx.replicate_verbatim();
            Ok(())
        }
    }
}
