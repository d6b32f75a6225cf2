//! What `--listen` takes: names of hosts, free ports, and what is refused because it would mean something else.

use std::collections::BTreeMap;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::control::run;
use crate::support::{Builder, Panzer, eventually, eventually_some, free_port, require};

const SOON: Duration = Duration::from_secs(20);

/// Answers each connection on all its listeners with its arguments and its environment, and takes its time to end.
const TELLER: &str = r#"#!/usr/bin/env python3
import json, os, selectors, socket, sys
look = selectors.DefaultSelector()
for number in range(int(os.environ["LISTEN_FDS"])):
    listener = socket.socket(fileno=3 + number)
    listener.setblocking(False)
    look.register(listener, selectors.EVENT_READ)
while True:
    for key, _ in look.select():
        try:
            connection, peer = key.fileobj.accept()
        except BlockingIOError:
            continue  # Another worker was faster.
        connection.sendall(json.dumps(dict(os.environ, ARGS=" ".join(sys.argv[1:]), PEER=peer[0])).encode())
        connection.close()
"#;

fn teller(options: &[&str], arguments: &[&str]) -> Builder {
    let builder = Panzer::builder().executable("teller", TELLER).args(["-w", "1", "--bake", "100ms"]).args(options);
    builder.args(["--", "./teller"]).args(arguments)
}

/// What a worker tells who connects there.
fn told(address: &str) -> Option<BTreeMap<String, String>> {
    serde_json::from_reader(TcpStream::connect(address).ok()?).ok()
}

/// Binds a path and does not listen, in a network namespace of its own if it may.
const BINDER: &str = r#"#!/usr/bin/env python3
import ctypes, os, socket, sys, time
if sys.argv[2] == "elsewhere" and ctypes.CDLL(None).unshare(0x40000000): sys.exit(77)
os.chdir(os.path.dirname(sys.argv[1]))
listener = socket.socket(socket.AF_UNIX)
listener.bind(os.path.basename(sys.argv[1]))
os.close(os.open("bound", os.O_CREAT))
time.sleep(1000)
"#;

#[test]
fn a_path_that_somebody_has_bound_and_does_not_listen_on_yet_is_his() {
    if !require("python3") {
        return;
    }
    for place in ["here", "elsewhere"] {
        let place_of_it = Panzer::builder().executable("binder", BINDER);
        let (path, bound) = (place_of_it.folder().join("app.sock"), place_of_it.folder().join("bound"));
        let binder = std::process::Command::new(place_of_it.folder().join("binder")).arg(&path).arg(place).spawn();
        let mut binder = binder.unwrap();
        if !eventually_some(SOON, "it is bound, or cannot be", || {
            bound.exists().then_some(true).or(binder.try_wait().unwrap().map(|_| false))
        }) {
            continue;
        }
        let listen = format!("unix:{}", path.display());
        refused(Panzer::builder().args(["-l", &listen, "./x"]), 125, "app.sock: in use by ");
        let control = path.display().to_string();
        refused(
            Panzer::builder().args(["--control", &control, "./x"]),
            125,
            "the control socket *app.sock belongs to ",
        );
        assert!(path.exists());
        binder.kill().unwrap();
        binder.wait().unwrap();
    }
}

/// Starts panzer, which must end with this code, having said this.
#[track_caller]
fn refused(builder: Builder, code: i32, said: &str) {
    let panzer = builder.start();
    panzer.expect_line(said);
    ["  |", "1 | ", "3 | "].iter().for_each(|line| panzer.allow_line(line));
    panzer.wait_for_end();
    assert_eq!(panzer.wait_exit().code(), Some(code));
}

/// Binds a socket for datagrams, one that nobody listens on, one that is named after its process, and its own.
const OWN_PATH: &str = r#"#!/usr/bin/env python3
import os, signal, socket, sys
sockets = []
for name, kind in (("datagrams", socket.SOCK_DGRAM), ("lock", socket.SOCK_STREAM), (f"mine-{os.getpid()}", socket.SOCK_STREAM)):
    sockets.append(socket.socket(socket.AF_UNIX, kind))
    if os.path.exists(name): os.unlink(name)
    sockets[-1].bind(name)
