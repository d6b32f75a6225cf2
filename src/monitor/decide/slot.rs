//! One slot, and what belongs to one worker: data, and what each piece answers about itself.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::vocabulary::{Phase, View};
use crate::backoff::Backoff;
use crate::config::{Escalation, Schedule, StartDelay};
use crate::control::monitor::messages::Urgency;
use crate::readiness::watch::{Hidden, Sight};
use crate::worker::cause::Cause;

/// The pause after the first look at a worker; it doubles with each further one.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(2);

/// The same for probes, which cost a process each.
pub(super) const FIRST_PROBE_PAUSE: Duration = Duration::from_millis(20);

/// What has not ended this long after KILL is not waited for: it may not be signalled, or the kernel cannot end it. Less
/// than main gives the monitor beyond the schedule.
pub(super) const KILL_TIMEOUT: Duration = Duration::from_secs(4);

/// Processes that are started before signals, orders and messages are read again: some milliseconds.
const MAX_STARTS_A_TURN: u32 = 8;

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
        /// When it is looked at; none where it was seen accepting, or that is not asked of it.
        look: Option<Watched>,
        /// When it is probed; none where it is to be seen accepting first, or no probe is asked for.
        probe: Option<Watched>,
    },
    /// Until `unproven`, if at all, it is ready for no more than being alive.
    Ready {
        unproven: Option<Instant>,
    },
    Stopping(Escalation),
    /// Nobody follows the last worker. Its exit code, where it was of this monitor.
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
    /// So many of its workers followed one that had ended unasked.
    pub(super) respawns: u32,
    /// Whether its worker is being stopped because none is, or was, wanted.
    pub(super) retiring: bool,
    /// Whether its next worker is asked for, and is no respawn.
    pub(super) is_anew: bool,
    /// Whether a signal has stopped the worker, and when that was last told.
    pub(super) suspended: bool,
    pub(super) suspension_told: Option<Instant>,
    /// Number of workers since the last ready one that were not ready in time.
    pub(super) unready: u32,
    pub(super) readiness: Readiness,
    pub(super) backoff: Backoff,
    /// Why the worker is being ended, where it is not for a stop.
    pub(super) ended_for: Option<Cause>,
}

/// How far the worker of a slot has shown that it is ready.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Readiness {
    pub(super) notified: bool,
    /// When its program began.
    pub(super) executed: Option<Instant>,
    /// Whether this worker listens on a shared port.
    pub(super) listens: bool,
    /// Whether an earlier worker of this slot listened on a shared port.
    pub(super) listened: bool,
    /// Since when this worker serves: it is ready, and has shown that by more than being alive.
    pub(super) serves: Option<Instant>,
    /// Whether it accepts, as far as looks have shown.
    pub(super) shown: Shown,
    /// Until when at least it may take to be ready, by its own word.
    pub(super) extended_to: Option<Instant>,
    /// From when on its worker counts as one that had become ready, should it die: of one that nobody waits for to be
    /// seen, or told, once it has lived through the bake.
    pub(super) proven: Option<Instant>,
}

impl Slot {
    pub(super) fn new(now: Instant) -> Slot {
        Slot {
            state: State::Empty,
            life: 0,
            since: now,
            wanted: true,
            respawns: 0,
            retiring: false,
            is_anew: false,
            suspended: false,
            suspension_told: None,
            unready: 0,
            readiness: Readiness::default(),
            backoff: Backoff::default(),
            ended_for: None,
        }
    }

    /// What it looks like.
    pub(super) fn view(&self) -> View {
        let phase = match self.state {
            _ if self.suspended && self.has_worker() => Phase::Suspended,
            State::Empty => Phase::Empty,
            State::Waiting { .. } => Phase::Waiting,
            State::Executing { .. } | State::Forking => Phase::Executing,
            State::Starting { .. } => Phase::Starting,
            State::Ready { .. } => Phase::Ready,
            State::Stopping(_) => Phase::Stopping,
            State::EndedForGood { .. } => Phase::Ended,
        };
        View { phase, respawns: self.respawns, since: self.since }
    }

    /// Another life of it begins.
    pub(super) fn begin(&mut self, state: State, now: Instant) {
        self.life += 1;
        self.retiring = false;
        self.is_anew = false;
        self.since = now;
        (self.suspended, self.suspension_told) = (false, None);
        self.readiness = Readiness { listened: self.readiness.listened, ..Readiness::default() };
        self.state = state;
    }
}

/// When a worker is looked at, or probed, again; none while a probe of it is under way.
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

/// What looks at one worker have shown.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Shown {
    /// It was seen accepting.
    pub(super) accepting: bool,
    /// Since when it has been hidden from each look.
    pub(super) hidden_since: Option<Instant>,
    /// Why it counts as one that cannot be seen.
    pub(super) hidden: Option<Hidden>,
    /// Why a process that it has started could not be seen by the last look.
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

    /// Why it cannot be seen, where main does not know of it yet.
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

/// What a worker has left behind.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Left {
    /// When it gets this as its first signal, and is told of.
    pub(super) first: Option<(Instant, Signal)>,
    /// What follows that.
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

/// The starts that were made.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Starts {
    /// When the next may be made.
    next: Option<Instant>,
    /// Number of processes that may still be started in this turn of the loop.
    left: u32,
}

impl Starts {
    /// Everything that was ready has been read.
    pub(super) fn begin_turn(&mut self) {
        self.left = MAX_STARTS_A_TURN;
    }

    /// Whether one more process may be started in this turn, which then counts as started.
    pub(super) fn take_one_of_turn(&mut self) -> bool {
        let any = self.left > 0;
        self.left = self.left.saturating_sub(1);
        any
    }

    /// When a worker can be started that is to be at `wanted`.
    pub(super) fn earliest(&self, wanted: Instant) -> Instant {
        self.next.map_or(wanted, |next| next.max(wanted))
    }

    /// One is made now. `random` is any number.
    pub(super) fn made(&mut self, delay: StartDelay, random: u64, now: Instant) {
        self.next = Some(now + delay.pause(random));
    }
}
