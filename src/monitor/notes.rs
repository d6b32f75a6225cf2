//! A monitor's messages for people.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use log::{debug, error, info, warn};
use nix::sys::signal::Signal;

use crate::config::{Reason, Schedule, duration};
use crate::monitor::decide::{Note, Worker};
use crate::worker::cause::{Cause, signal_name};

/// A worker that ends by a signal which panzer gets too, for example from a manager that signals the whole control
/// group, was stopped and did not crash. Main gets its own signal within this time.
const MAX_HOLD: Duration = Duration::from_millis(250);

/// Deaths that may belong to a stop. They are logged once it is clear that they do not.
#[derive(Debug, Default)]
pub(crate) struct Held(VecDeque<(Instant, Note, Option<i32>, String)>);

impl Held {
    /// Whether a worker ended as a stop would end it.
    pub(crate) fn concerns(note: &Note, stop: &Schedule) -> bool {
        let ends = |signal: i32| {
            let usual = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];
            usual.into_iter().chain([stop.first_signal()]).any(|one| one as i32 == signal)
        };
        match note {
            Note::Respawning(_, Cause::Killed(signal, _), _) => ends(*signal),
            // A program that handles the signal exits with 0, or with the code that a shell shows for the signal.
            Note::Respawning(_, Cause::Exited(code), _) => *code == 0 || ends(code - 128),
            // It was signalled with its workers.
            Note::MoldFailed { end: Cause::Killed(signal, _), .. } => ends(*signal),
            _ => false,
        }
    }

    pub(crate) fn hold(&mut self, note: Note, pid: Option<i32>, last_lines: String) {
        self.0.push_back((Instant::now() + MAX_HOLD, note, pid, last_lines));
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.0.front().map(|(due, ..)| *due)
    }

    /// Logs the deaths that are due. In a stop they are dropped.
    pub(crate) fn tend(&mut self, stopping: bool, generation: u32) {
        if stopping {
            self.0.clear();
        }
        let due = self.0.iter().take_while(|(due, ..)| *due <= Instant::now()).count();
        self.write(due, generation);
    }

    /// Logs all deaths: they made panzer give up, and the stop that follows did not cause them.
    pub(crate) fn write_all(&mut self, generation: u32) {
        self.write(self.0.len(), generation);
    }

    fn write(&mut self, count: usize, generation: u32) {
        self.0.drain(..count).for_each(|(_, note, pid, last_lines)| write(&note, generation, |_| pid, &last_lines));
    }
}

/// The worker whose end this is.
pub(crate) fn ended(note: &Note) -> Option<Worker> {
    match note {
        Note::Respawning(worker, ..) | Note::MoldFailed { worker, .. } | Note::EndedForGood(worker, _) => Some(*worker),
        Note::NotRecycled(worker, ..) => Some(*worker),
        _ => None,
    }
}

