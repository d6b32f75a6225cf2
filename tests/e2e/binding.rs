//! What a bind means: nothing is held before it listens, and whoever binds the same address meanwhile waits, or gets the
//! kernel's answer.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::control::run;
use crate::support::{Builder, Panzer, Tracer, eventually, eventually_some, free_port, get, require};

const SOON: Duration = Duration::from_secs(30);

/// What all programs here begin with. `say` writes a line to a file of its own, for each process and name.
const COMMON: &str = r#"
import errno, os, signal, socket, sys, time
worker = os.environ["PANZER_WORKER_ID"]
def say(name, text):
    path = "%s-%s-%d" % (name, worker, os.getpid())
    with open(path + ".new", "w") as file: print(text, file=file)
    os.rename(path + ".new", path + ".said")
def opened(port, reuse=True):
    s = socket.socket()
    if reuse: s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("127.0.0.1", port))
    return s
def serve(s):
    while True:
        connection, _ = s.accept()
        connection.recv(65536)
        text = b"%d" % os.getpid()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(text), text))
        connection.close()
def until(name):
    while not os.path.exists(name): time.sleep(0.01)
ports = [int(argument) for argument in sys.argv[1:]]
"#;

fn program(options: &[&str], text: &str, ports: &[u16]) -> Builder {
    let builder =
        Panzer::builder().args(["--bake", "50ms"]).args(options).file("program.py", &format!("{COMMON}{text}"));
    builder.args(["--", "python3", "program.py"]).args(ports.iter().map(u16::to_string))
}

/// What workers have said under this name so far.
fn said(panzer: &Panzer, name: &str) -> Vec<String> {
    let entries = fs::read_dir(panzer.path(".")).unwrap().flatten();
    let is_said = |path: &str| path.starts_with(&format!("{name}-")) && path.ends_with(".said");
    let files = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_said));
    let mut all: Vec<String> = files.map(|file| fs::read_to_string(file.path()).unwrap().trim().to_owned()).collect();
    all.sort();
    all
}

fn wait_said(panzer: &Panzer, name: &str, expected: &[&str]) {
    eventually(SOON, &format!("{name}: {expected:?}"), || said(panzer, name) == expected);
}

/// The addresses that `panzerctl status` lists.
fn shown(panzer: &Panzer) -> Vec<String> {
    let status: Value = serde_json::from_slice(&run(panzer, &["status", "--json"]).stdout).unwrap();
    let listeners = status["listeners"].as_array().cloned().unwrap_or_default();
    listeners.iter().map(|queue| queue["address"].as_str().unwrap().to_owned()).collect()
}

fn all_ready(panzer: &Panzer) {
    eventually(SOON, "all workers are ready", || {
        panzer.status().serving().workers.iter().all(|it| it.phase == "ready")
    });
}

#[test]
fn a_port_that_is_a_lock_has_one_leader() {
    if !require("python3") {
        return;
    }
    let (port, lock) = (free_port(), free_port());
    let panzer = program(&["-w", "4"], LOCK, &[port, lock]).start();
    wait_said(&panzer, "lock", &["follower", "follower", "follower", "leader"]);
    eventually(SOON, "it serves", || get(port, "/").is_ok());
    // The next release finds the lock taken, as it would without panzer.
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    assert_eq!(said(&panzer, "lock").iter().filter(|said| *said == "leader").count(), 1);
    panzer.stop();
}

const LOCK: &str = r#"
lock = socket.socket()
try:
    lock.bind(("127.0.0.1", ports[1]))
    say("lock", "leader")
except OSError as error:
    say("lock", "follower" if error.errno == errno.EADDRINUSE else error)
s = opened(ports[0])
s.listen()
serve(s)
"#;

#[test]
fn a_lock_of_workers_that_never_listen_has_one_leader() {
    if !require("python3") {
        return;
    }
    let lock = free_port();
    let panzer = program(&["-w", "3"], CONSUMER, &[lock]).start();
    wait_said(&panzer, "lock", &["follower", "follower", "leader"]);
    panzer.stop();
}

const CONSUMER: &str = r#"
try:
    lock = opened(ports[0], reuse=False)
    say("lock", "leader")
except OSError as error:
    say("lock", "follower" if error.errno == errno.EADDRINUSE else error)
signal.pause()
"#;

