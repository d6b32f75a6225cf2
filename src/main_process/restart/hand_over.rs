//! A restart in place, performed: what main knows is written down, the next build is executed, and takes it up.
//!
//! It is the same process: children stay its own, descriptors lie where they lay, signals stay blocked and pending. An
//! exec that fails leaves everything as it was.

use std::collections::VecDeque;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use anyhow::Context;
use nix::fcntl::AtFlags;
use nix::sys::signal::Signal;
use nix::unistd::execveat;

use super::document::{self, BuildFile, Carried, build};
use super::preflight::{NextBuild, Preflight};
use crate::config::text::c_string;
use crate::control::environment::Environment;
use crate::control::operator::requests::Outcome;
use crate::main_process::decide;
use crate::main_process::decide::restart::{Action, Event, Restart};
use crate::main_process::listeners::conflicts::Conflicts;
use crate::main_process::listeners::guard::tcp::Guard;
use crate::main_process::listeners::guard::unix::UnixGuard;
use crate::main_process::listeners::held::AllHeld;
use crate::main_process::main::{FIRST_GUARDED, FIRST_GUARDED_UNIX, FIRST_MONITOR, Found, Main, SIGNALS};
use crate::main_process::operators::waiting::Operators;
use crate::main_process::outside::pid_file::PidFile;
use crate::main_process::outside::service_manager::Upward;
use crate::main_process::outside::starter::Starter;
use crate::main_process::processes::children::Children;
use crate::main_process::start;
use crate::sys::descriptors::{Kept, set_inherited, take_over as take_descriptor};
use crate::sys::errno::{chain, words};
use crate::sys::poller::Poller;
use crate::sys::processes::{self, Exit};
use crate::sys::{memfd, signals, stderr};

impl Main {
    /// Somebody wants a restart; a client is told what becomes of it.
    pub(crate) fn restart_asked(&mut self, client: Option<u64>) {
        let refused = match () {
            () if self.state.is_stopping() => Some("panzer is being stopped"),
            () if self.starter.waits() => Some("who started this daemon still waits for it to serve; try again then"),
            () => None,
        };
        if let Some(why) = refused {
            match client {
                Some(client) => self.operators.answer(client, Outcome::refused(why)),
                None => log::warn!("no restart: {why}"),
            }
            return;
        }
        if let Some(client) = client {
            self.operators.wants_restart(client);
        }
        self.go_on_with_restart(Event::Asked);
    }

    pub(crate) fn go_on_with_restart(&mut self, event: Event) {
        for action in self.restart.on(Instant::now(), event) {
            match action {
                Action::Begin => {
                    if let Err(error) = self.begin_preflight() {
                        self.go_on_with_restart(Event::NotBegun(chain(&error)));
                    }
                }
                Action::Kill => self.children.preflight().into_iter().for_each(Preflight::kill),
                Action::Refuse(why) => self.refuse_restart(&why),
                Action::GiveUp => self.end_restart("panzer is being stopped"),
            }
        }
    }

    fn begin_preflight(&mut self) -> anyhow::Result<()> {
        let image = self.environment.image()?;
        log::info!("restart: trying {}", image.display());
        let document = self.written().context("the state cannot be handed on")?.0;
        let preflight = Preflight::begin(&image, &document, &self.environment);
        self.children.add_preflight(preflight.context("it could not be started")?);
        Ok(())
    }

    pub(crate) fn preflight_ended(&mut self, preflight: Preflight, exit: Exit) {
        let shown = preflight.shown(exit).map(|build| self.next_build = Some(build));
        self.go_on_with_restart(Event::Ended(shown));
    }

    fn refuse_restart(&mut self, why: &str) {
        let image = self.environment.image().unwrap_or_default();
        let why = format!("restart refused: {}: {why}; panzer {} goes on", image.display(), build());
        log::error!("{why}");
        self.end_restart(&why);
    }

    /// Whoever waits is told why this main goes on, and what waited for the next one is done by this one.
    fn end_restart(&mut self, why: &str) {
        self.next_build = None;
        self.operators.restarted(Outcome::refused(why));
        if self.told_on_stderr || self.dumps || self.operators.want_status() {
            self.inquire();
        }
    }

    /// Becomes the next build, once it has proved itself and neither an inquiry nor a planner is under way, whose answers
    /// it would not know.
    pub(crate) fn give_way_if_proven(&mut self) {
        if !self.restart.is_proven() || self.inquiry.is_some() || self.children.is_planning() {
            return;
        }
        let executed = match self.next_build.take() {
            Some(next) => self.give_way(&next),
            None => Err(io::Error::other("it got lost")),
        };
        if let Err(error) = executed {
            self.go_on_with_restart(Event::NotExecuted(format!("it cannot take over: {}", words(&error))));
        }
    }

