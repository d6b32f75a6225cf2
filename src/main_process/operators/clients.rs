//! The clients of the control socket: what each one has asked for, and its answers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::control::operator::requests::{self, Answer, Counts, Outcome, Request};
use crate::control::operator::server::Server;
use crate::control::operator::status::Failed;
use crate::main_process::decide::{Monitor, Progress, Rejected, Verdict};

/// Limit of the failed workers that are listed in an answer.
const MAX_NAMED_WORKERS: usize = 64;

/// A running monitor answers in microseconds. Main waits this long for a stopped one.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// The control socket, and what each client waits for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Clients {
    pub(crate) server: Server,
    #[serde(with = "crate::carry::moment")]
    pub(crate) begun: Instant,
    waiting: BTreeMap<u64, Waiting>,
    last_ticket: u64,
}

#[derive(Debug, Serialize, Deserialize)]
enum Waiting {
    /// It waits for the generation that decides its reload.
    Promise(Request),
    /// It waits for the verdict on this generation.
    Verdict { generation: u32, drained: bool, told: Option<Progress> },
    /// It waits for the end of all these generations.
    Ended(BTreeSet<u32>),
    /// It waits for the end of this generation, and then gets this answer.
    Drained(u32, Box<Answer>),
    /// It waits for the answer to an inquiry.
    Status,
    /// It waits for this monitor to have sent a signal, at most until `deadline`.
    Signalled {
        ticket: u64,
        monitor: Monitor,
        #[serde(with = "crate::carry::moment")]
        deadline: Instant,
    },
    /// It waits for a restart in place.
    Restart,
    /// It waits for the end of everything.
    End,
}

impl Clients {
    pub(crate) fn new(server: Server, now: Instant) -> Clients {
        Clients { server, begun: now, waiting: BTreeMap::new(), last_ticket: 0 }
    }

    /// The client waits for a restart. The new build is being tried.
    pub(crate) fn wants_restart(&mut self, client: u64) {
        self.waiting.insert(client, Waiting::Restart);
        self.send(client, requests::Progress::Trying);
    }

    /// Answers the clients that wait for a restart.
    pub(crate) fn restarted(&mut self, outcome: Outcome) {
        let waits = |(client, waiting): (&u64, &Waiting)| matches!(waiting, Waiting::Restart).then_some(*client);
        let clients: Vec<u64> = self.waiting.iter().filter_map(waits).collect();
        self.waiting.retain(|_, waiting| !matches!(waiting, Waiting::Restart));
        self.answer_all(clients, outcome);
    }

    fn send(&mut self, client: u64, answer: impl Into<Answer>) {
        self.server.send_all([client], &answer.into(), Instant::now());
    }

    /// Forgets the clients that are gone.
    pub(crate) fn forget_gone(&mut self) {
        self.waiting.retain(|client, _| self.server.has(*client));
    }

    pub(crate) fn answer(&mut self, client: u64, answer: impl Into<Answer>) {
        self.waiting.remove(&client);
        self.send(client, answer);
    }

    /// Sends one answer to clients that asked for the same thing.
    pub(crate) fn answer_all(&mut self, clients: Vec<u64>, outcome: Outcome) {
        self.server.send_all(clients, &outcome.into(), Instant::now());
    }

    pub(crate) fn wants_reload(&mut self, client: u64, request: Request) {
        self.waiting.insert(client, Waiting::Promise(request));
    }

    pub(crate) fn wants_status(&mut self, client: u64) {
        self.waiting.insert(client, Waiting::Status);
    }

    /// The client waits until this monitor has sent a signal. Returns the ticket of the order.
    pub(crate) fn wants_signalled(&mut self, client: u64, monitor: Monitor, now: Instant) -> u64 {
        self.last_ticket += 1;
        let ticket = self.last_ticket;
        self.waiting.insert(client, Waiting::Signalled { ticket, monitor, deadline: now + ANSWER_TIMEOUT });
        ticket
    }

    /// Answers the client: this number of workers got its signal.
    pub(crate) fn signalled(&mut self, answered: u64, by: Monitor, reached: u32) {
        let waits = |(client, waiting): (&u64, &Waiting)| match waiting {
            Waiting::Signalled { ticket, monitor, .. } if (*ticket, *monitor) == (answered, by) => Some(*client),
            _ => None,
        };
        let Some(client) = self.waiting.iter().find_map(waits) else { return };
        let answer = match reached {
            0 => Outcome::refused("no worker got it: none of those meant runs just now; see panzerctl status"),
            _ => Outcome::done(),
        };
        self.answer(client, Outcome { signalled: Some(reached), generation: Some(by.generation), ..answer });
    }

