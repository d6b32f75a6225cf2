//! The state in Prometheus' text format. No label has an unlimited number of values, as pids or generations have.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::config::Reason;
use crate::control::operator::status::{Cgroup, Generation, HookRuns, Queue, Respawns, Status, Worker};

/// Every standing and state is shown, even if its value is 0: series that come and go are hard to query.
const STANDINGS: [&str; 3] = ["serving", "starting", "draining"];
const STATES: [&str; 7] = ["starting", "ready", "stopping", "stopped", "waiting", "ended", "empty"];

/// The samples of one metric: labels with their values, and the number.
type Samples = Vec<(Vec<(&'static str, String)>, f64)>;

/// The whole page.
pub(super) fn render(status: &Status) -> String {
    let mut out = String::new();
    let single = |value: f64| vec![(Vec::new(), value)];
    let flag = |value: bool| single(u8::from(value).into());
    let mut gauge = |name, help, samples| metric(&mut out, (name, "gauge"), help, samples);
    gauge("panzer_info", "Always 1; the name of the instance.", vec![(vec![("name", status.name.clone())], 1.0)]);
    gauge("panzer_uptime_seconds", "Time since main began.", single(seconds(status.uptime_ms)));
    gauge("panzer_ready", "Whether all wanted workers have been ready together, and one is now.", flag(status.ready));
    gauge("panzer_stopping", "Whether panzer is stopping.", flag(status.stopping));
    gauge("panzer_workers_wanted", "Number of workers that shall run.", single(status.workers.into()));
    gauge("panzer_generations", "Generations by standing.", generations(status));
    gauge("panzer_monitors_silent", "Monitors that did not answer within a second.", single(silent(status)));
    let help = "Workers by their generation's standing and their own state.";
    gauge("panzer_workers", help, by_state(status, |generation| &generation.workers));
    let help = "Molds (--preload) by their generation's standing and their own state.";
    gauge("panzer_molds", help, by_state(status, |generation| generation.mold.as_slice()));
    let last = status.reloads.last_ms.map(|millis| (Vec::new(), seconds(millis)));
    let help = "Duration of the last reload that was done; missing before the first one.";
    gauge("panzer_reload_duration_seconds", help, last.into_iter().collect());
    let help = "Connections that wait in the accept queue of a listener.";
    gauge("panzer_accept_queue_depth", help, queues(&status.listeners, |queue| queue.queued));
    let help = "Connections that may wait in the accept queue of a listener.";
    gauge("panzer_accept_queue_limit", help, queues(&status.listeners, |queue| queue.limit));
    let help = "Connections that wait in the fullest of the accept queues of a listener that has several.";
    gauge("panzer_accept_queue_fullest", help, fullest(&status.listeners));
    let help = "Memory in use by the cgroups of generations (--cgroup), in bytes.";
    gauge("panzer_cgroup_memory_bytes", help, cgroups(status, |cgroup| cgroup.memory));
    let help = "Limit of the memory of each of these cgroups, in bytes.";
    gauge("panzer_cgroup_memory_limit_bytes", help, cgroups(status, |cgroup| cgroup.memory_max));
    let help = "Processes and threads in the cgroups of generations.";
    gauge("panzer_cgroup_pids", help, cgroups(status, |cgroup| cgroup.pids));
    let help = "Limit of the processes and threads of each of these cgroups.";
    gauge("panzer_cgroup_pids_limit", help, cgroups(status, |cgroup| cgroup.pids_max));
    let help = "Workers that ended on their own, outside of a trial, and were replaced, by how they ended.";
    metric(&mut out, ("panzer_respawns_total", "counter"), help, respawns(status));
    let help = "Workers that were replaced because they had reached a limit, or to share more memory (--refork).";
    metric(&mut out, ("panzer_recycled_total", "counter"), help, recycled(status));
    metric(&mut out, ("panzer_reloads_total", "counter"), "Reloads by outcome.", reloads(status));
    metric(&mut out, ("panzer_hooks_total", "counter"), "Commands of hooks that were run, by outcome.", hooks(status));
    out
}

fn generations(status: &Status) -> Samples {
    let count = |standing| status.generations.iter().filter(|generation| generation.standing == standing).count();
    STANDINGS.map(|standing| (vec![("standing", standing.to_owned())], count(standing) as f64)).into()
}

fn silent(status: &Status) -> f64 {
    status.generations.iter().filter(|generation| !generation.answered).count() as f64
}

fn by_state(status: &Status, all_of: fn(&Generation) -> &[Worker]) -> Samples {
    let count = |standing: &str, state: &str| {
        let of = status.generations.iter().filter(|generation| generation.standing == standing);
        of.flat_map(all_of).filter(|worker| worker.state == state).count()
    };
    let all = STANDINGS.into_iter().flat_map(|standing| STATES.map(|state| (standing, state)));
    let sample = |(standing, state): (&str, &str)| {
        (vec![("standing", standing.to_owned()), ("state", state.to_owned())], count(standing, state) as f64)
    };
    all.map(sample).collect()
}

/// By standing; of several draining generations the one with the highest value.
fn cgroups(status: &Status, number: fn(&Cgroup) -> Option<u64>) -> Samples {
    let of = |standing: &str| {
        let all = status.generations.iter().filter(|generation| generation.standing == standing);
        let most = all.filter_map(|generation| number(generation.cgroup.as_ref()?)).max()?;
        Some((vec![("standing", standing.to_owned())], most as f64))
    };
    STANDINGS.into_iter().filter_map(of).collect()
}

/// The sum of all listeners with the same address: a series may appear only once.
fn queues(listeners: &[Queue], number: impl Fn(&Queue) -> Option<u32>) -> Samples {
    let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
    for (queue, number) in listeners.iter().filter_map(|queue| Some((queue, number(queue)?))) {
        *sums.entry(&queue.address).or_default() += f64::from(number);
    }
    sums.into_iter().map(|(address, sum)| (vec![("listener", address.to_owned())], sum)).collect()
}

/// Only of listeners with a queue for each worker. A worker that has stopped accepting does not show in the sum.
fn fullest(listeners: &[Queue]) -> Samples {
    let several: Vec<Queue> = listeners.iter().filter(|queue| queue.queues > 1).cloned().collect();
    queues(&several, |queue| queue.fullest)
}

fn respawns(status: &Status) -> Samples {
    let labels = |cause: &str, code: Option<i32>, signal: Option<&String>| {
        let code = code.map(|code| ("code", code.to_string()));
        let signal = signal.map(|signal| ("signal", signal.clone()));
        [("cause", cause.to_owned())].into_iter().chain(code).chain(signal).collect()
    };
    let sample =
        |respawns: &Respawns| (labels(&respawns.cause, respawns.code, respawns.signal.as_ref()), respawns.count as f64);
    status.respawns.iter().map(sample).collect()
}

fn recycled(status: &Status) -> Samples {
    let of = |reason: &str| status.recycled.get(reason).copied().unwrap_or_default() as f64;
    Reason::WORDS.map(|reason| (vec![("reason", reason.to_owned())], of(reason))).into()
}

fn reloads(status: &Status) -> Samples {
    let reloads = status.reloads;
    let verdicts = [("done", reloads.done), ("rejected", reloads.rejected), ("stopped", reloads.stopped)];
    verdicts.map(|(verdict, count)| (vec![("verdict", verdict.to_owned())], count as f64)).into()
}

fn hooks(status: &Status) -> Samples {
    let of = |runs: &HookRuns| {
        let labels = |outcome: &str| vec![("event", runs.event.clone()), ("outcome", outcome.to_owned())];
        [(labels("done"), runs.done as f64), (labels("failed"), runs.failed as f64)]
    };
    status.hooks.iter().flat_map(of).collect()
}

fn seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}

fn metric(out: &mut String, (name, kind): (&str, &str), help: &str, samples: Samples) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value) in samples {
        let labels: Vec<String> = labels.iter().map(|(name, text)| format!("{name}=\"{}\"", escape(text))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(out, "{name}{labels} {value}");
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_no_series_comes_twice() {
        let queue = |queued| Queue { address: "127.0.0.1:80".to_owned(), queued, limit: Some(10), ..Queue::default() };
        let listeners = vec![queue(Some(1)), queue(Some(2)), queue(None)];
        let cgroup = |standing: &str, pids| Generation {
            standing: standing.to_owned(),
            cgroup: Some(Cgroup { pids: Some(pids), ..Cgroup::default() }),
            ..Generation::default()
        };
        let generations = vec![cgroup("draining", 3), cgroup("draining", 5), cgroup("serving", 7)];
        let status = Status { name: "a\"b\\c\nd".to_owned(), listeners, generations, ..Status::default() };
        let page = render(&status);
        assert!(page.contains("panzer_info{name=\"a\\\"b\\\\c\\nd\"} 1\n"), "{page}");
        assert!(page.contains("panzer_accept_queue_depth{listener=\"127.0.0.1:80\"} 3\n"), "{page}");
        assert!(
            page.contains("panzer_cgroup_pids{standing=\"serving\"} 7\npanzer_cgroup_pids{standing=\"draining\"} 5\n"),
            "{page}"
        );
        assert!(page.contains("panzer_accept_queue_limit{listener=\"127.0.0.1:80\"} 30\n"), "{page}");
    }
}
