//! The requests of operators to main, and the lines of the answers: JSON, one object a line each way.
//!
//! ```text
//! → {"version":1,"command":"reload"}
//! ← {"version":1,"event":"starting","generation":2,"ready":0,"workers":4}
//! ← {"version":1,"event":"starting","generation":2,"ready":4,"workers":4}
//! ← {"version":1,"ok":true,"generation":2,"retiring":1,"took_ms":1312}
//! ```
//!
//! Another line follows a line with `event`; the line with `ok` is the last one of an answer. The client may then send
//! its next request. A new build may add fields and events. A change that an old build cannot read needs a higher
//! [`VERSION`].

use serde::{Deserialize, Serialize};

use super::status::{Failed, Status};

/// The version of this protocol.
pub const VERSION: u32 = 1;

/// Limit of a request, with its line feed.
pub const MAX_REQUEST_BYTES: usize = 4096;

/// A request. An unknown field is an error, so that a typing error is noticed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`VERSION`] of the client.
    pub version: u32,
    /// The request itself.
    pub command: Wanted,
    /// Reload, drain and stop: answer at once, before the outcome is known.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_wait: bool,
    /// Reload: answer when the old generation is gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drained: bool,
    /// Drain: end the workers instead of waiting for them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub now: bool,
    /// Drain: only this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// Scale: the number of workers, or with a sign how many more or fewer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<String>,
    /// Signal: its name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// Signal: only this worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<u32>,
}

impl Request {
    /// A request with nothing but a command.
    pub fn new(command: Wanted) -> Request {
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

/// A request of an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// Report the state of main, monitors and workers.
    Status,
    /// Replace the program with a new generation.
    Reload,
    /// Wait until old generations have drained, or hurry them.
    Drain,
    /// Stop gracefully.
    Stop,
    /// Stop with the stop schedule but without its first step.
    Exit,
    /// Change the number of workers.
    Scale,
    /// End all workers and keep main, until a reload or a scale.
    Quiet,
    /// Reopen panzer's own log files.
    Reopen,
    /// Send a signal to the workers of the serving generation.
    Signal,
    /// Execute main in place, with the build that is now at panzer's path.
    Restart,
}

impl Wanted {
    /// Whether it changes nothing.
    pub fn only_looks(self) -> bool {
        matches!(self, Wanted::Status)
    }
}

/// A line of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// [`VERSION`] of the panzer that answers.
    #[serde(default)]
    pub version: u32,
    /// The rest of the line.
    #[serde(flatten)]
    pub line: Line,
}

/// The content of a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// The request is under way: another line follows.
    Progress(Progress),
    /// The last line of the answer.
    Last(Box<Outcome>),
}

/// How far a request has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Progress {
    /// A reload waits for the one before it.
    Queued {
        /// The generation that the reload will start.
        generation: u32,
    },
    /// A reload has begun.
    Starting {
        /// The new generation.
        generation: u32,
        /// Its workers, once main has counted them.
        #[serde(flatten)]
        counts: Option<Counts>,
    },
    /// All workers of a new generation are ready, and must now live for the bake.
    Baking {
        /// The new generation.
        generation: u32,
        /// Its workers.
        #[serde(flatten)]
        counts: Counts,
    },
    /// An old generation drains.
    Draining {
        /// The generation that the request is about.
        generation: u32,
        /// The generation that drains.
        retiring: u32,
    },
    /// A change of the number of workers waits until the queues of the workers that leave are empty.
    Emptying,
    /// A restart tries the new build.
    Trying,
    /// Panzer is stopping.
    Stopping,
    /// An event of a newer panzer.
    #[serde(other)]
    Other,
}

/// The workers of a generation that starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Number of workers that are ready.
    pub ready: u32,
    /// Number of workers that must become ready.
    pub workers: u32,
}

/// The result of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Whether it was done.
    pub ok: bool,
    /// Why it was not done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The generation that the answer is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// Scale: number of workers from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<u32>,
    /// Scale: number of workers before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<u32>,
    /// Reload: the old generation, which drains now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retiring: Option<u32>,
    /// Reload: how long it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
    /// Stop: the exit code of panzer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// Signal: number of workers that it was sent to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signalled: Option<u32>,
    /// Restart: the versions of the build before and of the build now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub builds: Option<(String, String)>,
    /// Restart to the same version: whether the file of the build is the same, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_file: Option<String>,
    /// Reload: the workers that made it fail, at most 64 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<Failed>,
    /// The state of this instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
}

