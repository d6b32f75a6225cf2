//! A question to all monitors, and their answers until a deadline.

use std::time::{Duration, Instant};

use nix::unistd::Pid;

use crate::control::monitor::messages::WorkerStatus;
use crate::control::operator::status::{Failed, Generation, Worker};
use crate::main_process::decide::{Monitor, Standing};

/// A running monitor answers in microseconds. Main waits this long for a stopped one.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// A question to all monitors that waits for answers.
#[derive(Debug)]
pub(crate) struct Inquiry {
    deadline: Instant,
    /// The monitor of each generation, if it has one, and the facts about the generation.
    generations: Vec<(Option<Monitor>, Generation)>,
}

impl Inquiry {
    pub(crate) fn new(
        standings: Vec<(Standing, u32, Option<Monitor>)>,
        pid_of: impl Fn(Monitor) -> Option<Pid>,
        now: Instant,
    ) -> Inquiry {
        let generation = |(standing, number, monitor): (Standing, u32, Option<Monitor>)| {
            let pid = monitor.and_then(&pid_of);
            let standing = word(standing).to_owned();
            // A monitor that has just been reaped never answers.
            let answered = pid.is_none();
            (monitor, Generation { number, standing, monitor: pid.map(Pid::as_raw), answered, ..Generation::default() })
        };
        Inquiry { deadline: now + ANSWER_TIMEOUT, generations: standings.into_iter().map(generation).collect() }
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.generations.iter().all(|(_, generation)| generation.answered)
    }

    pub(crate) fn add(&mut self, monitor: Monitor, status: WorkerStatus) {
        let Some(generation) = self.generation(monitor) else { return };
        match generation.workers.binary_search_by_key(&status.slot, |known| known.slot) {
            // A monitor that was stopped may still answer an earlier question.
            Ok(at) => generation.workers[at] = shown(status),
            Err(at) => generation.workers.insert(at, shown(status)),
        }
    }

    pub(crate) fn add_mold(&mut self, monitor: Monitor, status: WorkerStatus) {
        if let Some(generation) = self.generation(monitor) {
            generation.mold = Some(shown(status));
        }
    }

    /// The monitor has reported everything, or is gone.
    pub(crate) fn complete(&mut self, monitor: Monitor) {
        if let Some(generation) = self.generation(monitor) {
            generation.answered = true;
        }
    }

    fn generation(&mut self, asked: Monitor) -> Option<&mut Generation> {
        self.generations.iter_mut().find(|(monitor, _)| *monitor == Some(asked)).map(|(_, generation)| generation)
    }

    pub(crate) fn into_generations(self) -> Vec<Generation> {
        self.generations.into_iter().map(|(_, generation)| generation).collect()
    }
}

fn shown(status: WorkerStatus) -> Worker {
    Worker {
        slot: status.slot,
        pid: status.pid,
        state: status.phase,
        since_ms: status.since.as_millis() as u64,
        respawns: status.respawns,
        last: status.last.as_ref().map(|cause| Failed::new(status.slot, cause)),
        requests: status.requests,
        recycled: status.recycled,
        recycling: status.recycling,
        sign_of_life_ms: status.sign_of_life.map(|ago| ago.as_millis() as u64),
    }
}

fn word(standing: Standing) -> &'static str {
    match standing {
        Standing::Serving => "serving",
        Standing::Starting => "starting",
        Standing::Draining => "draining",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A monitor was reaped, and the state does not know it yet: main does not wait for its answer.
    #[test]
    fn a_monitor_that_has_been_reaped_is_not_waited_for() {
        let monitor = |generation| Monitor { generation, life: 1 };
        let standings = vec![(Standing::Serving, 2, Some(monitor(2))), (Standing::Draining, 1, Some(monitor(1)))];
        let pid_of = |asked: Monitor| (asked.generation == 2).then(|| Pid::from_raw(7));
        let mut inquiry = Inquiry::new(standings, pid_of, Instant::now());
        assert!(!inquiry.is_complete());
        inquiry.complete(monitor(2));
        assert!(inquiry.is_complete());
    }
}
