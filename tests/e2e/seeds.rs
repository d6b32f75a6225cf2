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

/// Exits with what is in the file `exit-ID`, as soon as that is there; noted before, as is a TERM.
const EXITS: &str = "#!/bin/sh
trap 'echo $PANZER_WORKER_ID >> told; exit 0' TERM
echo started >> starts-$PANZER_WORKER_ID
while [ ! -e exit-$PANZER_WORKER_ID ]; do sleep 0.02; done
exit $(cat exit-$PANZER_WORKER_ID)
";

fn serverengines_workers(options: &[&str]) -> Panzer {
    let arguments = ["-w", "3", "--bake", "50ms", "--delay", "10ms", "--signals", "serverengine"];
    let panzer = Panzer::builder().executable("app", EXITS).args(arguments).args(options).arg("./app").start();
    panzer.wait_serving();
    eventually(SOON, "all have begun", || (0..3).all(|worker| starts(&panzer, worker) == 1));
    panzer
}

fn starts(panzer: &Panzer, worker: u32) -> usize {
    fs::read_to_string(panzer.path(&format!("starts-{worker}"))).map_or(0, |text| text.lines().count())
}

fn exit(panzer: &Panzer, worker: u32, code: i32) {
    let new = panzer.path("new");
    fs::write(&new, code.to_string()).unwrap();
    fs::rename(new, panzer.path(&format!("exit-{worker}"))).unwrap();
}

/// "unrecoverable_exit_codes: [..] … handle worker processes, which exits with code included in this value, as
/// unrecoverable (not to restart)".
#[test]
fn serverengines_unrecoverable_exits_are_not_restarted() {
    let panzer = serverengines_workers(&["--final-exit-codes", "15,42"]);
    panzer.expect_line("warning: worker 1 (pid *, generation 1) exited with code 42, which is final");
    panzer.expect_line("warning: worker 0 (pid *, generation 1) exited with code 1; respawning it");
    exit(&panzer, 1, 42);
    panzer.wait_for_line("exited with code 42, which is final; it is not respawned", SOON);
    // Any other code is an accident as ever.
    exit(&panzer, 0, 1);
    panzer.wait_for_line("exited with code 1; respawning it", SOON);
    fs::remove_file(panzer.path("exit-0")).unwrap();
    eventually(SOON, "it has begun again", || starts(&panzer, 0) > 1);
    assert_eq!((starts(&panzer, 1), starts(&panzer, 2)), (1, 1));
    // Nobody is left, so the server ends as well.
    panzer.expect_line("warning: worker * (pid *, generation 1) exited with code 15, which is final");
    panzer.expect_line("error: every worker of generation 1 has ended for good; stopping with exit code 42");
    exit(&panzer, 0, 15);
    exit(&panzer, 2, 15);
    assert_eq!(panzer.wait_exit().code(), Some(42));
}

/// "stop_immediately_at_unrecoverable_exit: true … stop server immediately if a worker exits with unrecoverable exit
/// code".
#[test]
fn serverengine_stops_at_once_at_an_unrecoverable_exit() {
    let panzer = serverengines_workers(&["--final-exit-codes", "15,42", "--final-exit-stop"]);
    panzer.expect_line("warning: worker 1 (pid *, generation 1) exited with code 15, which is final");
    panzer.expect_line("error: worker 1 of generation 1 has ended for good; stopping with exit code 15");
    panzer.allow_line("ended and left processes behind; stopping them");
    let told = panzer.path("told");
    exit(&panzer, 1, 15);
    panzer.wait_for_end();
    let mut told: Vec<String> = fs::read_to_string(told).unwrap().lines().map(str::to_owned).collect();
    told.sort();
    assert_eq!(told, ["0", "2"], "the others are stopped gracefully");
    assert_eq!(panzer.wait_exit().code(), Some(15));
}
