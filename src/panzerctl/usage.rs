//! CPU and memory of the workers, read from /proc by panzerctl so that neither main nor a monitor has to.

use std::collections::BTreeMap;
use std::fs::File;
use std::num::NonZero;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::text::size;
use crate::control::operator::status::{Generation, Status, Worker};
use crate::sys::memory;
use crate::sys::processes::Stat;

/// To measure memory, the kernel walks the page tables of a process, and the process cannot map memory meanwhile. So at
/// most one part in this many of the time is spent on it.
const MEMORY_TIME_DIVISOR: u32 = 20;

/// A look measures no more memory once one of its threads has used this much CPU time. The rest is left to later looks.
const MEMORY_CPU_TIME: Duration = Duration::from_millis(30);
/// On a busy machine, it measures no more memory after this time either.
const MEMORY_TIME: Duration = Duration::from_millis(30);

/// Limit of the threads of a look.
const MAX_THREADS: usize = 8;
/// Number of processes that are worth a thread, and are measured even on a busy machine.
const PROCESSES_PER_THREAD: usize = 64;

/// The usage of a worker. None if it is unknown, or if we may not look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Usage {
    /// Share of one CPU in percent, since its start or since the last look.
    #[serde(rename = "cpu_percent", skip_serializing_if = "Option::is_none")]
    pub(super) cpu: Option<f64>,
    /// Proportional share of its memory, in bytes.
    #[serde(rename = "pss_bytes", skip_serializing_if = "Option::is_none")]
    pub(super) memory: Option<u64>,
    /// All memory that it has in use, in bytes.
    #[serde(rename = "rss_bytes", skip_serializing_if = "Option::is_none")]
    pub(super) resident: Option<u64>,
    /// Requests per second, since its start or since the last look. None if it does not report its requests.
    #[serde(rename = "requests_per_second", skip_serializing_if = "Option::is_none")]
    pub(super) requests: Option<f64>,
}

impl Usage {
    /// Its proportional share of memory, or an upper bound of it.
    pub(super) fn at_most(&self) -> Option<u64> {
        self.memory.or(self.resident)
    }

    /// Its proportional share of memory for people: "<12.3M" if only a bound is known.
    pub(super) fn shown_memory(&self) -> Option<String> {
        let sign = if self.memory.is_some() { "" } else { "<" };
        self.at_most().map(|bytes| format!("{sign}{}", size(bytes)))
    }
}

/// Usage by pid.
pub(super) type Usages = BTreeMap<i32, Usage>;

/// Memory of these workers together, as far as they run.
pub(super) fn memory_of<'a>(workers: impl Iterator<Item = &'a Worker>, usages: &Usages) -> Usage {
    let none = Usage { memory: Some(0), resident: Some(0), ..Usage::default() };
    workers.filter_map(|worker| usages.get(&worker.pid?)).fold(none, |sum, one| Usage {
        memory: sum.memory.zip(one.memory).map(|(sum, one)| sum + one),
        resident: Some(sum.resident.unwrap_or_default() + one.at_most().unwrap_or_default()),
        ..none
    })
}

/// Measures usage, and remembers the last measurement.
#[derive(Debug, Default)]
pub(super) struct Meter {
    seen: BTreeMap<i32, Seen>,
    /// Memory is not measured again before this time.
    rests_until: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    pid: i32,
    at: Instant,
    /// Start of the process in ticks, since a pid may be used again.
    started: u64,
    cpu: Duration,
    /// Proportional share, and when it was measured.
    memory: Option<(Instant, u64)>,
    requests: Option<u64>,
}

impl Meter {
    /// Measures all live workers, and molds.
    pub(super) fn look(&mut self, status: &Status) -> Usages {
        let begun = Instant::now();
        let is_due = self.rests_until.is_none_or(|until| until <= begun);
        let of = |generation| Generation::processes(generation).map(move |worker| (generation, worker));
        let mut workers: Vec<(&Generation, &Worker)> = status.generations.iter().flat_map(of).collect();
        // A look may not have the time for all. Those whose memory is unknown or was measured long ago come first.
        workers.sort_by_key(|(_, worker)| self.seen.get(&worker.pid?)?.memory.map(|(at, _)| at));
        let next = AtomicUsize::new(0);
        let part = || {
            let (used, mut found) = (cpu_time(), Vec::new());
            while let Some((generation, worker)) = workers.get(next.fetch_add(1, Relaxed)) {
                let is_in_time = found.len() < PROCESSES_PER_THREAD || begun.elapsed() < MEMORY_TIME;
                let has_time = is_in_time && cpu_time() - used < MEMORY_CPU_TIME;
                found.extend(self.measure(generation, worker, |is_known| has_time && (is_due || !is_known)));
            }
            (found, cpu_time() - used)
        };
        let parts = in_parallel(workers.len() / PROCESSES_PER_THREAD, part);
        let all = || parts.iter().flat_map(|(found, _)| found);
        self.seen = all().map(|(seen, _)| (seen.pid, *seen)).collect();
        if is_due {
            let took: Duration = parts.iter().map(|(_, took)| took).sum();
            self.rests_until = Some(Instant::now() + took * MEMORY_TIME_DIVISOR);
        }
        all().map(|(seen, usage)| (seen.pid, *usage)).collect()
    }

