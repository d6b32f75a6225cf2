//! HUP with delays, waits and limits changed: each takes effect, and no worker is restarted for it.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal::{self, SIGHUP, SIGUSR1};
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::config_reread::{configured, hang_up, write, write_whole};
use crate::control::{run, text};
use crate::faults::{SOON, kill_9, wait_gone, wait_workers};
use crate::support::{Panzer, eventually, free_port, get};
use crate::zero_loss::clients::BothKinds;

/// Notes its start, and the signals that it is told to end by; it ends by the second one. What it is to exit with it
/// reads from the file `do-ID`, as soon as that is there.
const NOTES: &str = "#!/usr/bin/env python3
import os, signal, time
slot = os.environ['PANZER_WORKER_ID']
def note(what):
    with open('notes-' + slot, 'a') as notes:
        notes.write(what + '\\n')
def told(number, frame):
    note(signal.Signals(number).name)
    if number != signal.SIGTERM:
        os._exit(0)
for number in [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]:
    signal.signal(number, told)
note('started %f' % time.monotonic())
while not os.path.exists('do-' + slot):
    time.sleep(0.02)
os._exit(int(open('do-' + slot).read()))
";

fn start(text: &str) -> Panzer {
    let panzer = configured(text).executable("notes", NOTES).arg("./notes").start();
    panzer.wait_serving();
    panzer
}

