//! `NOTIFY_SOCKET`, as sd_notify(3) has it: datagrams of `KEY=VALUE` lines, whose sender the kernel vouches for.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, bind, getsockname, recvmsg, setsockopt,
    socket, sockopt,
};
use nix::unistd::Pid;

use crate::sys::descriptors::adopt;

/// The longest datagram that is read; the rest of a longer one is lost.
const LONGEST: usize = 4096;

/// Most descriptors in one datagram. A barrier brings one; any other is closed at once.
const MOST_DESCRIPTORS: usize = 4;

/// The socket that workers of one generation tell their monitor on.
#[derive(Debug)]
pub struct NotifySocket {
    fd: OwnedFd,
    name: String,
}

/// One message.
#[derive(Debug, PartialEq, Eq)]
pub struct Notification {
    /// The process that sent it, by the kernel's word.
    pub sender: Pid,
    /// Whether it said `READY=1`.
    pub ready: bool,
}

impl NotifySocket {
    /// Binds an abstract name that the kernel chooses: no file to be removed, and reachable from any root directory.
    pub fn new() -> io::Result<NotifySocket> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        setsockopt(&fd, sockopt::PassCred, &true)?;
        bind(fd.as_raw_fd(), &UnixAddr::new_unnamed())?;
        let address: UnixAddr = getsockname(fd.as_raw_fd())?;
        let name = address.as_abstract().map(|name| format!("@{}", String::from_utf8_lossy(name)));
        Ok(NotifySocket { fd, name: name.ok_or_else(|| io::Error::other("the kernel chose no abstract name"))? })
    }

    /// The value of `NOTIFY_SOCKET`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The next message that waits. Descriptors that came along are closed, which is what a `BARRIER=1` waits for.
    pub fn receive(&self) -> Option<Notification> {
        let mut bytes = [0; LONGEST];
        let mut space = nix::cmsg_space!(nix::libc::ucred, [i32; MOST_DESCRIPTORS]);
        let mut buffer = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let got = recvmsg::<()>(self.fd.as_raw_fd(), &mut buffer, Some(&mut space), flags).ok()?;
        let mut sender = Pid::from_raw(0);
        for message in got.cmsgs().into_iter().flatten() {
            match message {
                ControlMessageOwned::ScmCredentials(credentials) => sender = Pid::from_raw(credentials.pid()),
                ControlMessageOwned::ScmRights(numbers) => numbers.into_iter().for_each(|number| drop(adopt(number))),
                _ => {}
            }
        }
        let length = got.bytes;
        Some(Notification { sender, ready: says_ready(&bytes[..length]) })
    }
}

fn says_ready(datagram: &[u8]) -> bool {
    datagram.split(|&byte| byte == b'\n').any(|line| line == b"READY=1")
}

impl AsFd for NotifySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    #[test]
    fn a_message_comes_with_its_sender() {
        let socket = NotifySocket::new().unwrap();
        let address = SocketAddr::from_abstract_name(&socket.name()[1..]).unwrap();
        let sender = UnixDatagram::unbound().unwrap();
        for (text, ready) in [
            ("STATUS=loading\nREADY=1\n", true),
            ("READY=1", true),
            ("READY=0", false),
            ("", false),
            ("XREADY=1", false),
        ] {
            sender.send_to_addr(text.as_bytes(), &address).unwrap();
            assert_eq!(socket.receive(), Some(Notification { sender: Pid::this(), ready }), "{text:?}");
        }
        assert_eq!(socket.receive(), None);
    }
}
