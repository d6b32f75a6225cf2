//! `--daemonize`: who started it gets a verdict and its terminal back, and the daemon depends on neither. (37)

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::faults::{SOON, is_alive, kill_9};
use crate::support::{Builder, Panzer, descendants, eventually, eventually_some, free_port, get};

/// Executes its arguments, on a terminal of its own where TERMINAL is set, and stays above whatever they leave, as init
/// would: it passes TERM on to the daemon, and ends as the daemon did. How the one ended that it executed is in `starter`.
/// The terminal shows on stderr what is written to it; the files `ctrl-c` and `hang-up` do to it what they say.
const KEEPER: &str = r#"#!/usr/bin/env python3
import ctypes, fcntl, os, pty, select, signal, sys, termios
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
on_terminal = 'TERMINAL' in os.environ
master, slave = pty.openpty() if on_terminal else (None, None)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
starter = os.fork()
if starter == 0:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    # Whoever runs the tests may have them ignored.
    for number in [signal.SIGINT, signal.SIGHUP]:
        signal.signal(number, signal.SIG_DFL)
    if on_terminal:
        os.close(master)
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        for number in range(3):
            os.dup2(slave, number)
    os.execv(sys.argv[1], sys.argv[1:])
if on_terminal:
    os.close(slave)
def pass_on():
    try:
        while select.select([master], [], [], 0)[0]:
            os.write(2, os.read(master, 65536).replace(b'\r\n', b'\n'))
    except OSError:
        pass
status = 0
while True:
    try:
        while True:
            pid, ended = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            status = ended
            if pid == starter:
                with open('starter.new', 'w') as file:
                    file.write(str(os.waitstatus_to_exitcode(ended)))
                os.rename('starter.new', 'starter')
    except ChildProcessError:
        break
    if signal.sigtimedwait([signal.SIGTERM], 0.01):
        children = open(f'/proc/self/task/{os.getpid()}/children').read().split()
        for child in children:
            os.kill(int(child), signal.SIGTERM)
    if master is not None:
        if os.path.exists('ctrl-c'):
            os.remove('ctrl-c')
            os.write(master, b'\x03')
        pass_on()
        if os.path.exists('hang-up'):
            os.close(master)
            os.remove('hang-up')
            master = None
# Its last words may have come after the last look.
if master is not None:
    pass_on()
os._exit(os.waitstatus_to_exitcode(status) & 0xff)
"#;

fn keeper() -> Builder {
    Panzer::builder().executable("keeper", KEEPER).through("keeper").arg("-d").allow_line(STAYS_OPEN)
}

/// What is said where the tests read its stderr.
const STAYS_OPEN: &str = "warning: stderr stays open while panzer runs";

/// On a terminal, and in the foreground.
pub(crate) fn on_a_terminal() -> Builder {
    Panzer::builder().executable("keeper", KEEPER).through("keeper").env("TERMINAL", "1")
}

fn sleeper() -> Builder {
    keeper().args(["-w", "2", "--bake", "50ms", "--", "sleep", "1000"])
}

/// A program that is ready once the file `ready` is there.
fn waiting() -> Builder {
    keeper().args(["-w", "1", "--ready", "exec:test -e ready", "--", "sleep", "1000"])
}

/// How the process ended that started the daemon: its exit code, or the negative signal.
fn starter(panzer: &Panzer) -> Option<i32> {
    fs::read_to_string(panzer.path("starter")).ok()?.parse().ok()
}

#[track_caller]
pub(crate) fn wait_starter(panzer: &Panzer) -> i32 {
    eventually_some(SOON, "the starter ends", || starter(panzer))
}

#[track_caller]
fn daemon(panzer: &Panzer) -> i32 {
    let read = || fs::read_to_string(panzer.path("run/sleep.pid")).ok()?.trim().parse().ok();
    eventually_some(SOON, "the daemon has a pid file", read)
}

/// A field of `/proc/PID/stat`, by its number in proc_pid_stat(5).
fn stat(pid: i32, field: usize) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat[stat.rfind(')').unwrap() + 2..].split(' ').nth(field - 3).unwrap().parse().unwrap()
}

