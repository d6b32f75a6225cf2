//! Descriptors that come from outside as numbers.

use std::ffi::CStr;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::fs::{FileType, OFlags};

use crate::sys::process::calls::call;

/// The first descriptor that a program may be given; below are stdin, stdout and stderr.
pub const FIRST: RawFd = 3;

/// Takes over the open descriptor `number`, which another process put there for us by the environment protocol.
/// Fails with EBADF if it is not open.
pub fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    if number < FIRST {
        return Err(Errno::EBADF.into());
    }
    // SAFETY: the borrow ends with this call, which fails with EBADF if nothing is open there.
    fcntl(unsafe { BorrowedFd::borrow_raw(number) }, FcntlArg::F_GETFD)?;
    // SAFETY: it is open, and by the protocol it is ours alone: each number is adopted once, at the start of a role.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Like [`adopt`], and no program that is executed from here on gets the descriptor.
pub fn take_over(number: RawFd) -> io::Result<OwnedFd> {
    let fd = adopt(number)?;
    set_inherited(&fd, false)?;
    Ok(fd)
}

/// Sets whether a program that is executed gets this descriptor.
pub fn set_inherited(fd: impl AsFd, inherited: bool) -> io::Result<()> {
    let flags = if inherited { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    fcntl(fd.as_fd(), FcntlArg::F_SETFD(flags))?;
    Ok(())
}

/// Makes the open file non-blocking, for all processes that share it.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Whether reads, writes and accepts on this open file return at once instead of waiting.
pub fn is_nonblocking(fd: impl AsFd) -> io::Result<bool> {
    Ok(OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?).contains(OFlag::O_NONBLOCK))
}

/// Closes all descriptors from `first` on. Call this before anything of ours is open there. A sandbox may refuse it.
pub fn close_from(first: RawFd) -> Result<(), Errno> {
    // SAFETY: called at the very start, when no descriptor from `first` on belongs to any value of this process, or in a
    // copy of it that uses and drops none of these any more.
    Errno::result(unsafe { libc::close_range(first as libc::c_uint, libc::c_uint::MAX, 0) }).map(drop)
}

/// Makes `number` another number of the open file `fd`, instead of what was open there. Leaves errno alone.
pub fn put(fd: RawFd, number: RawFd) -> Result<(), Errno> {
    // SAFETY: the call gets no pointer.
    unsafe { call(libc::SYS_dup3, [fd as usize, number as usize, 0]) }.map(drop)
}

/// Allows this process as many descriptors as it may have. Where that is refused, the limit stays.
pub fn raise_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Opens /dev/null as stdin, stdout or stderr if they are closed, so that nothing of ours is ever opened there.
pub fn fill_standard() -> io::Result<()> {
    loop {
        let null: OwnedFd = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?.into();
        if null.as_raw_fd() >= FIRST {
            return Ok(());
        }
        set_inherited(&null, true)?;
        // It stays open as the standard descriptor that it has become.
        let _ = null.into_raw_fd();
    }
}

/// Makes /dev/null stdin: neither panzer nor a worker reads from it.
pub fn silence_stdin() -> io::Result<()> {
    let null = std::fs::File::open("/dev/null")?;
    Ok(nix::unistd::dup2_stdin(null)?)
}

/// The kind of an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A pipe, with a name or without.
    Pipe,
    /// A terminal.
    Terminal,
    /// A terminal that has hung up.
    Revoked,
    /// A socket.
    Socket,
    /// A regular file.
    File,
    /// Something else, such as /dev/null, or nothing.
    Other,
}

/// The kind of the open file behind `fd`. Leaves errno alone.
pub fn kind(fd: BorrowedFd<'_>) -> Kind {
    let format = rustix::fs::fstat(fd).map(|stat| FileType::from_raw_mode(stat.st_mode));
    match format {
        Ok(FileType::Fifo) => Kind::Pipe,
        Ok(FileType::Socket) => Kind::Socket,
        Ok(FileType::RegularFile) => Kind::File,
        Ok(FileType::CharacterDevice) => match rustix::termios::tcgetattr(fd) {
            Ok(_) => Kind::Terminal,
            Err(rustix::io::Errno::IO) => Kind::Revoked,
            Err(_) => Kind::Other,
        },
        _ => Kind::Other,
    }
}

/// Opens the pipe or terminal behind `fd` again, non-blocking. Processes that share `fd` cannot change its flags. Fails
/// if it belongs to another user. Async-signal-safe, and leaves errno alone.
pub fn open_anew(fd: BorrowedFd<'_>, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let mut path = [0; 32];
    let too_long = rustix::io::Errno::NAMETOOLONG;
    // The last byte stays 0, which ends the string.
    write!(&mut path[..31], "/proc/self/fd/{}", fd.as_raw_fd()).map_err(|_| too_long)?;
    let path = CStr::from_bytes_until_nul(&path).map_err(|_| too_long)?;
    // The open must not wait for a reader or a line, and must not give us a controlling terminal.
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty())
}
