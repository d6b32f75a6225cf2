//! Applies the reports of monitors to their generation.

use std::time::{Duration, Instant};

use super::generation::Phase;
use super::generations::Generations;
use super::vocabulary::{Action, Monitor, Note};
use crate::config::Ready;
use crate::control::monitor::messages::{MAX_EXTENSION, Report, Urgency};
use crate::worker::cause::Cause;

impl Generations {
    pub(super) fn on_report(&mut self, monitor: Monitor, report: Report, now: Instant, actions: &mut Vec<Action>) {
        if let (Report::Extends { by, .. }, Some(draining)) = (&report, self.draining.get_mut(&monitor)) {
            draining.extend(now + (*by).min(MAX_EXTENSION));
        }
        if self.starting.as_ref().is_some_and(|(starting, _)| starting.monitor() == Some(monitor)) {
            self.on_report_of_starting(report, now, actions);
        } else if self.serving.as_ref().is_some_and(|serving| serving.monitor() == Some(monitor)) {
            self.on_report_of_serving(report, now, actions);
        } else if let Some(back) = self.falling_back.as_mut().filter(|back| back.failed.monitor() == Some(monitor)) {
            match report {
                Report::Retired { slot, empty } => back.failed.note_retired(slot, empty),
                Report::Gone { .. } => back.failed.note_gone(),
                _ => {}
            }
            self.fall_back(now, actions);
        }
    }

    fn on_report_of_starting(&mut self, report: Report, now: Instant, actions: &mut Vec<Action>) {
        let Some((starting, deadline)) = &mut self.starting else { return };
        let ready_timeout = starting.settings.tuning.ready_timeout;
        match report {
            Report::Listens { slot, withdrawn } => {
                let rolled = matches!(starting.phase, Phase::Rolling);
                let was_whole = starting.note_listening(slot, withdrawn);
                // It was ready in time. More was asked afterwards, so the deadline moves.
                *deadline = match was_whole {
                    true if rolled => now + ready_timeout,
                    true => (*deadline).max(now + ready_timeout),
                    false => *deadline,
                };
            }
            Report::Ready { slot, notified, seen } => {
                starting.note_ready(slot, notified, seen);
                self.logged.bypass = self.logged.bypass.filter(|_| !seen);
                self.settle_starting(now, actions);
            }
            Report::Retired { slot, empty } => {
                starting.note_retired(slot, empty);
                self.settle_starting(now, actions);
                self.go_on_rolling(now, actions);
            }
            Report::Gone { .. } => {
                starting.note_gone();
                self.go_on_rolling(now, actions);
            }
            Report::Unseeable { slot, why } => {
                starting.shown.unseeable.insert(slot, why.clone());
                let (number, ready) = (starting.number, starting.settings.ready);
                self.tell_unseeable(number, ready, why, actions);
            }
            Report::Bypasses { slot, own } => {
                starting.shown.bypass = Some((slot, own.clone()));
                let number = starting.number;
                self.tell_bypass(number, slot, own, actions);
            }
            // What is waited for now depends on the workers of the other generation.
            Report::Extends { .. } if matches!(starting.phase, Phase::Rolling) => {}
            Report::Suspended { slot, suspended: false } => drop(starting.shown.suspended.remove(&slot)),
            Report::Suspended { slot, .. } => {
                starting.note_suspended(slot);
                // It was ready in time, so it gets more time.
                if matches!(starting.phase, Phase::Baking { .. }) {
                    *deadline = (*deadline).max(now + ready_timeout);
                }
            }
            Report::Extends { by, .. } => {
                *deadline = (*deadline).max(now + by.min(MAX_EXTENSION));
            }
            Report::Died { slot, cause } => self.reject(Some(slot), cause, now, actions),
            Report::CannotBegin(cause) | Report::MoldFailed(cause) => self.reject(None, cause, now, actions),
            _ => {}
        }
    }

