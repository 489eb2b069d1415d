//! Restoring a large value in pieces, so that no single command holds the server up for long.
//!
//! Lists, sets, sorted sets, hashes and streams can be cut; for strings see [`text`](super::text). Modules
//! cannot, and values that are one packed run of bytes are not worth it: the server bounds them by configuration.
//!
//! The commands add to the key: it must not exist before the first one. They do not set its expiry; that is
//! the caller's, after the last one.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::Path;

use super::error::SnapshotError;
use super::input::{Input, Slice, Take};
use super::packed::{entries, Packing};
use super::reader::Flavor;
use super::source::Source;
use super::stream::{self, Node};
use super::strings::read_string_vec;
use super::value::types;

type Result<T> = std::result::Result<T, SnapshotError>;

/// A command with its arguments.
pub type Command = Vec<Vec<u8>>;

/// What is large, and how large a piece may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceOptions {
    /// Values of at least so many bytes are cut.
    pub min_bytes: usize,
    /// Values of at least so many elements are cut, where the number is known without decoding them.
    pub min_elements: u64,
    /// Most elements of a piece.
    pub max_elements: usize,
    /// Most bytes of the elements of a piece. A single element may be larger.
    pub max_bytes: usize,
    /// If set, this is added to each expiry of a hash field which is below it; hashes with such expiries are
    /// then cut whatever their size.
    pub field_hold_ms: Option<i64>,
}

impl Default for PieceOptions {
    fn default() -> Self {
        Self {
            min_bytes: 1024 * 1024,
            min_elements: 20_000,
            max_elements: 250,
            max_bytes: 256 * 1024,
            field_hold_ms: None,
        }
    }
}

/// Bytes that a full list node holds at least, however well it is compressed in the file.
const LIST_NODE_BYTES: u64 = 8 * 1024;
/// Entries of a stream's node, by default.
const STREAM_NODE_ENTRIES: u64 = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    List,
    /// The count is that of nodes; the packed ones are of this packing.
    Quicklist(Packing),
    Set,
    Zset,
    ZsetText,
    Hash,
    /// Expiries count from a time at the start, one up, 0 for none.
    HashRelative,
    /// Expiries are absolute, 0 for none.
    HashAbsolute,
    /// Expiries are absolute, behind the value, -1 for none.
    HashValkey,
    /// One listpack of field, value and absolute expiry.
    HashPacked {
        min_expire: bool,
    },
    /// The count is that of nodes.
    Stream(stream::Form),
}

impl Kind {
    fn of(type_byte: u8, flavor: Flavor) -> Option<Self> {
        Some(match (type_byte, flavor) {
            (types::LIST, _) => Self::List,
            (types::LIST_QUICKLIST, _) => Self::Quicklist(Packing::Ziplist),
            (types::LIST_QUICKLIST_2, _) => Self::Quicklist(Packing::Listpack),
            (types::SET, _) => Self::Set,
            (types::ZSET, _) => Self::ZsetText,
            (types::ZSET_2, _) => Self::Zset,
            (types::HASH, _) => Self::Hash,
            (types::HASH_METADATA, Flavor::Redis) => Self::HashRelative,
            (types::HASH_METADATA_PRE_GA, Flavor::Redis) => Self::HashAbsolute,
            (types::VALKEY_HASH_2, Flavor::Valkey) => Self::HashValkey,
            (types::HASH_LISTPACK_EX, Flavor::Redis) => Self::HashPacked { min_expire: true },
            (types::HASH_LISTPACK_EX_PRE_GA, Flavor::Redis) => Self::HashPacked { min_expire: false },
            _ => Self::Stream(stream::Form::of(type_byte)?),
        })
    }

    fn has_field_expiries(self) -> bool {
        matches!(self, Self::HashRelative | Self::HashAbsolute | Self::HashValkey | Self::HashPacked { .. })
    }

