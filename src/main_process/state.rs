//! What main does, and when: pure, with no clock, no IO and no pids.
//!
//! At most one generation is starting, and the serving one is untouched until the new one is ready.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::backoff::Random;
use crate::config::{Escalation, Ready, Schedule};
use crate::control::messages::{Order, Report, Urgency};
use crate::worker::cause::Cause;

use super::draining::{Draining, GRACE, scheduled};
use super::generation::{Generation, Life, Phase};
use super::renewal::Renewal;
use super::rolling::FallBack;
pub use super::vocabulary::{
    Action, Change, Event, Monitor, Note, Overview, Progress, Rejected, Settings, Standing, Verdict,
};

/// To read a configuration takes milliseconds; one that takes this long is on a dead file system.
const LONGEST_PLANNING: Duration = Duration::from_secs(10);

/// What outlived its monitor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Orphans {
    stop: Schedule,
    escalation: Escalation,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stopping {
    urgency: Urgency,
    code: u8,
}

/// All generations. Written down and read back, as for another main, it goes on as if nothing had been.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generations {
    /// What the last generation began with that serves, or did, and what was changed since: what one that fails was to
    /// be is not among it.
    pub(super) settings: Settings,
    /// The count of workers that was configured for it. Another one is by [`Event::Scale`], and holds until this changes.
    pub(super) configured: u32,
    /// There are to be more workers than there were, and they have not all been ready together yet. (A build that does
    /// not know of it takes over nothing that is under way.)
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) filling_up: bool,
    pub(super) last_number: u32,
    pub(super) serving: Option<Generation>,
    #[serde(with = "crate::carry::moment::optional_pair")]
    pub(super) starting: Option<(Generation, Instant)>,
    /// What failed in a reload by shares, until its workers are no longer needed.
    pub(super) falling_back: Option<FallBack>,
    #[serde(with = "crate::carry::pairs")]
    pub(super) draining: BTreeMap<Monitor, Draining>,
    #[serde(with = "crate::carry::pairs")]
    pub(super) orphans: BTreeMap<Monitor, Orphans>,
    /// A reload is to follow, and will retire its predecessor so.
    pub(super) reload_queued: Option<Urgency>,
    pub(super) renewal: Renewal,
    pub(super) has_run: bool,
    pub(super) unseeable_told: bool,
    /// That workers bypass their listener has been told: true where they listen on others.
    pub(super) bypass_told: Option<bool>,
    pub(super) stopping: Option<Stopping>,
    pub(super) exited: bool,
    pub(super) random: Random,
}

impl Generations {
    /// None yet; [`Event::Start`] begins the first.
    pub fn new(settings: Settings) -> Generations {
        Generations {
            filling_up: false,
            last_number: 0,
            serving: None,
            starting: None,
            falling_back: None,
            draining: BTreeMap::new(),
            orphans: BTreeMap::new(),
            reload_queued: None,
            renewal: Renewal::default(),
            has_run: false,
            unseeable_told: false,
            bypass_told: None,
            stopping: None,
            exited: false,
            random: Random::new(settings.seed),
            configured: settings.workers,
            settings,
        }
    }

