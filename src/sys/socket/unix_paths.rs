//! Paths of unix sockets.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

/// Whether a process that lives has bound the socket at `path`, whether or not it listens. Never waits.
pub fn is_in_use(path: &Path) -> io::Result<bool> {
    // The kernel refuses a datagram socket by another error if the path belongs to a stream that exists (EPROTOTYPE) than
    // if it belongs to none (ECONNREFUSED). A stream would also be refused by one that does not listen yet.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let asking = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
    Ok(connect(asking.as_raw_fd(), &UnixAddr::new(path)?) != Err(Errno::ECONNREFUSED))
}
