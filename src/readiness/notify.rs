//! `NOTIFY_SOCKET` as in sd_notify(3): datagrams of `KEY=VALUE` lines. The kernel says which process has sent each one.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, getsockname, sendto, setsockopt, socket, sockopt,
};

use crate::sys::packets::{self, Sender};

/// A longer datagram is ignored, as systemd does.
const MAX_DATAGRAM_BYTES: usize = 4096;

/// The socket on which workers notify their monitor. One worker has it, or several if there are too many for one each.
///
/// Other keys (RELOADING, STATUS, MAINPID, ERRNO, FDSTORE and the like) mean nothing to a monitor,
/// which sees by itself which of its children are alive.
#[derive(Debug)]
pub struct NotifySocket {
    fd: OwnedFd,
    name: String,
}

/// One message.
#[derive(Debug, PartialEq, Eq)]
pub struct Notification {
    /// Its sender.
    pub sender: Sender,
    /// The words of the message.
    pub words: Words,
    /// Whether it was too long, and therefore ignored.
    pub is_too_long: bool,
}

/// The parts of a message that mean something to a monitor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Words {
    /// `READY=1`.
    pub ready: bool,
    /// The time that it asks for (`EXTEND_TIMEOUT_USEC=`).
    pub extends: Option<Duration>,
    /// `WATCHDOG=1`: it lives.
    pub lives: bool,
    /// `STOPPING=1`: it ends by itself.
    pub stops: bool,
    /// `WATCHDOG=trigger`: it shall be aborted.
    pub is_broken: bool,
    /// The time within which it will say again that it lives (`WATCHDOG_USEC=`).
    pub period: Option<Duration>,
    /// Number of requests that it has served so far (`X_PANZER_REQUESTS=`).
    pub requests: Option<u64>,
}

impl NotifySocket {
    /// Gets an abstract name from the kernel, so no file is to be removed, and it can be reached from any root
    /// directory. Nothing is bound, because a monitor that shares ports cannot bind: a socket that asks for credentials
    /// gets a name when it sends (unix(7)).
    pub fn new() -> io::Result<NotifySocket> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        setsockopt(&fd, sockopt::PassCred, &true)?;
        let nobody = UnixAddr::new_abstract(b"panzer: nobody")?;
        // It need not reach anybody. It only has to get a name.
        let _ = sendto(fd.as_raw_fd(), &[], &nobody, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
        let address: UnixAddr = getsockname(fd.as_raw_fd())?;
        let name = address.as_abstract().map(|name| format!("@{}", String::from_utf8_lossy(name)));
        Ok(NotifySocket { fd, name: name.ok_or_else(|| io::Error::other("the kernel chose no abstract name"))? })
    }

    /// The value of `NOTIFY_SOCKET`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The next message that waits. Descriptors in it are closed, and a `BARRIER=1` waits for that.
    pub fn receive(&self) -> Option<Notification> {
        let mut bytes = [0; MAX_DATAGRAM_BYTES];
        let packets::Heard { length, sender, .. } = packets::receive_from_stranger(&self.fd, &mut bytes).ok()?;
        let words = bytes.get(..length).map_or(Words::default(), read);
        Some(Notification { sender, words, is_too_long: length > MAX_DATAGRAM_BYTES })
    }
}

/// The last value of a key counts.
fn read(datagram: &[u8]) -> Words {
    // C programs may send the NUL at the end of their string too.
    let text = datagram.strip_suffix(b"\0").unwrap_or(datagram);
    let mut words = Words::default();
    for line in text.split(|&byte| byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok()) {
        let Some((name, value)) = line.split_once('=') else { continue };
        let micros = || value.parse().ok().map(Duration::from_micros);
        match (name, value) {
            ("READY", "1") => words.ready = true,
            ("WATCHDOG", "1") => words.lives = true,
            ("STOPPING", "1") => words.stops = true,
            ("WATCHDOG", "trigger") => words.is_broken = true,
            ("WATCHDOG_USEC", _) => words.period = micros().or(words.period),
            ("X_PANZER_REQUESTS", _) => words.requests = value.parse().ok().or(words.requests),
            ("EXTEND_TIMEOUT_USEC", _) => words.extends = micros().or(words.extends),
            _ => {}
        }
    }
    words
}

impl AsFd for NotifySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::Pid;
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
            ("READY=1\0", true),
            ("READY=1", true),
            ("READY=0", false),
            ("", false),
            ("XREADY=1", false),
        ] {
            sender.send_to_addr(text.as_bytes(), &address).unwrap();
            let heard = socket.receive().unwrap();
            assert_eq!(
                (heard.sender.pid, heard.words.ready, heard.is_too_long),
                (Pid::this(), ready, false),
                "{text:?}"
            );
            assert_eq!(heard.sender.user, nix::unistd::getuid().as_raw());
        }
        sender.send_to_addr(&[b"READY=1\n".as_slice(), &[b'x'; MAX_DATAGRAM_BYTES]].concat(), &address).unwrap();
        let long = socket.receive().unwrap();
        assert!(long.is_too_long && !long.words.ready, "{long:?}");
        assert_eq!(socket.receive(), None);
    }

    #[test]
    fn the_time_that_is_asked_for_is_read() {
        let second = Some(Duration::from_secs(1));
        let words = Words { extends: second, ..Words::default() };
        assert_eq!(read(b"EXTEND_TIMEOUT_USEC=1000000"), words);
        assert_eq!(read(b"STATUS=x\nEXTEND_TIMEOUT_USEC=1000000\nREADY=1"), Words { ready: true, ..words });
        for wrong in ["", "-1", "1s", "18446744073709551616", " 1"] {
            assert_eq!(read(format!("EXTEND_TIMEOUT_USEC={wrong}").as_bytes()), Words::default(), "{wrong}");
        }
        let lives = Words { lives: true, ..Words::default() };
        assert_eq!(read(b"WATCHDOG=1"), lives);
        assert_eq!(read(b"WATCHDOG_USEC=1000000\nWATCHDOG=1\0"), Words { period: second, ..lives });
        assert_eq!(read(b"STOPPING=1"), Words { stops: true, ..Words::default() });
        assert_eq!(read(b"WATCHDOG=trigger"), Words { is_broken: true, ..Words::default() });
        assert_eq!(read(b"X_PANZER_REQUESTS=7\nX_PANZER_REQUESTS=-8"), Words { requests: Some(7), ..Words::default() });
        assert_eq!(read(b"WATCHDOG=0\nWATCHDOG_USEC=x\nWATCHDOG"), Words::default());
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
            assert!(
                socket.receive().is_some_and(|heard| heard.words.ready && heard.sender.pid == Pid::this()),
                "{count}"
            );
            // The other end is closed.
            assert_eq!(reader.read(&mut [0]).unwrap(), 0, "{count}");
        }
    }
}
