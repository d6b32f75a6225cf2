//! A worker that spoils a listener that it shares with all others: the service goes on.

use std::time::{Duration, Instant};

use crate::control::run;
use crate::load::http::Address;
use crate::load::{Load, Mode};
use crate::support::{Builder, Panzer, eventually, free_port, get, require};

const SOON: Duration = Duration::from_secs(20);

/// Serves with a thread that shuts its listener down, or cuts its queue, when it is told so by a file. `-` as port: on
/// what it was given.
const SERVER: &str = r#"#!/usr/bin/env python3
import os, socket, sys, threading, time
if sys.argv[1] == "-":
    listener = socket.socket(fileno=3)
else:
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=64)
def spoil():
    while True:
        for deed in ("shutdown", "crazy", "listen"):
            if os.path.exists(deed) and os.environ["PANZER_WORKER_ID"] == "0":
                os.unlink(deed)
                times = 300 if deed == "crazy" else 1
                for _ in range(times):
                    try: listener.listen(1) if deed == "listen" else listener.shutdown(socket.SHUT_RDWR)
                    except OSError: pass
                    if times > 1: time.sleep(0.002)
                os.close(os.open(deed + "-done", os.O_CREAT))
        time.sleep(0.005)
threading.Thread(target=spoil, daemon=True).start()
while True:
    try:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
    except OSError:
        time.sleep(0.001)
"#;

fn server(options: &[&str], port: &str) -> Builder {
    Panzer::builder()
        .executable("server", SERVER)
        .args(["-w", "2", "--bake", "100ms"])
        .args(options)
        .args(["--", "./server", port])
}

fn is_spoilt(panzer: &Panzer, deed: &str) {
    std::fs::write(panzer.path(deed), "").unwrap();
    eventually(SOON, "the worker has done it", || panzer.path(&format!("{deed}-done")).exists());
}

fn survives_a_shutdown(builder: Builder, address: impl Into<Address>) {
    let address = address.into();
    let panzer = builder.start();
    panzer.wait_serving();
    eventually(SOON, "it answers", || get(&address, "/").is_ok());
    let load = Load::new(&address, Mode::NewConnection, 3).pause(Duration::from_millis(2)).start();
    eventually(SOON, "the load is there", || load.answered() > 50);
    panzer.expect_line("warning: a worker of generation 1 shut down *; it listens again");
    is_spoilt(&panzer, "shutdown");
    let done = Instant::now();
    eventually(SOON, "it answers again", || get(&address, "/").is_ok());
    eprintln!("it answers again after {:?}", done.elapsed());
    let answered = load.answered();
    eventually(SOON, "the load goes on", || load.answered() > answered + 100);
    // Again and again: it is not told each time.
    panzer.allow_line("; it listens again");
    is_spoilt(&panzer, "crazy");
    eventually(SOON, "it answers again", || get(&address, "/").is_ok());
    let told = panzer.lines().iter().filter(|line| line.contains("it listens again")).count();
    assert!(told < 6, "told {told} times");
    eprintln!("{}", load.stop());
    assert!(panzer.reload_and_wait().is_ok());
    // Its workers die with what they have just accepted.
    panzer.wait_drained(1);
    assert!(get(&address, "/").is_ok());
    // A stop is a stop.
    assert_eq!(panzer.stop().code(), Some(0));
    assert!(get(&address, "/").is_err());
}

#[test]
fn a_shutdown_of_a_listener_for_both_families_is_undone() {
    if require("python3") {
        let port = free_port();
        survives_a_shutdown(server(&["-l", &port.to_string()], "-"), port);
    }
}

#[test]
fn a_shutdown_of_an_ipv4_listener_is_undone() {
    if require("python3") {
        let port = free_port();
        survives_a_shutdown(server(&["-l", &format!("127.0.0.1:{port}")], "-"), port);
    }
}

#[test]
fn a_shutdown_of_a_shared_port_is_undone() {
    if require("python3") {
        let port = free_port();
        survives_a_shutdown(server(&[], &port.to_string()), port);
    }
}

/// So many ask at once that a queue of one overflows, which keeps some waiting and loses none.
const CROWD: usize = 16;

/// Answers everybody while a worker would have its queue, of `length`, cut to one: it is of `cut` then, until `restore`.
fn survives_a_cut(panzer: &Panzer, port: u16, (length, cut): (u64, u64), restore: impl FnOnce(&Panzer)) {
    panzer.wait_serving();
    let now = || {
        let status: serde_json::Value = serde_json::from_slice(&run(panzer, &["status", "--json"]).stdout).unwrap();
        status["listeners"][0]["limit"].as_u64()
    };
    eventually(SOON, "it answers, and its queue is as long as it was asked for", || {
        get(port, "/").is_ok() && now() == Some(length)
    });
    let load = Load::new(port, Mode::NewConnection, CROWD).pause(Duration::from_millis(2)).start();
    let goes_on = || {
        let answered = load.answered();
        eventually(SOON, "the load goes on", || load.answered() > answered + 500);
    };
    goes_on();
    is_spoilt(panzer, "listen");
    assert_eq!(now(), Some(cut));
    goes_on();
    assert_eq!(now(), Some(cut));
    restore(panzer);
    assert_eq!(now(), Some(length));
    goes_on();
    let report = load.stop();
    eprintln!("{report}");
    assert_eq!(report.dropped(), 0, "{report}");
}

#[test]
fn a_queue_that_a_worker_cut_gets_its_length_back() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let panzer = server(&["-l", &format!("{port},backlog=77")], "-").start();
    panzer.allow_line("panzer: a worker cut the queue of ");
    survives_a_cut(&panzer, port, (77, 1), |panzer| {
        // Another worker becomes ready, and none is stopped, which would take with it what it has accepted.
        assert!(run(panzer, &["scale", "3"]).status.success());
        panzer.wait_for_line(&format!("a worker cut the queue of port {port} to 1; it is 77 again"), SOON);
    });
    panzer.stop();
}

#[test]
fn a_queue_of_a_shared_port_is_cut_by_nobody() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let panzer = server(&[], &port.to_string()).start();
    survives_a_cut(&panzer, port, (64, 64), |_| {});
    panzer.stop();
}
