//! Under somebody else's rule: as PID 1 of a container (62), and as `ps` shows it.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Panzer, eventually, eventually_some, require};
use crate::upward::{Manager, name_for};

const SOON: Duration = Duration::from_secs(20);

/// Pid, state and parent of every process.
fn processes() -> Vec<(i32, String, i32)> {
    let stats = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let mut fields = stat[stat.rfind(')')? + 2..].split(' ');
        Some((stat.split(' ').next()?.parse().ok()?, fields.next()?.to_owned(), fields.next()?.parse().ok()?))
    });
    stats.collect()
}

fn child_of(parent: i32) -> Option<i32> {
    processes().into_iter().find(|process| process.2 == parent).map(|process| process.0)
}

/// Runs `script` in the namespace of `main` and leaves, as `docker exec` does: what it starts is nobody's but PID 1's.
fn enter_and_leave(main: i32, script: &str) {
    let entered = Command::new("nsenter").args(["-t", &main.to_string(), "-p", "-m", "sh", "-c", script]).status();
    assert!(entered.unwrap().success());
}

#[test]
fn as_pid_1_it_reaps_whatever_comes_and_obeys() {
    if !nix::unistd::geteuid().is_root() || !require("unshare") || !require("nsenter") {
        eprintln!("skipped: a pid namespace takes root");
        return;
    }
    let name = name_for("pid-1");
    let manager = Manager::at(&name);
    let panzer = Panzer::builder()
        .executable("container", "#!/bin/sh\nexec unshare -pf --mount-proc \"$@\"\n")
        .through("container")
        .executable("app", "#!/bin/sh\n(sleep 0.1 &)\nexec sleep 1000\n")
        .env("NOTIFY_SOCKET", format!("@{name}"))
        .args(["-w", "2", "--bake", "50ms", "--final-exit-codes", "3", "./app"])
        .start();
    panzer.wait_for_line("started as pid 1 ", SOON);
    panzer.wait_serving();
    // 1 is somebody else to a manager that looks from outside.
    assert!(!manager.hear_until("READY=1").iter().any(|message| message.contains("MAINPID")));
    let main = eventually_some(SOON, "panzer is in its namespace", || child_of(panzer.pid()));
    let monitor = eventually_some(SOON, "it has a monitor", || child_of(main));
    // Also such as a program of ours would end panzer by: a final exit code, and what says that it is not there.
    for end in ["exit 0", "exit 1", "exit 3", "exit 126", "exit 127", "kill -9 $$", "kill -TERM $$"] {
        enter_and_leave(main, &format!("(sh -c 'sleep 0.1; {end}' &)"));
    }
    // A family, whose children outlive their parents one by one, and a crowd that ends at once.
    enter_and_leave(main, "(sh -c 'sh -c \"sleep 0.3 & sleep 0.2\" & sleep 0.1' &)");
    enter_and_leave(main, "for one in $(seq 100); do (sleep 0.2 &); done");
    let only_ours = |monitor| {
        let all = processes();
        let children_of = |parent| all.iter().filter(move |process| process.2 == parent);
        let dead = children_of(main).chain(children_of(monitor)).any(|process| process.1 == "Z");
        !dead && children_of(main).count() == 1 && children_of(monitor).count() == 2
    };
    eventually(SOON, "no orphan is left, dead or alive", || only_ours(monitor));

    let mark = panzer.mark();
    kill(Pid::from_raw(main), Signal::SIGUSR1).unwrap();
    panzer.wait_for_line_after(mark, "reload done: generation 2 ", SOON);
    panzer.wait_drained(1);
    eventually(SOON, "the old generation is gone as well", || child_of(main).is_some_and(only_ours));
    kill(Pid::from_raw(main), Signal::SIGTERM).unwrap();
    assert_eq!(panzer.wait_exit().code(), Some(0));
}

/// Who sends from outside has no pid in there, as the kernel has none: what the kernel itself sends is told by its code.
#[test]
fn a_cont_from_outside_of_the_pid_namespace_counts() {
    if !nix::unistd::geteuid().is_root() || !require("unshare") {
        eprintln!("skipped: a pid namespace takes root");
        return;
    }
    let panzer = Panzer::builder()
        .executable("container", "#!/bin/sh\nexec unshare -pf --mount-proc \"$@\"\n")
        .through("container")
        .args(["-w", "1", "--bake", "50ms", "--signals", "serverengine", "--name", "x", "--", "sleep", "1000"])
        .start();
    panzer.wait_serving();
    panzer.expect_line("the state is in */run/x.dump");
    let main = eventually_some(SOON, "panzer is in its namespace", || child_of(panzer.pid()));
    kill(Pid::from_raw(main), Signal::SIGCONT).unwrap();
    eventually(SOON, "it has dumped its state", || panzer.path("run/x.dump").exists());
    kill(Pid::from_raw(main), Signal::SIGTERM).unwrap();
    assert_eq!(panzer.wait_exit().code(), Some(0));
}

