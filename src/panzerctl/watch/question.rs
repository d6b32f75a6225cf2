//! A question to main under way: the loop does not wait for its answer, so that keys and signals are heeded meanwhile.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use super::super::client::{read_answer, status_in};
use super::super::instances::Instance;
use crate::control::operator::requests::{Command, Request};
use crate::control::operator::status::Status;

/// The longest line of an answer.
const LONGEST_ANSWER: usize = 16 << 20;

#[derive(Debug)]
pub(super) struct Question {
    stream: UnixStream,
    input: Vec<u8>,
}

impl Question {
    /// Asks for the state. Fails with `WouldBlock` where main is stopped and its queue is full.
    pub(super) fn ask(instance: &Instance) -> io::Result<Question> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(fd.as_raw_fd(), &UnixAddr::new(&instance.socket)?)?;
        instance.check_peer(&fd)?;
        let mut stream = UnixStream::from(fd);
        let mut line = serde_json::to_vec(&Request::new(Command::Status))?;
        line.push(b'\n');
        // Where it cannot be written, the answer says why: it was refused.
        let _ = stream.write_all(&line);
        Ok(Question { stream, input: Vec::new() })
    }

    /// The answer, once it is there as a whole.
    pub(super) fn answer(&mut self) -> Option<Result<Status, String>> {
        let mut chunk = [0; 65536];
        while !self.input.contains(&b'\n') {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Some(Err("panzer closed the connection without an answer".to_owned())),
                Ok(_) if self.input.len() > LONGEST_ANSWER => return Some(Err("an endless answer".to_owned())),
                Ok(length) => self.input.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Some(Err(format!("the connection broke: {error}"))),
            }
        }
        Some(read_answer(&self.input).and_then(status_in))
    }
}

impl AsFd for Question {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
