//! Another count of workers where each has a queue of its own: nothing that waits in one of them is lost.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::control::{run, text};
use crate::faults::SOON;
use crate::support::{Builder, Panzer, eventually, free_port, get};
use crate::zero_loss::START;
use crate::zero_loss::clients::BothKinds;

/// Takes one connection after the other, and its time for each, so that others wait in its queue. What it has taken it
/// answers, also when it is told to stop.
const SLOW: &str = "#!/usr/bin/env python3
import os, signal, socket, time
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
listener = socket.socket(fileno=3)
listener.settimeout(0.02)
worker = os.environ['PANZER_WORKER_ID']
body = ('worker ' + worker).encode()
while not stop:
    if os.path.exists('end-' + worker):
        os.unlink('end-' + worker)
        os._exit(9)
    try:
        connection, _ = listener.accept()
    except OSError:
        continue
    connection.settimeout(5)
    if b'GET /spoil-' + worker.encode() in connection.recv(65536):
        listener.shutdown(socket.SHUT_RDWR)
    time.sleep(0.01)
    connection.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n%s' % (len(body), body))
    connection.close()
";

fn slow(port: u16, workers: u32) -> Builder {
    let listen = format!("127.0.0.1:{port},per-worker");
    let arguments = ["-w", &workers.to_string(), "--bake", "100ms", "-l", &listen, "./app"];
    Panzer::builder().executable("app", SLOW).args(arguments)
}

#[track_caller]
fn done(panzer: &Panzer, arguments: &[&str]) {
    let output = run(panzer, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
}

#[track_caller]
fn wait_workers(panzer: &Panzer, count: usize) {
    eventually(START, &format!("{count} workers are ready, and no other is there"), || {
        let status = panzer.status();
        let [only] = &status.generations[..] else { return false };
        only.workers.len() == count && only.workers.iter().all(|worker| worker.phase == "ready")
    });
}

/// A count that is not to be had is refused, whatever is on its way: here one that waits for an empty queue.
#[test]
fn a_scale_that_would_leave_none_is_refused_while_another_waits() {
    let port = free_port();
    let panzer = slow(port, 2).env("PANZER_STOP", "TERM/1s/KILL").start();
    panzer.wait_serving();
    let hung = panzer.workers()[1];
    // SIGSTOP hits a worker of this panzer, by its pid.
    kill(Pid::from_raw(hung), Signal::SIGSTOP).unwrap();
    let address = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, port));
    let waiting: Vec<_> = (0..20).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
    panzer.allow_line("what waits in the queues of workers from 1 on is not taken; they are stopped all the same");
    panzer.allow_line("worker 1 (pid *) *stopped*");
    panzer.allow_line("worker 1 (pid *) has not stopped yet; sent it SIGKILL");
    let mut first = crate::control::panzerctl(&panzer, &["scale", "1"]).spawn().unwrap();
    let mut told = String::new();
    std::io::Read::read_to_string(&mut std::io::Read::take(first.stdout.as_mut().unwrap(), 20), &mut told).unwrap();
    assert!(told.starts_with("waiting for the queu"), "{told}");
    let output = run(&panzer, &["scale", "--", "-1"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    assert!(text(&output.stderr).contains("at least one worker is kept"), "{}", text(&output.stderr));
    assert!(first.wait().unwrap().success());
    wait_workers(&panzer, 1);
    drop(waiting);
    assert_eq!(panzer.stop().code(), Some(0));
}

/// Who answers, of many that ask.
fn answering(port: u16, requests: usize) -> Vec<String> {
    let mut all: Vec<String> = (0..requests).map(|_| get(port, "/").unwrap().text()).collect();
    all.sort();
    all.dedup();
    all
}

fn named(workers: impl IntoIterator<Item = u32>) -> Vec<String> {
    workers.into_iter().map(|worker| format!("worker {worker}")).collect()
}

#[test]
fn up_and_down_under_load_nothing_is_lost() {
    let port = free_port();
    let panzer = slow(port, 4).start();
    panzer.wait_serving();
    let load = BothKinds::start(port);
    for count in [2, 5, 1, 4] {
        done(&panzer, &["scale", &count.to_string()]);
        wait_workers(&panzer, count);
    }
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    wait_workers(&panzer, 4);
    done(&panzer, &["quiet"]);
    wait_workers(&panzer, 0);
    done(&panzer, &["scale", "3"]);
    wait_workers(&panzer, 3);
    let by_then = load.answered();
    eventually(START, "the load is answered", || load.answered() > by_then + 10);
    let seen = load.stop();
    seen.print("a queue for each worker: scaled up and down");
    assert_eq!(seen.dropped(), 0);
    assert_eq!(answering(port, 60), named(0..3));
    assert_eq!(panzer.stop().code(), Some(0));
}

/// Slot by slot, so that no queue is without a worker.
#[test]
fn a_reload_by_shares_leaves_no_queue_alone() {
    let port = free_port();
    let panzer = slow(port, 3).args(["--name", "app"]).env("PANZER_SURGE", "1").start();
    panzer.wait_serving();
    let load = BothKinds::start(port);
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    wait_workers(&panzer, 3);
    let seen = load.stop();
    seen.print("a queue for each worker: reloaded one by one");
    assert_eq!(seen.dropped(), 0);
    assert_eq!(panzer.stop().code(), Some(0));
}

/// Its queue is never emptied. That is waited for, and said.
#[test]
fn a_worker_that_takes_nothing_holds_nobody_up_for_ever() {
    let port = free_port();
    let panzer = slow(port, 2).env("PANZER_STOP", "TERM/1s/KILL").start();
    panzer.wait_serving();
    let hung = panzer.workers()[1];
    panzer.allow_line("is stopped by SIGSTOP: ");
    // SIGSTOP hits a worker of this panzer, by its pid.
    kill(Pid::from_raw(hung), Signal::SIGSTOP).unwrap();
    let address = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, port));
    let waiting: Vec<_> = (0..20).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
    done(&panzer, &["scale", "1"]);
    panzer.allow_line("what waits in the queues of workers from 1 on is not taken; they are stopped all the same");
    panzer.allow_line("worker 1 (pid *) has not stopped yet; sent it SIGKILL");
    wait_workers(&panzer, 1);
    drop(waiting);
    eventually(SOON, "the first one answers whatever comes", || answering(port, 20) == named(0..1));
    assert_eq!(panzer.stop().code(), Some(0));
}

