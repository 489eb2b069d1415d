//! Walks one segment file that a server may be writing to.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use oplog_format::entry::ENTRY_MAGIC;
use oplog_format::index::{FOOTER_MAGIC, POINT_LEN};
use oplog_format::packed::PACKED_HEADER_LEN;
use oplog_format::{
    decode_stored, EntryHeader, Footer, FormatError, IndexPoint, OpId, SegmentHeader, Stored, StoredHeader,
    Unpacker, ENTRY_HEADER_LEN, FOOTER_LEN, SEGMENT_HEADER_LEN,
};

use super::damage::Damage;
use crate::store::MOST_PER_BYTE;

/// Read from the file at once.
const CHUNK: u64 = 256 * 1024;

/// What closes a sealed segment, as far as it could be read.
#[derive(Debug, Clone)]
pub struct Seal {
    /// The footer.
    pub footer: Footer,
    /// The index; empty where it is damaged.
    pub points: Vec<IndexPoint>,
}

/// What stands where an entry should begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// An entry with good checksums; its payload is [`Scan::payload`].
    Entry {
        /// Where it stands.
        offset: u64,
        /// Header of the plain entry.
        header: EntryHeader,
    },
    /// The end of the entries.
    End,
    /// The file ends within an entry.
    Torn(Damage),
    /// Something that is no entry, or one that does not continue.
    Damaged(Damage),
}

/// A segment file under the reader.
pub struct Scan {
    path: PathBuf,
    file: File,
    len: u64,
    end: u64,
    at: u64,
    /// Where the last entry stands.
    entry_at: u64,
    next_op: Option<OpId>,
    buf: Vec<u8>,
    buf_at: u64,
    payload: std::ops::Range<usize>,
    unpacker: Unpacker,
    /// The last entry, where it was compressed.
    unpacked: Vec<u8>,
    /// What it says of itself; `None` where that is damaged.
    pub header: Option<SegmentHeader>,
    /// Its seal; `None` where it has none, or a damaged one.
    pub seal: Option<Seal>,
    /// What was found wrong while opening.
    pub problems: Vec<Damage>,
}

