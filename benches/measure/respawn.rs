//! From `kill -9` of a worker to its replacement's first instruction.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::poll::{PollTimeout, poll};
use nix::sys::signal::{Signal, kill};

use super::Measured;
use super::panzer::Panzer;
use super::program::{BARE_RESPAWN, Program, own_executable};
use super::stamps::{Stamp, Stamps, now};
use super::table::{Table, percentile};

const ROUNDS: usize = 200;

/// Each life is so long that its end is respawned at once.
pub(crate) const LIFE: Duration = Duration::from_millis(110);

/// Something that keeps one worker running, and the worker that runs now.
pub(crate) struct Kept {
    stamps: Stamps,
    worker: Stamp,
    pub(crate) times: Vec<u64>,
}

impl Kept {
    pub(crate) fn new(mut stamps: Stamps) -> Measured<Kept> {
        let worker = stamps.next()?;
        Ok(Kept { stamps, worker, times: Vec::new() })
    }

    fn kill_worker(&mut self) -> Measured<()> {
        let killed = now()?;
        // Its keeper reaps it, but only we end it.
        kill(self.worker.pid, Signal::SIGKILL)?;
        self.worker = self.stamps.next()?;
        self.times.push(self.worker.at.saturating_sub(killed));
        Ok(())
    }
}

/// A process that is killed and reaped when this is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Both in turns.
pub(crate) fn measure(program: &Program, table: &mut Table) -> Measured<()> {
    let (mut stamps, stdout) = Stamps::pipe()?;
    let panzer = Panzer::start(&["--workers", "1", "--healthy-after", "0s"], program.command(), stdout)?;
    stamps.next()?;
    let mut ours = Kept::new(stamps)?;
    panzer.wait_for("serves")?;

    let (stamps, stdout) = Stamps::pipe()?;
    let mut loops = Command::new(own_executable()?);
    loops.arg(BARE_RESPAWN).args(program.command()).stdin(Stdio::null()).stdout(stdout);
    let _bare = Killed(loops.spawn()?);
    // The command holds a copy of the pipe's end.
    drop(loops);
    let mut bare = Kept::new(stamps)?;

    in_turns(&mut [&mut ours, &mut bare], ROUNDS)?;
    for (figure, percent) in [("respawn after kill -9, median", 50), ("respawn after kill -9, p90", 90)] {
        let (ours, bare) = (percentile(&mut ours.times, percent), percentile(&mut bare.times, percent));
        if percent == 50 { table.ratio(figure, ours, bare, 1.2) } else { table.plain_ratio(figure, ours, bare) }
    }
    table.note(&format!("against a loop of waitpid, fork, exec; {ROUNDS} times each, in turns"));
    Ok(())
}

/// Kills a worker of each, so often. Each is as often the first as any other.
pub(crate) fn in_turns(kept: &mut [&mut Kept], rounds: usize) -> Measured<()> {
    for round in 0..rounds {
        poll(&mut [], PollTimeout::try_from(LIFE)?)?;
        let count = kept.len();
        for turn in 0..count {
            if let Some(kept) = kept.get_mut((round + turn) % count) {
                kept.kill_worker()?;
            }
        }
    }
    Ok(())
}
