//! Events of unknown and retired monitors, workers and lives: they must change nothing.

use panzer::control::monitor::messages::Report;
use panzer::main_process::decide::{Event as MainEvent, Monitor};
use panzer::monitor::decide::{Event, Worker};
use panzer::readiness::watch::{Bypass, Sight};
use panzer::worker::cause::Cause;

use crate::check::{Checked, hold};
use crate::planted::Planted;
use crate::world::World;

impl World {
    /// Gives main an event that it has nothing to do with.
    pub(crate) fn give_main_a_stale_event(&mut self) -> Checked {
        let instant = self.instant();
        let generation = self.choices.below(4) as u32;
        let monitor = Monitor { generation, life: self.choices.below(3) as u32 };
        let due = self.main.state.deadline().is_some_and(|deadline| deadline <= instant);
        if due || !self.main_runs() || !self.main.check.is_retired(monitor) {
            return Ok(());
        }
        let event = self.draw_stale_main_event(monitor);
        let before = self.main.state.clone();
        let Some(given) = Planted::main_event(self.planted, event, &self.main.check) else { return Ok(()) };
        let told = format!("{given:?} of a retired {monitor:?}");
        let actions = self.main.state.on(instant, given);
        let after = &self.main.state;
        let same = actions.is_empty() && *after == before;
        hold(same, 11, || format!("main minds {told}: {actions:?}\n  {before:?}\n  {after:?}"))
    }

    fn draw_stale_main_event(&mut self, monitor: Monitor) -> MainEvent {
        let slot = 0;
        let cause = Cause::Exited(3);
        match self.choices.below(10) {
            8 => MainEvent::Reported(monitor, Report::EndedForGood { slot, code: 1 }),
            0 => MainEvent::Reported(monitor, Report::Ready { slot, notified: true, seen: true }),
            1 => MainEvent::Reported(monitor, Report::Died { slot, cause }),
            2 => MainEvent::Reported(monitor, Report::CannotBegin(cause)),
            3 => MainEvent::Reported(monitor, Report::GaveUp),
            4 => MainEvent::NotStarted(monitor, cause),
            5 => MainEvent::Reported(monitor, Report::Listens { slot, withdrawn: true }),
            6 => MainEvent::Reported(monitor, Report::Bypasses { slot, own: Vec::new() }),
            7 => MainEvent::Ended(monitor, cause, self.choices.below(2) == 1),
            _ => MainEvent::OrphansGone(monitor),
        }
    }

    /// Gives a monitor an event of a worker that is no more, is not yet, or never was.
    pub(crate) fn give_monitor_a_stale_event(&mut self, index: usize) -> Checked {
        if self.spec.preload {
            return Ok(());
        }
        let instant = self.instant();
        let slot = self.choices.below(u64::from(self.spec.main.workers) + 1) as u32;
        let node = &mut self.monitors[index];
        let life = node.check.life(slot);
        let life = self.choices.among(&[life.wrapping_sub(1), life + 1, 0, life]);
        let Some(state) = &mut node.state else { return Ok(()) };
        let lives = node.check.is_alive(slot) && node.check.life(slot) == life;
        if lives || state.deadline().is_some_and(|deadline| deadline <= instant) {
            return Ok(());
        }
        let worker = Worker { slot, life };
        let event = match self.choices.below(9) {
            0 => Event::Ended(worker, Cause::Exited(3)),
            1 => Event::Executed(worker),
            2 => Event::Notified(worker),
            3 => Event::LeftBehind(Worker { life: node.check.life(slot) + 1, slot }),
            4 => Event::Seen(worker, Sight::Accepting),
            5 => Event::Probed(worker, true),
            6 => Event::Listens(worker),
            7 => Event::Examined(worker, Some(Bypass::default())),
            _ => Event::GroupGone(worker),
        };
        if node.check.has_group(worker) || node.check.has_probe(worker) {
            return Ok(());
        }
        let before = state.clone();
        let Some(given) = Planted::monitor_event(self.planted, event, &node.check) else { return Ok(()) };
        let told = format!("{given:?} of a retired {worker:?}");
        let actions = state.on(instant, given);
        let same = actions.is_empty() && *state == before;
        hold(same, 11, || format!("minds {told}: {actions:?}\n  {before:?}\n  {state:?}"))
    }
}
