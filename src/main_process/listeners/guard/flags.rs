//! What else a worker can do to a socket that it shares with all others, because the kernel keeps it with the socket: make
//! it blocking, and connect or shut down a datagram socket. No event reports any of this, so main looks when it checks
//! the queues. It also keeps the options of each socket while a reload is under way, because a release that fails must
//! leave nothing to the one that serves on.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::socket::{SockType, SockaddrStorage, getpeername, getsockopt, sockopt};
use nix::sys::stat::fstat;
use serde::{Deserialize, Serialize};

use crate::config::Access;
use crate::main_process::listeners::held::{AllHeld, Held};
use crate::sys::descriptors::{is_nonblocking, set_nonblocking};
use crate::sys::errno::words;
use crate::sys::settings::Settings;
use crate::sys::socket_options;

/// Observations by the inodes of the sockets. A listener that is bound anew has another inode.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Flags {
    #[serde(skip)]
    nonblocking: BTreeSet<u64>,
    /// Blocking at the last look, and non-blocking before.
    #[serde(skip)]
    suspected: BTreeSet<u64>,
    /// Messages that were logged, by listener.
    #[serde(skip)]
    told: BTreeSet<(u64, Finding)>,
    /// The generation that must prove itself, and the settings of all listeners before it began.
    trial: Option<(u32, Vec<(u64, Settings)>)>,
    /// The access of unix paths before it began, by the numbers of the listeners.
    #[serde(default)]
    access: Vec<(u64, Access)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Finding {
    Blocking,
    Connected,
    ShutDown,
}

impl Flags {
    /// Whether there is nothing that the next main must know.
    pub(crate) fn is_unused(&self) -> bool {
        self.trial.is_none()
    }

    /// Undoes what can be undone and logs the first time of each. `has_others` says whether several generations use the
    /// listeners.
    pub(crate) fn look(&mut self, held: &AllHeld, has_others: bool) {
        for held in held.iter() {
            self.look_at_blocking(held, has_others);
            if matches!(getsockopt(&held.listener, sockopt::SockType), Ok(SockType::Datagram)) {
                self.look_at_datagrams(held);
            }
        }
    }

    /// Remembers the settings of all listeners, before this generation can change them.
    pub(crate) fn begin_trial<'a>(&mut self, generation: u32, all: impl Iterator<Item = (&'a str, BorrowedFd<'a>)>) {
        // The next monitor of a generation whose monitor died begins nothing.
        if self.trial.as_ref().is_none_or(|(of, _)| *of != generation) {
            let settings = all.filter_map(|(_, socket)| Some((inode(socket), Settings::of(socket).ok()?)));
            self.trial = Some((generation, settings.collect()));
        }
    }

    /// The same for the access of unix paths. Call this first.
    pub(crate) fn remember_access(&mut self, generation: u32, held: &AllHeld) {
        if self.trial.as_ref().is_none_or(|(of, _)| *of != generation) {
            self.access = held.iter().filter_map(|held| Some((held.number, held.listener.access()?))).collect();
        }
    }

    /// Puts the access of unix paths back. Call this before [`Flags::undo_trial`].
    pub(crate) fn undo_access(&self, generation: u32, held: &AllHeld) {
        if self.trial.as_ref().is_none_or(|(of, _)| *of != generation) {
            return;
        }
        for held in held.iter() {
            let Some((_, before)) = self.access.iter().find(|(number, _)| *number == held.number) else { continue };
            if held.listener.access().is_none_or(|now| now == *before) {
                continue;
            }
            let (done, name) = (held.listener.set_access(*before), &held.name);
            let how =
                done.map_or_else(|error| format!("which stays: {}", words(&error)), |()| "as before again".to_owned());
            log::warn!("generation {generation}, which failed, had changed mode or owner of {name}; {how}");
        }
    }

    /// The generation that must prove itself serves: what it has set stays.
    pub(crate) fn end_trial(&mut self) {
        self.trial = None;
    }

    /// This generation has failed: puts back what it has changed.
    pub(crate) fn undo_trial<'a>(&mut self, generation: u32, all: impl Iterator<Item = (&'a str, BorrowedFd<'a>)>) {
        let Some((_, before)) = self.trial.as_ref().filter(|(of, _)| *of == generation) else { return };
        for (name, socket) in all {
            let inode = inode(socket);
            let Some(Ok(done)) =
                before.iter().find(|(its, _)| *its == inode).map(|(_, settings)| settings.restore(socket))
            else {
                continue;
            };
            let options = |wanted: bool| {
                let names = done.iter().filter(|(_, result)| result.is_ok() == wanted).map(|(name, _)| *name);
                names.collect::<Vec<_>>().join(", ")
            };
            if done.iter().any(|(_, result)| result.is_ok()) {
                let options = options(true);
                log::warn!("generation {generation}, which failed, had set {options} of {name}; it is as before again");
            }
            if let Some((_, Err(why))) = done.iter().find(|(_, result)| result.is_err()) {
                let (options, why) = (options(false), words(why));
                log::error!("generation {generation}, which failed, has set {options} of {name}, which stays: {why}");
            }
            self.nonblocking.remove(&inode);
        }
    }

    fn look_at_blocking(&mut self, held: &Held, has_others: bool) {
        let (inode, name) = (inode(held.listener.as_fd()), &held.name);
        match is_nonblocking(&held.listener) {
            Err(_) => {}
            Ok(true) => {
                self.nonblocking.insert(inode);
                self.suspected.remove(&inode);
            }
            Ok(false) if held.listen.nonblock => {
                let done = set_nonblocking(&held.listener).map_or_else(|error| words(&error), |()| "undone".to_owned());
                self.tell(held, Finding::Blocking, || format!("a worker made {name} blocking for all workers: {done}"));
            }
            // A worker that is starting may change it twice.
            Ok(false) if !self.nonblocking.contains(&inode) || self.suspected.insert(inode) => {}
            Ok(false) => {
                self.nonblocking.remove(&inode);
                self.suspected.remove(&inode);
                if has_others {
                    self.tell(held, Finding::Blocking, || {
                        format!(
                            "a worker made {name} blocking for the workers of all generations, so that those may hang in \
                             accept(); the option nonblock of --listen keeps it non-blocking"
                        )
                    });
                }
            }
        }
    }

    fn look_at_datagrams(&mut self, held: &Held) {
        let name = &held.name;
        if getpeername::<SockaddrStorage>(held.listener.as_fd().as_raw_fd()).is_ok() {
            let undone = rustix::net::connect_unspec(&held.listener);
            let done = undone.map_or_else(|error| words(&error.into()), |()| "undone".to_owned());
            self.tell(held, Finding::Connected, || {
                format!("a worker connected {name}, so that no worker got what other clients sent: {done}")
            });
        }
        if socket_options::is_shut_down(&held.listener) {
            self.tell(held, Finding::ShutDown, || {
                format!(
                    "a worker shut down {name} for all workers, which cannot be undone for datagrams; stop panzer and start \
                     it again"
                )
            });
        }
    }

    fn tell(&mut self, held: &Held, finding: Finding, text: impl FnOnce() -> String) {
        if self.told.insert((inode(held.listener.as_fd()), finding)) {
            log::warn!("{} (said once)", text());
        }
    }
}

fn inode(socket: BorrowedFd<'_>) -> u64 {
    fstat(socket).map_or(0, |stat| stat.st_ino)
}
