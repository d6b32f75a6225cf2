//! 60, 63, 64: processes that workers start and do not end.

use std::fs;

use super::{SOON, is_alive, kill_9, wait_gone, wait_workers};
use crate::control::panzerctl;
use crate::support::{Panzer, Process, eventually, eventually_some, require};

fn noted_pid(panzer: &Panzer, name: &str) -> i32 {
    let path = panzer.path(name);
    eventually_some(SOON, "a pid is noted", || fs::read_to_string(&path).ok()?.trim().parse().ok())
}

#[test]
fn the_group_of_a_killed_worker_is_ended() {
    let panzer = Panzer::builder()
        .executable("app", "#!/bin/sh\nsleep 1000 &\necho $! > child\nwait\n")
        .args(["-w", "1", "--bake", "300ms", "./app"])
        .start();
    panzer.wait_serving();
    panzer.expect_line("was killed by SIGKILL; respawning it");
    panzer.expect_line("warning: worker 0 * ended and left processes behind; stopping them");
    let child = noted_pid(&panzer, "child");
    let before = panzer.workers();
    kill_9(before[0]);
    wait_gone(&[child]);
    wait_workers(&panzer, 1, &before);
    panzer.stop();
}

#[test]
fn a_child_that_keeps_the_listener_is_ended_by_a_stop() {
    let panzer = Panzer::builder()
        .executable("app", "#!/bin/sh\nsleep 1000 &\necho $! > child\nexec sleep 1000\n")
        .args(["-w", "1", "--bake", "300ms", "./app"])
        .start();
    panzer.wait_serving();
    panzer.expect_line("warning: worker 0 * ended and left processes behind; stopping them");
    let child = noted_pid(&panzer, "child");
    assert!(is_alive(child));
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn a_program_that_goes_to_the_background_is_noticed_and_ended() {
    let panzer = Panzer::builder()
        .executable("app", "#!/bin/sh\nsetsid sleep 1000 &\necho $! > child\nsleep 0.2\n")
        .args(["-w", "1", "--delay", "1h", "--delay-max", "1h", "./app"])
        .start();
    panzer.expect_line(
        "warning: worker 0 * exited with code 0, but workers are expected to keep running; respawning it in",
    );
    panzer.expect_line("warning: worker 0 * ended and left processes behind; stopping them");
    let child = noted_pid(&panzer, "child");
    wait_gone(&[child]);
    panzer.stop();
}

/// A worker that puts a helper into a session of its own, notes its pid, and ends with 0 when it is told to.
const WITH_DAEMON: &str = "#!/bin/sh
(setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $! > daemon-$PANZER_WORKER_ID)
trap 'exit 0' TERM
while :; do sleep 0.05; done
";

#[test]
fn what_living_workers_have_started_is_left_alone() {
    let panzer = Panzer::builder().executable("app", WITH_DAEMON).args(["-w", "2", "--bake", "300ms", "./app"]).start();
    panzer.wait_serving();
    let daemons = [0, 1].map(|slot| noted_pid(&panzer, &format!("daemon-{slot}")));
    panzer.expect_line("warning: worker 1 * ended and left processes behind; stopping them");
    assert!(panzerctl(&panzer, &["scale", "1"]).output().unwrap().status.success());
    wait_gone(&daemons[1..]);
    assert!(is_alive(daemons[0]), "the helper of a worker that lives was ended");
    panzer.expect_line("warning: worker 0 * ended and left processes behind; stopping them");
    panzer.stop();
}

/// What a helper leaves when it ends is known by that helper's session, which shows nothing else.
#[test]
fn what_a_helper_leaves_goes_with_the_same_worker() {
    helper_leaves(
        "setsid sh -c 'env -i sleep 1000 & echo $! > left; echo $$ > helper; until [ -e go ]; do sleep 0.02; done'",
    );
}

/// The same if the helper leads that session only after the monitor has got to know it.
#[test]
fn what_a_helper_leaves_in_a_later_session_goes_with_the_same_worker() {
    helper_leaves(
        "sh -c 'echo $$ > helper; until [ -e go ]; do sleep 0.02; done
        exec setsid sh -c \"env -i sleep 1000 & echo \\$! > left; until grep sleep /proc/\\$!/comm; do sleep 0.02; done\"'",
    );
}

/// The same if the helper waits for the exec of a child of its own when the monitor gets to know it, which looks like a
/// process that waits for a disk.
#[test]
fn what_a_helper_in_a_fork_leaves_goes_with_the_same_worker() {
    helper_leaves(
        "mkfifo go; setsid python3 -c 'import os
open(\"helper\", \"w\").write(str(os.getpid()))
waits = [(os.POSIX_SPAWN_OPEN, 0, \"go\", os.O_RDONLY, 0)]
os.posix_spawn(\"/bin/true\", [\"true\"], {}, file_actions=waits)
pid = os.posix_spawn(\"/bin/sleep\", [\"sleep\", \"1000\"], {})
open(\"left\", \"w\").write(str(pid))'",
    );
}

/// Runs a helper that worker 0 puts into the background, and that ends once there is a file `go`.
fn helper_leaves(helper: &str) {
    let app = "#!/bin/sh
if [ $PANZER_WORKER_ID = 0 ] && [ ! -e helper ]; then
    (HELPER &)
fi
exec sleep 1000
";
    let app = app.replace("HELPER", helper);
    let panzer = Panzer::builder().executable("app", &app).args(["-w", "3", "--bake", "300ms", "./app"]).start();
    panzer.wait_serving();
    let helper = noted_pid(&panzer, "helper");
    for slot in [0, 1] {
        panzer.expect_line(&format!("warning: worker {slot} * was killed by SIGKILL; respawning it"));
    }
    let before = panzer.workers();
    let in_slot = |slot: u32| {
        let status = panzer.status();
        status.serving().workers.iter().find(|worker| worker.slot == slot).and_then(|worker| worker.pid).unwrap()
    };
    // Its monitor gets to know the helper at the next end.
    kill_9(in_slot(1));
    wait_workers(&panzer, 3, &before[..0]);
    eventually(SOON, "another has its place", || panzer.workers().iter().any(|pid| !before.contains(pid)));
    fs::write(panzer.path("go"), "").unwrap();
    wait_gone(&[helper]);
    let left = noted_pid(&panzer, "left");
    panzer.expect_line("warning: worker 0 * ended and left processes behind; stopping them");
    kill_9(in_slot(0));
    wait_gone(&[left]);
    panzer.stop();
}

/// What a scale or a reload ends goes by `--retire`, and so does what that leaves behind.
#[test]
fn what_a_retired_worker_leaves_goes_by_its_schedule() {
    let stubborn = WITH_DAEMON.replace("setsid sleep 1000", "setsid sh -c 'trap \"\" TERM; sleep 1000'");
    let panzer = Panzer::builder()
        .executable("app", &stubborn)
        .args(["-w", "2", "--bake", "300ms", "--stop", "TERM/1h/KILL", "--retire", "TERM/2s/KILL", "./app"])
        .start();
    panzer.wait_serving();
    let daemons = [0, 1].map(|slot| noted_pid(&panzer, &format!("daemon-{slot}")));
    panzer.expect_line("warning: worker 1 * ended and left processes behind; stopping them");
    assert!(panzerctl(&panzer, &["scale", "1"]).output().unwrap().status.success());
    wait_gone(&daemons[1..]);
    panzer.expect_line("warning: worker 0 * ended and left processes behind; stopping them");
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    wait_gone(&daemons[..1]);
    panzer.signal(nix::sys::signal::Signal::SIGQUIT);
    panzer.wait_exit();
}

#[test]
fn helpers_that_end_with_their_worker_are_no_warning() {
    let panzer = Panzer::builder()
        .executable(
            "app",
            "#!/bin/sh\nworker=$$\n(while kill -0 $worker; do sleep 0.02; done) 2>/dev/null &\nexec sleep 1000\n",
        )
        .args(["-w", "1", "--bake", "300ms", "./app"])
        .start();
    panzer.wait_serving();
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn what_no_worker_has_started_is_none_of_our_business() {
    // Its detached job falls to panzer, which took the shell's place, while panzer runs.
    let panzer = Panzer::builder()
        .executable(
            "sh",
            "#!/bin/bash\n(until [ -e fall ]; do sleep 0.05; done; (sleep 1000 & echo $! > job)) &\nexec \"$@\"\n",
        )
        .through("sh")
        .args(["-w", "1", "--bake", "300ms", "--stop", "TERM/1h/KILL", "--", "sleep", "1000"])
        .start();
    panzer.wait_serving();
    fs::write(panzer.path("fall"), "").unwrap();
    let job = noted_pid(&panzer, "job");
    eventually(SOON, "the job has fallen to panzer", || {
        Process::look(job).is_some_and(|job| job.parent == panzer.pid())
    });
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    assert!(is_alive(job), "a reload has ended what no worker had started");
    // Panzer itself does not wait for it, either.
    panzer.signal(nix::sys::signal::Signal::SIGTERM);
    panzer.wait_for_line("panzer: stopped", SOON);
    kill_9(job);
    panzer.wait_exit();
}

#[test]
fn what_an_earlier_worker_left_is_ended_though_its_monitor_is_gone() {
    // Only the group says whose the helper is, and that a worker led which has been replaced since.
    let app = "#!/bin/bash
[ -e child ] || { env -i bash -c 'trap \"\" TERM; while :; do sleep 0.05; done' & echo $! > child; }
exec sleep 1000
";
    let panzer = Panzer::builder()
        .executable("app", app)
        .executable("sh", "#!/bin/bash\nsleep 1000 &\necho $! > job\nexec \"$@\"\n")
        .through("sh")
        .args(["-w", "1", "--bake", "300ms", "--stop", "TERM/1h/KILL", "--", "./app"])
        .start();
    panzer.wait_serving();
    panzer.expect_line("was killed by SIGKILL; respawning it");
    panzer.allow_line("warning: worker 0 * ended and left processes behind; stopping them");
    let (child, job) = (noted_pid(&panzer, "child"), noted_pid(&panzer, "job"));
    let before = panzer.workers();
    kill_9(before[0]);
    let before = wait_workers(&panzer, 1, &before);
    panzer.expect_line("error: the monitor of generation 1 was killed by SIGKILL; starting another");
    kill_9(panzer.status().serving().monitor.unwrap());
    wait_workers(&panzer, 1, &before);
    panzer.signal(nix::sys::signal::Signal::SIGQUIT);
    wait_gone(&[child]);
    assert!(is_alive(job), "what no worker had started was ended");
    kill_9(job);
    panzer.wait_exit();
}

#[test]
fn a_stopped_worker_can_obey() {
    let panzer = Panzer::builder()
        .executable("app", "#!/bin/sh\ntrap 'echo obeyed >> obeyed; exit 0' TERM\nwhile :; do sleep 0.05; done\n")
        .args(["-w", "1", "--bake", "300ms", "--stop", "TERM/1h/KILL", "./app"])
        .start();
    panzer.wait_serving();
    let worker = nix::unistd::Pid::from_raw(panzer.workers()[0]);
    panzer.allow_line("warning: worker 0 (pid *) is stopped by SIGSTOP");
    nix::sys::signal::kill(worker, nix::sys::signal::Signal::SIGSTOP).unwrap();
    assert_eq!(panzer.stop().code(), Some(0));
}

/// Panzer is nobody, and a worker starts something as root through a setuid program.
#[test]
fn what_may_not_be_signalled_holds_up_no_stop() {
    if !nix::unistd::geteuid().is_root() || !require("setpriv") {
        return;
    }
    // Beside it, what has been given up stays so when its monitor has ended, and over a restart in place.
    for what_dies in ["all", "monitor", "worker"] {
        // A copy, as panzer itself may lie where nobody may not go.
        let as_nobody = "#!/bin/sh
cp \"$1\" $(command -v setpriv) . && chmod 4755 setpriv && touch left && chown nobody . run left && shift
exec setpriv --reuid nobody --regid 65534 --clear-groups ./panzer \"$@\"
";
        let app = "#!/bin/sh
if [ ! -s left ]; then
    ./setpriv --reuid 0 --regid 0 --clear-groups setsid sleep 1000 </dev/null >/dev/null 2>&1 &
    echo $! > left
fi
exec sleep 1000
";
        let panzer = Panzer::builder().executable("as-nobody", as_nobody).through("as-nobody").executable("app", app);
        let alone =
            ["-w", "1", "--bake", "300ms", "--share-ports", "off", "--ready", "alive", "--respawn-limit", "1/1h"];
        let panzer = panzer.args(alone).args(["--stop", "TERM/300ms/KILL", "./app"]).start();
        panzer.wait_serving();
        let left = noted_pid(&panzer, "left");
        eventually(SOON, "a helper of root's runs", || {
            fs::metadata(format!("/proc/{left}")).is_ok_and(|helper| std::os::unix::fs::MetadataExt::uid(&helper) == 0)
        });
        let others = "; it has become another user: end it as that user, or as root";
        panzer
            .expect_line(&format!("warning: cannot send SIG* to pid {left} (sleep)*: operation not permitted{others}"));
        panzer.expect_line(&format!(
            "error: pid {left} (sleep) of * does not end, whatever it is sent; leaving it alone"
        ));
        panzer.allow_line("ended and left processes behind; stopping them");
        let given_up = format!("pid {left} (sleep) of * does not end");
        match what_dies {
            "all" => panzer.signal(nix::sys::signal::Signal::SIGTERM),
            "monitor" => {
                panzer.expect_line("error: the monitor of generation 1 was killed by SIGKILL");
                kill_9(panzer.status().serving().monitor.unwrap());
            }
            _ => {
                panzer.expect_line("warning: worker 0 * was killed by SIGKILL; respawning it");
                kill_9(panzer.workers()[0]);
                panzer.wait_for_line(&given_up, SOON);
                let restarted = panzerctl(&panzer, &["restart"]).output().unwrap();
                assert!(restarted.status.success(), "{restarted:?}");
                panzer.signal(nix::sys::signal::Signal::SIGTERM);
                panzer.wait_for_line("panzer: stopped", SOON);
            }
        }
        panzer.wait_for_line(&given_up, SOON);
        let times = panzer.lines().iter().filter(|line| crate::support::matches(&given_up, line)).count();
        assert_eq!(times, 1, "{what_dies}");
        kill_9(left);
        if what_dies == "monitor" {
            panzer.signal(nix::sys::signal::Signal::SIGTERM);
        }
        panzer.wait_exit();
    }
}
