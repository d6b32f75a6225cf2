//! The commands that people have panzer run when something happens to it: for which events, and with which facts.

use std::collections::VecDeque;
use std::time::Instant;

use nix::unistd::Pid;

use super::messages;
use crate::config::HookEvent;
use crate::control::operator::status::Failed;
use crate::main_process::decide::hooks::{Action, Event, Facts, Hooks, Run};
use crate::main_process::decide::{self, Note, Verdict};
use crate::main_process::main::Main;
use crate::main_process::processes::hook::{HookProcess, Question};
use crate::sys::errno::words;
use crate::worker::cause::Cause;

impl Main {
    /// The plan of this generation is known: its commands run, and then it is started.
    pub(crate) fn prepare(&mut self, generation: u32) {
        let Some(plan) = self.configuration.plans.get(&generation) else { return };
        let (commands, timeout) = (plan.hooks.commands(HookEvent::BeforeReload), plan.hooks.hook_timeout);
        if commands.is_empty() {
            return self.on_prepared(generation, Ok(()));
        }
        log::info!("reload: running the before-reload hook of generation {generation}");
        self.events.push_back(decide::Event::Preparing(generation, Hooks::longest(commands.len(), timeout)));
        let facts = facts(HookEvent::BeforeReload, Some(generation), format!("generation {generation} is to start"));
        self.go_on_with_hooks(Event::Happened(facts, commands, timeout));
    }

    /// A worker or a monitor of the serving generation has ended, so that another is started.
    pub(crate) fn tell_hooks_of_death(&mut self, generation: u32, worker: Option<u32>, cause: &Cause) {
        let who = worker.map_or_else(|| "the monitor".to_owned(), |slot| format!("worker {slot}"));
        let reason = format!("{who} of generation {generation}{}", cause.after_name());
        let Failed { code, signal, .. } = Failed::new(0, cause);
        let facts = facts(HookEvent::Died, Some(generation), reason);
        self.tell_hooks(Facts { worker, exit_code: code, signal, ..facts });
    }

    /// A reload has its verdict.
    pub(crate) fn tell_hooks_of_verdict(&mut self, generation: u32, verdict: &Verdict) {
        match verdict {
            Verdict::Serves(..) => {
                let reason = format!("generation {generation} serves");
                self.tell_hooks(facts(HookEvent::AfterReload, Some(generation), reason));
            }
            Verdict::Rejected(why) => {
                let plan = self.configuration.plans.get(&generation).unwrap_or(&self.configuration.plan);
                let reason = messages::rejected(generation, why, plan, &self.listeners.conflicts);
                let facts = facts(HookEvent::Rejected, Some(generation), reason);
                let Failed { code, signal, .. } = Failed::new(0, &why.cause);
                self.tell_hooks(Facts { worker: why.slot, exit_code: code, signal, ..facts });
            }
            Verdict::Stopped => {}
        }
    }

    /// Reports to the hooks what is logged.
    pub(crate) fn tell_hooks_of_note(&mut self, note: &Note) {
        match note {
            Note::MonitorDied(generation, cause, _) => self.tell_hooks_of_death(*generation, None, cause),
            Note::GaveUp(generation) => {
                let reason = format!("generation {generation} keeps failing");
                self.tell_hooks(facts(HookEvent::GaveUp, Some(*generation), reason));
            }
            Note::Fatal(cause) => self.tell_hooks(facts(HookEvent::GaveUp, None, cause.to_string())),
            _ => {}
        }
    }

    /// Everything has ended: panzer exits with this code once the commands have.
    pub(crate) fn tell_hooks_of_end(&mut self, code: u8) {
        let facts = facts(HookEvent::Stopped, self.serving(), format!("panzer exits with code {code}"));
        self.tell_hooks(Facts { exit_code: Some(code.into()), ..facts });
        self.go_on_with_hooks(Event::Ending);
    }

    fn tell_hooks(&mut self, facts: Facts) {
        let hooks = &self.configuration.plan.hooks;
        let (commands, timeout) = (hooks.commands(facts.event), hooks.hook_timeout);
        self.go_on_with_hooks(Event::Happened(facts, commands, timeout));
    }

    pub(crate) fn go_on_with_hooks(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.operators.hooks.on(Instant::now(), event) {
                match action {
                    Action::Run(run) => match self.begin_hook(run) {
                        Ok(process) => self.children.hook = Some(process),
                        Err(error) => {
                            events.push_back(Event::Ended(Err(format!("could not be started: {}", words(&error)))));
                        }
                    },
                    Action::End => self.children.hook.iter().for_each(HookProcess::end),
                    Action::Kill => self.children.hook.iter().for_each(HookProcess::kill),
                    // It is only reaped, whenever that may be.
                    Action::Abandon => {
                        let pid = self.children.hook.take().map(|hook| hook.pid());
                        self.children.strangers.extend(pid);
                    }
                    Action::Done(event) => self.operators.counters.hook_ended(event, true),
                    Action::Failed(facts, why) => {
                        self.operators.counters.hook_ended(facts.event, false);
                        if facts.event != HookEvent::BeforeReload {
                            let why = why.lines().next().unwrap_or_default();
                            log::warn!("the {} hook {why}", facts.event);
                        }
                    }
                    Action::Prepared(generation, result) => self.on_prepared(generation, result),
                }
            }
        }
    }

    fn on_prepared(&mut self, generation: u32, result: Result<(), String>) {
        let settings = self.configuration.plans.get(&generation).map(|plan| self.settings_of(plan));
        self.events.push_back(match (result, settings) {
            (Ok(()), Some(settings)) => decide::Event::Planned(generation, settings),
            (Ok(()), None) => return,
            (Err(why), _) => {
                decide::Event::NotPlanned(generation, Cause::Hook(format!("the before-reload hook {why}")))
            }
        });
    }

    fn begin_hook(&self, run: Run) -> std::io::Result<HookProcess> {
        let own = run.facts.generation.and_then(|generation| self.configuration.plans.get(&generation));
        let own = own.unwrap_or(&self.configuration.plan);
        let directory = own.chdir.as_ref().map(|chdir| own.start_directory.join(chdir));
        let directory = directory.unwrap_or_else(|| own.start_directory.clone());
        let oom_score = self.outside.unprotected;
        let is_json = self.configuration.plan.logs.is_json();
        let question = Question { variables: self.variables(&run), run, directory, oom_score, is_json };
        HookProcess::begin(&question, &self.environment)
    }

    fn variables(&self, Run { facts, count, .. }: &Run) -> Vec<(String, String)> {
        let number = |number: Option<u32>| number.map(|number| number.to_string());
        let known = [
            ("EVENT", Some(facts.event.to_string())),
            ("COUNT", Some(count.to_string())),
            ("REASON", Some(facts.reason.clone())),
            ("GENERATION", number(facts.generation)),
            ("WORKER_ID", number(facts.worker)),
            ("EXIT_CODE", facts.exit_code.map(|code| code.to_string())),
            ("SIGNAL", facts.signal.clone()),
            ("NAME", Some(self.name())),
            ("MAIN_PID", Some(Pid::this().to_string())),
        ];
        known.into_iter().filter_map(|(name, value)| Some((format!("PANZER_{name}"), value?))).collect()
    }
}

fn facts(event: HookEvent, generation: Option<u32>, reason: String) -> Facts {
    Facts { event, generation, worker: None, exit_code: None, signal: None, reason: Cause::bounded(reason) }
}
