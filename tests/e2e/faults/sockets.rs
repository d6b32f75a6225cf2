//! 56, 57: addresses that are free, taken, stale, or nobody's.

use std::fs;
use std::net::TcpListener;
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
    for (path, why) in [(&live, "in use by"), (&file, "a file that is no socket is in its place; remove it")] {
        let panzer = Panzer::start(["-l", &format!("unix:{}", path.display()), "--", "sleep", "1000"]);
        panzer.expect_line(&format!("error: cannot listen on unix:*{why}"));
        assert_eq!(panzer.wait_exit().code(), Some(125));
    }
    assert!(live.exists());
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}
