//! Performs the requests of the control socket.

use std::time::Instant;

use nix::sys::signal::Signal;

use crate::control::monitor::messages::{Order, Urgency};
use crate::control::operator::requests::{Outcome, Request, Wanted};
use crate::main_process::decide::{Change, Event, Monitor, Standing};
use crate::main_process::main::Main;
use crate::sys::signals::parse_signal_or_number;

/// A ticket that no client waits for.
const NO_CLIENT: u64 = 0;

impl Main {
    /// A client asks for something. If a signal can ask for the same thing, it is the same event.
    pub(crate) fn on_request(&mut self, client: u64, request: Request) {
        if let Some(why) = self.refused_before_stop(request.command) {
            return self.operators.clients.answer(client, Outcome::refused(why));
        }
        match request.command {
            Wanted::Status => {
                self.operators.clients.wants_status(client);
                self.inquire();
            }
            Wanted::Reload => {
                self.operators.clients.wants_reload(client, request);
                self.events.push_back(Event::ReloadFor(client));
            }
            Wanted::Stop | Wanted::Exit => {
                let quick = request.command == Wanted::Exit;
                let urgency = if quick { Urgency::Quick } else { Urgency::Graceful };
                self.events.push_back(Event::Stop(urgency));
                self.operators.clients.wants_end(client, request.no_wait);
            }
            Wanted::Scale => match change(request.count.as_deref()) {
                Ok(change) => self.scale(Some(client), change),
                Err(why) => self.operators.clients.answer(client, Outcome::refused(why)),
            },
            Wanted::Drain => self.on_drain_asked(client, &request),
            Wanted::Restart => self.on_restart_asked(Some(client)),
            Wanted::Quiet => self.scale(Some(client), Change::ToNone),
            Wanted::Signal => {
                if let Err(why) = self.order_signal(client, &request) {
                    self.operators.clients.answer(client, Outcome::refused(why));
                }
            }
            Wanted::Reopen => {
                self.logger.reopen();
                self.operators.clients.answer(client, Outcome::done());
            }
        }
    }

    fn on_drain_asked(&mut self, client: u64, request: &Request) {
        let mut draining = self.state.draining();
        if let Some(generation) = request.generation
            && !draining.contains(&generation)
        {
            let others: Vec<String> = draining.iter().map(u32::to_string).collect();
            let others =
                if others.is_empty() { "none does".to_owned() } else { format!("these do: {}", others.join(", ")) };
            let why = format!("generation {generation} does not drain; {others}");
            return self.operators.clients.answer(client, Outcome::refused(why));
        }
        draining.retain(|one| request.generation.is_none_or(|only| only == *one));
        if request.now {
            self.events.push_back(Event::EscalateDraining(request.generation));
        }
        match request.no_wait || draining.is_empty() {
            true => self.operators.clients.answer(client, Outcome::done()),
            false => self.operators.clients.wants_drained(client, draining),
        }
    }

    /// Orders a monitor to send a signal. The monitor knows which pids are still its own children.
    pub(crate) fn order_signal(&mut self, client: u64, request: &Request) -> Result<(), String> {
        let text = request.signal.as_deref().ok_or("a signal command needs a \"signal\"")?;
        let number = parse_signal_or_number(text)? as i32;
        let slot = request.worker;
        let monitor = self.serving_monitor()?;
        let slots = self.state.slots();
        if let Some(slot) = slot.filter(|&slot| slot >= slots) {
            return Err(format!("there is no worker {slot}: they are numbered from 0 to {}", slots.saturating_sub(1)));
        }
        let ticket = self.operators.clients.wants_signalled(client, monitor, Instant::now());
        self.send_signal(monitor, Order::Signal { ticket, number, slot });
        Ok(())
    }

    /// Sends a signal that main got on to the workers.
    pub(crate) fn pass_signal(&mut self, signal: Signal) {
        match self.serving_monitor() {
            Ok(monitor) => {
                log::info!("{}: passed on to the workers", signal.as_str());
                let order = Order::Signal { ticket: NO_CLIENT, number: signal as i32, slot: None };
                self.send_signal(monitor, order);
            }
            Err(why) => log::warn!("{} is not passed on to the workers: {why}", signal.as_str()),
        }
    }

    fn serving_monitor(&mut self) -> Result<Monitor, String> {
        let serving = self.state.standings().into_iter().find(|(standing, ..)| *standing == Standing::Serving);
        let (_, generation, monitor) = serving.ok_or("no generation serves: panzer is being stopped")?;
        let running = monitor.filter(|monitor| self.children.running(*monitor).is_some());
        running.ok_or_else(|| format!("generation {generation} has no monitor just now; try again"))
    }

    fn send_signal(&mut self, monitor: Monitor, order: Order) {
        if let Some(running) = self.children.running(monitor) {
            running.channel.send(&order);
        }
    }
}

/// Reads the argument of a scale: `4`, `+1` or `-1`.
fn change(count: Option<&str>) -> Result<Change, String> {
    let text = count.ok_or("a scale command needs a \"count\"")?;
    let wrong = || format!("'{text}' is no count of workers: take 4, +1 or -1");
    match text.strip_prefix(['+', '-']) {
        Some(digits) if digits.starts_with(|first: char| first.is_ascii_digit()) => {
            text.parse().map(Change::By).map_err(|_| wrong())
        }
        Some(_) => Err(wrong()),
        None => text.parse().map(Change::To).map_err(|_| wrong()),
    }
}