    fn command(self) -> &'static [u8] {
        match self {
            Self::List | Self::Quicklist(_) => b"RPUSH",
            Self::Set => b"SADD",
            Self::Zset | Self::ZsetText => b"ZADD",
            Self::Stream(_) => b"XADD",
            _ => b"HSET",
        }
    }
}

/// The commands that restore `key`, or nothing if the value is to be restored whole: it is not large, or cannot
/// be cut. `raw` is the value as in the file, `flavor` that of the file.
#[must_use]
pub fn pieces<'a>(
    flavor: Flavor,
    type_byte: u8,
    raw: &'a [u8],
    key: &'a [u8],
    options: PieceOptions,
) -> Option<Pieces<'a>> {
    let kind = Kind::of(type_byte, flavor)?;
    // What cannot be opened is not cut, and the server refuses it.
    let (cut, held) = Cut::open(kind, key, options, || Ok(Slice::new(raw))).ok()?;
    (held || cut.is_large(raw.len() as u64)).then_some(Pieces(Place::Memory(cut)))
}

/// As [`pieces`], for a value that is not in memory: `len` bytes at `at` of a file.
///
/// # Errors
/// Those of opening the file and of its first bytes.
pub fn pieces_of_file<'a>(
    (flavor, type_byte): (Flavor, u8),
    file: &Path,
    (at, len): (u64, u64),
    key: &'a [u8],
    options: PieceOptions,
) -> Result<Option<Pieces<'a>>> {
    let Some(kind) = Kind::of(type_byte, flavor) else { return Ok(None) };
    let (cut, held) = Cut::open(kind, key, options, || open_value(file, at, len))?;
    Ok((held || cut.is_large(len)).then_some(Pieces(Place::File(cut))))
}

/// Part of a file that ends where the value ends.
pub(super) type InFile = Source<std::io::Take<File>>;

/// Opens a value of a file.
pub(super) fn open_value(file: &Path, at: u64, len: u64) -> Result<InFile> {
    let io = |source| SnapshotError::Io { offset: at, source }.in_file(file);
    let mut opened = File::open(file).map_err(io)?;
    opened.seek(SeekFrom::Start(at)).map_err(io)?;
    Ok(Source::at(std::io::Read::take(opened, len), at))
}

/// The commands; see [`pieces`]. After an error there are no more.
#[derive(Debug)]
pub struct Pieces<'a>(Place<'a>);

#[derive(Debug)]
enum Place<'a> {
    Memory(Cut<'a, Slice<'a>>),
    File(Cut<'a, InFile>),
}

impl Pieces<'_> {
    /// Where in the value, or in its file, the next piece begins.
    #[must_use]
    pub fn offset(&self) -> u64 {
        match &self.0 {
            Place::Memory(cut) => cut.input.offset(),
            Place::File(cut) => cut.input.offset(),
        }
    }
}

impl Iterator for Pieces<'_> {
    type Item = Result<Command>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Place::Memory(cut) => cut.next(),
            Place::File(cut) => cut.next(),
        }
    }
}

#[derive(Debug)]
struct Cut<'a, I> {
    kind: Kind,
    key: &'a [u8],
    input: I,
    /// Elements, or nodes of a list or stream, that are still in `input`.
    remaining: u64,
    first_expire: i64,
    options: PieceOptions,
    /// Entries of the packed run that is being worked off.
    unpacked: VecDeque<Vec<u8>>,
    /// An element that did not fit in the last piece.
    waiting: Option<Element>,
    ready: VecDeque<Command>,
    /// What of a stream is not its entries, until it is restored.
    stream: Option<stream::Rest>,
    failed: bool,
}

/// The arguments of one element, in the command's order, and the expiry of a field.
#[derive(Debug)]
struct Element {
    first: Vec<u8>,
    second: Option<Vec<u8>>,
    expire_ms: Option<i64>,
}

impl Element {
    fn single(first: Vec<u8>) -> Self {
        Self { first, second: None, expire_ms: None }
    }

