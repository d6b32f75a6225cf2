//! Shared ports: programs that know nothing of panzer bind their own, several copies of each.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::load::{Load, Mode};
use crate::support::{Builder, Panzer, eventually, eventually_some, free_port, get, require};

const SOON: Duration = Duration::from_secs(20);

/// Requests that http.server tells on stderr; and that a client had gone when its answer came.
const CHATTER: [&str; 2] = ["\" 200 -", "127.0.0.1 - - ["];

/// Starts it, and waits until it answers on `port`.
fn start(builder: Builder, port: u16) -> Panzer {
    let panzer = builder.start();
    CHATTER.iter().for_each(|pattern| panzer.allow_line(pattern));
    panzer.wait_serving();
    eventually(SOON, "the first generation answers", || get(port, "/").is_ok());
    panzer
}

/// Serves with four copies through five reloads under load, and the death of a worker, without refusing anybody.
fn shares(builder: Builder, port: u16) {
    let panzer = start(builder, port);
    let load = Load::new(port, Mode::NewConnection, 3).pause(Duration::from_millis(2)).start();
    for generation in 2..=6 {
        assert_eq!(panzer.reload_and_wait(), Ok(generation));
        panzer.wait_drained(generation - 1);
        eventually(SOON, "the new generation answers", || get(port, "/").is_ok());
    }
    panzer.expect_line("warning: worker * was killed by SIGKILL; respawning it");
    // Of a worker that forks: what is killed with it takes a moment.
    panzer.allow_line("ended and left processes behind; stopping them");
    let before = panzer.workers();
    assert_eq!(before.len(), 4);
    kill(Pid::from_raw(before[0]), Signal::SIGKILL).unwrap();
    eventually(SOON, "the slot is filled again", || {
        let workers = panzer.workers();
        workers.len() == 4 && !workers.contains(&before[0])
    });
    let report = load.stop();
    assert_eq!(report.refused, 0, "{report}");
    assert!(report.answered > 100, "{report}");
    assert_eq!(panzer.stop().code(), Some(0));
    assert!(get(port, "/").is_err(), "nobody listens any more");
}

fn four_workers() -> Builder {
    Panzer::builder().args(["-w", "4", "--bake", "500ms"])
}

#[test]
fn python() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let program = ["--", "python3", "-m", "http.server", &port.to_string(), "--bind", "127.0.0.1"];
    shares(four_workers().args(program), port);
}

#[test]
fn node_that_prefers_ipv6() {
    if !require("node") {
        return;
    }
    let port = free_port();
    let builder = four_workers().file("server.js", NODE);
    shares(builder.args(["--", "node", "server.js", &port.to_string()]), port);
}

const NODE: &str = r#"
require("http").createServer((_, answer) => answer.end("hello")).listen(process.argv[2]);
"#;

#[test]
fn asyncio_that_does_not_block() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    shares(four_workers().args(["--", "python3", "-c", ASYNCIO, &port.to_string()]), port);
}

const ASYNCIO: &str = r#"
import asyncio, sys
async def answer(reader, writer):
    try:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        await writer.drain()
        writer.close()
    except (OSError, asyncio.IncompleteReadError):
        pass
async def main():
    async with await asyncio.start_server(answer, "127.0.0.1", int(sys.argv[1])) as server:
        await server.serve_forever()
asyncio.run(main())
"#;

#[test]
fn a_server_that_gives_its_rights_up_between_bind_and_listen() {
    if !require("python3") || !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: takes root, and python3");
        return;
    }
    let Some(port) = (700..1024).rev().find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()) else {
        panic!("every port that takes a right is in use");
    };
    shares(four_workers().args(["--", "python3", "-c", GIVES_RIGHTS_UP, &port.to_string()]), port);
}

const GIVES_RIGHTS_UP: &str = r#"
import os, socket, sys
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
listener.listen(100)
while True:
    connection, _ = listener.accept()
    try:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
    except OSError:
        pass
    connection.close()
