//! Makes the held listeners follow a plan. New listeners are bound before the generation that has them is started.
//! Listeners that stay get their new settings when that generation serves. Listeners that no generation has any more
//! are closed. So a reload that fails leaves nothing behind.

use std::os::fd::AsFd;
use std::time::Instant;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::Listeners;
use super::held::Held;
use crate::config::{Address, Listen, Plan};
use crate::main_process::listeners::claims::shared_name;
use crate::main_process::main::Main;
use crate::sockets::bind::tell_if_capped;
use crate::sockets::sharing::{is_at, key_of};
use crate::sockets::{Listener, Refusal, bind, queues};
use crate::sys::errno::words;
use crate::sys::socket_options;

impl Main {
    /// Binds every listener of `plan` that is not held, for the number of workers that it will have: all or none. Does
    /// not wait for an address in use.
    pub(crate) fn hold(&mut self, plan: &Plan) -> Result<(), Refusal> {
        let workers = self.state.count_for(plan.workers);
        for listen in &plan.listen {
            let Some(held) = self.listeners.held.first(listen).filter(|held| held.listen.access != listen.access)
            else {
                continue;
            };
            let may_have = held.listener.may_have(listen.access);
            let wrong = |error| format!("the access of {} cannot be changed: {}", listen.address, words(&error));
            may_have.map_err(|error| Refusal::Final(wrong(error)))?;
        }
        self.hold_for(plan, workers)
    }

    /// The same, for this number of workers.
    pub(crate) fn hold_for(&mut self, plan: &Plan, workers: u32) -> Result<(), Refusal> {
        let missing = self.listeners.held.missing(&plan.listen, workers);
        if missing.is_empty() {
            return Ok(());
        }
        if let Some(shortage) = queues::shortage(&Plan { workers, ..plan.clone() }) {
            return Err(Refusal::Final(shortage));
        }
        // A new queue joins its group at once, and has no worker yet.
        self.listeners.held.look_who_is_silent();
        self.steer_before_more_join();
        let mut added = Vec::new();
        let bound: Result<(), Refusal> = missing.into_iter().try_for_each(|(listen, slot)| {
            added.push(self.add(listen, slot)?);
            Ok(())
        });
        if bound.is_err() {
            self.let_go(added.iter().rev().copied().collect());
        }
        self.steer_anew();
        self.put_listeners_right();
        bound?;
        for new in self.listeners.held.iter().filter(|held| held.slot == 0 && added.contains(&held.number)) {
            log::info!("listening on {}", new.listen.address);
        }
        Ok(())
    }

    fn add(&mut self, listen: &Listen, slot: u32) -> Result<u64, Refusal> {
        let listen = &self.listeners.held.with_port(listen);
        if slot > 0 {
            self.listeners.set_joinable(listen, true).map_err(Refusal::Final)?;
        }
        let number = match self.listeners.shared_at(listen).filter(|_| slot == 0) {
            Some(listener) => {
                let backlog = socket_options::backlog(&listener).unwrap_or_default();
                let before = Listen { backlog, nonblock: false, per_worker: false, ..listen.clone() };
                self.listeners.held.add(before, slot, listener)
            }
            None => {
                let bound = bind(listen, slot);
                let in_the_way =
                    || self.listeners.shared_instead(listen).or_else(|| self.listeners.held_instead(listen));
                let bound = bound.map_err(|refusal| match refusal {
                    Refusal::InUse(_) => in_the_way().map_or(refusal, Refusal::Final),
                    other => other,
                })?;
                self.listeners.held.add(listen.clone(), slot, bound)
            }
        };
        if slot == 1 {
            // Only now can one be steered that was no group before.
            self.steer_before_more_join();
        }
        if let Some(held) = self.listeners.held.by_number(number) {
            self.listeners.guard.add(held.name.clone(), held.listener.as_fd());
            self.listeners.unix_guard.watch(held, &self.poller);
        }
        Ok(number)
    }

    /// The generation serves: the held listeners get the settings of its plan.
    pub(crate) fn adopt_listeners_of(&mut self, generation: u32) {
        let wanted = self.configuration.plans.get(&generation).map(|plan| plan.listen.clone()).unwrap_or_default();
        for held in self.listeners.held.iter_mut() {
            let Some(listen) = wanted.iter().find(|listen| held.is_of(listen)) else { continue };
            become_as(held, listen);
            if held.listen.backlog != listen.backlog && !held.is_silent() {
                self.listeners.guard.note_queue(&held.name);
            }
            // `per_worker` says whether others may join it, and changes elsewhere.
            held.listen = Listen { per_worker: held.listen.per_worker, ..listen.clone() };
        }
    }

    /// Closes the listeners that no generation has any more.
    pub(crate) fn close_dropped(&mut self) {
        let has = |plan: &Plan, held: &Held| {
            plan.listen.iter().any(|listen| held.is_of(listen) && (held.slot == 0 || listen.per_worker))
        };
        let is_dropped = |held: &&Held| {
            let inherited = held.listen.inherited.is_some();
            !inherited && !self.configuration.plans.values().any(|plan| has(plan, held))
        };
        let dropped: Vec<u64> = self.listeners.held.iter().filter(is_dropped).map(|held| held.number).collect();
        if dropped.is_empty() {
            return;
        }
        let left_to_workers = |held: &Held| self.listeners.shares_ports && held.listen.address.tcp_port().is_some();
        for held in self.listeners.held.iter().filter(|held| held.slot == 0 && dropped.contains(&held.number)) {
            if !left_to_workers(held) {
                log::info!("closed {}: no generation has it any more", held.listen.address);
            }
        }
        self.let_go(dropped);
        self.steer_anew();
    }

