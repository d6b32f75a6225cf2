//! `--preload`: a program that is loaded once and forks its workers.

mod alike;
mod broken;
mod killed;
mod refork;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpgid};

use crate::control::{run, text};
use crate::faults::{SOON, assert_answers, is_alive, kill_9, wait_gone, wait_workers};
use crate::support::{Builder, Panzer, eventually, eventually_some, example_mold, free_port, get};

/// The example, answering with `text`. It notes each load in `loads`.
fn mold(text: &str) -> String {
    let answers = format!("text = b\"{text}\"");
    let code = example_mold().replace("text = b\"worker %s\" % os.environ[\"PANZER_WORKER_ID\"].encode()", &answers);
    assert!(code.contains(&answers));
    code.replacen("def work():", "open('loads', 'a').write('.')\n\ndef work():", 1)
}

/// Its processes end without a word when panzer is gone: tracebacks of several mix their lines.
fn without_tracebacks(program: &str) -> String {
    let begin = "def mold(work):";
    assert!(program.contains(begin));
    program.replacen(begin, &format!("import sys\nsys.excepthook = lambda *_: os._exit(1)\n\n{begin}"), 1)
}

fn serving(program: &str, port: u16, workers: u32) -> Builder {
    Panzer::builder()
        .executable("app", program)
        .args(["--preload", "-w", &workers.to_string(), "-l", &format!("127.0.0.1:{port}"), "./app"])
        .env("PANZER_BAKE", "200ms")
}

fn start(workers: u32) -> (Panzer, u16) {
    let port = free_port();
    let panzer = serving(&mold("good"), port, workers).start();
    panzer.wait_serving();
    (panzer, port)
}

fn loads(panzer: &Panzer) -> usize {
    fs::read(panzer.path("loads")).map_or(0, |notes| notes.len())
}

