//! Which hook runs when: one command at a time, with a deadline, and events of one kind that come too fast are folded
//! into one run with a count. So the queue holds at most one entry for each kind of event, whatever happens.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::config::HookEvent;

/// Two runs for one kind of event begin at least this far apart.
const PAUSE: Duration = Duration::from_secs(1);

/// Time of the process that runs a command beyond the command's own: it sends TERM first, and KILL after 5 s.
const GRACE: Duration = Duration::from_secs(10);

/// Facts about an event, for the command's environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// The kind of event.
    pub event: HookEvent,
    /// The generation that it happened to.
    pub generation: Option<u32>,
    /// The slot of the worker that it happened to.
    pub worker: Option<u32>,
    /// The exit code of the worker, or of panzer.
    pub exit_code: Option<i32>,
    /// The signal that ended the worker.
    pub signal: Option<String>,
    /// The event in words.
    pub reason: String,
}

/// One command, to be run now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Facts about the last event.
    pub facts: Facts,
    /// Number of events since the last run for this kind.
    pub count: u64,
    /// The shell command.
    pub command: String,
    /// Time that it may take.
    pub timeout: Duration,
}

/// An event for the state of the hooks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Something these commands are to be run for, each with this time.
    Happened(Facts, Vec<String>, Duration),
    /// The command that ran has ended, or could not be run; with what went wrong.
    Ended(Result<(), String>),
    /// Nobody waits any more for what is to run before this generation starts.
    GivenUp(u32),
    /// Panzer ends once everything has run, so nothing waits for its pause any more.
    Ending,
    /// Panzer is to end without waiting for what runs.
    Hurry,
    /// A deadline has come.
    Wake,
}

/// An action that the state asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start a process for this command.
    Run(Run),
    /// Have that process end the command.
    End,
    /// Kill that process, which did not end in time.
    Kill,
    /// Wait for that process no longer.
    Abandon,
    /// A command succeeded.
    Done(HookEvent),
    /// A command went wrong.
    Failed(Facts, String),
    /// This generation may be started, or not, and why.
    Prepared(u32, Result<(), String>),
}

/// Events that wait for their commands, or whose commands run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Due {
    facts: Facts,
    count: u64,
    commands: VecDeque<String>,
    timeout: Duration,
    #[serde(with = "crate::carry::moment")]
    not_before: Instant,
}

/// The command that runs now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Running {
    /// With the commands that are to follow.
    due: Due,
    /// When its process is killed, and after that, when it is given up.
    #[serde(with = "crate::carry::moment")]
    until: Instant,
    killed: bool,
    /// Whether its outcome still matters.
    wanted: bool,
}

/// All hooks that run or wait. Written down and read back, as for another main, it goes on as if nothing had been.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hooks {
    queue: VecDeque<Due>,
    running: Option<Running>,
    /// For each kind of event, when the next run may begin.
    #[serde(with = "crate::carry::moment::by_key")]
    next: BTreeMap<HookEvent, Instant>,
    ending: bool,
}