    /// Returns only where that is not possible.
    fn give_way(&self, next: &NextBuild) -> io::Result<()> {
        let (document, kept) = self.written()?;
        let path = self.environment.image().map_err(io::Error::other)?;
        let arguments: Vec<CString> = std::env::args_os().map(|argument| c_string(&argument)).collect();
        let variables = self.environment.for_next_main(document.as_raw_fd(), &path);
        set_inherited(&document, true)?;
        log::debug!("restart: executing panzer {}", next.build);
        let execute = || Ok(execveat(&next.image, c"", &arguments, &variables, AtFlags::AT_EMPTY_PATH).map(drop)?);
        let executed = kept.set_inherited(true).and_then(|()| execute());
        kept.set_inherited(false)?;
        executed
    }

    /// All that the next main is to know, and the descriptors that it needs for that.
    fn written(&self) -> io::Result<(OwnedFd, Kept<'_>)> {
        let mut kept = Kept::default();
        let carried = self.carry(&mut kept)?;
        Ok((memfd::write(&serde_json::to_vec(&carried)?)?, kept))
    }

    fn carry<'a>(&'a self, kept: &mut Kept<'a>) -> io::Result<Carried> {
        let (version, build) = document::head();
        let (dead, unix_queues) = self.unix_guard.carry();
        let mut found = |(generation, found): (&u32, &'a Found)| {
            let (directory, program) = (kept.keep(&found.directory), kept.keep(&found.program));
            let findings = kept.keep(&found.findings);
            let (path, other_user, fingerprint) = (found.path.clone(), found.other_user, found.fingerprint.clone());
            (*generation, document::Found { directory, program, findings, path, other_user, fingerprint })
        };
        Ok(Carried {
            version,
            build,
            file: BuildFile::own(),
            plan: self.plan.clone(),
            plans: self.plans.clone(),
            had_terminal: self.had_terminal,
            terminal_rights: self.terminal_rights,
            ignores_hang_up: self.ignores_hang_up,
            found: self.found.iter().map(&mut found).collect(),
            pid_file: self.pid_file.carry(kept),
            held: self.held.carry(kept),
            active: self.active,
            emptyings: self.emptyings.clone(),
            shares_ports: self.shares_ports,
            shares: self.shares.with_sockets(|socket| Ok::<_, io::Error>(kept.keep(socket)))?,
            too_many_told: self.too_many_told,
            guard: self.guard.carry(kept),
            dead,
            unix_queues,
            ack_paths: self.ack_paths.clone(),
            children: self.children.carry(kept),
            manager_told: self.upward.told(),
            told_on_stderr: self.told_on_stderr,
            lost_messages: stderr::lost(),
            dumps: self.dumps,
            operators: self.operators.carry(kept),
            counters: self.counters.clone(),
            state: self.state.clone(),
        })
    }
}

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
    main.operators.restarted(Outcome { builds, build_file: file, ..Outcome::done() });
    main.restore_own_files();
    main.put_listeners_right();
    // Whoever ended in between may have been told of already, and not reaped.
    main.reap();
    if main.told_on_stderr || main.dumps || main.operators.want_status() {
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
    let mut next_token = FIRST_MONITOR;
    for running in children.channels() {
        poller.watch(&running.channel, running.token)?;
        next_token = next_token.max(running.token + 1);
    }
    let held = AllHeld::take_over(carried.held)?;
    let shares = carried.shares.with_sockets(|&fd| take_descriptor(fd))?;
    let guard = Guard::take_over(carried.guard, FIRST_GUARDED, &poller)?;
    let mut unix_guard = UnixGuard::new(FIRST_GUARDED_UNIX);
    unix_guard.resume(carried.dead, carried.unix_queues);
    unix_guard.watch_all(&held, &poller);
    let found = |(generation, found): (u32, document::Found)| {
        let document::Found { directory, program, findings, path, other_user, fingerprint } = found;
        let (directory, program) = (take_descriptor(directory)?, take_descriptor(program)?);
        let findings = take_descriptor(findings)?;
        Ok((generation, Found { directory, program, findings, path, other_user, fingerprint }))
    };
    Ok(Main {
        upward: Upward::new(&environment, Instant::now()).resume(carried.manager_told),
        plan: carried.plan,
        plans: carried.plans,
        environment,
        had_terminal: carried.had_terminal,
        terminal_rights: carried.terminal_rights,
        ignores_hang_up: carried.ignores_hang_up,
        signals,
        operators: Operators::take_over(carried.operators, &poller)?,
        poller,
        held,
        active: carried.active,
        steered: None,
        emptyings: carried.emptyings,
        shares_ports: carried.shares_ports,
        shares,
        conflicts: Conflicts::default(),
        guard,
        unix_guard,
        starter: Starter::new(None),
        too_many_told: carried.too_many_told,
        pid_file: PidFile::take_over(carried.pid_file)?,
        ack_paths: carried.ack_paths,
        children,
        found: carried.found.into_iter().map(found).collect::<io::Result<_>>()?,
        inquiry: None,
        told_on_stderr: carried.told_on_stderr,
        dumps: carried.dumps,
        askers: Vec::new(),
        counters: carried.counters,
        restart: Restart::default(),
        next_build: None,
        next_token,
        state: carried.state,
        events: VecDeque::from([decide::Event::Wake]),
        exit: None,
        interrupted: false,
    })
}