    fn let_go(&mut self, numbers: Vec<u64>) {
        for number in numbers {
            let Some(held) = self.listeners.held.remove(number) else { continue };
            self.listeners.unix_guard.forget(&held, &self.poller);
            if self.listeners.shares_ports && !self.state.is_stopping() {
                // Workers may bind it themselves from now on.
                self.listeners.leave_to_workers(&held);
            }
            self.listeners.guard.remove(&held.name, &self.poller);
            held.listener.close();
        }
        let is_group =
            |first: &Held| self.listeners.held.iter().any(|other| other.slot > 0 && other.is_of(&first.listen));
        let alone: Vec<Listen> =
            self.listeners.held.iter().filter(|held| !is_group(held)).map(|held| held.listen.clone()).collect();
        for listen in alone {
            if let Err(why) = self.listeners.set_joinable(&listen, false) {
                log::warn!("{why}");
            }
        }
    }
}

impl Listeners {
    /// Lets others join the first socket of its address, or no longer.
    fn set_joinable(&mut self, listen: &Listen, joinable: bool) -> Result<(), String> {
        let first = self.held.iter_mut().find(|held| held.slot == 0 && held.is_of(listen));
        let Some(first) = first.filter(|first| first.listen.per_worker != joinable) else { return Ok(()) };
        let set = first.listener.set_joinable(joinable);
        set.map_err(|error| format!("{} cannot be given queues for each worker: {}", first.name, words(&error)))?;
        first.listen.per_worker = joinable;
        Ok(())
    }

    /// A socket that workers have bound at this address and main holds for them. It becomes the listener that the plan
    /// asks for, and the connections that wait in it are not lost.
    fn shared_at(&self, listen: &Listen) -> Option<Listener> {
        let here = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).ok()?;
        let (_, socket) = self.shares.held().find(|(key, _)| is_at(key, &listen.address, &here))?;
        let listener = Listener::without_path(socket.as_fd().try_clone_to_owned().ok()?);
        if matches!(socket_options::backlog(&listener), Ok(None)) {
            listener.set_backlog(listen.backlog).ok()?;
        }
        Some(listener)
    }

    /// The plan no longer asks for this listener, but workers may bind its port and share it. So the socket is kept for
    /// the time that they may take.
    fn leave_to_workers(&mut self, held: &Held) {
        let is_port = held.slot == 0 && held.listen.address.tcp_port().is_some();
        let Some(key) = is_port.then(|| key_of(&held.listener)).flatten() else { return };
        let copy = match held.listener.as_fd().try_clone_to_owned() {
            Ok(copy) => copy,
            Err(error) => {
                return log::warn!("{} is not kept for workers that may bind it: {}", held.name, words(&error));
            }
        };
        let name = shared_name(&key);
        if self.shares.offer(key, copy.into(), Instant::now()) {
            self.guard.add(name, held.listener.as_fd());
        }
    }

    /// If workers have bound the port in another form: why the listener cannot be bound.
    fn shared_instead(&self, listen: &Listen) -> Option<String> {
        let port = listen.address.tcp_port()?;
        let (key, _) = self.shares.held().find(|(key, _)| key.address.port() == port)?;
        let (wanted, bound) = (&listen.address, key.address);
        Some(format!("cannot listen on {wanted}: workers have bound {bound} themselves and share it; ask for that"))
    }

    /// If panzer itself listens on the port in another form: why the listener cannot be bound.
    fn held_instead(&self, listen: &Listen) -> Option<String> {
        let wanted = &listen.address;
        let held = &self.held.iter().find(|held| held.listen.address.overlaps(wanted))?.listen.address;
        let why = match (held, wanted) {
            (Address::Any(_) | Address::AnyUdp(_), Address::Tcp(_) | Address::Udp(_)) if listen.bare => {
                " (by --also-speak server-starter a port alone is of IPv4 only)"
            }
            _ => "",
        };
        Some(format!(
            "cannot listen on {wanted}{why}: panzer itself listens on {held}, and a reload cannot give that up and lose \
             nothing. Keep {held}, or reload to another port first, or stop panzer and start it anew"
        ))
    }
}

/// Gives a listener its backlog, O_NONBLOCK and access.
fn become_as(held: &Held, wanted: &Listen) {
    let mut done = Ok(());
    // A listener that was shut down does not listen before its guard revives it.
    let is_said = wanted.backlog.is_some() || wanted.inherited.is_none();
    if held.listen.backlog != wanted.backlog && is_said && !held.is_silent() {
        done = held.listener.set_backlog(wanted.backlog);
        tell_if_capped(wanted, held.slot);
    }
    // O_NONBLOCK is never cleared: a worker of any generation may rely on it.
    if wanted.nonblock && !held.listen.nonblock {
        done = done.and_then(|()| held.listener.set_nonblock());
    }
    if held.listen.access != wanted.access && held.slot == 0 {
        done = done.and_then(|()| held.listener.set_access(wanted.access));
    }
    if let Err(error) = done {
        log::warn!("{} is not wholly as the configuration says: {}", held.name, words(&error));
    }
}

/// Whether a listener gets a queue for each worker, or loses them.
pub(crate) fn changes_queues(one: &[Listen], other: &[Listen]) -> bool {
    let differs = |listen: &Listen| {
        let same = other.iter().find(|same| same.address == listen.address);
        same.is_some_and(|same| same.per_worker != listen.per_worker)
    };
    one.iter().any(differs)
}
