//! panzerctl: an operator's hand on a panzer that runs.

mod client;
mod command_line;
mod instances;
mod metrics;
mod status;
mod table;
mod text;
mod usage;
mod watch;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use client::{Client, PATIENCE, Trouble};
use command_line::{Command, Options};
use instances::Instance;

use crate::control::operator::requests::{Command as Wanted, Counts, Line, Outcome, Progress, Request};
use crate::control::operator::status::Status;
use crate::sys::printable;

/// Between two looks whether it is ready.
const PAUSE: Duration = Duration::from_millis(100);

/// For so long one that runs may be without a socket.
const LONGEST_CHANGE: Duration = Duration::from_secs(2);

/// The definition of the command line.
pub fn command() -> clap::Command {
    Options::command()
}

/// Does what the command line asks for. Returns the exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let options = match Options::try_parse_from(arguments) {
        Ok(options) => options,
        Err(error) => {
            match error.kind() {
                // A reader that has gone has read enough.
                ErrorKind::DisplayHelp
                | ErrorKind::DisplayVersion
                | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => drop(error.print()),
                _ => eprintln!("panzerctl: {}", refusal(&error)),
            }
            return if error.use_stderr() { 2 } else { 0 };
        }
    };
    let (code, why) = match perform(&options) {
        Ok(()) => return 0,
        Err(Trouble::Failed(why)) => (1, why),
        Err(Trouble::Dead(why)) => (1, why),
        Err(Trouble::Usage(why)) => (2, why),
        Err(Trouble::NotRunning(why)) => (3, why),
        Err(Trouble::Unknown(why)) => (4, why),
    };
    eprintln!("panzerctl: {}", printable::lines(&why));
    code
}

/// Clap's error and its tips, before it shows the usage, in one line.
fn refusal(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let said = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let parts: Vec<&str> = said.filter(|line| !line.is_empty() && !line.starts_with("For more")).collect();
    let line = parts.join("; ").replace(":; ", ": ");
    format!("{} (see panzerctl --help)", line.trim_start_matches("error: "))
}

fn perform(options: &Options) -> Result<(), Trouble> {
    let plain = Request::new;
    match options.command {
        Command::List => {
            status::list(options);
            Ok(())
        }
        Command::Status { json, watch: true, interval, .. } => watch::watch(options, json, interval),
        Command::Status { json, wait_ready, .. } => {
            let found = if wait_ready { status::wait_ready(options) } else { of(options) };
            found.map(|found| status::show(&found, json))
        }
        Command::Metrics => of(options).map(|found| tell(&metrics::render(&found))),
        Command::Reload { no_wait, drained } => follow(options, Request { no_wait, drained, ..plain(Wanted::Reload) }),
        Command::Drain { now, generation, no_wait } => {
            follow(options, Request { now, generation, no_wait, ..plain(Wanted::Drain) })
        }
        Command::Restart => follow(options, plain(Wanted::Restart)),
        Command::Stop { no_wait } => follow(options, Request { no_wait, ..plain(Wanted::Stop) }),
        Command::Exit { no_wait } => follow(options, Request { no_wait, ..plain(Wanted::Exit) }),
        Command::Scale { ref count } => follow(options, Request { count: Some(count.clone()), ..plain(Wanted::Scale) }),
        Command::Quiet => follow(options, plain(Wanted::Quiet)),
        Command::Signal { signal, worker } => {
            let signal = Some(signal.as_str().to_owned());
            follow(options, Request { signal, worker, ..plain(Wanted::Signal) })
        }
        Command::Reopen => follow(options, plain(Wanted::Reopen)),
    }
}

fn of(options: &Options) -> Result<Status, Trouble> {
    status::of(&instances::choose(options)?, options)
}

