//! Programs that leave the listener alone that they were given: that is said once, with what helps.

use std::fs;
use std::time::Duration;

use crate::support::{Panzer, eventually, free_port, get, require};

const SOON: Duration = Duration::from_secs(30);

/// What is said of a program that listens on nothing.
const NOTHING: &str = "warning: worker * of generation * is not seen accepting on what it was given (port *), and listens \
                       on no port of its own: unless it is still starting, have it take its listener from LISTEN_FDS";

/// What is said of one that binds its own port.
const ITS_OWN: &str = "warning: worker * of generation * listens on 127.0.0.1:*, which panzer does not hold, and is not \
                       seen accepting on what it was given (port *): have it take its listener from LISTEN_FDS, or by \
                       {fd} among its arguments, or drop --listen, so that panzer shares what it binds itself";

/// Serves on what it was given, or on a port of its own where `own` is there.
const SERVER: &str = "#!/usr/bin/env python3
import os, socket, sys
listener = socket.create_server(('127.0.0.1', 0)) if os.path.exists('own') else socket.socket(fileno=3)
while True:
    client = listener.accept()[0]
    client.recv(4096)
    client.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok')
    client.close()
";

fn told(panzer: &Panzer) -> usize {
    panzer.lines().iter().filter(|line| line.contains("is not seen accepting on what it was given")).count()
}

#[test]
fn one_that_listens_on_nothing_is_told_of() {
    let panzer =
        Panzer::start(["-w", "2", "--ready-timeout", "4s", "-l", &free_port().to_string(), "sleep", "--", "99"]);
    panzer.expect_line(&format!("{NOTHING}*now and then instead of waiting, use --ready alive"));
    panzer.wait_for_line(NOTHING, SOON);
    // Nor do those that take their place change anything.
    panzer.expect_line("is not ready after 4s; stopping it");
    panzer.expect_line("was not ready within 4s; respawning it");
    // The second try has twice the time.
    panzer.expect_line("is not ready after 8s; stopping it");
    panzer.allow_line("was not ready within 8s; respawning it");
    let again = || panzer.lines().iter().filter(|line| line.contains("is not ready after ")).count();
    eventually(SOON, "the next ones have failed too", || again() >= 4);
    assert_eq!(told(&panzer), 1);
    panzer.stop();
}

/// Works for five seconds before it listens.
const SLOW: &str = "#!/usr/bin/env python3
import socket, time
until = time.monotonic() + 5
while time.monotonic() < until:
    sum(range(100000))
listener = socket.socket(fileno=3)
while True:
    listener.accept()
";

#[test]
fn one_that_is_busy_starting_is_left_in_peace() {
    if !require("python3") {
        return;
    }
    // Else it would be told of after 3.75 s.
    let arguments = ["-w", "1", "--ready-timeout", "8s", "-l", &free_port().to_string(), "./server"];
    let panzer = Panzer::builder().executable("server", SLOW).args(arguments).start();
    panzer.wait_serving();
    assert_eq!(told(&panzer), 0);
    panzer.stop();
}

#[test]
fn a_release_that_binds_its_own_port_has_failed_for_that() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let arguments = ["-w", "1", "--bake", "0s", "--ready-timeout", "4s", "-l", &port.to_string(), "./server"];
    let panzer = Panzer::builder().executable("server", SERVER).args(arguments).start();
    panzer.wait_serving();
    fs::write(panzer.path("own"), "").unwrap();
    panzer.expect_line(ITS_OWN);
    panzer
        .expect_line("error: reload failed: generation *: worker 0 was not ready within 4s: it listens on 127.0.0.1:*");
    panzer.reload_and_wait().unwrap_err();
    panzer.reload_and_wait().unwrap_err();
    assert_eq!(told(&panzer), 1, "nothing has changed");
    assert_eq!(get(port, "/").unwrap().text(), "ok");
    fs::remove_file(panzer.path("own")).unwrap();
    assert_eq!(panzer.reload_and_wait(), Ok(4));
    panzer.stop();
}

#[test]
fn one_that_is_ready_by_another_measure_is_told_of_and_then_left_in_peace() {
    if !require("python3") {
        return;
    }
    let arguments = ["-w", "1", "--ready", "alive", "--bake", "0s", "-l", &free_port().to_string(), "./server"];
    let panzer = Panzer::builder().executable("server", SERVER).file("own", "").args(arguments).start();
    panzer.wait_serving();
    panzer.expect_line(ITS_OWN);
    panzer.wait_for_line(ITS_OWN, SOON);
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.stop();
}
