//! Performs what the state decides: one loop, one place to sleep.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, fchdir};

use super::log;
use super::roster::Roster;
use super::state::{Action, Event, Settings, Slots, Watch, Worker};
use crate::config::{ListenAs, ListenPid, Ready, text};
use crate::control::channel::{Channel, Received};
use crate::control::messages::{Assignment, Order, Report, VERSION, WorkerStatus};
use crate::control::role::Environment;
use crate::readiness::ack::AckSocket;
use crate::readiness::notify::NotifySocket;
use crate::readiness::watch::{self, Listeners};
use crate::sockets::queues;
use crate::sockets::sharing::{Sharing, Taken};
use crate::sys::poller::Poller;
use crate::sys::signals::Signals;
use crate::sys::{descriptors, document, processes, signals, stderr};
use crate::worker::cause::Cause;
use crate::worker::environment::{Common, Place, arguments, probe_variables, variables};
use crate::worker::findings::Findings;
use crate::worker::identity::Identity;
use crate::worker::program::Release;
use crate::worker::refusal;
use crate::worker::spawn::{Command, Image, Outcome, spawn};

const SIGNALS: u64 = 0;
const CHANNEL: u64 = 1;
const NOTIFY: u64 = 2;
const SHARING: u64 = 3;
const ACKS: u64 = 4;
/// A worker's exec is watched under this and its slot.
const FIRST_SLOT: u64 = 16;

/// So many notifications are read before the loop looks at anything else.
const NOTIFY_BATCH: usize = 64;

struct Monitor {
    assignment: Assignment,
    common: Common,
    release: Release,
    identity: Identity,
    mixed_release_told: bool,
    listeners: Vec<OwnedFd>,
    /// What workers are seen accepting on.
    accepted_on: Listeners,
    channel: Channel,
    notify: NotifySocket,
    acks: Option<AckSocket>,
    sharing: Option<Sharing>,
    signals: Signals,
    poller: Poller,
    roster: Roster,
    state: Slots,
    events: VecDeque<Event>,
    done: bool,
}

/// Takes the role of a monitor, until all its workers have ended. Fails where panzer itself is at fault.
pub fn run(environment: &Environment) -> Result<(), String> {
    let inheritance = environment.take_monitor()?;
    signals::block_all().map_err(|error| format!("cannot block signals: {error}"))?;
    processes::set_name();
    let mut channel = Channel::new(inheritance.channel);
    let assignment = read_assignment(inheritance.plan)?;
    stderr::start(assignment.plan.tuning.verbosity.level());
    if assignment.plan.daemonize {
        // Workers outlive the start, and with it the terminal: none of theirs may ever have been one.
        stderr::keep_terminal_to_itself().map_err(|error| format!("cannot leave the terminal: {error}"))?;
    }
    let (release, findings) = match find_release(&assignment, inheritance.release, environment) {
        Ok(found) => found,
        Err(cause) => {
            // Main says what it means: the end of a reload, or of a first start.
            channel.send(&Report::CannotBegin(cause));
            return Ok(());
        }
    };
    let written = findings.to_document().map_err(|error| format!("a monitor cannot start: {error}"))?;
    let Findings { variables, identity } = findings;
    let common = Common { inherited: identity.rename_in(environment.passed_on()), from_files: variables };
    let found = (release, identity, written);
    let mut monitor = match Monitor::new(assignment, found, channel, inheritance.listeners, common) {
        Ok(monitor) => monitor,
        // Main is gone before anything was started: there is nothing to stop.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
        Err(error) => return Err(format!("a monitor cannot start: {error}")),
    };
    monitor.run().map_err(|error| format!("a monitor cannot go on: {error}"))
}

fn read_assignment(plan: OwnedFd) -> Result<Assignment, String> {
    let bytes = document::read(plan).map_err(|error| format!("cannot read the plan: {error}"))?;
    let assignment: Assignment =
        serde_json::from_slice(&bytes).map_err(|error| format!("the plan is broken: {error}"))?;
    if assignment.version > VERSION {
        return Err(format!("the plan has version {}, and this build knows up to {VERSION}", assignment.version));
    }
    Ok(assignment)
}

fn find_release(
    assignment: &Assignment,
    held: Option<[OwnedFd; 3]>,
    environment: &Environment,
) -> Result<(Release, Findings), Cause> {
    match (held, &assignment.release_path) {
        (Some([directory, program, findings]), Some(path)) => {
            Ok((Release::held(directory, program, path.clone()), Findings::from_document(findings)?))
        }
        _ => {
            let release = Release::resolve(&assignment.plan, environment.inherited("PATH"))?;
            Ok((release, Findings::look_up(&assignment.plan)?))
        }
    }
}

