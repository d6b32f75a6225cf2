//! An instance of panzer: its control socket, and whether it runs.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;

use super::trouble::Trouble;
use crate::control::files::{belongs_to, lock_beside, name_of, socket_beside};
use crate::sys::errno::words;
use crate::sys::printable;

/// An instance that runs, or did.
#[derive(Debug, Clone)]
pub(super) struct Instance {
    pub(super) socket: PathBuf,
    /// None if only the socket is known.
    pid_file: Option<PathBuf>,
    /// Whether the command line or RUNTIME_DIRECTORY named its place. If not, panzerctl found it by searching.
    is_given: bool,
}

impl Instance {
    pub(super) fn with_socket(socket: PathBuf) -> Instance {
        Instance { socket, pid_file: None, is_given: true }
    }

    pub(super) fn with_pid_file(pid_file: PathBuf, is_given: bool) -> Instance {
        Instance { socket: socket_beside(&pid_file), pid_file: Some(pid_file), is_given }
    }

    /// Fails unless root or our own user listens at the socket. If the place was named, root trusts every user, and
    /// everybody trusts the owner of its folder, so that a deploy group can talk to another user's panzer.
    pub(super) fn check_peer(&self, connected: &impl AsFd) -> io::Result<()> {
        let (peer, own) = (getsockopt(connected, PeerCredentials)?.uid(), geteuid());
        let is_at_home = || self.socket.parent().is_some_and(|folder| belongs_to(folder, peer));
        if [0, own.as_raw()].contains(&peer) || (self.is_given && (own.is_root() || is_at_home())) {
            return Ok(());
        }
        Err(io::Error::other(format!("uid {peer} listens there, and is neither root nor you")))
    }

    /// Its name for messages.
    pub(super) fn shown(&self) -> String {
        printable::line(&self.pid_file.as_deref().map_or_else(|| self.socket.display().to_string(), name_of))
    }

    /// Whether a process holds the lock beside the pid file.
    pub(super) fn is_running(&self) -> bool {
        self.pid_file.as_deref().is_some_and(|path| is_locked(&lock_beside(path)))
    }

    /// Why there is no connection to its socket.
    pub(super) fn absence(&self, why: &io::Error) -> Trouble {
        let socket = self.socket.display();
        if why.kind() == ErrorKind::PermissionDenied {
            return Trouble::Unknown(format!(
                "{socket} is not open to your user; take its owner's, or let a group in (panzer --control ,group=GROUP)"
            ));
        }
        if why.kind() == ErrorKind::WouldBlock {
            return Trouble::Unknown(format!(
                "{socket} is not accepting connections (queue full); if panzer is stopped (kill -STOP), continue it"
            ));
        }
        if why.kind() == ErrorKind::Other {
            return Trouble::Unknown(format!("{socket} is not asked: {}", words(why)));
        }
        let running = self.is_running();
        match self.pid_file.as_deref().filter(|path| path.exists()) {
            Some(_) if running => Trouble::Unknown(format!(
                "{} runs, but takes no commands at {socket}; is it still starting? Otherwise give --control",
                self.shown()
            )),
            Some(path) => {
                Trouble::Failed(format!("{} is dead, and its pid file {} left", self.shown(), path.display()))
            }
            None => Trouble::NotRunning(format!("{} does not run: nobody listens on {socket}", self.shown())),
        }
    }
}

/// Whether some process holds this lock. Trying to take the lock could refuse it to a panzer that starts just then.
fn is_locked(path: &Path) -> bool {
    let Ok(meta) = fs::metadata(path) else { return false };
    let inode = format!(":{}", meta.ino());
    // "1: FLOCK  ADVISORY  WRITE 4711 fd:00:1234 0 EOF"
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let holds = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        fields.contains(&"FLOCK") && fields.iter().any(|field| field.ends_with(&inode))
    };
    locks.lines().any(holds)
}
