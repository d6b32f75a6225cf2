//! Main's loop, which has the one place where main sleeps.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use anyhow::{Context, Error};
use nix::sys::signal::Signal;

use super::decide::{Event, Monitor, hooks, restart};
use super::listeners::bind_at_start::Failure;
use super::listeners::{FIRST_GUARDED, FIRST_GUARDED_UNIX};
use super::main::{LOGGER, Main, RunMonitor, SIGNALS, STDERR};
use super::outside::cgroups::Cgroups;
use super::outside::daemon_parent::DaemonParent;
use super::restart::take_over;
use super::start::start;
use crate::config::Plan;
use crate::control::environment::Environment;
use crate::control::monitor::messages::{Order, Report, Urgency};
use crate::control::operator::server;
use crate::sys::trim_memory::Sleeper;
use crate::sys::{descriptors, processes, signals, stderr};

/// Limit of reports that are read from one monitor before the loop looks at anything else.
const MAX_REPORTS_A_TURN: usize = 64;

/// Exit code if panzer cannot start.
const CANNOT_START: u8 = 125;

/// Exit code after Ctrl-C if a signal cannot end main, because it is PID 1. A shell shows it like this.
const INTERRUPTED: u8 = 128 + Signal::SIGINT as u8;
/// Limit of signals that are read before anything else has its turn.
const MAX_SIGNALS_A_TURN: usize = 64;

/// Runs as main, in place of another, until everything has ended. Returns the exit code.
pub fn go_on(environment: Environment, run_monitor: RunMonitor) -> anyhow::Result<u8> {
    signals::block_all().context("cannot block signals")?;
    begin();
    let state = environment.take_state()?;
    end(Ok(take_over::take_over(state, environment, run_monitor).map_err(Error::msg)?))
}

/// The same from the beginning, with this `plan`. The parent of a daemon is `waiting`.
pub fn run(
    plan: Plan,
    environment: Environment,
    run_monitor: RunMonitor,
    waiting: Option<OwnedFd>,
) -> anyhow::Result<u8> {
    begin();
    stderr::start(plan.tuning.verbosity.level());
    stderr::set_json(plan.logs.is_json());
    end(start(plan, environment, run_monitor, DaemonParent::new(waiting)))
}

fn begin() {
    processes::set_name();
    // Programs of the user get the limit that was there before.
    descriptors::raise_limit();
}

fn end(begun: Result<Main, Failure>) -> anyhow::Result<u8> {
    match begun {
        Ok(mut main) => {
            let code = main.run().context("main cannot go on");
            main.operators.clients.server.end();
            main.outside.ack_paths.remove_all();
            main.outside.pid_file.remove();
            main.outside.cgroups.iter().for_each(Cgroups::leave);
            main.outside.terminal_rights.restore();
            if !main.operators.interrupted || !matches!(code, Ok(0)) {
                return code;
            }
        }
        Err(Failure::Refused(message)) => {
            log::error!("{message}");
            return Ok(CANNOT_START);
        }
        Err(Failure::Stopped { interrupted: false }) => return Ok(0),
        Err(Failure::Stopped { interrupted: true }) => {}
    }
    signals::end_by(Signal::SIGINT);
    Ok(INTERRUPTED)
}

impl Main {
    fn run(&mut self) -> io::Result<u8> {
        let mut sleeper = Sleeper::default();
        loop {
            while let Some(event) = self.events.pop_front() {
                let Some(event) = self.unless_put_off(event) else { continue };
                self.count(&event);
                for action in self.state.on(Instant::now(), event) {
                    self.perform(action);
                }
            }
            self.prepare_for_sleep();
            if let Some(code) = self.exit.filter(|_| self.operators.hooks.is_idle())
                && self.outside.cgroups.as_ref().is_none_or(Cgroups::is_idle)
                && self.has_ended_logger()
            {
                self.operators.clients.ended(code);
                return Ok(code);
            }
            self.tend_logger();
            self.arm();
            let is_behind = self.children.is_behind();
            let deadline = if is_behind { Some(Instant::now()) } else { self.deadline() };
            let mut tokens = sleeper.wait(&self.poller, deadline)?;
            // Signals first: if a worker ended by a stop signal that main got as well, that is not a failure.
            tokens.sort_unstable();
            tokens.into_iter().for_each(|token| self.on_ready(token));
            self.take_logger_reports();
            for monitor in self.children.with_due_channel(Instant::now()) {
                self.take_reports(monitor, MAX_REPORTS_A_TURN);
            }
            if is_behind {
                self.reap();
            }
            self.do_what_is_due();
            self.events.push_back(Event::Wake);
        }
    }

