//! A streaming reader of RDB files.
//!
//! [`RdbReader::next_event`] gives one event after the other. An event borrows the reader's buffers, which are
//! used again for the next one. Memory is bounded by the largest single event, and grows only with bytes that
//! are really there. Values are not decoded: an event holds their bytes as they are in the file.

use std::borrow::Cow;
use std::io::Read;

use super::error::SnapshotError;
use super::input::{Input, Slice};
use super::source::Source;
use super::strings::read_string;
use super::value::{skip_module, skip_value, LAST_TYPE};

type Result<T> = std::result::Result<T, SnapshotError>;

/// The newest version with the magic `REDIS` that is read.
pub const MAX_REDIS_VERSION: u16 = 13;
/// The oldest version with the magic `VALKEY`.
pub const MIN_VALKEY_VERSION: u16 = 80;
/// The newest version with the magic `VALKEY` that is read.
pub const MAX_VALKEY_VERSION: u16 = 81;

/// Versions below this one have no CRC64 at the end.
const FIRST_WITH_CRC: u16 = 5;

mod opcode {
    pub const SLOT_IMPORT: u8 = 243;
    pub const SLOT_INFO: u8 = 244;
    pub const FUNCTION_2: u8 = 245;
    pub const FUNCTION_PRE_GA: u8 = 246;
    pub const MODULE_AUX: u8 = 247;
    pub const IDLE: u8 = 248;
    pub const FREQ: u8 = 249;
    pub const AUX: u8 = 250;
    pub const RESIZE_DB: u8 = 251;
    pub const EXPIRE_MS: u8 = 252;
    pub const EXPIRE_SECONDS: u8 = 253;
    pub const SELECT_DB: u8 = 254;
    pub const EOF: u8 = 255;
}

/// Whose numbering of types a file uses; told by its magic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavor {
    /// Magic `REDIS`: Redis of any version, Valkey before 9.0.
    Redis,
    /// Magic `VALKEY`: Valkey since 9.0.
    Valkey,
}

/// What the end of the file says about its bytes. A CRC64 that does not match is an error, not an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crc {
    /// The CRC64 matches.
    Ok,
    /// The server saved with `rdbchecksum no`: nothing to check.
    Unchecked,
    /// The version of the file has no CRC64.
    Absent,
}

/// A key with its value.
#[derive(Clone, Copy, Debug)]
pub struct Key<'a> {
    /// Number of the database.
    pub db: u32,
    /// Name, decoded.
    pub key: &'a [u8],
    /// Type of the value's encoding.
    pub type_byte: u8,
    /// The value's bytes, without the type byte; its first ones where it has more than the reader keeps.
    pub value: &'a [u8],
    /// Where the value starts in the file.
    pub value_at: u64,
    /// Bytes of the value.
    pub value_len: u64,
    /// Time at which the key expires, in milliseconds since 1970.
    pub expire_ms: Option<i64>,
    /// Seconds since the last use, saved under an LRU policy.
    pub idle: Option<u64>,
    /// LFU counter, saved under an LFU policy.
    pub freq: Option<u8>,
}

/// One part of an RDB file.
#[derive(Debug)]
pub enum Event<'a> {
    /// The first nine bytes.
    Header {
        /// RDB version.
        version: u16,
        /// Meaning of type numbers.
        flavor: Flavor,
    },
    /// A field of the server's own, such as `repl-id`.
    Aux {
        /// Name, decoded.
        key: Cow<'a, [u8]>,
        /// Value, decoded.
        value: Cow<'a, [u8]>,
    },
    /// Data of a module that belongs to no key.
    ModuleAux {
        /// Name and encoding version of the data type, see [`module_value`](super::module_value).
        module_id: u64,
        /// 1: before the keys, 2: after them.
        when: u64,
        /// What the module wrote, with its end mark; read it with
        /// [`Items`](super::module_value::Items).
        body: &'a [u8],
    },
    /// The following keys are of this database.
    SelectDb(u32),
    /// A hint at the sizes of the database.
    ResizeDb {
        /// Number of keys.
        keys: u64,
        /// Number of keys that expire.
        expires: u64,
    },
    /// A hint at the sizes of a cluster slot.
    SlotInfo {
        /// Slot number.
        slot: u64,
        /// Number of keys.
        keys: u64,
        /// Number of keys that expire.
        expires: u64,
    },
    /// A slot migration in progress (Valkey cluster).
    SlotImport,
    /// A function library.
    Function {
        /// Its code with the shebang line, as `FUNCTION LOAD` takes it; empty for `pre_ga`.
        code: Cow<'a, [u8]>,
        /// The form of release candidates of 7.0. No released server loads it.
        pre_ga: bool,
    },
    /// A key.
    Key(Key<'a>),
    /// The end.
    Eof {
        /// State of the CRC64.
        crc: Crc,
    },
}

