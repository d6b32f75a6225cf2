//! How a monitor loads its mold, asks it for workers and hears it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::unistd::Pid;

use super::{MOLD, Monitor};
use crate::config::ListenAs;
use crate::control::mold::{Asked, MAX_BYTES, MoldSocket, Said};
use crate::control::monitor::messages::Report;
use crate::monitor::decide::{Event, Worker};
use crate::sys::descriptors::FIRST;
use crate::sys::errno::words;
use crate::sys::packets::Heard;
use crate::sys::processes;
use crate::worker::resources::run_on;

/// Limit of the messages that are read before the loop looks at anything else.
const MAX_MESSAGES_A_TURN: usize = 64;

impl Monitor {
    /// A socket for another mold. Returns the mold's end.
    pub(super) fn open_line(&mut self) -> io::Result<OwnedFd> {
        let (ours, theirs) = MoldSocket::new()?;
        self.poller.watch(&ours, MOLD)?;
        self.lines.mold = Some(ours);
        self.roster.born_too_late.clear();
        Ok(theirs)
    }

    pub(super) fn close_line(&mut self) {
        if let Some(line) = self.lines.mold.take() {
            self.poller.forget(&line);
        }
    }

    /// Tells the mold to end. The end of its socket says the same.
    pub(super) fn dismiss_mold(&mut self) {
        if let Some(line) = &self.lines.mold {
            let _ = line.ask(&Asked::Stop, &[]);
            // Otherwise a worker that is born between the last look and the close would be nobody's, and would live.
            line.refuse_more();
        }
        self.end_those_born_too_late();
        self.close_line();
    }

    /// Who has said already that it was born does not see the socket end, and is nobody: it ends as workers do. What it
    /// does not heed goes on with what the mold leaves behind.
    fn end_those_born_too_late(&mut self) {
        let mut bytes = [0; MAX_BYTES];
        for _ in 0..MAX_MESSAGES_A_TURN {
            let Some(Ok(Some(heard))) = self.lines.mold.as_ref().map(|line| line.hear(&mut bytes)) else { return };
            let said = bytes.get(..heard.length).map(Said::read);
            let pid = heard.sender.pid;
            if matches!(said, Some(Ok(Said::Born(_)))) && self.check_newborn(pid, &[]).is_ok() {
                self.end_born_too_late(pid);
            }
        }
    }

    fn end_born_too_late(&mut self, pid: Pid) {
        self.roster.born_too_late.insert(pid);
        let signal = self.assignment.plan.tuning.stop.first_signal();
        if let Err(error) = processes::stop_child(pid, signal) {
            log::warn!("cannot end pid {pid}, born too late: {}", processes::why_not_signalled(&error));
        }
    }

    /// Asks for a worker. If this fails, it is handled as if the mold had refused.
    pub(super) fn ask_mold(&mut self, worker: Worker, ticket: u64) {
        let output = match self.open_output(worker) {
            Ok(output) => output,
            Err(error) => return self.events.push_back(Event::Unborn(ticket, words(&error))),
        };
        let spare = self.state.may_refork().then(|| self.open_spare(worker)).transpose();
        let spare = match spare {
            Ok(spare) => spare,
            Err(error) => return self.events.push_back(Event::Unborn(ticket, words(&error))),
        };
        let Some(line) = &self.lines.mold else { return };
        let (numbers, mut descriptors) = match self.queues_of(worker) {
            Ok(queues) => output.numbered().chain(queues).unzip::<RawFd, BorrowedFd<'_>, Vec<_>, Vec<_>>(),
            Err(place) => {
                self.talk.channel.send(&Report::QueueMissing { place });
                let why = "its queue has not come from main, which is asked for it again";
                return self.events.push_back(Event::Unborn(ticket, why.to_owned()));
            }
        };
        descriptors.extend(spare.as_ref().map(AsFd::as_fd));
        let asked = Asked::Fork { ticket, slot: worker.slot, descriptors: &numbers, refork: spare.is_some() };
        let event = match line.ask(&asked, &descriptors) {
            Ok(()) => return,
            Err(Errno::EPIPE | Errno::ECONNRESET) => Event::MoldClosed,
            Err(Errno::EAGAIN) => Event::MoldBroke("it does not read its socket".to_owned()),
            Err(errno) => Event::Unborn(ticket, words(&errno.into())),
        };
        self.events.push_back(event);
    }