"#;

/// A C program, linked statically, which answers on each port that it is given.
fn compiled(builder: Builder, flags: &[&str]) -> Builder {
    let builder = builder.file("server.c", SERVER);
    let mut compiler = Command::new("gcc");
    compiler.current_dir(builder.folder()).args(["-static", "-O1", "-o", "server", "server.c"]).args(flags);
    assert!(compiler.status().unwrap().success());
    builder
}

#[test]
fn a_static_binary_with_two_ports() {
    if !require("gcc") {
        return;
    }
    let ports = [free_port(), free_port()];
    let numbers = ports.map(|port| port.to_string());
    let builder = compiled(four_workers(), &[]).args(["--", "./server"]).args(numbers);
    let panzer = start(builder, ports[0]);
    panzer.wait_for_line(&format!("workers share port {} too, beside {}", ports[1], ports[0]), SOON);
    let loads = ports.map(|port| Load::new(port, Mode::NewConnection, 2).pause(Duration::from_millis(2)).start());
    for generation in 2..=6 {
        assert_eq!(panzer.reload_and_wait(), Ok(generation));
    }
    for load in loads {
        let report = load.stop();
        assert_eq!((report.refused, report.answered > 100), (0, true), "{report}");
    }
    panzer.stop();
}

#[test]
fn a_program_whose_children_bind() {
    if !require("gcc") {
        return;
    }
    let port = free_port();
    let builder = compiled(four_workers(), &["-DFORK"]);
    shares(builder.args(["--", "./server", &port.to_string()]), port);
}

/// Closes what it was given, starts the server as its child, without a fork, and hands TERM on to it.
const WRAPPER: &str = r#"#!/usr/bin/env python3
import os, signal, subprocess, sys
os.closerange(3, 1 << 20)
if sys.argv[1] == "vfork":
    started = subprocess.Popen(sys.argv[2:])
    child = started.pid
else:
    child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
os.waitpid(child, 0)
os._exit(0)
"#;

#[test]
fn a_server_that_a_wrapper_starts_by_vfork_or_posix_spawn() {
    if !require("python3") {
        return;
    }
    for kind in ["vfork", "spawn"] {
        let port = free_port();
        let builder = four_workers().executable("wrapper", WRAPPER).args(["--", "./wrapper", kind]);
        shares(builder.args(["python3", "-m", "http.server", &port.to_string(), "--bind", "127.0.0.1"]), port);
    }
}

#[test]
fn a_program_whose_calls_are_all_interrupted() {
    if !require("gcc") {
        return;
    }
    let port = free_port();
    let builder = compiled(four_workers(), &["-DTIMER"]);
    shares(builder.args(["--", "./server", &port.to_string()]), port);
}

#[test]
fn a_program_that_watches_its_socket_before_it_binds_it() {
    if !require("gcc") {
        return;
    }
    let port = free_port();
    let builder = compiled(four_workers(), &["-DEPOLL_FIRST"]);
    shares(builder.args(["--", "./server", &port.to_string()]), port);
}

const SERVER: &str = r#"
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static void ignore(int signal) { (void)signal; }
static void end(int signal) { (void)signal; _exit(0); }

static void require(int good, const char *what) {
    if (!good) { perror(what); exit(3); }
}

static void watch(int set, int fd) {
    struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };
    require(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) == 0, "epoll_ctl");
}

static void answer(int listener) {
    static const char text[] = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
    char request[4096];
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) return;
    while (read(fd, request, sizeof request) < 0 && errno == EINTR) {}
    while (write(fd, text, sizeof text - 1) < 0 && errno == EINTR) {}
    close(fd);
}

