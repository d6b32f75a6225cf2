//! Performs the actions that the state decides.

use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use super::notes;
use super::{FIRST_EXEC, FIRST_NOTIFY, Monitor, token};
use crate::config::{ListenAs, ListenPid, Plan, text};
use crate::control::monitor::messages::Report;
use crate::monitor::decide::{Action, Event, Note, Worker};
use crate::readiness::notify::NotifySocket;
use crate::readiness::watch::{self, Listeners};
use crate::sockets::queues;
use crate::sys::descriptors::FIRST;
use crate::sys::errno::words;
use crate::sys::processes;
use crate::worker::cause::Cause;
use crate::worker::dialects::WorkerContext;
use crate::worker::environment::{arguments, mold_variables, probe_variables, variables};
use crate::worker::spawn::{Image, LISTEN_PID, NewProcess, Place, WATCHDOG_PID, spawn};

impl Monitor {
    pub(super) fn perform(&mut self, action: Action) {
        match action {
            Action::Spawn(worker) => {
                if let Err(cause) = self.spawn(worker) {
                    self.events.push_back(Event::Ended(worker, cause));
                }
            }
            Action::Fork(worker, ticket) => self.ask_mold(worker, ticket),
            Action::Adopt(worker) => self.adopt(worker),
            Action::Dismiss => self.dismiss_mold(),
            Action::WantAsMold(worker) => self.want_as_mold(worker),
            Action::Decline(worker) => self.decline(worker),
            Action::Promote(worker, mold) => self.promote(worker, mold),
            Action::Look(worker) => {
                self.look(worker, |pid, listeners| Event::Seen(worker, watch::look(pid, listeners)))
            }
            Action::Examine(worker) => {
                self.look(worker, |pid, listeners| Event::Examined(worker, watch::bypass(pid, listeners)));
            }
            Action::Probe(worker) => self.probe(worker),
            Action::EndProbe(worker) => self.roster.kill_probe(worker),
            Action::Measure(workers) => self.measure(workers),
            Action::EndMeasurement => self.roster.end_measurement(),
            Action::Signal(worker, signal) => self.stop(worker, signal),
            Action::SignalGroup(worker, signal) => self.roster.signal_left_behind(worker, signal),
            Action::GiveUp(worker) => {
                let pids = self.roster.give_up(worker);
                let known = pids.into_iter().map(|pid| (pid.as_raw(), processes::started(pid))).collect();
                self.talk.channel.send(&Report::GivenUp(known));
            }
            Action::CloseListeners => {
                self.sockets.placed.clear();
                if let Some(sharing) = &mut self.sockets.sharing {
                    sharing.let_go();
                }
            }
            Action::Report(report) => {
                if let Report::Died { slot, cause } = &report {
                    self.roster.explain(*slot, cause);
                }
                self.talk.channel.send(&report);
            }
            Action::Note(note) if notes::Held::concerns(&note, &self.assignment.plan.tuning.stop) => {
                let pid = match note {
                    Note::Respawning(worker, ..) | Note::MoldFailed { worker, .. } => self.roster.shown_pid(worker),
                    _ => None,
                };
                let last_lines = self.last_lines_of(&note);
                self.held_notes.hold(note, pid, last_lines);
            }
            Action::Note(note) => {
                let generation = self.assignment.generation;
                if matches!(note, Note::GaveUp(_)) {
                    self.held_notes.write_all(generation);
                }
                let last_lines = self.last_lines_of(&note);
                notes::write(&note, generation, |worker| self.roster.shown_pid(worker), &last_lines);
            }
            Action::Exit => self.done = true,
        }
    }

