//! The one definition of every option, from which help, man page and completions come.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{EnumValueParser, FalseyValueParser, PossibleValue, TypedValueParser};
use clap::{Arg, ArgAction, CommandFactory, Parser, ValueEnum};

use super::handover::HandoverOptions;
use super::limits::LimitOptions;
use crate::config::identity::{self, Named, UserAndGroup};
use crate::config::{EnvFile, MOST_WORKERS, Ready, Schedule, SharePorts, Surge, duration, usable_cpus};
use crate::signals::{Action, On, Preset, described};

/// What holds under any preset, beside what the table has.
const HANG_UP: &str = "of a terminal that is closed: stop gracefully";

const USAGE: &str = "panzer [OPTIONS] PROGRAM [OPTIONS] [-- ARGS...]\n       panzer [OPTIONS] -- PROGRAM ARGS...";

/// Runs N copies of a program behind shared sockets, keeps that number constant, and replaces the program without
/// losing a connection.
#[derive(Debug, Parser)]
#[command(name = "panzer", version, override_usage = USAGE, max_term_width = 100, disable_help_subcommand = true)]
pub(super) struct Options {
    /// The program to run; its own arguments come after --
    #[arg(value_name = "PROGRAM")]
    pub(super) program: Option<OsString>,

    /// Arguments of the program, or PROGRAM ARGS. Replaced in them for each worker: {fd}, {fd:NAME}, {port}, {port:NAME},
    /// {worker}, {generation}, {3000+worker}
    #[arg(last = true, allow_hyphen_values = true, value_name = "ARGS")]
    pub(super) args: Vec<OsString>,

    /// How many copies run; auto: one for each CPU panzer may use [auto]
    #[arg(short, long, env = "PANZER_WORKERS", value_name = "N|auto", allow_hyphen_values = true, value_parser = workers)]
    pub(super) workers: Option<u32>,

    /// Listen there and pass the socket on as LISTEN_FDS: 8080, 127.0.0.1:8080, [::1]:8080, localhost:8080 (a socket for
    /// each address of the host), unix:/run/app.sock, unix:@name, udp:53. A port alone is of IPv4 and IPv6, and shows IPv4
    /// clients as ::ffff:1.2.3.4: behind a proxy give one address. Port 0 is a free one, the same until panzer ends.
    /// OPT: backlog=N, nonblock, per-worker, and of a unix path mode=0660, owner=USER, group=GROUP. A socket of that
    /// address or NAME that panzer itself was started with, as by systemd, is taken. May be given several times
    #[arg(short, long, env = "PANZER_LISTEN", value_name = "[NAME=]ADDR[,OPT]", action = ArgAction::Append)]
    pub(super) listen: Vec<String>,

    #[command(flatten)]
    pub(super) handover: HandoverOptions,

    /// Whether copies of a program that listens on its own TCP ports share them, without knowing of it; auto: all, where
    /// there is no --listen; PORTS, as in 8000,8443: these, and any other (a debugger, metrics) is the first copy's that
    /// binds it. A port that is bound as a lock is never shared. Without CAP_SYS_ADMIN, setuid programs have no power in
    /// the workers then [auto]
    #[arg(long, env = "PANZER_SHARE_PORTS", value_name = "auto|on|off|PORTS", value_parser = SharePortsParser, hide_possible_values = true)]
    pub(super) share_ports: Option<SharePorts>,

    /// When a worker is ready: accept, it is seen accepting on a listener; notify, it sent READY=1; alive, it runs;
    /// exec:CMD, that shell command exits with 0, given PANZER_WORKER_PID, PANZER_WORKER_ID and PANZER_GENERATION, and
    /// before that the worker accepts, where it has a listener; auto, accept where it has a listener, given or shared,
    /// and that can be seen, else notify if the serving generation did send it, else alive. A request by CMD to the
    /// shared address proves nothing about this worker, as others answer it too, old ones as well: give each worker an
    /// address of its own for that, with {worker} and {generation} in ARGS, or look at $PANZER_WORKER_PID [auto]
    #[arg(long, env = "PANZER_READY", value_name = "WHEN", value_parser = WhenParser, hide_possible_values = true)]
    pub(super) ready: Option<When>,

