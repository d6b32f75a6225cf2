//! Main as a process: what src/main_process/run.rs and processes/ do, without a kernel.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use nix::sys::signal::Signal;
use panzer::config::Tuning;
use panzer::control::monitor::messages::Order;
use panzer::main_process::decide::{Action, Event, Generations, Monitor, Settings};
use panzer::monitor::decide as monitor_state;
use panzer::worker::cause::Cause;
use panzer::worker::kin::Kin;

use crate::check::{Checked, SLACK, Violation, hold};
use crate::check_main::MainCheck;
use crate::kernel::{Pid, Process, ProcessId, Role, Time};
use crate::monitor_side::{MonitorNode, Startup, number};
use crate::planted::Planted;
use crate::world::{Looping, Node, Spec, World, next_arrived};

pub(crate) struct MainNode {
    pub(crate) looping: Looping,
    pub(crate) state: Generations,
    /// What was last read back in a restart.
    pub(crate) as_read: Option<Generations>,
    pub(crate) check: MainCheck,
    /// By their place among the world's monitors.
    monitors: BTreeMap<Monitor, usize>,
    pub(crate) kin: Kin<Monitor>,
    /// Monitors of which something is left.
    families: BTreeSet<Monitor>,
    strangers: BTreeSet<Pid>,
    /// Strangers may fall to it.
    pub(crate) has_strangers: bool,
    /// Signals that are pending. Of each kind there is one, however often it was sent.
    pub(crate) signals: Vec<Event>,
    events: VecDeque<Event>,
    /// What planners that are under way will have found out, and when.
    pub(crate) planners: Vec<(Time, Event)>,
    /// What each generation runs by.
    pub(crate) plans: BTreeMap<u32, Settings>,
    pub(crate) exit: Option<u8>,
}

impl MainNode {
    pub(crate) fn new(process: ProcessId, spec: &Spec, planted: Option<Planted>) -> MainNode {
        MainNode {
            looping: Looping::new(process),
            state: Generations::new(Planted::main_settings(planted, spec.main.clone())),
            as_read: None,
            check: MainCheck::new(spec.main.clone()),
            monitors: BTreeMap::new(),
            kin: Kin::default(),
            families: BTreeSet::new(),
            strangers: BTreeSet::new(),
            has_strangers: false,
            signals: Vec::new(),
            events: VecDeque::from([Event::Start]),
            planners: Vec::new(),
            plans: BTreeMap::from([(1, spec.main.clone())]),
            exit: None,
        }
    }
}

impl World {
    /// One turn of the loop. Returns whether there was any news.
    pub(crate) fn run_main(&mut self) -> Result<bool, Violation> {
        self.restart_if_due()?;
        self.look_around_as_main();
        let news = !self.main.events.is_empty();
        let mut woken = false;
        loop {
            let event = match self.main.events.pop_front() {
                Some(event) => event,
                None if !woken && self.is_due(Node::Main) => Event::Wake,
                None => break,
            };
            woken |= matches!(event, Event::Wake);
            for action in self.decide_as_main(&event)? {
                if self.crashes_now(Node::Main)? {
                    return Ok(true);
                }
                self.perform_as_main(action)?;
            }
        }
        if let Some(code) = self.main.exit {
            self.exit_main(code)?;
        }
        Ok(news)
    }

    fn look_around_as_main(&mut self) {
        let signals_first = self.choices.below(2) == 1;
        if signals_first {
            self.take_signals();
        }
        let has_reports = |(_, index): &(&Monitor, &usize)| !self.monitors[**index].outbox.is_empty();
        let told: Vec<_> = self.main.monitors.iter().filter(has_reports).map(|(monitor, _)| *monitor).collect();
        told.into_iter().for_each(|monitor| self.take_reports(monitor, false));
        if !signals_first {
            self.take_signals();
        }
    }

    fn plan(&mut self, generation: u32) {
        let settings = self.configured.clone();
        let mut at = self.now + self.choices.millis(&[0, 2, 40]);
        let troubled = self.faults && self.choices.one_in(self.spec.trouble * 2);
        let trouble = if troubled { self.choices.below(6) } else { 2 };
        if trouble > 2 {
            // Commands of the user run first, which succeed, fail or hang.
            self.main.planners.push((at, Event::Preparing(generation, Time::from_secs(60))));
            self.wake(Node::Main, at);
            at += self.choices.millis(&[0, 500, 30_000, 59_000]);
        }
        let event = match trouble % 3 {
            // It hangs.
            0 => return,
            1 => Event::NotPlanned(generation, Cause::Configuration("config/panzer.yml:1:1: wrong".to_owned())),
            _ => Event::Planned(generation, settings),
        };
        self.main.planners.push((at, event));
        self.wake(Node::Main, at);
    }

