//! Attaching to the own server's replication stream, without a fork.
//!
//! A replica gets the stream from its server in one of two ways: behind a snapshot, for which the server forks,
//! or as the continuation of a history at an offset that the server's backlog still holds. The tap wants the
//! second, always:
//!
//! 1. The settings are held ([`super::settings`]), so that nothing that follows makes the server fork.
//! 2. A server without a backlog has no stream. Connection A asks for a full resync and waits for nothing: the
//!    server creates the backlog, and puts the snapshot off.
//! 3. History and offset are read, and connection B asks for the continuation there at once.
//! 4. Where the server does not continue (the load overran the backlog in between), B is closed and 3 repeated.
//! 5. A is closed, and only when the server has let go of both does the hold end.
//!
//! On Redis 6.x a BGSAVE of somebody else's that ends while A waits makes the server start A's snapshot in spite
//! of the settings; the window is a few milliseconds, and the fork costs nothing but itself.

use std::time::{Duration, Instant};

use oplog_format::{parse_op, History, OpScan, OpWalk};

use super::repl_info::{master_db, ReplInfo, Start};
use super::settings::{repair_settings, Dial, Hold, NoJournal, SettingsJournal};
use super::{AttachError, Role};
use crate::local::{Conn, LocalError, Reply, Stream};

/// Listening port that the tap announces. There is no such port: a Sentinel neither lists nor logs a replica
/// with it.
pub const TAP_PORT: u32 = 99_999;
/// The same for the connection that makes the server create its backlog.
const STARTER_PORT: u32 = 99_998;
/// PSYNC as the tap spells it. Servers ignore the case; the command filter tells the tap from replicas by it.
pub const TAP_PSYNC: &[u8] = b"pSYNC";
/// How often a continuation is asked for.
const TRIES: u32 = 20;
/// Deadline of each single step; each is a matter of milliseconds on a server that answers.
const STEP: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(1);
/// Most bytes that are read in search of the stream's database.
const MAX_SEARCH: usize = 64 * 1024 * 1024;

/// Where to continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume {
    /// Replication id of the last byte held.
    pub history: History,
    /// Its offset. It must end an op outside of a transaction.
    pub offset: i64,
    /// Database in which the next op runs.
    pub db: u32,
}

/// What an attach needs.
pub struct AttachRequest<'a> {
    /// The own server.
    pub dial: &'a Dial,
    /// Where to continue; `None` attaches at the newest position.
    pub resume: Option<Resume>,
    /// Keeps the settings that are changed for the moment.
    pub journal: &'a dyn SettingsJournal,
    /// Asked between steps; `true` ends the attach.
    pub cancelled: &'a dyn Fn() -> bool,
    /// Commands that make a master's stream name its database.
    pub force_select: &'a [&'a [&'a [u8]]],
}

impl<'a> AttachRequest<'a> {
    /// Attaches at the newest position of this server.
    #[must_use]
    pub fn new(dial: &'a Dial) -> Self {
        Self {
            dial,
            resume: None,
            journal: &NoJournal,
            cancelled: &|| false,
            force_select: &[&[b"DR._SELECT"]],
        }
    }

    fn go_on(&self) -> Result<(), AttachError> {
        if (self.cancelled)() {
            return Err(AttachError::Cancelled);
        }
        Ok(())
    }
}

/// An attached stream; [`super::Tap`] reads it.
#[derive(Debug)]
pub struct Attached {
    /// The socket.
    pub stream: Stream,
    /// Bytes of the stream that were read already.
    pub leftover: Vec<u8>,
    /// Replication id of the last byte before the stream: the resumed one, or the server's present one.
    pub history: History,
    /// Where that history has ended since: the one that follows, and the offset of the last byte before it.
    pub next_history: Option<(History, i64)>,
    /// Offset of the last byte before the stream.
    pub offset: i64,
    /// Database in which the first op runs.
    pub db: u32,
    /// Whether the stream continues the resumed position.
    pub continued: bool,
    /// Whether a position was to be resumed and could not: bytes are missing in between, or the history is
    /// another one.
    pub gap: bool,
    /// What the server was when it was attached to.
    pub role: Role,
    /// Whether the server's SHUTDOWN waits for its replicas (7.0 on).
    pub shutdown_waits: bool,
    /// The own server.
    pub dial: Dial,
}

