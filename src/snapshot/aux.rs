//! Our own field in an RDB, and the head of an RDB file.
//!
//! The module saves one string in the aux data of its data type [`TYPE_NAME`], before the keys:
//!
//! | bytes | what |
//! |---|---|
//! | 0..4 | magic `rdrx` |
//! | 4..6 | format, 1 |
//! | 6 | mode |
//! | 7 | service id |
//! | 8..12 | flags |
//! | 12..20 | op id at the snapshot |
//! | 20..28 | replication offset at the snapshot |
//! | 28..30 | number of histories, then 40 bytes of id and 8 of first op id for each |
//! | 2 bytes | number of endpoints, then 2 bytes of length and UTF-8 text for each |
//! | last 4 | CRC32 of all before |
//!
//! All integers are little-endian.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::error::SnapshotError;
use super::module_value::{type_name, Item, Items};
use super::reader::{Event, Flavor, RdbReader};

/// Name of the data type whose aux data is ours.
pub const TYPE_NAME: &[u8; 9] = b"redisdrx1";

/// The format that is written, and the newest that is read.
pub const FORMAT: u16 = 1;

const MAGIC: &[u8; 4] = b"rdrx";
const CRC_LEN: usize = 4;
/// Bounds for what is written; a decoder needs none, as every length is checked against the bytes there.
const MAX_COUNT: usize = u16::MAX as usize;

/// What the node that saved the snapshot was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// A source: expiries are as clients set them.
    Source = 0,
    /// A target: expiries are held back.
    Target = 1,
    /// A replica of either.
    Replica = 2,
}

/// What our field says about the snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuxContent {
    /// Format of the field.
    pub format: u16,
    /// What the node was.
    pub mode: Mode,
    /// Number of the node among its peers.
    pub service_id: u8,
    /// Reserved for marks of the runtime; kept as they are.
    pub flags: u32,
    /// Last op that the snapshot holds.
    pub op_id: u64,
    /// Replication offset that goes with it.
    pub repl_offset: i64,
    /// Histories, oldest first: replication id and first op id.
    pub lineage: Vec<([u8; 40], u64)>,
    /// Addresses at which the node serves its log.
    pub endpoints: Vec<String>,
}

/// Why a field of ours cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuxError {
    /// It does not start with our magic.
    Magic,
    /// A newer version of the module wrote it.
    NewerFormat(u16),
    /// It ends early; the field's length.
    Truncated(usize),
    /// The CRC32 does not match.
    Checksum {
        /// The one in the field.
        stored: u32,
        /// The one of its bytes.
        computed: u32,
    },
    /// An unknown mode.
    Mode(u8),
    /// An endpoint is not UTF-8.
    Text,
    /// Bytes are left over; their number.
    Trailing(usize),
    /// The field is not one string.
    Shape,
}

impl fmt::Display for AuxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => write!(f, "wrong magic"),
            Self::NewerFormat(n) => write!(f, "format {n}, this version reads up to {FORMAT}"),
            Self::Truncated(n) => write!(f, "ends early, after {n} bytes"),
            Self::Checksum { stored, computed } => {
                write!(f, "CRC32 is {stored:08x}, the bytes give {computed:08x}")
            }
            Self::Mode(n) => write!(f, "unknown mode {n}"),
            Self::Text => write!(f, "an endpoint is not UTF-8"),
            Self::Trailing(n) => write!(f, "{n} bytes left over"),
            Self::Shape => write!(f, "not one string"),
        }
    }
}

impl std::error::Error for AuxError {}

impl AuxContent {
    /// The bytes of the field. Histories and endpoints over 65,535 and what exceeds 65,535 bytes of an endpoint
    /// are left out; the oldest histories go first.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let skipped = self.lineage.len().saturating_sub(MAX_COUNT);
        let lineage = self.lineage.get(skipped..).unwrap_or_default();
        let fitting: Vec<&String> = self.endpoints.iter().filter(|e| e.len() <= MAX_COUNT).collect();
        let endpoints = fitting.get(..MAX_COUNT).unwrap_or(&fitting);

