//! The one definition of all options. Help, man page and completions are made from it.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{EnumValueParser, FalseyValueParser, OsStringValueParser, PossibleValue, TypedValueParser};
use clap::{Arg, ArgAction, CommandFactory, Parser, ValueEnum};

use super::handover::HandoverOptions;
use super::limits::LimitOptions;
use super::logs::LogOptions;
use super::resources::ResourceOptions;
use crate::config::number;
use crate::config::run_as::{self, NameOrNumber, UserAndGroup};
use crate::config::{
    Control, EnvFile, Hook, MAX_WORKERS, Ready, Refork, Schedule, SharePorts, Surge, duration, usable_cpus,
};
use crate::signals::{Action, On, Preset, described};

/// The effect of HUP when a terminal is closed, in every preset.
const HANG_UP: &str = "if the terminal was closed: stop gracefully";

const USAGE: &str = "panzer [OPTIONS] PROGRAM [OPTIONS] [-- ARGS...]\n       panzer [OPTIONS] -- PROGRAM ARGS...";

/// Runs N copies of a program behind shared sockets, keeps that number constant, and replaces the program without
/// losing a connection.
#[derive(Debug, Parser)]
#[command(name = "panzer", version, override_usage = USAGE, max_term_width = 100, disable_help_subcommand = true)]
pub(super) struct Options {
    /// The program to run. Its own arguments come after --
    #[arg(value_name = "PROGRAM")]
    pub(super) program: Option<OsString>,

    /// Arguments of the program, or PROGRAM ARGS. Panzer replaces placeholders in them for each worker: {fd},
    /// {fd:NAME}, {port}, {port:NAME}, {worker}, {generation}, {3000+worker}
    #[arg(last = true, allow_hyphen_values = true, value_name = "ARGS")]
    pub(super) args: Vec<OsString>,

    /// Number of copies to run; auto: one for each CPU that panzer may use [auto]
    #[arg(short, long, env = "PANZER_WORKERS", value_name = "N|auto", allow_hyphen_values = true, value_parser = workers)]
    pub(super) workers: Option<u32>,

    /// Listen on this address and pass the socket to the workers as LISTEN_FDS: 8080, 127.0.0.1:8080, [::1]:8080,
    /// localhost:8080 (one socket for each address of the host), unix:/run/app.sock, unix:@name, udp:53. A port alone
    /// accepts IPv4 and IPv6; IPv4 clients appear as ::ffff:1.2.3.4, so give one address behind a proxy. Port 0 is any
    /// free port; it stays the same until panzer ends. OPT: backlog=N, nonblock, per-worker; for a unix path also
    /// mode=0660, owner=USER, group=GROUP. If panzer itself was started with a socket of that address or NAME, as by
    /// systemd, it uses that socket. May be given several times
    #[arg(short, long, env = "PANZER_LISTEN", value_name = "[NAME=]ADDR[,OPT]", action = ArgAction::Append)]
    pub(super) listen: Vec<String>,

    #[command(flatten)]
    pub(super) handover: HandoverOptions,

    /// Share the TCP ports that the program binds itself among all workers; the program does not notice. auto: share
    /// all ports if there is no --listen; PORTS, as in 8000,8443: share only these, and give any other port (a
    /// debugger, metrics) to the first worker that binds it. A port that is bound as a lock is never shared. Without
    /// CAP_SYS_ADMIN, setuid programs gain no rights in the workers [auto]
    #[arg(long, env = "PANZER_SHARE_PORTS", value_name = "auto|on|off|PORTS", value_parser = SharePortsParser, hide_possible_values = true)]
    pub(super) share_ports: Option<SharePorts>,

    /// Load the program once for each generation and fork the workers from it, so that they share its memory. The
    /// program must speak the protocol of panzer-mold(7), as with one of panzer's clients
    #[arg(long, env = "PANZER_PRELOAD", value_parser = FalseyValueParser::new())]
    pub(super) preload: bool,

    /// With --preload: have a worker that is warm become the mold, and replace the others one by one by workers that it
    /// forks, so that all share what the program has loaded, computed and compiled since. AFTER is a number of requests
    /// (which workers report: see --max-requests) or a time with its unit, as in 1000, 10m, or 50,1000,10m for the first
    /// time, the second, and all further ones. A replacement is ready before its worker stops. The program's client must
    /// know how. 0 turns it off [0]
    #[arg(long, env = "PANZER_REFORK", value_name = "AFTER", allow_hyphen_values = true)]
    pub(super) refork: Option<Refork>,

