//! The messages between a monitor and its mold, as in panzer-mold(7): ASCII words with one blank between them, one
//! message a packet.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, setsockopt, shutdown, socketpair, sockopt};

use crate::sys::packets::{self, Heard};

/// Limit of a message.
pub const MAX_BYTES: usize = 1024;

/// The monitor's end of a mold's socket.
#[derive(Debug)]
pub struct MoldSocket(OwnedFd);

impl MoldSocket {
    /// A new socket, and the mold's end. The kernel says who has sent each message (SO_PASSCRED, unix(7)).
    pub fn new() -> io::Result<(MoldSocket, OwnedFd)> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        setsockopt(&ours, sockopt::PassCred, &true)?;
        Ok((MoldSocket(ours), theirs))
    }

    /// Sends without waiting.
    pub fn ask(&self, asked: &Asked<'_>, descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        packets::send(&self.0, &asked.write(), descriptors)
    }

    /// Receives without waiting. None at the end.
    pub fn hear(&self, bytes: &mut [u8; MAX_BYTES]) -> Result<Option<Heard>, Errno> {
        let heard = packets::receive_from_stranger(&self.0, bytes)?;
        Ok(Some(heard).filter(|heard| heard.length > 0 || heard.sender.pid.as_raw() != 0))
    }

    /// Refuses what is sent from now on (EPIPE). What was sent before can still be received.
    pub fn refuse_more(&self) {
        // It fails only where the other end is closed already, and then nobody sends.
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Read);
    }
}

impl AsFd for MoldSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A message of a mold, or of a worker that it has forked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// It is loaded, and forks when it is asked to.
    Ready {
        /// Its workers can become molds.
        refork: bool,
    },
    /// It cannot load, and why.
    Failed(String),
    /// The sender is the worker of this ticket.
    Born(u64),
    /// There is no worker for this ticket, and why.
    Unborn(u64, String),
}

/// An order of a monitor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked<'a> {
    /// Fork a worker.
    Fork {
        /// Number that the answer repeats.
        ticket: u64,
        /// The worker's slot.
        slot: u32,
        /// The numbers that the descriptors of this message are to have in the worker.
        descriptors: &'a [RawFd],
        /// The last descriptor is a socket of the worker's own, on which it may become the mold.
        refork: bool,
    },
    /// To a worker, before it is told to stop: do not end, but become the mold.
    Mold,
    /// Fork no more, and exit.
    Stop,
}

impl Said {
    /// Reads a packet. The error completes "it sent ...".
    pub fn read(packet: &[u8]) -> Result<Said, String> {
        let wrong = || format!("'{}', which is no message of panzer-mold(7)", String::from_utf8_lossy(excerpt(packet)));
        let text = std::str::from_utf8(packet).map_err(|_| wrong())?;
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        let number = |text: &str| {
            let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| is_plain).ok_or_else(wrong)
        };
        match word {
            "READY" if rest.is_empty() || rest == "refork" => Ok(Said::Ready { refork: !rest.is_empty() }),
            "FAILED" => Ok(Said::Failed(rest.to_owned())),
            "BORN" => number(rest).map(Said::Born),
            "UNBORN" => {
                let (ticket, why) = rest.split_once(' ').unwrap_or((rest, ""));
                number(ticket).map(|ticket| Said::Unborn(ticket, why.to_owned()))
            }
            _ => Err(wrong()),
        }
    }
}

/// The part of a message that is logged.
fn excerpt(packet: &[u8]) -> &[u8] {
    &packet[..packet.len().min(60)]
}

impl Asked<'_> {
    /// As a packet.
    pub fn write(&self) -> Vec<u8> {
        match self {
            Asked::Stop => b"STOP".to_vec(),
            Asked::Mold => b"MOLD".to_vec(),
            Asked::Fork { ticket, slot, descriptors, refork } => {
                let numbers: String = descriptors.iter().map(|number| format!(" {number}")).collect();
                format!("FORK {ticket} {slot}{numbers}{}", if *refork { " refork" } else { "" }).into_bytes()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_refuses_more_still_gets_what_was_sent_before() {
        let (ours, theirs) = MoldSocket::new().unwrap();
        packets::send(&theirs, b"BORN 1", &[]).unwrap();
        ours.refuse_more();
        assert_eq!(packets::send(&theirs, b"BORN 2", &[]), Err(Errno::EPIPE));
        let mut bytes = [0; MAX_BYTES];
        assert_eq!(ours.hear(&mut bytes).unwrap().unwrap().length, 6);
        assert!(ours.hear(&mut bytes).unwrap().is_none());
    }

    #[test]
    fn messages_are_read_and_written_to_the_letter() {
        assert_eq!(Said::read(b"READY"), Ok(Said::Ready { refork: false }));
        assert_eq!(Said::read(b"READY refork"), Ok(Said::Ready { refork: true }));
        assert_eq!(Said::read(b"BORN 17"), Ok(Said::Born(17)));
        assert_eq!(Said::read("FAILED no ключ".as_bytes()), Ok(Said::Failed("no ключ".to_owned())));
        assert_eq!(Said::read(b"UNBORN 3 fork: no memory"), Ok(Said::Unborn(3, "fork: no memory".to_owned())));
        assert_eq!(Said::read(b"UNBORN 3"), Ok(Said::Unborn(3, String::new())));
        assert_eq!(
            Asked::Fork { ticket: 17, slot: 0, descriptors: &[1, 2, 4], refork: false }.write(),
            b"FORK 17 0 1 2 4"
        );
        assert_eq!(Asked::Fork { ticket: 1, slot: 9, descriptors: &[], refork: false }.write(), b"FORK 1 9");
        assert_eq!(Asked::Fork { ticket: 1, slot: 9, descriptors: &[1], refork: true }.write(), b"FORK 1 9 1 refork");
        assert_eq!(Asked::Mold.write(), b"MOLD");
    }

    #[test]
    fn what_is_no_message_is_said_to_be_none() {
        let packets: [&[u8]; 10] =
            [b"", b"ready", b"READY ", b"READY 1", b"BORN", b"BORN -1", b"BORN +1", b"BORN 1 2", b"UNBORN x", b"\xff"];
        for packet in packets.into_iter().filter(|packet| *packet != b"READY ") {
            assert!(Said::read(packet).is_err(), "{packet:?}");
        }
        let long = Said::read(&[b'x'; 1000]).unwrap_err();
        assert!(long.len() < 120, "{long}");
    }
}
