//! Undoes what a worker does to a TCP listener that it shares: a `shutdown()`, which closes it for all workers, and a
//! `listen()` with a shorter queue.
//!
//! The kernel reports a shutdown as a hang-up. Queues are checked when a worker becomes ready or ends, when a
//! generation serves, fails or ends, and some times after that, because a worker may call `listen()` late. They are
//! also checked whenever main is awake for another reason. As long as nothing happens, main does not wake for this.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};
use nix::sys::stat::fstat;

use serde::{Deserialize, Serialize};

use crate::sys::errno::words;
use crate::sys::poller::Poller;
use crate::sys::socket_options;

/// A listener that is shut down again and again is revived at most once in this time.
const PACE: Duration = Duration::from_millis(20);

/// A revival is logged at most once in this time.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// Number of seconds after an event at which queues are checked again, because a `listen()` may come late.
const LOOKS: [u64; 3] = [1, 5, 30];

/// While main is awake for other reasons, queues are checked at most once in this time.
const LOOK_PACE: Duration = Duration::from_secs(1);

/// The listeners that are guarded.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Guard {
    all: Vec<Guarded>,
    #[serde(skip)]
    next_token: u64,
    /// When to look at the queues again, the latest time first.
    #[serde(skip)]
    looks: Vec<Instant>,
    #[serde(skip)]
    looked: Option<Instant>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Guarded {
    #[serde(rename = "fd", with = "crate::carry::descriptor")]
    socket: OwnedFd,
    name: String,
    /// The longest queue that it has had. None before it listened.
    queue: Option<u32>,
    /// Token under which it is watched.
    #[serde(skip)]
    token: u64,
    /// When it was revived last, and when it is to be revived.
    #[serde(skip)]
    revived: Option<Instant>,
    #[serde(skip)]
    due: Option<Instant>,
    /// When the last revival was logged, and the number of revivals since.
    #[serde(skip)]
    told: Option<Instant>,
    #[serde(skip)]
    untold: u32,
    #[serde(skip)]
    queue_told: bool,
    /// Whether it was logged that it cannot listen again.
    #[serde(skip)]
    failure_told: bool,
}

impl Guard {
    /// Guards nothing yet. All tokens from `first_token` on are its own.
    pub(crate) fn new(first_token: u64) -> Guard {
        Guard { all: Vec::new(), next_token: first_token, looks: Vec::new(), looked: None }
    }

    /// Goes on after a restart in place. Every socket that listened is watched, even if it was shut down meanwhile.
    pub(crate) fn resume(&mut self, first_token: u64, poller: &Poller) {
        self.next_token = first_token + self.all.len() as u64;
        for (guarded, token) in self.all.iter_mut().zip(first_token..) {
            guarded.token = token;
            if guarded.queue.is_some() {
                guarded.watch(poller);
            }
        }
    }

    /// Adds a socket. It is watched once it listens. One socket may be here twice: as a listener of the plan, and as a
    /// port that workers have bound.
    pub(crate) fn add(&mut self, name: String, socket: BorrowedFd<'_>) {
        match socket.try_clone_to_owned() {
            Ok(socket) => self.all.push(Guarded::new(socket, name, self.next_token)),
            Err(error) => return tell_unwatched(&name, &error),
        };
        self.next_token += 1;
    }

    /// The sockets with their names.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        self.all.iter().map(|guarded| (guarded.name.as_str(), guarded.socket.as_fd()))
    }

    /// The listener with this name was given another queue length.
    pub(crate) fn note_queue(&mut self, name: &str) {
        for guarded in self.all.iter_mut().filter(|guarded| guarded.name == name) {
            guarded.queue = socket_options::backlog(&guarded.socket).ok().flatten().or(guarded.queue);
        }
    }

    /// Stops guarding the listener with this name.
    pub(crate) fn remove(&mut self, name: &str, poller: &Poller) {
        self.all.retain(|guarded| {
            if guarded.name == name {
                poller.forget(&guarded.socket);
            }
            guarded.name != name
        });
    }

    /// Stops guarding.
    pub(crate) fn clear(&mut self, poller: &Poller) {
        self.all.iter().for_each(|guarded| poller.forget(&guarded.socket));
        self.all.clear();
        self.looks.clear();
    }

    /// A worker may have called `listen()`: finds sockets that listen by now, and gives shortened queues their length
    /// back.
    pub(crate) fn look(&mut self, now: Instant, poller: &Poller) {
        self.looked = Some(now);
        for guarded in &mut self.all {
            let Ok(current) = socket_options::backlog(&guarded.socket) else { continue };
            match (guarded.queue, current) {
                (None, None) => {}
                (None, Some(current)) => {
                    guarded.queue = Some(current);
                    guarded.watch(poller);
                }
                (Some(queue), Some(current)) if current < queue => guarded.lengthen(current, queue),
                (Some(_), Some(current)) => guarded.queue = Some(current),
                // Its shutdown was not reported, for example because it could not be watched.
                (Some(_), None) => {
                    poller.forget(&guarded.socket);
                    guarded.due.get_or_insert(guarded.next_revival(now));
                }
            }
        }
    }

    /// Checks queues some times from now on.
    pub(crate) fn look_again_after(&mut self, now: Instant) {
        self.looks = LOOKS.iter().rev().map(|pause| now + Duration::from_secs(*pause)).collect();
    }

    /// Whether it is time to check queues.
    pub(crate) fn look_is_due(&mut self, now: Instant) -> bool {
        self.looks.pop_if(|look| *look <= now).is_some()
    }

    /// Whether queues may be checked because main is awake anyway.
    pub(crate) fn may_look(&self, now: Instant) -> bool {
        self.looked.is_none_or(|looked| looked + LOOK_PACE <= now)
    }

    /// The kernel reports that a listener was shut down. It is watched again once it is revived. Returns its name.
    pub(crate) fn on_hang_up(&mut self, token: u64, now: Instant, poller: &Poller) -> Option<&str> {
        let guarded = self.all.iter_mut().find(|guarded| guarded.token == token)?;
        poller.forget(&guarded.socket);
        guarded.due = Some(guarded.next_revival(now));
        Some(&guarded.name)
    }

    /// Whether a listener is to be revived now.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.all.iter().any(|guarded| guarded.due.is_some_and(|due| due <= now))
    }

    /// When something is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let telling = |guarded: &Guarded| guarded.told.filter(|_| guarded.untold > 0).map(|told| told + TOLD_EVERY);
        let listeners = self.all.iter().flat_map(|guarded| [guarded.due, telling(guarded)]).flatten();
        listeners.chain(self.looks.last().copied()).min()
    }

    /// Revives the listeners that are due, and logs it. `suspects` names the workers that may have done it. Returns the
    /// names of the listeners that listen again, in the order in which they do.
    pub(crate) fn act(&mut self, now: Instant, poller: &Poller, suspects: impl Fn() -> String) -> Vec<String> {
        let mut revived = Vec::new();
        let mut done = BTreeSet::new();
        for guarded in &mut self.all {
            if guarded.due.is_some_and(|due| due <= now) {
                let listens = if done.insert(guarded.inode()) {
                    guarded.revive(now, poller)
                } else {
                    // The same socket under another name was revived a moment ago.
                    guarded.note_revived(now, poller);
                    true
                };
                if listens {
                    revived.push(guarded.name.clone());
                }
            }
            let may_tell = guarded.told.is_none_or(|told| told + TOLD_EVERY <= now);
            if guarded.untold > 0 && may_tell {
                let times = if guarded.untold > 1 { format!(" {} times", guarded.untold) } else { String::new() };
                log::warn!("{} shut down {}{times}; it listens again", suspects(), guarded.name);
                (guarded.told, guarded.untold) = (Some(now), 0);
            }
        }
        revived
    }
}

