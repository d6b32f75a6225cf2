//! What signals do to main, by each preset and by `--on`: every cell of the table, with real processes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use nix::sys::signal::Signal;
use nix::sys::signal::Signal::*;

use crate::faults::SOON;
use crate::faults::stopping::on_a_terminal;
use crate::support::{Builder, Panzer, eventually};

/// Notes each signal that is sent to it, and ends by INT only.
const STUBBORN: &str = "#!/bin/sh
trap 'echo TERM >> told' TERM
trap 'exit 0' INT
: > ready-$PANZER_GENERATION-$PANZER_WORKER_ID
while :; do sleep 0.02; done
";

fn builder(preset: &str) -> Builder {
    Panzer::builder().args(["-w", "2", "--bake", "50ms", "--signals", preset, "--", "sleep", "1000"])
}

fn start(preset: &str) -> Panzer {
    let panzer = builder(preset).start();
    panzer.wait_serving();
    panzer
}

/// Without the status table, which not every preset has a signal for.
fn after(panzer: &Panzer, signal: Signal, line: &str) {
    let mark = panzer.mark();
    panzer.signal(signal);
    panzer.wait_for_line_after(mark, line, SOON);
}

fn reloads(panzer: &Panzer, signal: Signal, generation: u32) {
    after(panzer, signal, &format!("reload done: generation {generation} serves*"));
    panzer.wait_drained(generation - 1);
}

fn reopens(panzer: &Panzer, signal: Signal) {
    panzer.allow_line("nothing is open but stderr, which is not ours");
    after(panzer, signal, "nothing is open but stderr, which is not ours");
}

/// It says nothing to these, and `line` to what comes after them.
fn ignores(panzer: &Panzer, signals: &[Signal], then: Signal, line: &str) {
    let mark = panzer.mark();
    signals.iter().for_each(|signal| panzer.signal(*signal));
    panzer.signal(then);
    let first = panzer.wait_for_line_after(mark, "panzer: ", SOON);
    assert!(first.contains(line), "{first}");
}

/// A panzer of its own, with workers that end by INT only. By a graceful stop they get TERM first.
fn stops(preset: &str, signal: Signal, gracefully: bool) {
    let arguments = ["-w", "1", "--bake", "50ms", "--stop", "TERM/300ms/INT/5s/KILL", "--signals", preset, "./app"];
    let panzer = Panzer::builder().executable("app", STUBBORN).args(arguments).start();
    panzer.allow_line("has not stopped yet; sent it SIGINT");
    panzer.allow_line("ended and left processes behind; stopping them");
    panzer.wait_serving();
    eventually(SOON, "it is ready", || panzer.path("ready-1-0").exists());
    let told = panzer.path("told");
    panzer.signal(signal);
    panzer.wait_for_end();
    assert_eq!(told.exists(), gracefully, "{preset} {signal}");
    assert_eq!(panzer.wait_exit().code(), Some(0), "{preset} {signal}");
}

#[test]
fn panzer() {
    let own = start("panzer");
    reloads(&own, SIGUSR1, 2);
    ignores(&own, &[SIGTTOU, SIGWINCH, SIGCONT], SIGTTIN, "main ");
    after(&own, SIGHUP, "configuration read again");
    assert_eq!(own.stop().code(), Some(0));
    stops("panzer", SIGTERM, true);
    stops("panzer", SIGINT, true);
    stops("panzer", SIGQUIT, false);
}

#[test]
fn serverengine() {
    let panzer = start("serverengine");
    reloads(&panzer, SIGUSR1, 2);
    reloads(&panzer, SIGHUP, 3);
    reloads(&panzer, SIGINT, 4);
    after(&panzer, SIGUSR2, "configuration read again");
    panzer.allow_line("the state is in ");
    ignores(&panzer, &[SIGTTIN, SIGTTOU, SIGWINCH], SIGCONT, "the state is in ");
    let dump = fs::read_to_string(panzer.path("run/sleep.dump")).unwrap();
    assert!(dump.contains("generation 4 serving") && dump.contains("worker 1"), "{dump}");
    assert_eq!(panzer.stop().code(), Some(0));
    stops("serverengine", SIGTERM, true);
    stops("serverengine", SIGQUIT, false);
}

