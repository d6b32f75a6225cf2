//! Histories that once broke an invariant, and some that must never, each by its name. They run before all others.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use panzer::backoff::Pace;
use panzer::config::{FinalExits, Ready, RespawnLimit, StartDelay, Surge, Tuning, Verbosity};
use panzer::control::monitor::messages::{Order, Report, Urgency, Which};
use panzer::main_process::decide::{self as main_state, Change};
use panzer::monitor::decide::{Action, Event, Settings, Slots, Watch, Worker};
use panzer::worker::cause::Cause;

use crate::check::{Checked, hold};
use crate::choices::Choices;
use crate::kernel::Time;
use crate::worker_script::{Exec, Reaction, Script, Traits};
use crate::world::{Node, Spec, World};

type History = fn() -> Checked;

pub(crate) const ALL: &[(&str, History)] = &[
    ("a quick stop gives its own waits to what a dying monitor leaves", quick_stop_and_a_dying_monitor),
    ("what joins the orphans after their KILL is stopped as well", orphans_that_join_late),
    ("a helper left behind during a stop does not outlast the stop", helper_left_during_a_stop),
    ("what an earlier worker left is known to be its when the monitor dies", helper_of_an_earlier_worker),
    ("what a killed worker left gets its KILL also if the monitor is late", helper_that_is_met_late),
    ("what an orphan left gets its KILL also if main slept meanwhile", helper_of_an_orphan_while_main_sleeps),
    ("what is told of a worker that is no more changes nothing", events_of_the_dead),
    ("reloads asked for during a reload run once afterwards", reloads_during_a_reload),
    ("a reload that fails leaves the serving generation alone", a_failed_reload),
    ("what a failed reload configured counts for nobody", a_failed_reload_that_configures),
    ("what is replaced by more is not raised before", replaced_by_more),
    ("on the way back the count before holds, in the time that it has", back_to_another_count),
    ("a generation whose monitor is being replaced is tuned", tuned_without_a_monitor),
    ("a stop that became shorter also ends what is being stopped", a_stop_that_became_shorter),
    ("who is wanted and retired once more ends by the schedule of that time", retired_twice),
    ("who gave up starts nothing, whatever is tuned", tuned_after_giving_up),
    ("who has ended for good serves nobody, with a monitor", ended_for_good_with_a_monitor),
    ("who has ended for good serves nobody, without a monitor", ended_for_good_without_a_monitor),
    ("a stop that has begun ends as it was to, also of one that is not ready", a_shorter_stop_for_an_unready_one),
    ("a first share that is another before it was judged is none", another_share_before_it_was_judged),
    ("of a share that is no longer wanted nobody relies on more than is kept", a_proven_share_that_shrinks),
    ("a share that shrinks before it was judged bakes once more", a_share_that_shrinks_before_it_was_judged),
    ("a mold on trial has its time again for workers that are asked of it later", asked_of_a_mold_later),
    ("who cannot be seen is ready also where that is to be soon", hidden_within_a_short_time),
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
                retire: None,
                pace: Pace { delay: second / 10, delay_max: second * 2, healthy_after: second * 3 },
                respawn_limit: None,
                final_exits: FinalExits::default(),
                start_delay: StartDelay::default(),
                recycling: panzer::config::Recycling::default(),
                verbosity: Verbosity::Normal,
            },
            max_draining: 4,
            seed: 1,
        },
        traits: Traits { notifies: false, listens: false, hidden: false },
        has_listener: false,
        shares_ports: false,
        preload: false,
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

/// Main knew the last worker of each slot only, and took what was in another's group for a stranger.
fn helper_of_an_earlier_worker() -> Checked {
    let stubborn = Some(Reaction::Ignores);
    let ends = Some((Time::from_secs(1), Cause::Exited(1)));
    let leaves = Script { dies: ends, leaves_behind: stubborn, unmarked: true, ..Script::tame() };
    let mut world = world(1, "TERM/9s/KILL", &[leaves]);
    world.stray();
    world.pass(2_000)?;
    world.kill_monitor(0)?;
    world.pass(100)?;
    world.signal_main(main_state::Event::Stop(Urgency::Graceful));
    world.come_to_an_end()
}

/// Main had slept for longer than it waits after KILL. It gave the orphan up before it had read that it had ended, and forgot
/// by what it knew the helper that was left.
fn helper_of_an_orphan_while_main_sleeps() -> Checked {
    for seconds in [7, 100] {
        let leaves = Script { leaves_behind: Some(Reaction::Ignores), daemonizes: true, unmarked: true, ..stubborn() };
        let mut world = world(1, "KILL", &[leaves]);
        world.pass(2_000)?;
        let worker = world.monitors[0].workers().next().unwrap();
        world.kill_monitor(0)?;
        while world.is_running(worker) {
            world.step()?;
        }
        world.pause(Node::Main, Time::from_secs(seconds));
        // Read before the end of the orphan.
        world.signal_main(main_state::Event::Stop(Urgency::Graceful));
        world.pass(101_000)?;
        world.come_to_an_end()?;
    }
    Ok(())
}

