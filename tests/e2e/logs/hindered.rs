//! A disk that is full or fails, a reader that stands still, and kill -9 of those above the logger.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{COUNTING, assert_complete, counting, logger, logging, read, wait_done};
use crate::control::{run, text};
use crate::faults::{SOON, is_alive, kill_9, wait_gone, wait_workers};
use crate::support::{Builder, Panzer, Tracer, eventually, require};

/// 23. Lines that wait for room are all written once there is some.
#[test]
fn what_a_full_disk_had_no_room_for_is_written_once_there_is_room() {
    if !nix::unistd::geteuid().is_root() || !require("unshare") {
        return;
    }
    let mount = "#!/bin/sh\nmkdir disk\nexec unshare -m sh -c 'mount -t tmpfs -o size=6m none disk && \
                 head -c 6200000 /dev/zero >disk/ballast && exec \"$0\" \"$@\"' \"$@\"\n";
    let panzer = counting(2, 15_000).args(["--log", "disk/out.log", "--log-size", "0"]);
    let panzer = panzer.executable("mount", mount).through("mount").start();
    panzer.expect_line("warning: cannot write to the log */disk/out.log: no space left on device; make room.");
    panzer.wait_serving();
    wait_done(&panzer, 2);
    let seen = |name: &str| {
        let path = panzer.path("disk").join(name);
        PathBuf::from(format!("/proc/{}/root{}", panzer.pid(), path.display()))
    };
    panzer.wait_for_line("no space left on device", SOON);
    assert!(read(seen("out.log")).lines().count() < 30_000);
    fs::remove_file(seen("ballast")).unwrap();
    eventually(SOON, "all is written", || read(seen("out.log")).lines().count() == 30_000);
    assert_complete(&read(seen("out.log")), 2, 15_000);
    assert!(panzer.stop().success());
}

/// 24.
#[test]
fn a_disk_that_fails_for_a_while_loses_no_line() {
    let panzer = counting(2, 4000).args(["--log", "out.log", "--log-size", "0"]).env("PAUSE", "0.01").start();
    panzer.wait_serving();
    let fails = ["-f", "-e", "trace=sendfile", "-e", "inject=sendfile:error=EIO:when=1..3"];
    let Some(tracer) = Tracer::attach(logger(&panzer), &fails) else { return };
    panzer.expect_line("warning: cannot write to the log */out.log: i/o error. Workers run on;");
    panzer.wait_for_line("cannot write to the log", SOON);
    wait_done(&panzer, 2);
    drop(tracer);
    let path = panzer.path("out.log");
    eventually(SOON, "all is written", || read(&path).lines().count() == 8000);
    assert_complete(&read(&path), 2, 4000);
    assert!(panzer.stop().success());
}

const FLOODING: &str = "#!/bin/sh\nexec yes\n";

/// 26. A worker whose pipe is full waits, and can be stopped.
#[test]
fn a_logger_that_was_stopped_goes_on_and_one_that_stays_so_is_killed_in_the_end() {
    for goes_on in [true, false] {
        let panzer = logging(FLOODING).args(["-w", "1", "--log", "out.log"]).start();
        panzer.allow_line("dropped: the log");
        panzer.allow_line("were dropped");
        panzer.wait_serving();
        let logger = logger(&panzer);
        kill(Pid::from_raw(logger), Signal::SIGSTOP).unwrap();
        let workers = panzer.workers();
        let wait = || fs::read_to_string(format!("/proc/{}/wchan", workers[0])).unwrap_or_default();
        eventually(SOON, "its pipe is full", || wait().contains("pipe_write") || wait() == "0");
        if !goes_on {
            panzer.expect_line("error: the logger does not end, and is killed: lines may be lost");
        }
        panzer.signal(Signal::SIGTERM);
        wait_gone(&workers);
        if goes_on {
            kill(Pid::from_raw(logger), Signal::SIGCONT).unwrap();
        }
        assert!(panzer.wait_exit().success());
        assert!(!is_alive(logger));
    }
}

/// Its last word comes when it is told to end.
const LAST_WORDS: &str = "#!/usr/bin/env python3
import os, signal, time
def end(*_):
    os.write(1, b'last word of %d\\n' % os.getpid())
    os._exit(0)
signal.signal(signal.SIGTERM, end)
os.write(1, b'first word of %d\\n' % os.getpid())
while True:
    time.sleep(1000)
";

fn speaking() -> Builder {
    logging(LAST_WORDS).args(["-w", "2", "--log", "out.log"])
}

fn wait_for_words(panzer: &Panzer, which: &str, workers: &[i32]) {
    let said = |pid: &i32| read(panzer.path("out.log")).contains(&format!("{which} word of {pid}\n"));
    eventually(SOON, "each worker's word is in the log", || workers.iter().all(said));
}

#[test]
fn after_kill_9_of_main_the_logger_writes_what_comes_and_ends() {
    let panzer = speaking().start();
    panzer.wait_serving();
    let (workers, logger) = (panzer.workers(), logger(&panzer));
    wait_for_words(&panzer, "first", &workers);
    kill_9(panzer.pid());
    panzer.wait_for_line("main is gone; stopping the workers of generation 1", SOON);
    wait_gone(&workers);
    wait_gone(&[logger]);
    wait_for_words(&panzer, "last", &workers);
    assert_eq!(panzer.wait_exit().code(), None);
}

#[test]
fn after_kill_9_of_a_monitor_its_workers_last_words_and_the_next_ones_first_are_there() {
    let panzer = speaking().start();
    panzer.expect_line("error: the monitor of generation 1 was killed by SIGKILL; starting another");
    panzer.wait_serving();
    let workers = panzer.workers();
    wait_for_words(&panzer, "first", &workers);
    kill_9(panzer.status().serving().monitor.unwrap());
    wait_gone(&workers);
    let next = wait_workers(&panzer, 2, &workers);
    wait_for_words(&panzer, "last", &workers);
    wait_for_words(&panzer, "first", &next);
    assert!(panzer.stop().success());
    // All that a descriptor was held for has ended.
}

#[test]
fn a_mold_and_its_workers_have_lines_of_their_own() {
    crate::support::as_mold(|| {
        let script =
            COUNTING.replacen("worker, generation =", "print('worker says', flush=True)\nworker, generation =", 1);
        let panzer = logging(&script).args(["-w", "2", "--log", "out.log", "--log-prefix"]).env("LINES", "3").start();
        panzer.wait_serving();
        wait_done(&panzer, 2);
        let lines = |of: &str| read(panzer.path("out.log")).lines().filter(|line| line.contains(of)).count();
        let of = |who: &str| lines(&format!("Z {who} [gen 1] stdout | "));
        eventually(SOON, "each line has its origin", || of("worker 0") == 4 && of("worker 1") == 4);
        let shown = text(&run(&panzer, &["logs", "--worker", "1"]).stdout);
        assert_eq!(shown.lines().count(), 4, "{shown}");
        assert!(panzer.stop().success());
    });
}
