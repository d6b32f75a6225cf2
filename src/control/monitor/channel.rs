//! The channel between main and a monitor: a SOCK_SEQPACKET pair, on which no message gets lost in silence.
//!
//! Sending never waits. What cannot be sent or received for the moment, for want of memory or of descriptors, is tried
//! again for [`PATIENCE`]. A message either arrives whole, after all those before it, or the channel has failed: that is
//! told once, and ends the monitor, since nobody could say what the two sides still agree on.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::sys::descriptors::{Kept, take_over};
use crate::sys::packets;
use crate::sys::poller::Poller;

/// Length of an ordinary message, in bytes. A longer one is read as well.
const ORDINARY_BYTES: usize = 4096;

/// How much memory may be taken by messages that wait for a peer that does not read. A status of 4096 workers fits twice.
const MAX_WAITING_BYTES: usize = 16 << 20;

/// What passes, such as a want of memory, is tried again after this pause.
const PAUSE: Duration = Duration::from_millis(20);

/// What has not passed by then is a failure.
const PATIENCE: Duration = Duration::from_secs(10);

/// The same for descriptors that cannot be taken: all other messages wait behind them.
const PATIENCE_FOR_DESCRIPTORS: Duration = Duration::from_secs(1);

/// What is sent over a channel. It says itself how many descriptors come along.
pub trait Message: Serialize + DeserializeOwned {
    /// Whether this message is whole with so many descriptors.
    fn carries(&self, descriptors: usize) -> bool;
}

/// One end of a channel.
#[derive(Debug)]
pub struct Channel {
    fd: OwnedFd,
    waiting: VecDeque<Packet>,
    waiting_bytes: usize,
    /// What keeps the first message that waits from being sent, or the next one from being received.
    sending: Option<Trouble>,
    receiving: Option<Trouble>,
    /// What the poller watches for: reading and writing.
    watched: (bool, bool),
    state: State,
    /// Nobody reads what is sent. What the peer said before it went is still to be read.
    unheard: bool,
    /// Something that is no message has come, and was given as such.
    had_garbage: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Open,
    /// It has failed at that time, and nobody has been told why.
    Failed(Instant, String),
    /// The peer is gone, or the failure was told.
    Over,
}

/// A failure that may pass.
#[derive(Debug, Clone, Copy)]
struct Trouble {
    since: Instant,
    retry: Instant,
}

/// A message under way.
#[derive(Debug)]
struct Packet {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Packet {
    /// About so much memory it takes.
    fn size(&self) -> usize {
        self.bytes.len() + 2 * size_of::<Packet>()
    }
}

/// A channel as one main hands it on to the next.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Carried {
    fd: RawFd,
    waiting: Vec<CarriedPacket>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
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
    /// A message with its descriptors, as many as it says.
    Message(M, Vec<OwnedFd>),
    /// A message whose descriptors could not be taken: this process has none left.
    Cut(M),
    /// The first message of this channel that is none we know, and why. The peer may be another build, and main and its
    /// monitors say what has to be understood by a version: what is not is left out, with its descriptors.
    Garbage(String),
    /// A further one.
    MoreGarbage,
    /// Nothing for now.
    Nothing,
    /// A message was lost, and why. Given once; the channel is of no use any more.
    Failed(String),
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

    /// The end that was handed to us; watched for reading, by whoever watches it.
    pub fn new(fd: OwnedFd) -> Channel {
        Channel {
            fd,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            sending: None,
            receiving: None,
            watched: (true, false),
            state: State::Open,
            unheard: false,
            had_garbage: false,
        }
    }

