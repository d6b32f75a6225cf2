//! Limits of the workers' resources, and the CPUs that they run on: as asked for.

use std::fmt;
use std::str::FromStr;

use nix::errno::Errno;
use nix::sys::resource::RLIM_INFINITY;
use rustix::process::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::config::size;

/// The resources, by their names in setrlimit(2) without `RLIMIT_`.
const RESOURCES: [(&str, Resource); 16] = [
    ("AS", Resource::As),
    ("CORE", Resource::Core),
    ("CPU", Resource::Cpu),
    ("DATA", Resource::Data),
    ("FSIZE", Resource::Fsize),
    ("LOCKS", Resource::Locks),
    ("MEMLOCK", Resource::Memlock),
    ("MSGQUEUE", Resource::Msgqueue),
    ("NICE", Resource::Nice),
    ("NOFILE", Resource::Nofile),
    ("NPROC", Resource::Nproc),
    ("RSS", Resource::Rss),
    ("RTPRIO", Resource::Rtprio),
    ("RTTIME", Resource::Rttime),
    ("SIGPENDING", Resource::Sigpending),
    ("STACK", Resource::Stack),
];

/// A hard limit that stays. The kernel takes every number above the largest signed one for no limit.
const AS_IT_IS: u64 = RLIM_INFINITY - 1;

/// The limits of one resource, as in `NOFILE=1024:65536`. One number is both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rlimit {
    /// Its place among [`RESOURCES`].
    resource: usize,
    soft: u64,
    hard: u64,
}

impl Rlimit {
    /// The limit of descriptors: this soft one, and the hard one that the process has by then. An administrator may lower
    /// it while we run, and only root could raise it again.
    pub fn descriptors(soft: u64) -> Option<Rlimit> {
        let resource = RESOURCES.iter().position(|(_, resource)| *resource == Resource::Nofile)?;
        Some(Rlimit { resource, soft, hard: AS_IT_IS })
    }

    /// The name of its resource.
    pub fn name(&self) -> &'static str {
        RESOURCES[self.resource].0
    }

    /// Puts it on this process. Allocates nothing, and leaves errno alone.
    pub fn apply(&self) -> Result<(), Errno> {
        let resource = RESOURCES[self.resource].1;
        let hard = if self.hard == AS_IT_IS { hard_limit(resource) } else { self.hard };
        let limit = |value: u64| (value != RLIM_INFINITY).then_some(value);
        let new = rustix::process::Rlimit { current: limit(self.soft.min(hard)), maximum: limit(hard) };
        setrlimit(resource, new).map_err(|errno| Errno::from_raw(errno.raw_os_error()))
    }

    /// The hard limit that this process has, where it is lower than this one.
    pub fn lower_hard_limit(&self) -> Option<String> {
        let hard = hard_limit(RESOURCES[self.resource].1);
        (hard < self.hard).then(|| number(hard))
    }
}

fn hard_limit(resource: Resource) -> u64 {
    getrlimit(resource).maximum.unwrap_or(RLIM_INFINITY)
}

fn number(value: u64) -> String {
    if value == RLIM_INFINITY { "unlimited".to_owned() } else { value.to_string() }
}

impl FromStr for Rlimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Rlimit, String> {
        let (name, limits) = text.split_once('=').ok_or("it must be NAME=N or NAME=SOFT:HARD, as in NOFILE=65536")?;
        let short = name.trim().to_ascii_uppercase();
        let short = short.strip_prefix("RLIMIT_").unwrap_or(&short);
        let resource = RESOURCES.iter().position(|(known, _)| *known == short).ok_or_else(|| {
            let known: Vec<_> = RESOURCES.iter().map(|(known, _)| *known).collect();
            format!("there is no resource {name}; take one of {}", known.join(", "))
        })?;
        let read = |text: &str| match text.trim() {
            "unlimited" | "infinity" => Ok(RLIM_INFINITY),
            text => size::parse(text).map_err(|_| format!("'{text}' is not a limit; write a number, 2G or unlimited")),
        };
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        let limit = Rlimit { resource, soft: read(soft)?, hard: read(hard)? };
        if limit.soft > limit.hard {
            return Err("the soft limit is above the hard one; write NAME=SOFT:HARD".to_owned());
        }
        Ok(limit)
    }
}

impl fmt::Display for Rlimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name(), number(self.soft))?;
        if self.soft == self.hard { Ok(()) } else { write!(f, ":{}", number(self.hard)) }
    }
}

/// The CPUs of the workers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum CpuAffinity {
    /// One CPU for each worker, in turn, of those that panzer may use.
    Auto,
    /// Each worker may use all of these: ranges with both ends.
    List(Vec<(usize, usize)>),
}

/// As many as the kernel's usual set has.
const MAX_CPUS: usize = 1024;

impl FromStr for CpuAffinity {
    type Err = String;

    fn from_str(text: &str) -> Result<CpuAffinity, String> {
        if text == "auto" {
            return Ok(CpuAffinity::Auto);
        }
        let number = |text: &str| text.trim().parse().ok().filter(|cpu| *cpu < MAX_CPUS);
        let range = |item: &str| {
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            Some((number(first)?, number(last)?)).filter(|(first, last)| first <= last)
        };
        let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
        ranges
            .map(CpuAffinity::List)
            .ok_or_else(|| format!("it must be auto, or CPUs from 0 to {}, as in 0-3,6", MAX_CPUS - 1))
    }
}

impl fmt::Display for CpuAffinity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CpuAffinity::List(ranges) = self else { return write!(f, "auto") };
        let range = |(first, last): &(usize, usize)| {
            if first == last { first.to_string() } else { format!("{first}-{last}") }
        };
        write!(f, "{}", ranges.iter().map(range).collect::<Vec<_>>().join(","))
    }
}

macro_rules! as_text {
    ($($type:ty),*) => { $(
        impl TryFrom<String> for $type {
            type Error = String;

            fn try_from(text: String) -> Result<$type, String> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }
    )* };
}
as_text!(Rlimit, CpuAffinity);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_and_shown() {
        let shown = |text: &str| text.parse::<Rlimit>().map(|limit| limit.to_string());
        for (text, expected) in [
            ("NOFILE=65536", "NOFILE=65536"),
            ("nofile=1024:65536", "NOFILE=1024:65536"),
            ("RLIMIT_CORE=unlimited", "CORE=unlimited"),
            ("CORE=0:infinity", "CORE=0:unlimited"),
            ("AS=2G", "AS=2147483648"),
        ] {
            assert_eq!(shown(text).as_deref(), Ok(expected), "{text}");
            assert_eq!(shown(expected).as_deref(), Ok(expected));
        }
        for text in ["", "NOFILE", "NOFILE=", "=1", "X=1", "NOFILE=-1", "NOFILE=2:1", "NOFILE=1:2:3", "NOFILE=x"] {
            assert!(text.parse::<Rlimit>().is_err(), "{text}");
        }
    }

    #[test]
    fn cpus_are_read_and_shown() {
        for text in ["auto", "0", "0-3,6", "7,1-2"] {
            assert_eq!(text.parse::<CpuAffinity>().map(|cpus| cpus.to_string()).as_deref(), Ok(text));
        }
        for text in ["", "-1", "a", "3-1", "1024", "0,,1", "0-", "Auto", "0x1"] {
            assert!(text.parse::<CpuAffinity>().is_err(), "{text}");
        }
    }
}
