//! A new build takes up what the main before it has written down.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use nix::sys::signal::Signal;

use super::document::{self, BuildFile, Carried, build};
use crate::control::environment::Environment;
use crate::control::operator::requests::Outcome;
use crate::main_process::configuration::{Configuration, Release};
use crate::main_process::decide;
use crate::main_process::listeners::Listeners;
use crate::main_process::listeners::conflicts::Conflicts;
use crate::main_process::listeners::guard::tcp::Guard;
use crate::main_process::listeners::guard::unix::UnixGuard;
use crate::main_process::listeners::held::AllHeld;
use crate::main_process::listeners::per_worker::PerWorker;
use crate::main_process::main::{FIRST_GUARDED, FIRST_GUARDED_UNIX, FIRST_MONITOR, Main, SIGNALS};
use crate::main_process::operators::Operators;
use crate::main_process::operators::clients::Clients;
use crate::main_process::outside::Outside;
use crate::main_process::outside::daemon_parent::DaemonParent;
use crate::main_process::outside::pid_file::PidFile;
use crate::main_process::outside::service_manager::ServiceManager;
use crate::main_process::processes::children::Children;
use crate::main_process::restart::Restarting;
use crate::main_process::start;
use crate::sys::descriptors::take_over as take_descriptor;
use crate::sys::errno::words;
use crate::sys::poller::Poller;
use crate::sys::processes::{self};
use crate::sys::{memfd, signals, stderr};

/// Takes the place of the main before, by what that has written down. Fails only where the pre-flight should have.
pub(crate) fn take_over(state: OwnedFd, environment: Environment) -> Result<Main, String> {
    let bytes = memfd::read(state).map_err(|error| format!("the state cannot be read: {}", words(&error)))?;
    let carried = document::read(&bytes)?;
    stderr::start(carried.plan.tuning.verbosity.level());
    stderr::add_lost(carried.lost_messages);
    let (before, file) = (carried.build.clone(), carried.file);
    let mut main =
        resume(carried, environment).map_err(|error| format!("the state cannot be taken over: {}", words(&error)))?;
    // Two builds of one version are told apart by their files.
    let file = file.zip(BuildFile::own()).filter(|_| before == build()).map(|(before, own)| own.against(before));
    let added = file.as_ref().map(|file| format!(" ({file})")).unwrap_or_default();
    log::info!("restarted in place: panzer {before} -> {}{added}", build());
    let builds = Some((before, build().to_owned()));
    main.operators.clients.restarted(Outcome { builds, build_file: file, ..Outcome::done() });
    main.restore_own_files();
    main.put_listeners_right();
    // Whoever ended in between may have been told of already, and not reaped.
    main.reap();
    if main.operators.told_on_stderr || main.operators.dumps || main.operators.clients.want_status() {
        main.inquire();
    }
    Ok(main)
}

fn resume(carried: Carried, environment: Environment) -> io::Result<Main> {
    processes::become_subreaper()?;
    signals::unblock(&[Signal::SIGTSTP])?;
    signals::reset_dispositions();
    let signals = start::read_signals(&carried.plan, carried.ignores_hang_up)?;
    let poller = Poller::new()?;
    poller.watch(&signals, SIGNALS)?;
    let mut children = Children::take_over(carried.children, FIRST_MONITOR)?;
    for running in children.channels() {
        poller.watch(&running.channel, running.token)?;
    }
    let held = AllHeld::take_over(carried.held)?;
    let shares = carried.shares.with_sockets(|&fd| take_descriptor(fd))?;
    let guard = Guard::take_over(carried.guard, FIRST_GUARDED, &poller)?;
    let mut unix_guard = UnixGuard::new(FIRST_GUARDED_UNIX, &poller);
    unix_guard.resume(carried.dead, carried.unix_queues);
    unix_guard.watch_all(&held, &poller);
    unix_guard.paths_changed(Instant::now(), &held);
    let found = |(generation, found): (u32, document::Found)| {
        let document::Found { directory, program, findings, path, other_user, fingerprint } = found;
        let (directory, program) = (take_descriptor(directory)?, take_descriptor(program)?);
        let findings = take_descriptor(findings)?;
        Ok((generation, Release { directory, program, findings, path, other_user, fingerprint }))
    };
    let found = carried.found.into_iter().map(found).collect::<io::Result<_>>()?;
    let per_worker = PerWorker { active: carried.active, steered: None, emptyings: carried.emptyings };
    let listeners = Listeners {
        held,
        shares_ports: carried.shares_ports,
        shares,
        too_many_told: carried.too_many_told,
        conflicts: Conflicts::default(),
        guard,
        unix_guard,
        per_worker,
    };
    let operators = Operators {
        told_on_stderr: carried.told_on_stderr,
        dumps: carried.dumps,
        counters: carried.counters,
        ..Operators::new(Clients::take_over(carried.operators, &poller)?)
    };
    let outside = Outside {
        service_manager: ServiceManager::new(&environment, Instant::now()).resume(carried.manager_told),
        daemon_parent: DaemonParent::new(None),
        pid_file: PidFile::take_over(carried.pid_file)?,
        ack_paths: carried.ack_paths,
        had_terminal: carried.had_terminal,
        terminal_rights: carried.terminal_rights,
        ignores_hang_up: carried.ignores_hang_up,
    };
    Ok(Main {
        environment,
        signals,
        poller,
        state: carried.state,
        events: VecDeque::from([decide::Event::Wake]),
        exit: None,
        interrupted: false,
        children,
        listeners,
        configuration: Configuration { plan: carried.plan, plans: carried.plans, found },
        operators,
        restarting: Restarting::default(),
        outside,
    })
}
