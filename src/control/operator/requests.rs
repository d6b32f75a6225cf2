//! What operators ask of main over its control socket, and what they are answered: JSON, one object a line each way.
//!
//! ```text
//! → {"version":1,"command":"reload"}
//! ← {"version":1,"event":"starting","generation":2,"ready":0,"workers":4}
//! ← {"version":1,"event":"starting","generation":2,"ready":4,"workers":4}
//! ← {"version":1,"ok":true,"generation":2,"retiring":1,"took_ms":1312}
//! ```
//!
//! A line with `event` is followed by another one; the line with `ok` is the last of an answer. A client may then ask
//! again. Fields are only ever added; [`VERSION`] goes up where that does not do.

use serde::{Deserialize, Serialize};

use crate::worker::cause::{Cause, signal_name};

/// The version of this protocol.
pub const VERSION: u32 = 1;

/// The longest request, in bytes, with its line feed.
pub const LONGEST_REQUEST: usize = 4096;

/// A request. What is not known in it is an error, so that a slip of the keyboard is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`VERSION`] of whoever asks.
    pub version: u32,
    /// What is to be done.
    pub command: Command,
    /// Of a reload, a drain or a stop: do not wait for its outcome.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_wait: bool,
    /// Of a reload: wait until the old generation is gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drained: bool,
    /// Of a drain: do not leave the workers their time any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub now: bool,
    /// Of a drain: the only generation that is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// Of a scale: how many workers, or with a sign how many more or less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<String>,
    /// Of a signal: its name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// Of a signal: the only worker that is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<u32>,
}

impl Request {
    /// One with nothing but a command.
    pub fn new(command: Command) -> Request {
        Request {
            version: VERSION,
            command,
            no_wait: false,
            drained: false,
            now: false,
            generation: None,
            count: None,
            signal: None,
            worker: None,
        }
    }
}

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Tell the state of everything.
    Status,
    /// Replace the program with a new generation.
    Reload,
    /// Wait for the end of what drains, or hurry it.
    Drain,
    /// Stop gracefully.
    Stop,
    /// Stop by the schedule without its first step.
    Exit,
    /// Keep another count of workers.
    Scale,
    /// End all workers and go on without, until a reload or a scale.
    Quiet,
    /// Open anew what panzer has open for writing.
    Reopen,
    /// Send a signal to the workers of the serving generation.
    Signal,
    /// Execute main anew in place, by the build that panzer's path leads to.
    Restart,
}

/// A line of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Answer {
    /// [`VERSION`] of the panzer that answers.
    pub version: u32,
    /// What goes on, where another line follows: `queued`, `starting`, `baking`, `draining`, `emptying`, `trying` (the new
    /// build of a restart) or `stopping`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// In the last line: whether it was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ok: Option<bool>,
    /// Why it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The generation it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// So many of its workers are ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<u32>,
    /// Of so many. Of a scale: so many are kept from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<u32>,
    /// Of a scale: so many were kept before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<u32>,
    /// The generation that is being retired for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retiring: Option<u32>,
    /// How long it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
    /// The exit code that panzer ends with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// So many workers got the signal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signalled: Option<u32>,
    /// Of a restart: the build that main was, and the one that it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub builds: Option<(String, String)>,
    /// Of a restart to the same version: whether it is the same file, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_file: Option<String>,
    /// The workers that brought a release down; at most 64 are named.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<Failed>,
    /// The state of everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
}

impl Answer {
    /// That it was done.
    pub fn done() -> Answer {
        Answer { version: VERSION, ok: Some(true), ..Answer::default() }
    }

    /// That it was not, and why.
    pub fn refused(error: impl Into<String>) -> Answer {
        Answer { version: VERSION, ok: Some(false), error: Some(error.into()), ..Answer::default() }
    }

    /// What goes on.
    pub fn event(event: &str, generation: u32) -> Answer {
        let event = Some(event.to_owned());
        Answer { version: VERSION, event, generation: Some(generation), ..Answer::default() }
    }
}

/// A worker that failed, or why one ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Failed {
    /// Its slot.
    pub worker: u32,
    /// `exited`, `killed`, `not_ready`, `not_found`, `not_executable`, `not_started`, `configuration` or `hung`.
    pub cause: String,
    /// Its exit code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// The signal that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// The deadline that it missed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// The cause in words, completing "worker N …".
    pub message: String,
}

