//! What a service manager above panzer is told: NOTIFY_SOCKET and WATCHDOG_USEC in panzer's own environment.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::{Builder, Panzer, require};

const SOON: Duration = Duration::from_secs(20);

/// A manager that listens at `name`.
pub(crate) struct Manager(UnixDatagram);

impl Manager {
    pub(crate) fn at(name: &str) -> Manager {
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Manager(socket)
    }

    /// All it hears until one message holds `wanted`.
    #[track_caller]
    pub(crate) fn hear_until(&self, wanted: &str) -> Vec<String> {
        let end = Instant::now() + SOON;
        let mut heard = Vec::new();
        let mut bytes = [0; 4096];
        while Instant::now() < end {
            let Ok(length) = self.0.recv(&mut bytes) else { continue };
            heard.push(String::from_utf8_lossy(&bytes[..length]).into_owned());
            if heard.last().is_some_and(|message| message.contains(wanted)) {
                return heard;
            }
        }
        panic!("not heard within {SOON:?}: {wanted:?}, only {heard:#?}");
    }
}

fn sleepers(name: &str) -> Builder {
    Panzer::builder()
        .env("NOTIFY_SOCKET", format!("@{name}"))
        .args(["-w", "2", "--bake", "50ms", "--", "sleep", "1000"])
}

pub(crate) fn name_for(test: &str) -> String {
    format!("panzer-test-{test}-{}", std::process::id())
}

#[test]
fn the_managers_socket_may_have_any_name() {
    let builder = Panzer::builder().args(["-w", "1", "--bake", "50ms", "--", "sleep", "1000"]);
    let path = builder.folder().join(std::ffi::OsStr::from_bytes(b"m\xff"));
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let panzer = builder.env("NOTIFY_SOCKET", &path).start();
    let manager = Manager(socket);
    manager.hear_until("READY=1");
    panzer.stop();
    drop(manager);
}

#[test]
fn each_change_is_told() {
    let name = name_for("changes");
    let manager = Manager::at(&name);
    let panzer = sleepers(&name).start();
    let heard = manager.hear_until("READY=1");
    let ready = heard.last().unwrap();
    assert!(ready.contains(&format!("MAINPID={}\n", panzer.pid())), "{ready}");
    assert!(ready.ends_with("STATUS=2 of 2 workers ready, generation 1"), "{ready}");
    // Not before it serves.
    panzer.wait_serving();

    panzer.signal(Signal::SIGUSR1);
    let heard = manager.hear_until("RELOADING=1");
    let micros = heard.last().unwrap().split_once("MONOTONIC_USEC=").unwrap().1.parse::<i64>().unwrap();
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    let passed = now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000 - micros;
    assert!((0..60_000_000).contains(&passed), "{passed}");
    manager.hear_until("READY=1");
    manager.hear_until("STATUS=2 of 2 workers ready, generation 2");

    panzer.signal(Signal::SIGTERM);
    manager.hear_until("STOPPING=1");
    assert_eq!(panzer.wait_exit().code(), Some(0));
}

