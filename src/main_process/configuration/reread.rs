//! Reads the configuration again: for each new generation, and for settings that can change without replacing workers.
//! If it is wrong, everything stays as it was.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Map, Value};

use crate::config::{Address, Logs, Plan, Surge, Text};
use crate::control::files::{lock_beside, make_runtime_directory, runtime_directory};
use crate::main_process::configuration::{Configuration, Release};
use crate::main_process::decide::queue_emptying::Then;
use crate::main_process::decide::{Event, Settings, hooks};
use crate::main_process::listeners::follow_plan::changes_queues;
use crate::main_process::main::Main;
use crate::main_process::processes::planner::{Planner, Purpose};
use crate::main_process::start::settings;
use crate::signals;
use crate::sockets::Refusal;
use crate::sys::errno::words;
use crate::sys::processes::Exit;
use crate::sys::stderr;
use crate::worker::cause::Cause;

/// Reading a configuration takes milliseconds. If it takes this long, the file system is dead.
const PATIENCE: Duration = Duration::from_secs(10);

/// Options that keep their value while panzer runs, and their fields in the plan.
const STAY: [(&str, &str); 7] = [
    ("name", "name"),
    ("pid", "pid_file"),
    ("control", "control"),
    ("control", "control_access"),
    ("daemonize", "daemonize"),
    ("signals, on", "signals"),
    ("share-ports", "share_ports"),
];

impl Main {
    /// Resolves the plan of this generation.
    pub(crate) fn plan_generation(&mut self, generation: u32) {
        if let Err(cause) = self.begin_planner(Purpose::Generation(generation), None) {
            self.events.push_back(Event::NotPlanned(generation, cause));
        }
    }

    /// Lets a child find out who holds an address that this generation was to listen on. The answer explains the
    /// failure.
    fn look_up_holder(&mut self, generation: u32, address: Address) {
        let begun = self.begin_planner(Purpose::Generation(generation), Some(address.clone()));
        if begun.is_err() {
            let cause = Cause::Configuration(Refusal::InUse(address).why());
            self.events.push_back(Event::NotPlanned(generation, cause));
        }
    }

    /// Nobody waits for the plan of this generation any more.
    pub(crate) fn give_up_plan(&mut self, generation: u32) {
        let of_it = |planner: &&mut Planner| planner.purpose == Purpose::Generation(generation);
        self.children.planners().filter(of_it).for_each(Planner::give_up);
        self.go_on_with_hooks(hooks::Event::GivenUp(generation));
    }

    /// Nobody waits for any plan any more.
    pub(crate) fn give_up_planning(&mut self) {
        self.children.planners().for_each(Planner::give_up);
    }

    /// Reads the configuration again, without a new generation.
    pub(crate) fn reread(&mut self) {
        if self.state.is_stopping() {
            return;
        }
        // This request is newer than the reading for a generation that is being planned, so that is repeated too.
        let of_generation = |planner: &&mut Planner| planner.wanted && planner.purpose != Purpose::Reread;
        self.children.planners().filter(of_generation).for_each(|planner| planner.again = true);
        if let Some(under_way) = self.children.planners().find(|planner| planner.purpose == Purpose::Reread) {
            under_way.again = true;
            return;
        }
        if let Err(cause) = self.begin_planner(Purpose::Reread, None) {
            tell_not_reread(&cause);
        }
    }

    fn begin_planner(&mut self, purpose: Purpose, in_use: Option<Address>) -> Result<(), Cause> {
        let serving = self.serving().filter(|_| purpose == Purpose::Reread);
        let serving =
            serving.and_then(|serving| self.configuration.found.get(&serving)).map(|found| found.fingerprint.clone());
        let own_files = self.own_files();
        let until = Instant::now() + PATIENCE;
        let planner =
            Planner::begin(purpose, &self.configuration.plan, serving, own_files, in_use, &self.environment, until);
        let planner = planner
            .map_err(|error| Cause::CannotStart(format!("the configuration cannot be read: {}", words(&error))))?;
        self.children.add_planner(planner);
        Ok(())
    }

