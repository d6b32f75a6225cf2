//! Paths of unix sockets.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};

/// Whether a process that lives has bound the socket at `path`, whether or not it listens. Never waits.
pub fn is_in_use(path: &Path) -> io::Result<bool> {
    // The kernel refuses a datagram socket by another error if the path belongs to a stream that exists (EPROTOTYPE) than
    // if it belongs to none (ECONNREFUSED). A stream would also be refused by one that does not listen yet.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let asking = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
    Ok(connect(asking.as_raw_fd(), &UnixAddr::new(path)?) != Err(Errno::ECONNREFUSED))
}

/// Whether the file of a socket that `process` has open is no longer at `path`, where it was bound: it was renamed or removed.
/// Never waits for a file system, as the kernel keeps the path of an open socket in its cache. False where this cannot be
/// seen, as before Linux 5.12.
pub fn has_left(process: Pid, path: &Path) -> bool {
    let within = path.strip_prefix("/");
    let (place, resolve) = match within {
        Ok(_) => ("root", ResolveFlags::CACHED | ResolveFlags::IN_ROOT),
        Err(_) => ("cwd", ResolveFlags::CACHED),
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let Ok(start) = open(format!("/proc/{process}/{place}"), flags, Mode::empty()) else { return false };
    let found = openat2(start, within.unwrap_or(path), flags | OFlags::NOFOLLOW, Mode::empty(), resolve);
    matches!(found, Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOENT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_path_that_was_renamed_has_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bound");
        let _bound = UnixListener::bind(&path).unwrap();
        assert!(!has_left(Pid::this(), &path));
        fs::rename(&path, folder.path().join("known")).unwrap();
        assert!(has_left(Pid::this(), &path));
    }
}
