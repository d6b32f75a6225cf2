//! What the READMEs of the programs promise that panzer grew out of, with panzer in their place.

use std::fs;

use nix::sys::signal::Signal;

use crate::faults::{SOON, kill_9, wait_gone};
use crate::support::{Panzer, descendants, eventually};

/// Notes its TERM, and then takes as long as there is a file named `busy`.
const BUSY: &str = "#!/bin/sh
trap 'echo $PANZER_GENERATION >> told; while [ -e busy ]; do sleep 0.02; done; exit 0' TERM
: > ready-$PANZER_GENERATION-$PANZER_WORKER_ID
while :; do sleep 0.02; done
";

#[test]
fn kamisama_runs_17_instances() {
    let panzer = Panzer::start(["-w", "17", "--bake", "50ms", "--signals", "kamisama", "--", "sleep", "1000"]);
    panzer.wait_serving();
    assert_eq!(descendants(panzer.pid()).len(), 1 + 17);
    assert_eq!(panzer.stop().code(), Some(0));
}

/// "respawn_limit … if there are more than that many respawns in respawn_interval seconds, Kamisama will die".
#[test]
fn kamisama_dies_when_the_respawn_limit_is_reached() {
    let arguments = ["-w", "2", "--signals", "kamisama", "--respawn-limit", "3/60s", "--delay", "10ms", "--", "false"];
    let panzer = Panzer::builder().args(arguments).start();
    for line in ["exited with code 1", "more than 3 respawns", "generation 1 keeps failing; stopping everything"] {
        panzer.allow_line(line);
    }
    assert_eq!(panzer.wait_exit().code(), Some(1));
}

#[test]
fn kamisamas_workers_get_term_when_it_is_killed() {
    let arguments = ["-w", "2", "--bake", "50ms", "--signals", "kamisama", "./app"];
    let panzer = Panzer::builder().executable("app", BUSY).args(arguments).start();
    panzer.allow_line("main is gone; stopping the workers of generation 1");
    panzer.allow_line("ended and left processes behind; stopping them");
    panzer.wait_serving();
    eventually(SOON, "they are ready", || (0..2).all(|worker| panzer.path(&format!("ready-1-{worker}")).exists()));
    let workers: Vec<i32> = descendants(panzer.pid()).iter().map(|process| process.pid).collect();
    kill_9(panzer.pid());
    eventually(SOON, "both got TERM", || fs::read_to_string(panzer.path("told")).is_ok_and(|told| told == "1\n1\n"));
    wait_gone(&workers);
    assert_eq!(panzer.wait_exit().code(), None);
}

#[test]
fn kamisamas_ttou_ends_the_oldest() {
    let arguments =
        ["-w", "3", "--bake", "50ms", "--signals", "kamisama", "--on", "USR1=status", "--", "sleep", "1000"];
    let panzer = Panzer::builder().args(arguments).start();
    panzer.wait_serving();
    let slots = || {
        let workers = panzer.status_by(Signal::SIGUSR1).serving().workers.clone();
        workers.iter().filter(|worker| worker.phase == "ready").map(|worker| worker.slot).collect::<Vec<_>>()
    };
    // The first one is replaced, so that another one is the oldest.
    panzer.allow_line("worker 0 (pid *) was killed by SIGKILL");
    kill_9(panzer.status_by(Signal::SIGUSR1).serving().workers[0].pid.unwrap());
    eventually(SOON, "it is replaced", || {
        let workers = panzer.status_by(Signal::SIGUSR1).serving().workers.clone();
        workers[0].phase == "ready" && workers[0].rest.contains("respawned 1x")
    });
    panzer.signal(Signal::SIGTTOU);
    eventually(SOON, "the oldest ends", || slots() == [0, 2]);
    panzer.signal(Signal::SIGTTIN);
    eventually(SOON, "its slot is filled", || slots() == [0, 1, 2]);
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn preforkers_winch_empties_and_ttin_refills() {
    let arguments =
        ["-w", "3", "--bake", "50ms", "--signals", "preforker", "--on", "USR2=status", "--", "sleep", "1000"];
    let panzer = Panzer::builder().args(arguments).start();
    panzer.wait_serving();
    let count = || panzer.status_by(Signal::SIGUSR2).serving().workers.len();
    panzer.signal(Signal::SIGWINCH);
    eventually(SOON, "all have ended", || count() == 0);
    for expected in 1..=3 {
        panzer.signal(Signal::SIGTTIN);
        eventually(SOON, "there is one more", || count() == expected);
    }
    panzer.signal(Signal::SIGQUIT);
    assert_eq!(panzer.wait_exit().code(), Some(0));
}

/// "live restart": a worker that takes minutes to finish neither holds up the new ones nor is made to hurry.
#[test]
fn serverengines_live_restart_lets_the_old_ones_finish() {
    let arguments = ["-w", "1", "--bake", "50ms", "--stop", "TERM/100ms/KILL", "--signals", "serverengine"];
    let panzer = Panzer::builder().executable("app", BUSY).file("busy", "").args(arguments).arg("./app").start();
    panzer.allow_line("ended and left processes behind; stopping them");
    panzer.wait_serving();
    eventually(SOON, "it is ready", || panzer.path("ready-1-0").exists());
    panzer.signal(Signal::SIGINT);
    panzer.wait_for_line("reload done: generation 2 serves*", SOON);
    eventually(SOON, "the old one was told", || panzer.path("told").exists());
    // Far longer than the schedule of a stop, and a reload has come and gone.
    eventually(SOON, "the second is ready", || panzer.path("ready-2-0").exists());
    fs::write(panzer.path("busy-2"), "").unwrap();
    panzer.signal(Signal::SIGUSR1);
    panzer.wait_for_line("reload done: generation 3 serves*", SOON);
    panzer.allow_line("has not stopped yet; sent it SIGKILL");
    panzer.wait_drained(2);
    assert!(descendants(panzer.pid()).iter().any(|process| process.describe().contains("[gen 1]")));
    fs::remove_file(panzer.path("busy")).unwrap();
    panzer.wait_drained(1);
    assert_eq!(panzer.stop().code(), Some(0));
}
