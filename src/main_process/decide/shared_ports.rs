//! Shared ports, main's side: pure. What is held and for whom, who has bound without listening yet, and who waits.
//!
//! A bind alone is provisional: nobody holds its socket. Whoever wants to bind the same address meanwhile waits while the
//! first one may still listen, which its monitor is asked from time to time. The first socket that listens is held; every
//! later claim of its address, of whatever generation, gets that one. What no living generation has claimed is closed, so
//! that clients are refused rather than left waiting; but not before the serving generation has had the time to claim it,
//! should it be ready by no more than being alive.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::vocabulary::Monitor;
use crate::config::MAX_LISTENERS;
use crate::sockets::sharing::Key;

/// Within this after its first listen a program has bound its other ports as well.
const SETTLED: Duration = Duration::from_secs(1);

/// Number of binds without a listen that are remembered. Nobody waits for one that is not.
const MAX_BOUND: usize = 1024;

/// The first pause before a monitor is asked whether a socket may still listen; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_millis(160);

/// A monitor that does not answer within this time does not keep others waiting.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// A claim whose caller waits in its bind: the monitor that answers it, and the ticket the monitor knows it by.
pub type Claimant = (Monitor, u64);

/// All shared sockets, each an `S`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, bound = "S: Serialize + DeserializeOwned")]
pub struct Shares<S> {
    #[serde(with = "crate::carry::pairs")]
    held: BTreeMap<Key, Share<S>>,
    /// When each living generation claimed something held for the first time.
    #[serde(with = "crate::carry::moment::by_key")]
    first_claims: BTreeMap<u32, Instant>,
    /// Time that the serving generation has to claim anything, by its plan.
    patience: Duration,
    /// What is bound and does not listen yet.
    #[serde(default, with = "crate::carry::pairs", skip_serializing_if = "BTreeMap::is_empty")]
    bound: BTreeMap<Key, Bound>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Share<S> {
    socket: S,
    claimed_by: BTreeSet<u32>,
    /// Since when no living generation has claimed it.
    #[serde(with = "crate::carry::moment::option")]
    abandoned: Option<Instant>,
}

/// A socket of a worker that is bound and does not listen yet.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bound {
    by: Claimant,
    /// The process that has bound it.
    process: i32,
    waiting: Vec<Claimant>,
    /// While somebody waits: when the monitor is to be asked, or if it has been asked, when it must have answered.
    #[serde(with = "crate::carry::moment::option")]
    next: Option<Instant>,
    asked: bool,
    pause: Duration,
}

/// The answer to a claim.
#[derive(Debug, PartialEq, Eq)]
pub enum Claimed<'a, S> {
    /// This socket is held there.
    Held(&'a S),
    /// Another worker has bound it and may still listen: the answer follows.
    Waits,
    /// The kernel is to decide.
    Kernel,
}

/// What is due about binds that others wait for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Binds whose monitor is to be asked whether the socket may still listen.
    pub looks: Vec<Claimant>,
    /// Claims that are to be made again.
    pub again: Vec<Claimant>,
}

impl<S> Shares<S> {
    /// None yet. A generation that has claimed nothing within `patience` will not.
    pub fn new(patience: Duration) -> Shares<S> {
        Shares { held: BTreeMap::new(), first_claims: BTreeMap::new(), patience, bound: BTreeMap::new() }
    }

