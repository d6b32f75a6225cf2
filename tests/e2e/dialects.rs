//! Listeners handed over as other supervisors do it: to real servers, and to clients that read what those read.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use crate::control::{run, text};
use crate::servers::{NGINX, nginx_in, survives_a_reload};
use crate::support::{Builder, Panzer, eventually, eventually_some, free_port, require};

const SOON: Duration = Duration::from_secs(20);

/// Writes its environment, its pid and its parent's, and stays.
const DUMP: &str = "#!/usr/bin/env python3
import json, os, time
found = dict(os.environ, pid=str(os.getpid()), parent=str(os.getppid()))
with open('new', 'w') as file:
    json.dump(found, file)
os.rename('new', 'found')
time.sleep(1000)
";

/// What a worker that is started so finds in its environment.
fn environment_of(builder: Builder) -> Option<BTreeMap<String, String>> {
    if !require("python3") {
        return None;
    }
    let panzer = builder.executable("dump", DUMP).args(["-w", "1", "--ready", "alive", "./dump"]).start();
    let read = || serde_json::from_str(&fs::read_to_string(panzer.path("found")).ok()?).ok();
    let found = eventually_some(SOON, "the worker has written its environment", read);
    panzer.stop();
    Some(found)
}

#[test]
fn all_are_spoken_at_once() {
    let (first, second) = (free_port(), free_port());
    let listen = [first.to_string(), format!("127.0.0.1:{second}")];
    let builder = Panzer::builder().args(["-l", &listen[0], "-l", &listen[1]]);
    let builder = builder.args(["--also-speak", "server-starter,einhorn", "--also-speak", "nginx,unicorn,fpm"]);
    let Some(found) = environment_of(builder) else { return };
    let value = |name: &str| found.get(name).map(String::as_str);
    assert_eq!(value("SERVER_STARTER_PORT"), Some(format!("{first}=3;127.0.0.1:{second}=4").as_str()));
    assert_eq!(value("SERVER_STARTER_GENERATION"), Some("1"));
    assert_eq!(value("EINHORN_MASTER_PID"), value("parent"));
    assert_eq!(value("EINHORN_CHILD_INDEX"), Some("0"));
    assert_eq!(
        [value("EINHORN_FD_COUNT"), value("EINHORN_FD_0"), value("EINHORN_FD_1")],
        [Some("2"), Some("3"), Some("4")]
    );
    assert_eq!(value("NGINX"), Some("3;4;"));
    assert_eq!(value("UNICORN_FD"), Some("3,4"));
    assert_eq!(value("FPM_SOCKETS"), Some(format!("0.0.0.0:{first}=3,127.0.0.1:{second}=4").as_str()));
    assert_eq!(value("LISTEN_FDS"), Some("2"));
    assert_eq!(value("LISTEN_PID"), value("pid"));
}

#[test]
fn none_leaks_in_from_outside() {
    let names = ["SERVER_STARTER_PORT", "SERVER_STARTER_GENERATION", "EINHORN_FD_0", "EINHORN_MASTER_PID", "NGINX"];
    let names = [&names[..], &["UNICORN_FD", "FPM_SOCKETS", "FPM_SOCKETS_1", "LISTEN_PID", "LISTEN_FDS"]].concat();
    let outer = names.iter().fold(Panzer::builder(), |builder, name| builder.env(name, "3"));
    let Some(found) = environment_of(outer.args(["-l", &free_port().to_string(), "--listen-pid", "none"])) else {
        return;
    };
    let left: Vec<_> = names.iter().filter(|name| found.contains_key(**name)).collect();
    assert_eq!(left, [&"LISTEN_FDS"], "only what panzer says itself");
    assert_eq!(found["LISTEN_FDS"], "1");
}

