//! A real server for the RDB tests: own directory, Unix socket, killed on drop.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server program and its version.
#[derive(Clone, Debug)]
pub struct Program {
    pub path: PathBuf,
    pub valkey: bool,
    pub version: (u32, u32, u32),
}

impl Program {
    pub fn at(path: &Path) -> Self {
        let out = Command::new(path).arg("--version").output().expect("server runs");
        let text = String::from_utf8(out.stdout).unwrap();
        let version = text.split_whitespace().find_map(|w| w.strip_prefix("v=")).expect("version in text");
        let mut parts = version.split('.').map(|p| p.parse().unwrap_or(0));
        let mut part = || parts.next().unwrap_or(0);
        Self {
            path: path.to_path_buf(),
            valkey: text.to_lowercase().contains("valkey"),
            version: (part(), part(), part()),
        }
    }

    /// Servers to test with: all that `scripts/servers --list` names, or the one in the path.
    pub fn all() -> Vec<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/servers");
        let text = if script.exists() {
            let out = Command::new(script).arg("--list").output().unwrap();
            assert!(out.status.success(), "scripts/servers --list: {}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8(out.stdout).unwrap()
        } else {
            String::new()
        };
        let mut found: Vec<Self> = text
            .split_whitespace()
            .map(Path::new)
            .filter(|p| p.is_absolute() && p.is_file())
            .map(Self::at)
            .collect();
        if found.is_empty() {
            found.push(Self::at(Path::new("/usr/bin/redis-server")));
        }
        found
    }

    pub fn since(&self, redis: (u32, u32), valkey: (u32, u32)) -> bool {
        (self.version.0, self.version.1) >= if self.valkey { valkey } else { redis }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Text(String),
    Error(String),
    Int(i64),
    Bulk(Option<Vec<u8>>),
    Array(Vec<Reply>),
}

pub struct Server {
    child: Child,
    dir: tempfile::TempDir,
    stream: BufReader<UnixStream>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts a server, with `rdb` as its data if there is one.
    pub fn start(program: &Program, rdb: Option<&[u8]>) -> Self {
        Self::try_start(program, rdb).expect("server starts")
    }

    /// The same; the server's output if it ends before it answers.
    pub fn try_start(program: &Program, rdb: Option<&[u8]>) -> Result<Self, String> {
        let dir = tempfile::Builder::new().prefix("rdb-").tempdir().unwrap();
        if let Some(bytes) = rdb {
            std::fs::write(dir.path().join("dump.rdb"), bytes).unwrap();
        }
        let mut command = Command::new(&program.path);
        command.current_dir(dir.path()).args(["--port", "0", "--unixsocket", "s", "--save", ""]);
        command.args(["--dbfilename", "dump.rdb", "--logfile", "log"]);
        if program.since((7, 0), (7, 0)) {
            command.args(["--enable-debug-command", "yes"]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if child.try_wait().unwrap().is_some() {
                return Err(std::fs::read_to_string(dir.path().join("log")).unwrap_or_default());
            }
            // A server listens before it loads: it may answer LOADING, or end after it took the connection.
            let stream = UnixStream::connect(dir.path().join("s")).map(BufReader::new);
            if let Some(stream) = stream.ok().and_then(answers) {
                return Ok(Self { child, dir, stream });
            }
            assert!(Instant::now() < deadline, "server does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn call<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Reply {
        self.send(args);
        self.reply()
    }

    /// Calls, and fails on an error reply.
    pub fn ok<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Reply {
        match self.call(args) {
            Reply::Error(e) => {
                let shown: Vec<String> = args
                    .iter()
                    .take(8)
                    .map(|a| a.as_ref().escape_ascii().take(80).map(char::from).collect())
                    .collect();
                panic!("{e} for {shown:?}")
            }
            reply => reply,
        }
    }

    /// Many commands in a pipeline; each must succeed.
    pub fn pipeline(&mut self, commands: &[Vec<Vec<u8>>]) {
        for chunk in commands.chunks(100) {
            let mut out = Vec::new();
            chunk.iter().for_each(|c| encode(c, &mut out));
            let mut writer = self.stream.get_ref().try_clone().unwrap();
            let writing = std::thread::spawn(move || writer.write_all(&out).unwrap());
            for command in chunk {
                let reply = self.reply();
                assert!(!matches!(reply, Reply::Error(_)), "{reply:?} for {:?}", command[0].escape_ascii());
            }
            writing.join().unwrap();
        }
    }

    fn send<A: AsRef<[u8]>>(&mut self, args: &[A]) {
        let mut out = Vec::new();
        encode(args, &mut out);
        self.stream.get_mut().write_all(&out).unwrap();
    }

    fn line(&mut self) -> Vec<u8> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).unwrap();
        assert!(line.ends_with(b"\r\n"), "connection closed");
        line.truncate(line.len() - 2);
        line
    }

    fn reply(&mut self) -> Reply {
        let line = self.line();
        let text = String::from_utf8_lossy(&line[1..]).into_owned();
        match line[0] {
            b'+' => Reply::Text(text),
            b'-' => Reply::Error(text),
            b':' => Reply::Int(text.parse().unwrap()),
            b'$' if text == "-1" => Reply::Bulk(None),
            b'$' => {
                let mut bytes = vec![0; text.parse::<usize>().unwrap() + 2];
                self.stream.read_exact(&mut bytes).unwrap();
                bytes.truncate(bytes.len() - 2);
                Reply::Bulk(Some(bytes))
            }
            b'*' => Reply::Array((0..text.parse::<i64>().unwrap()).map(|_| self.reply()).collect()),
            other => panic!("reply type {other}"),
        }
    }

    /// DEBUG DIGEST: one hash over all data.
    pub fn digest(&mut self) -> String {
        match self.ok(&["DEBUG", "DIGEST"]) {
            Reply::Text(digest) => digest,
            other => panic!("{other:?}"),
        }
    }

    pub fn dump(&mut self, key: &[u8]) -> Vec<u8> {
        match self.ok(&[b"DUMP", key]) {
            Reply::Bulk(Some(bytes)) => bytes,
            other => panic!("{other:?} for {:?}", key.escape_ascii()),
        }
    }

    /// Saves and gives the file's bytes.
    pub fn save(&mut self) -> Vec<u8> {
        self.ok(&["SAVE"]);
        std::fs::read(self.rdb_path()).unwrap()
    }

    pub fn rdb_path(&self) -> PathBuf {
        self.dir.path().join("dump.rdb")
    }
}

/// The connection, if a server with its data loaded is at its other end.
fn answers(mut stream: BufReader<UnixStream>) -> Option<BufReader<UnixStream>> {
    stream.get_mut().write_all(b"PING\r\n").ok()?;
    let mut line = String::new();
    stream.read_line(&mut line).ok()?;
    (line == "+PONG\r\n").then_some(stream)
}

fn encode<A: AsRef<[u8]>>(args: &[A], out: &mut Vec<u8>) {
    write!(out, "*{}\r\n", args.len()).unwrap();
    for arg in args {
        let arg = arg.as_ref();
        write!(out, "${}\r\n", arg.len()).unwrap();
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
}
