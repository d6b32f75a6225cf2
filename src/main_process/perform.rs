//! Performs what the state decides.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::decide::restart;
use super::decide::{Action, Event, Monitor, Note, Verdict};
use super::main::Main;
use super::operators::messages;
use super::processes::children::{FirstWord, LONGEST_SILENCE, Running};
use crate::config::{Plan, text};
use crate::control::environment::OWN_IMAGE;
use crate::control::monitor::channel::Channel;
use crate::control::monitor::messages::{Assignment, Order, VERSION};
use crate::sys::errno::words;
use crate::sys::{memfd, processes};
use crate::worker::cause::Cause;
use crate::worker::spawn::{Command, Image, spawn};

/// The version of the protocol that has [`Order::Own`].
const ASKED_SINCE: u32 = 2;

impl Main {
    pub(crate) fn perform(&mut self, action: Action) {
        match action {
            Action::Plan(generation) => self.plan_generation(generation),
            Action::GiveUpPlan(generation) => self.give_up_plan(generation),
            Action::Tune(generation, tuning) => {
                if let Some(plan) = self.plans.get_mut(&generation) {
                    plan.tuning.clone_from(&tuning);
                }
                if let Some(running) = self.children.of_generation(generation) {
                    running.channel.send(&Order::Tune(Box::new(tuning)));
                }
            }
            Action::Scaled { request, from, to } => {
                if let Some(client) = request {
                    self.operators.scaled(client, from, to);
                } else if let Err(why) = to {
                    log::warn!("{why}");
                }
            }
            Action::StartMonitor { monitor, workers, ended, trial, notify, accept } => {
                if trial {
                    self.ask_what_serves_by_itself();
                }
                if let Err(error) = self.start_monitor(monitor, (workers, ended), (trial, notify, accept)) {
                    let cause = Cause::CannotStart(format!("could not be started: {}", words(&error)));
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
                self.children.signal_unreached(monitor, signal, |pid| processes::has_changed_user(pid, given));
            }
            Action::SignalOrphans(monitor, signal) => self.children.signal_orphans(monitor, signal),
            Action::GiveUpOrphans(monitor) => {
                for pid in self.children.give_up(monitor) {
                    let whose = format!("generation {}", monitor.generation);
                    log::error!("{}", processes::does_not_end(pid, &whose));
                }
            }
            Action::CloseListeners => {
                self.children.hasten_silent(Instant::now());
                self.guard.clear(&self.poller);
                self.unix_guard.clear(&self.held, &self.poller);
                self.give_up_emptying();
                self.give_up_planning();
                self.held.close();
                for claimant in self.shares.close() {
                    self.not_shared(claimant, None);
                }
                self.go_on_with_restart(restart::Event::Stopping);
            }
            Action::Release(generation) => {
                self.found.remove(&generation);
                self.plans.remove(&generation);
                self.operators.gone(generation);
                self.ack_paths.remove(generation);
                self.shares.release(generation, Instant::now());
                self.conflicts.forget(generation);
                self.close_dropped();
                self.put_listeners_right();
            }
            Action::Promise(client, generation) => {
                let starting = self.state.progress().map(|progress| progress.generation);
                self.operators.promised(client, generation, starting);
            }
            Action::Verdict(generation, verdict) => {
                self.counters.judged(&verdict);
                if matches!(verdict, Verdict::Serves(..)) {
                    self.runs_by_plan_of(generation);
                    self.adopt_listeners_of(generation);
                }
                self.put_listeners_right();
                self.operators.judged(generation, &verdict, || match &verdict {
                    Verdict::Rejected(why) => {
                        let plan = self.plans.get(&generation).unwrap_or(&self.plan);
                        messages::rejected(generation, why, plan, &self.conflicts) + messages::place(why)
                    }
                    Verdict::Serves(..) | Verdict::Stopped => String::new(),
                });
            }
            Action::Note(Note::Began) => {
                messages::began(&self.plan, self.pid_file.path());
                messages::multiplied(&self.plan, self.environment.inherited(messages::WEB_CONCURRENCY));
            }
            Action::Note(Note::Rejected(generation, why)) => {
                let plan = self.plans.get(&generation).unwrap_or(&self.plan);
                log::error!("{}", messages::rejected(generation, &why, plan, &self.conflicts));
            }
            Action::Note(Note::Bypasses(generation, slot, own)) => {
                let plan = self.plans.get(&generation).unwrap_or(&self.plan);
                log::warn!("worker {slot} of generation {generation} {}", messages::bypasses(&own, plan));
            }
            Action::Note(note) => {
                messages::write(&note);
                if matches!(note, Note::Serving(..) | Note::Committed(..)) {
                    self.ask_what_serves_by_itself();
                }
            }
            Action::Exit(code) => {
                self.operators.ended(code);
                self.exit = Some(code);
            }
        }
    }

    /// The answer is told if the next generation fails, and the monitor tells of unix paths. A monitor of an older build is not asked.
    pub(crate) fn ask_what_serves_by_itself(&mut self) {
        let serving = self.serving();
        if let Some(running) = serving.and_then(|serving| self.children.of_generation(serving))
            && running.protocol >= ASKED_SINCE
        {
            running.channel.send(&Order::Own);
        }
    }

    pub(crate) fn start_monitor(
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
            starts: self.counters.started(),
            ended,
            trial,
            notify,
            accept,
            shares_ports: self.shares_ports,
            main_pid: Pid::this().as_raw(),
            ack_socket: self.ack_paths.of(monitor.generation),
            release_path: found.map(|found| found.path.clone()),
        };
        let document = memfd::write(&serde_json::to_vec(&assignment)?)?;
        let (channel, theirs) = Channel::pair()?;
        let mut descriptors = self.held.sockets(&plan.listen, workers, 0)?;
        let sockets = descriptors.len();
        descriptors.extend([theirs.as_fd(), document.as_fd()]);
        if let Some(found) = found {
            descriptors.extend([found.directory.as_fd(), found.program.as_fd(), found.findings.as_fd()]);
        }
        let title = format!("panzer: monitor [gen {}]", monitor.generation);
        let variables = self.environment.for_monitor(monitor.generation, sockets, found.is_some());
        let image = Image::Path(text::c_string(OWN_IMAGE.as_ref()));
        let role = Command::role(image, &title, variables, descriptors);
        // It notices by itself that main is gone, and needs its time then.
        let (leads_group, death_signal) = (false, None);
        let token = self.next_token;
        self.next_token += 1;
        // Before the fork: a monitor that could not be watched would run on beside the one that is started in its place.
        self.poller.watch(&channel, token)?;
        let command = Command { inherits_descriptors: true, keeps_mask: true, leads_group, death_signal, ..role };
        let child = spawn(&command).inspect_err(|_| self.poller.forget(&channel))?;
        let first_word = FirstWord::Until(Instant::now() + LONGEST_SILENCE);
        let (queues, asked) = (sockets, false);
        let running = Running { child, channel, asked, token, queues, workers, protocol: VERSION, first_word };
        self.children.add(monitor, running);
        Ok(())
    }
}
