//! A short-lived child that does what takes time or may hang, so that the loop of its parent does not.

use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, dup2_stdin, write};

use super::processes::{Forked, fork};
use crate::sys::{descriptors, memfd};

/// Starts a child that does this `work` and ends. Once it has been reaped, [`memfd::read`] gives what it returned; it is
/// shorter if the child was killed.
///
/// The child holds none of our descriptors, and ends with us: it must not keep a socket or a channel open.
pub fn start(work: impl FnOnce() -> Vec<u8>) -> io::Result<(Pid, OwnedFd)> {
    let result = memfd::empty()?;
    let parent = Pid::this();
    match fork()? {
        Forked::Parent(child) => Ok((child, result)),
        Forked::Child => {
            let done = set_pdeathsig(Signal::SIGKILL).and_then(|()| dup2_stdin(&result));
            let _ = descriptors::close_from(1);
            if done.is_ok()
                && Pid::parent() == parent
                && let Ok(bytes) = catch_unwind(AssertUnwindSafe(work))
            {
                let _ = write(io::stdin(), &bytes);
            }
            // SAFETY: ends the child, without any of our clean-up.
            unsafe { nix::libc::_exit(0) }
        }
    }
}
