//! Any event in any state, at any time: nothing panics, and no loop would be woken for ever.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use panzer::config::Tuning;
use panzer::control::monitor::messages::{Order, Report, Urgency, Which};
use panzer::main_process::decide::{self as main_state, Change, Generations, Monitor};
use panzer::monitor::decide::{self as monitor_state, Slots, Watch, Worker};
use panzer::readiness::watch::{Bypass, Hidden, Sight};
use panzer::worker::cause::Cause;

use crate::choices::Choices;
use crate::configuration;
use crate::history::draw_spec;
use crate::world::Spec;

const SEQUENCES: u64 = 10_000;
const LENGTH: u64 = 60;

/// So many steps without a wait a schedule may have, and so many slots may be at it.
const MOST_WAKES: u32 = 100;

#[test]
fn no_pair_of_state_and_event_panics() {
    for seed in 0..SEQUENCES {
        // Far from the seeds of the histories.
        let mut choices = Choices::from_seed(seed + (1 << 40));
        let spec = draw_spec(&mut choices);
        fuzz_main(&mut choices, &spec, seed);
        fuzz_monitor(&mut choices, &spec, seed);
    }
}

fn fuzz_main(choices: &mut Choices, spec: &Spec, seed: u64) {
    let mut state = Generations::new(spec.main.clone());
    let other = configuration::draw(choices, spec.main.ready);
    let mut now = Instant::now();
    for _ in 0..LENGTH {
        now += draw_time(choices);
        let event = draw_main_event(choices, &other);
        let told = format!("{event:?}");
        let _ = state.on(now, event);
        let mut wakes = 0;
        while state.deadline().is_some_and(|deadline| deadline <= now) {
            let _ = state.on(now, main_state::Event::Wake);
            wakes += 1;
            assert!(wakes < MOST_WAKES, "seed {seed}: main never sleeps after {told}");
        }
        let _ = (state.standings(), state.is_stopping(), state.is_ready(), state.progress());
    }
}

fn fuzz_monitor(choices: &mut Choices, spec: &Spec, seed: u64) {
    let mut now = Instant::now();
    let mut state = Slots::new(draw_settings(choices, spec), now);
    let other = configuration::draw(choices, spec.main.ready).tuning;
    for _ in 0..LENGTH {
        now += draw_time(choices);
        let event = draw_monitor_event(choices, &other);
        let told = format!("{event:?}");
        let _ = state.on(now, event);
        let mut wakes = 0;
        while state.deadline().is_some_and(|deadline| deadline <= now) {
            let _ = state.on(now, monitor_state::Event::Wake);
            wakes += 1;
            assert!(wakes < MOST_WAKES, "seed {seed}: a monitor never sleeps after {told}");
        }
        let _: Vec<_> = (0..state.count()).map(|slot| state.view(slot)).collect();
    }
}

fn draw_settings(choices: &mut Choices, spec: &Spec) -> monitor_state::Settings {
    monitor_state::Settings {
        workers: spec.main.workers,
        notify: choices.below(2) == 1,
        watch: choices.among(&[Watch::No, Watch::IfSeeable, Watch::IfItListens, Watch::Always]),
        probe: choices.below(3) == 0,
        has_listener: choices.below(2) == 1,
        preload: choices.below(2) == 1,
        refork: panzer::config::Refork::default(),
        watchdog: choices.among(&[None, Some(Duration::from_millis(300))]),
        tuning: spec.main.tuning.clone(),
        ended: choices.among(&[BTreeSet::new(), BTreeSet::from([0, 3])]),
        trial: choices.below(2) == 1,
        seed: choices.below(1_000),
    }
}

fn draw_time(choices: &mut Choices) -> Duration {
    choices.millis(&[0, 0, 1, 100, 1_000, 10_000, 100_000])
}

fn draw_cause(choices: &mut Choices) -> Cause {
    choices.among(&[
        Cause::Exited(1),
        Cause::Exited(0),
        Cause::Killed(9, false),
        Cause::NotFound(String::new()),
        Cause::CannotExecute(String::new()),
        Cause::CannotStart(String::new()),
    ])
}

fn draw_main_event(choices: &mut Choices, other: &main_state::Settings) -> main_state::Event {
    use main_state::Event;
    let monitor = Monitor { generation: choices.below(5) as u32, life: choices.below(4) as u32 };
    let cause = draw_cause(choices);
    match choices.below(21) {
        20 => Event::Preparing(choices.below(5) as u32, Duration::from_secs(choices.below(60))),
        18 => Event::Planned(choices.below(5) as u32, other.clone()),
        19 => Event::Reread(1 + choices.below(6) as u32, other.tuning.clone()),
        16 => {
            Event::Scale(None, choices.among(&[Change::To(3), Change::By(-1), Change::WithoutOldest, Change::ToNone]))
        }
        17 => Event::NotPlanned(choices.below(5) as u32, cause),
        0..=1 => Event::Start,
        2 if choices.below(2) == 1 => {
            Event::ReloadRetiring(choices.among(&[Urgency::Patient, Urgency::Graceful, Urgency::Quick]))
        }
        2 => Event::Reload,
        3 => Event::ReloadFor(choices.below(3)),
        15 => Event::Rebound,
        4 if choices.one_in(8) => Event::Stop(choices.among(&[Urgency::Graceful, Urgency::Quick])),
        5 if choices.one_in(8) => Event::StopThenNow,
        6..=11 => Event::Reported(monitor, draw_report(choices, cause)),
        12 => Event::NotStarted(monitor, cause),
        13 => Event::Ended(monitor, cause, choices.below(2) == 1),
        14 => Event::OrphansGone(monitor),
        _ => Event::Wake,
    }
}

