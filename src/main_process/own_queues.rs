//! Queues of single workers while their count changes: more of them are bound and handed out, and before there are
//! fewer, the kernel is told to leave those alone that will have no worker.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::emptying::Then;
use super::held::has_queues;
use super::run::Main;
use super::scaling::changed;
use super::state::{Change, Event, Monitor};
use crate::control::messages::{Order, Urgency};
use crate::control::requests::Answer;
use crate::sockets::{Refusal, bind, queues};
use crate::sys::reuseport;

/// A generation that is retired is waited for no longer than this: its schedule has begun.
const LONGEST_AT_END: Duration = Duration::from_secs(3);

impl Main {
    /// Another count of workers is wanted.
    pub(super) fn scale(&mut self, request: Option<u64>, change: Change) {
        if !self.plan.listen.iter().any(|listen| listen.per_worker) {
            return self.events.push_back(Event::Scale(request, change));
        }
        let from = self.emptyings.count().unwrap_or_else(|| self.state.workers());
        // Queues are for the first so many slots: it is the last one that goes.
        let change = if change == Change::WithoutOldest { Change::By(-1) } else { change };
        let Ok(to) = changed(from, change) else {
            return self.events.push_back(Event::Scale(request, change));
        };
        if let Err(why) = self.bind_queues(to) {
            match request {
                Some(client) => self.operators.answer(client, &Answer::refused(why)),
                None => ::log::warn!("{why}"),
            }
            return;
        }
        let change = if change == Change::ToNone { change } else { Change::To(to) };
        let event = Event::Scale(request, change);
        if to >= from && self.emptyings.count().is_none() {
            return self.events.push_back(event);
        }
        if let Some(client) = request {
            self.operators.emptying(client);
        }
        let now = Instant::now();
        // With nobody left, the first queue takes what comes.
        self.emptyings.begin(to.max(1), Then::Happens(event), now + self.plan.tuning.stop.total(), now);
    }

    /// Binds the queues that so many workers need. On failure there are none more than before.
    pub(super) fn bind_queues(&mut self, workers: u32) -> Result<(), String> {
        if workers <= self.queues || !self.plan.listen.iter().any(|listen| listen.per_worker) {
            return Ok(());
        }
        let plan = crate::config::Plan { workers, ..self.plan.clone() };
        if let Some(shortage) = queues::shortage(&plan) {
            return Err(shortage);
        }
        // What is bound belongs to the group at once, and has no worker yet.
        self.steer(self.active.min(self.queues));
        let (before, mut new) = (self.listeners.len(), Vec::new());
        for (listen, slot) in queues::all(&plan.listen, workers).skip(before) {
            match bind(listen, slot) {
                Ok(listener) => new.push((format!("{} (the queue of worker {slot})", listen.address), listener)),
                Err(Refusal::Passing(why) | Refusal::Unseen(why) | Refusal::Final(why)) => return Err(why),
            }
        }
        for (name, listener) in new {
            self.guard.add(name, listener.as_fd());
            self.listeners.push(listener);
        }
        self.guard.look(&self.poller);
        self.queues = workers;
        self.steer(self.active);
        Ok(())
    }

    /// Sends an order; of what another count of workers needs, or leaves, first things first.
    pub(super) fn order(&mut self, monitor: Monitor, order: Order) {
        let kept = self.state.workers();
        let now = Instant::now();
        let stopping = self.state.is_stopping();
        let Some(running) = self.children.running(monitor) else { return };
        match &order {
            Order::Scale { workers, .. } => {
                running.workers = *workers;
                let more = if has_queues(&self.held) { running.queues } else { self.listeners.len() };
                for queue in self.listeners.iter().skip(more) {
                    // One that cannot be copied is missed by a worker that says so.
                    let copy = queue.as_fd().try_clone_to_owned().into_iter().collect();
                    running.channel.send_along(&Order::Queue, copy);
                }
                running.queues = self.listeners.len().max(running.queues);
            }
            Order::Stop(Urgency::Graceful) if !stopping && self.queues > 1 && running.workers > kept => {
                let then = Then::Ordered(monitor, order);
                return self.emptyings.begin(kept.max(1), then, now + LONGEST_AT_END, now);
            }
            Order::Stop(_) => self.emptyings.forget(monitor),
            _ => {}
        }
        running.channel.send(&order);
    }

    /// Has new connections go where there are workers for them, and does what had to wait for empty queues.
    pub(super) fn tend_queues(&mut self, now: Instant) {
        if self.queues <= 1 {
            return;
        }
        for (then, left) in self.look_at_queues(now) {
            if let Some(slot) = left {
                ::log::warn!(
                    "what waits in the queues of workers from {slot} on is not taken; they are stopped all the same"
                );
            }
            self.do_at_last(then);
        }
        let (wanted, ready) = (self.state.workers().max(1), self.state.ready());
        let served = if ready >= wanted { wanted } else { wanted.min(self.active) };
        let active = served.min(self.emptyings.keep());
        if active != self.active {
            self.steer(active);
        }
    }

    fn look_at_queues(&mut self, now: Instant) -> Vec<(Then, Option<u32>)> {
        let (listen, listeners, all) = (&self.plan.listen, &self.listeners, self.queues);
        let waits = |keep: u32| {
            let own = (keep..all).flat_map(|slot| queues::of_slot(listen, slot)).filter(|at| *at >= listen.len());
            own.filter_map(|at| listeners.get(at)).any(is_readable)
        };
        self.emptyings.look(now, waits)
    }

    fn do_at_last(&mut self, then: Then) {
        match then {
            Then::Happens(event) => self.events.push_back(event),
            Then::Tuned => self.go_by_newest(),
            Then::Ordered(monitor, order) => {
                if let Some(running) = self.children.running(monitor) {
                    running.channel.send(&order);
                }
            }
        }
    }

    /// Everything ends: nobody waits for a queue any more.
    pub(super) fn give_up_emptying(&mut self) {
        for then in self.emptyings.give_up() {
            self.do_at_last(then);
        }
    }

    /// New connections go to the queues of the first `active` slots.
    fn steer(&mut self, active: u32) {
        self.active = active;
        for (listen, queue) in self.plan.listen.iter().zip(&self.listeners).filter(|(listen, _)| listen.per_worker) {
            let steered = match active >= self.queues {
                true => reuseport::steer_to_all(queue),
                false => reuseport::steer(queue, active),
            };
            if let Err(error) = steered.or_else(|error| unless_alone(error, self.queues)) {
                ::log::warn!(
                    "{}: new connections cannot be kept from queues without a worker: {error}",
                    listen.address
                );
            }
        }
    }
}

/// One socket is no group, and there is nothing to choose from.
fn unless_alone(error: io::Error, queues: u32) -> io::Result<()> {
    if queues > 1 { Err(error) } else { Ok(()) }
}

fn is_readable(queue: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(queue.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
