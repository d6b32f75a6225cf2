//! What may happen while the configuration is read anew: by a child that can hang or die, and beside everything else that
//! people ask for.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::control::{panzerctl, run, text};
use crate::faults::{SOON, assert_answers, is_alive, server};
use crate::load::{Load, Mode};
use crate::support::{Panzer, eventually, eventually_some, eventually_some_every, free_port, require};
use crate::zero_loss::START;

/// What hangs is given up within ten seconds; on a busy machine that is noticed a little later.
const GIVEN_UP: Duration = Duration::from_secs(25);

/// So long that to read it takes longer than to find out who reads it.
const LONG: usize = 60_000;

/// Much shorter than a planner lives; the CPU is left to it meanwhile.
const BETWEEN_LOOKS: Duration = Duration::from_micros(300);

fn write(folder: &Path, text: &str) {
    fs::create_dir_all(folder.join("config")).unwrap();
    // Not in place: a planner may be reading it.
    fs::write(folder.join("config/new"), format!("bake: 100ms\n{}{text}", "# nothing\n".repeat(LONG))).unwrap();
    fs::rename(folder.join("config/new"), folder.join("config/panzer.yml")).unwrap();
}

fn start(text: &str) -> Panzer {
    let builder = Panzer::builder().executable("app", &server("good"));
    write(builder.folder(), text);
    let panzer = builder.arg("./app").start();
    panzer.wait_serving();
    panzer
}

fn pid(number: i32) -> Pid {
    Pid::from_raw(number)
}

/// The planners that are there.
fn planners(panzer: &Panzer) -> Vec<i32> {
    let main = panzer.pid();
    let children = fs::read_to_string(format!("/proc/{main}/task/{main}/children")).unwrap_or_default();
    let children = children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok());
    let is_planner = |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == b"panzer: plan\0");
    children.filter(is_planner).collect()
}

/// Has it begin to read the configuration, and stops the planner, which is none of `but`, in its tracks.
#[track_caller]
fn catch<T>(panzer: &Panzer, but: &[i32], begin: impl Fn() -> T) -> (i32, T) {
    // A planner lives for milliseconds: on a busy machine this thread looks in time only if it goes first, where it may.
    let goes_first = schedule("-f", "1");
    let begun = begin();
    let caught = eventually_some_every(BETWEEN_LOOKS, SOON, "a planner is seen", || {
        let new = planners(panzer).into_iter().find(|pid| !but.contains(pid));
        // A planner of this panzer, by its pid.
        new.filter(|&planner| kill(pid(planner), Signal::SIGSTOP).is_ok())
    });
    if goes_first {
        assert!(schedule("-o", "0"));
    }
    eventually(SOON, "the planner stands still", || {
        fs::read_to_string(format!("/proc/{caught}/stat")).unwrap().contains(") T ")
    });
    (caught, begun)
}

/// Sets how this thread is scheduled, and none that it starts, by chrt(1). Returns whether it may.
fn schedule(policy: &str, priority: &str) -> bool {
    let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
    let set = Command::new("chrt").args(["-R", policy, "-p", priority, &thread]).output();
    set.is_ok_and(|output| output.status.success())
}

type Asked = thread::JoinHandle<Output>;

fn ask(panzer: &Panzer, arguments: &[&str]) -> Asked {
    let mut command = panzerctl(panzer, arguments);
    thread::spawn(move || command.output().unwrap())
}