/// Logs `note`. `pid` gives the pid of a worker, or the last one that it had. `last_lines` are shown below the end of a
/// worker.
pub(crate) fn write(note: &Note, generation: u32, pid: impl Fn(Worker) -> Option<i32>, last_lines: &str) {
    let name = |worker: &Worker| {
        let pid = pid(*worker).map_or_else(String::new, |pid| format!("pid {pid}, "));
        format!("{worker} ({pid}generation {generation})")
    };
    match note {
        Note::Respawning(worker, cause, delay) if delay.is_zero() => {
            warn!("{}{}; respawning it{last_lines}", name(worker), cause.after_name());
        }
        Note::Respawning(worker, cause, delay) => {
            let is_late = matches!(cause, Cause::NotReady(_) | Cause::NotSeen(..) | Cause::Bypassed(..));
            let option = if is_late { " (--ready-timeout)" } else { "" };
            let (how, delay) = (cause.after_name(), duration::show(*delay));
            warn!("{}{how}; respawning it in {delay}{option}{last_lines}", name(worker));
        }
        Note::MoldFailed { worker, why, delay, serves, .. } => {
            let pid = pid(*worker).map_or_else(String::new, |pid| format!("pid {pid}, "));
            let on = if *serves { "; workers serve on" } else { "" };
            let after = if delay.is_zero() { String::new() } else { format!(" in {}", duration::show(*delay)) };
            warn!("{why} ({pid}generation {generation}); loading another{after}{on}{last_lines}");
        }
        Note::EndedForGood(worker, 0) => info!("{} has ended for good with exit code 0", name(worker)),
        Note::EndedForGood(worker, code) => {
            warn!("{} exited with code {code}, which is final; it is not respawned{last_lines}", name(worker));
        }
        Note::NotReady(worker, time, next) => {
            let (time, next) = (duration::show(*time), duration::show(*next));
            warn!("{} is not ready after {time}; stopping it (--ready-timeout; the next try has {next})", name(worker));
        }
        Note::HangsInExec(worker) => {
            warn!("{} hangs in exec: is the program's file system reachable? Killing it", name(worker));
        }
        Note::Escalated(worker, signal) => {
            warn!("{} has not stopped yet; sent it {}", name(worker), signal_name(*signal as i32));
        }
        Note::Aborted(worker, Some(time)) => {
            warn!("{} has sent no WATCHDOG=1 for {}; aborting it (--watchdog)", name(worker), duration::show(*time));
        }
        Note::Aborted(worker, None) => warn!("{} asks to be aborted (WATCHDOG=trigger); aborting it", name(worker)),
        Note::Recycling(worker, reason @ Reason::OlderMold) => debug!("{} {reason}; replacing it", name(worker)),
        Note::Recycling(worker, reason) => info!("{} {reason}; replacing it", name(worker)),
        Note::Reforked(mold, worker) => {
            let pid = pid(*mold).map_or_else(String::new, |pid| format!(" (pid {pid})"));
            info!(
                "worker {}{pid} is the mold of generation {generation} from now on; it forks the others anew",
                worker.slot
            );
        }
        Note::NotReforked(worker, why) => {
            warn!(
                "{} did not become the mold: {why}; the mold stays, and --refork rests until another is loaded",
                name(worker)
            );
        }
        Note::CannotRefork => {
            warn!("--refork does nothing: the program's client does not say 'READY refork' (panzer-mold(7))");
        }
        Note::Recycled(new, old) => {
            let old = pid(*old).map_or_else(|| "the one before".to_owned(), |pid| format!("pid {pid}"));
            info!("{} has taken the place of {old}", name(new));
        }
        Note::NotRecycled(worker, cause, delay) => {
            let next = duration::show(*delay);
            let how = cause.after_name();
            warn!("the replacement of {}{how}; the old one serves on, next try in {next}{last_lines}", name(worker));
        }
        Note::Suspended(worker, signal) => {
            let pid = pid(*worker).map_or_else(|| "its pid".to_owned(), |pid| pid.to_string());
            warn!("{} is stopped by {}: {}kill -CONT {pid} lets it go on", name(worker), signal.as_str(), why(*signal));
        }
        Note::LeftBehind(worker) => {
            warn!("{} ended and left processes behind; stopping them", name(worker));
        }
        Note::GaveUp(limit) => {
            error!("more than {} respawns within {}; giving up", limit.count, duration::show(limit.window));
        }
        Note::MainGone => info!("main is gone; stopping the workers of generation {generation}"),
    }
}

/// The cause that stopped a worker, if it is known, and how to prevent it.
fn why(stopped_by: Signal) -> &'static str {
    match stopped_by {
        Signal::SIGTTOU => {
            "it wrote to the terminal, which lets only the foreground write (stty tostop). Run stty -tostop, or redirect \
             the output; "
        }
        Signal::SIGTTIN => "it read from the terminal, which workers may not; ",
        _ => "",
    }
}
