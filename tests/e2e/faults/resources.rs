//! 10, 15, 20, 22: what the system refuses for now is tried again, and panzer recovers by itself.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use nix::libc;

use crate::control::{panzerctl, run, text};
use crate::faults::{SOON, kill_9};
use crate::support::{Panzer, Tracer, eventually};

fn start() -> Panzer {
    let options = ["-w", "2", "--ready", "alive", "--bake", "50ms", "--share-ports", "off", "--delay", "10ms", "./app"];
    let panzer = Panzer::builder().executable("app", "#!/bin/sh\nexec sleep 1000\n").args(options).start();
    panzer.wait_serving();
    panzer
}

/// Has these calls of a process fail with this error.
fn failing(pid: i32, calls: &str, how: &str) -> Option<Tracer> {
    Tracer::attach(pid, &["-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:{how}")])
}

const FORKS: &str = "clone,clone3,fork,vfork";

#[test]
fn a_worker_that_cannot_be_forked_is_tried_again_with_a_delay() {
    let panzer = start();
    let (monitor, workers) = (panzer.status().serving().monitor.unwrap(), panzer.workers());
    let Some(tracer) = failing(monitor, FORKS, "error=EAGAIN:when=1..3") else { return };
    panzer.expect_line("warning: worker * was killed by SIGKILL");
    panzer.expect_line("no further process is allowed");
    kill_9(workers[0]);
    eventually(SOON, "a worker runs in its place", || {
        let now = panzer.workers();
        now.len() == 2 && !now.contains(&workers[0]) && now.contains(&workers[1])
    });
    drop(tracer);
    panzer.stop();
}

#[test]
fn a_reload_for_which_nothing_can_be_forked_fails_and_the_next_one_works() {
    let panzer = start();
    let Some(tracer) = failing(panzer.pid(), FORKS, "error=EAGAIN:when=1") else { return };
    panzer.expect_line("error: reload failed: generation 2: *no further process is allowed*");
    assert!(panzer.reload_and_wait().is_err());
    assert_eq!(panzer.reload_and_wait(), Ok(3));
    drop(tracer);
    panzer.stop();
}

#[test]
fn what_the_whole_system_lacks_fails_a_reload_and_passes() {
    for errno in ["ENFILE", "ENOMEM"] {
        let panzer = start();
        let Some(tracer) = failing(panzer.pid(), "memfd_create", &format!("error={errno}:when=1..2")) else { return };
        panzer.expect_line("error: reload failed: generation 2: *");
        assert!(panzer.reload_and_wait().is_err());
        drop(tracer);
        assert_eq!(panzer.reload_and_wait(), Ok(3));
        panzer.stop();
    }
}

#[test]
fn a_client_that_cannot_be_accepted_is_accepted_once_it_can() {
    for errno in ["ENFILE", "EMFILE", "ENOMEM", "ENOBUFS"] {
        let panzer = start();
        panzer.allow_line("clients of the control socket are served one by one, for lack of descriptors: ");
        let Some(tracer) = failing(panzer.pid(), "accept,accept4", &format!("error={errno}:when=1..3")) else { return };
        let status = run(&panzer, &["status"]);
        assert!(status.status.success(), "{errno}: {}", text(&status.stderr));
        drop(tracer);
        panzer.stop();
    }
}

/// One descriptor is kept for operators: who has used up all others is found and ended by `panzerctl`.
#[test]
fn with_every_descriptor_in_use_a_client_is_served_all_the_same() {
    let panzer = start();
    let open = || {
        let entries = fs::read_dir(format!("/proc/{}/fd", panzer.pid())).unwrap().flatten();
        entries.map(|entry| entry.file_name().to_str().unwrap().parse::<u64>().unwrap()).collect::<Vec<_>>()
    };
    let limit = |soft| {
        let limit = libc::rlimit { rlim_cur: soft, rlim_max: 1024 };
        // SAFETY: the limit is read from our stack, and the old one is not asked for.
        assert_eq!(unsafe { libc::prlimit(panzer.pid(), libc::RLIMIT_NOFILE, &limit, std::ptr::null_mut()) }, 0);
    };
    let most = open().into_iter().max().unwrap() + 2;
    limit(most);
    // Clients that say nothing take what is free.
    let free = most as usize - open().len();
    let silent: Vec<UnixStream> =
        (0..free).map(|_| UnixStream::connect(panzer.path("run/app.sock")).unwrap()).collect();
    eventually(SOON, "every descriptor is in use", || open().len() == most as usize);
    panzer
        .expect_line("warning: clients of the control socket are served one by one, for lack of descriptors: too many");
    for _ in 0..3 {
        let status = run(&panzer, &["status"]);
        assert!(status.status.success(), "{}", text(&status.stderr));
    }
    let reload = run(&panzer, &["reload"]);
    assert!(text(&reload.stderr).contains("too many open files (ulimit -n, LimitNOFILE=)"), "{reload:?}");
    let failed = "error: reload failed: generation 2: *too many open files";
    panzer.expect_line(failed);
    panzer.wait_for_line(failed, SOON);
    drop(silent);
    limit(1024);
    assert_eq!(panzer.reload_and_wait(), Ok(3));
    panzer.stop();
}

#[test]
fn a_program_that_is_being_written_is_tried_for_a_while_and_then_refused() {
    let panzer = start();
    let written = File::options().append(true).open(panzer.path("app")).unwrap();
    let reload = panzerctl(&panzer, &["reload"]).stdout(Stdio::null()).spawn().unwrap();
    panzer.expect_line("error: reload failed: generation 2: *app*");
    let refused = reload.wait_with_output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused.stderr);
    assert!(said.contains("busy") || said.contains("written"), "{said}");
    assert_eq!(panzer.workers().len(), 2);
    drop(written);
    assert_eq!(panzer.reload_and_wait(), Ok(3));
    panzer.stop();
}