fn tell(text: &str) {
    let mut out = io::stdout();
    // A reader that has gone has read enough.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// One that runs and has no socket yet, or no longer, is waited for a little: it is about to have one, or to end.
#[allow(clippy::disallowed_methods, reason = "panzerctl is no supervisor: it has nothing else to do meanwhile")]
fn connect(instance: &Instance, request: &Request) -> Result<Client, Trouble> {
    let deadline = Instant::now() + LONGEST_CHANGE;
    let mut client = loop {
        match Client::connect(instance) {
            Ok(client) => break client,
            Err(error) => {
                let passing = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused].contains(&error.kind());
                if !passing || !instance.is_running() || Instant::now() >= deadline {
                    return Err(instance.absence(&error));
                }
            }
        }
        std::thread::sleep(PAUSE);
    };
    // Where it cannot be written, the answer says why: it was refused.
    let _ = client.ask(request);
    Ok(client)
}

/// Asks, shows what goes on, and waits for the last line.
fn follow(options: &Options, request: Request) -> Result<(), Trouble> {
    let instance = instances::choose(options)?;
    let overall = options.timeout.map(|timeout| Instant::now() + timeout);
    let mut client = connect(&instance, &request)?;
    let stops = matches!(request.command, Wanted::Stop | Wanted::Exit) && !request.no_wait;
    // Held before the answer comes: afterwards the pid may be somebody else's.
    let main = stops.then(|| client.main()).flatten();
    // The first line comes at once; what follows takes as long as a release takes.
    let mut deadline = overall.or(Some(Instant::now() + PATIENCE));
    let in_place = io::stdout().is_terminal();
    let outcome = loop {
        let line = client.answer(deadline).map(|answer| answer.line);
        deadline = overall;
        let text = if let Ok(Line::Progress(progress)) = &line { shown(progress) } else { String::new() };
        if in_place {
            // Each text takes the place of the one before, and the last one of nothing.
            tell(&format!("\r\x1b[K{text}"));
        } else if !text.is_empty() {
            tell(&format!("{text}\n"));
        }
        if let Line::Last(outcome) = line? {
            break outcome;
        }
    };
    // Main releases its pid file when it ends, and the next panzer needs that file.
    let has_ended = main.is_none_or(|main| client::wait_for_end(&main, overall));
    if !has_ended && outcome.ok {
        return Err(Trouble::Unknown("panzer stops, but has not ended in time; --timeout waits longer".into()));
    }
    conclude(&request, *outcome)
}

fn shown(progress: &Progress) -> String {
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

fn conclude(request: &Request, answer: Outcome) -> Result<(), Trouble> {
    if !answer.ok {
        let mut why = answer.error.unwrap_or_else(|| "refused".to_owned());
        if answer.failed.len() > 1 {
            let each = answer.failed.iter().map(|failed| format!("\n  worker {} {}", failed.worker, failed.message));
            why.extend(each);
        }
        return Err(Trouble::Failed(why));
    }
    let generation = answer.generation.unwrap_or_default();
    match (request.command, answer.took_ms) {
        (Wanted::Reload, Some(took)) => {
            let took = crate::config::duration::show(Duration::from_millis(took));
            let draining = answer
                .retiring
                .filter(|_| !request.drained)
                .map(|old| format!("; generation {old} still drains (reload --drained waits until it answers nobody)"));
            tell(&format!("generation {generation} serves after {took}{}\n", draining.unwrap_or_default()));
        }
        (Wanted::Reload, None) => tell(&format!("generation {generation} will follow\n")),
        (Wanted::Drain, _) if !request.no_wait => tell("nothing drains any more\n"),
        (Wanted::Restart, _) => {
            let (before, now) = answer.builds.unwrap_or_default();
            let file = answer.build_file.map(|file| format!(" ({file})")).unwrap_or_default();
            tell(&format!("restarted in place: panzer {before} -> {now}{file}\n"));
        }
        (Wanted::Stop | Wanted::Exit, _) if answer.exit_code.is_some() => tell("stopped\n"),
        (Wanted::Scale | Wanted::Quiet, _) => {
            let (from, workers) = (answer.from.unwrap_or_default(), answer.workers.unwrap_or_default());
            tell(&format!("workers kept: {workers}, before: {from}\n"));
        }
        (Wanted::Signal, _) => {
            let (signal, reached) =
                (request.signal.as_deref().unwrap_or_default(), answer.signalled.unwrap_or_default());
            let workers = if reached == 1 { "worker" } else { "workers" };
            tell(&format!("{signal} sent to {reached} {workers} of generation {generation}\n"));
        }
        _ => {}
    }
    Ok(())
}