#[test]
fn a_client_with_a_port_of_its_own_is_nobody_elses() {
    if !require("python3") {
        return;
    }
    let (port, source) = (free_port(), free_port());
    let peer = TcpListener::bind("127.0.0.1:0").unwrap();
    peer.set_nonblocking(true).unwrap();
    let panzer = program(&["-w", "2"], CLIENT, &[port, source, peer.local_addr().unwrap().port()]).start();
    eventually(SOON, "it serves", || get(port, "/").is_ok());
    all_ready(&panzer);
    let mut clients = BTreeSet::new();
    for _ in 0..6 {
        let (mut connection, from) = eventually_some(SOON, "a client comes", || peer.accept().ok());
        assert_eq!(from.port(), source);
        connection.set_read_timeout(Some(SOON)).unwrap();
        let mut text = String::new();
        // To its end: nobody else holds the connection.
        connection.read_to_string(&mut text).unwrap();
        clients.insert(text);
    }
    assert_eq!(clients.len(), 2, "{clients:?}");
    assert_eq!(shown(&panzer), [format!("127.0.0.1:{port}")]);
    panzer.stop();
}

/// Each worker connects from the same port, again and again, and gets it where no other one has it.
const CLIENT: &str = r#"
import threading
s = opened(ports[0])
s.listen()
def connect():
    while True:
        try:
            c = opened(ports[1])
            c.connect(("127.0.0.1", ports[2]))
            c.sendall(b"%d" % os.getpid())
            c.shutdown(socket.SHUT_WR)
            c.recv(1)
        except OSError: pass
        finally: c.close()
        time.sleep(0.05)
threading.Thread(target=connect, daemon=True).start()
serve(s)
"#;

#[test]
fn a_port_for_one_session_is_its_workers_own() {
    if !require("python3") {
        return;
    }
    let (port, first, second) = (free_port(), free_port(), free_port());
    let panzer = program(&["-w", "2", "--ready", "accept", "--healthy-after", "1ms"], PASSIVE, &[port, first, second]);
    let panzer = panzer.start();
    panzer.wait_serving();
    all_ready(&panzer);
    let session = || {
        let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
        connection.set_read_timeout(Some(SOON)).unwrap();
        connection.write_all(b"PASV\r\n").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        let (pid, data) = answer.trim().split_once(' ').unwrap();
        (pid.to_owned(), data.parse::<u16>().unwrap())
    };
    // Each worker waits at its own data port meanwhile, so the second session is the other one's.
    let sessions = [session(), session()];
    assert_ne!(sessions[0].1, sessions[1].1, "{sessions:?}");
    for (pid, data) in sessions {
        let mut text = String::new();
        TcpStream::connect(("127.0.0.1", data)).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, pid);
        eventually(SOON, "the data port is closed", || TcpStream::connect(("127.0.0.1", data)).is_err());
    }
    panzer.stop();
}

const PASSIVE: &str = r#"
s = opened(ports[0])
s.listen()
while True:
    connection, _ = s.accept()
    connection.recv(100)
    for port in ports[1:]:
        try:
            data = opened(port)
            data.listen(1)
            break
        except OSError: pass
    connection.sendall(b"%d %d\n" % (os.getpid(), port))
    connection.close()
    client, _ = data.accept()
    client.sendall(b"%d" % os.getpid())
    client.close()
    data.close()
"#;

#[test]
fn a_server_may_load_for_long_between_bind_and_listen() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let panzer = program(&["-w", "3", "--ready", "accept"], LOADS, &[port]).start();
    wait_said(&panzer, "bound", &["bound"]);
    // Main is another process by the time they get their answer.
    panzer.signal(Signal::SIGUSR2);
    panzer.expect_line("panzer: restart: trying *");
    panzer.expect_line("panzer: restarted in place: *");
    panzer.wait_for_line("restarted in place", SOON);
    fs::write(panzer.path("go"), "").unwrap();
    all_ready(&panzer);
    assert_eq!(said(&panzer, "bound").len(), 3);
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.stop();
}

const LOADS: &str = r#"
s = opened(ports[0], reuse=False)
say("bound", "bound")
until("go")
s.listen()
serve(s)
"#;

#[test]
fn who_waits_for_one_that_dies_is_the_next() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let panzer = program(&["-w", "2", "--ready", "accept"], LOADS, &[port]).start();
    let first = eventually_some(SOON, "one has bound", || who(&panzer, "bound").first().copied());
    panzer.expect_line("warning: worker * was killed by SIGKILL; respawning it");
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    eventually(SOON, "the next one has bound", || who(&panzer, "bound").len() > 1);
    fs::write(panzer.path("go"), "").unwrap();
    all_ready(&panzer);
    panzer.stop();
}

/// The pids of those that have said something under this name.
fn who(panzer: &Panzer, name: &str) -> Vec<i32> {
    let entries = fs::read_dir(panzer.path(".")).unwrap().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let pid =
        |file: String| file.strip_prefix(&format!("{name}-"))?.strip_suffix(".said")?.rsplit('-').next()?.parse().ok();
    names.filter_map(pid).collect()
}

