//! A child of main that executes panzer in another role, does one thing, and ends: what goes wrong there goes wrong there.

use std::ffi::CString;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::config::text::c_string;
use crate::sys::errno::words;
use crate::sys::processes;
use crate::worker::spawn::{Child, Image, NewProcess, Outcome, spawn};

/// One that was started; it ends with main at the latest, and what it has started ends with it.
#[derive(Debug)]
pub(crate) struct Helper {
    child: Child,
    /// What it calls itself.
    title: &'static str,
}

impl Helper {
    /// Executes `build` with these variables and, from 3 on, these descriptors; what it prints goes to `output`, or
    /// where ours goes. Never waits.
    pub(crate) fn start(
        title: &'static str,
        build: &Path,
        environment: Vec<CString>,
        descriptors: Vec<BorrowedFd<'_>>,
        output: Option<BorrowedFd<'_>>,
    ) -> io::Result<Helper> {
        let role = NewProcess::role(Image::Path(c_string(build.as_os_str())), title, environment, descriptors);
        Ok(Helper { child: spawn(&NewProcess { output, ..role })?, title })
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

    /// Why it was never executed, in words, now that it has been reaped.
    pub(crate) fn refused(&mut self) -> Option<String> {
        match self.child.outcome() {
            Outcome::Failed(refused, _) => Some(words(&refused.errno.into())),
            Outcome::Pending | Outcome::Done => None,
        }
    }
}
