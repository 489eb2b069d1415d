//! Module arguments: `loadmodule libredisdr.so [name value]...`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use oplog_format::Codec;

/// When the log is flushed to its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fsync {
    /// Before an append counts as written.
    Always,
    /// Once a second, on a thread of its own.
    EverySec,
    /// When the operating system likes.
    No,
}

/// What happens to client writes while the log cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnLogFailure {
    /// The server serves on; the log resumes above a gap.
    Serve,
    /// Client writes are answered with an error until the log works again.
    DenyWrites,
}

/// The module's arguments, validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Directory of log, state and staging; relative to the server's `dir`.
    pub dir: PathBuf,
    /// Name of this instance within the star, 0..15.
    pub service_id: u8,
    /// `host:port` of the DR endpoint; `None`: loopback, server port + 1000.
    pub endpoint: Option<String>,
    /// `host:port` under which targets reach the DR endpoint, where that is not the address it listens on.
    pub announce_endpoint: Option<String>,
    /// Endpoints of the source; empty: none.
    pub source: Vec<String>,
    /// File with the shared secret.
    pub secret_file: Option<PathBuf>,
    /// Size at which a segment is cut, in bytes.
    pub segment_size: u64,
    /// When the log is flushed.
    pub fsync: Fsync,
    /// Sealed segments younger than this are kept.
    pub retain_min: Duration,
    /// Hard cap of the log in bytes; 0: none.
    pub retain_max_bytes: u64,
    /// A fork of at most this much is resolved without the operator.
    pub fork_tolerance: Duration,
    /// A link without a sign of life for this long is dead.
    pub timeout: Duration,
    /// What a failed log means for client writes.
    pub on_log_failure: OnLogFailure,
    /// A node whose log has grown by this many bytes above its newest snapshot makes one; 0: never by itself.
    pub snapshot_log_size: u64,
    /// Bytes a second that the endpoint sends to one target; 0: no limit.
    pub link_max_bytes_per_sec: u64,
    /// Bytes a second of snapshots that the endpoint reads and sends, to all targets together; 0: no limit.
    pub snapshot_max_bytes_per_sec: u64,
    /// What entries of the log are compressed by.
    pub compression: Option<Codec>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dir: PathBuf::from("dr"),
            service_id: 0,
            endpoint: None,
            announce_endpoint: None,
            source: Vec::new(),
            secret_file: None,
            segment_size: 3 << 30,
            fsync: Fsync::EverySec,
            retain_min: Duration::ZERO,
            retain_max_bytes: 0,
            fork_tolerance: Duration::from_secs(10),
            timeout: Duration::from_secs(10),
            on_log_failure: OnLogFailure::Serve,
            snapshot_log_size: 4 << 30,
            link_max_bytes_per_sec: 0,
            snapshot_max_bytes_per_sec: 0,
            compression: None,
        }
    }
}

/// Why the module does not load with these arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// No argument has this name.
    Unknown(String),
    /// The name has no value behind it.
    NoValue(String),
    /// The value does not fit.
    Value {
        /// Argument.
        name: &'static str,
        /// Its value.
        got: String,
        /// What would fit.
        wanted: &'static str,
    },
    /// The name was given twice.
    Twice(&'static str),
}

/// Names of all arguments, for messages.
pub const NAMES: &str =
    "dir service-id endpoint announce-endpoint source secret-file segment-size fsync retain-min-seconds \
retain-max-bytes fork-tolerance timeout on-log-failure snapshot-log-size \
link-max-bytes-per-sec snapshot-max-bytes-per-sec compression";

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(name) => write!(f, "unknown module argument '{name}'; known: {NAMES}"),
            Self::NoValue(name) => write!(f, "module argument '{name}' has no value"),
            Self::Value { name, got, wanted } => {
                write!(f, "module argument '{name}': '{got}' is not valid, wanted {wanted}")
            }
            Self::Twice(name) => write!(f, "module argument '{name}' is given twice"),
        }
    }
}

impl std::error::Error for ConfigError {}

/// Smallest segment: a test's; below it the files would outweigh their contents.
const MIN_SEGMENT: u64 = 64 * 1024;

