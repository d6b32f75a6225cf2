//! What other processes have open.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::libc;

/// A copy of another process's descriptor.
pub fn descriptor_of(pid: i32, number: i32) -> io::Result<OwnedFd> {
    let owned = |result: libc::c_long| match result {
        // SAFETY: the kernel has just made it for us, and nobody else knows of it.
        0.. => Ok(unsafe { OwnedFd::from_raw_fd(result as i32) }),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: both take numbers only, and give a descriptor or an error.
    let process = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: as above.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) })
}
