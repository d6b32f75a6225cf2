//! How fast lines go from workers into a file: 4 workers write lines of 100 bytes, each by a call of its own.
//!
//! Each way is measured from the moment at which all writers may begin until everything has ended and all lines are in
//! the file.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write, pipe};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use tempfile::TempDir;

use super::program::{WRITER, own_executable};
use super::table::Table;
use super::{LIMIT, Measured};

const WRITERS: usize = 4;
const LINES: usize = 250_000;
const LINE_BYTES: usize = 100;
const ROUNDS: usize = 5;

/// Writes its lines once it may, says so, and stays.
pub(crate) fn write(arguments: &[String]) -> Measured<()> {
    let [folder, stays] = arguments else { return Err("a writer needs a folder, and whether it stays".into()) };
    let folder = Path::new(folder);
    let mut lines = Vec::new();
    for number in 0..1000 {
        let line = format!("{number:<width$}\n", width = LINE_BYTES - 1);
        lines.push(line.into_bytes());
    }
    // Opened for reading, it waits for whoever opens it for writing.
    File::open(folder.join("go"))?;
    let mut out = std::fs::File::from(std::os::fd::AsFd::as_fd(&std::io::stdout()).try_clone_to_owned()?);
    for number in 0..LINES {
        out.write_all(&lines[number % lines.len()])?;
    }
    OpenOptions::new().write(true).open(folder.join("done"))?.write_all(b".")?;
    match stays.as_str() {
        "stay" => loop {
            nix::unistd::pause();
        },
        _ => Ok(()),
    }
}

/// A folder in which writers wait for their start.
struct Race {
    folder: TempDir,
    done: File,
}

impl Race {
    fn new() -> Measured<Race> {
        let folder = tempfile::tempdir()?;
        let mode = Mode::from_bits_truncate(0o600);
        mkfifo(&folder.path().join("go"), mode)?;
        mkfifo(&folder.path().join("done"), mode)?;
        let done = OpenOptions::new().read(true).write(true).open(folder.path().join("done"))?;
        Ok(Race { folder, done })
    }

    fn writer(&self, stays: &str) -> Measured<Vec<String>> {
        let folder = self.folder.path().to_str().ok_or("a path that is not UTF-8")?;
        Ok(vec![own_executable()?, WRITER.to_owned(), folder.to_owned(), stays.to_owned()])
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// Starts all writers at once, and waits until they have written everything.
    fn run(&mut self) -> Measured<Instant> {
        // Time for all of them to stand at the start.
        poll(&mut [], PollTimeout::try_from(Duration::from_millis(300))?)?;
        let begun = Instant::now();
        let _go = OpenOptions::new().write(true).open(self.path("go"))?;
        for _ in 0..WRITERS {
            let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&self.done), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::try_from(LIMIT)?)? == 0 {
                return Err("the writers did not come to an end".into());
            }
            self.done.read_exact(&mut [0])?;
        }
        Ok(begun)
    }
}

/// Lines a second through a program that reads one pipe.
fn through(command: &[&str], output: Option<&str>) -> Measured<f64> {
    let mut race = Race::new()?;
    fs::create_dir(race.path("logs"))?;
    fs::write(race.path("logs/config"), "s0\n")?;
    let (reader, writer) = pipe()?;
    let mut program = Command::new(command[0]);
    program.args(&command[1..]).current_dir(race.folder.path()).stdin(reader).stderr(Stdio::null());
    program.stdout(match output {
        Some(name) => File::create(race.path(name))?.into(),
        None => Stdio::null(),
    });
    let mut program_child = program.spawn()?;
    drop(program);
    let mut writers: Vec<Child> = Vec::new();
    for _ in 0..WRITERS {
        let command = race.writer("end")?;
        writers.push(Command::new(&command[0]).args(&command[1..]).stdout(writer.try_clone()?).spawn()?);
    }
    drop(writer);
    let begun = race.run()?;
    for mut writer in writers {
        writer.wait()?;
    }
    program_child.wait()?;
    Ok((WRITERS * LINES) as f64 / begun.elapsed().as_secs_f64())
}

