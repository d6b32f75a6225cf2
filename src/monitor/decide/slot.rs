//! One slot, and the data of one worker.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::vocabulary::{Phase, View, Worker, Worn};
use crate::backoff::Backoff;
use crate::config::{Escalation, Reason, Recycling, Schedule, StartDelay};
use crate::control::monitor::messages::Urgency;
use crate::readiness::watch::{Hidden, Sight};
use crate::worker::cause::Cause;

/// The pause after the first look at a worker. It doubles with each look.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(2);

/// Longest pause between probes. It is longer than between looks, because a probe costs a process.
pub(super) const FIRST_PROBE_PAUSE: Duration = Duration::from_millis(20);

/// A process that has not ended this long after KILL is given up: it may not be signalled, or the kernel cannot end it.
/// Main gives the monitor more time than this beyond the schedule.
pub(super) const KILL_TIMEOUT: Duration = Duration::from_secs(4);

/// Limit of the processes that are started before signals, orders and messages are read again. Takes some milliseconds.
const MAX_STARTS_A_TURN: u32 = 8;

/// The pauses between two measurements of a worker's memory: near the limit, of a young worker, and far below.
const MIN_PAUSE: Duration = Duration::from_secs(1);
const YOUNG_PAUSE: Duration = Duration::from_secs(5);
const MAX_PAUSE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, PartialEq)]
pub(super) enum State {
    Empty,
    Waiting {
        until: Instant,
    },
    Executing {
        deadline: Instant,
    },
    /// The mold has been asked for its process.
    Forking,
    Starting {
        deadline: Option<Instant>,
        /// When to look at it. None if it was seen accepting, or need not be.
        look: Option<Watched>,
        /// When to probe it. None if it must be seen accepting first, or if there is no probe.
        probe: Option<Watched>,
    },
    /// Until `unproven`, if that is set, it is only known to be alive.
    Ready {
        unproven: Option<Instant>,
    },
    Stopping(Escalation),
    /// No worker follows the last one. Its exit code, if it was a worker of this monitor.
    EndedForGood {
        code: Option<u8>,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Slot {
    pub(super) state: State,
    pub(super) life: u32,
    pub(super) since: Instant,
    /// Whether a worker is wanted in it.
    pub(super) wanted: bool,
    /// Number of its workers that replaced one which had ended by itself.
    pub(super) respawns: u32,
    /// Whether its worker is being stopped because the slot is, or was, not wanted.
    pub(super) retiring: bool,
    /// Whether its next worker was asked for, and so is no respawn.
    pub(super) is_anew: bool,
    pub(super) suspension: Suspension,
    /// Number of workers since the last ready one that were not ready in time.
    pub(super) unready: u32,
    pub(super) readiness: Readiness,
    pub(super) watchdog: Watchdog,
    pub(super) backoff: Backoff,
    /// Why the worker is being ended, if it is not for a stop.
    pub(super) ended_for: Option<Cause>,
    pub(super) wear: Wear,
}

/// Whether a signal has stopped the worker, and when that was last logged.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Suspension {
    pub(super) is_now: bool,
    pub(super) told: Option<Instant>,
}

/// How far the worker of a slot is ready.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Readiness {
    pub(super) notified: bool,
    /// When its program began.
    pub(super) executed: Option<Instant>,
    /// Whether this worker listens on a shared port.
    pub(super) listens: bool,
    /// Whether an earlier worker of this slot listened on a shared port.
    pub(super) listened: bool,
    /// Since when this worker serves: it is ready, and has shown more than being alive.
    pub(super) serves: Option<Instant>,
    /// The results of looks at it.
    pub(super) shown: Shown,
    /// The earliest ready deadline that it has asked for.
    pub(super) extended_to: Option<Instant>,
    /// When its worker counts as having been ready, if it dies. If it need not be seen, and need not notify, that is at
    /// the end of the bake.
    pub(super) proven: Option<Instant>,
}

