//! The status: asks the monitors, and sends the answer to the clients that wait for it.

use std::path::Path;
use std::time::Instant;

use nix::unistd::Pid;

use super::dump;
use super::inquiry::Inquiry;
use crate::control::files;
use crate::control::monitor::messages::Order;
use crate::control::operator::requests::Outcome;
use crate::control::operator::status::{Generation, LogPlace, Status};
use crate::main_process::listeners::accept_queues;
use crate::main_process::main::Main;
use crate::sys::stderr;

impl Main {
    pub(crate) fn inquire(&mut self) {
        // A restart would interrupt the inquiry, so it is left to the next main, unless the restart waits for a planner
        // that may hang.
        let gives_way = self.restarting.restart.is_proven() && !self.children.is_planning();
        if self.operators.inquiry.is_some() || gives_way {
            return;
        }
        self.operators.askers = self.operators.clients.take_status_askers();
        let standings = self.state.standings();
        for (_, _, monitor) in &standings {
            if let Some(running) = monitor.and_then(|monitor| self.children.running(monitor))
                && !std::mem::replace(&mut running.asked, true)
            {
                running.channel.send(&Order::Status);
            }
        }
        let inquiry = Inquiry::new(standings, |monitor| self.children.pid_of(monitor), Instant::now());
        self.operators.inquiry = Some(inquiry);
    }

    pub(crate) fn answer_inquiry(&mut self) {
        let now = Instant::now();
        let is_over = |inquiry: &mut Inquiry| inquiry.is_complete() || inquiry.deadline() <= now;
        let Some(inquiry) = self.operators.inquiry.take_if(is_over) else { return };
        let mut generations = inquiry.into_generations();
        if let Some(cgroups) = &self.outside.cgroups {
            generations.iter_mut().for_each(|one| one.cgroup = cgroups.status(one.number));
        }
        let status = self.status(generations);
        if std::mem::take(&mut self.operators.told_on_stderr) {
            stderr::tell(&status.to_string());
        }
        if std::mem::take(&mut self.operators.dumps) {
            dump::write(self.outside.pid_file.path(), &status.to_string());
        }
        let askers = std::mem::take(&mut self.operators.askers);
        if !askers.is_empty() {
            self.operators.clients.answer_all(askers, Outcome { status: Some(status), ..Outcome::done() });
        }
        if self.operators.clients.want_status() {
            self.inquire();
        }
    }

    /// The name of this instance. A pid file with the name "pid" does not name it.
    pub(crate) fn name(&self) -> String {
        let by_file = files::name_of(self.outside.pid_file.path());
        match &self.configuration.plan.name {
            Some(name) => name.clone(),
            None if by_file == "pid" => {
                let program = Path::new(&self.configuration.plan.program.0)
                    .file_name()
                    .unwrap_or(&self.configuration.plan.program.0);
                program.to_string_lossy().into_owned()
            }
            None => by_file,
        }
    }

    fn status(&self, generations: Vec<Generation>) -> Status {
        // A worker that a signal has stopped was ready, and is not now.
        let has_ready = |one: &Generation| !one.answered || one.workers.iter().any(|worker| worker.state == "ready");
        let mut at_work = generations.iter().filter(|one| one.standing != "draining");
        Status {
            name: self.name(),
            pid: Pid::this().as_raw(),
            workers: self.state.workers(),
            ready: self.state.is_ready() && !self.is_ending() && at_work.any(has_ready),
            stopping: self.is_ending(),
            uptime_ms: self.operators.clients.begun.elapsed().as_millis() as u64,
            generations,
            listeners: accept_queues::all(&self.listeners.held, &self.listeners.shares),
            respawns: self.operators.counters.respawns(),
            recycled: self.operators.counters.recyclings(),
            reloads: self.operators.counters.reloads(),
            hooks: self.operators.counters.hooks(),
            logs: LogPlace::all(self.logger.settings.as_ref().map_or(&self.configuration.plan.logs, |(logs, _)| logs)),
        }
    }
}
