//! The configuration is read again: by each reload, and on HUP for what needs no new workers.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal::{SIGHUP, SIGUSR1};

use crate::control::{run, text};
use crate::faults::SOON;
use crate::support::{Builder, Panzer, Process, Tracer, descendants, eventually, free_port};

/// Notes what it was given, without a process of its own for that, which a stop would find left behind.
const APP: &str = "#!/bin/sh
{ export -p; echo noted; } > env-$PANZER_GENERATION-$PANZER_WORKER_ID
exec sleep 1000
";

/// What every file here begins with.
const BASE: &str = "bake: 0s\nready: alive\nshare-ports: off\n";

pub fn write(folder: &Path, text: &str) {
    write_whole(folder, &format!("{BASE}{text}"));
}

pub fn write_whole(folder: &Path, text: &str) {
    fs::create_dir_all(folder.join("config")).unwrap();
    // Not in place: a planner may be reading it.
    fs::write(folder.join("config/new"), text).unwrap();
    fs::rename(folder.join("config/new"), folder.join("config/panzer.yml")).unwrap();
}

pub fn configured(text: &str) -> Builder {
    let builder = Panzer::builder().executable("app", APP);
    write(builder.folder(), text);
    builder
}

fn start(text: &str) -> Panzer {
    let panzer = configured(text).arg("./app").start();
    panzer.wait_serving();
    panzer
}

pub fn hang_up(panzer: &Panzer, line: &str) {
    let mark = panzer.mark();
    panzer.signal(SIGHUP);
    panzer.wait_for_line_after(mark, line, SOON);
}

/// The environment that worker 0 of a generation was given.
fn environment(panzer: &Panzer, generation: u32) -> Vec<String> {
    let path = panzer.path(&format!("env-{generation}-0"));
    eventually(SOON, "the worker has noted its environment", || {
        fs::read_to_string(&path).is_ok_and(|text| text.ends_with("noted\n"))
    });
    let text = fs::read_to_string(&path).unwrap().replace(['"', '\''], "");
    text.lines().filter_map(|line| line.strip_prefix("export ")).map(str::to_owned).collect()
}

#[test]
fn a_reload_runs_by_the_file_as_it_is_now() {
    let panzer = start("workers: 2\nenv: {COLOUR: blue}\n");
    assert!(environment(&panzer, 1).contains(&"COLOUR=blue".to_owned()));
    write(panzer.folder(), "workers: 3\nenv: {COLOUR: green}\n");
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    assert_eq!(panzer.workers().len(), 3);
    assert!(environment(&panzer, 2).contains(&"COLOUR=green".to_owned()));
    fs::remove_file(panzer.path("config/panzer.yml")).unwrap();
    // What is in no file any more is as it is without one, if that can be.
    panzer.expect_line("warning: share-ports: takes effect when panzer is started anew");
    assert_eq!(panzer.reload_and_wait(), Ok(3));
    assert!(!environment(&panzer, 3).iter().any(|line| line.starts_with("COLOUR=")));
    panzer.stop();
}

#[test]
fn a_hang_up_changes_the_count_and_no_worker() {
    let panzer = start("workers: 2\nenv: {COLOUR: blue}\n");
    let before = panzer.workers();
    write(panzer.folder(), "workers: 4\nenv: {COLOUR: green}\nnice: 3\nsurge: 1\n");
    hang_up(&panzer, "configuration read again; env, nice, surge: take effect with the next reload");
    eventually(SOON, "there are four", || panzer.workers().len() == 4);
    let after = panzer.workers();
    assert!(before.iter().all(|pid| after.contains(pid)), "{before:?} {after:?}");
    assert_eq!(panzer.status().serving().number, 1);
    write(panzer.folder(), "workers: 1\nenv: {COLOUR: blue}\n");
    hang_up(&panzer, "configuration read again");
    eventually(SOON, "there is one", || panzer.workers().len() == 1);
    panzer.stop();
}

