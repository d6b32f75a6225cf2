//! From options to the plan: fills in defaults, and finds errors that clap does not see.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use clap::{ArgMatches, FromArgMatches};

use super::options::{Options, When};
use super::refusal::{Ending, refusal, usage};
use super::resources::ResourceOptions;
use crate::backoff::Pace;
use crate::config::files::env::is_panzers_own;
use crate::config::run_as::{NameOrNumber, UserAndGroup};
use crate::config::{
    self, Address, Hooks, Listen, MAX_LISTENERS, Plan, RunAs, SharePorts, Stream, Text, Tuning, Verbosity,
};
use crate::signals::Habits;
use crate::sockets::inherited::join;
use crate::sys::errno::words;
use crate::worker::program::start_directory;

/// Checks each value by itself, for errors that clap does not see.
pub(super) fn check_values(matches: &ArgMatches) -> Result<(), Ending> {
    let options = Options::from_arg_matches(matches).map_err(|error| refusal(&error, &[]))?;
    parse_listen(&options.listen)?;
    options.env.iter().try_for_each(|pair| parse_variable(pair).map(drop))
}

impl Options {
    pub(super) fn resolve(self, pwd: Option<&OsStr>, inherited: Vec<Listen>) -> Result<Plan, Ending> {
        let tuning = self.tuning()?;
        let mut args = self.args.into_iter();
        let program = self.program.or_else(|| args.next()).filter(|program| !program.is_empty()).ok_or_else(|| {
            usage(
                "which program? As in: panzer ./my_app --workers 8, or panzer -w 8 -- my_app ARGS (see panzer --help)",
            )
        })?;
        let (start_directory, named_by_pwd) = start_directory(pwd.map(OsStr::to_owned)).map_err(|error| {
            Ending::CannotStart(format!(
                "the current directory cannot be used: {}; cd into one that exists",
                words(&error)
            ))
        })?;
        let mut listen = join(look_up(parse_listen(&self.listen)?)?, inherited.clone());
        if let Some(single) = listen.iter().find(|listen| listen.inherited.is_some() && listen.per_worker) {
            let address = &single.address;
            return Err(usage(format!(
                "{address} is a socket that panzer was started with, one for all: drop per-worker"
            )));
        }
        check_count(listen.len())?;
        let handover = self.handover.resolve(&listen)?;
        if handover.speaks(config::Dialect::ServerStarter) {
            listen.iter_mut().for_each(as_start_server_has_it);
        }
        let When { ready, probe } = self.ready.unwrap_or(When { ready: config::Ready::Auto, probe: None });
        let share_ports = self.share_ports.unwrap_or_default();
        let shares = match share_ports {
            SharePorts::Off => false,
            SharePorts::On | SharePorts::Ports(_) => true,
            SharePorts::Auto => listen.is_empty(),
        };
        if ready == config::Ready::Accept && !shares && !listen.iter().any(|listen| listen.address.accepts()) {
            return Err(usage("--ready accept needs a listener: add --listen, or take --ready notify or alive"));
        }
        let control = self.control.unwrap_or_default();
        let logs = self.logs.resolve(&start_directory);
        let workers = self.workers.unwrap_or_else(config::usable_cpus);
        let cgroup = self.resources.cgroup(workers)?;
        Ok(Plan {
            program: program.into(),
            args: args.map(Text).collect(),
            start_directory,
            named_by_pwd,
            chdir: self.chdir,
            env: self.env.iter().map(parse_variable).collect::<Result<_, _>>()?,
            env_files: self.env_file,
            identity: resolve_identity(self.user, self.group, self.umask, self.nice, self.resources)?,
            cgroup,
            preload: self.preload,
            refork: self.refork.unwrap_or_default(),
            workers,
            handover,
            listen,
            inherited,
            share_ports,
            ready,
            probe,
            watchdog: self.watchdog.filter(|period| !period.is_zero()),
            surge: self.surge.unwrap_or_default(),
            signals: Habits { preset: self.signals.unwrap_or_default(), on: self.on },
            max_draining: self.limits.max_draining(),
            name: self.name,
            pid_file: self.pid,
            control: control.path,
            control_access: control.access,
            logs,
            daemonize: self.daemonize,
            hooks: Hooks { hook: self.hook, hook_timeout: self.hook_timeout.unwrap_or(Hooks::default().hook_timeout) },
            tuning,
        })
    }

