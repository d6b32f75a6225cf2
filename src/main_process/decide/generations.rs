//! Main's state, and what changes it: pure, with no clock, no IO and no pids.
//!
//! At most one generation is starting. The serving one is untouched until the new one is ready.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::backoff::Random;
use crate::config::Ready;
use crate::control::monitor::messages::{Order, Urgency};
use crate::worker::cause::Cause;

use super::generation::{FallBack, Generation, Life, Phase};
use super::renewal::Renewal;
use super::retired::{Draining, GRACE, Orphans};
use super::vocabulary::{Action, Event, Monitor, Note, Overview, Progress, Settings, Standing, Verdict};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stopping {
    urgency: Urgency,
    code: u8,
}

/// All generations. The document of a restart in place has all of it, so that the next main goes on as if nothing had
/// happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generations {
    pub(super) wanted: Wanted,
    pub(super) last_number: u32,
    pub(super) serving: Option<Generation>,
    #[serde(with = "crate::carry::moment::optional_pair")]
    pub(super) starting: Option<(Generation, Instant)>,
    /// The generation that failed in a reload with `--surge`, until its workers are no longer needed.
    pub(super) falling_back: Option<FallBack>,
    #[serde(with = "crate::carry::pairs")]
    pub(super) draining: BTreeMap<Monitor, Draining>,
    #[serde(with = "crate::carry::pairs")]
    pub(super) orphans: BTreeMap<Monitor, Orphans>,
    /// A reload that follows the present one, and how it is to stop the old generation.
    pub(super) reload_queued: Option<Urgency>,
    pub(super) renewal: Renewal,
    pub(super) has_run: bool,
    pub(super) logged: Logged,
    pub(super) stopping: Option<Stopping>,
    pub(super) exited: bool,
    pub(super) random: Random,
}

/// The settings for the next generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// The settings of the newest generation that ever served, with all later changes. The settings of a failed
    /// generation are not taken over.
    pub(super) settings: Settings,
    /// Number of workers in the configuration. [`Event::Scale`] changes the number that runs until this number changes.
    pub(super) configured: u32,
    /// Whether workers were added that have not all been ready together yet.
    pub(super) filling_up: bool,
}

/// Messages that are logged once.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Logged {
    /// Workers cannot be seen accepting.
    pub(super) unseeable: bool,
    /// Workers bypass their listener. True if they listen elsewhere.
    pub(super) bypass: Option<bool>,
    /// The newest generation whose bake was logged. The bake begins again with each worker that turns out to listen.
    #[serde(default)]
    pub(super) baking: u32,
}

impl Generations {
    /// No generation yet. [`Event::Start`] begins the first.
    pub fn new(settings: Settings) -> Generations {
        Generations {
            wanted: Wanted { configured: settings.workers, filling_up: false, settings: settings.clone() },
            last_number: 0,
            serving: None,
            starting: None,
            falling_back: None,
            draining: BTreeMap::new(),
            orphans: BTreeMap::new(),
            reload_queued: None,
            renewal: Renewal::default(),
            has_run: false,
            logged: Logged::default(),
            stopping: None,
            exited: false,
            random: Random::new(settings.seed),
        }
    }

    /// The only method that changes the state. Also does everything that is due by `now`.
    #[must_use]
    pub fn on(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        let is_turn_over = matches!(event, Event::Wake);
        match event {
            Event::Start => self.start_first(now, &mut actions),
            Event::Reload => self.reload(Urgency::Graceful, now, &mut actions),
            Event::ReloadRetiring(urgency) => self.reload(urgency, now, &mut actions),
            Event::ReloadFor(request) => self.reload_for(request, now, &mut actions),
            Event::Planned(generation, settings) => self.on_planned(generation, settings, now, &mut actions),
            Event::Preparing(generation, time) => self.on_preparing(generation, time, now),
            Event::NotPlanned(generation, cause) => self.on_not_planned(generation, cause, now, &mut actions),
            Event::Reread(workers, tuning) => self.on_reread(workers, tuning, now, &mut actions),
            Event::Scale(request, change) => self.scale(request, change, now, &mut actions),
            Event::Rebound => self.on_rebound(now, &mut actions),
            Event::EscalateDraining(generation) => self.escalate_draining(generation, now, &mut actions),
            Event::Stop(urgency) => self.stop(urgency, 0, now, &mut actions),
            Event::StopThenNow if self.stopping.is_some() => self.stop(Urgency::Quick, 0, now, &mut actions),
            Event::StopThenNow => self.stop(Urgency::Graceful, 0, now, &mut actions),
            Event::Reported(monitor, report) => self.on_report(monitor, report, now, &mut actions),
            Event::NotStarted(monitor, cause) => self.on_monitor_ended(monitor, cause, false, now, &mut actions),
            Event::Ended(monitor, cause, orphans) => self.on_monitor_ended(monitor, cause, orphans, now, &mut actions),
            Event::OrphansJoined(monitor) => self.on_orphans_joined(monitor, now, &mut actions),
            Event::OrphansGone(monitor) => self.on_orphans_gone(monitor, &mut actions),
            Event::Wake => {}
        }
        self.do_what_is_due(now, is_turn_over, &mut actions);
        self.hold_recycling(&mut actions);
        self.note_full();
        self.exit_if_done(&mut actions);
        actions
    }