    /// When a worker counts as ready. accept: it is seen accepting on a listener; notify: it sent READY=1; alive: it
    /// runs; exec:CMD: the shell command CMD exits with 0; if the worker has a listener, panzer first waits until it
    /// accepts. CMD gets PANZER_WORKER_PID, PANZER_WORKER_ID and PANZER_GENERATION. auto: accept if the worker has a
    /// listener, given or shared, and accepting can be seen; otherwise notify if the serving generation sent READY=1;
    /// otherwise alive. A request from CMD to the shared address proves nothing about this worker: other workers answer
    /// it too, old ones included. Give each worker its own address for that, with {worker} and {generation} in ARGS, or
    /// look at $PANZER_WORKER_PID [auto]
    #[arg(long, env = "PANZER_READY", value_name = "WHEN", value_parser = WhenParser, hide_possible_values = true)]
    pub(super) ready: Option<When>,

    /// Fail a generation that is not ready within this time. If there is no older generation to keep, panzer restarts
    /// the worker that is not ready in time; each further try gets twice the time, up to 16 times [60s]
    #[arg(long, env = "PANZER_READY_TIMEOUT", value_name = "D", allow_hyphen_values = true, value_parser = duration::parse)]
    pub(super) ready_timeout: Option<Duration>,

    /// Time that a new generation must run beside the old one, with all its workers ready, before the old one is
    /// retired [1s]
    #[arg(long, env = "PANZER_BAKE", value_name = "D", allow_hyphen_values = true, value_parser = duration::parse)]
    pub(super) bake: Option<Duration>,

    /// Number of workers beyond --workers that a reload may run at once, as in 1, 25% or all. Less than all: the new
    /// generation replaces the old one share by share. Each share must be ready before panzer stops as many old
    /// workers. Only the first share bakes [all]
    #[arg(long, env = "PANZER_SURGE", value_name = "N|N%|all", allow_hyphen_values = true)]
    pub(super) surge: Option<Surge>,

    /// Time that a worker has to stop gracefully: the first wait of --stop [60s]
    #[arg(long, env = "PANZER_TIMEOUT", value_name = "D", allow_hyphen_values = true, value_parser = duration::parse)]
    pub(super) timeout: Option<Duration>,

    /// Signals that stop a worker, and the wait after each. A wait before the first signal, as in 5s/TERM/60s/KILL, puts
    /// a graceful stop of panzer off: workers go on serving until balancers know. Reloads do not wait
    /// [TERM/60s/INT/5s/KILL]
    #[arg(long, env = "PANZER_STOP", value_name = "SCHEDULE")]
    pub(super) stop: Option<Schedule>,

    /// The same for workers that a reload or a scale-down stops [as --stop]
    #[arg(long, env = "PANZER_RETIRE", value_name = "SCHEDULE")]
    pub(super) retire: Option<Schedule>,

    /// First delay before a respawn. It doubles with each further failure, and is at least 10ms from the second failure
    /// on. There is no delay after a healthy life, nor after the first death of a worker that was ready [100ms]
    #[arg(long, env = "PANZER_DELAY", value_name = "D", allow_hyphen_values = true, value_parser = duration::parse)]
    pub(super) delay: Option<Duration>,

    /// Longest delay before a respawn, at least 10ms [30s]
    #[arg(long, env = "PANZER_DELAY_MAX", value_name = "D", allow_hyphen_values = true, value_parser = duration::parse)]
    pub(super) delay_max: Option<Duration>,

    /// A worker that ran this long counts as healthy; its restart delay is reset. At least 100ms [10s]
    #[arg(long, env = "PANZER_HEALTHY_AFTER", value_name = "D", allow_hyphen_values = true, value_parser = duration::parse)]
    pub(super) healthy_after: Option<Duration>,

    /// Abort and replace a ready worker that sends no WATCHDOG=1 to NOTIFY_SOCKET within this time. It gets the time
    /// as WATCHDOG_USEC, and shall send twice as often. 0 turns it off [0]
    #[arg(long, env = "PANZER_WATCHDOG", value_name = "D", allow_hyphen_values = true, value_parser = duration::parse)]
    pub(super) watchdog: Option<Duration>,

    #[command(flatten)]
    pub(super) limits: LimitOptions,

    /// Working directory of the workers. Each generation enters it anew
    #[arg(long, env = "PANZER_CHDIR", value_name = "DIR")]
    pub(super) chdir: Option<PathBuf>,

