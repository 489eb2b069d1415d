//! What a server is to be started with.

use std::path::{Path, PathBuf};

use super::server::Server;
use super::versions::Version;

/// What a server is started with. All methods give the builder back.
#[derive(Debug, Clone)]
pub struct Builder {
    pub(super) version: Version,
    pub(super) module: bool,
    pub(super) args: Vec<(String, String)>,
    pub(super) config: Vec<(String, String)>,
    pub(super) template: Option<String>,
    pub(super) password: Option<String>,
    pub(super) tcp: bool,
    pub(super) unix: bool,
    pub(super) dir: Option<PathBuf>,
    pub(super) sentinel: bool,
    pub(super) ready: bool,
    pub(super) env: Vec<(String, String)>,
}

impl Builder {
    /// With the module, on a free port and a unix socket, without save points or AOF.
    pub(super) fn new(version: Version) -> Builder {
        Builder {
            version,
            module: true,
            args: Vec::new(),
            config: Vec::new(),
            template: None,
            password: None,
            tcp: true,
            unix: true,
            dir: None,
            sentinel: false,
            ready: true,
            env: Vec::new(),
        }
    }

    /// Whether the module is loaded; it is unless told otherwise.
    pub fn module(mut self, load: bool) -> Builder {
        self.module = load;
        self
    }

    /// One `name value` of the module. `endpoint` is given by the harness unless a test gives it.
    pub fn arg(mut self, name: &str, value: impl ToString) -> Builder {
        set(&mut self.args, name, value.to_string());
        self
    }

    /// Makes it a target of `source` from its start.
    pub fn source(self, source: &Server) -> Builder {
        let endpoint = source.endpoint();
        self.arg("source", endpoint)
    }

    /// One directive of the server's configuration; `("save", "")` becomes `save ""`. It replaces the harness's own
    /// default of that name. Given twice, both lines stand.
    pub fn config(mut self, name: &str, value: impl ToString) -> Builder {
        self.config.push((name.to_owned(), value.to_string()));
        self
    }

    /// Configuration text that comes first, before what the harness sets.
    pub fn template(mut self, text: &str) -> Builder {
        self.template = Some(text.to_owned());
        self
    }

    /// `requirepass` and `masterauth`; clients of the harness log in by themselves.
    pub fn password(mut self, password: &str) -> Builder {
        self.password = Some(password.to_owned());
        self
    }

    /// No TCP port, only the unix socket.
    pub fn unix_only(mut self) -> Builder {
        self.tcp = false;
        self.unix = true;
        self
    }

    /// No unix socket, only the TCP port.
    pub fn tcp_only(mut self) -> Builder {
        self.tcp = true;
        self.unix = false;
        self
    }

    /// Works in a folder of the test's, which the harness does not remove.
    pub fn dir(mut self, dir: &Path) -> Builder {
        self.dir = Some(dir.to_owned());
        self
    }

    /// A variable of its environment.
    pub fn env(mut self, name: &str, value: impl ToString) -> Builder {
        set(&mut self.env, name, value.to_string());
        self
    }

    /// Does not wait until the server answers; see [`Server::wait_ready`].
    pub fn no_wait(mut self) -> Builder {
        self.ready = false;
        self
    }

    /// Starts it as a Sentinel.
    pub(super) fn sentinel(mut self) -> Builder {
        self.sentinel = true;
        self.module(false)
    }

    /// Starts the server; panics with the end of its log when it does not come up.
    #[track_caller]
    pub fn start(self) -> Server {
        match self.try_start() {
            Ok(server) => server,
            Err(failure) => panic!("{failure}"),
        }
    }

    /// Starts the server, or tells why it did not come up (the log is in the text). For starts that must fail.
    pub fn try_start(self) -> Result<Server, String> {
        Server::from_builder(self)
    }
}

/// Sets the one value of `name`.
pub(super) fn set(list: &mut Vec<(String, String)>, name: &str, value: String) {
    list.retain(|(old, _)| old != name);
    list.push((name.to_owned(), value));
}