impl Slot {
    /// Whether its worker hangs in its exec, or is not ready in time.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        match self.state {
            State::Executing { deadline } | State::Starting { deadline: Some(deadline), .. } => deadline <= now,
            _ => false,
        }
    }

    pub(super) fn new(now: Instant) -> Slot {
        Slot {
            state: State::Empty,
            life: 0,
            since: now,
            wanted: true,
            respawns: 0,
            retiring: false,
            is_anew: false,
            suspension: Suspension::default(),
            unready: 0,
            readiness: Readiness::default(),
            watchdog: Watchdog::default(),
            backoff: Backoff::default(),
            ended_for: None,
            wear: Wear::default(),
        }
    }

    /// The slot as others see it.
    pub(super) fn view(&self) -> View {
        let phase = match self.state {
            _ if self.suspension.is_now && self.has_worker() => Phase::Suspended,
            State::Empty => Phase::Empty,
            State::Waiting { .. } => Phase::Waiting,
            State::Executing { .. } | State::Forking => Phase::Executing,
            State::Starting { .. } => Phase::Starting,
            State::Ready { .. } => Phase::Ready,
            State::Stopping(_) => Phase::Stopping,
            State::EndedForGood { .. } => Phase::Ended,
        };
        View { phase, respawns: self.respawns, since: self.since, wear: self.wear.view() }
    }

    /// Another life of it begins.
    pub(super) fn begin(&mut self, state: State, now: Instant) {
        self.wear = self.wear.next_life();
        self.life = self.wear.last_life;
        self.retiring = false;
        self.is_anew = false;
        self.since = now;
        self.suspension = Suspension::default();
        self.readiness = Readiness { listened: self.readiness.listened, ..Readiness::default() };
        self.watchdog = Watchdog::default();
        self.state = state;
    }
}

/// The watchdog of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Watchdog {
    /// The worker is to say by then that it lives.
    pub(super) due: Option<Instant>,
    /// The period that the worker has asked for.
    pub(super) own: Option<Duration>,
    /// The worker has asked for time until then.
    extended_to: Option<Instant>,
    /// Somebody at a terminal has stopped the worker.
    paused: bool,
}

impl Watchdog {
    pub(super) fn period(&self, usual: Option<Duration>) -> Option<Duration> {
        self.own.or(usual).filter(|period| usual.is_some() && !period.is_zero())
    }

    /// A period begins now.
    pub(super) fn begin(&mut self, usual: Option<Duration>, now: Instant) {
        let period = self.period(usual).filter(|_| !self.paused);
        self.due =
            period.and_then(|period| now.checked_add(period)).map(|due| self.extended_to.map_or(due, |to| due.max(to)));
    }

    pub(super) fn extend(&mut self, until: Instant) {
        self.extended_to = self.extended_to.max(Some(until));
        self.due = self.due.map(|due| due.max(until));
    }

    pub(super) fn pause(&mut self) {
        (self.due, self.paused) = (None, true);
    }

    pub(super) fn resume(&mut self, usual: Option<Duration>, now: Instant) {
        self.paused = false;
        self.begin(usual, now);
    }
}

/// When to look at a worker, or to probe it, again. None while its probe is under way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Watched {
    pub(super) next: Option<Instant>,
    pub(super) pause: Duration,
}

impl Watched {
    pub(super) fn by_looks(now: Instant) -> Watched {
        Watched { next: Some(now), pause: FIRST_PAUSE }
    }

    pub(super) fn by_probes(now: Instant) -> Watched {
        Watched { next: Some(now), pause: FIRST_PROBE_PAUSE }
    }
}

/// The results of looks at one worker.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Shown {
    /// It was seen accepting.
    pub(super) accepting: bool,
    /// Since when every look found it hidden.
    pub(super) hidden_since: Option<Instant>,
    /// The reason, if it counts as one that cannot be seen.
    pub(super) hidden: Option<Hidden>,
    /// Why the last look could not see a process that it has started.
    pub(super) helper_hidden: Option<Hidden>,
    /// The last reason that was reported.
    pub(super) reported: Option<Hidden>,
}

