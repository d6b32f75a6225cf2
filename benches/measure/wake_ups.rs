//! How often main and monitor wake while nothing happens.

use std::fs;
use std::time::Duration;

use nix::unistd::Pid;

use super::panzer::Panzer;
use super::program::Program;
use super::stamps::Stamps;
use super::table::Table;
use super::{Measured, SETTLED};

const IDLE: Duration = Duration::from_secs(10);

/// Both sizes at the same time: processes that sleep do not disturb each other.
pub(crate) fn measure(program: &Program, table: &mut Table) -> Measured<()> {
    let mut idle = Vec::new();
    for workers in [8, 100] {
        let (stamps, stdout) = Stamps::pipe()?;
        let panzer = Panzer::start(&["--workers", &workers.to_string()], program.command(), stdout)?;
        idle.push((workers, panzer, stamps));
    }
    let mut before = Vec::new();
    for (_, panzer, _) in &idle {
        panzer.wait_for("serves")?;
    }
    if let Some((_, panzer, _)) = idle.last() {
        panzer.stay_silent(SETTLED)?;
    }
    for (_, panzer, _) in &idle {
        before.push(switches(&panzer.processes()?)?);
    }
    if let Some((_, panzer, _)) = idle.first() {
        panzer.stay_silent(IDLE)?;
    }
    for ((workers, panzer, _), before) in idle.iter().zip(before) {
        let woken = switches(&panzer.processes()?)? - before;
        table.count(&format!("wake-ups in 10 s idle, {workers} workers"), woken, 0);
    }
    Ok(())
}

/// How often they have been switched out so far: each wake-up ends in one.
pub(crate) fn switches(pids: &[Pid]) -> Measured<u64> {
    let mut sum = 0;
    for pid in pids {
        for line in fs::read_to_string(format!("/proc/{pid}/status"))?.lines() {
            if let Some((_, number)) = line.split_once("ctxt_switches:") {
                sum += number.trim().parse::<u64>()?;
            }
        }
    }
    Ok(sum)
}
