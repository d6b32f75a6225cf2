//! The world: a clock that jumps from happening to happening, the kernel, main, and all monitors that ever were.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Instant;

use nix::sys::signal::Signal;
use panzer::main_process::decide as main_state;
use panzer::worker::cause::Cause;

use crate::check::{Checked, Violation};
use crate::choices::Choices;
use crate::kernel::{Kernel, Pid, ProcessId, Role, Time};
use crate::main_side::MainNode;
use crate::monitor_side::MonitorNode;
use crate::planted::Planted;
use crate::worker_script::{Exec, Reaction, Script, Traits};

/// No history is longer; one that is never comes to rest.
const MOST_STEPS: u32 = 20_000;

/// When a worker asks for more time, after its exec and after a signal.
const EXTENDS_AFTER: Time = Time::from_millis(100);

/// So often a loop may wake at one moment without news: a schedule may have steps that do not wait.
const MOST_SPINS: u32 = 20;

/// What a world is to be.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    /// What is configured at first.
    pub(crate) main: main_state::Settings,
    /// What its program does.
    pub(crate) traits: Traits,
    /// Whether its workers are given a listener, and whether they share the ports that they bind.
    pub(crate) has_listener: bool,
    pub(crate) shares_ports: bool,
    /// Whether a mold forks its workers.
    pub(crate) preload: bool,
    /// One in so many processes is troubled; 1: none.
    pub(crate) trouble: u64,
}

/// A process with a loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Node {
    Main,
    Monitor(usize),
}

/// What comes at a time of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    /// There may be news for a loop.
    News(Node),
    /// A loop's deadline has come.
    Timer(Node),
    Exec(ProcessId),
    Notify(ProcessId),
    Listen(ProcessId),
    Extend(ProcessId),
    /// It has done what it does when told to end, or all that it was started for, and exits with this code.
    End(ProcessId, i32),
    /// Its own fault, as its script has it.
    Die(ProcessId),
    Continue(Node),
    /// A worker is stopped by a signal, and goes on.
    Halt(ProcessId, Time),
    GoOn(ProcessId),
}

/// What main's loop and a monitor's have in common.
#[derive(Debug)]
pub(crate) struct Looping {
    pub(crate) process: ProcessId,
    /// Stopped by SIGSTOP.
    pub(crate) paused: bool,
    /// Never paused: nothing that it does is late.
    pub(crate) punctual: bool,
    /// It is killed before it performs its so-many-th action from now.
    pub(crate) crash_in: Option<u64>,
    /// When it looks for news, and when it is woken if there are none.
    news: Option<Time>,
    timer: Option<Time>,
    spins: u32,
}

impl Looping {
    pub(crate) fn new(process: ProcessId) -> Looping {
        Looping { process, paused: false, punctual: true, crash_in: None, news: None, timer: None, spins: 0 }
    }
}

/// When it is, of the agenda's order.
fn moment(order: u128) -> Time {
    Time::from_nanos((order >> 32) as u64)
}

/// The next of a channel's messages that can be read by `now`. They keep their order.
pub(crate) fn next_arrived<T>(channel: &mut VecDeque<(Time, T)>, now: Time) -> Option<T> {
    channel.front().filter(|(at, _)| *at <= now)?;
    channel.pop_front().map(|(_, message)| message)
}

pub(crate) struct World {
    pub(crate) now: Time,
    base: Instant,
    pub(crate) choices: Choices,
    pub(crate) spec: Spec,
    /// What is configured now, and what ever was.
    pub(crate) configured: main_state::Settings,
    pub(crate) ever_configured: Vec<main_state::Settings>,
    /// What is to happen: what comes first, and of that at one moment, what was planned first.
    agenda: BinaryHeap<Reverse<(u128, Happening)>>,
    scheduled: u32,
    /// What a worker that is stopped will do when it goes on.
    deferred: Vec<(ProcessId, Happening)>,
    pub(crate) steps: u32,
    /// So many have asked for a reload, and want its verdict.
    pub(crate) requests: u64,
    pub(crate) kernel: Kernel,
    pub(crate) main: MainNode,
    pub(crate) monitors: Vec<MonitorNode>,
    /// How often main is restarted in place; 0: never.
    pub(crate) restarts: u32,
    /// Whether new processes may be troubled, and old ones die by themselves.
    pub(crate) faults: bool,
    /// What the next workers are, in a history that is written by hand.
    pub(crate) scripts: VecDeque<Script>,
    pub(crate) planted: Option<Planted>,
    pub(crate) trace: Option<Vec<String>>,
}