/// What an event is and where its parts are in the raw bytes.
enum Mark {
    Header { version: u16, flavor: Flavor },
    Aux { from: usize },
    ModuleAux { module_id: u64, when: u64, from: usize },
    SelectDb(u32),
    ResizeDb { keys: u64, expires: u64 },
    SlotInfo { slot: u64, keys: u64, expires: u64 },
    SlotImport,
    Function { from: usize },
    FunctionPreGa,
    Key(KeyMark),
    Eof { crc: Crc },
}

#[derive(Default)]
struct KeyMark {
    type_byte: u8,
    value_from: usize,
    value_len: u64,
    expire_ms: Option<i64>,
    idle: Option<u64>,
    freq: Option<u8>,
}

/// Reads an RDB file; see the [module documentation](self).
pub struct RdbReader<R> {
    source: Source<R>,
    header: Option<(u16, Flavor)>,
    event_at: u64,
    db: u32,
    key: Vec<u8>,
    keep: usize,
    done: bool,
}

impl<R: Read> RdbReader<R> {
    /// Reads `inner` from where it is. It needs no buffer of its own.
    pub fn new(inner: R) -> Self {
        let source = Source::new(inner);
        Self { source, header: None, event_at: 0, db: 0, key: Vec::new(), keep: usize::MAX, done: false }
    }

    /// Keeps at most so many bytes of a value; a larger one is passed over, and has to be read again from where
    /// the event says that it is.
    #[must_use]
    pub fn keep_at_most(mut self, bytes: usize) -> Self {
        self.keep = bytes;
        self
    }

