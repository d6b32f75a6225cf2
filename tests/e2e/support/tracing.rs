//! Calls of a process that runs are made to fail or to hang, by strace.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::requirements::require;
use super::waiting::eventually;

/// A strace that is attached until it is dropped.
pub struct Tracer(Child);

impl Tracer {
    /// Attaches strace with `options` to `pid`. None if there is no strace or it may not attach.
    pub fn attach(pid: i32, options: &[&str]) -> Option<Tracer> {
        if !require("strace") {
            return None;
        }
        let mut strace = Command::new("strace");
        strace.args(["-qq", "-o", "/dev/null", "-p", &pid.to_string()]).args(options);
        let mut tracer = Tracer(strace.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("strace is there"));
        let is_traced = || {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
        };
        let mut refused = false;
        eventually(Duration::from_secs(20), "strace attaches or gives up", || {
            refused = tracer.0.try_wait().expect("it is our child").is_some();
            refused || is_traced()
        });
        if refused {
            eprintln!("skipped: strace may not attach to a process that it did not start");
        }
        (!refused).then_some(tracer)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // TERM has it let go of all processes.
        let _ = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}