#[test]
fn a_child_that_is_killed_before_its_exec_is_a_failed_start() {
    let panzer = start();
    let (monitor, workers) = (panzer.status().serving().monitor.unwrap(), panzer.workers());
    let kill = ["-f", "-e", "trace=execve,execveat", "-e", "inject=execve,execveat:signal=KILL:when=1"];
    let Some(tracer) = Tracer::attach(monitor, &kill) else { return };
    panzer.expect_line("warning: worker * was killed by SIGKILL");
    kill_9(workers[0]);
    // Each child's first exec: the first one that runs is the first that is not traced any more.
    panzer.wait_for_line("was killed by SIGKILL; respawning it in ", SOON);
    drop(tracer);
    eventually(SOON, "a worker runs in its place", || panzer.workers().len() == 2);
    panzer.stop();
}

/// Sends far more than its socket holds before it says that it is ready.
const FLOODING: &str = "#!/usr/bin/env python3
import os, socket, time
to = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
to.connect(os.environ['NOTIFY_SOCKET'].replace('@', '\\0', 1))
if os.environ['PANZER_WORKER_ID'] == '0':
    to.setblocking(False)
    for _ in range(100000):
        try:
            to.send(b'STATUS=' + b'x' * 1000)
        except BlockingIOError:
            pass
    to.setblocking(True)
to.send(b'READY=1')
time.sleep(1000)
";

/// 71.
#[test]
fn a_flood_of_one_worker_hides_no_others_word() {
    let panzer = Panzer::builder().executable("app", FLOODING);
    let panzer = panzer.args(["-w", "4", "--ready", "notify", "--share-ports", "off", "./app"]).start();
    panzer.wait_serving();
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.stop();
}

/// The soft and the hard limit of descriptors of a process.
fn limits(pid: i32) -> (String, String) {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let mut numbers = line.split_whitespace().skip(3).map(str::to_owned);
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
fn panzer_has_the_descriptors_that_it_may_and_workers_those_that_it_was_started_with() {
    let start = "#!/bin/sh\nulimit -Sn 300\nulimit -Hn 4000\nexec \"$@\"\n";
    let hook = "after-reload=ulimit -Sn >limit; ulimit -Hn >>limit";
    let options = ["-w", "1", "--ready", "alive", "--bake", "50ms", "--share-ports", "off", "--hook", hook];
    let panzer = Panzer::builder().executable("limited", start).through("limited").args(options);
    let panzer = panzer.args(["--", "sleep", "1000"]).start();
    panzer.wait_serving();
    let pair = |soft: &str, hard: &str| (soft.to_owned(), hard.to_owned());
    for round in 0..2 {
        let monitor = panzer.status().serving().monitor.unwrap();
        assert_eq!(limits(panzer.pid()), pair("4000", "4000"));
        assert_eq!(limits(monitor), pair("4000", "4000"));
        assert_eq!(limits(panzer.workers()[0]), pair("300", "4000"));
        if round == 0 {
            // The next main, and what it starts, know it as well.
            let mark = panzer.mark();
            panzer.signal(nix::sys::signal::Signal::SIGUSR2);
            panzer.wait_for_line_after(mark, "restarted in place", SOON);
            assert_eq!(panzer.reload_and_wait(), Ok(2));
        }
    }
    let noted = || std::fs::read_to_string(panzer.path("limit")).is_ok_and(|text| text == "300\n4000\n");
    eventually(SOON, "the hook has noted its limits", noted);
    panzer.stop();
}

/// 21. Pipes of workers never take the descriptors that main needs for everything else.
#[test]
fn workers_whose_output_finds_no_descriptor_are_told_of_and_harm_nobody_else() {
    let few = "#!/bin/sh\nulimit -n 100\nexec \"$@\"\n";
    let app = "#!/bin/sh\necho \"begun $PANZER_WORKER_ID\"\nexec sleep 1000\n";
    let start = |workers: &str| {
        let options = ["-w", workers, "--ready", "alive", "--bake", "0s", "--share-ports", "off", "--log", "out.log"];
        let builder = Panzer::builder().executable("few", few).through("few").executable("app", app);
        builder.args(options).args(["--name", "app", "--delay", "60s", "--delay-max", "60s", "./app"])
    };
    let refused = start("60").expect_line("error: the output of 60 workers takes 120 pipes, for which").start();
    assert_eq!(refused.wait_exit().code(), Some(125));
    let panzer = start("4").start();
    panzer.wait_serving();
    let first = panzer.workers();
    let begun = |worker: u32| {
        let log = std::fs::read_to_string(panzer.path("out.log")).unwrap_or_default();
        log.lines().any(|line| line == format!("begun {worker}"))
    };
    eventually(SOON, "the first ones have begun", || (0..4).all(begun));
    panzer.expect_line("cannot write: panzer has no descriptor left for its output (ulimit -n, LimitNOFILE=)");
    panzer.allow_line("warning: worker * respawning it");
    assert!(run(&panzer, &["scale", "30"]).status.success());
    panzer.wait_for_line("cannot write: panzer has no descriptor left", SOON);
    assert!(run(&panzer, &["scale", "4"]).status.success());
    eventually(SOON, "the others have ended", || panzer.workers().len() == 4);
    assert_eq!(panzer.workers(), first);
    eventually(SOON, "another one's output is read", || {
        assert!(run(&panzer, &["scale", "4"]).status.success());
        std::fs::write(panzer.path("out.log"), "").unwrap();
        assert!(run(&panzer, &["scale", "5"]).status.success());
        eventually(SOON, "it has begun", || panzer.workers().len() == 5);
        begun(4)
    });
    panzer.stop();
}
