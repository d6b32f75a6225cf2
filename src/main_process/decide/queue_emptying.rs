//! Queues of single slots (`per-worker`) that are to lose their worker. No new connection goes there. The workers go on
//! until they have taken every connection that waits there.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::vocabulary::{Event, Monitor};
use crate::control::monitor::messages::Order;

/// Pause between two looks at the queues.
const PAUSE: Duration = Duration::from_millis(20);

/// A handshake that began before may complete late, and its connection still joins the old queue. So a queue must stay
/// empty this long.
const QUIET: Duration = Duration::from_secs(1);

/// An action that is put off until the queues are empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Then {
    /// A change of the number of workers.
    Happens(Box<Event>),
    /// A change of the number of workers because the configuration was read again.
    #[serde(rename = "Tuned")]
    Reread,
    /// An order that reduces or stops a generation with more queues.
    Ordered(Monitor, Order),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Emptying {
    /// The first slot whose queue is to be empty.
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

/// All actions that are put off.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Emptyings {
    all: Vec<Emptying>,
    #[serde(with = "crate::carry::moment::option")]
    next_look: Option<Instant>,
}

impl Emptyings {
    /// Puts `then` off until the queues of slots from `keep` on are empty, or until `until`.
    pub(crate) fn begin(&mut self, keep: u32, then: Then, until: Instant, now: Instant) {
        self.all.push(Emptying { keep, until, empty_since: None, then });
        self.next_look = Some(now);
    }

    /// The number of workers that was asked for last, if a change of it is put off.
    pub(crate) fn count(&self) -> Option<u32> {
        let changes = self.all.iter().rev().filter(|one| one.is_change());
        changes.map(|one| one.keep).next()
    }

    /// The first slot whose queue gets no new connections.
    pub(crate) fn keep(&self) -> u32 {
        self.all.iter().map(|one| one.keep).min().unwrap_or(u32::MAX)
    }

    /// When to look at the queues again.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.next_look
    }

    /// Looks at the queues. `waits` says whether anything waits in the queues of slots from a number on. Returns the
    /// actions to perform now. The number comes along if something still waits in those queues.
    pub(crate) fn look(&mut self, now: Instant, waits: impl Fn(u32) -> bool) -> Vec<(Then, Option<u32>)> {
        if self.next_look.is_none_or(|next| next > now) {
            return Vec::new();
        }
        for one in &mut self.all {
            one.empty_since = if waits(one.keep) { None } else { one.empty_since.or(Some(now)) };
        }
        // Changes of the number of workers keep their order: none goes before an earlier one that still waits.
        let first_that_waits = self.all.iter().position(|one| one.is_change() && !one.is_over(now));
        let (mut done, mut left) = (Vec::new(), Vec::new());
        for (at, one) in std::mem::take(&mut self.all).into_iter().enumerate() {
            let waits_for_another = one.is_change() && first_that_waits.is_some_and(|first| first < at);
            if one.is_over(now) && !waits_for_another {
                done.push((one.then, Some(one.keep).filter(|_| one.empty_since.is_none())));
            } else {
                left.push(one);
            }
        }
        self.all = left;
        self.next_look = (!self.all.is_empty()).then_some(now + PAUSE);
        done
    }

    /// Returns everything that was put off, and waits no longer.
    pub(crate) fn give_up(&mut self) -> Vec<Then> {
        self.next_look = None;
        std::mem::take(&mut self.all).into_iter().map(|one| one.then).collect()
    }

    /// This monitor gets an order that does not wait, so the ones that wait for it are forgotten.
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
