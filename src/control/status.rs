//! What people are shown of generations and workers.

use std::fmt::Write;

use super::monitor::messages::WorkerStatus;
use crate::config::duration;
use crate::worker::cause::Cause;

/// What is known of one generation.
#[derive(Debug)]
pub struct GenerationStatus {
    /// Its number.
    pub number: u32,
    /// `serving`, `starting` or `draining`.
    pub standing: &'static str,
    /// Its monitor, where it has one.
    pub monitor: Option<i32>,
    /// Its workers, or none where the monitor did not answer in time.
    pub workers: Option<Vec<WorkerStatus>>,
}

/// A table of at most 80 columns, but for long causes.
pub fn render(main: i32, generations: &[GenerationStatus]) -> String {
    let mut out = format!("main {main}");
    for generation in generations {
        let monitor = generation.monitor.map_or_else(|| "none".to_owned(), |pid| pid.to_string());
        // Writing to a string does not fail.
        let _ = write!(out, "\n  generation {} {}, monitor {monitor}", generation.number, generation.standing);
        let Some(workers) = &generation.workers else {
            out.push_str(": no answer within 1s; is it stopped?");
            continue;
        };
        for worker in workers {
            let pid = worker.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
            let since = duration::show(worker.since);
            let _ = write!(out, "\n    worker {:<4} {pid:>8}  {:<9} {since:<10}", worker.slot, worker.phase);
            let respawned = (worker.respawns > 0).then(|| format!("respawned {}x", worker.respawns));
            let last = worker.last.as_ref().map(|cause| match cause {
                // It was meant to.
                Cause::Exited(code) if worker.phase == "ended" => format!("last: exited with code {code}"),
                _ => format!("last: {cause}"),
            });
            let sign = worker.sign_of_life.map(|ago| format!("sign of life {} ago", duration::show(ago)));
            let remarks: Vec<String> = respawned.into_iter().chain(sign).chain(last).collect();
            let _ = write!(out, " {}", remarks.join(", "));
            out.truncate(out.trim_end().len());
        }
    }
    out
}
