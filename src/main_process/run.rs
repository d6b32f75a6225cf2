//! Performs what the state decides: one loop, one place to sleep.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::accept_queues;
use super::ack_paths::AckPaths;
use super::binding::{Failure, bind_all};
use super::children::{Children, Running};
use super::counters::Counters;
use super::dump;
use super::emptying::Emptyings;
use super::guard::Guard;
use super::inquiry::Inquiry;
use super::log;
use super::operators::Operators;
use super::pidfile::{self, PidFile};
use super::preflight::NextBuild;
use super::restart::{self, Restart};
use super::shares::{Denied, Shares};
use super::starter::Starter;
use super::state::{Action, Change, Event, Generations, Monitor, Note, Settings, Standing, Verdict};
use super::successor;
use super::unix_guard::UnixGuard;
use super::upward::Upward;
use crate::config::{Listen, MOST_LISTENERS, Plan, Ready, SharePorts, text};
use crate::control::channel::{Channel, Received};
use crate::control::messages::{Assignment, Order, Report, Tuning, Urgency, VERSION};
use crate::control::places;
use crate::control::requests::{Answer, Command as Wanted, Request, Status};
use crate::control::role::{Begin, Environment, OWN_IMAGE};
use crate::control::server::{self, Server};
use crate::signals::Action as Asked;
use crate::sockets::sharing::{self, Key};
use crate::sockets::{Listener, queues};
use crate::sys::poller::Poller;
use crate::sys::signals::{Received as Signalled, Signals, parse_signal_or_number};
use crate::sys::{document, processes, signals, stderr};
use crate::worker::cause::Cause;
use crate::worker::spawn::{Command, Image, Outcome, spawn};

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
    pub(super) variables: OwnedFd,
    pub(super) path: PathBuf,
    /// The user its workers run as, where it is another than ours.
    pub(super) other_user: Option<u32>,
}

