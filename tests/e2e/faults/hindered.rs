//! What is refused to panzer, or hangs, hinders nothing else, and leaves nothing behind.

use std::fs;

use nix::libc;

use super::{SOON, kill_9, wait_workers};
use crate::support::{Panzer, Tracer, eventually};

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
    let refuse = ["-e", "trace=epoll_ctl,execve", "-e", "inject=epoll_ctl:error=ENOSPC"];
    let slow = ["-e", "inject=execve:delay_enter=300000"];
    let Some(tracer) = Tracer::attach(monitor_of(&panzer), &[refuse.as_slice(), &slow].concat()) else { return };
    panzer.expect_line("warning: worker 0 (pid *, generation 1) was killed by SIGKILL; respawning it");
    kill_9(before[0]);
    wait_workers(&panzer, 1, &before);
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
    panzer.expect_line("error: reload failed: *Too many open files");
    for _ in 0..3 {
        limit_descriptors(panzer.pid(), before as u64 + 14);
        assert!(panzer.reload_and_wait().is_err());
    }
    limit_descriptors(panzer.pid(), 1024);
    eventually(SOON, "refused reloads leave no descriptor open", || descriptors(panzer.pid()) <= before);
    assert_eq!(panzer.reload_and_wait(), Ok(5));
    panzer.stop();
}
