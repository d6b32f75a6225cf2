//! Where panzer and its workers write: a reader that has stopped stops nobody, and nobody changes how others write.

use std::fs;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};

use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};

use crate::control::{run, text};
use crate::daemon::{on_a_terminal, opened_by, wait_starter};
use crate::faults::{SOON, kill_9};
use crate::support::{Builder, Panzer, descendants, eventually};

/// Executes its arguments with a stderr that is full, by KIND, and that a child of theirs reads once the file `read` is
/// there: what it reads is in `shown`. With READ it is empty, and read at once; a terminal belongs to OWNER.
const UNREAD: &str = "#!/usr/bin/env python3
import os, pty, select, socket, sys, time
kind = os.environ.pop('KIND')
reader, writer = {
    'terminal': pty.openpty,
    'pipe': os.pipe,
    'socket': lambda: [end.detach() for end in socket.socketpair()],
}[kind]()
panzer = os.getpid()
if os.fork() == 0:
    os.close(writer)
    for descriptor in range(3):
        os.close(descriptor)
    while not os.path.exists('read') and 'READ' not in os.environ:
        if os.getppid() != panzer:
            os._exit(0)
        time.sleep(0.01)
    shown = open('shown', 'ab', 0)
    try:
        while data := os.read(reader, 65536):
            shown.write(data.replace(b'x', b''))
    except OSError:
        pass
    os._exit(0)
os.set_blocking(writer, False)
for size in [4096, 1]:
    while 'READ' not in os.environ:
        try:
            os.write(writer, b'x' * size)
        except BlockingIOError:
            # A terminal passes on by and by what it has taken.
            if kind != 'terminal' or not select.select([], [writer], [], 0.1)[1]:
                break
os.set_blocking(writer, True)
if 'OWNER' in os.environ:
    os.fchown(writer, int(os.environ['OWNER']), -1)
os.dup2(writer, 2)
os.execv(sys.argv[1], sys.argv[1:])
";

fn unread(kind: &str) -> Builder {
    Panzer::builder().executable("unread", UNREAD).through("unread").env("KIND", kind)
}

/// What the following test makes panzer say: that it has started, serves, respawns three workers, and five tables.
const MESSAGES: u32 = 2 + 3 + 5 * 3;

/// For how many messages a line stands.
fn messages(line: &str) -> u32 {
    let lost = line.split_once(" lost: stderr was full").map(|(before, _)| before);
    let count = lost.and_then(|before| before.split("warning: ").nth(1)?.split(' ').next());
    count.map_or(1, |count| count.parse().unwrap())
}

#[test]
fn a_stderr_that_nobody_reads_stops_neither_main_nor_a_monitor() {
    for kind in ["terminal", "pipe", "socket"] {
        let panzer = unread(kind)
            .args(["-w", "1", "--delay", "10ms", "--delay-max", "10ms", "--name", "x", "--share-ports", "off"])
            .args(["--", "sh", "-c", "echo $$ >> lives; exec sleep 1000"])
            .start();
        let lives = || fs::read_to_string(panzer.path("lives")).unwrap_or_default();
        for count in 1..4 {
            eventually(SOON, "a worker runs", || lives().lines().count() == count);
            kill_9(lives().lines().last().unwrap().parse().unwrap());
        }
        eventually(SOON, "the last one runs", || lives().lines().count() == 4);
        // As many lines as would fill what a write byte by byte has left.
        for _ in 0..5 {
            panzer.signal_quietly(Signal::SIGTTIN);
            assert_eq!(run(&panzer, &["status", "--wait-ready"]).status.code(), Some(0), "{kind}");
        }
        fs::write(panzer.path("read"), "").unwrap();
        // Though nothing else happens. A terminal may have taken some after all.
        let told = || shown(&panzer).lines().map(messages).sum::<u32>();
        eventually(SOON, "each message is shown, or told to be lost", || MESSAGES == told());
        assert_eq!(run(&panzer, &["reload"]).status.code(), Some(0));
        wait_for_shown(&panzer, "panzer: reload done: generation 2");
        assert_eq!(panzer.stop().code(), Some(0), "{kind}");
    }
}

#[test]
fn a_refusal_does_not_wait_for_who_reads_it() {
    let panzer = unread("pipe").args(["--workers", "0", "--", "sleep", "1000"]).start();
    assert_eq!(panzer.wait_exit().code(), Some(2));
}

