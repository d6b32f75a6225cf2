//! Shared ports, main's side: what is held, and for whom.
//!
//! The first claim of an address is the one whose socket is bound and held; every later one, of whatever generation,
//! gets that. What no living generation has claimed is let go of, so that clients are refused rather than left waiting;
//! but not before the serving one has had the time to claim it, should it be ready by no more than being alive.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::MOST_LISTENERS;
use crate::sockets::sharing::Key;

/// Within this after its first bind a program has made the others as well.
const SETTLED: Duration = Duration::from_secs(1);

/// All shared sockets, each an `S`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, bound = "S: Serialize + DeserializeOwned")]
pub(super) struct Shares<S> {
    #[serde(with = "crate::carry::pairs")]
    held: BTreeMap<Key, Share<S>>,
    /// When each living generation claimed something for the first time.
    #[serde(with = "crate::carry::moment::by_key")]
    first_claims: BTreeMap<u32, Instant>,
    /// Time that the serving generation has to claim anything, by its plan.
    patience: Duration,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Share<S> {
    socket: S,
    claimed_by: BTreeSet<u32>,
    /// Since when no living generation has claimed it.
    #[serde(with = "crate::carry::moment::option")]
    abandoned: Option<Instant>,
}

/// Why a claim comes to nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Denied<E> {
    /// More are held than any service has.
    TooMany,
    /// It could not be bound.
    NotBound(E),
}

impl<S> Shares<S> {
    /// None yet. A generation that has claimed nothing within `patience` will not.
    pub(super) fn new(patience: Duration) -> Shares<S> {
        Shares { held: BTreeMap::new(), first_claims: BTreeMap::new(), patience }
    }

    /// What a worker of `generation` gets that claims `key`. Where nobody did before, `bind` makes its own socket that.
    pub(super) fn claim<E>(
        &mut self,
        key: &Key,
        generation: u32,
        now: Instant,
        bind: impl FnOnce() -> Result<S, E>,
    ) -> Result<&S, Denied<E>> {
        if !self.held.contains_key(key) {
            if self.held.len() >= MOST_LISTENERS {
                return Err(Denied::TooMany);
            }
            let socket = bind().map_err(Denied::NotBound)?;
            self.held.insert(key.clone(), Share { socket, claimed_by: BTreeSet::new(), abandoned: None });
        }
        self.first_claims.entry(generation).or_insert(now);
        let share = self.held.get_mut(key).ok_or(Denied::TooMany)?;
        share.claimed_by.insert(generation);
        share.abandoned = None;
        Ok(&share.socket)
    }

    /// Holds what was bound otherwise, until it is claimed or nobody may any more. False where there is such already.
    pub(super) fn offer(&mut self, key: Key, socket: S, now: Instant) -> bool {
        if self.held.contains_key(&key) || self.held.len() >= MOST_LISTENERS {
            return false;
        }
        self.held.insert(key, Share { socket, claimed_by: BTreeSet::new(), abandoned: Some(now) });
        true
    }

    /// A generation is gone, with all its processes.
    pub(super) fn release(&mut self, generation: u32, now: Instant) {
        self.first_claims.remove(&generation);
        for share in self.held.values_mut() {
            share.claimed_by.remove(&generation);
            if share.claimed_by.is_empty() {
                share.abandoned.get_or_insert(now);
            }
        }
    }

    /// Follows the plan in force.
    pub(super) fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// When something may have to be closed.
    pub(super) fn deadline(&self, serving: Option<u32>) -> Option<Instant> {
        self.held.values().filter_map(|share| self.closes_at(share, serving)).min()
    }

    /// Closes what is abandoned for good. Returns what that was.
    pub(super) fn close_abandoned(&mut self, serving: Option<u32>, now: Instant) -> Vec<Key> {
        let is_due = |share: &Share<S>| self.closes_at(share, serving).is_some_and(|at| at <= now);
        let due: Vec<Key> = self.held.iter().filter(|(_, share)| is_due(share)).map(|(key, _)| key.clone()).collect();
        self.held.retain(|key, _| !due.contains(key));
        due
    }

    /// All that is held.
    pub(super) fn held(&self) -> impl Iterator<Item = (&Key, &S)> {
        self.held.iter().map(|(key, share)| (key, &share.socket))
    }

    /// The same with other sockets for these, as one main hands them on to the next; or the first error.
    pub(super) fn with_sockets<'a, T, E>(
        &'a self,
        mut socket: impl FnMut(&'a S) -> Result<T, E>,
    ) -> Result<Shares<T>, E> {
        let mut share = |(key, share): (&Key, &'a Share<S>)| {
            let (claimed_by, abandoned) = (share.claimed_by.clone(), share.abandoned);
            Ok((key.clone(), Share { socket: socket(&share.socket)?, claimed_by, abandoned }))
        };
        let held = self.held.iter().map(&mut share).collect::<Result<_, E>>()?;
        Ok(Shares { held, first_claims: self.first_claims.clone(), patience: self.patience })
    }

    /// Closes all.
    pub(super) fn close(&mut self) {
        self.held.clear();
    }

