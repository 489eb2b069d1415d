//! Proves that an attach which fails, at whatever step and for whatever reason, puts the settings back, makes the
//! server fork nothing, and says what is wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod capture_support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use capture_support::{attach_to, servers, until, Journal, Proxy, Server, SELECT};
use redisdr::capture::settings::Dial;
use redisdr::capture::{attach, repair_settings, AttachError, AttachRequest, NoJournal};
use redisdr::local::{Address, Conn, LocalError, Secret};

fn has(piece: &[u8], word: &str) -> bool {
    piece.windows(word.len()).any(|w| w == word.as_bytes())
}

/// No replica is left, and none made the server fork within the time of two runs of its cron.
fn assert_untouched(server: &Server, forks: &(Option<String>, Option<String>, usize)) {
    std::thread::sleep(Duration::from_millis(2200));
    until("the replicas are gone", || server.info("replication", "connected_slaves").as_deref() == Some("0"));
    assert_eq!(&server.forks(), forks);
}

#[test]
fn a_connection_cut_at_any_step_leaves_the_settings_as_they_were() {
    for binary in servers() {
        // Without a backlog (each time a new server, as an attach creates one), and with.
        for fresh in [true, false] {
            let start = || {
                let server = Server::start(&binary, &["--repl-diskless-sync", "no"]);
                if !fresh {
                    attach_to(&server.dial, None).unwrap();
                }
                let forks = server.forks();
                (server, forks)
            };
            let mut used = vec![start()];
            let settings = used[0].0.settings();
            let (mut failures, mut cut_at) = (0, 0);
            loop {
                let (server, _) = used.last().unwrap();
                let (result, pieces) = cut_attach(server, cut_at);
                assert_eq!(server.settings(), settings, "cut at piece {cut_at}");
                // A cut while the settings are put back is made good by another connection.
                if let Err(e) = result {
                    assert!(e.is_temporary(), "cut at piece {cut_at}: {e}");
                    failures += 1;
                }
                if pieces <= cut_at {
                    break;
                }
                cut_at += 1;
                if fresh {
                    used.push(start());
                }
            }
            println!("{}: cut at {cut_at} places, {failures} failures", binary.display());
            assert!(cut_at > 15 && failures > 10);
            std::thread::sleep(Duration::from_millis(2200));
            used.iter().for_each(|(server, forks)| assert_eq!(&server.forks(), forks));
        }
    }
}

/// Attaches over a proxy that cuts the connection before it passes piece `cut_at`; also how many pieces came.
fn cut_attach(server: &Server, cut_at: usize) -> (Result<(), AttachError>, usize) {
    let pieces = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&pieces);
    let proxy =
        Proxy::start(server, Arc::new(move |_: &[u8]| count.fetch_add(1, Ordering::SeqCst) != cut_at));
    let journal = Journal::default();
    let req = AttachRequest { journal: &journal, force_select: SELECT, ..AttachRequest::new(&proxy.dial) };
    let result = attach(&req).map(drop);
    assert!(journal.0.lock().unwrap().is_empty(), "cut at piece {cut_at}");
    (result, pieces.load(Ordering::SeqCst))
}

#[test]
fn what_a_lost_server_could_not_be_told_is_put_back_at_the_next_attach() {
    for binary in servers() {
        let server = Server::start(&binary, &["--repl-diskless-sync", "no"]);
        let settings = server.settings();
        let open = Arc::new(AtomicBool::new(true));
        let rule = Arc::clone(&open);
        // From PSYNC on, as the tap spells it, nothing reaches the server any more.
        let proxy = Proxy::start(
            &server,
            Arc::new(move |piece| {
                if has(piece, "pSYNC") {
                    rule.store(false, Ordering::SeqCst);
                }
                rule.load(Ordering::SeqCst)
            }),
        );
        let journal = Journal::default();
        attach(&AttachRequest { journal: &journal, ..AttachRequest::new(&proxy.dial) }).unwrap_err();
        assert_ne!(server.settings(), settings);
        assert!(!journal.0.lock().unwrap().is_empty());
        let remembered = Journal(std::sync::Mutex::new(journal.0.lock().unwrap().clone()));
        attach(&AttachRequest {
            journal: &journal,
            force_select: SELECT,
            ..AttachRequest::new(&server.dial)
        })
        .unwrap();
        assert_eq!(server.settings(), settings);
        assert!(journal.0.lock().unwrap().is_empty());

        // A setting that somebody changed since is left alone.
        server.call(&["CONFIG", "SET", "repl-diskless-sync-delay", "17"]);
        server.call(&["CONFIG", "SET", "repl-diskless-sync", "yes"]);
        let repaired = repair_settings(&server.dial, &remembered).unwrap();
        assert_eq!(repaired, ["repl-diskless-sync"]);
        assert_eq!(server.settings()[1].as_deref(), Some("17"));
        assert!(repair_settings(&server.dial, &NoJournal).unwrap().is_empty());
    }
}

