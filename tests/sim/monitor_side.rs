//! A monitor as a process: what src/monitor/run.rs and roster.rs do, without a kernel.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use nix::sys::signal::Signal;
use panzer::control::messages::{Order, Report};
use panzer::main_process::state::Monitor;
use panzer::monitor::state::{Action, Event, Phase, Settings, Slots, Worker};
use panzer::worker::cause::Cause;

use crate::channel::Fault;
use crate::check::{Checked, Violation, hold};
use crate::check_monitor::MonitorCheck;
use crate::kernel::{Pid, ProcessId, Time};
use crate::planted::Planted;
use crate::world::{Looping, Node, World, next_arrived};

#[derive(Debug)]
struct Live {
    worker: Worker,
    pid: Pid,
    process: ProcessId,
    /// The outcome of its exec has not been looked at yet.
    executing: bool,
}

/// How a monitor itself comes to life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Startup {
    Begins,
    CannotBegin(Cause),
    Fails,
}

pub(crate) struct MonitorNode {
    pub(crate) id: Monitor,
    pub(crate) looping: Looping,
    pub(crate) startup: Startup,
    settings: Settings,
    /// None until it has started.
    pub(crate) state: Option<Slots>,
    pub(crate) check: MonitorCheck,
    roster: BTreeMap<u32, Live>,
    left_behind: BTreeMap<Worker, BTreeSet<Pid>>,
    events: VecDeque<Event>,
    /// What happens to the next order and the next report.
    pub(crate) order_fault: Option<Fault>,
    pub(crate) report_fault: Option<Fault>,
    /// Orders and when they can be read.
    pub(crate) inbox: VecDeque<(Time, Order)>,
    pub(crate) last_order: Time,
    /// When the end of the channel can be read.
    pub(crate) main_gone: Option<Time>,
    /// Reports that main has not read, and when it can.
    pub(crate) outbox: VecDeque<(Time, Report)>,
    last_report: Time,
    pub(crate) notifications: Vec<Pid>,
    /// Those that have called listen, and wait.
    pub(crate) listening: Vec<ProcessId>,
    /// Those that were stopped by a signal, or go on, and are not known to be.
    pub(crate) halts: Vec<(ProcessId, bool)>,
    /// Probes under way, and of whom.
    pub(crate) probes: BTreeMap<ProcessId, Worker>,
    done: bool,
}

impl MonitorNode {
    pub(crate) fn new(
        id: Monitor,
        process: ProcessId,
        startup: Startup,
        wanted: Settings,
        given: Settings,
    ) -> MonitorNode {
        MonitorNode {
            id,
            looping: Looping::new(process),
            startup,
            settings: given,
            state: None,
            check: MonitorCheck::new(wanted),
            roster: BTreeMap::new(),
            left_behind: BTreeMap::new(),
            events: VecDeque::new(),
            order_fault: None,
            report_fault: None,
            inbox: VecDeque::new(),
            last_order: Time::ZERO,
            main_gone: None,
            outbox: VecDeque::new(),
            last_report: Time::ZERO,
            notifications: Vec::new(),
            listening: Vec::new(),
            halts: Vec::new(),
            probes: BTreeMap::new(),
            done: false,
        }
    }

    fn pid_of(&self, worker: Worker) -> Option<Pid> {
        self.roster.get(&worker.slot).filter(|live| live.worker == worker).map(|live| live.pid)
    }

    pub(crate) fn process_of(&self, worker: Worker) -> Option<ProcessId> {
        self.roster.get(&worker.slot).filter(|live| live.worker == worker).map(|live| live.process)
    }

    pub(crate) fn worker_of(&self, process: ProcessId) -> Option<Worker> {
        self.roster.values().find(|live| live.process == process).map(|live| live.worker)
    }

    pub(crate) fn workers(&self) -> impl Iterator<Item = ProcessId> {
        self.roster.values().map(|live| live.process)
    }

