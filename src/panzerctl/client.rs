//! A connection to main's control socket.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::Pid;
use serde_json::Value;

use super::instance::Instance;
use super::trouble::Trouble;
use crate::control::operator::requests::{Answer, Line, Outcome, Request};
use crate::control::operator::status::Status;
use crate::sys::errno::words;
use crate::sys::pidfd::PidFd;
use crate::sys::printable;

/// A main that is not stopped answers within this time.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

const MAX_ANSWER_BYTES: usize = 16 << 20;

/// A connection to main.
#[derive(Debug)]
pub(super) struct Client {
    stream: BufReader<UnixStream>,
    /// The next line, as far as it has come.
    line: Vec<u8>,
}

impl Client {
    /// Connects, and waits for main where it must.
    pub(super) fn connect(instance: &Instance) -> io::Result<Client> {
        Client::open(instance, SockFlag::empty())
    }

    /// Connects, and never waits.
    pub(super) fn connect_without_waiting(instance: &Instance) -> io::Result<Client> {
        Client::open(instance, SockFlag::SOCK_NONBLOCK)
    }

    /// Fails with `WouldBlock` if main is stopped and its queue is full.
    fn open(instance: &Instance, flags: SockFlag) -> io::Result<Client> {
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags | SockFlag::SOCK_CLOEXEC, None)?;
        // This also limits how long the kernel waits for room in the queue.
        setsockopt(&fd, sockopt::SendTimeout, &TimeVal::seconds(ANSWER_TIMEOUT.as_secs().cast_signed()))?;
        connect(fd.as_raw_fd(), &UnixAddr::new(&instance.socket)?)?;
        instance.check_peer(&fd)?;
        Ok(Client { stream: BufReader::new(UnixStream::from(fd)), line: Vec::new() })
    }

    /// Main's process. None if it cannot be watched.
    pub(super) fn main(&self) -> Option<PidFd> {
        let main = getsockopt(self.stream.get_ref(), sockopt::PeerCredentials).ok()?;
        PidFd::open(Pid::from_raw(main.pid())).ok()
    }

    /// Sends a request. An error is ignored: main refused it, and its answer says why.
    pub(super) fn ask(&mut self, request: &Request) {
        let line = serde_json::to_string(request).unwrap_or_default() + "\n";
        let _ = self.stream.get_mut().write_all(line.as_bytes());
    }

    /// Waits for the next line until `deadline`; without a deadline, for as long as it takes.
    pub(super) fn answer(&mut self, deadline: Option<Instant>) -> Result<Answer, Trouble> {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // A limit of zero would mean no limit. If no limit can be set, the connection is broken, and the read says so.
        let _ = self.stream.get_ref().set_read_timeout(left.map(|left| left.max(Duration::from_millis(1))));
        let late = || {
            Err("no answer in time; if panzer is stopped (kill -STOP), continue it; --timeout waits longer".to_owned())
        };
        self.answer_so_far().unwrap_or_else(late).map_err(Trouble::Unknown)
    }

    /// The next line, or None if it has not come yet.
    pub(super) fn answer_so_far(&mut self) -> Option<Result<Answer, String>> {
        let left = MAX_ANSWER_BYTES - self.line.len();
        match (&mut self.stream).take(left as u64).read_until(b'\n', &mut self.line) {
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => return None,
            Err(error) => return Some(Err(format!("the connection broke: {}", words(&error)))),
            Ok(_) => {}
        }
        let line = std::mem::take(&mut self.line);
        Some(match line.last() {
            Some(b'\n') => read_answer(&line),
            _ if line.len() == MAX_ANSWER_BYTES => Err("the answer is longer than 16 MiB".to_owned()),
            _ => Err("panzer closed the connection without an answer; did it die?".to_owned()),
        })
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.get_ref().as_fd()
    }
}

/// Waits until this process has ended; at most until `deadline`, without one for [`ANSWER_TIMEOUT`]. Returns whether it
/// has ended.
pub(super) fn wait_for_end(process: &PidFd, deadline: Option<Instant>) -> bool {
    let deadline = deadline.unwrap_or_else(|| Instant::now() + ANSWER_TIMEOUT);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) if left.is_zero() => return false,
            Ok(0) | Err(Errno::EINTR) => {}
            _ => return true,
        }
    }
}

/// The state in an answer.
pub(super) fn status_in(answer: Answer) -> Result<Status, String> {
    let missing = || "an answer without a status".to_owned();
    let Line::Last(outcome) = answer.line else { return Err(missing()) };
    let Outcome { status, error, .. } = *outcome;
    status.ok_or_else(|| error.unwrap_or_else(missing))
}

/// Reads a line of an answer. Its texts will be printed, so control characters are taken out: they could act on the
/// terminal.
fn read_answer(line: &[u8]) -> Result<Answer, String> {
    let invalid = |error: serde_json::Error| {
        let error = printable::line(&error.to_string());
        format!("invalid answer: {error}; is that the control socket of a panzer?")
    };
    let mut value: Value = serde_json::from_slice(line).map_err(invalid)?;
    clean(&mut value);
    serde_json::from_value(value).map_err(invalid)
}

fn clean(value: &mut Value) {
    match value {
        Value::String(text) => *text = printable::message(text),
        Value::Array(all) => all.iter_mut().for_each(clean),
        Value::Object(all) => all.values_mut().for_each(clean),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
