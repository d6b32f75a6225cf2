//! Sockets that panzer itself is started with: from systemd, systemfd, or whoever else sets `LISTEN_FDS`.

use std::collections::BTreeMap;
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use crate::faults::{SOON, assert_answers, server};
use crate::load::{Load, Mode};
use crate::support::{Address, Builder, Panzer, free_port, get, require};

/// Opens what `SOCKETS` says, each as NAME=KIND:ADDRESS, puts it from descriptor 3 on, and becomes what follows.
const OPENER: &str = "#!/usr/bin/env python3
import fcntl, os, socket, sys
names, descriptors, keep = [], [], []
for text in os.environ.pop('SOCKETS').split():
    name, _, rest = text.partition('=')
    kind, _, address = rest.partition(':')
    if kind == 'file':
        descriptor = os.open(address, os.O_RDONLY)
    else:
        family = socket.AF_UNIX if kind == 'unix' else socket.AF_INET
        here = socket.socket(family, socket.SOCK_DGRAM if kind == 'udp' else socket.SOCK_STREAM)
        here.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        host, _, port = address.rpartition(':')
        here.bind(address if kind == 'unix' else (host, int(port)))
        if kind in ('tcp', 'unix'):
            here.listen(100)
        keep.append(here)
        descriptor = here.fileno()
    descriptors.append(fcntl.fcntl(descriptor, fcntl.F_DUPFD, 100))
    names.append(name)
for place, descriptor in enumerate(descriptors, 3):
    os.dup2(descriptor, place)
os.environ['LISTEN_FDS'] = str(len(descriptors))
os.environ['LISTEN_FDNAMES'] = ':'.join(names)
pid = os.environ.setdefault('LISTEN_PID', str(os.getpid()))
# Before Linux 6.9 it tells nothing, and is not looked at.
os.environ.setdefault('LISTEN_PIDFDID', str(os.fstat(os.pidfd_open(os.getpid())).st_ino))
if pid == 'none':
    del os.environ['LISTEN_PID']
os.execv(sys.argv[1], sys.argv[1:])
";

/// A panzer that is started with these sockets, and in whose folder `app` serves on the first listener.
fn opened(sockets: &str) -> Builder {
    let builder = Panzer::builder().executable("open", OPENER).executable("app", &server("inherited"));
    builder.through("open").env("SOCKETS", sockets).args(["-w", "2", "--bake", "100ms"])
}

