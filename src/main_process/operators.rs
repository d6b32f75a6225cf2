//! Who has asked main for something over the control socket, and what they are told of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::state::{Monitor, Progress, Rejected, Verdict};
use crate::control::operator::requests::{Answer, Failed, Request};
use crate::control::operator::server::{self, Server};
use crate::sys::descriptors::Kept;
use crate::sys::poller::Poller;

/// So many of the workers of a failed release are named.
const MOST_NAMED: usize = 64;

/// A monitor that lives answers in microseconds; one that is stopped is not waited for longer than this.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// The control socket, and what each client waits for.
#[derive(Debug)]
pub(super) struct Operators {
    pub(super) server: Server,
    pub(super) begun: Instant,
    waiting: BTreeMap<u64, Waiting>,
    last_ticket: u64,
}

/// The same as one main hands it on to the next: everybody who waits goes on waiting.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Carried {
    pub(super) server: server::Carried,
    #[serde(with = "crate::carry::moment")]
    begun: Instant,
    waiting: BTreeMap<u64, Waiting>,
    last_ticket: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
enum Waiting {
    /// To be told which generation decides the reload.
    Promise(Request),
    /// For the verdict on this generation.
    Verdict { generation: u32, drained: bool, told: Option<Progress> },
    /// For the end of all these generations.
    Ended(BTreeSet<u32>),
    /// For the end of this generation; with what is said then.
    Drained(u32, Box<Answer>),
    /// For an answer to an inquiry.
    Status,
    /// For this monitor to have sent a signal, until then.
    Signalled {
        ticket: u64,
        monitor: Monitor,
        #[serde(with = "crate::carry::moment")]
        deadline: Instant,
    },
    /// For a restart in place.
    Restart,
    /// For the end of everything.
    End,
}

impl Operators {
    pub(super) fn new(server: Server, now: Instant) -> Operators {
        Operators { server, begun: now, waiting: BTreeMap::new(), last_ticket: 0 }
    }

