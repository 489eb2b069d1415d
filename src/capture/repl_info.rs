//! What `INFO replication` says, and where in the stream to attach.

use std::collections::HashMap;

use oplog_format::History;

use super::attach::Resume;
use super::AttachError;

/// What the own server is to its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It executes writes.
    Master,
    /// It follows a master.
    Replica,
}

/// The state of replication at one moment.
#[derive(Debug, Clone)]
pub(crate) struct ReplInfo {
    pub role: Role,
    pub history: History,
    /// The former history, and the offset up to which it may be asked for: the first byte of the present one.
    pub former: Option<(History, i64)>,
    /// Offset of the last byte of the stream.
    pub offset: i64,
    pub backlog: Option<Backlog>,
    pub backlog_size: i64,
    /// Listening port and state of each replica.
    replicas: Vec<(u32, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backlog {
    pub first: i64,
    pub len: i64,
}

/// Where to attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Start {
    pub history: History,
    /// Offset of the last byte before the stream.
    pub offset: i64,
    pub continued: bool,
    pub gap: bool,
}

impl ReplInfo {
    pub fn parse(info: &str) -> Result<Self, AttachError> {
        let map: HashMap<&str, &str> = info.lines().filter_map(|l| l.split_once(':')).collect();
        let text = |field: &'static str| map.get(field).copied().ok_or(AttachError::Info { field });
        let number =
            |field: &'static str| text(field)?.parse::<i64>().map_err(|_| AttachError::Info { field });
        let history = |field| {
            let id = text(field)?;
            History::from_bytes(id.as_bytes()).map_err(|_| AttachError::Info { field })
        };
        let second = number("second_repl_offset")?;
        Ok(Self {
            role: match text("role")? {
                "master" => Role::Master,
                "slave" | "replica" => Role::Replica,
                _ => return Err(AttachError::Info { field: "role" }),
            },
            history: history("master_replid")?,
            former: if second > 0 { Some((history("master_replid2")?, second)) } else { None },
            offset: number("master_repl_offset")?,
            backlog: match number("repl_backlog_active")? {
                0 => None,
                _ => Some(Backlog {
                    first: number("repl_backlog_first_byte_offset")?,
                    len: number("repl_backlog_histlen")?,
                }),
            },
            backlog_size: number("repl_backlog_size")?,
            replicas: map
                .iter()
                .filter(|(k, _)| is_replica_line(k))
                .filter_map(|(_, v)| replica(v))
                .collect(),
        })
    }

    /// Whether a replica that announced this listening port waits for a snapshot.
    pub fn waits(&self, port: u32) -> bool {
        self.replicas.iter().any(|(p, state)| *p == port && state != "online")
    }

    /// Where to attach: behind `resume` if the server still has what follows, else at the newest position.
    pub fn start(&self, resume: Option<&Resume>) -> Start {
        let newest =
            Start { history: self.history, offset: self.offset, continued: false, gap: resume.is_some() };
        let (Some(resume), Some(backlog)) = (resume, self.backlog) else {
            return newest;
        };
        let next = resume.offset.saturating_add(1);
        if next < backlog.first || next > backlog.first.saturating_add(backlog.len) {
            return newest;
        }
        let former = self.former.is_some_and(|(id, first)| id == resume.history && next <= first);
        if resume.history != self.history && !former {
            return newest;
        }
        Start { history: resume.history, offset: resume.offset, continued: true, gap: false }
    }
}

fn is_replica_line(key: &str) -> bool {
    key.strip_prefix("slave").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

fn replica(line: &str) -> Option<(u32, String)> {
    let field = |name: &str| line.split(',').find_map(|kv| kv.strip_prefix(name)?.strip_prefix('='));
    Some((field("port")?.parse().ok()?, field("state")?.to_owned()))
}

/// The database of the master's stream in the output of `CLIENT LIST TYPE master`.
pub(crate) fn master_db(client_list: &str) -> Option<u32> {
    client_list.lines().next()?.split(' ').find_map(|kv| kv.strip_prefix("db=")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn h(c: u8) -> History {
        History::from_bytes(&[c; 40]).unwrap()
    }

    fn info() -> ReplInfo {
        ReplInfo {
            role: Role::Master,
            history: h(b'a'),
            former: Some((h(b'b'), 151)),
            offset: 200,
            backlog: Some(Backlog { first: 101, len: 100 }),
            backlog_size: 100,
            replicas: Vec::new(),
        }
    }

    fn start(info: &ReplInfo, id: u8, offset: i64) -> Start {
        info.start(Some(&Resume { history: h(id), offset, db: 0 }))
    }

    #[test]
    fn a_resume_continues_within_the_backlog_only() {
        let i = info();
        for (offset, continued) in [(99, false), (100, true), (150, true), (200, true), (201, false)] {
            let s = start(&i, b'a', offset);
            assert_eq!((s.continued, s.gap), (continued, !continued), "{offset}");
            assert_eq!(s.offset, if continued { offset } else { 200 });
        }
    }

    #[test]
    fn the_former_history_continues_up_to_its_end() {
        let i = info();
        assert_eq!(start(&i, b'b', 120).history, h(b'b'));
        assert!(start(&i, b'b', 150).continued);
        assert!(start(&i, b'b', 151).gap);
        assert!(start(&i, b'c', 150).gap);
    }

    #[test]
    fn without_a_resume_nothing_is_missing() {
        let s = info().start(None);
        assert_eq!((s.continued, s.gap, s.offset), (false, false, 200));
    }

    #[test]
    fn info_is_read() {
        let text = "# Replication\r\nrole:master\r\n\
            master_replid:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n\
            master_replid2:0000000000000000000000000000000000000000\r\n\
            master_repl_offset:42\r\nsecond_repl_offset:-1\r\n\
            repl_backlog_active:0\r\nrepl_backlog_size:1048576\r\n\
            slave0:ip=127.0.0.1,port=99999,state=wait_bgsave,offset=0,lag=0\r\n\
            slave1:ip=127.0.0.1,port=6379,state=online,offset=0,lag=0\r\n\
            slave_expires_tracked_keys:0\r\n";
        let i = ReplInfo::parse(text).unwrap();
        assert_eq!((i.offset, i.former, i.backlog), (42, None, None));
        assert_eq!([99_999, 6379, 0].map(|p| i.waits(p)), [true, false, false]);
        let bad = text.replace("master_repl_offset:42", "master_repl_offset:x");
        assert!(matches!(ReplInfo::parse(&bad), Err(AttachError::Info { field: "master_repl_offset" })));
        assert_eq!(master_db("id=3 addr=1.2.3.4:1 name= db=7 sub=0\n"), Some(7));
        assert_eq!(master_db(""), None);
    }
}
