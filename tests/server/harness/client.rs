//! A blocking client that can also misbehave: raw bytes, pipelines, half-read replies.

use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::resp::{self, Reply};
use super::wait::deadline;

/// Sends a command and gives its [`Reply`]: `cmd!(client, "SET", key, 17)`. Errors of the server are replies, a broken
/// connection panics (see [`Client::try_call`] for where it is expected).
#[macro_export]
macro_rules! cmd {
    ($client:expr, $($arg:expr),+ $(,)?) => {
        $client.call(&[$($crate::harness::client::ToArg::to_arg(&$arg)),+])
    };
}

/// What can be an argument of a command.
pub trait ToArg {
    /// The bytes that are sent.
    fn to_arg(&self) -> Vec<u8>;
}

macro_rules! to_arg_by_text {
    ($($kind:ty)+) => { $(impl ToArg for $kind { fn to_arg(&self) -> Vec<u8> { self.to_string().into_bytes() } })+ };
}
to_arg_by_text!(str String i32 i64 u16 u32 u64 usize f64);

macro_rules! to_arg_by_bytes {
    ($($kind:ty)+) => { $(impl ToArg for $kind { fn to_arg(&self) -> Vec<u8> { self.to_vec() } })+ };
}
to_arg_by_bytes!([u8] Vec<u8>);

impl<const N: usize> ToArg for [u8; N] {
    fn to_arg(&self) -> Vec<u8> {
        self.to_vec()
    }
}

impl<T: ToArg + ?Sized> ToArg for &T {
    fn to_arg(&self) -> Vec<u8> {
        (**self).to_arg()
    }
}

/// Where a server listens, and how to log in.
#[derive(Debug, Clone)]
pub struct Target {
    /// `host:port`, or a socket's path.
    pub place: Place,
    /// Given to AUTH after each connect.
    pub password: Option<String>,
}

/// A TCP address or a unix socket.
#[derive(Debug, Clone)]
pub enum Place {
    /// `host:port`
    Tcp(String),
    /// Path of a socket.
    Unix(PathBuf),
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn open(place: &Place, timeout: Duration) -> io::Result<Stream> {
        let stream = match place {
            Place::Tcp(addr) => Stream::Tcp(TcpStream::connect(addr)?),
            Place::Unix(path) => Stream::Unix(UnixStream::connect(path)?),
        };
        stream.set_timeout(timeout)?;
        if let Stream::Tcp(tcp) = &stream {
            tcp.set_nodelay(true)?;
        }
        Ok(stream)
    }

    fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Stream::Tcp(tcp) => tcp.set_read_timeout(Some(timeout)).and(tcp.set_write_timeout(Some(timeout))),
            Stream::Unix(unix) => {
                unix.set_read_timeout(Some(timeout)).and(unix.set_write_timeout(Some(timeout)))
            }
        }
    }

    fn try_clone(&self) -> io::Result<Stream> {
        Ok(match self {
            Stream::Tcp(tcp) => Stream::Tcp(tcp.try_clone()?),
            Stream::Unix(unix) => Stream::Unix(unix.try_clone()?),
        })
    }

    fn shutdown(&self) {
        let _ = match self {
            Stream::Tcp(tcp) => tcp.shutdown(Shutdown::Both),
            Stream::Unix(unix) => unix.shutdown(Shutdown::Both),
        };
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(tcp) => tcp.read(buf),
            Stream::Unix(unix) => unix.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(tcp) => tcp.write(buf),
            Stream::Unix(unix) => unix.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    target: Target,
    stream: BufReader<Stream>,
    timeout: Duration,
}

impl Client {
    /// Connects over TCP.
    pub fn tcp(addr: &str) -> io::Result<Client> {
        Client::open(&Target { place: Place::Tcp(addr.to_owned()), password: None })
    }

    /// Connects to a unix socket.
    pub fn unix(path: &Path) -> io::Result<Client> {
        Client::open(&Target { place: Place::Unix(path.to_owned()), password: None })
    }

