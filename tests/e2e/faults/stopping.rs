//! 33, 34, 38, 45, 46: every way to an end.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{SOON, server, serving_app, start_app, wait_gone};
use crate::control::run;
use crate::support::{Panzer, eventually, free_port, get};

#[test]
pub fn each_stop_signal_ends_everything() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        let (panzer, port) = start_app(2);
        let workers = panzer.workers();
        panzer.signal(signal);
        assert_eq!(panzer.wait_exit().code(), Some(0), "{signal}");
        wait_gone(&workers);
        assert!(get(port, "/").is_err());
    }
}

#[test]
pub fn a_request_that_was_accepted_is_finished() {
    let port = free_port();
    let panzer = serving_app(port, 1).executable("app", FINISHES).start();
    panzer.wait_serving();
    let client = std::thread::spawn(move || get(port, "/").unwrap().text().to_owned());
    panzer.wait_for_line("accepted", SOON);
    panzer.expect_line("accepted");
    assert_eq!(panzer.stop().code(), Some(0));
    assert_eq!(client.join().unwrap(), "done");
}

/// Answers a second after it has accepted, and ends only between two requests.
const FINISHES: &str = "#!/usr/bin/env python3
import signal, socket, sys, time
stopping = False
def stop(*_):
    global stopping
    stopping = True
signal.signal(signal.SIGTERM, stop)
listener = socket.socket(fileno=3)
connection, _ = listener.accept()
connection.recv(65536)
print('accepted', file=sys.stderr, flush=True)
deadline = time.monotonic() + 1
while time.monotonic() < deadline:
    time.sleep(0.05)
connection.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 4\\r\\nConnection: close\\r\\n\\r\\ndone')
connection.close()
while not stopping:
    time.sleep(0.05)
";

/// A worker that minds no signal but KILL.
const DEAF: &str = "#!/usr/bin/env python3
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
while True:
    time.sleep(1000)
";

fn deaf(schedule: &str) -> Panzer {
    // Ready only after the program has had time to close its ears.
    let panzer = Panzer::builder()
        .executable("app", DEAF)
        .args(["-w", "2", "--bake", "700ms", "--stop", schedule, "./app"])
        .start();
    panzer.wait_serving();
    panzer
}

#[test]
pub fn the_schedule_is_kept_to_its_end() {
    let panzer = deaf("TERM/400ms/INT/400ms/KILL");
    panzer.expect_line("warning: worker * has not stopped yet; sent it SIGINT");
    panzer.expect_line("warning: worker * has not stopped yet; sent it SIGKILL");
    let begun = Instant::now();
    assert_eq!(panzer.stop().code(), Some(0));
    assert!(begun.elapsed() >= Duration::from_millis(800), "KILL came before its time");
}

#[test]
pub fn a_second_int_makes_it_quick() {
    let panzer = deaf("TERM/1h/INT/100ms/KILL");
    panzer.expect_line("warning: worker * has not stopped yet; sent it SIGKILL");
    panzer.allow_line("warning: worker * has not stopped yet; sent it SIGINT");
    panzer.signal(Signal::SIGINT);
    panzer.wait_for_line("stopping gracefully", SOON);
    panzer.signal(Signal::SIGINT);
    panzer.wait_for_line("stopping now", SOON);
    assert_eq!(panzer.wait_exit().code(), Some(0));
}

#[test]
pub fn quit_after_term_makes_it_quick_and_term_after_quit_does_not_slow_it() {
    let panzer = deaf("TERM/1h/INT/100ms/KILL");
    panzer.expect_line("warning: worker * has not stopped yet; sent it SIGKILL");
    panzer.allow_line("warning: worker * has not stopped yet; sent it SIGINT");
    panzer.signal(Signal::SIGTERM);
    panzer.wait_for_line("stopping gracefully", SOON);
    panzer.signal(Signal::SIGQUIT);
    panzer.wait_for_line("stopping now", SOON);
    panzer.signal(Signal::SIGTERM);
    assert_eq!(panzer.wait_exit().code(), Some(0));
}

