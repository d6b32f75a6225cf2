//! Who started panzer, and the files by which panzer is found.

pub(crate) mod ack_paths;
pub(crate) mod cgroups;
pub(crate) mod daemon_parent;
pub(crate) mod pid_file;
pub(crate) mod service_manager;

use std::io;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use self::ack_paths::AckPaths;
use self::cgroups::Cgroups;
use self::daemon_parent::DaemonParent;
use self::pid_file::PidFile;
use self::service_manager::ServiceManager;
use crate::control::environment::Environment;
use crate::sys::output::TerminalRights;
use crate::sys::processes;

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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cgroups: Option<Cgroups>,
    /// How gladly the kernel would end us, had we not protected ourselves.
    #[serde(default)]
    pub(crate) unprotected: Option<i32>,
}

/// The OOM score adjustment of panzer's own processes with `--oom-score-adj`: the kernel ends nearly everything else first.
const PROTECTED: i32 = -900;

impl Outside {
    /// If workers have an OOM score of their own, panzer's processes get one that protects them, if that is allowed.
    pub(crate) fn protect(&mut self, workers: Option<i32>) {
        match (workers, self.unprotected) {
            (Some(workers), None) => {
                let before = processes::oom_score().filter(|score| *score > PROTECTED);
                if before.is_some() && processes::set_oom_score(PROTECTED).is_ok() {
                    self.unprotected = before;
                    log::info!(
                        "if memory runs out, the kernel ends workers before panzer (OOM score {workers} and {PROTECTED})"
                    );
                }
            }
            (None, Some(before)) if processes::set_oom_score(before).is_ok() => self.unprotected = None,
            _ => {}
        }
    }

    /// Goes on after a restart in place. A daemon's parent no longer waits by then.
    pub(crate) fn resume(&mut self, environment: &Environment) -> io::Result<()> {
        self.service_manager.resume(environment, Instant::now());
        self.pid_file.resume()
    }
}
