//! How many workers are wanted, with a reckoning of its own.

use panzer::main_process::decide::Change;

#[derive(Debug)]
pub(crate) struct Count {
    /// Of the serving generation; none after a quiet.
    now: u32,
    /// The last that was wanted of it beside none.
    kept: u32,
    /// Of the generation that is starting, or was when it failed on its way.
    next: u32,
    /// What was configured for the serving generation, and for the one that is starting.
    configured: u32,
    planned: Option<u32>,
    /// What was asked for, and is to be told: from so many, to so many, or that it is refused.
    asked: Option<(u32, Option<u32>)>,
}

impl Count {
    pub(crate) fn new(workers: u32) -> Count {
        Count { now: workers, kept: workers, next: workers, configured: workers, planned: None, asked: None }
    }

    pub(crate) fn now(&self) -> u32 {
        self.now
    }

    /// Of the generation that is starting.
    pub(crate) fn next(&self) -> u32 {
        self.next
    }

    /// What workers go over to: to the next generation, or back.
    pub(crate) fn goal(&self) -> u32 {
        if self.planned.is_some() { self.next } else { self.kept }
    }

    /// The most that may be wanted of two generations together.
    pub(crate) fn most(&self) -> u32 {
        self.next.max(self.kept)
    }

    pub(crate) fn configured(&self) -> u32 {
        self.configured
    }

    /// Of the serving generation, or of the one that is starting.
    pub(crate) fn of(&self, serving: bool) -> u32 {
        if serving { self.now } else { self.next }
    }

    pub(crate) fn refuse(&mut self) {
        self.asked = Some((self.now, None));
    }

    /// Somebody asks for it. `rolls` where workers go over to another generation: it is those that there will be. Returns
    /// whether it is allowed.
    pub(crate) fn change(&mut self, change: Change, rolls: bool) -> bool {
        let from = if rolls { self.next } else { self.now };
        let to = match change {
            Change::To(workers) => i64::from(workers),
            Change::By(more) => i64::from(from) + i64::from(more),
            Change::WithoutOldest => i64::from(from) - 1,
            Change::ToNone => 0,
        };
        let allowed = (1..=4096).contains(&to) || change == Change::ToNone;
        let to = u32::try_from(to).ok().filter(|_| allowed);
        self.asked = Some((from, to));
        if let Some(to) = to {
            self.become_of_all(to);
        }
        to.is_some()
    }

    fn become_of_all(&mut self, to: u32) {
        self.now = to;
        if to > 0 {
            (self.kept, self.next) = (to, to);
        }
    }

    /// The next generation was planned with so many: where that is no news, what was asked for meanwhile holds.
    pub(crate) fn planned(&mut self, configured: u32) {
        self.planned = Some(configured);
        self.next = self.counts(configured);
    }

    fn counts(&self, configured: u32) -> u32 {
        if configured == self.configured { self.kept } else { configured }
    }

    /// So many are configured now. Returns whether that is news to any generation.
    pub(crate) fn tuned(&mut self, configured: u32) -> bool {
        let to = if self.planned == Some(configured) { self.next } else { self.counts(configured) };
        let news = self.configured != configured || self.planned.is_some_and(|planned| planned != configured);
        self.configured = configured;
        self.planned = self.planned.map(|_| configured);
        if news {
            self.become_of_all(to);
        }
        news
    }

    /// The next generation serves, with what was wanted of it.
    pub(crate) fn serves_anew(&mut self) {
        (self.now, self.kept) = (self.next, self.next);
        self.configured = self.planned.take().unwrap_or(self.configured);
    }

    /// The next generation failed, and what was wanted of it with it.
    pub(crate) fn failed(&mut self) {
        self.planned = None;
    }

    pub(crate) fn is_told(&mut self, from: u32, to: Result<u32, &str>) -> bool {
        self.asked.take().is_some_and(|(before, wanted)| wanted == to.ok() && (to.is_err() || before == from))
    }

    pub(crate) fn is_known(&self) -> bool {
        self.asked.is_none()
    }
}
