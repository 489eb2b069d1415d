//! Ops: RESP arrays of bulk strings, as a server propagates them (redis.io, "RESP protocol specification").

use crate::error::FormatError;

/// Most arguments an op may have; the server itself stops at 2^31 - 1 but never propagates that many.
pub const MAX_ARGS: u64 = 16 * 1024 * 1024;
/// Longest argument: the server's `proto-max-bulk-len` may be raised above its default of 512 MB.
pub const MAX_ARG_LEN: u64 = u32::MAX as u64;
/// Longest line of a length: `$` or `*`, digits and CRLF.
const MAX_LINE: usize = 32;

/// Where one argument stands in the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arg {
    /// Offset of its first byte.
    pub start: usize,
    /// Offset behind its last byte.
    pub end: usize,
}

impl Arg {
    /// The bytes of the argument in `buf`; empty where the range does not fit.
    #[must_use]
    pub fn of<'a>(&self, buf: &'a [u8]) -> &'a [u8] {
        buf.get(self.start..self.end).unwrap_or_default()
    }
}

/// What stands at the start of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpScan {
    /// A whole op of `len` bytes.
    Complete {
        /// Its length.
        len: usize,
    },
    /// Not whole yet; at least `needed` bytes from its start.
    Incomplete {
        /// Bytes from the op's start that are needed at least; a hint for reading on.
        needed: u64,
    },
}

/// A line that holds a length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// The number, and the offset behind the line.
    Number(u64, usize),
    /// The line is not whole.
    More,
}

/// Reads the decimal length between the type byte `kind` at `at` and CRLF.
///
/// # Errors
/// [`FormatError::Op`] where another byte stands at `at`, or no number up to `max` follows.
#[inline]
pub fn length_line(buf: &[u8], at: usize, kind: u8, max: u64) -> Result<Line, FormatError> {
    let digit = |b: u8| u64::from(b.wrapping_sub(b'0'));
    // Nearly every line has one to three digits: told by their shape, without a loop.
    let (value, len) = match buf.get(at..) {
        Some([k, a, b'\r', b'\n', ..]) if *k == kind && digit(*a) < 10 => (digit(*a), 4),
        Some([k, a, b, b'\r', b'\n', ..]) if *k == kind && digit(*a) < 10 && digit(*b) < 10 => {
            (digit(*a) * 10 + digit(*b), 5)
        }
        Some([k, a, b, c, b'\r', b'\n', ..])
            if *k == kind && digit(*a) < 10 && digit(*b) < 10 && digit(*c) < 10 =>
        {
            (digit(*a) * 100 + digit(*b) * 10 + digit(*c), 6)
        }
        _ => return any_length_line(buf, at, kind, max),
    };
    if value > max {
        return Err(FormatError::Op { offset: at as u64, reason: "length out of bounds" });
    }
    Ok(Line::Number(value, at + len))
}

#[cold]
#[inline(never)]
fn any_length_line(buf: &[u8], at: usize, kind: u8, max: u64) -> Result<Line, FormatError> {
    let wrong = |reason| FormatError::Op { offset: at as u64, reason };
    match buf.get(at) {
        None => return Ok(Line::More),
        Some(b) if *b == kind => {}
        Some(_) => return Err(wrong("not an array of bulk strings")),
    }
    let mut value: u64 = 0;
    let mut pos = at + 1;
    loop {
        match buf.get(pos) {
            None => return if pos - at > MAX_LINE { Err(wrong("length too long")) } else { Ok(Line::More) },
            Some(d @ b'0'..=b'9') if pos - at < MAX_LINE => {
                value = value.saturating_mul(10).saturating_add(u64::from(*d - b'0'));
            }
            Some(b'\r') if pos > at + 1 => break,
            Some(_) => return Err(wrong("length is not a number")),
        }
        pos += 1;
    }
    match buf.get(pos + 1) {
        None => Ok(Line::More),
        Some(b'\n') if value <= max => Ok(Line::Number(value, pos + 2)),
        Some(b'\n') => Err(wrong("length out of bounds")),
        Some(_) => Err(wrong("line ends without LF")),
    }
}