sockets[-1].listen()
if len(sys.argv) > 1:
    if os.path.exists(sys.argv[1]): os.unlink(sys.argv[1])
    sockets.append(socket.socket(socket.AF_UNIX))
    first = sys.argv[1] if len(sys.argv) < 3 else "new.%d" % os.getpid()
    sockets[-1].bind(first)
    sockets[-1].listen()
    if len(sys.argv) > 2: os.rename(first, sys.argv[1])
os.close(os.open("bound", os.O_CREAT))
while True: signal.pause()
"#;

#[test]
fn a_unix_path_of_its_own_is_told_of_with_the_remedy_in_every_mode() {
    if !require("python3") {
        return;
    }
    let listen = format!("127.0.0.1:{}", free_port());
    let own = |options: &[&str], path: &[&str]| {
        let builder = Panzer::builder().executable("own", OWN_PATH).args(["-w", "1", "--bake", "100ms"]).args(options);
        let panzer = builder.args(["--", "./own"]).args(path).start();
        eventually_some(SOON, "all are bound", || panzer.path("bound").exists().then_some(()));
        panzer
    };
    let said = "warning: pid * listens on a unix path of its own, */own.sock: *--listen unix:*/own.sock, which panzer keeps; else";
    let modes: [&[&str]; 4] = [
        &[],
        &["--ready", "alive", "-l", &listen],
        &["--share-ports", "off"],
        &["--ready", "alive", "--share-ports", "on", "-l", &listen],
    ];
    for options in modes {
        let panzer = own(options, &["own.sock"]);
        panzer.expect_line(said);
        // A busy machine may bind it only after the second look: the third comes after half a minute.
        panzer.wait_for_line(said, 4 * SOON);
        let lines = panzer.lines();
        assert_eq!(lines.iter().filter(|line| line.contains("path of its own")).count(), 1, "{lines:#?}");
        panzer.stop();
    }
    // A name of one process is nothing to speak of, unless the file gets another name.
    let said =
        "warning: pid * listens on a unix path of its own that it has renamed, */new.*: *--listen unix:PATH, which";
    let panzer = own(&["--share-ports", "off"], &["own.sock", "renamed"]);
    panzer.expect_line(said);
    panzer.wait_for_line(said, 4 * SOON);
    panzer.stop();
    // A folder that the worker has made for itself.
    let made = Panzer::builder().executable("own", OWN_PATH);
    let made = made.args(["-w", "1", "--bake", "100ms", "--", "sh", "-c"]);
    let made = made.arg("exec python3 ./own $(mktemp -d ./own-XXXXXX)/own.sock").start();
    made.wait_serving();
    eventually_some(SOON, "all are bound", || made.path("bound").exists().then_some(()));
    assert!(crate::control::run(&made, &["reload"]).status.success());
    made.stop();
    // What nobody listens on, is of one process or generation only, or is panzer's own is nothing to speak of.
    own(&[], &[]).stop();
    for options in [&["--share-ports", "off"][..], &[]] {
        let panzer = own(options, &["own-{generation}.sock"]);
        panzer.wait_serving();
        assert!(crate::control::run(&panzer, &["reload"]).status.success());
        panzer.stop();
    }
    let given = Panzer::builder().executable("again", LISTENS_AGAIN);
    let listen = format!("unix:{}", given.folder().join("app.sock").display());
    let panzer = given.args(["-w", "1", "--share-ports", "on", "-l", &listen, "./again"]).start();
    panzer.wait_serving();
    assert!(crate::control::run(&panzer, &["reload"]).status.success());
    panzer.stop();
}

/// As many do with what they were given.
const LISTENS_AGAIN: &str = "#!/usr/bin/env python3
import socket
listener = socket.socket(fileno=3)
listener.listen(100)
while True: listener.accept()
";

