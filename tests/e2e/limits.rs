//! Limits: how often workers are started, how fast, until when, and how many generations drain. 50.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::control::{run, text};
use crate::faults::{SOON, kill_9, wait_gone, wait_workers};
use crate::support::{Builder, Panzer, eventually, eventually_some, free_port};

/// A program of which each worker reads from the file `do-ID` what it is to exit with, as soon as that is there.
const TOLD: &str = "#!/usr/bin/env python3
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_DFL)
slot = os.environ['PANZER_WORKER_ID']
open('starts-' + slot, 'a').write('started\\n')
while not os.path.exists('do-' + slot):
    time.sleep(0.05)
os._exit(int(open('do-' + slot).read()))
";

fn told(workers: u32) -> Builder {
    let workers = workers.to_string();
    Panzer::builder().executable("app", TOLD).args(["-w", &workers, "--bake", "100ms", "--delay", "10ms", "./app"])
}

/// Has the worker in `slot` exit with `code`.
fn exit(panzer: &Panzer, slot: u32, code: i32) {
    let new = panzer.path("new");
    fs::write(&new, code.to_string()).unwrap();
    fs::rename(new, panzer.path(&format!("do-{slot}"))).unwrap();
}

fn starts(panzer: &Panzer, slot: u32) -> usize {
    fs::read_to_string(panzer.path(&format!("starts-{slot}"))).map_or(0, |text| text.lines().count())
}

/// Waits until it serves and its programs have been read.
#[track_caller]
fn wait_told(panzer: &Panzer, workers: u32) {
    panzer.wait_serving();
    eventually(SOON, "every worker has begun", || (0..workers).all(|slot| starts(panzer, slot) > 0));
}

#[track_caller]
fn wait_phase(panzer: &Panzer, slot: u32, phase: &str) {
    eventually(SOON, "the slot comes to this phase", || {
        panzer.status().serving().workers.iter().any(|worker| worker.slot == slot && worker.phase == phase)
    });
}

#[test]
fn when_all_have_ended_for_good_it_exits_with_the_highest_code() {
    let panzer = told(3).args(["--final-exit-codes", "0,64-78"]).start();
    wait_told(&panzer, 3);
    panzer.expect_line("panzer: worker 0 (pid *, generation 1) has ended for good with exit code 0");
    panzer.expect_line(
        "warning: worker 1 (pid *, generation 1) exited with code 65, which is final; it is not respawned",
    );
    panzer.expect_line("warning: worker 2 (pid *, generation 1) exited with code 64, which is final");
    panzer.expect_line("error: every worker of generation 1 has ended for good; stopping with exit code 65");
    exit(&panzer, 1, 65);
    wait_phase(&panzer, 1, "ended");
    let status = panzer.status();
    let ended = &status.serving().workers[1];
    assert!(ended.rest.ends_with("last: exited with code 65"), "{ended:?}");
    assert_eq!(status.serving().pids().len(), 2);
    let metrics = text(&run(&panzer, &["metrics"]).stdout);
    assert!(metrics.contains("panzer_workers{standing=\"serving\",state=\"ended\"} 1\n"), "{metrics}");
    assert!(!metrics.contains("panzer_respawns_total{"), "{metrics}");
    exit(&panzer, 0, 0);
    wait_phase(&panzer, 0, "ended");
    assert_eq!([0, 1, 2].map(|slot| starts(&panzer, slot)), [1, 1, 1]);
    exit(&panzer, 2, 64);
    assert_eq!(panzer.wait_exit().code(), Some(65));
}

#[test]
fn jobs_that_are_done_end_it_with_zero() {
    let panzer = Panzer::start(["-w", "3", "--final-exit-codes", "0", "--", "sh", "-c", "exit 0"]);
    panzer.expect_line("panzer: worker * has ended for good with exit code 0");
    panzer.expect_line("panzer: every worker of generation 1 has ended for good; stopping with exit code 0");
    assert_eq!(panzer.wait_exit().code(), Some(0));
}

