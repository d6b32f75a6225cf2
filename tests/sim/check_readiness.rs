//! The book of what one worker has shown of its readiness, by the measure that its monitor was given.

use std::time::Duration;

use panzer::monitor::decide::{Settings, Watch};
use panzer::readiness::watch::Sight;

use crate::check::{Checked, SLACK, hold};
use crate::kernel::Time;

/// The longest pauses between two looks at a worker, and between two probes of it, as the state has them.
const MAX_PAUSE: Time = Time::from_millis(50);
const MAX_PROBE_PAUSE: Time = Time::from_millis(500);

/// How long a worker must be hidden without a break, and how often its slot's time is doubled, as the state has it.
const HIDDEN_FOR_GOOD: Time = Time::from_secs(1);
const MAX_DOUBLINGS: u32 = 4;

#[derive(Debug, Default)]
pub(crate) struct Readiness {
    pub(crate) executed: Option<Time>,
    /// It was told to end: what it shows from then on makes nobody ready.
    pub(crate) ended: bool,
    pub(crate) notified: bool,
    pub(crate) seen: bool,
    /// It could not be seen whether it accepts, for long enough, and since when.
    pub(crate) hidden: bool,
    hidden_since: Option<Time>,
    probed: bool,
    /// So many before it in its slot were not ready in time.
    unready: u32,
    pub(crate) listens: bool,
    /// A worker before it in its slot listened.
    listened_before: bool,
    /// A signal has stopped it: nothing that it has done before makes it ready.
    pub(crate) halted: bool,
    /// It has shown all that is asked of it.
    pub(crate) ready: bool,
    /// By when it must be ready, and until when it is so for no more than being alive.
    due: Time,
    unproven: Time,
    /// Until when it may take by its own word.
    extended_to: Time,
    /// Reports that have been sent: that it is ready, at all, and of having said so; that it listens; that it is hidden.
    pub(crate) ready_told: bool,
    pub(crate) notified_told: bool,
    listens_told: bool,
    hidden_told: bool,
    /// When it was last looked at.
    looked: Time,
    /// When the last probe of it ended, or it was first to be probed.
    asked: Option<Time>,
}

impl Readiness {
    /// Of the slot's next worker.
    pub(crate) fn next(&self) -> Readiness {
        let listened_before = self.listened_before || self.listens;
        Readiness { listened_before, unready: self.unready, ..Readiness::default() }
    }

    pub(crate) fn executed(&mut self, now: Time, wanted: &Settings) {
        if self.executed.is_none() {
            (self.executed, self.due) = (Some(now), now + self.ready_time(wanted));
        }
        self.looked = self.looked.max(now);
        self.settle(now, wanted);
    }

    /// How long it may take.
    pub(crate) fn ready_time(&self, wanted: &Settings) -> Duration {
        wanted.tuning.ready_timeout * (1 << self.unready.min(MAX_DOUBLINGS))
    }

    /// It is said to be ended for not being ready in time; whether it is so, and the next one has so much.
    pub(crate) fn timed_out(&mut self, now: Time, (time, next): (Duration, Duration), wanted: &Settings) -> bool {
        let is_own = self.extended_to == Time::ZERO;
        let overdue = self.due().is_some_and(|due| due <= now) && (!is_own || time == self.ready_time(wanted));
        self.unready += 1;
        overdue && next == self.ready_time(wanted)
    }

    /// It has so much time from now on.
    pub(crate) fn extends(&mut self, now: Time, by: Time) {
        if self.executed.is_some() && !self.ready {
            self.due = self.due.max(now + by);
            self.extended_to = self.due;
        }
    }

    pub(crate) fn notified(&mut self, now: Time, wanted: &Settings) {
        self.notified = true;
        self.settle(now, wanted);
    }

    /// One that was ready for no more than being alive no longer is, on trial, or where it happens within the bake.
    pub(crate) fn listens(&mut self, now: Time, on_trial: bool, wanted: &Settings) {
        if std::mem::replace(&mut self.listens, true) || wanted.watch != Watch::IfItListens {
            return;
        }
        if !self.ready {
            self.asked = None;
        } else if !self.seen && !self.hidden && (on_trial || now < self.unproven) {
            self.due = now + self.ready_time(wanted);
            (self.ready, self.ready_told, self.notified_told) = (false, false, false);
        }
        self.looked = now;
    }

    pub(crate) fn seen(&mut self, now: Time, sight: Sight, wanted: &Settings) {
        let patience = HIDDEN_FOR_GOOD.min(wanted.tuning.ready_timeout / 2);
        if !self.is_looked_at(wanted) {
            return;
        }
        match sight {
            Sight::Accepting if self.halted => {}
            Sight::Accepting => (self.seen, self.hidden, self.hidden_since) = (true, false, None),
            Sight::NotYet(_) => (self.hidden, self.hidden_since) = (false, None),
            Sight::Unseeable(_) => {
                self.hidden |= now >= *self.hidden_since.get_or_insert(now) + patience;
            }
        }
        self.settle(now, wanted);
    }

