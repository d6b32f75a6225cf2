//! The harness itself, with the smallest worker there is.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::{Panzer, eventually, get};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_panzer_serves_reloads_and_stops() {
    let panzer = Panzer::start(["-w", "2", "--bake", "50ms", "--", "sleep", "1000"]);
    panzer.wait_serving();
    let first = panzer.workers();
    assert_eq!(first.len(), 2);
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    let second = panzer.status();
    assert_eq!(second.serving().number, 2);
    assert_eq!(second.generations.len(), 1);
    assert!(second.serving().pids().iter().all(|pid| !first.contains(pid)));
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn an_unexpected_line_fails_the_test() {
    let caught = std::panic::catch_unwind(|| {
        let panzer = Panzer::start(["-w", "1", "--bake", "50ms", "--", "sleep", "1000"]);
        panzer.wait_serving();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(panzer.workers()[0]), Signal::SIGKILL).unwrap();
        panzer.wait_for_line("was killed by SIGKILL", SOON);
        panzer.stop();
    });
    let message = caught.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("not expected on stderr") && message.contains("SIGKILL"), "{message}");
}

#[test]
fn an_expected_line_does_not() {
    let panzer = Panzer::start(["-w", "1", "--bake", "50ms", "--", "sleep", "1000"]);
    panzer.wait_serving();
    panzer.expect_line("warning: worker 0 (pid * was killed by SIGKILL; respawning it");
    let before = panzer.workers();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(before[0]), Signal::SIGKILL).unwrap();
    eventually(SOON, "the slot is filled again", || panzer.workers().iter().any(|pid| *pid != before[0]));
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn a_test_that_fails_leaves_nothing() {
    let caught = std::panic::catch_unwind(|| {
        let panzer = Panzer::start(["-w", "1", "--bake", "50ms", "--", "sleep", "1000"]);
        panzer.wait_serving();
        let worker = panzer.workers()[0];
        std::panic::panic_any(worker);
    });
    let worker: Box<i32> = caught.unwrap_err().downcast().unwrap();
    eventually(SOON, "the worker is gone", || !std::path::Path::new(&format!("/proc/{worker}")).exists());
}

#[test]
fn a_server_is_asked() {
    let port = crate::support::free_port();
    let program = ["--", "python3", "-c", SERVER];
    let panzer =
        Panzer::start(["-w", "1", "--bake", "50ms", "-l", &format!("127.0.0.1:{port}")].iter().chain(&program));
    panzer.wait_serving();
    assert_eq!(get(port, "/").unwrap().text(), "hello");
    panzer.stop();
    assert!(get(port, "/").is_err());
}

/// One answer, the same for everybody.
const SERVER: &str = r#"
import socket
listener = socket.socket(fileno=3)
while True:
    connection, _ = listener.accept()
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
    connection.close()
"#;