/// As a manager takes ServerEngine's unrecoverable exits for success.
#[test]
fn it_ends_with_the_code_that_the_list_names() {
    let panzer = Panzer::start(["-w", "2", "--final-exit-codes", "5,6=0", "--", "sh", "-c", "exit 6"]);
    panzer.expect_line("warning: worker * exited with code 6, which is final");
    panzer.expect_line("panzer: every worker of generation 1 has ended for good; stopping with exit code 0");
    assert_eq!(panzer.wait_exit().code(), Some(0));
    let panzer = told(2).args(["--final-exit-codes", "5=9", "--final-exit-stop"]).start();
    wait_told(&panzer, 2);
    panzer.expect_line("warning: worker 1 (pid *, generation 1) exited with code 5, which is final");
    panzer.expect_line("error: worker 1 of generation 1 has ended for good; stopping with exit code 9");
    exit(&panzer, 1, 5);
    assert_eq!(panzer.wait_exit().code(), Some(9));
}

#[test]
fn any_other_exit_is_respawned_and_so_is_a_kill() {
    let panzer = told(1).args(["--final-exit-codes", "9,137"]).start();
    wait_told(&panzer, 1);
    panzer.expect_line("warning: worker 0 * exited with code 8; respawning it");
    panzer.expect_line("warning: worker 0 * was killed by SIGKILL; respawning it");
    let first = panzer.workers();
    kill_9(first[0]);
    wait_workers(&panzer, 1, &first);
    exit(&panzer, 0, 8);
    panzer.wait_for_line("exited with code 8; respawning it", SOON);
    fs::remove_file(panzer.path("do-0")).unwrap();
    wait_workers(&panzer, 1, &first);
    panzer.stop();
}

#[test]
fn with_final_exit_stop_the_first_one_ends_all() {
    let panzer = told(3).args(["--final-exit-codes", "3", "--final-exit-stop"]).start();
    wait_told(&panzer, 3);
    let workers = panzer.workers();
    panzer.expect_line("warning: worker 1 (pid *, generation 1) exited with code 3, which is final");
    panzer.expect_line("error: worker 1 of generation 1 has ended for good; stopping with exit code 3");
    exit(&panzer, 1, 3);
    assert_eq!(panzer.wait_exit().code(), Some(3));
    wait_gone(&workers);
}

#[test]
fn what_has_ended_stays_so_under_a_new_monitor_and_a_reload_starts_it_anew() {
    let panzer = told(2).args(["--final-exit-codes", "7"]).start();
    wait_told(&panzer, 2);
    panzer.expect_line("warning: worker 1 (pid *, generation 1) exited with code 7, which is final");
    panzer.expect_line("error: the monitor of generation 1 was killed by SIGKILL");
    exit(&panzer, 1, 7);
    wait_phase(&panzer, 1, "ended");
    let before = panzer.workers();
    kill_9(panzer.status().serving().monitor.unwrap());
    wait_workers(&panzer, 1, &before);
    let status = panzer.status();
    let ended = &status.serving().workers[1];
    assert_eq!((ended.phase.as_str(), starts(&panzer, 1)), ("ended", 1), "{ended:?}");
    assert!(ended.rest.ends_with("last: exited with code 7"), "{ended:?}");
    fs::remove_file(panzer.path("do-1")).unwrap();
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    wait_workers(&panzer, 2, &before);
    eventually(SOON, "the worker of slot 1 has begun", || starts(&panzer, 1) == 2);
    panzer.stop();
}

#[test]
fn on_trial_a_final_exit_is_a_failed_release() {
    let panzer = told(2).args(["--final-exit-codes", "5", "--final-exit-stop"]).start();
    wait_told(&panzer, 2);
    panzer.expect_line("error: reload failed: generation 2: worker * exited with code 5; generation 1 serves on");
    // Only the new ones run this.
    crate::support::write_executable(panzer.path("app.new"), "#!/bin/sh\nexit 5\n");
    let before = panzer.workers();
    fs::rename(panzer.path("app.new"), panzer.path("app")).unwrap();
    panzer.reload_and_wait().unwrap_err();
    assert_eq!(panzer.workers(), before);
    panzer.stop();
}

