//! What is refused to panzer, or hangs, hinders nothing else, and leaves nothing behind.

use std::fs;
use std::net::TcpListener;

use nix::libc;
use nix::sys::signal::Signal;

use super::{SOON, kill_9, wait_workers};
use crate::support::{Panzer, Tracer, eventually, free_port, require};

#[track_caller]
fn monitor_of(panzer: &Panzer) -> i32 {
    panzer.status().serving().monitor.expect("it has a monitor")
}

/// `epoll_ctl` fails where its watches or the kernel's memory are used up (ENOSPC, ENOMEM).
#[test]
fn an_exec_that_the_poller_refuses_to_watch_is_looked_at_all_the_same() {
    let panzer = Panzer::start([
        "-w",
        "1",
        "--ready",
        "alive",
        "--bake",
        "100ms",
        "--share-ports",
        "off",
        "--",
        "sleep",
        "1000",
    ]);
    panzer.wait_serving();
    let before = panzer.workers();
    let refuse = ["-f", "-e", "trace=epoll_ctl,execve", "-e", "inject=epoll_ctl:error=ENOSPC"];
    let slow = ["-e", "inject=execve:delay_enter=300000"];
    let Some(tracer) = Tracer::attach(monitor_of(&panzer), &[refuse.as_slice(), &slow].concat()) else { return };
    panzer.expect_line("warning: worker 0 (pid *, generation 1) was killed by SIGKILL; respawning it");
    kill_9(before[0]);
    wait_workers(&panzer, 1, &before);
    drop(tracer);
    panzer.stop();
}

/// The file system with the program stops answering, and a worker dies.
#[test]
fn a_program_that_cannot_be_looked_at_hinders_its_own_slot_only() {
    let app = "#!/bin/sh\ntrap 'echo >>ended; exit 0' TERM\necho >>begun\nwhile :; do sleep 0.1; done\n";
    let options = ["-w", "3", "--ready", "alive", "--bake", "100ms", "--share-ports", "off", "--stop", "TERM/1s/KILL"];
    let panzer = Panzer::builder().executable("app", app).args(options).arg("./app").start();
    panzer.wait_serving();
    let lines = |name: &str| fs::read(panzer.path(name)).map_or(0, |lines| lines.len());
    eventually(SOON, "all have begun", || lines("begun") == 3);
    let (before, app) = (panzer.workers(), panzer.path("app"));
    let hang = ["-f", "-P", app.to_str().unwrap(), "-e", "trace=%file", "-e", "inject=%file:delay_enter=100000000"];
    let Some(tracer) = Tracer::attach(monitor_of(&panzer), &hang) else { return };
    panzer.expect_line("warning: worker * was killed by SIGKILL; respawning it");
    panzer.allow_line("has not stopped yet; sent it SIGKILL");
    // The sleep that its shell waited for.
    panzer.allow_line("ended and left processes behind");
    kill_9(before[0]);
    eventually(SOON, "its slot is being filled", || panzer.status().serving().workers[0].phase == "starting");
    kill_9(before[1]);
    eventually(SOON, "the monitor goes on", || panzer.status().serving().workers[1].phase == "starting");
    panzer.signal(Signal::SIGTERM);
    eventually(SOON, "TERM reaches the worker that lives", || lines("ended") == 1);
    drop(tracer);
    panzer.wait_exit();
}

#[test]
fn a_monitor_that_hangs_before_its_first_word_is_told_of_and_killed() {
    if !require("strace") {
        return;
    }
    let hang = "-P \"$PWD/app\" -e trace=%file -e inject=%file:delay_enter=12000000";
    let panzer = Panzer::builder()
        .executable("app", "#!/bin/sh\nexec sleep 1000\n")
        .executable("tracer", &format!("#!/bin/sh\nexec strace -D -f -qq -o /dev/null {hang} \"$@\"\n"))
        .through("tracer")
        .args(["-w", "1", "--ready", "alive", "--share-ports", "off", "./app"])
        .start();
    panzer.expect_line("error: the monitor of generation 1 hangs while it looks up what it is to run");
    panzer.allow_line("strace: ");
    panzer.allow_line("error: the monitor of generation 1 hung for 10s before its first word, and was killed");
    panzer.wait_for_line("hangs while it looks up", 3 * SOON);
    assert_eq!(panzer.stop().code(), Some(0));
}

