//! The RDB reader against files of real servers: every slice restores, and every damage is an error.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[path = "rdb/data.rs"]
mod data;
#[path = "rdb/server.rs"]
mod server;

use std::collections::{HashMap, HashSet};

use redisdr::snapshot::aux::{self, Mode, FORMAT, TYPE_NAME};
use redisdr::snapshot::crc64::crc64;
use redisdr::snapshot::module_value::type_id;
use redisdr::snapshot::{
    pieces, restore_payload, strip_rdb, verify_file, AuxContent, Crc, Event, Flavor, PieceOptions, RdbReader,
    SnapshotError,
};
use server::{Program, Reply, Server};

struct OwnedKey {
    db: u32,
    key: Vec<u8>,
    type_byte: u8,
    value: Vec<u8>,
    expire_ms: Option<i64>,
    idle: Option<u64>,
    freq: Option<u8>,
}

struct Contents {
    version: u16,
    flavor: Flavor,
    keys: Vec<OwnedKey>,
    functions: Vec<Vec<u8>>,
    aux: HashMap<String, Vec<u8>>,
    crc: Crc,
}

fn read(bytes: &[u8]) -> Result<Contents, SnapshotError> {
    let mut reader = RdbReader::new(bytes);
    let Some(Event::Header { version, flavor }) = reader.next_event()? else { panic!("no header") };
    let (mut keys, mut functions, mut aux, mut end) = (Vec::new(), Vec::new(), HashMap::new(), None);
    while let Some(event) = reader.next_event()? {
        match event {
            Event::Key(k) => keys.push(OwnedKey {
                db: k.db,
                key: k.key.to_vec(),
                type_byte: k.type_byte,
                value: k.value.to_vec(),
                expire_ms: k.expire_ms,
                idle: k.idle,
                freq: k.freq,
            }),
            Event::Function { code, pre_ga: false } => functions.push(code.into_owned()),
            Event::Aux { key, value } => {
                aux.insert(String::from_utf8(key.into_owned()).unwrap(), value.into_owned());
            }
            Event::Eof { crc } => end = Some(crc),
            _ => {}
        }
    }
    reader.expect_end()?;
    Ok(Contents { version, flavor, keys, functions, aux, crc: end.expect("end of file") })
}

/// Every value's slice is what DUMP says, and restores to the same data.
#[test]
fn slices_restore_to_the_same_data() {
    for program in Program::all() {
        println!("{program:?}");
        let mut source = Server::start(&program, None);
        data::fill(&mut source, &program);
        let contents = read(&source.save()).unwrap();
        assert_eq!(contents.crc, Crc::Ok);
        expect_types(&program, &contents);
        if !program.valkey {
            let version = String::from_utf8(contents.aux["redis-ver"].clone()).unwrap();
            let (a, b, c) = program.version;
            assert_eq!(version, format!("{a}.{b}.{c}"));
        }

        let mut target = Server::start(&program, None);
        restore_all(&mut source, &mut target, &contents);
        assert_eq!(source.digest(), target.digest());
        if program.since((7, 0), (7, 0)) {
            assert!(functions(&mut source) == functions(&mut target), "functions differ");
        }
        assert_eq!(contents.functions.is_empty(), !program.since((7, 0), (7, 0)));
    }
}

/// The server lists its libraries in no order.
fn functions(server: &mut Server) -> Vec<String> {
    let Reply::Array(libraries) = server.ok(&["FUNCTION", "LIST", "WITHCODE"]) else { panic!() };
    let mut texts: Vec<String> = libraries.iter().map(|l| format!("{l:?}")).collect();
    texts.sort();
    texts
}

fn restore_all(source: &mut Server, target: &mut Server, contents: &Contents) {
    for code in &contents.functions {
        target.ok(&[&b"FUNCTION"[..], b"LOAD", code]);
    }
    let mut db = 0;
    let mut dumps = 0;
    for k in &contents.keys {
        if k.db != db {
            db = k.db;
            source.ok(&["SELECT", &db.to_string()]);
            target.ok(&["SELECT", &db.to_string()]);
        }
        let mut payload = Vec::new();
        restore_payload(k.type_byte, &k.value, contents.version, &mut payload);
        let dump = source.dump(&k.key);
        let body = payload.len() - 10;
        assert!(payload[..body] == dump[..dump.len() - 10], "slice of {:?}", k.key.escape_ascii());
        let ttl = k.expire_ms.unwrap_or(0).to_string();
        target.ok(&[&b"RESTORE"[..], &k.key, ttl.as_bytes(), &payload, b"ABSTTL"]);
        if k.key.starts_with(b"stream") {
            // The digest does not cover consumer groups.
            assert!(target.dump(&k.key) == dump, "restored {:?}", k.key.escape_ascii());
        }
        dumps += 1;
    }
    assert!(dumps > 300, "only {dumps} keys");
    source.ok(&["SELECT", "0"]);
    target.ok(&["SELECT", "0"]);
}