impl World {
    pub(crate) fn new(spec: Spec, choices: Choices, planted: Option<Planted>, traced: bool) -> World {
        let mut kernel = Kernel::default();
        let main = MainNode::new(kernel.start(None, Role::Main), &spec, planted);
        let mut world = World {
            now: Time::ZERO,
            base: Instant::now(),
            choices,
            configured: spec.main.clone(),
            ever_configured: vec![spec.main.clone()],
            spec,
            agenda: BinaryHeap::with_capacity(64),
            scheduled: 0,
            deferred: Vec::new(),
            steps: 0,
            requests: 0,
            kernel,
            main,
            monitors: Vec::new(),
            restarts: 0,
            faults: true,
            scripts: VecDeque::new(),
            planted,
            trace: traced.then(Vec::new),
        };
        world.log(|world| format!("{:?}", world.spec));
        world.wake(Node::Main, Time::ZERO);
        world
    }

    pub(crate) fn log(&mut self, line: impl FnOnce(&World) -> String) {
        if let Some(mut trace) = self.trace.take() {
            trace.push(format!("{:>5} {:>12} {}", self.steps, format!("{:?}", self.now), line(self)));
            self.trace = Some(trace);
        }
    }

    /// The moment of a time; the states know only these.
    pub(crate) fn instant(&self) -> Instant {
        self.base + self.now
    }

    pub(crate) fn time(&self, instant: Instant) -> Time {
        instant.saturating_duration_since(self.base)
    }

    pub(crate) fn is_running(&self, process: ProcessId) -> bool {
        self.kernel.process(process).is_running()
    }

    pub(crate) fn main_runs(&self) -> bool {
        self.is_running(self.main.looping.process)
    }

    pub(crate) fn looping(&mut self, node: Node) -> &mut Looping {
        match node {
            Node::Main => &mut self.main.looping,
            Node::Monitor(index) => &mut self.monitors[index].looping,
        }
    }

    fn schedule(&mut self, at: Time, what: Happening) {
        self.scheduled += 1;
        self.agenda.push(Reverse((at.as_nanos() << 32 | u128::from(self.scheduled), what)));
    }

    /// Has a loop look for news at `at`.
    pub(crate) fn wake(&mut self, node: Node, at: Time) {
        let looping = self.looping(node);
        if looping.news.is_none_or(|planned| at < planned) {
            looping.news = Some(at);
            self.schedule(at, Happening::News(node));
        }
    }

    /// Lets everything happen until then.
    pub(crate) fn run_until(&mut self, until: Time) -> Checked {
        while self.agenda.peek().is_some_and(|Reverse((at, _))| moment(*at) <= until) {
            self.step()?;
        }
        self.now = until;
        Ok(())
    }

    /// Lets everything happen until nothing does any more, or past `until`. Returns whether it came to rest.
    pub(crate) fn rest(&mut self, until: Time) -> Result<bool, Violation> {
        while !self.agenda.is_empty() && self.now <= until {
            self.step()?;
        }
        Ok(self.now <= until)
    }

    pub(crate) fn step(&mut self) -> Checked {
        let Some(Reverse((at, what))) = self.agenda.pop() else { return Ok(()) };
        let at = moment(at);
        if !self.still_happens(at, what) {
            return Ok(());
        }
        if let Happening::Notify(process) | Happening::Listen(process) | Happening::End(process, _) = what
            && self.kernel.program(process).is_some_and(|program| program.halted)
        {
            self.deferred.push((process, what));
            return Ok(());
        }
        self.now = at;
        self.steps += 1;
        if self.steps > MOST_STEPS {
            return Err(Violation::new(13, "never comes to rest"));
        }
        match what {
            Happening::News(node) => {
                self.looping(node).news = None;
                self.run(node)
            }
            Happening::Timer(node) => {
                self.looping(node).timer = None;
                self.run(node)
            }
            Happening::Exec(process) => self.exec(process),
            Happening::Notify(process) => self.notify(process),
            Happening::Listen(process) => {
                self.listen(process);
                Ok(())
            }
            Happening::Extend(process) => {
                self.extend(process);
                Ok(())
            }
            Happening::End(process, code) => self.end(process, Cause::Exited(code)),
            Happening::Die(process) => self.die(process),
            Happening::Continue(node) => self.resume(node),
            Happening::Halt(process, length) => {
                self.halt(process, length);
                Ok(())
            }
            Happening::GoOn(process) => {
                self.go_on(process);
                Ok(())
            }
        }
    }