pub(super) struct Main {
    /// What was asked for last.
    pub(super) plan: Plan,
    /// What each generation runs by that has a process or waits for one.
    pub(super) plans: BTreeMap<u32, Plan>,
    pub(super) environment: Environment,
    pub(super) had_terminal: bool,
    /// Whether whoever started panzer had HUP ignored.
    pub(super) ignores_hang_up: bool,
    pub(super) signals: Signals,
    pub(super) poller: Poller,
    /// What each of these is.
    pub(super) held: Vec<Listen>,
    pub(super) listeners: Vec<Listener>,
    /// So many slots have queues of their own, where there are such, and so many of these get what is new.
    pub(super) queues: u32,
    pub(super) active: u32,
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

/// Takes the role of main, until everything has ended. Returns the exit code.
pub fn run(environment: Environment) -> Result<u8, String> {
    signals::block_all().map_err(|error| format!("cannot block signals: {error}"))?;
    processes::set_name();
    let begun = match environment.take_main()? {
        Begin::InPlace(state) => Ok(successor::take_over(state, environment)?),
        Begin::Anew(plan) => {
            let bytes = document::read(plan).map_err(|error| format!("cannot read the plan: {error}"))?;
            let plan: Plan = serde_json::from_slice(&bytes).map_err(|error| format!("the plan is broken: {error}"))?;
            stderr::start(plan.verbosity.level());
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

fn start(plan: Plan, environment: Environment, starter: Starter) -> Result<Main, Failure> {
    processes::become_subreaper()?;
    signals::unblock(&[Signal::SIGTSTP])?;
    let ignores_hang_up = signals::is_ignored(Signal::SIGHUP);
    // An ignored CHLD, above all, would have the kernel reap our children.
    signals::reset_dispositions();
    let shares_ports = can_share_ports(&plan)?;
    if plan.ready == Ready::Accept && !plan.has_listener() && !shares_ports {
        let why = "--ready accept needs a listener, and ports cannot be shared here";
        return Err(Failure::Refused(format!("{why}: add --listen, or take --ready notify or alive")));
    }
    let signals = read_signals(&plan, ignores_hang_up)?;
    let poller = Poller::new()?;
    poller.watch(&signals, SIGNALS)?;
    let children = Children::new();
    let pid_file = pidfile::claim(&plan).map_err(Failure::Refused)?;
    let ack_paths = AckPaths::begin(&plan, pid_file.path()).map_err(Failure::Refused);
    let begun = ack_paths.and_then(|paths| Ok((paths, bind_all(&plan, &poller, &signals)?)));
    let (ack_paths, listeners) = match begun {
        Ok(begun) => begun,
        Err(failure) => {
            pid_file.remove();
            return Err(failure);
        }
    };
    let control = plan.control.as_ref().map(|path| plan.start_directory.join(path));
    let control = control.unwrap_or_else(|| places::socket_beside(pid_file.path()));
    let server = match Server::bind(&control, &poller) {
        Ok(server) => server,
        Err(why) => {
            listeners.into_iter().for_each(Listener::close);
            pid_file.remove();
            return Err(Failure::Refused(why));
        }
    };
    let state = Generations::new(settings(&plan));
    let shares = Shares::new(plan.longest_start());
    let mut guard = Guard::new(FIRST_GUARDED);
    for ((listen, slot), listener) in queues::all(&plan.listen, plan.workers).zip(&listeners) {
        let whose = if listen.per_worker { format!(" (the queue of worker {slot})") } else { String::new() };
        guard.add(format!("{}{whose}", listen.address), listener.as_fd());
    }
    let unix_guard = UnixGuard::new(FIRST_GUARDED_UNIX);
    unix_guard.watch_all(&plan.listen, &listeners, &poller);
    guard.look(&poller);
    let main = Main {
        upward: Upward::new(&environment, Instant::now()),
        starter,
        queues: plan.workers,
        active: plan.workers,
        emptyings: Emptyings::default(),
        plans: BTreeMap::from([(1, plan.clone())]),
        held: plan.listen.clone(),
        plan,
        environment,
        had_terminal: has_terminal(),
        ignores_hang_up,
        signals,
        poller,
        listeners,
        shares_ports,
        shares,
        guard,
        unix_guard,
        too_many_told: false,
        pid_file,
        ack_paths,
        children,
        found: BTreeMap::new(),
        inquiry: None,
        told_on_stderr: false,
        dumps: false,
        askers: Vec::new(),
        operators: Operators::new(server, Instant::now()),
        counters: Counters::default(),
        restart: Restart::default(),
        next_build: None,
        next_token: FIRST_MONITOR,
        state,
        events: VecDeque::from([Event::Start]),
        exit: None,
    };
    Ok(main)
}

/// Reads from now on what is meant for main, and HUP only where that was not ignored.
pub(super) fn read_signals(plan: &Plan, ignores_hang_up: bool) -> io::Result<Signals> {
    let read = plan.signals.read_by_main().into_iter().filter(|&signal| signal != Signal::SIGHUP || !ignores_hang_up);
    Signals::new(read.chain([Signal::SIGCHLD]))
}

/// Whether workers share the ports that they bind themselves: asked for, and possible here.
fn can_share_ports(plan: &Plan) -> Result<bool, Failure> {
    let wanted = plan.share_ports;
    if wanted == SharePorts::Off || (wanted == SharePorts::Auto && !plan.listen.is_empty()) {
        return Ok(false);
    }
    match sharing::try_out() {
        Ok(false) => Ok(true),
        Ok(true) => {
            ::log::info!(
                "workers run with no_new_privs, so that they can share ports: in them sudo and other setuid programs \
                 have no power (--share-ports off gives it back)"
            );
            Ok(true)
        }
        Err(why) if wanted == SharePorts::Auto => {
            ::log::warn!(
                "ports that the program binds itself cannot be shared: {why}; use --listen where it binds one"
            );
            Ok(false)
        }
        Err(why) => Err(Failure::Refused(format!("--share-ports on: {why}; use --listen instead"))),
    }
}

pub(super) fn settings(plan: &Plan) -> Settings {
    Settings {
        workers: plan.workers,
        surge: plan.surge,
        ready: plan.ready,
        ready_timeout: plan.ready_timeout,
        bake: plan.bake,
        stop: plan.stop.clone(),
        pace: plan.pace(),
        start_delay: plan.start_delay,
        final_exit_stop: plan.final_exits.stop,
        max_draining: plan.max_draining,
        seed: Pid::this().as_raw().unsigned_abs().into(),
    }
}

/// Reads what a scale is by: `4`, `+1` or `-1`.
fn change(count: Option<&str>) -> Result<Change, String> {
    let text = count.ok_or("a scale command needs a \"count\"")?;
    let wrong = || format!("'{text}' is no count of workers: take 4, +1 or -1");
    match text.strip_prefix(['+', '-']) {
        Some(digits) if digits.starts_with(|first: char| first.is_ascii_digit()) => {
            text.parse().map(Change::By).map_err(|_| wrong())
        }
        Some(_) => Err(wrong()),
        None => text.parse().map(Change::To).map_err(|_| wrong()),
    }
}

fn has_terminal() -> bool {
    File::open("/dev/tty").is_ok()
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
                        self.unix_guard.hung_up(token, Instant::now(), &self.listeners, &self.poller);
                    }
                    FIRST_GUARDED.. => self.guard.hung_up(token, Instant::now(), &self.poller),
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
    fn count(&mut self, event: &Event) {
        if let Event::Told(monitor, Report::Died { cause, .. }) = event
            && self.serving() == Some(monitor.generation)
        {
            self.counters.respawned(cause);
        }
    }

    fn take_signals(&mut self) {
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

    fn signalled(&mut self, received: Signalled) {
        ::log::debug!("received {} from pid {}", received.signal.as_str(), received.sender);
        if received.signal == Signal::SIGHUP && self.had_terminal && !has_terminal() {
            return self.events.push_back(Event::Stop(Urgency::Graceful));
        }
        match self.plan.signals.action(received.signal) {
            Asked::Reload => self.events.push_back(Event::Reload),
            Asked::Detach => self.events.push_back(Event::ReloadRetiring(Urgency::Patient)),
            Asked::RestartWorkers => self.events.push_back(Event::ReloadRetiring(Urgency::Quick)),
            Asked::Stop => self.events.push_back(Event::Stop(Urgency::Graceful)),
            Asked::StopThenNow => self.events.push_back(Event::StopThenNow),
            Asked::StopNow => self.events.push_back(Event::Stop(Urgency::Quick)),
            Asked::ScaleUp => self.scale(None, Change::By(1)),
            Asked::ScaleDown => self.scale(None, Change::By(-1)),
            Asked::ScaleDownOldest => self.scale(None, Change::WithoutOldest),
            Asked::Quiet => self.scale(None, Change::ToNone),
            Asked::Restart => self.restart_asked(None),
            Asked::Status => {
                self.told_on_stderr = true;
                self.inquire();
            }
            Asked::Dump => {
                self.dumps = true;
                self.inquire();
            }
            Asked::Reread => self.reread(),
            // Nothing of panzer's own is open for writing but stderr, which belongs to whoever started it.
            Asked::Reopen => {
                ::log::info!("{}: nothing is open but stderr, which is not ours", received.signal.as_str())
            }
            Asked::Ignore => ::log::debug!("{}: nothing to do", received.signal.as_str()),
        }
    }

    /// An operator asks for something; what a signal asks for as well is the same event.
    fn asked(&mut self, client: u64, request: Request) {
        match request.command {
            Wanted::Status => {
                self.operators.wants_status(client);
                self.inquire();
            }
            Wanted::Reload => {
                self.operators.wants_reload(client, request);
                self.events.push_back(Event::ReloadFor(client));
            }
            Wanted::Stop | Wanted::Exit => {
                let quick = request.command == Wanted::Exit;
                let urgency = if quick { Urgency::Quick } else { Urgency::Graceful };
                self.events.push_back(Event::Stop(urgency));
                self.operators.wants_end(client, request.no_wait);
            }
            Wanted::Scale => match change(request.count.as_deref()) {
                Ok(change) => self.scale(Some(client), change),
                Err(why) => self.operators.answer(client, &Answer::refused(why)),
            },
            Wanted::Restart => self.restart_asked(Some(client)),
            Wanted::Quiet => self.scale(Some(client), Change::ToNone),
            Wanted::Signal => {
                if let Err(why) = self.order_signal(client, &request) {
                    self.operators.answer(client, &Answer::refused(why));
                }
            }
            // Nothing of panzer's own is open for writing but stderr, which belongs to whoever started it.
            Wanted::Reopen => self.operators.answer(client, &Answer::done()),
        }
    }

    /// The monitor knows the pids, and that they are still its own: it sends the signal.
    fn order_signal(&mut self, client: u64, request: &Request) -> Result<(), String> {
        let text = request.signal.as_deref().ok_or("a signal command needs a \"signal\"")?;
        let number = parse_signal_or_number(text)? as i32;
        let slot = request.worker;
        let serving = self.state.standings().into_iter().find(|(standing, ..)| *standing == Standing::Serving);
        let (_, generation, monitor) = serving.ok_or("no generation serves: panzer is being stopped")?;
        let slots = self.state.slots();
        if let Some(slot) = slot.filter(|&slot| slot >= slots) {
            return Err(format!("there is no worker {slot}: they are numbered from 0 to {}", slots.saturating_sub(1)));
        }
        let running = monitor.and_then(|monitor| Some((monitor, self.children.running(monitor)?)));
        let (monitor, running) =
            running.ok_or_else(|| format!("generation {generation} has no monitor just now; try again"))?;
        let ticket = self.operators.wants_signalled(client, monitor, Instant::now());
        running.channel.send(&Order::Signal { ticket, number, slot });
        Ok(())
    }

    fn take_reports(&mut self, monitor: Monitor) {
        loop {
            let Some(running) = self.children.running(monitor) else { return };
            running.channel.flush();
            match running.channel.receive::<Report>() {
                Received::Message(Report::Claim { ticket, key }, descriptors) => {
                    self.claimed(monitor, ticket, &key, descriptors);
                }
                Received::Message(report, descriptors) => self.reported(monitor, report, descriptors),
                Received::Garbage(why) => ::log::warn!("the monitor of generation {} sent {why}", monitor.generation),
                Received::Nothing => return,
                Received::Gone => {
                    // Its end is told when it has been reaped.
                    self.poller.forget(&running.channel);
                    return;
                }
            }
        }
    }

    fn reported(&mut self, monitor: Monitor, report: Report, descriptors: Vec<OwnedFd>) {
        match (report, <[OwnedFd; 3]>::try_from(descriptors)) {
            (Report::Resolved { path, other_user }, Ok([directory, program, variables])) => {
                ::log::debug!("generation {} runs {}", monitor.generation, path.display());
                let found = Found { directory, program, variables, path, other_user };
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
                    self.unix_guard.lengthen(&self.held, &self.listeners);
                }
                self.events.push_back(Event::Told(monitor, report));
            }
        }
    }

    /// A worker wants to bind: it gets what is held, and what is not yet held is bound for it.
    fn claimed(&mut self, monitor: Monitor, ticket: u64, key: &Key, descriptors: Vec<OwnedFd>) {
        let bind = || match descriptors.into_iter().next() {
            Some(socket) => sharing::bind_as_claimed(&socket, key).map(|()| socket),
            None => sharing::bind_own(key),
        };
        let held = if self.state.is_stopping() {
            // Nothing is held any more; what the kernel says goes.
            Err(None)
        } else {
            let (shares, guard) = (&mut self.shares, &mut self.guard);
            let bind = || bind().inspect(|socket| guard.add(key.address.to_string(), socket.as_fd()));
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

    fn perform(&mut self, action: Action) {
        match action {
            Action::Plan(generation) => self.plan_generation(generation),
            Action::GiveUpPlan(generation) => self.give_up_plan(generation),
            Action::Tune(monitor) => {
                let tuning = Tuning::of(&self.plan);
                if let Some(plan) = self.plans.get_mut(&monitor.generation) {
                    tuning.clone().apply(plan);
                }
                if let Some(running) = self.children.running(monitor) {
                    running.channel.send(&Order::Tune(Box::new(tuning)));
                }
            }
            Action::Scaled { request, from, to } => {
                if let Some(client) = request {
                    self.operators.scaled(client, from, to);
                } else if let Err(why) = to {
                    ::log::warn!("{why}");
                }
            }
            Action::StartMonitor { monitor, workers, ended, trial, notify, accept } => {
                if let Err(error) = self.start_monitor(monitor, (workers, ended), (trial, notify, accept)) {
                    let cause = Cause::CannotStart(format!("could not be started: {error}"));
                    self.events.push_back(Event::NotStarted(monitor, cause));
                }
            }
            Action::Order(monitor, order) => self.order(monitor, order),
            Action::KillMonitor(monitor) => {
                if let Some(pid) = self.children.pid_of(monitor) {
                    // A child of ours that is not reaped yet: there is no way to refuse it.
                    let _ = processes::signal_child(pid, Signal::SIGKILL);
                }
            }
            Action::SignalUnreached(monitor, signal) => {
                let given = self.found.get(&monitor.generation).and_then(|found| found.other_user);
                self.children.signal_orphans(monitor, signal, |pid| processes::has_changed_user(pid, given));
            }
            Action::SignalOrphans(monitor, signal) => self.children.signal_orphans(monitor, signal, |_| true),
            Action::CloseListeners => {
                self.guard.clear(&self.poller);
                self.unix_guard.clear(&self.listeners, &self.poller);
                self.give_up_emptying();
                self.give_up_planning();
                self.listeners.drain(..).for_each(Listener::close);
                self.held.clear();
                self.queues = 0;
                self.shares.close();
                self.go_on_with_restart(restart::Event::Stopping);
            }
            Action::Release(generation) => {
                self.found.remove(&generation);
                self.plans.remove(&generation);
                self.operators.gone(generation);
                self.ack_paths.remove(generation);
                self.shares.release(generation, Instant::now());
                self.close_dropped();
            }
            Action::Promise(client, generation) => {
                let starting = self.state.progress().map(|progress| progress.generation);
                self.operators.promised(client, generation, starting);
            }
            Action::Verdict(generation, verdict) => {
                self.counters.judged(&verdict);
                self.operators.judged(generation, &verdict, || match &verdict {
                    Verdict::Rejected(why) => {
                        let plan = self.plans.get(&generation).unwrap_or(&self.plan);
                        log::rejected(generation, why, plan) + log::place(why)
                    }
                    Verdict::Serves(..) | Verdict::Stopped => String::new(),
                });
            }
            Action::Note(Note::Began) => log::began(&self.plan, self.pid_file.path()),
            Action::Note(Note::Rejected(generation, why)) => {
                let plan = self.plans.get(&generation).unwrap_or(&self.plan);
                ::log::error!("{}", log::rejected(generation, &why, plan));
            }
            Action::Note(Note::Bypasses(generation, slot, own)) => {
                let plan = self.plans.get(&generation).unwrap_or(&self.plan);
                ::log::warn!("worker {slot} of generation {generation} {}", log::bypasses(&own, plan));
            }
            Action::Note(note) => log::write(&note),
            Action::Exit(code) => {
                self.operators.ended(code);
                self.exit = Some(code);
            }
        }
    }

    fn close_abandoned(&mut self) {
        for key in self.shares.close_abandoned(self.serving(), Instant::now()) {
            self.guard.remove(&key.address.to_string(), &self.poller);
            ::log::info!("closed {}: no worker that lives has bound it", key.address);
        }
    }

    /// Undoes what workers did to listeners. Who it was nobody can tell, but for the generations that there are.
    fn watch_over_listeners(&mut self) {
        let standings = self.state.standings();
        let workers = self.state.workers();
        let suspects = || {
            let numbers: Vec<String> = standings.iter().map(|(_, number, _)| number.to_string()).collect();
            match (&numbers[..], workers) {
                ([number], 1) => format!("worker 0 of generation {number}"),
                _ => format!("a worker of generation {}", numbers.join(" or ")),
            }
        };
        let (now, wanted) = (Instant::now(), &self.held);
        self.guard.act(now, &self.poller, suspects);
        if self.unix_guard.act(now, wanted, &mut self.listeners, &self.poller, suspects) {
            self.events.push_back(Event::Rebound);
        }
    }

    pub(super) fn serving(&self) -> Option<u32> {
        let serving = |(standing, generation, _)| (standing == Standing::Serving).then_some(generation);
        self.state.standings().into_iter().find_map(serving)
    }

    fn start_monitor(
        &mut self,
        monitor: Monitor,
        (workers, ended): (u32, BTreeMap<u32, u8>),
        (trial, notify, accept): (bool, bool, bool),
    ) -> io::Result<()> {
        self.bind_queues(workers).map_err(io::Error::other)?;
        let plan = self.plans.get(&monitor.generation).unwrap_or(&self.plan);
        let found = self.found.get(&monitor.generation);
        let assignment = Assignment {
            version: VERSION,
            plan: Plan { workers, ..plan.clone() },
            generation: monitor.generation,
            ended,
            trial,
            notify,
            accept,
            shares_ports: self.shares_ports,
            main_pid: Pid::this().as_raw(),
            ack_socket: self.ack_paths.of(monitor.generation),
            release_path: found.map(|found| found.path.clone()),
        };
        let document = document::write(&serde_json::to_vec(&assignment)?)?;
        let (channel, theirs) = Channel::pair()?;
        let mut descriptors = self.sockets_of(plan)?;
        let sockets = descriptors.len();
        descriptors.extend([theirs.as_fd(), document.as_fd()]);
        if let Some(found) = found {
            descriptors.extend([found.directory.as_fd(), found.program.as_fd(), found.variables.as_fd()]);
        }
        let title = format!("panzer: monitor [gen {}]", monitor.generation);
        let child = spawn(&Command {
            image: Image::Path(text::c_string(OWN_IMAGE.as_ref())),
            arguments: vec![text::c_string(title.as_ref())],
            environment: self.environment.for_monitor(monitor.generation, sockets, found.is_some()),
            listen_pid: false,
            stdin: None,
            output: None,
            descriptors,
            inherits_descriptors: true,
            leads_group: false,
            keeps_mask: true,
            death_signal: None,
            identity: None,
        })?;
        let token = self.next_token;
        self.next_token += 1;
        self.poller.watch(&channel, token)?;
        self.children.add(monitor, Running { child, channel, token, queues: sockets, workers });
        Ok(())
    }

    pub(super) fn inquire(&mut self) {
        // One that a restart would interrupt is left to the next main.
        if self.inquiry.is_some() || self.restart.is_proven() {
            return;
        }
        self.askers = self.operators.take_status_askers();
        let standings = self.state.standings();
        for (_, _, monitor) in &standings {
            if let Some(running) = monitor.and_then(|monitor| self.children.running(monitor)) {
                running.channel.send(&Order::Status);
            }
        }
        let inquiry = Inquiry::new(standings, |monitor| self.children.pid_of(monitor), Instant::now());
        self.inquiry = Some(inquiry);
    }

    fn answer_inquiry(&mut self) {
        let now = Instant::now();
        let is_over = |inquiry: &mut Inquiry| inquiry.is_complete() || inquiry.deadline() <= now;
        let Some(inquiry) = self.inquiry.take_if(is_over) else { return };
        if std::mem::take(&mut self.told_on_stderr) {
            stderr::tell(&inquiry.render(Pid::this().as_raw()));
        }
        if std::mem::take(&mut self.dumps) {
            dump::write(self.pid_file.path(), &inquiry.render(Pid::this().as_raw()));
        }
        let askers = std::mem::take(&mut self.askers);
        if !askers.is_empty() {
            let answer = Answer { status: Some(self.status(&inquiry)), ..Answer::done() };
            askers.into_iter().for_each(|client| self.operators.answer(client, &answer));
        }
        if self.operators.want_status() {
            self.inquire();
        }
    }

    fn status(&self, inquiry: &Inquiry) -> Status {
        Status {
            name: places::name_of(self.pid_file.path()),
            pid: Pid::this().as_raw(),
            workers: self.state.workers(),
            ready: self.state.is_ready(),
            stopping: self.state.is_stopping(),
            uptime_ms: self.operators.begun.elapsed().as_millis() as u64,
            generations: inquiry.generations(),
            listeners: accept_queues::all(&self.held, &self.listeners, &self.shares),
            respawns: self.counters.respawns(),
            reloads: self.counters.reloads(),
        }
    }
}
