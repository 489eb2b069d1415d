//! One real server: built, started, signalled, restarted and looked at.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::builder::{set, Builder};
use super::client::{Client, Place, Target};
use super::ports::Port;
use super::resp::Reply;
use super::spawn::{signal, spawn};
use super::versions::{repository, Version};
use super::wait::{deadline, poll};

/// The module that tests load: `REDISDR_MODULE`, else the release build.
pub fn module_path() -> PathBuf {
    if let Some(path) = std::env::var_os("REDISDR_MODULE") {
        return path.into();
    }
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
    target.join("release/libredisdr.so")
}

/// A server under test. It is killed when this is dropped; its folder is removed unless the test is failing or
/// `REDISDR_TEST_KEEP` is set.
#[derive(Debug)]
pub struct Server {
    /// What it is.
    pub version: Version,
    spec: Mutex<Builder>,
    dir: PathBuf,
    own_dir: Option<tempfile::TempDir>,
    port: Port,
    endpoint: Port,
    child: Mutex<Option<Child>>,
}

impl Server {
    /// A server with the module, on a free port and a unix socket, without save points or AOF.
    pub fn builder(version: Version) -> Builder {
        Builder::new(version)
    }

    pub(super) fn from_builder(spec: Builder) -> Result<Server, String> {
        let (own_dir, dir) = match &spec.dir {
            Some(dir) => (None, dir.clone()),
            None => {
                let prefix = format!("redisdr-{}-", spec.version);
                let own = tempfile::Builder::new().prefix(&prefix).tempdir().map_err(|e| e.to_string())?;
                let path = own.path().to_owned();
                (Some(own), path)
            }
        };
        let ready = spec.ready;
        let server = Server {
            version: spec.version,
            spec: Mutex::new(spec),
            dir,
            own_dir,
            port: Port::pick(),
            endpoint: Port::pick(),
            child: Mutex::new(None),
        };
        server.write_conf();
        server.try_launch()?;
        if ready {
            server.try_ready()?;
        }
        Ok(server)
    }

    /// A server with the module and no other wishes.
    #[track_caller]
    pub fn start(version: Version) -> Server {
        Server::builder(version).start()
    }

    /// A server without the module.
    #[track_caller]
    pub fn plain(version: Version) -> Server {
        Server::builder(version).module(false).start()
    }

    fn conf_path(&self) -> PathBuf {
        self.dir.join("redis.conf")
    }

    fn defaults(&self, spec: &Builder) -> Vec<(&'static str, String)> {
        let dir = self.dir.display();
        let port = if spec.tcp { self.port() } else { 0 };
        let mut lines = vec![
            ("port", port.to_string()),
            ("bind", "127.0.0.1".to_owned()),
            ("dir", dir.to_string()),
            ("logfile", format!("{dir}/server.log")),
        ];
        if spec.sentinel {
            return lines;
        }
        if spec.template.is_none() {
            lines.extend([("save", String::new()), ("appendonly", "no".to_owned())]);
        }
        lines.push(("repl-diskless-sync-delay", "0".to_owned()));
        if spec.unix {
            lines.push(("unixsocket", format!("{dir}/server.sock")));
        }
        if self.version.has(7, 0) {
            lines.extend([
                ("enable-debug-command", "yes".to_owned()),
                ("enable-module-command", "yes".to_owned()),
            ]);
        }
        if let Some(password) = &spec.password {
            let quoted = format!("\"{password}\"");
            lines.extend([("requirepass", quoted.clone()), ("masterauth", quoted)]);
        }
        lines
    }