impl Monitor {
    fn new(
        assignment: Assignment,
        (release, identity, findings): (Release, Identity, OwnedFd),
        channel: Channel,
        listeners: Vec<OwnedFd>,
        common: Common,
    ) -> io::Result<Monitor> {
        processes::become_subreaper()?;
        fchdir(&release.directory)?;
        let path = release.path.clone();
        let resolved = Report::Resolved { path, other_user: identity.other_user() };
        channel.send_with(&resolved, &[release.directory.as_fd(), release.program.as_fd(), findings.as_fd()])?;
        let poller = Poller::new()?;
        let signals = Signals::new([Signal::SIGCHLD])?;
        let notify = NotifySocket::new()?;
        poller.watch(&signals, SIGNALS)?;
        poller.watch(&channel, CHANNEL)?;
        poller.watch(&notify, NOTIFY)?;
        let acks = assignment.ack_socket.as_deref().map(|path| acknowledge_at(path, &poller)).transpose()?;
        // Last: from here on nothing can be bound here.
        let sharing = assignment.shares_ports.then(Sharing::begin).transpose()?;
        if let Some(sharing) = &sharing {
            poller.watch(sharing, SHARING)?;
        }
        // At the ordinary places a worker inherits them. A queue of its own it is given.
        for queue in listeners.iter().skip(assignment.plan.listen.len()) {
            descriptors::set_inherited(queue, false)?;
        }
        let accepted_on = Listeners::among(&listeners);
        let state = Slots::new(settings(&assignment, !accepted_on.is_empty()), Instant::now());
        Ok(Monitor {
            assignment,
            common,
            release,
            identity,
            mixed_release_told: false,
            listeners,
            accepted_on,
            channel,
            notify,
            acks,
            sharing,
            signals,
            poller,
            roster: Roster::default(),
            state,
            events: VecDeque::from([Event::Start]),
            done: false,
        })
    }

    fn run(&mut self) -> io::Result<()> {
        loop {
            while let Some(event) = self.events.pop_front() {
                let actions = self.state.on(Instant::now(), event);
                // A slot waits for its process; main and people may read a moment later what became of the last one.
                let (spawns, others): (Vec<_>, Vec<_>) =
                    actions.into_iter().partition(|action| matches!(action, Action::Spawn(_)));
                spawns.into_iter().chain(others).for_each(|action| self.perform(action));
            }
            if self.done {
                return Ok(());
            }
            self.channel.rearm(&self.poller, CHANNEL);
            let acks = self.acks.as_ref().and_then(AckSocket::deadline);
            for token in self.poller.wait(self.state.deadline().into_iter().chain(acks).min())? {
                self.look_at(token);
            }
            if acks.is_some_and(|deadline| deadline <= Instant::now()) {
                self.take_acks();
            }
            self.events.push_back(Event::Wake);
        }
    }

    fn look_at(&mut self, token: u64) {
        match token {
            SIGNALS => {
                while self.signals.read().is_some() {}
                self.reap();
            }
            CHANNEL => {
                self.channel.flush();
                self.take_orders();
            }
            NOTIFY => self.take_notifications(),
            SHARING => self.take_call(),
            ACKS => self.take_acks(),
            slot => self.look_at_exec((slot - FIRST_SLOT) as u32),
        }
    }

    fn take_orders(&mut self) {
        loop {
            match self.channel.receive::<Order>() {
                Received::Message(Order::Status, _) => self.report_status(),
                Received::Message(Order::LeaveTerminal, _) => {
                    if let Err(error) = stderr::leave_terminal() {
                        ::log::warn!("the terminal cannot be left: {error}");
                    }
                }
                Received::Message(Order::Queue, descriptors) => {
                    descriptors.iter().for_each(|queue| self.accepted_on.add(queue));
                    self.listeners.extend(descriptors);
                }
                Received::Message(Order::Shared { ticket }, descriptors) => {
                    if let (Some(sharing), Some(held)) = (&mut self.sharing, descriptors.into_iter().next()) {
                        self.accepted_on.add(&held);
                        sharing.shared(ticket, held);
                    }
                }
                Received::Message(Order::NotShared { ticket, errno }, _) => {
                    if let Some(sharing) = &mut self.sharing {
                        sharing.not_shared(ticket, errno.map(Errno::from_raw));
                    }
                }
                Received::Message(Order::Signal { ticket, number, slot }, _) => {
                    let reached = self.signal_as_asked(number, slot);
                    self.channel.send(&Report::Signalled { ticket, reached });
                }
                Received::Message(order, _) => {
                    self.take_over(&order);
                    self.events.push_back(Event::Ordered(order));
                }
                Received::Garbage(why) => ::log::warn!(
                    "main orders what the build of this monitor does not know, and that is left out: {why}; a reload gives \
                     generation {} a monitor that understands",
                    self.assignment.generation
                ),
                Received::MoreGarbage => {}
                Received::Nothing => return,
                Received::Gone => {
                    self.poller.forget(&self.channel);
                    if let Some(sharing) = &mut self.sharing {
                        sharing.main_is_gone();
                    }
                    self.events.push_back(Event::MainGone);
                    return;
                }
            }
        }
    }