/// Scans the op at the start of `buf`. `args` is cleared and filled with the ranges of its arguments.
///
/// # Errors
/// [`FormatError::Op`] where the bytes are not an array of at least one bulk string, or a length is out of
/// bounds.
pub fn parse_op(buf: &[u8], args: &mut Vec<Arg>) -> Result<OpScan, FormatError> {
    args.clear();
    let (count, mut pos) = match length_line(buf, 0, b'*', MAX_ARGS)? {
        Line::More => return Ok(OpScan::Incomplete { needed: buf.len() as u64 + 1 }),
        Line::Number(0, _) => return Err(FormatError::Op { offset: 0, reason: "empty array" }),
        Line::Number(n, pos) => (n, pos),
    };
    for _ in 0..count {
        let (len, start) = match length_line(buf, pos, b'$', MAX_ARG_LEN)? {
            Line::More => return Ok(OpScan::Incomplete { needed: buf.len() as u64 + 1 }),
            Line::Number(n, start) => (n, start),
        };
        let end = start as u64 + len;
        let Some(stop) = usize::try_from(end).ok().filter(|e| e + 2 <= buf.len()) else {
            return Ok(OpScan::Incomplete { needed: end + 2 });
        };
        if buf.get(stop..stop + 2) != Some(b"\r\n") {
            return Err(FormatError::Op { offset: stop as u64, reason: "argument ends without CRLF" });
        }
        args.push(Arg { start, end: stop });
        pos = stop + 2;
    }
    Ok(OpScan::Complete { len: pos })
}

/// Walks over the ops of a payload and keeps track of database and transaction.
#[derive(Debug)]
pub struct OpWalk<'a> {
    payload: &'a [u8],
    position: usize,
    args: Vec<Arg>,
    db: u32,
    in_transaction: bool,
    count: u32,
}

impl<'a> OpWalk<'a> {
    /// Begins at the start of a payload whose first op runs in `db`.
    #[must_use]
    pub fn new(payload: &'a [u8], db: u32) -> Self {
        Self { payload, position: 0, args: Vec::new(), db, in_transaction: false, count: 0 }
    }

    /// Goes over the next op and returns its arguments; `None` at the end.
    ///
    /// # Errors
    /// [`FormatError::Op`] where no whole op stands there.
    pub fn step(&mut self) -> Result<Option<Vec<&'a [u8]>>, FormatError> {
        let rest = self.payload.get(self.position..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(None);
        }
        let at = self.position as u64;
        let len = match parse_op(rest, &mut self.args) {
            Ok(OpScan::Complete { len }) => len,
            Ok(OpScan::Incomplete { .. }) => {
                return Err(FormatError::Op { offset: at, reason: "cut off at the end of the payload" });
            }
            Err(FormatError::Op { offset, reason }) => {
                return Err(FormatError::Op { offset: offset + at, reason });
            }
            Err(e) => return Err(e),
        };
        let argv: Vec<&'a [u8]> = self.args.iter().map(|a| a.of(rest)).collect();
        self.position += len;
        self.count = self.count.saturating_add(1);
        let name = argv.first().copied().unwrap_or_default();
        if name.eq_ignore_ascii_case(b"select") {
            let db = argv.get(1).and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| d.parse().ok());
            self.db = db.ok_or(FormatError::Op { offset: at, reason: "SELECT without a database" })?;
        } else if name.eq_ignore_ascii_case(b"multi") {
            self.in_transaction = true;
        } else if name.eq_ignore_ascii_case(b"exec") {
            self.in_transaction = false;
        }
        Ok(Some(argv))
    }

    /// Offset of the next op.
    #[must_use]
    pub fn position(&self) -> usize {
        self.position
    }

    /// Database in which the next op runs.
    #[must_use]
    pub fn db(&self) -> u32 {
        self.db
    }

    /// Whether the next op belongs to an open transaction.
    #[must_use]
    pub fn in_transaction(&self) -> bool {
        self.in_transaction
    }

    /// Ops passed.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_op_is_found_with_its_arguments() {
        let buf = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n*1\r\n$4\r\nPING\r\n";
        let mut args = Vec::new();
        assert_eq!(parse_op(buf, &mut args), Ok(OpScan::Complete { len: 26 }));
        let got: Vec<&[u8]> = args.iter().map(|a| a.of(buf)).collect();
        assert_eq!(got, [&b"SET"[..], b"k", b""]);
        for n in 0..26 {
            assert!(matches!(parse_op(&buf[..n], &mut args), Ok(OpScan::Incomplete { .. })), "{n}");
        }
    }

    #[test]
    fn what_is_no_op_is_an_error() {
        let mut args = Vec::new();
        for bad in [
            &b"+OK\r\n"[..],
            b"PING\r\n",
            b"*0\r\n",
            b"*-1\r\n",
            b"*1\r\n$-1\r\n",
            b"*1\r\n:1\r\n",
            b"*1\r\n$1\r\nabc",
            b"*99999999999999999999999999\r\n",
            b"*1\r\n$99999999999\r\n",
        ] {
            assert!(parse_op(bad, &mut args).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