    fn measure(
        &self,
        generation: &Generation,
        worker: &Worker,
        measures: impl Fn(bool) -> bool,
    ) -> Option<(Seen, Usage)> {
        let pid = worker.pid?;
        let process = Process::find(pid, generation.monitor?)?;
        let before = self.seen.get(&pid).filter(|before| before.started == process.started);
        let mut memory = before.and_then(|before| before.memory);
        if measures(memory.is_some()) {
            memory = process.memory().map(|memory| (Instant::now(), memory));
        }
        let Process { started, cpu, resident, .. } = process;
        let now = Seen { pid, at: Instant::now(), started, cpu, memory, requests: worker.requests };
        let (cpu, requests) = (Some(share(before, &now, worker)), rate(before, &now, worker));
        Some((now, Usage { cpu, memory: memory.map(|(_, memory)| memory), resident, requests }))
    }
}

/// Runs `part` here and in up to `more` threads, as far as there are processors and the system lets us.
fn in_parallel<T: Send>(more: usize, part: impl Fn() -> T + Sync) -> Vec<T> {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        let spawn = |_| thread::Builder::new().spawn_scoped(scope, &part).ok();
        let threads: Vec<_> = (1..processors.min(MAX_THREADS).min(more + 1)).map_while(spawn).collect();
        let mut parts = vec![part()];
        parts.extend(threads.into_iter().filter_map(|thread| thread.join().ok()));
        parts
    })
}

/// CPU time that this thread has used.
fn cpu_time() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
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
    /// In ticks.
    started: u64,
    cpu: Duration,
    /// None for a zombie.
    resident: Option<u64>,
}

impl Process {
    /// The process `pid`, if it is a child of `monitor`. Another process with the same pid is not.
    fn find(pid: i32, monitor: i32) -> Option<Process> {
        let folder = File::open(format!("/proc/{pid}")).ok()?;
        let stat = Stat::read(&folder, "stat")?;
        let ticks = stat.field::<u64>(14)? + stat.field::<u64>(15)?;
        let cpu = tick() * u32::try_from(ticks).unwrap_or(u32::MAX);
        let resident = memory::resident(&stat).filter(|bytes| *bytes > 0);
        (stat.field(4) == Some(monitor)).then_some(Process { folder, started: stat.field(22)?, cpu, resident })
    }

    fn memory(&self) -> Option<u64> {
        memory::proportional(&self.folder, "smaps_rollup")
    }
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
    fn many_are_looked_at_in_several_threads_and_each_once() {
        let mut many = status(std::process::id(), std::os::unix::process::parent_id());
        let worker = many.generations[0].workers[0].clone();
        many.generations[0].workers.resize(10 * PROCESSES_PER_THREAD, worker);
        let looked = AtomicUsize::new(0);
        assert_eq!(in_parallel(0, || looked.fetch_add(1, Relaxed)), [0]);
        assert!(in_parallel(9, || looked.fetch_add(1, Relaxed)).len() <= MAX_THREADS);
        let mut meter = Meter::default();
        assert!(meter.look(&many).into_values().all(|usage| usage.resident > Some(0)));
        assert_eq!(meter.seen.len(), 1);
    }

    #[test]
    fn memory_that_was_not_measured_is_bounded() {
        let usage = |memory, resident| Usage { memory, resident, ..Usage::default() };
        let usages = [(1, usage(Some(3 << 20), Some(5 << 20))), (2, usage(None, Some(4 << 20)))].into();
        let worker = |pid| Worker { pid: Some(pid), ..Worker::default() };
        let memory_of = |pids: &[i32]| {
            let workers: Vec<_> = pids.iter().map(|pid| worker(*pid)).collect();
            memory_of(workers.iter(), &usages)
        };
        assert_eq!(memory_of(&[1, 3]).shown_memory().unwrap(), "3.0M");
        assert_eq!(memory_of(&[1, 2]).shown_memory().unwrap(), "<7.0M");
        assert_eq!((memory_of(&[1, 2]).memory, usage(None, None).shown_memory()), (None, None));
    }

    #[test]
    fn the_share_is_that_since_the_look_before() {
        let worker = Worker { since_ms: 10_000, ..Worker::default() };
        let begun = Instant::now();
        let seen = |seconds, cpu| Seen {
            at: begun + Duration::from_secs(seconds),
            pid: 1,
            started: 0,
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