    /// What an order means for workers that are started from now on, and for what is told.
    fn take_over(&mut self, order: &Order) {
        match order {
            Order::Scale { workers, .. } => self.assignment.plan.workers = *workers,
            Order::Tune(tuning) => {
                self.assignment.plan.tuning.clone_from(tuning);
                stderr::set_level(tuning.verbosity.level());
            }
            _ => {}
        }
    }

    fn take_call(&mut self) {
        match self.sharing.as_mut().and_then(Sharing::take_call) {
            None => {}
            Some(Taken::Claim(claim)) => {
                let report = Report::Claim { ticket: claim.ticket, key: claim.key };
                self.channel.send_along(&report, claim.socket.into_iter().collect());
            }
            Some(Taken::Listens(thread)) => {
                if let Some(worker) = self.roster.find_ancestor(thread) {
                    // It is past its exec, whether that has been looked at or not.
                    self.look_at_exec(worker.slot);
                    self.events.push_back(Event::Listens(worker));
                }
            }
        }
    }

    fn take_notifications(&mut self) {
        for _ in 0..NOTIFY_BATCH {
            let Some(notification) = self.notify.receive() else { return };
            if notification.ready {
                self.told_ready(notification.sender);
            }
        }
    }

    fn take_acks(&mut self) {
        let Some(acks) = &mut self.acks else { return };
        let is_known = |sender| self.roster.find_ancestor(sender).is_some();
        for sender in acks.tend(&self.poller, Instant::now(), is_known) {
            self.told_ready(sender);
        }
    }

    fn told_ready(&mut self, sender: Pid) {
        if let Some(worker) = self.roster.find_ancestor(sender) {
            // What it was told by is past its exec, whether that has been looked at or not.
            self.look_at_exec(worker.slot);
            self.events.push_back(Event::Notified(worker));
        }
    }

    fn look_at_exec(&mut self, slot: u32) {
        let Some(live) = self.roster.in_slot(slot) else { return };
        let Some(child) = &live.executing else { return };
        match child.outcome() {
            Outcome::Pending => return,
            Outcome::Done => self.events.push_back(Event::Executed(live.worker)),
            // The child is about to exit; that it did, and why, is told when it has been reaped.
            Outcome::Failed(refused) => {
                live.refused = Some(refusal::explain_child(refused, &self.release.path, &self.identity));
            }
        }
        self.poller.forget(child);
        live.executing = None;
    }

