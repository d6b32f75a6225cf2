//! More and fewer workers while panzer runs, over whatever happens meanwhile.

use std::fs;

use nix::sys::signal::Signal;

use crate::control::{run, text};
use crate::faults::{SOON, kill_9, serving_app, wait_started};
use crate::support::{Panzer, eventually, free_port, get, require};
use crate::zero_loss::START;
use crate::zero_loss::clients::BothKinds;

#[track_caller]
fn done(panzer: &Panzer, arguments: &[&str]) -> String {
    let output = run(panzer, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn refused(panzer: &Panzer, arguments: &[&str]) -> String {
    let output = run(panzer, arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    text(&output.stderr)
}

/// The slots of the serving generation whose workers are ready, and nothing else.
fn ready_slots(panzer: &Panzer) -> Vec<u32> {
    let status = panzer.status();
    let workers = &status.serving().workers;
    workers.iter().filter(|worker| worker.phase == "ready").map(|worker| worker.slot).collect()
}

fn wait_slots(panzer: &Panzer, slots: &[u32]) {
    eventually(SOON, &format!("the workers {slots:?} are ready"), || {
        ready_slots(panzer) == slots && panzer.status().serving().workers.len() == slots.len()
    });
}

fn app(workers: u32) -> (Panzer, u16) {
    let port = free_port();
    let panzer = serving_app(port, workers).start();
    wait_started(&panzer, workers);
    (panzer, port)
}

#[test]
pub fn the_workers_that_stay_are_left_alone() {
    let (panzer, _) = app(2);
    let first = panzer.workers();
    assert_eq!(done(&panzer, &["scale", "4"]), "workers kept: 4, before: 2\n");
    wait_slots(&panzer, &[0, 1, 2, 3]);
    assert!(panzer.workers().starts_with(&first));
    assert_eq!(done(&panzer, &["scale", "-1"]), "workers kept: 3, before: 4\n");
    wait_slots(&panzer, &[0, 1, 2]);
    assert_eq!(done(&panzer, &["scale", "1"]), "workers kept: 1, before: 3\n");
    wait_slots(&panzer, &[0]);
    assert_eq!(panzer.workers(), first[..1]);
    assert!(refused(&panzer, &["scale", "-1"]).contains("at least one worker is kept; panzerctl quiet ends them all"));
    assert!(refused(&panzer, &["scale", "0"]).contains("at least one worker is kept"));
    assert!(refused(&panzer, &["scale", "5000"]).contains("more than 4096"));
    for bad in ["x", "+", "1.5", "+-1"] {
        let wrong = run(&panzer, &["scale", bad]);
        assert_eq!(wrong.status.code(), Some(2));
        let why = format!("panzerctl: invalid value '{bad}' for <N|+N|-N>: take 4, +1 or -1\n");
        assert_eq!(text(&wrong.stderr), why);
    }
    assert_eq!(panzer.workers(), first[..1]);
    assert_eq!(panzer.stop().code(), Some(0));
}

/// 40
#[test]
pub fn the_count_holds_over_a_reload_and_the_death_of_the_monitor() {
    let (panzer, port) = app(1);
    done(&panzer, &["scale", "+2"]);
    wait_slots(&panzer, &[0, 1, 2]);
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    wait_slots(&panzer, &[0, 1, 2]);
    panzer.allow_line("the monitor of generation 2 was killed by SIGKILL; starting another*");
    kill_9(panzer.status().serving().monitor.unwrap());
    wait_slots(&panzer, &[0, 1, 2]);
    assert!(get(port, "/").is_ok());
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
pub fn quiet_ends_all_and_a_reload_or_a_scale_brings_workers_back() {
    let (panzer, port) = app(2);
    assert_eq!(done(&panzer, &["quiet"]), "workers kept: 0, before: 2\n");
    eventually(SOON, "all have ended", || panzer.status().serving().workers.is_empty());
    assert_eq!(run(&panzer, &["status", "--wait-ready", "--timeout", "100ms"]).status.code(), Some(1));
    // Nobody serves, and nobody is refused.
    let waiting = std::thread::spawn(move || get(port, "/"));
    done(&panzer, &["scale", "+1"]);
    wait_slots(&panzer, &[0]);
    assert!(waiting.join().unwrap().is_ok());
    done(&panzer, &["scale", "2"]);
    wait_slots(&panzer, &[0, 1]);
    done(&panzer, &["quiet"]);
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    wait_slots(&panzer, &[0, 1]);
    assert_eq!(panzer.stop().code(), Some(0));
}

/// Slot 2 and those beyond answer their probe only once they are let.
const PROBE: &str = "exec:[ $PANZER_WORKER_ID -lt 2 ] || [ -e let-$PANZER_WORKER_ID ]";

#[test]
pub fn who_waits_for_ready_waits_for_all_that_are_wanted_and_not_for_a_respawn() {
    let builder = Panzer::builder().args(["-w", "2", "--ready", PROBE, "--delay", "10s", "--", "sleep", "1000"]);
    let panzer = builder.start();
    panzer.wait_serving();
    let is_ready = || run(&panzer, &["--timeout", "1s", "status", "--wait-ready"]).status.success();
    assert!(is_ready());
    done(&panzer, &["scale", "4"]);
    fs::write(panzer.path("let-2"), "").unwrap();
    eventually(SOON, "all but one are ready", || ready_slots(&panzer) == [0, 1, 2]);
    let why = refused(&panzer, &["--timeout", "1s", "status", "--wait-ready"]);
    assert_eq!(why, "panzerctl: not ready in time: sleep is not ready: 3 of 4 workers are\n");
    fs::write(panzer.path("let-3"), "").unwrap();
    done(&panzer, &["--timeout", "20s", "status", "--wait-ready"]);
    // From here on one will do.
    panzer.allow_line("was killed by SIGKILL; respawning it");
    fs::remove_file(panzer.path("let-3")).unwrap();
    kill_9(panzer.workers()[3]);
    eventually(SOON, "it is missed", || ready_slots(&panzer) == [0, 1, 2]);
    assert!(is_ready());
    done(&panzer, &["quiet"]);
    assert!(!is_ready());
    done(&panzer, &["scale", "3"]);
    done(&panzer, &["--timeout", "20s", "status", "--wait-ready"]);
    assert_eq!(ready_slots(&panzer), [0, 1, 2]);
    assert_eq!(panzer.stop().code(), Some(0));
}

/// A scale in the middle of a reload goes for both generations.
#[test]
pub fn a_generation_that_is_starting_is_scaled_as_well() {
    let port = free_port();
    let panzer = serving_app(port, 2).env("PANZER_BAKE", "2s").start();
    wait_started(&panzer, 2);
    let mark = panzer.mark();
    panzer.signal(Signal::SIGUSR1);
    panzer.wait_for_line_after(mark, "generation 2 is ready; it must live for 2s", SOON);
    done(&panzer, &["scale", "3"]);
    panzer.wait_for_line_after(mark, "reload done: generation 2 serves*", SOON);
    wait_slots(&panzer, &[0, 1, 2]);
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
pub fn up_and_down_under_load_loses_nothing() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let panzer = Panzer::builder().link("examples/my_app").args(["-w", "2", "-l", &listen, "./my_app"]).start();
    panzer.wait_serving();
    let load = BothKinds::start(port);
    for count in [4_u32, 1, 3, 2] {
        done(&panzer, &["scale", &count.to_string()]);
        wait_slots(&panzer, &(0..count).collect::<Vec<_>>());
    }
    done(&panzer, &["quiet"]);
    eventually(START, "all have ended", || panzer.status().serving().workers.is_empty());
    done(&panzer, &["scale", "2"]);
    wait_slots(&panzer, &[0, 1]);
    let by_then = load.answered();
    eventually(START, "the load is answered again", || load.answered() > by_then + 10);
    let seen = load.stop();
    seen.print("my_app: scaled up and down");
    assert_eq!(seen.dropped(), 0);
    assert_eq!(panzer.stop().code(), Some(0));
}
