//! The deterministic simulation: main's state and the monitors' under a virtual clock, with scripted processes, an
//! operator, and bad luck. After every step the invariants of FAULTS.md are checked.
//!
//! - `PANZER_SIM_HISTORIES=1000000` plays more of them,
//! - `PANZER_SIM_FROM=1000000000` begins with this seed instead of 0,
//! - `PANZER_SIM_SEED=4711` plays one and prints its trace.
//!
//! All that break an invariant are listed with their seeds, and the first is shrunk. Long runs have a profile of their
//! own, which takes longer to build and plays half as fast again:
//! `PANZER_SIM_HISTORIES=10000000 cargo test --profile long --test sim histories -- --nocapture`

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking, its helpers as well")]

mod channel;
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
mod logger;
mod main_side;
mod mold_side;
mod molds;
mod monitor_side;
mod planted;
mod queues;
mod recycling;
mod refork;
mod regressions;
mod report;
mod restart;
mod shares;
mod stale;
mod tally;
mod watchdog;
mod watching;
mod worker_script;
mod world;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use choices::Choices;
use history::{Failure, play};
use planted::Planted;
use tally::Tally;

/// A tenth of the time went into the C library's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What runs where nothing else is asked for.
const HISTORIES: u64 = 100_000;
const THREADS: usize = 2;

/// A run that has found so many that break an invariant ends.
const MOST_FAILURES: usize = 100;

fn from_environment(name: &str) -> Option<u64> {
    Some(std::env::var(name).ok()?.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

#[test]
fn histories_keep_every_invariant() {
    if let Some(seed) = from_environment("PANZER_SIM_SEED") {
        return replay(seed);
    }
    let from = from_environment("PANZER_SIM_FROM").unwrap_or(0);
    let count = from_environment("PANZER_SIM_HISTORIES").unwrap_or(HISTORIES);
    let begun = std::time::Instant::now();
    let (tally, failures) = play_all(from..from + count, None, MOST_FAILURES);
    let (took, rate) = (begun.elapsed(), count as f64 / begun.elapsed().as_secs_f64());
    if let Some((seed, first)) = failures.first_key_value() {
        panic!("\n{}\n\n{}", report::describe(*seed, first), report::list(&failures));
    }
    assert!(count < 1_000 || tally.covers_all(), "these histories prove little: {tally:?}");
    println!("{count} histories from {from} on in {took:?}, {rate:.0} a second: {tally:?}");
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

/// Plays these seeds, on two threads, until so many have failed.
fn play_all(seeds: Range<u64>, planted: Option<Planted>, most: usize) -> (Tally, BTreeMap<u64, Failure>) {
    let next = AtomicU64::new(seeds.start);
    let failures = Mutex::new(BTreeMap::new());
    let work = || {
        let mut tally = Tally::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return tally;
            }
            match play(Choices::from_seed(seed), planted, false) {
                Ok((one, _)) => tally.add(one),
                Err(failure) => {
                    let mut failures = failures.lock().unwrap();
                    failures.insert(seed, failure);
                    if failures.len() >= most {
                        next.store(seeds.end, Ordering::Relaxed);
                    }
                }
            }
        }
    };
    let tally = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        let mut all = Tally::default();
        threads.into_iter().for_each(|thread| all.add(thread.join().unwrap()));
        all
    });
    (tally, failures.into_inner().unwrap())
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
        let (_, found) = play_all(0..HISTORIES, Some(planted), 1);
        let Some((seed, failure)) = found.first_key_value() else { panic!("{planted:?} is not found") };
        println!("{planted:?}: found in history {seed}: {}", failure.violation.what);
    }
}
