//! What happens when the server loads the module.

use std::ffi::c_int;
use std::io::Read;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use redis_module::raw;

use super::api::{api, Ctx, ERR, OK};
use super::{aux, call, commands, events, filter, held, info, plain_set, LOGGER, SHARED};
use crate::config::{is_loopback, Config};
use crate::local::Address;
use crate::local::Secret;
use crate::runtime::gate::{Class, CommandTable, GateMode};
use crate::runtime::shared::Shared;
use crate::runtime::{self, ServerFacts, Start};

/// Requests of operators and events wait here; more than this many at once are refused.
const REQUEST_QUEUE: usize = 1024;
/// Frames that a replica of a target has applied and not yet logged.
const FRAME_QUEUE: usize = 16 * 1024;

/// Loads the module; an error is in the server's log.
pub fn load(ctx: Ctx, args: &[&[u8]]) -> c_int {
    let _ = ::log::set_logger(&LOGGER);
    ::log::set_max_level(::log::LevelFilter::Info);
    match try_load(ctx, args) {
        Ok(()) => OK,
        Err(reason) => {
            ::log::error!("not loaded: {reason}");
            ERR
        }
    }
}

fn try_load(ctx: Ctx, args: &[&[u8]]) -> Result<(), String> {
    let config = Config::parse(args).map_err(|e| e.to_string())?;
    let link_secret = link_secret(&config)?;
    let (requests_tx, requests_rx) = crossbeam_channel::bounded(REQUEST_QUEUE);
    let (frames_tx, frames_rx) = crossbeam_channel::bounded(FRAME_QUEUE);
    let shared = Shared::new(config, process_secret()?, requests_tx, frames_tx);
    read_version(ctx, &shared)?;
    if setting(ctx, "lua-replicate-commands").as_deref() == Some("no") {
        return Err(
            "lua-replicate-commands is no: scripts themselves would be in the stream and run again at each \
                    target; set it to yes"
                .to_owned(),
        );
    }
    let is = |name: &str, value: &str| setting(ctx, name).as_deref() == Some(value);
    if is("appendonly", "yes") && is("aof-use-rdb-preamble", "no") {
        return Err(
            "aof-use-rdb-preamble is no: a rewritten AOF would not say which ops it holds; set it to yes"
                .to_owned(),
        );
    }
    let server = server_facts(ctx, &shared)?;
    if SHARED.set(Arc::clone(&shared)).is_err() {
        return Err("the module is loaded already".to_owned());
    }
    commands::register(ctx, shared.version.load(Ordering::Relaxed))?;
    if !aux::register(ctx) {
        return Err("the data type redisdrx1 could not be registered".to_owned());
    }
    info::register(ctx);
    events::register(ctx);
    plain_set::register(ctx);
    let options = raw::REDISMODULE_OPTIONS_HANDLE_IO_ERRORS as c_int;
    api!(RedisModule_SetModuleOptions(ctx.0, options) else ());
    shared.table.store(Arc::new(command_table(ctx)));
    close_gate(ctx, &shared);
    held::register(ctx);
    if !filter::register(ctx) {
        return Err("the command filter could not be registered".to_owned());
    }
    runtime::start(Start { shared, link_secret, requests: requests_rx, replica_events: frames_rx, server })
}

/// Before the first attach a write would escape the log; on a starting server not even the dataset is known.
fn close_gate(ctx: Ctx, shared: &Shared) {
    let flags = ctx.flags();
    if flags & raw::REDISMODULE_CTX_FLAGS_SLAVE != 0 {
        shared.is_replica.store(true, Ordering::Release);
        return;
    }
    let running = api!(RedisModule_DbSize(ctx.0) else 0) > 0;
    let mode = if running { GateMode::Starting } else { GateMode::Recovering };
    shared.replicas_wait.store(true, Ordering::Release);
    shared.gate.set(mode, "LOADING redisdr is starting: the log is not attached yet");
}

fn read_version(ctx: Ctx, shared: &Shared) -> Result<(), String> {
    let info = ctx.server_info("server").ok_or("INFO server is not available")?;
    let valkey = info.text("valkey_version");
    let text = valkey.clone().or_else(|| info.text("redis_version")).unwrap_or_default();
    let mut parts = text.split('.').map(|p| p.parse::<u64>().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0).min(255);
    let version = next() << 16 | next() << 8 | next();
    if version < 0x06_00_00 {
        return Err(format!("server version '{text}': redisdr needs Redis 6.0 or Valkey 8.0 and newer"));
    }
    shared.version.store(version, Ordering::Relaxed);
    shared.valkey.store(valkey.is_some(), Ordering::Relaxed);
    Ok(())
}

/// One setting, by CONFIG GET.
fn setting(ctx: Ctx, name: &str) -> Option<String> {
    let reply = call::call(ctx, &[b"CONFIG", b"GET", name.as_bytes()], "")?;
    let value = reply.element(1)?;
    Some(String::from_utf8_lossy(value.bytes()).into_owned())
}