/// Attaches to the own server's stream.
///
/// # Errors
/// [`AttachError`]; settings that were changed are put back, and no connection stays.
pub fn attach(req: &AttachRequest<'_>) -> Result<Attached, AttachError> {
    repair_settings(req.dial, req.journal)?;
    let conn = req.dial.open()?;
    let mut hold = Hold::begin(req.dial, conn, req.journal)?;
    // Drop order: on an early return `starter` and the tap's connection inside `held_attach` are let go of
    // before the hold ends.
    let found = held_attach(req, &mut hold);
    let gone = wait_gone(hold.conn());
    let ended = hold.end();
    let found = found?;
    gone?;
    ended?;
    let mut conn = req.dial.open()?;
    finish(req, &mut conn, found)
}

/// What the steps under the hold found.
struct Found {
    stream: Stream,
    leftover: Vec<u8>,
    start: Start,
    next_history: Option<(History, i64)>,
    role: Role,
    db: Option<u32>,
}

fn held_attach(req: &AttachRequest<'_>, hold: &mut Hold<'_>) -> Result<Found, AttachError> {
    let conn = hold.conn();
    let mut starter = None;
    let mut info = repl_info(conn)?;
    if info.backlog.is_none() {
        if info.role == Role::Replica {
            return Err(AttachError::NotNow {
                reason: "a replica that has no link to its master".to_owned(),
            });
        }
        starter = Some(start_backlog(req, conn)?);
    }
    for _ in 0..TRIES {
        req.go_on()?;
        let mut tap = replica_conn(req.dial, TAP_PORT)?;
        // Read with the next connection ready, so that nothing but one message lies between reading and asking.
        let (now, db) = match info.role {
            Role::Master => (repl_info(conn)?, None),
            Role::Replica => info_and_db(conn)?,
        };
        let start = now.start(req.resume.as_ref());
        psync(&mut tap, start.history.as_bytes(), start.offset + 1)?;
        match await_continue(tap, conn)? {
            Some((stream, leftover, history)) => {
                let next_history = match history.filter(|h| *h != start.history) {
                    None => None,
                    Some(h) => Some((h, former_end(conn, start.history, h)?)),
                };
                drop(starter);
                let db = if start.continued { req.resume.map(|r| r.db) } else { db };
                return Ok(Found { stream, leftover, start, next_history, role: now.role, db });
            }
            None => wait_gone(conn)?,
        }
        info = now;
    }
    Err(AttachError::NoPartialResync { tries: TRIES, backlog_size: info.backlog_size })
}

/// Offset of the last byte of `former`, which the server's present history `present` follows.
fn former_end(conn: &mut Conn, former: History, present: History) -> Result<i64, AttachError> {
    let info = repl_info(conn)?;
    match info.former {
        Some((id, first)) if id == former && info.history == present => Ok(first - 1),
        _ => Err(AttachError::NotNow { reason: "its history changes just now".to_owned() }),
    }
}

/// Makes the server create its backlog. The connection has to stay until the tap is attached.
fn start_backlog(req: &AttachRequest<'_>, conn: &mut Conn) -> Result<Conn, AttachError> {
    let mut starter = replica_conn(req.dial, STARTER_PORT)?;
    psync(&mut starter, b"?", -1)?;
    let deadline = Instant::now() + STEP;
    while repl_info(conn)?.backlog.is_none() {
        req.go_on()?;
        if let Some(error) = early_error(&mut starter)? {
            return Err(AttachError::of_reply("PSYNC", error));
        }
        past(deadline, "the server creates no replication backlog")?;
        std::thread::sleep(POLL);
    }
    Ok(starter)
}

