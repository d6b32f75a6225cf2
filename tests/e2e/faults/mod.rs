//! What panzer must survive: the numbers in comments are those of the project's list of faults.

mod bad_input;
mod bad_release;
mod catalogue;
mod clean_worker;
pub mod endurance;
mod hindered;
pub mod killed;
mod killed_anywhere;
mod left_behind;
mod messages;
mod out_of_memory;
mod pid_file;
pub mod releases;
mod resources;
pub mod respawn;
mod sockets;
pub mod stopping;
pub mod told_ready;

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Builder, Panzer, eventually, free_port, get, in_this_test};

/// What is to happen by itself happens within this, also on a machine that is busy with other tests.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A server that takes descriptor 3 and answers everybody with `text`. It notes in `started` that it has got so far: by
/// then its interpreter has read it, and its file may be replaced.
pub(crate) fn server(text: &str) -> String {
    in_this_test(&format!(
        "#!/usr/bin/env python3
import signal, socket
signal.signal(signal.SIGINT, signal.SIG_DFL)
listener = socket.socket(fileno=3)
open('started', 'a').write('.')
while True:
    connection, _ = listener.accept()
    connection.recv(65536)
    connection.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: {}\\r\\nConnection: close\\r\\n\\r\\n{text}')
    connection.close()
",
        text.len()
    ))
}

/// A panzer in whose folder the executable `app` serves; to be completed with more arguments.
pub(crate) fn serving_app(port: u16, workers: u32) -> Builder {
    Panzer::builder()
        .executable("app", &server("good"))
        .args(["-w", &workers.to_string(), "-l", &format!("127.0.0.1:{port}"), "./app"])
        .env("PANZER_BAKE", "200ms")
}

/// As `serving_app`, started and serving.
pub(crate) fn start_app(workers: u32) -> (Panzer, u16) {
    let port = free_port();
    let panzer = serving_app(port, workers).start();
    wait_started(&panzer, workers);
    (panzer, port)
}

/// Waits until the first generation serves and its programs have been read.
#[track_caller]
pub(crate) fn wait_started(panzer: &Panzer, workers: u32) {
    panzer.wait_serving();
    let started = || std::fs::read(panzer.path("started")).map_or(0, |notes| notes.len());
    eventually(SOON, "every worker has begun", || started() >= workers as usize);
}

#[track_caller]
pub(crate) fn assert_answers(port: u16, text: &str) {
    assert_eq!(get(port, "/").unwrap().text(), text);
}

/// Kills a process that the test knows to be one of panzer's.
pub(crate) fn kill_9(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

pub(crate) fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[track_caller]
pub(crate) fn wait_gone(pids: &[i32]) {
    eventually(SOON, "these processes end", || !pids.iter().any(|&pid| is_alive(pid)));
}

/// Waits until `count` workers of the serving generation are ready, none of them one of `but`.
#[track_caller]
pub(crate) fn wait_workers(panzer: &Panzer, count: usize, but: &[i32]) -> Vec<i32> {
    let mut found = Vec::new();
    eventually(SOON, "the count of workers returns", || {
        let status = panzer.status();
        let ready = status.serving().workers.iter().filter(|worker| worker.phase == "ready");
        found = ready.filter_map(|worker| worker.pid).filter(|pid| !but.contains(pid)).collect();
        found.len() == count
    });
    found
}
