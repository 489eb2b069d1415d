//! Connections of the module to its own server.
//!
//! The module is an ordinary client of the server that it is loaded into: tap, feed and controller each hold a
//! connection. They authenticate with `DR._AUTH` and a secret that is drawn anew for each process, so that no
//! password has to be configured.

mod conn;
mod reply;

use std::fmt;
use std::io;
use std::path::PathBuf;

pub use conn::{push_command, Conn, Stream};
pub use reply::Reply;

/// Where the own server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// Host and port.
    Tcp(String, u16),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// What proves to the server that a connection is the module's own. `None` for servers without the module.
#[derive(Clone, Default)]
pub struct Secret(pub Option<String>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Why a call on the own server failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum LocalError {
    /// The connection could not be made.
    Connect(Address, io::Error),
    /// The connection broke.
    Io(io::Error),
    /// The server closed it.
    Closed,
    /// The server refused the module's own authentication.
    Auth(String),
    /// An error reply to this command.
    Reply {
        /// First word of the command.
        command: String,
        /// The server's words.
        error: String,
    },
    /// Something else than the protocol allows.
    Protocol(&'static str),
    /// What was to be sent could not be read.
    Source(String),
}

impl fmt::Display for LocalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(addr, e) => write!(f, "cannot connect to the own server at {addr}: {e}"),
            Self::Io(e) => write!(f, "connection to the own server broke: {e}"),
            Self::Source(what) => f.write_str(what),
            Self::Closed => f.write_str("the own server closed the connection"),
            Self::Auth(e) => write!(f, "the own server refused the module's connection: {e}"),
            Self::Reply { command, error } => write!(f, "{command} failed: {error}"),
            Self::Protocol(what) => write!(f, "unexpected reply from the own server: {what}"),
        }
    }
}

impl std::error::Error for LocalError {}

impl From<io::Error> for LocalError {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}