#[test]
fn the_environment_asks_for_dialects_too() {
    let builder = Panzer::builder().env("PANZER_ALSO_SPEAK", "nginx,unicorn").args(["-l", &free_port().to_string()]);
    let Some(found) = environment_of(builder) else { return };
    assert_eq!((found["NGINX"].as_str(), found["UNICORN_FD"].as_str()), ("3;", "3"));
}

/// Exits with 2 and this line.
fn is_refused(arguments: &[&str], line: &str) {
    let panzer = Panzer::start(arguments.iter().chain(&["--", "sleep", "1000"]));
    panzer.expect_line(line);
    assert_eq!(panzer.wait_exit().code(), Some(2));
}

#[test]
fn an_unknown_dialect_gets_a_suggestion() {
    is_refused(
        &["-l", "8000", "--also-speak", "nginx,einhor"],
        "panzer: invalid value 'einhor' for --also-speak: did you mean 'einhorn'? it must be one of server-starter, \
         einhorn, nginx, unicorn, fpm",
    );
    is_refused(
        &["-l", "unix:@app", "--also-speak", "fpm"],
        "panzer: --also-speak: fpm has no way to tell of unix:@app: give it a path",
    );
}

#[test]
fn as_stdin_there_is_one_listener() {
    let none = "panzer: --listen-as stdin takes exactly one --listen, and none is given";
    is_refused(&["--listen-as", "stdin"], none);
    let two = "panzer: --listen-as stdin takes exactly one --listen, and 2 are given";
    is_refused(&["--listen-as", "stdin", "-l", "8000", "-l", "8001"], two);
    let both = "panzer: --listen-as stdin and --also-speak exclude each other";
    is_refused(&["--listen-as", "stdin", "-l", "8000", "--also-speak", "nginx"], both);
}

fn two_workers(port: u16) -> Builder {
    Panzer::builder().args(["-w", "2", "--bake", "300ms", "-l", &format!("127.0.0.1:{port}")])
}

#[test]
fn nginx_takes_what_nginx_says() {
    if !require("nginx") {
        return;
    }
    let port = free_port();
    let listen = format!("127.0.0.1:{port},nonblock");
    let builder = Panzer::builder().args(["-w", "2", "--bake", "300ms", "-l", &listen, "--also-speak", "nginx"]);
    survives_a_reload(nginx_in(builder, &NGINX.replace("PORT", &port.to_string())), &port.into());
}

/// A server by descriptor, in Perl; what Server::Starter::server_ports returns, it reads the way that does.
const PERL: &str = r#"
use strict;
use IO::Socket::INET;
my %ports = map { +(split /=/, $_, 2) } split /;/, $ENV{SERVER_STARTER_PORT};
die "no such port\n" unless exists $ports{$ARGV[0]};
my $listener = IO::Socket::INET->new;
$listener->fdopen($ports{$ARGV[0]}, "r+") or die "fdopen: $!\n";
my $go_on = 1;
$SIG{TERM} = sub { $go_on = 0 };
while ($go_on) {
    my $client = $listener->accept or next;
    while (<$client>) { last if /^\r?\n$/ }
    print $client "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nperl";
    close $client;
}
"#;

#[test]
fn a_server_starter_program_finds_its_port_by_name() {
    if !require("perl") {
        return;
    }
    let port = free_port();
    let builder = two_workers(port).file("server.pl", PERL).args(["--also-speak", "server-starter"]);
    survives_a_reload(builder.args(["--", "perl", "server.pl", &format!("127.0.0.1:{port}")]), &port.into());
}

/// A wrapper that stays, and the server below it, which looks at LISTEN_PID as sd_listen_fds does, but for one that is
/// not there, as Rust's listenfd does.
const WRAPPED: &str = "#!/usr/bin/env python3
import http.server, os, signal, socket
child = os.fork()
if child:
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    raise SystemExit(os.waitpid(child, 0)[1] and 1)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
assert os.environ.get('LISTEN_PID', str(os.getpid())) == str(os.getpid())
assert os.environ['LISTEN_FDS'] == '1'
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header('Content-Length', '7')
        self.end_headers()
        self.wfile.write(b'wrapped')
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(('127.0.0.1', 0), Handler, bind_and_activate=False)
server.socket = socket.socket(fileno=3)
server.serve_forever()
";