    /// Fail a generation that is not ready within this time. Where there is nothing to go back to, a worker that is not
    /// ready in time is started anew, with twice the time at each further try, up to 16 times [60s]
    #[arg(long, env = "PANZER_READY_TIMEOUT", value_name = "D", allow_hyphen_values = true, value_parser = duration::parse)]
    pub(super) ready_timeout: Option<Duration>,

    /// How long a new generation must live, wholly ready, beside the old one before that is retired [1s]
    #[arg(long, env = "PANZER_BAKE", value_name = "D", allow_hyphen_values = true, value_parser = duration::parse)]
    pub(super) bake: Option<Duration>,

    /// How many workers beyond --workers a reload may run at once, as in 1, 25% or all. Less than all: the new
    /// generation replaces the old one share by share, each ready before as many of the old one are stopped; only the
    /// first share bakes [all]
    #[arg(long, env = "PANZER_SURGE", value_name = "N|N%|all", allow_hyphen_values = true)]
    pub(super) surge: Option<Surge>,

    /// How long a worker may take to stop gracefully: the first wait of --stop [60s]
    #[arg(long, env = "PANZER_TIMEOUT", value_name = "D", allow_hyphen_values = true, value_parser = duration::parse)]
    pub(super) timeout: Option<Duration>,

    /// Signals and waits by which a worker is stopped [TERM/60s/INT/5s/KILL]
    #[arg(long, env = "PANZER_STOP", value_name = "SCHEDULE")]
    pub(super) stop: Option<Schedule>,

    /// Signals and waits by which a worker is stopped that a reload or a scale ends [as --stop]
    #[arg(long, env = "PANZER_RETIRE", value_name = "SCHEDULE")]
    pub(super) retire: Option<Schedule>,

    /// First delay before a respawn; it doubles with each further failure, and is 10ms at least from the second one on.
    /// None after a healthy life, nor for the first death of a worker that was ready [100ms]
    #[arg(long, env = "PANZER_DELAY", value_name = "D", allow_hyphen_values = true, value_parser = duration::parse)]
    pub(super) delay: Option<Duration>,

    /// Longest delay before a respawn, at least 10ms [30s]
    #[arg(long, env = "PANZER_DELAY_MAX", value_name = "D", allow_hyphen_values = true, value_parser = duration::parse)]
    pub(super) delay_max: Option<Duration>,

    /// A worker that ran this long counts as healthy; its restart delay is reset. At least 100ms [10s]
    #[arg(long, env = "PANZER_HEALTHY_AFTER", value_name = "D", allow_hyphen_values = true, value_parser = duration::parse)]
    pub(super) healthy_after: Option<Duration>,

    #[command(flatten)]
    pub(super) limits: LimitOptions,

    /// The workers' working directory, entered anew by each generation
    #[arg(long, env = "PANZER_CHDIR", value_name = "DIR")]
    pub(super) chdir: Option<PathBuf>,

    /// Set this in the workers' environment, with the placeholders of ARGS. May be given several times
    #[arg(long, env = "PANZER_ENV", value_name = "K=V", action = ArgAction::Append)]
    pub(super) env: Vec<OsString>,

    /// Set the variables of this file as well, read anew by each generation: NAME=VALUE lines, quotes and # comments
    /// allowed; with a '-' before its name it may be missing. --env wins over it. May be given several times
    #[arg(long, env = "PANZER_ENV_FILE", value_name = "FILE", action = ArgAction::Append, allow_hyphen_values = true)]
    pub(super) env_file: Vec<EnvFile>,

    /// The user, and after a colon the group, that the workers run as, without any capability; looked up anew by each
    /// generation. Their HOME, USER, LOGNAME and SHELL are that user's. They may open /dev/stdout and /dev/stderr if these
    /// are pipes, or a terminal of root's. Needs root
    #[arg(long, env = "PANZER_USER", value_name = "USER[:GROUP]", allow_hyphen_values = true)]
    pub(super) user: Option<UserAndGroup>,