/// Lines a second through panzer, and how many were dropped. Fails if a line is missing that is not counted.
fn through_panzer(options: &[&str]) -> Measured<(f64, usize)> {
    let mut race = Race::new()?;
    let binary = std::env::var_os("BENCH_PANZER").unwrap_or_else(|| env!("CARGO_BIN_EXE_panzer").into());
    let mut panzer = Command::new(binary);
    panzer.args(["-w", &WRITERS.to_string(), "--ready", "alive", "--bake", "0s", "--share-ports", "off", "--quiet"]);
    panzer.args(["--log", "file", "--log-size", "0"]).args(options).arg("--").args(race.writer("stay")?);
    panzer.current_dir(race.folder.path()).env("RUNTIME_DIRECTORY", race.folder.path());
    let mut panzer = panzer.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let begun = race.run();
    // Not reaped yet, so the pid is still its own.
    kill(Pid::from_raw(panzer.id().cast_signed()), Signal::SIGTERM)?;
    panzer.wait()?;
    let time = begun?.elapsed();
    let text = fs::read(race.path("file"))?;
    let (mut written, mut dropped) = (0, 0);
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        // "TIME panzer: 7 lines (700 bytes) dropped: …", also as JSON.
        let count = memchr::memmem::find(line, b"panzer: ").map(|at| &line[at + 8..]);
        match count.and_then(|count| {
            std::str::from_utf8(count.split(|byte| *byte == b' ').next()?).ok()?.parse::<usize>().ok()
        }) {
            Some(count) => dropped += count,
            None => written += 1,
        }
    }
    let missing = WRITERS * LINES - written;
    if missing != dropped {
        return Err(format!("{missing} lines are missing, and {dropped} are counted").into());
    }
    Ok((written as f64 / time.as_secs_f64(), dropped))
}

/// All ways in turns.
pub(crate) fn measure(_: &super::program::Program, table: &mut Table) -> Measured<()> {
    let ours: [(&str, &[&str], f64); 3] = [
        ("panzer --log", &[], 90.0),
        ("panzer --log-prefix", &["--log-prefix"], 70.0),
        ("panzer --log-format json", &["--log-format", "json"], 70.0),
    ];
    let others: [(&str, &[&str]); 3] = [
        ("svlogd", &["svlogd", "logs"]),
        ("s6-log", &["s6-log", "n1000", "s100000000", "./logs"]),
        ("multilog", &["multilog", "n1000", "s16777215", "./logs"]),
    ];
    let is_there =
        |name: &str| Command::new("which").arg(name).stdout(Stdio::null()).status().is_ok_and(|it| it.success());
    let others: Vec<_> = others.into_iter().filter(|(name, _)| is_there(name)).collect();
    let mut cat = Vec::new();
    let mut measured = vec![(Vec::new(), 0); ours.len()];
    let mut compared = vec![Vec::new(); others.len()];
    for _ in 0..ROUNDS {
        cat.push(through(&["cat"], Some("file"))?);
        for ((_, options, _), (speeds, dropped)) in ours.iter().zip(&mut measured) {
            let (speed, lacking) = through_panzer(options)?;
            speeds.push(speed);
            *dropped += lacking;
        }
        for ((_, command), speeds) in others.iter().zip(&mut compared) {
            speeds.push(through(command, None)?);
        }
    }
    for ((name, _, goal), (speeds, dropped)) in ours.iter().zip(&measured) {
        table.speed(name, speeds, &cat, Some(*goal));
        if *dropped > 0 {
            table.note(&format!("{dropped} of {} lines were dropped, and counted", ROUNDS * WRITERS * LINES));
        }
    }
    for ((name, _), speeds) in others.iter().zip(&compared) {
        table.speed(name, speeds, &cat, None);
    }
    table.note("lines a second, 4 workers, 100 bytes a line and call; against cat > file");
    Ok(())
}
