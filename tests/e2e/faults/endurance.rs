//! 7, 8, 30, 59: storms, standstills, and many reloads.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{SOON, assert_answers, kill_9, start_app, wait_gone, wait_workers};
use crate::support::{Panzer, eventually};

fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

#[test]
pub fn a_storm_of_signals_coalesces_and_is_survived() {
    let (panzer, port) = start_app(2);
    panzer.allow_line("HUP: no terminal was closed, nothing to do");
    let storm = [Signal::SIGUSR1, Signal::SIGHUP, Signal::SIGUSR2, Signal::SIGWINCH, Signal::SIGCHLD, Signal::SIGPIPE];
    for signal in storm.iter().cycle().take(10_000) {
        panzer.signal_quietly(*signal);
    }
    panzer.wait_for_line("reload done: generation 2 serves", SOON);
    eventually(SOON, "the reloads come to their end", || {
        let status = panzer.status();
        status.generations.len() == 1 && status.serving().number < 20
    });
    assert_answers(port, "good");
    panzer.stop();
}

#[test]
pub fn many_reloads_leak_no_descriptor() {
    let panzer = Panzer::start(["-w", "2", "--bake", "0s", "--", "sleep", "1000"]);
    panzer.wait_serving();
    let before = descriptors(panzer.pid());
    for generation in 2..=100 {
        assert_eq!(panzer.reload_and_wait(), Ok(generation));
    }
    panzer.wait_drained(99);
    eventually(SOON, "as many are open as before", || descriptors(panzer.pid()) == before);
    panzer.stop();
}

#[test]
pub fn a_stopped_main_hinders_neither_traffic_nor_respawns() {
    let (panzer, port) = start_app(2);
    panzer.expect_line("was killed by SIGKILL; respawning it");
    let workers = panzer.workers();
    send(panzer.pid(), Signal::SIGSTOP);
    kill_9(workers[0]);
    wait_gone(&workers[..1]);
    panzer.wait_for_line("was killed by SIGKILL; respawning it", SOON);
    assert_answers(port, "good");
    send(panzer.pid(), Signal::SIGCONT);
    wait_workers(&panzer, 2, &workers[..1]);
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.stop();
}

#[test]
pub fn a_stopped_monitor_is_told_of_and_does_not_hold_up_a_reload() {
    let (panzer, port) = start_app(1);
    let monitor = panzer.status().serving().monitor.unwrap();
    send(monitor, Signal::SIGSTOP);
    let mark = panzer.mark();
    panzer.signal(Signal::SIGTTIN);
    panzer.wait_for_line_after(mark, "no answer within 1s; is it stopped?", SOON);
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    assert_answers(port, "good");
    send(monitor, Signal::SIGCONT);
    panzer.wait_drained(1);
    panzer.stop();
}