    pub(crate) fn push(&mut self, event: Event) {
        self.events.push_back(event);
    }

    fn holds(&self, pid: Pid) -> bool {
        self.roster.values().any(|live| live.pid == pid)
    }
}

impl World {
    /// One turn of the loop. Returns whether there was any news.
    pub(crate) fn run_monitor(&mut self, index: usize) -> Result<bool, Violation> {
        let news = match self.monitors[index].state {
            None => self.begin_monitor(index)?,
            Some(_) => self.look_around(index)?,
        };
        let mut woken = false;
        loop {
            let event = match self.monitors[index].events.pop_front() {
                Some(event) => event,
                None if !woken && self.is_due(Node::Monitor(index)) => Event::Wake,
                None => break,
            };
            woken |= matches!(event, Event::Wake);
            for action in self.decide_as_monitor(index, &event)? {
                if self.crashes_now(Node::Monitor(index))? {
                    return Ok(true);
                }
                self.perform_as_monitor(index, action)?;
                if self.has_ended(index) {
                    return Ok(true);
                }
            }
        }
        if self.monitors[index].done {
            self.exit_monitor(index)?;
        }
        Ok(news)
    }

    fn begin_monitor(&mut self, index: usize) -> Result<bool, Violation> {
        let instant = self.instant();
        let process = self.monitors[index].looping.process;
        match self.monitors[index].startup.clone() {
            Startup::Begins => {
                let node = &mut self.monitors[index];
                node.state = Some(Slots::new(node.settings.clone(), instant));
                node.events.push_back(Event::Start);
                // What has come meanwhile is read in the next turn.
                self.wake(Node::Monitor(index), self.now);
            }
            Startup::CannotBegin(cause) => {
                self.send_report(index, Report::CannotBegin(cause))?;
                self.end(process, Cause::Exited(0))?;
            }
            Startup::Fails => self.end(process, Cause::Exited(1))?,
        }
        Ok(true)
    }

    /// What is ready to be read is looked at in any order; the events of all of it are handled afterwards.
    fn look_around(&mut self, index: usize) -> Result<bool, Violation> {
        let before = self.monitors[index].events.len();
        let reaps_first = self.choices.below(2) == 1;
        if reaps_first {
            self.reap_workers(index);
        }
        self.take_orders(index);
        self.take_notifications(index);
        self.take_calls(index);
        self.take_halts(index);
        let executing = self.monitors[index].roster.iter().filter(|(_, live)| live.executing);
        let executing: Vec<_> = executing.map(|(slot, _)| *slot).collect();
        executing.into_iter().for_each(|slot| self.look_at_exec(index, slot));
        if !reaps_first {
            self.reap_workers(index);
        }
        Ok(self.monitors[index].events.len() > before)
    }

    fn take_orders(&mut self, index: usize) {
        let now = self.now;
        let node = &mut self.monitors[index];
        while let Some(order) = next_arrived(&mut node.inbox, now) {
            node.events.push_back(Event::Ordered(order));
        }
        if node.main_gone.is_some_and(|at| at <= now) && node.inbox.is_empty() {
            node.main_gone = None;
            node.events.push_back(Event::MainGone);
        }
        let next = node.inbox.front().map(|(at, _)| *at).or(node.main_gone);
        if let Some(at) = next {
            self.wake(Node::Monitor(index), at);
        }
    }

    fn take_notifications(&mut self, index: usize) {
        for pid in std::mem::take(&mut self.monitors[index].notifications) {
            let sender = self.monitors[index].roster.values().find(|live| live.pid == pid).map(|live| live.worker);
            if let Some(worker) = sender {
                self.look_at_exec(index, worker.slot);
                self.monitors[index].events.push_back(Event::Notified(worker));
            }
        }
    }

    fn take_halts(&mut self, index: usize) {
        for (process, halted) in std::mem::take(&mut self.monitors[index].halts) {
            let Some(worker) = self.monitors[index].worker_of(process) else { continue };
            self.look_at_exec(index, worker.slot);
            let event = if halted { Event::Suspended(worker, Signal::SIGSTOP) } else { Event::Continued(worker) };
            self.monitors[index].push(event);
        }
    }

