//! A child of main that executes panzer in another role, does one thing, and ends. Its failures do not touch main.

use std::ffi::CString;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::config::text::c_string;
use crate::control::environment::OWN_IMAGE;
use crate::sys::errno::words;
use crate::sys::processes;
use crate::worker::spawn::{Child, Image, NewProcess, Outcome, spawn};

/// A helper that was started. It ends with main at the latest, and so do the processes that it has started.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Helper {
    child: Child,
    /// Its title in `ps`.
    title: String,
}

impl Helper {
    /// Executes this build with these variables and, from 3 on, these descriptors. Never waits.
    pub(crate) fn start(
        title: &str,
        environment: Vec<CString>,
        descriptors: Vec<BorrowedFd<'_>>,
    ) -> io::Result<Helper> {
        Helper::start_with(title, OWN_IMAGE.as_ref(), environment, descriptors, |role| role)
    }

    /// The same for another build, or with changes to how it is started.
    pub(crate) fn start_with<'a>(
        title: &str,
        build: &Path,
        environment: Vec<CString>,
        descriptors: Vec<BorrowedFd<'a>>,
        change: impl FnOnce(NewProcess<'a>) -> NewProcess<'a>,
    ) -> io::Result<Helper> {
        let role = NewProcess::role(Image::Path(c_string(build.as_os_str())), title, environment, descriptors);
        Ok(Helper { child: spawn(change(role))?, title: title.to_owned() })
    }

    /// Sends it a signal that it reads.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Err(error) = processes::signal_child(self.pid(), signal) {
            log::warn!("cannot signal {} (pid {}): {}", self.title, self.pid(), processes::why_not_signalled(&error));
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        self.child.pid
    }

    pub(crate) fn kill(&self) {
        let pid = self.pid();
        for sent in [processes::signal_group(pid, Signal::SIGKILL), processes::signal_child(pid, Signal::SIGKILL)] {
            if let Err(error) = sent {
                log::warn!("cannot kill {} (pid {pid}): {}", self.title, processes::why_not_signalled(&error));
            }
        }
    }

    /// Why it could not be executed, in words. Call this after it was reaped.
    pub(crate) fn refused(&mut self) -> Option<String> {
        match self.child.outcome() {
            Outcome::Failed(refused) => Some(words(&refused.errno.into())),
            Outcome::Pending | Outcome::Done => None,
        }
    }
}
