//! Undoes what a worker does to a unix listener that it shares:
//!
//! - After a `shutdown()` it can never listen again. It is bound anew, and the generations that only have the old
//!   socket are replaced. A socket that panzer inherited belongs to whoever made it, so only a message is logged.
//! - The shorter queue of a `listen()` is made longer again.
//! - A removed path is put back. Servers of asyncio, for example, remove it when they end.
//!
//! The kernel reports a shutdown as a hang-up, and a removed path through inotify. It does not report a change of the
//! queue.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::fstat;
use serde::{Deserialize, Serialize};

use crate::config::Address;
use crate::main_process::listeners::held::{AllHeld, Held};
use crate::sockets::{Listener, bind};
use crate::sys::errno::words;
use crate::sys::file_id::FileId;
use crate::sys::poller::Poller;
use crate::sys::unix_queue;

/// Pause before a failed bind is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// A removed path is put back after this time, unless the process that removed it has bound it again by then.
const REMOVED: Duration = Duration::from_millis(2);

/// Guards the unix listeners among those that are held. Each is known by its number.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct UnixGuard {
    #[serde(skip)]
    first_token: u64,
    /// Reports changes of the paths, from the first path on. `Some(None)` if inotify cannot be used.
    #[serde(skip)]
    paths: Option<Option<Inotify>>,
    #[serde(skip)]
    removal_told: bool,
    /// Listeners that were shut down, and when to bind each anew.
    #[serde(with = "crate::carry::numbered")]
    dead: BTreeMap<u64, Dead>,
    /// The longest queue that each inherited listener has had, as far as the kernel tells.
    #[serde(rename = "unix_queues", with = "crate::carry::numbered")]
    queues: BTreeMap<u64, u32>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Dead {
    #[serde(with = "crate::carry::moment::option")]
    due: Option<Instant>,
    told: bool,
    /// Whether only its path was removed.
    #[serde(default)]
    removed: bool,
}

impl UnixGuard {
    /// Guards `held` from now on, at the start and after a restart in place. All tokens from `first_token` on are its own:
    /// the first one is that of the paths.
    pub(crate) fn begin(&mut self, first_token: u64, held: &AllHeld, poller: &Poller) {
        (self.first_token, self.paths) = (first_token, None);
        self.watch_all(held, poller);
    }

    /// Watches a listener, if it is a unix one.
    pub(crate) fn watch(&mut self, held: &Held, poller: &Poller) {
        if !is_unix(held) {
            return;
        }
        if let Some(queue) = queue_of(held).filter(|_| held.listen.inherited.is_some()) {
            self.queues.entry(held.number).or_insert(queue);
        }
        if let Some(path) = held.listener.path()
            && let Some(paths) = self.paths.get_or_insert_with(|| begin_watching_paths(self.first_token, poller))
        {
            let changes = AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_DONT_FOLLOW;
            let watched = paths.add_watch(path, changes).map_err(io::Error::from);
            if let Err(error) = watched.and_then(|_| held.listener.keep_path()) {
                log::info!("if {} is removed, panzer cannot put it back: {}", held.name, words(&error));
            }
        }
        if let Err(error) = poller.watch_hang_up(&held.listener, self.first_token + 1 + held.number) {
            let address = &held.name;
            log::warn!("cannot watch {address}: {}; if a worker shuts it down, panzer will not notice", words(&error));
        }
    }

    /// Watches all unix listeners.
    pub(crate) fn watch_all(&mut self, held: &AllHeld, poller: &Poller) {
        held.iter().for_each(|held| self.watch(held, poller));
    }

    /// Stops guarding a listener.
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
            // The length of any other queue is known, so it is set without looking.
            if length.is_none() && held.listen.inherited.is_some() {
                let Some(current) = queue_of(held) else { continue };
                let longest =
                    *self.queues.entry(held.number).and_modify(|it| *it = current.max(*it)).or_insert(current);
                if current == longest {
                    continue;
                }
                length = Some(longest);
            }
            // Fails only if the listener was shut down.
            let _ = held.listener.set_backlog(length);
        }
    }

    /// The kernel reports that a listener was shut down, or that a path has changed.
    pub(crate) fn on_change(&mut self, token: u64, now: Instant, held: &AllHeld, poller: &Poller) {
        let Some(number) = (token - self.first_token).checked_sub(1) else { return self.on_paths_changed(now, held) };
        if let Some(held) = held.by_number(number) {
            poller.forget(&held.listener);
            let dead = self.dead.entry(number).or_insert(Dead { due: Some(now), told: false, removed: false });
            dead.removed = false;
        }
    }

    /// The kernel reports that a path has changed.
    pub(crate) fn on_paths_changed(&mut self, now: Instant, held: &AllHeld) {
        while self.paths.iter().flatten().any(|paths| paths.read_events().is_ok()) {}
        for held in held.iter().filter(|held| is_missing(held)) {
            self.dead.entry(held.number).or_insert(Dead { due: Some(now + REMOVED), told: false, removed: true });
        }
    }

    /// When something is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.dead.values().filter_map(|dead| dead.due).min()
    }

    /// Binds the listeners that are due anew, and logs it. Returns whether there is a socket that no generation has
    /// yet.
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
            let removed = self.dead.get(&number).is_some_and(|dead| dead.removed);
            if removed {
                self.dead.remove(&number);
                if is_missing(held) {
                    put_back(held, std::mem::replace(&mut self.removal_told, true));
                }
                continue;
            }
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

    /// Stops guarding.
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
        // The name stays taken as long as any worker, even an old one, holds the dead socket.
        let why = format!("{} accepts no more until panzer is restarted", wanted.address);
        return Err(WhyNot::Ever(format!("{why}; one with a path, as unix:/run/app.sock, would be bound anew")));
    }
    bind(wanted, 0).map_err(|refusal| WhyNot::ForNow(format!("{}; trying again every second", refusal.why())))
}

fn is_unix(held: &Held) -> bool {
    matches!(held.listen.address, Address::Unix(_) | Address::Abstract(_) | Address::Other { accepts: true, .. })
}

fn is_missing(held: &Held) -> bool {
    held.listener.path().is_some_and(|path| FileId::at(path).is_none())
}

fn put_back(held: &Held, told: bool) {
    match held.listener.put_path_back() {
        Ok(()) if told => {}
        Ok(()) => log::warn!("{} was removed, as some programs do when they end; it is back (said once)", held.name),
        Err(error) => {
            let why = words(&error);
            log::error!("{} was removed, and cannot be put back: {why}; restart panzer to have it again", held.name);
        }
    }
}

/// Tells of it if the paths cannot be watched.
fn begin_watching_paths(token: u64, poller: &Poller) -> Option<Inotify> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC);
    let watched = inotify.map_err(io::Error::from).and_then(|paths| poller.watch(&paths, token).map(|()| paths));
    let why = |error: &io::Error| match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMFILE) => {
            "this user has no inotify instance left (sysctl fs.inotify.max_user_instances)".to_owned()
        }
        _ => words(error),
    };
    watched
        .inspect_err(|error| {
            log::warn!("if the path of a unix listener is removed, panzer will not notice: {}", why(error))
        })
        .ok()
}

/// The limit of its queue. None if the kernel does not report it.
fn queue_of(held: &Held) -> Option<u32> {
    let inode = u32::try_from(fstat(held.listener.as_fd()).ok()?.st_ino).ok()?;
    unix_queue::accept_queue(inode).ok()?.map(|(_, limit)| limit)
}