#[test]
fn a_wrapper_hands_on_without_a_pid() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let builder = two_workers(port).executable("wrapped", WRAPPED).args(["--listen-pid", "none", "./wrapped"]);
    survives_a_reload(builder, &port.into());
}

/// As an inetd with `wait` would start it: the listener is the channel that it inherits.
const JAVA: &str = r#"
import java.nio.ByteBuffer;
import java.nio.channels.*;
public class Inherited {
    public static void main(String[] arguments) throws Exception {
        if (System.getenv("LISTEN_FDS") != null) throw new Exception("there is a LISTEN_FDS");
        ServerSocketChannel listener = (ServerSocketChannel) System.inheritedChannel();
        byte[] answer = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\njava".getBytes();
        while (true) {
            SocketChannel client = listener.accept();
            new Thread(() -> {
                try (client) {
                    client.read(ByteBuffer.allocate(4096));
                    client.write(ByteBuffer.wrap(answer));
                } catch (java.io.IOException gone) {
                }
            }).start();
        }
    }
}
"#;

#[test]
fn java_inherits_its_channel() {
    if !require("javac") {
        return;
    }
    let port = free_port();
    let builder = two_workers(port).file("Inherited.java", JAVA);
    let mut compiler = std::process::Command::new("javac");
    assert!(compiler.current_dir(builder.folder()).arg("Inherited.java").status().unwrap().success());
    let builder = builder.args(["--ready", "accept", "--listen-as", "stdin"]);
    let java = ["--", "java", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-cp", ".", "Inherited"];
    survives_a_reload(builder.args(java), &port.into());
}

#[test]
fn the_one_on_stdin_is_nowhere_else() {
    if !require("python3") {
        return;
    }
    let script = "#!/usr/bin/env python3
import os, socket, sys
assert sys.argv[1] == '0'
listener = socket.socket(fileno=0)
assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
assert sorted(os.listdir('/proc/self/fd'))[:3] == ['0', '1', '2']
assert not os.path.exists('/proc/self/fd/4')
while True:
    listener.accept()[0].sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok')
";
    let panzer = two_workers(free_port())
        .executable("app", script)
        .args(["--listen-as", "stdin", "./app", "--", "{fd}"])
        .start();
    panzer.wait_serving();
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.stop();
}

/// A client of einhorn, as its own library is: it looks at its parent, takes its listener by number, and acknowledges
/// once it is up, 300 ms after it began to listen. `MESSAGE` is what it says, with its pid as `{pid}`.
const EINHORN: &str = "#!/usr/bin/env python3
import os, signal, socket, threading, time
assert int(os.environ['EINHORN_MASTER_PID']) == os.getppid()
assert os.environ['EINHORN_FD_COUNT'] == '1'
listener = socket.socket(fileno=int(os.environ['EINHORN_FD_0']))
signal.signal(signal.SIGUSR2, lambda *_: os._exit(0))
def serve():
    while True:
        client = listener.accept()[0]
        client.recv(4096)
        client.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok')
        client.close()
threading.Thread(target=serve, daemon=True).start()
time.sleep(0.3)
with open('acked', 'a') as file:
    file.write('.')
master = socket.socket(socket.AF_UNIX)
master.connect(os.environ['EINHORN_SOCK_PATH'])
master.sendall('MESSAGE'.replace('{pid}', str(os.getpid())).encode() + b'\\n')
master.close()
time.sleep(1000)
";

/// Einhorn's own library says it in YAML, other clients in JSON.
const JSON: &str = r#"{"command":"worker:ack","pid":{pid}}"#;
const YAML: &str = "--- %0Acommand: worker:ack%0Apid: {pid}%0A";

fn einhorn(message: &str) -> Builder {
    let script = EINHORN.replace("MESSAGE", message);
    let builder = two_workers(free_port()).executable("app", &script).args(["--also-speak", "einhorn"]);
    builder.args(["--ready", "notify", "--stop", "USR2/10s/KILL", "./app"])
}

fn sockets(panzer: &Panzer) -> Vec<String> {
    sockets_in(&panzer.path("run"))
}

fn sockets_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut sockets: Vec<_> = names.filter(|name| name.contains("einhorn")).collect();
    sockets.sort();
    sockets
}

