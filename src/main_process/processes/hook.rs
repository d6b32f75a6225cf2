//! A hook: a child of main that runs one command of the user and ends everything that the command has started. The
//! command's output goes through it to panzer's stderr. A command that hangs, floods or leaves processes behind keeps
//! this process busy, and nobody else.

use std::collections::VecDeque;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, pipe2, read};
use serde::{Deserialize, Serialize};

use super::helper::Helper;
use crate::config::text::{c_string, entry};
use crate::config::{HookEvent, duration};
use crate::control::environment::{Environment, OWN_IMAGE};
use crate::main_process::decide::hooks::Run;
use crate::sys::errno::words;
use crate::sys::poller::Poller;
use crate::sys::processes::{self, Exit};
use crate::sys::signals::{self, Signals};
use crate::sys::{memfd, printable, stderr};
use crate::worker::cause::Cause;
use crate::worker::spawn::{Image, NewProcess, spawn};

const TITLE: &str = "panzer: hook";
const SIGNALS: u64 = 0;
const OUTPUT: u64 = 1;

/// Time between TERM and KILL for a command that takes too long.
const TERM_WAIT: Duration = Duration::from_secs(5);
/// Lines of one command that are shown. The rest is counted.
const MAX_SHOWN_LINES: usize = 100;
/// Last lines that go into the verdict on a reload.
const MAX_LAST_LINES: usize = 10;
const MAX_LINE_BYTES: usize = 512;

/// A command to run, and its surroundings.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Question {
    pub(crate) run: Run,
    /// Working directory of the command.
    #[serde(with = "crate::config::text::path")]
    pub(crate) directory: PathBuf,
    /// The command's variables, beside those that workers inherit.
    pub(crate) variables: Vec<(String, String)>,
    /// The OOM score that panzer was started with, where main has another one now.
    pub(crate) oom_score: Option<i32>,
    /// Whether messages are JSON.
    pub(crate) is_json: bool,
}

/// Its result.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    /// What went wrong, completing "the died hook …".
    failed: Option<String>,
    /// The last lines that the command wrote.
    last_lines: VecDeque<String>,
}

/// The process of a command that runs now.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HookProcess {
    helper: Helper,
    #[serde(with = "crate::carry::descriptor")]
    answer: OwnedFd,
}

impl HookProcess {
    /// Starts it. Never waits.
    pub(crate) fn begin(question: &Question, environment: &Environment) -> io::Result<HookProcess> {
        let question = memfd::write(&serde_json::to_vec(question)?)?;
        let answer = memfd::write(&[])?;
        let descriptors = vec![question.as_fd(), answer.as_fd()];
        // If main dies, it ends its command before it ends itself.
        let told_of_death = |role| NewProcess { death_signal: Some(Signal::SIGTERM), ..role };
        let variables = environment.for_hook();
        let helper = Helper::start_with(TITLE, OWN_IMAGE.as_ref(), variables, descriptors, told_of_death)?;
        Ok(HookProcess { helper, answer })
    }

    pub(crate) fn pid(&self) -> Pid {
        self.helper.pid()
    }

    /// Has it end its command, with TERM first.
    pub(crate) fn end(&self) {
        self.helper.signal(Signal::SIGTERM);
    }

    /// Kills it.
    pub(crate) fn kill(&self) {
        self.helper.kill();
    }

    /// What came of the command, now that the process has been reaped: what went wrong, and the command's last lines.
    pub(crate) fn answered(mut self, exit: Exit) -> Result<(), String> {
        if let Some(why) = self.helper.refused() {
            return Err(format!("could not be started: {why}"));
        }
        if exit != Exit::Code(0) {
            return Err(format!("is unknown: the process that ran it {}", Cause::from(exit)));
        }
        let broken = |why: String| format!("left no answer: {why}");
        let bytes = memfd::read(self.answer).map_err(|error| broken(words(&error)))?;
        let answer: Answer = serde_json::from_slice(&bytes).map_err(|error| broken(error.to_string()))?;
        match answer.failed {
            None => Ok(()),
            Some(why) => {
                let lines = answer.last_lines.iter().map(|line| format!("\n  | {line}"));
                Err(why + &lines.collect::<String>())
            }
        }
    }
}

/// Takes the role of a hook.
pub fn run(environment: &Environment) -> anyhow::Result<()> {
    signals::block_all().context("cannot block signals")?;
    processes::set_name();
    // Processes that the command leaves behind become children of this process, which ends them.
    processes::become_subreaper().context("cannot become a subreaper")?;
    let (question, answer_to) = environment.take_question()?;
    let bytes = memfd::read(question).context("the command cannot be read")?;
    let question: Question = serde_json::from_slice(&bytes).context("the command is broken")?;
    stderr::start(log::LevelFilter::Info);
    stderr::set_json(question.is_json);
    let mut lines = Lines::new(question.run.facts.event);
    let failed = match begin(&question, environment) {
        Ok(command) => command.end(question.run.timeout, &mut lines).context("the command cannot be watched")?,
        Err(why) => Some(why),
    };
    let json = serde_json::to_vec(&Answer { failed, last_lines: lines.last })?;
    memfd::fill(answer_to, &json).context("the answer cannot be written")
}

/// A command that was started.
struct Command {
    pid: Pid,
    output: OwnedFd,
    exit: Option<Exit>,
}

