//! What is told of a history that broke an invariant: the shortest like it, and how to see it again.

use std::collections::BTreeMap;

use crate::choices::Choices;
use crate::history::{Failure, play};
use crate::planted::Planted;

/// So many lines of a trace are shown.
const LINES: usize = 40;

/// So much is listed of what one breaks.
const WIDTH: usize = 200;

/// So often a shorter history is tried.
const MOST_TRIES: u32 = 3_000;

/// The seed, the step, the invariant, the last lines, and the command.
pub(crate) fn describe(seed: u64, failure: &Failure) -> String {
    let shrunk = shrink(failure.clone(), None);
    let traced = play(Choices::replay(shrunk.record.clone()), None, true).err().unwrap_or(shrunk);
    let skipped = traced.trace.len().saturating_sub(LINES);
    format!(
        "seed {seed}, step {}: {}\n\nShrunk to {} choices, step {}: {}\n  the last lines of its trace:\n{}\n\n\
         Replay it whole: PANZER_SIM_SEED={seed} cargo test --test sim histories -- --nocapture\n\
         Keep it: regressions.rs, record {:?}",
        failure.step,
        failure.violation,
        traced.record.len(),
        traced.step,
        traced.violation,
        traced.trace[skipped..].join("\n"),
        // What is beyond its end is 0.
        &traced.record[..traced.record.iter().rposition(|choice| *choice > 0).map_or(0, |last| last + 1)],
    )
}

/// Every history that failed, with its seed.
pub(crate) fn list(failures: &BTreeMap<u64, Failure>) -> String {
    let line = |(seed, failure): (&u64, &Failure)| {
        let what = failure.violation.what.lines().next().unwrap_or_default();
        format!("  seed {seed}: {}\n", what.chars().take(WIDTH).collect::<String>())
    };
    format!("{} histories break an invariant:\n{}", failures.len(), failures.iter().map(line).collect::<String>())
}

/// Leaves out and tames choices as long as the same invariant breaks.
pub(crate) fn shrink(failure: Failure, planted: Option<Planted>) -> Failure {
    let mut best = failure;
    let mut tries = 0;
    let mut size = best.record.len() / 2;
    while size > 0 && tries < MOST_TRIES {
        let mut at = 0;
        while at < best.record.len() && tries < MOST_TRIES {
            let end = (at + size).min(best.record.len());
            let mut without = best.record.clone();
            without.drain(at..end);
            let mut tamed = best.record.clone();
            tamed[at..end].fill(0);
            tries += 2;
            let is_tame = tamed == best.record;
            let better =
                retry(without, &best, planted).or_else(|| if is_tame { None } else { retry(tamed, &best, planted) });
            match better {
                Some(smaller) => best = smaller,
                None => at += size,
            }
        }
        size /= 2;
    }
    best
}

/// The failure of another record, if it is the same and no longer.
fn retry(record: Vec<u64>, best: &Failure, planted: Option<Planted>) -> Option<Failure> {
    let failure = play(Choices::replay(record), planted, false).err()?;
    let weight = |record: &[u64]| (record.len(), record.iter().filter(|choice| **choice > 0).count());
    let same = failure.violation.invariant == best.violation.invariant;
    (same && weight(&failure.record) < weight(&best.record)).then_some(failure)
}
