//! A program that is loaded once and forks its workers: how much memory they share, and how long a respawn takes.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::poll::{PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Measured;
use super::panzer::Panzer;
use super::program::Program;
use super::smaps::whole;
use super::stamps::{Stamp, Stamps, now};
use super::table::{Table, percentile};

const ROUNDS: usize = 50;
const WORKERS: u64 = 8;

/// Each life is so long that its end is respawned at once.
const LIFE: Duration = Duration::from_millis(110);

/// Ends what it started.
struct Bare(Child);

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn script() -> Measured<(String, String)> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let text = |path: PathBuf| path.to_str().map(str::to_owned).ok_or("a path that is not UTF-8");
    Ok((text(root.join("benches/measure/mold.py"))?, text(root.join("clients/python"))?))
}

fn start_mold(options: &[&str], stdout: std::io::PipeWriter, loads_for: &str) -> Measured<Panzer> {
    let (script, client) = script()?;
    let client = format!("CLIENT={client}");
    let loads_for = format!("LOADS_FOR={loads_for}");
    let own = ["--preload", "--healthy-after", "0s", "--env", &client, "--env", &loads_for];
    let options: Vec<&str> = own.iter().chain(options).copied().collect();
    Panzer::start(&options, &["python3".to_owned(), script], stdout)
}

fn start_bare(argument: &str) -> Measured<(Bare, Stamps)> {
    let (script, _) = script()?;
    let (stamps, stdout) = Stamps::pipe()?;
    let mut command = Command::new("python3");
    command.args([&script, argument]).stdin(Stdio::null()).stdout(stdout);
    // SAFETY: one system call.
    unsafe { std::os::unix::process::CommandExt::pre_exec(&mut command, || Ok(set_pdeathsig(Signal::SIGKILL)?)) };
    let child = Bare(command.spawn()?);
    // The command holds a copy of the pipe's end.
    drop(command);
    Ok((child, stamps))
}

pub(crate) fn measure(_program: &Program, table: &mut Table) -> Measured<()> {
    ready(table)?;
    memory(table)?;
    respawn(table)
}

/// All workers of a program that takes two seconds to load.
fn ready(table: &mut Table) -> Measured<()> {
    let (mut stamps, stdout) = Stamps::pipe()?;
    let _panzer = start_mold(&["--workers", &WORKERS.to_string()], stdout, "2")?;
    let begun = stamps.next()?.at;
    let last = stamps.take(WORKERS as usize)?.iter().map(|stamp| stamp.at).max().unwrap_or(begun);
    let took = (last - begun) as f64 / 1e9;
    table.plain("8 workers, 2 s to load once", &format!("{took:.2} s"));
    Ok(())
}

fn memory(table: &mut Table) -> Measured<()> {
    let (alone, mut stamps) = start_bare("alone")?;
    stamps.next()?;
    let one = whole(Pid::from_raw(alone.0.id().cast_signed()))?.pss;
    drop(alone);
    let (mut stamps, stdout) = Stamps::pipe()?;
    let panzer = start_mold(&["--workers", &WORKERS.to_string()], stdout, "0")?;
    stamps.take(WORKERS as usize + 1)?;
    panzer.wait_for("serves")?;
    let tree = panzer.workers()?.into_iter().map(|pid| Ok(whole(pid)?.pss)).sum::<Measured<u64>>()?;
    table.bytes("mold and 8 workers (PSS)", tree, one * 14 / 10);
    table.note(&format!("one process of it alone has {} MB; the goal is 1.4 times that", one / 1_000_000));
    Ok(())
}

fn respawn(table: &mut Table) -> Measured<()> {
    let (mut stamps, stdout) = Stamps::pipe()?;
    let panzer = start_mold(&["--workers", "1"], stdout, "0")?;
    stamps.next()?;
    let mut ours = (stamps.next()?, stamps, Vec::new());
    panzer.wait_for("serves")?;
    let (_bare, mut stamps) = start_bare("bare")?;
    let mut bare = (stamps.next()?, stamps, Vec::new());
    for round in 0..ROUNDS {
        poll(&mut [], PollTimeout::try_from(LIFE)?)?;
        // Each is as often the one that comes right after the other.
        let (first, second) = if round % 2 == 0 { (&mut ours, &mut bare) } else { (&mut bare, &mut ours) };
        kill_worker(first)?;
        kill_worker(second)?;
    }
    let (ours, bare) = (percentile(&mut ours.2, 50), percentile(&mut bare.2, 50));
    table.ratio("respawn by a mold of 100 MB", ours, bare, 1.2);
    table.note(&format!("against os.fork() in a loop of that process; {ROUNDS} times each, in turns"));
    Ok(())
}

fn kill_worker((worker, stamps, times): &mut (Stamp, Stamps, Vec<u64>)) -> Measured<()> {
    let killed = now()?;
    kill(worker.pid, Signal::SIGKILL)?;
    *worker = stamps.next()?;
    times.push(worker.at.saturating_sub(killed));
    Ok(())
}