/// Its exit code, and what it has told.
fn told(asked: Asked) -> (Option<i32>, String) {
    let output = asked.join().unwrap();
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

/// Main does everything else meanwhile.
#[track_caller]
fn assert_untouched(panzer: &Panzer, port: u16, workers: &[i32]) {
    let begun = Instant::now();
    assert!(run(panzer, &["status"]).status.success());
    assert!(begun.elapsed() < Duration::from_secs(5), "the status came after {:?}", begun.elapsed());
    assert_eq!(panzer.workers(), workers);
    assert_answers(port, "good");
}

#[test]
fn planners_that_hang_are_given_up_and_whatever_waits_for_them_goes_on() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let panzer = start(&format!("workers: 2\nlisten: '127.0.0.1:{port}'\n"));
    let workers = panzer.workers();
    let (first, ()) = catch(&panzer, &[], || panzer.signal_quietly(Signal::SIGHUP));
    let (second, reload) = catch(&panzer, &[first], || ask(&panzer, &["reload"]));
    // A second reload follows the first, and a restart comes once nobody reads.
    panzer.expect_line("panzer: reload: generation 2 is still starting; the next reload follows it");
    let queued = ask(&panzer, &["reload"]);
    panzer.wait_for_line("the next reload follows it", SOON);
    assert_untouched(&panzer, port, &workers);
    let reread = "the configuration could not be read within 10s";
    panzer.expect_line(&format!("error: configuration not read again: {reread}; nothing has changed"));
    panzer.expect_line(&format!("error: reload failed: generation 2: {reread}; generation 1 serves on"));
    let (code, why) = told(reload);
    assert_eq!(code, Some(1));
    assert!(why.contains(&format!("reload failed: generation 2: {reread}; generation 1 serves on")), "{why}");
    let (code, why) = told(queued);
    assert_eq!(code, Some(0), "{why}");
    eventually(GIVEN_UP, "both are gone", || !is_alive(first) && !is_alive(second));
    assert_eq!(panzer.status().serving().number, 3);
    assert_answers(port, "good");
    panzer.stop();
}

#[test]
fn a_restart_waits_for_whoever_reads_the_configuration_however_that_ends() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let panzer = start(&format!("workers: 2\nlisten: '127.0.0.1:{port}'\n"));
    let workers = panzer.workers();
    let (planner, reload) = catch(&panzer, &[], || ask(&panzer, &["reload"]));
    let restart = ask(&panzer, &["restart"]);
    panzer.wait_for_line("panzer: restart: trying ", SOON);
    assert_untouched(&panzer, port, &workers);
    assert!(!panzer.lines().iter().any(|line| line.contains("restarted in place")));
    kill(pid(planner), Signal::SIGCONT).unwrap();
    let (code, all) = told(reload);
    assert!(code == Some(0) && all.contains("generation 2"), "{all}");
    assert_eq!(told(restart).0, Some(0));
    assert_eq!(panzer.status().serving().number, 2);
    // One that hangs until it is given up.
    let (_, reload) = catch(&panzer, &[], || ask(&panzer, &["reload"]));
    let mark = panzer.mark();
    panzer.signal_quietly(Signal::SIGUSR2);
    panzer.expect_line("error: reload failed: generation 3: the configuration could not be read within 10s");
    panzer.wait_for_line_after(mark, "panzer: restarted in place: ", GIVEN_UP);
    let (code, why) = told(reload);
    assert!(code == Some(1) && why.contains("could not be read within 10s"), "{why}");
    assert_answers(port, "good");
    assert_eq!(panzer.reload_and_wait(), Ok(4));
    panzer.stop();
}

#[test]
fn a_planner_that_is_killed_is_a_refused_reload_and_nothing_more() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let panzer = start(&format!("workers: 2\nlisten: '127.0.0.1:{port}'\n"));
    let workers = panzer.workers();
    let cause = "the process that reads the configuration was killed by SIGKILL";
    panzer.expect_line(&format!("error: configuration not read again: {cause}; nothing has changed"));
    panzer.expect_line(&format!("error: reload failed: generation 2: {cause}; generation 1 serves on"));
    let (planner, reload) = catch(&panzer, &[], || ask(&panzer, &["reload"]));
    kill(pid(planner), Signal::SIGKILL).unwrap();
    let (code, why) = told(reload);
    assert_eq!(code, Some(1));
    let line = format!("reload failed: generation 2: {cause}; generation 1 serves on\n");
    assert!(why.ends_with(&line), "{why}");
    let (planner, ()) = catch(&panzer, &[], || panzer.signal_quietly(Signal::SIGHUP));
    kill(pid(planner), Signal::SIGKILL).unwrap();
    panzer.wait_for_line("configuration not read again", SOON);
    assert_untouched(&panzer, port, &workers);
    assert_eq!(panzer.reload_and_wait(), Ok(3));
    panzer.stop();
}

