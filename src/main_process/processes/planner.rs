//! A planner: a child that reads command line, environment and file again, in the directory in which panzer was
//! started. All of this may hang on a dead file system, or fail in ways that must not touch main. A planner also finds
//! out who holds an address that a new generation was to listen on.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::helper::Helper;
use crate::cli::{self, Ending};
use crate::config::{Address, Listen, Logs, Plan, Text};
use crate::control::environment::Environment;
use crate::control::log_file;
use crate::sockets::Refusal;
use crate::sys::errno::words;
use crate::sys::memfd;
use crate::sys::processes::{self, Exit};
use crate::worker::cause::Cause;
use crate::worker::findings::Findings;
use crate::worker::program::Fingerprint;

/// The question to a planner. The environment is its own.
#[derive(Debug, Serialize, Deserialize)]
struct Question {
    arguments: Vec<Text>,
    #[serde(with = "crate::config::text::path")]
    start_directory: PathBuf,
    inherited: Vec<Listen>,
    /// The files of the serving release as they were, to compare.
    serving: Option<Fingerprint>,
    /// The files by which this instance is found.
    own_files: Vec<Text>,
    /// How workers' output is written now, if the plan is to be compared with that.
    logs: Option<Logs>,
    /// An address whose holder is to be found; then nothing else is done.
    in_use: Option<Address>,
}

/// The answer of a planner.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// The plan, or an error: a line, and possibly the place in the file below it.
    pub(crate) plan: Result<Plan, String>,
    /// Whether the plan leads to another release than the serving one.
    pub(crate) changed: bool,
    /// Whether one of the instance's own files is missing.
    pub(crate) missing: bool,
}

/// Takes the role of a planner.
pub fn run(environment: &Environment) -> anyhow::Result<()> {
    processes::set_name();
    let (question, answer) = environment.take_question()?;
    let bytes = memfd::read(question).context("the question cannot be read")?;
    let question = serde_json::from_slice(&bytes).context("the question is broken")?;
    let answer_to = answer;
    let answer = resolve(question, environment);
    let json = serde_json::to_vec(&answer).context("the plan cannot be written")?;
    memfd::fill(answer_to, &json).context("the plan cannot be written")
}

fn resolve(question: Question, environment: &Environment) -> Answer {
    let Question { arguments, start_directory, inherited, serving, own_files, logs, in_use } = question;
    let is_missing =
        |file: &Text| fs::symlink_metadata(&file.0).is_err_and(|error| error.kind() == ErrorKind::NotFound);
    let missing = own_files.iter().any(is_missing);
    let plan = match in_use {
        Some(address) => Err(Refusal::InUse(address).looked_up(Pid::parent()).why()),
        None => plan(arguments, &start_directory, inherited, environment)
            .and_then(|plan| {
                // What worked so far may fail by itself, and then holds no release up.
                let changes = logs.is_some_and(|logs| logs != plan.logs);
                if changes { log_file::check(&plan.logs).map(|()| plan) } else { Ok(plan) }
            })
            .map_err(Cause::bounded),
    };
    let changed = serving.is_some_and(|serving| {
        let Ok(plan) = &plan else { return false };
        // A release that cannot be found is not a new one.
        let found = Findings::look_up(plan, environment.inherited("PATH"));
        found.is_ok_and(|(release, _)| release.fingerprint(plan) != serving)
    });
    Answer { plan, changed, missing }
}

fn plan(
    arguments: Vec<Text>,
    start_directory: &Path,
    inherited: Vec<Listen>,
    environment: &Environment,
) -> Result<Plan, String> {
    // By the name of the directory, so that a symlink in it is followed again.
    std::env::set_current_dir(start_directory).map_err(|error| {
        format!(
            "the directory {} that panzer was started in cannot be entered: {}",
            start_directory.display(),
            words(&error)
        )
    })?;
    let arguments = arguments.into_iter().map(|argument| argument.0);
    cli::plan(arguments, environment.inherited("PWD"), inherited).map_err(|ending| match ending {
        Ending::Usage(why) | Ending::CannotStart(why) => why,
        Ending::Shown(_) | Ending::Left(..) => "the command line asks for a text, and for nothing to be run".to_owned(),
    })
}

/// The purpose of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The plan of this generation, which is to be started.
    Generation(u32),
    /// The settings that can change without replacing workers.
    Reread,
}

/// A planner that runs.
#[derive(Debug)]
pub(crate) struct Planner {
    helper: Helper,
    answer: OwnedFd,
    pub(crate) purpose: Purpose,
    /// Whether the answer is wanted. If not, it is only waited for.
    pub(crate) wanted: bool,
    /// Whether another planner is to follow, because the configuration may have changed after it was read.
    pub(crate) again: bool,
    /// After this time it counts as hung.
    pub(crate) until: Instant,
}

impl Planner {
    /// Reads everything again for an instance that runs by `plan`, and compares it with the serving release. Never
    /// waits.
    pub(crate) fn begin(
        purpose: Purpose,
        plan: &Plan,
        serving: Option<Fingerprint>,
        own_files: Vec<Text>,
        in_use: Option<Address>,
        environment: &Environment,
        until: Instant,
    ) -> io::Result<Planner> {
        let question = Question {
            arguments: std::env::args_os().map(Text).collect(),
            start_directory: plan.start_directory.clone(),
            inherited: plan.inherited.clone(),
            serving,
            own_files,
            logs: matches!(purpose, Purpose::Generation(_)).then(|| plan.logs.clone()),
            in_use,
        };
        let question = memfd::write(&serde_json::to_vec(&question)?)?;
        let answer = memfd::write(&[])?;
        let descriptors = vec![question.as_fd(), answer.as_fd()];
        let helper = Helper::start("panzer: plan", environment.for_planner(), descriptors)?;
        Ok(Planner { helper, answer, purpose, wanted: true, again: false, until })
    }

    pub(crate) fn pid(&self) -> Pid {
        self.helper.pid()
    }

    /// Nobody waits for its answer any more.
    pub(crate) fn give_up(&mut self) {
        self.wanted = false;
        self.helper.kill();
    }

    /// Its answer. Call this after it was reaped.
    pub(crate) fn answered(mut self, exit: Exit) -> Result<Answer, Cause> {
        let failed = |how: String| Cause::Configuration(format!("the process that reads the configuration {how}"));
        if let Some(why) = self.helper.refused() {
            return Err(failed(format!("could not be executed: {why}")));
        }
        if exit != Exit::Code(0) {
            return Err(failed(Cause::from(exit).to_string()));
        }
        let bytes =
            memfd::read(self.answer).map_err(|error| failed(format!("left nothing to read: {}", words(&error))))?;
        serde_json::from_slice(&bytes).map_err(|error| failed(format!("left a broken plan: {error}")))
    }
}
