//! The state of a panzer as a table that fits a terminal.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::text::{Line, Tone, count, cut, percent, size, time, width, wrap};
use super::usage::{Usage, Usages, memory_of};
use crate::control::operator::status::{Cgroup, Failed, Generation, Queue, Status, Worker};

const HEADS: [&str; 9] = ["GEN", "WORKER", "PID", "STATE", "UPTIME", "RESPAWNS", "CPU%", "PSS", "LAST EXIT"];
const STATE: usize = 3;
const LAST: usize = 8;

/// The states of a worker, in the order in which they are counted.
const STATES: [&str; 6] = ["ready", "starting", "stopping", "stopped", "waiting", "empty"];

/// The size that a table may have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) columns: usize,
    /// None for no limit.
    pub(super) rows: Option<usize>,
}

/// The lines of the table. The first one says how the instance is.
pub(super) fn lines(status: &Status, usages: &Usages, room: Room) -> Vec<Line> {
    let queues = queues(&status.listeners, room);
    let molds = status.generations.iter().filter(|generation| generation.mold.is_some()).count();
    let others = 3 + 2 * status.generations.len() + molds + queues.len();
    let shown = chosen(&status.generations, room.rows.map(|rows| rows.saturating_sub(others)));
    let table = Table::new(status, usages, &shown, room.columns);
    let mut lines = vec![headline(status), Line::default(), table.heads()];
    for generation in &status.generations {
        lines.push(table.group(generation));
        lines.extend(table.rows.iter().filter(|row| row.generation == generation.number).map(|row| table.row(row)));
        let workers = generation.workers.iter();
        let hidden = workers.filter(|worker| !shown.contains(&(generation.number, worker.slot))).count();
        if hidden > 0 {
            lines.push(Line::new(Tone::Faint, format!("{:>w$} … {hidden} more", "", w = table.widths[0])));
        }
    }
    lines.extend(queues);
    let notes = table.notes(room.columns);
    if room.rows.is_none_or(|rows| lines.len() + notes.len() <= rows) {
        lines.extend(notes);
    }
    within(lines, room.rows)
}

/// Cut to `rows` lines, the last of which says how many are missing.
pub(super) fn within(mut lines: Vec<Line>, rows: Option<usize>) -> Vec<Line> {
    if let Some(rows) = rows.filter(|rows| *rows < lines.len()) {
        let missing = lines.len() - rows.saturating_sub(1);
        lines.truncate(rows.saturating_sub(1));
        lines.push(Line::new(Tone::Faint, format!("… {missing} more")));
    }
    lines
}

pub(super) fn headline(status: &Status) -> Line {
    let (tone, state) = condition(status);
    let (ready, wanted) = ready_of_wanted(status);
    let rest = format!(", main {}, up {}, {ready} of {wanted} workers ready", status.pid, time(status.uptime_ms));
    Line::new(Tone::Heading, cut(&status.name, 24)).with(Tone::Plain, ": ").with(tone, state).with(Tone::Plain, rest)
}

/// The state of an instance, in a word or two.
pub(super) fn condition(status: &Status) -> (Tone, &'static str) {
    match (status.stopping, status.ready) {
        (true, _) => (Tone::Passing, "stopping"),
        (_, true) => (Tone::Good, "ready"),
        _ => (Tone::Bad, "not ready"),
    }
}

/// Number of ready workers, and number of wanted workers. Ready workers of a starting generation serve too, so they
/// count; the sum is never higher than the number wanted.
pub(super) fn ready_of_wanted(status: &Status) -> (usize, u32) {
    let counted = status.generations.iter().filter(|generation| generation.standing != "draining");
    let ready: usize = counted.map(|generation| in_state(generation, "ready")).sum();
    (ready.min(status.workers as usize), status.workers)
}

fn in_state(generation: &Generation, state: &str) -> usize {
    generation.workers.iter().filter(|worker| worker.state == state).count()
}

/// The workers to show, at most `max_rows`, by generation and slot. Workers that have a problem come first.
fn chosen(generations: &[Generation], max_rows: Option<usize>) -> BTreeSet<(u32, u32)> {
    let rank = |generation: &Generation, worker: &Worker| match (generation.standing.as_str(), worker.state.as_str()) {
        ("draining", _) => 2,
        (_, "ready") => 1,
        _ => 0,
    };
    let of = |generation: &Generation| {
        let number = generation.number;
        let place = |worker: &Worker| (rank(generation, worker), Reverse(number), worker.slot);
        generation.workers.iter().map(place).collect::<Vec<_>>()
    };
    let mut all: Vec<_> = generations.iter().flat_map(of).collect();
    all.sort_unstable();
    all.into_iter().take(max_rows.unwrap_or(usize::MAX)).map(|(_, Reverse(number), slot)| (number, slot)).collect()
}