    /// The queues that only this worker has, and where each is to stand; of a mold that was a worker, all listeners.
    fn queues_of(&self, worker: Worker) -> Result<Vec<(RawFd, BorrowedFd<'_>)>, usize> {
        let plan = &self.assignment.plan;
        let first = if plan.handover.listen_as == ListenAs::Stdin { 0 } else { FIRST };
        let all = self.sockets.placed.of_slot(&plan.listen, worker.slot)?;
        let all_of_them = self.state.has_warm_mold();
        let own = (first..).zip(all).zip(&plan.listen).filter(|(_, listen)| listen.per_worker || all_of_them);
        Ok(own.map(|((number, queue), _)| (number, queue.as_fd())).collect())
    }

    /// Reads the messages of the mold and of the processes that it has forked. Each is decided on at once, because a
    /// newborn worker speaks elsewhere next. Messages of `reaped` processes were sent before their end.
    pub(super) fn hear_mold(&mut self, reaped: &[Pid]) {
        for _ in 0..MAX_MESSAGES_A_TURN {
            let Some(line) = &self.lines.mold else { return };
            let mut bytes = [0; MAX_BYTES];
            let event = match line.hear(&mut bytes) {
                // If memory is short, the message is read at the next look.
                Err(Errno::EAGAIN | Errno::EINTR | Errno::ENOMEM | Errno::ENOBUFS) => return,
                Ok(Some(heard)) => {
                    // Its program runs, whether its exec has been looked at or not.
                    if let Some(mold) = self.state.mold_worker() {
                        self.look_at_exec(mold);
                    }
                    self.understand(&bytes, &heard, reaped).unwrap_or_else(Event::MoldBroke)
                }
                Ok(None) | Err(_) => {
                    self.close_line();
                    Event::MoldClosed
                }
            };
            self.events.push_back(event);
            self.settle();
            // Nobody has adopted it: its ticket is not open any more.
            if let Some(pid) = self.roster.newborn.take().filter(|pid| !reaped.contains(pid)) {
                self.end_born_too_late(pid);
            }
        }
    }

    fn understand(&mut self, bytes: &[u8], heard: &Heard, reaped: &[Pid]) -> Result<Event, String> {
        let sender = heard.sender.pid;
        let packet = bytes.get(..heard.length);
        let packet = packet.ok_or_else(|| format!("pid {sender} sent more than {MAX_BYTES} bytes at once"))?;
        if heard.descriptors > 0 {
            return Err(format!("pid {sender} sent descriptors along"));
        }
        Ok(match Said::read(packet).map_err(|wrong| format!("pid {sender} sent {wrong}"))? {
            Said::Ready { refork } => Event::MoldReady(refork),
            Said::Failed(why) => Event::MoldFailed(why),
            Said::Unborn(ticket, why) => Event::Unborn(ticket, why),
            Said::Born(ticket) => {
                self.check_newborn(sender, reaped)
                    .map_err(|why| format!("BORN {ticket} came from pid {sender}, {why}"))?;
                self.roster.newborn = Some(sender);
                Event::Born(ticket)
            }
        })
    }

    /// Checks that the sender is an unknown child of ours: only then it can be a new worker.
    fn check_newborn(&self, sender: Pid, reaped: &[Pid]) -> Result<(), String> {
        if let Some(worker) = self.roster.known_as(sender) {
            return Err(format!("which is {worker} already"));
        }
        let parent = processes::parent_of(sender);
        match parent {
            _ if reaped.contains(&sender) || parent == Some(Pid::this()) => Ok(()),
            Some(parent) => Err(format!("whose parent is pid {parent} and not the monitor")),
            None => Err("which is no child of the monitor's".to_owned()),
        }
    }

    /// The child that has reported its birth is this worker.
    pub(super) fn adopt(&mut self, worker: Worker) {
        let Some(pid) = self.roster.newborn.take() else { return };
        // It has done so itself. Otherwise it would be in the mold's group.
        let _ = nix::unistd::setpgid(pid, pid);
        // One of its own, where the mold has none to pass on. Who has just ended has none.
        let _ = self.program.identity.cpus(Some(worker.slot)).map(|cpus| run_on(Some(pid), &cpus));
        let started = processes::started(pid);
        self.roster.add_forked(worker, pid, started);
        self.talk.channel.send(&Report::Forked { slot: worker.slot, pid: pid.as_raw(), started });
    }

    /// The worker that a process is or descends from, even if it was born a moment ago.
    pub(super) fn find_worker(&mut self, pid: Pid) -> Option<Worker> {
        let known = self.roster.find_ancestor(pid);
        if known.is_some() || self.lines.mold.is_none() {
            return known;
        }
        self.hear_mold(&[]);
        self.roster.find_ancestor(pid)
    }
}