/// A write load that overruns the backlog between reading the offset and asking for it, once and always.
#[test]
fn a_refused_continuation_is_tried_again_without_a_fork() {
    for binary in servers() {
        let server = Server::start(&binary, &["--repl-diskless-sync", "no", "--repl-backlog-size", "16kb"]);
        attach_to(&server.dial, None).unwrap();
        let (forks, settings) = (server.forks(), server.settings());
        for overruns in [1, 3, usize::MAX] {
            let (addr, seen) = (server.dial.addr.clone(), Arc::new(AtomicUsize::new(0)));
            let count = Arc::clone(&seen);
            let proxy = Proxy::start(
                &server,
                Arc::new(move |piece| {
                    if has(piece, "pSYNC") && count.fetch_add(1, Ordering::SeqCst) < overruns {
                        let mut conn = Conn::open(&addr, &Secret(None)).unwrap();
                        conn.call(&[b"SET", b"k", &vec![b'x'; 1 << 20]]).unwrap();
                    }
                    true
                }),
            );
            match attach_to(&proxy.dial, None) {
                Ok(_) => assert_eq!(seen.load(Ordering::SeqCst), overruns + 1),
                Err(AttachError::NoPartialResync { tries, backlog_size }) => {
                    assert_eq!(overruns, usize::MAX);
                    assert_eq!(seen.load(Ordering::SeqCst), tries as usize);
                    assert_eq!(backlog_size, 16 * 1024);
                }
                Err(e) => panic!("{e}"),
            }
            assert_eq!(server.settings(), settings);
        }
        assert_untouched(&server, &forks);
    }
}

#[test]
fn a_renamed_command_is_named_with_its_setting() {
    for binary in servers() {
        for command in ["PSYNC", "REPLCONF", "CONFIG", "INFO"] {
            let server = Server::start(&binary, &["--rename-command", command, "hidden"]);
            let error = attach_to(&server.dial, None).unwrap_err();
            assert!(
                matches!(error, AttachError::Disabled { command: c } if c == command),
                "{command}: {error:?}"
            );
            assert!(!error.is_temporary());
            assert!(error.to_string().contains(&format!("rename-command {command}")), "{error}");
            if command != "CONFIG" {
                let delay = server.settings()[1].clone();
                assert_ne!(delay.as_deref(), Some("3600"), "{command}");
            }
        }
    }
}

#[test]
fn without_the_module_the_select_is_missed_and_nothing_stays() {
    for binary in servers() {
        let server = Server::start(&binary, &["--repl-diskless-sync", "no"]);
        let (forks, settings) = (server.forks(), server.settings());
        let error = attach(&AttachRequest::new(&server.dial)).unwrap_err();
        assert!(matches!(error, AttachError::Disabled { command: "DR._SELECT" }), "{error:?}");
        assert_eq!(server.settings(), settings);
        assert_untouched(&server, &forks);
    }
}

#[test]
fn a_cancelled_attach_puts_the_settings_back() {
    for binary in servers() {
        let server = Server::start(&binary, &["--repl-diskless-sync", "no"]);
        let (forks, settings) = (server.forks(), server.settings());
        let req = AttachRequest { cancelled: &|| true, ..AttachRequest::new(&server.dial) };
        assert!(matches!(attach(&req), Err(AttachError::Cancelled)));
        assert_eq!(server.settings(), settings);
        assert_untouched(&server, &forks);
    }
}

#[test]
fn a_replica_without_its_master_is_not_ready() {
    for binary in servers() {
        let nobody = capture_support::free_port().to_string();
        let server = Server::start(&binary, &["--replicaof", "127.0.0.1", &nobody]);
        let settings = server.settings();
        let error = attach_to(&server.dial, None).unwrap_err();
        assert!(matches!(error, AttachError::NotNow { .. }), "{error:?}");
        assert!(error.is_temporary());
        assert_eq!(server.settings(), settings);
    }
}

#[test]
fn a_wrong_password_or_address_is_told() {
    let dead = Dial {
        addr: Address::Tcp("127.0.0.1".to_owned(), capture_support::free_port()),
        secret: Secret(None),
    };
    assert!(matches!(attach_to(&dead, None), Err(AttachError::Local(LocalError::Connect(..)))));
    for binary in servers() {
        let server = Server::start(&binary, &[]);
        let dial = Dial { secret: Secret(Some("s".to_owned())), ..server.dial.clone() };
        assert!(matches!(attach_to(&dial, None), Err(AttachError::Local(LocalError::Auth(_)))));
        server.call(&["CONFIG", "SET", "requirepass", "x"]);
        let error = attach_to(&server.dial, None).unwrap_err();
        assert!(matches!(error, AttachError::Refused { command: "CONFIG", .. }), "{error:?}");
        assert!(!error.is_temporary());
    }
}
