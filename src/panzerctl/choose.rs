//! Finds the instances that run, and connects to the one that the command line names.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::unistd::geteuid;

use super::client::Client;
use super::command_line::Options;
use super::instance::Instance;
use super::trouble::Trouble;
use crate::control::files::{is_folder_given, is_trusted, runtime_directory};
use crate::control::operator::requests::Request;

/// Pause between two attempts, to connect or to find an instance ready.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// A running instance may be without a socket for this long: it starts, or is about to end.
const MAX_TIME_WITHOUT_SOCKET: Duration = Duration::from_secs(2);

/// The instance that the command line names, or the only one that runs.
pub(super) fn choose(options: &Options) -> Result<Instance, Trouble> {
    if let Some(socket) = &options.control {
        return Ok(Instance::with_socket(socket.clone()));
    }
    if let Some(pid_file) = &options.pid {
        return Ok(Instance::with_pid_file(pid_file.clone(), true));
    }
    if let Some(name) = &options.name {
        let path = |folder: &PathBuf| folder.join(format!("{name}.pid"));
        let found = trusted_folders().iter().map(path).find(|path| path.exists());
        let default = Some(runtime_directory()).filter(|folder| !is_skipped(folder));
        return match found.or_else(|| default.as_ref().map(path)) {
            Some(path) => Ok(Instance::with_pid_file(path, is_folder_given())),
            None => Err(Trouble::NotRunning(format!("{name} does not run (looked in {})", looked_in()))),
        };
    }
    let mut all = running();
    match all.len() {
        0 => {
            if let Some(refused) = found(ErrorKind::PermissionDenied).first() {
                return Err(refused.absence(&ErrorKind::PermissionDenied.into()));
            }
            let looked = looked_in();
            Err(Trouble::NotRunning(format!("no panzer runs (looked in {looked}); start one, or give --control")))
        }
        1 => Ok(all.remove(0)),
        _ => {
            let names: Vec<String> = all.iter().map(Instance::shown).collect();
            Err(Trouble::Usage(format!("several run: {}; say which by --name", names.join(", "))))
        }
    }
}

/// Connects and sends `request`. If the instance runs without a socket, this tries again for a moment.
#[allow(clippy::disallowed_methods, reason = "panzerctl is not a supervisor: it has nothing else to do meanwhile")]
pub(super) fn connect(instance: &Instance, request: &Request) -> Result<Client, Trouble> {
    let deadline = Instant::now() + MAX_TIME_WITHOUT_SOCKET;
    loop {
        match Client::connect(instance) {
            Ok(mut client) => {
                client.ask(request);
                return Ok(client);
            }
            Err(error) => {
                let may_pass = [ErrorKind::NotFound, ErrorKind::ConnectionRefused].contains(&error.kind());
                if !may_pass || !instance.is_running() || Instant::now() >= deadline {
                    return Err(instance.absence(&error));
                }
            }
        }
        std::thread::sleep(RETRY_PAUSE);
    }
}

/// All instances whose control socket takes our connection, or would if its queue had room.
pub(super) fn running() -> Vec<Instance> {
    found(ErrorKind::WouldBlock)
}

/// All instances that are connected to with success, or with an error of this kind.
fn found(kind: ErrorKind) -> Vec<Instance> {
    let mut found = Vec::new();
    for folder in trusted_folders() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "pid") {
                let instance = Instance::with_pid_file(path, is_folder_given());
                let connected = Client::connect(&instance);
                if connected.is_ok() || connected.is_err_and(|error| error.kind() == kind) {
                    found.push(instance);
                }
            }
        }
    }
    found.sort_by_key(Instance::shown);
    found
}

/// The folders in which instances may have their files: only the one that RUNTIME_DIRECTORY names, if it is set.
fn folders() -> Vec<PathBuf> {
    if is_folder_given() {
        return vec![runtime_directory()];
    }
    let mut folders = vec![runtime_directory(), PathBuf::from("/run/panzer")];
    folders.extend(std::env::var_os("XDG_RUNTIME_DIR").map(|folder| PathBuf::from(folder).join("panzer")));
    folders.push(std::env::temp_dir().join(format!("panzer-{}", geteuid())));
    let mut seen = BTreeSet::new();
    folders.retain(|folder| seen.insert(folder.clone()));
    folders
}

/// Those that are not skipped.
fn trusted_folders() -> Vec<PathBuf> {
    folders().into_iter().filter(|folder| !is_skipped(folder)).collect()
}

/// Whether other users can put files into this folder. A folder that RUNTIME_DIRECTORY names is always trusted.
fn is_skipped(folder: &Path) -> bool {
    !is_folder_given() && folder.symlink_metadata().is_ok() && !is_trusted(folder)
}

fn looked_in() -> String {
    let one = |folder: &PathBuf| {
        let why = if is_skipped(folder) { ", skipped: a link, or others than its owner can write there" } else { "" };
        format!("{}{why}", folder.display())
    };
    folders().iter().map(one).collect::<Vec<_>>().join("; ")
}