fn parent_of(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn the_example_of_the_manual_serves() {
    let port = free_port();
    let panzer = serving(&example_mold(), port, 2).start();
    panzer.wait_serving();
    let status = panzer.status();
    let (mold, monitor) = (status.serving().mold(), status.serving().monitor.unwrap());
    for pid in status.serving().pids() {
        assert_eq!(parent_of(pid), monitor, "a worker is the monitor's own child");
        assert_eq!(getpgid(Some(Pid::from_raw(pid))), Ok(Pid::from_raw(pid)), "and leads its group");
    }
    eventually(SOON, "both workers answer, each by its slot", || {
        let answers: Vec<String> = (0..20).map(|_| get(port, "/").unwrap().text()).collect();
        ["worker 0", "worker 1"].iter().all(|expected| answers.iter().any(|answer| answer == expected))
    });
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    assert!(!is_alive(mold), "the old mold ends with its generation");
    assert_ne!(panzer.status().serving().mold(), mold);
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn it_is_loaded_once_for_a_generation_however_often_workers_are_replaced() {
    let (panzer, port) = start(3);
    assert_eq!(loads(&panzer), 1);
    panzer.expect_line("warning: worker * was killed by SIGKILL; respawning it");
    let mold = panzer.status().serving().mold();
    for victim in panzer.workers() {
        kill_9(victim);
        wait_gone(&[victim]);
        assert_answers(port, "good");
    }
    wait_workers(&panzer, 3, &[]);
    assert_eq!(text(&run(&panzer, &["scale", "5"]).stdout).lines().count(), 1);
    wait_workers(&panzer, 5, &[]);
    run(&panzer, &["scale", "2"]);
    wait_workers(&panzer, 2, &[]);
    assert_eq!(loads(&panzer), 1);
    assert_eq!(panzer.status().serving().mold(), mold);
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    assert_eq!(loads(&panzer), 2);
    panzer.stop();
}

#[test]
fn workers_serve_on_without_their_mold_and_another_is_loaded() {
    let (panzer, port) = start(2);
    panzer.expect_line(
        "warning: the mold was killed by SIGKILL (pid *, generation 1); loading another; workers serve on",
    );
    panzer.expect_line("warning: worker * was killed by SIGKILL; respawning it");
    let (workers, mold) = (panzer.workers(), panzer.status().serving().mold());
    kill_9(mold);
    eventually(SOON, "another mold is loaded", || {
        panzer.status().serving().mold.as_ref().is_some_and(|it| it.phase == "ready" && it.pid != Some(mold))
    });
    assert_eq!(panzer.workers(), workers, "the workers do not notice");
    kill_9(workers[0]);
    wait_gone(&workers[..1]);
    wait_workers(&panzer, 2, &workers[..1]);
    assert_answers(port, "good");
    panzer.stop();
}

/// It is stopped: a respawn waits for it, and when it is killed, for the next one.
#[test]
fn a_worker_that_was_asked_of_a_dead_mold_is_asked_of_the_next() {
    let (panzer, port) = start(2);
    panzer.expect_line("warning: worker * was killed by SIGKILL; respawning it");
    panzer.expect_line("warning: the mold * is stopped by SIGSTOP");
    panzer.expect_line("warning: the mold was killed by SIGKILL (pid *, generation 1); loading another");
    let (workers, mold) = (panzer.workers(), panzer.status().serving().mold());
    kill(Pid::from_raw(mold), Signal::SIGSTOP).unwrap();
    panzer.wait_for_line("the mold * is stopped by SIGSTOP", SOON);
    kill_9(workers[0]);
    panzer.wait_for_line("was killed by SIGKILL; respawning it", SOON);
    kill_9(mold);
    wait_workers(&panzer, 2, &workers[..1]);
    assert_answers(port, "good");
    panzer.stop();
}

#[test]
fn nothing_is_left_of_a_killed_monitor_or_main() {
    let (panzer, port) = start(2);
    panzer.expect_line("error: the monitor of generation 1 was killed by SIGKILL; starting another");
    let (workers, mold) = (panzer.workers(), panzer.status().serving().mold());
    kill_9(panzer.status().serving().monitor.unwrap());
    wait_gone(&workers);
    wait_gone(&[mold]);
    let workers = wait_workers(&panzer, 2, &workers);
    assert_answers(port, "good");
    let mold = panzer.status().serving().mold();
    kill_9(panzer.pid());
    panzer.wait_for_line("main is gone; stopping the workers of generation 1", SOON);
    wait_gone(&workers);
    wait_gone(&[mold]);
    assert_eq!(panzer.wait_exit().code(), None);
}

#[test]
fn a_restart_in_place_keeps_the_mold() {
    let (panzer, port) = start(2);
    let (workers, mold) = (panzer.workers(), panzer.status().serving().mold());
    assert!(run(&panzer, &["restart"]).status.success());
    assert_eq!(panzer.workers(), workers);
    assert_eq!(panzer.status().serving().mold(), mold);
    panzer.expect_line("warning: worker * was killed by SIGKILL; respawning it");
    kill_9(workers[0]);
    wait_gone(&workers[..1]);
    wait_workers(&panzer, 2, &workers[..1]);
    assert_answers(port, "good");
    panzer.stop();
}

#[test]
fn preload_may_change_at_a_reload() {
    let port = free_port();
    // Without a mold's socket it is an ordinary worker.
    let either = mold("good").replace("\nmold(work)\n", "\nmold(work) if 'PANZER_MOLD_FD' in os.environ else work()\n");
    let panzer = Panzer::builder()
        .executable("app", &either)
        .file("panzer.yml", "bake: 200ms\n")
        .args(["--config", "panzer.yml", "-w", "2", "-l", &format!("127.0.0.1:{port}"), "./app"])
        .start();
    panzer.wait_serving();
    assert!(panzer.status().serving().mold.is_none());
    fs::write(panzer.path("panzer.yml"), "bake: 200ms\npreload: true\n").unwrap();
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.status().serving().mold();
    fs::write(panzer.path("panzer.yml"), "bake: 200ms\n").unwrap();
    assert_eq!(panzer.reload_and_wait(), Ok(3));
    assert!(panzer.status().serving().mold.is_none());
    panzer.wait_drained(2);
    assert_answers(port, "good");
    panzer.stop();
}

#[test]
fn operators_see_the_mold_and_the_memory_of_all() {
    let (panzer, _) = start(2);
    let mold = panzer.status().serving().mold();
    let table = text(&run(&panzer, &["status"]).stdout);
    assert!(table.contains("1 serving, monitor ") && table.contains(" in all"), "{table}");
    assert!(table.lines().any(|line| line.contains(&format!("mold {mold} ready"))), "{table}");
    let json: serde_json::Value = serde_json::from_slice(&run(&panzer, &["status", "--json"]).stdout).unwrap();
    let generation = &json["generations"][0];
    assert_eq!(generation["mold"]["pid"], mold, "{json}");
    assert!(generation["mold"]["slot"].is_null() && generation["mold"]["state"] == "ready", "{json}");
    let workers = generation["workers"].as_array().unwrap();
    let parts = workers.iter().chain([&generation["mold"]]).map(|one| one["pss_bytes"].as_u64().unwrap());
    assert_eq!(generation["pss_bytes"].as_u64(), Some(parts.sum()), "{json}");
    let metrics = text(&run(&panzer, &["metrics"]).stdout);
    assert!(metrics.contains("panzer_molds{standing=\"serving\",state=\"ready\"} 1\n"), "{metrics}");
    panzer.stop();
}

#[test]
fn each_worker_has_its_own_queue() {
    let port = free_port();
    // It tells by its descriptor which socket it was given.
    let tells = "text = b\"%d %s\" % (os.fstat(3).st_ino, os.environ[\"PANZER_WORKER_ID\"].encode())";
    let program = example_mold().replace("text = b\"worker %s\" % os.environ[\"PANZER_WORKER_ID\"].encode()", tells);
    let panzer = Panzer::builder()
        .executable("app", &program)
        .args(["--preload", "-w", "2", "--bake", "100ms", "-l", &format!("127.0.0.1:{port},per-worker"), "./app"])
        .start();
    panzer.wait_serving();
    let queues = || {
        let mut found = std::collections::BTreeMap::new();
        eventually(SOON, "both queues answer", || {
            let answer = get(port, "/").unwrap().text();
            let (queue, slot) = answer.split_once(' ').unwrap();
            found.insert(slot.to_owned(), queue.to_owned());
            found.len() == 2
        });
        found
    };
    let before = queues();
    assert_ne!(before["0"], before["1"], "each has a socket of its own");
    panzer.expect_line("warning: worker * was killed by SIGKILL; respawning it");
    let workers = panzer.workers();
    workers.iter().copied().for_each(kill_9);
    wait_gone(&workers);
    wait_workers(&panzer, 2, &workers);
    assert_eq!(queues(), before, "a replacement gets the queue of its slot");
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    assert_eq!(queues(), before);
    panzer.stop();
}

/// As the programs do for which molds are made: the mold binds and listens, its workers accept.
#[test]
fn a_port_that_a_mold_binds_is_shared_with_the_next() {
    let port = free_port();
    let listens = format!("listener = socket.create_server(('127.0.0.1', {port}))\n\nmold(work)");
    let program =
        example_mold().replace("    listener = socket.socket(fileno=3)\n", "").replace("mold(work)\n", &listens);
    assert!(program.contains("create_server"));
    let panzer = Panzer::builder()
        .executable("app", &program)
        .args(["--preload", "-w", "2", "--bake", "200ms", "./app"])
        .start();
    panzer.wait_serving();
    eventually(SOON, "it answers", || get(port, "/").is_ok());
    for generation in 2..=4 {
        assert_eq!(panzer.reload_and_wait(), Ok(generation));
        panzer.wait_drained(generation - 1);
        assert!(get(port, "/").unwrap().text().starts_with("worker "));
    }
    panzer.stop();
}

#[test]
fn a_worker_says_itself_that_it_is_ready() {
    let port = free_port();
    let says = "def work():\n    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', '\\0' + \
                os.environ['NOTIFY_SOCKET'][1:])";
    let program = mold("good").replace("def work():", says);
    let panzer = serving(&program, port, 3).args(["--ready", "notify", "--ready-timeout", "20s"]).start();
    panzer.wait_serving();
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.stop();
}

/// What it says when its mold has been told to end means nothing, and nobody is told.
#[test]
fn a_worker_that_is_born_as_the_stop_begins_ends_in_silence() {
    let port = free_port();
    let says = "def work():\n    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', '\\0' + \
                os.environ['NOTIFY_SOCKET'][1:]); open('said', 'w')";
    let waits =
        "while os.path.exists('wait'): open('asked', 'w'); time.sleep(0.001)\n        if (middle := os.fork()) == 0:";
    let program = mold("good").replace("def work():", says).replace("if (middle := os.fork()) == 0:", waits);
    let panzer = serving(&program, port, 1).args(["--ready", "notify", "--ready-timeout", "20s"]).start();
    panzer.expect_line("warning: worker * was killed by SIGKILL; respawning it");
    panzer.wait_serving();
    let (worker, monitor) = (panzer.workers()[0], panzer.status().serving().monitor.unwrap());
    fs::write(panzer.path("wait"), "").unwrap();
    fs::remove_file(panzer.path("said")).unwrap();
    kill_9(worker);
    eventually(SOON, "it is asked for another", || panzer.path("asked").exists());
    // The monitor finds the order to stop first, then BORN, then READY=1.
    kill(Pid::from_raw(monitor), Signal::SIGSTOP).unwrap();
    panzer.signal_quietly(Signal::SIGTERM);
    panzer.wait_for_line("stopping gracefully", SOON);
    fs::remove_file(panzer.path("wait")).unwrap();
    eventually(SOON, "the worker speaks", || panzer.path("said").exists());
    kill(Pid::from_raw(monitor), Signal::SIGCONT).unwrap();
    assert_eq!(panzer.wait_exit().code(), Some(0));
}

#[test]
fn a_worker_starts_clean() {
    let port = free_port();
    let program =
        mold("good").replace("def work():", "def work():\n    open('born', 'w').write('\\n'.join(sorted(os.environ)))");
    let panzer = serving(&program, port, 1).start();
    panzer.wait_serving();
    let names = eventually_some(SOON, "the worker notes its environment", || {
        fs::read_to_string(panzer.path("born")).ok().filter(|names| names.contains("PWD"))
    });
    let own: Vec<&str> = names.lines().filter(|name| name.starts_with("PANZER_")).collect();
    assert_eq!(own, ["PANZER_GENERATION", "PANZER_MAIN_PID", "PANZER_WORKER_COUNT", "PANZER_WORKER_ID"]);
    let worker = panzer.workers()[0];
    let open = fs::read_dir(format!("/proc/{worker}/fd")).unwrap().count();
    assert_eq!(open, 4, "descriptors 0-2 and the listener");
    let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
    assert!(status.contains("SigBlk:\t0000000000000000"), "{status}");
    panzer.stop();
}

#[test]
fn a_stop_goes_through_the_schedule_of_the_workers_and_the_mold_does_not_wait_for_it() {
    let port = free_port();
    let deaf = mold("good").replace("def work():", "def work():\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)");
    let panzer = serving(&deaf, port, 2).args(["--stop", "TERM/500ms/KILL"]).start();
    panzer.expect_line("warning: worker 0 (pid *, generation 1) has not stopped yet; sent it SIGKILL");
    panzer.expect_line("warning: worker 1 (pid *, generation 1) has not stopped yet; sent it SIGKILL");
    panzer.wait_serving();
    assert_answers(port, "good");
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn a_mold_that_ignores_its_stop_is_killed_with_the_workers() {
    let port = free_port();
    let deaf = mold("good").replace(
        "mold(work)\n",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nmold(work)\nwhile True: time.sleep(1)\n",
    );
    let panzer = serving(&deaf, port, 1).args(["--stop", "TERM/300ms/KILL"]).start();
    panzer.expect_line("has not stopped yet; sent it SIGKILL");
    panzer.wait_serving();
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn what_differs_from_worker_to_worker_is_refused() {
    let refused = |arguments: &[&str], why: &str| {
        let panzer = Panzer::builder().args(["--preload"]).args(arguments).expect_line(why).start();
        assert_eq!(panzer.wait_exit().code(), Some(2));
    };
    let why = "panzer: --preload: {worker} cannot be given to a program that is loaded once";
    refused(&["--", "sleep", "{worker}"], why);
    refused(&["--env", "ID={3000+worker}", "sleep"], why);
    refused(&["--also-speak", "einhorn", "-l", "0", "sleep"], "panzer: --preload: the variables of einhorn differ");
}

#[test]
fn its_limits_and_its_identity_are_those_of_the_workers() {
    let port = free_port();
    let panzer = serving(&mold("good"), port, 1).args(["--umask", "027", "--nice", "5", "--env", "FLAVOUR=plum"]);
    let panzer = panzer.args(["--rlimit", "NOFILE=300", "--cpu-affinity", "auto"]).start();
    panzer.wait_serving();
    for pid in [panzer.workers()[0], panzer.status().serving().mold()] {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("Umask:\t0027"), "{status}");
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        assert_eq!(stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(16), Some("5"), "nice");
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        assert!(limits.lines().any(|line| line.starts_with("Max open files") && line.contains(" 300 ")), "{limits}");
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
        assert!(String::from_utf8_lossy(&environment).contains("FLAVOUR=plum"));
    }
    let status = fs::read_to_string(format!("/proc/{}/status", panzer.workers()[0])).unwrap();
    let cpus = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    assert!(cpus.trim().parse::<usize>().is_ok(), "one CPU, not {cpus}");
    panzer.stop();
}

#[test]
fn as_another_user_it_and_its_workers_have_no_more_rights_than_a_worker_has() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: to become another user takes root");
    }
    let port = free_port();
    let builder = serving(&mold("good").replacen("open('loads', 'a').write('.')\n", "", 1), port, 2);
    fs::set_permissions(builder.folder(), fs::Permissions::from_mode(0o755)).unwrap();
    let panzer = builder.args(["--user", "nobody"]).start();
    panzer.wait_serving();
    assert_answers(port, "good");
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let ids = |id: u32| vec![id.to_string(); 4].join("\t");
    for pid in panzer.workers().into_iter().chain([panzer.status().serving().mold()]) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let has = |line: &str| assert!(status.contains(&format!("{line}\n")), "{line}: {status}");
        has(&format!("Uid:\t{}", ids(nobody.uid.as_raw())));
        has(&format!("Gid:\t{}", ids(nobody.gid.as_raw())));
        has("CapEff:\t0000000000000000");
        has("CapPrm:\t0000000000000000");
    }
    // Signals and stdout are as for any worker.
    panzer.expect_line("warning: worker * was killed by SIGKILL; respawning it");
    let workers = panzer.workers();
    kill_9(workers[0]);
    wait_gone(&workers[..1]);
    wait_workers(&panzer, 2, &workers[..1]);
    assert_eq!(panzer.stop().code(), Some(0));
}

