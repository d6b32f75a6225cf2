//! A new build takes over from the main before, by the document that it has written.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use nix::sys::signal::Signal;

use super::document::{self, BuildFile, Document, build};
use crate::carry::descriptor::Read;
use crate::control::environment::Environment;
use crate::control::operator::requests::Outcome;
use crate::main_process::decide;
use crate::main_process::main::{FIRST_MONITOR, LOGGER, Main, RunMonitor, SIGNALS};
use crate::main_process::restart::Restarting;
use crate::main_process::start;
use crate::sys::errno::words;
use crate::sys::poller::Poller;
use crate::sys::processes;
use crate::sys::{memfd, signals, stderr};

/// Takes over. Fails only where the pre-flight should have failed.
pub(crate) fn take_over(state: OwnedFd, environment: Environment, run_monitor: RunMonitor) -> Result<Main, String> {
    let bytes = memfd::read(state).map_err(|error| format!("the state cannot be read: {}", words(&error)))?;
    let document = document::read(&bytes, Read::TakenOver)?;
    stderr::start(document.configuration.plan.tuning.verbosity.level());
    stderr::set_json(document.configuration.plan.logs.is_json());
    stderr::add_lost(document.lost_messages);
    let (before, file) = (document.build.clone(), document.file);
    let mut main = resume(document, environment, run_monitor)
        .map_err(|error| format!("the state cannot be taken over: {}", words(&error)))?;
    // Two builds of one version are told apart by their files.
    let file = file.zip(BuildFile::own()).filter(|_| before == build()).map(|(before, own)| own.against(before));
    let added = file.as_ref().map(|file| format!(" ({file})")).unwrap_or_default();
    log::info!("restarted in place: panzer {before} -> {}{added}", build());
    let builds = Some((before, build().to_owned()));
    main.operators.clients.restarted(Outcome { builds, build_file: file, ..Outcome::done() });
    main.restore_own_files();
    main.put_listeners_right();
    // A SIGCHLD may have been consumed before the exec, so reap now.
    main.reap();
    if main.operators.want_status() {
        main.inquire();
    }
    Ok(main)
}

fn resume(document: Document, environment: Environment, run_monitor: RunMonitor) -> io::Result<Main> {
    processes::become_subreaper()?;
    signals::unblock(&[Signal::SIGTSTP, Signal::SIGABRT])?;
    signals::reset_dispositions();
    let signals = start::read_signals(&document.configuration.plan, document.outside.ignores_hang_up)?;
    let poller = Poller::new()?;
    poller.watch(&signals, SIGNALS)?;
    let mut main = Main {
        environment,
        run_monitor,
        signals,
        poller,
        state: document.state,
        events: VecDeque::from([decide::Event::Wake]),
        exit: None,
        children: document.children,
        logger: document.logger,
        listeners: document.listeners,
        configuration: document.configuration,
        operators: document.operators,
        restarting: Restarting::default(),
        outside: document.outside,
    };
    main.children.resume(FIRST_MONITOR, &main.poller)?;
    main.logger.resume(&main.poller, LOGGER)?;
    main.children.logger = main.logger.pid();
    main.listeners.resume(&main.poller);
    main.operators.clients.server.resume(&main.poller)?;
    main.outside.resume(&main.environment)?;
    Ok(main)
}
