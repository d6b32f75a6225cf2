//! Reloads that go share by share, and other changes of the count: never fewer ready than are wanted, never more alive
//! than those and one share.

use panzer::control::monitor::messages::{Report, Which};
use panzer::main_process::decide::{Change, Event, Monitor};

use crate::check::{Checked, hold};
use crate::check_main::{MainCheck, Starting};
use crate::kernel::Time;

/// What a monitor gets beyond its workers' schedule, as the state has it.
const GRACE: Time = Time::from_secs(5);

impl MainCheck {
    /// What a new generation begins with.
    fn first_share(&self, generation: u32) -> u32 {
        let all = self.count.next();
        if self.kept_by_serving() == 0 { all } else { self.wanted.of(generation).surge.of(all) }
    }

    /// Whether a monitor may be started so.
    pub(crate) fn begins_right(&mut self, generation: u32, trial: bool, workers: u32) -> bool {
        if trial {
            return workers == self.first_share(generation);
        }
        // One that is on its way back has as many as it has got so far.
        let right = match self.falling_back {
            Some(_) => workers <= self.count.goal(),
            None => workers == self.kept_by_serving(),
        };
        self.serving_keeps(workers);
        right
    }

    /// A generation that has no monitor is told nothing, and it is to be the same for it.
    fn serving_keeps(&mut self, workers: u32) {
        let serving = self.serving.and_then(|serving| self.monitors.get_mut(&serving));
        if let Some(watched) = serving.filter(|watched| watched.ended) {
            watched.workers = workers;
            // While there is no monitor that could say which, the last ones go.
            watched.ended_for_good.split_off(&workers);
        }
    }

    /// The count was changed.
    pub(crate) fn note_count(&mut self, now: Time) {
        // No more are relied on than are wanted.
        let next = self.count.next();
        self.starting.iter_mut().for_each(|starting| starting.proven = starting.proven.min(next));
        let rolling = self.starting.filter(|starting| starting.rolls);
        let goal = rolling.map_or(self.count.now(), |starting| self.count.next().saturating_sub(starting.proven));
        self.serving_keeps(goal);
        self.note_enough(now);
    }

    /// A new generation that is to have no more than it has waits for nobody to make room.
    fn note_enough(&mut self, now: Time) {
        let Some(generation) = self.starting().map(|starting| starting.generation) else { return };
        let longest = self.longest_start(generation, self.count.next());
        if let Some(starting) = &mut self.starting
            && self.monitors.get(&starting.monitor).is_some_and(|watched| watched.workers >= self.count.next())
            && starting.room_due.take().is_some()
        {
            starting.due = now + longest;
        }
    }

    /// What the serving generation's next monitor is to keep.
    pub(crate) fn kept_by_serving(&self) -> u32 {
        self.serving.and_then(|serving| self.monitors.get(&serving)).map_or(self.count.now(), |watched| watched.workers)
    }

    /// Whether so many slots are all that the serving generation has.
    pub(crate) fn is_all(&self, slots: usize) -> bool {
        let kept = self.kept_by_serving();
        kept > 0 && slots >= kept as usize
    }

    /// A worker of which nothing is wanted any more is named, or is gone.
    pub(crate) fn left(&mut self, monitor: Monitor, report: &Report) {
        let Some(watched) = self.monitors.get_mut(&monitor).filter(|watched| !watched.ended) else { return };
        match report {
            Report::Retired { slot, empty } => {
                watched.ready.remove(slot);
                watched.retiring = watched.retiring.saturating_sub(1);
                watched.leaving = watched.leaving.saturating_sub(u32::from(*empty));
            }
            Report::Gone { .. } => watched.leaving = watched.leaving.saturating_sub(1),
            _ => {}
        }
    }

    /// The other one of two generations between which workers go over.
    fn other(&self, monitor: Monitor) -> Option<Monitor> {
        let new =
            self.falling_back.or(self.starting.filter(|starting| starting.rolls).map(|starting| starting.monitor));
        new.and_then(|new| if new == monitor { self.serving } else { Some(new) })
    }

