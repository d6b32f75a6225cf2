//! A worker that spoils a listener that it shares with all others: the service goes on.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::control::run;
use crate::load::http::Address;
use crate::load::{Load, Mode};
use crate::support::{Builder, Panzer, eventually, free_port, get, require};

const SOON: Duration = Duration::from_secs(20);

/// Serves with a thread that shuts its listener down, or cuts its queue, when it is told so by a file. `-` as port: on
/// what it was given. As long as there is the file `short`, it cuts its queue as it starts, and ends if that says so.
const SERVER: &str = r#"#!/usr/bin/env python3
import os, socket, sys, threading, time
if sys.argv[1] == "-":
    listener = socket.socket(fileno=3)
else:
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=64)
if os.path.exists("short"):
    listener.listen(1)
    os.close(os.open("was-cut", os.O_CREAT))
    if open("short").read() == "end": sys.exit(3)
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

#[test]
fn a_shared_port_is_watched_though_its_workers_were_ready_before_they_bound_it() {
    if require("python3") {
        let port = free_port();
        survives_a_shutdown(server(&["--ready", "alive"], &port.to_string()), port);
    }
}

/// The length of the queue, as status shows it.
pub fn queue(panzer: &Panzer) -> Option<u64> {
    let status: serde_json::Value = serde_json::from_slice(&run(panzer, &["status", "--json"]).stdout).unwrap();
    status["listeners"][0]["limit"].as_u64()
}

/// So many ask at once that a queue of one overflows, which keeps some waiting and loses none.
const CROWD: usize = 16;

/// Answers everybody while a worker would have its queue, of `length`, cut to one, until it is as long again.
fn survives_a_cut(panzer: &Panzer, port: u16, length: u64, restore: impl FnOnce(&Panzer)) {
    panzer.wait_serving();
    eventually(SOON, "it answers, and its queue is as long as it was asked for", || {
        get(port, "/").is_ok() && queue(panzer) == Some(length)
    });
    let load = Load::new(port, Mode::NewConnection, CROWD).pause(Duration::from_millis(2)).start();
    let goes_on = || {
        let answered = load.answered();
        eventually(SOON, "the load goes on", || load.answered() > answered + 500);
    };
    goes_on();
    is_spoilt(panzer, "listen");
    goes_on();
    restore(panzer);
    assert_eq!(queue(panzer), Some(length));
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
    let again = format!("a worker cut the queue of port {port} to 1; it is 77 again");
    panzer.allow_line(&again);
    survives_a_cut(&panzer, port, 77, |panzer| {
        // Another worker becomes ready, and none is stopped, which would take with it what it has accepted.
        assert!(run(panzer, &["scale", "3"]).status.success());
        panzer.wait_for_line(&again, SOON);
    });
    panzer.stop();
}

#[test]
fn a_failed_release_and_a_respawned_worker_leave_no_short_queue() {
    if !require("python3") {
        return;
    }
    for ready in ["auto", "alive"] {
        let port = free_port();
        let panzer = server(&["--ready", ready, "-l", &format!("127.0.0.1:{port},backlog=77")], "-").start();
        panzer.wait_serving();
        eventually(SOON, "it answers", || get(port, "/").is_ok() && queue(&panzer) == Some(77));
        panzer.allow_line("a worker cut the queue of ");
        if ready == "auto" {
            let failed = "error: reload failed: generation 2: worker * exited with code 3; generation 1 serves on";
            panzer.expect_line(failed);
            std::fs::write(panzer.path("short"), "end").unwrap();
            assert!(panzer.reload_and_wait().is_err());
            panzer.wait_for_line("a worker cut the queue of * to 1; it is 77 again", SOON);
            eventually(SOON, "the queue is as long as before", || queue(&panzer) == Some(77));
            std::fs::remove_file(panzer.path("was-cut")).unwrap();
        }
        // By a worker that is respawned, and, under `alive`, counts as ready before it does so.
        std::fs::write(panzer.path("short"), "stay").unwrap();
        panzer.expect_line("warning: worker * was killed by SIGKILL; respawning it");
        let before = panzer.workers();
        kill(Pid::from_raw(before[0]), Signal::SIGKILL).unwrap();
        let cut_by_another = || panzer.workers().len() == 2 && !panzer.workers().contains(&before[0]);
        eventually(SOON, "the slot is filled again", cut_by_another);
        eventually(SOON, "the queue was cut, and is as long again", || {
            panzer.path("was-cut").exists() && queue(&panzer) == Some(77)
        });
        panzer.stop();
    }
}

#[test]
fn a_queue_of_a_shared_port_is_cut_by_nobody() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let panzer = server(&[], &port.to_string()).start();
    survives_a_cut(&panzer, port, 64, |_| {});
    panzer.stop();
}

/// Echoes datagrams, and does to its socket what it is sent.
const DATAGRAMS: &str = "#!/usr/bin/env python3
import socket
s = socket.socket(fileno=3)
while True:
    text, peer = s.recvfrom(64)
    if peer is None:
        break
    elif text == b'connect':
        s.sendto(text, peer)
        s.connect(peer)
    elif text == b'shut down':
        s.connect(peer)
        s.shutdown(socket.SHUT_RDWR)
        break
    else:
        s.sendto(text, peer)
import time
time.sleep(1000)
";

