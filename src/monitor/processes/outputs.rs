//! Facts about the pipes of workers, and about those that have ended and whose last lines are waited for.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::control::monitor::messages;
use crate::monitor::decide::Worker;
use crate::worker::cause::Cause;

/// A worker that has ended, while its last lines are waited for.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) worker: Worker,
    pub(crate) cause: Cause,
    pub(crate) until: Instant,
}

/// A monitor's knowledge of its workers' output.
#[derive(Debug, Default)]
pub(crate) struct Outputs {
    pub(crate) next_serial: u64,
    /// The serial number of each worker's pipes.
    pub(crate) serials: BTreeMap<Worker, u64>,
    pub(crate) ended: BTreeMap<u64, Ended>,
    /// The last lines of the worker that ended last in each slot.
    pub(crate) last: BTreeMap<u32, Vec<String>>,
}

impl Outputs {
    /// A worker has another name from now on.
    pub(crate) fn rename(&mut self, worker: Worker, name: Worker) {
        let serial = self.serials.remove(&worker);
        self.serials.extend(serial.map(|serial| (name, serial)));
    }

    /// When last lines are waited for no longer.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.ended.values().map(|ended| ended.until).min()
    }

    /// The lines that a worker wrote last, as they are shown below the message that it ended.
    pub(crate) fn quoted(&self, worker: Worker) -> String {
        let lines = self.last.get(&worker.slot).map(Vec::as_slice).unwrap_or_default();
        messages::quoted(lines)
    }
}
