//! A client of the control socket: what it has sent, and the answer that it has not read yet.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::requests::{Answer, MAX_REQUEST_BYTES, Outcome};
use crate::carry::bytes;
use crate::config::Right;

/// A client must send a complete line, or read some of its answer, within this time.
pub(super) const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

/// The phase of a client between its request and the end of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Flags", from = "Flags")]
pub(super) enum Phase {
    /// It may send a request.
    Reading,
    /// Main works on its request. Lines about the progress may wait to be read.
    Asked,
    /// The last line of an answer waits to be read.
    Answering,
    /// It is closed once it has read what waits for it.
    Leaving,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Client {
    #[serde(with = "crate::carry::descriptor")]
    pub(super) stream: UnixStream,
    #[serde(flatten)]
    pub(super) phase: Phase,
    /// When the phase began, or when the client last read some of its answer.
    #[serde(with = "crate::carry::moment")]
    pub(super) since: Instant,
    #[serde(with = "bytes")]
    input: Vec<u8>,
    /// The client will send no more.
    ended: bool,
    pub(super) output: Output,
    /// Its rights.
    #[serde(default, skip_serializing_if = "Right::is_usual")]
    pub(super) right: Right,
    /// Whether the poller watches for reading and for writing.
    #[serde(skip)]
    pub(super) watched: (bool, bool),
}

/// A phase in the document of a restart in place.
#[derive(Serialize, Deserialize)]
struct Flags {
    busy: bool,
    closing: bool,
}

impl From<Phase> for Flags {
    fn from(phase: Phase) -> Flags {
        Flags { busy: phase == Phase::Asked, closing: phase == Phase::Leaving }
    }
}

impl From<Flags> for Phase {
    fn from(flags: Flags) -> Phase {
        match flags {
            Flags { closing: true, .. } => Phase::Leaving,
            Flags { busy: true, .. } => Phase::Asked,
            // [`Client::resume`] tells it from `Answering`.
            Flags { .. } => Phase::Reading,
        }
    }
}

/// Lines that wait to be read. The document of a restart in place has their bytes.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// Clients that asked for the same thing share a line.
    pub(super) lines: VecDeque<Rc<[u8]>>,
    /// Number of bytes of the first line that are written.
    written: usize,
}

impl Output {
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}

impl Serialize for Output {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let unread: Vec<u8> = self.lines.iter().flat_map(|line| line.iter().copied()).skip(self.written).collect();
        bytes::serialize(&unread, serializer)
    }
}

impl<'de> Deserialize<'de> for Output {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Output, D::Error> {
        let unread = bytes::deserialize(deserializer)?;
        Ok(Output { lines: VecDeque::from_iter((!unread.is_empty()).then(|| Rc::from(unread))), written: 0 })
    }
}

impl Client {
    pub(super) fn new(stream: UnixStream, now: Instant) -> Client {
        Client {
            stream,
            phase: Phase::Reading,
            since: now,
            input: Vec::new(),
            ended: false,
            output: Output::default(),
            right: Right::default(),
            watched: (true, false),
        }
    }

    /// Goes on after a restart in place. The caller watches it for reading.
    pub(super) fn resume(&mut self) {
        self.watched = (true, false);
        if self.phase == Phase::Reading && !self.output.is_empty() {
            self.phase = Phase::Answering;
        }
    }

    pub(super) fn has_line(&self) -> bool {
        self.input.contains(&b'\n')
    }

    /// Takes the next line, if it is complete.
    pub(super) fn next_line(&mut self) -> Option<Vec<u8>> {
        let end = self.input.iter().position(|&byte| byte == b'\n')?;
        Some(self.input.drain(..=end).collect())
    }

    /// Whether the input is longer than a request may be. Meant for a client without a complete line.
    pub(super) fn is_too_long(&self) -> bool {
        self.input.len() >= MAX_REQUEST_BYTES
    }