    fn closes_at(&self, share: &Share<S>, serving: Option<u32>) -> Option<Instant> {
        let abandoned = share.abandoned?;
        let claimed = serving.and_then(|serving| self.first_claims.get(&serving));
        Some(claimed.map_or(abandoned + self.patience, |&first| abandoned.max(first + SETTLED)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> Key {
        Key { network: 1, device: String::new(), v6_only: false, address: ([127, 0, 0, 1], port).into() }
    }

    fn bound(name: &str) -> impl FnOnce() -> Result<String, &'static str> {
        let name = name.to_owned();
        || Ok(name)
    }

    fn never() -> Result<String, &'static str> {
        panic!("it is held already");
    }

    const PATIENCE: Duration = Duration::from_secs(60);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_is_bound_and_all_others_get_it() {
        let (mut shares, now) = (Shares::new(PATIENCE), Instant::now());
        assert_eq!(shares.claim(&key(80), 1, now, bound("first")), Ok(&"first".to_owned()));
        assert_eq!(shares.claim(&key(80), 1, now, never), Ok(&"first".to_owned()));
        assert_eq!(shares.claim(&key(80), 2, now, never), Ok(&"first".to_owned()));
        assert_eq!(shares.claim(&key(81), 2, now, bound("other")), Ok(&"other".to_owned()));
    }

    #[test]
    fn who_cannot_bind_leaves_the_address_to_the_next() {
        let (mut shares, now) = (Shares::new(PATIENCE), Instant::now());
        assert_eq!(shares.claim(&key(80), 1, now, || Err("in use")), Err(Denied::NotBound("in use")));
        assert_eq!(shares.claim(&key(80), 1, now, bound("second")), Ok(&"second".to_owned()));
    }

    #[test]
    fn what_the_next_release_does_not_bind_is_closed_once_the_old_one_is_gone() {
        let (mut shares, start) = (Shares::new(PATIENCE), Instant::now());
        for port in [80, 81] {
            shares.claim(&key(port), 1, start, bound("any")).unwrap();
        }
        shares.claim(&key(80), 2, start, never).unwrap();
        assert_eq!(shares.deadline(Some(2)), None);
        shares.release(1, start + 5 * SECOND);
        assert_eq!(shares.deadline(Some(2)), Some(start + 5 * SECOND));
        assert_eq!(shares.close_abandoned(Some(2), start + 5 * SECOND), [key(81)]);
        assert_eq!(shares.deadline(Some(2)), None);
    }

    #[test]
    fn a_failed_release_takes_with_it_what_it_alone_had_bound() {
        let (mut shares, now) = (Shares::new(PATIENCE), Instant::now());
        shares.claim(&key(80), 1, now, bound("old")).unwrap();
        shares.claim(&key(80), 2, now, never).unwrap();
        shares.claim(&key(81), 2, now, bound("new")).unwrap();
        shares.release(2, now + 2 * SECOND);
        assert_eq!(shares.close_abandoned(Some(1), now + 2 * SECOND), [key(81)]);
        assert_eq!(shares.claim(&key(80), 1, now, never), Ok(&"old".to_owned()));
    }

    #[test]
    fn a_slow_release_finds_the_listener_as_it_was() {
        let (mut shares, start) = (Shares::new(PATIENCE), Instant::now());
        for port in [80, 81] {
            shares.claim(&key(port), 1, start, bound("any")).unwrap();
        }
        shares.release(1, start);
        assert_eq!(shares.deadline(Some(2)), Some(start + PATIENCE));
        let late = start + 30 * SECOND;
        assert_eq!(shares.close_abandoned(Some(2), late), []);
        shares.claim(&key(80), 2, late, never).unwrap();
        assert_eq!(shares.close_abandoned(Some(2), late), [], "it may bind more than one");
        assert_eq!(shares.close_abandoned(Some(2), late + SETTLED), [key(81)]);
    }

    #[test]
    fn patience_follows_the_plan_in_force() {
        let (mut shares, start) = (Shares::new(SECOND), Instant::now());
        shares.claim(&key(80), 1, start, bound("any")).unwrap();
        shares.release(1, start);
        shares.set_patience(PATIENCE);
        assert_eq!(shares.deadline(Some(2)), Some(start + PATIENCE));
    }

    #[test]
    fn what_is_offered_waits_to_be_claimed() {
        let (mut shares, start) = (Shares::new(PATIENCE), Instant::now());
        assert!(shares.offer(key(80), "offered".to_owned(), start) && shares.offer(key(81), "other".to_owned(), start));
        assert!(!shares.offer(key(80), "twice".to_owned(), start));
        assert_eq!(shares.claim(&key(80), 2, start, never), Ok(&"offered".to_owned()));
        assert_eq!(shares.close_abandoned(Some(2), start + SETTLED), [key(81)]);
    }

    #[test]
    fn there_is_a_limit() {
        let (mut shares, now) = (Shares::new(PATIENCE), Instant::now());
        for port in 0..MOST_LISTENERS as u16 {
            shares.claim(&key(port), 1, now, bound("any")).unwrap();
        }
        assert_eq!(shares.claim(&key(9999), 1, now, bound("any")), Err(Denied::TooMany));
        assert!(shares.claim(&key(7), 1, now, never).is_ok());
        shares.close();
        assert!(shares.claim(&key(9999), 1, now, bound("any")).is_ok());
    }
}
