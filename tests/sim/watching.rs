//! What a monitor sees of its workers: who listens, who accepts, and what probes tell.

use panzer::config::Ready;
use panzer::monitor::decide::{Event, Watch, Worker};
use panzer::readiness::watch::{Bypass, Hidden, Sight};
use panzer::worker::cause::Cause;

use crate::check::{Checked, hold};
use crate::kernel::{ProcessId, Role, Time};
use crate::world::{Spec, World};

impl Spec {
    /// As src/monitor/run.rs has it.
    pub(crate) fn watch(&self, ready: Ready, accept: bool) -> Watch {
        match ready {
            Ready::Accept => Watch::Always,
            Ready::Auto | Ready::Exec if self.has_listener || accept => Watch::IfSeeable,
            Ready::Auto | Ready::Exec if self.shares_ports => Watch::IfItListens,
            Ready::Auto | Ready::Exec | Ready::Notify | Ready::Alive => Watch::No,
        }
    }
}

impl World {
    /// A program has called listen, and waits for its monitor.
    pub(crate) fn listen(&mut self, process: ProcessId) {
        let caller = self.kernel.process(process);
        let parent = caller.parent.map(|parent| self.kernel.process(parent).role);
        if let Some(Role::Monitor(index)) = parent {
            self.monitors[index].listening.push(process);
            self.tell_parent(process);
        }
    }

    pub(crate) fn take_calls(&mut self, index: usize) {
        for process in std::mem::take(&mut self.monitors[index].listening) {
            if let Some(program) = self.kernel.program(process) {
                program.listens = true;
            }
            if let Some(worker) = self.monitors[index].worker_of(process) {
                self.look_at_exec(index, worker.slot);
                self.monitors[index].push(Event::Listens(worker));
            }
        }
    }

    pub(crate) fn take_time_to_look(&mut self, index: usize) {
        let took = self.choices.among(&[Time::from_micros(50), Time::from_micros(50), Time::from_millis(10)]);
        self.monitors[index].push(Event::Looked(took));
    }

    pub(crate) fn look_at_worker(&mut self, index: usize, worker: Worker) {
        if let Some(process) = self.monitors[index].process_of(worker) {
            let sight = self.sight(process);
            self.monitors[index].push(Event::Seen(worker, sight));
        }
    }

    pub(crate) fn examine_worker(&mut self, index: usize, worker: Worker) {
        if let Some(process) = self.monitors[index].process_of(worker) {
            let script = self.kernel.process(process).program.as_ref().map(|one| (one.script.elsewhere, one.began));
            let (elsewhere, began) = script.unwrap_or((false, self.now));
            let own = if elsewhere { vec!["0.0.0.0:9000".to_owned()] } else { Vec::new() };
            // Busy all its life so far, some of it, or hardly.
            let ran = (self.now - began) / self.choices.among(&[1, 40, 1_000]);
            let shown = matches!(self.sight(process), Sight::NotYet(_)).then_some(Bypass { own, ran });
            self.monitors[index].push(Event::Examined(worker, shown));
        }
    }

    fn sight(&self, process: ProcessId) -> Sight {
        let helper = self.kernel.process(process).program.as_ref().is_some_and(|program| program.script.helper_hidden);
        match self.is_hidden(process) {
            _ if !self.is_running(process) => Sight::NotYet(None),
            true => Sight::Unseeable(Hidden::ByIoUring),
            false if self.accepts(process) => Sight::Accepting,
            false => Sight::NotYet(helper.then_some(Hidden::ByRights)),
        }
    }

    fn is_hidden(&self, process: ProcessId) -> bool {
        let Some(program) = &self.kernel.process(process).program else { return false };
        let after = |time: Option<Time>| time.is_some_and(|time| program.began + time <= self.now);
        after(program.script.hidden) && !after(program.script.shown_again)
    }

    fn accepts(&self, process: ProcessId) -> bool {
        let Some(program) = &self.kernel.process(process).program else { return false };
        let now = program.script.accepts.is_some_and(|after| program.began + after <= self.now);
        now && (self.spec.has_listener || program.listens)
    }

    fn answers(&self, process: ProcessId) -> bool {
        let program = self.kernel.process(process).program.as_ref();
        program.is_some_and(|program| program.script.answers.is_some_and(|after| program.began + after <= self.now))
    }

    pub(crate) fn probe_worker(&mut self, index: usize, worker: Worker) {
        let fails = self.faults && self.choices.one_in(self.spec.trouble * 8);
        let Some(process) = self.monitors[index].process_of(worker).filter(|_| !fails) else {
            self.monitors[index].push(Event::Probed(worker, false));
            return;
        };
        let takes = self.kernel.process(process).program.as_ref().and_then(|program| program.script.probe_takes);
        let code = i32::from(!self.answers(process));
        let parent = self.monitors[index].looping.process;
        let probe = self.kernel.start(Some(parent), Role::Probe);
        self.monitors[index].probes.insert(probe, worker);
        if let Some(takes) = takes {
            self.end_later(probe, takes, code);
        }
    }

    pub(crate) fn kill_probe(&mut self, index: usize, worker: Worker) -> Checked {
        let probes = self.monitors[index].probes.iter().find(|(_, probed)| **probed == worker);
        let Some(probe) = probes.map(|(probe, _)| *probe) else { return Ok(()) };
        self.end(probe, Cause::Killed(9, false))
    }

    /// A generation is committed: what its reports have claimed is so.
    pub(crate) fn check_committed(&self, index: usize) -> Checked {
        let is_ready = |process: ProcessId| match self.main.check.wanted.of(self.monitors[index].id.generation).ready {
            Ready::Accept => self.accepts(process),
            // One that was hidden all along may be so no more.
            Ready::Exec => {
                let was_hidden =
                    self.kernel.process(process).program.as_ref().is_some_and(|one| one.script.hidden.is_some());
                self.answers(process) && (!self.spec.has_listener || self.accepts(process) || was_hidden)
            }
            Ready::Auto | Ready::Notify | Ready::Alive => true,
        };
        let node = &self.monitors[index];
        let workers = node.workers().filter(|process| self.is_running(*process));
        let wanted =
            |process: &ProcessId| node.worker_of(*process).is_some_and(|worker| !node.check.is_idle_slot(worker.slot));
        let workers = workers.filter(wanted);
        let unready = workers.filter(|process| !is_ready(*process)).count();
        hold(unready == 0, 1, || format!("committed while {unready} workers are not ready"))
    }

    /// A monitor whose workers are all ready sleeps until something happens.
    pub(crate) fn check_idle(&self, index: usize, deadline: Option<Time>) -> Checked {
        let node = &self.monitors[index];
        let idle = !self.spec.preload && node.check.is_idle();
        hold(!idle || deadline.is_none(), 13, || format!("{:?} is idle, and is woken", node.id))
    }
}
