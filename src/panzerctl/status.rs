//! `panzerctl status` and `panzerctl list`.

use std::time::Instant;

use serde_json::{Value, json};

use super::choose::{RETRY_PAUSE, choose, connect, running};
use super::client::{ANSWER_TIMEOUT, status_in};
use super::command_line::Options;
use super::instance::Instance;
use super::output::{DEFAULT_COLUMNS, columns, print, rendered};
use super::table::{self, Room};
use super::text::{Line, Tone, cut, time};
use super::trouble::Trouble;
use super::usage::{Meter, Usages, memory_of};
use crate::control::operator::requests::{Request, Wanted};
use crate::control::operator::status::Status;
use crate::sys::unix_queue;

/// The state of the instance that the command line names.
pub(super) fn of_chosen(options: &Options) -> Result<Status, Trouble> {
    of(&choose(options)?, options)
}

fn of(instance: &Instance, options: &Options) -> Result<Status, Trouble> {
    let mut client = connect(instance, &Request::new(Wanted::Status))?;
    let answer = client.answer(Some(Instant::now() + options.timeout.unwrap_or(ANSWER_TIMEOUT)))?;
    let mut status = status_in(answer).map_err(Trouble::Unknown)?;
    complete(&mut status);
    Ok(status)
}

/// Adds the queues of unix sockets, which main does not report. They stay unknown if we may not look.
pub(super) fn complete(status: &mut Status) {
    for queue in &mut status.listeners {
        let inode = queue.inode.and_then(|inode| u32::try_from(inode).ok());
        if let Some((queued, limit)) = inode.and_then(|inode| unix_queue::accept_queue(inode).ok()?) {
            (queue.queued, queue.limit, queue.fullest) = (Some(queued), Some(limit), Some(queued));
        }
    }
}

pub(super) fn show(status: &Status, json: bool) -> Result<(), Trouble> {
    let usages = Meter::default().look(status);
    let text = if json { as_json(status, &usages) } else { as_table(status, &usages) };
    print(&text)
}

/// A table with any number of rows.
pub(super) fn as_table(status: &Status, usages: &Usages) -> String {
    let columns = columns().unwrap_or(DEFAULT_COLUMNS);
    rendered(&table::lines(status, usages, Room { columns, rows: None }), columns)
}

/// A line of JSON, with the usage of each worker and mold added, and the memory of each generation, unless it is unknown
/// for one of its processes.
pub(super) fn as_json(status: &Status, usages: &Usages) -> String {
    let mut value = json!(status);
    let generations = value["generations"].as_array_mut().into_iter().flatten();
    for (value, generation) in generations.zip(&status.generations) {
        value["pss_bytes"] = memory_of(generation.processes(), usages).memory.into();
        value.get_mut("mold").into_iter().for_each(|mold| add_usage(mold, usages));
        let workers = value.get_mut("workers").and_then(Value::as_array_mut);
        workers.into_iter().flatten().for_each(|worker| add_usage(worker, usages));
    }
    format!("{value}\n")
}

fn add_usage(worker: &mut Value, usages: &Usages) {
    let usage = worker["pid"].as_i64().and_then(|pid| usages.get(&i32::try_from(pid).ok()?));
    if let (Value::Object(worker), Some(Value::Object(usage))) = (worker, usage.map(|usage| json!(usage))) {
        worker.extend(usage);
    }
}

/// Waits until the instance is ready, even if it does not run yet.
#[allow(clippy::disallowed_methods, reason = "panzerctl is not a supervisor: it has nothing else to do meanwhile")]
pub(super) fn wait_ready(options: &Options) -> Result<Status, Trouble> {
    let deadline = options.timeout.map(|timeout| Instant::now() + timeout);
    loop {
        let why = match of_chosen(options) {
            Ok(status) if status.ready && !status.stopping => return Ok(status),
            Err(trouble @ Trouble::Usage(_)) => return Err(trouble),
            Ok(status) if status.stopping => format!("{} is being stopped", status.name),
            Ok(status) => {
                let (ready, wanted) = table::ready_of_wanted(&status);
                format!("{} is not ready: {ready} of {wanted} workers are", status.name)
            }
            Err(trouble) => trouble.into_parts().1,
        };
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(Trouble::Failed(format!("not ready in time: {why}")));
        }
        std::thread::sleep(RETRY_PAUSE);
    }
}

/// Lists the instance that the command line names, or all that run. The socket comes last because its path may have any
/// length.
pub(super) fn list(options: &Options) -> Result<(), Trouble> {
    let is_named = options.pid.is_some() || options.control.is_some() || options.name.is_some();
    let mut lines = Vec::new();
    let head = ["NAME", "PID", "STATE", "WORKERS", "GEN", "UPTIME"].map(str::to_owned);
    for instance in if is_named { vec![choose(options)?] } else { running() } {
        let (name, tone, cells) = match of(&instance, options) {
            Ok(status) => {
                let (tone, state) = table::condition(&status);
                let (ready, wanted) = table::ready_of_wanted(&status);
                let serving = status.generations.iter().rfind(|generation| generation.standing == "serving");
                let number = serving.map_or_else(|| "-".to_owned(), |generation| generation.number.to_string());
                let workers = format!("{ready}/{wanted}");
                (status.name, tone, [status.pid.to_string(), state.to_owned(), workers, number, time(status.uptime_ms)])
            }
            Err(trouble) if is_named => return Err(trouble),
            Err(_) => (instance.shown(), Tone::Bad, ["-", "no answer", "-", "-", "-"].map(str::to_owned)),
        };
        if lines.is_empty() {
            lines.push(entry(&head[0], Tone::Heading, &head[1..], "SOCKET"));
        }
        lines.push(entry(&name, tone, &cells, &instance.socket.display().to_string()));
    }
    // A program that reads the list gets whole lines.
    print(&rendered(&lines, columns().unwrap_or(usize::MAX)))
}

fn entry(name: &str, tone: Tone, cells: &[String], socket: &str) -> Line {
    let line = Line::new(Tone::Plain, format!("{:<20} {:>7} ", cut(name, 20), cells[0]));
    let line = line.with(tone, format!("{:<9} ", cells[1]));
    line.with(Tone::Plain, format!("{:>9} {:>5} {:>7}  {socket}", cells[2], cells[3], cells[4]))
}