#[test]
fn a_parent_may_bind_what_its_child_listens_on() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let panzer = program(&["-w", "2", "--ready", "accept"], CHILD_LISTENS, &[port]).start();
    panzer.wait_serving();
    let mut pids = BTreeSet::new();
    eventually(SOON, "all four children answer", || {
        pids.insert(get(port, "/").unwrap().text());
        pids.len() == 4
    });
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.allow_line("ended and left processes behind; stopping them");
    panzer.stop();
}

const CHILD_LISTENS: &str = r#"
import ctypes
s = opened(ports[0], reuse=False)
for _ in range(2):
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        s.listen()
        serve(s)
s.close()
signal.pause()
"#;

#[test]
fn only_the_ports_that_are_named_are_shared() {
    if !require("python3") {
        return;
    }
    let (port, metrics) = (free_port(), free_port());
    let named = format!("{port},1");
    let panzer = program(&["-w", "3", "--share-ports", &named], METRICS, &[port, metrics]).start();
    wait_said(&panzer, "metrics", &["in use", "in use", "own"]);
    eventually(SOON, "it serves", || get(port, "/").is_ok());
    assert_eq!((0..8).filter_map(|_| Some(get(metrics, "/").ok()?.text())).collect::<BTreeSet<_>>().len(), 1);
    assert_eq!(shown(&panzer), [format!("127.0.0.1:{port}")]);
    panzer.stop();
}

const METRICS: &str = r#"
import threading
try:
    m = opened(ports[1])
    m.listen()
    threading.Thread(target=serve, args=[m], daemon=True).start()
    say("metrics", "own")
except OSError as error:
    say("metrics", "in use" if error.errno == errno.EADDRINUSE else error)
s = opened(ports[0])
s.listen()
serve(s)
"#;

#[test]
fn a_bind_is_answered_where_the_monitor_or_main_has_no_descriptor_left() {
    if !require("python3") || !require("prlimit") {
        return;
    }
    for who in ["this monitor", "panzer"] {
        let port = free_port();
        let panzer = program(&["-w", "2", "--ready", "alive"], WHEN_TOLD, &[port]).start();
        panzer.wait_serving();
        let first = if who == "panzer" { 1 } else { 0 };
        let limit = |pid: String| {
            let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
            let limit = [format!("--pid={pid}"), format!("--nofile={open}:{open}")];
            assert!(Command::new("prlimit").args(limit).status().unwrap().success());
        };
        let said_so = format!("warning: a worker cannot share what it binds: {who} has no descriptor left for it");
        if who == "panzer" {
            limit(panzer.pid().to_string());
            panzer.expect_line(&said_so);
        } else {
            fs::write(panzer.path("go-0"), "").unwrap();
            wait_said(&panzer, "outcome", &["listens"]);
            limit(panzer.status().serving().monitor.unwrap().to_string());
            panzer.allow_line(&said_so);
        }
        fs::write(panzer.path("go-1"), "").unwrap();
        eventually(SOON, "the bind is answered", || said(&panzer, "outcome").len() == 2 - first);
        if who == "panzer" {
            assert!(said(&panzer, "outcome")[0].contains("Too many open files"), "{:?}", said(&panzer, "outcome"));
        }
        panzer.stop();
    }
}

const WHEN_TOLD: &str = r#"
until("go-" + worker)
try:
    s = opened(ports[0])
    s.listen()
    say("outcome", "listens")
except OSError as error:
    say("outcome", error)
signal.pause()
"#;

#[test]
fn a_release_that_cannot_have_what_the_old_one_has_is_told_of_the_remedy() {
    if !require("python3") {
        return;
    }
    let (port, own) = (free_port(), free_port());
    let listen = format!("127.0.0.1:{port}");
    let has = format!("generation 1 listens on 127.0.0.1:{own} by itself; if it wanted what generation 1 still has");
    let by_slot = "put {generation} beside {worker} into names, or share a port by --share-ports on";
    let fixed = "share a port by --share-ports on, or name it by {generation}";
    for (argument, remedy) in [(format!("{{{own}+worker}}"), by_slot), (own.to_string(), fixed)] {
        let panzer = program(&["-w", "1", "-l", &listen], OWN_PORT, &[]).arg(argument).start();
        panzer.wait_serving();
        panzer.expect_line(&format!(
            "generation 2: worker 0 exited with code 3; {has}: {remedy}; generation 1 serves on"
        ));
        assert!(panzer.reload_and_wait().is_err());
        panzer.stop();
    }
}