    fn reap(&mut self) {
        // All at once first: what has ended as well was not left behind.
        let ended: Vec<_> = std::iter::from_fn(processes::reap).collect();
        for (pid, exit) in ended {
            if let Some(worker) = self.roster.remove_probe(pid) {
                self.probe_ended(worker, exit);
                continue;
            }
            let slot = self.roster.slot_of(pid);
            if let Some(slot) = slot {
                self.look_at_exec(slot);
            }
            let Some(mut live) = self.roster.remove(pid) else {
                self.events.extend(self.roster.groups_gone().into_iter().map(Event::GroupGone));
                continue;
            };
            let went_to_background = exit == processes::Exit::Code(0);
            let last = self.state.is_stopping() && self.roster.is_empty();
            if self.roster.note_left_behind(pid, live.worker, went_to_background || last) {
                self.events.push_back(Event::LeftBehind(live.worker));
            }
            let cause = live.refused.take().unwrap_or_else(|| exit.into());
            match self.state.is_retiring(live.worker.slot) {
                true => self.roster.forget(live.worker.slot),
                false => self.roster.remember(live.worker.slot, pid, &cause),
            }
            self.events.push_back(Event::Ended(live.worker, cause));
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Spawn(worker) => {
                if let Err(cause) = self.spawn(worker) {
                    self.events.push_back(Event::Ended(worker, cause));
                }
            }
            Action::Look(worker) => {
                if let Some(pid) = self.roster.pid_of(worker) {
                    self.events.push_back(Event::Seen(worker, watch::look(pid, &self.accepted_on)));
                }
            }
            Action::Examine(worker) => {
                if let Some(pid) = self.roster.pid_of(worker) {
                    self.events.push_back(Event::Examined(worker, watch::bypass(pid, &self.accepted_on)));
                }
            }
            Action::Probe(worker) => self.probe(worker),
            Action::EndProbe(worker) => self.roster.kill_probe(worker),
            Action::Signal(worker, signal) => {
                self.signal(worker, signal);
            }
            Action::SignalGroup(worker, signal) => self.roster.signal_left_behind(worker, signal),
            Action::CloseListeners => {
                self.listeners.clear();
                if let Some(sharing) = &mut self.sharing {
                    sharing.let_go();
                }
            }
            Action::Report(report) => self.channel.send(&report),
            Action::Note(note) => log::write(&note, self.assignment.generation, |worker| self.roster.shown_pid(worker)),
            Action::Exit => self.done = true,
        }
    }

    fn spawn(&mut self, worker: Worker) -> Result<(), Cause> {
        let Assignment { plan, generation, .. } = &self.assignment;
        let run = self.release.run();
        if run.mixed && !self.mixed_release_told {
            self.mixed_release_told = true;
            ::log::warn!(
                "{} leads to another file by now; workers of generation {generation} run a mix of releases until a reload",
                self.release.path.display()
            );
        }
        let place = self.place(worker);
        let as_stdin = plan.handover.listen_as == ListenAs::Stdin;
        let command = Command {
            image: run.image,
            arguments: arguments(plan, place).map_err(Cause::CannotStart)?,
            environment: variables(plan, &self.common, place).map_err(Cause::CannotStart)?,
            listen_pid: !plan.listen.is_empty() && !as_stdin && plan.handover.listen_pid == ListenPid::Worker,
            stdin: if as_stdin { self.first_of(worker) } else { None },
            output: None,
            descriptors: if as_stdin { Vec::new() } else { self.given_to(worker) },
            // As stdin it is nowhere else.
            inherits_descriptors: !as_stdin,
            leads_group: true,
            keeps_mask: false,
            death_signal: Some(plan.tuning.stop.first_signal()),
            identity: Some(&self.identity),
        };
        let child = spawn(&command).map_err(|error| Cause::CannotStart(format!("could not be started: {error}")))?;
        let watched = self.poller.watch(&child, FIRST_SLOT + u64::from(worker.slot));
        self.roster.add(worker, child);
        if watched.is_err() {
            // Its exec cannot be watched; that it hangs would be noticed all the same, by its deadline.
            self.look_at_exec(worker.slot);
        }
        Ok(())
    }

