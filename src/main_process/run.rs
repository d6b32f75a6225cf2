//! Main's loop, and the one place where it sleeps.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use nix::sys::signal::Signal;

use super::ack_paths::AckPaths;
use super::binding::Failure;
use super::children::Children;
use super::counters::Counters;
use super::emptying::Emptyings;
use super::guard::Guard;
use super::held::AllHeld;
use super::inquiry::Inquiry;
use super::operators::Operators;
use super::pidfile::PidFile;
use super::preflight::NextBuild;
use super::restart::{self, Restart};
use super::shares::{Denied, Shares};
use super::start::start;
use super::starter::Starter;
use super::state::{Event, Generations, Monitor, Standing};
use super::steering::Served;
use super::successor;
use super::unix_guard::UnixGuard;
use super::upward::Upward;
use crate::config::{MOST_LISTENERS, Plan};
use crate::control::channel::Received;
use crate::control::messages::{Order, Report};
use crate::control::role::{Begin, Environment};
use crate::control::server::{self};
use crate::sockets::sharing::{self, Key};
use crate::sys::poller::Poller;
use crate::sys::signals::Signals;
use crate::sys::{document, processes, signals, stderr};
use crate::worker::cause::Cause;
use crate::worker::spawn::Outcome;

pub(super) const SIGNALS: u64 = 0;
/// Monitors' channels are watched under this and up.
pub(super) const FIRST_MONITOR: u64 = 16;

/// Listeners that are guarded are watched under this and up.
pub(super) const FIRST_GUARDED: u64 = 1 << 48;
pub(super) const FIRST_GUARDED_UNIX: u64 = 1 << 52;

/// Panzer could not start.
const CANNOT_START: u8 = 125;

/// What a generation's first monitor found, kept for its later ones.
pub(super) struct Found {
    pub(super) directory: OwnedFd,
    pub(super) program: OwnedFd,
    pub(super) findings: OwnedFd,
    pub(super) path: PathBuf,
    /// The user its workers run as, where it is another than ours.
    pub(super) other_user: Option<u32>,
}

pub(super) struct Main {
    /// What was asked for, as it was read last for all that run: not for a generation that failed.
    pub(super) plan: Plan,
    /// What each generation runs by that has a process or waits for one.
    pub(super) plans: BTreeMap<u32, Plan>,
    pub(super) environment: Environment,
    pub(super) had_terminal: bool,
    /// Whether whoever started panzer had HUP ignored.
    pub(super) ignores_hang_up: bool,
    pub(super) signals: Signals,
    pub(super) poller: Poller,
    pub(super) held: AllHeld,
    /// The queues of so many slots get what is new, where slots have their own, and what the kernel was told of that last.
    pub(super) active: u32,
    pub(super) steered: Option<Served>,
    pub(super) emptyings: Emptyings,
    pub(super) shares_ports: bool,
    pub(super) shares: Shares<OwnedFd>,
    pub(super) guard: Guard,
    pub(super) unix_guard: UnixGuard,
    pub(super) too_many_told: bool,
    pub(super) pid_file: PidFile,
    pub(super) ack_paths: AckPaths,
    pub(super) children: Children,
    pub(super) found: BTreeMap<u32, Found>,
    pub(super) inquiry: Option<Inquiry>,
    pub(super) upward: Upward,
    pub(super) starter: Starter,
    /// Whether the table is to be printed, and who else asked for it.
    pub(super) told_on_stderr: bool,
    /// Whether it is to be written to a file.
    pub(super) dumps: bool,
    pub(super) askers: Vec<u64>,
    pub(super) operators: Operators,
    pub(super) counters: Counters,
    pub(super) restart: Restart,
    /// The build that has proved itself, and is to take over.
    pub(super) next_build: Option<NextBuild>,
    pub(super) next_token: u64,
    pub(super) state: Generations,
    pub(super) events: VecDeque<Event>,
    pub(super) exit: Option<u8>,
}

/// What the guard knows by that a worker has bound itself.
pub(super) fn shared_name(key: &Key) -> String {
    format!("{} (shared)", key.address)
}

