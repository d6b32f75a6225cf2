//! The start of a daemon: a child becomes main, and the process that the user started waits until main serves.
//!
//! Only main's message counts as started; neither a timeout nor its exit does. Until then Ctrl-C ends both. If the
//! terminal is closed, only the waiting ends.

use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, pipe2, read, setsid};

use crate::cli::Ending;
use crate::control::environment::STARTED;
use crate::sys::poller::Poller;
use crate::sys::processes::{self, Exit, Forked};
use crate::sys::signals::{self, Signals};

const SIGNALS: u64 = 0;
const WORD: u64 = 1;

/// Exit code if main has none to pass on.
const FAILED: u8 = 1;

/// Returns in the child, which then leads its own session, with the pipe on which the parent waits for [`STARTED`]. In the
/// parent, the error says how the start ended. All signals must be blocked, so that a signal in between waits for the
/// process that reads it.
pub(super) fn leave() -> Result<OwnedFd, Ending> {
    // If SIGCHLD is ignored, the kernel does not report the exit code of a child.
    signals::reset(Signal::SIGCHLD);
    let (word, told) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(io::Error::from)?;
    match processes::fork()? {
        Forked::Child => {
            setsid().map_err(io::Error::from)?;
            Ok(told)
        }
        Forked::Parent(main) => {
            drop(told);
            Err(Waiting { main, word, asked: None }.run().unwrap_or_else(Ending::from))
        }
    }
}

/// The process that the user started.
struct Waiting {
    main: Pid,
    word: OwnedFd,
    /// The first signal that asked for a stop.
    asked: Option<Signal>,
}

impl Waiting {
    fn run(&mut self) -> io::Result<Ending> {
        let ends = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGQUIT];
        let heeded = ends.into_iter().filter(|&signal| !signals::is_ignored(signal));
        let signals = Signals::new(heeded.chain([Signal::SIGCHLD]))?;
        signals::unblock(&[Signal::SIGHUP, Signal::SIGTSTP])?;
        let poller = Poller::new()?;
        poller.watch(&signals, SIGNALS)?;
        poller.watch(&self.word, WORD)?;
        loop {
            for token in poller.wait(None)? {
                let ending = if token == SIGNALS { self.take_signals(&signals)? } else { self.listen(&poller) };
                if let Some(ending) = ending {
                    return Ok(ending);
                }
            }
        }
    }

    fn take_signals(&mut self, signals: &Signals) -> io::Result<Option<Ending>> {
        while let Some(received) = signals.read() {
            if received.signal == Signal::SIGCHLD {
                let ended = std::iter::from_fn(processes::reap).find(|(pid, _)| *pid == self.main);
                if let Some((_, exit)) = ended {
                    return Ok(Some(self.ended(exit)));
                }
                continue;
            }
            // TERM stops in every preset. If a stop is under way, INT makes it quick.
            let passed_on = if self.asked.is_none() { Signal::SIGTERM } else { Signal::SIGINT };
            self.asked.get_or_insert(received.signal);
            processes::signal_child(self.main, passed_on)?;
        }
        Ok(None)
    }

    /// Main has sent its message, or has closed the pipe; then its end follows.
    fn listen(&self, poller: &Poller) -> Option<Ending> {
        if self.asked.is_none() && self.has_started() {
            return Some(Ending::Left(0, None));
        }
        poller.forget(&self.word);
        None
    }

    fn has_started(&self) -> bool {
        let mut word = [0; STARTED.len()];
        loop {
            match read(&self.word, &mut word) {
                Err(Errno::EINTR) => {}
                Ok(length) => return word[..length] == *STARTED,
                Err(_) => return false,
            }
        }
    }

    /// Main has ended. If it could, it has logged why.
    fn ended(&self, exit: Exit) -> Ending {
        if let Some(signal) = self.asked {
            signals::end_by(signal);
        }
        match exit {
            // It served first, and its message can still be read.
            _ if self.has_started() => Ending::Left(0, None),
            Exit::Code(0) => Ending::Left(FAILED, Some("main was stopped before it was ready".to_owned())),
            Exit::Code(code) => Ending::Left(u8::try_from(code).unwrap_or(FAILED), None),
            Exit::Signal(number, _) => {
                let name = Signal::try_from(number).map_or_else(|_| number.to_string(), |signal| signal.to_string());
                Ending::Left(FAILED, Some(format!("main was killed by {name} before it was ready")))
            }
        }
    }
}