/// ", cgroup 120.0M of 2.0G, 14 of 500 pids", as far as it is known.
fn of_cgroup(cgroup: &Cgroup) -> String {
    let of = |used: Option<String>, limit: Option<String>| {
        Some([used?, limit.map(|limit| format!(" of {limit}")).unwrap_or_default()].concat())
    };
    let number = |number: Option<u64>| number.map(|number| number.to_string());
    let memory = of(cgroup.memory.map(size), cgroup.memory_max.map(size));
    let pids = of(number(cgroup.pids), number(cgroup.pids_max)).map(|pids| format!("{pids} pids"));
    let known: Vec<String> = memory.into_iter().chain(pids).collect();
    if known.is_empty() { String::new() } else { format!(", cgroup {}", known.join(", ")) }
}

/// The rows of the workers, and the widths of the columns.
#[derive(Debug)]
struct Table {
    usages: Usages,
    widths: [usize; 9],
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    generation: u32,
    cells: [String; 9],
    tone: Tone,
    /// The whole cause, if the cell does not say all of it.
    cause: Option<String>,
    sign_of_life: String,
}

impl Table {
    fn new(status: &Status, usages: &Usages, shown: &BTreeSet<(u32, u32)>, columns: usize) -> Table {
        let mut rows = Vec::new();
        for generation in &status.generations {
            let is_shown = |worker: &&Worker| shown.contains(&(generation.number, worker.slot));
            let workers = generation.mold.iter().chain(generation.workers.iter().filter(is_shown));
            let usage = |worker: &Worker| worker.pid.and_then(|pid| usages.get(&pid)).copied().unwrap_or_default();
            rows.extend(workers.map(|worker| row(generation.number, worker, usage(worker))));
        }
        let mut widths = HEADS.map(width);
        for (at, widest) in widths.iter_mut().enumerate() {
            *widest = rows.iter().map(|row| width(&row.cells[at])).max().unwrap_or(0).max(*widest);
        }
        // The last column gets the rest of the width. A window may be narrower than the other columns.
        widths[LAST] =
            columns.saturating_sub(widths[..LAST].iter().map(|width| width + 1).sum()).max(HEADS[LAST].len());
        for row in &mut rows {
            if let Some(cause) = row.cause.take_if(|cause| width(cause) <= widths[LAST]) {
                row.cells[LAST] = cause;
            }
            let said = [&*row.sign_of_life, &*row.cells[LAST]].into_iter().filter(|text| !text.is_empty());
            row.cells[LAST] = cut(&said.collect::<Vec<_>>().join("; "), widths[LAST]);
        }
        Table { usages: usages.clone(), widths, rows }
    }

    fn heads(&self) -> Line {
        Line::new(Tone::Heading, self.aligned(&HEADS.map(str::to_owned)).concat())
    }

    fn group(&self, generation: &Generation) -> Line {
        let monitor = generation.monitor.map_or_else(|| "none".to_owned(), |pid| pid.to_string());
        let number = format!("{:>w$} ", generation.number, w = self.widths[0]);
        let line = Line::new(Tone::Heading, format!("{number}{}", generation.standing));
        if !generation.answered {
            let line = line.with(Tone::Plain, format!(", monitor {monitor}, "));
            return line.with(Tone::Bad, "which does not answer: is it stopped?");
        }
        let counts = STATES.map(|state| (in_state(generation, state), state));
        let counts = counts.iter().filter(|(count, _)| *count > 0).map(|(count, state)| format!(", {count} {state}"));
        let memory = generation.mold.as_ref().map(|_| memory_of(generation.processes(), &self.usages));
        let memory = memory.filter(|memory| memory.at_most() > Some(0)).and_then(|memory| memory.shown_memory());
        let memory = memory.map_or_else(String::new, |memory| format!(", PSS {memory} in all"));
        let cgroup = generation.cgroup.as_ref().map(of_cgroup).unwrap_or_default();
        line.with(Tone::Plain, format!(", monitor {monitor}{}{memory}{cgroup}", counts.collect::<String>()))
    }

    fn row(&self, row: &Row) -> Line {
        let cells = self.aligned(&row.cells);
        let line = Line::new(Tone::Plain, cells[..STATE].concat()).with(row.tone, &cells[STATE]);
        line.with(Tone::Plain, cells[STATE + 1..].concat())
    }

    fn aligned(&self, cells: &[String; 9]) -> [String; 9] {
        std::array::from_fn(|at| match (&cells[at], self.widths[at]) {
            (cell, _) if at == LAST => cell.clone(),
            (cell, width) if at == STATE => format!("{cell:<width$} "),
            (cell, width) => format!("{cell:>width$} "),
        })
    }

