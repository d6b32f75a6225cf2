//! Per-slot queues while the number of workers changes. More queues are bound and handed out first. Before there are
//! fewer workers, new connections are kept from the queues that will have no worker.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::config::{Listen, Plan};
use crate::control::monitor::messages::{Order, Urgency};
use crate::control::operator::requests::Outcome;
use crate::main_process::decide::queue_emptying::Then;
use crate::main_process::decide::worker_count::changed;
use crate::main_process::decide::{Change, Event, Monitor, Standing};
use crate::main_process::listeners::held::Held;
use crate::main_process::main::Main;
use crate::main_process::processes::children::Running;
use crate::sockets::Refusal;
use crate::sys::errno::words;

/// Limit of the time that a retired generation waits for its queues to be empty, because its schedule has begun.
const AT_END_TIMEOUT: Duration = Duration::from_secs(3);

impl Main {
    /// Another number of workers is wanted.
    pub(crate) fn scale(&mut self, request: Option<u64>, change: Change) {
        if !self.has_own_queues() {
            return self.events.push_back(Event::Scale(request, change));
        }
        let from = self.listeners.per_worker.emptyings.count().unwrap_or_else(|| self.state.workers());
        // Based on the number that is pending, which the state does not know yet. Queues belong to the first slots, so
        // the last worker goes.
        let change = match change {
            Change::By(more) => Change::To(from.saturating_add_signed(more)),
            Change::WithoutOldest => Change::To(from.saturating_sub(1)),
            Change::To(_) | Change::ToNone => change,
        };
        let Ok(to) = changed(from, change) else {
            return self.events.push_back(Event::Scale(request, change));
        };
        if let Err(why) = self.bind_queues(to) {
            match request {
                Some(client) => self.operators.clients.answer(client, Outcome::refused(why)),
                None => log::warn!("{why}"),
            }
            return;
        }
        let change = if change == Change::ToNone { change } else { Change::To(to) };
        let event = Event::Scale(request, change);
        if to >= from && self.listeners.per_worker.emptyings.count().is_none() {
            return self.events.push_back(event);
        }
        if let Some(client) = request {
            self.operators.clients.emptying(client);
        }
        let now = Instant::now();
        // If no worker is left, the first queue takes the connections.
        self.listeners.per_worker.emptyings.begin(
            to.max(1),
            Then::Happens(Box::new(event)),
            now + self.configuration.plan.tuning.retirement().total(),
            now,
        );
    }

    /// The plans of the generations that serve or are to serve.
    fn plans_that_go_on(&self) -> impl Iterator<Item = &Plan> {
        let standings = self.state.standings().into_iter();
        let going_on = standings.filter(|(standing, ..)| *standing != Standing::Draining);
        going_on.filter_map(|(_, generation, _)| self.configuration.plans.get(&generation))
    }

    /// Whether one of those plans has a queue for each slot.
    pub(crate) fn has_own_queues(&self) -> bool {
        self.plans_that_go_on().any(|plan| has_queues(&plan.listen))
    }

    /// Binds the queues that this number of workers needs: all or none.
    pub(crate) fn bind_queues(&mut self, workers: u32) -> Result<(), String> {
        let plans: Vec<Plan> = self.plans_that_go_on().filter(|plan| has_queues(&plan.listen)).cloned().collect();
        plans.iter().try_for_each(|plan| self.hold_for(plan, workers)).map_err(Refusal::why)
    }

    /// Sends an order. New queues are handed out before a scale-up. A stop waits until queues that nobody takes over
    /// are empty.
    pub(crate) fn order(&mut self, monitor: Monitor, order: Order) {
        let kept = self.state.workers();
        let now = Instant::now();
        match &order {
            Order::Scale { workers, .. } => self.hand_out_queues(monitor, *workers),
            Order::Stop(Urgency::Retiring | Urgency::Graceful)
                if !self.state.is_stopping() && self.leaves_queues(monitor, kept) =>
            {
                let then = Then::Ordered(monitor, order);
                return self.listeners.per_worker.emptyings.begin(kept.max(1), then, now + AT_END_TIMEOUT, now);
            }
            Order::Stop(_) => self.listeners.per_worker.emptyings.forget(monitor),
            _ => {}
        }
        if let Some(running) = self.children.running(monitor) {
            running.channel.send(&order);
        }
    }

