//! The channel between main and a monitor: a SOCK_SEQPACKET pair. Sending never waits, receiving never trusts.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::sys::descriptors::{Kept, adopt, take_over};
use crate::sys::poller::Poller;

/// The longest message, in bytes.
const LONGEST: usize = 8192;

/// Most descriptors in one message.
const MOST_DESCRIPTORS: usize = 3;

/// How many messages may wait for a peer that does not read. Beyond it the oldest are given up: a peer that has been
/// stopped for so long has lost the thread anyway.
const LONGEST_QUEUE: usize = 4096;

/// One end of a channel.
#[derive(Debug)]
pub struct Channel {
    fd: OwnedFd,
    waiting: VecDeque<Packet>,
    wakes_for_writing: bool,
    /// Something that is no message has come, and was given as such.
    had_garbage: bool,
}

/// A message under way.
#[derive(Debug)]
struct Packet {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

/// A channel as one main hands it on to the next.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Carried {
    fd: RawFd,
    waiting: Vec<CarriedPacket>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CarriedPacket {
    #[serde(with = "crate::carry::bytes")]
    bytes: Vec<u8>,
    descriptors: Vec<RawFd>,
}

impl Carried {
    /// All descriptors that go with it.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.waiting.iter().flat_map(|packet| packet.descriptors.iter().copied()).chain([self.fd])
    }
}

/// What a read of the channel gave.
#[derive(Debug)]
pub enum Received<M> {
    /// A message with its descriptors.
    Message(M, Vec<OwnedFd>),
    /// The first message of this channel that is none we know, and why. The peer may be another build, and main and its
    /// monitors say what has to be understood by a version: what is not is left out, with its descriptors.
    Garbage(String),
    /// A further one.
    MoreGarbage,
    /// Nothing for now.
    Nothing,
    /// The peer is gone.
    Gone,
}