#[test]
fn an_option_that_became_an_address_is_refused_everywhere() {
    let quote =
        "'backlog=4096' for * backlog is an option, and stands behind an address and a comma: quote *\"8080,backlog";
    for (name, text) in [("usual", "listen: [8000,backlog=4096]\n"), ("list", "listen:\n  - 8000\n  - backlog=4096\n")]
    {
        let builder = Panzer::builder().file(name, text).args(["--config", name, "./x"]);
        refused(builder, 2, &quote.replace(" for *", " for listen:"));
    }
    refused(
        Panzer::builder().args(["-l", "8000", "-l", "backlog=4096", "./x"]),
        2,
        &quote.replace("for *", "for --listen:"),
    );
    let variable = Panzer::builder().env("PANZER_LISTEN", "8000 backlog=4096").arg("./x");
    refused(variable, 2, &quote.replace("for *", "for PANZER_LISTEN:"));
    for (text, said) in
        [("[\"unix:a.sock\",mode=0660]", "mode is an option"), ("[8000,nonblock]", "nonblock is an option")]
    {
        let builder = Panzer::builder().file("file", &format!("listen: {text}\n")).args(["--config", "file", "./x"]);
        refused(builder, 2, &format!("{said}, and stands behind an address and a comma: quote the whole value"));
    }
    for (text, said) in
        [("0660", "write 660"), ("\"8000,8001\"", "a second address"), ("\"8000, nonblock\"", "no blank")]
    {
        let builder = Panzer::builder().file("file", &format!("listen: {text}\n")).args(["--config", "file", "./x"]);
        refused(builder, 2, said);
    }
}

#[test]
fn a_free_port_stays_over_reloads_hang_ups_and_a_restart() {
    if !require("python3") {
        return;
    }
    let options = ["-l", "web=127.0.0.1:0", "-l", "api=127.0.0.1:0,per-worker", "-l", "0"];
    let panzer = teller(&options, &["{port}", "{port:api}", "{fd:api}"]).start();
    let line = panzer.wait_for_line("listening on 127.0.0.1:*, 127.0.0.1:*, port ", SOON);
    let places = line.rsplit("listening on ").next().unwrap().to_owned();
    let ports: Vec<&str> = places.split(", ").map(|place| place.rsplit([':', ' ']).next().unwrap()).collect();
    let is_same = |generation: &str| {
        for address in ports.iter().map(|port| format!("127.0.0.1:{port}")) {
            let told = eventually_some(SOON, "it answers by this generation", || {
                told(&address).filter(|told| told["PANZER_GENERATION"] == generation)
            });
            assert_eq!(told["ARGS"], format!("{} {} 4", ports[0], ports[1]));
            assert_eq!(told["LISTEN_FDNAMES"], "web:api:unknown");
        }
    };
    is_same("1");
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    is_same("2");
    panzer.signal(Signal::SIGHUP);
    panzer.wait_for_line("configuration read again", SOON);
    assert!(!panzer.lines().iter().any(|line| line.contains("with the next reload")), "{:#?}", panzer.lines());
    assert!(run(&panzer, &["restart"]).status.success());
    assert!(run(&panzer, &["scale", "2"]).status.success());
    is_same("2");
    assert_eq!(panzer.reload_and_wait(), Ok(3));
    panzer.wait_drained(2);
    is_same("3");
    let status = String::from_utf8(run(&panzer, &["status", "--json"]).stdout).unwrap();
    assert!(ports.iter().all(|port| status.contains(port)), "{status}");
    panzer.stop();
}

#[test]
fn a_host_is_listened_on_at_all_its_addresses() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let panzer = teller(&["-l", &format!("web=localhost:{port}")], &[]).start();
    panzer.wait_serving();
    let here = |address: &str| TcpStream::connect(address).is_ok();
    let told = eventually_some(SOON, "it answers", || told(&format!("127.0.0.1:{port}")));
    assert!(told["LISTEN_FDNAMES"].starts_with("web") && told["PEER"] == "127.0.0.1");
    if told["LISTEN_FDS"] == "2" {
        assert!(here(&format!("[::1]:{port}")));
    }
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.stop();
    let nobody = Panzer::builder().args(["-l", "no-such-host.invalid:80", "./x"]);
    refused(nobody, 2, "'no-such-host.invalid:80' for --listen: the host 'no-such-host.invalid' cannot be looked up");
    let twice = Panzer::builder().args(["-l", "localhost:80", "-l", "127.0.0.1:80", "./x"]);
    refused(twice, 2, "127.0.0.1:80 is listened on already, by another --listen");
}