    pub(crate) fn look_at_exec(&mut self, index: usize, slot: u32) {
        let node = &mut self.monitors[index];
        let Some(live) = node.roster.get_mut(&slot).filter(|live| live.executing) else { return };
        if self.kernel.process(live.process).program.as_ref().is_some_and(|program| program.executed) {
            live.executing = false;
            node.events.push_back(Event::Executed(live.worker));
        }
    }

    fn reap_workers(&mut self, index: usize) {
        let process = self.monitors[index].looping.process;
        for (ended, cause) in self.kernel.reap_children(process) {
            if let Some(worker) = self.monitors[index].probes.remove(&ended) {
                self.monitors[index].push(Event::Probed(worker, cause == Cause::Exited(0)));
                continue;
            }
            let pid = self.kernel.process(ended).pid;
            let slot =
                self.monitors[index].roster.iter().find(|(_, live)| live.process == ended).map(|(slot, _)| *slot);
            let Some(slot) = slot else {
                self.note_groups_gone(index);
                continue;
            };
            self.look_at_exec(index, slot);
            let Some(live) = self.monitors[index].roster.remove(&slot) else { continue };
            self.note_left_behind(index, pid, live.worker, &cause);
            self.monitors[index].events.push_back(Event::Ended(live.worker, cause));
        }
    }

    fn note_left_behind(&mut self, index: usize, pid: Pid, worker: Worker, cause: &Cause) {
        let node = &self.monitors[index];
        let stopping = node.state.as_ref().is_some_and(Slots::is_stopping);
        let strays = *cause == Cause::Exited(0) || (stopping && node.roster.is_empty());
        let known: BTreeSet<Pid> = node.left_behind.values().flatten().copied().collect();
        let groups = self.adopted_groups(index).into_iter().filter(|group| strays || *group == pid);
        let new: BTreeSet<Pid> = groups.filter(|group| !known.contains(group)).collect();
        if !new.is_empty() {
            let node = &mut self.monitors[index];
            node.left_behind.insert(worker, new);
            node.events.push_back(Event::LeftBehind(worker));
        }
    }

    fn note_groups_gone(&mut self, index: usize) {
        let alive = self.adopted_groups(index);
        let node = &mut self.monitors[index];
        let mut gone = Vec::new();
        node.left_behind.retain(|worker, groups| {
            groups.retain(|group| alive.contains(group));
            if groups.is_empty() {
                gone.push(*worker);
            }
            !groups.is_empty()
        });
        node.events.extend(gone.into_iter().map(Event::GroupGone));
    }

    fn adopted_groups(&self, index: usize) -> BTreeSet<Pid> {
        let node = &self.monitors[index];
        let children = self.kernel.children(node.looping.process).filter(|child| !node.probes.contains_key(child));
        let children = children.map(|child| self.kernel.process(child));
        let strangers = children.filter(|child| !node.holds(child.pid));
        strangers.map(|child| child.group).filter(|group| !node.holds(*group)).collect()
    }

    fn decide_as_monitor(&mut self, index: usize, event: &Event) -> Result<Vec<Action>, Violation> {
        let instant = self.instant();
        let node = &mut self.monitors[index];
        let Some(state) = &mut node.state else { return Ok(Vec::new()) };
        let given = Planted::monitor_event(self.planted, event.clone(), &node.check);
        let mut actions = given.map_or(Vec::new(), |given| state.on(instant, given));
        Planted::monitor_actions(self.planted, event, &mut actions, &node.check);
        let (id, told) = (node.id, *event != Event::Wake || !actions.is_empty());
        if told {
            self.log(|_| format!("{}.{} {event:?} -> {actions:?}", id.generation, id.life));
        }
        let node = &mut self.monitors[index];
        node.check.observe(self.now, event, &actions, node.looping.punctual)?;
        if let (Event::Suspended(worker, _) | Event::Continued(worker) | Event::Ended(worker, _), Some(state)) =
            (event, &node.state)
        {
            let shown = state.view(worker.slot).phase == Phase::Suspended;
            let right = shown == node.check.is_halted(worker.slot);
            hold(right, 0, || format!("that the worker of slot {} is stopped is shown: {shown}", worker.slot))?;
        }
        Ok(actions)
    }