    pub(crate) fn give_up_hanging_plan(&mut self, now: Instant) {
        let hangs =
            |planner: &&mut Planner| planner.wanted && planner.purpose == Purpose::Reread && planner.until <= now;
        if let Some(hanging) = self.children.planners().find(hangs) {
            hanging.give_up();
            tell_not_reread(&Cause::HungInPlan(PATIENCE));
        }
    }

    pub(crate) fn on_planner_ended(&mut self, planner: Planner, exit: Exit) {
        let (purpose, wanted, again) = (planner.purpose, planner.wanted, planner.again);
        let answered = planner.answered(exit);
        if answered.as_ref().is_ok_and(|answer| answer.missing) {
            self.restore_own_files();
        }
        let changed = answered.as_ref().is_ok_and(|answer| answer.changed);
        let plan = answered.and_then(|answer| answer.plan.map_err(Cause::Configuration));
        match purpose {
            _ if !wanted || self.state.is_stopping() => {}
            Purpose::Generation(generation) if again => return self.plan_generation(generation),
            Purpose::Generation(generation) => {
                let held = plan.map(|mut plan| {
                    self.listeners.held.settle_ports(&mut plan);
                    let held = self.hold(&plan);
                    self.listeners.held.settle_ports(&mut plan);
                    (held, plan)
                });
                if let Ok((Err(Refusal::InUse(address)), _)) = held {
                    return self.look_up_holder(generation, address);
                }
                let planned = held.and_then(|(held, plan)| match held {
                    Ok(()) => Ok(self.configuration.accept(plan)),
                    Err(refusal) => Err(Cause::Configuration(refusal.why())),
                });
                match planned {
                    Ok(plan) => {
                        self.configuration.plans.insert(generation, plan);
                        self.prepare(generation);
                    }
                    Err(cause) => self.events.push_back(Event::NotPlanned(generation, cause)),
                }
            }
            Purpose::Reread => match plan.and_then(|plan| self.apply_reread(plan)) {
                Ok(()) if changed => self.tell_of_new_release(),
                Ok(()) => {}
                Err(cause) => tell_not_reread(&cause),
            },
        }
        if again {
            self.reread();
        }
    }

    /// The settings by which main runs a generation with this plan.
    pub(crate) fn settings_of(&self, plan: &Plan) -> Settings {
        Settings { surge: self.surge_for(plan), ..settings(plan) }
    }

    /// The surge to use. If a listener changes to or from per-worker, old and new workers would use different queues,
    /// so everything is replaced at once.
    fn surge_for(&self, plan: &Plan) -> Surge {
        let serving = self.serving().and_then(|serving| self.configuration.plans.get(&serving));
        let changes = serving.is_some_and(|serving| changes_queues(&serving.listen, &plan.listen));
        if !changes || plan.surge == Surge::All {
            return plan.surge;
        }
        log::info!("a listener becomes per-worker, or is no longer: this reload goes all at once, without shares");
        Surge::All
    }

    /// The files by which people and panzerctl find this instance.
    fn own_files(&self) -> Vec<Text> {
        let pid_file = self.outside.pid_file.path();
        let all = [pid_file.to_owned(), lock_beside(pid_file), self.operators.clients.server.path().to_owned()];
        all.into_iter().map(|path| Text(path.into())).collect()
    }

    /// Makes removed files of its own again, unless another process has taken the place.
    pub(crate) fn restore_own_files(&mut self) {
        if self.outside.pid_file.path().parent() == Some(&runtime_directory()) {
            // If the folder cannot be made anew, the files say why.
            let _ = make_runtime_directory();
        }
        let restored = [self.outside.pid_file.restore(), self.operators.clients.server.restore(&self.poller)];
        for restored in restored {
            match restored {
                Ok(None) => {}
                Ok(Some(path)) => log::info!("{} had been removed; it is there again", path.display()),
                Err(why) => log::warn!("a file of this panzer was removed, and is not made anew: {why}"),
            }
        }
    }