/// Its limit of N, at which it dies, is one respawn less that is borne.
#[test]
fn at_kamisamas_limit_of_three_the_third_death_ends_all() {
    let panzer = told(17).args(["--respawn-limit", "2/60s"]).start();
    wait_told(&panzer, 17);
    panzer.expect_line("warning: worker * was killed by SIGTERM; respawning it");
    panzer.expect_line("error: more than 2 respawns within 1m; giving up");
    panzer.expect_line("error: generation 1 keeps failing; stopping everything");
    let mut known = panzer.workers();
    assert_eq!(known.len(), 17);
    for _ in 0..2 {
        kill(Pid::from_raw(known[0]), Signal::SIGTERM).unwrap();
        let dead = known[..1].to_vec();
        known = wait_workers(&panzer, 17, &dead);
    }
    kill(Pid::from_raw(known[0]), Signal::SIGTERM).unwrap();
    assert_eq!(panzer.wait_exit().code(), Some(1));
    wait_gone(&known);
}

/// Notes when it was started, in the kernel's ticks of 10 ms: however slow its interpreter is.
const CLOCKED: &str = "#!/bin/sh
read -r stat < /proc/$$/stat
set -- ${stat##*) }
echo ${20} >> starts
exec sleep 1000
";

#[test]
fn starts_are_spaced_and_the_time_to_be_ready_counts_from_the_last() {
    let panzer = Panzer::builder()
        .executable("app", CLOCKED)
        .args(["-w", "4", "--start-delay", "600ms", "--ready-timeout", "1200ms", "--bake", "0s", "./app"])
        .start();
    let begun = Instant::now();
    panzer.wait_serving();
    assert!(begun.elapsed() >= Duration::from_millis(3 * 480), "{:?}", begun.elapsed());
    // It takes longer than --ready-timeout until the last has been started.
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    let times = || -> Vec<f64> {
        let notes = fs::read_to_string(panzer.path("starts")).unwrap();
        notes.lines().filter_map(|line| line.parse().ok()).collect()
    };
    eventually(SOON, "all have noted their start", || times().len() == 8);
    let times = times();
    for pair in times[..4].windows(2).chain(times[4..].windows(2)) {
        assert!(pair[1] - pair[0] >= 40.0, "{times:?}");
    }
    panzer.stop();
}

/// Serves, and keeps each connection until the other end closes it, also when it is to stop.
const PATIENT: &str = "#!/usr/bin/env python3
import os, select, signal, socket, sys
stopping = False
def stop(*_):
    global stopping
    stopping = True
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, signal.SIG_DFL)
listener = socket.socket(fileno=3)
listener.setblocking(False)
kept = []
while kept or not stopping:
    ready, _, _ = select.select(kept if stopping else [listener, *kept], [], [], 0.1)
    for one in ready:
        if one is listener:
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                continue
            connection.sendall(os.environ['PANZER_GENERATION'].encode() + b'\\n')
            kept.append(connection)
        elif not one.recv(4096):
            kept.remove(one)
";

/// A connection to the generation that serves; the one before it may take some more until its signal has come.
#[track_caller]
fn long_connection(port: u16, generation: u32) -> TcpStream {
    eventually_some(SOON, "this generation answers", || {
        let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
        connection.set_read_timeout(Some(SOON)).unwrap();
        let mut hello = [0; 16];
        let length = connection.read(&mut hello).ok()?;
        (text(&hello[..length]).trim() == generation.to_string()).then_some(connection)
    })
}