#[test]
fn waits_and_the_level_of_messages_follow_a_hang_up() {
    let panzer = start("workers: 1\n");
    panzer.allow_line("received SIG");
    panzer.allow_line("panzer: debug: ");
    write(panzer.folder(), "workers: 1\nverbose: true\nstop: INT/1s/KILL\n");
    hang_up(&panzer, "configuration read again");
    let mark = panzer.mark();
    hang_up(&panzer, "received SIGHUP from pid");
    // The file is read before it is changed.
    panzer.wait_for_line_after(mark, "configuration read again", SOON);
    let mark = panzer.mark();
    write(panzer.folder(), "workers: 1\nquiet: true\n");
    hang_up(&panzer, "received SIGHUP");
    write(panzer.folder(), "workers: 2\n");
    // Quiet, until it has been read: what is awaited says that it was.
    panzer.signal(SIGHUP);
    panzer.wait_for_line_after(mark, "keeping 2 workers from now on, instead of 1", SOON);
    panzer.stop();
}

#[test]
fn a_broken_file_changes_nothing_until_it_is_mended() {
    let panzer = start("workers: 2\n");
    let before = panzer.workers();
    write(panzer.folder(), "workers: 0\n");
    let wrong = "config/panzer.yml:4:10: invalid value '0' for workers: it must be from 1 to 4096";
    panzer.expect_line(&format!("error: configuration not read again: {wrong}; nothing has changed"));
    panzer.expect_line(&format!("error: reload failed: generation 2: {wrong}; generation 1 serves on"));
    hang_up(&panzer, "nothing has changed");
    let refused = run(&panzer, &["reload"]);
    assert_eq!(refused.status.code(), Some(1));
    let shown = text(&refused.stderr);
    let place = "; generation 1 serves on\n  |\n4 | workers: 0\n  |          ^\n";
    assert!(shown.contains(wrong) && shown.ends_with(place), "{shown}");
    assert_eq!(panzer.workers(), before);
    write(panzer.folder(), "workers: 1\n");
    assert_eq!(run(&panzer, &["reload"]).status.code(), Some(0));
    assert_eq!(panzer.workers().len(), 1);
    panzer.stop();
}

/// Whether anybody accepts there, or would.
fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

#[test]
fn listeners_come_and_go_and_those_that_stay_are_never_closed() {
    let [kept, dropped, added] = [(); 3].map(|()| free_port());
    let panzer = start(&format!("workers: 1\nlisten: [{kept}, {dropped}]\n"));
    assert!(listens(kept) && listens(dropped) && !listens(added));
    write(panzer.folder(), &format!("workers: 1\nlisten: ['a={added}', '{kept},backlog=7', 'unix:app.sock']\n"));
    hang_up(&panzer, "configuration read again; listen: takes effect with the next reload");
    // What waits there is not lost: the queue is the same.
    let mut waiting: Vec<TcpStream> = Vec::new();
    for generation in 2..=6 {
        assert_eq!(panzer.reload_and_wait(), Ok(generation));
        panzer.wait_drained(generation - 1);
        waiting.push(TcpStream::connect(("127.0.0.1", kept)).unwrap());
        let given = environment(&panzer, generation);
        assert!(given.contains(&"LISTEN_FDS=3".to_owned()), "{given:?}");
        assert!(given.iter().any(|line| line.starts_with("LISTEN_FDNAMES=a:")), "{given:?}");
    }
    panzer.wait_for_line(&format!("listening on port {added}"), SOON);
    panzer.wait_for_line(&format!("closed port {dropped}: no generation has it any more"), SOON);
    assert!(listens(added) && !listens(dropped) && panzer.path("app.sock").exists());
    waiting.iter().for_each(|stream| {
        stream.set_nonblocking(true).unwrap();
        let error = stream.peek(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "neither reset nor closed");
    });
    write(panzer.folder(), &format!("workers: 1\nlisten: {kept}\n"));
    assert_eq!(panzer.reload_and_wait(), Ok(7));
    panzer.wait_drained(6);
    eventually(SOON, "the path is gone", || !panzer.path("app.sock").exists());
    assert!(listens(kept) && !listens(added));
    panzer.stop();
}

#[test]
fn a_reload_that_cannot_listen_leaves_nothing_behind() {
    let [kept, added] = [(); 2].map(|()| free_port());
    let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let panzer = start(&format!("workers: 1\nlisten: {kept}\n"));
    write(panzer.folder(), &format!("workers: 1\nlisten: [{added}, {kept}, {port}]\n"));
    panzer.expect_line(&format!(
        "error: reload failed: generation 2: cannot listen on port {port}: in use by *; generation 1"
    ));
    assert!(panzer.reload_and_wait().is_err());
    assert!(!listens(added) && listens(kept));
    panzer.stop();
}

