//! Resources of workers: limits, CPUs, and how gladly the kernel ends them if memory is short.

use std::fs;

use nix::errno::Errno;
use nix::unistd::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};

use super::step::Step;
use crate::config::{CpuAffinity, Rlimit, RunAs};
use crate::sys::errno::words;
use crate::sys::processes::set_oom_score;

/// The resources that the workers of a generation may use.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Resources {
    rlimit: Vec<Rlimit>,
    oom_score_adj: Option<i32>,
    cpu_affinity: Option<CpuAffinity>,
}

impl Resources {
    pub(super) fn of(asked: &RunAs) -> Resources {
        let RunAs { rlimit, oom_score_adj, cpu_affinity, .. } = asked.clone();
        Resources { rlimit, oom_score_adj, cpu_affinity }
    }

    pub(super) fn sets_oom_score(&self) -> bool {
        self.oom_score_adj.is_some()
    }

    /// In a child, while it has the right to. Allocates nothing, and leaves errno alone if it sets no OOM score.
    pub(super) fn assume(&self) -> Result<(), (Step, Errno)> {
        if let Some(score) = self.oom_score_adj {
            set_oom_score(score).map_err(|errno| (Step::OomScore, errno))?;
        }
        self.rlimit.iter().try_for_each(|limit| limit.apply().map_err(|errno| (Step::Limit, errno)))
    }

    /// The CPUs of the worker in `slot`; of a mold, which is in none, where all its workers get the same.
    pub(super) fn cpus(&self, slot: Option<u32>) -> Option<CpuSet> {
        let mut set = CpuSet::new();
        match self.cpu_affinity.as_ref()? {
            CpuAffinity::List(ranges) => {
                ranges.iter().flat_map(|(first, last)| *first..=*last).for_each(|cpu| set.set(cpu))
            }
            CpuAffinity::Auto => {
                let allowed = sched_getaffinity(None).ok()?;
                let all: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect();
                set.set(*all.get(slot? as usize % all.len().max(1))?);
            }
        }
        Some(set)
    }

    /// Completes "cannot …".
    pub(super) fn explain(&self, step: Step, errno: Errno) -> String {
        let why = words(&errno.into());
        match step {
            Step::OomScore => {
                format!("set --oom-score-adj {}: {why}; only root may lower it", self.oom_score_adj.unwrap_or_default())
            }
            Step::Cpus => format!(
                "run on the CPUs {} (--cpu-affinity): {why}; {} may be used here",
                self.cpu_affinity.as_ref().map(ToString::to_string).unwrap_or_default(),
                allowed_cpus()
            ),
            // The one that is refused is refused again.
            _ => match self.rlimit.iter().find(|limit| limit.apply().is_err()) {
                Some(limit) => match limit.lower_hard_limit() {
                    Some(hard) if errno == Errno::EPERM => format!(
                        "set --rlimit {limit}: the hard limit is {hard}, and {}",
                        match nix::unistd::geteuid().is_root() {
                            true if limit.name() == "NOFILE" => {
                                "it cannot be raised here (sysctl fs.nr_open, or a container's rights)"
                            }
                            true => "it cannot be raised here (a container's rights)",
                            false => "only root may raise it",
                        }
                    ),
                    _ => format!("set --rlimit {limit}: {why}"),
                },
                None => format!("set its limits: {why}"),
            },
        }
    }
}

/// As the kernel writes them, such as `0-3`.
fn allowed_cpus() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let found = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    found.map_or("others".to_owned(), |list| list.trim().to_owned())
}

/// Sets the CPUs of a process. Allocates nothing, and leaves errno alone.
pub fn run_on(pid: Option<Pid>, cpus: &CpuSet) -> Result<(), Errno> {
    let pid = pid.and_then(|pid| rustix::process::Pid::from_raw(pid.as_raw()));
    sched_setaffinity(pid, cpus).map_err(|errno| Errno::from_raw(errno.raw_os_error()))
}
