//! Limits: how much of the machine looks may use, and how many respawns may have no delay.

use std::time::{Duration, Instant};

/// After each look, no look begins for this many times as long as the look took.
const REST: u32 = 4;

/// The same after a look that is [`SHORT`]: a thousand of them are to be over while the workers are started.
const REST_WHEN_SHORT: u32 = 2;
const SHORT: Duration = Duration::from_millis(1);

/// The same after each look in a turn that has started as many workers as it may: the others come first, as a worker that
/// is not started yet cannot accept.
const REST_IN_A_RUSH: u32 = 16;

/// This much rest may be put off, so that several short looks follow each other without a pause.
const OWED_REST: Duration = Duration::from_millis(20);

/// Looks at workers. They take at most a quarter of one processor, or half of one while they are short, or a sixteenth
/// while others wait for their start, and some milliseconds at a time, whatever the number of workers and the time of a look. Everything else has its turn in between.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Looking {
    /// A look has begun, and its time is not known yet.
    under_way: bool,
    /// When the rest after all looks so far is over.
    rested: Option<Instant>,
}

impl Looking {
    /// Whether a look may begin now.
    pub(super) fn may_begin(&self, now: Instant) -> bool {
        !self.under_way && self.rested.is_none_or(|rested| rested <= now + OWED_REST)
    }

    pub(super) fn begin(&mut self) {
        self.under_way = true;
    }

    pub(super) fn looked(&mut self, took: Duration, is_rush: bool, now: Instant) {
        self.under_way = false;
        let rest = match took < SHORT {
            _ if is_rush => REST_IN_A_RUSH,
            true => REST_WHEN_SHORT,
            false => REST,
        };
        self.rested = Some(self.rested.map_or(now, |rested| rested.max(now)) + took * rest);
    }

    /// When a look can begin that is wanted at `wanted`. None while another one is under way.
    pub(super) fn earliest(&self, wanted: Instant) -> Option<Instant> {
        let rested = self.rested.and_then(|rested| rested.checked_sub(OWED_REST));
        (!self.under_way).then(|| rested.map_or(wanted, |rested| rested.max(wanted)))
    }
}

/// Within this time every slot may be respawned without a delay, on average.
const REFILL: Duration = Duration::from_secs(10);

/// With fewer slots the limit is as for this number.
const FEWEST: u32 = 100;

/// The respawns without a delay, of all slots together. If all workers die at the same moment, they are respawned at
/// once. If they go on dying, the limit is `FEWEST` or the number of slots, within [`REFILL`].
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct AtOnce {
    /// When the whole allowance is there again.
    full: Option<Instant>,
}

impl AtOnce {
    /// The time that another respawn has to wait.
    pub(super) fn wait(&mut self, slots: usize, now: Instant) -> Duration {
        let slots = u32::try_from(slots).unwrap_or(u32::MAX).max(FEWEST);
        let full = self.full.map_or(now, |full| full.max(now)) + REFILL / slots;
        self.full = Some(full);
        full.saturating_duration_since(now).saturating_sub(REFILL)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, VecDeque};

    use super::*;
    use crate::backoff::Pace;
    use crate::config::{FinalExits, Recycling, StartDelay, Tuning, Verbosity};
    use crate::monitor::decide::slots::Slots;
    use crate::monitor::decide::vocabulary::{Action, Event, Settings, Watch, Worker};
    use crate::readiness::watch::Sight;
    use crate::worker::cause::Cause;

    fn slots(workers: u32, now: Instant) -> Slots {
        let [delay, delay_max, healthy_after] = [1, 30, 10].map(Duration::from_secs);
        let tuning = Tuning {
            ready_timeout: Duration::from_secs(60),
            bake: Duration::from_secs(1),
            stop: "TERM/60s/KILL".parse().unwrap(),
            retire: None,
            pace: Pace { delay, delay_max, healthy_after },
            respawn_limit: None,
            final_exits: FinalExits::default(),
            start_delay: StartDelay::default(),
            recycling: Recycling::default(),
            verbosity: Verbosity::Quiet,
        };
        let (ended, watch) = (BTreeSet::new(), Watch::Always);
        Slots::new(
            Settings {
                workers,
                notify: false,
                watch,
                probe: false,
                has_listener: true,
                preload: false,
                refork: crate::config::Refork::default(),
                watchdog: None,
                tuning,
                ended,
                trial: false,
                seed: 1,
            },
            now,
        )
    }

    fn spawned(actions: &[Action]) -> impl Iterator<Item = Worker> {
        actions.iter().filter_map(|action| match action {
            Action::Spawn(worker) => Some(*worker),
            _ => None,
        })
    }

    /// All workers are started and run.
    fn begin(workers: u32, now: Instant) -> Slots {
        let mut slots = slots(workers, now);
        let mut actions = slots.on(now, Event::Start);
        let mut begun = Vec::new();
        while begun.len() < workers as usize {
            begun.extend(spawned(&actions));
            assert!(begun.len() == workers as usize || slots.deadline() == Some(now), "the rest is not forgotten");
            actions = slots.on(now, Event::Wake);
        }
        begun.into_iter().for_each(|worker| drop(slots.on(now, Event::Executed(worker))));
        slots
    }

