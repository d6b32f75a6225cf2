//! CPU and memory of the workers, read from /proc by panzerctl so that neither main nor a monitor has to.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::control::operator::status::{Generation, Status, Worker};
use crate::sys::memory;
use crate::sys::processes::Stat;

/// To measure memory, the kernel walks the page tables of a process, and the process cannot map memory meanwhile. So at
/// most one part in this many of the time is spent on it.
const MEMORY_TIME_DIVISOR: u32 = 20;

/// The usage of a worker. None if we may not look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Usage {
    /// Share of one CPU in percent, since its start or since the last look.
    #[serde(rename = "cpu_percent", skip_serializing_if = "Option::is_none")]
    pub(super) cpu: Option<f64>,
    /// Proportional share of its memory, in bytes.
    #[serde(rename = "pss_bytes", skip_serializing_if = "Option::is_none")]
    pub(super) memory: Option<u64>,
    /// Requests per second, since its start or since the last look. None if it does not report its requests.
    #[serde(rename = "requests_per_second", skip_serializing_if = "Option::is_none")]
    pub(super) requests: Option<f64>,
}

/// Usage by pid.
pub(super) type Usages = BTreeMap<i32, Usage>;

/// A process by its pid and its start time in ticks, since a pid may be used again.
type ProcessId = (i32, u64);

/// Measures usage, and remembers the last measurement.
#[derive(Debug, Default)]
pub(super) struct Meter {
    seen: BTreeMap<ProcessId, Seen>,
    /// Memory is not measured again before this time.
    rests_until: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    at: Instant,
    cpu: Duration,
    memory: Option<u64>,
    requests: Option<u64>,
}

impl Meter {
    /// Measures all live workers, and molds.
    pub(super) fn look(&mut self, status: &Status) -> Usages {
        let begun = Instant::now();
        let measures_memory = self.rests_until.is_none_or(|until| until <= begun);
        let mut memory_took = Duration::ZERO;
        let mut usages = Usages::new();
        let mut seen = BTreeMap::new();
        for generation in &status.generations {
            for worker in generation.processes() {
                let Some(process) = worker.pid.zip(generation.monitor).and_then(Process::find) else { continue };
                let before = self.seen.get(&process.id);
                let memory = if measures_memory || before.is_none() {
                    let started = Instant::now();
                    let memory = process.memory();
                    memory_took += started.elapsed();
                    memory
                } else {
                    before.and_then(|before| before.memory)
                };
                let now = Seen { at: Instant::now(), cpu: process.cpu, memory, requests: worker.requests };
                let (cpu, requests) = (Some(share(before, &now, worker)), rate(before, &now, worker));
                usages.insert(process.id.0, Usage { cpu, memory, requests });
                seen.insert(process.id, now);
            }
        }
        self.seen = seen;
        if measures_memory {
            self.rests_until = Some(Instant::now() + memory_took * MEMORY_TIME_DIVISOR);
        }
        usages
    }
}

/// The proportional shares of all processes of a generation, as far as we may look.
pub(super) fn memory_of(generation: &Generation, usages: &Usages) -> u64 {
    let memory = |worker: &Worker| usages.get(&worker.pid?)?.memory;
    generation.processes().filter_map(memory).sum()
}

/// CPU share since the measurement `before`; without one, since the worker began.
fn share(before: Option<&Seen>, now: &Seen, worker: &Worker) -> f64 {
    let (used, time) = match before {
        Some(before) => (now.cpu.saturating_sub(before.cpu), now.at.saturating_duration_since(before.at)),
        None => (now.cpu, Duration::from_millis(worker.since_ms)),
    };
    let share = used.as_secs_f64() * 100.0 / time.as_secs_f64().max(0.001);
    // The kernel counts in ticks, which are too long to say anything about a worker that has just begun.
    if time < tick() * 2 { 0.0 } else { (share * 10.0).round() / 10.0 }
}

/// Requests per second since the measurement `before`; without one, since the worker began.
fn rate(before: Option<&Seen>, now: &Seen, worker: &Worker) -> Option<f64> {
    let (then, time) = match before {
        Some(before) => (before.requests.unwrap_or_default(), now.at.saturating_duration_since(before.at)),
        None => (0, Duration::from_millis(worker.since_ms)),
    };
    let rate = now.requests?.saturating_sub(then) as f64 / time.as_secs_f64().max(0.001);
    Some((rate * 10.0).round() / 10.0)
}

/// A worker's process, held by its open folder in /proc: reads there are about this process, or fail.
#[derive(Debug)]
struct Process {
    folder: File,
    id: ProcessId,
    cpu: Duration,
}

impl Process {
    /// The process `pid`, if it is a child of `monitor`. Another process with the same pid is not.
    fn find((pid, monitor): (i32, i32)) -> Option<Process> {
        let folder = File::open(format!("/proc/{pid}")).ok()?;
        let stat = Stat::read(&path(&folder))?;
        let ticks = stat.field::<u64>(14)? + stat.field::<u64>(15)?;
        let cpu = tick() * u32::try_from(ticks).unwrap_or(u32::MAX);
        (stat.field(4) == Some(monitor)).then_some(Process { folder, id: (pid, stat.field(22)?), cpu })
    }

    fn memory(&self) -> Option<u64> {
        memory::proportional(&path(&self.folder))
    }
}

fn path(folder: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()))
}

/// The unit in which the kernel counts CPU time.
fn tick() -> Duration {
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten();
    Duration::from_secs(1) / per_second.and_then(|count| u32::try_from(count).ok()).unwrap_or(100).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pid: u32, monitor: u32) -> Status {
        let (pid, monitor) = (Some(pid.cast_signed()), Some(monitor.cast_signed()));
        let worker = Worker { pid, since_ms: 1_000, ..Worker::default() };
        let generations = vec![Generation { monitor, workers: vec![worker], ..Generation::default() }];
        Status { generations, ..Status::default() }
    }

    #[test]
    fn a_child_of_the_monitor_is_looked_at_and_nobody_else() {
        let (pid, parent) = (std::process::id(), std::os::unix::process::parent_id());
        let usage = Meter::default().look(&status(pid, parent))[&pid.cast_signed()];
        assert!(usage.memory.is_some_and(|memory| memory > 0) && usage.cpu.is_some(), "{usage:?}");
        assert!(Meter::default().look(&status(pid, 1 << 30)).is_empty());
        assert!(Meter::default().look(&status(1 << 30, parent)).is_empty());
    }

    #[test]
    fn the_share_is_that_since_the_look_before() {
        let worker = Worker { since_ms: 10_000, ..Worker::default() };
        let begun = Instant::now();
        let seen = |seconds, cpu| Seen {
            at: begun + Duration::from_secs(seconds),
            cpu: Duration::from_millis(cpu),
            memory: None,
            requests: Some(seconds * seconds),
        };
        assert_eq!(rate(None, &seen(10, 0), &worker), Some(10.0));
        assert_eq!(rate(Some(&seen(8, 0)), &seen(10, 0), &worker), Some(18.0));
        assert_eq!(rate(None, &Seen { requests: None, ..seen(10, 0) }, &worker), None);
        assert_eq!(share(None, &seen(10, 1_000), &worker), 10.0);
        assert_eq!(share(Some(&seen(8, 1_000)), &seen(10, 4_000), &worker), 150.0);
        assert_eq!(share(Some(&seen(10, 1_000)), &seen(10, 1_010), &worker), 0.0);
    }
}
