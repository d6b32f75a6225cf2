//! Counters since main began, for metrics and for the dialect of start_server. Nothing is decided by them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::HookEvent;
use crate::control::operator::status::{Failed, HookRuns, Reloads, Respawns};
use crate::main_process::decide::Verdict;
use crate::worker::cause::Cause;

/// The kind of a cause, with an exit code or a signal. There are a few hundred kinds at most.
type Kind = (String, Option<i32>, Option<String>);

/// The counts.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Counters {
    #[serde(with = "crate::carry::pairs")]
    respawns: BTreeMap<Kind, u64>,
    reloads: Reloads,
    /// Number of starts: of generations, and of workers of generations that do not have to prove themselves.
    #[serde(default)]
    starts: u32,
    /// For each limit, number of workers that were replaced because they had reached it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    recycled: BTreeMap<String, u64>,
    /// For each event, number of its commands that succeeded, and that failed.
    #[serde(default, with = "crate::carry::pairs", skip_serializing_if = "BTreeMap::is_empty")]
    hooks: BTreeMap<HookEvent, (u64, u64)>,
}

impl Counters {
    /// A monitor starts workers. Returns the number of this start, from 1.
    pub(crate) fn started(&mut self) -> u32 {
        self.starts = self.starts.saturating_add(1);
        self.starts
    }

    /// A worker has ended and is replaced. Its generation is not on trial.
    pub(crate) fn respawned(&mut self, cause: &Cause) {
        self.started();
        let Failed { cause, code, signal, .. } = Failed::new(0, cause);
        *self.respawns.entry((cause, code, signal)).or_default() += 1;
    }

    /// A worker was replaced because it had reached this limit.
    pub(crate) fn recycled(&mut self, reason: &str) {
        self.started();
        *self.recycled.entry(reason.to_owned()).or_default() += 1;
    }

    pub(crate) fn recyclings(&self) -> BTreeMap<String, u64> {
        self.recycled.clone()
    }

    /// Counts the verdict of a reload.
    pub(crate) fn judged(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Serves(_, took) => {
                self.reloads.done += 1;
                self.reloads.last_ms = Some(Duration::as_millis(took) as u64);
            }
            Verdict::Rejected(_) => self.reloads.rejected += 1,
            Verdict::Stopped => self.reloads.stopped += 1,
        }
    }

    /// A command for this event has ended.
    pub(crate) fn hook_ended(&mut self, event: HookEvent, is_done: bool) {
        let (done, failed) = self.hooks.entry(event).or_default();
        *if is_done { done } else { failed } += 1;
    }

    pub(crate) fn hooks(&self) -> Vec<HookRuns> {
        let runs =
            |(event, &(done, failed)): (&HookEvent, &(u64, u64))| HookRuns { event: event.to_string(), done, failed };
        self.hooks.iter().map(runs).collect()
    }

    pub(crate) fn respawns(&self) -> Vec<Respawns> {
        let entry = |((cause, code, signal), &count): (&Kind, &u64)| Respawns {
            cause: cause.clone(),
            code: *code,
            signal: signal.clone(),
            count,
        };
        self.respawns.iter().map(entry).collect()
    }

    pub(crate) fn reloads(&self) -> Reloads {
        self.reloads
    }
}