    /// Many tools replace the program on HUP. A user who deployed a release and sent HUP may wait for that.
    fn tell_of_new_release(&self) {
        if self.state.progress().is_some() {
            // A reload is under way.
            return;
        }
        let reloads = |signal: &Signal| self.configuration.plan.signals.action(*signal) == signals::Action::Reload;
        let by_signal = self.configuration.plan.signals.read_by_main().into_iter().find(reloads);
        let by_signal = by_signal.map(|signal| format!(", or {},", signal.as_str())).unwrap_or_default();
        log::warn!("the program has changed on disk and goes on as it was; panzerctl reload{by_signal} replaces it");
    }

    /// Warns if the generation has found the same files as the serving one, although it may have been meant to follow a
    /// symlink.
    pub(crate) fn tell_of_unfollowed_symlink(&self, generation: u32, found: &Release) {
        let serving = self.serving().filter(|serving| *serving != generation);
        let serving = serving.and_then(|serving| self.configuration.found.get(&serving));
        let is_same = serving.is_some_and(|serving| serving.fingerprint == found.fingerprint);
        if let Some(why) = self.configuration.plans.get(&generation).and_then(Plan::missing_pwd).filter(|_| is_same) {
            log::warn!("generation {generation} runs the same files as the one before; {why}");
        }
    }

    /// Applies the settings that can change without replacing workers.
    fn apply_reread(&mut self, mut plan: Plan) -> Result<(), Cause> {
        self.listeners.held.settle_ports(&mut plan);
        self.bind_queues(plan.workers).map_err(Cause::CannotStart)?;
        let others = self.other_changes(&plan);
        let before = self.configuration.plan.workers;
        // The starting generation's plan was read earlier, so it gets the new values too.
        let starting =
            self.state.progress().and_then(|progress| self.configuration.plans.get_mut(&progress.generation));
        for planned in starting.into_iter().chain([&mut self.configuration.plan]) {
            planned.workers = plan.workers;
            planned.tuning.clone_from(&plan.tuning);
            planned.hooks.clone_from(&plan.hooks);
        }
        stderr::set_level(plan.tuning.verbosity.level());
        let stay = self.configuration.changes_that_stay(&plan);
        let part = |names: Vec<String>, when| match names.len() {
            0 => String::new(),
            count => format!("; {}: {} effect {when}", names.join(", "), takes(count)),
        };
        let (later, never) = (part(others, "with the next reload"), part(stay, "when panzer is started anew"));
        log::info!("configuration read again{later}{never}");
        self.apply_reread_count(before);
        Ok(())
    }

    /// Applies the new number of workers. If slots have their own queues, the queues that go are emptied first, as with
    /// any other change of the number.
    fn apply_reread_count(&mut self, before: u32) {
        let to = self.configuration.plan.workers;
        let from = self.listeners.per_worker.emptyings.count().unwrap_or_else(|| self.state.workers());
        let fewer = to != before && (to < from || self.listeners.per_worker.emptyings.count().is_some());
        if !fewer || !self.has_own_queues() {
            return self.go_by_newest();
        }
        let now = Instant::now();
        self.listeners.per_worker.emptyings.begin(
            to,
            Then::Reread,
            now + self.configuration.plan.tuning.retirement().total(),
            now,
        );
    }

    /// Running generations get the settings that were read last, even if it was for the starting generation.
    pub(crate) fn go_by_newest(&mut self) {
        let starting = self.state.progress().and_then(|progress| self.configuration.plans.get(&progress.generation));
        let newest = starting.unwrap_or(&self.configuration.plan);
        self.events.push_back(Event::Reread(newest.workers, newest.tuning.clone()));
    }

