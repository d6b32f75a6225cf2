//! How a worker becomes the mold (`--refork`).

use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;

use super::{MOLD, Monitor, WARM};
use crate::control::mold::{Asked, MAX_BYTES, MoldSocket, Said};
use crate::control::monitor::messages::Report;
use crate::monitor::decide::{Event, Worker};
use crate::sys::errno::words;

impl Monitor {
    /// A socket for a worker that is about to be forked. Returns the worker's end.
    pub(super) fn open_spare(&mut self, worker: Worker) -> io::Result<OwnedFd> {
        let state = &self.state;
        self.lines.spares.retain(|other, _| state.knows(*other));
        let (ours, theirs) = MoldSocket::new()?;
        self.lines.spares.insert(worker, ours);
        Ok(theirs)
    }

    pub(super) fn want_as_mold(&mut self, worker: Worker) {
        let Some(socket) = self.lines.spares.remove(&worker) else { return };
        let asked = socket.ask(&Asked::Mold, &[]).map_err(io::Error::from);
        match asked.and_then(|()| self.poller.watch(&socket, WARM)) {
            Ok(()) => self.lines.candidate = Some((worker, socket)),
            Err(error) => self.events.push_back(Event::Unwilling(worker, words(&error))),
        }
    }

    /// It says READY, or what keeps it from that. If it says nothing, its end says more.
    pub(super) fn hear_candidate(&mut self) {
        let Some((worker, socket)) = &self.lines.candidate else { return };
        let (worker, mut bytes) = (*worker, [0; MAX_BYTES]);
        let heard = socket.hear(&mut bytes);
        let event = match &heard {
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ENOMEM | Errno::ENOBUFS) => return,
            Ok(Some(heard)) => {
                let is_its = Some(heard.sender.pid) == self.roster.pid_of(worker);
                match bytes.get(..heard.length).filter(|_| is_its).map(Said::read) {
                    Some(Ok(Said::Ready { refork })) => {
                        return self.events.push_back(Event::Willing(worker, refork));
                    }
                    Some(Ok(Said::Failed(why))) => Some(Event::Unwilling(worker, why)),
                    _ => Some(Event::Unwilling(worker, "it broke the protocol; see panzer-mold(7)".to_owned())),
                }
            }
            Ok(None) | Err(_) => None,
        };
        self.decline(worker);
        self.events.extend(event);
    }

    /// The end of its socket tells it to end.
    pub(super) fn decline(&mut self, worker: Worker) {
        if let Some((_, socket)) = self.lines.candidate.take_if(|(candidate, _)| *candidate == worker) {
            self.poller.forget(&socket);
        }
    }

    /// The candidate has said that it is willing. The old mold ends, and is heard no more.
    pub(super) fn promote(&mut self, worker: Worker, mold: Worker) {
        self.dismiss_mold();
        let Some((_, socket)) = self.lines.candidate.take() else { return };
        self.poller.forget(&socket);
        match self.poller.watch(&socket, MOLD) {
            Ok(()) => self.lines.mold = Some(socket),
            Err(error) => {
                log::warn!("the mold cannot be watched: {}", words(&error));
                self.events.push_back(Event::MoldClosed);
            }
        }
        self.talk.outputs.rename(worker, mold);
        if let Some(live) = self.roster.rename(worker, mold) {
            let forked = Report::Forked { slot: mold.slot, pid: live.pid().as_raw(), started: live.started };
            self.talk.channel.send(&forked);
        }
    }
}