int main(int count, char **arguments) {
    signal(SIGTERM, end);
#ifdef FORK
    for (int child = 0; child < 2; child++) {
        if (fork() == 0) { prctl(PR_SET_PDEATHSIG, SIGKILL); goto serve; }
    }
    for (;;) pause();
serve:
#endif
#ifdef TIMER
    struct sigaction handled = { .sa_handler = ignore, .sa_flags = SA_RESTART };
    sigaction(SIGALRM, &handled, NULL);
    struct itimerval each = { { 0, 1000 }, { 0, 1000 } };
    setitimer(ITIMER_REAL, &each, NULL);
#endif
    (void)ignore;
    int set = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 1; i < count; i++) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), yes = 1;
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
        struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(atoi(arguments[i])) };
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
#ifdef EPOLL_FIRST
        watch(set, fd);
#endif
        require(bind(fd, (struct sockaddr *)&address, sizeof address) == 0, "bind");
        require(listen(fd, 64) == 0, "listen");
#ifndef EPOLL_FIRST
        watch(set, fd);
#endif
    }
    for (;;) {
        struct epoll_event event;
        if (epoll_wait(set, &event, 1, -1) == 1) answer(event.data.fd);
    }
}
"#;

#[test]
fn a_monitor_that_dies_leaves_the_listener_where_it_is() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    // Its stderr has a traceback for each client that is gone before its answer.
    let program = format!("exec python3 -m http.server {port} --bind 127.0.0.1 2>/dev/null");
    let panzer = start(four_workers().args(["--", "sh", "-c", &program]), port);
    panzer.expect_line("error: the monitor of generation 1 was killed by SIGKILL; starting another");
    let before = panzer.workers();
    let load = Load::new(port, Mode::NewConnection, 2).pause(Duration::from_millis(2)).start();
    kill(Pid::from_raw(panzer.status().serving().monitor.unwrap()), Signal::SIGKILL).unwrap();
    eventually(SOON, "another monitor has four workers", || {
        let workers = panzer.workers();
        workers.len() == 4 && workers.iter().all(|worker| !before.contains(worker))
    });
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    let report = load.stop();
    assert_eq!(report.refused, 0, "{report}");
    panzer.stop();
}

#[test]
fn what_the_next_release_binds_no_more_is_closed() {
    if !require("gcc") {
        return;
    }
    let (old, new) = (free_port(), free_port());
    let script = |port: u16| format!("#!/bin/sh\nexec ./server {port}\n");
    let builder = compiled(four_workers(), &[]).executable("release", &script(old)).arg("./release");
    let panzer = start(builder, old);
    crate::support::write_executable(panzer.path("release"), script(new));
    panzer.allow_line("panzer: closed 127.0.0.1:");
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    eventually(SOON, "the new address answers", || get(new, "/").is_ok());
    panzer.wait_for_line(&format!("closed 127.0.0.1:{old}"), SOON);
    assert!(get(old, "/").is_err());
    panzer.stop();
}

#[test]
fn a_release_that_fails_after_its_bind_takes_nothing_with_it() {
    if !require("gcc") {
        return;
    }
    let (port, another) = (free_port(), free_port());
    // The bake is longer than the bad release lives, also on a busy machine.
    let builder = compiled(Panzer::builder().args(["-w", "4", "--bake", "3s"]), &[]);
    let good = format!("#!/bin/sh\nexec ./server {port}\n");
    let panzer = start(builder.executable("release", &good).arg("./release"), port);
    let load = Load::new(port, Mode::NewConnection, 2).pause(Duration::from_millis(2)).start();
    let bad = format!("#!/bin/sh\n./server {port} {another} &\nsleep 0.3\nkill $!\nexit 3\n");
    crate::support::write_executable(panzer.path("release"), bad);
    panzer.expect_line("error: reload failed: generation 2: worker * exited with code 3");
    panzer.allow_line("panzer: closed 127.0.0.1:");
    panzer.allow_line("ended and left processes behind");
    assert!(panzer.reload_and_wait().is_err());
    eventually(SOON, "what the failed release alone had bound is closed", || get(another, "/").is_err());
    crate::support::write_executable(panzer.path("release"), good);
    assert_eq!(panzer.reload_and_wait(), Ok(3));
    let report = load.stop();
    assert_eq!(report.refused, 0, "{report}");
    panzer.stop();
}

