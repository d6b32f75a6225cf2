//! A wait before the first signal of a stop: workers serve on, and everybody is told that panzer ends.

use nix::sys::signal::Signal::{SIGINT, SIGTERM};

use crate::control::{run, text};
use crate::faults::{SOON, serving_app, wait_started};
use crate::support::{Panzer, free_port, get};
use crate::upward::{Manager, name_for};

const WAITS: &str = "stopping in 1m: workers serve on until then, so that balancers notice";

fn start(stop: &str, environment: (&str, &str)) -> (Panzer, u16) {
    let port = free_port();
    let builder = serving_app(port, 2).env("PANZER_STOP", stop).env(environment.0, environment.1);
    let panzer = builder.start();
    wait_started(&panzer, 2);
    panzer.allow_line("panzer: stopping in ");
    (panzer, port)
}

fn serves(port: u16) -> bool {
    get(std::net::SocketAddr::from(([127, 0, 0, 1], port)), "/").is_ok()
}

#[test]
fn workers_serve_on_until_the_wait_is_over_and_nothing_new_begins() {
    let name = name_for("farewell");
    let manager = Manager::at(&name);
    let (panzer, port) = start("1m/TERM/5s/KILL", ("NOTIFY_SOCKET", &format!("@{name}")));
    manager.hear_until("READY=1");
    let before = panzer.workers();
    panzer.signal(SIGTERM);
    panzer.wait_for_line(WAITS, SOON);
    manager.hear_until("STOPPING=1");
    manager.hear_until("STATUS=stopping: workers serve on until balancers know");
    assert!(serves(port));
    let ready = run(&panzer, &["status", "--wait-ready", "--timeout", "300ms"]);
    assert_ne!(ready.status.code(), Some(0));
    let status = text(&run(&panzer, &["status", "--json"]).stdout);
    assert!(status.contains("\"stopping\":true") && status.contains("\"ready\":false"), "{status}");
    for command in [&["reload"][..], &["scale", "3"], &["quiet"], &["restart"]] {
        let refused = run(&panzer, command);
        assert_eq!(refused.status.code(), Some(1), "{command:?}");
        assert!(text(&refused.stderr).contains("panzer is being stopped"), "{}", text(&refused.stderr));
    }
    assert_eq!(panzer.workers(), before);
    // Asking again puts nothing off, and a stop now does not wait.
    panzer.signal(SIGTERM);
    assert!(run(&panzer, &["exit"]).status.success());
    assert_eq!(panzer.wait_exit().code(), Some(0));
}

#[test]
fn the_stop_begins_by_itself_and_a_reload_does_not_wait() {
    let (panzer, port) = start("700ms/TERM/5s/KILL", ("PANZER_TIMEOUT", "5s"));
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    panzer.signal(SIGTERM);
    panzer.wait_for_line("stopping in 700ms: workers serve on", SOON);
    panzer.wait_for_line("panzer: stopping gracefully", SOON);
    assert_eq!(panzer.wait_exit().code(), Some(0));
    assert!(!serves(port));
}

#[test]
fn a_second_ctrl_c_does_not_wait() {
    let (panzer, _) = start("1m/TERM/5s/KILL", ("PANZER_TIMEOUT", "5s"));
    panzer.signal(SIGINT);
    panzer.wait_for_line(WAITS, SOON);
    panzer.signal(SIGINT);
    panzer.wait_exit();
}

#[test]
fn a_reloads_schedule_begins_with_a_signal() {
    let panzer = Panzer::builder().args(["--retire", "5s/TERM/5s/KILL", "--", "sleep", "1000"]);
    let panzer = panzer.expect_line("panzer: --retire begins with a signal").start();
    assert_eq!(panzer.wait_exit().code(), Some(2));
}