impl Guarded {
    fn new(socket: OwnedFd, name: String, token: u64) -> Guarded {
        let (revived, due, told) = (None, None, None);
        let (queue_told, failure_told) = (false, false);
        Guarded { socket, name, queue: None, token, revived, due, told, untold: 0, queue_told, failure_told }
    }

    fn inode(&self) -> u64 {
        fstat(&self.socket).map_or(0, |stat| stat.st_ino)
    }

    fn watch(&self, poller: &Poller) {
        if let Err(error) = poller.watch_hang_up(&self.socket, self.token) {
            tell_unwatched(&self.name, &error);
        }
    }

    fn next_revival(&self, now: Instant) -> Instant {
        self.revived.map_or(now, |revived| now.max(revived + PACE))
    }

    /// Returns whether it listens again.
    fn revive(&mut self, now: Instant, poller: &Poller) -> bool {
        self.revived = Some(now);
        // If shutdown() was called twice, every accepted connection inherits the mark. Calling shutdown() while the
        // socket listens clears it.
        let listens = socket_options::listen(&self.socket, self.queue.unwrap_or(u32::MAX));
        // Refused only if a worker has just done the same.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        match listens.and_then(|()| socket_options::listen(&self.socket, self.queue.unwrap_or(u32::MAX))) {
            Ok(()) => {
                self.untold += 1;
                self.note_revived(now, poller);
                true
            }
            Err(error) => {
                // Another process has the address now, and may give it back.
                self.due = Some(now + TOLD_EVERY);
                if !std::mem::replace(&mut self.failure_told, true) {
                    let (name, why) = (&self.name, words(&error));
                    log::error!("a worker shut down {name}, and it cannot listen again: {why}; trying every second");
                }
                false
            }
        }
    }

    fn note_revived(&mut self, now: Instant, poller: &Poller) {
        (self.revived, self.due, self.failure_told) = (Some(now), None, false);
        self.watch(poller);
    }

    fn lengthen(&mut self, current: u32, queue: u32) {
        let longer = socket_options::listen(&self.socket, queue);
        if std::mem::replace(&mut self.queue_told, true) {
            return;
        }
        let name = &self.name;
        match longer {
            Ok(()) => log::info!("a worker cut the queue of {name} to {current}; it is {queue} again (said once)"),
            Err(error) => {
                let why = words(&error);
                log::warn!("a worker cut the queue of {name} to {current}, and it cannot be {queue} again: {why}");
            }
        }
    }
}

pub(crate) fn tell_unwatched(name: &str, error: &io::Error) {
    log::warn!("cannot watch {name}: {}; if a worker shuts it down, panzer will not notice", words(error));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::fd::AsFd;

    /// Long after the last event main does not wake for a look. When it is awake anyway, a shortened queue is put
    /// right.
    #[test]
    fn a_queue_that_was_cut_late_is_put_right_when_main_is_awake_anyway() {
        let (poller, listener) = (Poller::new().unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let mut guard = Guard::new(0);
        guard.add("a port".to_owned(), listener.as_fd());
        let now = Instant::now();
        guard.look(now, &poller);
        let before = socket_options::backlog(&listener).unwrap();
        socket_options::listen(&listener, 1).unwrap();
        assert_eq!(guard.deadline(), None);
        assert!(!guard.may_look(now + LOOK_PACE / 2));
        assert!(guard.may_look(now + LOOK_PACE));
        guard.look(now + LOOK_PACE, &poller);
        assert_eq!(socket_options::backlog(&listener).unwrap(), before);
        assert!(!guard.may_look(now + LOOK_PACE));
    }
}
