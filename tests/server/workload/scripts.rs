//! Scripts, functions and transactions.

use super::mix::{argv, Argv, Kind, Mix, DATABASES};
use super::step::Step;

/// Writes of several types, a random choice and an error path. On 6.0 the first line lets a script write after the
/// random choice.
const MANY_WRITES: &str = "
if redis.replicate_commands then redis.replicate_commands() end
local out = redis.call('SPOP', KEYS[1])
redis.call('RPUSH', KEYS[2], ARGV[1], out or 'none')
redis.call('HSET', KEYS[3], 'f1', ARGV[1])
if ARGV[2] == 'select' then redis.call('SELECT', ARGV[3]) redis.call('SET', KEYS[4], ARGV[1]) end
return redis.call('INCR', 'n:0')";

/// Fails on its third command: the first two have happened and must arrive.
const FAILS_HALF_WAY: &str = "
redis.call('SET', KEYS[1], ARGV[1])
redis.call('RPUSH', KEYS[2], ARGV[1])
redis.call('LPUSH', KEYS[1], 'not a list')
return redis.call('SET', KEYS[1], 'never')";

/// Goes on after a failed command.
const CATCHES: &str = "
redis.call('SET', KEYS[1], ARGV[1], 'PX', 100000000)
local r = redis.pcall('INCR', KEYS[1])
redis.call('APPEND', KEYS[1], type(r) == 'table' and 'caught' or 'number')
return 1";

fn invocation(m: &mut Mix, name: &str, what: Vec<u8>) -> Argv {
    let mut out = argv![name, what, 4usize];
    out.extend([m.key(Kind::Set), m.key(Kind::List), m.key(Kind::Hash), m.key_of(Kind::Text)]);
    let mode = if m.rng.one_in(3) { "select" } else { "stay" };
    out.extend(argv![m.value(), mode, m.rng.below(DATABASES)]);
    out
}

pub fn eval(m: &mut Mix) -> Argv {
    match m.rng.below(4) {
        0 => argv!["EVAL", FAILS_HALF_WAY, 2usize, m.key_of(Kind::Text), m.key_of(Kind::List), m.value()],
        1 => argv!["EVAL", CATCHES, 1usize, m.key_of(Kind::Text), m.value()],
        _ => invocation(m, "EVAL", MANY_WRITES.into()),
    }
}

/// Loads the script first while its digest is unknown.
pub fn evalsha(m: &mut Mix) -> Argv {
    match m.script_sha.clone() {
        Some(sha) => invocation(m, "EVALSHA", sha),
        None => argv!["SCRIPT", "LOAD", MANY_WRITES],
    }
}

pub fn script_flush(_: &mut Mix) -> Argv {
    argv!["SCRIPT", "FLUSH"]
}

const LIBRARIES: u64 = 3;

fn library(n: u64, variant: u64) -> String {
    format!(
        "#!lua name=library{n}
local function put(keys, args)
  redis.call('SET', keys[1], args[1])
  redis.call('RPUSH', keys[2], args[1], '{variant}')
  if args[2] == 'fail' then return redis.call('INCR', keys[2]) end
  return redis.call('SPOP', keys[3])
end
redis.register_function('put{n}', put)"
    )
}

pub fn function_load(m: &mut Mix) -> Argv {
    let code = library(m.rng.below(LIBRARIES), m.rng.below(100));
    if m.rng.one_in(4) {
        argv!["FUNCTION", "LOAD", code]
    } else {
        argv!["FUNCTION", "LOAD", "REPLACE", code]
    }
}

pub fn function_delete(m: &mut Mix) -> Argv {
    argv!["FUNCTION", "DELETE", format!("library{}", m.rng.below(LIBRARIES))]
}

pub fn function_flush(m: &mut Mix) -> Argv {
    let how = *m.rng.pick(&["SYNC", "ASYNC"]);
    argv!["FUNCTION", "FLUSH", how]
}

/// Restores what an earlier FUNCTION DUMP returned, or asks for that dump.
pub fn function_restore(m: &mut Mix) -> Argv {
    match m.function_dump.clone() {
        Some(dump) => {
            let policy = *m.rng.pick(&["REPLACE", "REPLACE", "FLUSH", "APPEND"]);
            m.function_dump = None;
            argv!["FUNCTION", "RESTORE", dump, policy]
        }
        None => argv!["FUNCTION", "DUMP"],
    }
}

pub fn fcall(m: &mut Mix) -> Argv {
    let name = format!("put{}", m.rng.below(LIBRARIES));
    let mode = if m.rng.one_in(4) { "fail" } else { "finish" };
    let (text, list, set) = (m.key_of(Kind::Text), m.key(Kind::List), m.key(Kind::Set));
    argv!["FCALL", name, 3usize, text, list, set, m.value(), mode]
}

/// MULTI with one to a dozen commands; some discarded, some refused at EXEC for a queued error, some watched.
pub fn transaction(m: &mut Mix, mut command: impl FnMut(&mut Mix) -> Argv) -> Step {
    let home = m.db;
    let mut commands: Vec<Argv> = (0..m.rng.range(1, 12)).map(|_| command(m)).collect();
    if m.rng.one_in(4) {
        // Through another database and back.
        let at = m.rng.below(commands.len() as u64) as usize;
        commands.insert(at, argv!["SELECT", m.rng.below(DATABASES)]);
        commands.push(argv!["SELECT", home]);
    }
    if m.rng.one_in(15) {
        commands.push(argv!["NO-SUCH-COMMAND", "x"]);
    }
    let watch = m.rng.one_in(6).then(|| m.any_key());
    Step::Transaction { watch, commands, discard: m.rng.one_in(6) }
}