    fn size(&self) -> usize {
        self.first.len() + self.second.as_ref().map_or(0, Vec::len)
    }
}

impl<'a, I: Take> Cut<'a, I> {
    /// At the first element; and whether the size does not matter, since expiries of fields are to be held.
    fn open(
        kind: Kind,
        key: &'a [u8],
        options: PieceOptions,
        input: impl Fn() -> Result<I>,
    ) -> Result<(Self, bool)> {
        let stream = match kind {
            Kind::Stream(form) => Some(stream::rest(&mut input()?, form)?),
            _ => None,
        };
        let mut input = input()?;
        let mut first_expire = 0;
        if matches!(kind, Kind::HashRelative | Kind::HashPacked { min_expire: true }) {
            first_expire = i64::from_le_bytes(input.array()?);
        }
        // A packed hash has no count; it is one string.
        let remaining = if matches!(kind, Kind::HashPacked { .. }) { 1 } else { input.length()? };
        let held = options.field_hold_ms.is_some() && kind.has_field_expiries();
        let cut = Self {
            kind,
            key,
            input,
            remaining,
            first_expire,
            options,
            unpacked: VecDeque::new(),
            waiting: None,
            ready: VecDeque::new(),
            stream,
            failed: false,
        };
        Ok((cut, held))
    }

    fn is_large(&self, bytes: u64) -> bool {
        let many = match self.kind {
            Kind::HashPacked { .. } => return false,
            Kind::Quicklist(_) => {
                self.remaining.saturating_mul(LIST_NODE_BYTES) >= self.options.min_bytes as u64
            }
            Kind::Stream(_) => {
                self.remaining.saturating_mul(STREAM_NODE_ENTRIES) >= self.options.min_elements
            }
            _ => self.remaining >= self.options.min_elements,
        };
        many || bytes >= self.options.min_bytes as u64
    }

    fn next(&mut self) -> Option<Result<Command>> {
        if self.ready.is_empty() && !self.failed {
            let prepared = match self.kind {
                Kind::Stream(form) => self.prepare_stream(form),
                _ => self.prepare(),
            };
            if let Err(error) = prepared {
                self.failed = true;
                self.ready.clear();
                return Some(Err(error));
            }
        }
        self.ready.pop_front().map(Ok)
    }

    /// The groups of a stream first, then the entries of node after node, then what counts them.
    fn prepare_stream(&mut self, form: stream::Form) -> Result<()> {
        if let Some(rest) = &mut self.stream {
            if let Some(restore) = rest.take_skeleton(form, self.key) {
                self.ready.push_back(restore);
                return Ok(());
            }
        }
        while self.ready.is_empty() && self.remaining > 0 {
            self.remaining -= 1;
            let offset = self.input.offset();
            let id = read_string_vec(&mut self.input)?;
            let packed = read_string_vec(&mut self.input)?;
            let mut node = Node::open(&id, entries(&packed, Packing::Listpack)?, offset)?;
            while let Some(add) = node.next_add(self.key)? {
                self.ready.push_back(add);
            }
        }
        if self.ready.is_empty() {
            self.ready.extend(self.stream.take().map(|rest| rest.set_id(self.key)));
        }
        Ok(())
    }

    /// Gathers the elements of a piece and makes its commands.
    fn prepare(&mut self) -> Result<()> {
        let mut command = vec![self.kind.command().to_vec(), self.key.to_vec()];
        let mut expiries: BTreeMap<i64, Vec<Vec<u8>>> = BTreeMap::new();
        let (mut count, mut bytes) = (0, 0usize);
        while count < self.options.max_elements.max(1) {
            let element = match self.waiting.take() {
                Some(element) => element,
                None => match self.element()? {
                    Some(element) => element,
                    None => break,
                },
            };
            let size = element.size();
            if count > 0 && bytes.saturating_add(size) > self.options.max_bytes {
                self.waiting = Some(element);
                break;
            }
            count += 1;
            bytes = bytes.saturating_add(size);
            if let Some(at) = element.expire_ms {
                expiries.entry(self.held(at)).or_default().push(element.first.clone());
            }
            command.push(element.first);
            command.extend(element.second);
        }
        if count == 0 {
            let ended = self.input.is_at_end()?;
            return ended.then_some(()).ok_or(SnapshotError::TrailingBytes { offset: self.input.offset() });
        }
        self.ready.push_back(command);
        for (at, fields) in expiries {
            let mut command = vec![b"HPEXPIREAT".to_vec(), self.key.to_vec(), at.to_string().into_bytes()];
            command.extend([b"FIELDS".to_vec(), fields.len().to_string().into_bytes()]);
            command.extend(fields);
            self.ready.push_back(command);
        }
        Ok(())
    }