#[test]
fn ps_tells_the_processes_apart() {
    let panzer = Panzer::start(["-w", "1", "--bake", "50ms", "--", "sleep", "1000"]);
    panzer.wait_serving();
    let shown = |pid: i32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim().to_owned();
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        (name, String::from_utf8_lossy(&line).trim_end_matches('\0').replace('\0', " "))
    };
    let (name, line) = shown(panzer.pid());
    // The command line as it was given: by it an instance is found.
    assert!(name == "panzer" && line.ends_with("panzer -w 1 --bake 50ms -- sleep 1000"), "{name}: {line}");
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    let serving = panzer.status().serving().clone();
    assert_eq!(shown(serving.monitor.unwrap()), ("panzer".to_owned(), "panzer: monitor [gen 2]".to_owned()));
    assert_eq!(shown(serving.pids()[0]), ("sleep".to_owned(), "sleep 1000".to_owned()));
    panzer.stop();
}

/// A monitor is a copy of main. Where a sandbox refuses what that takes, it executes itself.
#[test]
fn a_monitor_shows_who_it_is_and_has_none_of_mains_descriptors() {
    let refused = "#!/bin/sh\nexec strace -f -D -qq -o /dev/null -e inject=close_range:error=ENOSYS \"$@\"\n";
    for is_refused in [false, true] {
        if is_refused && !require("strace") {
            return;
        }
        let builder = Panzer::builder().executable("sandbox", refused);
        let builder = if is_refused { builder.through("sandbox") } else { builder };
        let panzer = builder
            .args(["-w", "1", "--ready", "alive", "--bake", "50ms", "-l", "127.0.0.1:0", "--", "sleep", "1000"])
            .start();
        panzer.wait_serving();
        let monitor = panzer.status().serving().monitor.unwrap();
        let read = |name: &str| fs::read_to_string(format!("/proc/{monitor}/{name}")).unwrap();
        assert_eq!(read("cmdline"), "panzer: monitor [gen 1]\0");
        assert_eq!(read("comm"), "panzer\n");
        let environment = read("environ");
        let shown = |variable: &str| environment.split('\0').any(|entry| entry == variable);
        assert!(shown("PANZER_GENERATION=1") && shown(&format!("PANZER_MAIN_PID={}", panzer.pid())), "{environment}");
        assert!(environment.split('\0').any(|entry| entry.starts_with("PATH=")), "{environment}");
        assert!(read("maps").contains("[heap]") && read("maps").contains("[stack]"));
        let open = |pid: i32| {
            let all = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
            all.filter_map(|one| fs::read_link(one.path()).ok()).map(|to| to.display().to_string()).collect::<Vec<_>>()
        };
        let of_monitor = open(monitor);
        assert!(open(panzer.pid()).iter().any(|file| file.ends_with(".lock")));
        assert!(!of_monitor.iter().any(|file| file.ends_with(".lock")), "{of_monitor:?}");
        let shared: Vec<_> = open(panzer.pid()).into_iter().filter(|file| file.starts_with("socket:")).collect();
        // The listener alone.
        assert_eq!(of_monitor.iter().filter(|file| shared.contains(file)).count(), 1, "{of_monitor:?} {shared:?}");
        panzer.stop();
    }
}

/// Images of nginx, php-fpm and httpd have QUIT or WINCH as their STOPSIGNAL.
#[test]
fn as_pid_1_it_says_what_makes_a_stopsignal_graceful() {
    if !nix::unistd::geteuid().is_root() || !require("unshare") {
        eprintln!("skipped: a pid namespace takes root");
        return;
    }
    let panzer = Panzer::builder()
        .executable("container", "#!/bin/sh\nexec unshare -pf --mount-proc \"$@\"\n")
        .through("container")
        .env("WEB_CONCURRENCY", "3")
        .args(["-w", "2", "--bake", "50ms", "--", "sleep", "1000"])
        .start();
    panzer.expect_line("WEB_CONCURRENCY=3 is passed on: * starts 3 processes of its own in each of 2 workers");
    panzer.wait_for_line("started as pid 1 ", SOON);
    panzer.wait_serving();
    let main = Pid::from_raw(eventually_some(SOON, "panzer is in its namespace", || child_of(panzer.pid())));
    panzer.expect_line("warning: WINCH does nothing; where it is the STOPSIGNAL of the image, use --on WINCH=stop");
    kill(main, Signal::SIGWINCH).unwrap();
    panzer.wait_for_line("WINCH does nothing", SOON);
    panzer.expect_line("warning: QUIT stops at once, * --on QUIT=stop makes it graceful");
    kill(main, Signal::SIGQUIT).unwrap();
    assert_eq!(panzer.wait_exit().code(), Some(0));
}