impl Hooks {
    /// Whether nothing runs or waits.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.running.is_none()
    }

    /// Whether there is nothing to be handed on.
    pub(crate) fn is_unused(&self) -> bool {
        *self == Hooks::default()
    }

    /// When to be woken if nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.running {
            Some(running) => Some(running.until),
            None => self.queue.iter().map(|due| due.not_before).min(),
        }
    }

    /// How long a generation may wait for so many commands that run before it starts: behind one that runs now.
    pub fn longest(commands: usize, timeout: Duration) -> Duration {
        (timeout + GRACE * 2) * (commands as u32 + 1)
    }

    /// The only way this changes.
    #[must_use]
    pub fn on(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Happened(_, commands, _) if commands.is_empty() => {}
            Event::Happened(facts, commands, timeout) => self.take_in(facts, commands.into(), timeout, now),
            Event::Ended(result) => self.on_ended(result, now, &mut actions),
            Event::GivenUp(generation) => self.give_up(generation, &mut actions),
            Event::Ending => {
                self.ending = true;
                self.queue.iter_mut().for_each(|due| due.not_before = due.not_before.min(now));
            }
            Event::Hurry => {
                self.queue.clear();
                if let Some(running) = &mut self.running {
                    running.due.commands.clear();
                    actions.push(Action::End);
                }
            }
            Event::Wake => {}
        }
        self.do_what_is_due(now, &mut actions);
        actions
    }

    fn take_in(&mut self, facts: Facts, commands: VecDeque<String>, timeout: Duration, now: Instant) {
        let prepares = facts.event == HookEvent::BeforeReload;
        let same = self.queue.iter_mut().find(|due| due.facts.event == facts.event && !prepares);
        if let Some(waiting) = same {
            *waiting = Due { count: waiting.count + 1, facts, commands, timeout, ..*waiting };
            return;
        }
        let not_before = self.next.get(&facts.event).copied().filter(|_| !self.ending).unwrap_or(now);
        let due = Due { facts, count: 1, commands, timeout, not_before };
        // Somebody waits for the reload.
        if prepares { self.queue.push_front(due) } else { self.queue.push_back(due) }
    }

    fn on_ended(&mut self, result: Result<(), String>, now: Instant, actions: &mut Vec<Action>) {
        let Some(Running { due, wanted, .. }) = self.running.take() else { return };
        let prepares = due.facts.generation.filter(|_| wanted && due.facts.event == HookEvent::BeforeReload);
        let goes_on = wanted && !due.commands.is_empty() && (prepares.is_none() || result.is_ok());
        if wanted {
            actions.push(match result.clone() {
                Ok(()) => Action::Done(due.facts.event),
                Err(why) => Action::Failed(due.facts.clone(), why),
            });
        }
        if let Some(generation) = prepares.filter(|_| !goes_on) {
            actions.push(Action::Prepared(generation, result));
        }
        if goes_on {
            self.run(due, now, actions);
        }
    }

    fn give_up(&mut self, generation: u32, actions: &mut Vec<Action>) {
        let is_it = |due: &Due| due.facts.event == HookEvent::BeforeReload && due.facts.generation == Some(generation);
        self.queue.retain(|due| !is_it(due));
        if let Some(running) = self.running.as_mut().filter(|running| is_it(&running.due)) {
            running.wanted = false;
            actions.push(Action::End);
        }
    }

    fn do_what_is_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if let Some(running) = self.running.as_mut().filter(|running| running.until <= now) {
            if !std::mem::replace(&mut running.killed, true) {
                running.until = now + GRACE;
                actions.push(Action::Kill);
            } else {
                actions.push(Action::Abandon);
                self.on_ended(Err("does not end, whatever it is sent".to_owned()), now, actions);
            }
        }
        if self.running.is_none()
            && let Some(at) = self.queue.iter().position(|due| due.not_before <= now)
            && let Some(due) = self.queue.remove(at)
        {
            if due.facts.event != HookEvent::BeforeReload {
                self.next.insert(due.facts.event, now + PAUSE);
            }
            self.run(due, now, actions);
        }
    }

    fn run(&mut self, mut due: Due, now: Instant, actions: &mut Vec<Action>) {
        let Some(command) = due.commands.pop_front() else { return };
        actions.push(Action::Run(Run { facts: due.facts.clone(), count: due.count, command, timeout: due.timeout }));
        let until = now + due.timeout + GRACE;
        self.running = Some(Running { due, until, killed: false, wanted: true });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backoff::Random;

    const TIMEOUT: Duration = Duration::from_secs(30);

    fn facts(event: HookEvent, generation: u32) -> Facts {
        Facts {
            event,
            generation: Some(generation),
            worker: None,
            exit_code: None,
            signal: None,
            reason: String::new(),
        }
    }

    fn happened(event: HookEvent, generation: u32) -> Event {
        Event::Happened(facts(event, generation), vec!["a".to_owned(), "b".to_owned()], TIMEOUT)
    }

    fn runs(actions: &[Action]) -> Vec<(HookEvent, u64, &str)> {
        let run = |action| match action {
            &Action::Run(Run { ref facts, count, ref command, .. }) => Some((facts.event, count, command.as_str())),
            _ => None,
        };
        actions.iter().filter_map(run).collect()
    }

    #[test]
    fn a_flood_of_deaths_is_folded_into_one_run_a_second() {
        let (mut hooks, now) = (Hooks::default(), Instant::now());
        assert_eq!(runs(&hooks.on(now, happened(HookEvent::Died, 1))), [(HookEvent::Died, 1, "a")]);
        for _ in 0..1000 {
            assert_eq!(hooks.on(now, happened(HookEvent::Died, 1)), []);
        }
        assert_eq!(runs(&hooks.on(now, Event::Ended(Ok(())))), [(HookEvent::Died, 1, "b")]);
        assert_eq!(hooks.on(now, Event::Ended(Ok(()))), [Action::Done(HookEvent::Died)]);
        assert_eq!(hooks.deadline(), Some(now + PAUSE));
        assert_eq!(runs(&hooks.on(now + PAUSE, Event::Wake)), [(HookEvent::Died, 1000, "a")]);
    }

    #[test]
    fn a_reload_waits_for_no_other_event_and_is_decided_by_the_first_failure() {
        let (mut hooks, now) = (Hooks::default(), Instant::now());
        let _ = hooks.on(now, happened(HookEvent::Died, 1));
        let _ = hooks.on(now, happened(HookEvent::Rejected, 1));
        let _ = hooks.on(now, happened(HookEvent::BeforeReload, 2));
        let _ = hooks.on(now, Event::Ended(Ok(())));
        assert_eq!(runs(&hooks.on(now, Event::Ended(Ok(())))), [(HookEvent::BeforeReload, 1, "a")]);
        let failed = hooks.on(now, Event::Ended(Err("no".to_owned())));
        assert_eq!(failed[1], Action::Prepared(2, Err("no".to_owned())));
        assert_eq!(runs(&failed), [(HookEvent::Rejected, 1, "a")]);
    }

    #[test]
    fn what_is_given_up_is_ended_and_says_nothing() {
        let (mut hooks, now) = (Hooks::default(), Instant::now());
        let _ = hooks.on(now, happened(HookEvent::BeforeReload, 2));
        assert_eq!(hooks.on(now, Event::GivenUp(2)), [Action::End]);
        assert_eq!(hooks.on(now, Event::Ended(Err("killed".to_owned()))), []);
        assert!(hooks.is_idle());
    }

    #[test]
    fn what_hangs_is_killed_and_then_left_alone() {
        let (mut hooks, now) = (Hooks::default(), Instant::now());
        let _ = hooks.on(now, Event::Happened(facts(HookEvent::Stopped, 1), vec!["a".to_owned()], TIMEOUT));
        let late = hooks.deadline().unwrap();
        assert_eq!(hooks.on(late, Event::Wake), [Action::Kill]);
        let actions = hooks.on(late + GRACE, Event::Wake);
        assert!(matches!(actions[..], [Action::Abandon, Action::Failed(..)]), "{actions:?}");
        assert!(hooks.is_idle());
    }

    /// Whatever happens: one at a time, a short queue, and of each reload that was not given up there is one verdict.
    #[test]
    fn random_events_leave_nothing_behind() {
        use HookEvent::{AfterReload, BeforeReload, Died, GaveUp, Rejected, Stopped};
        for seed in 0..50 {
            let (mut random, mut hooks, mut now) = (Random::new(seed), Hooks::default(), Instant::now());
            let (mut awaited, mut generation, mut is_running) = (BTreeMap::new(), 0, false);
            for step in 0..400 {
                let mut below = |limit: u64| random.draw() % limit;
                let event = match below(if step < 300 { 10 } else { 2 }) {
                    0 if is_running => Event::Ended(if below(2) == 0 { Ok(()) } else { Err("no".to_owned()) }),
                    2 => Event::GivenUp(generation),
                    3 | 4 if awaited.is_empty() => {
                        generation += 1;
                        awaited.insert(generation, 1);
                        happened(BeforeReload, generation)
                    }
                    5 => Event::Wake,
                    kind => {
                        let kinds = [Died, Died, AfterReload, Rejected, GaveUp, Stopped];
                        if step < 300 { happened(kinds[kind as usize % kinds.len()], 1) } else { Event::Wake }
                    }
                };
                if let Event::GivenUp(generation) = event {
                    awaited.remove(&generation);
                }
                is_running &= !matches!(event, Event::Ended(_));
                now += Duration::from_millis(below(3000));
                let text = serde_json::to_string(&hooks).unwrap();
                assert_eq!(hooks.queue.len(), serde_json::from_str::<Hooks>(&text).unwrap().queue.len());
                for action in hooks.on(now, event) {
                    match action {
                        Action::Run(_) => assert!(!std::mem::replace(&mut is_running, true), "seed {seed}: two run"),
                        Action::Prepared(generation, _) => {
                            assert_eq!(awaited.remove(&generation), Some(1), "seed {seed}");
                        }
                        Action::Abandon => is_running = false,
                        Action::End | Action::Kill | Action::Done(_) | Action::Failed(..) => {}
                    }
                }
                assert!(hooks.queue.len() <= 6, "seed {seed}: {}", hooks.queue.len());
            }
            while let Some(deadline) = hooks.deadline() {
                now = now.max(deadline);
                let _ = hooks.on(now, if hooks.running.is_some() { Event::Ended(Ok(())) } else { Event::Wake });
            }
            assert!(hooks.is_idle(), "seed {seed}");
        }
    }
}