    fn perform_as_monitor(&mut self, index: usize, action: Action) -> Checked {
        match action {
            Action::Spawn(worker) => self.spawn_worker(index, worker),
            Action::Signal(worker, signal) => self.signal_worker(index, worker, signal),
            Action::SignalGroup(worker, signal) => self.signal_left_behind(index, worker, signal),
            Action::Report(report) => self.send_report(index, report),
            Action::Exit => {
                self.monitors[index].done = true;
                Ok(())
            }
            Action::Look(worker) => {
                self.look_at_worker(index, worker);
                Ok(())
            }
            Action::Examine(worker) => {
                self.examine_worker(index, worker);
                Ok(())
            }
            Action::Probe(worker) => {
                self.probe_worker(index, worker);
                Ok(())
            }
            Action::EndProbe(worker) => self.kill_probe(index, worker),
            Action::CloseListeners | Action::Note(_) => Ok(()),
        }
    }

    fn spawn_worker(&mut self, index: usize, worker: Worker) -> Checked {
        let script = self.draw_script();
        self.log(|_| format!("  {worker:?} is {script:?}"));
        let filled = self.monitors[index].roster.contains_key(&worker.slot);
        hold(!filled, 4, || format!("{worker:?} is spawned beside a live process"))?;
        if script.fork_fails {
            let cause = Cause::CannotStart("could not be started".to_owned());
            self.monitors[index].events.push_back(Event::Ended(worker, cause));
            return Ok(());
        }
        let signal = self.monitors[index].check.wanted().stop.first_signal();
        let process = self.fork_worker(self.monitors[index].looping.process, script, signal);
        let pid = self.kernel.process(process).pid;
        self.monitors[index].roster.insert(worker.slot, Live { worker, pid, process, executing: true });
        Ok(())
    }

    fn signal_worker(&mut self, index: usize, worker: Worker, signal: Signal) -> Checked {
        let process = self.monitors[index].looping.process;
        let Some(pid) = self.monitors[index].pid_of(worker) else { return Ok(()) };
        if signal == Signal::SIGKILL {
            self.kill_group(process, pid, signal)?;
        }
        self.kill(process, pid, signal)
    }

    fn signal_left_behind(&mut self, index: usize, worker: Worker, signal: Signal) -> Checked {
        let process = self.monitors[index].looping.process;
        let alive = self.adopted_groups(index);
        let groups = self.monitors[index].left_behind.get(&worker).cloned().unwrap_or_default();
        groups.intersection(&alive).try_for_each(|group| self.kill_group(process, *group, signal))
    }

    fn send_report(&mut self, index: usize, report: Report) -> Checked {
        let Some(late) = self.report_leaves(index)? else { return Ok(()) };
        let at = (self.now + late + self.choices.latency()).max(self.monitors[index].last_report);
        self.monitors[index].last_report = at;
        self.monitors[index].outbox.push_back((at, report));
        self.wake(Node::Main, at);
        Ok(())
    }

    fn exit_monitor(&mut self, index: usize) -> Checked {
        let process = self.monitors[index].looping.process;
        // Main takes over a daemon that no worker was left to be stopped with.
        let minded = |child: &usize| self.is_running(*child) && !self.kernel.process(*child).is_daemon();
        let left = self.kernel.children(process).filter(minded).count();
        hold(left == 0, 6, || format!("a monitor exits, and {left} processes of its run on"))?;
        self.end(process, Cause::Exited(0))
    }
}
