//! Restarts of main in place. 59, 78-81.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Output;

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{MsgFlags, SockType, getsockopt, sockopt};
use nix::unistd::Pid;

use crate::control::{panzerctl, run, text};
use crate::faults::{SOON, assert_answers, kill_9, serving_app, wait_gone, wait_started, wait_workers};
use crate::support::{Builder, Panzer, Process, descriptor_of, eventually, free_port, get, require};
use crate::zero_loss::clients::BothKinds;

const RESTARTS: usize = 100;

/// Executes the panzer of its own folder, by a path on which a symlink lies.
const LAUNCH: &str = "#!/bin/sh\nshift\nexec ./current/panzer \"$@\"\n";

const VERSION: &str = env!("CARGO_PKG_VERSION");
const OTHER_VERSION: &str = "9.9.9";

/// Builds in the folder `name`: this one, or another whose version is another.
fn build(folder: &Path, name: &str, version: &str) {
    let mut bytes = fs::read(env!("CARGO_BIN_EXE_panzer")).unwrap();
    assert_eq!(version.len(), VERSION.len(), "the bytes of a version are replaced in place");
    while let Some(at) =
        bytes.windows(VERSION.len()).position(|window| window == VERSION.as_bytes() && version != VERSION)
    {
        bytes[at..at + version.len()].copy_from_slice(version.as_bytes());
    }
    place(folder, name, &bytes);
}

/// Puts a file called panzer into the folder `name`.
fn place(folder: &Path, name: &str, bytes: &[u8]) {
    let directory = folder.join(name);
    fs::create_dir(&directory).unwrap();
    crate::support::write_executable(directory.join("panzer"), bytes);
}

/// From now on panzer's path leads to the build in the folder `name`.
fn switch(folder: &Path, name: &str) {
    let new = folder.join("next");
    symlink(name, &new).unwrap();
    fs::rename(new, folder.join("current")).unwrap();
}

/// Has a panzer run from a folder of builds, of which there is one.
fn from_builds(builder: Builder) -> Builder {
    build(builder.folder(), "one", VERSION);
    switch(builder.folder(), "one");
    builder.executable("launch", LAUNCH).through("launch")
}

fn serving(workers: u32) -> (Panzer, u16) {
    let port = free_port();
    let panzer = from_builds(serving_app(port, workers)).start();
    wait_started(&panzer, workers);
    (panzer, port)
}

#[track_caller]
fn restart(panzer: &Panzer, before: &str, now: &str) {
    let done = run(panzer, &["restart"]);
    let same = if before == now { " (the same file)" } else { "" };
    let expected = format!("trying the new build\nrestarted in place: panzer {before} -> {now}{same}\n");
    assert_eq!((text(&done.stdout), text(&done.stderr)), (expected, String::new()));
}

/// All that is open in a process, and where: of sockets and files which, of what is made anew the kind.
fn descriptors(pid: i32) -> Vec<(String, String)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let mut all: Vec<_> = entries
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            Some((entry.file_name().to_string_lossy().into_owned(), target.to_string_lossy().into_owned()))
        })
        .collect();
    all.sort();
    all
}

#[test]
pub fn a_hundred_restarts_by_two_builds_under_load_disturb_nobody() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let builder = Panzer::builder().link("examples/my_app").args(["-w", "2", "--bake", "200ms", "-l", &listen]);
    let panzer = from_builds(builder.arg("./my_app")).start();
    build(panzer.folder(), "two", OTHER_VERSION);
    panzer.wait_serving();
    let load = BothKinds::start(port);
    let (workers, begun) = (panzer.workers(), Process::look(panzer.pid()).unwrap().started);
    let before = descriptors(panzer.pid());
    let answered = load.answered();
    for turn in 0..RESTARTS {
        let (from, to, name) =
            if turn % 2 == 0 { (VERSION, OTHER_VERSION, "two") } else { (OTHER_VERSION, VERSION, "one") };
        switch(panzer.folder(), name);
        restart(&panzer, from, to);
    }
    assert!(load.answered() > answered, "there was load all the time");
    eventually(SOON, "the same is open as before, each where it was", || descriptors(panzer.pid()) == before);
    assert_eq!(Process::look(panzer.pid()).unwrap().started, begun);
    assert_eq!(panzer.workers(), workers);
    // It does all that it did.
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    let seen = load.stop();
    seen.print(&format!("{RESTARTS} restarts in place"));
    assert_eq!(seen.dropped(), 0);
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
pub fn two_builds_of_one_version_are_told_apart() {
    let (panzer, _) = serving(1);
    restart(&panzer, VERSION, VERSION);
    build(panzer.folder(), "two", VERSION);
    switch(panzer.folder(), "two");
    let done = text(&run(&panzer, &["restart"]).stdout);
    let told = format!("restarted in place: panzer {VERSION} -> {VERSION} (another file, of 2");
    assert!(done.contains(&told) && done.ends_with("Z)\n"), "{done}");
    panzer.wait_for_line(&format!("{told}*Z)"), SOON);
    restart(&panzer, VERSION, VERSION);
    panzer.stop();
}

