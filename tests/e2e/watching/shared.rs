//! The same on ports that workers bind themselves and share.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::*;

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
fn by_order_and_not(what: &str, script: &str) -> [Watched; 2] {
    let watched = |how: &str, options: &[&str], at_first_start| Watched {
        what: format!("{what}, --ready {how}"),
        builder: sharing(2, options, script),
        at_first_start,
    };
    [watched("accept", &["--bake", "0s", "--ready", "accept"], true), watched("auto", &["--bake", "0s"], false)]
}

/// In each way to wait, after `begin`.
fn in_each_way_after(what: &str, begin: &str) {
    if require("python3") {
        let all =
            WAYS.map(|(way, script)| by_order_and_not(&format!("{what}, then {way}"), &format!("{begin}{script}")));
        each_is_seen_in_time(all.into_iter().flatten());
    }
}

#[test]
fn in_each_way_long_before_it_binds() {
    in_each_way_after("sleeps, binds", "time.sleep(3)\nlistener = bind()\nlistener.listen()\n");
}

#[test]
fn in_each_way_long_before_it_listens() {
    in_each_way_after("binds, sleeps, listens", "listener = bind()\ntime.sleep(3)\nlistener.listen()\n");
}

#[test]
fn in_each_way_long_before_it_accepts() {
    in_each_way_after("listens, sleeps", "listener = bind()\nlistener.listen()\ntime.sleep(3)\n");
}

#[test]
fn in_a_set_for_long_and_in_a_thread_of_a_child() {
    if require("python3") {
        let in_set = format!("listener = bind()\nlistener.listen()\n{}", in_its_set_for("3"));
        let all =
            [by_order_and_not("epoll, in its set for long", &in_set), by_order_and_not("a thread of a child", CHILD)];
        each_is_seen_in_time(all.into_iter().flatten());
    }
}

const CHILD: &str = "signal.signal(signal.SIGTERM, lambda *_: (os.kill(child, signal.SIGKILL), sys.exit()))
child = os.fork()
if child == 0:
    listener = bind()
    listener.listen()
    def serve():
        time.sleep(3)
        poller = select.poll()
        poller.register(listener, select.POLLIN)
        note()
        poller.poll()
    threading.Thread(target=serve).start()
    time.sleep(1000)
os.waitpid(child, 0)
";

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
fn what_replaces_workers_that_are_still_on_their_way_must_accept_as_the_first_of_them_do() {
    if !require("python3") {
        return;
    }
    let first = "if os.environ['PANZER_WORKER_ID'] != '0': time.sleep(1000)
listener = bind()
listener.listen()
note()
listener.accept()
";
    let panzer = sharing(2, &["--bake", "0s"], first).start();
    panzer.wait_serving();
    eventually(SOON, "one of them could accept", || last_first(&panzer, 1).is_some());
    eventually(SOON, "it is accepting", || panzer.status().serving().workers[0].phase == "ready");
    replace_by(&panzer, &format!("{BINDS}{SLOW}"));
    fs::remove_file(panzer.path("first")).unwrap();
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    assert_seen(&panzer, "panzer: reload done: generation 2 serves", 2, "beside one that is on its way");
    panzer.stop();
}

#[test]
fn a_release_that_no_longer_accepts_has_failed() {
    if !require("python3") {
        return;
    }
    let panzer = sharing(1, &["--ready-timeout", "8s"], SLOW).start();
    panzer.wait_serving();
    crate::support::copy_executable(panzer.path("app"), panzer.path("good"));
    replace_by(&panzer, &format!("{BINDS}listener = bind()\nlistener.listen()\ntime.sleep(1000)\n"));
    panzer.expect_line("error: reload failed: generation 2: ");
    let line = panzer.reload_and_wait().unwrap_err();
    assert!(line.contains("1 of 1 worker was not ready within 8s (worker 0): not seen accepting"), "{line}");
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
    // Within its bake, python has bound on the busiest machine.
    let panzer = sharing(1, &["--bake", "20s"], SLOW).start();
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