    /// Much that is planned is overtaken: its process has ended, its deadline is another.
    fn still_happens(&mut self, at: Time, what: Happening) -> bool {
        match what {
            Happening::News(node) => self.looping(node).news == Some(at) && self.may_run(node),
            Happening::Timer(node) => self.looping(node).timer == Some(at) && self.may_run(node),
            Happening::Continue(node) => self.looping(node).paused,
            Happening::Die(process) => self.faults && self.is_running(process),
            Happening::Halt(process, _) => self.faults && self.is_running(process),
            Happening::Exec(process)
            | Happening::GoOn(process)
            | Happening::Notify(process)
            | Happening::Listen(process)
            | Happening::Extend(process)
            | Happening::End(process, _) => self.is_running(process),
        }
    }

    fn may_run(&mut self, node: Node) -> bool {
        let looping = self.looping(node);
        let (process, paused) = (looping.process, looping.paused);
        !paused && self.is_running(process)
    }

    fn run(&mut self, node: Node) -> Checked {
        let news = match node {
            Node::Main => self.run_main()?,
            Node::Monitor(index) => self.run_monitor(index)?,
        };
        if self.may_run(node) { self.sleep(node, news) } else { Ok(()) }
    }

    /// When its state asks to be woken.
    fn deadline(&self, node: Node) -> Option<Instant> {
        let deadline = match node {
            Node::Main => self.main.state.deadline(),
            Node::Monitor(index) => self.monitors[index].deadline(),
        };
        Planted::deadline(self.planted, deadline, self.instant())
    }

    /// A loop is woken when its state has asked for that, and not otherwise: what a state forgets to ask for is not done.
    pub(crate) fn is_due(&self, node: Node) -> bool {
        self.deadline(node).is_some_and(|deadline| deadline <= self.instant())
    }

    /// Plans the next look around, at the state's deadline.
    fn sleep(&mut self, node: Node, news: bool) -> Checked {
        let at = self.deadline(node).map(|deadline| self.time(deadline));
        if let Node::Monitor(index) = node {
            self.check_idle(index, at)?;
        }
        let now = self.now;
        let looping = self.looping(node);
        let due = at.is_some_and(|at| at <= now);
        looping.spins = if due && !news { looping.spins + 1 } else { 0 };
        if looping.spins > MOST_SPINS {
            return Err(Violation::new(13, format!("{node:?} never sleeps")));
        }
        let timer = at.map(|at| at.max(now) + self.choices.latency());
        let known = std::mem::replace(&mut self.looping(node).timer, timer);
        if let Some(timer) = timer.filter(|_| known != timer) {
            self.schedule(timer, Happening::Timer(node));
        }
        Ok(())
    }

    /// Forks and lets the script run.
    pub(crate) fn fork_worker(
        &mut self,
        parent: ProcessId,
        (script, mark): (Script, (u32, u32)),
        death_signal: Signal,
    ) -> ProcessId {
        let exec = match &script.exec {
            Exec::Runs(after) | Exec::Refused(after, _) => Some(*after),
            Exec::Hangs => None,
        };
        let process = self.kernel.fork_worker(parent, (script, mark), death_signal, self.now);
        if let Some(after) = exec {
            self.schedule(self.now + after, Happening::Exec(process));
        }
        process
    }

    pub(crate) fn draw_script(&mut self) -> Script {
        if let Some(script) = self.scripts.pop_front() {
            return script;
        }
        let troubled = self.faults && self.choices.one_in(self.spec.trouble);
        match troubled {
            true => Script::troubled(&mut self.choices, self.spec.traits),
            false => Script::behaved(&mut self.choices, self.spec.traits),
        }
    }

    fn exec(&mut self, process: ProcessId) -> Checked {
        if !self.is_running(process) {
            return Ok(());
        }
        let now = self.now;
        let Some(program) = self.kernel.program(process) else { return Ok(()) };
        if let Exec::Refused(_, cause) = &program.script.exec {
            let cause = cause.clone();
            return self.end(process, cause);
        }
        let Script { notifies, listens, halts, .. } = program.script;
        let extends = program.script.extends.is_some();
        let dies = program.script.dies.as_ref().map(|(after, _)| *after);
        program.executed = true;
        program.began = now;
        let held_back = std::mem::take(&mut program.held_back);
        self.tell_parent(process);
        if let Some(after) = notifies {
            self.schedule(self.now + after, Happening::Notify(process));
        }
        if extends {
            self.schedule(self.now + EXTENDS_AFTER, Happening::Extend(process));
        }
        if let Some(after) = listens.filter(|_| self.spec.shares_ports) {
            self.schedule(self.now + after, Happening::Listen(process));
        }
        if let Some((after, length)) = halts {
            self.schedule(self.now + after, Happening::Halt(process, length));
        }
        if let Some(after) = dies {
            self.schedule(self.now + after, Happening::Die(process));
        }
        held_back.into_iter().try_for_each(|signal| self.deliver(process, signal))
    }