impl Outcome {
    /// The request was done.
    pub fn done() -> Outcome {
        Outcome { ok: true, ..Outcome::default() }
    }

    /// The request was not done, and why.
    pub fn refused(error: impl Into<String>) -> Outcome {
        Outcome { error: Some(error.into()), ..Outcome::default() }
    }
}

impl From<Outcome> for Answer {
    fn from(outcome: Outcome) -> Answer {
        Answer { version: VERSION, line: Line::Last(Box::new(outcome)) }
    }
}

impl From<Progress> for Answer {
    fn from(progress: Progress) -> Answer {
        Answer { version: VERSION, line: Line::Progress(progress) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::cause::Cause;

    /// Programs of others read these lines.
    #[test]
    fn each_line_is_written_as_documented_and_read_again() {
        let counts = Counts { ready: 1, workers: 4 };
        let lines: [(Answer, &str); 14] = [
            (Progress::Queued { generation: 2 }.into(), r#"{"version":1,"event":"queued","generation":2}"#),
            (
                Progress::Starting { generation: 2, counts: None }.into(),
                r#"{"version":1,"event":"starting","generation":2}"#,
            ),
            (
                Progress::Starting { generation: 2, counts: Some(counts) }.into(),
                r#"{"version":1,"event":"starting","generation":2,"ready":1,"workers":4}"#,
            ),
            (
                Progress::Baking { generation: 2, counts }.into(),
                r#"{"version":1,"event":"baking","generation":2,"ready":1,"workers":4}"#,
            ),
            (
                Progress::Draining { generation: 2, retiring: 1 }.into(),
                r#"{"version":1,"event":"draining","generation":2,"retiring":1}"#,
            ),
            (Progress::Emptying.into(), r#"{"version":1,"event":"emptying"}"#),
            (Progress::Trying.into(), r#"{"version":1,"event":"trying"}"#),
            (Progress::Stopping.into(), r#"{"version":1,"event":"stopping"}"#),
            (Outcome::done().into(), r#"{"version":1,"ok":true}"#),
            (Outcome::refused("no").into(), r#"{"version":1,"ok":false,"error":"no"}"#),
            (
                Outcome { generation: Some(2), retiring: Some(1), took_ms: Some(7), ..Outcome::done() }.into(),
                r#"{"version":1,"ok":true,"generation":2,"retiring":1,"took_ms":7}"#,
            ),
            (
                Outcome {
                    generation: Some(2),
                    workers: Some(3),
                    from: Some(1),
                    exit_code: Some(0),
                    signalled: Some(3),
                    ..Outcome::done()
                }
                .into(),
                r#"{"version":1,"ok":true,"generation":2,"workers":3,"from":1,"exit_code":0,"signalled":3}"#,
            ),
            (
                Outcome {
                    builds: Some(("1".to_owned(), "2".to_owned())),
                    build_file: Some("same".to_owned()),
                    ..Outcome::done()
                }
                .into(),
                r#"{"version":1,"ok":true,"builds":["1","2"],"build_file":"same"}"#,
            ),
            (
                Outcome { failed: vec![Failed::new(3, &Cause::Exited(9))], ..Outcome::refused("no") }.into(),
                r#"{"version":1,"ok":false,"error":"no","failed":[{"worker":3,"cause":"exited","code":9,"message":"exited with code 9"}]}"#,
            ),
        ];
        for (answer, text) in lines {
            assert_eq!(serde_json::to_string(&answer).unwrap(), text);
            assert_eq!(serde_json::from_str::<Answer>(text).unwrap(), answer);
        }
        let newer = r#"{"version":1,"event":"flying","generation":2,"height":7}"#;
        let newer: Answer = serde_json::from_str(newer).unwrap();
        assert_eq!(newer.line, Line::Progress(Progress::Other));
        assert!(serde_json::from_str::<Answer>(r#"{"version":1}"#).is_err());
    }

    #[test]
    fn what_is_unknown_is_refused() {
        let read = |text: &str| serde_json::from_str::<Request>(text);
        assert_eq!(read(r#"{"version":1,"command":"reload"}"#).unwrap().command, Wanted::Reload);
        for bad in [r#"{"version":1,"command":"fly"}"#, r#"{"version":1,"command":"reload","drain":true}"#, "[]", "1"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert!(read(&format!("{}{}", "[".repeat(2000), "]".repeat(2000))).is_err());
    }
}
