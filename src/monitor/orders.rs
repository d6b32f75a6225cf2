//! Takes main's orders, and answers them.

use std::time::Instant;

use nix::errno::Errno;
use nix::sys::signal::Signal;

use super::Monitor;
use crate::control::monitor::channel::Received;
use crate::control::monitor::messages::{Order, Report, WorkerStatus};
use crate::monitor::decide::Event;
use crate::sys::errno::words;
use crate::sys::stderr;
use crate::worker::cause::Cause;

/// Limit of the orders that are read before the loop looks at anything else.
const MAX_ORDERS_A_TURN: usize = 64;

impl Monitor {
    pub(super) fn take_orders(&mut self) {
        for _ in 0..MAX_ORDERS_A_TURN {
            match self.talk.channel.receive::<Order>() {
                Received::Message(Order::Status, _) => self.report_status(),
                Received::Message(Order::LeaveTerminal, _) => {
                    if let Err(error) = stderr::leave_terminal() {
                        log::warn!("cannot give up the terminal: {}", words(&error));
                    }
                }
                Received::Message(Order::QueueAt { place }, descriptors) => {
                    descriptors.iter().for_each(|queue| self.sockets.accepted_on.add(queue));
                    let placed = descriptors.into_iter().all(|queue| self.sockets.placed.put(place, queue));
                    if !placed {
                        log::warn!("main sends a queue for place {place}, where no worker has one");
                    }
                }
                Received::Cut(Order::QueueAt { .. }) => {
                    log::warn!("no descriptor is left for the queue of a worker, which is started once there is one");
                }
                Received::Message(Order::Shared { ticket }, descriptors) => {
                    if let Some(held) = descriptors.into_iter().next() {
                        self.sockets.accepted_on.add(&held);
                        let listens = self.sockets.sharing.as_mut().and_then(|sharing| sharing.shared(ticket, held));
                        listens.into_iter().for_each(|process| self.listens(process));
                    }
                }
                Received::Message(Order::Bound { ticket }, _) => {
                    if let Some(sharing) = &mut self.sockets.sharing {
                        sharing.bound(ticket);
                    }
                }
                Received::Message(Order::Again { ticket }, _) => {
                    if let Some(claim) = self.sockets.sharing.as_mut().and_then(|sharing| sharing.again(ticket)) {
                        self.ask_main(claim);
                    }
                }
                Received::Message(Order::LastLines { serial, lines }, _) => self.on_last_lines(serial, lines),
                Received::Message(Order::Look { ticket }, _) => self.look_at_bind(ticket),
                Received::Message(Order::Own, _) => self.report_own(),
                Received::Message(Order::NotShared { ticket, errno }, _) => {
                    if let Some(sharing) = &mut self.sockets.sharing {
                        sharing.not_shared(ticket, errno.map(Errno::from_raw));
                    }
                }
                Received::Message(Order::Signal { ticket, number, slot }, _) => {
                    let reached = self.signal_as_asked(number, slot);
                    self.talk.channel.send(&Report::Signalled { ticket, reached });
                }
                Received::Cut(Order::Shared { ticket }) => {
                    log::warn!("a worker cannot share what it binds: this monitor has no descriptor left for it");
                    if let Some(sharing) = &mut self.sockets.sharing {
                        sharing.not_shared(ticket, Some(Errno::EMFILE));
                    }
                }
                Received::Cut(_) => self.talk.cut_off = Some("no descriptor is left for what main sends".to_owned()),
                Received::Failed(why) => self.talk.cut_off = Some(format!("what main and it say gets lost: {why}")),
                Received::Message(order, _) => {
                    self.take_over(&order);
                    self.events.push_back(Event::Ordered(order));
                }
                Received::Garbage(why) => log::warn!(
                    "main orders what the build of this monitor does not know, and that is left out: {why}; a reload gives \
                     generation {} a monitor that understands",
                    self.assignment.generation
                ),
                Received::MoreGarbage => {}
                Received::Nothing => return,
                Received::Gone => {
                    self.poller.forget(&self.talk.channel);
                    self.give_up_last_lines(true);
                    if let Some(sharing) = &mut self.sockets.sharing {
                        sharing.main_is_gone();
                    }
                    self.events.push_back(Event::MainGone);
                    return;
                }
            }
        }
    }

    /// Applies an order to the assignment and to the log level.
    fn take_over(&mut self, order: &Order) {
        match order {
            Order::Scale { workers, .. } => self.assignment.plan.workers = *workers,
            Order::Tune(tuning) => {
                self.assignment.plan.tuning.clone_from(tuning);
                stderr::set_level(tuning.verbosity.level());
            }
            _ => {}
        }
    }

    /// Sends an operator's signal to one worker or to all that run their program. Returns the number of workers that
    /// got it.
    fn signal_as_asked(&mut self, number: i32, slot: Option<u32>) -> u32 {
        let Ok(signal) = Signal::try_from(number) else { return 0 };
        // Reap first: a worker that has ended gets nothing.
        self.reap();
        let slots = slot.map_or(0..self.state.count(), |slot| slot..slot.saturating_add(1));
        let mut reached = 0;
        for slot in slots {
            let Some(worker) = self.state.worker_in(slot) else { continue };
            self.look_at_exec(worker);
            let worker = self.roster.live(worker).filter(|live| live.executing.is_none()).map(|live| live.worker);
            reached += u32::from(worker.is_some_and(|worker| self.signal(worker, signal)));
        }
        reached
    }

    fn report_status(&mut self) {
        let now = Instant::now();
        let shown = (0..self.state.count()).filter(|&slot| self.state.is_shown(slot));
        let workers = shown.filter_map(|slot| Some((self.state.worker_in(slot)?, self.state.view(slot))));
        let mold = self.state.mold_worker().zip(self.state.mold());
        for (worker, view) in workers.chain(mold).collect::<Vec<_>>() {
            let slot = worker.slot;
            let live = self.roster.live(worker);
            let sign_of_life = live.as_ref().and_then(|live| live.sign_of_life);
            let status = WorkerStatus {
                slot,
                pid: live.map(|live| live.pid().as_raw()),
                phase: view.phase.word().to_owned(),
                since: now.saturating_duration_since(view.since),
                respawns: view.respawns,
                last: self.roster.last_cause(slot).cloned().or_else(|| self.ended_under_another(slot)),
                sign_of_life: sign_of_life.map(|at| now.saturating_duration_since(at)),
                requests: view.wear.requests,
                recycled: view.wear.recycled,
                recycling: view.wear.reason.map(|reason| reason.to_string()),
            };
            self.talk.channel.send(&if worker.is_mold() { Report::Mold(status) } else { Report::Worker(status) });
        }
        self.talk.channel.send(&Report::StatusEnd);
    }

    fn ended_under_another(&self, slot: u32) -> Option<Cause> {
        self.assignment.ended.get(&slot).map(|code| Cause::Exited((*code).into()))
    }
}
