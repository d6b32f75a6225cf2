//! What main does, and when: pure, with no clock, no IO and no pids.
//!
//! At most one generation is starting, and the serving one is untouched until the new one is ready.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::backoff::{Backoff, Random};
use crate::config::{Escalation, Ready, Schedule};
use crate::control::messages::{Order, Report, Urgency};
use crate::worker::cause::Cause;

use super::renewal::Renewal;
pub use super::vocabulary::{Action, Event, Monitor, Note, Overview, Progress, Settings, Standing, Verdict};

/// What a monitor gets beyond its workers' schedule before it is killed itself, and what was killed, to be gone.
const GRACE: Duration = Duration::from_secs(5);

#[derive(Debug)]
enum Phase {
    /// Some workers are not ready yet.
    Filling,
    /// All are ready, and must live until then.
    Baking { until: Instant },
    /// It serves.
    Proven,
}

/// A generation that is meant to go on.
#[derive(Debug)]
struct Generation {
    number: u32,
    monitor: Life,
    ready: BTreeSet<u32>,
    /// The slots whose workers said themselves that they are ready.
    told: BTreeSet<u32>,
    /// The slots whose workers were seen accepting.
    seen: BTreeSet<u32>,
    /// Those where a worker has listened on a shared port.
    listening: BTreeSet<u32>,
    /// Whether its workers must be seen accepting, also before they listen on a shared port.
    accept: bool,
    /// The slots whose workers could not be seen, and why.
    unseeable: BTreeMap<u32, String>,
    /// A slot whose worker bypasses the listener that it was given, and where it listens instead.
    bypass: Option<(u32, Vec<String>)>,
    phase: Phase,
    begun: Instant,
    backoff: Backoff,
}

#[derive(Debug)]
enum Life {
    Running { life: u32, since: Instant },
    Waiting { life: u32, until: Instant },
}

/// A monitor that was told to stop.
#[derive(Debug)]
struct Draining {
    since: Instant,
    urgency: Urgency,
    /// What its workers go through, and since when.
    schedule: Schedule,
    begun: Instant,
    kill_at: Option<Instant>,
    /// Only a generation that once served is worth a word when it is gone.
    served: bool,
}

#[derive(Debug)]
struct Stopping {
    urgency: Urgency,
    code: u8,
}

/// All generations.
#[derive(Debug)]
pub struct Generations {
    settings: Settings,
    last_number: u32,
    serving: Option<Generation>,
    starting: Option<(Generation, Instant)>,
    draining: BTreeMap<Monitor, Draining>,
    orphans: BTreeMap<Monitor, Escalation>,
    reload_queued: bool,
    renewal: Renewal,
    has_run: bool,
    unseeable_told: bool,
    /// That workers bypass their listener has been told: true where they listen on others.
    bypass_told: Option<bool>,
    stopping: Option<Stopping>,
    exited: bool,
    random: Random,
}

impl Generations {
    /// None yet; [`Event::Start`] begins the first.
    pub fn new(settings: Settings) -> Generations {
        Generations {
            last_number: 0,
            serving: None,
            starting: None,
            draining: BTreeMap::new(),
            orphans: BTreeMap::new(),
            reload_queued: false,
            renewal: Renewal::default(),
            has_run: false,
            unseeable_told: false,
            bypass_told: None,
            stopping: None,
            exited: false,
            random: Random::new(settings.seed),
            settings,
        }
    }

    /// The only way this changes. Also does all that is due by `now`.
    #[must_use]
    pub fn on(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Start => self.start_first(now, &mut actions),
            Event::Reload => self.reload(now, &mut actions),
            Event::ReloadFor(request) => self.reload_for(request, now, &mut actions),
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
        self.exit_if_done(&mut actions);
        actions
    }

