//! Sends a request, shows how far it has come, and waits for the outcome.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use super::choose::{choose, connect};
use super::client::{ANSWER_TIMEOUT, wait_for_end};
use super::command_line::Options;
use super::output::print;
use super::trouble::Trouble;
use crate::config::duration;
use crate::control::operator::requests::{Counts, Line, Outcome, Progress, Request, Wanted};
use crate::sys::stdout::write;

/// Sends `request` and follows it to its end.
pub(super) fn follow(options: &Options, request: &Request) -> Result<(), Trouble> {
    let instance = choose(options)?;
    let overall = options.timeout.map(|timeout| Instant::now() + timeout);
    let mut client = connect(&instance, request)?;
    let stops = matches!(request.command, Wanted::Stop | Wanted::Exit) && !request.no_wait;
    // Opened before the answer comes: after the end of main, its pid may belong to another process.
    let main = stops.then(|| client.main()).flatten();
    // The first line comes at once; the next ones take as long as a release takes.
    let mut deadline = overall.or(Some(Instant::now() + ANSWER_TIMEOUT));
    let in_place = io::stdout().is_terminal();
    let outcome = loop {
        let line = client.answer(deadline).map(|answer| answer.line);
        deadline = overall;
        let text = if let Ok(Line::Progress(progress)) = &line { describe(progress) } else { String::new() };
        if in_place {
            // Each text replaces the one before; the outcome replaces the last one.
            progress(&format!("\r\x1b[K{text}"));
        } else if !text.is_empty() {
            progress(&format!("{text}\n"));
        }
        if let Line::Last(outcome) = line? {
            break outcome;
        }
    };
    // Main releases its pid file when it ends, and the next panzer needs that file.
    let has_ended = main.is_none_or(|main| wait_for_end(&main, overall));
    if !has_ended && outcome.ok {
        return Err(Trouble::Unknown("panzer stops, but has not ended in time; --timeout waits longer".to_owned()));
    }
    let done = conclude(request, *outcome).map_err(Trouble::Failed)?;
    if !done.is_empty() {
        print(&(done + "\n"))?;
    }
    Ok(())
}

/// Shows how far it has come, if that can be shown: what was asked for goes on.
fn progress(text: &str) {
    let _ = write(text);
}

/// Empty for an event of a newer panzer.
pub(super) fn describe(progress: &Progress) -> String {
    match progress {
        Progress::Queued { generation } => {
            format!("generation {generation}: queued behind the reload that is under way")
        }
        Progress::Starting { generation, counts: None } => format!("generation {generation}: starting"),
        Progress::Starting { generation, counts: Some(Counts { ready, workers }) } => {
            format!("generation {generation}: {ready} of {workers} ready")
        }
        Progress::Baking { generation, .. } => {
            format!("generation {generation}: all ready, must live beside the old one")
        }
        Progress::Draining { retiring, .. } => format!("generation {retiring} is draining"),
        Progress::Emptying => "waiting for the queues of the workers that go to be empty".to_owned(),
        Progress::Trying => "trying the new build".to_owned(),
        Progress::Stopping => "stopping".to_owned(),
        Progress::Other => String::new(),
    }
}

/// Describes the outcome in a line; empty if there is nothing to add to the exit code. The error says why the request
/// was refused or failed.
pub(super) fn conclude(request: &Request, outcome: Outcome) -> Result<String, String> {
    if !outcome.ok {
        let mut why = outcome.error.unwrap_or_else(|| "refused".to_owned());
        if outcome.failed.len() > 1 {
            why.extend(outcome.failed.iter().map(|failed| format!("\n  worker {} {}", failed.worker, failed.message)));
        }
        return Err(why);
    }
    let generation = outcome.generation.unwrap_or_default();
    Ok(match (request.command, outcome.took_ms) {
        (Wanted::Reload, Some(took)) => {
            let took = duration::show(Duration::from_millis(took));
            let draining = outcome
                .retiring
                .filter(|_| !request.drained)
                .map(|old| format!("; generation {old} still drains (reload --drained waits until it answers nobody)"));
            format!("generation {generation} serves after {took}{}", draining.unwrap_or_default())
        }
        (Wanted::Reload, None) => format!("generation {generation} will follow"),
        (Wanted::Drain, _) if !request.no_wait => "nothing drains any more".to_owned(),
        (Wanted::Restart, _) => {
            let (before, now) = outcome.builds.unwrap_or_default();
            let file = outcome.build_file.map(|file| format!(" ({file})")).unwrap_or_default();
            format!("restarted in place: panzer {before} -> {now}{file}")
        }
        (Wanted::Stop | Wanted::Exit, _) if outcome.exit_code.is_some() => "stopped".to_owned(),
        (Wanted::Scale | Wanted::Quiet, _) => {
            let (from, workers) = (outcome.from.unwrap_or_default(), outcome.workers.unwrap_or_default());
            format!("workers kept: {workers}, before: {from}")
        }
        (Wanted::Signal, _) => {
            let (signal, reached) =
                (request.signal.as_deref().unwrap_or_default(), outcome.signalled.unwrap_or_default());
            let workers = if reached == 1 { "worker" } else { "workers" };
            format!("{signal} sent to {reached} {workers} of generation {generation}")
        }
        _ => String::new(),
    })
}
