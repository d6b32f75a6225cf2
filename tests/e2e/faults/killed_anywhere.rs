//! 2: main is killed at its k-th call of some kind, in its start, in a reload, in its stop.

use nix::sys::signal::Signal;

use super::SOON;
use crate::support::{Panzer, eventually, require};

/// Runs main through start, reload and stop, unless it is killed before, at its `count`-th `call`.
fn kill_at(call: &str, count: u32) {
    let tracer =
        format!("#!/bin/sh\nexec strace -D -qq -o /dev/null -e inject={call}:signal=KILL:when={count} \"$@\"\n");
    let panzer = Panzer::builder()
        .executable("tracer", &tracer)
        .through("tracer")
        .args(["-w", "2", "--bake", "30ms", "--stop", "TERM/2s/KILL", "--", "sleep", "1000"])
        .start();
    let stages = ["panzer: generation 1 serves: ", "panzer: generation 1 has ended after draining"];
    let signals = [Signal::SIGUSR1, Signal::SIGTERM];
    for (stage, signal) in stages.iter().zip(signals) {
        let ended = || !super::is_alive(panzer.pid());
        let reached = || panzer.lines().iter().any(|line| line.contains(stage));
        eventually(SOON, "the next stage, or the end", || reached() || ended());
        if ended() {
            break;
        }
        panzer.signal(signal);
    }
    // That nothing is left is what every test checks at its end.
    let status = panzer.wait_exit();
    assert!(status.success() || status.code().is_none(), "{call} {count}: {status}");
}

#[test]
fn nothing_is_left_behind() {
    if !require("strace") {
        return;
    }
    let calls: [(&str, &[u32]); 7] = [
        ("clone", &[1, 2]),
        ("epoll_ctl", &[2, 3, 4, 6, 7, 8]),
        ("epoll_wait", &[1, 2, 4, 6, 8, 9]),
        ("memfd_create", &[2, 3]),
        ("sendmsg", &[1, 2, 3]),
        ("wait4", &[1, 2, 3, 4]),
        ("write", &[4, 7, 9, 12]),
    ];
    for (call, counts) in calls {
        counts.iter().for_each(|count| kill_at(call, *count));
    }
}
