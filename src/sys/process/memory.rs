//! The memory of processes, in bytes, as /proc shows it.

use std::fs;
use std::path::Path;

use nix::unistd::{Pid, SysconfVar, sysconf};

/// The proportional share (PSS) of the process whose folder this is: memory that several processes share counts in part.
/// Takes time for each page, and a lock of the process.
pub fn proportional(folder: &Path) -> Option<u64> {
    let rollup = fs::read_to_string(folder.join("smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.split_ascii_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// All memory that a process has in use (RSS). Costs nothing, and everybody may see it.
fn resident(folder: &Path) -> Option<u64> {
    let statm = fs::read_to_string(folder.join("statm")).ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * sysconf(SysconfVar::PAGE_SIZE).ok().flatten()? as u64)
}

/// The memory of these processes together, as far as it matters for a limit: if even their RSS is well below it, their
/// RSS, else their PSS. A process whose PSS nobody may see counts with its RSS. None if all have ended.
pub fn of_family(family: &[Pid], limit: u64) -> Option<u64> {
    let folders = family.iter().map(|pid| Path::new("/proc").join(pid.to_string()));
    let all: Vec<_> = folders.filter_map(|folder| Some((resident(&folder)?, folder))).collect();
    let together = all.iter().map(|(resident, _)| resident).sum::<u64>();
    let is_far = together < limit / 8 * 7;
    let exact = || all.iter().map(|(resident, folder)| proportional(folder).unwrap_or(*resident)).sum();
    (!all.is_empty()).then(|| if is_far { together } else { exact() })
}
