//! `--listen ADDR,per-worker`: a queue for each slot, which outlives the workers that serve it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::faults::{SOON, kill_9, wait_gone, wait_workers};
use crate::load::http::Connection;
use crate::load::{Load, Mode};
use crate::support::{Address, Builder, Panzer, eventually, free_port, get, require};

/// Of so many clients none is dealt to a certain one of four workers once in 10^8 times.
const CLIENTS: usize = 64;

fn my_app(workers: u32, listen: &str) -> Builder {
    let workers = workers.to_string();
    let arguments = ["-w", &workers, "--bake", "100ms", "--ready", "accept", "-l", listen, "./my_app"];
    Panzer::builder().link("examples/my_app").args(arguments)
}

/// The pid in each slot of the serving generation.
fn in_slots(panzer: &Panzer) -> Vec<i32> {
    let mut workers = panzer.status().serving().workers.clone();
    workers.sort_by_key(|worker| worker.slot);
    workers.iter().filter_map(|worker| worker.pid).collect()
}

/// All that a process holds open, by number.
fn descriptors(pid: i32) -> BTreeMap<i32, PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let number = |name: &std::ffi::OsStr| name.to_str().unwrap().parse().unwrap();
    entries.filter_map(|entry| Some((number(&entry.file_name()), fs::read_link(entry.path()).ok()?))).collect()
}

fn stop_in_its_tracks(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    let is_stopped = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ");
    eventually(SOON, "the worker stands still", is_stopped);
}

/// Four workers get about as many connections each.
#[track_caller]
fn assert_even(address: &Address) {
    let mut answered_by: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..400 {
        let text = get(address, "/").unwrap().text();
        *answered_by.entry(text.split(" of ").next().unwrap().to_owned()).or_default() += 1;
    }
    // 100 each, with a deviation of 9.
    assert_eq!(answered_by.len(), 4, "{answered_by:?}");
    assert!(answered_by.values().all(|&count| (50..=150).contains(&count)), "{answered_by:?}");
}

#[test]
pub fn what_waits_for_a_killed_worker_is_served_by_its_replacement() {
    if !require("python3") {
        return;
    }
    for stands_still in [true, false] {
        let port = free_port();
        let address = Address::from(port);
        // The pause is for the clients that come while nobody is there.
        let panzer = my_app(4, &format!("127.0.0.1:{port},per-worker")).args(["--delay", "2s"]).start();
        panzer.expect_line("warning: worker 1 * was killed by SIGKILL; respawning it");
        panzer.wait_serving();
        let victim = in_slots(&panzer)[1];
        if stands_still {
            panzer.allow_line("is stopped by SIGSTOP: ");
            stop_in_its_tracks(victim);
        } else {
            kill_9(victim);
            wait_gone(&[victim]);
        }
        let connect = |_| {
            let mut connection = Connection::open(&address).unwrap();
            connection.send("/", true).unwrap();
            connection
        };
        let clients: Vec<Connection> = (0..CLIENTS).map(connect).collect();
        if stands_still {
            kill_9(victim);
            wait_gone(&[victim]);
        }
        wait_workers(&panzer, 4, &[victim]);
        let replacement = in_slots(&panzer)[1];
        let answers: Vec<String> = clients.into_iter().map(|mut client| client.receive().unwrap().text()).collect();
        let late = answers.iter().filter(|text| text.starts_with("worker 1 ")).collect::<Vec<_>>();
        assert!(!late.is_empty(), "{answers:?}");
        for text in late {
            assert_eq!(text.trim(), format!("worker 1 of generation 1, pid {replacement}"));
        }
        panzer.stop();
    }
}

