//! Which per-slot queues get new connections: those of slots that have a worker, or will have one. The kernel is told
//! by the index of each queue in its group.

use super::Served;
use crate::config::Listen;
use crate::main_process::listeners::held::Held;
use crate::main_process::main::Main;
use crate::sys::errno::words;
use crate::sys::reuseport;

impl Main {
    /// Steers new connections to the slots that have workers.
    pub(crate) fn steer(&mut self) {
        if !self.listeners.held.has_groups() {
            return;
        }
        let (wanted, ready) =
            (self.state.workers().max(1), self.state.ready() + self.state.slots_at_end().count() as u32);
        let served = if ready >= wanted { wanted } else { wanted.min(self.listeners.per_worker.active) };
        self.listeners.per_worker.active = served.min(self.listeners.per_worker.emptyings.keep());
        let served = self.served();
        if self.listeners.per_worker.steered.as_ref() != Some(&served) {
            self.tell_kernel(served, false);
        }
    }

    /// Steers again, because the queues have changed.
    pub(crate) fn steer_anew(&mut self) {
        let served = self.served();
        self.tell_kernel(served, false);
    }

    /// Call this before new sockets join the group. It keeps traffic on the sockets that are there now, even if that is
    /// all of them.
    pub(crate) fn steer_before_more_join(&mut self) {
        let served = self.served();
        self.tell_kernel(served, true);
    }

    fn served(&self) -> Served {
        let ended = self.state.slots_at_end().collect();
        Served { active: self.listeners.per_worker.active, ended, serving: self.serving() }
    }

    fn tell_kernel(&mut self, served: Served, more_join: bool) {
        for group in self.listeners.held.groups() {
            let goes = |held: &Held| self.is_served(held, &served);
            let places: Vec<u32> = (0..).zip(&group).filter(|(_, held)| goes(held)).map(|(place, _)| place).collect();
            let first = &group[0].listener;
            let steered = if !places.is_empty() && places.len() < group.len() {
                reuseport::steer(first, &places)
            } else if more_join {
                reuseport::steer(first, &Vec::from_iter(0..group.len() as u32))
            } else {
                reuseport::steer_to_all(first)
            };
            // One alone that an earlier build bound is no group yet, and nothing has to be kept from anybody.
            if let Err(error) = steered
                && group.len() > 1
            {
                let address = &group[0].listen.address;
                log::warn!("{address}: new connections cannot be kept from queues without a worker: {}", words(&error));
            }
        }
        self.listeners.per_worker.steered = Some(served);
    }

    fn is_served(&self, held: &Held, served: &Served) -> bool {
        held.slot < served.active.min(self.most_queues(held)) && !served.ended.contains(&held.slot)
    }

    /// Limit of the number of queues that the serving generation has at this address: one, if its workers share the
    /// queue.
    pub(crate) fn most_queues(&self, held: &Held) -> u32 {
        let plan = self.serving().and_then(|serving| self.configuration.plans.get(&serving));
        let listen = plan.and_then(|plan| plan.listen.iter().find(|listen: &&Listen| held.is_of(listen)));
        if listen.is_some_and(|listen| !listen.per_worker) { 1 } else { u32::MAX }
    }

    /// Whether the serving generation has this address.
    pub(crate) fn serves(&self, held: &Held) -> bool {
        let plan = self.serving().and_then(|serving| self.configuration.plans.get(&serving));
        plan.is_some_and(|plan| plan.listen.iter().any(|listen| held.is_of(listen)))
    }
}