impl Failed {
    /// Takes a cause apart.
    pub fn new(worker: u32, cause: &Cause) -> Failed {
        let mut failed = Failed { worker, message: cause.to_string(), ..Failed::default() };
        failed.cause = match cause {
            Cause::Exited(code) => {
                failed.code = Some(*code);
                "exited"
            }
            Cause::Killed(signal, _) => {
                failed.signal = Some(signal_name(*signal));
                "killed"
            }
            Cause::NotReady(time) | Cause::NotSeen(time, _) | Cause::Bypassed(time, _) => {
                failed.deadline_ms = Some(time.as_millis() as u64);
                "not_ready"
            }
            Cause::HungInExec(time) | Cause::HungInPlan(time) => {
                failed.deadline_ms = Some(time.as_millis() as u64);
                "hung"
            }
            Cause::NotFound(_) => "not_found",
            Cause::CannotExecute(_) => "not_executable",
            Cause::CannotStart(_) | Cause::CannotBecome(_) => "not_started",
            Cause::Configuration(_) => "configuration",
        }
        .to_owned();
        failed
    }
}

/// The state of everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// What this instance is called.
    pub name: String,
    /// Main's pid.
    pub pid: i32,
    /// So many workers are to run.
    pub workers: u32,
    /// Whether all workers that are wanted have been ready together once, since there are to be so many, and one is now.
    pub ready: bool,
    /// Whether everything is being stopped.
    pub stopping: bool,
    /// For how long main has run.
    pub uptime_ms: u64,
    /// Each generation that has a process.
    pub generations: Vec<Generation>,
    /// The accept queues.
    pub listeners: Vec<Queue>,
    /// Workers that ended unasked and were replaced since main began, by how they ended.
    pub respawns: Vec<Respawns>,
    /// Reloads since main began.
    pub reloads: Reloads,
}

/// So many workers ended in this way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Respawns {
    /// As [`Failed::cause`].
    pub cause: String,
    /// The exit code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// The signal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// How many.
    pub count: u64,
}

/// Reloads by verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reloads {
    /// The new generation came to serve.
    pub done: u64,
    /// It failed.
    pub rejected: u64,
    /// Panzer was stopped before.
    pub stopped: u64,
    /// How long the last one took that came to serve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_ms: Option<u64>,
}

/// One generation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Generation {
    /// Its number.
    pub number: u32,
    /// `serving`, `starting` or `draining`.
    pub standing: String,
    /// The pid of its monitor.
    pub monitor: Option<i32>,
    /// Whether the monitor answered within a second.
    pub answered: bool,
    /// Its workers.
    pub workers: Vec<Worker>,
}

/// One worker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Worker {
    /// Its slot.
    pub slot: u32,
    /// Its pid, where it has a process.
    pub pid: Option<i32>,
    /// `starting`, `ready`, `stopping`, `stopped` (by a signal such as STOP), `waiting`, `ended` or `empty`.
    pub state: String,
    /// For how long it has lived, or been in this state.
    pub since_ms: u64,
    /// How often its slot was filled again.
    pub respawns: u32,
    /// Why the last one in its slot ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<Failed>,
    /// How long ago it last said that it lives, where it does (einhorn's ping).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sign_of_life_ms: Option<u64>,
}

/// The accept queue of a listener; the queues of all workers together where each has its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Queue {
    /// Where it listens.
    pub address: String,
    /// So many connections wait; not of datagrams.
    pub queued: Option<u32>,
    /// So many may wait; not of datagrams.
    pub limit: Option<u32>,
    /// So many queues these are.
    pub queues: u32,
    /// So many wait in the fullest of them; not of datagrams.
    pub fullest: Option<u32>,
    /// Of a unix socket: by this panzerctl asks the kernel for the queue, which may take longer than main has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inode: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unknown_is_refused() {
        let read = |text: &str| serde_json::from_str::<Request>(text);
        assert_eq!(read(r#"{"version":1,"command":"reload"}"#).unwrap().command, Command::Reload);
        for bad in [r#"{"version":1,"command":"fly"}"#, r#"{"version":1,"command":"reload","drain":true}"#, "[]", "1"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert!(read(&format!("{}{}", "[".repeat(2000), "]".repeat(2000))).is_err());
    }
}
