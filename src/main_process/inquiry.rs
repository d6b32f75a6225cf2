//! A question to all monitors, and their answers until a deadline.

use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::state::{Monitor, Standing};
use crate::control::messages::WorkerStatus;
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
        let answer = |(standing, number, monitor): (Standing, u32, Option<Monitor>)| Answer {
            monitor,
            pid: monitor.and_then(&pid_of),
            standing,
            number,
            workers: Vec::new(),
            complete: monitor.is_none(),
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

    pub(super) fn render(self, main: i32) -> String {
        let generation = |answer: Answer| GenerationStatus {
            number: answer.number,
            standing: match answer.standing {
                Standing::Serving => "serving",
                Standing::Starting => "starting",
                Standing::Draining => "draining",
            },
            monitor: answer.pid.map(Pid::as_raw),
            workers: answer.complete.then_some(answer.workers),
        };
        let generations: Vec<GenerationStatus> = self.generations.into_iter().map(generation).collect();
        render(main, &generations)
    }
}
