//! What a worker does to a unix listener that it shares with all others. A `shutdown()` of one lasts for ever: it is
//! bound anew, and whoever has only the old one must be replaced. One that panzer was started with is its owner's to bind:
//! people are told. A `listen()` with a shorter queue is undone.
//!
//! The kernel tells of a shutdown by a hang-up, as for TCP; of a queue it tells nothing.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::config::Address;
use crate::main_process::listeners::held::{AllHeld, Held};
use crate::sockets::{Listener, bind};
use crate::sys::errno::words;
use crate::sys::poller::Poller;
use crate::sys::unix_queue;
use nix::sys::stat::fstat;

/// What could not be bound anew is tried again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// Watches over the unix listeners among those that are held, each known by its number.
#[derive(Debug)]
pub(crate) struct UnixGuard {
    first_token: u64,
    /// Those that were shut down, and when each is to be bound anew.
    dead: BTreeMap<u64, Dead>,
    /// The longest queue that each inherited one has had, as far as the kernel tells.
    queues: BTreeMap<u64, u32>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Dead {
    #[serde(with = "crate::carry::moment::option")]
    due: Option<Instant>,
    told: bool,
}

impl UnixGuard {
    /// Over nothing yet. All tokens from `first_token` on are its own.
    pub(crate) fn new(first_token: u64) -> UnixGuard {
        UnixGuard { first_token, dead: BTreeMap::new(), queues: BTreeMap::new() }
    }

    /// Those that were shut down, and the queues, for the next main.
    pub(crate) fn carry(&self) -> (BTreeMap<u64, Dead>, BTreeMap<u64, u32>) {
        (self.dead.clone(), self.queues.clone())
    }

    /// Goes on where the main before was.
    pub(crate) fn resume(&mut self, dead: BTreeMap<u64, Dead>, queues: BTreeMap<u64, u32>) {
        (self.dead, self.queues) = (dead, queues);
    }

    /// Watches a listener, if it is one of its kind.
    pub(crate) fn watch(&mut self, held: &Held, poller: &Poller) {
        if !is_unix(held) {
            return;
        }
        if let Some(queue) = queue_of(held).filter(|_| held.listen.inherited.is_some()) {
            self.queues.entry(held.number).or_insert(queue);
        }
        if let Err(error) = poller.watch_hang_up(&held.listener, self.first_token + held.number) {
            let address = &held.name;
            log::warn!(
                "cannot watch over {address}: {}; should a worker shut it down, nobody will know",
                words(&error)
            );
        }
    }

    /// Watches all of its kind.
    pub(crate) fn watch_all(&mut self, held: &AllHeld, poller: &Poller) {
        held.iter().for_each(|held| self.watch(held, poller));
    }

    /// Lets go of one.
    pub(crate) fn forget(&mut self, held: &Held, poller: &Poller) {
        if is_unix(held) {
            poller.forget(&held.listener);
            self.dead.remove(&held.number);
            self.queues.remove(&held.number);
        }
    }

    /// A worker may have called `listen()`: gives every queue its length back.
    pub(crate) fn lengthen(&mut self, held: &AllHeld) {
        for held in held.iter().filter(|held| is_unix(held)) {
            let mut length = held.listen.backlog;
            // Of all others it need not be seen whether they were cut.
            if length.is_none() && held.listen.inherited.is_some() {
                let Some(current) = queue_of(held) else { continue };
                let longest =
                    *self.queues.entry(held.number).and_modify(|it| *it = current.max(*it)).or_insert(current);
                if current == longest {
                    continue;
                }
                length = Some(longest);
            }
            // Refused only where it is dead.
            let _ = held.listener.set_backlog(length);
        }
    }

    /// The kernel says that somebody shut one down.
    pub(crate) fn hung_up(&mut self, token: u64, now: Instant, held: &AllHeld, poller: &Poller) {
        let number = token - self.first_token;
        if let Some(held) = held.by_number(number) {
            poller.forget(&held.listener);
            self.dead.entry(number).or_insert(Dead { due: Some(now), told: false });
        }
    }

    /// When something is to be done.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.dead.values().filter_map(|dead| dead.due).min()
    }

    /// Binds anew what is due, and tells of it. Returns whether there is anything that no generation has yet.
    pub(crate) fn act(
        &mut self,
        now: Instant,
        held: &mut AllHeld,
        poller: &Poller,
        suspects: impl Fn() -> String,
    ) -> bool {
        let is_due = |dead: &Dead| dead.due.is_some_and(|due| due <= now);
        let due: Vec<u64> = self.dead.iter().filter(|(_, dead)| is_due(dead)).map(|(number, _)| *number).collect();
        let mut any = false;
        for number in due {
            let Some(held) = held.iter_mut().find(|held| held.number == number) else {
                self.dead.remove(&number);
                continue;
            };
            held.listener.remove_path();
            match renew(held) {
                Ok(new) => {
                    held.listener = new;
                    self.dead.remove(&number);
                    self.watch(held, poller);
                    any = true;
                    let (who, address) = (suspects(), &held.name);
                    log::warn!("{who} shut down {address}; it is bound anew, for a new generation");
                }
                Err(why) => self.put_off(number, now, &why, &suspects),
            }
        }
        any
    }

    /// Lets go of everything.
    pub(crate) fn clear(&mut self, held: &AllHeld, poller: &Poller) {
        held.iter().filter(|held| is_unix(held)).for_each(|held| poller.forget(&held.listener));
        self.dead.clear();
    }

    fn put_off(&mut self, number: u64, now: Instant, why: &WhyNot, suspects: impl Fn() -> String) {
        let Some(dead) = self.dead.get_mut(&number) else { return };
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

fn renew(held: &Held) -> Result<Listener, WhyNot> {
    let wanted = &held.listen;
    if wanted.inherited.is_some() {
        let why = format!("{}, which panzer was started with, accepts no more", held.name);
        return Err(WhyNot::Ever(format!("{why}; restart what made it, such as the systemd socket unit, and panzer")));
    }
    if let Address::Abstract(_) = wanted.address {
        // Its name is taken for as long as any worker, old ones too, holds the socket that is dead.
        let why = format!("{} accepts no more until panzer is restarted", wanted.address);
        return Err(WhyNot::Ever(format!("{why}; one with a path, as unix:/run/app.sock, would be bound anew")));
    }
    bind(wanted, 0).map_err(|refusal| WhyNot::ForNow(format!("{}; trying again every second", refusal.why())))
}

fn is_unix(held: &Held) -> bool {
    matches!(held.listen.address, Address::Unix(_) | Address::Abstract(_) | Address::Other { accepts: true, .. })
}

/// The limit of its queue. None where the kernel does not tell.
fn queue_of(held: &Held) -> Option<u32> {
    let inode = u32::try_from(fstat(held.listener.as_fd()).ok()?.st_ino).ok()?;
    unix_queue::accept_queue(inode).ok()?.map(|(_, limit)| limit)
}