/// What is asked for while everything ends gets an answer as well.
#[test]
fn a_stop_does_not_wait_for_a_planner() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let panzer = start(&format!("workers: 1\nlisten: '127.0.0.1:{port}'\n"));
    let (first, ()) = catch(&panzer, &[], || panzer.signal_quietly(Signal::SIGHUP));
    let (_, reload) = catch(&panzer, &[first], || ask(&panzer, &["reload"]));
    let begun = Instant::now();
    assert_eq!(panzer.stop().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    let (code, why) = told(reload);
    assert!(code == Some(1) && why.contains("stopp"), "{why}");
}

#[test]
fn a_hang_up_during_a_reload_holds_for_both_generations() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let config = |workers: u32| format!("workers: {workers}\nlisten: '127.0.0.1:{port}'\n");
    let panzer = start(&config(2));
    // Its workers take nothing until they are told to.
    let held = server("good")
        .replace("while True:", "import os, time\nwhile os.path.exists('hold'): time.sleep(0.01)\nwhile True:");
    fs::write(panzer.path("hold"), "").unwrap();
    crate::support::write_executable(panzer.path("new"), held);
    fs::rename(panzer.path("new"), panzer.path("app")).unwrap();
    panzer.allow_line("app leads to another file by now; workers of generation 1 run a mix of releases until a reload");
    let reload = ask(&panzer, &["reload"]);
    panzer.wait_for_line("panzer: reload: starting generation 2", SOON);
    let count = |generation: u32| {
        let status = panzer.status();
        let found = status.generations.iter().find(|found| found.number == generation);
        found.map_or(0, |found| found.workers.iter().filter(|worker| worker.pid.is_some()).count())
    };
    eventually(SOON, "there are two of each", || (count(1), count(2)) == (2, 2));
    write(panzer.folder(), &config(3));
    let mark = panzer.mark();
    panzer.signal(Signal::SIGHUP);
    panzer.wait_for_line_after(mark, "panzer: configuration read again", SOON);
    eventually(SOON, "there are three of each", || (count(1), count(2)) == (3, 3));
    assert_answers(port, "good");
    // And while it goes on, what is wrong is said, and changes nothing.
    write(panzer.folder(), "workers: none\n");
    panzer.expect_line("error: configuration not read again: config/panzer.yml:*; nothing has changed");
    panzer.signal(Signal::SIGHUP);
    panzer.wait_for_line("nothing has changed", SOON);
    fs::remove_file(panzer.path("hold")).unwrap();
    let (code, all) = told(reload);
    assert_eq!(code, Some(0), "{all}");
    panzer.wait_drained(1);
    assert_eq!(panzer.workers().len(), 3);
    panzer.stop();
}

#[test]
fn who_connects_to_a_listener_that_stays_notices_nothing_of_others_that_come_and_go() {
    if !require("python3") {
        return;
    }
    let [kept, other] = [(); 2].map(|()| free_port());
    let config = |others: &str| format!("workers: 2\nlisten: [{others}'127.0.0.1:{kept}']\n");
    // The one that stays is found by its name, wherever it stands.
    let app = include_str!("../../examples/my_app");
    let builder = Panzer::builder().executable("app", app);
    write(builder.folder(), &config(""));
    let panzer = builder.arg("./app").start();
    panzer.wait_serving();
    let load = |mode| Load::new(kept, mode, 3).pause(Duration::from_millis(3)).start();
    let loads = [load(Mode::NewConnection), load(Mode::KeepAlive)];
    eventually(START, "the load is answered", || loads.iter().all(|load| load.answered() > 10));
    let others =
        [format!("'127.0.0.1:{other}', "), format!("'127.0.0.1:{other},per-worker', "), "'unix:s', ".to_owned()];
    for turn in 0..10 {
        let others = if turn % 2 == 0 { &others[turn / 2 % 3] } else { "" };
        write(panzer.folder(), &config(others));
        let (code, all) = told(ask(&panzer, &["reload", "--drained"]));
        assert_eq!(code, Some(0), "{all}");
    }
    for load in loads {
        let report = load.stop();
        eprintln!("a listener that stays, over ten reloads: {report}");
        assert!(report.answered > 0 && report.dropped() == 0, "{report}");
    }
    eventually_some(SOON, "the others are gone", || (!panzer.path("s").exists()).then_some(()));
    panzer.stop();
}
