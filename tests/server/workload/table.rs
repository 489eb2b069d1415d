//! What a server can do: its own COMMAND list and version.

use std::collections::BTreeMap;

use super::reply::Reply;

/// Versions as (major, minor, patch).
pub type Version = (u32, u32, u32);

/// Which syntax the server understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// The Redis version, or the one that a Valkey says it is compatible with.
    pub redis: Version,
    pub valkey: Option<Version>,
    /// Vector sets are compiled in.
    pub has_vectors: bool,
}

impl Caps {
    pub fn from(&self, major: u32, minor: u32) -> bool {
        self.redis >= (major, minor, 0)
    }

    pub fn valkey_from(&self, major: u32, minor: u32) -> bool {
        self.valkey.is_some_and(|v| v >= (major, minor, 0))
    }

    /// What both understand.
    fn common(a: &Caps, b: &Caps) -> Caps {
        Caps {
            redis: a.redis.min(b.redis),
            valkey: a.valkey.zip(b.valkey).map(|(x, y)| x.min(y)),
            has_vectors: a.has_vectors && b.has_vectors,
        }
    }
}

/// The commands of one server with their flags. Subcommands are named `container|sub`.
#[derive(Clone, Debug)]
pub struct CommandTable {
    pub caps: Caps,
    pub commands: BTreeMap<String, Vec<String>>,
}

impl CommandTable {
    /// From the replies to COMMAND and INFO server.
    pub fn parse(command: &Reply, info: &str) -> CommandTable {
        let mut commands = BTreeMap::new();
        for entry in command.items() {
            insert(entry, &mut commands);
        }
        assert!(commands.len() > 100, "COMMAND listed only {} commands", commands.len());
        let field = |name: &str| {
            info.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).map(|v| version(v.trim()))
        };
        let caps = Caps {
            redis: field("redis_version").expect("redis_version in INFO server"),
            valkey: field("valkey_version"),
            has_vectors: commands.contains_key("vadd"),
        };
        CommandTable { caps, commands }
    }

    /// The commands that both have.
    pub fn common(a: &CommandTable, b: &CommandTable) -> CommandTable {
        let has =
            |t: &CommandTable, name: &str| t.has(name) || name.split_once('|').is_some_and(|(c, _)| t.has(c));
        let mut commands: BTreeMap<_, _> =
            a.commands.iter().filter(|(n, _)| has(b, n)).map(|(n, f)| (n.clone(), f.clone())).collect();
        for (name, flags) in b.commands.iter().filter(|(n, _)| has(a, n)) {
            commands.entry(name.clone()).or_insert_with(|| flags.clone());
        }
        CommandTable { caps: Caps::common(&a.caps, &b.caps), commands }
    }

    pub fn without(mut self, names: &[&str]) -> CommandTable {
        self.commands.retain(|n, _| !names.contains(&n.as_str()));
        self
    }

    pub fn has(&self, name: &str) -> bool {
        self.commands.contains_key(name)
    }

    /// Commands that can put something into the replication stream: flag `write`, and on 7.0+ `may_replicate`.
    pub fn writing(&self) -> Vec<&str> {
        let writes = |f: &Vec<String>| f.iter().any(|f| f == "write" || f == "may_replicate");
        self.commands.iter().filter(|(_, f)| writes(f)).map(|(n, _)| n.as_str()).collect()
    }

    /// The name under which a command counts: containers count by subcommand, also where the server lists none.
    pub fn name_of(argv: &[Vec<u8>]) -> String {
        let text =
            |i: usize| argv.get(i).map(|a| String::from_utf8_lossy(a).to_lowercase()).unwrap_or_default();
        match text(0).as_str() {
            container @ ("xgroup" | "function" | "script") => format!("{container}|{}", text(1)),
            name => name.to_owned(),
        }
    }
}

/// An entry is name, arity, flags, keys..., categories, tips, specs, subcommands (the last three on 7.0+).
/// A container with subcommands is listed by these alone.
fn insert(entry: &Reply, into: &mut BTreeMap<String, Vec<String>>) {
    let fields = entry.items();
    let name = fields[0].text().to_lowercase();
    let subs = fields.get(9).map(Reply::items).unwrap_or_default();
    if subs.is_empty() {
        into.insert(name, fields[2].items().iter().map(Reply::text).collect());
    }
    for sub in subs {
        insert(sub, into);
    }
}

fn version(text: &str) -> Version {
    let mut parts = text.split('.').map(|p| p.chars().take_while(char::is_ascii_digit).collect::<String>());
    let mut part = || parts.next().and_then(|p| p.parse().ok()).unwrap_or(0);
    (part(), part(), part())
}