/// Runs a python program, whose workers write to files in its folder.
fn python_program(workers: &str, program: &str, arguments: &[&str]) -> Panzer {
    let builder = Panzer::builder().args(["-w", workers, "--bake", "50ms", "--", "python3", "-c", program]);
    builder.args(arguments).start()
}

fn written(path: &Path) -> String {
    eventually_some(SOON, "the worker has written its file", || {
        fs::read_to_string(path).ok().filter(|text| text.ends_with('\n'))
    })
    .trim()
    .to_owned()
}

#[test]
fn workers_that_turn_out_to_listen_one_by_one_are_told_as_ready_once() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let builder = Panzer::builder().args(["-w", "3", "--bake", "1s", "./release"]);
    let server = LISTENS_LATER.replace("PORT", &port.to_string());
    let panzer = builder.executable("release", "#!/bin/sh\nexec sleep 1000\n").executable("next", &server).start();
    panzer.wait_serving();
    fs::rename(panzer.path("next"), panzer.path("release")).unwrap();
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    let told = panzer.lines().iter().filter(|line| line.contains("generation 2 is ready; it must live")).count();
    assert_eq!(told, 1, "{:?}", panzer.lines());
    panzer.stop();
}

const LISTENS_LATER: &str = r#"#!/usr/bin/env python3
import os, signal, socket, time
time.sleep(0.2 + int(os.environ["PANZER_WORKER_ID"]) / 5)
listener = socket.create_server(("127.0.0.1", PORT))
while True: listener.accept()[0].close()
"#;

#[test]
fn a_server_whose_parent_reserves_the_port_for_its_child() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let builder = Panzer::builder().args(["-w", "2", "--ready", "accept", "--share-ports", "on", "--bake", "50ms"]);
    let panzer = start(builder.args(["--", "python3", "-c", RESERVES, &port.to_string()]), port);
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.stop();
}

/// As granian does.
const RESERVES: &str = r#"
import os, signal, socket, sys
def bound():
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    own.bind(("127.0.0.1", int(sys.argv[1])))
    return own
reserved = bound()
child = os.fork()
if child:
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    os.waitpid(child, 0)
    os._exit(0)
listener = bound()
listener.listen()
while True:
    connection, _ = listener.accept()
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
    connection.close()
"#;

#[test]
fn port_0_is_private() {
    if !require("python3") {
        return;
    }
    let panzer = python_program("4", PORT_0, &[]);
    let ports: BTreeSet<String> = (0..4).map(|worker| written(&panzer.path(&format!("port-{worker}")))).collect();
    assert_eq!(ports.len(), 4, "{ports:?}");
    panzer.stop();
}

const PORT_0: &str = r#"
import os, signal, socket
listener = socket.create_server(("127.0.0.1", 0))
with open("port-" + os.environ["PANZER_WORKER_ID"], "w") as file:
    print(listener.getsockname()[1], file=file)
signal.pause()
"#;

#[test]
fn a_program_that_binds_all_but_tcp_is_hindered_by_nobody() {
    if !require("python3") {
        return;
    }
    let panzer = python_program("1", RESOLVER, &[]);
    panzer.wait_serving();
    let rounds = || written(&panzer.path("rounds")).parse::<u64>().unwrap();
    eventually(SOON, "it binds", || rounds() > 10);
    panzer.signal(Signal::SIGSTOP);
    let then = rounds();
    eventually(SOON, "it binds while main is stopped", || rounds() > then + 100);
    panzer.signal(Signal::SIGCONT);
    panzer.stop();
}