/// Runs the command by a shell, in its directory.
fn begin(question: &Question, environment: &Environment) -> Result<Command, String> {
    let Question { run, directory, variables, oom_score, .. } = question;
    std::env::set_current_dir(directory)
        .map_err(|error| format!("could not be started: {}: {}", directory.display(), words(&error)))?;
    // Neither is refused: main has protected itself further than its start did, and a limit is only lowered.
    oom_score.iter().for_each(|score| {
        let _ = processes::set_oom_score(*score);
    });
    environment.descriptor_limit().into_iter().for_each(|limit| {
        let _ = limit.apply();
    });
    let inherited = environment.passed_on().iter().map(|(name, value)| entry(name, value));
    let own = variables.iter().map(|(name, value)| entry(name.as_ref(), value.as_ref()));
    let environment: Vec<CString> = inherited.chain(own).collect();
    let failed = |error: io::Error| format!("could not be started: {}", words(&error));
    let (output, theirs) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed(errno.into()))?;
    fcntl(&output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|errno| failed(errno.into()))?;
    let shell = NewProcess::role(Image::Path(c"/bin/sh".to_owned()), "sh", environment, Vec::new());
    let arguments = ["sh", "-c", &run.command].map(|argument| c_string(argument.as_ref())).to_vec();
    let child = spawn(NewProcess { arguments, output: [Some(theirs.as_fd()); 2], ..shell }).map_err(failed)?;
    Ok(Command { pid: child.pid, output, exit: None })
}

/// How far a command has been ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Runs,
    Terminated,
    Killed,
}

impl Command {
    /// Waits until the command and all that it has started have ended, and ends them when the time is over. Returns what
    /// went wrong.
    fn end(mut self, timeout: Duration, lines: &mut Lines) -> io::Result<Option<String>> {
        let (poller, signals) = (Poller::new()?, Signals::new([Signal::SIGCHLD, Signal::SIGTERM])?);
        poller.watch(&signals, SIGNALS)?;
        poller.watch(&self.output, OUTPUT)?;
        let (mut stage, mut deadline, mut why) = (Stage::Runs, Some(Instant::now() + timeout), None);
        loop {
            for (pid, exit) in processes::reap_all(drop) {
                self.exit = self.exit.or((pid == self.pid).then_some(exit));
            }
            if self.exit.is_some() && processes::children().is_empty() {
                break;
            }
            let is_late = deadline.is_some_and(|deadline| deadline <= Instant::now());
            match stage {
                Stage::Runs if is_late || why.is_some() => {
                    let time = duration::show(timeout);
                    let late = || match self.exit {
                        None => format!("did not end within {time} and was ended"),
                        Some(_) => format!("left processes behind, which did not end within {time} and were ended"),
                    };
                    why.get_or_insert_with(late);
                    (stage, deadline) = (Stage::Terminated, Some(Instant::now() + TERM_WAIT));
                    self.signal_all(Signal::SIGTERM);
                }
                Stage::Terminated if is_late => {
                    (stage, deadline) = (Stage::Killed, None);
                    self.signal_all(Signal::SIGKILL);
                }
                // A grandchild may have become a child by now.
                Stage::Killed => self.signal_all(Signal::SIGKILL),
                Stage::Runs | Stage::Terminated => {}
            }
            for token in poller.wait(deadline)? {
                match token {
                    OUTPUT if !lines.read(&self.output) => poller.forget(&self.output),
                    OUTPUT => {}
                    _ => {
                        while let Some(received) = signals.read() {
                            if received.signal == Signal::SIGTERM {
                                why.get_or_insert_with(|| "was given up".to_owned());
                            }
                        }
                    }
                }
            }
        }
        lines.read(&self.output);
        lines.end();
        let failed = self.exit.filter(|exit| *exit != Exit::Code(0));
        Ok(why.or(failed.map(|exit| Cause::from(exit).to_string())))
    }

    /// Sends it to all that are left.
    fn signal_all(&self, signal: Signal) {
        // A process that has become another user may refuse the signal. Main's own deadline ends it.
        if self.exit.is_none() {
            let _ = processes::stop_group(self.pid, signal);
        }
        for pid in processes::children() {
            let _ = processes::stop_child(pid, signal);
        }
    }
}

/// The output of a command, taken apart into lines.
struct Lines {
    event: HookEvent,
    begun: Vec<u8>,
    shown: usize,
    last: VecDeque<String>,
}

impl Lines {
    fn new(event: HookEvent) -> Lines {
        Lines { event, begun: Vec::new(), shown: 0, last: VecDeque::new() }
    }

    /// Takes what is there, up to the size of a pipe. False at its end.
    fn read(&mut self, output: &OwnedFd) -> bool {
        let mut bytes = [0; 1 << 16];
        let Ok(count) = read(output, &mut bytes) else { return true };
        for &byte in &bytes[..count] {
            match byte {
                b'\n' => self.take(),
                _ if self.begun.len() < MAX_LINE_BYTES => self.begun.push(byte),
                _ => {}
            }
        }
        count > 0
    }

    fn take(&mut self) {
        let line = printable::line(&String::from_utf8_lossy(&std::mem::take(&mut self.begun)));
        self.shown += 1;
        if self.shown <= MAX_SHOWN_LINES {
            stderr::tell(&format!("{} hook: {line}", self.event));
        }
        self.last.push_back(line);
        if self.last.len() > MAX_LAST_LINES {
            self.last.pop_front();
        }
    }

    fn end(&mut self) {
        if !self.begun.is_empty() {
            self.take();
        }
        if let Some(more @ 1..) = self.shown.checked_sub(MAX_SHOWN_LINES) {
            stderr::tell(&format!("{} hook: {more} more lines are not shown", self.event));
        }
    }
}
