//! Writes to a descriptor that other processes share, without waiting for its reader.
//!
//! | it leads to | way of writing |
//! | --- | --- |
//! | a pipe or a terminal | through an open file description of our own, without blocking |
//! | the same, and to open it anew is refused (another user's) | a look first; a timer ends a write that waits |
//! | a socket | MSG_DONTWAIT |
//! | a regular file | as it is |
//! | anything else | a look first; a timer ends a write that waits |

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use nix::unistd::write;
use rustix::fs::OFlags;

use crate::sys::descriptors::{Kind, kind, open_anew};
use crate::sys::signals::interrupted_after;

/// Limit of a write that has to wait because another process was faster. Only if no open file description of our own is
/// possible.
const MAX_WRITE_TIME: Duration = Duration::from_millis(10);

/// The target, and the rest of the last write.
#[derive(Debug)]
pub(in crate::sys) struct Outlet {
    to: OwnedFd,
    way: Way,
    rest: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
enum Way {
    /// The description is our own, and does not block.
    Own,
    Socket,
    File,
    /// The description is shared, and may block.
    Shared,
}

impl Outlet {
    /// Finds the best way to write to the present target of `fd`.
    pub(in crate::sys) fn open(fd: BorrowedFd<'_>) -> io::Result<Outlet> {
        let shared = |way| Ok(Outlet { to: fd.try_clone_to_owned()?, way, rest: Vec::new() });
        match kind(fd) {
            Kind::Pipe | Kind::Terminal => match open_anew(fd, OFlags::WRONLY) {
                Ok(to) => Ok(Outlet { to, way: Way::Own, rest: Vec::new() }),
                Err(_) => shared(Way::Shared),
            },
            Kind::Socket => shared(Way::Socket),
            Kind::File => shared(Way::File),
            Kind::Revoked | Kind::Other => shared(Way::Shared),
        }
    }

    /// Whether the last write has a rest.
    pub(in crate::sys) fn has_rest(&self) -> bool {
        !self.rest.is_empty()
    }

    /// Writes the rest of the last write. Returns false if some of it is left.
    pub(in crate::sys) fn finish(&mut self) -> bool {
        let rest = std::mem::take(&mut self.rest);
        let written = if rest.is_empty() { Ok(0) } else { self.put(&rest) };
        match written {
            Err(Errno::EAGAIN) => self.rest = rest,
            // No other error passes by waiting.
            Err(_) => {}
            Ok(count) => self.rest = rest[count..].to_vec(),
        }
        self.rest.is_empty()
    }

    /// Writes `bytes`. A part may be left for [`Outlet::finish`]. Call this only if there is no rest. Returns false if
    /// nothing was written.
    pub(in crate::sys) fn write(&mut self, bytes: &[u8]) -> bool {
        match self.put(bytes) {
            Err(_) => false,
            Ok(count) => {
                self.rest = bytes[count..].to_vec();
                true
            }
        }
    }

    /// Never waits, except for a disk and in the cases of the table. EAGAIN if it would have to.
    fn put(&self, bytes: &[u8]) -> nix::Result<usize> {
        let no_wait = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let written = match self.way {
            Way::Own | Way::File => write(&self.to, bytes),
            Way::Socket => send(self.to.as_raw_fd(), bytes, no_wait),
            Way::Shared => match poll(&mut [PollFd::new(self.to.as_fd(), PollFlags::POLLOUT)], PollTimeout::ZERO) {
                Ok(1..) => interrupted_after(MAX_WRITE_TIME, || write(&self.to, bytes)).unwrap_or(Err(Errno::EAGAIN)),
                _ => Err(Errno::EAGAIN),
            },
        };
        written.map_err(|errno| if errno == Errno::EINTR { Errno::EAGAIN } else { errno })
    }
}

impl AsFd for Outlet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.to.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use nix::pty::openpty;
    use nix::unistd::pipe;

    use super::*;
    use crate::sys::soon;

    /// A terminal makes room bit by bit, in a thread of the kernel. It is full if it stays full for this long.
    const STAYS: u16 = 50;

    /// Writes until nothing more is taken. Returns the number of bytes, with the rest of the last write.
    fn fill(outlet: &mut Outlet) -> usize {
        let mut accepted = 0;
        loop {
            while outlet.finish() && outlet.write(&[b'x'; 4096]) {
                accepted += 4096;
            }
            if poll(&mut [PollFd::new(outlet.as_fd(), PollFlags::POLLOUT)], STAYS) == Ok(0) {
                return accepted;
            }
        }
    }

    #[test]
    fn nobody_who_does_not_read_is_waited_for_and_nothing_is_cut() {
        let (pipe_read, pipe_write) = pipe().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let pty = openpty(None, None).unwrap();
        let sides: [(OwnedFd, OwnedFd); 3] =
            [(pipe_write, pipe_read), (ours.into(), theirs.into()), (pty.slave, pty.master)];
        for (to, from) in sides {
            for way in [None, Some(Way::Shared)] {
                let mut outlet = Outlet::open(to.as_fd()).unwrap();
                if let Some(way) = way {
                    outlet = Outlet { to: to.try_clone().unwrap(), way, rest: Vec::new() };
                }
                let mut accepted = fill(&mut outlet);
                assert!(accepted > 0, "{:?}", outlet.way);
                let flags = rustix::fs::fcntl_getfl(&to).unwrap();
                assert!(!flags.contains(OFlags::NONBLOCK), "the others' descriptor is as it was");
                // Everything that was accepted arrives, and then one more write.
                let mut came = 0;
                let mut from = std::fs::File::from(from.try_clone().unwrap());
                let mut more = true;
                soon(|| {
                    if poll(&mut [PollFd::new(from.as_fd(), PollFlags::POLLIN)], STAYS).unwrap() > 0 {
                        came += from.read(&mut [0; 4096]).unwrap();
                    }
                    if more && outlet.finish() && outlet.write(b"y") {
                        (more, accepted) = (false, accepted + 1);
                    }
                    outlet.finish();
                    (came >= accepted && !more).then_some(())
                });
                assert!(came == accepted && !outlet.has_rest(), "{came} of {accepted}, {:?}", outlet.way);
            }
        }
    }
}