const RESOLVER: &str = r#"
import os, socket
rounds = 0
while True:
    socket.getaddrinfo("localhost", 80)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp: udp.bind(("127.0.0.1", 0))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink: netlink.bind((0, 0))
    with socket.socket(socket.AF_UNIX) as unix: unix.bind("\0panzer-e2e-%d-%d" % (os.getpid(), rounds))
    rounds += 1
    with open("rounds.new", "w") as file: print(rounds, file=file)
    os.rename("rounds.new", "rounds")
"#;

#[test]
fn a_port_that_the_worker_may_not_bind_is_refused_to_it() {
    if !require("python3") || !nix::unistd::geteuid().is_root() {
        return;
    }
    let panzer = python_program("1", PRIVILEGED, &[]);
    assert_eq!(written(&panzer.path("outcome")), "bound, then PermissionError");
    panzer.stop();
}

const PRIVILEGED: &str = r#"
import os, random, signal, socket
os.close(os.open("outcome", os.O_CREAT | os.O_WRONLY, 0o666))
os.chmod("outcome", 0o666)
file = open("outcome", "w")
while True:
    port = random.randrange(600, 1000)
    try: first = socket.create_server(("127.0.0.1", port))
    except OSError: continue
    break
os.setgroups([])
os.setuid(65534)
try:
    socket.create_server(("127.0.0.1", port))
    print("bound, then bound again", file=file, flush=True)
except OSError as error:
    print("bound, then " + type(error).__name__, file=file, flush=True)
signal.pause()
"#;

#[test]
fn a_backlog_grows_and_never_shrinks() {
    if !require("python3") {
        return;
    }
    let panzer = python_program("1", BACKLOG, &[&free_port().to_string()]);
    assert_eq!(written(&panzer.path("backlogs")), "20 20 30");
    panzer.stop();
}

const BACKLOG: &str = r#"
import signal, socket, sys
backlogs = []
for backlog in (20, 5, 30):
    listener = socket.socket()
    listener.bind(("127.0.0.1", int(sys.argv[1])))
    listener.listen(backlog)
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    backlogs.append(str(int.from_bytes(info[28:32], sys.byteorder)))
with open("backlogs", "w") as file: print(*backlogs, file=file)
signal.pause()
"#;

/// Starts one worker that binds when it finds the file `go`, and stops main before it is there. Returns its pid, once
/// it waits in bind.
fn in_mid_call(port: u16) -> (Panzer, i32) {
    let panzer = python_program("1", WHEN_TOLD, &[&port.to_string()]);
    panzer.wait_serving();
    let worker = panzer.workers()[0];
    panzer.signal(Signal::SIGSTOP);
    fs::write(panzer.path("go"), "").unwrap();
    let bind = format!("{} ", nix::libc::SYS_bind);
    eventually(SOON, "the worker waits in bind", || {
        fs::read_to_string(format!("/proc/{worker}/syscall")).is_ok_and(|call| call.starts_with(&bind))
    });
    (panzer, worker)
}

const WHEN_TOLD: &str = r#"
import http.server, os, sys, time
while not os.path.exists("go"): time.sleep(0.01)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"#;

#[test]
fn a_worker_killed_in_mid_call_leaves_nothing_stuck() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let (panzer, worker) = in_mid_call(port);
    CHATTER.iter().for_each(|pattern| panzer.allow_line(pattern));
    panzer.expect_line("warning: worker 0 (pid * was killed by SIGKILL; respawning it");
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    panzer.signal(Signal::SIGCONT);
    eventually(SOON, "the next worker answers", || get(port, "/").is_ok());
    panzer.stop();
}

#[test]
fn a_monitor_killed_in_mid_call_leaves_nothing_stuck() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let (panzer, worker) = in_mid_call(port);
    CHATTER.iter().for_each(|pattern| panzer.allow_line(pattern));
    panzer.expect_line("error: the monitor of generation 1 was killed by SIGKILL; starting another");
    // Whether its call fails first, as it does without an answer, or the signal of its parent's death ends it.
    ["Traceback", "  ", "OSError: [Errno 38]"].iter().for_each(|pattern| panzer.allow_line(pattern));
    let stat = fs::read_to_string(format!("/proc/{worker}/stat")).unwrap();
    let monitor = stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    kill(Pid::from_raw(monitor), Signal::SIGKILL).unwrap();
    panzer.signal(Signal::SIGCONT);
    eventually(SOON, "the next worker answers", || get(port, "/").is_ok());
    panzer.stop();
}

