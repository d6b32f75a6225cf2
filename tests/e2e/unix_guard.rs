//! A worker that spoils a unix listener that it shares with all others: the service goes on.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::load::http::Address;
use crate::load::{Load, Mode};
use crate::support::{Builder, Panzer, eventually, get, require};

const SOON: Duration = Duration::from_secs(20);

/// Worker 0 shuts its listener down, or cuts its queue, when it is told so by a file; as long as there is the file
/// `evil` each shuts it down as it starts, and as long as there is `hold` nothing is accepted.
pub(crate) const SERVER: &str = r#"#!/usr/bin/env python3
import os, socket, threading, time
listener = socket.socket(fileno=3)
listener.settimeout(0.02)
def spoil():
    if os.path.exists("evil"): listener.shutdown(socket.SHUT_RDWR)
    while os.environ["PANZER_WORKER_ID"] == "0":
        for deed in ("shutdown", "listen"):
            if os.path.exists(deed):
                os.unlink(deed)
                listener.listen(1) if deed == "listen" else listener.shutdown(socket.SHUT_RDWR)
                os.close(os.open(deed + "-done", os.O_CREAT))
        time.sleep(0.005)
threading.Thread(target=spoil, daemon=True).start()
while True:
    if os.path.exists("hold"):
        time.sleep(0.01)
        continue
    try:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(5)
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
    except OSError:
        time.sleep(0.001)
"#;

fn server(options: &[&str], listen: &str) -> (Builder, PathBuf) {
    let builder = Panzer::builder().executable("server", SERVER);
    let path = builder.folder().join("app.sock");
    let listen = format!("unix:{}{listen}", path.display());
    let builder = builder.args(["-w", "2", "--bake", "100ms", "--ready", "alive", "--timeout", "5s", "-l", &listen]);
    (builder.args(options).args(["--", "./server"]), path)
}

pub(crate) fn is_spoilt(panzer: &Panzer, deed: &str) {
    std::fs::write(panzer.path(deed), "").unwrap();
    eventually(SOON, "the worker has done it", || panzer.path(&format!("{deed}-done")).exists());
}

fn answers(path: &Path) -> bool {
    get(Address::from(path), "/").is_ok()
}

#[test]
fn after_a_shutdown_a_new_generation_serves_on_the_same_path() {
    if !require("python3") {
        return;
    }
    let (builder, path) = server(&[], ",mode=0640");
    let panzer = builder.start();
    panzer.wait_serving();
    eventually(SOON, "it answers", || answers(&path));
    let load = Load::new(&*path, Mode::NewConnection, 3).pause(Duration::from_millis(2)).start();
    eventually(SOON, "the load is there", || load.answered() > 50);
    let told = format!("a worker of generation 1 shut down unix:{}; it is bound anew", path.display());
    panzer.expect_line(&told);
    is_spoilt(&panzer, "shutdown");
    let done = Instant::now();
    eventually(SOON, "it answers again", || answers(&path));
    eprintln!("it answers again after {:?}", done.elapsed());
    let answered = load.answered();
    eventually(SOON, "the load goes on", || load.answered() > answered + 100);
    eprintln!("{}", load.stop());
    panzer.wait_for_line("reload done: generation 2 serves", SOON);
    panzer.wait_drained(1);
    let load = Load::new(&*path, Mode::NewConnection, 3).start();
    eventually(SOON, "the load is there", || load.answered() > 200);
    let report = load.stop();
    assert_eq!(report.dropped(), 0, "{report}");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    let lines = panzer.lines();
    assert_eq!(lines.iter().filter(|line| line.contains(&told)).count(), 1, "{lines:#?}");
    assert!(!lines.iter().any(|line| line.contains("generation 3")), "{lines:#?}");
    assert_eq!(panzer.stop().code(), Some(0));
    assert!(!path.exists());
}

/// Removes the path when it ends, as asyncio's servers do.
const REMOVES: &str = r#"#!/usr/bin/env python3
import os, signal, socket
listener = socket.socket(fileno=3)
def end(*_):
    try: os.unlink(listener.getsockname())
    except FileNotFoundError: pass
    os._exit(0)
signal.signal(signal.SIGTERM, end)
while True:
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(5)
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
"#;

#[test]
fn a_path_that_is_removed_is_put_back() {
    if !require("python3") {
        return;
    }
    let (builder, path) = server(&[], ",mode=0640");
    let panzer = builder.executable("server", REMOVES).start();
    panzer.wait_serving();
    let told = format!("warning: unix:{} was removed, as some programs do when they end; it is back", path.display());
    panzer.expect_line(&told);
    let is_back = || {
        let mode = || std::fs::metadata(&path).map(|found| found.permissions().mode() & 0o777).unwrap_or_default();
        eventually(SOON, "it answers", || answers(&path) && mode() == 0o640);
    };
    // By an operator; by the workers of the old generation, in each reload; and after a restart in place.
    for generation in 2..5 {
        std::fs::remove_file(&path).unwrap();
        is_back();
        assert_eq!(panzer.reload_and_wait(), Ok(generation));
        panzer.wait_drained(generation - 1);
        is_back();
    }
    assert_eq!(panzer.lines().iter().filter(|line| line.contains("was removed")).count(), 1);
    assert!(crate::control::run(&panzer, &["restart"]).status.success());
    std::fs::remove_file(&path).unwrap();
    is_back();
    // What somebody has put there is left alone.
    let _other = std::os::unix::net::UnixListener::bind(panzer.path("other")).unwrap();
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
    let others = inode(&panzer.path("other"));
    std::fs::rename(panzer.path("other"), &path).unwrap();
    assert!(crate::control::run(&panzer, &["restart"]).status.success());
    assert_eq!(inode(&path), others);
    assert_eq!(panzer.stop().code(), Some(0));
    assert!(!path.with_file_name(".app.sock.panzer").exists());
}

