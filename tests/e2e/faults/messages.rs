//! Messages between main and its monitors: what cannot be sent or received for a moment is not lost.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{SOON, kill_9, wait_workers};
use crate::control::{panzerctl, run, serving_sleeper};
use crate::support::{Panzer, descendants, eventually, require};

/// A process whose system calls are seen, or some of which fail, until this is dropped.
struct Traced(Child);

impl Traced {
    fn by(pid: i32, expression: &str, output: &Path) -> Traced {
        let mut strace = Command::new("strace");
        strace.args(["-qq", "-e", expression, "-p", &pid.to_string(), "-o"]).arg(output);
        let tracer = Traced(strace.stderr(Stdio::null()).spawn().unwrap());
        let status = || fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        eventually(SOON, "the tracer is attached", || !status().contains("TracerPid:\t0\n"));
        tracer
    }

    fn failing(pid: i32, injected: &str) -> Traced {
        Traced::by(pid, &format!("inject={injected}"), Path::new("/dev/null"))
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

fn monitor_of(panzer: &Panzer) -> i32 {
    let monitor = descendants(panzer.pid()).into_iter().find(|process| process.parent == panzer.pid());
    monitor.expect("a monitor").pid
}

#[test]
fn no_order_gets_lost_for_want_of_memory() {
    if !require("strace") {
        return;
    }
    // 1 is what makes the new generation the serving one.
    for (count, errno) in [("1..3", "ENOBUFS"), ("2", "ENOMEM"), ("1", "ETOOMANYREFS")] {
        let panzer = serving_sleeper();
        {
            let _failing = Traced::failing(panzer.pid(), &format!("sendmsg:error={errno}:when={count}"));
            assert_eq!(panzer.reload_and_wait(), Ok(2), "{count} {errno}");
            panzer.wait_drained(1);
        }
        let before = wait_workers(&panzer, 2, &[]);
        panzer.expect_line("was killed by SIGKILL");
        kill_9(before[0]);
        wait_workers(&panzer, 1, &before);
    }
}

#[test]
fn a_failure_to_receive_is_no_end() {
    if !require("strace") {
        return;
    }
    let panzer = serving_sleeper();
    let before = panzer.workers();
    {
        let _failing = Traced::failing(monitor_of(&panzer), "recvmsg:error=ENOMEM:when=1..3");
        assert_eq!(panzer.workers(), before);
    }
    {
        let _failing = Traced::failing(panzer.pid(), "recvmsg:error=ENOBUFS:when=1..3");
        assert_eq!(panzer.workers(), before);
    }
    assert!(run(&panzer, &["reload", "--drained"]).status.success());
}

#[test]
fn a_report_that_could_not_be_sent_at_once_comes_later() {
    if !require("strace") {
        return;
    }
    let panzer = serving_sleeper();
    let before = panzer.workers();
    let _failing = Traced::failing(monitor_of(&panzer), "sendmsg:error=ENOBUFS:when=1..2");
    panzer.expect_line("was killed by SIGKILL");
    kill_9(before[0]);
    wait_workers(&panzer, 1, &before);
}

#[test]
fn a_monitor_that_is_stopped_is_not_asked_twice() {
    if !require("strace") {
        return;
    }
    let panzer = serving_sleeper();
    let (monitor, trace) = (monitor_of(&panzer), panzer.path("trace"));
    let tracer = Traced::by(panzer.pid(), "trace=sendmsg", &trace);
    kill(Pid::from_raw(monitor), Signal::SIGSTOP).unwrap();
    for _ in 0..3 {
        panzerctl(&panzer, &["status"]).output().unwrap();
    }
    assert_eq!(fs::read_to_string(&trace).unwrap().matches("status").count(), 1);
    kill(Pid::from_raw(monitor), Signal::SIGCONT).unwrap();
    drop(tracer);
    assert_eq!(panzer.workers().len(), 2);
}
