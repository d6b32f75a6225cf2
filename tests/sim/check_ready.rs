//! Whether main says that it serves with all that are wanted, with a reckoning of its own.

use crate::check::{Checked, hold};
use crate::check_main::{MainCheck, Watched};

impl MainCheck {
    /// Another count is wanted, in place of `before`.
    pub(crate) fn note_raise(&mut self, before: u32) {
        self.owed = self.count.now() > 0 && (self.owed || self.count.now() > before);
    }

    /// So many workers are wanted, of one generation or of two between which they go over.
    pub(crate) fn total(&self) -> u32 {
        let rolls = self.starting.is_some_and(|starting| starting.rolls);
        if rolls || self.falling_back.is_some() { self.count.goal() } else { self.count.now() }
    }

    /// Those that serve: one generation, or two between which workers go over.
    fn at_work(&self) -> impl Iterator<Item = &Watched> {
        let rolling = self.starting.filter(|starting| starting.rolls).map(|starting| starting.monitor);
        let all = self.serving.into_iter().chain(rolling).chain(self.falling_back);
        all.filter_map(|monitor| self.monitors.get(&monitor)).filter(|watched| !watched.ended)
    }

    pub(crate) fn check_ready(&mut self, is_ready: bool) -> Checked {
        let there: usize = self.at_work().map(|one| one.ready.len() + one.ended_for_good.len()).sum();
        let known = self.at_work().all(|one| one.retiring == 0);
        self.owed &= !known || there < self.total() as usize;
        let serving = self.serving.and_then(|serving| self.monitors.get(&serving)).filter(|watched| !watched.ended);
        let serves = serving.is_some_and(|watched| watched.committed || watched.proven);
        let any = self.at_work().any(|one| !one.ready.is_empty());
        let expected = serves && any && self.total() > 0 && !self.owed && !self.is_stopping();
        hold(is_ready == expected, 13, || {
            format!(
                "main says that it is {}ready, of {:?}, {there} there",
                if is_ready { "" } else { "not " },
                self.count
            )
        })
    }
}
