//! Why a worker ended, or never began. The same value decides what follows, goes to main, and is logged.

use std::fmt;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::config::{duration, size};
use crate::sys::printable;
use crate::sys::processes::Exit;

/// The longest explanation that is passed on, in bytes.
const MAX_EXPLANATION_BYTES: usize = 1024;

/// Why a worker ended, or never began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The program was not found. The text says what was looked for, where, and what to do.
    NotFound(String),
    /// The program is there and cannot be executed. The text says why.
    CannotExecute(String),
    /// The system refused what a start needs: a process, a descriptor, a directory.
    CannotStart(String),
    /// It cannot run as its user or group. The text says why.
    CannotBecome(String),
    /// It ended by itself.
    Exited(i32),
    /// A signal ended it; true if it dumped core.
    Killed(i32, bool),
    /// The kernel ended it, because memory ran out.
    OutOfMemory,
    /// The kernel ended it, because the workers of its generation had reached this limit of memory, in bytes.
    OverMemoryLimit(u64),
    /// It was not ready in this time, and was ended for it.
    NotReady(Duration),
    /// It was not ready in this time, because panzer cannot see whether it accepts. The text says why.
    NotSeen(Duration, String),
    /// It was not ready in this time, because it listened on these addresses instead of the listener it was given.
    Bypassed(Duration, Vec<String>),
    /// A signal stopped it, and it did not go on within this time.
    Suspended(Duration),
    /// It did not say within this time that it lives, or it asked for its end. It was aborted; true if it dumped core.
    Watchdog(Option<Duration>, bool),
    /// Its exec hung for this time, and it was ended for it.
    HungInExec(Duration),
    /// The configuration is wrong. The text says where, and why.
    Configuration(String),
    /// A hook that runs before a reload failed. The text says how, and what it wrote last.
    Hook(String),
    /// Reading the configuration hung for this time and was given up.
    HungInPlan(Duration),
}

impl Cause {
    /// Cleans the explanation, and cuts it to what is passed on.
    pub fn bounded(text: String) -> String {
        let text = printable::message(&text);
        if text.len() <= MAX_EXPLANATION_BYTES {
            return text;
        }
        let end = (0..=MAX_EXPLANATION_BYTES).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        format!("{}...", &text[..end])
    }

    /// To follow the name of a worker: ` exited …`, or `: … was not found`.
    pub fn after_name(&self) -> String {
        let is_sentence = matches!(self, Cause::NotFound(_) | Cause::CannotExecute(_));
        format!("{}{self}", if is_sentence { ": " } else { " " })
    }

    /// Panzer's own exit code if the program cannot be executed, as a shell has them, or not as its user.
    pub fn exit_code(&self) -> Option<u8> {
        match self {
            Cause::NotFound(_) => Some(127),
            Cause::CannotExecute(_) => Some(126),
            Cause::CannotBecome(_) => Some(125),
            _ => None,
        }
    }
}

impl From<Exit> for Cause {
    fn from(exit: Exit) -> Cause {
        match exit {
            Exit::Code(code) => Cause::Exited(code),
            Exit::Signal(signal, core) => Cause::Killed(signal, core),
        }
    }
}

/// Completes "worker 3 …".
impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::NotFound(what)
            | Cause::CannotExecute(what)
            | Cause::CannotStart(what)
            | Cause::CannotBecome(what)
            | Cause::Configuration(what)
            | Cause::Hook(what) => write!(f, "{}", printable::message(what)),
            Cause::Exited(0) => write!(f, "exited with code 0, but workers are expected to keep running"),
            Cause::Exited(code) => write!(f, "exited with code {code}"),
            Cause::Killed(signal, core) => {
                write!(f, "was killed by {}{}", signal_name(*signal), if *core { " (core dumped)" } else { "" })
            }
            Cause::OutOfMemory => write!(f, "was killed by SIGKILL: the kernel's OOM killer, as memory ran out"),
            Cause::OverMemoryLimit(limit) => write!(
                f,
                "was killed by SIGKILL: the kernel's OOM killer, as its generation reached --cgroup memory={}",
                size::show(*limit)
            ),
            Cause::NotReady(time) => write!(f, "was not ready within {}", duration::show(*time)),
            Cause::NotSeen(time, why) => write!(
                f,
                "was not ready within {}: whether it accepts cannot be seen: {why}; try --ready notify, exec or alive",
                duration::show(*time)
            ),
            Cause::Bypassed(time, own) => write!(
                f,
                "was not ready within {}: it listens on {}, which panzer does not hold, and was not seen accepting on the \
                 listener that it was given",
                duration::show(*time),
                own.join(", ")
            ),
            Cause::Suspended(time) => write!(
                f,
                "is stopped by a signal, and did not go on within {}; kill -CONT lets it go on",
                duration::show(*time)
            ),
            Cause::Watchdog(time, core) => {
                match time {
                    Some(time) => write!(f, "sent no WATCHDOG=1 for {} and was aborted", duration::show(*time))?,
                    None => write!(f, "asked to be aborted (WATCHDOG=trigger)")?,
                }
                if *core { write!(f, " (core dumped)") } else { Ok(()) }
            }
            Cause::HungInExec(time) => write!(f, "hung for {} in exec", duration::show(*time)),
            Cause::HungInPlan(time) => {
                write!(f, "the configuration could not be read within {}", duration::show(*time))
            }
        }
    }
}

/// `SIGTERM`, or `signal 35` where it has no name.
pub fn signal_name(number: i32) -> String {
    Signal::try_from(number).map_or_else(|_| format!("signal {number}"), |signal| signal.as_str().to_owned())
}
