//! Readiness by watching: a worker is ready when it is seen accepting, never before, and soon after.
//!
//! Workers write into `first`, each a line, when they first could accept, by the clock that all processes share.

use std::fs;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::{Builder, Panzer, eventually, free_port, get, require};

mod hidden;
mod probes;
mod shared;

const SOON: Duration = Duration::from_secs(20);

/// By then it is seen. A machine that is busy with other tests gets more time, and tries until it was in time once.
const IN_TIME: Duration = Duration::from_millis(200);
const LONGEST_DELAY: Duration = Duration::from_secs(10);
const MOST_RELOADS: u32 = 10;

/// Defined for every worker: the listener, and what it says when it first could accept.
const PREAMBLE: &str = "#!/usr/bin/env python3
import os, select, signal, socket, sys, threading, time
listener = socket.socket(fileno=3)
def note():
    with open('first', 'a') as notes:
        notes.write(f'{time.time()}\\n')
";

/// A panzer that switches at once, with a worker that goes through `script`.
fn watched(workers: u32, script: &str) -> Builder {
    let (workers, address) = (workers.to_string(), format!("127.0.0.1:{}", free_port()));
    let builder = Panzer::builder().executable("app", &format!("{PREAMBLE}{script}"));
    builder.args(["-w", &workers, "-l", &address, "--bake", "0s", "./app"])
}

fn replace(panzer: &Panzer, script: &str) {
    replace_by(panzer, &format!("{PREAMBLE}{script}"));
}

fn replace_by(panzer: &Panzer, program: &str) {
    let new = panzer.path("new");
    crate::support::write_executable(&new, program);
    fs::rename(new, panzer.path("app")).unwrap();
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

/// When the last of the workers could first accept. None before `count` of them could.
fn last_first(panzer: &Panzer, count: usize) -> Option<Duration> {
    let notes = fs::read_to_string(panzer.path("first")).unwrap_or_default();
    let times: Vec<Duration> = notes.lines().map(|time| Duration::from_secs_f64(time.parse().unwrap())).collect();
    (times.len() >= count).then(|| times.into_iter().max()).flatten()
}

/// Waits for `line`, which must not come before `count` notes are there, and must come soon after: how soon it came.
#[track_caller]
fn assert_seen(panzer: &Panzer, line: &str, count: usize, what: &str) -> Duration {
    panzer.wait_for_line(line, SOON);
    let seen = now();
    let first = last_first(panzer, count).unwrap_or_else(|| panic!("{what}: ready before it could accept"));
    let delay = seen.saturating_sub(first);
    eprintln!("{what}: seen {delay:?} after the first possible accept");
    assert!(delay < LONGEST_DELAY, "{what}: seen only {delay:?} after the first possible accept");
    delay
}

/// Ways to wait for connections on `listener`.
const WAYS: [(&str, &str); 5] = [
    ("accept", "note()\nlistener.accept()\ntime.sleep(1000)\n"),
    ("poll", "poller = select.poll()\npoller.register(listener, select.POLLIN)\nnote()\npoller.poll()\n"),
    ("select", "note()\nselect.select([os.pipe()[0], listener], [], [])\n"),
    ("epoll", "pollers = select.epoll()\npollers.register(listener, select.EPOLLIN)\nnote()\npollers.poll()\n"),
    (
        "a thread",
        "def serve():
    note()
    listener.accept()
threading.Thread(target=serve, daemon=True).start()
time.sleep(1000)
",
    ),
];

/// In an epoll set for so many seconds before anybody waits on it.
fn in_its_set_for(seconds: &str) -> String {
    format!(
        "pollers = select.epoll()
pollers.register(listener, select.EPOLLIN)
time.sleep({seconds})
note()
pollers.poll()
"
    )
}

/// In a set within a set, which is polled.
const NESTED: &str = "inner, outer = select.epoll(), select.epoll()
inner.register(listener, select.EPOLLIN)
outer.register(inner, select.EPOLLIN)
poller = select.poll()
poller.register(outer, select.POLLIN)
time.sleep(3)
note()
poller.poll()
";

const CHILD: &str = "signal.signal(signal.SIGTERM, lambda *_: (os.kill(child, signal.SIGTERM), sys.exit()))
child = os.fork()
if child == 0:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(3)
    note()
    listener.accept()
os.waitpid(child, 0)
";

/// A worker that waits in some way, and what is asked of its panzer.
struct Watched {
    what: String,
    builder: Builder,
    /// Whether it must be seen at a first start as well, or in a reload only.
    at_first_start: bool,
}

/// All at once: they do little but sleep.
fn each_is_seen_in_time(all: impl IntoIterator<Item = Watched>) {
    thread::scope(|threads| {
        for one in all {
            threads.spawn(|| is_seen_in_time(one));
        }
    });
}

fn is_seen_in_time(Watched { what, builder, at_first_start }: Watched) {
    let panzer = builder.start();
    if at_first_start {
        assert_seen(&panzer, "panzer: generation 1 serves: 2 workers ready in ", 2, &what);
    }
    eventually(SOON, "both could accept", || last_first(&panzer, 2).is_some());
    let in_time = (2..2 + MOST_RELOADS).any(|generation| {
        fs::remove_file(panzer.path("first")).unwrap();
        assert_eq!(panzer.reload_and_wait(), Ok(generation));
        assert_seen(&panzer, &format!("panzer: reload done: generation {generation} serves"), 2, &what) < IN_TIME
    });
    assert!(in_time, "{what}: not once seen within {IN_TIME:?}");
    panzer.stop();
}

#[test]
fn in_each_way_long_after_its_start() {
    if !require("python3") {
        return;
    }
    let sleeps = |(way, script)| (format!("sleeps, then {way}"), format!("time.sleep(3)\n{script}"));
    let others = [("epoll, in its set for long", in_its_set_for("3")), ("nested epoll", NESTED.to_owned())];
    let others = others.into_iter().chain([("a child", CHILD.to_owned())]);
    let all = WAYS.map(sleeps).into_iter().chain(others.map(|(way, script)| (way.to_owned(), script)));
    each_is_seen_in_time(all.map(|(what, script)| Watched {
        what,
        builder: watched(2, &script),
        at_first_start: true,
    }));
}

#[test]
fn by_a_connection_that_it_has_taken() {
    // It never waits for one: it asks from time to time, and holds what it has got.
    let script = "listener.setblocking(False)
time.sleep(0.5)
while True:
    try:
        connection, _ = listener.accept()
        note()
        time.sleep(1000)
    except BlockingIOError:
        time.sleep(0.01)
";
    if !require("python3") {
        return;
    }
    let port = free_port();
    let panzer = Panzer::builder()
        .executable("app", &format!("{PREAMBLE}{script}"))
        .args(["-w", "1", "-l", &port.to_string(), "./app", "--bake", "0s"])
        .start();
    panzer.wait_for_line("started as pid", SOON);
    let _connection = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    assert_seen(&panzer, "panzer: generation 1 serves: ", 1, "connection");
    panzer.stop();
}

#[test]
fn a_respawned_worker_is_watched_too() {
    if !require("python3") {
        return;
    }
    let panzer = watched(1, &in_its_set_for("1.5")).start();
    panzer.wait_serving();
    panzer.expect_line("warning: worker 0 * was killed by SIGKILL; respawning it");
    let first = panzer.workers()[0];
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(first), nix::sys::signal::Signal::SIGKILL).unwrap();
    let phase = || panzer.status().serving().workers[0].clone();
    eventually(SOON, "another worker starts", || phase().pid.is_some_and(|pid| pid != first));
    let mut seen_starting = false;
    eventually(SOON, "the other worker is ready", || {
        let ready = phase().phase == "ready";
        assert!(!ready || last_first(&panzer, 2).is_some(), "ready before it could accept");
        seen_starting |= !ready;
        ready
    });
    assert!(seen_starting);
    panzer.stop();
}

