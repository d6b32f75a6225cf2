//! Descriptors that come from outside as numbers.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// The first descriptor that a program may be given; below are stdin, stdout and stderr.
pub const FIRST: RawFd = 3;

/// Takes over the open descriptor `number`, which another process put there for us by the environment protocol.
/// Fails with EBADF where it is not open.
pub fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    if number < FIRST {
        return Err(Errno::EBADF.into());
    }
    // SAFETY: the borrow ends with this call, which fails with EBADF if nothing is open there.
    fcntl(unsafe { BorrowedFd::borrow_raw(number) }, FcntlArg::F_GETFD)?;
    // SAFETY: it is open, and by the protocol it is ours alone: each number is adopted once, at the start of a role.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Says whether a program that is executed gets this descriptor.
pub fn set_inherited(fd: &OwnedFd, inherited: bool) -> io::Result<()> {
    let flags = if inherited { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    fcntl(fd, FcntlArg::F_SETFD(flags))?;
    Ok(())
}

/// Closes what the caller left open from `first` on. To be called before anything of ours is open there.
pub fn close_from(first: RawFd) {
    // SAFETY: called at the very start, when no descriptor from `first` on belongs to any value of this process.
    unsafe { libc::close_range(first as libc::c_uint, libc::c_uint::MAX, 0) };
}

/// Puts /dev/null where stdin, stdout or stderr is closed, so that nothing of ours is ever opened there.
pub fn fill_standard() -> io::Result<()> {
    loop {
        let null: OwnedFd = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?.into();
        if null.as_raw_fd() >= FIRST {
            return Ok(());
        }
        set_inherited(&null, true)?;
        // It stays open as what it has become.
        let _ = null.into_raw_fd();
    }
}

/// Makes stdin read nothing: neither panzer nor a worker has anything to ask there.
pub fn silence_stdin() -> io::Result<()> {
    let null = std::fs::File::open("/dev/null")?;
    Ok(nix::unistd::dup2_stdin(null)?)
}
