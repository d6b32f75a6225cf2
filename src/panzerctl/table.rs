//! The state of a panzer as a table of at most 80 columns.

use std::fmt::Write;

use crate::control::requests::{Failed, Generation, Status, Worker};

/// What is left in a line for why the last worker of a slot ended.
const LAST: usize = 21;

/// Of an address.
const ADDRESS: usize = 56;

/// What a worker uses: its share of a CPU since it began, in percent, and its memory in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    pub(super) cpu: Option<f64>,
    pub(super) memory: Option<u64>,
}

/// `usage` gives what a live worker uses.
pub(super) fn render(status: &Status, usage: impl Fn(i32, u64) -> Usage) -> String {
    let state = match (status.stopping, status.ready) {
        (true, _) => "stopping",
        (_, true) => "ready",
        _ => "not ready",
    };
    let name = cut(&status.name, 24);
    let (pid, up, workers) = (status.pid, time(status.uptime_ms), status.workers);
    // Writing to a string does not fail.
    let mut out = format!("{name}: {state}, main {pid}, up {up}, workers wanted: {workers}\n\n");
    let _ = writeln!(out, "GEN WORKER     PID STATE      UPTIME RESPAWNS  CPU%    PSS LAST EXIT");
    for generation in &status.generations {
        group(&mut out, generation, &usage);
    }
    if !status.listeners.is_empty() {
        let _ = writeln!(out, "\n{:<ADDRESS$} {:>9} {:>9}", "LISTENER", "QUEUED", "LIMIT");
    }
    for queue in &status.listeners {
        let (address, number) =
            (cut(&queue.address, ADDRESS), |n: Option<u32>| n.map_or("-".to_owned(), |n| n.to_string()));
        let _ = writeln!(out, "{address:<ADDRESS$} {:>9} {:>9}", number(queue.queued), number(queue.limit));
    }
    out
}

fn group(out: &mut String, generation: &Generation, usage: &impl Fn(i32, u64) -> Usage) {
    let monitor = generation.monitor.map_or_else(|| "none".to_owned(), |pid| pid.to_string());
    let silent = if generation.answered { "" } else { ", which does not answer: is it stopped?" };
    let _ = writeln!(out, "{:>3} {}, monitor {monitor}{silent}", generation.number, generation.standing);
    for worker in &generation.workers {
        let line =
            row(generation.number, worker, worker.pid.map(|pid| usage(pid, worker.since_ms)).unwrap_or_default());
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

fn row(generation: u32, worker: &Worker, usage: Usage) -> String {
    let pid = worker.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
    let cpu = usage.cpu.map_or_else(|| "-".to_owned(), |cpu| format!("{cpu:.1}"));
    let memory = usage.memory.map_or_else(|| "-".to_owned(), size);
    let last = worker.last.as_ref().map(short).unwrap_or_default();
    format!(
        "{generation:>3} {:>6} {pid:>7} {:<9} {:>7} {:>8} {cpu:>5} {memory:>6} {}",
        worker.slot,
        worker.state,
        time(worker.since_ms),
        worker.respawns,
        cut(&last, LAST)
    )
}

fn short(last: &Failed) -> String {
    match (last.code, &last.signal) {
        (Some(code), _) => format!("exit code {code}"),
        (_, Some(signal)) => signal.clone(),
        _ => last.cause.replace('_', " "),
    }
}

fn time(millis: u64) -> String {
    let seconds = millis / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

fn size(bytes: u64) -> String {
    match bytes >> 10 {
        kilo @ 0..1_000 => format!("{kilo}K"),
        kilo @ 1_000..1_000_000 => format!("{:.1}M", kilo as f64 / 1024.0),
        kilo => format!("{:.1}G", kilo as f64 / 1024.0 / 1024.0),
    }
}

fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 3).chain("...".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::requests::Queue;
    use crate::worker::cause::Cause;

    #[test]
    fn a_table_fits_a_terminal_and_reads_well() {
        let worker = |slot, pid, state: &str, since_ms, respawns, last: Option<Cause>| Worker {
            slot,
            pid,
            state: state.to_owned(),
            since_ms,
            respawns,
            last: last.map(|cause| Failed::new(slot, &cause)),
        };
        let workers = vec![
            worker(0, Some(4194304), "ready", 11_000_000, 0, None),
            worker(4095, Some(71), "ready", 5_000, 99_999, Some(Cause::Killed(11, true))),
            worker(2, None, "waiting", 90_000, 2, Some(Cause::NotFound("a long path".repeat(20)))),
        ];
        let generation = |number, standing: &str, workers| Generation {
            number,
            standing: standing.to_owned(),
            monitor: Some(42),
            answered: number != 6,
            workers,
        };
        let queue = Queue { address: "unix:/a/".repeat(20), queued: Some(4096), limit: Some(65535) };
        let status = Status {
            name: "my_app".to_owned(),
            pid: 41,
            workers: 3,
            ready: true,
            stopping: false,
            uptime_ms: 300_000_000,
            generations: vec![generation(6, "draining", Vec::new()), generation(7, "serving", workers)],
            listeners: vec![queue],
            ..Status::default()
        };
        let table = render(&status, |_, _| Usage { cpu: Some(100.0), memory: Some(700 << 20) });
        assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
        let expected = "\
my_app: ready, main 41, up 3d11h, workers wanted: 3

GEN WORKER     PID STATE      UPTIME RESPAWNS  CPU%    PSS LAST EXIT
  6 draining, monitor 42, which does not answer: is it stopped?
  7 serving, monitor 42
  7      0 4194304 ready       3h03m        0 100.0 700.0M
  7   4095      71 ready          5s    99999 100.0 700.0M SIGSEGV
  7      2       - waiting     1m30s        2     -      - not found
";
        assert!(table.starts_with(expected), "{table}");
    }
}
