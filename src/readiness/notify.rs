//! `NOTIFY_SOCKET`, as sd_notify(3) has it: datagrams of `KEY=VALUE` lines, whose sender the kernel vouches for.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, getsockname, setsockopt, socket, sockopt};
use nix::unistd::Pid;

use crate::sys::packets;

/// The longest datagram that is read; the rest of a longer one is lost.
const LONGEST: usize = 4096;

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
        let (length, sender) = packets::receive_from_stranger(&self.fd, &mut bytes).ok()?;
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
    use std::io::Read;
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

    #[test]
    fn no_descriptor_that_comes_along_stays_open() {
        let socket = NotifySocket::new().unwrap();
        let address = SocketAddr::from_abstract_name(&socket.name()[1..]).unwrap();
        let sender = UnixDatagram::unbound().unwrap();
        sender.connect_addr(&address).unwrap();
        for count in [1, 4, 5, 253] {
            let (mut reader, writer) = std::io::pipe().unwrap();
            packets::send(&sender, b"READY=1", &vec![writer.as_fd(); count]).unwrap();
            drop(writer);
            assert_eq!(socket.receive(), Some(Notification { sender: Pid::this(), ready: true }), "{count}");
            // Nobody has the other end any more.
            assert_eq!(reader.read(&mut [0]).unwrap(), 0, "{count}");
        }
    }
}
