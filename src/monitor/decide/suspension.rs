//! Workers that a signal has stopped: they are alive and do nothing. Such a worker is shown as stopped, and does not
//! become ready.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::slots::Slots;
use super::vocabulary::{Action, Note, Worker};
use crate::control::monitor::messages::Report;

/// If a worker is stopped again and again, for example by a tool that limits its CPU time, this is logged once in this
/// time.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// Somebody at a terminal stops a worker by these, and lets it go on; the watchdog waits. STOP is no excuse.
const JOB_CONTROL: [Signal; 3] = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];

impl Slots {
    pub(super) fn on_suspended(&mut self, worker: Worker, signal: Signal, now: Instant, actions: &mut Vec<Action>) {
        let trial = self.settings.trial && !worker.is_mold();
        let Some(slot) = self.slot_of(worker) else { return };
        slot.suspension.is_now = true;
        if JOB_CONTROL.contains(&signal) {
            slot.watchdog.pause();
        }
        if trial {
            actions.push(Action::Report(Report::Suspended { slot: worker.slot, suspended: true }));
        }
        if slot.suspension.told.is_none_or(|told| told + TOLD_EVERY <= now) {
            slot.suspension.told = Some(now);
            actions.push(Action::Note(Note::Suspended(worker, signal)));
        }
    }

    pub(super) fn on_continued(&mut self, worker: Worker, now: Instant, actions: &mut Vec<Action>) {
        let (trial, watchdog) = (self.settings.trial && !worker.is_mold(), self.settings.watchdog);
        let Some(slot) = self.slot_of(worker) else { return };
        slot.suspension.is_now = false;
        slot.watchdog.resume(watchdog, now);
        if trial {
            actions.push(Action::Report(Report::Suspended { slot: worker.slot, suspended: false }));
        }
        self.go_on(worker, now, actions);
    }
}
