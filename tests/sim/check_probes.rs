//! The probes of one monitor's workers: one of each at a time, none of a worker that needs none, and all ended.

use std::collections::BTreeMap;

use panzer::monitor::decide::Worker;

use crate::check::{Checked, SLACK, hold};
use crate::kernel::Time;

/// The longest that a probe may take, as the state has it.
const PROBE_TIMEOUT: Time = Time::from_secs(10);

#[derive(Debug)]
struct Probe {
    /// When it was begun, or last told to end.
    since: Time,
    ended: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Probes(BTreeMap<Worker, Probe>);

impl Probes {
    pub(crate) fn has(&self, worker: Worker) -> bool {
        self.0.contains_key(&worker)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn begun(&mut self, now: Time, worker: Worker) -> Checked {
        let first = self.0.insert(worker, Probe { since: now, ended: false }).is_none();
        hold(first, 4, || format!("{worker:?} is probed twice at a time"))
    }

    /// Returns whether it was told to end.
    pub(crate) fn over(&mut self, worker: Worker) -> bool {
        self.0.remove(&worker).is_some_and(|probe| probe.ended)
    }

    /// It is told to end: it hangs, or nobody waits for it any more.
    pub(crate) fn told_to_end(&mut self, now: Time, worker: Worker, awaited: bool) -> Checked {
        let Some(probe) = self.0.get_mut(&worker) else {
            return hold(false, 3, || format!("the probe of {worker:?} is ended, and there is none"));
        };
        let hangs = now >= probe.since + PROBE_TIMEOUT;
        let needless = !awaited && !probe.ended;
        *probe = Probe { since: now, ended: true };
        hold(hangs || needless, 1, || format!("the probe of {worker:?} is ended without a reason"))
    }

    /// What must have been done by now.
    pub(crate) fn check(&self, now: Time, punctual: bool, is_awaited: impl Fn(Worker) -> bool) -> Checked {
        for (&worker, probe) in &self.0 {
            let hangs = punctual && now > probe.since + PROBE_TIMEOUT + SLACK;
            hold(!hangs, 13, || format!("the probe of {worker:?} hangs for ever"))?;
            let ended = probe.ended || is_awaited(worker);
            hold(ended, 13, || format!("the probe of {worker:?} goes on for nobody"))?;
        }
        Ok(())
    }
}