    /// When a client has waited long enough for a signal.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let deadline = |waiting: &Waiting| match waiting {
            Waiting::Signalled { deadline, .. } => Some(*deadline),
            _ => None,
        };
        self.waiting.values().filter_map(deadline).min()
    }

    /// Answers the clients whose monitor has not answered by `now`, or is `gone`.
    pub(crate) fn give_up_signals(&mut self, now: Instant, gone: Option<Monitor>) {
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
            self.answer(client, Outcome::refused(why));
        }
    }

    /// The client waits for the end of these generations, which drain.
    pub(crate) fn wants_drained(&mut self, client: u64, generations: BTreeSet<u32>) {
        for generation in &generations {
            self.send(client, requests::Progress::Draining { generation: *generation, retiring: *generation });
        }
        self.waiting.insert(client, Waiting::Ended(generations));
    }

    /// The client waits for the end of a stop, unless `no_wait` is set.
    pub(crate) fn wants_end(&mut self, client: u64, no_wait: bool) {
        if no_wait {
            return self.answer(client, Outcome::done());
        }
        self.waiting.insert(client, Waiting::End);
        self.send(client, requests::Progress::Stopping);
    }

    /// Whether a client waits for an inquiry.
    pub(crate) fn want_status(&self) -> bool {
        self.waiting.values().any(|waiting| matches!(waiting, Waiting::Status))
    }

    /// Takes the clients that wait for an inquiry now. A client that asks later waits for the next one.
    pub(crate) fn take_status_askers(&mut self) -> Vec<u64> {
        let asks = |(client, waiting): (&u64, &Waiting)| matches!(waiting, Waiting::Status).then_some(*client);
        let askers: Vec<u64> = self.waiting.iter().filter_map(asks).collect();
        self.waiting.retain(|_, waiting| !matches!(waiting, Waiting::Status));
        askers
    }

    /// Tells the client which generation decides its reload.
    pub(crate) fn promised(&mut self, client: u64, generation: Option<u32>, now_starting: Option<u32>) {
        let Some(Waiting::Promise(request)) = self.waiting.remove(&client) else { return };
        let Some(generation) = generation else {
            return self.send(client, Outcome::refused("panzer is being stopped"));
        };
        if request.no_wait {
            return self.send(client, Outcome { generation: Some(generation), ..Outcome::done() });
        }
        let progress = match now_starting == Some(generation) {
            true => requests::Progress::Starting { generation, counts: None },
            false => requests::Progress::Queued { generation },
        };
        self.send(client, progress);
        self.waiting.insert(client, Waiting::Verdict { generation, drained: request.drained, told: None });
    }

    /// Tells the client that the change of the number of workers waits until some queues are empty.
    pub(crate) fn emptying(&mut self, client: u64) {
        self.send(client, requests::Progress::Emptying);
    }

    /// Answers a client that asked for another number of workers.
    pub(crate) fn scaled(&mut self, client: u64, from: u32, to: Result<u32, &str>) {
        let answer = match to {
            Ok(to) => Outcome { from: Some(from), workers: Some(to), ..Outcome::done() },
            Err(why) => Outcome::refused(why),
        };
        self.answer(client, answer);
    }

    /// Tells the clients how far the starting generation has come.
    pub(crate) fn tell_progress(&mut self, progress: Option<Progress>) {
        let Some(progress) = progress else { return };
        let Progress { generation, ready, workers, baking } = progress;
        let counts = Counts { ready, workers };
        let line = match baking {
            true => requests::Progress::Baking { generation, counts },
            false => requests::Progress::Starting { generation, counts: Some(counts) },
        };
        let answer = line.into();
        for (client, waiting) in &mut self.waiting {
            if let Waiting::Verdict { generation, told, .. } = waiting
                && *generation == progress.generation
                && told.replace(progress) != Some(progress)
            {
                self.server.send_all([*client], &answer, Instant::now());
            }
        }
    }

    /// Answers the clients that wait for this generation. `why` explains a failure.
    pub(crate) fn judged(&mut self, generation: u32, verdict: &Verdict, why: impl Fn() -> String) {
        let answer = match verdict {
            Verdict::Serves(retiring, took) => Outcome {
                generation: Some(generation),
                retiring: *retiring,
                took_ms: Some(took.as_millis() as u64),
                ..Outcome::done()
            },
            Verdict::Rejected(Rejected { failed, .. }) => Outcome {
                generation: Some(generation),
                failed: failed.iter().take(MAX_NAMED_WORKERS).map(|(slot, cause)| Failed::new(*slot, cause)).collect(),
                ..Outcome::refused(why())
            },
            Verdict::Stopped => Outcome {
                generation: Some(generation),
                ..Outcome::refused(format!(
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
                    self.send(client, requests::Progress::Draining { generation, retiring: old });
                    self.waiting.insert(client, Waiting::Drained(old, Box::new(answer.clone().into())));
                }
                _ => self.answer(client, answer.clone()),
            }
        }
    }

    /// Answers the clients that wait for the end of this generation.
    pub(crate) fn gone(&mut self, generation: u32) {
        let mut last_gone = Vec::new();
        for (client, waiting) in &mut self.waiting {
            if let Waiting::Ended(generations) = waiting
                && generations.remove(&generation)
                && generations.is_empty()
            {
                last_gone.push(*client);
            }
        }
        last_gone.into_iter().for_each(|client| self.answer(client, Outcome::done()));
        let waits = |(client, waiting): (&u64, &Waiting)| match waiting {
            Waiting::Drained(old, answer) if *old == generation => Some((*client, answer.clone())),
            _ => None,
        };
        for (client, answer) in self.waiting.iter().filter_map(waits).collect::<Vec<_>>() {
            self.answer(client, *answer);
        }
    }

    /// Answers all clients that still wait: everything has ended.
    pub(crate) fn ended(&mut self, code: u8) {
        for (client, waiting) in std::mem::take(&mut self.waiting) {
            match waiting {
                Waiting::End => self.send(client, Outcome { exit_code: Some(code), ..Outcome::done() }),
                _ => self.send(client, Outcome::refused("panzer has ended")),
            }
        }
    }
}