    /// What a worker's claim of `key` comes to, made by `process`. One that is not to be shared, unless it is already,
    /// never waits.
    pub fn claim(
        &mut self,
        key: &Key,
        claimant: Claimant,
        process: i32,
        may_wait: bool,
        now: Instant,
    ) -> Claimed<'_, S> {
        if self.held.contains_key(key) {
            return self.take(key, claimant.0.generation, now).map_or(Claimed::Kernel, Claimed::Held);
        }
        match self.bound.get_mut(key) {
            // Nobody waits for itself.
            Some(bound) if may_wait && bound.process != process => {
                bound.waiting.push(claimant);
                bound.next.get_or_insert(now + bound.pause);
                Claimed::Waits
            }
            _ => Claimed::Kernel,
        }
    }

    /// The kernel has let a claim through: the socket is bound, and may listen some day.
    pub fn bound(&mut self, key: Key, by: Claimant, process: i32) {
        if self.bound.len() >= MAX_BOUND {
            self.bound.retain(|_, bound| !bound.waiting.is_empty());
        }
        let (waiting, next) = self.bound.remove(&key).map_or((Vec::new(), None), |old| (old.waiting, old.next));
        self.bound.insert(key, Bound { by, process, waiting, next, asked: false, pause: FIRST_PAUSE });
    }

    /// What is due by `now` about binds that others wait for.
    pub fn due(&mut self, now: Instant) -> Due {
        let mut due = Due::default();
        self.bound.retain(|_, bound| {
            if bound.next.is_none_or(|next| next > now) {
                return true;
            }
            if bound.asked {
                due.again.append(&mut bound.waiting);
                return false;
            }
            (bound.asked, bound.next) = (true, Some(now + LOOK_TIMEOUT));
            due.looks.push(bound.by);
            true
        });
        due
    }

    /// A monitor's answer: whether the socket of that bind may still listen. Returns the claims that are to be made again.
    pub fn looked(&mut self, by: Claimant, may_listen: bool, now: Instant) -> Vec<Claimant> {
        let Some((key, bound)) = self.bound.iter_mut().find(|(_, bound)| bound.by == by) else { return Vec::new() };
        if may_listen {
            bound.pause = (bound.pause * 2).min(MAX_PAUSE);
            (bound.asked, bound.next) = (false, (!bound.waiting.is_empty()).then_some(now + bound.pause));
            return Vec::new();
        }
        let key = key.clone();
        self.bound.remove(&key).map(|bound| bound.waiting).unwrap_or_default()
    }

    /// A monitor has ended, and with it whatever its workers asked. Returns the claims that are to be made again.
    pub fn monitor_ended(&mut self, monitor: Monitor) -> Vec<Claimant> {
        let mut again = Vec::new();
        self.bound.retain(|_, bound| {
            bound.waiting.retain(|waiting| waiting.0 != monitor);
            if bound.by.0 == monitor {
                again.append(&mut bound.waiting);
            }
            bound.by.0 != monitor
        });
        again
    }

    /// Holds a socket that listens, for `generation`. Returns who has waited for it; None if too many are held.
    pub fn hold(&mut self, key: &Key, socket: S, generation: u32, now: Instant) -> Option<Vec<Claimant>> {
        if self.held.len() >= MAX_LISTENERS {
            return None;
        }
        self.held.insert(key.clone(), Share { socket, claimed_by: BTreeSet::new(), abandoned: None });
        self.take(key, generation, now);
        Some(self.bound.remove(key).map(|bound| bound.waiting).unwrap_or_default())
    }

    /// What is held there, which `generation` has claimed from now on.
    pub fn take(&mut self, key: &Key, generation: u32, now: Instant) -> Option<&S> {
        let share = self.held.get_mut(key)?;
        self.first_claims.entry(generation).or_insert(now);
        share.claimed_by.insert(generation);
        share.abandoned = None;
        Some(&share.socket)
    }

    /// Holds what was bound otherwise, until it is claimed or nobody may any more. False where there is such already.
    pub fn offer(&mut self, key: Key, socket: S, now: Instant) -> bool {
        if self.held.contains_key(&key) || self.held.len() >= MAX_LISTENERS {
            return false;
        }
        self.held.insert(key, Share { socket, claimed_by: BTreeSet::new(), abandoned: Some(now) });
        true
    }

    /// A generation is gone, with all its processes.
    pub fn release(&mut self, generation: u32, now: Instant) {
        self.first_claims.remove(&generation);
        for share in self.held.values_mut() {
            share.claimed_by.remove(&generation);
            if share.claimed_by.is_empty() {
                share.abandoned.get_or_insert(now);
            }
        }
    }

    /// Follows the plan in force.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// When something may have to be closed, or somebody to be asked.
    pub fn deadline(&self, serving: Option<u32>) -> Option<Instant> {
        let closes = self.held.values().filter_map(|share| self.closes_at(share, serving));
        closes.chain(self.bound.values().filter_map(|bound| bound.next)).min()
    }

    /// Closes what is abandoned for good. Returns what that was.
    pub fn close_abandoned(&mut self, serving: Option<u32>, now: Instant) -> Vec<Key> {
        let is_due = |share: &Share<S>| self.closes_at(share, serving).is_some_and(|at| at <= now);
        let due: Vec<Key> = self.held.iter().filter(|(_, share)| is_due(share)).map(|(key, _)| key.clone()).collect();
        self.held.retain(|key, _| !due.contains(key));
        due
    }

    /// The ports that are held.
    pub fn ports(&self) -> BTreeSet<u16> {
        self.held.keys().map(|key| key.address.port()).collect()
    }

    /// All that is held.
    pub fn held(&self) -> impl Iterator<Item = (&Key, &S)> {
        self.held.iter().map(|(key, share)| (key, &share.socket))
    }

    /// Closes all. Returns the claims that wait: the kernel decides them.
    pub fn close(&mut self) -> Vec<Claimant> {
        self.held.clear();
        std::mem::take(&mut self.bound).into_values().flat_map(|bound| bound.waiting).collect()
    }

    fn closes_at(&self, share: &Share<S>, serving: Option<u32>) -> Option<Instant> {
        let abandoned = share.abandoned?;
        let claimed = serving.and_then(|serving| self.first_claims.get(&serving));
        Some(claimed.map_or(abandoned + self.patience, |&first| abandoned.max(first + SETTLED)))
    }
}

#[cfg(test)]
mod tests;
