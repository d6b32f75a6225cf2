//! What loading once and forking many saves: a Python program with 100 MB of objects under `--preload`, beside the same
//! program under gunicorn's `--preload` and by itself, and a C program with a heap of 1 GB.

use std::io::PipeWriter;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::poll::{PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::load::{Load, Mode};
use super::panzer::{Panzer, descendants};
use super::program::Program;
use super::respawn::{Kept, LIFE, in_turns};
use super::smaps::whole;
use super::stamps::Stamps;
use super::table::{Table, percentile};
use super::under_load::free_port;
use super::{LIMIT, Measured, SETTLED, stamps};

pub(super) const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients");
const WORKERS: usize = 8;
const REQUESTS: u64 = 10_000;
const ROUNDS: usize = 40;
/// Forks of the mold of 1 GB, and forks of its own that it stamps before.
const LARGE_ROUNDS: usize = 10;
const LARGE_OWN: usize = 5;

/// The file that Python plays, in a folder of its own.
struct App {
    folder: TempDir,
    python: String,
}

pub(crate) fn measure(_program: &Program, table: &mut Table) -> Measured<()> {
    let app = App::new()?;
    app.memory(table)?;
    app.time(table)?;
    app.respawn(table)?;
    large_heap(app.folder.path(), table)
}

impl App {
    fn new() -> Measured<App> {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("mold_app.py"), include_str!("mold_app.py"))?;
        // Not the shim of a version manager, which takes longer than Python itself.
        let asked = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output()?;
        Ok(App { folder, python: String::from_utf8(asked.stdout)?.trim().to_owned() })
    }

    fn command(&self, role: &str) -> Measured<Vec<String>> {
        let file = self.folder.path().join("mold_app.py");
        Ok(vec![self.python.clone(), file.to_str().ok_or("a path that is not UTF-8")?.to_owned(), role.to_owned()])
    }

    /// As the mold of so many workers.
    fn mold(&self, workers: usize, port: u16, more: &[&str], stdout: PipeWriter) -> Measured<Panzer> {
        let (workers, listen) = (workers.to_string(), format!("127.0.0.1:{port}"));
        let path = format!("PYTHONPATH={CLIENTS}/python");
        let options = ["--preload", "--workers", &workers, "--listen", &listen, "--env", &path];
        Panzer::start(&[&options[..], more].concat(), &self.command("mold")?, stdout)
    }

    /// Under gunicorn, if it is installed.
    fn gunicorn(&self, workers: usize, port: u16, stdout: PipeWriter) -> Measured<Option<Started>> {
        let there = Command::new(&self.python).args(["-c", "import gunicorn"]).stderr(Stdio::null()).status()?;
        if !there.success() {
            return Ok(None);
        }
        let configuration = "import mold_app\ndef post_worker_init(_):\n    mold_app.stamp()\n";
        std::fs::write(self.folder.path().join("configuration.py"), configuration)?;
        let mut gunicorn = Command::new(&self.python);
        gunicorn.args(["-m", "gunicorn", "--preload", "--log-level", "error", "-c", "configuration.py", "-w"]);
        gunicorn.arg(workers.to_string()).args(["-b", &format!("127.0.0.1:{port}"), "mold_app:wsgi"]);
        // Its control socket stands in the home folder.
        gunicorn.env("HOME", self.folder.path()).stderr(Stdio::null()).current_dir(&self.folder);
        Ok(Some(Started::start(gunicorn, stdout)?))
    }

    /// The whole tree against one process.
    fn memory(&self, table: &mut Table) -> Measured<()> {
        let one = {
            let (mut stamps, stdout) = Stamps::pipe()?;
            let alone = Started::start(self.python_of("alone")?, stdout)?;
            stamps.take(2)?;
            whole(alone.pid())?.pss
        };
        let port = free_port()?;
        let refork = ["--refork", "500,366d", "--healthy-after", "1s"];
        for (name, options) in [("memory (PSS) of 8 workers", &[][..]), ("  with --refork", &refork)] {
            let (mut stamps, stdout) = Stamps::pipe()?;
            let panzer = self.mold(WORKERS, port, options, stdout)?;
            stamps.take(1 + WORKERS)?;
            panzer.wait_for("serves")?;
            table.memory(name, held_by(panzer.main())?, one, Some(1.4));
            ask(port);
            if !options.is_empty() {
                panzer.wait_for("is the mold of")?;
                // All but the worker that became the mold, and the one that stood in for it.
                stamps.take(1 + WORKERS)?;
            }
            table.memory("  after 10,000 requests", held_by(panzer.main())?, one, None);
        }
        table.bytes("  panzer itself holds more by", self.own(true)?.saturating_sub(self.own(false)?), 100_000);
        let (mut stamps, stdout) = Stamps::pipe()?;
        match self.gunicorn(WORKERS, port, stdout)? {
            Some(gunicorn) => {
                stamps.take(1 + WORKERS)?;
                table.memory("  under gunicorn --preload", held_by(gunicorn.pid())?, one, None);
                ask(port);
                table.memory("  after 10,000 requests", held_by(gunicorn.pid())?, one, None);
            }
            None => table.note("gunicorn is not installed, and left out"),
        }
        table.note("Python with 100 MB of objects: all of panzer, the mold and its workers, against");
        table.note("one process by itself");
        Ok(())
    }

    /// What main and monitor hold, with a mold or with workers that are executed.
    fn own(&self, preload: bool) -> Measured<u64> {
        let path = format!("PYTHONPATH={CLIENTS}/python");
        let options =
            ["--workers", "8", "--listen", "127.0.0.1:0", "--env", &path, "--env", "MOLD_OBJECTS=1", "--preload"];
        let (_stamps, stdout) = Stamps::pipe()?;
        let panzer = Panzer::start(&options[..options.len() - usize::from(!preload)], &self.command("mold")?, stdout)?;
        panzer.wait_for("serves")?;
        panzer.stay_silent(SETTLED)?;
        panzer.processes()?.into_iter().map(|pid| Ok(whole(pid)?.pss)).sum()
    }

    /// Until the last of the workers of a program that takes 2 s to load.
    fn time(&self, table: &mut Table) -> Measured<()> {
        let (mut stamps, stdout) = Stamps::pipe()?;
        let _panzer =
            self.mold(WORKERS, free_port()?, &["--env", "MOLD_SECONDS=2", "--env", "MOLD_OBJECTS=0"], stdout)?;
        let begun = stamps.next()?.at;
        let last = stamps.take(WORKERS)?.iter().map(|stamp| stamp.at).max().unwrap_or(0);
        table.time("start of 8 that load for 2 s", last.saturating_sub(begun), 2_500_000_000);
        Ok(())
    }

    /// From `kill -9` of a worker to the first act of the next.
    fn respawn(&self, table: &mut Table) -> Measured<()> {
        let (mut stamps, stdout) = Stamps::pipe()?;
        let panzer = self.mold(1, free_port()?, &["--healthy-after", "0s"], stdout)?;
        stamps.next()?;
        let mut ours = Kept::new(stamps)?;
        panzer.wait_for("serves")?;
        let (mut stamps, stdout) = Stamps::pipe()?;
        let _bare = Started::start(self.python_of("bare")?, stdout)?;
        stamps.next()?;
        let mut bare = Kept::new(stamps)?;
        let (mut stamps, stdout) = Stamps::pipe()?;
        let gunicorn = self.gunicorn(1, free_port()?, stdout)?;
        let mut theirs = match &gunicorn {
            Some(_) => stamps.next().and_then(|_| Kept::new(stamps)).map(Some)?,
            None => None,
        };
        in_turns(&mut [&mut ours, &mut bare].into_iter().chain(&mut theirs).collect::<Vec<_>>(), ROUNDS)?;
        let own = percentile(&mut bare.times, 50);
        table.ratio("respawn of a worker, median", percentile(&mut ours.times, 50), own, 1.2);
        if let Some(mut theirs) = theirs {
            table.plain_ratio("  under gunicorn --preload", percentile(&mut theirs.times, 50), own);
        }
        table.note(&format!("Python with 100 MB, against a loop of waitpid and fork; {ROUNDS} times each, in turns"));
        Ok(())
    }

    fn python_of(&self, role: &str) -> Measured<Command> {
        let words = self.command(role)?;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        Ok(command)
    }
}

