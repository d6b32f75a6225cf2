//! Servers as they are, which know nothing of panzer and bind their own port: four of each, twenty reloads under load.
//!
//! No connection is refused, ever. A server that drops what it has accepted when it is told to stop does so under
//! panzer as well, but no more of it for each worker stopped than one process of it alone, under the same load, while
//! somebody else holds its listener. What it loses alone under the load of one worker is told beside it.
//!
//! By hand more reloads make a better measure: `E2E_RELOADS=100`.

mod alone;
pub mod chance;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::servers::NGINX;
use crate::support::{Panzer, eventually, free_port, get, require, there_is, turn_under_load};
use crate::zero_loss::START;
use crate::zero_loss::clients::{BothKinds, CLIENTS, Seen};

const RELOADS: u32 = 20;
const WORKERS: u32 = 4;
fn reloads() -> u32 {
    std::env::var("E2E_RELOADS").map_or(RELOADS, |asked| asked.parse().expect("a number of reloads"))
}

/// A program, and how its operator starts and stops it.
pub struct Server<'a> {
    /// Every `PORT` is the port, every `FOLDER` where it runs.
    program: &'a [&'a str],
    /// Put into the folder it runs in; `PORT` as above.
    files: &'a [(&'a str, &'a str)],
    /// What asks it to end.
    stop: Signal,
    /// What it says on stderr when all is well.
    chatter: &'a [&'a str],
}

impl Server<'_> {
    fn command(&self, port: u16, folder: &Path) -> Vec<String> {
        let folder = folder.to_str().unwrap();
        let word = |word: &&str| word.replace("PORT", &port.to_string()).replace("FOLDER", folder);
        self.program.iter().map(word).collect()
    }
}

fn reload_under_load(server: &Server) -> Seen {
    let port = free_port();
    let mut builder = Panzer::builder();
    for (name, content) in server.files {
        builder = builder.file(name, &content.replace("PORT", &port.to_string()));
    }
    let schedule = format!("{}/60s/KILL", server.stop.as_str().trim_start_matches("SIG"));
    let command = server.command(port, builder.folder());
    let panzer =
        builder.args(["-w", &WORKERS.to_string(), "--bake", "200ms", "--stop", &schedule, "--"]).args(command).start();
    server.chatter.iter().for_each(|pattern| panzer.allow_line(pattern));
    panzer.wait_serving();
    eventually(START, "the first generation answers", || get(port, "/").is_ok());
    let load = BothKinds::start(port);
    for generation in 2..2 + reloads() {
        assert_eq!(panzer.reload_and_wait(), Ok(generation));
        panzer.wait_drained(generation - 1);
    }
    let seen = load.stop();
    assert_eq!(panzer.stop().code(), Some(0));
    assert!(get(port, "/").is_err(), "nobody listens any more");
    seen
}

/// Of a server that loses many when it is stopped: not one more.
fn no_more_is_lost_than_alone(name: &str, server: &Server) {
    let (alone, seen) = alone_and_under_panzer(name, server);
    assert!(seen <= alone, "{name}: {seen} lost, {alone} alone");
}

/// Of one that loses few, whose numbers are largely chance.
fn no_more_is_lost_than_alone_and_by_chance(name: &str, server: &Server) {
    chance::explains(|| alone_and_under_panzer(name, server));
}

/// How many requests are lost alone and under panzer, over as many stops. Both happen at once, so that both have the
/// same machine. Nobody may be refused.
fn alone_and_under_panzer(name: &str, server: &Server) -> (u64, u64) {
    let stops = reloads() * WORKERS;
    let _turn = turn_under_load();
    let (alone, share, seen) = thread::scope(|all| {
        let alone = all.spawn(|| alone::stop_under_load(server, stops, CLIENTS));
        let share = all.spawn(|| alone::stop_under_load(server, reloads(), CLIENTS / WORKERS as usize));
        let seen = reload_under_load(server);
        (alone.join().unwrap(), share.join().unwrap(), seen)
    });
    let tell = |seen: &Seen, what: &str, stops: u32| {
        let each = seen.dropped() as f64 / f64::from(stops);
        seen.print(&format!("{name} {what}: {} lost by {stops} stops, {each:.3} by each", seen.dropped()));
    };
    tell(&alone, "alone, one process", stops);
    tell(&share, "alone, one process with the load of one worker", reloads());
    tell(&seen, &format!("under panzer, {WORKERS} workers"), stops);
    assert_eq!(seen.refused(), 0, "{name}: somebody holds the listener all the time");
    (alone.dropped(), seen.dropped())
}

#[test]
fn python_http_server() {
    if require("python3") {
        let program = &["python3", "-m", "http.server", "PORT"];
        let files = &[("index.html", "hello\n")];
        // A request each; and that a client had given up, which is counted as a request lost, when its answer came.
        let gone = ["-----", "Exception occurred", "Traceback", "  ", "BrokenPipeError", "ConnectionResetError"];
        let chatter = &[&["\" 200 -"][..], &gone].concat();
        no_more_is_lost_than_alone("http.server", &Server { program, files, stop: Signal::SIGTERM, chatter });
    }
}

#[test]
fn node_http() {
    const SOURCE: &str = "require('http').createServer((_, answer) => answer.end('hello')).listen(PORT);\n";
    if require("node") {
        let (program, files) = (&["node", "server.js"], &[("server.js", SOURCE)]);
        no_more_is_lost_than_alone("node", &Server { program, files, stop: Signal::SIGTERM, chatter: &[] });
    }
}

