//! Slots are filled again: at once, later, or no more.

use super::{SOON, kill_9, serving_app, wait_workers};
use crate::support::{Panzer, eventually, free_port};

#[test]
pub fn after_a_healthy_life_it_is_immediate() {
    let panzer = serving_app(free_port(), 1).args(["--healthy-after", "0s"]).start();
    panzer.wait_serving();
    panzer.expect_line("warning: worker 0 (pid *, generation 1) was killed by SIGKILL; respawning it");
    let before = panzer.workers();
    kill_9(before[0]);
    panzer.wait_for_line("SIGKILL; respawning it", SOON);
    wait_workers(&panzer, 1, &before);
    assert!(!panzer.lines().iter().any(|line| line.contains("respawning it in")));
    panzer.stop();
}

#[test]
pub fn the_first_death_of_a_ready_worker_is_respawned_at_once_and_the_next_one_is_paced() {
    let options = ["--delay", "1h", "--delay-max", "1h", "--healthy-after", "1h"];
    let panzer = serving_app(free_port(), 2).args(options).start();
    panzer.wait_serving();
    panzer.expect_line("warning: worker * (pid *, generation 1) was killed by SIGKILL; respawning it");
    let before = panzer.workers();
    kill_9(before[0]);
    let after = wait_workers(&panzer, 2, &before[..1]);
    assert!(!panzer.lines().iter().any(|line| line.contains("respawning it in")));
    let again = after.iter().find(|pid| !before.contains(pid)).unwrap();
    kill_9(*again);
    panzer.wait_for_line("SIGKILL; respawning it in", SOON);
    panzer.stop();
}

#[test]
pub fn without_a_delay_what_fails_again_and_again_is_paced_all_the_same() {
    for option in ["--delay", "--healthy-after"] {
        let panzer = Panzer::start(["-w", "1", option, "0s", "--bake", "0s", "--", "false"]);
        panzer.expect_line("warning: worker 0 * exited with code 1; respawning it");
        panzer.wait_for_line("respawning it in", SOON);
        panzer.stop();
    }
}

#[test]
pub fn a_crash_loop_is_paced() {
    let panzer = Panzer::start(["-w", "1", "--delay", "50ms", "--delay-max", "200ms", "--", "false"]);
    panzer.expect_line("warning: worker 0 * exited with code 1; respawning it in");
    let delay = |line: &String| {
        let (_, delay) = line.split_once("respawning it in ")?;
        delay.strip_suffix("ms")?.parse::<u64>().ok()
    };
    let mut delays: Vec<u64> = Vec::new();
    eventually(SOON, "it has been respawned six times", || {
        delays = panzer.lines().iter().filter_map(delay).collect();
        delays.len() >= 6
    });
    // At the longest there is jitter of a fifth.
    assert!(delays.windows(2).all(|pair| pair[0].min(160) <= pair[1]), "{delays:?}");
    assert!((40..=60).contains(&delays[0]) && delays.iter().all(|&delay| delay <= 200), "{delays:?}");
    panzer.stop();
}

#[test]
pub fn beyond_the_limit_it_gives_up() {
    let panzer = Panzer::start(["-w", "2", "--delay", "10ms", "--respawn-limit", "3/1m", "--", "false"]);
    panzer.expect_line("warning: worker * exited with code 1; respawning it in");
    panzer.expect_line("error: more than 3 respawns within 1m; giving up");
    panzer.expect_line("error: generation 1 keeps failing; stopping everything");
    assert_eq!(panzer.wait_exit().code(), Some(1));
}

#[test]
pub fn a_first_start_that_fails_goes_on_and_a_reload_mends_it() {
    let panzer = Panzer::builder()
        .executable("app", "#!/bin/sh\nexit 1\n")
        .args(["-w", "1", "--bake", "100ms", "--delay", "1h", "--delay-max", "1h", "./app"])
        .start();
    panzer.expect_line("warning: worker 0 * exited with code 1; respawning it in");
    panzer.wait_for_line("respawning it in", SOON);
    crate::support::write_executable(panzer.path("app"), "#!/bin/sh\nexec sleep 1000\n");
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    wait_workers(&panzer, 1, &[]);
    panzer.stop();
}
