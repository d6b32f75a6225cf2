//! How many workers are wanted, with a reckoning of its own.

use panzer::main_process::state::Change;

#[derive(Debug)]
pub(crate) struct Count {
    /// Of the serving generation.
    now: u32,
    /// Of the next.
    next: u32,
    /// What was asked for, and is to be told: from so many, to so many, or that it is refused.
    asked: Option<(u32, Option<u32>)>,
}

impl Count {
    pub(crate) fn new(workers: u32) -> Count {
        Count { now: workers, next: workers, asked: None }
    }

    pub(crate) fn now(&self) -> u32 {
        self.now
    }

    pub(crate) fn next(&self) -> u32 {
        self.next
    }

    /// Of the serving generation, or of the one that is starting.
    pub(crate) fn of(&self, serving: bool) -> u32 {
        if serving { self.now } else { self.next }
    }

    pub(crate) fn refuse(&mut self) {
        self.asked = Some((self.now, None));
    }

    pub(crate) fn change(&mut self, change: Change, serves: bool) {
        let from = if serves { self.now } else { self.next };
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
            self.now = to;
            self.next = if to > 0 { to } else { self.next };
        }
    }

    /// The next generation serves, with what was wanted of it.
    pub(crate) fn serves_anew(&mut self) {
        self.now = self.next;
    }

    pub(crate) fn is_told(&mut self, from: u32, to: Result<u32, &str>) -> bool {
        self.asked.take().is_some_and(|(before, wanted)| wanted == to.ok() && (to.is_err() || before == from))
    }

    pub(crate) fn is_known(&self) -> bool {
        self.asked.is_none()
    }
}
