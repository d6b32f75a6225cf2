//! Who started panzer, and the files by which panzer is found.

pub(crate) mod ack_paths;
pub(crate) mod daemon_parent;
pub(crate) mod pid_file;
pub(crate) mod service_manager;

use std::io;
use std::os::fd::RawFd;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use self::ack_paths::AckPaths;
use self::daemon_parent::DaemonParent;
use self::pid_file::PidFile;
use self::service_manager::ServiceManager;
use crate::control::environment::Environment;
use crate::sys::descriptors::Kept;
use crate::sys::output::TerminalRights;

/// Everything outside that knows panzer.
pub(crate) struct Outside {
    pub(crate) service_manager: ServiceManager,
    pub(crate) daemon_parent: DaemonParent,
    pub(crate) pid_file: PidFile,
    pub(crate) ack_paths: AckPaths,
    /// Whether panzer was started on a terminal.
    pub(crate) had_terminal: bool,
    pub(crate) terminal_rights: TerminalRights,
    /// Whether HUP was ignored when panzer was started.
    pub(crate) ignores_hang_up: bool,
}

/// The same as one main hands it on to the next.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Carried {
    manager_told: service_manager::Told,
    pid_file: pid_file::Carried,
    ack_paths: AckPaths,
    had_terminal: bool,
    terminal_rights: TerminalRights,
    pub(crate) ignores_hang_up: bool,
}

impl Carried {
    /// The descriptor in it.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.pid_file.fd
    }
}

impl Outside {
    /// For the next main. A daemon's parent no longer waits by then.
    pub(crate) fn carry<'a>(&'a self, kept: &mut Kept<'a>) -> Carried {
        Carried {
            manager_told: self.service_manager.told(),
            pid_file: self.pid_file.carry(kept),
            ack_paths: self.ack_paths.clone(),
            had_terminal: self.had_terminal,
            terminal_rights: self.terminal_rights,
            ignores_hang_up: self.ignores_hang_up,
        }
    }

    /// What the main before has handed on.
    pub(crate) fn take_over(carried: Carried, environment: &Environment) -> io::Result<Outside> {
        Ok(Outside {
            service_manager: ServiceManager::new(environment, Instant::now()).resume(carried.manager_told),
            daemon_parent: DaemonParent::new(None),
            pid_file: PidFile::take_over(carried.pid_file)?,
            ack_paths: carried.ack_paths,
            had_terminal: carried.had_terminal,
            terminal_rights: carried.terminal_rights,
            ignores_hang_up: carried.ignores_hang_up,
        })
    }
}