    fn give_up_plan(&mut self, generation: u32) {
        // Or it had ended just before.
        if self.choices.below(2) == 1 {
            let of_it = |event: &Event| matches!(event, Event::Planned(number, _) | Event::NotPlanned(number, _) | Event::Preparing(number, _) if *number == generation);
            self.main.planners.retain(|(_, event)| !of_it(event));
        }
    }

    fn reap_planners(&mut self) {
        if self.main.planners.is_empty() {
            return;
        }
        let now = self.now;
        let (ended, others) = std::mem::take(&mut self.main.planners).into_iter().partition(|(at, _)| *at <= now);
        self.main.planners = others;
        let ended: Vec<(Time, Event)> = ended;
        for (_, event) in &ended {
            if let Event::Planned(generation, settings) = event {
                self.main.plans.insert(*generation, settings.clone());
            }
        }
        self.main.events.extend(ended.into_iter().map(|(_, event)| event));
        if let Some(at) = self.main.planners.iter().map(|(at, _)| *at).min() {
            self.wake(Node::Main, at);
        }
    }

    fn take_signals(&mut self) {
        let signals = std::mem::take(&mut self.main.signals);
        self.main.events.extend(signals);
        self.reap_planners();
        self.reap_as_main();
    }

    /// With `all`, also what was still on its way: the monitor is dead, and what it wrote is there to be read.
    fn take_reports(&mut self, monitor: Monitor, all: bool) {
        let until = if all { Time::MAX } else { self.now };
        let Some(&index) = self.main.monitors.get(&monitor) else { return };
        let outbox = &mut self.monitors[index].outbox;
        while let Some(report) = next_arrived(outbox, until) {
            self.main.events.push_back(Event::Reported(monitor, report));
        }
        let next = outbox.front().map(|(at, _)| *at);
        if let Some(at) = next {
            self.wake(Node::Main, at);
        }
    }

    fn reap_as_main(&mut self) {
        let main = self.main.looping.process;
        if !self.kernel.has_zombies(main) {
            return;
        }
        let mut orphans: BTreeMap<Monitor, Vec<Pid>> = BTreeMap::new();
        let mut reaped = self.kernel.reap_children(main);
        reaped.sort_by_key(|(ended, _)| !matches!(self.kernel.process(*ended).role, Role::Monitor(_)));
        for (ended, cause) in reaped {
            if let Role::Monitor(index) = self.kernel.process(ended).role {
                let monitor = self.monitors[index].id;
                self.take_reports(monitor, true);
                self.main.monitors.remove(&monitor);
                let survived = self.meet_as_main(monitor) || !self.is_gone(monitor);
                self.main.events.push_back(Event::Ended(monitor, cause, survived));
                continue;
            }
            let pid = self.kernel.process(ended).pid;
            if let Some(monitor) = self.main.kin.owner(number(pid)) {
                orphans.entry(monitor).or_default().push(pid);
            } else if self.planted != Some(Planted::RemembersStrangers) {
                self.main.strangers.remove(&pid);
            }
        }
        for (monitor, ended) in orphans {
            let joined = self.meet_as_main(monitor);
            ended.into_iter().for_each(|pid| self.main.kin.remove(number(pid)));
            if joined {
                self.main.events.push_back(Event::OrphansJoined(monitor));
            } else if self.is_gone(monitor) {
                self.main.events.push_back(Event::OrphansGone(monitor));
            }
        }
    }

    /// As src/main_process/processes/adopt.rs has it. True where there is more left of `dead` than was known.
    fn meet_as_main(&mut self, dead: Monitor) -> bool {
        let new: Vec<_> =
            self.kernel.children(self.main.looping.process).filter(|child| !self.is_known(*child)).collect();
        let mut more = BTreeSet::new();
        for child in new {
            let (pid, clues) = (self.kernel.process(child).pid, self.kernel.process(child).clues());
            match self.judge(child, dead) {
                Some(monitor) if self.main.monitors.contains_key(&monitor) => {}
                Some(monitor) => {
                    self.main.kin.add(number(pid), clues, Some(monitor));
                    more.insert(monitor);
                }
                None => drop(self.main.strangers.insert(pid)),
            }
        }
        let joined = more.remove(&dead);
        self.main.events.extend(more.into_iter().map(Event::OrphansJoined));
        joined
    }