/// Busy in all its threads from before its bind, so that Go interrupts them by SIGURG, and collecting garbage.
const GO: &str = r#"package main

import (
	"context"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"
)

func main() {
	go func() {
		for range time.Tick(20 * time.Millisecond) {
			runtime.GC()
		}
	}()
	go func() {
		for range time.Tick(50 * time.Millisecond) {
			for until := time.Now().Add(2 * time.Millisecond); time.Now().Before(until); {
			}
		}
	}()
	answer := func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello\n") }
	server := &http.Server{Addr: ":" + os.Args[1], Handler: http.HandlerFunc(answer)}
	asked, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	ended := make(chan struct{})
	go func() {
		<-asked.Done()
		server.Shutdown(context.Background())
		close(ended)
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		log.Fatal(err)
	}
	<-ended
}
"#;

/// Compiles it, static, without the network and without a trace in the home folder. Dropped, it is gone; what the
/// compiler has made of Go's own library is kept for the next time.
fn compiled_go() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("server.go"), GO).unwrap();
    let mut compiler = Command::new("go");
    compiler.current_dir(&folder).args(["build", "-o", "server", "server.go"]);
    compiler.env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=mod").env("GOPROXY", "off");
    // Whoever did not build the tests may not be allowed to write there.
    let kept = Path::new(concat!(env!("CARGO_TARGET_TMPDIR"), "/go"));
    let is_ours = fs::create_dir_all(kept).is_ok() && nix::unistd::access(kept, nix::unistd::AccessFlags::W_OK).is_ok();
    compiler.env("GOCACHE", if is_ours { kept.to_owned() } else { folder.path().join("cache") });
    compiler.env("GOPATH", folder.path().join("path"));
    assert!(compiler.status().unwrap().success());
    folder
}

#[test]
fn go_net_http() {
    if require("go") {
        let folder = compiled_go();
        let path = folder.path().join("server");
        let program = &[path.to_str().unwrap(), "PORT"];
        no_more_is_lost_than_alone("go", &Server { program, files: &[], stop: Signal::SIGTERM, chatter: &[] });
    }
}

#[test]
fn nginx() {
    if require("nginx") {
        // A pid file is the one thing that copies of it cannot share.
        let pid_file = "pid FOLDER/nginx-{generation}-{worker}.pid;";
        let program = &["nginx", "-e", "stderr", "-p", "FOLDER", "-c", "nginx.conf", "-g", pid_file];
        let configuration = NGINX.replace("127.0.0.1:PORT", "PORT");
        let files = &[("nginx.conf", configuration.as_str())];
        no_more_is_lost_than_alone("nginx", &Server { program, files, stop: Signal::SIGQUIT, chatter: &[] });
    }
}

const JAVA: &str = r#"
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;

public class Server {
    public static void main(String[] arguments) throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress(Integer.parseInt(arguments[0])), 0);
        server.createContext("/", exchange -> {
            byte[] answer = "hello\n".getBytes();
            exchange.sendResponseHeaders(200, answer.length);
            exchange.getResponseBody().write(answer);
            exchange.close();
        });
        server.start();
    }
}
"#;

#[test]
fn java_http_server() {
    if there_is("java") && there_is("javac") {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("Server.java"), JAVA).unwrap();
        assert!(Command::new("javac").current_dir(&folder).arg("Server.java").status().unwrap().success());
        let classes = folder.path().to_str().unwrap();
        let program = &["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", classes, "Server", "PORT"];
        no_more_is_lost_than_alone("java", &Server { program, files: &[], stop: Signal::SIGTERM, chatter: &[] });
    }
}

#[test]
fn php_built_in_server() {
    const SOURCE: &str = "<?php header('Content-Length: 6'); echo \"hello\\n\";\n";
    if there_is("php") {
        let program = &["php", "-S", "127.0.0.1:PORT"];
        let files = &[("index.php", SOURCE)];
        let chatter = &["] 127.0.0.1:", "Development Server"];
        no_more_is_lost_than_alone_and_by_chance("php -S", &Server { program, files, stop: Signal::SIGINT, chatter });
    }
}

/// An application of its own protocol, which needs nothing but granian.
const RSGI: &str =
    "async def app(scope, protocol):\n    protocol.response_str(200, [('content-type', 'text/plain')], 'hello')\n";

#[test]
fn granian() {
    if there_is("granian") {
        // A connection that is kept alive it waits for without an end when it is told to stop, with panzer or without.
        let address =
            &["--host", "127.0.0.1", "--port", "PORT", "--no-http1-keep-alive", "--workers-kill-timeout", "2"];
        let program = &[&["granian", "--interface", "rsgi"][..], address, &["app:app"]].concat();
        let chatter = &["[INFO]", "[WARNING]"];
        let files = &[("app.py", RSGI)];
        no_more_is_lost_than_alone_and_by_chance("granian", &Server { program, files, stop: Signal::SIGTERM, chatter });
    }
}

const LIGHTTPD: &str = r#"
server.port = PORT
server.document-root = var.CWD
index-file.names = ( "index.html" )
mimetype.assign = ( ".html" => "text/html" )
"#;

#[test]
fn lighttpd() {
    if there_is("lighttpd") {
        let program = &["lighttpd", "-D", "-f", "lighttpd.conf"];
        let files = &[("lighttpd.conf", LIGHTTPD), ("index.html", "hello\n")];
        // INT is what lighttpd calls a graceful stop.
        let chatter = &["server started", "graceful shutdown", "server stopped", "started as"];
        no_more_is_lost_than_alone("lighttpd", &Server { program, files, stop: Signal::SIGINT, chatter });
    }
}
