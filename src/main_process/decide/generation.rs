//! One generation that is to go on: what it has shown, and whether that makes it ready.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::vocabulary::{Monitor, Progress, Settings};
use crate::backoff::Backoff;
use crate::config::Ready;
use crate::control::monitor::messages::Urgency;
use crate::worker::cause::Cause;

/// A generation that is to go on, as opposed to one that drains.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Generation {
    pub(super) number: u32,
    /// Its settings. Their number of workers is the one that is wanted now.
    pub(super) settings: Settings,
    /// How far a reload with `--surge` has come.
    pub(super) roll: Option<Roll>,
    pub(super) counts: Counts,
    pub(super) shown: Shown,
    pub(super) monitor: Life,
    /// Whether its workers must be seen accepting, even before they listen on a shared port.
    pub(super) accept: bool,
    pub(super) phase: Phase,
    #[serde(with = "crate::carry::moment")]
    pub(super) begun: Instant,
    /// When its first workers are to be ready at the earliest, because they asked for more time.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::carry::moment::option")]
    pub(super) extended_to: Option<Instant>,
    /// When workers were last added. The youngest may not listen yet.
    #[serde(with = "crate::carry::moment")]
    pub(super) grown: Instant,
    pub(super) backoff: Backoff,
    /// How to stop the generation that it replaces.
    pub(super) retires: Urgency,
    /// Whether its monitor was told to replace no worker that has reached a limit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) holds_recycling: bool,
}

/// Numbers of slots.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Counts {
    /// Number of workers that the configuration asks for.
    pub(super) configured: u32,
    /// Number of slots that were ever wanted.
    pub(super) slots: u32,
    /// Number of slots to be removed whose numbers the monitor has not reported yet.
    pub(super) retiring: u32,
    /// Number of workers that are to end because there are to be fewer. Those of `retiring` are among them.
    pub(super) leaving: u32,
}

/// Signs of life of a generation's workers so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Shown {
    pub(super) ready: BTreeSet<u32>,
    /// Slots whose workers have notified that they are ready.
    pub(super) told: BTreeSet<u32>,
    /// Slots whose workers were seen accepting.
    pub(super) seen: BTreeSet<u32>,
    /// Slots where a worker has listened on a shared port.
    pub(super) listening: BTreeSet<u32>,
    /// Slots whose worker ended for good, with its exit code.
    pub(super) ended: BTreeMap<u32, u8>,
    /// Slots whose workers a signal has stopped. The generation is not committed while there are any.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) suspended: BTreeSet<u32>,
    /// Slots whose workers could not be seen, and why.
    pub(super) unseeable: BTreeMap<u32, String>,
    /// A slot whose worker bypasses the listener that it was given, and the addresses where it listens instead.
    pub(super) bypass: Option<(u32, Vec<String>)>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Phase {
    /// Its settings are not known yet. It has no process.
    Planning,
    /// Some workers are not ready yet.
    Filling,
    /// All are ready, and must live until this time.
    Baking {
        #[serde(with = "crate::carry::moment")]
        until: Instant,
    },
    /// All workers that it has so far are ready. Workers of the old generation are to make room for more.
    Rolling,
    /// It serves.
    Proven,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Life {
    /// No monitor was started yet.
    None,
    Running {
        life: u32,
        #[serde(with = "crate::carry::moment")]
        since: Instant,
    },
    Waiting {
        life: u32,
        #[serde(with = "crate::carry::moment")]
        until: Instant,
    },
}

/// The state of a reload with `--surge`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Roll {
    /// Number of workers that the new generation has in the end.
    pub(super) goal: u32,
    /// Number of workers in a share.
    pub(super) share: u32,
    /// Number of workers that have been ready at the same time. The old generation has given up this many.
    pub(super) proven: u32,
}

/// A generation that failed in a reload with `--surge`. Its workers serve until the old generation has its own back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FallBack {
    pub(super) failed: Generation,
    pub(super) goal: u32,
    pub(super) share: u32,
    /// Number of workers that the serving generation has back.
    pub(super) proven: u32,
    /// When the new share of the serving generation must be ready.
    #[serde(with = "crate::carry::moment::option")]
    pub(super) ready_by: Option<Instant>,
}

impl Generation {
    /// A generation without a process.
    pub(super) fn new(number: u32, configured: u32, settings: Settings, now: Instant) -> Generation {
        Generation {
            number,
            counts: Counts { configured, slots: settings.workers, retiring: 0, leaving: 0 },
            shown: Shown::default(),
            roll: None,
            settings,
            monitor: Life::None,
            accept: false,
            phase: Phase::Planning,
            begun: now,
            extended_to: None,
            grown: now,
            backoff: Backoff::default(),
            retires: Urgency::Graceful,
            holds_recycling: false,
        }
    }