impl Config {
    /// Parses `name value` pairs. Names are not case sensitive.
    ///
    /// # Errors
    /// [`ConfigError`] naming the argument and what would fit.
    pub fn parse(args: &[&[u8]]) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        let mut seen: Vec<&'static str> = Vec::new();
        for pair in args.chunks(2) {
            let text = |b: &&[u8]| String::from_utf8_lossy(b).into_owned();
            let name = pair.first().map(text).unwrap_or_default().to_ascii_lowercase();
            let known = NAMES
                .split_ascii_whitespace()
                .find(|n| **n == name)
                .ok_or_else(|| ConfigError::Unknown(name.clone()))?;
            let value = pair.get(1).map(text).ok_or(ConfigError::NoValue(name))?;
            if seen.contains(&known) {
                return Err(ConfigError::Twice(known));
            }
            seen.push(known);
            config.set(known, &value)?;
        }
        Ok(config)
    }

    fn set(&mut self, name: &'static str, value: &str) -> Result<(), ConfigError> {
        let bad = |wanted| ConfigError::Value { name, got: value.to_owned(), wanted };
        let seconds = |max: u64| {
            number::<u64>(value)
                .filter(|s| *s <= max)
                .map(Duration::from_secs)
                .ok_or_else(|| bad("a number of seconds"))
        };
        match name {
            "dir" if value.is_empty() => return Err(bad("a directory")),
            "dir" => self.dir = PathBuf::from(value),
            "service-id" => {
                self.service_id =
                    number::<u8>(value).filter(|n| *n <= 15).ok_or_else(|| bad("a number from 0 to 15"))?;
            }
            "endpoint" => {
                self.endpoint = Some(host_port(value).ok_or_else(|| bad("host:port"))?);
            }
            "announce-endpoint" => {
                self.announce_endpoint = Some(host_port(value).ok_or_else(|| bad("host:port"))?);
            }
            "source" => self.source = endpoints(value).ok_or_else(|| bad("host:port[,host:port...]"))?,
            "secret-file" if value.is_empty() => return Err(bad("a file")),
            "secret-file" => self.secret_file = Some(PathBuf::from(value)),
            "segment-size" => {
                self.segment_size = size(value)
                    .filter(|n| (MIN_SEGMENT..=1 << 40).contains(n))
                    .ok_or_else(|| bad("a size from 64kb to 1tb, such as 3gb"))?;
            }
            "fsync" => {
                self.fsync = match value.to_ascii_lowercase().as_str() {
                    "always" => Fsync::Always,
                    "everysec" => Fsync::EverySec,
                    "no" => Fsync::No,
                    _ => return Err(bad("always, everysec or no")),
                };
            }
            "retain-min-seconds" => self.retain_min = seconds(10 * 365 * 86400)?,
            "retain-max-bytes" => {
                self.retain_max_bytes = size(value).ok_or_else(|| bad("a size, such as 100gb, or 0"))?;
            }
            "fork-tolerance" => self.fork_tolerance = seconds(86400)?,
            "timeout" => {
                self.timeout = seconds(3600)?;
                if self.timeout < Duration::from_secs(2) {
                    return Err(bad("at least 2 seconds: heartbeats go once a second"));
                }
            }
            "on-log-failure" => {
                self.on_log_failure = match value.to_ascii_lowercase().as_str() {
                    "serve" => OnLogFailure::Serve,
                    "deny-writes" => OnLogFailure::DenyWrites,
                    _ => return Err(bad("serve or deny-writes")),
                };
            }
            "snapshot-log-size" => {
                self.snapshot_log_size = size(value)
                    .filter(|n| *n == 0 || *n >= MIN_SEGMENT)
                    .ok_or_else(|| bad("a size of at least 64kb, such as 4gb, or 0"))?;
            }
            "link-max-bytes-per-sec" => {
                self.link_max_bytes_per_sec = size(value).ok_or_else(|| bad("a size, such as 50mb, or 0"))?;
            }
            "snapshot-max-bytes-per-sec" => {
                self.snapshot_max_bytes_per_sec =
                    size(value).ok_or_else(|| bad("a size, such as 50mb, or 0"))?;
            }
            "compression" => {
                self.compression = match value.to_ascii_lowercase().as_str() {
                    "no" => None,
                    "zstd" => Some(Codec::Zstd),
                    _ => return Err(bad("no or zstd")),
                };
            }
            _ => return Err(ConfigError::Unknown(name.to_owned())),
        }
        Ok(())
    }
}

fn number<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// A size as in the server's configuration: `1k` is 1000, `1kb` is 1024.
#[must_use]
pub fn size(text: &str) -> Option<u64> {
    let text = text.to_ascii_lowercase();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (n, unit) = text.split_at_checked(digits)?;
    let factor: u64 = match unit {
        "" | "b" => 1,
        "k" => 1000,
        "kb" => 1 << 10,
        "m" => 1_000_000,
        "mb" => 1 << 20,
        "g" => 1_000_000_000,
        "gb" => 1 << 30,
        "tb" => 1 << 40,
        _ => return None,
    };
    number::<u64>(n)?.checked_mul(factor)
}

