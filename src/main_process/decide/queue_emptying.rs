//! Queues of single workers (`per-worker`) that are to have no worker: nothing new goes there any more, and their
//! workers go on until what waits there has been taken.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::vocabulary::{Event, Monitor};
use crate::control::monitor::messages::Order;

/// How often the queues are looked at.
const PAUSE: Duration = Duration::from_millis(20);

/// A connection whose handshake was under way still joins the queue that it was meant for, as late as its last packet
/// comes: a queue must have been empty for so long.
const QUIET: Duration = Duration::from_secs(1);

/// What was put off until the queues are empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Then {
    /// A change of the count of workers.
    Happens(Box<Event>),
    /// The same, by the configuration that was read again.
    #[serde(rename = "Tuned")]
    Reread,
    /// The stop of a generation that had more of them.
    Ordered(Monitor, Order),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Emptying {
    /// Slots from here on.
    keep: u32,
    #[serde(with = "crate::carry::moment")]
    until: Instant,
    #[serde(with = "crate::carry::moment::option")]
    empty_since: Option<Instant>,
    then: Then,
}

impl Emptying {
    fn is_change(&self) -> bool {
        matches!(self.then, Then::Happens(_) | Then::Reread)
    }

    fn is_over(&self, now: Instant) -> bool {
        self.until <= now || self.empty_since.is_some_and(|since| since + QUIET <= now)
    }
}

/// All that is under way.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Emptyings {
    all: Vec<Emptying>,
    #[serde(with = "crate::carry::moment::option")]
    next_look: Option<Instant>,
}

impl Emptyings {
    /// The queues of slots from `keep` on are to be empty before `then`, or until `until`.
    pub(crate) fn begin(&mut self, keep: u32, then: Then, until: Instant, now: Instant) {
        self.all.push(Emptying { keep, until, empty_since: None, then });
        self.next_look = Some(now);
    }

    /// What is wanted last of the count of workers, where a change of it is under way.
    pub(crate) fn count(&self) -> Option<u32> {
        let changes = self.all.iter().rev().filter(|one| one.is_change());
        changes.map(|one| one.keep).next()
    }

    /// Nothing new goes to the queues of slots from here on.
    pub(crate) fn keep(&self) -> u32 {
        self.all.iter().map(|one| one.keep).min().unwrap_or(u32::MAX)
    }

    /// When the queues are looked at again.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.next_look
    }

    /// Looks at the queues: `waits` says whether anything is in those of slots from a number on. Returns what is to be
    /// done now, with that number where something is left in them.
    pub(crate) fn look(&mut self, now: Instant, waits: impl Fn(u32) -> bool) -> Vec<(Then, Option<u32>)> {
        if self.next_look.is_none_or(|next| next > now) {
            return Vec::new();
        }
        for one in &mut self.all {
            one.empty_since = if waits(one.keep) { None } else { one.empty_since.or(Some(now)) };
        }
        let mut done = Vec::new();
        // Changes of the count keep their order.
        let mut in_order = true;
        self.all.retain(|one| {
            let over = one.is_over(now);
            let change = one.is_change();
            in_order &= over || !change;
            let goes = over && (in_order || !change);
            if goes {
                done.push((one.then.clone(), Some(one.keep).filter(|_| one.empty_since.is_none())));
            }
            !goes
        });
        self.next_look = (!self.all.is_empty()).then_some(now + PAUSE);
        done
    }

    /// Nobody waits any more: returns what was put off.
    pub(crate) fn give_up(&mut self) -> Vec<Then> {
        self.next_look = None;
        std::mem::take(&mut self.all).into_iter().map(|one| one.then).collect()
    }

    /// This monitor is ordered something that does not wait.
    pub(crate) fn forget(&mut self, monitor: Monitor) {
        self.all.retain(|one| !matches!(one.then, Then::Ordered(ordered, _) if ordered == monitor));
    }
}

#[cfg(test)]
mod tests {
    use super::super::vocabulary::Change;
    use super::*;

    fn change(to: u32) -> Then {
        Then::Happens(Box::new(Event::Scale(None, Change::To(to))))
    }

    #[test]
    fn what_was_put_off_happens_once_the_queues_have_been_empty_for_a_while() {
        let begun = Instant::now();
        let at = |millis| begun + Duration::from_millis(millis);
        let mut emptyings = Emptyings::default();
        emptyings.begin(2, change(2), at(60_000), begun);
        assert_eq!((emptyings.keep(), emptyings.count()), (2, Some(2)));
        assert_eq!(emptyings.look(at(0), |_| true), []);
        assert_eq!(emptyings.look(at(500), |_| false), []);
        assert_eq!(emptyings.look(at(900), |_| true), []);
        assert_eq!(emptyings.look(at(1_000), |_| false), []);
        assert_eq!(emptyings.look(at(2_100), |_| false), [(change(2), None)]);
        assert_eq!((emptyings.deadline(), emptyings.keep()), (None, u32::MAX));
    }

    #[test]
    fn nobody_waits_for_ever_and_changes_keep_their_order() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut emptyings = Emptyings::default();
        emptyings.begin(3, change(3), at(10), begun);
        emptyings.begin(1, change(1), at(5), begun);
        assert_eq!(emptyings.look(at(6), |_| true), []);
        assert_eq!(emptyings.look(at(10), |_| true), [(change(3), Some(3)), (change(1), Some(1))]);
    }
}
