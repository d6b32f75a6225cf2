//! Main's loop, and the one place where it sleeps.

use std::io;
use std::time::Instant;

use anyhow::{Context, Error};
use nix::sys::signal::Signal;

use super::decide::Event;
use super::decide::restart;
use super::listeners::bind_at_start::Failure;
use super::main::{FIRST_GUARDED, FIRST_GUARDED_UNIX, Main, SIGNALS, STDERR, shared_name};
use super::operators::inquiry::Inquiry;
use super::outside::starter::Starter;
use super::restart::hand_over;
use super::start::start;
use crate::config::Plan;
use crate::control::environment::{Begin, Environment};
use crate::control::monitor::messages::{Order, Report};
use crate::control::operator::server;
use crate::sys::{memfd, processes, signals, stderr};

/// Number of reports read from one monitor before the loop looks at anything else.
const MAX_REPORTS_A_TURN: usize = 64;

/// Panzer could not start.
const CANNOT_START: u8 = 125;

/// As a shell shows an end by Ctrl-C, where a signal cannot end us: for PID 1.
const INTERRUPTED: u8 = 128 + Signal::SIGINT as u8;
/// Signals that are read before everything else has its turn.
const MAX_SIGNALS_A_TURN: usize = 64;

/// Takes the role of main, until everything has ended. Returns the exit code.
pub fn run(environment: Environment) -> anyhow::Result<u8> {
    signals::block_all().context("cannot block signals")?;
    processes::set_name();
    let begun = match environment.take_main()? {
        Begin::InPlace(state) => Ok(hand_over::take_over(state, environment).map_err(Error::msg)?),
        Begin::Anew(plan) => {
            let bytes = memfd::read(plan).context("cannot read the plan")?;
            let plan: Plan = serde_json::from_slice(&bytes).context("the plan is broken")?;
            stderr::start(plan.tuning.verbosity.level());
            let starter = Starter::new(environment.take_started()?);
            start(plan, environment, starter)
        }
    };
    match begun {
        Ok(mut main) => {
            let code = main.run().context("main cannot go on");
            main.operators.server.end();
            main.ack_paths.remove_all();
            main.pid_file.remove();
            main.terminal_rights.restore();
            if !main.interrupted || !matches!(code, Ok(0)) {
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
        loop {
            while let Some(event) = self.events.pop_front() {
                self.count(&event);
                for action in self.state.on(Instant::now(), event) {
                    self.perform(action);
                }
            }
            // Before the sleep: who is ready by now gets its share at once.
            self.steer();
            // The manager first: by the end of the starter it must know who main is.
            let reading = self.children.reread_deadline().is_some();
            self.upward.tell(self.state.overview(), reading, Instant::now());
            self.give_way_if_proven();
            if self.starter.is_due(self.state.overview()) {
                self.children.channels().for_each(|running| running.channel.send(&Order::LeaveTerminal));
                self.starter.tell();
            }
            if let Some(code) = self.exit {
                return Ok(code);
            }
            for running in self.children.channels() {
                running.channel.rearm(&self.poller, running.token);
            }
            self.operators.tell_progress(self.state.progress());
            self.operators.server.tend(&self.poller, Instant::now());
            self.operators.forget_gone();
            self.shares.set_patience(self.plan.tuning.longest_start(self.plan.workers));
            stderr::rearm(&self.poller, STDERR);
            let inquiry = self.inquiry.as_ref().map(Inquiry::deadline);
            let channels = self.children.channels().filter_map(|running| running.channel.deadline()).min();
            let deadline = [
                self.state.deadline(),
                inquiry,
                channels,
                self.shares.deadline(self.serving()),
                self.operators.server.deadline(),
                self.operators.deadline(),
                self.upward.deadline(),
                self.guard.deadline(),
                self.unix_guard.deadline(),
                self.restart.deadline(),
                self.emptyings.deadline(),
                self.planning_deadline(),
                self.children.silence_deadline(),
            ];
            let is_behind = self.children.is_behind();
            let deadline = if is_behind { Some(Instant::now()) } else { deadline.into_iter().flatten().min() };
            let mut tokens = self.poller.wait(deadline)?;
            // Signals first: a worker that ended by a stop which reached main as well is no failure.
            tokens.sort_unstable();
            for token in tokens {
                match token {
                    SIGNALS => self.take_signals(),
                    STDERR => stderr::catch_up(),
                    FIRST_GUARDED_UNIX.. => {
                        self.unix_guard.hung_up(token, Instant::now(), &self.held, &self.poller);
                    }
                    FIRST_GUARDED.. => {
                        let name = self.guard.hung_up(token, Instant::now(), &self.poller);
                        name.into_iter().for_each(|name| self.held.fell_silent(name));
                    }
                    server::LISTENER.. => self.operators.server.on_ready(token, &self.poller, Instant::now()),
                    token => {
                        if let Some(monitor) = self.children.by_token(token) {
                            self.take_reports(monitor, MAX_REPORTS_A_TURN);
                        }
                    }
                }
            }
            for monitor in self.children.with_due_channel(Instant::now()) {
                self.take_reports(monitor, MAX_REPORTS_A_TURN);
            }
            if is_behind {
                self.reap();
            }
            for (client, request) in self.operators.server.requests(Instant::now()) {
                self.asked(client, request);
            }
            self.answer_inquiry();
            self.watch_over_listeners();
            self.tend_queues(Instant::now());
            self.give_up_hanging_plan(Instant::now());
            self.children.kill_silent(Instant::now());
            self.operators.give_up_signals(Instant::now(), None);
            self.close_abandoned();
            self.tend_claims();
            self.go_on_with_restart(restart::Event::Wake);
            self.events.push_back(Event::Wake);
        }
    }

    /// The death of a worker on trial is a failed reload; of any other, a respawn.
    pub(crate) fn count(&mut self, event: &Event) {
        if let Event::Told(monitor, Report::Died { cause, .. }) = event
            && self.serving() == Some(monitor.generation)
        {
            self.counters.respawned(cause);
        }
    }

    pub(crate) fn take_signals(&mut self) {
        let mut reap = false;
        for _ in 0..MAX_SIGNALS_A_TURN {
            let Some(received) = self.signals.read() else { break };
            match received.signal {
                Signal::SIGCHLD => reap = true,
                _ => self.signalled(received),
            }
        }
        if reap {
            self.reap();
        }
    }

    pub(crate) fn close_abandoned(&mut self) {
        for key in self.shares.close_abandoned(self.serving(), Instant::now()) {
            self.guard.remove(&shared_name(&key), &self.poller);
            // What is asked for as well goes on.
            if self.held.is_claimed(&key).is_none() {
                log::info!("closed {}: no worker that lives has bound it", key.address);
            }
        }
    }

    /// A worker may have called `listen()`, or may do so soon: what it did to the queues is undone, and what it shut down
    /// is revived.
    pub(crate) fn put_listeners_right(&mut self) {
        let now = Instant::now();
        self.guard.look(now, &self.poller);
        self.guard.look_again_after(now);
        self.unix_guard.lengthen(&self.held);
    }

    /// Undoes what workers did to listeners. Who it was nobody can tell, but for the generations that there are.
    pub(crate) fn watch_over_listeners(&mut self) {
        let standings = self.state.standings();
        let workers = self.state.workers();
        let suspects = || {
            let numbers: Vec<String> = standings.iter().map(|(_, number, _)| number.to_string()).collect();
            match (&numbers[..], workers) {
                ([number], 1) => format!("worker 0 of generation {number}"),
                _ => format!("a worker of generation {}", numbers.join(" or ")),
            }
        };
        let now = Instant::now();
        let is_due = self.guard.look_is_due(now);
        if is_due {
            self.ask_what_serves_by_itself();
        }
        if is_due || self.guard.may_look(now) {
            self.guard.look(now, &self.poller);
            self.unix_guard.lengthen(&self.held);
        }
        if self.guard.is_due(now) {
            self.held.look_who_is_silent();
        }
        let revived = self.guard.act(now, &self.poller, suspects);
        revived.iter().for_each(|name| self.held.listens_again(name));
        if self.unix_guard.act(now, &mut self.held, &self.poller, suspects) {
            self.events.push_back(Event::Rebound);
        }
        if !revived.is_empty() {
            self.steer_anew();
        }
    }
}
