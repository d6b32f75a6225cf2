//! Reloads that go share by share (`--surge`). When a share of the new generation is ready, the serving generation
//! gives up as many workers. When these are gone, the new generation gets its next share. So there are never fewer
//! workers ready than wanted, and never more alive than those and one share.
//!
//! The generations change over slot by slot, so that the queue of each slot always has a worker. If the new generation
//! fails on the way, the same is done backwards.

use std::time::Instant;

use super::generation::{FallBack, Generation, Phase, Roll};
use super::generations::Generations;
use super::retired::GRACE;
use super::vocabulary::Action;
use crate::control::monitor::messages::{Order, Urgency, Which};
use crate::worker::cause::Cause;

impl Generation {
    /// Begins with the share that its settings ask for.
    pub(super) fn roll(&mut self, now: Instant) {
        let goal = self.settings.workers;
        let share = self.settings.surge.of(goal);
        if share < goal {
            self.roll = Some(Roll { goal, share, proven: 0 });
            self.scale(share, now);
        }
    }

    /// Whether it is to get more workers.
    pub(super) fn must_grow(&self) -> bool {
        self.roll.is_some_and(|roll| self.settings.workers < roll.goal)
    }

    /// Number of workers that the old generation has given up.
    pub(super) fn proven(&self) -> u32 {
        self.roll.map_or(0, |roll| roll.proven)
    }

    fn ordered(&mut self, workers: u32, which: Which, now: Instant, actions: &mut Vec<Action>) {
        if workers != self.settings.workers {
            self.scale(workers, now);
            let order = Order::Scale { workers, which };
            actions.extend(self.monitor().map(|monitor| Action::Order(monitor, order)));
        }
    }
}

impl Generations {
    /// A share of the new generation is ready, and more is to come. The serving generation gives up as many workers.
    pub(super) fn roll_on(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let (Some((starting, deadline)), Some(serving)) = (&mut self.starting, &mut self.serving) else { return };
        let proven = starting.settings.workers;
        let Some(roll) = &mut starting.roll else { return };
        roll.proven = proven;
        starting.phase = Phase::Rolling;
        *deadline = now + serving.settings.tuning.retirement().total() + GRACE;
        let needed = roll.goal.saturating_sub(proven);
        serving.ordered(needed.min(serving.settings.workers), Which::First, now, actions);
        self.grow_if_gone(now, actions);
    }

    /// Workers of the serving generation have ended, or are ready. Goes on with what waited for that.
    pub(super) fn go_on_rolling(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.grow_if_gone(now, actions);
        self.fall_back(now, actions);
    }

    /// Starts the next share, if the workers that it replaces are gone.
    pub(super) fn grow_if_gone(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let (Some((starting, deadline)), Some(serving)) = (&mut self.starting, &self.serving) else { return };
        let Some(roll) = starting.roll.filter(|_| matches!(starting.phase, Phase::Rolling)) else { return };
        if serving.counts.leaving > 0 || starting.counts.leaving > 0 {
            return;
        }
        starting.phase = Phase::Filling;
        *deadline = now + starting.longest_start();
        starting.ordered(roll.goal.min(roll.proven + roll.share), Which::Last, now, actions);
        self.settle_starting(now, actions);
    }

    /// Workers of the serving generation did not end in time.
    pub(super) fn give_up_rolling(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let why = "workers of the serving generation that were to make room did not end in time";
        self.reject(None, Cause::CannotStart(why.to_owned()), now, actions);
    }

    /// Another number of workers is wanted while a failed generation is being replaced. Returns whether that is so.
    pub(super) fn keep_falling_back(&mut self, workers: u32, now: Instant, actions: &mut Vec<Action>) -> bool {
        let Some(back) = &mut self.falling_back else { return false };
        (back.goal, back.share) = (workers, back.failed.settings.surge.of(workers));
        if let Some(serving) = &mut self.serving {
            serving.ordered(serving.settings.workers.min(workers), Which::Last, now, actions);
            let needed = workers.saturating_sub(back.proven).min(back.failed.settings.workers);
            back.failed.ordered(needed, Which::Last, now, actions);
        }
        self.fall_back(now, actions);
        true
    }

