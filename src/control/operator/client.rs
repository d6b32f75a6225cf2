//! One who is connected to the control socket: what he sent, and what he has not read yet.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Instant;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use crate::control::operator::requests::{Answer, MAX_REQUEST_BYTES};
use crate::sys::descriptors::{Kept, take_over};

#[derive(Debug)]
pub(super) struct Client {
    pub(super) stream: UnixStream,
    pub(super) input: Vec<u8>,
    /// Lines that it has not read yet. Those who asked for the same share them.
    pub(super) output: VecDeque<Rc<[u8]>>,
    /// How much of the first one is written.
    written: usize,
    /// It asked for something and has no last line yet.
    pub(super) busy: bool,
    /// It will send no more.
    pub(super) ended: bool,
    /// It is closed once it has read its answer.
    pub(super) closing: bool,
    pub(super) since: Instant,
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
            input: Vec::new(),
            output: VecDeque::new(),
            written: 0,
            busy: false,
            ended: false,
            closing: false,
            since: now,
            watched: (true, false),
        }
    }

    pub(super) fn carry<'a>(&'a self, kept: &mut Kept<'a>) -> Carried {
        Carried {
            stream: kept.keep(&self.stream),
            input: self.input.clone(),
            output: self.output.iter().flat_map(|line| line.iter().copied()).skip(self.written).collect(),
            busy: self.busy,
            ended: self.ended,
            closing: self.closing,
            since: self.since,
        }
    }

    pub(super) fn take_over(carried: Carried) -> io::Result<Client> {
        let Carried { stream, input, output, busy, ended, closing, since } = carried;
        let stream = UnixStream::from(take_over(stream)?);
        let output = VecDeque::from_iter((!output.is_empty()).then(|| Rc::from(output)));
        Ok(Client { stream, input, output, written: 0, busy, ended, closing, since, watched: (true, false) })
    }

    pub(super) fn has_line(&self) -> bool {
        self.input.contains(&b'\n')
    }

    /// Whether it may ask: what it was answered before, it has read.
    pub(super) fn may_ask(&self) -> bool {
        !self.busy && !self.closing && self.output.is_empty()
    }

    /// Nothing more is sent to it.
    pub(super) fn give_up(&mut self) {
        self.output.clear();
        self.closing = true;
    }

    pub(super) fn next_line(&mut self) -> Option<Vec<u8>> {
        let end = self.input.iter().position(|&byte| byte == b'\n')?;
        Some(self.input.drain(..=end).collect())
    }

    pub(super) fn put(&mut self, answer: impl Into<Answer>, now: Instant) {
        self.put_line(line(&answer.into()), now);
    }

    pub(super) fn put_line(&mut self, line: Rc<[u8]>, now: Instant) {
        if self.output.is_empty() {
            self.since = now;
        }
        self.output.push_back(line);
        if !self.flush(now) {
            self.give_up();
        }
    }

    /// Writes as much as the client takes. False where it is gone.
    pub(super) fn flush(&mut self, now: Instant) -> bool {
        while let Some(line) = self.output.front() {
            match self.stream.write(&line[self.written..]) {
                Ok(count) => {
                    self.written += count;
                    self.since = now;
                }
                Err(error) => return is_passing(&error),
            }
            if self.written == line.len() {
                self.written = 0;
                self.output.pop_front();
            }
        }
        true
    }

    /// Reads a little. False where it is gone.
    pub(super) fn read(&mut self) -> bool {
        if !self.may_ask() || self.ended || self.input.len() >= MAX_REQUEST_BYTES {
            return true;
        }
        let mut bytes = [0; MAX_REQUEST_BYTES];
        match self.stream.read(&mut bytes[..MAX_REQUEST_BYTES - self.input.len()]) {
            Ok(0) => self.ended = true,
            Ok(count) => self.input.extend_from_slice(&bytes[..count]),
            Err(error) => return is_passing(&error),
        }
        true
    }

    /// Whether the other end is wholly closed; one that only sends no more still wants its answer.
    pub(super) fn is_gone(&self) -> bool {
        let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }
}

/// An answer as it is sent.
pub(super) fn line(answer: &Answer) -> Rc<[u8]> {
    // What is made of strings and numbers can be written.
    let mut line = serde_json::to_vec(answer).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

/// Whether the same call may work later: the peer is there.
fn is_passing(error: &io::Error) -> bool {
    let is_short = matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM));
    is_short || [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind())
}
