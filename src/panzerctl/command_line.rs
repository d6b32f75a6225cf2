//! The command line of panzerctl: the one definition of its commands and options.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use nix::sys::signal::Signal;

use crate::config::duration;
use crate::sys::signals::parse_signal_or_number;

/// Over the options that name an instance, so that those of a command stand by themselves.
const WHICH: &str = "Which panzer, where several run";

const AFTER: &str = "Exit codes:\n  0  done; of status: it runs (with --wait-ready: it is ready)\n  1  refused or \
    failed; of status: dead, and its pid file left\n  2  usage, or several run and none is named\n  3  not running\n  4  no answer, or not known\n\n\
    The control socket takes one JSON object a line, as {\"version\":1,\"command\":\"reload\"}, and answers by lines: \
    those with \"event\" tell what goes on, the one with \"ok\" is the last.";

/// To look more often tells nobody more, and keeps main from its sleep.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// Asks a running panzer for its state, and tells it what to do.
#[derive(Debug, Parser)]
#[command(name = "panzerctl", version, max_term_width = 100, disable_help_subcommand = true, after_help = AFTER)]
pub(super) struct Options {
    /// The panzer of this name
    #[arg(long, value_name = "NAME", global = true, help_heading = WHICH, conflicts_with_all = ["pid", "control"])]
    pub(super) name: Option<String>,

    /// The panzer with this pid file
    #[arg(short, long, value_name = "FILE", global = true, help_heading = WHICH, conflicts_with = "control")]
    pub(super) pid: Option<PathBuf>,

    /// The panzer with this control socket
    #[arg(long, value_name = "PATH", global = true, help_heading = WHICH)]
    pub(super) control: Option<PathBuf>,

    /// Give up after this long [5s; as long as it may take for what waits]
    #[arg(long, value_name = "D", global = true, display_order = 100, allow_hyphen_values = true)]
    #[arg(value_parser = duration::parse)]
    pub(super) timeout: Option<Duration>,

    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show the panzers that run, and how each one is
    List,
    /// Show generations, workers and accept queues
    ///
    /// CPU% is a worker's share of one CPU since its start, with --watch since the look before; PSS is its proportional
    /// share of memory, with --watch summed up anew at most a twentieth of the time. Both are of its own process, "-"
    /// where we may not look; in JSON they are cpu_percent and pss_bytes, and then missing.
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Wait until it runs and is ready
        ///
        /// It is ready once as many workers as are wanted have been ready together: after a start, a scale to more, or the
        /// loss of a monitor. From then on one that is ready is enough: neither a worker that is respawned nor a reload
        /// makes a probe fail. Without workers (quiet) it is not ready.
        #[arg(long)]
        wait_ready: bool,
        /// Show it again and again, in place on a terminal; q or Ctrl-C ends it
        #[arg(long, conflicts_with = "wait_ready")]
        watch: bool,
        /// Between two looks of --watch, from 100ms on
        #[arg(long, value_name = "D", default_value = "1s", requires = "watch", value_parser = interval)]
        interval: Duration,
    },
    /// Print counts and gauges in Prometheus' text format
    Metrics,
    /// Start a new generation, and wait for its verdict
    ///
    /// It returns once the new generation serves. The old one still answers the connections that it has: --drained waits
    /// until it is gone, and no old release answers any more.
    Reload {
        /// Do not wait
        #[arg(long, conflicts_with = "drained")]
        no_wait: bool,
        /// Wait until the old generation is gone, too
        #[arg(long)]
        drained: bool,
    },
    /// Wait until no old generation drains any more; with --now, end what drains
    Drain {
        /// Hurry: go on to the rest of the stop schedule, without its first step
        #[arg(long)]
        now: bool,
        /// This generation only
        #[arg(long, value_name = "N")]
        generation: Option<u32>,
        /// Do not wait
        #[arg(long, requires = "now")]
        no_wait: bool,
    },
    /// Upgrade panzer itself in place; workers go on untouched
    ///
    /// Main becomes the build that the path it was started by leads to now, under the same pid.
    Restart,
    /// Stop gracefully, and wait until panzer has ended and its pid file is free
    #[command(visible_alias = "shutdown")]
    Stop {
        /// Do not wait
        #[arg(long)]
        no_wait: bool,
    },
    /// Stop now: the stop schedule without its first step
    Exit {
        /// Do not wait
        #[arg(long)]
        no_wait: bool,
    },
    /// Keep N workers from now on, or N more or less
    ///
    /// Without a reload, and over reloads, until another count is configured.
    Scale {
        /// As 8, +1 or -1
        #[arg(value_name = "N|+N|-N", allow_hyphen_values = true)]
        count: String,
    },
    /// End all workers and keep main; a reload or a scale brings workers back
    Quiet,
    /// Send a signal to the workers of the serving generation
    Signal {
        /// Its name or number, as HUP, SIGHUP or 1
        #[arg(value_name = "SIG", value_parser = parse_signal_or_number)]
        signal: Signal,
        /// To this worker only
        #[arg(long, value_name = "N")]
        worker: Option<u32>,
    },
    /// Open anew what panzer itself writes to
    Reopen,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration::parse(text)?;
    if interval < SHORTEST_INTERVAL { Err("that is shorter than 100ms".to_owned()) } else { Ok(interval) }
}
