//! A new build takes up what the main before it has written down.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use nix::sys::signal::Signal;

use super::document::{self, BuildFile, Carried, build};
use crate::control::environment::Environment;
use crate::control::operator::requests::Outcome;
use crate::main_process::configuration::Configuration;
use crate::main_process::decide;
use crate::main_process::listeners::Listeners;
use crate::main_process::main::{FIRST_MONITOR, Main, SIGNALS};
use crate::main_process::operators::Operators;
use crate::main_process::outside::Outside;
use crate::main_process::processes::children::Children;
use crate::main_process::restart::Restarting;
use crate::main_process::start;
use crate::sys::errno::words;
use crate::sys::poller::Poller;
use crate::sys::processes::{self};
use crate::sys::{memfd, signals, stderr};

/// Takes the place of the main before, by what that has written down. Fails only where the pre-flight should have.
pub(crate) fn take_over(state: OwnedFd, environment: Environment) -> Result<Main, String> {
    let bytes = memfd::read(state).map_err(|error| format!("the state cannot be read: {}", words(&error)))?;
    let carried = document::read(&bytes)?;
    stderr::start(carried.configuration.plan.tuning.verbosity.level());
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
    if main.operators.want_status() {
        main.inquire();
    }
    Ok(main)
}

fn resume(carried: Carried, environment: Environment) -> io::Result<Main> {
    processes::become_subreaper()?;
    signals::unblock(&[Signal::SIGTSTP])?;
    signals::reset_dispositions();
    let signals = start::read_signals(&carried.configuration.plan, carried.outside.ignores_hang_up)?;
    let poller = Poller::new()?;
    poller.watch(&signals, SIGNALS)?;
    let mut children = Children::take_over(carried.children, FIRST_MONITOR)?;
    for running in children.channels() {
        poller.watch(&running.channel, running.token)?;
    }
    Ok(Main {
        listeners: Listeners::take_over(carried.listeners, &poller)?,
        configuration: Configuration::take_over(carried.configuration)?,
        operators: Operators::take_over(carried.operators, &poller)?,
        outside: Outside::take_over(carried.outside, &environment)?,
        restarting: Restarting::default(),
        environment,
        signals,
        poller,
        state: carried.state,
        events: VecDeque::from([decide::Event::Wake]),
        exit: None,
        interrupted: false,
        children,
    })
}
