//! Limits: how often and how fast workers are started, when respawning ends, when a worker is replaced, and how many
//! generations drain.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{duration, size};
use crate::backoff::jittered;

/// Default of the number of old generations that may drain at once.
pub const DEFAULT_DRAINING: u32 = 4;

/// Limit of that number.
pub const MAX_DRAINING: u32 = 1000;

/// More than `count` respawns within `window` make panzer give up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RespawnLimit {
    /// Number of respawns that are allowed.
    pub count: u32,
    /// Length of the time in which the respawns of all slots count together.
    pub window: Duration,
}

impl FromStr for RespawnLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<RespawnLimit, String> {
        const FORM: &str = "a respawn limit is N/D, as in 10/60s, with N from 0 to 100000";
        let (count, window) = text.split_once('/').ok_or(FORM)?;
        let count = count.trim().parse().ok().filter(|&count| count <= 100_000).ok_or(FORM)?;
        Ok(RespawnLimit { count, window: duration::parse(window)? })
    }
}

/// Exit codes from `first` to `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ExitCodes {
    first: u8,
    last: u8,
}

impl FromStr for ExitCodes {
    type Err = String;

    fn from_str(text: &str) -> Result<ExitCodes, String> {
        const FORM: &str = "exit codes are numbers from 0 to 255 and ranges of them, as in 0,64-78";
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let code = |text: &str| text.trim().parse().map_err(|_| FORM);
        let (first, last) = (code(first)?, code(last)?);
        if first > last {
            return Err(format!("the range {first}-{last} runs backward; write {last}-{first}"));
        }
        Ok(ExitCodes { first, last })
    }
}

impl fmt::Display for ExitCodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ExitCodes { first, last } = self;
        if first == last { write!(f, "{first}") } else { write!(f, "{first}-{last}") }
    }
}

impl TryFrom<String> for ExitCodes {
    type Error = String;

    fn try_from(text: String) -> Result<ExitCodes, String> {
        text.parse()
    }
}

impl From<ExitCodes> for String {
    fn from(codes: ExitCodes) -> String {
        codes.to_string()
    }
}

/// The exits of workers that are final. A worker that exits so is done, or can never succeed, so no other worker
/// follows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalExits {
    /// The final exit codes.
    pub codes: Vec<ExitCodes>,
    /// Whether the first final exit stops everything.
    pub stop: bool,
    /// Panzer's exit code after that, if it is not to be the worker's.
    #[serde(default)]
    pub code: Option<u8>,
}

/// An item of `--final-exit-codes`: codes, and after the last one possibly panzer's own exit code, as in `6=0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FinalExit {
    /// Codes that are final.
    pub codes: ExitCodes,
    /// Panzer's exit code.
    pub code: Option<u8>,
}

impl FromStr for FinalExit {
    type Err = String;

    fn from_str(text: &str) -> Result<FinalExit, String> {
        let (codes, code) = text.split_once('=').map_or((text, None), |(codes, code)| (codes, Some(code)));
        let code = code.map(|code| code.trim().parse().map_err(|_| "the code after '=' is a number from 0 to 255"));
        Ok(FinalExit { codes: codes.parse()?, code: code.transpose()? })
    }
}

impl FinalExits {
    /// Whether this exit code is final.
    pub fn contains(&self, code: i32) -> bool {
        self.codes.iter().any(|codes| (i32::from(codes.first)..=i32::from(codes.last)).contains(&code))
    }
}

/// The pause between two starts of workers, ±20 %.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StartDelay(pub Duration);

impl StartDelay {
    /// A random pause around this one. `random` is any number.
    pub fn pause(self, random: u64) -> Duration {
        jittered(self.0, random)
    }

    /// The longest time between the first and the last start of this number of workers.
    pub fn longest(self, workers: u32) -> Duration {
        (self.0.saturating_mul(12) / 10).saturating_mul(workers.saturating_sub(1))
    }
}

/// The limits beyond which a worker is replaced although it works. None: never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Recycling {
    /// The longest life of a worker.
    #[serde(default)]
    pub max_lifetime: Option<Duration>,
    /// Memory of a worker and its descendants (PSS), in bytes.
    #[serde(default)]
    pub max_memory: Option<u64>,
    /// Number of requests that a worker serves, if it reports them.
    #[serde(default)]
    pub max_requests: Option<u64>,
}

impl Recycling {
    /// Whether there is any limit.
    pub fn is_on(&self) -> bool {
        *self != Recycling::default()
    }
}

/// Why a worker is replaced: which of its limits it has reached, and the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It has run for this long.
    Lifetime(Duration, Duration),
    /// It uses this much memory.
    Memory(u64, u64),
    /// It has served this number of requests.
    Requests(u64, u64),
    /// It is warm, and so it is to become the mold.
    Warm(ReforkAfter),
    /// The mold that has forked it is not the mold any more.
    OlderMold,
}

impl Reason {
    /// The words for metrics.
    pub const WORDS: [&str; 4] = ["lifetime", "memory", "requests", "refork"];

    /// The word for metrics.
    pub fn word(self) -> &'static str {
        match self {
            Reason::Lifetime(..) => "lifetime",
            Reason::Memory(..) => "memory",
            Reason::Requests(..) => "requests",
            Reason::Warm(_) | Reason::OlderMold => "refork",
        }
    }
}