#[test]
fn what_stays_is_said_and_stays() {
    let panzer = start("workers: 1\nname: one\n");
    write(panzer.folder(), "workers: 2\nname: two\npid: other.pid\n");
    panzer.expect_line("warning: name, pid: take effect when panzer is started anew");
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    assert_eq!(panzer.workers().len(), 2);
    assert!(panzer.path("run/one.pid").exists() && !panzer.path("other.pid").exists());
    panzer.stop();
}

#[test]
fn variables_of_the_user_are_kept_and_reach_no_worker() {
    let panzer = configured("workers: 1\n").env("PANZER_WORKERS", "2").env("PANZER_STOP", "INT/1s/KILL");
    let panzer = panzer.arg("./app").start();
    panzer.wait_serving();
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    assert_eq!(panzer.workers().len(), 2, "the variable wins over the file");
    let named = |line: &String| line.starts_with("PANZER_").then(|| line.split('=').next().unwrap().to_owned());
    let mut names: Vec<String> = environment(&panzer, 2).iter().filter_map(named).collect();
    names.sort();
    assert_eq!(names, ["PANZER_GENERATION", "PANZER_MAIN_PID", "PANZER_WORKER_COUNT", "PANZER_WORKER_ID"]);
    panzer.stop();
}

#[test]
fn a_symlink_to_the_release_is_followed_anew() {
    let builder = Panzer::builder();
    let release = |number: u32| -> PathBuf {
        let folder = builder.folder().join(format!("release-{number}"));
        fs::create_dir(&folder).unwrap();
        write(&folder, &format!("workers: {number}\n"));
        symlink("/bin/sleep", folder.join("app")).unwrap();
        folder
    };
    let (one, two) = (release(1), release(2));
    let current = builder.folder().join("current");
    symlink(&one, &current).unwrap();
    let panzer = builder.env("PWD", &current).in_directory(&current).args(["--", "./app", "1000"]).start();
    panzer.wait_serving();
    assert_eq!(panzer.workers().len(), 1);
    symlink(&two, panzer.path("next")).unwrap();
    fs::rename(panzer.path("next"), &current).unwrap();
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    assert_eq!(panzer.workers().len(), 2);
    panzer.stop();
}

#[test]
fn a_hang_up_counts_for_a_reload_that_has_read_the_file_before() {
    let panzer = start("workers: 1\nenv: {COLOUR: blue}\n");
    // The planner has read it once it ends, and hangs there.
    let hang = ["-f", "-e", "trace=exit_group", "-e", "inject=exit_group:delay_enter=60000000"];
    let Some(tracer) = Tracer::attach(panzer.pid(), &hang) else { return };
    let mark = panzer.mark();
    panzer.signal(SIGUSR1);
    let ends = format!("{} ", nix::libc::SYS_exit_group);
    eventually(SOON, "a planner is about to end", || {
        let call = |one: Process| fs::read_to_string(format!("/proc/{}/syscall", one.pid)).unwrap_or_default();
        descendants(panzer.pid()).into_iter().any(|one| call(one).starts_with(&ends))
    });
    write(panzer.folder(), "workers: 1\nenv: {COLOUR: green}\n");
    panzer.signal(SIGHUP);
    let is_read = || {
        fs::read_to_string(format!("/proc/{}/status", panzer.pid())).is_ok_and(|status| {
            status.lines().any(|line| line.starts_with("ShdPnd:") && line.ends_with("\t0000000000000000"))
        })
    };
    eventually(SOON, "the hang-up is heard", is_read);
    drop(tracer);
    panzer.wait_for_line_after(mark, "reload done: generation 2 serves", SOON);
    assert!(environment(&panzer, 2).contains(&"COLOUR=green".to_owned()));
    panzer.stop();
}

#[test]
fn a_hang_up_says_what_a_reload_changes_and_what_only_a_start() {
    let panzer = start("workers: 1\n");
    let changed = "workers: 1\nname: other\ncontrol: ',mode=0660'\nlog-keep: 3\nenv-file: [-x.env]\n";
    write(panzer.folder(), changed);
    hang_up(
        &panzer,
        "configuration read again; env-file, log-keep: take effect with the next reload; name, control: take effect when \
         panzer is started anew",
    );
    panzer.stop();
}