impl Shown {
    pub(super) fn note(&mut self, sight: Sight, patience: Duration, now: Instant) {
        match sight {
            Sight::Unseeable(why) => {
                let since = *self.hidden_since.get_or_insert(now);
                if now >= since + patience {
                    self.hidden = Some(why);
                }
            }
            Sight::Accepting => (self.accepting, self.hidden_since, self.hidden) = (true, None, None),
            Sight::NotYet(helper) => (self.helper_hidden, self.hidden_since, self.hidden) = (helper, None, None),
        }
    }

    /// The reason why it cannot be seen, if main does not know it yet.
    pub(super) fn unreported(&mut self) -> Option<Hidden> {
        let new = self.hidden.filter(|_| self.hidden != self.reported);
        self.reported = self.hidden.or(self.reported);
        new
    }
}

/// A probe under way.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Probe {
    /// When it is ended, or ended again.
    pub(super) deadline: Instant,
    /// Whether it was told to end.
    pub(super) ended: bool,
}

/// Processes that a worker has left behind.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Left {
    /// When it gets this as its first signal, and is told of.
    pub(super) first: Option<(Instant, Signal)>,
    /// The step after that.
    pub(super) escalation: Escalation,
}

impl Left {
    /// When there is something to be done about it.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let first = self.first.map(|(due, _)| due);
        let given_up = self.escalation.killed().map(|killed| killed + KILL_TIMEOUT);
        [first, self.escalation.deadline(), given_up].into_iter().flatten().min()
    }
}

/// The stop of everything: what the workers go through, and since when.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stopping {
    pub(super) urgency: Urgency,
    pub(super) schedule: Schedule,
    pub(super) begun: Instant,
}

/// The starts so far.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Starts {
    /// When the next start may be.
    next: Option<Instant>,
    /// Number of processes that may still be started in this turn of the loop.
    left: u32,
}

impl Starts {
    /// Signals, orders and messages have been read.
    pub(super) fn begin_turn(&mut self) {
        self.left = MAX_STARTS_A_TURN;
    }

    /// Whether another process may be started in this turn.
    pub(super) fn has_one_left(&self) -> bool {
        self.left > 0
    }

    /// The same, and counts it.
    pub(super) fn take_one_of_turn(&mut self) -> bool {
        let any = self.has_one_left();
        self.left = self.left.saturating_sub(1);
        any
    }

    /// When a worker can be started that is wanted at `wanted`.
    pub(super) fn earliest(&self, wanted: Instant) -> Instant {
        self.next.map_or(wanted, |next| next.max(wanted))
    }

    /// A start happens now. `random` is any number.
    pub(super) fn made(&mut self, delay: StartDelay, random: u64, now: Instant) {
        self.next = Some(now + delay.pause(random));
    }
}

/// How far a slot's worker is worn.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Wear {
    /// The life that began last in the slot, or beside its worker.
    pub(super) last_life: u32,
    /// The life of the mold that has forked it.
    pub(super) mold: u32,
    /// Any number, so that workers that were started together do not reach their limits together.
    pub(super) random: u64,
    pub(super) requests: Option<u64>,
    pub(super) memory: Option<Measured>,
    pub(super) recycled: u32,
    /// Why the worker is being replaced, or else why the one before it was.
    pub(super) reason: Option<Reason>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Measured {
    bytes: Option<u64>,
    at: Instant,
    pub(super) pause: Duration,
}

impl Wear {
    pub(super) fn next_life(&self) -> Wear {
        Wear { last_life: self.last_life + 1, recycled: self.recycled, reason: self.reason, ..Wear::default() }
    }

    pub(super) fn view(&self) -> Worn {
        Worn { requests: self.requests, recycled: self.recycled, reason: self.reason }
    }

