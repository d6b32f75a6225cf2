//! The ports that workers bind and listen on. `decide::shared_ports` decides each claim; this performs it.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;

use crate::config::MAX_LISTENERS;
use crate::control::monitor::messages::Order;
use crate::main_process::decide::shared_ports::{Claimant, Claimed};
use crate::main_process::listeners::guard::tcp::tell_unwatched;
use crate::main_process::main::Main;
use crate::sockets::sharing::{Key, bind_as_claimed, bind_own, bind_unbound, is_bound};
use crate::sys::errno::words;
use crate::sys::socket_options;

/// Limit of the number of ports about which the log says that workers share them.
const MAX_PORTS_TOLD: usize = 8;

/// A worker's bind, as its monitor reports it.
pub(crate) struct Bind {
    pub(crate) key: Key,
    /// The process that calls. None from a monitor of an older build, which shares a port from its bind on.
    pub(crate) process: Option<i32>,
    /// Whether the kernel decides unless the port is shared already.
    pub(crate) late: bool,
    /// Whether the worker itself has bound the address already, and the kernel lets it do so again.
    pub(crate) again: bool,
    /// The program's own socket, if it could be copied.
    pub(crate) socket: Option<OwnedFd>,
}

impl Main {
    pub(crate) fn close_abandoned(&mut self) {
        for key in self.listeners.shares.close_abandoned(self.serving(), Instant::now()) {
            self.listeners.guard.remove(&shared_name(&key), &self.poller);
            // A listener that the plan asks for stays open.
            if self.listeners.held.is_claimed(&key).is_none() {
                log::info!("closed {}: no living worker has bound it", key.address);
            }
        }
    }

    pub(crate) fn on_claim(&mut self, claimant: Claimant, bind: Bind) {
        let (generation, now) = (claimant.0.generation, Instant::now());
        if self.state.is_stopping() {
            // No socket is held any more.
            return self.not_shared(claimant, None);
        }
        if let Err(error) = self.hold_asked_for(&bind.key, generation, now) {
            let (address, why) = (bind.key.address, words(&error));
            log::warn!("a worker binds {address}, which panzer holds, and cannot be given it: {why}; its bind fails");
            return self.refuse(claimant, &bind.key, error.raw_os_error().map_or(Errno::EMFILE, Errno::from_raw));
        }
        let may_wait = bind.process.is_some() && !bind.late && !bind.again;
        match self.listeners.shares.claim(&bind.key, claimant, bind.process.unwrap_or_default(), may_wait, now) {
            Claimed::Waits => {}
            Claimed::Held(_) => self.send_shared(claimant, &bind.key, now),
            Claimed::Kernel if bind.late => self.not_shared(claimant, None),
            Claimed::Kernel => self.bind_for(claimant, bind, now),
        }
    }

    /// Binds the program's own socket. If that could not be copied, a socket of main's shows what the kernel would
    /// answer.
    fn bind_for(&mut self, claimant: Claimant, Bind { key, process, socket, .. }: Bind, now: Instant) {
        let bound = match socket {
            Some(socket) => bind_as_claimed(&socket, &key).map(|()| socket),
            None => bind_own(&key),
        };
        match (bound, process) {
            (Err(errno), _) => self.refuse(claimant, &key, errno),
            (Ok(_), Some(process)) => {
                self.listeners.shares.bound(key, claimant, process);
                self.tell_monitor(claimant, |ticket| Order::Bound { ticket });
            }
            (Ok(socket), None) => self.share(claimant, &key, socket, now),
        }
    }

    /// A worker listens on a socket that it has bound before. The socket is shared from now on.
    pub(crate) fn on_listens(&mut self, claimant: Claimant, key: &Key, backlog: i32, socket: Option<OwnedFd>) {
        let now = Instant::now();
        if let Some(held) = self.listeners.shares.take(key, claimant.0.generation, now) {
            let current = socket_options::backlog(held).ok().flatten();
            let longer = current.is_some_and(|current| current < backlog as u32);
            let lengthened = if longer { socket_options::listen(held, backlog as u32) } else { Ok(()) };
            if let Err(error) = lengthened {
                log::warn!("the queue of {} cannot be made longer: {}", key.address, words(&error));
            }
            return self.send_shared(claimant, key, now);
        }
        let Some(socket) = socket.filter(|_| !self.state.is_stopping()) else {
            return self.not_shared(claimant, None);
        };
        let bound = if is_bound(&socket) { Ok(()) } else { bind_unbound(&socket, key) };
        let listens = bound.map_err(io::Error::from).and_then(|()| socket_options::listen(&socket, backlog as u32));
        match listens {
            Ok(()) => self.share(claimant, key, socket, now),
            Err(error) => {
                self.refuse(claimant, key, error.raw_os_error().map_or(Errno::EADDRINUSE, Errno::from_raw));
            }
        }
    }

