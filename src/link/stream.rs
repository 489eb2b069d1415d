//! The byte stream below the frames: one place where an encrypted one can be added.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// A connection between a source and a target.
#[derive(Debug)]
pub enum Stream {
    /// Plain TCP.
    Tcp(TcpStream),
}

impl Stream {
    /// Wraps an accepted or opened socket. Small frames leave at once.
    ///
    /// # Errors
    /// What the socket said.
    pub fn tcp(socket: TcpStream) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        Ok(Self::Tcp(socket))
    }

    /// A second handle to the same connection: one side reads while the other writes.
    ///
    /// # Errors
    /// What the socket said.
    pub fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(s) => s.try_clone().map(Self::Tcp),
        }
    }

    /// Ends the connection in both directions; readers and writers in other threads return at once.
    pub fn shutdown(&self) {
        match self {
            // Fails where the other side has gone already.
            Self::Tcp(s) => drop(s.shutdown(Shutdown::Both)),
        }
    }

    /// Says that nothing more will be written; what was written still arrives.
    pub fn finish_writing(&self) {
        match self {
            Self::Tcp(s) => drop(s.shutdown(Shutdown::Write)),
        }
    }

    /// Address of the other side.
    ///
    /// # Errors
    /// What the socket said.
    pub fn peer(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Tcp(s) => s.peer_addr(),
        }
    }

    /// How long a read may wait; at least a millisecond.
    ///
    /// # Errors
    /// What the socket said.
    pub fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(s) => s.set_read_timeout(Some(timeout.max(Duration::from_millis(1)))),
        }
    }

    /// How long a write may wait without progress; at least a millisecond.
    ///
    /// # Errors
    /// What the socket said.
    pub fn set_write_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(s) => s.set_write_timeout(Some(timeout.max(Duration::from_millis(1)))),
        }
    }

    /// Reads what is there.
    ///
    /// # Errors
    /// What the socket said.
    pub fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(s) => s.read(buf),
        }
    }

    /// Writes as much as fits.
    ///
    /// # Errors
    /// What the socket said.
    pub fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(s) => s.write_vectored(parts),
        }
    }
}