        let mut out = Vec::with_capacity(64 + lineage.len() * 48 + endpoints.len() * 64);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&self.format.to_le_bytes());
        out.extend_from_slice(&[self.mode as u8, self.service_id]);
        out.extend_from_slice(&self.flags.to_le_bytes());
        out.extend_from_slice(&self.op_id.to_le_bytes());
        out.extend_from_slice(&self.repl_offset.to_le_bytes());
        out.extend_from_slice(&short(lineage.len()));
        for (id, first_op) in lineage {
            out.extend_from_slice(id);
            out.extend_from_slice(&first_op.to_le_bytes());
        }
        out.extend_from_slice(&short(endpoints.len()));
        for endpoint in endpoints {
            out.extend_from_slice(&short(endpoint.len()));
            out.extend_from_slice(endpoint.as_bytes());
        }
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a field.
    ///
    /// # Errors
    /// [`AuxError`]: the field is damaged, or newer than this code.
    pub fn decode(bytes: &[u8]) -> Result<Self, AuxError> {
        let mut head = Fields { rest: bytes, len: bytes.len() };
        if head.take(MAGIC.len())? != MAGIC {
            return Err(AuxError::Magic);
        }
        let format = u16::from_le_bytes(head.array()?);
        if format > FORMAT {
            return Err(AuxError::NewerFormat(format));
        }
        let (body, crc) = bytes.split_last_chunk::<CRC_LEN>().ok_or(AuxError::Truncated(bytes.len()))?;
        let (stored, computed) = (u32::from_le_bytes(*crc), crc32fast::hash(body));
        if stored != computed {
            return Err(AuxError::Checksum { stored, computed });
        }
        let mut fields = Fields { rest: body, len: bytes.len() };
        fields.take(MAGIC.len() + 2)?;
        Self::decode_fields(format, fields)
    }

    fn decode_fields(format: u16, mut fields: Fields<'_>) -> Result<Self, AuxError> {
        let [mode, service_id] = fields.array()?;
        let mode = match mode {
            0 => Mode::Source,
            1 => Mode::Target,
            2 => Mode::Replica,
            other => return Err(AuxError::Mode(other)),
        };
        let flags = u32::from_le_bytes(fields.array()?);
        let op_id = u64::from_le_bytes(fields.array()?);
        let repl_offset = i64::from_le_bytes(fields.array()?);
        let mut lineage = Vec::new();
        for _ in 0..u16::from_le_bytes(fields.array()?) {
            lineage.push((fields.array()?, u64::from_le_bytes(fields.array()?)));
        }
        let mut endpoints = Vec::new();
        for _ in 0..u16::from_le_bytes(fields.array()?) {
            let len = u16::from_le_bytes(fields.array()?);
            let text = std::str::from_utf8(fields.take(len.into())?).map_err(|_| AuxError::Text)?;
            endpoints.push(text.to_owned());
        }
        match fields.rest.len() {
            0 => Ok(Self { format, mode, service_id, flags, op_id, repl_offset, lineage, endpoints }),
            n => Err(AuxError::Trailing(n)),
        }
    }
}

/// A length that was bounded by [`MAX_COUNT`] before.
fn short(n: usize) -> [u8; 2] {
    u16::try_from(n).unwrap_or(u16::MAX).to_le_bytes()
}

struct Fields<'a> {
    rest: &'a [u8],
    len: usize,
}

impl<'a> Fields<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], AuxError> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or(AuxError::Truncated(self.len))?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], AuxError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(AuxError::Truncated(self.len))?;
        self.rest = rest;
        Ok(*head)
    }
}

/// What is known about an RDB file before its first key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RdbHead {
    /// RDB version.
    pub rdb_version: u16,
    /// Whose numbering of types.
    pub flavor: Flavor,
    /// `valkey-ver` or `redis-ver`.
    pub server_version: Option<String>,
    /// Replication id at the snapshot.
    pub repl_id: Option<[u8; 40]>,
    /// Replication offset at the snapshot.
    pub repl_offset: Option<i64>,
    /// Database selected in the replication stream at the snapshot.
    pub repl_stream_db: Option<u32>,
    /// When the snapshot was begun, in seconds since 1970.
    pub ctime: Option<u64>,
    /// Bytes of memory that the server used.
    pub used_mem: Option<u64>,
    /// Our own field.
    pub ours: Option<AuxContent>,
}

impl RdbHead {
    pub(super) fn new(rdb_version: u16, flavor: Flavor) -> Self {
        Self {
            rdb_version,
            flavor,
            server_version: None,
            repl_id: None,
            repl_offset: None,
            repl_stream_db: None,
            ctime: None,
            used_mem: None,
            ours: None,
        }
    }

    /// Takes in an event that precedes the keys. `offset` is where it starts.
    pub(super) fn take(&mut self, event: &Event<'_>, offset: u64) -> Result<(), SnapshotError> {
        match event {
            Event::Aux { key, value } => self.take_aux(key, value),
            Event::ModuleAux { module_id, body, .. } if type_name(*module_id) == *TYPE_NAME => {
                let content = our_content(body)?.map_err(|error| SnapshotError::Aux { offset, error })?;
                self.ours = Some(content);
            }
            _ => {}
        }
        Ok(())
    }

