//! Who started panzer, and the files by which panzer is found.

pub(crate) mod ack_paths;
pub(crate) mod daemon_parent;
pub(crate) mod pid_file;
pub(crate) mod service_manager;

use std::io;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use self::ack_paths::AckPaths;
use self::daemon_parent::DaemonParent;
use self::pid_file::PidFile;
use self::service_manager::ServiceManager;
use crate::control::environment::Environment;
use crate::sys::output::TerminalRights;

/// Processes and files outside that know panzer.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Outside {
    #[serde(rename = "manager_told")]
    pub(crate) service_manager: ServiceManager,
    #[serde(skip)]
    pub(crate) daemon_parent: DaemonParent,
    pub(crate) pid_file: PidFile,
    pub(crate) ack_paths: AckPaths,
    /// Whether panzer was started on a terminal.
    pub(crate) had_terminal: bool,
    pub(crate) terminal_rights: TerminalRights,
    /// Whether HUP was ignored when panzer was started.
    pub(crate) ignores_hang_up: bool,
}

impl Outside {
    /// Goes on after a restart in place. A daemon's parent no longer waits by then.
    pub(crate) fn resume(&mut self, environment: &Environment) -> io::Result<()> {
        self.service_manager.resume(environment, Instant::now());
        self.pid_file.resume()
    }
}
