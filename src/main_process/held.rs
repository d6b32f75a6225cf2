//! The listeners that main holds, while the configuration changes which there are: new ones are bound before the
//! generation that has them is started, and those that no generation has any more are closed.
//!
//! Each lies at the same place in `held`, which says what it is, and in `listeners`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::run::Main;
use crate::config::{Address, Listen, Plan};
use crate::sockets::{Listener, Refusal, bind};

impl Main {
    /// Binds what `plan` has and is not held yet: all or nothing, and without waiting for an address in use.
    pub(super) fn hold(&mut self, plan: &Plan) -> Result<(), String> {
        if plan.listen == self.held {
            return Ok(());
        }
        if has_queues(&self.held) || has_queues(&plan.listen) {
            return Err("listen: what is or becomes per-worker changes only when panzer is started anew".to_owned());
        }
        let mut new: Vec<(Listen, Listener)> = Vec::new();
        for listen in &plan.listen {
            let bound = match self.place(&listen.address) {
                Some(at) if self.held[at].access == listen.access => continue,
                Some(_) => {
                    let address = &listen.address;
                    Err(format!("listen: mode, owner and group of {address} change only when panzer is started anew"))
                }
                None => {
                    bind(listen, 0).map_err(|(Refusal::Passing(why) | Refusal::Unseen(why) | Refusal::Final(why))| why)
                }
            };
            match bound {
                Ok(listener) => new.push((listen.clone(), listener)),
                Err(why) => {
                    new.into_iter().for_each(|(_, listener)| listener.close());
                    return Err(why);
                }
            }
        }
        for (listen, listener) in new {
            self.guard.add(listen.address.to_string(), listener.as_fd());
            self.unix_guard.watch(self.held.len(), &listen, &listener, &self.poller);
            self.held.push(listen);
            self.listeners.push(listener);
        }
        plan.listen.iter().for_each(|listen| self.adjust(listen));
        self.guard.look(&self.poller);
        Ok(())
    }

    /// What is held already becomes what it is to be.
    fn adjust(&mut self, wanted: &Listen) {
        let Some(at) = self.place(&wanted.address) else { return };
        let (before, listener) = (&self.held[at], &self.listeners[at]);
        let mut adjusted = Ok(());
        if before.backlog != wanted.backlog {
            adjusted = listener.set_backlog(wanted.backlog);
            // The guard would give the queue its old length back.
            let name = wanted.address.to_string();
            self.guard.remove(&name, &self.poller);
            self.guard.add(name, listener.as_fd());
        }
        if wanted.nonblock && !before.nonblock {
            adjusted = adjusted.and_then(|()| listener.set_nonblock());
        }
        if let Err(error) = adjusted {
            log::warn!("{} stays as it was: {error}", wanted.address);
        }
        self.held[at] = wanted.clone();
    }

    /// Closes what no generation has any more that there is.
    pub(super) fn close_dropped(&mut self) {
        let has = |plan: &Plan, listen: &Listen| plan.listen.iter().any(|other| other.address == listen.address);
        let wanted = |listen: &Listen| listen.inherited.is_some() || self.plans.values().any(|plan| has(plan, listen));
        let dropped: Vec<usize> = (0..self.held.len()).filter(|&at| !wanted(&self.held[at])).collect();
        if dropped.is_empty() || has_queues(&self.held) {
            return;
        }
        // It knows them by their places.
        self.unix_guard.clear(&self.listeners, &self.poller);
        for at in dropped.into_iter().rev() {
            let address = self.held.remove(at).address;
            self.guard.remove(&address.to_string(), &self.poller);
            self.listeners.remove(at).close();
            log::info!("closed {address}: no generation has it any more");
        }
        self.unix_guard.watch_all(&self.held, &self.listeners, &self.poller);
    }

    /// The sockets of a generation that runs by `plan`, in their order.
    pub(super) fn sockets_of(&self, plan: &Plan) -> io::Result<Vec<BorrowedFd<'_>>> {
        if has_queues(&plan.listen) {
            return Ok(self.listeners.iter().map(AsFd::as_fd).collect());
        }
        let socket = |listen: &Listen| {
            let at = self.place(&listen.address).ok_or_else(|| format!("{} is not held", listen.address))?;
            Ok(self.listeners[at].as_fd())
        };
        plan.listen.iter().map(socket).collect::<Result<_, String>>().map_err(io::Error::other)
    }

    fn place(&self, address: &Address) -> Option<usize> {
        self.held.iter().position(|held| held.address == *address)
    }
}

pub(super) fn has_queues(listen: &[Listen]) -> bool {
    listen.iter().any(|listen| listen.per_worker)
}