    /// The causes that did not fit the column, each with its workers.
    fn notes(&self, columns: usize) -> Vec<Line> {
        /// Limit of the causes, of the workers named for a cause, and of the lines of a cause.
        const MAX_NAMED: usize = 3;
        let mut workers: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for row in &self.rows {
            if let Some(cause) = &row.cause {
                workers.entry(cause).or_default().push(row.cells[1].clone());
            }
        }
        let mut lines = Vec::new();
        for (cause, workers) in workers.iter().take(MAX_NAMED) {
            let named = match workers.len() {
                1 if workers[0] == "mold" => "mold".to_owned(),
                ..=MAX_NAMED => format!("worker {}", workers.join(", ")),
                count => format!("{count} workers"),
            };
            lines.push(Line::default());
            let wrapped = wrap(&format!("{named}: {cause}"), columns, MAX_NAMED);
            lines.extend(wrapped.iter().map(|line| Line::new(Tone::Plain, line)));
        }
        if workers.len() > MAX_NAMED {
            lines.push(Line::new(Tone::Faint, format!("… {} more", workers.len() - MAX_NAMED)));
        }
        lines
    }
}

fn row(generation: u32, worker: &Worker, usage: Usage) -> Row {
    let recycled = |reason: &String| {
        let word = if worker.recycled == 0 { "replacing" } else { "recycled" };
        (word.to_owned(), Some(reason.clone()))
    };
    let (last, cause) =
        worker.last.as_ref().map(short).or_else(|| worker.recycling.as_ref().map(recycled)).unwrap_or_default();
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let cells = [
        generation.to_string(),
        worker.shown_slot(),
        or_none(worker.pid.map(|pid| pid.to_string())),
        cut(&worker.state, 9),
        or_none(worker.pid.map(|_| time(worker.since_ms))),
        count(worker.respawns),
        or_none(usage.cpu.map(percent)),
        or_none(usage.shown_memory()),
        last,
    ];
    let tone = match worker.state.as_str() {
        "ready" => Tone::Good,
        "waiting" | "stopped" => Tone::Bad,
        "empty" => Tone::Faint,
        _ => Tone::Passing,
    };
    let sign_of_life = worker.sign_of_life_ms.map(|ago| format!("sign of life {} ago", time(ago))).unwrap_or_default();
    Row { generation, cells, tone, cause, sign_of_life }
}

/// The cause in a few words; and the whole cause, if these words do not say it.
fn short(last: &Failed) -> (String, Option<String>) {
    match (last.code, &last.signal) {
        (Some(code), _) => (format!("exit code {code}"), None),
        (_, Some(signal)) if last.message.contains("core dumped") => (format!("{signal}, core"), None),
        (_, Some(signal)) => (signal.clone(), None),
        _ => (last.cause.replace('_', " "), Some(last.message.clone())),
    }
}

/// The accept queues. They take at most a third of the rows.
pub(super) fn queues(listeners: &[Queue], room: Room) -> Vec<Line> {
    if listeners.is_empty() {
        return Vec::new();
    }
    let has_several = listeners.iter().any(|queue| queue.queues > 1);
    let heads = if has_several { vec!["QUEUED", "LIMIT", "QUEUES", "FULLEST"] } else { vec!["QUEUED", "LIMIT"] };
    let columns: String = heads.iter().map(|head| format!(" {head:>9}")).collect();
    let left = room.columns.saturating_sub(columns.len()).clamp(8, 80 - columns.len());
    let mut lines = vec![Line::default(), Line::new(Tone::Heading, format!("{:<left$}{columns}", "LISTENER"))];
    let of = |queue: &Queue| {
        let number = |n: Option<u32>| format!(" {:>9}", n.map_or("-".to_owned(), |n| n.to_string()));
        let several = format!(" {:>9}{}", queue.queues, number(queue.fullest));
        let address = cut(&queue.address, left);
        let padding = " ".repeat(left - width(&address));
        let line = Line::new(Tone::Plain, address + &padding).with(fullness(queue), number(queue.queued));
        line.with(Tone::Plain, number(queue.limit) + if has_several { &several } else { "" })
    };
    lines.extend(within(listeners.iter().map(of).collect(), room.rows.map(|rows| (rows / 3).max(1))));
    lines
}

