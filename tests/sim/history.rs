//! One history: a world, an operator who does random things to it, then calm, and in the end a stop.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use panzer::config::Ready;
use panzer::control::monitor::messages::Urgency;
use panzer::main_process::decide::{Change, Event, Standing};
use panzer::worker::cause::Cause;

use crate::check::{Checked, Violation, hold};
use crate::choices::Choices;
use crate::configuration;
use crate::kernel::{Process, Role, Time};
use crate::planted::Planted;
use crate::restart;
use crate::tally::Tally;
use crate::worker_script::Traits;
use crate::world::{Node, Spec, World};

/// The longest that an exec may hang, and what a monitor gets beyond its schedule.
const EXEC_TIMEOUT: Time = Duration::from_secs(10);
const GRACE: Time = Duration::from_secs(5);

/// What workers that stop may ask for in all.
const LONGEST_EXTENSIONS: Time = Duration::from_secs(30);

/// Who bypasses its listener is known so long after it is ready, also where it is never idle.
const LONGEST_EXAMINATION: Time = Duration::from_secs(255);

/// A history that broke an invariant.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) violation: Violation,
    pub(crate) step: u32,
    pub(crate) record: Vec<u64>,
    pub(crate) trace: Vec<String>,
}

/// Plays the history that these choices make.
pub(crate) fn play(choices: Choices, planted: Option<Planted>, traced: bool) -> Result<(Tally, Vec<String>), Failure> {
    play_with(choices, None, planted, traced)
}

/// The same, with main restarted in place as often as this says, where it says anything.
pub(crate) fn play_with(
    mut choices: Choices,
    restarts: Option<u32>,
    planted: Option<Planted>,
    traced: bool,
) -> Result<(Tally, Vec<String>), Failure> {
    let spec = draw_spec(&mut choices);
    play_in(spec, choices, restarts, planted, traced)
}

/// A history in which a mold forks the workers.
pub(crate) fn play_with_molds(seed: u64, planted: Option<Planted>) -> Result<(Tally, Vec<String>), Failure> {
    let mut choices = Choices::from_seed(seed);
    let spec = Spec { preload: true, ..draw_spec(&mut choices) };
    play_in(spec, choices, None, planted, true)
}

fn play_in(
    spec: Spec,
    mut choices: Choices,
    restarts: Option<u32>,
    planted: Option<Planted>,
    traced: bool,
) -> Result<(Tally, Vec<String>), Failure> {
    let drawn = restart::draw(&mut choices);
    let mut world = World::new(spec, choices, planted, traced);
    world.restarts = restarts.unwrap_or(drawn);
    match world.unless_it_panics(World::live) {
        Ok(()) => Ok((world.main.check.tally, world.trace.take().unwrap_or_default())),
        Err(violation) => Err(world.failed(violation)),
    }
}

pub(crate) fn draw_spec(choices: &mut Choices) -> Spec {
    let ready = choices.among(&[Ready::Alive, Ready::Auto, Ready::Notify, Ready::Auto, Ready::Accept, Ready::Exec]);
    let traits = draw_traits(choices, ready);
    let (shares_ports, given) = (choices.below(3) > 0, choices.below(3) == 2);
    Spec {
        main: configuration::draw(choices, ready),
        trouble: choices.among(&[1, 20, 6, 3, 2]),
        traits,
        // What must accept and has nowhere to do so is refused at the start.
        has_listener: given || (ready == Ready::Accept && !(shares_ports && traits.listens)),
        shares_ports,
        preload: false,
    }
}

fn draw_traits(choices: &mut Choices, ready: Ready) -> Traits {
    Traits {
        notifies: choices.below(3) > 0 || ready == Ready::Notify,
        listens: choices.below(3) > 0,
        hidden: choices.one_in(4) && ready != Ready::Accept,
    }
}