    fn held(&self, at: i64) -> i64 {
        match self.options.field_hold_ms {
            Some(hold) if at < hold => at.saturating_add(hold),
            _ => at,
        }
    }

    fn element(&mut self) -> Result<Option<Element>> {
        match self.kind {
            Kind::Quicklist(packing) => return Ok(self.list_entry(packing)?.map(Element::single)),
            Kind::HashPacked { .. } => return self.packed_field(),
            _ => {}
        }
        if self.remaining == 0 {
            return Ok(None);
        }
        self.remaining -= 1;
        let input = &mut self.input;
        let kind = self.kind;
        let mut expire_ms = None;
        if matches!(kind, Kind::HashRelative | Kind::HashAbsolute) {
            let offset = input.offset();
            let number = input.length()?;
            let base = if kind == Kind::HashRelative { self.first_expire.saturating_sub(1) } else { 0 };
            expire_ms = field_expiry(number, base, offset)?;
        }
        let first = read_string_vec(input)?;
        let second = match kind {
            Kind::Zset | Kind::ZsetText => {
                let score = score(input, kind)?;
                return Ok(Some(Element { first: score, second: Some(first), expire_ms: None }));
            }
            Kind::List | Kind::Set => None,
            _ => Some(read_string_vec(input)?),
        };
        if kind == Kind::HashValkey {
            let at = i64::from_le_bytes(input.array()?);
            expire_ms = (at != -1).then_some(at);
        }
        Ok(Some(Element { first, second, expire_ms }))
    }

    /// The next entry of a list that is stored in nodes. Nodes may be empty.
    fn list_entry(&mut self, packing: Packing) -> Result<Option<Vec<u8>>> {
        while self.unpacked.is_empty() && self.remaining > 0 {
            self.remaining -= 1;
            let offset = self.input.offset();
            let container = if packing == Packing::Listpack { self.input.length()? } else { 2 };
            let node = read_string_vec(&mut self.input)?;
            match container {
                1 => return Ok(Some(node)),
                2 => self.unpacked = entries(&node, packing)?.into(),
                number => return Err(SnapshotError::BadNumber { what: "kind of list node", number, offset }),
            }
        }
        Ok(self.unpacked.pop_front())
    }

    fn packed_field(&mut self) -> Result<Option<Element>> {
        let offset = self.input.offset();
        if self.remaining > 0 {
            self.remaining = 0;
            self.unpacked = entries(&read_string_vec(&mut self.input)?, Packing::Listpack)?.into();
        }
        let Some(first) = self.unpacked.pop_front() else { return Ok(None) };
        let bad = || SnapshotError::Corrupt { what: "incomplete field of a packed hash", offset };
        let second = self.unpacked.pop_front().ok_or_else(bad)?;
        let at = self.unpacked.pop_front().ok_or_else(bad)?;
        let number = std::str::from_utf8(&at).ok().and_then(|t| t.parse().ok()).ok_or_else(bad)?;
        Ok(Some(Element { first, second: Some(second), expire_ms: field_expiry(number, 0, offset)? }))
    }
}

