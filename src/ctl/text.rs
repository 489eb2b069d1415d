//! Ops as text.

use std::io::{self, Write};

/// Writes `bytes` in double quotes with the escapes that redis-cli and MONITOR use.
///
/// # Errors
/// Those of `out`.
pub fn quote(bytes: &[u8], out: &mut impl Write) -> io::Result<()> {
    out.write_all(b"\"")?;
    for b in bytes {
        match b {
            b'"' | b'\\' => out.write_all(&[b'\\', *b])?,
            b'\n' => out.write_all(b"\\n")?,
            b'\r' => out.write_all(b"\\r")?,
            b'\t' => out.write_all(b"\\t")?,
            0x07 => out.write_all(b"\\a")?,
            0x08 => out.write_all(b"\\b")?,
            b' '..=b'~' => out.write_all(&[*b])?,
            _ => write!(out, "\\x{b:02x}")?,
        }
    }
    out.write_all(b"\"")
}

/// Writes at most `most` bytes in quotes, and behind them how many there are where that is more.
///
/// # Errors
/// Those of `out`.
pub fn quote_up_to(bytes: &[u8], most: usize, out: &mut impl Write) -> io::Result<()> {
    match bytes.get(..most).filter(|_| bytes.len() > most) {
        None => quote(bytes, out),
        Some(start) => {
            quote(start, out)?;
            write!(out, "...({} bytes)", bytes.len())
        }
    }
}

/// An argument as JSON: a string where it is UTF-8, else an object with its bytes in hex.
#[must_use]
pub fn json(bytes: &[u8]) -> serde_json::Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => serde_json::Value::from(text),
        Err(_) => {
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            serde_json::json!({ "hex": hex })
        }
    }
}

/// `n` bytes, for people.
#[must_use]
pub fn size(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut scaled, mut unit) = (n, 0);
    while scaled >= 10 * 1024 && unit + 1 < UNITS.len() {
        (scaled, unit) = (scaled / 1024, unit + 1);
    }
    format!("{scaled} {}", UNITS.get(unit).unwrap_or(&""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_quoted_as_redis_cli_does() {
        let mut out = Vec::new();
        quote(b"a \"b\" \\ \r\n\t\x07\x08\x00\x7f\xff", &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), r#""a \"b\" \\ \r\n\t\a\b\x00\x7f\xff""#);
    }

    #[test]
    fn what_is_long_is_cut_and_says_so() {
        let text = |bytes: &[u8]| {
            let mut out = Vec::new();
            quote_up_to(bytes, 4, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(text(b"abcd"), r#""abcd""#);
        assert_eq!(text(b"abc\xff\0"), r#""abc\xff"...(5 bytes)"#);
    }

    #[test]
    fn bytes_that_are_no_text_are_hex() {
        assert_eq!(json("é".as_bytes()), serde_json::json!("é"));
        assert_eq!(json(b"\xff\x00"), serde_json::json!({"hex": "ff00"}));
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(size(10_239), "10239 B");
        assert_eq!(size(3 << 30), "3072 MiB");
    }
}
