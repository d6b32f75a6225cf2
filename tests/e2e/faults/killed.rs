//! 1, 3, 4, 5: kill -9 of anybody.

use std::fs;

use nix::sys::signal::Signal;

use super::{
    SOON, assert_answers, is_alive, kill_9, server, serving_app, start_app, wait_gone, wait_started, wait_workers,
};
use crate::support::{Panzer, eventually, eventually_some, free_port, get};

#[test]
pub fn any_worker() {
    let (panzer, port) = start_app(3);
    panzer.expect_line("warning: worker * was killed by SIGKILL; respawning it");
    for victim in panzer.workers() {
        kill_9(victim);
        // Until it is gone the kernel may still hand it a connection.
        wait_gone(&[victim]);
        assert_answers(port, "good");
    }
    let workers = wait_workers(&panzer, 3, &[]);
    assert_eq!(workers.len(), 3);
    assert_no_zombie(&panzer);
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
pub fn every_worker_at_once_and_connections_wait() {
    let (panzer, port) = start_app(2);
    panzer.expect_line("warning: worker * was killed by SIGKILL; respawning it");
    let workers = panzer.workers();
    workers.iter().copied().for_each(kill_9);
    wait_gone(&workers);
    // Nobody accepts now, and nobody is refused.
    assert_answers(port, "good");
    panzer.stop();
}

#[test]
pub fn the_serving_monitor() {
    let (panzer, port) = start_app(2);
    panzer.expect_line("error: the monitor of generation 1 was killed by SIGKILL; starting another");
    let before = panzer.workers();
    kill_9(panzer.status().serving().monitor.unwrap());
    // They end by the signal of their parent's death; who comes now waits for the next ones.
    wait_gone(&before);
    assert_answers(port, "good");
    let after = wait_workers(&panzer, 2, &before);
    assert_answers(port, "good");
    assert_eq!(panzer.status().serving().number, 1);
    assert_no_zombie(&panzer);
    // The generation goes on as any other.
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    wait_gone(&after);
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
pub fn the_serving_monitor_whose_workers_ignore_the_first_signal() {
    let port = free_port();
    let deaf = server("good").replace("listener =", "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nlistener =");
    let panzer = serving_app(port, 1).executable("app", &deaf).args(["--stop", "TERM/300ms/INT/300ms/KILL"]).start();
    panzer.expect_line("error: the monitor of generation 1 was killed by SIGKILL; starting another");
    panzer.allow_line("warning: worker 0 (pid * has not stopped yet; sent it SIGINT");
    panzer.wait_serving();
    let before = panzer.workers();
    kill_9(panzer.status().serving().monitor.unwrap());
    wait_gone(&before);
    wait_workers(&panzer, 1, &before);
    assert_answers(port, "good");
    panzer.stop();
}

#[test]
pub fn a_starting_monitor() {
    let port = free_port();
    let panzer = serving_app(port, 2).env("PANZER_READY_TIMEOUT", "20s").start();
    wait_started(&panzer, 2);
    let before = panzer.workers();
    // Ready at once, and on trial for longer than this test takes.
    let slow = format!("#!/bin/sh\nexec sleep 1000\n# {}", server("bad"));
    crate::support::write_executable(panzer.path("new"), slow);
    let bake = panzer.mark();
    fs::rename(panzer.path("new"), panzer.path("app")).unwrap();
    panzer.signal(nix::sys::signal::Signal::SIGUSR1);
    panzer.wait_for_line_after(bake, "reload: starting generation 2", SOON);
    let starting = eventually_some(SOON, "generation 2 has a monitor", || {
        panzer.status().generation(2).filter(|two| two.standing == "starting").and_then(|two| two.monitor)
    });
    panzer.expect_line("error: reload failed: generation 2: its monitor was killed by SIGKILL; generation 1 serves on");
    kill_9(starting);
    panzer.wait_for_line_after(bake, "reload failed: generation 2", SOON);
    assert_eq!(panzer.workers(), before);
    assert_answers(port, "good");
    eventually(SOON, "generation 2 is gone", || panzer.status().generations.len() == 1);
    assert_no_zombie(&panzer);
    panzer.stop();
}

#[test]
pub fn main() {
    let (panzer, port) = start_app(2);
    let workers = panzer.workers();
    let monitor = panzer.status().serving().monitor.unwrap();
    kill_9(panzer.pid());
    panzer.wait_for_line("main is gone; stopping the workers of generation 1", SOON);
    wait_gone(&workers);
    wait_gone(&[monitor]);
    assert!(get(port, "/").is_err());
    // Nothing is left that a restart would have to clean up: the same pid file, the same port.
    let again = serving_app(port, 1).env("RUNTIME_DIRECTORY", panzer.path("run")).start();
    again.wait_serving();
    assert_answers(port, "good");
    again.stop();
    assert_eq!(panzer.wait_exit().code(), None);
}

#[test]
pub fn main_while_its_workers_drain_and_a_new_one_waits_for_them() {
    let port = free_port();
    let slow = server("good").replace(RESET_INT, SLOW_TO_STOP);
    let first = serving_app(port, 1).executable("app", &slow).start();
    first.wait_serving();
    let worker = first.workers();
    kill_9(first.pid());
    first.wait_for_line("main is gone", SOON);
    let second = serving_app(port, 1).start();
    // A mold that is about to exit holds it as well.
    second.expect_line("warning: 127.0.0.1:* is held by * (pid *), *; waiting until it has ended");
    second.wait_for_line("waiting until it has ended", SOON);
    assert!(is_alive(worker[0]));
    fs::write(first.path("go"), "").unwrap();
    second.wait_serving();
    assert_answers(port, "good");
    second.stop();
    first.wait_exit();
}

/// A terminal that closes meanwhile stops it, and so does Ctrl-C, as at any other time.
#[test]
pub fn what_waits_for_an_address_goes_with_its_terminal() {
    let port = free_port();
    let slow = server("good").replace(RESET_INT, SLOW_TO_STOP);
    let first = serving_app(port, 1).executable("app", &slow).start();
    first.wait_serving();
    kill_9(first.pid());
    first.wait_for_line("main is gone", SOON);
    let listen = format!("127.0.0.1:{port}");
    for (end, status) in [("hang-up", 0), ("ctrl-c", -(Signal::SIGINT as i32))] {
        let second = crate::daemon::on_a_terminal().args(["-w", "1", "-l", &listen, "--", "sleep", "1000"]).start();
        second.expect_line("warning: 127.0.0.1:* is held by *; waiting until it has ended");
        second.allow_line("^C");
        second.wait_for_line("waiting until it has ended", SOON);
        std::fs::write(second.path(end), "").unwrap();
        assert_eq!(crate::daemon::wait_starter(&second), status, "{end}");
        second.wait_exit();
    }
    fs::write(first.path("go"), "").unwrap();
    first.wait_exit();
}

/// The memory of a process goes before its descriptors do, and its environment with it: a worker with much of it is
/// seen for a while to hold the address without being seen to be a worker.
#[test]
pub fn main_and_a_new_one_comes_while_a_big_worker_is_exiting() {
    let port = free_port();
    let big = server("big").replace(RESET_INT, DRAINS_A_LITTLE);
    for _ in 0..4 {
        let first = serving_app(port, 1).executable("app", &big).start();
        wait_started(&first, 1);
        kill_9(first.pid());
        let second = serving_app(port, 1).start();
        // What it says depends on what it comes upon: the draining worker, the exiting one, or none.
        second.allow_line("warning: 127.0.0.1:* is held by *; waiting until it has ended");
        second.wait_serving();
        assert_answers(port, "good");
        second.stop();
        first.wait_exit();
    }
}

#[test]
pub fn a_server_without_an_environment_is_refused_at_once() {
    let port = free_port();
    let mut other = std::process::Command::new("env")
        .args(["-i", "/usr/bin/env", "python3", "-c", LISTENS_AND_WAITS, &port.to_string()])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    let panzer = serving_app(port, 1).start();
    panzer.expect_line(&format!("error: cannot listen on 127.0.0.1:{port}: in use by * (pid {}); stop it", other.id()));
    assert_eq!(panzer.wait_exit().code(), Some(125));
    other.kill().unwrap();
    other.wait().unwrap();
}

const LISTENS_AND_WAITS: &str = "
import os, socket, sys, time
listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))
os.write(1, b'.')
time.sleep(1000)";

