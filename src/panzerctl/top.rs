//! `panzerctl top`: the workers of all generations in one list, sorted; and the keys that work there.

use std::cmp::Ordering;

use super::logs;
use super::table::{Room, headline, queues, within};
use super::text::{Line, Tone, count, cut, percent, time, width, wrap};
use super::usage::{Usage, Usages, memory_of};
use crate::control::operator::status::{Status, Worker};

const HEADS: [&str; 9] = ["WORKER", "GEN", "PID", "STATE", "UPTIME", "RESPAWNS", "CPU%", "PSS", "REQ/S"];
const STATE: usize = 3;

/// Order of the list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Cpu,
    Memory,
    Requests,
    Uptime,
    Respawns,
    Worker,
}

impl Sort {
    /// The head of the column that it sorts by.
    fn head(self) -> &'static str {
        match self {
            Sort::Cpu => "CPU%",
            Sort::Memory => "PSS",
            Sort::Requests => "REQ/S",
            Sort::Uptime => "UPTIME",
            Sort::Respawns => "RESPAWNS",
            Sort::Worker => "WORKER",
        }
    }
}

/// The meaning of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Sort(Sort),
    Reload,
    Logs,
    Quit,
}

impl Key {
    pub(super) fn of(byte: u8) -> Option<Key> {
        Some(match byte {
            b'c' => Key::Sort(Sort::Cpu),
            b'm' => Key::Sort(Sort::Memory),
            b's' => Key::Sort(Sort::Requests),
            b'u' => Key::Sort(Sort::Uptime),
            b'n' => Key::Sort(Sort::Respawns),
            b'w' => Key::Sort(Sort::Worker),
            b'r' => Key::Reload,
            b'l' => Key::Logs,
            b'q' => Key::Quit,
            _ => return None,
        })
    }
}

const HELP: &str = "sort: c CPU m PSS s REQ/S u uptime n respawns w worker  r reload l logs q quit";

/// The list, and below it the keys or `said`, which is news.
pub(super) fn lines(
    status: &Status,
    usages: &Usages,
    room: Room,
    sort: Sort,
    said: Option<&(Tone, String)>,
) -> Vec<Line> {
    let mut workers: Vec<(u32, &Worker, Usage)> = Vec::new();
    for generation in &status.generations {
        let usage = |worker: &Worker| worker.pid.and_then(|pid| usages.get(&pid)).copied().unwrap_or_default();
        workers.extend(generation.processes().map(|worker| (generation.number, worker, usage(worker))));
    }
    workers.sort_by(|one, other| compare(sort, one, other));
    let cpu = workers.iter().filter_map(|(_, _, usage)| usage.cpu).sum::<f64>();
    let memory = memory_of(workers.iter().map(|(_, worker, _)| *worker), usages).shown_memory().unwrap_or_default();
    let reported: Vec<f64> = workers.iter().filter_map(|(_, _, usage)| usage.requests).collect();
    let requests = match reported.is_empty() {
        true => String::new(),
        false => format!(", {:.1} requests/s", reported.iter().sum::<f64>()),
    };
    let total = format!("{} processes, CPU {}, PSS {memory}{requests}", workers.len(), percent(cpu));
    // The last column is for those who report requests.
    let heads = &HEADS[..HEADS.len() - usize::from(reported.is_empty())];
    let mut head = vec![headline(status), Line::new(Tone::Plain, total)];
    head.extend(queues(&status.listeners, room));
    head.push(Line::default());
    let rows: Vec<[String; 9]> =
        workers.iter().map(|(generation, worker, usage)| row(*generation, worker, *usage)).collect();
    let widths: [usize; 9] =
        std::array::from_fn(|at| rows.iter().map(|row| width(&row[at])).max().unwrap_or(0).max(width(HEADS[at])));
    let aligned = |at: usize, cell: &str| match at {
        STATE => format!("{cell:<w$} ", w = widths[at]),
        _ => format!("{cell:>w$} ", w = widths[at]),
    };
    let headings = heads.iter().enumerate().fold(Line::default(), |line, (at, name)| {
        let tone = if *name == sort.head() { Tone::Good } else { Tone::Heading };
        line.with(tone, aligned(at, name))
    });
    head.push(headings);
    let shown = rows.iter().zip(&workers).map(|(row, (_, worker, _))| {
        row.iter().take(heads.len()).enumerate().fold(Line::default(), |line, (at, cell)| {
            let tone = if at == STATE { tone(&worker.state) } else { Tone::Plain };
            line.with(tone, aligned(at, cell))
        })
    });
    with_keys(head.into_iter().chain(shown).collect(), room, said)
}

/// The last lines of the logs, which are read anew each time.
pub(super) fn log_lines(status: &Status, room: Room, said: Option<&(Tone, String)>) -> Vec<Line> {
    let mut lines = vec![headline(status), Line::default()];
    let count = room.rows.unwrap_or_default().saturating_sub(lines.len() + 1).max(1);
    match logs::last_lines(status, count) {
        Ok(all) => lines.extend(all.iter().map(|line| Line::new(Tone::Plain, line.replace('\t', " ")))),
        Err(why) => lines.extend(wrap(&why, room.columns, 4).iter().map(|line| Line::new(Tone::Plain, line))),
    }
    with_keys(lines, room, said)
}