/// `host:port` with a host and a port above 0; IPv6 in brackets.
#[must_use]
pub fn host_port(text: &str) -> Option<String> {
    let (host, port) = text.rsplit_once(':')?;
    let port: u16 = number(port)?;
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let fits = match bare {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && !host.contains([':', ' ', ',', '[', ']', '/']) && host.is_ascii(),
    };
    (fits && port > 0).then(|| text.to_owned())
}

/// A comma-separated list of at least one `host:port`.
#[must_use]
pub fn endpoints(text: &str) -> Option<Vec<String>> {
    let list: Option<Vec<String>> = text.split(',').map(|e| host_port(e.trim())).collect();
    list.filter(|l| l.len() <= 32)
}

/// Whether an endpoint is reachable from this machine only.
#[must_use]
pub fn is_loopback(endpoint: &str) -> bool {
    let host = endpoint.rsplit_once(':').map_or("", |(h, _)| h);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Config, ConfigError> {
        let args: Vec<&[u8]> = args.iter().map(|a| a.as_bytes()).collect();
        Config::parse(&args)
    }

    #[test]
    fn every_argument_is_taken() {
        let c = parse(&[
            "dir",
            "x",
            "SERVICE-ID",
            "15",
            "endpoint",
            "[::1]:7000",
            "source",
            "a:1,b.example:2",
            "secret-file",
            "s",
            "segment-size",
            "1mb",
            "fsync",
            "always",
            "retain-min-seconds",
            "60",
            "retain-max-bytes",
            "10gb",
            "fork-tolerance",
            "0",
            "timeout",
            "30",
            "on-log-failure",
            "deny-writes",
            "snapshot-log-size",
            "1gb",
            "link-max-bytes-per-sec",
            "5mb",
            "snapshot-max-bytes-per-sec",
            "4mb",
            "compression",
            "ZSTD",
        ])
        .unwrap();
        assert_eq!(c.source, ["a:1", "b.example:2"]);
        assert_eq!((c.service_id, c.segment_size, c.fsync), (15, 1 << 20, Fsync::Always));
        assert_eq!((c.on_log_failure, c.snapshot_log_size), (OnLogFailure::DenyWrites, 1 << 30));
        assert_eq!((c.link_max_bytes_per_sec, c.snapshot_max_bytes_per_sec), (5 << 20, 4 << 20));
        assert_eq!(c.compression, Some(Codec::Zstd));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let value = |name: &str, v: &str| match parse(&[name, v]) {
            Err(ConfigError::Value { name: n, got, .. }) => n == name && got == v,
            _ => false,
        };
        for (name, v) in [
            ("service-id", "16"),
            ("service-id", "-1"),
            ("service-id", "x"),
            ("endpoint", "host"),
            ("endpoint", ":70"),
            ("endpoint", "a:0"),
            ("endpoint", "a:65536"),
            ("source", ""),
            ("source", "a:1,,"),
            ("segment-size", "1kb"),
            ("segment-size", "9999999tb"),
            ("fsync", "sometimes"),
            ("timeout", "1"),
            ("fork-tolerance", "1.5"),
            ("retain-max-bytes", "10xb"),
            ("dir", ""),
            ("on-log-failure", "panic"),
            ("on-log-failure", ""),
            ("snapshot-log-size", "1kb"),
            ("snapshot-log-size", "much"),
            ("compression", "lz4"),
            ("compression", "yes"),
        ] {
            assert!(value(name, v), "{name} {v}: {:?}", parse(&[name, v]));
        }
        assert_eq!(parse(&["colour", "red"]), Err(ConfigError::Unknown("colour".into())));
        assert_eq!(parse(&["dir"]), Err(ConfigError::NoValue("dir".into())));
        assert_eq!(parse(&["dir", "a", "dir", "b"]), Err(ConfigError::Twice("dir")));
    }

    #[test]
    fn loopback_is_known() {
        assert!(is_loopback("127.0.0.1:1") && is_loopback("localhost:1") && is_loopback("[::1]:1"));
        assert!(!is_loopback("0.0.0.0:1") && !is_loopback("10.0.0.1:1") && !is_loopback("[::]:1"));
    }
}