#[test]
fn of_many_generations_with_long_connections_the_oldest_are_hastened() {
    const RELOADS: u32 = 8;
    const LIMIT: u32 = 2;
    let port = free_port();
    let panzer = Panzer::builder()
        .executable("app", PATIENT)
        .args(["-w", "1", "--bake", "0s", "--stop", "TERM/1h/INT/5s/KILL", "--max-draining", &LIMIT.to_string()])
        .args(["-l", &format!("127.0.0.1:{port}"), "./app"])
        .start();
    panzer.wait_serving();
    panzer.expect_line("warning: generation 1 still drains beside 2 that began later (--max-draining)");
    let mut connections = Vec::new();
    for generation in 1..=RELOADS {
        connections.push(long_connection(port, generation));
        assert_eq!(panzer.reload_and_wait(), Ok(generation + 1));
    }
    for generation in 1..=RELOADS - LIMIT {
        panzer.expect_line(&format!("warning: generation {generation} still drains beside 2 that began later"));
        panzer.wait_drained(generation);
    }
    let draining: Vec<u32> = panzer.status().generations.iter().map(|generation| generation.number).collect();
    assert_eq!(draining, [RELOADS - 1, RELOADS, RELOADS + 1], "the youngest take their time, the last one serves");
    // Those that may take their time keep their connections: nothing comes, and nothing ends.
    for (connection, generation) in connections.iter_mut().zip(1..) {
        connection.write_all(b"still there?").ok();
        connection.set_nonblocking(true).unwrap();
        let kept = matches!(connection.read(&mut [0; 1]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
        assert_eq!(kept, generation > RELOADS - LIMIT, "the connection of generation {generation}");
    }
    connections.clear();
    panzer.wait_drained(RELOADS);
    panzer.stop();
}

#[test]
fn what_is_no_limit_is_refused_and_check_shows_what_is() {
    let check = |arguments: &[&str]| {
        let mut panzer = Command::new(env!("CARGO_BIN_EXE_panzer"));
        panzer.args(arguments).args(["--check", "./app"]).env_clear().current_dir("/").output().unwrap()
    };
    for (arguments, why) in [
        (&["--final-exit-codes", "256"][..], "exit codes are numbers from 0 to 255"),
        (&["--final-exit-codes", "9-3"], "the range 9-3 runs backward; write 3-9"),
        (&["--final-exit-codes", "5=1,6=0"], "give one =CODE"),
        (&["--final-exit-codes", "5=256"], "the code after '=' is a number from 0 to 255"),
        (&["--final-exit-codes", "-1"], "exit codes are numbers from 0 to 255"),
        (&["--final-exit-stop"], "add --final-exit-codes"),
        (&["--max-draining", "0"], "it must be a whole number from 1 to 1000"),
        (&["--start-delay", "-1s"], "a duration cannot be negative"),
        (&["--max-memory", "much"], "it is not a size"),
        (&["--max-lifetime", "-1s"], "a duration cannot be negative"),
        (&["--max-requests", "-1"], "it must be a whole number"),
        (&["--respawn-limit", "3"], "a respawn limit is N/D"),
    ] {
        let output = check(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains(why), "{arguments:?}: {}", text(&output.stderr));
    }
    let shown = check(&["--final-exit-codes", "0,64-78", "--final-exit-stop", "--start-delay", "250ms"]);
    let shown = text(&shown.stdout);
    for (name, value) in
        [("final-exit-codes", "0 64-78"), ("final-exit-stop", "true"), ("start-delay", "250ms"), ("max-draining", "4")]
    {
        let line = shown.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {shown}"));
        assert!(line.ends_with(&format!(" {value}")), "{line}");
    }
}

#[test]
fn file_and_environment_set_them_too() {
    let panzer = Panzer::builder()
        .file("panzer.yml", "program: sh\nargs: [-c, exit 66]\nfinal-exit-codes: [0, 64-78]\nworkers: 2\n")
        .args(["--config", "panzer.yml"])
        .env("PANZER_FINAL_EXIT_STOP", "1")
        .env("PANZER_START_DELAY", "1h")
        .env("PANZER_MAX_DRAINING", "9")
        .start();
    panzer.expect_line("warning: worker 0 * exited with code 66, which is final");
    panzer.expect_line("error: worker 0 of generation 1 has ended for good; stopping with exit code 66");
    assert_eq!(panzer.wait_exit().code(), Some(66));
}
