//! Hooks: each event runs its command, with its facts; what a command does wrong hinders nobody.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::Signal::{SIGTERM, SIGUSR1, SIGUSR2};

use crate::control::{panzerctl, run, text};
use crate::faults::{SOON, kill_9};
use crate::support::{Builder, Panzer, eventually, write_executable};

/// A hook that notes what it was given, a line for each run.
fn noting(event: &str) -> String {
    format!(
        "{event}=echo $PANZER_EVENT count=$PANZER_COUNT generation=$PANZER_GENERATION worker=$PANZER_WORKER_ID \
         code=$PANZER_EXIT_CODE signal=$PANZER_SIGNAL name=$PANZER_NAME main=$PANZER_MAIN_PID reason=$PANZER_REASON >>$NOTED"
    )
}

fn app(hooks: &[&str]) -> Builder {
    let hooks = hooks.iter().flat_map(|hook| ["--hook", hook]);
    let options = ["-w", "2", "--bake", "0s", "--ready", "alive", "--share-ports", "off"];
    Panzer::builder().executable("app", "#!/bin/sh\nexec sleep 1000\n").args(options).args(hooks).arg("./app")
}

fn app_started(builder: Builder) -> Panzer {
    let panzer = builder.start();
    panzer.wait_serving();
    panzer
}

/// Puts another executable in the place of one that may run.
fn replace(panzer: &Panzer, name: &str, content: &str) {
    write_executable(panzer.path("new"), content);
    fs::rename(panzer.path("new"), panzer.path(name)).unwrap();
}

#[track_caller]
fn wait_noted(noted: &Path, wanted: &str) {
    let is_there = || fs::read_to_string(noted).is_ok_and(|text| text.lines().any(|line| line.starts_with(wanted)));
    eventually(SOON, &format!("{wanted:?} is noted"), is_there);
}

