//! The channel between main and a monitor: a SOCK_SEQPACKET pair that never loses a message silently.
//!
//! Sending never waits. If memory or descriptors are short, the channel tries again until [`RETRY_TIMEOUT`]. A message
//! arrives whole and after all messages before it, or the channel fails. A failure is reported once and ends the monitor,
//! because the two sides may no longer agree on anything.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize, Serializer};

use crate::carry::descriptor::Descriptor;
use crate::sys::errno::words;
use crate::sys::packets;
use crate::sys::poller::Poller;

/// Size of the buffer for most messages. A longer message gets a larger one.
const BUFFER_BYTES: usize = 4096;

/// Limit of the memory for messages that wait for a peer that does not read. A status of 4096 workers fits twice.
const MAX_WAITING_BYTES: usize = 16 << 20;

/// Pause before the next attempt after an error that may pass, such as a shortage of memory.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// An error that lasts for this time is a failure.
const RETRY_TIMEOUT: Duration = Duration::from_secs(10);

/// Limit for descriptors that cannot be received. It is shorter, because all other messages wait behind them.
const DESCRIPTOR_TIMEOUT: Duration = Duration::from_secs(1);

/// A message, which says itself how many descriptors belong to it.
pub trait Message: Serialize + DeserializeOwned {
    /// Whether this number of descriptors belongs to the message.
    fn carries(&self, descriptors: usize) -> bool;
}

/// One end of a channel.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Channel {
    #[serde(with = "crate::carry::descriptor")]
    fd: OwnedFd,
    waiting: VecDeque<Packet>,
    #[serde(skip)]
    waiting_bytes: usize,
    /// The error because of which the first waiting message is not sent.
    #[serde(skip)]
    sending: Option<Trouble>,
    /// The error because of which the next message is not received.
    #[serde(skip)]
    receiving: Option<Trouble>,
    /// Whether the poller watches for reading and for writing.
    #[serde(skip)]
    watched: (bool, bool),
    #[serde(rename = "failed", default, skip_serializing_if = "State::has_not_failed")]
    state: State,
    /// The peer no longer reads. Its last messages may still have to be received.
    #[serde(skip)]
    unheard: bool,
    /// A packet that is not a message has been reported.
    #[serde(skip)]
    had_garbage: bool,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "Option<String>")]
enum State {
    #[default]
    Open,
    /// The channel has failed at this time, and the reason is not reported yet.
    Failed(Instant, String),
    /// The peer is gone, or the failure was reported.
    Over,
}

impl State {
    fn has_not_failed(&self) -> bool {
        !matches!(self, State::Failed(..))
    }
}

impl Serialize for State {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let State::Failed(_, why) = self { Some(why) } else { None }.serialize(serializer)
    }
}

impl From<Option<String>> for State {
    fn from(failed: Option<String>) -> State {
        failed.map_or(State::Open, |why| State::Failed(Instant::now(), why))
    }
}

/// An error that may pass.
#[derive(Debug, Clone, Copy)]
struct Trouble {
    since: Instant,
    retry: Instant,
}

/// A message that waits to be sent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Packet {
    #[serde(with = "crate::carry::bytes")]
    bytes: Vec<u8>,
    descriptors: Vec<Descriptor>,
}

impl Packet {
    /// The memory that it takes, approximately.
    fn size(&self) -> usize {
        self.bytes.len() + 2 * size_of::<Packet>()
    }
}

/// The result of [`Channel::receive`].
#[derive(Debug)]
pub enum Received<M> {
    /// A message with all its descriptors.
    Message(M, Vec<OwnedFd>),
    /// A message without its descriptors: this process has no free ones.
    Cut(M),
    /// The first packet of this channel that is not a message, and why. The peer may be another build. A message that
    /// must be understood has a new protocol version, so this one may be skipped, with its descriptors.
    Garbage(String),
    /// Another such packet.
    MoreGarbage,
    /// Nothing has come.
    Nothing,
    /// A message was lost, and why. This is reported once, and then the channel is over.
    Failed(String),
    /// The peer is gone.
    Gone,
}

