//! The book of what one worker has shown of its readiness, by the measure that its monitor was given.

use panzer::monitor::state::{Settings, Watch};
use panzer::readiness::watch::Sight;

use crate::check::{Checked, SLACK, hold};
use crate::kernel::Time;

/// The longest pauses between two looks at a worker, and between two probes of it, as the state has them.
const LONGEST_PAUSE: Time = Time::from_millis(50);
const LONGEST_PROBE_PAUSE: Time = Time::from_millis(500);

#[derive(Debug, Default)]
pub(crate) struct Readiness {
    pub(crate) executed: Option<Time>,
    pub(crate) notified: bool,
    pub(crate) seen: bool,
    /// It could not be seen whether it accepts.
    pub(crate) hidden: bool,
    probed: bool,
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
    /// Reports that have been sent: that it is ready, at all, and of having said so; that it listens; that it is hidden.
    pub(crate) ready_told: bool,
    pub(crate) notified_told: bool,
    listens_told: bool,
    hidden_told: bool,
    /// When it was last looked at, or the last probe of it ended.
    looked: Time,
}

impl Readiness {
    /// Of the slot's next worker.
    pub(crate) fn next(&self) -> Readiness {
        Readiness { listened_before: self.listened_before || self.listens, ..Readiness::default() }
    }

    pub(crate) fn executed(&mut self, now: Time, wanted: &Settings) {
        if self.executed.is_none() {
            (self.executed, self.due) = (Some(now), now + wanted.tuning.ready_timeout);
        }
        self.looked = self.looked.max(now);
        self.settle(wanted);
    }

    pub(crate) fn notified(&mut self, wanted: &Settings) {
        self.notified = true;
        self.settle(wanted);
    }

    /// One that was ready for no more than being alive no longer is, on trial, or where it happens within the bake.
    pub(crate) fn listens(&mut self, now: Time, on_trial: bool, wanted: &Settings) {
        if std::mem::replace(&mut self.listens, true) || wanted.watch != Watch::IfItListens {
            return;
        }
        if self.ready && !self.seen && !self.hidden && (on_trial || now < self.unproven) {
            self.due = now + wanted.tuning.ready_timeout;
            (self.ready, self.ready_told, self.notified_told) = (false, false, false);
        }
        self.looked = now;
    }

    pub(crate) fn seen(&mut self, sight: Sight, wanted: &Settings) {
        if !self.is_watched(wanted) {
            return;
        }
        match sight {
            Sight::Accepting => self.seen |= !self.halted,
            Sight::NotYet => {}
            Sight::Unseeable(_) => self.hidden = true,
        }
        self.settle(wanted);
    }

    pub(crate) fn probed(&mut self, now: Time, succeeded: bool, wanted: &Settings) {
        self.looked = now;
        self.probed |= succeeded && !self.halted && self.is_watched(wanted);
        self.settle(wanted);
    }

    pub(crate) fn continued(&mut self, wanted: &Settings) {
        self.halted = false;
        self.settle(wanted);
    }

    fn settle(&mut self, wanted: &Settings) {
        if let Some(executed) = self.executed.filter(|_| !self.ready && !self.halted && self.has_shown(wanted)) {
            (self.ready, self.unproven) = (true, executed + wanted.tuning.bake);
        }
    }

    /// From its commit on a generation's workers are timed each by itself.
    pub(crate) fn committed(&mut self, now: Time, wanted: &Settings) {
        self.due = now + wanted.tuning.ready_timeout;
    }

    fn has_shown(&self, wanted: &Settings) -> bool {
        let word = self.notified || !wanted.notify;
        match wanted.watch {
            Watch::No => word,
            Watch::Always => self.seen,
            Watch::Probe => self.probed,
            Watch::IfSeeable => self.seen || (self.hidden && word),
            Watch::IfItListens => self.seen || (word && (self.hidden || !self.has_listener())),
        }
    }

    fn has_listener(&self) -> bool {
        self.listens || self.listened_before
    }

    /// Whether it is to be looked at, or probed. A worker that is ready never is.
    pub(crate) fn is_watched(&self, wanted: &Settings) -> bool {
        let watched = match wanted.watch {
            Watch::No => false,
            Watch::Always | Watch::Probe => true,
            Watch::IfSeeable => !self.hidden,
            Watch::IfItListens => !self.hidden && self.has_listener(),
        };
        watched && self.executed.is_some() && !self.ready
    }

    /// By when it must be ready.
    pub(crate) fn due(&self) -> Option<Time> {
        self.executed.filter(|_| !self.ready).map(|_| self.due)
    }

    pub(crate) fn looked_at(&mut self, now: Time) {
        self.looked = now;
    }

    /// The next look, or probe, is overdue.
    pub(crate) fn is_neglected(&self, now: Time, wanted: &Settings) -> bool {
        let pause = if wanted.watch == Watch::Probe { LONGEST_PROBE_PAUSE } else { LONGEST_PAUSE };
        self.is_watched(wanted) && now > self.looked + pause + SLACK
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
        hold(self.hidden == self.hidden_told, 0, || "that a worker cannot be seen is not told".to_owned())
    }
}