#[test]
fn its_word_alone_does_not_do() {
    if !require("python3") {
        return;
    }
    let says_ready = "telling = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
telling.sendto(b'READY=1', '\\0' + os.environ['NOTIFY_SOCKET'][1:])
";
    let panzer = watched(1, &(says_ready.to_owned() + &in_its_set_for("1"))).args(["--ready-timeout", "6s"]).start();
    // With so little time to be ready, one that takes its own is soon suspected.
    panzer.allow_line("unless it is still starting");
    assert_seen(&panzer, "panzer: generation 1 serves: ", 1, "READY=1, then epoll");
    replace(&panzer, &format!("{says_ready}time.sleep(1000)\n"));
    panzer.expect_line("error: reload failed: generation 2: ");
    let line = panzer.reload_and_wait().unwrap_err();
    assert!(line.contains("1 of 1 worker was not ready within 6s"), "{line}");
    panzer.stop();
}

#[test]
fn to_be_seen_accepting_takes_a_listener() {
    let panzer = Panzer::start(["--ready", "accept", "--share-ports", "off", "--", "sleep", "1000"]);
    panzer.expect_line("panzer: --ready accept needs a listener: add --listen, or take --ready notify or alive");
    assert_eq!(panzer.wait_exit().code(), Some(2));
}

#[test]
fn gunicorn_whose_application_fails_to_load_is_a_failed_release() {
    if !require("gunicorn") {
        return;
    }
    let application = "def wsgi(environ, start_response):\n    start_response('200 OK', [])\n    return [b'good']\n";
    let port = free_port();
    let builder = Panzer::builder();
    // Where gunicorn keeps a socket that it would share with those of other tests.
    let home = builder.folder().to_owned();
    let panzer = builder
        .file("app.py", application)
        .env("HOME", home)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .args(["-w", "1", "--bake", "0s", "-l", &format!("127.0.0.1:{port}")])
        .args(["--", "gunicorn", "--log-level", "critical", "app:wsgi"])
        .start();
    panzer.wait_serving();
    fs::write(panzer.path("app.py"), "import time\ntime.sleep(2)\nraise RuntimeError('no database')\n").unwrap();
    panzer.expect_line("error: reload failed: generation 2: worker 0 exited with code 3; generation 1 serves on");
    // Gunicorn's own words.
    panzer.allow_line("");
    panzer.reload_and_wait().unwrap_err();
    assert_eq!(get(port, "/").unwrap().text(), "good");
    panzer.stop();
}

#[test]
fn nobody_is_looked_at_once_all_are_ready() {
    if !require("python3") {
        return;
    }
    let panzer = watched(2, "note()\nlistener.accept()\n").start();
    panzer.wait_serving();
    let monitor = panzer.status().serving().monitor.unwrap();
    let switches = || {
        let status = fs::read_to_string(format!("/proc/{monitor}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap().to_owned();
        line.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = switches();
    let until = now() + Duration::from_secs(2);
    eventually(SOON, "two seconds have passed", || now() >= until);
    // The answer to the question above may have been under way, and main asks twice what workers listen on, each with one
    // more turn that trims memory; looks would have been thirty.
    assert!(switches() - before < 10, "an idle monitor is not woken by looks");
    panzer.stop();
}
