//! 42, 43: who says that it is ready, and who is believed.

use nix::sys::signal::Signal;

use super::bad_release::NOTIFY;
use super::{SOON, server, serving_app};
use crate::support::free_port;

#[test]
pub fn a_worker_is_ready_when_it_says_so() {
    let notifying = format!("#!/usr/bin/env python3\nimport time\ntime.sleep(0.5)\n{NOTIFY}\n{}", server("good"));
    let panzer = serving_app(free_port(), 2).executable("app", &notifying).args(["--ready", "notify"]).start();
    panzer.wait_for_line("started as pid", SOON);
    assert!(panzer.status().serving().workers.iter().all(|worker| worker.phase == "starting"));
    panzer.wait_serving();
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.stop();
}

#[test]
pub fn a_child_of_a_worker_may_say_it_too() {
    let script = format!(
        "#!/usr/bin/env python3\nimport os, time\nif os.fork():\n    time.sleep(1000)\n{NOTIFY}\ntime.sleep(1000)\n"
    );
    let panzer = serving_app(free_port(), 1).executable("app", &script).args(["--ready", "notify"]).start();
    panzer.wait_serving();
    panzer.allow_line("left processes behind");
    panzer.stop();
}

#[test]
pub fn a_stranger_is_not_believed() {
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
    panzer.expect_line("warning: READY=1 came from pid *, which cannot be seen to belong to a worker of generation 1");
    panzer.wait_for_line("was not ready within 1s", SOON);
    assert!(!panzer.lines().iter().any(|line| line.contains("serves")));
    panzer.signal(Signal::SIGTERM);
    panzer.wait_exit();
}

/// Each says it by a child that has ended, and been waited for, before anybody can have read it: the monitor is stopped
/// meanwhile.
fn is_heard_of_one_that_has_ended(tell: &str) {
    let script = format!(
        "#!/usr/bin/env python3
import os, time
while not os.path.exists('go'): time.sleep(0.01)
child = os.fork()
if child == 0:
    {}
    os._exit(0)
os.waitpid(child, 0)
open('told-' + os.environ['PANZER_WORKER_ID'], 'w').close()
time.sleep(1000)
",
        tell.replace('\n', "\n    ")
    );
    let panzer = serving_app(free_port(), 4)
        .executable("app", &script)
        .args(["--ready", "notify", "--also-speak", "einhorn"])
        .start();
    panzer.wait_for_line("started as pid", SOON);
    let four = || panzer.status().serving().workers.iter().filter(|worker| worker.phase == "starting").count() == 4;
    crate::support::eventually(SOON, "all run", four);
    let monitor = nix::unistd::Pid::from_raw(panzer.status().serving().monitor.unwrap());
    nix::sys::signal::kill(monitor, Signal::SIGSTOP).unwrap();
    std::fs::write(panzer.path("go"), "").unwrap();
    let told = || (0..4).all(|worker| panzer.path(&format!("told-{worker}")).exists());
    crate::support::eventually(SOON, "all have told", told);
    nix::sys::signal::kill(monitor, Signal::SIGCONT).unwrap();
    panzer.wait_serving();
    panzer.stop();
}

#[test]
pub fn a_helper_that_has_ended_is_heard() {
    is_heard_of_one_that_has_ended(NOTIFY);
}

/// It names the worker.
#[test]
pub fn an_ack_of_a_helper_that_has_ended_is_heard() {
    is_heard_of_one_that_has_ended(
        "import socket
master = socket.socket(socket.AF_UNIX)
master.connect(os.environ['EINHORN_SOCK_PATH'])
master.sendall(b'{\"command\":\"worker:ack\",\"pid\":%d}\\n' % os.getppid())",
    );
}

/// Of the same user, and gone by the time it is heard.
#[test]
pub fn a_stranger_that_has_ended_is_not_believed() {
    let silent = "#!/usr/bin/env python3\nimport os, time\nopen('address', 'w').write(os.environ['NOTIFY_SOCKET'])\ntime.sleep(1000)\n";
    let panzer = serving_app(free_port(), 1).executable("app", silent).args(["--ready", "notify"]).start();
    panzer.expect_line("warning: READY=1 came from pid *, which cannot be seen to belong to a worker of generation 1");
    let address = crate::support::eventually_some(SOON, "the worker runs", || {
        std::fs::read_to_string(panzer.path("address")).ok().filter(|text| text.len() > 1)
    });
    let tell = format!("import os, socket\nos.environ['NOTIFY_SOCKET'] = '{address}'\n{NOTIFY}\n");
    assert!(std::process::Command::new("python3").args(["-c", &tell]).status().unwrap().success());
    panzer.wait_for_line("READY=1 came from pid", SOON);
    assert!(panzer.status().serving().workers.iter().all(|worker| worker.phase == "starting"));
    panzer.stop();
}

#[test]
pub fn a_worker_may_ask_for_more_time() {
    let asks = format!(
        "#!/usr/bin/env python3
import os, signal, socket, time
def tell(what):
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(what, '\\0' + os.environ['NOTIFY_SOCKET'][1:])
def end(*_):
    for _ in range(4):
        tell(b'EXTEND_TIMEOUT_USEC=2000000')
        time.sleep(0.5)
    os._exit(0)
signal.signal(signal.SIGTERM, end)
for _ in range(8):
    tell(b'EXTEND_TIMEOUT_USEC=2000000')
    time.sleep(0.5)
{NOTIFY}
time.sleep(1000)
"
    );
    let panzer = serving_app(free_port(), 1)
        .executable("app", &asks)
        .args(["--ready", "notify", "--ready-timeout", "3s", "--stop", "TERM/1s/KILL"])
        .start();
    panzer.wait_serving();
    // And beside one that serves, where main times it; it ends by itself, and is not killed.
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    panzer.stop();
}
