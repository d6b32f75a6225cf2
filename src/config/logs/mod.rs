//! Where the output of workers goes, and how it is written there.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::address::{Access, find_group, find_user, is_key, parse_mode};

/// Size at which a log file is rotated if `--log-size` is not given.
pub const DEFAULT_SIZE: u64 = 1 << 20;

/// Number of rotated files that are kept if `--log-keep` is not given.
pub const DEFAULT_KEEP: u32 = 5;

/// Limit of the rotated files that are kept: rotating renames each of them.
pub const MAX_KEEP: u32 = 1000;

/// One of the two streams of a worker's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

impl Stream {
    /// Both.
    pub const BOTH: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

    /// The descriptor that it has in a worker.
    pub fn number(self) -> i32 {
        self as i32 + 1
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Stream::Stdout { "stdout" } else { "stderr" })
    }
}

/// A file that output is written to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogFile {
    /// Its path; `-` is panzer's own stdout.
    #[serde(with = "crate::config::text::path")]
    pub path: PathBuf,
    /// Its mode and owner; those that are not given are as for any file that panzer creates.
    pub access: Access,
}

impl LogFile {
    /// The descriptor of panzer that is meant: 1 for `-`.
    pub fn own_descriptor(&self) -> Option<i32> {
        match self.path.to_str()? {
            "-" | "/dev/stdout" | "/dev/fd/1" | "/proc/self/fd/1" => Some(1),
            "/dev/stderr" | "/dev/fd/2" | "/proc/self/fd/2" => Some(2),
            _ => None,
        }
    }

    /// This file, with its path resolved from `directory`.
    #[must_use]
    pub fn below(mut self, directory: &Path) -> LogFile {
        if self.own_descriptor().is_none() {
            self.path = directory.join(&self.path);
        }
        self
    }
}

impl fmt::Display for LogFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.own_descriptor() {
            Some(1) => f.write_str("stdout"),
            Some(_) => f.write_str("stderr"),
            None => write!(f, "{}", self.path.display()),
        }
    }
}

impl FromStr for LogFile {
    type Err = String;

    /// Options stand behind the path. A comma that nothing like an option follows belongs to the path.
    fn from_str(text: &str) -> Result<LogFile, String> {
        let (mut path, mut access) = (text, Access::default());
        while let Some((before, option)) = path.rsplit_once(',') {
            match option.split_once('=') {
                Some(("mode", mode)) => access.mode = Some(parse_mode(mode)?),
                Some(("owner", owner)) => access.owner = Some(find_user(owner)?),
                Some(("group", group)) => access.group = Some(find_group(group)?),
                Some((key, _)) if is_key(key) => {
                    return Err(format!("unknown option '{key}'; there are mode, owner and group"));
                }
                _ => break,
            }
            path = before;
        }
        if path.is_empty() || path.ends_with('/') {
            return Err("it must be the path of a file, or - for panzer's own stdout".to_owned());
        }
        Ok(LogFile { path: path.into(), access })
    }
}

/// How lines are written, and panzer's own messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// As they are.
    #[default]
    Text,
    /// Each is a JSON object.
    Json,
}

/// The destinations of output, and its form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logs {
    /// Destination of the workers' stdout. None: panzer's stdout.
    pub stdout: Option<LogFile>,
    /// Destination of the workers' stderr. None: panzer's stderr.
    pub stderr: Option<LogFile>,
    /// Size in bytes at which a file is rotated; 0: never.
    pub log_size: u64,
    /// Number of rotated files that are kept.
    pub log_keep: u32,
    /// Whether rotated files are compressed.
    pub log_compress: bool,
    /// Whether each line begins with its time and origin.
    pub log_prefix: bool,
    /// How lines, and panzer's own messages, are written.
    pub log_format: LogFormat,
}

impl Default for Logs {
    fn default() -> Logs {
        Logs {
            stdout: None,
            stderr: None,
            log_size: DEFAULT_SIZE,
            log_keep: DEFAULT_KEEP,
            log_compress: false,
            log_prefix: false,
            log_format: LogFormat::Text,
        }
    }
}

impl Logs {
    /// Destination of a stream.
    pub fn of(&self, stream: Stream) -> Option<&LogFile> {
        if stream == Stream::Stdout { self.stdout.as_ref() } else { self.stderr.as_ref() }
    }

    /// Whether panzer reads any output of workers.
    pub fn is_captured(&self) -> bool {
        self.stdout.is_some() || self.stderr.is_some()
    }

    /// Whether both streams go to one file.
    pub fn is_joint(&self) -> bool {
        let path = |file: &Option<LogFile>| file.as_ref().map(|file| file.path.clone());
        self.stdout.is_some() && path(&self.stdout) == path(&self.stderr)
    }

    /// Whether messages are written as JSON.
    pub fn is_json(&self) -> bool {
        self.log_format == LogFormat::Json
    }

    /// Whether these are what a plan without logs has.
    pub fn is_default(&self) -> bool {
        *self == Logs::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_with_its_options() {
        let read = |text: &str| text.parse::<LogFile>();
        let file = read("/var/log/a,b.log,mode=0640,owner=0,group=0").unwrap();
        assert_eq!(file.path, PathBuf::from("/var/log/a,b.log"));
        assert_eq!(file.access, Access { mode: Some(0o640), owner: Some(0), group: Some(0) });
        assert_eq!(read("-").unwrap().own_descriptor(), Some(1));
        assert_eq!(read("x").unwrap().below(Path::new("/a")).path, PathBuf::from("/a/x"));
        for text in ["", ",mode=0640", "a,mode=9", "a/", "a,mod=0640"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
