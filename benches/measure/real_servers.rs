//! Servers as they are, which know nothing of panzer and bind their own port: one worker of each, for what a filter
//! before each of its calls costs it.

use std::env;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use tempfile::TempDir;

use super::Measured;
use super::crowd::{Question, length_of_answer};

/// Of each connection that is kept alive, one after the other.
const KEPT_ALIVE: usize = 64;

/// What nginx serves, and http.server.
const PAGE: &str = "index.html";
/// In bytes.
const PAGE_LENGTH: usize = 1024;

/// One that is installed.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    /// A line for the shell; `PORT` is the port, `FOLDER` where its files are.
    line: &'static str,
    /// A file's name, and what it contains; `PORT` as above.
    file: Option<(&'static str, &'static str)>,
    /// How many connections it can have waiting at any time.
    pub(crate) connections: usize,
    /// Requests of one connection.
    requests: usize,
    /// With a folder for each port.
    folder: TempDir,
}

const HTTP_SERVER: &str = "exec python3 -m http.server PORT --bind 127.0.0.1 -d FOLDER >/dev/null 2>&1";

const NODE: &str = "exec node FOLDER/server.js PORT";
const NODE_SOURCE: &str =
    "require('http').createServer((_, answer) => answer.end('hello')).listen(+process.argv[2], '127.0.0.1');\n";

/// With one of its threads running at a time, as the others of this list: the second processor is the clients'.
const GO: &str = "GOMAXPROCS=1 exec FOLDER/../server PORT";
const GO_SOURCE: &str = r#"package main

import (
	"io"
	"log"
	"net/http"
	"os"
)

func main() {
	answer := func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello\n") }
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], http.HandlerFunc(answer)))
}
"#;

const NGINX: &str = "exec nginx -e /dev/null -p FOLDER -c nginx.conf";
/// What Debian's has, but for the place of the log.
const NGINX_CONFIGURATION: &str = r#"
daemon off;
worker_processes 1;
pid nginx.pid;
events { worker_connections 768; }
http {
    sendfile on;
    tcp_nopush on;
    access_log /dev/null;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {
        listen 127.0.0.1:PORT;
        root .;
    }
}
"#;

/// Those that are installed, and the names of those that are not.
pub(crate) fn installed() -> Measured<(Vec<Server>, Vec<&'static str>)> {
    let all = [
        Server { connections: 4, requests: 1, ..Server::new("python3 -m http.server", HTTP_SERVER, None)? },
        Server::new("node, http", NODE, Some(("server.js", NODE_SOURCE)))?,
        Server::new("go, net/http", GO, None)?,
        Server::new("nginx, a file of 1 kB", NGINX, Some(("nginx.conf", NGINX_CONFIGURATION)))?,
    ];
    let (there, missing): (Vec<Server>, Vec<Server>) = all.into_iter().partition(Server::is_installed);
    there.iter().filter(|server| server.line == GO).try_for_each(Server::compile_go)?;
    Ok((there, missing.iter().map(|server| server.name).collect()))
}

impl Server {
    fn new(name: &'static str, line: &'static str, file: Option<(&'static str, &'static str)>) -> Measured<Server> {
        let folder = tempfile::tempdir()?;
        // Nginx, started by root, reads as somebody else.
        fs::set_permissions(&folder, Permissions::from_mode(0o755))?;
        Ok(Server { name, line, file, connections: 16, requests: KEPT_ALIVE, folder })
    }

    fn is_installed(&self) -> bool {
        let program = self.name.split([' ', ',']).next().unwrap_or_default();
        env::split_paths(&path()).any(|folder| folder.join(program).is_file())
    }

    /// Static, without the network and without a trace in the home folder.
    fn compile_go(&self) -> Measured<()> {
        let folder = self.folder.path();
        fs::write(folder.join("server.go"), GO_SOURCE)?;
        let mut compiler = Command::new("go");
        compiler.current_dir(folder).args(["build", "-o", "server", "server.go"]);
        compiler.env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=mod").env("GOPROXY", "off");
        compiler.env("GOCACHE", folder.join("cache")).env("GOPATH", folder.join("path"));
        let compiled = compiler.output()?;
        let why = || format!("go build: {}", String::from_utf8_lossy(&compiled.stderr));
        if compiled.status.success() { Ok(()) } else { Err(why().into()) }
    }

    /// The program and its arguments, with its files in place.
    pub(crate) fn command(&self, port: u16) -> Measured<Vec<String>> {
        let folder = self.folder.path().join(port.to_string());
        fs::create_dir(&folder)?;
        fs::write(folder.join(PAGE), ".".repeat(PAGE_LENGTH))?;
        if let Some((name, content)) = self.file {
            fs::write(folder.join(name), content.replace("PORT", &port.to_string()))?;
        }
        let folder = folder.to_str().ok_or("a path that is not UTF-8")?;
        let line = self.line.replace("PORT", &port.to_string()).replace("FOLDER", folder);
        let path = path().into_string().map_err(|_| "a PATH that is not UTF-8")?;
        Ok(["sh", "-c", &format!("PATH='{path}' {line}")].map(str::to_owned).to_vec())
    }

    /// What it is asked, once it answers.
    pub(crate) fn question(&self, port: u16) -> Measured<Question> {
        let request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec();
        let answer = length_of_answer(port, &request)?;
        Ok(Question { port, request, answer, at_once: 1, times: self.requests, says_end: false, worker: no_worker })
    }
}

/// Its answers do not say by whom they are.
fn no_worker(answer: &[u8]) -> Option<u32> {
    let status = answer.strip_prefix(b"HTTP/1.")?.get(1..5)?;
    (status == b" 200").then_some(0)
}

/// Where programs are looked for: nginx is for root on many systems, and not on a user's PATH.
fn path() -> OsString {
    let own = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/local/sbin"].map(Into::into);
    env::join_paths(env::split_paths(&own).chain(system)).unwrap_or(own)
}
