//! The options for how workers get their listeners.

use clap::{ArgAction, Args};

use super::refusal::{Ending, usage};
use crate::config::{Dialect, Handover, Listen, ListenAs, ListenPid};
use crate::worker::dialects;

#[derive(Debug, Args)]
pub(super) struct HandoverOptions {
    /// Also name the listeners as these tools do: server-starter (SERVER_STARTER_PORT; a port alone is IPv4 only),
    /// einhorn (EINHORN_FD_0 ...; an ack counts as READY=1), nginx (NGINX), unicorn (UNICORN_FD), fpm (FPM_SOCKETS)
    #[arg(long, env = "PANZER_ALSO_SPEAK", value_name = "DIALECT,...", action = ArgAction::Append, value_delimiter = ',')]
    #[arg(hide_possible_values = true)]
    also_speak: Vec<Dialect>,

    /// none: do not set LISTEN_PID, for a worker that starts the server as its child, such as sh -c without exec
    /// [worker]
    #[arg(long, env = "PANZER_LISTEN_PID", value_name = "worker|none", hide_possible_values = true)]
    listen_pid: Option<ListenPid>,

    /// stdin: pass the only listener as descriptor 0 and do not set LISTEN_FDS, as inetd's wait and Java's
    /// inheritedChannel expect [fds]
    #[arg(long, env = "PANZER_LISTEN_AS", value_name = "fds|stdin", hide_possible_values = true)]
    listen_as: Option<ListenAs>,
}

impl HandoverOptions {
    pub(super) fn resolve(self, listen: &[Listen]) -> Result<Handover, Ending> {
        let mut also_speak = Vec::new();
        for dialect in self.also_speak {
            dialects::check(dialect, listen).map_err(|why| usage(format!("--also-speak: {why}")))?;
            if !also_speak.contains(&dialect) {
                also_speak.push(dialect);
            }
        }
        let (listen_pid, listen_as) = (self.listen_pid.unwrap_or_default(), self.listen_as.unwrap_or_default());
        if listen_as == ListenAs::Stdin && listen.len() != 1 {
            let given = if listen.is_empty() { "none is".to_owned() } else { format!("{} are", listen.len()) };
            return Err(usage(format!("--listen-as stdin takes exactly one --listen, and {given} given")));
        }
        if listen_as == ListenAs::Stdin && !also_speak.is_empty() {
            return Err(usage(
                "--listen-as stdin and --also-speak exclude each other: there is no descriptor to tell of",
            ));
        }
        Ok(Handover { also_speak, listen_pid, listen_as })
    }
}