    fn take_aux(&mut self, key: &[u8], value: &[u8]) {
        let text = std::str::from_utf8(value).ok();
        match key {
            b"valkey-ver" => self.server_version = text.map(str::to_owned),
            b"redis-ver" if self.server_version.is_none() => self.server_version = text.map(str::to_owned),
            b"repl-id" => self.repl_id = value.try_into().ok(),
            b"repl-offset" => self.repl_offset = text.and_then(|t| t.parse().ok()),
            b"repl-stream-db" => self.repl_stream_db = text.and_then(|t| t.parse().ok()),
            b"ctime" => self.ctime = text.and_then(|t| t.parse().ok()),
            b"used-mem" => self.used_mem = text.and_then(|t| t.parse().ok()),
            _ => {}
        }
    }
}

/// Whether an event is our own field.
pub(super) fn is_ours(event: &Event<'_>) -> bool {
    matches!(event, Event::ModuleAux { module_id, .. } if type_name(*module_id) == *TYPE_NAME)
}

fn our_content(body: &[u8]) -> Result<Result<AuxContent, AuxError>, SnapshotError> {
    let mut items = Items::new(body);
    let content = match items.next().transpose()? {
        Some(Item::String(bytes)) => AuxContent::decode(&bytes),
        _ => Err(AuxError::Shape),
    };
    match items.next() {
        None => Ok(content),
        Some(_) => Ok(content.and(Err(AuxError::Shape))),
    }
}

/// Reads the head of an RDB file: all that precedes the keys.
///
/// # Errors
/// [`SnapshotError`], with the file's name.
pub fn find(path: &Path) -> Result<RdbHead, SnapshotError> {
    let open = || {
        let file = File::open(path).map_err(|source| SnapshotError::Io { offset: 0, source })?;
        read_head(file)
    };
    open().map_err(|e| e.in_file(path))
}

/// Reads the head of an RDB.
///
/// # Errors
/// [`SnapshotError`].
pub fn read_head(input: impl Read) -> Result<RdbHead, SnapshotError> {
    let mut reader = RdbReader::new(input);
    let mut head: Option<RdbHead> = None;
    loop {
        let offset = reader.offset();
        match (reader.next_event()?, &mut head) {
            (Some(Event::Header { version, flavor }), _) => head = Some(RdbHead::new(version, flavor)),
            // A database is always selected before its keys, so no value is read here.
            (None | Some(Event::SelectDb(_) | Event::Key(_) | Event::Eof { .. }), _) => break,
            (Some(event), Some(head)) => head.take(&event, offset)?,
            (Some(_), None) => break,
        }
    }
    head.ok_or(SnapshotError::Truncated { offset: reader.offset() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> AuxContent {
        AuxContent {
            format: FORMAT,
            mode: Mode::Target,
            service_id: 7,
            flags: 0x8000_0001,
            op_id: 0x0102_0304_0506_0708,
            repl_offset: -1,
            lineage: vec![([b'a'; 40], 1), ([b'b'; 40], u64::MAX)],
            endpoints: vec!["10.0.0.1:7000".into(), String::new(), "[::1]:7001".into()],
        }
    }

    #[test]
    fn survives_the_round_trip() {
        let full = sample();
        assert_eq!(AuxContent::decode(&full.encode()), Ok(full));
        let empty = AuxContent { lineage: vec![], endpoints: vec![], mode: Mode::Source, ..sample() };
        assert_eq!(AuxContent::decode(&empty.encode()), Ok(empty));
    }

    #[test]
    fn layout_is_as_documented() {
        let bytes = sample().encode();
        assert_eq!(&bytes[..8], b"rdrx\x01\x00\x01\x07");
        assert_eq!(&bytes[8..12], b"\x01\x00\x00\x80");
        assert_eq!(&bytes[12..20], b"\x08\x07\x06\x05\x04\x03\x02\x01");
        assert_eq!(&bytes[20..30], b"\xff\xff\xff\xff\xff\xff\xff\xff\x02\x00");
        assert_eq!(bytes.len(), 30 + 2 * 48 + 2 + (2 + 13) + 2 + (2 + 10) + 4);
    }

    #[test]
    fn every_damage_is_an_error() {
        let bytes = sample().encode();
        for len in 0..bytes.len() {
            assert!(AuxContent::decode(&bytes[..len]).is_err(), "cut to {len}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(AuxContent::decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn newer_formats_are_told_apart_from_damage() {
        let newer = AuxContent { format: FORMAT + 1, ..sample() };
        assert_eq!(AuxContent::decode(&newer.encode()), Err(AuxError::NewerFormat(FORMAT + 1)));
    }

    #[test]
    fn counts_beyond_the_bytes_are_errors() {
        let mut bytes = AuxContent { lineage: vec![], endpoints: vec![], ..sample() }.encode();
        bytes.truncate(bytes.len() - CRC_LEN);
        bytes[28..30].copy_from_slice(&u16::MAX.to_le_bytes());
        let crc = crc32fast::hash(&bytes);
        bytes.extend(crc.to_le_bytes());
        assert_eq!(AuxContent::decode(&bytes), Err(AuxError::Truncated(bytes.len())));
    }
}