#[test]
pub fn a_stop_during_a_reload_ends_both_generations() {
    let port = free_port();
    let panzer = serving_app(port, 2).args(["--bake", "1h", "--ready", "alive"]).start();
    // The first generation bakes as well, and is no less there for it.
    panzer.wait_for_line("started as pid", SOON);
    panzer.signal(Signal::SIGUSR1);
    panzer.wait_for_line("reload: starting generation 2", SOON);
    assert_eq!(panzer.stop().code(), Some(0));
    assert!(get(port, "/").is_err());
}

#[test]
pub fn a_stop_while_a_slot_waits_for_its_respawn_starts_nothing() {
    let panzer = Panzer::builder()
        .executable("app", "#!/bin/sh\necho started >> starts\nexit 1\n")
        .args(["-w", "1", "--delay", "1h", "--delay-max", "1h", "./app"])
        .start();
    panzer.expect_line("warning: worker 0 * exited with code 1; respawning it in");
    panzer.wait_for_line("respawning it in", SOON);
    let starts = panzer.path("starts");
    panzer.signal(Signal::SIGTERM);
    panzer.wait_for_line("stopping gracefully", SOON);
    assert_eq!(std::fs::read_to_string(&starts).unwrap(), "started\n");
    assert_eq!(panzer.wait_exit().code(), Some(0));
}

#[test]
pub fn a_ctrl_c_reaches_panzer_only() {
    let (panzer, _) = start_app(1);
    let worker = panzer.workers()[0];
    let group = |pid| nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(pid))).unwrap().as_raw();
    assert_eq!(group(worker), worker, "a worker leads its own group");
    let monitor = panzer.status().serving().monitor.unwrap();
    assert_eq!(group(monitor), group(panzer.pid()));
    // To the whole foreground group, as a terminal sends it.
    nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group(panzer.pid())), Signal::SIGINT).unwrap();
    panzer.wait_for_line("stopping gracefully", SOON);
    assert_eq!(panzer.wait_exit().code(), Some(0));
}

#[test]
pub fn a_hang_up_without_a_terminal_ends_nothing() {
    let (panzer, port) = start_app(1);
    panzer.signal(Signal::SIGHUP);
    panzer.wait_for_line("configuration read again", SOON);
    super::assert_answers(port, "good");
    panzer.stop();
}

/// Executes its arguments on a terminal of its own, which is closed once the file `hang-up` is there. Who holds the
/// terminal is a child that panzer did not start.
const ON_A_TERMINAL: &str = "#!/usr/bin/env python3
import os, pty, signal, sys, time
master, slave = pty.openpty()
if os.fork() == 0:
    os.close(slave)
    for descriptor in range(3):
        os.close(descriptor)
    while not os.path.exists('hang-up'):
        time.sleep(0.01)
    os._exit(0)
os.close(master)
os.open(os.ttyname(slave), os.O_RDWR)
if 'NOHUP' in os.environ:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
os.execvp(sys.argv[1], sys.argv[1:])
";

/// To be completed. A file named `hang-up` closes its terminal.
pub fn on_a_terminal() -> crate::support::Builder {
    Panzer::builder().executable("terminal", ON_A_TERMINAL).through("terminal").args(["-w", "1", "--bake", "100ms"])
}

#[test]
pub fn a_terminal_that_is_closed_ends_it_gracefully() {
    let panzer = on_a_terminal().args(["--", "sleep", "1000"]).start();
    panzer.wait_serving();
    std::fs::write(panzer.path("hang-up"), "").unwrap();
    panzer.wait_for_line("stopping gracefully", SOON);
    assert_eq!(panzer.wait_exit().code(), Some(0));
}