/// The data has what the other tests want to prove.
fn expect_types(program: &Program, contents: &Contents) {
    let seen: HashSet<u8> = contents.keys.iter().map(|k| k.type_byte).collect();
    let mut expected = vec![0, 2, 4, 5, 11];
    expected.extend(match program.since((7, 0), (7, 2)) {
        true => vec![16, 17, 18],
        false => vec![12, 13, 14, 15],
    });
    if program.since((7, 2), (7, 2)) {
        expected.extend([20, 21]);
    } else if program.since((7, 0), (7, 0)) {
        expected.push(19);
    }
    if program.valkey && program.since((0, 0), (9, 0)) {
        expected.push(22);
    } else if !program.valkey && program.since((7, 4), (0, 0)) {
        expected.extend([24, 25]);
    }
    let missing: Vec<u8> = expected.into_iter().filter(|t| !seen.contains(t)).collect();
    assert!(missing.is_empty(), "types {missing:?} missing in {seen:?}");
    if program.version.0 == 7 && program.version.1 == 0 {
        // Number of nodes, then the container of the first: 1 is plain. Later servers pack these elements.
        let plain = contents.keys.iter().find(|k| k.key == b"list-plain-lzf").unwrap();
        assert_eq!(plain.value[..2], [5, 1]);
    }
}

/// Small pieces make the same data as the whole value.
#[test]
fn pieces_make_the_same_data() {
    for program in Program::all() {
        println!("{program:?}");
        let mut source = Server::start(&program, None);
        data::fill(&mut source, &program);
        let contents = read(&source.save()).unwrap();
        let large = PieceOptions { min_bytes: 100_000, min_elements: 1000, ..PieceOptions::default() };
        let tiny = PieceOptions { min_bytes: 0, min_elements: 0, max_elements: 7, max_bytes: 100, ..large };
        for options in [tiny, large] {
            let mut target = Server::start(&program, None);
            let cut = restore_in_pieces(&mut target, &contents, options);
            println!("{cut} values in pieces");
            assert!(cut > if options == tiny { 15 } else { 5 }, "{cut} values in pieces");
            assert_eq!(source.digest(), target.digest());
        }
    }
}

fn restore_in_pieces(target: &mut Server, contents: &Contents, options: PieceOptions) -> usize {
    let mut cut = 0;
    let mut commands: Vec<Vec<Vec<u8>>> = Vec::new();
    for k in &contents.keys {
        commands.push(vec![b"SELECT".to_vec(), k.db.to_string().into_bytes()]);
        let ttl = k.expire_ms.unwrap_or(0).to_string().into_bytes();
        if let Some(pieces) = pieces(contents.flavor, k.type_byte, &k.value, &k.key, options) {
            cut += 1;
            for command in pieces {
                let command = command.unwrap();
                assert!(command[0] == b"XADD" || command.len() <= 2 * options.max_elements + 5);
                commands.push(command);
            }
            if k.expire_ms.is_some() {
                commands.push(vec![b"PEXPIREAT".to_vec(), k.key.clone(), ttl]);
            }
        } else {
            let mut payload = Vec::new();
            restore_payload(k.type_byte, &k.value, contents.version, &mut payload);
            commands.push(vec![b"RESTORE".to_vec(), k.key.clone(), ttl, payload, b"ABSTTL".to_vec()]);
        }
    }
    commands.push(vec![b"SELECT".to_vec(), b"0".to_vec()]);
    target.pipeline(&commands);
    cut
}

