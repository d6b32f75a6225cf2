//! `--refork`: a warm worker becomes the mold, and the others are replaced by its forks.

use super::*;
use crate::clients::ROOT;

/// Counts what it has served, and answers with how much was served before it was forked. `more` is in its class.
fn program(more: &str) -> String {
    let text = r#"#!/usr/bin/env python3
import os, socket, sys
sys.path.insert(0, "ROOT/clients/python")
import panzer

open("loads", "a").write(".")
cache = []

class Worker(panzer.Worker):
    def run(self):
        listener = panzer.listeners()[0]
        listener.settimeout(0.05)
        warm = len(cache)
        while not self.stopping:
            try:
                connection, _ = listener.accept()
            except (TimeoutError, BlockingIOError):
                continue
            connection.settimeout(5)
            connection.recv(65536)
            cache.append(0)
            text = b"%d" % warm
            connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
            connection.close()
            self.served(len(cache))
        # Many servers do.
        listener.close()
MORE
panzer.run(Worker)
"#;
    text.replace("ROOT", ROOT).replace("MORE", more)
}

fn start_with(more: &str, options: &[&str]) -> (Panzer, u16) {
    start_on("", more, options)
}

fn start_on(own: &str, more: &str, options: &[&str]) -> (Panzer, u16) {
    let port = free_port();
    let builder = Panzer::builder().executable("app", &program(more)).env("PANZER_BAKE", "50ms");
    let builder = builder.args(["--preload", "-w", "2", "--healthy-after", "100ms"]).args(options);
    let panzer = builder.args(["-l", &format!("127.0.0.1:{port}{own}"), "./app"]).start();
    for line in [
        "and is to become the mold (--refork); replacing it",
        "has taken the place of pid",
        "is the mold of generation",
    ] {
        panzer.allow_line(line);
    }
    panzer.wait_serving();
    (panzer, port)
}

/// Asks until the mold is one of these processes, and both workers are its forks: with the one that stands in for it, three
/// take the place of another.
fn wait_for_mold_among(panzer: &Panzer, port: u16, workers: &[i32]) -> i32 {
    eventually_some(SOON, "a worker is the mold", || {
        get(port, "/").unwrap();
        let status = panzer.status();
        let mold = status.serving().mold.as_ref()?.pid?;
        let replaced = panzer.lines().iter().filter(|line| line.contains("has taken the place of pid")).count();
        (workers.contains(&mold) && replaced > 0 && replaced.is_multiple_of(3)).then_some(mold)
    })
}

#[test]
fn a_warm_worker_becomes_the_mold_and_no_request_is_lost() {
    let (panzer, port) = start_with("", &["--refork", "3,366d"]);
    let (workers, first) = (panzer.workers(), panzer.status().serving().mold());
    wait_for_mold_among(&panzer, port, &workers);
    wait_gone(&[first]);
    eventually(SOON, "all have what was cached", || {
        (0..8).all(|_| get(port, "/").unwrap().text().parse::<u32>().unwrap() >= 3)
    });
    assert_eq!(loads(&panzer), 1);
    let metrics = || text(&run(&panzer, &["metrics"]).stdout);
    eventually(SOON, "the replacements are counted", || {
        metrics().contains("panzer_recycled_total{reason=\"refork\"} 3\n")
    });
    // A respawn, a restart in place, a reload and a stop are as ever.
    panzer.expect_line("warning: worker * was killed by SIGKILL; respawning it");
    let workers = wait_workers(&panzer, 2, &workers);
    kill_9(workers[0]);
    wait_gone(&workers[..1]);
    wait_workers(&panzer, 2, &workers[..1]);
    assert!(run(&panzer, &["restart"]).status.success());
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    assert_eq!(get(port, "/").unwrap().text(), "0");
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn it_happens_again_and_again_also_with_a_queue_for_each_worker() {
    let (panzer, port) = start_on(",per-worker", "", &["--refork", "300ms", "--log", "log"]);
    let mut molds = vec![panzer.status().serving().mold()];
    eventually(SOON, "four molds, one after the other", || {
        get(port, "/").unwrap();
        let mold = panzer.status().serving().mold.as_ref().and_then(|mold| mold.pid);
        molds.extend(mold.filter(|mold| !molds.contains(mold)));
        molds.len() >= 4
    });
    assert_eq!(loads(&panzer), 1);
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn a_worker_that_cannot_become_the_mold_ends_and_the_mold_stays() {
    for (more, why) in [
        // Its traceback would come in the middle of panzer's lines.
        (
            "    def become_mold(self):\n        sys.stderr = open(os.devnull, 'w')\n        raise OSError('no way')",
            "OSError: no way",
        ),
        ("    def become_mold(self):\n        os._exit(3)", "it exited with code 3"),
    ] {
        let (panzer, port) = start_with(more, &["--refork", "2"]);
        panzer
            .expect_line(&format!("did not become the mold: {why}; the mold stays, and --refork rests until another"));
        let mold = panzer.status().serving().mold();
        eventually(SOON, "it is said", || {
            get(port, "/").unwrap();
            panzer.lines().iter().any(|line| line.contains("did not become the mold"))
        });
        wait_workers(&panzer, 2, &[]);
        assert_eq!(panzer.status().serving().mold(), mold);
        assert_answers(port, "0");
        panzer.stop();
    }
}

#[test]
fn a_mold_that_was_a_worker_and_breaks_is_followed_by_one_that_is_loaded() {
    let (panzer, port) = start_with("", &["--refork", "3,366d"]);
    panzer.expect_line("warning: the mold was killed by SIGKILL (pid *, generation 1); loading another");
    let mold = wait_for_mold_among(&panzer, port, &panzer.workers());
    let workers = wait_workers(&panzer, 2, &[]);
    kill_9(mold);
    eventually(SOON, "another is loaded", || loads(&panzer) == 2);
    assert_eq!(panzer.workers(), workers, "the workers do not notice");
    // It is cold, and reforking begins anew.
    wait_for_mold_among(&panzer, port, &workers);
    panzer.stop();
}

#[test]
fn a_client_that_cannot_is_told_of() {
    let port = free_port();
    let panzer = serving(&mold("good"), port, 1).args(["--refork", "100ms", "--healthy-after", "100ms"]);
    let panzer =
        panzer.expect_line("warning: --refork does nothing: the program's client does not say 'READY refork'").start();
    panzer.wait_serving();
    assert_answers(port, "good");
    panzer.stop();
    let panzer = Panzer::builder().args(["--refork", "5", "sleep"]);
    let panzer = panzer.expect_line("panzer: --refork is for a program that is loaded once: add --preload").start();
    assert_eq!(panzer.wait_exit().code(), Some(2));
}
