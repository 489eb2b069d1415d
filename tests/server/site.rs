//! One node of a star: the harness's server with what these tests ask of it.

use std::net::SocketAddr;

use serde_json::Value;

use crate::dr::{eventually, Persistence};
use crate::harness::{version, Server};
use crate::workload::{CommandTable, Conn};

pub struct Site {
    server: Server,
    service_id: Option<u8>,
}

impl Site {
    /// With the module, RDB only.
    pub fn start(version: &str, service_id: u8) -> Site {
        Site::start_with(version, service_id, Persistence::Rdb, &[])
    }

    /// Without the module.
    pub fn plain(name: &str) -> Site {
        Site { server: Server::plain(version(name)), service_id: None }
    }

    /// With the module; `settings` are names and values of the server's own configuration.
    pub fn start_with(name: &str, service_id: u8, persistence: Persistence, settings: &[&str]) -> Site {
        let mut builder = Server::builder(version(name)).arg("service-id", service_id);
        for pair in settings.chunks(2) {
            builder = builder.config(pair[0], pair[1]);
        }
        if persistence == Persistence::Aof {
            builder = builder.config("appendonly", "yes").config("appendfsync", "everysec");
        }
        let site = Site { server: builder.start(), service_id: Some(service_id) };
        site.wait_ready();
        site
    }

    /// As [`Site::start`], with another `timeout` of the link in seconds.
    pub fn with_timeout(name: &str, service_id: u8, seconds: u64) -> Site {
        let builder = Server::builder(version(name)).arg("service-id", service_id).arg("timeout", seconds);
        let site = Site { server: builder.start(), service_id: Some(service_id) };
        site.wait_ready();
        site
    }

    /// A native replica of this one, like it with or without the module.
    pub fn replica_of(master: &Site) -> Site {
        let name = master.server.version.name;
        let replica = match master.service_id {
            Some(id) => Site::start(name, id),
            None => Site::plain(name),
        };
        replica.follow(master);
        replica
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        self.server.log()
    }

    /// Becomes a native replica of that server.
    pub fn follow(&self, master: &Site) {
        self.server.replicate(&master.server);
    }

    /// Waits until this native replica has all of its master's stream; nobody may write meanwhile.
    pub fn wait_follows(&self, master: &Site) {
        self.server.wait_in_step(&master.server);
    }

    /// The module answers writes with LOADING until it records them.
    fn wait_ready(&self) {
        eventually("the module is ready", || {
            let state = self.status()["state"].as_str().unwrap_or("no state").to_owned();
            match ["starting", "recovering", "no state"].contains(&state.as_str()) {
                false => Ok(()),
                true => Err(state),
            }
        });
    }

    /// Starts the process on what its directory holds, and waits until it answers.
    pub fn start_again(&self) {
        self.server.start_again();
        self.wait_ready();
    }

    pub fn kill(&self) {
        self.server.kill9();
    }

    /// SIGTERM, without an RDB since no save points are set.
    pub fn shut_down(&self) {
        self.server.terminate();
    }

    pub fn stop_process(&self) {
        self.server.stop();
    }

    pub fn continue_process(&self) {
        self.server.cont();
    }

    /// Resident memory in bytes.
    pub fn rss(&self) -> u64 {
        self.server.rss_kb() * 1024
    }

    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.server.port()))
    }

    pub fn conn(&self) -> Conn {
        Conn::open(self.addr())
            .unwrap_or_else(|e| panic!("{}: {e}\n{}", self.addr(), self.server.log_tail(30)))
    }

    pub fn table(&self) -> CommandTable {
        let mut conn = self.conn();
        let command = conn.call(&["COMMAND"]);
        CommandTable::parse(&command, &conn.call(&["INFO", "server"]).text())
    }

    /// Where this node serves targets.
    pub fn endpoint(&self) -> String {
        self.server.endpoint()
    }

    /// DR.STATUS JSON.
    pub fn status(&self) -> Value {
        let reply = self.conn().call(&["DR.STATUS", "JSON"]);
        serde_json::from_slice(reply.bytes()).unwrap_or_else(|e| panic!("{e}: {reply:?}"))
    }

    pub fn full_syncs(&self) -> i64 {
        self.status()["full_syncs"].as_i64().expect("full_syncs")
    }

    pub fn link(&self, sources: &[&Site]) {
        let endpoints: Vec<String> = sources.iter().map(|s| s.endpoint()).collect();
        self.link_to(&endpoints);
    }

    pub fn link_to(&self, endpoints: &[String]) {
        let mut command = vec!["DR.LINK".to_owned()];
        command.extend_from_slice(endpoints);
        let reply = self.conn().call(&command);
        assert!(reply.error().is_none(), "{reply:?}");
    }
}

impl Drop for Site {
    /// What a failed test leaves to look at; the harness keeps the folder.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.server.log_tail(30));
        }
    }
}