    /// When the client is given up, or its request is due. None while main works on its request.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Reading if self.has_line() => Some(self.since),
            Phase::Asked if self.output.is_empty() => None,
            _ => Some(self.since + CLIENT_TIMEOUT),
        }
    }

    /// Whether nothing is left to read from the client or to write to it.
    pub(super) fn is_over(&self) -> bool {
        self.output.is_empty()
            && match self.phase {
                Phase::Leaving => true,
                Phase::Asked => false,
                Phase::Reading | Phase::Answering => self.ended && !self.has_line(),
            }
    }

    /// Whether to watch for reading and for writing.
    pub(super) fn wanted(&self) -> (bool, bool) {
        (self.phase == Phase::Reading && !self.ended, !self.output.is_empty())
    }

    /// Drops what the client has not read, and sends nothing more.
    pub(super) fn give_up(&mut self) {
        self.output.lines.clear();
        self.phase = Phase::Leaving;
    }

    /// Sends a last line to a client that did not ask, or asked wrongly.
    pub(super) fn refuse(&mut self, why: impl Into<String>, now: Instant) {
        self.put_line(line(&Outcome::refused(why).into()), true, now);
    }

    /// Sends a line; `is_last` says whether it is the last one of an answer.
    pub(super) fn put_line(&mut self, line: Rc<[u8]>, is_last: bool, now: Instant) {
        if self.phase == Phase::Leaving {
            return;
        }
        if self.output.is_empty() || is_last {
            self.since = now;
        }
        if is_last {
            self.phase = Phase::Answering;
        }
        self.output.lines.push_back(line);
        if !self.flush(now) {
            self.give_up();
        }
    }

    /// Writes as much as the client takes. Returns false if the client is gone.
    pub(super) fn flush(&mut self, now: Instant) -> bool {
        while let Some(line) = self.output.lines.front() {
            match self.stream.write(&line[self.output.written..]) {
                Ok(count) => {
                    self.output.written += count;
                    self.since = now;
                }
                Err(error) => return may_pass(&error),
            }
            if self.output.written == line.len() {
                self.output.written = 0;
                self.output.lines.pop_front();
            }
        }
        if self.phase == Phase::Answering {
            self.phase = Phase::Reading;
        }
        true
    }

    /// Reads some bytes. Returns false if the client is gone.
    pub(super) fn read(&mut self) -> bool {
        if self.phase != Phase::Reading || self.ended || self.is_too_long() {
            return true;
        }
        let mut bytes = [0; MAX_REQUEST_BYTES];
        match self.stream.read(&mut bytes[..MAX_REQUEST_BYTES - self.input.len()]) {
            Ok(0) => self.ended = true,
            Ok(count) => self.input.extend_from_slice(&bytes[..count]),
            Err(error) => return may_pass(&error),
        }
        true
    }

    /// Whether the other end is closed for reading too. A client that only sends no more still wants its answer.
    pub(super) fn is_gone(&self) -> bool {
        let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }
}

/// The bytes of a line.
pub(super) fn line(answer: &Answer) -> Rc<[u8]> {
    // Strings and numbers can always be written as JSON.
    let mut line = serde_json::to_vec(answer).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

/// Whether the client is still there, and the same call may succeed later.
fn may_pass(error: &io::Error) -> bool {
    let is_short = matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM));
    is_short || [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::carry::descriptor::{Read, Written, read, write};

    #[test]
    fn a_restart_in_place_keeps_the_phase_and_what_is_unread() {
        let unread = Output { lines: [Rc::from(*b"abc"), Rc::from(*b"\xff\n")].into(), written: 1 };
        let mut client = Client { output: unread, ..Client::new(UnixStream::pair().unwrap().0, Instant::now()) };
        for phase in [Phase::Answering, Phase::Asked, Phase::Leaving] {
            client.phase = phase;
            let written = write(&client, Written::Unchanged).unwrap();
            let mut again: Client = read(&written, Read::StandIns).unwrap();
            again.resume();
            assert_eq!((again.phase, again.output.lines), (phase, [Rc::from(*b"bc\xff\n")].into()));
            let richer = String::from_utf8(written).unwrap().replacen('{', "{\"later\":1,", 1);
            let refused = read::<Client>(richer.as_bytes(), Read::StandIns).unwrap_err().to_string();
            assert!(refused.contains("unknown field `later`"), "{refused}");
        }
    }

    #[test]
    fn a_client_that_was_given_up_in_the_middle_of_a_line_gets_no_other() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let now = Instant::now();
        let mut client = Client::new(ours, now);
        client.phase = Phase::Asked;
        client.put_line(vec![b'x'; 4 << 20].into(), false, now);
        assert!(client.output.written > 0 && !client.output.is_empty());
        client.give_up();
        client.put_line(vec![b'y'; 2].into(), true, now);
        assert!(client.is_over());
        drop(theirs);
    }
}