    fn die(&mut self, process: ProcessId) -> Checked {
        let dies = self.kernel.program(process).and_then(|program| program.script.dies.clone());
        dies.map_or(Ok(()), |(_, cause)| self.end(process, cause))
    }

    fn notify(&mut self, process: ProcessId) -> Checked {
        let sender = self.kernel.process(process);
        if !sender.is_running() {
            return Ok(());
        }
        let (pid, parent) = (sender.pid, sender.parent.map(|parent| self.kernel.process(parent).role));
        if let Some(Role::Monitor(index)) = parent {
            self.monitors[index].notifications.push(pid);
            self.tell_parent(process);
        }
        Ok(())
    }

    fn extend(&mut self, process: ProcessId) {
        let sender = self.kernel.process(process);
        let by = sender.program.as_ref().and_then(|program| program.script.extends);
        let (pid, parent) = (sender.pid, sender.parent.map(|parent| self.kernel.process(parent).role));
        if let (Some(Role::Monitor(index)), Some(by)) = (parent, by) {
            self.monitors[index].extensions.push((pid, by));
            self.tell_parent(process);
        }
    }

    /// Something about a child is to be seen.
    pub(crate) fn tell_parent(&mut self, process: ProcessId) {
        let Some(parent) = self.kernel.process(process).parent else { return };
        let at = self.now + self.choices.latency();
        match self.kernel.process(parent).role {
            Role::Main => self.wake(Node::Main, at),
            Role::Monitor(index) => self.wake(Node::Monitor(index), at),
            Role::Worker | Role::LeftBehind | Role::Probe | Role::Stranger => {}
        }
    }

    /// A signal arrives; the program does what its script says.
    pub(crate) fn deliver(&mut self, process: ProcessId, signal: Signal) -> Checked {
        if !self.is_running(process) {
            return Ok(());
        }
        if self.kernel.process(process).refuses() {
            self.main.check.tally.refused += 1;
            return Ok(());
        }
        if signal == Signal::SIGKILL {
            return self.end(process, Cause::Killed(9, false));
        }
        if signal == Signal::SIGCONT {
            self.go_on(process);
            return Ok(());
        }
        let Some(program) = self.kernel.program(process) else { return Ok(()) };
        if !program.executed {
            program.held_back.push(signal);
            return Ok(());
        }
        let reaction = if signal == Signal::SIGINT { program.script.quick } else { program.script.gentle };
        if program.script.extends.is_some() && signal != Signal::SIGINT {
            self.schedule(self.now + EXTENDS_AFTER, Happening::Extend(process));
        }
        if let Reaction::EndsAfter(after) = reaction {
            self.end_later(process, after, 0);
        }
        Ok(())
    }

    pub(crate) fn end_later(&mut self, process: ProcessId, after: Time, code: i32) {
        self.schedule(self.now + after, Happening::End(process, code));
    }

    /// A signal to one process: to a child that `sender` has not reaped, or else it hits a stranger.
    pub(crate) fn kill(&mut self, sender: ProcessId, pid: Pid, signal: Signal) -> Checked {
        let target = self.kernel.target(sender, pid)?;
        self.deliver(target, signal)
    }

    pub(crate) fn kill_group(&mut self, sender: ProcessId, group: Pid, signal: Signal) -> Checked {
        let targets = self.kernel.targets(sender, group)?;
        for &target in &targets {
            // A helper in the group goes the same way; a daemon does not.
            let program = self.kernel.program(target).filter(|_| signal == Signal::SIGKILL);
            if let Some(program) = program.filter(|program| !program.script.daemonizes) {
                program.script.leaves_behind = None;
            }
        }
        targets.into_iter().try_for_each(|target| self.deliver(target, signal))
    }

