//! The options that limit how workers are started and how many generations drain.

use std::time::Duration;

use clap::builder::FalseyValueParser;
use clap::{ArgAction, Args};

use super::refusal::{Ending, usage};
use crate::config::{
    DEFAULT_DRAINING, FinalExit, FinalExits, MAX_DRAINING, Recycling, RespawnLimit, StartDelay, duration, number, size,
};

#[derive(Debug, Args)]
pub(super) struct LimitOptions {
    /// Give up, with exit code 1, after more than N respawns within D, as in 10/60s [never]
    #[arg(long, env = "PANZER_RESPAWN_LIMIT", value_name = "N/D", allow_hyphen_values = true)]
    pub(super) respawn_limit: Option<RespawnLimit>,

    /// Do not respawn a worker that exits with one of these codes, as in 0,64-78. When all workers have ended so,
    /// panzer exits with CODE, as in 5,6=0, or with the highest of their codes. In a new generation that does not serve
    /// yet, such an exit fails the release [none]
    #[arg(long, env = "PANZER_FINAL_EXIT_CODES", value_name = "LIST[=CODE]", action = ArgAction::Append)]
    #[arg(value_delimiter = ',', allow_hyphen_values = true)]
    final_exit_codes: Vec<FinalExit>,

    /// Stop all other workers gracefully when the first worker exits with a final exit code
    #[arg(long, env = "PANZER_FINAL_EXIT_STOP", value_parser = FalseyValueParser::new())]
    final_exit_stop: bool,

    /// Pause between two starts of workers, up to 20 % longer or shorter. --ready-timeout counts from the last start
    /// [0s]
    #[arg(long, env = "PANZER_START_DELAY", value_name = "D", allow_hyphen_values = true, value_parser = duration::parse)]
    start_delay: Option<Duration>,

    /// Replace a worker that has run for this long, or for up to 20 % less, so that workers are not replaced together.
    /// Its replacement is ready first. One worker is replaced at a time, and none during a reload. 0 turns it off [0]
    #[arg(long, env = "PANZER_MAX_LIFETIME", value_name = "D", allow_hyphen_values = true, value_parser = duration::parse)]
    max_lifetime: Option<Duration>,

    /// Replace in the same way a worker that uses more memory than this (PSS, with all that it has started), as in 512M.
    /// It is measured every second near the limit, and every 30 seconds far below. 0 turns it off [0]
    #[arg(long, env = "PANZER_MAX_MEMORY", value_name = "SIZE", allow_hyphen_values = true, value_parser = size::parse)]
    max_memory: Option<u64>,

    /// Replace in the same way a worker that has served this number of requests, or up to 20 % fewer. Workers report
    /// their number so far, as X_PANZER_REQUESTS=N to NOTIFY_SOCKET. 0 turns it off [0]
    #[arg(long, env = "PANZER_MAX_REQUESTS", value_name = "N", allow_hyphen_values = true)]
    max_requests: Option<u64>,

    /// Number of old generations that may drain at once. If there are more, the one that has drained longest goes on
    /// with --stop, after its first wait [4]
    #[arg(long, env = "PANZER_MAX_DRAINING", value_name = "N", allow_hyphen_values = true, value_parser = max_draining)]
    max_draining: Option<u32>,
}

impl LimitOptions {
    pub(super) fn final_exits(&self) -> Result<FinalExits, Ending> {
        if self.final_exit_stop && self.final_exit_codes.is_empty() {
            return Err(usage("--final-exit-stop needs to know which codes are final: add --final-exit-codes"));
        }
        let mut ends: Vec<u8> = self.final_exit_codes.iter().filter_map(|exit| exit.code).collect();
        ends.dedup();
        if ends.len() > 1 {
            return Err(usage(
                "--final-exit-codes: panzer ends with one code; give one =CODE, behind the last of the list",
            ));
        }
        let codes = self.final_exit_codes.iter().map(|exit| exit.codes).collect();
        Ok(FinalExits { codes, stop: self.final_exit_stop, code: ends.pop() })
    }

    pub(super) fn start_delay(&self) -> StartDelay {
        StartDelay(self.start_delay.unwrap_or_default())
    }

    pub(super) fn recycling(&self) -> Recycling {
        Recycling {
            max_lifetime: self.max_lifetime.filter(|limit| !limit.is_zero()),
            max_memory: self.max_memory.filter(|limit| *limit > 0),
            max_requests: self.max_requests.filter(|limit| *limit > 0),
        }
    }

    pub(super) fn max_draining(&self) -> u32 {
        self.max_draining.unwrap_or(DEFAULT_DRAINING)
    }
}

fn max_draining(text: &str) -> Result<u32, String> {
    number::parse(text, &(1..=MAX_DRAINING))
}