fn descriptor(pid: i32, number: i32) -> String {
    fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap().display().to_string()
}

fn holds_a_terminal(pid: i32) -> bool {
    let all = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    all.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|path| path.starts_with("/dev/pts"))
}

#[test]
fn who_starts_it_returns_when_it_serves_and_not_before() {
    let panzer = waiting().start();
    panzer.wait_for_line("started as pid", SOON);
    let main = daemon(&panzer);
    eventually(SOON, "the worker runs", || descendants(main).len() >= 2);
    assert_eq!(starter(&panzer), None);
    let waits = stat(main, 4);
    assert_ne!(waits, panzer.pid());
    fs::write(panzer.path("ready"), "").unwrap();
    assert_eq!(wait_starter(&panzer), 0);
    panzer.wait_serving();
    // Adopted, and in a session of its own without a terminal.
    assert_eq!((stat(main, 4), stat(main, 6), stat(main, 7)), (panzer.pid(), main, 0));
    let line = fs::read(format!("/proc/{main}/cmdline")).unwrap();
    assert!(String::from_utf8_lossy(&line).replace('\0', " ").contains("panzer -d -w 1 --ready exec:"));
    // Stderr is redirected here, so it goes on there.
    kill(Pid::from_raw(main), Signal::SIGUSR1).unwrap();
    panzer.wait_for_line("reload done: generation 2", SOON);
    assert_eq!(descriptor(main, 0), "/dev/null");
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn it_says_where_the_output_of_workers_goes_unless_a_log_has_it() {
    const SAID: &str = "panzer: the workers' output goes to ";
    let to_file = "#!/bin/sh\nkeeper=$0.py\nexec \"$keeper\" \"$@\" > out.txt\n";
    let options = ["-w", "1", "--bake", "50ms", "--ready", "alive"];
    for (to, expected) in [
        (None, "/dev/null (stdout) and a pipe (stderr); --log FILE keeps it in a file"),
        (Some(to_file), "/out.txt (stdout) and a pipe (stderr);"),
    ] {
        let panzer = match to {
            None => keeper(),
            Some(to) => keeper().executable("keeper.py", KEEPER).executable("keeper", to),
        };
        let panzer = panzer.args(options).args(["--", "sleep", "1000"]).start();
        let line = panzer.wait_for_line(SAID, SOON);
        assert!(line.contains(expected), "{line}");
        assert_eq!(wait_starter(&panzer), 0);
        panzer.stop();
    }
    let panzer = keeper().args(options).args(["--log", "app.log", "--", "sleep", "1000"]).start();
    assert_eq!(wait_starter(&panzer), 0);
    assert!(!panzer.lines().iter().any(|line| line.contains(SAID)), "{:?}", panzer.lines());
    panzer.stop();
}

#[test]
fn what_fails_is_told_with_its_code() {
    let port = free_port();
    let _taken = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let listen = format!("127.0.0.1:{port}");
    for (arguments, code, line) in [
        (vec!["-l", &listen, "--", "sleep", "1000"], 125, "error: *127.0.0.1:*in use"),
        (vec!["./missing"], 127, "error: *missing was not found"),
        (vec!["/"], 126, "error: / cannot be executed: it is a directory"),
        (vec!["run/.."], 126, "error: */run/.. cannot be executed: it is a directory"),
        (vec!["--respawn-limit", "0/1m", "--", "false"], 1, "error: generation 1 keeps failing; stopping everything"),
        (vec!["--workers", "0", "--", "sleep", "1000"], 2, "panzer: invalid value '0' for --workers"),
        (vec!["-p", "/nonexistent/x.pid", "--", "sleep", "1000"], 125, "error: cannot write /nonexistent/x.pid"),
    ] {
        let panzer = keeper().args(&arguments).start();
        panzer.expect_line(line);
        panzer.allow_line("more than 0 respawns within");
        panzer.allow_line("exited with code 1; respawning it");
        assert_eq!(wait_starter(&panzer), code, "{arguments:?}");
        panzer.wait_exit();
    }
}

#[test]
fn a_main_that_dies_or_is_stopped_meanwhile_is_no_start() {
    let panzer = waiting().start();
    panzer.expect_line("panzer: main was killed by SIGKILL before it was ready");
    panzer.wait_for_line("started as pid", SOON);
    panzer.allow_line("main is gone; stopping the workers of generation 1");
    kill_9(daemon(&panzer));
    assert_eq!(wait_starter(&panzer), 1);
    panzer.wait_exit();

    let panzer = waiting().start();
    panzer.expect_line("panzer: main was stopped before it was ready");
    panzer.wait_for_line("started as pid", SOON);
    kill(Pid::from_raw(daemon(&panzer)), Signal::SIGTERM).unwrap();
    assert_eq!(wait_starter(&panzer), 1);
    panzer.wait_exit();
}

#[test]
fn a_ctrl_c_ends_the_start_and_leaves_nothing() {
    let panzer = waiting().env("TERMINAL", "1").start();
    panzer.wait_for_line("started as pid", SOON);
    panzer.allow_line("^C");
    let main = daemon(&panzer);
    fs::write(panzer.path("ctrl-c"), "").unwrap();
    panzer.wait_for_line("stopping gracefully", SOON);
    assert_eq!(wait_starter(&panzer), -(Signal::SIGINT as i32));
    assert!(!is_alive(main));
    panzer.wait_exit();
}

#[test]
fn a_terminal_that_is_closed_is_nothing_to_a_daemon() {
    let panzer = sleeper().env("TERMINAL", "1").start();
    assert_eq!(wait_starter(&panzer), 0);
    // Who started it saw on the terminal what there was to see.
    panzer.wait_serving();
    let main = daemon(&panzer);
    let family = || descendants(main).into_iter().map(|process| process.pid).chain([main]).collect::<Vec<_>>();
    eventually(SOON, "nobody holds the terminal", || !family().into_iter().any(holds_a_terminal));
    assert_eq!(family().len(), 4);
    for number in 0..3 {
        assert_eq!(descriptor(main, number), "/dev/null");
    }
    let before = family();
    panzer.allow_line("^C");
    for end in ["ctrl-c", "hang-up"] {
        fs::write(panzer.path(end), "").unwrap();
        eventually(SOON, "it is done to the terminal", || !panzer.path(end).exists());
    }
    kill(Pid::from_raw(main), Signal::SIGUSR1).unwrap();
    let renewed = || family().len() == 4 && family().iter().filter(|pid| before.contains(pid)).count() == 1;
    eventually(SOON, "it reloads, and says so to nobody", renewed);
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn who_reads_what_a_daemon_holds_open_is_told() {
    let panzer = sleeper().start();
    panzer.expect_line("warning: stderr stays open while panzer runs: *ssh*redirect it, as in >>FILE 2>&1");
    assert_eq!(wait_starter(&panzer), 0);
    assert_eq!(panzer.stop().code(), Some(0));
    // A terminal does not.
    let panzer = sleeper().env("TERMINAL", "1").start();
    assert_eq!(wait_starter(&panzer), 0);
    assert!(!panzer.lines().iter().any(|line| line.contains("stays open")));
    assert_eq!(panzer.stop().code(), Some(0));
    let both = Panzer::builder().executable("both", "#!/bin/sh\nexec \"$@\" | cat\n").through("both");
    let panzer = both.args(["-d", "-w", "1", "--bake", "50ms", "--", "sleep", "1000"]).start();
    panzer.expect_line("warning: stdout and stderr stay open while panzer runs: *; redirect them, as in >>FILE 2>&1");
    panzer.wait_for_line("generation 1 serves", SOON);
    let main = fs::read_to_string(panzer.path("run/sleep.pid")).unwrap().trim().parse().unwrap();
    kill(Pid::from_raw(main), Signal::SIGTERM).unwrap();
    assert_eq!(panzer.wait_exit().code(), Some(0));
}

#[test]
fn the_terminal_is_told_why_a_start_fails() {
    let panzer = keeper().env("TERMINAL", "1").args(["-w", "1", "--delay", "10ms", "--", "false"]).start();
    panzer.expect_line("warning: worker 0 * exited with code 1; respawning it in");
    panzer.wait_for_line("exited with code 1", SOON);
    panzer.allow_line("^C");
    fs::write(panzer.path("ctrl-c"), "").unwrap();
    assert_eq!(wait_starter(&panzer), -(Signal::SIGINT as i32));
    panzer.wait_exit();
}

#[test]
fn a_starter_that_is_gone_does_not_keep_it_from_serving() {
    let panzer = waiting().env("TERMINAL", "1").start();
    panzer.wait_for_line("started as pid", SOON);
    let main = daemon(&panzer);
    fs::write(panzer.path("hang-up"), "").unwrap();
    assert_eq!(wait_starter(&panzer), -(Signal::SIGHUP as i32));
    fs::write(panzer.path("ready"), "").unwrap();
    eventually(SOON, "it lets go of the terminal", || descriptor(main, 2) == "/dev/null");
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn variable_and_file_ask_for_it_as_well() {
    for by_file in [false, true] {
        let builder = Panzer::builder().executable("keeper", KEEPER).through("keeper").allow_line(STAYS_OPEN);
        let builder = builder.args(["-w", "1", "--bake", "50ms", "--", "sleep", "1000"]);
        let panzer = if by_file {
            builder.file("panzer.yml", "daemonize: true\n").env("PANZER_CONFIG", "panzer.yml").start()
        } else {
            builder.env("PANZER_DAEMONIZE", "1").start()
        };
        assert_eq!(wait_starter(&panzer), 0);
        assert!(Path::new("/proc").join(daemon(&panzer).to_string()).exists());
        assert_eq!(panzer.stop().code(), Some(0));
    }
}

/// As `keeper`, where this script executes panzer.
fn keeper_through(opener: &str) -> Builder {
    opened_by(opener).arg("-d").allow_line(STAYS_OPEN)
}

pub(crate) fn opened_by(opener: &str) -> Builder {
    let executes = "os.execv(sys.argv[1], sys.argv[1:])";
    assert!(KEEPER.contains(executes));
    let keeper = KEEPER.replace(executes, "os.execv('./opener', ['./opener'] + sys.argv[1:])");
    Panzer::builder().executable("keeper", &keeper).through("keeper").executable("opener", opener)
}

#[test]
fn a_socket_that_it_is_started_with_is_taken_along() {
    let port = free_port();
    let opener = format!(
        "#!/usr/bin/env python3
import os, socket, sys
listener = socket.create_server(('127.0.0.1', {port}))
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[1], sys.argv[1:])
"
    );
    let server = crate::faults::server("good");
    let panzer = keeper_through(&opener).executable("sleep", &server).args(["-w", "1", "./sleep"]).start();
    assert_eq!(wait_starter(&panzer), 0);
    assert_eq!(get(port, "/").unwrap().text(), "good");
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn a_manager_hears_of_the_daemon_before_the_starter_ends() {
    let opener = "#!/bin/sh\nWATCHDOG_PID=$$ exec \"$@\"\n";
    let builder = keeper_through(opener).env("WATCHDOG_USEC", "200000").args(["-w", "1", "--bake", "50ms"]);
    let path = builder.folder().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    manager.set_nonblocking(true).unwrap();
    let panzer = builder.env("NOTIFY_SOCKET", &path).args(["--", "sleep", "1000"]).start();
    assert_eq!(wait_starter(&panzer), 0);
    let mut heard = String::new();
    let mut hear = |wanted: &str| {
        let mut bytes = [0; 4096];
        while let Ok(length) = manager.recv(&mut bytes) {
            heard.push_str(&format!("{}\n", String::from_utf8_lossy(&bytes[..length])));
        }
        heard.contains(wanted)
    };
    assert!(hear(&format!("READY=1\nMAINPID={}\n", daemon(&panzer))));
    // What was asked of the starter by its pid is asked of the daemon.
    eventually(SOON, "it tells that it lives", || hear("WATCHDOG=1"));
    assert_eq!(panzer.stop().code(), Some(0));
}