    /// Number of workers that it has in the end.
    pub(super) fn goal(&self) -> u32 {
        self.roll.map_or(self.settings.workers, |roll| roll.goal)
    }

    /// The time within which all workers of the generation, or of a share, must be ready, including the last one to be
    /// started.
    pub(super) fn longest_start(&self) -> Duration {
        self.settings.tuning.longest_start(self.goal())
    }

    /// Whether its settings are known.
    pub(super) fn is_planned(&self) -> bool {
        !matches!(self.phase, Phase::Planning)
    }

    pub(super) fn progress(&self) -> Progress {
        Progress {
            generation: self.number,
            ready: self.shown.ready.len() as u32,
            workers: self.goal(),
            baking: matches!(self.phase, Phase::Baking { .. }),
        }
    }

    /// Whether all wanted workers are ready, or have ended for good.
    pub(super) fn is_whole(&self) -> bool {
        self.counts.retiring == 0 && self.all_that_go_on(&self.shown.ready)
    }

    /// Whether all wanted workers have ended for good.
    pub(super) fn has_finished(&self) -> bool {
        self.counts.retiring == 0 && self.all_that_go_on(&BTreeSet::new())
    }

    /// Whether every worker is among `slots`. False if it is to have no workers.
    fn all(&self, slots: &BTreeSet<u32>) -> bool {
        !self.is_quiet() && slots.len() >= self.settings.workers as usize
    }

    /// Whether every worker that has not ended for good is among `slots`.
    fn all_that_go_on(&self, slots: &BTreeSet<u32>) -> bool {
        !self.is_quiet() && slots.len() + self.shown.ended.len() >= self.settings.workers as usize
    }

    /// Whether it is to have no workers.
    pub(super) fn is_quiet(&self) -> bool {
        self.settings.workers == 0
    }

    /// Whether every worker has notified. If only some have, it was by chance, and the workers of the next generation
    /// must not be ended for not doing so.
    pub(super) fn all_notified(&self) -> bool {
        self.all(&self.shown.told)
    }

    /// Whether every worker listens on a shared port. If only some do, the others need not.
    pub(super) fn all_listen(&self) -> bool {
        self.all(&self.shown.listening)
    }

    /// Whether every worker listens on a shared port, or may be about to: some do, and the others are so young that
    /// they need not be ready yet.
    pub(super) fn may_listen(&self, now: Instant) -> bool {
        let young = now < self.grown + self.settings.tuning.ready_timeout;
        self.all_listen() || (young && !self.is_quiet() && !self.shown.listening.is_empty())
    }

    /// Whether every worker was seen accepting.
    pub(super) fn all_seen(&self) -> bool {
        self.all_that_go_on(&self.shown.seen)
    }

    /// Sets the wanted number of workers.
    pub(super) fn scale(&mut self, workers: u32, now: Instant) {
        if self.monitor().is_some() {
            if workers > self.settings.workers {
                self.grown = now;
            }
            let fewer = self.settings.workers.saturating_sub(workers);
            self.counts.retiring += fewer;
            self.counts.leaving += fewer;
        }
        self.settings.workers = workers;
        if self.monitor().is_none() {
            // The monitor ends the workers of the last slots.
            self.shown.ended.retain(|slot, _| *slot < workers);
        }
        self.counts.slots = self.counts.slots.max(workers);
        if matches!(self.phase, Phase::Baking { .. }) && !self.is_whole() {
            self.phase = Phase::Filling;
        }
    }

    pub(super) fn note_ready(&mut self, slot: u32, told: bool, seen: bool) {
        if slot >= self.counts.slots {
            return;
        }
        self.shown.ready.insert(slot);
        if told {
            self.shown.told.insert(slot);
        }
        if seen {
            self.shown.seen.insert(slot);
        }
    }

    /// A worker listens on a shared port, and may no longer be ready. Returns whether the whole generation was ready.
    pub(super) fn note_listening(&mut self, slot: u32, withdrawn: bool) -> bool {
        if slot >= self.counts.slots {
            return false;
        }
        self.shown.listening.insert(slot);
        if !withdrawn || matches!(self.phase, Phase::Proven) {
            return false;
        }
        self.shown.ready.remove(&slot);
        matches!(std::mem::replace(&mut self.phase, Phase::Filling), Phase::Baking { .. } | Phase::Rolling)
    }

