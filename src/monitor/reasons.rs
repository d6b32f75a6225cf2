//! Why the exec of a worker was refused. A child finds out, because the file system may hang. The worker's process waits
//! meanwhile: it is killed when the reason is known, and by the deadline of its exec otherwise.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use nix::sys::signal::Signal;

use super::Monitor;
use crate::monitor::decide::Worker;
use crate::sys::errno::words;
use crate::sys::{helper, memfd};
use crate::worker::cause::Cause;
use crate::worker::refusal::{Refused, explain_child};

impl Monitor {
    pub(super) fn find_reason(&mut self, worker: Worker, refused: Refused) {
        if let Some(live) = self.roster.live(worker) {
            // If nothing more turns out.
            live.refused = Some(Cause::CannotStart(words(&refused.errno.into())));
        }
        let (path, identity) = (&self.program.release.path, Rc::clone(&self.program.identity));
        let find = || serde_json::to_vec(&explain_child(refused, path, &identity)).unwrap_or_default();
        match helper::start(find) {
            Ok((pid, reason)) => drop(self.roster.reasons.insert(pid, (worker, reason))),
            Err(_) => drop(self.signal(worker, Signal::SIGKILL)),
        }
    }

    /// The child that has found out has been reaped.
    pub(super) fn take_reason(&mut self, worker: Worker, reason: OwnedFd) {
        let Some(live) = self.roster.live(worker) else { return };
        let found = memfd::read(reason).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        live.refused = found.or(live.refused.take());
        self.signal(worker, Signal::SIGKILL);
    }
}
