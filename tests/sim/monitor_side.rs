//! A monitor as a process: what src/monitor/run.rs and processes/roster.rs do, without a kernel.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use nix::sys::signal::Signal;
use panzer::control::monitor::messages::{Order, Report};
use panzer::main_process::decide::Monitor;
use panzer::monitor::decide::{Action, Event, Phase, Settings, Slots, Worker};
use panzer::worker::cause::Cause;
use panzer::worker::kin::Kin;

use crate::channel::Fault;
use crate::check::{Checked, Violation, hold};
use crate::check_monitor::MonitorCheck;
use crate::kernel::{Pid, ProcessId, Time};
use crate::mold_side::Line;
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
    /// What main knows of them, as src/main_process/processes/families.rs has it.
    forked: BTreeMap<u32, Vec<(Pid, ProcessId)>>,
    kin: Kin<Worker>,
    ended: BTreeMap<u32, (Worker, Pid, ProcessId)>,
    last_ended: Option<Worker>,
    left_behind: BTreeMap<Worker, BTreeSet<nix::unistd::Pid>>,
    pub(crate) given_up: BTreeMap<nix::unistd::Pid, ProcessId>,
    /// Some of what it has adopted was given up since it was last looked at.
    has_given_up: bool,
    /// What the state's deadline was found to be, until it changes.
    deadline: Cell<Option<Option<Instant>>>,
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
    /// Who asks for more time, and how much.
    pub(crate) extensions: Vec<(Pid, Time)>,
    /// Those that have called listen, and wait.
    pub(crate) listening: Vec<ProcessId>,
    /// Those that were stopped by a signal, or go on, and are not known to be.
    pub(crate) halts: Vec<(ProcessId, bool)>,
    /// Probes under way, and of whom.
    pub(crate) probes: BTreeMap<ProcessId, Worker>,
    done: bool,
    pub(crate) line: Option<Line>,
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
            forked: BTreeMap::new(),
            kin: Kin::default(),
            ended: BTreeMap::new(),
            last_ended: None,
            left_behind: BTreeMap::new(),
            given_up: BTreeMap::new(),
            has_given_up: false,
            deadline: Cell::new(None),
            events: VecDeque::new(),
            order_fault: None,
            report_fault: None,
            inbox: VecDeque::new(),
            last_order: Time::ZERO,
            main_gone: None,
            outbox: VecDeque::new(),
            last_report: Time::ZERO,
            notifications: Vec::new(),
            extensions: Vec::new(),
            listening: Vec::new(),
            halts: Vec::new(),
            probes: BTreeMap::new(),
            done: false,
            line: None,
        }
    }

    /// When its state asks to be woken.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let deadline = self.deadline.get().unwrap_or_else(|| self.state.as_ref()?.deadline());
        self.deadline.set(Some(deadline));
        deadline
    }

    pub(crate) fn mold_process(&self) -> Option<ProcessId> {
        self.roster.get(&Worker::MOLD).map(|live| live.process)
    }

    /// A child that runs is this worker.
    pub(crate) fn enroll(&mut self, worker: Worker, pid: Pid, process: ProcessId) {
        self.forked.entry(worker.slot).or_default().push((pid, process));
        self.roster.insert(worker.slot, Live { worker, pid, process, executing: false });
    }

    /// It has ended.
    pub(crate) fn strike(&mut self, worker: Worker, pid: Pid, process: ProcessId) {
        self.roster.remove(&worker.slot);
        self.ended.insert(worker.slot, (worker, pid, process));
        self.last_ended = Some(worker);
    }

    fn pid_of(&self, worker: Worker) -> Option<Pid> {
        self.roster.get(&worker.slot).filter(|live| live.worker == worker).map(|live| live.pid)
    }

    pub(crate) fn process_of(&self, worker: Worker) -> Option<ProcessId> {
        self.roster.get(&worker.slot).filter(|live| live.worker == worker).map(|live| live.process)
    }

    /// Whether this is, or was, the pid of one of its workers. A number that is another's by now says nothing.
    pub(crate) fn led(&self, leader: nix::unistd::Pid, now: Option<ProcessId>) -> Option<ProcessId> {
        let is_it =
            |(pid, process): &&(Pid, ProcessId)| number(*pid) == leader && now.is_none_or(|now| now == *process);
        self.forked.values().flatten().filter(is_it).map(|(_, process)| *process).max()
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

/// As [`Kin`] has it.
pub(crate) fn number(pid: Pid) -> nix::unistd::Pid {
    nix::unistd::Pid::from_raw(pid.0 as i32)
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
            self.look_who_is_born(index, &event);
            for action in self.decide_as_monitor(index, &event)? {
                if self.crashes_now(Node::Monitor(index))? {
                    return Ok(true);
                }
                self.perform_as_monitor(index, action)?;
                if self.has_ended(index) {
                    return Ok(true);
                }
            }
            self.end_born_too_late(index)?;
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
                node.deadline.set(None);
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
            self.reap_workers(index)?;
        }
        self.take_orders(index);
        self.hear_line(index);
        self.take_notifications(index);
        self.take_calls(index);
        self.take_halts(index);
        let executing = self.monitors[index].roster.iter().filter(|(_, live)| live.executing);
        let executing: Vec<_> = executing.map(|(slot, _)| *slot).collect();
        executing.into_iter().for_each(|slot| self.look_at_exec(index, slot));
        if !reaps_first {
            self.reap_workers(index)?;
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
        for (pid, by) in std::mem::take(&mut self.monitors[index].extensions) {
            let sender = self.monitors[index].roster.values().find(|live| live.pid == pid).map(|live| live.worker);
            if let Some(worker) = sender {
                self.look_at_exec(index, worker.slot);
                self.monitors[index].events.push_back(Event::Extends(worker, by));
            }
        }
        for pid in std::mem::take(&mut self.monitors[index].notifications) {
            let sender = self.monitors[index].roster.values().find(|live| live.pid == pid).map(|live| live.worker);
            if let Some(worker) = sender {
                self.look_at_exec(index, worker.slot);
                match worker.is_mold() {
                    true => self.mold_says(index),
                    false => self.monitors[index].events.push_back(Event::Notified(worker)),
                }
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

    fn reap_workers(&mut self, index: usize) -> Checked {
        let process = self.monitors[index].looping.process;
        self.hear_line(index);
        let reaped = self.kernel.reap_children(process);
        let has_given_up = std::mem::take(&mut self.monitors[index].has_given_up);
        if reaped.is_empty() && !has_given_up && self.strangers_of(index).next().is_none() {
            return Ok(());
        }
        let mut all_ended = Vec::new();
        for (ended, cause) in reaped {
            if let Some(worker) = self.monitors[index].probes.remove(&ended) {
                self.monitors[index].push(Event::Probed(worker, cause == Cause::Exited(0)));
                continue;
            }
            let pid = self.kernel.process(ended).pid;
            let slot =
                self.monitors[index].roster.iter().find(|(_, live)| live.process == ended).map(|(slot, _)| *slot);
            let Some(slot) = slot else {
                if self.bury(index, ended, &cause) {
                    continue;
                }
                self.monitors[index].kin.remove(number(pid));
                self.monitors[index].given_up.remove(&number(pid));
                continue;
            };
            self.look_at_exec(index, slot);
            let Some(live) = self.monitors[index].roster.remove(&slot) else { continue };
            if live.worker.is_mold() {
                self.end_line(index)?;
            }
            let node = &mut self.monitors[index];
            node.ended.insert(slot, (live.worker, pid, live.process));
            node.last_ended = Some(live.worker);
            all_ended.push(Event::Ended(live.worker, cause));
        }
        self.meet_as_monitor(index);
        let (more, gone) = self.look_who_is_left(index);
        let events = &mut self.monitors[index].events;
        events.extend(more.into_iter().map(Event::LeftBehind).chain(all_ended));
        events.extend(gone.into_iter().map(Event::GroupGone));
        Ok(())
    }

    /// Children that it does not know.
    fn strangers_of(&self, index: usize) -> impl Iterator<Item = ProcessId> {
        let node = &self.monitors[index];
        self.kernel.children(node.looping.process).filter(|child| {
            let pid = self.kernel.process(*child).pid;
            let known = || node.kin.knows(number(pid)) || node.given_up.contains_key(&number(pid));
            let is_unborn = || node.line.as_ref().is_some_and(|line| line.is_of(*child));
            !node.holds(pid) && !node.probes.contains_key(child) && !known() && !is_unborn()
        })
    }

    /// As src/monitor/processes/adopted.rs has it.
    fn meet_as_monitor(&mut self, index: usize) {
        let new: Vec<ProcessId> = self.strangers_of(index).collect();
        for child in new {
            let (process, node) = (self.kernel.process(child), &self.monitors[index]);
            let owner = node.kin.owner_by_group(&process.clues(), |leader| self.led_by(index, leader, process.pid));
            let owner = owner.or_else(|| self.owner_in_slot(index, process.mark?.1, process.began));
            let living = node.roster.values().next().map(|live| live.worker);
            let owner = Planted::owner(self.planted, owner, living);
            let (pid, clues) = (number(process.pid), process.clues());
            self.monitors[index].kin.add(pid, clues, owner);
        }
        let began = |live: &Live| self.kernel.process(live.process).clues().started;
        let node = &self.monitors[index];
        let (began, last): (Vec<_>, _) = (node.roster.values().map(began).collect(), node.last_ended);
        let last = last.filter(|_| self.planted != Some(Planted::ForgetsTheUnknown));
        self.monitors[index].kin.settle(|clues| last.filter(|_| !began.iter().any(|began| clues.started >= *began)));
    }

    fn led_by(&self, index: usize, leader: nix::unistd::Pid, who: Pid) -> Option<Worker> {
        let node = &self.monitors[index];
        let alive = node.roster.values().find(|live| number(live.pid) == leader).map(|live| live.worker);
        let had_it = || node.ended.values().filter(|(_, pid, _)| number(*pid) == leader);
        let ended = || had_it().max_by_key(|(.., process)| *process).map(|(worker, ..)| *worker);
        let exists = || self.kernel.unreaped().any(|id| number(self.kernel.process(id).pid) == leader);
        alive.or_else(|| ended().filter(|_| number(who) != leader && !exists()))
    }

    fn owner_in_slot(&self, index: usize, slot: u32, began: Time) -> Option<Worker> {
        let node = &self.monitors[index];
        let live = node.roster.get(&slot).filter(|live| began >= self.kernel.process(live.process).began);
        live.map(|live| live.worker).or_else(|| node.ended.get(&slot).map(|(worker, ..)| *worker))
    }

    fn look_who_is_left(&mut self, index: usize) -> (Vec<Worker>, Vec<Worker>) {
        let node = &mut self.monitors[index];
        let mut left: BTreeMap<Worker, BTreeSet<nix::unistd::Pid>> = BTreeMap::new();
        for (pid, worker) in node.kin.owned().filter(|(_, worker)| node.pid_of(*worker).is_none()) {
            left.entry(worker).or_default().insert(pid);
        }
        let known = |worker: &Worker, all| node.left_behind.get(worker).is_some_and(|known| known.is_superset(all));
        let more = left.iter().filter(|(worker, all)| !known(worker, all)).map(|(worker, _)| *worker).collect();
        let gone = node.left_behind.keys().filter(|worker| !left.contains_key(worker)).copied().collect();
        node.left_behind = left;
        (more, gone)
    }

    fn give_up_as_monitor(&mut self, index: usize, worker: Worker) {
        let node = &mut self.monitors[index];
        node.has_given_up = true;
        let left: Vec<_> = node.kin.of(worker).chain(node.pid_of(worker).map(number)).collect();
        for pid in left {
            node.kin.remove(pid);
            let mut children = self.kernel.children(node.looping.process);
            let child = children.find(|id| number(self.kernel.process(*id).pid) == pid);
            node.given_up.extend(child.map(|child| (pid, child)));
        }
    }

    fn decide_as_monitor(&mut self, index: usize, event: &Event) -> Result<Vec<Action>, Violation> {
        let instant = self.instant();
        let node = &mut self.monitors[index];
        let Some(state) = &mut node.state else { return Ok(Vec::new()) };
        node.deadline.set(None);
        let given = Planted::monitor_event(self.planted, event.clone(), &node.check);
        let mut actions = given.map_or(Vec::new(), |given| state.on(instant, given));
        Planted::monitor_actions(self.planted, event, &mut actions, &node.check);
        let (id, told) = (node.id, *event != Event::Wake || !actions.is_empty());
        if told {
            self.log(|_| format!("{}.{} {event:?} -> {actions:?}", id.generation, id.life));
        }
        let node = &mut self.monitors[index];
        if self.spec.preload {
            // tests/sim/molds.rs checks what such a monitor does.
            if let Event::Ordered(Order::Tune(tuning)) = event {
                node.check.goes_by(tuning);
            }
            return Ok(actions);
        }
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
            Action::GiveUp(worker) => {
                self.give_up_as_monitor(index, worker);
                Ok(())
            }
            Action::Report(report) => self.send_report(index, report),
            Action::Exit => {
                self.monitors[index].done = true;
                Ok(())
            }
            Action::Look(worker) => {
                self.look_at_worker(index, worker);
                self.take_time_to_look(index);
                Ok(())
            }
            Action::Examine(worker) => {
                self.examine_worker(index, worker);
                self.take_time_to_look(index);
                Ok(())
            }
            Action::Probe(worker) => {
                self.probe_worker(index, worker);
                Ok(())
            }
            Action::EndProbe(worker) => self.kill_probe(index, worker),
            Action::CloseListeners | Action::Note(_) => Ok(()),
            Action::Fork(worker, ticket) => {
                self.fork_by_mold(index, worker, ticket);
                Ok(())
            }
            Action::Adopt(worker) => {
                self.adopt(index, worker);
                Ok(())
            }
            Action::Dismiss => self.close_line(index),
            // tests/sim/refork.rs has them.
            Action::WantAsMold(_) | Action::Decline(_) | Action::Promote(..) => Ok(()),
            // tests/sim/recycling.rs has them.
            Action::Measure(_) | Action::EndMeasurement => Ok(()),
        }
    }

    fn spawn_worker(&mut self, index: usize, worker: Worker) -> Checked {
        let script = if worker.is_mold() { self.draw_mold_script() } else { self.draw_script() };
        if worker.is_mold() {
            self.open_line(index);
        }
        self.log(|_| format!("  {worker:?} is {script:?}"));
        let filled = self.monitors[index].roster.contains_key(&worker.slot);
        hold(!filled, 4, || format!("{worker:?} is spawned beside a live process"))?;
        if script.fork_fails {
            let cause = Cause::CannotStart("could not be started".to_owned());
            self.monitors[index].events.push_back(Event::Ended(worker, cause));
            return Ok(());
        }
        let signal = self.monitors[index].check.wanted().stop.first_signal();
        let mark = (self.monitors[index].id.generation, worker.slot);
        let process = self.fork_worker(self.monitors[index].looping.process, (script, mark), signal);
        let pid = self.kernel.process(process).pid;
        let forked = self.monitors[index].forked.entry(worker.slot).or_default();
        forked.retain(|(pid, _)| self.kernel.is_taken(*pid));
        forked.push((pid, process));
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
        let node = &self.monitors[index];
        let process = node.looping.process;
        let of = |owner| node.kin.of(owner).map(|pid| Pid(pid.as_raw() as u32));
        let group = |pid: Pid| self.kernel.target(process, pid).map(|id| self.kernel.process(id).group);
        let groups = of(worker).map(group).collect::<Result<BTreeSet<Pid>, Violation>>()?;
        groups
            .into_iter()
            .filter(|group| !node.holds(*group))
            .collect::<Vec<_>>()
            .into_iter()
            .try_for_each(|group| self.kill_group(process, group, signal))
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
        let given_up = |child: &usize| self.monitors[index].given_up.values().any(|process| process == child);
        let minded = |child: &usize| self.is_running(*child) && !given_up(child);
        let left = self.kernel.children(process).filter(minded).count();
        hold(left == 0, 6, || format!("a monitor exits, and {left} processes of its run on"))?;
        self.end(process, Cause::Exited(0))
    }
}
