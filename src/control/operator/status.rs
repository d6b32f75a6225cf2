//! The state of an instance, as operators get it: as JSON, and as the lines that main logs or writes to a file.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::duration::show;
use crate::config::{Logs, Stream};
use crate::worker::cause::{Cause, signal_name};
use crate::worker::kin;

/// The state of an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Name of the instance.
    pub name: String,
    /// Pid of main.
    pub pid: i32,
    /// Number of workers that shall run.
    pub workers: u32,
    /// Whether all wanted workers have been ready together since their number was last raised, and one is ready now.
    pub ready: bool,
    /// Whether panzer is stopping.
    pub stopping: bool,
    /// Time since main began.
    pub uptime_ms: u64,
    /// Each generation that has a process.
    pub generations: Vec<Generation>,
    /// The accept queues.
    pub listeners: Vec<Queue>,
    /// Workers that ended on their own and were replaced since main began, counted by how they ended.
    pub respawns: Vec<Respawns>,
    /// Workers that were replaced because they had reached a limit: `lifetime`, `memory` or `requests`.
    pub recycled: BTreeMap<String, u64>,
    /// Reloads since main began.
    pub reloads: Reloads,
    /// Commands of `--hook` that were run since main began.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<HookRuns>,
    /// Destinations of the workers' output.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<LogPlace>,
}

/// A file with output of workers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogPlace {
    /// Its path; `-` is panzer's own stdout.
    #[serde(with = "crate::config::text::path")]
    pub path: PathBuf,
    /// The streams of workers that are written there.
    pub streams: Vec<String>,
    /// Whether each line says which worker wrote it (`--log-prefix`, `--log-format json`).
    pub has_origins: bool,
}

impl LogPlace {
    /// The places where these logs are written.
    pub fn all(logs: &Logs) -> Vec<LogPlace> {
        let has_origins = logs.log_prefix || logs.is_json();
        let mut places: Vec<LogPlace> = Vec::new();
        for (stream, file) in Stream::BOTH.into_iter().filter_map(|stream| Some((stream, logs.of(stream)?))) {
            match places.iter_mut().find(|place| place.path == file.path) {
                Some(place) => place.streams.push(stream.to_string()),
                None => {
                    let (path, streams) = (file.path.clone(), vec![stream.to_string()]);
                    places.push(LogPlace { path, streams, has_origins });
                }
            }
        }
        places
    }
}

/// Number of commands that were run for one kind of event.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HookRuns {
    /// The event, as `--hook` names it.
    pub event: String,
    /// Number of commands that succeeded.
    pub done: u64,
    /// Number of commands that failed, or took too long.
    pub failed: u64,
}

/// Number of workers that ended in one way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Respawns {
    /// One of the words of [`Failed::cause`].
    pub cause: String,
    /// The exit code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// The signal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// Number of workers.
    pub count: u64,
}

/// Number of reloads by outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reloads {
    /// The new generation serves.
    pub done: u64,
    /// The new generation failed.
    pub rejected: u64,
    /// Panzer was stopped before the outcome.
    pub stopped: u64,
    /// Duration of the last reload that was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_ms: Option<u64>,
}

/// A generation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Generation {
    /// Its number.
    pub number: u32,
    /// `serving`, `starting` or `draining`.
    pub standing: String,
    /// Pid of its monitor.
    pub monitor: Option<i32>,
    /// Whether the monitor answered within a second.
    pub answered: bool,
    /// The cgroup of its workers (`--cgroup`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<Cgroup>,
    /// The process that loads the program and forks the workers (`--preload`). It has no slot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mold: Option<Worker>,
    /// Its workers.
    pub workers: Vec<Worker>,
}

/// The cgroup of a generation's workers. A limit is missing if there is none, a use if it is not counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cgroup {
    /// Its folder.
    #[serde(with = "crate::config::text::path")]
    pub path: PathBuf,
    /// Memory in use, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Limit of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_max: Option<u64>,
    /// Number of processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// Limit of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_max: Option<u64>,
}

/// A worker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Worker {
    /// Its slot.
    #[serde(default = "mold", skip_serializing_if = "is_mold")]
    pub slot: u32,
    /// Its pid, if it has a process.
    pub pid: Option<i32>,
    /// `starting`, `ready`, `stopping`, `stopped` (by a signal such as STOP), `waiting`, `ended` or `empty`.
    pub state: String,
    /// Time since the process began; without a process, since the slot came into this state.
    pub since_ms: u64,
    /// How often the slot was filled again.
    pub respawns: u32,
    /// Why the last process of the slot ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<Failed>,
    /// Time since the worker last said that it lives (einhorn's ping).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sign_of_life_ms: Option<u64>,
    /// Number of requests that the worker has served, if it reports them (`X_PANZER_REQUESTS=`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    /// How often a worker of this slot was replaced because it had reached a limit (`--max-lifetime` and others).
    pub recycled: u32,
    /// Why the worker is being replaced, or else why the one before it was, completing "worker N …".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recycling: Option<String>,
}

fn mold() -> u32 {
    kin::MOLD
}

fn is_mold(slot: &u32) -> bool {
    *slot == kin::MOLD
}

impl Generation {
    /// Its mold, if there is one, and its workers.
    pub fn processes(&self) -> impl Iterator<Item = &Worker> {
        self.mold.iter().chain(&self.workers)
    }
}

impl Worker {
    /// The slot as people call it.
    pub fn shown_slot(&self) -> String {
        if is_mold(&self.slot) { "mold".to_owned() } else { self.slot.to_string() }
    }
}