    /// The only way this changes. Also does all that is due by `now`.
    #[must_use]
    pub fn on(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Start => self.start_first(now, &mut actions),
            Event::Reload => self.reload(Urgency::Graceful, now, &mut actions),
            Event::ReloadRetiring(urgency) => self.reload(urgency, now, &mut actions),
            Event::ReloadFor(request) => self.reload_for(request, now, &mut actions),
            Event::Planned(generation, settings) => self.planned(generation, settings, now, &mut actions),
            Event::NotPlanned(generation, cause) => self.not_planned(generation, cause, now, &mut actions),
            Event::Tuned(workers, tuning) => self.tuned(workers, tuning, now, &mut actions),
            Event::Scale(request, change) => self.scale(request, change, now, &mut actions),
            Event::Rebound => self.rebound(now, &mut actions),
            Event::Stop(urgency) => self.stop(urgency, 0, now, &mut actions),
            Event::StopThenNow if self.stopping.is_some() => self.stop(Urgency::Quick, 0, now, &mut actions),
            Event::StopThenNow => self.stop(Urgency::Graceful, 0, now, &mut actions),
            Event::Told(monitor, report) => self.told(monitor, report, now, &mut actions),
            Event::NotStarted(monitor, cause) => self.ended(monitor, cause, false, now, &mut actions),
            Event::Ended(monitor, cause, orphans) => self.ended(monitor, cause, orphans, now, &mut actions),
            Event::OrphansGone(monitor) => self.orphans_gone(monitor, &mut actions),
            Event::Wake => {}
        }
        self.do_what_is_due(now, &mut actions);
        self.note_full();
        self.exit_if_done(&mut actions);
        actions
    }

    /// When to be woken if nothing happens.
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
        let starting = self.starting.iter().map(|(starting, deadline)| baking(starting).or(Some(*deadline)));
        let draining = self.draining.values().map(|draining| draining.kill_at);
        let orphans = self.orphans.values().map(|orphans| orphans.escalation.deadline());
        let renewal = self.renewal.due().filter(|_| self.may_renew());
        let back = self.fall_back_due();
        serving.chain(starting).chain(draining).chain(orphans).chain([renewal, back]).flatten().min()
    }

    /// Every generation that has a monitor or waits for one, and where it stands.
    pub fn standings(&self) -> Vec<(Standing, u32, Option<Monitor>)> {
        let living = |standing, generation: &Generation| (standing, generation.number, generation.monitor());
        let draining = self.draining.keys().map(|&monitor| (Standing::Draining, monitor.generation, Some(monitor)));
        let serving = self.serving.iter().map(|serving| living(Standing::Serving, serving));
        let starting = self.starting.iter().map(|(starting, _)| living(Standing::Starting, starting));
        let back = self.falling_back.iter().map(|back| living(Standing::Draining, &back.failed));
        draining.chain(back).chain(serving).chain(starting).collect()
    }

    /// How things stand, in numbers.
    pub fn overview(&self) -> Overview {
        Overview {
            serving: self.serving.as_ref().map(Generation::progress),
            starting: self.progress(),
            begun: self.last_number,
            serves: self.serving.as_ref().is_some_and(|serving| matches!(serving.phase, Phase::Proven)),
            stopping: self.is_stopping(),
        }
    }

    /// Whether everything is being stopped.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// How far the generation has come that is starting.
    pub fn progress(&self) -> Option<Progress> {
        self.starting.as_ref().map(|(starting, _)| starting.progress())
    }

    /// So many workers of the serving generation are ready.
    pub fn ready(&self) -> u32 {
        self.serving.as_ref().map_or(0, |serving| serving.ready.len() as u32)
    }

    /// No slot of the serving generation has this number, or a higher one.
    pub fn slots(&self) -> u32 {
        self.serving.as_ref().map_or(0, |serving| serving.slots)
    }

    /// So many workers are wanted at this moment.
    pub fn workers(&self) -> u32 {
        let goal = self.starting.as_ref().and_then(|(starting, _)| starting.roll).map(|roll| roll.goal);
        let goal = goal.or(self.falling_back.as_ref().map(|back| back.goal));
        let serving = self.serving.as_ref().map(|serving| serving.settings.workers);
        goal.or(serving).unwrap_or(self.settings.workers)
    }

    fn start_first(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.last_number == 0 {
            self.last_number = 1;
            let mut first = Generation::new(self.last_number, self.configured, self.settings.clone(), now);
            self.begin(&mut first, false, now, actions);
            self.serving = Some(first);
        }
    }

    /// Whether the workers of the next generation are ready only when they say so.
    fn must_notify(&self, ready: Ready) -> bool {
        match ready {
            Ready::Notify => true,
            Ready::Accept | Ready::Exec | Ready::Alive => false,
            Ready::Auto => self.serving.as_ref().is_some_and(Generation::tells),
        }
    }

    /// Whether the workers of the next generation must be seen accepting on a shared port, as those of the serving one
    /// do. While some of those are on their way there it must as well: in their place one would serve that has nobody
    /// who listens yet.
    fn must_accept(&self, ready: Ready, now: Instant) -> bool {
        ready == Ready::Auto && self.serving.as_ref().is_some_and(|serving| serving.may_listen(now))
    }

    /// Starts its first monitor.
    fn begin(&self, next: &mut Generation, trial: bool, now: Instant, actions: &mut Vec<Action>) {
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

    /// The next generation is the first that begins after the request, whether it begins now or is queued.
    fn reload_for(&mut self, request: u64, now: Instant, actions: &mut Vec<Action>) {
        let refused = self.stopping.is_some() || self.last_number == 0;
        let next = self.last_number + 1;
        actions.push(Action::Promise(request, (!refused).then_some(next)));
        self.reload(Urgency::Graceful, now, actions);
    }

    fn reload(&mut self, retires: Urgency, now: Instant, actions: &mut Vec<Action>) {
        if self.stopping.is_some() || self.last_number == 0 {
            return;
        }
        let starting = self.starting.as_ref().map(|(starting, _)| starting);
        if let Some(busy) = starting.or(self.falling_back.as_ref().map(|back| &back.failed)) {
            if self.reload_queued.is_none() {
                actions.push(Action::Note(Note::ReloadQueued(busy.number)));
            }
            self.reload_queued = Some(retires);
            return;
        }
        self.reload_queued = None;
        self.renewal.begins(now);
        self.last_number += 1;
        actions.push(Action::Plan(self.last_number));
        let mut next = Generation::new(self.last_number, self.configured, self.settings.clone(), now);
        next.retires = retires;
        self.starting = Some((next, now + LONGEST_PLANNING));
    }

    /// What the generation that is starting is to be has been found out.
    fn planned(&mut self, generation: u32, settings: Settings, now: Instant, actions: &mut Vec<Action>) {
        let planning = |(starting, _): &&(Generation, Instant)| starting.number == generation && !starting.is_planned();
        let Some((planned, _)) = self.starting.as_ref().filter(planning) else { return };
        let (retires, configured) = (planned.retires, settings.workers);
        let settings = Settings { workers: self.count_for(configured), ..settings };
        // What was bound anew while it was planned it gets as well.
        self.renewal.begins(now);
        let mut next = Generation::new(generation, configured, settings, now);
        next.retires = retires;
        if self.serving.as_ref().is_some_and(|serving| !serving.is_quiet()) {
            next.roll(now);
        }
        self.begin(&mut next, true, now, actions);
        actions.push(Action::Note(Note::Starting(generation)));
        let due = now + next.longest_start();
        self.starting = Some((next, due));
    }

    fn not_planned(&mut self, generation: u32, cause: Cause, now: Instant, actions: &mut Vec<Action>) {
        if self.starting.as_ref().is_some_and(|(starting, _)| starting.number == generation) {
            self.reject(None, cause, now, actions);
        }
    }

    fn rebound(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.stopping.is_none() && self.last_number > 0 {
            let random = self.random.draw();
            let planned = self.starting.as_ref().is_some_and(|(starting, _)| !starting.is_planned());
            // One that is only planned gets it.
            let newest = self.last_number - u32::from(planned);
            let wait = self.renewal.needed(newest, now, self.settings.tuning.pace, random);
            if self.starting.is_some() && !planned {
                let why = "a listener was shut down meanwhile, and it lacks the one that was bound anew";
                self.reject(None, Cause::CannotStart(why.to_owned()), now, actions);
            }
            self.tell_renewal(wait, actions);
        }
    }

    fn tell_renewal(&self, wait: Option<Duration>, actions: &mut Vec<Action>) {
        if let (Some(wait), Some(serving)) = (wait.filter(|wait| !wait.is_zero()), &self.serving) {
            actions.push(Action::Note(Note::Renewing(serving.number, wait)));
        }
    }

    fn told(&mut self, monitor: Monitor, report: Report, now: Instant, actions: &mut Vec<Action>) {
        if self.starting.as_ref().is_some_and(|(starting, _)| starting.monitor() == Some(monitor)) {
            self.starting_told(report, now, actions);
        } else if self.serving.as_ref().is_some_and(|serving| serving.monitor() == Some(monitor)) {
            self.serving_told(report, now, actions);
        } else if let Some(back) = self.falling_back.as_mut().filter(|back| back.failed.monitor() == Some(monitor)) {
            match report {
                Report::Retired { slot, empty } => back.failed.note_retired(slot, empty),
                Report::Gone { .. } => back.failed.note_gone(),
                _ => {}
            }
            self.fall_back(now, actions);
        }
    }

    fn starting_told(&mut self, report: Report, now: Instant, actions: &mut Vec<Action>) {
        let Some((starting, deadline)) = &mut self.starting else { return };
        let ready_timeout = starting.settings.tuning.ready_timeout;
        match report {
            Report::Listens { slot, withdrawn } => {
                let rolled = matches!(starting.phase, Phase::Rolling);
                let was_whole = starting.note_listening(slot, withdrawn);
                // It had shown in time all that was asked of it, and now there is more.
                *deadline = match was_whole {
                    true if rolled => now + ready_timeout,
                    true => (*deadline).max(now + ready_timeout),
                    false => *deadline,
                };
            }
            Report::Ready { slot, notified, seen } => {
                starting.note_ready(slot, notified, seen);
                self.bypass_told = self.bypass_told.filter(|_| !seen);
                self.settle_starting(now, actions);
            }
            Report::Retired { slot, empty } => {
                starting.note_retired(slot, empty);
                self.settle_starting(now, actions);
                self.go_on_rolling(now, actions);
            }
            Report::Gone { .. } => {
                starting.note_gone();
                self.go_on_rolling(now, actions);
            }
            Report::Unseeable { slot, why } => {
                starting.unseeable.insert(slot, why.clone());
                let (number, ready) = (starting.number, starting.settings.ready);
                self.tell_unseeable(number, ready, why, actions);
            }
            Report::Bypasses { slot, own } => {
                starting.bypass = Some((slot, own.clone()));
                let number = starting.number;
                self.tell_bypass(number, slot, own, actions);
            }
            Report::Died { slot, cause } => self.reject(Some(slot), cause, now, actions),
            Report::CannotBegin(cause) => self.reject(None, cause, now, actions),
            _ => {}
        }
    }

    /// A generation that is starting bakes once it is whole.
    pub(super) fn settle_starting(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some((starting, _)) = &mut self.starting else { return };
        // By then its first share has lived for as long.
        let bake = if starting.proven() > 0 { Duration::ZERO } else { starting.settings.tuning.bake };
        if starting.settle(bake, now) && !bake.is_zero() {
            actions.push(Action::Note(Note::Baking(starting.number, bake)));
        }
    }

    pub(super) fn settle_serving(&mut self, now: Instant) {
        let Some(serving) = &mut self.serving else { return };
        // By then a program that only lives has lived; one that told or has been seen has shown more.
        let shown = matches!(serving.settings.ready, Ready::Notify | Ready::Accept | Ready::Exec)
            || serving.tells()
            || serving.is_seen();
        let bake = if shown { Duration::ZERO } else { serving.settings.tuning.bake };
        serving.settle(bake, now);
    }

    fn serving_told(&mut self, report: Report, now: Instant, actions: &mut Vec<Action>) {
        let Some(serving) = &mut self.serving else { return };
        match report {
            Report::Executed if !self.has_run => {
                self.has_run = true;
                actions.push(Action::Note(Note::Began));
            }
            Report::Ready { slot, notified, seen } => {
                serving.note_ready(slot, notified, seen);
                self.bypass_told = self.bypass_told.filter(|_| !seen);
                self.settle_serving(now);
                self.fall_back(now, actions);
            }
            Report::Listens { slot, withdrawn } => {
                serving.note_listening(slot, withdrawn);
            }
            Report::Retired { slot, empty } => {
                serving.note_retired(slot, empty);
                self.settle_serving(now);
                self.go_on_rolling(now, actions);
            }
            Report::Gone { .. } => {
                serving.note_gone();
                self.go_on_rolling(now, actions);
            }
            Report::Unseeable { why, .. } => {
                let (number, ready) = (serving.number, serving.settings.ready);
                self.tell_unseeable(number, ready, why, actions);
            }
            Report::Bypasses { slot, own } => {
                let number = serving.number;
                self.tell_bypass(number, slot, own, actions);
            }
            Report::Died { slot, cause } => {
                serving.ready.remove(&slot);
                serving.seen.remove(&slot);
                self.settle_serving(now);
                let code = cause.exit_code();
                self.end_if_first_start(cause, code, now, actions);
            }
            Report::CannotBegin(cause) => {
                let code = cause.exit_code().or(Some(125));
                self.end_if_first_start(cause, code, now, actions);
            }
            Report::EndedForGood { slot, code } => self.ended_for_good(slot, code, now, actions),
            Report::GaveUp => {
                actions.push(Action::Note(Note::GaveUp(serving.number)));
                self.stop(Urgency::Graceful, 1, now, actions);
            }
            _ => {}
        }
    }

    /// Said once: it is the program that is so, in every worker of every generation.
    fn tell_unseeable(&mut self, generation: u32, ready: Ready, why: String, actions: &mut Vec<Action>) {
        if ready == Ready::Auto && !std::mem::replace(&mut self.unseeable_told, true) {
            actions.push(Action::Note(Note::Unseeable(generation, why)));
        }
    }

    /// Said again only where it is another mistake, or where a worker was seen accepting meanwhile.
    fn tell_bypass(&mut self, generation: u32, slot: u32, own: Vec<String>, actions: &mut Vec<Action>) {
        if self.bypass_told.replace(!own.is_empty()) != Some(!own.is_empty()) {
            actions.push(Action::Note(Note::Bypasses(generation, slot, own)));
        }
    }

    /// At a first start there is nothing to go back to, and what cannot be executed will not be by trying again.
    fn end_if_first_start(&mut self, cause: Cause, code: Option<u8>, now: Instant, actions: &mut Vec<Action>) {
        let Some(code) = code.filter(|_| !self.has_run && self.last_number == 1) else { return };
        actions.push(Action::Note(Note::Fatal(cause)));
        self.stop(Urgency::Quick, code, now, actions);
    }

    /// The new generation failed: it is stopped, and the serving one never noticed.
    pub(super) fn reject(&mut self, slot: Option<u32>, cause: Cause, now: Instant, actions: &mut Vec<Action>) {
        let Some((failed, _)) = self.starting.take() else { return };
        let rejected = Rejected {
            slot,
            failed: failed.why_each_failed(slot, &cause),
            cause,
            missing: failed.missing(),
            workers: failed.progress().workers,
            accept: failed.accept,
            serving: self.serving_number(),
        };
        actions.push(Action::Verdict(failed.number, Verdict::Rejected(rejected.clone())));
        actions.push(Action::Note(Note::Rejected(failed.number, rejected)));
        self.retire_failed(failed, now, actions);
        self.run_queued_reload(now, actions);
        if self.starting.is_none() {
            let random = self.random.draw();
            let wait = self.renewal.failed(now, self.settings.tuning.pace, random);
            self.tell_renewal(wait, actions);
        }
    }

    /// The same for one that was only promised.
    pub(super) fn reject_unbegun(&self, generation: u32, cause: Cause, actions: &mut Vec<Action>) {
        let serving = self.serving_number();
        let (failed, missing, workers) = (Vec::new(), Vec::new(), self.settings.workers);
        let rejected = Rejected { slot: None, cause, failed, missing, workers, accept: false, serving };
        actions.push(Action::Verdict(generation, Verdict::Rejected(rejected.clone())));
        actions.push(Action::Note(Note::Rejected(generation, rejected)));
        actions.push(Action::Release(generation));
    }

    fn serving_number(&self) -> u32 {
        self.serving.as_ref().map_or(0, |serving| serving.number)
    }

    fn commit(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some((mut proven, _)) = self.starting.take() else { return };
        proven.phase = Phase::Proven;
        proven.roll = None;
        let retires = proven.retires;
        if let Some(monitor) = proven.monitor() {
            actions.push(Action::Order(monitor, Order::Commit));
        }
        self.has_run = true;
        let took = now.saturating_duration_since(proven.begun);
        let number = proven.number;
        self.renewal.serves(number);
        (self.settings, self.configured) = (proven.settings.clone(), proven.configured);
        let old = self.serving.replace(proven);
        let retired = old.as_ref().map(|old| old.number);
        actions.push(Action::Verdict(number, Verdict::Serves(retired, took)));
        actions.push(Action::Note(Note::Committed(number, retired, took)));
        if let Some(old) = old {
            self.drain(old, true, retires, now, actions);
        }
        self.run_queued_reload(now, actions);
    }

    pub(super) fn run_queued_reload(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if let Some(retires) = self.reload_queued {
            self.reload(retires, now, actions);
        }
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
        self.draining.insert(monitor, Draining::begin(old.settings.tuning.stop, served, urgency, now));
        self.hasten_those_beyond_limit(now, actions);
    }

    /// How urgent the end is of what nobody was told to stop.
    fn urgency(&self) -> Urgency {
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
        self.hasten(urgency, now, actions);
    }

    /// What drains already follows the schedule of a stop from here on, where that is more urgent.
    fn hasten(&mut self, urgency: Urgency, now: Instant, actions: &mut Vec<Action>) {
        for (monitor, draining) in &mut self.draining {
            actions.extend(draining.hasten(*monitor, urgency, now));
        }
        if urgency == Urgency::Quick {
            for orphans in self.orphans.values_mut() {
                orphans.escalation.hasten(&orphans.stop.quick(), now);
            }
        }
    }

    fn ended(&mut self, monitor: Monitor, cause: Cause, orphans: bool, now: Instant, actions: &mut Vec<Action>) {
        let draining = self.draining.remove(&monitor);
        let is = |generation: &Generation| generation.monitor() == Some(monitor);
        let was_starting = self.starting.as_ref().is_some_and(|(starting, _)| is(starting));
        let was_serving = self.serving.as_ref().is_some_and(is);
        let was_back = self.falling_back.as_ref().is_some_and(|back| is(&back.failed));
        if draining.is_none() && !was_starting && !was_serving && !was_back {
            return;
        }
        if orphans {
            let starting = self.starting.iter().map(|(starting, _)| starting);
            let back = self.falling_back.iter().map(|back| &back.failed);
            let living = self.serving.iter().chain(starting).chain(back).find(|one| is(one));
            let stop =
                draining.as_ref().map(|draining| &draining.stop).or(living.map(|living| &living.settings.tuning.stop));
            let stop = stop.unwrap_or(&self.settings.tuning.stop).clone();
            let obeyed = draining.as_ref().filter(|draining| draining.kill_at.is_some());
            let (schedule, begun) = match obeyed {
                Some(draining) => (draining.schedule.clone(), draining.begun),
                // A monitor that had to be killed never stopped its workers: they get their whole schedule now.
                None => (scheduled(&stop, self.urgency()), now),
            };
            self.adopt(monitor, stop, (&schedule, begun), now, actions);
        }
        if let Some(drained) = draining {
            if drained.served && !orphans {
                let took = now.saturating_duration_since(drained.since);
                actions.push(Action::Note(Note::Drained(monitor.generation, took)));
            }
            self.release_if_gone(monitor.generation, actions);
        } else if was_serving {
            self.serving_ended(cause, now, actions);
            self.go_on_rolling(now, actions);
        } else if was_back {
            if let Some(back) = &mut self.falling_back {
                back.failed.lose_monitor(now, now);
            }
            self.end_fall_back(now, actions);
        } else {
            if let Some((starting, _)) = &mut self.starting {
                // Nobody is left to be told to stop.
                starting.monitor = Life::Waiting { life: monitor.life, until: now };
            }
            self.reject(None, Cause::CannotStart(format!("its monitor {cause}")), now, actions);
        }
    }

    fn serving_ended(&mut self, cause: Cause, now: Instant, actions: &mut Vec<Action>) {
        let random = self.random.draw();
        let Some(serving) = &mut self.serving else { return };
        let pace = serving.settings.tuning.pace;
        let Life::Running { since, .. } = serving.monitor else { return };
        let delay = serving.backoff.after(now.saturating_duration_since(since), pace, random);
        actions.push(Action::Note(Note::MonitorDied(serving.number, cause, delay)));
        serving.lose_monitor(now + delay, now);
    }

    fn adopt(
        &mut self,
        monitor: Monitor,
        stop: Schedule,
        (schedule, begun): (&Schedule, Instant),
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let mut escalation = Escalation::resume(schedule, begun, now);
        if escalation.deadline().is_none() {
            // The schedule is over, and whether the monitor still sent its KILL nobody knows.
            escalation = Escalation::begin(&Schedule::kill(), now);
        } else {
            actions.push(Action::SignalUnreached(monitor, schedule.first_signal()));
        }
        self.orphans.insert(monitor, Orphans { stop, escalation });
    }

    fn orphans_gone(&mut self, monitor: Monitor, actions: &mut Vec<Action>) {
        if self.orphans.remove(&monitor).is_some() {
            self.release_if_gone(monitor.generation, actions);
        }
    }

    fn release_if_gone(&self, generation: u32, actions: &mut Vec<Action>) {
        let lives = self.standings().iter().any(|(_, number, _)| *number == generation);
        let orphaned = self.orphans.keys().any(|monitor| monitor.generation == generation);
        if !lives && !orphaned {
            actions.push(Action::Release(generation));
        }
    }

    fn do_what_is_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
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
        let urgency = self.urgency();
        for (monitor, Orphans { stop, escalation }) in &mut self.orphans {
            if let Some(signal) = escalation.signal_due(now) {
                actions.push(Action::SignalOrphans(*monitor, signal));
            }
            if escalation.deadline().is_none() {
                // Those that are left then have joined since: an orphan leaves behind what becomes ours in its turn.
                *escalation = Escalation::begin(&scheduled(stop, urgency), now + GRACE);
            }
        }
    }

    fn judge_starting(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some((starting, deadline)) = &self.starting else { return };
        match starting.phase {
            Phase::Baking { until } if until <= now && starting.must_grow() => self.roll_on(now, actions),
            Phase::Baking { until } if until <= now => self.commit(now, actions),
            Phase::Rolling if *deadline <= now => self.give_up_rolling(now, actions),
            Phase::Filling if *deadline <= now => {
                let (slot, cause) = starting.why_not_ready();
                self.reject(slot, cause, now, actions);
            }
            Phase::Planning if *deadline <= now => self.reject(None, Cause::HungInPlan(LONGEST_PLANNING), now, actions),
            _ => {}
        }
    }

    fn do_what_serving_is_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some(serving) = &mut self.serving else { return };
        if let Phase::Baking { until } = serving.phase
            && until <= now
        {
            serving.phase = Phase::Proven;
            actions.push(Action::Note(Note::Serving(
                serving.number,
                serving.settings.workers.saturating_sub(serving.ended.len() as u32),
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
            let (workers, ended) = (serving.settings.workers, serving.ended.clone());
            // One that has told, or listened, goes on doing so when its monitor is replaced.
            let accept = ready == Ready::Auto && serving.listens();
            let notify = self.must_notify(ready);
            actions.push(Action::StartMonitor { monitor, workers, ended, trial: false, notify, accept });
        }
    }

    /// Whether a generation that lacks a listener may be replaced now. One without workers needs none.
    fn may_renew(&self) -> bool {
        let busy = self.starting.is_some() || self.falling_back.is_some();
        !busy && self.serving.as_ref().is_some_and(|serving| !serving.is_quiet())
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