fn draw_report(choices: &mut Choices, cause: Cause) -> Report {
    let slot = choices.among(&[0, 1, 2, 3, 4, 5, u32::MAX]);
    match choices.below(20) {
        19 => Report::MoldFailed(cause),
        18 => Report::Extends { slot, by: choices.among(&[Duration::ZERO, Duration::MAX]) },
        17 => Report::Bypasses { slot, own: choices.among(&[Vec::new(), vec![String::new()]]) },
        14 => Report::Retired { slot, empty: choices.below(2) == 1 },
        15 => Report::Gone { slot },
        16 => Report::EndedForGood { slot, code: choices.among(&[0, 1, 255]) },
        0..=6 => Report::Ready { slot, notified: choices.below(2) == 1, seen: choices.below(2) == 1 },
        7..=8 => Report::Died { slot, cause },
        9 => Report::CannotBegin(cause),
        10 => Report::Executed,
        11 => Report::Listens { slot, withdrawn: choices.below(2) == 1 },
        12 => Report::Unseeable { slot, why: String::new() },
        _ => choices.among(&[Report::StatusEnd, Report::GaveUp]),
    }
}

fn draw_sight(choices: &mut Choices) -> Sight {
    let hidden = [Sight::NotYet(Some(Hidden::ByRights)), Sight::Unseeable(Hidden::ByIoUring)];
    choices.among(&[Sight::NotYet(None), Sight::Accepting, hidden[0], hidden[1]])
}

fn draw_monitor_event(choices: &mut Choices, other: &Tuning) -> monitor_state::Event {
    use monitor_state::Event;
    let slot = choices.among(&[0, 1, 2, 3, 4, 5, u32::MAX]);
    let worker = Worker { slot, life: choices.below(6) as u32 };
    match choices.below(41) {
        38 => Event::Lives(worker),
        39 => Event::IsBroken(worker),
        40 => Event::WatchedEvery(worker, choices.among(&[Duration::ZERO, Duration::MAX, Duration::from_millis(1)])),
        35 => Event::Born(choices.below(8)),
        36 => choices.among(&[
            Event::MoldReady(true),
            Event::Willing(worker, true),
            Event::Unwilling(worker, String::new()),
        ]),
        37 => choices.among(&[
            Event::MoldFailed(String::new()),
            Event::MoldBroke(String::new()),
            Event::MoldClosed,
            Event::Unborn(1, String::new()),
        ]),
        0..=2 => Event::Start,
        3..=7 => Event::Executed(worker),
        8..=10 => Event::Notified(worker),
        11..=16 => Event::Ended(worker, draw_cause(choices)),
        17 => Event::LeftBehind(worker),
        18 => Event::GroupGone(worker),
        19 if choices.one_in(4) => Event::Ordered(Order::Stop(choices.among(&[
            Urgency::Patient,
            Urgency::Retiring,
            Urgency::Graceful,
            Urgency::Quick,
        ]))),
        20 if choices.one_in(4) => Event::MainGone,
        21 => Event::Ordered(Order::Commit),
        22 if choices.below(2) == 1 => Event::Ordered(Order::Scale {
            workers: choices.below(6) as u32,
            which: choices.among(&[Which::Last, Which::First, Which::Oldest]),
        }),
        22 if choices.below(2) == 1 => Event::Ordered(Order::Tune(Box::new(other.clone()))),
        22 => Event::Ordered(choices.among(&[Order::Status, Order::Signal { ticket: 1, number: 15, slot: None }])),
        23..=25 => Event::Listens(worker),
        26..=28 => Event::Seen(worker, draw_sight(choices)),
        30 => Event::Examined(
            worker,
            choices.among(&[
                None,
                Some(Bypass::default()),
                Some(Bypass { own: vec![String::new()], ran: Duration::MAX }),
            ]),
        ),
        31 => Event::Extends(worker, choices.among(&[Duration::from_secs(1), Duration::MAX])),
        34 => Event::Looked(choices.among(&[Duration::ZERO, Duration::from_millis(1), Duration::from_secs(3600)])),
        29 => Event::Probed(worker, choices.below(2) == 1),
        32 => Event::Suspended(worker, Signal::SIGTTOU),
        33 => Event::Continued(worker),
        _ => Event::Wake,
    }
}
