//! How generations begin: in which order, with how many workers, and by which measure they are ready.

use std::collections::{BTreeMap, BTreeSet};

use panzer::config::{Ready, Schedule};
use panzer::control::monitor::messages::Urgency;
use panzer::main_process::decide::{Event, Monitor};

use crate::check::{Checked, StopTimes, hold};
use crate::check_main::{MainCheck, Orphans, PLANNING_TIMEOUT, Starting, Watched};
use crate::kernel::Time;

impl MainCheck {
    pub(crate) fn check_trial(&mut self, now: Time, monitor: Monitor, workers: u32, notify: bool) -> Checked {
        hold(!self.is_stopping(), 6, || format!("{monitor:?} is started after a stop"))?;
        let planned = self.starting.is_some_and(|starting| starting.monitor == monitor && !starting.begun);
        hold(planned, 2, || format!("{monitor:?} is started beside {:?}", self.starting))?;
        let retires = self.starting.map_or(Urgency::Graceful, |starting| starting.retires);
        let due = now + self.longest_start(monitor.generation, self.count.next());
        let rolls = workers < self.count.next();
        self.starting = Some(Starting {
            monitor,
            begun: true,
            since: now,
            due,
            failed: false,
            rolls,
            proven: 0,
            room_due: None,
            retires,
        });
        self.add(monitor, workers, true, BTreeMap::new())?;
        self.check_notify(monitor, notify)
    }

    /// A new generation begins with this.
    pub(crate) fn check_plan(&mut self, now: Time, generation: u32) -> Checked {
        let monitor = Monitor { generation, life: 1 };
        hold(!self.is_stopping(), 6, || format!("generation {generation} is planned after a stop"))?;
        hold(self.starting.is_none(), 2, || format!("generation {generation} is planned beside {:?}", self.starting))?;
        hold(generation == self.last_generation + 1, 7, || format!("generation {generation} has a wrong number"))?;
        let mut retires = Urgency::Graceful;
        if self.trials_due > 0 {
            self.trials_due -= 1;
            retires = self.next_retires;
        } else {
            hold(self.renewal.is_needed(), 7, || format!("nobody asked for generation {generation}"))?;
            self.tally.renewals += 1;
            self.renewal.started(now, self.wanted.current().tuning.pace)?;
        }
        self.last_generation = generation;
        self.starting = Some(Starting {
            monitor,
            begun: false,
            since: now,
            due: now + PLANNING_TIMEOUT,
            failed: false,
            rolls: false,
            proven: 0,
            room_due: None,
            retires,
        });
        Ok(())
    }

    pub(crate) fn check_start(
        &mut self,
        now: Time,
        event: &Event,
        monitor: Monitor,
        (workers, ended): (u32, &BTreeMap<u32, u8>),
        notify: bool,
    ) -> Checked {
        hold(!self.is_stopping(), 6, || format!("{monitor:?} is started after a stop"))?;
        match self.serving {
            None => hold(*event == Event::Start, 7, || format!("{monitor:?} is started at {event:?}"))?,
            Some(last) => {
                self.tally.monitor_restarts += 1;
                let ended = self.monitors.get(&last).is_some_and(|watched| watched.ended);
                let next = Monitor { life: last.life + 1, ..last };
                hold(ended && monitor == next, 4, || format!("{monitor:?} is started in place of {last:?}"))?;
            }
        }
        self.restarts.started(now)?;
        self.serving = Some(monitor);
        self.add(monitor, workers, false, ended.clone())?;
        self.check_notify(monitor, notify)
    }

    pub(crate) fn add(
        &mut self,
        monitor: Monitor,
        workers: u32,
        trial: bool,
        ended_for_good: BTreeMap<u32, u8>,
    ) -> Checked {
        let expected = self.last_generation + u32::from(monitor.life == 1 && !trial);
        hold(monitor.life > 1 || monitor.generation == expected, 7, || format!("{monitor:?} has a wrong number"))?;
        self.last_generation = self.last_generation.max(monitor.generation);
        let new = Watched {
            trial,
            workers,
            retiring: 0,
            leaving: 0,
            ready: BTreeSet::new(),
            seen: BTreeSet::new(),
            whole_since: None,
            bake: Time::ZERO,
            halted: BTreeSet::new(),
            ended_for_good,
            committed: false,
            proven: false,
            ordered: StopTimes::default(),
            extended: false,
            patient: false,
            by_retire: false,
            hurried: false,
            holds_recycling: false,
            killed: false,
            ended: false,
            orphans: Orphans::None,
            orphans_stop: StopTimes::default(),
            orphans_schedule: Schedule::kill(),
            orphans_killed: false,
        };
        let known = self.monitors.insert(monitor, new).is_some();
        hold(!known, 4, || format!("{monitor:?} is started twice"))
    }

    pub(crate) fn check_notify(&self, monitor: Monitor, notify: bool) -> Checked {
        let told = self.serving.and_then(|serving| self.told.get(&serving.generation)).map_or(0, BTreeSet::len);
        let serving = self.is_all(told);
        let must = match self.wanted.of(monitor.generation).ready {
            Ready::Notify => true,
            Ready::Accept | Ready::Exec | Ready::Alive => false,
            Ready::Auto => serving,
        };
        hold(notify == must, 1, || format!("{monitor:?} is ready by the wrong measure"))
    }

    /// Of so many slots of the serving generation a worker has listened on a shared port.
    pub(crate) fn listening(&self) -> usize {
        self.serving.and_then(|serving| self.listening.get(&serving.generation)).map_or(0, BTreeSet::len)
    }

    /// Whether those are all.
    pub(crate) fn all_listen(&self) -> bool {
        self.is_all(self.listening())
    }

    /// What the serving generation listens on, the next one must accept on, also where not all have come so far.
    pub(crate) fn check_accept(&mut self, now: Time, monitor: Monitor, (accept, trial): (bool, bool)) -> Checked {
        let listening = self.listening();
        let is_young = |generation: u32| {
            let ready_timeout = self.wanted.of(generation).tuning.ready_timeout;
            self.grown.get(&generation).is_some_and(|grown| now < *grown + ready_timeout)
        };
        let young = self.serving.is_some_and(|serving| is_young(serving.generation));
        let some = trial && young && listening > 0 && self.is_all(usize::MAX);
        let must = self.wanted.of(monitor.generation).ready.looks_where_it_can() && (some || self.all_listen());
        self.tally.half_listening += u64::from(must && !self.all_listen());
        hold(accept == must, 1, || format!("{monitor:?} must accept: {accept}, and {listening} workers listen"))
    }
}
