//! `orphans`: ops that were cut off the log because the source does not have them.

use std::io::Write;
use std::path::Path;

use super::dir::LogDir;
use super::dump::{self, Filter};
use super::{time, CtlError};

/// `oplogctl orphans`: one line for each. Returns whether all records could be read.
///
/// # Errors
/// Those of the file system, and of `out`.
pub fn list(dir: &Path, out: &mut impl Write) -> Result<bool, CtlError> {
    let mut good = true;
    for orphan in LogDir::open(dir)?.orphans()? {
        match orphan.info {
            Ok(i) => writeln!(
                out,
                "{} ops {} to {} ({} ops, {} bytes) written {} to {} cut {}: {}; keys: {}",
                i.id,
                i.first_op,
                i.last_op,
                i.ops,
                i.bytes,
                time::format(i.first_time_ms),
                time::format(i.last_time_ms),
                time::format(i.cut_ms),
                i.reason,
                i.keys.join(" "),
            )?,
            Err(damage) => {
                good = false;
                let id = orphan.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                writeln!(out, "{id} DAMAGE {damage}")?;
            }
        }
    }
    Ok(good)
}

/// `oplogctl orphans --show`: the ops of one. Returns whether they could be read without damage.
///
/// # Errors
/// [`CtlError::Other`] where there is no such orphan; those of the file system, and of `out` and `err`.
pub fn show(dir: &Path, id: &str, how: &Filter, out: impl Write, err: impl Write) -> Result<bool, CtlError> {
    let orphans = LogDir::open(dir)?.orphans()?;
    let found = orphans.iter().find(|o| o.path.file_name().is_some_and(|n| n == id));
    let Some(orphan) = found else {
        return Err(CtlError::Other(format!("{}: no orphan {id}", dir.display())));
    };
    dump::run(&orphan.path, how, out, err)
}