impl Channel {
    /// Creates a channel. The second end is for another process.
    pub fn pair() -> io::Result<(Channel, OwnedFd)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((Channel::new(ours), theirs))
    }

    /// The end that this process got. The caller watches it for reading.
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

    /// Goes on after a restart in place. The caller watches it for reading.
    pub fn resume(&mut self) {
        self.waiting_bytes = self.waiting.iter().map(Packet::size).sum();
        self.watched = (true, false);
    }

    /// Sends the message, or keeps it until the peer reads. Receiving will show if the peer is gone.
    pub fn send(&mut self, message: &impl Message) {
        self.send_along(message, Vec::new());
    }

    /// Sends the message with its descriptors.
    pub fn send_along(&mut self, message: &impl Message, descriptors: Vec<OwnedFd>) {
        if self.state != State::Open {
            return;
        }
        let bytes = match serde_json::to_vec(message) {
            Ok(bytes) if message.carries(descriptors.len()) => bytes,
            Ok(_) => return self.fail(format!("a message cannot be sent with {} descriptors", descriptors.len())),
            Err(error) => return self.fail(format!("a message cannot be written: {error}")),
        };
        self.enqueue(Packet { bytes, descriptors: descriptors.into_iter().map(Descriptor::from).collect() });
        self.flush();
        if self.waiting_bytes > MAX_WAITING_BYTES {
            self.fail(format!("the other side does not read; {} messages wait", self.waiting.len()));
        }
    }

    fn enqueue(&mut self, packet: Packet) {
        self.waiting_bytes += packet.size();
        self.waiting.push_back(packet);
    }

    /// Sends the waiting messages, as far as the peer takes them.
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
                // Receiving shows this too, but only after the last messages of the peer.
                Err(Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN) => {
                    self.unheard = true;
                    return self.drop_waiting();
                }
                Err(_) if put_off(&mut self.sending, RETRY_TIMEOUT) => return,
                Err(errno) => return self.fail(format!("cannot send: {}", words(&errno.into()))),
            }
        }
    }

    /// Sends and receives nothing more.
    pub fn close(&mut self) {
        self.drop_waiting();
        self.state = State::Over;
    }

    /// Waits until everything is sent: for a process that has nothing else to do. Fails if the peer is gone
    /// (`BrokenPipe`) or the channel has failed.
    pub fn finish(&mut self) -> io::Result<()> {
        loop {
            self.flush();
            match &self.state {
                State::Failed(_, why) => return Err(io::Error::other(why.clone())),
                _ if self.unheard => return Err(Errno::EPIPE.into()),
                _ if self.waiting.is_empty() => return Ok(()),
                _ => {}
            }
            let pause = PollTimeout::from(RETRY_PAUSE.as_millis() as u16);
            let timeout = if self.sending.is_some() { pause } else { PollTimeout::NONE };
            let flags = if self.sending.is_some() { PollFlags::empty() } else { PollFlags::POLLOUT };
            // The result does not matter: the next attempt shows what there is.
            let _ = poll(&mut [PollFd::new(self.fd.as_fd(), flags)], timeout);
        }
    }

    /// When to call `flush` and `receive` even if nothing has come: to try again, or to report a failure.
    pub fn deadline(&self) -> Option<Instant> {
        let retry = || [&self.sending, &self.receiving].into_iter().flatten().map(|trouble| trouble.retry).min();
        match self.state {
            State::Open => retry(),
            State::Failed(since, _) => Some(since),
            State::Over => None,
        }
    }

    /// Updates what `poller` watches under `token`: reading, unless that is put off, and writing while messages wait.
    pub fn rearm(&mut self, poller: &Poller, token: u64) {
        let open = self.state == State::Open;
        let reading = open && self.receiving.is_none();
        let wanted = (reading, open && !self.waiting.is_empty() && self.sending.is_none());
        if wanted != self.watched {
            self.watched = wanted;
            // This fails only if the channel is not watched any more because its peer is gone.
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
                if !put_off(&mut self.receiving, RETRY_TIMEOUT) {
                    self.fail(format!("cannot receive: {}", words(&errno.into())));
                }
                Received::Nothing
            }
        }
    }

    /// Takes the next packet; None at the end. A packet stays in the queue until it can be received whole.
    fn next_packet(&mut self) -> Result<Option<(Vec<u8>, packets::Packet)>, Errno> {
        let mut bytes = vec![0; BUFFER_BYTES];
        let mut was_reset = false;
        loop {
            let packet = match packets::peek(&self.fd, &mut bytes) {
                // The kernel reports this error once; the last messages of the peer come after it.
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
            if packet.lacks_descriptors && put_off(&mut self.receiving, DESCRIPTOR_TIMEOUT) {
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
                Received::Failed(format!(
                    "a message came with {} descriptors, which is not the right number",
                    descriptors.len()
                ))
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

/// Plans the next attempt. Returns false if the error has lasted for `timeout`.
fn put_off(trouble: &mut Option<Trouble>, timeout: Duration) -> bool {
    let now = Instant::now();
    let trouble = trouble.get_or_insert(Trouble { since: now, retry: now });
    trouble.retry = now + RETRY_PAUSE;
    now < trouble.since + timeout
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
        crate::sys::soon(|| {
            match theirs.receive::<Order>() {
                Received::Message(order, _) => received.push(order),
                Received::Nothing => ours.flush(),
                other => panic!("{other:?}"),
            }
            (ours.waiting.is_empty() && received.len() >= 2001).then_some(())
        });
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
        while ours.state == State::Open && sent < 1_000_000 {
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
        assert!(put_off(&mut trouble, RETRY_TIMEOUT));
        let since = trouble.map(|trouble| trouble.since);
        assert!(put_off(&mut trouble, RETRY_TIMEOUT));
        assert_eq!(trouble.map(|trouble| trouble.since), since);
        assert!(!put_off(&mut trouble, Duration::ZERO));
    }
}
