//! Reloads that go share by share.

use std::fs;

use crate::control::{run, text};
use crate::faults::SOON;
use crate::support::{Panzer, Status, eventually, free_port, require};
use crate::zero_loss::START;
use crate::zero_loss::clients::BothKinds;

/// What all generations together have at one moment: ready, and alive.
fn counts(status: &Status) -> (usize, usize) {
    let workers = || status.generations.iter().flat_map(|generation| &generation.workers);
    (
        workers().filter(|worker| worker.phase == "ready").count(),
        workers().filter(|worker| worker.pid.is_some()).count(),
    )
}

/// Looks on until `done`. Returns the fewest that were ready and the most that were alive.
fn watch(panzer: &Panzer, what: &str, done: impl Fn(&Status) -> bool) -> (usize, usize) {
    let mut seen = (usize::MAX, 0);
    let mut last = None;
    eventually(START, what, || {
        let status = panzer.status();
        let (ready, alive) = counts(&status);
        // Two monitors answer for one status, each when it comes to it: what is so in one status alone was perhaps never so.
        let (before, then) = last.replace((ready, alive)).unwrap_or((ready, alive));
        seen = (seen.0.min(ready.max(before)), seen.1.max(alive.min(then)));
        done(&status)
    });
    seen
}

fn serves(status: &Status, generation: u32, workers: usize) -> bool {
    let [only] = &status.generations[..] else { return false };
    (only.number, only.standing.as_str()) == (generation, "serving")
        && only.workers.iter().filter(|worker| worker.phase == "ready").count() == workers
}

#[test]
pub fn one_by_one_under_load_there_is_never_one_too_few_nor_two_too_many() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let arguments = ["-w", "4", "--surge", "1", "--bake", "200ms", "-l", &listen, "./my_app"];
    let panzer = Panzer::builder().link("examples/my_app").args(arguments).start();
    panzer.wait_serving();
    let load = BothKinds::start(port);
    let reload = std::thread::scope(|both| {
        let reload = both.spawn(|| run(&panzer, &["reload"]));
        let (fewest, most) = watch(&panzer, "generation 2 serves", |status| serves(status, 2, 4));
        assert_eq!((fewest, most), (4, 5));
        reload.join().unwrap()
    });
    assert!(reload.status.success(), "{}", text(&reload.stderr));
    assert!(text(&reload.stdout).contains("generation 2: 3 of 4 ready"), "{}", text(&reload.stdout));
    let seen = load.stop();
    seen.print("my_app: one by one");
    assert_eq!(seen.dropped(), 0);
    assert_eq!(panzer.stop().code(), Some(0));
}

/// Its third worker fails: two of the old ones have made room by then.
#[test]
pub fn a_release_that_fails_on_the_way_gives_back_what_it_has() {
    let port = free_port();
    let good = "#!/usr/bin/env python3
import os, socket, sys
if os.path.exists('bad') and os.environ['PANZER_WORKER_ID'] == '2' and os.environ['PANZER_GENERATION'] != '1':
    sys.exit(7)
listener = socket.socket(fileno=3)
while True:
    connection, _ = listener.accept()
    connection.recv(65536)
    connection.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok')
    connection.close()
";
    let listen = format!("127.0.0.1:{port}");
    let builder = Panzer::builder().executable("app", good).file("bad", "");
    let panzer = builder.args(["-w", "4", "--surge", "25%", "--bake", "100ms", "-l", &listen, "./app"]).start();
    panzer.allow_line("reload failed: generation 2: worker 2 exited with code 7; generation 1 serves on");
    panzer.wait_serving();
    let refused = std::thread::scope(|both| {
        let reload = both.spawn(|| run(&panzer, &["reload"]));
        watch(&panzer, "generation 2 is starting", |status| status.generation(2).is_some());
        let (fewest, most) = watch(&panzer, "generation 1 serves again", |status| serves(status, 1, 4));
        assert!(fewest >= 4 && most <= 5, "from {fewest} ready to {most} alive");
        reload.join().unwrap()
    });
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("worker 2 exited with code 7"), "{}", text(&refused.stderr));
    fs::remove_file(panzer.path("bad")).unwrap();
    let done = run(&panzer, &["reload"]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    eventually(SOON, "generation 3 serves alone", || serves(&panzer.status(), 3, 4));
    assert_eq!(panzer.stop().code(), Some(0));
}
