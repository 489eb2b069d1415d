//! RESP2 and RESP3 on the wire.

use std::io::{self, BufRead, Read};

/// The protocol's own limit for one string; anything above is a broken stream.
const MAX_BULK: usize = 1 << 30;

/// What a server answered.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// `+OK`
    Simple(String),
    /// `-ERR ...`, without the dash.
    Error(String),
    /// `:1`
    Int(i64),
    /// A string; also RESP3's verbatim string, without its type.
    Bulk(Vec<u8>),
    /// RESP2's two nils and RESP3's one.
    Nil,
    /// An array; also RESP3's set.
    Array(Vec<Reply>),
    /// RESP3's map.
    Map(Vec<(Reply, Reply)>),
    /// RESP3's double.
    Double(f64),
    /// RESP3's boolean.
    Bool(bool),
    /// RESP3's out-of-band message.
    Push(Vec<Reply>),
}

impl Reply {
    /// The error's text, if it is one.
    pub fn error(&self) -> Option<&str> {
        match self {
            Reply::Error(text) => Some(text),
            _ => None,
        }
    }

    /// Whether it is an error that begins with `prefix`.
    pub fn is_error(&self, prefix: &str) -> bool {
        self.error().is_some_and(|text| text.starts_with(prefix))
    }

    /// Whether it is a nil.
    pub fn is_nil(&self) -> bool {
        *self == Reply::Nil
    }

    /// Asserts `+OK`.
    #[track_caller]
    pub fn ok(&self) {
        assert_eq!(*self, Reply::Simple("OK".into()));
    }

    /// Asserts that it is no error, and gives it back.
    #[track_caller]
    pub fn good(self) -> Reply {
        if let Reply::Error(text) = &self {
            panic!("the server answered: {text}");
        }
        self
    }

    /// The number, also when it came as a string.
    #[track_caller]
    pub fn int(&self) -> i64 {
        match self {
            Reply::Int(value) => *value,
            Reply::Bulk(_) | Reply::Simple(_) => self.text().parse().expect("a number"),
            other => panic!("wanted a number, got {other:?}"),
        }
    }

    /// The bytes of a string.
    #[track_caller]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Reply::Bulk(bytes) => bytes,
            Reply::Simple(text) => text.as_bytes(),
            other => panic!("wanted a string, got {other:?}"),
        }
    }

    /// A string as text; bytes that are not UTF-8 are replaced.
    #[track_caller]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }

    /// The elements of an array; a map gives keys and values in turn, as RESP2 does.
    #[track_caller]
    pub fn array(self) -> Vec<Reply> {
        match self {
            Reply::Array(items) | Reply::Push(items) => items,
            Reply::Map(pairs) => pairs.into_iter().flat_map(|(key, value)| [key, value]).collect(),
            other => panic!("wanted an array, got {other:?}"),
        }
    }

    /// Elements of an array as byte strings.
    #[track_caller]
    pub fn strings(self) -> Vec<Vec<u8>> {
        self.array().iter().map(|item| item.bytes().to_vec()).collect()
    }
}

/// Appends one command.
pub fn write_command<A: AsRef<[u8]>>(out: &mut Vec<u8>, args: &[A]) {
    out.extend_from_slice(format!("*{}\r\n", args.len()).as_bytes());
    for arg in args {
        let arg = arg.as_ref();
        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
}

fn broken(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn read_line(input: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    input.read_until(b'\n', &mut line)?;
    if !line.ends_with(b"\r\n") {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "connection closed by the server"));
    }
    line.truncate(line.len() - 2);
    Ok(line)
}

fn number<T: std::str::FromStr>(text: &str) -> io::Result<T> {
    text.parse().map_err(|_| broken(format!("not a number: {text:?}")))
}

fn read_bulk(input: &mut impl BufRead, len: usize) -> io::Result<Vec<u8>> {
    if len > MAX_BULK {
        return Err(broken(format!("string of {len} bytes")));
    }
    let mut bytes = Vec::new();
    input.take(len as u64 + 2).read_to_end(&mut bytes)?;
    if bytes.len() != len + 2 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "connection closed inside a string"));
    }
    bytes.truncate(len);
    Ok(bytes)
}

fn read_items(input: &mut impl BufRead, count: usize) -> io::Result<Vec<Reply>> {
    (0..count).map(|_| read_reply(input)).collect()
}

/// Reads one reply.
pub fn read_reply(input: &mut impl BufRead) -> io::Result<Reply> {
    let line = read_line(input)?;
    let (kind, rest) = line.split_first().ok_or_else(|| broken("empty line".into()))?;
    let text = String::from_utf8_lossy(rest).into_owned();
    Ok(match kind {
        b'+' => Reply::Simple(text),
        b'-' => Reply::Error(text),
        b':' => Reply::Int(number(&text)?),
        b',' => Reply::Double(number(&text)?),
        b'#' => Reply::Bool(text == "t"),
        b'(' => Reply::Simple(text),
        b'_' => Reply::Nil,
        b'$' | b'*' if text == "-1" => Reply::Nil,
        b'$' => Reply::Bulk(read_bulk(input, number(&text)?)?),
        b'=' => Reply::Bulk(read_bulk(input, number(&text)?)?.split_off(4)),
        b'!' => Reply::Error(String::from_utf8_lossy(&read_bulk(input, number(&text)?)?).into_owned()),
        b'*' | b'~' => Reply::Array(read_items(input, number(&text)?)?),
        b'>' => Reply::Push(read_items(input, number(&text)?)?),
        b'%' => {
            let mut items = read_items(input, number::<usize>(&text)? * 2)?.into_iter();
            let mut pairs = Vec::new();
            while let (Some(key), Some(value)) = (items.next(), items.next()) {
                pairs.push((key, value));
            }
            Reply::Map(pairs)
        }
        other => return Err(broken(format!("reply type {:?}", char::from(*other)))),
    })
}
