//! What a worker does to a unix listener that it shares with all others. A `shutdown()` of one lasts for ever: it is
//! bound anew, and whoever has only the old one must be replaced. A `listen()` with a shorter queue is undone.
//!
//! The kernel tells of a shutdown by a hang-up, as for TCP; of a queue it tells nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::config::{Address, Listen};
use crate::sockets::{Listener, Refusal, bind};
use crate::sys::poller::Poller;

/// What could not be bound anew is tried again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// Watches over the unix listeners among those of the plan, each known by its place there.
#[derive(Debug)]
pub(super) struct UnixGuard {
    first_token: u64,
    /// Those that were shut down, and when each is to be bound anew.
    dead: BTreeMap<usize, Dead>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Dead {
    #[serde(with = "crate::carry::moment::option")]
    due: Option<Instant>,
    told: bool,
}

impl UnixGuard {
    /// Over nothing yet. All tokens from `first_token` on are its own.
    pub(super) fn new(first_token: u64) -> UnixGuard {
        UnixGuard { first_token, dead: BTreeMap::new() }
    }

    /// Those that were shut down, for the next main.
    pub(super) fn dead(&self) -> BTreeMap<usize, Dead> {
        self.dead.clone()
    }

    /// Goes on where the main before was.
    pub(super) fn resume(&mut self, dead: BTreeMap<usize, Dead>) {
        self.dead = dead;
    }

    /// Watches a listener, if it is one of its kind.
    fn watch(&self, place: usize, wanted: &Listen, listener: &Listener, poller: &Poller) {
        if !is_ours(wanted) {
            return;
        }
        if let Err(error) = poller.watch_hang_up(listener, self.first_token + place as u64) {
            let address = &wanted.address;
            log::warn!("cannot watch over {address}: {error}; should a worker shut it down, nobody will know");
        }
    }

    /// Watches all of its kind.
    pub(super) fn watch_all(&self, wanted: &[Listen], listeners: &[Listener], poller: &Poller) {
        for (place, (wanted, listener)) in wanted.iter().zip(listeners).enumerate() {
            self.watch(place, wanted, listener, poller);
        }
    }

    /// A worker may have called `listen()`: gives every queue its length back. Whether it was cut nobody can see.
    pub(super) fn lengthen(&self, wanted: &[Listen], listeners: &[Listener]) {
        for (wanted, listener) in wanted.iter().zip(listeners).filter(|(wanted, _)| is_ours(wanted)) {
            // Refused only where it is dead, and will be bound anew.
            let _ = listener.set_backlog(wanted.backlog);
        }
    }

    /// The kernel says that somebody shut one down.
    pub(super) fn hung_up(&mut self, token: u64, now: Instant, listeners: &[Listener], poller: &Poller) {
        let place = (token - self.first_token) as usize;
        if let Some(listener) = listeners.get(place) {
            poller.forget(listener);
            self.dead.entry(place).or_insert(Dead { due: Some(now), told: false });
        }
    }

    /// When something is to be done.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.dead.values().filter_map(|dead| dead.due).min()
    }

    /// Binds anew what is due, and tells of it. Returns whether there is anything that no generation has yet.
    pub(super) fn act(
        &mut self,
        now: Instant,
        wanted: &[Listen],
        listeners: &mut [Listener],
        poller: &Poller,
        suspects: impl Fn() -> String,
    ) -> bool {
        let is_due = |dead: &Dead| dead.due.is_some_and(|due| due <= now);
        let due: Vec<usize> = self.dead.iter().filter(|(_, dead)| is_due(dead)).map(|(place, _)| *place).collect();
        let mut any = false;
        for place in due {
            let (Some(wanted), Some(listener)) = (wanted.get(place), listeners.get_mut(place)) else { continue };
            match renew(wanted) {
                Ok(new) => {
                    *listener = new;
                    self.dead.remove(&place);
                    self.watch(place, wanted, listener, poller);
                    any = true;
                    let (who, address) = (suspects(), &wanted.address);
                    log::warn!("{who} shut down {address}; it is bound anew, for a new generation");
                }
                Err(why) => self.put_off(place, now, &why, &suspects),
            }
        }
        any
    }

    /// Lets go of everything.
    pub(super) fn clear(&mut self, listeners: &[Listener], poller: &Poller) {
        listeners.iter().for_each(|listener| poller.forget(listener));
        self.dead.clear();
    }

    fn put_off(&mut self, place: usize, now: Instant, why: &WhyNot, suspects: impl Fn() -> String) {
        let Some(dead) = self.dead.get_mut(&place) else { return };
        let first = !std::mem::replace(&mut dead.told, true);
        dead.due = match why {
            WhyNot::ForNow(_) => Some(now + AGAIN),
            WhyNot::Ever(_) => None,
        };
        let (WhyNot::ForNow(why) | WhyNot::Ever(why)) = why;
        if first {
            log::error!("{} shut down a listener: {why}", suspects());
        }
    }
}

enum WhyNot {
    ForNow(String),
    Ever(String),
}

fn renew(wanted: &Listen) -> Result<Listener, WhyNot> {
    if let Address::Abstract(_) = wanted.address {
        // Its name is taken for as long as any worker, old ones too, holds the socket that is dead.
        let why = format!("{} accepts no more until panzer is restarted", wanted.address);
        return Err(WhyNot::Ever(format!("{why}; one with a path, as unix:/run/app.sock, would be bound anew")));
    }
    bind(wanted, 0).map_err(|(Refusal::Passing(why) | Refusal::Unseen(why) | Refusal::Final(why))| {
        WhyNot::ForNow(format!("{why}; trying again every second"))
    })
}

/// What panzer was started with is its owner's to bind.
fn is_ours(wanted: &Listen) -> bool {
    wanted.inherited.is_none() && matches!(wanted.address, Address::Unix(_) | Address::Abstract(_))
}
