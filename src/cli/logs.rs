//! The options of where the output of workers goes.

use std::path::Path;

use clap::Args;
use clap::builder::FalseyValueParser;

use crate::config::logs::{DEFAULT_KEEP, DEFAULT_SIZE, MAX_KEEP};
use crate::config::{LogFile, LogFormat, Logs, number, size};

#[derive(Debug, Args)]
pub(super) struct LogOptions {
    /// Write the workers' stdout and stderr to this file, line by line; -: to panzer's own stdout. Each worker gets
    /// pipes of its own, and a slow or full disk never makes it wait. OPT: mode=0640, owner=USER, group=GROUP. Panzer
    /// rotates the file and does not follow a symbolic link. Without it the workers inherit panzer's stdout and stderr
    #[arg(long, env = "PANZER_LOG", value_name = "FILE[,OPT]|-", allow_hyphen_values = true)]
    log: Option<LogFile>,

    /// Write the workers' stdout to this file, as with --log
    #[arg(long, env = "PANZER_STDOUT", value_name = "FILE[,OPT]|-", allow_hyphen_values = true)]
    stdout: Option<LogFile>,

    /// Write the workers' stderr to this file, as with --log
    #[arg(long, env = "PANZER_STDERR", value_name = "FILE[,OPT]|-", allow_hyphen_values = true)]
    stderr: Option<LogFile>,

    /// Rotate a log file before it grows beyond this size: FILE becomes FILE.1, FILE.1 becomes FILE.2. 0: never
    /// [1MiB]
    #[arg(long, env = "PANZER_LOG_SIZE", value_name = "SIZE", allow_hyphen_values = true, value_parser = size::parse)]
    log_size: Option<u64>,

    /// Number of rotated files that are kept [5]
    #[arg(long, env = "PANZER_LOG_KEEP", value_name = "N", allow_hyphen_values = true, value_parser = |text: &str| number::parse(text, &(1..=MAX_KEEP)))]
    log_keep: Option<u32>,

    /// Compress rotated files: FILE.1.gz
    #[arg(long, env = "PANZER_LOG_COMPRESS", value_parser = FalseyValueParser::new())]
    log_compress: bool,

    /// Begin each line of the log with its time, worker, generation and stream, in colour if it goes to a terminal
    #[arg(long, env = "PANZER_LOG_PREFIX", value_parser = FalseyValueParser::new())]
    log_prefix: bool,

    /// json: write each line of the log, and each of panzer's own messages, as a JSON object [text]
    #[arg(long, env = "PANZER_LOG_FORMAT", value_name = "text|json", hide_possible_values = true)]
    log_format: Option<LogFormat>,
}

impl LogOptions {
    pub(super) fn resolve(self, start_directory: &Path) -> Logs {
        let file = |own: Option<LogFile>| own.or_else(|| self.log.clone()).map(|file| file.below(start_directory));
        Logs {
            stdout: file(self.stdout),
            stderr: file(self.stderr),
            log_size: self.log_size.unwrap_or(DEFAULT_SIZE),
            log_keep: self.log_keep.unwrap_or(DEFAULT_KEEP),
            log_compress: self.log_compress,
            log_prefix: self.log_prefix,
            log_format: self.log_format.unwrap_or_default(),
        }
    }
}
