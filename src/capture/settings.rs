//! Settings of the server that are changed for the moment of an attach, and always put back.
//!
//! While they are held, a replica that needs a full resync waits instead of making the server fork:
//! `repl-diskless-sync yes` with a delay of an hour, and no number of waiting replicas that ends the delay
//! early. A real replica that arrives within these milliseconds starts its sync when they are put back.
//!
//! Order: the former values go to the [`SettingsJournal`], then the settings change; they are put back, then
//! the journal forgets. After a crash in between, the journal still has them: the values themselves died with
//! the process, unless somebody's CONFIG REWRITE within these milliseconds wrote them to the file. That is
//! what [`repair_settings`] is for; each attach begins with it.

use crate::local::{Address, Conn, LocalError, Secret};

use super::AttachError;

/// Keeps the former values of changed settings over a crash.
pub trait SettingsJournal {
    /// The settings (name, value) are about to be changed: keeps them durably before it returns. A failure
    /// is the journal's to log; the attach goes on.
    fn remember(&self, settings: &[(String, String)]);
    /// They have their former values again.
    fn forget(&self);
    /// What was remembered and not forgotten, by this process or an earlier one. [`super::attach()`] puts it back
    /// before it changes anything itself.
    fn remembered(&self) -> Vec<(String, String)>;
}

/// Keeps nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoJournal;

impl SettingsJournal for NoJournal {
    fn remember(&self, _settings: &[(String, String)]) {}
    fn forget(&self) {}
    fn remembered(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}

/// Name and held value, in the order in which they are set.
const HELD: [(&str, &str); 3] = [
    ("repl-diskless-sync-delay", "3600"),
    // 7.0 on. 0: no number of waiting replicas starts the sync before the delay is over.
    ("repl-diskless-sync-max-replicas", "0"),
    ("repl-diskless-sync", "yes"),
];

/// Where the own server is reached, and how the module proves itself.
#[derive(Debug, Clone)]
pub struct Dial {
    /// The address.
    pub addr: Address,
    /// The secret.
    pub secret: Secret,
}

impl Dial {
    pub(crate) fn open(&self) -> Result<Conn, LocalError> {
        Conn::open(&self.addr, &self.secret)
    }
}

/// The control connection, with the settings held. Dropping it puts them back.
pub(crate) struct Hold<'a> {
    dial: &'a Dial,
    conn: Conn,
    journal: &'a dyn SettingsJournal,
    /// Name, former value, held value; in the order in which they were changed.
    changed: Vec<(&'static str, String, &'static str)>,
}

impl<'a> Hold<'a> {
    /// Changes the settings. On an error those that were changed already are put back.
    pub fn begin(dial: &'a Dial, conn: Conn, journal: &'a dyn SettingsJournal) -> Result<Self, AttachError> {
        let mut hold = Self { dial, conn, journal, changed: Vec::new() };
        let mut former = Vec::new();
        for (name, held) in HELD {
            match get(&mut hold.conn, name)? {
                Some(value) if value != held => former.push((name, value, held)),
                _ => {}
            }
        }
        if former.is_empty() {
            return Ok(hold);
        }
        let named: Vec<(String, String)> =
            former.iter().map(|(n, v, _)| ((*n).to_owned(), v.clone())).collect();
        journal.remember(&named);
        for (name, value, held) in former {
            // Listed before it is changed: a reply that is lost does not tell whether it was.
            hold.changed.push((name, value, held));
            set(&mut hold.conn, name, held)?;
        }
        Ok(hold)
    }

    /// The control connection.
    pub fn conn(&mut self) -> &mut Conn {
        &mut self.conn
    }

    /// Puts the settings back.
    pub fn end(mut self) -> Result<(), AttachError> {
        self.put_back()
    }

    fn put_back(&mut self) -> Result<(), AttachError> {
        if self.changed.is_empty() {
            return Ok(());
        }
        if put_back(&mut self.conn, &self.changed).is_err() {
            // The connection may have broken, not the server.
            self.conn = self.dial.open()?;
            put_back(&mut self.conn, &self.changed)?;
        }
        self.changed.clear();
        self.journal.forget();
        Ok(())
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let names: Vec<&str> = self.changed.iter().map(|(n, ..)| *n).collect();
        if let Err(e) = self.put_back() {
            log::warn!("could not put back {}: {e}; they are put back at the next attach", names.join(", "));
        }
    }
}