#[test]
pub fn under_nohup_a_terminal_that_is_closed_is_nothing() {
    let panzer = on_a_terminal().env("NOHUP", "1").args(["--", "sleep", "1000"]).start();
    panzer.wait_serving();
    std::fs::write(panzer.path("hang-up"), "").unwrap();
    let closed = || std::fs::read_to_string(format!("/proc/{}/stat", panzer.pid())).unwrap();
    // The seventh field is the terminal: 0 where there is none any more.
    crate::support::eventually(SOON, "the terminal is gone", || closed().split(' ').nth(6) == Some("0"));
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.stop();
}

#[test]
pub fn quiet_says_only_what_is_wrong() {
    let port = free_port();
    let panzer = serving_app(port, 1).args(["--quiet"]).executable("app", &server("quiet")).start();
    crate::support::eventually(SOON, "it serves", || get(port, "/").is_ok());
    panzer.signal(Signal::SIGTERM);
    panzer.wait_exit();
}

/// Einhorn upgrades by USR2 and stops by TERM; start_server has an option for each.
#[test]
pub fn what_a_reload_or_a_scale_ends_has_its_own_schedule() {
    const NOTED: &str = "#!/bin/sh
trap 'echo $PANZER_GENERATION USR2 >> noted; exit 0' USR2
trap 'echo $PANZER_GENERATION TERM >> noted; exit 0' TERM
while :; do sleep 0.02; done
";
    let arguments = ["-w", "2", "--bake", "100ms", "--retire", "USR2/60s/KILL", "./app"];
    let panzer = Panzer::builder().executable("app", NOTED).args(arguments).start();
    panzer.wait_serving();
    let noted = || {
        let mut lines: Vec<String> =
            fs::read_to_string(panzer.path("noted")).unwrap_or_default().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    assert_eq!(noted(), ["1 USR2", "1 USR2"]);
    assert!(run(&panzer, &["scale", "1"]).status.success());
    eventually(SOON, "one of the new ones is retired", || noted() == ["1 USR2", "1 USR2", "2 USR2"]);
    panzer.signal(Signal::SIGTERM);
    panzer.wait_for_line("panzer: stopped", SOON);
    assert_eq!(noted(), ["1 USR2", "1 USR2", "2 TERM", "2 USR2"]);
    panzer.wait_exit();
}

/// A stop has a schedule of its own, and takes no longer than that: what a reload has left to drain goes over to it.
#[test]
pub fn a_stop_takes_no_longer_where_a_retired_generation_may_drain_for_hours() {
    const NOTED: &str = "#!/bin/sh
trap 'echo $PANZER_GENERATION USR2 >> noted' USR2
trap 'echo $PANZER_GENERATION TERM >> noted; exit 0' TERM
while :; do sleep 0.02; done
";
    let arguments = ["-w", "1", "--bake", "100ms", "--retire", "USR2/1h/KILL", "--stop", "TERM/30s/KILL", "./app"];
    let panzer = Panzer::builder().executable("app", NOTED).args(arguments).start();
    panzer.wait_serving();
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    let noted = || fs::read_to_string(panzer.path("noted")).unwrap_or_default();
    eventually(SOON, "the old one is retired", || noted() == "1 USR2\n");
    panzer.signal(Signal::SIGTERM);
    eventually(SOON, "both are stopped", || {
        let noted = noted();
        noted.contains("1 TERM") && noted.contains("2 TERM")
    });
    assert_eq!(panzer.wait_exit().code(), Some(0));
}

/// As a service manager does it that signals all of a control group: the workers are no crash.
#[test]
pub fn workers_that_are_told_to_end_together_with_panzer_are_no_crash() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let panzer = Panzer::start(["-w", "4", "--bake", "50ms", "--", "sleep", "1000"]);
        panzer.wait_serving();
        for worker in panzer.workers() {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker), signal).unwrap();
        }
        panzer.signal_quietly(signal);
        assert_eq!(panzer.wait_exit().code(), Some(0));
    }
}