impl Channel {
    /// The two ends; the second is handed to another process.
    pub fn pair() -> io::Result<(Channel, OwnedFd)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((Channel::new(ours), theirs))
    }

    /// The end that was handed to us.
    pub fn new(fd: OwnedFd) -> Channel {
        Channel { fd, waiting: VecDeque::new(), wakes_for_writing: false, had_garbage: false }
    }

    /// For the next main, with what still waits to be sent.
    pub fn carry<'a>(&'a self, kept: &mut Kept<'a>) -> Carried {
        let fd = kept.keep(&self.fd);
        let mut packet = |packet: &'a Packet| CarriedPacket {
            bytes: packet.bytes.clone(),
            descriptors: packet.descriptors.iter().map(|fd| kept.keep(fd)).collect(),
        };
        Carried { fd, waiting: self.waiting.iter().map(&mut packet).collect() }
    }

    /// What the main before has handed on; watched by nobody yet.
    pub fn take_over(carried: Carried) -> io::Result<Channel> {
        let packet = |packet: CarriedPacket| {
            let descriptors = packet.descriptors.into_iter().map(take_over).collect::<io::Result<_>>()?;
            Ok(Packet { bytes: packet.bytes, descriptors })
        };
        let waiting = carried.waiting.into_iter().map(packet).collect::<io::Result<_>>()?;
        Ok(Channel { waiting, ..Channel::new(take_over(carried.fd)?) })
    }

    /// Sends, or keeps the message until the peer reads. A peer that is gone is noticed by reading.
    pub fn send(&mut self, message: &impl Serialize) {
        self.send_along(message, Vec::new());
    }

    /// Sends descriptors along.
    pub fn send_along(&mut self, message: &impl Serialize, descriptors: Vec<OwnedFd>) {
        let Ok(bytes) = serde_json::to_vec(message) else { return };
        if self.waiting.len() >= LONGEST_QUEUE {
            self.waiting.pop_front();
        }
        self.waiting.push_back(Packet { bytes, descriptors });
        self.flush();
    }

    /// Sends what waits, as far as the peer takes it.
    pub fn flush(&mut self) {
        while let Some(packet) = self.waiting.front() {
            let descriptors: Vec<BorrowedFd<'_>> = packet.descriptors.iter().map(AsFd::as_fd).collect();
            match self.send_packet(&packet.bytes, &descriptors) {
                Err(Errno::EAGAIN) => return,
                _ => self.waiting.pop_front(),
            };
        }
    }

    /// Has `poller`, which watches this channel under `token`, wake for writing exactly while something waits.
    pub fn rearm(&mut self, poller: &Poller, token: u64) {
        let congested = !self.waiting.is_empty();
        if congested != self.wakes_for_writing {
            self.wakes_for_writing = congested;
            // Refused only where it is no longer watched, its peer being gone.
            let _ = poller.watch_writing(&self.fd, token, congested);
        }
    }

    /// Sends descriptors along. Only as the first message of a channel, whose queue is empty then.
    pub fn send_with(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        Ok(self.send_packet(&serde_json::to_vec(message)?, descriptors)?)
    }

    fn send_packet(&self, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> nix::Result<()> {
        let numbers: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let control = if numbers.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(self.fd.as_raw_fd(), &[IoSlice::new(packet)], control, flags, None).map(drop)
    }

    /// The next message, without waiting.
    pub fn receive<M: DeserializeOwned>(&mut self) -> Received<M> {
        let mut bytes = [0; LONGEST];
        let mut space = nix::cmsg_space!([i32; MOST_DESCRIPTORS]);
        let mut buffer = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let got = match recvmsg::<()>(self.fd.as_raw_fd(), &mut buffer, Some(&mut space), flags) {
            Ok(got) => got,
            Err(Errno::EAGAIN | Errno::EINTR) => return Received::Nothing,
            Err(_) => return Received::Gone,
        };
        let mut descriptors = Vec::new();
        for message in got.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::ScmRights(numbers) = message {
                descriptors.extend(numbers.into_iter().filter_map(|number| adopt(number).ok()));
            }
        }
        let (length, cut) = (got.bytes, got.flags.contains(MsgFlags::MSG_TRUNC));
        match serde_json::from_slice(&bytes[..length]) {
            _ if length == 0 => Received::Gone,
            _ if cut => self.garbage(format!("a message of more than {LONGEST} bytes")),
            Ok(message) => Received::Message(message, descriptors),
            Err(error) => self.garbage(error.to_string()),
        }
    }

    fn garbage<M>(&mut self, why: String) -> Received<M> {
        if std::mem::replace(&mut self.had_garbage, true) { Received::MoreGarbage } else { Received::Garbage(why) }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::messages::{Order, Urgency};

    #[test]
    fn a_peer_that_does_not_read_delays_nobody_and_loses_nothing() {
        let (mut ours, theirs) = Channel::pair().unwrap();
        for _ in 0..2000 {
            ours.send(&Order::Status);
        }
        ours.send(&Order::Stop(Urgency::Quick));
        assert!(!ours.waiting.is_empty());
        let mut theirs = Channel::new(theirs);
        let mut received = Vec::new();
        while !ours.waiting.is_empty() || received.len() < 2001 {
            match theirs.receive::<Order>() {
                Received::Message(order, _) => received.push(order),
                Received::Nothing => ours.flush(),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(received.last(), Some(&Order::Stop(Urgency::Quick)));
    }

    #[test]
    fn garbage_is_told_once_and_the_end_is_noticed() {
        let (mut ours, theirs) = Channel::pair().unwrap();
        let mut theirs = Channel::new(theirs);
        ours.send(&"no order");
        assert!(matches!(theirs.receive::<Order>(), Received::Garbage(_)));
        ours.send(&[1, 2, 3]);
        assert!(matches!(theirs.receive::<Order>(), Received::MoreGarbage));
        ours.send(&Order::Status);
        assert!(matches!(theirs.receive::<Order>(), Received::Message(Order::Status, _)));
        assert!(matches!(theirs.receive::<Order>(), Received::Nothing));
        drop(ours);
        assert!(matches!(theirs.receive::<Order>(), Received::Gone));
    }
}