    fn tuning(&self) -> Result<Tuning, Ending> {
        let stop = self.stop.clone().unwrap_or_default();
        if self.retire.as_ref().is_some_and(|retire| !retire.lead().is_zero()) {
            return Err(usage(
                "--retire begins with a signal: in a reload the new workers accept already; a wait before it is for --stop",
            ));
        }
        let delay = self.delay.unwrap_or(Duration::from_millis(100));
        let delay_max = self.delay_max.unwrap_or(Duration::from_secs(30));
        Ok(Tuning {
            ready_timeout: self.ready_timeout.unwrap_or(Duration::from_secs(60)),
            bake: self.bake.unwrap_or(Duration::from_secs(1)),
            stop: match self.timeout {
                Some(wait) => stop.with_first_wait(wait),
                None => stop,
            },
            retire: self.retire.clone(),
            pace: Pace {
                delay,
                // A first delay above the longest one makes no sense, but the intention is clear.
                delay_max: delay_max.max(delay),
                healthy_after: self.healthy_after.unwrap_or(Duration::from_secs(10)),
            },
            respawn_limit: self.limits.respawn_limit,
            final_exits: self.limits.final_exits()?,
            start_delay: self.limits.start_delay(),
            recycling: self.limits.recycling(),
            verbosity: match (self.quiet, self.verbose) {
                (true, _) => Verbosity::Quiet,
                (_, true) => Verbosity::Verbose,
                _ => Verbosity::Normal,
            },
        })
    }
}

fn resolve_identity(
    user: Option<UserAndGroup>,
    group: Option<NameOrNumber>,
    umask: Option<u32>,
    nice: Option<i32>,
    resources: ResourceOptions,
) -> Result<RunAs, Ending> {
    let (user, users_group) = user.map_or((None, None), |both| (Some(both.user), both.group));
    if users_group.is_some() && group.is_some() {
        return Err(usage("the group is given twice, in --user and by --group; take one"));
    }
    let ResourceOptions { rlimit, oom_score_adj, cpu_affinity, .. } = resources;
    let again = (1..rlimit.len()).find(|at| rlimit[..*at].iter().any(|one| one.name() == rlimit[*at].name()));
    if let Some(limit) = again.map(|at| rlimit[at]) {
        return Err(usage(format!("--rlimit names {} twice; give each resource once", limit.name())));
    }
    Ok(RunAs { user, group: users_group.or(group), umask, nice, rlimit, oom_score_adj, cpu_affinity })
}

fn check_count(listeners: usize) -> Result<(), Ending> {
    if listeners > MAX_LISTENERS {
        return Err(usage(format!("{listeners} listeners are more than the {MAX_LISTENERS} allowed")));
    }
    Ok(())
}

fn parse_listen(texts: &[String]) -> Result<Vec<Listen>, Ending> {
    check_count(texts.len())?;
    let mut all: Vec<Listen> = Vec::new();
    for text in texts {
        let wrong = |why: &str| usage(format!("invalid value '{text}' for --listen: {why}"));
        let listen: Listen = text.parse().map_err(|why: String| wrong(&why))?;
        if all.iter().any(|other| other.address == listen.address && !listen.free_port) {
            return Err(wrong("the same address twice"));
        }
        if all.iter().any(|other| other.address == listen.address && other.name == listen.name) {
            return Err(wrong("of several free ports each needs a NAME of its own, as in web=127.0.0.1:0"));
        }
        if listen.name.is_some() && all.iter().any(|other| other.name == listen.name) {
            return Err(wrong("the same name twice"));
        }
        all.push(listen);
    }
    Ok(all)
}

/// One listener for each address of a host.
fn look_up(asked: Vec<Listen>) -> Result<Vec<Listen>, Ending> {
    let mut all: Vec<Listen> = Vec::new();
    for listen in asked {
        let text = listen.address.to_string();
        let wrong = |why: &str| usage(format!("invalid value '{text}' for --listen: {why}"));
        for found in listen.looked_up().map_err(|why| wrong(&why))? {
            if all.iter().any(|other| other.address == found.address && !found.free_port) {
                return Err(wrong(&format!("{} is listened on already, by another --listen", found.address)));
            }
            all.push(found);
        }
    }
    Ok(all)
}