const RESET_INT: &str = "signal.signal(signal.SIGINT, signal.SIG_DFL)";

/// Has much memory, in small pages, which are slow to give back; stops after a moment with its listener open.
const DRAINS_A_LITTLE: &str = "
import mmap, os, time
heap = mmap.mmap(-1, 768 << 20)
heap.madvise(mmap.MADV_NOHUGEPAGE)
for page in range(0, len(heap), mmap.PAGESIZE):
    heap[page] = 1
def stop(*_):
    time.sleep(0.12)
    os.kill(os.getpid(), signal.SIGKILL)
signal.signal(signal.SIGTERM, stop)";

/// Stops once there is a file `go`, with its listener open till then.
const SLOW_TO_STOP: &str = "
import os, time
def stop(*_):
    while not os.path.exists('go'):
        time.sleep(0.01)
    os._exit(0)
signal.signal(signal.SIGTERM, stop)";

#[track_caller]
fn assert_no_zombie(panzer: &Panzer) {
    eventually(SOON, "no zombie is left", || {
        let stats = fs::read_dir("/proc").unwrap().flatten();
        let stats = stats.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
        let parents: Vec<String> = std::iter::once(panzer.pid())
            .chain(panzer.status().generations.iter().filter_map(|generation| generation.monitor))
            .map(|pid| format!(") Z {pid} "))
            .collect();
        !stats.into_iter().any(|stat| parents.iter().any(|parent| stat.contains(parent)))
    });
}