/// Executes its arguments with a JOURNAL_STREAM that names their stderr.
const JOURNALED: &str = "#!/bin/sh\nexport JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2)\nexec \"$@\"\n";

#[test]
fn the_journal_gets_priorities_in_the_place_of_the_time() {
    let journaled = || Panzer::builder().executable("journaled", JOURNALED).through("journaled");
    let panzer = journaled().args(["-w", "1", "--bake", "50ms", "--", "sleep", "1000"]).start();
    panzer.allow_line("<6>panzer: ");
    panzer.expect_line("<4>panzer: warning: worker 0 * was killed by SIGKILL; respawning it");
    panzer.wait_for_line("<6>panzer: generation 1 serves", SOON);
    kill_9(descendants(panzer.pid()).last().unwrap().pid);
    panzer.wait_for_line("<4>panzer: warning: ", SOON);
    assert_eq!(panzer.stop().code(), Some(0));
    let panzer = journaled().args(["--workers", "0", "--", "sleep", "1000"]).start();
    panzer.expect_line("<3>panzer: invalid value '0' for --workers");
    panzer.wait_exit();
    // Somebody else's stream.
    let panzer = Panzer::builder().env("JOURNAL_STREAM", "1:2").args(["-w", "1", "--", "sleep", "1000"]).start();
    panzer.wait_for_line("Z panzer: generation 1 serves", SOON);
    panzer.stop();
}

fn read(kind: &str) -> Builder {
    unread(kind).env("READ", "1")
}

fn shown(panzer: &Panzer) -> String {
    text(&fs::read(panzer.path("shown")).unwrap_or_default())
}

#[track_caller]
fn wait_for_shown(panzer: &Panzer, wanted: &str) {
    eventually(SOON, wanted, || shown(panzer).contains(wanted));
}

fn blocks(pid: i32, number: i32) -> bool {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
    i32::from_str_radix(flags, 8).unwrap() & OFlag::O_NONBLOCK.bits() == 0
}

#[test]
fn a_worker_that_does_not_block_is_nothing_to_the_others() {
    let worker = "import os, time
if os.environ['PANZER_WORKER_ID'] == '0':
    os.set_blocking(2, False)
open(os.environ['PANZER_WORKER_ID'], 'w').write(str(os.getpid()))
time.sleep(1000)
";
    for kind in ["pipe", "terminal"] {
        let panzer = read(kind).args(["-w", "2", "--", "python3", "-c", worker]).start();
        let pid = |slot: &str| fs::read_to_string(panzer.path(slot)).ok()?.parse::<i32>().ok();
        eventually(SOON, "both run", || pid("0").is_some() && pid("1").is_some());
        assert!(!blocks(pid("0").unwrap(), 2));
        assert!(blocks(pid("1").unwrap(), 2) && blocks(panzer.pid(), 2), "{kind}");
        // One that comes later does as well.
        kill_9(pid("1").unwrap());
        eventually(SOON, "it is respawned", || {
            pid("1").is_some_and(|pid| crate::faults::is_alive(pid) && blocks(pid, 2))
        });
        assert_eq!(panzer.stop().code(), Some(0));
    }
}

const WRITES_BY_PATH: [&str; 9] =
    ["-w", "1", "--share-ports", "off", "--", "sh", "-c", "echo written >/dev/stderr; exec sleep 1000", "sleep"];

