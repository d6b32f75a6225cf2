//! When listeners are checked, and what follows when one was put right.

use std::time::Instant;

use crate::main_process::decide::Event;
use crate::main_process::main::Main;

impl Main {
    /// A worker may have called `listen()`, or may do so soon: puts queues right, and revives listeners.
    pub(crate) fn put_listeners_right(&mut self) {
        let now = Instant::now();
        self.look_at_listeners(now);
        self.listeners.guard.look_again_after(now);
    }

    /// A generation that must prove itself is about to start. What the serving one has set is known only once it is ready.
    pub(crate) fn remember_settings(&mut self, generation: u32) {
        if self.state.is_ready() {
            self.listeners.flags.remember_access(generation, &self.listeners.held);
            let (flags, sockets) = self.listeners.with_all_sockets();
            flags.begin_trial(generation, sockets);
        }
    }

    /// A generation has failed, or is gone with all its workers.
    pub(crate) fn undo_settings(&mut self, generation: u32) {
        self.listeners.flags.undo_access(generation, &self.listeners.held);
        let (flags, sockets) = self.listeners.with_all_sockets();
        flags.undo_trial(generation, sockets);
    }

    fn look_at_listeners(&mut self, now: Instant) {
        self.listeners.guard.look(now, &self.poller);
        self.listeners.unix_guard.lengthen(&self.listeners.held);
        self.listeners.flags.look(&self.listeners.held, self.state.standings().len() > 1);
    }

    /// Undoes what workers did to listeners. Nobody can say which worker it was, so the message names the generations.
    pub(crate) fn watch_over_listeners(&mut self) {
        let standings = self.state.standings();
        let workers = self.state.workers();
        let suspects = || {
            let numbers: Vec<String> = standings.iter().map(|(_, number, _)| number.to_string()).collect();
            match (&numbers[..], workers) {
                ([number], 1) => format!("worker 0 of generation {number}"),
                _ => format!("a worker of generation {}", numbers.join(" or ")),
            }
        };
        let now = Instant::now();
        let is_due = self.listeners.guard.look_is_due(now);
        if is_due {
            self.ask_what_serves_by_itself();
        }
        if is_due || self.listeners.guard.may_look(now) {
            self.look_at_listeners(now);
        }
        if self.listeners.guard.is_due(now) {
            self.listeners.held.look_who_is_silent();
        }
        let revived = self.listeners.guard.act(now, &self.poller, suspects);
        revived.iter().for_each(|name| self.listeners.held.listens_again(name));
        if self.listeners.unix_guard.act(now, &mut self.listeners.held, &self.poller, suspects) {
            self.events.push_back(Event::Rebound);
        }
        if !revived.is_empty() {
            self.steer_anew();
        }
    }
}