/// Why a worker ended, or could not start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Failed {
    /// Its slot.
    #[serde(default = "mold", skip_serializing_if = "is_mold")]
    pub worker: u32,
    /// `exited`, `killed`, `not_ready`, `watchdog`, `out_of_memory`, `not_found`, `not_executable`, `not_started`, `configuration`, `hook` or `hung`.
    pub cause: String,
    /// Its exit code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// The signal that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// The time limit that it missed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// The cause in words, completing "worker N …".
    pub message: String,
}

impl Failed {
    /// Describes `cause` for operators.
    pub fn new(worker: u32, cause: &Cause) -> Failed {
        let mut failed = Failed { worker, message: cause.to_string(), ..Failed::default() };
        let word = match cause {
            Cause::Exited(code) => {
                failed.code = Some(*code);
                "exited"
            }
            Cause::Killed(signal, _) => {
                failed.signal = Some(signal_name(*signal));
                "killed"
            }
            Cause::NotReady(time) | Cause::NotSeen(time, _) | Cause::Bypassed(time, _) | Cause::Suspended(time) => {
                failed.deadline_ms = Some(time.as_millis() as u64);
                "not_ready"
            }
            Cause::OutOfMemory | Cause::OverMemoryLimit(_) => {
                failed.signal = Some("SIGKILL".to_owned());
                "out_of_memory"
            }
            Cause::Watchdog(time, _) => {
                failed.deadline_ms = time.map(|time| time.as_millis() as u64);
                "watchdog"
            }
            Cause::HungInExec(time) | Cause::HungInPlan(time) => {
                failed.deadline_ms = Some(time.as_millis() as u64);
                "hung"
            }
            Cause::NotFound(_) => "not_found",
            Cause::CannotExecute(_) => "not_executable",
            Cause::CannotStart(_) | Cause::CannotBecome(_) => "not_started",
            Cause::Configuration(_) => "configuration",
            Cause::Hook(_) => "hook",
        };
        failed.cause = word.to_owned();
        failed
    }
}

/// The accept queue of a listener. If each worker has its own queue, all of them together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Queue {
    /// Address of the listener.
    pub address: String,
    /// Number of connections that wait; None for datagrams.
    pub queued: Option<u32>,
    /// Number of connections that may wait; None for datagrams.
    pub limit: Option<u32>,
    /// Number of queues.
    pub queues: u32,
    /// Number of connections that wait in the fullest queue; None for datagrams.
    pub fullest: Option<u32>,
    /// Inode of a unix socket. panzerctl uses it to ask the kernel for the queue, which may take too long for main.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inode: Option<u64>,
}

/// Lines of at most 80 columns, but for long causes.
impl Display for Status {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "main {}", self.pid)?;
        for generation in &self.generations {
            let monitor = generation.monitor.map_or_else(|| "none".to_owned(), |pid| pid.to_string());
            write!(f, "\n  generation {} {}, monitor {monitor}", generation.number, generation.standing)?;
            if !generation.answered {
                write!(f, ": no answer within 1s; is it stopped?")?;
                continue;
            }
            for worker in generation.processes() {
                write!(f, "\n    {}", worker.to_string().trim_end())?;
            }
        }
        Ok(())
    }
}

impl Display for Worker {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let pid = self.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let since = show(Duration::from_millis(self.since_ms));
        let name = if is_mold(&self.slot) { "mold".to_owned() } else { format!("worker {}", self.slot) };
        write!(f, "{name:<11} {pid:>8}  {:<9} {since:<10} ", self.state)?;
        let respawned = (self.respawns > 0).then(|| format!("respawned {}x", self.respawns));
        let sign = self.sign_of_life_ms.map(|ago| format!("sign of life {} ago", show(Duration::from_millis(ago))));
        let last = self.last.as_ref().map(|last| match last.code {
            // The message adds that a worker shall keep running, which is not true of this one.
            Some(code) if self.state == "ended" => format!("last: exited with code {code}"),
            _ => format!("last: {}", last.message),
        });
        let recycled = self.recycling.as_ref().map(|reason| match self.recycled {
            0 => format!("being replaced: {reason}"),
            times => format!("recycled {times}x, last: {reason}"),
        });
        let requests = self.requests.map(|requests| format!("{requests} requests"));
        let remarks: Vec<String> =
            respawned.into_iter().chain(requests).chain(recycled).chain(sign).chain(last).collect();
        write!(f, "{}", remarks.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_logged_in_lines_that_scripts_can_read() {
        let worker = |slot, pid, state: &str, cause: Option<Cause>| Worker {
            slot,
            pid,
            state: state.to_owned(),
            since_ms: 90_700,
            last: cause.map(|cause| Failed::new(slot, &cause)),
            ..Worker::default()
        };
        let workers = vec![
            Worker {
                respawns: 2,
                sign_of_life_ms: Some(3_000),
                ..worker(0, Some(71), "ready", Some(Cause::Exited(0)))
            },
            worker(1, None, "ended", Some(Cause::Exited(0))),
            worker(2, None, "empty", None),
        ];
        let generation = |number, standing: &str, monitor, answered, workers| Generation {
            number,
            standing: standing.to_owned(),
            monitor,
            answered,
            workers,
            ..Generation::default()
        };
        let generations =
            vec![generation(6, "draining", None, false, Vec::new()), generation(7, "serving", Some(42), true, workers)];
        let expected = "\
main 41
  generation 6 draining, monitor none: no answer within 1s; is it stopped?
  generation 7 serving, monitor 42
    worker 0          71  ready     1m 30s     respawned 2x, sign of life 3s ago, last: exited with code 0, but workers are expected to keep running
    worker 1           -  ended     1m 30s     last: exited with code 0
    worker 2           -  empty     1m 30s";
        assert_eq!(Status { pid: 41, generations, ..Status::default() }.to_string(), expected);
    }
}