    /// Set this variable in the workers' environment. The placeholders of ARGS work here too. May be given several
    /// times
    #[arg(long, env = "PANZER_ENV", value_name = "K=V", action = ArgAction::Append)]
    pub(super) env: Vec<OsString>,

    /// Set the variables of this file too. Each generation reads it anew: NAME=VALUE lines; quotes and # comments are
    /// allowed. If a '-' stands before its name, the file may be missing. --env wins over it. May be given several
    /// times
    #[arg(long, env = "PANZER_ENV_FILE", value_name = "FILE", action = ArgAction::Append, allow_hyphen_values = true)]
    pub(super) env_file: Vec<EnvFile>,

    /// Run the workers as this user, and as the group after the colon, without any capability. Each generation looks
    /// them up anew. HOME, USER, LOGNAME and SHELL are set to that user's. Workers may open /dev/stdout and /dev/stderr
    /// if these are pipes or a terminal that root owns. Needs root
    #[arg(long, env = "PANZER_USER", value_name = "USER[:GROUP]", allow_hyphen_values = true)]
    pub(super) user: Option<UserAndGroup>,

    /// Group of the workers, if not the user's own
    #[arg(long, env = "PANZER_GROUP", value_name = "GROUP", allow_hyphen_values = true)]
    pub(super) group: Option<NameOrNumber>,

    /// File mode creation mask (umask) of the workers, as in 027
    #[arg(long, env = "PANZER_UMASK", value_name = "OCTAL", allow_hyphen_values = true, value_parser = run_as::umask)]
    pub(super) umask: Option<u32>,

    /// Nice value of the workers, from -20 (highest priority) to 19 (lowest)
    #[arg(long, env = "PANZER_NICE", value_name = "N", allow_hyphen_values = true, value_parser = nice)]
    pub(super) nice: Option<i32>,

    #[command(flatten)]
    pub(super) resources: ResourceOptions,

    /// Read options from this YAML file. Its keys are option names, program and args; an option that may be given
    /// several times takes a list, and one of the form NAME=VALUE also a map. Flags win over the environment, the environment over the file
    /// [config/panzer.yml, if it exists]
    #[arg(long, env = "PANZER_CONFIG", value_name = "FILE")]
    #[allow(dead_code, reason = "it is looked at before the options are put together")]
    pub(super) config: Option<PathBuf>,

    /// Print the value of every option and where it came from, and start nothing. Exits with 2 if a value is wrong
    #[arg(long)]
    pub(super) check: bool,

    /// Which convention panzer's signals follow: panzer, serverengine, preforker, kamisama, unicorn, server-starter or
    /// einhorn; panzer(1) has the table [panzer]
    #[arg(long, env = "PANZER_SIGNALS", value_name = "PRESET", hide_possible_values = true)]
    pub(super) signals: Option<Preset>,

    /// Change what one signal does, as in TTIN=scale-up: reload, detach, restart-workers, reopen, stop, stop-then-now,
    /// stop-now, scale-up, scale-down, scale-down-oldest, quiet, restart, status, dump, pass (on to the workers) or
    /// ignore. May be given several times
    #[arg(long, env = "PANZER_ON", value_name = "SIGNAL=ACTION", action = ArgAction::Append)]
    pub(super) on: Vec<On>,

    /// Run this shell command when something happens: before-reload (a failure rejects the reload), after-reload,
    /// rejected, died, gave-up or stopped. It runs as panzer's user, in the workers' directory. Commands run one at a
    /// time; an event that comes again while one waits is counted, not queued. PANZER_EVENT, PANZER_COUNT,
    /// PANZER_REASON, PANZER_GENERATION, PANZER_WORKER_ID, PANZER_EXIT_CODE, PANZER_SIGNAL, PANZER_NAME and
    /// PANZER_MAIN_PID say what happened, as far as each is known. PANZER_HOOK holds one. May be given several times
    #[arg(long, env = "PANZER_HOOK", value_name = "EVENT=CMD", action = ArgAction::Append)]
    pub(super) hook: Vec<Hook>,

    /// Time that one command of --hook may take. After it, the command and all that it started get TERM, and KILL 5
    /// seconds later [30s]
    #[arg(long, env = "PANZER_HOOK_TIMEOUT", value_name = "D", allow_hyphen_values = true, value_parser = hook_timeout)]
    pub(super) hook_timeout: Option<Duration>,

