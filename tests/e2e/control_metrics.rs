//! `panzerctl metrics`, read back by Prometheus' own parser.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use crate::control::{run, text};
use crate::faults::{SOON, kill_9, start_app};
use crate::support::{Panzer, eventually, require_module, with_real_interpreter};

/// Prints a line `name{labels} value` for each sample, and `type NAME KIND` for each metric with its help.
const READ_BACK: &str = r#"
import sys
from prometheus_client.parser import text_string_to_metric_families
for family in text_string_to_metric_families(sys.stdin.read()):
    assert family.documentation, family.name
    print("type", family.name, family.type, sep="\t")
    for sample in family.samples:
        labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
        print(sample.name + "{" + labels + "}", sample.value, sep="\t")
"#;

/// What the parser made of `page`, by series. A series that is there twice is an error.
fn read_back(page: &str) -> BTreeMap<String, f64> {
    let mut python = Command::new("python3");
    python.args(["-c", READ_BACK]).env("PATH", with_real_interpreter());
    let mut child = python.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{page}\n{}", text(&output.stderr));
    let mut series = BTreeMap::new();
    for line in text(&output.stdout).lines().filter(|line| !line.starts_with("type\t")) {
        let (name, value) = line.split_once('\t').unwrap();
        assert!(series.insert(name.to_owned(), value.parse().unwrap()).is_none(), "{name} is there twice: {page}");
    }
    series
}

#[test]
fn metrics_are_read_by_prometheus_and_count_what_happened() {
    if !require_module("prometheus_client") {
        return;
    }
    let (panzer, port) = start_app(2);
    panzer.wait_serving();
    let metrics = || read_back(&text(&run(&panzer, &["metrics"]).stdout));
    let first = metrics();
    assert_eq!(first["panzer_workers{standing=serving,state=ready}"], 2.0, "{first:?}");
    assert_eq!(first["panzer_generations{standing=serving}"], 1.0);
    assert_eq!(first[&format!("panzer_accept_queue_depth{{listener=127.0.0.1:{port}}}")], 0.0);
    assert!(first[&format!("panzer_accept_queue_limit{{listener=127.0.0.1:{port}}}")] > 0.0);
    assert_eq!(first["panzer_reloads_total{verdict=done}"], 0.0);
    assert!(!first.contains_key("panzer_reload_duration_seconds{}"), "there was no reload yet");
    panzer.expect_line("warning: worker * was killed by SIGKILL");
    kill_9(panzer.workers()[0]);
    let killed = "panzer_respawns_total{cause=killed,signal=SIGKILL}";
    eventually(SOON, "it is counted and filled again", || {
        let now = metrics();
        now.get(killed) == Some(&1.0) && now["panzer_workers{standing=serving,state=ready}"] == 2.0
    });
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.expect_line("error: reload failed: generation 3");
    crate::support::write_executable(panzer.path("app"), "#!/bin/sh\nexit 7\n");
    assert!(panzer.reload_and_wait().is_err());
    panzer.wait_drained(1);
    let last = metrics();
    assert_eq!(last["panzer_reloads_total{verdict=done}"], 1.0, "{last:?}");
    assert_eq!(last["panzer_reloads_total{verdict=rejected}"], 1.0);
    assert!(last["panzer_reload_duration_seconds{}"] >= 0.2, "it had to live through its bake");
    assert_eq!(last[killed], 1.0, "of a trial, a death is no respawn: {last:?}");
    assert!(!last.contains_key("panzer_respawns_total{cause=exited,code=7}"), "{last:?}");
    assert!(!last.keys().any(|series| series.contains("pid")), "{last:?}");
}

#[test]
fn a_name_with_quotes_is_escaped() {
    if !require_module("prometheus_client") {
        return;
    }
    // That of a pid file is free; --name is not.
    let name = "a\"b\\c d";
    let pid_file = format!("{name}.pid");
    let panzer = Panzer::start(["-p", &pid_file, "-w", "1", "--bake", "100ms", "--", "sleep", "1000"]);
    panzer.wait_serving();
    let output = run(&panzer, &["--pid", panzer.path(&pid_file).to_str().unwrap(), "metrics"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let read = read_back(&text(&output.stdout));
    assert_eq!(read[&format!("panzer_info{{name={name}}}")], 1.0, "{read:?}");
}