    /// For the next main, with what still waits to be sent.
    pub fn carry<'a>(&'a self, kept: &mut Kept<'a>) -> Carried {
        let fd = kept.keep(&self.fd);
        let mut packet = |packet: &'a Packet| CarriedPacket {
            bytes: packet.bytes.clone(),
            descriptors: packet.descriptors.iter().map(|fd| kept.keep(fd)).collect(),
        };
        let failed = if let State::Failed(_, why) = &self.state { Some(why.clone()) } else { None };
        Carried { fd, waiting: self.waiting.iter().map(&mut packet).collect(), failed }
    }

    /// What the main before has handed on; watched by nobody yet.
    pub fn take_over(carried: Carried) -> io::Result<Channel> {
        let mut channel = Channel::new(take_over(carried.fd)?);
        for CarriedPacket { bytes, descriptors } in carried.waiting {
            let descriptors = descriptors.into_iter().map(take_over).collect::<io::Result<_>>()?;
            channel.enqueue(Packet { bytes, descriptors });
        }
        channel.state = carried.failed.map_or(State::Open, |why| State::Failed(Instant::now(), why));
        Ok(channel)
    }

    /// Sends, or keeps the message until the peer reads. A peer that is gone is noticed by reading.
    pub fn send(&mut self, message: &impl Message) {
        self.send_along(message, Vec::new());
    }

    /// Sends descriptors along, as many as the message says.
    pub fn send_along(&mut self, message: &impl Message, descriptors: Vec<OwnedFd>) {
        if self.state != State::Open {
            return;
        }
        let bytes = match serde_json::to_vec(message) {
            Ok(bytes) if message.carries(descriptors.len()) => bytes,
            Ok(_) => return self.fail(format!("{} descriptors do not go with that message", descriptors.len())),
            Err(error) => return self.fail(format!("a message cannot be written: {error}")),
        };
        self.enqueue(Packet { bytes, descriptors });
        self.flush();
        if self.waiting_bytes > MAX_WAITING_BYTES {
            self.fail(format!("{} messages wait, and none is read", self.waiting.len()));
        }
    }

    fn enqueue(&mut self, packet: Packet) {
        self.waiting_bytes += packet.size();
        self.waiting.push_back(packet);
    }

    /// Sends what waits, as far as the peer takes it.
    pub fn flush(&mut self) {
        while let Some(packet) = self.waiting.front() {
            let descriptors: Vec<BorrowedFd<'_>> = packet.descriptors.iter().map(AsFd::as_fd).collect();
            let sent = packets::send(&self.fd, &packet.bytes, &descriptors);
            match sent {
                Ok(()) => {
                    self.waiting_bytes -= packet.size();
                    self.waiting.pop_front();
                    self.sending = None;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return self.sending = None,
                // That is noticed by reading, after what the peer said last.
                Err(Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN) => {
                    self.unheard = true;
                    return self.drop_waiting();
                }
                Err(errno) => match put_off(&mut self.sending, PATIENCE) {
                    true => return,
                    false => return self.fail(format!("cannot send: {}", errno.desc())),
                },
            }
        }
    }

    /// Gives it up: nothing more is sent or received.
    pub fn close(&mut self) {
        self.drop_waiting();
        self.state = State::Over;
    }

    /// Waits until everything is sent. For a process that ends then, or has nothing else to do before. Fails where the
    /// peer is gone (`BrokenPipe`) or the channel has failed.
    pub fn finish(&mut self) -> io::Result<()> {
        loop {
            self.flush();
            match &self.state {
                State::Failed(_, why) => return Err(io::Error::other(why.clone())),
                _ if self.unheard => return Err(Errno::EPIPE.into()),
                _ if self.waiting.is_empty() => return Ok(()),
                _ => {}
            }
            let pause = PollTimeout::from(PAUSE.as_millis() as u16);
            let timeout = if self.sending.is_some() { pause } else { PollTimeout::NONE };
            let flags = if self.sending.is_some() { PollFlags::empty() } else { PollFlags::POLLOUT };
            // Whatever it says, the next try shows what there is.
            let _ = poll(&mut [PollFd::new(self.fd.as_fd(), flags)], timeout);
        }
    }

    /// When to look at this channel though nothing has come: what did not work is tried again, or has failed for good.
    pub fn deadline(&self) -> Option<Instant> {
        let failed = || [&self.sending, &self.receiving].into_iter().flatten().map(|trouble| trouble.retry).min();
        match self.state {
            State::Open => failed(),
            State::Failed(since, _) => Some(since),
            State::Over => None,
        }
    }

    /// Has `poller`, which watches this channel under `token`, wake for what can be done: reading, unless that is put off,
    /// and writing while something waits.
    pub fn rearm(&mut self, poller: &Poller, token: u64) {
        let open = self.state == State::Open;
        let reading = open && self.receiving.is_none();
        let wanted = (reading, open && !self.waiting.is_empty() && self.sending.is_none());
        if wanted != self.watched {
            self.watched = wanted;
            // Refused only where it is no longer watched, its peer being gone.
            let _ = poller.watch_for(&self.fd, token, wanted.0, wanted.1);
        }
    }

    /// The next message, without waiting.
    pub fn receive<M: Message>(&mut self) -> Received<M> {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Failed(_, why) => return Received::Failed(why),
            State::Over => return Received::Nothing,
            State::Open => self.state = State::Open,
        }
        match self.next_packet() {
            Ok(Some((bytes, packet))) => self.read_message(&bytes, packet),
            Ok(None) => {
                self.state = State::Over;
                Received::Gone
            }
            Err(Errno::EAGAIN) => Received::Nothing,
            Err(errno) => {
                if !put_off(&mut self.receiving, PATIENCE) {
                    self.fail(format!("cannot receive: {}", errno.desc()));
                }
                Received::Nothing
            }
        }
    }

    /// Takes the next packet, and none at the end. It is left where it is for as long as it cannot be had whole.
    fn next_packet(&mut self) -> Result<Option<(Vec<u8>, packets::Packet)>, Errno> {
        let mut bytes = vec![0; ORDINARY_BYTES];
        let mut was_reset = false;
        loop {
            let packet = match packets::peek(&self.fd, &mut bytes) {
                // What the peer said before it went comes after this error, which the kernel gives once.
                Err(Errno::ECONNRESET) if !std::mem::replace(&mut was_reset, true) => continue,
                Err(Errno::ECONNRESET | Errno::ENOTCONN) => return Ok(None),
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            if packet.length == 0 {
                return Ok(None);
            }
            if packet.length > bytes.len() {
                bytes.resize(packet.length, 0);
                continue;
            }
            if packet.lacks_descriptors && put_off(&mut self.receiving, PATIENCE_FOR_DESCRIPTORS) {
                return Err(Errno::EAGAIN);
            }
            packets::discard(&self.fd)?;
            self.receiving = None;
            bytes.truncate(packet.length);
            return Ok(Some((bytes, packet)));
        }
    }

    fn read_message<M: Message>(&mut self, bytes: &[u8], packet: packets::Packet) -> Received<M> {
        let packets::Packet { descriptors, lacks_descriptors, .. } = packet;
        match serde_json::from_slice::<M>(bytes) {
            Ok(message) if lacks_descriptors => Received::Cut(message),
            Ok(message) if message.carries(descriptors.len()) => Received::Message(message, descriptors),
            Ok(_) => {
                self.state = State::Over;
                Received::Failed(format!("a message came with {} descriptors, and says otherwise", descriptors.len()))
            }
            Err(_) if std::mem::replace(&mut self.had_garbage, true) => Received::MoreGarbage,
            Err(error) => Received::Garbage(error.to_string()),
        }
    }

    fn fail(&mut self, why: String) {
        self.drop_waiting();
        self.state = State::Failed(Instant::now(), why);
    }

    fn drop_waiting(&mut self) {
        self.waiting.clear();
        self.waiting_bytes = 0;
    }
}

