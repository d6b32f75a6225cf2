//! Shared ports on main's side, pure: which sockets are held and for whom, which are bound without listening, and who
//! waits.
//!
//! A bind alone is provisional: its socket is not held. A worker that wants to bind the same address waits while the
//! first one may still listen. Main asks the monitor of the first one from time to time.
//!
//! The first socket that listens is held. Every later claim of its address gets this socket, whatever its generation. A
//! socket that no living generation has claimed is closed, so that clients are refused and do not wait for ever. It is
//! not closed before the serving generation had time to bind: with `--ready alive` that generation serves before it
//! binds.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::vocabulary::Monitor;
use crate::config::MAX_LISTENERS;
use crate::sockets::sharing::Key;

/// A program has bound all its ports within this time after its first listen.
const SETTLED: Duration = Duration::from_secs(1);

/// Number of binds without a listen that are remembered. Nobody waits for a bind that is not remembered.
const MAX_BOUND: usize = 1024;

/// The first pause before a monitor is asked whether a socket may still listen. It doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_millis(160);

/// If a monitor does not answer within this time, others no longer wait for it.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// A claim whose caller waits in its bind: the monitor that answers it, and the monitor's ticket for it.
pub type Claimant = (Monitor, u64);

/// All shared sockets, each an `S`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, bound = "S: Serialize + DeserializeOwned")]
pub struct Shares<S> {
    #[serde(with = "crate::carry::pairs")]
    held: BTreeMap<Key, Share<S>>,
    /// When each living generation first claimed a held socket.
    #[serde(with = "crate::carry::moment::by_key")]
    first_claims: BTreeMap<u32, Instant>,
    /// Time that the serving generation has for its first claim, according to its plan.
    patience: Duration,
    /// Sockets that are bound and do not listen yet.
    #[serde(default, with = "crate::carry::pairs", skip_serializing_if = "BTreeMap::is_empty")]
    bound: BTreeMap<Key, Bound>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Share<S> {
    socket: S,
    claimed_by: BTreeSet<u32>,
    /// Since when no living generation claims it.
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
    /// While others wait: when to ask the monitor; if it has been asked, when it must have answered.
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
    /// Another worker has bound the address and may still listen. The answer follows.
    Waits,
    /// The kernel decides.
    Kernel,
}

/// Work that is due about binds that others wait for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Binds whose monitor is to be asked whether the socket may still listen.
    pub looks: Vec<Claimant>,
    /// Claims that are to be made again.
    pub again: Vec<Claimant>,
}

impl<S> Shares<S> {
    /// No socket yet. A generation that has not claimed anything within `patience` will not claim any.
    pub fn new(patience: Duration) -> Shares<S> {
        Shares { held: BTreeMap::new(), first_claims: BTreeMap::new(), patience, bound: BTreeMap::new() }
    }

    /// Answers a worker's claim of `key`, made by `process`. A claim of a port that is not to be shared never waits; it
    /// only gets a socket that is held already.
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
            // A process does not wait for itself.
            Some(bound) if may_wait && bound.process != process => {
                bound.waiting.push(claimant);
                bound.next.get_or_insert(now + bound.pause);
                Claimed::Waits
            }
            _ => Claimed::Kernel,
        }
    }

    /// The kernel has carried the bind out: the socket is bound, and may listen later.
    pub fn bound(&mut self, key: Key, by: Claimant, process: i32) {
        if self.bound.len() >= MAX_BOUND {
            self.bound.retain(|_, bound| !bound.waiting.is_empty());
        }
        let (waiting, next) = self.bound.remove(&key).map_or((Vec::new(), None), |old| (old.waiting, old.next));
        self.bound.insert(key, Bound { by, process, waiting, next, asked: false, pause: FIRST_PAUSE });
    }

    /// The work that is due by `now`.
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

    /// A monitor's answer: whether the socket of that bind may still listen. Returns the claims that are to be made
    /// again.
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

    /// A monitor has ended, and so have the claims of its workers. Returns the claims of others that are to be made
    /// again.
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

    /// Holds a socket that listens, for `generation`. Returns the claims that waited for it; None if too many sockets
    /// are held.
    pub fn hold(&mut self, key: &Key, socket: S, generation: u32, now: Instant) -> Option<Vec<Claimant>> {
        if self.held.len() >= MAX_LISTENERS {
            return None;
        }
        self.held.insert(key.clone(), Share { socket, claimed_by: BTreeSet::new(), abandoned: None });
        self.take(key, generation, now);
        Some(self.bound.remove(key).map(|bound| bound.waiting).unwrap_or_default())
    }

    /// The socket that is held there. `generation` has claimed it from now on.
    pub fn take(&mut self, key: &Key, generation: u32, now: Instant) -> Option<&S> {
        let share = self.held.get_mut(key)?;
        self.first_claims.entry(generation).or_insert(now);
        share.claimed_by.insert(generation);
        share.abandoned = None;
        Some(&share.socket)
    }

    /// Holds a socket that was bound in another way, until it is claimed or abandoned. False if one is held there
    /// already.
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

    /// When to close a socket, or to ask a monitor.
    pub fn deadline(&self, serving: Option<u32>) -> Option<Instant> {
        let closes = self.held.values().filter_map(|share| self.closes_at(share, serving));
        closes.chain(self.bound.values().filter_map(|bound| bound.next)).min()
    }

    /// Closes the sockets whose time is over. Returns their keys.
    pub fn close_abandoned(&mut self, serving: Option<u32>, now: Instant) -> Vec<Key> {
        let is_due = |share: &Share<S>| self.closes_at(share, serving).is_some_and(|at| at <= now);
        let due: Vec<Key> = self.held.iter().filter(|(_, share)| is_due(share)).map(|(key, _)| key.clone()).collect();
        self.held.retain(|key, _| !due.contains(key));
        due
    }

    /// The ports of all held sockets.
    pub fn ports(&self) -> BTreeSet<u16> {
        self.held.keys().map(|key| key.address.port()).collect()
    }

    /// All held sockets.
    pub fn held(&self) -> impl Iterator<Item = (&Key, &S)> {
        self.held.iter().map(|(key, share)| (key, &share.socket))
    }

    /// Closes all sockets. Returns the claims that wait. The kernel decides them.
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