#[test]
fn a_release_whose_slots_lock_names_is_told_of_the_remedy() {
    if !require("flock") {
        return;
    }
    let lock = "exec 9>lock-$1; flock -n 9 || exit 3; exec sleep 999";
    let panzer = Panzer::builder().args(["-w", "1", "--bake", "5s", "--", "sh", "-c", lock, "x", "{worker}"]).start();
    panzer.wait_serving();
    eventually(SOON, "it has its lock", || panzer.path("lock-0").exists());
    panzer
        .expect_line("exited with code 3; if it wanted what generation 1 still has: put {generation} beside {worker}");
    assert!(panzer.reload_and_wait().is_err());
    panzer.stop();
}

const OWN_PORT: &str = r#"
try: own = opened(ports[0]); own.listen()
except OSError: sys.exit(3)
serve(socket.socket(fileno=3))
"#;

#[test]
fn a_release_whose_bind_is_refused_is_told_of_it() {
    if !require("python3") {
        return;
    }
    let (port, lock) = (free_port(), free_port());
    let panzer = program(&["-w", "1"], NEEDS_LOCK, &[port, lock]).start();
    eventually(SOON, "it serves", || get(port, "/").is_ok());
    panzer.expect_line(&format!(
        "error: reload failed: generation 2: worker 0 exited with code 3, after its generation was refused \
         127.0.0.1:{lock} (address already in use); generation 1 may have it"
    ));
    assert!(panzer.reload_and_wait().is_err());
    panzer.stop();
}

const NEEDS_LOCK: &str = r#"
try: lock = opened(ports[1], reuse=False)
except OSError: sys.exit(3)
s = opened(ports[0])
s.listen()
serve(s)
"#;

pub(crate) fn compiled(builder: Builder, name: &str, source: &str, flags: &[&str]) -> Option<Builder> {
    let builder = builder.file(&format!("{name}.c"), source);
    let mut compiler = Command::new("gcc");
    compiler.current_dir(builder.folder()).args(["-O1", "-o", name, &format!("{name}.c")]).args(flags);
    compiler.status().unwrap().success().then_some(builder)
}

#[test]
fn a_32_bit_program_is_said_not_to_share() {
    if !require("gcc") || cfg!(not(target_arch = "x86_64")) {
        return;
    }
    let builder = Panzer::builder().args(["-w", "1", "--bake", "50ms", "--", "./server"]).arg(free_port().to_string());
    let Some(builder) = compiled(builder, "server", BINDS, &["-m32"]) else {
        eprintln!("skipped: gcc has no -m32");
        return;
    };
    let panzer = builder.start();
    panzer.expect_line("warning: pid * is a program for another architecture, such as a 32-bit one");
    panzer.wait_for_line("another architecture", SOON);
    panzer.stop();
}

const BINDS: &str = r#"
#include <arpa/inet.h>
#include <stdlib.h>
#include <unistd.h>
int main(int count, char **arguments) {
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(atoi(arguments[count - 1])) };
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int s = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(s, (struct sockaddr *)&a, sizeof a) == 0) listen(s, 5);
    pause();
}
"#;

#[test]
fn capabilities_of_a_file_that_have_no_power_are_named() {
    if !require("gcc") || !require("python3") || !nix::unistd::geteuid().is_root() {
        return;
    }
    let builder = Panzer::builder().args(["-w", "1", "--bake", "50ms", "--", "./server", "777"]);
    let builder = builder.executable("as_nobody", AS_NOBODY).through("as_nobody");
    let builder = compiled(builder, "server", BINDS, &[]).unwrap();
    fs::set_permissions(builder.folder(), fs::Permissions::from_mode(0o755)).unwrap();
    let panzer = builder.start();
    panzer.expect_line(
        "panzer: workers run with no_new_privs, * nor have the capabilities of */server (cap_net_bind_service)",
    );
    panzer
        .expect_line("warning: 127.0.0.1:777 is refused to pid *: the capabilities of */server (cap_net_bind_service)");
    panzer.wait_for_line("127.0.0.1:777 is refused", SOON);
    panzer.stop();
}

const AS_NOBODY: &str = r#"#!/usr/bin/env python3
import os, struct, sys
os.setxattr("server", "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0))
for path in (".", "run"): os.chown(path, 65534, 65534)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
os.environ["PATH"] = "/usr/bin:/bin"
os.execv(sys.argv[1], sys.argv[1:])
"#;

/// Each of its threads tries without a pause to bind what a stranger has: each try is a question to main.
const BINDS_IN_A_LOOP: &str = r#"
#include <arpa/inet.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>
static struct sockaddr_in a = { .sin_family = AF_INET };
static void *loop(void *unused) {
    for (;;) { int s = socket(AF_INET, SOCK_STREAM, 0); bind(s, (struct sockaddr *)&a, sizeof a); close(s); }
    return unused;
}
int main(int count, char **arguments) {
    pthread_t thread;
    a.sin_port = htons(atoi(arguments[count - 1])), a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int i = 0; i < 8; i++) pthread_create(&thread, 0, loop, 0);
    pause();
}
"#;

