//! One blocking connection.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::{Address, LocalError, Reply, Secret};

/// How long a single reply may take before the connection counts as broken. Generous: a server may be busy
/// with a script or a large command, and a broken local connection is told by the kernel.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// The socket of a connection.
#[derive(Debug)]
pub enum Stream {
    /// TCP, with `TCP_NODELAY`.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
}

impl Stream {
    fn connect(addr: &Address) -> io::Result<Self> {
        match addr {
            Address::Unix(path) => UnixStream::connect(path).map(Self::Unix),
            Address::Tcp(host, port) => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                for sock in (host.as_str(), *port).to_socket_addrs()? {
                    match TcpStream::connect_timeout(&sock, Duration::from_secs(5)) {
                        Ok(s) => {
                            s.set_nodelay(true)?;
                            return Ok(Self::Tcp(s));
                        }
                        Err(e) => last = e,
                    }
                }
                Err(last)
            }
        }
    }

    /// Sets the longest time that a read blocks.
    ///
    /// # Errors
    /// The operating system's.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(s) => s.set_read_timeout(timeout),
            Self::Unix(s) => s.set_read_timeout(timeout),
        }
    }

    /// Ends both directions; a thread that reads returns.
    ///
    /// # Errors
    /// The operating system's.
    pub fn shutdown(&self) -> io::Result<()> {
        match self {
            Self::Tcp(s) => s.shutdown(Shutdown::Both),
            Self::Unix(s) => s.shutdown(Shutdown::Both),
        }
    }

    /// A second handle of the same socket.
    ///
    /// # Errors
    /// The operating system's.
    pub fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(s) => s.try_clone().map(Self::Tcp),
            Self::Unix(s) => s.try_clone().map(Self::Unix),
        }
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Tcp(s) => s.as_raw_fd(),
            Self::Unix(s) => s.as_raw_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(s) => s.read(buf),
            Self::Unix(s) => s.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(s) => s.write(buf),
            Self::Unix(s) => s.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection that sends commands and reads replies.
#[derive(Debug)]
pub struct Conn {
    stream: Stream,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Conn {
    /// Connects and authenticates.
    ///
    /// # Errors
    /// [`LocalError::Connect`], [`LocalError::Auth`], or what the connection meets.
    pub fn open(addr: &Address, secret: &Secret) -> Result<Self, LocalError> {
        let stream = Stream::connect(addr).map_err(|e| LocalError::Connect(addr.clone(), e))?;
        stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
        let mut conn = Self { stream, input: Vec::new(), output: Vec::new() };
        if let Some(secret) = &secret.0 {
            if let Reply::Error(e) = conn.call_raw(&[b"DR._AUTH", secret.as_bytes()])? {
                return Err(LocalError::Auth(e));
            }
        }
        Ok(conn)
    }

    /// Sends one command and reads its reply; an error reply is an error.
    ///
    /// # Errors
    /// [`LocalError::Reply`], or what the connection meets.
    pub fn call(&mut self, args: &[&[u8]]) -> Result<Reply, LocalError> {
        match self.call_raw(args)? {
            Reply::Error(error) => Err(LocalError::Reply {
                command: String::from_utf8_lossy(args.first().copied().unwrap_or_default()).into_owned(),
                error,
            }),
            reply => Ok(reply),
        }
    }

    /// Sends one command and reads its reply; an error reply is a reply.
    ///
    /// # Errors
    /// What the connection meets.
    pub fn call_raw(&mut self, args: &[&[u8]]) -> Result<Reply, LocalError> {
        self.push(args);
        self.flush()?;
        self.read_reply()
    }

    /// Adds a command to the output buffer; [`Self::flush`] sends it.
    pub fn push(&mut self, args: &[&[u8]]) {
        push_command(&mut self.output, args);
    }

    /// Sends what was pushed.
    ///
    /// # Errors
    /// The operating system's.
    pub fn flush(&mut self) -> Result<(), LocalError> {
        self.stream.write_all(&self.output)?;
        self.output.clear();
        // One large command must not keep its buffer for the life of the connection.
        if self.output.capacity() > 1024 * 1024 {
            self.output = Vec::new();
        }
        Ok(())
    }

    /// Reads one reply.
    ///
    /// # Errors
    /// What the connection meets; [`LocalError::Io`] with `WouldBlock` after the read timeout.
    pub fn read_reply(&mut self) -> Result<Reply, LocalError> {
        loop {
            if let Some((reply, used)) = Reply::parse(&self.input)? {
                self.input.drain(..used);
                return Ok(reply);
            }
            let mut chunk = [0u8; 16 * 1024];
            let n = match self.stream.read(&mut chunk) {
                Ok(0) => return Err(LocalError::Closed),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e.into()),
            };
            self.input.extend_from_slice(chunk.get(..n).unwrap_or_default());
        }
    }

    /// The socket.
    #[must_use]
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Gives the socket up, with the bytes that were read and not used.
    #[must_use]
    pub fn into_stream(self) -> (Stream, Vec<u8>) {
        (self.stream, self.input)
    }

    /// `INFO section` as field/value pairs.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn info(&mut self, section: &str) -> Result<std::collections::HashMap<String, String>, LocalError> {
        let reply = self.call(&[b"INFO", section.as_bytes()])?;
        let text = reply.text().ok_or(LocalError::Protocol("INFO is no text"))?;
        Ok(text
            .lines()
            .filter_map(|l| l.split_once(':'))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect())
    }

    /// The value of one setting; `None` where the server does not know it.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn config_get(&mut self, name: &str) -> Result<Option<String>, LocalError> {
        match self.call(&[b"CONFIG", b"GET", name.as_bytes()])? {
            Reply::Array(items) => Ok(items.get(1).and_then(Reply::text)),
            _ => Err(LocalError::Protocol("CONFIG GET is no array")),
        }
    }

    /// Sets one setting.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn config_set(&mut self, name: &str, value: &str) -> Result<(), LocalError> {
        self.call(&[b"CONFIG", b"SET", name.as_bytes(), value.as_bytes()]).map(|_| ())
    }
}

/// Appends a command as a RESP array of bulk strings.
pub fn push_command(out: &mut Vec<u8>, args: &[&[u8]]) {
    let head = |out: &mut Vec<u8>, kind: u8, n: usize| {
        out.push(kind);
        out.extend_from_slice(n.to_string().as_bytes());
        out.extend_from_slice(b"\r\n");
    };
    head(out, b'*', args.len());
    for a in args {
        head(out, b'$', a.len());
        out.extend_from_slice(a);
        out.extend_from_slice(b"\r\n");
    }
}
