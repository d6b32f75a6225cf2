//! What main does to generations that end, and to what they leave behind.

use nix::sys::signal::Signal;
use panzer::control::monitor::messages::Urgency;
use panzer::main_process::decide::{Action, Monitor, Note};

use crate::check::{Checked, hold};
use crate::check_main::{GRACE, MainCheck, Orphans};
use crate::kernel::Time;

impl MainCheck {
    pub(crate) fn check_commit_order(&mut self, monitor: Monitor, all: &[Action]) -> Checked {
        let noted = all.iter().any(|a| matches!(a, Action::Note(Note::Committed(n, ..)) if *n == monitor.generation));
        let watched = self.live(monitor)?;
        let first = !std::mem::replace(&mut watched.committed, true);
        hold(first && noted && watched.trial, 1, || format!("{monitor:?} is committed without a reason"))
    }

    pub(crate) fn check_stop_order(
        &mut self,
        now: Time,
        monitor: Monitor,
        urgency: Urgency,
        all: &[Action],
    ) -> Checked {
        let asked = match urgency {
            Urgency::Patient | Urgency::Retiring => false,
            Urgency::Graceful => self.stop.graceful.is_some(),
            Urgency::Quick => self.stop.quick.is_some(),
        };
        let how = self.wanted.retirement(monitor.generation, self.retired);
        let retired = |action: &Action| match action {
            Action::Note(Note::Committed(_, old, _)) => *old == Some(monitor.generation) && urgency == how,
            Action::Note(Note::Rejected(generation, _)) => {
                *generation == monitor.generation && urgency == Urgency::Graceful
            }
            _ => false,
        };
        let hurried = self.monitors.get(&monitor).is_some_and(|watched| watched.hurried);
        self.tally.hurried += u64::from(hurried);
        let hastened = urgency == Urgency::Quick && !asked && (hurried || self.is_beyond_limit(monitor));
        self.tally.hastened += u64::from(hastened);
        let back = self.falling_back.take_if(|back| *back == monitor).is_some();
        self.restores |= back;
        if back {
            self.note_count(now);
        }
        self.trials_due += u32::from(back && std::mem::take(&mut self.reload_queued));
        let retired = back || all.iter().any(retired);
        let tuning = &self.wanted.of(monitor.generation).tuning;
        let retiring = urgency == Urgency::Retiring;
        let schedule = if retiring { tuning.retirement() } else { &tuning.stop }.clone();
        let watched = self.live(monitor)?;
        let goes_over = std::mem::replace(&mut watched.by_retire, retiring) && !retiring;
        let repeated =
            watched.ordered.quick.is_some() || (watched.ordered.has_begun() && urgency != Urgency::Quick && !goes_over);
        if urgency == Urgency::Patient {
            watched.patient = true;
        } else {
            watched.ordered.begin(urgency == Urgency::Quick, now, &schedule);
        }
        hold(!repeated, 3, || format!("{monitor:?} is told to stop twice"))?;
        hold(asked || retired || hastened, 1, || format!("{monitor:?} is told to stop ({urgency:?}) without a reason"))
    }

    pub(crate) fn check_kill(&mut self, now: Time, monitor: Monitor) -> Checked {
        self.tally.monitor_kills += 1;
        let watched = self.live(monitor)?;
        let due = watched.extended || watched.ordered.kill_due().is_some_and(|due| due + GRACE <= now);
        let first = !std::mem::replace(&mut watched.killed, true);
        hold(due && first, 6, || format!("{monitor:?} is killed before it is due, or twice"))
    }

    pub(crate) fn check_given_up(&mut self, now: Time, monitor: Monitor) -> Checked {
        self.tally.given_up += 1;
        let watched = self.monitors.get_mut(&monitor).filter(|watched| watched.orphans == Orphans::Present);
        let due = watched.as_ref().and_then(|watched| watched.orphans_stop.kill_due());
        if let Some(watched) = watched {
            watched.orphans = Orphans::Gone;
        }
        let is_due = due.is_some_and(|due| due + GRACE <= now);
        hold(is_due, 6, || format!("the orphans of {monitor:?} are given up before it is due"))
    }

    pub(crate) fn check_orphan_signal(&mut self, now: Time, monitor: Monitor, signal: Signal) -> Checked {
        let watched = self.monitors.get_mut(&monitor).filter(|watched| watched.orphans == Orphans::Present);
        let Some(watched) = watched else {
            return hold(false, 3, || format!("{signal} for the orphans of {monitor:?}, which has none"));
        };
        watched.orphans_killed |= signal == Signal::SIGKILL;
        let stop = watched.orphans_stop;
        self.tally.orphan_kills += u64::from(signal == Signal::SIGKILL);
        let due = stop.kill_due().is_some_and(|due| due <= now);
        hold(due || signal != Signal::SIGKILL, 6, || format!("KILL for the orphans of {monitor:?} before it is due"))
    }
}