/// How often a process has slept or was made to wait.
fn switches(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let counts = status.lines().filter(|line| line.contains("ctxt_switches"));
    counts.map(|line| line.rsplit_once('\t').unwrap().1.parse::<u64>().unwrap()).sum()
}

/// Nothing that panzer does by itself comes later than the release of memory that it has not used for a while.
#[test]
fn an_idle_panzer_with_a_mold_does_not_wake() {
    let (panzer, _) = start(2);
    let status = panzer.status();
    let all = [panzer.pid(), status.serving().monitor.unwrap(), status.serving().mold()];
    let count = || all.iter().chain(&status.serving().pids()).map(|pid| switches(*pid)).collect::<Vec<_>>();
    let mut before = count();
    let mut since = Instant::now();
    eventually(Duration::from_secs(60), "two seconds without a wake-up", || {
        let now = count();
        if now != before {
            (before, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_secs(2)
    });
    panzer.stop();
}

/// As by a manager that signals a whole control group.
#[test]
fn a_mold_that_is_told_to_end_together_with_panzer_is_no_crash() {
    // A worker that is forked meanwhile cannot say so any more.
    let panzer = serving(&without_tracebacks(&mold("good")), free_port(), 2).start();
    panzer.wait_serving();
    let status = panzer.status();
    for pid in status.serving().pids().into_iter().chain([status.serving().mold()]) {
        kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    }
    panzer.signal_quietly(Signal::SIGTERM);
    assert_eq!(panzer.wait_exit().code(), Some(0));
}
