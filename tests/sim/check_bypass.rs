//! The book of one worker that may bypass the listener that it was given: when it is looked at for that, how often, and
//! what is told.

use panzer::monitor::state::{Settings, Watch};

use crate::check::{Checked, SLACK, hold};
use crate::kernel::Time;

/// How often, and the longest pause before the first look, as the state has them.
const LOOKS: u32 = 4;
const FIRST_PAUSE: Time = Time::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Bypass {
    /// Since when it is to be seen, or when it was last looked at.
    since: Option<Time>,
    pause: Time,
    looks: u32,
    /// It accepts, or that cannot be seen.
    settled: bool,
    ready: bool,
    /// The last look's answer is to be told.
    convicted: bool,
}

impl Bypass {
    pub(crate) fn executed(&mut self, now: Time, wanted: &Settings) {
        if matches!(wanted.watch, Watch::IfSeeable | Watch::Always) && self.since.is_none() {
            self.begin(now, FIRST_PAUSE.min(wanted.tuning.ready_timeout / 32), wanted);
        }
    }

    /// It is ready: seen accepting, or hidden from all looks, or by another measure.
    pub(crate) fn ready(&mut self, now: Time, proven: bool, wanted: &Settings) {
        if std::mem::replace(&mut self.ready, true) {
            return;
        }
        self.settled |= proven;
        self.begin(now, FIRST_PAUSE, wanted);
    }

    fn begin(&mut self, now: Time, pause: Time, wanted: &Settings) {
        self.since = wanted.has_listener.then_some(now);
        (self.pause, self.looks) = (pause, 0);
    }

    pub(crate) fn looked_at(&mut self, now: Time) -> Checked {
        let early = self.since.is_none_or(|since| now < since + self.pause);
        hold(self.is_pending() && !early, 13, || format!("somebody is examined who need not be: {self:?}"))?;
        self.looks += 1;
        self.since = Some(now);
        self.pause *= 2;
        Ok(())
    }

    /// What the look gave: where it listens instead, if anywhere; none where it accepts, or cannot be seen.
    pub(crate) fn examined(&mut self, own: Option<&Vec<String>>) {
        self.settled |= own.is_none();
        let by_its_own = own.is_some_and(|own| !own.is_empty());
        let shown = by_its_own && !self.ready && self.looks > 1;
        self.convicted = !self.settled && self.since.is_some() && (shown || self.looks == LOOKS);
    }

    pub(crate) fn is_convicted(&self) -> bool {
        self.convicted
    }

    /// Whether it is to be looked at once more.
    pub(crate) fn is_pending(&self) -> bool {
        self.since.is_some() && !self.settled && self.looks < LOOKS
    }

    pub(crate) fn is_late(&self, now: Time) -> bool {
        self.is_pending() && self.since.is_some_and(|since| now > since + self.pause + SLACK)
    }
}