    pub(crate) fn check_scale(
        &mut self,
        now: Time,
        event: &Event,
        monitor: Monitor,
        (workers, which): (u32, Which),
    ) -> Checked {
        let change = if let Event::Scale(_, change) = event { Some(*change) } else { None };
        let recounts = self.recounts;
        let by_age = change == Some(Change::WithoutOldest) && self.serving == Some(monitor);
        match self.other(monitor) {
            None => {
                let asked = (recounts || self.restores) && workers == self.count.now();
                let asked = asked && which == if by_age { Which::Oldest } else { Which::Last };
                hold(asked, 7, || format!("{monitor:?} is to keep {workers} workers, and nobody said so"))?;
            }
            Some(other) => self.check_share(now, recounts, monitor, other, workers)?,
        }
        let longest = self.longest_start(monitor.generation, self.count.next());
        let watched = self.live(monitor)?;
        let was_whole = watched.whole_since.is_some();
        let (fewer, more) = (watched.workers.saturating_sub(workers), workers > watched.workers);
        watched.retiring += fewer;
        watched.leaving += fewer;
        watched.workers = workers;
        // What is wanted is known; whether that is there is found out as it is told.
        let whole = watched.has(watched.ready.len());
        watched.whole_since = watched.whole_since.filter(|_| whole);
        if let Some(starting) = self.starting.as_mut().filter(|starting| starting.monitor == monitor) {
            if was_whole && !whole {
                // Its last share had its time, and the next one has its own.
                let last = starting.due * u32::from(starting.room_due.is_none());
                starting.due = last.max(now + longest);
            }
            starting.room_due = None;
        }
        if more {
            self.grown.insert(monitor.generation, now);
        }
        Ok(())
    }

    /// Workers go over from one generation to the other.
    fn check_share(&mut self, now: Time, asked: bool, monitor: Monitor, other: Monitor, workers: u32) -> Checked {
        let goal = self.count.goal();
        let new = self.starting().or(self.falling_back).unwrap_or(monitor);
        let share = self.wanted.of(new.generation).surge.of(goal);
        let most = self.count.most();
        let serving = self.serving.unwrap_or(monitor);
        let longest = self.longest_start(serving.generation, goal);
        let there = self.monitors.get(&other).filter(|watched| !watched.ended);
        let (kept, leaving) = there.map_or((0, 0), |watched| (watched.workers, watched.leaving));
        let alone = there.is_none();
        let whole = there.is_some_and(|watched| watched.whole_since.is_some());
        let starting = self.starting.is_some_and(|starting| starting.monitor == other);
        let one = self.live(monitor)?;
        let (before, own_leaving) = (one.workers, one.leaving);
        if workers > before && !asked {
            let alive = workers + own_leaving + kept + leaving;
            // One that is left alone has no other to make room for.
            let bounded = alone || alive <= most + share;
            self.tally.shares += 1;
            self.last_raise = now;
            let replaced = starting && self.serving == Some(monitor);
            hold(!replaced, 1, || format!("{monitor:?} is to keep {workers} workers, and is being replaced"))?;
            return hold(bounded, 1, || format!("{alive} workers are to live for {goal} and a share of {share}"));
        }
        let late = !starting && now >= self.last_raise + longest;
        let enough = workers + kept >= goal && (whole || late || kept == 0 || workers + kept > goal);
        hold(asked || enough || self.dropped_share(monitor, workers), 1, || {
            format!("{monitor:?} is to keep {workers} of {before} workers, where {kept} of {other:?} serve for {goal}")
        })
    }

    /// A share that was not ready yet is given up with its generation.
    fn dropped_share(&self, monitor: Monitor, workers: u32) -> bool {
        self.falling_back == Some(monitor) && workers > 0
    }

    /// A share is ready and has baked, and there is to be another.
    pub(crate) fn note_room(&mut self, now: Time) {
        let Some(starting) =
            self.starting.filter(|starting| starting.rolls && !starting.failed && starting.room_due.is_none())
        else {
            return;
        };
        let Some(watched) = self.monitors.get(&starting.monitor) else { return };
        let baked =
            self.baked_at(starting.monitor).is_some_and(|baked| baked <= now) && !self.is_halted(starting.monitor);
        // With another count its first share may be another, which has not been ready yet.
        let other_share = self.recounts
            && starting.proven == 0
            && self.wanted.of(starting.monitor.generation).surge.of(self.count.next()) != watched.workers;
        if baked && !other_share && watched.workers < self.count.next() {
            let proven = watched.workers;
            let stop = self
                .serving
                .map_or(Time::ZERO, |serving| self.wanted.of(serving.generation).tuning.retirement().total());
            self.starting = Some(Starting { proven, room_due: Some(now + stop + GRACE), ..starting });
            // One that has fewer as it is keeps these.
            self.serving_keeps(self.kept_by_serving().min(self.count.next().saturating_sub(proven)));
            self.note_enough(now);
        }
    }
}
