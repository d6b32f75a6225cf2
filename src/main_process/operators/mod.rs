//! People: their signals and requests, and the answers.

pub(crate) mod clients;
pub(crate) mod counters;
pub(crate) mod dump;
pub(crate) mod farewell;
pub(crate) mod hooks;
pub(crate) mod inquiry;
pub(crate) mod messages;
pub(crate) mod requests;
pub(crate) mod signals;
pub(crate) mod status;

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use self::clients::Clients;
use self::counters::Counters;
use self::inquiry::Inquiry;
use crate::main_process::decide::farewell::Farewell;
use crate::main_process::decide::hooks::Hooks;

/// Requests that have not been answered yet.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Operators {
    /// The clients of the control socket.
    pub(crate) clients: Clients,
    /// The inquiry for the state of all workers, if one is under way.
    #[serde(skip)]
    pub(crate) inquiry: Option<Inquiry>,
    /// The clients that get the answer of this inquiry.
    #[serde(skip)]
    pub(crate) askers: Vec<u64>,
    /// Whether Ctrl-C asked for the end.
    #[serde(skip)]
    pub(crate) interrupted: bool,
    /// Whether to print its answer to stderr.
    pub(crate) told_on_stderr: bool,
    /// Whether to write its answer to a file.
    pub(crate) dumps: bool,
    pub(crate) counters: Counters,
    /// Commands that they have panzer run.
    #[serde(default, skip_serializing_if = "Hooks::is_unused")]
    pub(crate) hooks: Hooks,
    /// The wait before a graceful stop that they asked for.
    #[serde(default, skip_serializing_if = "Farewell::is_unused")]
    pub(crate) farewell: Farewell,
    /// The last lines of workers that have ended, by generation and slot.
    #[serde(skip)]
    pub(crate) last_lines: BTreeMap<(u32, u32), Vec<String>>,
}

impl Operators {
    /// No request yet.
    pub(crate) fn new(clients: Clients) -> Operators {
        let (told_on_stderr, dumps) = (false, false);
        let (counters, hooks, last_lines) = (Counters::default(), Hooks::default(), BTreeMap::new());
        Operators {
            clients,
            inquiry: None,
            askers: Vec::new(),
            interrupted: false,
            told_on_stderr,
            dumps,
            counters,
            hooks,
            farewell: Farewell::default(),
            last_lines,
        }
    }

    /// When a request has waited long enough.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let inquiry = self.inquiry.as_ref().map(Inquiry::deadline);
        let clients = [self.clients.server.deadline(), self.clients.deadline()];
        clients.into_iter().chain([inquiry, self.hooks.deadline(), self.farewell.deadline()]).flatten().min()
    }

    /// Whether the state of all workers is wanted.
    pub(crate) fn want_status(&self) -> bool {
        self.told_on_stderr || self.dumps || self.clients.want_status()
    }
}