    fn judge(&self, child: ProcessId, dead: Monitor) -> Option<Monitor> {
        if self.monitors.iter().any(|node| node.given_up.values().any(|given_up| *given_up == child)) {
            return None;
        }
        let process = self.kernel.process(child);
        let led = |leader| {
            let now = self.kernel.unreaped().find(|id| number(self.kernel.process(*id).pid) == leader);
            let families = self.monitors.iter().filter(|node| self.main.families.contains(&node.id));
            families.filter_map(|node| Some((node.led(leader, now)?, node.id))).max().map(|(_, monitor)| monitor)
        };
        let by_mark = || {
            let is = |monitor: &Monitor| process.mark.is_some_and(|(generation, _)| monitor.generation == generation);
            let adopted = || self.main.kin.owned().map(|(_, monitor)| monitor).find(is);
            let running = || self.main.monitors.keys().copied().find(is);
            let any = || Some(dead).filter(is).or_else(adopted).or_else(running).unwrap_or(dead);
            process.mark.map(|_| any())
        };
        let own =
            led(number(process.pid)).or_else(|| self.main.kin.owner_by_group(&process.clues(), led)).or_else(by_mark);
        let adopts_all = !self.main.has_strangers || self.planted == Some(Planted::AdoptsStrangers);
        own.or(adopts_all.then_some(dead))
    }

    fn is_gone(&mut self, monitor: Monitor) -> bool {
        let gone = self.main.kin.of(monitor).next().is_none();
        if gone {
            self.main.families.remove(&monitor);
        }
        gone
    }

    fn is_known(&self, child: ProcessId) -> bool {
        let pid = self.kernel.process(child).pid;
        let is_monitor = self.main.monitors.values().any(|index| self.monitors[*index].looping.process == child);
        is_monitor || self.main.kin.knows(number(pid)) || self.main.strangers.contains(&pid)
    }

    fn pid_of_monitor(&self, index: usize) -> Pid {
        self.kernel.process(self.monitors[index].looping.process).pid
    }

    fn decide_as_main(&mut self, event: &Event) -> Result<Vec<Action>, Violation> {
        let instant = self.instant();
        let main = &mut self.main;
        let given = Planted::main_event(self.planted, event.clone(), &main.check);
        let mut actions = given.map_or(Vec::new(), |given| main.state.on(instant, given));
        Planted::main_actions(self.planted, event, &mut actions, &main.check);
        if *event != Event::Wake || !actions.is_empty() {
            self.log(|_| format!("main {event:?} -> {actions:?}"));
        }
        let main = &mut self.main;
        main.check.observe(self.now, event, &actions, main.looping.punctual)?;
        main.check.check_ready(Planted::is_ready(self.planted, &main.state))?;
        Ok(actions)
    }

    fn perform_as_main(&mut self, action: Action) -> Checked {
        match action {
            Action::Plan(generation) => {
                self.plan(generation);
                Ok(())
            }
            Action::GiveUpPlan(generation) => {
                self.give_up_plan(generation);
                Ok(())
            }
            Action::StartMonitor { monitor, workers, ended, trial, notify, accept } => {
                self.start_monitor(monitor, (workers, ended.into_keys().collect()), (trial, notify, accept));
                Ok(())
            }
            Action::Order(monitor, order) => self.send_order(monitor, order),
            Action::KillMonitor(monitor) => {
                let Some(&index) = self.main.monitors.get(&monitor) else { return Ok(()) };
                let stuck = !self.monitors[index].looping.punctual || !self.main.looping.punctual;
                hold(stuck, 6, || format!("{monitor:?} is killed though it does what it is told"))?;
                self.kill(self.main.looping.process, self.pid_of_monitor(index), Signal::SIGKILL)
            }
            Action::SignalUnreached(monitor, signal) => self.signal_orphans(monitor, signal, true),
            Action::SignalOrphans(monitor, signal) => self.signal_orphans(monitor, signal, false),
            Action::GiveUpOrphans(monitor) => {
                self.main.families.remove(&monitor);
                for pid in self.main.kin.of(monitor).collect::<Vec<_>>() {
                    self.main.kin.remove(pid);
                    self.main.strangers.insert(Pid(pid.as_raw() as u32));
                }
                Ok(())
            }
            Action::Exit(code) => {
                self.main.exit = Some(code);
                Ok(())
            }
            Action::Tune(generation, tuning) => self.tune(generation, tuning),
            Action::Scaled { .. }
            | Action::CloseListeners
            | Action::Release(_)
            | Action::Promise(..)
            | Action::Verdict(..)
            | Action::Note(_) => Ok(()),
        }
    }

