//! Which panzers run, and where their control sockets are.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;

use super::client::{Client, Trouble};
use super::command_line::Options;
use crate::control::files::{is_folder_given, is_trusted, lock_beside, name_of, runtime_directory, socket_beside};
use crate::sys::printable;

/// One that runs or did.
#[derive(Debug, Clone)]
pub(super) struct Instance {
    pub(super) socket: PathBuf,
    pub(super) pid_file: Option<PathBuf>,
    /// Its place was given, by the command line or by RUNTIME_DIRECTORY, and not found by looking around.
    is_given: bool,
}

impl Instance {
    fn by_pid_file(pid_file: PathBuf, is_given: bool) -> Instance {
        Instance { socket: socket_beside(&pid_file), pid_file: Some(pid_file), is_given }
    }

    /// Whoever listens at its socket is root or ourselves. Root may also be sent to somebody else's.
    pub(super) fn check_peer(&self, connected: &impl AsFd) -> io::Result<()> {
        let (peer, own) = (getsockopt(connected, PeerCredentials)?.uid(), geteuid());
        if [0, own.as_raw()].contains(&peer) || (self.is_given && own.is_root()) {
            return Ok(());
        }
        Err(io::Error::other(format!("uid {peer} listens there, who is neither root nor you")))
    }

    /// What to call it.
    pub(super) fn shown(&self) -> String {
        printable::line(&self.pid_file.as_deref().map_or_else(|| self.socket.display().to_string(), name_of))
    }

    /// Whether it runs, as its pid file has it.
    pub(super) fn is_running(&self) -> bool {
        self.pid_file.as_deref().is_some_and(|path| is_locked(&lock_beside(path)))
    }

    /// Why nobody answers at its socket.
    pub(super) fn absence(&self, why: &std::io::Error) -> Trouble {
        let socket = self.socket.display();
        if why.kind() == ErrorKind::PermissionDenied {
            return Trouble::Unknown(format!("{socket} is open to its owner and root only; take the owner's user"));
        }
        if why.kind() == ErrorKind::WouldBlock {
            return Trouble::Unknown(format!("{socket} takes nobody; if panzer is stopped (kill -STOP), continue it"));
        }
        if why.kind() == ErrorKind::Other {
            return Trouble::Unknown(format!("{socket} is not asked: {why}"));
        }
        let running = self.is_running();
        match self.pid_file.as_deref().filter(|path| path.exists()) {
            Some(_) if running => Trouble::Unknown(format!(
                "{} runs, but takes no commands at {socket}; is it still starting? Otherwise give --control",
                self.shown()
            )),
            Some(path) => Trouble::Dead(format!("{} is dead, and its pid file {} left", self.shown(), path.display())),
            None => Trouble::NotRunning(format!("{} does not run: nobody listens on {socket}", self.shown())),
        }
    }
}

/// The one that is meant.
pub(super) fn choose(options: &Options) -> Result<Instance, Trouble> {
    if let Some(socket) = &options.control {
        return Ok(Instance { socket: socket.clone(), pid_file: None, is_given: true });
    }
    if let Some(pid_file) = &options.pid {
        return Ok(Instance::by_pid_file(pid_file.clone(), true));
    }
    if let Some(name) = &options.name {
        let path = |folder: &PathBuf| folder.join(format!("{name}.pid"));
        let found = trusted_folders().iter().map(path).find(|path| path.exists());
        return Ok(Instance::by_pid_file(found.unwrap_or_else(|| path(&runtime_directory())), is_folder_given()));
    }
    let mut all = running();
    match all.len() {
        0 => {
            let looked: Vec<String> = folders().iter().map(|folder| folder.display().to_string()).collect();
            Err(Trouble::NotRunning(format!(
                "no panzer runs (looked in {}); start one, or give --control",
                looked.join(", ")
            )))
        }
        1 => Ok(all.remove(0)),
        _ => {
            let names: Vec<String> = all.iter().map(Instance::shown).collect();
            Err(Trouble::Usage(format!("several run: {}; say which by --name", names.join(", "))))
        }
    }
}

/// All whose control socket takes us.
pub(super) fn running() -> Vec<Instance> {
    let mut found = Vec::new();
    for folder in trusted_folders() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "pid") {
                let instance = Instance::by_pid_file(path, is_folder_given());
                let connected = Client::connect(&instance);
                if connected.is_ok() || connected.is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
                    found.push(instance);
                }
            }
        }
    }
    found.sort_by_key(Instance::shown);
    found
}

/// Where instances of ours may be: where the environment names a folder, there and nowhere else.
fn folders() -> Vec<PathBuf> {
    if is_folder_given() {
        return vec![runtime_directory()];
    }
    let mut folders = vec![runtime_directory(), PathBuf::from("/run/panzer")];
    folders.extend(std::env::var_os("XDG_RUNTIME_DIR").map(|folder| PathBuf::from(folder).join("panzer")));
    folders.push(std::env::temp_dir().join(format!("panzer-{}", geteuid())));
    let mut seen = std::collections::BTreeSet::new();
    folders.retain(|folder| seen.insert(folder.clone()));
    folders
}

/// Those into which nobody else can put anything. Of the folder that the environment names we are told to trust it.
fn trusted_folders() -> Vec<PathBuf> {
    let mut folders = folders();
    folders.retain(|folder| is_folder_given() || is_trusted(folder));
    folders
}

/// Whether this lock of an instance is held. Only looked at: to try the lock would refuse it to a panzer that starts just then.
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