    /// For the next main.
    pub(super) fn carry<'a>(&'a self, kept: &mut Kept<'a>) -> Carried {
        let (waiting, last_ticket) = (self.waiting.clone(), self.last_ticket);
        Carried { server: self.server.carry(kept), begun: self.begun, waiting, last_ticket }
    }

    /// What the main before has handed on.
    pub(super) fn take_over(carried: Carried, poller: &Poller) -> io::Result<Operators> {
        let Carried { server, begun, waiting, last_ticket } = carried;
        Ok(Operators { server: Server::take_over(server, poller)?, begun, waiting, last_ticket })
    }

    /// A new build is being tried.
    pub(super) fn wants_restart(&mut self, client: u64) {
        self.waiting.insert(client, Waiting::Restart);
        self.send(client, &Answer { generation: None, ..Answer::event("trying", 0) });
    }

    /// What became of a restart.
    pub(super) fn restarted(&mut self, answer: &Answer) {
        let waits = |(client, waiting): (&u64, &Waiting)| matches!(waiting, Waiting::Restart).then_some(*client);
        for client in self.waiting.iter().filter_map(waits).collect::<Vec<_>>() {
            self.answer(client, answer);
        }
    }

    fn send(&mut self, client: u64, answer: &Answer) {
        self.server.send(client, answer, Instant::now());
    }

    /// Forgets those that are gone.
    pub(super) fn forget_gone(&mut self) {
        self.waiting.retain(|client, _| self.server.has(*client));
    }

    pub(super) fn answer(&mut self, client: u64, answer: &Answer) {
        self.waiting.remove(&client);
        self.send(client, answer);
    }

    /// The same answer to all who asked for the same.
    pub(super) fn answer_all(&mut self, clients: Vec<u64>, answer: &Answer) {
        self.server.send_all(clients, answer, Instant::now());
    }

    pub(super) fn wants_reload(&mut self, client: u64, request: Request) {
        self.waiting.insert(client, Waiting::Promise(request));
    }

    pub(super) fn wants_status(&mut self, client: u64) {
        self.waiting.insert(client, Waiting::Status);
    }

    /// This monitor is ordered to send a signal. Returns the ticket of its answer.
    pub(super) fn wants_signalled(&mut self, client: u64, monitor: Monitor, now: Instant) -> u64 {
        self.last_ticket += 1;
        let ticket = self.last_ticket;
        self.waiting.insert(client, Waiting::Signalled { ticket, monitor, deadline: now + LONGEST_WAIT });
        ticket
    }

    /// So many workers got it.
    pub(super) fn signalled(&mut self, answered: u64, by: Monitor, reached: u32) {
        let waits = |(client, waiting): (&u64, &Waiting)| match waiting {
            Waiting::Signalled { ticket, monitor, .. } if (*ticket, *monitor) == (answered, by) => Some(*client),
            _ => None,
        };
        let Some(client) = self.waiting.iter().find_map(waits) else { return };
        let answer = match reached {
            0 => Answer::refused("no worker got it: none of those meant runs just now; see panzerctl status"),
            _ => Answer::done(),
        };
        self.answer(client, &Answer { signalled: Some(reached), generation: Some(by.generation), ..answer });
    }

    /// When somebody has waited long enough for a signal to be sent.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let deadline = |waiting: &Waiting| match waiting {
            Waiting::Signalled { deadline, .. } => Some(*deadline),
            _ => None,
        };
        self.waiting.values().filter_map(deadline).min()
    }

    /// Tells those whose monitor has not answered until `now`, or is `gone`.
    pub(super) fn give_up_signals(&mut self, now: Instant, gone: Option<Monitor>) {
        let over = |(client, waiting): (&u64, &Waiting)| match waiting {
            Waiting::Signalled { monitor, .. } if gone == Some(*monitor) => {
                Some((*client, "its monitor has ended; whether the workers got it is not known"))
            }
            Waiting::Signalled { deadline, .. } if *deadline <= now => Some((
                *client,
                "no answer of the monitor within 1s; if it is stopped, it sends the signal when it goes on",
            )),
            _ => None,
        };
        for (client, why) in self.waiting.iter().filter_map(over).collect::<Vec<_>>() {
            self.answer(client, &Answer::refused(why));
        }
    }

    /// These generations drain, and somebody waits for their end.
    pub(super) fn wants_drained(&mut self, client: u64, generations: BTreeSet<u32>) {
        for generation in &generations {
            self.send(client, &Answer { retiring: Some(*generation), ..Answer::event("draining", *generation) });
        }
        self.waiting.insert(client, Waiting::Ended(generations));
    }

    /// A stop is under way.
    pub(super) fn wants_end(&mut self, client: u64, no_wait: bool) {
        if no_wait {
            return self.answer(client, &Answer::done());
        }
        self.waiting.insert(client, Waiting::End);
        self.send(client, &Answer { generation: None, ..Answer::event("stopping", 0) });
    }

    /// Whether somebody waits for an inquiry.
    pub(super) fn want_status(&self) -> bool {
        self.waiting.values().any(|waiting| matches!(waiting, Waiting::Status))
    }

    /// Those who wait for an inquiry now: who asks later waits for the next.
    pub(super) fn take_status_askers(&mut self) -> Vec<u64> {
        let asks = |(client, waiting): (&u64, &Waiting)| matches!(waiting, Waiting::Status).then_some(*client);
        let askers: Vec<u64> = self.waiting.iter().filter_map(asks).collect();
        self.waiting.retain(|_, waiting| !matches!(waiting, Waiting::Status));
        askers
    }

    /// Which generation decides the reload of this client.
    pub(super) fn promised(&mut self, client: u64, generation: Option<u32>, now_starting: Option<u32>) {
        let Some(Waiting::Promise(request)) = self.waiting.remove(&client) else { return };
        let Some(generation) = generation else {
            return self.send(client, &Answer::refused("panzer is being stopped"));
        };
        if request.no_wait {
            return self.send(client, &Answer { generation: Some(generation), ..Answer::done() });
        }
        let event = if now_starting == Some(generation) { "starting" } else { "queued" };
        self.send(client, &Answer::event(event, generation));
        self.waiting.insert(client, Waiting::Verdict { generation, drained: request.drained, told: None });
    }

    /// A change of the count of workers waits until some queues are empty.
    pub(super) fn emptying(&mut self, client: u64) {
        self.send(client, &Answer { generation: None, ..Answer::event("emptying", 0) });
    }

    /// What became of a change of the count of workers.
    pub(super) fn scaled(&mut self, client: u64, from: u32, to: Result<u32, &str>) {
        let answer = match to {
            Ok(to) => Answer { from: Some(from), workers: Some(to), ..Answer::done() },
            Err(why) => Answer::refused(why),
        };
        self.answer(client, &answer);
    }

    /// How far the generation has come that is starting.
    pub(super) fn tell_progress(&mut self, progress: Option<Progress>) {
        let Some(progress) = progress else { return };
        let event = if progress.baking { "baking" } else { "starting" };
        let (ready, workers) = (Some(progress.ready), Some(progress.workers));
        let answer = Answer { ready, workers, ..Answer::event(event, progress.generation) };
        for (client, waiting) in &mut self.waiting {
            if let Waiting::Verdict { generation, told, .. } = waiting
                && *generation == progress.generation
                && told.replace(progress) != Some(progress)
            {
                self.server.send(*client, &answer, Instant::now());
            }
        }
    }

    /// What became of a generation; `why` says it of a failed one.
    pub(super) fn judged(&mut self, generation: u32, verdict: &Verdict, why: impl Fn() -> String) {
        let answer = match verdict {
            Verdict::Serves(retiring, took) => Answer {
                generation: Some(generation),
                retiring: *retiring,
                took_ms: Some(took.as_millis() as u64),
                ..Answer::done()
            },
            Verdict::Rejected(Rejected { failed, .. }) => Answer {
                generation: Some(generation),
                failed: failed.iter().take(MOST_NAMED).map(|(slot, cause)| Failed::new(*slot, cause)).collect(),
                ..Answer::refused(why())
            },
            Verdict::Stopped => Answer {
                generation: Some(generation),
                ..Answer::refused(format!(
                    "reload given up: panzer is being stopped before generation {generation} serves"
                ))
            },
        };
        let waits = |(client, waiting): (&u64, &Waiting)| match waiting {
            Waiting::Verdict { generation: wanted, drained, .. } if *wanted == generation => Some((*client, *drained)),
            _ => None,
        };
        for (client, drained) in self.waiting.iter().filter_map(waits).collect::<Vec<_>>() {
            match (drained, answer.retiring) {
                (true, Some(old)) => {
                    self.send(client, &Answer { retiring: Some(old), ..Answer::event("draining", generation) });
                    self.waiting.insert(client, Waiting::Drained(old, Box::new(answer.clone())));
                }
                _ => self.answer(client, &answer),
            }
        }
    }

    /// A generation is gone, with all its processes.
    pub(super) fn gone(&mut self, generation: u32) {
        let mut last_gone = Vec::new();
        for (client, waiting) in &mut self.waiting {
            if let Waiting::Ended(generations) = waiting
                && generations.remove(&generation)
                && generations.is_empty()
            {
                last_gone.push(*client);
            }
        }
        last_gone.into_iter().for_each(|client| self.answer(client, &Answer::done()));
        let waits = |(client, waiting): (&u64, &Waiting)| match waiting {
            Waiting::Drained(old, answer) if *old == generation => Some((*client, answer.clone())),
            _ => None,
        };
        for (client, answer) in self.waiting.iter().filter_map(waits).collect::<Vec<_>>() {
            self.answer(client, &answer);
        }
    }

    /// Everything has ended: whoever still waits is told so.
    pub(super) fn ended(&mut self, code: u8) {
        for (client, waiting) in std::mem::take(&mut self.waiting) {
            match waiting {
                Waiting::End => self.send(client, &Answer { exit_code: Some(code), ..Answer::done() }),
                _ => self.send(client, &Answer::refused("panzer has ended")),
            }
        }
    }
}
