//! Starting processes that do not outlive the tests.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc::{channel, Sender};
use std::sync::{Mutex, OnceLock};

type Request = (Command, Sender<io::Result<Child>>);

/// Starts `command` so that the kernel kills it when this process ends, however it ends.
///
/// The kernel ties that to the thread that forks, not to the process; so one thread, which never ends, forks them all. A
/// server started in a test's helper thread would otherwise die with that thread.
pub fn spawn(mut command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<Sender<Request>>> = OnceLock::new();
    let parent = std::process::id();
    // SAFETY: between fork and exec only prctl and getppid are called, which are async-signal-safe; nothing allocates.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the prctl.
            if libc::getppid() as u32 != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, requests) = channel::<Request>();
        let serve = move || {
            for (mut command, answer) in requests {
                let _ = answer.send(command.spawn());
            }
        };
        std::thread::Builder::new().name("spawner".into()).spawn(serve).unwrap();
        Mutex::new(sender)
    });
    let (sender, answer) = channel();
    spawner.lock().unwrap_or_else(|broken| broken.into_inner()).send((command, sender)).unwrap();
    answer.recv().unwrap()
}

/// Sends a signal.
pub fn signal(pid: u32, number: i32) {
    // SAFETY: kill takes no pointers; `pid` is a child that was not reaped yet, so it names no other process.
    unsafe { libc::kill(pid as libc::pid_t, number) };
}
