//! Whether the machine is quiet enough for figures of time.

use std::fs;
use std::time::Duration;

use nix::poll::{PollTimeout, poll};

use super::Measured;

const LOOKED_AT: Duration = Duration::from_millis(500);

/// More than this of all processors' time, and medians are those of the scheduler.
const QUIET: u64 = 10;

/// How much of the processors' time others use, in words that begin a line.
pub(crate) fn state() -> Measured<String> {
    let (busy_before, all_before) = ticks()?;
    // Nothing is awaited: what others do meanwhile is what is measured.
    poll(&mut [], PollTimeout::try_from(LOOKED_AT)?)?;
    let (busy, all) = ticks()?;
    let percent = (busy - busy_before) * 100 / (all - all_before).max(1);
    let processors = std::thread::available_parallelism()?;
    let verdict = if percent > QUIET { ": TOO BUSY, ratios of time say little" } else { "" };
    Ok(format!("{processors} processors, {percent} % of their time used by others{verdict}"))
}

/// Ticks not idle, and all, since the machine was started.
fn ticks() -> Measured<(u64, u64)> {
    let stat = fs::read_to_string("/proc/stat")?;
    // "cpu user nice system idle iowait irq softirq steal …", over all processors. The guests' ticks are in user's.
    let first = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = first.split_ascii_whitespace().skip(1).take(8).filter_map(|n| n.parse().ok()).collect();
    let all = ticks.iter().sum();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    Ok((all - idle, all))
}