    /// The next part of the file; nothing after [`Event::Eof`].
    ///
    /// # Errors
    /// After an error the reader is of no more use.
    pub fn next_event(&mut self) -> Result<Option<Event<'_>>> {
        if self.done {
            return Ok(None);
        }
        self.source.begin();
        self.event_at = self.source.offset();
        let mark = match self.header {
            None => self.header()?,
            Some((version, flavor)) => self.part(version, flavor)?,
        };
        self.source.finish();
        self.event(mark).map(Some)
    }

    /// The bytes of the last event as they are in the file.
    pub fn raw(&self) -> &[u8] {
        self.source.raw()
    }

    /// Where the last event starts.
    pub fn event_offset(&self) -> u64 {
        self.event_at
    }

    /// Bytes read up to the end of the last event.
    pub fn offset(&self) -> u64 {
        self.source.offset()
    }

    /// Refuses bytes that follow the end; to be called after [`Event::Eof`].
    ///
    /// # Errors
    /// [`SnapshotError::TrailingBytes`], and errors of reading.
    pub fn expect_end(&mut self) -> Result<()> {
        if self.source.at_end()? {
            Ok(())
        } else {
            Err(SnapshotError::TrailingBytes { offset: self.source.offset() })
        }
    }

    fn header(&mut self) -> Result<Mark> {
        let found: [u8; 9] = self.source.array()?;
        let not_an_rdb = || SnapshotError::NotAnRdb { found };
        let (flavor, digits) = if let Some(digits) = found.strip_prefix(b"REDIS") {
            (Flavor::Redis, digits)
        } else if let Some(digits) = found.strip_prefix(b"VALKEY") {
            (Flavor::Valkey, digits)
        } else {
            return Err(not_an_rdb());
        };
        let mut version = 0u16;
        for digit in digits {
            if !digit.is_ascii_digit() {
                return Err(not_an_rdb());
            }
            version = version * 10 + u16::from(digit - b'0');
        }
        let known = match flavor {
            Flavor::Redis => 1..=MAX_REDIS_VERSION,
            Flavor::Valkey => MIN_VALKEY_VERSION..=MAX_VALKEY_VERSION,
        };
        if !known.contains(&version) {
            return Err(SnapshotError::UnsupportedVersion { version });
        }
        self.header = Some((version, flavor));
        Ok(Mark::Header { version, flavor })
    }

    fn part(&mut self, version: u16, flavor: Flavor) -> Result<Mark> {
        let source = &mut self.source;
        let number = source.byte()?;
        match number {
            opcode::AUX => {
                let from = self.here();
                self.source.skip_string()?;
                self.source.skip_string()?;
                Ok(Mark::Aux { from })
            }
            opcode::MODULE_AUX => self.module_aux(),
            opcode::SELECT_DB => {
                let offset = source.offset();
                let number = source.length()?;
                self.db = u32::try_from(number).map_err(|_| SnapshotError::BadNumber {
                    what: "database",
                    number,
                    offset,
                })?;
                Ok(Mark::SelectDb(self.db))
            }
            opcode::RESIZE_DB => Ok(Mark::ResizeDb { keys: source.length()?, expires: source.length()? }),
            opcode::SLOT_INFO => {
                let (slot, keys, expires) = (source.length()?, source.length()?, source.length()?);
                Ok(Mark::SlotInfo { slot, keys, expires })
            }
            opcode::SLOT_IMPORT if flavor == Flavor::Valkey => {
                source.skip_string()?;
                for _ in 0..source.length()? {
                    source.length()?;
                    source.length()?;
                }
                Ok(Mark::SlotImport)
            }
            opcode::FUNCTION_2 => {
                let from = self.here();
                self.source.skip_string()?;
                Ok(Mark::Function { from })
            }
            opcode::FUNCTION_PRE_GA => self.function_pre_ga(),
            opcode::EOF => self.eof(version),
            _ => self.key(number, flavor),
        }
    }

    fn module_aux(&mut self) -> Result<Mark> {
        let module_id = self.source.length()?;
        let offset = self.source.offset();
        let number = self.source.length()?;
        if number != 2 {
            return Err(SnapshotError::BadNumber {
                what: "opcode before the time of a module",
                number,
                offset,
            });
        }
        let when = self.source.length()?;
        let from = self.here();
        skip_module(&mut self.source)?;
        Ok(Mark::ModuleAux { module_id, when, from })
    }

    /// Name, engine, optional description, code.
    fn function_pre_ga(&mut self) -> Result<Mark> {
        self.source.skip_string()?;
        self.source.skip_string()?;
        if self.source.length()? != 0 {
            self.source.skip_string()?;
        }
        self.source.skip_string()?;
        Ok(Mark::FunctionPreGa)
    }

    fn eof(&mut self, version: u16) -> Result<Mark> {
        self.done = true;
        if version < FIRST_WITH_CRC {
            return Ok(Mark::Eof { crc: Crc::Absent });
        }
        let computed = self.source.crc();
        let offset = self.source.offset();
        let stored = u64::from_le_bytes(self.source.array()?);
        match stored {
            0 => Ok(Mark::Eof { crc: Crc::Unchecked }),
            _ if stored == computed => Ok(Mark::Eof { crc: Crc::Ok }),
            _ => Err(SnapshotError::Checksum { offset, stored, computed }),
        }
    }

    fn key(&mut self, mut number: u8, flavor: Flavor) -> Result<Mark> {
        let mut mark = KeyMark::default();
        let mut at = self.event_at;
        loop {
            let source = &mut self.source;
            match number {
                opcode::EXPIRE_MS => mark.expire_ms = Some(i64::from_le_bytes(source.array()?)),
                opcode::EXPIRE_SECONDS => {
                    mark.expire_ms = Some(i64::from(i32::from_le_bytes(source.array()?)) * 1000);
                }
                opcode::IDLE => mark.idle = Some(source.length()?),
                opcode::FREQ => mark.freq = Some(source.byte()?),
                0..=LAST_TYPE => break,
                _ => return Err(SnapshotError::UnknownOpcode { number, offset: at }),
            }
            at = source.offset();
            number = source.byte()?;
        }
        mark.type_byte = number;
        let key_from = self.here();
        self.source.skip_string()?;
        mark.value_from = self.here();
        self.source.finish();
        let name = self.source.raw().get(key_from..).unwrap_or_default();
        self.key.clear();
        self.key.extend_from_slice(&read_string(&mut Slice::at(
            name,
            self.event_at.saturating_add(key_from as u64),
        ))?);
        let value_at = self.source.offset();
        self.source.keep_at_most(mark.value_from.saturating_add(self.keep));
        let passed = skip_value(&mut self.source, number, flavor, at);
        self.source.finish();
        self.source.keep_at_most(usize::MAX);
        passed?;
        mark.value_len = self.source.offset().saturating_sub(value_at);
        Ok(Mark::Key(mark))
    }

    /// Position in the raw bytes of this event.
    fn here(&self) -> usize {
        // An event that does not fit in memory would have failed earlier.
        usize::try_from(self.source.offset().saturating_sub(self.event_at)).unwrap_or(usize::MAX)
    }

    fn event(&mut self, mark: Mark) -> Result<Event<'_>> {
        let raw = self.source.raw();
        let at = self.event_at;
        let slice = |from: usize| raw.get(from..).unwrap_or_default();
        let input = |from: usize| Slice::at(slice(from), at.saturating_add(from as u64));
        Ok(match mark {
            Mark::Header { version, flavor } => Event::Header { version, flavor },
            Mark::Aux { from } => {
                let mut input = input(from);
                Event::Aux { key: read_string(&mut input)?, value: read_string(&mut input)? }
            }
            Mark::ModuleAux { module_id, when, from } => {
                Event::ModuleAux { module_id, when, body: slice(from) }
            }
            Mark::SelectDb(db) => Event::SelectDb(db),
            Mark::ResizeDb { keys, expires } => Event::ResizeDb { keys, expires },
            Mark::SlotInfo { slot, keys, expires } => Event::SlotInfo { slot, keys, expires },
            Mark::SlotImport => Event::SlotImport,
            Mark::Function { from } => {
                Event::Function { code: read_string(&mut input(from))?, pre_ga: false }
            }
            Mark::FunctionPreGa => Event::Function { code: Cow::Borrowed(&[]), pre_ga: true },
            Mark::Key(mark) => Event::Key(Key {
                db: self.db,
                key: &self.key,
                type_byte: mark.type_byte,
                value: slice(mark.value_from),
                value_at: at.saturating_add(mark.value_from as u64),
                value_len: mark.value_len,
                expire_ms: mark.expire_ms,
                idle: mark.idle,
                freq: mark.freq,
            }),
            Mark::Eof { crc } => Event::Eof { crc },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_value_is_passed_over_and_told_where_it_is() {
        let mut file = b"REDIS0011\xfe\x00\x00\x03big\x80\x00\x10\x00\x00".to_vec();
        let at = file.len() as u64 - 5;
        file.extend(vec![b'x'; 1 << 20]);
        file.extend(b"\x00\x05small\x02ab\xff\0\0\0\0\0\0\0\0");
        let mut reader = RdbReader::new(&file[..]).keep_at_most(1000);
        let mut seen = Vec::new();
        while let Some(event) = reader.next_event().unwrap() {
            if let Event::Key(key) = event {
                assert!(key.value.len() as u64 == key.value_len || key.value.len() <= 1000);
                seen.push((key.key.to_vec(), key.value_at, key.value_len));
            }
        }
        let big = (1 << 20) + 5;
        assert_eq!(seen, [(b"big".to_vec(), at, big), (b"small".to_vec(), at + big + 7, 3)]);
    }
}
