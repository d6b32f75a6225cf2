//! A panzer that runs: started, looked at, stopped.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, PipeWriter};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::{LIMIT, Measured, stamps};

/// One instance, in a runtime directory of its own. Dropped, it is stopped, and has ended with all its workers.
pub(crate) struct Panzer {
    main: Child,
    messages: Receiver<String>,
    directory: TempDir,
}

impl Panzer {
    /// Starts `command` under panzer with `options`. The first stamp that comes out of `stdout` is main's, from
    /// immediately before its exec.
    pub(crate) fn start(options: &[&str], command: &[String], stdout: PipeWriter) -> Measured<Panzer> {
        let directory = tempfile::tempdir()?;
        let mut panzer = Command::new(binary());
        panzer.args(options).arg("--").args(command);
        panzer.env("RUNTIME_DIRECTORY", directory.path());
        panzer.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
        // SAFETY: it makes three system calls and allocates nothing.
        unsafe {
            panzer.pre_exec(|| {
                // A bench that is killed leaves nothing behind either.
                set_pdeathsig(Signal::SIGQUIT)?;
                stamps::write_own()
            });
        }
        let mut main = panzer.spawn()?;
        let (said, messages) = channel();
        if let Some(stderr) = main.stderr.take() {
            // Ends with the last process that holds stderr, which is how `drop` knows that all have ended.
            thread::spawn(move || {
                BufReader::new(stderr).lines().map_while(Result::ok).try_for_each(|line| said.send(line))
            });
        }
        Ok(Panzer { main, messages, directory })
    }

    /// Waits until it says `text`.
    pub(crate) fn wait_for(&self, text: &str) -> Measured<()> {
        let until = Instant::now() + LIMIT;
        let mut said = String::new();
        loop {
            match self.messages.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(text) => return Ok(()),
                Ok(line) => said = line,
                Err(_) => return Err(format!("panzer did not say {text:?}, last it said {said:?}").into()),
            }
        }
    }

    /// Lets `time` pass. Fails where panzer says something meanwhile.
    pub(crate) fn stay_silent(&self, time: Duration) -> Measured<()> {
        match self.messages.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Ok(line) => Err(format!("panzer was not idle: {line}").into()),
            Err(RecvTimeoutError::Disconnected) => Err("panzer has ended".into()),
        }
    }

    /// Where operators connect.
    pub(crate) fn control_socket(&self) -> Measured<PathBuf> {
        let mut paths = fs::read_dir(self.directory.path())?.map_while(Result::ok).map(|entry| entry.path());
        let socket = paths.find(|path| path.extension().is_some_and(|it| it == "sock"));
        Ok(socket.ok_or("there is no control socket")?)
    }

    /// Asks for a reload.
    pub(crate) fn reload(&self) -> Measured<()> {
        Ok(kill(self.main(), Signal::SIGUSR1)?)
    }

    /// Main and its monitors.
    pub(crate) fn processes(&self) -> Measured<Vec<Pid>> {
        let main = self.main();
        Ok(std::iter::once(main).chain(children(main)?).collect())
    }

    /// The workers, and what they have started.
    pub(crate) fn workers(&self) -> Measured<Vec<Pid>> {
        let monitors = children(self.main())?;
        Ok(descendants(self.main())?.into_iter().filter(|pid| !monitors.contains(pid)).collect())
    }

    pub(crate) fn main(&self) -> Pid {
        Pid::from_raw(self.main.id().cast_signed())
    }
}

/// All below a process.
pub(crate) fn descendants(ancestor: Pid) -> Measured<Vec<Pid>> {
    let (mut found, mut parents) = (Vec::new(), vec![ancestor]);
    while let Some(parent) = parents.pop() {
        let children = children(parent)?;
        found.extend(&children);
        parents.extend(children);
    }
    Ok(found)
}

/// Of its first thread, which is where a process forks unless it is odd.
fn children(parent: Pid) -> Measured<Vec<Pid>> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    Ok(children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect())
}

/// The build that is measured: this one, or another to compare it with.
fn binary() -> OsString {
    env::var_os("BENCH_PANZER").unwrap_or_else(|| env!("CARGO_BIN_EXE_panzer").into())
}

impl Drop for Panzer {
    fn drop(&mut self) {
        // Not reaped yet, so the pid is still its own; one that has ended already is no error.
        let _ = kill(self.main(), Signal::SIGQUIT);
        let until = Instant::now() + LIMIT;
        loop {
            match self.messages.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    eprintln!("panzer {} did not stop in {LIMIT:?}; killed", self.main());
                    break;
                }
            }
        }
        let _ = self.main.kill();
        let _ = self.main.wait();
    }
}