#[test]
fn a_restart_in_place_is_no_news() {
    let name = name_for("restart");
    let manager = Manager::at(&name);
    let panzer = sleepers(&name).start();
    manager.hear_until("READY=1");
    panzer.wait_serving();
    panzer.signal(Signal::SIGUSR2);
    panzer.wait_for_line("restarted in place: ", SOON);
    panzer.signal(Signal::SIGUSR1);
    let heard = manager.hear_until("RELOADING=1");
    assert_eq!(heard.len(), 1, "{heard:#?}");
    manager.hear_until("STATUS=2 of 2 workers ready, generation 2");
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn a_reload_that_fails_ends_too() {
    let name = name_for("failed");
    let manager = Manager::at(&name);
    let panzer = Panzer::builder()
        .env("NOTIFY_SOCKET", format!("@{name}"))
        .executable("app", "#!/bin/sh\nexec sleep 1000\n")
        .args(["-w", "1", "--bake", "50ms", "./app"])
        .start();
    manager.hear_until("READY=1");
    panzer.wait_serving();
    std::fs::remove_file(panzer.path("app")).unwrap();
    panzer.expect_line("error: reload failed: generation 2: ");
    assert!(panzer.reload_and_wait().is_err());
    manager.hear_until("RELOADING=1");
    manager.hear_until("READY=1");
    assert_eq!(panzer.stop().code(), Some(0));
}

/// `systemctl reload` waits for the one word and then for the other.
#[test]
fn a_reload_that_comes_to_nothing_at_once_is_told_as_well() {
    if !require("prlimit") {
        return;
    }
    let name = name_for("at-once");
    let manager = Manager::at(&name);
    let panzer = sleepers(&name).start();
    manager.hear_until("READY=1");
    panzer.wait_serving();
    // No descriptor for anything that a reload takes.
    let pid = panzer.pid().to_string();
    let limited = Command::new("prlimit").args(["--pid", &pid, "--nofile=3:"]).status().unwrap();
    assert!(limited.success());
    panzer.expect_line("error: reload failed: generation 2: the configuration cannot be read: too many open files");
    assert!(panzer.reload_and_wait().is_err());
    let heard = manager.hear_until("READY=1");
    assert!(heard.iter().any(|message| message.starts_with("RELOADING=1\nMONOTONIC_USEC=")), "{heard:?}");
    panzer.stop();
}

#[test]
fn the_watchdog_is_fed_where_it_is_ours() {
    let name = name_for("watchdog");
    let manager = Manager::at(&name);
    // Before the first one, or a busy machine makes the others seem too early.
    let begun = Instant::now();
    let panzer = sleepers(&name).env("WATCHDOG_USEC", "400000").start();
    for _ in 0..5 {
        manager.hear_until("WATCHDOG=1");
    }
    // At half of it; the first one comes at once.
    assert!(begun.elapsed() >= Duration::from_millis(600), "{:?}", begun.elapsed());
    panzer.stop();

    // Another one's, where nothing is left of what was said so far.
    let name = name_for("watchdog-of-another");
    let manager = Manager::at(&name);
    let panzer = sleepers(&name).env("WATCHDOG_USEC", "1000").env("WATCHDOG_PID", "1").start();
    let heard = manager.hear_until("READY=1");
    panzer.stop();
    let rest = manager.hear_until("STOPPING=1");
    assert!(!heard.iter().chain(&rest).any(|message| message.contains("WATCHDOG")), "{heard:?} {rest:?}");
}

#[test]
fn a_main_that_is_aborted_ends_as_systemd_expects_of_one_that_hangs() {
    let panzer = Panzer::builder().args(["-w", "2", "--", "sleep", "1000"]).start();
    panzer.wait_serving();
    let workers = panzer.workers();
    panzer.expect_line("main is gone; stopping the workers of generation 1");
    panzer.signal(Signal::SIGABRT);
    assert_eq!(panzer.wait_exit().code(), None);
    crate::faults::wait_gone(&workers);
}

#[test]
fn a_manager_that_is_gone_or_deaf_disturbs_nothing() {
    let name = name_for("gone");
    let panzer = sleepers(&name).start();
    panzer.expect_line("warning: NOTIFY_SOCKET cannot be told anything: connection refused");
    panzer.wait_serving();
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    assert_eq!(panzer.stop().code(), Some(0));

    // Never read: its queue is full soon, and what does not fit waits.
    let name = name_for("deaf");
    let _deaf = Manager::at(&name);
    let panzer = sleepers(&name).start();
    panzer.wait_serving();
    for generation in 2..6 {
        assert_eq!(panzer.reload_and_wait(), Ok(generation));
    }
    assert_eq!(panzer.stop().code(), Some(0));
}

/// `systemctl reload` of a unit with `Type=notify-reload` sends HUP, and waits for both words.
#[test]
fn a_hang_up_is_answered_whatever_comes_of_it() {
    let name = name_for("hang-up");
    let manager = Manager::at(&name);
    let panzer = Panzer::builder()
        .env("NOTIFY_SOCKET", format!("@{name}"))
        .file("p.yml", "workers: 1\nbake: 50ms\n")
        .args(["--config", "p.yml", "--", "sleep", "1000"])
        .start();
    manager.hear_until("READY=1");
    panzer.wait_serving();
    let answered = || {
        let before = monotonic_micros();
        panzer.signal(Signal::SIGHUP);
        let heard = manager.hear_until("RELOADING=1");
        let micros = heard.last().unwrap().split_once("MONOTONIC_USEC=").unwrap().1.parse::<i64>().unwrap();
        assert!((before..=monotonic_micros()).contains(&micros), "{before} {micros}");
        manager.hear_until("READY=1");
    };
    answered();
    panzer.wait_for_line("configuration read again", SOON);
    answered();
    std::fs::write(panzer.path("p.yml"), "workers: nobody\n").unwrap();
    panzer.expect_line("error: configuration not read again: ");
    answered();
    panzer.wait_for_line("configuration not read again", SOON);
    assert_eq!(panzer.stop().code(), Some(0));
}

fn monotonic_micros() -> i64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000
}