/// Takes the state of another panzer for its own: of one that has `CHANGE`.
const CHANGED: &str = r#"#!/usr/bin/env python3
import json, os
state = int(os.environ["PANZER_STATE_FD"])
document = json.loads(os.pread(state, 1 << 24, 0))
CHANGE
written = os.memfd_create("state", 0)
os.write(written, json.dumps(document).encode())
os.dup2(written, state, inheritable=True)
os.execv("BUILD", ["panzer"])
"#;

fn changed(change: &str) -> String {
    CHANGED.replace("CHANGE", change).replace("BUILD", env!("CARGO_BIN_EXE_panzer"))
}

/// What was added to the state since an older build is not there when that hands it on.
#[test]
pub fn the_state_of_an_older_build_is_taken_over() {
    if !require("python3") {
        return;
    }
    let (panzer, port) = serving(2);
    let workers = panzer.workers();
    let fields = [
        "document['file']",
        "document['configuration']['plan']['env_files']",
        "document['configuration']['plan']['handover']",
    ];
    let older = changed(&format!("del {}", fields.join(", ")));
    place(panzer.folder(), "older", older.as_bytes());
    switch(panzer.folder(), "older");
    // It was tried with the older state, and is executed with that of this build.
    assert!(run(&panzer, &["restart"]).status.success());
    assert_eq!(panzer.workers(), workers);
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    assert_answers(port, "good");
    panzer.stop();
}

#[test]
pub fn a_build_that_cannot_take_over_is_refused_with_the_cause() {
    let (panzer, port) = serving(2);
    let workers = panzer.workers();
    let whole = fs::read(env!("CARGO_BIN_EXE_panzer")).unwrap();
    let newer = changed("document['version'] += 1; document['build'] = '7.0.0'");
    let richer = changed("document['configuration']['plan']['later'] = True; document['build'] = '7.0.0'");
    let stranger = changed("document['children']['monitors'][0][1]['protocol'] += 1");
    let why_newer =
        format!("the state that panzer 7.0.0 hands on has version 3, and panzer {VERSION} reads version 2; {HELP}");
    let why_richer = format!("panzer {VERSION} cannot read what panzer 7.0.0 knows: unknown field `later`");
    let why_stranger = format!(
        "the monitor of generation 1 speaks version 3 of the protocol, and panzer {VERSION} speaks versions 1 to 2; \
         {HELP}"
    );
    let builds: [(&str, &[u8], &str); 11] = [
        ("truncated", &whole[..whole.len() / 8], "was killed by SIG"),
        ("cut", &whole[..40], "it cannot be executed: "),
        ("empty", b"", "it cannot be executed: "),
        ("crashing", b"#!/bin/sh\nkill -SEGV $$\n", "the try of it was killed by SIGSEGV"),
        ("failing", b"#!/bin/sh\necho no libraries >&2\nexit 3\n", "exited with code 3, printing: no libraries"),
        ("other", b"#!/bin/sh\nexit 0\n", "exited with code 0 without a word"),
        ("chatty", b"#!/bin/sh\necho READY >&4\n", "without a word"),
        ("newer", newer.as_bytes(), &why_newer),
        ("richer", richer.as_bytes(), &why_richer),
        ("stranger", stranger.as_bytes(), &why_stranger),
        ("hanging", b"#!/bin/sh\necho READY\nexec sleep 1000\n", "it hangs: not a word within 10s"),
    ];
    let before = descriptors(panzer.pid());
    for (name, bytes, cause) in builds {
        place(panzer.folder(), name, bytes);
        switch(panzer.folder(), name);
        assert_refused(&run(&panzer, &["restart"]), cause);
        panzer.expect_line(&format!("error: restart refused: *current/panzer: *{cause}*; panzer {VERSION} goes on"));
        assert_answers(port, "good");
    }
    switch(panzer.folder(), "nowhere");
    assert_refused(&run(&panzer, &["restart"]), "it cannot be executed: no such file or directory");
    panzer.expect_line("error: restart refused: *no such file or directory");
    eventually(SOON, "all that the tries needed is closed", || descriptors(panzer.pid()) == before);
    assert_eq!(panzer.workers(), workers);
    switch(panzer.folder(), "one");
    eventually(SOON, "the one that hung has ended", || run(&panzer, &["restart"]).status.success());
    assert_eq!(panzer.workers(), workers);
    panzer.stop();
}

