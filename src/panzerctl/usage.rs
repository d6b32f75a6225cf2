//! What workers use, from /proc: looked up here, so that neither main nor a monitor has to.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::control::operator::status::{Status, Worker};

/// The kernel walks through the tables of a process to sum its memory up, and whoever wants to map something waits
/// for it meanwhile: of a span of time, at most this part is spent so.
const PART_FOR_MEMORY: u32 = 20;

/// What a worker uses, as far as we may look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Usage {
    /// Its share of one CPU in percent, since its start or since the look before.
    #[serde(rename = "cpu_percent", skip_serializing_if = "Option::is_none")]
    pub(super) cpu: Option<f64>,
    /// Its proportional share of its memory, in bytes.
    #[serde(rename = "pss_bytes", skip_serializing_if = "Option::is_none")]
    pub(super) memory: Option<u64>,
}

/// By pid.
pub(super) type Usages = BTreeMap<i32, Usage>;

/// A process by its pid and when it began, in ticks: a pid alone may be another's by and by.
type Identity = (i32, u64);

/// Looks, and remembers what it saw.
#[derive(Debug, Default)]
pub(super) struct Meter {
    seen: BTreeMap<Identity, Seen>,
    /// Not before this is memory summed up again.
    rests_until: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    at: Instant,
    cpu: Duration,
    memory: Option<u64>,
}

impl Meter {
    /// Looks at all live workers.
    pub(super) fn look(&mut self, status: &Status) -> Usages {
        let begun = Instant::now();
        let sums_memory = self.rests_until.is_none_or(|until| until <= begun);
        let mut memory_took = Duration::ZERO;
        let mut usages = Usages::new();
        let mut seen = BTreeMap::new();
        for generation in &status.generations {
            for worker in &generation.workers {
                let Some(process) = worker.pid.zip(generation.monitor).and_then(Process::find) else { continue };
                let before = self.seen.get(&process.identity);
                let memory = if sums_memory || before.is_none() {
                    let started = Instant::now();
                    let memory = process.memory();
                    memory_took += started.elapsed();
                    memory
                } else {
                    before.and_then(|before| before.memory)
                };
                let now = Seen { at: Instant::now(), cpu: process.cpu, memory };
                usages.insert(process.identity.0, Usage { cpu: Some(share(before, &now, worker)), memory });
                seen.insert(process.identity, now);
            }
        }
        self.seen = seen;
        if sums_memory {
            self.rests_until = Some(Instant::now() + memory_took * PART_FOR_MEMORY);
        }
        usages
    }
}

/// Since the look before, or since its start where there was none.
fn share(before: Option<&Seen>, now: &Seen, worker: &Worker) -> f64 {
    let (used, time) = match before {
        Some(before) => (now.cpu.saturating_sub(before.cpu), now.at.saturating_duration_since(before.at)),
        None => (now.cpu, Duration::from_millis(worker.since_ms)),
    };
    let share = used.as_secs_f64() * 100.0 / time.as_secs_f64().max(0.001);
    // What is used is counted in ticks, whose length says nothing of a worker that has just begun.
    if time < tick() * 2 { 0.0 } else { (share * 10.0).round() / 10.0 }
}

/// A worker's process, held by its folder in /proc: whatever is read there is of this process, or cannot be read.
#[derive(Debug)]
struct Process {
    folder: File,
    identity: Identity,
    cpu: Duration,
}

impl Process {
    /// The process `pid`, if it is a child of `monitor`; another one than was meant is not.
    fn find((pid, monitor): (i32, i32)) -> Option<Process> {
        let folder = File::open(format!("/proc/{pid}")).ok()?;
        let stat = read(&folder, "stat")?;
        // "pid (comm) state ppid …", and comm may hold spaces and parentheses; then by the numbers of
        // proc_pid_stat(5).
        let fields: Vec<&str> = stat.get(stat.rfind(')')? + 2..)?.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let (parent, used, begun) = (field(4)?, field(14)? + field(15)?, field(22)?);
        let is_ours = u64::try_from(monitor) == Ok(parent);
        is_ours.then(|| Process {
            folder,
            identity: (pid, begun),
            cpu: tick() * u32::try_from(used).unwrap_or(u32::MAX),
        })
    }

    fn memory(&self) -> Option<u64> {
        let rollup = read(&self.folder, "smaps_rollup")?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        Some(line.split_ascii_whitespace().next()?.parse::<u64>().ok()? * 1024)
    }
}

fn read(folder: &File, name: &str) -> Option<String> {
    let bytes = fs::read(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd())).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// What the kernel counts the use of CPUs in.
fn tick() -> Duration {
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten();
    Duration::from_secs(1) / per_second.and_then(|count| u32::try_from(count).ok()).unwrap_or(100).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::operator::status::Generation;

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
        };
        assert_eq!(share(None, &seen(10, 1_000), &worker), 10.0);
        assert_eq!(share(Some(&seen(8, 1_000)), &seen(10, 4_000), &worker), 150.0);
        assert_eq!(share(Some(&seen(10, 1_000)), &seen(10, 1_010), &worker), 0.0);
    }
}