fn acks(panzer: &Panzer) -> usize {
    fs::read_to_string(panzer.path("acked")).map_or(0, |acks| acks.len())
}

#[track_caller]
fn is_awaited(message: &str) {
    if !require("python3") {
        return;
    }
    let panzer = einhorn(message).start();
    panzer.wait_serving();
    assert_eq!(acks(&panzer), 2, "it waits for both");
    assert_eq!(sockets(&panzer), ["app.pid.einhorn-1.sock"]);
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    assert_eq!(acks(&panzer), 4, "and so does a reload");
    panzer.wait_drained(1);
    assert_eq!(sockets(&panzer), ["app.pid.einhorn-2.sock"], "that of the old one is gone");
    panzer.stop();
}

#[test]
fn an_ack_of_einhorns_is_awaited() {
    is_awaited(JSON);
}

#[test]
fn an_ack_as_einhorns_own_library_sends_it() {
    is_awaited(YAML);
}

#[test]
fn who_says_something_else_is_not_ready() {
    if !require("python3") {
        return;
    }
    let panzer = einhorn(r#"{"command":"worker:ping","pid":{pid}}"#).start();
    // A stranger's word does not count either.
    let socket = panzer.path("run/app.pid.einhorn-1.sock");
    let mut stranger = eventually_some(SOON, "the socket is there", || UnixStream::connect(&socket).ok());
    let says = stranger.write_all(b"{\"command\":\"worker:ack\",\"pid\":1}\n");
    assert!(says.is_ok() || says.is_err_and(|error| error.kind() == ErrorKind::BrokenPipe));
    eventually(SOON, "both have said something", || acks(&panzer) == 2);
    let phases = || panzer.status().serving().workers.iter().map(|worker| worker.phase.clone()).collect::<Vec<_>>();
    assert_eq!(phases(), ["starting", "starting"]);
    // But it lives, and that is shown.
    eventually(SOON, "both signs of life are shown", || {
        let json: serde_json::Value = serde_json::from_slice(&run(&panzer, &["status", "--json"]).stdout).unwrap();
        let workers = json["generations"][0]["workers"].as_array().unwrap();
        workers.len() == 2 && workers.iter().all(|worker| worker["sign_of_life_ms"].is_u64())
    });
    assert!(text(&run(&panzer, &["status"]).stdout).matches("sign of life").count() == 2);
    panzer.stop();
}

#[test]
fn sockets_that_a_killed_panzer_left_are_removed() {
    if !require("python3") {
        return;
    }
    let builder = einhorn(JSON);
    let left = builder.folder().join("left");
    fs::create_dir(&left).unwrap();
    for name in ["app.pid.einhorn-1.sock", "app.pid.einhorn-77.sock", "other.pid.einhorn-1.sock"] {
        drop(UnixListener::bind(left.join(name)).unwrap());
    }
    fs::write(left.join("app.pid.einhorn-9.sock"), "not a socket").unwrap();
    let panzer = builder.args(["--pid", "left/app.pid"]).start();
    panzer.wait_serving();
    let expected = ["app.pid.einhorn-1.sock", "app.pid.einhorn-9.sock", "other.pid.einhorn-1.sock"];
    assert_eq!(sockets_in(&left), expected);
    panzer.stop();
}
