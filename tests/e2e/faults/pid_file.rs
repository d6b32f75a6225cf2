//! 25, 52-54, 76: the pid file.

use std::fs;
use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;

use super::{SOON, kill_9, wait_gone};
use crate::control::run;
use crate::support::{Builder, Panzer, eventually};

fn sleeper() -> Builder {
    Panzer::builder().args(["-w", "1", "--bake", "100ms", "--", "sleep", "1000"])
}

#[test]
fn it_holds_the_pid_and_goes_with_the_end() {
    let panzer = sleeper().start();
    panzer.wait_serving();
    let path = panzer.path("run/sleep.pid");
    assert_eq!(fs::read_to_string(&path).unwrap().trim(), panzer.pid().to_string());
    panzer.signal(nix::sys::signal::Signal::SIGTERM);
    crate::support::eventually(super::SOON, "it is removed", || !path.exists());
    panzer.wait_exit();
}

#[test]
fn a_name_that_is_taken_gets_a_number_or_an_error() {
    let first = sleeper().start();
    first.wait_serving();
    let second = sleeper().env("RUNTIME_DIRECTORY", first.path("run")).start();
    second.wait_serving();
    assert!(first.path("run/sleep-2.pid").exists());
    second.stop();
    let named = Panzer::builder().args(["--name", "sleep", "--", "sleep", "1000"]);
    let third = named.env("RUNTIME_DIRECTORY", first.path("run")).start();
    third.expect_line(&format!("error: *run/sleep.pid belongs to a panzer that runs (pid {}); stop it", first.pid()));
    assert_eq!(third.wait_exit().code(), Some(125));
    assert!(first.path("run/sleep.pid").exists());
    // Nor has it touched the socket that the same lock guards.
    assert!(std::os::unix::net::UnixStream::connect(first.path("run/sleep.sock")).is_ok());
    first.stop();
}

#[test]
fn a_stale_one_is_taken_over() {
    let first = sleeper().start();
    first.wait_serving();
    kill_9(first.pid());
    wait_gone(&[first.pid()]);
    let second = sleeper().env("RUNTIME_DIRECTORY", first.path("run")).start();
    second.wait_serving();
    assert_eq!(fs::read_to_string(first.path("run/sleep.pid")).unwrap().trim(), second.pid().to_string());
    second.stop();
    first.wait_exit();
}

#[test]
fn whoever_may_read_it_cannot_lock_it() {
    let first = sleeper().start();
    first.wait_serving();
    let lock = first.path("run/sleep.pid.lock");
    assert_eq!(fs::metadata(&lock).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(first.path("run/sleep.pid")).unwrap().permissions().mode() & 0o777, 0o644);
    kill_9(first.pid());
    wait_gone(&[first.pid()]);
    // As another user holds it, who only opened it for reading.
    let file = fs::File::open(first.path("run/sleep.pid")).unwrap();
    let held = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno).unwrap();
    let second = sleeper().env("PANZER_NAME", "sleep").env("RUNTIME_DIRECTORY", first.path("run")).start();
    second.wait_serving();
    second.stop();
    drop(held);
    first.wait_exit();
    assert!(!lock.exists());
}

#[test]
fn what_is_no_pid_file_is_left_alone() {
    for (name, content) in [("precious.pid", "root:x:0:0\n"), ("long.pid", &"7".repeat(100)), ("binary.pid", "\u{1}")] {
        let panzer = Panzer::builder().file(name, content).args(["-p", name, "--", "sleep", "1000"]).start();
        panzer.expect_line(&format!("error: cannot write *{name}: it is there and holds no pid; remove it"));
        let (path, lock) = (panzer.path(name), panzer.path(&format!("{name}.lock")));
        crate::support::eventually(super::SOON, "it is refused", || !super::is_alive(panzer.pid()));
        assert_eq!(fs::read_to_string(path).unwrap(), content);
        assert!(!lock.exists());
        assert_eq!(panzer.wait_exit().code(), Some(125));
    }
    let panzer = Panzer::builder().args(["-p", "socket", "--", "sleep", "1000"]);
    let socket = UnixListener::bind(panzer.folder().join("socket")).unwrap();
    let panzer = panzer.expect_line("socket: it is there and holds no pid; remove it").start();
    assert_eq!(panzer.wait_exit().code(), Some(125));
    drop(socket);
    // An empty one is as good as none, and a number may be an old pid.
    for content in ["", "4711", "4711\n"] {
        let panzer = Panzer::builder().file("old.pid", content).args(["-p", "old.pid", "--", "sleep", "1000"]).start();
        panzer.wait_serving();
        assert_eq!(fs::read_to_string(panzer.path("old.pid")).unwrap().trim(), panzer.pid().to_string());
        panzer.stop();
    }
}

#[test]
fn one_file_is_not_for_two_purposes() {
    for (options, said) in [
        (["-p", "x", "--log", "x"], "--pid and --log name the same file"),
        (["-p", "x", "--control", "./x"], "--pid and --control name the same file"),
        (["--log", "x", "--control", "x"], "--control and --log name the same file"),
        (["-l", "unix:x", "--stderr", "x"], "--log and --listen name the same file"),
    ] {
        let panzer = Panzer::builder().args(options).args(["--", "sleep", "1000"]).expect_line(said).start();
        panzer.wait_for_end();
        assert!(!panzer.path("x").exists());
        assert_eq!(panzer.wait_exit().code(), Some(2));
    }
}

#[test]
fn a_lock_that_others_can_open_is_none() {
    let builder = Panzer::builder().file("mine.pid.lock", "");
    fs::set_permissions(builder.folder().join("mine.pid.lock"), Permissions::from_mode(0o644)).unwrap();
    let panzer =
        Panzer::builder().args(["-p"]).arg(builder.folder().join("mine.pid")).args(["--", "sleep", "9"]).start();
    panzer.expect_line("error: cannot write *mine.pid: its lock *mine.pid.lock is no file of ours; remove that");
    assert_eq!(panzer.wait_exit().code(), Some(125));
}