    /// Gives a monitor the queues for this number of workers that it does not have yet.
    fn hand_out_queues(&mut self, monitor: Monitor, workers: u32) {
        if let Err(why) = self.bind_queues(workers) {
            log::warn!("{why}");
        }
        let (Some(running), Some(plan)) =
            (self.children.running(monitor), self.configuration.plans.get(&monitor.generation))
        else {
            return;
        };
        running.workers = workers;
        match self.listeners.held.sockets(&plan.listen, workers, running.queues) {
            Ok(more) => {
                let first = running.queues;
                running.queues += more.len();
                (first..).zip(more).for_each(|(place, queue)| send_queue(running, place, queue));
            }
            Err(error) => log::warn!("{error}"),
        }
    }

    /// A queue did not arrive. Sends it again.
    pub(crate) fn send_queue_again(&mut self, monitor: Monitor, place: usize) {
        let (Some(running), Some(plan)) =
            (self.children.running(monitor), self.configuration.plans.get(&monitor.generation))
        else {
            return;
        };
        match self.listeners.held.sockets(&plan.listen, running.workers, place).map(|queues| queues.first().copied()) {
            Ok(Some(queue)) => send_queue(running, place, queue),
            Ok(None) => {}
            Err(error) => log::warn!("{error}"),
        }
    }

    /// Whether a generation that is to stop has workers with queues that nobody else will serve.
    fn leaves_queues(&mut self, monitor: Monitor, kept: u32) -> bool {
        let Some(workers) = self.children.running(monitor).map(|running| running.workers) else { return false };
        let Some(plan) = self.configuration.plans.get(&monitor.generation) else { return false };
        let has = |held: &Held| plan.listen.iter().any(|listen| listen.per_worker && held.is_of(listen));
        self.listeners.held.iter().any(|held| held.slot < workers && has(held) && self.is_left(held, kept.max(1)))
    }

    /// Whether this is the queue of a slot that nobody serves if this number of slots is kept.
    fn is_left(&self, held: &Held, keep: u32) -> bool {
        held.slot >= keep.min(self.most_queues(held)) && self.serves(held)
    }

    /// Performs the actions that waited for empty queues.
    pub(crate) fn tend_queues(&mut self, now: Instant) {
        if !self.listeners.held.has_groups() {
            // If there is only the first queue, nothing waits.
            self.listeners.per_worker.emptyings.give_up().into_iter().for_each(|then| self.do_at_last(then));
            return;
        }
        for (then, left) in self.look_at_queues(now) {
            if let Some(slot) = left {
                log::warn!(
                    "what waits in the queues of workers from {slot} on is not taken; they are stopped all the same"
                );
            }
            self.do_at_last(then);
        }
    }

    fn look_at_queues(&mut self, now: Instant) -> Vec<(Then, Option<u32>)> {
        let mut emptyings = std::mem::take(&mut self.listeners.per_worker.emptyings);
        let done = emptyings.look(now, |keep| {
            self.listeners
                .held
                .iter()
                .any(|held| held.slot > 0 && self.is_left(held, keep) && is_readable(&held.listener))
        });
        self.listeners.per_worker.emptyings = emptyings;
        done
    }

    fn do_at_last(&mut self, then: Then) {
        match then {
            Then::Happens(event) => self.events.push_back(*event),
            Then::Reread => self.go_by_newest(),
            Then::Ordered(monitor, order) => {
                if let Some(running) = self.children.running(monitor) {
                    running.channel.send(&order);
                }
            }
        }
    }

    /// Everything ends, so nothing waits for a queue any more.
    pub(crate) fn give_up_emptying(&mut self) {
        for then in self.listeners.per_worker.emptyings.give_up() {
            self.do_at_last(then);
        }
    }
}

/// If it cannot be sent, a worker that lacks it will ask for it.
fn send_queue(running: &mut Running, place: usize, queue: BorrowedFd<'_>) {
    match queue.try_clone_to_owned() {
        Ok(copy) => running.channel.send_along(&Order::QueueAt { place }, vec![copy]),
        Err(error) => {
            log::warn!(
                "the queue of a worker cannot be handed out: {}; its worker is started once it can",
                words(&error)
            )
        }
    }
}

fn has_queues(listen: &[Listen]) -> bool {
    listen.iter().any(|listen| listen.per_worker)
}

fn is_readable(queue: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(queue.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
