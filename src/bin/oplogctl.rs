//! oplogctl: reads the oplog of a redisdr node, alive or dead, without changing it.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use redisdr::ctl::dump::Filter;
use redisdr::ctl::{self, CtlError, Progress};

/// Reads the oplog of a redisdr node. Never changes a log, never locks it: the server may be running.
///
/// Exit codes: 0 all is well, 1 damage was found, 2 the command could not be carried out.
#[derive(Parser)]
#[command(name = "oplogctl", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows what a log holds
    Stat {
        /// Directory of the log
        dir: PathBuf,
    },
    /// Reads every byte, and reports all damage
    Verify {
        /// Directory of the log
        dir: PathBuf,
    },
    /// Shows ops; ends at a damaged place
    Dump {
        /// Directory of the log
        dir: PathBuf,
        #[command(flatten)]
        filter: FilterArgs,
    },
    /// Shows the last ops
    Tail {
        /// Directory of the log
        dir: PathBuf,
        /// How many
        #[arg(short = 'n', long, default_value_t = 10)]
        lines: u64,
        /// Go on with those that come
        #[arg(short, long)]
        follow: bool,
        #[command(flatten)]
        form: FormArgs,
    },
    /// Lists the ops that were cut off the log because the source does not have them
    Orphans {
        /// Directory of the log
        dir: PathBuf,
        /// Shows the ops of this one
        #[arg(long, value_name = "ID")]
        show: Option<String>,
        /// One JSON object a line
        #[arg(long, requires = "show")]
        json: bool,
        /// Long arguments as a whole
        #[arg(long, requires = "show")]
        full: bool,
    },
    /// Copies an RDB without the module's field, for a server without the module
    StripRdb {
        /// RDB file
        input: PathBuf,
        /// File to make; must not exist
        output: PathBuf,
    },
}

#[derive(Args)]
struct FilterArgs {
    /// Ops from this op id on
    #[arg(long, value_name = "OP")]
    from: Option<u64>,
    /// Ops up to this op id
    #[arg(long, value_name = "OP")]
    to: Option<u64>,
    /// Ops captured at or after this time (RFC 3339, UTC where no zone is given, or Unix milliseconds)
    #[arg(long, value_name = "TIME", value_parser = ctl::time::parse)]
    since: Option<u64>,
    /// Ops captured at or before this time
    #[arg(long, value_name = "TIME", value_parser = ctl::time::parse)]
    until: Option<u64>,
    /// Ops born on this instance
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..16))]
    service_id: Option<u8>,
    /// At most so many ops
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    #[command(flatten)]
    form: FormArgs,
}

#[derive(Args)]
struct FormArgs {
    /// One JSON object a line, arguments as a whole; one that is no UTF-8 becomes {"hex": ...}
    #[arg(long)]
    json: bool,
    /// Arguments as a whole; without this text shows the first 1024 bytes of one, and its length
    #[arg(long)]
    full: bool,
}

impl From<FilterArgs> for Filter {
    fn from(a: FilterArgs) -> Self {
        Self {
            from: a.from,
            to: a.to,
            since: a.since,
            until: a.until,
            service_id: a.service_id,
            limit: a.limit,
            json: a.form.json,
            full: a.form.full,
        }
    }
}

/// How often `tail -f` looks for more.
const POLL: Duration = Duration::from_millis(200);

fn run(command: Command, out: &mut impl Write) -> Result<bool, CtlError> {
    let err = io::stderr();
    match command {
        Command::Stat { dir } => ctl::stat::run(&dir, out).map(|()| true),
        Command::Verify { dir } => {
            let mut progress = Progress::new(err.is_terminal());
            ctl::verify::run(&dir, out, &mut progress)
        }
        Command::Dump { dir, filter } => ctl::dump::run(&dir, &filter.into(), out, err),
        Command::Tail { dir, lines, follow, form } => {
            let how = Filter { json: form.json, full: form.full, ..Filter::default() };
            ctl::dump::tail(&dir, lines, follow.then_some(POLL), &how, out, err)
        }
        Command::Orphans { dir, show: None, .. } => ctl::orphans::list(&dir, out),
        Command::Orphans { dir, show: Some(id), json, full } => {
            ctl::orphans::show(&dir, &id, &Filter { json, full, ..Filter::default() }, out, err)
        }
        Command::StripRdb { input, output } => ctl::strip::run(&input, &output, out).map(|()| true),
    }
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    let mut out = BufWriter::new(io::stdout().lock());
    let done = run(command, &mut out).and_then(|ok| {
        out.flush()?;
        Ok(ok)
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        // The reader, `head` for example, has seen enough.
        Err(CtlError::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(e) => {
            // Nothing is left to tell it to where this fails.
            let _ = writeln!(io::stderr(), "oplogctl: {e}");
            ExitCode::from(2)
        }
    }
}