    /// Another number of workers is wanted during a reload with `--surge`. Returns whether that is so.
    pub(super) fn keep_rolling(&mut self, workers: u32, now: Instant, actions: &mut Vec<Action>) -> bool {
        let (Some((starting, deadline)), Some(serving)) = (&mut self.starting, &mut self.serving) else { return false };
        let Some(roll) = &mut starting.roll else { return false };
        (roll.goal, roll.share) = (workers, starting.settings.surge.of(workers));
        roll.proven = roll.proven.min(workers);
        let (proven, share) = (roll.proven, roll.share);
        serving.ordered(workers - proven, Which::Last, now, actions);
        let own = starting.settings.workers;
        let baked = matches!(starting.phase, Phase::Baking { .. });
        // If nothing is proven yet, the first share has the size that goes with the new number.
        let first = if proven == 0 { share.min(workers) } else { own };
        starting.ordered(first.min(workers), Which::Last, now, actions);
        let again = now + starting.longest_start();
        if matches!(starting.phase, Phase::Rolling) && !starting.must_grow() {
            starting.phase = Phase::Filling;
            *deadline = again;
        } else if baked && !starting.is_whole() {
            *deadline = (*deadline).max(again);
        }
        self.settle_starting(now, actions);
        self.grow_if_gone(now, actions);
        true
    }

    /// Ends a generation that has failed: at once, or if the serving generation has given up workers for it, when that
    /// one has them back.
    pub(super) fn retire_failed(&mut self, mut failed: Generation, now: Instant, actions: &mut Vec<Action>) {
        let Some(roll) = failed.roll.filter(|roll| roll.proven > 0 && self.stopping.is_none()) else {
            return self.drain(failed, false, Urgency::Graceful, now, actions);
        };
        // The number of workers of the failed generation does not count for the serving one.
        let goal = self.wanted.settings.workers;
        let Some(serving) = self.serving.as_mut().filter(|_| failed.monitor().is_some()) else {
            if let Some(serving) = &mut self.serving {
                serving.ordered(goal, Which::Last, now, actions);
            }
            return self.drain(failed, false, Urgency::Graceful, now, actions);
        };
        failed.ordered(roll.proven, Which::Last, now, actions);
        let (share, proven) = (failed.settings.surge.of(goal), serving.settings.workers);
        self.falling_back = Some(FallBack { failed, goal, share, proven, ready_by: None });
        self.fall_back(now, actions);
    }

    /// When to take the next step back at the latest. None if it waits for workers to end.
    pub(super) fn fall_back_due(&self) -> Option<Instant> {
        let leaves = |generation: &Generation| generation.counts.leaving > 0;
        let back = self.falling_back.as_ref().filter(|back| !leaves(&back.failed))?;
        back.ready_by.filter(|_| !self.serving.as_ref().is_some_and(leaves))
    }

    /// Takes the next step back if the last one is done. The steps alternate:
    ///
    /// | `ready_by` | the serving generation | the step is done if |
    /// | --- | --- | --- |
    /// | none | has its present share back | workers of the failed generation are gone; then the next share is started |
    /// | a time | starts a share | the share is ready, or the time is over; then the failed one gives up as many workers |
    pub(super) fn fall_back(&mut self, now: Instant, actions: &mut Vec<Action>) {
        while let (Some(back), Some(serving)) = (&mut self.falling_back, &mut self.serving) {
            if back.failed.counts.leaving > 0 || serving.counts.leaving > 0 {
                return;
            }
            match back.ready_by {
                Some(ready_by) if serving.is_whole() || ready_by <= now => {
                    back.ready_by = None;
                    back.proven = serving.settings.workers;
                    if serving.settings.workers < back.goal {
                        let needed = back.goal - serving.settings.workers;
                        back.failed.ordered(needed.min(back.failed.settings.workers), Which::First, now, actions);
                    }
                }
                Some(_) => return,
                None if serving.settings.workers >= back.goal => return self.end_fall_back(now, actions),
                None => {
                    back.ready_by = Some(now + serving.settings.tuning.longest_start(back.goal));
                    serving.ordered(back.goal.min(serving.settings.workers + back.share), Which::Last, now, actions);
                }
            }
        }
    }

    /// The failed generation is no longer needed, or is gone.
    pub(super) fn end_fall_back(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some(back) = self.falling_back.take() else { return };
        if let Some(serving) = &mut self.serving {
            serving.ordered(back.goal, Which::Last, now, actions);
        }
        self.drain(back.failed, false, Urgency::Graceful, now, actions);
        self.run_queued_reload(now, actions);
    }
}