fn fullness(queue: &Queue) -> Tone {
    let each = queue.limit.unwrap_or(u32::MAX) / queue.queues.max(1);
    match queue.fullest.or(queue.queued).unwrap_or_default() {
        // The kernel takes one connection more than the limit; then the queue is full.
        waiting if waiting >= each => Tone::Bad,
        waiting if waiting >= each.div_ceil(2) => Tone::Passing,
        _ => Tone::Plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::cause::Cause;

    fn worker(slot: u32, pid: Option<i32>, state: &str, respawns: u32, last: Option<Cause>) -> Worker {
        let last = last.map(|cause| Failed::new(slot, &cause));
        Worker { slot, pid, state: state.to_owned(), since_ms: 11_000_000, respawns, last, ..Worker::default() }
    }

    fn status(workers: Vec<Worker>) -> Status {
        let generation = |number, standing: &str, workers| Generation {
            number,
            standing: standing.to_owned(),
            monitor: Some(42),
            answered: number != 6,
            workers,
            ..Generation::default()
        };
        let queue = |address: &str, queues| Queue {
            address: address.to_owned(),
            queued: Some(4096),
            limit: Some(65535),
            queues,
            fullest: Some(4000),
            inode: None,
        };
        Status {
            name: "my_app".to_owned(),
            pid: 41,
            workers: 3,
            ready: true,
            uptime_ms: 300_000_000,
            generations: vec![generation(6, "draining", Vec::new()), generation(7, "serving", workers)],
            listeners: vec![queue(&"unix:/a/".repeat(20), 1), queue("127.0.0.1:80", 16)],
            ..Status::default()
        }
    }

    fn render(status: &Status, columns: usize, rows: Option<usize>) -> String {
        let usage = Usage { cpu: Some(100.0), memory: Some(700 << 20), ..Usage::default() };
        let usages = [(4_194_304, usage), (71, usage)].into();
        let lines = lines(status, &usages, Room { columns, rows });
        assert!(rows.is_none_or(|rows| lines.len() <= rows), "{lines:#?}");
        let text: String = lines.iter().map(|line| line.render(columns, false) + "\n").collect();
        assert!(text.lines().all(|line| width(line) <= columns), "{text}");
        text
    }

    #[test]
    fn a_table_fits_a_terminal_and_reads_well() {
        let pinged = |worker| Worker { sign_of_life_ms: Some(3_200), ..worker };
        let status = status(vec![
            pinged(worker(0, Some(4_194_304), "ready", 0, None)),
            pinged(worker(4095, Some(71), "ready", 4_294_967_295, Some(Cause::Killed(11, true)))),
            worker(2, None, "waiting", 2, Some(Cause::NotFound("there is no ./my_app in /srv; build it".repeat(3)))),
        ]);
        let expected = "\
my_app: ready, main 41, up 3d11h, 2 of 3 workers ready

GEN WORKER     PID STATE   UPTIME RESPAWNS  CPU%    PSS LAST EXIT
  6 draining, monitor 42, which does not answer: is it stopped?
  7 serving, monitor 42, 2 ready, 1 waiting
  7      0 4194304 ready    3h03m        0 100.0 700.0M sign of life 3s ago
  7   4095      71 ready    3h03m     4.2G 100.0 700.0M sign of life 3s ago; SI…
  7      2       - waiting      -        2     -      - not found

LISTENER                                    QUEUED     LIMIT    QUEUES   FULLEST
unix:/a/unix:/a/unix:/a/unix:/a/unix:/a…      4096     65535         1      4000
127.0.0.1:80                                  4096     65535        16      4000

worker 2: there is no ./my_app in /srv; build itthere is no ./my_app in /srv;
build itthere is no ./my_app in /srv; build it
";
        let table = render(&status, 80, None);
        assert_eq!(table, expected, "{table}");
        assert!(render(&status, 200, None).contains("build itthere is no ./my_app in /srv; build itthere"));
        render(&status, 30, None);
    }

    #[test]
    fn the_use_of_a_cgroup_is_shown_as_far_as_it_is_counted() {
        let all = Cgroup {
            memory: Some(120 << 20),
            memory_max: Some(2 << 30),
            pids: Some(14),
            pids_max: Some(500),
            ..Cgroup::default()
        };
        assert_eq!(of_cgroup(&all), ", cgroup 120.0M of 2.0G, 14 of 500 pids");
        assert_eq!(of_cgroup(&Cgroup { pids: Some(14), ..Cgroup::default() }), ", cgroup 14 pids");
        assert_eq!(of_cgroup(&Cgroup::default()), "");
    }

    #[test]
    fn with_many_workers_those_are_shown_with_which_something_is_amiss() {
        let state = |slot| if slot == 150 { "waiting" } else { "ready" };
        let status = status((0..200).map(|slot| worker(slot, None, state(slot), 0, None)).collect());
        let table = render(&status, 80, Some(24));
        assert!(table.contains(" 150   - waiting") && table.contains("… 187 more"), "{table}");
        assert!(table.contains("199 ready, 1 waiting") && table.contains("127.0.0.1:80"), "{table}");
        for rows in 1..24 {
            render(&status, 80, Some(rows));
        }
        assert_eq!(render(&status, 80, None).lines().count(), 209);
    }
}