    /// `ended` where it was told to end before.
    pub(crate) fn probed(&mut self, now: Time, succeeded: bool, ended: bool, wanted: &Settings) {
        self.probed = succeeded && !ended && !self.halted && self.is_probed(wanted);
        self.asked = self.asked.map(|_| now);
        self.settle(now, wanted);
    }

    pub(crate) fn continued(&mut self, now: Time, wanted: &Settings) {
        self.halted = false;
        self.settle(now, wanted);
    }

    fn settle(&mut self, now: Time, wanted: &Settings) {
        if let Some(executed) =
            self.executed.filter(|_| !self.ready && !self.ended && !self.halted && self.has_shown(wanted))
        {
            (self.ready, self.unproven) = (true, executed + wanted.tuning.bake);
            self.unready = 0;
        }
        // A success counts when it comes, or never.
        self.probed = false;
        self.asked = self.is_probed(wanted).then(|| self.asked.unwrap_or(now));
    }

    /// Whether its death is that of a ready worker: it has shown that it is, or has lived through the bake.
    pub(crate) fn had_become_ready(&self, now: Time, is_probed: bool) -> bool {
        self.ready && (self.seen || self.notified || is_probed || now >= self.unproven)
    }

    /// From its commit on a generation's workers are timed each by itself.
    pub(crate) fn committed(&mut self, now: Time, wanted: &Settings) {
        self.due = (now + self.ready_time(wanted)).max(self.extended_to);
    }

    /// Whether it was seen accepting, where that is asked of it and can be seen.
    fn has_shown_itself(&self, wanted: &Settings) -> bool {
        match wanted.watch {
            Watch::No => true,
            Watch::Always => self.seen,
            Watch::IfSeeable => self.seen || self.hidden,
            Watch::IfItListens => self.seen || self.hidden || !self.has_listener(),
        }
    }

    fn has_shown(&self, wanted: &Settings) -> bool {
        let word = if wanted.probe { self.probed } else { self.seen || self.notified || !wanted.notify };
        self.has_shown_itself(wanted) && word
    }

    fn has_listener(&self) -> bool {
        self.listens || self.listened_before
    }

    /// Whether it is to be looked at. A worker that is ready never is.
    pub(crate) fn is_looked_at(&self, wanted: &Settings) -> bool {
        let watched = match wanted.watch {
            Watch::No => false,
            Watch::Always | Watch::IfSeeable => true,
            Watch::IfItListens => self.has_listener(),
        };
        watched && !self.seen && self.executed.is_some() && !self.ready
    }

    /// Whether it is to be probed.
    pub(crate) fn is_probed(&self, wanted: &Settings) -> bool {
        wanted.probe && self.executed.is_some() && !self.ready && self.has_shown_itself(wanted)
    }

    /// By when it must be ready.
    pub(crate) fn due(&self) -> Option<Time> {
        self.executed.filter(|_| !self.ready).map(|_| self.due)
    }

    pub(crate) fn looked_at(&mut self, now: Time) {
        self.looked = now;
    }

    /// The next look is overdue, or with no probe under way the next of those.
    pub(crate) fn is_neglected(&self, now: Time, probe_runs: bool, wanted: &Settings) -> bool {
        let unseen = self.is_looked_at(wanted) && now > self.looked + MAX_PAUSE + SLACK;
        let asked = self.asked.filter(|_| !probe_runs);
        unseen || asked.is_some_and(|asked| now > asked + MAX_PROBE_PAUSE + SLACK)
    }

    pub(crate) fn listens_is_told(&mut self) -> Checked {
        let first = !std::mem::replace(&mut self.listens_told, true);
        hold(first && self.listens, 0, || "that a worker listens is told twice, or is not so".to_owned())
    }

    pub(crate) fn hidden_is_told(&mut self) -> Checked {
        let first = !std::mem::replace(&mut self.hidden_told, true);
        hold(first && self.hidden, 0, || "that a worker cannot be seen is told twice, or is not so".to_owned())
    }

    /// What main must know by now.
    pub(crate) fn check_told(&self, wanted: &Settings) -> Checked {
        let ready = self.ready_told && (self.notified_told || !self.notified);
        hold(!self.ready || ready, 0, || "that a worker is ready is not told".to_owned())?;
        let minds = matches!(wanted.watch, Watch::IfItListens | Watch::IfSeeable);
        hold(!minds || self.listens == self.listens_told, 0, || "that a worker listens is not told".to_owned())?;
        hold(!self.hidden || self.hidden_told, 0, || "that a worker cannot be seen is not told".to_owned())
    }
}