#[test]
fn the_manager_is_asked_for_time_within_panzers_own_limits() {
    let name = name_for("extends");
    let manager = Manager::at(&name);
    let stubborn = "trap 'while ! test -e let-go; do sleep 0.05; done; exit' TERM; while :; do sleep 0.05; done";
    let panzer = Panzer::builder()
        .env("NOTIFY_SOCKET", format!("@{name}"))
        .args(["-w", "1", "--bake", "50ms", "--ready", "exec:test -e ready", "--ready-timeout", "50s"])
        .args(["--stop", "TERM/20s/KILL", "--", "sh", "-c", stubborn])
        .start();
    let micros = |message: &str| -> u64 { message.strip_prefix("EXTEND_TIMEOUT_USEC=").unwrap().parse().unwrap() };
    // Never more than half a minute at once.
    let asked = manager.hear_until("EXTEND_TIMEOUT_USEC=");
    assert!((1..=30_000_000).contains(&micros(asked.last().unwrap())), "{asked:?}");
    std::fs::write(panzer.path("ready"), "").unwrap();
    manager.hear_until("READY=1");
    panzer.wait_serving();
    panzer.allow_line("left processes behind");
    panzer.signal(Signal::SIGTERM);
    manager.hear_until("STOPPING=1");
    let asked = manager.hear_until("EXTEND_TIMEOUT_USEC=");
    assert!((20_000_000..=30_000_000).contains(&micros(asked.last().unwrap())), "{asked:?}");
    std::fs::write(panzer.path("let-go"), "").unwrap();
    assert_eq!(panzer.wait_exit().code(), Some(0));
}

/// A watchdog that is due then must not keep main awake.
#[test]
fn a_manager_that_does_not_read_is_no_reason_to_spin() {
    let name = name_for("full");
    let _deaf = Manager::at(&name);
    let panzer = sleepers(&name).env("WATCHDOG_USEC", "20000").start();
    panzer.wait_serving();
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", panzer.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    // Its queue takes some, and then no more.
    let end = Instant::now() + Duration::from_secs(4);
    let begun = ticks();
    crate::support::eventually(SOON, "four seconds have passed", || Instant::now() >= end);
    // A hundred a second, where one spins.
    let spent = ticks() - begun;
    assert!(spent < 100, "{spent} ticks");
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn an_empty_notify_socket_is_none() {
    let panzer = Panzer::builder().args(["-w", "1", "--bake", "50ms", "--", "sleep", "1000"]);
    let panzer = panzer.env("NOTIFY_SOCKET", "").start();
    panzer.wait_serving();
    panzer.stop();
}