    /// Run in the background, without a terminal. Returns when all workers are ready, or with main's exit code if they
    /// never are. Output to a terminal goes to /dev/null after that (for workers from the beginning). A pipe stays
    /// open: redirect it if somebody reads it to its end, as in $(panzer -d ...)
    #[arg(short, long, env = "PANZER_DAEMONIZE", value_parser = FalseyValueParser::new())]
    pub(super) daemonize: bool,

    /// Name of this instance [the program's file name]
    #[arg(long, env = "PANZER_NAME", value_name = "NAME", value_parser = name)]
    pub(super) name: Option<String>,

    /// Write the pid to this file [NAME.pid in $RUNTIME_DIRECTORY, /run/panzer or $XDG_RUNTIME_DIR/panzer]
    #[arg(short, long, env = "PANZER_PID", value_name = "FILE")]
    pub(super) pid: Option<PathBuf>,

    /// Path of the socket that panzerctl connects to. Only panzer's own user and root may, unless OPT says more:
    /// group=GROUP and owner=USER may do everything, group-read=GROUP may only look (status, list, metrics); mode=0660
    /// is the file's mode. Without PATH, as in ,group=deploy, the path stays as it is [NAME.sock beside NAME.pid]
    #[arg(long, env = "PANZER_CONTROL", value_name = "PATH[,OPT]", value_parser = OsStringValueParser::new().try_map(Control::parse))]
    pub(super) control: Option<Control>,

    #[command(flatten)]
    pub(super) logs: LogOptions,

    /// Print warnings and errors only
    #[arg(short, long, env = "PANZER_QUIET", value_parser = FalseyValueParser::new(), conflicts_with = "verbose")]
    pub(super) quiet: bool,

    /// Print every step
    #[arg(short, long, env = "PANZER_VERBOSE", value_parser = FalseyValueParser::new())]
    pub(super) verbose: bool,
}

#[derive(Debug, Clone)]
pub(super) struct When {
    pub(super) ready: Ready,
    pub(super) probe: Option<String>,
}

/// Reads the value of `--ready`: a word, or `exec:` with a command.
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

/// Reads the value of `--share-ports`: a word, or ports.
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

/// The definition of the command line, with the text after the options.
pub fn command() -> clap::Command {
    with_variables().mut_args(|arg| arg.hide_env(true))
}

/// The same, where variables are named in its help.
pub(super) fn with_variables() -> clap::Command {
    Options::command().after_help(after_options())
}

/// The definition for the manual, with the table of signals of all presets.
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
        "Write durations (D) as 500ms, 60s, 2m or 1h; a bare number means seconds.\n\
         Each option is an environment variable too: --ready-timeout is PANZER_READY_TIMEOUT. Separate \
         several values with blanks there; write a backslash before a blank within a value.\n\n\
         Signals to panzer, unless --signals or --on say otherwise:\n{}\n\n\
         Exit codes:\n  0    stopped as asked\n  1    gave up: respawn limit, fatal error\n  2    usage or configuration\n  \
         125  panzer itself could not start: address in use, pid file, control socket\n  126  PROGRAM cannot be executed\n  \
         127  PROGRAM not found\n  or   the highest code of --final-exit-codes that a worker ended with, if all did\n\
         After Ctrl-C on its terminal panzer ends by SIGINT, so that a script ends too; a shell shows 130.",
        signals.join("\n")
    )
}

fn hook_timeout(text: &str) -> Result<Duration, String> {
    let time = duration::parse(text)?;
    if time.is_zero() { Err("it must be longer than 0s".to_owned()) } else { Ok(time) }
}

fn workers(text: &str) -> Result<u32, String> {
    match text.parse::<i128>() {
        _ if text == "auto" => Ok(usable_cpus()),
        Ok(number) if (1..=i128::from(MAX_WORKERS)).contains(&number) => Ok(number as u32),
        Ok(_) => Err(format!("it must be from 1 to {MAX_WORKERS}")),
        Err(_) => Err(format!("it must be a whole number from 1 to {MAX_WORKERS}, or auto")),
    }
}

fn nice(text: &str) -> Result<i32, String> {
    number::parse(text, &(-20..=19))
}

fn name(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
    let good = !text.is_empty() && text.len() <= 64 && text.bytes().all(plain) && !text.starts_with('.');
    good.then(|| text.to_owned()).ok_or_else(|| "take up to 64 letters, digits, '-', '_', '.' and '@'".to_owned())
}