    /// A signal has stopped a worker.
    pub(super) fn note_suspended(&mut self, slot: u32) {
        if slot < self.counts.slots {
            self.shown.suspended.insert(slot);
        }
    }

    /// No worker is wanted in this slot any more. `empty`: no end of a worker follows.
    pub(super) fn note_retired(&mut self, slot: u32, empty: bool) {
        self.counts.leaving = self.counts.leaving.saturating_sub(u32::from(empty));
        self.counts.retiring = self.counts.retiring.saturating_sub(1);
        for slots in [
            &mut self.shown.ready,
            &mut self.shown.told,
            &mut self.shown.seen,
            &mut self.shown.listening,
            &mut self.shown.suspended,
        ] {
            slots.remove(&slot);
        }
        self.shown.unseeable.remove(&slot);
        self.shown.ended.remove(&slot);
    }

    /// A worker that was to end because there are to be fewer has ended.
    pub(super) fn note_gone(&mut self) {
        self.counts.leaving = self.counts.leaving.saturating_sub(1);
    }

    /// Its monitor is gone, and so the present state of its workers is unknown.
    pub(super) fn lose_monitor(&mut self, until: Instant, now: Instant) {
        let Life::Running { life, .. } = self.monitor else { return };
        self.monitor = Life::Waiting { life, until };
        self.holds_recycling = false;
        self.shown.ready.clear();
        self.shown.seen.clear();
        self.shown.suspended.clear();
        self.renumber_ended();
        self.counts.retiring = 0;
        self.counts.leaving = 0;
        self.phase = Phase::Filling;
        self.begun = now;
    }

    /// Updates whether all wanted workers are ready. Returns true if they have just become so. If all have ended for
    /// good, the generation does not serve.
    pub(super) fn settle(&mut self, bake: Duration, now: Instant) -> bool {
        let serves = self.is_whole() && !self.shown.ready.is_empty();
        match self.phase {
            Phase::Filling if serves => {
                self.phase = Phase::Baking { until: now + bake };
                true
            }
            Phase::Baking { .. } if !serves => {
                self.phase = Phase::Filling;
                false
            }
            _ => false,
        }
    }

    pub(super) fn monitor(&self) -> Option<Monitor> {
        match self.monitor {
            Life::Running { life, .. } => Some(Monitor { generation: self.number, life }),
            Life::None | Life::Waiting { .. } => None,
        }
    }

    /// The slots that are not ready.
    pub(super) fn missing(&self) -> Vec<u32> {
        (0..self.settings.workers).filter(|slot| !self.shown.ready.contains(slot)).collect()
    }

    /// The workers that failed: the one that died, or all that were not ready in time.
    pub(super) fn why_each_failed(&self, slot: Option<u32>, cause: &Cause) -> Vec<(u32, Cause)> {
        let time = self.settings.tuning.ready_timeout;
        let own = |slot: &u32| match self.shown.unseeable.get(slot).filter(|_| self.settings.ready == Ready::Accept) {
            Some(why) => Cause::NotSeen(time, why.clone()),
            None => Cause::NotReady(time),
        };
        match (cause, slot) {
            (Cause::NotReady(_) | Cause::NotSeen(..) | Cause::Bypassed(..), _) => {
                self.missing().iter().map(|slot| (*slot, own(slot))).collect()
            }
            (_, Some(slot)) => vec![(slot, cause.clone())],
            (_, None) => Vec::new(),
        }
    }

    /// Why the generation was not ready in time. If its workers must be seen accepting and are not, the reason for
    /// that.
    pub(super) fn why_not_ready(&self) -> (Option<u32>, Cause) {
        let must_be_seen = self.settings.ready == Ready::Accept;
        let unseen = self.shown.unseeable.iter().find(|(slot, _)| must_be_seen && !self.shown.ready.contains(slot));
        let bypass =
            self.shown.bypass.as_ref().filter(|(slot, own)| !own.is_empty() && !self.shown.ready.contains(slot));
        let time = self.settings.tuning.ready_timeout;
        if let Some(slot) = self.shown.suspended.first() {
            return (Some(*slot), Cause::Suspended(time));
        }
        match (unseen, bypass) {
            (Some((slot, why)), _) => (Some(*slot), Cause::NotSeen(time, why.clone())),
            (None, Some((slot, own))) => (Some(*slot), Cause::Bypassed(time, own.clone())),
            (None, None) => (None, Cause::NotReady(time)),
        }
    }
}