#[test]
fn preforker() {
    let panzer = start("preforker");
    reopens(&panzer, SIGUSR1);
    after(&panzer, SIGTTIN, "keeping 3 workers from now on, instead of 2");
    after(&panzer, SIGTTOU, "keeping 2 workers from now on, instead of 3");
    after(&panzer, SIGWINCH, "ending all workers*");
    ignores(&panzer, &[SIGUSR2, SIGHUP, SIGCONT], SIGTTIN, "keeping 1 worker from now on, instead of 0");
    panzer.signal(SIGQUIT);
    assert_eq!(panzer.wait_exit().code(), Some(0));
    stops("preforker", SIGQUIT, true);
    stops("preforker", SIGTERM, false);
    stops("preforker", SIGINT, false);
}

#[test]
fn kamisama() {
    let panzer = start("kamisama");
    after(&panzer, SIGTTIN, "keeping 3 workers from now on, instead of 2");
    let all = [SIGUSR1, SIGUSR2, SIGQUIT, SIGHUP, SIGWINCH, SIGCONT];
    ignores(&panzer, &all, SIGTTOU, "keeping 2 workers from now on, instead of 3");
    assert_eq!(panzer.stop().code(), Some(0));
    stops("kamisama", SIGTERM, true);
    stops("kamisama", SIGINT, true);
}

#[test]
fn unicorn() {
    let panzer = start("unicorn");
    reloads(&panzer, SIGUSR2, 2);
    reloads(&panzer, SIGHUP, 3);
    reopens(&panzer, SIGUSR1);
    after(&panzer, SIGTTIN, "keeping 3 workers from now on, instead of 2");
    after(&panzer, SIGTTOU, "keeping 2 workers from now on, instead of 3");
    ignores(&panzer, &[SIGCONT], SIGWINCH, "ending all workers");
    panzer.signal(SIGQUIT);
    assert_eq!(panzer.wait_exit().code(), Some(0));
    stops("unicorn", SIGQUIT, true);
    stops("unicorn", SIGTERM, false);
    stops("unicorn", SIGINT, false);
}

/// A panzer of its own, on a terminal. HUP does what the preset has for it; but the terminal's own end is an end.
#[test]
fn server_starter() {
    let panzer = start("server-starter");
    reloads(&panzer, SIGHUP, 2);
    ignores(&panzer, &[SIGUSR1, SIGUSR2, SIGQUIT, SIGTTIN, SIGTTOU, SIGWINCH, SIGCONT], SIGTERM, "stopping gracefully");
    assert_eq!(panzer.wait_exit().code(), Some(0));
    stops("server-starter", SIGTERM, true);
    stops("server-starter", SIGINT, true);
}

#[test]
fn einhorn() {
    let panzer = start("einhorn");
    reloads(&panzer, SIGHUP, 2);
    reloads(&panzer, SIGALRM, 3);
    ignores(&panzer, &[SIGUSR1, SIGTTIN, SIGTTOU, SIGWINCH, SIGCONT], SIGUSR2, "stopping gracefully");
    assert_eq!(panzer.wait_exit().code(), Some(0));
    stops("einhorn", SIGTERM, true);
    stops("einhorn", SIGINT, true);
    stops("einhorn", SIGQUIT, false);
}

fn stops_with_its_terminal(preset: &str, hang_up: fn(&Panzer)) {
    let arguments = ["--stop", "TERM/300ms/INT/5s/KILL", "--signals", preset, "./app"];
    let panzer = on_a_terminal().executable("app", STUBBORN).args(arguments).start();
    panzer.allow_line("has not stopped yet; sent it SIGINT");
    panzer.allow_line("ended and left processes behind; stopping them");
    panzer.wait_serving();
    eventually(SOON, "it is ready", || panzer.path("ready-1-0").exists());
    hang_up(&panzer);
    let _ = fs::remove_file(panzer.path("told"));
    fs::write(panzer.path("hang-up"), "").unwrap();
    panzer.wait_for_line("stopping gracefully", SOON);
    panzer.wait_for_end();
    assert!(panzer.path("told").exists(), "{preset}: the schedule began with its first step");
    assert_eq!(panzer.wait_exit().code(), Some(0), "{preset}");
}