/// In start_server a port alone means IPv4, and its programs expect that.
fn as_start_server_has_it(listen: &mut Listen) {
    listen.address = match listen.address {
        _ if listen.inherited.is_some() => return,
        Address::Any(port) => Address::Tcp((Ipv4Addr::UNSPECIFIED, port).into()),
        Address::AnyUdp(port) => Address::Udp((Ipv4Addr::UNSPECIFIED, port).into()),
        _ => return,
    };
}

fn parse_variable(pair: &OsString) -> Result<(Text, Text), Ending> {
    let bytes = pair.as_bytes();
    let wrong = |why| usage(format!("invalid value '{}' for --env: {why}", pair.display()));
    let equals = bytes.iter().position(|&byte| byte == b'=').ok_or_else(|| wrong("it must be NAME=VALUE"))?;
    let name = &bytes[..equals];
    if name.is_empty() {
        return Err(wrong("the name is empty"));
    }
    if is_panzers_own(name) {
        return Err(wrong("panzer sets this variable itself"));
    }
    let text = |bytes: &[u8]| Text(OsStr::from_bytes(bytes).to_owned());
    Ok((text(name), text(&bytes[equals + 1..])))
}

/// A mold that was a worker gets them with each order to fork.
const MAX_LISTENERS_WITH_REFORK: usize = 200;

/// One mold is all workers until it forks them. So arguments that differ from worker to worker are refused; the program
/// must look these values up.
pub(super) fn check_preload(plan: &Plan) -> Result<(), Ending> {
    if !plan.preload && plan.refork != config::Refork::default() {
        return Err(usage("--refork is for a program that is loaded once: add --preload, or leave out --refork"));
    }
    if plan.refork != config::Refork::default() && plan.listen.len() > MAX_LISTENERS_WITH_REFORK {
        return Err(usage(format!(
            "--refork is for at most {MAX_LISTENERS_WITH_REFORK} listeners: one message has all of them"
        )));
    }
    if plan.preload && plan.names_slots() {
        return Err(usage(
            "--preload: {worker} cannot be given to a program that is loaded once for all workers; have it \
                          read PANZER_WORKER_ID in each worker",
        ));
    }
    if plan.preload && plan.handover.speaks(config::Dialect::Einhorn) {
        return Err(usage(
            "--preload: the variables of einhorn differ from worker to worker, and a mold is loaded once for \
                          all; drop --also-speak einhorn",
        ));
    }
    Ok(())
}

/// A file is for one purpose: the log would be written into the pid file, or a socket found in the place of a log.
pub(super) fn check_paths(plan: &Plan) -> Result<(), Ending> {
    let logs = Stream::BOTH.into_iter().filter_map(|stream| plan.logs.of(stream));
    let logs = logs.filter(|log| log.own_descriptor().is_none()).map(|log| ("--log", log.path.as_path()));
    let sockets = plan.listen.iter().filter_map(|listen| match &listen.address {
        Address::Unix(path) if listen.inherited.is_none() => Some(("--listen", path.as_path())),
        _ => None,
    });
    let (pid, control) = (plan.pid_file.as_deref(), plan.control.as_deref());
    let own = [("--pid", pid), ("--control", control)].into_iter().filter_map(|(option, path)| Some((option, path?)));
    let mut seen = BTreeMap::new();
    for (option, path) in own.chain(logs).chain(sockets) {
        let other = *seen.entry(plan.start_directory.join(path)).or_insert(option);
        if other != option {
            let path = path.display();
            return Err(usage(format!("{other} and {option} name the same file, {path}; give each a file of its own")));
        }
    }
    Ok(())
}

pub(super) fn check_placeholders(plan: &Plan) -> Result<(), Ending> {
    for arg in &plan.args {
        plan.expand(arg, 0, 1).map_err(|why| usage(format!("argument '{}': {why}", arg.0.display())))?;
    }
    for (name, value) in &plan.env {
        plan.expand(value, 0, 1).map_err(|why| usage(format!("--env {}: {why}", name.0.display())))?;
    }
    Ok(())
}