    /// A limit, less up to 20 %.
    fn jittered(&self, limit: u64) -> u64 {
        limit - (u128::from(limit) * u128::from(self.random % 21) / 100) as u64
    }

    /// When to measure next, if at all.
    pub(super) fn measured_next(&self, since: Instant) -> Instant {
        self.memory.as_ref().map_or(since + MIN_PAUSE, |memory| memory.at + memory.pause)
    }

    /// The nearer the limit, and the faster the growth, the sooner.
    pub(super) fn measured(&mut self, bytes: Option<u64>, limit: u64, now: Instant) {
        let left = |bytes: u64| limit.saturating_sub(bytes);
        let before = self.memory.take().and_then(|memory| Some((memory.bytes?, memory.at)));
        let far = bytes.map_or(MAX_PAUSE, |bytes| MAX_PAUSE.mul_f64(left(bytes) as f64 / limit.max(1) as f64));
        let grown = bytes.zip(before).and_then(|(bytes, (less, at))| {
            let grown = bytes.checked_sub(less).filter(|grown| *grown > 0)?;
            // Half of the time until it reaches the limit.
            let time = now.saturating_duration_since(at).as_secs_f64() * left(bytes) as f64 / grown as f64 / 2.0;
            Duration::try_from_secs_f64(time).ok()
        });
        let most = if before.is_none() { YOUNG_PAUSE } else { grown.unwrap_or(MAX_PAUSE) };
        self.memory = Some(Measured { bytes, at: now, pause: far.min(most).clamp(MIN_PAUSE, MAX_PAUSE) });
    }

    /// When the worker is to be replaced, and why. `least` is the shortest life for other limits than a lifetime, so that
    /// workers are not replaced in a loop.
    pub(super) fn due(&self, since: Instant, least: Duration, limits: Recycling) -> Option<(Instant, Reason)> {
        let lifetime = limits.max_lifetime.and_then(|limit| {
            let life = limit - limit / 100 * (self.random % 21) as u32;
            Some((since.checked_add(life)?, Reason::Lifetime(life, limit)))
        });
        let bytes = self.memory.as_ref().and_then(|memory| memory.bytes);
        let memory = bytes.zip(limits.max_memory).filter(|(bytes, limit)| bytes > limit);
        let requests = self.requests.zip(limits.max_requests);
        let requests = requests.filter(|(requests, limit)| *requests >= self.jittered(*limit));
        let memory = memory.map(|(bytes, limit)| (since + least, Reason::Memory(bytes, limit)));
        let requests = requests.map(|(requests, limit)| (since + least, Reason::Requests(requests, limit)));
        memory.or_else(|| requests.into_iter().chain(lifetime).min_by_key(|(due, _)| *due))
    }
}

/// The replacements and the measurement that are under way.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Recycler {
    /// Workers beside those in their slots: the replacement that is starting, and those that are being stopped.
    pub(super) beside: BTreeMap<Worker, Slot>,
    /// The replacement that is starting.
    pub(super) replacement: Option<Worker>,
    /// Whether a reload is under way.
    pub(super) held: bool,
    /// The worker that was replaced last, and until when its end is waited for.
    pub(super) drains: Option<(Worker, Instant)>,
    /// The time before which no attempt is made, because the last one failed.
    pub(super) retry_at: Option<Instant>,
    pub(super) backoff: Backoff,
    /// Number of replacements in a row that were not ready in time.
    pub(super) unready: u32,
    /// The measurement that is under way.
    pub(super) measures: Option<Measurement>,
    /// No measurement begins before then.
    pub(super) measure_after: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Measurement {
    /// When it is told to end, or when its end is waited for no longer.
    pub(super) until: Option<Instant>,
    pub(super) was_told: bool,
}

impl Recycler {
    /// Nothing is replaced any more.
    pub(super) fn stop(&mut self) {
        self.replacement = None;
    }
}
