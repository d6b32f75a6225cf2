//! `panzerctl signal`: to the serving workers, and to nobody else.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::control::{run, serving_sleeper, text};
use crate::faults::SOON;
use crate::support::{Panzer, eventually};

/// Notes each HUP in a file of its own.
const NOTES_HUP: &str = "#!/bin/sh
trap 'echo got >> hup-$PANZER_WORKER_ID' HUP
: > ready-$PANZER_WORKER_ID
while :; do sleep 0.05; done
";

fn count(panzer: &Panzer, worker: u32) -> usize {
    fs::read_to_string(panzer.path(&format!("hup-{worker}"))).unwrap_or_default().lines().count()
}

#[test]
fn a_signal_reaches_all_serving_workers_or_the_one_that_is_named() {
    let builder = Panzer::builder().executable("app", NOTES_HUP);
    let panzer = builder.args(["-w", "2", "--bake", "100ms", "--stop", "KILL", "./app"]).start();
    panzer.wait_serving();
    // A shell that is killed may have a sleep beside it.
    panzer.allow_line("ended and left processes behind; stopping them");
    eventually(SOON, "they listen", || (0..2).all(|worker| panzer.path(&format!("ready-{worker}")).exists()));
    let all = run(&panzer, &["signal", "hup"]);
    assert_eq!(text(&all.stdout), "SIGHUP sent to 2 workers of generation 1\n", "{}", text(&all.stderr));
    eventually(SOON, "both got it", || (count(&panzer, 0), count(&panzer, 1)) == (1, 1));
    let one = run(&panzer, &["signal", "1", "--worker", "1"]);
    assert_eq!(text(&one.stdout), "SIGHUP sent to 1 worker of generation 1\n", "{}", text(&one.stderr));
    eventually(SOON, "one got it", || count(&panzer, 1) == 2);
    assert_eq!(count(&panzer, 0), 1);
}

#[test]
fn a_signal_or_a_worker_that_is_not_there_is_an_error() {
    let panzer = serving_sleeper();
    for bad in ["FLY", "0", "65", "-1", ""] {
        let refused = run(&panzer, &["signal", "--", bad]);
        let why = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{bad}: {why}");
        assert!(why.contains("there is no signal") && why.contains("HUP INT QUIT"), "{bad}: {why}");
    }
    let refused = run(&panzer, &["signal", "HUP", "--worker", "2"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("there is no worker 2: they are numbered from 0 to 1"));
    assert_eq!(panzer.workers().len(), 2);
}

#[test]
fn a_monitor_that_is_stopped_is_not_waited_for() {
    let panzer = serving_sleeper();
    let monitor = Pid::from_raw(panzer.status().serving().monitor.unwrap());
    kill(monitor, Signal::SIGSTOP).unwrap();
    let refused = run(&panzer, &["signal", "CONT"]);
    kill(monitor, Signal::SIGCONT).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("no answer of the monitor within 1s"), "{}", text(&refused.stderr));
    let sent = run(&panzer, &["signal", "CONT"]);
    assert_eq!(text(&sent.stdout), "SIGCONT sent to 2 workers of generation 1\n", "{}", text(&sent.stderr));
}
