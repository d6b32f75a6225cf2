//! A monitor's mold in the world of main: it loads, fails to, forks, dies, and ends by a word. What the monitor makes of it
//! tests/sim/molds.rs checks; here main lives with the consequences.

use std::collections::{BTreeMap, VecDeque};

use panzer::monitor::decide::{Event, Phase, Worker};
use panzer::worker::cause::Cause;

use crate::check::Checked;
use crate::history::play_with_molds;
use crate::kernel::{ProcessId, Time};
use crate::monitor_side::MonitorNode;
use crate::planted::Planted;
use crate::tally::Tally;
use crate::worker_script::{Exec, Script, Traits};
use crate::world::{Node, World};

/// Histories that are played in turn with a mold.
const HISTORIES: u64 = 1_500;

/// What a mold shows of itself: it says READY, as other workers say that they are ready.
const TRAITS: Traits = Traits { notifies: true, listens: false, hidden: false };

/// A monitor's side of the line to its mold, and who was forked and is not known yet.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// The mold's socket is open.
    heard: bool,
    /// Who is on the way by which ticket; nobody, if the fork failed.
    forked: Vec<(u64, Option<ProcessId>)>,
    /// Those whose BORN has been read, and not been decided on.
    born: VecDeque<ProcessId>,
    newborn: Option<ProcessId>,
    /// Those of them that have ended meanwhile.
    dead: BTreeMap<ProcessId, Cause>,
}

impl Line {
    pub(crate) fn is_of(&self, process: ProcessId) -> bool {
        self.forked.iter().any(|(_, forked)| *forked == Some(process))
            || self.born.contains(&process)
            || self.newborn == Some(process)
    }
}

impl MonitorNode {
    /// Whether the mold and all workers that are wanted are ready.
    pub(crate) fn is_whole_with_mold(&self) -> bool {
        let Some(state) = &self.state else { return false };
        let ready = |slot| matches!(state.view(slot).phase, Phase::Ready | Phase::Ended | Phase::Empty);
        state.mold().is_some_and(|mold| mold.phase == Phase::Ready) && (0..state.count()).all(ready)
    }
}

impl World {
    pub(crate) fn draw_mold_script(&mut self) -> Script {
        match self.faults && self.choices.one_in(self.spec.trouble) {
            true => Script::troubled(&mut self.choices, TRAITS),
            false => Script::behaved(&mut self.choices, TRAITS),
        }
    }

    pub(crate) fn open_line(&mut self, index: usize) {
        self.monitors[index].line = Some(Line { heard: true, ..Line::default() });
    }

    /// The mold is loaded, or says why it is not, or something else.
    pub(crate) fn mold_says(&mut self, index: usize) {
        let failed = self.faults && self.choices.one_in(self.spec.trouble * 4);
        let event = match failed.then(|| self.choices.below(3)) {
            None => Event::MoldReady(false),
            Some(0) => Event::MoldFailed("no database".to_owned()),
            Some(1) => Event::MoldBroke("rubbish".to_owned()),
            Some(_) => Event::MoldClosed,
        };
        let Some(line) = self.monitors[index].line.as_mut().filter(|line| line.heard) else { return };
        line.heard = event != Event::MoldClosed;
        self.monitors[index].push(event);
    }

    /// FORK: one that hangs or is refused before its program runs has never said BORN.
    pub(crate) fn fork_by_mold(&mut self, index: usize, worker: Worker, ticket: u64) {
        let mold = self.monitors[index].mold_process().filter(|mold| self.is_running(*mold));
        if mold.is_none() || !self.monitors[index].line.as_ref().is_some_and(|line| line.heard) {
            return self.monitors[index].push(Event::MoldClosed);
        }
        // Whoever ends before it is a worker has had no time to start anything.
        let script = Script { leaves_behind: None, ..self.draw_script() };
        self.log(|_| format!("  {worker:?} is {script:?}"));
        let exec =
            if script.exec == Exec::Hangs { Exec::Refused(Time::ZERO, Cause::Exited(1)) } else { script.exec.clone() };
        let forked = (!script.fork_fails).then(|| {
            let node = &self.monitors[index];
            let (mark, signal) = ((node.id.generation, worker.slot), node.check.wanted().stop.first_signal());
            self.fork_worker(self.monitors[index].looping.process, (Script { exec, ..script }, mark), signal)
        });
        if let Some(line) = &mut self.monitors[index].line {
            line.forked.push((ticket, forked));
        }
        let at = self.now + self.choices.latency();
        self.wake(Node::Monitor(index), at);
    }

