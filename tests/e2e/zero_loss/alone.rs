//! A server without panzer: replaced by hand, as well as that can be done, to see what it loses by itself.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::clients::{BothKinds, Seen};
use super::{START, wait_for_answer};
use crate::support::{eventually, with_real_interpreter};

/// Puts the listener, which comes as stdin, where panzer puts it, and becomes the server.
const HAND_OVER: &str = r#"exec "$@" 3<&0 0</dev/null"#;

/// One process of the server. Killed where the test fails.
struct Server(Child);

impl Server {
    fn start(folder: &TempDir, program: &[&str], listener: &TcpListener) -> Server {
        let shared = OwnedFd::from(listener.try_clone().unwrap());
        let program = program.iter().map(|argument| if *argument == "FD" { "3" } else { argument });
        let mut command = Command::new("sh");
        command.args(["-c", HAND_OVER, "sh"]).args(program).current_dir(folder);
        command.env("PATH", with_real_interpreter()).env("LISTEN_FDS", "1");
        command.stdin(Stdio::from(shared)).stdout(Stdio::null());
        Server(command.spawn().unwrap())
    }

    fn wait_until_it_answers(&self, port: u16) {
        wait_for_answer(port, &format!("pid {}\n", self.0.id()));
    }

    /// Tells it to stop, and waits until it has. One that takes too long is forced, as panzer does it.
    fn stop(mut self) {
        let pid = Pid::from_raw(self.0.id().cast_signed());
        kill(pid, Signal::SIGTERM).unwrap();
        let patience = Instant::now() + START;
        let mut is_forced = false;
        eventually(2 * START, "the server ends", || {
            if !is_forced && Instant::now() > patience {
                is_forced = true;
                kill(pid, Signal::SIGINT).unwrap();
            }
            self.0.try_wait().unwrap().is_some()
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has been waited for is not signalled again.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Stops the server `stops` times under load. Its successor shares its listener, which this process holds all the
/// time, and has already answered: whatever is lost is lost by the server that stops.
pub fn replace_under_load(file: &str, program: &[&str], stops: u32) -> Seen {
    let folder = tempfile::tempdir().unwrap();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    symlink(&file, folder.path().join(file.file_name().unwrap())).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();

    let mut serving = Server::start(&folder, program, &listener);
    serving.wait_until_it_answers(port);
    let load = BothKinds::start(port);
    for _ in 0..stops {
        let next = Server::start(&folder, program, &listener);
        next.wait_until_it_answers(port);
        std::mem::replace(&mut serving, next).stop();
    }
    let seen = load.stop();
    serving.stop();
    seen
}
