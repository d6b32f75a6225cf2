//! Recycling: a worker that has reached a limit is replaced, and the replacement is ready first.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::config_reread::{configured, hang_up, write};
use crate::control::{run, text};
use crate::support::{Builder, Panzer, eventually, free_port, require};
use crate::zero_loss::clients::BothKinds;

const SOON: Duration = Duration::from_secs(60);

/// Is ready if there is no file `broken`. Then it does what the file `do-ID` says: uses memory, has a child that does, or
/// reports requests.
const PROGRAM: &str = r#"#!/usr/bin/env python3
import os, signal, socket, time
panzer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
def say(text):
    panzer.sendto(text, '\0' + os.environ['NOTIFY_SOCKET'][1:])
while os.path.exists('slow'):
    time.sleep(0.01)
if os.path.exists('broken'):
    raise SystemExit(3)
say(b'READY=1')
order = 'do-' + os.environ['PANZER_WORKER_ID']
kept = []
while True:
    if os.path.exists(order):
        what = open(order).read()
        os.unlink(order)
        if what == 'use memory':
            kept.append(b'x' * (64 << 20))
        elif what == 'have a child that does':
            child = os.fork()
            if child == 0:
                kept.append(b'x' * (64 << 20))
                signal.pause()
            signal.signal(signal.SIGTERM, lambda *_: (os.kill(child, signal.SIGKILL), os.wait(), os._exit(0)))
        else:
            say(what.encode())
    time.sleep(0.01)
"#;

fn program(arguments: &[&str]) -> Builder {
    let panzer = Panzer::builder().executable("app", PROGRAM);
    let arguments = [arguments, &["--ready", "notify", "--healthy-after", "100ms", "./app"]].concat();
    panzer.args(arguments)
}

fn start(arguments: &[&str]) -> Panzer {
    let panzer = program(arguments).start();
    panzer.wait_serving();
    panzer
}

/// Tells the worker in this slot what to do.
fn tell(panzer: &Panzer, slot: u32, what: &str) {
    fs::write(panzer.path("new"), what).unwrap();
    fs::rename(panzer.path("new"), panzer.path(&format!("do-{slot}"))).unwrap();
}

/// The worker in slot 0 is replaced for this reason, and nobody else is.
#[track_caller]
fn wait_replaced(panzer: &Panzer, before: &[i32], reason: &str) {
    panzer.wait_for_line(&format!("worker 0 (pid {}, generation 1) {reason}*; replacing it", before[0]), SOON);
    panzer.wait_for_line(&format!("worker 0 (pid *) has taken the place of pid {}", before[0]), SOON);
    let now = panzer.workers();
    assert!(now[0] != before[0] && now[1..] == before[1..], "{before:?} {now:?}");
    let worker = panzer.status().serving().workers[0].clone();
    let word = reason.split(' ').next().unwrap();
    assert!(worker.rest.contains(&format!("recycled 1x, last: {word} ")), "{worker:?}");
    eventually(SOON, "the old one has ended", || kill(Pid::from_raw(before[0]), None).is_err());
}

#[test]
pub fn whoever_has_run_for_long_is_replaced_and_no_request_is_lost() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let options =
        ["-w", "2", "--bake", "100ms", "--ready", "accept", "--max-lifetime", "1s", "-l", &listen, "./my_app"];
    let panzer = Panzer::builder().link("examples/my_app").args(options).start();
    panzer.wait_serving();
    let load = BothKinds::start(port);
    for _ in 0..3 {
        let mark = panzer.mark();
        panzer.wait_for_line_after(mark, "ran for *(--max-lifetime 1s); replacing it", SOON);
        panzer.wait_for_line_after(mark, "has taken the place of pid", SOON);
    }
    let seen = load.stop();
    seen.print("three workers replaced");
    assert_eq!(seen.dropped(), 0);
    let metrics = text(&run(&panzer, &["metrics"]).stdout);
    assert!(!metrics.contains("panzer_recycled_total{reason=\"lifetime\"} 0\n"), "{metrics}");
    assert!(metrics.contains("panzer_recycled_total{reason=\"memory\"} 0\n"), "{metrics}");
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
pub fn the_queue_of_a_worker_passes_to_its_replacement() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let listen = format!("127.0.0.1:{port},per-worker");
    let options =
        ["-w", "2", "--bake", "100ms", "--ready", "accept", "--max-lifetime", "1s", "-l", &listen, "./my_app"];
    let panzer = Panzer::builder().link("examples/my_app").args(options).start();
    panzer.wait_serving();
    let load = BothKinds::start(port);
    let replaced = |slot: u32| format!("worker {slot} (pid *) has taken the place of pid");
    let mark = panzer.mark();
    for slot in [0, 1] {
        panzer.wait_for_line_after(mark, &replaced(slot), SOON);
    }
    let seen = load.stop();
    assert_eq!(seen.dropped(), 0);
    panzer.stop();
}

#[test]
fn whoever_uses_much_memory_is_replaced() {
    let panzer = start(&["-w", "2", "--max-memory", "48M"]);
    let before = panzer.workers();
    tell(&panzer, 0, "use memory");
    wait_replaced(&panzer, &before, "used * MiB of memory (--max-memory 48 MiB)");
    panzer.stop();
}

