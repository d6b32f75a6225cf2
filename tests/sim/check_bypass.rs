//! The book of one worker that may bypass the listener that it was given: when it is looked at for that, how often, and
//! what is told.

use panzer::monitor::decide::{Settings, Watch};
use panzer::readiness::watch::Bypass as Shown;

use crate::check::{Checked, SLACK, hold};
use crate::kernel::Time;

/// The first, second and third look at most, if a worker must be ready in time; and the last look at one that need not.
const LOOKS: [u32; 3] = [3, 7, 15];
const LAST_LOOK: u32 = 255;
const UNIT: Time = Time::from_secs(1);

/// The third and the last look at a worker that need not be ready in time are as many, at these distances in milliseconds.
const ROW: [u64; 5] = [0, 130, 310, 570, 900];

#[derive(Debug, Default)]
pub(crate) struct Bypass {
    /// When it is looked at, the latest time first; none before it is to be seen.
    looks: Option<Vec<Time>>,
    must_be_ready: bool,
    /// When it was last seen before this row, and for how long it had run by then.
    seen: Time,
    ran: Time,
    /// It accepts, or that cannot be seen.
    settled: bool,
    ready: bool,
    /// The last look's answer is to be told.
    convicted: bool,
}

impl Bypass {
    pub(crate) fn executed(&mut self, now: Time, ready_time: Time, wanted: &Settings) {
        if matches!(wanted.watch, Watch::IfSeeable | Watch::Always) && self.looks.is_none() {
            let unit = UNIT.min(ready_time / 32);
            let looks = LOOKS.iter().map(|&look| now + unit * look);
            let looks = looks.chain([now + ready_time / 16 * 15]).rev().collect();
            self.begin(now, looks, wanted);
            self.must_be_ready = true;
        }
    }

    /// It is ready: seen accepting, or hidden from all looks, or by another measure.
    pub(crate) fn ready(&mut self, now: Time, proven: bool, wanted: &Settings) {
        if std::mem::replace(&mut self.ready, true) {
            return;
        }
        self.settled |= proven;
        let rows = [LOOKS[2], LAST_LOOK].into_iter().flat_map(|look| ROW.map(|ms| UNIT * look + Time::from_millis(ms)));
        let looks = [UNIT * LOOKS[1]].into_iter().chain(rows).map(|after| now + after);
        self.begin(now, looks.rev().collect(), wanted);
        self.must_be_ready = false;
    }

    fn begin(&mut self, now: Time, looks: Vec<Time>, wanted: &Settings) {
        self.looks = wanted.has_listener.then_some(looks);
        (self.seen, self.ran) = (now, Time::ZERO);
    }

    /// When the next look is due.
    fn due(&self) -> Option<Time> {
        self.looks.as_ref()?.last().copied()
    }

    pub(crate) fn looked_at(&mut self, now: Time) -> Checked {
        let early = self.due().is_none_or(|due| now < due);
        hold(self.is_pending() && !early, 13, || format!("somebody is examined who need not be: {self:?}"))?;
        self.looks.as_mut().map(Vec::pop);
        Ok(())
    }

    /// What the look gave: where it listens instead, if anywhere, and for how long it has run; none where it accepts, or
    /// cannot be seen.
    pub(crate) fn examined(&mut self, now: Time, shown: Option<&Shown>) {
        self.settled |= shown.is_none();
        let (Some(shown), Some(looks)) = (shown, &self.looks) else { return };
        let is_idle = shown.ran.saturating_sub(self.ran) * 20 < now - self.seen;
        let (elsewhere, left) = (!shown.own.is_empty() && self.must_be_ready, looks.len());
        let row = if self.must_be_ready { 1 } else { ROW.len() };
        let convicted = elsewhere || left == 0 || (is_idle && left == row);
        if !(1..row).contains(&left) && !(row + 1..2 * row).contains(&left) {
            (self.seen, self.ran) = (now, shown.ran);
        }
        self.convicted = !self.settled && convicted;
    }

    pub(crate) fn is_convicted(&self) -> bool {
        self.convicted
    }

    /// Whether it is to be looked at once more.
    pub(crate) fn is_pending(&self) -> bool {
        self.due().is_some() && !self.settled
    }

    pub(crate) fn is_late(&self, now: Time) -> bool {
        self.is_pending() && self.due().is_some_and(|due| now > due + SLACK)
    }
}
