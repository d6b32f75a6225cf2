//! Twenty reloads in a row under load: what is lost, and by whom.
//!
//! Servers that answer all they have accepted lose nothing under panzer. Others lose some requests whenever they are
//! stopped, whoever stops them: those may lose no more under panzer than by themselves.

mod alone;
pub mod clients;

use std::thread;
use std::time::Duration;

use crate::servers::with_own_homes;
use crate::support::{Builder, Panzer, eventually, free_port, get, require, turn_under_load};
use crate::unmodified::chance;
use clients::{BothKinds, Seen};

const RELOADS: u32 = 20;
const WORKERS: u32 = 2;
const STOPS: u32 = RELOADS * WORKERS;

/// A server that has just been started answers within this, also while all the other tests run.
pub const START: Duration = Duration::from_secs(30);

/// What a new release must live through before it serves. A server that does not say when it is ready gets more, as
/// long as it takes to start: once it is relied on, it should be there.
const BAKE: &str = "200ms";
const BAKE_OF_SILENT: &str = "500ms";

/// Reloads under load, again and again. The next reload follows when the last one's release has answered.
fn reload_under_load(bake: &str, complete: impl FnOnce(Builder) -> Builder) -> Seen {
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let arguments = ["-w", &WORKERS.to_string(), "--bake", bake, "-l", &listen];
    let panzer = complete(Panzer::builder().args(arguments)).start();
    panzer.wait_serving();
    let load = BothKinds::start(port);
    for generation in 2..2 + RELOADS {
        assert_eq!(panzer.reload_and_wait(), Ok(generation));
        wait_for_answer(port, &format!("of generation {generation},"));
    }
    panzer.wait_drained(RELOADS);
    let seen = load.stop();
    assert_eq!(panzer.stop().code(), Some(0));
    seen
}

/// Asks until somebody answers with `text` in it.
fn wait_for_answer(port: u16, text: &str) {
    eventually(START, &format!("the answer {text:?}"), || {
        get(port, "/").is_ok_and(|response| response.text().contains(text))
    });
}

fn nothing_is_lost(server: &str, complete: impl FnOnce(Builder) -> Builder) {
    let _turn = turn_under_load();
    let seen = reload_under_load(BAKE, complete);
    seen.print(&format!("{server}: {RELOADS} reloads, {STOPS} workers stopped"));
    assert_eq!(seen.dropped(), 0, "{server} answers every request");
}

/// Compares what is lost under panzer with what is lost when the same server is stopped as often without it. Both
/// happen at once, so that both have the same machine. `FD` among the arguments is the listener's descriptor. Returns how
/// many are lost alone, and under panzer.
fn alone_and_under_panzer(server: &str, file: &str, program: &[&str], complete: fn(Builder) -> Builder) -> (u64, u64) {
    let arguments: Vec<String> = program.iter().map(|argument| argument.replace("FD", "{fd}")).collect();
    let _turn = turn_under_load();
    let (alone, seen) = thread::scope(|both| {
        let alone = both.spawn(|| alone::replace_under_load(file, program, STOPS));
        let complete = |builder: Builder| complete(builder).link(file).arg("--").args(arguments);
        let seen = reload_under_load(BAKE_OF_SILENT, complete);
        (alone.join().unwrap(), seen)
    });
    alone.print(&format!("{server} alone: stopped {STOPS} times"));
    seen.print(&format!("{server} under panzer: {RELOADS} reloads, {STOPS} workers stopped"));
    assert_eq!(seen.new_connection.refused, 0, "panzer holds the listener all the time");
    (alone.dropped(), seen.dropped())
}

#[test]
pub fn my_app_loses_nothing() {
    if require("python3") {
        nothing_is_lost("my_app", |builder| builder.link("examples/my_app").arg("./my_app"));
    }
}

#[test]
fn a_python_mold_loses_nothing() {
    if require("python3") {
        let clients = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/python");
        let mold = "#!/usr/bin/env python3
import panzer, runpy
panzer.run(lambda: runpy.run_path('my_app', run_name='__main__'))
";
        nothing_is_lost("a Python mold", |builder| {
            let builder = builder.link("examples/my_app").executable("mold.py", mold).env("PYTHONPATH", clients);
            builder.args(["--preload", "./mold.py"])
        });
    }
}

/// It takes long: puma is loaded again for each reload. clients/ruby has a shorter one.
#[test]
fn a_ruby_mold_loses_nothing() {
    if std::env::var_os("PANZER_TEST_THEIRS").is_some() && require("puma") {
        let (root, app) =
            (env!("CARGO_MANIFEST_DIR"), "run ->(_) { [200, {}, [\"of generation #{ENV['PANZER_GENERATION']},\"]] }");
        let rack = format!("{root}/clients/ruby/examples/rack.rb");
        let _turn = turn_under_load();
        let seen = reload_under_load("50ms", |builder| {
            let builder = builder.file("config.ru", app).env("RUBYLIB", format!("{root}/clients/ruby/lib"));
            builder.args(["--preload", "--", "ruby", &rack, "config.ru"])
        });
        seen.print(&format!("a Ruby mold: {RELOADS} reloads, {STOPS} workers stopped"));
        assert_eq!(seen.dropped(), 0, "puma's server answers every request");
    }
}

#[test]
fn gunicorn_loses_nothing() {
    if require("gunicorn") {
        let program = ["--", "gunicorn", "--log-level", "warning", "app:wsgi"];
        nothing_is_lost("gunicorn", |builder| with_own_homes(builder.link("examples/app.py")).args(program));
    }
}

#[test]
pub fn node_loses_no_more_than_alone() {
    if require("node") {
        let program = ["node", "node_app.js"];
        let (alone, seen) = alone_and_under_panzer("node", "examples/node_app.js", &program, |builder| builder);
        assert!(seen <= alone, "{seen} lost, and {alone} without panzer");
    }
}

#[test]
pub fn uvicorn_loses_no_more_than_alone() {
    if require("uvicorn") {
        let program = ["uvicorn", "--log-level", "warning", "app:app", "--fd", "FD"];
        // It never closes a kept connection that it accepts while it stops, and waits for its client until it is forced.
        let patient = |builder: Builder| builder.allow_line("has not stopped yet; sent it SIGINT");
        chance::explains(|| alone_and_under_panzer("uvicorn", "examples/app.py", &program, patient));
    }
}