/// To read all of /proc takes long on a machine with many descriptors; here it takes main for ever.
#[test]
fn main_does_not_look_itself_who_holds_an_address() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = |ports: &[u16]| {
        let ports: Vec<String> = ports.iter().map(|port| format!("\"127.0.0.1:{port}\"")).collect();
        format!("program: sleep\nargs: [1000]\nworkers: 1\nready: alive\nbake: 100ms\nlisten: [{}]\n", ports.join(", "))
    };
    let own = free_port();
    let panzer = Panzer::builder().file("p.yml", &config(&[own])).args(["--config", "p.yml"]).start();
    panzer.wait_serving();
    let hang = ["-P", "/proc", "-e", "trace=openat", "-e", "inject=openat:delay_enter=100000000"];
    let Some(tracer) = Tracer::attach(panzer.pid(), &hang) else { return };
    fs::write(panzer.path("p.yml"), config(&[own, taken.local_addr().unwrap().port()])).unwrap();
    let holder = format!("error: reload failed: *in use by * (pid {}); stop it", std::process::id());
    panzer.expect_line(&holder);
    assert!(panzer.reload_and_wait().is_err());
    drop(tracer);
    panzer.stop();
}

fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

fn limit_descriptors(pid: i32, soft: u64) {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: 1024 };
    // SAFETY: the limit is read from our stack, and the old one is not asked for.
    assert_eq!(unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &limit, std::ptr::null_mut()) }, 0);
}

#[test]
fn a_monitor_that_lacks_descriptors_to_be_started_leaks_none() {
    let mut builder = Panzer::builder();
    for number in 0..20 {
        let path = builder.folder().join(format!("{number}.sock"));
        builder = builder.args(["-l", &format!("unix:{}", path.display())]);
    }
    let panzer = builder.args(["-w", "1", "--ready", "alive", "--bake", "100ms", "--", "sleep", "1000"]).start();
    panzer.wait_serving();
    let before = descriptors(panzer.pid());
    panzer.expect_line("error: reload failed: *too many open files");
    for _ in 0..3 {
        limit_descriptors(panzer.pid(), before as u64 + 14);
        assert!(panzer.reload_and_wait().is_err());
    }
    limit_descriptors(panzer.pid(), 1024);
    eventually(SOON, "refused reloads leave no descriptor open", || descriptors(panzer.pid()) <= before);
    assert_eq!(panzer.reload_and_wait(), Ok(5));
    panzer.stop();
}

/// `prlimit --nofile=N` lowers the hard limit as well, and panzer gives workers the limit that it was started with.
#[test]
fn a_monitor_whose_limit_of_descriptors_was_lowered_goes_on_starting_workers() {
    let panzer = Panzer::start(["-w", "1", "--bake", "50ms", "--", "sleep", "1000"]);
    panzer.wait_serving();
    panzer.expect_line("was killed by SIGKILL; respawning it");
    let limit = libc::rlimit { rlim_cur: 100, rlim_max: 100 };
    // SAFETY: the limit is read from our stack, and the old one is not asked for.
    assert_eq!(unsafe { libc::prlimit(monitor_of(&panzer), libc::RLIMIT_NOFILE, &limit, std::ptr::null_mut()) }, 0);
    let before = panzer.workers();
    kill_9(before[0]);
    let workers = wait_workers(&panzer, 1, &before);
    let limits = fs::read_to_string(format!("/proc/{}/limits", workers[0])).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert!(line.split_ascii_whitespace().nth(4) == Some("100"), "{line}");
    panzer.stop();
}

/// A write beyond RLIMIT_FSIZE ends a process by XFSZ, unless it ignores that.
#[test]
fn a_log_that_may_not_grow_ends_nothing() {
    if !require("python3") {
        return;
    }
    // Whoever has CAP_SYS_RESOURCE (24) raises the limit. This takes it out of the bounding set (PR_CAPBSET_DROP, 24 as well).
    let limited = "#!/usr/bin/env python3\nimport ctypes, os, resource, sys\nctypes.CDLL(None).prctl(24, 24)\nresource.setrlimit(resource.RLIMIT_FSIZE, (3 << 30,) * 2)\nos.execv(sys.argv[1], sys.argv[1:])\n";
    let builder = Panzer::builder().executable("limited", limited).through("limited");
    // Full but for some bytes, and all of it a hole.
    fs::File::create(builder.folder().join("app.log")).unwrap().set_len((3 << 30) - 100).unwrap();
    let panzer = builder
        .args(["-w", "1", "--bake", "50ms", "--log", "app.log", "--log-size", "0", "--", "sh", "-c"])
        .arg("yes | head -c 1000; exec sleep 1000")
        .start();
    panzer.wait_serving();
    panzer.wait_for_line("warning: cannot write to the log *app.log: file too large", SOON);
    panzer.expect_line("warning: cannot write to the log *app.log: file too large");
    panzer.expect_line("error: * lines are lost: the log *app.log could not be written until the end");
    panzer.stop();
}
