//! Who has asked main for something over the control socket, and what they are told of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::control::operator::requests::{self, Answer, Counts, Outcome, Request};
use crate::control::operator::server::Server;
use crate::control::operator::status::Failed;
use crate::main_process::decide::{Monitor, Progress, Rejected, Verdict};

/// So many of the workers of a failed release are named.
const MAX_NAMED_WORKERS: usize = 64;

/// A monitor that lives answers in microseconds; one that is stopped is not waited for longer than this.
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

impl Clients {
    pub(crate) fn new(server: Server, now: Instant) -> Clients {
        Clients { server, begun: now, waiting: BTreeMap::new(), last_ticket: 0 }
    }

    /// A new build is being tried.
    pub(crate) fn wants_restart(&mut self, client: u64) {
        self.waiting.insert(client, Waiting::Restart);
        self.send(client, requests::Progress::Trying);
    }

    /// What became of a restart.
    pub(crate) fn restarted(&mut self, outcome: Outcome) {
        let waits = |(client, waiting): (&u64, &Waiting)| matches!(waiting, Waiting::Restart).then_some(*client);
        let clients: Vec<u64> = self.waiting.iter().filter_map(waits).collect();
        self.waiting.retain(|_, waiting| !matches!(waiting, Waiting::Restart));
        self.answer_all(clients, outcome);
    }

    fn send(&mut self, client: u64, answer: impl Into<Answer>) {
        self.server.send_all([client], &answer.into(), Instant::now());
    }

    /// Forgets those that are gone.
    pub(crate) fn forget_gone(&mut self) {
        self.waiting.retain(|client, _| self.server.has(*client));
    }

    pub(crate) fn answer(&mut self, client: u64, answer: impl Into<Answer>) {
        self.waiting.remove(&client);
        self.send(client, answer);
    }

    /// The same answer to all who asked for the same.
    pub(crate) fn answer_all(&mut self, clients: Vec<u64>, outcome: Outcome) {
        self.server.send_all(clients, &outcome.into(), Instant::now());
    }

    pub(crate) fn wants_reload(&mut self, client: u64, request: Request) {
        self.waiting.insert(client, Waiting::Promise(request));
    }

    pub(crate) fn wants_status(&mut self, client: u64) {
        self.waiting.insert(client, Waiting::Status);
    }

    /// This monitor is ordered to send a signal. Returns the ticket of its answer.
    pub(crate) fn wants_signalled(&mut self, client: u64, monitor: Monitor, now: Instant) -> u64 {
        self.last_ticket += 1;
        let ticket = self.last_ticket;
        self.waiting.insert(client, Waiting::Signalled { ticket, monitor, deadline: now + ANSWER_TIMEOUT });
        ticket
    }

    /// So many workers got it.
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

    /// When somebody has waited long enough for a signal to be sent.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let deadline = |waiting: &Waiting| match waiting {
            Waiting::Signalled { deadline, .. } => Some(*deadline),
            _ => None,
        };
        self.waiting.values().filter_map(deadline).min()
    }

    /// Tells those whose monitor has not answered until `now`, or is `gone`.
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

    /// These generations drain, and somebody waits for their end.
    pub(crate) fn wants_drained(&mut self, client: u64, generations: BTreeSet<u32>) {
        for generation in &generations {
            self.send(client, requests::Progress::Draining { generation: *generation, retiring: *generation });
        }
        self.waiting.insert(client, Waiting::Ended(generations));
    }

    /// A stop is under way.
    pub(crate) fn wants_end(&mut self, client: u64, no_wait: bool) {
        if no_wait {
            return self.answer(client, Outcome::done());
        }
        self.waiting.insert(client, Waiting::End);
        self.send(client, requests::Progress::Stopping);
    }

    /// Whether somebody waits for an inquiry.
    pub(crate) fn want_status(&self) -> bool {
        self.waiting.values().any(|waiting| matches!(waiting, Waiting::Status))
    }

    /// Those who wait for an inquiry now: who asks later waits for the next.
    pub(crate) fn take_status_askers(&mut self) -> Vec<u64> {
        let asks = |(client, waiting): (&u64, &Waiting)| matches!(waiting, Waiting::Status).then_some(*client);
        let askers: Vec<u64> = self.waiting.iter().filter_map(asks).collect();
        self.waiting.retain(|_, waiting| !matches!(waiting, Waiting::Status));
        askers
    }

    /// Which generation decides the reload of this client.
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

    /// A change of the count of workers waits until some queues are empty.
    pub(crate) fn emptying(&mut self, client: u64) {
        self.send(client, requests::Progress::Emptying);
    }

    /// What became of a change of the count of workers.
    pub(crate) fn scaled(&mut self, client: u64, from: u32, to: Result<u32, &str>) {
        let answer = match to {
            Ok(to) => Outcome { from: Some(from), workers: Some(to), ..Outcome::done() },
            Err(why) => Outcome::refused(why),
        };
        self.answer(client, answer);
    }

    /// How far the generation has come that is starting.
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

    /// What became of a generation; `why` says it of a failed one.
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

    /// A generation is gone, with all its processes.
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

    /// Everything has ended: whoever still waits is told so.
    pub(crate) fn ended(&mut self, code: u8) {
        for (client, waiting) in std::mem::take(&mut self.waiting) {
            match waiting {
                Waiting::End => self.send(client, Outcome { exit_code: Some(code), ..Outcome::done() }),
                _ => self.send(client, Outcome::refused("panzer has ended")),
            }
        }
    }
}