/// Encodings that only old servers write; every server still reads them.
#[test]
fn old_encodings_restore_and_split() {
    let ziplist = |entries: &[&[u8]]| {
        let mut body = Vec::new();
        let (mut last, mut at) = (0, 0);
        for entry in entries {
            at = body.len();
            body.push(last as u8);
            body.extend(*entry);
            last = body.len() - at;
        }
        let mut out = (body.len() as u32 + 11).to_le_bytes().to_vec();
        out.extend((at as u32 + 10).to_le_bytes());
        out.extend((entries.len() as u16).to_le_bytes());
        out.extend(body);
        out.push(255);
        out
    };
    let string = |bytes: &[u8]| [&[bytes.len() as u8][..], bytes].concat();
    let pairs = ziplist(&[b"\x01a", b"\xf5", b"\x02bb", b"\xfe\x80", b"\xc0\xff\x7f", b"\x041e10"]);
    let zipmap = b"\x02\x01a\x03\x00one\x01b\x03\x02two..\xff";
    let quicklist = [&[2][..], &string(&pairs), &string(&ziplist(&[b"\x03end"]))].concat();
    let values: Vec<(u8, Vec<u8>, bool)> = vec![
        (1, b"\x03\x01a\xc0\x05\x02bb".to_vec(), true),
        (3, b"\x03\x01a\x031.5\x01b\xfe\xc0\x07\x04-1e3".to_vec(), true),
        (9, string(zipmap), false),
        (10, string(&pairs), false),
        (12, string(&ziplist(&[b"\x01a", b"\xf5", b"\x02bb", b"\x031.5"])), false),
        (13, string(&pairs), false),
        (14, quicklist, true),
    ];
    let tiny = PieceOptions { min_bytes: 0, min_elements: 0, max_elements: 1, ..PieceOptions::default() };
    for program in Program::all() {
        let (mut whole, mut split) = (Server::start(&program, None), Server::start(&program, None));
        for (type_byte, raw, cuts) in &values {
            let key = format!("type-{type_byte}");
            // The reader finds the same end of the value as the server.
            let mut file = b"REDIS0004\xfe\x00".to_vec();
            file.extend([&[*type_byte, key.len() as u8], key.as_bytes(), raw, &[255]].concat());
            let contents = read(&file).unwrap();
            assert_eq!((&contents.keys[0].value, contents.crc), (raw, Crc::Absent));

            let mut payload = Vec::new();
            restore_payload(*type_byte, raw, 4, &mut payload);
            let restore = [b"RESTORE", key.as_bytes(), b"0", &payload];
            whole.ok(&restore);
            match pieces(Flavor::Redis, *type_byte, raw, key.as_bytes(), tiny) {
                Some(pieces) => pieces.for_each(|c| drop(split.ok(&c.unwrap()))),
                None => drop(split.ok(&restore)),
            }
            assert_eq!(
                pieces(Flavor::Redis, *type_byte, raw, b"k", tiny).is_some(),
                *cuts,
                "type {type_byte}"
            );
        }
        assert_eq!(whole.digest(), split.digest());
        assert_eq!(whole.ok(&["DBSIZE"]), Reply::Int(values.len() as i64));
    }
}