fn notes(panzer: &Panzer, slot: u32) -> Vec<String> {
    let text = fs::read_to_string(panzer.path(&format!("notes-{slot}"))).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[track_caller]
fn wait_begun(panzer: &Panzer, slots: u32) {
    eventually(SOON, "every worker has begun", || (0..slots).all(|slot| !notes(panzer, slot).is_empty()));
}

/// The configuration is this from now on, and nobody is restarted for it.
#[track_caller]
fn tune(panzer: &Panzer, text: &str) {
    let before = panzer.workers();
    write(panzer.folder(), text);
    hang_up(panzer, "configuration read again");
    assert_eq!(panzer.workers(), before, "a worker was restarted");
    assert_eq!(panzer.status().serving().number, 1);
}

/// Has the worker in `slot` exit with `code`.
fn exit(panzer: &Panzer, slot: u32, code: i32) {
    let new = panzer.path("new");
    fs::write(&new, code.to_string()).unwrap();
    fs::rename(new, panzer.path(&format!("do-{slot}"))).unwrap();
}

#[test]
fn final_exit_codes_follow_a_hang_up() {
    let panzer = start("workers: 2\nfinal-exit-codes: [7]\ndelay: 10ms\nstop: QUIT/5s/KILL\n");
    wait_begun(&panzer, 2);
    tune(&panzer, "workers: 2\nfinal-exit-codes: [8]\ndelay: 10ms\nstop: QUIT/5s/KILL\n");
    panzer.expect_line("warning: worker 0 * exited with code 7; respawning it");
    panzer.expect_line("warning: worker 1 (pid *, generation 1) exited with code 8, which is final");
    exit(&panzer, 0, 7);
    panzer.wait_for_line("exited with code 7; respawning it", SOON);
    fs::remove_file(panzer.path("do-0")).unwrap();
    exit(&panzer, 1, 8);
    panzer.wait_for_line("exited with code 8, which is final", SOON);
    eventually(SOON, "only the first one goes on", || panzer.workers().len() == 1);
    panzer.stop();
}

#[test]
fn a_final_exit_that_ends_all_follows_a_hang_up() {
    let panzer = start("workers: 2\nfinal-exit-codes: [7]\nstop: QUIT/5s/KILL\n");
    wait_begun(&panzer, 2);
    tune(&panzer, "workers: 2\nfinal-exit-codes: [7]\nfinal-exit-stop: true\nstop: QUIT/5s/KILL\n");
    panzer.expect_line("warning: worker 1 (pid *, generation 1) exited with code 7, which is final");
    panzer.expect_line("error: worker 1 of generation 1 has ended for good; stopping with exit code 7");
    exit(&panzer, 1, 7);
    assert_eq!(panzer.wait_exit().code(), Some(7));
}

#[test]
fn the_pause_between_starts_follows_a_hang_up() {
    let panzer = start("workers: 1\nstop: QUIT/5s/KILL\n");
    wait_begun(&panzer, 1);
    tune(&panzer, "workers: 1\nstop: QUIT/5s/KILL\nstart-delay: 500ms\n");
    write(panzer.folder(), "workers: 4\nstop: QUIT/5s/KILL\nstart-delay: 500ms\n");
    hang_up(&panzer, "keeping 4 workers from now on, instead of 1");
    wait_begun(&panzer, 4);
    let started = |slot| notes(&panzer, slot)[0].strip_prefix("started ").unwrap().parse::<f64>().unwrap();
    let mut starts: Vec<f64> = (1..4).map(started).collect();
    starts.sort_by(f64::total_cmp);
    // Twice the shortest pause; a program may be begun late, and the next one then seem to come soon.
    assert!(starts[2] - starts[0] > 0.6, "{starts:?}");
    panzer.stop();
}

#[test]
fn the_delay_of_a_respawn_follows_a_hang_up() {
    let panzer = start("workers: 1\nstop: QUIT/5s/KILL\ndelay: 60s\ndelay-max: 60s\n");
    wait_begun(&panzer, 1);
    tune(&panzer, "workers: 1\nstop: QUIT/5s/KILL\ndelay: 2s\ndelay-max: 2s\nhealthy-after: 1h\n");
    panzer.expect_line("warning: worker 0 * was killed by SIGKILL; respawning it in *s");
    // The first death of a ready worker is respawned at once.
    for _ in 0..2 {
        let before = panzer.workers();
        kill_9(before[0]);
        wait_workers(&panzer, 1, &before);
    }
    // One that counts as healthy by now is followed at once.
    tune(&panzer, "workers: 1\nstop: QUIT/5s/KILL\ndelay: 60s\ndelay-max: 60s\nhealthy-after: 1ms\n");
    let before = panzer.workers();
    // No life of less than a tenth of a second counts as healthy.
    let seen = Instant::now();
    eventually(SOON, "it has lived for long enough", || seen.elapsed() > Duration::from_millis(100));
    panzer.allow_line("was killed by SIGKILL; respawning it");
    kill_9(before[0]);
    wait_workers(&panzer, 1, &before);
    panzer.stop();
}

#[test]
fn the_schedule_of_a_stop_follows_a_hang_up() {
    let panzer = start("workers: 2\nstop: TERM/60s/KILL\n");
    wait_begun(&panzer, 2);
    tune(&panzer, "workers: 2\nstop: TERM/200ms/QUIT/60s/KILL\n");
    panzer.expect_line("has not stopped yet; sent it SIGQUIT");
    // One of its workers, and in the end all.
    assert!(run(&panzer, &["scale", "1"]).status.success());
    eventually(SOON, "it ends by the second step", || notes(&panzer, 1).last().is_some_and(|last| last == "SIGQUIT"));
    eventually(SOON, "it is gone", || panzer.workers().len() == 1);
    // One that had not run since the first signal takes the second one first.
    assert!(notes(&panzer, 1)[1..].iter().all(|note| ["SIGTERM", "SIGQUIT"].contains(&note.as_str())));
    tune(&panzer, "workers: 2\nstop: INT/60s/KILL\n");
    let begun = Instant::now();
    let folder = panzer.path("notes-0");
    panzer.signal(Signal::SIGTERM);
    eventually(SOON, "it ends by the first step", || {
        fs::read_to_string(&folder).is_ok_and(|text| text.ends_with("SIGINT\n"))
    });
    assert_eq!(panzer.wait_exit().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(60));
}

/// It is the first wait of the schedule, by another name.
#[test]
fn a_timeout_follows_a_hang_up_and_what_is_being_stopped_does_too() {
    let panzer = start("workers: 2\ntimeout: 600s\n");
    wait_begun(&panzer, 2);
    assert!(run(&panzer, &["scale", "1"]).status.success());
    eventually(SOON, "it is told", || notes(&panzer, 1).last().is_some_and(|last| last == "SIGTERM"));
    write(panzer.folder(), "workers: 2\ntimeout: 200ms\n");
    hang_up(&panzer, "configuration read again");
    panzer.expect_line("worker 1 (pid *) has not stopped yet; sent it SIGINT");
    panzer.expect_line("worker 0 (pid *) has not stopped yet; sent it SIGINT");
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn the_respawn_limit_follows_a_hang_up() {
    let panzer = start("workers: 1\nstop: QUIT/5s/KILL\ndelay: 10ms\ndelay-max: 10ms\n");
    wait_begun(&panzer, 1);
    panzer.allow_line("was killed by SIGKILL; respawning it");
    let before = panzer.workers();
    kill_9(before[0]);
    wait_workers(&panzer, 1, &before);
    tune(&panzer, "workers: 1\nstop: QUIT/5s/KILL\ndelay: 10ms\ndelay-max: 10ms\nrespawn-limit: 0/60s\n");
    panzer.expect_line("error: *more than 0 respawns");
    panzer.expect_line("error: generation 1 keeps failing; stopping everything");
    kill_9(panzer.workers()[0]);
    assert_eq!(panzer.wait_exit().code(), Some(1));
}

/// Both come to an end: the reload with what the file was when it began, and what needs no new workers with what it is
/// now. Which of them reads first is left to chance.
#[test]
fn a_hang_up_during_a_reload_and_the_reload_both_finish() {
    let panzer = start("workers: 2\nstop: TERM/5s/KILL\n");
    wait_begun(&panzer, 2);
    let before = panzer.workers();
    let baking = |text: &str| {
        write_whole(panzer.folder(), &format!("ready: alive\nshare-ports: off\n{text}"));
    };
    // It bakes until the configuration is read again, however long that takes.
    baking("bake: 60s\nworkers: 3\nstop: TERM/5s/KILL\n");
    let mark = panzer.mark();
    panzer.signal(SIGUSR1);
    panzer.wait_for_line_after(mark, "starting generation 2", SOON);
    baking("bake: 500ms\nworkers: 4\nstop: QUIT/5s/KILL\n");
    panzer.signal(SIGHUP);
    panzer.wait_for_line_after(mark, "configuration read again", SOON);
    panzer.wait_for_line_after(mark, "reload done: generation 2 serves*", SOON);
    panzer.wait_drained(1);
    wait_gone(&before);
    wait_workers(&panzer, 4, &before);
    // The one that was retired was told how as well.
    assert_eq!(notes(&panzer, 0).iter().filter(|line| *line == "SIGQUIT").count(), 1);
    let read_again = panzer.lines().iter().filter(|line| line.contains("configuration read again")).count();
    assert_eq!(read_again, 1);
    panzer.stop();
}

#[test]
fn a_monitor_that_is_replaced_knows_what_was_read_meanwhile() {
    let panzer = start("workers: 1\nstop: INT/5s/KILL\ndelay: 1s\n");
    wait_begun(&panzer, 1);
    panzer.expect_line("error: the monitor of generation 1 was killed by SIGKILL");
    let before = panzer.workers();
    kill_9(panzer.status().serving().monitor.unwrap());
    panzer.wait_for_line("the monitor of generation 1 was killed", SOON);
    write(panzer.folder(), "workers: 1\nstop: QUIT/5s/KILL\ndelay: 1s\n");
    hang_up(&panzer, "configuration read again");
    wait_workers(&panzer, 1, &before);
    eventually(SOON, "the new one has begun", || {
        notes(&panzer, 0).last().is_some_and(|last| last.starts_with("started"))
    });
    let path = panzer.path("notes-0");
    let told = |panzer: Panzer| {
        panzer.signal(Signal::SIGTERM);
        eventually(SOON, "it is told", || fs::read_to_string(&path).is_ok_and(|text| text.ends_with("SIGQUIT\n")));
        panzer.wait_exit()
    };
    assert_eq!(told(panzer).code(), Some(0));
}

/// Answers with its number, one connection after the other; when it is told to stop, what it has taken it answers.
const QUEUED: &str = "#!/usr/bin/env python3
import os, signal, socket
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
listener = socket.socket(fileno=3)
listener.settimeout(0.02)
body = ('worker ' + os.environ['PANZER_WORKER_ID']).encode()
while not stop:
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        continue
    connection.settimeout(5)
    connection.recv(65536)
    connection.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n%s' % (len(body), body))
    connection.close()
";

#[test]
fn queues_of_workers_come_and_go_with_a_hang_up_and_nothing_is_lost() {
    let port = free_port();
    let text = |workers: u32| format!("workers: {workers}\nlisten: '127.0.0.1:{port},per-worker'\n");
    let panzer = configured(&text(2)).executable("queued", QUEUED).arg("./queued").start();
    panzer.wait_serving();
    eventually(SOON, "it answers", || get(port, "/").is_ok());
    let load = BothKinds::start(port);
    let first = panzer.workers();
    for workers in [4, 1, 3] {
        write(panzer.folder(), &text(workers));
        hang_up(&panzer, "configuration read again");
        eventually(SOON, "so many are ready, and no other is there", || {
            let status = panzer.status();
            let all = &status.serving().workers;
            all.len() == workers as usize && all.iter().all(|worker| worker.phase == "ready")
        });
        assert_eq!(panzer.workers()[0], first[0], "the first one goes on");
    }
    let by_then = load.answered();
    eventually(SOON, "the load is answered", || load.answered() > by_then + 10);
    let seen = load.stop();
    seen.print("a queue for each worker: another count by HUP");
    assert_eq!(seen.dropped(), 0);
    panzer.stop();
}

/// The newer plan holds, though what was read before it had to wait.
#[test]
fn what_waits_for_empty_queues_does_not_undo_a_reload() {
    let port = free_port();
    let text =
        |workers: u32| format!("workers: {workers}\nstop: TERM/3s/KILL\nlisten: '127.0.0.1:{port},per-worker'\n");
    let panzer = configured(&text(3)).executable("queued", QUEUED).arg("./queued").start();
    panzer.wait_serving();
    eventually(SOON, "it answers", || get(port, "/").is_ok());
    // SIGSTOP hits a worker of this panzer, by its pid: its queue is not emptied, and that is waited for.
    let hung = panzer.workers()[2];
    panzer.allow_line("is stopped by SIGSTOP: ");
    kill(Pid::from_raw(hung), Signal::SIGSTOP).unwrap();
    let address = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, port));
    let waiting: Vec<_> = (0..20).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
    panzer.allow_line("what waits in the queues of workers from * on is not taken; they are stopped all the same");
    panzer.allow_line("has not stopped yet; sent it SIGKILL");
    write(panzer.folder(), &text(1));
    hang_up(&panzer, "configuration read again");
    write(panzer.folder(), &text(4));
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    drop(waiting);
    let output = run(&panzer, &["status", "--wait-ready"]);
    assert!(output.status.success(), "{}", text_of(&output));
    // Whatever was put off has happened by now.
    eventually(SOON, "nothing is put off", || panzer.workers().len() == 4);
    panzer.stop();
}

fn text_of(output: &std::process::Output) -> String {
    text(&output.stderr)
}
