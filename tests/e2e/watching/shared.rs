//! The same on ports that workers bind themselves and share.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::*;
use crate::support::eventually;

/// Defined for every worker: how it binds, and what it says when it first could accept.
const BINDS: &str = "#!/usr/bin/env python3
import os, select, signal, socket, sys, threading, time
def note():
    with open('first', 'a') as notes:
        notes.write(f'{time.time()}\\n')
def bind():
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(('127.0.0.1', int(sys.argv[1])))
    return listener
";

fn sharing(workers: u32, options: &[&str], script: &str) -> Builder {
    let builder = Panzer::builder().executable("app", &format!("{BINDS}{script}"));
    builder.args(["-w", &workers.to_string()]).args(options).args(["--", "./app", &free_port().to_string()])
}

/// At a first start it must be seen by order, in a reload because the serving ones were.
#[track_caller]
fn is_seen_in_time(what: &str, script: &str) {
    if !require("python3") {
        return;
    }
    for options in [&["--bake", "0s", "--ready", "accept"][..], &["--bake", "0s"]] {
        let panzer = sharing(2, options, script).start();
        if options.contains(&"accept") {
            assert_seen(&panzer, "panzer: generation 1 serves: 2 workers ready in ", 2, what);
        }
        eventually(SOON, "both could accept", || last_first(&panzer, 2).is_some());
        fs::remove_file(panzer.path("first")).unwrap();
        assert_eq!(panzer.reload_and_wait(), Ok(2));
        assert_seen(&panzer, "panzer: reload done: generation 2 serves", 2, what);
        panzer.stop();
    }
}

#[test]
fn long_before_it_binds() {
    let script = "time.sleep(1.5)\nlistener = bind()\nlistener.listen()\nnote()\nlistener.accept()\ntime.sleep(1000)\n";
    is_seen_in_time("sleeps, then binds", script);
}

#[test]
fn long_before_it_listens() {
    let script = "listener = bind()\ntime.sleep(1.5)\nlistener.listen()\nnote()\nselect.select([listener], [], [])\n";
    is_seen_in_time("binds, sleeps, then listens", script);
}

#[test]
fn long_before_it_accepts() {
    let script = "listener = bind()
listener.listen()
pollers = select.epoll()
pollers.register(listener, select.EPOLLIN)
time.sleep(1.5)
note()
pollers.poll()
";
    is_seen_in_time("listens, sleeps, then waits in epoll", script);
}

#[test]
fn in_poll_of_a_thread_of_a_child() {
    let script = "signal.signal(signal.SIGTERM, lambda *_: (os.kill(child, signal.SIGKILL), sys.exit()))
child = os.fork()
if child == 0:
    listener = bind()
    listener.listen()
    def serve():
        time.sleep(1.5)
        poller = select.poll()
        poller.register(listener, select.POLLIN)
        note()
        poller.poll()
    threading.Thread(target=serve).start()
    time.sleep(1000)
os.waitpid(child, 0)
";
    is_seen_in_time("a thread of a child", script);
}

const SLOW: &str = "listener = bind()
listener.listen()
time.sleep(2)
note()
listener.accept()
";

#[test]
fn at_a_first_start_whoever_listens_within_the_bake_is_waited_for() {
    if !require("python3") {
        return;
    }
    let panzer = sharing(2, &[], SLOW).start();
    assert_seen(&panzer, "panzer: generation 1 serves: 2 workers ready in ", 2, "listens within the bake");
    panzer.stop();
}

#[test]
fn what_does_not_listen_is_taken_as_alive() {
    if !require("python3") {
        return;
    }
    // A fixed port to connect from is no listener.
    let panzer = sharing(1, &["--bake", "300ms"], "outgoing = bind()\nnote()\ntime.sleep(1000)\n").start();
    panzer.wait_serving();
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.stop();
}

#[test]
fn a_release_that_no_longer_accepts_has_failed() {
    if !require("python3") {
        return;
    }
    let panzer = sharing(1, &["--ready-timeout", "3s"], SLOW).start();
    panzer.wait_serving();
    let replacement = format!("{BINDS}listener = bind()\nlistener.listen()\ntime.sleep(1000)\n");
    fs::write(panzer.path("new"), replacement).unwrap();
    fs::set_permissions(panzer.path("new"), fs::metadata(panzer.path("app")).unwrap().permissions()).unwrap();
    fs::rename(panzer.path("app"), panzer.path("good")).unwrap();
    fs::rename(panzer.path("new"), panzer.path("app")).unwrap();
    panzer.expect_line("error: reload failed: generation 2: ");
    let line = panzer.reload_and_wait().unwrap_err();
    assert!(line.contains("1 of 1 worker was not ready within 3s (worker 0): not seen accepting"), "{line}");
    // What the serving ones have shown still holds.
    fs::rename(panzer.path("good"), panzer.path("app")).unwrap();
    fs::remove_file(panzer.path("first")).unwrap();
    panzer.signal(Signal::SIGUSR1);
    assert_seen(&panzer, "panzer: reload: generation 3 is ready", 1, "after a rollback");
    panzer.stop();
}

#[test]
fn whoever_takes_its_place_must_be_seen_as_well() {
    if !require("python3") {
        return;
    }
    let panzer = sharing(1, &["--bake", "300ms"], SLOW).start();
    panzer.wait_serving();
    panzer.expect_line("warning: worker 0 * was killed by SIGKILL; respawning it");
    panzer.expect_line("error: the monitor of generation 1 was killed by SIGKILL; starting another");
    for victim in ["worker", "monitor"] {
        let serving = panzer.status().serving().clone();
        let first = serving.workers[0].pid.unwrap();
        fs::remove_file(panzer.path("first")).unwrap();
        let pid = if victim == "worker" { first } else { serving.monitor.unwrap() };
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        eventually(SOON, "another worker is ready", || {
            let generations = panzer.status();
            let worker = generations.serving().workers.first().cloned();
            let ready = worker.is_some_and(|one| one.pid.is_some_and(|pid| pid != first) && one.phase == "ready");
            assert!(!ready || last_first(&panzer, 1).is_some(), "{victim}: ready before it could accept");
            ready
        });
    }
    panzer.stop();
}
