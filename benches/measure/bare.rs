//! What panzer is compared with: the least that starts the same program, with nothing to supervise it.

use std::os::fd::AsRawFd;
use std::ptr;

use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, execv, fork};

use super::Measured;
use super::program::c_strings;

/// Forks and executes `command`, and again as soon as it has ended. Never returns but with an error.
pub(crate) fn respawn_for_ever(command: &[String]) -> Measured<()> {
    let arguments = c_strings(command)?;
    let path = arguments.first().ok_or("nothing to run")?;
    loop {
        // SAFETY: this process has one thread, and the child calls nothing but prctl, exec and _exit.
        match unsafe { fork()? } {
            ForkResult::Parent { child } => drop(waitpid(child, None)?),
            ForkResult::Child => {
                // So that nothing is left when this loop is killed.
                let _ = set_pdeathsig(Signal::SIGKILL);
                let _ = execv(path, &arguments);
                // SAFETY: it ends the process, and takes no lock.
                unsafe { libc::_exit(127) }
            }
        }
    }
}

/// Children that are killed and reaped when this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Children {
    pids: Vec<Pid>,
}

/// Starts `command` so many times by posix_spawn, with `stdout`.
pub(crate) fn spawn_all(command: &[String], count: usize, stdout: &impl AsRawFd) -> Measured<Children> {
    let arguments = c_strings(command)?;
    let path = arguments.first().ok_or("nothing to run")?;
    let mut pointers: Vec<*mut libc::c_char> = arguments.iter().map(|word| word.as_ptr().cast_mut()).collect();
    pointers.push(ptr::null_mut());
    let mut children = Children::default();
    // SAFETY: the actions are initialised before use and destroyed after; every pointer is to memory that outlives the
    // calls, the arguments end in null, and `environ` is changed by nobody in this process.
    unsafe {
        let mut actions = std::mem::zeroed();
        check(libc::posix_spawn_file_actions_init(&mut actions))?;
        check(libc::posix_spawn_file_actions_adddup2(&mut actions, stdout.as_raw_fd(), libc::STDOUT_FILENO))?;
        for _ in 0..count {
            let mut pid = 0;
            let environment = libc::environ.cast();
            check(libc::posix_spawn(&mut pid, path.as_ptr(), &actions, ptr::null(), pointers.as_ptr(), environment))?;
            children.pids.push(Pid::from_raw(pid));
        }
        libc::posix_spawn_file_actions_destroy(&mut actions);
    }
    Ok(children)
}

fn check(errno: libc::c_int) -> Measured<()> {
    if errno == 0 { Ok(()) } else { Err(Errno::from_raw(errno).into()) }
}

impl Drop for Children {
    fn drop(&mut self) {
        for pid in &self.pids {
            // An unreaped child of ours.
            let _ = kill(*pid, Signal::SIGKILL);
        }
        for pid in &self.pids {
            let _ = waitpid(*pid, None);
        }
    }
}
