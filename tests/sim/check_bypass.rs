//! The book of one worker that may bypass the listener that it was given: when it is looked at for that, how often, and
//! what is told.

use panzer::monitor::decide::{Settings, Watch};
use panzer::readiness::watch::Bypass as Shown;

use crate::check::{Checked, SLACK, hold};
use crate::kernel::Time;

/// When a worker is looked at, in hundredths of a unit, at most: the first time only if it must be ready in time. Then comes
/// the last row, which has the distances of this one.
const LOOKS: [u32; 7] = [300, 700, 1500, 1513, 1531, 1557, 1590];
const ROW: usize = 5;
const LAST_ROW: u32 = 25500;
const UNIT: Time = Time::from_secs(1);

/// The looks, the latest one first.
fn looks(from: usize, now: Time, unit: Time, last_row: Time) -> Vec<Time> {
    let row = LOOKS[LOOKS.len() - ROW..].iter().map(|look| last_row + unit * (look - 1500) / 100);
    LOOKS[from..].iter().map(|look| unit * *look / 100).chain(row).map(|after| now + after).rev().collect()
}

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
            self.begin(now, looks(0, now, unit, ready_time / 16 * 15), wanted);
            self.must_be_ready = true;
        }
    }

    /// It is ready: seen accepting, or hidden from all looks, or by another measure.
    pub(crate) fn ready(&mut self, now: Time, proven: bool, wanted: &Settings) {
        if std::mem::replace(&mut self.ready, true) {
            return;
        }
        self.settled |= proven;
        self.begin(now, looks(1, now, UNIT, UNIT * LAST_ROW / 100), wanted);
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
        let convicted = elsewhere || left == 0 || (is_idle && left == ROW);
        if !(1..ROW).contains(&left) && !(ROW + 1..2 * ROW).contains(&left) {
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