#[test]
fn a_terminal_that_is_closed_ends_it_whatever_its_signal_means() {
    stops_with_its_terminal("panzer", |panzer| after(panzer, SIGHUP, "configuration read again"));
    for preset in ["serverengine", "unicorn"] {
        stops_with_its_terminal(preset, |panzer| {
            reloads(panzer, SIGHUP, 2);
            eventually(SOON, "the new one is ready", || panzer.path("ready-2-0").exists());
        });
    }
    for preset in ["preforker", "kamisama"] {
        // What it does come to first is the signal after it.
        stops_with_its_terminal(preset, |panzer| {
            ignores(panzer, &[SIGHUP], SIGTTIN, "keeping 2 workers from now on, instead of 1");
            eventually(SOON, "the second one is ready", || panzer.path("ready-1-1").exists());
        });
    }
}

#[test]
fn a_line_of_ones_own() {
    let panzer = builder("unicorn").env("PANZER_ON", "HUP=status").start();
    panzer.wait_serving();
    after(&panzer, SIGHUP, "main ");
    panzer.signal(SIGQUIT);
    assert_eq!(panzer.wait_exit().code(), Some(0));
    // One that the table does not have.
    let panzer =
        Panzer::builder().args(["--on", "URG=reload", "-w", "1", "--bake", "50ms", "--", "sleep", "1000"]).start();
    panzer.wait_serving();
    reloads(&panzer, SIGURG, 2);
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn what_cannot_be_is_refused() {
    for (arguments, why) in [
        (
            ["--on", "KILL=reload"],
            "invalid value 'KILL=reload' for --on: KILL can be given no action: nobody can catch it",
        ),
        (["--on", "TTIN=fly"], "there is no action 'fly'; take one of reload, detach"),
        (["--on", "FLY=reload"], "there is no signal 'FLY'"),
        (["--signals", "puma"], "invalid value 'puma' for --signals"),
    ] {
        let panzer = Panzer::builder().args(arguments).args(["--", "sleep", "1000"]).expect_line(why).start();
        assert_eq!(panzer.wait_exit().code(), Some(2), "{why}");
    }
}

/// 76
#[test]
fn a_dump_follows_no_link() {
    let panzer = start("serverengine");
    fs::write(panzer.path("other"), "whole").unwrap();
    symlink(panzer.path("other"), panzer.path("run/sleep.dump")).unwrap();
    panzer.allow_line("the state is in ");
    after(&panzer, SIGCONT, "the state is in */run/sleep.dump");
    assert_eq!(fs::read_to_string(panzer.path("other")).unwrap(), "whole");
    let dump = panzer.path("run/sleep.dump").symlink_metadata().unwrap();
    assert_eq!((dump.is_file(), dump.mode() & 0o7777), (true, 0o600));
    // Nor does it keep what somebody has made of it meanwhile.
    fs::set_permissions(panzer.path("run/sleep.dump"), fs::Permissions::from_mode(0o666)).unwrap();
    after(&panzer, SIGCONT, "the state is in */run/sleep.dump");
    assert_eq!(panzer.path("run/sleep.dump").metadata().unwrap().mode() & 0o7777, 0o600);
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn a_signal_is_passed_on_to_the_workers_of_the_generation_that_serves() {
    const TOLD: &str = "#!/bin/sh
trap 'echo $PANZER_GENERATION-$PANZER_WORKER_ID >> told' USR2
: > ready-$PANZER_GENERATION-$PANZER_WORKER_ID
while :; do sleep 0.02; done
";
    let arguments = ["-w", "2", "--bake", "50ms", "--on", "USR2=pass", "./app"];
    let panzer = Panzer::builder().executable("app", TOLD).args(arguments).start();
    panzer.wait_serving();
    eventually(SOON, "they are ready", || (0..2).all(|worker| panzer.path(&format!("ready-1-{worker}")).exists()));
    panzer.allow_line("SIGUSR2: passed on to the workers");
    after(&panzer, SIGUSR2, "SIGUSR2: passed on to the workers");
    let told = || {
        let mut lines: Vec<String> =
            fs::read_to_string(panzer.path("told")).unwrap_or_default().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    eventually(SOON, "both get it", || told() == ["1-0", "1-1"]);
    assert_eq!(panzer.stop().code(), Some(0));
}
