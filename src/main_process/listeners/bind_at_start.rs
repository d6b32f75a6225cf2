//! Binding at the start: before anything runs, and all or nothing.

use std::io;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::held::AllHeld;
use crate::config::Plan;
use crate::main_process::operators::signals::{is_hang_up, is_interrupt};
use crate::signals::Habits;
use crate::sockets::{Refusal, bind, queues};
use crate::sys::errno::words;
use crate::sys::poller::Poller;
use crate::sys::signals::Signals;

/// How often an address is tried that somebody holds who will soon be gone.
const RETRY: Duration = Duration::from_millis(50);

/// An address in use that nobody is seen to hold is tried for so long: between the moment a process gives up its
/// descriptors and the one its sockets are closed, nobody is.
const UNSEEN: Duration = Duration::from_millis(250);

/// The same where somebody was seen to hold it who ends: on a busy machine the kernel takes its time to take one apart.
const UNSEEN_AFTER_SEEN: Duration = Duration::from_secs(3);

/// Why main does not begin.
pub(crate) enum Failure {
    /// Panzer cannot start, in a line.
    Refused(String),
    /// Asked to stop before it had begun.
    Stopped {
        /// By Ctrl-C.
        interrupted: bool,
    },
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Refused(format!("cannot start: {}", words(&error)))
    }
}

/// All or none. What only processes hold that will soon be gone, such as the draining workers of a dead main, is waited
/// for, at most one stop schedule.
pub(crate) fn bind_all(
    plan: &Plan,
    poller: &Poller,
    signals: &Signals,
    had_terminal: bool,
) -> Result<AllHeld, Failure> {
    if let Some(shortage) = queues::shortage(plan) {
        return Err(Failure::Refused(shortage));
    }
    let mut patience = Patience::begin(plan);
    let mut all = AllHeld::default();
    let mut wanted = queues::all(&plan.listen, plan.workers).peekable();
    while let Some(&(listen, slot)) = wanted.peek() {
        let listen = all.with_port(listen);
        let bound = bind(&listen, slot).map_err(|refusal| refusal.looked_up(Pid::this()));
        let failure = match bound {
            Ok(listener) => {
                all.add(listen, slot, listener);
                wanted.next();
                continue;
            }
            Err(refusal) if patience.bears(&refusal) => stop_asked(poller, signals, &plan.signals, had_terminal)?,
            Err(refusal) => Some(Failure::Refused(refusal.why())),
        };
        if let Some(failure) = failure {
            all.close();
            return Err(failure);
        }
    }
    all.iter().filter(|held| held.slot > 0).try_for_each(|held| held.listener.let_in())?;
    Ok(all)
}

/// How long is still waited.
struct Patience {
    until: Instant,
    unseen_until: Instant,
    told: bool,
}

impl Patience {
    fn begin(plan: &Plan) -> Patience {
        let now = Instant::now();
        Patience { until: now + plan.tuning.stop.total(), unseen_until: now + UNSEEN, told: false }
    }

    /// Whether it may be otherwise in a moment.
    fn bears(&mut self, refusal: &Refusal) -> bool {
        let now = Instant::now();
        match refusal {
            Refusal::Passing(_) if now >= self.until => false,
            Refusal::Passing(held) => {
                if !std::mem::replace(&mut self.told, true) {
                    log::warn!("{held}; waiting until it has ended");
                }
                // The last of them ends between our bind and our look.
                self.unseen_until = now + UNSEEN_AFTER_SEEN;
                true
            }
            Refusal::Unseen(_) => now < self.unseen_until,
            Refusal::Final(_) | Refusal::InUse(_) => false,
        }
    }
}

/// Waits a moment. Returns the end that a signal asked for meanwhile, or the end of the terminal.
fn stop_asked(poller: &Poller, signals: &Signals, habits: &Habits, had_terminal: bool) -> io::Result<Option<Failure>> {
    poller.wait(Some(Instant::now() + RETRY))?;
    let (mut stops, mut interrupted) = (false, false);
    // All of them are taken: one that is left would wake the next wait at once.
    while let Some(received) = signals.read() {
        let asked = habits.action(received.signal);
        stops |= asked.stops() || is_hang_up(received, had_terminal);
        interrupted |= is_interrupt(received, asked);
    }
    Ok(stops.then_some(Failure::Stopped { interrupted }))
}