#[test]
pub fn datagrams_that_wait_for_a_killed_worker_are_answered_by_its_replacement() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let panzer = Panzer::builder()
        .executable("app", ECHO)
        .args(["-w", "4", "--bake", "100ms", "--ready", "notify", "./app"])
        .args(["-l", &format!("udp:127.0.0.1:{port},per-worker")])
        .start();
    panzer.expect_line("warning: worker 1 * was killed by SIGKILL; respawning it");
    panzer.wait_serving();
    let victim = in_slots(&panzer)[1];
    panzer.allow_line("is stopped by SIGSTOP: ");
    stop_in_its_tracks(victim);
    let ask = |_| {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(SOON)).unwrap();
        client.connect(("127.0.0.1", port)).unwrap();
        client.send(b"who?").unwrap();
        client
    };
    let clients: Vec<UdpSocket> = (0..CLIENTS).map(ask).collect();
    kill_9(victim);
    let mut answered_by: BTreeMap<String, usize> = BTreeMap::new();
    for client in clients {
        let mut answer = [0; 16];
        let length = client.recv(&mut answer).unwrap();
        *answered_by.entry(String::from_utf8_lossy(&answer[..length]).into_owned()).or_default() += 1;
    }
    assert_eq!(answered_by.len(), 4, "{answered_by:?}");
    panzer.stop();
}

#[test]
pub fn a_queue_stays_with_its_slot() {
    let (shared, own) = (free_port(), free_port());
    let panzer = Panzer::builder()
        .args(["-w", "3", "--bake", "100ms", "--ready", "alive"])
        .args(["-l", &format!("127.0.0.1:{own},per-worker"), "-l", &format!("127.0.0.1:{shared}")])
        .args(["-l", &format!("udp:127.0.0.1:{own},per-worker"), "--", "sleep", "1000"])
        .start();
    panzer.expect_line("warning: worker 1 * was killed by SIGKILL; respawning it");
    panzer.expect_line("error: the monitor of generation 1 was killed by SIGKILL; starting another");
    panzer.wait_serving();
    let of_all = || -> Vec<Vec<PathBuf>> {
        let look = |pid: i32| {
            let all = descriptors(pid);
            assert_eq!(all.keys().copied().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5], "{all:?}");
            let environment = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
            assert!(environment.split('\0').any(|entry| entry == "LISTEN_FDS=3"), "{environment}");
            all.into_values().skip(3).collect()
        };
        in_slots(&panzer).into_iter().map(look).collect()
    };
    let first = of_all();
    for (slot, other) in [(0, 1), (0, 2), (1, 2)] {
        assert_ne!(first[slot][0], first[other][0]);
        assert_eq!(first[slot][1], first[other][1]);
        assert_ne!(first[slot][2], first[other][2]);
    }
    let killed = in_slots(&panzer)[1];
    kill_9(killed);
    wait_workers(&panzer, 3, &[killed]);
    assert_eq!(of_all(), first, "after a death");
    let (monitor, before) = (panzer.status().serving().monitor.unwrap(), in_slots(&panzer));
    kill_9(monitor);
    wait_workers(&panzer, 3, &before);
    assert_eq!(of_all(), first, "after the death of the monitor");
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    assert_eq!(of_all(), first, "after a reload");
    panzer.stop();
}

#[test]
pub fn connections_are_dealt_out_evenly_on_both_families() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let panzer = my_app(4, &format!("{port},per-worker")).start();
    panzer.wait_serving();
    assert_even(&(Ipv4Addr::LOCALHOST, port).into());
    assert_even(&(Ipv6Addr::LOCALHOST, port).into());
    panzer.stop();
}

#[test]
pub fn reloads_under_load_lose_nothing() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let panzer = my_app(3, &format!("127.0.0.1:{port},per-worker")).start();
    panzer.wait_serving();
    let load = |mode| Load::new(port, mode, 4).pause(Duration::from_millis(3)).start();
    let loads = [load(Mode::NewConnection), load(Mode::KeepAlive)];
    for generation in 2..=6 {
        assert_eq!(panzer.reload_and_wait(), Ok(generation));
        panzer.wait_drained(generation - 1);
    }
    for load in loads {
        let report = load.stop();
        assert!(report.answered > 0 && report.dropped() == 0, "{report}");
    }
    panzer.stop();
}

