//! Performs what the state decides.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::log;
use super::run::{FIRST_SLOT, Monitor};
use super::state::{Action, Event, Worker};
use crate::config::{ListenAs, ListenPid, text};
use crate::control::messages::Assignment;
use crate::readiness::watch;
use crate::sockets::queues;
use crate::sys::processes;
use crate::worker::cause::Cause;
use crate::worker::environment::{Place, arguments, probe_variables, variables};
use crate::worker::spawn::{Command, Image, spawn};

impl Monitor {
    pub(super) fn perform(&mut self, action: Action) {
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
            opens_output_anew: true,
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
            self.look_at_unwatched_exec(worker.slot);
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
            starts: self.assignment.starts.max(1) + worker.life - 1,
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
            opens_output_anew: true,
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

    /// Whether it was sent.
    pub(super) fn signal(&mut self, worker: Worker, signal: Signal) -> bool {
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
}
