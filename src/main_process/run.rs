//! Performs what the state decides: one loop, one place to sleep.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::children::{Children, Running};
use super::inquiry::Inquiry;
use super::log;
use super::pidfile::{self, PidFile};
use super::shares::{Denied, Shares};
use super::state::{Action, Event, Generations, Monitor, Note, Settings, Standing};
use crate::config::{MOST_LISTENERS, Plan, SharePorts, text};
use crate::control::channel::{Channel, Received};
use crate::control::messages::{Assignment, Order, Report, Urgency, VERSION};
use crate::control::role::{Environment, OWN_IMAGE};
use crate::signals::{Action as Asked, Preset, action, read_by_main};
use crate::sockets::sharing::{self, Key};
use crate::sockets::{Listener, Refusal, bind};
use crate::sys::poller::Poller;
use crate::sys::signals::{Received as Signalled, Signals};
use crate::sys::{document, processes, signals, stderr};
use crate::worker::cause::Cause;
use crate::worker::spawn::{Command, Image, Outcome, spawn};

const SIGNALS: u64 = 0;
/// Monitors' channels are watched under this and up.
const FIRST_MONITOR: u64 = 16;

/// How often an address is tried that a dead main's workers still hold.
const RETRY: Duration = Duration::from_millis(50);

/// Panzer could not start.
const CANNOT_START: u8 = 125;

/// What a generation's first monitor found, kept for its later ones.
struct Found {
    directory: OwnedFd,
    program: OwnedFd,
    path: PathBuf,
}

struct Main {
    plan: Plan,
    environment: Environment,
    had_terminal: bool,
    signals: Signals,
    poller: Poller,
    listeners: Vec<Listener>,
    shares_ports: bool,
    shares: Shares<OwnedFd>,
    too_many_told: bool,
    pid_path: PathBuf,
    children: Children,
    found: BTreeMap<u32, Found>,
    inquiry: Option<Inquiry>,
    next_token: u64,
    state: Generations,
    events: VecDeque<Event>,
    exit: Option<u8>,
}

/// Takes the role of main, until everything has ended. Returns the exit code.
pub fn run(environment: Environment) -> Result<u8, String> {
    signals::block_all().map_err(|error| format!("cannot block signals: {error}"))?;
    processes::set_name();
    let bytes = document::read(environment.take_main()?).map_err(|error| format!("cannot read the plan: {error}"))?;
    let plan: Plan = serde_json::from_slice(&bytes).map_err(|error| format!("the plan is broken: {error}"))?;
    stderr::start(plan.verbosity.level());
    match start(plan, environment) {
        Ok((mut main, pid_file)) => {
            let code = main.run().map_err(|error| format!("main cannot go on: {error}"));
            pid_file.remove();
            code
        }
        Err(Failure::Refused(message)) => {
            ::log::error!("{message}");
            Ok(CANNOT_START)
        }
        Err(Failure::Stopped) => Ok(0),
    }
}

enum Failure {
    Refused(String),
    /// Asked to stop before it had begun.
    Stopped,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Refused(format!("cannot start: {error}"))
    }
}

