//! How a worker is handed its listeners, beside the plain descriptors.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// How a worker is handed its listeners.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handover {
    /// The variables of other supervisors that tell of the listeners too.
    pub also_speak: Vec<Dialect>,
    /// What `LISTEN_PID` is.
    pub listen_pid: ListenPid,
    /// Where they are.
    pub listen_as: ListenAs,
}

impl Handover {
    /// Whether this dialect is spoken.
    pub fn speaks(&self, dialect: Dialect) -> bool {
        self.also_speak.contains(&dialect)
    }
}

/// The variables by which another supervisor, or a server's own old process, tells a server of its listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    /// `SERVER_STARTER_PORT`, `SERVER_STARTER_GENERATION`.
    ServerStarter,
    /// `EINHORN_FD_COUNT` and so on, with an acknowledgement at `EINHORN_SOCK_PATH`.
    Einhorn,
    /// `NGINX`.
    Nginx,
    /// `UNICORN_FD`.
    Unicorn,
    /// `FPM_SOCKETS`.
    Fpm,
}

/// What `LISTEN_PID` is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum ListenPid {
    /// The worker's pid.
    #[default]
    Worker,
    /// Not set: for a worker that is only a wrapper around the process that takes the listeners.
    None,
}

/// Where a worker finds its listeners.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum ListenAs {
    /// From descriptor 3 on, as `LISTEN_FDS` says.
    #[default]
    Fds,
    /// The only one is descriptor 0, as inetd's `wait` has it.
    Stdin,
}
