//! Readiness by a command, `--ready exec:CMD`.

use super::*;

/// A panzer with workers that do nothing, and this probe of them.
fn probed(options: &[&str], probe: &str) -> Builder {
    Panzer::builder().args(options).args(["--ready", &format!("exec:{probe}"), "--", "sleep", "1000"])
}

#[test]
fn a_probe_decides_by_its_exit_code() {
    // It is told whom it is to look at, runs where workers run, and has none of what is theirs alone.
    let probe = "test -e allowed && grep -q sleep /proc/$PANZER_WORKER_PID/cmdline && test -z \"$NOTIFY_SOCKET\" \
                 && test -z \"$LISTEN_FDS\" && ! test -e /proc/self/fd/3 && echo $PANZER_WORKER_ID >> probed";
    if !require("python3") {
        return;
    }
    let probe = probe.replace("sleep", "app");
    let panzer = watched(2, &in_its_set_for("0")).args(["--ready", &format!("exec:{probe}")]).start();
    panzer.wait_for_line("started as pid", SOON);
    let tried = now() + Duration::from_secs(1);
    eventually(SOON, "it was tried", || now() >= tried);
    assert!(panzer.status().serving().workers.iter().all(|worker| worker.phase == "starting"));
    fs::write(panzer.path("allowed"), "").unwrap();
    assert_seen_by_probe(&panzer);
    fs::remove_file(panzer.path("probed")).unwrap();
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    assert_seen_by_probe(&panzer);
    panzer.stop();
}

#[track_caller]
fn assert_seen_by_probe(panzer: &Panzer) {
    panzer.wait_serving();
    let mut probed: Vec<String> =
        fs::read_to_string(panzer.path("probed")).unwrap().lines().map(str::to_owned).collect();
    probed.sort();
    assert_eq!(probed, ["0", "1"], "one success each, and no probe after it");
}

#[test]
fn a_probe_that_fails_fails_the_release() {
    let panzer = probed(&["-w", "1", "--ready-timeout", "1s"], "test $PANZER_GENERATION = 1").start();
    panzer.wait_serving();
    panzer.expect_line("error: reload failed: generation 2: 1 of 1 worker was not ready within 1s (worker 0)");
    panzer.reload_and_wait().unwrap_err();
    panzer.stop();
}

#[test]
fn a_worker_that_its_probe_kills_is_not_ready() {
    let quickly = ["-w", "1", "--delay", "1ms", "--delay-max", "1ms", "--healthy-after", "1ms"];
    for kill in ["kill -9 $PANZER_WORKER_PID 2>&-", "kill $PANZER_WORKER_PID 2>&-"] {
        let panzer = probed(&quickly, kill).allow_line("warning: worker 0 (pid *) was killed by *").start();
        let deaths = || panzer.lines().iter().filter(|line| line.contains("was killed by")).count();
        eventually(SOON, "it has ended often", || deaths() >= 30);
        assert!(!panzer.lines().iter().any(|line| line.contains("serves")), "it never served: {:?}", panzer.lines());
        panzer.stop();
    }
}

#[test]
fn a_probe_that_hangs_ends_with_its_worker() {
    let panzer = probed(&["-w", "1", "--ready-timeout", "1s"], "echo . >> probed; sleep 1000 & wait").start();
    panzer.expect_line("warning: worker 0 * is not ready after 1s; stopping it");
    panzer.expect_line("warning: worker 0 * was not ready within 1s; respawning it in");
    let probes = || fs::read_to_string(panzer.path("probed")).map_or(0, |notes| notes.lines().count());
    eventually(SOON, "the next worker is probed", || probes() == 2);
    // That no probe is left is checked at the end.
    panzer.stop();
}

#[test]
fn a_probe_is_not_empty() {
    let panzer = Panzer::start(["--ready", "exec:", "--", "sleep", "1000"]);
    panzer.expect_line("invalid value 'exec:' for --ready: did you mean 'exec:CMD'? it must be one of auto, accept, notify, alive, exec:CMD");
    assert_eq!(panzer.wait_exit().code(), Some(2));
}

/// It would succeed at once, as one does that the serving generation answers.
#[test]
fn a_probe_counts_only_once_the_worker_accepts() {
    if !require("python3") {
        return;
    }
    let panzer = watched(2, &in_its_set_for("1")).args(["--ready", "exec:true", "--ready-timeout", "6s"]).start();
    panzer.allow_line("unless it is still starting");
    assert_seen(&panzer, "panzer: generation 1 serves: ", 2, "a probe at a first start");
    fs::remove_file(panzer.path("first")).unwrap();
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    assert_seen(&panzer, "panzer: reload done: generation 2 serves", 2, "a probe at a reload");
    replace(&panzer, "time.sleep(1000)\n");
    panzer.expect_line(
        "error: reload failed: generation 3: 2 of 2 workers were not ready within 6s (worker 0, 1): not seen accepting",
    );
    panzer.reload_and_wait().unwrap_err();
    panzer.stop();
}

#[test]
fn a_probe_counts_only_once_the_worker_accepts_on_a_shared_port() {
    if !require("python3") {
        return;
    }
    let binds =
        "listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))\nnote()\nwhile True: listener.accept()\n";
    let binds = format!("{}{binds}", PREAMBLE.replace("listener = socket.socket(fileno=3)\n", ""));
    let panzer = Panzer::builder()
        .executable("app", &binds)
        .args([
            "-w",
            "1",
            "--ready",
            "exec:true",
            "--ready-timeout",
            "3s",
            "--bake",
            "0s",
            "--",
            "./app",
            &free_port().to_string(),
        ])
        .start();
    panzer.wait_serving();
    eventually(SOON, "it accepts", || last_first(&panzer, 1).is_some());
    eventually(SOON, "it was seen", || panzer.status().serving().workers[0].phase == "ready");
    fs::remove_file(panzer.path("first")).unwrap();
    replace_by(&panzer, &binds.replace("note()\nwhile", "time.sleep(1)\nnote()\nwhile"));
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    assert_seen(&panzer, "panzer: reload done: generation 2 serves", 1, "a probe on a shared port");
    panzer.stop();
}

#[test]
fn a_slow_program_has_more_time_with_each_try_of_a_first_start() {
    let slow =
        "echo . >> tries; i=0; while [ $i -lt 25 ]; do sleep 0.1; i=$((i+1)); done; touch ready; exec sleep 1000";
    let panzer = Panzer::builder()
        .args(["-w", "1", "--ready", "exec:test -e ready", "--ready-timeout", "1s", "--delay", "10ms"])
        .args(["--stop", "TERM/5s/KILL", "--", "sh", "-c", slow])
        .start();
    panzer.expect_line("warning: worker 0 * is not ready after 1s; stopping it (--ready-timeout; the next try has 2s)");
    panzer.expect_line("warning: worker 0 * was not ready within 1s; respawning it in * (--ready-timeout)");
    panzer.expect_line("warning: worker 0 * is not ready after 2s; stopping it (--ready-timeout; the next try has 4s)");
    panzer.expect_line("warning: worker 0 * was not ready within 2s; respawning it in * (--ready-timeout)");
    panzer.allow_line("left processes behind");
    panzer.allow_line("is not ready after 4s");
    panzer.allow_line("was not ready within 4s");
    panzer.wait_serving();
    panzer.stop();
}