/// One fork of a mold of 1 GB, as its worker sees it, against a fork by itself of the same process.
fn large_heap(folder: &Path, table: &mut Table) -> Measured<()> {
    let (source, program) = (folder.join("mold.c"), folder.join("mold"));
    std::fs::write(&source, include_str!("mold.c"))?;
    let compiled =
        Command::new("cc").args(["-O2", "-I", &format!("{CLIENTS}/c"), "-o"]).args([&program, &source]).status();
    if !compiled.is_ok_and(|status| status.success()) {
        table.note("there is no C compiler");
        return Ok(());
    }
    let (mut stamps, stdout) = Stamps::pipe()?;
    let command = [program.to_str().ok_or("a path that is not UTF-8")?.to_owned()];
    let panzer = Panzer::start(&["--preload", "--workers", "1", "--healthy-after", "0s"], &command, stdout)?;
    stamps.next()?;
    let mut own: Vec<u64> = stamps.take(LARGE_OWN)?.iter().map(|stamp| stamp.at).collect();
    let mut forks = Vec::new();
    let mut worker = stamps.next()?;
    panzer.wait_for("serves")?;
    for _ in 0..LARGE_ROUNDS {
        poll(&mut [], PollTimeout::try_from(LIFE)?)?;
        kill(worker.pid, Signal::SIGKILL)?;
        worker = stamps.next()?;
        forks.push(worker.at);
    }
    table.plain_ratio("fork of a mold of 1 GB, in C", percentile(&mut forks, 50), percentile(&mut own, 50));
    table.note("until the worker runs, against a bare fork of the same process");
    Ok(())
}

/// A process of the bench's own, which ends with it.
pub(super) struct Started(Child);

impl Started {
    /// Writes a stamp first, as panzer's.
    pub(super) fn start(mut command: Command, stdout: PipeWriter) -> Measured<Started> {
        command.stdin(Stdio::null()).stdout(stdout);
        // SAFETY: it makes three system calls and allocates nothing.
        unsafe {
            command.pre_exec(|| {
                set_pdeathsig(Signal::SIGTERM)?;
                stamps::write_own()
            });
        }
        Ok(Started(command.spawn()?))
    }

    pub(super) fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = kill(self.pid(), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// PSS of a process and of all below it.
pub(super) fn held_by(pid: Pid) -> Measured<u64> {
    let all = descendants(pid)?.into_iter().chain([pid]);
    // Some may have just ended.
    Ok(all.filter_map(|pid| whole(pid).ok()).map(|held| held.pss).sum())
}

pub(super) fn ask(port: u16) {
    let load = Load::new(port, Mode::NewConnection, 4).start();
    let until = std::time::Instant::now() + 3 * LIMIT;
    while load.answered() < REQUESTS && std::time::Instant::now() < until {
        let _ = poll(&mut [], PollTimeout::try_from(Duration::from_millis(20)).unwrap_or(PollTimeout::ZERO));
    }
    load.stop();
}