    fn on_report_of_serving(&mut self, report: Report, now: Instant, actions: &mut Vec<Action>) {
        let Some(serving) = &mut self.serving else { return };
        match report {
            Report::Executed if !self.has_run => {
                self.has_run = true;
                actions.push(Action::Note(Note::Began));
            }
            Report::Ready { slot, notified, seen } => {
                serving.note_ready(slot, notified, seen);
                self.logged.bypass = self.logged.bypass.filter(|_| !seen);
                self.settle_serving(now);
                self.fall_back(now, actions);
            }
            Report::Listens { slot, withdrawn } => {
                serving.note_listening(slot, withdrawn);
            }
            Report::Retired { slot, empty } => {
                serving.note_retired(slot, empty);
                self.settle_serving(now);
                self.go_on_rolling(now, actions);
            }
            Report::Gone { .. } => {
                serving.note_gone();
                self.go_on_rolling(now, actions);
            }
            Report::Unseeable { why, .. } => {
                let (number, ready) = (serving.number, serving.settings.ready);
                self.tell_unseeable(number, ready, why, actions);
            }
            Report::Bypasses { slot, own } => {
                let number = serving.number;
                self.tell_bypass(number, slot, own, actions);
            }
            Report::Extends { by, .. } => {
                serving.extended_to = serving.extended_to.max(Some(now + by.min(MAX_EXTENSION)));
            }
            Report::Died { slot, cause } => {
                serving.shown.ready.remove(&slot);
                serving.shown.seen.remove(&slot);
                self.settle_serving(now);
                let code = cause.exit_code();
                self.end_if_first_start(cause, code, now, actions);
            }
            Report::MoldFailed(cause) => {
                let code = cause.exit_code();
                self.end_if_first_start(cause, code, now, actions);
            }
            Report::CannotBegin(cause) => {
                let code = cause.exit_code().or(Some(125));
                self.end_if_first_start(cause, code, now, actions);
            }
            Report::EndedForGood { slot, code } => self.on_ended_for_good(slot, code, now, actions),
            Report::GaveUp => {
                actions.push(Action::Note(Note::GaveUp(serving.number)));
                self.stop(Urgency::Graceful, 1, now, actions);
            }
            _ => {}
        }
    }

    pub(super) fn settle_serving(&mut self, now: Instant) {
        let Some(serving) = &mut self.serving else { return };
        // In that case the program has shown more than being alive, and need not live through the bake.
        let shown = matches!(serving.settings.ready, Ready::Notify | Ready::Accept | Ready::Exec)
            || serving.all_notified()
            || serving.all_seen();
        let bake = if shown { Duration::ZERO } else { serving.settings.tuning.bake };
        serving.settle(bake, now);
    }

    /// Logged once, because it holds for every worker of the program.
    fn tell_unseeable(&mut self, generation: u32, ready: Ready, why: String, actions: &mut Vec<Action>) {
        if ready.looks_where_it_can() && !std::mem::replace(&mut self.logged.unseeable, true) {
            actions.push(Action::Note(Note::Unseeable(generation, why)));
        }
    }

    /// Logged again only if the mistake is another one, or if a worker was seen accepting in between.
    fn tell_bypass(&mut self, generation: u32, slot: u32, own: Vec<String>, actions: &mut Vec<Action>) {
        if self.logged.bypass.replace(!own.is_empty()) != Some(!own.is_empty()) {
            actions.push(Action::Note(Note::Bypasses(generation, slot, own)));
        }
    }

    /// At the first start there is no older release, and a program that cannot be executed will fail again.
    fn end_if_first_start(&mut self, cause: Cause, code: Option<u8>, now: Instant, actions: &mut Vec<Action>) {
        let Some(code) = code.filter(|_| !self.has_run && self.last_number == 1) else { return };
        actions.push(Action::Note(Note::Fatal(cause)));
        self.stop(Urgency::Quick, code, now, actions);
    }
}