    /// When to be woken if nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        let baking = |generation: &Generation| match generation.phase {
            Phase::Baking { until } => Some(until),
            Phase::Filling | Phase::Proven => None,
        };
        let serving = self.serving.iter().flat_map(|serving| {
            let restart = match serving.monitor {
                Life::Waiting { until, .. } => Some(until),
                Life::Running { .. } => None,
            };
            [baking(serving), restart]
        });
        let starting = self.starting.iter().map(|(starting, deadline)| baking(starting).or(Some(*deadline)));
        let draining = self.draining.values().map(|draining| draining.kill_at);
        let orphans = self.orphans.values().map(Escalation::deadline);
        let renewal = self.renewal.due().filter(|_| self.starting.is_none());
        serving.chain(starting).chain(draining).chain(orphans).chain([renewal]).flatten().min()
    }

    /// Every generation that has a monitor or waits for one, and where it stands.
    pub fn standings(&self) -> Vec<(Standing, u32, Option<Monitor>)> {
        let living = |standing, generation: &Generation| (standing, generation.number, generation.monitor());
        let draining = self.draining.keys().map(|&monitor| (Standing::Draining, monitor.generation, Some(monitor)));
        let serving = self.serving.iter().map(|serving| living(Standing::Serving, serving));
        let starting = self.starting.iter().map(|(starting, _)| living(Standing::Starting, starting));
        draining.chain(serving).chain(starting).collect()
    }

    /// How things stand, in numbers.
    pub fn overview(&self) -> Overview {
        let ready = |generation: &Generation| (generation.number, generation.ready.len() as u32);
        Overview {
            serving: self.serving.as_ref().map(ready),
            starting: self.starting.as_ref().map(|(starting, _)| ready(starting)),
            serves: self.serving.as_ref().is_some_and(|serving| matches!(serving.phase, Phase::Proven)),
            stopping: self.is_stopping(),
        }
    }

    /// Whether everything is being stopped.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// Whether a generation has once been whole, serves, and has a worker that is ready now.
    pub fn is_ready(&self) -> bool {
        let serves = |serving: &Generation| matches!(serving.phase, Phase::Proven) && !serving.ready.is_empty();
        self.serving.as_ref().is_some_and(serves)
    }

    /// How far the generation has come that is starting.
    pub fn progress(&self) -> Option<Progress> {
        let (starting, _) = self.starting.as_ref()?;
        let (generation, ready) = (starting.number, starting.ready.len() as u32);
        Some(Progress { generation, ready, baking: matches!(starting.phase, Phase::Baking { .. }) })
    }

    fn start_first(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.last_number == 0 {
            let first = self.begin(false, now, actions);
            self.serving = Some(first);
        }
    }

    /// Whether the workers of the next generation are ready only when they say so.
    fn must_notify(&self) -> bool {
        match self.settings.ready {
            Ready::Notify => true,
            Ready::Accept | Ready::Exec | Ready::Alive => false,
            Ready::Auto => self.serving_tells(),
        }
    }

    /// Whether every worker of the serving generation has said itself that it was ready. One that did so by chance must
    /// not have the others ended for keeping silent.
    fn serving_tells(&self) -> bool {
        self.serving.as_ref().is_some_and(|serving| serving.told.len() == self.settings.workers as usize)
    }

    /// Whether the workers of the next generation must be seen accepting on a shared port, as those of the serving one
    /// do. Where only some of these listen, all that is known of the others is that they may not.
    fn must_accept(&self) -> bool {
        let all_listen = |serving: &Generation| serving.listening.len() == self.settings.workers as usize;
        self.settings.ready == Ready::Auto && self.serving.as_ref().is_some_and(all_listen)
    }

    fn begin(&mut self, trial: bool, now: Instant, actions: &mut Vec<Action>) -> Generation {
        self.last_number += 1;
        let monitor = Monitor { generation: self.last_number, life: 1 };
        let accept = self.must_accept();
        actions.push(Action::StartMonitor { monitor, trial, notify: self.must_notify(), accept });
        Generation {
            number: monitor.generation,
            monitor: Life::Running { life: monitor.life, since: now },
            ready: BTreeSet::new(),
            told: BTreeSet::new(),
            seen: BTreeSet::new(),
            listening: BTreeSet::new(),
            accept,
            unseeable: BTreeMap::new(),
            bypass: None,
            phase: Phase::Filling,
            begun: now,
            backoff: Backoff::default(),
        }
    }

    /// The next generation is the first that begins after the request, whether it begins now or is queued.
    fn reload_for(&mut self, request: u64, now: Instant, actions: &mut Vec<Action>) {
        let refused = self.stopping.is_some() || self.last_number == 0;
        let next = self.last_number + 1;
        actions.push(Action::Promise(request, (!refused).then_some(next)));
        self.reload(now, actions);
    }

    fn reload(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.stopping.is_some() || self.last_number == 0 {
            return;
        }
        if let Some((starting, _)) = &self.starting {
            if !self.reload_queued {
                actions.push(Action::Note(Note::ReloadQueued(starting.number)));
            }
            self.reload_queued = true;
            return;
        }
        self.reload_queued = false;
        self.renewal.begins(now);
        let next = self.begin(true, now, actions);
        actions.push(Action::Note(Note::Starting(next.number)));
        self.starting = Some((next, now + self.settings.ready_timeout));
    }

    fn rebound(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.stopping.is_none() && self.last_number > 0 {
            let random = self.random.draw();
            let wait = self.renewal.needed(self.last_number, now, self.settings.pace, random);
            if self.starting.is_some() {
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
        }
    }

    fn starting_told(&mut self, report: Report, now: Instant, actions: &mut Vec<Action>) {
        let workers = self.settings.workers;
        let bake = self.settings.bake;
        let ready_timeout = self.settings.ready_timeout;
        let Some((starting, deadline)) = &mut self.starting else { return };
        match report {
            Report::Listens { slot, withdrawn } => {
                let was_whole = starting.note_listening(slot, withdrawn, workers);
                // It had shown in time all that was asked of it, and now there is more.
                *deadline = if was_whole { (*deadline).max(now + ready_timeout) } else { *deadline };
            }
            Report::Ready { slot, notified, seen } => {
                starting.note_ready(slot, notified, seen, workers);
                self.bypass_told = self.bypass_told.filter(|_| !seen);
                if starting.ready.len() == workers as usize && matches!(starting.phase, Phase::Filling) {
                    starting.phase = Phase::Baking { until: now + bake };
                    if !bake.is_zero() {
                        actions.push(Action::Note(Note::Baking(starting.number, bake)));
                    }
                }
            }
            Report::Unseeable { slot, why } => {
                starting.unseeable.insert(slot, why.clone());
                let number = starting.number;
                self.tell_unseeable(number, why, actions);
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

    fn serving_told(&mut self, report: Report, now: Instant, actions: &mut Vec<Action>) {
        let workers = self.settings.workers;
        // By then a program that only lives has lived; one that told or has been seen has shown more.
        let shown = matches!(self.settings.ready, Ready::Notify | Ready::Accept | Ready::Exec) || self.serving_tells();
        let bake = self.settings.bake;
        let Some(serving) = &mut self.serving else { return };
        match report {
            Report::Executed if !self.has_run => {
                self.has_run = true;
                actions.push(Action::Note(Note::Began));
            }
            Report::Ready { slot, notified, seen } => {
                serving.note_ready(slot, notified, seen, workers);
                self.bypass_told = self.bypass_told.filter(|_| !seen);
                if serving.ready.len() == workers as usize && matches!(serving.phase, Phase::Filling) {
                    let bake = if shown || serving.seen.len() == workers as usize { Duration::ZERO } else { bake };
                    serving.phase = Phase::Baking { until: now + bake };
                }
            }
            Report::Listens { slot, withdrawn } => {
                serving.note_listening(slot, withdrawn, workers);
            }
            Report::Unseeable { why, .. } => {
                let number = serving.number;
                self.tell_unseeable(number, why, actions);
            }
            Report::Bypasses { slot, own } => {
                let number = serving.number;
                self.tell_bypass(number, slot, own, actions);
            }
            Report::Died { slot, cause } => {
                serving.ready.remove(&slot);
                serving.seen.remove(&slot);
                if matches!(serving.phase, Phase::Baking { .. }) {
                    serving.phase = Phase::Filling;
                }
                let code = cause.exit_code();
                self.end_if_first_start(cause, code, now, actions);
            }
            Report::CannotBegin(cause) => {
                let code = cause.exit_code().or(Some(125));
                self.end_if_first_start(cause, code, now, actions);
            }
            Report::GaveUp => {
                actions.push(Action::Note(Note::GaveUp(serving.number)));
                self.stop(Urgency::Graceful, 1, now, actions);
            }
            _ => {}
        }
    }

    /// Said once: it is the program that is so, in every worker of every generation.
    fn tell_unseeable(&mut self, generation: u32, why: String, actions: &mut Vec<Action>) {
        if self.settings.ready == Ready::Auto && !std::mem::replace(&mut self.unseeable_told, true) {
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
    fn reject(&mut self, slot: Option<u32>, cause: Cause, now: Instant, actions: &mut Vec<Action>) {
        let Some((failed, _)) = self.starting.take() else { return };
        let generation = failed.number;
        let missing: Vec<u32> = (0..self.settings.workers).filter(|slot| !failed.ready.contains(slot)).collect();
        let serving = self.serving.as_ref().map_or(0, |serving| serving.number);
        let verdict = Verdict::Rejected {
            slot,
            cause: cause.clone(),
            failed: failed.why_each_failed(slot, &cause, &missing, &self.settings),
            missing: missing.clone(),
            accept: failed.accept,
            serving,
        };
        actions.push(Action::Verdict(generation, verdict));
        actions.push(Action::Note(Note::Rejected { generation, slot, cause, missing, accept: failed.accept, serving }));
        self.drain(failed, false, Urgency::Graceful, now, actions);
        self.run_queued_reload(now, actions);
        if self.starting.is_none() {
            let random = self.random.draw();
            let wait = self.renewal.failed(now, self.settings.pace, random);
            self.tell_renewal(wait, actions);
        }
    }

    fn commit(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some((mut proven, _)) = self.starting.take() else { return };
        proven.phase = Phase::Proven;
        if let Some(monitor) = proven.monitor() {
            actions.push(Action::Order(monitor, Order::Commit));
        }
        self.has_run = true;
        let took = now.saturating_duration_since(proven.begun);
        let number = proven.number;
        self.renewal.serves(number);
        let old = self.serving.replace(proven);
        let retired = old.as_ref().map(|old| old.number);
        actions.push(Action::Verdict(number, Verdict::Serves(retired, took)));
        actions.push(Action::Note(Note::Committed(number, retired, took)));
        if let Some(old) = old {
            self.drain(old, true, Urgency::Graceful, now, actions);
        }
        self.run_queued_reload(now, actions);
    }

    fn run_queued_reload(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.reload_queued {
            self.reload(now, actions);
        }
    }

    fn drain(&mut self, old: Generation, served: bool, urgency: Urgency, now: Instant, actions: &mut Vec<Action>) {
        let Some(monitor) = old.monitor() else {
            self.release_if_gone(old.number, actions);
            return;
        };
        actions.push(Action::Order(monitor, Order::Stop(urgency)));
        let schedule = self.schedule(urgency);
        let kill_at = Some(now + schedule.total() + GRACE);
        self.draining.insert(monitor, Draining { since: now, urgency, schedule, begun: now, kill_at, served });
    }

    /// How urgent the end is of what nobody was told to stop.
    fn urgency(&self) -> Urgency {
        self.stopping.as_ref().map_or(Urgency::Graceful, |stopping| stopping.urgency)
    }

    fn schedule(&self, urgency: Urgency) -> Schedule {
        match urgency {
            Urgency::Graceful => self.settings.stop.clone(),
            Urgency::Quick => self.settings.stop.quick(),
        }
    }

    fn stop(&mut self, urgency: Urgency, code: u8, now: Instant, actions: &mut Vec<Action>) {
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
        if std::mem::take(&mut self.reload_queued) {
            actions.push(Action::Verdict(self.last_number + 1, Verdict::Stopped));
        }
        self.renewal = Renewal::default();
        let starting = self.starting.take().map(|(starting, _)| starting);
        if let Some(starting) = &starting {
            actions.push(Action::Verdict(starting.number, Verdict::Stopped));
        }
        for generation in self.serving.take().into_iter().chain(starting) {
            self.drain(generation, false, urgency, now, actions);
        }
        if urgency == Urgency::Quick {
            self.hasten(now, actions);
        }
    }

    /// What drains already follows the quick schedule from here on.
    fn hasten(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let quick = self.settings.stop.quick();
        for (monitor, draining) in &mut self.draining {
            if draining.urgency < Urgency::Quick {
                draining.urgency = Urgency::Quick;
                if now + quick.total() < draining.begun + draining.schedule.total() {
                    (draining.schedule, draining.begun) = (quick.clone(), now);
                    draining.kill_at = draining.kill_at.map(|_| now + quick.total() + GRACE);
                }
                actions.push(Action::Order(*monitor, Order::Stop(Urgency::Quick)));
            }
        }
        for escalation in self.orphans.values_mut() {
            escalation.hasten(&quick, now);
        }
    }

    fn ended(&mut self, monitor: Monitor, cause: Cause, orphans: bool, now: Instant, actions: &mut Vec<Action>) {
        let draining = self.draining.remove(&monitor);
        let is = |generation: &Generation| generation.monitor() == Some(monitor);
        let was_starting = self.starting.as_ref().is_some_and(|(starting, _)| is(starting));
        let was_serving = self.serving.as_ref().is_some_and(is);
        if draining.is_none() && !was_starting && !was_serving {
            return;
        }
        if orphans {
            let obeyed = draining.as_ref().filter(|draining| draining.kill_at.is_some());
            let (schedule, begun) = match obeyed {
                Some(draining) => (draining.schedule.clone(), draining.begun),
                // A monitor that had to be killed never stopped its workers: they get their whole schedule now.
                None => (self.schedule(self.urgency()), now),
            };
            self.adopt(monitor, &schedule, begun, now, actions);
        }
        if let Some(drained) = draining {
            if drained.served && !orphans {
                let took = now.saturating_duration_since(drained.since);
                actions.push(Action::Note(Note::Drained(monitor.generation, took)));
            }
            self.release_if_gone(monitor.generation, actions);
        } else if was_serving {
            self.serving_ended(cause, now, actions);
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
        let pace = self.settings.pace;
        let Some(serving) = &mut self.serving else { return };
        let Life::Running { life, since } = serving.monitor else { return };
        let delay = serving.backoff.after(now.saturating_duration_since(since), pace, random);
        actions.push(Action::Note(Note::MonitorDied(serving.number, cause, delay)));
        serving.monitor = Life::Waiting { life, until: now + delay };
        serving.ready.clear();
        serving.seen.clear();
        serving.phase = Phase::Filling;
        serving.begun = now;
    }

    fn adopt(
        &mut self,
        monitor: Monitor,
        schedule: &Schedule,
        begun: Instant,
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
        self.orphans.insert(monitor, escalation);
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
        if self.starting.is_none() && self.renewal.due().is_some_and(|due| due <= now) {
            self.reload(now, actions);
        }
        self.do_what_serving_is_due(now, actions);
        for (monitor, draining) in &mut self.draining {
            if draining.kill_at.is_some_and(|kill_at| kill_at <= now) {
                draining.kill_at = None;
                actions.push(Action::Note(Note::MonitorStuck(monitor.generation)));
                actions.push(Action::KillMonitor(*monitor));
            }
        }
        let anew = self.schedule(self.urgency());
        for (monitor, escalation) in &mut self.orphans {
            if let Some(signal) = escalation.signal_due(now) {
                actions.push(Action::SignalOrphans(*monitor, signal));
            }
            if escalation.deadline().is_none() {
                // Those that are left then have joined since: an orphan leaves behind what becomes ours in its turn.
                *escalation = Escalation::begin(&anew, now + GRACE);
            }
        }
    }

    fn judge_starting(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some((starting, deadline)) = &self.starting else { return };
        match starting.phase {
            Phase::Baking { until } if until <= now => self.commit(now, actions),
            Phase::Filling if *deadline <= now => {
                let (slot, cause) = starting.why_not_ready(&self.settings);
                self.reject(slot, cause, now, actions);
            }
            _ => {}
        }
    }

    fn do_what_serving_is_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let notify = self.settings.ready == Ready::Notify || self.serving_must_notify();
        let accept = self.must_accept();
        let Some(serving) = &mut self.serving else { return };
        if let Phase::Baking { until } = serving.phase
            && until <= now
        {
            serving.phase = Phase::Proven;
            actions.push(Action::Note(Note::Serving(serving.number, now.saturating_duration_since(serving.begun))));
        }
        if let Life::Waiting { life, until } = serving.monitor
            && until <= now
        {
            let monitor = Monitor { generation: serving.number, life: life + 1 };
            serving.monitor = Life::Running { life: monitor.life, since: now };
            actions.push(Action::StartMonitor { monitor, trial: false, notify, accept });
        }
    }

    /// A generation that has told goes on telling when its monitor is replaced.
    fn serving_must_notify(&self) -> bool {
        self.settings.ready == Ready::Auto && self.serving_tells()
    }

    fn exit_if_done(&mut self, actions: &mut Vec<Action>) {
        let Some(stopping) = &self.stopping else { return };
        if self.draining.is_empty() && self.orphans.is_empty() && !self.exited {
            self.exited = true;
            actions.push(Action::Exit(stopping.code));
        }
    }
}

impl Generation {
    fn note_ready(&mut self, slot: u32, told: bool, seen: bool, workers: u32) {
        if slot >= workers {
            return;
        }
        self.ready.insert(slot);
        if told {
            self.told.insert(slot);
        }
        if seen {
            self.seen.insert(slot);
        }
    }

    /// A worker listens on a shared port, and may no longer be ready; true where the whole generation was.
    fn note_listening(&mut self, slot: u32, withdrawn: bool, workers: u32) -> bool {
        if slot >= workers {
            return false;
        }
        self.listening.insert(slot);
        if !withdrawn || matches!(self.phase, Phase::Proven) {
            return false;
        }
        self.ready.remove(&slot);
        matches!(std::mem::replace(&mut self.phase, Phase::Filling), Phase::Baking { .. })
    }

    fn monitor(&self) -> Option<Monitor> {
        match self.monitor {
            Life::Running { life, .. } => Some(Monitor { generation: self.number, life }),
            Life::Waiting { .. } => None,
        }
    }

    /// The workers that failed: the one that died, or all that were not ready in time.
    fn why_each_failed(
        &self,
        slot: Option<u32>,
        cause: &Cause,
        missing: &[u32],
        settings: &Settings,
    ) -> Vec<(u32, Cause)> {
        let time = settings.ready_timeout;
        let own = |slot: &u32| match self.unseeable.get(slot).filter(|_| settings.ready == Ready::Accept) {
            Some(why) => Cause::NotSeen(time, why.clone()),
            None => Cause::NotReady(time),
        };
        match (cause, slot) {
            (Cause::NotReady(_) | Cause::NotSeen(..) | Cause::Bypassed(..), _) => {
                missing.iter().map(|slot| (*slot, own(slot))).collect()
            }
            (_, Some(slot)) => vec![(slot, cause.clone())],
            (_, None) => Vec::new(),
        }
    }

    /// What is to be said of a generation that is not ready in time: where it must be seen accepting and is not, why.
    fn why_not_ready(&self, settings: &Settings) -> (Option<u32>, Cause) {
        let must_be_seen = settings.ready == Ready::Accept;
        let unseen = self.unseeable.iter().find(|(slot, _)| must_be_seen && !self.ready.contains(slot));
        let bypass = self.bypass.as_ref().filter(|(slot, own)| !own.is_empty() && !self.ready.contains(slot));
        let time = settings.ready_timeout;
        match (unseen, bypass) {
            (Some((slot, why)), _) => (Some(*slot), Cause::NotSeen(time, why.clone())),
            (None, Some((slot, own))) => (Some(*slot), Cause::Bypassed(time, own.clone())),
            (None, None) => (None, Cause::NotReady(time)),
        }
    }
}
