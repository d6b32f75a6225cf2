//! The deterministic simulation: main's state and the monitors' under a virtual clock, with scripted processes, an
//! operator, and bad luck. After every step the invariants of FAULTS.md are checked.
//!
//! - `PANZER_SIM_HISTORIES=1000000` plays more of them,
//! - `PANZER_SIM_SEED=4711` plays one and prints its trace.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking, its helpers as well")]

mod check;
mod check_bypass;
mod check_count;
mod check_limits;
mod check_main;
mod check_monitor;
mod check_probes;
mod check_readiness;
mod check_ready;
mod check_renewal;
mod check_rolling;
mod check_settings;
mod check_starts;
mod check_stops;
mod check_trials;
mod check_verdicts;
mod choices;
mod configuration;
mod fuzz;
mod history;
mod kernel;
mod main_side;
mod monitor_side;
mod planted;
mod regressions;
mod report;
mod restart;
mod shares;
mod stale;
mod tally;
mod watching;
mod worker_script;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

use choices::Choices;
use history::{Failure, play};
use planted::Planted;
use tally::Tally;

/// What runs where nothing else is asked for.
const HISTORIES: u64 = 100_000;
const THREADS: usize = 2;

fn from_environment(name: &str) -> Option<u64> {
    Some(std::env::var(name).ok()?.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

#[test]
fn histories_keep_every_invariant() {
    if let Some(seed) = from_environment("PANZER_SIM_SEED") {
        return replay(seed);
    }
    let count = from_environment("PANZER_SIM_HISTORIES").unwrap_or(HISTORIES);
    let begun = std::time::Instant::now();
    let (tally, failure) = play_all(count, None);
    if let Some((seed, failure)) = failure {
        panic!("\n{}", report::describe(seed, &failure));
    }
    assert!(count < 1_000 || tally.covers_all(), "these histories prove little: {tally:?}");
    println!("{count} histories in {:?}: {tally:?}", begun.elapsed());
}

fn replay(seed: u64) {
    match play(Choices::from_seed(seed), None, true) {
        Ok((_, trace)) => println!("{}\nno invariant is broken", trace.join("\n")),
        Err(failure) => {
            println!("{}", failure.trace.join("\n"));
            panic!("\n{}", report::describe(seed, &failure));
        }
    }
}

/// Plays seeds 0 to `count`, on two threads. Stops at the first failure.
fn play_all(count: u64, planted: Option<Planted>) -> (Tally, Option<(u64, Failure)>) {
    let next = AtomicU64::new(0);
    let work = || {
        let mut tally = Tally::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= count {
                return (tally, None);
            }
            match play(Choices::from_seed(seed), planted, false) {
                Ok((one, _)) => tally.add(one),
                Err(failure) => {
                    next.store(count, Ordering::Relaxed);
                    return (tally, Some((seed, failure)));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        let mut all = (Tally::default(), None);
        for thread in threads {
            let (tally, failure) = thread.join().unwrap();
            all.0.add(tally);
            // The first is shown, so that what is shown is the same each time.
            all.1 = [all.1, failure].into_iter().flatten().min_by_key(|(seed, _)| *seed);
        }
        all
    })
}

#[test]
fn regressions_stay_mended() {
    for (name, history) in regressions::ALL {
        if let Err(violation) = history() {
            panic!("{name}: {violation}");
        }
    }
}

#[test]
fn every_planted_bug_is_found() {
    for &planted in Planted::ALL {
        let (_, found) = play_all(HISTORIES, Some(planted));
        let Some((seed, failure)) = found else { panic!("{planted:?} is not found") };
        println!("{planted:?}: found in history {seed}: {}", failure.violation.what);
    }
}