/// Slots that have no worker any more while later ones have get nothing, however many there are meanwhile.
#[test]
fn what_is_new_goes_around_a_slot_that_has_ended_for_good() {
    let port = free_port();
    let panzer = slow(port, 4).env("PANZER_FINAL_EXIT_CODES", "9").start();
    panzer.wait_serving();
    for gone in [&[1][..], &[0, 1]] {
        let slot = gone[0];
        panzer.expect_line(&format!("warning: worker {slot} * exited with code 9, which is final"));
        let mark = panzer.mark();
        std::fs::write(panzer.path(&format!("end-{slot}")), "").unwrap();
        panzer.wait_for_line_after(mark, "exited with code 9, which is final", SOON);
        // It is the monitor who said so: by the time it has told how things stand, main knows as well.
        panzer.status();
        eventually(SOON, "the others answer", || {
            answering(port, 60) == named((0..4).filter(|other| !gone.contains(other)))
        });
    }
    let load = BothKinds::start(port);
    done(&panzer, &["scale", "6"]);
    eventually(SOON, "those that have joined answer as well", || answering(port, 90) == named(2..6));
    done(&panzer, &["scale", "3"]);
    eventually(SOON, "one is left", || answering(port, 30) == named([2]));
    done(&panzer, &["restart"]);
    assert_eq!(answering(port, 30), named([2]));
    done(&panzer, &["reload", "--drained"]);
    eventually(SOON, "all answer again", || answering(port, 60) == named(0..3));
    let seen = load.stop();
    seen.print("around slots that have ended for good");
    assert_eq!(seen.dropped(), 0);
    assert_eq!(panzer.stop().code(), Some(0));
}

/// A listener that listens again is the last of its group to the kernel.
#[test]
fn after_queues_were_shut_down_what_is_new_goes_where_there_are_workers() {
    let port = free_port();
    let panzer = slow(port, 4).start();
    panzer.wait_serving();
    for slot in [1, 0, 2] {
        let told = format!("shut down 127.0.0.1:{port} (the queue of worker {slot}); it listens again");
        panzer.expect_line(&told);
        let is_spoilt = || {
            // Whoever waits in that queue loses its connection.
            let _ = get(port, &format!("/spoil-{slot}"));
            panzer.lines().iter().any(|line| line.contains(&told))
        };
        eventually(SOON, "the worker gets the request", is_spoilt);
        done(&panzer, &["restart"]);
    }
    let load = BothKinds::start(port);
    for count in [2, 4, 1, 3] {
        done(&panzer, &["scale", &count.to_string()]);
        wait_workers(&panzer, count);
        eventually(SOON, "all of them answer, and no other", || answering(port, 20 * count) == named(0..count as u32));
    }
    let seen = load.stop();
    seen.print("after three of four were shut down");
    assert_eq!(seen.dropped(), 0);
    assert_eq!(panzer.stop().code(), Some(0));
}