/// The environment of a worker.
fn variables(panzer: &Panzer) -> BTreeMap<String, String> {
    let environment = fs::read(format!("/proc/{}/environ", panzer.workers()[0])).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    let pairs = environment.split('\0').filter_map(|entry| entry.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Its workers have listeners of these names, and no other descriptor.
#[track_caller]
fn assert_listeners(panzer: &Panzer, names: &str) {
    let variables = variables(panzer);
    let count = names.split(':').count();
    assert_eq!(variables["LISTEN_FDS"], count.to_string());
    assert_eq!(variables["LISTEN_FDNAMES"], names);
    let descriptors = fs::read_dir(format!("/proc/{}/fd", panzer.workers()[0])).unwrap().flatten();
    let sockets = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
    let sockets = sockets.filter(|target| target.to_string_lossy().starts_with("socket:")).count();
    assert_eq!(sockets, count);
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

#[test]
fn what_panzer_is_started_with_is_passed_on_without_any_option() {
    let (web, admin) = (free_port(), free_port());
    let sockets = format!("app=tcp:127.0.0.1:{web} app=tcp:127.0.0.1:{admin} dns=udp:127.0.0.1:{web}");
    let panzer = opened(&sockets).args(["--env", "FD={fd} {fd:app} {fd:dns}", "./app"]).start();
    panzer.wait_serving();
    let listening = format!("listening on 127.0.0.1:{web} (inherited), 127.0.0.1:{admin} (inherited), udp:127");
    panzer.wait_for_line(&listening, SOON);
    assert_answers(web, "inherited");
    assert_listeners(&panzer, "app:app:dns");
    assert_eq!(variables(&panzer)["FD"], "3 3 5");
    assert!(!is_free(admin), "main holds them all");
    assert!(UdpSocket::bind(("127.0.0.1", web)).is_err());
    let status = fs::read_to_string(format!("/proc/{}/status", panzer.workers()[0])).unwrap();
    assert!(status.contains("\nSeccomp:\t0\n"), "as with --listen, no port is shared: {status}");
    panzer.stop();
    assert!(is_free(web) && is_free(admin));
}

#[test]
fn a_listen_takes_the_socket_of_its_address_or_else_of_its_name() {
    let (by_address, by_name, elsewhere, own) = (free_port(), free_port(), free_port(), free_port());
    let sockets = format!("web=tcp:127.0.0.1:{by_name} more=tcp:127.0.0.1:0 all=tcp:0.0.0.0:{by_address}");
    let panzer = opened(&sockets)
        .args(["-l", &by_address.to_string(), "-l", &format!("web=127.0.0.1:{elsewhere},nonblock")])
        .args(["-l", &format!("own=127.0.0.1:{own}"), "./app"])
        .start();
    panzer.wait_serving();
    assert_listeners(&panzer, "all:web:own:more");
    assert_answers(by_address, "inherited");
    assert!(!is_free(by_name) && !is_free(own));
    assert!(is_free(elsewhere), "systemd says where a socket of that name is");
    let flags = |number: i32| {
        let info = fs::read_to_string(format!("/proc/{}/fdinfo/{number}", panzer.pid())).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim().to_owned();
        i32::from_str_radix(&flags, 8).unwrap()
    };
    // They lie in main where they came: web first, then all the others.
    assert_ne!(flags(3) & nix::libc::O_NONBLOCK, 0, "what was asked for is added");
    assert_eq!(flags(5) & nix::libc::O_NONBLOCK, 0);
    assert_ne!(flags(3) & nix::libc::O_CLOEXEC, 0);
    panzer.stop();
}

#[test]
fn the_path_of_a_unix_socket_stays_after_the_stop() {
    let holder = Panzer::builder();
    let path = holder.folder().join("app.sock");
    let builder = opened(&format!("app=unix:{}", path.display()));
    let panzer = builder.args(["-l", &format!("unix:{},mode=0600", path.display()), "./app"]).start();
    panzer.expect_line("warning: unix:* is inherited, so its mode, owner and group stay as they are");
    panzer.wait_serving();
    assert_eq!(get(Address::Unix(path.clone()), "/").unwrap().text(), "inherited");
    panzer.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(panzer.wait_exit().code(), Some(0));
    assert!(path.exists(), "who made it removes it");
}

#[test]
fn a_unix_listener_is_guarded_as_far_as_it_can_be() {
    if !require("python3") {
        return;
    }
    let holder = Panzer::builder();
    let path = holder.folder().join("app.sock");
    let builder = opened(&format!("app=unix:{}", path.display())).executable("spoiler", crate::unix_guard::SERVER);
    let panzer = builder.args(["--ready", "alive", "./spoiler"]).start();
    panzer.wait_serving();
    crate::unix_guard::is_spoilt(&panzer, "listen");
    assert!(crate::control::run(&panzer, &["restart"]).status.success());
    assert_eq!(crate::guard::queue(&panzer), Some(100), "a restart in place puts it right");
    crate::unix_guard::is_spoilt(&panzer, "listen");
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    assert_eq!(crate::guard::queue(&panzer), Some(100));
    let said = "error: a worker of generation 2 shut down a listener: unix:*, which panzer was started with, accepts no \
                more; restart what made it, such as the systemd socket unit, and panzer";
    panzer.expect_line(said);
    crate::unix_guard::is_spoilt(&panzer, "shutdown");
    panzer.wait_for_line(said, SOON);
    assert_eq!(panzer.stop().code(), Some(0));
    assert!(path.exists(), "who made it removes it");
}

#[test]
fn sockets_without_a_pid_are_taken_and_those_for_another_process_are_not() {
    for (pid, taken) in [("none", true), ("1", false), ("nobody", false)] {
        let (given, own) = (free_port(), free_port());
        let panzer = opened(&format!("given=tcp:127.0.0.1:{given}"))
            .env("LISTEN_PID", pid)
            .args(["-l", &format!("own=127.0.0.1:{own}"), "./app"])
            .start();
        panzer.wait_serving();
        assert_listeners(&panzer, if taken { "own:given" } else { "own" });
        assert_eq!(is_free(given), !taken, "LISTEN_PID={pid}");
        assert_answers(own, "inherited");
        panzer.stop();
    }
}

#[test]
fn sockets_for_another_life_of_the_same_pid_are_not_taken() {
    let (given, own) = (free_port(), free_port());
    let panzer = opened(&format!("given=tcp:127.0.0.1:{given}"))
        .env("LISTEN_PIDFDID", "1")
        .args(["-l", &format!("own=127.0.0.1:{own}"), "./app"])
        .start();
    panzer.wait_serving();
    // Before Linux 6.9 nobody can tell.
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|part| part.parse::<u32>().unwrap_or_default());
    let can_tell = (numbers.next(), numbers.next()) >= (Some(6), Some(9));
    assert_listeners(&panzer, if can_tell { "own" } else { "own:given" });
    panzer.stop();
}

#[test]
fn what_is_no_listener_is_an_error() {
    let port = free_port();
    for (sockets, why) in [
        ("x=file:/dev/null".to_owned(), "LISTEN_FDS=1, but descriptor 3 is not a socket; correct"),
        (format!("a=udp:127.0.0.1:{port} b=bound:127.0.0.1:{port}"), "descriptor 4 is a socket that does not listen"),
    ] {
        let panzer = opened(&sockets).arg("./app").start();
        panzer.expect_line(&format!("panzer: *{why}"));
        assert_eq!(panzer.wait_exit().code(), Some(125));
    }
    for (count, why) in
        [("1", "descriptor 3 is not open"), ("-1", "not a number from 0 to"), ("9999", "not a number from 0")]
    {
        let panzer = Panzer::builder().env("LISTEN_FDS", count).args(["--", "sleep", "1000"]).start();
        panzer.expect_line(&format!("panzer: LISTEN_FDS={count}*{why}"));
        assert_eq!(panzer.wait_exit().code(), Some(125));
    }
}

#[test]
fn reloads_under_load_lose_nothing_on_an_inherited_listener() {
    let port = free_port();
    let panzer = opened(&format!("web=tcp:127.0.0.1:{port}")).link("examples/my_app").arg("./my_app").start();
    panzer.wait_serving();
    let load = Load::new(port, Mode::NewConnection, 2).pause(Duration::from_millis(2)).start();
    for generation in 2..5 {
        assert_eq!(panzer.reload_and_wait(), Ok(generation));
    }
    panzer.wait_drained(3);
    let report = load.stop();
    assert!(report.answered > 0);
    assert_eq!(report.dropped(), 0);
    panzer.stop();
}

#[test]
fn systemd_starts_it_on_the_first_connection() {
    if !require("systemd-socket-activate") {
        return;
    }
    let port = free_port();
    let activate = format!(
        "#!/bin/sh\nexec systemd-socket-activate -l 127.0.0.1:{port} --fdname=web -E RUNTIME_DIRECTORY -E PWD \"$@\"\n"
    );
    let builder = Panzer::builder().executable("activate", &activate).through("activate");
    let panzer = builder.executable("app", &server("activated")).args(["-w", "2", "./app", "--", "{fd:web}"]).start();
    for line in ["Listening on 127.0.0.1:", "Communication attempt on fd 3", "Execing "] {
        panzer.expect_line(line);
    }
    panzer.wait_for_line("Listening on 127.0.0.1:", SOON);
    assert_answers(port, "activated");
    panzer.wait_serving();
    assert_listeners(&panzer, "web");
    panzer.stop();
}
