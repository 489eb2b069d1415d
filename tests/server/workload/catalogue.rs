//! Which command is made by which function, how often, and what is left out on purpose.

use super::mix::{Argv, Mix};
use super::step::Step;
use super::table::CommandTable;
use super::{
    collections as c, generic as g, hashes as h, scripts as p, sorted as z, streams as x, strings as s,
};

/// Makes a command, or a step of several.
#[derive(Clone, Copy)]
pub enum Make {
    Command(fn(&mut Mix) -> Argv),
    Step(fn(&mut Mix) -> Step),
}
use Make::{Command as C, Step as S};

/// One way to exercise a command: its name as [`CommandTable`] has it, a weight, the maker. `since` is for
/// subcommands, which servers before 7.0 do not list.
pub struct Entry {
    pub name: &'static str,
    pub weight: u64,
    pub since: (u32, u32),
    pub make: Make,
}

const fn e(name: &'static str, weight: u64, make: Make) -> Entry {
    Entry { name, weight, since: (6, 0), make }
}
const fn since(major: u32, minor: u32, name: &'static str, weight: u64, make: Make) -> Entry {
    Entry { name, weight, since: (major, minor), make }
}

/// Weights: 20 is ordinary; the commands that fill keys have more, those that empty databases far less.
pub const CATALOGUE: &[Entry] = &[
    // Strings, counters, bits, HyperLogLogs.
    e("set", 120, C(s::set)),
    e("set", 30, C(s::set_number)),
    e("setnx", 30, C(s::setnx)),
    e("setex", 20, C(s::setex)),
    e("psetex", 20, C(s::psetex)),
    e("getset", 20, C(s::getset)),
    e("getdel", 20, C(s::getdel)),
    e("getex", 30, C(s::getex)),
    e("delifeq", 20, C(s::delifeq)),
    e("delex", 20, C(s::delex)),
    e("append", 30, C(s::append)),
    e("setrange", 20, C(s::setrange)),
    e("mset", 20, C(s::mset)),
    e("msetnx", 30, C(s::msetnx)),
    e("msetex", 20, C(s::msetex)),
    e("incr", 30, C(s::incr)),
    e("decr", 20, C(s::decr)),
    e("incrby", 20, C(s::incrby)),
    e("decrby", 20, C(s::decrby)),
    e("incrbyfloat", 20, C(s::incrbyfloat)),
    e("setbit", 30, C(s::setbit)),
    e("bitop", 20, C(s::bitop)),
    e("bitfield", 20, C(s::bitfield)),
    e("pfadd", 40, C(s::pfadd)),
    e("pfmerge", 20, C(s::pfmerge)),
    e("pfcount", 20, C(s::pfcount)),
    e("pfdebug", 12, C(s::pfdebug)),
    // Lists.
    e("lpush", 50, C(c::lpush)),
    e("rpush", 50, C(c::rpush)),
    e("lpushx", 20, C(c::lpushx)),
    e("rpushx", 20, C(c::rpushx)),
    e("lpop", 20, C(c::lpop)),
    e("rpop", 20, C(c::rpop)),
    e("linsert", 20, C(c::linsert)),
    e("lset", 20, C(c::lset)),
    e("lrem", 30, C(c::lrem)),
    e("ltrim", 20, C(c::ltrim)),
    e("rpoplpush", 20, C(c::rpoplpush)),
    e("lmove", 20, C(c::lmove)),
    e("lmpop", 20, C(c::lmpop)),
    e("blpop", 8, S(c::blpop)),
    e("brpop", 8, S(c::brpop)),
    e("brpoplpush", 8, S(c::brpoplpush)),
    e("blmove", 8, S(c::blmove)),
    e("blmpop", 8, S(c::blmpop)),
    // Sets and SORT.
    e("sadd", 80, C(c::sadd)),
    e("srem", 20, C(c::srem)),
    e("spop", 20, C(c::spop)),
    e("smove", 30, C(c::smove)),
    e("sdiffstore", 20, C(c::sdiffstore)),
    e("sinterstore", 20, C(c::sinterstore)),
    e("sunionstore", 20, C(c::sunionstore)),
    e("sort", 20, C(c::sort)),
    // Sorted sets and geo sets.
    e("zadd", 100, C(z::zadd)),
    e("zadd", 40, C(z::zadd_lexicon)),
    e("zincrby", 20, C(z::zincrby)),
    e("zrem", 20, C(z::zrem)),
    e("zpopmin", 20, C(z::zpopmin)),
    e("zpopmax", 20, C(z::zpopmax)),
    e("zmpop", 20, C(z::zmpop)),
    e("zremrangebyrank", 16, C(z::zremrangebyrank)),
    e("zremrangebyscore", 30, C(z::zremrangebyscore)),
    e("zremrangebylex", 30, C(z::zremrangebylex)),
    e("zrangestore", 20, C(z::zrangestore)),
    e("zunionstore", 20, C(z::zunionstore)),
    e("zinterstore", 20, C(z::zinterstore)),
    e("zdiffstore", 20, C(z::zdiffstore)),
    e("bzpopmin", 8, S(z::bzpopmin)),
    e("bzpopmax", 8, S(z::bzpopmax)),
    e("bzmpop", 8, S(z::bzmpop)),
    e("geoadd", 60, C(z::geoadd)),
    e("georadius", 20, C(z::georadius)),
    e("georadiusbymember", 30, C(z::georadiusbymember)),
    e("geosearchstore", 20, C(z::geosearchstore)),
    // Hashes.
    e("hset", 60, C(h::hset)),
    e("hmset", 20, C(h::hmset)),
    e("hsetnx", 20, C(h::hsetnx)),
    e("hdel", 16, C(h::hdel)),
    e("hincrby", 20, C(h::hincrby)),
    e("hincrbyfloat", 20, C(h::hincrbyfloat)),
    e("hexpire", 20, C(h::hexpire)),
    e("hpexpire", 20, C(h::hpexpire)),
    e("hexpireat", 20, C(h::hexpireat)),
    e("hpexpireat", 20, C(h::hpexpireat)),
    e("hpexpire", 20, C(h::fleeting)),
    e("hpersist", 20, C(h::hpersist)),
    e("hgetdel", 20, C(h::hgetdel)),
    e("hgetex", 20, C(h::hgetex)),
    e("hsetex", 20, C(h::hsetex)),
    // Streams.
    e("xadd", 120, C(x::xadd)),
    e("xdel", 20, C(x::xdel)),
    e("xdelex", 20, C(x::xdelex)),
    e("xackdel", 20, C(x::xackdel)),
    e("xtrim", 30, C(x::xtrim)),
    e("xsetid", 16, C(x::xsetid)),
    e("xgroup|create", 90, C(x::xgroup_create)),
    e("xgroup|setid", 16, C(x::xgroup_setid)),
    e("xgroup|destroy", 8, C(x::xgroup_destroy)),
    since(6, 2, "xgroup|createconsumer", 20, C(x::xgroup_createconsumer)),
    e("xgroup|delconsumer", 12, C(x::xgroup_delconsumer)),
    e("xreadgroup", 100, S(x::xreadgroup)),
    e("xack", 30, C(x::xack)),
    e("xclaim", 30, C(x::xclaim)),
    e("xautoclaim", 20, C(x::xautoclaim)),
    // Any type.
    e("del", 20, C(g::del)),
    e("unlink", 12, C(g::unlink)),
    e("expire", 20, C(g::expire)),
    e("pexpire", 20, C(g::pexpire)),
    e("expireat", 20, C(g::expireat)),
    e("pexpireat", 20, C(g::pexpireat)),
    e("persist", 30, C(g::persist)),
    e("rename", 20, C(g::rename)),
    e("renamenx", 30, C(g::renamenx)),
    e("move", 30, C(g::mv)),
    e("copy", 30, C(g::copy)),
    e("dump", 20, C(g::dump)),
    e("restore", 30, C(g::restore)),
    e("restore-asking", 12, C(g::restore_asking)),
    e("vadd", 40, C(g::vadd)),
    e("vrem", 20, C(g::vrem)),
    e("vsetattr", 20, C(g::vsetattr)),
    // Databases and channels.
    e("select", 50, C(g::select)),
    e("swapdb", 8, C(g::swapdb)),
    e("flushdb", 2, C(g::flushdb)),
    e("flushall", 1, C(g::flushall)),
    e("publish", 20, C(g::publish)),
    e("spublish", 20, C(g::spublish)),
    // Scripts, functions, transactions.
    e("eval", 40, C(p::eval)),
    e("evalsha", 40, C(p::evalsha)),
    e("script|flush", 2, C(p::script_flush)),
    e("function|load", 50, C(p::function_load)),
    e("function|delete", 6, C(p::function_delete)),
    e("function|flush", 4, C(p::function_flush)),
    e("function|restore", 20, C(p::function_restore)),
    e("fcall", 40, C(p::fcall)),
    e("multi", 120, S(|m| p::transaction(m, command_of_any_entry))),
];

/// Commands that some server flags as writing and that the workload leaves out, each with its reason.
pub const NOT_EXERCISED: &[(&str, &str)] = &[
    ("migrate", "needs a third server; what it does to the stream is the DEL of what has moved"),
    ("cluster|flushslot", "cluster mode only"),
];

/// Checked like write commands although their flags do not say that they write.
pub const ALSO_WANTED: &[&str] = &[
    "eval",
    "evalsha",
    "fcall",
    "multi",
    "exec",
    "discard",
    "publish",
    "spublish",
    "select",
    "script|flush",
];

/// True when the server understands what the entry makes.
pub fn usable(entry: &Entry, table: &CommandTable) -> bool {
    let listed = table.has(entry.name)
        || entry.name.split_once('|').is_some_and(|(container, _)| table.has(container));
    listed && table.caps.from(entry.since.0, entry.since.1)
}

/// For transactions: any single command, steps and database switches left out.
fn command_of_any_entry(m: &mut Mix) -> Argv {
    loop {
        let n = m.rng.below(m.single.len() as u64) as usize;
        if let C(make) = CATALOGUE[m.single[n]].make {
            return make(m);
        }
    }
}