    /// Connects and logs in.
    pub fn open(target: &Target) -> io::Result<Client> {
        let timeout = deadline();
        let stream = BufReader::with_capacity(1 << 16, Stream::open(&target.place, timeout)?);
        let mut client = Client { target: target.clone(), stream, timeout };
        if let Some(password) = &target.password {
            let reply = client.try_call(&["AUTH", password])?;
            if let Reply::Error(text) = reply {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
            }
        }
        Ok(client)
    }

    /// Drops the connection and opens a new one to the same place.
    pub fn reconnect(&mut self) -> io::Result<()> {
        let fresh = Client::open(&self.target)?;
        self.stream = fresh.stream;
        self.stream.get_ref().set_timeout(self.timeout)
    }

    /// How long a read or a write may block.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
        self.stream.get_ref().set_timeout(timeout).unwrap();
    }

    /// Switches to RESP3.
    #[track_caller]
    pub fn resp3(&mut self) {
        self.call(&["HELLO", "3"]).good();
    }

    /// Sends one command and reads its reply.
    pub fn try_call<A: AsRef<[u8]>>(&mut self, args: &[A]) -> io::Result<Reply> {
        self.send(args)?;
        self.read()
    }

    /// As [`Client::try_call`]; a broken connection panics.
    #[track_caller]
    pub fn call<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Reply {
        match self.try_call(args) {
            Ok(reply) => reply,
            Err(error) => {
                let name = args.first().map(|arg| String::from_utf8_lossy(arg.as_ref()).into_owned());
                panic!("{:?} to {:?}: {error}", name.unwrap_or_default(), self.target.place)
            }
        }
    }

    /// A command given as one line, split at spaces.
    #[track_caller]
    pub fn line(&mut self, line: &str) -> Reply {
        self.call(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// Sends a command without reading its reply.
    pub fn send<A: AsRef<[u8]>>(&mut self, args: &[A]) -> io::Result<()> {
        let mut out = Vec::new();
        resp::write_command(&mut out, args);
        self.send_raw(&out)
    }

    /// Sends bytes as they are.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Reads one reply.
    pub fn read(&mut self) -> io::Result<Reply> {
        resp::read_reply(&mut self.stream)
    }

    /// Sends all commands of `pipe` and reads all replies at the same time, so that neither side blocks the other. The
    /// replies that came before a broken connection are given with its error.
    pub fn try_run(&mut self, pipe: &Pipe) -> (Vec<Reply>, io::Result<()>) {
        let mut replies = Vec::with_capacity(pipe.count);
        let mut writer = match self.stream.get_ref().try_clone() {
            Ok(writer) => writer,
            Err(error) => return (replies, Err(error)),
        };
        let result = std::thread::scope(|scope| {
            let sending = scope.spawn(move || writer.write_all(&pipe.bytes));
            for _ in 0..pipe.count {
                match resp::read_reply(&mut self.stream) {
                    Ok(reply) => replies.push(reply),
                    Err(error) => {
                        self.stream.get_ref().shutdown(); // the sender may be blocked on it
                        return Err(error);
                    }
                }
            }
            sending.join().unwrap()
        });
        (replies, result)
    }

    /// As [`Client::try_run`]; a broken connection panics.
    #[track_caller]
    pub fn run(&mut self, pipe: &Pipe) -> Vec<Reply> {
        let (replies, result) = self.try_run(pipe);
        if let Err(error) = result {
            panic!("pipeline to {:?} broke after {} replies: {error}", self.target.place, replies.len());
        }
        replies
    }

    /// Runs `pipe` and asserts that no reply is an error.
    #[track_caller]
    pub fn run_good(&mut self, pipe: &Pipe) -> Vec<Reply> {
        self.run(pipe).into_iter().map(Reply::good).collect()
    }
}

/// Commands to be sent in one go.
#[derive(Debug, Default)]
pub struct Pipe {
    bytes: Vec<u8>,
    count: usize,
}

impl Pipe {
    /// An empty one.
    pub fn new() -> Pipe {
        Pipe::default()
    }

    /// Adds a command.
    pub fn add<A: AsRef<[u8]>>(&mut self, args: &[A]) -> &mut Pipe {
        resp::write_command(&mut self.bytes, args);
        self.count += 1;
        self
    }

    /// Commands so far.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes so far.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }
}
