//! A question to all monitors, and their answers until a deadline.

use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::state::{Monitor, Standing};
use crate::control::monitor::messages::WorkerStatus;
use crate::control::operator::requests;
use crate::control::status::{GenerationStatus, render};

/// A monitor that lives answers in microseconds; one that is stopped is not waited for longer than this.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// One question under way.
#[derive(Debug)]
pub(super) struct Inquiry {
    deadline: Instant,
    generations: Vec<Answer>,
}

#[derive(Debug)]
struct Answer {
    monitor: Option<Monitor>,
    pid: Option<Pid>,
    standing: Standing,
    number: u32,
    workers: Vec<WorkerStatus>,
    complete: bool,
}

impl Inquiry {
    pub(super) fn new(
        standings: Vec<(Standing, u32, Option<Monitor>)>,
        pid_of: impl Fn(Monitor) -> Option<Pid>,
        now: Instant,
    ) -> Inquiry {
        let answer = |(standing, number, monitor): (Standing, u32, Option<Monitor>)| {
            let pid = monitor.and_then(&pid_of);
            // One that has just been reaped never answers.
            Answer { monitor, pid, standing, number, workers: Vec::new(), complete: pid.is_none() }
        };
        Inquiry { deadline: now + LONGEST_WAIT, generations: standings.into_iter().map(answer).collect() }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    pub(super) fn is_complete(&self) -> bool {
        self.generations.iter().all(|answer| answer.complete)
    }

    pub(super) fn add(&mut self, monitor: Monitor, status: WorkerStatus) {
        if let Some(answer) = self.answer(monitor) {
            // One that was stopped may answer an earlier question as well.
            answer.workers.retain(|known| known.slot != status.slot);
            answer.workers.push(status);
        }
    }

    /// The monitor has said everything, or is gone.
    pub(super) fn complete(&mut self, monitor: Monitor) {
        if let Some(answer) = self.answer(monitor) {
            answer.complete = true;
        }
    }

    fn answer(&mut self, monitor: Monitor) -> Option<&mut Answer> {
        self.generations.iter_mut().find(|answer| answer.monitor == Some(monitor))
    }

    /// The same for whoever asked over the control socket.
    pub(super) fn generations(&self) -> Vec<requests::Generation> {
        let worker = |worker: &WorkerStatus| requests::Worker {
            slot: worker.slot,
            pid: worker.pid,
            state: worker.phase.clone(),
            since_ms: worker.since.as_millis() as u64,
            respawns: worker.respawns,
            last: worker.last.as_ref().map(|cause| requests::Failed::new(worker.slot, cause)),
            sign_of_life_ms: worker.sign_of_life.map(|ago| ago.as_millis() as u64),
        };
        let generation = |answer: &Answer| requests::Generation {
            number: answer.number,
            standing: word(answer.standing).to_owned(),
            monitor: answer.pid.map(Pid::as_raw),
            answered: answer.complete,
            workers: answer.workers.iter().map(worker).collect(),
        };
        self.generations.iter().map(generation).collect()
    }

    pub(super) fn render(&self, main: i32) -> String {
        let generation = |answer: &Answer| GenerationStatus {
            number: answer.number,
            standing: word(answer.standing),
            monitor: answer.pid.map(Pid::as_raw),
            workers: answer.complete.then(|| answer.workers.clone()),
        };
        let generations: Vec<GenerationStatus> = self.generations.iter().map(generation).collect();
        render(main, &generations)
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

    /// Its end is known, and only the state has not heard of it yet: nobody waits for its answer.
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