impl World {
    /// A panic is a violation like any other.
    pub(crate) fn unless_it_panics(&mut self, act: impl FnOnce(&mut World) -> Checked) -> Checked {
        let caught = catch_unwind(AssertUnwindSafe(|| act(self)));
        caught.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(Violation::new(12, format!("panics: {}", text.unwrap_or_default())))
        })
    }

    fn live(&mut self) -> Checked {
        for _ in 0..1 + self.choices.below(8) {
            let gap = self.choices.millis(&[1_500, 0, 0, 3, 30, 200, 700, 4_000, 15_000, 70_000]);
            self.run_until(self.now + gap)?;
            self.interfere()?;
        }
        self.calm_down()?;
        if self.main_runs() {
            self.main.signals.push(Event::Stop(Urgency::Graceful));
            self.wake(Node::Main, self.now);
        }
        self.come_to_an_end()
    }

    /// What an operator, or bad luck, does.
    fn interfere(&mut self) -> Checked {
        match self.choices.below(61) {
            0 => {}
            1..=3 => self.signal_main(Event::Reload),
            4 => self.signal_main(Event::ReloadRetiring(Urgency::Patient)),
            5 => self.signal_main(Event::ReloadRetiring(Urgency::Quick)),
            6..=9 => self.ask_for_reload(),
            10 => self.signal_main(Event::Stop(Urgency::Graceful)),
            11 => self.signal_main(Event::Stop(Urgency::Quick)),
            12 => self.signal_main(Event::StopThenNow),
            13..=16 => self.kill_some(|role| matches!(role, Role::Monitor(_)))?,
            17..=19 => self.kill_some(|role| role == Role::Worker)?,
            20 => self.kill_some(|role| role == Role::LeftBehind)?,
            21 => self.kill_some(|role| role == Role::Main)?,
            22 => self.crash_later(Node::Main),
            23..=24 => self.for_some_monitor(|world, index| {
                world.crash_later(Node::Monitor(index));
                Ok(())
            })?,
            25 => self.pause_a_while(Node::Main),
            26..=27 => self.for_some_monitor(|world, index| {
                world.pause_a_while(Node::Monitor(index));
                Ok(())
            })?,
            28..=29 => self.give_main_a_stale_event()?,
            30..=31 => self.for_some_monitor(World::give_monitor_a_stale_event)?,
            32..=35 => self.signal_main(Event::Rebound),
            42..=45 => {
                self.reconfigure();
                self.ask_for_reload();
            }
            46..=50 => {
                self.reconfigure();
                self.reread();
            }
            51 => self.reread(),
            52..=55 => self.for_some_monitor(|world, index| {
                world.trouble_channel(index);
                Ok(())
            })?,
            56..=58 => self.stray(),
            59..=60 => {
                let generation = self.choices.below(5) as u32;
                self.signal_main(Event::EscalateDraining((generation > 0).then_some(generation)));
            }
            _ => self.scale(),
        }
        Ok(())
    }

    /// A signal that is pending already is not sent twice.
    pub(crate) fn signal_main(&mut self, event: Event) {
        self.log(|_| format!("operator: {event:?}"));
        if self.main_runs() && !self.main.signals.contains(&event) {
            self.main.signals.push(event);
            let at = self.now + self.choices.latency();
            self.wake(Node::Main, at);
        }
    }

    /// Over the control socket: each asks for itself, and none is coalesced.
    fn ask_for_reload(&mut self) {
        self.requests += 1;
        self.signal_main(Event::ReloadFor(self.requests));
    }

    fn scale(&mut self) {
        self.requests += 1;
        let request = Some(self.requests).filter(|_| self.choices.below(2) == 1);
        let change = match self.choices.below(6) {
            0..=1 => Change::To(self.choices.below(7) as u32),
            2..=3 => Change::By(self.choices.among(&[1, -1, 2, -3])),
            4 => Change::WithoutOldest,
            _ => Change::ToNone,
        };
        self.signal_main(Event::Scale(request, change));
    }

    fn kill_some(&mut self, wanted: fn(Role) -> bool) -> Checked {
        let mut all: Vec<_> = self.kernel.running().filter(|id| wanted(self.kernel.process(*id).role)).collect();
        // The newest first: it is what most happens to.
        all.reverse();
        if all.is_empty() {
            return Ok(());
        }
        let victim = self.choices.among(&all);
        self.end(victim, Cause::Killed(9, false))
    }

    fn for_some_monitor(&mut self, act: impl FnOnce(&mut World, usize) -> Checked) -> Checked {
        let all: Vec<_> =
            (0..self.monitors.len()).rev().filter(|i| self.is_running(self.monitors[*i].looping.process)).collect();
        if all.is_empty() {
            return Ok(());
        }
        let index = self.choices.among(&all);
        act(self, index)
    }

    fn crash_later(&mut self, node: Node) {
        let after = self.choices.below(12);
        self.log(|_| format!("{node:?} is to crash after {after} actions"));
        self.looping(node).crash_in = Some(after);
    }

    fn pause_a_while(&mut self, node: Node) {
        let length = self.choices.millis(&[300, 30, 3_000, 12_000, 100_000]);
        self.pause(node, length);
    }

    /// Faults cease. The world comes to rest within its bound, and is as it is meant to be.
    pub(crate) fn calm_down(&mut self) -> Checked {
        self.log(|_| "faults cease".to_owned());
        self.faults = false;
        self.main.looping.crash_in = None;
        self.mend_channels();
        self.resume(Node::Main)?;
        for index in 0..self.monitors.len() {
            self.monitors[index].looping.crash_in = None;
            self.resume(Node::Monitor(index))?;
        }
        let rests = self.rest(self.now + self.longest_rest())?;
        hold(rests, 13, || "the world does not come to rest in time".to_owned())?;
        if !self.main_runs() {
            return self.check_end();
        }
        hold(!self.main.check.is_stopping(), 6, || "main stops for ever".to_owned())?;
        self.check_rest()
    }

    /// What may be under way: an exec that hangs, two reloads, whose workers may be late to listen, a stop of theirs and of what they leave behind twice.
    fn longest_rest(&self) -> Time {
        let starts = self.longest(|settings| settings.tuning.start_delay.longest(settings.workers + 8));
        // Twice the longest that a slot whose workers are late again and again gives the next one.
        let ready = self.longest(|settings| settings.tuning.ready_timeout) * 32;
        let bake = self.longest(|settings| settings.tuning.bake);
        let stop = self.longest(|settings| settings.tuning.stop.total().max(settings.tuning.retirement().total()));
        let reload = ready + bake + stop + starts * 2;
        let delay = self.longest(|settings| settings.tuning.pace.delay_max);
        EXEC_TIMEOUT
            + LONGEST_EXAMINATION
            + LONGEST_EXTENSIONS
            + reload * 2
            + (stop + GRACE) * 4
            + delay * 4
            + Duration::from_secs(5)
    }

    fn check_rest(&self) -> Checked {
        // One that ends in its own time may take for ever.
        let mut standings = self.main.state.standings();
        standings.retain(|(_, _, monitor)| !monitor.is_some_and(|monitor| self.main.check.is_patient(monitor)));
        let [(Standing::Serving, _, Some(monitor))] = standings[..] else {
            return hold(false, 13, || format!("at rest there are {standings:?}"));
        };
        let lacking = self.main.check.lacks_listener();
        hold(!lacking, 13, || format!("at rest {monitor:?} lacks a listener"))?;
        hold(self.main.state.deadline().is_none(), 13, || "main has a deadline for ever".to_owned())?;
        let running = self.kernel.unreaped().map(|id| self.kernel.process(id));
        let is_patient = |role: Role| match role {
            Role::Monitor(index) => self.main.check.is_patient(self.monitors[index].id),
            _ => false,
        };
        let patient = |process: &Process| {
            is_patient(process.role)
                || process.parent.is_some_and(|parent| is_patient(self.kernel.process(parent).role))
        };
        let foreign = |process: &Process| process.role == Role::Stranger || process.is_unknown() || process.refuses();
        let running = running.filter(|process| !foreign(process) && !patient(process));
        let running: Vec<_> = running.map(|process| process.role).collect();
        let expected =
            2 + usize::from(self.spec.preload) + self.main.check.count() as usize - self.main.check.ended_for_good();
        let Some(node) = self.monitors.iter().find(|node| node.id == monitor) else {
            return hold(false, 13, || format!("{monitor:?} serves, and never was"));
        };
        let is_whole = if self.spec.preload { node.is_whole_with_mold() } else { node.check.is_whole() };
        hold(is_whole, 13, || format!("{monitor:?} has not all its workers ready"))?;
        let sleeps = node.state.as_ref().is_some_and(|state| state.deadline().is_none());
        hold(sleeps, 13, || format!("{monitor:?} has a deadline for ever"))?;
        hold(running.len() == expected, 13, || format!("at rest there run {running:?}"))
    }

    /// After a stop, or main's death, everything ends within the schedule.
    pub(crate) fn come_to_an_end(&mut self) -> Checked {
        let stop = self.longest(|settings| settings.tuning.stop.total()) + GRACE;
        // What leaves a group behind as its last deed gives that a schedule of its own.
        let longest = stop * 3 + LONGEST_EXTENSIONS + EXEC_TIMEOUT + Duration::from_secs(1);
        let rests = self.rest(self.now + longest)?;
        hold(rests && !self.main_runs(), 6, || "the end does not come within the schedule".to_owned())?;
        self.check_end()
    }

    fn check_end(&self) -> Checked {
        // With main and its monitor killed both, nobody is there to end what ignores the kernel's signal.
        let left = self.kernel.unreaped().map(|id| self.kernel.process(id)).filter(|process| !process.abandoned);
        let left: Vec<_> = left.map(|process| process.role).filter(|role| *role != Role::Stranger).collect();
        hold(left.is_empty(), 6, || format!("after the end there run on: {left:?}"))
    }

    pub(crate) fn failed(self, violation: Violation) -> Failure {
        let trace = self.trace.unwrap_or_default();
        Failure { violation, step: self.steps, record: self.choices.into_record(), trace }
    }
}