    /// The options in which `plan` differs from the plan of the serving generation and that need new workers.
    fn other_changes(&self, plan: &Plan) -> Vec<String> {
        let serving = self
            .serving()
            .and_then(|serving| self.configuration.plans.get(&serving))
            .unwrap_or(&self.configuration.plan);
        let (tuning, hooks) = (plan.tuning.clone(), plan.hooks.clone());
        let serving = Plan { workers: plan.workers, tuning, hooks, ..serving.clone() };
        let name = |field: String| match field.as_str() {
            "probe" => "ready".to_owned(),
            "env_files" => "env-file".to_owned(),
            _ => field.replace('_', "-"),
        };
        let stay = self.configuration.changes_that_stay(plan);
        let stays = |field: &String| STAY.iter().any(|(_, stays)| stays == field) || stay.contains(field);
        let mut names: Vec<String> =
            differ(&serving, plan).into_iter().filter(|field| !stays(field)).map(name).collect();
        names.dedup();
        names
    }
}

impl Configuration {
    /// The plan of a new generation. Options that keep their value get the present one.
    fn accept(&self, mut plan: Plan) -> Plan {
        let stay = self.changes_that_stay(&plan);
        if !stay.is_empty() {
            log::warn!("{}: {} effect when panzer is started anew", stay.join(", "), takes(stay.len()));
        }
        self.keep_what_stays(&mut plan);
        plan
    }

    /// The options in which `plan` differs and that keep their value.
    fn changes_that_stay(&self, plan: &Plan) -> Vec<String> {
        let changed = differ(&self.plan, plan);
        let stays = |(_, field): &&(&str, &str)| changed.iter().any(|changed| changed == field);
        let mut stay: Vec<String> = STAY.iter().filter(stays).map(|(option, _)| (*option).to_owned()).collect();
        // Its limits may change.
        stay.extend((plan.cgroup.is_some() != self.plan.cgroup.is_some()).then(|| "cgroup".to_owned()));
        stay.dedup();
        stay
    }

    fn keep_what_stays(&self, plan: &mut Plan) {
        let before = &self.plan;
        plan.name.clone_from(&before.name);
        plan.pid_file.clone_from(&before.pid_file);
        plan.control.clone_from(&before.control);
        plan.control_access.clone_from(&before.control_access);
        plan.daemonize = before.daemonize;
        plan.signals = before.signals.clone();
        plan.share_ports.clone_from(&before.share_ports);
        if plan.cgroup.is_some() != before.cgroup.is_some() {
            plan.cgroup = before.cgroup;
        }
    }

    /// The generation serves: the next plan is compared with its plan.
    pub(crate) fn runs_by_plan_of(&mut self, generation: u32) {
        if let Some(plan) = self.plans.get(&generation) {
            self.plan.clone_from(plan);
            stderr::set_level(plan.tuning.verbosity.level());
            stderr::set_json(plan.logs.is_json());
        }
    }
}

fn takes(count: usize) -> &'static str {
    if count == 1 { "takes" } else { "take" }
}

fn tell_not_reread(cause: &Cause) {
    let why = cause.to_string();
    log::error!("configuration not read again: {}; nothing has changed", why.lines().next().unwrap_or_default());
}

/// The fields in which two plans differ. The fields of `identity` and `handover` count one by one.
fn differ(one: &Plan, other: &Plan) -> Vec<String> {
    let (one, other) = (fields(one), fields(other));
    // What is usual may be left out of either.
    let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    names.into_iter().filter(|name| one.get(*name) != other.get(*name)).cloned().collect()
}

fn fields(plan: &Plan) -> Map<String, Value> {
    let Ok(Value::Object(mut fields)) = serde_json::to_value(plan) else { return Map::new() };
    for group in ["identity", "handover", "logs"] {
        // Usual logs are left out.
        let members = fields.remove(group).or_else(|| serde_json::to_value(Logs::default()).ok());
        if let Some(Value::Object(members)) = members {
            fields.extend(members);
        }
    }
    fields
}