#[test]
fn in_start_servers_words_a_port_is_of_ipv4_and_starts_are_counted() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let panzer = teller(&["--also-speak", "server-starter", "-l", &port.to_string()], &[]).start();
    panzer.wait_serving();
    let told = |starts: &str| {
        let by = || told(&format!("127.0.0.1:{port}")).filter(|told| told["SERVER_STARTER_GENERATION"] == starts);
        eventually_some(SOON, &format!("start {starts} answers"), by)
    };
    let first = told("1");
    assert_eq!(first["PEER"], "127.0.0.1");
    assert_eq!(first["SERVER_STARTER_PORT"], format!("{port}=3"));
    panzer.expect_line("warning: worker * was killed by SIGKILL; respawning it");
    kill(Pid::from_raw(panzer.workers()[0]), Signal::SIGKILL).unwrap();
    told("2");
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    told("3");
    // An attempt that fails counts, too.
    panzer.expect_line("error: reload failed: generation 3: ");
    std::fs::rename(panzer.path("teller"), panzer.path("away")).unwrap();
    assert!(panzer.reload_and_wait().is_err());
    std::fs::rename(panzer.path("away"), panzer.path("teller")).unwrap();
    assert_eq!(panzer.reload_and_wait(), Ok(4));
    assert_eq!(told("5")["PANZER_GENERATION"], "4");
    panzer.stop();
}

#[test]
fn the_same_port_in_another_form_is_refused_with_what_to_do() {
    let port = free_port();
    let panzer = crate::config_reread::configured(&format!("listen: {port}\n")).arg("./app").start();
    panzer.wait_serving();
    for (text, why) in [
        (
            format!("listen: {port}\nalso-speak: server-starter\n"),
            format!(
                "0.0.0.0:{port} (by --also-speak server-starter a port alone is of IPv4 only): panzer itself listens"
            ),
        ),
        (format!("listen: 127.0.0.1:{port}\n"), format!("127.0.0.1:{port}: panzer itself listens")),
    ] {
        crate::config_reread::write(panzer.folder(), &text);
        let line =
            format!("error: reload failed: *cannot listen on {why} on port {port}, *Keep port {port}, or reload to");
        panzer.expect_line(&line);
        assert!(panzer.reload_and_wait().is_err());
        panzer.wait_for_line(&line, SOON);
    }
    // By another port it can be had.
    crate::config_reread::write(panzer.folder(), &format!("listen: {}\n", free_port()));
    let between = panzer.reload_and_wait().unwrap();
    panzer.wait_drained(1);
    crate::config_reread::write(panzer.folder(), &format!("listen: {port}\nalso-speak: server-starter\n"));
    assert_eq!(panzer.reload_and_wait(), Ok(between + 1));
    panzer.stop();
}

/// A client may get the port by chance, as it is one of those that the kernel hands out.
#[test]
fn a_port_that_a_client_has_or_has_had_is_named_or_waited_for() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
    let address = client.local_addr().unwrap().to_string();
    let begin = || Panzer::builder().args(["-w", "1", "-l", &address, "--", "sleep", "1000"]);
    let refused = begin().start();
    refused.expect_line("error: cannot listen on 127.0.0.1:*: in use by * (pid *); stop it, or listen elsewhere");
    assert_eq!(refused.wait_exit().code(), Some(125));
    // Who ends a connection keeps its port for a minute. Another test's child may have a copy of it for a moment.
    client.shutdown(Shutdown::Write).unwrap();
    drop(server.accept());
    drop(client);
    let kept = format!(":{:04X} 0100007F:", address.rsplit(':').next().unwrap().parse::<u16>().unwrap());
    eventually(SOON, "the connection has ended", || {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        table.lines().any(|line| line.contains(&kept) && line.split_ascii_whitespace().nth(3) == Some("06"))
    });
    let waits = begin().start();
    let line = "warning: 127.0.0.1:* is held by a connection that has ended less than a minute ago (TIME_WAIT)";
    waits.expect_line(line);
    waits.wait_for_line(line, SOON);
    waits.signal(Signal::SIGTERM);
    assert_eq!(waits.wait_exit().code(), Some(0));
}