/// Whether what did not work is to be tried again, and has not failed for `patience` yet.
fn put_off(trouble: &mut Option<Trouble>, patience: Duration) -> bool {
    let now = Instant::now();
    let trouble = trouble.get_or_insert(Trouble { since: now, retry: now });
    trouble.retry = now + PAUSE;
    now < trouble.since + patience
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::monitor::messages::{Order, Report, Urgency};

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
        packets::send(&ours, b"\"no order\"", &[]).unwrap();
        assert!(matches!(theirs.receive::<Order>(), Received::Garbage(_)));
        packets::send(&ours, b"[1, 2, 3]", &[]).unwrap();
        assert!(matches!(theirs.receive::<Order>(), Received::MoreGarbage));
        ours.send(&Order::Status);
        assert!(matches!(theirs.receive::<Order>(), Received::Message(Order::Status, _)));
        assert!(matches!(theirs.receive::<Order>(), Received::Nothing));
        drop(ours);
        assert!(matches!(theirs.receive::<Order>(), Received::Gone));
    }

    #[test]
    fn last_words_arrive_also_from_a_peer_that_has_not_read_everything() {
        let (mut ours, theirs) = Channel::pair().unwrap();
        let mut theirs = Channel::new(theirs);
        ours.send(&Order::Status);
        theirs.send(&Report::GaveUp);
        theirs.send(&Report::StatusEnd);
        drop(theirs);
        assert!(matches!(ours.receive::<Report>(), Received::Message(Report::GaveUp, _)));
        assert!(matches!(ours.receive::<Report>(), Received::Message(Report::StatusEnd, _)));
        assert!(matches!(ours.receive::<Report>(), Received::Gone));
        assert!(matches!(ours.receive::<Report>(), Received::Nothing));
    }

    #[test]
    fn a_long_message_arrives_whole() {
        let (mut ours, theirs) = Channel::pair().unwrap();
        let report = Report::Unseeable { slot: 0, why: "x".repeat(100_000) };
        ours.send(&report);
        match Channel::new(theirs).receive::<Report>() {
            Received::Message(received, _) => assert_eq!(received, report),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_message_with_other_descriptors_than_it_says_ends_the_channel() {
        let message = serde_json::to_vec(&Order::Shared { ticket: 1 }).unwrap();
        for count in [0, 2] {
            let (ours, theirs) = Channel::pair().unwrap();
            let mut theirs = Channel::new(theirs);
            let (mut reader, writer) = io::pipe().unwrap();
            packets::send(&ours, &message, &vec![writer.as_fd(); count]).unwrap();
            drop(writer);
            assert!(matches!(theirs.receive::<Order>(), Received::Failed(_)), "{count}");
            assert!(matches!(theirs.receive::<Order>(), Received::Nothing), "{count}");
            // None of them stays open.
            assert_eq!(io::Read::read(&mut reader, &mut [0]).unwrap(), 0, "{count}");
        }
    }

    #[test]
    fn a_queue_that_stays_full_ends_the_channel_and_that_is_told_once() {
        let (mut ours, _theirs) = Channel::pair().unwrap();
        let mut sent = 0;
        while ours.state == State::Open {
            ours.send(&Order::Status);
            sent += 1;
        }
        assert!((10_000..1_000_000).contains(&sent), "{sent}");
        assert!(ours.deadline().is_some_and(|deadline| deadline <= Instant::now()));
        assert!(ours.waiting.is_empty());
        assert!(matches!(ours.receive::<Report>(), Received::Failed(_)));
        assert!(matches!(ours.receive::<Report>(), Received::Nothing));
        assert_eq!(ours.deadline(), None);
    }

    #[test]
    fn what_may_pass_is_tried_again_and_fails_in_the_end() {
        let mut trouble = None;
        assert!(put_off(&mut trouble, PATIENCE));
        let since = trouble.map(|trouble| trouble.since);
        assert!(put_off(&mut trouble, PATIENCE));
        assert_eq!(trouble.map(|trouble| trouble.since), since);
        assert!(!put_off(&mut trouble, Duration::ZERO));
    }
}