#[test]
fn expiry_and_usage_are_read() {
    let program = &Program::all()[0];
    let mut server = Server::start(program, None);
    server.ok(&["SET", "k", "v", "PX", "100000000"]);
    server.ok(&["SET", "plain", "v"]);
    let Reply::Int(ttl) = server.ok(&["PTTL", "k"]) else { panic!() };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    let contents = read(&server.save()).unwrap();
    let find = |c: &Contents, name: &str| c.keys.iter().position(|k| k.key == name.as_bytes()).unwrap();
    let key = &contents.keys[find(&contents, "k")];
    assert!((key.expire_ms.unwrap() - now - ttl).abs() < 60_000);
    assert_eq!(contents.keys[find(&contents, "plain")].expire_ms, None);
    assert_eq!((key.idle, key.freq), (None, None));

    server.ok(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let lru = read(&server.save()).unwrap();
    assert!(lru.keys.iter().all(|k| k.idle.is_some() && k.freq.is_none()));
    server.ok(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lfu"]);
    let lfu = read(&server.save()).unwrap();
    assert!(lfu.keys.iter().all(|k| k.idle.is_none() && k.freq.is_some()));
    assert!(lfu.keys[find(&lfu, "k")].expire_ms.is_some());
}

#[test]
fn verify_counts_and_reports_checksums_switched_off() {
    let program = &Program::all()[0];
    let mut server = Server::start(program, None);
    data::fill(&mut server, program);
    let bytes = server.save();
    let contents = read(&bytes).unwrap();
    let mut reports = Vec::new();
    let summary = verify_file(&server.rdb_path(), &mut |bytes, keys| reports.push((bytes, keys))).unwrap();
    assert_eq!(summary.keys, contents.keys.len() as u64);
    assert_eq!(summary.expires, contents.keys.iter().filter(|k| k.expire_ms.is_some()).count() as u64);
    assert_eq!(summary.functions, contents.functions.len() as u64);
    assert_eq!((summary.bytes, summary.crc), (bytes.len() as u64, Crc::Ok));
    assert_eq!(reports.last(), Some(&(summary.bytes, summary.keys)));
    assert_eq!(summary.head, aux::find(&server.rdb_path()).unwrap());
    assert!(summary.head.ctime.unwrap() > 1_600_000_000 && summary.head.used_mem.unwrap() > 1_000_000);
    assert_eq!(summary.head.ours, None);

    let mut unchecked = bytes.clone();
    let at = unchecked.len() - 8;
    unchecked[at..].fill(0);
    let path = server.rdb_path().with_file_name("unchecked.rdb");
    std::fs::write(&path, &unchecked).unwrap();
    assert_eq!(verify_file(&path, &mut |_, _| {}).unwrap().crc, Crc::Unchecked);
    unchecked.push(0);
    std::fs::write(&path, &unchecked).unwrap();
    let error = verify_file(&path, &mut |_, _| {}).unwrap_err();
    let end = bytes.len() as u64;
    assert!(matches!(error.root(), SnapshotError::TrailingBytes { offset } if *offset == end), "{error}");
    assert!(error.to_string().contains("unchecked.rdb"));
}

/// A field of ours before the keys, as the module writes it.
fn with_our_field(rdb: &[u8], content: &AuxContent) -> Vec<u8> {
    let mut reader = RdbReader::new(rdb);
    let at = loop {
        let offset = reader.offset();
        if let Event::SelectDb(_) = reader.next_event().unwrap().unwrap() {
            break offset as usize;
        }
    };
    let mut out = rdb[..at].to_vec();
    out.extend([247, 0x81]);
    out.extend(type_id(TYPE_NAME, 0).unwrap().to_be_bytes());
    out.extend([2, 1, 5, 0x80]);
    let field = content.encode();
    out.extend((field.len() as u32).to_be_bytes());
    out.extend(field);
    out.push(0);
    out.extend(&rdb[at..rdb.len() - 8]);
    let crc = crc64(&out);
    out.extend(crc.to_le_bytes());
    out
}

fn our_content() -> AuxContent {
    AuxContent {
        format: FORMAT,
        mode: Mode::Target,
        service_id: 3,
        flags: 1,
        op_id: 123_456_789_012,
        repl_offset: 42,
        lineage: vec![(*b"0123456789012345678901234567890123456789", 1)],
        endpoints: vec!["127.0.0.1:7001".into()],
    }
}

#[test]
fn our_field_is_found_and_stripped() {
    for program in Program::all() {
        let mut server = Server::start(&program, None);
        data::fill(&mut server, &program);
        let clean = server.save();
        let marked = with_our_field(&clean, &our_content());
        let head = aux::read_head(&marked[..]).unwrap();
        assert_eq!(head.ours, Some(our_content()));
        verify_bytes(&marked).unwrap();

        let refusal = Server::try_start(&program, Some(&marked)).err().expect("the server refuses the field");
        assert!(refusal.contains("redisdrx1"), "{refusal}");

        let mut stripped = Vec::new();
        let report = strip_rdb(&marked[..], &mut stripped).unwrap();
        assert_eq!((report.removed, report.foreign_module_fields), (1, 0));
        assert_eq!((report.bytes_in, report.bytes_out), (marked.len() as u64, stripped.len() as u64));
        assert!(stripped == clean);
        let mut loaded = Server::start(&program, Some(&stripped));
        assert_eq!(loaded.digest(), server.digest());
    }
}

#[test]
fn a_damaged_field_of_ours_is_told_from_a_missing_one() {
    let mut server = Server::start(&Program::all()[0], None);
    server.ok(&["SET", "k", "v"]);
    let clean = server.save();
    let mut newer = our_content();
    newer.format += 1;
    let error = aux::read_head(&with_our_field(&clean, &newer)[..]).unwrap_err();
    assert!(matches!(error, SnapshotError::Aux { error: aux::AuxError::NewerFormat(_), .. }), "{error}");
}

fn verify_bytes(bytes: &[u8]) -> Result<(), SnapshotError> {
    redisdr::snapshot::verify::verify(bytes, &mut |_, _| {}).map(|_| ())
}

#[test]
fn cuts_and_flipped_bits_are_errors() {
    let program = &Program::all()[0];
    let mut server = Server::start(program, None);
    data::fill(&mut server, program);
    let bytes = server.save();
    verify_bytes(&bytes).unwrap();
    for n in 0..50 {
        let len = bytes.len() * n / 50;
        let error = verify_bytes(&bytes[..len]).unwrap_err();
        assert!(
            matches!(error, SnapshotError::Truncated { offset } if offset == len as u64),
            "{len}: {error}"
        );
    }
    for last in 1..40 {
        assert!(verify_bytes(&bytes[..bytes.len() - last]).is_err(), "{last} bytes off");
    }
    // Every bit of the head, and bits all over the rest.
    let all_over = (0..300).map(|n| bytes.len() * 8 / 300 * n + n % 8);
    for bit in (0..150 * 8).chain(all_over) {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(verify_bytes(&bad).is_err(), "bit {bit} of {}", bytes.len() * 8);
    }
}
