//! Measures the memory of workers. A child does it: for a large worker it takes long, and it waits for a lock that the
//! worker may hold for ever.

use std::collections::BTreeSet;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use super::Monitor;
use crate::monitor::decide::{Event, Worker};
use crate::monitor::processes::roster::Measurement;
use crate::readiness::watch;
use crate::sys::errno::words;
use crate::sys::{helper, memfd, memory};

impl Monitor {
    pub(super) fn measure(&mut self, workers: Vec<Worker>) {
        let limit = self.assignment.plan.tuning.recycling.max_memory.unwrap_or(u64::MAX);
        let processes: Vec<Vec<Pid>> = workers.iter().map(|worker| self.roster.processes_of(*worker)).collect();
        match helper::start(|| measured(&processes, limit)) {
            Ok((pid, result)) => self.roster.measurement = Some(Measurement { pid, result, workers }),
            Err(error) => {
                if !std::mem::replace(&mut self.talk.unmeasured_told, true) {
                    log::warn!("cannot measure the memory of workers for now: {} (said once)", words(&error));
                }
                let unknown = workers.into_iter().map(|worker| (worker, None)).collect();
                self.events.push_back(Event::Measured(unknown, Duration::ZERO));
            }
        }
    }

    /// The child that measures has been reaped.
    pub(super) fn take_measurement(&mut self, Measurement { result, workers, .. }: Measurement) {
        let bytes = memfd::read(result).unwrap_or_default();
        let (numbers, _) = bytes.as_chunks::<8>();
        let mut numbers = numbers.iter().map(|number| u64::from_ne_bytes(*number));
        let took = Duration::from_micros(numbers.next().unwrap_or_default());
        let memory = workers.into_iter().map(|worker| (worker, numbers.next().filter(|bytes| *bytes != UNKNOWN)));
        self.events.push_back(Event::Measured(memory.collect(), took));
    }
}

const UNKNOWN: u64 = u64::MAX;

/// The processor time that it took, in microseconds, and the memory of each worker.
fn measured(processes: &[Vec<Pid>], limit: u64) -> Vec<u8> {
    let memory = |roots: &Vec<Pid>| {
        let family: BTreeSet<Pid> = roots.iter().flat_map(|root| watch::family(*root)).collect();
        memory::of_family(&Vec::from_iter(family), limit).unwrap_or(UNKNOWN)
    };
    let memory: Vec<u64> = processes.iter().map(memory).collect();
    let took = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from);
    std::iter::once(took.as_micros() as u64).chain(memory).flat_map(u64::to_ne_bytes).collect()
}