/// Completes "worker N …".
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Reason::Lifetime(age, limit) => {
                write!(f, "ran for {} (--max-lifetime {})", duration::show(age), duration::show(limit))
            }
            Reason::Memory(used, limit) => {
                write!(f, "used {} of memory (--max-memory {})", size::show(used), size::show(limit))
            }
            Reason::Warm(after) => write!(f, "has {after} and is to become the mold (--refork)"),
            Reason::OlderMold => write!(f, "was forked by the mold before (--refork)"),
            Reason::Requests(served, limit) => write!(f, "served {served} requests (--max-requests {limit})"),
        }
    }
}

/// When a warm worker becomes the mold of its generation (`--refork`): the first time, the second, and so on. The last entry
/// holds for all further times. Empty: never.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Refork(pub Vec<ReforkAfter>);

/// One condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReforkAfter {
    /// A worker has served this number of requests.
    Requests(u64),
    /// A worker has run for this long.
    Age(Duration),
}

impl Refork {
    /// The condition after this number of times.
    pub fn after(&self, times: u32) -> Option<ReforkAfter> {
        self.0.get(times as usize).or(self.0.last()).copied()
    }
}

impl FromStr for Refork {
    type Err = String;

    fn from_str(text: &str) -> Result<Refork, String> {
        if text.trim() == "0" {
            return Ok(Refork::default());
        }
        text.split(',').map(|each| each.trim().parse()).collect::<Result<_, _>>().map(Refork)
    }
}

impl FromStr for ReforkAfter {
    type Err = String;

    fn from_str(text: &str) -> Result<ReforkAfter, String> {
        let after = match text.parse() {
            Ok(requests) => ReforkAfter::Requests(requests),
            Err(_) => ReforkAfter::Age(duration::parse(text)?),
        };
        match after {
            ReforkAfter::Requests(0) | ReforkAfter::Age(Duration::ZERO) => Err("0 stands alone: never".to_owned()),
            after => Ok(after),
        }
    }
}

/// Completes "worker N has ...".
impl fmt::Display for ReforkAfter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReforkAfter::Requests(requests) => write!(f, "served {requests} requests"),
            ReforkAfter::Age(age) => write!(f, "run for {}", duration::show(*age)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_word_among_those_for_metrics() {
        let (time, after) = (Duration::ZERO, ReforkAfter::Requests(1));
        let (lifetime, memory, requests) = (Reason::Lifetime(time, time), Reason::Memory(1, 1), Reason::Requests(1, 1));
        for reason in [lifetime, memory, requests, Reason::Warm(after), Reason::OlderMold] {
            assert!(Reason::WORDS.contains(&reason.word()), "{reason}");
        }
    }

    #[test]
    fn numbers_are_requests_and_units_are_time() {
        let read = |text: &str| text.parse::<Refork>().map(|refork| refork.0);
        let minutes = ReforkAfter::Age(Duration::from_secs(600));
        assert_eq!(read("1000"), Ok(vec![ReforkAfter::Requests(1000)]));
        assert_eq!(read("10m"), Ok(vec![minutes]));
        assert_eq!(read("50, 10m"), Ok(vec![ReforkAfter::Requests(50), minutes]));
        assert_eq!(read("0"), Ok(vec![]));
        for text in ["", "x", "50,", "0,50", "-5", "0s", "1.5.5"] {
            assert!(read(text).is_err(), "{text}");
        }
        let both = "50,10m".parse::<Refork>().unwrap();
        assert_eq!([0, 1, 2, 9].map(|times| both.after(times)), [0, 1, 1, 1].map(|at| Some(both.0[at])));
        assert_eq!(Refork::default().after(0), None);
    }

    #[test]
    fn a_respawn_limit_is_read() {
        assert_eq!("5/1m".parse(), Ok(RespawnLimit { count: 5, window: Duration::from_secs(60) }));
        for text in ["", "5", "/1m", "-1/1m", "5/x", "1e9/1s", "4294967296/1s"] {
            assert!(text.parse::<RespawnLimit>().is_err(), "{text}");
        }
    }

    #[test]
    fn exit_codes_are_read_and_held_against() {
        let read = |texts: &[&str]| FinalExits {
            codes: texts.iter().map(|t| t.parse().unwrap()).collect(),
            ..FinalExits::default()
        };
        let codes = read(&["0", "64-78", "255"]);
        for (code, is_final) in [(0, true), (1, false), (63, false), (64, true), (78, true), (79, false), (255, true)] {
            assert_eq!(codes.contains(code), is_final, "{code}");
        }
        assert!(!FinalExits::default().contains(0));
        for text in ["", "-", "256", "-1", "1-", "a", "3-2", "1-2-3", "1-256", "0x1", "+1-2x"] {
            assert!(text.parse::<ExitCodes>().is_err(), "{text}");
        }
        let with_code = |text: &str| text.parse::<FinalExit>().map(|exit| (exit.codes.to_string(), exit.code));
        assert_eq!(with_code("5-6=0"), Ok(("5-6".to_owned(), Some(0))));
        assert_eq!(with_code("5"), Ok(("5".to_owned(), None)));
        assert!(["5=", "5=256", "=0", "5=-1", "5=0=0"].iter().all(|text| with_code(text).is_err()));
        let json = serde_json::to_string(&codes).unwrap();
        assert_eq!(serde_json::from_str::<FinalExits>(&json).unwrap(), codes, "{json}");
    }

    #[test]
    fn no_pause_is_longer_than_the_longest() {
        let delay = StartDelay(Duration::from_millis(999));
        for random in 0..1000 {
            assert!(delay.pause(random) * 3 <= delay.longest(4));
            assert!(delay.pause(random) >= delay.0 * 8 / 10);
        }
        assert_eq!(delay.longest(1), Duration::ZERO);
        assert_eq!(StartDelay::default().longest(4096), Duration::ZERO);
    }
}