/// What is said to do about it.
const HELP: &str = "restart into a build that does, or stop panzer and start this one";

#[track_caller]
fn assert_refused(refused: &Output, cause: &str) {
    let why = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{why}");
    assert!(why.starts_with("panzerctl: restart refused: ") && why.contains(cause), "{cause:?} is not in {why:?}");
}

/// As after a restart in place into another build, which may say what the other side does not know.
#[test]
pub fn what_another_build_says_is_left_out_and_told_once() {
    let (panzer, port) = serving(2);
    let monitor = panzer.status().serving().monitor.unwrap();
    panzer.expect_line(
        "main orders what the build of this monitor does not know, and that is left out: unknown variant `fly`*",
    );
    panzer.expect_line(
        "the monitor of generation 1 says what this build does not know, and that is left out: unknown variant `fly`*",
    );
    let told = || panzer.lines().iter().filter(|line| line.contains("that is left out")).count();
    // What is sent on an end arrives at the other one.
    for sender in [panzer.pid(), monitor] {
        let channel = channel_of(sender);
        for _ in 0..50 {
            nix::sys::socket::send(channel.as_raw_fd(), br#"{"fly":{"to":"the moon"}}"#, MsgFlags::empty()).unwrap();
        }
    }
    eventually(SOON, "both have said it", || told() == 2);
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    assert_answers(port, "good");
    assert_eq!(told(), 2);
    panzer.stop();
}

/// A copy of the end that `owner` has of the only channel there is.
fn channel_of(owner: i32) -> OwnedFd {
    let entries = fs::read_dir(format!("/proc/{owner}/fd")).unwrap().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut sockets = numbers.filter_map(|number| descriptor_of(owner, number).ok());
    let is_channel = |socket: &OwnedFd| getsockopt(socket, sockopt::SockType) == Ok(SockType::SeqPacket);
    sockets.find(is_channel).expect("it has a channel")
}

#[test]
pub fn who_dies_meanwhile_is_reaped_and_replaced() {
    let port = free_port();
    let panzer = from_builds(serving_app(port, 2).env("PANZER_DELAY_MAX", "100ms")).start();
    wait_started(&panzer, 2);
    panzer.expect_line("was killed by SIGKILL; respawning it");
    panzer.expect_line("the monitor of generation 1 was killed by SIGKILL; starting another");
    for _ in 0..10 {
        let workers = panzer.workers();
        kill_9(workers[0]);
        panzer.signal_quietly(Signal::SIGUSR2);
        wait_gone(&workers[..1]);
        wait_workers(&panzer, 2, &workers[..1]);
    }
    for _ in 0..3 {
        let status = panzer.status();
        let workers = status.serving().pids();
        panzer.signal_quietly(Signal::SIGUSR2);
        kill_9(status.serving().monitor.unwrap());
        wait_gone(&workers);
        wait_workers(&panzer, 2, &workers);
    }
    let zombies = || {
        let all = fs::read_to_string(format!("/proc/{0}/task/{0}/children", panzer.pid())).unwrap();
        all.split_ascii_whitespace().filter_map(|pid| Process::look(pid.parse().ok()?)).any(|one| one.zombie)
    };
    eventually(SOON, "no zombie is left", || !zombies());
    assert_answers(port, "good");
    panzer.stop();
}

#[test]
pub fn a_reload_goes_on_over_restarts_and_who_waits_gets_the_verdict() {
    let builder = from_builds(Panzer::builder().args(["-w", "2", "--bake", "2s", "--", "sleep", "1000"]));
    let panzer = builder.start();
    panzer.wait_serving();
    let mut waiting = panzerctl(&panzer, &["reload"]).spawn().unwrap();
    panzer.wait_for_line("reload: starting generation 2", SOON);
    let mut restarts = 0;
    while waiting.try_wait().unwrap().is_none() {
        restart(&panzer, VERSION, VERSION);
        restarts += 1;
    }
    let told = waiting.wait_with_output().unwrap();
    assert!(text(&told.stdout).contains("generation 2 serves after "), "{told:?}");
    assert!(restarts > 2, "{restarts}");
    panzer.wait_drained(1);
    assert_eq!(panzer.status().serving().number, 2);
    panzer.stop();
}

#[test]
pub fn a_monitor_that_is_stopped_gets_what_it_was_told_before() {
    let (panzer, _) = serving(2);
    let monitor = Pid::from_raw(panzer.status().serving().monitor.unwrap());
    kill(monitor, Signal::SIGSTOP).unwrap();
    let statuses: Vec<_> = (0..3).map(|_| panzerctl(&panzer, &["status"]).spawn().unwrap()).collect();
    restart(&panzer, VERSION, VERSION);
    let mut waiting = panzerctl(&panzer, &["scale", "3"]).spawn().unwrap();
    restart(&panzer, VERSION, VERSION);
    for status in statuses {
        let told = status.wait_with_output().unwrap();
        assert!(told.status.success(), "{told:?}");
    }
    kill(monitor, Signal::SIGCONT).unwrap();
    assert!(waiting.wait().unwrap().success());
    wait_workers(&panzer, 3, &[]);
    panzer.stop();
}

#[test]
pub fn a_build_that_is_being_tried_ends_with_main() {
    let (panzer, _) = serving(1);
    place(panzer.folder(), "hanging", b"#!/bin/sh\n: > tried\nexec sleep 1000\n");
    switch(panzer.folder(), "hanging");
    panzer.signal(Signal::SIGUSR2);
    eventually(SOON, "it is being tried", || panzer.path("tried").exists());
    let workers = panzer.workers();
    panzer.allow_line("main is gone; stopping the workers of generation 1");
    kill_9(panzer.pid());
    wait_gone(&workers);
    panzer.wait_exit();
}

#[test]
pub fn what_is_being_stopped_is_not_restarted() {
    let stubborn = "#!/bin/sh\ntrap '' TERM\n: > ready\nwhile :; do sleep 0.05; done\n";
    let builder = Panzer::builder().executable("app", stubborn).args(["-w", "1", "--stop", "TERM/60s/KILL", "./app"]);
    let panzer = from_builds(builder).start();
    panzer.wait_serving();
    panzer.allow_line("ended and left processes behind; stopping them");
    eventually(SOON, "it is deaf", || panzer.path("ready").exists());
    assert!(run(&panzer, &["stop", "--no-wait"]).status.success());
    let refused = run(&panzer, &["restart"]);
    assert_eq!(text(&refused.stderr), "panzerctl: panzer is being stopped\n");
    assert!(run(&panzer, &["exit", "--no-wait"]).status.success());
    assert_eq!(panzer.wait_exit().code(), Some(0));
}

#[test]
pub fn few_descriptors_and_scattered_ones_do() {
    // A reload leaves gaps among the numbers.
    let port = free_port();
    let scattered = "#!/bin/sh\nulimit -n 40\nshift\nexec ./current/panzer \"$@\" 5</dev/null 9</dev/null\n";
    let builder = from_builds(serving_app(port, 1)).executable("launch", scattered);
    let panzer = builder.start();
    wait_started(&panzer, 1);
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    // What its generation held is let go of after that was said, and before anything else is.
    panzer.status();
    let before = descriptors(panzer.pid());
    for _ in 0..3 {
        restart(&panzer, VERSION, VERSION);
    }
    eventually(SOON, "the same is open as before, each where it was", || descriptors(panzer.pid()) == before);
    assert_eq!(panzer.reload_and_wait(), Ok(3));
    panzer.wait_drained(2);
    assert_answers(port, "good");
    panzer.stop();
}

#[test]
pub fn shared_ports_stay_shared() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let program = ["--", "python3", "-m", "http.server", "--bind", "127.0.0.1", &port.to_string()];
    let panzer = from_builds(Panzer::builder().args(["-w", "2", "--bake", "500ms"]).args(program)).start();
    ["\" 200 -", "127.0.0.1 - - ["].iter().for_each(|chatter| panzer.allow_line(chatter));
    panzer.allow_line("workers run with no_new_privs");
    panzer.wait_serving();
    eventually(SOON, "it answers", || get(port, "/").is_ok());
    for generation in 2..=3 {
        restart(&panzer, VERSION, VERSION);
        assert!(get(port, "/").is_ok());
        assert_eq!(panzer.reload_and_wait(), Ok(generation));
        panzer.wait_drained(generation - 1);
        assert!(get(port, "/").is_ok());
    }
    panzer.stop();
}