impl Scan {
    /// Opens a segment. Damage does not fail the call, it goes to [`Scan::problems`].
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut scan = Self {
            path: path.to_path_buf(),
            file: File::open(path)?,
            len: 0,
            end: 0,
            at: SEGMENT_HEADER_LEN as u64,
            entry_at: 0,
            next_op: None,
            buf: Vec::new(),
            buf_at: 0,
            payload: 0..0,
            unpacker: Unpacker::default(),
            unpacked: Vec::new(),
            header: None,
            seal: None,
            problems: Vec::new(),
        };
        scan.len = scan.file.metadata()?.len();
        let head = scan.read(0, SEGMENT_HEADER_LEN as u64)?;
        match SegmentHeader::decode(&head) {
            Ok(header) => {
                scan.next_op = Some(header.first_op);
                scan.header = Some(header);
            }
            Err(e) => scan.problems.push(Damage::format(path, 0, &e)),
        }
        if let Some(problem) = scan.look_for_seal()? {
            scan.problems.push(problem);
        }
        Ok(scan)
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the file when it was last looked at.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it holds no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end <= SEGMENT_HEADER_LEN as u64
    }

    /// Where the next entry is expected.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.at
    }

    /// First position of the next entry; `None` where that is not known.
    #[must_use]
    pub fn next_op(&self) -> Option<OpId> {
        self.next_op
    }

    /// Payload of the entry that [`Scan::step`] returned last.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        if self.unpacked.is_empty() {
            return self.buf.get(self.payload.clone()).unwrap_or_default();
        }
        self.unpacked.get(ENTRY_HEADER_LEN..).unwrap_or_default()
    }

    /// Offset of that payload, or of the whole entry where it is compressed and nothing of it has an offset.
    #[must_use]
    pub fn payload_at(&self) -> u64 {
        if self.unpacked.is_empty() {
            return self.buf_at + self.payload.start as u64;
        }
        self.entry_at
    }

    /// Whether the last entry is compressed.
    #[must_use]
    pub fn is_packed(&self) -> bool {
        !self.unpacked.is_empty()
    }

    /// Bytes at `at`, fewer where the file ends.
    fn read(&self, at: u64, want: u64) -> io::Result<Vec<u8>> {
        let want = want.min(self.len.saturating_sub(at));
        let mut out = vec![0; usize::try_from(want).map_err(io::Error::other)?];
        let mut done = 0;
        while let Some(rest) = out.get_mut(done..).filter(|r| !r.is_empty()) {
            match self.file.read_at(rest, at + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        out.truncate(done);
        Ok(out)
    }

    /// Reads the footer and the index, if there are. Returns what is wrong with them.
    fn look_for_seal(&mut self) -> io::Result<Option<Damage>> {
        self.end = self.len;
        let head = SEGMENT_HEADER_LEN as u64;
        let Some(split) = self.len.checked_sub(FOOTER_LEN as u64).filter(|s| *s >= head) else {
            return Ok(None);
        };
        let tail = self.read(split, FOOTER_LEN as u64)?;
        let (footer, crc) = match Footer::decode(&tail) {
            Ok(found) => found,
            Err(FormatError::Magic { .. } | FormatError::Short { .. }) => return Ok(None),
            Err(e) => return Ok(Some(Damage::format(&self.path, split, &e))),
        };
        let index_len = u64::from(footer.points) * POINT_LEN as u64;
        if footer.index_offset < head || footer.index_offset.checked_add(index_len) != Some(split) {
            let expected = format!("an index of {} points before the footer", footer.points);
            let got = format!("index offset {}", footer.index_offset);
            return Ok(Some(Damage::new(&self.path, split, expected, got)));
        }
        self.end = footer.index_offset;
        let index = self.read(footer.index_offset, index_len)?;
        let points = footer.decode_points(crc, &index);
        let problem = points.as_ref().err().map(|e| Damage::format(&self.path, footer.index_offset, e));
        self.seal = Some(Seal { footer, points: points.unwrap_or_default() });
        Ok(problem)
    }

    /// Looks at the file again: more entries, or a seal, may have come. Returns whether anything has changed.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn refresh(&mut self) -> io::Result<bool> {
        if self.seal.is_some() {
            return Ok(false);
        }
        let len = self.file.metadata()?.len();
        if len == self.len {
            return Ok(false);
        }
        self.len = len;
        self.buf.clear();
        self.payload = 0..0;
        self.unpacked.clear();
        self.look_for_seal()?;
        Ok(true)
    }

    /// As [`Scan::refresh`], with a moment's patience: what is no entry may be one, or a seal, that is just being
    /// written.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn settle(&mut self) -> io::Result<bool> {
        if self.seal.is_some() {
            return Ok(false);
        }
        if self.refresh()? {
            return Ok(true);
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
        self.refresh()
    }

    /// Makes `want` bytes at the current place available, as far as the entries reach.
    fn fill(&mut self, want: u64) -> io::Result<()> {
        let have = (self.buf_at + self.buf.len() as u64).saturating_sub(self.at);
        let inside = self.at >= self.buf_at && have >= want.min(self.end.saturating_sub(self.at));
        if !inside || self.buf.is_empty() {
            self.buf = self.read(self.at, want.max(CHUNK).min(self.end.saturating_sub(self.at)))?;
            self.buf_at = self.at;
        }
        Ok(())
    }

    /// What the buffer holds from the current place on.
    fn window(&self) -> &[u8] {
        let start = usize::try_from(self.at.saturating_sub(self.buf_at)).unwrap_or(usize::MAX);
        self.buf.get(start..).unwrap_or_default()
    }

    /// Looks at what stands at the current place, and goes behind it where it is an entry.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn step(&mut self) -> io::Result<Step> {
        if self.at >= self.end {
            return Ok(Step::End);
        }
        let mut want = ENTRY_HEADER_LEN as u64;
        loop {
            self.fill(want)?;
            let left = self.end.saturating_sub(self.at);
            let needed = match decode_stored(self.window()) {
                Ok(Stored::Entry(e)) => {
                    let header = e.header;
                    return Ok(self.accept(&header));
                }
                Ok(Stored::Incomplete { needed }) => needed,
                Err(e) => return Ok(Step::Damaged(Damage::format(&self.path, self.at, &e))),
            };
            if needed > left || (needed <= want && (self.window().len() as u64) < needed) {
                let got = format!("{left} up to the end");
                let torn = Damage::new(&self.path, self.at, format!("{needed} bytes of entry"), got);
                return Ok(if self.seal.is_some() { Step::Damaged(torn) } else { Step::Torn(torn) });
            }
            want = needed;
        }
    }

    fn accept(&mut self, stored: &StoredHeader) -> Step {
        let header = stored.header;
        if let Some(expected) = self.next_op.filter(|n| *n != header.first_op()) {
            let got = format!("op {}", header.first_op());
            return Step::Damaged(Damage::new(&self.path, self.at, format!("op {expected}"), got));
        }
        let start = usize::try_from(self.at.saturating_sub(self.buf_at)).unwrap_or(usize::MAX);
        let frame = usize::try_from(stored.frame_len()).unwrap_or(usize::MAX);
        self.unpacked.clear();
        self.payload = start.saturating_add(ENTRY_HEADER_LEN)..start.saturating_add(frame);
        if stored.codec.is_some() {
            self.payload = 0..0;
            if let Err(e) = self.unpack() {
                return Step::Damaged(Damage::format(&self.path, self.at, &e));
            }
        }
        let offset = self.at;
        self.entry_at = offset;
        self.at += stored.frame_len();
        self.next_op = header.meta.last_op.checked_add(1);
        Step::Entry { offset, header }
    }

    fn unpack(&mut self) -> Result<(), FormatError> {
        let start = usize::try_from(self.at.saturating_sub(self.buf_at)).unwrap_or(usize::MAX);
        match decode_stored(self.buf.get(start..).unwrap_or_default())? {
            Stored::Entry(e) => self.unpacker.unpack(&e, &mut self.unpacked),
            Stored::Incomplete { needed } => Err(FormatError::Short { what: "entry", needed, got: 0 }),
        }
    }

    /// Goes to the entry at `offset`, from an index point or an earlier walk.
    pub fn seek(&mut self, point: IndexPoint) {
        self.at = point.offset;
        self.next_op = Some(point.first_op);
        self.payload = 0..0;
        self.unpacked.clear();
    }

    /// Goes to the last index point at or below `op`.
    pub fn seek_op(&mut self, op: OpId) {
        let points = self.seal.as_ref().map(|s| s.points.as_slice()).unwrap_or_default();
        let below = points.iter().rev().find(|p| p.first_op <= op && p.offset < self.end);
        if let Some(point) = below.copied() {
            self.seek(point);
        }
    }

    /// From a damaged place to the next entry whose checksum is right and whose op id fits there. `false` where
    /// none follows; the place is then unchanged.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn skip_damage(&mut self) -> io::Result<bool> {
        let (from, next_op) = (self.at, self.next_op);
        let magic = ENTRY_MAGIC.to_le_bytes();
        self.at = from + 1;
        while self.at + (ENTRY_HEADER_LEN as u64) <= self.end {
            self.fill(ENTRY_HEADER_LEN as u64)?;
            let window = self.window();
            let Some(found) = window.windows(magic.len()).position(|w| w == magic) else {
                // The last three bytes may be the start of one.
                self.at += (window.len().saturating_sub(magic.len() - 1)).max(1) as u64;
                continue;
            };
            self.at += found as u64;
            self.fill(PACKED_HEADER_LEN as u64)?;
            if StoredHeader::decode(self.window()).is_ok_and(|h| self.may_stand_here(&h, next_op)) {
                self.next_op = None;
                let start = self.at;
                if let Step::Entry { header, .. } = self.step()? {
                    self.seek(IndexPoint { first_op: header.first_op(), offset: start });
                    return Ok(true);
                }
                self.at = start;
            }
            self.at += 1;
        }
        (self.at, self.next_op) = (from, next_op);
        Ok(false)
    }

    /// Op ids count bytes of the stream, so the offset bounds them.
    fn may_stand_here(&self, header: &StoredHeader, next_op: Option<OpId>) -> bool {
        let first = header.first_op();
        let highest = self.header.map(|h| h.first_op.saturating_add(self.at.saturating_mul(MOST_PER_BYTE)));
        next_op.is_none_or(|n| first >= n) && highest.is_none_or(|h| first <= h)
    }

    /// Whether nothing but zeros follows: room that was allocated and not written to.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn only_zeros_follow(&self) -> io::Result<bool> {
        let mut at = self.at;
        while at < self.end {
            let bytes = self.read(at, CHUNK.min(self.end - at))?;
            if bytes.is_empty() || bytes.iter().any(|b| *b != 0) {
                return Ok(bytes.is_empty());
            }
            at += bytes.len() as u64;
        }
        Ok(true)
    }

    /// Whether the file ends with what looks like a footer, good or not.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn has_footer_magic(&self) -> io::Result<bool> {
        let Some(split) = self.len.checked_sub(FOOTER_LEN as u64) else { return Ok(false) };
        Ok(self.read(split, FOOTER_MAGIC.len() as u64)? == FOOTER_MAGIC)
    }
}
