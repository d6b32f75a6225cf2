//! Main's messages for people.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use log::{error, info, warn};
use nix::unistd::Pid;

use crate::config::duration::show;
use crate::config::{Listen, ListenAs, Plan, Ready};
use crate::control::monitor::messages::{Urgency, quoted};
use crate::main_process::decide::{Note, Rejected};
use crate::main_process::listeners::conflicts::Conflicts;
use crate::sys::descriptors::{Kind, kind};
use crate::sys::stderr;
use crate::worker::cause::Cause;

/// Limit of the slots that a message lists.
const MAX_NAMED_WORKERS: usize = 8;

/// Logs where to find this instance. Called once the program runs, so not after a wrong command line.
pub(crate) fn began(plan: &Plan, pid_path: &Path) {
    let named: Vec<String> = plan.listen.iter().map(named_listener).collect();
    let on = if named.is_empty() { String::new() } else { format!(", listening on {}", named.join(", ")) };
    info!("started as pid {} ({}){on}", Pid::this(), pid_path.display());
    if plan.daemonize {
        warn_of_open_output();
        if !plan.logs.is_captured() {
            info!("the workers' output goes to {}; --log FILE keeps it in a file", output_of_workers());
        }
    }
}

/// The destination of workers that inherit our output.
fn output_of_workers() -> String {
    let (stdout, stderr) = (io::stdout(), io::stderr());
    let place = |fd: BorrowedFd<'_>| match kind(fd) {
        // They get /dev/null in its place.
        Kind::Terminal | Kind::Revoked => "/dev/null".to_owned(),
        _ if stderr::is_journal(fd) => "the journal".to_owned(),
        Kind::Pipe => "a pipe".to_owned(),
        Kind::Socket => "a socket".to_owned(),
        _ => fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
            .map_or_else(|_| "a file".to_owned(), |path| path.display().to_string()),
    };
    let (out, err) = (place(stdout.as_fd()), place(stderr.as_fd()));
    if out == err { out } else { format!("{out} (stdout) and {err} (stderr)") }
}

/// Warns if a daemon holds a pipe or socket open: the process that reads it waits until the daemon ends.
fn warn_of_open_output() {
    let (stdout, stderr) = (io::stdout(), io::stderr());
    let both = [("stdout", stdout.as_fd()), ("stderr", stderr.as_fd())];
    let is_held = |fd| matches!(kind(fd), Kind::Pipe | Kind::Socket) && !stderr::is_journal(fd);
    let held: Vec<&str> = both.into_iter().filter(|(_, fd)| is_held(*fd)).map(|(name, _)| name).collect();
    if !held.is_empty() {
        let (stay, them) = if held.len() == 1 { ("stays", "it") } else { ("stay", "them") };
        warn!(
            "{} {stay} open while panzer runs: whoever reads {them} to the end, as $(panzer ...), ssh and ansible do, \
             waits until then; redirect {them}, as in >>FILE 2>&1",
            held.join(" and ")
        );
    }
}

/// Platforms set this variable to make servers start several processes of their own.
pub(crate) const WEB_CONCURRENCY: &str = "WEB_CONCURRENCY";

/// Logs that each worker may start as many processes as panzer starts workers.
pub(crate) fn multiplied(plan: &Plan, inherited: Option<&OsStr>) {
    let is_set = plan.env.iter().any(|(name, _)| name.0 == WEB_CONCURRENCY);
    let count: Option<u32> = inherited.filter(|_| !is_set).and_then(|count| count.to_str()?.parse().ok());
    if let Some(count) = count.filter(|count| *count > 1 && plan.workers > 1) {
        info!(
            "WEB_CONCURRENCY={count} is passed on: a server that heeds it, such as puma or gunicorn, starts {count} processes \
             of its own in each of {}; --env WEB_CONCURRENCY=1 leaves the count to panzer",
            self::count(plan.workers)
        );
    }
}

fn named_listener(listen: &Listen) -> String {
    let inherited = if listen.inherited.is_some() { " (inherited)" } else { "" };
    format!("{}{inherited}", listen.address)
}

pub(crate) fn write(note: &Note) {
    match note {
        // Logged elsewhere, because the messages need the plan.
        Note::Began | Note::Rejected(..) | Note::Bypasses(..) => {}
        Note::Serving(generation, workers, time) => {
            info!("generation {generation} serves: {} ready in {}", count(*workers), show(*time));
        }
        Note::Starting(generation) => info!("reload: starting generation {generation}"),
        Note::Scaled(_, 0) => info!("ending all workers; a reload or a scale brings workers back"),
        Note::Scaled(from, to) => info!("keeping {} from now on, instead of {from}", count(*to)),
        Note::ReloadQueued(generation) => {
            info!("reload: generation {generation} is still starting; the next reload follows it");
        }
        Note::Renewing(generation, wait) => warn!(
            "generation {generation} cannot accept on a listener that was bound anew; starting another in {}",
            show(*wait)
        ),
        Note::Baking(generation, time) => {
            info!("reload: generation {generation} is ready; it must live for {} beside the old one", show(*time));
        }
        Note::Committed(generation, None, time) => {
            info!("reload done: generation {generation} serves after {}", show(*time));
        }
        Note::Committed(generation, Some(old), time) => {
            info!("reload done: generation {generation} serves after {}; retiring generation {old}", show(*time));
        }
        Note::Drained(generation, time) => {
            info!("generation {generation} has ended after draining for {}", show(*time))
        }
        Note::MonitorDied(generation, cause, delay) if delay.is_zero() => {
            error!("the monitor of generation {generation}{}; starting another", cause.after_name());
        }
        Note::MonitorDied(generation, cause, delay) => {
            let how = cause.after_name();
            error!("the monitor of generation {generation}{how}; starting another in {}", show(*delay));
        }
        Note::Unseeable(generation, why) => warn!(
            "whether the workers of generation {generation} accept cannot be seen: {why}; they count as ready without it: \
             when they send READY=1 if the serving ones did, else when they run, or by the probe (--ready chooses)"
        ),
        Note::MonitorStuck(generation) => {
            error!("the monitor of generation {generation} did not stop in time; killing it");
        }
        Note::Hurried(generation) => {
            info!("generation {generation} goes on to the rest of its stop schedule, as asked");
        }
        Note::Hastened(generation, limit) => warn!(
            "generation {generation} still drains beside {limit} that began later (--max-draining); it goes on to the rest of \
             its stop schedule"
        ),
        Note::Finished { generation, slot, code } => {
            let who = slot.map_or_else(|| "every worker".to_owned(), |slot| format!("worker {slot}"));
            let level = if *code == 0 { log::Level::Info } else { log::Level::Error };
            log::log!(level, "{who} of generation {generation} has ended for good; stopping with exit code {code}");
        }
        Note::Stopping(Urgency::Patient | Urgency::Retiring | Urgency::Graceful) => info!("stopping gracefully"),
        Note::Stopping(Urgency::Quick) => info!("stopping now"),
        Note::Stopped => info!("stopped"),
        Note::Fatal(cause) => error!("{cause}"),
        Note::GaveUp(generation) => error!("generation {generation} keeps failing; stopping everything"),
    }
}