    /// A process ends, by whatever cause. Its parent can reap it from now on.
    pub(crate) fn end(&mut self, process: ProcessId, cause: Cause) -> Checked {
        if !self.is_running(process) {
            return Ok(());
        }
        let role = self.kernel.process(process).role;
        self.log(|_| format!("process {process} ({role:?}) ends: {cause:?}"));
        let left = self.kernel.program(process).and_then(|program| {
            let Script { leaves_behind, daemonizes, unmarked, refuses, .. } = program.script;
            let reaction = leaves_behind?;
            Some(Script { gentle: reaction, quick: reaction, daemonizes, unmarked, refuses, ..Script::tame() })
        });
        if let Some(helper) = left {
            self.kernel.leave_behind(process, helper, self.now);
        }
        let main = self.main.looping.process;
        let heir = Some(main).filter(|_| role != Role::Main && self.is_running(main));
        let children = self.kernel.end(process, cause, heir);
        self.tell_parent(process);
        match role {
            Role::Main => self.main_gone(),
            Role::Monitor(_) => self.monitor_gone(children)?,
            Role::Worker | Role::LeftBehind | Role::Probe | Role::Stranger => {}
        }
        Ok(())
    }

    fn main_gone(&mut self) {
        for index in 0..self.monitors.len() {
            let at = self.now + self.choices.latency();
            self.monitors[index].main_gone = Some(at.max(self.monitors[index].last_order));
            self.wake(Node::Monitor(index), at);
        }
    }

    /// The kernel tells the workers of their monitor's death by the first signal of their schedule, and probes by KILL.
    fn monitor_gone(&mut self, children: Vec<ProcessId>) -> Checked {
        for child in children {
            let signal = self.kernel.program(child).and_then(|program| program.death_signal);
            let process = self.kernel.process(child);
            let other_user = self.has_other_user(child);
            if process.role == Role::Probe {
                self.end(child, Cause::Killed(9, false))?;
            } else if let Some(signal) = signal.filter(|_| !other_user) {
                self.deliver(child, signal)?;
            }
        }
        Ok(())
    }

    /// A process falls to main that is none of its business, and ends at some time, or never.
    pub(crate) fn stray(&mut self) {
        if self.main_runs() {
            self.main.has_strangers = true;
            self.main.check.tally.strangers += 1;
            let stranger = self.kernel.stray(self.main.looping.process);
            let after = self.choices.among(&[None, Some(0), Some(300), Some(5_000)]);
            if let Some(after) = after {
                self.end_later(stranger, Time::from_millis(after), 0);
            }
        }
    }

    /// As main can see it, and the kernel minds it.
    pub(crate) fn has_other_user(&self, process: ProcessId) -> bool {
        self.kernel.process(process).program.as_ref().is_some_and(|program| program.script.other_user)
    }

    /// A worker gets SIGSTOP, and SIGCONT after a while.
    fn halt(&mut self, process: ProcessId, length: Time) {
        self.log(|_| format!("SIGSTOP process {process} for {length:?}"));
        self.set_halted(process, true);
        self.schedule(self.now + length, Happening::GoOn(process));
    }

    fn go_on(&mut self, process: ProcessId) {
        self.set_halted(process, false);
        let (own, others) = std::mem::take(&mut self.deferred).into_iter().partition(|(of, _)| *of == process);
        self.deferred = others;
        let own: Vec<_> = own;
        own.into_iter().for_each(|(_, what)| self.schedule(self.now, what));
    }

    fn set_halted(&mut self, process: ProcessId, halted: bool) {
        if let Some(program) = self.kernel.program(process) {
            program.halted = halted;
        }
        let parent = self.kernel.process(process).parent.map(|parent| self.kernel.process(parent).role);
        if let Some(Role::Monitor(index)) = parent {
            self.monitors[index].halts.push((process, halted));
            self.tell_parent(process);
        }
    }

    /// SIGSTOP, and SIGCONT after a while.
    pub(crate) fn pause(&mut self, node: Node, length: Time) {
        self.log(|_| format!("SIGSTOP {node:?} for {length:?}"));
        let looping = self.looping(node);
        looping.paused = true;
        looping.punctual = false;
        self.schedule(self.now + length, Happening::Continue(node));
    }

    pub(crate) fn resume(&mut self, node: Node) -> Checked {
        let looping = self.looping(node);
        looping.paused = false;
        (looping.news, looping.timer) = (None, None);
        self.wake(node, self.now);
        Ok(())
    }

    /// Whether the process is to be killed instead of performing its next action.
    pub(crate) fn crashes_now(&mut self, node: Node) -> Result<bool, Violation> {
        let looping = self.looping(node);
        let process = looping.process;
        match &mut looping.crash_in {
            None => Ok(false),
            Some(0) => {
                self.end(process, Cause::Killed(9, false))?;
                Ok(true)
            }
            Some(left) => {
                *left -= 1;
                Ok(false)
            }
        }
    }
}
