//! `panzerctl status` and `panzerctl list`: what is asked for once.

use std::io::{self, IsTerminal};
use std::time::Instant;

use serde_json::{Value, json};

use super::client::{PATIENCE, Trouble, status_in};
use super::command_line::Options;
use super::instances::{self, Instance};
use super::table::{self, Room};
use super::text::{Line, Tone, cut, time};
use super::usage::{Meter, Usages};
use super::{PAUSE, connect, tell};
use crate::control::operator::requests::{Command as Wanted, Request};
use crate::control::operator::status::Status;
use crate::sys::{terminal::window, unix_queue};

/// Where it is not known how wide lines may be.
pub(super) const USUAL_COLUMNS: usize = 80;

/// Whether standard output is a terminal that understands more than text.
pub(super) fn is_capable_terminal() -> bool {
    let kind = std::env::var_os("TERM").unwrap_or_default();
    io::stdout().is_terminal() && !kind.is_empty() && kind != "dumb"
}

/// Whether to colour: on a terminal only, and not where it is not wanted (<https://no-color.org>).
pub(super) fn is_coloured() -> bool {
    is_capable_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

pub(super) fn of(instance: &Instance, options: &Options) -> Result<Status, Trouble> {
    let mut client = connect(instance, &Request::new(Wanted::Status))?;
    let answer = client.answer(Some(Instant::now() + options.timeout.unwrap_or(PATIENCE)))?;
    let mut status = status_in(answer).map_err(Trouble::Unknown)?;
    complete(&mut status);
    Ok(status)
}

/// Adds what main does not tell: the queues of unix sockets. Where we may not look, they stay unknown.
pub(super) fn complete(status: &mut Status) {
    for queue in &mut status.listeners {
        let inode = queue.inode.and_then(|inode| u32::try_from(inode).ok());
        if let Some((queued, limit)) = inode.and_then(|inode| unix_queue::accept_queue(inode).ok()?) {
            (queue.queued, queue.limit, queue.fullest) = (Some(queued), Some(limit), Some(queued));
        }
    }
}

pub(super) fn show(status: &Status, json: bool) {
    let usages = Meter::default().look(status);
    let text = if json { as_json(status, &usages) } else { as_table(status, &usages) };
    tell(&text);
}

/// As long as it gets.
pub(super) fn as_table(status: &Status, usages: &Usages) -> String {
    let columns = window(io::stdout()).map_or(USUAL_COLUMNS, |(columns, _)| columns);
    rendered(&table::lines(status, usages, Room { columns, rows: None }), columns)
}

fn rendered(lines: &[Line], columns: usize) -> String {
    let coloured = is_coloured();
    lines.iter().map(|line| line.render(columns, coloured) + "\n").collect()
}

/// A line, in which each worker also has what it uses.
pub(super) fn as_json(status: &Status, usages: &Usages) -> String {
    let mut value = json!(status);
    let generations = value["generations"].as_array_mut().into_iter().flatten();
    for worker in generations.filter_map(|generation| generation["workers"].as_array_mut()).flatten() {
        let usage = worker["pid"].as_i64().and_then(|pid| usages.get(&i32::try_from(pid).ok()?));
        if let (Value::Object(worker), Some(Value::Object(usage))) = (worker, usage.map(|usage| json!(usage))) {
            worker.extend(usage);
        }
    }
    format!("{value}\n")
}

/// Also for one that does not run yet.
#[allow(clippy::disallowed_methods, reason = "panzerctl is no supervisor: it has nothing else to do meanwhile")]
pub(super) fn wait_ready(options: &Options) -> Result<Status, Trouble> {
    let deadline = options.timeout.map(|timeout| Instant::now() + timeout);
    loop {
        let found = instances::choose(options).and_then(|instance| of(&instance, options));
        let why = match found {
            Ok(status) if status.ready && !status.stopping => return Ok(status),
            Err(Trouble::Usage(why)) => return Err(Trouble::Usage(why)),
            Ok(status) if status.stopping => format!("{} is being stopped", status.name),
            Ok(status) => {
                let (ready, wanted) = table::ready_of_wanted(&status);
                format!("{} is not ready: {ready} of {wanted} workers are", status.name)
            }
            Err(Trouble::Failed(why) | Trouble::Dead(why) | Trouble::NotRunning(why) | Trouble::Unknown(why)) => why,
        };
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(Trouble::Failed(format!("not ready in time: {why}")));
        }
        std::thread::sleep(PAUSE);
    }
}

/// All that run. Their sockets are named last, as those may be of any length.
pub(super) fn list(options: &Options) {
    let mut lines = Vec::new();
    let head = ["NAME", "PID", "STATE", "WORKERS", "GEN", "UPTIME"].map(str::to_owned);
    for instance in instances::running() {
        let (name, tone, cells) = match of(&instance, options) {
            Ok(status) => {
                let (tone, state) = table::condition(&status);
                let (ready, wanted) = table::ready_of_wanted(&status);
                let serving = status.generations.iter().rfind(|generation| generation.standing == "serving");
                let number = serving.map_or_else(|| "-".to_owned(), |generation| generation.number.to_string());
                let workers = format!("{ready}/{wanted}");
                (status.name, tone, [status.pid.to_string(), state.to_owned(), workers, number, time(status.uptime_ms)])
            }
            Err(_) => (instance.shown(), Tone::Bad, ["-", "no answer", "-", "-", "-"].map(str::to_owned)),
        };
        if lines.is_empty() {
            lines.push(entry(&head[0], Tone::Heading, &head[1..], "SOCKET"));
        }
        lines.push(entry(&name, tone, &cells, &instance.socket.display().to_string()));
    }
    // Not to be cut where somebody else reads it.
    let columns = window(io::stdout()).map_or(usize::MAX, |(columns, _)| columns);
    tell(&rendered(&lines, columns));
}

fn entry(name: &str, tone: Tone, cells: &[String], socket: &str) -> Line {
    let line = Line::new(Tone::Plain, format!("{:<20} {:>7} ", cut(name, 20), cells[0]));
    let line = line.with(tone, format!("{:<9} ", cells[1]));
    line.with(Tone::Plain, format!("{:>9} {:>5} {:>7}  {socket}", cells[2], cells[3], cells[4]))
}