/// Takes the role of main, until everything has ended. Returns the exit code.
pub fn run(environment: Environment) -> Result<u8, String> {
    signals::block_all().map_err(|error| format!("cannot block signals: {error}"))?;
    processes::set_name();
    let begun = match environment.take_main()? {
        Begin::InPlace(state) => Ok(successor::take_over(state, environment)?),
        Begin::Anew(plan) => {
            let bytes = document::read(plan).map_err(|error| format!("cannot read the plan: {error}"))?;
            let plan: Plan = serde_json::from_slice(&bytes).map_err(|error| format!("the plan is broken: {error}"))?;
            stderr::start(plan.tuning.verbosity.level());
            let starter = Starter::new(environment.take_started()?);
            start(plan, environment, starter)
        }
    };
    match begun {
        Ok(mut main) => {
            let code = main.run().map_err(|error| format!("main cannot go on: {error}"));
            main.operators.server.end();
            main.ack_paths.remove_all();
            main.pid_file.remove();
            code
        }
        Err(Failure::Refused(message)) => {
            ::log::error!("{message}");
            Ok(CANNOT_START)
        }
        Err(Failure::Stopped) => Ok(0),
    }
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
            self.upward.tell(self.state.overview(), Instant::now());
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
            let inquiry = self.inquiry.as_ref().map(Inquiry::deadline);
            let deadline = [
                self.state.deadline(),
                inquiry,
                self.shares.deadline(self.serving()),
                self.operators.server.deadline(),
                self.operators.deadline(),
                self.upward.deadline(),
                self.guard.deadline(),
                self.unix_guard.deadline(),
                self.restart.deadline(),
                self.emptyings.deadline(),
                self.planning_deadline(),
            ];
            for token in self.poller.wait(deadline.into_iter().flatten().min())? {
                match token {
                    SIGNALS => self.take_signals(),
                    FIRST_GUARDED_UNIX.. => {
                        self.unix_guard.hung_up(token, Instant::now(), &self.held, &self.poller);
                    }
                    FIRST_GUARDED.. => {
                        let name = self.guard.hung_up(token, Instant::now(), &self.poller);
                        name.into_iter().for_each(|name| self.held.fell_silent(name));
                    }
                    server::LISTENER.. => self.operators.server.look_at(token, &self.poller, Instant::now()),
                    token => {
                        if let Some(monitor) = self.children.by_token(token) {
                            self.take_reports(monitor);
                        }
                    }
                }
            }
            for (client, request) in self.operators.server.requests(Instant::now()) {
                self.asked(client, request);
            }
            self.answer_inquiry();
            self.watch_over_listeners();
            self.tend_queues(Instant::now());
            self.give_up_hanging_plan(Instant::now());
            self.operators.give_up_signals(Instant::now(), None);
            self.close_abandoned();
            self.go_on_with_restart(restart::Event::Wake);
            self.events.push_back(Event::Wake);
        }
    }

    /// The death of a worker on trial is a failed reload; of any other, a respawn.
    pub(super) fn count(&mut self, event: &Event) {
        if let Event::Told(monitor, Report::Died { cause, .. }) = event
            && self.serving() == Some(monitor.generation)
        {
            self.counters.respawned(cause);
        }
    }

    pub(super) fn take_signals(&mut self) {
        let mut reap = false;
        while let Some(received) = self.signals.read() {
            match received.signal {
                Signal::SIGCHLD => reap = true,
                _ => self.signalled(received),
            }
        }
        if reap {
            self.reap();
        }
    }

    pub(super) fn take_reports(&mut self, monitor: Monitor) {
        loop {
            let Some(running) = self.children.running(monitor) else { return };
            running.channel.flush();
            match running.channel.receive::<Report>() {
                Received::Message(Report::Claim { ticket, key }, descriptors) => {
                    self.claimed(monitor, ticket, &key, descriptors);
                }
                Received::Message(report, descriptors) => self.reported(monitor, report, descriptors),
                Received::Garbage(why) => ::log::warn!(
                    "the monitor of generation {} says what this build does not know, and that is left out: {why}; a \
                     reload gives it one that is understood",
                    monitor.generation
                ),
                Received::MoreGarbage => {}
                Received::Nothing => return,
                Received::Gone => {
                    // Its end is told when it has been reaped.
                    self.poller.forget(&running.channel);
                    return;
                }
            }
        }
    }

    pub(super) fn reported(&mut self, monitor: Monitor, report: Report, descriptors: Vec<OwnedFd>) {
        match (report, <[OwnedFd; 3]>::try_from(descriptors)) {
            (Report::Resolved { path, other_user }, Ok([directory, program, findings])) => {
                ::log::debug!("generation {} runs {}", monitor.generation, path.display());
                let found = Found { directory, program, findings, path, other_user };
                self.found.insert(monitor.generation, found);
            }
            (Report::Worker(status), _) => {
                if let Some(inquiry) = &mut self.inquiry {
                    inquiry.add(monitor, status);
                }
            }
            (Report::StatusEnd, _) => {
                if let Some(inquiry) = &mut self.inquiry {
                    inquiry.complete(monitor);
                }
            }
            (Report::Signalled { ticket, reached }, _) => self.operators.signalled(ticket, monitor, reached),
            (report, _) => {
                if matches!(report, Report::Ready { .. } | Report::Listens { .. }) {
                    self.guard.look(&self.poller);
                    self.unix_guard.lengthen(&self.held);
                }
                self.events.push_back(Event::Told(monitor, report));
            }
        }
    }

    /// A worker wants to bind: it gets what is held, and what is not yet held is bound for it.
    pub(super) fn claimed(&mut self, monitor: Monitor, ticket: u64, key: &Key, descriptors: Vec<OwnedFd>) {
        let asked_for = self.held.is_claimed(key).map(|held| held.listener.as_fd().try_clone_to_owned());
        let bind = || match (asked_for, descriptors.into_iter().next()) {
            // What main holds because it was asked to as well.
            (Some(Ok(socket)), _) => Ok(socket),
            (_, Some(socket)) => sharing::bind_as_claimed(&socket, key).map(|()| socket),
            (_, None) => sharing::bind_own(key),
        };
        let held = if self.state.is_stopping() {
            // Nothing is held any more; what the kernel says goes.
            Err(None)
        } else {
            let (shares, guard) = (&mut self.shares, &mut self.guard);
            let bind = || bind().inspect(|socket| guard.add(shared_name(key), socket.as_fd()));
            match shares.claim(key, monitor.generation, Instant::now(), bind).map(OwnedFd::try_clone) {
                Ok(copy) => copy.map_err(|error| error.raw_os_error()),
                Err(Denied::NotBound(errno)) => Err(Some(errno as i32)),
                Err(Denied::TooMany) => {
                    if !std::mem::replace(&mut self.too_many_told, true) {
                        ::log::warn!(
                            "{} and later addresses are not shared: {MOST_LISTENERS} are already",
                            key.address
                        );
                    }
                    Err(None)
                }
            }
        };
        let Some(running) = self.children.running(monitor) else { return };
        match held {
            Ok(held) => running.channel.send_along(&Order::Shared { ticket }, vec![held]),
            Err(errno) => running.channel.send(&Order::NotShared { ticket, errno }),
        }
    }

    pub(super) fn reap(&mut self) {
        // All at once first: what has ended as well is nobody's orphan.
        let mut ended: Vec<_> = std::iter::from_fn(processes::reap).collect();
        // Monitors before orphans: what a monitor leaves must not be taken for an orphan's.
        ended.sort_by_key(|(pid, _)| self.children.by_pid(*pid).is_none());
        for (pid, exit) in ended {
            if let Some(monitor) = self.children.by_pid(pid) {
                // Its last words come before its end.
                self.take_reports(monitor);
                let cause = match self.children.running(monitor).map(|running| running.child.outcome()) {
                    Some(Outcome::Failed(refused)) => {
                        Cause::CannotStart(format!("could not be executed: {}", refused.errno.desc()))
                    }
                    _ => exit.into(),
                };
                if let Some(running) = self.children.running(monitor) {
                    self.poller.forget(&running.channel);
                }
                self.children.remove(monitor);
                self.operators.give_up_signals(Instant::now(), Some(monitor));
                let orphans = self.children.adopt(monitor);
                if let Some(inquiry) = &mut self.inquiry {
                    inquiry.complete(monitor);
                }
                self.events.push_back(Event::Ended(monitor, cause, orphans));
            } else if let Some(preflight) = self.children.take_preflight(pid) {
                self.preflight_ended(preflight, exit);
            } else if let Some(planner) = self.children.take_planner(pid) {
                self.planner_ended(planner, exit);
            } else if let Some(monitor) = self.children.orphan_ended(pid) {
                self.events.push_back(Event::OrphansGone(monitor));
            }
        }
    }

    pub(super) fn close_abandoned(&mut self) {
        for key in self.shares.close_abandoned(self.serving(), Instant::now()) {
            self.guard.remove(&shared_name(&key), &self.poller);
            // What is asked for as well goes on.
            if self.held.is_claimed(&key).is_none() {
                ::log::info!("closed {}: no worker that lives has bound it", key.address);
            }
        }
    }

    /// Undoes what workers did to listeners. Who it was nobody can tell, but for the generations that there are.
    pub(super) fn watch_over_listeners(&mut self) {
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

    pub(super) fn serving(&self) -> Option<u32> {
        let serving = |(standing, generation, _)| (standing == Standing::Serving).then_some(generation);
        self.state.standings().into_iter().find_map(serving)
    }
}