/// An error reply that has already come.
fn early_error(conn: &mut Conn) -> Result<Option<String>, AttachError> {
    conn.stream().set_read_timeout(Some(POLL)).map_err(LocalError::from)?;
    match conn.read_reply() {
        Ok(Reply::Error(e)) => Ok(Some(e)),
        Ok(_) => Ok(None),
        Err(e) if is_timeout(&e) => Ok(None),
        // Newlines of a server that keeps a waiting replica alive.
        Err(LocalError::Protocol(_)) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// A connection that has introduced itself as a replica.
fn replica_conn(dial: &Dial, port: u32) -> Result<Conn, AttachError> {
    let mut conn = dial.open()?;
    let port = port.to_string();
    let args: [&[u8]; 7] =
        [b"REPLCONF", b"listening-port", port.as_bytes(), b"capa", b"eof", b"capa", b"psync2"];
    match conn.call_raw(&args)? {
        Reply::Error(e) => Err(AttachError::of_reply("REPLCONF", e)),
        _ => Ok(conn),
    }
}

fn psync(conn: &mut Conn, id: &[u8], offset: i64) -> Result<(), AttachError> {
    conn.push(&[TAP_PSYNC, id, offset.to_string().as_bytes()]);
    Ok(conn.flush()?)
}

type Continued = (Stream, Vec<u8>, Option<History>);

/// Waits for the answer to PSYNC. `None`: the server wants to give a full resync, which it tells at once or
/// (while it puts it off) not at all; the connection is closed then.
fn await_continue(tap: Conn, conn: &mut Conn) -> Result<Option<Continued>, AttachError> {
    let (mut stream, mut input) = tap.into_stream();
    let deadline = Instant::now() + STEP;
    let mut timeout = Duration::from_millis(20);
    loop {
        stream.set_read_timeout(Some(timeout)).map_err(LocalError::from)?;
        match read_some(&mut stream, &mut input) {
            Ok(()) => {}
            Err(e) if is_timeout(&e) => {
                if repl_info(conn)?.waits(TAP_PORT) {
                    return Ok(None);
                }
                past(deadline, "the server does not answer PSYNC")?;
                timeout = (timeout * 2).min(Duration::from_secs(1));
            }
            Err(e) => return Err(e.into()),
        }
        // Newlines keep replicas alive that wait.
        let blank = input.iter().take_while(|b| **b == b'\n').count();
        input.drain(..blank);
        let Some(end) = input.windows(2).position(|w| w == b"\r\n") else {
            if input.len() > 1024 {
                return Err(LocalError::Protocol("the answer to PSYNC is no line").into());
            }
            continue;
        };
        let line = String::from_utf8_lossy(input.get(..end).unwrap_or_default()).into_owned();
        input.drain(..end + 2);
        if line.starts_with("+FULLRESYNC") {
            return Ok(None);
        }
        if let Some(error) = line.strip_prefix('-') {
            return Err(AttachError::of_reply("PSYNC", error.to_owned()));
        }
        let Some(rest) = line.strip_prefix("+CONTINUE") else {
            return Err(LocalError::Protocol("the answer to PSYNC is neither CONTINUE nor FULLRESYNC").into());
        };
        let history = History::from_bytes(rest.trim().as_bytes()).ok();
        return Ok(Some((stream, input, history)));
    }
}

/// Waits until the server has let go of the module's connections that asked for a snapshot and were closed.
fn wait_gone(conn: &mut Conn) -> Result<(), AttachError> {
    let deadline = Instant::now() + STEP;
    loop {
        let info = repl_info(conn)?;
        if !info.waits(STARTER_PORT) && !info.waits(TAP_PORT) {
            return Ok(());
        }
        past(deadline, "the server does not let go of a closed connection")?;
        std::thread::sleep(POLL);
    }
}

/// The state of replication.
fn repl_info(conn: &mut Conn) -> Result<ReplInfo, AttachError> {
    match conn.call_raw(&[b"INFO", b"replication"])? {
        Reply::Error(e) => Err(AttachError::of_reply("INFO", e)),
        reply => ReplInfo::parse(&reply.text().unwrap_or_default()),
    }
}

/// The state of replication of a replica and the database of its master's stream, read as one. Not for masters:
/// Redis 6.0 propagates a MULTI and an EXEC for it, and INFO then names an offset between the two.
fn info_and_db(conn: &mut Conn) -> Result<(ReplInfo, Option<u32>), AttachError> {
    conn.push(&[b"MULTI"]);
    conn.push(&[b"INFO", b"replication"]);
    conn.push(&[b"CLIENT", b"LIST", b"TYPE", b"master"]);
    conn.push(&[b"EXEC"]);
    conn.flush()?;
    // All are read before any is judged, so that the connection stays usable.
    let mut refused = None;
    for command in ["MULTI", "INFO", "CLIENT"] {
        if let Reply::Error(e) = conn.read_reply()? {
            refused.get_or_insert(AttachError::of_reply(command, e));
        }
    }
    let result = conn.read_reply()?;
    if let Some(e) = refused {
        return Err(e);
    }
    match result {
        Reply::Error(e) => Err(AttachError::of_reply("EXEC", e)),
        Reply::Array(replies) => {
            let mut texts = replies.iter().map(|r| match r {
                Reply::Error(e) => Err(AttachError::of_reply("INFO", e.clone())),
                r => Ok(r.text().unwrap_or_default()),
            });
            let info = texts.next().transpose()?.unwrap_or_default();
            let clients = texts.next().transpose()?.unwrap_or_default();
            Ok((ReplInfo::parse(&info)?, master_db(&clients)))
        }
        _ => Err(LocalError::Protocol("EXEC is no array").into()),
    }
}

fn past(deadline: Instant, what: &'static str) -> Result<(), AttachError> {
    if Instant::now() > deadline {
        return Err(AttachError::Timeout { what });
    }
    Ok(())
}

fn is_timeout(e: &LocalError) -> bool {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(e, LocalError::Io(e) if matches!(e.kind(), WouldBlock | TimedOut | Interrupted))
}

fn read_some(stream: &mut Stream, input: &mut Vec<u8>) -> Result<(), LocalError> {
    let mut chunk = [0u8; 64 * 1024];
    match std::io::Read::read(stream, &mut chunk)? {
        0 => Err(LocalError::Closed),
        n => {
            input.extend_from_slice(chunk.get(..n).unwrap_or_default());
            Ok(())
        }
    }
}

/// Learns the database and the rest that the tap has to know.
fn finish(req: &AttachRequest<'_>, conn: &mut Conn, found: Found) -> Result<Attached, AttachError> {
    let server = conn.info("server")?;
    let version = server.get("redis_version").map(String::as_str).unwrap_or_default();
    let major: u32 = version.split('.').next().and_then(|v| v.parse().ok()).unwrap_or(0);
    let Found { mut stream, mut leftover, start, next_history, role, db } = found;
    let (db, skipped) = match db {
        Some(db) => (db, 0),
        None if has_one_db(conn)? => (0, 0),
        None if role == Role::Replica => {
            return Err(AttachError::NotNow {
                reason: "a replica that has no link to its master".to_owned(),
            });
        }
        None => {
            for command in req.force_select {
                if let Reply::Error(e) = conn.call_raw(command)? {
                    return Err(AttachError::of_reply("DR._SELECT", e));
                }
            }
            find_db(req, &mut stream, &mut leftover)?
        }
    };
    leftover.drain(..skipped);
    Ok(Attached {
        stream,
        leftover,
        history: start.history,
        next_history,
        offset: start.offset + i64::try_from(skipped).unwrap_or(i64::MAX),
        db,
        continued: start.continued,
        gap: start.gap,
        role,
        shutdown_waits: major >= 7,
        dial: req.dial.clone(),
    })
}

/// Whether there is no database but 0.
fn has_one_db(conn: &mut Conn) -> Result<bool, AttachError> {
    let clustered = conn.info("cluster")?.get("cluster_enabled").is_some_and(|v| v == "1");
    // Valkey 9 has databases in cluster mode, and a setting of its own for them.
    let setting = if clustered { "cluster-databases" } else { "databases" };
    let count = conn.config_get(setting)?;
    Ok(count.map_or(clustered, |n| n == "1"))
}

/// Reads until the stream has named its database: the database, and how many bytes of `input` have to be left
/// out because they hold ops in an unknown one. That loses nothing: the position was free to choose.
fn find_db(
    req: &AttachRequest<'_>,
    stream: &mut Stream,
    input: &mut Vec<u8>,
) -> Result<(u32, usize), AttachError> {
    let deadline = Instant::now() + STEP;
    stream.set_read_timeout(Some(Duration::from_millis(50))).map_err(LocalError::from)?;
    loop {
        if let Some(found) = named_db(input)? {
            return Ok(found);
        }
        req.go_on()?;
        past(deadline, "the stream names no database")?;
        if input.len() > MAX_SEARCH {
            return Err(AttachError::Timeout { what: "the stream names no database" });
        }
        match read_some(stream, input) {
            Ok(()) => {}
            Err(e) if is_timeout(&e) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Looks for the first unit (op or transaction) behind whose start no op runs in an unknown database: its
/// database and offset.
fn named_db(input: &[u8]) -> Result<Option<(u32, usize)>, AttachError> {
    let wrong = |_| LocalError::Protocol("the stream holds something else than commands");
    let whole = whole_ops(input).map_err(wrong)?;
    let mut walk = OpWalk::new(whole, 0);
    let (mut begin, mut blind, mut named) = (0, false, false);
    while let Some(argv) = walk.step().map_err(wrong)? {
        let name = argv.first().copied().unwrap_or_default();
        if name.eq_ignore_ascii_case(b"select") {
            named = true;
        } else if !named && !is_neutral(name) {
            blind = true;
        }
        if named && !blind {
            // From `begin` on everything before this SELECT is the same in any database.
            return Ok(Some((0, begin)));
        }
        if !walk.in_transaction() && blind {
            begin = walk.position();
            if named {
                return Ok(Some((walk.db(), begin)));
            }
            blind = false;
        }
    }
    Ok(None)
}

/// Ops whose effect does not depend on the database.
fn is_neutral(name: &[u8]) -> bool {
    const NEUTRAL: [&[u8]; 7] =
        [b"PING", b"MULTI", b"EXEC", b"REPLCONF", b"PUBLISH", b"SPUBLISH", b"DR._SHARD"];
    NEUTRAL.iter().any(|n| name.eq_ignore_ascii_case(n))
}

/// The whole ops at the start of `input`.
fn whole_ops(input: &[u8]) -> Result<&[u8], oplog_format::FormatError> {
    let (mut at, mut args) = (0, Vec::new());
    while let Some(rest) = input.get(at..).filter(|r| !r.is_empty()) {
        match parse_op(rest, &mut args)? {
            OpScan::Complete { len } => at += len,
            OpScan::Incomplete { .. } => break,
        }
    }
    Ok(input.get(..at).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ops(lines: &[&str]) -> Vec<u8> {
        let mut out = Vec::new();
        for l in lines {
            let args: Vec<&[u8]> = l.split(' ').map(str::as_bytes).collect();
            crate::local::push_command(&mut out, &args);
        }
        out
    }

    #[test]
    fn the_database_is_known_behind_a_select() {
        let at = |lines: &[&str], n: usize, db: u32| {
            assert_eq!(named_db(&ops(lines)).unwrap(), Some((db, ops(&lines[..n]).len())), "{lines:?}");
        };
        at(&["SELECT 1", "PING"], 0, 0);
        at(&["PING", "REPLCONF GETACK *", "MULTI", "SELECT 1", "PING", "SELECT 0", "PING", "EXEC"], 0, 0);
        at(&["SET a b", "SELECT 1", "PING"], 1, 0);
        at(&["SET a b", "PING", "SET b c", "MULTI", "SELECT 1", "PING"], 3, 0);
        at(&["MULTI", "SET a b", "SELECT 3", "SET c d", "EXEC", "SET e f"], 5, 3);
        at(&["MULTI", "SET a b", "EXEC", "SELECT 3"], 3, 0);
        for lines in [&["SET a b", "PING"][..], &["MULTI", "SET a b", "SELECT 2"], &["PING"]] {
            assert_eq!(named_db(&ops(lines)).unwrap(), None);
        }
        assert!(named_db(b"+OK\r\n").is_err());
    }
}