    /// Does what is to be done when the state has decided everything.
    fn prepare_for_sleep(&mut self) {
        // Before the sleep, so that a worker that has become ready gets its share at once.
        self.steer();
        // The service manager before the daemon's parent: when the parent ends, the manager must know main's pid.
        let reading = self.children.reread_deadline().is_some();
        self.outside.service_manager.tell(self.overview(), reading, Instant::now());
        self.give_way_if_proven();
        if self.outside.daemon_parent.is_due(self.state.overview()) {
            self.children.channels().for_each(|running| running.channel.send(&Order::LeaveTerminal));
            self.outside.daemon_parent.tell();
        }
    }

    /// Makes the poller watch for what main waits for now.
    fn arm(&mut self) {
        for running in self.children.channels() {
            running.channel.rearm(&self.poller, running.token);
        }
        self.operators.clients.tell_progress(self.state.progress());
        self.operators.clients.server.tend(&self.poller, Instant::now());
        self.operators.clients.forget_gone();
        let plan = &self.configuration.plan;
        self.listeners.shares.set_patience(plan.tuning.longest_start(plan.workers));
        stderr::rearm(&self.poller, STDERR);
    }

    fn deadline(&self) -> Option<Instant> {
        let deadlines = [
            self.state.deadline(),
            self.children.deadline(),
            self.listeners.deadline(self.serving()),
            self.operators.deadline(),
            self.outside.service_manager.deadline(),
            self.restarting.restart.deadline(),
            self.logger.deadline(),
            self.outside.cgroups.as_ref().and_then(Cgroups::deadline),
        ];
        deadlines.into_iter().flatten().min()
    }

    fn on_ready(&mut self, token: u64) {
        let now = Instant::now();
        match token {
            SIGNALS => self.take_signals(),
            STDERR => stderr::catch_up(),
            LOGGER => self.take_logger_reports(),
            FIRST_GUARDED_UNIX.. => {
                self.listeners.unix_guard.on_change(token, now, &self.listeners.held, &self.poller);
            }
            FIRST_GUARDED.. => {
                let name = self.listeners.guard.on_hang_up(token, now, &self.poller);
                name.into_iter().for_each(|name| self.listeners.held.fell_silent(name));
            }
            server::LISTENER.. => self.operators.clients.server.on_ready(token, &self.poller, now),
            token => {
                if let Some(monitor) = self.children.by_token(token) {
                    self.take_reports(monitor, MAX_REPORTS_A_TURN);
                }
            }
        }
    }

    /// Does what is due after every sleep.
    fn do_what_is_due(&mut self) {
        for (client, request) in self.operators.clients.server.requests(Instant::now()) {
            self.on_request(client, request);
        }
        self.answer_inquiry();
        self.watch_over_listeners();
        self.tend_queues(Instant::now());
        self.give_up_hanging_plan(Instant::now());
        self.children.kill_silent(Instant::now());
        self.operators.clients.give_up_signals(Instant::now(), None);
        self.close_abandoned();
        self.tend_claims();
        self.go_on_with_restart(restart::Event::Wake);
        self.go_on_with_hooks(hooks::Event::Wake);
        self.end_farewell();
        self.outside.cgroups.iter_mut().for_each(|cgroups| cgroups.tend(Instant::now()));
    }

    /// Counts the death of a worker: on trial it is a failed reload, else a respawn.
    pub(crate) fn count(&mut self, event: &Event) {
        match event {
            Event::Reported(Monitor { generation, .. }, Report::Died { cause, slot })
                if self.serving() == Some(*generation) =>
            {
                self.operators.counters.respawned(cause);
                self.tell_hooks_of_death(*generation, Some(*slot), cause);
            }
            Event::Reported(_, Report::Recycled { reason, .. }) => self.operators.counters.recycled(reason),
            // Nothing but hooks is left that could be stopped.
            Event::Stop(Urgency::Quick) | Event::StopThenNow if self.exit.is_some() => {
                self.go_on_with_hooks(hooks::Event::Hurry);
            }
            _ => {}
        }
    }

    pub(crate) fn take_signals(&mut self) {
        let mut reap = false;
        for _ in 0..MAX_SIGNALS_A_TURN {
            let Some(received) = self.signals.read() else { break };
            match received.signal {
                Signal::SIGCHLD => reap = true,
                _ => self.on_signal(received),
            }
        }
        if reap {
            self.reap();
        }
    }
}
