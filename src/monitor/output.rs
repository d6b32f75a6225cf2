//! The pipes that workers write to, and what they wrote last.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::pipe2;

use super::{Monitor, notes};
use crate::config::Stream;
use crate::control::monitor::messages::{self, Report};
use crate::monitor::decide::{Event, Note, Worker};
use crate::monitor::processes::outputs::Ended;
use crate::worker::cause::Cause;

/// Limit of the time that the end of a worker waits for its last lines.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(1);

/// The ends of a worker's pipes that it writes to; None: it has panzer's own stdout or stderr.
#[derive(Debug, Default)]
pub(super) struct Output([Option<OwnedFd>; 2]);

impl Output {
    /// For a process that is about to be started.
    pub(super) fn ends(&self) -> [Option<BorrowedFd<'_>>; 2] {
        self.0.each_ref().map(|end| end.as_ref().map(AsFd::as_fd))
    }

    /// The same with their numbers in a worker, those that there are.
    pub(super) fn numbered(&self) -> impl Iterator<Item = (i32, BorrowedFd<'_>)> {
        Stream::BOTH.map(Stream::number).into_iter().zip(self.ends()).filter_map(|(number, end)| Some((number, end?)))
    }
}

impl Monitor {
    /// Pipes for another worker: its stdout and stderr, where these are captured. Main gets the other ends first.
    pub(super) fn open_output(&mut self, worker: Worker) -> io::Result<Output> {
        let captured = |stream: &Stream| self.assignment.plan.logs.of(*stream).is_some();
        let streams: Vec<Stream> = Stream::BOTH.into_iter().filter(captured).collect();
        self.talk.outputs.serials.remove(&worker);
        let mut output = Output::default();
        if streams.is_empty() {
            return Ok(output);
        }
        let mut pipes = Vec::new();
        for stream in &streams {
            let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
            // A worker that runs as another user may open /dev/stdout. Nobody else can see this pipe.
            fchmod(&writer, Mode::from_bits_truncate(0o622))?;
            output.0[*stream as usize] = Some(writer);
            pipes.push(reader);
        }
        let serial = self.talk.outputs.next_serial;
        self.talk.outputs.next_serial += 1;
        self.talk.outputs.serials.insert(worker, serial);
        let slot = (!worker.is_mold()).then_some(worker.slot);
        let report = Report::Output(messages::Output { serial, slot, streams });
        self.talk.channel.send_along(&report, pipes);
        Ok(output)
    }

    /// The lines that a worker wrote last whose end this is, as they are shown below it.
    pub(super) fn last_lines_of(&self, note: &Note) -> String {
        notes::ended(note).map_or_else(String::new, |worker| self.talk.outputs.quoted(worker))
    }

    /// A worker has ended. Its end is decided on once its last lines are known, if they are of interest.
    pub(super) fn ended_with_last_lines(&mut self, worker: Worker, cause: Cause) -> Option<Event> {
        self.talk.outputs.last.remove(&worker.slot);
        let serial = self.talk.outputs.serials.remove(&worker);
        let is_expected = self.state.is_stopping() || self.state.is_retiring(worker);
        let Some(serial) = serial.filter(|_| !is_expected) else { return Some(Event::Ended(worker, cause)) };
        self.talk.channel.send(&Report::LastLinesOf { serial });
        let until = Instant::now() + LAST_LINES_TIMEOUT;
        self.talk.outputs.ended.insert(serial, Ended { worker, cause, until });
        None
    }

    pub(super) fn on_last_lines(&mut self, serial: u64, lines: Vec<String>) {
        let Some(Ended { worker, cause, .. }) = self.talk.outputs.ended.remove(&serial) else { return };
        if !lines.is_empty() {
            self.talk.channel.send(&Report::LastLines { slot: worker.slot, lines: lines.clone() });
            self.talk.outputs.last.insert(worker.slot, lines);
        }
        self.events.push_back(Event::Ended(worker, cause));
    }

    /// Goes on without the lines that have not come in time, or will not.
    pub(super) fn give_up_last_lines(&mut self, all: bool) {
        let now = Instant::now();
        let due = self.talk.outputs.ended.iter().filter(|(_, ended)| all || ended.until <= now);
        let due: Vec<u64> = due.map(|(serial, _)| *serial).collect();
        due.into_iter().for_each(|serial| self.on_last_lines(serial, Vec::new()));
    }
}
