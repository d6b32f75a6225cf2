//! 56, 57: addresses that are free, taken, stale, or nobody's.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;

use super::{assert_answers, server, serving_app};
use crate::support::{Address, Panzer, free_port, get};

#[test]
fn a_port_alone_is_both_families() {
    let port = free_port();
    let panzer = Panzer::builder().executable("app", &server("both")).args(["-w", "1", "--bake", "100ms", "./app"]);
    let panzer = panzer.args(["--listen", &port.to_string()]).start();
    panzer.wait_serving();
    assert_answers(port, "both");
    assert_eq!(get(Address::Tcp(([0, 0, 0, 0, 0, 0, 0, 1], port).into()), "/").unwrap().text(), "both");
    panzer.stop();
}

#[test]
fn an_address_in_use_names_who_has_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let panzer = serving_app(taken.local_addr().unwrap().port(), 1).start();
    panzer
        .expect_line(&format!("error: cannot listen on 127.0.0.1:* in use by * (pid {}); stop it", std::process::id()));
    assert_eq!(panzer.wait_exit().code(), Some(125));
}

#[test]
fn if_one_of_several_is_in_use_none_is_kept() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let path_holder = Panzer::builder();
    let path = path_holder.folder().join("a.sock");
    let panzer = serving_app(taken.local_addr().unwrap().port(), 1);
    let panzer = panzer.args(["-l", &format!("unix:{}", path.display())]);
    let panzer = panzer.start();
    panzer.expect_line("error: cannot listen on 127.0.0.1:");
    assert_eq!(panzer.wait_exit().code(), Some(125));
    assert!(!path.exists());
}

#[test]
fn one_address_twice_is_refused_as_that() {
    let port = crate::support::free_port();
    let again = Panzer::start(["-l", &format!("127.0.0.1:{port}"), "-l", &format!("{port}"), "--", "sleep", "1000"]);
    again.expect_line(&format!(
        "error: cannot listen on port {port}: another --listen of this panzer covers that address already"
    ));
    assert_eq!(again.wait_exit().code(), Some(125));
}

#[test]
fn a_unix_path_is_made_replaced_and_removed() {
    let builder = Panzer::builder().executable("app", &server("unix")).args(["-w", "1", "--bake", "100ms", "./app"]);
    let path = builder.folder().join("app.sock");
    // Left by a process that has died.
    drop(UnixListener::bind(&path).unwrap());
    let panzer = builder.args(["-l", &format!("unix:{}", path.display())]).start();
    panzer.wait_serving();
    assert_eq!(get(Address::Unix(path.clone()), "/").unwrap().text(), "unix");
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    assert_eq!(get(Address::Unix(path.clone()), "/").unwrap().text(), "unix");
    panzer.signal(nix::sys::signal::Signal::SIGTERM);
    panzer.wait_for_line("stopping gracefully", super::SOON);
    crate::support::eventually(super::SOON, "the path is removed", || !path.exists());
    panzer.wait_exit();
}

#[test]
fn a_unix_path_that_lives_or_is_a_file_is_refused_and_left_alone() {
    let holder = Panzer::builder();
    let (live, file) = (holder.folder().join("live.sock"), holder.folder().join("file"));
    let _listener = UnixListener::bind(&live).unwrap();
    fs::write(&file, "precious").unwrap();
    for (path, why) in [(&live, "in use by"), (&file, "a file that is not a socket is in its place; remove it")] {
        let panzer = Panzer::start(["-l", &format!("unix:{}", path.display()), "--", "sleep", "1000"]);
        panzer.expect_line(&format!("error: cannot listen on unix:*{why}"));
        assert_eq!(panzer.wait_exit().code(), Some(125));
    }
    assert!(live.exists());
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn a_unix_path_has_the_mode_and_the_group_that_were_asked_for() {
    let builder = Panzer::builder().executable("app", &server("unix")).args(["-w", "1", "--bake", "100ms", "./app"]);
    let (ours, usual) = (builder.folder().join("ours.sock"), builder.folder().join("usual.sock"));
    let group = nix::unistd::getegid();
    let panzer = builder
        .args(["-l", &format!("unix:{},mode=0660,group={group}", ours.display())])
        .args(["-l", &format!("unix:{}", usual.display())])
        .start();
    panzer.wait_serving();
    let of = |path| fs::symlink_metadata(path).unwrap();
    assert_eq!(of(&ours).mode() & 0o7777, 0o660);
    assert_eq!(of(&ours).gid(), group.as_raw());
    assert_eq!(of(&usual).mode() & 0o022, 0, "as panzer's own umask has it");
    assert_ne!(of(&usual).mode() & 0o700, 0);
    assert_eq!(get(Address::Unix(ours), "/").unwrap().text(), "unix");
    panzer.stop();
}

#[test]
fn a_symlink_in_the_place_of_a_unix_path_is_not_followed() {
    let builder = Panzer::builder();
    let (link, target) = (builder.folder().join("link.sock"), builder.folder().join("target.sock"));
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let panzer = builder.args(["-l", &format!("unix:{},mode=0666", link.display()), "--", "sleep", "1000"]).start();
    panzer.expect_line("error: cannot listen on unix:*a file that is not a socket is in its place; remove it");
    assert!(!target.exists());
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(panzer.wait_exit().code(), Some(125));
}

#[test]
fn datagrams_wait_in_the_socket_that_main_holds_beside_a_listener_of_the_same_port() {
    let port = free_port();
    let panzer = Panzer::builder()
        .executable("app", ECHO)
        .args(["-w", "1", "--ready", "alive", "--bake", "100ms", "./app"])
        .args(["-l", &format!("udp:127.0.0.1:{port}"), "-l", &format!("127.0.0.1:{port}")])
        .start();
    panzer.expect_line("warning: worker 0 * was killed by SIGKILL; respawning it");
    panzer.wait_serving();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(super::SOON)).unwrap();
    client.connect(("127.0.0.1", port)).unwrap();
    let ask = |text: &[u8]| {
        client.send(text).unwrap();
        let mut answer = [0; 16];
        let length = client.recv(&mut answer).unwrap();
        answer[..length].to_vec()
    };
    assert_eq!(ask(b"one"), b"one");
    let before = panzer.workers();
    super::kill_9(before[0]);
    super::wait_gone(&before);
    // Nobody is there, and it is not lost.
    assert_eq!(ask(b"two"), b"two");
    panzer.stop();
}

#[test]
fn a_port_for_datagrams_in_use_names_who_has_it() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let panzer = Panzer::start(["-l", &format!("udp:{}", taken.local_addr().unwrap()), "--", "sleep", "1000"]);
    panzer.expect_line(&format!(
        "error: cannot listen on udp:127.0.0.1:* in use by * (pid {}); stop",
        std::process::id()
    ));
    assert_eq!(panzer.wait_exit().code(), Some(125));
}

const ECHO: &str = "#!/usr/bin/env python3
import socket
here = socket.socket(fileno=3)
while True:
    text, client = here.recvfrom(100)
    here.sendto(text, client)
";