#[test]
fn an_unprivileged_panzer_says_what_it_takes() {
    if !require("python3") || !nix::unistd::geteuid().is_root() {
        return;
    }
    let port = free_port();
    let builder = four_workers().executable("as_nobody", AS_NOBODY).through("as_nobody");
    let panzer = builder.args(["--", "python3", "-m", "http.server", &port.to_string()]).start();
    panzer.expect_line("panzer: workers run with no_new_privs, so that they can share ports");
    CHATTER.iter().for_each(|pattern| panzer.allow_line(pattern));
    panzer.wait_serving();
    eventually(SOON, "it answers", || get(port, "/").is_ok());
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    assert!(get(port, "/").is_ok());
    assert_eq!(panzer.stop().code(), Some(0));
}

const AS_NOBODY: &str = r#"#!/usr/bin/env python3
import os, sys
for path in (".", "run"): os.chown(path, 65534, 65534)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
os.environ["PATH"] = "/usr/bin:/bin"
os.execv(sys.argv[1], sys.argv[1:])
"#;

#[test]
fn a_container_that_keeps_sockets_apart() {
    if !require("gcc") || !require("node") {
        return;
    }
    // Both families: what is not seen of an IPv6 socket matters.
    for (name, program) in [("python3", ["python3", "-m", "http.server"]), ("node", ["node", "server.js", ""])] {
        let port = free_port();
        let builder = four_workers().file("container.c", CONTAINER).file("server.js", NODE).through("container");
        let mut compiler = Command::new("gcc");
        compiler.current_dir(builder.folder()).args(["-O1", "-o", "container", "container.c"]);
        assert!(compiler.status().unwrap().success());
        let program = program.into_iter().filter(|word| !word.is_empty());
        let builder = builder.args(["--name", name, "--"]).args(program).arg(port.to_string());
        shares(builder, port);
    }
}

/// As Docker has it by default: processes may be looked into, their descriptors not be copied.
const CONTAINER: &str = r#"
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int count, char **arguments) {
    struct sock_filter steps[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pidfd_getfd, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = { sizeof steps / sizeof *steps, steps };
    if (count < 2 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter)) return 9;
    execv(arguments[1], arguments + 1);
    return 9;
}
"#;

#[test]
fn a_program_that_may_not_be_looked_into_is_said() {
    if !require("python3") || nix::unistd::geteuid().is_root() {
        return;
    }
    let panzer = python_program("1", NOT_DUMPABLE, &[&free_port().to_string()]);
    panzer.expect_line("warning: the ports of a program that may not be looked into (pid * are not shared");
    assert_eq!(written(&panzer.path("outcome")), "bound");
    panzer.stop();
}

const NOT_DUMPABLE: &str = r#"
import ctypes, signal, socket, sys
PR_SET_DUMPABLE = 4
ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
with open("outcome", "w") as file: print("bound", file=file)
signal.pause()
"#;

#[test]
fn what_cannot_be_shared_is_said() {
    let inner = env!("CARGO_BIN_EXE_panzer");
    let panzer = Panzer::builder()
        .args(["-w", "1", "--respawn-limit", "0/1m", "--", inner, "--share-ports", "on", "--", "sleep", "1000"])
        .expect_line("error: --share-ports on: somebody else, such as an outer panzer, already answers")
        .expect_line("exited with code 125")
        .expect_line("more than 0 respawns")
        .expect_line("generation 1 keeps failing")
        .start();
    assert_eq!(panzer.wait_exit().code(), Some(1));
}