    fn start_monitor(&mut self, id: Monitor, slots: (u32, BTreeSet<u32>), measure: (bool, bool, bool)) {
        let troubled = self.faults && self.choices.one_in(self.spec.trouble * 4);
        let trouble = if troubled { self.choices.below(4) } else { 3 };
        if trouble == 0 {
            let cause = Cause::CannotStart("could not be started".to_owned());
            self.main.events.push_back(Event::NotStarted(id, cause));
            return;
        }
        let startup = match trouble {
            1 => Startup::CannotBegin(Cause::NotFound("no such program".to_owned())),
            2 => Startup::Fails,
            _ => Startup::Begins,
        };
        let generation = id.generation;
        let wanted = self.monitor_settings(self.main.check.wanted.of(generation), slots.clone(), measure);
        let given = self.monitor_settings(&self.main.plans[&generation], slots, measure);
        let given = Planted::monitor_settings(self.planted, given);
        let process = self.kernel.start(Some(self.main.looping.process), Role::Monitor(self.monitors.len()));
        self.main.monitors.insert(id, self.monitors.len());
        self.main.families.insert(id);
        self.monitors.push(MonitorNode::new(id, process, startup, wanted, given));
        let at = self.now + self.choices.millis(&[0, 2, 40]);
        self.wake(Node::Monitor(self.monitors.len() - 1), at);
    }

    fn monitor_settings(
        &self,
        by: &Settings,
        (workers, ended): (u32, BTreeSet<u32>),
        (trial, notify, accept): (bool, bool, bool),
    ) -> monitor_state::Settings {
        monitor_state::Settings {
            workers,
            notify,
            watch: self.spec.watch(by.ready, accept),
            probe: by.ready == panzer::config::Ready::Exec,
            has_listener: self.spec.has_listener,
            preload: self.spec.preload,
            refork: panzer::config::Refork::default(),
            watchdog: None,
            tuning: by.tuning.clone(),
            ended,
            trial,
            seed: self.monitors.len() as u64,
        }
    }

    fn tune(&mut self, generation: u32, tuning: Tuning) -> Checked {
        if let Some(plan) = self.main.plans.get_mut(&generation) {
            plan.tuning.clone_from(&tuning);
        }
        let running = self.main.monitors.keys().copied().find(|monitor| monitor.generation == generation);
        running.map_or(Ok(()), |monitor| self.send_order(monitor, Order::Tune(Box::new(tuning))))
    }

    fn send_order(&mut self, monitor: Monitor, order: Order) -> Checked {
        let Some(&index) = self.main.monitors.get(&monitor) else { return Ok(()) };
        if order == Order::Commit {
            self.check_committed(index)?;
        }
        let Some(late) = self.order_leaves(index)? else { return Ok(()) };
        let at = (self.now + late + self.choices.latency()).max(self.monitors[index].last_order);
        self.monitors[index].last_order = at;
        self.monitors[index].inbox.push_back((at, order));
        self.wake(Node::Monitor(index), at);
        Ok(())
    }

    fn signal_orphans(&mut self, monitor: Monitor, signal: Signal, unreached_only: bool) -> Checked {
        let main = self.main.looping.process;
        let orphans: Vec<_> = self.main.kin.of(monitor).map(|pid| Pid(pid.as_raw() as u32)).collect();
        for pid in orphans {
            let target = self.kernel.target(main, pid)?;
            if unreached_only && !self.has_other_user(target) {
                continue;
            }
            if signal == Signal::SIGKILL {
                self.kill_group(main, self.kernel.process(target).group, signal)?;
            }
            self.kill(main, pid, signal)?;
        }
        Ok(())
    }

    fn exit_main(&mut self, code: u8) -> Checked {
        let left = self.kernel.running().filter(|id| !self.is_own(*id)).map(|id| self.kernel.process(id));
        let foreign =
            |process: &&Process| process.role == Role::Stranger || process.refuses() || self.may_be_strange(process);
        let left: Vec<_> = left.filter(|process| !foreign(process)).map(|process| process.role).collect();
        hold(left.is_empty(), 6, || format!("main exits with {code}, and there run on: {left:?}"))?;
        let punctual = self.main.looping.punctual && self.monitors.iter().all(|node| node.looping.punctual);
        // An orphan that has been killed may leave another, which gets a schedule of its own.
        let strict = punctual && self.main.check.tally.adoptions == 0 && self.main.check.tally.refused == 0;
        // A mold may end by a word before its signals come.
        let farewell = if self.spec.preload { Time::from_millis(500) } else { Time::ZERO };
        let late = strict
            && !self.main.check.is_extended()
            && self.main.check.stop_due().is_none_or(|due| due + SLACK + farewell < self.now);
        hold(!late, 6, || "the end does not come within the schedule".to_owned())?;
        self.end(self.main.looping.process, Cause::Exited(code.into()))
    }

    /// It shows nothing, its monitor is gone, and main cannot tell it from a stranger.
    pub(crate) fn may_be_strange(&self, process: &Process) -> bool {
        process.is_unknown() && self.main.has_strangers
    }

    fn is_own(&self, process: ProcessId) -> bool {
        process == self.main.looping.process
    }
}
