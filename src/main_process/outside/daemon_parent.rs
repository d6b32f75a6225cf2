//! The parent of a daemon: it waits until the daemon serves, and then gets its terminal back.

use std::os::fd::OwnedFd;

use nix::unistd::write;

use crate::control::environment::STARTED;
use crate::main_process::decide::Overview;
use crate::sys::errno::words;
use crate::sys::stderr;

/// The pipe on which the parent waits, until it was told.
#[derive(Debug, Default)]
pub(crate) struct DaemonParent(Option<OwnedFd>);

impl DaemonParent {
    /// None if main is not a daemon.
    pub(crate) fn new(waiting: Option<OwnedFd>) -> DaemonParent {
        DaemonParent(waiting)
    }

    /// Whether the parent waits.
    pub(crate) fn waits(&self) -> bool {
        self.0.is_some()
    }

    /// Whether to tell the parent now. If main ends before that, the parent notices the closed pipe.
    pub(crate) fn is_due(&self, overview: Overview) -> bool {
        self.0.is_some() && overview.serves && !overview.stopping
    }

    /// Gives up the terminal, then tells the parent: after the parent returns, nothing may appear on the terminal.
    pub(crate) fn tell(&mut self) {
        if let Err(error) = stderr::leave_terminal() {
            log::warn!("cannot give up the terminal: {}", words(&error));
        }
        if let Some(waiting) = self.0.take() {
            // The pipe is empty, so this does not block. If the parent is gone, nobody needs it.
            let _ = write(&waiting, STARTED);
        }
    }
}