/// The worker was given up between the news of what it had left and that of its end, and with it what was left.
fn helper_that_is_met_late() -> Checked {
    let leaves = Script { leaves_behind: Some(Reaction::Ignores), daemonizes: true, ..Script::tame() };
    let mut world = world(1, "KILL", &[leaves]);
    world.pass(4_000)?;
    world.end(world.main.looping.process, Cause::Killed(9, false))?;
    let worker = world.monitors[0].workers().next().unwrap();
    while world.is_running(worker) {
        world.step()?;
    }
    world.pause(Node::Monitor(0), Time::from_secs(12));
    world.pass(20_000)?;
    let left = world.kernel.running().count();
    hold(left == 0, 6, || format!("{left} processes run on"))
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

fn monitor_settings(workers: u32, stop: &str) -> Settings {
    Settings {
        workers,
        notify: false,
        watch: Watch::No,
        probe: false,
        has_listener: false,
        preload: false,
        refork: panzer::config::Refork::default(),
        watchdog: None,
        tuning: spec(workers, stop).main.tuning,
        ended: BTreeSet::new(),
        trial: false,
        seed: 1,
    }
}

fn events_of_the_dead() -> Checked {
    let settings = monitor_settings(1, "TERM/9s/KILL");
    let now = Instant::now();
    let mut slots = Slots::new(settings, now);
    let worker = Worker { slot: 0, life: 1 };
    let _ = slots.on(now, Event::Start);
    let _ = slots.on(now, Event::Executed(worker));
    let _ = slots.on(now, Event::Ended(worker, Cause::Exited(1)));
    let before = format!("{slots:?}");
    for event in [
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

/// A release that is rolled out share by share is on trial for longer than one share may take.
fn asked_of_a_mold_later() -> Checked {
    let settings = Settings { preload: true, trial: true, ..monitor_settings(1, "TERM/9s/KILL") };
    let (now, later) = (Instant::now(), settings.tuning.ready_timeout * 3);
    let mut slots = Slots::new(settings, now);
    let mold = Worker { slot: Worker::MOLD, life: 1 };
    for event in [Event::Start, Event::Executed(mold), Event::MoldReady(false), Event::Born(1)] {
        let _ = slots.on(now, event);
    }
    let _ = slots.on(now + later, Event::Ordered(Order::Scale { workers: 2, which: Which::Last }));
    let actions = slots.on(now + later, Event::Wake);
    hold(actions.is_empty() && slots.deadline() > Some(now + later), 7, || format!("{actions:?}"))
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

fn spoiled(world: &mut World, workers: u32) -> Checked {
    world.configure(|settings| settings.workers = workers);
    let dies = Script { dies: Some((Time::from_millis(300), Cause::Exited(1))), ..Script::tame() };
    world.scripts.push_back(dies);
    world.signal_main(main_state::Event::Reload);
    world.pass(2_000)
}

/// With it, a scaled count was forgotten once the file was as before; and without it, the file's was never taken over.
fn a_failed_reload_that_configures() -> Checked {
    let mut world = world(2, "TERM/9s/KILL", &[]);
    world.pass(4_000)?;
    world.signal_main(main_state::Event::Scale(None, Change::To(5)));
    world.pass(1_000)?;
    spoiled(&mut world, 3)?;
    world.configure(|settings| settings.workers = 2);
    world.reread();
    world.pass(1_000)?;
    hold(world.main.state.workers() == 5, 8, || format!("{} workers are kept", world.main.state.workers()))?;
    spoiled(&mut world, 3)?;
    world.reread();
    world.pass(1_000)?;
    hold(world.main.state.workers() == 3, 8, || format!("{} workers are kept", world.main.state.workers()))?;
    world.calm_down()
}

/// It was given as many as the new one lacked.
fn replaced_by_more() -> Checked {
    let mut world = world(2, "TERM/9s/KILL", &[]);
    world.pass(4_000)?;
    world.configure(|settings| (settings.workers, settings.surge) = (6, Surge::Count(1)));
    world.signal_main(main_state::Event::Reload);
    world.calm_down()?;
    hold(world.main.state.workers() == 6, 7, || format!("{} workers are kept", world.main.state.workers()))
}

/// It went back to the count that had been planned, and took the time of that plan for it.
fn back_to_another_count() -> Checked {
    let refused = Script { exec: Exec::Refused(Time::ZERO, Cause::NotFound("gone".to_owned())), ..Script::tame() };
    let slow = Script { exec: Exec::Runs(Time::from_secs(3)), ..Script::tame() };
    let tame = Script::tame;
    let first = [tame(), tame(), tame(), tame()];
    let mut world = world(4, "TERM/9s/KILL", &first);
    world.pass(4_000)?;
    world.configure(|settings| {
        (settings.workers, settings.surge) = (2, Surge::Count(1));
        settings.tuning.ready_timeout = Time::from_millis(500);
    });
    world.scripts.extend([tame(), refused, slow.clone(), slow.clone(), slow]);
    world.signal_main(main_state::Event::Reload);
    world.pass(20_000)?;
    hold(world.main.check.tally.fall_backs == 1, 8, || "nobody went back".to_owned())?;
    world.calm_down()?;
    hold(world.main.state.ready() == 4, 8, || format!("{} workers are ready", world.main.state.ready()))
}

/// Its next monitor began with what had been before.
fn tuned_without_a_monitor() -> Checked {
    let mut world = world(2, "TERM/9s/KILL", &[]);
    world.pass(1_000)?;
    world.kill_monitor(0)?;
    world.pass(1)?;
    world.configure(|settings| settings.tuning.stop = "INT/1s/KILL".parse().unwrap());
    world.reread();
    world.pass(4_000)?;
    let same = world.main.plans[&1].tuning == world.configured.tuning;
    hold(same && world.monitors.len() == 2, 7, || "the new monitor goes by what was before".to_owned())?;
    world.calm_down()
}

/// Main took its monitor for stuck, and killed it.
fn a_stop_that_became_shorter() -> Checked {
    let stubborn = Script { gentle: Reaction::Ignores, quick: Reaction::Ignores, ..Script::tame() };
    let mut world = world(2, "TERM/60s/KILL", &[Script::tame(), stubborn]);
    world.pass(4_000)?;
    world.signal_main(main_state::Event::Scale(None, Change::To(1)));
    world.pass(1_000)?;
    world.configure(|settings| settings.tuning.stop = "TERM/1s/KILL".parse().unwrap());
    world.reread();
    world.pass(1_000)?;
    world.signal_main(main_state::Event::Stop(Urgency::Graceful));
    world.pass(1_200)?;
    hold(!world.main_runs(), 6, || "the end does not come within the schedule".to_owned())
}

/// It went on by the schedule of the first time, which was longer.
fn retired_twice() -> Checked {
    let stubborn = Script { gentle: Reaction::Ignores, quick: Reaction::Ignores, ..Script::tame() };
    let mut world = world(2, "TERM/60s/KILL", &[Script::tame(), stubborn]);
    world.pass(4_000)?;
    for workers in [1, 2] {
        world.signal_main(main_state::Event::Scale(None, Change::To(workers)));
        world.pass(500)?;
    }
    world.configure(|settings| settings.tuning.stop = "TERM/1s/KILL".parse().unwrap());
    world.reread();
    world.pass(500)?;
    world.signal_main(main_state::Event::Scale(None, Change::To(1)));
    world.pass(1_200)?;
    let alive = world.kernel.running().count();
    hold(alive == 3, 6, || "the second one lives on".to_owned())?;
    world.calm_down()
}

fn tuned_after_giving_up() -> Checked {
    let now = Instant::now();
    let mut settings = monitor_settings(2, "TERM/9s/KILL");
    settings.tuning.respawn_limit = Some(RespawnLimit { count: 0, window: Duration::from_secs(60) });
    let without = Box::new(Tuning { respawn_limit: None, ..settings.tuning.clone() });
    let mut slots = Slots::new(settings, now);
    let _ = slots.on(now, Event::Start);
    let mut actions = Vec::new();
    for slot in 0..2 {
        let worker = Worker { slot, life: 1 };
        let _ = slots.on(now, Event::Executed(worker));
        let _ = slots.on(now, Event::Ended(worker, Cause::Exited(1)));
        let later = now + Duration::from_secs(5) * (slot + 1);
        actions.extend(slots.on(later, Event::Wake));
        actions.extend(slots.on(later, Event::Ordered(Order::Tune(without.clone()))));
    }
    let spawns = actions.iter().any(|action| matches!(action, Action::Spawn(_)));
    let gave_up = actions.contains(&Action::Report(Report::GaveUp));
    hold(gave_up && !spawns, 5, || format!("after giving up: {actions:?}"))
}

/// A generation whose last worker of all had ended for good was said to serve, with none, when fewer were wanted.
fn ended_for_good(kills_monitor: bool) -> Checked {
    let ends = Script { dies: Some((Time::ZERO, Cause::Exited(1))), ..Script::tame() };
    let mut spec = spec(2, "TERM/9s/KILL");
    spec.main.tuning.final_exits.codes = vec!["1".parse().unwrap()];
    let mut world = World::new(spec, Choices::replay(Vec::new()), None, false);
    // The second one never executes its program, so that this generation has not served before.
    world.scripts.extend([ends, Script { exec: Exec::Hangs, ..Script::tame() }]);
    world.pass(10)?;
    world.signal_main(main_state::Event::Reload);
    world.pass(10)?;
    if kills_monitor {
        world.kill_monitor(0)?;
        world.pass(10)?;
    }
    world.signal_main(main_state::Event::Scale(None, Change::To(1)));
    world.pass(10)?;
    let served = world.main.state.overview().serves;
    hold(!served, 1, || "a generation is said to serve of which nobody is left".to_owned())?;
    world.calm_down()
}

fn ended_for_good_with_a_monitor() -> Checked {
    ended_for_good(false)
}

fn ended_for_good_without_a_monitor() -> Checked {
    ended_for_good(true)
}

/// The check took each further signal for the beginning of another stop, by what is configured by then.
fn a_shorter_stop_for_an_unready_one() -> Checked {
    let silent = Script { notifies: None, gentle: Reaction::Ignores, ..Script::tame() };
    let mut spec = spec(2, "QUIT/3s/TERM/3s/INT/3s/KILL");
    (spec.main.ready, spec.traits.notifies) = (Ready::Notify, true);
    let mut world = World::new(spec, Choices::replay(Vec::new()), None, false);
    world.scripts.extend([silent, Script::tame()]);
    world.pass(6_000)?;
    world.configure(|settings| settings.tuning.stop = "KILL".parse().unwrap());
    world.reread();
    world.pass(20_000)?;
    world.calm_down()
}

fn rolling(workers: u32, surge: Surge) -> World {
    let mut spec = spec(workers, "TERM/9s/KILL");
    spec.main.surge = surge;
    World::new(spec, Choices::replay(Vec::new()), None, false)
}

/// The check held that a share had been ready for long enough which was judged, with main late, after it was changed.
fn another_share_before_it_was_judged() -> Checked {
    let mut world = rolling(6, Surge::Percent(50));
    world.pass(1_500)?;
    world.signal_main(main_state::Event::Reload);
    world.pass(500)?;
    world.kill_monitor(0)?;
    world.pass(1)?;
    world.pause(Node::Main, Time::from_secs(3));
    world.signal_main(main_state::Event::Scale(None, Change::To(8)));
    world.pass(10_000)?;
    world.calm_down()?;
    hold(world.main.state.ready() == 8, 7, || format!("{} workers are ready", world.main.state.ready()))
}

/// The same with a first share that became smaller: it was said to start for ever.
fn a_share_that_shrinks_before_it_was_judged() -> Checked {
    let mut world = rolling(6, Surge::Percent(50));
    world.pass(4_000)?;
    world.signal_main(main_state::Event::Reload);
    world.pass(500)?;
    world.pause(Node::Main, Time::from_secs(3));
    world.signal_main(main_state::Event::Scale(None, Change::To(8)));
    world.pass(3_100)?;
    world.signal_main(main_state::Event::Scale(None, Change::To(1)));
    world.pass(10_000)?;
    world.calm_down()?;
    hold(world.main.state.ready() == 1, 7, || format!("{} workers are ready", world.main.state.ready()))
}

/// The check went on to rely on workers that had been given up.
fn a_proven_share_that_shrinks() -> Checked {
    let mut world = rolling(4, Surge::Percent(50));
    let slow = Script { exec: Exec::Runs(Time::from_secs(3)), ..Script::tame() };
    world.scripts.extend([Script::tame(), Script::tame(), Script::tame(), Script::tame()]);
    world.scripts.extend([Script::tame(), Script::tame(), slow.clone(), slow]);
    world.pass(1_100)?;
    world.signal_main(main_state::Event::Reload);
    world.pass(1_300)?;
    world.kill_monitor(0)?;
    world.pass(20)?;
    for workers in [1, 5] {
        world.signal_main(main_state::Event::Scale(None, Change::To(workers)));
    }
    world.pass(10_000)?;
    world.calm_down()?;
    hold(world.main.state.ready() == 5, 7, || format!("{} workers are ready", world.main.state.ready()))
}

/// It counted as one that cannot be seen only after a second, and each release was rejected before that.
fn hidden_within_a_short_time() -> Checked {
    let mut spec = spec(2, "TERM/9s/KILL");
    (spec.main.ready, spec.has_listener, spec.traits.hidden) = (Ready::Auto, true, true);
    spec.main.tuning.ready_timeout = Time::from_millis(500);
    let mut world = World::new(spec, Choices::replay(Vec::new()), None, false);
    world.pass(10_000)?;
    world.signal_main(main_state::Event::Reload);
    world.calm_down()?;
    let serving = world.main.check.serving().map(|monitor| monitor.generation);
    hold(serving == Some(2), 7, || format!("generation {serving:?} serves"))
}
