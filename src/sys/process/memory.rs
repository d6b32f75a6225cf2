//! The memory of processes, in bytes, as /proc shows it.

use std::os::fd::AsFd;

use nix::unistd::{Pid, SysconfVar, sysconf};

use super::processes::{Stat, content};

/// The proportional share (PSS) of a process, from its file smaps_rollup at this path, which begins in `folder`. Memory
/// that several processes share counts in part. Takes time for each page, and a lock of the process.
pub fn proportional(folder: impl AsFd, path: &str) -> Option<u64> {
    let rollup = String::from_utf8(content(folder, path)?).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.split_ascii_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// All memory that a process has in use (RSS). Costs nothing, and everybody may see it.
pub fn resident(stat: &Stat) -> Option<u64> {
    Some(stat.field::<u64>(24)? * sysconf(SysconfVar::PAGE_SIZE).ok().flatten()? as u64)
}

/// The memory of these processes together, as far as it matters for a limit: if even their RSS is well below it, their
/// RSS, else their PSS. A process whose PSS nobody may see counts with its RSS. None if all have ended.
pub fn of_family(family: &[Pid], limit: u64) -> Option<u64> {
    let all: Vec<_> = family.iter().filter_map(|pid| Some((resident(&Stat::of(*pid)?)?, pid))).collect();
    let together = all.iter().map(|(resident, _)| resident).sum::<u64>();
    let is_far = together < limit / 8 * 7;
    let share = |pid| proportional(rustix::fs::CWD, &format!("/proc/{pid}/smaps_rollup"));
    let exact = || all.iter().map(|(resident, pid)| share(pid).unwrap_or(*resident)).sum();
    (!all.is_empty()).then(|| if is_far { together } else { exact() })
}
