//! kill -9 of molds, workers and monitors, at whatever moment they are in.

use super::*;
use crate::faults::wait_gone;
use crate::support::{Process, descendants, eventually_some, kill_exactly};

/// Kills one of panzer's processes after the other, also those that have just been forked, with reloads in between.
fn kill_many(victims: fn(&str) -> bool, rounds: usize) {
    let port = free_port();
    let panzer =
        serving(&without_tracebacks(&mold("good")), port, 4).args(["--delay", "10ms", "--delay-max", "100ms"]).start();
    panzer.wait_serving();
    for line in [
        "was killed by SIGKILL",
        "ended and left processes behind; stopping them",
        "has not stopped yet; sent it ",
        "is still starting; the next reload follows it",
    ] {
        panzer.allow_line(line);
    }
    for round in 0..rounds {
        if round % 10 == 9 {
            panzer.signal(Signal::SIGUSR1);
        }
        let name = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let all = descendants(panzer.pid());
        let all: Vec<_> = all.iter().filter(|it| it.pid != panzer.pid() && victims(&name(it.pid))).collect();
        if let Some(victim) = all.get(round * 7 % all.len().max(1)) {
            kill_exactly(victim);
        }
    }
    eventually(SOON, "one generation serves, whole, with its mold", || {
        let status = panzer.status();
        let [only] = &status.generations[..] else { return false };
        let ready = only.workers.iter().filter(|worker| worker.phase == "ready").count();
        ready == 4 && only.mold.as_ref().is_some_and(|mold| mold.phase == "ready")
    });
    let status = panzer.status();
    let serving = status.serving();
    // The monitor's children are the mold and the workers, and nobody else.
    let monitor = serving.monitor.unwrap();
    let known: Vec<i32> = serving.pids().into_iter().chain([serving.mold()]).collect();
    eventually(SOON, "nobody is left whom the monitor does not know", || {
        let children = fs::read_to_string(format!("/proc/{monitor}/task/{monitor}/children")).unwrap();
        children.split_ascii_whitespace().all(|pid| known.contains(&pid.parse().unwrap()))
    });
    eventually(SOON, "it answers", || get(port, "/").is_ok_and(|answer| answer.text() == "good"));
    assert_eq!(panzer.stop().code(), Some(0));
}

/// Monitor and main die while a worker has not become the monitor's child yet: it must not wait for that for ever.
#[test]
fn the_monitor_while_a_worker_is_being_born() {
    let waits = "open('between', 'a').write(f'{os.getpid()}\\n')
            while not os.path.exists('go'):
                time.sleep(0.005)
            while os.getppid() == middle:";
    let program = mold("good").replacen("while os.getppid() == middle:", waits, 1);
    assert!(program.contains("'between'"));
    let panzer = serving(&program, free_port(), 1).start();
    // Main may still see that its monitor is gone.
    panzer.allow_line("error: the monitor of generation 1 was killed by SIGKILL; starting another");
    let born = || fs::read_to_string(panzer.path("between")).ok()?.lines().next()?.parse::<i32>().ok();
    let worker = eventually_some(SOON, "a worker is being born", born);
    let monitor = descendants(panzer.pid()).into_iter().find(|it| it.parent == panzer.pid()).unwrap();
    kill_exactly(&monitor);
    kill_exactly(&Process::look(panzer.pid()).unwrap());
    wait_gone(&[monitor.pid, panzer.pid()]);
    fs::write(panzer.path("go"), "").unwrap();
    wait_gone(&[worker]);
    assert!(!panzer.wait_exit().success());
}

/// In the middle of a load, of forks, of a reload, of a stop: nobody stays, and another panzer finds everything free.
#[test]
fn main_at_many_moments() {
    let port = free_port();
    let run = tempfile::tempdir().unwrap();
    for moment in 0..12 {
        let slow = mold("good").replacen("open('loads'", "time.sleep(0.05)\nopen('loads'", 1);
        let panzer = serving(&without_tracebacks(&slow), port, 4).env("RUNTIME_DIRECTORY", run.path()).start();
        for line in ["main is gone", "left processes behind", "waiting until it has ended"] {
            panzer.allow_line(line);
        }
        if moment % 3 > 0 {
            panzer.wait_serving();
            panzer.signal(if moment % 3 == 1 { Signal::SIGUSR1 } else { Signal::SIGTERM });
        }
        // Spread over what happens next, whose length depends on the machine.
        let all = eventually_some(SOON, "some processes", || {
            let all = descendants(panzer.pid());
            (moment % 3 > 0 || all.len() > moment / 3).then_some(all)
        });
        for _ in 0..moment * 3 {
            std::thread::yield_now();
        }
        let seen: Vec<i32> = all.iter().chain(&descendants(panzer.pid())).map(|it| it.pid).collect();
        kill_9(panzer.pid());
        wait_gone(&seen);
        panzer.wait_exit();
    }
    let panzer = serving(&mold("good"), port, 2).env("RUNTIME_DIRECTORY", run.path()).start();
    panzer.wait_serving();
    assert_answers(port, "good");
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn molds_and_workers() {
    kill_many(|name| name.contains("app"), 150);
}

#[test]
fn monitors_as_well() {
    kill_many(|name| name.contains("app") || name.contains("monitor"), 60);
}
