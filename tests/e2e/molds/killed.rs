//! kill -9 of molds, workers and monitors, at whatever moment they are in.

use super::*;
use crate::support::{descendants, kill_exactly};

/// Kills one of panzer's processes after the other, also those that have just been forked, with reloads in between.
fn kill_many(victims: fn(&str) -> bool, rounds: usize) {
    let port = free_port();
    let panzer = serving(&mold("good"), port, 4).args(["--delay", "10ms", "--delay-max", "100ms"]).start();
    panzer.wait_serving();
    for line in [
        "was killed by SIGKILL",
        "ended and left processes behind; stopping them",
        "has not stopped yet; sent it ",
        "is still starting; the next reload follows it",
        "Traceback (most recent call last):",
        "  File ",
        "    ",
        "BrokenPipeError",
        "ConnectionResetError",
    ] {
        panzer.allow_line(line);
    }
    for round in 0..rounds {
        if round % 10 == 9 {
            panzer.signal(Signal::SIGUSR1);
        }
        let name = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let all = descendants(panzer.pid());
        let all: Vec<_> = all.iter().filter(|it| it.pid != panzer.pid() && victims(&name(it.pid))).collect();
        if let Some(victim) = all.get(round * 7 % all.len().max(1)) {
            kill_exactly(victim);
        }
    }
    eventually(SOON, "one generation serves, whole, with its mold", || {
        let status = panzer.status();
        let [only] = &status.generations[..] else { return false };
        let ready = only.workers.iter().filter(|worker| worker.phase == "ready").count();
        ready == 4 && only.mold.as_ref().is_some_and(|mold| mold.phase == "ready")
    });
    let status = panzer.status();
    let serving = status.serving();
    // The monitor's children are the mold and the workers, and nobody else.
    let monitor = serving.monitor.unwrap();
    let known: Vec<i32> = serving.pids().into_iter().chain([serving.mold()]).collect();
    eventually(SOON, "nobody is left whom the monitor does not know", || {
        let children = fs::read_to_string(format!("/proc/{monitor}/task/{monitor}/children")).unwrap();
        children.split_ascii_whitespace().all(|pid| known.contains(&pid.parse().unwrap()))
    });
    eventually(SOON, "it answers", || get(port, "/").is_ok_and(|answer| answer.text() == "good"));
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn molds_and_workers() {
    kill_many(|name| name.contains("app"), 150);
}

#[test]
fn monitors_as_well() {
    kill_many(|name| name.contains("app") || name.contains("monitor"), 60);
}