    /// The workers' group, where it is not to be the user's own
    #[arg(long, env = "PANZER_GROUP", value_name = "GROUP", allow_hyphen_values = true)]
    pub(super) group: Option<Named>,

    /// What is taken away from the mode of files that the workers create, as in 027
    #[arg(long, env = "PANZER_UMASK", value_name = "OCTAL", allow_hyphen_values = true, value_parser = identity::umask)]
    pub(super) umask: Option<u32>,

    /// The workers' nice value, from -20 (first) to 19 (last)
    #[arg(long, env = "PANZER_NICE", value_name = "N", allow_hyphen_values = true, value_parser = nice)]
    pub(super) nice: Option<i32>,

    /// Read options from this YAML file: their names as keys, a list or a map where one may be given several times, and
    /// program and args. Flags win over environment, over file [config/panzer.yml, if it exists]
    #[arg(long, env = "PANZER_CONFIG", value_name = "FILE")]
    #[allow(dead_code, reason = "it is looked at before the options are put together")]
    pub(super) config: Option<PathBuf>,

    /// Print every option's value and where it came from, and start nothing; exits with 2 where one is wrong
    #[arg(long)]
    pub(super) check: bool,

    /// Whose habits signals to panzer follow: panzer, serverengine, preforker, kamisama, unicorn, server-starter or
    /// einhorn; panzer(1) has the table [panzer]
    #[arg(long, env = "PANZER_SIGNALS", value_name = "PRESET", hide_possible_values = true)]
    pub(super) signals: Option<Preset>,

    /// What a signal does instead, as TTIN=scale-up: reload, detach, restart-workers, reopen, stop, stop-then-now,
    /// stop-now, scale-up, scale-down, scale-down-oldest, quiet, restart, status, dump or ignore. May be given several times
    #[arg(long, env = "PANZER_ON", value_name = "SIGNAL=ACTION", action = ArgAction::Append)]
    pub(super) on: Vec<On>,

    /// Run in the background, without a terminal: return once all workers are ready, with the exit code if they never
    /// are. Afterwards, stdout and stderr lead nowhere if they are a terminal, for the workers from the start. A pipe
    /// stays open: redirect it where somebody reads it to its end, as in $(panzer -d ...)
    #[arg(short, long, env = "PANZER_DAEMONIZE", value_parser = FalseyValueParser::new())]
    pub(super) daemonize: bool,

    /// What this instance is called [the program's file name]
    #[arg(long, env = "PANZER_NAME", value_name = "NAME", value_parser = name)]
    pub(super) name: Option<String>,

    /// Write the pid there [NAME.pid in $RUNTIME_DIRECTORY, /run/panzer or $XDG_RUNTIME_DIR/panzer]
    #[arg(short, long, env = "PANZER_PID", value_name = "FILE")]
    pub(super) pid: Option<PathBuf>,

    /// Take commands of panzerctl there [NAME.sock beside NAME.pid]
    #[arg(long, env = "PANZER_CONTROL", value_name = "PATH")]
    pub(super) control: Option<PathBuf>,

    /// Say only what is wrong
    #[arg(short, long, env = "PANZER_QUIET", value_parser = FalseyValueParser::new(), conflicts_with = "verbose")]
    pub(super) quiet: bool,

    /// Say each step
    #[arg(short, long, env = "PANZER_VERBOSE", value_parser = FalseyValueParser::new())]
    pub(super) verbose: bool,
}

#[derive(Debug, Clone)]
pub(super) struct When {
    pub(super) ready: Ready,
    pub(super) probe: Option<String>,
}

/// Reads the value of `--ready`: a word, or `exec:` and a command.
#[derive(Debug, Clone)]
struct WhenParser;

impl TypedValueParser for WhenParser {
    type Value = When;

