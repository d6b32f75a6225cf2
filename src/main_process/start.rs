//! How main starts: everything that it needs before a process runs, or why it cannot start.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::configuration::Configuration;
use super::decide::Generations;
use super::decide::queue_emptying::Emptyings;
use super::decide::shared_ports::Shares;
use super::decide::{Event, Settings};
use super::listeners::Listeners;
use super::listeners::bind_at_start::{Failure, bind_all};
use super::listeners::conflicts::Conflicts;
use super::listeners::guard::flags::Flags;
use super::listeners::guard::tcp::Guard;
use super::listeners::guard::unix::UnixGuard;
use super::listeners::per_worker::PerWorker;
use super::listeners::{FIRST_GUARDED, FIRST_GUARDED_UNIX};
use super::main::{FIRST_MONITOR, Main, RunMonitor, SIGNALS};
use super::operators::Operators;
use super::operators::clients::Clients;
use super::operators::signals::has_terminal;
use super::outside::Outside;
use super::outside::ack_paths::AckPaths;
use super::outside::cgroups::Cgroups;
use super::outside::daemon_parent::DaemonParent;
use super::outside::pid_file::{self, PidFile};
use super::outside::service_manager::ServiceManager;
use super::processes::children::Children;
use super::processes::logger::Logger;
use super::restart::Restarting;
use crate::config::{Plan, Ready, SharePorts};
use crate::control::environment::Environment;
use crate::control::files;
use crate::control::operator::server::Server;
use crate::sockets::sharing;
use crate::sys::output::TerminalRights;
use crate::sys::poller::Poller;
use crate::sys::signals::Signals;
use crate::sys::{processes, signals};

/// The monitors of a main that was killed stop their workers by its schedule. They may begin, and end, this much later.
const PATIENCE_WITH_THE_LAST_MAIN: Duration = Duration::from_secs(2);

pub(crate) fn start(
    mut plan: Plan,
    environment: Environment,
    run_monitor: RunMonitor,
    daemon_parent: DaemonParent,
) -> Result<Main, Failure> {
    // First of all, so that a terminal that closes later counts as having been there.
    let had_terminal = has_terminal();
    processes::become_subreaper()?;
    signals::unblock(&[Signal::SIGTSTP, Signal::SIGABRT])?;
    let ignores_hang_up = signals::is_ignored(Signal::SIGHUP);
    // In particular, if CHLD were ignored, the kernel would reap our children.
    signals::reset_dispositions();
    let shares_ports = can_share_ports(&plan)?;
    if plan.ready == Ready::Accept && !plan.has_listener() && !shares_ports {
        let why = "--ready accept needs a listener, and ports cannot be shared here";
        return Err(Failure::Refused(format!("{why}: add --listen, or take --ready notify or alive")));
    }
    if let Some(why) = plan.missing_pwd() {
        log::info!("{why}");
    }
    let (signals, poller) = (read_signals(&plan, ignores_hang_up)?, Poller::new()?);
    poller.watch(&signals, SIGNALS)?;
    let children = Children::new(FIRST_MONITOR);
    let pid_file = pid_file::claim(&plan).map_err(Failure::Refused)?;
    let cgroups = begin_cgroups(&plan, &pid_file, &daemon_parent);
    let cgroups = cgroups.map_err(Failure::Refused).inspect_err(|_| pid_file.remove())?;
    let undo = || {
        cgroups.iter().for_each(Cgroups::leave);
        pid_file.remove();
    };
    let ack_paths = AckPaths::begin(&plan, pid_file.path()).map_err(Failure::Refused).inspect_err(|_| undo())?;
    let mut held = bind_all(&plan, &poller, &signals, had_terminal).inspect_err(|_| undo())?;
    held.settle_ports(&mut plan);
    let control = plan.control.as_ref().map(|path| plan.start_directory.join(path));
    let control = control.unwrap_or_else(|| files::socket_beside(pid_file.path()));
    let server = Server::bind(&control, plan.control_access.clone(), &poller).map_err(Failure::Refused);
    let server = server.inspect_err(|_| {
        held.close();
        undo();
    })?;
    let state = Generations::new(settings(&plan));
    let shares = Shares::new(plan.tuning.longest_start(plan.workers));
    let mut guard = Guard::new(FIRST_GUARDED);
    held.iter().for_each(|held| guard.add(held.name.clone(), held.listener.as_fd()));
    let mut unix_guard = UnixGuard::default();
    unix_guard.begin(FIRST_GUARDED_UNIX, &held, &poller);
    guard.look(Instant::now(), &poller);
    let listeners = Listeners {
        held,
        shares_ports,
        shares,
        too_many_told: false,
        conflicts: Conflicts::default(),
        guard,
        flags: Flags::default(),
        unix_guard,
        per_worker: PerWorker { active: plan.workers, steered: None, emptyings: Emptyings::default() },
    };
    let outside = Outside {
        service_manager: ServiceManager::new(&environment, Instant::now()),
        daemon_parent,
        pid_file,
        ack_paths,
        had_terminal,
        terminal_rights: TerminalRights::now(),
        ignores_hang_up,
        cgroups,
        unprotected: None,
    };
    Ok(Main {
        environment,
        run_monitor,
        signals,
        poller,
        state,
        events: VecDeque::from([Event::Start]),
        exit: None,
        children,
        logger: Logger::default(),
        listeners,
        configuration: Configuration::new(plan),
        operators: Operators::new(Clients::new(server, Instant::now())),
        restarting: Restarting::default(),
        outside,
    })
}

/// With `--cgroup`, panzer and the generations have cgroups of their own.
fn begin_cgroups(plan: &Plan, pid_file: &PidFile, parent: &DaemonParent) -> Result<Option<Cgroups>, String> {
    // A daemon's parent waits beside main.
    let waiting = parent.waits().then(Pid::parent);
    let name = plan.name.clone().unwrap_or_else(|| files::name_of(pid_file.path()));
    let patience = plan.tuning.stop.total() + PATIENCE_WITH_THE_LAST_MAIN;
    plan.cgroup.map(|limits| Cgroups::begin(&name, &limits, waiting, patience)).transpose()
}

/// Reads the signals that are meant for main from now on. HUP only if it was not ignored.
pub(crate) fn read_signals(plan: &Plan, ignores_hang_up: bool) -> io::Result<Signals> {
    let read = plan.signals.read_by_main().into_iter().filter(|&signal| signal != Signal::SIGHUP || !ignores_hang_up);
    Signals::new(read.chain([Signal::SIGCHLD]))
}

/// Whether workers share the ports that they bind themselves: the plan asks for it, and it is possible here.
fn can_share_ports(plan: &Plan) -> Result<bool, Failure> {
    let wanted = &plan.share_ports;
    if *wanted == SharePorts::Off || (*wanted == SharePorts::Auto && !plan.listen.is_empty()) {
        return Ok(false);
    }
    match sharing::try_out() {
        // The monitor logs which privileges workers lose, when it has found the program.
        Ok(()) => Ok(true),
        Err(why) if *wanted == SharePorts::Auto => {
            log::warn!("ports that the program binds itself cannot be shared: {why}; use --listen where it binds one");
            Ok(false)
        }
        Err(why) => Err(Failure::Refused(format!("--share-ports {wanted}: {why}; use --listen instead"))),
    }
}

pub(crate) fn settings(plan: &Plan) -> Settings {
    Settings {
        workers: plan.workers,
        surge: plan.surge,
        ready: plan.ready,
        tuning: plan.tuning.clone(),
        max_draining: plan.max_draining,
        seed: Pid::this().as_raw().unsigned_abs().into(),
    }
}