#[test]
fn memory_of_what_a_worker_has_started_counts() {
    let panzer = start(&["-w", "2", "--max-memory", "48M"]);
    let before = panzer.workers();
    tell(&panzer, 0, "have a child that does");
    wait_replaced(&panzer, &before, "used * MiB of memory (--max-memory 48 MiB)");
    panzer.stop();
}

#[test]
fn whoever_has_served_enough_requests_is_replaced() {
    let panzer = start(&["-w", "2", "--max-requests", "1000"]);
    let before = panzer.workers();
    tell(&panzer, 0, "X_PANZER_REQUESTS=799");
    eventually(SOON, "it is known", || panzer.status().serving().workers[0].rest.contains("799 requests"));
    tell(&panzer, 0, "X_PANZER_REQUESTS=1000");
    wait_replaced(&panzer, &before, "served 1000 requests (--max-requests 1000)");
    panzer.stop();
}

#[test]
fn a_replacement_that_fails_is_told_of_and_the_old_worker_serves_on() {
    let panzer = start(&["-w", "2", "--max-requests", "10", "--delay-max", "1s"]);
    let before = panzer.workers();
    fs::write(panzer.path("broken"), "").unwrap();
    panzer.allow_line("the replacement of worker 0 (pid *, generation 1) exited with code 3*; the old one serves on");
    tell(&panzer, 0, "X_PANZER_REQUESTS=10");
    for _ in 0..2 {
        panzer.wait_for_line_after(panzer.mark(), "the old one serves on, next try in", SOON);
    }
    assert_eq!(panzer.workers(), before);
    fs::remove_file(panzer.path("broken")).unwrap();
    panzer.wait_for_line(&format!("has taken the place of pid {}", before[0]), SOON);
    assert_eq!(panzer.workers()[1], before[1]);
    panzer.stop();
}

#[test]
fn a_replacement_that_is_starting_gives_way_to_a_reload() {
    let panzer = start(&["-w", "2", "--max-requests", "10", "--bake", "100ms"]);
    let before = panzer.workers();
    fs::write(panzer.path("slow"), "").unwrap();
    tell(&panzer, 0, "X_PANZER_REQUESTS=10");
    panzer.wait_for_line("served 10 requests (--max-requests 10); replacing it", SOON);
    let monitor = panzer.status().serving().monitor.unwrap();
    let children = || fs::read_to_string(format!("/proc/{monitor}/task/{monitor}/children")).unwrap();
    eventually(SOON, "the replacement has a process", || children().split_whitespace().count() == 3);
    // The reload does not serve yet, so that what was begun is ended for it.
    panzer.signal(Signal::SIGUSR1);
    eventually(SOON, "the replacement has ended", || children().split_whitespace().count() == 2);
    assert_eq!(panzer.workers()[..2], before[..]);
    fs::remove_file(panzer.path("slow")).unwrap();
    panzer.wait_for_line("reload done: generation 2 serves", SOON);
    assert!(!panzer.lines().iter().any(|line| line.contains("has taken the place")));
    panzer.wait_drained(1);
    panzer.stop();
}

#[test]
fn a_stop_ends_a_replacement_that_is_starting() {
    let panzer = start(&["-w", "1", "--max-requests", "10"]);
    fs::write(panzer.path("slow"), "").unwrap();
    tell(&panzer, 0, "X_PANZER_REQUESTS=10");
    panzer.wait_for_line("served 10 requests (--max-requests 10); replacing it", SOON);
    // Nobody is left behind, which the harness checks.
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn a_worker_that_dies_before_its_replacement_is_ready_is_replaced_by_it() {
    let panzer = start(&["-w", "1", "--max-requests", "10"]);
    let before = panzer.workers();
    fs::write(panzer.path("slow"), "").unwrap();
    tell(&panzer, 0, "X_PANZER_REQUESTS=10");
    panzer.wait_for_line("served 10 requests (--max-requests 10); replacing it", SOON);
    panzer.allow_line("worker 0 (pid *, generation 1) was killed by SIGKILL; respawning it");
    kill(Pid::from_raw(before[0]), Signal::SIGKILL).unwrap();
    fs::remove_file(panzer.path("slow")).unwrap();
    eventually(SOON, "another serves", || {
        let worker = panzer.status().serving().workers[0].clone();
        worker.phase == "ready" && worker.pid != Some(before[0])
    });
    panzer.stop();
}

#[test]
fn limits_change_with_the_configuration_and_hold_over_a_restart_in_place() {
    let options = "workers: 2\nhealthy-after: 100ms\n";
    let panzer = configured(options).executable("limited", PROGRAM).arg("./limited").start();
    panzer.wait_serving();
    let before = panzer.workers();
    tell(&panzer, 0, "X_PANZER_REQUESTS=500");
    eventually(SOON, "it is known", || panzer.status().serving().workers[0].rest.contains("500 requests"));
    assert!(run(&panzer, &["restart"]).status.success());
    assert_eq!(panzer.workers(), before);
    write(panzer.folder(), &format!("{options}max-requests: 500\n"));
    hang_up(&panzer, "configuration read again");
    wait_replaced(&panzer, &before, "served 500 requests (--max-requests 500)");
    let metrics = text(&run(&panzer, &["metrics"]).stdout);
    assert!(metrics.contains("panzer_recycled_total{reason=\"requests\"} 1\n"), "{metrics}");
    panzer.stop();
}
