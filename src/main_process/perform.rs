//! Performs the actions that the state decides.

use std::time::Instant;

use nix::sys::signal::Signal;

use super::decide::restart;
use super::decide::{Action, Event, Note, Verdict};
use super::main::Main;
use super::operators::messages;
use super::processes::monitor::Start;
use crate::control::monitor::messages::Order;
use crate::sys::errno::{unless_forbidden, words};
use crate::sys::processes;
use crate::worker::cause::Cause;

impl Main {
    pub(crate) fn perform(&mut self, action: Action) {
        match action {
            Action::Plan(generation) => self.plan_generation(generation),
            Action::GiveUpPlan(generation) => self.give_up_plan(generation),
            Action::Tune(generation, tuning) => {
                if let Some(plan) = self.configuration.plans.get_mut(&generation) {
                    plan.tuning.clone_from(&tuning);
                }
                if let Some(running) = self.children.of_generation(generation) {
                    running.channel.send(&Order::Tune(Box::new(tuning)));
                }
            }
            Action::Scaled { request, from, to } => {
                if let Some(client) = request {
                    self.operators.clients.scaled(client, from, to);
                } else if let Err(why) = to {
                    log::warn!("{why}");
                }
            }
            Action::StartMonitor { monitor, workers, ended, trial, notify, accept } => {
                if trial {
                    self.ask_what_serves_by_itself();
                    self.remember_settings(monitor.generation);
                }
                if let Err(error) = self.start_monitor(Start { monitor, workers, ended, trial, notify, accept }) {
                    let cause =
                        Cause::CannotStart(format!("could not be started: {}", words(&unless_forbidden(error))));
                    self.events.push_back(Event::NotStarted(monitor, cause));
                }
            }
            Action::Order(monitor, order) => self.order(monitor, order),
            Action::KillMonitor(monitor) => {
                if let Some(pid) = self.children.pid_of(monitor) {
                    // Cannot fail: it is an unreaped child of ours.
                    let _ = processes::signal_child(pid, Signal::SIGKILL);
                }
            }
            Action::SignalUnreached(monitor, signal) => {
                let given = self.configuration.found.get(&monitor.generation).and_then(|found| found.other_user);
                self.children.signal_unreached(monitor, signal, |pid| processes::has_changed_user(pid, given));
            }
            Action::SignalOrphans(monitor, signal) => self.children.signal_orphans(monitor, signal),
            Action::GiveUpOrphans(monitor) => {
                for pid in self.children.give_up(monitor) {
                    let whose = format!("generation {}", monitor.generation);
                    log::error!("{}", processes::does_not_end(pid, &whose));
                }
            }
            Action::CloseListeners => self.close_listeners(),
            Action::Release(generation) => self.release(generation),
            Action::Promise(client, generation) => {
                let starting = self.state.progress().map(|progress| progress.generation);
                self.operators.clients.promised(client, generation, starting);
            }
            Action::Verdict(generation, verdict) => {
                let verdict = self.hold_verdict(generation, verdict);
                verdict.into_iter().for_each(|verdict| self.pass_verdict(generation, &verdict));
            }
            Action::Note(note) => match &mut self.logger.held {
                Some(held) if matches!(&note, Note::Rejected(of, _) if *of == held.generation) => {
                    held.note = Some(note)
                }
                _ => self.log(note),
            },
            Action::Exit(code) => {
                self.report_held();
                self.exit = Some(code);
                self.outside.cgroups.iter_mut().for_each(|cgroups| cgroups.end_all(Instant::now()));
                self.tell_hooks_of_end(code);
            }
        }
    }

    fn close_listeners(&mut self) {
        self.children.shorten_silence(Instant::now());
        self.listeners.guard.clear(&self.poller);
        self.listeners.unix_guard.clear(&self.listeners.held, &self.poller);
        self.give_up_emptying();
        self.give_up_planning();
        self.listeners.held.close();
        for claimant in self.listeners.shares.close() {
            self.not_shared(claimant, None);
        }
        self.go_on_with_restart(restart::Event::Stopping);
    }

    fn release(&mut self, generation: u32) {
        self.report_held();
        self.outside.cgroups.iter_mut().for_each(|cgroups| cgroups.end(generation, Instant::now()));
        self.configuration.found.remove(&generation);
        self.configuration.plans.remove(&generation);
        self.operators.clients.gone(generation);
        self.operators.last_lines.retain(|(of, _), _| *of != generation);
        self.outside.ack_paths.remove(generation);
        self.listeners.shares.release(generation, Instant::now());
        self.listeners.conflicts.forget(generation);
        self.undo_settings(generation);
        self.close_dropped();
        self.put_listeners_right();
    }

    pub(crate) fn pass_verdict(&mut self, generation: u32, verdict: &Verdict) {
        self.operators.counters.judged(verdict);
        if matches!(verdict, Verdict::Serves(..)) {
            self.listeners.flags.end_trial();
            self.configuration.runs_by_plan_of(generation);
            self.adopt_listeners_of(generation);
        } else {
            self.undo_settings(generation);
        }
        self.put_listeners_right();
        self.tell_hooks_of_verdict(generation, verdict);
        self.operators.clients.judged(generation, verdict, || match verdict {
            Verdict::Rejected(why) => {
                let plan = self.configuration.plan_of(generation);
                let rejected = messages::rejected(generation, why, plan, &self.listeners.conflicts);
                rejected + messages::place(why) + &messages::last_lines(generation, why, &self.operators.last_lines)
            }
            Verdict::Serves(..) | Verdict::Stopped => String::new(),
        });
    }

    pub(crate) fn log(&mut self, note: Note) {
        match note {
            Note::Began => {
                messages::began(&self.configuration.plan, self.outside.pid_file.path());
                messages::multiplied(&self.configuration.plan, self.environment.inherited(messages::WEB_CONCURRENCY));
            }
            Note::Rejected(generation, why) => {
                let plan = self.configuration.plan_of(generation);
                let last_lines = messages::last_lines(generation, &why, &self.operators.last_lines);
                log::error!("{}{last_lines}", messages::rejected(generation, &why, plan, &self.listeners.conflicts));
            }
            Note::Bypasses(generation, slot, own) => {
                let plan = self.configuration.plan_of(generation);
                log::warn!("worker {slot} of generation {generation} {}", messages::bypasses(&own, plan));
            }
            note => {
                messages::write(&note);
                self.tell_hooks_of_note(&note);
                if matches!(note, Note::Serving(..) | Note::Committed(..)) {
                    self.ask_what_serves_by_itself();
                }
            }
        }
    }
}