    fn first_of(&self, worker: Worker) -> Option<BorrowedFd<'_>> {
        let places = queues::of_slot(&self.assignment.plan.listen, worker.slot);
        self.listeners.get(*places.first()?).map(AsFd::as_fd)
    }

    /// The listeners of a worker, unless it inherits them where they lie.
    fn given_to(&self, worker: Worker) -> Vec<BorrowedFd<'_>> {
        let places = queues::of_slot(&self.assignment.plan.listen, worker.slot);
        let inherits_all = places.iter().copied().eq(0..places.len());
        let given = places.into_iter().filter(|_| !inherits_all);
        given.filter_map(|at| self.listeners.get(at)).map(AsFd::as_fd).collect()
    }

    fn place(&self, worker: Worker) -> Place<'_> {
        Place {
            worker: worker.slot,
            generation: self.assignment.generation,
            main_pid: self.assignment.main_pid,
            monitor_pid: Pid::this().as_raw(),
            notify_socket: self.notify.name(),
            ack_socket: self.acks.as_ref().and_then(|acks| acks.path().to_str()),
        }
    }

    fn probe(&mut self, worker: Worker) {
        // One that has just ended needs none.
        let started = self.roster.pid_of(worker).map(|pid| self.start_probe(worker, pid));
        if let Some(Err(why)) = &started {
            ::log::warn!("the probe of worker {} could not be started: {why}", worker.slot);
        }
        if !matches!(started, Some(Ok(()))) {
            self.events.push_back(Event::Probed(worker, false));
        }
    }

    /// Runs the probe in the workers' directory, by a shell, without their listeners.
    fn start_probe(&mut self, worker: Worker, pid: Pid) -> Result<(), String> {
        let plan = &self.assignment.plan;
        let probe = plan.probe.as_deref().ok_or("there is none in the plan")?;
        let command = Command {
            image: Image::Path(c"/bin/sh".to_owned()),
            arguments: ["sh", "-c", probe].map(|argument| text::c_string(argument.as_ref())).to_vec(),
            environment: probe_variables(plan, &self.common, self.place(worker), pid.as_raw())?,
            listen_pid: false,
            stdin: None,
            output: None,
            descriptors: Vec::new(),
            inherits_descriptors: false,
            leads_group: true,
            keeps_mask: false,
            death_signal: Some(Signal::SIGKILL),
            identity: Some(&self.identity),
        };
        // What comes of its exec shows in how it ends.
        self.roster.add_probe(worker, spawn(&command).map_err(|error| error.to_string())?);
        Ok(())
    }

    fn probe_ended(&mut self, worker: Worker, exit: processes::Exit) {
        let succeeded = exit == processes::Exit::Code(0);
        if !succeeded {
            ::log::debug!("the probe of worker {} {}", worker.slot, Cause::from(exit));
        }
        self.events.push_back(Event::Probed(worker, succeeded));
    }

    /// An operator's signal, to all workers or one: to those that run their program. Returns how many got it.
    fn signal_as_asked(&mut self, number: i32, slot: Option<u32>) -> u32 {
        let Ok(signal) = Signal::try_from(number) else { return 0 };
        // Whoever has ended by now gets nothing.
        self.reap();
        let slots = slot.map_or(0..self.state.count(), |slot| slot..slot.saturating_add(1));
        let mut reached = 0;
        for slot in slots {
            self.look_at_exec(slot);
            let worker = self.roster.in_slot(slot).filter(|live| live.executing.is_none()).map(|live| live.worker);
            reached += u32::from(worker.is_some_and(|worker| self.signal(worker, signal)));
        }
        reached
    }

    /// Whether it was sent.
    fn signal(&mut self, worker: Worker, signal: Signal) -> bool {
        let Some(pid) = self.roster.pid_of(worker) else { return false };
        let sent = match signal {
            Signal::SIGKILL => processes::signal_group(pid, signal).and_then(|()| processes::signal_child(pid, signal)),
            _ => processes::signal_child(pid, signal),
        };
        if let Err(error) = sent {
            ::log::warn!("cannot send {} to worker {} (pid {pid}): {error}", signal.as_str(), worker.slot);
            return false;
        }
        true
    }

    fn report_status(&mut self) {
        let now = Instant::now();
        for slot in (0..self.state.count()).filter(|&slot| self.state.is_shown(slot)).collect::<Vec<_>>() {
            let view = self.state.view(slot);
            let status = WorkerStatus {
                slot,
                pid: self.roster.in_slot(slot).map(|live| live.pid().as_raw()),
                phase: view.phase.word().to_owned(),
                since: now.saturating_duration_since(view.since),
                respawns: view.respawns,
                last: self.roster.last_cause(slot).cloned().or_else(|| self.ended_under_another(slot)),
            };
            self.channel.send(&Report::Worker(status));
        }
        self.channel.send(&Report::StatusEnd);
    }

    fn ended_under_another(&self, slot: u32) -> Option<Cause> {
        self.assignment.ended.get(&slot).map(|code| Cause::Exited((*code).into()))
    }
}

fn acknowledge_at(path: &Path, poller: &Poller) -> io::Result<AckSocket> {
    AckSocket::bind(path, poller, ACKS)
        .map_err(|error| io::Error::other(format!("cannot listen on {}: {error}", path.display())))
}

fn settings(assignment: &Assignment, has_listener: bool) -> Settings {
    let plan = &assignment.plan;
    Settings {
        workers: plan.workers,
        notify: assignment.notify,
        watch: match plan.ready {
            Ready::Accept => Watch::Always,
            Ready::Exec => Watch::Probe,
            Ready::Auto if has_listener || assignment.accept => Watch::IfSeeable,
            Ready::Auto if assignment.shares_ports => Watch::IfItListens,
            Ready::Auto | Ready::Notify | Ready::Alive => Watch::No,
        },
        has_listener,
        tuning: plan.tuning.clone(),
        ended: assignment.ended.keys().copied().collect(),
        trial: assignment.trial,
        seed: Pid::this().as_raw().unsigned_abs().into(),
    }
}