#[test]
fn each_event_runs_its_command_with_its_facts() {
    let events = ["before-reload", "after-reload", "rejected", "died", "stopped"].map(noting);
    let kept = tempfile::tempdir().unwrap();
    let noted = kept.path().join("noted");
    let panzer = app_started(app(&events.each_ref().map(String::as_str)).env("NOTED", &noted));
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    wait_noted(&noted, "before-reload count=1 generation=2 worker= code= signal= name=app main=");
    wait_noted(&noted, "after-reload count=1 generation=2 worker= code= signal= name=app");
    panzer.expect_line("warning: worker * (pid *, generation 2) was killed by SIGKILL");
    let killed = panzer.workers()[1];
    kill_9(killed);
    wait_noted(&noted, "died count=1 generation=2 worker=1 code= signal=SIGKILL name=app");
    // It has executed the release by then, which is replaced below.
    eventually(SOON, "another worker is ready in its place", || {
        let status = panzer.status();
        let mut workers = status.serving().workers.iter();
        workers.all(|worker| worker.phase == "ready" && worker.pid != Some(killed))
    });
    replace(&panzer, "app", "#!/nowhere/sh\n");
    panzer.expect_line("error: reload failed: generation 3: *nowhere*");
    assert!(panzer.reload_and_wait().is_err());
    wait_noted(&noted, "rejected count=1 generation=3 ");
    // Each is counted once its process has ended.
    let says = |command: &[&str], wanted: &str| text(&run(&panzer, command).stdout).contains(wanted);
    eventually(SOON, "the status counts it", || {
        says(&["status", "--json"], r#"{"done":1,"event":"after-reload","failed":0}"#)
    });
    eventually(SOON, "a metric counts it", || {
        says(&["metrics"], r#"panzer_hooks_total{event="rejected",outcome="done"} 1"#)
    });
    panzer.stop();
    let noted = fs::read_to_string(noted).unwrap();
    assert!(noted.lines().last().unwrap().starts_with("stopped count=1 generation="), "{noted}");
    assert!(noted.contains(" code=0 "), "{noted}");
}

#[test]
fn who_gives_up_says_so_and_the_exit_code_stays() {
    let kept = tempfile::tempdir().unwrap();
    let noted = kept.path().join("noted");
    let panzer = app(&[&noting("gave-up"), "stopped=exit 7"])
        .executable("app", "#!/bin/sh\nexit 3\n")
        .args(["--respawn-limit", "2/60s", "--delay", "10ms"])
        .env("NOTED", &noted)
        .allow_line("warning: worker * (pid *, generation 1) exited with code 3")
        .allow_line("error: more than 2 respawns within 1m; giving up")
        .expect_line("error: generation 1 keeps failing; stopping everything")
        .expect_line("warning: the stopped hook exited with code 7")
        .start();
    assert_eq!(panzer.wait_exit().code(), Some(1));
    assert!(fs::read_to_string(noted).unwrap().starts_with("gave-up count=1 generation=1"));
}

#[test]
fn a_failed_test_before_a_reload_rejects_it_with_its_last_lines() {
    let panzer = app(&["before-reload=./check"]).executable("check", "#!/bin/sh\necho one; echo two >&2; exit 4\n");
    let panzer = panzer
        .expect_line("before-reload hook: one")
        .expect_line("before-reload hook: two")
        .expect_line(
            "error: reload failed: generation 2: the before-reload hook exited with code 4; generation 1 serves on",
        )
        .start();
    panzer.wait_serving();
    let before = panzer.workers();
    let reload = run(&panzer, &["reload"]);
    assert_eq!(reload.status.code(), Some(1));
    let said = text(&reload.stderr);
    assert!(said.contains("the before-reload hook exited with code 4") && said.contains("  | one\n  | two"), "{said}");
    assert_eq!(panzer.workers(), before);
    replace(&panzer, "check", "#!/bin/sh\nexit 0\n");
    assert_eq!(panzer.reload_and_wait(), Ok(3));
    panzer.stop();
}

#[test]
fn a_hook_that_hangs_is_ended_and_hinders_nobody() {
    // With a child that heeds nothing, in a session of its own.
    let hang = "died=trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 1000' & sleep 1000; sleep 1000";
    let kept = tempfile::tempdir().unwrap();
    let noted = kept.path().join("noted");
    let panzer = app(&[hang, &noting("after-reload")]).args(["--hook-timeout", "1s"]).env("NOTED", &noted);
    let panzer = app_started(panzer);
    panzer.expect_line("warning: worker * (pid *, generation 1) was killed by SIGKILL");
    panzer.expect_line("warning: the died hook did not end within 1s and was ended");
    kill_9(panzer.workers()[0]);
    // A monitor that is told to stop its workers first takes this for the end of one of those.
    panzer.wait_for_line("was killed by SIGKILL", SOON);
    // It runs, and everything else goes on.
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_for_line("the died hook did not end within 1s and was ended", SOON);
    wait_noted(&noted, "after-reload count=1 generation=2");
    panzer.stop();
}

#[test]
fn what_a_command_leaves_running_is_named_as_such() {
    let panzer = app_started(app(&["before-reload=setsid sleep 1000 & exit 0"]).args(["--hook-timeout", "500ms"]));
    panzer.expect_line("the before-reload hook left processes behind, which did not end within 500ms and were ended;");
    assert!(panzer.reload_and_wait().is_err());
    panzer.stop();
}

#[test]
fn a_hook_that_floods_is_cut_and_one_that_fails_is_told() {
    let panzer =
        app_started(app(&["died=yes", "died=exit 9", "after-reload=/nowhere/tool"]).args(["--hook-timeout", "1s"]));
    panzer.expect_line("warning: worker * (pid *, generation 1) was killed by SIGKILL");
    panzer.expect_line("died hook: y");
    panzer.expect_line("died hook: * more lines are not shown");
    panzer.expect_line("warning: the died hook did not end within 1s and was ended");
    panzer.expect_line("warning: the died hook exited with code 9");
    panzer.expect_line("after-reload hook: *nowhere/tool");
    panzer.expect_line("warning: the after-reload hook exited with code 127");
    kill_9(panzer.workers()[0]);
    panzer.wait_for_line("the died hook exited with code 9", SOON);
    assert!(panzer.lines().iter().filter(|line| line.contains("died hook: y")).count() <= 100);
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_for_line("the after-reload hook exited with code 127", SOON);
    panzer.stop();
}

#[test]
fn a_restart_in_place_carries_a_running_hook() {
    let panzer = app_started(app(&["before-reload=touch runs; while [ ! -e go ]; do sleep 0.1; done"]));
    let reload = panzerctl(&panzer, &["reload"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually(SOON, "the hook runs", || panzer.path("runs").exists());
    let mark = panzer.mark();
    panzer.signal(SIGUSR2);
    panzer.wait_for_line_after(mark, "restarted in place", SOON);
    fs::write(panzer.path("go"), "").unwrap();
    assert!(reload.wait_with_output().unwrap().status.success());
    assert_eq!(panzer.status().serving().number, 2);
    panzer.stop();
}

#[test]
fn a_stop_gives_up_what_runs_before_a_reload() {
    let panzer = app_started(app(&["before-reload=touch runs; exec sleep 1000"]));
    panzer.signal(SIGUSR1);
    eventually(SOON, "the hook runs", || panzer.path("runs").exists());
    panzer.signal(SIGTERM);
    assert_eq!(panzer.wait_exit().code(), Some(0));
}

#[test]
fn what_a_hook_runs_ends_with_a_killed_main() {
    let panzer = app_started(app(&["before-reload=touch runs; sleep 1000 & sleep 1000"]));
    panzer.signal(SIGUSR1);
    eventually(SOON, "the hook runs", || panzer.path("runs").exists());
    kill_9(panzer.pid());
    panzer.wait_exit();
}

#[test]
fn what_a_command_writes_is_json_where_messages_are() {
    let panzer = app(&["died=printf 'say \"x\"\\n'; exit 3"]).args(["--log-format", "json"]).start();
    panzer.allow_line("{*}");
    panzer.wait_for_line("{*generation 1 serves: 2 workers ready*}", SOON);
    assert!(run(&panzer, &["signal", "KILL", "--worker", "0"]).status.success());
    panzer.wait_for_line("{*\"message\":\"died hook: say \\\"x\\\"\"}", SOON);
    panzer.wait_for_line("{*\"message\":\"the died hook exited with code 3\"}", SOON);
    panzer.stop();
}
