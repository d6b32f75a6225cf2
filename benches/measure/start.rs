//! From the exec of panzer to the first instruction of the last of its workers.

use super::Measured;
use super::bare::spawn_all;
use super::panzer::Panzer;
use super::program::Program;
use super::stamps::{Stamp, Stamps, now};
use super::table::{Table, percentile};

const ROUNDS: usize = 30;

/// Both in turns, for each number of workers.
pub(crate) fn measure(program: &Program, table: &mut Table) -> Measured<()> {
    for (workers, goal) in [(8, 2.0), (100, 1.2)] {
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(panzer(program, workers)?);
            bare.push(posix_spawn(program, workers)?);
        }
        let (ours, bare) = (percentile(&mut ours, 50), percentile(&mut bare, 50));
        table.ratio(&format!("start of {workers} workers, median"), ours, bare, goal);
    }
    table.note(&format!("against a loop of posix_spawn; {ROUNDS} times each, in turns"));
    // What holds it: seen with strace, and by starting an empty program.
    table.note("before the first worker panzer is executed once, about 1 ms for the loader and page");
    table.note("faults, and forks its monitor");
    Ok(())
}

fn panzer(program: &Program, workers: usize) -> Measured<u64> {
    let (mut stamps, stdout) = Stamps::pipe()?;
    let _panzer = Panzer::start(&["--workers", &workers.to_string()], program.command(), stdout)?;
    let begun = stamps.next()?.at;
    Ok(last(&stamps.take(workers)?).saturating_sub(begun))
}

fn posix_spawn(program: &Program, workers: usize) -> Measured<u64> {
    let (mut stamps, stdout) = Stamps::pipe()?;
    let begun = now()?;
    let _children = spawn_all(program.command(), workers, &stdout)?;
    Ok(last(&stamps.take(workers)?).saturating_sub(begun))
}

fn last(stamps: &[Stamp]) -> u64 {
    stamps.iter().map(|stamp| stamp.at).max().unwrap_or(0)
}
