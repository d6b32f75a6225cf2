//! What a daemon owes to whoever started it: a word once it serves, and its terminal back.

use std::os::fd::OwnedFd;

use nix::unistd::write;

use crate::control::environment::STARTED;
use crate::main_process::decide::Overview;
use crate::sys::errno::words;
use crate::sys::stderr;

/// The one who waits, until it has been told.
#[derive(Debug, Default)]
pub(crate) struct DaemonParent(Option<OwnedFd>);

impl DaemonParent {
    /// Where it waits; nobody does where main is no daemon.
    pub(crate) fn new(waiting: Option<OwnedFd>) -> DaemonParent {
        DaemonParent(waiting)
    }

    /// Whether somebody waits.
    pub(crate) fn waits(&self) -> bool {
        self.0.is_some()
    }

    /// Whether now is the moment. Where main ends without it, the starter notices by the closed pipe.
    pub(crate) fn is_due(&self, overview: Overview) -> bool {
        self.0.is_some() && overview.serves && !overview.stopping
    }

    /// Lets go of the terminal, then of the starter: once that has returned nothing more may appear there.
    pub(crate) fn tell(&mut self) {
        if let Err(error) = stderr::leave_terminal() {
            log::warn!("the terminal cannot be left: {}", words(&error));
        }
        if let Some(waiting) = self.0.take() {
            // The pipe is empty, so it takes this at once. A starter that is gone needs no word.
            let _ = write(&waiting, STARTED);
        }
    }
}