/// On a screen the last line is kept for the keys.
fn with_keys(lines: Vec<Line>, room: Room, said: Option<&(Tone, String)>) -> Vec<Line> {
    let Some(rows) = room.rows else { return lines };
    let mut lines = within(lines, Some(rows.saturating_sub(1)));
    lines.push(match said {
        Some((tone, text)) => Line::new(*tone, text),
        None => Line::new(Tone::Faint, HELP),
    });
    lines
}

/// The greatest first; workers by their number.
fn compare(sort: Sort, one: &(u32, &Worker, Usage), other: &(u32, &Worker, Usage)) -> Ordering {
    let number = |of: Option<f64>| of.unwrap_or(-1.0);
    let place = (one.0, one.1.slot).cmp(&(other.0, other.1.slot));
    match sort {
        Sort::Cpu => number(other.2.cpu).total_cmp(&number(one.2.cpu)),
        Sort::Memory => other.2.at_most().cmp(&one.2.at_most()),
        Sort::Requests => number(other.2.requests).total_cmp(&number(one.2.requests)),
        Sort::Uptime => other.1.since_ms.cmp(&one.1.since_ms),
        Sort::Respawns => other.1.respawns.cmp(&one.1.respawns),
        Sort::Worker => Ordering::Equal,
    }
    .then(place)
}

fn row(generation: u32, worker: &Worker, usage: Usage) -> [String; 9] {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        worker.shown_slot(),
        generation.to_string(),
        or_none(worker.pid.map(|pid| pid.to_string())),
        cut(&worker.state, 9),
        or_none(worker.pid.map(|_| time(worker.since_ms))),
        count(worker.respawns),
        or_none(usage.cpu.map(percent)),
        or_none(usage.shown_memory()),
        or_none(usage.requests.map(|rate| format!("{rate:.1}"))),
    ]
}

fn tone(state: &str) -> Tone {
    match state {
        "ready" => Tone::Good,
        "waiting" | "stopped" => Tone::Bad,
        "empty" => Tone::Faint,
        _ => Tone::Passing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::operator::status::Generation;

    fn shown(sort: Sort, rows: Option<usize>) -> Vec<String> {
        shown_with(sort, rows, [None, Some(9.5), Some(20.0)])
    }

    fn shown_with(sort: Sort, rows: Option<usize>, rates: [Option<f64>; 3]) -> Vec<String> {
        let worker = |slot, respawns| Worker {
            slot,
            pid: Some(slot as i32 + 100),
            state: "ready".to_owned(),
            since_ms: 1000 * u64::from(slot),
            respawns,
            ..Worker::default()
        };
        let workers = vec![worker(0, 0), worker(1, 7), worker(2, 1)];
        let generation = Generation { number: 3, standing: "serving".to_owned(), workers, ..Generation::default() };
        let status = Status { name: "app".to_owned(), generations: vec![generation], ..Status::default() };
        let usage =
            |cpu, memory, requests| Usage { cpu: Some(cpu), memory: Some(memory), requests, ..Usage::default() };
        let usages =
            [(100, usage(5.0, 4096, rates[0])), (101, usage(1.0, 1 << 30, rates[1])), (102, usage(90.0, 0, rates[2]))];
        let usages = usages.into();
        let room = Room { columns: 80, rows };
        let lines = lines(&status, &usages, room, sort, None);
        lines.iter().map(|line| line.render(80, false)).collect()
    }

    fn order(sort: Sort) -> Vec<String> {
        let rows = shown(sort, None).into_iter().skip_while(|line| !line.contains("RESPAWNS")).skip(1);
        rows.filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
    }

    #[test]
    fn the_list_is_sorted_by_what_was_chosen() {
        assert_eq!(order(Sort::Cpu), ["2", "0", "1"]);
        assert_eq!(order(Sort::Memory), ["1", "0", "2"]);
        assert_eq!(order(Sort::Requests), ["2", "1", "0"]);
        assert_eq!(order(Sort::Uptime), ["2", "1", "0"]);
        assert_eq!(order(Sort::Respawns), ["1", "2", "0"]);
        assert_eq!(order(Sort::Worker), ["0", "1", "2"]);
    }

    #[test]
    fn requests_are_shown_where_somebody_reports_them() {
        let lines = shown(Sort::Worker, None);
        assert!(lines[0..2].iter().any(|line| line.ends_with(", 29.5 requests/s")), "{lines:#?}");
        let last = |line: &String| line.split_whitespace().last().map(str::to_owned);
        let columns: Vec<_> = lines.iter().skip_while(|line| !line.contains("RESPAWNS")).filter_map(last).collect();
        assert_eq!(columns, ["REQ/S", "-", "9.5", "20.0"]);
        assert!(shown_with(Sort::Worker, None, [None; 3]).iter().all(|line| !line.to_lowercase().contains("req")));
    }

    #[test]
    fn it_fits_a_terminal_and_keeps_a_line_for_the_keys() {
        let lines = shown(Sort::Cpu, Some(6));
        assert_eq!(lines.len(), 6);
        assert!(lines[5].contains("r reload") && lines[4].contains("more"), "{lines:#?}");
        assert!(shown(Sort::Cpu, Some(30)).iter().all(|line| width(line) <= 80));
        assert!(shown(Sort::Cpu, None).iter().all(|line| !line.contains("r reload")));
    }
}