#[test]
fn a_release_that_shuts_its_listener_down_each_time_is_started_less_and_less_often() {
    if !require("python3") {
        return;
    }
    let (builder, path) = server(&["--delay", "200ms"], "");
    let panzer = builder.file("evil", "").start();
    for line in ["it is bound anew", "cannot accept on a listener that was bound anew; starting another in "] {
        panzer.expect_line(line);
    }
    panzer.allow_line("error: reload failed: generation * a listener was shut down meanwhile");
    let times = || panzer.lines().iter().filter(|line| line.contains("it is bound anew")).count();
    eventually(SOON, "it is bound anew", || times() > 0);
    let first = Instant::now();
    eventually(SOON, "it is again and again", || times() >= 6);
    // The second follows at once; before each of the others there is a wait, twice as long as the one before.
    let took = first.elapsed();
    eprintln!("six times within {took:?}");
    assert!(took >= Duration::from_millis(160 + 320 + 640), "{took:?}");
    std::fs::remove_file(panzer.path("evil")).unwrap();
    eventually(SOON, "it answers", || answers(&path));
    assert_eq!(panzer.stop().code(), Some(0));
    assert!(!path.exists());
}

#[test]
fn a_path_that_somebody_has_taken_is_bound_anew_once_it_is_given_back() {
    if !require("python3") {
        return;
    }
    let (builder, path) = server(&[], "");
    let panzer = builder.start();
    panzer.wait_serving();
    // At once, or panzer may put its own back in between.
    let theirs = panzer.path("theirs.sock");
    let other = std::os::unix::net::UnixListener::bind(&theirs).unwrap();
    std::fs::rename(&theirs, &path).unwrap();
    let refused = "error: a worker of generation 1 shut down a listener: cannot listen on unix:*; trying again";
    panzer.expect_line(refused);
    panzer.expect_line("it is bound anew");
    is_spoilt(&panzer, "shutdown");
    panzer.wait_for_line(refused, SOON);
    drop(other);
    eventually(SOON, "it answers", || answers(&path));
    assert_eq!(panzer.stop().code(), Some(0));
    assert!(!path.exists());
}

#[test]
fn an_abstract_name_cannot_be_bound_anew_and_that_is_said_once() {
    if !require("python3") {
        return;
    }
    let builder = Panzer::builder().executable("server", SERVER);
    let name = format!("unix:@panzer-e2e-guard-{}", std::process::id());
    let panzer = builder.args(["-w", "2", "--ready", "alive", "-l", &name, "--", "./server"]).start();
    panzer.wait_serving();
    let said =
        "error: a worker of generation 1 shut down a listener: unix:@* accepts no more until panzer is restarted";
    panzer.expect_line(said);
    is_spoilt(&panzer, "shutdown");
    panzer.wait_for_line(said, SOON);
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    assert_eq!(panzer.lines().iter().filter(|line| line.contains("accepts no more")).count(), 1);
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn a_queue_of_a_unix_listener_that_a_worker_cut_gets_its_length_back() {
    if !require("python3") {
        return;
    }
    let (builder, path) = server(&[], ",backlog=64");
    let panzer = builder.start();
    panzer.wait_serving();
    is_spoilt(&panzer, "listen");
    let queue = || crate::guard::queue(&panzer);
    assert!(crate::control::run(&panzer, &["restart"]).status.success());
    assert_eq!(queue(), Some(64), "a restart in place puts it right");
    is_spoilt(&panzer, "listen");
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    std::fs::write(panzer.path("hold"), "").unwrap();
    // Nobody accepts any more once those that were waited for are through; so all but a few of these wait.
    let address = nix::sys::socket::UnixAddr::new(&path).unwrap();
    let waiting: Vec<_> = (0..32).map(|_| connected_at_once(&address)).collect();
    assert!(waiting.iter().all(Result::is_ok), "{waiting:?}");
    std::fs::remove_file(panzer.path("hold")).unwrap();
    drop(waiting);
    eventually(SOON, "it answers", || answers(&path));
    panzer.stop();
}

/// A connection that did not have to wait for a place in the queue.
fn connected_at_once(address: &nix::sys::socket::UnixAddr) -> nix::Result<std::os::fd::OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, connect, socket};
    let client = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?;
    connect(std::os::fd::AsRawFd::as_raw_fd(&client), address)?;
    Ok(client)
}

#[test]
fn a_release_that_fails_leaves_the_access_of_a_unix_path_as_it_was() {
    let (builder, path) = server(&[], ",mode=0660");
    let spoiler = "#!/bin/sh\n[ $PANZER_GENERATION = 1 ] && exec ./real\nchmod 0 app.sock\nexit 3\n";
    let panzer = builder.executable("real", SERVER).executable("server", spoiler).start();
    panzer.wait_serving();
    // By then the workers have set what they set.
    eventually(SOON, "it answers", || answers(&path));
    let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o660);
    panzer.expect_line("generation 2, which failed, had changed mode or owner of unix:*app.sock; as before again");
    panzer.expect_line("reload failed: generation 2: worker * exited with code 3");
    assert!(panzer.reload_and_wait().is_err());
    eventually(SOON, "the failed one is gone", || panzer.status().generations.len() == 1);
    eventually(SOON, "the mode is back", || mode() == 0o660);
    eventually(SOON, "it answers", || answers(&path));
    panzer.stop();
}
