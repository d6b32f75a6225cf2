//! One who is connected to the control socket: what he sent, and what he has not read yet.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use crate::control::requests::{Answer, LONGEST_REQUEST};
use crate::sys::descriptors::{Kept, take_over};

#[derive(Debug)]
pub(super) struct Client {
    pub(super) stream: UnixStream,
    pub(super) input: Vec<u8>,
    pub(super) output: Vec<u8>,
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
            output: Vec::new(),
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
            output: self.output.clone(),
            busy: self.busy,
            ended: self.ended,
            closing: self.closing,
            since: self.since,
        }
    }

    pub(super) fn take_over(carried: Carried) -> io::Result<Client> {
        let Carried { stream, input, output, busy, ended, closing, since } = carried;
        let stream = UnixStream::from(take_over(stream)?);
        Ok(Client { stream, input, output, busy, ended, closing, since, watched: (true, false) })
    }

    pub(super) fn has_line(&self) -> bool {
        self.input.contains(&b'\n')
    }

    pub(super) fn next_line(&mut self) -> Option<Vec<u8>> {
        let end = self.input.iter().position(|&byte| byte == b'\n')?;
        Some(self.input.drain(..=end).collect())
    }

    pub(super) fn put(&mut self, answer: &Answer, now: Instant) {
        if self.output.is_empty() {
            self.since = now;
        }
        // What is made of strings and numbers can be written.
        let _ = serde_json::to_writer(&mut self.output, answer);
        self.output.push(b'\n');
        if !self.flush(now) {
            self.closing = true;
            self.output.clear();
        }
    }

    /// Writes as much as the client takes. False where it is gone.
    pub(super) fn flush(&mut self, now: Instant) -> bool {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(written) => {
                    self.output.drain(..written);
                    self.since = now;
                }
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        self.output = Vec::new();
        true
    }

    /// Reads a little. False where it is gone.
    pub(super) fn read(&mut self) -> bool {
        if self.busy || self.ended || self.closing || self.input.len() >= LONGEST_REQUEST {
            return true;
        }
        let mut bytes = [0; LONGEST_REQUEST];
        match self.stream.read(&mut bytes[..LONGEST_REQUEST - self.input.len()]) {
            Ok(0) => self.ended = true,
            Ok(count) => self.input.extend_from_slice(&bytes[..count]),
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
        true
    }

    /// Whether the other end is wholly closed; one that only sends no more still wants its answer.
    pub(super) fn is_gone(&self) -> bool {
        let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }
}
