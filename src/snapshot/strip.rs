//! Taking our field out of an RDB, so that a server without the module loads it.

use std::io::{Read, Write};

use super::aux::is_ours;
use super::crc64::Crc64;
use super::error::SnapshotError;
use super::reader::{Crc, Event, RdbReader};

/// What [`strip_rdb`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StripReport {
    /// Fields of ours that were taken out.
    pub removed: u64,
    /// Aux fields of other modules, which stay.
    pub foreign_module_fields: u64,
    /// Keys copied.
    pub keys: u64,
    /// Bytes read.
    pub bytes_in: u64,
    /// Bytes written.
    pub bytes_out: u64,
}

/// Copies an RDB without our aux field and with a new CRC64. An input saved without CRC64 gives an output
/// without one.
///
/// The output is complete only if this returns without an error: write it under another name and rename it then.
///
/// # Errors
/// [`SnapshotError`], also if the input's CRC64 does not match.
pub fn strip_rdb(input: impl Read, output: impl Write) -> Result<StripReport, SnapshotError> {
    let mut reader = RdbReader::new(input);
    let mut out =
        Output { inner: std::io::BufWriter::with_capacity(128 * 1024, output), crc: Crc64::new(), len: 0 };
    let mut report = StripReport::default();
    loop {
        let (ours, end) = match reader.next_event()? {
            None => break,
            Some(event @ Event::ModuleAux { .. }) => {
                let ours = is_ours(&event);
                report.foreign_module_fields += u64::from(!ours);
                (ours, None)
            }
            Some(Event::Key(_)) => {
                report.keys += 1;
                (false, None)
            }
            Some(Event::Eof { crc }) => (false, Some(crc)),
            Some(_) => (false, None),
        };
        match end {
            _ if ours => report.removed += 1,
            None => out.write(reader.raw())?,
            Some(crc) => {
                out.write(reader.raw().get(..1).unwrap_or_default())?;
                match crc {
                    Crc::Ok => out.write(&out.crc.value().to_le_bytes())?,
                    Crc::Unchecked => out.write(&[0; 8])?,
                    Crc::Absent => {}
                }
            }
        }
    }
    reader.expect_end()?;
    out.inner.flush().map_err(|source| SnapshotError::Io { offset: out.len, source })?;
    report.bytes_in = reader.offset();
    report.bytes_out = out.len;
    Ok(report)
}

struct Output<W: Write> {
    inner: std::io::BufWriter<W>,
    crc: Crc64,
    len: u64,
}

impl<W: Write> Output<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.inner.write_all(bytes).map_err(|source| SnapshotError::Io { offset: self.len, source })?;
        self.crc.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }
}
