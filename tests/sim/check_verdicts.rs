//! What operators are promised and told, and what a verdict takes.

use panzer::control::monitor::messages::{Order, Urgency};
use panzer::main_process::decide::{Action, Event, Note, Verdict};

use crate::check::{Checked, PaceWatch, hold};
use crate::check_main::{MainCheck, Starting};
use crate::kernel::Time;

impl MainCheck {
    /// What decides a request has not begun when it comes.
    pub(crate) fn check_promise(&mut self, event: &Event, request: u64, promised: Option<u32>) -> Checked {
        hold(*event == Event::ReloadFor(request), 7, || format!("{promised:?} is promised to nobody"))?;
        hold(promised.is_none() == self.is_stopping(), 7, || format!("a reload is promised {promised:?}"))?;
        let begun_by_then = self.last_generation;
        hold(promised.is_none_or(|promised| promised > begun_by_then), 7, || format!("{promised:?} has begun before"))?;
        self.promised.extend(promised);
        self.answered.push(request);
        Ok(())
    }

    pub(crate) fn check_verdict(&mut self, generation: u32, verdict: &Verdict, all: &[Action]) -> Checked {
        self.promised.remove(&generation);
        let first = self.judged.insert(generation);
        hold(first, 7, || format!("there are two verdicts on generation {generation}"))?;
        let noted = |wanted: fn(&Note) -> Option<u32>| {
            let is = |action: &Action| matches!(action, Action::Note(note) if wanted(note) == Some(generation));
            all.iter().any(is)
        };
        let right = match verdict {
            Verdict::Serves(..) => noted(|note| match note {
                Note::Committed(number, ..) => Some(*number),
                _ => None,
            }),
            Verdict::Rejected(_) => noted(|note| match note {
                Note::Rejected(generation, _) => Some(*generation),
                _ => None,
            }),
            Verdict::Stopped => self.is_stopping(),
        };
        hold(right, 7, || format!("the verdict on generation {generation} is wrong: {verdict:?}"))
    }

    /// Who asked for a reload is told at once what decides it, and told what became of it once that is known.
    pub(crate) fn check_answers(&self, event: &Event) -> Checked {
        if let Event::ReloadFor(request) = event {
            let told = self.answered.contains(request);
            hold(told, 7, || format!("request {request} has no answer"))?;
        }
        let decided = |generation: &&u32| {
            let starts = self.starting().is_some_and(|starting| starting.generation == **generation);
            let queued = self.reload_queued && **generation == self.last_generation + 1;
            !starts && !queued
        };
        let forgotten = self.promised.iter().find(decided);
        hold(forgotten.is_none(), 7, || format!("nobody is told what became of generation {forgotten:?}"))
    }

    pub(crate) fn check_commit(&mut self, now: Time, generation: u32, old: Option<u32>, all: &[Action]) -> Checked {
        self.tally.commits += 1;
        let baked_at = self.starting().and_then(|monitor| self.baked_at(monitor));
        let Some(Starting { monitor, failed, since, retires, .. }) = self.starting.take() else {
            return hold(false, 1, || format!("generation {generation} is committed, and was not starting"));
        };
        let baked = baked_at.is_some_and(|baked| baked <= now) && !self.is_halted(monitor);
        let whole = self.monitors.get(&monitor).is_some_and(|watched| watched.workers == self.count.next());
        hold(baked && whole && !failed, 1, || format!("generation {generation} is committed too early"))?;
        let ordered = |wanted: Action| all.contains(&wanted);
        hold(ordered(Action::Order(monitor, Order::Commit)), 7, || format!("{monitor:?} is not told of its commit"))?;
        hold(old == self.serving.map(|old| old.generation), 7, || format!("{old:?} did not serve"))?;
        if let Some(old) = self.serving.filter(|old| self.monitors.get(old).is_some_and(|watched| !watched.ended)) {
            let told = ordered(Action::Order(old, Order::Stop(self.wanted.retirement(old.generation, retires))));
            hold(told, 7, || format!("{old:?} is not retired"))?;
        }
        self.retired = retires;
        self.tally.patient += u64::from(retires == Urgency::Patient);
        self.serving = Some(monitor);
        self.count.serves_anew();
        self.wanted.serves(generation);
        self.renewal.serves(generation, now, self.wanted.current().tuning.pace);
        self.has_run = true;
        // A generation's first monitor begins its life when it is started, not when it is committed.
        self.restarts = PaceWatch::begun(since);
        self.next_trial();
        Ok(())
    }

    pub(crate) fn check_rejection(&mut self, now: Time, generation: u32) -> Checked {
        self.tally.rejections += 1;
        // One that waits for a worker that is stopped has baked, and counts as one that is not whole.
        let baked_at = self.starting().and_then(|monitor| Some((self.baked_at(monitor)?, self.is_halted(monitor))));
        let whole = baked_at.is_some_and(|(baked, halted)| !halted || now < baked);
        let Some(starting) = self.starting.take().filter(|starting| starting.monitor.generation == generation) else {
            return hold(false, 8, || format!("generation {generation} is rejected, and was not starting"));
        };
        let late = match starting.room_due {
            Some(due) => now >= due,
            None => !whole && now >= starting.due,
        };
        hold(starting.failed || late, 7, || format!("generation {generation} is rejected without a reason"))?;
        self.planned_in_vain = Some(generation).filter(|_| !starting.begun);
        self.count.failed();
        self.renewal.failed(now, self.wanted.current().tuning.pace);
        let lives = self.monitors.get(&starting.monitor).is_some_and(|watched| !watched.ended);
        if starting.proven > 0 && lives && self.count.now() > 0 {
            self.tally.fall_backs += 1;
            self.falling_back = Some(starting.monitor);
        } else {
            self.restores |= starting.proven > 0;
            self.note_count(now);
            self.next_trial();
        }
        Ok(())
    }

    /// A reload that came meanwhile runs now, once.
    pub(crate) fn next_trial(&mut self) {
        self.trials_due += u32::from(std::mem::take(&mut self.reload_queued));
    }
}