fn start(plan: Plan, environment: Environment) -> Result<(Main, PidFile), Failure> {
    processes::become_subreaper()?;
    signals::unblock(&[Signal::SIGTSTP])?;
    let ignores_hang_up = signals::is_ignored(Signal::SIGHUP);
    // An ignored CHLD, above all, would have the kernel reap our children.
    signals::reset_dispositions();
    let shares_ports = can_share_ports(&plan)?;
    let read = read_by_main().filter(|&signal| signal != Signal::SIGHUP || !ignores_hang_up);
    let signals = Signals::new(read.chain([Signal::SIGCHLD]))?;
    let poller = Poller::new()?;
    poller.watch(&signals, SIGNALS)?;
    let children = Children::new();
    let pid_file = pidfile::claim(&plan).map_err(Failure::Refused)?;
    let listeners = match bind_all(&plan, &poller, &signals) {
        Ok(listeners) => listeners,
        Err(failure) => {
            pid_file.remove();
            return Err(failure);
        }
    };
    let state = Generations::new(settings(&plan));
    let shares = Shares::new(plan.ready_timeout);
    let main = Main {
        plan,
        environment,
        had_terminal: has_terminal(),
        signals,
        poller,
        listeners,
        shares_ports,
        shares,
        too_many_told: false,
        pid_path: pid_file.path().to_owned(),
        children,
        found: BTreeMap::new(),
        inquiry: None,
        next_token: FIRST_MONITOR,
        state,
        events: VecDeque::from([Event::Start]),
        exit: None,
    };
    Ok((main, pid_file))
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

/// All or none. What only the draining workers of a dead main still hold is waited for, at most one stop schedule.
fn bind_all(plan: &Plan, poller: &Poller, signals: &Signals) -> Result<Vec<Listener>, Failure> {
    let until = Instant::now() + plan.stop.total();
    let mut listeners: Vec<Listener> = Vec::new();
    let mut waiting = false;
    while let Some(wanted) = plan.listen.get(listeners.len()) {
        let refused = match bind(wanted) {
            Ok(listener) => {
                listeners.push(listener);
                continue;
            }
            Err(Refusal::Passing(held)) if Instant::now() < until => {
                if !std::mem::replace(&mut waiting, true) {
                    ::log::warn!("{held}; waiting until it has ended");
                }
                stop_asked(poller, signals)?.then_some(Failure::Stopped)
            }
            // The last of them ended between our bind and our look.
            Err(Refusal::Unseen(_)) if waiting && Instant::now() < until => {
                stop_asked(poller, signals)?.then_some(Failure::Stopped)
            }
            Err(Refusal::Passing(why) | Refusal::Unseen(why) | Refusal::Final(why)) => Some(Failure::Refused(why)),
        };
        if let Some(failure) = refused {
            listeners.into_iter().for_each(Listener::close);
            return Err(failure);
        }
    }
    Ok(listeners)
}

/// Waits a moment. True where a signal asked for an end meanwhile.
fn stop_asked(poller: &Poller, signals: &Signals) -> io::Result<bool> {
    poller.wait(Some(Instant::now() + RETRY))?;
    let asked = std::iter::from_fn(|| signals.read()).map(|received| action(Preset::Panzer, received.signal));
    // All of them are taken: one that is left would wake the next wait at once.
    let stops = asked.filter(|asked| matches!(asked, Asked::Stop | Asked::StopThenNow | Asked::StopNow)).count();
    Ok(stops > 0)
}

fn settings(plan: &Plan) -> Settings {
    Settings {
        workers: plan.workers,
        ready: plan.ready,
        ready_timeout: plan.ready_timeout,
        bake: plan.bake,
        stop: plan.stop.clone(),
        pace: plan.pace(),
        seed: Pid::this().as_raw().unsigned_abs().into(),
    }
}

fn has_terminal() -> bool {
    File::open("/dev/tty").is_ok()
}

impl Main {
    fn run(&mut self) -> io::Result<u8> {
        loop {
            while let Some(event) = self.events.pop_front() {
                for action in self.state.on(Instant::now(), event) {
                    self.perform(action);
                }
            }
            if let Some(code) = self.exit {
                return Ok(code);
            }
            for running in self.children.channels() {
                running.channel.rearm(&self.poller, running.token);
            }
            let inquiry = self.inquiry.as_ref().map(Inquiry::deadline);
            let deadline = [self.state.deadline(), inquiry, self.shares.deadline(self.serving())];
            for token in self.poller.wait(deadline.into_iter().flatten().min())? {
                match token {
                    SIGNALS => self.take_signals(),
                    token => {
                        if let Some(monitor) = self.children.by_token(token) {
                            self.take_reports(monitor);
                        }
                    }
                }
            }
            self.answer_inquiry();
            self.close_abandoned();
            self.events.push_back(Event::Wake);
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
        match action(Preset::Panzer, received.signal) {
            Asked::Reload => self.events.push_back(Event::Reload),
            Asked::Stop => self.events.push_back(Event::Stop(Urgency::Graceful)),
            Asked::StopThenNow => self.events.push_back(Event::StopThenNow),
            Asked::StopNow => self.events.push_back(Event::Stop(Urgency::Quick)),
            Asked::PrintStatus => self.inquire(),
            Asked::HangUp if self.had_terminal && !has_terminal() => {
                self.events.push_back(Event::Stop(Urgency::Graceful));
            }
            Asked::HangUp => ::log::info!("HUP: no terminal was closed, nothing to do"),
            Asked::Nothing => {}
        }
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
        match (report, <[OwnedFd; 2]>::try_from(descriptors)) {
            (Report::Resolved { path }, Ok([directory, program])) => {
                ::log::debug!("generation {} runs {}", monitor.generation, path.display());
                self.found.insert(monitor.generation, Found { directory, program, path });
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
            (report, _) => self.events.push_back(Event::Told(monitor, report)),
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
            match self.shares.claim(key, monitor.generation, Instant::now(), bind).map(OwnedFd::try_clone) {
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

    fn reap(&mut self) {
        // All at once first: what has ended as well is nobody's orphan.
        let mut ended: Vec<_> = std::iter::from_fn(processes::reap).collect();
        // Monitors before orphans: what a monitor leaves must not be taken for an orphan's.
        ended.sort_by_key(|(pid, _)| self.children.by_pid(*pid).is_none());
        for (pid, exit) in ended {
            if let Some(monitor) = self.children.by_pid(pid) {
                // Its last words come before its end.
                self.take_reports(monitor);
                let cause = match self.children.running(monitor).map(|running| running.child.outcome()) {
                    Some(Outcome::Failed(errno)) => {
                        Cause::CannotStart(format!("could not be executed: {}", errno.desc()))
                    }
                    _ => exit.into(),
                };
                if let Some(running) = self.children.running(monitor) {
                    self.poller.forget(&running.channel);
                }
                self.children.remove(monitor);
                let orphans = self.children.adopt(monitor);
                if let Some(inquiry) = &mut self.inquiry {
                    inquiry.complete(monitor);
                }
                self.events.push_back(Event::Ended(monitor, cause, orphans));
            } else if let Some(monitor) = self.children.orphan_ended(pid) {
                self.events.push_back(Event::OrphansGone(monitor));
            }
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::StartMonitor { monitor, trial, notify } => {
                if let Err(error) = self.start_monitor(monitor, trial, notify) {
                    let cause = Cause::CannotStart(format!("could not be started: {error}"));
                    self.events.push_back(Event::NotStarted(monitor, cause));
                }
            }
            Action::Order(monitor, order) => {
                if let Some(running) = self.children.running(monitor) {
                    running.channel.send(&order);
                }
            }
            Action::KillMonitor(monitor) => {
                if let Some(pid) = self.children.pid_of(monitor) {
                    // A child of ours that is not reaped yet: there is no way to refuse it.
                    let _ = processes::signal_child(pid, Signal::SIGKILL);
                }
            }
            Action::SignalUnreached(monitor, signal) => {
                self.children.signal_orphans(monitor, signal, processes::has_other_user);
            }
            Action::SignalOrphans(monitor, signal) => self.children.signal_orphans(monitor, signal, |_| true),
            Action::CloseListeners => {
                self.listeners.drain(..).for_each(Listener::close);
                self.shares.close();
            }
            Action::Release(generation) => {
                self.found.remove(&generation);
                self.shares.release(generation, Instant::now());
            }
            Action::Note(Note::Began) => log::began(&self.plan, &self.pid_path),
            Action::Note(note) => log::write(&note, &self.plan),
            Action::Exit(code) => self.exit = Some(code),
        }
    }

    fn close_abandoned(&mut self) {
        for key in self.shares.close_abandoned(self.serving(), Instant::now()) {
            ::log::info!("closed {}: no worker that lives has bound it", key.address);
        }
    }

    fn serving(&self) -> Option<u32> {
        let serving = |(standing, generation, _)| (standing == Standing::Serving).then_some(generation);
        self.state.standings().into_iter().find_map(serving)
    }

    fn start_monitor(&mut self, monitor: Monitor, trial: bool, notify: bool) -> io::Result<()> {
        let found = self.found.get(&monitor.generation);
        let assignment = Assignment {
            version: VERSION,
            plan: self.plan.clone(),
            generation: monitor.generation,
            trial,
            notify,
            shares_ports: self.shares_ports,
            main_pid: Pid::this().as_raw(),
            release_path: found.map(|found| found.path.clone()),
        };
        let plan = document::write(&serde_json::to_vec(&assignment)?)?;
        let (channel, theirs) = Channel::pair()?;
        let mut descriptors: Vec<BorrowedFd<'_>> = self.listeners.iter().map(AsFd::as_fd).collect();
        descriptors.extend([theirs.as_fd(), plan.as_fd()]);
        if let Some(found) = found {
            descriptors.extend([found.directory.as_fd(), found.program.as_fd()]);
        }
        let title = format!("panzer: monitor [gen {}]", monitor.generation);
        let child = spawn(&Command {
            image: Image::Path(text::c_string(OWN_IMAGE.as_ref())),
            arguments: vec![text::c_string(title.as_ref())],
            environment: self.environment.for_monitor(monitor.generation, self.listeners.len(), found.is_some()),
            listen_pid: false,
            descriptors,
            inherits_descriptors: true,
            leads_group: false,
            keeps_mask: true,
            death_signal: None,
        })?;
        let token = self.next_token;
        self.next_token += 1;
        self.poller.watch(&channel, token)?;
        self.children.add(monitor, Running { child, channel, token });
        Ok(())
    }

    fn inquire(&mut self) {
        if self.inquiry.is_some() {
            return;
        }
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
        if let Some(inquiry) = self.inquiry.take_if(|inquiry| inquiry.is_complete() || inquiry.deadline() <= now) {
            stderr::tell(&inquiry.render(Pid::this().as_raw()));
        }
    }
}
