//! Finds the ends of ops in a replication stream that arrives in pieces.
//!
//! The stream of a replica that continues ("PSYNC" with "+CONTINUE", redis.io, "Redis replication") consists of
//! RESP arrays of bulk strings only. The bare newline that a server sends to replicas which wait for a
//! snapshot never comes behind "+CONTINUE"; it would not count as an offset, so it is an error here.

use oplog_format::op::{length_line, Line, MAX_ARGS, MAX_ARG_LEN};
use oplog_format::{Arg, FormatError};

/// What an op means for the entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpKind {
    /// `SELECT`: the following ops run in this database.
    Select(u32),
    /// `MULTI`: a transaction begins.
    Multi,
    /// `EXEC`: it ends.
    Exec,
    /// `REPLCONF GETACK`: the server wants to know the tap's position.
    GetAck,
    /// Anything else.
    Other,
}

/// How far one op has been scanned. Arguments are passed by their length and never looked at again, so an op
/// that arrives in many pieces costs no more than one that arrives whole.
#[derive(Debug, Clone, Copy)]
pub struct OpCursor {
    /// Offset from the op's start of what is read next; may lie beyond the bytes that are there.
    pos: usize,
    /// Arguments that have not begun; `None` before the array's own line.
    left: Option<u64>,
    /// Whether the CRLF before `pos` has still to be checked.
    open: bool,
    name: Arg,
    second: Arg,
    seen: u8,
}

const NO_ARG: Arg = Arg { start: 0, end: 0 };

impl Default for OpCursor {
    fn default() -> Self {
        Self { pos: 0, left: None, open: false, name: NO_ARG, second: NO_ARG, seen: 0 }
    }
}

impl OpCursor {
    /// Bytes from the op's start without which scanning gets no further.
    #[must_use]
    pub fn needed(&self) -> usize {
        self.pos
    }

    /// Goes on over `op`, the bytes from the op's start: its length, or `None` where it is not whole.
    ///
    /// # Errors
    /// [`FormatError::Op`], with an offset within `op`, where the bytes are no op.
    #[inline]
    pub fn advance(&mut self, op: &[u8]) -> Result<Option<usize>, FormatError> {
        let mut left = match self.left {
            Some(left) => left,
            None => match length_line(op, 0, b'*', MAX_ARGS)? {
                Line::More => return Ok(None),
                Line::Number(0, _) => return Err(FormatError::Op { offset: 0, reason: "empty array" }),
                Line::Number(n, pos) => {
                    self.pos = pos;
                    n
                }
            },
        };
        let mut pos = self.pos;
        let mut open = self.open;
        let done = loop {
            if open {
                match pos.checked_sub(2).and_then(|at| op.get(at..pos)) {
                    Some(b"\r\n") => open = false,
                    Some(_) => return Err(wrong(pos - 2, "argument ends without CRLF")),
                    None => break false,
                }
            }
            if left == 0 {
                break true;
            }
            let Line::Number(len, start) = length_line(op, pos, b'$', MAX_ARG_LEN)? else {
                break false;
            };
            let Some(end) = usize::try_from(len).ok().and_then(|len| start.checked_add(len)) else {
                return Err(wrong(pos, "length out of bounds"));
            };
            if self.seen < 2 {
                self.keep(Arg { start, end });
            }
            left -= 1;
            pos = end + 2;
            open = true;
        };
        (self.pos, self.left, self.open) = (pos, Some(left), open);
        Ok(done.then_some(pos))
    }

    #[inline]
    fn keep(&mut self, arg: Arg) {
        if self.seen == 0 {
            self.name = arg;
        } else {
            self.second = arg;
        }
        self.seen += 1;
    }

    /// What the op is, once [`Self::advance`] has found its end.
    ///
    /// # Errors
    /// [`FormatError::Op`] for a `SELECT` without a database.
    #[inline]
    pub fn kind(&self, op: &[u8]) -> Result<OpKind, FormatError> {
        let name = self.name.of(op);
        let is = |word: &[u8]| name.eq_ignore_ascii_case(word);
        match name.len() {
            4 if is(b"exec") => Ok(OpKind::Exec),
            5 if is(b"multi") => Ok(OpKind::Multi),
            6 if is(b"select") => {
                database(self.second.of(op)).map(OpKind::Select).ok_or(wrong(0, "SELECT without a database"))
            }
            8 if is(b"replconf") && self.second.of(op).eq_ignore_ascii_case(b"getack") => Ok(OpKind::GetAck),
            _ => Ok(OpKind::Other),
        }
    }
}

fn database(digits: &[u8]) -> Option<u32> {
    std::str::from_utf8(digits).ok().filter(|d| !d.starts_with('+'))?.parse().ok()
}

#[cold]
fn wrong(offset: usize, reason: &'static str) -> FormatError {
    FormatError::Op { offset: offset as u64, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_op_is_found_byte_by_byte() {
        let op = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$12\r\n0123456789ab\r\n";
        let mut cursor = OpCursor::default();
        for n in 0..op.len() {
            assert_eq!(cursor.advance(&op[..n]), Ok(None), "{n}");
        }
        assert_eq!(cursor.advance(op), Ok(Some(op.len())));
        assert_eq!(cursor.kind(op), Ok(OpKind::Other));
    }

    #[test]
    fn ops_that_matter_are_known_in_any_case() {
        let kind = |op: &[u8]| {
            let mut cursor = OpCursor::default();
            assert_eq!(cursor.advance(op), Ok(Some(op.len())));
            cursor.kind(op)
        };
        assert_eq!(kind(b"*2\r\n$6\r\nSELECT\r\n$2\r\n15\r\n"), Ok(OpKind::Select(15)));
        assert_eq!(kind(b"*2\r\n$6\r\nselect\r\n$1\r\n0\r\n"), Ok(OpKind::Select(0)));
        assert_eq!(kind(b"*1\r\n$5\r\nMulti\r\n"), Ok(OpKind::Multi));
        assert_eq!(kind(b"*1\r\n$4\r\nexec\r\n"), Ok(OpKind::Exec));
        assert_eq!(kind(b"*3\r\n$8\r\nREPLCONF\r\n$6\r\nGETACK\r\n$1\r\n*\r\n"), Ok(OpKind::GetAck));
        assert_eq!(kind(b"*1\r\n$4\r\nPING\r\n"), Ok(OpKind::Other));
        assert!(kind(b"*1\r\n$6\r\nSELECT\r\n").is_err());
        assert!(kind(b"*2\r\n$6\r\nSELECT\r\n$1\r\nx\r\n").is_err());
    }

    #[test]
    fn what_is_no_op_is_an_error() {
        for bad in [&b"\n"[..], b"+OK\r\n", b"PING\r\n", b"*0\r\n", b"*1\r\n:1\r\n", b"*1\r\n$1\r\nabc"] {
            assert!(OpCursor::default().advance(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
