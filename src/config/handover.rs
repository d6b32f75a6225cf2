//! How workers get their listeners, beyond the plain descriptors.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// How workers get their listeners.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handover {
    /// Other supervisors whose variables describe the listeners too.
    pub also_speak: Vec<Dialect>,
    /// The value of `LISTEN_PID`.
    pub listen_pid: ListenPid,
    /// The descriptors on which workers get their listeners.
    pub listen_as: ListenAs,
}

impl Handover {
    /// Whether workers get the variables of this dialect.
    pub fn speaks(&self, dialect: Dialect) -> bool {
        self.also_speak.contains(&dialect)
    }
}

/// A dialect: the variables by which another supervisor, or a server's own old process, describes listeners to a
/// server.
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

/// The value of `LISTEN_PID`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum ListenPid {
    /// The worker's pid.
    #[default]
    Worker,
    /// Not set, for a worker that is only a wrapper around the process that takes the listeners.
    None,
}

/// The descriptors on which a worker gets its listeners.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum ListenAs {
    /// From descriptor 3 on, as `LISTEN_FDS` describes.
    #[default]
    Fds,
    /// The only listener as descriptor 0, like `wait` in inetd.
    Stdin,
}
