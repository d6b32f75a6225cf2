//! Histories that once broke an invariant, and some that must never, each by its name. They run before all others.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use panzer::backoff::Pace;
use panzer::config::{FinalExits, Ready, StartDelay, Surge, Tuning, Verbosity};
use panzer::control::messages::Urgency;
use panzer::main_process::state as main_state;
use panzer::monitor::state::{Event, Settings, Slots, Watch, Worker};
use panzer::worker::cause::Cause;

use crate::check::{Checked, hold};
use crate::choices::Choices;
use crate::kernel::Time;
use crate::worker_script::{Reaction, Script, Traits};
use crate::world::{Node, Spec, World};

type History = fn() -> Checked;

pub(crate) const ALL: &[(&str, History)] = &[
    ("a quick stop gives its own waits to what a dying monitor leaves", quick_stop_and_a_dying_monitor),
    ("what joins the orphans after their KILL is stopped as well", orphans_that_join_late),
    ("a helper left behind during a stop does not outlast the stop", helper_left_during_a_stop),
    ("what is told of a worker that is no more changes nothing", events_of_the_dead),
    ("reloads asked for during a reload run once afterwards", reloads_during_a_reload),
    ("a reload that fails leaves the serving generation alone", a_failed_reload),
];

fn spec(workers: u32, stop: &str) -> Spec {
    let second = Duration::from_secs(1);
    Spec {
        main: main_state::Settings {
            workers,
            surge: Surge::All,
            ready: Ready::Alive,
            tuning: Tuning {
                ready_timeout: second * 5,
                bake: second,
                stop: stop.parse().unwrap(),
                pace: Pace { delay: second / 10, delay_max: second * 2, healthy_after: second * 3 },
                respawn_limit: None,
                final_exits: FinalExits::default(),
                start_delay: StartDelay::default(),
                verbosity: Verbosity::Normal,
            },
            max_draining: 4,
            seed: 1,
        },
        traits: Traits { notifies: false, listens: false, hidden: false },
        has_listener: false,
        shares_ports: false,
        trouble: 1,
    }
}

/// Nothing in it is left to chance; `scripts` are its first workers.
fn world(workers: u32, stop: &str, scripts: &[Script]) -> World {
    let mut world = World::new(spec(workers, stop), Choices::replay(Vec::new()), None, false);
    world.scripts.extend(scripts.iter().cloned());
    world
}

fn stubborn() -> Script {
    Script { gentle: Reaction::Ignores, quick: Reaction::Ignores, other_user: true, ..Script::tame() }
}

impl World {
    fn pass(&mut self, millis: u64) -> Checked {
        self.run_until(self.now + Time::from_millis(millis))
    }

    fn kill_monitor(&mut self, index: usize) -> Checked {
        self.end(self.monitors[index].looping.process, Cause::Killed(9, false))
    }
}

/// Its KILL came at once: the quick schedule was reckoned from the graceful stop's beginning.
fn quick_stop_and_a_dying_monitor() -> Checked {
    let mut world = world(1, "TERM/9s/INT/3s/KILL", &[stubborn()]);
    world.pass(4_000)?;
    world.signal_main(main_state::Event::StopThenNow);
    world.pass(5_000)?;
    world.signal_main(main_state::Event::StopThenNow);
    world.pass(100)?;
    world.kill_monitor(0)?;
    world.pass(2_800)?;
    let alive = world.kernel.running().count();
    hold(alive == 2, 6, || "the orphan has not been given the quick schedule".to_owned())?;
    world.come_to_an_end()
}

/// A second monitor's orphan was counted among the first's, whose schedule was over, and lived for ever.
fn orphans_that_join_late() -> Checked {
    let mut world = world(1, "KILL", &[stubborn(), stubborn()]);
    world.pass(4_000)?;
    world.kill_monitor(0)?;
    while world.monitors.len() < 2 {
        world.step()?;
    }
    // The first orphan has got its KILL, and main reaps it and the second monitor at once.
    world.pause(Node::Main, Time::from_millis(500));
    world.pass(100)?;
    world.kill_monitor(1)?;
    world.calm_down()
}

/// Its group was given a whole schedule of its own, so that main took the monitor for stuck, killed it, and began anew.
fn helper_left_during_a_stop() -> Checked {
    let drains = Script {
        gentle: Reaction::EndsAfter(Time::from_secs(8)),
        leaves_behind: Some(Reaction::Ignores),
        ..Script::tame()
    };
    let mut world = world(1, "TERM/9s/INT/3s/KILL", &[drains]);
    world.pass(4_000)?;
    world.signal_main(main_state::Event::Stop(Urgency::Graceful));
    world.pass(12_100)?;
    hold(!world.main_runs(), 6, || "the end does not come within the schedule".to_owned())
}

fn events_of_the_dead() -> Checked {
    let Spec { main, .. } = spec(1, "TERM/9s/KILL");
    let settings = Settings {
        workers: 1,
        notify: false,
        watch: Watch::No,
        has_listener: false,
        tuning: main.tuning,
        ended: BTreeSet::new(),
        trial: false,
        seed: 1,
    };
    let now = Instant::now();
    let mut slots = Slots::new(settings, now);
    let worker = Worker { slot: 0, life: 1 };
    let _ = slots.on(now, Event::Start);
    let _ = slots.on(now, Event::Executed(worker));
    let _ = slots.on(now, Event::Ended(worker, Cause::Exited(1)));
    let before = format!("{slots:?}");
    for event in [
        Event::LeftBehind(worker),
        Event::Notified(worker),
        Event::Executed(worker),
        Event::Ended(worker, Cause::Exited(1)),
        Event::LeftBehind(Worker { slot: 7, life: 1 }),
    ] {
        let told = format!("{event:?}");
        let actions = slots.on(now, event);
        let after = format!("{slots:?}");
        hold(actions.is_empty() && after == before, 11, || format!("{told}: {actions:?}"))?;
    }
    Ok(())
}

fn reloads_during_a_reload() -> Checked {
    let mut world = world(2, "TERM/9s/KILL", &[]);
    world.pass(4_000)?;
    for _ in 0..4 {
        world.signal_main(main_state::Event::Reload);
        world.pass(100)?;
    }
    world.calm_down()?;
    let serving = world.main.check.serving().map(|monitor| monitor.generation);
    hold(serving == Some(3), 7, || format!("generation {serving:?} serves"))
}

fn a_failed_reload() -> Checked {
    let dies = Script { dies: Some((Time::from_millis(300), Cause::Exited(1))), ..Script::tame() };
    let mut world = world(2, "TERM/9s/KILL", &[Script::tame(), Script::tame(), Script::tame(), dies]);
    world.pass(4_000)?;
    let before: Vec<_> = world.kernel.running().collect();
    world.signal_main(main_state::Event::Reload);
    world.pass(400)?;
    world.calm_down()?;
    let after: Vec<_> = world.kernel.running().collect();
    hold(before == after, 8, || format!("{before:?} became {after:?}"))
}