#[test]
fn a_datagram_socket_that_a_worker_connects_hears_everybody_again_and_a_shutdown_is_told() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let panzer = Panzer::builder()
        .executable("app", DATAGRAMS)
        .args(["-w", "2", "--bake", "50ms", "--ready", "alive", "-l", &format!("udp:127.0.0.1:{port}"), "./app"])
        .start();
    panzer.wait_serving();
    let client = || {
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        client
    };
    let asked = |client: &std::net::UdpSocket, text: &str| {
        client.send_to(text.as_bytes(), ("127.0.0.1", port)).unwrap();
        client.recv(&mut [0; 64]).is_ok()
    };
    let told = format!(
        "warning: a worker connected udp:127.0.0.1:{port}, so that no worker got what other * undone (said once)"
    );
    panzer.expect_line(&told);
    let bad = client();
    eventually(SOON, "it answers", || asked(&client(), "hello"));
    assert!(asked(&bad, "connect"));
    // Main looks when it is awake: here it is asked for its state.
    eventually(SOON, "it hears others again", || {
        panzer.status();
        asked(&client(), "hello")
    });
    panzer.expect_line(&format!(
        "warning: a worker shut down udp:127.0.0.1:{port} for all workers, which cannot be undone"
    ));
    bad.send_to(b"shut down", ("127.0.0.1", port)).unwrap();
    eventually(SOON, "it is told", || {
        panzer.status();
        panzer.lines().iter().any(|line| line.contains("a worker shut down udp:"))
    });
    panzer.stop();
}

/// Release 1 does not block; those after it do, each time that they are about to accept.
const MODES: &str = "#!/usr/bin/env python3
import os, select, signal, socket, time
s = socket.socket(fileno=3)
blocking = os.environ['PANZER_GENERATION'] != '1'
s.setblocking(blocking)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
while True:
    if not blocking:
        select.select([s], [], [], 0.05)
    try:
        connection, _ = s.accept()
    except BlockingIOError:
        time.sleep(0.05)
        continue
    connection.recv(65536)
    connection.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok')
    connection.close()
";

#[test]
fn a_release_that_makes_a_listener_blocking_is_told_and_nonblock_prevents_it() {
    if !require("python3") {
        return;
    }
    for option in ["", ",nonblock"] {
        let listen = format!("127.0.0.1:{}{option}", free_port());
        let panzer = Panzer::builder()
            .executable("app", MODES)
            .args(["-w", "2", "--bake", "4s", "--ready", "alive", "--stop", "TERM/2s/KILL", "-l", &listen, "./app"])
            .start();
        panzer.wait_serving();
        let line = match option {
            "" => {
                "warning: a worker made 127.0.0.1:* blocking for the workers of all generations, *nonblock of --listen keeps"
            }
            _ => "warning: a worker made 127.0.0.1:* blocking for all workers: undone (said once)",
        };
        panzer.expect_line(line);
        panzer.signal(nix::sys::signal::Signal::SIGUSR1);
        panzer.wait_for_line(line, SOON);
        eventually(SOON, "it is done", || panzer.status().serving().number == 2);
        panzer.stop();
    }
}

/// Serves what it was given or binds. Generation 2 changes all that it shares, and ends.
const SPOILER: &str = r#"#!/usr/bin/env python3
import ctypes, os, socket, struct, sys, time
if sys.argv[1] == "-":
    listener = socket.socket(fileno=3)
else:
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
if os.environ["PANZER_GENERATION"] == "2":
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    nothing = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
    listener.setsockopt(socket.SOL_SOCKET, 26, struct.pack("@HP", 1, ctypes.addressof(nothing)))
    os.set_blocking(listener.fileno(), False)
    os.close(os.open("spoilt", os.O_CREAT))
    while not os.path.exists("end"): time.sleep(0.01)
    sys.exit(3)
os.set_blocking(listener.fileno(), True)
while True:
    try:
        connection, _ = listener.accept()
        with connection:
            connection.setblocking(True)
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
    except OSError:
        time.sleep(0.01)
"#;

/// The options of a listener belong to the socket, which the generation that serves on shares with the one that failed.
#[test]
fn a_release_that_fails_leaves_the_options_of_listeners_as_they_were() {
    if !require("python3") {
        return;
    }
    for shared in [true, false] {
        let port = free_port();
        let (program, listen) = match shared {
            true => (port.to_string(), vec![]),
            false => ("-".to_owned(), vec!["-l".to_owned(), format!("127.0.0.1:{port}")]),
        };
        let builder = Panzer::builder().executable("spoiler", SPOILER).args(["-w", "2", "--bake", "100ms"]);
        let panzer = builder.args(listen).args(["--", "./spoiler", &program]).start();
        panzer.wait_serving();
        eventually(SOON, "it answers", || get(port, "/").is_ok());
        panzer.expect_line("error: reload failed: generation 2: worker * exited with code 3; generation 1 serves on");
        panzer.allow_line("warning: generation 2, which failed, had set * of 127.0.0.1:*; it is as before again");
        panzer.signal(Signal::SIGUSR1);
        eventually(SOON, "the release has changed them", || panzer.path("spoilt").exists());
        // The next main knows them too.
        panzer.expect_line("restart: trying *");
        panzer.expect_line("restarted in place: *");
        panzer.signal(Signal::SIGUSR2);
        panzer.wait_for_line("restarted in place", SOON);
        std::fs::write(panzer.path("end"), "").unwrap();
        panzer.wait_for_line("warning: generation 2, which failed, had set *SO_LINGER*SO_RCVBUF*", SOON);
        eventually(SOON, "the failed one is gone", || panzer.status().generations.len() == 1);
        for _ in 0..20 {
            assert_eq!(get(port, "/").unwrap().text(), "hello");
        }
        assert_eq!(panzer.reload_and_wait(), Ok(3));
        panzer.stop();
    }
}