    fn parse_ref(&self, command: &clap::Command, arg: Option<&Arg>, value: &OsStr) -> Result<When, clap::Error> {
        match value.to_str().and_then(|text| text.strip_prefix("exec:")).filter(|probe| !probe.is_empty()) {
            Some(probe) => Ok(When { ready: Ready::Exec, probe: Some(probe.to_owned()) }),
            None => EnumValueParser::new().parse_ref(command, arg, value).map(|ready| When { ready, probe: None }),
        }
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(Ready::value_variants().iter().filter_map(Ready::to_possible_value)))
    }
}

/// Reads what `--share-ports` takes: a word, or ports.
#[derive(Debug, Clone)]
struct SharePortsParser;

impl TypedValueParser for SharePortsParser {
    type Value = SharePorts;

    fn parse_ref(&self, command: &clap::Command, arg: Option<&Arg>, value: &OsStr) -> Result<SharePorts, clap::Error> {
        str::parse::<SharePorts>.parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(SharePorts::WORDS.into_iter().map(|(word, _)| PossibleValue::new(word))))
    }
}

/// The definition of the command line, with what is said after the options.
pub fn command() -> clap::Command {
    Options::command().after_help(after_options()).mut_args(|arg| arg.hide_env(true))
}

/// The same, for the manual: with the table of signals under every preset.
pub fn manual() -> clap::Command {
    let habits = |preset: &Preset| {
        let row = |(name, actions): (&str, Vec<Action>)| {
            Some(format!("{name} {}", actions[0])).filter(|_| actions[0] != Action::Ignore)
        };
        let rows: Vec<String> = described(&[*preset]).filter_map(row).collect();
        format!("\n  {}: {}", preset.name(), rows.join(", "))
    };
    let table: String = Preset::value_variants().iter().map(habits).collect();
    let table = format!("\n\nWhat signals do by each preset of --signals:{table}");
    command().after_help(after_options() + &table)
}

fn after_options() -> String {
    let row = |(name, does): (&str, Vec<Action>)| format!("  {name:<5} {}", does[0].describe());
    let mut signals: Vec<String> = described(&[Preset::Panzer]).map(row).collect();
    signals.push(format!("  {:<5} {HANG_UP}", "HUP"));
    format!(
        "Durations (D) are written 500ms, 60s, 2m or 1h; a bare number is in seconds.\n\
         Each option is an environment variable too: --ready-timeout is PANZER_READY_TIMEOUT. Several \
         values have blanks between them there, and a blank within one has a backslash before it.\n\n\
         Signals to panzer, unless --signals or --on say otherwise:\n{}\n\n\
         Exit codes:\n  0    stopped as asked\n  1    gave up: respawn limit, fatal error\n  2    usage or configuration\n  \
         125  panzer itself could not start: address in use, pid file, control socket\n  126  PROGRAM cannot be executed\n  \
         127  PROGRAM not found\n  or   the highest of --final-exit-codes that a worker ended with, once all have\n\
         After Ctrl-C on its terminal panzer ends by SIGINT, so that a script ends with it; a shell shows that as 130.",
        signals.join("\n")
    )
}

fn workers(text: &str) -> Result<u32, String> {
    match text.parse::<i128>() {
        _ if text == "auto" => Ok(usable_cpus()),
        Ok(number) if (1..=i128::from(MOST_WORKERS)).contains(&number) => Ok(number as u32),
        Ok(_) => Err(format!("it must be from 1 to {MOST_WORKERS}")),
        Err(_) => Err(format!("it must be a whole number from 1 to {MOST_WORKERS}, or auto")),
    }
}

fn nice(text: &str) -> Result<i32, String> {
    text.parse().ok().filter(|nice| (-20..=19).contains(nice)).ok_or_else(|| "it must be from -20 to 19".to_owned())
}

fn name(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
    let good = !text.is_empty() && text.len() <= 64 && text.bytes().all(plain) && !text.starts_with('.');
    good.then(|| text.to_owned()).ok_or_else(|| "take up to 64 letters, digits, '-', '_', '.' and '@'".to_owned())
}
