//! Binding at the start, before anything runs: all listeners or none.

use std::io;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::held::AllHeld;
use crate::config::Plan;
use crate::main_process::operators::signals::{is_hang_up, is_interrupt};
use crate::signals::Habits;
use crate::sockets::{Refusal, bind, queues};
use crate::sys::errno::{unless_forbidden, words};
use crate::sys::poller::Poller;
use crate::sys::signals::Signals;

/// Pause before an address is tried again that another process holds and will soon give up.
const RETRY: Duration = Duration::from_millis(50);

/// Time for which an address in use is tried again if no process is seen to hold it. A process gives up its descriptors
/// before its sockets are closed: a moment earlier, or on a busy machine seconds.
const UNSEEN: Duration = Duration::from_secs(3);

/// Why main does not begin.
pub(crate) enum Failure {
    /// Panzer cannot start, and why, in a line.
    Refused(String),
    /// A signal asked for a stop before the start was done.
    Stopped {
        /// Whether it was Ctrl-C.
        interrupted: bool,
    },
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Refused(format!("cannot start: {}", words(&unless_forbidden(error))))
    }
}

/// Binds all listeners or none. Waits, at most for one stop schedule, for addresses that only ending processes hold,
/// such as the draining workers of a dead main.
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
    Ok(all)
}

/// How long to wait still. Both times begin with the first look at who holds the address: on a busy machine that look may
/// take longer than either, and at least one more try follows it.
#[derive(Default)]
struct Patience {
    stop: Duration,
    until: Option<Instant>,
    unseen_until: Option<Instant>,
}

impl Patience {
    fn begin(plan: &Plan) -> Patience {
        Patience { stop: plan.tuning.stop.total(), ..Patience::default() }
    }

    /// Whether the address may be free in a moment.
    fn bears(&mut self, refusal: &Refusal) -> bool {
        let now = Instant::now();
        match refusal {
            Refusal::Passing(held) => {
                if self.until.is_none() {
                    log::warn!("{held}; waiting until it has ended");
                }
                // The last of them may end between our bind and our look.
                self.unseen_until = None;
                now <= *self.until.get_or_insert(now + self.stop)
            }
            Refusal::Unseen(_) => now <= *self.unseen_until.get_or_insert(now + UNSEEN),
            Refusal::Final(_) | Refusal::InUse(_) => false,
        }
    }
}

/// Waits a moment. Returns a stop that a signal asked for meanwhile, or that follows from the end of the terminal.
fn stop_asked(poller: &Poller, signals: &Signals, habits: &Habits, had_terminal: bool) -> io::Result<Option<Failure>> {
    poller.wait(Some(Instant::now() + RETRY))?;
    let (mut stops, mut interrupted) = (false, false);
    // Take them all, because one that is left would end the next wait at once.
    while let Some(received) = signals.read() {
        let asked = habits.action(received.signal);
        stops |= asked.stops() || is_hang_up(received, had_terminal);
        interrupted |= is_interrupt(received, asked);
    }
    Ok(stops.then_some(Failure::Stopped { interrupted }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_at_the_holders_that_takes_long_is_followed_by_another_try() {
        let mut patience = Patience::default();
        assert!(patience.bears(&Refusal::Passing("x".to_owned())) && patience.bears(&Refusal::Unseen("x".to_owned())));
        // Both times are up.
        assert!(!patience.bears(&Refusal::Passing("x".to_owned())));
        patience.unseen_until = Some(Instant::now());
        assert!(!patience.bears(&Refusal::Unseen("x".to_owned())));
        assert!(!patience.bears(&Refusal::Final("x".to_owned())));
    }
}
