//! A client of the control socket: what it has sent, and the answer that it has not read yet.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use super::requests::{Answer, MAX_REQUEST_BYTES, Outcome};
use crate::sys::descriptors::{Kept, take_over};

/// A client must send a complete line, or read some of its answer, within this time.
pub(super) const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a client is between its request and the end of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

#[derive(Debug)]
pub(super) struct Client {
    pub(super) stream: UnixStream,
    pub(super) phase: Phase,
    /// When the phase began, or when the client last read some of its answer.
    pub(super) since: Instant,
    input: Vec<u8>,
    /// The client will send no more.
    ended: bool,
    /// Lines that the client has not read yet. Clients that asked for the same thing share them.
    pub(super) output: VecDeque<Rc<[u8]>>,
    /// Number of bytes of the first line that are written.
    written: usize,
    /// Whether the poller watches for reading and for writing.
    pub(super) watched: (bool, bool),
}

/// A client as one main hands it on to the next.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Carried {
    pub(super) stream: RawFd,
    #[serde(with = "crate::carry::bytes")]
    input: Vec<u8>,
    #[serde(with = "crate::carry::bytes")]
    output: Vec<u8>,
    busy: bool,
    ended: bool,
    closing: bool,
    #[serde(with = "crate::carry::moment")]
    since: Instant,
}

impl Client {
    pub(super) fn new(stream: UnixStream, now: Instant) -> Client {
        Client {
            stream,
            phase: Phase::Reading,
            since: now,
            input: Vec::new(),
            ended: false,
            output: VecDeque::new(),
            written: 0,
            watched: (true, false),
        }
    }

    pub(super) fn carry<'a>(&'a self, kept: &mut Kept<'a>) -> Carried {
        Carried {
            stream: kept.keep(&self.stream),
            input: self.input.clone(),
            output: self.output.iter().flat_map(|line| line.iter().copied()).skip(self.written).collect(),
            busy: self.phase == Phase::Asked,
            ended: self.ended,
            closing: self.phase == Phase::Leaving,
            since: self.since,
        }
    }

    pub(super) fn take_over(carried: Carried) -> io::Result<Client> {
        let Carried { stream, input, output, busy, ended, closing, since } = carried;
        let phase = match (closing, busy, output.is_empty()) {
            (true, ..) => Phase::Leaving,
            (_, true, _) => Phase::Asked,
            (.., false) => Phase::Answering,
            _ => Phase::Reading,
        };
        let output = VecDeque::from_iter((!output.is_empty()).then(|| Rc::from(output)));
        Ok(Client { phase, input, ended, output, ..Client::new(UnixStream::from(take_over(stream)?), since) })
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
        self.output.clear();
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
        self.output.push_back(line);
        if !self.flush(now) {
            self.give_up();
        }
    }

    /// Writes as much as the client takes. Returns false if the client is gone.
    pub(super) fn flush(&mut self, now: Instant) -> bool {
        while let Some(line) = self.output.front() {
            match self.stream.write(&line[self.written..]) {
                Ok(count) => {
                    self.written += count;
                    self.since = now;
                }
                Err(error) => return may_pass(&error),
            }
            if self.written == line.len() {
                self.written = 0;
                self.output.pop_front();
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

    #[test]
    fn a_client_that_was_given_up_in_the_middle_of_a_line_gets_no_other() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let now = Instant::now();
        let mut client = Client::new(ours, now);
        client.phase = Phase::Asked;
        client.put_line(vec![b'x'; 4 << 20].into(), false, now);
        assert!(client.written > 0 && !client.output.is_empty());
        client.give_up();
        client.put_line(vec![b'y'; 2].into(), true, now);
        assert!(client.is_over());
        drop(theirs);
    }
}