#[test]
fn binds_in_a_loop_keep_nobody_waiting() {
    if !require("gcc") {
        return;
    }
    let strangers = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = strangers.local_addr().unwrap().port().to_string();
    let options = ["-w", "2", "--ready", "alive", "--bake", "50ms", "--share-ports", "on", "--stop", "KILL"];
    let builder = Panzer::builder().args(options).args(["--", "./server", &port]);
    let panzer = compiled(builder, "server", BINDS_IN_A_LOOP, &["-pthread"]).unwrap().start();
    panzer.wait_serving();
    // Main is so slow that there is always another bind to be answered: status comes only if it leaves some for later.
    let slow = Tracer::attach(panzer.pid(), &["-e", "trace=recvmsg", "-e", "inject=recvmsg:delay_exit=1000"]);
    for _ in 0..3 {
        assert_eq!(panzer.workers().len(), 2);
    }
    drop(slow);
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.stop();
}

/// A helper binds the socket that its parent listens on, as by privilege separation; or one copy of it is bound, and another
/// listens.
const BINDS_A_COPY: &str = r#"
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
if os.path.exists("by-helper"):
    helper = os.fork()
    if helper == 0:
        s.bind(("127.0.0.1", ports[0]))
        os._exit(0)
    os.waitpid(helper, 0)
else:
    s.dup().bind(("127.0.0.1", ports[0]))
s.listen(64)
say("name", s.getsockname()[1])
serve(s)
"#;

#[test]
fn a_port_that_is_bound_by_a_copy_of_its_socket_is_shared() {
    if !require("python3") {
        return;
    }
    for by_helper in [false, true] {
        let port = free_port();
        let builder = program(&["-w", "2"], BINDS_A_COPY, &[port]);
        let panzer = if by_helper { builder.file("by-helper", "") } else { builder }.start();
        panzer.wait_serving();
        let name = port.to_string();
        wait_said(&panzer, "name", &[name.as_str(); 2]);
        assert_eq!(panzer.reload_and_wait(), Ok(2));
        panzer.wait_drained(1);
        wait_said(&panzer, "name", &[name.as_str(); 4]);
        assert!(get(port, "/").is_ok());
        panzer.stop();
    }
}

/// Binds what main was asked to hold, once it is told to, and again.
const BINDS_WHEN_TOLD: &str = r#"
until("go")
while True:
    try:
        s = opened(ports[0])
        break
    except OSError as error:
        say("refused", os.strerror(error.errno))
        time.sleep(0.02)
s.listen(64)
say("bound", s.getsockname()[1])
serve(s)
"#;

#[test]
fn a_port_that_main_has_no_descriptor_to_give_is_refused_with_that_reason() {
    if !require("python3") || !require("prlimit") {
        return;
    }
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let options = ["-w", "1", "--ready", "alive", "--share-ports", "on", "-l", &listen];
    let panzer = program(&options, BINDS_WHEN_TOLD, &[port]).start();
    panzer.allow_line("workers run with no_new_privs");
    // Without a question to main, whose connection would be open for a moment.
    panzer.wait_for_line("generation 1 serves", SOON);
    let limited_to = |limit: usize| {
        let (pid, limit) = (panzer.pid().to_string(), format!("--nofile={limit}:"));
        assert!(Command::new("prlimit").args(["--pid", &pid, &limit]).status().unwrap().success());
    };
    // One is left: for the worker's own socket, which comes with its question.
    let open = fs::read_dir(format!("/proc/{}/fd", panzer.pid())).unwrap().flatten();
    let open: BTreeSet<usize> = open.map(|entry| entry.file_name().to_str().unwrap().parse().unwrap()).collect();
    let second_free = (0..).filter(|number| !open.contains(number)).nth(1).unwrap();
    limited_to(second_free);
    panzer.expect_line(&format!(
        "warning: a worker binds {listen}, which panzer holds, and cannot be given it: too many open files"
    ));
    fs::write(panzer.path("go"), "").unwrap();
    wait_said(&panzer, "refused", &["Too many open files"]);
    limited_to(1024);
    wait_said(&panzer, "bound", &[&port.to_string()]);
    assert!(get(port, "/").is_ok());
    panzer.stop();
}