#[test]
fn workers_of_another_user_may_open_what_is_ours_to_give_and_nothing_else() {
    if !geteuid().is_root() {
        return eprintln!("skipped: to become another user takes root");
    }
    let nobody = User::from_name("nobody").unwrap().unwrap();
    let null = || fs::metadata("/dev/null").map(|meta| (meta.uid(), meta.gid(), meta.mode())).unwrap();
    let before = null();
    for (kind, owner) in [("pipe", None), ("terminal", None), ("terminal", Some("4711"))] {
        let builder = read(kind).args(["--user", "nobody"]).args(WRITES_BY_PATH);
        fs::set_permissions(builder.folder(), fs::Permissions::from_mode(0o755)).unwrap();
        let panzer = owner.into_iter().fold(builder, |builder, owner| builder.env("OWNER", owner)).start();
        wait_for_shown(&panzer, if owner.is_none() { "written" } else { "/dev/stderr: Permission denied" });
        if kind == "terminal" {
            let path = fs::read_link(format!("/proc/{}/fd/2", panzer.pid())).unwrap();
            let open = fs::File::options().read(true).custom_flags(OFlag::O_NOCTTY.bits()).open(path).unwrap();
            let meta = || open.metadata().unwrap();
            let is_given = meta().gid() == nobody.gid.as_raw() && meta().mode() & 0o777 == 0o620;
            assert_eq!((meta().uid(), is_given), (owner.map_or(0, |owner| owner.parse().unwrap()), owner.is_none()));
            panzer.signal(Signal::SIGTERM);
            eventually(SOON, "the terminal is as it was", || meta().gid() != nobody.gid.as_raw());
        }
        assert_eq!(panzer.stop().code(), Some(0));
        assert_eq!(null(), before);
    }
}

#[test]
fn a_ctrl_c_ends_it_by_that_signal_and_a_kill_does_not() {
    for (number, status) in [(None, -(Signal::SIGINT as i32)), (Some(Signal::SIGINT), 0)] {
        let panzer = on_a_terminal().args(["-w", "1", "--bake", "50ms", "--", "sleep", "1000"]).start();
        panzer.allow_line("^C");
        panzer.wait_serving();
        match number {
            None => fs::write(panzer.path("ctrl-c"), "").unwrap(),
            Some(number) => {
                let main = fs::read_to_string(panzer.path("run/sleep.pid")).unwrap();
                kill(Pid::from_raw(main.trim().parse().unwrap()), number).unwrap();
            }
        }
        panzer.wait_for_line("panzer: stopped", SOON);
        assert_eq!(wait_starter(&panzer), status);
        assert!(!panzer.path("run/sleep.pid").exists());
        panzer.wait_exit();
    }
}

#[test]
fn a_worker_that_is_stopped_is_shown_and_told_of() {
    let panzer = Panzer::start(["-w", "2", "--bake", "50ms", "--", "sleep", "1000"]);
    panzer.wait_serving();
    let worker = panzer.workers()[0];
    let line =
        format!("warning: worker 0 (pid {worker}, generation 1) is stopped by SIGSTOP: kill -CONT {worker} lets");
    panzer.expect_line(&line);
    let state = || panzer.status().serving().workers[0].phase.clone();
    kill(Pid::from_raw(worker), Signal::SIGSTOP).unwrap();
    panzer.wait_for_line(&line, SOON);
    assert_eq!(state(), "stopped");
    assert!(text(&run(&panzer, &["status"]).stdout).contains("1 of 2 workers ready"));
    assert!(text(&run(&panzer, &["status", "--json"]).stdout).contains("\"state\":\"stopped\""));
    assert!(text(&run(&panzer, &["metrics"]).stdout).contains("state=\"stopped\"} 1"));
    let other = panzer.workers()[1];
    panzer.expect_line("warning: worker 1 * is stopped by SIGSTOP");
    kill(Pid::from_raw(other), Signal::SIGSTOP).unwrap();
    panzer.wait_for_line("warning: worker 1 * is stopped by SIGSTOP", SOON);
    assert!(text(&run(&panzer, &["status"]).stdout).contains(": not ready, "));
    kill(Pid::from_raw(other), Signal::SIGCONT).unwrap();
    kill(Pid::from_raw(worker), Signal::SIGCONT).unwrap();
    eventually(SOON, "it is ready", || state() == "ready");
    let is_ready = || text(&run(&panzer, &["status"]).stdout).contains(": ready, ");
    eventually(SOON, "all is ready", is_ready);
    panzer.stop();
}