    #[test]
    fn hundreds_that_die_at_once_are_respawned_a_few_in_each_turn_of_the_loop() {
        let begun = Instant::now();
        let mut slots = begin(500, begun);
        let now = begun + Duration::from_secs(20);
        let dead = (0..500).map(|slot| Event::Ended(Worker { slot, life: 1 }, Cause::Killed(9, false)));
        let (mut turn, mut all) = (0, 0);
        for event in dead.chain([Event::Wake]) {
            turn += spawned(&slots.on(now, event)).count();
        }
        assert!((1..=16).contains(&turn), "{turn} in the first turn");
        while slots.deadline() == Some(now) || turn > 0 {
            all += turn;
            turn = spawned(&slots.on(now, Event::Wake)).count();
            assert!(turn <= 8, "{turn} in one turn");
        }
        assert_eq!(all, 500);
    }

    #[test]
    fn looks_at_a_thousand_workers_leave_the_loop_its_turns() {
        let begun = Instant::now();
        let mut slots = begin(1000, begun);
        let (mut now, end) = (begun, begun + Duration::from_secs(10));
        let took = Duration::from_millis(1);
        let mut looked = vec![0; 1000];
        // A look was begun at the start.
        let mut events = vec![Event::Wake, Event::Looked(Duration::ZERO)];
        while now < end {
            let mut in_turn = 0;
            while let Some(event) = events.pop() {
                for action in slots.on(now, event) {
                    let (worker, shown) = match action {
                        Action::Look(worker) => (worker, Event::Seen(worker, Sight::NotYet(None))),
                        Action::Examine(worker) => (worker, Event::Examined(worker, None)),
                        _ => continue,
                    };
                    now += took;
                    in_turn += 1;
                    looked[worker.slot as usize] += 1;
                    events.extend([Event::Looked(took), shown]);
                }
            }
            assert!(in_turn <= 8, "{in_turn} looks before anything else has its turn");
            now = slots.deadline().unwrap().max(now);
            events.push(Event::Wake);
        }
        assert!(looked.iter().all(|looks| *looks > 0), "{looked:?}");
        assert!(looked.iter().sum::<u32>() <= 2510, "a quarter of 10 s");
    }

    #[test]
    fn all_may_be_respawned_at_once_but_not_for_ever() {
        let (mut at_once, begun) = (AtOnce::default(), Instant::now());
        assert!((0..1000).all(|_| at_once.wait(1000, begun).is_zero()));
        let waits: Vec<_> = (0..1000).map(|_| at_once.wait(1000, begun)).collect();
        assert!(waits.is_sorted() && !waits[0].is_zero());
        assert_eq!(waits[999], REFILL);
        assert!(at_once.wait(1000, begun + 3 * REFILL).is_zero());
    }

    #[test]
    fn looks_rest_as_long_as_their_time_and_a_rush_of_starts_demand() {
        let cases =
            [(30, false, 2.0), (1_000, false, 4.0), (40_000, false, 4.0), (30, true, 16.0), (1_000, true, 16.0)];
        for (took, is_rush, rest) in cases {
            let took = Duration::from_micros(took);
            let (mut looking, begun) = (Looking::default(), Instant::now());
            let (mut now, mut looked) = (begun, Duration::ZERO);
            while now < begun + Duration::from_secs(10) {
                now = looking.earliest(now).unwrap();
                assert!(looking.may_begin(now));
                looking.begin();
                assert!(!looking.may_begin(now));
                now += took;
                looked += took;
                looking.looked(took, is_rush, now);
            }
            let share = (now - begun).as_secs_f64() / looked.as_secs_f64();
            assert!((rest - 0.1..rest + 1.1).contains(&share), "{took:?}: every {share:.1} s one second");
        }
    }

    #[test]
    fn workers_that_are_not_started_yet_come_before_looks() {
        let begun = Instant::now();
        let (mut slots, mut now) = (slots(1000, begun), begun);
        let (mut started, mut looked) = (0, Duration::ZERO);
        let took = Duration::from_micros(100);
        let mut events = VecDeque::from([Event::Start]);
        while started < 1000 {
            let event = events.pop_front().unwrap_or(Event::Wake);
            for action in slots.on(now, event) {
                match action {
                    Action::Spawn(worker) => {
                        started += 1;
                        now += took;
                        events.push_back(Event::Executed(worker));
                    }
                    Action::Look(worker) => {
                        now += took;
                        looked += took;
                        events.extend([Event::Seen(worker, Sight::NotYet(None)), Event::Looked(took)]);
                    }
                    _ => {}
                }
            }
        }
        assert!(looked < (now - begun) / 8, "{looked:?} of {:?}", now - begun);
    }

    #[test]
    fn a_few_workers_that_are_killed_in_turns_never_wait() {
        let (mut at_once, begun) = (AtOnce::default(), Instant::now());
        let mut waits = (0..10_000).map(|kill| at_once.wait(8, begun + kill * Duration::from_millis(100)));
        assert!(waits.all(|wait| wait.is_zero()));
    }
}
