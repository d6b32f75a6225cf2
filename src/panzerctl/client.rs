//! The control socket, an operator's side.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::Pid;
use serde_json::Value;

use super::instances::Instance;
use crate::control::operator::requests::{Answer, Line, Outcome, Request};
use crate::control::operator::status::Status;
use crate::sys::pidfd::PidFd;
use crate::sys::printable;

/// Whoever runs answers within this, or is stopped.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// The longest line of an answer.
const LONGEST_ANSWER: u64 = 16 << 20;

/// Why it came to nothing, each in a line, and each an exit code.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Refused, or failed.
    Failed(String),
    /// It is dead, and its pid file left.
    Dead(String),
    /// What was asked for is not clear.
    Usage(String),
    /// It does not run.
    NotRunning(String),
    /// No answer.
    Unknown(String),
}

/// A connection to main.
#[derive(Debug)]
pub(super) struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Fails with `WouldBlock` where main is stopped and its queue is full.
    pub(super) fn connect(instance: &Instance) -> io::Result<Client> {
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        // The kernel waits no longer than this for room in the queue.
        setsockopt(&fd, sockopt::SendTimeout, &TimeVal::seconds(PATIENCE.as_secs().cast_signed()))?;
        connect(fd.as_raw_fd(), &UnixAddr::new(&instance.socket)?)?;
        instance.check_peer(&fd)?;
        Ok(Client { stream: BufReader::new(UnixStream::from(fd)) })
    }

    /// Main's process. None where it cannot be watched.
    pub(super) fn main(&self) -> Option<PidFd> {
        let main = getsockopt(self.stream.get_ref(), sockopt::PeerCredentials).ok()?;
        PidFd::open(Pid::from_raw(main.pid())).ok()
    }

    pub(super) fn ask(&mut self, request: &Request) -> io::Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.stream.get_mut().set_write_timeout(Some(PATIENCE))?;
        self.stream.get_mut().write_all(&line)
    }

    /// The next line, until `deadline`; without one for as long as it takes.
    pub(super) fn answer(&mut self, deadline: Option<Instant>) -> Result<Answer, Trouble> {
        let left =
            deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)));
        let mut line = String::new();
        let read = self.stream.get_ref().set_read_timeout(left);
        let read = read.and_then(|()| (&mut self.stream).take(LONGEST_ANSWER).read_line(&mut line));
        match read {
            Ok(0) => Err(Trouble::Unknown("panzer closed the connection without an answer; did it die?".to_owned())),
            Ok(_) => read_answer(line.as_bytes()).map_err(Trouble::Unknown),
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {
                Err(Trouble::Unknown(
                    "no answer in time; if panzer is stopped (kill -STOP), continue it; --timeout waits longer"
                        .to_owned(),
                ))
            }
            Err(error) => Err(Trouble::Unknown(format!("the connection broke: {error}"))),
        }
    }
}

/// Waits until this process has ended; at most until `deadline`, without one for [`PATIENCE`]. Returns whether it has.
pub(super) fn wait_for_end(process: &PidFd, deadline: Option<Instant>) -> bool {
    let deadline = deadline.unwrap_or_else(|| Instant::now() + PATIENCE);
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

/// Reads a line of an answer. What it says is printed, here or there: whoever wrote it, nothing in it acts on a terminal.
pub(super) fn read_answer(line: &[u8]) -> Result<Answer, String> {
    let wrong = |error: serde_json::Error| format!("no answer of a panzer: {}", printable::line(&error.to_string()));
    let mut value: Value = serde_json::from_slice(line).map_err(wrong)?;
    clean(&mut value);
    serde_json::from_value(value).map_err(wrong)
}

/// The state in an answer.
pub(super) fn status_in(answer: Answer) -> Result<Status, String> {
    let Line::Last(outcome) = answer.line else { return Err("an answer without a status".to_owned()) };
    let Outcome { status, error, .. } = *outcome;
    status.ok_or_else(|| error.unwrap_or_else(|| "an answer without a status".to_owned()))
}

fn clean(value: &mut Value) {
    match value {
        Value::String(text) => *text = printable::lines(text),
        Value::Array(all) => all.iter_mut().for_each(clean),
        Value::Object(all) => all.values_mut().for_each(clean),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