/// That it lives is no proof either, as long as it is stopped.
#[test]
fn a_release_whose_worker_is_stopped_while_it_bakes_is_not_taken() {
    let builder = Panzer::builder().executable("app", "#!/bin/sh\nexec sleep 1000\n");
    let panzer = builder.args(["-w", "2", "--bake", "500ms", "--ready-timeout", "3s", "./app"]).start();
    panzer.wait_serving();
    panzer.allow_line("is stopped by SIGSTOP: ");
    // Its worker is stopped once it bakes.
    let stopped_in = |generation: u32| {
        let mark = panzer.mark();
        panzer.signal(Signal::SIGUSR1);
        panzer.wait_for_line_after(mark, &format!("generation {generation} is ready; it must live for 500ms"), SOON);
        let worker = panzer.status().generation(generation).unwrap().pids()[0];
        kill(Pid::from_raw(worker), Signal::SIGSTOP).unwrap();
        (worker, mark)
    };
    let failed = "error: reload failed: generation 2: worker * is stopped by a signal, and did not go on within 3s; kill \
                  -CONT lets it go on; generation 1 serves on";
    panzer.expect_line(failed);
    let (_, mark) = stopped_in(2);
    panzer.wait_for_line_after(mark, failed, SOON);
    let (worker, mark) = stopped_in(3);
    let is_shown = || {
        let status = panzer.status();
        status.generation(3).unwrap().workers.iter().any(|worker| worker.phase == "stopped")
    };
    eventually(SOON, "it is shown as stopped", is_shown);
    kill(Pid::from_raw(worker), Signal::SIGCONT).unwrap();
    panzer.wait_for_line_after(mark, "reload done: generation 3 serves", SOON);
    panzer.stop();
}

#[test]
fn what_a_terminal_stops_is_told_with_its_remedy() {
    let panzer = opened_by("#!/bin/sh\nstty tostop\nexec \"$@\"\n")
        .env("TERMINAL", "1")
        .args(["-w", "1", "--stop", "TERM/300ms/KILL", "--name", "x", "--", "sh", "-c", "echo told; exec sleep 1000"])
        .start();
    panzer.expect_line("warning: worker 0 * is stopped by SIGTTOU: it wrote to the terminal*Run stty -tostop, or");
    panzer.allow_line("has not stopped yet; sent it SIGKILL");
    panzer.allow_line("told");
    panzer.wait_for_line("is stopped by SIGTTOU", SOON);
    assert!(text(&run(&panzer, &["status", "--json"]).stdout).contains("\"state\":\"stopped\""));
    panzer.stop();
}

/// A line feed in a name from outside makes no second message: on stderr, with the journal's priorities, in the table, in
/// what panzerctl prints, and in its JSON.
#[test]
fn a_name_with_a_line_feed_stays_within_its_message() {
    let name = "my\n<2>panzer: error: \x1b[2Japp";
    let shown = "my?<2>panzer: error: ?[2Japp";
    let panzer = Panzer::builder()
        .executable("app", "#!/bin/sh\nexec sleep 1000\n")
        .args([
            "-w",
            "1",
            "--ready",
            "alive",
            "--bake",
            "50ms",
            "--share-ports",
            "off",
            "--delay",
            "1h",
            "--delay-max",
            "1h",
        ])
        .arg(format!("./{name}"));
    let program = panzer.folder().join(name);
    fs::rename(panzer.folder().join("app"), &program).unwrap();
    let panzer = panzer.start();
    panzer.wait_serving();
    panzer.wait_for_line(&format!("panzer: started as pid {} (*/{shown}.pid)", panzer.pid()), SOON);
    fs::set_permissions(&program, fs::Permissions::from_mode(0o600)).unwrap();
    panzer.expect_line(&format!("error: reload failed: generation */{shown} cannot be executed: it is not executable"));
    assert!(panzer.reload_and_wait().unwrap_err().contains(shown));
    panzer.expect_line("warning: worker 0 * was killed by SIGKILL; respawning it");
    panzer.expect_line(&format!("panzer:     worker 0 *{shown} *"));
    panzer.expect_line(&format!("warning: worker 0 *{shown} *; respawning it in"));
    kill_9(panzer.workers()[0]);
    panzer.wait_for_line(&format!("warning: worker 0 *{shown} *; respawning it in"), SOON);
    // The harness holds each line of the table against what is usual.
    panzer.status();
    let ctl = |arguments: &[&str]| {
        let done = run(&panzer, arguments);
        text(&done.stdout) + &text(&done.stderr)
    };
    for arguments in [&["list"][..], &["reload"], &["status", "--json"], &["status"]] {
        let text = ctl(arguments);
        assert!(text.contains("my?<2>panz") && !text.contains('\x1b'), "{text:?}");
        assert!(!text.contains("\n<2>"), "{text:?}");
    }
    panzer.stop();
}
