//! What a process uses, from /proc: looked up here, so that main need not.

use std::fs;

use super::table::Usage;

/// Of the process `pid`, which has lived for `lived_ms`.
pub(super) fn of(pid: i32, lived_ms: u64) -> Usage {
    Usage { cpu: cpu_millis(pid).map(|used| used as f64 * 100.0 / lived_ms.max(1) as f64), memory: pss(pid) }
}

fn cpu_millis(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // "pid (comm) state …", and comm may hold spaces and parentheses; utime and stime are fields 14 and 15.
    let fields: Vec<&str> = stat[stat.rfind(')')? + 2..].split_ascii_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    Some(ticks * 1000 / u64::try_from(per_second).ok()?)
}

/// The proportional share of its memory; none where we may not look.
fn pss(pid: i32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.split_ascii_whitespace().next()?.parse::<u64>().ok()? * 1024)
}