fn server_facts(ctx: Ctx, shared: &Shared) -> Result<ServerFacts, String> {
    let number = |name: &str| setting(ctx, name).and_then(|v| v.parse::<u16>().ok()).unwrap_or(0);
    let (port, tls) = (number("port"), number("tls-port"));
    let unix = setting(ctx, "unixsocket").filter(|s| !s.is_empty());
    let dir =
        setting(ctx, "dir").ok_or("CONFIG GET is not available: redisdr needs it, do not rename CONFIG")?;
    let address = match (unix, port) {
        (Some(path), _) => Ok(Address::Unix(std::path::Path::new(&dir).join(path))),
        (None, 0) => Err("the server has neither a 'unixsocket' nor a plain 'port', so that redisdr cannot \
                          connect to it: set 'unixsocket'"
            .to_owned()),
        (None, port) => Ok(Address::Tcp(local_host(&setting(ctx, "bind").unwrap_or_default()), port)),
    };
    let rdb_version = rdb_version(shared)?;
    Ok(ServerFacts { address, port: if port > 0 { port } else { tls }, dir: dir.into(), rdb_version })
}

/// An address of `bind` that this machine reaches: loopback where there is one.
fn local_host(bind: &str) -> String {
    let names: Vec<&str> = bind.split_whitespace().map(|n| n.trim_start_matches('-')).collect();
    let wide = names.is_empty() || names.iter().any(|n| matches!(*n, "*" | "0.0.0.0" | "" | "127.0.0.1"));
    if wide {
        return "127.0.0.1".to_owned();
    }
    if names.iter().any(|n| matches!(*n, "::" | "::*" | "::1")) {
        return "::1".to_owned();
    }
    names.first().map_or("127.0.0.1", |n| n).to_owned()
}

/// The RDB version that this server writes, read from a DUMP.
fn rdb_version(shared: &Shared) -> Result<u16, String> {
    let version = shared.version.load(Ordering::Relaxed);
    let valkey = shared.valkey.load(Ordering::Relaxed);
    // DUMP needs a key, and making one here would be a write; the table is that of the servers' sources.
    Ok(match (valkey, version >> 16, (version >> 8) & 0xff) {
        (false, 6, _) => 9,
        (false, 7, 0..=1) => 10,
        (false, 7, 2..=3) => 11,
        (false, 7..=8, _) => 12,
        (true, 7..=8, _) => 11,
        (true, 9, _) => 80,
        _ => {
            return Err(format!("server version {version:#x} is not known to this build"));
        }
    })
}

fn process_secret() -> Result<Secret, String> {
    let mut bytes = [0u8; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut bytes))
        .map_err(|e| format!("no random bytes: {e}"))?;
    Ok(Secret(Some(bytes.iter().map(|b| format!("{b:02x}")).collect())))
}

/// The shared secret of the links; a file's last line ends are not part of it.
fn link_secret(config: &Config) -> Result<Option<Vec<u8>>, String> {
    let Some(path) = &config.secret_file else {
        return match &config.endpoint {
            Some(e) if !is_loopback(e) => Err(format!(
                "module argument 'endpoint': {e} is reachable from other machines and needs a 'secret-file'"
            )),
            _ => Ok(None),
        };
    };
    let shown = path.display();
    let file = std::fs::File::open(path).map_err(|e| format!("secret-file {shown}: {e}"))?;
    let mut bytes = Vec::new();
    file.take(4097).read_to_end(&mut bytes).map_err(|e| format!("secret-file {shown}: {e}"))?;
    while bytes.last().is_some_and(|b| b"\r\n".contains(b)) {
        bytes.pop();
    }
    match bytes.len() {
        0..=15 => Err(format!("secret-file {shown}: {} bytes, at least 16 are needed", bytes.len())),
        4097.. => Err(format!("secret-file {shown}: longer than 4096 bytes")),
        _ => Ok(Some(bytes)),
    }
}

/// The server's commands and what they do, from its own COMMAND.
pub fn command_table(ctx: Ctx) -> CommandTable {
    let mut table = CommandTable::default();
    let Some(reply) = call::call(ctx, &[b"COMMAND"], "") else {
        ::log::warn!("COMMAND is not available: nothing can be fenced");
        return table;
    };
    for i in 0..reply.len() {
        let Some(command) = reply.element(i) else { continue };
        add_command(&mut table, &command);
        // Since 7.0 the tenth element lists the subcommands, in the same form.
        let Some(subs) = command.element(9) else { continue };
        for j in 0..subs.len() {
            if let Some(sub) = subs.element(j) {
                add_command(&mut table, &sub);
            }
        }
    }
    table
}

fn add_command(table: &mut CommandTable, command: &api_reply::Reply) {
    let (Some(name), Some(flags)) = (command.element(0), command.element(2)) else {
        return;
    };
    let mut class = Class::default();
    for i in 0..flags.len() {
        match flags.element(i).as_ref().map(|f| f.bytes()) {
            Some(b"write") => class.write = true,
            Some(b"readonly") => class.read = true,
            _ => {}
        }
    }
    table.add(name.bytes(), class);
}

mod api_reply {
    pub use super::super::api::CallReply as Reply;
}
