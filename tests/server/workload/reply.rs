//! A connection of the workload and the replies it gets. RESP2, pipelined.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

#[derive(Clone, PartialEq)]
pub enum Reply {
    Simple(String),
    Error(String),
    Int(i64),
    Bulk(Vec<u8>),
    Nil,
    Array(Vec<Reply>),
}

/// Bytes as escaped text, so that failures can be read.
impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reply::Simple(s) => f.write_str(s),
            Reply::Error(e) => write!(f, "-{e}"),
            Reply::Int(n) => write!(f, "{n}"),
            Reply::Bulk(b) => write!(f, "\"{}\"", b.escape_ascii()),
            Reply::Nil => f.write_str("nil"),
            Reply::Array(items) => f.debug_list().entries(items).finish(),
        }
    }
}

impl Reply {
    pub fn items(&self) -> &[Reply] {
        match self {
            Reply::Array(items) => items,
            _ => &[],
        }
    }

    pub fn bytes(&self) -> &[u8] {
        match self {
            Reply::Bulk(b) => b,
            Reply::Simple(s) | Reply::Error(s) => s.as_bytes(),
            _ => &[],
        }
    }

    pub fn text(&self) -> String {
        match self {
            Reply::Int(n) => n.to_string(),
            other => String::from_utf8_lossy(other.bytes()).into_owned(),
        }
    }

    pub fn int(&self) -> i64 {
        match self {
            Reply::Int(n) => *n,
            other => panic!("not an integer: {other:?}"),
        }
    }

    pub fn error(&self) -> Option<&str> {
        match self {
            Reply::Error(e) => Some(e),
            _ => None,
        }
    }

    /// True when the reply says that something happened: not an error, null, zero or all empty.
    pub fn shows_effect(&self) -> bool {
        match self {
            Reply::Error(_) | Reply::Nil => false,
            Reply::Int(n) => *n != 0,
            Reply::Simple(_) | Reply::Bulk(_) => true,
            Reply::Array(items) => items.iter().any(Reply::shows_effect),
        }
    }
}

/// A client connection.
pub struct Conn {
    reader: BufReader<TcpStream>,
    out: Vec<u8>,
}

impl Conn {
    pub fn open(addr: SocketAddr) -> io::Result<Conn> {
        Conn::open_for(addr, Duration::from_secs(120))
    }

    /// With another time to wait for a reply.
    pub fn open_for(addr: SocketAddr, patience: Duration) -> io::Result<Conn> {
        let stream = TcpStream::connect_timeout(&addr, Duration::from_secs(10))?;
        stream.set_nodelay(true)?;
        // A stuck server must fail the test, not hang it.
        stream.set_read_timeout(Some(patience))?;
        Ok(Conn { reader: BufReader::with_capacity(64 * 1024, stream), out: Vec::new() })
    }

    /// Queues a command; [`Conn::flush`] or the next read sends it.
    pub fn push<A: AsRef<[u8]>>(&mut self, argv: &[A]) {
        let _ = write!(self.out, "*{}\r\n", argv.len());
        for arg in argv {
            let arg = arg.as_ref();
            let _ = write!(self.out, "${}\r\n", arg.len());
            self.out.extend_from_slice(arg);
            self.out.extend_from_slice(b"\r\n");
        }
    }

    pub fn flush(&mut self) -> io::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        self.reader.get_mut().write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }

    pub fn read(&mut self) -> io::Result<Reply> {
        self.flush()?;
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\r\n") {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
        }
        let text = String::from_utf8_lossy(&line[1..line.len() - 2]).into_owned();
        let number = || text.parse::<i64>().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e));
        Ok(match line[0] {
            b'+' => Reply::Simple(text),
            b'-' => Reply::Error(text),
            b':' => Reply::Int(number()?),
            b'$' => match number()? {
                -1 => Reply::Nil,
                len => {
                    let mut bytes = vec![0; len as usize + 2];
                    self.reader.read_exact(&mut bytes)?;
                    bytes.truncate(len as usize);
                    Reply::Bulk(bytes)
                }
            },
            b'*' => match number()? {
                -1 => Reply::Nil,
                len => Reply::Array((0..len).map(|_| self.read()).collect::<Result<_, _>>()?),
            },
            other => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("reply type {other}: {text}"),
                ));
            }
        })
    }

    pub fn try_call<A: AsRef<[u8]>>(&mut self, argv: &[A]) -> io::Result<Reply> {
        self.push(argv);
        self.read()
    }

    /// The reply; the test ends when the connection does.
    pub fn call<A: AsRef<[u8]>>(&mut self, argv: &[A]) -> Reply {
        self.try_call(argv).expect("a reply")
    }

    /// All commands in one write, then all replies.
    pub fn pipeline<A: AsRef<[u8]>>(&mut self, commands: &[Vec<A>]) -> io::Result<Vec<Reply>> {
        for argv in commands {
            self.push(argv);
        }
        commands.iter().map(|_| self.read()).collect()
    }
}