/// An expiry as the file has it, 0 for none; `base` is added.
fn field_expiry(number: u64, base: i64, offset: u64) -> Result<Option<i64>> {
    if number == 0 {
        return Ok(None);
    }
    i64::try_from(number).ok().and_then(|n| n.checked_add(base)).map(Some).ok_or(SnapshotError::BadNumber {
        what: "expiry of a field",
        number,
        offset,
    })
}

/// A score as text that reads back as the same number.
fn score(input: &mut impl Take, kind: Kind) -> Result<Vec<u8>> {
    let offset = input.offset();
    let score = if kind == Kind::Zset {
        f64::from_le_bytes(input.array()?)
    } else {
        match input.byte()? {
            255 => f64::NEG_INFINITY,
            254 => f64::INFINITY,
            253 => f64::NAN,
            n => std::str::from_utf8(&input.take_vec(n.into())?)
                .ok()
                .and_then(|t| t.parse().ok())
                .unwrap_or(f64::NAN),
        }
    };
    if score.is_nan() {
        return Err(SnapshotError::Corrupt { what: "a score that is no number", offset });
    }
    // The shortest digits that identify the number, with an exponent where it is far from 1.
    Ok(format!("{score:?}").into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: PieceOptions =
        PieceOptions { min_bytes: 0, min_elements: 0, max_elements: 2, max_bytes: 1000, field_hold_ms: None };

    fn text(flavor: Flavor, type_byte: u8, raw: &[u8], options: PieceOptions) -> Vec<String> {
        pieces(flavor, type_byte, raw, b"k", options)
            .unwrap()
            .map(|c| {
                c.unwrap()
                    .iter()
                    .map(|a| String::from_utf8_lossy(a).into_owned())
                    .collect::<Vec<_>>()
                    .join(" ")
            })
            .collect()
    }

    #[test]
    fn pieces_are_bounded_by_count_and_bytes() {
        let raw = b"\x03\x01a\x01b\x01c";
        assert_eq!(text(Flavor::Redis, types::LIST, raw, ALL), ["RPUSH k a b", "RPUSH k c"]);
        let tight = PieceOptions { max_elements: 100, max_bytes: 5, ..ALL };
        let raw = b"\x04\x02aa\x03bbb\x01c\x07ddddddd";
        assert_eq!(
            text(Flavor::Redis, types::SET, raw, tight),
            ["SADD k aa bbb", "SADD k c", "SADD k ddddddd"]
        );
    }

    #[test]
    fn only_large_values_are_cut() {
        let raw = b"\x03\x01a\x01b\x01c";
        let defaults = PieceOptions::default();
        assert!(pieces(Flavor::Redis, types::LIST, raw, b"k", defaults).is_none());
        let three = PieceOptions { min_elements: 3, ..defaults };
        assert!(pieces(Flavor::Redis, types::LIST, raw, b"k", three).is_some());
        assert!(pieces(Flavor::Redis, types::STRING, raw, b"k", ALL).is_none());
        assert!(pieces(Flavor::Redis, types::MODULE_2, raw, b"k", ALL).is_none());
        // Number 22 is a hash for both, in different forms; number 24 only for Redis.
        assert!(pieces(Flavor::Valkey, types::HASH_METADATA, raw, b"k", ALL).is_none());
        let mut many_nodes = vec![0x40, 200];
        many_nodes.extend([1, 1, b'x'].repeat(200));
        assert!(pieces(Flavor::Redis, types::LIST_QUICKLIST_2, &many_nodes, b"k", defaults).is_some());
    }

    #[test]
    fn scores_keep_every_bit() {
        let scores = [0.1, -0.0, 5e-324, f64::MAX, f64::INFINITY, f64::NEG_INFINITY, 3.0, 0.1 + 0.2];
        for expected in scores {
            let raw = [&b"\x01\x01m"[..], &f64::to_le_bytes(expected)].concat();
            let command =
                pieces(Flavor::Redis, types::ZSET_2, &raw, b"k", ALL).unwrap().next().unwrap().unwrap();
            let got: f64 = std::str::from_utf8(&command[2]).unwrap().parse().unwrap();
            assert_eq!(got.to_bits(), expected.to_bits());
        }
        let old = b"\x03\x01a\xff\x01b\xfe\x01c\x06-1e+20";
        assert_eq!(text(Flavor::Redis, types::ZSET, old, ALL), ["ZADD k -inf a inf b", "ZADD k -1e20 c"]);
        let nan = b"\x01\x01a\xfd";
        let error = pieces(Flavor::Redis, types::ZSET, nan, b"k", ALL).unwrap().next().unwrap();
        assert!(matches!(error, Err(SnapshotError::Corrupt { .. })));
    }

    #[test]
    fn field_expiries_follow_their_fields() {
        let all = PieceOptions { max_elements: 10, ..ALL };
        let mut redis = 1000i64.to_le_bytes().to_vec();
        redis.extend(b"\x04\x01\x01a\x011\x00\x01b\x012\x06\x01c\x013\x01\x01d\x014");
        let expected =
            ["HSET k a 1 b 2 c 3 d 4", "HPEXPIREAT k 1000 FIELDS 2 a d", "HPEXPIREAT k 1005 FIELDS 1 c"];
        assert_eq!(text(Flavor::Redis, types::HASH_METADATA, &redis, all), expected);
        let early = b"\x02\x07\x01a\x011\x00\x01b\x012";
        let expected = ["HSET k a 1 b 2", "HPEXPIREAT k 7 FIELDS 1 a"];
        assert_eq!(text(Flavor::Redis, types::HASH_METADATA_PRE_GA, early, all), expected);
        let mut valkey = b"\x02\x01a\x011".to_vec();
        valkey.extend((-1i64).to_le_bytes());
        valkey.extend(b"\x01b\x012");
        valkey.extend(7i64.to_le_bytes());
        let expected = ["HSET k a 1 b 2", "HPEXPIREAT k 7 FIELDS 1 b"];
        assert_eq!(text(Flavor::Valkey, types::VALKEY_HASH_2, &valkey, all), expected);
    }

    #[test]
    fn held_field_expiries_are_moved_once_whatever_the_size() {
        let held = PieceOptions { field_hold_ms: Some(35_000), ..PieceOptions::default() };
        let mut raw = 7i64.to_le_bytes().to_vec();
        // A listpack of a, 1, 7, b, 2, 0, c, 3, 35001.
        let mut list: Vec<u8> =
            b"\0\0\0\0\x09\x00\x81a\x02\x01\x01\x07\x01\x81b\x02\x02\x01\x00\x01".to_vec();
        list.extend(b"\x81c\x02\x03\x01\xf2\xb9\x88\x00\x04\xff");
        list[0] = list.len() as u8;
        raw.push(list.len() as u8);
        raw.extend(list);
        let expected =
            ["HSET k a 1 b 2 c 3", "HPEXPIREAT k 35001 FIELDS 1 c", "HPEXPIREAT k 35007 FIELDS 1 a"];
        assert_eq!(text(Flavor::Redis, types::HASH_LISTPACK_EX, &raw, held), expected);
        assert!(pieces(Flavor::Redis, types::HASH_LISTPACK_EX, &raw, b"k", ALL).is_none());
    }

    #[test]
    fn damage_ends_the_pieces() {
        let mut cut = pieces(Flavor::Redis, types::LIST, b"\x05\x01a\x01b\x01", b"k", ALL).unwrap();
        assert!(matches!(cut.next(), Some(Ok(_))));
        assert!(matches!(cut.next(), Some(Err(SnapshotError::Truncated { .. }))));
        assert!(cut.next().is_none());
        let mut longer = pieces(Flavor::Redis, types::LIST, b"\x01\x01ab", b"k", ALL).unwrap();
        assert!(matches!(longer.next(), Some(Ok(_))));
        assert!(matches!(longer.next(), Some(Err(SnapshotError::TrailingBytes { offset: 3 }))));
    }
}
