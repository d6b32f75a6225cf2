//! The pre-flight of a restart in place: a child that runs the new build and shows whether the new build can read what
//! main knows. It only gets a copy of that, so it can do no harm.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Pid, pipe2, read};
use serde::{Deserialize, Serialize};

use crate::control::environment::Environment;
use crate::control::monitor::channel::{Channel, Message, Received};
use crate::main_process::processes::helper::Helper;
use crate::sys::printable;
use crate::sys::processes::Exit;
use crate::worker::cause::signal_name;
use crate::worker::spawn::NewProcess;

/// Limit of its output that is logged.
const MAX_LINE_BYTES: usize = 512;

/// The answer of the new build. Its image comes along as a descriptor, so that exactly the file that was tried is
/// executed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Proof {
    pub(crate) build: String,
}

impl Message for Proof {
    fn carries(&self, descriptors: usize) -> bool {
        descriptors == 1
    }
}

/// A pre-flight that runs.
#[derive(Debug)]
pub(crate) struct Preflight {
    helper: Helper,
    channel: Channel,
    /// Its output. It is read after the end, so a child that prints more than a pipe holds counts as hung.
    output: OwnedFd,
}

/// A build that has proved itself.
#[derive(Debug)]
pub(crate) struct NextBuild {
    /// Its executable file.
    pub(crate) image: OwnedFd,
    /// Its version.
    pub(crate) build: String,
}

impl Preflight {
    /// Lets the build at `path` read `state`. Never waits.
    pub(crate) fn begin(path: &Path, state: &OwnedFd, environment: &Environment) -> io::Result<Preflight> {
        let (channel, theirs) = Channel::pair()?;
        let (read_end, printed) = pipe2(OFlag::O_CLOEXEC)?;
        // Its own end may block, as usual.
        fcntl(&read_end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let (variables, descriptors) = (environment.for_preflight(), vec![state.as_fd(), theirs.as_fd()]);
        let output = Some(printed.as_fd());
        let printing = |role| NewProcess { output: [output; 2], ..role };
        let helper = Helper::start_with("panzer: preflight", path, variables, descriptors, printing)?;
        Ok(Preflight { helper, channel, output: read_end })
    }

    pub(crate) fn pid(&self) -> Pid {
        self.helper.pid()
    }

    /// Kills it, with the processes that it has started.
    pub(crate) fn kill(&self) {
        self.helper.kill();
    }

    /// The result. Call this after it was reaped.
    pub(crate) fn shown(mut self, exit: Exit) -> Result<NextBuild, String> {
        if let Some(why) = self.helper.refused() {
            return Err(format!("it cannot be executed: {why}"));
        }
        let how = match exit {
            Exit::Code(code) => format!("exited with code {code}"),
            Exit::Signal(signal, _) => format!("was killed by {}", signal_name(signal)),
        };
        let printed = last_line(&self.output).map(|line| format!(", printing: {line}")).unwrap_or_default();
        if exit != Exit::Code(0) {
            return Err(format!("the try of it {how}{printed}"));
        }
        match self.channel.receive::<Proof>() {
            Received::Message(Proof { build }, descriptors) => {
                let image = descriptors.into_iter().next().ok_or("its image got lost")?;
                Ok(NextBuild { image, build })
            }
            _ => Err(format!("the try of it {how} without a word, as no panzer does that can take over{printed}")),
        }
    }
}

/// The last line that it printed, within one read, with control bytes replaced.
fn last_line(output: &OwnedFd) -> Option<String> {
    let mut bytes = vec![0; 1 << 16];
    let count = read(output, &mut bytes).ok()?;
    let line = bytes[..count].split(|&byte| byte == b'\n').rfind(|line| !line.is_empty())?;
    let text = String::from_utf8_lossy(&line[..line.len().min(MAX_LINE_BYTES)]);
    Some(printable::line(&text))
}