    /// Reads what was said on the line.
    pub(crate) fn hear_line(&mut self, index: usize) {
        let Some(mut line) = self.monitors[index].line.take() else { return };
        let executed = |process: &ProcessId| {
            self.kernel.process(*process).program.as_ref().is_some_and(|program| program.executed)
        };
        let says = |(_, forked): &(u64, Option<ProcessId>)| line.heard && forked.as_ref().is_none_or(executed);
        let (said, silent): (Vec<_>, Vec<_>) = line.forked.iter().copied().partition(says);
        line.forked = silent;
        for (ticket, forked) in said {
            line.born.extend(forked);
            let unborn = || Event::Unborn(ticket, "no memory".to_owned());
            self.monitors[index].push(forked.map_or_else(unborn, |_| Event::Born(ticket)));
        }
        self.monitors[index].line = Some(line);
    }

    /// The mold has ended. Who has said BORN is taken, and nobody hears the others.
    pub(crate) fn end_line(&mut self, index: usize) -> Checked {
        self.hear_line(index);
        let Some(line) = &mut self.monitors[index].line else { return Ok(()) };
        line.heard = false;
        let forked = std::mem::take(&mut line.forked);
        forked.into_iter().filter_map(|(_, forked)| forked).try_for_each(|process| self.end(process, Cause::Exited(0)))
    }

    /// Somebody whom the monitor does not know as a worker has been reaped. True if it was forked by the mold.
    pub(crate) fn bury(&mut self, index: usize, process: ProcessId, cause: &Cause) -> bool {
        let Some(line) = &mut self.monitors[index].line else { return false };
        line.forked.retain(|(_, forked)| *forked != Some(process));
        let was_born = line.born.contains(&process);
        if was_born {
            line.dead.insert(process, cause.clone());
        }
        was_born
    }

    /// Before an event is decided on.
    pub(crate) fn look_who_is_born(&mut self, index: usize, event: &Event) {
        if let (Event::Born(_), Some(line)) = (event, &mut self.monitors[index].line) {
            line.newborn = line.born.pop_front();
        }
    }

    pub(crate) fn adopt(&mut self, index: usize, worker: Worker) {
        let Some(line) = &mut self.monitors[index].line else { return };
        let Some(process) = line.newborn.take() else { return };
        let dead = line.dead.remove(&process);
        let pid = self.kernel.process(process).pid;
        self.monitors[index].enroll(worker, pid, process);
        if let Some(cause) = dead {
            self.monitors[index].strike(worker, pid, process);
            self.monitors[index].push(Event::Ended(worker, cause));
        }
    }

    /// After it: who was not adopted was born too late, and ends.
    pub(crate) fn end_born_too_late(&mut self, index: usize) -> Checked {
        let Some(process) = self.monitors[index].line.as_mut().and_then(|line| line.newborn.take()) else {
            return Ok(());
        };
        self.end(process, Cause::Exited(0))
    }

    /// The mold is told to end, or has ended: nobody hears whom it has forked, and they end.
    pub(crate) fn close_line(&mut self, index: usize) -> Checked {
        let Some(line) = self.monitors[index].line.take() else { return Ok(()) };
        let forked = line.forked.into_iter().filter_map(|(_, forked)| forked);
        let all: Vec<_> = forked.chain(line.born).chain(line.newborn).collect();
        all.into_iter().try_for_each(|process| self.end(process, Cause::Exited(0)))?;
        if let Some(mold) = self.monitors[index].mold_process().filter(|_| line.heard) {
            let after = self.choices.millis(&[0, 3, 50]);
            self.end_later(mold, after, 0);
        }
        Ok(())
    }
}

#[test]
fn main_keeps_every_invariant_with_monitors_that_have_molds() {
    let mut all = Tally::default();
    for seed in 0..HISTORIES {
        match play_with_molds(seed, None) {
            Ok((tally, _)) => all.add(tally),
            Err(failure) => panic!("{}\nhistory {seed}: {}", failure.trace.join("\n"), failure.violation.what),
        }
    }
    assert!(
        all.commits.min(all.rejections).min(all.molds_failed).min(all.adoptions) > 0,
        "this proves little: {all:?}"
    );
}

#[test]
fn every_bug_of_main_with_molds_is_found() {
    for &planted in Planted::OF_MOLDS {
        let found = (0..HISTORIES).find_map(|seed| Some((seed, play_with_molds(seed, Some(planted)).err()?)));
        let (seed, failure) = found.unwrap_or_else(|| panic!("{planted:?} is not found"));
        println!("{planted:?}: found in history {seed}: {}", failure.violation.what);
    }
}