fn put_back(conn: &mut Conn, changed: &[(&'static str, String, &'static str)]) -> Result<(), AttachError> {
    for (name, value, held) in changed.iter().rev() {
        // A value that is not the held one any more is somebody else's wish.
        if get(conn, name)?.as_deref() == Some(*held) {
            set(conn, name, value)?;
        }
    }
    Ok(())
}

/// Puts back what the journal still remembers from an attach that was broken off: those settings that have the
/// value which the attach gave them. Returns their names.
///
/// # Errors
/// [`AttachError`] where the server cannot be asked.
pub fn repair_settings(dial: &Dial, journal: &dyn SettingsJournal) -> Result<Vec<String>, AttachError> {
    let remembered = journal.remembered();
    if remembered.is_empty() {
        return Ok(Vec::new());
    }
    let mut conn = dial.open()?;
    let mut repaired = Vec::new();
    for (name, value) in &remembered {
        let Some((name, held)) = HELD.iter().find(|(n, _)| n == name) else {
            continue;
        };
        if get(&mut conn, name)?.as_deref() == Some(*held) && value != held {
            set(&mut conn, name, value)?;
            repaired.push((*name).to_owned());
        }
    }
    journal.forget();
    Ok(repaired)
}

fn get(conn: &mut Conn, name: &str) -> Result<Option<String>, AttachError> {
    conn.config_get(name).map_err(of_config)
}

fn set(conn: &mut Conn, name: &str, value: &str) -> Result<(), AttachError> {
    conn.config_set(name, value).map_err(|e| match of_config(e) {
        AttachError::Refused { error, .. } => AttachError::Setting { name: name.to_owned(), error },
        e => e,
    })
}

fn of_config(e: LocalError) -> AttachError {
    match e {
        LocalError::Reply { error, .. } => AttachError::of_reply("CONFIG", error),
        e => e.into(),
    }
}

/// The address at which the module reaches its own server, from the server's settings `unixsocket`, `port` and
/// `bind`: the unix socket where there is one, else TCP.
///
/// # Errors
/// [`AttachError::NoListener`] where there is neither.
pub fn own_address(unixsocket: &str, port: u16, bind: &str) -> Result<Address, AttachError> {
    if !unixsocket.is_empty() {
        return Ok(Address::Unix(unixsocket.into()));
    }
    if port == 0 {
        return Err(AttachError::NoListener);
    }
    // A leading minus marks an address that may be missing on this machine.
    let names: Vec<&str> = bind.split_whitespace().map(|n| n.trim_start_matches('-')).collect();
    let any = |n: &str| matches!(n, "*" | "0.0.0.0");
    let host = if names.is_empty() || names.iter().any(|n| any(n) || *n == "127.0.0.1") {
        "127.0.0.1"
    } else if names.iter().any(|n| matches!(*n, "::" | "::*" | "::1")) {
        "::1"
    } else {
        names.first().copied().unwrap_or("127.0.0.1")
    };
    Ok(Address::Tcp(host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_follows_the_servers_settings() {
        let tcp = |host: &str| Address::Tcp(host.to_owned(), 6379);
        assert_eq!(own_address("/run/s", 6379, "").unwrap(), Address::Unix("/run/s".into()));
        assert_eq!(own_address("/run/s", 0, "").unwrap(), Address::Unix("/run/s".into()));
        assert_eq!(own_address("", 6379, "").unwrap(), tcp("127.0.0.1"));
        assert_eq!(own_address("", 6379, "* -::*").unwrap(), tcp("127.0.0.1"));
        assert_eq!(own_address("", 6379, "10.0.0.1 127.0.0.1").unwrap(), tcp("127.0.0.1"));
        assert_eq!(own_address("", 6379, "10.0.0.1 -::1").unwrap(), tcp("::1"));
        assert_eq!(own_address("", 6379, "10.0.0.1 10.0.0.2").unwrap(), tcp("10.0.0.1"));
        assert!(matches!(own_address("", 0, "*"), Err(AttachError::NoListener)));
    }
}
