//! 42, 43: who says that it is ready, and who is believed.

use nix::sys::signal::Signal;

use super::bad_release::NOTIFY;
use super::{SOON, server, serving_app};
use crate::support::free_port;

#[test]
fn a_worker_is_ready_when_it_says_so() {
    let notifying = format!("#!/usr/bin/env python3\nimport time\ntime.sleep(0.5)\n{NOTIFY}\n{}", server("good"));
    let panzer = serving_app(free_port(), 2).executable("app", &notifying).args(["--ready", "notify"]).start();
    panzer.wait_for_line("started as pid", SOON);
    assert!(panzer.status().serving().workers.iter().all(|worker| worker.phase == "starting"));
    panzer.wait_serving();
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.stop();
}

#[test]
fn a_child_of_a_worker_may_say_it_too() {
    let script = format!(
        "#!/usr/bin/env python3\nimport os, time\nif os.fork():\n    time.sleep(1000)\n{NOTIFY}\ntime.sleep(1000)\n"
    );
    let panzer = serving_app(free_port(), 1).executable("app", &script).args(["--ready", "notify"]).start();
    panzer.wait_serving();
    panzer.allow_line("left processes behind");
    panzer.stop();
}

#[test]
fn a_stranger_is_not_believed() {
    let silent = "#!/usr/bin/env python3\nimport os, time\nopen('address', 'w').write(os.environ['NOTIFY_SOCKET'])\ntime.sleep(1000)\n";
    let panzer = serving_app(free_port(), 1)
        .executable("app", silent)
        .args(["--ready", "notify", "--ready-timeout", "1s"])
        .start();
    panzer.expect_line("warning: worker 0 * is not ready after 1s; stopping it");
    panzer.expect_line("warning: worker 0 * was not ready within 1s; respawning it in");
    let address = crate::support::eventually_some(SOON, "the worker runs", || {
        std::fs::read_to_string(panzer.path("address")).ok().filter(|text| text.len() > 1)
    });
    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&address[1..]).unwrap();
    std::os::unix::net::UnixDatagram::unbound().unwrap().send_to_addr(b"READY=1", &address).unwrap();
    panzer.wait_for_line("was not ready within 1s", SOON);
    assert!(!panzer.lines().iter().any(|line| line.contains("serves")));
    panzer.signal(Signal::SIGTERM);
    panzer.wait_exit();
}