#[test]
fn a_symlink_is_not_followed() {
    let builder = Panzer::builder();
    let (target, link) = (builder.folder().join("target"), builder.folder().join("link.pid"));
    fs::write(&target, "precious").unwrap();
    symlink(&target, &link).unwrap();
    let panzer = builder.args(["-p", "link.pid", "--", "sleep", "1000"]).start();
    panzer.expect_line("error: cannot write *link.pid: it is a symlink, which is not followed; remove it");
    let kept = panzer.path("target");
    assert_eq!(fs::read_to_string(kept).unwrap(), "precious");
    assert_eq!(panzer.wait_exit().code(), Some(125));
}

#[test]
fn one_that_cannot_be_written_is_an_error_before_anything_starts() {
    let panzer = Panzer::start(["-p", "/nonexistent/panzer.pid", "--", "sleep", "1000"]);
    panzer.expect_line("error: cannot write /nonexistent/panzer.pid: no such file or directory");
    assert_eq!(panzer.wait_exit().code(), Some(125));
}

#[test]
fn of_many_that_start_at_once_one_wins() {
    let holder = Panzer::builder();
    let pid_file = holder.folder().join("one.pid");
    let start = || Panzer::builder().arg("-p").arg(&pid_file).args(["-w", "1", "--", "sleep", "1000"]).start();
    let all: Vec<Panzer> = (0..20).map(|_| start()).collect();
    let winner = crate::support::eventually_some(super::SOON, "all but one have ended", || {
        let alive: Vec<i32> = all.iter().map(Panzer::pid).filter(|&pid| super::is_alive(pid)).collect();
        (alive.len() == 1).then(|| alive[0])
    });
    assert_eq!(fs::read_to_string(&pid_file).unwrap().trim(), winner.to_string());
    for panzer in all {
        if panzer.pid() == winner {
            panzer.wait_for_line("started as pid", super::SOON);
            panzer.stop();
        } else {
            panzer.expect_line("error: *one.pid belongs to a panzer that runs");
            assert_eq!(panzer.wait_exit().code(), Some(125));
        }
    }
    assert!(!pid_file.exists());
}

/// Something tidies the runtime folder. Signals still work, and the next one brings the files back.
#[test]
fn files_that_were_removed_are_made_anew() {
    let panzer = Panzer::builder().args(["-w", "1", "--bake", "50ms", "--name", "x", "--", "sleep", "1000"]).start();
    panzer.wait_serving();
    let all = ["run/x.pid", "run/x.pid.lock", "run/x.sock"];
    let are_there = || all.iter().all(|file| fs::symlink_metadata(panzer.path(file)).is_ok());
    assert!(are_there());
    panzer.expect_line("/run/x.pid had been removed; it is there again");
    panzer.expect_line("/run/x.sock had been removed; it is there again");
    for (removed, signal) in [
        (&all[..], Signal::SIGHUP),
        (&all[..1], Signal::SIGHUP),
        (&all[2..], Signal::SIGUSR1),
        (&all[1..], Signal::SIGUSR2),
        (&all[..], Signal::SIGTTIN),
        (&all[..1], Signal::SIGTTIN),
        (&all[2..], Signal::SIGCONT),
        // The whole folder.
        (&[], Signal::SIGHUP),
        (&[], Signal::SIGUSR1),
    ] {
        if removed.is_empty() {
            fs::remove_dir_all(panzer.path("run")).unwrap();
        }
        removed.iter().for_each(|file| fs::remove_file(panzer.path(file)).unwrap());
        panzer.signal(signal);
        eventually(SOON, &format!("{signal} brings {removed:?} back"), are_there);
        assert_eq!(fs::read_to_string(panzer.path("run/x.pid")).unwrap().trim(), panzer.pid().to_string());
        // It has no mode at all until it listens.
        let mode = || fs::metadata(panzer.path("run/x.sock")).unwrap().permissions().mode() & 0o777;
        eventually(SOON, "only its owner may use it", || mode() == 0o600);
        eventually(SOON, "it can be asked", || run(&panzer, &["--name", "x", "status"]).status.success());
    }
    panzer.stop();
}

/// Somebody else took the place meanwhile: the first one goes on, says so once, and leaves the files of the second alone.
#[test]
fn a_place_that_was_taken_meanwhile_is_left_to_who_has_it() {
    let named = || Panzer::builder().args(["-w", "1", "--bake", "50ms", "--name", "x", "--", "sleep", "1000"]);
    let first = named().start();
    first.wait_serving();
    for file in ["run/x.pid", "run/x.pid.lock", "run/x.sock"] {
        fs::remove_file(first.path(file)).unwrap();
    }
    let second = named().env("RUNTIME_DIRECTORY", first.path("run")).start();
    second.wait_serving();
    first.expect_line("warning: a file of this panzer was removed, and is not made anew: *x.pid belongs to a panzer*");
    first
        .expect_line("warning: a file of this panzer was removed, and is not made anew: the control socket * belongs*");
    first.signal(Signal::SIGTTIN);
    first.wait_for_line("is not made anew: the control socket", SOON);
    let folder = first.path("run");
    assert_eq!(fs::read_to_string(folder.join("x.pid")).unwrap().trim(), second.pid().to_string());
    first.signal(Signal::SIGTERM);
    first.wait_for_line("panzer: stopped", SOON);
    assert!(["x.pid", "x.pid.lock", "x.sock"].iter().all(|file| folder.join(file).exists()));
    second.stop();
    first.wait_exit();
}