    /// Holds the socket, and gives it to every worker that waits for it.
    fn share(&mut self, claimant: Claimant, key: &Key, socket: OwnedFd, now: Instant) {
        let (copy, before) = (socket.try_clone(), self.listeners.shares.ports());
        let Some(waiting) = self.listeners.shares.hold(key, socket.into(), claimant.0.generation, now) else {
            if !std::mem::replace(&mut self.listeners.too_many_told, true) {
                log::warn!("{} and later addresses are not shared: {MAX_LISTENERS} are already", key.address);
            }
            return self.not_shared(claimant, None);
        };
        match copy {
            Ok(copy) => {
                self.listeners.guard.add(shared_name(key), copy.as_fd());
                self.put_listeners_right();
            }
            Err(error) => tell_unwatched(&shared_name(key), &error),
        }
        self.tell_of_further_port(&before, key.address.port());
        [claimant].into_iter().chain(waiting).for_each(|claimant| self.send_shared(claimant, key, now));
    }

    /// The log mentions every port beyond the first, because a port for a debugger or for metrics should lead to one
    /// worker.
    fn tell_of_further_port(&self, before: &BTreeSet<u16>, port: u16) {
        let were_named = self.configuration.plan.share_ports.only().is_some();
        if were_named || before.is_empty() || before.contains(&port) || before.len() > MAX_PORTS_TOLD {
            return;
        }
        let others: Vec<String> = before.iter().map(u16::to_string).collect();
        log::info!(
            "workers share port {port} too, beside {}: any of them answers there; for a port that is to lead to one worker, \
             name the others by --share-ports",
            others.join(", ")
        );
    }

    /// If the plan asks for this address, main has a socket for it already: workers that bind it get that socket.
    fn hold_asked_for(&mut self, key: &Key, generation: u32, now: Instant) -> io::Result<()> {
        let asked_for =
            self.listeners.held.is_claimed(key).filter(|_| self.listeners.shares.held().all(|(held, _)| held != key));
        if let Some(held) = asked_for {
            let copy = held.listener.as_fd().try_clone_to_owned()?;
            self.listeners.guard.add(shared_name(key), copy.as_fd());
            self.listeners.shares.hold(key, copy.into(), generation, now);
        }
        Ok(())
    }

    /// Does what is due about binds that others wait for.
    pub(crate) fn tend_claims(&mut self) {
        let now = Instant::now();
        let due = self.listeners.shares.due(now);
        for bound in due.looks {
            match self.children.running(bound.0) {
                Some(running) => running.channel.send(&Order::Look { ticket: bound.1 }),
                None => self.on_looked(bound, false),
            }
        }
        self.claim_again(due.again);
    }

    /// A monitor says whether a bound socket may still listen.
    pub(crate) fn on_looked(&mut self, bound: Claimant, may_listen: bool) {
        let again = self.listeners.shares.looked(bound, may_listen, Instant::now());
        self.claim_again(again);
    }

    pub(crate) fn claim_again(&mut self, claimants: Vec<Claimant>) {
        for claimant in claimants {
            self.tell_monitor(claimant, |ticket| Order::Again { ticket });
        }
    }

    /// The worker's call fails with this errno. Without an errno the kernel carries the call out.
    pub(crate) fn not_shared(&mut self, claimant: Claimant, errno: Option<i32>) {
        self.tell_monitor(claimant, |ticket| Order::NotShared { ticket, errno });
    }

    fn refuse(&mut self, claimant: Claimant, key: &Key, errno: Errno) {
        self.listeners.conflicts.refused.insert(claimant.0.generation, (key.address, errno));
        self.not_shared(claimant, Some(errno as i32));
    }

    fn send_shared(&mut self, claimant: Claimant, key: &Key, now: Instant) {
        match self.listeners.shares.take(key, claimant.0.generation, now).map(|held| held.as_fd().try_clone_to_owned())
        {
            Some(Ok(copy)) => {
                if let Some(running) = self.children.running(claimant.0) {
                    running.channel.send_along(&Order::Shared { ticket: claimant.1 }, vec![copy]);
                }
            }
            other => self.not_shared(claimant, other.and_then(Result::err).and_then(|error| error.raw_os_error())),
        }
    }

    fn tell_monitor(&mut self, (monitor, ticket): Claimant, order: impl FnOnce(u64) -> Order) {
        if let Some(running) = self.children.running(monitor) {
            running.channel.send(&order(ticket));
        }
    }
}

/// The name of a shared port in the guard.
pub(crate) fn shared_name(key: &Key) -> String {
    format!("{} (shared)", key.address)
}
