//! `strip-rdb`: an RDB without the module's field, for a server without the module.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::CtlError;
use crate::snapshot::strip_rdb;

/// `oplogctl strip-rdb`. The output appears under its name when it is complete and synced; an existing file is not
/// replaced.
///
/// # Errors
/// Those of the file system and of `out`; [`CtlError::Other`] where the input is no sound RDB.
pub fn run(input: &Path, output: &Path, out: &mut impl Write) -> Result<(), CtlError> {
    let from = File::open(input).map_err(|e| CtlError::io(input, e))?;
    if output.exists() {
        return Err(CtlError::io(output, io::ErrorKind::AlreadyExists.into()));
    }
    let mut name = output.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    let done = write(from, input, &part).and_then(|report| {
        // A link, unlike a rename, fails where a file of that name has come meanwhile.
        fs::hard_link(&part, output).map_err(|e| CtlError::io(output, e))?;
        Ok(report)
    });
    if !matches!(&done, Err(CtlError::Io { path, error }) if *path == part && error.kind() == io::ErrorKind::AlreadyExists)
    {
        fs::remove_file(&part).map_err(|e| CtlError::io(&part, e))?;
    }
    let r = done?;
    if r.removed == 0 {
        writeln!(out, "{}: held no field of redisdr; copied as it is", input.display())?;
    }
    writeln!(
        out,
        "{}: {} keys, {} bytes; {} fields taken out",
        output.display(),
        r.keys,
        r.bytes_out,
        r.removed
    )?;
    Ok(())
}

fn write(from: File, input: &Path, part: &Path) -> Result<crate::snapshot::StripReport, CtlError> {
    let failed = |e| CtlError::io(part, e);
    let file = OpenOptions::new().write(true).create_new(true).open(part).map_err(failed)?;
    let report = strip_rdb(from, &file).map_err(|e| CtlError::Other(format!("{}: {e}", input.display())))?;
    file.sync_all().map_err(failed)?;
    Ok(report)
}