#[test]
pub fn the_address_is_refused_to_others_and_free_after_the_end() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let listen = format!("127.0.0.1:{port},per-worker");
    let datagrams = format!("udp:{listen}");
    let start = || my_app(2, &listen).args(["-l", &datagrams]).start();
    let panzer = start();
    panzer.wait_serving();
    for refused in [&listen, &datagrams, &format!("127.0.0.1:{port}")] {
        let other = Panzer::start(["-w", "2", "-l", refused, "--", "sleep", "1000"]);
        other.expect_line(&format!("error: cannot listen on *127.0.0.1:{port}: in use by "));
        assert_eq!(other.wait_exit().code(), Some(125));
    }
    assert!(TcpListener::bind(("127.0.0.1", port)).is_err());
    for _ in 0..20 {
        // The server closes first, so the port keeps traces of these.
        get(port, "/").unwrap();
    }
    panzer.stop();
    let again = start();
    again.wait_serving();
    assert!(get(port, "/").is_ok());
    again.stop();
}

#[test]
pub fn too_few_open_files_are_told_before_anything_is_started() {
    let builder = Panzer::builder().executable("few", "#!/bin/sh\nulimit -n 200\nexec \"$@\"\n").through("few");
    let listen = format!("127.0.0.1:{},per-worker", free_port());
    let panzer = builder.args(["-w", "50", "-l", &listen, "--", "sleep", "1000"]).start();
    panzer.expect_line("error: per-worker queues for 50 workers are 50 sockets, for which 328 open files must be allowed, and 200 are; raise that");
    assert_eq!(panzer.wait_exit().code(), Some(125));
}

#[test]
pub fn as_many_queues_as_open_files_allow_work() {
    let builder = Panzer::builder().executable("few", "#!/bin/sh\nulimit -n 328\nexec \"$@\"\n").through("few");
    let listen = format!("127.0.0.1:{},per-worker", free_port());
    let panzer = builder.args(["-w", "50", "--bake", "100ms", "--ready", "alive", "-l", &listen]);
    let panzer = panzer.args(["--", "sleep", "1000"]).start();
    panzer.wait_serving();
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    panzer.stop();
}

#[test]
pub fn a_queue_that_its_worker_shuts_down_takes_connections_again() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let panzer = Panzer::builder()
        .executable("app", SHUTS_DOWN)
        .args(["-w", "4", "--bake", "100ms", "-l", &format!("127.0.0.1:{port},per-worker"), "./app"])
        .start();
    panzer.wait_serving();
    let told = "warning: a worker of generation 1 shut down 127.0.0.1:* (the queue of worker 1); it listens again";
    panzer.expect_line(told);
    eventually(SOON, "worker 1 gets the request", || get(port, "/1").unwrap().text() == "worker 1 of 4");
    panzer.wait_for_line(told, SOON);
    assert_even(&port.into());
    panzer.stop();
}

/// Asked for the number of a worker, that worker shuts its listener down.
const SHUTS_DOWN: &str = r#"#!/usr/bin/env python3
import os, socket, time
listener = socket.socket(fileno=3)
worker = os.environ["PANZER_WORKER_ID"]
while True:
    try:
        connection, _ = listener.accept()
    except OSError:
        time.sleep(0.001)
        continue
    with connection:
        if f"GET /{worker} ".encode() in connection.recv(4096):
            listener.shutdown(socket.SHUT_RDWR)
        head = "HTTP/1.1 200 OK\r\nContent-Length: 13\r\nConnection: close\r\n\r\n"
        connection.sendall(f"{head}worker {worker} of 4".encode())
"#;

const ECHO: &str = "#!/usr/bin/env python3
import os, socket
here = socket.socket(fileno=3)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.sendto(b'READY=1', os.environ['NOTIFY_SOCKET'].replace('@', '\\0', 1))
while True:
    _, client = here.recvfrom(64)
    here.sendto(os.environ['PANZER_WORKER_ID'].encode(), client)
";