    /// When to wake main if nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        let baking = |generation: &Generation| match generation.phase {
            Phase::Baking { until } => Some(until),
            Phase::Planning | Phase::Filling | Phase::Rolling | Phase::Proven => None,
        };
        let serving = self.serving.iter().flat_map(|serving| {
            let restart = match serving.monitor {
                Life::Waiting { until, .. } => Some(until),
                Life::None | Life::Running { .. } => None,
            };
            [baking(serving), restart]
        });
        let starting = self.starting.iter().map(|(starting, deadline)| {
            let baked =
                baking(starting).map(|until| starting.shown.suspended.first().map_or(until, |_| until.max(*deadline)));
            baked.or(Some(*deadline))
        });
        let draining = self.draining.values().map(|draining| draining.kill_at);
        let orphans = self.orphans.values().map(Orphans::deadline);
        let renewal = self.renewal.due().filter(|_| self.may_renew());
        let back = self.fall_back_due();
        serving.chain(starting).chain(draining).chain(orphans).chain([renewal, back]).flatten().min()
    }

    /// Every generation that has a monitor or waits for one, with its part.
    pub fn standings(&self) -> Vec<(Standing, u32, Option<Monitor>)> {
        let living = |standing, generation: &Generation| (standing, generation.number, generation.monitor());
        let draining = self.draining.keys().map(|&monitor| (Standing::Draining, monitor.generation, Some(monitor)));
        let serving = self.serving.iter().map(|serving| living(Standing::Serving, serving));
        let starting = self.starting.iter().map(|(starting, _)| living(Standing::Starting, starting));
        let back = self.falling_back.iter().map(|back| living(Standing::Draining, &back.failed));
        draining.chain(back).chain(serving).chain(starting).collect()
    }

    /// The number of the serving generation.
    pub fn serving(&self) -> Option<u32> {
        self.serving.as_ref().map(|serving| serving.number)
    }

    /// The state in numbers.
    pub fn overview(&self) -> Overview {
        Overview {
            serving: self.serving.as_ref().map(Generation::progress),
            starting: self.progress(),
            begun: self.last_number,
            serves: self.serving.as_ref().is_some_and(|serving| matches!(serving.phase, Phase::Proven)),
            stopping: self.is_stopping(),
            leaving: false,
            busy_until: self.busy_until(),
        }
    }

    /// When the stop, the reload, or the first attempt of the first start is over at the latest.
    fn busy_until(&self) -> Option<Instant> {
        if self.is_stopping() {
            let draining = self.draining.values().filter_map(|draining| draining.kill_at);
            return draining.chain(self.orphans.values().filter_map(Orphans::deadline)).max().map(|end| end + GRACE);
        }
        let end = |generation: &Generation, due: Instant| match generation.phase {
            Phase::Baking { until } if generation.shown.suspended.is_empty() => until,
            _ => due + generation.settings.tuning.bake,
        };
        let first = self.serving.as_ref().filter(|serving| !matches!(serving.phase, Phase::Proven));
        let first = first.map(|first| {
            end(first, (first.begun + first.longest_start()).max(first.extended_to.unwrap_or(first.begun)))
        });
        self.starting.as_ref().map(|(starting, due)| end(starting, *due)).or(first)
    }

    /// Whether everything is being stopped.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// Progress of the generation that is starting.
    pub fn progress(&self) -> Option<Progress> {
        self.starting.as_ref().map(|(starting, _)| starting.progress())
    }

    /// Number of ready workers of the serving generation.
    pub fn ready(&self) -> u32 {
        self.serving.as_ref().map_or(0, |serving| serving.shown.ready.len() as u32)
    }

    /// All slots of the serving generation have numbers below this.
    pub fn slots(&self) -> u32 {
        self.serving.as_ref().map_or(0, |serving| serving.counts.slots)
    }

    /// Slots of the serving generation whose worker has ended for good.
    pub fn slots_at_end(&self) -> impl Iterator<Item = u32> {
        self.serving.iter().flat_map(|serving| serving.shown.ended.keys().copied())
    }

    /// Number of workers that are wanted now.
    pub fn workers(&self) -> u32 {
        let goal = self.starting.as_ref().and_then(|(starting, _)| starting.roll).map(|roll| roll.goal);
        let goal = goal.or(self.falling_back.as_ref().map(|back| back.goal));
        let serving = self.serving.as_ref().map(|serving| serving.settings.workers);
        goal.or(serving).unwrap_or(self.wanted.settings.workers)
    }

    fn start_first(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.last_number == 0 {
            self.last_number = 1;
            let mut first =
                Generation::new(self.last_number, self.wanted.configured, self.wanted.settings.clone(), now);
            self.begin(&mut first, false, now, actions);
            self.serving = Some(first);
        }
    }

    /// Whether the workers of the next generation are ready only when they have notified.
    fn must_notify(&self, ready: Ready) -> bool {
        match ready {
            Ready::Notify => true,
            Ready::Accept | Ready::Exec | Ready::Alive => false,
            Ready::Auto => self.serving.as_ref().is_some_and(Generation::all_notified),
        }
    }

    /// Whether the workers of the next generation must be seen accepting on a shared port, as those of the serving
    /// generation are. This is also so while workers of the serving generation may be about to listen: otherwise a
    /// generation could replace it in which nobody listens yet.
    fn must_accept(&self, ready: Ready, now: Instant) -> bool {
        ready.looks_where_it_can() && self.serving.as_ref().is_some_and(|serving| serving.may_listen(now))
    }

    /// Starts its first monitor.
    pub(super) fn begin(&self, next: &mut Generation, trial: bool, now: Instant, actions: &mut Vec<Action>) {
        let ready = next.settings.ready;
        let monitor = Monitor { generation: next.number, life: 1 };
        next.accept = self.must_accept(ready, now);
        next.monitor = Life::Running { life: monitor.life, since: now };
        next.phase = Phase::Filling;
        next.grown = now;
        let (workers, notify, accept) = (next.settings.workers, self.must_notify(ready), next.accept);
        let ended = BTreeMap::new();
        actions.push(Action::StartMonitor { monitor, workers, ended, trial, notify, accept });
    }

    pub(super) fn drain(
        &mut self,
        old: Generation,
        served: bool,
        urgency: Urgency,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Some(monitor) = old.monitor() else {
            if !old.is_planned() {
                actions.push(Action::GiveUpPlan(old.number));
            }
            self.release_if_gone(old.number, actions);
            return;
        };
        actions.push(Action::Order(monitor, Order::Stop(urgency)));
        self.draining.insert(monitor, Draining::begin(old.settings.tuning, served, urgency, now));
        self.escalate_those_beyond_limit(now, actions);
    }

    /// During a reload the serving generation replaces no workers one by one. Monitors of builds that never do so are
    /// not told.
    fn hold_recycling(&mut self, actions: &mut Vec<Action>) {
        let reloads = self.starting.is_some() || self.falling_back.is_some();
        let Some(serving) = &mut self.serving else { return };
        let holds = reloads && serving.settings.tuning.recycling.is_on();
        if let Some(monitor) = serving.monitor().filter(|_| serving.holds_recycling != holds) {
            serving.holds_recycling = holds;
            actions.push(Action::Order(monitor, Order::HoldRecycling(holds)));
        }
    }

    /// How to stop a generation that was not told to stop.
    pub(super) fn urgency(&self) -> Urgency {
        self.stopping.as_ref().map_or(Urgency::Graceful, |stopping| stopping.urgency)
    }

    pub(super) fn stop(&mut self, urgency: Urgency, code: u8, now: Instant, actions: &mut Vec<Action>) {
        if self.stopping.as_ref().is_some_and(|stopping| stopping.urgency >= urgency) {
            return;
        }
        if code == 0 {
            actions.push(Action::Note(Note::Stopping(urgency)));
        }
        match &mut self.stopping {
            Some(stopping) => stopping.urgency = urgency,
            None => {
                actions.push(Action::CloseListeners);
                self.stopping = Some(Stopping { urgency, code });
            }
        }
        if self.reload_queued.take().is_some() {
            actions.push(Action::Verdict(self.last_number + 1, Verdict::Stopped));
        }
        self.renewal = Renewal::default();
        let starting = self.starting.take().map(|(starting, _)| starting);
        if let Some(starting) = &starting {
            actions.push(Action::Verdict(starting.number, Verdict::Stopped));
        }
        let back = self.falling_back.take().map(|back| back.failed);
        for generation in self.serving.take().into_iter().chain(starting).chain(back) {
            self.drain(generation, false, urgency, now, actions);
        }
        self.escalate(urgency, now, actions);
    }

    /// Draining generations follow the schedule of the stop from now on, if that is more urgent.
    fn escalate(&mut self, urgency: Urgency, now: Instant, actions: &mut Vec<Action>) {
        for (monitor, draining) in &mut self.draining {
            actions.extend(draining.escalate(*monitor, urgency, now));
        }
        self.orphans.values_mut().for_each(|orphans| orphans.escalate(urgency, now));
    }

    fn on_monitor_ended(
        &mut self,
        monitor: Monitor,
        cause: Cause,
        orphans: bool,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let draining = self.draining.remove(&monitor);
        let is = |generation: &Generation| generation.monitor() == Some(monitor);
        let was_starting = self.starting.as_ref().is_some_and(|(starting, _)| is(starting));
        let was_serving = self.serving.as_ref().is_some_and(is);
        let was_back = self.falling_back.as_ref().is_some_and(|back| is(&back.failed));
        if draining.is_none() && !was_starting && !was_serving && !was_back {
            return;
        }
        if orphans {
            self.adopt(monitor, draining.as_ref(), now, actions);
        }
        if let Some(drained) = draining {
            if drained.served && !orphans {
                let took = now.saturating_duration_since(drained.since);
                actions.push(Action::Note(Note::Drained(monitor.generation, took)));
            }
            self.release_if_gone(monitor.generation, actions);
        } else if was_serving {
            self.on_serving_ended(cause, now, actions);
            self.go_on_rolling(now, actions);
        } else if was_back {
            if let Some(back) = &mut self.falling_back {
                back.failed.lose_monitor(now, now);
            }
            self.end_fall_back(now, actions);
        } else {
            if let Some((starting, _)) = &mut self.starting {
                // There is no monitor to send a stop to.
                starting.monitor = Life::Waiting { life: monitor.life, until: now };
            }
            self.reject(None, Cause::CannotStart(format!("its monitor {cause}")), now, actions);
        }
    }

    fn on_serving_ended(&mut self, cause: Cause, now: Instant, actions: &mut Vec<Action>) {
        let random = self.random.draw();
        let Some(serving) = &mut self.serving else { return };
        let pace = serving.settings.tuning.pace;
        let Life::Running { since, .. } = serving.monitor else { return };
        let delay = serving.backoff.after(now.saturating_duration_since(since), false, pace, random);
        actions.push(Action::Note(Note::MonitorDied(serving.number, cause, delay)));
        serving.lose_monitor(now + delay, now);
    }

    pub(super) fn release_if_gone(&self, generation: u32, actions: &mut Vec<Action>) {
        let lives = self.standings().iter().any(|(_, number, _)| *number == generation);
        let orphaned = self.orphans.keys().any(|monitor| monitor.generation == generation);
        if !lives && !orphaned {
            actions.push(Action::Release(generation));
        }
    }

    fn do_what_is_due(&mut self, now: Instant, is_turn_over: bool, actions: &mut Vec<Action>) {
        self.judge_starting(now, actions);
        self.fall_back(now, actions);
        if self.may_renew() && self.renewal.due().is_some_and(|due| due <= now) {
            self.reload(Urgency::Graceful, now, actions);
        }
        self.end_if_finished(now, actions);
        self.do_what_serving_is_due(now, actions);
        for (monitor, draining) in &mut self.draining {
            if draining.kill_at.is_some_and(|kill_at| kill_at <= now) {
                draining.kill_at = None;
                actions.push(Action::Note(Note::MonitorStuck(monitor.generation)));
                actions.push(Action::KillMonitor(*monitor));
            }
        }
        self.signal_orphans_due(now, is_turn_over, actions);
    }

    fn do_what_serving_is_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some(serving) = &mut self.serving else { return };
        if let Phase::Baking { until } = serving.phase
            && until <= now
        {
            serving.phase = Phase::Proven;
            actions.push(Action::Note(Note::Serving(
                serving.number,
                serving.settings.workers.saturating_sub(serving.shown.ended.len() as u32),
                now.saturating_duration_since(serving.begun),
            )));
        }
        if let Life::Waiting { life, until } = serving.monitor
            && until <= now
        {
            let ready = serving.settings.ready;
            let monitor = Monitor { generation: serving.number, life: life + 1 };
            serving.monitor = Life::Running { life: monitor.life, since: now };
            serving.grown = now;
            let (workers, ended) = (serving.settings.workers, serving.shown.ended.clone());
            // A generation that has notified, or listened, goes on to do so after its monitor is replaced.
            let accept = ready.looks_where_it_can() && serving.all_listen();
            let notify = self.must_notify(ready);
            actions.push(Action::StartMonitor { monitor, workers, ended, trial: false, notify, accept });
        }
    }

    fn exit_if_done(&mut self, actions: &mut Vec<Action>) {
        let Some(stopping) = &self.stopping else { return };
        if self.draining.is_empty() && self.orphans.is_empty() && !self.exited {
            self.exited = true;
            if self.has_run {
                actions.push(Action::Note(Note::Stopped));
            }
            actions.push(Action::Exit(stopping.code));
        }
    }
}
