//! RESP2 replies.

use super::LocalError;

/// A reply of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// `+text`
    Simple(String),
    /// `-text`
    Error(String),
    /// `:number`
    Int(i64),
    /// `$bytes`
    Bulk(Vec<u8>),
    /// Null bulk or null array.
    Nil,
    /// `*replies`
    Array(Vec<Reply>),
}

/// Longest bulk reply that is taken: INFO and CLIENT LIST stay far below.
const MAX_BULK: i64 = 256 * 1024 * 1024;
const MAX_ARRAY: i64 = 1024 * 1024;
const MAX_DEPTH: u8 = 8;

impl Reply {
    /// The bytes of a bulk or simple reply.
    #[must_use]
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Simple(s) => Some(s.as_bytes()),
            Self::Bulk(b) => Some(b),
            _ => None,
        }
    }

    /// The text of a bulk or simple reply, with wrong UTF-8 replaced.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        self.bytes().map(|b| String::from_utf8_lossy(b).into_owned())
    }

    /// Parses the reply at the start of `buf`: the reply and its length, or `None` where it is not whole.
    ///
    /// # Errors
    /// [`LocalError::Protocol`] where the bytes are no reply.
    pub fn parse(buf: &[u8]) -> Result<Option<(Self, usize)>, LocalError> {
        let mut at = 0;
        Ok(Self::parse_at(buf, &mut at, 0)?.map(|r| (r, at)))
    }

    fn parse_at(buf: &[u8], at: &mut usize, depth: u8) -> Result<Option<Self>, LocalError> {
        let rest = buf.get(*at..).unwrap_or_default();
        let Some(end) = rest.windows(2).position(|w| w == b"\r\n") else {
            return Ok(None);
        };
        let line = rest.get(1..end).unwrap_or_default();
        let kind = rest.first().copied().unwrap_or(0);
        let next = *at + end + 2;
        let text = || String::from_utf8_lossy(line).into_owned();
        let number = || {
            std::str::from_utf8(line)
                .ok()
                .and_then(|t| t.parse::<i64>().ok())
                .ok_or(LocalError::Protocol("a number is none"))
        };
        let reply = match kind {
            b'+' => Self::Simple(text()),
            b'-' => Self::Error(text()),
            b':' => Self::Int(number()?),
            b'$' => match number()? {
                -1 => Self::Nil,
                n if (0..=MAX_BULK).contains(&n) => {
                    let len = usize::try_from(n).unwrap_or(0);
                    let Some(bytes) = buf.get(next..next + len) else {
                        return Ok(None);
                    };
                    if buf.len() < next + len + 2 {
                        return Ok(None);
                    }
                    *at = next + len + 2;
                    return Ok(Some(Self::Bulk(bytes.to_vec())));
                }
                _ => return Err(LocalError::Protocol("bulk length out of bounds")),
            },
            b'*' => match number()? {
                -1 => Self::Nil,
                n if (0..=MAX_ARRAY).contains(&n) && depth < MAX_DEPTH => {
                    *at = next;
                    let mut items = Vec::new();
                    for _ in 0..n {
                        match Self::parse_at(buf, at, depth + 1)? {
                            Some(item) => items.push(item),
                            None => return Ok(None),
                        }
                    }
                    return Ok(Some(Self::Array(items)));
                }
                _ => return Err(LocalError::Protocol("array length out of bounds")),
            },
            _ => return Err(LocalError::Protocol("unknown type byte")),
        };
        *at = next;
        Ok(Some(reply))
    }
}
