//! The command line of panzerctl: its commands and options.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use nix::sys::signal::Signal;

use crate::config::duration;
use crate::sys::signals::parse_signal_or_number;

/// Heading of the options that name an instance. It separates them from the options of a command.
const SELECTION: &str = "Selecting an instance";

const AFTER: &str = "Exit codes:\n  0  done; status: it runs (with --wait-ready: it is ready)\n  1  refused or \
    failed; status: it is dead and left its pid file\n  2  wrong usage, or several run and none is named\n  3  not running\n  4  no answer, or outcome unknown\n\n\
    The control socket takes one JSON object a line, such as {\"version\":1,\"command\":\"reload\"}. It answers with \
    lines: \"event\" reports progress, and the line with \"ok\" is the last one.";

/// Shorter intervals would show nothing more, and would keep main awake.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// Shows the state of a running panzer and controls it
#[derive(Debug, Parser)]
#[command(name = "panzerctl", version, max_term_width = 100, disable_help_subcommand = true, after_help = AFTER)]
pub(super) struct Options {
    /// The panzer with this name
    #[arg(long, value_name = "NAME", global = true, help_heading = SELECTION, conflicts_with_all = ["pid", "control"], value_parser = name)]
    pub(super) name: Option<String>,

    /// The panzer with this pid file
    #[arg(short, long, value_name = "FILE", global = true, help_heading = SELECTION, conflicts_with = "control")]
    pub(super) pid: Option<PathBuf>,

    /// The panzer with this control socket
    #[arg(long, value_name = "PATH", global = true, help_heading = SELECTION)]
    pub(super) control: Option<PathBuf>,

    /// Give up after this time [5s; commands that wait: no limit]
    #[arg(long, value_name = "D", global = true, display_order = 100, allow_hyphen_values = true)]
    #[arg(value_parser = duration::parse)]
    pub(super) timeout: Option<Duration>,

    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the panzers that run, with their state; or the one that is named
    List,
    /// Show generations, workers and accept queues
    ///
    /// CPU% is the worker's share of one CPU since its start, with --watch since the last interval. PSS is its
    /// proportional share of memory; --watch spends at most a twentieth of the time on measuring it. Both count the
    /// worker's own process only. With many workers some are not measured at each look: "<12.3M" is the memory that such
    /// a worker has in use (RSS), which is at least its share. In JSON they are cpu_percent, pss_bytes and rss_bytes, beside
    /// requests_per_second of workers that report their requests, left out if unknown.
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Wait until it runs and is ready
        ///
        /// It is ready once all wanted workers have been ready together. This counts anew after a start, a scale to more
        /// workers, or the loss of a monitor. From then on one ready worker is enough: neither a respawn nor a reload
        /// makes a health check fail. Without workers (quiet) it is not ready.
        #[arg(long)]
        wait_ready: bool,
        /// Show the state at each interval, in place on a terminal; q or Ctrl-C ends it
        #[arg(long, conflicts_with = "wait_ready")]
        watch: bool,
        /// Interval of --watch, at least 100ms
        #[arg(long, value_name = "D", default_value = "1s", requires = "watch", value_parser = interval)]
        interval: Duration,
    },
    /// Show the busiest workers, repainted each second; keys sort the list, reload, and quit
    ///
    /// The keys: c sorts by CPU, m by memory, s by requests per second, u by uptime, n by respawns, w by worker; r reloads;
    /// l shows the last lines of the logs, and l again the workers; q or Ctrl-C ends it. CPU% and REQ/S are since the last
    /// look, and PSS is measured as with status --watch. REQ/S is for workers that report their requests
    /// (X_PANZER_REQUESTS=). If the output is not a terminal, the list is printed once.
    Top {
        /// Time between two looks, at least 100ms
        #[arg(long, value_name = "D", default_value = "1s", value_parser = interval)]
        interval: Duration,
    },
    /// Show the last lines of the workers' logs; with -f, also the lines that follow
    ///
    /// The lines come from the files that panzer writes with --log, also from rotated and compressed ones. -f follows a
    /// file that is rotated, moved or opened anew, and ends when panzer has ended. If stdout and stderr have a file each,
    /// each is shown below its name. On a terminal, control characters are replaced and colours kept (unless NO_COLOR is
    /// set); elsewhere each line is printed as it is.
    Logs {
        /// Go on with the lines that follow
        #[arg(short, long)]
        follow: bool,
        /// Number of lines to begin with, from each file
        #[arg(short = 'n', long, value_name = "N", default_value = "10")]
        lines: u64,
        /// Only lines of this worker. This needs --log-prefix or --log-format json
        #[arg(long, value_name = "N")]
        worker: Option<u32>,
        /// Only lines of this generation. This needs --log-prefix or --log-format json
        #[arg(long, value_name = "N")]
        generation: Option<u32>,
    },
    /// Print counters and gauges in Prometheus' text format
    Metrics,
    /// Start a new generation, and wait until it serves or has failed
    ///
    /// The command returns once the new generation serves. The old generation still answers its open connections; with
    /// --drained, the command returns when the old generation is gone.
    Reload {
        /// Do not wait
        #[arg(long, conflicts_with = "drained")]
        no_wait: bool,
        /// Also wait until the old generation is gone
        #[arg(long)]
        drained: bool,
    },
    /// Wait until no old generation drains any more; with --now, end those that drain
    Drain {
        /// Go on to the rest of the stop schedule, without its first step
        #[arg(long)]
        now: bool,
        /// Only this generation
        #[arg(long, value_name = "N")]
        generation: Option<u32>,
        /// Do not wait
        #[arg(long, requires = "now")]
        no_wait: bool,
    },
    /// Upgrade panzer itself in place; workers are not touched
    ///
    /// Main executes the build that is now at the path by which it was started, and keeps its pid.
    Restart,
    /// Stop gracefully, and wait until panzer has ended and its pid file is free
    #[command(visible_alias = "shutdown")]
    Stop {
        /// Do not wait
        #[arg(long)]
        no_wait: bool,
    },
    /// Stop quickly: the stop schedule without its first step
    Exit {
        /// Do not wait
        #[arg(long)]
        no_wait: bool,
    },
    /// Change the number of workers to N, or by N
    ///
    /// This needs no reload. The number stays over reloads, until the configuration changes it.
    Scale {
        /// Such as 8, +1 or -1
        #[arg(value_name = "N|+N|-N", allow_hyphen_values = true, value_parser = count)]
        count: String,
    },
    /// End all workers and keep main; a reload or a scale brings workers back
    Quiet,
    /// Send a signal to the workers of the serving generation
    Signal {
        /// Its name or number, such as HUP, SIGHUP or 1
        #[arg(value_name = "SIG", value_parser = parse_signal_or_number)]
        signal: Signal,
        /// Only to this worker
        #[arg(long, value_name = "N")]
        worker: Option<u32>,
    },
    /// Open the log files anew, after they were moved (--log)
    Reopen,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration::parse(text)?;
    if interval < MIN_INTERVAL { Err("that is shorter than 100ms".to_owned()) } else { Ok(interval) }
}

/// Main reads the number itself, and says which numbers are too high or too low.
fn count(text: &str) -> Result<String, String> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.to_owned()).ok_or_else(|| "take 4, +1 or -1".to_owned())
}

fn name(text: &str) -> Result<String, String> {
    let good = !text.is_empty() && !text.contains('/');
    good.then(|| text.to_owned()).ok_or_else(|| "take a name that panzerctl list shows; --pid takes a path".to_owned())
}