/// Describes a worker that bypasses its listeners, with a remedy. It completes "worker 3 of generation 1 …".
pub(crate) fn bypasses(own: &[String], plan: &Plan) -> String {
    let given: Vec<String> = plan.listen.iter().map(|listen| listen.address.to_string()).collect();
    let given = given.join(", ");
    let remedy = match plan.handover.listen_as {
        ListenAs::Fds => "have it take its listener from LISTEN_FDS, or by {fd} among its arguments",
        ListenAs::Stdin => "have it take its listener from descriptor 0",
    };
    if own.is_empty() {
        let polls = match plan.ready {
            Ready::Auto | Ready::Accept => {
                "; if it asks for connections now and then instead of waiting, use --ready alive"
            }
            _ => "",
        };
        return format!(
            "is not seen accepting on what it was given ({given}), and listens on no port of its own: unless it is still \
             starting, {remedy}{polls}"
        );
    }
    let own = own.join(", ");
    format!(
        "listens on {own}, which panzer does not hold, and is not seen accepting on what it was given ({given}): \
         {remedy}, or drop --listen, so that panzer shares what it binds itself"
    )
}

/// Why a release was rejected.
pub(crate) fn rejected(generation: u32, why: &Rejected, plan: &Plan, conflicts: &Conflicts) -> String {
    let (serving, reason) = (why.serving, reason(why, plan));
    let reason = reason.strip_suffix(place(why)).unwrap_or(&reason);
    let remedy = conflicts.remedy(generation, why, plan);
    format!("reload failed: generation {generation}: {reason}{remedy}; generation {serving} serves on")
}

/// The lines that show the place in the configuration; empty if there are none.
pub(crate) fn place(why: &Rejected) -> &str {
    match &why.cause {
        Cause::Configuration(text) | Cause::Hook(text) => text.find('\n').map_or("", |at| &text[at..]),
        _ => "",
    }
}

/// The lines that the worker wrote last because of which a generation was rejected, if they are known.
pub(crate) fn last_lines(generation: u32, why: &Rejected, known: &BTreeMap<(u32, u32), Vec<String>>) -> String {
    let failed = why.failed.iter().map(|(slot, _)| slot);
    let mut slots = why.slot.iter().chain(failed).chain(&why.missing);
    slots.find_map(|slot| known.get(&(generation, *slot))).map_or_else(String::new, |lines| quoted(lines))
}

fn count(workers: u32) -> String {
    if workers == 1 { "1 worker".to_owned() } else { format!("{workers} workers") }
}

fn reason(Rejected { slot, cause, missing, workers, accept, .. }: &Rejected, plan: &Plan) -> String {
    match (slot, cause) {
        (_, Cause::NotFound(_) | Cause::CannotExecute(_) | Cause::CannotBecome(_)) => cause.to_string(),
        (Some(slot), cause) => format!("worker {slot}{}", cause.after_name()),
        (None, Cause::NotReady(time)) => {
            let mut named: Vec<String> = missing.iter().take(MAX_NAMED_WORKERS).map(u32::to_string).collect();
            if missing.len() > MAX_NAMED_WORKERS {
                named.push("...".to_owned());
            }
            let (were, named) = (if missing.len() == 1 { "was" } else { "were" }, named.join(", "));
            let (missing, all, time) = (missing.len(), count(*workers), show(*time));
            let measure = measure(*accept, plan);
            format!(
                "{missing} of {all} {were} not ready within {time} (worker {named}){measure} (--ready-timeout allows more time)"
            )
        }
        (None, cause) => cause.to_string(),
    }
}

/// The kind of readiness that the workers did not reach.
fn measure(accept: bool, plan: &Plan) -> &'static str {
    match plan.ready {
        Ready::Accept => ": not seen accepting on a listener",
        Ready::Auto if accept || plan.has_listener() => ": not seen accepting on a listener",
        Ready::Auto | Ready::Notify => ": no READY=1 came",
        Ready::Exec if accept || plan.has_listener() => {
            ": not seen accepting on a listener, or its probe did not succeed after that"
        }
        Ready::Exec => ": the probe did not succeed",
        Ready::Alive => "",
    }
}