    fn write_conf(&self) {
        let spec = self.spec.lock().unwrap();
        let mut text = spec.template.clone().unwrap_or_default();
        let mut line = |name: &str, value: &str| {
            text += &format!("{name} {}\n", if value.is_empty() { "\"\"" } else { value });
        };
        for (name, value) in self.defaults(&spec) {
            if !spec.config.iter().any(|(own, _)| own == name) {
                line(name, &value);
            }
        }
        for (name, value) in &spec.config {
            line(name, value);
        }
        if spec.module {
            let mut args = spec.args.clone();
            if !args.iter().any(|(name, _)| name == "endpoint") {
                args.push(("endpoint".to_owned(), self.endpoint.addr()));
            }
            let words: Vec<String> = args.iter().map(|(name, value)| format!("{name} \"{value}\"")).collect();
            line("loadmodule", &format!("{} {}", module_path().display(), words.join(" ")));
        }
        fs::write(self.conf_path(), text).unwrap();
    }

    fn try_launch(&self) -> Result<(), String> {
        let mut child = self.child.lock().unwrap();
        assert!(child.is_none(), "the server runs already");
        let spec = self.spec.lock().unwrap();
        if spec.module && !module_path().exists() {
            return Err(format!("{} is missing: cargo build --release", module_path().display()));
        }
        let program = self.version.path();
        let output = File::options().create(true).append(true).open(self.dir.join("output.log")).unwrap();
        let mut command = Command::new(&program);
        command.arg(self.conf_path()).current_dir(&self.dir).stdin(Stdio::null());
        command.envs(spec.env.iter().map(|(name, value)| (name, value)));
        command.stdout(output.try_clone().unwrap()).stderr(output);
        if spec.sentinel {
            command.arg("--sentinel");
        }
        let started = spawn(command).map_err(|e| format!("{}: {e}", program.display()))?;
        *child = Some(started);
        Ok(())
    }

    fn try_ready(&self) -> Result<(), String> {
        let began = Instant::now();
        let mut last = String::new();
        let up = poll(deadline(), || {
            if !self.is_alive() {
                return Some(false);
            }
            match self.try_client().and_then(|mut client| client.try_call(&["PING"])) {
                Ok(Reply::Error(text)) if text.starts_with("LOADING") => last = text,
                Ok(_) => return Some(true),
                Err(error) => last = error.to_string(),
            }
            None
        });
        let what = match up {
            Some(true) => return Ok(()),
            Some(false) => format!("ended while starting: {:?}", self.exit_status()),
            None => format!("did not answer within {:.0} s: {last}", began.elapsed().as_secs_f64()),
        };
        Err(format!("{} {what}\n{}", self.version, self.log_tail(40)))
    }

    /// Waits until the server answers PING with something else than LOADING.
    #[track_caller]
    pub fn wait_ready(&self) {
        if let Err(failure) = self.try_ready() {
            panic!("{failure}");
        }
    }

    /// Starts it again after [`Server::kill9`] or [`Server::terminate`], with what it was started with.
    #[track_caller]
    pub fn start_again(&self) {
        self.launch();
        self.wait_ready();
    }

    /// As [`Server::start_again`], without waiting.
    #[track_caller]
    pub fn launch(&self) {
        if let Err(failure) = self.try_launch() {
            panic!("{failure}");
        }
    }

    /// SIGTERM, wait, start again.
    #[track_caller]
    pub fn restart(&self) {
        self.terminate();
        self.start_again();
    }

    /// From the next start on: a directive of the configuration. The file is written anew, so what CONFIG REWRITE put
    /// there goes.
    pub fn set_config(&self, name: &str, value: &str) {
        set(&mut self.spec.lock().unwrap().config, name, value.to_owned());
        self.write_conf();
    }

