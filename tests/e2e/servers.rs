//! Real servers, as people run them: each serves through panzer and is replaced while it is being used.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::load::{Load, Mode};
use crate::support::{Address, Builder, Panzer, eventually, free_port, get, require};

/// A server that has just been started answers within this, also while all the other tests run.
const START: Duration = Duration::from_secs(20);

/// Serves, is replaced under a light load without refusing a connection, and serves on.
pub fn survives_a_reload(builder: Builder, address: &Address) {
    let panzer = builder.start();
    panzer.wait_serving();
    eventually(START, "the first generation answers", || get(address, "/").is_ok());
    let load = Load::new(address, Mode::NewConnection, 1).pause(Duration::from_millis(5)).start();
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    assert_eq!(get(address, "/").unwrap().status, 200);
    let report = load.stop();
    assert_eq!(report.refused, 0, "{report}");
    assert_eq!(panzer.stop().code(), Some(0));
    assert!(get(address, "/").is_err(), "nobody listens any more");
}

fn two_workers(port: u16) -> Builder {
    Panzer::builder().args(["-w", "2", "--bake", "300ms", "-l", &format!("127.0.0.1:{port}")])
}

#[test]
fn my_app_serves_on_both_families() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let arguments = ["./my_app", "--workers", "8", "--listen", &port.to_string()];
    let panzer = Panzer::builder().link("examples/my_app").args(arguments).start();
    panzer.wait_serving();
    assert_eq!(panzer.workers().len(), 8);
    let both: [Address; 2] = [(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()];
    for address in &both {
        let text = get(address, "/").unwrap().text();
        assert!(text.starts_with("worker ") && text.contains("of generation 1,"), "{text}");
    }
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    for address in &both {
        assert!(get(address, "/").unwrap().text().contains("of generation 2,"));
    }
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn my_app_serves_on_a_unix_socket() {
    if !require("python3") {
        return;
    }
    let builder = Panzer::builder().link("examples/my_app");
    let socket = builder.folder().join("app.sock");
    let listen = format!("unix:{}", socket.display());
    survives_a_reload(
        builder.args(["-w", "2", "--bake", "300ms", "-l", &listen, "./my_app"]),
        &socket.as_path().into(),
    );
    assert!(!socket.exists(), "the path is removed at the end");
}

/// Newer gunicorns keep a control socket in the home folder, and two of them would get into each other's way.
pub fn with_own_homes(builder: Builder) -> Builder {
    let home = format!("HOME={}/home-{{generation}}-{{worker}}", builder.folder().display());
    builder.args(["--env", &home])
}

#[test]
fn gunicorn() {
    if !require("gunicorn") {
        return;
    }
    let port = free_port();
    let builder = with_own_homes(two_workers(port).link("examples/app.py"));
    survives_a_reload(builder.args(["--", "gunicorn", "--log-level", "warning", "app:wsgi"]), &port.into());
}

#[test]
fn uvicorn() {
    if !require("uvicorn") {
        return;
    }
    let port = free_port();
    let builder = two_workers(port).link("examples/app.py");
    let program = ["--", "uvicorn", "--log-level", "warning", "app:app", "--fd", "{fd}"];
    survives_a_reload(builder.args(program), &port.into());
}

#[test]
fn node() {
    if !require("node") {
        return;
    }
    let port = free_port();
    survives_a_reload(two_workers(port).link("examples/node_app.js").args(["--", "node", "node_app.js"]), &port.into());
}

#[test]
fn haproxy() {
    if !require("haproxy") {
        return;
    }
    let port = free_port();
    let builder = two_workers(port).file("haproxy.cfg", HAPROXY);
    // USR1 is what haproxy calls a soft stop.
    let arguments = ["--stop", "USR1/10s/TERM/5s/KILL", "--", "haproxy", "-db", "-q", "-f", "haproxy.cfg"];
    survives_a_reload(builder.args(arguments), &port.into());
}

const HAPROXY: &str = r#"
global
    maxconn 100
defaults
    mode http
    timeout client 5s
    timeout connect 5s
    timeout server 5s
frontend web
    bind fd@3
    http-request return status 200 content-type text/plain string "haproxy"
"#;

#[test]
fn nginx() {
    if !require("nginx") {
        return;
    }
    let port = free_port();
    // Nginx takes a listener that it inherits for one of its own and does not make it non-blocking. A second process
    // on the same listener would sooner or later leave it waiting in accept, where it sees no signal and no request.
    let listen = format!("127.0.0.1:{port},nonblock");
    let builder = Panzer::builder().args(["-w", "2", "--bake", "300ms", "-l", &listen]);
    let builder = builder.args(["--env", "NGINX={fd};"]);
    survives_a_reload(nginx_in(builder, &NGINX.replace("PORT", &port.to_string())), &port.into());
}

/// An nginx with this configuration, whose master and worker are a worker of panzer's.
pub fn nginx_in(builder: Builder, configuration: &str) -> Builder {
    let folder = builder.folder().to_owned();
    let pid_file = format!("pid {}/nginx-{{generation}}-{{worker}}.pid;", folder.display());
    let prefix = folder.to_str().unwrap();
    builder
        .file("nginx.conf", configuration)
        .expect_line("[notice] * using inherited sockets from \"3;\"")
        .args(["--stop", "QUIT/30s/TERM/5s/KILL"])
        .args(["--", "nginx", "-e", "stderr", "-p", prefix, "-c", "nginx.conf", "-g", &pid_file])
}

/// The address must be the one that panzer listens on, to the letter: nginx looks for it among what it inherits.
pub const NGINX: &str = r#"
daemon off;
error_log stderr warn;
events { worker_connections 64; }
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {
        listen 127.0.0.1:PORT;
        return 200 "nginx";
    }
}
"#;
