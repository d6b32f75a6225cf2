//! The watchdog: who falls silent is aborted and replaced, and nobody else. 9, 39, 49.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::control::{run, text};
use crate::support::{Panzer, eventually};

const SOON: Duration = Duration::from_secs(60);

/// Says eight times in a period that it lives, and counts that in `says-ID`, unless the file `silent-ID` is there.
const PROGRAM: &str = r#"#!/usr/bin/env python3
import os, socket, time
slot = os.environ['PANZER_WORKER_ID']
assert os.environ['WATCHDOG_PID'] == str(os.getpid())
period = int(os.environ['WATCHDOG_USEC']) / 1e6
panzer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
def say(text):
    try:
        panzer.sendto(text, socket.MSG_DONTWAIT, '\0' + os.environ['NOTIFY_SOCKET'][1:])
    except BlockingIOError:
        pass
say(b'READY=1')
said = 0
while True:
    if os.path.exists('trigger-' + slot):
        os.unlink('trigger-' + slot)
        say(b'WATCHDOG=trigger')
    if not os.path.exists('silent-' + slot):
        say(b'WATCHDOG=1')
        said += 1
        open('new-' + slot, 'w').write(str(said))
        os.rename('new-' + slot, 'says-' + slot)
    time.sleep(period / 8)
"#;

fn start(workers: u32, period: &str) -> Panzer {
    let workers = workers.to_string();
    let panzer = Panzer::builder().executable("app", PROGRAM).args(["-w", &workers, "--watchdog", period]);
    let panzer = panzer.args(["--ready", "notify", "--stop", "TERM/5s/KILL", "--rlimit", "CORE=0", "./app"]).start();
    panzer.wait_serving();
    panzer
}

fn says(panzer: &Panzer, slot: u32) -> u32 {
    fs::read_to_string(panzer.path(&format!("says-{slot}"))).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Waits until the worker in `slot` has said so many times more that it lives.
#[track_caller]
fn wait_said(panzer: &Panzer, slot: u32, times: u32) {
    let before = says(panzer, slot);
    eventually(SOON, "the worker says that it lives", || says(panzer, slot) >= before + times);
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

#[test]
fn who_falls_silent_is_aborted_and_replaced() {
    let panzer = start(2, "2s");
    let before = panzer.workers();
    panzer.expect_line("worker 0 (pid *, generation 1) has sent no WATCHDOG=1 for 2s; aborting it (--watchdog)");
    panzer.expect_line("worker 0 (pid *, generation 1) sent no WATCHDOG=1 for 2s and was aborted; respawning it");
    fs::write(panzer.path("silent-0"), "").unwrap();
    panzer.wait_for_line("was aborted; respawning it", SOON);
    fs::remove_file(panzer.path("silent-0")).unwrap();
    panzer.allow_line("WATCHDOG=1 for 2s");
    eventually(SOON, "another serves in its place", || panzer.workers().iter().any(|pid| !before.contains(pid)));
    panzer.wait_serving();
    assert!(panzer.workers().contains(&before[1]), "{before:?} {:?}", panzer.workers());
    assert!(panzer.status().serving().workers[0].rest.contains("last: sent no WATCHDOG=1 for 2s and was aborted"));
    let metrics = run(&panzer, &["metrics"]);
    assert!(text(&metrics.stdout).contains("panzer_respawns_total{cause=\"watchdog\"} "), "{}", text(&metrics.stdout));
    panzer.stop();
}

#[test]
fn who_asks_for_it_is_aborted_at_once() {
    let panzer = start(1, "20s");
    panzer.expect_line("worker 0 (pid *, generation 1) asks to be aborted (WATCHDOG=trigger); aborting it");
    panzer.expect_line("asked to be aborted (WATCHDOG=trigger); respawning it");
    fs::write(panzer.path("trigger-0"), "").unwrap();
    panzer.wait_for_line("; respawning it", SOON);
    panzer.stop();
}

#[test]
fn who_was_stopped_at_a_terminal_is_left_alone_and_whoever_hangs_is_not() {
    let panzer = start(2, "1s");
    panzer.allow_line("is stopped by SIG");
    panzer.allow_line("WATCHDOG=1 for 1s");
    let before = panzer.workers();
    signal(before[0], Signal::SIGTSTP);
    panzer.wait_for_line("worker 0 (pid *) is stopped by SIGTSTP", SOON);
    for _ in 0..2 {
        let mark = panzer.mark();
        signal(panzer.workers()[1], Signal::SIGSTOP);
        panzer.wait_for_line_after(mark, "worker 1 * was aborted; respawning it", SOON);
        wait_said(&panzer, 1, 2);
    }
    signal(before[0], Signal::SIGCONT);
    wait_said(&panzer, 0, 16);
    assert_eq!(panzer.workers()[0], before[0]);
    panzer.stop();
}

#[test]
fn a_monitor_or_a_main_that_was_stopped_raises_no_alarm() {
    let panzer = start(2, "1s");
    let before = panzer.workers();
    let monitor = panzer.status().serving().monitor.unwrap();
    for pid in [monitor, panzer.pid()] {
        signal(pid, Signal::SIGSTOP);
        wait_said(&panzer, 0, 24);
        signal(pid, Signal::SIGCONT);
        wait_said(&panzer, 1, 16);
    }
    // All of them, as when a machine is suspended; the workers go on last.
    let all: Vec<i32> = [panzer.pid(), monitor].into_iter().chain(before.iter().copied()).collect();
    panzer.allow_line("is stopped by SIGSTOP");
    let asleep = std::time::Instant::now();
    all.iter().for_each(|pid| signal(*pid, Signal::SIGSTOP));
    eventually(SOON, "three periods pass", || asleep.elapsed() > Duration::from_secs(3));
    all.iter().for_each(|pid| signal(*pid, Signal::SIGCONT));
    wait_said(&panzer, 0, 16);
    assert_eq!(panzer.workers(), before);
    panzer.stop();
}

#[test]
fn who_says_that_it_stops_has_the_time_of_a_stop() {
    let program = "#!/usr/bin/env python3
import os, socket, time
panzer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
panzer.sendto(b'READY=1\\nSTOPPING=1', '\\0' + os.environ['NOTIFY_SOCKET'][1:])
begun = time.monotonic()
while time.monotonic() < begun + 1.5:
    time.sleep(0.1)
os._exit(7)
";
    let panzer = Panzer::builder().executable("app", program).args(["-w", "1", "--watchdog", "300ms"]);
    let panzer = panzer.args(["--ready", "notify", "--delay", "60s", "./app"]).start();
    panzer.allow_line("exited with code 7; respawning it");
    panzer.wait_for_line("exited with code 7; respawning it", SOON);
    panzer.stop();
}