    /// From the next start on: an argument of the module; `None` takes it away.
    pub fn set_arg(&self, name: &str, value: Option<&str>) {
        let mut spec = self.spec.lock().unwrap();
        spec.args.retain(|(old, _)| old != name);
        spec.args.extend(value.map(|value| (name.to_owned(), value.to_owned())));
        drop(spec);
        self.write_conf();
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill9(&self) {
        if let Some(mut child) = self.child.lock().unwrap().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM; waits until it has ended and gives how long that took.
    #[track_caller]
    pub fn terminate(&self) -> Duration {
        signal(self.pid(), libc::SIGTERM);
        let began = Instant::now();
        self.wait_exit();
        began.elapsed()
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    pub fn wait_exit(&self) -> ExitStatus {
        let Some(status) = poll(deadline(), || self.exit_status()) else {
            panic!("{} does not end\n{}", self.version, self.log_tail(40));
        };
        *self.child.lock().unwrap() = None;
        status
    }

    /// SIGSTOP.
    pub fn stop(&self) {
        signal(self.pid(), libc::SIGSTOP);
    }

    /// SIGCONT.
    pub fn cont(&self) {
        signal(self.pid(), libc::SIGCONT);
    }

    /// The server's process id.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.child.lock().unwrap().as_ref().expect("the server is not running").id()
    }

    /// Whether the process runs.
    pub fn is_alive(&self) -> bool {
        self.child.lock().unwrap().as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    fn exit_status(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap().as_mut().and_then(|child| child.try_wait().ok().flatten())
    }

    /// Its TCP port.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// `127.0.0.1:<port>`
    pub fn addr(&self) -> String {
        self.port.addr()
    }

    /// Its DR endpoint, `127.0.0.1:<port>`.
    pub fn endpoint(&self) -> String {
        self.endpoint.addr()
    }

    /// Its folder: `redis.conf`, `server.log`, `output.log`, `server.sock` and what the server writes.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its unix socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("server.sock")
    }

    pub(super) fn try_client(&self) -> std::io::Result<Client> {
        let spec = self.spec.lock().unwrap();
        let place = if spec.tcp { Place::Tcp(self.addr()) } else { Place::Unix(self.socket()) };
        let password = spec.password.clone();
        drop(spec);
        Client::open(&Target { place, password })
    }

    /// A new connection.
    #[track_caller]
    pub fn client(&self) -> Client {
        match self.try_client() {
            Ok(client) => client,
            Err(error) => panic!("cannot connect to {}: {error}\n{}", self.version, self.log_tail(40)),
        }
    }

    /// One section of INFO as name and value.
    #[track_caller]
    pub fn info(&self, section: &str) -> BTreeMap<String, String> {
        let text = self.client().call(&["INFO", section]).good().text();
        let pairs = text.lines().filter_map(|line| line.split_once(':'));
        pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
    }

    /// One field of INFO; an absent one is empty.
    #[track_caller]
    pub fn info_field(&self, section: &str, field: &str) -> String {
        self.info(section).remove(field).unwrap_or_default()
    }

    /// Makes it a native replica of `master` and waits until it is in step.
    #[track_caller]
    pub fn replicate(&self, master: &Server) {
        cmd!(self.client(), "REPLICAOF", "127.0.0.1", master.port()).ok();
        self.wait_in_step(master);
    }

    /// Waits until this native replica's link is up and it has all of its master's stream.
    #[track_caller]
    pub fn wait_in_step(&self, master: &Server) {
        super::wait::until("the native replica is in step", || {
            let own = self.info("replication");
            let offset = |info: &BTreeMap<String, String>| info.get("master_repl_offset").cloned();
            own.get("master_link_status").is_some_and(|status| status == "up")
                && offset(&own) == offset(&master.info("replication"))
        });
    }

    /// The whole log so far, over all starts.
    pub fn log(&self) -> String {
        let read = |name: &str| fs::read(self.dir.join(name)).unwrap_or_default();
        let mut text = String::from_utf8_lossy(&read("server.log")).into_owned();
        text += &String::from_utf8_lossy(&read("output.log"));
        text
    }

    /// The last lines of the log, for failure messages.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        let tail = all.iter().skip(all.len().saturating_sub(lines)).map(|line| format!("    {line}\n"));
        format!("  log of {} in {}:\n{}", self.version, self.dir.display(), tail.collect::<String>())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill9();
        let failing = std::thread::panicking();
        if failing {
            eprintln!("{}", self.log_tail(30));
        }
        if failing || std::env::var_os("REDISDR_TEST_KEEP").is_some() {
            if let Some(dir) = self.own_dir.take() {
                eprintln!("  kept: {}", dir.keep().display());
            }
        }
    }
}