    /// A worker that has ended is not looked at.
    fn look(&mut self, worker: Worker, look: impl FnOnce(Pid, &Listeners) -> Event) {
        let used = || clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from);
        let before = used();
        self.events.extend(self.roster.pid_of(worker).map(|pid| look(pid, &self.sockets.accepted_on)));
        self.events.push_back(Event::Looked(used().saturating_sub(before)));
    }

    fn spawn(&mut self, worker: Worker) -> Result<(), Cause> {
        if let Err(place) = self.sockets.placed.of_slot(&self.assignment.plan.listen, place_of(worker)) {
            self.talk.channel.send(&Report::QueueMissing { place });
            let why = "could not be started: its queue has not come from main, which is asked for it again";
            return Err(Cause::CannotStart(why.to_owned()));
        }
        let output = self.open_output(worker).map_err(|error| Cause::CannotStart(words(&error)))?;
        // A mold passes its descriptors on to all workers.
        let mold = match worker.is_mold() {
            true => Some(self.open_line().map_err(|error| Cause::CannotStart(words(&error)))?),
            false => None,
        };
        let plan = &self.assignment.plan;
        // On a socket of its own, a message is known to be this worker's even if its sender has ended.
        let own =
            (mold.is_none() && self.roster.count() < self.talk.own_sockets).then(|| NotifySocket::new().ok()).flatten();
        let own = own.filter(|own| self.poller.watch(own, token(FIRST_NOTIFY, worker)).is_ok());
        let place = self.place(worker, own.as_ref().unwrap_or(&self.talk.notify).name());
        let as_stdin = plan.handover.listen_as == ListenAs::Stdin;
        let mut environment = variables(plan, &self.program.common, place).map_err(Cause::CannotStart)?;
        let mut descriptors = if as_stdin { Vec::new() } else { self.given_to(worker) };
        if let Some(mold) = &mold {
            descriptors.push(mold.as_fd());
            mold_variables(&mut environment, FIRST + descriptors.len() as RawFd - 1);
        }
        let command = NewProcess {
            image: self.program.release.image(),
            arguments: arguments(plan, place).map_err(Cause::CannotStart)?,
            environment,
            pid_variables: if mold.is_none() { pid_variables(plan) } else { Vec::new() },
            stdin: if as_stdin { self.first_of(worker) } else { None },
            output: output.ends(),
            opens_output_anew: true,
            descriptors,
            // As stdin it needs no other number.
            inherits_descriptors: !as_stdin,
            leads_group: true,
            keeps_mask: false,
            death_signal: Some(plan.tuning.stop.first_signal()),
            identity: Some(Rc::clone(&self.program.identity)),
            place: Place {
                cpus: self.program.identity.cpus((!worker.is_mold()).then_some(worker.slot)),
                cgroup: self.program.cgroup.as_ref().map(AsFd::as_fd),
            },
        };
        let child =
            spawn(command).map_err(|error| Cause::CannotStart(format!("could not be started: {}", words(&error))))?;
        drop(mold);
        drop(output);
        let watched = self.poller.watch(&child, token(FIRST_EXEC, worker));
        self.roster.add(worker, child, own);
        self.talk.unannounced.push(worker);
        if watched.is_err() {
            self.look_at_unwatched_exec(worker);
        }
        Ok(())
    }

    /// Tells main of the workers that were started a moment ago. The start of the others does not wait for it.
    pub(super) fn announce(&mut self) {
        for worker in std::mem::take(&mut self.talk.unannounced) {
            let Some(live) = self.roster.live(worker) else { continue };
            let pid = live.pid();
            live.started = processes::started(pid);
            self.talk.channel.send(&Report::Forked { slot: worker.slot, pid: pid.as_raw(), started: live.started });
        }
    }

    fn first_of(&self, worker: Worker) -> Option<BorrowedFd<'_>> {
        let found = self.sockets.placed.of_slot(&self.assignment.plan.listen, place_of(worker)).ok()?;
        found.first().copied().map(AsFd::as_fd)
    }

    /// The listeners that a worker is given. The others are inherited at their numbers.
    fn given_to(&self, worker: Worker) -> Vec<BorrowedFd<'_>> {
        let places = queues::of_slot(&self.assignment.plan.listen, place_of(worker));
        if !worker.is_mold() && places.iter().copied().eq(0..places.len()) {
            return Vec::new();
        }
        let given = self.sockets.placed.of_slot(&self.assignment.plan.listen, place_of(worker)).unwrap_or_default();
        given.into_iter().map(AsFd::as_fd).collect()
    }

    fn place<'a>(&'a self, worker: Worker, notify_socket: &'a str) -> WorkerContext<'a> {
        WorkerContext {
            worker: place_of(worker),
            generation: self.assignment.generation,
            starts: self.assignment.starts.max(1) + worker.life - 1,
            main_pid: self.assignment.main_pid,
            monitor_pid: Pid::this().as_raw(),
            notify_socket,
            ack_socket: self.talk.acks.as_ref().and_then(|acks| acks.path().to_str()),
        }
    }

    fn probe(&mut self, worker: Worker) {
        // A worker that has just ended needs no probe.
        let started = self.roster.pid_of(worker).map(|pid| self.start_probe(worker, pid));
        if let Some(Err(why)) = &started {
            log::warn!("the probe of worker {} could not be started: {why}", worker.slot);
        }
        if !matches!(started, Some(Ok(()))) {
            self.events.push_back(Event::Probed(worker, false));
        }
    }

    /// Runs the probe with a shell, in the workers' directory, without their listeners.
    fn start_probe(&mut self, worker: Worker, pid: Pid) -> Result<(), String> {
        let plan = &self.assignment.plan;
        let probe = plan.probe.as_deref().ok_or("there is none in the plan")?;
        let command = NewProcess {
            image: Image::Path(c"/bin/sh".to_owned()),
            arguments: ["sh", "-c", probe].map(|argument| text::c_string(argument.as_ref())).to_vec(),
            environment: probe_variables(
                plan,
                &self.program.common,
                self.place(worker, self.talk.notify.name()),
                pid.as_raw(),
            )?,
            pid_variables: Vec::new(),
            stdin: None,
            output: [None; 2],
            opens_output_anew: true,
            descriptors: Vec::new(),
            inherits_descriptors: false,
            leads_group: true,
            keeps_mask: false,
            death_signal: Some(Signal::SIGKILL),
            identity: Some(Rc::clone(&self.program.identity)),
            place: Place { cpus: None, cgroup: self.program.cgroup.as_ref().map(AsFd::as_fd) },
        };
        // If its exec fails, its exit code shows that.
        self.roster.add_probe(worker, spawn(command).map_err(|error| words(&error))?);
        Ok(())
    }

    /// Sends a signal of a stop schedule, and CONT, so that a stopped worker or group can obey.
    fn stop(&mut self, worker: Worker, signal: Signal) {
        if self.signal(worker, signal)
            && processes::needs_to_run(signal)
            && let Some(pid) = self.roster.pid_of(worker)
        {
            // If this is refused, the signal was refused too, and that has been logged.
            let _ = processes::signal_group(pid, Signal::SIGCONT);
        }
    }

    /// Returns whether the signal was sent.
    pub(super) fn signal(&mut self, worker: Worker, signal: Signal) -> bool {
        let Some(pid) = self.roster.pid_of(worker) else { return false };
        self.look_at_exec(worker);
        // Before its exec it shares our memory, and until Linux 5.16 its core dump would end us as well.
        let is_executing = self.roster.live(worker).is_some_and(|live| live.executing.is_some());
        let signal = if is_executing && processes::dumps_core(signal) { Signal::SIGKILL } else { signal };
        let sent = match signal {
            // If the worker itself cannot be reached, the other processes of its group can.
            Signal::SIGKILL => {
                let group = processes::signal_group(pid, signal);
                processes::signal_child(pid, signal).and(group)
            }
            _ => processes::signal_child(pid, signal),
        };
        let Err(error) = sent else { return true };
        let live = self.roster.live(worker);
        if live.is_some_and(|live| !std::mem::replace(&mut live.refuses, true)) {
            log::warn!(
                "cannot send {} to {worker} (pid {pid}): {}",
                signal.as_str(),
                processes::why_not_signalled(&error)
            );
        }
        false
    }
}

/// The variables of a worker that name its pid.
fn pid_variables(plan: &Plan) -> Vec<&'static str> {
    let names_it = plan.handover.listen_pid == ListenPid::Worker;
    let listens = !plan.listen.is_empty() && plan.handover.listen_as == ListenAs::Fds;
    let given = [(LISTEN_PID, listens), (WATCHDOG_PID, plan.watchdog.is_some())];
    given.into_iter().filter(|(_, is_given)| *is_given && names_it).map(|(name, _)| name).collect()
}

/// The slot whose queues a process gets. A mold gets those of slot 0, which stand for all.
fn place_of(worker: Worker) -> u32 {
    if worker.is_mold() { 0 } else { worker.slot }
}
